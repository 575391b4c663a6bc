//! `StreamingSnapshot`: a picture of a job's state that outlives the job, `tiderace.dev/v1alpha1`.
//!
//! The kind has its place so that tools and access rules can be written for it. No snapshot can be taken yet, and every object says so in its conditions.
#![allow(clippy::duplicated_attributes, reason = "each column is an attribute, and strings are columns of the same type")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::streaming_job::ObjectName;

/// Which job a snapshot is of. It can't change.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "tiderace.dev",
    version = "v1alpha1",
    kind = "StreamingSnapshot",
    namespaced,
    cel,
    derive = "PartialEq",
    shortname = "ssnap",
    category = "all",
    category = "streaming",
    status = "StreamingSnapshotStatus",
    selectable = ".spec.jobRef.name",
    doc = "A snapshot of a streaming job's state. Snapshots are not yet available: each object says so in its conditions.",
    printcolumn(name = "Job", type_ = "string", json_path = ".spec.jobRef.name"),
    printcolumn(name = "Complete", type_ = "string", json_path = ".status.conditions[?(@.type==\"Complete\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Complete\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self == oldSelf").message("spec can't change: take another snapshot"))]
pub struct StreamingSnapshotSpec {
    /// The job, in the same namespace.
    pub job_ref: ObjectName,
}

/// What the operator says of a snapshot.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct StreamingSnapshotStatus {
    /// The generation that the rest of the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Complete; Stalled while nothing can be done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use serde_json::json;

    use super::*;

    fn snapshot(job: &str) -> StreamingSnapshot {
        serde_json::from_value(json!({
            "apiVersion": "tiderace.dev/v1alpha1", "kind": "StreamingSnapshot",
            "metadata": {"name": "before-migration"}, "spec": {"jobRef": {"name": job}},
        }))
        .unwrap()
    }

    #[test]
    fn a_snapshot_can_not_change() {
        assert!(snapshot("a").validate_cel().is_ok());
        assert!(snapshot("a").validate_cel_update(&snapshot("a")).is_ok());
        let errors = snapshot("b").validate_cel_update(&snapshot("a")).unwrap_err().into_vec();
        assert!(errors.len() == 1 && errors[0].message.contains("can't change"), "{errors:?}");
    }
}
