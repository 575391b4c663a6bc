//! Steps that take workers down.

use jiff::SignedDuration;
use tiderace_crds::admin::{StopMode, WorkerState};
use tiderace_crds::{Operation, OperationKind, Retention, Step};

use super::verdict::Verdict;
use super::{
    ASK_AGAIN_MS, Action, DELETION_GRACE_SECONDS, DRAIN_SECONDS, Happening, LOOK_AGAIN_MS, Pass, UNREACHABLE_SECONDS, Worker,
    after, starts_workers,
};

impl Pass<'_> {
    /// The step Draining: the worker brings what it took in to the sinks, within bounds.
    pub(super) fn drain(&mut self, operation: &Operation, verdict: &Verdict) {
        let limit = SignedDuration::from_secs(DRAIN_SECONDS);
        if self.is_drained(operation, limit) {
            self.step(Step::Stopping);
            let operation = self.status.operation.clone().unwrap_or_else(|| operation.clone());
            return self.stop(&operation, verdict);
        }
        self.look_again(ASK_AGAIN_MS);
    }

    /// Whether there is no more to wait for; tells the worker to stop where there is.
    fn is_drained(&mut self, operation: &Operation, limit: SignedDuration) -> bool {
        let waited = self.in_step_for(operation);
        let can_drain = self.observed.pods.iter().any(|p| p.epoch == operation.from_epoch && p.is_running && !p.is_deleting);
        if !can_drain || waited > limit {
            return true;
        }
        match &self.observed.worker {
            Worker::Status(said) if said.epoch == operation.from_epoch => match said.state {
                WorkerState::Stopped | WorkerState::Finished | WorkerState::Failed => return true,
                WorkerState::Draining => {}
                WorkerState::Starting | WorkerState::Running => self.actions.push(Action::StopWorker {
                    operation_id: operation.id.clone(),
                    epoch: operation.from_epoch,
                    mode: StopMode::Drain,
                }),
            },
            // SIGTERM makes it drain too, in the time that its pod has.
            Worker::Status(_) | Worker::None | Worker::Unreachable(_) => {
                return waited > SignedDuration::from_secs(UNREACHABLE_SECONDS);
            }
        }
        false
    }

    /// The step Stopping: no pod is left.
    pub(super) fn stop(&mut self, operation: &Operation, verdict: &Verdict) {
        self.scale_down();
        let is_down = self.observed.set.as_ref().is_none_or(|set| set.replicas == 0);
        if !is_down || !self.observed.pods.is_empty() {
            return self.look_again_patiently(LOOK_AGAIN_MS);
        }
        if operation.kind == OperationKind::Suspend {
            if let Some(deployed) = &mut self.status.deployed {
                deployed.suspended = true;
            }
            if self.status.outcome.as_ref().is_some_and(|o| o.kind == tiderace_crds::OutcomeKind::Failed) {
                self.status.outcome = None;
            }
            return self.done();
        }
        if !starts_workers(operation.kind) {
            return self.done();
        }
        self.step(Step::BackingOff);
        let operation = self.status.operation.clone().unwrap_or_else(|| operation.clone());
        self.wait_to_start(&operation, verdict);
    }

    fn scale_down(&mut self) {
        let is_alone = self.observed.set.is_none() && self.observed.foreign.is_none();
        if self.observed.pods.iter().any(|pod| !pod.is_deleting && (is_alone || pod.is_stray)) {
            // Somebody deleted the StatefulSet and left its pods, or took their labels off.
            self.actions.push(Action::DeletePods);
        }
        if let Some(set) = self.observed.set.as_ref().filter(|set| set.replicas > 0 && !set.is_deleting) {
            self.actions.push(Action::ScaleDown { seen: set.resource_version.clone() });
        }
    }

    /// The job is being deleted: bounded, whatever its workers do.
    pub(super) fn delete(&mut self) {
        let Some(deleted_at) = self.job.deleted_at else { return };
        let timeout = self.job.spec.deletion.clone().unwrap_or_default().timeout_seconds;
        let deadline = after(deleted_at, i64::from(timeout));
        let last = after(deadline, DELETION_GRACE_SECONDS);
        if self.status.operation.as_ref().is_none_or(|o| o.kind != OperationKind::Delete) {
            self.begin(OperationKind::Delete, Step::Draining, "the job was deleted");
        }
        let Some(mut operation) = self.status.operation.clone() else { return };
        if operation.step == Step::Draining {
            let is_overdue = self.now >= deadline;
            if !is_overdue
                && !self.observed.namespace_is_terminating
                && !self.is_drained(&operation, SignedDuration::from_secs(i64::from(timeout)))
            {
                self.look_again_at(deadline);
                return self.look_again(ASK_AGAIN_MS);
            }
            if is_overdue && self.observed.pods.iter().any(|p| p.is_running) {
                let message =
                    format!("the worker did not drain within deletion.timeoutSeconds ({timeout} s): it is stopped all the same");
                self.happenings.push(Happening { is_warning: true, reason: "DrainSkipped", message });
            }
            self.step(Step::Stopping);
            operation.step = Step::Stopping;
        }
        if operation.step == Step::Stopping {
            self.scale_down();
            let is_down = self.observed.set.as_ref().is_none_or(|set| set.replicas == 0 || set.is_deleting);
            if !is_down || !self.observed.pods.is_empty() {
                if self.now < last {
                    self.look_again_at(last);
                    return self.look_again_patiently(LOOK_AGAIN_MS);
                }
                let message =
                    "pods of the job are still there (a lost node?); they go when their node is back or removed".to_owned();
                self.happenings.push(Happening { is_warning: true, reason: "DeletionForced", message });
            }
            self.step(Step::DeletingVolumes);
            operation.step = Step::DeletingVolumes;
        }
        let is_delete = self.job.spec.storage.as_ref().is_some_and(|s| s.retention == Retention::Delete);
        if is_delete && !self.observed.claims.is_empty() && self.now < last {
            self.actions.push(Action::DeleteClaims);
            self.look_again_at(last);
            return self.look_again(LOOK_AGAIN_MS);
        }
        self.actions.push(Action::RemoveFinalizer);
    }
}
