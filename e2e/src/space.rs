//! A namespace for one scenario, and objects in it.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Event, Namespace};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::wait::{secs, until};

/// The field manager of what scenarios apply.
pub const MANAGER: &str = "e2e";

/// A namespace under the "restricted" Pod Security Standard, made for one scenario.
#[derive(Clone)]
pub struct Space {
    cluster: Cluster,
    name: String,
}

impl Space {
    /// Makes the namespace; one that a former run left behind goes first.
    pub async fn create(cluster: &Cluster, scenario: &str) -> Result<Self> {
        let name = format!("e2e-{}", scenario.replace('_', "-"));
        let namespaces: Api<Namespace> = Api::all(cluster.client());
        if namespaces.get_opt(&name).await?.is_some() {
            delete_namespace(cluster, &name).await?;
        }
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted", "tiderace.dev/e2e": "true"}},
        });
        namespaces.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&namespace)).await?;
        let space = Self { cluster: cluster.clone(), name };
        // Pods are refused until the namespace has its ServiceAccount.
        until("the namespace's default ServiceAccount", secs(30), async || space.get("v1", "ServiceAccount", "default").await)
            .await?;
        Ok(space)
    }

    /// Deletes the namespace and waits until it is gone.
    pub async fn delete(&self) -> Result<()> {
        delete_namespace(&self.cluster, &self.name).await
    }

    /// The namespace's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster it is in.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The administrator's client.
    #[must_use]
    pub fn client(&self) -> Client {
        self.cluster.client()
    }

    /// Objects of a kind in this namespace.
    #[must_use]
    pub fn api(&self, api_version: &str, kind: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client(), &self.name, &resource(api_version, kind))
    }

    /// Server-side apply of an object by the scenario's own manager.
    pub async fn apply(&self, object: &Value) -> Result<Value> {
        self.apply_as(MANAGER, true, object).await
    }

    /// Server-side apply by another manager.
    pub async fn apply_as(&self, manager: &str, force: bool, object: &Value) -> Result<Value> {
        let text =
            |pointer: &str| object.pointer(pointer).and_then(Value::as_str).with_context(|| format!("{object} has no {pointer}"));
        let mut parameters = PatchParams::apply(manager);
        parameters.force = force;
        parameters.field_validation = Some(kube::api::ValidationDirective::Strict);
        let api = self.api(text("/apiVersion")?, text("/kind")?);
        let applied = api.patch(text("/metadata/name")?, &parameters, &Patch::Apply(object)).await?;
        Ok(serde_json::to_value(applied)?)
    }

    /// A merge patch.
    pub async fn merge(&self, api_version: &str, kind: &str, name: &str, patch: &Value) -> Result<Value> {
        let patched = self.api(api_version, kind).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(serde_json::to_value(patched)?)
    }

    /// One object as JSON.
    pub async fn get(&self, api_version: &str, kind: &str, name: &str) -> Result<Value> {
        Ok(serde_json::to_value(self.api(api_version, kind).get(name).await?)?)
    }

    /// All objects of a kind that have the label.
    pub async fn list(&self, api_version: &str, kind: &str, label: &str) -> Result<Vec<Value>> {
        let list = self.api(api_version, kind).list(&ListParams::default().labels(label)).await?;
        list.items.into_iter().map(|o| serde_json::to_value(o).map_err(Into::into)).collect()
    }

    /// Asks for an object's deletion.
    pub async fn delete_object(&self, api_version: &str, kind: &str, name: &str) -> Result<()> {
        self.api(api_version, kind).delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// The Events of this namespace, newest last.
    pub async fn events(&self) -> Result<Vec<Event>> {
        let mut events = Api::<Event>::namespaced(self.client(), &self.name).list(&ListParams::default()).await?.items;
        events
            .sort_by_key(|e| (e.event_time.clone().map(|t| t.0).or_else(|| e.last_timestamp.clone().map(|t| t.0)), e.name_any()));
        Ok(events)
    }

    /// Waits for an Event about an object whose reason is one of `reasons` and whose note holds `text`.
    pub async fn event(&self, object: &str, reasons: &[&str], text: &str) -> Result<Event> {
        until(format!("an Event {reasons:?} about {object} with {text:?}"), secs(60), async || {
            let events = self.events().await?;
            let about: Vec<_> = events.into_iter().filter(|e| e.involved_object.name.as_deref() == Some(object)).collect();
            let fits = |e: &&Event| {
                e.reason.as_deref().is_some_and(|r| reasons.contains(&r))
                    && e.message.as_deref().unwrap_or_default().contains(text)
            };
            about.iter().find(fits).cloned().with_context(|| {
                let seen: Vec<_> = about
                    .iter()
                    .map(|e| format!("{}: {}", e.reason.as_deref().unwrap_or(""), e.message.as_deref().unwrap_or("")))
                    .collect();
                format!("there are {seen:?}")
            })
        })
        .await
    }
}

/// What the API calls objects of a kind.
#[must_use]
pub fn resource(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// Deletes a namespace and waits until it is gone.
pub async fn delete_namespace(cluster: &Cluster, name: &str) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(cluster.client());
    if namespaces.get_opt(name).await?.is_some() {
        namespaces.delete(name, &DeleteParams::default()).await?;
    }
    until(format!("the namespace {name} is gone"), secs(120), async || {
        let left = namespaces.get_opt(name).await?;
        ensure!(left.is_none(), "it has {:?}", left.and_then(|n| n.status).and_then(|s| s.conditions));
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_named_as_the_api_names_them() {
        assert_eq!(resource("v1", "Pod").plural, "pods");
        let job = resource("tiderace.dev/v1alpha1", "StreamingJob");
        assert_eq!(
            (job.group.as_str(), job.version.as_str(), job.plural.as_str()),
            ("tiderace.dev", "v1alpha1", "streamingjobs")
        );
        assert_eq!(resource("networking.k8s.io/v1", "NetworkPolicy").plural, "networkpolicies");
    }
}
