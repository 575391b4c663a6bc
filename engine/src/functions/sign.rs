//! `SIGN(number)`: −1, 0 or 1, in the number's own type.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, Float32Type, Float64Type, Int64Type};
use datafusion::common::Result;
use datafusion::logical_expr::Volatility;

use super::call::{Call, Function};

pub(super) const FUNCTIONS: &[Function] = &[Function {
    name: "sign",
    aliases: &[],
    family: "math",
    signature: "sign(number)",
    doc: "-1, 0 or 1, in the number's own type.",
    volatility: Volatility::Immutable,
    types: |types| match types {
        [DataType::Null] => Some((vec![DataType::Int64], DataType::Int64)),
        // A 1 must have room before the point.
        [DataType::Decimal128(precision, scale)] => {
            let digits = u8::try_from(*scale).unwrap_or(0).saturating_add(1).clamp(*precision, 38);
            let own = DataType::Decimal128(digits, (*scale).min(37));
            Some((vec![own.clone()], own))
        }
        [number] if number.is_numeric() && !matches!(number, DataType::Decimal256(..)) => {
            Some((vec![number.clone()], number.clone()))
        }
        _ => None,
    },
    eval: sign,
}];

fn sign(call: &Call<'_>) -> Result<ArrayRef> {
    let values = call.column(0)?;
    // Neither a zero nor what is no number has a sign.
    Ok(match values.data_type() {
        DataType::Float64 => {
            Arc::new(values.as_primitive::<Float64Type>().unary::<_, Float64Type>(|v| if v == 0.0 { 0.0 } else { v.signum() }))
        }
        DataType::Float32 => {
            Arc::new(values.as_primitive::<Float32Type>().unary::<_, Float32Type>(|v| if v == 0.0 { 0.0 } else { v.signum() }))
        }
        DataType::Decimal128(_, scale) => {
            let one = 10i128.pow(u32::from(scale.unsigned_abs()));
            let signs = values.as_primitive::<Decimal128Type>().unary::<_, Decimal128Type>(|v| v.signum() * one);
            Arc::new(signs.with_data_type(values.data_type().clone()))
        }
        DataType::UInt64 => {
            let signs = values.as_primitive::<arrow::datatypes::UInt64Type>();
            Arc::new(signs.unary::<_, arrow::datatypes::UInt64Type>(|v| v.min(1)))
        }
        other => {
            let wide = cast(&values, &DataType::Int64)?;
            let signs: ArrayRef = Arc::new(wide.as_primitive::<Int64Type>().unary::<_, Int64Type>(i64::signum));
            cast(&signs, other)?
        }
    })
}
