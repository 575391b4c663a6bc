//! Steps that bring workers up.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tiderace_crds::admin::WorkerState;
use tiderace_crds::{Deployed, Operation, OperationKind, Restarts, Rollback, Step};

use super::verdict::Verdict;
use super::{ASK_AGAIN_MS, Action, Happening, LOOK_AGAIN_MS, MISSING_MS, Pass, PodFacts, Worker, after};
use crate::quantity;
use crate::render::RENDERER_VERSION;

impl Pass<'_> {
    /// Begins an operation that starts the target of `verdict`.
    pub(super) fn begin_start(&mut self, kind: OperationKind, verdict: &Verdict, why: &str) {
        let Verdict::Valid { revision, image } = verdict else { return };
        let is_up = !self.observed.pods.is_empty() || self.observed.set.as_ref().is_some_and(|set| set.replicas > 0);
        self.begin(kind, if is_up { Step::Draining } else { Step::Stopping }, why);
        // A resumed job is what it was; a changed one is made by the newest templates.
        let version = match (&self.status.deployed, kind) {
            (Some(deployed), OperationKind::Resume) => deployed.renderer_version,
            _ => RENDERER_VERSION,
        };
        let epoch = self.status.epoch + 1;
        self.target(revision, image, version, epoch);
        self.forget_failures();
        self.advance(verdict);
    }

    /// Begins to start the deployed revision again in a new epoch, its failures forgotten.
    pub(super) fn begin_again(&mut self, why: &str) {
        let Some(deployed) = self.status.deployed.clone() else { return };
        self.begin(OperationKind::Restart, Step::Draining, why);
        let epoch = self.status.epoch + 1;
        self.target(&deployed.revision, &deployed.image, deployed.renderer_version, epoch);
        self.forget_failures();
        self.advance(&Verdict::Idle);
    }

    /// A new manifest, or a person who asks, gets the whole budget of restarts.
    fn forget_failures(&mut self) {
        self.status.outcome = None;
        self.status.restart_nonce.clone_from(&self.job.restart_nonce);
        if let Some(restarts) = &mut self.status.restarts {
            restarts.window.clear();
            restarts.window_count = 0;
            restarts.backoff_until = None;
        }
    }

    /// What the operation brings about. An epoch is never given twice: the highest one is in the status from here on.
    pub(super) fn target(&mut self, revision: &str, image: &str, renderer_version: u32, epoch: u64) {
        if let Some(operation) = &mut self.status.operation {
            operation.target_revision = Some(revision.to_owned());
            operation.image = Some(image.to_owned());
            operation.renderer_version = Some(renderer_version);
            operation.to_epoch = epoch;
            operation.id = format!("{:?}-{epoch}-{}", operation.kind, self.now.as_millisecond()).to_lowercase();
        }
        self.status.epoch = self.status.epoch.max(epoch);
    }

    /// The manifest changed again while its last change was being brought about.
    pub(super) fn retarget(&mut self, operation: &Operation, revision: &str, image: &str) {
        let has_begun = operation.step == Step::Starting;
        let why = "the manifest changed again";
        let kind = if self.status.deployed.is_some() { OperationKind::Upgrade } else { OperationKind::Deploy };
        self.begin(kind, if has_begun { Step::Draining } else { operation.step }, why);
        if let Some(new) = &mut self.status.operation {
            new.from_epoch = if has_begun { operation.to_epoch } else { operation.from_epoch };
        }
        let epoch = if has_begun { self.status.epoch + 1 } else { operation.to_epoch };
        self.target(revision, image, RENDERER_VERSION, epoch);
        self.forget_failures();
    }

    /// The step Starting: objects are written, and a worker comes up.
    pub(super) fn start(&mut self, operation: &Operation, verdict: &Verdict) {
        let (Some(revision), Some(image)) = (operation.target_revision.clone(), operation.image.clone()) else {
            return self.done();
        };
        if self.observed.pods.iter().any(|pod| pod.epoch != operation.to_epoch) {
            // Never two epochs: what is left of another one goes first.
            self.step(Step::Stopping);
            return self.look_again(0);
        }
        self.order(operation, &revision, &image);
        if self.observed.namespace_is_terminating {
            return self.look_again(MISSING_MS);
        }
        if !self.observed.settings_current {
            self.actions.push(Action::ApplySettings);
        }
        let set = self.observed.set.as_ref();
        let is_right = set.is_some_and(|set| {
            set.epoch == operation.to_epoch
                && set.revision == revision
                && set.replicas == 1
                && !set.is_deleting
                && !set.is_changed
        });
        if !is_right {
            if set.is_none_or(|set| !set.is_deleting) {
                self.actions.push(Action::ApplySet {
                    revision,
                    image,
                    epoch: operation.to_epoch,
                    replicas: 1,
                    renderer_version: operation.renderer_version.unwrap_or(RENDERER_VERSION),
                    seen: set.map(|set| set.resource_version.clone()),
                });
            }
            return self.look_again_patiently(LOOK_AGAIN_MS);
        }
        let pod = self.pod().cloned();
        let has_finished = matches!(&self.observed.worker, Worker::Status(said) if said.epoch == operation.to_epoch && said.state == WorkerState::Finished);
        if has_finished || pod.as_ref().is_some_and(|p| p.is_ready) {
            return self.started(operation);
        }
        self.struggle(operation, pod.as_ref(), verdict);
    }

    /// Writes down what is being started, once.
    fn order(&mut self, operation: &Operation, revision: &str, image: &str) {
        let old = self.status.deployed.as_ref();
        if old.is_some_and(|d| d.epoch == operation.to_epoch && !d.suspended) {
            return;
        }
        let started_at = match (old, operation.kind) {
            (Some(old), OperationKind::Restart) if old.was_ready => old.started_at.clone(),
            _ => Time(self.now),
        };
        let plan = self.status.plan.as_ref().filter(|plan| plan.revision == revision && plan.valid);
        let kept = old.filter(|old| old.revision == revision);
        self.status.deployed = Some(Deployed {
            generation: operation.target_generation,
            epoch: operation.to_epoch,
            revision: revision.to_owned(),
            image: image.to_owned(),
            renderer_version: operation.renderer_version.unwrap_or(RENDERER_VERSION),
            plan_hash: plan.and_then(|p| p.plan_hash.clone()).or_else(|| kept?.plan_hash.clone()),
            engine_version: plan.and_then(|p| p.engine_version.clone()).or_else(|| kept?.engine_version.clone()),
            at: Time(self.now),
            started_at,
            suspended: false,
            was_ready: false,
        });
        self.status.rows = None;
        self.status.lag = None;
    }

    fn started(&mut self, operation: &Operation) {
        if let Some(deployed) = &mut self.status.deployed {
            deployed.was_ready = true;
            self.status.stable_revision = Some(deployed.revision.clone());
            self.status.stable_image = Some(deployed.image.clone());
        }
        if let Some(restarts) = &mut self.status.restarts {
            restarts.backoff_until = None;
        }
        if operation.kind == OperationKind::Rollback {
            let message = "the job that ran before the change runs again".to_owned();
            self.happenings.push(Happening { is_warning: false, reason: "RollbackCompleted", message });
        }
        self.done();
    }

    /// A worker that isn't up yet: fails, hangs, or only takes its time.
    fn struggle(&mut self, operation: &Operation, pod: Option<&PodFacts>, verdict: &Verdict) {
        if let Some(deployed) = self.status.deployed.clone()
            && self.ended(&deployed)
        {
            return self.advance(verdict);
        }
        let age = self.now.duration_since(operation.started_at.0).as_secs();
        let upgrade = self.job.spec.upgrade.clone().unwrap_or_default();
        let limit = if self.job.spec.upgrade.is_some() { upgrade.progress_deadline_seconds } else { 600 };
        let may_roll_back = operation.kind == OperationKind::Upgrade && upgrade.rollback == Rollback::Automatic;
        if age > i64::from(limit)
            && may_roll_back
            && let Some(stable) = self.status.stable_revision.clone().filter(|s| Some(s) != operation.target_revision.as_ref())
        {
            return self.roll_back(operation, &stable, limit, pod, verdict);
        }
        if let Some(pod) = pod.filter(|p| p.is_backing_off) {
            self.back_off(pod.last_end.clone());
            if let Some(deployed) = self.status.deployed.clone()
                && self.ended(&deployed)
            {
                return self.advance(verdict);
            }
            let epoch = self.status.epoch + 1;
            if let Some(operation) = &mut self.status.operation {
                operation.from_epoch = operation.to_epoch;
                operation.to_epoch = epoch;
                operation.attempts += 1;
                operation.last_error.clone_from(&pod.last_end);
            }
            self.status.epoch = epoch;
            self.step(Step::Stopping);
            return self.advance(verdict);
        }
        if may_roll_back && age <= i64::from(limit) {
            self.look_again_at(after(operation.started_at.0, i64::from(limit) + 1));
        }
        self.look_again_patiently(if pod.is_some_and(|p| p.is_running) { ASK_AGAIN_MS } else { LOOK_AGAIN_MS });
    }

    fn roll_back(&mut self, operation: &Operation, stable: &str, limit: u32, pod: Option<&PodFacts>, verdict: &Verdict) {
        let why = pod
            .and_then(|p| p.trouble.as_ref().map(|t| t.message.clone()).or_else(|| p.last_end.clone()))
            .unwrap_or_else(|| "its worker did not become ready".to_owned());
        let message = format!("the changed job was not ready within upgrade.progressDeadlineSeconds ({limit} s): {why}");
        if let Some(plan) = &mut self.status.plan {
            plan.valid = false;
            plan.reason = Some("RolledBack".to_owned());
            plan.message = Some(format!("{message}; the job that ran before was started again"));
        }
        let image = self.status.stable_image.clone().unwrap_or_else(|| operation.image.clone().unwrap_or_default());
        self.begin(OperationKind::Rollback, Step::Draining, &message);
        if let Some(new) = &mut self.status.operation {
            new.from_epoch = operation.to_epoch;
        }
        let epoch = self.status.epoch + 1;
        self.target(stable, &image, RENDERER_VERSION, epoch);
        self.advance(verdict);
    }

    /// A failure whose restart is ours: the next start waits.
    pub(super) fn back_off(&mut self, why: Option<String>) {
        let reason = why.unwrap_or_else(|| "its container ended".to_owned());
        self.record_failure(&reason);
        let policy = self.job.spec.restart_policy.clone().unwrap_or_default();
        let restarts = self.status.restarts.get_or_insert_with(Restarts::default);
        // The kubelet made the first restart at once; each one after that waits twice as long.
        let doublings = restarts.window_count.saturating_sub(2).min(20);
        let seconds = (u64::from(policy.initial_backoff_seconds) << doublings).min(u64::from(policy.max_backoff_seconds));
        restarts.backoff_until = Some(Time(after(self.now, i64::try_from(seconds).unwrap_or(3600))));
    }

    /// The step BackingOff.
    pub(super) fn wait_to_start(&mut self, operation: &Operation, verdict: &Verdict) {
        match self.status.restarts.as_ref().and_then(|r| r.backoff_until.clone()).filter(|until| until.0 > self.now) {
            Some(until) => self.look_again_at(until.0),
            None => {
                self.step(Step::Starting);
                let operation = self.status.operation.clone().unwrap_or_else(|| operation.clone());
                self.start(&operation, verdict);
            }
        }
    }

    /// The step ResizingVolumes: every claim asks for the new size, and gets it.
    pub(super) fn grow(&mut self, operation: &Operation, verdict: &Verdict) {
        let is_changed =
            verdict.revision().is_some() && verdict.revision() != self.status.deployed.as_ref().map(|d| d.revision.as_str());
        if !self.wants_to_run() || is_changed {
            // Nothing is torn by leaving off; it is begun again later.
            self.status.operation = None;
            return self.consider(verdict);
        }
        let Some(wanted) = self.job.spec.storage.as_ref().map(|s| s.size.bytes()) else { return self.done() };
        for claim in self.observed.claims.iter().filter(|c| c.must_grow_to(wanted)) {
            self.actions.push(Action::GrowClaim { name: claim.name.clone() });
        }
        let is_grown = self.observed.claims.iter().all(|c| c.capacity_bytes.is_none_or(|has| has >= wanted));
        if is_grown {
            self.step(Step::RecreatingStatefulSet);
            let operation = self.status.operation.clone().unwrap_or_else(|| operation.clone());
            return self.recreate(&operation);
        }
        self.look_again_patiently(LOOK_AGAIN_MS);
    }

    /// The step RecreatingStatefulSet: the size in a StatefulSet can't change, so it is made anew around its pods.
    pub(super) fn recreate(&mut self, _operation: &Operation) {
        let Some(deployed) = self.status.deployed.clone() else { return self.done() };
        let wanted = self.job.spec.storage.as_ref().map_or(0, |s| s.size.bytes());
        match &self.observed.set {
            Some(set) if set.is_deleting => {}
            Some(set) if set.claim_size.as_deref().and_then(quantity::bytes).is_some_and(|has| has < wanted) => {
                self.actions.push(Action::OrphanSet { uid: set.uid.clone() });
            }
            Some(_) => {
                let message = "the volumes have the size of the manifest".to_owned();
                self.happenings.push(Happening { is_warning: false, reason: "VolumeResized", message });
                return self.done();
            }
            None => self.actions.push(Action::ApplySet {
                revision: deployed.revision,
                image: deployed.image,
                epoch: deployed.epoch,
                replicas: 1,
                renderer_version: deployed.renderer_version,
                seen: None,
            }),
        }
        self.look_again(ASK_AGAIN_MS);
    }
}
