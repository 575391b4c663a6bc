//! Whether the manifest can be run, and what the conditions, the phase and the events say.

use tiderace_crds::{OperationKind, OutcomeKind, Phase, Step};

use super::conditions::{Wanted, find, is_true, transition};
use super::{Action, Check, Happening, LOOK_AGAIN_MS, MISSING_MS, Pass, Target, Trouble, Worker, starts_workers};

/// What is known of the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It can be run.
    Valid {
        /// As this revision.
        revision: String,
        /// By this image.
        image: String,
    },
    /// It is being checked; with what holds that up.
    Pending(Option<Trouble>),
    /// It can't be run, and must change.
    Refused(Trouble),
    /// Something else must come first.
    Missing(Trouble),
    /// Nobody asks: it isn't to run.
    Idle,
}

impl Verdict {
    pub(super) fn revision(&self) -> Option<&str> {
        if let Self::Valid { revision, .. } = self { Some(revision) } else { None }
    }
}

impl Pass<'_> {
    /// Finds out whether the target can be run; has its plan checked where that isn't known.
    pub(super) fn validate(&mut self) -> Verdict {
        let verdict = self.judge();
        if !matches!(verdict, Verdict::Pending(_) | Verdict::Missing(_)) && self.status.checking.take().is_some() {
            // Nobody waits for it any more: it was answered, or the manifest changed back.
            self.actions.push(Action::ForgetChecks);
        }
        verdict
    }

    fn judge(&mut self) -> Verdict {
        let revision = match &self.observed.target {
            Target::Refused(trouble) => return Verdict::Refused(trouble.clone()),
            Target::Missing(trouble) if self.wants_to_run() => return Verdict::Missing(trouble.clone()),
            Target::Missing(_) => return Verdict::Idle,
            Target::Revision(revision) => revision.clone(),
        };
        // What was started was checked before.
        if let Some(deployed) = self.status.deployed.as_ref().filter(|d| d.revision == revision) {
            return Verdict::Valid { revision, image: deployed.image.clone() };
        }
        let image = self.observed.image.clone();
        if let Some(plan) = self.status.plan.as_ref().filter(|p| p.revision == revision && p.image == image) {
            return if plan.valid {
                Verdict::Valid { revision, image }
            } else {
                let reason = if plan.reason.as_deref() == Some("RolledBack") { "RolledBack" } else { "PlanInvalid" };
                Verdict::Refused(Trouble::new(reason, plan.message.clone().unwrap_or_default()))
            };
        }
        if !self.wants_to_run() {
            return Verdict::Idle;
        }
        if self.observed.namespace_is_terminating {
            return Verdict::Missing(Trouble::new(
                "NamespaceTerminating",
                "the namespace is being deleted: nothing can be started in it",
            ));
        }
        let key = format!("{revision} by {image}");
        match &self.observed.check {
            Check::None => {
                if self.status.checking.as_ref().is_some_and(|c| *c != key) {
                    self.actions.push(Action::ForgetChecks);
                }
                self.status.checking = Some(key);
                self.actions.push(Action::StartCheck);
                self.look_again(LOOK_AGAIN_MS);
                Verdict::Pending(None)
            }
            Check::Running(trouble) => Verdict::Pending(trouble.clone()),
            Check::Forbidden(message) => {
                self.look_again(MISSING_MS);
                Verdict::Missing(Trouble::new("ForbiddenTemplate", message.clone()))
            }
            Check::Broken(message) => {
                self.actions.push(Action::StartCheck);
                self.look_again(MISSING_MS);
                Verdict::Pending(Some(Trouble::new("PlanCheckFailed", message.clone())))
            }
            Check::Done(reply) => {
                let message = (!reply.valid).then(|| problems_text(&reply.errors));
                let valid = reply.valid;
                self.status.plan = Some(tiderace_crds::Plan {
                    revision: revision.clone(),
                    image: image.clone(),
                    valid,
                    reason: (!valid).then(|| "PlanInvalid".to_owned()),
                    message: message.clone(),
                    plan_hash: reply.plan_hash.clone(),
                    engine_version: Some(reply.engine_version.clone()),
                });
                if valid {
                    for warning in reply.warnings.iter().take(3) {
                        let message = problem_text(warning);
                        self.happenings.push(Happening { is_warning: true, reason: "PlanWarning", message });
                    }
                    Verdict::Valid { revision, image }
                } else {
                    Verdict::Refused(Trouble::new("PlanInvalid", message.unwrap_or_default()))
                }
            }
        }
    }

    /// Why nothing gets better by waiting, if that is so.
    fn stalled(&self, verdict: &Verdict) -> Option<Trouble> {
        if let Some(foreign) = &self.observed.foreign {
            return Some(foreign.clone());
        }
        if let Some(pod) = self.observed.pods.iter().find(|p| p.is_deleting && p.trouble.is_some()) {
            return pod.trouble.clone();
        }
        if let Some(failure) = &self.observed.failure {
            return Some(failure.clone());
        }
        if self.job.deleted_at.is_some() {
            return None;
        }
        match verdict {
            Verdict::Refused(trouble) | Verdict::Missing(trouble) | Verdict::Pending(Some(trouble)) => {
                return Some(trouble.clone());
            }
            Verdict::Valid { .. } | Verdict::Pending(None) | Verdict::Idle => {}
        }
        if let Some(outcome) = self.status.outcome.as_ref().filter(|o| o.kind == OutcomeKind::Failed && self.wants_to_run()) {
            let reason = if outcome.reason == "DeadlineExceeded" { "DeadlineExceeded" } else { "RestartsExhausted" };
            return Some(Trouble::new(reason, outcome.message.clone()));
        }
        if self.status.outcome.is_none()
            && let Some(trouble) = self.pod().and_then(|pod| pod.trouble.clone())
        {
            return Some(trouble);
        }
        if let Some(operation) = &self.status.operation {
            if operation.kind == OperationKind::ResizeVolumes
                && let Some((claim, why)) = self.observed.claims.iter().find_map(|c| Some((&c.name, c.trouble.as_ref()?)))
            {
                return Some(Trouble::new("VolumeResizeFailed", format!("the volume claim {claim} does not grow: {why}")));
            }
            let limit = self.job.spec.upgrade.as_ref().map_or(600, |u| u.progress_deadline_seconds);
            let age = self.now.duration_since(operation.started_at.0).as_secs();
            if age > i64::from(limit) && operation.step != Step::BackingOff {
                let what = operation.last_error.clone().unwrap_or_else(|| "the worker did not become ready".to_owned());
                let message = format!("{:?} is at the step {:?} after {age} s: {what}", operation.kind, operation.step);
                return Some(Trouble::new("ProgressDeadlineExceeded", message));
            }
        }
        None
    }

    /// Writes the conditions and the phase.
    pub(super) fn say(&mut self, verdict: &Verdict) {
        let stalled = self.stalled(verdict);
        let is_pod_ready = self.status.deployed.is_some() && self.pod().is_some_and(|p| p.is_ready);
        let phase = self.phase(verdict, stalled.is_some(), is_pod_ready);
        let mut wanted = Vec::with_capacity(5);
        wanted.push(self.ready(phase, verdict, stalled.as_ref(), is_pod_ready));
        if let Some(trouble) = &stalled {
            wanted.push(Wanted { kind: "Stalled", status: "True", reason: trouble.reason, message: trouble.message.clone() });
        } else if let Some((reason, message)) = self.reconciling(verdict) {
            wanted.push(Wanted { kind: "Reconciling", status: "True", reason, message });
        }
        wanted.push(self.running(phase, is_pod_ready));
        wanted.push(self.plan_valid(verdict));
        self.status.phase = Some(phase);
        self.status.conditions = transition(&self.before.conditions, wanted, self.job.generation, self.now);
    }

    fn phase(&self, verdict: &Verdict, is_stalled: bool, is_pod_ready: bool) -> Phase {
        if self.job.deleted_at.is_some() {
            return Phase::Deleting;
        }
        if let Some(operation) = &self.status.operation {
            match operation.kind {
                OperationKind::Deploy | OperationKind::Resume => return Phase::Starting,
                OperationKind::Upgrade | OperationKind::Rollback => return Phase::Upgrading,
                OperationKind::Restart => return Phase::Recovering,
                OperationKind::Suspend => return Phase::Suspending,
                OperationKind::Delete => return Phase::Deleting,
                OperationKind::Finish | OperationKind::ResizeVolumes => {}
            }
        }
        match (&self.status.outcome, &self.status.deployed) {
            (Some(outcome), _) if outcome.kind == OutcomeKind::Finished => Phase::Finished,
            (_, _) if !self.wants_to_run() => Phase::Suspended,
            (Some(_), _) => Phase::Failed,
            (None, None) if is_stalled && matches!(verdict, Verdict::Refused(_)) => Phase::Failed,
            (None, None) => Phase::Pending,
            (None, Some(deployed)) if deployed.suspended => Phase::Pending,
            (None, Some(_)) if is_pod_ready => Phase::Running,
            (None, Some(_)) => Phase::Recovering,
        }
    }

    fn ready(&self, phase: Phase, verdict: &Verdict, stalled: Option<&Trouble>, is_pod_ready: bool) -> Wanted {
        let (status, reason, message) = match stalled {
            Some(trouble) => ("False", trouble.reason, trouble.message.clone()),
            None => match phase {
                Phase::Deleting => ("False", "Deleting", "the job is being deleted".to_owned()),
                Phase::Suspended if self.status.operation.is_none() => {
                    ("True", "Suspended", "the job has no worker, as asked".to_owned())
                }
                Phase::Suspended => ("False", "Stopping", self.operation_text()),
                Phase::Finished if self.status.operation.is_none() && self.reconciling(verdict).is_none() => {
                    ("True", "Finished", self.status.outcome.as_ref().map(|o| o.message.clone()).unwrap_or_default())
                }
                Phase::Finished => ("False", "Finishing", "the job came to its end; its workers are taken away".to_owned()),
                Phase::Running if is_pod_ready && self.status.operation.is_none() && self.is_as_wanted(verdict) => {
                    ("True", "Running", "rows flow".to_owned())
                }
                Phase::Running => ("False", "Upgrading", "the manifest isn't acted on yet".to_owned()),
                Phase::Upgrading => ("False", "Upgrading", self.operation_text()),
                Phase::Recovering => ("False", "Recovering", self.recovery_text()),
                Phase::Suspending => ("False", "Stopping", self.operation_text()),
                Phase::Starting => ("False", "Starting", self.start_text()),
                Phase::Pending => ("False", "Starting", "the plan is being checked".to_owned()),
                Phase::Failed => ("False", "Failed", self.status.outcome.as_ref().map(|o| o.message.clone()).unwrap_or_default()),
            },
        };
        Wanted { kind: "Ready", status, reason, message }
    }

    /// Whether what runs is what the manifest asks for.
    fn is_as_wanted(&self, verdict: &Verdict) -> bool {
        verdict.revision().is_some() && self.status.deployed.as_ref().map(|d| d.revision.as_str()) == verdict.revision()
    }

    fn reconciling(&self, verdict: &Verdict) -> Option<(&'static str, String)> {
        if let Some(operation) = &self.status.operation {
            let reason = match (operation.kind, operation.step) {
                (OperationKind::Delete, _) => "Deleting",
                (OperationKind::Rollback, _) => "RollingBack",
                (OperationKind::ResizeVolumes, _) => "ResizingVolumes",
                (_, Step::Draining | Step::Stopping | Step::DeletingVolumes) => "Stopping",
                (_, Step::BackingOff) => "BackingOff",
                (_, Step::Starting | Step::ResizingVolumes | Step::RecreatingStatefulSet) => "Deploying",
            };
            return Some((reason, self.operation_text()));
        }
        if matches!(verdict, Verdict::Pending(_)) {
            return Some(("Validating", "the plan is being checked".to_owned()));
        }
        None
    }

    fn operation_text(&self) -> String {
        let Some(operation) = &self.status.operation else { return "working".to_owned() };
        let why = operation.reason.as_deref().map(|r| format!(" ({r})")).unwrap_or_default();
        let text = match operation.step {
            Step::Draining => "the worker brings what it took in to the sinks",
            Step::Stopping => "the worker's pod goes away",
            Step::BackingOff => "waiting before the next start",
            Step::Starting => "a worker is being started",
            Step::ResizingVolumes => "the volumes grow",
            Step::RecreatingStatefulSet => "the StatefulSet is made anew around its pods",
            Step::DeletingVolumes => "the volumes are deleted",
        };
        format!("{:?}{why}: {text}", operation.kind)
    }

    fn start_text(&self) -> String {
        match &self.observed.worker {
            Worker::Unreachable(why) if self.pod().is_some_and(|p| p.is_running) => {
                format!("{}; it doesn't answer yet: {why}", self.operation_text())
            }
            _ => self.operation_text(),
        }
    }

    fn recovery_text(&self) -> String {
        let last = self.status.restarts.as_ref().and_then(|r| r.last_reason.clone());
        let last = last.map(|why| format!("; last failure: {why}")).unwrap_or_default();
        if let Some(until) = self.status.restarts.as_ref().and_then(|r| r.backoff_until.clone()).filter(|at| at.0 > self.now) {
            return format!("the next start is at {:.0}{last}", until.0);
        }
        format!("a worker is started anew{last}")
    }

    fn running(&self, phase: Phase, is_pod_ready: bool) -> Wanted {
        let is_current = self.pod().map(|p| p.epoch) == self.status.deployed.as_ref().map(|d| d.epoch);
        let (status, reason, message) = if is_pod_ready && is_current && phase != Phase::Finished {
            ("True", "ProcessingData", "rows flow".to_owned())
        } else {
            let (reason, text) = match phase {
                Phase::Suspended | Phase::Suspending => ("Suspended", "the job has no worker, as asked"),
                Phase::Finished => ("Finished", "the job came to its end"),
                Phase::Failed => ("Failed", "the job was given up"),
                Phase::Deleting => ("NoWorkers", "the job is being deleted"),
                Phase::Pending | Phase::Starting | Phase::Running | Phase::Upgrading | Phase::Recovering => {
                    ("NoWorkers", "no worker is ready")
                }
            };
            ("False", reason, text.to_owned())
        };
        Wanted { kind: "Running", status, reason, message }
    }

    fn plan_valid(&self, verdict: &Verdict) -> Wanted {
        let (status, reason, message) = match verdict {
            Verdict::Valid { .. } => ("True", "Planned", "the statements can be run".to_owned()),
            Verdict::Refused(trouble) if trouble.reason == "RolledBack" => {
                ("True", "Planned", "the statements can be planned".to_owned())
            }
            Verdict::Refused(trouble) => ("False", trouble.reason, trouble.message.clone()),
            Verdict::Missing(trouble) => ("Unknown", trouble.reason, trouble.message.clone()),
            Verdict::Pending(Some(trouble)) => ("Unknown", trouble.reason, trouble.message.clone()),
            Verdict::Pending(None) => ("Unknown", "Validating", "the plan is being checked".to_owned()),
            Verdict::Idle => match find(&self.before.conditions, "PlanValid").filter(|_| self.job.deleted_at.is_some()) {
                Some(before) if before.status == "True" => ("True", "Planned", before.message.clone()),
                _ => ("Unknown", "NotChecked", "the plan is checked when the job is to run".to_owned()),
            },
        };
        Wanted { kind: "PlanValid", status, reason, message }
    }

    /// Events: what changed since the last status.
    pub(super) fn tell_changes(&mut self) {
        let (old, new) = (&self.before.conditions, &self.status.conditions);
        let mut happenings = Vec::new();
        if let Some(stalled) = find(new, "Stalled")
            && find(old, "Stalled").is_none_or(|c| c.reason != stalled.reason || c.message != stalled.message)
        {
            // Reasons come from a fixed list; the text of the condition is what the event tells.
            let reason = STALLED_REASONS.iter().find(|r| **r == stalled.reason).copied().unwrap_or("Stalled");
            happenings.push(Happening { is_warning: true, reason, message: stalled.message.clone() });
        }
        let operation = self.status.operation.as_ref();
        let is_new = operation.map(|o| &o.id) != self.before.operation.as_ref().map(|o| &o.id);
        if let Some(operation) = operation.filter(|_| is_new) {
            let reason = match operation.kind {
                OperationKind::Deploy => "Deploying",
                OperationKind::Upgrade => "SpecChanged",
                OperationKind::Rollback => "RollbackStarted",
                OperationKind::Restart => "Restarting",
                OperationKind::Suspend | OperationKind::Finish | OperationKind::Delete => "Stopping",
                OperationKind::Resume => "Resumed",
                OperationKind::ResizeVolumes => "ResizingVolumes",
            };
            let target = operation.target_revision.as_deref().filter(|_| starts_workers(operation.kind));
            let what = target.map(|r| format!("revision {r}, epoch {}", operation.to_epoch)).unwrap_or_default();
            let why = operation.reason.clone().unwrap_or_default();
            let message = if what.is_empty() { why } else { format!("{why}: {what}") };
            happenings.push(Happening { is_warning: operation.kind == OperationKind::Rollback, reason, message });
        }
        if is_true(new, "Ready")
            && (!is_true(old, "Ready") || find(old, "Ready").map(|c| &c.reason) != find(new, "Ready").map(|c| &c.reason))
        {
            let ready = find(new, "Ready");
            let reason = match ready.map(|c| c.reason.as_str()) {
                Some("Suspended") => "Suspended",
                Some("Finished") => "Finished",
                _ => "Running",
            };
            happenings.push(Happening {
                is_warning: false,
                reason,
                message: ready.map(|c| c.message.clone()).unwrap_or_default(),
            });
        }
        self.happenings.extend(happenings);
    }
}

/// Every reason of the condition Stalled, which are also reasons of events.
pub(super) const STALLED_REASONS: [&str; 22] = [
    "PlanInvalid",
    "ForbiddenTemplate",
    "RolledBack",
    "PlanCheckFailed",
    "ConfigMapMissing",
    "SecretMissing",
    "StorageClassMissing",
    "NamespaceTerminating",
    "NameConflict",
    "RestartsExhausted",
    "DeadlineExceeded",
    "ProgressDeadlineExceeded",
    "VolumeResizeFailed",
    "ImagePullFailed",
    "PodUnschedulable",
    "ContainerCannotStart",
    "VolumeNotMounted",
    "VolumeNotBound",
    "PodNotTerminating",
    "PodRefused",
    "ApplyFailed",
    "InvalidSpec",
];

/// Problems of a plan, one a line, the first few.
#[must_use]
pub fn problems_text(problems: &[tiderace_crds::admin::Problem]) -> String {
    const SHOWN_MAX: usize = 5;
    let mut lines: Vec<String> = problems.iter().take(SHOWN_MAX).map(problem_text).collect();
    if problems.len() > SHOWN_MAX {
        lines.push(format!("and {} more", problems.len() - SHOWN_MAX));
    }
    if lines.is_empty() {
        lines.push("the plan was refused without a reason".to_owned());
    }
    lines.join("\n")
}

fn problem_text(problem: &tiderace_crds::admin::Problem) -> String {
    let place = match (problem.line, problem.column) {
        (Some(line), Some(column)) => format!(" (line {line}, column {column})"),
        (Some(line), None) => format!(" (line {line})"),
        _ => String::new(),
    };
    let hint = problem.hint.as_deref().map(|hint| format!("; {hint}")).unwrap_or_default();
    format!("{}{place}: {}{hint}", problem.code, problem.message)
}
