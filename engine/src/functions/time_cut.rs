//! Times with fewer digits of a second than they could have: `TIMESTAMP(3)` of a column or a cast.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, MapArray, PrimitiveArray, StructArray};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field, FieldRef, Fields, Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::time_text::one_argument;
use crate::sql::types::{TIME_DIGITS_MAX, time_digits};

/// The name of the function that cuts times, for EXPLAIN.
pub(crate) const TIME_CUT: &str = "time_cut";

/// Whether a column's type declares times with fewer digits than they could have, itself or inside.
pub(crate) fn cuts_times(field: &Field) -> bool {
    if time_digits(field).is_some_and(|digits| digits < TIME_DIGITS_MAX) {
        return true;
    }
    match field.data_type() {
        DataType::List(inner) => cuts_times(inner),
        DataType::Map(entries, _) => cuts_times(entries),
        DataType::Struct(fields) => fields.iter().any(|field| cuts_times(field)),
        _ => false,
    }
}

/// The fewest digits of a second that a column's type declares, itself or inside.
pub(crate) fn least_digits(field: &Field) -> u8 {
    let own = time_digits(field).unwrap_or(TIME_DIGITS_MAX);
    match field.data_type() {
        DataType::List(inner) => least_digits(inner).min(own),
        DataType::Map(entries, _) => least_digits(entries).min(own),
        DataType::Struct(fields) => fields.iter().map(|field| least_digits(field)).min().map_or(own, |inside| inside.min(own)),
        _ => own,
    }
}

/// `value`, of the type of `field`, with its times cut to the digits that the type declares. Digits are cut off, not rounded, as in Flink.
pub(crate) fn time_cut(value: Expr, field: &FieldRef) -> Expr {
    ScalarUDF::from(TimeCut { field: field.clone(), signature: Signature::any(1, Volatility::Immutable) }).call(vec![value])
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TimeCut {
    field: FieldRef,
    signature: Signature,
}

/// The times of `array` as `field` declares them; its type stays.
fn cut(array: &ArrayRef, field: &Field) -> ArrayRef {
    if !cuts_times(field) {
        return array.clone();
    }
    match array.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, _) => primitive::<TimestampMicrosecondType>(array, field),
        DataType::Time64(TimeUnit::Microsecond) => primitive::<Time64MicrosecondType>(array, field),
        DataType::Struct(own) => {
            let DataType::Struct(declared) = field.data_type() else { return array.clone() };
            fields(array.as_struct(), own, declared).map_or_else(|| array.clone(), |cut| Arc::new(cut) as ArrayRef)
        }
        DataType::List(own) => {
            let DataType::List(declared) = field.data_type() else { return array.clone() };
            let list: &ListArray = array.as_list();
            let values = cut(list.values(), declared);
            ListArray::try_new(own.clone(), list.offsets().clone(), values, list.nulls().cloned())
                .map_or_else(|_| array.clone(), |cut| Arc::new(cut) as ArrayRef)
        }
        DataType::Map(own, is_sorted) => {
            let (DataType::Map(declared, _), DataType::Struct(own_entries)) = (field.data_type(), own.data_type()) else {
                return array.clone();
            };
            let DataType::Struct(declared) = declared.data_type() else { return array.clone() };
            let map: &MapArray = array.as_map();
            fields(map.entries(), own_entries, declared)
                .and_then(|entries| {
                    MapArray::try_new(own.clone(), map.offsets().clone(), entries, map.nulls().cloned(), *is_sorted).ok()
                })
                .map_or_else(|| array.clone(), |cut| Arc::new(cut) as ArrayRef)
        }
        _ => array.clone(),
    }
}

fn fields(array: &StructArray, own: &Fields, declared: &Fields) -> Option<StructArray> {
    if own.len() != declared.len() {
        return None;
    }
    let columns = array.columns().iter().zip(declared).map(|(column, field)| cut(column, field)).collect();
    StructArray::try_new(own.clone(), columns, array.nulls().cloned()).ok()
}

fn primitive<T: ArrowPrimitiveType<Native = i64>>(array: &ArrayRef, field: &Field) -> ArrayRef {
    let digits = time_digits(field).unwrap_or(TIME_DIGITS_MAX);
    let unit_us = 10i64.pow(u32::from(TIME_DIGITS_MAX - digits));
    let values: &PrimitiveArray<T> = array.as_primitive();
    // `i64::MIN` has no lower neighbour that is whole.
    let cut = values.unary::<_, T>(|us| us.saturating_sub(us.rem_euclid(unit_us)));
    Arc::new(cut.with_data_type(array.data_type().clone()))
}

impl ScalarUDFImpl for TimeCut {
    fn name(&self) -> &str {
        TIME_CUT
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        types.first().cloned().ok_or_else(|| DataFusionError::Internal("it takes one argument".into()))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let given = args.arg_fields.first().ok_or_else(|| DataFusionError::Internal("it takes one argument".into()))?;
        let field = Field::new(self.name(), given.data_type().clone(), given.is_nullable());
        Ok(Arc::new(field.with_metadata(self.field.metadata().clone())))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        one_argument(args, |times| Ok(cut(&times, &self.field)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use arrow::array::{Int32Array, TimestampMicrosecondArray};
    use arrow::buffer::OffsetBuffer;

    use super::*;
    use crate::sql::types::{timestamp, with_time_digits};

    #[test]
    fn digits_are_cut_off_before_1970_too_and_inside_of_rows_and_lists() {
        let at = with_time_digits(Field::new("at", timestamp(), true), 3);
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![Some(1_234_567), None, Some(-1), Some(i64::MIN)]));
        let three = cut(&times, &at);
        let three: &TimestampMicrosecondArray = three.as_primitive();
        assert_eq!(three.iter().collect::<Vec<_>>(), [Some(1_234_000), None, Some(-1000), Some(i64::MIN)]);

        let fields = Fields::from(vec![Field::new("n", DataType::Int32, true), at.clone()]);
        let row: ArrayRef =
            Arc::new(StructArray::new(fields.clone(), vec![Arc::new(Int32Array::from(vec![1; 4])), times.clone()], None));
        let list_field = Arc::new(Field::new("item", DataType::Struct(fields), true));
        let list: ArrayRef = Arc::new(ListArray::new(list_field.clone(), OffsetBuffer::from_lengths([4]), row, None));
        let field = Field::new("l", DataType::List(list_field), true);
        assert!(cuts_times(&field));
        let done = cut(&list, &field);
        let rows = done.as_list::<i32>().values().as_struct().column(1).clone();
        assert_eq!(rows.as_primitive::<TimestampMicrosecondType>().value(0), 1_234_000);

        let six = with_time_digits(Field::new("at", timestamp(), true), 6);
        assert!(!cuts_times(&six) && Arc::ptr_eq(&cut(&times, &six), &times));
    }
}
