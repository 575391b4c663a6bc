//! One operator and a thousand jobs on a real API server, with pods that are only said to run: what the operator costs, and how soon it acts.
//!
//! The cluster has no node, and its scheduler is held. This program plays the kubelet (says that pods are ready, ends pods that check plans) and the workers (answers
//! the admin API over mTLS with each job's own certificate, on one loopback address a pod). The operator is a process of this machine.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tiderace_crds::admin::{ADMIN_PORT, HEALTH_PORT as WORKER_HEALTH_PORT};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cluster::{Cluster, cache};
use crate::job::{API_VERSION, endless, http_get, manifest};
use crate::space::resource;
use crate::wait::{secs, until};

const NAMESPACE: &str = "e2e-scale";
const HEALTH_PORT: u16 = 28080;
/// Jobs are applied so many at a time.
const PARALLEL: usize = 16;
/// For so long the steady state is measured.
const STEADY: Duration = secs(60);

/// What was measured.
#[derive(Debug, serde::Serialize)]
pub struct Figures {
    /// Jobs.
    pub jobs: usize,
    /// From the first `apply` until the last is Ready.
    pub all_ready_s: f64,
    /// Resident memory of the operator in the steady state, MiB.
    pub memory_mib: f64,
    /// Share of a core in the steady state, percent.
    pub steady_cpu_percent: f64,
    /// Writes to the API server in the steady state, a second, Lease included.
    pub steady_writes_per_s: f64,
    /// Writes to objects of jobs while a restarted operator looked at all of them anew.
    pub resync_writes: f64,
    /// How long that took.
    pub resync_s: f64,
    /// From a change of a job until the operator has observed it, milliseconds, the median and the worst of twenty.
    pub reaction_ms: (u128, u128),
}

/// A process that ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It was started here; that it has ended already is all right.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Seconds of processor time so far, and resident bytes.
    fn usage(&self) -> Result<(f64, f64)> {
        let pid = self.0.id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<_> = stat.rsplit_once(')').context("no ')'")?.1.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).context("a short /proc/PID/stat");
        // utime and stime, fields 14 and 15 of all, in ticks of 10 ms; rss, field 24, in pages of 4 KiB.
        Ok(((number(11)? + number(12)?) / 100.0, number(21)? * 4096.0))
    }
}

/// Certificates by the name that a client asks for.
#[derive(Debug, Default)]
struct Certificates(Mutex<HashMap<String, Arc<CertifiedKey>>>);

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(hello.server_name()?).cloned()
    }
}

/// What the fake workers know of their pods: job and epoch, by the pod's address.
type Workers = Arc<Mutex<HashMap<Ipv4Addr, (String, u64)>>>;

/// Runs it all and prints the figures.
pub async fn run(jobs: usize) -> Result<Figures> {
    let cluster = Cluster::up(0).await?;
    let figures = measure(&cluster, jobs).await;
    Cluster::down()?;
    let figures = figures?;
    println!("{} jobs, one operator ({})", figures.jobs, if cfg!(debug_assertions) { "not optimized" } else { "release" });
    println!("  all ready after         {:8.1} s", figures.all_ready_s);
    println!("  memory, steady          {:8.1} MiB", figures.memory_mib);
    println!("  CPU, steady             {:8.2} % of a core", figures.steady_cpu_percent);
    println!("  writes, steady          {:8.2} a second, the Lease's included", figures.steady_writes_per_s);
    println!("  writes of a resync      {:8.0}", figures.resync_writes);
    println!("  resync                  {:8.1} s", figures.resync_s);
    println!("  a change is seen after  {:8} ms, at worst {} ms", figures.reaction_ms.0, figures.reaction_ms.1);
    Ok(figures)
}

async fn measure(cluster: &Cluster, jobs: usize) -> Result<Figures> {
    cluster.kubectl(&["apply", "--server-side", "-f", &cluster.root().join("crds/yaml").display().to_string()]).await?;
    cluster.kubectl(&["create", "namespace", NAMESPACE]).await?;
    until("the definitions are served", secs(30), async || {
        cluster.kubectl(&["get", "streamingjobs", "-n", NAMESPACE]).await.map(drop)
    })
    .await?;
    // Without a node it would say again and again of pods that run here that they can't be scheduled.
    cluster.on_node("control", &["pkill", "-STOP", "-f", "^[^ ]*kube-scheduler"]).await.context("stopping the scheduler")?;
    let workers = Workers::default();
    let certificates = Arc::new(Certificates::default());
    let helpers = [
        tokio::task::spawn_local(log_end("kubelet", play_kubelet(cluster.client(), workers.clone()))),
        tokio::task::spawn_local(log_end("certificates", follow_certificates(cluster.client(), certificates.clone()))),
        tokio::task::spawn_local(log_end("workers", play_workers(certificates, workers))),
        tokio::task::spawn_local(log_end("probes", play_probes())),
    ];
    let outcome = async {
        let operator = start_operator(cluster).await?;
        let start = Instant::now();
        apply_all(cluster, jobs).await?;
        until_ready(cluster, jobs).await?;
        let all_ready_s = start.elapsed().as_secs_f64();
        println!("  {jobs} jobs are ready after {all_ready_s:.0} s");

        // The steady state begins when what the last starts left behind is done.
        let mut before = writes().await?;
        until("the operator comes to rest", secs(120), async || {
            tokio::time::sleep(secs(5)).await; // an interval that is measured, not a wait for something
            let now = writes().await?;
            let rate = (now - before) / 5.0;
            before = now;
            ensure!(rate < 5.0, "{rate} writes a second");
            Ok(())
        })
        .await?;
        let (writes_then, (cpu_then, _), then) = (writes().await?, operator.usage()?, Instant::now());
        tokio::time::sleep(STEADY).await;
        let (cpu_now, memory) = operator.usage()?;
        let passed = then.elapsed().as_secs_f64();
        let steady_cpu_percent = (cpu_now - cpu_then) / passed * 100.0;
        let steady_writes_per_s = (writes().await? - writes_then) / passed;

        let reaction_ms = reactions(cluster, jobs).await?;
        until_ready(cluster, jobs).await?;

        // An operator that starts looks at every job.
        drop(operator);
        let _operator = start_operator(cluster).await?;
        let start = Instant::now();
        until("the new operator has looked at every job", secs(180), async || {
            let passes = metric_sum("tiderace_operator_reconcile_total", "StreamingJob").await?;
            ensure!(passes >= jobs as f64, "{passes} passes");
            Ok(())
        })
        .await?;
        let resync_s = start.elapsed().as_secs_f64();
        let resync_writes = writes().await?;
        anyhow::Ok(Figures {
            jobs,
            all_ready_s,
            memory_mib: memory / f64::from(1 << 20),
            steady_cpu_percent,
            steady_writes_per_s,
            resync_writes,
            resync_s,
            reaction_ms,
        })
    }
    .await;
    for helper in helpers {
        helper.abort();
    }
    outcome
}

async fn log_end(what: &str, task: impl Future<Output = Result<()>>) {
    if let Err(error) = task.await {
        eprintln!("bench: the fake {what} ended: {error:#}");
    }
}

async fn start_operator(cluster: &Cluster) -> Result<Process> {
    let programs = std::env::current_exe()?.parent().context("this program is in no folder")?.to_path_buf();
    let log = std::fs::File::create(cache()?.join("bench-operator.log"))?;
    let kubeconfig = cluster.run(&["kubeconfig"]).await?;
    let operator = Command::new(programs.join("tiderace-operator"))
        .args(["run", "--default-image", "localhost/tiderace:e2e", "--lease-namespace", NAMESPACE, "--identity", "bench"])
        .args(["--health-port", &HEALTH_PORT.to_string(), "--log-format", "json"])
        .env("KUBECONFIG", kubeconfig.trim())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("the operator can't be started")?;
    let operator = Process(operator);
    until("the operator leads", secs(60), async || {
        let text = http_get("127.0.0.1", HEALTH_PORT, "/metrics").await?;
        ensure!(text.lines().any(|l| l == "tiderace_operator_leader 1"), "not yet");
        Ok(())
    })
    .await?;
    Ok(operator)
}

/// Sum of a counter of the operator over all series whose labels hold `part`.
async fn metric_sum(name: &str, part: &str) -> Result<f64> {
    let text = http_get("127.0.0.1", HEALTH_PORT, "/metrics").await?;
    let series = text.lines().filter(|l| l.starts_with(name) && l.contains(part));
    Ok(series.filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
}

/// Requests of the operator that change something.
async fn writes() -> Result<f64> {
    let mut sum = 0.0;
    for verb in
        ["\"create\"", "\"patch\"", "\"update\"", "\"delete\"", "\"POST\"", "\"PATCH\"", "\"PUT\"", "\"DELETE\"", "\"apply\""]
    {
        sum += metric_sum("tiderace_operator_api_requests_total", &format!("verb={verb}")).await?;
    }
    Ok(sum)
}

fn name_of(index: usize) -> String {
    format!("job-{index:04}")
}

fn api(cluster: &Cluster) -> Api<kube::api::DynamicObject> {
    Api::namespaced_with(cluster.client(), NAMESPACE, &resource(API_VERSION, "StreamingJob"))
}

async fn apply_all(cluster: &Cluster, jobs: usize) -> Result<()> {
    let api = api(cluster);
    futures::stream::iter((0..jobs).map(anyhow::Ok))
        .try_for_each_concurrent(PARALLEL, |index| {
            let api = api.clone();
            async move {
                let name = name_of(index);
                api.patch(&name, &PatchParams::apply("bench"), &Patch::Apply(&manifest(&name, &endless(1)))).await?;
                Ok(())
            }
        })
        .await
}

async fn until_ready(cluster: &Cluster, jobs: usize) -> Result<()> {
    let api = api(cluster);
    until(format!("{jobs} jobs are ready"), secs(900), async || {
        let list = api.list(&ListParams::default().match_any()).await?;
        let ready = list.items.iter().filter(|job| serde_json::to_value(job).is_ok_and(|job| is_ready(&job))).count();
        if ready < jobs {
            tokio::time::sleep(secs(2)).await; // a list of a thousand jobs costs the API server more than a look elsewhere
            bail!("{ready} are");
        }
        Ok(())
    })
    .await
}

fn is_ready(job: &Value) -> bool {
    job.pointer("/status/observedGeneration") == job.pointer("/metadata/generation")
        && crate::job::condition(job, "Ready").is_some_and(|c| c.status == "True")
}

/// Changes some jobs, one after the other, and sees how soon the operator has looked.
async fn reactions(cluster: &Cluster, jobs: usize) -> Result<(u128, u128)> {
    let api = api(cluster);
    let mut times = Vec::new();
    for round in 0..20 {
        let name = name_of(round * jobs / 20);
        let start = Instant::now();
        let changed = api
            .patch(
                &name,
                &PatchParams::default(),
                &Patch::Merge(&json!({"spec": {"sql": {"inline": endless(100 + round as u64)}}})),
            )
            .await?;
        let generation = changed.metadata.generation;
        loop {
            let job = serde_json::to_value(api.get(&name).await?)?;
            if job.pointer("/status/observedGeneration").and_then(Value::as_i64) == generation {
                break;
            }
            ensure!(start.elapsed() < secs(60), "{name} isn't acted on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        times.push(start.elapsed().as_millis());
    }
    times.sort_unstable();
    Ok((times[times.len() / 2], times[times.len() - 1]))
}

/// Says of every pod what a kubelet would: workers run and are ready, checks of plans have succeeded, deleted pods are gone.
async fn play_kubelet(client: Client, workers: Workers) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let stream = watcher(pods.clone(), watcher::Config::default()).default_backoff().applied_objects();
    // Pods that have an address, by uid: an event may tell of a time before that.
    let seen = RefCell::new(HashSet::new());
    stream
        .for_each_concurrent(PARALLEL, |pod| {
            let (pods, workers, seen) = (pods.clone(), workers.clone(), &seen);
            async move {
                match pod {
                    Ok(pod) => tend(&pods, &workers, seen, &pod).await,
                    Err(error) => eprintln!("bench: watching pods: {error}"),
                }
            }
        })
        .await;
    Ok(())
}

async fn tend(pods: &Api<Pod>, workers: &Workers, seen: &RefCell<HashSet<String>>, pod: &Pod) {
    let name = pod.name_any();
    if pod.metadata.deletion_timestamp.is_some() {
        let now = kube::api::DeleteParams { grace_period_seconds: Some(0), ..kube::api::DeleteParams::default() };
        match pods.delete(&name, &now).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => eprintln!("bench: deleting {name}: {error}"),
        }
        return;
    }
    if !seen.borrow_mut().insert(pod.uid().unwrap_or_default()) {
        return;
    }
    let [_, b, c, d] = (seen.borrow().len() as u32 + 256).to_be_bytes();
    let address = Ipv4Addr::new(127, b, c, d);
    let is_check = pod.owner_references().iter().any(|o| o.kind == "Job");
    if !is_check {
        let epoch = pod.labels().get("tiderace.dev/epoch").and_then(|e| e.parse().ok()).unwrap_or_default();
        let job = pod.labels().get("tiderace.dev/job").cloned().unwrap_or_default();
        workers.lock().unwrap_or_else(PoisonError::into_inner).insert(address, (job, epoch));
    }
    let patch = Patch::Merge(json!({"status": pod_status(pod, address, is_check)}));
    for _ in 0..5 {
        match pods.patch_status(&name, &PatchParams::default(), &patch).await {
            Ok(_) => return,
            // A check that nobody waits for any more is deleted before it is said to have ended.
            Err(kube::Error::Api(status)) if status.code == 404 => return,
            Err(error) => eprintln!("bench: status of {name}: {error}"),
        }
    }
}

fn pod_status(pod: &Pod, address: Ipv4Addr, is_check: bool) -> Value {
    let now = jiff::Timestamp::now().to_string();
    let container = pod.spec.as_ref().and_then(|s| s.containers.first()).map(|c| c.name.clone()).unwrap_or_default();
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "lastTransitionTime": now});
    let answer = json!({"valid": true, "planHash": "sha256:0", "engineVersion": env!("CARGO_PKG_VERSION")}).to_string();
    let (phase, state, ready) = if is_check {
        let end = json!({"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now, "message": answer, "containerID": "fake://1"});
        ("Succeeded", json!({"terminated": end}), "False")
    } else {
        ("Running", json!({"running": {"startedAt": now}}), "True")
    };
    json!({
        "phase": phase, "podIP": address.to_string(), "podIPs": [{"ip": address.to_string()}], "startTime": now,
        "conditions": [condition("PodScheduled", "True"), condition("Initialized", "True"), condition("ContainersReady", ready), condition("Ready", ready)],
        "containerStatuses": [{
            "name": container, "image": "localhost/tiderace:e2e", "imageID": "fake", "containerID": "fake://1",
            "ready": !is_check, "started": !is_check, "restartCount": 0, "state": state,
        }],
    })
}

/// Keeps the workers' certificates, which the operator makes, by the name that it asks for.
async fn follow_certificates(client: Client, certificates: Arc<Certificates>) -> Result<()> {
    let provider = rustls::crypto::ring::default_provider();
    let secrets: Api<Secret> = Api::namespaced(client, NAMESPACE);
    let config = watcher::Config::default().labels("tiderace.dev/job");
    let mut stream = Box::pin(watcher(secrets, config).default_backoff().applied_objects());
    while let Some(secret) = stream.next().await {
        let Ok(secret) = secret else { continue };
        let name = secret.name_any();
        let Some(job) = name.strip_suffix("-worker-tls") else { continue };
        let data = secret.data.unwrap_or_default();
        let (Some(chain), Some(key)) = (data.get("tls.crt"), data.get("tls.key")) else { continue };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain.0).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&key.0)?;
        let key = CertifiedKey::new(chain, provider.key_provider.load_private_key(key)?);
        let mut all = certificates.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(format!("{job}-api.{NAMESPACE}.svc"), Arc::new(key));
    }
    Ok(())
}

/// Answers as the worker of whichever pod the address belongs to. Clients aren't asked who they are: what is measured is the operator.
async fn play_workers(certificates: Arc<Certificates>, workers: Workers) -> Result<()> {
    let mut config = rustls::ServerConfig::builder().with_no_client_auth().with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, ADMIN_PORT)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, workers) = (acceptor.clone(), workers.clone());
        let std::net::IpAddr::V4(address) = stream.local_addr()?.ip() else { continue };
        tokio::spawn(async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut request = vec![0; 8192];
            let Ok(length) = stream.read(&mut request).await else { return };
            let request = String::from_utf8_lossy(&request[..length]);
            let worker = workers.lock().unwrap_or_else(PoisonError::into_inner).get(&address).cloned();
            let (code, body) = match worker {
                Some(worker) if request.starts_with("GET /v1/status") => ("200 OK", status_reply(&worker, "Running")),
                Some(_) if request.starts_with("POST /v1/stop") => ("202 Accepted", json!({})),
                _ => ("404 Not Found", json!({})),
            };
            let body = body.to_string();
            let answer = format!(
                "HTTP/1.1 {code}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            // A client that has gone away needs no answer.
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        });
    }
}

/// Answers every request on the plain port as `/readyz` of a worker that runs.
async fn play_probes() -> Result<()> {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, WORKER_HEALTH_PORT)).await?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut request = vec![0; 4096];
            if !matches!(stream.read(&mut request).await, Ok(length) if length > 0) {
                return;
            }
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nRunning\n";
            // A client that has gone away needs no answer.
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        });
    }
}

fn status_reply((job, epoch): &(String, u64), state: &str) -> Value {
    json!({
        "job": job, "epoch": epoch, "state": state, "planHash": "sha256:0", "cores": 1, "rowsIn": 1000, "rowsOut": 10, "rowsDropped": 0,
        "stateBytes": 0, "stateBudgetBytes": 1_000_000, "startedMs": 0,
    })
}
