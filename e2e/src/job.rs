//! A StreamingJob of a scenario, as its user sees it: JSON, conditions, pods, rows.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, LogParams};
use serde_json::{Value, json};
use tiderace_crds::admin::HEALTH_PORT;

use crate::space::Space;
use crate::wait::{secs, until};

/// Group and version of StreamingJob.
pub const API_VERSION: &str = "tiderace.dev/v1alpha1";
const KIND: &str = "StreamingJob";

/// Within this a job whose image is there must be Ready. The issue asks for ten seconds on a machine that has time; here several jobs start at once, from
/// binaries that are not optimized.
pub const READY: Duration = secs(90);

/// A job by its name.
#[derive(Clone)]
pub struct Job {
    space: Space,
    name: String,
}

/// One entry of `status.conditions`.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The generation it was judged from.
    pub observed_generation: i64,
}

/// Statements that write a row every 100 ms, numbered from `first`: the numbers tell a run from another, and whether rows flow.
#[must_use]
pub fn endless(first: u64) -> String {
    let last = first + 1_000_000_000; // three years' worth
    format!(
        "CREATE TABLE numbers (n BIGINT) WITH (connector = 'datagen', 'rows-per-second' = '10', 'fields.n.kind' = 'sequence', 'fields.n.start' = '{first}', 'fields.n.end' = '{last}');\n\
         CREATE TABLE out (n BIGINT) WITH (connector = 'print', 'print-identifier' = 'row');\n\
         INSERT INTO out SELECT n FROM numbers;"
    )
}

/// Statements that write the numbers 1 to `last` and end.
#[must_use]
pub fn bounded(last: u64) -> String {
    format!(
        "CREATE TABLE numbers (n BIGINT) WITH (connector = 'datagen', 'rows-per-second' = '0', 'fields.n.kind' = 'sequence', 'fields.n.start' = '1', 'fields.n.end' = '{last}');\n\
         CREATE TABLE out (n BIGINT) WITH (connector = 'print', 'print-identifier' = 'row');\n\
         INSERT INTO out SELECT n FROM numbers;"
    )
}

/// A manifest with these statements, one core and little memory.
#[must_use]
pub fn manifest(name: &str, sql: &str) -> Value {
    json!({
        "apiVersion": API_VERSION, "kind": KIND,
        "metadata": {"name": name},
        "spec": {"sql": {"inline": sql}, "resources": {"cpu": "1", "memory": "256Mi"}},
    })
}

/// A manifest with one field of its spec set: `with(m, "/replicas", json!(2))`.
#[must_use]
pub fn with(mut manifest: Value, pointer: &str, value: Value) -> Value {
    let mut at = &mut manifest["spec"];
    for key in pointer.trim_start_matches('/').split('/') {
        at = &mut at[key];
    }
    *at = value;
    manifest
}

impl Job {
    /// Applies a manifest.
    pub async fn apply(space: &Space, manifest: &Value) -> Result<Self> {
        let name = manifest.pointer("/metadata/name").and_then(Value::as_str).context("the manifest has no name")?.to_owned();
        space.apply(manifest).await?;
        Ok(Self { space: space.clone(), name })
    }

    /// The job of that name.
    #[must_use]
    pub fn named(space: &Space, name: &str) -> Self {
        Self { space: space.clone(), name: name.to_owned() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As the API server has it.
    pub async fn get(&self) -> Result<Value> {
        self.space.get(API_VERSION, KIND, &self.name).await
    }

    /// Changes it by a merge patch of its spec.
    pub async fn patch(&self, spec: Value) -> Result<Value> {
        self.space.merge(API_VERSION, KIND, &self.name, &json!({"spec": spec})).await
    }

    /// Asks for its deletion.
    pub async fn delete(&self) -> Result<()> {
        self.space.delete_object(API_VERSION, KIND, &self.name).await
    }

    /// Waits until it is gone, and all that it owned; volume claims may stay.
    pub async fn gone(&self, within: Duration) -> Result<()> {
        until(format!("the job {} is gone", self.name), within, async || {
            let left = self.space.api(API_VERSION, KIND).get_opt(&self.name).await?;
            ensure!(left.is_none(), "it is there: {}", serde_json::to_string(&left)?);
            Ok(())
        })
        .await?;
        until(format!("what the job {} owned is gone", self.name), secs(60), async || {
            for (api_version, kind) in [
                ("v1", "Pod"),
                ("apps/v1", "StatefulSet"),
                ("v1", "Service"),
                ("v1", "ConfigMap"),
                ("v1", "Secret"),
                ("v1", "ServiceAccount"),
            ] {
                let left = self.space.list(api_version, kind, &self.label()).await?;
                ensure!(left.is_empty(), "{} {kind} left", left.len());
            }
            Ok(())
        })
        .await
    }

    fn label(&self) -> String {
        format!("tiderace.dev/job={}", self.name)
    }

    /// Waits until a look at the job is content with it.
    pub async fn until<T>(&self, what: &str, within: Duration, mut look: impl FnMut(&Value) -> Result<T>) -> Result<T> {
        until(format!("the job {} {what}", self.name), within, async || {
            let job = self.get().await?;
            look(&job).with_context(|| format!("its status is {}", job["status"]))
        })
        .await
    }

    /// Waits until it is Ready for this reason, as `kubectl wait` and kstatus judge: by what was observed of its newest generation.
    pub async fn ready(&self, reason: &str) -> Result<Value> {
        self.ready_within(reason, READY).await
    }

    /// The same with another deadline.
    pub async fn ready_within(&self, reason: &str, within: Duration) -> Result<Value> {
        self.until(&format!("is Ready: {reason}"), within, |job| {
            let ready = settled(job, "Ready")?;
            ensure!(ready.status == "True" && ready.reason == reason, "Ready is {ready:?}");
            ensure!(condition(job, "Stalled").is_none_or(|c| c.status != "True"), "it is Ready and Stalled");
            ensure!(condition(job, "Reconciling").is_none_or(|c| c.status != "True"), "it is Ready and Reconciling");
            Ok(job.clone())
        })
        .await
    }

    /// Waits until it is Stalled for one of these reasons with `text` in the message, for its newest generation.
    pub async fn stalled(&self, reasons: &[&str], text: &str) -> Result<Value> {
        self.until(&format!("is Stalled: {reasons:?} with {text:?}"), secs(120), |job| {
            let stalled = settled(job, "Stalled")?;
            ensure!(
                stalled.status == "True" && reasons.contains(&stalled.reason.as_str()) && stalled.message.contains(text),
                "Stalled is {stalled:?}"
            );
            Ok(job.clone())
        })
        .await
    }

    /// Its pods that are not being deleted.
    pub async fn pods(&self) -> Result<Vec<Pod>> {
        let pods = Api::<Pod>::namespaced(self.space.client(), self.space.name());
        let list = pods.list(&ListParams::default().labels(&self.label())).await?;
        Ok(list.items.into_iter().filter(|p| p.metadata.deletion_timestamp.is_none() && is_worker(p)).collect())
    }

    /// Its worker, which must be one.
    pub async fn worker(&self) -> Result<Pod> {
        let mut pods = self.pods().await?;
        ensure!(pods.len() == 1, "the job {} has {} worker pods", self.name, pods.len());
        pods.pop().context("no worker")
    }

    /// Deletes its worker's pod.
    pub async fn delete_pod(&self) -> Result<Pod> {
        let pod = self.worker().await?;
        Api::<Pod>::namespaced(self.space.client(), self.space.name()).delete(&pod.name_any(), &DeleteParams::default()).await?;
        Ok(pod)
    }

    /// What the worker wrote to stdout and stderr since its container started.
    pub async fn log(&self) -> Result<String> {
        let pods = self.pods().await?;
        let pod = pods.last().with_context(|| format!("the job {} has no pod", self.name))?;
        let api = Api::<Pod>::namespaced(self.space.client(), self.space.name());
        Ok(api.logs(&pod.name_any(), &LogParams::default()).await?)
    }

    /// The numbers that [`endless`] and [`bounded`] statements wrote, in the order of the log.
    pub async fn numbers(&self) -> Result<Vec<u64>> {
        Ok(self.log().await?.lines().filter_map(number).collect())
    }

    /// Waits for a row with this number or a later one.
    pub async fn row(&self, at_least: u64) -> Result<Vec<u64>> {
        until(format!("the job {} writes row {at_least}", self.name), READY, async || {
            let numbers = self.numbers().await?;
            ensure!(numbers.iter().any(|n| *n >= at_least), "it wrote {} rows, the last {:?}", numbers.len(), numbers.last());
            Ok(numbers)
        })
        .await
    }

    /// Waits until its worker has written rows after this moment: it is alive.
    pub async fn writes_on(&self) -> Result<()> {
        let before = self.numbers().await.unwrap_or_default().last().copied();
        until(format!("the job {} goes on writing rows", self.name), READY, async || {
            let now = self.numbers().await?.last().copied();
            ensure!(now.is_some() && now != before, "its last row is {now:?} as before");
            Ok(())
        })
        .await
    }

    /// `GET` of a path of the worker's plain port, from this machine.
    pub async fn http(&self, path: &str) -> Result<String> {
        let pod = self.worker().await?;
        let address = pod.status.and_then(|s| s.pod_ip).context("the pod has no address")?;
        http_get(&address, HEALTH_PORT, path).await
    }

    /// How often the worker's container was started anew.
    pub async fn restarts(&self) -> Result<i32> {
        let statuses = self.worker().await?.status.and_then(|s| s.container_statuses).unwrap_or_default();
        Ok(statuses.iter().map(|c| c.restart_count).sum())
    }

    /// What tells whether a pod is the same and wasn't restarted: uid, restarts, start.
    pub async fn incarnation(&self) -> Result<(String, i32, String)> {
        let pod = self.worker().await?;
        let uid = pod.uid().context("no uid")?;
        let status = pod.status.unwrap_or_default();
        let container = status.container_statuses.and_then(|mut c| c.pop()).context("no container")?;
        Ok((uid, container.restart_count, container.container_id.unwrap_or_default()))
    }

    /// Runs `tiderace` with these arguments in its worker's container, as `kubectl exec` does; what it printed.
    pub async fn exec(&self, arguments: &[&str]) -> Result<String> {
        let pod = self.worker().await?.name_any();
        let program = ["-n", self.space.name(), "exec", &pod, "-c", "worker", "--", "tiderace"];
        self.space.cluster().kubectl(&[&program, arguments].concat()).await
    }

    /// How kstatus sees it.
    pub async fn kstatus(&self) -> Result<String> {
        let job = self.get().await?;
        kstatus(&self.space, &job).await
    }
}

/// Whether the pod is one of the StatefulSet, and not one that checks a plan.
fn is_worker(pod: &Pod) -> bool {
    pod.owner_references().iter().any(|o| o.kind == "StatefulSet")
}

/// How kstatus, the library of Flux and Helm, sees an object: `Current`, `InProgress`, `Failed`, `Terminating`.
pub async fn kstatus(space: &Space, object: &Value) -> Result<String> {
    let program = space.cluster().root().join("e2e/kstatus/kstatus"); // builds itself where need be
    let input = object.to_string();
    let verdict =
        tokio::task::spawn_blocking(move || crate::cluster::output_with_input(&mut std::process::Command::new(program), &input))
            .await??;
    Ok(verdict.split_whitespace().next().unwrap_or_default().to_owned())
}

/// The number in a row that the print connector wrote: `row> +I[17]`.
fn number(line: &str) -> Option<u64> {
    line.split_once("row> +I[")?.1.split_once(']')?.0.parse().ok()
}

/// The condition of a type.
#[must_use]
pub fn condition(job: &Value, kind: &str) -> Option<Condition> {
    let found = job.pointer("/status/conditions")?.as_array()?.iter().find(|c| c["type"] == kind)?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Some(Condition {
        status: text("status"),
        reason: text("reason"),
        message: text("message"),
        observed_generation: found["observedGeneration"].as_i64().unwrap_or_default(),
    })
}

/// The condition of a type, when it was judged from the object's newest generation.
pub fn settled(job: &Value, kind: &str) -> Result<Condition> {
    let generation = job.pointer("/metadata/generation").and_then(Value::as_i64).context("no generation")?;
    let observed = job.pointer("/status/observedGeneration").and_then(Value::as_i64);
    ensure!(observed == Some(generation), "generation {generation} is not observed yet, but {observed:?}");
    let condition = condition(job, kind).with_context(|| format!("no condition {kind}"))?;
    ensure!(
        condition.observed_generation == generation,
        "the condition {kind} is of generation {}, not {generation}",
        condition.observed_generation
    );
    Ok(condition)
}

/// A plain `GET`, HTTP/1.1 without keeping the connection.
pub async fn http_get(address: &str, port: u16, path: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect((address, port)).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(secs(10), exchange).await.context("no answer within 10 s")??;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    if head.split_whitespace().nth(1).is_none_or(|code| code != "200") {
        bail!("{path} answered {}: {body}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn numbers_are_found_in_log_lines() {
        assert_eq!(number("row> +I[17]"), Some(17));
        assert_eq!(number("{\"message\": \"row\"}"), None);
    }

    #[test]
    fn a_condition_counts_only_for_the_newest_generation() {
        let job = |observed: i64, of: i64| {
            json!({
                "metadata": {"generation": 2},
                "status": {"observedGeneration": observed, "conditions": [{"type": "Ready", "status": "True", "reason": "Running", "observedGeneration": of}]},
            })
        };
        assert_eq!(settled(&job(2, 2), "Ready").unwrap().reason, "Running");
        assert!(settled(&job(1, 1), "Ready").is_err());
        assert!(settled(&job(2, 1), "Ready").is_err());
        assert!(settled(&job(2, 2), "Stalled").is_err());
    }

    #[test]
    fn manifests_are_changed_by_pointer() {
        let job = with(manifest("a", "SELECT 1"), "/storage/size", json!("1Gi"));
        assert_eq!(job.pointer("/spec/storage/size"), Some(&json!("1Gi")));
        assert_eq!(job.pointer("/spec/resources/cpu"), Some(&json!("1")));
    }
}
