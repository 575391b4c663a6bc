//! Plans a job that is not run, for programs: the answer of `/v1/plan:check` and of `tiderace check --format json`.

use sha2::{Digest, Sha256};
use tiderace_crds::admin::{PlanCheckReply, PlanCheckRequest, Problem};
use tiderace_engine::connect::Secrets;
use tiderace_engine::error::{Diagnostic, Diagnostics};
use tiderace_engine::plan::{ExplainFormat, JobPlan};

use crate::command::{CheckArgs, JobArgs};
use crate::job_file::{JobFile, SourceText};
use crate::planning::{self, Given};

/// The most errors of a reply.
pub(crate) const PROBLEMS_MAX: usize = 50;
/// The longest message or hint of a problem, bytes: some quote the SQL, and a condition in the cluster has a bound.
pub(crate) const PROBLEM_TEXT_BYTES_MAX: usize = 2048;

/// Checks the job that the command line names.
pub(crate) fn check(arguments: &CheckArgs) -> PlanCheckReply {
    check_arguments(&arguments.job).unwrap_or_else(refused)
}

fn check_arguments(arguments: &JobArgs) -> Result<PlanCheckReply, Vec<Problem>> {
    let file = JobFile::read(&arguments.job).map_err(|unusable| problems_of(&unusable.diagnostics))?;
    let given = Given::to_plan(arguments, &file).map_err(|error| vec![problem(&error, None)])?;
    check_file(&file, &given)
}

/// Checks the job of a request. Secrets are taken as given when the manifest names them: a planner has none.
pub(crate) fn check_request(request: &PlanCheckRequest) -> PlanCheckReply {
    let source = SourceText { name: "job".to_owned(), text: request.job.to_string() };
    let statements = request.sql.clone().map(|text| SourceText { name: "job.sql".to_owned(), text });
    let checked = JobFile::from_manifest_and_sql(source, statements)
        .map_err(|unusable| problems_of(&unusable.diagnostics))
        .and_then(|file| {
            let secrets = Secrets::named(file.secret_names.iter().cloned());
            check_file(&file, &Given { secrets, ..Given::default() })
        });
    checked.unwrap_or_else(refused)
}

fn check_file(file: &JobFile, given: &Given) -> Result<PlanCheckReply, Vec<Problem>> {
    let plan = planning::plan(file, given, planned_cores(file), false).map_err(|errors| problems_in(&errors, file))?;
    let reply = PlanCheckReply {
        valid: true,
        plan_hash: Some(plan_hash(&plan, file)),
        engine_version: env!("CARGO_PKG_VERSION").to_owned(),
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    Ok(reply)
}

/// The cores that a plan is hashed for: the manifest's, so that every process that plans the same manifest comes to the same hash.
pub(crate) fn planned_cores(file: &JobFile) -> usize {
    file.cores.map_or(1, tiderace_crds::Cores::count).min(file.max_parallelism as usize).max(1)
}

/// SHA-256 over what runs: the nodes with their keys, times, state and routes, the settings and the number of partitions.
pub(crate) fn plan_hash(plan: &JobPlan, file: &JobFile) -> String {
    let mut hash = Sha256::new();
    hash.update(plan.explain(ExplainFormat::Json));
    for (key, value) in &file.config {
        hash.update([0]);
        hash.update(key);
        hash.update([0]);
        hash.update(value);
    }
    hash.update(file.max_parallelism.to_le_bytes());
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digest}")
}

fn refused(errors: Vec<Problem>) -> PlanCheckReply {
    let engine_version = env!("CARGO_PKG_VERSION").to_owned();
    PlanCheckReply { valid: false, plan_hash: None, engine_version, errors, warnings: Vec::new() }
}

/// Problems with their places in the job's SQL.
pub(crate) fn problems_in(errors: &Diagnostics, file: &JobFile) -> Vec<Problem> {
    bounded(errors.0.iter().map(|one| problem(one, Some(file))), errors.0.len())
}

/// Problems of a manifest, whose messages name the field.
pub(crate) fn problems_of(errors: &Diagnostics) -> Vec<Problem> {
    bounded(errors.0.iter().map(|one| problem(one, None)), errors.0.len())
}

fn bounded(problems: impl Iterator<Item = Problem>, count: usize) -> Vec<Problem> {
    let mut out: Vec<Problem> = problems.take(PROBLEMS_MAX).collect();
    if let (Some(more), Some(last)) = (count.checked_sub(PROBLEMS_MAX).filter(|more| *more > 0), out.last_mut()) {
        last.hint = Some(format!("{}and {more} errors more", last.hint.take().map(|hint| hint + "; ").unwrap_or_default()));
    }
    out
}

/// One problem; its place is one in the SQL of `file`.
pub(crate) fn problem(one: &Diagnostic, file: Option<&JobFile>) -> Problem {
    let place = one.span.and_then(|span| file.map(|file| file.line_and_column(span.start)));
    Problem {
        code: one.code.to_string(),
        message: cut(&one.message),
        hint: one.hint.as_deref().map(cut),
        line: place.map(|place| place.0),
        column: place.map(|place| place.1),
    }
}

fn cut(text: &str) -> String {
    if text.len() <= PROBLEM_TEXT_BYTES_MAX {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(PROBLEM_TEXT_BYTES_MAX - '…'.len_utf8())])
}

/// As one line of JSON.
pub(crate) fn to_json(reply: &PlanCheckReply) -> String {
    // A struct of texts and numbers: it always serializes.
    serde_json::to_string(reply).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use serde_json::json;

    use super::*;

    fn reply(sql: &str) -> PlanCheckReply {
        let job = json!({
            "apiVersion": "tiderace.dev/v1alpha1", "kind": "StreamingJob",
            "metadata": {"name": "orders", "managedFields": [], "resourceVersion": "7"},
            "spec": {"sql": {"inline": sql}, "resources": {"cpu": 2}},
        });
        check_request(&PlanCheckRequest { job, sql: None })
    }

    const SOURCE: &str = "CREATE TABLE t (a INT) WITH (connector = 'datagen', 'number-of-rows' = '1');\n";

    #[test]
    fn a_good_job_has_a_hash_that_stays() {
        let good = reply(&format!("{SOURCE}SELECT a FROM t;"));
        assert!(good.valid && good.errors.is_empty(), "{good:?}");
        assert!(good.plan_hash.as_ref().unwrap().starts_with("sha256:"));
        assert_eq!(reply(&format!("{SOURCE}-- a note\nSELECT a FROM t;")).plan_hash, good.plan_hash);
        assert_ne!(reply(&format!("{SOURCE}SELECT a + 1 FROM t;")).plan_hash, good.plan_hash);
    }

    #[test]
    fn errors_have_their_line_and_column_in_the_sql() {
        let bad = reply(&format!("{SOURCE}SELECT 'ä', b FROM t;\nSELECT * FROM missing;"));
        let places: Vec<_> = bad.errors.iter().map(|e| (e.code.as_str(), e.line, e.column)).collect();
        assert_eq!(places, [("TR-1002", Some(2), Some(13)), ("TR-1001", Some(3), Some(15))], "{bad:?}");
        assert!(!bad.valid && bad.plan_hash.is_none());
    }

    #[test]
    fn a_secret_is_taken_as_given_when_the_manifest_names_it() {
        let job = json!({
            "apiVersion": "tiderace.dev/v1alpha1", "kind": "StreamingJob", "metadata": {"name": "orders"},
            "spec": {"sql": {
                "inline": "CREATE TABLE t (a INT) WITH (connector = 'filesystem', path = SECRET 'where', format = 'json'); SELECT a FROM t",
                "secretRefs": {"where": {"name": "n", "key": "k"}},
            }},
        });
        let checked = check_request(&PlanCheckRequest { job: job.clone(), sql: None });
        assert!(checked.valid, "{checked:?}");
        let mut without = job;
        without["spec"]["sql"]["secretRefs"] = json!({});
        let refused = check_request(&PlanCheckRequest { job: without, sql: None });
        assert_eq!((refused.errors[0].code.as_str(), refused.errors[0].line), ("TR-7010", Some(1)), "{refused:?}");
    }

    #[test]
    fn statements_of_a_config_map_come_beside_the_manifest() {
        let job = json!({
            "apiVersion": "tiderace.dev/v1alpha1", "kind": "StreamingJob", "metadata": {"name": "orders"},
            "spec": {"sql": {"configMapKeyRef": {"name": "a", "key": "b"}}},
        });
        let sql = Some("SELECT * FROM\n missing".to_owned());
        let bad = check_request(&PlanCheckRequest { job: job.clone(), sql });
        assert_eq!((bad.errors[0].line, bad.errors[0].column), (Some(2), Some(2)));
        let without = check_request(&PlanCheckRequest { job, sql: None });
        assert_eq!(without.errors[0].code, "TR-7000");
    }

    #[test]
    fn no_message_is_longer_than_its_bound() {
        let long = reply(&format!("SELECT * FROM \"{}\"", "ä".repeat(5000)));
        assert!(long.errors[0].message.len() <= PROBLEM_TEXT_BYTES_MAX);
        let many = reply(&"SELECT * FROM missing;".repeat(PROBLEMS_MAX + 3));
        assert_eq!(many.errors.len(), PROBLEMS_MAX);
        assert!(many.errors.last().unwrap().hint.as_ref().unwrap().contains("and 3 errors more"));
    }
}
