//! Sends spans to a collector, in batches, with bounds on everything.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;

use crate::layer::Span;
use crate::{BATCH_SPANS_MAX, Redact, Source, otlp};

/// How long spans wait for others before they are sent.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long a request may take.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
/// How often failures are logged at most.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// The path that a base address is completed with, by the OTLP specification.
const PATH: &str = "/v1/traces";

/// Where a collector listens: `http://HOST:PORT`, or with a path of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    address: String,
    path: String,
}

/// What is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointError(String);

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' must be http://HOST:PORT: a collector that is near speaks plain HTTP (OTLP/HTTP, port 4318)", self.0)
    }
}

impl std::error::Error for EndpointError {}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let bad = || EndpointError(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(bad)?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(bad());
        }
        let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(4318));
        let path = uri.path().trim_end_matches('/');
        let path = if path.ends_with(PATH) { path.to_owned() } else { format!("{path}{PATH}") };
        Ok(Self { address, path })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.address, self.path)
    }
}

/// Sends what [`crate::Spans`] gathers.
pub struct Exporter {
    endpoint: Endpoint,
    source: Source,
    redact: Option<Redact>,
    receiver: Receiver<Span>,
    /// Spans that found the queue full.
    overflowed: Arc<AtomicU64>,
    /// Spans whose request failed, since it was last logged.
    failed: u64,
    logged: Option<Instant>,
}

impl Exporter {
    pub(crate) fn new(
        endpoint: Endpoint,
        source: Source,
        redact: Option<Redact>,
        receiver: Receiver<Span>,
        overflowed: Arc<AtomicU64>,
    ) -> Self {
        Self { endpoint, source, redact, receiver, overflowed, failed: 0, logged: None }
    }

    /// Sends until `stop`, and then what is left, once.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) {
        tokio::pin!(stop);
        let mut batch = Vec::with_capacity(BATCH_SPANS_MAX);
        let mut is_over = false;
        while !is_over {
            let deadline = Instant::now() + INTERVAL;
            while batch.len() < BATCH_SPANS_MAX {
                tokio::select! {
                    span = self.receiver.recv() => match span {
                        Some(span) => batch.push(span),
                        None => { is_over = true; break }
                    },
                    () = tokio::time::sleep_until(deadline) => break,
                    () = &mut stop => { is_over = true; break }
                }
            }
            self.send(&mut batch).await;
        }
        while let Ok(span) = self.receiver.try_recv() {
            batch.push(span);
            if batch.len() == BATCH_SPANS_MAX {
                self.send(&mut batch).await;
            }
        }
        self.send(&mut batch).await;
    }

    async fn send(&mut self, batch: &mut Vec<Span>) {
        if batch.is_empty() {
            return;
        }
        let body = otlp::body(&self.source, batch, self.redact.as_ref());
        let failure = match tokio::time::timeout(REQUEST_TIME_MAX, post(&self.endpoint, body)).await {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(_) => Some(format!("no answer within {} s", REQUEST_TIME_MAX.as_secs())),
        };
        if failure.is_some() {
            self.failed += batch.len() as u64;
        }
        batch.clear();
        self.tell(failure.as_deref());
    }

    /// Logs what was lost, now and then.
    fn tell(&mut self, failure: Option<&str>) {
        if self.failed == 0 && self.overflowed.load(Ordering::Relaxed) == 0 {
            return;
        }
        if self.logged.is_some_and(|at| at.elapsed() < LOG_INTERVAL) {
            return;
        }
        self.logged = Some(Instant::now());
        let (failed, overflowed) = (std::mem::take(&mut self.failed), self.overflowed.swap(0, Ordering::Relaxed));
        tracing::warn!(endpoint = %self.endpoint, failed, overflowed, reason = failure, "spans were dropped");
    }
}

/// One request; the reason why it failed.
async fn post(endpoint: &Endpoint, body: Vec<u8>) -> Result<(), String> {
    let stream = TcpStream::connect(&endpoint.address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let request = Request::post(&endpoint.path)
        .header("host", &endpoint.address)
        .header("content-type", "application/json")
        .header("connection", "close")
        .body(Body::from(body))
        .map_err(|error| error.to_string())?;
    let call = sender.send_request(request);
    tokio::pin!(call);
    let mut connection = std::pin::pin!(connection);
    let response = tokio::select! {
        done = &mut call => done,
        ended = &mut connection => match ended {
            Ok(()) => call.await,
            Err(error) => Err(error),
        },
    };
    match response.map_err(|error| error.to_string())?.status() {
        StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NO_CONTENT => Ok(()),
        other => Err(format!("it answered {other}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::Mutex;

    use axum::Router;
    use axum::extract::State;
    use axum::http::HeaderMap;
    use axum::routing::post as on_post;
    use serde_json::Value;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::{EVENTS_MAX, QUEUE_SPANS_MAX, export};

    type Received = Arc<Mutex<Vec<(String, Value)>>>;

    /// A collector of OTLP/HTTP on a port of its own.
    async fn collector(status: StatusCode) -> (Endpoint, Received) {
        let received = Received::default();
        let take = move |State(received): State<Received>, headers: HeaderMap, body: String| async move {
            let kind = headers.get("content-type").unwrap().to_str().unwrap().to_owned();
            received.lock().unwrap().push((kind, serde_json::from_str(&body).unwrap()));
            status
        };
        let router = Router::new().route("/v1/traces", on_post(take)).with_state(Arc::clone(&received));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(axum::serve(listener, router).into_future());
        (endpoint, received)
    }

    fn source() -> Source {
        let attributes = vec![("service.instance.id".to_owned(), "pod-1".to_owned())];
        Source { service: "tiderace-operator".to_owned(), version: "1.2.3".to_owned(), attributes }
    }

    fn spans(received: &Received) -> Vec<Value> {
        let all = received.lock().unwrap();
        all.iter().flat_map(|(_, body)| body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().cloned().unwrap()).collect()
    }

    fn value<'a>(span: &'a Value, key: &str) -> &'a Value {
        &span["attributes"].as_array().unwrap().iter().find(|a| a["key"] == key).unwrap()["value"]
    }

    #[tokio::test]
    async fn spans_arrive_with_their_parents_lines_and_errors() {
        let (endpoint, received) = collector(StatusCode::OK).await;
        let redact: Redact = Arc::new(|text: &str| text.replace("hunter2", "***"));
        let (layer, exporter) = export(endpoint, source(), Some(redact));
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let outer = tracing::info_span!("reconcile", job = "orders", attempt = 3_u64, result = tracing::field::Empty);
            let _in_outer = outer.enter();
            outer.record("result", "done");
            {
                let _inner = tracing::info_span!("observe", ratio = 0.5, is_quiet = true).entered();
                tracing::info!(rows = 7, "looked; the password is hunter2");
                tracing::error!("nothing there");
            }
        });
        exporter.run(std::future::ready(())).await;

        let (kind, body) = received.lock().unwrap()[0].clone();
        assert_eq!(kind, "application/json");
        let resource = &body["resourceSpans"][0]["resource"];
        assert_eq!(value(resource, "service.name")["stringValue"], "tiderace-operator");
        assert_eq!(value(resource, "service.instance.id")["stringValue"], "pod-1");
        let spans = spans(&received);
        assert_eq!(spans.iter().map(|s| s["name"].as_str().unwrap()).collect::<Vec<_>>(), ["observe", "reconcile"]);
        let (inner, outer) = (&spans[0], &spans[1]);
        assert_eq!(inner["traceId"], outer["traceId"]);
        assert_eq!(inner["parentSpanId"], outer["spanId"]);
        assert!(outer.get("parentSpanId").is_none());
        assert_eq!((outer["traceId"].as_str().unwrap().len(), outer["spanId"].as_str().unwrap().len()), (32, 16));
        let ns = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
        assert!(ns(outer, "startTimeUnixNano") <= ns(inner, "startTimeUnixNano"));
        assert!(ns(inner, "endTimeUnixNano") <= ns(outer, "endTimeUnixNano"));
        assert_eq!(value(outer, "job")["stringValue"], "orders");
        assert_eq!(value(outer, "attempt")["intValue"], "3");
        assert_eq!(value(outer, "result")["stringValue"], "done");
        assert_eq!(value(inner, "ratio")["doubleValue"], 0.5);
        assert_eq!(value(inner, "is_quiet")["boolValue"], true);
        assert_eq!(inner["events"][0]["name"], "looked; the password is ***");
        assert_eq!(value(&inner["events"][0], "rows")["intValue"], "7");
        assert_eq!((&inner["status"]["code"], &inner["status"]["message"]), (&Value::from(2), &Value::from("nothing there")));
        assert!(outer.get("status").is_none());
    }

    #[tokio::test]
    async fn a_quiet_log_takes_no_spans_away_and_other_peoples_spans_stay_out() {
        use tracing_subscriber::Layer as _;
        use tracing_subscriber::filter::LevelFilter;
        let (endpoint, received) = collector(StatusCode::OK).await;
        let (layer, exporter) = export(endpoint, source(), None);
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::sink).with_filter(LevelFilter::ERROR);
        let subscriber = tracing_subscriber::registry().with(lines).with(layer.with_filter(crate::own_spans()));
        tracing::subscriber::with_default(subscriber, || {
            let _outer = tracing::info_span!("pass").entered();
            let _theirs = tracing::info_span!(target: "hyper", "connection").entered();
            let _fine = tracing::debug_span!("row").entered();
            let _inner = tracing::info_span!("act").entered();
        });
        exporter.run(std::future::ready(())).await;
        let spans = spans(&received);
        assert_eq!(spans.iter().map(|s| s["name"].as_str().unwrap()).collect::<Vec<_>>(), ["act", "pass"]);
        assert_eq!(spans[0]["parentSpanId"], spans[1]["spanId"], "what lies between is passed over");
    }

    #[tokio::test]
    async fn what_is_too_much_is_dropped_and_counted_and_nobody_waits() {
        let (endpoint, received) = collector(StatusCode::OK).await;
        let (layer, exporter) = export(endpoint, source(), None);
        let dropped = layer.dropped();
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let long = tracing::info_span!("long");
            long.in_scope(|| (0..EVENTS_MAX + 5).for_each(|n| tracing::info!(n, "line")));
            drop(long);
            for _ in 0..QUEUE_SPANS_MAX + 9 {
                tracing::info_span!("short").in_scope(|| {});
            }
        });
        assert_eq!(dropped.load(Ordering::Relaxed), 10);
        exporter.run(std::future::ready(())).await;
        let spans = spans(&received);
        assert_eq!(spans.len(), QUEUE_SPANS_MAX);
        assert_eq!(
            (spans[0]["events"].as_array().unwrap().len(), &spans[0]["droppedEventsCount"]),
            (EVENTS_MAX, &Value::from(5))
        );
        assert!(received.lock().unwrap().len() >= QUEUE_SPANS_MAX / BATCH_SPANS_MAX, "in batches");
        let ids: std::collections::BTreeSet<_> = spans.iter().map(|s| s["spanId"].as_str().unwrap().to_owned()).collect();
        assert_eq!(ids.len(), spans.len(), "every span has an id of its own");
    }

    #[tokio::test]
    async fn a_collector_that_refuses_or_is_away_stops_nobody() {
        let (refusing, _) = collector(StatusCode::SERVICE_UNAVAILABLE).await;
        let nobody = "http://127.0.0.1:1".parse().unwrap();
        for endpoint in [refusing, nobody] {
            let (layer, exporter) = export(endpoint, source(), None);
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
                tracing::info_span!("one").in_scope(|| {});
            });
            tokio::time::timeout(Duration::from_secs(30), exporter.run(std::future::ready(()))).await.unwrap();
        }
    }

    #[test]
    fn endpoints_are_plain_http() {
        let path = |text: &str| text.parse::<Endpoint>().map(|e| e.to_string());
        assert_eq!(path("http://collector").unwrap(), "http://collector:4318/v1/traces");
        assert_eq!(path("http://10.0.0.1:99/").unwrap(), "http://10.0.0.1:99/v1/traces");
        assert_eq!(path("http://c:1/otlp").unwrap(), "http://c:1/otlp/v1/traces");
        assert_eq!(path("http://c:1/v1/traces").unwrap(), "http://c:1/v1/traces");
        assert_eq!(path("http://[::1]:4318").unwrap(), "http://[::1]:4318/v1/traces");
        for bad in ["https://c:4318", "c:4318", "", "http://user:pw@c"] {
            assert!(path(bad).unwrap_err().to_string().contains("http://HOST:PORT"), "{bad}");
        }
    }
}
