//! The binary as a user meets it: what is on stdout, what on stderr, how it exits.
#![allow(clippy::unwrap_used, reason = "tests")]

mod answers;
mod checkpoints;
mod error_codes;
mod full_disk;
mod serve;
mod stopping;
mod times;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

struct Outcome {
    exit: i32,
    rows: String,
    notes: String,
}

fn tiderace_with(arguments: &[&str], stdin: &str) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tiderace"))
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome { exit: output.status.code().unwrap(), rows: text(output.stdout), notes: text(output.stderr) }
}

fn tiderace(arguments: &[&str]) -> Outcome {
    tiderace_with(arguments, "")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

const EVENTS: &str = "events=engine/tests/data/golden/events.jsonl.gz";
const EXAMPLE: &str = "examples/bids-by-channel.yaml";

const ORDERS: &str = "CREATE TABLE orders (id BIGINT, region STRING, amount DECIMAL(10, 2), at TIMESTAMP(3),
  WATERMARK FOR at AS at - INTERVAL '10' SECOND) WITH (connector = 'filesystem', path = '${path}', format = 'json');\n";

/// A file of orders, and the argument that names it.
fn orders(folder: &Path) -> String {
    let path = folder.join("orders.jsonl");
    let lines = [
        r#"{"id": 1, "region": "north", "amount": 12.50, "at": "2026-01-01 12:00:05"}"#,
        r#"{"id": 2, "region": "south", "amount": 3.00, "at": "2026-01-01 12:00:40"}"#,
        r#"{"id": 3, "region": "north", "amount": 7.25, "at": "2026-01-01 12:01:10"}"#,
        r#"{"id": 4, "region": "north", "amount": 1.00, "at": "2026-01-01 12:00:59"}"#,
    ];
    std::fs::write(&path, lines.join("\n")).unwrap();
    format!("path={}", path.display())
}

#[test]
fn the_example_counts_every_bid_of_the_golden_events() {
    let out = tiderace(&["run", EXAMPLE, "-D", EVENTS]);
    assert_eq!(out.exit, 0, "{}", out.notes);
    let lines: Vec<&str> = out.rows.lines().filter(|line| line.contains(':')).collect();
    let bids: u64 = lines.iter().map(|line| line.split('|').nth(2).unwrap().trim().parse::<u64>().unwrap()).sum();
    // The golden q0 says how many bids there are: golden/SUMMARY.txt.
    assert_eq!((lines.len(), bids), (20, 18_400), "{}", out.rows);
    assert!(out.notes.contains("rows in      20 000"), "{}", out.notes);
}

#[test]
fn the_same_rows_come_out_on_any_number_of_cores() {
    let one = tiderace(&["run", EXAMPLE, "-D", EVENTS, "--cores", "1"]);
    let all = tiderace(&["run", EXAMPLE, "-D", EVENTS]);
    assert_eq!((one.exit, all.exit), (0, 0), "{}{}", one.notes, all.notes);
    assert_eq!(one.rows, all.rows);
}

#[test]
fn rows_are_alone_on_stdout_and_machines_read_stderr() {
    let folder = tempfile::tempdir().unwrap();
    let sql = format!("{ORDERS}SELECT region, amount FROM orders;");
    let out = tiderace_with(&["run", "-", "-D", &orders(folder.path()), "--changes", "--log", "json"], &sql);
    assert_eq!(out.exit, 0, "{}", out.notes);
    assert_eq!(out.rows.lines().count(), 4);
    assert!(out.rows.lines().all(|line| line.starts_with("+I[")), "{}", out.rows);
    let notes: Vec<serde_json::Value> = out.notes.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = notes.last().unwrap();
    assert_eq!((&last["event"], &last["rows_in"], &last["rows_out"]), (&"finished".into(), &4.into(), &4.into()));
}

#[test]
fn a_materialized_view_answers_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let sql =
        format!("{ORDERS}CREATE MATERIALIZED VIEW totals AS SELECT region, sum(amount) AS total FROM orders GROUP BY region;");
    let path = orders(folder.path());
    let query = "SELECT region, total FROM totals ORDER BY total LIMIT 1";
    let out = tiderace_with(&["run", "-", "-D", &path, "--query", query], &sql);
    assert_eq!(out.exit, 0, "{}", out.notes);
    assert!(out.rows.contains(" south  |  3.00\n(1 row)"), "{}", out.rows);
    let unknown = tiderace_with(&["run", "-", "-D", &path, "--query", "SELECT * FROM totalz"], &sql);
    assert_eq!(unknown.exit, 1);
    assert!(
        unknown.rows.is_empty() && unknown.notes.contains("TR-7004") && unknown.notes.contains("totals"),
        "{}",
        unknown.notes
    );
}

#[test]
fn errors_of_the_user_exit_with_1_and_say_where() {
    for (job, stdin, code, place) in [
        ("examples/bids-by-channel.yaml", "", "TR-1010", "bids-by-channel.yaml:22:"),
        ("-", "SELECT FROM;", "TR-1000", "<stdin>:1:"),
        ("-", "SELECT * FROM nowhere;", "TR-1001", "<stdin>:1:"),
        (
            "-",
            "apiVersion: tiderace.dev/v1alpha1\nkind: StreamingJob\nmetadata: {name: a}\nspec: {sqll: {}}\n",
            "TR-7000",
            "<stdin>:4:8",
        ),
        ("no-such-job.sql", "", "TR-7001", "no-such-job.sql"),
    ] {
        for command in ["run", "check"] {
            let out = tiderace_with(&[command, job], stdin);
            assert_eq!(out.exit, 1, "{command} {job}: {}", out.notes);
            assert!(out.notes.contains(code) && out.notes.contains(place), "{command} {job}: {}", out.notes);
            assert!(out.rows.is_empty());
        }
    }
}

#[test]
fn a_job_that_fails_while_it_runs_exits_with_3() {
    let folder = tempfile::tempdir().unwrap();
    let path = orders(folder.path());
    let file = folder.path().join("orders.jsonl");
    let text = std::fs::read_to_string(&file).unwrap() + "\n{\"id\": 5, \"region\": ";
    std::fs::write(&file, text).unwrap();
    let sql = format!("{ORDERS}SELECT region FROM orders;");
    let out = tiderace_with(&["run", "-", "-D", &path], &sql);
    assert_eq!(out.exit, 3, "{}", out.notes);
    assert!(out.notes.contains("TR-3100") && out.notes.contains("failed"), "{}", out.notes);
    let skipping = sql.replace("format = 'json'", "format = 'json', 'on_error' = 'skip'");
    let out = tiderace_with(&["run", "-", "-D", &path], &skipping);
    assert_eq!(out.exit, 0, "{}", out.notes);
    assert!(out.notes.contains("rejected     1") && out.notes.contains("TR-3100"), "{}", out.notes);
}

#[test]
fn wrong_usage_exits_with_2_and_help_with_0() {
    assert_eq!(tiderace(&["run"]).exit, 2);
    assert_eq!(tiderace(&["run", "a.sql", "--cores", "none"]).exit, 2);
    let help = tiderace(&["run", "--help"]);
    assert!(help.exit == 0 && help.rows.contains("Examples:"));
}

#[test]
fn too_many_cores_are_refused() {
    let out = tiderace(&["check", EXAMPLE, "-D", EVENTS, "--cores", "4096"]);
    assert!(out.exit == 1 && out.notes.contains("TR-7005"), "{}", out.notes);
}

#[test]
fn lists_and_plans_go_to_stdout() {
    let plan = tiderace(&["explain", EXAMPLE, "-D", EVENTS, "--format", "json"]);
    assert_eq!(plan.exit, 0, "{}", plan.notes);
    serde_json::from_str::<serde_json::Value>(&plan.rows).unwrap();
    assert!(tiderace(&["explain", EXAMPLE, "-D", EVENTS, "--format", "dot"]).rows.starts_with("digraph"));
    assert!(tiderace(&["functions"]).rows.contains("split_index"));
    assert!(tiderace(&["connectors"]).rows.contains("filesystem"));
    assert!(tiderace(&["connectors", "json"]).rows.contains("max-record-size"));
    assert!(tiderace(&["error", "TR-1001"]).rows.starts_with("# TR-1001"));
    assert!(tiderace(&["completions", "bash"]).rows.contains("complete"));
    assert_eq!(tiderace(&["connectors", "kafkaa"]).exit, 1);
}
