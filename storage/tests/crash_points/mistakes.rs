//! Makes mistakes of other stores on purpose, one after the other: the tests named for each must fail with it, and pass without.
//!
//! `cargo test -p tiderace-storage --features bugs --test crash_points -- mistakes::` (`make mistakes`). `TIDERACE_MISTAKES=all` runs every
//! test of this binary with each mistake and tells how many notice it.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longest that tests with a mistake in them may take: one that hangs was noticed too.
const DEADLINE: Duration = Duration::from_secs(120);

/// Each mistake (`src/bugs.rs` says what it is), and tests of which each must notice it.
const NOTICED_BY: &[(&str, &[&str])] = &[
    ("EvictsUndurable", &["larger::a_shard_larger_than_its_memory"]),
    ("ForgetsTombstones", &["shard::checkpoints_of_pages"]),
    ("CompactionLosesCold", &["compaction::", "larger::a_shard_larger_than_its_memory"]),
    ("RmwMissesCold", &["larger::r2_rmw"]),
    ("CaptureIsLate", &["shard::checkpoints_of_pages"]),
    ("PendingOutOfOrder", &["larger::r2_rmw"]),
    ("RemovesPinnedSegments", &["shard::checkpoints_of_pages"]),
    ("SplitsWrong", &["larger::r4_the_index"]),
    ("TrustsPages", &["shard::r14"]),
    ("StaleBlocks", &["ordered::ordered_tables_behave", "ordered::an_ordered_table_larger"]),
    ("ManifestFirst", &["shard::checkpoints_of_pages", "captures::checkpoints_of_changes"]),
    ("CaptureSavesNothing", &["captures::r5_r7", "captures::checkpoints_of_changes", "threads::each_checkpoint_under_load"]),
    ("ChangesForgetRemovals", &["captures::r5_r7"]),
    ("ForgetsBase", &["captures::r5_r7"]),
    ("ShardsCutLate", &["threads::each_checkpoint_under_load"]),
    ("RmwBetweenLocks", &["threads::no_update_of_a_hot_key"]),
    ("WaitsForIdle", &["threads::idle_dropped"]),
    ("AcknowledgesEarly", &["wal::acknowledged_records", "log::committed_records"]),
    ("ForgetsDirectory", &["wal::acknowledged_records", "log::committed_records"]),
    ("TrustsRecords", &["wal::damage_inside"]),
];

/// Whether the tests fail, and those of this binary that did.
fn run(bug: &str, filters: &[&str]) -> (bool, Vec<String>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    // A workload or two each: a mistake that shows at one crash in thousands is looked for by `make soak`.
    command.env("TIDERACE_BUG", bug).env("TIDERACE_CRASH_ROUNDS", "2").env("RUST_BACKTRACE", "0");
    command.args(filters).args(["--skip", "mistakes::"]);
    let output = tempfile::NamedTempFile::new().unwrap();
    command.stdout(Stdio::from(output.reopen().unwrap())).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    let failed = loop {
        match child.try_wait().unwrap() {
            Some(status) => break !status.success(),
            None if start.elapsed() > DEADLINE => {
                child.kill().unwrap();
                child.wait().unwrap();
                break true;
            }
            None => std::thread::park_timeout(Duration::from_millis(20)),
        }
    };
    let text = std::fs::read_to_string(output.path()).unwrap();
    assert!(!text.contains("running 0 tests"), "no test is named {filters:?}");
    let names = text.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    (failed, names.map(str::to_owned).collect())
}

#[test]
fn each_mistake_is_named_here() {
    let source = include_str!("../../src/bugs.rs");
    let declared: Vec<&str> = source
        .lines()
        .filter_map(|l| l.trim().strip_suffix(',').filter(|w| w.chars().all(|c| c.is_ascii_alphanumeric())))
        .collect();
    let named: Vec<&str> = NOTICED_BY.iter().map(|(bug, _)| *bug).collect();
    assert_eq!(declared, named);
}

#[test]
fn each_mistake_is_noticed_by_the_tests_that_are_for_it() {
    let all = std::env::var("TIDERACE_MISTAKES").is_ok_and(|v| v == "all");
    let filters: Vec<&str> = NOTICED_BY.iter().flat_map(|(_, tests)| tests.iter().copied()).collect();
    let (failed, names) = run("", &filters);
    // What fails with few rounds for counting too little is told by its name only.
    assert!(!failed, "without a mistake these fail: {names:?}");
    let mut unnoticed = Vec::new();
    for (bug, tests) in NOTICED_BY {
        let mut by = Vec::new();
        for test in *tests {
            let (failed, names) = run(bug, &[test]);
            if failed { by.extend(names) } else { unnoticed.push(format!("{bug} by {test}")) }
        }
        if all {
            by = run(bug, &[]).1;
        }
        println!("{bug}: noticed by {} tests: {by:?}", by.len());
    }
    assert!(unnoticed.is_empty(), "not noticed: {unnoticed:?}");
}
