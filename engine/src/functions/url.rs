//! Parts of URLs.

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::Volatility;

use super::call::{Call, Function, Text, error_with_hint, is_text};
use super::substrings::Substrings;
use crate::error::Code;

pub(super) const FUNCTIONS: &[Function] = &[Function {
    name: "parse_url",
    aliases: &[],
    family: "text",
    signature: "parse_url(url, part [, key])",
    doc: "A part of a URL: PROTOCOL, USERINFO, AUTHORITY, HOST, PATH, FILE, QUERY or REF; of QUERY, with a key, the value of that parameter. NULL when it has no such part.",
    volatility: Volatility::Immutable,
    types: |types| {
        let fits = matches!(types.len(), 2 | 3) && types.iter().all(is_text);
        fits.then(|| (vec![DataType::Utf8View; types.len()], DataType::Utf8View))
    },
    eval: parse_url,
}];

/// The part of `url` as a slice of it.
fn part<'u>(url: &'u str, name: &str, key: Option<&str>) -> Option<Option<&'u str>> {
    let (protocol, rest) = url.split_once("://").map_or((None, url), |(protocol, rest)| (Some(protocol), rest));
    let Some(protocol) = protocol else { return Some(None) };
    let (rest, reference) = rest.split_once('#').map_or((rest, None), |(rest, reference)| (rest, Some(reference)));
    let (file_end, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let (authority, path) = match file_end.find('/') {
        Some(at) => (&file_end[..at], &file_end[at..]),
        None => (file_end, ""),
    };
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    let host = if host.starts_with('[') {
        host.split_inclusive(']').next().unwrap_or(host)
    } else {
        host.split(':').next().unwrap_or(host)
    };
    Some(match name {
        "PROTOCOL" => Some(protocol),
        "USERINFO" => user,
        "AUTHORITY" => Some(authority),
        "HOST" => Some(host),
        "PATH" => Some(path),
        "FILE" => Some(&rest[authority.len()..]),
        "QUERY" => match key {
            None => query,
            Some(key) => query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))),
        },
        "REF" => reference,
        _ => return None,
    })
}

fn parse_url(call: &Call<'_>) -> Result<ArrayRef> {
    let (url, name) = (call.text(0)?, call.text(1)?);
    let key = if call.arity() == 3 { Some(call.text(2)?) } else { None };
    let mut out = Substrings::new(url, call.rows);
    for row in 0..call.rows {
        let key = key.map(|key: Text<'_>| key.get(row));
        let (Some(url), Some(name), Some(key)) = (url.get(row), name.get(row), key.map_or(Some(None), |key| key.map(Some)))
        else {
            out.push_null();
            continue;
        };
        let found = part(url, name, key).ok_or_else(|| {
            error_with_hint(
                Code::InvalidArgument,
                format!("parse_url: '{name}' is no part of a URL"),
                "the parts are PROTOCOL, USERINFO, AUTHORITY, HOST, PATH, FILE, QUERY and REF",
            )
        })?;
        match found {
            Some(part) => {
                let start = part.as_ptr() as usize - url.as_ptr() as usize;
                out.push(row, start..start + part.len());
            }
            None => out.push_null(),
        }
    }
    Ok(out.finish())
}
