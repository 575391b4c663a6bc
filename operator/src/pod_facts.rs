//! From a pod as the API server has it to what `decide` needs to know of it.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use kube::ResourceExt;

use crate::decide::{PodFacts, Trouble};
use crate::names::{EPOCH_LABEL, WORKER_CONTAINER};

/// How long a pod may be unscheduled before that is trouble: volumes are bound meanwhile, seconds.
const SCHEDULING_SECONDS: i64 = 5;
/// How long a pod may be overdue in going away before that is trouble, seconds.
const TERMINATING_SECONDS: i64 = 20;
/// Lines of a log that are kept where a container left no cause.
const LAST_LINES: usize = 3;
/// The most of a container's last words that is kept.
const LAST_WORDS_BYTES_MAX: usize = 2048;

/// A worker's pod.
#[must_use]
pub fn worker(pod: &Pod, now: Timestamp) -> PodFacts {
    let status = pod.status.as_ref();
    let container = containers(pod).find(|c| c.name == WORKER_CONTAINER);
    let is_running = container.and_then(|c| c.state.as_ref()).is_some_and(|s| s.running.is_some());
    let has_ready = |s: &k8s_openapi::api::core::v1::PodStatus| {
        s.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let is_deleting = pod.metadata.deletion_timestamp.is_some();
    PodFacts {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        epoch: pod.labels().get(EPOCH_LABEL).and_then(|e| e.parse().ok()).unwrap_or_default(),
        is_ready: !is_deleting && status.is_some_and(has_ready),
        is_deleting,
        is_stray: false,
        is_running,
        restarts: container.map_or(0, |c| c.restart_count),
        last_end: container.and_then(last_words),
        is_backing_off: container.and_then(waiting_reason) == Some("CrashLoopBackOff"),
        trouble: trouble(pod, now),
        created_at: pod.metadata.creation_timestamp.as_ref().map(|t| t.0),
        address: status.and_then(|s| s.pod_ip.clone()),
    }
}

/// What keeps a pod from running, or from going away.
#[must_use]
pub fn trouble(pod: &Pod, now: Timestamp) -> Option<Trouble> {
    let name = pod.name_any();
    if let Some(due) = &pod.metadata.deletion_timestamp {
        let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_else(|| "no node".to_owned());
        let is_late = now > due.0 + SignedDuration::from_secs(TERMINATING_SECONDS);
        return is_late.then(|| {
            let message = format!(
                "the pod {name} should be gone since {:.0}, and its node {node} doesn't say that it is: the job starts elsewhere once the node is back, is removed from the cluster, or has the taint node.kubernetes.io/out-of-service",
                due.0
            );
            Trouble::new("PodNotTerminating", message)
        });
    }
    for container in containers(pod) {
        let Some(reason) = waiting_reason(container) else { continue };
        let message = container.state.as_ref().and_then(|s| s.waiting.as_ref()?.message.clone()).unwrap_or_default();
        let image = &container.image;
        match reason {
            "ImagePullBackOff"
            | "ErrImagePull"
            | "ErrImageNeverPull"
            | "InvalidImageName"
            | "ImageInspectError"
            | "RegistryUnavailable" => {
                let text = format!("the image {image} of the pod {name} can't be pulled ({reason}): {message}");
                return Some(Trouble::new("ImagePullFailed", text));
            }
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                let text = format!("the container {} of the pod {name} can't start ({reason}): {message}", container.name);
                return Some(Trouble::new("ContainerCannotStart", text));
            }
            _ => {}
        }
    }
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let unscheduled = conditions.into_iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
    let since = pod.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    if now < since + SignedDuration::from_secs(SCHEDULING_SECONDS) {
        return None;
    }
    let why = unscheduled.message.clone().unwrap_or_default();
    let is_volume = ["persistentvolumeclaim", "storageclass", "unbound", "volume node affinity"]
        .iter()
        .any(|w| why.to_lowercase().contains(w));
    let reason = if is_volume { "VolumeNotBound" } else { "PodUnschedulable" };
    Some(Trouble::new(reason, format!("the pod {name} can't be scheduled: {why}")))
}

/// The newest warning among a pod's events, for a pod that waits without saying why.
#[must_use]
pub fn trouble_of_events(name: &str, events: &[Event]) -> Option<Trouble> {
    let time = |e: &Event| e.last_timestamp.as_ref().map(|t| t.0).or_else(|| e.event_time.as_ref().map(|t| t.0));
    let newest = events.iter().filter(|e| e.type_.as_deref() == Some("Warning")).max_by_key(|e| time(e))?;
    let why = newest.message.clone().unwrap_or_default();
    let reason = match newest.reason.as_deref() {
        Some("FailedMount" | "FailedAttachVolume" | "FailedMapVolume") => "VolumeNotMounted",
        Some("FailedCreate") => "PodRefused",
        Some("ProvisioningFailed" | "FailedBinding") => "VolumeNotBound",
        _ => "ContainerCannotStart",
    };
    Some(Trouble::new(reason, format!("{name}: {why}")))
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|s| s.init_container_statuses.as_ref());
    let main = status.and_then(|s| s.container_statuses.as_ref());
    init.into_iter().flatten().chain(main.into_iter().flatten())
}

fn waiting_reason(container: &ContainerStatus) -> Option<&str> {
    container.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

/// How the container's last run ended: `exit 3: TR-2002: …`.
fn last_words(container: &ContainerStatus) -> Option<String> {
    let ended = |state: &k8s_openapi::api::core::v1::ContainerState| state.terminated.clone();
    let end = container.state.as_ref().and_then(ended).or_else(|| container.last_state.as_ref().and_then(ended))?;
    let mut text = match (end.reason.as_deref(), end.signal) {
        (Some("OOMKilled"), _) => "OOMKilled: the container used more memory than resources.memory".to_owned(),
        (_, Some(signal)) if signal > 0 => format!("killed by signal {signal}"),
        _ if (129..160).contains(&end.exit_code) => format!("killed by signal {}", end.exit_code - 128),
        _ => format!("exit {}", end.exit_code),
    };
    // What a worker that was killed logged last is no cause of it, and may be rows. One that ended by itself wrote its cause, or its log's
    // last lines tell it.
    let message = end.message.filter(|m| !m.trim().is_empty() && end.exit_code < 129);
    if let Some(message) = message {
        let lines: Vec<&str> = message.trim().lines().collect();
        let is_cause = lines.iter().all(|line| line.starts_with("TR-"));
        let kept = if is_cause { &lines[..] } else { &lines[lines.len().saturating_sub(LAST_LINES)..] };
        text = format!("{text}: {}", kept.join("\n"));
    }
    text.truncate(text.floor_char_boundary(LAST_WORDS_BYTES_MAX));
    Some(text)
}

/// How a container that ended did so: its exit code and what it left behind.
#[must_use]
pub fn end_of(pod: &Pod, container: &str) -> Option<(i32, String)> {
    let status = containers(pod).find(|c| c.name == container)?;
    let end = status.state.as_ref()?.terminated.as_ref()?;
    Some((end.exit_code, end.message.clone().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn pod(metadata: Value, status: Value) -> Pod {
        let mut base = json!({"name": "orders-0", "uid": "u", "creationTimestamp": "2026-11-21T11:59:00Z", "labels": {"tiderace.dev/epoch": "7"}});
        for (key, value) in metadata.as_object().unwrap() {
            base[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": base, "spec": {"nodeName": "n1", "containers": []}, "status": status})).unwrap()
    }

    fn container(state: Value) -> Value {
        json!({"containerStatuses": [
            {"name": "worker", "image": "a:1", "imageID": "", "ready": false, "restartCount": 2, "state": state,
             "lastState": {"terminated": {"exitCode": 3, "message": "TR-2002: division by zero\n"}}},
        ]})
    }

    #[test]
    fn causes_are_told_apart() {
        let waiting = |reason: &str| container(json!({"waiting": {"reason": reason, "message": "because"}}));
        let unscheduled = |why: &str| json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}]});
        for (status, reason) in [
            (waiting("ImagePullBackOff"), Some("ImagePullFailed")),
            (waiting("ErrImageNeverPull"), Some("ImagePullFailed")),
            (waiting("CreateContainerConfigError"), Some("ContainerCannotStart")),
            (waiting("CrashLoopBackOff"), None),
            (waiting("ContainerCreating"), None),
            (unscheduled("0/3 nodes are available: 3 Insufficient cpu."), Some("PodUnschedulable")),
            (unscheduled("pod has unbound immediate PersistentVolumeClaims"), Some("VolumeNotBound")),
            (json!({}), None),
        ] {
            let found = trouble(&pod(json!({}), status.clone()), now());
            assert_eq!(found.map(|t| t.reason), reason, "{status}");
        }
        let fresh = pod(json!({"creationTimestamp": "2026-11-21T11:59:58Z"}), unscheduled("Insufficient cpu"));
        assert_eq!(trouble(&fresh, now()), None, "a pod gets time to be scheduled");
    }

    #[test]
    fn a_pod_that_does_not_go_names_its_node() {
        let leaving = |at: &str| trouble(&pod(json!({"deletionTimestamp": at}), json!({})), now());
        assert_eq!(leaving("2026-11-21T11:59:50Z"), None);
        assert!(leaving("2026-11-21T11:59:30Z").unwrap().message.contains("node n1"));
    }

    #[test]
    fn last_words_are_kept() {
        let facts = worker(&pod(json!({}), container(json!({"waiting": {"reason": "CrashLoopBackOff"}}))), now());
        assert_eq!(facts.last_end.as_deref(), Some("exit 3: TR-2002: division by zero"));
        assert!(facts.is_backing_off && facts.restarts == 2 && facts.epoch == 7 && !facts.is_running);
        let killed = container(json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}));
        assert!(worker(&pod(json!({}), killed), now()).last_end.unwrap().starts_with("OOMKilled"));
    }
}
