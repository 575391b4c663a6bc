//! The objects that a job owns, as JSON: what is applied is what stands here.
//!
//! ```text
//! Plan ──▶ ServiceAccount, Services, NetworkPolicy, PodDisruptionBudget, PodMonitor      (settings: written whenever they differ)
//!      ──▶ ConfigMap of the revision                                                     (immutable, one for each revision)
//!      ──▶ StatefulSet of an epoch                                                       (written by an operation alone)
//!      ──▶ Job that checks the plan
//! ```
//! Rendering is versioned: a job's StatefulSet is made by the version that its running epoch was made by, until the job is changed. So a new
//! operator restarts nothing.

mod merge;
mod pod;

use serde_json::{Value, json};
use tiderace_crds::admin::{ADMIN_PORT, HEALTH_PORT};
use tiderace_crds::{DesiredState, NetworkPolicyMode, StreamingJobSpec};

use crate::names::{self, RENDERED_ANNOTATION, REVISION_ANNOTATION, WORK_VOLUME};

/// The version that new epochs are made by. Raise it with every change of [`pod`] or of the StatefulSet, and keep the old one.
pub const RENDERER_VERSION: u32 = 1;

/// A ConfigMap may hold so many bytes in all; the rest is for the other key and the object itself.
pub const CONFIG_MAP_BYTES_MAX: usize = 1 << 20;

/// What objects are made from.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The job's name.
    pub job: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its uid, which owns all.
    pub uid: &'a str,
    /// The spec that workers are made from: the manifest's, or the stored one of a revision.
    pub spec: &'a StreamingJobSpec,
    /// The statements, wherever they stand.
    pub statements: &'a str,
    /// The revision of those.
    pub revision: &'a str,
    /// The image, the default put in.
    pub image: &'a str,
    /// The operator's setting.
    pub image_pull_policy: Option<&'a str>,
    /// The namespace that the operator's own pods are in, for the NetworkPolicy.
    pub operator_namespace: &'a str,
    /// A collector for the worker's spans: the operator's setting.
    pub otlp_endpoint: Option<&'a str>,
}

/// A StatefulSet's size and place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale<'a> {
    /// The deploy epoch of its pods.
    pub epoch: u64,
    /// How many.
    pub replicas: u32,
    /// What its claims ask for; it can't change in a StatefulSet that exists.
    pub claim_size: Option<&'a str>,
    /// By which version of the templates.
    pub renderer_version: u32,
}

/// What a rendering can't be made of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The user's template takes away what the operator needs.
    #[error("{0}")]
    ForbiddenTemplate(String),
    /// The manifest and its statements don't fit into a ConfigMap.
    #[error(
        "the manifest and its statements have {bytes} bytes, and a ConfigMap may have {CONFIG_MAP_BYTES_MAX}: shorten the statements"
    )]
    TooLarge {
        /// How many there are.
        bytes: usize,
    },
    /// It couldn't be written as YAML.
    #[error("the manifest can't be written as YAML: {0}")]
    Unwritable(String),
}

impl Plan<'_> {
    /// Objects that may change while workers run, in the order in which they are applied. `wanted` is the manifest as it is now.
    #[must_use]
    pub fn settings(&self, wanted: &StreamingJobSpec) -> Vec<Value> {
        let mut objects = vec![
            self.object("v1", "ServiceAccount", self.job, json!({"automountServiceAccountToken": false})),
            self.object("v1", "Service", &names::headless_service(self.job), self.headless()),
            self.object("v1", "Service", &names::api_service(self.job), self.api()),
        ];
        if wanted.network_policy.clone().unwrap_or_default().mode == NetworkPolicyMode::Restricted {
            objects.push(self.object("networking.k8s.io/v1", "NetworkPolicy", self.job, self.network_policy()));
        }
        if wanted.pod_disruption_budget.as_ref().is_none_or(|budget| budget.enabled) {
            let body = json!({"spec": {
                "maxUnavailable": 1,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": names::selector(self.job)},
            }});
            objects.push(self.object("policy/v1", "PodDisruptionBudget", self.job, body));
        }
        if wanted.monitoring.as_ref().is_some_and(|m| m.pod_monitor) {
            let body = json!({"spec": {
                "selector": {"matchLabels": names::selector(self.job)},
                "podMetricsEndpoints": [{"port": "health", "path": "/metrics"}],
            }});
            objects.push(self.object("monitoring.coreos.com/v1", "PodMonitor", self.job, body));
        }
        objects
    }

    /// The revision's ConfigMap: the manifest that the worker reads, and from which the operator renders the revision anew.
    pub fn config_map(&self) -> Result<Value, RenderError> {
        if let Some(reason) = self.spec.template.as_ref().and_then(pod::forbidden) {
            return Err(RenderError::ForbiddenTemplate(reason));
        }
        let manifest = json!({
            "apiVersion": names::API_VERSION, "kind": "StreamingJob",
            "metadata": {"name": self.job, "namespace": self.namespace},
            "spec": names::worker_spec(self.spec),
        });
        let manifest = serde_saphyr::to_string(&manifest).map_err(|error| RenderError::Unwritable(error.to_string()))?;
        let mut data = json!({"job.yaml": manifest});
        let mut bytes = manifest.len();
        if self.spec.sql.config_map_key_ref.is_some() {
            data["job.sql"] = json!(self.statements);
            bytes += self.statements.len();
        }
        if bytes > CONFIG_MAP_BYTES_MAX - 4096 {
            return Err(RenderError::TooLarge { bytes });
        }
        Ok(self.object("v1", "ConfigMap", self.revision, json!({"immutable": true, "data": data})))
    }

    /// The StatefulSet of an epoch.
    #[must_use]
    pub fn stateful_set(&self, scale: Scale<'_>) -> Value {
        // One version so far: what an unknown one (of a newer operator, after a downgrade) made is made anew by this one with the next epoch.
        let mut spec = json!({
            "serviceName": names::headless_service(self.job),
            "replicas": scale.replicas,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "revisionHistoryLimit": 3,
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            "selector": {"matchLabels": names::selector(self.job)},
            "template": pod::template(self, scale.epoch),
        });
        if let Some(storage) = &self.spec.storage {
            let size = scale.claim_size.map_or_else(|| storage.size.to_string(), ToOwned::to_owned);
            let mut claim = json!({
                "accessModes": ["ReadWriteOnce"],
                "volumeMode": "Filesystem",
                "resources": {"requests": {"storage": size}},
            });
            if let Some(class) = &storage.storage_class_name {
                claim["storageClassName"] = json!(class);
            }
            spec["volumeClaimTemplates"] = json!([{
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {"name": WORK_VOLUME, "labels": names::labels(self.job)},
                "spec": claim,
            }]);
        }
        let mut set = self.object("apps/v1", "StatefulSet", self.job, json!({"spec": spec}));
        set["metadata"]["annotations"][REVISION_ANNOTATION] = json!(self.revision);
        set["metadata"]["labels"][names::EPOCH_LABEL] = json!(scale.epoch.to_string());
        set
    }

    /// The pod of an epoch by itself, for a dry run: the API server says what its namespace forbids.
    #[must_use]
    pub fn pod(&self) -> Value {
        let mut pod = pod::template(self, 0);
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(format!("{}-dry-run", self.job));
        pod["metadata"]["namespace"] = json!(self.namespace);
        if self.spec.storage.is_some()
            && let Some(volumes) = pod["spec"]["volumes"].as_array_mut()
        {
            volumes.push(json!({"name": WORK_VOLUME, "emptyDir": {}}));
        }
        pod
    }

    /// The StatefulSet by a name that nobody has, for a dry run: it is judged by other rules than its pod.
    #[must_use]
    pub fn set_for_dry_run(&self) -> Value {
        let mut set = self.stateful_set(Scale { epoch: 0, replicas: 1, claim_size: None, renderer_version: RENDERER_VERSION });
        set["metadata"]["name"] = json!(format!("{}-dry-run", self.job));
        set
    }

    /// The Job that plans the revision by its own image.
    #[must_use]
    pub fn check_job(&self) -> Value {
        let body = json!({"spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": 3600,
            "completions": 1,
            "parallelism": 1,
            "template": pod::check_template(self),
        }});
        let mut job = self.object("batch/v1", "Job", &names::check_job(self.revision, self.image), body);
        job["metadata"]["labels"] = pod::check_labels(self.job);
        job
    }

    /// A Secret of the job.
    #[must_use]
    pub fn secret(&self, name: &str, kind: &str, data: &std::collections::BTreeMap<&str, String>) -> Value {
        self.object("v1", "Secret", name, json!({"type": kind, "stringData": data}))
    }

    /// An object with the job's labels and owner; the hash of all that is in its annotations.
    fn object(&self, api_version: &str, kind: &str, name: &str, body: Value) -> Value {
        let mut object = json!({
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": names::labels(self.job),
                "ownerReferences": [{
                    "apiVersion": names::API_VERSION, "kind": "StreamingJob", "name": self.job, "uid": self.uid,
                    "controller": true, "blockOwnerDeletion": true,
                }],
            },
        });
        if let (Some(object), Value::Object(body)) = (object.as_object_mut(), body) {
            object.extend(body);
        }
        let hash = names::hash_object(&object);
        object["metadata"]["annotations"] = json!({RENDERED_ANNOTATION: hash});
        object
    }

    fn headless(&self) -> Value {
        json!({"spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": names::selector(self.job),
            "ports": [{"name": "admin", "port": ADMIN_PORT, "targetPort": "admin", "protocol": "TCP"}],
        }})
    }

    fn api(&self) -> Value {
        json!({"spec": {
            "type": "ClusterIP",
            "selector": names::selector(self.job),
            "ports": [
                {"name": "admin", "port": ADMIN_PORT, "targetPort": "admin", "protocol": "TCP"},
                {"name": "health", "port": HEALTH_PORT, "targetPort": "health", "protocol": "TCP"},
            ],
        }})
    }

    fn network_policy(&self) -> Value {
        json!({"spec": {
            "podSelector": {"matchLabels": names::selector(self.job)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [
                        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.operator_namespace}}},
                        {"podSelector": {"matchLabels": names::selector(self.job)}},
                    ],
                    "ports": [{"port": "admin", "protocol": "TCP"}],
                },
                {"ports": [{"port": "health", "protocol": "TCP"}]},
            ],
        }})
    }
}

/// Whether workers are wanted at all.
#[must_use]
pub fn is_wanted(spec: &StreamingJobSpec) -> bool {
    spec.state == DesiredState::Running
}

/// The items of a revision's ConfigMap that pods mount.
fn job_files(spec: &StreamingJobSpec) -> Value {
    let mut items = vec![json!({"key": "job.yaml", "path": "job.yaml"})];
    if spec.sql.config_map_key_ref.is_some() {
        items.push(json!({"key": "job.sql", "path": "job.sql"}));
    }
    Value::Array(items)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tiderace_crds::Manifest;

    use super::*;

    fn spec(json: Value) -> StreamingJobSpec {
        serde_json::from_value(json).unwrap()
    }

    fn plan(spec: &StreamingJobSpec) -> Plan<'_> {
        Plan {
            job: "orders",
            namespace: "shop",
            uid: "uid-1",
            spec,
            statements: "SELECT 1",
            revision: "orders-0123456789",
            image: "tiderace:1",
            image_pull_policy: None,
            operator_namespace: "tiderace-system",
            otlp_endpoint: None,
        }
    }

    #[test]
    fn a_collector_is_told_to_the_worker() {
        let spec = spec(json!({"sql": {"inline": "SELECT 1"}}));
        let plain = plan(&spec).stateful_set(scale());
        let told = Plan { otlp_endpoint: Some("http://collector:4318/v1/traces"), ..plan(&spec) }.stateful_set(scale());
        let variables =
            |set: &Value| set.pointer("/spec/template/spec/containers/0/env").and_then(Value::as_array).unwrap().clone();
        assert_eq!(variables(&told).len(), variables(&plain).len() + 2);
        assert!(variables(&told).iter().any(|v| v["value"] == "http://collector:4318/v1/traces"));
        assert!(variables(&told).iter().any(|v| v["value"] == "k8s.namespace.name=shop,tiderace.deploy_epoch=7"));
    }

    fn scale() -> Scale<'static> {
        Scale { epoch: 7, replicas: 1, claim_size: None, renderer_version: RENDERER_VERSION }
    }

    fn full() -> StreamingJobSpec {
        spec(json!({
            "sql": {"inline": "SELECT 1\nFROM t", "secretRefs": {"kafka_pw": {"name": "kafka", "key": "password"}}},
            "image": "tiderace:1", "imagePullSecrets": [{"name": "regcred"}],
            "resources": {"cpu": 4, "memory": "8Gi"},
            "config": {"engine.tick": "50ms"},
            "storage": {"size": "50Gi", "storageClassName": "fast"},
            "monitoring": {"podMonitor": true},
            "template": {"spec": {"nodeSelector": {"disk": "nvme"}, "containers": [{"name": "worker", "env": [{"name": "A", "value": "b"}]}]}},
        }))
    }

    /// All that a full job owns, as it is applied. A change here restarts jobs or rewrites objects: see `RENDERER_VERSION`.
    #[test]
    fn rendered_objects_are_as_reviewed() {
        let full = full();
        let plan = plan(&full);
        let mut all = plan.settings(&full);
        all.push(plan.config_map().unwrap());
        all.push(plan.check_job());
        all.push(plan.stateful_set(scale()));
        let text: String = all.iter().map(|o| format!("---\n{}", serde_saphyr::to_string(o).unwrap())).collect();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/children.yaml");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).unwrap();
            std::fs::write(path, &text).unwrap();
        }
        assert!(
            std::fs::read_to_string(path).unwrap_or_default() == text,
            "operator/tests/golden/children.yaml: look at it, then UPDATE=1"
        );
    }

    #[test]
    fn the_worker_reads_the_manifest_that_the_operator_writes() {
        let full = full();
        let map = plan(&full).config_map().unwrap();
        let manifest = Manifest::parse(map["data"]["job.yaml"].as_str().unwrap()).unwrap();
        assert_eq!(manifest.job.spec, names::worker_spec(&full));
        assert_eq!(names::revision("orders", &manifest.job.spec, "x"), names::revision("orders", &full, "x"));
    }

    #[test]
    fn requests_equal_limits_in_whole_cores() {
        let full = full();
        let set = plan(&full).stateful_set(scale());
        let resources = &set["spec"]["template"]["spec"]["containers"][0]["resources"];
        assert_eq!(resources["requests"], resources["limits"]);
        assert_eq!(resources["limits"], json!({"cpu": "4", "memory": "8Gi"}));
    }

    #[test]
    fn a_template_is_laid_over_by_name() {
        let full = full();
        let set = plan(&full).stateful_set(scale());
        let pod = &set["spec"]["template"]["spec"];
        assert_eq!(pod["nodeSelector"], json!({"disk": "nvme"}));
        let worker = &pod["containers"][0];
        assert!(worker["env"].as_array().unwrap().contains(&json!({"name": "A", "value": "b"})));
        assert!(worker["env"].as_array().unwrap().contains(&json!({"name": "TIDERACE_DEPLOY_EPOCH", "value": "7"})));
        assert_eq!(plan(&full).check_job()["spec"]["template"]["spec"]["nodeSelector"], json!({"disk": "nvme"}));
    }

    #[test]
    fn empty_lists_take_nothing_away() {
        let empty = json!({"spec": {"volumes": [], "containers": [{"name": "worker", "env": [], "volumeMounts": []}]}});
        let with = spec(json!({"sql": {"inline": "SELECT 1"}, "template": empty}));
        let without = spec(json!({"sql": {"inline": "SELECT 1"}}));
        let pod = |spec: &StreamingJobSpec| plan(spec).stateful_set(scale())["spec"]["template"].clone();
        assert_eq!(pod(&with), pod(&without));
    }

    #[test]
    fn a_template_can_not_take_away_what_a_worker_needs() {
        for (template, word) in [
            (json!({"spec": {"containers": [{"name": "worker", "args": ["sleep"]}]}}), "args"),
            (json!({"spec": {"containers": [{"name": "worker", "image": "x"}]}}), "image"),
            (json!({"spec": {"containers": [{"image": "x"}]}}), "name"),
            (json!({"spec": {"containers": {}}}), "list"),
            (json!({"spec": {"volumes": [{"name": "tls", "emptyDir": {}}]}}), "volume tls"),
            (
                json!({"spec": {"containers": [{"name": "worker", "env": [{"name": "TIDERACE_DEPLOY_EPOCH", "value": "1"}]}]}}),
                "EPOCH",
            ),
            (json!({"spec": {"restartPolicy": "Never"}}), "restartPolicy"),
            (json!({"metadata": {"labels": {"tiderace.dev/job": "other"}}}), "tiderace.dev/job"),
            (json!({"metadata": {"labels": null}}), "metadata.labels"),
            (json!({"spec": null}), "spec away"),
            (json!({"spec": {"containers": [{"name": "worker", "env": null}]}}), "env"),
            (json!({"spec": {"containers": [{"name": "worker", "volumeMounts": null}]}}), "volumeMounts"),
            (
                json!({"spec": {"containers": [{"name": "worker", "volumeMounts": [{"name": "tls", "mountPath": "/x"}]}]}}),
                "volume tls",
            ),
        ] {
            let spec = spec(json!({"sql": {"inline": "SELECT 1"}, "template": template}));
            let error = plan(&spec).config_map().unwrap_err();
            assert!(matches!(&error, RenderError::ForbiddenTemplate(text) if text.contains(word)), "{error}");
        }
    }

    #[test]
    fn settings_follow_the_manifest() {
        let kinds = |change: Value| {
            let spec = spec(change);
            plan(&spec).settings(&spec).iter().map(|o| o["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let all = kinds(json!({"sql": {}, "monitoring": {"podMonitor": true}}));
        assert_eq!(all, ["ServiceAccount", "Service", "Service", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor"]);
        let few = kinds(json!({"sql": {}, "networkPolicy": {"mode": "Disabled"}, "podDisruptionBudget": {"enabled": false}}));
        assert_eq!(few, ["ServiceAccount", "Service", "Service"]);
    }

    #[test]
    fn a_manifest_that_is_too_large_for_a_config_map_is_refused() {
        let large = spec(json!({"sql": {"inline": "é".repeat(524_288)}}));
        assert!(matches!(plan(&large).config_map(), Err(RenderError::TooLarge { .. })));
    }
}
