//! `tiderace-operator check`: is what the operator needs there? `helm test` runs it.

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams, PostParams};

use crate::command::CheckArgs;
use crate::context::resource;
use crate::names::API_VERSION;
use crate::rbac::{RIGHTS, Right, Scope};

/// How old the Lease's last renewal may be by this machine's clock, seconds: twice what it lasts, as clocks differ.
const LEASE_SECONDS_MAX: i64 = 30;

/// Looks, and gives a sentence for each thing that is wrong.
pub async fn check(args: &CheckArgs) -> Result<Vec<String>> {
    // Another library may have chosen it already; it is the same one.
    let _already = rustls::crypto::ring::default_provider().install_default();
    let config = kube::Config::infer().await.context("no cluster: set KUBECONFIG, or run in a pod with a service account")?;
    let client = Client::try_from(config)?;
    let mut wrong = definitions(&client, &args.watch_namespaces).await;
    wrong.extend(rights(&client, args).await?);
    wrong.extend(lease(&client, args).await?);
    Ok(wrong)
}

async fn definitions(client: &Client, namespaces: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for kind in ["StreamingJob", "StreamingSnapshot"] {
        let resource = resource(API_VERSION, kind);
        let api: Api<DynamicObject> = match namespaces.first() {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        if let Err(error) = api.list_metadata(&ListParams::default().limit(1)).await {
            wrong.push(format!("{kind} can't be listed ({error}): is the chart tiderace-crds installed?"));
        }
    }
    wrong
}

/// Where a right is needed: in the operator's namespace, in each watched one, or (`None`) in the whole cluster.
fn places(right: &Right, args: &CheckArgs) -> Vec<Option<String>> {
    match right.scope {
        Scope::Own => vec![Some(args.lease_namespace.clone())],
        Scope::Jobs if args.watch_namespaces.is_empty() => vec![None],
        Scope::Jobs => args.watch_namespaces.iter().cloned().map(Some).collect(),
        // The operator of some namespaces does without.
        Scope::Cluster if args.watch_namespaces.is_empty() => vec![None],
        Scope::Cluster => Vec::new(),
    }
}

async fn rights(client: &Client, args: &CheckArgs) -> Result<Vec<String>> {
    let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
    let mut wrong = Vec::new();
    for right in RIGHTS {
        let (resource, subresource) = right.resource.split_once('/').map_or((right.resource, None), |(r, s)| (r, Some(s)));
        for (place, verb) in places(right, args).iter().flat_map(|place| right.verbs.iter().map(move |verb| (place, verb))) {
            let attributes = ResourceAttributes {
                group: Some(right.group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource: subresource.map(ToOwned::to_owned),
                verb: Some((*verb).to_owned()),
                namespace: place.clone(),
                ..ResourceAttributes::default()
            };
            let review = SelfSubjectAccessReview {
                spec: SelfSubjectAccessReviewSpec {
                    resource_attributes: Some(attributes),
                    ..SelfSubjectAccessReviewSpec::default()
                },
                ..SelfSubjectAccessReview::default()
            };
            let answer = reviews.create(&PostParams::default(), &review).await.context("rights can't be asked for")?;
            if !answer.status.is_some_and(|status| status.allowed) {
                let place =
                    place.as_deref().map_or_else(|| "the whole cluster".to_owned(), |namespace| format!("namespace {namespace}"));
                wrong.push(format!("it may not {verb} {} in {place}, which it needs for: {}", right.resource, right.why));
            }
        }
    }
    Ok(wrong)
}

async fn lease(client: &Client, args: &CheckArgs) -> Result<Option<String>> {
    let leases = Api::<Lease>::namespaced(client.clone(), &args.lease_namespace);
    let name = format!("{}/{}", args.lease_namespace, args.lease_name);
    let Some(lease) = leases.get_opt(&args.lease_name).await.with_context(|| format!("the Lease {name} can't be read"))? else {
        return Ok(Some(format!("there is no Lease {name}: no operator has led yet")));
    };
    let spec = lease.spec.unwrap_or_default();
    let holder = spec.holder_identity.unwrap_or_default();
    if holder.is_empty() {
        return Ok(Some(format!("nobody holds the Lease {name}: no operator leads")));
    }
    let age = spec.renew_time.map_or(i64::MAX, |at| Timestamp::now().as_second().saturating_sub(at.0.as_second()));
    Ok((age > LEASE_SECONDS_MAX)
        .then(|| format!("{holder} holds the Lease {name} and hasn't renewed it for {age} s: no operator leads")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(namespaces: &[&str]) -> CheckArgs {
        CheckArgs {
            watch_namespaces: namespaces.iter().map(ToString::to_string).collect(),
            lease_name: "l".to_owned(),
            lease_namespace: "own".to_owned(),
        }
    }

    #[test]
    fn rights_are_asked_for_where_they_are_needed() {
        let count = |scope: Scope, namespaces: &[&str]| {
            let right = RIGHTS.iter().find(|right| right.scope == scope);
            right.map(|right| places(right, &args(namespaces)))
        };
        assert_eq!(count(Scope::Own, &["a", "b"]), Some(vec![Some("own".to_owned())]));
        assert_eq!(count(Scope::Jobs, &["a", "b"]), Some(vec![Some("a".to_owned()), Some("b".to_owned())]));
        assert_eq!(count(Scope::Jobs, &[]), Some(vec![None]));
        assert_eq!(count(Scope::Cluster, &["a"]), Some(vec![]));
    }
}
