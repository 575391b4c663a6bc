//! The manifest's types: what `kubectl apply` and `tiderace run` both read.
//!
//! ```text
//! types (kube-derive, CEL rules) ──▶ CustomResourceDefinition ──▶ yaml/streamingjob.yaml     (checked in, tested to be unchanged)
//!                                          │ OpenAPI schema
//! job.yaml ──▶ document tree with places ──┴─▶ checked: fields, types, bounds, CEL rules ──▶ Manifest
//! ```
//! A manifest from a file is judged by the very schema that an API server has, so that one that runs on a laptop is not refused by a
//! cluster. A field that has no effect yet is not in the schema, and so an error. This crate runs nothing and knows no SQL.
#![forbid(unsafe_code)]

pub mod admin;
mod definition;
mod document;
mod manifest;
mod resources;
mod schema;
mod status;
mod streaming_job;
mod streaming_snapshot;

pub use definition::{DEFINITION_BYTES_MAX, definitions, streaming_job_yaml, streaming_snapshot_yaml};
pub use document::Place;
pub use manifest::{MANIFEST_BYTES_MAX, Manifest, ManifestError, Problem, SqlText};
pub use resources::{Cores, MemorySize};
pub use status::{
    Deployed, FAILURES_MAX, Lag, Operation, OperationKind, Outcome, OutcomeKind, Phase, Plan, Restarts, Rows, Step,
    StreamingJobStatus,
};
pub use streaming_job::{
    ConfigMapKey, Deletion, DesiredState, DisruptionBudgetSettings, Monitoring, NetworkPolicyMode, NetworkPolicySettings,
    ObjectName, RESTART_ANNOTATION, Resources, RestartPolicy, Retention, Rollback, Seccomp, SecretKey, Sql, Storage,
    StreamingJob, StreamingJobSpec, Upgrade, UpgradeMode,
};
pub use streaming_snapshot::{StreamingSnapshot, StreamingSnapshotSpec, StreamingSnapshotStatus};
