//! Results out of slots: a loop per call, a function of the slot's bytes alone.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Decimal128Array, Float64Array, Int64Array, ListArray, StringArray, UInt32Array,
    new_null_array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, FieldRef};
use tiderace_storage::PointTable;

use super::numeric::{DECIMAL_END, FloatSum, I192, Moments, array};
use super::state::{HANDLE_BYTES, unrank64, unrank128};
use super::value::Values;
use crate::error::{Code, Diagnostic, Result};
use crate::key::RowCodec;
use crate::key::ordinal::{from_ordinals64, from_ordinals128};

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
    Count {
        count: usize,
    },
    SumInteger {
        sum: usize,
        count: usize,
    },
    SumDecimal {
        sum: usize,
        count: usize,
        result: DataType,
    },
    SumFloat {
        sum: usize,
        count: usize,
        average: bool,
    },
    AverageInteger {
        sum: usize,
        count: usize,
        digits: u32,
        result: DataType,
    },
    AverageDecimal {
        sum: usize,
        count: usize,
        digits: u32,
        result: DataType,
    },
    Variance {
        moments: usize,
        sample: bool,
        root: bool,
    },
    Boolean {
        count: usize,
        truths: usize,
        all: bool,
    },
    Extremum64 {
        best: usize,
        count: usize,
        least: bool,
        result: DataType,
    },
    Extremum128 {
        best: usize,
        count: usize,
        least: bool,
        result: DataType,
    },
    /// The last column of a canonical row.
    Row {
        handle: usize,
        codec: RowCodec,
        result: DataType,
    },
    /// The last columns of canonical rows, with their multiplicity unless `once`.
    List {
        handle: usize,
        codec: RowCodec,
        item: FieldRef,
        once: bool,
    },
    Joined {
        handle: usize,
        codec: RowCodec,
        separator: String,
        result: DataType,
        once: bool,
    },
}

fn long(slot: &[u8], at: usize) -> i64 {
    i64::from_le_bytes(array(slot, at))
}

/// The rows of a multiset's bytes, each with its weight.
fn rows_of(mut bytes: &[u8]) -> impl Iterator<Item = (i64, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_at_checked(12)?;
        let (row, rest) = rest.split_at_checked(u32::from_le_bytes(array(head, 8)) as usize)?;
        bytes = rest;
        Some((i64::from_le_bytes(array(head, 0)), row))
    })
}

/// The last column of canonical rows.
fn last_column(codec: &RowCodec, rows: &[&[u8]]) -> Result<ArrayRef> {
    let mut columns = codec.decode(rows.iter().copied())?;
    columns.pop().ok_or_else(|| Diagnostic::new(Code::Internal, "a row without columns"))
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of map_err")]
fn internal(error: arrow::error::ArrowError) -> Diagnostic {
    Diagnostic::new(Code::Internal, format!("a result can't be built: {error}"))
}

impl Evaluation {
    /// Moves all offsets.
    pub(crate) fn shift(&mut self, by: usize) {
        match self {
            // The count of all rows lies in the header, which does not move.
            Self::Count { count } => *count += if *count > 0 { by } else { 0 },
            Self::SumInteger { sum: a, count: b }
            | Self::SumDecimal { sum: a, count: b, .. }
            | Self::SumFloat { sum: a, count: b, .. }
            | Self::AverageInteger { sum: a, count: b, .. }
            | Self::AverageDecimal { sum: a, count: b, .. }
            | Self::Boolean { truths: a, count: b, .. }
            | Self::Extremum64 { best: a, count: b, .. }
            | Self::Extremum128 { best: a, count: b, .. } => {
                *a += by;
                *b += if *b > 0 { by } else { 0 };
            }
            Self::Variance { moments: a, .. }
            | Self::Row { handle: a, .. }
            | Self::List { handle: a, .. }
            | Self::Joined { handle: a, .. } => *a += by,
        }
    }

    pub(crate) fn evaluate(
        &self,
        slots: &[u8],
        width: usize,
        values: &PointTable,
        call: usize,
        failures: &mut Vec<Failure>,
    ) -> Result<ArrayRef> {
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
            Self::Row { handle, codec, result } => {
                let mut rows = Vec::new();
                let indices: UInt32Array = each()
                    .map(|s| {
                        let row = Values::bytes(values, &s[*handle..*handle + HANDLE_BYTES]);
                        (!row.is_empty()).then(|| {
                            rows.push(row);
                            rows.len() as u32 - 1
                        })
                    })
                    .collect();
                if rows.is_empty() {
                    return Ok(new_null_array(result, indices.len()));
                }
                take(&last_column(codec, &rows)?, &indices, None).map_err(internal)?
            }
            Self::List { handle, codec, item, once } => {
                let (mut rows, mut lengths, mut valid) = (Vec::new(), Vec::new(), Vec::new());
                for slot in each() {
                    let before = rows.len();
                    for (weight, row) in rows_of(Values::bytes(values, &slot[*handle..*handle + HANDLE_BYTES])) {
                        rows.extend(std::iter::repeat_n(row, if *once { 1 } else { weight.max(0) as usize }));
                    }
                    lengths.push(rows.len() - before);
                    valid.push(rows.len() > before);
                }
                let items = last_column(codec, &rows)?;
                let offsets = OffsetBuffer::from_lengths(lengths);
                Arc::new(ListArray::try_new(item.clone(), offsets, items, Some(NullBuffer::from(valid))).map_err(internal)?)
            }
            Self::Joined { handle, codec, separator, result, once } => {
                let mut joined: Vec<Option<String>> = Vec::new();
                for slot in each() {
                    let bytes = Values::bytes(values, &slot[*handle..*handle + HANDLE_BYTES]);
                    let (weights, rows): (Vec<i64>, Vec<&[u8]>) = rows_of(bytes).unzip();
                    let strings = cast(&last_column(codec, &rows)?, &DataType::Utf8).map_err(internal)?;
                    let mut text: Option<String> = None;
                    for (string, weight) in strings.as_string::<i32>().iter().zip(weights) {
                        for _ in 0..if *once { 1 } else { weight } {
                            match &mut text {
                                Some(text) => text.push_str(separator),
                                None => text = Some(String::new()),
                            }
                            if let (Some(text), Some(string)) = (&mut text, string) {
                                text.push_str(string);
                            }
                        }
                    }
                    joined.push(text);
                }
                cast(&StringArray::from(joined), result).map_err(internal)?
            }
        })
    }
}
