//! Results out of slots: a loop per call, a function of the slot's bytes alone.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int64Array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::DataType;

use super::numeric::{DECIMAL_END, FloatSum, I192, Moments, array};
use super::state::{unrank64, unrank128};
use super::view::{from_ordinals64, from_ordinals128};
use crate::error::Result;

/// Results of groups.
#[derive(Debug)]
pub struct Evaluated {
    /// A column a call, a row a slot.
    pub columns: Vec<ArrayRef>,
    /// Results that their type can't hold.
    pub failures: Vec<Failure>,
}

/// A result that its type can't hold (TR-2001); it stands as NULL in the column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The slot.
    pub row: usize,
    /// The call.
    pub call: usize,
}

/// How a call's result is made. Numbers are offsets in the slot.
#[derive(Clone, Debug)]
pub(crate) enum Evaluation {
    Count { count: usize },
    SumInteger { sum: usize, count: usize },
    SumDecimal { sum: usize, count: usize, result: DataType },
    SumFloat { sum: usize, count: usize, average: bool },
    AverageInteger { sum: usize, count: usize, digits: u32, result: DataType },
    AverageDecimal { sum: usize, count: usize, digits: u32, result: DataType },
    Variance { moments: usize, sample: bool, root: bool },
    Boolean { count: usize, truths: usize, all: bool },
    Extremum64 { best: usize, count: usize, least: bool, result: DataType },
    Extremum128 { best: usize, count: usize, least: bool, result: DataType },
}

fn long(slot: &[u8], at: usize) -> i64 {
    i64::from_le_bytes(array(slot, at))
}

impl Evaluation {
    pub(crate) fn evaluate(&self, slots: &[u8], width: usize, call: usize, failures: &mut Vec<Failure>) -> Result<ArrayRef> {
        let each = || slots.chunks_exact(width);
        let nulls = |count: usize| {
            let valid: NullBuffer = each().map(|s| long(s, count) != 0).collect();
            Some(valid).filter(|n| n.null_count() > 0)
        };
        // A number of each slot, NULL without rows; a failure where there are rows but no number.
        let mut checked = |count: usize, number: &dyn Fn(&[u8], i64) -> Option<i128>| -> Vec<Option<i128>> {
            let mut out = Vec::with_capacity(slots.len() / width);
            for (row, slot) in each().enumerate() {
                let n = long(slot, count);
                let value = if n > 0 { number(slot, n) } else { None };
                if n > 0 && value.is_none() {
                    failures.push(Failure { row, call });
                }
                out.push(value);
            }
            out
        };
        let decimals = |values: Vec<Option<i128>>, result: &DataType| -> ArrayRef {
            Arc::new(Decimal128Array::from_iter(values).with_data_type(result.clone()))
        };
        let longs = |values: Vec<Option<i128>>| -> ArrayRef {
            Arc::new(values.into_iter().map(|v| v.map(|v| v as i64)).collect::<Int64Array>())
        };
        let fits_long = |v: &i128| i64::try_from(*v).is_ok();
        Ok(match self {
            Self::Count { count } => Arc::new(Int64Array::from_iter_values(each().map(|s| long(s, *count)))),
            Self::SumInteger { sum, count } => {
                longs(checked(*count, &|s, _| Some(i128::from_le_bytes(array(s, *sum))).filter(fits_long)))
            }
            Self::SumDecimal { sum, count, result } => {
                let values = checked(*count, &|s, _| {
                    let sum = I192::read(&s[*sum..]).to_i128()?;
                    let fits = if *result == DataType::Int64 { fits_long(&sum) } else { sum.abs() < DECIMAL_END };
                    fits.then_some(sum)
                });
                if *result == DataType::Int64 { longs(values) } else { decimals(values, result) }
            }
            Self::SumFloat { sum, count, average } => {
                let divisor = |n: i64| if *average { n as f64 } else { 1.0 };
                let values = each().map(|s| {
                    let n = long(s, *count);
                    (n != 0).then(|| FloatSum::read(&s[*sum..]).value() / divisor(n))
                });
                Arc::new(values.collect::<Float64Array>())
            }
            Self::AverageInteger { sum, count, digits, result } => {
                decimals(checked(*count, &|s, n| I192::from(i128::from_le_bytes(array(s, *sum))).average(n, *digits)), result)
            }
            Self::AverageDecimal { sum, count, digits, result } => {
                decimals(checked(*count, &|s, n| I192::read(&s[*sum..]).average(n, *digits)), result)
            }
            Self::Variance { moments, sample, root } => {
                let values = each().map(|s| {
                    let variance = Moments::read(&s[*moments..]).variance(*sample)?;
                    Some(if *root { variance.sqrt() } else { variance })
                });
                Arc::new(values.collect::<Float64Array>())
            }
            Self::Boolean { count, truths, all } => {
                let values = each().map(|s| {
                    let (count, truths) = (long(s, *count), long(s, *truths));
                    (count != 0).then_some(if *all { truths == count } else { truths != 0 })
                });
                Arc::new(values.collect::<BooleanArray>())
            }
            Self::Extremum64 { best, count, least, result } => {
                let ordinals: Vec<i64> = each().map(|s| unrank64(u64::from_le_bytes(array(s, *best)), *least)).collect();
                from_ordinals64(&ordinals, nulls(*count), result)?
            }
            Self::Extremum128 { best, count, least, result } => {
                let ordinals: Vec<i128> = each().map(|s| unrank128(u128::from_le_bytes(array(s, *best)), *least)).collect();
                from_ordinals128(&ordinals, nulls(*count), result)?
            }
        })
    }
}
