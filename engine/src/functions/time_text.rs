//! `CAST(time AS STRING)`, and `CAST(text AS TIMESTAMP_LTZ)` in a zone: what the planner puts in place of those casts.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, StringViewBuilder, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Time64MicrosecondType, TimeUnit, TimestampMicrosecondType};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use super::call::{error, error_with_hint};
use super::time::read_time_in;
use super::time_format::{DAY_US, HOUR_US, MINUTE_US, SECOND_US, civil};
use crate::error::Code;
use crate::sql::types::timestamp_ltz;
use crate::time::Zone;

/// The name of the function that writes times, for EXPLAIN.
pub(crate) const TIME_TEXT: &str = "time_text";

/// `time`, a TIMESTAMP or TIME, as text of the type `to`: `2020-01-01 00:00:00.123` with so many digits of a second, or, when nothing says
/// how many (`None`), as many as are not 0.
pub(crate) fn time_text(time: Expr, digits: Option<u8>, to: DataType) -> Expr {
    let signature = Signature::any(1, Volatility::Immutable);
    ScalarUDF::from(TimeText { digits, to, signature }).call(vec![time])
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TimeText {
    digits: Option<u8>,
    to: DataType,
    signature: Signature,
}

/// Writes the digits of a second, behind a point.
fn fraction(out: &mut String, micros: i64, digits: Option<u8>) {
    let (mut value, mut width) = (micros, 6);
    match digits {
        Some(digits) => {
            while width > usize::from(digits) {
                value /= 10;
                width -= 1;
            }
        }
        None => {
            while width > 0 && value % 10 == 0 {
                value /= 10;
                width -= 1;
            }
        }
    }
    if width > 0 {
        // Writing to a String can't fail.
        let _infallible = write!(out, ".{value:0width$}");
    }
}

fn two(out: &mut String, number: i64) {
    out.push(char::from(b'0' + (number / 10 % 10) as u8));
    out.push(char::from(b'0' + (number % 10) as u8));
}

fn time_of_day(out: &mut String, of_day_us: i64, digits: Option<u8>) {
    two(out, of_day_us / HOUR_US);
    out.push(':');
    two(out, of_day_us / MINUTE_US % 60);
    out.push(':');
    two(out, of_day_us / SECOND_US % 60);
    fraction(out, of_day_us % SECOND_US, digits);
}

/// Writes a time, µs since 1970, behind `out`.
fn date_and_time(out: &mut String, time_us: i64, digits: Option<u8>) {
    let (year, month, day) = civil(time_us.div_euclid(DAY_US));
    if (0..=9999).contains(&year) {
        two(out, year / 100);
        two(out, year % 100);
    } else {
        // As ISO 8601 has it: a sign when it is not four digits.
        let _infallible = write!(out, "{}{:04}", if year < 0 { '-' } else { '+' }, year.abs());
    }
    out.push('-');
    two(out, month);
    out.push('-');
    two(out, day);
    out.push(' ');
    time_of_day(out, time_us.rem_euclid(DAY_US), digits);
}

impl TimeText {
    fn texts(&self, times: &ArrayRef) -> Result<ArrayRef> {
        let mut out = StringViewBuilder::with_capacity(times.len());
        let mut buffer = String::with_capacity(32);
        let mut write = |values: &[i64], put: fn(&mut String, i64, Option<u8>)| -> Result<()> {
            for (row, value) in values.iter().enumerate() {
                if times.is_null(row) {
                    out.append_null();
                    continue;
                }
                buffer.clear();
                put(&mut buffer, *value, self.digits);
                out.try_append_value(&buffer)?;
            }
            Ok(())
        };
        match times.data_type() {
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                write(times.as_primitive::<TimestampMicrosecondType>().values(), date_and_time)?;
            }
            DataType::Time64(TimeUnit::Microsecond) => {
                write(times.as_primitive::<Time64MicrosecondType>().values(), time_of_day)?;
            }
            other => return Err(error(Code::Internal, format!("{TIME_TEXT} of {other}"))),
        }
        let texts: ArrayRef = Arc::new(out.finish());
        Ok(if self.to == DataType::Utf8View { texts } else { cast(&texts, &self.to)? })
    }
}

impl ScalarUDFImpl for TimeText {
    fn name(&self) -> &str {
        TIME_TEXT
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(self.to.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        one_argument(args, |times| {
            // Of another unit only when DataFusion's own functions made it.
            let micros = match times.data_type() {
                DataType::Timestamp(TimeUnit::Microsecond, _) | DataType::Time64(TimeUnit::Microsecond) => times,
                DataType::Timestamp(_, zone) => cast(&times, &DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?,
                _ => cast(&times, &DataType::Time64(TimeUnit::Microsecond))?,
            };
            self.texts(&micros)
        })
    }
}

/// The times of a list as texts, those with a zone as `zone`'s clock shows them; NULLs stay.
pub(crate) fn list_text(times: Expr, zone: Zone) -> Expr {
    let signature = Signature::any(1, Volatility::Immutable);
    ScalarUDF::from(ListText { zone, signature }).call(vec![times])
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ListText {
    zone: Zone,
    signature: Signature,
}

fn list_of_texts() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Utf8View, true)))
}

impl ScalarUDFImpl for ListText {
    fn name(&self) -> &str {
        "list_text"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(list_of_texts())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        one_argument(args, |lists| {
            let lists = lists.as_list_opt::<i32>().ok_or_else(|| error(Code::Internal, "list_text of what is no list"))?;
            let is_instant = matches!(lists.value_type(), DataType::Timestamp(_, Some(_)));
            let times = cast(lists.values(), &DataType::Timestamp(TimeUnit::Microsecond, None))?;
            let times = times.as_primitive::<TimestampMicrosecondType>();
            let shown: TimestampMicrosecondArray = if is_instant {
                // Out of the range of a clock: NULL, as no text says it.
                times.iter().map(|time| time.and_then(|time_us| self.zone.clock_us(time_us))).collect()
            } else {
                times.clone()
            };
            let write = TimeText { digits: None, to: DataType::Utf8View, signature: self.signature.clone() };
            let texts = write.texts(&(Arc::new(shown) as ArrayRef))?;
            let field = Arc::new(Field::new_list_field(DataType::Utf8View, true));
            let nulls = lists.nulls().cloned();
            Ok(Arc::new(ListArray::try_new(field, lists.offsets().clone(), texts, nulls)?) as ArrayRef)
        })
    }
}

/// `text` as TIMESTAMP_LTZ: where it says no zone itself, it is read on that zone's clock. A text that is no time is an error, or NULL when
/// `is_try`.
pub(crate) fn read_instant(text: Expr, zone: Zone, is_try: bool) -> Expr {
    let signature = Signature::any(1, Volatility::Immutable);
    ScalarUDF::from(ReadInstant { zone, is_try, signature }).call(vec![text])
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ReadInstant {
    zone: Zone,
    is_try: bool,
    signature: Signature,
}

impl ScalarUDFImpl for ReadInstant {
    fn name(&self) -> &str {
        "read_instant"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(timestamp_ltz())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        one_argument(args, |texts| {
            let texts = cast(&texts, &DataType::Utf8View)?;
            let mut out = TimestampMicrosecondArray::builder(texts.len());
            for text in texts.as_string_view() {
                let Some(text) = text else {
                    out.append_null();
                    continue;
                };
                match read_time_in(text, None, self.zone) {
                    Some(time_us) => out.append_value(time_us),
                    None if self.is_try => out.append_null(),
                    None => {
                        let shown: String = text.chars().take(80).collect();
                        return Err(error_with_hint(
                            Code::InvalidCast,
                            format!("'{shown}' is no TIMESTAMP_LTZ"),
                            "TRY_CAST gives NULL instead",
                        ));
                    }
                }
            }
            Ok(Arc::new(out.finish().with_data_type(timestamp_ltz())) as ArrayRef)
        })
    }
}

/// Calls a function of one argument on arrays; a scalar stays one.
pub(super) fn one_argument(args: ScalarFunctionArgs, eval: impl FnOnce(ArrayRef) -> Result<ArrayRef>) -> Result<ColumnarValue> {
    let is_scalar = matches!(args.args.first(), Some(ColumnarValue::Scalar(_)));
    let rows = if is_scalar { 1 } else { args.number_rows };
    let value = args.args.into_iter().next().ok_or_else(|| DataFusionError::Internal("it takes one argument".into()))?;
    let out = eval(value.into_array(rows)?)?;
    Ok(if is_scalar { ColumnarValue::Scalar(ScalarValue::try_from_array(&out, 0)?) } else { ColumnarValue::Array(out) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn shown(time_us: i64, digits: Option<u8>) -> String {
        let mut out = String::new();
        date_and_time(&mut out, time_us, digits);
        out
    }

    #[test]
    fn as_many_digits_as_declared_or_as_are_not_zero() {
        let time_us = 1_582_920_062_120_500;
        for (digits, expected) in [
            (Some(0), "2020-02-28 20:01:02"),
            (Some(1), "2020-02-28 20:01:02.1"),
            (Some(3), "2020-02-28 20:01:02.120"),
            (Some(6), "2020-02-28 20:01:02.120500"),
            (None, "2020-02-28 20:01:02.1205"),
        ] {
            assert_eq!(shown(time_us, digits), expected);
        }
        assert_eq!(shown(0, None), "1970-01-01 00:00:00");
        assert_eq!(shown(-1, Some(6)), "1969-12-31 23:59:59.999999");
        assert_eq!(shown(-62_167_219_200_000_000 - 1, None), "-0001-12-31 23:59:59.999999");
        assert_eq!(shown(253_402_300_800_000_000, Some(0)), "+10000-01-01 00:00:00");
        let _the_ends_do_not_panic = (shown(i64::MIN, None), shown(i64::MAX, Some(6)));
    }
}
