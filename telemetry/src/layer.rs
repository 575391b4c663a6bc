//! The layer: a span's life, from the subscriber's calls.

use std::fmt::{Debug, Write as _};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::Sender;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::{ATTRIBUTES_MAX, EVENTS_MAX, TEXT_BYTES_MAX};

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
}

/// A log line inside a span.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    pub at_ns: u64,
    pub message: String,
    pub attributes: Vec<(String, Value)>,
}

/// A span that is over.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Span {
    pub trace: u128,
    pub id: u64,
    pub parent: Option<u64>,
    pub name: &'static str,
    pub start_ns: u64,
    pub end_ns: u64,
    pub attributes: Vec<(String, Value)>,
    pub lines: Vec<Line>,
    pub lines_dropped: u32,
    /// The last error that was logged in it.
    pub error: Option<String>,
}

/// Gathers spans for an [`crate::Exporter`]; a layer of a `tracing_subscriber` registry.
#[derive(Debug)]
pub struct Spans {
    sender: Sender<Span>,
    dropped: Arc<AtomicU64>,
    random: RandomState,
    made: AtomicU64,
}

impl Spans {
    pub(crate) fn new(sender: Sender<Span>) -> Self {
        Self { sender, dropped: Arc::default(), random: RandomState::new(), made: AtomicU64::new(0) }
    }

    /// How many found the queue full.
    pub(crate) fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }

    /// A number that no other span has, in all likelihood: a keyed hash of a count, its key random by process. Never 0, which means "none".
    fn id(&self) -> u64 {
        self.random.hash_one(self.made.fetch_add(1, Ordering::Relaxed)).max(1)
    }
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn short(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

/// Collects fields; `message` apart.
#[derive(Default)]
struct Fields {
    message: Option<String>,
    attributes: Vec<(String, Value)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.message = Some(match value {
                Value::Text(text) => text,
                Value::Integer(number) => number.to_string(),
                Value::Float(number) => number.to_string(),
                Value::Bool(is) => is.to_string(),
            });
        } else if self.attributes.len() < ATTRIBUTES_MAX {
            self.attributes.push((field.name().to_owned(), value));
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        let _infallible = write!(text, "{value:?}");
        self.add(field, Value::Text(short(text)));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, Value::Text(short(value.to_owned())));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::Integer(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, i64::try_from(value).map_or_else(|_| Value::Text(value.to_string()), Value::Integer));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Value::Float(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::Bool(value));
    }
}

impl<S> Layer<S> for Spans
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let parent = span.parent().and_then(|parent| parent.extensions().get::<Span>().map(|p| (p.trace, p.id)));
        let (trace, parent) = match parent {
            Some((trace, parent)) => (trace, Some(parent)),
            None => ((u128::from(self.id()) << 64) | u128::from(self.id()), None),
        };
        let start_ns = now_ns();
        span.extensions_mut().insert(Span {
            trace,
            id: self.id(),
            parent,
            name: span.name(),
            start_ns,
            end_ns: start_ns,
            attributes: fields.attributes,
            lines: Vec::new(),
            lines_dropped: 0,
            error: None,
        });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        values.record(&mut fields);
        let mut extensions = span.extensions_mut();
        let Some(data) = extensions.get_mut::<Span>() else { return };
        for (name, value) in fields.attributes {
            match data.attributes.iter().position(|(known, _)| *known == name) {
                Some(at) => data.attributes[at].1 = value,
                None if data.attributes.len() < ATTRIBUTES_MAX => data.attributes.push((name, value)),
                None => {}
            }
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(span) = context.event_span(event) else { return };
        let mut extensions = span.extensions_mut();
        let Some(data) = extensions.get_mut::<Span>() else { return };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = fields.message.unwrap_or_else(|| event.metadata().name().to_owned());
        if *event.metadata().level() == Level::ERROR {
            data.error = Some(message.clone());
        }
        if data.lines.len() < EVENTS_MAX {
            data.lines.push(Line { at_ns: now_ns(), message, attributes: fields.attributes });
        } else {
            data.lines_dropped = data.lines_dropped.saturating_add(1);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(mut data) = span.extensions_mut().remove::<Span>() else { return };
        data.end_ns = now_ns().max(data.start_ns);
        if self.sender.try_send(data).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}
