//! A 128-bit sum over rows, column by column.
//!
//! A row's digest are two lanes of 64 bits. Each column is folded into both by a multiplication to 128 bits whose halves are added by XOR
//! (wyhash's mixing step), texts by their xxh3-64 first. So it depends on values, their order among the columns and their types' widths,
//! and on no column's name. It is made to be cheap beside the query that it checks: a few ns a value. It is not cryptographic.

use arrow::array::{Array, ArrayRef, AsArray, GenericByteArray, OffsetSizeTrait};
use arrow::datatypes::{
    ByteArrayType, DataType, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};
use twox_hash::XxHash3_64;

/// Odd numbers without structure: the fraction digits of π, as wyhash takes its secrets from anywhere.
const SEED: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344];
const KEY: [u64; 2] = [0xa409_3822_299f_31d1, 0x082e_fa98_ec4e_6c89];
/// What a NULL is folded in as.
const NULL: u64 = 0x4528_21e6_38d0_1377;

/// Digests of the rows of batches of one schema. Keeps its buffers from batch to batch.
#[derive(Debug)]
pub struct RowDigests {
    /// For the columns of nested and rare types: their order-preserving encoding is what is hashed.
    converters: Vec<Option<RowConverter>>,
    lanes: Vec<[u64; 2]>,
}

#[inline]
fn fold(lane: u64, value: u64, key: u64) -> u64 {
    let product = u128::from(lane ^ value) * u128::from(key);
    (product as u64) ^ (product >> 64) as u64
}

#[inline]
fn fold_both(lanes: &mut [u64; 2], value: u64) {
    // The second lane sees the value turned, so that a value that meets a lane's zero doesn't meet both.
    *lanes = [fold(lanes[0], value, KEY[0]), fold(lanes[1], value.rotate_left(32), KEY[1])];
}

impl RowDigests {
    /// For columns of `types`. An error when a type has no order-preserving encoding.
    pub fn new<'t>(types: impl Iterator<Item = &'t DataType>) -> Result<Self, ArrowError> {
        let converter = |kind: &DataType| {
            if is_plain(kind) { Ok(None) } else { RowConverter::new(vec![SortField::new(kind.clone())]).map(Some) }
        };
        Ok(Self { converters: types.map(converter).collect::<Result<_, _>>()?, lanes: Vec::new() })
    }

    /// The digest of each row of `columns`, which have the types given to [`Self::new`].
    pub fn of(&mut self, columns: &[ArrayRef], rows: usize) -> Result<&[[u64; 2]], ArrowError> {
        self.lanes.clear();
        self.lanes.resize(rows, SEED);
        for (column, converter) in columns.iter().zip(&self.converters) {
            match converter {
                None => fold_column(&mut self.lanes, column)?,
                Some(converter) => {
                    let encoded = converter.convert_columns(std::slice::from_ref(column))?;
                    for (lanes, row) in self.lanes.iter_mut().zip(&encoded) {
                        fold_both(lanes, XxHash3_64::oneshot(row.as_ref()));
                    }
                }
            }
        }
        Ok(&self.lanes)
    }
}

fn is_plain(kind: &DataType) -> bool {
    kind.is_primitive()
        && !matches!(kind, DataType::Float16 | DataType::Interval(_))
        && !matches!(kind, DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal256(..))
        || matches!(kind, DataType::Boolean | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Binary)
}

/// Folds `value(row)` into each row that is not NULL.
#[inline]
fn fold_rows(lanes: &mut [[u64; 2]], column: &dyn Array, value: impl Fn(usize) -> u64) {
    match column.logical_nulls().filter(|nulls| nulls.null_count() > 0) {
        None => lanes.iter_mut().enumerate().for_each(|(row, lanes)| fold_both(lanes, value(row))),
        Some(nulls) => {
            for (row, lanes) in lanes.iter_mut().enumerate() {
                fold_both(lanes, if nulls.is_valid(row) { value(row) } else { NULL });
            }
        }
    }
}

fn fold_column(lanes: &mut [[u64; 2]], column: &ArrayRef) -> Result<(), ArrowError> {
    macro_rules! integers {
        ($kind:ty) => {{
            let values = column.to_data();
            let values = arrow::array::PrimitiveArray::<$kind>::from(
                values.into_builder().data_type(<$kind as arrow::datatypes::ArrowPrimitiveType>::DATA_TYPE).build()?,
            );
            let values = values.values();
            fold_rows(lanes, column, |row| values[row] as u64);
        }};
    }
    match column.data_type() {
        DataType::Boolean => {
            let values = column.as_boolean().values();
            fold_rows(lanes, column, |row| u64::from(values.value(row)));
        }
        DataType::Int8 => integers!(Int8Type),
        DataType::Int16 => integers!(Int16Type),
        DataType::Int32 | DataType::Date32 | DataType::Time32(_) => integers!(Int32Type),
        DataType::Int64 | DataType::Date64 | DataType::Time64(_) | DataType::Timestamp(..) | DataType::Duration(_) => {
            integers!(Int64Type);
        }
        DataType::UInt8 => integers!(UInt8Type),
        DataType::UInt16 => integers!(UInt16Type),
        DataType::UInt32 => integers!(UInt32Type),
        DataType::UInt64 => integers!(UInt64Type),
        DataType::Float32 => {
            let values = column.as_primitive::<Float32Type>().values();
            fold_rows(lanes, column, |row| u64::from(values[row].to_bits()));
        }
        DataType::Float64 => {
            let values = column.as_primitive::<Float64Type>().values();
            fold_rows(lanes, column, |row| values[row].to_bits());
        }
        DataType::Decimal128(..) => {
            let values = column.as_primitive::<Decimal128Type>().values();
            fold_rows(lanes, column, |row| values[row] as u64);
            fold_rows(lanes, column, |row| (values[row] >> 64) as u64);
        }
        DataType::Utf8 => fold_texts(lanes, column.as_string::<i32>()),
        DataType::LargeUtf8 => fold_texts(lanes, column.as_string::<i64>()),
        DataType::Binary => fold_texts(lanes, column.as_binary::<i32>()),
        DataType::Utf8View => {
            let values = column.as_string_view();
            fold_rows(lanes, column, |row| XxHash3_64::oneshot(values.value(row).as_bytes()));
        }
        other => return Err(ArrowError::NotYetImplemented(format!("a digest of {other}"))),
    }
    Ok(())
}

fn fold_texts<T: ByteArrayType<Offset: OffsetSizeTrait>>(lanes: &mut [[u64; 2]], values: &GenericByteArray<T>) {
    fold_rows(lanes, values, |row| {
        let bytes: &[u8] = values.value(row).as_ref();
        XxHash3_64::oneshot(bytes)
    });
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use std::collections::HashSet;
    use std::sync::Arc;

    use arrow::array::{Float64Array, Int64Array, ListArray, StringArray, StringViewArray, TimestampMicrosecondArray};

    use super::*;

    fn digests(columns: &[ArrayRef]) -> Vec<[u64; 2]> {
        let mut digests = RowDigests::new(columns.iter().map(Array::data_type)).unwrap();
        digests.of(columns, columns[0].len()).unwrap().to_vec()
    }

    #[test]
    fn different_rows_have_different_digests_in_both_lanes() {
        let a: ArrayRef = Arc::new(Int64Array::from_iter((0..2000).map(|i| (i % 100 != 7).then_some(i % 100))));
        let b: ArrayRef =
            Arc::new(StringViewArray::from_iter((0..2000).map(|i| (i / 100 != 5).then(|| format!("text {}", i / 100)))));
        let all = digests(&[a, b]);
        assert_eq!(all.iter().map(|d| d[0]).collect::<HashSet<_>>().len(), 2000);
        assert_eq!(all.iter().map(|d| d[1]).collect::<HashSet<_>>().len(), 2000);
    }

    #[test]
    fn it_goes_by_values_not_by_how_they_are_stored_or_sliced() {
        let texts = ["a", "", "a longer text than fits into a view"];
        let view: ArrayRef = Arc::new(StringViewArray::from_iter_values(texts));
        let plain: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
        assert_eq!(digests(std::slice::from_ref(&view)), digests(&[plain]));
        assert_eq!(digests(std::slice::from_ref(&view))[1..], digests(&[view.slice(1, 2)])[..]);
        let long: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
        let time: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1, 2, 3]));
        assert_eq!(digests(std::slice::from_ref(&long))[2..], digests(&[time.slice(2, 1)])[..]);
        assert_ne!(digests(&[long.clone(), view.clone()]), digests(&[view, long]), "the order of columns counts");
    }

    #[test]
    fn nulls_zeros_and_nested_values_are_told_apart() {
        let floats: ArrayRef = Arc::new(Float64Array::from(vec![Some(0.0), Some(-0.0), None, Some(f64::NAN)]));
        assert_eq!(digests(&[floats]).into_iter().collect::<HashSet<_>>().len(), 4);
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(vec![
            Some(vec![Some(1), Some(2)]),
            Some(vec![Some(1)]),
            Some(vec![None]),
            Some(vec![]),
            None,
        ]));
        assert_eq!(digests(&[lists]).into_iter().collect::<HashSet<_>>().len(), 5);
    }
}
