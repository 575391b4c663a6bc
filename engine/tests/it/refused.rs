//! Wrong SQL as people write it: each statement is refused with a code of its own, at a place, in words that are not the planner's.

use tiderace_engine::error::{Code, Diagnostic};
use tiderace_engine::plan::{PlanOptions, plan};

/// What the statements may refer to.
const TABLES: &str = "
CREATE TABLE t (id BIGINT, k STRING, v DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH ('connector' = 'datagen');
CREATE TABLE plain (id BIGINT, ts TIMESTAMP(3)) WITH ('connector' = 'datagen');
CREATE TABLE rich (id BIGINT, r ROW<a INT, b STRING>, l ARRAY<INT>, d DATE, b BOOLEAN, c DECIMAL(10, 2)) WITH ('connector' = 'datagen');
CREATE TABLE changes (id BIGINT, k STRING) WITH ('connector' = 'filesystem', 'path' = 'x', 'format' = 'debezium-json');
CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'print');
CREATE TABLE files (n BIGINT) WITH ('connector' = 'filesystem', 'path' = 'out', 'format' = 'csv');
";

/// Words of the layers below, which no user has to know.
const FORBIDDEN: &[&str] = &[
    "DataFusion",
    "datafusion",
    "Arrow",
    "Schema error",
    "plan_err",
    "feature is not implemented",
    "Internal error",
    "Error during planning",
    "sqltorel",
    "ast node",
    "LogicalPlan",
    "Optimizer",
    "Analyzer",
    "type_coercion",
    "coerc",
    "Utf8",
    "Int8",
    "Int16",
    "Int32",
    "Int64",
    "Float32",
    "Float64",
    "Boolean",
    "Date32",
    "Decimal128",
    "Timestamp(",
    "Time64",
    "MonthDayNano",
    "Struct(",
    "List(",
    "Ident",
    "Span",
    "Some(",
    "ObjectName",
    "TableScan",
    "Subquery(",
    "Expr",
    "{ ",
    "__key",
    "__arg",
    "__in",
    "__w",
    "__expr",
    "__common",
    "SqlToRel",
    "caused by",
    "strsim",
    "hysical plan",
    "unnest()",
    "Cannot ",
    "Unsupported",
    "PG",
    "Struct",
    "Null",
    "failed to match",
    "signature",
];

fn wrong_statements() -> Vec<(&'static str, &'static str)> {
    include_str!("../data/refused/statements.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap())
        .collect()
}

/// What is wrong with how `errors` tell that `sql` can't be run.
fn faults(code: &str, sql: &str, errors: &[Diagnostic]) -> Vec<String> {
    let mut faults = Vec::new();
    let first = &errors[0];
    if first.code.to_string() != code {
        faults.push(format!("its code is {}", first.code));
    }
    for error in errors {
        if matches!(error.code, Code::Internal | Code::Datafusion) {
            faults.push("it is told as a bug of ours".into());
        }
        match error.span {
            None => faults.push("it has no place".into()),
            Some(span) if span.start < TABLES.len() || span.end > TABLES.len() + sql.len() + 1 => {
                faults.push(format!("its place is outside of the statement: {}..{}", span.start, span.end));
            }
            Some(_) => {}
        }
        let hint = error.hint.as_deref().unwrap_or_default();
        if hint.matches('(').count() != hint.matches(')').count() {
            faults.push(format!("its hint is cut off: {hint}"));
        }
        // What the user wrote himself may stand there.
        let told = format!("{} {}", error.message, error.hint.as_deref().unwrap_or_default());
        faults.extend(FORBIDDEN.iter().filter(|w| told.contains(**w) && !sql.contains(**w)).map(|w| format!("it says `{w}`")));
    }
    faults
}

#[test]
fn wrong_sql_is_refused_with_a_code_of_its_own_in_the_users_words() {
    let statements = wrong_statements();
    assert!(statements.len() >= 150, "only {} statements", statements.len());
    let mut wrong = Vec::new();
    for (code, sql) in statements {
        let Err(errors) = plan(&format!("{TABLES}{sql};"), &PlanOptions::default()) else {
            wrong.push(format!("{code} {sql}\n    it is planned"));
            continue;
        };
        let faults = faults(code, sql, &errors.0);
        if !faults.is_empty() {
            let told =
                errors.0.iter().map(|e| format!("    {}: {} ({})", e.code, e.message, e.hint.as_deref().unwrap_or("no hint")));
            wrong.push(format!("{code} {sql}\n    {}\n{}", faults.join("; "), told.collect::<Vec<_>>().join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{} of the statements:\n{}", wrong.len(), wrong.join("\n"));
}
