//! Export of tracing spans by OTLP over HTTP, as JSON (OpenTelemetry Protocol 1.x): what the operator and the worker do, for a collector.
//!
//! ```text
//! tracing spans ─▶ Spans (a layer) ─ bounded queue ─▶ Exporter ─ POST /v1/traces ─▶ collector
//! ```
//! Nothing waits for the collector: spans that find the queue full, or whose request fails, are dropped and counted. It knows no TLS: a collector
//! runs beside the pods, as an agent of the node or of the namespace, and speaks to the outside itself. It knows neither Kubernetes nor the engine.
#![forbid(unsafe_code)]

mod exporter;
mod layer;
mod otlp;

pub use exporter::{Endpoint, EndpointError, Exporter};
pub use layer::Spans;

/// Spans that wait for the exporter; more are dropped.
pub const QUEUE_SPANS_MAX: usize = 2048;
/// Spans of one request.
pub const BATCH_SPANS_MAX: usize = 512;
/// Log lines that a span carries; of more only the number.
pub const EVENTS_MAX: usize = 32;
/// Attributes of a span or an event.
pub const ATTRIBUTES_MAX: usize = 32;
/// Bytes of a text in an attribute, a name or a message.
pub const TEXT_BYTES_MAX: usize = 2048;

/// Who the spans come from: `service.name`, and further attributes of the resource.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// `service.name`.
    pub service: String,
    /// `service.version`.
    pub version: String,
    /// Others, such as `service.instance.id` and `k8s.namespace.name`.
    pub attributes: Vec<(String, String)>,
}

/// Takes out of a text what nobody may see. It is applied to everything that a span says.
pub type Redact = std::sync::Arc<dyn Fn(&str) -> String + Send + Sync>;

/// The spans that a collector should have: the product's own, of level INFO and above. A filter of the [`Spans`] layer alone, so that a log that shows
/// only warnings takes no spans away.
#[must_use]
pub fn own_spans() -> tracing_subscriber::filter::Targets {
    tracing_subscriber::filter::Targets::new().with_target("tiderace", tracing::Level::INFO)
}

/// The layer for a subscriber, and the exporter that sends what it gathers. The exporter must be run, or all is dropped.
#[must_use]
pub fn export(endpoint: Endpoint, source: Source, redact: Option<Redact>) -> (Spans, Exporter) {
    let (sender, receiver) = tokio::sync::mpsc::channel(QUEUE_SPANS_MAX);
    let spans = Spans::new(sender);
    let exporter = Exporter::new(endpoint, source, redact, receiver, spans.dropped());
    (spans, exporter)
}
