//! Kubernetes Events of jobs, at a bounded rate.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::decide::{Happening, Job};
use crate::names::API_VERSION;

/// Events of one job in a row, before it must wait.
const BURST: f64 = 20.0;
/// Events of one job a second, in the long run.
const RATE: f64 = 1.0 / 15.0;
/// How long the same event of a job isn't told again.
const SAME_AGAIN: Duration = Duration::from_secs(60);
/// Jobs whose rate is remembered.
const JOBS_MAX: usize = 10_000;
/// The longest note of an Event.
const NOTE_BYTES_MAX: usize = 1000;

/// Publishes Events.
pub struct Teller {
    recorder: Recorder,
    buckets: Mutex<HashMap<String, Bucket>>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
    last: HashMap<&'static str, (String, Instant)>,
}

impl Teller {
    /// Events are told in the name of `instance`.
    #[must_use]
    pub fn new(client: Client, instance: &str) -> Self {
        let reporter =
            Reporter { controller: "tiderace-operator".to_owned(), instance: Some(instance.chars().take(128).collect()) };
        Self { recorder: Recorder::new(client, reporter), buckets: Mutex::default() }
    }

    /// Tells it, unless the job has told too much or just the same. That it can't be told is logged and no reason to do anything else.
    pub async fn tell(&self, job: &Job, happening: &Happening) {
        tracing::info!(job = %job.name, namespace = %job.namespace, reason = happening.reason, message = %happening.message, "event");
        if !self.may_tell(&job.uid, happening) {
            return;
        }
        let mut note = happening.message.clone();
        note.truncate(note.floor_char_boundary(NOTE_BYTES_MAX));
        let event = Event {
            type_: if happening.is_warning { EventType::Warning } else { EventType::Normal },
            reason: happening.reason.to_owned(),
            note: Some(note),
            action: happening.reason.to_owned(),
            secondary: None,
        };
        let job_reference = ObjectReference {
            api_version: Some(API_VERSION.to_owned()),
            kind: Some("StreamingJob".to_owned()),
            name: Some(job.name.clone()),
            namespace: Some(job.namespace.clone()),
            uid: Some(job.uid.clone()),
            ..ObjectReference::default()
        };
        if let Err(error) = self.recorder.publish(&event, &job_reference).await {
            tracing::debug!(%error, job = %job.name, namespace = %job.namespace, "an event couldn't be written");
        }
    }

    fn may_tell(&self, uid: &str, happening: &Happening) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if buckets.len() >= JOBS_MAX && !buckets.contains_key(uid) {
            buckets.retain(|_, bucket| bucket.at.elapsed() < Duration::from_secs(600));
        }
        let bucket = buckets.entry(uid.to_owned()).or_insert_with(|| Bucket { tokens: BURST, at: now, last: HashMap::new() });
        bucket.tokens = (bucket.tokens + now.duration_since(bucket.at).as_secs_f64() * RATE).min(BURST);
        bucket.at = now;
        let is_same =
            bucket.last.get(happening.reason).is_some_and(|(text, at)| *text == happening.message && at.elapsed() < SAME_AGAIN);
        if is_same || bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        bucket.last.insert(happening.reason, (happening.message.clone(), now));
        true
    }
}
