//! `tiderace connectors` and `tiderace functions`: the tables that the code itself uses, for people, machines and the reference.

use serde_json::{Value, json};
use tiderace_engine::connect::{ConnectorSpec, OptionSpec, OptionType, connector, connectors};

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
    let spec = connector(name).ok_or_else(|| {
        let names: Vec<_> = connectors().iter().map(|spec| spec.name).collect();
        format!("the connectors are: {}", names.join(", "))
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
    format!("{}\nAll about one: tiderace connectors NAME\n", table.plain())
}

fn roles(spec: &ConnectorSpec) -> &'static str {
    match (spec.source.is_some(), spec.sink.is_some()) {
        (true, true) => "source, sink",
        (true, false) => "source",
        (false, true) => "sink",
        (false, false) => "–",
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

fn spec_json(spec: &ConnectorSpec) -> Value {
    let option = |option: &OptionSpec| {
        json!({
            "key": option.key, "type": kind_name(option.kind), "default": option.default, "required": option.required, "doc": option.doc,
        })
    };
    let metadata = |(key, sql_type): &(&str, &str)| json!({"key": key, "type": sql_type});
    json!({
        "name": spec.name,
        "doc": spec.doc,
        "source": spec.source.is_some(),
        "sink": spec.sink.is_some(),
        "takes_format": spec.takes_format,
        "options": spec.options.iter().map(option).collect::<Vec<_>>(),
        "metadata": spec.metadata.iter().map(metadata).collect::<Vec<_>>(),
    })
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn spec_markdown(spec: &ConnectorSpec) -> String {
    let mut out = format!("## `{}`\n\n{} ({}).\n", spec.name, spec.doc.trim_end_matches('.'), roles(spec));
    if spec.takes_format {
        out += "It takes a `'format'`, whose options come on top.\n";
    }
    if !spec.options.is_empty() {
        out += "\n| option | type | default | |\n|---|---|---|---|\n";
        for option in spec.options {
            let (kind, default) = (kind_name(option.kind), default_name(option));
            out += &format!("| `{}` | {} | {} | {} |\n", option.key, cell(&kind), cell(default), cell(option.doc));
        }
    }
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
        let json: Value = serde_json::from_str(&connectors_text(None, ListFormat::Json).unwrap()).unwrap();
        assert_eq!(json.as_array().unwrap().len(), connectors().len());
        for spec in connectors() {
            assert!(text.contains(spec.name) && markdown.contains(&format!("## `{}`", spec.name)), "{}", spec.name);
            let one = connectors_text(Some(spec.name), ListFormat::Text).unwrap();
            for option in spec.options {
                assert!(one.contains(&format!("'{}'", option.key)) && markdown.contains(option.key), "{}", option.key);
            }
        }
    }

    #[test]
    fn an_unknown_connector_names_those_there_are() {
        assert!(connectors_text(Some("kafkaa"), ListFormat::Text).unwrap_err().contains("filesystem"));
    }
}
