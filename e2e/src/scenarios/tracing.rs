//! Spans of the operator and of a worker, as a collector near the pods gets them.

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use serde_json::json;

use crate::collector::{Collector, Span};
use crate::install;
use crate::job::{Job, endless, manifest};
use crate::space::Space;
use crate::wait::{secs, until};

/// This machine, as pods reach it (`e2e/cluster/README.md`).
const HOST: &str = "10.210.0.1";
const OPERATOR: &str = "tiderace-operator";
const WORKER: &str = "tiderace";

/// With `tracing.endpoint` a collector gets the passes of the operator with their steps, and the stages of the job from its worker; both name the
/// job, its namespace and the operation. A log that shows warnings alone takes none away, and a collector that is gone stops nobody.
pub async fn spans_reach_a_collector(space: Space) -> Result<()> {
    let cluster = space.cluster().clone();
    let collector = Collector::start(HOST).await?;
    let endpoint = format!("tracing.endpoint={}", collector.endpoint());
    let mut values = install::usual_values();
    values.extend([endpoint.as_str(), "logLevel=warn"]);
    install::operator(&cluster, install::TAG, &values).await?;
    let outcome = watch(&space, collector).await;
    install::operator(&cluster, install::TAG, &install::usual_values()).await?;
    outcome
}

/// Waits for a span.
async fn span(collector: &Collector, service: &str, name: &str, attributes: &[(&str, &str)]) -> Result<Span> {
    until(format!("the span {name} of {service}"), secs(60), async || collector.find(service, name, attributes)).await
}

/// Waits for the span around another; it ends, and comes, later.
async fn around(collector: &Collector, inner: &Span) -> Result<Span> {
    until(format!("the span around {}", inner.name), secs(30), async || collector.parent(inner)).await
}

async fn watch(space: &Space, collector: Collector) -> Result<()> {
    let job = Job::apply(space, &manifest("traced", &endless(1))).await?;
    job.ready("Running").await?;
    job.row(1).await?;
    let of_job = [("job", "traced"), ("namespace", space.name())];

    let starting = [of_job.as_slice(), &[("operation", "Deploy"), ("step", "Starting"), ("generation", "1")]].concat();
    let pass = span(&collector, OPERATOR, "reconcile", &starting).await?;
    ensure!(pass.parent.is_none(), "a pass is inside of another span: {pass:?}");
    let pods: Vec<_> = install::operator_pods(space.cluster()).await?.iter().map(ResourceExt::name_any).collect();
    let instance = pass.resource.get("service.instance.id").context("no service.instance.id")?;
    ensure!(pods.iter().any(|pod| instance.starts_with(pod.as_str())), "{instance} is none of the operators {pods:?}");
    ensure!(
        pass.resource.get("k8s.namespace.name").map(String::as_str) == Some(install::OPERATOR_NAMESPACE),
        "the operator's resource is {:?}",
        pass.resource
    );
    let set = span(&collector, OPERATOR, "act", &[("action", "ApplySet")]).await?;
    let execute = around(&collector, &set).await?;
    ensure!(execute.name == "execute", "an action is inside of {execute:?}");
    let pass = around(&collector, &execute).await?;
    ensure!(pass.is(OPERATOR, "reconcile", &of_job), "the actions are inside of {pass:?}");
    let ready = [of_job.as_slice(), &[("phase", "Running")]].concat();
    span(&collector, OPERATOR, "reconcile", &ready).await?;

    let plan = span(&collector, WORKER, "plan", &[("job", "traced"), ("epoch", "1")]).await?;
    for (key, value) in
        [("k8s.namespace.name", space.name()), ("service.instance.id", "traced-0"), ("tiderace.deploy_epoch", "1")]
    {
        ensure!(plan.resource.get(key).map(String::as_str) == Some(value), "the worker's resource is {:?}", plan.resource);
    }
    span(&collector, WORKER, "open", &[("job", "traced"), ("epoch", "1")]).await?;
    span(&collector, WORKER, "request", &[("method", "GET"), ("path", "/v1/status"), ("status", "200")]).await?;

    // The end: the same operation in the operator's pass and in the worker's stage.
    job.patch(json!({"state": "Suspended"})).await?;
    job.ready("Suspended").await?;
    let suspend = [of_job.as_slice(), &[("operation", "Suspend")]].concat();
    let pass = span(&collector, OPERATOR, "reconcile", &suspend).await?;
    let id = pass.attributes.get("operation_id").context("no operation_id")?;
    let ran = span(&collector, WORKER, "run", &[("job", "traced"), ("outcome", "Stopped"), ("operation_id", id)]).await?;
    let rows: u64 = ran.attributes.get("rows_out").context("no rows_out")?.parse()?;
    ensure!(rows > 0, "it wrote no row: {ran:?}");
    span(&collector, WORKER, "drain", &[("job", "traced"), ("outcome", "drained")]).await?;
    span(&collector, WORKER, "request", &[("method", "POST"), ("path", "/v1/stop"), ("status", "202")]).await?;
    println!("    {} spans came", collector.count());

    drop(collector);
    job.patch(json!({"state": "Running"})).await?;
    job.ready("Running").await?;
    job.writes_on().await?;
    let variables =
        job.worker().await?.spec.and_then(|s| s.containers.into_iter().next()).and_then(|c| c.env).unwrap_or_default();
    ensure!(
        variables.iter().any(|v| serde_json::to_value(v).is_ok_and(|v| v["name"] == "TIDERACE_OTLP_ENDPOINT")),
        "the worker that found no collector wasn't told of one"
    );
    Ok(())
}
