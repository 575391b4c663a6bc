//! What breaks more than one job: operator, API server, nodes, namespaces.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use serde_json::json;

use crate::cluster::Cluster;
use crate::install;
use crate::job::{Job, condition, endless, manifest};
use crate::space::Space;
use crate::wait::{secs, until};

async fn node_ready(cluster: &Cluster, name: &str) -> Result<bool> {
    let node = Api::<Node>::all(cluster.client()).get(name).await?;
    let conditions = node.status.and_then(|s| s.conditions).unwrap_or_default();
    Ok(conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

async fn until_node(cluster: &Cluster, name: &str, ready: bool) -> Result<()> {
    until(format!("the node {name} is {}ready", if ready { "" } else { "not " }), secs(90), async || {
        ensure!(node_ready(cluster, name).await? == ready, "it is the other way round");
        Ok(())
    })
    .await
}

fn node_of(pod: &Pod) -> Result<String> {
    pod.spec.as_ref().and_then(|s| s.node_name.clone()).context("the pod is on no node")
}

/// Taints of a node that was away are gone: pods can be scheduled there.
async fn until_schedulable(cluster: &Cluster, name: &str) -> Result<()> {
    until_node(cluster, name, true).await?;
    until(format!("the node {name} takes pods"), secs(60), async || {
        let node = Api::<Node>::all(cluster.client()).get(name).await?;
        let spec = node.spec.unwrap_or_default();
        ensure!(spec.taints.unwrap_or_default().is_empty() && spec.unschedulable != Some(true), "it has taints");
        Ok(())
    })
    .await
}

/// Moves the operators off a node that is about to be broken, so that the scenario is about the job.
async fn operators_off(cluster: &Cluster, node: &str) -> Result<()> {
    cluster.kubectl(&["cordon", node]).await?;
    for pod in install::operator_pods(cluster).await? {
        if node_of(&pod)? == node {
            Api::<Pod>::namespaced(cluster.client(), install::OPERATOR_NAMESPACE)
                .delete(&pod.name_any(), &DeleteParams::default())
                .await?;
        }
    }
    let outcome = until("the operators are elsewhere", secs(90), async || {
        let pods = install::operator_pods(cluster).await?;
        for pod in &pods {
            let ready = pod
                .status
                .as_ref()
                .and_then(|s| s.conditions.as_ref())
                .is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
            ensure!(ready && node_of(pod)? != node, "{} isn't", pod.name_any());
        }
        let leader = node_of(&install::leader(cluster).await?)?;
        ensure!(leader != node, "the leader isn't");
        Ok(())
    })
    .await;
    cluster.kubectl(&["uncordon", node]).await?;
    outcome
}

/// SIGKILL to the leading operator, at rest and in the middle of a change: jobs go on, the change is made, once.
pub async fn operator_killed(space: Space) -> Result<()> {
    let cluster = space.cluster().clone();
    let job = Job::apply(&space, &manifest("steady", &endless(1))).await?;
    job.ready("Running").await?;
    job.row(2).await?;
    let before = job.incarnation().await?;
    let kill = async || {
        let leader = until("an operator leads", secs(60), async || install::leader(&cluster).await).await?;
        cluster.kill_in_pod(&leader.uid().context("no uid")?, "tiderace-operat")
    };
    kill().await?;
    job.writes_on().await?;
    ensure!(job.incarnation().await? == before, "the pod was restarted with the operator");
    // Now each time a little later in the change.
    for round in 1..=3_u64 {
        let first = round * 100_000;
        job.patch(json!({"sql": {"inline": endless(first)}})).await?;
        job.until("has a change under way", secs(60), |job| {
            let begun = condition(job, "Reconciling").is_some_and(|c| c.status == "True")
                || job.pointer("/status/observedGeneration") == job.pointer("/metadata/generation");
            ensure!(begun, "not yet");
            Ok(())
        })
        .await?;
        kill().await?;
        job.ready("Running").await?;
        let numbers = job.row(first).await?;
        ensure!(numbers.iter().all(|n| *n >= first), "old rows in a new pod");
        ensure!(job.pods().await?.len() == 1, "{} pods", job.pods().await?.len());
    }
    Ok(())
}

/// SIGKILL to the API server, twice: jobs go on; afterwards changes are acted on.
pub async fn api_server_killed(space: Space) -> Result<()> {
    let cluster = space.cluster();
    let job = Job::apply(&space, &manifest("steady", &endless(1))).await?;
    job.ready("Running").await?;
    job.row(2).await?;
    let before = job.incarnation().await?;
    cluster.on_node("control", &["pkill", "-KILL", "-x", "kube-apiserver"]).await?;
    let after = until("the API server answers again", secs(90), async || job.incarnation().await).await?;
    ensure!(after == before, "the pod is {after:?}, was {before:?}");
    job.writes_on().await?;
    until("the change is taken", secs(60), async || job.patch(json!({"sql": {"inline": endless(1000)}})).await).await?;
    cluster.on_node("control", &["pkill", "-KILL", "-x", "kube-apiserver"]).await?;
    job.ready("Running").await?;
    job.row(1000).await?;
    Ok(())
}

/// A leader that is paused for longer than its Lease lasts, and then goes on: another has taken over, and the old one does nothing any more.
pub async fn paused_operator_comes_back(space: Space) -> Result<()> {
    let cluster = space.cluster().clone();
    let job = Job::apply(&space, &manifest("steady", &endless(1))).await?;
    job.ready("Running").await?;
    let old = install::leader(&cluster).await?;
    let old_uid = old.uid().context("no uid")?;
    let old_restarts = restarts(&old);
    let old_token = token(&cluster).await?;
    cluster.signal_in_pod(&old_uid, "tiderace-operat", "-STOP")?;
    let outcome = async {
        let new = until("another operator leads", secs(60), async || {
            let leader = install::leader(&cluster).await?;
            ensure!(leader.uid().as_deref() != Some(old_uid.as_str()), "the paused one still does");
            Ok(leader)
        })
        .await?;
        job.patch(json!({"sql": {"inline": endless(1000)}})).await?;
        job.ready("Running").await?;
        anyhow::Ok(new)
    }
    .await;
    // A pod that the kubelet restarted meanwhile has no such process any more.
    let went_on = cluster.signal_in_pod(&old_uid, "tiderace-operat", "-CONT");
    let new = outcome?;
    let epoch = job.get().await?.pointer("/status/deployed/epoch").cloned();
    if went_on.is_ok() {
        until("the old leader ended itself", secs(60), async || {
            let pods = install::operator_pods(&cluster).await?;
            let now = pods.iter().find(|p| p.uid().as_deref() == Some(old_uid.as_str()));
            ensure!(now.is_none_or(|p| restarts(p) > old_restarts), "it has {:?} restarts", now.map(restarts));
            Ok(())
        })
        .await?;
    }
    job.patch(json!({"sql": {"inline": endless(5000)}})).await?;
    job.ready("Running").await?;
    job.row(5000).await?;
    let epochs =
        (epoch.and_then(|e| e.as_u64()), job.get().await?.pointer("/status/deployed/epoch").and_then(serde_json::Value::as_u64));
    ensure!(epochs.1 == epochs.0.map(|e| e + 1), "one change, but the epoch went from {:?} to {:?}", epochs.0, epochs.1);
    let leader = install::leader(&cluster).await?;
    ensure!(leader.uid() == new.uid(), "the Lease wandered on");

    // What the old one would have ordered, had it woken between its last look at the clock and its call: the worker has heard the new one's token.
    let epoch = epochs.1.context("no epoch")?;
    let refused = stop_order(&space, &job, old_token, epoch).await.err().context("an order of the old leader was taken")?;
    ensure!(refused.contains("409") && refused.contains("TR-7016"), "the order was refused, but: {refused}");
    job.writes_on().await?;
    let token = token(&cluster).await?;
    ensure!(token > old_token, "the token went from {old_token} to {token}");
    stop_order(&space, &job, token, epoch).await.map_err(anyhow::Error::msg).context("the leader's own order")?;
    Ok(())
}

/// The fencing token: how often the Lease changed hands.
async fn token(cluster: &Cluster) -> Result<u64> {
    let leases = Api::<k8s_openapi::api::coordination::v1::Lease>::namespaced(cluster.client(), install::OPERATOR_NAMESPACE);
    let spec = leases.get(install::OPERATOR).await?.spec.unwrap_or_default();
    Ok(u64::try_from(spec.lease_transitions.context("the Lease has no transitions")?)?)
}

/// An order to stop by an operator with that token, over mTLS with the operator's own certificate for the job.
async fn stop_order(space: &Space, job: &Job, token: u64, epoch: u64) -> Result<(), String> {
    use tiderace_operator::worker_client::{Network, Target, Workers as _};
    let prepared = async {
        let secrets = Api::<k8s_openapi::api::core::v1::Secret>::namespaced(space.client(), space.name());
        let data = secrets.get(&format!("{}-ca", job.name())).await?.data.unwrap_or_default();
        let contents = data.into_iter().map(|(key, value)| Ok((key, String::from_utf8(value.0)?))).collect::<Result<_>>()?;
        let identity = tiderace_operator::certificates::client_identity(&contents).context("no certificate")?;
        let address = job.worker().await?.status.and_then(|s| s.pod_ip).context("no address")?.parse()?;
        let server_name = tiderace_operator::names::server_name(job.name(), space.name());
        anyhow::Ok(Target { address, server_name, identity: std::sync::Arc::new(identity), token })
    };
    let target = prepared.await.map_err(|error| format!("{error:#}"))?;
    let order = tiderace_crds::admin::StopRequest {
        operation_id: format!("e2e-{token}"),
        epoch,
        mode: tiderace_crds::admin::StopMode::Drain,
    };
    Network.stop(&target, &order).await.map_err(|error| error.to_string())
}

fn restarts(pod: &Pod) -> i32 {
    pod.status
        .as_ref()
        .and_then(|s| s.container_statuses.as_ref())
        .map(|c| c.iter().map(|c| c.restart_count).sum())
        .unwrap_or_default()
}

/// Deletion waits for the operator, and happens when it is back.
pub async fn deleted_while_the_operator_is_down(space: Space) -> Result<()> {
    let cluster = space.cluster().clone();
    let job = Job::apply(&space, &manifest("orphan", &endless(1))).await?;
    job.ready("Running").await?;
    install::scale_operator(&cluster, 0).await?;
    let outcome = async {
        job.delete().await?;
        let before = job.incarnation().await?;
        job.writes_on().await?;
        ensure!(job.incarnation().await? == before, "the pod was touched while no operator ran");
        ensure!(job.kstatus().await? == "Terminating", "kstatus says {}", job.kstatus().await?);
        anyhow::Ok(())
    }
    .await;
    install::scale_operator(&cluster, 2).await?;
    outcome?;
    job.gone(secs(120)).await
}

/// A namespace with jobs in several states goes, in bounded time, and one of its workers doesn't answer.
pub async fn namespace_deleted(space: Space) -> Result<()> {
    let running = Job::apply(&space, &manifest("running", &endless(1))).await?;
    let frozen = Job::apply(&space, &manifest("frozen", &endless(1))).await?;
    let refused = Job::apply(&space, &manifest("refused", "SELECT;")).await?;
    running.ready("Running").await?;
    frozen.ready("Running").await?;
    refused.stalled(&["PlanInvalid"], "TR-").await?;
    let uid = frozen.worker().await?.uid().context("no uid")?;
    space.cluster().signal_in_pod(&uid, "tiderace", "-STOP")?;
    space.delete().await
}

/// `kubectl drain`: the budget lets the only worker go, and it comes up elsewhere.
pub async fn node_drained(space: Space) -> Result<()> {
    let cluster = space.cluster().clone();
    let job = Job::apply(&space, &manifest("moves", &endless(1))).await?;
    job.ready("Running").await?;
    let node = node_of(&job.worker().await?)?;
    let drained = cluster.kubectl(&["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"]).await;
    let outcome = async {
        drained?;
        job.ready("Running").await?;
        ensure!(node_of(&job.worker().await?)? != node, "it is on the drained node");
        job.row(2).await?;
        anyhow::Ok(())
    }
    .await;
    cluster.kubectl(&["uncordon", &node]).await?;
    outcome
}

/// A power cut of the worker's node. The job says that it isn't running; no second worker is started beside one that may live; when the node is back
/// (or gone for good) so is the job.
pub async fn node_killed(space: Space) -> Result<()> {
    let cluster = space.cluster().clone();
    let job = Job::apply(&space, &manifest("unlucky", &endless(1))).await?;
    job.ready("Running").await?;
    let pod = job.worker().await?;
    let node = node_of(&pod)?;
    operators_off(&cluster, &node).await?;
    cluster.run(&["node", "kill", &node]).await?;
    let outcome = async {
        until_node(&cluster, &node, false).await?;
        job.until("says that its worker is lost", secs(120), |job| {
            let ready = condition(job, "Ready").context("no condition Ready")?;
            ensure!(ready.status != "True", "it is still {ready:?}");
            Ok(())
        })
        .await?;
        ensure!(live_pods(&space, &job).await? <= 1, "two pods of one ordinal");
        anyhow::Ok(())
    }
    .await;
    cluster.run(&["node", "start", &node]).await?;
    until_schedulable(&cluster, &node).await?;
    outcome?;
    job.ready_within("Running", secs(180)).await?;
    job.row(2).await?;
    Ok(())
}

async fn live_pods(space: &Space, job: &Job) -> Result<usize> {
    let pods = Api::<Pod>::namespaced(space.client(), space.name());
    let label = format!("tiderace.dev/job={}", job.name());
    let list = pods.list(&ListParams::default().labels(&label)).await?;
    Ok(list.items.iter().filter(|p| p.owner_references().iter().any(|o| o.kind == "StatefulSet")).count())
}

/// The worker's node is cut off and comes back: at no moment do two workers of the job write.
pub async fn node_partitioned(space: Space) -> Result<()> {
    let cluster = space.cluster().clone();
    let job = Job::apply(&space, &manifest("islander", &endless(1))).await?;
    job.ready("Running").await?;
    let pod = job.worker().await?;
    let uid = pod.uid().context("no uid")?;
    let node = node_of(&pod)?;
    operators_off(&cluster, &node).await?;
    cluster.run(&["node", "partition", &node]).await?;
    let outcome = async {
        until_node(&cluster, &node, false).await?;
        job.until("says that its worker is out of reach", secs(120), |job| {
            let ready = condition(job, "Ready").context("no condition Ready")?;
            ensure!(ready.status != "True", "it is still {ready:?}");
            Ok(())
        })
        .await?;
        // The old process lives on, on its island, so there must be no other.
        let islander = crate::cluster::pod_processes(&uid, "tiderace")?.len();
        let others = other_workers(&space, &job, &uid).await?;
        ensure!(islander == 0 || others == 0, "{islander} workers on the island and {others} elsewhere");
        // A change while it is away must not start one either.
        job.patch(json!({"sql": {"inline": endless(7000)}})).await?;
        job.until("has seen the change", secs(90), |job| {
            ensure!(job.pointer("/status/observedGeneration") == job.pointer("/metadata/generation"), "not yet");
            Ok(())
        })
        .await?;
        let islander = crate::cluster::pod_processes(&uid, "tiderace")?.len();
        let others = other_workers(&space, &job, &uid).await?;
        ensure!(islander == 0 || others == 0, "after a change {islander} workers on the island and {others} elsewhere");
        anyhow::Ok(())
    }
    .await;
    cluster.run(&["node", "heal", &node]).await?;
    until_schedulable(&cluster, &node).await?;
    outcome?;
    job.ready_within("Running", secs(180)).await?;
    job.row(7000).await?;
    Ok(())
}

/// Processes of workers of the job in other pods than that one.
async fn other_workers(space: &Space, job: &Job, uid: &str) -> Result<usize> {
    let mut count = 0;
    for pod in job.pods().await? {
        let other = pod.uid().context("no uid")?;
        if other != uid {
            count += crate::cluster::pod_processes(&other, "tiderace")?.len();
        }
    }
    ensure!(live_pods(space, job).await? <= 1, "two pods of one ordinal");
    Ok(count)
}
