//! Changes of a running job, right and wrong, by its user and by others.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::install::WEBHOOK_LABEL;
use crate::job::{API_VERSION, Job, condition, endless, manifest, settled, with};
use crate::space::Space;
use crate::wait::{secs, until};

/// New statements: the worker is replaced, and there are never two that write.
pub async fn changed_sql_replaces_the_worker(space: Space) -> Result<()> {
    let job = Job::apply(&space, &manifest("changes", &endless(1))).await?;
    job.ready("Running").await?;
    job.row(2).await?;
    let before = job.get().await?;
    let (old_pod, ..) = job.incarnation().await?;
    job.patch(json!({"sql": {"inline": endless(1_000_000)}})).await?;
    let after = job.ready("Running").await?;
    let (new_pod, ..) = job.incarnation().await?;
    ensure!(old_pod != new_pod, "the pod is the same");
    let numbers = job.row(1_000_000).await?;
    ensure!(numbers.iter().all(|n| *n >= 1_000_000), "rows of the old statements: {:?}", numbers.first());
    let epoch = |job: &serde_json::Value| job.pointer("/status/deployed/epoch").and_then(serde_json::Value::as_u64);
    ensure!(epoch(&after) > epoch(&before), "the epoch went from {:?} to {:?}", epoch(&before), epoch(&after));
    // More memory: the same way.
    job.patch(json!({"resources": {"memory": "320Mi"}})).await?;
    job.ready("Running").await?;
    ensure!(job.incarnation().await?.0 != new_pod, "other resources need another pod");
    job.row(1_000_000).await?;
    Ok(())
}

/// Statements that can't be planned change nothing but the status.
pub async fn bad_sql_leaves_the_old_running(space: Space) -> Result<()> {
    let job = Job::apply(&space, &manifest("careful", &endless(1))).await?;
    job.ready("Running").await?;
    job.row(2).await?;
    let before = job.incarnation().await?;
    job.patch(json!({"sql": {"inline": "INSERT INTO out\n  SELECT nope FROM numbers;"}})).await?;
    let stalled = job.stalled(&["PlanInvalid"], "TR-").await?;
    let plan = settled(&stalled, "PlanValid")?;
    ensure!(plan.status == "False" && plan.message.contains("TR-"), "PlanValid is {plan:?}");
    let running = condition(&stalled, "Running").context("no condition Running")?;
    ensure!(running.status == "True", "the old statements should run on: {running:?}");
    ensure!(job.kstatus().await? == "Failed", "kstatus says {}", job.kstatus().await?);
    space.event("careful", &["PlanInvalid"], "TR-").await?;
    job.writes_on().await?;
    ensure!(job.incarnation().await? == before, "the pod was touched: {:?}, was {before:?}", job.incarnation().await?);

    // Back to what runs: healthy, and still the same pod.
    job.patch(json!({"sql": {"inline": endless(1)}})).await?;
    job.ready("Running").await?;
    ensure!(job.incarnation().await? == before, "going back restarted the pod");
    // Another that can't be planned, then one that can.
    job.patch(json!({"sql": {"inline": "SELEC 1;"}})).await?;
    job.stalled(&["PlanInvalid"], "TR-1000").await?;
    job.patch(json!({"sql": {"inline": endless(5000)}})).await?;
    job.ready("Running").await?;
    job.row(5000).await?;
    Ok(())
}

/// The webhook says at `kubectl apply` what is wrong and where.
pub async fn webhook_refuses_bad_sql(space: Space) -> Result<()> {
    let namespaces = kube::Api::<k8s_openapi::api::core::v1::Namespace>::all(space.client());
    let label = json!({"metadata": {"labels": {WEBHOOK_LABEL: "yes"}}});
    namespaces.patch(space.name(), &kube::api::PatchParams::default(), &kube::api::Patch::Merge(&label)).await?;
    let bad = manifest("typo", "CREATE TABLE numbers (n BIGINT) WITH (connector = 'datagen');\nSELECT nope FROM numbers;");
    // failurePolicy is Ignore: until the webhook's certificate is known everywhere a bad job gets in. It must not stay so.
    let refusal = until("the webhook refuses a bad job", secs(60), async || match space.apply(&bad).await {
        Ok(_) => {
            space.delete_object(API_VERSION, "StreamingJob", "typo").await?;
            anyhow::bail!("it was admitted")
        }
        Err(error) => Ok(format!("{error:#}")),
    })
    .await?;
    ensure!(refusal.contains("TR-1002"), "the refusal has no code: {refusal}");
    ensure!(refusal.contains("line 2"), "the refusal names no line: {refusal}");
    Job::apply(&space, &manifest("right", &endless(1))).await?.ready("Running").await?;
    Ok(())
}

/// What comes later is refused in the open and not ignored: several workers, upgrades that keep state.
pub async fn what_is_not_there_yet_is_refused(space: Space) -> Result<()> {
    for (name, pointer, value, word) in
        [("wide", "/replicas", json!(2), "replicas"), ("stateful", "/upgrade/mode", json!("Savepoint"), "Savepoint")]
    {
        match space.apply(&with(manifest(name, &endless(1)), pointer, value)).await {
            // The schema or a rule may refuse it already.
            Err(error) => ensure!(format!("{error:#}").contains(word), "{name}: {error:#}"),
            Ok(_) => {
                let job = Job::named(&space, name);
                let stalled = job.stalled(&["PlanInvalid"], word).await?;
                let plan = condition(&stalled, "PlanValid").context("no condition PlanValid")?;
                ensure!(plan.status == "False", "{name}: PlanValid is {plan:?}");
                ensure!(job.pods().await?.is_empty(), "{name} has pods");
                space.event(name, &["PlanInvalid"], word).await?;
            }
        }
    }
    Ok(())
}

/// Other managers: the same values are no conflict, other values are; a child that somebody changes is put right.
pub async fn other_managers(space: Space) -> Result<()> {
    let wanted = manifest("shared", &endless(1));
    let job = Job::apply(&space, &wanted).await?;
    job.ready("Running").await?;
    let before = job.incarnation().await?;
    space.apply_as("gitops", false, &wanted).await.context("the same manifest by another manager")?;
    let other = with(wanted.clone(), "/resources/memory", json!("512Mi"));
    let error = space.apply_as("gitops", false, &other).await.err().context("a conflicting manifest was taken")?;
    ensure!(format!("{error:#}").contains("conflict"), "{error:#}");
    let back = job.ready("Running").await?;
    ensure!(job.incarnation().await? == before, "a second manager with the same values restarted the pod");

    // The operator writes nothing into what users own.
    let managers = back.pointer("/metadata/managedFields").cloned().unwrap_or_default();
    for entry in managers.as_array().into_iter().flatten() {
        let manager = entry["manager"].as_str().unwrap_or_default();
        if manager.starts_with("tiderace-operator") {
            ensure!(entry.pointer("/fieldsV1/f:spec").is_none(), "{manager} owns fields of the spec: {entry}");
        }
    }

    // A child that somebody bends is put right.
    let sets = space.list("apps/v1", "StatefulSet", "tiderace.dev/job=shared").await?;
    let name = sets
        .first()
        .and_then(|s| s.pointer("/metadata/name"))
        .and_then(serde_json::Value::as_str)
        .context("no StatefulSet")?
        .to_owned();
    space.merge("apps/v1", "StatefulSet", &name, &json!({"spec": {"replicas": 3}})).await?;
    until("the StatefulSet has one replica again", secs(60), async || {
        let set = space.get("apps/v1", "StatefulSet", &name).await?;
        ensure!(set.pointer("/spec/replicas") == Some(&json!(1)), "it has {}", set["spec"]["replicas"]);
        Ok(())
    })
    .await?;
    let services = space.list("v1", "Service", "tiderace.dev/job=shared").await?;
    ensure!(!services.is_empty(), "the job has no Service");
    for service in &services {
        let name = service.pointer("/metadata/name").and_then(serde_json::Value::as_str).context("no name")?;
        let uid = service.pointer("/metadata/uid").cloned();
        space.delete_object("v1", "Service", name).await?;
        until(format!("the Service {name} is there again"), secs(60), async || {
            let service = space.get("v1", "Service", name).await?;
            ensure!(service.pointer("/metadata/uid").cloned() != uid, "the old one is still there");
            Ok(())
        })
        .await?;
    }
    job.ready("Running").await?;
    job.writes_on().await
}
