//! Constant rows as a source: `VALUES (…)`, and `SELECT 1` without FROM.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use serde_json::Value;

use super::{CoreInit, Position, Ring, Source, SourceBatch, SourceEvent, SourcePoll, SourceReader};
use crate::batch::Weights;
use crate::error::Result;
use crate::ids::SplitId;

/// A source of rows that the statement itself holds. Core 0 delivers them all, once.
#[derive(Debug)]
pub struct ValuesSource {
    rows: RecordBatch,
}

impl ValuesSource {
    /// A source of `rows`.
    #[must_use]
    pub fn new(rows: RecordBatch) -> Arc<Self> {
        Arc::new(Self { rows })
    }
}

impl Source for ValuesSource {
    fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }

    fn is_bounded(&self) -> bool {
        true
    }

    fn is_append_only(&self) -> bool {
        true
    }

    fn ring(&self) -> Ring {
        Ring::Core
    }

    fn rows_hint(&self) -> Option<u64> {
        Some(self.rows.num_rows() as u64)
    }

    fn is_resumable(&self) -> bool {
        true
    }

    fn open(&self, init: CoreInit) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(ValuesReader { rows: (init.core.0 == 0).then(|| self.rows.clone()) }))
    }
}

struct ValuesReader {
    rows: Option<RecordBatch>,
}

impl SourceReader for ValuesReader {
    fn position(&mut self, changed: &mut Vec<(u64, Value)>) {
        changed.push((0, Value::from(self.rows.is_some())));
    }

    fn resume(&mut self, position: &Position) -> Result<()> {
        if position.get(&0) == Some(&Value::from(false)) {
            self.rows = None;
        }
        Ok(())
    }

    fn poll(&mut self, _rows_max: usize, out: &mut Vec<SourceEvent>) -> Result<SourcePoll> {
        if let Some(rows) = self.rows.take() {
            let split = SplitId(0);
            let weights = Weights::Ones(rows.num_rows());
            out.push(SourceEvent::SplitOpened(split));
            out.push(SourceEvent::Rows(SourceBatch { split, rows, weights, rejected: Vec::new() }));
            out.push(SourceEvent::SplitFinished(split));
        }
        Ok(SourcePoll::Finished)
    }
}
