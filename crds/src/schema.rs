//! Judges a document by the definition's OpenAPI schema, as an API server does: unknown fields, types, bounds. All problems, not the first.

use serde_json::Value as Json;

use crate::document::{Node, Place, Value};
use crate::manifest::Problem;

/// Adds what is wrong with `node` to `problems`. `path` is how a person names the node: `spec.sql`.
pub(crate) fn check(path: &str, node: &Node, schema: &Json, problems: &mut Vec<Problem>) {
    let mut refuse = |message: String| problems.push(Problem { message, hint: None, place: Some(node.place) });
    let is_int_or_string = schema["x-kubernetes-int-or-string"] == true;
    match (&node.value, schema["type"].as_str()) {
        (Value::Map(_), Some("object")) => check_map(path, node, schema, problems),
        (Value::List(items), Some("array")) => {
            if let Some(limit) = schema["maxItems"].as_u64().filter(|limit| items.len() as u64 > *limit) {
                refuse(format!("{path} has {} items, and may have {limit}", items.len()));
            }
            for (i, item) in items.iter().enumerate() {
                check(&format!("{path}[{i}]"), item, &schema["items"], problems);
            }
        }
        (Value::Text(text), kind) if kind == Some("string") || is_int_or_string => {
            let length = text.chars().count() as u64;
            if let Some(limit) = schema["maxLength"].as_u64().filter(|limit| length > *limit) {
                refuse(format!("{path} has {length} characters, and may have {limit}"));
            } else if let Some(limit) = schema["minLength"].as_u64().filter(|limit| length < *limit) {
                refuse(format!("{path} has {length} characters, and must have {limit}"));
            } else if let Some(choices) = schema["enum"].as_array().filter(|all| !all.iter().any(|c| c == text.as_str())) {
                let choices: Vec<_> = choices.iter().filter_map(Json::as_str).collect();
                refuse(format!("{path} must be one of {}, not '{text}'", choices.join(", ")));
            }
        }
        (Value::Number(number), kind) if matches!(kind, Some("integer" | "number")) || is_int_or_string => {
            if kind != Some("number") && !(number.is_i64() || number.is_u64()) {
                refuse(format!("{path} must be a whole number, not {number}"));
            } else if let (Some(value), Some(limit)) = (number.as_f64(), schema["minimum"].as_f64())
                && value < limit
            {
                refuse(format!("{path} must be {limit} or more, not {number}"));
            } else if let (Some(value), Some(limit)) = (number.as_f64(), schema["maximum"].as_f64())
                && value > limit
            {
                refuse(format!("{path} must be {limit} or less, not {number}"));
            }
        }
        (Value::Bool(_), Some("boolean")) => {}
        (Value::Null, _) if schema["nullable"] == true => {}
        (found, _) => {
            let wanted = if is_int_or_string { "a text or a whole number" } else { wanted_name(schema) };
            let found_name = match found {
                Value::Null => "nothing",
                Value::Bool(_) => "true or false",
                Value::Number(_) => "a number",
                Value::Text(_) => "a text",
                Value::List(_) => "a list",
                Value::Map(_) => "a map",
            };
            let quote = matches!(found, Value::Number(_) | Value::Bool(_)) && schema["type"] == "string";
            let hint = quote.then(|| format!("write it in quotes: \"{}\"", node.to_json()));
            let message = format!("{path} must be {wanted}, not {found_name}");
            problems.push(Problem { message, hint, place: Some(node.place) });
        }
    }
}

fn wanted_name(schema: &Json) -> &'static str {
    match schema["type"].as_str() {
        Some("object") => "a map",
        Some("array") => "a list",
        Some("string") => "a text",
        Some("integer") => "a whole number",
        Some("number") => "a number",
        Some("boolean") => "true or false",
        _ => "something else",
    }
}

fn check_map(path: &str, node: &Node, schema: &Json, problems: &mut Vec<Problem>) {
    let Value::Map(entries) = &node.value else { return };
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    let no_properties = serde_json::Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&no_properties);
    let rest = schema.get("additionalProperties").filter(|s| s.is_object());
    if let Some(limit) = schema["maxProperties"].as_u64().filter(|limit| entries.len() as u64 > *limit) {
        let message = format!("{path} has {} keys, and may have {limit}", entries.len());
        problems.push(Problem { message, hint: None, place: Some(node.place) });
    }
    for entry in entries {
        // Fields of every object are not in a definition's schema: the API server's own rules hold for them.
        if path.is_empty() && matches!(entry.key.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        match properties.get(&entry.key).or(rest) {
            Some(inner) => check(&join(&entry.key), &entry.value, inner, problems),
            None if schema["x-kubernetes-preserve-unknown-fields"] == true => {}
            None => problems.push(Problem {
                message: format!("there is no field {}", join(&entry.key)),
                hint: Some(hint_fields(path, &entry.key, properties.keys().map(String::as_str))),
                place: Some(entry.key_place),
            }),
        }
    }
    for key in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
        if node.get(key).is_none() {
            problems.push(missing(&join(key), node.place));
        }
    }
}

pub(crate) fn missing(path: &str, place: Place) -> Problem {
    Problem { message: format!("the field {path} is missing"), hint: None, place: Some(place) }
}

fn hint_fields<'a>(path: &str, wrong: &str, fields: impl Iterator<Item = &'a str>) -> String {
    let fields: Vec<_> = fields.collect();
    if let Some(near) = fields.iter().find(|f| f.eq_ignore_ascii_case(wrong)) {
        return format!("it is spelled {near}");
    }
    let place = if path.is_empty() { "a StreamingJob" } else { path };
    format!("the fields of {place} are: {}", fields.join(", "))
}
