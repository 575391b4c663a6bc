//! `kill -9` again and again: a job with a directory for checkpoints goes on, and its files have each row once.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long all of it may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);
const ROWS: u64 = 30_000;
const KILLS: u32 = 6;

fn run(folder: &Path, sql: &str) -> std::process::Child {
    let job = folder.join("job.sql");
    std::fs::write(&job, sql).unwrap();
    Command::new(env!("CARGO_BIN_EXE_tiderace"))
        .args(["run", "--cores", "1", "--checkpoint-dir"])
        .arg(folder.join("checkpoints"))
        .arg(&job)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// How many manifests were written so far, by the number of the newest.
fn newest(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder.join("checkpoints")) else { return 0 };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_prefix('v')?.strip_suffix(".json")?.parse().ok()).max().unwrap_or(0)
}

#[test]
fn the_views_of_a_job_that_has_ended_can_still_be_asked() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("checkpoints").display().to_string();
    let sql = "CREATE TABLE n (a BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '100', 'fields.a.kind' = 'sequence',
                 'fields.a.start' = '1', 'fields.a.end' = '100');
               CREATE MATERIALIZED VIEW v AS SELECT a % 2 AS k, sum(a) AS s FROM n GROUP BY a % 2;";
    for run in 0..3 {
        // A comment and the interval make no other job.
        let sql = format!("-- run {run}\nSET 'checkpoint.interval' = '{} s';\n{sql}", run + 1);
        let query = ["run", "-", "--cores", "1", "--checkpoint-dir", &directory, "--query", "SELECT k, s FROM v ORDER BY k"];
        let outcome = crate::tiderace_with(&query, &sql);
        assert!(
            outcome.exit == 0 && outcome.rows.contains("2550") && outcome.rows.contains("2500"),
            "{run}: {}{}",
            outcome.rows,
            outcome.notes
        );
        assert_eq!(outcome.notes.contains("come to its end before"), run > 0, "{}", outcome.notes);
    }
}

fn visible(folder: &Path) -> BTreeMap<String, u64> {
    let mut lines = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.file_name().unwrap().to_str().unwrap().starts_with('.') {
            for line in std::fs::read_to_string(path).unwrap().lines() {
                *lines.entry(line.to_owned()).or_default() += 1;
            }
        }
    }
    lines
}

#[test]
fn a_killed_job_goes_on_and_shows_each_row_once() {
    let folder = tempfile::tempdir().unwrap();
    let (folder, deadline) = (folder.path(), Instant::now() + PATIENCE);
    let sql = format!(
        "SET 'engine.tick' = '10 ms'; SET 'checkpoint.interval' = '50 ms';
         CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '{ROWS}', 'rows-per-second' = '20000',
           'fields.n.kind' = 'sequence', 'fields.n.start' = '0', 'fields.n.end' = '{}');
         CREATE TABLE out (n BIGINT) WITH ('connector' = 'filesystem', 'path' = '{}', 'format' = 'csv');
         CREATE TABLE sums (k BIGINT, n BIGINT, s BIGINT) WITH ('connector' = 'filesystem', 'path' = '{}', 'format' = 'changelog-json');
         INSERT INTO out SELECT n FROM numbers;
         INSERT INTO sums SELECT n % 10, count(*), sum(n) FROM numbers GROUP BY n % 10;",
        ROWS - 1,
        folder.join("out").display(),
        folder.join("sums").display(),
    );
    for kill in 0..KILLS {
        let before = newest(folder);
        let mut job = run(folder, &sql);
        // Killed when it has committed something, sooner or later after that.
        while newest(folder) <= before + 1 {
            assert!(Instant::now() < deadline, "kill {kill}: no checkpoint");
            assert!(job.try_wait().unwrap().is_none(), "kill {kill}: it ended by itself");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(u64::from(kill) * 13));
        job.kill().unwrap();
        job.wait().unwrap();
    }
    let end = run(folder, &sql).wait_with_output().unwrap();
    let notes = String::from_utf8(end.stderr).unwrap();
    assert!(end.status.success() && notes.contains("going on from checkpoint"), "{notes}");
    let out = visible(&folder.join("out"));
    assert!(out.values().all(|n| *n == 1), "rows that are there twice");
    assert!(out.len() as u64 == ROWS && (0..ROWS).all(|n| out.contains_key(&n.to_string())), "{} rows", out.len());
    let mut sums = BTreeMap::<(u64, u64, u64), i64>::new();
    for (line, times) in visible(&folder.join("sums")) {
        let change: serde_json::Value = serde_json::from_str(&line).unwrap();
        let number = |field: &str| change["data"][field].as_u64().unwrap();
        let weight = if change["op"] == "+I" || change["op"] == "+U" { 1 } else { -1 };
        *sums.entry((number("k"), number("n"), number("s"))).or_default() += weight * times as i64;
    }
    sums.retain(|_, n| *n != 0);
    let expected: BTreeMap<_, _> = (0..10).map(|k| ((k, ROWS / 10, (0..ROWS).filter(|n| n % 10 == k).sum::<u64>()), 1)).collect();
    assert_eq!(sums, expected);
    // Once more: there is nothing to do.
    let again = run(folder, &sql).wait_with_output().unwrap();
    let notes = String::from_utf8(again.stderr).unwrap();
    assert!(again.status.success() && notes.contains("come to its end before"), "{notes}");
    assert_eq!(visible(&folder.join("out")), out);
}
