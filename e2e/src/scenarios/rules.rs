//! The rules of the definition, on the real API server: it gives the same verdicts as the types do in process.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::job::{endless, manifest, with};
use crate::space::Space;

/// Manifests that must be refused at `kubectl apply`, and a word of the refusal.
fn refused() -> Vec<(&'static str, Value, &'static str)> {
    let good = manifest("rule", &endless(1));
    let named = |name: &str| manifest(name, &endless(1));
    vec![
        ("long name", named(&"a".repeat(46)), "at most 45"),
        ("name that begins with a digit", named("1st"), "begin with a letter"),
        ("no statements", with(good.clone(), "/sql", json!({})), "exactly one"),
        (
            "statements twice",
            with(good.clone(), "/sql", json!({"inline": "SELECT 1", "configMapKeyRef": {"name": "m", "key": "k"}})),
            "exactly one",
        ),
        ("half a core", with(good.clone(), "/resources/cpu", json!("500m")), "cpu"),
        ("no core", with(good.clone(), "/resources/cpu", json!(0)), "cpu"),
        (
            "more cores than partitions",
            with(with(good.clone(), "/resources/cpu", json!("4")), "/maxParallelism", json!(2)),
            "maxParallelism",
        ),
        ("a size that is none", with(good.clone(), "/resources/memory", json!("lots")), "memory"),
        ("too many partitions", with(good.clone(), "/maxParallelism", json!(40000)), "maxParallelism"),
        ("a state that is none", with(good.clone(), "/state", json!("Paused")), "state"),
        ("an unknown field", with(good.clone(), "/restartPolcy", json!({})), "restartPolcy"),
        ("statements of a megabyte", manifest("rule", &"x".repeat(1 << 20)), "sql"),
        ("a volume that is none", with(good, "/storage", json!({"size": "-1Gi"})), "storage"),
    ]
}

/// Each is refused with a message that helps; what can't change is refused on change.
pub async fn api_server_refuses_what_the_rules_refuse(space: Space) -> Result<()> {
    for (what, manifest, word) in refused() {
        let error = space.apply(&manifest).await.err().with_context(|| format!("{what} was taken"))?;
        let text = format!("{error:#}");
        ensure!(text.contains(word), "{what}: the refusal lacks {word:?}: {text}");
    }
    let job = with(manifest("fixed", &endless(1)), "/state", json!("Suspended"));
    let job = with(with(job, "/maxParallelism", json!(128)), "/storage", json!({"size": "2Gi", "storageClassName": "standard"}));
    space.apply(&job).await?;
    for (what, pointer, value) in [
        ("another number of partitions", "/maxParallelism", json!(256)),
        ("another storage class", "/storage/storageClassName", json!("standard-retain")),
        ("a smaller volume", "/storage/size", json!("1Gi")),
    ] {
        let result = space.apply(&with(job.clone(), pointer, value)).await;
        ensure!(result.is_err(), "{what} was taken");
    }
    space.apply(&with(job, "/storage/size", json!("3Gi"))).await.context("a larger volume")?;
    Ok(())
}
