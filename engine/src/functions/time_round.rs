//! `FLOOR(time TO unit)` and `CEIL(time TO unit)`, as in Flink: weeks begin on Sunday, centuries and millennia with the year 1.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Date32Array, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Date32Type, TimestampMicrosecondType};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::Volatility;

use super::call::{Call, Function, as_time, error, error_with_hint, is_text};
use super::time_format::{DAY_US, HOUR_US, MINUTE_US, SECOND_US, civil, days_from_civil, weekday};
use crate::error::Code;

macro_rules! round {
    ($name:literal, $signature:literal, $doc:literal, $up:literal) => {
        Function {
            name: $name,
            aliases: &[],
            family: "time",
            signature: $signature,
            doc: $doc,
            volatility: Volatility::Immutable,
            types: |types| match types {
                [unit, DataType::Date32] if is_text(unit) => Some((vec![DataType::Utf8View, DataType::Date32], DataType::Date32)),
                [unit, time @ (DataType::Timestamp(..) | DataType::Null)] if is_text(unit) => {
                    Some((vec![DataType::Utf8View, as_time(time)?], as_time(time)?))
                }
                _ => None,
            },
            eval: |call| round(call, $up),
        }
    };
}

pub(super) const FUNCTIONS: &[Function] = &[
    round!(
        "floor_time",
        "FLOOR(time TO unit)",
        "The start of the SECOND, MINUTE, HOUR, DAY, WEEK (from Sunday), MONTH, QUARTER, YEAR, DECADE, CENTURY or MILLENNIUM that a time is in.",
        false
    ),
    round!(
        "ceil_time",
        "CEIL(time TO unit)",
        "The first start of such a unit that is not before the time; see FLOOR(time TO unit).",
        true
    ),
];

/// What boundaries are counted in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Unit {
    /// So many µs from a start.
    Fixed { step_us: i64, start_us: i64 },
    /// So many months, counted from January of year 0.
    Months { step: i64, start: i64 },
}

impl Unit {
    fn parse(text: &str) -> Option<Self> {
        let fixed = |step_us| Self::Fixed { step_us, start_us: 0 };
        let months = |step| Self::Months { step, start: 0 };
        Some(match text.to_ascii_uppercase().as_str() {
            "MICROSECOND" => fixed(1),
            "MILLISECOND" => fixed(1000),
            "SECOND" => fixed(SECOND_US),
            "MINUTE" => fixed(MINUTE_US),
            "HOUR" => fixed(HOUR_US),
            "DAY" => fixed(DAY_US),
            // The first Sunday of 1970 is the fourth of January.
            "WEEK" => Self::Fixed { step_us: 7 * DAY_US, start_us: (7 - weekday(0)) * DAY_US },
            "MONTH" => months(1),
            "QUARTER" => months(3),
            "YEAR" => months(12),
            "DECADE" => months(120),
            "CENTURY" => Self::Months { step: 1200, start: 12 },
            "MILLENNIUM" => Self::Months { step: 12_000, start: 12 },
            _ => return None,
        })
    }

    /// The last boundary that is not behind `time_us`, or the first that is not before it; `None` out of range.
    fn round(self, time_us: i64, up: bool) -> Option<i64> {
        match self {
            Self::Fixed { step_us, start_us } => {
                let rest = time_us.checked_sub(start_us)?.rem_euclid(step_us);
                let floor = time_us.checked_sub(rest)?;
                if up && rest != 0 { floor.checked_add(step_us) } else { Some(floor) }
            }
            Self::Months { step, start } => {
                let (year, month, _) = civil(time_us.div_euclid(DAY_US));
                let index = (year * 12 + month - 1 - start).div_euclid(step);
                let boundary = |index: i64| {
                    let months = index * step + start;
                    days_from_civil(months.div_euclid(12), months.rem_euclid(12) + 1, 1).checked_mul(DAY_US)
                };
                let floor = boundary(index)?;
                if up && floor != time_us { boundary(index + 1) } else { Some(floor) }
            }
        }
    }
}

fn out_of_range() -> DataFusionError {
    error(Code::Overflow, "a time is out of the range of a TIMESTAMP when it is rounded")
}

fn round(call: &Call<'_>, up: bool) -> Result<ArrayRef> {
    let units = call.text(0)?;
    let times = call.column(1)?;
    let mut last: Option<(&str, Unit)> = None;
    let mut unit_of = |row: usize| -> Result<Option<Unit>> {
        let Some(text) = units.get(row) else { return Ok(None) };
        if let Some((known, unit)) = last
            && known == text
        {
            return Ok(Some(unit));
        }
        let unit = Unit::parse(text).ok_or_else(|| {
            error_with_hint(
                Code::InvalidArgument,
                format!("'{text}' is no unit of time"),
                "the units are SECOND, MINUTE, HOUR, DAY, WEEK, MONTH, QUARTER, YEAR, DECADE, CENTURY and MILLENNIUM",
            )
        })?;
        last = Some((text, unit));
        Ok(Some(unit))
    };
    if let Some(dates) = times.as_primitive_opt::<Date32Type>() {
        let mut out = Date32Array::builder(call.rows);
        for row in 0..call.rows {
            let Some(unit) = unit_of(row)?.filter(|_| dates.is_valid(row)) else {
                out.append_null();
                continue;
            };
            let rounded = unit.round(i64::from(dates.value(row)) * DAY_US, up).ok_or_else(out_of_range)?;
            out.append_value(i32::try_from(rounded.div_euclid(DAY_US)).map_err(|_| out_of_range())?);
        }
        return Ok(Arc::new(out.finish()));
    }
    let times = times.as_primitive::<TimestampMicrosecondType>();
    let mut out = TimestampMicrosecondArray::builder(call.rows);
    for row in 0..call.rows {
        match unit_of(row)?.filter(|_| times.is_valid(row)) {
            Some(unit) => out.append_value(unit.round(times.value(row), up).ok_or_else(out_of_range)?),
            None => out.append_null(),
        }
    }
    Ok(Arc::new(out.finish().with_data_type(call.return_type.clone())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use chrono::{DateTime, Datelike};
    use proptest::prelude::*;

    use super::*;

    fn us(text: &str) -> i64 {
        text.parse::<DateTime<chrono::Utc>>().unwrap().timestamp_micros()
    }

    #[test]
    fn each_unit_has_its_start_and_its_next() {
        let time = us("2020-02-29T20:01:02.123456Z");
        for (unit, floor, ceil) in [
            ("MILLISECOND", "2020-02-29T20:01:02.123Z", "2020-02-29T20:01:02.124Z"),
            ("SECOND", "2020-02-29T20:01:02Z", "2020-02-29T20:01:03Z"),
            ("MINUTE", "2020-02-29T20:01:00Z", "2020-02-29T20:02:00Z"),
            ("HOUR", "2020-02-29T20:00:00Z", "2020-02-29T21:00:00Z"),
            ("DAY", "2020-02-29T00:00:00Z", "2020-03-01T00:00:00Z"),
            ("WEEK", "2020-02-23T00:00:00Z", "2020-03-01T00:00:00Z"),
            ("MONTH", "2020-02-01T00:00:00Z", "2020-03-01T00:00:00Z"),
            ("QUARTER", "2020-01-01T00:00:00Z", "2020-04-01T00:00:00Z"),
            ("YEAR", "2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z"),
            ("DECADE", "2020-01-01T00:00:00Z", "2030-01-01T00:00:00Z"),
            ("CENTURY", "2001-01-01T00:00:00Z", "2101-01-01T00:00:00Z"),
            ("millennium", "2001-01-01T00:00:00Z", "3001-01-01T00:00:00Z"),
        ] {
            let parsed = Unit::parse(unit).unwrap();
            assert_eq!(parsed.round(time, false), Some(us(floor)), "{unit}");
            assert_eq!(parsed.round(time, true), Some(us(ceil)), "{unit}");
            assert_eq!(parsed.round(us(floor), true), Some(us(floor)), "{unit}");
        }
        assert_eq!(Unit::parse("YEAR").unwrap().round(-1, false), Some(us("1969-01-01T00:00:00Z")));
        assert_eq!(Unit::parse("SECOND").unwrap().round(i64::MIN, false), None);
        assert_eq!(Unit::parse("FORTNIGHT"), None);
    }

    proptest! {
        #[test]
        fn a_time_lies_between_its_boundaries(seconds in -60_000_000_000i64..200_000_000_000, micros in 0i64..SECOND_US) {
            let time = seconds * SECOND_US + micros;
            for unit in ["SECOND", "HOUR", "DAY", "WEEK", "MONTH", "QUARTER", "YEAR", "DECADE", "CENTURY", "MILLENNIUM"] {
                let parsed = Unit::parse(unit).unwrap();
                let (floor, ceil) = (parsed.round(time, false).unwrap(), parsed.round(time, true).unwrap());
                prop_assert!(floor <= time && time <= ceil, "{}", unit);
                prop_assert_eq!(floor == ceil, floor == time, "{}", unit);
                prop_assert_eq!(parsed.round(floor, false), Some(floor));
                if unit == "MONTH" {
                    let (date, start) = (DateTime::from_timestamp_micros(time).unwrap(), DateTime::from_timestamp_micros(floor).unwrap());
                    prop_assert_eq!((date.year(), date.month(), 1), (start.year(), start.month(), start.day()));
                }
            }
        }
    }
}
