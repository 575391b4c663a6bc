//! Plans as a user reads them, kept as snapshots: one query for each operator and form, and the Nexmark queries.
//! `INSTA_UPDATE=always cargo test … explain` writes them anew; read the difference.

use std::collections::BTreeMap;
use std::path::Path;

use tiderace_engine::error::Code;
use tiderace_engine::plan::{ExplainFormat, PlanOptions, plan};

const TABLES: &str = "
CREATE TABLE orders (id BIGINT, region STRING, amount DECIMAL(10, 2), tags ARRAY<STRING>, address ROW<city STRING, zip INT>, at TIMESTAMP(3),
  day AS CAST(at AS DATE),
  WATERMARK FOR at AS at - INTERVAL '10' SECOND) WITH ('connector' = 'datagen');
CREATE TABLE clicks (url STRING, who BIGINT, seen AS PROCTIME()) WITH ('connector' = 'datagen', 'on_error' = 'skip');
CREATE TABLE changes (id BIGINT, region STRING, amount BIGINT) WITH ('connector' = 'filesystem', 'path' = 'changes', 'format' = 'debezium-json');
CREATE TABLE late (id BIGINT, region STRING) WITH ('connector' = 'print');
CREATE TABLE totals (region STRING, n BIGINT, PRIMARY KEY (region) NOT ENFORCED) WITH ('connector' = 'print');
CREATE TABLE bad (origin STRING, message STRING) WITH ('connector' = 'print');
";

/// Name, cores, statements.
const QUERIES: &[(&str, usize, &str)] = &[
    (
        "project_and_filter",
        1,
        "SELECT id, upper(region) AS r, amount * 0.908 AS euro FROM orders WHERE amount >= 10 AND address.city LIKE 'B%'",
    ),
    ("union_all", 1, "SELECT id, region FROM orders UNION ALL SELECT id, region FROM changes"),
    ("unnest", 1, "SELECT id, tag FROM orders, UNNEST(tags) AS t (tag)"),
    ("values", 1, "SELECT a + 1 AS b FROM (VALUES (1), (2)) AS v (a)"),
    ("distinct", 1, "SELECT DISTINCT region FROM orders"),
    (
        "group_by",
        1,
        "SELECT region, count(*), sum(amount) AS total, avg(amount) FILTER (WHERE amount > 1) FROM orders GROUP BY region HAVING count(*) > 3",
    ),
    ("group_by_two_cores", 2, "SELECT region, count(*) AS n FROM orders GROUP BY region"),
    (
        "group_by_expression_distinct_two_cores",
        2,
        "SELECT date_format(at, 'yyyy') AS y, count(DISTINCT id) AS n FROM orders GROUP BY date_format(at, 'yyyy')",
    ),
    ("global_count", 2, "SELECT count(*) AS n, max(amount) AS most FROM orders"),
    (
        "over_retracting_input",
        1,
        "SELECT avg(most) AS a FROM (SELECT region, max(amount) AS most FROM changes GROUP BY region) AS m",
    ),
    (
        "tumble",
        2,
        "SELECT window_start, window_end, region, sum(amount) AS total FROM TABLE(TUMBLE(TABLE orders, DESCRIPTOR(at), INTERVAL '1' MINUTE)) GROUP BY window_start, window_end, region",
    ),
    (
        "hop_without_keys",
        1,
        "SELECT window_end, count(*) AS n FROM HOP(orders, at, INTERVAL '10' SECOND, INTERVAL '1' MINUTE) GROUP BY window_start, window_end",
    ),
    (
        "cumulate_with_lateness",
        1,
        "INSERT INTO totals SELECT region, count(*) FROM CUMULATE(orders, at, INTERVAL '1' HOUR, INTERVAL '1' DAY) GROUP BY window_start, window_end, region EMIT CHANGES ALLOW LATENESS INTERVAL '30' SECOND LATE DATA TO late",
    ),
    (
        "window_bounds_computed_with",
        1,
        "SELECT region, window_end - window_start AS size, count(*) AS n FROM TUMBLE(orders, at, INTERVAL '1' MINUTE) WHERE window_start > TIMESTAMP '2026-01-01 00:00:00' GROUP BY region, window_start, window_end",
    ),
    (
        "window_over_window",
        1,
        "SELECT window_end, max(n) AS most FROM TUMBLE((SELECT window_time AS t, region, count(*) AS n FROM TUMBLE(orders, at, INTERVAL '1' MINUTE) GROUP BY window_start, window_end, window_time, region), t, INTERVAL '1' HOUR) GROUP BY window_start, window_end",
    ),
    (
        "processing_time",
        1,
        "SELECT who, window_end, count(*) AS n FROM TUMBLE(clicks, seen, INTERVAL '10' SECOND) GROUP BY who, window_start, window_end",
    ),
    ("grouping_sets", 1, "SELECT region, day, count(*) AS n FROM orders GROUP BY GROUPING SETS ((region), (day), ())"),
    ("emit_every", 1, "INSERT INTO totals SELECT region, count(*) FROM orders GROUP BY region EMIT EVERY INTERVAL '90' SECOND"),
    ("emit_after_watermark", 1, "SELECT id, at FROM orders EMIT AFTER WATERMARK"),
    ("emit_on_update", 1, "INSERT INTO totals SELECT region, count(*) FROM orders GROUP BY region EMIT ON UPDATE"),
    (
        "stream_and_view",
        1,
        "CREATE STREAM big AS SELECT id, region FROM orders WHERE amount > 100; CREATE MATERIALIZED VIEW counts AS SELECT region, count(*) AS n FROM big GROUP BY region; INSERT INTO late SELECT id, region FROM big",
    ),
    ("dead_letter", 1, "SET 'on_error' = 'dead_letter(bad)'; INSERT INTO late SELECT id / 2, region FROM changes"),
];

fn explained(sql: &str, cores: usize, variables: BTreeMap<String, String>, format: ExplainFormat) -> String {
    let options = PlanOptions { cores, variables, ..PlanOptions::default() };
    plan(sql, &options).unwrap_or_else(|e| panic!("{e}\n{sql}")).explain(format)
}

/// Nothing of the planner's own may show: not its names, not Arrow's or DataFusion's types.
fn check_words(name: &str, text: &str) {
    for word in ["__", "Int64(", "Utf8", "MonthDayNano", "Timestamp(", "Field {", "Some(", "Decimal128", "Boolean("] {
        assert!(!text.contains(word), "{name} shows `{word}`:\n{text}");
    }
}

#[test]
fn each_operator_is_explained() {
    for (name, cores, sql) in QUERIES {
        let text = explained(&format!("{TABLES}{sql};"), *cores, BTreeMap::new(), ExplainFormat::Text);
        insta::assert_snapshot!(*name, text, sql);
        check_words(name, &text);
        for format in [ExplainFormat::Json, ExplainFormat::Dot] {
            check_words(name, &explained(&format!("{TABLES}{sql};"), *cores, BTreeMap::new(), format));
        }
    }
}

#[test]
fn json_and_dot_say_what_the_text_says() {
    let (_, cores, sql) = QUERIES.iter().find(|(name, _, _)| *name == "tumble").unwrap();
    let sql = format!("{TABLES}{sql};");
    insta::assert_snapshot!("tumble_json", explained(&sql, *cores, BTreeMap::new(), ExplainFormat::Json));
    insta::assert_snapshot!("tumble_dot", explained(&sql, *cores, BTreeMap::new(), ExplainFormat::Dot));
}

/// The statements of a Nexmark query, and values for their `${…}`.
fn nexmark(query: &str) -> (String, BTreeMap<String, String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/nexmark");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let variables = [
        ("TPS", "1000"),
        ("EVENTS_NUM", "1000"),
        ("PERSON_PROPORTION", "1"),
        ("AUCTION_PROPORTION", "3"),
        ("BID_PROPORTION", "46"),
        ("NEXMARK_TABLE", "datagen"),
        ("NEXMARK_DIR", "/data"),
    ];
    let sql = [read("ddl_gen.sql"), read("ddl_views.sql"), read(&format!("{query}.sql"))].concat();
    (sql, variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
}

const NEXMARK_RUNS: &[&str] = &["q0", "q1", "q2", "q10", "q12", "q14", "q15", "q16", "q17", "q21", "q22"];

#[test]
fn nexmark_is_explained() {
    for query in NEXMARK_RUNS {
        let (sql, variables) = nexmark(query);
        let text = explained(&sql, 2, variables, ExplainFormat::Text);
        insta::assert_snapshot!(format!("nexmark_{query}"), text);
        check_words(query, &text);
    }
}

#[test]
fn the_other_nexmark_queries_are_refused_with_a_hint() {
    for number in 0..=22 {
        let query = format!("q{number}");
        if NEXMARK_RUNS.contains(&query.as_str()) {
            continue;
        }
        let (sql, variables) = nexmark(&query);
        let errors = plan(&sql, &PlanOptions { variables, ..PlanOptions::default() }).unwrap_err();
        let expected = [Code::UnsupportedJoin, Code::UnsupportedOver, Code::UnsupportedSession, Code::Unsupported];
        for error in &errors.0 {
            assert!(expected.contains(&error.code) && error.hint.is_some() && error.span.is_some(), "{query}: {error}");
        }
    }
}
