//! Whose the fields of an object are, by its `managedFields`: what somebody changed of what this operator had written.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
use kube::core::ObjectMeta;
use serde_json::{Map, Value};

use crate::names::FIELD_MANAGER;

/// The fields that this operator owns, by whatever kind of write.
fn ours(metadata: &ObjectMeta) -> Value {
    let mut all = Value::Object(Map::new());
    for entry in metadata.managed_fields.iter().flatten().filter(|entry| is_ours(entry)) {
        unite(&mut all, entry.fields_v1.as_ref().map_or(&Value::Null, |fields| &fields.0));
    }
    all
}

/// A hash of the fields that this operator owns. Who changes one of them, by whatever means, takes it away.
#[must_use]
pub fn hash(metadata: &ObjectMeta) -> u64 {
    let mut hasher = DefaultHasher::new();
    ours(metadata).to_string().hash(&mut hasher);
    hasher.finish()
}

/// Whether somebody else owns a field that is in `rendered`, and this operator doesn't any more. Fields that others add, or own with it, are theirs to have.
#[must_use]
pub fn is_taken(metadata: &ObjectMeta, rendered: &Value) -> bool {
    let ours = ours(metadata);
    let others = metadata.managed_fields.iter().flatten().filter(|entry| !is_ours(entry));
    others
        .filter(|entry| entry.subresource.as_deref().unwrap_or_default() != "status")
        .filter_map(|entry| entry.fields_v1.as_ref())
        .any(|theirs| takes(&theirs.0, Some(&ours), rendered))
}

fn takes(theirs: &Value, ours: Option<&Value>, rendered: &Value) -> bool {
    let Some(theirs) = theirs.as_object() else { return false };
    theirs.iter().any(|(step, theirs)| {
        let Some(value) = at(rendered, step) else { return false };
        let ours = ours.and_then(|fields| fields.get(step));
        match theirs.as_object() {
            Some(deeper) if !deeper.is_empty() => takes(theirs, ours, value),
            _ => ours.is_none(),
        }
    })
}

/// What a step of a path of fields leads to: `f:` a field, `k:` the item of a list with these keys, `v:` an item of a set.
fn at<'a>(value: &'a Value, step: &str) -> Option<&'a Value> {
    match step.split_at_checked(2)? {
        ("f:", name) => value.get(name).filter(|value| !value.is_null()),
        ("k:", keys) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).ok()?;
            value.as_array()?.iter().find(|item| keys.iter().all(|(key, wanted)| item.get(key) == Some(wanted)))
        }
        ("v:", item) => {
            let item: Value = serde_json::from_str(item).ok()?;
            value.as_array()?.iter().find(|found| **found == item)
        }
        _ => None,
    }
}

/// The entries with all that is this operator's in one of server-side apply; `None` where it is so already. What was written by a create belongs to
/// another entry than what is applied later, and an apply takes nothing away that is in another entry, be it of the same manager.
#[must_use]
pub fn as_applied(entries: &[ManagedFieldsEntry]) -> Option<Vec<ManagedFieldsEntry>> {
    let is_update = |entry: &ManagedFieldsEntry| is_ours(entry) && entry.operation.as_deref() == Some("Update");
    let mut one = entries.iter().find(|entry| is_update(entry))?.clone();
    let (ours, mut all): (Vec<_>, Vec<_>) = entries.iter().cloned().partition(is_ours);
    let mut fields = Value::Object(Map::new());
    for entry in &ours {
        unite(&mut fields, entry.fields_v1.as_ref().map_or(&Value::Null, |fields| &fields.0));
    }
    one.operation = Some("Apply".to_owned());
    one.fields_v1 = Some(FieldsV1(fields));
    all.push(one);
    Some(all)
}

fn is_ours(entry: &ManagedFieldsEntry) -> bool {
    entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.subresource.as_deref().unwrap_or_default().is_empty()
}

fn unite(all: &mut Value, fields: &Value) {
    let (Some(all), Some(fields)) = (all.as_object_mut(), fields.as_object()) else { return };
    for (step, fields) in fields {
        unite(all.entry(step.clone()).or_insert_with(|| Value::Object(Map::new())), fields);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use serde_json::json;

    use super::*;

    fn metadata(entries: Value) -> ObjectMeta {
        serde_json::from_value(json!({"managedFields": entries})).unwrap()
    }

    fn entry(manager: &str, operation: &str, fields: Value) -> Value {
        json!({"manager": manager, "operation": operation, "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": fields})
    }

    fn rendered() -> Value {
        json!({
            "metadata": {"labels": {"a": "1"}},
            "spec": {"replicas": 1, "set": ["x"], "containers": [{"name": "worker", "image": "i", "env": [{"name": "E", "value": "1"}]}]},
        })
    }

    fn container(fields: Value) -> Value {
        json!({"f:spec": {"f:containers": {"k:{\"name\":\"worker\"}": fields}}})
    }

    #[test]
    fn what_others_take_is_told_from_what_they_add_or_share() {
        let own = entry(FIELD_MANAGER, "Apply", json!({"f:metadata": {"f:labels": {"f:a": {}}}, "f:spec": {"f:replicas": {}}}));
        let is_taken_by = |fields: Value| is_taken(&metadata(json!([own, entry("kubectl", "Update", fields)])), &rendered());
        assert!(is_taken_by(container(json!({".": {}, "f:image": {}}))));
        assert!(is_taken_by(container(json!({"f:env": {"k:{\"name\":\"E\"}": {"f:value": {}}}}))));
        assert!(is_taken_by(json!({"f:spec": {"f:set": {"v:\"x\"": {}}}})));
        assert!(!is_taken_by(json!({"f:spec": {"f:replicas": {}}})), "both have it");
        assert!(!is_taken_by(container(json!({"f:workingDir": {}}))), "it was added");
        assert!(!is_taken_by(json!({"f:spec": {"f:containers": {"k:{\"name\":\"side\"}": {".": {}, "f:image": {}}}}})));
        assert!(!is_taken_by(json!({"f:metadata": {"f:labels": {".": {}, "f:team": {}}}})));
        let status =
            json!([own, {"manager": "m", "operation": "Update", "subresource": "status", "fieldsV1": {"f:spec": {"f:set": {}}}}]);
        assert!(!is_taken(&metadata(status), &rendered()));
        assert!(!is_taken(&ObjectMeta::default(), &rendered()));
    }

    #[test]
    fn fields_that_are_lost_change_the_hash_and_who_wrote_them_does_not() {
        let fields = json!({"f:spec": {"f:replicas": {}, "f:set": {}}});
        let applied = hash(&metadata(json!([entry(FIELD_MANAGER, "Apply", fields.clone())])));
        let parts = json!([
            entry(FIELD_MANAGER, "Update", json!({"f:spec": {"f:replicas": {}}})),
            entry(FIELD_MANAGER, "Apply", json!({"f:spec": {"f:set": {}}})),
        ]);
        assert_eq!(hash(&metadata(parts)), applied);
        assert_ne!(hash(&metadata(json!([entry(FIELD_MANAGER, "Apply", json!({"f:spec": {"f:set": {}}}))]))), applied);
    }

    #[test]
    fn what_was_created_becomes_what_is_applied() {
        let created = entry(FIELD_MANAGER, "Update", json!({"f:spec": {".": {}, "f:replicas": {}}}));
        let other = entry("gitops", "Apply", json!({"f:spec": {"f:x": {}}}));
        let applied = entry(FIELD_MANAGER, "Apply", json!({"f:spec": {"f:set": {}}}));
        let entries = metadata(json!([created, other, applied])).managed_fields.unwrap();
        let united = as_applied(&entries).unwrap();
        assert_eq!(united.len(), 2);
        assert_eq!(united[0].manager.as_deref(), Some("gitops"));
        assert_eq!((united[1].operation.as_deref(), united[1].manager.as_deref()), (Some("Apply"), Some(FIELD_MANAGER)));
        assert_eq!(united[1].fields_v1.as_ref().unwrap().0, json!({"f:spec": {".": {}, "f:replicas": {}, "f:set": {}}}));
        assert_eq!(as_applied(&united), None);
    }
}
