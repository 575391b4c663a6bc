//! Jobs without an end: how they end all the same.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How long anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const ENDLESS: &str = "CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'datagen', 'rows-per-second' = '5000');\n";

/// A running `tiderace run`, ended at the latest with the test, or when its patience is over.
struct Running(Child, #[expect(dead_code, reason = "dropping it calls the watchdog off")] Sender<()>);

impl Running {
    fn start(folder: &Path, sql: &str) -> Self {
        let job = folder.join("job.sql");
        std::fs::write(&job, sql).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_tiderace"))
            .args(["run", "--log", "json", "--cores", "1"])
            .arg(&job)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (running, ended) = channel::<()>();
        let pid = child.id().to_string();
        std::thread::spawn(move || {
            if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                drop(Command::new("kill").args(["-s", "KILL", &pid]).status());
            }
        });
        Self(child, running)
    }

    /// The lines of stderr, each as JSON.
    fn notes(&mut self) -> impl Iterator<Item = serde_json::Value> + use<> {
        BufReader::new(self.0.stderr.take().unwrap()).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap())
    }

    fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    fn wait(&mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended, as it should have.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn lines_of_files(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|file| std::fs::read_to_string(file).unwrap().lines().count() as u64).sum()
}

#[test]
fn a_signal_drains_an_endless_job_into_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let sink = format!(
        "CREATE TABLE out (n BIGINT) WITH ('connector' = 'filesystem', 'path' = '{}', 'format' = 'csv');\n",
        out.display()
    );
    let mut job = Running::start(folder.path(), &format!("{ENDLESS}{sink}INSERT INTO out SELECT n FROM numbers;"));
    let mut notes = job.notes();
    let is_flowing = |note: &serde_json::Value| note["event"] == "progress" && note["rows_out"].as_u64().unwrap() > 0;
    assert!(notes.any(|note| is_flowing(&note)), "the job ended before a row came out");
    job.signal("TERM");
    let last = notes.last().unwrap();
    assert_eq!(job.wait().code(), Some(0));
    assert_eq!(last["event"], "stopped");
    let taken_in = last["rows_in"].as_u64().unwrap();
    assert!(taken_in > 0);
    assert_eq!((lines_of_files(&out), last["rows_out"].as_u64().unwrap()), (taken_in, taken_in));
    let hidden =
        std::fs::read_dir(&out).unwrap().filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(['.', '_']));
    assert_eq!(hidden.count(), 0, "a part is left unfinished");
}

#[test]
fn a_job_whose_reader_has_gone_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = Running::start(folder.path(), &format!("{ENDLESS}SELECT n FROM numbers;"));
    let mut rows = BufReader::new(job.0.stdout.take().unwrap());
    let mut line = String::new();
    rows.read_line(&mut line).unwrap();
    assert!(line.starts_with("+I["), "{line}");
    drop(rows);
    let notes: Vec<_> = job.notes().collect();
    assert_eq!(job.wait().code(), Some(0), "{notes:?}");
    assert_eq!(notes.last().unwrap()["event"], "stopped", "{notes:?}");
}

#[test]
fn a_job_with_another_sink_goes_on_without_its_reader() {
    let folder = tempfile::tempdir().unwrap();
    let sql = format!(
        "{ENDLESS}CREATE TABLE nothing (n BIGINT) WITH ('connector' = 'blackhole');\nINSERT INTO nothing SELECT n FROM numbers;\nSELECT n FROM numbers;"
    );
    let mut job = Running::start(folder.path(), &sql);
    let mut first = [0; 1];
    job.0.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let mut notes = job.notes();
    let rows_in = |note: serde_json::Value| note["rows_in"].as_u64();
    // Two more looks at it while rows keep coming: it would have ended at the first.
    let seen: Vec<u64> = notes.by_ref().filter_map(rows_in).take(3).collect();
    assert!(seen.len() == 3 && seen[0] < seen[2], "{seen:?}");
    job.signal("INT");
    assert_eq!(notes.last().unwrap()["event"], "stopped");
    assert_eq!(job.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_a_job_that_cannot_drain() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = Running::start(folder.path(), &format!("{ENDLESS}SELECT n FROM numbers;").replace("'5000'", "'500000'"));
    // Nobody reads stdout, but it stays open: the writer is stuck as soon as the pipe is full.
    let mut notes = job.notes();
    let rows_out = notes.by_ref().map(|note| note["rows_out"].as_u64());
    let mut stuck = rows_out.scan(None, |before, now| Some(std::mem::replace(before, now) == now && now > Some(0)));
    assert!(stuck.any(|is_stuck| is_stuck), "the job ended by itself");
    job.signal("TERM");
    assert!(notes.any(|note| note["message"].as_str().is_some_and(|text| text.starts_with("stopping"))));
    job.signal("TERM");
    let last = notes.last().unwrap();
    assert_eq!(job.wait().code(), Some(128 + 15));
    assert_eq!(last["event"], "aborted");
}
