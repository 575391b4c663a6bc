//! What goes wrong with one job: each cause ends in a condition and an Event that name it, and is over when it is mended.

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::job::{Job, condition, endless, manifest, with};
use crate::space::Space;
use crate::wait::{secs, until};

/// SIGKILL to the worker's process.
pub async fn killed_worker_comes_back(space: Space) -> Result<()> {
    let job = Job::apply(&space, &manifest("killed", &endless(1))).await?;
    job.ready("Running").await?;
    job.row(2).await?;
    let before = job.restarts().await?;
    let uid = job.worker().await?.uid().context("no uid")?;
    space.cluster().kill_in_pod(&uid, "tiderace")?;
    until("the container was started anew", secs(60), async || {
        let now = job.restarts().await?;
        ensure!(now > before, "{now} restarts");
        Ok(())
    })
    .await?;
    job.ready("Running").await?;
    job.row(2).await?;
    let restarts = job.get().await?.pointer("/status/restarts").cloned();
    if let Some(restarts) = restarts {
        ensure!(restarts.as_object().is_some() || restarts.as_u64() > Some(0), "restarts in the status: {restarts}");
    }
    space.event("killed", &["WorkerLost"], "").await?;
    Ok(())
}

/// What went wrong is told with its times, also by the process after the one that met it.
pub async fn exceptions_outlive_the_process(space: Space) -> Result<()> {
    // The third row fails, always; from the fourteenth on the numbers are those of the rows.
    let sql = format!("SET 'on_error' = 'skip';\n{}", endless(1).replace("SELECT n", "SELECT n + 10 / (3 - n)"));
    let job = Job::apply(&space, &manifest("skips", &sql)).await?;
    job.ready("Running").await?;
    for processes in 1..=2_usize {
        job.row(14).await?;
        let exception = until(format!("{processes} occurrences are told"), secs(60), async || {
            let text = job.exec(&["inspect", "exceptions", tiderace_crds::admin::WORK_DIRECTORY, "--json"]).await?;
            let all: Value = serde_json::from_str(&text)?;
            let one = all.pointer("/exceptions/0").cloned().with_context(|| format!("there is {all}"))?;
            let occurrences = one["occurrences"].as_array().map_or(0, Vec::len);
            ensure!(occurrences == processes && one["count"] == json!(processes), "it is {one}");
            Ok(one)
        })
        .await?;
        let time = |pointer: &str| {
            exception.pointer(pointer).and_then(Value::as_i64).with_context(|| format!("no {pointer} in {exception}"))
        };
        ensure!(
            exception.pointer("/problem/code").and_then(Value::as_str).is_some_and(|c| c.starts_with("TR-")),
            "it is {exception}"
        );
        ensure!(
            time("/firstMs")? == time("/occurrences/0/firstMs")? && time("/firstMs")? <= time("/atMs")?,
            "times of {exception}"
        );
        if processes == 2 {
            ensure!(time("/firstMs")? < time("/atMs")?, "both at the same time: {exception}");
            let page = job.exec(&["inspect", "exceptions", tiderace_crds::admin::WORK_DIRECTORY]).await?;
            ensure!(page.contains("TR-") && page.contains("count"), "it shows {page}");
            return Ok(());
        }
        let (before, uid) = (job.restarts().await?, job.worker().await?.uid().context("no uid")?);
        space.cluster().kill_in_pod(&uid, "tiderace")?;
        until("the container was started anew", secs(60), async || {
            let now = job.restarts().await?;
            ensure!(now > before, "{now} restarts");
            Ok(())
        })
        .await?;
        job.ready("Running").await?;
    }
    Ok(())
}

/// `kubectl delete pod`.
pub async fn deleted_pod_comes_back(space: Space) -> Result<()> {
    let job = Job::apply(&space, &manifest("deleted", &endless(1))).await?;
    job.ready("Running").await?;
    let old = job.delete_pod().await?.uid().context("no uid")?;
    until("another pod", secs(60), async || {
        let (new, ..) = job.incarnation().await?;
        ensure!(new != old, "it is still the old one");
        Ok(())
    })
    .await?;
    job.ready("Running").await?;
    job.row(2).await?;
    Ok(())
}

/// An image that isn't there. A new job waits for it; a running one goes on with what it has.
pub async fn bad_image(space: Space) -> Result<()> {
    let job =
        Job::apply(&space, &with(manifest("pulls", &endless(1)), "/image", json!("localhost/tiderace:no-such-tag"))).await?;
    let stalled = job.stalled(&["ImagePullFailed"], "no-such-tag").await?;
    ensure!(condition(&stalled, "Ready").is_some_and(|c| c.status == "False"), "it is ready without an image");
    ensure!(job.kstatus().await? == "Failed", "kstatus says {}", job.kstatus().await?);
    space.event("pulls", &["ImagePullFailed"], "no-such-tag").await?;
    job.patch(json!({"image": crate::install::WORKER_IMAGE})).await?;
    job.ready("Running").await?;
    job.row(2).await?;

    let before = job.incarnation().await?;
    job.patch(json!({"image": "localhost/tiderace:neither-this"})).await?;
    job.stalled(&["ImagePullFailed"], "neither-this").await?;
    ensure!(job.incarnation().await? == before, "the running pod gave way to an image that isn't there");
    job.writes_on().await?;
    job.patch(json!({"image": crate::install::WORKER_IMAGE})).await?;
    job.ready("Running").await?;
    Ok(())
}

/// A job that fails on its rows: restarted with backoff, then given up with its own error.
pub async fn failing_job_uses_up_its_restarts(space: Space) -> Result<()> {
    // 1 / (5 - n) fails on the fifth row, always.
    let sql = "CREATE TABLE numbers (n BIGINT) WITH (connector = 'datagen', 'rows-per-second' = '10', 'fields.n.kind' = 'sequence', 'fields.n.start' = '1', 'fields.n.end' = '1000000000');\n\
               CREATE TABLE out (n BIGINT) WITH (connector = 'print', 'print-identifier' = 'row');\n\
               INSERT INTO out SELECT 1 / (5 - n) FROM numbers;";
    let policy = json!({"maxRestarts": 2, "windowSeconds": 600, "initialBackoffSeconds": 1, "maxBackoffSeconds": 2});
    let job = Job::apply(&space, &with(manifest("fails", sql), "/restartPolicy", policy)).await?;
    let stalled = job.stalled(&["RestartsExhausted"], "TR-2002").await?;
    ensure!(condition(&stalled, "Ready").is_some_and(|c| c.status == "False"), "a failed job is Ready");
    ensure!(job.kstatus().await? == "Failed", "kstatus says {}", job.kstatus().await?);
    space.event("fails", &["RestartsExhausted"], "TR-2002").await?;
    job.patch(json!({"sql": {"inline": endless(1)}})).await?;
    job.ready("Running").await?;
    job.row(2).await?;
    Ok(())
}

/// More cores than any node has.
pub async fn unschedulable_pod(space: Space) -> Result<()> {
    let job = Job::apply(&space, &with(manifest("large", &endless(1)), "/resources/cpu", json!("100"))).await?;
    job.stalled(&["PodUnschedulable"], "cpu").await?;
    space.event("large", &["PodUnschedulable"], "cpu").await?;
    job.patch(json!({"resources": {"cpu": "1"}})).await?;
    job.ready("Running").await?;
    job.row(2).await?;
    Ok(())
}

/// A secret that isn't there yet, and then one without the key.
pub async fn missing_secret(space: Space) -> Result<()> {
    let references = json!({"password": {"name": "credentials", "key": "password"}});
    let job = Job::apply(&space, &with(manifest("secretive", &endless(1)), "/sql/secretRefs", references)).await?;
    let named = |job: &serde_json::Value, text: &str| {
        let all = job.pointer("/status/conditions").cloned().unwrap_or_default().to_string();
        all.contains(text)
    };
    job.until("says which secret is missing", secs(90), |job| {
        ensure!(named(job, "credentials"), "no condition names it");
        ensure!(condition(job, "Ready").is_some_and(|c| c.status == "False"), "it is Ready");
        Ok(())
    })
    .await?;
    until("an Event names the secret", secs(60), async || {
        let events = space.events().await?;
        ensure!(
            events.iter().any(|e| e.type_.as_deref() == Some("Warning")
                && e.involved_object.name.as_deref() == Some("secretive")
                && e.message.as_deref().unwrap_or_default().contains("credentials")),
            "none does"
        );
        Ok(())
    })
    .await?;
    let secret = |data: serde_json::Value| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "credentials"}, "stringData": data});
    space.apply(&secret(json!({"pass": "x"}))).await?;
    job.until("says which key is missing", secs(90), |job| {
        ensure!(named(job, "password"), "no condition names the key");
        Ok(())
    })
    .await?;
    space.apply(&secret(json!({"password": "x"}))).await?;
    job.ready("Running").await?;
    job.row(2).await?;
    Ok(())
}

/// A storage class that isn't there; its volume is made when it comes.
pub async fn missing_storage_class(space: Space) -> Result<()> {
    let class = "e2e-late";
    let classes = kube::Api::<k8s_openapi::api::storage::v1::StorageClass>::all(space.client());
    if classes.get_opt(class).await?.is_some() {
        classes.delete(class, &kube::api::DeleteParams::default()).await?;
    }
    let storage = json!({"size": "1Gi", "storageClassName": class});
    let job = Job::apply(&space, &with(manifest("unstored", &endless(1)), "/storage", storage)).await?;
    job.until("says which storage class is missing", secs(120), |job| {
        let text = job.pointer("/status/conditions").cloned().unwrap_or_default().to_string();
        ensure!(text.contains(class), "no condition names it");
        Ok(())
    })
    .await?;
    until("an Event names the storage class", secs(60), async || {
        let events = space.events().await?;
        ensure!(
            events.iter().any(|e| e.involved_object.name.as_deref() == Some("unstored")
                && e.message.as_deref().unwrap_or_default().contains(class)),
            "none does"
        );
        Ok(())
    })
    .await?;
    let late: k8s_openapi::api::storage::v1::StorageClass = serde_json::from_value(json!({
        "metadata": {"name": class}, "provisioner": "tidecluster/local",
        "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete", "allowVolumeExpansion": true,
    }))?;
    classes.create(&kube::api::PostParams::default(), &late).await?;
    let outcome = job.ready("Running").await;
    classes.delete(class, &kube::api::DeleteParams::default()).await?;
    outcome.map(drop)
}

/// A template that the "restricted" Pod Security Standard forbids is refused before anything is torn down.
pub async fn template_that_breaks_the_security_standard(space: Space) -> Result<()> {
    let job = Job::apply(&space, &manifest("safe", &endless(1))).await?;
    job.ready("Running").await?;
    let before = job.incarnation().await?;
    job.patch(json!({"template": {"spec": {"hostNetwork": true}}})).await?;
    job.stalled(&["ForbiddenTemplate"], "hostNetwork").await?;
    space.event("safe", &["ForbiddenTemplate"], "").await?;
    ensure!(job.incarnation().await? == before, "the pod was touched");
    job.writes_on().await?;
    job.patch(json!({"template": null})).await?;
    job.ready("Running").await?;
    ensure!(job.incarnation().await? == before, "going back restarted the pod");
    Ok(())
}
