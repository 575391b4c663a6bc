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
            "person STRUCT<id BIGINT, name VARCHAR OPTIONS(not_null = true), tags ARRAY<STRUCT<a MAP(STRING, INT)>>>",
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
