//! `StreamingJob`: one job, `tiderace.dev/v1alpha1`.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::resources::{Cores, MemorySize};

/// What runs, and with what.
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
    doc = "A streaming SQL job: its statements and what they may use.",
    printcolumn(name = "CPU", type_ = "string", json_path = ".spec.resources.cpu"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".spec.resources.memory"),
    printcolumn(name = "Partitions", type_ = "integer", json_path = ".spec.maxParallelism", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 45")
        .message("metadata.name may have at most 45 characters: names of pods are made from it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must consist of a-z, 0-9 and '-', begin with a letter and not end with '-'")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.resources) || !has(self.resources.cpu) || int(self.resources.cpu) <= self.maxParallelism")
        .message("resources.cpu may not be more than maxParallelism: each core owns at least one partition of the state")
)]
pub struct StreamingJobSpec {
    /// The statements.
    pub sql: Sql,

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

/// Cores and memory of a worker.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// Pinned cores, a whole number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cores>,
    /// The bound on the state in memory: `8Gi`, `512Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemorySize>,
}

const CONFIG_KEYS_MAX: u32 = 64;

fn config_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "additionalProperties": {"type": "string", "maxLength": 1024},
    })
}

fn max_parallelism_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 32768})
}

fn max_parallelism_default() -> u32 {
    256
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
    fn defaults_are_those_of_the_schema() {
        let job: StreamingJob = serde_json::from_value(job()).unwrap();
        assert_eq!(job.spec.max_parallelism, 256);
        let schema = serde_json::to_value(crate::definition::streaming_job()).unwrap();
        let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/maxParallelism/default";
        assert_eq!(schema.pointer(path), Some(&json!(256)));
    }
}
