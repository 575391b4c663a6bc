//! Times: their parts, their texts, and numbers that stand for them.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Date32Builder, Int64Array, Int64Builder, PrimitiveArray, StringViewBuilder,
    TimestampMicrosecondArray,
};
use arrow::compute::kernels::cast_utils::string_to_datetime;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};
use datafusion::common::Result;
use datafusion::logical_expr::Volatility;

use super::call::{Call, Function, Text, as_time, error, error_with_hint, is_integer, is_text};
use super::substrings::Substrings;
use super::time_format::{DAY_US, HOUR_US, MINUTE_US, Pattern, SECOND_US, civil, day_of_year, iso_week, weekday};
use super::zone::{Zones, out_of_range, zone_named};
use crate::error::Code;
use crate::sql::types::{timestamp, timestamp_ltz};
use crate::time::Zone;

macro_rules! part {
    ($name:literal, $aliases:expr, $doc:literal, $part:expr) => {
        Function {
            name: $name,
            aliases: $aliases,
            family: "time",
            signature: concat!($name, "(time)"),
            doc: $doc,
            volatility: Volatility::Immutable,
            types: |types| match types {
                [time] => Some((vec![as_time(time)?], DataType::Int64)),
                _ => None,
            },
            eval: |call| {
                let times = call.column(0)?;
                let times: &TimestampMicrosecondArray = times.as_primitive();
                let part: fn(i64) -> i64 = $part;
                Ok(Arc::new(times.unary::<_, Int64Type>(part)))
            },
        }
    };
}

fn days(time_us: i64) -> i64 {
    time_us.div_euclid(DAY_US)
}

/// Types of a function of a text and, perhaps, a pattern.
fn text_and_pattern(types: &[DataType], result: DataType) -> Option<(Vec<DataType>, DataType)> {
    let fits = matches!(types.len(), 1 | 2) && types.iter().all(is_text);
    fits.then(|| (vec![DataType::Utf8View; types.len()], result))
}

/// Types of a function of a text and, perhaps, a pattern and a zone.
fn text_pattern_and_zone(types: &[DataType], result: DataType) -> Option<(Vec<DataType>, DataType)> {
    let fits = matches!(types.len(), 1..=3) && types.iter().all(is_text);
    fits.then(|| (vec![DataType::Utf8View; types.len()], result))
}

/// Types of a function of a time and a pattern.
fn time_and_pattern(types: &[DataType]) -> Option<(Vec<DataType>, DataType)> {
    match types {
        [time, pattern] if is_text(pattern) => Some((vec![as_time(time)?, DataType::Utf8View], DataType::Utf8View)),
        _ => None,
    }
}

pub(super) const FUNCTIONS: &[Function] = &[
    part!("year", &[], "The year.", |t| civil(days(t)).0),
    part!("quarter", &[], "The quarter of the year, from 1.", |t| (civil(days(t)).1 + 2) / 3),
    part!("month", &[], "The month, from 1.", |t| civil(days(t)).1),
    part!("week", &["weekofyear"], "The ISO week of the year.", |t| iso_week(days(t)).1),
    part!("dayofyear", &[], "The day of the year, from 1.", |t| day_of_year(days(t))),
    part!("dayofmonth", &["day"], "The day of the month, from 1.", |t| civil(days(t)).2),
    part!("dayofweek", &[], "The day of the week; Sunday is 1.", |t| weekday(days(t)) + 1),
    part!("hour", &[], "The hour, 0 to 23.", |t| t.rem_euclid(DAY_US) / HOUR_US),
    part!("minute", &[], "The minute, 0 to 59.", |t| t.rem_euclid(HOUR_US) / MINUTE_US),
    part!("second", &[], "The second, 0 to 59.", |t| t.rem_euclid(MINUTE_US) / SECOND_US),
    Function {
        name: "date_format",
        aliases: &[],
        family: "time",
        signature: "date_format(time, pattern)",
        doc: "A time as text, by a pattern of Java: 'yyyy-MM-dd HH:mm:ss'.",
        volatility: Volatility::Immutable,
        types: time_and_pattern,
        eval: |call| format(call, Pattern::java),
    },
    Function {
        name: "to_char",
        aliases: &[],
        family: "time",
        signature: "to_char(time or number, pattern)",
        doc: "A time or a number as text, by a pattern of PostgreSQL: 'YYYY-MM-DD HH24:MI:SS', '9,990.00'. A number with more digits than its pattern shows #.",
        volatility: Volatility::Immutable,
        types: |types| super::number_format::number_and_pattern(types).or_else(|| time_and_pattern(types)),
        eval: |call| match super::number_format::to_char(call)? {
            Some(texts) => Ok(texts),
            None => format(call, Pattern::postgres),
        },
    },
    Function {
        name: "to_timestamp",
        aliases: &[],
        family: "time",
        signature: "to_timestamp(text [, pattern])  or  to_timestamp(seconds)",
        doc: "A text as TIMESTAMP, as ISO 8601 or by a pattern of Java or PostgreSQL; or seconds since 1970 as TIMESTAMP_LTZ. A text that does not fit is an error.",
        volatility: Volatility::Immutable,
        types: |types| match types {
            [time @ DataType::Timestamp(..)] => Some((vec![as_time(time)?], as_time(time)?)),
            [DataType::Date32] => Some((vec![timestamp()], timestamp())),
            [number] if number.is_numeric() => Some((vec![DataType::Float64], timestamp_ltz())),
            _ => text_and_pattern(types, timestamp()),
        },
        eval: |call| to_timestamp(call, false),
    },
    Function {
        name: "try_to_timestamp",
        aliases: &[],
        family: "time",
        signature: "try_to_timestamp(text [, pattern])",
        doc: "As to_timestamp, but NULL where the text does not fit.",
        volatility: Volatility::Immutable,
        types: |types| text_and_pattern(types, timestamp()),
        eval: |call| to_timestamp(call, true),
    },
    Function {
        name: "to_timestamp_ltz",
        aliases: &[],
        family: "time",
        signature: "to_timestamp_ltz(number [, precision])  or  to_timestamp_ltz(text [, pattern [, zone]])",
        doc: "A number since 1970 as TIMESTAMP_LTZ: seconds with precision 0, milliseconds with 3 (the default), microseconds with 6; or a text, read on the clock of the zone (the session's when left out) where it says no other.",
        volatility: Volatility::Immutable,
        types: |types| match types {
            [number] if number.is_integer() => Some((vec![DataType::Int64], timestamp_ltz())),
            [number, precision] if is_integer(number) && is_integer(precision) => {
                Some((vec![DataType::Int64; 2], timestamp_ltz()))
            }
            _ => text_pattern_and_zone(types, timestamp_ltz()),
        },
        eval: to_timestamp_ltz,
    },
    Function {
        name: "to_date",
        aliases: &[],
        family: "time",
        signature: "to_date(text [, pattern])",
        doc: "A text as DATE, as ISO 8601 or by a pattern of Java or PostgreSQL. A text that does not fit is an error.",
        volatility: Volatility::Immutable,
        types: |types| text_and_pattern(types, DataType::Date32),
        eval: |call| to_date(call, false),
    },
    Function {
        name: "try_to_date",
        aliases: &[],
        family: "time",
        signature: "try_to_date(text [, pattern])",
        doc: "As to_date, but NULL where the text does not fit.",
        volatility: Volatility::Immutable,
        types: |types| text_and_pattern(types, DataType::Date32),
        eval: |call| to_date(call, true),
    },
    Function {
        name: "unix_timestamp",
        aliases: &[],
        family: "time",
        signature: "unix_timestamp()  or  unix_timestamp(time)  or  unix_timestamp(text [, pattern [, zone]])",
        doc: "Whole seconds since 1970, of epoch time, of a time, or of a text such as '2024-02-29 13:04:05', read on the clock of the zone (the session's when left out).",
        volatility: Volatility::Immutable,
        types: |types| match types {
            [time @ (DataType::Timestamp(..) | DataType::Date32)] => Some((vec![as_time(time)?], DataType::Int64)),
            _ => text_pattern_and_zone(types, DataType::Int64),
        },
        eval: unix_timestamp,
    },
    Function {
        name: "from_unixtime",
        aliases: &[],
        family: "time",
        signature: "from_unixtime(seconds [, pattern [, zone]])",
        doc: "Seconds since 1970 as text, by a pattern of Java; 'yyyy-MM-dd HH:mm:ss' when left out. On the clock of the zone; the session's when left out.",
        volatility: Volatility::Immutable,
        types: |types| match types {
            [number] if is_integer(number) => Some((vec![DataType::Int64], DataType::Utf8View)),
            [number, pattern] if is_integer(number) && is_text(pattern) => {
                Some((vec![DataType::Int64, DataType::Utf8View], DataType::Utf8View))
            }
            [number, pattern, zone] if is_integer(number) && is_text(pattern) && is_text(zone) => {
                Some((vec![DataType::Int64, DataType::Utf8View, DataType::Utf8View], DataType::Utf8View))
            }
            _ => None,
        },
        eval: from_unixtime,
    },
    Function {
        name: "timestampdiff",
        aliases: &[],
        family: "time",
        signature: "timestampdiff(unit, from, to)",
        doc: "How many whole units lie between two times: SECOND, MINUTE, HOUR, DAY, WEEK, MONTH, QUARTER or YEAR.",
        volatility: Volatility::Immutable,
        types: |types| match types {
            [unit, from, to] if is_text(unit) => Some((vec![DataType::Utf8View, as_time(from)?, as_time(to)?], DataType::Int64)),
            _ => None,
        },
        eval: timestampdiff,
    },
];

/// The pattern in use, which seldom changes between rows.
struct Patterns<'p> {
    current: Option<(&'p str, Pattern)>,
    read: fn(&str) -> Result<Pattern>,
}

impl<'p> Patterns<'p> {
    fn new(read: fn(&str) -> Result<Pattern>) -> Self {
        Self { current: None, read }
    }

    fn get(&mut self, text: &'p str) -> Result<&Pattern> {
        if self.current.as_ref().is_none_or(|(known, _)| *known != text) {
            self.current = Some((text, (self.read)(text)?));
        }
        match &self.current {
            Some((_, pattern)) => Ok(pattern),
            None => Err(error(Code::Internal, "a pattern was lost")),
        }
    }
}

/// The zone in use.
#[derive(Default)]
struct Named<'z>(Option<(&'z str, Zone)>);

impl<'z> Named<'z> {
    fn get(&mut self, text: &'z str) -> Result<Zone> {
        match self.0 {
            Some((known, zone)) if known == text => Ok(zone),
            _ => {
                let zone = zone_named(text)?;
                self.0 = Some((text, zone));
                Ok(zone)
            }
        }
    }
}

/// Writes times as text. Neighbours that look the same are written once.
fn format(call: &Call<'_>, read: fn(&str) -> Result<Pattern>) -> Result<ArrayRef> {
    let times = call.column(0)?;
    let times: &TimestampMicrosecondArray = times.as_primitive();
    let text = call.text(1)?;
    let mut patterns = Patterns::new(read);
    let mut out = Substrings::new(Text::Constant(None), call.rows);
    // The pattern that wrote the last text, and the times that look like it.
    let mut last: Option<(&str, Range<i64>)> = None;
    let mut buffer = String::new();
    for row in 0..call.rows {
        let Some(text) = text.get(row).filter(|_| times.is_valid(row)) else {
            out.push_null();
            last = None;
            continue;
        };
        let time_us = times.value(row);
        if last.as_ref().is_some_and(|(known, same)| std::ptr::eq(*known, text) && same.contains(&time_us)) {
            out.push_again();
            continue;
        }
        let pattern = patterns.get(text)?;
        buffer.clear();
        pattern.write(time_us, &mut buffer);
        out.push_new(&buffer);
        let start = time_us.saturating_sub(time_us.rem_euclid(pattern.granule_us));
        last = Some((text, start..start.saturating_add(pattern.granule_us)));
    }
    Ok(out.finish())
}

fn from_unixtime(call: &Call<'_>) -> Result<ArrayRef> {
    let seconds = call.integer(0)?;
    let pattern_text = if call.arity() >= 2 { call.text(1)? } else { Text::Constant(Some("yyyy-MM-dd HH:mm:ss")) };
    let zone_text = if call.arity() == 3 { call.text(2)? } else { Text::Constant(Some("UTC")) };
    let mut zones = Zones::default();
    let mut patterns = Patterns::new(Pattern::java);
    let mut out = StringViewBuilder::with_capacity(call.rows);
    let mut buffer = String::new();
    for row in 0..call.rows {
        let (Some(seconds), Some(text), Some(zone)) = (seconds.get(row), pattern_text.get(row), zone_text.get(row)) else {
            out.append_null();
            continue;
        };
        let time_us = seconds
            .checked_mul(SECOND_US)
            .ok_or_else(|| error(Code::Overflow, format!("{seconds} seconds are out of the range of a time")))?;
        let time_us = zones.get(zone)?.clock_us(time_us).ok_or_else(out_of_range)?;
        buffer.clear();
        patterns.get(text)?.write(time_us, &mut buffer);
        out.try_append_value(&buffer)?;
    }
    Ok(Arc::new(out.finish()))
}

/// A text as time. Without a pattern: ISO 8601, a zone counts.
fn read_time(text: &str, pattern: Option<&Pattern>) -> Option<i64> {
    match pattern {
        Some(pattern) => pattern.read(text.trim()),
        None => string_to_datetime(&chrono::Utc, text.trim()).ok().map(|time| time.timestamp_micros()),
    }
}

/// A text as an instant. What it says of a zone counts; a text that says nothing is read on the clock of `zone`.
pub(super) fn read_time_in(text: &str, pattern: Option<&Pattern>, zone: Zone) -> Option<i64> {
    let read = read_time(text, pattern)?;
    let says_zone = match pattern {
        Some(pattern) => pattern.has_zone(),
        // Behind `2020-01-01 00:00` only the time of day, if nothing else is said.
        None => text.trim().get(16..).is_some_and(|rest| !rest.bytes().all(|b| b.is_ascii_digit() || b == b':' || b == b'.')),
    };
    if says_zone { Some(read) } else { zone.instant_us(read) }
}

/// Reads each text; `None` in a row stays `None`; a text that does not fit is an error, or `None` with `lenient`.
fn read_times(call: &Call<'_>, lenient: bool, what: &str, mut push: impl FnMut(Option<i64>)) -> Result<()> {
    let text = call.text(0)?;
    let pattern_text = if call.arity() >= 2 { Some(call.text(1)?) } else { None };
    let zone_text = if call.arity() == 3 { Some(call.text(2)?) } else { None };
    let mut patterns = Patterns::new(Pattern::either);
    let mut zones = Named::default();
    for row in 0..call.rows {
        let zone = match zone_text {
            None => Zone::UTC,
            Some(zone) => match zone.get(row) {
                Some(text) => zones.get(text)?,
                None => {
                    push(None);
                    continue;
                }
            },
        };
        let pattern = match pattern_text {
            None => None,
            Some(pattern) => match pattern.get(row) {
                // As if there were none: what the planner says when only a zone is to be said.
                Some("") => None,
                Some(text) => Some(patterns.get(text)?),
                None => {
                    push(None);
                    continue;
                }
            },
        };
        let Some(text) = text.get(row) else {
            push(None);
            continue;
        };
        match read_time_in(text, pattern, zone) {
            Some(time_us) => push(Some(time_us)),
            None if lenient => push(None),
            None => {
                let shown: String = text.chars().take(80).collect();
                let hint = format!("try_{what} gives NULL instead");
                return Err(error_with_hint(Code::InvalidCast, format!("{what}: '{shown}' is no time of that form"), &hint));
            }
        }
    }
    Ok(())
}

/// µs as the wanted kind of timestamp.
fn times(values: PrimitiveArray<TimestampMicrosecondType>, wanted: &DataType) -> ArrayRef {
    match wanted {
        DataType::Timestamp(_, zone) => Arc::new(values.with_timezone_opt(zone.clone())),
        _ => Arc::new(values),
    }
}

fn to_timestamp(call: &Call<'_>, lenient: bool) -> Result<ArrayRef> {
    if call.text(0).is_err() {
        let values = call.column(0)?;
        if let Some(seconds) = values.as_primitive_opt::<Float64Type>() {
            let out = seconds.try_unary::<_, TimestampMicrosecondType, datafusion::common::DataFusionError>(|seconds| {
                let micros = (seconds * 1e6).round();
                if micros.abs() < 9.2e18 {
                    Ok(micros as i64)
                } else {
                    Err(error(Code::Overflow, format!("{seconds} seconds are out of the range of a time")))
                }
            })?;
            return Ok(times(out, call.return_type));
        }
        return Ok(values);
    }
    let mut out = TimestampMicrosecondArray::builder(call.rows);
    read_times(call, lenient, "to_timestamp", |time| out.append_option(time))?;
    Ok(times(out.finish(), call.return_type))
}

fn to_timestamp_ltz(call: &Call<'_>) -> Result<ArrayRef> {
    let mut out = TimestampMicrosecondArray::builder(call.rows);
    let Ok(number) = call.integer(0) else {
        read_times(call, false, "to_timestamp_ltz", |time| out.append_option(time))?;
        return Ok(times(out.finish(), call.return_type));
    };
    let precision = if call.arity() == 2 { call.integer(1)? } else { super::call::Integer::Constant(Some(3)) };
    for row in 0..call.rows {
        let (Some(number), Some(precision)) = (number.get(row), precision.get(row)) else {
            out.append_null();
            continue;
        };
        let unit_us = match precision {
            0 => SECOND_US,
            3 => 1_000,
            6 => 1,
            _ => {
                return Err(error_with_hint(
                    Code::InvalidArgument,
                    format!("to_timestamp_ltz: there is no precision {precision}"),
                    "0 is for seconds, 3 for milliseconds, 6 for microseconds",
                ));
            }
        };
        let micros = number
            .checked_mul(unit_us)
            .ok_or_else(|| error(Code::Overflow, format!("to_timestamp_ltz: {number} is out of the range of a time")))?;
        out.append_value(micros);
    }
    Ok(times(out.finish(), call.return_type))
}

fn to_date(call: &Call<'_>, lenient: bool) -> Result<ArrayRef> {
    let mut out = Date32Builder::with_capacity(call.rows);
    let mut is_out_of_range = false;
    read_times(call, lenient, "to_date", |time| match time.map(|time| i32::try_from(days(time))) {
        Some(Ok(days)) => out.append_value(days),
        Some(Err(_)) => {
            is_out_of_range = true;
            out.append_null();
        }
        None => out.append_null(),
    })?;
    if is_out_of_range && !lenient {
        return Err(error(Code::Overflow, "to_date: a date is out of range"));
    }
    Ok(Arc::new(out.finish()))
}

fn unix_timestamp(call: &Call<'_>) -> Result<ArrayRef> {
    if call.text(0).is_err() {
        let values = call.column(0)?;
        let values: &TimestampMicrosecondArray = values.as_primitive();
        return Ok(Arc::new(values.unary::<_, Int64Type>(|time| time.div_euclid(SECOND_US))));
    }
    let mut out = Int64Builder::with_capacity(call.rows);
    read_times(call, false, "unix_timestamp", |time| out.append_option(time.map(|time| time.div_euclid(SECOND_US))))?;
    Ok(Arc::new(out.finish()))
}

fn timestampdiff(call: &Call<'_>) -> Result<ArrayRef> {
    let unit = call.text(0)?;
    let (from, to) = (call.column(1)?, call.column(2)?);
    let (from, to): (&TimestampMicrosecondArray, &TimestampMicrosecondArray) = (from.as_primitive(), to.as_primitive());
    let mut out = Int64Builder::with_capacity(call.rows);
    for row in 0..call.rows {
        let Some(unit) = unit.get(row).filter(|_| from.is_valid(row) && to.is_valid(row)) else {
            out.append_null();
            continue;
        };
        let (from, to) = (from.value(row), to.value(row));
        let singular = unit.strip_suffix(['s', 'S']).unwrap_or(unit).to_ascii_uppercase();
        let fixed = |unit_us: i64| to.checked_sub(from).map(|between| between / unit_us);
        let value = match singular.as_str() {
            "MICROSECOND" => fixed(1),
            "MILLISECOND" => fixed(1_000),
            "SECOND" => fixed(SECOND_US),
            "MINUTE" => fixed(MINUTE_US),
            "HOUR" => fixed(HOUR_US),
            "DAY" => fixed(DAY_US),
            "WEEK" => fixed(7 * DAY_US),
            "MONTH" => Some(months_between(from, to)),
            "QUARTER" => Some(months_between(from, to) / 3),
            "YEAR" => Some(months_between(from, to) / 12),
            _ => {
                return Err(error_with_hint(
                    Code::InvalidArgument,
                    format!("timestampdiff: '{unit}' is no unit"),
                    "the units are SECOND, MINUTE, HOUR, DAY, WEEK, MONTH, QUARTER and YEAR",
                ));
            }
        };
        out.append_value(value.ok_or_else(|| error(Code::Overflow, "timestampdiff: the times are too far apart"))?);
    }
    Ok(Arc::new(out.finish()) as Arc<Int64Array>)
}

/// Whole months from one time to another; negative backwards.
fn months_between(from: i64, to: i64) -> i64 {
    if to < from {
        return -months_between(to, from);
    }
    let place = |time: i64| {
        let (year, month, day) = civil(days(time));
        (year * 12 + month, (day - 1) * DAY_US + time.rem_euclid(DAY_US))
    };
    let ((from_month, from_rest), (to_month, to_rest)) = (place(from), place(to));
    to_month - from_month - i64::from(to_rest < from_rest)
}
