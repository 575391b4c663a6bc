//! Answers of the admin API: JSON, and errors that have a code.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tiderace_crds::admin::{EPOCH_HEADER, ErrorReply, Problem, REQUEST_BYTES_MAX, TOKEN_HEADER};
use tiderace_engine::error::Code;
use tracing::Instrument as _;

use super::Requests;
use super::host::Host;

/// A request that gets no success.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    problem: Problem,
}

impl Refusal {
    /// With a message and what to do.
    pub fn new(status: StatusCode, code: Code, message: impl Into<String>, hint: &str) -> Self {
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        Self { status, problem: Problem { code: code.to_string(), message: message.into(), hint, line: None, column: None } }
    }

    /// 409: the caller means another deploy epoch.
    pub fn epoch(meant: u64, ours: u64) -> Self {
        let message = format!("the call means deploy epoch {meant}, and this worker was started with {ours}");
        Self::new(StatusCode::CONFLICT, Code::WrongEpoch, message, "read the job's status anew")
    }

    /// 409: the caller led before, and another operator has called since.
    pub fn stale(token: u64, seen: u64) -> Self {
        let message = format!("the call comes from an operator with token {token}, and one with {seen} has called since");
        Self::new(
            StatusCode::CONFLICT,
            Code::StaleOperator,
            message,
            "another operator leads: this one has nothing to order any more",
        )
    }

    /// 400: not as described.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::BadRequest, message, "docs/reference/admin-api.md describes every call")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        json(self.status, &ErrorReply { error: self.problem })
    }
}

/// A JSON answer.
pub(crate) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(mut body) => {
            body.push(b'\n');
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = status;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        // Structs of texts and numbers always serialize.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The body of a request as `T`.
pub(crate) fn body<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Refusal> {
    let bytes = body.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let message = format!("the body is larger than {REQUEST_BYTES_MAX} bytes");
            return Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, Code::BadRequest, message, "");
        }
        Refusal::bad(format!("the body can't be read: {rejection}"))
    })?;
    serde_json::from_slice(&bytes).map_err(|error| Refusal::bad(format!("the body is not as described: {error}")))
}

/// The routes of a port with answers for all that has no route, and a count of everything.
pub(crate) fn finished(routes: Router, requests: Requests) -> Router {
    routes
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(requests, count))
}

/// No such path.
async fn no_such_path(request: Request) -> Refusal {
    let message = format!("there is no {} {}", request.method(), cut(request.uri().path()));
    Refusal::new(StatusCode::NOT_FOUND, Code::BadRequest, message, "docs/reference/admin-api.md lists every path")
}

/// The path is there, the method isn't.
async fn no_such_method(request: Request) -> Refusal {
    let message = format!("{} can't be called by {}", cut(request.uri().path()), request.method());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Code::BadRequest, message, "")
}

fn cut(path: &str) -> &str {
    &path[..path.floor_char_boundary(200)]
}

/// Refuses a call whose header means another deploy epoch.
pub(crate) async fn check_epoch(State(ours): State<u64>, request: Request, next: Next) -> Response {
    if let Some(meant) = request.headers().get(EPOCH_HEADER) {
        match meant.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok()) {
            Some(meant) if meant == ours => {}
            Some(meant) => return Refusal::epoch(meant, ours).into_response(),
            None => return Refusal::bad(format!("the header {EPOCH_HEADER} is no number")).into_response(),
        }
    }
    next.run(request).await
}

/// Hears the token of an operator, and refuses what changes anything by one that leads no more. Who gives none (a person) is let through.
pub(crate) async fn check_token(State(host): State<Arc<Host>>, request: Request, next: Next) -> Response {
    let Some(token) = request.headers().get(TOKEN_HEADER) else { return next.run(request).await };
    let Some(token) = token.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok()) else {
        return Refusal::bad(format!("the header {TOKEN_HEADER} is no number")).into_response();
    };
    let heard = if host.is_news(token) {
        // It is written to the disk before the call goes on.
        match tokio::task::spawn_blocking(move || host.hear_token(token)).await {
            Ok(heard) => heard,
            Err(_) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    } else {
        host.hear_token(token)
    };
    match heard {
        Err(stale) if request.method() != Method::GET => Refusal::stale(token, stale.seen).into_response(),
        Ok(()) | Err(_) => next.run(request).await,
    }
}

/// Gives up on a request that takes longer, its body included.
pub(crate) async fn limit_time(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = format!("the request took longer than {} s", limit.as_secs_f32());
            Refusal::new(StatusCode::REQUEST_TIMEOUT, Code::BadRequest, message, "").into_response()
        }
    }
}

/// Counts requests by path and status for the metrics.
async fn count(State(requests): State<Requests>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    // Probes and scrapes come every second and say nothing that a collector should keep.
    let span = if path.starts_with("/v1/") {
        tracing::info_span!("request", method = %request.method(), path, status = tracing::field::Empty)
    } else {
        tracing::Span::none()
    };
    let response = next.run(request).instrument(span.clone()).await;
    span.record("status", response.status().as_u16());
    requests.count(&path, response.status().as_u16());
    response
}
