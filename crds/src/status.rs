//! What the operator says of a job. It is also the operator's write-ahead record: a step stands in [`StreamingJobStatus::operation`] before it is taken.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many failures are remembered for the restart policy: one more than `maxRestarts` can be.
pub const FAILURES_MAX: usize = 101;

/// What the operator found and did.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct StreamingJobStatus {
    /// The generation of the manifest that the rest of the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// A summary for people; the conditions are for machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,

    /// Pods there are.
    #[serde(default)]
    pub replicas: i32,

    /// Pods that are ready.
    #[serde(default)]
    pub ready_replicas: i32,

    /// Selects the job's workers, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,

    /// The highest deploy epoch that was ever ordered. It never goes back.
    #[serde(default)]
    pub epoch: u64,

    /// What was started last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployed: Option<Deployed>,

    /// The revision that was last seen ready: what a rollback returns to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_revision: Option<String>,

    /// The image that this revision ran with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_image: Option<String>,

    /// What is being done. Written before anything is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,

    /// What planning the newest manifest said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,

    /// The revision whose plan is being checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checking: Option<String>,

    /// How the deployed job ended, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,

    /// Failures of workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<Restarts>,

    /// Rows of the running epoch, as its worker last said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<Rows>,

    /// How far the job is behind its input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<Lag>,

    /// The value of the annotation `tiderace.dev/restart` that was last acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_nonce: Option<String>,

    /// Ready, Running and PlanValid always; Reconciling and Stalled only while they are True.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A summary of where a job is in its life.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not started: being planned, or waiting for something it needs.
    Pending,
    /// A worker is being started.
    Starting,
    /// Rows flow.
    Running,
    /// A changed job replaces the running one.
    Upgrading,
    /// A worker failed and is started again.
    Recovering,
    /// Being suspended.
    Suspending,
    /// Has no pod, as asked.
    Suspended,
    /// Came to its end.
    Finished,
    /// Won't run without a change by a person.
    Failed,
    /// Being deleted.
    Deleting,
}

/// What was started last.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Deployed {
    /// Generation of the manifest it was made from.
    pub generation: i64,
    /// Its deploy epoch.
    pub epoch: u64,
    /// Name of the ConfigMap with the manifest that the worker reads.
    pub revision: String,
    /// The image, the operator's default put in.
    pub image: String,
    /// Which version of the operator's templates its objects were made by; it stays while the job isn't changed, so that a new operator restarts nothing.
    pub renderer_version: u32,
    /// SHA-256 of the plan, as its worker said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
    /// Version of the engine, as its worker said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// When it was ordered.
    pub at: Time,
    /// When the first worker of this run was ordered; a restart doesn't set it anew, a change and a resume do. `activeDeadlineSeconds` counts from here.
    pub started_at: Time,
    /// Whether it was suspended since.
    #[serde(default)]
    pub suspended: bool,
    /// Whether its worker was ready in this epoch.
    #[serde(default)]
    pub was_ready: bool,
}

/// What is being done.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Its name in every order to a worker: orders that carry the same one are the same.
    pub id: String,
    /// What.
    #[serde(rename = "type")]
    pub kind: OperationKind,
    /// How far it is.
    pub step: Step,
    /// The generation it brings about.
    pub target_generation: i64,
    /// The revision it brings about, where it starts workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_revision: Option<String>,
    /// The image of that revision, the operator's default put in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The version of the operator's templates that the objects are made by, where it starts workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renderer_version: Option<u32>,
    /// The epoch that ends.
    pub from_epoch: u64,
    /// The epoch that begins; the same as `fromEpoch` where none does.
    pub to_epoch: u64,
    /// When it began.
    pub started_at: Time,
    /// When the step began.
    pub step_at: Time,
    /// How often the step failed.
    #[serde(default)]
    pub attempts: u32,
    /// Fencing token of the operator that began it: how often the lease had changed hands.
    #[serde(default)]
    pub token: u64,
    /// Why it is done, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// What an operation does.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperationKind {
    /// The first start.
    Deploy,
    /// A changed job replaces the running one.
    Upgrade,
    /// The job that ran before replaces one that doesn't come up.
    Rollback,
    /// The same job is started again: it failed, its objects were taken away, or a restart was asked for.
    Restart,
    /// The job is stopped and keeps its objects.
    Suspend,
    /// A suspended job is started.
    Resume,
    /// The workers of a job that came to its end, or won't run on, are taken away.
    Finish,
    /// The volumes grow.
    ResizeVolumes,
    /// The job goes.
    Delete,
}

/// How far an operation is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The worker brings what it took in to the sinks.
    Draining,
    /// Pods go away.
    Stopping,
    /// Waiting before the next try.
    BackingOff,
    /// Objects are written and a worker comes up.
    Starting,
    /// Volumes grow.
    ResizingVolumes,
    /// The StatefulSet is made anew around its pods, with claims of the new size.
    RecreatingStatefulSet,
    /// Volumes are deleted, where that was asked for.
    DeletingVolumes,
}

/// What planning a manifest said.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The revision that was planned.
    pub revision: String,
    /// The image that planned it.
    pub image: String,
    /// Whether it can be run.
    pub valid: bool,
    /// One word for why not: `PlanInvalid`, or `RolledBack` where it planned and didn't come up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why not: a code, a place and a sentence for each of the first errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// SHA-256 of the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
    /// Version of the engine that planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
}

/// How a job ended.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// How.
    pub kind: OutcomeKind,
    /// When.
    pub at: Time,
    /// Generation of the manifest that ended.
    pub generation: i64,
    /// `Finished`, `RestartsExhausted`, `DeadlineExceeded`.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// How a job ended.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutcomeKind {
    /// All of its input is at the sinks.
    Finished,
    /// It was given up.
    Failed,
}

/// Failures of workers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Restarts {
    /// All since the job was created.
    #[serde(default)]
    pub count: u64,
    /// Those that the restart policy counts: within its window, since the job was last changed.
    #[serde(default)]
    pub window_count: u32,
    /// Their times, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub window: Vec<Time>,
    /// Why the last one: what the worker said as it ended, or what became of its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reason: Option<String>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_time: Option<Time>,
    /// Until when the next start waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff_until: Option<Time>,
    /// The pod whose container restarts are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// How many of them are in `count`.
    #[serde(default)]
    pub pod_restarts: i32,
}

/// Rows of the running epoch.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Rows {
    /// Taken in.
    pub read: u64,
    /// Given to sinks.
    pub written: u64,
    /// Dropped, for whatever cause.
    pub dropped: u64,
}

/// How far a job is behind its input.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Lag {
    /// Seconds between the newest event time that was read and the clock.
    pub seconds: i64,
}
