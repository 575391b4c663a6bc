//! `INTERVAL` literals: PostgreSQL's (`'1 hour 30 min'`, `'2 days 03:04:05'`) and the standard's (`'5' SECOND`, `'1:30' MINUTE TO SECOND`).

use std::fmt;

use sqlparser::ast::{DateTimeField, Expr, Interval as SqlInterval, UnaryOperator, Value};

use super::tokens::span_of_node;
use crate::error::{Code, Diagnostic, Result};

/// µs of a second.
pub const SECOND_US: i64 = 1_000_000;
/// µs of a day.
pub const DAY_US: i64 = 86_400 * SECOND_US;

/// A length of time. Days are 24 hours; months have no fixed length and stand for themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Interval {
    /// Calendar months.
    pub months: i32,
    /// Microseconds, days and weeks among them.
    pub micros: i64,
}

impl Interval {
    /// A length without months.
    #[must_use]
    pub fn from_micros(micros: i64) -> Self {
        Self { months: 0, micros }
    }

    /// Whether it is longer than nothing and no part of it is negative.
    #[must_use]
    pub fn is_positive(self) -> bool {
        self.months >= 0 && self.micros >= 0 && self != Self::default()
    }
}

impl fmt::Display for Interval {
    /// As a literal that means the same: `INTERVAL '10 seconds'`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "INTERVAL '{}'", text(self.months, 0, self.micros))
    }
}

/// A length as the literal that people write: `INTERVAL '10' SECOND` where one unit says it, else `INTERVAL '1 day 2 hours'`.
#[must_use]
pub fn literal(months: i32, days: i32, micros: i64) -> String {
    let units = [("HOUR", 3600 * SECOND_US), ("MINUTE", 60 * SECOND_US), ("SECOND", SECOND_US)];
    let one = match (months, days, micros) {
        (months, 0, 0) if months != 0 => {
            Some(if months % 12 == 0 { (i64::from(months / 12), "YEAR") } else { (i64::from(months), "MONTH") })
        }
        (0, days, 0) if days != 0 => Some((i64::from(days), "DAY")),
        (0, 0, micros) if micros != 0 => units.iter().find(|(_, us)| micros % us == 0).map(|(unit, us)| (micros / us, *unit)),
        _ => None,
    };
    match one {
        Some((count, unit)) => format!("INTERVAL '{count}' {unit}"),
        None => format!("INTERVAL '{}'", text(months, i64::from(days), micros)),
    }
}

/// Months, days and µs as text that DataFusion and PostgreSQL read.
fn text(months: i32, days: i64, micros: i64) -> String {
    let mut parts = Vec::new();
    let mut part = |count: i64, unit: &str| {
        if count != 0 {
            parts.push(format!("{count} {unit}{}", if count.abs() == 1 { "" } else { "s" }));
        }
    };
    part(i64::from(months), "month");
    part(days + micros / DAY_US, "day");
    let rest = micros % DAY_US;
    part(rest / (3600 * SECOND_US), "hour");
    part(rest / (60 * SECOND_US) % 60, "minute");
    let seconds = rest % (60 * SECOND_US);
    if seconds % SECOND_US == 0 {
        part(seconds / SECOND_US, "second");
    } else {
        let sign = if seconds < 0 { "-" } else { "" };
        let fraction = format!("{:06}", (seconds % SECOND_US).abs());
        parts.push(format!("{sign}{}.{} seconds", (seconds / SECOND_US).abs(), fraction.trim_end_matches('0')));
    }
    if parts.is_empty() { "0 seconds".to_owned() } else { parts.join(" ") }
}

/// A literal's parts. Days are kept apart, as PostgreSQL does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Parts {
    months: i64,
    days: i64,
    micros: i64,
}

/// The length that an expression says, which must be a literal: an INTERVAL, negated perhaps.
pub fn constant(expr: &Expr) -> Result<Interval> {
    let parts = match expr {
        Expr::Interval(interval) => parts(interval)?,
        Expr::Nested(inner) => return constant(inner),
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => {
            let inner = constant(expr)?;
            return Ok(Interval { months: -inner.months, micros: -inner.micros });
        }
        _ => {
            return Err(Diagnostic::new(Code::InvalidArgument, format!("`{expr}` is no constant interval"))
                .at(span_of_node(expr))
                .hint("write a literal, such as INTERVAL '10' SECOND"));
        }
    };
    let out_of_range = || out_of_range(expr);
    let days = parts.days.checked_mul(DAY_US).ok_or_else(out_of_range)?;
    Ok(Interval {
        months: parts.months.try_into().map_err(|_| out_of_range())?,
        micros: parts.micros.checked_add(days).ok_or_else(out_of_range)?,
    })
}

fn out_of_range(node: &impl fmt::Display) -> Diagnostic {
    Diagnostic::new(Code::InvalidArgument, format!("`{node}` is longer than an interval can be"))
}

/// Brings a literal into the one form that DataFusion plans: a text with units, and no qualifier behind it.
///
/// An interval of something that is no literal (`INTERVAL x DAY`) is refused.
pub(super) fn normalize(interval: &mut SqlInterval) -> Result<()> {
    let parts = parts(interval)?;
    let months = i32::try_from(parts.months).map_err(|_| out_of_range(interval))?;
    let canonical = text(months, parts.days, parts.micros);
    if let Expr::Value(value) = interval.value.as_mut() {
        value.value = Value::SingleQuotedString(canonical);
    }
    interval.leading_field = None;
    interval.leading_precision = None;
    interval.last_field = None;
    interval.fractional_seconds_precision = None;
    Ok(())
}

/// The length of one unit.
fn unit(name: &str) -> Option<Parts> {
    let micros = |micros: i64| Parts { micros, ..Parts::default() };
    let name = name.to_ascii_lowercase();
    let singular = name.strip_suffix('s').filter(|s| s.len() > 1 && !matches!(*s, "m" | "u" | "n")).unwrap_or(&name);
    Some(match singular {
        "microsecond" | "usec" | "us" | "µs" => micros(1),
        "millisecond" | "msec" | "ms" => micros(1_000),
        "second" | "sec" | "s" => micros(SECOND_US),
        "minute" | "min" | "m" => micros(60 * SECOND_US),
        "hour" | "hr" | "h" => micros(3600 * SECOND_US),
        "day" | "d" => Parts { days: 1, ..Parts::default() },
        "week" | "w" => Parts { days: 7, ..Parts::default() },
        "month" | "mon" => Parts { months: 1, ..Parts::default() },
        "quarter" => Parts { months: 3, ..Parts::default() },
        "year" | "yr" | "y" => Parts { months: 12, ..Parts::default() },
        "decade" => Parts { months: 120, ..Parts::default() },
        "century" | "centurie" => Parts { months: 1200, ..Parts::default() },
        _ => return None,
    })
}

fn parts(interval: &SqlInterval) -> Result<Parts> {
    let bad = |why: &str| {
        Diagnostic::new(Code::InvalidArgument, format!("`{interval}` is no interval: {why}"))
            .at(span_of_node(interval.value.as_ref()))
            .hint("write INTERVAL '10' SECOND, INTERVAL '1 hour 30 minutes' or INTERVAL '1:30' MINUTE TO SECOND")
    };
    let Expr::Value(value) = interval.value.as_ref() else {
        return Err(bad("its length must be a literal").hint("multiply a literal instead: x * INTERVAL '1' DAY"));
    };
    let text = match &value.value {
        Value::SingleQuotedString(text) | Value::DoubleQuotedString(text) | Value::EscapedStringLiteral(text) => text.trim(),
        Value::Number(number, _) => number.as_str(),
        _ => return Err(bad("its length must be a literal")),
    };
    let found = match (&interval.leading_field, &interval.last_field) {
        (Some(first), Some(last)) => ranged(text, first, last),
        (Some(field), None) => match text.parse::<f64>().is_ok() || text.starts_with(['+', '-']) && !text.contains([' ', ':']) {
            true => scaled(text, &field.to_string()),
            false => free(text),
        },
        // PostgreSQL takes seconds; so `INTERVAL '5' MINUTS` would be 5 seconds, called MINUTS.
        (None, _) if text.parse::<f64>().is_ok_and(|number| number != 0.0) => return Err(bad("a number alone has no unit")),
        (None, _) => free(text),
    };
    found.ok_or_else(|| bad("the text between the quotes does not fit"))
}

/// `number` times a unit; µs beyond six digits are refused rather than rounded.
fn scaled(number: &str, unit_name: &str) -> Option<Parts> {
    let unit = unit(unit_name)?;
    let negative = number.starts_with('-');
    let digits = number.trim_start_matches(['+', '-']);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.len() > 18 || fraction.len() > 12 || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let is_number = whole.chars().chain(fraction.chars()).all(|c| c.is_ascii_digit());
    let sign = if negative { -1 } else { 1 };
    let whole: i64 = if whole.is_empty() { 0 } else { is_number.then(|| whole.parse().ok())?? };
    let mut parts = Parts {
        months: unit.months.checked_mul(whole * sign)?,
        days: unit.days.checked_mul(whole * sign)?,
        micros: unit.micros.checked_mul(whole * sign)?,
    };
    if !fraction.is_empty() && fraction.bytes().any(|b| b != b'0') {
        let numerator: i128 = is_number.then(|| fraction.parse().ok())??;
        let denominator = 10i128.pow(fraction.len() as u32);
        // Half a month has no length; half a year has.
        let exact = |unit: i64| -> Option<i64> {
            let product = numerator * i128::from(unit);
            (product % denominator == 0).then(|| i64::try_from(product / denominator).ok()).flatten()
        };
        if unit.months > 0 {
            parts.months = parts.months.checked_add(sign * exact(unit.months)?)?;
        } else {
            let micros = exact(unit.micros.checked_add(unit.days.checked_mul(DAY_US)?)?)?;
            parts.micros = parts.micros.checked_add(sign * micros)?;
        }
    }
    Some(parts)
}

fn add(a: Parts, b: Parts) -> Option<Parts> {
    Some(Parts {
        months: a.months.checked_add(b.months)?,
        days: a.days.checked_add(b.days)?,
        micros: a.micros.checked_add(b.micros)?,
    })
}

/// `1 hour 30 min`, `2 days 03:04:05`, `1day`, `-5 seconds`, `0`, `1 day ago`.
fn free(text: &str) -> Option<Parts> {
    let mut words = Vec::new();
    for word in text.split_whitespace() {
        // `10min` is two words.
        let cut = word.find(|c: char| c.is_alphabetic()).filter(|cut| *cut > 0 && !word.contains(':'));
        match cut {
            Some(cut) => words.extend([&word[..cut], &word[cut..]]),
            None => words.push(word),
        }
    }
    let ago = words.last().is_some_and(|word| word.eq_ignore_ascii_case("ago"));
    if ago {
        words.pop();
    }
    if words.is_empty() {
        return None;
    }
    let mut sum = Parts::default();
    let mut at = 0;
    while at < words.len() {
        if words[at].contains(':') {
            sum = add(sum, clock(words[at], 3600 * SECOND_US)?)?;
            at += 1;
        } else if let Some(name) = words.get(at + 1).filter(|name| !name.contains(':')) {
            sum = add(sum, scaled(words[at], name)?)?;
            at += 2;
        } else {
            // A number alone, which can only be 0 here.
            sum = add(sum, scaled(words[at], "second").filter(|_| words.len() == 1)?)?;
            at += 1;
        }
    }
    Some(if ago { Parts { months: -sum.months, days: -sum.days, micros: -sum.micros } } else { sum })
}

/// `a:b[:c[.d]]`, where `a` counts units of `first_us` and each further part is a sixtieth of the one before.
fn clock(text: &str, first_us: i64) -> Option<Parts> {
    let negative = text.starts_with('-');
    let mut unit_us = first_us;
    let mut micros = 0i64;
    for (index, part) in text.trim_start_matches(['+', '-']).split(':').enumerate() {
        if index > 0 {
            unit_us /= 60;
        }
        let (whole, fraction) = part.split_once('.').unwrap_or((part, ""));
        if unit_us < SECOND_US || whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
            return None;
        }
        let whole: i64 = whole.parse().ok()?;
        if index > 0 && whole > 59 {
            return None;
        }
        micros = micros.checked_add(whole.checked_mul(unit_us)?)?;
        if !fraction.is_empty() {
            if unit_us != SECOND_US || fraction.len() > 6 {
                return None;
            }
            micros = micros.checked_add(format!("{fraction:0<6}").parse().ok()?)?;
        }
    }
    Some(Parts { micros: if negative { -micros } else { micros }, ..Parts::default() })
}

/// `'1-6' YEAR TO MONTH`, `'1 02:03' DAY TO MINUTE`, `'1:30' MINUTE TO SECOND`.
fn ranged(text: &str, first: &DateTimeField, last: &DateTimeField) -> Option<Parts> {
    use DateTimeField::{Day, Days, Hour, Hours, Minute, Minutes, Month, Months, Second, Seconds, Year, Years};
    let negative = text.starts_with('-');
    let body = text.trim_start_matches(['+', '-']);
    let parts = match (first, last) {
        (Year | Years, Month | Months) => {
            let (years, months) = body.split_once('-')?;
            add(scaled(years, "year")?, scaled(months, "month").filter(|m| (0..12).contains(&m.months))?)?
        }
        (Day | Days, Hour | Hours | Minute | Minutes | Second | Seconds) => {
            let (days, time) = body.split_once(' ')?;
            let fields = match last {
                Hour | Hours => 1,
                Minute | Minutes => 2,
                _ => 3,
            };
            if time.split(':').count() != fields {
                return None;
            }
            add(scaled(days, "day")?, clock(time, 3600 * SECOND_US)?)?
        }
        (Hour | Hours, Minute | Minutes) if body.split(':').count() == 2 => clock(body, 3600 * SECOND_US)?,
        (Hour | Hours, Second | Seconds) if body.split(':').count() == 3 => clock(body, 3600 * SECOND_US)?,
        (Minute | Minutes, Second | Seconds) if body.split(':').count() == 2 => clock(body, 60 * SECOND_US)?,
        _ => return None,
    };
    Some(if negative { Parts { months: -parts.months, days: -parts.days, micros: -parts.micros } } else { parts })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use sqlparser::parser::Parser;

    use super::super::TideraceDialect;
    use super::*;

    fn expr(sql: &str) -> Expr {
        Parser::new(&TideraceDialect).try_with_sql(sql).unwrap().parse_expr().unwrap()
    }

    fn micros(sql: &str) -> Option<(i32, i64)> {
        constant(&expr(sql)).ok().map(|i| (i.months, i.micros))
    }

    #[test]
    fn literals_of_both_styles_have_the_length_that_they_say() {
        for (sql, months, seconds) in [
            ("INTERVAL '5' SECOND", 0, 5.0),
            ("INTERVAL '10' SECONDS", 0, 10.0),
            ("INTERVAL 5 MINUTE", 0, 300.0),
            ("INTERVAL '1 hour'", 0, 3600.0),
            ("interval '1 hour 30 min'", 0, 5400.0),
            ("INTERVAL '2 days 03:04:05.5'", 0, 2.0 * 86400.0 + 11045.5),
            ("INTERVAL '1:30' MINUTE TO SECOND", 0, 90.0),
            ("INTERVAL '1:30' HOUR TO MINUTE", 0, 5400.0),
            ("INTERVAL '-1:30.25' MINUTE TO SECOND", 0, -90.25),
            ("INTERVAL '1 02:03' DAY TO MINUTE", 0, 86400.0 + 7380.0),
            ("INTERVAL '1-6' YEAR TO MONTH", 18, 0.0),
            ("INTERVAL '1.5' SECOND", 0, 1.5),
            ("INTERVAL '1.5 years'", 18, 0.0),
            ("INTERVAL '10s'", 0, 10.0),
            ("INTERVAL '250ms'", 0, 0.25),
            ("INTERVAL '0'", 0, 0.0),
            ("- INTERVAL '1' DAY", 0, -86400.0),
            ("INTERVAL '1 week ago'", 0, -604_800.0),
            ("INTERVAL '10' SECOND(3)", 0, 10.0),
            ("INTERVAL '1 minute' SECOND", 0, 60.0),
        ] {
            assert_eq!(micros(sql), Some((months, (seconds * 1e6) as i64)), "{sql}");
        }
    }

    #[test]
    fn what_is_no_interval_is_refused() {
        for sql in [
            "INTERVAL 'x' SECOND",
            "INTERVAL '5 parsecs'",
            "INTERVAL '1:99' MINUTE TO SECOND",
            "INTERVAL '0.5' MONTH",
            "INTERVAL ''",
            "INTERVAL '7'",
            "INTERVAL '-1.5'",
            "INTERVAL '1:2:3' MINUTE TO SECOND",
            "INTERVAL '99999999999999999' DAY",
            "INTERVAL a DAY",
            "5",
            "INTERVAL '1 2'",
        ] {
            let error = constant(&expr(sql)).unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument, "{sql}");
        }
    }

    #[test]
    fn the_normal_form_means_the_same() {
        for sql in [
            "INTERVAL '1:30.5' MINUTE TO SECOND",
            "INTERVAL '-3' DAY",
            "INTERVAL '1-6' YEAR TO MONTH",
            "INTERVAL '0' SECOND",
            "INTERVAL '-0.5' SECOND",
        ] {
            let before = micros(sql).unwrap();
            let Expr::Interval(mut interval) = expr(sql) else { panic!("{sql}") };
            normalize(&mut interval).unwrap();
            assert!(interval.leading_field.is_none());
            assert_eq!(micros(&interval.to_string()), Some(before), "{sql} as {interval}");
            let shown = Interval { months: before.0, micros: before.1 }.to_string();
            assert_eq!(micros(&shown), Some(before), "{shown}");
        }
    }
}
