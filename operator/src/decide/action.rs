//! What `decide` wants done. Each is idempotent: doing it twice, or again after a crash, is doing it once.

use tiderace_crds::StreamingJobStatus;
use tiderace_crds::admin::StopMode;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Puts the finalizer on the job.
    AddFinalizer,
    /// Takes the finalizer off: nothing of the job is done after that.
    RemoveFinalizer,
    /// Writes certificates, Services, policies and so on, of the manifest as it is.
    ApplySettings,
    /// Has the target's plan checked.
    StartCheck,
    /// Takes finished checks away.
    ForgetChecks,
    /// Writes the revision's ConfigMap and the StatefulSet.
    ApplySet {
        /// The revision.
        revision: String,
        /// The image.
        image: String,
        /// The deploy epoch.
        epoch: u64,
        /// Pods.
        replicas: u32,
        /// The version of the templates.
        renderer_version: u32,
        /// The resourceVersion that was seen; none where there was no StatefulSet. Another one refuses the write.
        seen: Option<String>,
    },
    /// Sets the StatefulSet's replicas to none.
    ScaleDown {
        /// The resourceVersion that was seen.
        seen: String,
    },
    /// Deletes the pods that were seen: no StatefulSet does it.
    DeletePods,
    /// Tells the worker to stop.
    StopWorker {
        /// `status.operation.id`.
        operation_id: String,
        /// The epoch that is meant.
        epoch: u64,
        /// How.
        mode: StopMode,
    },
    /// Makes a claim ask for the size of the manifest.
    GrowClaim {
        /// The claim.
        name: String,
    },
    /// Deletes the StatefulSet and leaves its pods.
    OrphanSet {
        /// The one that was seen.
        uid: String,
    },
    /// Deletes the job's volume claims.
    DeleteClaims,
    /// Deletes the job itself.
    DeleteJob,
}

impl Action {
    /// Its name, for spans.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::AddFinalizer => "AddFinalizer",
            Self::RemoveFinalizer => "RemoveFinalizer",
            Self::ApplySettings => "ApplySettings",
            Self::StartCheck => "StartCheck",
            Self::ForgetChecks => "ForgetChecks",
            Self::ApplySet { .. } => "ApplySet",
            Self::ScaleDown { .. } => "ScaleDown",
            Self::DeletePods => "DeletePods",
            Self::StopWorker { .. } => "StopWorker",
            Self::GrowClaim { .. } => "GrowClaim",
            Self::OrphanSet { .. } => "OrphanSet",
            Self::DeleteClaims => "DeleteClaims",
            Self::DeleteJob => "DeleteJob",
        }
    }

    /// Whether it starts, stops or replaces workers, or touches their volumes. Such an action is only taken with an operation in the status.
    #[must_use]
    pub fn touches_workers(&self) -> bool {
        match self {
            Self::ApplySet { .. }
            | Self::ScaleDown { .. }
            | Self::DeletePods
            | Self::StopWorker { .. }
            | Self::GrowClaim { .. }
            | Self::OrphanSet { .. }
            | Self::DeleteClaims => true,
            Self::AddFinalizer
            | Self::RemoveFinalizer
            | Self::ApplySettings
            | Self::StartCheck
            | Self::ForgetChecks
            | Self::DeleteJob => false,
        }
    }
}

/// Something to tell people, as a Kubernetes Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// Whether it is something to worry about.
    pub is_warning: bool,
    /// One word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// What to do now. The status is written first; if that fails, nothing else is done.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The new status.
    pub status: StreamingJobStatus,
    /// In this order.
    pub actions: Vec<Action>,
    /// Told after the status was written.
    pub happenings: Vec<Happening>,
    /// When to look again, milliseconds.
    pub requeue_ms: u64,
    /// Whether that look is only to see that the worker runs on: whatever else may happen, a watch reports.
    pub only_polls: bool,
}
