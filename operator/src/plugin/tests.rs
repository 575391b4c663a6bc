//! Every command against an API server of a few answers.
#![allow(clippy::unwrap_used, reason = "tests")]

use clap::Parser;
use serde_json::{Value, json};

use super::cli::Cli;
use super::mock::{self, Call, Calls, job, list, object, pod};
use super::{Outcome, Session, run};

async fn command(session: &Session, words: &[&str]) -> (anyhow::Result<Outcome>, String) {
    let cli = Cli::try_parse_from([&["kubectl-tiderace"], words].concat()).unwrap();
    let mut out = Vec::new();
    let outcome = run(session, cli.command, &mut out).await;
    (outcome, String::from_utf8(out).unwrap())
}

/// What a cluster with one running job says.
fn cluster(call: &Call, before: usize) -> Option<(u16, String)> {
    let path = call.path.split('?').next().unwrap();
    let namespace = "/api/v1/namespaces/shop";
    match path.strip_prefix(namespace).unwrap_or(path) {
        "/apis/tiderace.dev/v1alpha1/namespaces/shop/streamingjobs/orders" => object(&job()),
        "/apis/tiderace.dev/v1alpha1/namespaces/shop/streamingjobs" | "/apis/tiderace.dev/v1alpha1/streamingjobs" => {
            list(&json!([job()]))
        }
        "/pods" => list(&json!([pod()])),
        "/pods/orders-0:8080/proxy/metrics" => Some((200, mock::metrics(before))),
        "/pods/orders-0/log" if call.path.contains("previous=true") => Some((200, "before\n".to_owned())),
        "/pods/orders-0/log" => Some((
            200,
            "{\"timestamp\":\"2026-11-21T19:08:32.3Z\",\"level\":\"INFO\",\"message\":\"state\",\"state\":\"Running\"}\n\
             password = 'hunter2'\n"
                .to_owned(),
        )),
        "/events" => list(&json!([{
            "metadata": {"name": "e"}, "involvedObject": {}, "type": "Normal", "reason": "Running", "message": "rows flow",
            "lastTimestamp": "2026-11-21T18:57:00Z",
        }])),
        "/apis/apps/v1/namespaces/shop/statefulsets" => list(&json!([{
            "metadata": {"name": "orders"},
            "spec": {"replicas": 1, "selector": {}, "serviceName": "s", "template": {}},
            "status": {"replicas": 1, "readyReplicas": 1},
        }])),
        "/persistentvolumeclaims" => list(&json!([{
            "metadata": {"name": "work-orders-0"}, "status": {"phase": "Bound", "capacity": {"storage": "10Gi"}},
        }])),
        "/services" | "/configmaps" | "/apis/policy/v1/namespaces/shop/poddisruptionbudgets" => list(&json!([])),
        "/version" => object(&json!({
            "major": "1", "minor": "36", "gitVersion": "v1.36.2", "gitCommit": "", "gitTreeState": "", "buildDate": "",
            "goVersion": "", "compiler": "", "platform": "",
        })),
        _ => None,
    }
}

fn rates_hidden(text: &str) -> String {
    // Rates depend on how long the two scrapes were apart.
    let mut out = String::new();
    for line in text.lines() {
        let mut line = line.to_owned();
        if let Some(at) = line.find("rows/s in") {
            line = format!("{}… {}", &line[..line.find(|c: char| c.is_ascii_digit()).unwrap()], &line[at..]);
        }
        for unit in ["rows/s out", "/s", " of 2 cores busy"] {
            if let Some(at) = line.find(unit) {
                let start = line[..at].rfind([' ', ',']).map_or(0, |i| i + 1);
                let start = if unit == "rows/s out" { line[..at - 1].rfind(' ').unwrap() + 1 } else { start };
                line.replace_range(start..at, "…");
            }
        }
        out.push_str(&line);
        out.push('\n');
    }
    out
}

#[tokio::test]
async fn status_shows_a_job_with_all_that_belongs_to_it() {
    let (session, _) = mock::session(cluster);
    let (outcome, text) = command(&session, &["status", "orders"]).await;
    assert_eq!(outcome.unwrap(), Outcome::Done);
    insta::assert_snapshot!("status", rates_hidden(&text));
}

#[tokio::test]
async fn status_of_a_job_in_trouble_says_why() {
    let (session, _) = mock::session(|call: &Call, before| {
        let mut sick = job();
        sick["metadata"]["generation"] = json!(8);
        sick["status"]["phase"] = json!("Failed");
        sick["status"]["conditions"] = json!([{
            "type": "Ready", "status": "False", "reason": "Failed", "message": "it can't be planned",
            "lastTransitionTime": "2026-11-21T18:59:30Z",
        }]);
        sick["status"]["plan"] = json!({
            "revision": "r", "image": "i", "valid": false, "message": "TR-1001 line 3, column 7: there is no table `x`",
        });
        sick["status"]["operation"] = json!({
            "id": "o", "type": "Upgrade", "step": "Starting", "targetGeneration": 8, "fromEpoch": 12, "toEpoch": 13,
            "startedAt": "2026-11-21T18:59:00Z", "stepAt": "2026-11-21T18:59:30Z", "attempts": 2, "lastError": "no answer",
        });
        match call.path.split('?').next() {
            Some("/apis/tiderace.dev/v1alpha1/namespaces/shop/streamingjobs/orders") => object(&sick),
            Some("/api/v1/namespaces/shop/pods") => {
                let mut waiting = pod();
                waiting["status"]["phase"] = json!("Pending");
                waiting["status"]["containerStatuses"][0]["ready"] = json!(false);
                waiting["status"]["containerStatuses"][0]["state"] =
                    json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}});
                list(&json!([waiting]))
            }
            Some(path) if path.ends_with("/metrics") => None,
            _ => cluster(call, before),
        }
    });
    let (outcome, text) = command(&session, &["status", "orders"]).await;
    assert_eq!(outcome.unwrap(), Outcome::NotWell);
    insta::assert_snapshot!("status-in-trouble", text);
}

#[tokio::test]
async fn status_without_a_name_lists_jobs() {
    let (session, calls) = mock::session(cluster);
    let (_, text) = command(&session, &["status"]).await;
    insta::assert_snapshot!(text, @r"
    JOB     PHASE    READY  WHY      RESTARTS  ROWS IN  LAG  AGE
    orders  Running  True   Running  1         12 345   2s   2h
    ");
    let (_, text) = command(&session, &["status", "-A"]).await;
    assert!(text.contains("shop/orders"), "{text}");
    assert!(calls.lock().unwrap().last().unwrap().path.starts_with("/apis/tiderace.dev/v1alpha1/streamingjobs"));
}

#[tokio::test]
async fn what_is_not_there_or_not_allowed_is_said_in_words() {
    let (session, _) = mock::session(|_: &Call, _| None);
    let (outcome, _) = command(&session, &["status", "orders"]).await;
    assert_eq!(format!("{:#}", outcome.unwrap_err()), "the StreamingJob shop/orders is not there");
    let (session, _) = mock::session(|_: &Call, _| {
        let status = json!({"kind": "Status", "metadata": {}, "status": "Failure", "message": "no rights", "reason": "Forbidden", "code": 403});
        Some((403, status.to_string()))
    });
    let (outcome, _) = command(&session, &["suspend", "orders"]).await;
    assert!(format!("{:#}", outcome.unwrap_err()).contains("you may not see or change the StreamingJob shop/orders: no rights"));
}

#[tokio::test]
async fn top_shows_rates_of_workers() {
    let (session, _) = mock::session(cluster);
    let (_, text) = command(&session, &["top"]).await;
    let row: Vec<&str> = text.lines().nth(1).unwrap().split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    assert_eq!((row[0], row[4], row[5], row[6]), ("orders-0", "2.2 KiB", "614.4 MiB", "1.2s"), "{text}");
    assert!(row[3].ends_with("of 2") && row[1].parse::<f64>().unwrap() > 0.0, "{text}");
}

fn patches(calls: &Calls) -> Vec<Value> {
    calls.lock().unwrap().iter().filter(|call| call.method == "PATCH").map(|call| call.body.clone()).collect()
}

#[tokio::test]
async fn suspend_waits_until_the_job_is_suspended() {
    let (session, calls) = mock::session(|call: &Call, before| {
        let mut job = job();
        job["spec"]["state"] = json!("Suspended");
        job["metadata"]["generation"] = json!(8);
        job["metadata"]["managedFields"] = json!([{"manager": "argocd-controller"}]);
        if before > 2 {
            job["status"]["observedGeneration"] = json!(8);
            job["status"]["conditions"][0]["reason"] = json!("Suspended");
        }
        (call.path.contains("streamingjobs/orders")).then(|| (200, job.to_string()))
    });
    let (outcome, text) = command(&session, &["suspend", "orders"]).await;
    assert_eq!(outcome.unwrap(), Outcome::Done);
    assert!(text.contains("argocd-controller applies this job") && text.ends_with("shop/orders: suspended\n"), "{text}");
    assert_eq!(patches(&calls), [json!({"spec": {"state": "Suspended"}})]);
}

#[tokio::test]
async fn resume_that_stalls_says_why() {
    let (session, _) = mock::session(|call: &Call, _| {
        let mut job = job();
        job["status"]["conditions"] = json!([
            {"type": "Ready", "status": "False", "reason": "Failed", "message": "", "lastTransitionTime": "2026-11-21T18:59:30Z"},
            {"type": "Stalled", "status": "True", "reason": "PodUnschedulable", "message": "no node has 2 cores", "lastTransitionTime": "2026-11-21T18:59:30Z"},
        ]);
        (call.path.contains("streamingjobs/orders")).then(|| (200, job.to_string()))
    });
    let (outcome, text) = command(&session, &["resume", "orders"]).await;
    assert_eq!(outcome.unwrap(), Outcome::NotWell);
    assert!(text.contains("PodUnschedulable: no node has 2 cores"), "{text}");
}

#[tokio::test]
async fn restart_writes_the_annotation_and_refuses_a_suspended_job() {
    let (session, calls) = mock::session(|call: &Call, _| {
        let mut job = job();
        job["status"]["restartNonce"] = json!("2026-11-21T19:00:00Z");
        (call.path.contains("streamingjobs/orders")).then(|| (200, job.to_string()))
    });
    let (outcome, text) = command(&session, &["restart", "orders"]).await;
    assert_eq!(outcome.unwrap(), Outcome::Done, "{text}");
    assert_eq!(patches(&calls), [json!({"metadata": {"annotations": {"tiderace.dev/restart": "2026-11-21T19:00:00Z"}}})]);
    let (session, calls) = mock::session(|_: &Call, _| {
        let mut job = job();
        job["spec"]["state"] = json!("Suspended");
        object(&job)
    });
    let (outcome, _) = command(&session, &["restart", "orders"]).await;
    assert!(outcome.unwrap_err().to_string().contains("kubectl tiderace resume orders"));
    assert!(patches(&calls).is_empty());
}

#[tokio::test]
async fn logs_are_text_unless_raw_is_asked_for() {
    let (session, calls) = mock::session(cluster);
    let (_, text) = command(&session, &["logs", "orders"]).await;
    assert!(text.starts_with("19:08:32 INFO  state  state=Running\n"), "{text}");
    let (_, raw) = command(&session, &["logs", "orders", "--raw"]).await;
    assert!(raw.starts_with("{\"timestamp\""), "{raw}");
    let (_, previous) = command(&session, &["logs", "orders", "--previous"]).await;
    assert_eq!(previous, "before\n");
    let last = calls.lock().unwrap().last().unwrap().path.clone();
    assert!(last.contains("container=worker") && last.contains("tailLines=200"), "{last}");
}

/// Writes a manifest and gives its path.
fn manifest(folder: &tempfile::TempDir, sql: &str) -> String {
    let path = folder.path().join("job.yaml");
    let text = format!(
        "apiVersion: tiderace.dev/v1alpha1\nkind: StreamingJob\nmetadata: {{name: orders}}\nspec:\n  sql:\n    inline: |\n      {sql}\n"
    );
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn check_plans_in_a_pod_of_the_jobs_image_and_cleans_up() {
    let reply = json!({
        "valid": false, "engineVersion": "0.1.0",
        "errors": [{"code": "TR-1001", "message": "there is no table `x`", "hint": "there are: t", "line": 3, "column": 7}],
    });
    let (session, calls) = mock::session(move |call: &Call, before| match (call.method.as_str(), call.path.split('?').next()?) {
        ("POST", _) => {
            let mut made = call.body.clone();
            made["metadata"]["uid"] = json!("pod-uid");
            Some((201, made.to_string()))
        }
        ("GET", path) if path.ends_with("/log") => Some((200, format!("some note\n{reply}\n"))),
        ("GET", path) if path.contains("/pods/orders-plan-") => {
            let phase = if before < 5 { "Pending" } else { "Failed" };
            object(&json!({"metadata": {"name": "p"}, "spec": {"containers": []}, "status": {"phase": phase}}))
        }
        ("DELETE", _) => object(&json!({"metadata": {"name": "p"}, "spec": {"containers": []}})),
        _ => cluster(call, before),
    });
    let folder = tempfile::tempdir().unwrap();
    let (outcome, text) = command(&session, &["check", "-f", &manifest(&folder, "SELECT * FROM x")]).await;
    assert_eq!(outcome.unwrap(), Outcome::NotWell);
    insta::assert_snapshot!(text, @r"
    error TR-1001 at line 3, column 7 of the SQL: there is no table `x`
      hint: there are: t
    orders: can't be run; 1 errors, engine 0.1.0
    ");
    let calls = calls.lock().unwrap().clone();
    let made: Vec<_> = calls.iter().filter(|call| call.method == "POST").collect();
    let pod = &made[0].body;
    assert_eq!(pod["spec"]["containers"][0]["image"], "example/tiderace:1", "the image that the job runs with");
    assert_eq!(pod["spec"]["containers"][0]["args"], json!(["check", "--format", "json", "/etc/tiderace/job"]));
    assert!(pod["metadata"]["labels"].get("tiderace.dev/job").is_none(), "the operator would take it for a worker");
    let map = &made[1].body;
    assert_eq!(map["metadata"]["ownerReferences"][0]["uid"], "pod-uid");
    assert!(map["data"]["job.yaml"].as_str().unwrap().contains("SELECT * FROM x"));
    assert_eq!(calls.last().unwrap().method, "DELETE");
}

#[tokio::test]
async fn a_pod_that_cannot_start_is_deleted_and_its_reason_told() {
    let (session, calls) = mock::session(|call: &Call, before| match (call.method.as_str(), call.path.as_str()) {
        ("POST", _) => Some((201, call.body.to_string())),
        ("GET", path) if path.contains("/pods/orders-plan-") => object(&json!({
            "metadata": {"name": "p"}, "spec": {"containers": []},
            "status": {"phase": "Pending", "containerStatuses": [{
                "name": "plan", "ready": false, "restartCount": 0, "image": "", "imageID": "",
                "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}},
            }]},
        })),
        ("DELETE", _) => object(&json!({"metadata": {"name": "p"}, "spec": {"containers": []}})),
        _ => cluster(call, before),
    });
    let (outcome, _) = command(&session, &["explain", "orders", "--image", "wrong"]).await;
    assert!(outcome.unwrap_err().to_string().contains("ErrImagePull: no such image"));
    assert_eq!(calls.lock().unwrap().last().unwrap().method, "DELETE");
}

#[tokio::test]
async fn a_manifest_that_no_cluster_takes_is_told_without_one() {
    let (session, calls) = mock::session(cluster);
    let folder = tempfile::tempdir().unwrap();
    let path = manifest(&folder, "SELECT 1");
    let text = std::fs::read_to_string(&path).unwrap() + "  replicaz: 3\n";
    std::fs::write(&path, text).unwrap();
    let (outcome, text) = command(&session, &["check", "-f", &path]).await;
    assert_eq!(outcome.unwrap(), Outcome::NotWell);
    assert!(text.starts_with("error at line 8, column 3: there is no field spec.replicaz"), "{text}");
    assert!(calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_report_has_everything_but_credentials() {
    let (session, _) = mock::session(cluster);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.tar.gz");
    let (outcome, text) = command(&session, &["report", "orders", "-o", &path.display().to_string()]).await;
    assert_eq!(outcome.unwrap(), Outcome::Done);
    assert!(text.contains("not in it: the operator's log"), "{text}");
    let done = std::process::Command::new("tar").arg("-xzf").arg(&path).current_dir(folder.path()).status().unwrap();
    assert!(done.success());
    let mut all = String::new();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder.path().join("report")).unwrap() {
        let path = entry.unwrap().path();
        names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        all.push_str(&std::fs::read_to_string(&path).unwrap());
    }
    for wanted in [
        "about.txt",
        "job.json",
        "pods.json",
        "events.json",
        "log-orders-0-worker.txt",
        "log-orders-0-worker-previous.txt",
        "metrics-orders-0.txt",
    ] {
        assert!(names.iter().any(|name| name == wanted), "{wanted} is not in {names:?}");
    }
    assert!(!all.contains("hunter2"), "a password got out");
    assert!(all.contains("v1.36.2") && all.contains("SELECT 1"));
}
