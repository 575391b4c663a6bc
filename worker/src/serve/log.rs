//! The log of a pod: JSON lines on stderr, without a secret's value whatever a library writes.

use std::io::{self, Write};
use std::sync::{Arc, OnceLock};

use tiderace_engine::connect::Secrets;
use tiderace_telemetry::{Endpoint, Exporter, Redact, Source};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::command::ServeArgs;

/// Where the log learns what it must not show.
pub(crate) type Hidden = Arc<OnceLock<Secrets>>;

/// Sends what is logged to stderr from now on, and spans to the collector of `arguments`, by the exporter that is given back. `Err` is the reason why
/// the filter is none. Without effect in a process that logs already.
pub(crate) fn start(arguments: &ServeArgs, hidden: Hidden) -> Result<Option<Exporter>, String> {
    let filter = &arguments.log_filter;
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("'{filter}' is no log filter: {error}"))?;
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(Redacting { hidden: hidden.clone() });
    let export = |endpoint: Endpoint| {
        let redact: Redact =
            Arc::new(move |text: &str| hidden.get().map_or_else(|| text.to_owned(), |secrets| secrets.redact(text)));
        tiderace_telemetry::export(endpoint, source(&arguments.otlp_attributes), Some(redact))
    };
    let (spans, exporter) = arguments.otlp_endpoint.clone().map(export).unzip();
    let spans = spans.map(|spans| spans.with_filter(tiderace_telemetry::own_spans()));
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans);
    let _already_logging = tracing::subscriber::set_global_default(subscriber);
    Ok(exporter)
}

/// Who the spans come from. `attributes` as OpenTelemetry writes them; what is no `KEY=VALUE` is left out.
fn source(attributes: &str) -> Source {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let given = attributes.split(',').filter_map(|pair| pair.split_once('='));
    let mut attributes = vec![("service.instance.id".to_owned(), host.trim().to_owned())];
    attributes.extend(given.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())));
    Source { service: "tiderace".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned(), attributes }
}

struct Redacting {
    hidden: Hidden,
}

/// One event, written as a whole.
struct Line<'a> {
    hidden: &'a Hidden,
}

impl<'a> MakeWriter<'a> for Redacting {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { hidden: &self.hidden }
    }
}

impl Write for Line<'_> {
    /// The subscriber calls this once an event, with all of its text.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut out = io::stderr().lock();
        match (self.hidden.get(), std::str::from_utf8(bytes)) {
            (Some(secrets), Ok(text)) => out.write_all(secrets.redact(text).as_bytes())?,
            _ => out.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}
