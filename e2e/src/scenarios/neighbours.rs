//! What the charts work with and don't bring: Prometheus Operator, cert-manager, a seccomp profile of the nodes. Their definitions are small copies
//! (`e2e/definitions`), and this program plays their controllers where one is needed.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, cache, pod_processes};
use crate::install;
use crate::job::{Job, endless, manifest, with};
use crate::space::Space;
use crate::wait::{secs, until};

async fn definitions(cluster: &Cluster, verb: &[&str], file: &str) -> Result<()> {
    let path = cluster.root().join("e2e/definitions").join(file).display().to_string();
    cluster.kubectl(&[verb, &["-f", path.as_str()]].concat()).await.map(drop)
}

/// With Prometheus Operator's definitions in the cluster the chart's and the jobs' objects are taken, and say what they should.
pub async fn monitoring_objects(space: Space) -> Result<()> {
    let cluster = space.cluster().clone();
    let job = Job::apply(&space, &with(manifest("watched", &endless(1)), "/monitoring", json!({"podMonitor": true}))).await?;
    // Without the kind the job says what is wrong; it isn't silently unmonitored.
    job.stalled(&["ApplyFailed"], "PodMonitor").await?;
    definitions(&cluster, &["apply", "--server-side"], "monitoring.yaml").await?;
    let outcome = async {
        job.ready("Running").await?;
        let monitors = space.api("monitoring.coreos.com/v1", "PodMonitor");
        let monitor = serde_json::to_value(monitors.get("watched").await?)?;
        ensure!(monitor.pointer("/spec/podMetricsEndpoints/0/port") == Some(&json!("health")), "it is {monitor}");
        let labels = monitor.pointer("/spec/selector/matchLabels").and_then(Value::as_object).context("no selector")?;
        let pod = job.worker().await?;
        ensure!(
            labels.iter().all(|(key, value)| pod.labels().get(key).map(String::as_str) == value.as_str()),
            "the selector {labels:?} doesn't choose the worker with {:?}",
            pod.labels()
        );
        let port = pod.spec.as_ref().and_then(|s| s.containers.first()).and_then(|c| c.ports.as_ref()).into_iter().flatten();
        ensure!(port.into_iter().any(|p| p.name.as_deref() == Some("health")), "the worker has no port `health`");
        job.patch(json!({"monitoring": {"podMonitor": false}})).await?;
        until("the PodMonitor is gone", secs(60), async || {
            ensure!(monitors.get_opt("watched").await?.is_none(), "it is there");
            Ok(())
        })
        .await?;

        let mut values = install::usual_values();
        values.extend([
            "monitoring.podMonitor.enabled=true",
            "monitoring.prometheusRule.enabled=true",
            "monitoring.dashboards.enabled=true",
        ]);
        install::operator(&cluster, install::TAG, &values).await?;
        let system = ["-n", install::OPERATOR_NAMESPACE];
        let get = async |kind: &str| -> Result<Value> {
            let text = cluster.kubectl(&[&["get", kind, install::OPERATOR, "-o", "json"], &system[..]].concat()).await?;
            Ok(serde_json::from_str(&text)?)
        };
        let monitor = get("podmonitor").await?;
        for pod in install::operator_pods(&cluster).await? {
            let labels = monitor.pointer("/spec/selector/matchLabels").and_then(Value::as_object).context("no selector")?;
            let is_chosen = labels.iter().all(|(key, value)| pod.labels().get(key).map(String::as_str) == value.as_str());
            ensure!(is_chosen, "{} isn't chosen by {labels:?}", pod.name_any());
        }
        let rule = get("prometheusrule").await?;
        let rules: usize = rule
            .pointer("/spec/groups")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|group| group["rules"].as_array().map_or(0, Vec::len))
            .sum();
        ensure!(rules >= 5, "{rules} rules");
        let dashboards =
            cluster.kubectl(&[&["get", "configmap", "-l", "grafana_dashboard=1", "-o", "name"], &system[..]].concat()).await?;
        ensure!(dashboards.lines().count() == 2, "dashboards: {dashboards}");
        anyhow::Ok(())
    }
    .await;
    install::operator(&cluster, install::TAG, &install::usual_values()).await?;
    definitions(&cluster, &["delete", "--ignore-not-found"], "monitoring.yaml").await?;
    outcome
}

/// The webhook with certificates that cert-manager makes: this program plays it, from the chart's Certificate object.
pub async fn webhook_by_cert_manager(space: Space) -> Result<()> {
    let cluster = space.cluster().clone();
    definitions(&cluster, &["apply", "--server-side"], "cert-manager.yaml").await?;
    let outcome = async {
        cluster.kubectl(&["label", "namespace", space.name(), &format!("{}=yes", install::WEBHOOK_LABEL)]).await?;
        let play = async {
            let certificate: Value = until("the chart's Certificate", secs(60), async || {
                let text = cluster
                    .kubectl(&["get", "certificate", "tiderace-webhook", "-n", install::OPERATOR_NAMESPACE, "-o", "json"])
                    .await?;
                Ok(serde_json::from_str(&text)?)
            })
            .await?;
            let names: Vec<String> = serde_json::from_value(certificate["spec"]["dnsNames"].clone())?;
            let (authority, chain, key) = issue(&names)?;
            // A Secret's type can't be changed; cert-manager leaves that of one that is there, as after a change of mode.
            let name = certificate["spec"]["secretName"].as_str().context("no secretName")?;
            let there =
                cluster.kubectl(&["get", "secret", name, "-n", install::OPERATOR_NAMESPACE, "-o", "jsonpath={.type}"]).await;
            let kind = there.ok().filter(|kind| !kind.is_empty()).unwrap_or_else(|| "kubernetes.io/tls".to_owned());
            let secret = json!({
                "apiVersion": "v1", "kind": "Secret", "type": kind.trim(),
                "metadata": {"name": certificate["spec"]["secretName"], "namespace": install::OPERATOR_NAMESPACE},
                "stringData": {"tls.crt": chain, "tls.key": key, "ca.crt": authority},
            });
            let apply = ["kubectl", "apply", "--server-side", "--force-conflicts", "-f", "-"];
            until("the Secret is written", secs(60), async || cluster.run_with_input(&apply, secret.to_string()).await.map(drop))
                .await?;
            let inject = certificate.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default().to_owned();
            anyhow::Ok((authority, inject))
        };
        let mut values = install::usual_values();
        values.extend([
            "webhook.certificates=cert-manager",
            "webhook.issuerRef.name=ours",
            "webhook.issuerRef.kind=ClusterIssuer",
        ]);
        // Helm waits for pods that wait for the Secret.
        let (installed, played) = futures::join!(install::operator(&cluster, install::TAG, &values), play);
        let (authority, namespace) = played?;
        installed?;
        let hook: Value = serde_json::from_str(
            &cluster.kubectl(&["get", "validatingwebhookconfiguration", "tiderace-webhook", "-o", "json"]).await?,
        )?;
        let from = hook.pointer("/metadata/annotations/cert-manager.io~1inject-ca-from").and_then(Value::as_str);
        ensure!(from == Some(&format!("{namespace}/tiderace-webhook")), "cert-manager would inject from {from:?}");
        // What cert-manager's injector does.
        let bundle = k8s_openapi::ByteString(authority.into_bytes());
        let patch = json!([{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}]).to_string();
        cluster.kubectl(&["patch", "validatingwebhookconfiguration", "tiderace-webhook", "--type=json", "-p", &patch]).await?;
        // A kubelet brings a changed Secret into a pod's files within a minute or two, the operator reads them each minute. Until then the
        // API server takes what it can't have checked (Ignore), and for a spec that it has already taken it asks no more: so each try is
        // another statement.
        let tries = AtomicU32::new(0);
        until("the webhook refuses bad SQL", secs(240), async || {
            let sql = format!("SELECT no_such_function({});", tries.fetch_add(1, Ordering::Relaxed));
            let answer = space.apply(&manifest("refused", &sql)).await;
            let text = answer.err().map(|error| format!("{error:#}")).context("it was taken")?;
            ensure!(text.contains("TR-"), "it was refused, but for: {text}");
            Ok(())
        })
        .await?;
        let job = Job::apply(&space, &manifest("taken", &endless(1))).await?;
        job.ready("Running").await.map(drop)
    }
    .await;
    install::operator(&cluster, install::TAG, &install::usual_values()).await?;
    definitions(&cluster, &["delete", "--ignore-not-found"], "cert-manager.yaml").await?;
    outcome
}

/// An authority, a certificate of it for these names, and its key; PEM.
fn issue(names: &[String]) -> Result<(String, String, String)> {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok((authority, params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
}

/// `spec.seccomp`: a profile that isn't on the node is said; one that is lets the worker run, under it.
pub async fn seccomp_profile_of_the_node(space: Space) -> Result<()> {
    let cluster = space.cluster().clone();
    // Alone in its name: other runs may have left the usual one.
    let profile = "profiles/e2e-io-uring.json";
    let wanted = with(manifest("filtered", &endless(1)), "/seccomp", json!({"localhostProfile": profile}));
    let nodes: Vec<String> =
        Api::<Node>::all(space.client()).list(&ListParams::default()).await?.items.iter().map(ResourceExt::name_any).collect();
    for node in &nodes {
        cluster.on_node(node, &["rm", "-f", &format!("/var/lib/kubelet/seccomp/{profile}")]).await?;
    }
    let job = Job::apply(&space, &wanted).await?;
    job.stalled(&["ContainerCannotStart"], profile).await?;
    let source = cluster.root().join("deploy/seccomp/tiderace-io-uring.json").display().to_string();
    for node in &nodes {
        cluster.on_node(node, &["install", "-D", "-m", "0644", &source, &format!("/var/lib/kubelet/seccomp/{profile}")]).await?;
    }
    job.ready_within("Running", secs(150)).await?;
    job.row(2).await?;
    let uid = job.worker().await?.uid().context("no uid")?;
    let pid = *pod_processes(&uid, "tiderace")?.first().context("no worker process")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"])), "no filter is on the worker: {status}");
    job.delete().await?;
    job.gone(secs(90)).await?;
    for node in &nodes {
        cluster.on_node(node, &["rm", "-f", &format!("/var/lib/kubelet/seccomp/{profile}")]).await?;
    }
    Ok(())
}

/// What each profile does to io_uring, asked of the worker's own program in its own pod: the one of `deploy/seccomp` allows it; the same without
/// io_uring's calls, as newer container runtimes have it by default, refuses it, and the worker's files are read and written by threads.
pub async fn io_uring_by_seccomp_profile(space: Space) -> Result<()> {
    const ALLOWED: &str = "profiles/e2e-with-io-uring.json";
    const REFUSED: &str = "profiles/e2e-without-io-uring.json";
    let cluster = space.cluster().clone();
    let source = cluster.root().join("deploy/seccomp/tiderace-io-uring.json");
    let mut without: Value = serde_json::from_str(&std::fs::read_to_string(&source)?)?;
    let mut taken = 0;
    for rule in without["syscalls"].as_array_mut().into_iter().flatten() {
        if let Some(names) = rule["names"].as_array_mut() {
            let before = names.len();
            names.retain(|name| !name.as_str().is_some_and(|name| name.starts_with("io_uring_")));
            taken += before - names.len();
        }
    }
    ensure!(taken == 3, "the profile allows {taken} calls of io_uring");
    let other = cache()?.join("without-io-uring.json");
    std::fs::write(&other, without.to_string())?;
    let nodes = Api::<Node>::all(space.client()).list(&ListParams::default()).await?.items;
    for node in &nodes {
        for (file, profile) in [(&source, ALLOWED), (&other, REFUSED)] {
            let (file, to) = (file.display().to_string(), format!("/var/lib/kubelet/seccomp/{profile}"));
            cluster.on_node(&node.name_any(), &["install", "-D", "-m", "0644", &file, &to]).await?;
        }
    }
    let of_profile =
        |name: &str, profile: &str| with(manifest(name, &endless(1)), "/seccomp", json!({"localhostProfile": profile}));
    let allowed = Job::apply(&space, &of_profile("allowed", ALLOWED)).await?;
    let refused = Job::apply(&space, &of_profile("refused", REFUSED)).await?;
    let usual = Job::apply(&space, &manifest("usual", &endless(1))).await?;
    for job in [&allowed, &refused, &usual] {
        job.ready("Running").await?;
        job.row(1).await?;
    }
    let report = device(&allowed).await?;
    ensure!(report["backend"] == "io_uring" && report["without"] == json!([]), "under the profile it is {report}");
    let report = device(&refused).await?;
    let because = report["because"].as_str().unwrap_or_default();
    ensure!(report["backend"] == "threads" && because.contains("os error 1"), "without the calls it is {report}");
    // The runtime's own profile: containerd refuses io_uring since 2.0.
    let node = usual.worker().await?.spec.and_then(|s| s.node_name).context("no node")?;
    let node = nodes.iter().find(|n| n.name_any() == node).context("an unknown node")?;
    let runtime =
        node.status.as_ref().and_then(|s| s.node_info.as_ref()).map(|i| i.container_runtime_version.clone()).unwrap_or_default();
    let version = runtime.strip_prefix("containerd://").with_context(|| format!("the runtime is {runtime:?}"))?;
    let major: u32 = version.split('.').next().unwrap_or_default().trim_start_matches('v').parse()?;
    let expected = if major < 2 { "io_uring" } else { "threads" };
    let report = device(&usual).await?;
    ensure!(report["backend"] == expected, "by default under {runtime} it is {report}");
    println!("    RuntimeDefault of {runtime}: {}", report["backend"]);
    for node in &nodes {
        for profile in [ALLOWED, REFUSED] {
            cluster.on_node(&node.name_any(), &["rm", "-f", &format!("/var/lib/kubelet/seccomp/{profile}")]).await?;
        }
    }
    Ok(())
}

/// What `tiderace inspect device` says in a job's pod of its working directory.
async fn device(job: &Job) -> Result<Value> {
    Ok(serde_json::from_str(&job.exec(&["inspect", "device", tiderace_crds::admin::WORK_DIRECTORY, "--json"]).await?)?)
}
