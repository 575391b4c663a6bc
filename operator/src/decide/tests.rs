#![allow(clippy::unwrap_used, reason = "tests")]
//! Tables, and a small world in which decisions are carried out, delayed, repeated and cut off at random.

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};
use tiderace_crds::admin::{PlanCheckReply, Problem, StatusReply, WorkerState};
use tiderace_crds::{MemorySize, OperationKind, Phase, Step, StreamingJobSpec, StreamingJobStatus};

use super::*;

/// A cluster with one job: what the API server, the StatefulSet controller, the kubelet and the worker would do.
struct World {
    job: Job,
    status: StreamingJobStatus,
    now: Timestamp,
    gone: bool,
    set: Option<SetFacts>,
    pods: Vec<PodFacts>,
    claims: Vec<ClaimFacts>,
    check: Check,
    /// What a check will say.
    plan_is_good: bool,
    worker: Option<WorkerState>,
    worker_answers: bool,
    settings_current: bool,
    /// The node holds on to pods that should go.
    node_is_lost: bool,
    /// What new pods run into.
    new_pods: PodFate,
    version: u64,
    uids: u64,
    revision: String,
    log: Vec<String>,
    happenings: Vec<Happening>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PodFate {
    Run,
    CrashLoop,
    Unschedulable,
}

fn start() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

fn spec(value: Value) -> StreamingJobSpec {
    let mut base = json!({"sql": {"inline": "SELECT 1"}});
    for (key, value) in value.as_object().unwrap() {
        base[key] = value.clone();
    }
    serde_json::from_value(base).unwrap()
}

impl World {
    fn new(value: Value) -> Self {
        Self {
            job: Job {
                name: "orders".into(),
                namespace: "shop".into(),
                uid: "uid".into(),
                generation: 1,
                deleted_at: None,
                has_finalizer: false,
                restart_nonce: None,
                spec: spec(value),
            },
            status: StreamingJobStatus::default(),
            now: start(),
            gone: false,
            set: None,
            pods: Vec::new(),
            claims: Vec::new(),
            check: Check::None,
            plan_is_good: true,
            worker: None,
            worker_answers: true,
            settings_current: false,
            node_is_lost: false,
            new_pods: PodFate::Run,
            version: 1,
            uids: 0,
            revision: "orders-a".into(),
            log: Vec::new(),
            happenings: Vec::new(),
        }
    }

    fn observed(&self) -> Observed {
        let target = if self.job.spec.replicas > 1 {
            Target::Refused(Trouble::new("PlanInvalid", "several workers are not yet available"))
        } else {
            Target::Revision(self.revision.clone())
        };
        let pod = self.pods.iter().find(|p| p.is_running);
        let worker = match (pod, self.worker, self.worker_answers) {
            (Some(pod), Some(state), true) => Worker::Status(status_reply(pod.epoch, state)),
            (Some(_), _, _) => Worker::Unreachable("timeout".into()),
            (None, ..) => Worker::None,
        };
        Observed {
            target,
            image: "tiderace:1".into(),
            set: self.set.clone(),
            pods: self.pods.clone(),
            check: self.check.clone(),
            worker,
            claims: self.claims.clone(),
            settings_current: self.settings_current,
            foreign: None,
            failure: None,
            namespace_is_terminating: false,
            token: 1,
        }
    }

    fn decide(&self) -> Decision {
        decide(&self.job, &self.status, &self.observed(), self.now)
    }

    /// One pass of the operator that dies after `acts` things were done; writing the status is the first.
    fn pass(&mut self, acts: usize) -> Decision {
        let decision = self.decide();
        self.check_invariants(&decision);
        if acts == 0 {
            return decision;
        }
        self.status = decision.status.clone();
        self.happenings.extend(decision.happenings.clone());
        for action in decision.actions.iter().take(acts - 1) {
            self.log.push(format!("{action:?}"));
            self.act(action);
        }
        decision
    }

    fn check_invariants(&self, decision: &Decision) {
        for action in &decision.actions {
            assert!(!action.touches_workers() || decision.status.operation.is_some(), "{action:?} without an operation");
        }
        assert!(decision.status.epoch >= self.status.epoch, "the epoch went back");
        for list in [&decision.status.conditions] {
            let is_true = |kind: &str| super::is_true(list, kind);
            assert!(!(is_true("Stalled") && is_true("Reconciling")), "both Stalled and Reconciling");
            assert!(!(is_true("Ready") && (is_true("Stalled") || is_true("Reconciling"))), "Ready and not");
            if !list.is_empty() {
                for kind in ["Ready", "Running", "PlanValid"] {
                    assert!(super::find(list, kind).is_some(), "no condition {kind}");
                }
                assert!(list.iter().all(|c| c.observed_generation == Some(self.job.generation)));
            }
        }
    }

    fn act(&mut self, action: &Action) {
        self.version += 1;
        match action {
            Action::AddFinalizer => self.job.has_finalizer = true,
            Action::RemoveFinalizer => {
                self.job.has_finalizer = false;
                self.gone = self.job.deleted_at.is_some();
            }
            Action::ApplySettings => self.settings_current = true,
            Action::StartCheck => self.check = Check::Running(None),
            Action::ForgetChecks => self.check = Check::None,
            Action::ApplySet { revision, epoch, replicas, seen, .. } => {
                if self.set.as_ref().map(|set| set.resource_version.clone()) != *seen {
                    return; // refused by the API server
                }
                let claim_size = match &self.set {
                    Some(set) => set.claim_size.clone(),
                    None => self.job.spec.storage.as_ref().map(|s| s.size.to_string()),
                };
                let uid = self.set.as_ref().map_or_else(|| format!("set-{}", self.version), |set| set.uid.clone());
                self.set = Some(SetFacts {
                    uid,
                    resource_version: self.version.to_string(),
                    replicas: *replicas,
                    epoch: *epoch,
                    revision: revision.clone(),
                    claim_size,
                    is_deleting: false,
                    is_changed: false,
                });
            }
            Action::ScaleDown { seen } => {
                if let Some(set) = self.set.as_mut().filter(|set| set.resource_version == *seen) {
                    set.replicas = 0;
                    set.resource_version = self.version.to_string();
                }
            }
            Action::DeletePods => {
                for pod in &mut self.pods {
                    pod.is_deleting = true;
                    pod.is_ready = false;
                }
            }
            Action::StopWorker { epoch, .. } => {
                if self.pods.iter().any(|p| p.is_running && p.epoch == *epoch) && self.worker_answers {
                    self.worker = Some(WorkerState::Stopped);
                }
            }
            Action::GrowClaim { name } => {
                let wanted = self.job.spec.storage.as_ref().unwrap().size.bytes();
                for claim in self.claims.iter_mut().filter(|c| c.name == *name) {
                    claim.requested_bytes = wanted;
                    claim.capacity_bytes = Some(wanted);
                }
            }
            Action::OrphanSet { uid } => {
                if self.set.as_ref().is_some_and(|set| set.uid == *uid) {
                    self.set = None;
                }
            }
            Action::DeleteClaims => self.claims.clear(),
            Action::DeleteJob => self.delete(),
        }
    }

    fn delete(&mut self) {
        if self.job.deleted_at.is_none() {
            self.job.deleted_at = Some(self.now);
            self.job.generation += 1;
            self.gone = !self.job.has_finalizer;
        }
    }

    /// What Kubernetes and the worker do by themselves in a second.
    fn live(&mut self) {
        self.now += SignedDuration::from_secs(1);
        if matches!(self.check, Check::Running(None)) {
            let errors = if self.plan_is_good {
                vec![]
            } else {
                vec![Problem {
                    code: "TR-1002".into(),
                    message: "no column nope".into(),
                    hint: None,
                    line: Some(2),
                    column: Some(8),
                }]
            };
            self.check = Check::Done(PlanCheckReply {
                valid: self.plan_is_good,
                plan_hash: self.plan_is_good.then(|| "sha256:1".into()),
                engine_version: "0.1.0".into(),
                errors,
                warnings: vec![],
            });
        }
        let replicas = self.set.as_ref().map_or(0, |set| set.replicas);
        if !self.node_is_lost {
            self.pods.retain(|p| !p.is_deleting);
        }
        if replicas == 0 && self.set.is_some() {
            for pod in &mut self.pods {
                pod.is_deleting = true;
                pod.is_ready = false;
            }
            return;
        }
        if self.pods.is_empty() && replicas > 0 {
            let set = self.set.clone().unwrap();
            self.uids += 1;
            self.worker = Some(WorkerState::Running);
            self.pods.push(PodFacts {
                name: "orders-0".into(),
                uid: format!("pod-{}", self.uids),
                epoch: set.epoch,
                created_at: Some(self.now),
                ..PodFacts::default()
            });
            if let Some(size) = set.claim_size
                && self.claims.is_empty()
            {
                let bytes = MemorySize::parse(&size).unwrap().bytes();
                self.claims.push(ClaimFacts {
                    name: "work-orders-0".into(),
                    requested_bytes: bytes,
                    capacity_bytes: Some(bytes),
                    trouble: None,
                });
            }
        } else {
            let fate = self.new_pods;
            for pod in self.pods.iter_mut().filter(|p| !p.is_deleting) {
                match fate {
                    PodFate::Run => {
                        pod.is_running = true;
                        pod.is_ready = true;
                        pod.is_backing_off = false;
                        pod.trouble = None;
                    }
                    PodFate::CrashLoop => {
                        pod.is_ready = false;
                        pod.is_running = false;
                        pod.last_end = Some("exit 3: TR-2002: division by zero".into());
                        if pod.restarts == 0 { pod.restarts = 1 } else { pod.is_backing_off = true }
                    }
                    PodFate::Unschedulable => pod.trouble = Some(Trouble::new("PodUnschedulable", "Insufficient cpu")),
                }
            }
        }
        let epochs: std::collections::BTreeSet<u64> = self.pods.iter().map(|p| p.epoch).collect();
        assert!(epochs.len() <= 1, "two epochs alive: {epochs:?}\n{}", self.log.join("\n"));
    }

    fn settle(&mut self) {
        self.settle_for(200);
    }

    fn settle_for(&mut self, seconds: usize) {
        for _ in 0..seconds {
            if self.gone {
                return;
            }
            self.pass(usize::MAX);
            self.live();
        }
    }

    fn change(&mut self, value: Value) {
        let mut base = serde_json::to_value(&self.job.spec).unwrap();
        for (key, value) in value.as_object().unwrap() {
            base[key] = value.clone();
        }
        self.job.spec = serde_json::from_value(base).unwrap();
        self.job.generation += 1;
    }

    fn revise(&mut self, revision: &str) {
        self.revision = revision.into();
        self.job.generation += 1;
        self.check = Check::None;
    }

    fn condition(&self, kind: &str) -> (String, String) {
        super::find(&self.status.conditions, kind).map_or_else(Default::default, |c| (c.status.clone(), c.reason.clone()))
    }

    #[track_caller]
    fn expect(&self, phase: Phase, ready: &str, reason: &str) {
        assert_eq!(
            (self.status.phase, self.condition("Ready")),
            (Some(phase), (ready.to_owned(), reason.to_owned())),
            "{:#?}\n{}",
            self.status,
            self.log.join("\n")
        );
        assert_eq!(self.status.observed_generation, Some(self.job.generation));
    }

    fn told(&self, reason: &str) -> usize {
        self.happenings.iter().filter(|h| h.reason == reason).count()
    }
}

fn status_reply(epoch: u64, state: WorkerState) -> StatusReply {
    serde_json::from_value(json!({
        "job": "orders", "epoch": epoch, "state": state, "planHash": "sha256:1", "cores": 1, "rowsIn": 10, "rowsOut": 5, "rowsDropped": 1,
        "stateBytes": 0, "stateBudgetBytes": 0, "startedMs": 0, "lagMs": 2500,
    }))
    .unwrap()
}

fn running(value: Value) -> World {
    let mut world = World::new(value);
    world.settle_for(20);
    world.expect(Phase::Running, "True", "Running");
    world
}

// === the life of a job

#[test]
fn a_job_is_checked_then_started() {
    let mut world = World::new(json!({}));
    world.pass(usize::MAX);
    assert!(world.job.has_finalizer && world.status.conditions.is_empty(), "the finalizer comes before anything is owned");
    world.pass(usize::MAX);
    assert_eq!(world.condition("Reconciling"), ("True".into(), "Validating".into()));
    assert!(world.set.is_none(), "nothing is started before the plan is known");
    world.settle_for(20);
    world.expect(Phase::Running, "True", "Running");
    let deployed = world.status.deployed.clone().unwrap();
    assert_eq!(
        (deployed.epoch, deployed.revision.as_str(), deployed.suspended, deployed.was_ready),
        (1, "orders-a", false, true)
    );
    assert_eq!(world.status.rows.unwrap().read, 10);
    assert_eq!(world.status.lag.unwrap().seconds, 2);
    assert_eq!(world.condition("Running").0, "True");
    assert_eq!(world.condition("PlanValid"), ("True".into(), "Planned".into()));
    assert_eq!((world.told("Deploying"), world.told("Running")), (1, 1));
}

#[test]
fn a_steady_job_is_left_alone() {
    let mut world = running(json!({}));
    world.settings_current = true;
    let (log, status) = (world.log.len(), world.status.clone());
    world.settle_for(100);
    assert_eq!(world.log.len(), log, "{:?}", &world.log[log..]);
    assert_eq!(world.status, status);
    assert_eq!(world.decide().requeue_ms, POLL_MS);
}

/// A Secret that the user makes at last is in no watch, so a job that waits for it isn't looked at by its worker alone, however young it is.
#[test]
fn a_young_job_whose_change_waits_for_something_is_more_than_polled() {
    let mut world = running(json!({}));
    world.settings_current = true;
    world.settle_for(2);
    let young = world.decide();
    assert!(young.only_polls && young.requeue_ms == POLL_EARLY_MS, "{young:?}");
    let mut changed = world.observed();
    changed.target = Target::Missing(Trouble::new("SecretMissing", "the Secret kafka is not there"));
    let waits = decide(&world.job, &world.status, &changed, world.now);
    assert!(!waits.only_polls && waits.requeue_ms == POLL_EARLY_MS, "{waits:?}");
    changed.target = Target::Revision("orders-b".into());
    changed.check = Check::Running(Some(Trouble::new("ImagePull", "no such image")));
    assert!(!decide(&world.job, &world.status, &changed, world.now).only_polls);
}

#[test]
fn a_job_that_is_created_suspended_has_no_worker() {
    let mut world = World::new(json!({"state": "Suspended"}));
    world.settle();
    world.expect(Phase::Suspended, "True", "Suspended");
    assert!(world.set.is_none());
    world.change(json!({"state": "Running"}));
    world.settle();
    world.expect(Phase::Running, "True", "Running");
}

#[test]
fn suspend_and_resume_is_a_new_epoch_of_the_same_revision() {
    let mut world = running(json!({}));
    world.change(json!({"state": "Suspended"}));
    world.pass(usize::MAX);
    assert!(world.log.iter().any(|a| a.contains("StopWorker")), "it drains first");
    world.settle();
    world.expect(Phase::Suspended, "True", "Suspended");
    assert!(world.pods.is_empty() && world.set.is_some());
    assert_eq!(world.condition("Running"), ("False".into(), "Suspended".into()));
    world.change(json!({"state": "Running"}));
    world.settle();
    world.expect(Phase::Running, "True", "Running");
    assert_eq!(world.status.deployed.as_ref().unwrap().epoch, 2);
    assert_eq!(world.told("Resumed"), 1);
}

#[test]
fn a_changed_job_replaces_the_old_one() {
    let mut world = running(json!({}));
    world.revise("orders-b");
    world.settle();
    world.expect(Phase::Running, "True", "Running");
    let deployed = world.status.deployed.as_ref().unwrap();
    assert_eq!((deployed.revision.as_str(), deployed.epoch), ("orders-b", 2));
    assert_eq!(world.told("SpecChanged"), 1);
}

#[test]
fn a_bad_change_leaves_the_old_job_running() {
    let mut world = running(json!({}));
    let pod = world.pods[0].uid.clone();
    world.plan_is_good = false;
    world.revise("orders-bad");
    world.settle();
    world.expect(Phase::Running, "False", "PlanInvalid");
    assert_eq!(world.condition("Stalled"), ("True".into(), "PlanInvalid".into()));
    assert_eq!(world.condition("Running").0, "True");
    assert_eq!(world.condition("PlanValid").0, "False");
    let message = &super::find(&world.status.conditions, "PlanValid").unwrap().message;
    assert!(message.contains("TR-1002 (line 2, column 8): no column nope"), "{message}");
    assert_eq!(world.pods[0].uid, pod);
    assert_eq!(world.told("PlanInvalid"), 1, "once, not with every pass");
    // Back to what runs: nothing is restarted. Then a good one.
    world.revise("orders-a");
    world.settle();
    world.expect(Phase::Running, "True", "Running");
    assert_eq!(world.pods[0].uid, pod);
    world.plan_is_good = true;
    world.revise("orders-c");
    world.settle();
    world.expect(Phase::Running, "True", "Running");
    assert_ne!(world.pods[0].uid, pod);
}

#[test]
fn what_is_not_available_is_refused() {
    let mut world = World::new(json!({"replicas": 3}));
    world.settle();
    world.expect(Phase::Failed, "False", "PlanInvalid");
    assert!(world.set.is_none());
    world.change(json!({"replicas": 1}));
    world.settle();
    world.expect(Phase::Running, "True", "Running");
}

#[test]
fn a_change_during_a_change_goes_to_the_newest() {
    let mut world = running(json!({}));
    world.new_pods = PodFate::Unschedulable;
    world.revise("orders-b");
    world.settle_for(30);
    world.expect(Phase::Upgrading, "False", "PodUnschedulable");
    world.new_pods = PodFate::Run;
    world.revise("orders-c");
    world.settle();
    world.expect(Phase::Running, "True", "Running");
    let deployed = world.status.deployed.as_ref().unwrap();
    assert_eq!((deployed.revision.as_str(), deployed.epoch), ("orders-c", 3));
}

#[test]
fn a_change_that_does_not_come_up_is_rolled_back_where_asked() {
    let mut world = running(json!({"upgrade": {"progressDeadlineSeconds": 60, "rollback": "Automatic"}}));
    world.new_pods = PodFate::Unschedulable;
    world.revise("orders-b");
    world.settle_for(65);
    world.new_pods = PodFate::Run;
    world.settle();
    world.expect(Phase::Running, "False", "RolledBack");
    assert_eq!(world.condition("Running").0, "True");
    assert_eq!(world.status.deployed.as_ref().unwrap().revision, "orders-a");
    assert_eq!((world.told("RollbackStarted"), world.told("RollbackCompleted")), (1, 1));
    world.settle();
    assert_eq!(world.status.deployed.as_ref().unwrap().epoch, 3, "it is not tried again by itself");
    world.revise("orders-c");
    world.settle();
    world.expect(Phase::Running, "True", "Running");
}

#[test]
fn without_rollback_a_change_is_tried_on_and_says_so() {
    let mut world = running(json!({"upgrade": {"progressDeadlineSeconds": 60}}));
    world.new_pods = PodFate::Run;
    world.worker_answers = true;
    world.revise("orders-b");
    // Pods that are never ready, without a cause anybody can see.
    for _ in 0..100 {
        world.pass(usize::MAX);
        world.live();
        for pod in &mut world.pods {
            if pod.epoch == 2 {
                pod.is_ready = false;
            }
        }
    }
    world.expect(Phase::Upgrading, "False", "ProgressDeadlineExceeded");
    world.settle();
    world.expect(Phase::Running, "True", "Running");
}

// === failures

#[test]
fn a_lost_pod_is_counted_and_no_operation_begins() {
    let mut world = running(json!({}));
    world.pods.clear();
    world.pass(usize::MAX);
    world.expect(Phase::Recovering, "False", "Recovering");
    assert!(world.status.operation.is_none());
    world.settle();
    world.expect(Phase::Running, "True", "Running");
    let restarts = world.status.restarts.as_ref().unwrap();
    assert_eq!((restarts.count, restarts.window_count), (1, 0), "a pod that was taken away is no fault of the job");
    assert_eq!(world.told("WorkerLost"), 1);
}

#[test]
fn a_restarted_container_counts_against_the_budget() {
    let mut world = running(json!({}));
    world.pods[0].restarts = 1;
    world.pods[0].last_end = Some("killed by signal 9".into());
    world.settle_for(3);
    world.expect(Phase::Running, "True", "Running");
    let restarts = world.status.restarts.clone().unwrap();
    assert_eq!((restarts.count, restarts.window_count, restarts.last_reason.as_deref()), (1, 1, Some("killed by signal 9")));
    world.settle_for(700);
    world.pods[0].restarts = 2;
    world.settle_for(3);
    assert_eq!(world.status.restarts.as_ref().unwrap().window_count, 1, "the first one is out of the window");
}

#[test]
fn a_job_that_fails_on_and_on_is_given_up_with_its_own_error() {
    let policy = json!({"maxRestarts": 4, "windowSeconds": 600, "initialBackoffSeconds": 2, "maxBackoffSeconds": 5});
    let mut world = World::new(json!({"restartPolicy": policy}));
    world.new_pods = PodFate::CrashLoop;
    world.settle();
    world.expect(Phase::Failed, "False", "RestartsExhausted");
    let stalled = super::find(&world.status.conditions, "Stalled").unwrap();
    assert!(stalled.message.contains("TR-2002") && stalled.message.contains("maxRestarts is 4"), "{}", stalled.message);
    assert!(world.pods.is_empty(), "nothing runs on");
    assert_eq!(world.status.restarts.as_ref().unwrap().count, 5);
    assert_eq!(world.told("RestartsExhausted"), 1);
    let epoch = world.status.epoch;
    world.settle();
    assert_eq!(world.status.epoch, epoch, "it stays down");
    // A change, or a person who asks, begins anew.
    world.new_pods = PodFate::Run;
    world.job.restart_nonce = Some("now".into());
    world.settle();
    world.expect(Phase::Running, "True", "Running");
}

#[test]
fn each_restart_waits_longer() {
    let policy = json!({"maxRestarts": 100, "windowSeconds": 86400, "initialBackoffSeconds": 2, "maxBackoffSeconds": 10});
    let mut world = World::new(json!({"restartPolicy": policy}));
    world.new_pods = PodFate::CrashLoop;
    let mut waits = Vec::new();
    for _ in 0..300 {
        let was = world.status.restarts.as_ref().and_then(|r| r.backoff_until.clone());
        world.pass(usize::MAX);
        let restarts = world.status.restarts.clone().unwrap_or_default();
        if restarts.backoff_until != was
            && let Some(until) = restarts.backoff_until
        {
            waits.push(until.0.duration_since(world.now).as_secs());
        }
        world.live();
    }
    assert_eq!(&waits[..4], [2, 8, 10, 10], "{waits:?}");
}

#[test]
fn a_restart_that_was_asked_for_happens_once() {
    let mut world = running(json!({}));
    world.job.restart_nonce = Some("2026".into());
    world.settle();
    world.expect(Phase::Running, "True", "Running");
    assert_eq!(world.status.deployed.as_ref().unwrap().epoch, 2);
    world.settle();
    assert_eq!(world.status.deployed.as_ref().unwrap().epoch, 2);
}

#[test]
fn a_stateful_set_that_somebody_took_or_changed_is_put_right() {
    let mut world = running(json!({}));
    world.set.as_mut().unwrap().replicas = 3;
    world.settle();
    assert_eq!(world.set.as_ref().unwrap().replicas, 1);
    world.expect(Phase::Running, "True", "Running");
    world.set = None;
    world.settle();
    world.expect(Phase::Running, "True", "Running");
    assert_eq!(world.status.deployed.as_ref().unwrap().epoch, 1, "names of pods keep a second one away: no new epoch");
}

#[test]
fn a_new_epoch_waits_for_a_pod_on_a_lost_node() {
    let mut world = running(json!({}));
    world.node_is_lost = true;
    world.worker_answers = false;
    world.revise("orders-b");
    world.settle();
    world.expect(Phase::Upgrading, "False", "Upgrading");
    assert_eq!(world.pods.iter().map(|p| p.epoch).collect::<Vec<_>>(), [1]);
    world.node_is_lost = false;
    world.worker_answers = true;
    world.settle();
    world.expect(Phase::Running, "True", "Running");
}

// === ends

#[test]
fn a_bounded_job_finishes_and_goes_after_its_time() {
    let mut world = running(json!({"ttlSecondsAfterFinished": 60}));
    world.worker = Some(WorkerState::Finished);
    world.settle_for(20);
    world.expect(Phase::Finished, "True", "Finished");
    assert!(world.pods.is_empty());
    assert_eq!(world.told("Finished"), 1);
    world.settle();
    assert!(world.gone, "{:?}", world.log);
}

#[test]
fn a_finished_job_is_not_run_again_by_a_change_that_does_not_concern_workers() {
    let mut world = running(json!({}));
    world.worker = Some(WorkerState::Finished);
    world.settle();
    world.change(json!({"ttlSecondsAfterFinished": 86400}));
    world.settle();
    world.expect(Phase::Finished, "True", "Finished");
    assert_eq!(world.status.epoch, 1);
    world.revise("orders-b");
    world.settle();
    world.expect(Phase::Running, "True", "Running");
}

#[test]
fn a_job_is_stopped_at_its_deadline() {
    let mut world = running(json!({"activeDeadlineSeconds": 60}));
    world.settle();
    world.expect(Phase::Failed, "False", "DeadlineExceeded");
    assert!(world.pods.is_empty());
    assert!(world.log.iter().any(|a| a.contains("StopWorker")));
}

#[test]
fn a_volume_grows_around_its_pod() {
    let mut world = running(json!({"storage": {"size": "1Gi"}}));
    let (pod, set) = (world.pods[0].uid.clone(), world.set.clone().unwrap().uid);
    world.change(json!({"storage": {"size": "2Gi"}}));
    world.settle();
    world.expect(Phase::Running, "True", "Running");
    assert_eq!(world.set.as_ref().unwrap().claim_size.as_deref(), Some("2Gi"));
    assert_ne!(world.set.as_ref().unwrap().uid, set);
    assert_eq!((world.pods[0].uid.as_str(), world.status.epoch), (pod.as_str(), 1));
    assert_eq!(world.told("VolumeResized"), 1);
}

#[test]
fn a_volume_that_an_earlier_job_left_grows_to_what_is_asked_for() {
    let claim = |capacity: Option<u64>| ClaimFacts {
        name: "work-orders-0".into(),
        requested_bytes: 1 << 30,
        capacity_bytes: capacity,
        trouble: None,
    };
    let mut world = World::new(json!({"storage": {"size": "2Gi"}}));
    world.claims.push(claim(Some(1 << 30)));
    // One that isn't bound can't be changed, and holds nothing up.
    world.claims.push(ClaimFacts { name: "work-orders-1".into(), ..claim(None) });
    world.settle();
    world.expect(Phase::Running, "True", "Running");
    assert_eq!(world.claims[0].requested_bytes, 2 << 30);
    assert_eq!(world.claims[1].requested_bytes, 1 << 30);
    assert_eq!((world.told("VolumeResized"), world.status.epoch), (1, 1));
}

// === deletion

#[test]
fn deletion_drains_and_ends() {
    let mut world = running(json!({}));
    world.delete();
    world.pass(usize::MAX);
    assert!(world.log.iter().any(|a| a.contains("StopWorker")));
    assert_eq!(world.status.phase, Some(Phase::Deleting));
    world.settle();
    assert!(world.gone && world.pods.is_empty());
}

#[test]
fn deletion_is_bounded_whatever_the_worker_does() {
    for (what, setup) in [
        ("a worker that doesn't answer", (|w: &mut World| w.worker_answers = false) as fn(&mut World)),
        ("a worker that drains for ever", |w| w.worker = Some(WorkerState::Draining)),
        ("a lost node", |w| w.node_is_lost = true),
        ("a job in a change", |w| {
            w.new_pods = PodFate::Unschedulable;
            w.revise("orders-b");
            w.settle_for(10);
        }),
        ("a suspended job", |w| w.change(json!({"state": "Suspended"}))),
    ] {
        let mut world = running(json!({"deletion": {"timeoutSeconds": 30}}));
        setup(&mut world);
        world.delete();
        world.settle_for(30 + 60 + 10);
        assert!(world.gone, "{what}: {:#?}", world.status);
    }
    let mut fresh = World::new(json!({}));
    fresh.pass(usize::MAX);
    fresh.delete();
    fresh.settle_for(5);
    assert!(fresh.gone, "a job that was never started");
}

#[test]
fn claims_go_or_stay_as_the_manifest_says() {
    for (retention, left) in [("Retain", 1), ("Delete", 0)] {
        let mut world = running(json!({"storage": {"size": "1Gi", "retention": retention}}));
        world.delete();
        world.settle();
        assert!(world.gone);
        assert_eq!(world.claims.len(), left, "{retention}");
    }
}

// === at random

#[derive(Clone, Debug)]
enum Event {
    Pass,
    /// The operator dies after so many writes.
    Die(usize),
    Live,
    Wait(u16),
    Revise(u8),
    PlanIsGood(bool),
    Suspend,
    Resume,
    Delete,
    Restart(u8),
    LosePod,
    CrashPod,
    LoseSet,
    BendSet,
    Node(bool),
    Answers(bool),
    Fate(u8),
    WorkerState(u8),
    Grow(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => Just(Event::Pass),
        4 => (0_usize..4).prop_map(Event::Die),
        12 => Just(Event::Live),
        2 => (1_u16..900).prop_map(Event::Wait),
        3 => (0_u8..4).prop_map(Event::Revise),
        1 => any::<bool>().prop_map(Event::PlanIsGood),
        1 => Just(Event::Suspend),
        2 => Just(Event::Resume),
        1 => (0_u8..3).prop_map(Event::Restart),
        1 => Just(Event::LosePod),
        1 => Just(Event::CrashPod),
        1 => Just(Event::LoseSet),
        1 => Just(Event::BendSet),
        1 => any::<bool>().prop_map(Event::Node),
        1 => any::<bool>().prop_map(Event::Answers),
        2 => (0_u8..3).prop_map(Event::Fate),
        1 => (0_u8..5).prop_map(Event::WorkerState),
        1 => (1_u8..5).prop_map(Event::Grow),
        1 => Just(Event::Delete),
    ]
}

fn happen(world: &mut World, event: &Event) {
    world.log.push(format!("-- {event:?}"));
    match event {
        Event::Pass => drop(world.pass(usize::MAX)),
        Event::Die(acts) => drop(world.pass(*acts)),
        Event::Live => world.live(),
        Event::Wait(seconds) => world.now += SignedDuration::from_secs(i64::from(*seconds)),
        Event::Revise(n) => world.revise(&format!("orders-{n}")),
        Event::PlanIsGood(good) => world.plan_is_good = *good,
        Event::Suspend => world.change(json!({"state": "Suspended"})),
        Event::Resume => world.change(json!({"state": "Running"})),
        Event::Delete => world.delete(),
        Event::Restart(n) => world.job.restart_nonce = Some(n.to_string()),
        Event::LosePod => world.pods.retain(|p| p.is_deleting),
        Event::CrashPod => {
            for pod in &mut world.pods {
                pod.restarts += 1;
                pod.is_ready = false;
            }
        }
        Event::LoseSet => world.set = None,
        Event::BendSet => {
            world.version += 1;
            let version = world.version.to_string();
            if let Some(set) = &mut world.set {
                set.replicas = (set.replicas + 1) % 3;
                set.resource_version = version;
            }
        }
        Event::Node(lost) => world.node_is_lost = *lost,
        Event::Answers(answers) => world.worker_answers = *answers,
        Event::Fate(n) => world.new_pods = [PodFate::Run, PodFate::CrashLoop, PodFate::Unschedulable][usize::from(*n)],
        Event::WorkerState(n) => {
            let states =
                [WorkerState::Starting, WorkerState::Running, WorkerState::Draining, WorkerState::Finished, WorkerState::Failed];
            world.worker = Some(states[usize::from(*n)]);
        }
        Event::Grow(n) => {
            if world.job.spec.storage.as_ref().is_some_and(|s| s.size.bytes() < u64::from(*n) << 30) {
                world.change(json!({"storage": {"size": format!("{n}Gi")}}));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// Whatever happens, in whatever order, with the operator dying anywhere: never two epochs, no action without an operation (both asserted by
    /// the world), and once things calm down the job is where its manifest wants it; deleted, it goes within its bounds.
    #[test]
    fn every_history_ends_well(events in prop::collection::vec(event(), 0..80), has_storage in any::<bool>()) {
        let mut value = json!({"deletion": {"timeoutSeconds": 30}, "restartPolicy": {"maxRestarts": 3}});
        if has_storage {
            value["storage"] = json!({"size": "1Gi"});
        }
        let mut world = World::new(value);
        for event in &events {
            if world.gone {
                break;
            }
            happen(&mut world, event);
        }
        world.node_is_lost = false;
        world.worker_answers = true;
        world.plan_is_good = true;
        world.new_pods = PodFate::Run;
        world.worker = Some(WorkerState::Running);
        world.check = Check::None;
        world.status.plan = None;
        world.settle_for(1500);
        if world.job.deleted_at.is_some() {
            prop_assert!(world.gone, "{:#?}\n{}", world.status, world.log.join("\n"));
            return Ok(());
        }
        prop_assert!(world.status.operation.is_none(), "{:#?}\n{}", world.status, world.log.join("\n"));
        let phase = world.status.phase.unwrap();
        prop_assert!(matches!(phase, Phase::Running | Phase::Suspended | Phase::Finished | Phase::Failed), "{phase:?}\n{}", world.log.join("\n"));
        if phase == Phase::Running {
            prop_assert_eq!(&world.status.deployed.as_ref().unwrap().revision, &world.revision);
            prop_assert_eq!(world.condition("Ready").0, "True");
        }
        if phase == Phase::Failed {
            prop_assert_eq!(world.condition("Stalled").0, "True");
        }
        // Deletion from wherever it came to rest.
        world.delete();
        world.settle_for(100);
        prop_assert!(world.gone);
    }
}

#[test]
fn operations_that_start_workers_are_told_apart() {
    for (kind, starts) in [
        (OperationKind::Deploy, true),
        (OperationKind::Upgrade, true),
        (OperationKind::Rollback, true),
        (OperationKind::Restart, true),
        (OperationKind::Resume, true),
        (OperationKind::Suspend, false),
        (OperationKind::Finish, false),
        (OperationKind::ResizeVolumes, false),
        (OperationKind::Delete, false),
    ] {
        assert_eq!(starts_workers(kind), starts, "{kind:?}");
    }
    assert_ne!(Step::Draining, Step::Stopping);
}
