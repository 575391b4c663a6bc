//! Texts of single values: numbers, dates, times, base64. Exact in both directions: nothing wraps, no whole number is rounded.

use std::fmt::Write as _;

/// Why a text is no value of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// It is no text of such a value at all.
    Type,
    /// It is one, but out of the type's range.
    Range,
}

/// Microseconds of a day.
pub const DAY_US: i64 = 86_400_000_000;

/// A decimal number taken apart: `digits × 10^exponent`, without leading or trailing zeros in `digits`.
struct Number {
    negative: bool,
    digits: smallvec::SmallVec<[u8; 48]>,
    exponent: i64,
}

impl Number {
    /// `[+-] digits [. digits] [e [+-] digits]` with at least one digit before the exponent.
    fn parse(text: &[u8]) -> Option<Self> {
        let (negative, mut rest) = match text.first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let mut digits = smallvec::SmallVec::new();
        let (mut exponent, mut any, mut behind_point) = (0i64, false, false);
        while let Some((&byte, tail)) = rest.split_first() {
            match byte {
                b'0'..=b'9' => {
                    any = true;
                    if !(digits.is_empty() && byte == b'0') {
                        digits.push(byte - b'0');
                    }
                    exponent -= i64::from(behind_point);
                }
                b'.' if !behind_point => behind_point = true,
                _ => break,
            }
            rest = tail;
        }
        if !any {
            return None;
        }
        if let Some((b'e' | b'E', tail)) = rest.split_first() {
            let (minus, tail) = match tail.first()? {
                b'-' => (true, &tail[1..]),
                b'+' => (false, &tail[1..]),
                _ => (false, tail),
            };
            if tail.is_empty() || !tail.iter().all(u8::is_ascii_digit) {
                return None;
            }
            // Far beyond what any type holds, and far from the limits of i64.
            let size = tail.iter().fold(0i64, |sum, d| (sum * 10 + i64::from(d - b'0')).min(1_000_000_000));
            exponent += if minus { -size } else { size };
            rest = &[];
        }
        if !rest.is_empty() {
            return None;
        }
        while digits.last() == Some(&0) {
            digits.pop();
            exponent += 1;
        }
        Some(Self { negative, digits, exponent })
    }

    /// The value times `10^scale` as an integer; `round`: half away from zero, else a lost digit is `None`. `Err` when it is too large.
    fn scaled(&self, scale: i64, round: bool) -> Result<Option<i128>, Misfit> {
        let shift = self.exponent + scale;
        let kept = self.digits.len() as i64 + shift;
        if self.digits.is_empty() {
            return Ok(Some(0));
        }
        if shift < 0 && !round {
            return Ok(None);
        }
        if kept > 39 {
            return Err(Misfit::Range);
        }
        let mut value = 0i128;
        for i in 0..kept.max(0) {
            let digit = self.digits.get(i as usize).copied().unwrap_or(0);
            value = value.checked_mul(10).and_then(|v| v.checked_add(i128::from(digit))).ok_or(Misfit::Range)?;
        }
        // `kept >= 0` and the next digit decides; with `kept < 0` the value is below a tenth of the last place.
        if kept >= 0 && self.digits.get(kept as usize).is_some_and(|d| *d >= 5) {
            value = value.checked_add(1).ok_or(Misfit::Range)?;
        }
        Ok(Some(if self.negative { -value } else { value }))
    }
}

/// A whole number. `1e3` and `2.0` are whole, `1.5` is a [`Misfit::Type`].
pub fn parse_integer(text: &str) -> Result<i128, Misfit> {
    let number = Number::parse(text.as_bytes()).ok_or(Misfit::Type)?;
    number.scaled(0, false)?.ok_or(Misfit::Type)
}

/// A decimal of `precision` digits, `scale` of them behind the point, as its unscaled integer. More digits behind the point are rounded
/// half away from zero, as PostgreSQL and Flink do; a number that needs more digits before it is a [`Misfit::Range`].
pub fn parse_decimal(text: &str, precision: u8, scale: i8) -> Result<i128, Misfit> {
    let number = Number::parse(text.as_bytes()).ok_or(Misfit::Type)?;
    let value = number.scaled(i64::from(scale), true)?.ok_or(Misfit::Type)?;
    if value.unsigned_abs() < 10u128.pow(u32::from(precision.min(38))) { Ok(value) } else { Err(Misfit::Range) }
}

/// A finite double; one that is too large is a [`Misfit::Range`]. `NaN`, `Infinity` and `-Infinity` are taken as they stand.
pub fn parse_double(text: &str) -> Result<f64, Misfit> {
    match text {
        "NaN" => return Ok(f64::NAN),
        "Infinity" => return Ok(f64::INFINITY),
        "-Infinity" => return Ok(f64::NEG_INFINITY),
        _ => {}
    }
    if !text.bytes().any(|b| b.is_ascii_digit()) {
        return Err(Misfit::Type); // "inf", "nan" and their like
    }
    let value: f64 = text.parse().map_err(|_| Misfit::Type)?;
    if value.is_finite() { Ok(value) } else { Err(Misfit::Range) }
}

fn two_digits(text: &[u8]) -> Option<i64> {
    match text {
        [a @ b'0'..=b'9', b @ b'0'..=b'9'] => Some(i64::from(a - b'0') * 10 + i64::from(b - b'0')),
        _ => None,
    }
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar (Howard Hinnant's `days_from_civil`).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// `yyyy-MM-dd`, years 0000 to 9999, as days since 1970-01-01.
pub fn parse_date(text: &str) -> Result<i32, Misfit> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = *text.as_bytes() else { return Err(Misfit::Type) };
    let part = |bytes: &[u8]| two_digits(bytes).ok_or(Misfit::Type);
    let (year, month, day) = (part(&[y1, y2])? * 100 + part(&[y3, y4])?, part(&[m1, m2])?, part(&[d1, d2])?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        1..=12 => 31,
        _ => return Err(Misfit::Range),
    };
    if !(1..=length).contains(&day) {
        return Err(Misfit::Range);
    }
    i32::try_from(days_from_civil(year, month, day)).map_err(|_| Misfit::Range)
}

/// `HH:mm:ss` with up to 9 digits of a second's fraction, as microseconds of the day; digits behind the sixth are cut off.
pub fn parse_time(text: &str) -> Result<i64, Misfit> {
    let bytes = text.as_bytes();
    let Some(([h1, h2, b':', m1, m2, b':', s1, s2], fraction)) = bytes.split_first_chunk::<8>() else { return Err(Misfit::Type) };
    let part = |a: &u8, b: &u8| two_digits(&[*a, *b]).ok_or(Misfit::Type);
    let (hour, minute, second) = (part(h1, h2)?, part(m1, m2)?, part(s1, s2)?);
    let mut micros = 0i64;
    if let Some((point, digits)) = fraction.split_first() {
        if *point != b'.' || digits.is_empty() || digits.len() > 9 || !digits.iter().all(u8::is_ascii_digit) {
            return Err(Misfit::Type);
        }
        for i in 0..6 {
            micros = micros * 10 + digits.get(i).map_or(0, |d| i64::from(d - b'0'));
        }
    }
    if hour > 23 || minute > 59 || second > 59 {
        return Err(Misfit::Range);
    }
    Ok(((hour * 60 + minute) * 60 + second) * 1_000_000 + micros)
}

/// How timestamps are written: `json.timestamp-format.standard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampStandard {
    /// `yyyy-MM-dd HH:mm:ss.SSS`
    Sql,
    /// `yyyy-MM-ddTHH:mm:ss.SSS`
    Iso8601,
}

/// A timestamp as µs since 1970. `zoned`: it must end in `Z` or an offset `±HH:mm` (TIMESTAMP_LTZ), else it must not (TIMESTAMP).
/// `standard`: which separator must stand between date and time; `None`: either.
pub fn parse_timestamp(text: &str, zoned: bool, standard: Option<TimestampStandard>) -> Result<i64, Misfit> {
    let (Some(date), Some(separator), Some(rest)) = (text.get(..10), text.as_bytes().get(10), text.get(11..)) else {
        return Err(Misfit::Type);
    };
    match (separator, standard) {
        (b' ', None | Some(TimestampStandard::Sql)) | (b'T', None | Some(TimestampStandard::Iso8601)) => {}
        _ => return Err(Misfit::Type),
    }
    let (time, offset_us) = if zoned { split_zone(rest).ok_or(Misfit::Type)? } else { (rest, 0) };
    let days = i64::from(parse_date(date)?);
    Ok(days * DAY_US + parse_time(time)? - offset_us)
}

fn split_zone(text: &str) -> Option<(&str, i64)> {
    if let Some(time) = text.strip_suffix('Z') {
        return Some((time, 0));
    }
    let (time, zone) = (text.get(..text.len().checked_sub(6)?)?, text.get(text.len() - 6..)?);
    let [sign, h1, h2, b':', m1, m2] = *zone.as_bytes() else { return None };
    let (hours, minutes) = (two_digits(&[h1, h2])?, two_digits(&[m1, m2])?);
    let us = (hours * 60 + minutes) * 60_000_000;
    match sign {
        b'+' if hours <= 18 && minutes < 60 => Some((time, us)),
        b'-' if hours <= 18 && minutes < 60 => Some((time, -us)),
        _ => None,
    }
}

/// Appends `yyyy-MM-dd`.
pub fn write_date(days: i64, out: &mut String) {
    let (year, month, day) = civil_from_days(days);
    let _infallible = write!(out, "{year:04}-{month:02}-{day:02}");
}

/// Appends `HH:mm:ss`, with a fraction as long as it needs to be.
pub fn write_time(us: i64, out: &mut String) {
    let (seconds, micros) = (us.div_euclid(1_000_000), us.rem_euclid(1_000_000));
    let _infallible = write!(out, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if micros != 0 {
        let _infallible = write!(out, ".{micros:06}");
        out.truncate(out.trim_end_matches('0').len());
    }
}

/// Appends a timestamp of µs since 1970, with `Z` behind it when `zoned`.
pub fn write_timestamp(us: i64, zoned: bool, standard: TimestampStandard, out: &mut String) {
    write_date(us.div_euclid(DAY_US), out);
    out.push(match standard {
        TimestampStandard::Sql => ' ',
        TimestampStandard::Iso8601 => 'T',
    });
    write_time(us.rem_euclid(DAY_US), out);
    if zoned {
        out.push('Z');
    }
}

/// Appends an unscaled decimal in plain notation with exactly `scale` digits behind the point.
pub fn write_decimal(value: i128, scale: i8, out: &mut String) {
    let digits = value.unsigned_abs().to_string();
    if value < 0 {
        out.push('-');
    }
    match usize::try_from(scale) {
        Ok(0) => out.push_str(&digits),
        Ok(scale) if digits.len() > scale => {
            let (whole, fraction) = digits.split_at(digits.len() - scale);
            out.push_str(whole);
            out.push('.');
            out.push_str(fraction);
        }
        Ok(scale) => {
            out.push_str("0.");
            out.extend(std::iter::repeat_n('0', scale - digits.len()));
            out.push_str(&digits);
        }
        Err(_) => {
            out.push_str(&digits);
            if value != 0 {
                out.extend(std::iter::repeat_n('0', usize::from(scale.unsigned_abs())));
            }
        }
    }
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Appends standard base64 with padding.
pub fn write_base64(bytes: &[u8], out: &mut String) {
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0u32, |w, (i, b)| w | u32::from(*b) << (16 - 8 * i));
        for i in 0..4 {
            out.push(if i <= chunk.len() { char::from(BASE64[(word >> (18 - 6 * i) & 63) as usize]) } else { '=' });
        }
    }
}

/// Standard base64, padding required; `None` when it is none.
pub fn parse_base64(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    if !bytes.len().is_multiple_of(4) {
        return None;
    }
    let mut out = Vec::with_capacity(bytes.len() / 4 * 3);
    let groups = bytes.len() / 4;
    for (g, group) in bytes.chunks_exact(4).enumerate() {
        let padding = group.iter().rev().take_while(|b| **b == b'=').count();
        if padding > 2 || (padding > 0 && g + 1 != groups) {
            return None;
        }
        let mut word = 0u32;
        for byte in &group[..4 - padding] {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            word = word << 6 | u32::from(value);
        }
        word <<= 6 * padding;
        if word & ((1 << (8 * padding)) - 1) != 0 {
            return None; // bits that belong to no byte
        }
        out.extend_from_slice(&word.to_be_bytes()[1..4 - padding]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers_are_exact_or_refused() {
        assert_eq!(parse_integer("1e3"), Ok(1000));
        assert_eq!(parse_integer("-2.50e1"), Ok(-25));
        assert_eq!(parse_integer("1.5"), Err(Misfit::Type));
        assert_eq!(parse_integer("0e999999999999"), Ok(0));
        assert_eq!(parse_integer("1e999999999999"), Err(Misfit::Range));
        assert_eq!(parse_integer("1e-400"), Err(Misfit::Type));
        for wrong in ["", "-", "+", ".", "e1", "1e", "1e+", "1.2.3", "0x10", " 1", "1 ", "--1", "1_0"] {
            assert_eq!(parse_integer(wrong), Err(Misfit::Type), "{wrong:?}");
        }
    }

    #[test]
    fn decimals_round_half_away_from_zero_and_never_lose_whole_digits() {
        assert_eq!(parse_decimal("1.005", 10, 2), Ok(101));
        assert_eq!(parse_decimal("-1.005", 10, 2), Ok(-101));
        assert_eq!(parse_decimal("0.0049", 10, 2), Ok(0));
        assert_eq!(parse_decimal("0.005", 10, 2), Ok(1));
        assert_eq!(parse_decimal("0.0005", 10, 2), Ok(0));
        assert_eq!(parse_decimal("99.999", 4, 2), Err(Misfit::Range));
        assert_eq!(parse_decimal("99999999999999999999999999999999999999", 38, 0), Ok(10i128.pow(38) - 1));
        assert_eq!(parse_decimal("1e38", 38, 0), Err(Misfit::Range));
        assert_eq!(parse_decimal("12345678901234567890123456789012345678901234567890", 38, 0), Err(Misfit::Range));
    }

    #[test]
    fn timestamps_know_zone_and_standard() {
        let at = 1_700_000_000_123_456;
        assert_eq!(parse_timestamp("2023-11-14 22:13:20.123456789", false, None), Ok(at));
        assert_eq!(parse_timestamp("2023-11-14T22:13:20.123456Z", true, Some(TimestampStandard::Iso8601)), Ok(at));
        assert_eq!(parse_timestamp("2023-11-15 00:13:20.123456+02:00", true, Some(TimestampStandard::Sql)), Ok(at));
        assert_eq!(parse_timestamp("2023-11-14 22:13:20Z", false, None), Err(Misfit::Type));
        assert_eq!(parse_timestamp("2023-11-14 22:13:20", true, None), Err(Misfit::Type));
        assert_eq!(parse_timestamp("2023-11-14T22:13:20", false, Some(TimestampStandard::Sql)), Err(Misfit::Type));
        assert_eq!(parse_timestamp("2023-02-29 00:00:00", false, None), Err(Misfit::Range));
        assert_eq!(parse_timestamp("2023-02-28 24:00:00", false, None), Err(Misfit::Range));
        assert_eq!(parse_timestamp("2023-02-2é 00:00:00", false, None), Err(Misfit::Type));
    }

    #[test]
    fn special_doubles_go_both_ways_and_large_ones_are_refused() {
        assert!(parse_double("NaN").unwrap().is_nan());
        assert_eq!(parse_double("1e400"), Err(Misfit::Range));
        assert_eq!(parse_double("inf"), Err(Misfit::Type));
        assert_eq!(parse_double("-0.5e-3"), Ok(-0.0005));
    }

    proptest! {
        #[test]
        fn dates_agree_with_chrono(days in -719_528i32..2_932_896) {
            let date = chrono::NaiveDate::from_ymd_opt(1970, 1, 1).unwrap() + chrono::Duration::days(i64::from(days));
            let mut text = String::new();
            write_date(i64::from(days), &mut text);
            prop_assert_eq!(&text, &date.format("%Y-%m-%d").to_string());
            prop_assert_eq!(parse_date(&text), Ok(days));
        }

        #[test]
        fn timestamps_come_back(us in -62_167_219_200_000_000i64..253_402_300_799_000_000, zoned: bool) {
            for standard in [TimestampStandard::Sql, TimestampStandard::Iso8601] {
                let mut text = String::new();
                write_timestamp(us, zoned, standard, &mut text);
                prop_assert_eq!(parse_timestamp(&text, zoned, Some(standard)), Ok(us), "{}", text);
            }
        }

        #[test]
        fn decimals_come_back(value in -(10i128.pow(38) - 1)..10i128.pow(38), scale in 0i8..=38) {
            let mut text = String::new();
            write_decimal(value, scale, &mut text);
            prop_assert_eq!(parse_decimal(&text, 38, scale), Ok(value), "{}", text);
        }

        #[test]
        fn base64_comes_back(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut text = String::new();
            write_base64(&bytes, &mut text);
            prop_assert_eq!(parse_base64(&text), Some(bytes));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,24}", digits in "[-+0-9.eE]{0,50}") {
            for text in [text, digits] {
                let _answers = (parse_integer(&text), parse_decimal(&text, 20, 3), parse_double(&text), parse_date(&text),
                    parse_time(&text), parse_timestamp(&text, true, None), parse_base64(&text));
            }
        }
    }
}
