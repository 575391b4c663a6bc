//! One generated column: what its options and its type say, and its values by row number.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, ListArray, StringBuilder,
    StructArray, Time64MicrosecondArray, TimestampMicrosecondArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::cast;
use arrow::compute::kernels::cast_utils::parse_decimal;
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Fields, SchemaRef};
use twox_hash::XxHash3_64;

use crate::connect::Options;
use crate::connect::random::{RandomStream, below_wide};
use crate::error::{Code, Diagnostic, Result};
use crate::sql::closest_name;
use crate::sql::types::data_type_name;

/// The most characters of a string, bytes of a BYTES, elements of an ARRAY.
const LENGTH_MAX: u64 = 1 << 20;
/// The suffixes of `fields.*.` options.
const SUFFIXES: [&str; 9] = ["kind", "min", "max", "max-past", "length", "var-len", "null-rate", "start", "end"];
const DAY_US: i64 = 86_400_000_000;

/// What all columns of a table share.
pub struct Scope<'a> {
    pub options: &'a Options,
    pub seed: u64,
    /// The clock at row 0, µs since 1970.
    pub start_us: i64,
    /// Rows a second of that clock; 0: one a millisecond.
    pub rate: u64,
}

/// Where the sequences of the table end, counting rows; `None` without a sequence. Refuses options of columns that are not in `physical`.
pub fn rows_of_sequences(options: &Options, physical: &SchemaRef) -> Result<Option<u64>> {
    let mut rows: Option<u64> = None;
    let keys: Vec<String> = options.iter().map(|(key, _)| key.to_owned()).collect();
    for key in &keys {
        let Some((path, suffix)) = key.strip_prefix("fields.").and_then(|rest| rest.rsplit_once('.')) else { continue };
        if !SUFFIXES.contains(&suffix) {
            continue;
        }
        if !leads_to_column(physical.fields(), path) {
            return Err(no_column(options, key, path, physical));
        }
        if suffix == "kind" && kind(options, path)? {
            let (start, end) = sequence(options, path)?;
            let count = (i128::from(end) - i128::from(start) + 1) as u64;
            rows = Some(rows.map_or(count, |rows| rows.min(count)));
        }
    }
    Ok(rows)
}

/// Whether there is a column, a field of a ROW (`a.b`) or an element of an ARRAY (`a.element`) at `path`. Names may have dots themselves.
fn leads_to_column(fields: &Fields, path: &str) -> bool {
    fields.iter().any(|field| match path.strip_prefix(field.name().as_str()) {
        Some("") => true,
        Some(rest) => rest.strip_prefix('.').is_some_and(|rest| leads_inside(field, rest)),
        None => false,
    })
}

fn leads_inside(field: &Field, path: &str) -> bool {
    match field.data_type() {
        DataType::Struct(fields) => leads_to_column(fields, path),
        DataType::List(element) => match path.strip_prefix("element") {
            Some("") => true,
            Some(rest) => rest.strip_prefix('.').is_some_and(|rest| leads_inside(element, rest)),
            None => false,
        },
        _ => false,
    }
}

fn no_column(options: &Options, key: &str, path: &str, physical: &SchemaRef) -> Diagnostic {
    let names = physical.fields().iter().map(|field| field.name().as_str());
    let error = Diagnostic::new(Code::UnknownColumn, format!("option '{key}': there is no column `{path}` that is generated"))
        .at(options.span(key));
    match closest_name(path, names.clone()) {
        Some(near) => error.hint(format!("did you mean `{near}`? Names are compared exactly")),
        None => error.hint(format!("the columns are: {}; a field of a ROW is a.b", names.collect::<Vec<_>>().join(", "))),
    }
}

/// Whether the column at `path` is a sequence.
fn kind(options: &Options, path: &str) -> Result<bool> {
    Ok(options.choice(&format!("fields.{path}.kind"), &["random", "sequence"])? == Some("sequence"))
}

fn sequence(options: &Options, path: &str) -> Result<(i64, i64)> {
    let bound = |suffix: &str| {
        let key = format!("fields.{path}.{suffix}");
        options.parsed(&key, "a whole number", |v| v.parse::<i64>().ok())?.ok_or_else(|| {
            Diagnostic::new(Code::MissingOption, format!("option '{key}' is missing"))
                .at(options.span(&format!("fields.{path}.kind")))
                .hint("a sequence needs 'start' and 'end'")
        })
    };
    let (start, end) = (bound("start")?, bound("end")?);
    if end < start {
        return Err(options.invalid(&format!("fields.{path}.end"), format!("must not be less than the start, {start}")));
    }
    Ok((start, end))
}

/// A column, an element of an array or a field of a row.
#[derive(Debug)]
pub struct Column {
    data_type: DataType,
    values: Values,
    random: RandomStream,
    /// NULL when a random word is below this.
    nulls_below: u64,
    nulls: RandomStream,
}

#[derive(Debug)]
enum Values {
    Sequence { start: i64 },
    Bool,
    Integer { min: i64, max: i64 },
    Decimal { min: i128, max: i128 },
    Float { min: f64, max: f64 },
    Text { length: u64, varies: bool },
    Bytes { length: u64, varies: bool },
    Time,
    Timestamp { start_us: i64, rate: u64, past_us: u64 },
    Row { fields: Fields, columns: Vec<Column> },
    Array { element: FieldRef, column: Box<Column>, length: u64 },
}

impl Column {
    /// The column at `path` (`a`, `a.b`, `a.element`), as its options say.
    pub fn new(scope: &Scope<'_>, path: &str, field: &Field) -> Result<Self> {
        let options = scope.options;
        let key = |suffix: &str| format!("fields.{path}.{suffix}");
        let stream = |of: &str| RandomStream::new(scope.seed, XxHash3_64::oneshot(format!("{path}/{of}").as_bytes()));
        let data_type = field.data_type().clone();
        let column = |values, nulls_below| Self {
            data_type: data_type.clone(),
            values,
            random: stream("value"),
            nulls_below,
            nulls: stream("null"),
        };
        if kind(options, path)? {
            let (start, end) = sequence(options, path)?;
            let (min, max) = match integer_range(&data_type) {
                Some(range) => range,
                None if is_text(&data_type) || data_type.is_floating() || matches!(data_type, DataType::Decimal128(..)) => {
                    (i64::MIN, i64::MAX)
                }
                None => {
                    return Err(Diagnostic::new(
                        Code::UnsupportedSchema,
                        format!("column `{path}` of type {} can't be a sequence", data_type_name(&data_type)),
                    ));
                }
            };
            if start < min || end > max {
                return Err(options.invalid(&key("end"), format!("and 'start' must be between {min} and {max}")));
            }
            if let DataType::Decimal128(precision, scale) = data_type {
                for number in [start, end] {
                    decimal(&number.to_string(), precision, scale).ok_or_else(|| {
                        options.invalid(&key("end"), format!("and 'start' must fit into {}", data_type_name(&data_type)))
                    })?;
                }
            }
            return Ok(column(Values::Sequence { start }, 0));
        }
        let rate = options.number(&key("null-rate"))?.unwrap_or(0.0);
        if !(0.0..=1.0).contains(&rate) {
            return Err(options.invalid(&key("null-rate"), "must be between 0 and 1"));
        }
        if rate > 0.0 && !field.is_nullable() {
            return Err(options.invalid(&key("null-rate"), "must be 0: the column is NOT NULL"));
        }
        let nulls_below = if rate >= 1.0 { u64::MAX } else { (rate * 2f64.powi(64)) as u64 };
        let length = || match options.integer(&key("length"))? {
            Some(length) if length > LENGTH_MAX => Err(options.invalid(&key("length"), format!("must be at most {LENGTH_MAX}"))),
            length => Ok(length.unwrap_or(100)),
        };
        let varies = || Ok::<_, Diagnostic>(options.bool(&key("var-len"))?.unwrap_or(false));
        let past_us = || {
            let past = options.duration(&key("max-past"))?.unwrap_or_default().as_micros();
            match i64::try_from(past) {
                Ok(past) if past / DAY_US < 3_000_000 => Ok(past as u64),
                _ => Err(options.invalid(&key("max-past"), "is too long")),
            }
        };
        let values = match &data_type {
            DataType::Boolean => Values::Bool,
            t if integer_range(t).is_some() => {
                let (least, greatest) = integer_range(t).unwrap_or_default();
                let expected = format!("a whole number between {least} and {greatest}");
                let bound = |suffix: &str, default: i64| {
                    let parse = |v: &str| v.parse::<i64>().ok().filter(|v| (least..=greatest).contains(v));
                    Ok::<_, Diagnostic>(options.parsed(&key(suffix), &expected, parse)?.unwrap_or(default))
                };
                let (min, max) = (bound("min", least)?, bound("max", greatest)?);
                ordered(options, &key("max"), min <= max)?;
                Values::Integer { min, max }
            }
            DataType::Float32 | DataType::Float64 => {
                let greatest = if data_type == DataType::Float32 { f64::from(f32::MAX) } else { f64::MAX };
                let min = options.number(&key("min"))?.unwrap_or(-greatest);
                let max = options.number(&key("max"))?.unwrap_or(greatest);
                ordered(options, &key("max"), min <= max)?;
                Values::Float { min, max }
            }
            DataType::Decimal128(precision, scale) => {
                let greatest = 10i128.pow(u32::from(*precision)) - 1;
                let bound = |suffix: &str, default: i128| {
                    let parse = |v: &str| decimal(v, *precision, *scale);
                    Ok::<_, Diagnostic>(
                        options
                            .parsed(&key(suffix), &format!("a number of type {}", data_type_name(&data_type)), parse)?
                            .unwrap_or(default),
                    )
                };
                let (min, max) = (bound("min", -greatest)?, bound("max", greatest)?);
                ordered(options, &key("max"), min <= max)?;
                Values::Decimal { min, max }
            }
            t if is_text(t) => Values::Text { length: length()?, varies: varies()? },
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
                Values::Bytes { length: length()?, varies: varies()? }
            }
            DataType::Time32(_) | DataType::Time64(_) => Values::Time,
            DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) => {
                Values::Timestamp { start_us: scope.start_us, rate: scope.rate, past_us: past_us()? }
            }
            DataType::Struct(fields) => {
                let columns = fields
                    .iter()
                    .map(|inner| Self::new(scope, &format!("{path}.{}", inner.name()), inner))
                    .collect::<Result<_>>()?;
                Values::Row { fields: fields.clone(), columns }
            }
            DataType::List(element) => {
                let column = Box::new(Self::new(scope, &format!("{path}.element"), element)?);
                Values::Array { element: element.clone(), column, length: length()? }
            }
            _ => {
                let message = format!("column `{path}` of type {} can't be generated", data_type_name(&data_type));
                return Err(Diagnostic::new(Code::UnsupportedSchema, message));
            }
        };
        Ok(column(values, nulls_below))
    }

    /// The values of the rows `numbers`.
    pub fn build(&self, numbers: &[u64]) -> Result<ArrayRef> {
        let nulls = (self.nulls_below > 0)
            .then(|| numbers.iter().map(|n| self.nulls.word(*n) >= self.nulls_below).collect::<NullBuffer>());
        let is_valid = |i: usize| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(i));
        let internal = |e: arrow::error::ArrowError| Diagnostic::new(Code::Internal, e.to_string());
        let longs = |of: &dyn Fn(u64) -> i64| numbers.iter().map(|n| of(*n)).collect::<Vec<_>>();
        let random = self.random;
        let array: ArrayRef = match &self.values {
            Values::Sequence { start } => Arc::new(Int64Array::from(longs(&|n| start.wrapping_add(n as i64)))),
            Values::Bool => {
                Arc::new(BooleanArray::new(numbers.iter().map(|n| random.word(*n) >> 63 == 1).collect(), nulls.clone()))
            }
            Values::Integer { min, max } => {
                let span = (i128::from(*max) - i128::from(*min)) as u64;
                let value = |n| {
                    min.wrapping_add(match span.checked_add(1) {
                        Some(count) => below_wide(random.word(n), count),
                        None => random.word(n),
                    } as i64)
                };
                Arc::new(Int64Array::new(longs(&value).into(), nulls.clone()))
            }
            Values::Decimal { min, max } => {
                // 128 bits without sign hold the span of 38 digits on both sides of 0.
                let count = max.wrapping_sub(*min) as u128 + 1;
                let value = |n: &u64| {
                    let word = u128::from(random.word_of(*n, 0)) << 64 | u128::from(random.word_of(*n, 1));
                    min.wrapping_add((word % count) as i128)
                };
                let array = Decimal128Array::new(numbers.iter().map(value).collect::<Vec<_>>().into(), nulls.clone());
                Arc::new(array.with_data_type(self.data_type.clone()))
            }
            Values::Float { min, max } => {
                let value = |n: &u64| {
                    let share = (random.word(*n) >> 11) as f64 / (1u64 << 53) as f64;
                    (min * (1.0 - share) + max * share).clamp(*min, *max)
                };
                Arc::new(Float64Array::new(numbers.iter().map(value).collect::<Vec<_>>().into(), nulls.clone()))
            }
            Values::Text { length, varies } => {
                let mut builder = StringBuilder::with_capacity(numbers.len(), numbers.len() * *length as usize);
                let mut text = String::new();
                for (i, n) in numbers.iter().enumerate() {
                    text.clear();
                    let digits = self.digits(*n, *length, *varies);
                    text.extend(digits.map(|digit| char::from(b"0123456789abcdef"[digit as usize])));
                    builder.append_option(is_valid(i).then_some(&text));
                }
                Arc::new(builder.finish())
            }
            Values::Bytes { length, varies } => {
                let mut builder = BinaryBuilder::with_capacity(numbers.len(), numbers.len() * *length as usize);
                let mut bytes = Vec::new();
                for (i, n) in numbers.iter().enumerate() {
                    bytes.clear();
                    let words = RandomStream::new(random.word(*n), 1);
                    let length = self.length(*n, *length, *varies);
                    bytes.extend((0..length).map(|i| (words.word(i / 8) >> (i % 8 * 8)) as u8));
                    builder.append_option(is_valid(i).then_some(&bytes));
                }
                Arc::new(builder.finish())
            }
            Values::Time => Arc::new(Time64MicrosecondArray::new(
                longs(&|n| below_wide(random.word(n), DAY_US as u64) as i64).into(),
                nulls.clone(),
            )),
            Values::Timestamp { start_us, rate, past_us } => {
                let value = |n: u64| {
                    let elapsed = match rate {
                        0 => u128::from(n) * 1000,
                        rate => u128::from(n) * 1_000_000 / u128::from(*rate),
                    };
                    let elapsed = i64::try_from(elapsed).unwrap_or(i64::MAX);
                    start_us.saturating_add(elapsed) - below_wide(random.word(n), past_us + 1) as i64
                };
                if matches!(self.data_type, DataType::Date32 | DataType::Date64) {
                    let days = numbers.iter().map(|n| value(*n).div_euclid(DAY_US) as i32).collect::<Vec<_>>();
                    Arc::new(Date32Array::new(days.into(), nulls.clone()))
                } else {
                    Arc::new(TimestampMicrosecondArray::new(longs(&value).into(), nulls.clone()))
                }
            }
            Values::Row { fields, columns } => {
                let children = columns.iter().map(|column| column.build(numbers)).collect::<Result<_>>()?;
                let array = StructArray::try_new_with_length(fields.clone(), children, nulls.clone(), numbers.len());
                return Ok(Arc::new(array.map_err(internal)?));
            }
            Values::Array { element, column, length } => {
                let elements: Vec<u64> =
                    numbers.iter().flat_map(|n| (0..*length).map(move |i| n.wrapping_mul(*length).wrapping_add(i))).collect();
                let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(*length as usize, numbers.len()));
                let array = ListArray::try_new(element.clone(), offsets, column.build(&elements)?, nulls.clone());
                return Ok(Arc::new(array.map_err(internal)?));
            }
        };
        if array.data_type() == &self.data_type { Ok(array) } else { cast(&array, &self.data_type).map_err(internal) }
    }

    fn length(&self, number: u64, length: u64, varies: bool) -> u64 {
        if varies && length > 0 { 1 + below_wide(self.random.word_of(number, 1), length) } else { length }
    }

    /// Random numbers below 16, as many as the row's string has characters.
    fn digits(&self, number: u64, length: u64, varies: bool) -> impl Iterator<Item = u8> {
        let words = RandomStream::new(self.random.word(number), 0);
        (0..self.length(number, length, varies)).map(move |i| (words.word(i / 16) >> (i % 16 * 4) & 0xf) as u8)
    }
}

fn ordered(options: &Options, key: &str, is_ordered: bool) -> Result<()> {
    if is_ordered { Ok(()) } else { Err(options.invalid(key, "must not be less than the minimum")) }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn integer_range(data_type: &DataType) -> Option<(i64, i64)> {
    Some(match data_type {
        DataType::Int8 => (i8::MIN.into(), i8::MAX.into()),
        DataType::Int16 => (i16::MIN.into(), i16::MAX.into()),
        DataType::Int32 => (i32::MIN.into(), i32::MAX.into()),
        DataType::Int64 => (i64::MIN, i64::MAX),
        _ => return None,
    })
}

fn decimal(text: &str, precision: u8, scale: i8) -> Option<i128> {
    let value = parse_decimal::<Decimal128Type>(text, precision, scale).ok()?;
    (value.unsigned_abs() < 10u128.pow(u32::from(precision))).then_some(value)
}
