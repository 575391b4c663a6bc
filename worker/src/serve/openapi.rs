//! The description of the admin API, made from the table of its calls and the wire types themselves.

use std::fmt::Write as _;
use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};
use tiderace_crds::admin::{
    EPOCH_HEADER, ErrorReply, ExceptionsReply, PlanCheckReply, PlanCheckRequest, StatusReply, StopRequest, TOKEN_HEADER,
    VersionReply,
};

/// One call.
struct Call {
    method: &'static str,
    path: &'static str,
    doc: &'static str,
    /// Parameters of the query, all numbers, with their meaning.
    query: &'static [(&'static str, &'static str)],
    request: Option<fn(&mut SchemaGenerator) -> Value>,
    success: u16,
    reply: fn(&mut SchemaGenerator) -> Value,
    /// Other statuses, with their meaning.
    refusals: &'static [(u16, &'static str)],
    /// Whether a planner answers it too.
    planner: bool,
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

const EPOCH: (u16, &str) = (409, "Another deploy epoch is meant.");
const EPOCH_OR_STALE: (u16, &str) = (409, "Another deploy epoch is meant, or an operator with a higher token has called before.");

const CALLS: &[Call] = &[
    Call {
        method: "get",
        path: "/v1/version",
        doc: "What the worker was built from.",
        query: &[],
        request: None,
        success: 200,
        reply: schema::<VersionReply>,
        refusals: &[EPOCH],
        planner: true,
    },
    Call {
        method: "get",
        path: "/v1/status",
        doc: "What the job is doing, and its counts since the start.",
        query: &[],
        request: None,
        success: 200,
        reply: schema::<StatusReply>,
        refusals: &[EPOCH],
        planner: false,
    },
    Call {
        method: "post",
        path: "/v1/plan:check",
        doc: "Plans a job that is not run. A job that can't be run is a success of the call: `valid` is false, and `errors` say why. \
              Secrets are taken as given when the manifest names them.",
        query: &[],
        request: Some(schema::<PlanCheckRequest>),
        success: 200,
        reply: schema::<PlanCheckReply>,
        refusals: &[
            (400, "The body is not as described."),
            (408, "The plan took longer than 30 s."),
            EPOCH_OR_STALE,
            (413, "The body is larger than 4 MiB."),
            (429, "16 plans wait for their turn."),
        ],
        planner: true,
    },
    Call {
        method: "post",
        path: "/v1/stop",
        doc: "Stops the job. Answers at once; `state` in the status tells when it is done: Stopped. The process stays, and doesn't run \
              the job again in this deploy epoch. An order with the `operationId` of the last one does nothing.",
        query: &[],
        request: Some(schema::<StopRequest>),
        success: 202,
        reply: schema::<StatusReply>,
        refusals: &[(400, "The body is not as described."), EPOCH_OR_STALE],
        planner: false,
    },
    Call {
        method: "get",
        path: "/v1/exceptions",
        doc: "What went wrong: one entry for each operator and code, the one that came last at the end, at most 100 (`truncated` says that \
              older ones had to make room). Each tells when it first and last came, how often, its last message (for a row, the file or topic and \
              line it came from; never the row itself), and its last 16 occurrences: each failure of the job is one, refused rows within a minute \
              are one. They are kept in the working directory: the process that the kubelet starts after a failure tells them too.",
        query: &[("since", "Only what came up at this time or later, Unix milliseconds.")],
        request: None,
        success: 200,
        reply: schema::<ExceptionsReply>,
        refusals: &[(400, "`since` is no number, or there is another parameter."), EPOCH],
        planner: false,
    },
];

/// The description as OpenAPI 3.1.
fn document() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
        .into_generator();
    let mut paths = serde_json::Map::new();
    let error = schema::<ErrorReply>(&mut generator);
    for call in CALLS {
        let content = |schema: Value| json!({"application/json": {"schema": schema}});
        let mut responses = serde_json::Map::new();
        let reply = (call.reply)(&mut generator);
        responses.insert(call.success.to_string(), json!({"description": "Done.", "content": content(reply)}));
        for (status, meaning) in call.refusals {
            responses.insert(status.to_string(), json!({"description": meaning, "content": content(error.clone())}));
        }
        let mut operation = json!({
            "summary": call.doc,
            "parameters": [
                {
                    "name": EPOCH_HEADER, "in": "header", "required": false,
                    "description": "The deploy epoch that the caller means.",
                    "schema": {"type": "integer", "minimum": 0},
                },
                {
                    "name": TOKEN_HEADER, "in": "header", "required": false,
                    "description": "The fencing token of an operator: an order with a lower one than was heard before is refused.",
                    "schema": {"type": "integer", "minimum": 0},
                },
            ],
            "responses": responses,
        });
        if let Some(parameters) = operation["parameters"].as_array_mut() {
            parameters.extend(call.query.iter().map(|(name, meaning)| {
                json!({"name": name, "in": "query", "required": false, "description": meaning, "schema": {"type": "integer", "format": "int64"}})
            }));
        }
        if let Some(request) = call.request {
            operation["requestBody"] = json!({"required": true, "content": content(request(&mut generator))});
        }
        paths.insert(call.path.to_owned(), json!({call.method: operation}));
    }
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tiderace worker: admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "JSON over HTTPS; both sides have a certificate of the job's CA. Fields are only ever added.",
            "license": {"name": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

/// [`document`] as text.
#[must_use]
pub fn document_text() -> String {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let mut text = serde_json::to_string_pretty(&document()).unwrap_or_default();
        text.push('\n');
        text
    });
    TEXT.clone()
}

/// The reference page.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::new();
    for call in CALLS {
        let also = if call.planner { " A planner answers it too." } else { "" };
        let _infallible = writeln!(text, "## `{} {}`\n\n{}{also}\n", call.method.to_uppercase(), call.path, call.doc);
        for (name, meaning) in call.query {
            let _infallible = writeln!(text, "`?{name}=`: {meaning}\n");
        }
        let _infallible = writeln!(text, "| status | |\n|---|---|\n| {} | Done. |", call.success);
        for (status, meaning) in call.refusals {
            let _infallible = writeln!(text, "| {status} | {meaning} |");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_reference_leads_to_a_schema() {
        fn visit(value: &Value, root: &Value) {
            match value {
                Value::Object(map) => {
                    if let Some(target) = map.get("$ref").and_then(Value::as_str) {
                        assert!(root.pointer(target.trim_start_matches('#')).is_some(), "{target}");
                    }
                    map.values().for_each(|inner| visit(inner, root));
                }
                Value::Array(items) => items.iter().for_each(|inner| visit(inner, root)),
                _ => {}
            }
        }
        let document = document();
        visit(&document, &document);
        assert!(document.pointer("/components/schemas/StatusReply/properties/planHash").is_some());
        assert_eq!(document["paths"].as_object().unwrap().len(), CALLS.len());
    }
}
