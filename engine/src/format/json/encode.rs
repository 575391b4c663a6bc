//! Rows as JSON lines, fields in the order of the schema.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::JsonOptions;
use crate::connect::RowKind;
use crate::error::Result;
use crate::format::Encoder;
use crate::format::cells::{self, Cells};
use crate::format::scalar::TimestampStandard;

/// Writes single records; shared with the formats that wrap them.
pub struct RecordWriter {
    names: Vec<String>,
    standard: TimestampStandard,
    ignore_nulls: bool,
}

impl RecordWriter {
    /// For rows of `schema`.
    pub fn new(schema: &SchemaRef, options: JsonOptions) -> Result<Self> {
        schema.fields().iter().try_for_each(|field| cells::check_type(field, true))?;
        Ok(Self {
            names: schema.fields().iter().map(|f| cells::json_name(f.name())).collect(),
            standard: options.timestamps.unwrap_or(TimestampStandard::Sql),
            ignore_nulls: options.ignore_null_fields,
        })
    }

    /// The cells of a batch, with their names.
    pub fn cells(&self, rows: &RecordBatch) -> Result<Vec<(String, Cells)>> {
        let schema = rows.schema();
        let columns = schema.fields().iter().zip(rows.columns()).zip(&self.names);
        columns.map(|((field, array), name)| Ok((name.clone(), Cells::new(field, array)?))).collect()
    }

    /// Appends a row as an object.
    pub fn write(&self, cells: &[(String, Cells)], row: usize, out: &mut String) {
        cells::write_json_object(cells, row, self.standard, self.ignore_nulls, out);
    }
}

/// The encoder of `json`.
pub struct JsonEncoder(RecordWriter);

impl JsonEncoder {
    /// For rows of `schema`.
    pub fn new(schema: &SchemaRef, options: JsonOptions) -> Result<Self> {
        Ok(Self(RecordWriter::new(schema, options)?))
    }
}

impl Encoder for JsonEncoder {
    fn encode(&mut self, rows: &RecordBatch, _kinds: Option<&[RowKind]>, out: &mut Vec<u8>) -> Result<()> {
        let cells = self.0.cells(rows)?;
        let mut line = String::new();
        for row in 0..rows.num_rows() {
            line.clear();
            self.0.write(&cells, row, &mut line);
            line.push('\n');
            out.extend_from_slice(line.as_bytes());
        }
        Ok(())
    }
}
