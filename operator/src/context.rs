//! What all reconciliations share.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::Uri;
use jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};

use crate::certificates::Lifetimes;
use crate::decide::{Check, Trouble};
use crate::election::Leadership;
use crate::events::Teller;
use crate::metrics::Metrics;
use crate::worker_client::Workers;

/// How long an answer about what a namespace forbids is believed: it may be mended without a change of the job.
const FORBIDDEN_LIFE: Duration = Duration::from_secs(15);
/// The first wait before a check that went wrong is made again, and the longest.
const CHECK_RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// Settings of the operator, from its command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The image of jobs that name none.
    pub default_image: String,
    /// `imagePullPolicy` of workers and checks; Kubernetes' default when none.
    pub image_pull_policy: Option<String>,
    /// The namespace of the operator's own pods.
    pub operator_namespace: String,
    /// A planner to ask before a Job is started, for jobs of the default image.
    pub planner_url: Option<Uri>,
    /// How long a job that runs, and of which no watch reports a change, is looked at by asking its worker alone; never when zero.
    pub whole_pass_interval: Duration,
    /// A collector for the spans of workers.
    pub worker_otlp_endpoint: Option<String>,
    /// How long certificates live.
    pub lifetimes: Lifetimes,
}

/// Shared by all reconciliations.
pub struct Context {
    /// To the API server.
    pub client: Client,
    /// Settings.
    pub options: Options,
    /// To workers and planners.
    pub workers: Arc<dyn Workers>,
    /// Publishes Events.
    pub teller: Teller,
    /// Figures.
    pub metrics: Metrics,
    /// Whether, and by which token, this process leads.
    pub leadership: Leadership,
    memory: Mutex<HashMap<String, JobMemory>>,
    quiet: Mutex<HashMap<JobKey, Quiet>>,
    clock: Clock,
}

/// Where the time comes from.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The system's.
    #[default]
    System,
    /// A test's: Unix milliseconds.
    Test(Arc<AtomicU64>),
}

/// Namespace and name of a job.
pub type JobKey = (String, String);

/// Whether anything happened to a job since it was last looked at in full.
#[derive(Debug, Default)]
struct Quiet {
    /// How often a watch reported a change.
    changes: u64,
    /// How often one of them was of a setting: neither of the job, its StatefulSet, pods or volumes, nor of a check.
    setting_changes: u64,
    /// The settings that were found as they should be: their fingerprint, what `setting_changes` was, and until when that is believed.
    settings_seen: Option<(u64, u64, Instant)>,
    /// What to look at, and when the next whole pass is due; none while there is something to do.
    glance: Option<(Glance, Instant)>,
}

/// What is looked at of a job that runs and of which no watch reports a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glance {
    /// The running worker.
    pub worker: IpAddr,
    /// Until when it is looked at often: shortly after its start.
    pub early_until: Timestamp,
    /// Where the statements come from, if not from the manifest.
    pub statements: Option<StatementsVersion>,
}

/// A user's ConfigMap with statements, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatementsVersion {
    /// Its name.
    pub config_map: String,
    /// Its resourceVersion.
    pub resource_version: String,
}

/// What is remembered of a job between two passes. All of it can be found out again.
#[derive(Debug, Default)]
pub struct JobMemory {
    /// Outcome of the check of a revision by an image.
    check: Option<(String, Check, Instant)>,
    /// How often checks went wrong in a row.
    check_failures: u32,
    /// What the last action failed with.
    failure: Option<Trouble>,
    /// Whether the API server said that the namespace is going away.
    namespace_is_terminating: bool,
    /// Failed passes in a row.
    errors: u32,
    /// What of each setting was ours when it was last looked at, by kind and name: somebody who changes a field takes it from us.
    fields: HashMap<String, u64>,
}

impl Context {
    /// All of it.
    pub fn new(
        client: Client,
        options: Options,
        workers: Arc<dyn Workers>,
        metrics: Metrics,
        leadership: Leadership,
        identity: &str,
    ) -> Self {
        let teller = Teller::new(client.clone(), identity);
        Self {
            client,
            options,
            workers,
            teller,
            metrics,
            leadership,
            memory: Mutex::default(),
            quiet: Mutex::default(),
            clock: Clock::System,
        }
    }

    /// With a test's clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.clock {
            Clock::System => Timestamp::now(),
            Clock::Test(ms) => Timestamp::from_millisecond(i64::try_from(ms.load(Ordering::SeqCst)).unwrap_or(i64::MAX))
                .unwrap_or(Timestamp::MAX),
        }
    }

    /// Objects of a kind in a namespace.
    #[must_use]
    pub fn api(&self, api_version: &str, kind: &str, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &resource(api_version, kind))
    }

    fn remember<T>(&self, uid: &str, change: impl FnOnce(&mut JobMemory) -> T) -> T {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        change(memory.entry(uid.to_owned()).or_default())
    }

    /// A watch reported a change of the job, or of something it owns: the next pass is a whole one.
    pub fn mark_changed(&self, key: JobKey) {
        let mut quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        let job = quiet.entry(key).or_default();
        job.changes += 1;
        job.glance = None;
    }

    /// The same, of a setting: a Service, a Secret and the like.
    pub fn mark_setting_changed(&self, key: JobKey) {
        {
            let mut quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
            quiet.entry(key.clone()).or_default().setting_changes += 1;
        }
        self.mark_changed(key);
    }

    /// How many changes were reported of the job's settings.
    pub fn setting_changes(&self, key: &JobKey) -> u64 {
        self.quiet.lock().unwrap_or_else(PoisonError::into_inner).get(key).map_or(0, |job| job.setting_changes)
    }

    /// Settings with this fingerprint, read after `changes` had been reported, are as they should be: until the next change they needn't be read again.
    pub fn set_settings_seen(&self, key: &JobKey, fingerprint: u64, changes: u64) {
        let mut quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        let job = quiet.entry(key.clone()).or_default();
        if !self.options.whole_pass_interval.is_zero() {
            job.settings_seen = Some((fingerprint, changes, Instant::now() + self.options.whole_pass_interval));
        }
    }

    /// Whether settings with this fingerprint were read, and no watch has reported a change of any since.
    pub fn are_settings_seen(&self, key: &JobKey, fingerprint: u64) -> bool {
        let quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(job) = quiet.get(key) else { return false };
        job.settings_seen
            .is_some_and(|(seen, changes, until)| seen == fingerprint && changes == job.setting_changes && Instant::now() < until)
    }

    /// How many changes were reported of the job.
    pub fn changes(&self, key: &JobKey) -> u64 {
        self.quiet.lock().unwrap_or_else(PoisonError::into_inner).get(key).map_or(0, |job| job.changes)
    }

    /// A whole pass, begun when `changes` had been reported, found nothing to do: until the next change no more than this is looked at.
    pub fn set_quiet(&self, key: &JobKey, changes: u64, glance: Glance) {
        let mut quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        let job = quiet.entry(key.clone()).or_default();
        if job.changes == changes && !self.options.whole_pass_interval.is_zero() {
            job.glance = Some((glance, Instant::now() + self.options.whole_pass_interval));
        }
    }

    /// What to look at, where nothing else needs to be.
    pub fn quiet(&self, key: &JobKey) -> Option<Glance> {
        let quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        let (glance, until) = quiet.get(key)?.glance.as_ref()?;
        (Instant::now() < *until).then(|| glance.clone())
    }

    /// Forgets the changes of a job that is gone.
    pub fn forget_changes(&self, key: &JobKey) {
        self.quiet.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Forgets a job that is gone.
    pub fn forget(&self, uid: &str) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Whether it is known what became of the last check: it was planned at once.
    pub fn has_remembered_check(&self, uid: &str) -> bool {
        self.remember(uid, |memory| memory.check.is_some())
    }

    /// What became of the check `key`, where that is remembered and still true.
    pub fn remembered_check(&self, uid: &str, key: &str) -> Option<Check> {
        self.remember(uid, |memory| {
            let (found, check, at) = memory.check.as_ref()?;
            let life = match check {
                Check::Forbidden(_) => FORBIDDEN_LIFE,
                Check::None | Check::Running(_) | Check::Done(_) | Check::Broken(_) => Duration::MAX,
            };
            (found == key && at.elapsed() < life).then(|| check.clone())
        })
    }

    /// Remembers what became of the check `key`.
    pub fn remember_check(&self, uid: &str, key: &str, check: Check) {
        self.remember(uid, |memory| {
            memory.check_failures = if matches!(check, Check::Broken(_)) { memory.check_failures.saturating_add(1) } else { 0 };
            memory.check = Some((key.to_owned(), check, Instant::now()));
        });
    }

    /// Whether a check that went wrong has waited long enough to be made again.
    pub fn may_check_again(&self, uid: &str) -> bool {
        self.remember(uid, |memory| {
            let Some((_, Check::Broken(_), at)) = &memory.check else { return true };
            let doublings = memory.check_failures.saturating_sub(1).min(10);
            at.elapsed() >= (CHECK_RETRY.0 * (1 << doublings)).min(CHECK_RETRY.1)
        })
    }

    /// Forgets all checks of a job.
    pub fn forget_checks(&self, uid: &str) {
        self.remember(uid, |memory| memory.check = None);
    }

    /// What the last action failed with, if it did.
    pub fn failure(&self, uid: &str) -> Option<Trouble> {
        self.remember(uid, |memory| memory.failure.clone())
    }

    /// Remembers how the last actions went.
    pub fn remember_failure(&self, uid: &str, failure: Option<Trouble>) {
        self.remember(uid, |memory| memory.failure = failure);
    }

    /// Whether the namespace was said to be going away.
    pub fn namespace_is_terminating(&self, uid: &str) -> bool {
        self.remember(uid, |memory| memory.namespace_is_terminating)
    }

    /// Remembers that it is.
    pub fn remember_terminating(&self, uid: &str) {
        self.remember(uid, |memory| memory.namespace_is_terminating = true);
    }

    /// Whether the fields of a setting that are ours are those of the last look; the first look takes them as they are.
    pub fn are_fields_as_before(&self, uid: &str, setting: &str, fields: u64) -> bool {
        self.remember(uid, |memory| *memory.fields.entry(setting.to_owned()).or_insert(fields) == fields)
    }

    /// Remembers which fields of a setting are ours after it was written.
    pub fn remember_fields(&self, uid: &str, setting: &str, fields: u64) {
        self.remember(uid, |memory| memory.fields.insert(setting.to_owned(), fields));
    }

    /// Counts a failed pass, and says how many there were in a row.
    pub fn count_error(&self, uid: &str) -> u32 {
        self.remember(uid, |memory| {
            memory.errors = memory.errors.saturating_add(1);
            memory.errors
        })
    }

    /// A pass went well.
    pub fn clear_errors(&self, uid: &str) {
        self.remember(uid, |memory| memory.errors = 0);
    }
}

/// The resource of a kind, its plural by the usual rules.
#[must_use]
pub fn resource(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk_with_plural(&kube::api::GroupVersionKind::gvk(group, version, kind), &plural(kind))
}

/// The plural of the kinds that the operator works with.
#[must_use]
pub fn plural(kind: &str) -> String {
    let lower = kind.to_lowercase();
    match lower.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if lower.ends_with('s') => format!("{lower}es"),
        None => format!("{lower}s"),
    }
}
