//! What to do with a job, as a pure function: `decide(job, status, observed, now)`.
//!
//! ```text
//!                    ┌─ no operation ─▶ consider: does what runs differ from what is wanted? ─▶ begin an operation
//! facts ─▶ validate ─┤                                                                               │
//!                    └─ operation ────▶ advance: Draining ▶ Stopping ▶ (BackingOff) ▶ Starting ◀─────┘
//!                                                                        └▶ done: Suspended, Finished, gone
//! ```
//! An operation is written to the status before anything is done for it, and every step is taken again until its effect is seen. So an operator
//! may die at any point: the next one reads the operation and goes on. A new deploy epoch begins only when no pod of another one is left.

mod action;
mod conditions;
mod facts;
mod start;
mod stop;
mod verdict;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tiderace_crds::admin::WorkerState;
use tiderace_crds::{
    DesiredState, FAILURES_MAX, Lag, Operation, OperationKind, Outcome, OutcomeKind, Restarts, Rows, Step, StreamingJobStatus,
};

pub use action::{Action, Decision, Happening};
pub use conditions::{find, is_true};
pub use facts::{Check, ClaimFacts, Job, Observed, PodFacts, SetFacts, Target, Trouble, Worker};
use verdict::Verdict;
pub use verdict::problems_text;

use crate::{names, quantity};

/// How long a running job's worker is left alone between two looks, milliseconds.
pub const POLL_MS: u64 = 15_000;
/// The same in the first minute of an epoch: short jobs end.
pub const POLL_EARLY_MS: u64 = 1_000;
/// How long to wait at first for something that a watch should report anyhow, milliseconds.
const LOOK_AGAIN_MS: u64 = 1_000;
/// For so long after its start a worker is looked at often.
pub const EARLY: SignedDuration = SignedDuration::from_secs(60);
/// The longest wait for such a thing: a thousand jobs that wait for nodes must not ask for the same thing every second.
const LOOK_AGAIN_MS_MAX: u64 = 15_000;
/// How long to wait for something that no watch reports, milliseconds.
const ASK_AGAIN_MS: u64 = 300;
/// How long between looks at a job that waits for a person, milliseconds.
const IDLE_MS: u64 = 300_000;
/// How long between looks at something that is missing, milliseconds.
const MISSING_MS: u64 = 5_000;
/// How long a worker may drain when it isn't being deleted, seconds.
const DRAIN_SECONDS: i64 = 60;
/// How long a worker that doesn't answer is asked, seconds. SIGTERM makes it drain as well.
const UNREACHABLE_SECONDS: i64 = 5;
/// How long after its deadline a deletion waits for pods to go, seconds.
const DELETION_GRACE_SECONDS: i64 = 60;

/// Decides. Pure: the same facts give the same decision.
#[must_use]
pub fn decide(job: &Job, status: &StreamingJobStatus, observed: &Observed, now: Timestamp) -> Decision {
    let mut pass = Pass {
        job,
        observed,
        now,
        before: status,
        status: status.clone(),
        actions: Vec::new(),
        happenings: Vec::new(),
        requeue_ms: IDLE_MS,
        only_polls: false,
    };
    pass.run();
    Decision {
        status: pass.status,
        actions: pass.actions,
        happenings: pass.happenings,
        requeue_ms: pass.requeue_ms,
        only_polls: pass.only_polls,
    }
}

/// One pass over one job.
struct Pass<'a> {
    job: &'a Job,
    observed: &'a Observed,
    now: Timestamp,
    /// The status as it was read.
    before: &'a StreamingJobStatus,
    status: StreamingJobStatus,
    actions: Vec<Action>,
    happenings: Vec<Happening>,
    requeue_ms: u64,
    only_polls: bool,
}

impl Pass<'_> {
    fn run(&mut self) {
        if self.job.deleted_at.is_some() {
            if self.job.has_finalizer {
                self.count_pods();
                self.delete();
                self.say(&Verdict::Idle);
            }
            return;
        }
        if !self.job.has_finalizer {
            self.actions.push(Action::AddFinalizer);
            self.look_again(0);
            return;
        }
        self.count_pods();
        self.hear_worker();
        self.count_failures();
        let verdict = self.validate();
        if self.observed.foreign.is_some() {
            // Nothing is written by a name that is somebody else's: not even what a check needs.
            self.actions.retain(|action| *action != Action::StartCheck);
            self.look_again(MISSING_MS);
        } else if self.status.operation.is_some() {
            self.advance(&verdict);
        } else {
            self.consider(&verdict);
        }
        self.say(&verdict);
        self.tell_changes();
    }

    // === what is seen

    fn count_pods(&mut self) {
        let there: Vec<_> = self.observed.pods.iter().filter(|p| !p.is_deleting).collect();
        self.status.observed_generation = Some(self.job.generation);
        if let Some(set) = self.observed.set.as_ref().filter(|_| self.status.deployed.is_none()) {
            // The status was lost. No epoch is given twice, and the worker of the last one is drained before another starts.
            self.status.epoch = self.status.epoch.max(set.epoch);
        }
        self.status.replicas = i32::try_from(there.len()).unwrap_or(i32::MAX);
        self.status.ready_replicas = i32::try_from(there.iter().filter(|p| p.is_ready).count()).unwrap_or(i32::MAX);
        self.status.selector = Some(names::selector_text(&self.job.name));
    }

    fn hear_worker(&mut self) {
        let Worker::Status(said) = &self.observed.worker else { return };
        let Some(deployed) = self.status.deployed.as_mut().filter(|d| d.epoch == said.epoch) else { return };
        if said.plan_hash.is_some() {
            deployed.plan_hash.clone_from(&said.plan_hash);
        }
        self.status.rows = Some(Rows { read: said.rows_in, written: said.rows_out, dropped: said.rows_dropped });
        self.status.lag = said.lag_ms.map(|ms| Lag { seconds: ms / 1000 });
    }

    /// The pod of the newest epoch.
    fn pod(&self) -> Option<&PodFacts> {
        self.observed.pods.iter().find(|p| p.epoch == self.status.epoch && !p.is_deleting)
    }

    /// Container restarts and replaced pods since the last pass.
    fn count_failures(&mut self) {
        let Some(pod) = self.pod().cloned() else { return };
        let mut restarts = self.status.restarts.clone().unwrap_or_default();
        let is_same = restarts.pod_uid.as_deref() == Some(pod.uid.as_str());
        if !is_same {
            let is_replacement = restarts.pod_uid.is_some() && self.status.operation.is_none();
            restarts.pod_uid = Some(pod.uid.clone());
            restarts.pod_restarts = 0;
            if is_replacement {
                // Somebody took the pod away (a drain, a delete, an eviction): no fault of the job, so the policy doesn't count it.
                restarts.count += 1;
                let message = format!("the worker's pod was replaced by another {}", pod.name);
                restarts.last_reason = Some(message.clone());
                restarts.last_time = Some(Time(self.now));
                self.happenings.push(Happening { is_warning: true, reason: "WorkerLost", message });
            }
            self.status.restarts = Some(restarts.clone());
        }
        let new = pod.restarts.saturating_sub(restarts.pod_restarts);
        if new > 0 {
            restarts.pod_restarts = pod.restarts;
            self.status.restarts = Some(restarts);
            let reason = pod.last_end.clone().unwrap_or_else(|| "its container ended".to_owned());
            for _ in 0..new.min(100) {
                self.record_failure(&reason);
            }
        }
    }

    fn record_failure(&mut self, reason: &str) {
        let policy = self.job.spec.restart_policy.clone().unwrap_or_default();
        let restarts = self.status.restarts.get_or_insert_with(Restarts::default);
        restarts.count += 1;
        restarts.last_reason = Some(reason.to_owned());
        restarts.last_time = Some(Time(self.now));
        restarts.window.push(Time(self.now));
        forget_old(restarts, policy.window_seconds, self.now);
        let message = format!(
            "the worker failed ({} of {} in {} s): {reason}",
            restarts.window_count, policy.max_restarts, policy.window_seconds
        );
        self.happenings.push(Happening { is_warning: true, reason: "WorkerLost", message });
    }

    /// Why the restart policy gives up, if it does.
    fn exhausted(&self) -> Option<String> {
        let policy = self.job.spec.restart_policy.clone().unwrap_or_default();
        let restarts = self.status.restarts.as_ref()?;
        (restarts.window_count > policy.max_restarts).then(|| {
            let last = restarts.last_reason.as_deref().unwrap_or("for no known reason");
            format!(
                "the worker failed {} times within {} s and restartPolicy.maxRestarts is {}; last: {last}",
                restarts.window_count, policy.window_seconds, policy.max_restarts
            )
        })
    }

    // === what is wanted

    fn wants_to_run(&self) -> bool {
        self.job.spec.state == DesiredState::Running
    }

    /// No operation: is there something to begin?
    fn consider(&mut self, verdict: &Verdict) {
        let is_up = self.observed.set.as_ref().is_some_and(|set| set.replicas > 0) || !self.observed.pods.is_empty();
        let outcome = self.status.outcome.as_ref().map(|o| (o.kind, o.generation, o.at.0));
        let Some(deployed) = self.status.deployed.clone() else {
            match verdict {
                _ if !self.wants_to_run() => self.keep_settings(verdict),
                Verdict::Valid { .. } => self.begin_start(OperationKind::Deploy, verdict, "created"),
                _ => self.wait_for(verdict),
            }
            return;
        };
        if !self.wants_to_run() {
            let is_finished = outcome.is_some_and(|(kind, ..)| kind == OutcomeKind::Finished);
            if (!deployed.suspended && !is_finished) || is_up {
                self.begin(OperationKind::Suspend, Step::Draining, "spec.state is Suspended");
                self.advance(verdict);
            } else {
                self.keep_settings(verdict);
            }
            return;
        }
        if let Verdict::Valid { revision, .. } = verdict {
            if *revision != deployed.revision {
                return self.begin_start(OperationKind::Upgrade, verdict, "the manifest changed");
            }
            if deployed.suspended {
                return self.begin_start(OperationKind::Resume, verdict, "spec.state is Running");
            }
        }
        if deployed.suspended {
            return self.wait_for(verdict);
        }
        if self.job.restart_nonce.is_some() && self.job.restart_nonce != self.status.restart_nonce {
            return self.begin_again("a restart was asked for");
        }
        if let Some((kind, generation, at)) = outcome {
            if kind == OutcomeKind::Failed && self.job.generation > generation {
                return self.begin_again("the manifest changed after the job had failed");
            }
            if is_up {
                self.begin(OperationKind::Finish, Step::Stopping, "the job ended");
                return self.advance(verdict);
            }
            self.wait_for(verdict);
            return self.expire(kind, at);
        }
        self.watch_running(verdict, &deployed);
    }

    /// A job that runs, and that nobody changed.
    fn watch_running(&mut self, verdict: &Verdict, deployed: &tiderace_crds::Deployed) {
        self.wait_for(verdict);
        if self.ended(deployed) {
            return self.advance(verdict);
        }
        let pod = self.pod().cloned();
        if pod.as_ref().is_some_and(|p| p.is_backing_off) {
            self.back_off(pod.and_then(|p| p.last_end));
            let epoch = self.status.epoch;
            self.begin(OperationKind::Restart, Step::Stopping, "the worker fails again and again");
            self.target(&deployed.revision, &deployed.image, deployed.renderer_version, epoch + 1);
            return self.advance(verdict);
        }
        let is_right = self.observed.set.as_ref().is_some_and(|set| {
            set.replicas == 1
                && set.epoch == deployed.epoch
                && set.revision == deployed.revision
                && !set.is_deleting
                && !set.is_changed
        });
        if !is_right {
            // Somebody changed or deleted the StatefulSet. The epoch stays: names of pods keep a second worker from starting.
            self.begin(OperationKind::Restart, Step::Starting, "the StatefulSet is not as it should be");
            self.target(&deployed.revision, &deployed.image, deployed.renderer_version, deployed.epoch);
            return self.advance(verdict);
        }
        if self.must_grow() {
            self.begin(OperationKind::ResizeVolumes, Step::ResizingVolumes, "spec.storage.size grew");
            return self.advance(verdict);
        }
        self.keep_settings(verdict);
        let age = self.now.duration_since(deployed.at.0);
        let is_early = age < EARLY || self.pod().is_none_or(|p| !p.is_ready);
        let poll_ms = if is_early { POLL_EARLY_MS } else { POLL_MS };
        self.look_again(poll_ms);
        // What is missing, or holds a check up, may come without a watch that tells.
        let waits = matches!(verdict, Verdict::Pending(_) | Verdict::Missing(_));
        self.only_polls = !waits && self.requeue_ms == poll_ms;
    }

    /// Whether the running job came to an end, good or bad; the operation that takes its workers away is begun.
    fn ended(&mut self, deployed: &tiderace_crds::Deployed) -> bool {
        if let Worker::Status(said) = &self.observed.worker
            && said.epoch == deployed.epoch
            && said.state == WorkerState::Finished
        {
            let message = format!("all input is at the sinks: {} rows read, {} written", said.rows_in, said.rows_out);
            self.end(OutcomeKind::Finished, "Finished", message);
            self.begin(OperationKind::Finish, Step::Stopping, "the job finished");
            return true;
        }
        if let Some(message) = self.exhausted() {
            self.end(OutcomeKind::Failed, "RestartsExhausted", message);
            self.begin(OperationKind::Finish, Step::Stopping, "the restart policy gave up");
            return true;
        }
        if let Some(limit) = self.job.spec.active_deadline_seconds {
            let deadline = after(deployed.started_at.0, i64::from(limit));
            if self.now >= deadline {
                let message = format!("the job ran for activeDeadlineSeconds ({limit} s) and had not finished");
                self.end(OutcomeKind::Failed, "DeadlineExceeded", message);
                self.begin(OperationKind::Finish, Step::Draining, "the deadline passed");
                return true;
            }
            self.look_again_at(deadline);
        }
        false
    }

    fn end(&mut self, kind: OutcomeKind, reason: &'static str, message: String) {
        self.status.outcome =
            Some(Outcome { kind, at: Time(self.now), generation: self.job.generation, reason: reason.to_owned(), message });
    }

    fn expire(&mut self, kind: OutcomeKind, at: Timestamp) {
        let Some(ttl) = self.job.spec.ttl_seconds_after_finished.filter(|_| kind == OutcomeKind::Finished) else { return };
        let end = after(at, i64::from(ttl));
        if self.now >= end {
            self.actions.push(Action::DeleteJob);
            self.look_again(LOOK_AGAIN_MS);
        } else {
            self.look_again_at(end);
        }
    }

    fn must_grow(&self) -> bool {
        let Some(storage) = &self.job.spec.storage else { return false };
        let wanted = storage.size.bytes();
        let has = self.observed.set.as_ref().and_then(|set| set.claim_size.as_deref()).and_then(quantity::bytes);
        // A volume that an earlier job of the name left may be smaller than what the StatefulSet would make.
        has.is_some_and(|has| has < wanted) || self.observed.claims.iter().any(|claim| claim.must_grow_to(wanted))
    }

    fn keep_settings(&mut self, verdict: &Verdict) {
        // Without a known target there is nothing to render them from.
        let can_render = self.status.deployed.is_some() || verdict.revision().is_some();
        if !self.observed.settings_current && can_render && !self.observed.namespace_is_terminating {
            self.actions.push(Action::ApplySettings);
            self.look_again(LOOK_AGAIN_MS);
        }
    }

    fn wait_for(&mut self, verdict: &Verdict) {
        match verdict {
            // The end of the check is reported by a watch; what holds it up may not be.
            Verdict::Pending(_) => self.look_again(MISSING_MS),
            Verdict::Missing(_) => self.look_again(MISSING_MS),
            Verdict::Refused(_) | Verdict::Valid { .. } | Verdict::Idle => {}
        }
    }

    // === operations

    fn begin(&mut self, kind: OperationKind, step: Step, reason: &str) {
        let epoch = self.status.epoch;
        self.status.operation = Some(Operation {
            id: format!("{kind:?}-{epoch}-{}", self.now.as_millisecond()).to_lowercase(),
            kind,
            step,
            target_generation: self.job.generation,
            target_revision: None,
            image: None,
            renderer_version: None,
            from_epoch: epoch,
            to_epoch: epoch,
            started_at: Time(self.now),
            step_at: Time(self.now),
            attempts: 0,
            token: self.observed.token,
            reason: Some(reason.to_owned()),
            last_error: None,
        });
    }

    fn step(&mut self, step: Step) {
        if let Some(operation) = &mut self.status.operation {
            operation.step = step;
            operation.step_at = Time(self.now);
        }
    }

    fn in_step_for(&self, operation: &Operation) -> SignedDuration {
        self.now.duration_since(operation.step_at.0)
    }

    fn advance(&mut self, verdict: &Verdict) {
        let Some(operation) = self.status.operation.clone() else { return };
        if starts_workers(operation.kind) {
            if !self.wants_to_run() {
                self.begin(OperationKind::Suspend, Step::Draining, "spec.state is Suspended");
                return self.advance(verdict);
            }
            if let Verdict::Valid { revision, image } = verdict
                && operation.target_revision.as_deref() != Some(revision)
                && !(operation.kind == OperationKind::Rollback)
            {
                self.retarget(&operation, revision, image);
                return self.advance(verdict);
            }
        }
        match operation.step {
            Step::Draining => self.drain(&operation, verdict),
            Step::Stopping => self.stop(&operation, verdict),
            Step::BackingOff => self.wait_to_start(&operation, verdict),
            Step::Starting => self.start(&operation, verdict),
            Step::ResizingVolumes => self.grow(&operation, verdict),
            Step::RecreatingStatefulSet => self.recreate(&operation),
            Step::DeletingVolumes => self.done(),
        }
    }

    fn done(&mut self) {
        self.status.operation = None;
        self.look_again(0);
    }

    // === when to look again

    fn look_again(&mut self, ms: u64) {
        self.requeue_ms = self.requeue_ms.min(ms);
    }

    /// Looks again after `least_ms`, ever more rarely the longer the step takes: a watch reports what it waits for.
    fn look_again_patiently(&mut self, least_ms: u64) {
        let waited = self.status.operation.as_ref().map_or(SignedDuration::ZERO, |o| self.now.duration_since(o.step_at.0));
        let half = u64::try_from(waited.as_millis() / 2).unwrap_or(0);
        self.look_again(half.clamp(least_ms, LOOK_AGAIN_MS_MAX));
    }

    fn look_again_at(&mut self, at: Timestamp) {
        let ms = at.duration_since(self.now).as_millis().max(0);
        self.look_again(u64::try_from(ms).unwrap_or(IDLE_MS) + 1);
    }
}

/// Whether an operation of that kind ends with a worker.
#[must_use]
pub fn starts_workers(kind: OperationKind) -> bool {
    match kind {
        OperationKind::Deploy
        | OperationKind::Upgrade
        | OperationKind::Rollback
        | OperationKind::Restart
        | OperationKind::Resume => true,
        OperationKind::Suspend | OperationKind::Finish | OperationKind::ResizeVolumes | OperationKind::Delete => false,
    }
}

/// `seconds` after `at`, or the end of time: a status may have been edited by hand, and nothing in it may end the process.
pub fn after(at: Timestamp, seconds: i64) -> Timestamp {
    at.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

fn forget_old(restarts: &mut Restarts, window_seconds: u32, now: Timestamp) {
    let since = now - SignedDuration::from_secs(i64::from(window_seconds));
    restarts.window.retain(|at| at.0 > since);
    if restarts.window.len() > FAILURES_MAX {
        let excess = restarts.window.len() - FAILURES_MAX;
        restarts.window.drain(..excess);
    }
    restarts.window_count = u32::try_from(restarts.window.len()).unwrap_or(u32::MAX);
}

#[cfg(test)]
mod tests;
