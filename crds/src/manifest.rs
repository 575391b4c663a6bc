//! A manifest file: YAML text to a checked [`StreamingJob`], with the places that messages need.

use std::fmt;

use kube::core::ObjectMeta;
use serde::de::DeserializeOwned;

use crate::document::{Entry, Node, Place, Value};
use crate::resources::{Cores, MemorySize};
use crate::streaming_job::StreamingJob;
use crate::{definition, schema};

/// The largest manifest that is read; an API server takes objects of up to 1.5 MiB.
pub const MANIFEST_BYTES_MAX: usize = 3 * 512 * 1024;

const API_VERSION: &str = "tiderace.dev/v1alpha1";
const KIND: &str = "StreamingJob";

/// One job from a file. It has passed the schema and every CEL rule.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The job.
    pub job: StreamingJob,
    /// `spec.sql.inline` and where it stands, when it is given.
    pub sql: Option<SqlText>,
    /// Where `spec.sql` stands.
    pub sql_place: Place,
}

/// Inline SQL and its place in the manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct SqlText {
    /// The statements.
    pub text: String,
    /// For each line of `text`: the offset of its first byte in the manifest. `None` when the YAML form (folded, escaped) leaves no
    /// line of `text` as it is.
    pub line_offsets: Option<Vec<usize>>,
}

/// One thing that is wrong with a manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// One sentence that names the field.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// Where.
    pub place: Option<Place>,
}

/// All that is wrong with a manifest; never empty.
#[derive(Clone, Debug, PartialEq)]
pub struct ManifestError {
    /// In the order of their places.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            if let Some(place) = problem.place {
                write!(f, "line {}, column {}: ", place.line, place.column)?;
            }
            f.write_str(&problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ManifestError {}

impl From<Problem> for ManifestError {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

impl Manifest {
    /// Reads a file of one or more YAML documents, of which exactly one is a `StreamingJob`; the others are none of ours.
    pub fn parse(yaml: &str) -> Result<Self, ManifestError> {
        let problem = |message: String, place| ManifestError::from(Problem { message, hint: None, place });
        if yaml.len() > MANIFEST_BYTES_MAX {
            return Err(problem(format!("the manifest has {} bytes, and may have {MANIFEST_BYTES_MAX}", yaml.len()), None));
        }
        let documents: Vec<Node> = serde_saphyr::from_multiple(yaml).map_err(|error| {
            let place = error.location().map(Place::of).filter(|place| place.line > 0);
            problem(format!("the YAML can't be parsed: {}", first_line(&error.without_snippet().to_string())), place)
        })?;
        let jobs: Vec<&Node> = documents.iter().filter(|d| is_ours(d)).collect();
        let node = match jobs.as_slice() {
            [node] => *node,
            [] => {
                let kinds: Vec<_> = documents.iter().filter_map(|d| d.get("kind")?.text()).collect();
                let found = if kinds.is_empty() { "nothing with a kind".to_owned() } else { kinds.join(", ") };
                let mut error = problem(format!("the file has no {KIND}, but {found}"), None);
                error.problems[0].hint = Some(format!("a job begins with\napiVersion: {API_VERSION}\nkind: {KIND}"));
                return Err(error);
            }
            [_, second, ..] => {
                let message = format!("the file has {} {KIND} documents, and must have one", jobs.len());
                return Err(problem(message, Some(second.place)));
            }
        };
        let mut problems = Vec::new();
        check_version(node, &mut problems);
        check_metadata(node, &mut problems);
        schema::check("", node, &definition_schema()?, &mut problems);
        check_type::<Cores>(node, "spec.resources.cpu", &mut problems);
        check_type::<MemorySize>(node, "spec.resources.memory", &mut problems);
        check_type::<MemorySize>(node, "spec.storage.size", &mut problems);
        if !problems.is_empty() {
            problems.sort_by_key(|p| p.place);
            return Err(ManifestError { problems });
        }
        let job: StreamingJob =
            serde_json::from_value(node.to_json()).map_err(|error| problem(error.to_string(), Some(node.place)))?;
        if let Err(errors) = job.validate_cel() {
            let problems = errors
                .into_vec()
                .into_iter()
                .map(|e| {
                    // Our messages begin with the field they are about, seen from the object that has the rule.
                    let field = format!("{}.{}", e.field_path, e.message.split(' ').next().unwrap_or_default());
                    Problem { place: Some(place_of(node, &field)), message: e.message, hint: None }
                })
                .collect();
            return Err(ManifestError { problems });
        }
        let sql_node = node.get("spec").and_then(|spec| spec.get("sql")).unwrap_or(node);
        let sql = sql_node.entry("inline").and_then(|inline| {
            let text = inline.value.text()?.to_owned();
            let line_offsets = line_offsets(yaml, inline, &text);
            Some(SqlText { text, line_offsets })
        });
        Ok(Self { job, sql, sql_place: sql_node.place })
    }
}

fn is_ours(document: &Node) -> bool {
    let text = |key| document.get(key).and_then(Node::text);
    text("kind").is_some_and(|kind| kind.eq_ignore_ascii_case(KIND))
        || text("apiVersion").is_some_and(|v| v.starts_with("tiderace.dev/"))
}

fn check_version(node: &Node, problems: &mut Vec<Problem>) {
    for (key, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        match node.get(key) {
            Some(found) if found.text() != Some(wanted) => {
                problems.push(Problem { message: format!("{key} must be {wanted}"), hint: None, place: Some(found.place) })
            }
            Some(_) => {}
            None => problems.push(schema::missing(key, node.place)),
        }
    }
}

/// The fields of Kubernetes' own `ObjectMeta`; their types are checked by it.
fn check_metadata(node: &Node, problems: &mut Vec<Problem>) {
    const FIELDS: [&str; 15] = [
        "name",
        "generateName",
        "namespace",
        "labels",
        "annotations",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "finalizers",
        "ownerReferences",
        "managedFields",
        "selfLink",
    ];
    let Some(metadata) = node.get("metadata") else {
        problems.push(schema::missing("metadata", node.place));
        return;
    };
    let mut refuse = |message: String, place| problems.push(Problem { message, hint: None, place: Some(place) });
    let Value::Map(entries) = &metadata.value else {
        return refuse("metadata must be a map".to_owned(), metadata.place);
    };
    for entry in entries.iter().filter(|e| !FIELDS.contains(&e.key.as_str())) {
        refuse(format!("there is no field metadata.{}", entry.key), entry.key_place);
    }
    match metadata.get("name") {
        Some(name) if name.text().is_none() => refuse("metadata.name must be a text".to_owned(), name.place),
        Some(_) => {}
        None => refuse("the field metadata.name is missing".to_owned(), metadata.place),
    }
    if let Err(error) = serde_json::from_value::<ObjectMeta>(metadata.to_json()) {
        refuse(format!("metadata: {error}"), metadata.place);
    }
}

/// What a schema says by a pattern, a type says better.
fn check_type<T: DeserializeOwned>(root: &Node, path: &str, problems: &mut Vec<Problem>) {
    let Some(node) = path.split('.').try_fold(root, |node, key| node.get(key)) else { return };
    if problems.iter().any(|p| p.place == Some(node.place)) || matches!(node.value, Value::Null) {
        return;
    }
    if let Err(error) = serde_json::from_value::<T>(node.to_json()) {
        problems.push(Problem { message: format!("{path} {error}"), hint: None, place: Some(node.place) });
    }
}

fn definition_schema() -> Result<serde_json::Value, ManifestError> {
    let definition = serde_json::to_value(definition::streaming_job()).map_err(|error| Problem {
        message: format!("the definition can't be written: {error}"),
        hint: None,
        place: None,
    })?;
    Ok(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone())
}

/// The place of `path` (`spec.sql.inline`), or of the nearest node around it.
fn place_of(root: &Node, path: &str) -> Place {
    let mut node = root;
    for key in path.split('.').filter(|key| !key.is_empty()) {
        match node.get(key) {
            Some(inner) => node = inner,
            None => break,
        }
    }
    node.place
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or(text)
}

/// For each line of `text`, the value of `entry`: where that line stands in `yaml`.
fn line_offsets(yaml: &str, entry: &Entry, text: &str) -> Option<Vec<usize>> {
    let key = entry.key_place.offset(yaml);
    let key_line = yaml[key..].lines().next()?;
    let is_literal = key_line.split_once(':').is_some_and(|(_, value)| value.trim_start().starts_with('|'));
    if is_literal {
        return literal_line_offsets(yaml, key + key_line.len(), text);
    }
    // A plain or quoted scalar on one line, without escapes, stands as it is.
    let start = entry.value.place.offset(yaml);
    let body = start + usize::from(yaml[start..].starts_with(['"', '\'']));
    (!text.contains('\n') && yaml[body..].starts_with(text)).then(|| vec![body])
}

/// A literal block (`|`) whose header ends at `header_end`: its lines stand as they are, behind one and the same indentation. Checked
/// line by line, never guessed.
fn literal_line_offsets(yaml: &str, header_end: usize, text: &str) -> Option<Vec<usize>> {
    let mut at = header_end + yaml[header_end..].find('\n')? + 1;
    let first = text.split('\n').find(|line| !line.trim().is_empty())?;
    let mut indent = None;
    let mut offsets = Vec::new();
    for line in text.split('\n') {
        let end = at + yaml[at..].find('\n').unwrap_or(yaml.len() - at);
        let raw = yaml[at..end].trim_end_matches('\r');
        if !line.is_empty() && indent.is_none() && line == first {
            indent = Some(raw.len().checked_sub(line.len())?);
        }
        let skip = indent.unwrap_or(0).min(raw.len());
        if !line.is_empty() && raw.get(skip..) != Some(line) {
            return None;
        }
        offsets.push(at + skip);
        at = (end + 1).min(yaml.len());
    }
    Some(offsets)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "\
apiVersion: tiderace.dev/v1alpha1
kind: StreamingJob
metadata:
  name: orders
spec:
  sql:
    inline: |
      CREATE TABLE t (a INT);

        SELECT 'ä' FROM t;
  resources: {cpu: 2, memory: 1Gi}
  config:
    engine.tick: 50ms
";

    fn problems(yaml: &str) -> Vec<(usize, usize, String)> {
        let error = Manifest::parse(yaml).expect_err("should be refused");
        let at = |p: &Problem| p.place.map_or((0, 0), |place| (place.line, place.column));
        error.problems.iter().map(|p| (at(p).0, at(p).1, p.message.clone())).collect()
    }

    #[test]
    fn a_good_manifest_is_read() {
        let manifest = Manifest::parse(GOOD).unwrap();
        assert_eq!(manifest.job.metadata.name.as_deref(), Some("orders"));
        assert_eq!(manifest.job.spec.config["engine.tick"], "50ms");
        assert_eq!(manifest.job.spec.resources.as_ref().unwrap().cpu.unwrap().count(), 2);
        let sql = manifest.sql.unwrap();
        assert_eq!(sql.text, "CREATE TABLE t (a INT);\n\n  SELECT 'ä' FROM t;\n");
        let offsets = sql.line_offsets.unwrap();
        assert!(GOOD[offsets[0]..].starts_with("CREATE TABLE"));
        assert!(GOOD[offsets[2]..].starts_with("  SELECT"));
    }

    #[test]
    fn unknown_fields_are_refused_with_their_places_all_at_once() {
        let yaml = GOOD.replace("  resources:", "  replicaz: 3\n  resources:").replace("engine.tick: 50ms", "engine.tick: 50");
        assert_eq!(
            problems(&yaml),
            [
                (11, 3, "there is no field spec.replicaz".to_owned()),
                (14, 18, "spec.config.engine.tick must be a text, not a number".to_owned())
            ]
        );
    }

    #[test]
    fn every_other_mistake_has_its_place() {
        for (from, to, line, message) in [
            ("kind: StreamingJob", "kind: streamingjob", 2, "kind must be StreamingJob"),
            ("v1alpha1", "v1", 1, "apiVersion must be tiderace.dev/v1alpha1"),
            ("  name: orders", "  nam: orders", 4, "there is no field metadata.nam"),
            ("  name: orders", "  name: 7", 4, "metadata.name must be a text"),
            ("  name: orders", "  name: Orders", 4, "metadata.name must consist of"),
            ("cpu: 2", "cpu: 0", 11, "spec.resources.cpu must be 1 or more"),
            ("cpu: 2", "cpu: 1.5", 11, "spec.resources.cpu must be a whole number"),
            ("cpu: 2", "cpu: 500m", 11, "must be a whole number of cores"),
            ("cpu: 2", "cpu: 300", 11, "resources.cpu may not be more than maxParallelism"),
            ("memory: 1Gi", "memory: lots", 11, "must be an amount of memory"),
            ("  config:", "  maxParallelism: 40000\n  config:", 12, "spec.maxParallelism must be 32768 or less"),
            (
                "    inline: |",
                "    configMapKeyRef: {name: a, key: b}\n    inline: |",
                7,
                "exactly one of inline and configMapKeyRef",
            ),
            ("    inline: |", "    text: |", 7, "there is no field spec.sql.text"),
        ] {
            let found = problems(&GOOD.replacen(from, to, 1));
            assert!(found.iter().any(|(at, _, m)| *at == line && m.contains(message)), "{to}: {found:?}");
        }
    }

    #[test]
    fn a_file_has_exactly_one_job() {
        let other = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n";
        assert!(Manifest::parse(&format!("{other}---\n{GOOD}---\n{other}")).is_ok());
        assert!(problems(&format!("{GOOD}---\n{GOOD}"))[0].2.contains("has 2 StreamingJob documents"));
        assert!(problems(other)[0].2.contains("no StreamingJob, but ConfigMap"));
        assert!(problems("")[0].2.contains("no StreamingJob"));
        assert!(problems("a: [1,\n")[0].2.contains("can't be parsed"));
        assert!(problems(&format!("{GOOD}    engine.tick: 1s\n"))[0].2.contains("duplicate"));
    }

    #[test]
    fn a_manifest_that_is_too_large_is_refused_unread() {
        assert!(problems(&" ".repeat(MANIFEST_BYTES_MAX + 1))[0].2.contains("may have"));
        let long = GOOD.replace("CREATE TABLE t", &format!("-- {}", "x".repeat(524_288)));
        assert!(problems(&long)[0].2.contains("spec.sql.inline has"), "{:?}", problems(&long));
    }

    #[test]
    fn sql_on_one_line_is_found_and_folded_sql_is_not() {
        let block = GOOD.find("inline: |").unwrap()..GOOD.find("  resources").unwrap();
        for (form, is_found) in [
            ("inline: SELECT 1\n", true),
            ("inline: \"SELECT 1\"\n", true),
            ("inline: 'SELECT 1'\n", true),
            ("inline: \"SELECT\\n1\"\n", false),
            ("inline: >\n      SELECT\n      1\n", false),
            ("inline: |2-\n      SELECT 1\n", true),
        ] {
            let mut yaml = GOOD.to_owned();
            yaml.replace_range(block.clone(), form);
            let sql = Manifest::parse(&yaml).unwrap().sql.unwrap();
            assert_eq!(sql.line_offsets.is_some(), is_found, "{form}");
            if let Some(offsets) = sql.line_offsets {
                assert!(
                    yaml[offsets[0]..].starts_with("SELECT 1") || yaml[offsets[0]..].trim_start().starts_with("SELECT 1"),
                    "{form}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(yaml in "[ -~\\n]{0,200}") {
            let _ = Manifest::parse(&yaml);
        }

        #[test]
        fn each_line_of_a_block_maps_to_itself(lines in prop::collection::vec("[ -~ä]{0,20}", 1..8)) {
            let sql = format!("SELECT 1\n{}\n", lines.join("\n"));
            let block: String = sql.lines().map(|l| if l.is_empty() { "\n".to_owned() } else { format!("      {l}\n") }).collect();
            let start = GOOD.find("      CREATE").unwrap();
            let end = GOOD.find("  resources").unwrap();
            let yaml = format!("{}{block}{}", &GOOD[..start], &GOOD[end..]);
            let found = Manifest::parse(&yaml).unwrap().sql.unwrap();
            let offsets = found.line_offsets.unwrap();
            for (line, offset) in found.text.lines().zip(offsets) {
                prop_assert!(yaml[offset..].starts_with(line), "{line:?}");
            }
        }
    }
}
