//! Hashes that never change.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Builder};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::Volatility;

use super::call::{Call, Function, is_text};

pub(super) const FUNCTIONS: &[Function] = &[Function {
    name: "xxh3",
    aliases: &["xxhash64"],
    family: "hashing",
    signature: "xxh3(text)",
    doc: "The 64-bit XXH3 hash of a text's bytes, seed 0, as BIGINT.",
    volatility: Volatility::Immutable,
    types: |types| match types {
        [a] if is_text(a) => Some((vec![DataType::Utf8View], DataType::Int64)),
        _ => None,
    },
    eval: xxh3,
}];

fn xxh3(call: &Call<'_>) -> Result<ArrayRef> {
    let text = call.text(0)?;
    let mut out = Int64Builder::with_capacity(call.rows);
    for row in 0..call.rows {
        out.append_option(text.get(row).map(|text| twox_hash::XxHash3_64::oneshot(text.as_bytes()).cast_signed()));
    }
    Ok(Arc::new(out.finish()))
}
