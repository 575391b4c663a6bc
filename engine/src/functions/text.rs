//! Text.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, Int64Builder};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::Volatility;

use super::call::{Call, Function, Integer, Text, is_integer, is_text};
use super::substrings::Substrings;

pub(super) const FUNCTIONS: &[Function] = &[
    Function {
        name: "count_char",
        aliases: &[],
        family: "text",
        signature: "count_char(text, character)",
        doc: "How often a character stands in a text; Nexmark's CountChar.",
        volatility: Volatility::Immutable,
        types: |types| match types {
            [a, b] if is_text(a) && is_text(b) => Some((vec![DataType::Utf8View; 2], DataType::Int64)),
            _ => None,
        },
        eval: count_char,
    },
    Function {
        name: "lower",
        aliases: &["lcase"],
        family: "text",
        signature: "lower(text)",
        doc: "A text with every letter in lower case.",
        volatility: Volatility::Immutable,
        types: one_text,
        eval: |call| change_case(call, &LOWER),
    },
    Function {
        name: "upper",
        aliases: &["ucase"],
        family: "text",
        signature: "upper(text)",
        doc: "A text with every letter in upper case.",
        volatility: Volatility::Immutable,
        types: one_text,
        eval: |call| change_case(call, &UPPER),
    },
    Function {
        name: "split_index",
        aliases: &[],
        family: "text",
        signature: "split_index(text, separator, index)",
        doc: "The part of a text between separators, counted from 0; NULL when there is no such part.",
        volatility: Volatility::Immutable,
        types: |types| match types {
            [a, b, c] if is_text(a) && is_text(b) && is_integer(c) => {
                Some((vec![DataType::Utf8View, DataType::Utf8View, DataType::Int64], DataType::Utf8View))
            }
            // Flink also takes the separator's code point.
            [a, b, c] if is_text(a) && is_integer(b) && is_integer(c) => {
                Some((vec![DataType::Utf8View, DataType::Int64, DataType::Int64], DataType::Utf8View))
            }
            _ => None,
        },
        eval: split_index,
    },
];

fn count_char(call: &Call<'_>) -> Result<ArrayRef> {
    let (text, wanted) = (call.text(0)?, call.text(1)?);
    if let (Text::Column(column), Text::Constant(Some(wanted))) = (text, wanted)
        && let [byte] = wanted.as_bytes()
    {
        // NULL slots hold views of nothing, and their counts are masked.
        let counts: Vec<i64> = column.bytes_iter().map(|text| memchr::memchr_iter(*byte, text).count() as i64).collect();
        let nulls = arrow::array::Array::nulls(column).cloned();
        return Ok(Arc::new(Int64Array::new(counts.into(), nulls)));
    }
    let mut out = Int64Builder::with_capacity(call.rows);
    for row in 0..call.rows {
        let (Some(text), Some(wanted)) = (text.get(row), wanted.get(row)) else {
            out.append_null();
            continue;
        };
        let mut chars = wanted.chars();
        let count = match chars.next() {
            Some(only) => text.chars().filter(|c| *c == only).count(),
            None => 0,
        };
        out.append_value(count as i64);
    }
    Ok(Arc::new(out.finish()))
}

/// Start and end of part `index` of `text`. A separator of no bytes splits nowhere.
fn part(text: &str, separator: &str, index: usize) -> Option<(usize, usize)> {
    if let [byte] = separator.as_bytes() {
        let mut ends = memchr::memchr_iter(*byte, text.as_bytes());
        let start = if index == 0 { 0 } else { ends.nth(index - 1)? + 1 };
        return Some((start, ends.next().unwrap_or(text.len())));
    }
    if separator.is_empty() {
        return (index == 0).then_some((0, text.len()));
    }
    let mut start = 0;
    for _ in 0..index {
        start += text[start..].find(separator)? + separator.len();
    }
    Some((start, text[start..].find(separator).map_or(text.len(), |at| start + at)))
}

fn split_index(call: &Call<'_>) -> Result<ArrayRef> {
    let (text, index) = (call.text(0)?, call.integer(2)?);
    let code_point = call.text(1).is_err().then(|| call.integer(1)).transpose()?;
    let mut out = Substrings::new(text, call.rows);
    if let (Text::Column(column), None, Integer::Constant(Some(index))) = (text, code_point, index)
        && let (Text::Constant(Some(separator)), Ok(index)) = (call.text(1)?, usize::try_from(index))
        && let [byte] = separator.as_bytes()
    {
        for row in 0..call.rows {
            match column.is_valid(row).then(|| part_between(column.value(row).as_bytes(), *byte, index)).flatten() {
                Some(range) => out.push(row, range),
                None => out.push_null(),
            }
        }
        return Ok(out.finish());
    }
    let mut buffer = [0u8; 4];
    for row in 0..call.rows {
        let separator: Option<&str> = match code_point {
            None => call.text(1)?.get(row),
            Some(code) => match code.get(row).and_then(|code| u32::try_from(code).ok()).and_then(char::from_u32) {
                Some(c) => Some(c.encode_utf8(&mut buffer)),
                None => None,
            },
        };
        let found = match (text.get(row), separator, index.get(row)) {
            (Some(text), Some(separator), Some(index)) => {
                usize::try_from(index).ok().and_then(|index| part(text, separator, index)).map(|(start, end)| start..end)
            }
            _ => None,
        };
        match found {
            Some(range) => out.push(row, range),
            None => out.push_null(),
        }
    }
    Ok(out.finish())
}

const LOW_BITS: u64 = 0x7f7f_7f7f_7f7f_7f7f;

/// The high bit of each byte of `word` that equals `byte`, in `spread` eight times.
#[inline]
fn equal_bytes(word: u64, spread: u64) -> u64 {
    let differs = word ^ spread;
    !((differs & LOW_BITS).wrapping_add(LOW_BITS) | differs | LOW_BITS)
}

/// Part `index` of `text` between bytes `separator`: eight bytes at a time, as parts are short and a search anew for each costs more.
#[inline]
fn part_between(text: &[u8], separator: u8, index: usize) -> Option<std::ops::Range<usize>> {
    let spread = u64::from(separator) * 0x0101_0101_0101_0101;
    // The number of separators to pass before the part begins.
    let (mut missing, mut start) = (index, (index == 0).then_some(0));
    let (words, rest) = text.as_chunks::<8>();
    // The bytes behind the last whole word; what stands above them in `last` is not looked at.
    let last = match text.last_chunk::<8>() {
        Some(last) => u64::from_le_bytes(*last).checked_shr(8 * (8 - rest.len()) as u32).unwrap_or(0),
        None => rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    };
    let valid = (1_u64 << (8 * rest.len())) - 1;
    let words = words.iter().map(|word| (u64::from_le_bytes(*word), u64::MAX)).chain(std::iter::once((last, valid)));
    for (number, (word, valid)) in words.enumerate() {
        let mut found = equal_bytes(word, spread) & valid;
        let count = found.count_ones() as usize;
        if start.is_none() && count < missing {
            missing -= count;
            continue;
        }
        while found != 0 {
            let at = number * 8 + (found.trailing_zeros() / 8) as usize;
            match start {
                Some(start) => return Some(start..at),
                None => {
                    missing -= 1;
                    if missing == 0 {
                        start = Some(at + 1);
                    }
                }
            }
            found &= found - 1;
        }
    }
    start.map(|start| start..text.len())
}

fn one_text(types: &[DataType]) -> Option<(Vec<DataType>, DataType)> {
    match types {
        [a] if is_text(a) => Some((vec![DataType::Utf8View], DataType::Utf8View)),
        _ => None,
    }
}

/// One way to change letters.
struct Case {
    /// Whether a byte below 0x80 changes, and into what by turning bit 5.
    from: std::ops::RangeInclusive<u8>,
    full: fn(&str) -> String,
}

const LOWER: Case = Case { from: b'A'..=b'Z', full: str::to_lowercase };
const UPPER: Case = Case { from: b'a'..=b'z', full: str::to_uppercase };

/// ASCII texts that don't change are shared, short ones are changed without an allocation.
fn change_case(call: &Call<'_>, case: &Case) -> Result<ArrayRef> {
    let text = call.text(0)?;
    let mut out = Substrings::new(text, call.rows);
    let mut buffer = String::new();
    for row in 0..call.rows {
        let Some(text) = text.get(row) else {
            out.push_null();
            continue;
        };
        // Two loops over all bytes without an early end: they are vectorised.
        let ascii = text.bytes().fold(0, |all, byte| all | byte) < 0x80;
        if !ascii {
            out.push_new(&(case.full)(text));
        } else if !text.bytes().fold(false, |any, byte| any | case.from.contains(&byte)) {
            out.push(row, 0..text.len());
        } else {
            buffer.clear();
            buffer.extend(text.bytes().map(|byte| char::from(if case.from.contains(&byte) { byte ^ 0x20 } else { byte })));
            out.push_new(&buffer);
        }
    }
    Ok(out.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bytes_at_a_time_finds_what_one_at_a_time_finds() {
        let random = crate::connect::random::RandomStream::new(3, 1);
        for n in 0..20_000 {
            let mut word = random.word(n);
            let len = word as usize % 40;
            let text: String = (0..len)
                .map(|_| {
                    word = word.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    ['/', 'a', '.', 'é', '\u{af}', '0'][(word >> 40) as usize % 6]
                })
                .collect();
            for index in 0..12 {
                let expected = text.split('/').nth(index);
                let found = part_between(text.as_bytes(), b'/', index).map(|range| &text[range]);
                assert_eq!(found, expected, "part {index} of {text:?}");
                assert_eq!(part(&text, "/", index).map(|(start, end)| &text[start..end]), expected);
            }
        }
    }
}
