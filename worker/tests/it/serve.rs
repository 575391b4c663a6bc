//! The process of a pod: from its mounted files to its exit.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the operator mounts into a pod.
struct Pod {
    folder: tempfile::TempDir,
}

/// A running process and the lines of its log.
struct Process {
    child: Child,
    lines: Receiver<Value>,
    log: Vec<Value>,
}

impl Pod {
    fn new(sql: &str, secrets: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["job", "tls", "secrets", "work"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let names: serde_json::Map<_, _> =
            secrets.iter().map(|(name, _)| ((*name).to_owned(), json!({"name": "s", "key": "k"}))).collect();
        let job = json!({
            "apiVersion": "tiderace.dev/v1alpha1", "kind": "StreamingJob", "metadata": {"name": "orders"},
            "spec": {"sql": {"configMapKeyRef": {"name": "m", "key": "job.sql"}, "secretRefs": names}, "resources": {"cpu": 1}},
        });
        let pod = Self { folder };
        std::fs::write(pod.path("job/job.yaml"), job.to_string()).unwrap();
        std::fs::write(pod.path("job/job.sql"), sql).unwrap();
        for (name, value) in secrets {
            std::fs::write(pod.path("secrets").join(name), format!("{value}\n")).unwrap();
        }
        let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(pod.path("tls/ca.crt"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
        let leaf = CertificateParams::new(vec!["worker.test".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        std::fs::write(pod.path("tls/tls.crt"), leaf.pem()).unwrap();
        std::fs::write(pod.path("tls/tls.key"), key.serialize_pem()).unwrap();
        pod
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn termination(&self) -> String {
        std::fs::read_to_string(self.path("termination")).unwrap_or_default()
    }

    fn start(&self, epoch: u64, more: &[&str]) -> Process {
        let flag = |name: &str, path: &str| format!("--{name}={}", self.path(path).display());
        let mut child = Command::new(env!("CARGO_BIN_EXE_tiderace"))
            .arg("serve")
            .args([
                flag("job-directory", "job"),
                flag("tls-directory", "tls"),
                flag("secrets-directory", "secrets"),
                flag("work-directory", "work"),
                flag("termination-log", "termination"),
            ])
            .args(["--listen-address=127.0.0.1", "--admin-port=0", "--health-port=0"])
            .arg(format!("--deploy-epoch={epoch}"))
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                // A line that is no JSON is one that no log collector reads.
                let line = serde_json::from_str(&line).unwrap_or_else(|_| json!({"message": "NOT JSON", "line": line}));
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Process { child, lines, log: Vec::new() }
    }
}

impl Process {
    /// Waits for a line whose `key` is `value`.
    fn until(&mut self, key: &str, value: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("no {key}={value} in {:#?}", self.log));
            self.log.push(line.clone());
            if line[key] == value {
                return line;
            }
        }
    }

    fn signal(&self) {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end; the exit code and the whole log.
    fn end(mut self) -> (i32, Vec<Value>) {
        let deadline = Instant::now() + PATIENCE;
        let exit = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status.code().unwrap_or(-1),
                None if Instant::now() > deadline => {
                    self.child.kill().unwrap();
                    panic!("it doesn't end: {:#?}", self.log);
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.log.push(line);
        }
        (exit, std::mem::take(&mut self.log))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended_already: std::io::Result<()> = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let body = text.split_once("\r\n\r\n").unwrap().1.to_owned();
    (text.split(' ').nth(1).unwrap().parse().unwrap(), body)
}

fn endless(out: &Path) -> String {
    format!(
        "CREATE TABLE t (id INT) WITH (connector = 'datagen', 'rows-per-second' = '200', 'fields.id.kind' = 'sequence', \
         'fields.id.start' = '1', 'fields.id.end' = '1000000');\n\
         CREATE TABLE o (id INT) WITH (connector = 'filesystem', path = '{}', format = 'csv');\n\
         INSERT INTO o SELECT id FROM t;",
        out.display()
    )
}

fn bounded(rows: u32) -> String {
    format!(
        "CREATE TABLE t (id INT) WITH (connector = 'datagen', 'number-of-rows' = '{rows}');\n\
         CREATE TABLE o (id INT) WITH (connector = 'blackhole');\nINSERT INTO o SELECT id FROM t;"
    )
}

/// Every row of the finished files of a folder.
fn rows(folder: &Path) -> Vec<u64> {
    let mut rows = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let is_row_file = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| !name.starts_with(['.', '_']));
        if is_row_file && path.is_file() {
            rows.extend(std::fs::read_to_string(path).unwrap().lines().map(|line| line.parse::<u64>().unwrap()));
        }
    }
    rows.sort_unstable();
    rows
}

#[test]
fn sigterm_drains_every_row_that_was_taken_in_and_the_next_pod_runs_the_job() {
    let pod = Pod::new("SELECT 1", &[]);
    std::fs::write(pod.path("job/job.sql"), endless(&pod.path("out"))).unwrap();
    let mut process = pod.start(1, &[]);
    let health = process.until("message", "listening")["health"].as_str().unwrap().to_owned();
    process.until("state", "Running");
    assert_eq!(get(&health, "/readyz").0, 200);
    assert!(get(&health, "/metrics").1.contains("tiderace_rows_in_total{source=\"t\"}"));
    process.signal();
    let (exit, log) = process.end();
    assert_eq!(exit, 0, "{log:#?}");
    let ended = log.iter().find(|line| line["message"] == "the job has ended").unwrap();
    let found = rows(&pod.path("out"));
    assert!(!found.is_empty());
    assert_eq!(found, (1..=ended["rows_in"].as_u64().unwrap()).collect::<Vec<_>>(), "each row once");
    assert!(!log.iter().any(|line| line["message"] == "NOT JSON"), "{log:#?}");

    let mut next = pod.start(1, &[]);
    next.until("state", "Running");
    next.signal();
    assert_eq!(next.end().0, 0, "a pod that was told to go has not ended the job");
}

#[test]
fn a_killed_pod_goes_on_from_its_checkpoint_and_a_changed_job_begins_anew() {
    let pod = Pod::new("SELECT 1", &[]);
    let sql = |insert: &str| {
        let set = "SET 'engine.tick' = '10 ms'; SET 'checkpoint.interval' = '50 ms'; SET 'checkpoint.directory' = 'checkpoints';";
        format!("{set}\n{}{insert}", endless(&pod.path("out")).replace("'200'", "'2000'"))
    };
    std::fs::write(pod.path("job/job.sql"), sql("")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    for (kill, epoch) in [1, 1, 2].into_iter().enumerate() {
        let before = rows(&pod.path("out")).len();
        let mut process = pod.start(epoch, &[]);
        process.until("state", "Running");
        while rows(&pod.path("out")).len() < before + 300 {
            assert!(Instant::now() < deadline, "kill {kill}: {:#?}", process.log);
            std::thread::sleep(Duration::from_millis(5));
        }
        process.child.kill().unwrap();
    }
    let mut last = pod.start(2, &[]);
    last.until("state", "Running");
    last.signal();
    assert_eq!(last.end().0, 0);
    let found = rows(&pod.path("out"));
    assert_eq!(found, (1..=found.len() as u64).collect::<Vec<_>>(), "each row once, over four processes");

    // What is computed has changed: it begins anew, and the old checkpoints are gone.
    let revision =
        || -> Vec<_> { std::fs::read_dir(pod.path("work/checkpoints")).unwrap().map(|e| e.unwrap().file_name()).collect() };
    let old = revision();
    std::fs::write(pod.path("job/job.sql"), sql("\nINSERT INTO o SELECT id + 1000000 FROM t;")).unwrap();
    let mut next = pod.start(3, &[]);
    next.until("state", "Running");
    next.signal();
    assert_eq!(next.end().0, 0);
    let new = revision();
    assert!(old.len() == 1 && new.len() == 1 && old != new, "{old:?} {new:?}");
    assert_eq!(rows(&pod.path("out"))[..2], [1, 1], "from the start");
}

#[test]
fn a_finished_job_is_not_run_again_in_its_deploy_epoch() {
    let pod = Pod::new(&bounded(50), &[]);
    let mut first = pod.start(7, &[]);
    let health = first.until("message", "listening")["health"].as_str().unwrap().to_owned();
    first.until("state", "Finished");
    assert_eq!(get(&health, "/readyz").0, 200, "a job that finished is as it should be");
    drop(first);

    let mut again = pod.start(7, &[]);
    again.until("state", "Finished");
    assert!(!again.log.iter().any(|line| line["message"] == "planned"), "{:#?}", again.log);
    again.signal();
    assert_eq!(again.end().0, 0);

    let mut next = pod.start(8, &[]);
    next.until("message", "planned");
    next.until("state", "Finished");
}

#[test]
fn a_job_that_cannot_run_leaves_its_cause_behind() {
    let table = "CREATE TABLE t (a INT) WITH (connector = 'datagen', 'number-of-rows' = '1');\n";
    for (sql, cause) in [
        (format!("{table}SELECT a,\n  b FROM t"), "TR-1002 line 3, column 3: there is no column `b`"),
        (
            "CREATE TABLE t (a INT) WITH (connector = 'filesystem', path = '/nowhere/at/all', format = 'csv'); SELECT a FROM t"
                .to_owned(),
            "TR-3008: source `t`: there is no file or folder '/nowhere/at/all'",
        ),
    ] {
        let pod = Pod::new(&sql, &[]);
        let process = pod.start(1, &[]);
        let (exit, log) = process.end();
        assert_eq!(exit, 3, "{log:#?}");
        assert!(pod.termination().starts_with(cause), "{}", pod.termination());
        assert!(log.iter().any(|line| line["level"] == "ERROR" && line["code"] == cause[..7]), "{log:#?}");
    }
    let pod = Pod::new("SELECT 1", &[]);
    std::fs::write(pod.path("job/job.yaml"), "kind: StreamingJob\n").unwrap();
    assert_eq!(pod.start(1, &[]).end().0, 3);
    assert!(pod.termination().starts_with("TR-7000: "), "{}", pod.termination());
    std::fs::remove_file(pod.path("tls/tls.key")).unwrap();
    assert_eq!(pod.start(1, &[]).end().0, 3);
    assert!(pod.termination().starts_with("TR-7012: "), "{}", pod.termination());
}

#[test]
fn a_working_directory_has_one_worker() {
    let pod = Pod::new(&endless(Path::new("/unused")), &[]);
    std::fs::write(pod.path("job/job.sql"), endless(&pod.path("out"))).unwrap();
    let mut first = pod.start(1, &[]);
    first.until("state", "Running");
    assert_eq!(pod.start(2, &[]).end().0, 3);
    assert!(pod.termination().starts_with("TR-7011: "), "{}", pod.termination());
    first.signal();
    assert_eq!(first.end().0, 0);
}

#[test]
fn a_secret_reaches_its_option_and_no_message() {
    const VALUE: &str = "/nowhere/s3cr3t-value";
    let sql = |name: &str| {
        format!(
            "CREATE TABLE t (a INT) WITH (connector = 'filesystem', path = SECRET '{name}', format = 'csv'); \
             CREATE TABLE o (a INT) WITH (connector = 'blackhole'); INSERT INTO o SELECT a FROM t"
        )
    };
    let pod = Pod::new(&sql("where"), &[("where", VALUE)]);
    let (exit, log) = pod.start(1, &["--log-filter=trace"]).end();
    assert_eq!(exit, 3, "the path is none");
    let all = format!("{log:?}{}", pod.termination());
    assert!(pod.termination().contains("there is no file or folder 'SECRET 'where''"), "{}", pod.termination());
    assert!(!all.contains("s3cr3t"), "{all}");

    let run = |arguments: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_tiderace")).args(arguments).output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
    };
    let (job, secrets) = (pod.path("job").display().to_string(), pod.path("secrets").display().to_string());
    for arguments in [&["explain", &job, "--secrets", &secrets][..], &["run", &job, "--secrets", &secrets], &["check", &job]] {
        let text = run(arguments);
        assert!(!text.contains("s3cr3t") && !text.contains("TR-7010"), "{arguments:?}: {text}");
    }

    let pod = Pod::new(&sql("other"), &[("where", VALUE)]);
    assert_eq!(pod.start(1, &[]).end().0, 3);
    assert!(pod.termination().starts_with("TR-7010 line 1, column "), "{}", pod.termination());
}

#[test]
fn a_check_for_machines_is_one_line_whatever_is_wrong() {
    let pod = Pod::new("SELECT * FROM\n  missing", &[]);
    let check = || {
        let log = pod.path("termination");
        let out = Command::new(env!("CARGO_BIN_EXE_tiderace"))
            .args(["check", "--format", "json", "--termination-log"])
            .args([log, pod.path("job")])
            .output()
            .unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        assert_eq!(text.trim_end(), pod.termination());
        assert!(out.stderr.is_empty());
        (out.status.code().unwrap(), serde_json::from_str::<Value>(text.trim_end()).unwrap())
    };
    let (exit, reply) = check();
    assert_eq!(
        (exit, &reply["valid"], &reply["errors"][0]["line"], &reply["errors"][0]["column"]),
        (1, &json!(false), &json!(2), &json!(3))
    );
    std::fs::write(pod.path("job/job.sql"), bounded(1)).unwrap();
    let (exit, reply) = check();
    assert_eq!((exit, &reply["valid"]), (0, &json!(true)), "{reply}");
    std::fs::remove_file(pod.path("job/job.yaml")).unwrap();
    assert_eq!(check().1["errors"][0]["code"], "TR-7001");
}

#[test]
fn a_planner_answers_in_plain_http_where_it_has_no_certificates() {
    let pod = Pod::new("SELECT 1", &[]);
    std::fs::remove_dir_all(pod.path("tls")).unwrap();
    std::fs::remove_dir_all(pod.path("job")).unwrap();
    let mut planner = pod.start(0, &["--planner"]);
    let address = planner.until("message", "listening")["health"].as_str().unwrap().to_owned();
    assert_eq!(get(&address, "/readyz").0, 200);
    assert_eq!(get(&address, "/v1/version").0, 200);
    assert_eq!(get(&address, "/v1/status").0, 404);
    planner.signal();
    assert_eq!(planner.end().0, 0);
    assert_eq!(pod.start(0, &[]).end().0, 3, "a worker has certificates");
}
