//! One pass over one object: read, decide, act.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use jiff::Timestamp;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::runtime::controller::Action as Requeue;
use kube::{Resource, ResourceExt};
use serde_json::json;
use tiderace_crds::admin::WorkerState;
use tiderace_crds::{StreamingJobSpec, StreamingJobStatus};
use tracing::Instrument;
use tracing::field::Empty;

use crate::context::{Context, Glance, StatementsVersion};
use crate::decide::{Action, EARLY, Job, POLL_EARLY_MS, POLL_MS, Worker, after, decide, is_true};
use crate::execute::ExecuteError;
use crate::names::{self, FINALIZER, STATUS_MANAGER};

/// The longest wait after a pass that failed.
const ERROR_WAIT_MAX: Duration = Duration::from_secs(300);
/// The same where the API server refused what the job asks for: somebody mends that, and wants to see it.
const REFUSED_WAIT_MAX: Duration = Duration::from_secs(8);

/// How long a pass waits that found that this process doesn't lead just now.
const NOT_LEADING_WAIT: Duration = crate::election::RETRY;

/// The types of conditions that this operator writes.
const CONDITIONS: [&str; 5] = ["Ready", "Stalled", "Reconciling", "Running", "PlanValid"];

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Reading.
    #[error("reading: {0}")]
    Observe(#[from] Box<kube::Error>),
    /// Acting.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
    /// A mistake of this program's: one job's pass ended by it, and no other's.
    #[error("a mistake in the operator, please report it: {0}")]
    Panicked(String),
}

impl ReconcileError {
    fn label(&self) -> &'static str {
        match self {
            Self::Observe(_) => "observe",
            Self::Execute(error) if error.is_conflict() => "conflict",
            Self::Execute(_) => "execute",
            Self::Panicked(_) => "panic",
        }
    }
}

/// What a custom resource says, as far as this operator can read it.
fn job_of(object: &DynamicObject) -> Result<(Job, StreamingJobStatus), String> {
    let spec: StreamingJobSpec = serde_json::from_value(object.data["spec"].clone()).map_err(|error| error.to_string())?;
    let job = Job {
        name: object.name_any(),
        namespace: object.namespace().unwrap_or_default(),
        uid: object.uid().unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or_default(),
        deleted_at: object.metadata.deletion_timestamp.as_ref().map(|t| t.0),
        has_finalizer: object.finalizers().iter().any(|f| f == FINALIZER),
        restart_nonce: object.annotations().get(tiderace_crds::RESTART_ANNOTATION).cloned(),
        spec,
    };
    Ok((job, read_status(object)))
}

/// The status, with the conditions that are the operator's: others may add theirs. One that can't be read was not written by an operator; begin anew
/// rather than not at all.
pub fn read_status(object: &DynamicObject) -> StreamingJobStatus {
    let mut status: StreamingJobStatus = serde_json::from_value(object.data["status"].clone()).unwrap_or_default();
    status.conditions.retain(|condition| CONDITIONS.contains(&condition.type_.as_str()));
    status
}

/// A pass over a job.
pub async fn reconcile_job(trigger: Arc<DynamicObject>, context: Arc<Context>) -> Result<Requeue, ReconcileError> {
    let (name, namespace) = (trigger.name_any(), trigger.namespace().unwrap_or_default());
    let span = tracing::info_span!(
        "reconcile",
        job = %name,
        %namespace,
        generation = Empty,
        phase = Empty,
        operation = Empty,
        operation_id = Empty,
        step = Empty,
        error = Empty,
    );
    let start = Instant::now();
    context.metrics.begin();
    let result = match glance(&namespace, &name, &context).await {
        // A thousand of these a minute say nothing that a collector should keep.
        Some(requeue) => Ok(requeue),
        None => {
            let result = AssertUnwindSafe(pass(&trigger, &context)).catch_unwind().instrument(span.clone()).await;
            let result = result.unwrap_or_else(|cause| Err(ReconcileError::Panicked(panic_text(cause.as_ref()))));
            if let Err(error) = &result {
                span.record("error", tracing::field::display(error));
            }
            result
        }
    };
    context.metrics.end("StreamingJob", start.elapsed().as_secs_f64(), result.as_ref().err().map(ReconcileError::label));
    result
}

/// What a panic said. Nothing that passes share is left half written by one: each takes its locks for a statement or two.
fn panic_text(cause: &(dyn std::any::Any + Send)) -> String {
    let text = cause.downcast_ref::<&str>().copied().map(ToOwned::to_owned).or_else(|| cause.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a text".to_owned())
}

/// A look at a job that runs and of which nothing is reported; `None` where a whole pass is needed.
async fn glance(namespace: &str, name: &str, context: &Context) -> Option<Requeue> {
    if !context.leadership.is_held() {
        return None;
    }
    let glance = context.quiet(&(namespace.to_owned(), name.to_owned()))?;
    let is_as_before = matches!(context.workers.is_running(glance.worker).await, Ok(true))
        && has_same_statements(context, namespace, glance.statements.as_ref()).await;
    let is_early = context.now() < glance.early_until;
    is_as_before.then(|| Requeue::requeue(Duration::from_millis(if is_early { POLL_EARLY_MS } else { POLL_MS })))
}

async fn pass(trigger: &DynamicObject, context: &Context) -> Result<Requeue, ReconcileError> {
    let (name, namespace) = (trigger.name_any(), trigger.namespace().unwrap_or_default());
    if !context.leadership.is_held() {
        // It couldn't renew in time: either it can the next time, or this process ends. No failure of the job's.
        return Ok(Requeue::requeue(NOT_LEADING_WAIT));
    }
    let key = (namespace.clone(), name.clone());
    let changes = context.changes(&key);
    // The trigger comes from a cache that may be behind our own last write.
    let api = context.api(names::API_VERSION, "StreamingJob", &namespace);
    let Some(object) = api.get_opt(&name).await.map_err(Box::new)? else {
        let uid = trigger.uid().unwrap_or_default();
        context.forget_changes(&key);
        context.forget(&uid);
        context.metrics.forget(&uid);
        return Ok(Requeue::await_change());
    };
    let uid = object.uid().unwrap_or_default();
    let (job, before) = match job_of(&object) {
        Ok(read) => read,
        Err(error) => return say_unreadable(context, &object, &error).await,
    };
    if job.deleted_at.is_some() && !job.has_finalizer {
        context.forget(&uid);
        context.metrics.forget(&uid);
        return Ok(Requeue::await_change());
    }
    let scene = context.observe(&job, &before).instrument(tracing::info_span!("observe")).await.map_err(Box::new)?;
    let decision = decide(&job, &before, &scene.observed, context.now());
    context.metrics.show(&job, &decision.status);
    tell_span(&job, &before, &decision.status);
    let span = tracing::info_span!("execute", actions = decision.actions.len());
    let result = context.execute(&job, &object, &before, &scene, &decision).instrument(span).await;
    let mut mended = false;
    match &result {
        Ok(()) => {
            // What is refused is decided again by each pass: one that goes well has mended it. Its status was written before that.
            if scene.observed.failure.is_some() {
                context.remember_failure(&uid, None);
                mended = true;
            }
            context.clear_errors(&uid);
        }
        Err(ExecuteError::NotLeading) => return Ok(Requeue::requeue(NOT_LEADING_WAIT)),
        Err(error) if error.is_conflict() => {
            tracing::debug!(%error, "somebody else was faster");
            return Ok(Requeue::requeue(Duration::from_millis(100)));
        }
        Err(error) => {
            if error.is_namespace_terminating() {
                context.remember_terminating(&uid);
            }
            if let Some(trouble) = error.trouble() {
                context.remember_failure(&uid, Some(trouble));
            }
        }
    }
    result?;
    if decision.actions.is_empty()
        && decision.status.operation.is_none()
        && decision.only_polls
        && job.spec.active_deadline_seconds.is_none()
        && is_true(&decision.status.conditions, "Ready")
        && let (Some(worker), Worker::Status(said)) = (&scene.worker, &scene.observed.worker)
        && said.state == WorkerState::Running
    {
        let early_until =
            decision.status.deployed.as_ref().map_or(Timestamp::MIN, |deployed| after(deployed.at.0, EARLY.as_secs()));
        let glance = Glance { worker: worker.address, early_until, statements: scene.statements_version.clone() };
        context.set_quiet(&key, changes, glance);
    }
    let mut wait_ms = decision.requeue_ms;
    if mended || decision.actions.contains(&Action::StartCheck) && context.has_remembered_check(&uid) {
        // The status still says what is mended; or a worker or a planner has planned at once. No watch tells.
        wait_ms = 0;
    }
    Ok(Requeue::requeue(Duration::from_millis(wait_ms.max(50))))
}

/// Says in the pass's span what it is about: the operation that it begins, goes on with or ends.
fn tell_span(job: &Job, before: &StreamingJobStatus, now: &StreamingJobStatus) {
    let span = tracing::Span::current();
    span.record("generation", job.generation);
    if let Some(phase) = now.phase {
        span.record("phase", tracing::field::debug(phase));
    }
    if let Some(operation) = now.operation.as_ref().or(before.operation.as_ref()) {
        span.record("operation", tracing::field::debug(operation.kind));
        span.record("operation_id", &operation.id);
        span.record("step", tracing::field::debug(operation.step));
    }
}

/// Whether the ConfigMap that a job takes its statements from is the one that was read. It is the user's, without a label of ours, and so it is asked
/// for and not watched: a watch of all ConfigMaps would make the operator's memory grow with the cluster.
async fn has_same_statements(context: &Context, namespace: &str, read: Option<&StatementsVersion>) -> bool {
    let Some(read) = read else { return true };
    let found = context.api("v1", "ConfigMap", namespace).get_metadata_opt(&read.config_map).await;
    matches!(found, Ok(Some(found)) if found.metadata.resource_version.as_deref() == Some(read.resource_version.as_str()))
}

/// A custom resource that the API server took and this operator can't read: of a newer version, or with a value that no rule refuses.
async fn say_unreadable(context: &Context, object: &DynamicObject, error: &str) -> Result<Requeue, ReconcileError> {
    let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
    let api = context.api(names::API_VERSION, "StreamingJob", &namespace);
    if object.metadata.deletion_timestamp.is_some() {
        // Whatever ran is owned by the job and goes with it.
        let left: Vec<_> = object.finalizers().iter().filter(|f| *f != FINALIZER).collect();
        let patch = json!({"metadata": {"finalizers": left, "resourceVersion": object.resource_version()}});
        api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.map_err(Box::new)?;
        return Ok(Requeue::await_change());
    }
    let generation = object.metadata.generation.unwrap_or_default();
    let message: String = format!("the spec can't be read by this version of the operator: {error}").chars().take(1000).collect();
    let old = object.data.pointer("/status/conditions").cloned().unwrap_or_default();
    let since = |kind: &str, status: &str| {
        let found = old.as_array().into_iter().flatten().find(|c| c["type"] == kind && c["status"] == status);
        found.map_or_else(|| json!(format!("{:.0}", context.now())), |c| c["lastTransitionTime"].clone())
    };
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": "InvalidSpec", "message": message,
               "observedGeneration": generation, "lastTransitionTime": since(kind, status)})
    };
    // What the operator had written stays: a job that runs goes on.
    let mut status = object.data["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    status["observedGeneration"] = json!(generation);
    status["conditions"] = json!([condition("Ready", "False"), condition("Stalled", "True"), condition("PlanValid", "False")]);
    if status == object.data["status"] {
        return Ok(Requeue::requeue(Duration::from_secs(300)));
    }
    let patch = json!({
        "apiVersion": names::API_VERSION, "kind": "StreamingJob",
        "metadata": {"name": name, "namespace": namespace, "resourceVersion": object.resource_version()},
        "status": status,
    });
    api.patch_status(&name, &PatchParams::apply(STATUS_MANAGER).force(), &Patch::Apply(&patch)).await.map_err(Box::new)?;
    Ok(Requeue::requeue(Duration::from_secs(300)))
}

/// When to try again after a pass that failed: 1 s, doubled with each failure in a row.
#[expect(clippy::needless_pass_by_value, reason = "the controller's signature")]
pub fn after_error(object: Arc<DynamicObject>, error: &ReconcileError, context: Arc<Context>) -> Requeue {
    let failures = context.count_error(&object.meta().uid.clone().unwrap_or_default());
    let wait = Duration::from_secs(1) * (1 << failures.saturating_sub(1).min(9));
    tracing::warn!(job = %object.name_any(), namespace = %object.namespace().unwrap_or_default(), %error, failures, "the pass failed");
    let is_refused = matches!(error, ReconcileError::Execute(error) if error.trouble().is_some());
    Requeue::requeue(wait.min(if is_refused { REFUSED_WAIT_MAX } else { ERROR_WAIT_MAX }))
}

/// A pass over a snapshot: none can be taken yet, and it says so.
pub async fn reconcile_snapshot(trigger: Arc<DynamicObject>, context: Arc<Context>) -> Result<Requeue, ReconcileError> {
    if !context.leadership.is_held() || trigger.metadata.deletion_timestamp.is_some() {
        return Ok(Requeue::await_change());
    }
    let generation = trigger.metadata.generation.unwrap_or_default();
    if trigger.data.pointer("/status/observedGeneration").and_then(serde_json::Value::as_i64) == Some(generation) {
        return Ok(Requeue::await_change());
    }
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": "NotYetAvailable", "observedGeneration": generation,
               "message": "snapshots are not yet available: this version of the operator takes none",
               "lastTransitionTime": format!("{:.0}", context.now())})
    };
    let (name, namespace) = (trigger.name_any(), trigger.namespace().unwrap_or_default());
    let patch = json!({
        "apiVersion": names::API_VERSION, "kind": "StreamingSnapshot", "metadata": {"name": name, "namespace": namespace},
        "status": {"observedGeneration": generation, "conditions": [condition("Complete", "False"), condition("Stalled", "True")]},
    });
    let api = context.api(names::API_VERSION, "StreamingSnapshot", &namespace);
    api.patch_status(&name, &PatchParams::apply(STATUS_MANAGER).force(), &Patch::Apply(&patch)).await.map_err(Box::new)?;
    Ok(Requeue::await_change())
}
