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
