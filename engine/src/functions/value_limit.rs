//! How long a value may be that a function makes out of shorter ones: `lpad(s, n)`, `array_repeat(x, n)`, `replace(s, a, b)`, …
//!
//! One number in one row would otherwise take all memory there is. The length is found from the arguments, before anything is allocated; a
//! row whose value would be too long fails with TR-2000, under the row policy.

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Date32Type, IntervalMonthDayNanoType, TimeUnit, TimestampNanosecondType};
use datafusion::common::Result;
use datafusion::logical_expr::ColumnarValue;

use super::call::{error, error_with_hint};
use crate::error::Code;

/// The longest value that a function makes out of shorter ones, in bytes; an element of an array counts as at least 8.
pub(crate) const VALUE_BYTES_MAX: u64 = 16 << 20;
/// The most bytes that one call may reserve for a batch of several rows. A batch that needs more is computed in parts.
pub(super) const CALL_BYTES_MAX: u64 = 256 << 20;
/// The most pairs of characters that `levenshtein` compares for one row.
const COMPARED_PAIRS_MAX: u64 = 1 << 28;

/// The functions that are checked.
pub(super) fn is_limited(function: &str) -> bool {
    matches!(
        function,
        "lpad"
            | "rpad"
            | "repeat"
            | "replace"
            | "regexp_replace"
            | "translate"
            | "overlay"
            | "concat"
            | "concat_ws"
            | "levenshtein"
            | "array_repeat"
            | "array_resize"
            | "array_concat"
            | "array_append"
            | "array_prepend"
            | "array_to_string"
            | "array_replace"
            | "array_replace_n"
            | "array_replace_all"
            | "make_array"
            | "range"
            | "generate_series"
    )
}

/// The bytes of the longest value of a column.
pub(crate) fn longest_value(value: &ColumnarValue) -> Result<u64> {
    if let ColumnarValue::Array(array) = value
        && let Some(texts) = array.as_string_view_opt()
    {
        return Ok(u64::from(texts.lengths().max().unwrap_or(0)));
    }
    Ok(Sizes::of(value)?.values.into_iter().flatten().max().unwrap_or(0))
}

/// What a batch's call will take.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// It may be made at once.
    Fine,
    /// Each value may be made, but not all of them in one call.
    TooMuchTogether,
}

/// Checks a call of a limited function; lengths that mean nothing (a negative one of `lpad`) are brought into range in `args`.
pub(super) fn check(function: &str, args: &mut [ColumnarValue], rows: usize) -> Result<Demand> {
    if matches!(function, "lpad" | "rpad") {
        // As in PostgreSQL a negative length is as good as 0. More than the limit is refused below, unless there is nothing to fill with:
        // a shorter length says the same, then, as long as no text is as long.
        let longest = Sizes::of(&args[0])?.values.iter().flatten().copied().max().unwrap_or(0).max(VALUE_BYTES_MAX + 1);
        let longest = i64::try_from(longest).unwrap_or(i64::MAX);
        let clamp = |n: i64| n.clamp(0, longest);
        let lengths = integers(&args[1])?;
        args[1] = match &args[1] {
            ColumnarValue::Scalar(_) => {
                ColumnarValue::Scalar(datafusion::common::ScalarValue::Int64(lengths.first_value().map(clamp)))
            }
            ColumnarValue::Array(_) => {
                ColumnarValue::Array(std::sync::Arc::new(lengths.0.unary::<_, arrow::datatypes::Int64Type>(clamp)))
            }
        };
    }
    if rows == 0 {
        return Ok(Demand::Fine);
    }
    let args = &*args;
    // Nearly always the longest values say enough.
    if quick_bound(function, args)?
        .is_some_and(|most| most <= VALUE_BYTES_MAX && most.saturating_mul(rows as u64) <= CALL_BYTES_MAX)
    {
        return Ok(Demand::Fine);
    }
    let all_constant = args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
    let count = if all_constant { 1 } else { rows };
    let length = lengths(function, args)?;
    // What a value may be even if it is long: as long as the longest argument.
    let given = args.iter().map(Sizes::of).collect::<Result<Vec<_>>>()?;
    let mut together = 0u64;
    for row in 0..count {
        let Some(bytes) = length(row)? else { continue };
        let longest = given.iter().filter_map(|sizes| sizes.get(row)).max().unwrap_or(0);
        if bytes > VALUE_BYTES_MAX && bytes > longest {
            return Err(error_with_hint(
                Code::RowExpression,
                format!("{function}: the value would be about {bytes} bytes long; a function makes at most {VALUE_BYTES_MAX}"),
                "limit the argument that says how long: LEAST(n, 1000)",
            ));
        }
        together = together.saturating_add(bytes);
    }
    Ok(if together > CALL_BYTES_MAX && count > 1 { Demand::TooMuchTogether } else { Demand::Fine })
}

/// What no value of a batch is longer than, for functions that are called often.
fn quick_bound(function: &str, args: &[ColumnarValue]) -> Result<Option<u64>> {
    let longest = |arg: &ColumnarValue| longest_value(arg);
    Ok(match (function, args) {
        ("replace", [text, _, to]) => {
            let (text, to) = (longest(text)?, longest(to)?);
            Some(text.saturating_add((text + 1).saturating_mul(to)))
        }
        ("concat" | "overlay" | "translate" | "concat_ws", all) => {
            let lengths = all.iter().map(longest).collect::<Result<Vec<_>>>()?;
            // The separator of `concat_ws` stands between each two.
            Some(lengths.iter().fold(0u64, |sum, one| sum.saturating_add(*one)).saturating_mul(all.len() as u64 + 4))
        }
        _ => None,
    })
}

/// The length of a row's value in bytes, or more; `None`: NULL, or nothing to fear.
type Length<'a> = Box<dyn Fn(usize) -> Result<Option<u64>> + 'a>;

fn lengths<'a>(function: &'a str, args: &'a [ColumnarValue]) -> Result<Length<'a>> {
    let sizes = |index: usize| args.get(index).map(Sizes::of).transpose();
    let size = |index: usize| sizes(index).map(Option::unwrap_or_default);
    Ok(match function {
        "lpad" | "rpad" => {
            let (text, count, fill) = (size(0)?, integers(&args[1])?, sizes(2)?);
            let wide = args.get(2).is_some_and(|fill| !is_ascii(fill));
            Box::new(move |row| {
                let (Some(text), Some(count)) = (text.get(row), count.get(row)) else { return Ok(None) };
                let filled = fill.as_ref().is_none_or(|fill| fill.get(row).is_some_and(|bytes| bytes > 0));
                let added = if filled { count.unsigned_abs() * if wide { 4 } else { 1 } } else { 0 };
                Ok(Some(added.max(text.min(count.unsigned_abs().saturating_mul(4)))))
            })
        }
        "repeat" => {
            let (text, count) = (size(0)?, integers(&args[1])?);
            Box::new(move |row| {
                let (Some(text), Some(count)) = (text.get(row), count.get(row)) else { return Ok(None) };
                Ok(Some(text.saturating_mul(u64::try_from(count).unwrap_or(0))))
            })
        }
        "array_repeat" => {
            let (element, count) = (size(0)?, integers(&args[1])?);
            Box::new(move |row| {
                let Some(count) = count.get(row) else { return Ok(None) };
                Ok(Some(element_bytes(element.get(row)).saturating_mul(u64::try_from(count).unwrap_or(0))))
            })
        }
        "array_resize" => {
            let (array, count, fill) = (size(0)?, integers(&args[1])?, size(2)?);
            Box::new(move |row| {
                let (Some(array), Some(count)) = (array.get(row), count.get(row)) else { return Ok(None) };
                let Ok(count) = u64::try_from(count) else {
                    return Err(error(Code::RowExpression, format!("array_resize: an array can't have {count} elements")));
                };
                Ok(Some(array.saturating_add(element_bytes(fill.get(row)).saturating_mul(count))))
            })
        }
        "range" | "generate_series" => series(args)?,
        "replace" => {
            let [text, from, to] = args else { return Ok(Box::new(|_| Ok(None))) };
            let (text, from, to) = (Texts::of(text)?, Texts::of(from)?, Texts::of(to)?);
            Box::new(move |row| {
                let (Some(text), Some(from), Some(to)) = (text.get(row), from.get(row), to.get(row)) else { return Ok(None) };
                let (len, places) = (text.len() as u64, (text.len() / from.len().max(1) + 1) as u64);
                let most = len.saturating_add(places.saturating_mul(to.len() as u64));
                if most <= VALUE_BYTES_MAX {
                    return Ok(Some(most));
                }
                let found = text.matches(from).count() as u64;
                let kept = len - found * from.len() as u64;
                Ok(Some(kept.saturating_add(found.saturating_mul(to.len() as u64))))
            })
        }
        "regexp_replace" => regexp_replace(args)?,
        "array_to_string" => {
            let (array, between, null) = (size(0)?, size(1)?, size(2)?);
            let elements = Sizes::elements(&args[0])?;
            Box::new(move |row| {
                let (Some(array), Some(count)) = (array.get(row), elements.get(row)) else { return Ok(None) };
                // A number is at most five times as long in digits as in bytes.
                let each = between.get(row).unwrap_or(0).saturating_add(null.get(row).unwrap_or(0));
                Ok(Some(array.saturating_mul(5).saturating_add(count.saturating_mul(each))))
            })
        }
        "array_replace" | "array_replace_n" | "array_replace_all" => {
            let (array, elements, to) = (size(0)?, Sizes::elements(&args[0])?, size(2)?);
            let once = function == "array_replace";
            Box::new(move |row| {
                let (Some(array), Some(count)) = (array.get(row), elements.get(row)) else { return Ok(None) };
                let count = if once { 1 } else { count };
                Ok(Some(array.saturating_add(count.saturating_mul(to.get(row).unwrap_or(0)))))
            })
        }
        "levenshtein" => {
            let (a, b) = (size(0)?, size(1)?);
            Box::new(move |row| {
                let (Some(a), Some(b)) = (a.get(row), b.get(row)) else { return Ok(None) };
                if a.saturating_mul(b) > COMPARED_PAIRS_MAX {
                    return Err(error(
                        Code::RowExpression,
                        format!(
                            "levenshtein: texts of {a} and {b} bytes are too long to compare: their product may be {COMPARED_PAIRS_MAX}"
                        ),
                    ));
                }
                Ok(None)
            })
        }
        "concat_ws" => {
            let all = args.iter().map(Sizes::of).collect::<Result<Vec<_>>>()?;
            Box::new(move |row| {
                let between = all.first().and_then(|between| between.get(row)).unwrap_or(0);
                let texts = all.iter().skip(1).map(|sizes| sizes.get(row).unwrap_or(0).saturating_add(between));
                Ok(Some(texts.fold(0u64, u64::saturating_add)))
            })
        }
        // The sum of all.
        _ => {
            let all = args.iter().map(Sizes::of).collect::<Result<Vec<_>>>()?;
            let times = if function == "translate" { 4 } else { 1 };
            let all = if function == "translate" { all.into_iter().take(1).collect() } else { all };
            Box::new(move |row| {
                Ok(Some(all.iter().filter_map(|sizes| sizes.get(row)).fold(0u64, u64::saturating_add).saturating_mul(times)))
            })
        }
    })
}

/// What an element takes in an array.
fn element_bytes(size: Option<u64>) -> u64 {
    size.unwrap_or(0).max(8)
}

fn regexp_replace(args: &[ColumnarValue]) -> Result<Length<'_>> {
    let [text, pattern, to, flags @ ..] = args else { return Ok(Box::new(|_| Ok(None))) };
    let (text, pattern, to) = (Texts::of(text)?, Texts::of(pattern)?, Texts::of(to)?);
    let flags = flags.first().map(Texts::of).transpose()?;
    Ok(Box::new(move |row| {
        let (Some(text), Some(pattern), Some(to)) = (text.get(row), pattern.get(row), to.get(row)) else { return Ok(None) };
        let flags = flags.as_ref().and_then(|flags| flags.get(row)).unwrap_or("");
        let len = text.len() as u64;
        // The matches lie beside one another, so that what a group gives in all of them together is no longer than the text.
        let groups = to.bytes().filter(|byte| matches!(byte, b'\\' | b'$')).count() as u64;
        let base = len.saturating_add(groups.saturating_mul(len));
        let of = |matches: u64| base.saturating_add(matches.saturating_mul(to.len() as u64));
        let most = of(if flags.contains('g') { len + 1 } else { 1 });
        if most <= VALUE_BYTES_MAX || !flags.contains('g') {
            return Ok(Some(most));
        }
        let inline: String = flags.chars().filter(|flag| matches!(flag, 'i' | 'm' | 's' | 'U' | 'x')).collect();
        let pattern = if inline.is_empty() { pattern.to_owned() } else { format!("(?{inline}){pattern}") };
        // One that can't be read is told about by the function itself.
        let found = regex::Regex::new(&pattern).map(|pattern| pattern.find_iter(text).count() as u64);
        Ok(Some(found.map_or(0, of)))
    }))
}

/// Whole numbers, days or times from a first to a last one.
fn series(args: &[ColumnarValue]) -> Result<Length<'_>> {
    let first = args[0].data_type();
    if first.is_integer() {
        let (start, stop, step) = match args {
            [stop] => (None, integers(stop)?, None),
            [start, stop] => (Some(integers(start)?), integers(stop)?, None),
            [start, stop, step, ..] => (Some(integers(start)?), integers(stop)?, Some(integers(step)?)),
            [] => return Ok(Box::new(|_| Ok(None))),
        };
        return Ok(Box::new(move |row| {
            let start = start.as_ref().map_or(Some(0), |start| start.get(row));
            let step = step.as_ref().map_or(Some(1), |step| step.get(row));
            let (Some(start), Some(stop), Some(step)) = (start, stop.get(row), step) else { return Ok(None) };
            // A step of 0 is refused by the function.
            if step == 0 || (start < stop) != (step > 0) {
                return Ok(Some(8));
            }
            Ok(Some((start.abs_diff(stop) / step.unsigned_abs()).saturating_add(1).saturating_mul(8)))
        }));
    }
    let [start, stop, step] = args else { return Ok(Box::new(|_| Ok(None))) };
    if start.data_type().is_null() || stop.data_type().is_null() || step.data_type().is_null() {
        return Ok(Box::new(|_| Ok(None)));
    }
    let is_date = matches!(first, DataType::Date32 | DataType::Date64);
    let nanoseconds = |value: &ColumnarValue| -> Result<Column> {
        let column = Column::of(value)?;
        let array = if is_date {
            cast(&column.array, &DataType::Date32)?
        } else {
            cast(&column.array, &DataType::Timestamp(TimeUnit::Nanosecond, None))?
        };
        Ok(Column { array, ..column })
    };
    let (start, stop, step) = (nanoseconds(start)?, nanoseconds(stop)?, Column::of(step)?);
    let steps = cast(&step.array, &DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano))?;
    let step = Column { array: steps, ..step };
    const DAY_NS: i128 = 86_400_000_000_000;
    Ok(Box::new(move |row| {
        let time = |column: &Column| -> Option<i128> {
            let row = column.row(row)?;
            Some(match column.array.as_primitive_opt::<Date32Type>() {
                Some(days) => i128::from(days.value(row)) * DAY_NS,
                None => i128::from(column.array.as_primitive::<TimestampNanosecondType>().value(row)),
            })
        };
        let (Some(first), Some(last), Some(at)) = (time(&start), time(&stop), step.row(row)) else { return Ok(None) };
        let step = step.array.as_primitive::<IntervalMonthDayNanoType>().value(at);
        let parts = [i128::from(step.months) * 28 * DAY_NS, i128::from(step.days) * DAY_NS, i128::from(step.nanoseconds)];
        if parts.iter().any(|part| *part < 0) && parts.iter().any(|part| *part > 0) {
            return Err(error(Code::RowExpression, "range: the parts of the step have different signs"));
        }
        // Without its hours, as far as days are counted.
        let length: i128 = if is_date { parts[..2].iter().sum() } else { parts.iter().sum() };
        if length == 0 || (first < last) != (length > 0) {
            return Ok(Some(8));
        }
        let count = (last - first) / length + 2;
        Ok(Some(u64::try_from(count).unwrap_or(u64::MAX).saturating_mul(8)))
    }))
}

/// An argument: one value for all rows, or one a row.
struct Column {
    array: ArrayRef,
    is_constant: bool,
}

impl Column {
    fn of(value: &ColumnarValue) -> Result<Self> {
        Ok(match value {
            ColumnarValue::Scalar(scalar) => Self { array: scalar.to_array()?, is_constant: true },
            ColumnarValue::Array(array) => Self { array: array.clone(), is_constant: false },
        })
    }

    /// Where the row's value stands; `None`: it is NULL.
    fn row(&self, row: usize) -> Option<usize> {
        let row = if self.is_constant { 0 } else { row };
        self.array.is_valid(row).then_some(row)
    }
}

/// A whole number argument.
struct Integers(Int64Array, bool);

impl Integers {
    fn get(&self, row: usize) -> Option<i64> {
        let row = if self.1 { 0 } else { row };
        self.0.is_valid(row).then(|| self.0.value(row))
    }

    fn first_value(&self) -> Option<i64> {
        self.get(0)
    }
}

fn integers(value: &ColumnarValue) -> Result<Integers> {
    let column = Column::of(value)?;
    Ok(Integers(cast(&column.array, &DataType::Int64)?.as_primitive().clone(), column.is_constant))
}

/// A text argument.
struct Texts(Column);

impl Texts {
    fn of(value: &ColumnarValue) -> Result<Self> {
        let column = Column::of(value)?;
        // Sharing the bytes where they are.
        let array = cast(&column.array, &DataType::Utf8View)?;
        Ok(Self(Column { array, ..column }))
    }

    fn get(&self, row: usize) -> Option<&str> {
        let row = self.0.row(row)?;
        Some(self.0.array.as_string_view().value(row))
    }
}

fn is_ascii(value: &ColumnarValue) -> bool {
    Texts::of(value).is_ok_and(|texts| texts.0.array.as_string_view().is_ascii())
}

/// How many bytes the values of an argument take.
#[derive(Default)]
struct Sizes {
    values: Vec<Option<u64>>,
    is_constant: bool,
}

impl Sizes {
    fn of(value: &ColumnarValue) -> Result<Self> {
        let column = Column::of(value)?;
        let sizes = bytes(&column.array);
        let values = sizes.into_iter().enumerate().map(|(row, size)| column.array.is_valid(row).then_some(size)).collect();
        Ok(Self { values, is_constant: column.is_constant })
    }

    /// How many elements the arrays of an argument have.
    fn elements(value: &ColumnarValue) -> Result<Self> {
        let column = Column::of(value)?;
        // Of arrays in arrays each inner one adds what is in it.
        let counts = leaves(&column.array);
        Ok(Self { values: counts.into_iter().map(Some).collect(), is_constant: column.is_constant })
    }

    fn get(&self, row: usize) -> Option<u64> {
        self.values.get(if self.is_constant { 0 } else { row }).copied().flatten()
    }
}

/// How many bytes each value takes.
fn bytes(array: &ArrayRef) -> Vec<u64> {
    fn lengths<'a>(values: impl Iterator<Item = Option<&'a [u8]>>) -> Vec<u64> {
        values.map(|value| value.map_or(0, |value| value.len() as u64)).collect()
    }
    match array.data_type() {
        DataType::Utf8View => array.as_string_view().lengths().map(u64::from).collect(),
        DataType::Utf8 => lengths(array.as_string::<i32>().iter().map(|v| v.map(str::as_bytes))),
        DataType::LargeUtf8 => lengths(array.as_string::<i64>().iter().map(|v| v.map(str::as_bytes))),
        DataType::Binary => lengths(array.as_binary::<i32>().iter()),
        DataType::LargeBinary => lengths(array.as_binary::<i64>().iter()),
        DataType::BinaryView => lengths(array.as_binary_view().iter()),
        DataType::List(_) => {
            let lists = array.as_list::<i32>();
            sums(lists.value_offsets(), &bytes(lists.values()), 8)
        }
        DataType::Struct(_) => {
            let mut all = vec![0u64; array.len()];
            for column in array.as_struct().columns() {
                for (sum, more) in all.iter_mut().zip(bytes(column)) {
                    *sum = sum.saturating_add(more);
                }
            }
            all
        }
        DataType::Map(..) => {
            let maps = array.as_map();
            let entries: ArrayRef = std::sync::Arc::new(maps.entries().clone());
            sums(maps.value_offsets(), &bytes(&entries), 8)
        }
        fixed => vec![fixed.primitive_width().unwrap_or(8) as u64; array.len()],
    }
}

/// How many elements each list has, with those of lists in it.
fn leaves(array: &ArrayRef) -> Vec<u64> {
    match array.as_list_opt::<i32>() {
        Some(lists) => sums(lists.value_offsets(), &leaves(lists.values()), 1),
        None => vec![1; array.len()],
    }
}

/// The sum between each two offsets, where an element counts as `least` at least.
fn sums(offsets: &[i32], elements: &[u64], least: u64) -> Vec<u64> {
    let ranges = offsets.windows(2).map(|pair| pair[0].unsigned_abs() as usize..pair[1].unsigned_abs() as usize);
    ranges.map(|range| elements[range].iter().fold(0u64, |sum, one| sum.saturating_add((*one).max(least)))).collect()
}
