//! Typed column builders that decoders fill record by record.
//!
//! The rule that makes per-record errors cheap: **an append adds exactly one slot, whether it succeeds or fails**. A failed record leaves
//! filler in its slot; [`FieldSet::finish`] filters such slots away. Neighbours are never touched.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryViewBuilder, BooleanArray, BooleanBuilder, Date32Builder, Decimal128Builder, ListArray, MapArray,
    NullArray, NullBufferBuilder, PrimitiveBuilder, RecordBatch, RecordBatchOptions, StringViewBuilder, StructArray,
    Time64MicrosecondBuilder, TimestampMicrosecondBuilder,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    DataType, Field, FieldRef, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, SchemaRef, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};

use super::scalar::{self, Misfit, TimestampStandard};
use crate::error::{Code, Diagnostic, Result};

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq)]
pub struct Flaw {
    /// The kind.
    pub code: Code,
    /// One sentence.
    pub message: String,
}

/// The result of decoding steps; boxed, since flaws are rare and results are passed for every value.
pub type Decode<T> = std::result::Result<T, Box<Flaw>>;

/// A flaw as an error.
pub fn flaw<T>(code: Code, message: impl Into<String>) -> Decode<T> {
    Err(Box::new(Flaw { code, message: message.into() }))
}

/// How texts of timestamps and bytes are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TextRules {
    /// The separator that timestamps must have; `None`: either.
    pub timestamps: Option<TimestampStandard>,
    /// Bytes stand as they are instead of as base64.
    pub raw_bytes: bool,
}

/// A column that is being built.
pub struct Column {
    /// Its field.
    pub field: FieldRef,
    /// The builder.
    pub kind: Kind,
}

/// The builder of a column, by type. Strings, bytes, times and timestamps are built in one form each and cast at the end when the field
/// wants another.
pub enum Kind {
    Bool(BooleanBuilder),
    I8(PrimitiveBuilder<Int8Type>),
    I16(PrimitiveBuilder<Int16Type>),
    I32(PrimitiveBuilder<Int32Type>),
    I64(PrimitiveBuilder<Int64Type>),
    U8(PrimitiveBuilder<UInt8Type>),
    U16(PrimitiveBuilder<UInt16Type>),
    U32(PrimitiveBuilder<UInt32Type>),
    U64(PrimitiveBuilder<UInt64Type>),
    F32(PrimitiveBuilder<Float32Type>),
    F64(PrimitiveBuilder<Float64Type>),
    Decimal(Decimal128Builder, u8, i8),
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp(TimestampMicrosecondBuilder, bool),
    Text(StringViewBuilder),
    /// The text of a JSON value (a string field marked as `arrow.json`).
    Json(StringViewBuilder),
    Bytes(BinaryViewBuilder),
    Null(usize),
    List {
        child: Box<Column>,
        offsets: Vec<i32>,
        validity: NullBufferBuilder,
    },
    Struct {
        children: Vec<Column>,
        names: super::names::NameTable,
        validity: NullBufferBuilder,
    },
    Map {
        entries: FieldRef,
        keys: Box<Column>,
        values: Box<Column>,
        offsets: Vec<i32>,
        validity: NullBufferBuilder,
    },
}

/// Whether a field holds JSON text rather than plain text.
#[must_use]
pub fn is_json(field: &Field) -> bool {
    field.metadata().get("ARROW:extension:name").is_some_and(|name| name == "arrow.json")
}

impl Column {
    /// A builder for `field`; an error when no text format can hold its type.
    pub fn new(field: &FieldRef) -> Result<Self> {
        let kind = match field.data_type() {
            DataType::Boolean => Kind::Bool(BooleanBuilder::new()),
            DataType::Int8 => Kind::I8(PrimitiveBuilder::new()),
            DataType::Int16 => Kind::I16(PrimitiveBuilder::new()),
            DataType::Int32 => Kind::I32(PrimitiveBuilder::new()),
            DataType::Int64 => Kind::I64(PrimitiveBuilder::new()),
            DataType::UInt8 => Kind::U8(PrimitiveBuilder::new()),
            DataType::UInt16 => Kind::U16(PrimitiveBuilder::new()),
            DataType::UInt32 => Kind::U32(PrimitiveBuilder::new()),
            DataType::UInt64 => Kind::U64(PrimitiveBuilder::new()),
            DataType::Float32 => Kind::F32(PrimitiveBuilder::new()),
            DataType::Float64 => Kind::F64(PrimitiveBuilder::new()),
            DataType::Decimal128(precision, scale) => {
                let builder = Decimal128Builder::new().with_data_type(field.data_type().clone());
                Kind::Decimal(builder, *precision, *scale)
            }
            DataType::Date32 => Kind::Date(Date32Builder::new()),
            DataType::Time32(_) | DataType::Time64(_) => Kind::Time(Time64MicrosecondBuilder::new()),
            DataType::Timestamp(_, zone) => Kind::Timestamp(TimestampMicrosecondBuilder::new(), zone.is_some()),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                let builder = StringViewBuilder::new().with_fixed_block_size(256 * 1024);
                if is_json(field) { Kind::Json(builder) } else { Kind::Text(builder) }
            }
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Kind::Bytes(BinaryViewBuilder::new()),
            DataType::Null => Kind::Null(0),
            DataType::List(child) => {
                Kind::List { child: Box::new(Self::new(child)?), offsets: vec![0], validity: NullBufferBuilder::new(0) }
            }
            DataType::Struct(fields) => Kind::Struct {
                children: fields.iter().map(Self::new).collect::<Result<_>>()?,
                names: super::names::NameTable::new(
                    fields.iter().map(|f| f.name().as_str()),
                    fields.iter().map(|f| f.name().as_str()),
                ),
                validity: NullBufferBuilder::new(0),
            },
            DataType::Map(entries, _) => {
                let DataType::Struct(pair) = entries.data_type() else { return Err(unsupported(field)) };
                let [key, value] = &pair[..] else { return Err(unsupported(field)) };
                if key.data_type().is_nested() {
                    return Err(unsupported(field));
                }
                Kind::Map {
                    entries: Arc::clone(entries),
                    keys: Box::new(Self::new(key)?),
                    values: Box::new(Self::new(value)?),
                    offsets: vec![0],
                    validity: NullBufferBuilder::new(0),
                }
            }
            _ => return Err(unsupported(field)),
        };
        Ok(Self { field: Arc::clone(field), kind })
    }

    /// How many slots it has.
    #[must_use]
    pub fn len(&self) -> usize {
        use arrow::array::ArrayBuilder as _;
        match &self.kind {
            Kind::Bool(b) => b.len(),
            Kind::I8(b) => b.len(),
            Kind::I16(b) => b.len(),
            Kind::I32(b) => b.len(),
            Kind::I64(b) => b.len(),
            Kind::U8(b) => b.len(),
            Kind::U16(b) => b.len(),
            Kind::U32(b) => b.len(),
            Kind::U64(b) => b.len(),
            Kind::F32(b) => b.len(),
            Kind::F64(b) => b.len(),
            Kind::Decimal(b, ..) => b.len(),
            Kind::Date(b) => b.len(),
            Kind::Time(b) => b.len(),
            Kind::Timestamp(b, _) => b.len(),
            Kind::Text(b) | Kind::Json(b) => b.len(),
            Kind::Bytes(b) => b.len(),
            Kind::Null(len) => *len,
            Kind::List { offsets, .. } | Kind::Map { offsets, .. } => offsets.len() - 1,
            Kind::Struct { validity, .. } => validity.len(),
        }
    }

    /// Appends NULL. Only where the field is nullable.
    pub fn append_null(&mut self) {
        debug_assert!(self.field.is_nullable(), "NULL in a NOT NULL column");
        match &mut self.kind {
            Kind::Bool(b) => b.append_null(),
            Kind::I8(b) => b.append_null(),
            Kind::I16(b) => b.append_null(),
            Kind::I32(b) => b.append_null(),
            Kind::I64(b) => b.append_null(),
            Kind::U8(b) => b.append_null(),
            Kind::U16(b) => b.append_null(),
            Kind::U32(b) => b.append_null(),
            Kind::U64(b) => b.append_null(),
            Kind::F32(b) => b.append_null(),
            Kind::F64(b) => b.append_null(),
            Kind::Decimal(b, ..) => b.append_null(),
            Kind::Date(b) => b.append_null(),
            Kind::Time(b) => b.append_null(),
            Kind::Timestamp(b, _) => b.append_null(),
            Kind::Text(b) | Kind::Json(b) => b.append_null(),
            Kind::Bytes(b) => b.append_null(),
            Kind::Null(len) => *len += 1,
            Kind::List { child, offsets, validity } => close_list(child.len(), offsets, validity, false),
            Kind::Map { keys, offsets, validity, .. } => close_list(keys.len(), offsets, validity, false),
            Kind::Struct { children, validity, .. } => {
                children.iter_mut().for_each(Self::append_filler);
                validity.append_null();
            }
        }
    }

    /// Appends a value that nobody will see: NULL, or the least that a NOT NULL column takes.
    pub fn append_filler(&mut self) {
        if self.field.is_nullable() {
            return self.append_null();
        }
        match &mut self.kind {
            Kind::Bool(b) => b.append_value(false),
            Kind::I8(b) => b.append_value(0),
            Kind::I16(b) => b.append_value(0),
            Kind::I32(b) => b.append_value(0),
            Kind::I64(b) => b.append_value(0),
            Kind::U8(b) => b.append_value(0),
            Kind::U16(b) => b.append_value(0),
            Kind::U32(b) => b.append_value(0),
            Kind::U64(b) => b.append_value(0),
            Kind::F32(b) => b.append_value(0.0),
            Kind::F64(b) => b.append_value(0.0),
            Kind::Decimal(b, ..) => b.append_value(0),
            Kind::Date(b) => b.append_value(0),
            Kind::Time(b) => b.append_value(0),
            Kind::Timestamp(b, _) => b.append_value(0),
            Kind::Text(b) | Kind::Json(b) => b.append_value(""),
            Kind::Bytes(b) => b.append_value(b""),
            Kind::Null(len) => *len += 1,
            Kind::List { child, offsets, validity } => close_list(child.len(), offsets, validity, true),
            Kind::Map { keys, offsets, validity, .. } => close_list(keys.len(), offsets, validity, true),
            Kind::Struct { children, validity, .. } => {
                children.iter_mut().for_each(Self::append_filler);
                validity.append_non_null();
            }
        }
    }

    /// Appends the value that `text` stands for; on an error filler.
    pub fn append_text(&mut self, text: &str, rules: TextRules) -> Decode<()> {
        let answer = self.try_append_text(text, rules);
        answer.or_else(|misfit| {
            self.append_filler();
            self.misfit(misfit, text)
        })
    }

    /// The flaw of a text that does not fit this column.
    pub fn misfit<T>(&self, misfit: Misfit, text: &str) -> Decode<T> {
        let shown: String = text.chars().take(80).collect();
        let more = if shown.len() < text.len() { "…" } else { "" };
        let (name, wanted) = (self.field.name(), sql_type(&self.field));
        match misfit {
            Misfit::Type => flaw(Code::FieldType, format!("field '{name}': '{shown}{more}' is no {wanted}")),
            Misfit::Range => flaw(Code::FieldRange, format!("field '{name}': '{shown}{more}' is out of the range of {wanted}")),
        }
    }

    fn try_append_text(&mut self, text: &str, rules: TextRules) -> std::result::Result<(), Misfit> {
        macro_rules! integer {
            ($b:expr) => {
                $b.append_value(scalar::parse_integer(text)?.try_into().map_err(|_| Misfit::Range)?)
            };
        }
        match &mut self.kind {
            Kind::Bool(b) => b.append_value(match text {
                _ if text.eq_ignore_ascii_case("true") => true,
                _ if text.eq_ignore_ascii_case("false") => false,
                _ => return Err(Misfit::Type),
            }),
            Kind::I8(b) => integer!(b),
            Kind::I16(b) => integer!(b),
            Kind::I32(b) => integer!(b),
            Kind::I64(b) => integer!(b),
            Kind::U8(b) => integer!(b),
            Kind::U16(b) => integer!(b),
            Kind::U32(b) => integer!(b),
            Kind::U64(b) => integer!(b),
            Kind::F32(b) => {
                let wide = scalar::parse_double(text)?;
                // Straight from the text: by way of f64 it would be rounded twice.
                let value: f32 = if wide.is_finite() { text.parse().map_err(|_| Misfit::Type)? } else { wide as f32 };
                if wide.is_finite() && !value.is_finite() {
                    return Err(Misfit::Range);
                }
                b.append_value(value);
            }
            Kind::F64(b) => b.append_value(scalar::parse_double(text)?),
            Kind::Decimal(b, precision, scale) => b.append_value(scalar::parse_decimal(text, *precision, *scale)?),
            Kind::Date(b) => b.append_value(scalar::parse_date(text)?),
            Kind::Time(b) => b.append_value(scalar::parse_time(text)?),
            Kind::Timestamp(b, zoned) => b.append_value(scalar::parse_timestamp(text, *zoned, rules.timestamps)?),
            Kind::Text(b) => b.append_value(text),
            Kind::Json(b) => {
                serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|_| Misfit::Type)?;
                b.append_value(text);
            }
            Kind::Bytes(b) if rules.raw_bytes => b.append_value(text.as_bytes()),
            Kind::Bytes(b) => b.append_value(scalar::parse_base64(text).ok_or(Misfit::Type)?),
            Kind::Null(_) | Kind::List { .. } | Kind::Struct { .. } | Kind::Map { .. } => return Err(Misfit::Type),
        }
        Ok(())
    }

    /// The array of all slots; the column is empty afterwards.
    pub fn finish(&mut self) -> std::result::Result<ArrayRef, arrow::error::ArrowError> {
        let built: ArrayRef = match &mut self.kind {
            Kind::Bool(b) => Arc::new(b.finish()),
            Kind::I8(b) => Arc::new(b.finish()),
            Kind::I16(b) => Arc::new(b.finish()),
            Kind::I32(b) => Arc::new(b.finish()),
            Kind::I64(b) => Arc::new(b.finish()),
            Kind::U8(b) => Arc::new(b.finish()),
            Kind::U16(b) => Arc::new(b.finish()),
            Kind::U32(b) => Arc::new(b.finish()),
            Kind::U64(b) => Arc::new(b.finish()),
            Kind::F32(b) => Arc::new(b.finish()),
            Kind::F64(b) => Arc::new(b.finish()),
            Kind::Decimal(b, ..) => Arc::new(b.finish()),
            Kind::Date(b) => Arc::new(b.finish()),
            Kind::Time(b) => Arc::new(b.finish()),
            Kind::Timestamp(b, _) => match self.field.data_type() {
                DataType::Timestamp(_, Some(zone)) => Arc::new(b.finish().with_timezone(Arc::clone(zone))),
                _ => Arc::new(b.finish()),
            },
            Kind::Text(b) | Kind::Json(b) => Arc::new(b.finish()),
            Kind::Bytes(b) => Arc::new(b.finish()),
            Kind::Null(len) => Arc::new(NullArray::new(std::mem::take(len))),
            Kind::List { child, offsets, validity } => {
                let DataType::List(item) = self.field.data_type() else { unreachable!("built for a list") };
                let offsets = OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(offsets, vec![0])));
                Arc::new(ListArray::try_new(Arc::clone(item), offsets, child.finish()?, validity.finish())?)
            }
            Kind::Struct { children, validity, .. } => {
                let DataType::Struct(fields) = self.field.data_type() else { unreachable!("built for a struct") };
                let len = validity.len();
                let arrays = children.iter_mut().map(Self::finish).collect::<std::result::Result<Vec<_>, _>>()?;
                Arc::new(StructArray::try_new_with_length(fields.clone(), arrays, validity.finish(), len)?)
            }
            Kind::Map { entries, keys, values, offsets, validity } => {
                let (DataType::Struct(pair), DataType::Map(_, sorted)) = (entries.data_type(), self.field.data_type()) else {
                    unreachable!("built for a map")
                };
                let arrays = StructArray::try_new(pair.clone(), vec![keys.finish()?, values.finish()?], None)?;
                let offsets = OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(offsets, vec![0])));
                Arc::new(MapArray::try_new(Arc::clone(entries), offsets, arrays, validity.finish(), *sorted)?)
            }
        };
        if built.data_type() == self.field.data_type() { Ok(built) } else { arrow::compute::cast(&built, self.field.data_type()) }
    }
}

/// Ends a list or map slot at child `end`.
pub fn close_list(end: usize, offsets: &mut Vec<i32>, validity: &mut NullBufferBuilder, is_valid: bool) {
    // A batch is cut long before: a slot takes at least one byte of input, and batches end after some MiB of input.
    offsets.push(i32::try_from(end).expect("fewer than 2^31 elements in a batch"));
    validity.append(is_valid);
}

fn unsupported(field: &Field) -> Diagnostic {
    Diagnostic::new(
        Code::UnsupportedSchema,
        format!("column '{}' of type {} can't be read from or written to text", field.name(), sql_type(field)),
    )
    .hint("use BOOLEAN, a number, STRING, BYTES, DATE, TIME, TIMESTAMP, ARRAY, ROW or MAP with plain keys")
}

/// The SQL spelling of a field's type, for messages.
#[must_use]
pub fn sql_type(field: &Field) -> String {
    match field.data_type() {
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int8 => "TINYINT".into(),
        DataType::Int16 => "SMALLINT".into(),
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::Float32 => "REAL".into(),
        DataType::Float64 => "DOUBLE".into(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::Date32 => "DATE".into(),
        DataType::Time32(_) | DataType::Time64(_) => "TIME".into(),
        DataType::Timestamp(_, None) => "TIMESTAMP".into(),
        DataType::Timestamp(_, Some(_)) => "TIMESTAMP_LTZ".into(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View if is_json(field) => "JSON".into(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "STRING".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BYTES".into(),
        DataType::List(child) => format!("ARRAY<{}>", sql_type(child)),
        DataType::Struct(fields) => {
            let inner: Vec<_> = fields.iter().map(|f| format!("{} {}", f.name(), sql_type(f))).collect();
            format!("ROW<{}>", inner.join(", "))
        }
        other => other.to_string(),
    }
}

/// The columns of a table under construction, with a count of finished rows.
pub struct FieldSet {
    /// In the order of the schema.
    pub columns: Vec<Column>,
    schema: SchemaRef,
    rows: usize,
    dead: Vec<usize>,
}

impl FieldSet {
    /// Builders for all fields of `schema`.
    pub fn new(schema: &SchemaRef) -> Result<Self> {
        let columns = schema.fields().iter().map(Column::new).collect::<Result<_>>()?;
        Ok(Self { columns, schema: Arc::clone(schema), rows: 0, dead: Vec::new() })
    }

    /// Rows so far, dead ones included.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Ends a row; every column has its slot.
    pub fn end_row(&mut self) {
        self.rows += 1;
        debug_assert!(self.columns.iter().all(|c| c.len() == self.rows), "a slot a row");
    }

    /// Gives up all rows from number `from` on, and the one that is being built: [`Self::finish`] leaves them out.
    pub fn kill_from(&mut self, from: usize) {
        let mut is_partial = false;
        for column in &self.columns {
            is_partial |= column.len() > self.rows;
        }
        if is_partial {
            for column in &mut self.columns {
                if column.len() == self.rows {
                    column.append_filler();
                }
            }
            self.rows += 1;
        }
        self.dead.extend(from..self.rows);
    }

    /// Which rows stay, in order; `None`: all.
    #[must_use]
    pub fn alive(&self) -> Option<BooleanArray> {
        if self.dead.is_empty() {
            return None;
        }
        let mut mask = vec![true; self.rows];
        for row in &self.dead {
            mask[*row] = false;
        }
        Some(mask.into())
    }

    /// The batch of all rows that are not dead; the set is empty afterwards.
    pub fn finish(&mut self) -> Result<RecordBatch> {
        let alive = self.alive();
        let rows = alive.as_ref().map_or(self.rows, BooleanArray::true_count);
        self.rows = 0;
        self.dead.clear();
        let arrays = self.columns.iter_mut().map(|column| {
            let array = column.finish()?;
            match &alive {
                Some(mask) => arrow::compute::filter(&array, mask),
                None => Ok(array),
            }
        });
        let arrays = arrays.collect::<std::result::Result<Vec<_>, _>>();
        arrays
            .and_then(|arrays| {
                let options = RecordBatchOptions::new().with_row_count(Some(rows));
                RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)
            })
            .map_err(|e| Diagnostic::new(Code::Internal, format!("a decoded batch does not fit its schema: {e}")))
    }
}
