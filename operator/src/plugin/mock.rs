//! An API server of a few answers, for the plugin's tests.

use std::sync::{Arc, Mutex};

use axum::http::{Request, Response, StatusCode};
use jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::Session;

/// A request as it came in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub method: String,
    /// Path and query.
    pub path: String,
    pub body: Value,
}

/// What came in, in order.
pub(crate) type Calls = Arc<Mutex<Vec<Call>>>;

/// Answers of a server: a status and a text; `None` is 404.
pub(crate) trait Answers: Fn(&Call, usize) -> Option<(u16, String)> + Send + Sync + 'static {}
impl<F: Fn(&Call, usize) -> Option<(u16, String)> + Send + Sync + 'static> Answers for F {}

/// 2026-11-21T19:00:00Z.
pub(crate) const NOW_S: i64 = 1_795_287_600;

fn now() -> Timestamp {
    Timestamp::from_second(NOW_S).unwrap_or_default()
}

/// A session whose every call `answers` answers; it gets the call, and how many came before.
pub(crate) fn session(answers: impl Answers) -> (Session, Calls) {
    let calls = Calls::default();
    let (seen, answers) = (calls.clone(), Arc::new(answers));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (seen, answers) = (seen.clone(), answers.clone());
        async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect_bytes().await.unwrap_or_default();
            let call = Call {
                method: parts.method.to_string(),
                path: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
                body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            };
            let before = {
                let mut calls = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                calls.push(call.clone());
                calls.len() - 1
            };
            let (status, text) = answers(&call, before).unwrap_or_else(|| {
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": format!("{} not found", call.path), "reason": "NotFound", "code": 404,
                });
                (404, status.to_string())
            });
            let mut response = Response::new(Body::from(text.into_bytes()));
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    (Session { client: Client::new(service, "shop"), namespace: "shop".to_owned(), now }, calls)
}

/// A list of objects of one kind.
pub(crate) fn list(items: &Value) -> Option<(u16, String)> {
    Some((200, json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}).to_string()))
}

/// One object.
pub(crate) fn object(object: &Value) -> Option<(u16, String)> {
    Some((200, object.to_string()))
}

/// A running job with its worker.
pub(crate) fn job() -> Value {
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-11-21T18:57:00Z", "observedGeneration": 7,
        })
    };
    json!({
        "apiVersion": "tiderace.dev/v1alpha1", "kind": "StreamingJob",
        "metadata": {"name": "orders", "namespace": "shop", "generation": 7, "creationTimestamp": "2026-11-21T17:00:00Z", "uid": "u"},
        "spec": {"sql": {"inline": "SELECT 1"}, "resources": {"cpu": 2, "memory": "2Gi"}},
        "status": {
            "observedGeneration": 7, "phase": "Running", "replicas": 1, "readyReplicas": 1, "epoch": 12,
            "deployed": {
                "generation": 7, "epoch": 12, "revision": "orders-6f9c", "image": "example/tiderace:1", "rendererVersion": 1,
                "engineVersion": "0.1.0", "at": "2026-11-21T18:57:00Z", "startedAt": "2026-11-21T18:57:00Z",
            },
            "restarts": {"count": 1, "windowCount": 1, "lastReason": "TR-3006: the broker\nwent away", "lastTime": "2026-11-21T18:56:00Z"},
            "rows": {"read": 12345, "written": 1234, "dropped": 0},
            "lag": {"seconds": 2},
            "conditions": [
                condition("Ready", "True", "Running", "the worker is ready"),
                condition("Running", "True", "ProcessingData", "rows flow"),
                condition("PlanValid", "True", "Planned", "planned by example/tiderace:1"),
            ],
        },
    })
}

/// Its worker's pod.
pub(crate) fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "orders-0", "namespace": "shop", "creationTimestamp": "2026-11-21T18:57:00Z"},
        "spec": {"nodeName": "node-1", "containers": [{"name": "worker", "image": "example/tiderace:1", "env": [
            {"name": "DB_PASSWORD", "value": "hunter2"},
        ]}]},
        "status": {"phase": "Running", "containerStatuses": [{
            "name": "worker", "ready": true, "restartCount": 1, "image": "example/tiderace:1", "imageID": "",
            "state": {"running": {}},
            "lastState": {"terminated": {"exitCode": 3, "reason": "Error", "message": "TR-3006: the broker\nwent away"}},
        }]},
    })
}

/// The worker's metrics at the `n`-th scrape: 1000 rows each.
pub(crate) fn metrics(n: usize) -> String {
    format!(
        "tiderace_cores 2\n\
         tiderace_rows_in_total{{source=\"orders\"}} {}\n\
         tiderace_rows_out_total{{sink=\"out\"}} {}\n\
         tiderace_lag_seconds{{kind=\"source\",node=\"orders\"}} 1.25\n\
         tiderace_core_busy_seconds_total{{core=\"0\"}} {}\n\
         tiderace_state_bytes{{core=\"0\"}} 2304\n\
         tiderace_state_budget_bytes{{core=\"0\"}} 644245094\n\
         tiderace_memory_peak_bytes 134217728\n\
         tiderace_rows_dropped_total{{cause=\"late\",node=\"W\"}} 7\n",
        1000 * n,
        100 * n,
        0.5 * n as f64
    )
}
