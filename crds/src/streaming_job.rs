//! `StreamingJob`: one job, `tiderace.dev/v1alpha1`.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::resources::{Cores, MemorySize};
use crate::status::StreamingJobStatus;

/// Annotation whose changed value makes the operator restart the job: `kubectl tiderace restart` writes the time into it.
pub const RESTART_ANNOTATION: &str = "tiderace.dev/restart";

/// What runs, and with what.
///
/// Each field says whether it changes what `tiderace run` does on a laptop, or only what a cluster does with the job.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "tiderace.dev",
    version = "v1alpha1",
    kind = "StreamingJob",
    namespaced,
    cel,
    derive = "PartialEq",
    shortname = "sj",
    category = "all",
    category = "streaming",
    status = "StreamingJobStatus",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    selectable = ".spec.state",
    selectable = ".status.phase",
    doc = "A streaming SQL job: its statements and what they may use.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Restarts", type_ = "integer", json_path = ".status.restarts.count"),
    printcolumn(name = "CPU", type_ = "string", json_path = ".spec.resources.cpu"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".spec.resources.memory"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.deployed.epoch", priority = "1"),
    printcolumn(name = "Image", type_ = "string", json_path = ".status.deployed.image", priority = "1"),
    printcolumn(name = "Partitions", type_ = "integer", json_path = ".spec.maxParallelism", priority = "1"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = "1"
    ),
    validation = Rule::new("self.metadata.name.size() <= 45")
        .message("metadata.name may have at most 45 characters: names of pods are made from it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must consist of a-z, 0-9 and '-', begin with a letter and not end with '-'")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.resources) || !has(self.resources.cpu) || int(self.resources.cpu) <= self.maxParallelism")
        .message("resources.cpu may not be more than maxParallelism: each core owns at least one partition of the state"),
    validation = Rule::new("self.replicas <= self.maxParallelism")
        .message("replicas may not be more than maxParallelism: each worker owns at least one partition of the state"),
    validation = Rule::new("has(self.storage) == has(oldSelf.storage)")
        .message("storage can't be added or removed: the volumes of a job are made with it; make a new job")
)]
pub struct StreamingJobSpec {
    /// The statements.
    pub sql: Sql,

    /// The worker's image; the operator's default when left out. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// Secrets in the job's namespace that the image is pulled with. Only in a cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub image_pull_secrets: Vec<ObjectName>,

    /// Whether the job runs. A suspended job keeps its objects and volumes, and has no pod. Only in a cluster.
    #[serde(default)]
    pub state: DesiredState,

    /// Workers. One for now: more is refused by the condition PlanValid. Only in a cluster.
    #[serde(default = "replicas_default")]
    #[schemars(schema_with = "replicas_schema")]
    pub replicas: u32,

    /// Settings of the engine, as SET would make them: `engine.tick: 100ms`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = CONFIG_KEYS_MAX), schema_with = "config_schema")]
    pub config: BTreeMap<String, String>,

    /// Cores and memory of the worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// Into how many partitions the state is cut; fixed when the job is created. More cores than this can't be used.
    #[serde(default = "max_parallelism_default")]
    #[schemars(schema_with = "max_parallelism_schema")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("maxParallelism can't change: the state is cut by it"))]
    pub max_parallelism: u32,

    /// The worker's volume; an emptyDir when left out. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,

    /// How a changed job replaces the running one. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<Upgrade>,

    /// How often, and how soon, a worker that failed is started again. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,

    /// Seconds after its start at which a job that hasn't finished is stopped and counts as failed. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 315_360_000))]
    pub active_deadline_seconds: Option<u32>,

    /// Seconds after its end at which a finished job is deleted. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 315_360_000))]
    pub ttl_seconds_after_finished: Option<u32>,

    /// What happens when the job is deleted. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion: Option<Deletion>,

    /// Who may open connections to the worker. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicySettings>,

    /// Whether a PodDisruptionBudget stands over the workers. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_disruption_budget: Option<DisruptionBudgetSettings>,

    /// Objects for Prometheus. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitoring: Option<Monitoring>,

    /// The pod's seccomp profile; the container runtime's default when left out. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Seccomp>,

    /// A PodTemplateSpec that is merged over the operator's: maps by key, lists of named things by name. It can't change what the operator
    /// needs to run the job (the worker's image, command, ports, resources, and the mounts of its own volumes). Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "template_schema")]
    pub template: Option<serde_json::Value>,
}

/// Where the statements stand: in the manifest, or in a ConfigMap beside it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.inline) != has(self.configMapKeyRef)")
        .message("exactly one of inline and configMapKeyRef must be given")
)]
pub struct Sql {
    /// The statements themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 524_288))]
    pub inline: Option<String>,

    /// A key of a ConfigMap in the job's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<ConfigMapKey>,

    /// For each secret that the statements name (`SECRET 'kafka_pw'`): a key of a Secret in the job's namespace. In a cluster its value is
    /// mounted into the worker and stands in no other object.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "secret_refs_schema")]
    #[x_kube(validation = Rule::new("self.all(name, name.matches('^[A-Za-z_][A-Za-z0-9_.-]{0,62}$'))")
        .message("secretRefs: a name must begin with a letter or '_' and consist of at most 63 letters, digits, '_', '-' and '.'"))]
    pub secret_refs: BTreeMap<String, SecretKey>,
}

/// A key of a ConfigMap.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigMapKey {
    /// The ConfigMap's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A key of a Secret.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKey {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// The name of an object in the job's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectName {
    /// The name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Whether a job is wanted to run.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DesiredState {
    /// It runs.
    #[default]
    Running,
    /// It has no pod; its objects and volumes stay.
    Suspended,
}

/// Cores and memory of a worker.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// Pinned cores, a whole number; in a cluster 1 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cores>,
    /// `8Gi`, `512Mi`. For `tiderace run` the bound on the state in memory; in a cluster the memory of the worker's container, at least 128Mi, 1Gi when left out,
    /// of which the state gets a part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemorySize>,
}

/// A volume for each worker.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName)")
        .message("storage.storageClassName can't change: volumes don't move between classes")
)]
pub struct Storage {
    /// Size of the volume; it may only grow.
    #[x_kube(validation = Rule::new("quantity(string(self)).compareTo(quantity(string(oldSelf))) >= 0")
        .message("storage.size may only grow: volumes can't shrink"))]
    pub size: MemorySize,

    /// The StorageClass; the cluster's default when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("storage.storageClassName can't change: volumes don't move between classes"))]
    pub storage_class_name: Option<String>,

    /// What becomes of the volumes when the job is deleted.
    #[serde(default)]
    pub retention: Retention,
}

/// What becomes of a job's volumes when it is deleted.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Retention {
    /// They stay, and a job of the same name takes them up again.
    #[default]
    Retain,
    /// They are deleted with the job.
    Delete,
}

/// How a changed job replaces the running one.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Upgrade {
    /// What the new job begins with.
    #[serde(default)]
    pub mode: UpgradeMode,

    /// Seconds within which a start must lead to a ready worker; after that the condition Stalled says what holds it up. It is still tried.
    #[serde(default = "progress_deadline_default")]
    #[schemars(range(min = 10, max = 86_400))]
    pub progress_deadline_seconds: u32,

    /// What happens when a changed job isn't ready within progressDeadlineSeconds.
    #[serde(default)]
    pub rollback: Rollback,
}

/// What a changed job begins with.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum UpgradeMode {
    /// A savepoint of the running job. Not yet available: refused by the condition PlanValid.
    Savepoint,
    /// The last checkpoint. Not yet available: refused by the condition PlanValid.
    LastState,
    /// Nothing: sources are read as on the first start.
    #[default]
    Stateless,
}

/// What happens when a changed job doesn't come up.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Rollback {
    /// The job that ran before is started again, and the condition Stalled says so until the manifest changes.
    Automatic,
    /// The changed job is tried on.
    #[default]
    Never,
}

/// How often, and how soon, a worker that failed is started again.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.initialBackoffSeconds <= self.maxBackoffSeconds")
        .message("restartPolicy.initialBackoffSeconds may not be more than maxBackoffSeconds")
)]
pub struct RestartPolicy {
    /// That many failures within windowSeconds are mended by a restart; with the next one the job stays down until the manifest changes or a
    /// restart is asked for.
    #[serde(default = "max_restarts_default")]
    #[schemars(range(min = 0, max = 100))]
    pub max_restarts: u32,

    /// Seconds for which a failure counts.
    #[serde(default = "restart_window_default")]
    #[schemars(range(min = 1, max = 86_400))]
    pub window_seconds: u32,

    /// Seconds of waiting before the restart that follows an immediate one; doubled with each failure in the window.
    #[serde(default = "initial_backoff_default")]
    #[schemars(range(min = 1, max = 3_600))]
    pub initial_backoff_seconds: u32,

    /// The longest wait.
    #[serde(default = "max_backoff_default")]
    #[schemars(range(min = 1, max = 3_600))]
    pub max_backoff_seconds: u32,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            max_restarts: max_restarts_default(),
            window_seconds: restart_window_default(),
            initial_backoff_seconds: initial_backoff_default(),
            max_backoff_seconds: max_backoff_default(),
        }
    }
}

/// What happens when the job is deleted.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Deletion {
    /// Seconds that the worker gets to bring what it took in to the sinks. Then the job goes, whatever the worker does.
    #[serde(default = "deletion_timeout_default")]
    #[schemars(range(min = 0, max = 3_600))]
    pub timeout_seconds: u32,
}

impl Default for Deletion {
    fn default() -> Self {
        Self { timeout_seconds: deletion_timeout_default() }
    }
}

/// Who may open connections to the worker.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkPolicySettings {
    /// Whether there is a NetworkPolicy.
    #[serde(default)]
    pub mode: NetworkPolicyMode,
}

/// Whether there is a NetworkPolicy over the workers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NetworkPolicyMode {
    /// The admin API is open to the operator and the job's own pods, the port of probes and metrics to all. What the worker itself connects to
    /// is not limited.
    #[default]
    Restricted,
    /// No NetworkPolicy.
    Disabled,
}

/// Whether a PodDisruptionBudget stands over the workers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DisruptionBudgetSettings {
    /// Whether there is one. It lets one worker go at a time, so a drain of a node is never blocked by a healthy job.
    #[serde(default = "enabled_default")]
    pub enabled: bool,
}

/// Objects for Prometheus.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Monitoring {
    /// Whether a PodMonitor of the Prometheus operator is made. Its definition must be in the cluster.
    #[serde(default)]
    pub pod_monitor: bool,
}

/// The pod's seccomp profile.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Seccomp {
    /// A profile in the kubelet's seccomp folder on every node, such as one that allows io_uring: `profiles/tiderace-io-uring.json`. Where the
    /// file is missing no worker starts.
    #[schemars(length(min = 1, max = 253))]
    pub localhost_profile: String,
}

const CONFIG_KEYS_MAX: u32 = 64;
const SECRETS_MAX: u32 = 32;

fn config_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "additionalProperties": {"type": "string", "maxLength": 1024},
    })
}

fn secret_refs_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": SECRETS_MAX,
        "additionalProperties": generator.subschema_for::<SecretKey>(),
    })
}

fn template_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

fn replicas_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 1024})
}

fn max_parallelism_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 32768})
}

fn max_parallelism_default() -> u32 {
    256
}

fn replicas_default() -> u32 {
    1
}

fn progress_deadline_default() -> u32 {
    600
}

fn max_restarts_default() -> u32 {
    10
}

fn restart_window_default() -> u32 {
    600
}

fn initial_backoff_default() -> u32 {
    5
}

fn max_backoff_default() -> u32 {
    300
}

fn deletion_timeout_default() -> u32 {
    60
}

fn enabled_default() -> bool {
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use serde_json::{Value, json};

    use super::*;

    fn job() -> Value {
        json!({
            "apiVersion": "tiderace.dev/v1alpha1", "kind": "StreamingJob",
            "metadata": {"name": "orders"},
            "spec": {"sql": {"inline": "SELECT 1"}, "resources": {"cpu": "4", "memory": "8Gi"}},
        })
    }

    fn with(pointer: &str, value: Value) -> StreamingJob {
        let mut job = job();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        job.pointer_mut(parent).unwrap()[key] = value;
        serde_json::from_value(job).unwrap()
    }

    /// The messages of the rules that refuse `job`.
    fn verdict(job: &StreamingJob) -> Vec<String> {
        job.validate_cel().err().map(|e| e.into_vec().into_iter().map(|e| e.message).collect()).unwrap_or_default()
    }

    #[test]
    fn a_good_job_passes_every_rule() {
        assert_eq!(verdict(&serde_json::from_value(job()).unwrap()), Vec::<String>::new());
        assert_eq!(verdict(&with("/metadata/name", json!("a".repeat(45)))), Vec::<String>::new());
        assert_eq!(verdict(&with("/spec/resources/cpu", json!(256))), Vec::<String>::new());
        assert_eq!(verdict(&with("/spec/sql", json!({"configMapKeyRef": {"name": "m", "key": "k"}}))), Vec::<String>::new());
    }

    #[test]
    fn each_rule_refuses_what_it_is_for() {
        for (pointer, value, message) in [
            ("/metadata/name", json!("a".repeat(46)), "at most 45 characters"),
            ("/metadata/name", json!("Orders"), "begin with a letter"),
            ("/metadata/name", json!("1orders"), "begin with a letter"),
            ("/metadata/name", json!("orders-"), "not end with '-'"),
            ("/spec/sql", json!({}), "exactly one of"),
            ("/spec/sql", json!({"inline": "SELECT 1", "configMapKeyRef": {"name": "m", "key": "k"}}), "exactly one of"),
            ("/spec/resources/cpu", json!("257"), "more than maxParallelism"),
            ("/spec/maxParallelism", json!(3), "more than maxParallelism"),
            ("/spec/replicas", json!(257), "replicas may not be more than maxParallelism"),
            (
                "/spec/restartPolicy",
                json!({"initialBackoffSeconds": 9, "maxBackoffSeconds": 8}),
                "may not be more than maxBackoffSeconds",
            ),
            ("/spec/sql", json!({"inline": "SELECT 1", "secretRefs": {"../a": {"name": "n", "key": "k"}}}), "secretRefs: a name"),
        ] {
            let messages = verdict(&with(pointer, value.clone()));
            assert!(messages.len() == 1 && messages[0].contains(message), "{pointer} = {value}: {messages:?}");
        }
    }

    #[test]
    fn max_parallelism_can_not_change() {
        let old = with("/spec/maxParallelism", json!(128));
        let new = with("/spec/maxParallelism", json!(256));
        assert!(old.validate_cel_update(&old).is_ok());
        let errors = new.validate_cel_update(&old).unwrap_err().into_vec();
        assert!(errors.len() == 1 && errors[0].message.contains("can't change"), "{errors:?}");
    }

    #[test]
    fn storage_may_only_grow_where_it_is() {
        let storage = |json: Value| with("/spec/storage", json);
        let old = storage(json!({"size": "2Gi", "storageClassName": "fast"}));
        for good in [
            json!({"size": "2Gi", "storageClassName": "fast"}),
            json!({"size": "2.5Gi", "storageClassName": "fast", "retention": "Delete"}),
        ] {
            assert!(storage(good.clone()).validate_cel_update(&old).is_ok(), "{good}");
        }
        for (new, message) in [
            (storage(json!({"size": "2047Mi", "storageClassName": "fast"})), "may only grow"),
            (storage(json!({"size": "2Gi", "storageClassName": "slow"})), "don't move between classes"),
            (storage(json!({"size": "2Gi"})), "don't move between classes"),
            (with("/spec/replicas", json!(1)), "can't be added or removed"),
        ] {
            let errors = new.validate_cel_update(&old).unwrap_err().into_vec();
            assert!(errors.len() == 1 && errors[0].message.contains(message), "{message}: {errors:?}");
        }
        let errors = old.validate_cel_update(&with("/spec/replicas", json!(1))).unwrap_err().into_vec();
        assert!(errors.len() == 1 && errors[0].message.contains("can't be added or removed"), "{errors:?}");
    }

    /// A status that an operator wrote is read again as it was, and one by a newer operator as far as it is known.
    #[test]
    fn a_status_of_a_newer_operator_is_read() {
        let mut job = job();
        job["status"] = json!({"phase": "Running", "epoch": 3, "tomorrow": {"a": 1}});
        let job: StreamingJob = serde_json::from_value(job).unwrap();
        assert_eq!(job.status.unwrap().epoch, 3);
    }

    #[test]
    fn defaults_are_those_of_the_schema() {
        let job: StreamingJob = serde_json::from_value(job()).unwrap();
        assert_eq!((job.spec.state, job.spec.replicas), (DesiredState::Running, 1));
        assert_eq!(job.spec.max_parallelism, 256);
        let schema = serde_json::to_value(crate::definition::streaming_job()).unwrap();
        let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/maxParallelism/default";
        assert_eq!(schema.pointer(path), Some(&json!(256)));
    }
}
