//! Each function through SQL, over columns as the engine has them: `Utf8View` and µs.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
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
fn text_functions() {
    check("count_char(s, 'c')", ["2", "NULL", "3", "0"]);
    check("COUNT_CHAR(s, sep)", ["6", "NULL", "NULL", "0"]);
    check("split_index(s, '/', 3)", ["abo", "NULL", "NULL", "NULL"]);
    check("SPLIT_INDEX(s, '/', 0)", ["https:", "NULL", "ccc", ""]);
    check("SPLIT_INDEX(s, '/', 6)", ["item.htm?query=1&channel_id=1234567890123456", "NULL", "NULL", "NULL"]);
    check("SPLIT_INDEX(s, '/', n)", ["abo", "NULL", "ccc", "NULL"]);
    check("SPLIT_INDEX(s, sep, n)", ["abo", "NULL", "NULL", "NULL"]);
    check("SPLIT_INDEX(s, 47, 3)", ["abo", "NULL", "NULL", "NULL"]);
    check("SPLIT_INDEX(s, 'dir_', 1)", ["three/item.htm?query=1&channel_id=1234567890123456", "NULL", "NULL", "NULL"]);
    constant("SPLIT_INDEX('a,b,c', ',', 2)", "c");
    constant("lower('ABC xyz ÄÖÜ ẞ')", "abc xyz äöü ß");
    constant("upper('abc XYZ äöß')", "ABC XYZ ÄÖSS");
    constant("lower('A TEXT OF MORE THAN TWELVE')", "a text of more than twelve");
    constant("UCASE('')", "");
    constant("lower(NULL)", "NULL");
    check("upper(s) = s", ["false", "NULL", "false", "true"]);
    check("regexp_extract(s, '(&|^)channel_id=([^&]*)', 2)", ["1234567890123456", "NULL", "NULL", "NULL"]);
    check("REGEXP_EXTRACT(s, 'c+')", ["c", "NULL", "ccc", "NULL"]);
    check("REGEXP_EXTRACT(s, 'c(x)?', 1)", ["NULL", "NULL", "NULL", "NULL"]);
    fails("REGEXP_EXTRACT(s, 'c', 1)", "has 0 groups");
    fails("REGEXP_EXTRACT(s, '(c')", "no regular expression");
    check("parse_url(s, 'HOST')", ["www.nexmark.com", "NULL", "NULL", "NULL"]);
    check("parse_url(s, 'QUERY', 'channel_id')", ["1234567890123456", "NULL", "NULL", "NULL"]);
    check("xxh3(s) = xxh3(s || '')", ["true", "NULL", "true", "true"]);
    constant("xxh3('')", &0x2d06_8005_38d3_94c2_u64.cast_signed().to_string());
    fails("split_index(s, '/')", "split_index(text, separator, index)");
}

#[test]
fn rewritten_functions() {
    check("IF(n > 0, 'yes', 'no')", ["yes", "yes", "no", "no"]);
    check("MOD(n, 2)", ["1", "1", "0", "-1"]);
    check("mod(n + 4, 3) + 1", ["2", "3", "2", "1"]);
    check("LOCATE('c', s)", ["21", "NULL", "1", "0"]);
    check("IFNULL(s, 'none') = 'none'", ["false", "true", "false", "false"]);
    check("CAST(s AS VARCHAR(5))", ["https", "NULL", "ccc", ""]);
    check(
        "TIMESTAMPADD(MONTH, 1, ts)",
        ["2024-03-29T13:04:05.678901", "NULL", "1970-02-01T00:00:00", "1970-01-31T23:59:59.999999"],
    );
    check("TIMESTAMPDIFF(DAY, TIMESTAMP '1970-01-01 00:00:00', ts)", ["19782", "NULL", "0", "0"]);
    check("TIMESTAMPDIFF(MONTH, ts, TIMESTAMP '2024-03-29 13:04:05')", ["0", "NULL", "650", "650"]);
    check("CEILING(n / 2.0)", ["2.0", "1.0", "0.0", "-0.0"]);
}

#[test]
fn time_functions() {
    check("DATE_FORMAT(ts, 'yyyy-MM-dd')", ["2024-02-29", "NULL", "1970-01-01", "1969-12-31"]);
    check("date_format(ltz, 'HH:mm')", ["13:04", "NULL", "00:00", "23:59"]);
    check(
        "DATE_FORMAT(ts, 'yyyy-MM-dd HH:mm:ss.SSSSSS')",
        ["2024-02-29 13:04:05.678901", "NULL", "1970-01-01 00:00:00.000000", "1969-12-31 23:59:59.999999"],
    );
    check("to_char(ts, 'YYYY/MM/DD HH12:MI AM')", ["2024/02/29 01:04 PM", "NULL", "1970/01/01 12:00 AM", "1969/12/31 11:59 PM"]);
    check("HOUR(ts)", ["13", "NULL", "0", "23"]);
    check("MINUTE(ltz)", ["4", "NULL", "0", "59"]);
    check("SECOND(ts)", ["5", "NULL", "0", "59"]);
    check("DAYOFMONTH(ts)", ["29", "NULL", "1", "31"]);
    check("DAYOFWEEK(ts)", ["5", "NULL", "5", "4"]);
    check("DAYOFYEAR(ts)", ["60", "NULL", "1", "365"]);
    check("YEAR(ts) * 100 + MONTH(ts)", ["202402", "NULL", "197001", "196912"]);
    check("EXTRACT(HOUR FROM ts)", ["13", "NULL", "0", "23"]);
    check("UNIX_TIMESTAMP(ts)", ["1709211845", "NULL", "0", "-1"]);
    check("FLOOR(ts TO MINUTE)", ["2024-02-29T13:04:00", "NULL", "1970-01-01T00:00:00", "1969-12-31T23:59:00"]);
    check(
        "TO_TIMESTAMP_LTZ(n, 3)",
        ["1970-01-01T00:00:00.003Z", "1970-01-01T00:00:00.001Z", "1970-01-01T00:00:00Z", "1969-12-31T23:59:59.999Z"],
    );
    check(
        "to_timestamp_ltz(n, 0)",
        ["1970-01-01T00:00:03Z", "1970-01-01T00:00:01Z", "1970-01-01T00:00:00Z", "1969-12-31T23:59:59Z"],
    );
    fails("TO_TIMESTAMP_LTZ(n, 2)", "no precision 2");
    fails("TO_TIMESTAMP_LTZ(9223372036854775807, 0)", "out of the range");
    constant("TO_TIMESTAMP('2024-02-29 13:04:05')", "2024-02-29T13:04:05");
    constant("TO_TIMESTAMP('29.02.2024 13:04', 'dd.MM.yyyy HH:mm')", "2024-02-29T13:04:00");
    constant("to_timestamp('29 Feb 2024 01 PM', 'DD Mon YYYY HH12 AM')", "2024-02-29T13:00:00");
    constant("to_timestamp(1.5)", "1970-01-01T00:00:01.500Z");
    fails("TO_TIMESTAMP('soon')", "TR-2003");
    constant("TRY_TO_TIMESTAMP('soon')", "NULL");
    constant("TO_DATE('2024-02-29')", "2024-02-29");
    constant("to_date('29/02/2024', 'dd/MM/yyyy')", "2024-02-29");
    constant("FROM_UNIXTIME(1709211845)", "2024-02-29 13:04:05");
    constant("FROM_UNIXTIME(1709211845, 'HH')", "13");
    constant("UNIX_TIMESTAMP('2024-02-29 13:04:05', 'yyyy-MM-dd HH:mm:ss')", "1709211845");
    constant("ts - INTERVAL '1:30' MINUTE TO SECOND", "2024-02-29T13:02:35.678901");
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

#[test]
fn the_list_has_each_function_once_with_its_meaning() {
    let all = list();
    let mut names = BTreeSet::new();
    for function in &all {
        assert!(names.insert(function.name.clone()), "{}", function.name);
        assert!(!function.signature.is_empty() && !function.doc.is_empty(), "{function:?}");
    }
    let context = context();
    for function in &all {
        let known = REWRITTEN.iter().any(|(name, ..)| *name == function.name) || context.udf(&function.name).is_ok();
        assert!(known, "{} is listed but not there", function.name);
    }
    assert!(names.len() > 200, "{}", names.len());
}

#[test]
fn json_is_made_of_values() {
    check("json_object('a' VALUE n)", ["{\"a\":3}", "{\"a\":1}", "{\"a\":0}", "{\"a\":-1}"]);
    constant("JSON_OBJECT(KEY 'a' VALUE 1, 'b': 'x\"y', 'c' VALUE CAST(NULL AS INT))", "{\"a\":1,\"b\":\"x\\\"y\",\"c\":null}");
    constant("JSON_OBJECT('a' VALUE CAST(NULL AS INT), 'b' VALUE TRUE ABSENT ON NULL)", "{\"b\":true}");
    constant("JSON_OBJECT()", "{}");
    constant("JSON_ARRAY(1, 'x', CAST(NULL AS INT))", "[1,\"x\"]");
    constant("JSON_ARRAY(CAST(NULL AS INT), 2.5 NULL ON NULL)", "[null,2.5]");
    constant("JSON_OBJECT('in' VALUE JSON_ARRAY(1, JSON_OBJECT('x' VALUE '[]')))", "{\"in\":[1,{\"x\":\"[]\"}]}");
}

#[test]
fn json_value_returns_the_type_that_is_asked_for() {
    constant("JSON_VALUE('{\"a\": 17}', '$.a' RETURNING INT) + 1", "18");
    constant("JSON_VALUE('{\"a\": \"x\"}', '$.a' RETURNING INT)", "NULL");
    constant("JSON_VALUE('{\"a\": true}', '$.a' RETURNING BOOLEAN)", "true");
}

#[test]
fn numbers_are_written_by_patterns() {
    check("to_char(n, '990.0')", ["   3.0", "   1.0", "   0.0", "  -1.0"]);
    constant("to_char(1234567.891, 'FM9,999,990.00')", "1,234,567.89");
    constant("to_char(CAST(-0.125 AS DOUBLE), '0.00')", "-0.12");
    constant("to_char(2.345, '9.99')", " 2.35");
}
