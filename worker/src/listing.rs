//! `tiderace connectors` and `tiderace functions`: the tables that the code itself uses, for people, machines and the reference.

use serde_json::{Value, json};
use tiderace_engine::connect::table_options::{TABLE_OPTIONS, WATERMARK_OPTIONS, all_options};
use tiderace_engine::connect::{ConnectorSpec, OptionSpec, OptionType, connector, connectors};
use tiderace_engine::format::{self, FormatSpec, formats};
use tiderace_engine::functions;
use tiderace_engine::operators::aggregate::AggregateFunction;
use tiderace_engine::plan::SETTINGS;

use crate::command::ListFormat;
use crate::text_table::TextTable;

/// All connectors, or all about the one called `name`; `Err` names those there are.
pub fn connectors_text(name: Option<&str>, format: ListFormat) -> Result<String, String> {
    let Some(name) = name else {
        return Ok(match format {
            ListFormat::Text => all_text(),
            ListFormat::Json => pretty(&connectors().iter().map(spec_json).collect()),
            ListFormat::Markdown => connectors().iter().map(spec_markdown).collect::<Vec<_>>().join("\n"),
        });
    };
    if let Some(spec) = format::format(name) {
        return Ok(match format {
            ListFormat::Text => format_text(spec),
            ListFormat::Json => pretty(&format_json(spec)),
            ListFormat::Markdown => format_markdown(spec),
        });
    }
    let spec = connector(name).ok_or_else(|| {
        let names: Vec<_> = connectors().iter().map(|spec| spec.name).collect();
        let formats: Vec<_> = formats().iter().map(|spec| spec.name).collect();
        format!("the connectors are: {}; the formats are: {}", names.join(", "), formats.join(", "))
    })?;
    Ok(match format {
        ListFormat::Text => spec_text(spec),
        ListFormat::Json => pretty(&spec_json(spec)),
        ListFormat::Markdown => spec_markdown(spec),
    })
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn all_text() -> String {
    let mut table = TextTable::new(["connector", "can be", "what it is"]);
    for spec in connectors() {
        table.row([spec.name, roles(spec), spec.doc]);
    }
    let mut of_formats = TextTable::new(["format", "rows are", "what it is"]);
    for spec in formats() {
        of_formats.row([spec.name, growth(spec), spec.doc]);
    }
    format!("{}\n{}\nAll about one: tiderace connectors NAME\n", table.plain(), of_formats.plain())
}

fn roles(spec: &ConnectorSpec) -> &'static str {
    match (spec.source.is_some(), spec.sink.is_some()) {
        (true, true) => "source, sink",
        (true, false) => "source",
        (false, true) => "sink",
        (false, false) => "–",
    }
}

fn growth(spec: &FormatSpec) -> &'static str {
    if spec.is_append_only { "added" } else { "added and taken back" }
}

fn format_text(spec: &FormatSpec) -> String {
    let options = options_text(spec.options) + &options_text(format::COMMON_OPTIONS);
    format!("format {} (rows are {})\n{}\n\n{options}", spec.name, growth(spec), spec.doc)
}

fn format_json(spec: &FormatSpec) -> Value {
    let options: Vec<_> = spec.options.iter().chain(format::COMMON_OPTIONS).map(option_json).collect();
    json!({"format": spec.name, "doc": spec.doc, "append_only": spec.is_append_only, "options": options})
}

fn format_markdown(spec: &FormatSpec) -> String {
    let options: Vec<_> = spec.options.iter().chain(format::COMMON_OPTIONS).copied().collect();
    let doc = spec.doc.trim_end_matches('.');
    format!("## Format `{}`\n\n{doc}; rows are {}.\n{}", spec.name, growth(spec), options_markdown(&options))
}

/// Connectors, then formats, for the reference.
#[must_use]
pub fn everything_markdown() -> String {
    let every = format!(
        "## Every table\n\nThese options go with any connector.\n{}\nThese go with any connector that is a source, for a table with a WATERMARK.\n{}",
        options_markdown(TABLE_OPTIONS),
        options_markdown(WATERMARK_OPTIONS)
    );
    let sections = connectors().iter().map(spec_markdown).chain(formats().iter().map(format_markdown));
    std::iter::once(every).chain(sections).collect::<Vec<_>>().join("\n")
}

/// The keys of `SET`, `--set` and `config`, for the reference.
#[must_use]
pub fn settings_markdown() -> String {
    format!(
        "`SET 'key' = 'value'` in SQL wins over `--set key=value`, which wins over `config` in the manifest.\n{}",
        options_markdown(SETTINGS)
    )
}

/// A function as it is listed.
struct Listed {
    family: String,
    name: String,
    signature: String,
    aliases: Vec<String>,
    doc: String,
}

/// Every function, by family, then by name.
fn all_functions() -> Vec<Listed> {
    let scalar = functions::list().into_iter().map(|f| Listed {
        family: f.family,
        name: f.name,
        signature: f.signature,
        aliases: f.aliases,
        doc: without_links(&f.doc),
    });
    let aggregate = AggregateFunction::NAMES.iter().map(|(function, names)| Listed {
        family: "aggregate".to_owned(),
        name: function.name().to_owned(),
        signature: function.usage().0.to_owned(),
        aliases: names[1..].iter().map(|n| (*n).to_owned()).collect(),
        doc: function.usage().1.to_owned(),
    });
    let mut all: Vec<_> = scalar.chain(aggregate).collect();
    all.sort_by(|a, b| (&a.family, &a.name).cmp(&(&b.family, &b.name)));
    all
}

/// `[text](page)` as `text`: the pages are another project's.
fn without_links(doc: &str) -> String {
    let mut out = String::new();
    let mut rest = doc;
    while let Some((before, link)) = rest.split_once("](") {
        let (Some(open), Some(close)) = (before.rfind('['), link.find(')')) else { break };
        out += &before[..open];
        out += &before[open + 1..];
        rest = &link[close + 1..];
    }
    out + rest
}

/// All functions.
#[must_use]
pub fn functions_text(format: ListFormat) -> String {
    let all = all_functions();
    match format {
        ListFormat::Text => {
            let mut table = TextTable::new(["family", "function", "also", "what it does"]).for_terminal();
            for f in &all {
                table.row([f.family.as_str(), &f.signature, &f.aliases.join(", "), &f.doc]);
            }
            table.plain()
        }
        ListFormat::Json => pretty(
            &all.iter()
                .map(
                    |f| json!({"name": f.name, "family": f.family, "signature": f.signature, "aliases": f.aliases, "doc": f.doc}),
                )
                .collect(),
        ),
        ListFormat::Markdown => {
            let mut out = String::new();
            let mut family = "";
            for f in &all {
                if f.family != family {
                    family = &f.family;
                    out += &format!(
                        "{}## {family}\n\n| function | also | |\n|---|---|---|\n",
                        if out.is_empty() { "" } else { "\n" }
                    );
                }
                out += &format!("| `{}` | {} | {} |\n", cell(&f.signature), cell(&f.aliases.join(", ")), cell(&f.doc));
            }
            out
        }
    }
}

fn kind_name(kind: OptionType) -> String {
    match kind {
        OptionType::Text => "text".to_owned(),
        OptionType::Bool => "true, false".to_owned(),
        OptionType::Integer => "integer".to_owned(),
        OptionType::Number => "number".to_owned(),
        OptionType::Duration => "duration".to_owned(),
        OptionType::Bytes => "size".to_owned(),
        OptionType::Choice(words) => words.join(", "),
    }
}

fn default_name(option: &OptionSpec) -> &'static str {
    match (option.required, option.default) {
        (true, _) => "required",
        (false, default) => default.unwrap_or("–"),
    }
}

fn spec_text(spec: &ConnectorSpec) -> String {
    let mut out = format!("{} ({})\n{}\n", spec.name, roles(spec), spec.doc);
    if spec.takes_format {
        out += "It takes a 'format'.\n";
    }
    out += "\n";
    out += &options_text(spec.options);
    out += &format!("\nOf every table:\n{}", options_text(TABLE_OPTIONS));
    if spec.source.is_some() {
        out += &format!("\nOf every table with a WATERMARK:\n{}", options_text(WATERMARK_OPTIONS));
    }
    if spec.takes_partitions {
        out += "\nIts tables may be PARTITIONED BY columns.\n";
    }
    if !spec.metadata.is_empty() {
        let mut table = TextTable::new(["METADATA FROM", "type"]);
        for (key, sql_type) in spec.metadata {
            table.row([format!("'{key}'"), (*sql_type).to_owned()]);
        }
        out += &format!("\n{}", table.plain());
    }
    out
}

fn options_text(options: &[OptionSpec]) -> String {
    let mut out = String::new();
    for option in options {
        out +=
            &format!("  '{}'  {}, default: {}\n      {}\n", option.key, kind_name(option.kind), default_name(option), option.doc);
    }
    out
}

fn option_json(option: &OptionSpec) -> Value {
    json!({
        "key": option.key, "type": kind_name(option.kind), "default": option.default, "required": option.required, "doc": option.doc,
    })
}

fn spec_json(spec: &ConnectorSpec) -> Value {
    let metadata = |(key, sql_type): &(&str, &str)| json!({"key": key, "type": sql_type});
    json!({
        "name": spec.name,
        "doc": spec.doc,
        "source": spec.source.is_some(),
        "sink": spec.sink.is_some(),
        "takes_format": spec.takes_format,
        "takes_partitions": spec.takes_partitions,
        "options": all_options(spec, None).map(|option| option_json(&option)).collect::<Vec<_>>(),
        "metadata": spec.metadata.iter().map(metadata).collect::<Vec<_>>(),
    })
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn options_markdown(options: &[OptionSpec]) -> String {
    if options.is_empty() {
        return String::new();
    }
    let mut out = "\n| option | type | default | |\n|---|---|---|---|\n".to_owned();
    for option in options {
        let (kind, default) = (kind_name(option.kind), default_name(option));
        out += &format!("| `{}` | {} | {} | {} |\n", option.key, cell(&kind), cell(default), cell(option.doc));
    }
    out
}

fn spec_markdown(spec: &ConnectorSpec) -> String {
    let mut out = format!("## `{}`\n\n{} ({}).\n", spec.name, spec.doc.trim_end_matches('.'), roles(spec));
    if spec.takes_format {
        out += "It takes a `'format'`, whose options come on top.\n";
    }
    out += &options_markdown(spec.options);
    if !spec.metadata.is_empty() {
        out += "\n| `METADATA FROM` | type |\n|---|---|\n";
        for (key, sql_type) in spec.metadata {
            out += &format!("| `'{key}'` | `{sql_type}` |\n");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_connector_is_listed_in_every_form() {
        let text = connectors_text(None, ListFormat::Text).unwrap();
        let markdown = connectors_text(None, ListFormat::Markdown).unwrap();
        let page = everything_markdown();
        let json: Value = serde_json::from_str(&connectors_text(None, ListFormat::Json).unwrap()).unwrap();
        assert_eq!(json.as_array().unwrap().len(), connectors().len());
        for spec in connectors() {
            assert!(text.contains(spec.name) && markdown.contains(&format!("## `{}`", spec.name)), "{}", spec.name);
            let one = connectors_text(Some(spec.name), ListFormat::Text).unwrap();
            for option in all_options(spec, None) {
                assert!(one.contains(&format!("'{}'", option.key)) && page.contains(option.key), "{}", option.key);
            }
        }
    }

    #[test]
    fn links_to_other_projects_become_text() {
        assert_eq!(without_links("As [there](a.md#b), or [1] (x)."), "As there, or [1] (x).");
        assert_eq!(without_links("a](b"), "a](b");
    }

    #[test]
    fn an_unknown_connector_names_those_there_are() {
        assert!(connectors_text(Some("kafkaa"), ListFormat::Text).unwrap_err().contains("filesystem"));
    }
}
