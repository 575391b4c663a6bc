//! The admin API and the probes over real sockets, with real certificates.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tiderace_crds::admin::{EPOCH_HEADER, REQUEST_BYTES_MAX, StatusReply, TOKEN_HEADER, WorkerState};
use tiderace_engine::runtime::{Job, JobOptions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use super::health::{self, Health};
use super::host::{Host, Planned};
use super::listener::{self, Limits};
use super::tls::Certificates;
use super::{Requests, admin, answer};
use crate::job_file::{JobFile, SourceText};
use crate::planning::{self, Given};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, PEM.
struct Identity {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn issue(&self, usage: ExtendedKeyUsagePurpose) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["worker.test".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    fn server_files(&self, folder: &Path) {
        let identity = self.issue(ExtendedKeyUsagePurpose::ServerAuth);
        std::fs::write(folder.join("ca.crt"), &self.pem).unwrap();
        std::fs::write(folder.join("tls.crt"), &identity.certificate).unwrap();
        std::fs::write(folder.join("tls.key"), &identity.key).unwrap();
    }

    fn client(&self, identity: Option<&Identity>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        match identity {
            Some(identity) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap(),
                )
                .unwrap(),
            None => builder.with_no_client_auth(),
        }
    }
}

/// A worker of deploy epoch 3, its sockets and who may call it.
struct Worker {
    admin: SocketAddr,
    health: SocketAddr,
    host: Arc<Host>,
    certificates: Arc<Certificates>,
    authority: Authority,
    client: ClientConfig,
    folder: tempfile::TempDir,
    over: watch::Sender<bool>,
}

impl Worker {
    async fn start(limits: Limits, time_max: Duration) -> Self {
        let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
        authority.server_files(folder.path());
        let certificates = Certificates::load(folder.path()).unwrap();
        let client = authority.client(Some(&authority.issue(ExtendedKeyUsagePurpose::ClientAuth)));
        let host = Arc::new(Host::new("orders", 3));
        let requests = Requests::default();
        let bind = || listener::bind(Some([127, 0, 0, 1].into()), 0);
        let (admin_listener, health_listener) = (bind().await.unwrap(), bind().await.unwrap());
        let (admin, health) = (admin_listener.local_addr().unwrap(), health_listener.local_addr().unwrap());
        let (over, shutdown) = watch::channel(false);
        let facts = Health {
            host: Some(host.clone()),
            requests: requests.clone(),
            certificates: Some(certificates.clone()),
            started_ms: 0,
        };
        let plain = answer::finished(health::routes(facts), requests.clone());
        tokio::spawn(listener::serve(health_listener, None, plain, limits, shutdown.clone()));
        let router = admin::router(Some(host.clone()), requests, time_max);
        tokio::spawn(listener::serve(admin_listener, Some(certificates.clone()), router, limits, shutdown));
        Self { admin, health, host, certificates, authority, client, folder, over }
    }

    async fn with_defaults() -> Self {
        Self::start(Limits::default(), PATIENCE).await
    }

    /// A call of the operator's; its status and its JSON.
    async fn call(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, Value) {
        let stream = connect(self.admin, &self.client).await.unwrap();
        let (status, text) = http(stream, method, path, headers, body).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.call("GET", path, "", b"").await
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.call("POST", path, "", body.to_string().as_bytes()).await
    }

    async fn plain(&self, path: &str) -> (u16, String) {
        http(TcpStream::connect(self.health).await.unwrap(), "GET", path, "", b"").await
    }

    /// Runs a job on a thread; it ends when it is told to.
    fn run(&self, sql: &str) -> std::thread::JoinHandle<()> {
        let text = format!(
            "apiVersion: tiderace.dev/v1alpha1\nkind: StreamingJob\nmetadata: {{name: orders}}\nspec:\n  sql: {{inline: {}}}\n",
            json!(sql)
        );
        let file = JobFile::from_manifest(SourceText { name: "job.yaml".to_owned(), text }).unwrap();
        let plan = planning::plan(&file, &Given::default(), 1, false).unwrap();
        let kept = Planned::kept(&plan.graph);
        let planned = Planned { plan_hash: "sha256:x".to_owned(), cores: 1, budget_bytes: 1 << 24, kept };
        let host = self.host.clone();
        std::thread::spawn(move || {
            let options = JobOptions { memory_bytes: 1 << 24, pin: false, interval_ms: 20, ..JobOptions::default() };
            host.run(planned, || Job::start(plan.graph.clone(), options), |_| {});
        })
    }

    async fn until(&self, state: WorkerState) {
        let mut follow = self.host.follow();
        tokio::time::timeout(PATIENCE, follow.wait_for(|now| *now == state)).await.unwrap().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.over.send_replace(true);
    }
}

async fn connect(address: SocketAddr, client: &ClientConfig) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("worker.test").unwrap();
    let mut stream = TlsConnector::from(Arc::new(client.clone())).connect(name, stream).await?;
    // With TLS 1.3 the client learns that its certificate was refused when it first reads.
    stream.flush().await?;
    Ok(stream)
}

async fn http(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> (u16, String) {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: worker.test\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server that refuses a body by its length need not read it.
    let _refused: std::io::Result<()> = stream.write_all(body).await;
    answer(stream).await
}

async fn answer(mut stream: impl AsyncRead + Unpin) -> (u16, String) {
    let mut bytes = Vec::new();
    let _cut: Result<std::io::Result<usize>, _> = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    // Bodies here have a length, never chunks.
    (status, body.to_owned())
}

const ENDLESS: &str = "CREATE TABLE t (a INT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '1' SECOND) \
                       WITH (connector = 'datagen', 'rows-per-second' = '500'); \
                       CREATE TABLE o (a INT, n BIGINT) WITH (connector = 'blackhole'); \
                       INSERT INTO o SELECT a % 10, count(*) FROM t GROUP BY a % 10";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_certificate_of_the_jobs_authority_is_refused() {
    let worker = Worker::with_defaults().await;
    assert_eq!(worker.get("/v1/version").await.0, 200);
    let stranger = Authority::new();
    let foreign = stranger.issue(ExtendedKeyUsagePurpose::ClientAuth);
    let server = worker.authority.issue(ExtendedKeyUsagePurpose::ServerAuth);
    for (what, client) in [
        ("no certificate", worker.authority.client(None)),
        ("one of another authority", worker.authority.client(Some(&foreign))),
        ("one that isn't a client's", worker.authority.client(Some(&server))),
    ] {
        let refused = match connect(worker.admin, &client).await {
            Err(_) => true,
            Ok(mut stream) => {
                let _maybe_gone: std::io::Result<()> = stream.write_all(b"GET /v1/version HTTP/1.1\r\nHost: a\r\n\r\n").await;
                let mut one = [0];
                !matches!(stream.read(&mut one).await, Ok(1))
            }
        };
        assert!(refused, "{what}");
    }
    assert!(
        connect(worker.admin, &stranger.client(Some(&foreign))).await.is_err(),
        "the client refuses a server of another authority"
    );
    let plain = http(TcpStream::connect(worker.admin).await.unwrap(), "GET", "/v1/version", "", b"").await;
    assert_ne!(plain.0, 200, "plain HTTP on the port of the API");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_certificates_are_taken_and_damaged_ones_are_not() {
    let worker = Worker::with_defaults().await;
    assert!(!worker.certificates.look().unwrap());
    std::fs::write(worker.folder.path().join("tls.key"), "nonsense").unwrap();
    let refused = worker.certificates.look().unwrap_err();
    assert_eq!(refused.code, tiderace_engine::error::Code::Certificates);
    assert_eq!(worker.get("/v1/version").await.0, 200, "the old ones stay");

    let next = Authority::new();
    next.server_files(worker.folder.path());
    assert!(worker.certificates.look().unwrap());
    assert!(connect(worker.admin, &worker.client).await.is_err(), "the old authority is no longer known");
    let client = next.client(Some(&next.issue(ExtendedKeyUsagePurpose::ClientAuth)));
    let stream = connect(worker.admin, &client).await.unwrap();
    assert_eq!(http(stream, "GET", "/v1/version", "", b"").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_another_deploy_epoch_is_refused() {
    let worker = Worker::with_defaults().await;
    let header = |epoch: &str| format!("{EPOCH_HEADER}: {epoch}\r\n");
    assert_eq!(worker.call("GET", "/v1/status", &header("3"), b"").await.0, 200);
    for (epoch, status, code) in [("2", 409, "TR-7014"), ("4", 409, "TR-7014"), ("x", 400, "TR-7015")] {
        let (found, reply) = worker.call("GET", "/v1/status", &header(epoch), b"").await;
        assert_eq!((found, reply["error"]["code"].as_str()), (status, Some(code)), "{epoch}");
    }
    let (status, reply) = worker.post("/v1/stop", &json!({"operationId": "a", "epoch": 2, "mode": "Cancel"})).await;
    assert_eq!((status, reply["error"]["code"].as_str()), (409, Some("TR-7014")));
    assert_eq!(worker.host.state(), WorkerState::Starting, "an order of another epoch does nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_of_an_operator_that_leads_no_more_is_refused() {
    let worker = Worker::with_defaults().await;
    let work = tempfile::tempdir().unwrap();
    worker.host.keep_token_in(work.path()).unwrap();
    let header = |token: &str| format!("{TOKEN_HEADER}: {token}\r\n");
    assert_eq!(worker.call("GET", "/v1/status", &header("5"), b"").await.0, 200);
    let order = json!({"operationId": "a", "epoch": 3, "mode": "Cancel"}).to_string();
    let (status, reply) = worker.call("POST", "/v1/stop", &header("4"), order.as_bytes()).await;
    assert_eq!((status, reply["error"]["code"].as_str()), (409, Some("TR-7016")), "{reply}");
    assert_eq!(worker.call("POST", "/v1/stop", &header("x"), order.as_bytes()).await.0, 400);
    assert_eq!(worker.host.state(), WorkerState::Starting);
    assert_eq!(worker.host.status().operation_id, None, "an order that is refused does nothing");
    assert_eq!(worker.call("GET", "/v1/status", &header("4"), b"").await.0, 200, "reading does no harm");

    // A process after this one, on the same volume.
    let next = Worker::with_defaults().await;
    next.host.keep_token_in(work.path()).unwrap();
    assert_eq!(next.call("POST", "/v1/stop", &header("4"), order.as_bytes()).await.0, 409);
    assert_eq!(next.call("POST", "/v1/stop", &header("5"), order.as_bytes()).await.0, 202);
    assert_eq!(next.host.status().operation_id.as_deref(), Some("a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_ready_while_it_runs_and_stops_as_it_is_told() {
    let worker = Worker::with_defaults().await;
    assert_eq!(worker.plain("/readyz").await, (503, "Starting\n".to_owned()));
    assert_eq!(worker.plain("/startupz").await.0, 503);
    assert_eq!(worker.plain("/livez").await.0, 200);
    let thread = worker.run(ENDLESS);
    worker.until(WorkerState::Running).await;
    for probe in ["/readyz", "/startupz", "/livez"] {
        assert_eq!(worker.plain(probe).await.0, 200, "{probe}");
    }
    let order = json!({"operationId": "stop-1", "epoch": 3, "mode": "Drain"});
    let (status, reply) = worker.post("/v1/stop", &order).await;
    assert_eq!((status, reply["operationId"].as_str()), (202, Some("stop-1")));
    worker.until(WorkerState::Stopped).await;
    thread.join().unwrap();
    let (_, reply) = worker.get("/v1/status").await;
    let reply: StatusReply = serde_json::from_value(reply).unwrap();
    assert_eq!((reply.job.as_str(), reply.epoch, reply.state, reply.cores), ("orders", 3, WorkerState::Stopped, 1));
    assert!(reply.rows_in > 0 && reply.lag_ms.is_some() && reply.state_budget_bytes > 0, "{reply:?}");
    assert_eq!(worker.post("/v1/stop", &order).await.0, 202, "the same order again");
    assert_eq!(worker.host.state(), WorkerState::Stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_to_stop_that_comes_before_the_job_keeps_it_from_running() {
    let worker = Worker::with_defaults().await;
    worker.post("/v1/stop", &json!({"operationId": "early", "epoch": 3, "mode": "Drain"})).await;
    worker.run(ENDLESS).join().unwrap();
    assert_eq!(worker.host.state(), WorkerState::Stopped);
    assert_eq!(worker.host.status().rows_in, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_rows_are_counted_where_people_look() {
    let worker = Worker::with_defaults().await;
    let input = worker.folder.path().join("rows.csv");
    std::fs::write(&input, "1\nx\n3\ny\n").unwrap();
    let sql = format!(
        "SET on_error = skip; CREATE TABLE t (a INT) WITH (connector = 'filesystem', path = '{}', format = 'csv'); \
         CREATE TABLE o (a INT) WITH (connector = 'blackhole'); INSERT INTO o SELECT a FROM t",
        input.display()
    );
    worker.run(&sql).join().unwrap();
    assert_eq!(worker.host.state(), WorkerState::Finished);
    let status = worker.host.status();
    assert_eq!((status.rows_in, status.rows_out, status.rows_dropped), (4, 2, 2));
    let (_, reply) = worker.get("/v1/exceptions").await;
    assert_eq!(
        (&reply["exceptions"][0]["count"], &reply["exceptions"][0]["problem"]["code"]),
        (&json!(2), &json!("TR-3105")),
        "{reply}"
    );
    let first = &reply["exceptions"][0];
    assert_eq!(first["operator"], "t");
    assert!(first["occurrences"][0]["count"].as_u64().unwrap() >= 1, "{first}");
    let message = first["problem"]["message"].as_str().unwrap();
    assert!(message.contains("rows.csv, line 4)"), "the last bad row's place: {message}");
    let page = worker.plain("/metrics").await.1;
    assert!(page.contains("tiderace_rows_dropped_total{cause=\"TR-3105\",node=\"t\"} 2\n"), "{page}");
    assert!(page.contains("tiderace_job_state{state=\"Finished\"} 1\n"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_fails_says_why() {
    let worker = Worker::with_defaults().await;
    let sql = "CREATE TABLE t (a INT) WITH (connector = 'filesystem', path = '/nowhere/at/all', format = 'csv'); \
               CREATE TABLE o (a INT) WITH (connector = 'blackhole'); INSERT INTO o SELECT a FROM t";
    worker.run(sql).join().unwrap();
    let (_, status) = worker.get("/v1/status").await;
    assert_eq!((status["state"].as_str(), status["error"]["code"].as_str()), (Some("Failed"), Some("TR-3008")), "{status}");
    assert_eq!(worker.plain("/readyz").await.0, 503);
    assert_eq!(worker.plain("/livez").await.0, 200, "a job that failed is no reason for the kubelet to kill the process");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_after_a_failure_tells_of_it() {
    let failing = "CREATE TABLE t (a INT) WITH (connector = 'filesystem', path = '/nowhere/at/all', format = 'csv'); \
                   CREATE TABLE o (a INT) WITH (connector = 'blackhole'); INSERT INTO o SELECT a FROM t";
    let work = tempfile::tempdir().unwrap();
    for processes in 1..=3_usize {
        let worker = Worker::with_defaults().await;
        worker.host.keep_exceptions_in(work.path());
        worker.run(failing).join().unwrap();
        let (status, reply) = worker.get("/v1/exceptions").await;
        let failures = &reply["exceptions"][0];
        assert_eq!((status, failures["problem"]["code"].as_str()), (200, Some("TR-3008")), "{reply}");
        assert_eq!((failures["count"].as_u64(), failures.get("operator")), (Some(processes as u64), None), "{reply}");
        let occurrences = failures["occurrences"].as_array().unwrap();
        assert_eq!(occurrences.len(), processes, "each failure is one: {reply}");
        assert!(occurrences.iter().all(|o| o["epoch"] == 3 && o["message"].as_str().unwrap().contains("/nowhere/at/all")));
        assert_eq!((&failures["firstMs"], &failures["atMs"]), (&occurrences[0]["firstMs"], &occurrences[processes - 1]["atMs"]));

        let later = failures["atMs"].as_i64().unwrap() + 1;
        let (_, reply) = worker.get(&format!("/v1/exceptions?since={later}")).await;
        assert_eq!((&reply["exceptions"], &reply["truncated"]), (&json!([]), &json!(false)));
        for bad in ["since=yesterday", "since=", "max=3", "since"] {
            let (status, reply) = worker.get(&format!("/v1/exceptions?{bad}")).await;
            assert_eq!((status, reply["error"]["code"].as_str()), (400, Some("TR-7015")), "{bad}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_of_a_job_is_in_the_table_and_the_page_is_well_formed() {
    let worker = Worker::with_defaults().await;
    let thread = worker.run(ENDLESS);
    worker.until(WorkerState::Running).await;
    assert_eq!(worker.plain("/livez").await.0, 200);
    let (_, page) = worker.plain("/metrics").await;
    worker.host.stop(None, tiderace_crds::admin::StopMode::Cancel);
    thread.join().unwrap();
    let mut found = std::collections::BTreeSet::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let value = line.rsplit(' ').next().unwrap();
        assert!(super::METRICS.iter().any(|spec| spec.name == name), "{name} is not in the table");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        found.insert(name.to_owned());
    }
    for wanted in [
        "tiderace_build_info",
        "tiderace_job_info",
        "tiderace_job_state",
        "tiderace_rows_in_total",
        "tiderace_rows_out_total",
        "tiderace_watermark_timestamp_seconds",
        "tiderace_lag_seconds",
        "tiderace_state_bytes",
        "tiderace_state_budget_bytes",
        "tiderace_core_busy_seconds_total",
        "tiderace_epochs_total",
        "tiderace_http_requests_total",
    ] {
        assert!(found.contains(wanted), "{wanted} is not on the page of a running job");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_check_tells_line_and_column() {
    let worker = Worker::with_defaults().await;
    let job = |sql: &str| {
        json!({"job": {
            "apiVersion": "tiderace.dev/v1alpha1", "kind": "StreamingJob", "metadata": {"name": "a"}, "spec": {"sql": {"inline": sql}},
        }})
    };
    let table = "CREATE TABLE t (a INT) WITH (connector = 'datagen', 'number-of-rows' = '1');\n";
    let (status, reply) = worker.post("/v1/plan:check", &job(&format!("{table}SELECT a,\n  b FROM t"))).await;
    assert_eq!(status, 200);
    assert_eq!(
        (&reply["valid"], &reply["errors"][0]["line"], &reply["errors"][0]["column"]),
        (&json!(false), &json!(3), &json!(3)),
        "{reply}"
    );
    let (_, reply) = worker.post("/v1/plan:check", &job(&format!("{table}SELECT a FROM t"))).await;
    assert_eq!(reply["valid"], json!(true), "{reply}");
    assert!(reply["planHash"].as_str().unwrap().starts_with("sha256:"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_megabyte_of_sql_gets_an_answer_and_more_is_refused() {
    let worker = Worker::with_defaults().await;
    let job = json!({
        "apiVersion": "tiderace.dev/v1alpha1", "kind": "StreamingJob", "metadata": {"name": "a"},
        "spec": {"sql": {"configMapKeyRef": {"name": "m", "key": "k"}}},
    });
    let mut sql = "SELECT 1;".to_owned();
    sql.push_str(&format!("-- {}\n", "x".repeat(1000)).repeat(1000));
    sql.push_str("SELECT * FROM missing");
    assert!(sql.len() > 1_000_000);
    let (status, reply) = worker.post("/v1/plan:check", &json!({"job": job, "sql": sql})).await;
    assert_eq!(
        (status, reply["errors"][0]["code"].as_str(), reply["errors"][0]["line"].as_u64()),
        (200, Some("TR-1001"), Some(1001)),
        "{reply}"
    );
    let inline = json!({
        "apiVersion": "tiderace.dev/v1alpha1", "kind": "StreamingJob", "metadata": {"name": "a"}, "spec": {"sql": {"inline": sql}},
    });
    let (status, reply) = worker.post("/v1/plan:check", &json!({"job": inline})).await;
    assert_eq!((status, &reply["valid"]), (200, &json!(false)), "the schema's bound on inline statements");
    let (status, _) = worker.call("POST", "/v1/plan:check", "", &vec![b' '; REQUEST_BYTES_MAX + 1]).await;
    assert_eq!(status, 413);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_said_in_json() {
    let worker = Worker::with_defaults().await;
    for (method, path, body, status) in [
        ("GET", "/v1/nothing", "", 404),
        ("GET", "/metrics", "", 404),
        ("DELETE", "/v1/status", "", 405),
        ("POST", "/v1/stop", "", 400),
        ("POST", "/v1/stop", "{\"operationId\":\"\",\"epoch\":3,\"mode\":\"Drain\"}", 400),
        ("POST", "/v1/stop", "{\"operationId\":\"a\",\"epoch\":3,\"mode\":\"Sideways\"}", 400),
        ("POST", "/v1/plan:check", "[]", 400),
    ] {
        let (found, reply) = worker.call(method, path, "", body.as_bytes()).await;
        assert_eq!((found, reply["error"]["code"].as_str()), (status, Some("TR-7015")), "{method} {path} {body}: {reply}");
    }
    assert_eq!(worker.plain("/v1/status").await.0, 404, "the plain port has no admin API");
    assert_eq!(worker.get("/openapi.json").await.1["openapi"], json!("3.1.0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planner_plans_and_nothing_else() {
    let router = admin::router(None, Requests::default(), PATIENCE);
    let listener = listener::bind(Some([127, 0, 0, 1].into()), 0).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (over, shutdown) = watch::channel(false);
    let served = tokio::spawn(listener::serve(listener, None, router, Limits::default(), shutdown));
    let ask = |method: &'static str, path: &'static str| async move {
        http(TcpStream::connect(address).await.unwrap(), method, path, "", b"{}").await.0
    };
    assert_eq!(ask("GET", "/v1/version").await, 200);
    assert_eq!(ask("POST", "/v1/plan:check").await, 400);
    for path in ["/v1/status", "/v1/exceptions"] {
        assert_eq!(ask("GET", path).await, 404, "{path}");
    }
    assert_eq!(ask("POST", "/v1/stop").await, 404);
    over.send_replace(true);
    tokio::time::timeout(PATIENCE, served).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_dawdles_is_cut_off() {
    let quick = Duration::from_millis(200);
    let limits = Limits { connections_max: 4, handshake: quick, head: quick, ..Limits::default() };
    let worker = Worker::start(limits, quick).await;
    // No handshake.
    let mut silent = TcpStream::connect(worker.admin).await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, silent.read_to_end(&mut rest)).await.unwrap().unwrap();
    // Half a head.
    let mut half = TcpStream::connect(worker.health).await.unwrap();
    half.write_all(b"GET /livez HTTP/1.1\r\nHost").await.unwrap();
    let (status, _) = tokio::time::timeout(PATIENCE, answer(half)).await.unwrap();
    assert!(status == 408 || status == 0, "{status}");
    // Half a body.
    let mut stream = connect(worker.admin, &worker.client).await.unwrap();
    stream.write_all(b"POST /v1/stop HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{").await.unwrap();
    let (status, _) = tokio::time::timeout(PATIENCE, answer(stream)).await.unwrap();
    assert_eq!(status, 408);
    // More at once than there is room for: who comes later is served when the dawdlers are gone.
    let mut dawdlers = Vec::new();
    for _ in 0..8 {
        dawdlers.push(TcpStream::connect(worker.health).await.unwrap());
    }
    assert_eq!(worker.plain("/livez").await.0, 200);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes in as a body gets an answer of the documented form, and the worker lives on.
    #[test]
    fn no_body_brings_the_worker_down(
        path in prop::sample::select(vec!["/v1/stop", "/v1/plan:check"]),
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "[{}\\[\\]\",:a-z0-9 ]{0,80}".prop_map(String::into_bytes),
            ("[ -~]{0,60}", "[a-z]{0,20}").prop_map(|(sql, name)| json!({"job": {
                "apiVersion": "tiderace.dev/v1alpha1", "kind": "StreamingJob", "metadata": {"name": name}, "spec": {"sql": {"inline": sql}},
            }}).to_string().into_bytes()),
            ("[ -~]{0,20}", any::<u64>(), "[A-Za-z]{0,8}").prop_map(|(id, epoch, mode)| json!({
                "operationId": id, "epoch": epoch, "mode": mode,
            }).to_string().into_bytes()),
        ]
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_stack_size(super::STACK_BYTES).enable_all().build().unwrap();
        let (status, text) = runtime.block_on(async {
            let host = Arc::new(Host::new("orders", 3));
            let router = admin::router(Some(host), Requests::default(), PATIENCE);
            let listener = listener::bind(Some([127, 0, 0, 1].into()), 0).await.unwrap();
            let address = listener.local_addr().unwrap();
            let (_over, shutdown) = watch::channel(false);
            tokio::spawn(listener::serve(listener, None, router, Limits::default(), shutdown));
            http(TcpStream::connect(address).await.unwrap(), "POST", path, "", &body).await
        });
        prop_assert!([200, 202, 400, 409].contains(&status), "{status} {text}");
        let reply: Value = serde_json::from_str(&text).unwrap();
        prop_assert!(status < 400 || reply["error"]["code"].is_string(), "{text}");
    }
}
