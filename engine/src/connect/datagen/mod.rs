//! `'connector' = 'datagen'`: random and counted columns, with the option names of Flink's `datagen`.
//!
//! Row n is a pure function of seed and n, column by column, so the rows are the same at any number of cores: core c of k makes the blocks
//! c, c + k, … of row numbers.

mod column;

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use serde_json::{Value, json};

use self::column::{Column, Scope};
use super::{
    ConnectorSpec, CoreInit, OptionSpec, OptionType, Position, Ring, Source, SourceBatch, SourceEvent, SourcePoll, SourceReader,
    SourceRef, TableSpec,
};
use crate::batch::Weights;
use crate::error::{Code, Diagnostic, Result};
use crate::ids::SplitId;

/// See [`super::registry`].
pub const SPEC: ConnectorSpec = ConnectorSpec {
    name: "datagen",
    doc: "Random rows and sequences, for tests and demonstrations",
    options: OPTIONS,
    takes_format: false,
    takes_partitions: false,
    source: Some(plan),
    sink: None,
    metadata: &[],
};

macro_rules! option {
    ($key:literal, $kind:expr, $default:expr, $doc:literal) => {
        OptionSpec { key: $key, kind: $kind, default: $default, required: false, doc: $doc }
    };
}

const OPTIONS: &[OptionSpec] = &[
    option!(
        "rows-per-second",
        OptionType::Integer,
        Some("10000"),
        "How fast rows come, over all cores; 0: as fast as they can be made."
    ),
    option!(
        "number-of-rows",
        OptionType::Integer,
        None,
        "How many rows there are; without end when left out, unless a sequence ends."
    ),
    option!("seed", OptionType::Integer, Some("0"), "What everything random follows from: the same seed gives the same rows."),
    option!(
        "start-time",
        OptionType::Text,
        Some("now"),
        "The clock at row 0: a UTC timestamp, ms since 1970, or now. Row n is n / rows-per-second later."
    ),
    option!("fields.*.kind", OptionType::Choice(&["random", "sequence"]), Some("random"), "How the column's values are made."),
    option!("fields.*.min", OptionType::Text, None, "The least random number; that of the type when left out."),
    option!("fields.*.max", OptionType::Text, None, "The greatest random number; that of the type when left out."),
    option!(
        "fields.*.max-past",
        OptionType::Duration,
        Some("0 s"),
        "How far before the clock random dates and timestamps may be."
    ),
    option!(
        "fields.*.length",
        OptionType::Integer,
        Some("100"),
        "Characters of a string, bytes of a BYTES, elements of an ARRAY."
    ),
    option!("fields.*.var-len", OptionType::Bool, Some("false"), "Whether strings and BYTES have any length from 1 to `length`."),
    option!("fields.*.null-rate", OptionType::Number, Some("0"), "The share of NULLs, 0 to 1."),
    option!("fields.*.start", OptionType::Integer, None, "The first number of a sequence."),
    option!("fields.*.end", OptionType::Integer, None, "The last number of a sequence: the source ends with it."),
];

/// Rows of a block, and the most of a batch.
const BLOCK_ROWS: u64 = 4096;

fn plan(table: &TableSpec<'_>) -> Result<SourceRef> {
    let options = table.options;
    let rate = options.integer("rows-per-second")?.unwrap_or(10_000);
    let seed = options.integer("seed")?.unwrap_or(0);
    let expected = "a timestamp such as '2024-01-01 00:00:00', ms since 1970, or now, between the years 1 and 9999";
    let start_ms = options
        .parsed("start-time", expected, super::nexmark::parse_start_ms)?
        .unwrap_or_else(|| chrono::Utc::now().timestamp_millis());
    // Also of columns that this query does not need: a sequence ends the source whether it is looked at or not.
    let sequences_end = column::rows_of_sequences(options, &table.physical)?;
    let rows = match (options.integer("number-of-rows")?, sequences_end) {
        (Some(wanted), Some(end)) => Some(wanted.min(end)),
        (wanted, end) => wanted.or(end),
    };
    let scope = Scope { options, seed, start_us: start_ms * 1000, rate };
    let column = |field: &arrow::datatypes::FieldRef| {
        Column::new(&scope, field.name(), field).map_err(|mut error| {
            error.message = format!("table `{}`: {}", table.name, error.message);
            error
        })
    };
    // Columns that this query does not need are refused all the same when their options are wrong.
    table.physical.fields().iter().try_for_each(|field| column(field).map(drop))?;
    let columns = table.schema.fields().iter().map(column).collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(DatagenSource { schema: table.schema.clone(), columns: columns.into(), rows, rate }))
}

#[derive(Debug, Clone)]
struct DatagenSource {
    schema: SchemaRef,
    columns: Arc<[Column]>,
    rows: Option<u64>,
    /// Rows a second; 0: not limited.
    rate: u64,
}

impl Source for DatagenSource {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn is_bounded(&self) -> bool {
        self.rows.is_some()
    }

    fn is_append_only(&self) -> bool {
        true
    }

    fn ring(&self) -> Ring {
        Ring::Core
    }

    fn rows_hint(&self) -> Option<u64> {
        self.rows
    }

    fn is_resumable(&self) -> bool {
        true
    }

    fn open(&self, init: CoreInit) -> Result<Box<dyn SourceReader>> {
        let next = u64::from(init.core.0) * BLOCK_ROWS;
        Ok(Box::new(DatagenReader {
            source: self.clone(),
            split: SplitId(u32::from(init.core.0)),
            next,
            block_end: next + BLOCK_ROWS,
            gap_rows: (init.cores as u64 - 1) * BLOCK_ROWS,
            paced_from: 0,
            since: None,
            finished: false,
            numbers: Vec::new(),
        }))
    }
}

struct DatagenReader {
    source: DatagenSource,
    split: SplitId,
    next: u64,
    block_end: u64,
    /// Rows of the other cores between two blocks of this one.
    gap_rows: u64,
    /// The row that pacing counts from.
    paced_from: u64,
    /// The first poll.
    since: Option<Instant>,
    finished: bool,
    /// Kept for its capacity.
    numbers: Vec<u64>,
}

impl SourceReader for DatagenReader {
    fn position(&mut self, changed: &mut Vec<(u64, Value)>) {
        changed.push((0, json!({ "next": self.next, "block_end": self.block_end })));
    }

    fn resume(&mut self, position: &Position) -> Result<()> {
        let number = |key: &str| position.get(&0).and_then(|at| at[key].as_u64());
        let (Some(next), Some(block_end)) = (number("next"), number("block_end")) else {
            return Err(Diagnostic::new(Code::CheckpointMismatch, "the checkpoint has no position of these generated rows"));
        };
        (self.next, self.block_end, self.paced_from) = (next, block_end, next);
        Ok(())
    }

    fn poll(&mut self, rows_max: usize, out: &mut Vec<SourceEvent>) -> Result<SourcePoll> {
        if self.finished {
            return Ok(SourcePoll::Finished);
        }
        let since = *self.since.get_or_insert_with(|| {
            out.push(SourceEvent::SplitOpened(self.split));
            Instant::now()
        });
        // Beyond this, row numbers of other cores' blocks would overflow; at 10⁹ rows a second it takes centuries.
        let limit = self.source.rows.unwrap_or(u64::MAX / 2);
        if self.next >= limit {
            self.finished = true;
            out.push(SourceEvent::SplitFinished(self.split));
            return Ok(SourcePoll::Finished);
        }
        let due = match self.source.rate {
            0 => u64::MAX,
            rate => u64::try_from(since.elapsed().as_nanos() * u128::from(rate) / 1_000_000_000)
                .unwrap_or(u64::MAX)
                .saturating_add(self.paced_from),
        };
        let end = limit.min(due).min(self.block_end).min(self.next.saturating_add(rows_max.max(1) as u64));
        if self.next >= end {
            return Ok(SourcePoll::Idle);
        }
        self.numbers.clear();
        self.numbers.extend(self.next..end);
        let columns = self.source.columns.iter().map(|column| column.build(&self.numbers)).collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(self.numbers.len()));
        let rows = RecordBatch::try_new_with_options(self.source.schema.clone(), columns, &options)
            .map_err(|e| Diagnostic::new(Code::Internal, e.to_string()))?;
        let weights = Weights::Ones(rows.num_rows());
        out.push(SourceEvent::Rows(SourceBatch { split: self.split, rows, weights, rejected: Vec::new() }));
        self.next = end;
        if self.next == self.block_end {
            self.next += self.gap_rows;
            self.block_end = self.next + BLOCK_ROWS;
        }
        Ok(SourcePoll::More)
    }
}

#[cfg(test)]
mod tests;
