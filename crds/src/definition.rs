//! The CustomResourceDefinition that clusters get, made from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{StreamingJob, StreamingSnapshot};

/// `kubectl apply` keeps what it applied in an annotation, which may have so many bytes.
pub const DEFINITION_BYTES_MAX: usize = 256 * 1024;

pub(crate) fn streaming_job() -> CustomResourceDefinition {
    with_known_formats(StreamingJob::crd())
}

fn streaming_snapshot() -> CustomResourceDefinition {
    with_known_formats(StreamingSnapshot::crd())
}

/// An API server knows the formats of signed integers alone, and warns about others on every apply.
fn with_known_formats(definition: CustomResourceDefinition) -> CustomResourceDefinition {
    fn visit(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(map) => {
                if map.get("format").is_some_and(|f| f == "uint32" || f == "uint64" || f == "uint16") {
                    map.insert("format".to_owned(), "int64".into());
                }
                map.values_mut().for_each(visit);
            }
            serde_json::Value::Array(items) => items.iter_mut().for_each(visit),
            _ => {}
        }
    }
    let Ok(mut value) = serde_json::to_value(&definition) else { return definition };
    visit(&mut value);
    serde_json::from_value(value).unwrap_or(definition)
}

/// Every definition that the operator needs.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![streaming_job(), streaming_snapshot()]
}

/// `crds/yaml/streamingjob.yaml`, as it has to be.
pub fn streaming_job_yaml() -> Result<String, serde_saphyr::SerializeError> {
    yaml(&streaming_job(), "streaming_job")
}

/// `crds/yaml/streamingsnapshot.yaml`, as it has to be.
pub fn streaming_snapshot_yaml() -> Result<String, serde_saphyr::SerializeError> {
    yaml(&streaming_snapshot(), "streaming_snapshot")
}

fn yaml(definition: &CustomResourceDefinition, module: &str) -> Result<String, serde_saphyr::SerializeError> {
    let body = serde_saphyr::to_string(definition)?;
    Ok(format!("# Generated from crds/src/{module}.rs; `UPDATE=1 cargo test -p tiderace-crds` writes it anew.\n{body}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use serde_json::Value;

    use super::*;

    #[test]
    fn checked_in_yaml_is_up_to_date() {
        for (name, wanted, definition) in [
            ("streamingjob", streaming_job_yaml().unwrap(), streaming_job()),
            ("streamingsnapshot", streaming_snapshot_yaml().unwrap(), streaming_snapshot()),
        ] {
            let path = format!("{}/yaml/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
            if std::env::var_os("UPDATE").is_some() {
                std::fs::write(&path, &wanted).unwrap();
            }
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(found == wanted, "crds/yaml/{name}.yaml is out of date: run UPDATE=1 cargo test -p tiderace-crds");
            assert!(wanted.len() < DEFINITION_BYTES_MAX);
            let back: Value = serde_saphyr::from_str(&wanted).unwrap();
            assert_eq!(back, serde_json::to_value(definition).unwrap(), "the YAML says what the definition says");
        }
    }

    #[test]
    fn every_rule_stands_in_the_definition() {
        let text = serde_json::to_string(&definitions()).unwrap();
        for rule in [
            "self.metadata.name.size() <= 45",
            "self.metadata.name.matches(",
            "has(self.inline) != has(self.configMapKeyRef)",
            "int(self.resources.cpu) <= self.maxParallelism",
            "self == oldSelf",
            "self.replicas <= self.maxParallelism",
            "has(self.storage) == has(oldSelf.storage)",
            "has(self.storageClassName) == has(oldSelf.storageClassName)",
            "quantity(string(self)).compareTo(quantity(string(oldSelf))) >= 0",
            "self.initialBackoffSeconds <= self.maxBackoffSeconds",
            "self.all(name, name.matches(",
        ] {
            assert!(text.contains(rule), "{rule}");
        }
        assert_eq!(text.matches("\"rule\":").count(), 13, "a rule without a line here");
    }

    #[test]
    fn formats_are_those_that_an_api_server_knows() {
        let text = serde_json::to_string(&definitions()).unwrap();
        assert!(!text.contains("\"format\":\"uint"), "{text}");
    }

    /// The API server refuses rules whose cost it can't bound, and an unbounded text is a way to fill etcd.
    #[test]
    fn every_text_list_and_map_is_bounded() {
        fn visit(path: &str, schema: &Value) {
            let bounded = |key: &str| assert!(schema.get(key).is_some(), "{path} lacks {key}");
            let free_text = schema["type"] == "string" && schema.get("enum").is_none();
            if free_text || schema["x-kubernetes-int-or-string"] == true {
                bounded("maxLength");
            }
            match schema["type"].as_str() {
                Some("array") => bounded("maxItems"),
                Some("object") if schema.get("additionalProperties").is_some() => bounded("maxProperties"),
                Some("integer" | "number") => {
                    bounded("minimum");
                    bounded("maximum");
                }
                _ => {}
            }
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                visit(&format!("{path}.{name}"), property);
            }
            for inner in ["items", "additionalProperties"] {
                if let Some(inner) = schema.get(inner).filter(|s| s.is_object()) {
                    visit(&format!("{path}[]"), inner);
                }
            }
        }
        for definition in definitions() {
            let definition = serde_json::to_value(definition).unwrap();
            visit("spec", &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]);
        }
    }
}
