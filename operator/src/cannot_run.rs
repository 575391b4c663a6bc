//! Manifests that the schema lets through and no worker can run: told before anything is started.

use tiderace_crds::{StreamingJobSpec, UpgradeMode};

/// The least memory of a worker's container. The process itself takes about half of it before the first row.
const MEMORY_BYTES_MIN: u64 = 128 << 20;

/// Why `spec` can't run, and what to change; `None` if nothing speaks against it.
pub(crate) fn cannot_run(spec: &StreamingJobSpec) -> Option<String> {
    if spec.replicas > 1 {
        return Some(format!("spec.replicas is {}: several workers are not yet available; set it to 1", spec.replicas));
    }
    let mode = spec.upgrade.as_ref().map_or(UpgradeMode::Stateless, |upgrade| upgrade.mode);
    if mode != UpgradeMode::Stateless {
        return Some(format!("spec.upgrade.mode {mode:?} is not yet available: set it to Stateless"));
    }
    let memory = spec.resources.as_ref().and_then(|resources| resources.memory.as_ref());
    memory.filter(|memory| memory.bytes() < MEMORY_BYTES_MIN).map(|memory| {
        format!(
            "spec.resources.memory is {memory}: a worker needs at least {}Mi; without a unit the number is bytes",
            MEMORY_BYTES_MIN >> 20
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn what_no_worker_can_run_is_told_with_the_field() {
        let told = |more: serde_json::Value| {
            let mut spec = json!({"sql": {"inline": "SELECT 1"}});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            cannot_run(&serde_json::from_value(spec).unwrap())
        };
        assert_eq!(told(json!({})), None);
        assert_eq!(told(json!({"resources": {"memory": "128Mi"}})), None);
        for (more, field) in [
            (json!({"replicas": 2}), "spec.replicas is 2"),
            (json!({"upgrade": {"mode": "Savepoint"}}), "spec.upgrade.mode Savepoint"),
            (json!({"resources": {"memory": "1"}}), "spec.resources.memory is 1:"),
            (json!({"resources": {"memory": 8}}), "spec.resources.memory is 8:"),
            (json!({"resources": {"memory": "127Mi"}}), "at least 128Mi"),
        ] {
            assert!(told(more.clone()).unwrap().contains(field), "{more}");
        }
    }
}
