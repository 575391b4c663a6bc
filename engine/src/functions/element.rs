//! `ELEMENT(array)`: the only element of an array.

use arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::Volatility;

use super::call::{Call, Function, error_with_hint};
use crate::error::Code;

pub(super) const FUNCTIONS: &[Function] = &[Function {
    name: "element",
    aliases: &[],
    family: "array",
    signature: "element(array)",
    doc: "The only element of an array; NULL when it is empty. An array of several is an error.",
    volatility: Volatility::Immutable,
    types: |types| match types {
        [DataType::Null] => Some((vec![DataType::new_list(DataType::Int64, true)], DataType::Int64)),
        [list @ DataType::List(inner)] => Some((vec![list.clone()], inner.data_type().clone())),
        _ => None,
    },
    eval: element,
}];

fn element(call: &Call<'_>) -> Result<ArrayRef> {
    let lists = call.column(0)?;
    let lists = lists.as_list::<i32>();
    let mut indexes = Vec::with_capacity(call.rows);
    for row in 0..call.rows {
        if lists.is_null(row) {
            indexes.push(None);
            continue;
        }
        indexes.push(match lists.value_length(row) {
            0 => None,
            // Offsets are not negative.
            1 => Some(lists.value_offsets()[row].unsigned_abs()),
            count => {
                return Err(error_with_hint(
                    Code::InvalidArgument,
                    format!("element: the array has {count} elements, not one"),
                    "take one by its number: a[1]",
                ));
            }
        });
    }
    Ok(take(lists.values(), &UInt32Array::from(indexes), None)?)
}
