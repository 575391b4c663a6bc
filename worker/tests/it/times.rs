//! Times as SQL sees them: zones, digits of a second, casts, rounding, and constants that can't be times. Values of Flink 2.x, where it has
//! the function.

use super::{Outcome, tiderace_with};

/// One row with a time of each kind: 2020-02-29 20:01:02.123456, a Saturday.
const ONE: &str = "CREATE VIEW one AS SELECT CAST('2020-02-29 20:01:02.123456' AS TIMESTAMP(3)) AS t3,
  CAST('2020-02-29 20:01:02.123456' AS TIMESTAMP(6)) AS t6, CAST('2020-02-29 20:01:02.123456' AS TIMESTAMP(0)) AS t0,
  TO_TIMESTAMP_LTZ(1583006462123, 3) AS l3, DATE '2020-02-29' AS d, TIME '20:01:02.5' AS tod, s, n
  FROM (VALUES ('x', 1)) v(s, n);\n";

fn run(sql: &str) -> Outcome {
    let outcome = tiderace_with(&["run", "-"], sql);
    assert_eq!(outcome.exit, 0, "{sql}\n{}", outcome.notes);
    outcome
}

/// The value of `expr` as text, in a session with that zone.
fn values(zone: &str, exprs: &[(&str, &str)]) {
    let set = if zone.is_empty() { String::new() } else { format!("SET 'table.local-time-zone' = '{zone}';\n") };
    for (expr, expected) in exprs {
        let sql = format!("{set}{ONE}SELECT '<' || CAST({expr} AS STRING) || '>' AS v FROM one;");
        let rows = run(&sql).rows;
        assert!(rows.contains(&format!("<{expected}>")), "{expr} in '{zone}': not {expected} but\n{rows}");
    }
}

fn refused(sql: &str, code: &str, place: &str) {
    let outcome = tiderace_with(&["check", "-"], &format!("{ONE}{sql}"));
    assert_eq!(outcome.exit, 1, "{sql}\n{}", outcome.notes);
    assert!(outcome.notes.contains(code), "{sql}\n{}", outcome.notes);
    assert!(outcome.notes.contains(place), "{sql}\n{}", outcome.notes);
}

#[test]
fn times_are_written_with_the_digits_that_they_were_declared_with() {
    values(
        "",
        &[
            ("t3", "2020-02-29 20:01:02.123"),
            ("t6", "2020-02-29 20:01:02.123456"),
            ("t0", "2020-02-29 20:01:02"),
            ("l3", "2020-02-29 20:01:02.123"),
            ("d", "2020-02-29"),
            ("tod", "20:01:02.5"),
            ("CAST(tod AS TIME(0))", "20:01:02"),
            ("t3 + INTERVAL '1' DAY", "2020-03-01 20:01:02.123"),
            ("CASE WHEN n = 1 THEN t0 ELSE t3 END", "2020-02-29 20:01:02.000"),
            ("COALESCE(NULL, t0)", "2020-02-29 20:01:02"),
            ("CAST(t6 AS TIMESTAMP(1))", "2020-02-29 20:01:02.1"),
            ("CAST(t0 AS TIMESTAMP(3))", "2020-02-29 20:01:02.000"),
            ("CAST(t6 AS TIMESTAMP_LTZ(0))", "2020-02-29 20:01:02"),
            ("TIMESTAMP '2020-01-01 00:00:00'", "2020-01-01 00:00:00"),
            ("TIMESTAMP '2020-01-01 00:00:00.50'", "2020-01-01 00:00:00.50"),
            ("CAST('1969-12-31 23:59:59.9999' AS TIMESTAMP(3))", "1969-12-31 23:59:59.999"),
            ("TRY_CAST('nonsense' AS TIMESTAMP(3)) IS NULL", "true"),
            ("CAST(t3 AS VARCHAR(10))", "2020-02-29"),
        ],
    );
    let rows = run(&format!(
        "{ONE}SELECT CAST(m AS STRING) AS a, CAST(e AS STRING) AS b FROM
        (SELECT max(t3) AS m, max(t3 + INTERVAL '1' SECOND) AS e FROM one) x;"
    ))
    .rows;
    assert!(rows.contains("2020-02-29 20:01:02.123") && rows.contains("2020-02-29 20:01:03.123"), "{rows}");
}

#[test]
fn parts_of_an_instant_are_those_of_the_sessions_clock() {
    // 20:01:02.123 UTC is 04:01:02.123 of the next day in Shanghai.
    values(
        "Asia/Shanghai",
        &[
            ("l3", "2020-03-01 04:01:02.123"),
            ("HOUR(l3)", "4"),
            ("EXTRACT(DAY FROM l3)", "1"),
            ("DATE_FORMAT(l3, 'yyyy-MM-dd HH:mm')", "2020-03-01 04:01"),
            ("TO_CHAR(l3, 'YYYY-MM-DD HH24')", "2020-03-01 04"),
            ("CAST(l3 AS DATE)", "2020-03-01"),
            ("CAST(l3 AS TIME(0))", "04:01:02"),
            ("CAST(l3 AS TIMESTAMP(3))", "2020-03-01 04:01:02.123"),
            ("FLOOR(l3 TO DAY)", "2020-03-01 00:00:00.000"),
            ("CEIL(l3 TO MONTH)", "2020-04-01 00:00:00.000"),
            ("date_trunc('month', l3)", "2020-03-01 00:00:00.000"),
            ("CAST(t3 AS TIMESTAMP_LTZ(3))", "2020-02-29 20:01:02.123"),
            ("UNIX_TIMESTAMP('1970-01-01 08:00:00')", "0"),
            ("FROM_UNIXTIME(0)", "1970-01-01 08:00:00"),
            ("TO_TIMESTAMP_LTZ('1970-01-01 08:00:00') = TO_TIMESTAMP_LTZ(0, 0)", "true"),
            ("CAST('1970-01-01 08:00:00' AS TIMESTAMP_LTZ(3)) = TO_TIMESTAMP_LTZ(0, 0)", "true"),
            ("CAST('1970-01-01T00:00:00Z' AS TIMESTAMP_LTZ(3)) = TO_TIMESTAMP_LTZ(0, 0)", "true"),
            // A TIMESTAMP is what a clock shows, whichever.
            ("t3", "2020-02-29 20:01:02.123"),
            ("HOUR(t3)", "20"),
            ("l3 = t3 + INTERVAL '8' HOUR", "true"),
            ("HOUR(l3 AT TIME ZONE 'UTC')", "20"),
            ("CAST(EXTRACT(EPOCH FROM l3) AS BIGINT)", "1583006462"),
            ("UNIX_TIMESTAMP(l3)", "1583006462"),
        ],
    );
    values("", &[("HOUR(l3)", "20"), ("CAST(l3 AS DATE)", "2020-02-29")]);
}

#[test]
fn at_time_zone_is_postgresqls() {
    values(
        "",
        &[
            ("l3 AT TIME ZONE 'Asia/Tokyo'", "2020-03-01 05:01:02.123"),
            ("HOUR(l3 AT TIME ZONE 'Asia/Tokyo')", "5"),
            ("EXTRACT(DAY FROM l3 AT TIME ZONE 'Asia/Tokyo')", "1"),
            ("DATE_FORMAT(l3 AT TIME ZONE '+05:30', 'HH:mm')", "01:31"),
            ("CAST(l3 AT TIME ZONE 'Asia/Tokyo' AS DATE)", "2020-03-01"),
            ("t3 AT TIME ZONE 'Asia/Tokyo'", "2020-02-29 11:01:02.123"),
            ("t3 AT TIME ZONE 'Asia/Tokyo' AT TIME ZONE 'Asia/Tokyo' = t3", "true"),
        ],
    );
    values("America/New_York", &[("t3 AT TIME ZONE 'UTC'", "2020-02-29 15:01:02.123")]);
}

#[test]
fn windows_over_instants_begin_on_the_sessions_clock() {
    let windows = |zone: &str, size: &str| {
        let sql = format!(
            "SET 'table.local-time-zone' = '{zone}';
            CREATE TABLE e (ms BIGINT, at AS TO_TIMESTAMP_LTZ(ms, 3), WATERMARK FOR at AS at)
            WITH (connector = 'filesystem', path = '{{path}}', format = 'json');
            SELECT CAST(window_start AS STRING) AS s, CAST(window_end AS STRING) AS e, count(*) AS n
            FROM TABLE(TUMBLE(TABLE e, DESCRIPTOR(at), {size})) GROUP BY window_start, window_end;"
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.jsonl");
        std::fs::write(&path, "{\"ms\": 1583006462123}\n").unwrap();
        tiderace_with(&["run", "-"], &sql.replace("{path}", path.to_str().unwrap()))
    };
    for (zone, size, start, end) in [
        ("UTC", "INTERVAL '1' DAY", "2020-02-29 00:00:00.000", "2020-03-01 00:00:00.000"),
        ("Asia/Shanghai", "INTERVAL '1' DAY", "2020-03-01 00:00:00.000", "2020-03-02 00:00:00.000"),
        // 2020-03-08 has 23 hours in New York.
        ("America/New_York", "INTERVAL '1' DAY", "2020-02-29 00:00:00.000", "2020-03-01 00:00:00.000"),
        ("Asia/Kolkata", "INTERVAL '1' HOUR", "2020-03-01 01:00:00.000", "2020-03-01 02:00:00.000"),
        ("+01:00", "INTERVAL '12' HOUR", "2020-02-29 12:00:00.000", "2020-03-01 00:00:00.000"),
    ] {
        let outcome = windows(zone, size);
        assert_eq!(outcome.exit, 0, "{zone} {size}\n{}", outcome.notes);
        assert!(outcome.rows.contains(start) && outcome.rows.contains(end), "{zone} {size}\n{}", outcome.rows);
    }
    let outcome = windows("Europe/Berlin", "INTERVAL '12' HOUR");
    assert_eq!(outcome.exit, 1);
    assert!(outcome.notes.contains("TR-1511") && outcome.notes.contains("Europe/Berlin"), "{}", outcome.notes);
}

#[test]
fn columns_take_as_many_digits_as_they_declare() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.jsonl"), folder.path().join("out"));
    let line = r#"{"a": "2020-01-01 00:00:00.123456", "r": {"b": "2020-01-01 00:00:00.987654"}, "t": "10:11:12.345678"}"#;
    std::fs::write(&input, line).unwrap();
    let sql = format!(
        "CREATE TABLE src (a TIMESTAMP(3), r ROW<b TIMESTAMP(1)>, t TIME(0), c AS a)
           WITH (connector = 'filesystem', path = '{}', format = 'json');
         CREATE TABLE dst (a TIMESTAMP(0), b TIMESTAMP(6), t TIME(0), l TIMESTAMP_LTZ(2), c TIMESTAMP(6))
           WITH (connector = 'filesystem', path = '{}', format = 'json');
         INSERT INTO dst SELECT a, r.b, t, a, c FROM src;",
        input.display(),
        output.display()
    );
    run(&sql);
    let written: String =
        std::fs::read_dir(&output).unwrap().map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    for part in ["00:00:00\"", "00:00:00.9", "10:11:12\"", "00:00:00.12", "00:00:00.123"] {
        assert!(written.contains(part), "{part} is not in {written}");
    }
    assert!(!written.contains("456") && !written.contains("98"), "{written}");
}

#[test]
fn declared_types_are_shown_as_declared() {
    let rows = run("CREATE TABLE c (a TIMESTAMP(3), b TIMESTAMP_LTZ(0), c VARCHAR(20), d CHAR(2), e DECIMAL(12, 4), f TIME(3),
          g ROW<x TIMESTAMP(3)>, h TIMESTAMP) WITH (connector = 'datagen');
        CREATE VIEW v AS SELECT a, a + INTERVAL '1' DAY AS later, date_trunc('hour', b) AS hour FROM c;
        DESCRIBE c; SHOW CREATE TABLE c; DESCRIBE v;")
    .rows;
    for part in [
        "a\tTIMESTAMP(3)",
        "b\tTIMESTAMP_LTZ(0)",
        "c\tVARCHAR(20)",
        "d\tCHAR(2)",
        "e\tDECIMAL(12, 4)",
        "f\tTIME(3)",
        "g\tROW<x TIMESTAMP(3)>",
        "h\tTIMESTAMP\n",
        "  a TIMESTAMP(3),",
        "  b TIMESTAMP_LTZ(0),",
    ] {
        assert!(rows.contains(part), "{part:?} is not in\n{rows}");
    }
}

#[test]
fn times_are_rounded_to_every_unit() {
    values(
        "",
        &[
            ("FLOOR(t3 TO SECOND)", "2020-02-29 20:01:02.000"),
            ("CEIL(t3 TO SECOND)", "2020-02-29 20:01:03.000"),
            ("FLOOR(t0 TO MINUTE)", "2020-02-29 20:01:00"),
            ("CEIL(t0 TO HOUR)", "2020-02-29 21:00:00"),
            ("CEIL(t0 TO DAY)", "2020-03-01 00:00:00"),
            ("FLOOR(t0 TO WEEK)", "2020-02-23 00:00:00"),
            ("CEIL(t0 TO WEEK)", "2020-03-01 00:00:00"),
            ("FLOOR(d TO MONTH)", "2020-02-01"),
            ("CEIL(d TO QUARTER)", "2020-04-01"),
            ("FLOOR(t0 TO YEAR)", "2020-01-01 00:00:00"),
            ("CEIL(t0 TO DECADE)", "2030-01-01 00:00:00"),
            ("FLOOR(t0 TO CENTURY)", "2001-01-01 00:00:00"),
            ("CEIL(t0 TO MILLENNIUM)", "3001-01-01 00:00:00"),
        ],
    );
}

#[test]
fn a_date_and_hours_make_a_timestamp() {
    values(
        "",
        &[
            ("d + INTERVAL '1' HOUR", "2020-02-29 01:00:00"),
            ("d - INTERVAL '30' MINUTE", "2020-02-28 23:30:00"),
            ("INTERVAL '1' HOUR + d", "2020-02-29 01:00:00"),
            ("d + INTERVAL '1' DAY", "2020-03-01"),
            ("d + INTERVAL '1' MONTH", "2020-03-29"),
        ],
    );
}

#[test]
fn other_spellings_of_flink() {
    values(
        "",
        &[
            ("SIGN(-5)", "-1"),
            ("SIGN(CAST(-2.50 AS DECIMAL(5, 2)))", "-1.00"),
            ("SIGN(0.0)", "0.0"),
            ("ELEMENT(ARRAY[n])", "1"),
            ("MAP['a', n, 'b', 2]['b']", "2"),
            ("ARRAY[named_struct('a', n, 'b', 'z')][1].b", "z"),
            ("(named_struct('a', n)).a", "1"),
        ],
    );
    let outcome = tiderace_with(&["run", "-"], &format!("{ONE}SELECT ELEMENT(ARRAY[n, 2]) AS e FROM one;"));
    assert!(outcome.exit != 0 && outcome.notes.contains("TR-1009"), "{}", outcome.notes);
}

#[test]
fn group_windows_have_their_parts_and_maps_their_elements() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("e.jsonl");
    std::fs::write(&path, "{\"ms\": 1583006462123, \"m\": {\"z\": {\"x\": 5}}, \"rs\": [{\"a\": 7}]}\n").unwrap();
    let table = format!(
        "CREATE TABLE e (ms BIGINT, m MAP<STRING, ROW<x INT>>, rs ARRAY<ROW<a INT>>, pt AS PROCTIME(),
           at AS TO_TIMESTAMP_LTZ(ms, 3), WATERMARK FOR at AS at)
         WITH (connector = 'filesystem', path = '{}', format = 'json');\n",
        path.display()
    );
    let minute = "INTERVAL '1' MINUTE";
    let rows = run(&format!(
        "{table}SELECT CAST(TUMBLE_START(at, {minute}) AS STRING) AS s, CAST(TUMBLE_END(at, {minute}) AS STRING) AS e,
           CAST(TUMBLE_ROWTIME(at, {minute}) AS STRING) AS r, count(*) AS n FROM e GROUP BY TUMBLE(at, {minute});"
    ))
    .rows;
    for time in ["2020-02-29 20:01:00.000", "2020-02-29 20:02:00.000", "2020-02-29 20:01:59.999"] {
        assert!(rows.contains(time), "{rows}");
    }
    // The row time of a window is a time column: windows stand over it.
    let rows = run(&format!(
        "{table}SELECT CAST(HOP_END(r, INTERVAL '1' HOUR, INTERVAL '1' HOUR) AS STRING) AS e, sum(n) AS n FROM
           (SELECT HOP_ROWTIME(at, {minute}, {minute}) AS r, count(*) AS n FROM e GROUP BY HOP(at, {minute}, {minute})) x
         GROUP BY HOP(r, INTERVAL '1' HOUR, INTERVAL '1' HOUR);"
    ))
    .rows;
    assert!(rows.contains("2020-02-29 21:00:00.000"), "{rows}");
    let rows = run(&format!(
        "{table}SELECT TUMBLE_PROCTIME(pt, {minute}) IS NOT NULL AS p, count(*) AS n FROM e GROUP BY TUMBLE(pt, {minute});"
    ))
    .rows;
    assert!(rows.contains("true"), "{rows}");
    let rows = run(&format!("{table}SELECT m['z'].x AS x, rs[1].a AS a, e.rs[1].a AS b, m['y'].x IS NULL AS none FROM e;")).rows;
    assert!(rows.contains("5 | 7 | 7 | true"), "{rows}");
}

#[test]
fn decimals_of_more_than_38_digits_are_an_error() {
    for sum in ["big + ten", "big + big", "big * ten", "-ten - big"] {
        let sql = format!(
            "CREATE VIEW w AS SELECT CAST(a AS DECIMAL(38, 0)) AS big, CAST(b AS DECIMAL(38, 0)) AS ten
               FROM (VALUES ('99999999999999999999999999999999999999', '10')) v(a, b);
             SELECT {sum} AS s FROM w;"
        );
        let outcome = tiderace_with(&["run", "-"], &sql);
        assert!(outcome.exit != 0 && outcome.notes.contains("TR-2001"), "{sum}\n{}{}", outcome.rows, outcome.notes);
    }
    let near = "SELECT CAST('99999999999999999999999999999999999998' AS DECIMAL(38, 0)) + CAST('1' AS DECIMAL(38, 0)) AS s;";
    assert!(run(near).rows.contains("99999999999999999999999999999999999999"));
}

#[test]
fn constants_that_are_wrong_for_every_row_are_refused_before_the_first() {
    for (expr, code, place) in [
        ("CAST('2020-13-01' AS TIMESTAMP)", "TR-1006", "'2020-13-01'"),
        ("CAST('x' AS INT) + n", "TR-1006", "'x'"),
        ("l3 AT TIME ZONE 'Europe/Nowhere'", "TR-1009", "'Europe/Nowhere'"),
        ("regexp_like(s, '(')", "TR-1009", "'('"),
        ("REGEXP_EXTRACT(s, '(', 1)", "TR-1009", "'('"),
        ("DATE_FORMAT(t3, 'yyyy-bb')", "TR-1009", "'yyyy-bb'"),
        ("TO_TIMESTAMP(s, 'yyyy-bb')", "TR-1009", "'yyyy-bb'"),
        ("SUBSTRING(s FROM 1 FOR -1)", "TR-1009", "SUBSTRING"),
        ("date_trunc('fortnight', t3)", "TR-1", "'fortnight'"),
        ("TO_TIMESTAMP_LTZ(n, 5)", "TR-1009", "TO_TIMESTAMP_LTZ"),
    ] {
        refused(&format!("SELECT {expr} AS v FROM one;"), code, place);
    }
    refused("SET 'table.local-time-zone' = 'Mars/Olympus'; SELECT n FROM one;", "TR-7002", "Mars/Olympus");
    for expr in ["now()", "TIMESTAMP '2020-01-01 00:00:00'", "at - random() * INTERVAL '1' SECOND"] {
        let sql = format!(
            "CREATE TABLE w (at TIMESTAMP(3), WATERMARK FOR at AS {expr}) WITH (connector = 'datagen'); SELECT at FROM w;"
        );
        refused(&sql, "TR-1", "WATERMARK");
    }
}
