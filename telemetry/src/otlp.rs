//! The body of a request: `ExportTraceServiceRequest` in the JSON of OTLP (ids in hexadecimal, 64-bit numbers as text, enums as numbers).

use serde_json::{Value as Json, json};

use crate::layer::{Line, Span, Value};
use crate::{Redact, Source};

/// `SPAN_KIND_INTERNAL`.
const KIND_INTERNAL: u8 = 1;
/// `STATUS_CODE_ERROR`.
const STATUS_ERROR: u8 = 2;

/// The request's body.
pub(crate) fn body(source: &Source, spans: &[Span], redact: Option<&Redact>) -> Vec<u8> {
    let clean = |text: &str| redact.map_or_else(|| text.to_owned(), |redact| redact(text));
    let mut resource = vec![
        attribute("service.name", json!({"stringValue": source.service})),
        attribute("service.version", json!({"stringValue": source.version})),
    ];
    resource.extend(source.attributes.iter().map(|(key, value)| attribute(key, json!({"stringValue": value}))));
    let spans: Vec<Json> = spans.iter().map(|span| span_json(span, &clean)).collect();
    let request = json!({"resourceSpans": [{
        "resource": {"attributes": resource},
        "scopeSpans": [{"scope": {"name": "tiderace", "version": source.version}, "spans": spans}],
    }]});
    request.to_string().into_bytes()
}

fn span_json(span: &Span, clean: &impl Fn(&str) -> String) -> Json {
    let mut out = json!({
        "traceId": format!("{:032x}", span.trace),
        "spanId": format!("{:016x}", span.id),
        "name": span.name,
        "kind": KIND_INTERNAL,
        "startTimeUnixNano": span.start_ns.to_string(),
        "endTimeUnixNano": span.end_ns.to_string(),
        "attributes": attributes(&span.attributes, clean),
        "events": span.lines.iter().map(|line| line_json(line, clean)).collect::<Vec<_>>(),
    });
    if let Some(parent) = span.parent {
        out["parentSpanId"] = json!(format!("{parent:016x}"));
    }
    if span.lines_dropped > 0 {
        out["droppedEventsCount"] = json!(span.lines_dropped);
    }
    if let Some(error) = &span.error {
        out["status"] = json!({"code": STATUS_ERROR, "message": clean(error)});
    }
    out
}

fn line_json(line: &Line, clean: &impl Fn(&str) -> String) -> Json {
    json!({
        "timeUnixNano": line.at_ns.to_string(),
        "name": clean(&line.message),
        "attributes": attributes(&line.attributes, clean),
    })
}

fn attributes(all: &[(String, Value)], clean: &impl Fn(&str) -> String) -> Vec<Json> {
    all.iter()
        .map(|(key, value)| {
            let value = match value {
                Value::Text(text) => json!({"stringValue": clean(text)}),
                Value::Integer(number) => json!({"intValue": number.to_string()}),
                // JSON has no number for these.
                Value::Float(number) if !number.is_finite() => json!({"stringValue": number.to_string()}),
                Value::Float(number) => json!({"doubleValue": number}),
                Value::Bool(is) => json!({"boolValue": is}),
            };
            attribute(key, value)
        })
        .collect()
}

fn attribute(key: &str, value: Json) -> Json {
    json!({"key": key, "value": value})
}
