//! Text.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, Int64Builder};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::Volatility;

use super::call::{Call, Function, Text, is_integer, is_text};
use super::substrings::Substrings;

pub(super) const FUNCTIONS: &[Function] = &[
    Function {
        name: "count_char",
        aliases: &[],
        family: "text",
        signature: "count_char(text, character)",
        doc: "How often a character stands in a text; Nexmark's CountChar.",
        volatility: Volatility::Immutable,
        types: |types| match types {
            [a, b] if is_text(a) && is_text(b) => Some((vec![DataType::Utf8View; 2], DataType::Int64)),
            _ => None,
        },
        eval: count_char,
    },
    Function {
        name: "split_index",
        aliases: &[],
        family: "text",
        signature: "split_index(text, separator, index)",
        doc: "The part of a text between separators, counted from 0; NULL when there is no such part.",
        volatility: Volatility::Immutable,
        types: |types| match types {
            [a, b, c] if is_text(a) && is_text(b) && is_integer(c) => {
                Some((vec![DataType::Utf8View, DataType::Utf8View, DataType::Int64], DataType::Utf8View))
            }
            // Flink also takes the separator's code point.
            [a, b, c] if is_text(a) && is_integer(b) && is_integer(c) => {
                Some((vec![DataType::Utf8View, DataType::Int64, DataType::Int64], DataType::Utf8View))
            }
            _ => None,
        },
        eval: split_index,
    },
];

fn count_char(call: &Call<'_>) -> Result<ArrayRef> {
    let (text, wanted) = (call.text(0)?, call.text(1)?);
    if let (Text::Column(column), Text::Constant(Some(wanted))) = (text, wanted)
        && let [byte] = wanted.as_bytes()
    {
        // NULL slots hold views of nothing, and their counts are masked.
        let counts: Vec<i64> = column.bytes_iter().map(|text| memchr::memchr_iter(*byte, text).count() as i64).collect();
        let nulls = arrow::array::Array::nulls(column).cloned();
        return Ok(Arc::new(Int64Array::new(counts.into(), nulls)));
    }
    let mut out = Int64Builder::with_capacity(call.rows);
    for row in 0..call.rows {
        let (Some(text), Some(wanted)) = (text.get(row), wanted.get(row)) else {
            out.append_null();
            continue;
        };
        let mut chars = wanted.chars();
        let count = match chars.next() {
            Some(only) => text.chars().filter(|c| *c == only).count(),
            None => 0,
        };
        out.append_value(count as i64);
    }
    Ok(Arc::new(out.finish()))
}

/// Start and end of part `index` of `text`. A separator of no bytes splits nowhere.
fn part(text: &str, separator: &str, index: usize) -> Option<(usize, usize)> {
    if let [byte] = separator.as_bytes() {
        let mut ends = memchr::memchr_iter(*byte, text.as_bytes());
        let start = if index == 0 { 0 } else { ends.nth(index - 1)? + 1 };
        return Some((start, ends.next().unwrap_or(text.len())));
    }
    if separator.is_empty() {
        return (index == 0).then_some((0, text.len()));
    }
    let mut start = 0;
    for _ in 0..index {
        start += text[start..].find(separator)? + separator.len();
    }
    Some((start, text[start..].find(separator).map_or(text.len(), |at| start + at)))
}

fn split_index(call: &Call<'_>) -> Result<ArrayRef> {
    let (text, index) = (call.text(0)?, call.integer(2)?);
    let code_point = call.text(1).is_err().then(|| call.integer(1)).transpose()?;
    let mut out = Substrings::new(text, call.rows);
    let mut buffer = [0u8; 4];
    for row in 0..call.rows {
        let separator: Option<&str> = match code_point {
            None => call.text(1)?.get(row),
            Some(code) => match code.get(row).and_then(|code| u32::try_from(code).ok()).and_then(char::from_u32) {
                Some(c) => Some(c.encode_utf8(&mut buffer)),
                None => None,
            },
        };
        let found = match (text.get(row), separator, index.get(row)) {
            (Some(text), Some(separator), Some(index)) => usize::try_from(index)
                .ok()
                .and_then(|index| part(text, separator, index))
                .map(|(start, end)| (start, &text[start..end])),
            _ => None,
        };
        match found {
            Some((start, part)) => out.push(row, start, part)?,
            None => out.push_null(),
        }
    }
    Ok(out.finish())
}
