//! JSON in texts: the standard's JSON_VALUE, JSON_QUERY, JSON_EXISTS. The operators `->`, `->>`, `?` come from datafusion-functions-json.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanBuilder, StringViewBuilder};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::Volatility;
use serde_json::Value;

use super::call::{Call, Function, error_with_hint, is_text};
use super::json_path::Path;
use crate::error::Code;

/// Functions of datafusion-functions-json: name, signature, meaning.
pub(super) const FOREIGN: &[(&str, &str, &str)] = &[
    ("json_get", "json_get(json, key, …)", "What stands under a key or index; the same as json -> key."),
    ("json_as_text", "json_as_text(json, key, …)", "What stands under a key or index, as text; the same as json ->> key."),
    ("json_get_str", "json_get_str(json, key, …)", "The text under a key or index; NULL when it is none."),
    ("json_get_int", "json_get_int(json, key, …)", "The whole number under a key or index; NULL when it is none."),
    ("json_get_float", "json_get_float(json, key, …)", "The number under a key or index; NULL when it is none."),
    ("json_get_bool", "json_get_bool(json, key, …)", "The truth value under a key or index; NULL when it is none."),
    ("json_get_json", "json_get_json(json, key, …)", "The JSON text under a key or index."),
    ("json_get_array", "json_get_array(json, key, …)", "The elements of the array under a key or index, as JSON texts."),
    ("json_contains", "json_contains(json, key, …)", "Whether there is such a key; the same as json ? key."),
    ("json_length", "json_length(json, key, …)", "How many elements the array or object has."),
    ("json_object_keys", "json_object_keys(json, key, …)", "The keys of the object."),
];

fn json_and_path(types: &[DataType], result: DataType) -> Option<(Vec<DataType>, DataType)> {
    match types {
        [json, path] if is_text(json) && is_text(path) => Some((vec![DataType::Utf8View; 2], result)),
        _ => None,
    }
}

fn one_text(types: &[DataType]) -> Option<(Vec<DataType>, DataType)> {
    match types {
        [json] if is_text(json) => Some((vec![DataType::Utf8View], DataType::Utf8View)),
        _ => None,
    }
}

pub(super) const FUNCTIONS: &[Function] = &[
    Function {
        name: "json_value",
        aliases: &[],
        family: "json",
        signature: "json_value(json, path)",
        doc: "The text, number or truth value that a path such as '$.a.b[0]' leads to, as text; NULL when it leads to nothing, an array or an object, or when the text is no JSON.",
        volatility: Volatility::Immutable,
        types: |types| json_and_path(types, DataType::Utf8View),
        eval: json_value,
    },
    Function {
        name: "json_query",
        aliases: &[],
        family: "json",
        signature: "json_query(json, path)",
        doc: "The array or object that a path leads to, as JSON; NULL when it leads to something else, or when the text is no JSON.",
        volatility: Volatility::Immutable,
        types: |types| json_and_path(types, DataType::Utf8View),
        eval: json_query,
    },
    Function {
        name: "json_exists",
        aliases: &[],
        family: "json",
        signature: "json_exists(json, path)",
        doc: "Whether a path leads to anything; false when the text is no JSON.",
        volatility: Volatility::Immutable,
        types: |types| json_and_path(types, DataType::Boolean),
        eval: json_exists,
    },
    Function {
        name: "parse_json",
        aliases: &[],
        family: "json",
        signature: "parse_json(text)",
        doc: "A text as JSON in its shortest form. A text that is no JSON is an error.",
        volatility: Volatility::Immutable,
        types: one_text,
        eval: |call| parse_json(call, false),
    },
    Function {
        name: "try_parse_json",
        aliases: &[],
        family: "json",
        signature: "try_parse_json(text)",
        doc: "As parse_json, but NULL where the text is no JSON.",
        volatility: Volatility::Immutable,
        types: one_text,
        eval: |call| parse_json(call, true),
    },
];

/// Calls `each` with what the path of each row leads to; `None` for a NULL row, `Some(None)` when it leads nowhere.
fn follow(call: &Call<'_>, mut each: impl FnMut(Option<Option<&Value>>) -> Result<()>) -> Result<()> {
    let (json, path_text) = (call.text(0)?, call.text(1)?);
    let mut current: Option<(&str, Path)> = None;
    for row in 0..call.rows {
        let (Some(json), Some(text)) = (json.get(row), path_text.get(row)) else {
            each(None)?;
            continue;
        };
        if current.as_ref().is_none_or(|(known, _)| *known != text) {
            current = Some((text, Path::parse(text)?));
        }
        let value = serde_json::from_str::<Value>(json).ok();
        let found = current.as_ref().zip(value.as_ref()).and_then(|((_, path), value)| path.follow(value));
        each(Some(found))?;
    }
    Ok(())
}

fn json_value(call: &Call<'_>) -> Result<ArrayRef> {
    let mut out = StringViewBuilder::with_capacity(call.rows);
    follow(call, |found| {
        match found.flatten() {
            Some(Value::String(text)) => out.try_append_value(text)?,
            Some(Value::Number(number)) => out.try_append_value(number.to_string())?,
            Some(Value::Bool(value)) => out.try_append_value(if *value { "true" } else { "false" })?,
            Some(Value::Null | Value::Array(_) | Value::Object(_)) | None => out.append_null(),
        }
        Ok(())
    })?;
    Ok(Arc::new(out.finish()))
}

fn json_query(call: &Call<'_>) -> Result<ArrayRef> {
    let mut out = StringViewBuilder::with_capacity(call.rows);
    follow(call, |found| {
        match found.flatten() {
            Some(value @ (Value::Array(_) | Value::Object(_))) => out.try_append_value(value.to_string())?,
            _ => out.append_null(),
        }
        Ok(())
    })?;
    Ok(Arc::new(out.finish()))
}

fn json_exists(call: &Call<'_>) -> Result<ArrayRef> {
    let mut out = BooleanBuilder::with_capacity(call.rows);
    follow(call, |found| {
        out.append_option(found.map(|found| found.is_some()));
        Ok(())
    })?;
    Ok(Arc::new(out.finish()))
}

fn parse_json(call: &Call<'_>, lenient: bool) -> Result<ArrayRef> {
    let text = call.text(0)?;
    let mut out = StringViewBuilder::with_capacity(call.rows);
    for row in 0..call.rows {
        match text.get(row).map(serde_json::from_str::<Value>) {
            None => out.append_null(),
            Some(Ok(value)) => out.try_append_value(value.to_string())?,
            Some(Err(_)) if lenient => out.append_null(),
            Some(Err(error)) => {
                return Err(error_with_hint(
                    Code::InvalidCast,
                    format!("parse_json: the text is no JSON: {error}"),
                    "try_parse_json gives NULL instead",
                ));
            }
        }
    }
    Ok(Arc::new(out.finish()))
}
