//! Columns as texts of single cells, for encoders: one downcast a batch, one match a cell.

use std::fmt::Write as _;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array,
    Int64Array, StringViewArray, Time64MicrosecondArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, TimeUnit};

use super::columns::is_json;
use super::scalar::{self, TimestampStandard};
use crate::error::{Code, Diagnostic, Result};

/// A column whose cells can be written.
pub struct Cells {
    nulls: Option<NullBuffer>,
    kind: CellsKind,
}

enum CellsKind {
    Null,
    Bool(BooleanArray),
    Int(Int64Array),
    Uint(UInt64Array),
    F32(Float32Array),
    F64(Float64Array),
    Decimal(Decimal128Array, i8),
    Date(Date32Array),
    Time(Time64MicrosecondArray),
    Timestamp(TimestampMicrosecondArray, bool),
    Text(StringViewArray),
    Json(StringViewArray),
    Bytes(BinaryViewArray),
    List(OffsetBuffer<i32>, Box<Cells>),
    /// Names are JSON strings with the colon.
    Struct(Vec<(String, Cells)>),
    Map(OffsetBuffer<i32>, Box<Cells>, Box<Cells>),
}

/// Whether a column of this type can be written as JSON; nested types only where `nested`.
pub fn check_type(field: &Field, nested: bool) -> Result<()> {
    super::columns::Column::new(&std::sync::Arc::new(field.clone()))?;
    if !nested && field.data_type().is_nested() {
        return Err(Diagnostic::new(
            Code::UnsupportedSchema,
            format!("column '{}' of type {} does not fit in one cell", field.name(), super::columns::sql_type(field)),
        )
        .hint("write it as 'json' or 'parquet', or select its parts"));
    }
    Ok(())
}

impl Cells {
    /// Of a column; the type was checked with [`check_type`].
    pub fn new(field: &Field, array: &ArrayRef) -> Result<Self> {
        let failed = |e: arrow::error::ArrowError| Diagnostic::new(Code::Internal, format!("column '{}': {e}", field.name()));
        let cast = |to: &DataType| arrow::compute::cast(array, to).map_err(failed);
        let kind = match field.data_type() {
            DataType::Null => CellsKind::Null,
            DataType::Boolean => CellsKind::Bool(array.as_boolean().clone()),
            DataType::UInt64 => CellsKind::Uint(array.as_primitive().clone()),
            data_type if data_type.is_integer() => CellsKind::Int(cast(&DataType::Int64)?.as_primitive().clone()),
            DataType::Float32 => CellsKind::F32(array.as_primitive().clone()),
            DataType::Float64 => CellsKind::F64(array.as_primitive().clone()),
            DataType::Decimal128(_, scale) => CellsKind::Decimal(array.as_primitive().clone(), *scale),
            DataType::Date32 => CellsKind::Date(array.as_primitive().clone()),
            DataType::Time32(_) | DataType::Time64(_) => {
                CellsKind::Time(cast(&DataType::Time64(TimeUnit::Microsecond))?.as_primitive().clone())
            }
            DataType::Timestamp(_, zone) => {
                let micros = cast(&DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?;
                CellsKind::Timestamp(micros.as_primitive().clone(), zone.is_some())
            }
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                let texts = cast(&DataType::Utf8View)?.as_string_view().clone();
                if is_json(field) { CellsKind::Json(texts) } else { CellsKind::Text(texts) }
            }
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
                CellsKind::Bytes(cast(&DataType::BinaryView)?.as_binary_view().clone())
            }
            DataType::List(child) => {
                let list = array.as_list::<i32>();
                CellsKind::List(list.offsets().clone(), Box::new(Self::new(child, list.values())?))
            }
            DataType::Struct(fields) => {
                let columns = array.as_struct().columns().iter().zip(fields);
                let children = columns.map(|(column, field)| Ok((json_name(field.name()), Self::new(field, column)?)));
                CellsKind::Struct(children.collect::<Result<_>>()?)
            }
            DataType::Map(entries, _) => {
                let map = array.as_map();
                let DataType::Struct(pair) = entries.data_type() else {
                    return Err(Diagnostic::new(Code::Internal, format!("column '{}' is no map", field.name())));
                };
                let (keys, values) = (Self::new(&pair[0], map.keys())?, Self::new(&pair[1], map.values())?);
                CellsKind::Map(map.offsets().clone(), Box::new(keys), Box::new(values))
            }
            other => {
                return Err(Diagnostic::new(
                    Code::Internal,
                    format!("column '{}' of type {other} was not checked", field.name()),
                ));
            }
        };
        Ok(Self { nulls: array.logical_nulls(), kind })
    }

    /// Whether the cell is NULL.
    pub fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    /// The bytes of a cell of type BYTES.
    pub fn bytes(&self, row: usize) -> Option<&[u8]> {
        match &self.kind {
            CellsKind::Bytes(array) => Some(array.value(row)),
            CellsKind::Text(array) | CellsKind::Json(array) => Some(array.value(row).as_bytes()),
            _ => None,
        }
    }

    /// Whether it holds strings, whose empty value differs from NULL.
    pub fn is_text(&self) -> bool {
        matches!(self.kind, CellsKind::Text(_) | CellsKind::Json(_))
    }

    /// Appends the plain text of a cell that is not NULL and not nested.
    pub fn write_text(&self, row: usize, standard: TimestampStandard, out: &mut String) {
        match &self.kind {
            CellsKind::Bool(array) => out.push_str(if array.value(row) { "true" } else { "false" }),
            CellsKind::Int(array) => write_infallibly(out, format_args!("{}", array.value(row))),
            CellsKind::Uint(array) => write_infallibly(out, format_args!("{}", array.value(row))),
            CellsKind::F32(array) => write_float(array.value(row), array.value(row).is_finite(), out),
            CellsKind::F64(array) => write_float(array.value(row), array.value(row).is_finite(), out),
            CellsKind::Decimal(array, scale) => scalar::write_decimal(array.value(row), *scale, out),
            CellsKind::Date(array) => scalar::write_date(i64::from(array.value(row)), out),
            CellsKind::Time(array) => scalar::write_time(array.value(row), out),
            CellsKind::Timestamp(array, zoned) => scalar::write_timestamp(array.value(row), *zoned, standard, out),
            CellsKind::Text(array) | CellsKind::Json(array) => out.push_str(array.value(row)),
            CellsKind::Bytes(array) => scalar::write_base64(array.value(row), out),
            CellsKind::Null | CellsKind::List(..) | CellsKind::Struct(_) | CellsKind::Map(..) => {
                debug_assert!(false, "nested types and NULL have no plain text");
            }
        }
    }

    /// Appends a cell as a JSON value.
    pub fn write_json(&self, row: usize, standard: TimestampStandard, ignore_nulls: bool, out: &mut String) {
        if self.is_null(row) {
            return out.push_str("null");
        }
        match &self.kind {
            CellsKind::Null => out.push_str("null"),
            CellsKind::Bool(_) | CellsKind::Int(_) | CellsKind::Uint(_) | CellsKind::Decimal(..) | CellsKind::Json(_) => {
                self.write_text(row, standard, out);
            }
            CellsKind::F32(array) if array.value(row).is_finite() => self.write_text(row, standard, out),
            CellsKind::F64(array) if array.value(row).is_finite() => self.write_text(row, standard, out),
            CellsKind::Text(array) => write_json_string(array.value(row), out),
            CellsKind::F32(_)
            | CellsKind::F64(_)
            | CellsKind::Date(_)
            | CellsKind::Time(_)
            | CellsKind::Timestamp(..)
            | CellsKind::Bytes(_) => {
                out.push('"');
                self.write_text(row, standard, out);
                out.push('"');
            }
            CellsKind::List(offsets, child) => {
                out.push('[');
                let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
                for i in start..end {
                    if i > start {
                        out.push(',');
                    }
                    child.write_json(i, standard, ignore_nulls, out);
                }
                out.push(']');
            }
            CellsKind::Struct(children) => write_json_object(children, row, standard, ignore_nulls, out),
            CellsKind::Map(offsets, keys, values) => {
                out.push('{');
                let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
                let mut key = String::new();
                for i in start..end {
                    if i > start {
                        out.push(',');
                    }
                    key.clear();
                    keys.write_text(i, standard, &mut key);
                    write_json_string(&key, out);
                    out.push(':');
                    values.write_json(i, standard, ignore_nulls, out);
                }
                out.push('}');
            }
        }
    }
}

/// Appends an object of the named cells of a row.
pub fn write_json_object(
    cells: &[(String, Cells)],
    row: usize,
    standard: TimestampStandard,
    ignore_nulls: bool,
    out: &mut String,
) {
    out.push('{');
    let mut is_first = true;
    for (name, cell) in cells {
        if ignore_nulls && cell.is_null(row) {
            continue;
        }
        if !std::mem::take(&mut is_first) {
            out.push(',');
        }
        out.push_str(name);
        cell.write_json(row, standard, ignore_nulls, out);
    }
    out.push('}');
}

/// A field name as a JSON string with its colon.
pub fn json_name(name: &str) -> String {
    let mut out = String::new();
    write_json_string(name, &mut out);
    out.push(':');
    out
}

fn write_infallibly(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _infallible = out.write_fmt(arguments);
}

/// The shortest text that reads back as the same number.
fn write_float(value: impl std::fmt::Debug, is_finite: bool, out: &mut String) {
    let start = out.len();
    write_infallibly(out, format_args!("{value:?}"));
    if !is_finite && out[start..].ends_with("inf") {
        let sign = if out[start..].starts_with('-') { "-" } else { "" };
        out.truncate(start);
        write_infallibly(out, format_args!("{sign}Infinity"));
    }
}

/// Appends a JSON string with quotes and the escapes it needs.
pub fn write_json_string(text: &str, out: &mut String) {
    out.push('"');
    let mut start = 0;
    for (i, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.push_str(&text[start..i]);
        start = i + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            other => write_infallibly(out, format_args!("\\u{other:04x}")),
        }
    }
    out.push_str(&text[start..]);
    out.push('"');
}
