//! Names and labels of what a job owns, and the revision that tells one started job from another.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tiderace_crds::{Sql, StreamingJobSpec};

/// Group and version of the custom resources.
pub const API_VERSION: &str = "tiderace.dev/v1alpha1";
/// Held on every job until its workers are gone.
pub const FINALIZER: &str = "tiderace.dev/operator";
/// Field manager of everything that a job owns.
pub const FIELD_MANAGER: &str = "tiderace-operator";
/// Field manager of a job's status.
pub const STATUS_MANAGER: &str = "tiderace-operator-status";

/// Label with the job's name, on all it owns.
pub const JOB_LABEL: &str = "tiderace.dev/job";
/// Label with the deploy epoch, on pods.
pub const EPOCH_LABEL: &str = "tiderace.dev/epoch";
/// Annotation with the revision, on the StatefulSet and its pods.
pub const REVISION_ANNOTATION: &str = "tiderace.dev/revision";
/// Annotation with the hash of what was rendered, on everything that is applied.
pub const RENDERED_ANNOTATION: &str = "tiderace.dev/rendered";
/// Label by which the operator finds what it manages.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of `app.kubernetes.io/name` on workers and what belongs to them.
pub const WORKER_NAME: &str = "streamingjob";
/// Value of `app.kubernetes.io/name` on pods that check a plan.
pub const CHECK_NAME: &str = "streamingjob-check";

/// The container with the worker.
pub const WORKER_CONTAINER: &str = "worker";
/// The volume with the working directory, and so the volume claim's first part.
pub const WORK_VOLUME: &str = "work";

/// Labels that select a job's workers. They never change: a StatefulSet's selector can't.
#[must_use]
pub fn selector(job: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("app.kubernetes.io/name".into(), WORKER_NAME.into()), (JOB_LABEL.into(), job.into())])
}

/// The same as text, for the scale subresource.
#[must_use]
pub fn selector_text(job: &str) -> String {
    selector(job).iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

/// Labels of all that a job owns.
#[must_use]
pub fn labels(job: &str) -> BTreeMap<String, String> {
    let mut labels = selector(job);
    labels.insert("app.kubernetes.io/instance".into(), job.into());
    labels.insert("app.kubernetes.io/component".into(), "worker".into());
    labels.insert("app.kubernetes.io/part-of".into(), "tiderace".into());
    labels.insert(MANAGED_BY_LABEL.into(), FIELD_MANAGER.into());
    labels
}

/// The headless Service that gives pods their names.
#[must_use]
pub fn headless_service(job: &str) -> String {
    format!("{job}-workers")
}

/// The pod of the first worker.
#[must_use]
pub fn first_pod(job: &str) -> String {
    format!("{job}-0")
}

/// Whether a pod of that name can be one of the job's StatefulSet.
#[must_use]
pub fn is_worker_pod(job: &str, pod: &str) -> bool {
    let ordinal = pod.strip_prefix(job).and_then(|rest| rest.strip_prefix('-'));
    ordinal.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The Service of the admin API.
#[must_use]
pub fn api_service(job: &str) -> String {
    format!("{job}-api")
}

/// The Secret with the job's CA, its key, and the operator's own certificate. No pod mounts it.
#[must_use]
pub fn authority_secret(job: &str) -> String {
    format!("{job}-ca")
}

/// The Secret with the worker's certificate, which the worker mounts.
#[must_use]
pub fn worker_secret(job: &str) -> String {
    format!("{job}-worker-tls")
}

/// The Job that checks the plan of a revision. Its name is a label of its pods, and so has at most 63 characters.
#[must_use]
pub fn check_job(revision: &str, image: &str) -> String {
    // The image is part of the name: another image may judge otherwise.
    format!("{revision}-{}", &hash_text(image)[..6])
}

/// The name that the worker's certificate carries and the operator asks for.
#[must_use]
pub fn server_name(job: &str, namespace: &str) -> String {
    format!("{}.{namespace}.svc", api_service(job))
}

/// The parts of a spec that a worker and its pod are made of, and only those: two specs with the same parts run the same.
///
/// The size of the volume is not among them, as a volume grows without a restart; neither is the operator's default image, as a new default
/// restarts nothing.
#[must_use]
pub fn worker_spec(spec: &StreamingJobSpec) -> StreamingJobSpec {
    StreamingJobSpec {
        state: tiderace_crds::DesiredState::Running,
        replicas: 1,
        storage: spec.storage.clone().map(|mut storage| {
            storage.size = smallest_size();
            storage.retention = tiderace_crds::Retention::Retain;
            storage
        }),
        upgrade: None,
        restart_policy: None,
        active_deadline_seconds: None,
        ttl_seconds_after_finished: None,
        deletion: None,
        network_policy: None,
        pod_disruption_budget: None,
        monitoring: None,
        ..spec.clone()
    }
}

fn smallest_size() -> tiderace_crds::MemorySize {
    tiderace_crds::MemorySize::parse("1").expect("one byte is a size")
}

/// The name of the ConfigMap of these parts: `JOB-0123456789`.
#[must_use]
pub fn revision(job: &str, spec: &StreamingJobSpec, statements: &str) -> String {
    let mut parts = worker_spec(spec);
    parts.sql = Sql { inline: None, ..parts.sql };
    // JSON of maps with sorted keys: the same spec gives the same text in every version of the operator, as fields are only ever added and
    // absent ones aren't written.
    let text = json!({"spec": parts, "statements": statements}).to_string();
    format!("{job}-{}", &hash_text(&text)[..10])
}

/// SHA-256 in hexadecimal digits.
#[must_use]
pub fn hash_text(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hash of a rendered object, for [`RENDERED_ANNOTATION`].
#[must_use]
pub fn hash_object(object: &Value) -> String {
    hash_text(&object.to_string())[..16].to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn spec(json: Value) -> StreamingJobSpec {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_revision_changes_with_what_a_worker_is_made_of_and_with_nothing_else() {
        let base = json!({"sql": {"inline": "SELECT 1"}, "storage": {"size": "1Gi"}});
        let name = |change: Value| {
            let mut changed = base.clone();
            for (key, value) in change.as_object().unwrap() {
                changed[key] = value.clone();
            }
            revision("orders", &spec(changed), "SELECT 1")
        };
        let first = name(json!({}));
        assert_eq!(first.len(), "orders-".len() + 10);
        for ignored in [
            json!({"state": "Suspended"}),
            json!({"replicas": 3}),
            json!({"storage": {"size": "2Gi"}}),
            json!({"storage": {"size": "1Gi", "retention": "Delete"}}),
            json!({"upgrade": {"rollback": "Automatic"}}),
            json!({"restartPolicy": {"maxRestarts": 3}}),
            json!({"activeDeadlineSeconds": 3}),
            json!({"ttlSecondsAfterFinished": 3}),
            json!({"deletion": {"timeoutSeconds": 3}}),
            json!({"networkPolicy": {"mode": "Disabled"}}),
            json!({"podDisruptionBudget": {"enabled": false}}),
            json!({"monitoring": {"podMonitor": true}}),
        ] {
            assert_eq!(name(ignored.clone()), first, "{ignored}");
        }
        for restarting in [
            json!({"image": "a:2"}),
            json!({"imagePullSecrets": [{"name": "r"}]}),
            json!({"config": {"engine.tick": "1ms"}}),
            json!({"resources": {"cpu": "2"}}),
            json!({"maxParallelism": 8}),
            json!({"storage": {"size": "1Gi", "storageClassName": "fast"}}),
            json!({"seccomp": {"localhostProfile": "p.json"}}),
            json!({"template": {"metadata": {"labels": {"a": "b"}}}}),
            json!({"sql": {"inline": "SELECT 1", "secretRefs": {"a": {"name": "n", "key": "k"}}}}),
        ] {
            assert_ne!(name(restarting.clone()), first, "{restarting}");
        }
        assert_ne!(revision("orders", &spec(base), "SELECT 2"), first);
    }

    #[test]
    fn workers_are_known_by_their_names() {
        for (pod, expected) in [
            ("a-b-0", true),
            ("a-b-12", true),
            ("a-b", false),
            ("a-b-", false),
            ("a-b-0-debug", false),
            ("a-b-c-0", false),
            ("c-0", false),
        ] {
            assert_eq!(is_worker_pod("a-b", pod), expected, "{pod}");
        }
    }

    #[test]
    fn names_stay_short_enough() {
        let job = "a".repeat(45);
        let revision = revision(&job, &spec(json!({"sql": {"inline": "SELECT 1"}})), "SELECT 1");
        // A Job's pods carry its name as a label.
        assert!(check_job(&revision, "image").len() <= 63, "{}", check_job(&revision, "image"));
        assert!(headless_service(&job).len() <= 63);
    }
}
