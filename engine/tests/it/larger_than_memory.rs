//! State that is several times larger than the memory it may use: SQL whose groups, different values and windows go to a directory and come
//! back, against DataFusion as a batch; and the same without the directory, which can't end well.

use std::path::Path;

use tiderace_engine::runtime::{IoBackend, JobOptions, JobReport};

use crate::data::{Rng, Table, cut, run_with};
use crate::slt::batch_rows;

/// Memory of a core: the least that a job with a directory may have.
const BUDGET_BYTES: usize = 4 << 20;

fn table(rows: usize, noise: usize, seed: u64) -> Table {
    let columns = [
        "k BIGINT 0..60000 null=1",
        "s STRING words=50000 null=1",
        "v BIGINT -50..50 null=10",
        "d DOUBLE -40..40 null=5",
        "ts TIMESTAMP step=5ms",
        "watermark ts 1s",
    ]
    .map(str::to_owned);
    Table::parse(&format!("t rows={rows} seed={seed} noise={noise}"), &columns)
}

fn options(cores: usize, directory: Option<&Path>) -> JobOptions {
    JobOptions {
        cores,
        memory_bytes: BUDGET_BYTES * cores,
        state_directory: directory.map(Path::to_owned),
        // Many epochs touch a group, and one epoch many groups.
        interval_ms: 1000,
        ..JobOptions::default()
    }
}

fn pages(report: &JobReport) -> (u64, u64) {
    let io = report.progress.cores.iter().filter_map(|core| core.state_io.as_ref());
    io.fold((0, 0), |(written, read), io| (written + io.pages_written, read + io.pages_read))
}

/// `sql` in batch SQL is `batch`, or itself.
fn check(table: Table, sql: &str, batch: Option<&str>, cores: usize, seed: u64) {
    let tables = [table];
    let expected = batch_rows(&tables, batch.unwrap_or(sql)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let input = || vec![cut(&tables[0], &mut Rng::new(seed))];
    let (rows, report) = run_with(&tables, input(), sql, seed, options(cores, Some(directory.path()))).unwrap();
    assert_eq!(rows.len(), expected.len(), "{sql}");
    let wrong: Vec<_> = expected.iter().filter(|(row, n)| rows.get(*row) != Some(n)).take(5).collect();
    assert!(wrong.is_empty(), "{sql}: expected, and not there: {wrong:?}");
    let (written, read) = pages(&report);
    assert!(written > 50 && read > 0, "{sql}: {written} pages were written, {read} read");
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert!(left.is_empty(), "{sql}: {left:?} is left");
    // Without the directory the same job has no place for its state.
    let error = run_with(&tables, input(), sql, seed, options(cores, None)).unwrap_err();
    assert!(error.contains("TR-2009") && error.contains("--state-dir"), "{sql}: {error}");
}

#[test]
fn groups() {
    let sql = "SELECT k, s, count(*) AS n, sum(v) AS v, min(d) AS low, max(v) AS high, avg(d) AS mean FROM t GROUP BY k, s";
    check(table(100_000, 0, 1), sql, None, 1, 11);
    check(table(120_000, 0, 2), sql, None, 2, 12);
}

#[test]
fn groups_that_are_updated_again_and_again() {
    let sql = "SELECT s, count(*) AS n, sum(v) AS v, max(k) AS last, min(d) AS low, avg(v) AS mean FROM t GROUP BY s";
    check(table(60_000, 0, 3), sql, None, 1, 13);
}

#[test]
fn groups_that_are_taken_back() {
    let sql = "SELECT k, s, count(*) AS n, sum(v) AS v, avg(d) AS mean FROM t GROUP BY k, s";
    check(table(90_000, 30_000, 4), sql, None, 1, 14);
}

#[test]
fn different_rows() {
    check(table(150_000, 0, 5), "SELECT DISTINCT k, s, v FROM t", None, 1, 15);
}

#[test]
fn different_values_of_groups() {
    let sql = "SELECT v, count(DISTINCT k) AS ks, count(DISTINCT s) AS ss, count(*) AS n FROM t GROUP BY v";
    check(table(60_000, 0, 6), sql, None, 1, 16);
}

#[test]
fn groups_over_groups() {
    let sql = "SELECT n, count(*) AS groups, sum(v) AS v FROM (SELECT k, s, count(*) AS n, max(v) AS v FROM t GROUP BY k, s) GROUP BY n";
    check(table(120_000, 0, 7), sql, None, 2, 17);
}

#[test]
fn windows() {
    let sql = "SELECT k, s, count(*) AS n, sum(v) AS v, min(d) AS low FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' DAY)) GROUP BY k, s, window_start, window_end";
    let batch = "SELECT k, s, count(*) AS n, sum(v) AS v, min(d) AS low FROM t WHERE ts IS NOT NULL GROUP BY k, s, date_bin(INTERVAL '1 day', ts)";
    check(table(120_000, 0, 8), sql, Some(batch), 1, 18);
}

#[test]
fn it_is_reached_by_threads_where_io_uring_is_switched_off() {
    let tables = [table(60_000, 0, 9)];
    let directory = tempfile::tempdir().unwrap();
    let sql = "SELECT k, s, count(*) AS n FROM t GROUP BY k, s";
    let expected = batch_rows(&tables, sql).unwrap();
    for io_uring in [false, true] {
        let input = vec![cut(&tables[0], &mut Rng::new(19))];
        let options = JobOptions { io_uring, ..options(1, Some(directory.path())) };
        let (rows, report) = run_with(&tables, input, sql, 19, options).unwrap();
        assert!(rows == expected, "with io_uring {io_uring}");
        let backend = report.progress.cores[0].state_io.map(|io| io.backend);
        // Where the kernel refuses io_uring, threads are right.
        let may_be = if io_uring { &[IoBackend::IoUring, IoBackend::Threads][..] } else { &[IoBackend::Threads] };
        assert!(may_be.iter().any(|may| Some(*may) == backend), "{backend:?}");
    }
}

#[test]
fn a_directory_that_is_in_use_or_somebody_elses_is_refused() {
    let tables = [table(10, 0, 10)];
    let sql = "SELECT k, count(*) AS n FROM t GROUP BY k";
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join("core-0");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("thesis.txt"), "years of work").unwrap();
    let run = || run_with(&tables, vec![cut(&tables[0], &mut Rng::new(20))], sql, 20, options(1, Some(directory.path())));
    let error = run().unwrap_err();
    assert!(error.contains("TR-4001") && error.contains("that no job put there"), "{error}");
    assert!(folder.join("thesis.txt").exists());
    std::fs::remove_dir_all(&folder).unwrap();
    let device = tiderace_storage::FileDevice::open(&folder).unwrap();
    let error = run().unwrap_err();
    assert!(error.contains("TR-4001") && error.contains("core-0"), "{error}");
    drop(device);
    run().unwrap();
}
