//! Statements as users write them, and what becomes of wrong ones.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;

use super::ast::*;
use super::interval::Interval;
use super::*;
use crate::error::{Code, Diagnostics};

fn parsed(text: &str) -> Vec<StatementKind> {
    match parse(text, &BTreeMap::new()) {
        Ok(script) => script.statements.into_iter().map(|statement| statement.kind).collect(),
        Err(errors) => panic!("{errors}\nin: {text}"),
    }
}

fn one(text: &str) -> StatementKind {
    let mut all = parsed(text);
    assert_eq!(all.len(), 1, "{text}");
    all.remove(0)
}

fn errors(text: &str) -> Diagnostics {
    match parse(text, &BTreeMap::new()) {
        Ok(_) => panic!("no error in: {text}"),
        Err(errors) => errors,
    }
}

/// Code, text at the place, message of each error.
fn told(text: &str) -> Vec<(Code, &str, String)> {
    errors(text)
        .0
        .into_iter()
        .map(|error| {
            let span = error.span.unwrap_or_else(|| panic!("{error} has no place"));
            (error.code, &text[span.start..span.end], error.to_string())
        })
        .collect()
}

#[test]
fn a_table_has_columns_key_watermark_and_options() {
    let StatementKind::CreateTable(table) = one("
        CREATE TEMPORARY TABLE IF NOT EXISTS `Orders` (
          id BIGINT NOT NULL, -- a comment
          person ROW<id BIGINT, name VARCHAR NOT NULL, tags ARRAY<ROW<a MAP<STRING, INT>>>>,
          cost AS price * 2, price DECIMAL(10, 2) COMMENT 'in cents',
          ts TIMESTAMP(3) WITH LOCAL TIME ZONE METADATA FROM 'timestamp' VIRTUAL,
          `offset` BIGINT METADATA,
          t2 TIMESTAMP_LTZ(3),
          WATERMARK FOR ts AS ts - INTERVAL '5' SECOND,
          PRIMARY KEY (id, `offset`) NOT ENFORCED
        ) COMMENT 'all' PARTITIONED BY (id) WITH ('connector' = 'kafka', topic = orders, scan.startup-mode = 'earliest', 'n' = -5, b = true)")
    else {
        panic!()
    };
    assert_eq!(table.name.to_string(), "`Orders`");
    assert!(table.if_not_exists);
    let shown: Vec<String> = table
        .columns
        .iter()
        .map(|c| match &c.kind {
            ColumnKind::Physical { data_type, not_null } => {
                format!("{} {data_type}{}", c.name, if *not_null { " NOT NULL" } else { "" })
            }
            ColumnKind::Computed(expr) => format!("{} AS {expr}", c.name),
            ColumnKind::Metadata { data_type, key, is_virtual, .. } => {
                format!("{} {data_type} METADATA {key} {is_virtual}", c.name)
            }
        })
        .collect();
    assert_eq!(
        shown,
        [
            "id BIGINT NOT NULL",
            "person STRUCT<id BIGINT, name VARCHAR OPTIONS(not_null = true), tags ARRAY<STRUCT<a Map(STRING, INT)>>>",
            "cost AS price * 2",
            "price DECIMAL(10,2)",
            "ts TIMESTAMPTZ(3) METADATA timestamp true",
            "`offset` BIGINT METADATA offset false",
            "t2 TIMESTAMP_LTZ(3)",
        ]
    );
    assert_eq!(table.columns[3].comment.as_deref(), Some("in cents"));
    assert_eq!(table.primary_key.len(), 2);
    assert_eq!(table.watermark.unwrap().expr.to_string(), "ts - INTERVAL '5 seconds'");
    let options: Vec<_> = table.options.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(options.join(" "), "b=true connector=kafka n=-5 scan.startup-mode=earliest topic=orders");
}

#[test]
fn emit_is_no_alias_and_its_parts_come_in_any_order() {
    for text in [
        "INSERT INTO o SELECT k, count(*) FROM TUMBLE(t, ts, INTERVAL '1' MINUTE) GROUP BY k EMIT ON WINDOW CLOSE ALLOW LATENESS INTERVAL '30' SECOND LATE DATA TO l",
        "INSERT INTO o SELECT k FROM t LATE DATA TO l EMIT ON WINDOW CLOSE ALLOW LATENESS INTERVAL '30' SECOND",
        "INSERT INTO o SELECT k ALLOW LATENESS INTERVAL '30' SECOND EMIT ON WINDOW CLOSE LATE DATA TO l",
    ] {
        let StatementKind::Insert(insert) = one(text) else { panic!() };
        let emit = insert.query.emit;
        assert_eq!(emit.mode.unwrap().value, EmitMode::OnWindowClose, "{text}");
        let lateness = emit.lateness.unwrap();
        assert_eq!(lateness.value, Interval::from_micros(30_000_000));
        assert_eq!(&text[lateness.span.start..lateness.span.end], "ALLOW LATENESS INTERVAL '30' SECOND");
        assert_eq!(emit.late_data_to.unwrap().value.to_string(), "l");
    }
    let StatementKind::Query(query) = one("SELECT late, allow FROM t late EMIT EVERY INTERVAL '1:30' MINUTE TO SECOND") else {
        panic!()
    };
    assert_eq!(query.query.to_string(), "SELECT late, allow FROM t late");
    assert_eq!(query.emit.mode.unwrap().value, EmitMode::Every(Interval::from_micros(90_000_000)));
}

/// The first relation in FROM, as a window call.
fn window_of(text: &str) -> crate::error::Result<super::window::WindowCall> {
    let script = parse(text, &BTreeMap::new()).map_err(|e| e.0[0].clone())?;
    let StatementKind::Query(query) = &script.statements[0].kind else { panic!("{text}") };
    let Some(select) = query.query.body.as_select() else { panic!("{text}") };
    super::window::as_window_call(&select.from[0].relation).unwrap_or_else(|| panic!("no window in {}", query.query))
}

#[test]
fn each_spelling_of_a_window_is_one_call() {
    use super::window::WindowKind::{Cumulate, Hop, Session, Tumble};
    let seconds = |n: i64| Interval::from_micros(n * 1_000_000);
    for (from, kind, offset, input, time) in [
        ("FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND))", Tumble { size: seconds(10) }, 0, "t", "ts"),
        (
            "FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND, INTERVAL '1' SECOND)) AS w",
            Tumble { size: seconds(10) },
            1,
            "t",
            "ts",
        ),
        (
            "FROM TABLE(TUMBLE(DATA => TABLE t, TIMECOL => DESCRIPTOR(`ts`), SIZE => INTERVAL '1:30' MINUTE TO SECOND, OFFSET => -INTERVAL '1' SECOND))",
            Tumble { size: seconds(90) },
            -1,
            "t",
            "`ts`",
        ),
        ("FROM TUMBLE(t, ts, INTERVAL '10 seconds')", Tumble { size: seconds(10) }, 0, "t", "ts"),
        (
            "FROM TUMBLE((SELECT * FROM a), ts, INTERVAL '10 seconds') x",
            Tumble { size: seconds(10) },
            0,
            "(SELECT * FROM a)",
            "ts",
        ),
        (
            "FROM HOP(t, ts, INTERVAL '2' SECOND, INTERVAL '10' SECOND)",
            Hop { slide: seconds(2), size: seconds(10) },
            0,
            "t",
            "ts",
        ),
        (
            "FROM HOP(DATA => t, TIMECOL => DESCRIPTOR(ts), SIZE => INTERVAL '10' SECOND, SLIDE => INTERVAL '3' SECOND)",
            Hop { slide: seconds(3), size: seconds(10) },
            0,
            "t",
            "ts",
        ),
        (
            "FROM TABLE(CUMULATE(TABLE t, DESCRIPTOR(ts), INTERVAL '2' MINUTE, INTERVAL '10' MINUTES))",
            Cumulate { step: seconds(120), size: seconds(600) },
            0,
            "t",
            "ts",
        ),
        (
            "FROM TABLE(SESSION(TABLE t PARTITION BY k, j, DESCRIPTOR(ts), INTERVAL '5' MINUTE))",
            Session { gap: seconds(300) },
            0,
            "t",
            "ts",
        ),
        ("FROM t GROUP BY k, TUMBLE(ts, INTERVAL '10' SECOND)", Tumble { size: seconds(10) }, 0, "t", "ts"),
        (
            "FROM t GROUP BY k, HOP(t.ts, INTERVAL '2' SECOND, INTERVAL '10' SECOND)",
            Hop { slide: seconds(2), size: seconds(10) },
            0,
            "t",
            "ts",
        ),
        (
            "FROM (SELECT * FROM a) b GROUP BY SESSION(b.ts, INTERVAL '5' MINUTE)",
            Session { gap: seconds(300) },
            0,
            "(SELECT * FROM a)",
            "ts",
        ),
        ("FROM t GROUP BY tumble(interval '10 seconds')", Tumble { size: seconds(10) }, 0, "t", ""),
        (
            "FROM t GROUP BY k, hop(interval '2 seconds', interval '10 seconds')",
            Hop { slide: seconds(2), size: seconds(10) },
            0,
            "t",
            "",
        ),
    ] {
        let text = format!("SELECT k {from}");
        let call = window_of(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(call.kind, kind, "{text}");
        assert_eq!(call.offset, seconds(offset), "{text}");
        assert_eq!(call.input.to_string(), input, "{text}");
        assert_eq!(call.time_column.map(|c| c.to_string()).unwrap_or_default(), time, "{text}");
        assert_eq!(call.partition_keys.len(), if text.contains("PARTITION") { 2 } else { 0 }, "{text}");
    }
}

#[test]
fn old_group_windows_become_table_functions() {
    for (old, new) in [
        (
            "SELECT B.bidder, count(*) AS n, TUMBLE_START(B.ts, INTERVAL '10' SECOND) AS s, TUMBLE_END(B.ts, INTERVAL '10' SECOND) FROM bid B \
             GROUP BY B.bidder, TUMBLE(B.ts, INTERVAL '10' SECOND) HAVING TUMBLE_END(B.ts, INTERVAL '10' SECOND) > x",
            "SELECT B.bidder, count(*) AS n, window_start AS s, window_end FROM TUMBLE(bid, DESCRIPTOR(B.ts), INTERVAL '10 seconds') B \
             GROUP BY B.bidder, window_start, window_end HAVING window_end > x",
        ),
        (
            "SELECT k, tumble(interval '1 minute') AS window, count(*) FROM t GROUP BY k, window",
            "SELECT k, named_struct('start', window_start, 'end', window_end) AS window, count(*) FROM tumble(t, DESCRIPTOR(), INTERVAL '1 minute') AS t \
             GROUP BY k, window_start, window_end",
        ),
        (
            "SELECT hop(interval '1 second', interval '1 minute'), count(*) FROM t GROUP BY 1",
            "SELECT named_struct('start', window_start, 'end', window_end) AS hop, count(*) FROM hop(t, DESCRIPTOR(), INTERVAL '1 second', INTERVAL '1 minute') AS t \
             GROUP BY window_start, window_end",
        ),
        (
            "SELECT TUMBLE_ROWTIME(ts, INTERVAL '1' HOUR) FROM t GROUP BY GROUPING SETS ((a, TUMBLE(ts, INTERVAL '1' HOUR)), (TUMBLE(ts, INTERVAL '1' HOUR)))",
            "SELECT window_time FROM TUMBLE(t, DESCRIPTOR(ts), INTERVAL '1 hour') AS t GROUP BY GROUPING SETS ((a, window_start, window_end, window_time), (window_start, window_end, window_time))",
        ),
    ] {
        let StatementKind::Query(query) = one(old) else { panic!() };
        assert_eq!(query.query.to_string(), new);
    }
}

#[test]
fn windows_that_do_not_fit_are_refused() {
    for (text, part) in [
        ("SELECT 1 FROM HOP(t, ts, INTERVAL '10' SECOND, INTERVAL '2' SECOND)", "the slide comes before the size"),
        ("SELECT 1 FROM CUMULATE(t, ts, INTERVAL '3' SECOND, INTERVAL '10' SECOND)", "no multiple"),
        ("SELECT 1 FROM TUMBLE(t, ts, INTERVAL '0' SECOND)", "not longer than nothing"),
        ("SELECT 1 FROM TUMBLE(t, ts, INTERVAL '1' MONTH)", "months"),
        ("SELECT 1 FROM TUMBLE(t, ts, x)", "no constant interval"),
        ("SELECT 1 FROM TUMBLE(t, ts)", "no size"),
        ("SELECT 1 FROM TUMBLE(t, ts, INTERVAL '1' SECOND, INTERVAL '1' SECOND, 3)", "too many"),
        ("SELECT 1 FROM TUMBLE(t, SLIDE => INTERVAL '1' SECOND)", "no argument SLIDE"),
        ("SELECT 1 FROM t GROUP BY TUMBLE(ts, INTERVAL '1' SECOND), TUMBLE(ts, INTERVAL '2' SECOND)", "two windows"),
    ] {
        let error = window_of(text).unwrap_err();
        assert_eq!(error.code, Code::InvalidWindow, "{text}");
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
    assert_eq!(
        told("SELECT TUMBLE_START(ts, INTERVAL '5' SECOND) FROM t GROUP BY TUMBLE(ts, INTERVAL '10' SECOND)"),
        [(
            Code::InvalidWindow,
            "TUMBLE_START",
            "TR-1511: TUMBLE_START has no window of its own in GROUP BY (its arguments must be those of GROUP BY TUMBLE(ts, INTERVAL '10 seconds'))".to_owned()
        )]
    );
    assert_eq!(
        told("SELECT count(*) FROM a JOIN b ON a.x = b.x GROUP BY TUMBLE(a.ts, INTERVAL '10' SECOND)")[0].0,
        Code::Unsupported
    );
}

#[test]
fn all_errors_of_a_script_are_told_each_at_its_place() {
    let text = "CREAT TABLE t (a INT);\nSELECT a FORM t WHERE;\nINSERT INTO o SELECT 1;\nSELECT (a FROM t;\nSELECT '${x}';\nDROP TABEL t";
    let told = told(text);
    let places: Vec<(Code, &str)> = told.iter().map(|(code, place, _)| (*code, *place)).collect();
    assert_eq!(
        places,
        [
            (Code::Syntax, "CREAT"),
            (Code::Syntax, "FORM"),
            (Code::Syntax, "FROM"),
            (Code::UnboundVariable, "${x}"),
            (Code::Syntax, "TABEL")
        ],
        "{told:#?}"
    );
    assert!(told[0].2.contains("did you mean CREATE?"), "{}", told[0].2);
    assert!(told[1].2.contains("did you mean FROM"), "{}", told[1].2);
}

#[test]
fn what_can_not_be_run_is_refused_with_its_code() {
    for (text, code, place) in [
        ("CREATE VIEW v AS SELECT a FROM t EMIT CHANGES", Code::EmitMisplaced, "EMIT CHANGES"),
        ("SELECT * FROM (SELECT a FROM t EMIT ON WINDOW CLOSE) x", Code::EmitMisplaced, "EMIT"),
        ("WITH x AS (SELECT a FROM t EMIT CHANGES) SELECT * FROM x", Code::EmitMisplaced, "EMIT"),
        ("SELECT a FROM t EMIT SOMETIMES", Code::Syntax, "SOMETIMES"),
        ("SELECT a FROM t EMIT CHANGES EMIT CHANGES", Code::Syntax, "EMIT CHANGES"),
        ("SELECT a FROM t EMIT EVERY INTERVAL '1' MONTH", Code::InvalidArgument, "INTERVAL '1' MONTH"),
        ("CREATE FUNCTION f AS 'org.example.F'", Code::UnsupportedJavaClass, "'org.example.F'"),
        ("CREATE FUNCTION f LANGUAGE wasm AS 'f.wasm'", Code::Unsupported, "LANGUAGE"),
        ("CREATE TABLE t (a INT) WITH ('k' = '1', 'k' = '2')", Code::DuplicateName, "'k'"),
        ("CREATE TABLE t (a INT DEFAULT 1)", Code::Unsupported, "DEFAULT"),
        ("CREATE TABLE t (a INT, PRIMARY KEY (a) ENFORCED)", Code::Unsupported, "ENFORCED"),
        ("CREATE TABLE t AS SELECT 1", Code::Unsupported, "AS"),
        ("CREATE TABLE t (a INT) LIKE x", Code::Unsupported, "LIKE"),
        ("CREATE TABLE t (a INT, WATERMARK FOR a AS a, WATERMARK FOR a AS a)", Code::Syntax, "WATERMARK FOR a AS a"),
        ("SELECT a FROM t /*+ OPTIONS('a'='b') */", Code::UnknownHint, "/*+ OPTIONS('a'='b') */"),
        ("ALTER TABLE t ADD c INT", Code::Unsupported, "ALTER"),
        ("EXPLAIN ANALYZE SELECT 1", Code::Unsupported, "ANALYZE"),
        ("SHOW JOBS", Code::Unsupported, "JOBS"),
        ("SELECT INTERVAL x DAY", Code::InvalidArgument, "x"),
        ("EXECUTE STATEMENT SET BEGIN SELECT 1; END", Code::Syntax, "SELECT 1"),
        (
            "EXECUTE STATEMENT SET BEGIN INSERT INTO a SELECT 1;",
            Code::Syntax,
            "EXECUTE STATEMENT SET BEGIN INSERT INTO a SELECT 1",
        ),
        ("INSERT INTO t", Code::Syntax, ""),
        ("SELECT 'open", Code::Syntax, "'"),
    ] {
        let told = told(text);
        assert_eq!(told[0].0, code, "{text}: {told:?}");
        if !place.is_empty() && !text.ends_with("'open") {
            assert_eq!(told[0].1, place, "{text}: {told:?}");
        }
    }
}

#[test]
fn statements_around_queries() {
    let text = "SET 'a.b' = '1 s'; SET table.exec.mini-batch = true; SET x TO 10 min; RESET; DROP VIEW IF EXISTS v; SHOW CREATE TABLE `t`; DESC t; \
        EXPLAIN CHANGELOG_MODE, JSON_EXECUTION_PLAN SELECT 1; EXPLAIN (FORMAT DOT, STATE) INSERT INTO a VALUES (1); EXPLAIN PLAN FOR SELECT 1; \
        EXPLAIN EXECUTE STATEMENT SET BEGIN INSERT INTO a SELECT 1; END; BEGIN STATEMENT SET; INSERT INTO a (x, y) SELECT 1, 2; INSERT INTO b (SELECT 2); END; \
        CREATE SINK s WITH (connector = 'print') AS SELECT a FROM t EMIT CHANGES; CREATE SINK s2 FROM v WITH (connector = 'print'); \
        CREATE STREAM st AS SELECT 1; CREATE OR REPLACE MATERIALIZED VIEW mv (a, b) AS SELECT 1, 2 EMIT EVERY INTERVAL '1 s'; (SELECT 1) UNION ALL SELECT 2; \
        CREATE FUNCTION cc AS 'com.github.nexmark.flink.udf.CountChar' LANGUAGE JAVA;";
    let kinds = parsed(text);
    let set = |kind: &StatementKind| match kind {
        StatementKind::Set(set) => format!("{}={}", set.key, set.value),
        other => panic!("{other:?}"),
    };
    assert_eq!([set(&kinds[0]), set(&kinds[1]), set(&kinds[2])], ["a.b=1 s", "table.exec.mini-batch=true", "x=10 min"]);
    assert!(matches!(&kinds[3], StatementKind::Reset(None)));
    assert!(matches!(&kinds[4], StatementKind::Drop(DropObject { if_exists: true, kind: DropKind::View(ViewKind::View), .. })));
    assert!(matches!(&kinds[5], StatementKind::Show(Show::Create(_))));
    assert!(matches!(&kinds[6], StatementKind::Describe(_)));
    assert!(matches!(
        &kinds[7],
        StatementKind::Explain(Explain { format: ExplainFormat::Json, changelog: true, state: false, .. })
    ));
    assert!(matches!(&kinds[8], StatementKind::Explain(Explain { format: ExplainFormat::Dot, state: true, .. })));
    assert!(matches!(&kinds[9], StatementKind::Explain(_)));
    assert!(
        matches!(&kinds[10], StatementKind::Explain(Explain { statement, .. }) if matches!(statement.kind, StatementKind::StatementSet(_)))
    );
    assert!(matches!(&kinds[11], StatementKind::StatementSet(inserts) if inserts.len() == 2 && inserts[0].columns.len() == 2));
    assert!(matches!(&kinds[12], StatementKind::CreateSink(sink) if sink.query.emit.mode.is_some()));
    assert!(
        matches!(&kinds[13], StatementKind::CreateSink(sink) if sink.query.query.to_string() == "SELECT * FROM v" && sink.options.text("connector") == Some("print"))
    );
    assert!(matches!(&kinds[14], StatementKind::CreateView(CreateView { kind: ViewKind::Stream, .. })));
    assert!(
        matches!(&kinds[15], StatementKind::CreateView(CreateView { kind: ViewKind::Materialized, or_replace: true, columns, .. }) if columns.len() == 2)
    );
    assert!(matches!(&kinds[16], StatementKind::Query(_)));
    assert!(matches!(&kinds[17], StatementKind::CreateFunction(CreateFunction { builtin: "count_char", .. })));
    assert_eq!(kinds.len(), 18);
}

#[test]
fn published_nexmark_sql_parses_unchanged() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/nexmark");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let names = [
        "TPS",
        "EVENTS_NUM",
        "PERSON_PROPORTION",
        "AUCTION_PROPORTION",
        "BID_PROPORTION",
        "NEXMARK_DIR",
        "SUBMIT_TIME",
        "FLINK_HOME",
    ]
    .map(|name| (name.to_owned(), "1".to_owned()));
    let mut variables: BTreeMap<String, String> = names.into();
    variables.insert("NEXMARK_TABLE".to_owned(), "datagen".to_owned());
    for query in 0..=22 {
        let text = [read("ddl_gen.sql"), read("ddl_views.sql"), read(&format!("q{query}.sql"))].concat();
        if query == 13 {
            let refused = parse(&text, &variables).unwrap_err().to_string();
            assert!(refused.contains("FOR SYSTEM_TIME AS OF"), "{refused}");
            continue;
        }
        let script = parse(&text, &variables).unwrap_or_else(|e| panic!("q{query}: {e}"));
        assert!(matches!(script.statements.last().unwrap().kind, StatementKind::Insert(_)), "q{query}");
        if query == 11 {
            let StatementKind::Insert(insert) = &script.statements.last().unwrap().kind else { panic!() };
            assert_eq!(
                insert.query.query.to_string(),
                "SELECT B.bidder, count(*) AS bid_count, window_start AS starttime, window_end AS endtime FROM SESSION(bid, DESCRIPTOR(B.dateTime), INTERVAL '10 seconds') B \
                 GROUP BY B.bidder, window_start, window_end"
            );
        }
    }
}

#[test]
fn places_in_the_syntax_tree_are_offsets_in_the_users_text() {
    let text = "SELECT '${a}', naïve\n  + x FROM t";
    let script = parse(text, &[("a".to_owned(), "long long value".to_owned())].into()).unwrap();
    let StatementKind::Query(query) = &script.statements[0].kind else { panic!() };
    let select = query.query.body.as_select().unwrap();
    let span = span_of_node(&select.projection[1]).unwrap();
    assert_eq!(&text[span.start..span.end], "naïve\n  + x");
    let span = span_of_node(&select.from[0]).unwrap();
    assert_eq!(&text[span.start..span.end], "t");
}
