//! Each function through SQL, over columns as the engine has them: `Utf8View` and µs.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringViewArray, TimestampMicrosecondArray};
use datafusion::execution::FunctionRegistry;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::*;

/// Long enough not to be inlined in a view.
const URL: &str = "https://www.nexmark.com/abo/vue/dir_three/item.htm?query=1&channel_id=1234567890123456";

fn context() -> SessionContext {
    let mut config = SessionConfig::new();
    config.options_mut().sql_parser.map_string_types_to_utf8view = true;
    config.options_mut().execution.time_zone = Some("UTC".into());
    let context = SessionContext::new_with_config(config);
    register(&mut *context.state_ref().write()).unwrap();
    let columns: [(&str, ArrayRef); 5] = [
        ("s", Arc::new(StringViewArray::from(vec![Some(URL), None, Some("ccc"), Some("")]))),
        ("sep", Arc::new(StringViewArray::from(vec![Some("/"), Some("/"), None, Some("")]))),
        ("n", Arc::new(Int64Array::from(vec![Some(3), Some(1), Some(0), Some(-1)]))),
        // 2024-02-29 13:04:05.678901, NULL, 1970-01-01, 1969-12-31 23:59:59.999999
        ("ts", Arc::new(TimestampMicrosecondArray::from(vec![Some(1_709_211_845_678_901), None, Some(0), Some(-1)]))),
        (
            "ltz",
            Arc::new(
                TimestampMicrosecondArray::from(vec![Some(1_709_211_845_678_901), None, Some(0), Some(-1)]).with_timezone("UTC"),
            ),
        ),
    ];
    context.register_batch("t", RecordBatch::try_from_iter(columns).unwrap()).unwrap();
    context
}

/// The values of an expression over the four rows of `t`, as text; parsed by our parser, so rewrites count.
fn values(expr: &str) -> Result<Vec<String>, String> {
    let script = crate::sql::parse(&format!("SELECT {expr} AS x FROM t"), &Default::default()).map_err(|e| e.to_string())?;
    let crate::sql::StatementKind::Query(query) = &script.statements[0].kind else { unreachable!() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let sql = query.query.to_string();
    let batches = runtime
        .block_on(async { context().sql(&sql).await.map_err(|e| e.to_string())?.collect().await.map_err(|e| e.to_string()) })?;
    let mut out = Vec::new();
    for batch in batches {
        let options = arrow::util::display::FormatOptions::new().with_null("NULL");
        let shown = arrow::util::display::ArrayFormatter::try_new(batch.column(0), &options).unwrap();
        out.extend((0..batch.num_rows()).map(|row| shown.value(row).to_string()));
    }
    Ok(out)
}

fn check(expr: &str, expected: [&str; 4]) {
    assert_eq!(values(expr).unwrap_or_else(|e| panic!("{expr}: {e}")), expected, "{expr}");
}

fn constant(expr: &str, expected: &str) {
    assert_eq!(values(expr).unwrap_or_else(|e| panic!("{expr}: {e}"))[0], expected, "{expr}");
}

fn fails(expr: &str, part: &str) {
    let error = values(expr).unwrap_err();
    assert!(error.contains(part), "{expr}: {error}");
}

#[test]
fn json_functions() {
    let doc = r#"'{"a": {"b": [1, "two", {"c": true}]}, "x y": null}'"#;
    constant(&format!("JSON_VALUE({doc}, '$.a.b[1]')"), "two");
    constant(&format!("JSON_VALUE({doc}, 'lax $.a.b[2].c')"), "true");
    constant(&format!("JSON_VALUE({doc}, '$.a.b')"), "NULL");
    constant(&format!("JSON_QUERY({doc}, '$.a.b')"), r#"[1,"two",{"c":true}]"#);
    constant(&format!("JSON_EXISTS({doc}, '$[''x y'']')"), "true");
    constant(&format!("JSON_EXISTS({doc}, '$.q')"), "false");
    constant(&format!("{doc} -> 'a' -> 'b' ->> 1"), "two");
    check("JSON_VALUE(s, '$.a')", ["NULL", "NULL", "NULL", "NULL"]);
    fails(&format!("JSON_VALUE({doc}, 'a.b')"), "no JSON path");
    fails("parse_json(s)", "no JSON");
    check("try_parse_json(s)", ["NULL", "NULL", "NULL", "NULL"]);
}

#[test]
fn functions_of_datafusion_take_text_views() {
    for (expr, first) in [
        ("upper(split_index(s, '/', 3))", "ABO"),
        ("lower('ABC')", "abc"),
        ("substr(s, 1, 5)", "https"),
        ("SUBSTRING(s FROM 9 FOR 3)", "www"),
        ("left(s, 5)", "https"),
        ("char_length(s)", "86"),
        ("replace(substr(s, 1, 5), 'h', 'x')", "xttps"),
        ("concat(left(s, 2), '-', n)", "ht-3"),
        ("left(s, 2) || n", "ht3"),
        ("regexp_like(s, 'nexmark')", "true"),
        ("regexp_replace(left(s, 8), '[:/]+', '.')", "https."),
        ("s LIKE 'https%'", "true"),
        ("position('w' in s)", "9"),
        ("trim(BOTH 'h' FROM left(s, 5))", "ttps"),
        ("lpad('7', 3, '0')", "007"),
        ("coalesce(s, 'x') = s", "true"),
        ("nullif(n, 3)", "NULL"),
        ("md5('a')", "0cc175b9c0f1b6a831c399e269772661"),
        ("split_part(s, '/', 4)", "abo"),
        ("strpos(s, 'nexmark')", "13"),
        ("starts_with(s, 'https')", "true"),
        ("initcap('ab cd')", "Ab Cd"),
        ("reverse('abc')", "cba"),
        ("greatest(n, 5)", "5"),
        ("TRY_CAST('x' AS INT)", "NULL"),
        ("date_trunc('hour', ts)", "2024-02-29T13:00:00"),
        ("ascii('a')", "97"),
        ("repeat('ab', 2)", "abab"),
        ("CASE WHEN s LIKE '%nexmark%' THEN 1 ELSE 0 END", "1"),
        ("date_bin(INTERVAL '15 minutes', ts)", "2024-02-29T13:00:00"),
        ("array_length(string_to_array(s, '/'))", "7"),
    ] {
        constant(expr, first);
    }
}

#[test]
fn the_present_is_never_folded() {
    for expr in [
        "now()",
        "current_timestamp",
        "proctime()",
        "current_date",
        "localtimestamp",
        "current_watermark(ts)",
        "UNIX_TIMESTAMP()",
    ] {
        fails(expr, "called instead of planned");
    }
}
