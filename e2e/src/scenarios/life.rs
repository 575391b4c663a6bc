//! The life of a job: created, run, suspended, finished, deleted.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::job::{Job, bounded, condition, endless, manifest, with};
use crate::space::Space;
use crate::wait::{secs, until};

/// What a newcomer does: apply the example, wait, look.
pub async fn example_writes_rows(space: Space) -> Result<()> {
    let path = space.cluster().root().join("examples/kubernetes/bids-by-channel.yaml");
    let path = path.display().to_string();
    space.cluster().kubectl(&["-n", space.name(), "apply", "-f", &path]).await?;
    space
        .cluster()
        .kubectl(&["-n", space.name(), "wait", "--for=condition=Ready", "streamingjob/bids-by-channel", "--timeout=90s"])
        .await?;
    let job = Job::named(&space, "bids-by-channel");
    let status = job.ready("Running").await?;
    ensure!(status.pointer("/status/phase") == Some(&json!("Running")), "the phase is {}", status["status"]["phase"]);
    ensure!(job.kstatus().await? == "Current", "kstatus says {}", job.kstatus().await?);
    // Five channels, windows of five seconds.
    until("two windows of five channels", secs(60), async || {
        let log = job.log().await?;
        let rows = log.lines().filter(|l| l.contains("+I[")).count();
        ensure!(rows >= 10, "{rows} rows in {log}");
        Ok(())
    })
    .await?;
    let metrics = job.http("/metrics").await?;
    ensure!(metrics.lines().any(|l| l.starts_with("tiderace_")), "no figures of the worker in {metrics}");
    space.event("bids-by-channel", &["Running"], "").await?;
    let columns = space.cluster().kubectl(&["-n", space.name(), "get", "sj"]).await?;
    ensure!(columns.contains("Running") && columns.contains("True"), "kubectl get shows {columns}");
    Ok(())
}

/// Within this a job must be Ready after `kubectl apply`, and Suspended after it was asked, by the operator's own conditions.
const READY_MAX_S: f64 = 10.0;
const SUSPENDED_MAX_S: f64 = 5.0;

/// When the condition Ready last changed, Unix seconds.
fn ready_since(job: &Value) -> Result<f64> {
    let conditions = job.pointer("/status/conditions").and_then(Value::as_array).context("no conditions")?;
    let ready = conditions.iter().find(|c| c["type"] == "Ready").context("no condition Ready")?;
    let at: jiff::Timestamp = ready["lastTransitionTime"].as_str().context("no time")?.parse()?;
    Ok(at.as_second() as f64)
}

/// How long it takes when the machine does nothing else, and the image is there: three times, as times have whole seconds.
pub async fn ready_and_suspended_in_time(space: Space) -> Result<()> {
    let now = || jiff::Timestamp::now().as_millisecond() as f64 / 1000.0;
    let mut worst = (0.0_f64, 0.0_f64, 0.0_f64);
    for round in 0..3 {
        let asked = now();
        let job = Job::apply(&space, &manifest(&format!("timed-{round}"), &endless(1))).await?;
        let ready = ready_since(&job.ready("Running").await?)? - asked;
        let asked = now();
        job.patch(json!({"state": "Suspended"})).await?;
        let suspended = ready_since(&job.ready("Suspended").await?)? - asked;
        let asked = now();
        job.patch(json!({"state": "Running"})).await?;
        let resumed = ready_since(&job.ready("Running").await?)? - asked;
        worst = (worst.0.max(ready), worst.1.max(suspended), worst.2.max(resumed));
        job.delete().await?;
        job.gone(secs(90)).await?;
    }
    println!("        ready after {:.1} s, suspended after {:.1} s, resumed after {:.1} s, at worst", worst.0, worst.1, worst.2);
    ensure!(worst.0 <= READY_MAX_S, "a job was ready after {:.1} s", worst.0);
    ensure!(worst.1 <= SUSPENDED_MAX_S, "a job was suspended after {:.1} s", worst.1);
    ensure!(worst.2 <= READY_MAX_S, "a resumed job was ready after {:.1} s", worst.2);
    Ok(())
}

/// Suspended within seconds, its pod gone, healthy; running again when asked; suspended from the start.
pub async fn suspend_and_resume(space: Space) -> Result<()> {
    let job = Job::apply(&space, &manifest("pauses", &endless(1))).await?;
    job.ready("Running").await?;
    job.row(3).await?;
    job.patch(json!({"state": "Suspended"})).await?;
    job.ready("Suspended").await?;
    ensure!(job.pods().await?.is_empty(), "a suspended job has pods");
    ensure!(job.kstatus().await? == "Current", "kstatus of a suspended job is {}", job.kstatus().await?);
    space.event("pauses", &["Suspended"], "").await?;
    job.patch(json!({"state": "Running"})).await?;
    job.ready("Running").await?;
    job.row(3).await?;

    let idle = Job::apply(&space, &with(manifest("idle", &endless(1)), "/state", json!("Suspended"))).await?;
    idle.ready("Suspended").await?;
    ensure!(idle.pods().await?.is_empty(), "a job that was created suspended has pods");
    idle.patch(json!({"state": "Running"})).await?;
    idle.ready("Running").await?;
    idle.row(1).await?;
    Ok(())
}

/// All rows, once, then `Finished`: Ready, and not run again.
pub async fn bounded_job_finishes(space: Space) -> Result<()> {
    let job = Job::apply(&space, &manifest("ends", &bounded(1000))).await?;
    let finished = job.ready("Finished").await?;
    ensure!(finished.pointer("/status/phase") == Some(&json!("Finished")), "the phase is {}", finished["status"]["phase"]);
    ensure!(job.kstatus().await? == "Current", "kstatus of a finished job is {}", job.kstatus().await?);
    if !job.pods().await?.is_empty() {
        let mut numbers = job.numbers().await?;
        numbers.sort_unstable();
        ensure!(
            numbers == (1..=1000).collect::<Vec<_>>(),
            "{} rows: {:?}…",
            numbers.len(),
            numbers.iter().take(5).collect::<Vec<_>>()
        );
        ensure!(job.restarts().await? == 0, "its container was restarted");
    }
    // A change that has nothing to do with the run doesn't start it again.
    space.merge(crate::job::API_VERSION, "StreamingJob", "ends", &json!({"metadata": {"labels": {"team": "a"}}})).await?;
    let epoch = |job: &Value| job.pointer("/status/deployed/epoch").cloned();
    job.patch(json!({"ttlSecondsAfterFinished": 86400})).await?;
    let again = job.ready("Finished").await?;
    ensure!(
        epoch(&again) == epoch(&finished),
        "a finished job was deployed anew: {} after {}",
        again["status"],
        finished["status"]
    );
    Ok(())
}

/// `ttlSecondsAfterFinished` removes the job and all it had.
pub async fn finished_job_goes_after_its_time(space: Space) -> Result<()> {
    let job = Job::apply(&space, &with(manifest("brief", &bounded(10)), "/ttlSecondsAfterFinished", json!(1))).await?;
    job.gone(secs(120)).await
}

/// `activeDeadlineSeconds` stops a job that would go on.
pub async fn deadline_ends_a_job(space: Space) -> Result<()> {
    let job = Job::apply(&space, &with(manifest("overdue", &endless(1)), "/activeDeadlineSeconds", json!(5))).await?;
    let failed = job.stalled(&["DeadlineExceeded"], "").await?;
    let ready = condition(&failed, "Ready").context("no condition Ready")?;
    ensure!(ready.status == "False", "a job that was stopped at its deadline is {ready:?}");
    ensure!(job.kstatus().await? == "Failed", "kstatus says {}", job.kstatus().await?);
    until("its pod is gone", secs(60), async || {
        let pods = job.pods().await?;
        ensure!(pods.is_empty(), "{} pods", pods.len());
        Ok(())
    })
    .await
}

/// Deletion ends, whatever the job was doing: running, suspended, waiting for an image, refused by the planner, with a dead worker.
pub async fn deleted_in_each_state(space: Space) -> Result<()> {
    let running = Job::apply(&space, &manifest("running", &endless(1))).await?;
    let suspended = Job::apply(&space, &with(manifest("suspended", &endless(1)), "/state", json!("Suspended"))).await?;
    let pulling = Job::apply(&space, &with(manifest("pulling", &endless(1)), "/image", json!("localhost/nothing:here"))).await?;
    let refused = Job::apply(&space, &manifest("refused", "SELECT no_such_function(1);")).await?;
    running.ready("Running").await?;
    suspended.ready("Suspended").await?;
    refused.stalled(&["PlanInvalid"], "TR-").await?;
    // A worker that answers nobody: deletion is bounded all the same.
    let pod = running.worker().await?;
    let uid = kube::ResourceExt::uid(&pod).context("no uid")?;
    space.cluster().signal_in_pod(&uid, "tiderace", "-STOP")?;
    for job in [&running, &suspended, &pulling, &refused] {
        job.delete().await?;
    }
    let fresh = Job::apply(&space, &manifest("fresh", &endless(1))).await?;
    fresh.delete().await?;
    for job in [&suspended, &pulling, &refused, &fresh] {
        job.gone(secs(60)).await?;
    }
    running.gone(secs(150)).await
}
