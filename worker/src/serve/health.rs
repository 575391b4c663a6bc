//! Probes and metrics, in plain HTTP: neither the kubelet nor Prometheus has a certificate of the job's.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tiderace_crds::admin::WorkerState;

use super::host::Host;
use super::metrics::{self, Facts};
use super::tls::Certificates;
use super::{Requests, answer};

/// How long a probe or a scrape may take.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// A process that didn't look at its running job for so long is stuck.
const UNATTENDED_MAX: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(crate) struct Health {
    pub host: Option<Arc<Host>>,
    pub requests: Requests,
    pub certificates: Option<Arc<Certificates>>,
    pub started_ms: i64,
}

/// `/livez`, `/readyz`, `/startupz`, `/metrics`, to be [`answer::finished`].
pub(crate) fn routes(health: Health) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/startupz", get(startupz))
        .route("/metrics", get(metrics_page))
        .with_state(health)
        .layer(middleware::from_fn_with_state(REQUEST_TIME_MAX, answer::limit_time))
}

fn verdict(is_well: bool, text: &str) -> Response {
    let status = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{text}\n")).into_response()
}

/// Whether the process should be left alone. A job that failed or ended is no reason to start it again: the process ends by itself.
async fn livez(State(health): State<Health>) -> Response {
    let Some(host) = &health.host else { return verdict(true, "ok") };
    let is_running = matches!(host.state(), WorkerState::Running | WorkerState::Draining);
    let stuck = is_running && host.unattended() > UNATTENDED_MAX;
    verdict(!stuck, if stuck { "the job was not looked at for a minute" } else { "ok" })
}

/// Whether rows flow, or the job came to its end as it should.
async fn readyz(State(health): State<Health>) -> Response {
    let Some(host) = &health.host else { return verdict(true, "ok") };
    let state = host.state();
    let is_ready = matches!(state, WorkerState::Running | WorkerState::Finished | WorkerState::Stopped);
    verdict(is_ready, &format!("{state:?}"))
}

/// Whether planning and opening are over.
async fn startupz(State(health): State<Health>) -> Response {
    let Some(host) = &health.host else { return verdict(true, "ok") };
    let state = host.state();
    verdict(state != WorkerState::Starting, &format!("{state:?}"))
}

async fn metrics_page(State(health): State<Health>) -> Response {
    let facts = Facts {
        host: health.host.as_deref(),
        requests: health.requests.counts(),
        certificates: health.certificates.as_ref().map(|certificates| certificates.counts()),
        started_ms: health.started_ms,
    };
    match metrics::render(&facts) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics can't be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
