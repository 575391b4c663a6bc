//! Volumes of jobs: they grow, and stay or go with the job as its manifest says.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::job::{Job, endless, manifest, with};
use crate::space::Space;
use crate::wait::{secs, until};

async fn claims(space: &Space, job: &str) -> Result<Vec<Value>> {
    space.list("v1", "PersistentVolumeClaim", &format!("tiderace.dev/job={job}")).await
}

/// A larger `storage.size` grows the claim while the job goes on.
pub async fn volume_grows(space: Space) -> Result<()> {
    let job = Job::apply(&space, &with(manifest("grows", &endless(1)), "/storage", json!({"size": "1Gi"}))).await?;
    job.ready("Running").await?;
    let before = job.incarnation().await?;
    job.patch(json!({"storage": {"size": "2Gi"}})).await?;
    until("the claim has grown", secs(90), async || {
        let claims = claims(&space, "grows").await?;
        ensure!(claims.len() == 1, "{} claims", claims.len());
        let size = claims[0].pointer("/status/capacity/storage").cloned();
        ensure!(size == Some(json!("2Gi")), "its capacity is {size:?}");
        Ok(())
    })
    .await?;
    job.ready("Running").await?;
    let sets = space.list("apps/v1", "StatefulSet", "tiderace.dev/job=grows").await?;
    let wanted = sets.first().and_then(|s| s.pointer("/spec/volumeClaimTemplates/0/spec/resources/requests/storage")).cloned();
    ensure!(wanted == Some(json!("2Gi")), "the StatefulSet's template asks for {wanted:?}");
    ensure!(job.incarnation().await? == before, "the pod was restarted for its volume");
    job.writes_on().await?;
    // Smaller is refused by the API server.
    let error = job.patch(json!({"storage": {"size": "1Gi"}})).await.err().context("a smaller size was taken")?;
    ensure!(format!("{error:#}").contains("storage"), "{error:#}");
    Ok(())
}

/// `retention: Retain` keeps the claim when the job is deleted, `Delete` doesn't.
pub async fn volume_outlives_the_job(space: Space) -> Result<()> {
    for (name, retention, left) in [("kept", "Retain", 1), ("dropped", "Delete", 0)] {
        let storage = json!({"size": "1Gi", "retention": retention});
        let job = Job::apply(&space, &with(manifest(name, &endless(1)), "/storage", storage)).await?;
        job.ready("Running").await?;
        ensure!(claims(&space, name).await?.len() == 1, "no claim while it runs");
        job.delete().await?;
        job.gone(secs(90)).await?;
        until(format!("{left} claims are left of {name}"), secs(60), async || {
            let found = claims(&space, name).await?.len();
            ensure!(found == left, "{found}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
