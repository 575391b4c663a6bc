//! The worker's pod template.
//!
//! It meets the "restricted" Pod Security Standard, and its requests equal its limits in whole cores, so that the kubelet's static CPU manager
//! gives it cores of its own.

use serde_json::{Value, json};
use tiderace_crds::admin::{
    ADMIN_PORT, EPOCH_VARIABLE, HEALTH_PORT, JOB_DIRECTORY, OTLP_ATTRIBUTES_VARIABLE, OTLP_VARIABLE, SECRETS_DIRECTORY,
    TLS_DIRECTORY, WORK_DIRECTORY,
};

use super::merge::merge;
use super::{Plan, job_files};
use crate::names::{self, EPOCH_LABEL, JOB_LABEL, REVISION_ANNOTATION, WORK_VOLUME, WORKER_CONTAINER};

/// Cores of a worker whose manifest names none.
const CPU_DEFAULT: &str = "1";
/// Memory of a worker whose manifest names none.
const MEMORY_DEFAULT: &str = "1Gi";
/// How long the worker may drain on SIGTERM, and then how long the kubelet waits before SIGKILL, seconds.
const DRAIN_SECONDS: u32 = 25;
const GRACE_SECONDS: u32 = 30;
/// The user that the image runs as.
const USER: u32 = 65532;

/// What every pod of a job may not be changed in by a template.
const OWNED_CONTAINER_FIELDS: [&str; 5] = ["command", "args", "image", "ports", "resources"];
/// Volumes that are the operator's, and their mounts in the worker.
const OWNED_VOLUMES: [&str; 4] = ["job", "tls", WORK_VOLUME, "secrets"];

/// The pod template for `epoch`, the user's template laid over it.
#[must_use]
pub(super) fn template(plan: &Plan<'_>, epoch: u64) -> Value {
    let spec = plan.spec;
    let resources = spec.resources.clone().unwrap_or_default();
    let cpu = resources.cpu.map_or_else(|| CPU_DEFAULT.to_owned(), |cpu| cpu.to_string());
    let memory = resources.memory.map_or_else(|| MEMORY_DEFAULT.to_owned(), |memory| memory.to_string());
    let amounts = json!({"cpu": cpu, "memory": memory});

    let mut labels = json!(names::labels(plan.job));
    labels[EPOCH_LABEL] = json!(epoch.to_string());
    let mut mounts = vec![
        json!({"name": "job", "mountPath": JOB_DIRECTORY, "readOnly": true}),
        json!({"name": "tls", "mountPath": TLS_DIRECTORY, "readOnly": true}),
        json!({"name": WORK_VOLUME, "mountPath": WORK_DIRECTORY}),
        json!({"name": "tmp", "mountPath": "/tmp"}),
    ];
    let mut volumes = vec![
        json!({"name": "job", "configMap": {"name": plan.revision, "items": job_files(spec)}}),
        json!({"name": "tls", "secret": {"secretName": names::worker_secret(plan.job), "defaultMode": 0o440}}),
        json!({"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}),
    ];
    if !spec.sql.secret_refs.is_empty() {
        mounts.push(json!({"name": "secrets", "mountPath": SECRETS_DIRECTORY, "readOnly": true}));
        volumes.push(secrets_volume(plan));
    }
    if spec.storage.is_none() {
        volumes.push(json!({"name": WORK_VOLUME, "emptyDir": {}}));
    }
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": "health", "scheme": "HTTP"},
            "periodSeconds": period, "timeoutSeconds": 3, "successThreshold": 1, "failureThreshold": failures,
        })
    };
    let mut container = json!({
        "name": WORKER_CONTAINER,
        "image": plan.image,
        "args": ["serve"],
        "env": [
            {"name": EPOCH_VARIABLE, "value": epoch.to_string()},
            {"name": "TIDERACE_DRAIN_SECONDS", "value": DRAIN_SECONDS.to_string()},
        ],
        "ports": [
            {"name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP"},
            {"name": "health", "containerPort": HEALTH_PORT, "protocol": "TCP"},
        ],
        "resources": {"requests": amounts, "limits": amounts},
        "volumeMounts": mounts,
        // The worker plans before it is up: five minutes for the largest job on the slowest node.
        "startupProbe": probe("/startupz", 1, 300),
        "livenessProbe": probe("/livez", 10, 6),
        "readinessProbe": probe("/readyz", 1, 3),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": container_security(),
    });
    if let Some(policy) = plan.image_pull_policy {
        container["imagePullPolicy"] = json!(policy);
    }
    if let (Some(endpoint), Some(environment)) = (plan.otlp_endpoint, container["env"].as_array_mut()) {
        environment.push(json!({"name": OTLP_VARIABLE, "value": endpoint}));
        let attributes = format!("k8s.namespace.name={},tiderace.deploy_epoch={epoch}", plan.namespace);
        environment.push(json!({"name": OTLP_ATTRIBUTES_VARIABLE, "value": attributes}));
    }
    let mut pod = json!({
        "automountServiceAccountToken": false,
        "serviceAccountName": plan.job,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": pod_security(plan),
        "containers": [container],
        "volumes": volumes,
        "topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": names::selector(plan.job)},
        }],
    });
    if !spec.image_pull_secrets.is_empty() {
        pod["imagePullSecrets"] = json!(spec.image_pull_secrets);
    }
    let base = json!({
        "metadata": {
            "labels": labels,
            "annotations": {REVISION_ANNOTATION: plan.revision, "kubectl.kubernetes.io/default-container": WORKER_CONTAINER},
        },
        "spec": pod,
    });
    match &spec.template {
        Some(over) => merge(base, over),
        None => base,
    }
}

/// The pod that checks the plan of a revision: the same image and the same files, and little else.
#[must_use]
pub(super) fn check_template(plan: &Plan<'_>) -> Value {
    let spec = plan.spec;
    let mut container = json!({
        "name": "check",
        "image": plan.image,
        "args": ["check", "--format", "json", "--termination-log", "/dev/termination-log", JOB_DIRECTORY],
        // With a limit of CPU: a namespace with a quota of it takes no pod without.
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}},
        "volumeMounts": [
            {"name": "job", "mountPath": JOB_DIRECTORY, "readOnly": true},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": container_security(),
    });
    if let Some(policy) = plan.image_pull_policy {
        container["imagePullPolicy"] = json!(policy);
    }
    let mut pod = json!({
        "automountServiceAccountToken": false,
        "serviceAccountName": plan.job,
        "enableServiceLinks": false,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "securityContext": pod_security(plan),
        "containers": [container],
        "volumes": [
            {"name": "job", "configMap": {"name": plan.revision, "items": job_files(spec)}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        ],
    });
    if !spec.image_pull_secrets.is_empty() {
        pod["imagePullSecrets"] = json!(spec.image_pull_secrets);
    }
    // Where a job's pods may run, its check may run too.
    for field in ["nodeSelector", "tolerations", "priorityClassName", "runtimeClassName"] {
        if let Some(value) = spec.template.as_ref().and_then(|t| t.pointer(&format!("/spec/{field}"))).filter(|v| !v.is_null()) {
            pod[field] = value.clone();
        }
    }
    json!({"metadata": {"labels": check_labels(plan.job)}, "spec": pod})
}

/// Labels of a check's Job and pod; not those that the workers' selector asks for.
#[must_use]
pub(super) fn check_labels(job: &str) -> Value {
    let mut labels = json!(names::labels(job));
    labels["app.kubernetes.io/name"] = json!(names::CHECK_NAME);
    labels["app.kubernetes.io/component"] = json!("check");
    labels
}

/// Why a template can't be laid over the operator's, if it can't: it would take away what a worker needs.
#[must_use]
pub(super) fn forbidden(template: &Value) -> Option<String> {
    let refuse =
        |field: &str| Some(format!("spec.template may not set {field}: the operator does, from other fields of the job"));
    for part in ["/metadata", "/metadata/labels", "/spec", "/spec/containers", "/spec/volumes"] {
        if template.pointer(part).is_some_and(Value::is_null) {
            return Some(format!(
                "spec.template may not take {} away: a worker needs what the operator puts there",
                part[1..].replace('/', ".")
            ));
        }
    }
    if let Some(labels) = template.pointer("/metadata/labels").and_then(Value::as_object) {
        for label in [JOB_LABEL, EPOCH_LABEL, names::MANAGED_BY_LABEL, "app.kubernetes.io/name"] {
            if labels.contains_key(label) {
                return refuse(&format!("metadata.labels[{label}]"));
            }
        }
    }
    for field in ["restartPolicy", "serviceAccountName", "hostname", "subdomain", "imagePullSecrets"] {
        if template.pointer(&format!("/spec/{field}")).is_some() {
            return refuse(&format!("spec.{field}"));
        }
    }
    for (list, owned) in [("containers", [WORKER_CONTAINER].as_slice()), ("volumes", &OWNED_VOLUMES)] {
        let Some(value) = template.pointer(&format!("/spec/{list}")).filter(|v| !v.is_null()) else { continue };
        let Some(items) = value.as_array() else { return Some(format!("spec.template.spec.{list} must be a list")) };
        for item in items {
            let Some(name) = item["name"].as_str() else {
                return Some(format!("spec.template.spec.{list}: every item must have a name, as they are merged by it"));
            };
            if !owned.contains(&name) {
                continue;
            }
            if list == "volumes" {
                return refuse(&format!("the volume {name}"));
            }
            if let Some(field) = OWNED_CONTAINER_FIELDS.iter().find(|field| item.get(**field).is_some()) {
                return refuse(&format!("{field} of the container {name}"));
            }
            if let Some(field) = ["env", "volumeMounts"].iter().find(|field| item.get(**field).is_some_and(Value::is_null)) {
                return Some(format!("spec.template may not take {field} of the container {name} away: the operator needs it"));
            }
            let mounts = item["volumeMounts"].as_array().cloned().unwrap_or_default();
            if mounts.iter().any(|mount| mount["name"].is_null()) {
                return Some("spec.template: every volumeMount must have a name".to_owned());
            }
            if let Some(mount) =
                mounts.iter().filter_map(|mount| mount["name"].as_str()).find(|name| OWNED_VOLUMES.contains(name))
            {
                return refuse(&format!("the mount of the volume {mount} in the container {name}"));
            }
            let variables = item["env"].as_array().cloned().unwrap_or_default();
            if variables.iter().any(|variable| variable["name"] == EPOCH_VARIABLE) {
                return refuse(&format!("the variable {EPOCH_VARIABLE}"));
            }
        }
    }
    None
}

fn secrets_volume(plan: &Plan<'_>) -> Value {
    let sources: Vec<Value> = plan
        .spec
        .sql
        .secret_refs
        .iter()
        .map(|(name, at)| json!({"secret": {"name": at.name, "items": [{"key": at.key, "path": name}]}}))
        .collect();
    json!({"name": "secrets", "projected": {"defaultMode": 0o440, "sources": sources}})
}

fn pod_security(plan: &Plan<'_>) -> Value {
    let seccomp = match &plan.spec.seccomp {
        Some(seccomp) => json!({"type": "Localhost", "localhostProfile": seccomp.localhost_profile}),
        None => json!({"type": "RuntimeDefault"}),
    };
    json!({
        "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": seccomp,
    })
}

fn container_security() -> Value {
    json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
}
