//! The charts in the life of a cluster: upgraded and uninstalled under running jobs, narrowed to some namespaces, tested.

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::install;
use crate::job::{Job, endless, manifest};
use crate::space::Space;
use crate::wait::{secs, until};

/// A new operator with a new default image restarts no worker; `helm test` agrees that all is well.
pub async fn upgrade_restarts_no_worker(space: Space) -> Result<()> {
    let cluster = space.cluster().clone();
    let plain = Job::apply(&space, &manifest("plain", &endless(1))).await?;
    let stored =
        Job::apply(&space, &crate::job::with(manifest("stored", &endless(1)), "/storage", json!({"size": "1Gi"}))).await?;
    plain.ready("Running").await?;
    stored.ready("Running").await?;
    let before = (plain.incarnation().await?, stored.incarnation().await?);
    install::tag_next_images(&cluster).await?;
    install::charts(&cluster, install::NEXT_TAG, &install::usual_values()).await?;
    let outcome = async {
        // Proof that the new operator has looked at both: it observes a change that restarts nothing.
        for job in [&plain, &stored] {
            job.patch(json!({"ttlSecondsAfterFinished": 3600})).await?;
            job.ready("Running").await?;
            job.writes_on().await?;
        }
        let after = (plain.incarnation().await?, stored.incarnation().await?);
        ensure!(after == before, "workers were restarted: {after:?}, were {before:?}");
        cluster
            .helm(&["test", install::RELEASE, "-n", install::OPERATOR_NAMESPACE, "--timeout=120s"])
            .await
            .context("helm test")?;
        // A change of the job takes the new image.
        plain.patch(json!({"sql": {"inline": endless(1000)}})).await?;
        plain.ready("Running").await?;
        let image =
            plain.worker().await?.spec.and_then(|s| s.containers.into_iter().next()).and_then(|c| c.image).unwrap_or_default();
        ensure!(image.ends_with(install::NEXT_TAG), "a changed job runs {image}");
        anyhow::Ok(())
    }
    .await;
    install::charts(&cluster, install::TAG, &install::usual_values()).await?;
    outcome
}

/// Without the operator jobs go on; one that is installed again for this namespace only, with Roles and nothing cluster-wide, takes them over as they are.
pub async fn uninstalled_operator_leaves_jobs_running(space: Space) -> Result<()> {
    let cluster = space.cluster().clone();
    let job = Job::apply(&space, &manifest("alone", &endless(1))).await?;
    job.ready("Running").await?;
    let before = job.incarnation().await?;
    cluster.helm(&["uninstall", install::RELEASE, "-n", install::OPERATOR_NAMESPACE, "--wait", "--timeout=60s"]).await?;
    cluster.helm(&["uninstall", "tiderace-crds", "-n", install::OPERATOR_NAMESPACE, "--wait", "--timeout=60s"]).await?;
    let outcome = async {
        ensure!(job.get().await.is_ok(), "the job went with the chart of the definitions");
        job.writes_on().await?;
        let watched = format!("watchNamespaces={{{}}}", space.name());
        install::charts(&cluster, install::TAG, &[&watched, "logLevel=info\\,tiderace_operator=debug"]).await?;
        let roles = cluster
            .kubectl(&["get", "clusterroles,clusterrolebindings", "-l", "app.kubernetes.io/name=tiderace", "-o", "name"])
            .await?;
        ensure!(roles.trim().is_empty(), "there are cluster-wide roles: {roles}");
        job.ready("Running").await?;
        ensure!(job.incarnation().await? == before, "the worker was restarted");
        job.patch(json!({"sql": {"inline": endless(1000)}})).await?;
        job.ready("Running").await?;
        job.row(1000).await?;
        cluster
            .helm(&["test", install::RELEASE, "-n", install::OPERATOR_NAMESPACE, "--timeout=120s"])
            .await
            .context("helm test")?;
        // Other namespaces are none of its business.
        let other = Space::create(&cluster, "unwatched").await?;
        let ignored = Job::apply(&other, &manifest("ignored", &endless(1))).await?;
        job.patch(json!({"state": "Suspended"})).await?;
        job.ready("Suspended").await?;
        let untouched = ignored.get().await?;
        ensure!(untouched.get("status").is_none(), "it has written a status: {}", untouched["status"]);
        ensure!(untouched.pointer("/metadata/finalizers").is_none(), "it has set a finalizer");
        other.delete().await
    }
    .await;
    cluster.helm(&["uninstall", install::RELEASE, "-n", install::OPERATOR_NAMESPACE, "--wait", "--timeout=60s"]).await?;
    install::charts(&cluster, install::TAG, &install::usual_values()).await?;
    until("an operator leads again", secs(60), async || install::leader(&cluster).await).await?;
    outcome
}

/// Values that can't be meant are refused before anything is written, by the name of the value; unusual ones that can are rendered, and the API server
/// would take what comes out.
pub async fn odd_values_are_refused(space: Space) -> Result<()> {
    const REFUSED: [(&str, &str); 24] = [
        ("replica=2", "replica"),
        ("replicas=-1", "replicas"),
        ("replicas=two", "replicas"),
        ("replicas=100", "replicas"),
        ("image=tiderace:1", "image"),
        ("image.repository=", "repository"),
        ("image.tag=not a tag", "tag"),
        ("image.digest=sha256:abc", "digest"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("watchNamespaces={Shop}", "watchNamespaces"),
        ("watchNamespaces={a,a}", "watchNamespaces"),
        ("watchNamespaces=shop", "watchNamespaces"),
        ("resources.limits.memory=lots", "memory"),
        ("resources.limit.memory=1Gi", "limit"),
        ("logLevel=verbose", "logLevel"),
        ("logFormat=xml", "logFormat"),
        ("env[0].name=RUST_LOG,env[0].value=debug", "env"),
        ("podLabels.app\\.kubernetes\\.io/name=mine", "podLabels"),
        ("webhook.enabled=true,webhook.certificates=cert-manager", "issuerRef"),
        ("webhook.enabled=true,webhook.timeoutSeconds=60", "timeoutSeconds"),
        ("webhook.enabled=true,watchNamespaces={shop}", "watchNamespaces"),
        ("tracing.endpoint=https://collector:4318", "endpoint"),
        ("tracing.endpoint=http://collector:4318 --webhook", "endpoint"),
        ("monitoring.podMonitor.interval=often", "interval"),
    ];
    const TAKEN: [&str; 8] = [
        "replicas=0",
        "replicas=1,podDisruptionBudget.enabled=false",
        "resources.limits.cpu=2,resources.limits.memory=512Mi,resources.requests.cpu=0.5",
        "logLevel=warn\\,tiderace_operator=trace\\,kube::client=off",
        "env[0].name=HTTPS_PROXY,env[0].value=http://proxy:3128",
        "serviceAccount.create=false,serviceAccount.name=mine,rbac.create=false",
        "webhook.enabled=true,webhook.namespaceSelector.matchLabels.a=b,networkPolicy.enabled=false,podLabels.team=a",
        "tracing.endpoint=http://[fd00::1]:4318/otlp,tracing.workers=false,priorityClassName=system-cluster-critical",
    ];
    let cluster = space.cluster();
    let chart = cluster.root().join("charts/tiderace").display().to_string();
    let render = async |values: &str| {
        cluster.helm(&["template", "odd", &chart, "-n", install::OPERATOR_NAMESPACE, "--skip-tests", "--set", values]).await
    };
    // A second operator for the same jobs would be one too many.
    for (namespace, values) in [(space.name(), "replicas=1"), (install::OPERATOR_NAMESPACE, "watchNamespaces={shop}")] {
        let second = cluster.helm(&["install", "second", &chart, "-n", namespace, "--dry-run=server", "--set", values]).await;
        let Err(error) = second else { bail!("a second operator was taken with {values}") };
        ensure!(format!("{error:#}").contains("watches all namespaces already"), "{values} was refused, but for {error:#}");
    }
    for (values, word) in REFUSED {
        let Err(error) = render(values).await else { bail!("{values} was taken") };
        let text = format!("{error:#}");
        ensure!(text.contains(word) && !text.contains("nil pointer"), "{values} was refused, but for {text}");
    }
    for values in TAKEN {
        let objects = render(values).await.with_context(|| format!("{values} was refused"))?;
        cluster
            .run_with_input(&["kubectl", "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"], objects)
            .await
            .with_context(|| format!("the API server refuses what comes of {values}"))?;
    }
    Ok(())
}
