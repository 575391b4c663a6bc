//! Answers that were wrong once, each by the shortest script that shows it.

use super::tiderace_with;

const T: &str = "CREATE VIEW t AS SELECT * FROM (VALUES (5, 'a'), (3, 'b'), (9, 'a')) v(id, region);\n";

/// The cells of the rows that `sql` prints: table lines without its frame and head.
fn printed(sql: &str) -> Vec<String> {
    let outcome = tiderace_with(&["run", "-"], sql);
    assert_eq!(outcome.exit, 0, "{sql}\n{}", outcome.notes);
    outcome.rows.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

fn refused(sql: &str, code: &str) {
    let outcome = tiderace_with(&["check", "-"], sql);
    assert_eq!(outcome.exit, 1, "{sql}\n{}", outcome.notes);
    assert!(outcome.notes.contains(code), "{sql}\n{}", outcome.notes);
}

#[test]
fn a_filter_without_columns_stays_above_an_aggregation_without_keys() {
    let rows = printed(&format!("{T}SELECT c FROM (SELECT count(*) AS c FROM t) x WHERE c NOT IN (1, NULL);"));
    assert!(!rows.iter().any(|row| row == "0"), "{rows:?}");
}

#[test]
fn columns_that_would_be_called_alike_get_numbers() {
    let rows = printed(&format!("{T}SELECT id, CAST(id AS STRING), id FROM t WHERE id = 9;"));
    assert!(rows.iter().any(|row| row.contains("id_1") && row.contains("id_2")), "{rows:?}");
    assert!(rows.iter().any(|row| row.matches('9').count() == 3), "{rows:?}");
}

#[test]
fn floor_is_for_numbers_too_and_listagg_separates_by_commas() {
    let rows = printed(&format!("{T}SELECT FLOOR(id / 2.0) AS f FROM t WHERE id = 9;"));
    assert!(rows.iter().any(|row| row.contains('4')), "{rows:?}");
    let rows = printed(&format!("{T}SELECT listagg(region) AS l FROM t WHERE region = 'a';"));
    assert!(rows.iter().any(|row| row.contains("a,a")), "{rows:?}");
}

#[test]
fn clauses_that_would_have_no_effect_are_refused() {
    for sql in [
        "SELECT DISTINCT ON (region) region, id FROM t",
        "SELECT id FROM t TABLESAMPLE BERNOULLI (10)",
        "SELECT id FROM t WITH (foo = 'bar')",
        "SELECT id FROM t FOR UPDATE",
        "SELECT id FROM (SELECT id FROM t FOR SYSTEM_TIME AS OF now()) x",
    ] {
        refused(&format!("{T}{sql};"), "TR-1500");
    }
    refused(&format!("{T}SELECT (SELECT max(id) FROM t) AS m;"), "TR-150");
}

#[test]
fn two_statements_may_write_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    let sql = format!(
        "{T}CREATE TABLE f (id BIGINT) WITH (connector = 'filesystem', path = '{path}', format = 'json');
        INSERT INTO f SELECT id FROM t; INSERT INTO f SELECT id + 10 FROM t;"
    );
    let outcome = tiderace_with(&["run", "-"], &sql);
    assert_eq!(outcome.exit, 0, "{}", outcome.notes);
    let files = std::fs::read_dir(folder.path()).unwrap().map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
    let mut ids: Vec<String> = files.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    ids.sort();
    assert_eq!(ids.len(), 6, "{ids:?}");
}

#[test]
fn a_tables_own_on_error_holds_where_its_rows_are_first_computed_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.jsonl");
    std::fs::write(&path, "{\"id\":1,\"x\":5,\"d\":0}\n{\"id\":2,\"x\":6,\"d\":2}\n").unwrap();
    let rows = printed(&format!(
        "CREATE TABLE ps (id BIGINT, x BIGINT, d BIGINT) WITH (connector = 'filesystem', path = '{}', format = 'json', on_error = 'skip');
        SELECT id, x / d AS q FROM ps;",
        path.display()
    ));
    assert!(rows.iter().any(|row| row.contains('2') && row.contains('3')), "{rows:?}");
}

#[test]
fn a_tables_own_on_error_holds_behind_a_shuffle_until_its_rows_meet_those_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.jsonl");
    let rows = [
        "{\"g\":1,\"x\":9223372036854775807,\"ts\":\"2026-01-01 00:00:10\"}",
        "{\"g\":1,\"x\":9223372036854775807,\"ts\":\"2026-01-01 00:00:20\"}",
        "{\"g\":2,\"x\":7,\"ts\":\"2026-01-01 00:00:30\"}",
        "{\"g\":2,\"x\":8,\"ts\":null}",
    ];
    std::fs::write(&path, rows.join("\n")).unwrap();
    let tables = format!(
        "CREATE TABLE bad (origin STRING, code STRING) WITH (connector = 'print');
        CREATE TABLE ps (g BIGINT, x BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts) WITH (connector = 'filesystem', path = '{}', format = 'json', on_error = '__');\n",
        path.display()
    );
    let window = "SELECT window_end, count(*) AS n FROM TUMBLE(ps, ts, INTERVAL '1' MINUTE) GROUP BY window_start, window_end;";
    let sums = "SELECT g, sum(x) AS s FROM ps GROUP BY g;";
    let skipping = tables.replace("__", "skip");
    let rows = printed(&format!("{skipping}{window}"));
    assert!(rows.iter().any(|row| row.contains("00:01:00") && row.contains('3')), "the row without a time is left out: {rows:?}");
    let rows = printed(&format!("{skipping}{sums}"));
    assert!(rows.iter().any(|row| row.contains("15")), "{rows:?}");
    let outcome = tiderace_with(&["run", "-"], &format!("{}{sums}", tables.replace("__", "dead_letter(bad)")));
    assert!(outcome.exit == 0 && outcome.rows.contains("TR-2001"), "{} {}", outcome.rows, outcome.notes);
    // Rows that are the sum of several tables' are under the job's policy, and the hint says so.
    let other =
        "CREATE TABLE other (g BIGINT, x BIGINT) WITH (connector = 'datagen', 'number-of-rows' = '1', 'rows-per-second' = '0');";
    let both = "SELECT g, sum(x) AS s FROM (SELECT g, x FROM ps UNION ALL SELECT g, 1 FROM other) GROUP BY g;";
    let outcome = tiderace_with(&["run", "-"], &format!("{other}{skipping}{both}"));
    assert!(outcome.exit == 3 && outcome.notes.contains("TR-2001") && outcome.notes.contains("SET"), "{}", outcome.notes);
    let outcome = tiderace_with(&["run", "-"], &format!("SET 'on_error' = 'skip'; {other}{skipping}{both}"));
    assert_eq!(outcome.exit, 0, "{}", outcome.notes);
}

#[test]
fn long_chains_of_operators_are_planned_and_run() {
    let sum = vec!["id"; 600].join(" + ");
    let rows = printed(&format!("{T}SELECT {sum} AS s FROM t WHERE id = 3;"));
    assert!(rows.iter().any(|row| row.contains("1800")), "{rows:?}");
}

#[test]
fn a_byte_order_mark_before_the_statements_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.sql");
    std::fs::write(&path, format!("\u{feff}{T}SELECT id FROM t;")).unwrap();
    let outcome = super::tiderace(&["run", path.to_str().unwrap()]);
    assert_eq!(outcome.exit, 0, "{}", outcome.notes);
}

#[test]
fn constants_that_do_not_fit_their_type_are_refused_not_wrapped() {
    for sum in ["9223372036854775807 + 1", "CAST(32767 AS SMALLINT) + CAST(1 AS SMALLINT)", "3000000000 * 4000000000"] {
        refused(&format!("{T}SELECT {sum} AS s FROM t;"), "TR-2001");
    }
    // Those that come together only when a filter is brought down through a view, too.
    let view = format!("{T}CREATE VIEW v AS SELECT 9223372036854775807 AS x, id FROM t;");
    refused(&format!("{view} SELECT id FROM v WHERE x + 1 > 0;"), "TR-2001");
    let outcome = tiderace_with(&["run", "-"], &format!("{view} SELECT x + 1 AS s FROM v;"));
    assert!(outcome.exit == 3 && outcome.notes.contains("TR-2001"), "{}", outcome.notes);
    assert!(printed("SELECT 9223372036854775806 + 1 AS s;").iter().any(|row| row.contains("9223372036854775807")));
}

#[test]
fn mistakes_of_the_user_are_not_told_as_ours() {
    for (sql, code) in [
        ("SELECT id FROM t GROUP BY 7", "TR-1012"),
        ("SELECT id FROM t WHERE count(*) > 1", "TR-1012"),
        ("SELECT max(count(*)) FROM t", "TR-1012"),
        ("SELECT id FROM t UNION ALL SELECT id, region FROM t", "TR-1"),
        ("SELECT TIMESTAMP '2026-02-30 00:00:00'", "TR-1006"),
        ("SELECT CAST(70000 AS SMALLINT)", "TR-1006"),
    ] {
        refused(&format!("{T}{sql};"), code);
    }
}

/// A folder with the files, and the WITH of a table that reads one of them.
fn files(of: &[(&str, &[u8])]) -> (tempfile::TempDir, impl Fn(&str, &str) -> String + use<>) {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in of {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let path = folder.path().display().to_string();
    (folder, move |name: &str, more: &str| format!("WITH ('connector' = 'filesystem', 'path' = '{path}/{name}', {more})"))
}

#[test]
fn a_not_null_column_of_which_only_is_null_is_asked_is_checked_all_the_same() {
    let (_folder, with) = files(&[("a.json", b"{\"id\": 1}\n{\"id\": null}\n{\"other\": 3}\n")]);
    let table =
        |more: &str| format!("CREATE TABLE f (id BIGINT NOT NULL) {};\n", with("a.json", &format!("'format' = 'json'{more}")));
    for query in [
        "SELECT count(*) AS n FROM f WHERE id IS NULL",
        "SELECT count(*) AS n FROM f WHERE id IS NOT NULL",
        "SELECT id IS NULL AS is_null FROM f",
        "SELECT count(*) AS n FROM (SELECT id AS x FROM f) AS y WHERE x IS NULL",
    ] {
        let outcome = tiderace_with(&["run", "-"], &format!("{}{query};", table("")));
        assert_eq!(outcome.exit, 3, "{query}\n{}", outcome.notes);
        assert!(outcome.notes.contains("TR-3103"), "{query}\n{}", outcome.notes);
    }
    let skipped = format!("{}SELECT count(*) AS n FROM f WHERE id IS NOT NULL;", table(", 'on_error' = 'skip'"));
    assert!(printed(&skipped).iter().any(|row| row.contains("| 1 |") || row.split(' ').any(|cell| cell == "1")), "{skipped}");
}

#[test]
fn nexmark_stops_at_an_event_and_may_stay_open() {
    let table = |more: &str| format!("CREATE TABLE x (event_type INT) WITH ('connector' = 'nexmark'{more});\n");
    let count = |more: &str| printed(&format!("{}SELECT count(*) AS n FROM x;", table(more)));
    let of_flink = ", 'events.num' = '5000', 'stop-at' = '-1', 'keep-alive' = 'false', 'max-emit-speed' = 'true', \
                    'rate.shape' = 'SINE', 'rate.period' = '10 min', 'rate.limited' = 'false', 'next-event.rate' = '10000'";
    assert!(count(of_flink).iter().any(|row| row.contains("5000")));
    assert!(count(", 'events.num' = '5000', 'stop-at' = '1200'").iter().any(|row| row.contains("1200")));
    assert!(count(", 'stop-at' = '700'").iter().any(|row| row.contains("700")));
    let explained = tiderace_with(
        &["check", "-"],
        &format!("{}SELECT count(*) AS n FROM x;", table(", 'stop-at' = '7', 'keep-alive' = 'true'")),
    );
    assert_eq!(explained.exit, 0, "{}", explained.notes);
}

#[test]
fn options_of_the_watermark_are_listed_and_taken() {
    let listed = super::tiderace(&["connectors", "nexmark"]);
    for key in ["scan.watermark.idle-timeout", "scan.watermark.alignment.max-drift", "scan.watermark.alignment.group", "on_error"]
    {
        assert!(listed.rows.contains(&format!("'{key}'")), "{key}\n{}", listed.rows);
    }
    let table = "CREATE TABLE x (n BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts) WITH ('connector' = 'datagen', 'number-of-rows' = '50', \
                 'rows-per-second' = '0', 'scan.watermark.idle-timeout' = '5 s', 'scan.watermark.alignment.max-drift' = '1 min', \
                 'scan.watermark.alignment.group' = 'g');\n";
    assert!(printed(&format!("{table}SELECT count(*) AS n FROM x;")).iter().any(|row| row.contains("50")));
}

#[test]
fn damaged_files_lose_nothing_else_and_are_counted_by_name_and_line() {
    let dirty = |name: &str| std::fs::read(super::root().join("engine/tests/data/dirty").join(name)).unwrap();
    let (cut_gz, cut_zst) = (dirty("truncated.json.gz"), dirty("truncated.json.zst"));
    let good: &[u8] = b"{\"id\": -7}\r\n{\"id\": -8}";
    let (_folder, with) = files(&[("a.json.gz", &cut_gz), ("b.json.zst", &cut_zst), ("good.json", good), ("empty.json", b"")]);
    let tables = |on_error: &str| {
        format!(
            "CREATE TABLE f (id BIGINT) {};\n\
             CREATE TABLE bad (origin STRING, `position` BIGINT, code STRING, message STRING) WITH ('connector' = 'print', 'standard-error' = 'true');\n\
             CREATE TABLE o (id BIGINT) WITH ('connector' = 'print');\n",
            with("*.json*", &format!("'format' = 'json', 'on_error' = '{on_error}'"))
        )
    };
    let run = |on_error: &str| tiderace_with(&["run", "-"], &format!("{}INSERT INTO o SELECT id FROM f;", tables(on_error)));
    let failed = run("fail");
    assert_eq!(failed.exit, 3, "{}", failed.notes);
    assert!(failed.notes.contains("TR-3107") && failed.notes.contains(".json."), "{}", failed.notes);
    let skipped = run("skip");
    assert_eq!(skipped.exit, 0, "{}", skipped.notes);
    assert!(skipped.notes.contains("TR-3107"), "it is counted: {}", skipped.notes);
    let kept = run("dead_letter(bad)");
    assert_eq!(kept.exit, 0, "{}", kept.notes);
    for name in ["a.json.gz", "b.json.zst"] {
        let told = kept.notes.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {}", kept.notes));
        assert!(told.contains("TR-3107"), "{told}");
    }
    let rows = kept.rows.lines().count();
    assert!(rows > 200, "what stood before the damage is read: {rows} rows");
    assert!(kept.rows.contains("-7") && kept.rows.contains("-8"), "the other file is read");
    assert_eq!(rows, skipped.rows.lines().count());
}

#[test]
fn streams_that_are_dropped_do_not_run() {
    let sql =
        format!("{T}CREATE MATERIALIZED VIEW m AS SELECT count(*) AS c FROM t; DROP MATERIALIZED VIEW m; SELECT id FROM t;");
    let outcome = tiderace_with(&["run", "-"], &sql);
    assert_eq!(outcome.exit, 0, "{}", outcome.notes);
    let asked = tiderace_with(&["run", "-", "--query", "SELECT c FROM m"], &sql);
    assert_ne!(asked.exit, 0, "{}", asked.rows);
}

#[test]
fn messages_about_values_call_types_as_sql_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.jsonl");
    std::fs::write(&path, "{\"i\":null,\"s\":\"abc\",\"b\":70000}\n").unwrap();
    for (expr, told) in [
        ("COALESCE(i, CAST(s AS INT))", "'abc' can't be read as INT"),
        ("CAST(b AS SMALLINT)", "70000 is out of the range of SMALLINT"),
        ("CAST(s AS TIMESTAMP(3))", "'abc' can't be read as TIMESTAMP"),
        ("CAST(s AS DATE)", "'abc' can't be read as DATE"),
        ("CAST(s AS DECIMAL(5, 2))", "'abc' can't be read as DECIMAL"),
        ("CAST(b AS DECIMAL(4, 2))", "DECIMAL"),
        ("CAST(s AS BOOLEAN)", "'abc' can't be read as BOOLEAN"),
    ] {
        let sql = format!(
            "CREATE TABLE p (i INT, s STRING, b BIGINT) WITH (connector = 'filesystem', path = '{}', format = 'json');
            SELECT {expr} AS x FROM p;",
            path.display()
        );
        let outcome = tiderace_with(&["run", "-"], &sql);
        assert_eq!(outcome.exit, 3, "{expr}\n{}", outcome.notes);
        assert!(outcome.notes.contains(told), "{expr}\n{}", outcome.notes);
        for theirs in ["Int", "Utf8", "Decimal128", "Cannot", "Date32", "Arrow", "arrow"] {
            assert!(!outcome.notes.contains(theirs), "{expr}: {theirs}\n{}", outcome.notes);
        }
    }
}

#[test]
fn instants_are_shown_on_the_sessions_clock() {
    let sql = "SET 'table.local-time-zone' = 'Asia/Tokyo';
        SELECT TO_TIMESTAMP_LTZ(0, 3) AS x, ARRAY[TO_TIMESTAMP_LTZ(0, 3)] AS l;";
    let rows = printed(sql);
    assert!(rows.iter().any(|row| row.matches("1970-01-01").count() == 2 && row.matches("09:00:00").count() == 2), "{rows:?}");
}

#[test]
fn functions_over_instants_look_at_the_sessions_clock() {
    let set = "SET 'table.local-time-zone' = 'Asia/Tokyo';\n";
    let rows = printed(&format!("{set}SELECT CAST(date_bin(INTERVAL '1' DAY, TO_TIMESTAMP_LTZ(3600000, 3)) AS STRING) AS x;"));
    assert!(rows.iter().any(|row| row.contains("1970-01-01 00:00:00")), "{rows:?}");
    let rows = printed(&format!("{set}SELECT array_to_string(ARRAY[TO_TIMESTAMP_LTZ(0, 3), NULL], ',') AS x;"));
    assert!(rows.iter().any(|row| row.contains("1970-01-01 09:00:00")), "{rows:?}");
}

#[test]
fn a_query_over_views_is_read_like_a_job() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.sql");
    std::fs::write(&path, format!("{T}CREATE MATERIALIZED VIEW m AS SELECT id, TIMESTAMP '2024-05-06 07:08:09' AS ts FROM t;"))
        .unwrap();
    for (query, shown) in [
        ("SELECT FLOOR(ts TO DAY) AS d FROM m WHERE id = 9", "2024-05-06 00:00:00"),
        ("SELECT MAP['a', id] AS d FROM m WHERE id = 9", "{a: 9}"),
        ("SELECT IF(id > 5, 'big', 'small') AS d FROM m WHERE id = 9", "big"),
        ("SELECT CAST(id AS STRING) || 'x' AS d FROM m ORDER BY id LIMIT 1", "3x"),
    ] {
        let outcome = super::tiderace(&["run", path.to_str().unwrap(), "--query", query]);
        assert_eq!(outcome.exit, 0, "{query}\n{}", outcome.notes);
        assert!(outcome.rows.contains(shown), "{query}\n{}", outcome.rows);
    }
}
