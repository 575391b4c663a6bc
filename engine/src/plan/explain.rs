//! EXPLAIN: each node with what it does, its changes, keys, time, what it keeps, and how rows reach it.

use std::fmt::Write as _;

use arrow::datatypes::Schema;
use serde::Serialize;

use super::stream::{ChangeKind, StateBound};
use crate::runtime::graph::{Graph, Route};
use crate::sql::types::sql_name;

/// The longest line in a box of the DOT form; a picture is no place for more.
const DOT_CHARACTERS_MAX: usize = 80;

/// In which form a plan is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExplainFormat {
    /// A tree, for people.
    Text,
    /// For programs.
    Json,
    /// For Graphviz.
    Dot,
}

/// What is told of a node.
#[derive(Clone, Debug)]
pub(super) struct NodeInfo {
    pub name: String,
    pub kind: &'static str,
    pub details: Vec<String>,
    pub changes: ChangeKind,
    pub keys: Vec<String>,
    pub time: Option<String>,
    pub state: Option<String>,
    pub bound: StateBound,
    pub shown: Vec<String>,
}

impl NodeInfo {
    pub(super) fn new(kind: &'static str) -> Self {
        Self {
            name: String::new(),
            kind,
            details: Vec::new(),
            changes: ChangeKind::Append,
            keys: Vec::new(),
            time: None,
            state: None,
            bound: StateBound::None,
            shown: Vec::new(),
        }
    }

    /// All that is shown of it and may quote the SQL.
    pub(super) fn texts(&mut self) -> impl Iterator<Item = &mut String> {
        self.details.iter_mut().chain(&mut self.keys).chain(&mut self.time).chain(&mut self.state).chain(&mut self.shown)
    }

    pub(super) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.details.push(detail.into());
        self
    }

    pub(super) fn kind(mut self, kind: ChangeKind) -> Self {
        self.changes = kind;
        self
    }

    pub(super) fn keys(mut self, keys: Vec<String>) -> Self {
        self.keys = keys;
        self
    }

    pub(super) fn time(mut self, time: impl Into<String>) -> Self {
        self.time = Some(time.into());
        self
    }

    pub(super) fn state(mut self, state: impl Into<String>, bound: StateBound) -> Self {
        self.state = Some(state.into());
        self.bound = bound;
        self
    }

    /// What its steps do, a line each.
    pub(super) fn notes(mut self, notes: &[String]) -> Self {
        self.details.extend(notes.iter().cloned());
        self
    }

    /// What its output columns are called, where that is not their name.
    pub(super) fn shown(mut self, shown: &[String]) -> Self {
        self.shown = shown.to_vec();
        self
    }

    fn column(&self, at: usize, schema: &Schema) -> String {
        self.shown.get(at).cloned().unwrap_or_else(|| schema.field(at).name().clone())
    }

    fn bound_text(&self) -> String {
        match &self.bound {
            StateBound::None => "none".into(),
            StateBound::Watermark(how) | StateBound::Fixed(how) => format!("bounded: {how}"),
            StateBound::Keys(how) => format!("unbounded: {how}"),
        }
    }
}

#[derive(Serialize)]
struct JsonNode<'a> {
    id: u32,
    name: &'a str,
    kind: &'a str,
    inputs: Vec<JsonInput>,
    changelog: &'a str,
    keys: &'a [String],
    time: Option<&'a str>,
    state: Option<&'a str>,
    bounded: Option<bool>,
    bound: String,
    details: &'a [String],
    columns: Vec<JsonColumn>,
}

#[derive(Serialize)]
struct JsonInput {
    from: u32,
    port: usize,
    exchange: String,
}

#[derive(Serialize)]
struct JsonColumn {
    name: String,
    r#type: String,
    nullable: bool,
}

fn changelog(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Append => "append-only",
        ChangeKind::Retract => "retract",
    }
}

fn route(graph: &Graph, infos: &[NodeInfo], node: usize, input: usize) -> String {
    let edge = &graph.nodes[node].inputs[input];
    let from = edge.from.0 as usize;
    match &edge.route {
        Route::Local => "local".into(),
        Route::Single => "single core".into(),
        Route::Hash(columns) => {
            // Late and rejected rows have columns of their own, and never cross by key.
            let names: Vec<String> = columns.iter().map(|c| infos[from].column(*c, &graph.nodes[from].schema)).collect();
            format!("hash({})", names.join(", "))
        }
    }
}

fn port(port: usize) -> &'static str {
    match port {
        crate::operators::PORT_LATE => " (late rows)",
        crate::operators::PORT_REJECTED => " (rejected rows)",
        _ => "",
    }
}

/// Renders a plan.
pub(super) fn render(graph: &Graph, infos: &[NodeInfo], format: ExplainFormat) -> String {
    match format {
        ExplainFormat::Text => text(graph, infos),
        ExplainFormat::Json => json(graph, infos),
        ExplainFormat::Dot => dot(graph, infos),
    }
}

fn text(graph: &Graph, infos: &[NodeInfo]) -> String {
    let mut out = String::new();
    let read: std::collections::HashSet<_> = graph.nodes.iter().flat_map(|n| n.inputs.iter().map(|i| i.from)).collect();
    let mut seen = vec![false; graph.nodes.len()];
    for node in &graph.nodes {
        if !read.contains(&node.id) {
            tree(graph, infos, node.id.0 as usize, 0, "", &mut seen, &mut out);
        }
    }
    out
}

fn tree(graph: &Graph, infos: &[NodeInfo], at: usize, depth: usize, arrived: &str, seen: &mut [bool], out: &mut String) {
    let info = &infos[at];
    let pad = "  ".repeat(depth);
    let _ = write!(out, "{pad}{}", info.name);
    if seen[at] {
        let _ = writeln!(out, "{arrived}  (shown above)");
        return;
    }
    seen[at] = true;
    let _ = write!(out, "{arrived}  [{}]", changelog(info.changes));
    let _ = writeln!(out);
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(out, "{pad}  · {label}{value}");
    };
    for detail in &info.details {
        line("", detail);
    }
    if !info.keys.is_empty() {
        line("keys: ", &info.keys.join(", "));
    }
    if let Some(time) = &info.time {
        line("time: ", time);
    }
    if let Some(state) = &info.state {
        line("state: ", &format!("{state}; {}", info.bound_text()));
    }
    for (i, input) in graph.nodes[at].inputs.iter().enumerate() {
        let how = match &input.route {
            Route::Local => port(input.port).to_owned(),
            _ => format!("  ⇐ exchange {}{}", route(graph, infos, at, i), port(input.port)),
        };
        tree(graph, infos, input.from.0 as usize, depth + 1, &how, seen, out);
    }
}

fn json(graph: &Graph, infos: &[NodeInfo]) -> String {
    let nodes: Vec<JsonNode<'_>> = graph
        .nodes
        .iter()
        .zip(infos)
        .enumerate()
        .map(|(at, (node, info))| JsonNode {
            id: node.id.0,
            name: &info.name,
            kind: info.kind,
            inputs: node
                .inputs
                .iter()
                .enumerate()
                .map(|(i, input)| JsonInput { from: input.from.0, port: input.port, exchange: route(graph, infos, at, i) })
                .collect(),
            changelog: changelog(info.changes),
            keys: &info.keys,
            time: info.time.as_deref(),
            state: info.state.as_deref(),
            bounded: info.state.as_ref().map(|_| !matches!(info.bound, StateBound::Keys(_))),
            bound: info.bound_text(),
            details: &info.details,
            columns: node
                .schema
                .fields()
                .iter()
                .enumerate()
                .map(|(column, f)| JsonColumn {
                    name: info.column(column, &node.schema),
                    r#type: sql_name(f),
                    nullable: f.is_nullable(),
                })
                .collect(),
        })
        .collect();
    serde_json::to_string_pretty(&serde_json::json!({ "nodes": nodes })).unwrap_or_else(|e| format!("{{\"error\": \"{e}\"}}"))
}

fn dot(graph: &Graph, infos: &[NodeInfo]) -> String {
    let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let mut out = String::from("digraph job {\n  rankdir=BT;\n  node [shape=box, fontname=\"monospace\", fontsize=10];\n");
    for (node, info) in graph.nodes.iter().zip(infos) {
        let mut label = format!("{}\\n{}", quote(&info.name), changelog(info.changes));
        let labelled = |label: &str, text: &str| format!("{label}: {text}");
        let keys = (!info.keys.is_empty()).then(|| labelled("keys", &info.keys.join(", ")));
        let time = info.time.as_ref().map(|time| labelled("time", time));
        let state = info.state.as_ref().map(|state| labelled("state", &format!("{state}; {}", info.bound_text())));
        for detail in info.details.iter().cloned().chain(keys).chain(time).chain(state) {
            let short: String = detail.chars().take(DOT_CHARACTERS_MAX).collect();
            let more = if short.len() < detail.len() { "…" } else { "" };
            let _ = write!(label, "\\n{}{more}", quote(&short));
        }
        let _ = writeln!(out, "  n{} [label=\"{label}\"];", node.id);
    }
    for (at, node) in graph.nodes.iter().enumerate() {
        for (i, input) in node.inputs.iter().enumerate() {
            let _ = writeln!(
                out,
                "  n{} -> n{} [label=\"{}{}\"];",
                input.from,
                node.id,
                quote(&route(graph, infos, at, i)),
                port(input.port)
            );
        }
    }
    out.push_str("}\n");
    out
}
