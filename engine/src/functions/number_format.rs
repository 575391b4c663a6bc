//! `to_char(number, pattern)` with PostgreSQL's patterns: `9` and `0` for digits, `.` or `D`, `,` or `G`, `S`, `MI`, `PR`, `$` and `FM`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringViewBuilder};
use arrow::datatypes::{DataType, Decimal128Type, Float64Type, Int64Type};
use datafusion::common::Result;

use super::call::{Call, error_with_hint, is_text};
use crate::error::Code;

/// The types of `to_char(number, pattern)`; `None`: it is no number.
pub(super) fn number_and_pattern(types: &[DataType]) -> Option<(Vec<DataType>, DataType)> {
    let [number, pattern] = types else { return None };
    let number = match number {
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => DataType::Float64,
        DataType::Decimal128(..) => number.clone(),
        integer if integer.is_integer() => DataType::Int64,
        _ => return None,
    };
    is_text(pattern).then(|| (vec![number, DataType::Utf8View], DataType::Utf8View))
}

/// Numbers as texts; `None` when the argument is no number.
pub(super) fn to_char(call: &Call<'_>) -> Result<Option<ArrayRef>> {
    let numbers = call.column(0)?;
    // With so many digits behind the point; more than any pattern has where it is too large.
    let unscaled: Box<dyn Fn(usize, usize) -> i128 + '_> = match numbers.data_type() {
        DataType::Int64 => {
            let numbers = numbers.as_primitive::<Int64Type>();
            Box::new(|row, digits| rescaled(i128::from(numbers.value(row)), 0, digits))
        }
        DataType::Decimal128(_, scale) => {
            let (numbers, scale) = (numbers.as_primitive::<Decimal128Type>(), usize::try_from(*scale).unwrap_or(0));
            Box::new(move |row, digits| rescaled(numbers.value(row), scale, digits))
        }
        DataType::Float64 => {
            let numbers = numbers.as_primitive::<Float64Type>();
            Box::new(|row, digits| format!("{:.digits$}", numbers.value(row)).replace('.', "").parse().unwrap_or(i128::MAX))
        }
        _ => return Ok(None),
    };
    let patterns = call.text(1)?;
    let mut out = StringViewBuilder::with_capacity(call.rows);
    let mut read: Option<(&str, NumberPattern)> = None;
    let mut text = String::new();
    for row in 0..call.rows {
        let Some(pattern) = patterns.get(row).filter(|_| numbers.is_valid(row)) else {
            out.append_null();
            continue;
        };
        if read.as_ref().is_none_or(|(known, _)| *known != pattern) {
            read = Some((pattern, NumberPattern::parse(pattern)?));
        }
        if let Some((_, pattern)) = &read {
            text.clear();
            pattern.write(unscaled(row, pattern.fraction_digits()), &mut text);
            out.try_append_value(&text)?;
        }
    }
    Ok(Some(Arc::new(out.finish())))
}

/// A number with another count of digits behind its point, rounded half away from zero.
fn rescaled(unscaled: i128, from: usize, to: usize) -> i128 {
    if to >= from {
        return 10_i128.checked_pow((to - from) as u32).and_then(|by| unscaled.checked_mul(by)).unwrap_or(i128::MAX);
    }
    let by = 10_i128.pow((from - to) as u32);
    let (whole, rest) = (unscaled / by, unscaled % by);
    if rest.abs() >= by - rest.abs() { whole + unscaled.signum() } else { whole }
}

/// One thing of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// `9`, or `0` where zeros are shown.
    Digit {
        zero: bool,
    },
    Point,
    Group,
    /// `S`: plus or minus.
    Sign,
    /// `MI`: minus or blank.
    Minus,
    /// `PR`: angle brackets around negative numbers.
    Brackets,
    Literal(char),
}

/// A pattern, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NumberPattern {
    parts: Vec<Part>,
    /// `FM`: no blanks before the number, no zeros behind its point.
    fill: bool,
    whole_digits: usize,
    fraction_digits: usize,
}

impl NumberPattern {
    /// The most digits of a pattern.
    const DIGITS_MAX: usize = 38;

    /// Reads a pattern.
    pub(super) fn parse(pattern: &str) -> Result<Self> {
        let refuse = |what: &str| {
            error_with_hint(
                Code::InvalidArgument,
                format!("to_char: {what} in the pattern '{pattern}'"),
                "a number's pattern is made of 9 0 . D , G S MI PR $ FM, for example '9,990.00'",
            )
        };
        let mut read = Self { parts: Vec::new(), fill: false, whole_digits: 0, fraction_digits: 0 };
        let mut has_point = false;
        let mut rest = pattern;
        while let Some(ch) = rest.chars().next() {
            let upper = rest.get(..2).map(str::to_ascii_uppercase).unwrap_or_default();
            let mut taken = ch.len_utf8();
            match (upper.as_str(), ch) {
                ("FM", _) => {
                    read.fill = true;
                    taken = 2;
                }
                ("MI", _) => {
                    read.parts.push(Part::Minus);
                    taken = 2;
                }
                ("PR", _) => {
                    read.parts.push(Part::Brackets);
                    taken = 2;
                }
                (_, '9' | '0') => {
                    read.parts.push(Part::Digit { zero: ch == '0' });
                    *(if has_point { &mut read.fraction_digits } else { &mut read.whole_digits }) += 1;
                }
                (_, '.' | 'D' | 'd') if has_point => return Err(refuse("a second point")),
                (_, '.' | 'D' | 'd') => {
                    has_point = true;
                    read.parts.push(Part::Point);
                }
                (_, ',' | 'G' | 'g') => read.parts.push(Part::Group),
                (_, 'S' | 's') => read.parts.push(Part::Sign),
                (_, ' ' | '$' | '%' | '-' | '/' | ':' | '(' | ')') => read.parts.push(Part::Literal(ch)),
                _ => return Err(refuse(&format!("'{ch}' is not known"))),
            }
            rest = &rest[taken..];
        }
        if read.whole_digits + read.fraction_digits == 0 {
            return Err(refuse("there is no digit"));
        }
        if read.whole_digits + read.fraction_digits > Self::DIGITS_MAX {
            return Err(refuse("there are more than 38 digits"));
        }
        Ok(read)
    }

    /// How many digits stand behind the point: what numbers are rounded to before [`Self::write`].
    pub(super) fn fraction_digits(&self) -> usize {
        self.fraction_digits
    }

    /// Appends a number: `unscaled` × 10^-fraction_digits. One with more digits before the point than the pattern shows `#`.
    pub(super) fn write(&self, unscaled: i128, out: &mut String) {
        let negative = unscaled < 0;
        let mut digits = unscaled.unsigned_abs().to_string();
        if digits.len() <= self.fraction_digits {
            digits.insert_str(0, &"0".repeat(self.fraction_digits + 1 - digits.len()));
        }
        let (whole, fraction) = digits.split_at(digits.len() - self.fraction_digits);
        let whole = whole.trim_start_matches('0');
        let overflows = whole.len() > self.whole_digits;
        // Digits left of `from` are blank: nothing of the number stands there, and no 0 asks for one.
        let leading = self.whole_digits.saturating_sub(whole.len());
        let is_digit = |part: &&Part| matches!(part, Part::Digit { .. });
        let first_zero =
            self.parts.iter().filter(is_digit).take(self.whole_digits).position(|p| *p == Part::Digit { zero: true });
        let mut from = first_zero.map_or(leading, |zero| zero.min(leading));
        if from == self.whole_digits && self.whole_digits > 0 && self.fraction_digits == 0 {
            from -= 1;
        }
        // With FM, a 9 behind the point shows no trailing zero.
        let behind: Vec<&Part> = self.parts.iter().filter(is_digit).skip(self.whole_digits).collect();
        let forced = behind.iter().rposition(|part| **part == Part::Digit { zero: true });
        let kept = if self.fill {
            fraction.trim_end_matches('0').len().max(forced.map_or(0, |at| at + 1))
        } else {
            self.fraction_digits
        };
        let has_own_sign = self.parts.iter().any(|part| matches!(part, Part::Sign | Part::Minus | Part::Brackets));
        let mut sign_is_due = !has_own_sign;
        let start = out.len();
        let put_sign = |out: &mut String| match (negative, self.fill) {
            (true, _) => out.push('-'),
            (false, false) => out.push(' '),
            (false, true) => {}
        };
        let (mut at_whole, mut at_fraction, mut behind_point) = (0, 0, false);
        for part in &self.parts {
            match part {
                Part::Digit { .. } if behind_point => {
                    if overflows {
                        out.push('#');
                    } else if at_fraction < kept {
                        out.push_str(&fraction[at_fraction..=at_fraction]);
                    }
                    at_fraction += 1;
                }
                Part::Digit { .. } => {
                    if overflows || at_whole >= from {
                        if std::mem::take(&mut sign_is_due) {
                            put_sign(out);
                        }
                        match (overflows, at_whole.checked_sub(leading)) {
                            (true, _) => out.push('#'),
                            (false, Some(at)) if at < whole.len() => out.push_str(&whole[at..=at]),
                            (false, _) => out.push('0'),
                        }
                    } else if !self.fill {
                        out.push(' ');
                    }
                    at_whole += 1;
                }
                Part::Group => {
                    if overflows || at_whole > from {
                        out.push(',');
                    } else if !self.fill {
                        out.push(' ');
                    }
                }
                Part::Point => {
                    if std::mem::take(&mut sign_is_due) {
                        put_sign(out);
                    }
                    behind_point = true;
                    out.push('.');
                }
                Part::Sign => out.push(if negative { '-' } else { '+' }),
                Part::Minus if negative => out.push('-'),
                Part::Minus if !self.fill => out.push(' '),
                Part::Minus => {}
                Part::Brackets => {
                    let (open, close) = if negative { ('<', '>') } else { (' ', ' ') };
                    if negative || !self.fill {
                        let at = out[start..].find(|ch| ch != ' ').map_or(out.len(), |at| start + at);
                        out.insert(at, open);
                        out.push(close);
                    }
                }
                Part::Literal(ch) => out.push(*ch),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn shown(number: &str, pattern: &str) -> String {
        let pattern = NumberPattern::parse(pattern).unwrap();
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = pattern.fraction_digits();
        let unscaled: i128 = format!("{whole}{fraction:0<digits$}").parse().unwrap();
        let mut out = String::new();
        pattern.write(unscaled, &mut out);
        out
    }

    /// From the table in PostgreSQL's manual, and its regression tests.
    #[test]
    fn numbers_look_as_in_postgresql() {
        for (number, pattern, expected) in [
            ("-0.1", "99.99", "  -.10"),
            ("-0.1", "FM9.99", "-.1"),
            ("0.1", "0.9", " 0.1"),
            ("12", "9990999.9", "    0012.0"),
            ("12", "FM9990999.9", "0012."),
            ("485", "999", " 485"),
            ("-485", "999", "-485"),
            ("485", "9,999", "   485"),
            ("1485", "9,999", " 1,485"),
            ("148.5", "999.999", " 148.500"),
            ("148.5", "FM999.999", "148.5"),
            ("148.5", "FM999.990", "148.500"),
            ("3148.5", "9,999.999", " 3,148.500"),
            ("-485", "999S", "485-"),
            ("-485", "999MI", "485-"),
            ("485", "999MI", "485 "),
            ("485", "FM999MI", "485"),
            ("-485", "999PR", "<485>"),
            ("485", "S999", "+485"),
            ("0", "9", " 0"),
            ("12345", "999", " ###"),
        ] {
            assert_eq!(shown(number, pattern), expected, "to_char({number}, '{pattern}')");
        }
    }

    #[test]
    fn what_is_no_pattern_of_a_number_is_refused() {
        for pattern in ["", "abc", "9.9.9", "RN", "99EEEE"] {
            assert!(NumberPattern::parse(pattern).is_err(), "{pattern}");
        }
    }
}
