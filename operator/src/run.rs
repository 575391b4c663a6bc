//! `tiderace-operator run`: wires everything together.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::{ObjectMeta, PartialObjectMeta};
use kube::runtime::controller::{Config, Controller};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, reflector};
use kube::runtime::utils::Backoff;
use kube::runtime::{Predicate, WatchStreamExt, predicates, watcher};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::certificates::Lifetimes;
use crate::command::{LogFormat, RunArgs};
use crate::context::{Context, Options, resource};
use crate::election::{Candidate, Leadership};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::names::{API_VERSION, FIELD_MANAGER, JOB_LABEL, MANAGED_BY_LABEL};
use crate::reconcile::{after_error, reconcile_job, reconcile_snapshot};
use crate::worker_client::Network;
use crate::{count_requests, webhook};

/// How often the API server is asked for the definitions while they are missing.
const DEFINITIONS_RETRY: Duration = Duration::from_secs(2);
/// How long a running job of which no watch reports anything is looked at by a glance at its worker alone.
const WHOLE_PASS_INTERVAL: Duration = Duration::from_secs(300);
/// How often the API server is asked for a kind that jobs can do without.
const MISSING_KIND_RETRY: Duration = Duration::from_secs(60);
/// How long the end of the process waits for its last spans to be sent.
const SPANS_PATIENCE: Duration = Duration::from_secs(2);
/// Changes of one job within this are one pass.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Runs until SIGTERM, or until another operator leads. `Ok(false)` in the second case: the process must not go on.
pub async fn run(args: RunArgs) -> Result<bool> {
    let ended = CancellationToken::new();
    let spans = start_log(&args)?.map(|exporter| tokio::spawn(exporter.run(ended.clone().cancelled_owned())));
    let result = serve(args).await;
    ended.cancel();
    if let Some(spans) = spans {
        // What is left of them; a collector that is away holds up nobody.
        let _sent = tokio::time::timeout(SPANS_PATIENCE, spans).await;
    }
    result
}

async fn serve(args: RunArgs) -> Result<bool> {
    // Another library may have chosen it already; it is the same one.
    let _already = rustls::crypto::ring::default_provider().install_default();
    let stop = CancellationToken::new();
    tokio::spawn(stop_on_signal(stop.clone()));

    let metrics = Metrics::new();
    let health = Health::new(metrics.clone());
    let listener = TcpListener::bind(SocketAddr::new(args.listen_address, args.health_port))
        .await
        .with_context(|| format!("port {} can't be listened on", args.health_port))?;
    tracing::info!(address = %listener.local_addr()?, version = env!("CARGO_PKG_VERSION"), "serving health and metrics");
    tokio::spawn(axum::serve(listener, health.clone().router()).into_future());

    let config = kube::Config::infer().await.context("no cluster: set KUBECONFIG, or run in a pod with a service account")?;
    let client = count_requests::client(config, metrics.clone())?;
    let identity = args.identity.clone().unwrap_or_else(own_name);
    let leadership = Leadership::default();
    let lifetimes = Lifetimes {
        leaf_seconds: u64::from(args.certificate_days) * 86_400,
        authority_seconds: u64::from(args.certificate_days) * 4 * 86_400 + 86_400,
    };
    let options = Options {
        default_image: args.default_image.clone(),
        image_pull_policy: args.image_pull_policy.clone(),
        operator_namespace: args.lease_namespace.clone(),
        planner_url: args.planner_url.clone(),
        whole_pass_interval: WHOLE_PASS_INTERVAL,
        worker_otlp_endpoint: args.worker_otlp_endpoint.as_ref().map(ToString::to_string),
        lifetimes,
    };
    let context =
        Arc::new(Context::new(client.clone(), options, Arc::new(Network), metrics.clone(), leadership.clone(), &identity));

    if !wait_for_definitions(&client, &args.watch_namespaces, &metrics, &stop).await {
        return Ok(true);
    }
    health.set_ready(true);
    if args.webhook {
        // Followers serve it too: the API server may ask any of them.
        webhook::serve(&args, Arc::clone(&context), stop.clone()).await?;
    }

    let leases = Api::namespaced(client.clone(), &args.lease_namespace);
    let mut candidate = Candidate::new(leases, &args.lease_name, &identity, leadership.clone());
    tracing::info!(%identity, lease = %args.lease_name, namespace = %args.lease_namespace, "waiting to lead");
    if !candidate.wait(&stop).await {
        return Ok(true);
    }
    tracing::info!(token = leadership.token(), "leading");
    metrics.set_leader(true);

    let controllers = CancellationToken::new();
    let mut running = tokio::task::JoinSet::new();
    // A controller for each namespace: watches of several can't share one store.
    let all =
        if args.watch_namespaces.is_empty() { vec![None] } else { args.watch_namespaces.iter().cloned().map(Some).collect() };
    for namespace in all {
        running.spawn(jobs(client.clone(), namespace.clone(), args.concurrency, Arc::clone(&context), controllers.clone()));
        running.spawn(snapshots(client.clone(), namespace, Arc::clone(&context), controllers.clone()));
    }
    let lost = tokio::select! {
        () = candidate.keep(&stop) => !stop.is_cancelled(),
        _ = running.join_next() => { tracing::error!("a controller ended"); true }
    };
    metrics.set_leader(false);
    controllers.cancel();
    // Passes that are under way find that they don't lead before their next write.
    let _ended = tokio::time::timeout(Duration::from_secs(5), running.join_all()).await;
    if lost {
        tracing::error!("another operator leads, or the API server is out of reach: ending, to begin anew");
        return Ok(false);
    }
    Ok(true)
}

/// Log lines to stderr, and spans to a collector where there is one.
fn start_log(args: &RunArgs) -> Result<Option<tiderace_telemetry::Exporter>> {
    use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
    use tracing_subscriber::util::SubscriberInitExt as _;
    use tracing_subscriber::{EnvFilter, fmt, registry};
    let given = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|filter| !filter.trim().is_empty());
    let filter = given.as_deref().unwrap_or("info,kube=warn,kube_client=error");
    let filter =
        EnvFilter::try_new(filter).with_context(|| format!("{}: '{filter}' is no log filter", EnvFilter::DEFAULT_ENV))?;
    let lines = match args.log_format {
        LogFormat::Text => fmt::layer().with_writer(std::io::stderr).boxed(),
        LogFormat::Json => fmt::layer().json().with_writer(std::io::stderr).boxed(),
    };
    let source = tiderace_telemetry::Source {
        service: "tiderace-operator".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        attributes: vec![
            ("service.instance.id".to_owned(), args.identity.clone().unwrap_or_else(own_name)),
            ("k8s.namespace.name".to_owned(), args.lease_namespace.clone()),
        ],
    };
    let (spans, exporter) = args.otlp_endpoint.clone().map(|endpoint| tiderace_telemetry::export(endpoint, source, None)).unzip();
    // A second subscriber in one process is refused; the first stays.
    let spans = spans.map(|spans| spans.with_filter(tiderace_telemetry::own_spans()));
    let _already = registry().with(lines.with_filter(filter)).with(spans).try_init();
    Ok(exporter)
}

async fn stop_on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::error!("signals can't be listened to: SIGTERM ends the process at once");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    stop.cancel();
}

fn own_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}-{}", host.trim(), std::process::id(), jiff::Timestamp::now().as_millisecond())
}

/// Waits until the API server serves the custom resources; `false` when it is to stop first.
async fn wait_for_definitions(client: &Client, namespaces: &[String], metrics: &Metrics, stop: &CancellationToken) -> bool {
    let mut told = false;
    loop {
        let mut missing = false;
        for kind in ["StreamingJob", "StreamingSnapshot"] {
            let resource = resource(API_VERSION, kind);
            let api: Api<DynamicObject> = match namespaces.first() {
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
                None => Api::all_with(client.clone(), &resource),
            };
            let found = api.list_metadata(&kube::api::ListParams::default().limit(1)).await;
            if let Err(error) = &found
                && !told
            {
                tracing::warn!(%error, kind, "waiting for the definition: install the chart tiderace-crds, or `tiderace-operator crds | kubectl apply --server-side -f -`");
            }
            metrics.set_crd_missing(&format!("{}.tiderace.dev", resource.plural), found.is_err());
            missing |= found.is_err();
        }
        if !missing {
            return true;
        }
        told = true;
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(DEFINITIONS_RETRY) => {}
        }
    }
}

/// Jobs of one namespace, or of all.
async fn jobs(client: Client, namespace: Option<String>, concurrency: u16, context: Arc<Context>, stop: CancellationToken) {
    let resource = resource(API_VERSION, "StreamingJob");
    let api = dynamic_api(&client, namespace.as_deref(), &resource);
    let writer = Writer::new(resource.clone());
    let reader = writer.as_reader();
    // A pass reads the job itself; what is kept of each is its name and what tells that it changed.
    let slim = |job: &mut DynamicObject| {
        job.managed_fields_mut().clear();
        job.annotations_mut().retain(|key, _| key == tiderace_crds::RESTART_ANNOTATION);
        job.data = serde_json::Value::Null;
    };
    let watched = watcher(api, watcher::Config::default().any_semantic()).backoff(watch_backoff()).modify(slim);
    let changed = predicates::generation.combine(predicates::finalizers).combine(predicates::annotations);
    let marking = Arc::clone(&context);
    let roots = heard(reflector(writer, watched).touched_objects().predicate_filter(changed, Default::default())).inspect_ok(
        move |job| {
            marking.mark_changed((job.namespace().unwrap_or_default(), job.name_any()));
        },
    );
    let mut controller = Controller::for_stream_with(roots, reader, resource.clone())
        .with_config(Config::default().debounce(DEBOUNCE).concurrency(concurrency))
        .graceful_shutdown_on(stop.cancelled_owned());
    controller = controller
        .watches_stream(changes::<StatefulSet>(&client, namespace.as_deref()), job_of(&resource, &context, Part::Workload));
    controller =
        controller.watches_stream(changes::<Pod>(&client, namespace.as_deref()), job_of(&resource, &context, Part::Workload));
    controller =
        controller.watches_stream(changes::<Job>(&client, namespace.as_deref()), job_of(&resource, &context, Part::Workload));
    controller =
        controller.watches_stream(changes::<Service>(&client, namespace.as_deref()), job_of(&resource, &context, Part::Setting));
    controller = controller
        .watches_stream(changes::<ConfigMap>(&client, namespace.as_deref()), job_of(&resource, &context, Part::Setting));
    controller = controller.watches_stream(
        changes::<PersistentVolumeClaim>(&client, namespace.as_deref()),
        job_of(&resource, &context, Part::Workload),
    );
    // What a job owns and nothing else touches: a deletion by somebody else is put right at once.
    controller =
        controller.watches_stream(changes::<Secret>(&client, namespace.as_deref()), job_of(&resource, &context, Part::Setting));
    controller = controller
        .watches_stream(changes::<ServiceAccount>(&client, namespace.as_deref()), job_of(&resource, &context, Part::Setting));
    controller = controller
        .watches_stream(changes::<NetworkPolicy>(&client, namespace.as_deref()), job_of(&resource, &context, Part::Setting));
    controller = controller.watches_stream(
        changes::<PodDisruptionBudget>(&client, namespace.as_deref()),
        job_of(&resource, &context, Part::Setting),
    );
    controller = controller.watches_stream_with(
        pod_monitors(client.clone(), namespace.clone()),
        job_of_object(resource.clone(), Arc::clone(&context)),
        pod_monitor(),
    );
    // Failed passes are logged and tried again by `after_error`.
    controller.run(reconcile_job, after_error, context).for_each(async |_| {}).await;
}

async fn snapshots(client: Client, namespace: Option<String>, context: Arc<Context>, stop: CancellationToken) {
    let resource = resource(API_VERSION, "StreamingSnapshot");
    let api = dynamic_api(&client, namespace.as_deref(), &resource);
    Controller::new_with(api, watcher::Config::default().any_semantic(), resource)
        .with_config(Config::default().concurrency(2))
        .trigger_backoff(watch_backoff())
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile_snapshot, after_error, context)
        .for_each(async |_| {})
        .await;
}

fn dynamic_api(client: &Client, namespace: Option<&str>, resource: &ApiResource) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    }
}

/// Objects of a kind that changed. Only metadata is watched, and only of what the operator manages: memory doesn't grow with the cluster.
fn changes<K>(
    client: &Client,
    namespace: Option<&str>,
) -> impl Stream<Item = Result<PartialObjectMeta<K>, watcher::Error>> + Send + use<K>
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + Send
        + Sync
        + DeserializeOwned
        + 'static,
{
    let api: Api<PartialObjectMeta<K>> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let config = watcher::Config::default().labels(&format!("{MANAGED_BY_LABEL}={FIELD_MANAGER}"));
    heard(watcher(api, config).backoff(watch_backoff()).touched_objects())
}

fn pod_monitor() -> ApiResource {
    resource("monitoring.coreos.com/v1", "PodMonitor")
}

/// PodMonitors that changed, where the cluster has such a kind: its definition may come at any time.
fn pod_monitors(
    client: Client,
    namespace: Option<String>,
) -> impl Stream<Item = Result<PartialObjectMeta<DynamicObject>, watcher::Error>> + Send {
    let kind = pod_monitor();
    futures::stream::once(async move {
        let asked = dynamic_api(&client, namespace.as_deref(), &kind);
        while let Err(error) = asked.list_metadata(&kube::api::ListParams::default().limit(1)).await {
            tracing::debug!(%error, "PodMonitors can't be watched");
            tokio::time::sleep(MISSING_KIND_RETRY).await;
        }
        let api: Api<PartialObjectMeta<DynamicObject>> = match namespace.as_deref() {
            Some(namespace) => Api::namespaced_with(client, namespace, &kind),
            None => Api::all_with(client, &kind),
        };
        let config = watcher::Config::default().labels(&format!("{MANAGED_BY_LABEL}={FIELD_MANAGER}"));
        heard(watcher(api, config).backoff(watch_backoff()).touched_objects())
    })
    .flatten()
}

/// How long a watch waits before it is made again. The API server is back within seconds mostly, and then changes wait for us.
fn watch_backoff() -> WatchBackoff {
    WatchBackoff { failures: 0 }
}

/// 0.5 s, doubled with each failure in a row up to 4 s.
struct WatchBackoff {
    failures: u32,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = Duration::from_millis(500) * (1 << self.failures.min(3));
        self.failures = self.failures.saturating_add(1);
        Some(wait)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A watch whose failures are logged and end here: each has waited for itself. The controller would make all watches wait for each failure of any,
/// one after the other: minutes, when the API server was away for seconds.
fn heard<T: Send + 'static>(
    watch: impl Stream<Item = Result<T, watcher::Error>> + Send + 'static,
) -> impl Stream<Item = Result<T, watcher::Error>> + Send + 'static {
    watch.filter_map(async |item| match item {
        Ok(object) => Some(Ok(object)),
        Err(error) => {
            tracing::info!(%error, "a watch is made again");
            None
        }
    })
}

/// What an object is to its job.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// It runs, stores or checks.
    Workload,
    /// It is written once and stays as it is.
    Setting,
}

/// From an object to the job that its label names.
fn job_of<K>(
    resource: &ApiResource,
    context: &Arc<Context>,
    part: Part,
) -> impl Fn(PartialObjectMeta<K>) -> Option<ObjectRef<DynamicObject>> + Send + Sync + use<K>
where
    K: kube::Resource<DynamicType = ()> + 'static,
{
    let (resource, context) = (resource.clone(), Arc::clone(context));
    move |object| owner(&object.metadata, &resource, &context, part)
}

/// The same for a kind that may be missing.
fn job_of_object(
    resource: ApiResource,
    context: Arc<Context>,
) -> impl Fn(PartialObjectMeta<DynamicObject>) -> Option<ObjectRef<DynamicObject>> + Send + Sync {
    move |object| owner(&object.metadata, &resource, &context, Part::Setting)
}

fn owner(metadata: &ObjectMeta, resource: &ApiResource, context: &Context, part: Part) -> Option<ObjectRef<DynamicObject>> {
    let name = metadata.labels.as_ref()?.get(JOB_LABEL)?.clone();
    let namespace = metadata.namespace.as_deref()?;
    let key = (namespace.to_owned(), name.clone());
    match part {
        Part::Workload => context.mark_changed(key),
        Part::Setting => context.mark_setting_changed(key),
    }
    Some(ObjectRef::new_with(&name, resource.clone()).within(namespace))
}
