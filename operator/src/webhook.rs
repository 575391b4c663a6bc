//! The validating webhook: what is wrong with a manifest is said at `kubectl apply`.
//!
//! It is an answer sooner, not a gate: the API server goes on without it (`failurePolicy: Ignore`), and every check is made again when the job is
//! reconciled. A job of another image than the planner's is warned about, not refused: another version may judge otherwise.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use axum::{Json, Router};
use axum_server::tls_rustls::RustlsConfig;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use serde_json::json;
use tiderace_crds::StreamingJobSpec;
use tiderace_crds::admin::PlanCheckReply;
use tokio_util::sync::CancellationToken;

use crate::cannot_run::cannot_run;
use crate::certificates;
use crate::command::RunArgs;
use crate::context::Context;
use crate::decide::{self, Job};
use crate::execute::plan_request;
use crate::names::{self, FIELD_MANAGER};

/// The largest request: an object, its old state, and the review around them.
const REQUEST_BYTES_MAX: usize = 8 << 20;
/// How often the certificate is looked at.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(60);

/// Serves it until `stop`.
pub async fn serve(args: &RunArgs, context: Arc<Context>, stop: CancellationToken) -> Result<()> {
    let source = Source::of(args, Arc::clone(&context));
    let (certificate, key) = source.read().await?;
    let config =
        RustlsConfig::from_pem(certificate.clone().into_bytes(), key.into_bytes()).await.context("the webhook's certificate")?;
    let address = SocketAddr::new(args.listen_address, args.webhook_port);
    let router = Router::new()
        .route("/validate-streamingjob", post(validate))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(Arc::clone(&context));
    let handle = axum_server::Handle::new();
    let server = axum_server::bind_rustls(address, config.clone()).handle(handle.clone()).serve(router.into_make_service());
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, %address, "the webhook can't be served");
        }
    });
    tokio::spawn(async move {
        let mut current = certificate;
        loop {
            tokio::select! {
                () = stop.cancelled() => return handle.graceful_shutdown(Some(Duration::from_secs(5))),
                () = tokio::time::sleep(CERTIFICATE_INTERVAL) => {}
            }
            match source.read().await {
                Ok((certificate, key)) if certificate != current => {
                    match config.reload_from_pem(certificate.clone().into_bytes(), key.into_bytes()).await {
                        Ok(()) => current = certificate,
                        Err(error) => tracing::warn!(%error, "the webhook's new certificate can't be used"),
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "the webhook's certificate can't be read"),
            }
        }
    });
    Ok(())
}

/// Where the certificate comes from.
enum Source {
    /// Somebody else looks after it.
    Directory(std::path::PathBuf),
    /// A Secret that this operator and its replicas share.
    Own { context: Arc<Context>, namespace: String, service: String, configuration: Option<String> },
}

impl Source {
    fn of(args: &RunArgs, context: Arc<Context>) -> Self {
        match &args.webhook_certificate_directory {
            Some(folder) => Self::Directory(folder.clone()),
            None => Self::Own {
                context,
                namespace: args.lease_namespace.clone(),
                service: args.webhook_service.clone(),
                configuration: args.webhook_configuration.clone(),
            },
        }
    }

    /// Certificate and key, PEM; issued where they are due.
    async fn read(&self) -> Result<(String, String)> {
        let (context, namespace, service, configuration) = match self {
            Self::Directory(folder) => {
                let certificate = tokio::fs::read_to_string(folder.join("tls.crt")).await.context("tls.crt")?;
                let key = tokio::fs::read_to_string(folder.join("tls.key")).await.context("tls.key")?;
                return Ok((certificate, key));
            }
            Self::Own { context, namespace, service, configuration } => (context, namespace, service, configuration),
        };
        let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
        let name = format!("{service}-tls");
        let now = context.now();
        let mut found = secrets.get_opt(&name).await?;
        let mut contents = found.as_ref().map(texts).unwrap_or_default();
        if certificates::is_due_server(&contents, now) {
            let host = format!("{service}.{namespace}.svc");
            let issued =
                certificates::issue_server(&[host.clone(), format!("{host}.cluster.local")], context.options.lifetimes, now)?;
            // What was trusted until now stays so for a while: the API server may ask a replica that has the old certificate.
            let before = contents
                .get(certificates::CA_CERTIFICATE)
                .and_then(|pem| certificates::first_certificate(pem))
                .unwrap_or_default();
            let data =
                BTreeMap::from([("ca.crt", format!("{}{before}", issued.0)), ("tls.crt", issued.1), ("tls.key", issued.2)]);
            let labels = json!({names::MANAGED_BY_LABEL: FIELD_MANAGER, "app.kubernetes.io/part-of": "tiderace"});
            let version = found.as_ref().and_then(|s| s.metadata.resource_version.clone());
            let secret = json!({
                "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "stringData": data,
                "metadata": {"name": name, "namespace": namespace, "labels": labels, "resourceVersion": version},
            });
            // Of two replicas that find it missing one writes, and the other takes that.
            let written = match &found {
                Some(_) => secrets.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&secret)).await,
                None => secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await,
            };
            match written {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error).context("the webhook's Secret"),
            }
            found = secrets.get_opt(&name).await?;
            contents = found.as_ref().map(texts).unwrap_or_default();
        }
        if let Some(configuration) = configuration
            && let Err(error) = publish(context, configuration, &contents).await
        {
            tracing::warn!(%error, configuration, "the webhook's authority can't be written into its configuration");
        }
        let get = |key: &str| contents.get(key).cloned().with_context(|| format!("the Secret {name} has no {key}"));
        Ok((get("tls.crt")?, get("tls.key")?))
    }
}

/// Writes the authority into the configuration, where it is another.
async fn publish(context: &Context, name: &str, contents: &certificates::Contents) -> Result<(), kube::Error> {
    let Some(authority) = contents.get(certificates::CA_CERTIFICATE) else { return Ok(()) };
    let api: Api<ValidatingWebhookConfiguration> = Api::all(context.client.clone());
    let Some(found) = api.get_opt(name).await? else { return Ok(()) };
    let webhooks = found.webhooks.unwrap_or_default();
    let bundle = k8s_openapi::ByteString(authority.clone().into_bytes());
    if webhooks.iter().all(|w| w.client_config.ca_bundle.as_ref() == Some(&bundle)) {
        return Ok(());
    }
    let webhooks: Vec<_> = webhooks
        .iter()
        .map(|w| json!({"name": w.name, "admissionReviewVersions": w.admission_review_versions, "sideEffects": w.side_effects, "clientConfig": {"caBundle": bundle}}))
        .collect();
    let patch = json!({"webhooks": webhooks});
    // By name: everything else in a webhook stays whoever wrote it.
    api.patch(
        name,
        &PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() },
        &Patch::Strategic(&patch),
    )
    .await?;
    Ok(())
}

fn texts(secret: &Secret) -> certificates::Contents {
    let data = secret.data.clone().unwrap_or_default();
    data.into_iter().filter_map(|(key, value)| Some((key, String::from_utf8(value.0).ok()?))).collect()
}

async fn validate(
    State(context): State<Arc<Context>>,
    Json(review): Json<AdmissionReview<DynamicObject>>,
) -> Json<AdmissionReview<DynamicObject>> {
    let request: AdmissionRequest<DynamicObject> = match review.try_into() {
        Ok(request) => request,
        Err(error) => return Json(AdmissionResponse::invalid(error.to_string()).into_review()),
    };
    let mut response = AdmissionResponse::from(&request);
    match judge(&context, &request).await {
        Verdict::Good => context.metrics.count_verdict("allowed"),
        Verdict::Unknown(why) => {
            context.metrics.count_verdict("unknown");
            response.warnings = Some(vec![why]);
        }
        Verdict::Bad(why) => {
            context.metrics.count_verdict("denied");
            response = response.deny(why);
        }
    }
    Json(response.into_review())
}

enum Verdict {
    Good,
    /// It can't be said, or only with a warning.
    Unknown(String),
    Bad(String),
}

async fn judge(context: &Context, request: &AdmissionRequest<DynamicObject>) -> Verdict {
    let Some(object) = &request.object else { return Verdict::Good };
    let spec: StreamingJobSpec = match serde_json::from_value(object.data["spec"].clone()) {
        Ok(spec) => spec,
        Err(error) => return Verdict::Bad(format!("spec: {error}")),
    };
    if let Some(why) = cannot_run(&spec) {
        return Verdict::Bad(why);
    }
    let Some(statements) = spec.sql.inline.clone() else {
        return Verdict::Good; // the ConfigMap may come after the job; the job's conditions tell
    };
    let Some(planner) = &context.options.planner_url else { return Verdict::Good };
    let is_same_image = spec.image.as_ref().is_none_or(|image| *image == context.options.default_image);
    let job = Job {
        name: request.name.clone(),
        namespace: request.namespace.clone().unwrap_or_default(),
        uid: String::new(),
        generation: 0,
        deleted_at: None,
        has_finalizer: false,
        restart_nonce: None,
        spec,
    };
    let Some(plan) = plan_request(&job, &statements) else { return Verdict::Good };
    match context.workers.check_plan_by(planner, &plan).await {
        Ok(reply) if reply.valid => Verdict::Good,
        Ok(reply) => refusal(&reply, is_same_image),
        Err(error) => {
            tracing::warn!(%error, "the planner didn't answer");
            Verdict::Unknown(
                "the statements were not checked yet, as no planner answered: see the condition PlanValid".to_owned(),
            )
        }
    }
}

fn refusal(reply: &PlanCheckReply, is_same_image: bool) -> Verdict {
    let text = decide::problems_text(&reply.errors);
    if is_same_image {
        return Verdict::Bad(text);
    }
    Verdict::Unknown(format!(
        "the planner of this cluster (version {}) refuses it, the job's own image may not: {text}",
        reply.engine_version
    ))
}
