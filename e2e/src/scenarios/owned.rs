//! What a job owns, and somebody deletes: it comes back at once, and the worker isn't touched.

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use serde_json::json;

use crate::job::{Job, endless, manifest};
use crate::space::Space;
use crate::wait::{secs, until};

/// Every kind that the operator writes for a job, by its name for the job `owner`; the StatefulSet is a case of its own.
const OWNED: [(&str, &str, &str); 8] = [
    ("v1", "Secret", "owner-worker-tls"),
    ("v1", "Secret", "owner-ca"),
    ("v1", "ServiceAccount", "owner"),
    ("v1", "Service", "owner-workers"),
    ("v1", "Service", "owner-api"),
    ("networking.k8s.io/v1", "NetworkPolicy", "owner"),
    ("policy/v1", "PodDisruptionBudget", "owner"),
    ("v1", "ConfigMap", ""),
];

/// Deletes each, and waits for another of the name: within seconds, by a watch and not by the next whole pass.
pub async fn deleted_objects_come_back(space: Space) -> Result<()> {
    let job = Job::apply(&space, &manifest("owner", &endless(1))).await?;
    let ready = job.ready("Running").await?;
    job.row(2).await?;
    let revision = ready.pointer("/status/deployed/revision").and_then(|r| r.as_str()).context("no revision")?.to_owned();
    let before = job.incarnation().await?;
    for (api_version, kind, name) in OWNED {
        let name = if name.is_empty() { revision.as_str() } else { name };
        let api = space.api(api_version, kind);
        let old = api.get(name).await.with_context(|| format!("the {kind} {name}"))?.uid();
        api.delete(name, &DeleteParams::default()).await?;
        until(format!("the {kind} {name} is there again"), secs(15), async || {
            let new = api.get(name).await?.uid();
            ensure!(new.is_some() && new != old, "it is the old one");
            Ok(())
        })
        .await?;
    }
    job.ready("Running").await?;
    ensure!(job.incarnation().await? == before, "the worker was restarted");
    job.writes_on().await?;

    // Changed by somebody, not deleted: a policy that lets everybody in.
    let wanted = space.get("networking.k8s.io/v1", "NetworkPolicy", "owner").await?["spec"].clone();
    space.merge("networking.k8s.io/v1", "NetworkPolicy", "owner", &json!({"spec": {"ingress": [{}]}})).await?;
    until("the NetworkPolicy is as it was", secs(15), async || {
        let policy = space.get("networking.k8s.io/v1", "NetworkPolicy", "owner").await?;
        ensure!(policy["spec"] == wanted, "it has {}", policy["spec"]);
        Ok(())
    })
    .await?;

    // The StatefulSet, with its pods and around them.
    let sets = Api::<k8s_openapi::api::apps::v1::StatefulSet>::namespaced(space.client(), space.name());
    sets.delete("owner", &DeleteParams::default()).await?;
    until("another worker", secs(90), async || {
        ensure!(job.incarnation().await?.0 != before.0, "it is the old one");
        Ok(())
    })
    .await?;
    job.ready("Running").await?;
    job.row(2).await?;
    let around = job.incarnation().await?;
    sets.delete(
        "owner",
        &DeleteParams { propagation_policy: Some(kube::api::PropagationPolicy::Orphan), ..DeleteParams::default() },
    )
    .await?;
    until("the StatefulSet is there again", secs(30), async || sets.get("owner").await.map(drop).map_err(Into::into)).await?;
    // Until the new one has adopted it, the pod belongs to nobody.
    until("the same worker belongs to the new StatefulSet", secs(60), async || {
        ensure!(job.incarnation().await? == around, "a StatefulSet that went without its pods took the worker along");
        Ok(())
    })
    .await?;
    job.ready("Running").await?;
    ensure!(job.pods().await?.len() == 1, "{} workers", job.pods().await?.len());
    Ok(())
}

/// Another value in a Secret that the job uses: the running worker keeps what it read at its start, a restart takes the new one. Statements in a
/// ConfigMap: the job is changed.
pub async fn changed_secret_and_statements(space: Space) -> Result<()> {
    let secret = |value: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cred"}, "stringData": {"password": value}});
    let statements = |first: u64| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "statements"}, "data": {"job.sql": endless(first)}});
    space.apply(&secret("one")).await?;
    space.apply(&statements(1)).await?;
    let mut manifest = manifest("reads", "");
    manifest["spec"]["sql"] = json!({
        "configMapKeyRef": {"name": "statements", "key": "job.sql"}, "secretRefs": {"pw": {"name": "cred", "key": "password"}},
    });
    let job = Job::apply(&space, &manifest).await?;
    job.ready("Running").await?;
    job.row(2).await?;
    let before = job.incarnation().await?;
    space.apply(&secret("two")).await?;
    job.writes_on().await?;
    ensure!(job.incarnation().await? == before, "a changed Secret restarted the worker");

    space.apply(&statements(50_000)).await?;
    until("the changed statements run", secs(90), async || {
        let now = job.incarnation().await?;
        ensure!(now.0 != before.0, "it is the old worker");
        Ok(())
    })
    .await?;
    job.ready("Running").await?;
    job.row(50_000).await?;
    Ok(())
}

/// Objects of others by the names that jobs would use: said, and as they were when the jobs are gone.
pub async fn objects_of_others_outlive_the_job(space: Space) -> Result<()> {
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"},
        "spec": {"replicas": 1, "serviceName": "web", "selector": {"matchLabels": {"a": "web"}}, "template": {
            "metadata": {"labels": {"a": "web"}}, "spec": {"containers": [{"name": "c", "image": crate::install::WORKER_IMAGE}]},
        }},
    });
    space.apply(&set).await?;
    space
        .apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "kafka-ca"}, "stringData": {"ca.crt": "mine"}}))
        .await?;
    // Every namespace has the ServiceAccount `default`.
    let theirs = [
        ("web", "apps/v1", "StatefulSet", "web"),
        ("kafka", "v1", "Secret", "kafka-ca"),
        ("default", "v1", "ServiceAccount", "default"),
    ];
    for (job, api_version, kind, name) in theirs {
        let before = space.get(api_version, kind, name).await?;
        let job = Job::apply(&space, &manifest(job, &endless(1))).await?;
        job.stalled(&["NameConflict"], &format!("{kind} {name}")).await?;
        job.delete().await?;
        job.gone(secs(60)).await?;
        let after = space.get(api_version, kind, name).await.with_context(|| format!("the {kind} {name} is gone"))?;
        for part in ["data", "spec", "automountServiceAccountToken"] {
            ensure!(after[part] == before[part], "{part} of the {kind} {name} was {} and is {}", before[part], after[part]);
        }
        ensure!(after["metadata"]["uid"] == before["metadata"]["uid"], "the {kind} {name} is another");
    }
    Ok(())
}

/// The StatefulSet's template: what somebody changes is put back without a restart, what somebody adds stays, and what the job's own template has no
/// more goes.
pub async fn template_of_the_stateful_set(space: Space) -> Result<()> {
    let plain = manifest("templated", &endless(1));
    let variable = json!({"spec": {"nodeSelector": {"kubernetes.io/os": "linux"}, "containers": [{"name": "worker", "env": [{"name": "FOO", "value": "bar"}]}]}});
    let job = Job::apply(&space, &crate::job::with(plain.clone(), "/template", variable)).await?;
    job.ready("Running").await?;
    let template = async || -> Result<serde_json::Value> {
        Ok(space.get("apps/v1", "StatefulSet", "templated").await?["spec"]["template"]["spec"].clone())
    };
    ensure!(template().await?["containers"][0]["env"].to_string().contains("FOO"), "it has no variable FOO");

    space.apply(&plain).await?;
    until("the template is gone", secs(90), async || {
        let now = template().await?;
        ensure!(now["nodeSelector"].is_null() && !now.to_string().contains("FOO"), "it is {now}");
        Ok(())
    })
    .await?;
    job.ready("Running").await?;
    job.row(2).await?;

    let before = job.incarnation().await?;
    let bent = json!({"spec": {"template": {"spec": {"automountServiceAccountToken": true, "schedulerName": "theirs"}}}});
    space.merge("apps/v1", "StatefulSet", "templated", &bent).await?;
    until("what was changed is put back", secs(30), async || {
        let now = template().await?;
        ensure!(now["automountServiceAccountToken"] == false && now["schedulerName"] == "theirs", "it is {now}");
        Ok(())
    })
    .await?;
    job.ready("Running").await?;
    ensure!(job.incarnation().await? == before, "the worker was restarted");
    Ok(())
}
