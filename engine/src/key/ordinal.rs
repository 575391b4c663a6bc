//! Columns as loops read them: 64-bit integers, 128-bit integers, doubles; and ordinals, which are ordered as the values are, back to columns.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, PrimitiveArray};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::*;

use crate::error::{Code, Diagnostic, Result};

const SIGN: u64 = 1 << 63;

/// What is read out of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// An integer of at most 64 bits, as it is; or any value whose order fits 64 bits, as its ordinal.
    Ordinal64,
    /// A decimal's digits, an unsigned 64-bit integer, or an interval's ordinal.
    Ordinal128,
    /// As a double.
    Float,
}

/// The numbers of one column of a batch. What stands at NULL is not defined.
#[derive(Clone, Debug)]
pub(crate) enum Numbers {
    Ordinal64(ScalarBuffer<i64>),
    Ordinal128(ScalarBuffer<i128>),
    Float(ScalarBuffer<f64>),
}

impl Numbers {
    pub(crate) fn as_i64(&self) -> &[i64] {
        if let Self::Ordinal64(v) = self { v } else { &[] }
    }

    pub(crate) fn as_i128(&self) -> &[i128] {
        if let Self::Ordinal128(v) = self { v } else { &[] }
    }

    pub(crate) fn as_f64(&self) -> &[f64] {
        if let Self::Float(v) = self { v } else { &[] }
    }
}

/// Whether values of a type are compared as one integer, and of how many bits.
pub(crate) fn ordinal_of(data_type: &DataType) -> Option<View> {
    Some(match data_type {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float32
        | DataType::Float64
        | DataType::Date32
        | DataType::Date64
        | DataType::Time32(_)
        | DataType::Time64(_)
        | DataType::Timestamp(..)
        | DataType::Duration(_)
        | DataType::Interval(IntervalUnit::YearMonth | IntervalUnit::DayTime) => View::Ordinal64,
        DataType::Decimal128(..) | DataType::Interval(IntervalUnit::MonthDayNano) => View::Ordinal128,
        _ => return None,
    })
}

/// A double as an integer of the same order; one NaN, above all; −0 = +0.
pub(crate) fn float_ordinal(value: f64) -> i64 {
    let value = if value.is_nan() { f64::NAN.abs() } else { value + 0.0 };
    let bits = value.to_bits() as i64;
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

fn ordinal_float(ordinal: i64) -> f64 {
    f64::from_bits((ordinal ^ (((ordinal >> 63) as u64) >> 1) as i64) as u64)
}

pub(crate) fn interval_ordinal(value: IntervalMonthDayNano) -> i128 {
    let low = ((value.days as u32 ^ (1 << 31)) as u128) << 64 | u128::from(value.nanoseconds as u64 ^ SIGN);
    (i128::from(value.months) << 96) | low as i128
}

fn ordinal_interval(ordinal: i128) -> IntervalMonthDayNano {
    let days = ((ordinal >> 64) as u32 ^ (1 << 31)) as i32;
    IntervalMonthDayNano::new((ordinal >> 96) as i32, days, (ordinal as u64 ^ SIGN) as i64)
}

fn mapped<T: ArrowPrimitiveType, O: ArrowNativeType>(array: &ArrayRef, map: impl Fn(T::Native) -> O) -> ScalarBuffer<O> {
    array.as_primitive::<T>().values().iter().map(|v| map(*v)).collect()
}

fn wrong(data_type: &DataType) -> Diagnostic {
    Diagnostic::new(Code::Internal, format!("no numbers can be read from a column of type {data_type}"))
}

/// Reads a column; it must not be a dictionary.
pub(crate) fn numbers(array: &ArrayRef, view: View) -> Result<Numbers> {
    let data_type = array.data_type();
    Ok(match view {
        View::Float => {
            let doubles = cast(array, &DataType::Float64).map_err(|_| wrong(data_type))?;
            Numbers::Float(doubles.as_primitive::<Float64Type>().values().clone())
        }
        View::Ordinal64 => Numbers::Ordinal64(match data_type {
            DataType::Int64 => array.as_primitive::<Int64Type>().values().clone(),
            DataType::Int8 => mapped::<Int8Type, _>(array, i64::from),
            DataType::Int16 => mapped::<Int16Type, _>(array, i64::from),
            DataType::Int32 => mapped::<Int32Type, _>(array, i64::from),
            DataType::UInt8 => mapped::<UInt8Type, _>(array, i64::from),
            DataType::UInt16 => mapped::<UInt16Type, _>(array, i64::from),
            DataType::UInt32 => mapped::<UInt32Type, _>(array, i64::from),
            DataType::UInt64 => mapped::<UInt64Type, _>(array, |v| (v ^ SIGN) as i64),
            DataType::Float32 => mapped::<Float32Type, _>(array, |v| float_ordinal(f64::from(v))),
            DataType::Float64 => mapped::<Float64Type, _>(array, float_ordinal),
            DataType::Date32 => mapped::<Date32Type, _>(array, i64::from),
            DataType::Date64 => mapped::<Date64Type, _>(array, |v| v),
            DataType::Time32(TimeUnit::Second) => mapped::<Time32SecondType, _>(array, i64::from),
            DataType::Time32(_) => mapped::<Time32MillisecondType, _>(array, i64::from),
            DataType::Time64(TimeUnit::Microsecond) => mapped::<Time64MicrosecondType, _>(array, |v| v),
            DataType::Time64(_) => mapped::<Time64NanosecondType, _>(array, |v| v),
            DataType::Timestamp(TimeUnit::Second, _) => array.as_primitive::<TimestampSecondType>().values().clone(),
            DataType::Timestamp(TimeUnit::Millisecond, _) => array.as_primitive::<TimestampMillisecondType>().values().clone(),
            DataType::Timestamp(TimeUnit::Microsecond, _) => array.as_primitive::<TimestampMicrosecondType>().values().clone(),
            DataType::Timestamp(TimeUnit::Nanosecond, _) => array.as_primitive::<TimestampNanosecondType>().values().clone(),
            DataType::Duration(TimeUnit::Second) => array.as_primitive::<DurationSecondType>().values().clone(),
            DataType::Duration(TimeUnit::Millisecond) => array.as_primitive::<DurationMillisecondType>().values().clone(),
            DataType::Duration(TimeUnit::Microsecond) => array.as_primitive::<DurationMicrosecondType>().values().clone(),
            DataType::Duration(TimeUnit::Nanosecond) => array.as_primitive::<DurationNanosecondType>().values().clone(),
            DataType::Interval(IntervalUnit::YearMonth) => mapped::<IntervalYearMonthType, _>(array, i64::from),
            DataType::Interval(IntervalUnit::DayTime) => mapped::<IntervalDayTimeType, _>(array, |v| {
                (i64::from(v.days) << 32) | i64::from(v.milliseconds as u32 ^ (1 << 31))
            }),
            DataType::Boolean => array.as_boolean().values().iter().map(i64::from).collect(),
            other => return Err(wrong(other)),
        }),
        View::Ordinal128 => Numbers::Ordinal128(match data_type {
            DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().values().clone(),
            DataType::UInt64 => mapped::<UInt64Type, _>(array, i128::from),
            DataType::Interval(IntervalUnit::MonthDayNano) => mapped::<IntervalMonthDayNanoType, _>(array, interval_ordinal),
            other => return Err(wrong(other)),
        }),
    })
}

fn unmapped<T: ArrowPrimitiveType, O: Copy>(
    ordinals: &[O],
    nulls: Option<NullBuffer>,
    data_type: &DataType,
    map: impl Fn(O) -> T::Native,
) -> ArrayRef {
    let values: ScalarBuffer<T::Native> = ordinals.iter().map(|o| map(*o)).collect();
    Arc::new(PrimitiveArray::<T>::new(values, nulls).with_data_type(data_type.clone()))
}

/// Ordinals as a column of `data_type`: the inverse of [`numbers`].
pub(crate) fn from_ordinals64(ordinals: &[i64], nulls: Option<NullBuffer>, data_type: &DataType) -> Result<ArrayRef> {
    macro_rules! of {
        ($type:ty, $map:expr) => {
            unmapped::<$type, _>(ordinals, nulls, data_type, $map)
        };
    }
    Ok(match data_type {
        DataType::Int64 => of!(Int64Type, |o| o),
        DataType::Int8 => of!(Int8Type, |o| o as i8),
        DataType::Int16 => of!(Int16Type, |o| o as i16),
        DataType::Int32 => of!(Int32Type, |o| o as i32),
        DataType::UInt8 => of!(UInt8Type, |o| o as u8),
        DataType::UInt16 => of!(UInt16Type, |o| o as u16),
        DataType::UInt32 => of!(UInt32Type, |o| o as u32),
        DataType::UInt64 => of!(UInt64Type, |o: i64| o as u64 ^ SIGN),
        DataType::Float32 => of!(Float32Type, |o| ordinal_float(o) as f32),
        DataType::Float64 => of!(Float64Type, ordinal_float),
        DataType::Date32 => of!(Date32Type, |o| o as i32),
        DataType::Date64 => of!(Date64Type, |o| o),
        DataType::Time32(TimeUnit::Second) => of!(Time32SecondType, |o| o as i32),
        DataType::Time32(_) => of!(Time32MillisecondType, |o| o as i32),
        DataType::Time64(TimeUnit::Microsecond) => of!(Time64MicrosecondType, |o| o),
        DataType::Time64(_) => of!(Time64NanosecondType, |o| o),
        DataType::Timestamp(TimeUnit::Second, _) => of!(TimestampSecondType, |o| o),
        DataType::Timestamp(TimeUnit::Millisecond, _) => of!(TimestampMillisecondType, |o| o),
        DataType::Timestamp(TimeUnit::Microsecond, _) => of!(TimestampMicrosecondType, |o| o),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => of!(TimestampNanosecondType, |o| o),
        DataType::Duration(TimeUnit::Second) => of!(DurationSecondType, |o| o),
        DataType::Duration(TimeUnit::Millisecond) => of!(DurationMillisecondType, |o| o),
        DataType::Duration(TimeUnit::Microsecond) => of!(DurationMicrosecondType, |o| o),
        DataType::Duration(TimeUnit::Nanosecond) => of!(DurationNanosecondType, |o| o),
        DataType::Interval(IntervalUnit::YearMonth) => of!(IntervalYearMonthType, |o| o as i32),
        DataType::Interval(IntervalUnit::DayTime) => {
            of!(IntervalDayTimeType, |o: i64| IntervalDayTime::new((o >> 32) as i32, (o as u32 ^ (1 << 31)) as i32))
        }
        DataType::Boolean => Arc::new(BooleanArray::new(ordinals.iter().map(|o| *o != 0).collect(), nulls)),
        other => return Err(wrong(other)),
    })
}

/// As [`from_ordinals64`].
pub(crate) fn from_ordinals128(ordinals: &[i128], nulls: Option<NullBuffer>, data_type: &DataType) -> Result<ArrayRef> {
    Ok(match data_type {
        DataType::Decimal128(..) => unmapped::<Decimal128Type, _>(ordinals, nulls, data_type, |o| o),
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            unmapped::<IntervalMonthDayNanoType, _>(ordinals, nulls, data_type, ordinal_interval)
        }
        other => return Err(wrong(other)),
    })
}
