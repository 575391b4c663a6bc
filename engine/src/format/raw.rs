//! The `raw` format: a line is the value of the table's only column, STRING or BYTES.

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};

use super::Encoder;
use super::cells::Cells;
use super::columns::{Decode, FieldSet, Kind, TextRules, flaw};
use super::lines::LineDecoder;
use crate::connect::RowKind;
use crate::error::{Code, Diagnostic, Result};

/// Refuses all but one column of STRING or BYTES; true for BYTES.
fn check(declared: &SchemaRef) -> Result<bool> {
    match declared.fields().iter().map(|f| f.data_type()).collect::<Vec<_>>()[..] {
        [DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8] => Ok(false),
        [DataType::Binary | DataType::BinaryView | DataType::LargeBinary] => Ok(true),
        _ => Err(Diagnostic::new(Code::UnsupportedSchema, "format 'raw' needs a table with one column of type STRING or BYTES")
            .hint("metadata and computed columns may stand beside it")),
    }
}

/// Lines as they stand, also empty ones.
pub struct RawLines {
    fields: FieldSet,
    takes_bytes: bool,
}

impl RawLines {
    /// For a table with the one physical column of `declared`; `schema` is the same or empty.
    pub fn new(schema: &SchemaRef, declared: &SchemaRef) -> Result<Self> {
        Ok(Self { takes_bytes: check(declared)?, fields: FieldSet::new(schema)? })
    }
}

impl LineDecoder for RawLines {
    fn line(&mut self, text: &str, weights: &mut Vec<i64>) -> Decode<()> {
        for column in &mut self.fields.columns {
            column.append_text(text, TextRules { timestamps: None, raw_bytes: true })?;
        }
        self.fields.end_row();
        weights.push(1);
        Ok(())
    }

    fn bytes_line(&mut self, line: &[u8], weights: &mut Vec<i64>) -> Decode<()> {
        if !self.takes_bytes {
            return flaw(Code::BadUtf8, "the line is not UTF-8, and its column is STRING");
        }
        for column in &mut self.fields.columns {
            if let Kind::Bytes(builder) = &mut column.kind {
                builder.append_value(line);
            }
        }
        self.fields.end_row();
        weights.push(1);
        Ok(())
    }

    fn fields(&mut self) -> &mut FieldSet {
        &mut self.fields
    }

    fn takes_blank_lines(&self) -> bool {
        true
    }
}

/// Writes the value of each row as a line; NULL as an empty one.
pub struct RawEncoder;

impl RawEncoder {
    /// For rows of `schema`.
    pub fn new(schema: &SchemaRef) -> Result<Self> {
        check(schema).map(|_| Self)
    }
}

impl Encoder for RawEncoder {
    fn encode(&mut self, rows: &RecordBatch, _kinds: Option<&[RowKind]>, out: &mut Vec<u8>) -> Result<()> {
        let cells = Cells::new(rows.schema().field(0), rows.column(0))?;
        for row in 0..rows.num_rows() {
            if !cells.is_null(row) {
                out.extend_from_slice(cells.bytes(row).unwrap_or_default());
            }
            out.push(b'\n');
        }
        Ok(())
    }
}
