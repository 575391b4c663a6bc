//! What a worker's admin API says and takes: the wire types that `tiderace serve` answers with and the operator reads.
//!
//! JSON over HTTPS with the job's own CA on both sides ([`ADMIN_PORT`]); probes and metrics go in plain text on [`HEALTH_PORT`], as neither the
//! kubelet nor Prometheus has a certificate of the job's. Fields are only ever added; a reader ignores those that it doesn't know.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Port of the admin API, mTLS.
pub const ADMIN_PORT: u16 = 8443;
/// Port of `/livez`, `/readyz`, `/startupz` and `/metrics`, plain HTTP.
pub const HEALTH_PORT: u16 = 8080;

/// Folder in the pod with the manifest: `job.yaml`, and `job.sql` with the statements where the manifest takes them from a ConfigMap.
pub const JOB_DIRECTORY: &str = "/etc/tiderace/job";
/// Folder in the pod with `ca.crt`, `tls.crt` and `tls.key`, read anew when they change.
pub const TLS_DIRECTORY: &str = "/etc/tiderace/tls";
/// Folder in the pod with one file for each name of `spec.sql.secretRefs`.
pub const SECRETS_DIRECTORY: &str = "/etc/tiderace/secrets";
/// The worker's working directory: its volume, or an emptyDir.
pub const WORK_DIRECTORY: &str = "/var/lib/tiderace";

/// Environment variable with the deploy epoch of the pod: it grows with every start that the operator orders, and a worker refuses calls of another epoch.
pub const EPOCH_VARIABLE: &str = "TIDERACE_DEPLOY_EPOCH";

/// Environment variable with the collector that a worker's spans go to, `http://HOST:PORT`; none are sent without it.
pub const OTLP_VARIABLE: &str = "TIDERACE_OTLP_ENDPOINT";

/// Environment variable with what the spans' resource is called besides, `KEY=VALUE,KEY=VALUE`, as OpenTelemetry has it.
pub const OTLP_ATTRIBUTES_VARIABLE: &str = "OTEL_RESOURCE_ATTRIBUTES";

/// Header of any call with the deploy epoch that the caller means; a worker of another one answers 409 and does nothing.
pub const EPOCH_HEADER: &str = "tiderace-deploy-epoch";

/// Header of an operator's call with its fencing token: it grows with each change of hands among operators. A worker answers 409 to an order with a
/// lower one than it has heard, and keeps the highest in its working directory.
pub const TOKEN_HEADER: &str = "tiderace-operator-token";

/// The largest body of a request, bytes; a larger one is answered with 413.
pub const REQUEST_BYTES_MAX: usize = 4 << 20;

/// The body of every answer that is no success.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ErrorReply {
    /// What is wrong.
    pub error: Problem,
}

/// `GET /v1/version`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VersionReply {
    /// Version of the engine, `0.1.0`.
    pub version: String,
    /// Commit it was built from, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

/// What a worker is doing.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkerState {
    /// Reading the manifest and planning.
    Starting,
    /// Rows flow.
    Running,
    /// Asked to stop; rows that were taken in go to the sinks.
    Draining,
    /// Stopped as asked: everything taken in is at the sinks.
    Stopped,
    /// A bounded job came to its end. The process stays until its pod is taken away, and doesn't run the job again after a restart in the same pod.
    Finished,
    /// The job failed. The process writes the cause to the termination log and exits with 3 after its last status was readable.
    Failed,
}

/// `GET /v1/status`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StatusReply {
    /// `metadata.name` of the job.
    pub job: String,
    /// Deploy epoch the worker was started with.
    pub epoch: u64,
    /// What it is doing.
    pub state: WorkerState,
    /// SHA-256 of the plan (`sha256:…`), once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
    /// Pinned cores.
    pub cores: u32,
    /// Rows taken in since the start.
    pub rows_in: u64,
    /// Rows given to sinks since the start.
    pub rows_out: u64,
    /// Rows dropped since the start, for whatever cause (`/metrics` splits them).
    pub rows_dropped: u64,
    /// Bytes of state in memory.
    pub state_bytes: u64,
    /// Bound of the state in memory.
    pub state_budget_bytes: u64,
    /// How long ago the newest row was read against its event time, milliseconds; of the source that is furthest behind. Absent where no source has event time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<i64>,
    /// Lowest watermark over the sources, microseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark_us: Option<i64>,
    /// Unix milliseconds of the process's start.
    pub started_ms: i64,
    /// Why it failed, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
    /// `operationId` of the last [`StopRequest`] that was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation_id: Option<String>,
}

/// One error, as `tiderace check` shows it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// `TR-nnnn`.
    pub code: String,
    /// One sentence that names the object.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Line in the SQL, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Column in that line, in characters, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
}

/// `POST /v1/plan:check`: plan a job that is not run. The planner mode of the image answers this alone.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PlanCheckRequest {
    /// The whole manifest as JSON (`apiVersion`, `kind`, `metadata`, `spec`).
    pub job: serde_json::Value,
    /// The statements, where the manifest takes them from a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<String>,
}

/// What came of a plan check.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PlanCheckReply {
    /// Whether the job can be run.
    pub valid: bool,
    /// SHA-256 of the plan, when it is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
    /// Version of the engine that planned.
    pub engine_version: String,
    /// All that is wrong, in the order of the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Problem>,
    /// What should be looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Problem>,
}

/// How to stop.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Bring all that was taken in to the sinks, then stop.
    Drain,
    /// Stop at once.
    Cancel,
}

/// `POST /v1/stop`: idempotent by `operationId`; answers 202 at once, the state in [`StatusReply`] tells when it is done.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StopRequest {
    /// `status.operation.id` of the order.
    pub operation_id: String,
    /// Deploy epoch that the caller means; another one is refused with 409.
    pub epoch: u64,
    /// How.
    pub mode: StopMode,
}

/// `GET /v1/exceptions`: what went wrong, by cause, the cause that came last at the end; at most [`EXCEPTIONS_MAX`] causes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ExceptionsReply {
    /// One entry for each cause at each operator.
    pub exceptions: Vec<Exception>,
    /// Whether causes that came earlier had to make room.
    #[serde(default)]
    pub truncated: bool,
}

/// How many causes a worker keeps.
pub const EXCEPTIONS_MAX: usize = 100;
/// How many occurrences of a cause a worker keeps.
pub const OCCURRENCES_MAX: usize = 16;
/// Refused rows of one cause within so long are one occurrence, milliseconds.
pub const OCCURRENCE_SPAN_MS: i64 = 60_000;

/// Errors or refused rows of one cause at one operator.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Exception {
    /// When it first came, Unix milliseconds.
    #[serde(default)]
    pub first_ms: i64,
    /// When it last came, Unix milliseconds.
    pub at_ms: i64,
    /// The operator, source or sink of the plan that it came from; absent where it is the whole job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// What it was; of several, the last: for a bad row, where it came from, without the row itself.
    pub problem: Problem,
    /// How often it came: rows, or failures of the job. A restart of the process doesn't begin anew.
    pub count: u64,
    /// The last occurrences, the newest last, at most [`OCCURRENCES_MAX`]. Each failure of the job is one; refused rows of a process within
    /// [`OCCURRENCE_SPAN_MS`] are one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub occurrences: Vec<Occurrence>,
}

/// One time that a cause came up.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Occurrence {
    /// When it began, Unix milliseconds.
    pub first_ms: i64,
    /// When its last row came, Unix milliseconds; the same as `firstMs` for a failure.
    pub at_ms: i64,
    /// The deploy epoch of the worker that saw it.
    pub epoch: u64,
    /// How many rows, or failures.
    pub count: u64,
    /// What was said; of several rows, of the last.
    pub message: String,
}
