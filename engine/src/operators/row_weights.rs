//! A Z-set in a state table: each different row with its net weight.

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use tiderace_storage::{Entry, RecordRef, Shard, TableId};

use crate::batch::{DeltaBatch, Weights};
use crate::error::{Code, Diagnostic, Result};
use crate::key::{KeyCodec, Keys};

/// Turns whole rows into canonical bytes and back.
#[derive(Debug)]
pub(super) struct RowCodec {
    codec: KeyCodec,
    schema: SchemaRef,
}

impl RowCodec {
    pub(super) fn new(schema: &SchemaRef) -> Result<Self> {
        let columns: Vec<usize> = (0..schema.fields().len()).collect();
        Ok(Self { codec: KeyCodec::new(schema, &columns)?, schema: schema.clone() })
    }

    pub(super) fn encode(&mut self, rows: &RecordBatch, keys: &mut Keys) -> Result<()> {
        self.codec.encode(rows, keys)
    }

    /// Rows of the schema, from what `encode` wrote.
    pub(super) fn decode<'k>(&self, rows: impl ExactSizeIterator<Item = &'k [u8]>) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        let internal = |e: arrow::error::ArrowError| Diagnostic::new(Code::Internal, e.to_string());
        let columns = self.codec.decode(rows)?.into_iter().zip(self.schema.fields());
        let columns: Result<Vec<ArrayRef>> = columns
            .map(|(column, field)| {
                if column.data_type() == field.data_type() {
                    Ok(column)
                } else {
                    cast(&column, field.data_type()).map_err(internal)
                }
            })
            .collect();
        RecordBatch::try_new_with_options(self.schema.clone(), columns?, &options).map_err(internal)
    }
}

/// Each different row of one schema with its net weight, which is never 0. Lives in one table of the shard.
#[derive(Debug)]
pub(super) struct RowWeights {
    table: TableId,
    codec: RowCodec,
    keys: Keys,
    entries: Vec<Entry>,
    found: Vec<RecordRef>,
}

const WEIGHT_BYTES: usize = 8;

impl RowWeights {
    pub(super) fn new(schema: &SchemaRef, table: TableId) -> Result<Self> {
        Ok(Self { table, codec: RowCodec::new(schema)?, keys: Keys::default(), entries: Vec::new(), found: Vec::new() })
    }

    /// Adds a batch; rows whose weights cancel are forgotten.
    pub(super) fn add(&mut self, shard: &mut Shard, batch: &DeltaBatch) -> Result<()> {
        self.codec.encode(&batch.rows, &mut self.keys)?;
        let table = shard.point(self.table, WEIGHT_BYTES);
        self.entries.clear();
        table.entries(&self.keys.as_batch(), &mut self.entries);
        let mut cancelled = Vec::new();
        for (i, entry) in self.entries.iter().enumerate() {
            let value = table.value_mut(entry.record);
            let sum = weight(value)
                .checked_add(batch.weights.get(i))
                .ok_or_else(|| Diagnostic::new(Code::Overflow, "the multiplicity of a row is out of the range of BIGINT"))?;
            value.copy_from_slice(&sum.to_le_bytes());
            if sum == 0 {
                cancelled.push(i);
            }
        }
        // A row that came to 0 may have left it again further down in the batch.
        for i in cancelled {
            let key = self.keys.as_batch().key(i);
            if table.get(self.keys.hashes[i], key).is_some_and(|value| weight(value) == 0) {
                table.remove(self.keys.hashes[i], key);
            }
        }
        Ok(())
    }

    /// Up to `rows_max` rows with their weights, going on behind `cursor` (0 at first); the next cursor, or `None` at the end.
    pub(super) fn scan(&mut self, shard: &mut Shard, cursor: u64, rows_max: usize) -> Result<(DeltaBatch, Option<u64>)> {
        let table = shard.point(self.table, WEIGHT_BYTES);
        self.found.clear();
        let next = table.scan(cursor, rows_max, &mut self.found);
        let rows = self.codec.decode(self.found.iter().map(|record| table.key(*record)))?;
        let weights = self.found.iter().map(|record| weight(table.value(*record))).collect();
        Ok((DeltaBatch::new(rows, Weights::from_vec(weights)), next))
    }

    /// Forgets all rows.
    pub(super) fn clear(&mut self, shard: &mut Shard) {
        shard.drop_table(self.table);
    }
}

fn weight(value: &[u8]) -> i64 {
    i64::from_le_bytes(value.try_into().expect("the table's values are eight bytes wide"))
}
