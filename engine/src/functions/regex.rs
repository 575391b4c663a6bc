//! Regular expressions. Compiled once and kept, a few per thread.

use std::cell::RefCell;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::Volatility;
use regex::{Regex, RegexBuilder};

use super::call::{Call, Function, Integer, error_with_hint, is_integer, is_text};
use super::substrings::Substrings;
use crate::error::Code;

/// How many compiled expressions a thread keeps.
const CACHED_MAX: usize = 32;
/// The largest compiled expression.
const COMPILED_BYTES_MAX: usize = 4 * 1024 * 1024;

pub(super) const FUNCTIONS: &[Function] = &[Function {
    name: "regexp_extract",
    aliases: &["regexp_substr"],
    family: "text",
    signature: "regexp_extract(text, expression [, group])",
    doc: "What a group of a regular expression matches in a text; group 0, the default, is the whole match; NULL without a match.",
    volatility: Volatility::Immutable,
    types: |types| match types {
        [a, b] if is_text(a) && is_text(b) => Some((vec![DataType::Utf8View; 2], DataType::Utf8View)),
        [a, b, c] if is_text(a) && is_text(b) && is_integer(c) => {
            Some((vec![DataType::Utf8View, DataType::Utf8View, DataType::Int64], DataType::Utf8View))
        }
        _ => None,
    },
    eval: regexp_extract,
}];

thread_local! {
    /// The expressions used last, newest at the end.
    static CACHE: RefCell<Vec<(String, Regex)>> = const { RefCell::new(Vec::new()) };
}

/// The compiled form of `pattern`.
fn compiled(pattern: &str) -> Result<Regex> {
    CACHE.with_borrow_mut(|cache| {
        if let Some(index) = cache.iter().position(|(text, _)| text == pattern) {
            let last = cache.len() - 1;
            cache.swap(index, last);
            return Ok(cache[last].1.clone());
        }
        let regex = RegexBuilder::new(pattern).size_limit(COMPILED_BYTES_MAX).build().map_err(|error| {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            error_with_hint(
                Code::InvalidArgument,
                format!("'{pattern}' is no regular expression: {reason}"),
                "the syntax is that of Rust's regex crate: no look-around, no back references",
            )
        })?;
        if cache.len() == CACHED_MAX {
            cache.remove(0);
        }
        cache.push((pattern.to_owned(), regex.clone()));
        Ok(regex)
    })
}

fn regexp_extract(call: &Call<'_>) -> Result<ArrayRef> {
    let (text, pattern) = (call.text(0)?, call.text(1)?);
    let group = if call.arity() == 3 { call.integer(2)? } else { Integer::Constant(Some(0)) };
    let mut out = Substrings::new(text, call.rows);
    let mut current: Option<(&str, Regex, regex::CaptureLocations)> = None;
    for row in 0..call.rows {
        let (Some(text), Some(pattern), Some(group)) = (text.get(row), pattern.get(row), group.get(row)) else {
            out.push_null();
            continue;
        };
        let is_current = current.as_ref().is_some_and(|(known, ..)| std::ptr::eq(*known, pattern) || *known == pattern);
        if !is_current {
            let regex = compiled(pattern)?;
            let locations = regex.capture_locations();
            current = Some((pattern, regex, locations));
        }
        let Some((_, regex, locations)) = &mut current else { continue };
        let found = match usize::try_from(group) {
            Ok(0) => regex.find(text).map(|found| (found.start(), found.end())),
            Ok(group) if group < locations.len() => match regex.captures_read(locations, text) {
                Some(_) => locations.get(group),
                None => None,
            },
            _ => {
                let message = format!("'{pattern}' has {} groups, not {group}", locations.len() - 1);
                return Err(error_with_hint(
                    Code::InvalidArgument,
                    message,
                    "groups are counted by their opening parentheses, from 1",
                ));
            }
        };
        match found {
            Some((start, end)) => out.push(row, start, &text[start..end])?,
            None => out.push_null(),
        }
    }
    Ok(out.finish())
}
