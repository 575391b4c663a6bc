//! Reads a job: a manifest or bare SQL, from a file or stdin, and remembers where its SQL stands.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use tiderace_crds::{Cores, Manifest, MemorySize};
use tiderace_engine::error::{Code, Diagnostic, Diagnostics, Span};

/// The largest job file that is read.
pub const JOB_BYTES_MAX: u64 = 16 << 20;

/// A text that messages may quote, and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceText {
    /// The path as the user gave it; `<stdin>`.
    pub name: String,
    /// The whole text.
    pub text: String,
}

/// A job as it stands in its file.
#[derive(Clone, Debug)]
pub struct JobFile {
    /// The file.
    pub source: SourceText,
    /// Its name: the manifest's, or the file's.
    pub name: String,
    /// The statements.
    pub sql: String,
    /// How the lines of `sql` lie in `source`.
    lines: SqlLines,
    /// The file of the statements, when it is another than the manifest.
    statements: Option<SourceText>,
    /// The names of `spec.sql.secretRefs`.
    pub secret_names: Vec<String>,
    /// The manifest's settings; empty for bare SQL.
    pub config: BTreeMap<String, String>,
    /// The manifest's cores.
    pub cores: Option<Cores>,
    /// The manifest's memory.
    pub memory: Option<MemorySize>,
    /// Into how many partitions the state is cut.
    pub max_parallelism: u32,
}

#[derive(Clone, Debug)]
enum SqlLines {
    /// The SQL is the file.
    Whole,
    /// Offsets in the file of the lines of the SQL.
    Block(Vec<usize>),
    /// The SQL doesn't stand in the file as it is.
    Apart,
    /// The SQL is a file of its own.
    Other,
}

/// A job file that can't be used: what is wrong, and the text that the spans refer to.
#[derive(Clone, Debug)]
pub struct Unusable {
    /// What is wrong; spans are places in `source`.
    pub diagnostics: Diagnostics,
    /// The file, as far as it was read.
    pub source: SourceText,
}

impl JobFile {
    /// Reads `path`; `-` is stdin, where a text that looks like a manifest is one; a folder holds `job.yaml`, and `job.sql` with the
    /// statements where the manifest takes them from a ConfigMap.
    pub fn read(path: &Path) -> Result<Self, Unusable> {
        if path.is_dir() {
            let (source, _) = read_text(&path.join(MANIFEST_FILE))?;
            let sql = path.join(SQL_FILE);
            let sql = if sql.exists() { Some(read_text(&sql)?.0) } else { None };
            return Self::from_manifest_and_sql(source, sql);
        }
        let (source, is_manifest) = read_text(path)?;
        let is_stdin = path == Path::new("-");
        if is_manifest {
            return Self::from_manifest(source);
        }
        let stem = path.file_stem().and_then(|s| s.to_str()).filter(|_| !is_stdin).unwrap_or("job");
        Ok(Self {
            name: stem.to_owned(),
            sql: source.text.clone(),
            source,
            statements: None,
            secret_names: Vec::new(),
            lines: SqlLines::Whole,
            config: BTreeMap::new(),
            cores: None,
            memory: None,
            max_parallelism: MAX_PARALLELISM_DEFAULT,
        })
    }

    /// Reads a manifest from its text.
    pub fn from_manifest(source: SourceText) -> Result<Self, Unusable> {
        Self::from_manifest_and_sql(source, None)
    }

    /// Reads a manifest from its text; `statements` are those of the ConfigMap that it names.
    pub fn from_manifest_and_sql(source: SourceText, statements: Option<SourceText>) -> Result<Self, Unusable> {
        let refuse = |diagnostics: Vec<Diagnostic>| Unusable { diagnostics: Diagnostics(diagnostics), source: source.clone() };
        let manifest = Manifest::parse(&source.text).map_err(|error| {
            let diagnostics = error.problems.into_iter().map(|problem| {
                let mut one = Diagnostic::new(Code::InvalidManifest, problem.message);
                one.hint = problem.hint;
                one.at(problem.place.map(|place| word_at(&source.text, place.offset(&source.text))))
            });
            refuse(diagnostics.collect())
        })?;
        let (sql, lines, statements) = match (manifest.sql, statements) {
            (Some(sql), _) => (sql.text, sql.line_offsets.map_or(SqlLines::Apart, SqlLines::Block), None),
            (None, Some(statements)) => (statements.text.clone(), SqlLines::Other, Some(statements)),
            (None, None) => {
                let place = word_at(&source.text, manifest.sql_place.offset(&source.text));
                return Err(refuse(vec![
                    Diagnostic::new(
                        Code::InvalidManifest,
                        "spec.sql.configMapKeyRef names a ConfigMap of a cluster, and there is none here",
                    )
                    .at(place)
                    .hint("put the statements into spec.sql.inline, or run them from a .sql file"),
                ]));
            }
        };
        let spec = manifest.job.spec;
        let resources = spec.resources.unwrap_or_default();
        Ok(Self {
            name: manifest.job.metadata.name.unwrap_or_default(),
            lines,
            sql,
            statements,
            secret_names: spec.sql.secret_refs.into_keys().collect(),
            source,
            config: spec.config,
            cores: resources.cpu,
            memory: resources.memory,
            max_parallelism: spec.max_parallelism,
        })
    }

    /// The text that messages about the SQL quote: the file, or the SQL alone when it doesn't stand in the file as it is.
    #[must_use]
    pub fn quoted(&self) -> SourceText {
        match self.lines {
            SqlLines::Whole | SqlLines::Block(_) => self.source.clone(),
            SqlLines::Other => self.statements.clone().unwrap_or_else(|| self.source.clone()),
            SqlLines::Apart => SourceText { name: format!("{}, spec.sql.inline", self.source.name), text: self.sql.clone() },
        }
    }

    /// Line and column of an offset in the SQL, both from 1; columns count characters.
    #[must_use]
    pub fn line_and_column(&self, offset: usize) -> (u32, u32) {
        let before = self.sql.get(..offset).unwrap_or(&self.sql);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
    }

    /// Where a place in the SQL stands in [`Self::quoted`].
    #[must_use]
    pub fn locate(&self, span: Span) -> Range<usize> {
        let (start, end) = (self.offset(span.start), self.offset(span.end));
        start..end.max(start)
    }

    fn offset(&self, at: usize) -> usize {
        let at = at.min(self.sql.len());
        let SqlLines::Block(offsets) = &self.lines else { return at };
        let before = &self.sql.as_bytes()[..at];
        let line = before.iter().filter(|b| **b == b'\n').count();
        let column = at - before.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        offsets.get(line).map_or(self.source.text.len(), |start| (start + column).min(self.source.text.len()))
    }
}

const MAX_PARALLELISM_DEFAULT: u32 = 256;
const MANIFEST_FILE: &str = "job.yaml";
const SQL_FILE: &str = "job.sql";

/// The text of `path`, and whether it is a manifest.
fn read_text(path: &Path) -> Result<(SourceText, bool), Unusable> {
    let is_stdin = path == Path::new("-");
    let name = if is_stdin { "<stdin>".to_owned() } else { path.display().to_string() };
    let bytes = if is_stdin { limited(std::io::stdin().lock()) } else { std::fs::File::open(path).and_then(limited) };
    let unreadable = |reason: String, hint: &str| Unusable {
        diagnostics: Diagnostic::new(Code::FileUnreadable, format!("{name} can't be read: {reason}")).hint(hint).into(),
        source: SourceText { name: name.clone(), text: String::new() },
    };
    let bytes =
        bytes.map_err(|error| unreadable(error.to_string(), "give the path of a .sql or .yaml file, or '-' for stdin"))?;
    if bytes.len() as u64 > JOB_BYTES_MAX {
        return Err(unreadable(format!("it has more than {JOB_BYTES_MAX} bytes"), "is this really a job?"));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        unreadable(format!("byte {} is not UTF-8", error.utf8_error().valid_up_to()), "save the file as UTF-8")
    })?;
    // Editors on Windows put a byte order mark before the text.
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    let is_manifest = match path.extension().and_then(|e| e.to_str()) {
        Some(e) if e.eq_ignore_ascii_case("yaml") || e.eq_ignore_ascii_case("yml") => true,
        Some(e) if e.eq_ignore_ascii_case("sql") => false,
        _ => looks_like_manifest(&text),
    };
    Ok((SourceText { name, text }, is_manifest))
}

fn limited(file: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(JOB_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a line begins with `apiVersion:` or `kind:`, which no SQL statement does.
fn looks_like_manifest(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("apiVersion:") || line.starts_with("kind:"))
}

/// The word that begins at `start`, to underline it.
fn word_at(text: &str, start: usize) -> Span {
    let rest = &text[start.min(text.len())..];
    let end = rest.find(|c: char| c.is_whitespace() || ":,{}[]".contains(c)).unwrap_or(rest.len());
    let end = if end == 0 { rest.chars().next().filter(|c| *c != '\n').map_or(0, char::len_utf8) } else { end };
    Span { start, end: start + end }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const YAML: &str = "\
apiVersion: tiderace.dev/v1alpha1
kind: StreamingJob
metadata: {name: orders}
spec:
  sql:
    inline: |
      SELECT 'ä'
      FROM missing;
  resources: {cpu: 4, memory: 2Gi}
  config: {engine.tick: 50ms}
";

    fn manifest(yaml: &str) -> Result<JobFile, Unusable> {
        JobFile::from_manifest(SourceText { name: "job.yaml".to_owned(), text: yaml.to_owned() })
    }

    #[test]
    fn a_place_in_inline_sql_is_a_place_in_the_yaml() {
        let job = manifest(YAML).unwrap();
        assert_eq!((job.name.as_str(), job.cores.unwrap().count()), ("orders", 4));
        for word in ["'ä'", "missing", "FROM", "SELECT"] {
            let start = job.sql.find(word).unwrap();
            let found = job.locate(Span { start, end: start + word.len() });
            assert_eq!(&job.quoted().text[found], word);
        }
        let end = job.sql.len();
        assert!(job.locate(Span { start: end, end }).start <= YAML.len());
    }

    #[test]
    fn folded_sql_is_quoted_by_itself() {
        let job = manifest(&YAML.replace("inline: |", "inline: >")).unwrap();
        assert_eq!(job.quoted().name, "job.yaml, spec.sql.inline");
        let start = job.sql.find("missing").unwrap();
        assert_eq!(&job.quoted().text[job.locate(Span { start, end: start + 7 })], "missing");
    }

    #[test]
    fn a_config_map_is_refused_with_a_hint() {
        let yaml = YAML.replace("inline: |\n      SELECT 'ä'\n      FROM missing;", "configMapKeyRef: {name: a, key: b}");
        let refused = manifest(&yaml).unwrap_err().diagnostics.0;
        assert_eq!(refused[0].code, Code::InvalidManifest);
        assert!(refused[0].hint.as_ref().unwrap().contains("spec.sql.inline"));
    }

    #[test]
    fn a_wrong_field_is_underlined() {
        let yaml = YAML.replace("  resources:", "  replicaz: 3\n  resources:");
        let refused = manifest(&yaml).unwrap_err();
        let span = refused.diagnostics.0[0].span.unwrap();
        assert_eq!(&refused.source.text[span.start..span.end], "replicaz");
    }

    #[test]
    fn files_are_told_apart_by_name_then_by_content() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            JobFile::read(&path)
        };
        assert_eq!(write("a.sql", b"SELECT 1").unwrap().name, "a");
        assert_eq!(write("a.yaml", YAML.as_bytes()).unwrap().name, "orders");
        assert_eq!(write("plain", YAML.as_bytes()).unwrap().name, "orders");
        assert_eq!(write("plain", b"SELECT 1").unwrap().sql, "SELECT 1");
        assert_eq!(write("bad.sql", b"SELECT '\xff'").unwrap_err().diagnostics.0[0].code, Code::FileUnreadable);
        assert_eq!(JobFile::read(&folder.path().join("none.sql")).unwrap_err().diagnostics.0[0].code, Code::FileUnreadable);
        assert_eq!(JobFile::read(folder.path()).unwrap_err().diagnostics.0[0].code, Code::FileUnreadable);
    }
}
