//! The admin API: what the operator asks and orders, over mTLS.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, RawQuery, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::Response;
use axum::routing::{get, post};
use tiderace_crds::admin::{PlanCheckRequest, REQUEST_BYTES_MAX, StopRequest, VersionReply, WorkerState};
use tiderace_engine::error::Code;
use tokio::sync::Semaphore;

use super::Requests;
use super::answer::{self, Refusal};
use super::host::Host;
use crate::plan_check;

/// How long a request may take, its body included.
pub(crate) const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// Plans are made one at a time: a plan takes a whole core, and the job has them all.
const PLANS_MAX: usize = 1;
/// Checks that may wait for their turn; more are told to come again.
const PLANS_WAITING_MAX: usize = 16;
/// The longest `operationId`.
const OPERATION_ID_BYTES_MAX: usize = 256;

#[derive(Clone)]
struct Admin {
    host: Option<Arc<Host>>,
    planning: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// The API of a worker, or of a planner where there is no host.
pub(crate) fn router(host: Option<Arc<Host>>, requests: Requests, time_max: Duration) -> Router {
    answer::finished(routes(host, time_max), requests)
}

/// The routes of the API, to be [`answer::finished`].
pub(crate) fn routes(host: Option<Arc<Host>>, time_max: Duration) -> Router {
    let admin = Admin {
        host: host.clone(),
        planning: Arc::new(Semaphore::new(PLANS_MAX)),
        waiting: Arc::new(Semaphore::new(PLANS_WAITING_MAX)),
    };
    let mut router = Router::new()
        .route("/v1/version", get(version))
        .route("/v1/plan:check", post(plan_check))
        .route("/openapi.json", get(|| async { ([("content-type", "application/json")], super::openapi::document_text()) }));
    if host.is_some() {
        router = router.route("/v1/status", get(status)).route("/v1/stop", post(stop)).route("/v1/exceptions", get(exceptions));
    }
    let mut router = router.with_state(admin).layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX));
    if let Some(host) = host {
        router = router.layer(middleware::from_fn_with_state(Arc::clone(&host), answer::check_token));
        // The outer one: a call that is meant for another worker says nothing to this one.
        router = router.layer(middleware::from_fn_with_state(host.epoch(), answer::check_epoch));
    }
    router.layer(middleware::from_fn_with_state(time_max, answer::limit_time))
}

/// What was built, and from what.
pub(crate) fn version_reply() -> VersionReply {
    VersionReply {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: option_env!("TIDERACE_COMMIT").filter(|c| !c.is_empty()).map(str::to_owned),
    }
}

async fn version() -> Response {
    answer::json(StatusCode::OK, &version_reply())
}

fn host(admin: &Admin) -> Result<&Host, Refusal> {
    // A planner has no routes that need one.
    admin
        .host
        .as_deref()
        .ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, Code::BadRequest, "a planner runs no job", "ask the job's worker"))
}

async fn status(State(admin): State<Admin>) -> Result<Response, Refusal> {
    Ok(answer::json(StatusCode::OK, &host(&admin)?.status()))
}

async fn exceptions(State(admin): State<Admin>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let since_ms = since(query.as_deref().unwrap_or_default())?;
    Ok(answer::json(StatusCode::OK, &host(&admin)?.exceptions(since_ms)))
}

/// The parameter `since` of a query; the beginning of time where there is none.
fn since(query: &str) -> Result<i64, Refusal> {
    let mut since_ms = i64::MIN;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("since", value)) => {
                let no_number = |_| Refusal::bad("`since` is no number of milliseconds since 1970".to_owned());
                since_ms = value.parse().map_err(no_number)?;
            }
            _ => return Err(Refusal::bad("the call has one parameter, `since`")),
        }
    }
    Ok(since_ms)
}

async fn stop(State(admin): State<Admin>, body: Result<Bytes, BytesRejection>) -> Result<Response, Refusal> {
    let order: StopRequest = answer::body(body)?;
    let host = host(&admin)?;
    if order.epoch != host.epoch() {
        return Err(Refusal::epoch(order.epoch, host.epoch()));
    }
    if order.operation_id.is_empty() || order.operation_id.len() > OPERATION_ID_BYTES_MAX {
        let message = format!("operationId must have 1 to {OPERATION_ID_BYTES_MAX} bytes");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, Code::BadRequest, message, ""));
    }
    if !matches!(host.state(), WorkerState::Stopped | WorkerState::Finished | WorkerState::Failed) {
        host.stop(Some(&order.operation_id), order.mode);
    }
    Ok(answer::json(StatusCode::ACCEPTED, &host.status()))
}

async fn plan_check(State(admin): State<Admin>, body: Result<Bytes, BytesRejection>) -> Result<Response, Refusal> {
    let request: PlanCheckRequest = answer::body(body)?;
    let busy = || {
        let message = format!("{PLANS_WAITING_MAX} plans are waiting to be checked");
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, Code::BadRequest, message, "ask again later")
    };
    let _place = admin.waiting.clone().try_acquire_owned().map_err(|_| busy())?;
    let turn = admin.planning.clone().acquire_owned().await.map_err(|_| busy())?;
    // The turn goes with the plan: one that its caller gave up still takes its core to the end.
    let planned = tokio::task::spawn_blocking(move || {
        let reply = plan_check::check_request(&request);
        drop(turn);
        reply
    });
    match planned.await {
        Ok(reply) => Ok(answer::json(StatusCode::OK, &reply)),
        Err(_) => Err(Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Code::Internal,
            "planning panicked",
            "this is a bug of Tiderace: please report it with the SQL of the job",
        )),
    }
}
