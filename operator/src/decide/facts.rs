//! What `decide` is told: plain values, read by `observe` and made up by tests.

use jiff::Timestamp;
use tiderace_crds::StreamingJobSpec;
use tiderace_crds::admin::{PlanCheckReply, StatusReply};

/// The job as its manifest says.
#[derive(Clone, Debug)]
pub struct Job {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.deletionTimestamp`.
    pub deleted_at: Option<Timestamp>,
    /// Whether the operator's finalizer is on it.
    pub has_finalizer: bool,
    /// The annotation that asks for a restart.
    pub restart_nonce: Option<String>,
    /// The spec.
    pub spec: StreamingJobSpec,
}

/// What the manifest asks workers to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This revision.
    Revision(String),
    /// Nothing that can ever run: the manifest must change.
    Refused(Trouble),
    /// Something else must be there first.
    Missing(Trouble),
}

/// Why things aren't as they should be: one word for machines, a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Reason of conditions and events.
    pub reason: &'static str,
    /// A sentence that names the object.
    pub message: String,
}

impl Trouble {
    /// Both.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// The job's StatefulSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetFacts {
    /// Its uid, for preconditions.
    pub uid: String,
    /// Its resourceVersion, for preconditions.
    pub resource_version: String,
    /// Pods it is to have.
    pub replicas: u32,
    /// The deploy epoch of its template.
    pub epoch: u64,
    /// The revision of its template.
    pub revision: String,
    /// Whether somebody else changed what the operator wrote.
    pub is_changed: bool,
    /// What its claims ask for.
    pub claim_size: Option<String>,
    /// Whether it is being deleted.
    pub is_deleting: bool,
}

/// A worker's pod.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its deploy epoch.
    pub epoch: u64,
    /// Whether it is ready.
    pub is_ready: bool,
    /// Whether it is being deleted.
    pub is_deleting: bool,
    /// Whether no StatefulSet takes it away: it lost its labels.
    pub is_stray: bool,
    /// Whether its worker's container runs.
    pub is_running: bool,
    /// How often that container was started anew.
    pub restarts: i32,
    /// What the container said when it last ended.
    pub last_end: Option<String>,
    /// Whether the kubelet waits before it starts the container again.
    pub is_backing_off: bool,
    /// What keeps it from running.
    pub trouble: Option<Trouble>,
    /// When it was created.
    pub created_at: Option<Timestamp>,
    /// Its address.
    pub address: Option<String>,
}

/// A volume claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimFacts {
    /// Its name.
    pub name: String,
    /// Bytes it asks for.
    pub requested_bytes: u64,
    /// Bytes it has; none before it is bound.
    pub capacity_bytes: Option<u64>,
    /// Why it doesn't grow, if the storage says so.
    pub trouble: Option<String>,
}

impl ClaimFacts {
    /// Whether it can be asked for more, and has not been yet: a claim that isn't bound can't change.
    #[must_use]
    pub fn must_grow_to(&self, bytes: u64) -> bool {
        self.capacity_bytes.is_some() && self.requested_bytes < bytes
    }
}

/// How the check of the target's plan stands.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Check {
    /// Nobody was asked.
    #[default]
    None,
    /// It is being planned; with what holds that up.
    Running(Option<Trouble>),
    /// It was planned.
    Done(PlanCheckReply),
    /// The API server wouldn't take the worker's pod: the namespace forbids it.
    Forbidden(String),
    /// The check itself went wrong; it is tried again.
    Broken(String),
}

/// What the worker of the newest epoch says.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Worker {
    /// There is none that could be asked.
    #[default]
    None,
    /// It doesn't answer.
    Unreachable(String),
    /// Its status.
    Status(StatusReply),
}

/// All that was read.
#[derive(Clone, Debug)]
pub struct Observed {
    /// What the manifest asks for.
    pub target: Target,
    /// The image that an upgrade would take: the manifest's, or the operator's default.
    pub image: String,
    /// The StatefulSet.
    pub set: Option<SetFacts>,
    /// Worker pods, of every epoch.
    pub pods: Vec<PodFacts>,
    /// The check of the target's plan by [`Self::image`].
    pub check: Check,
    /// The worker.
    pub worker: Worker,
    /// Volume claims.
    pub claims: Vec<ClaimFacts>,
    /// Whether all settings (Services, policies, …), certificates and the deployed revision's ConfigMap are there and as they should be.
    pub settings_current: bool,
    /// Whether something that the job would own is there and owned by somebody else.
    pub foreign: Option<Trouble>,
    /// What the API server refused when the last pass acted, if it did: it is tried again, and said until it goes well.
    pub failure: Option<Trouble>,
    /// Whether the API server takes new objects in this namespace.
    pub namespace_is_terminating: bool,
    /// How often the leader's lease has changed hands.
    pub token: u64,
}
