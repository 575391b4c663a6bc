//! Rows that are given beforehand. Every job that reads them reads all of them, in the same order at every run.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{cast, concat_batches, take_record_batch};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::row::{RowConverter, SortField};
use serde_json::Value;
use twox_hash::XxHash3_64;

use super::{Registration, Rows, SOURCES, project, register};
use crate::batch::{DeltaBatch, Weights};
use crate::connect::random::{RandomStream, below_wide};
use crate::connect::{CoreInit, Position, Ring, Source, SourceBatch, SourceEvent, SourcePoll, SourceReader, SourceRef};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::SplitId;

/// Rows in one or several splits, each a list of batches. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MemoryInput {
    schema: SchemaRef,
    splits: Arc<Vec<Vec<DeltaBatch>>>,
    /// How readers go from split to split; in turn when `None`.
    seed: Option<u64>,
}

/// How [`MemoryInput::scattered`] deals the rows anew.
#[derive(Clone, Copy, Debug)]
pub struct Scatter {
    /// What all choices follow from.
    pub seed: u64,
    /// Over how many splits, at least 1.
    pub splits: usize,
    /// The most rows of a batch, at least 1; batches have between one row and this many.
    pub rows_max: usize,
    /// Whether rows change their order.
    pub shuffle: Shuffle,
}

/// How far rows may leave their order.
#[derive(Clone, Copy, Debug)]
pub enum Shuffle {
    /// Rows of a split stay in order.
    Never,
    /// Any order. Equal rows keep theirs, so that no row is taken back before it was there.
    Free,
    /// No row comes after one whose event time is `bound_us` or more later, so that a watermark with that delay makes none of them late.
    /// Rows without event time may come anywhere. Equal rows keep their order.
    Within {
        /// The event time: the index of a TIMESTAMP column.
        column: usize,
        /// The bound in µs, more than 0.
        bound_us: i64,
    },
}

impl MemoryInput {
    /// Batches of one split, in order. All must have the columns of `schema`.
    pub fn new(schema: SchemaRef, batches: Vec<DeltaBatch>) -> Result<Self> {
        Self::with_splits(schema, vec![batches])
    }

    /// Batches of several splits. Core c of n reads the splits c, c + n, … in turn, a batch a poll.
    pub fn with_splits(schema: SchemaRef, splits: Vec<Vec<DeltaBatch>>) -> Result<Self> {
        for batch in splits.iter().flatten() {
            let found = batch.rows.schema_ref();
            if found.fields() != schema.fields() {
                return Err(Diagnostic::new(Code::UnsupportedSchema, format!("a batch has the columns {found}, not {schema}")));
            }
        }
        Ok(Self { schema, splits: Arc::new(splits), seed: None })
    }

    /// The same rows with the same weights, but dealt over splits, shuffled and cut into batches as `scatter` says.
    pub fn scattered(&self, scatter: Scatter) -> Result<Self> {
        let internal = |e: arrow::error::ArrowError| Diagnostic::new(Code::Internal, e.to_string());
        let batches: Vec<_> = self.splits.iter().flatten().collect();
        let rows = concat_batches(&self.schema, batches.iter().map(|b| &b.rows)).map_err(internal)?;
        let weights: Vec<i64> = batches.iter().flat_map(|b| (0..b.num_rows()).map(|i| b.weights.get(i))).collect();
        let random = RandomStream::new(scatter.seed, 0);
        // By content, so that equal rows stay together and in order.
        let hashes = hashes(&rows, scatter.seed)?;
        let order_keys: Vec<i64> = match scatter.shuffle {
            Shuffle::Never => vec![0; rows.num_rows()],
            Shuffle::Free => hashes.iter().map(|hash| (hash >> 1) as i64).collect(),
            Shuffle::Within { column, bound_us } => {
                let times = cast(rows.column(column), &DataType::Timestamp(TimeUnit::Microsecond, None)).map_err(internal)?;
                let times = times.as_primitive::<TimestampMicrosecondType>();
                let range = times
                    .iter()
                    .flatten()
                    .fold(None, |range: Option<(i64, i64)>, t| Some(range.map_or((t, t), |(min, max)| (min.min(t), max.max(t)))));
                let (first, last) = range.unwrap_or_default();
                (0..rows.num_rows())
                    .map(|row| {
                        let jitter = |bound: i64| below_wide(hashes[row], bound.max(1) as u64) as i64;
                        if times.is_valid(row) { times.value(row) + jitter(bound_us) } else { first + jitter(last - first + 1) }
                    })
                    .collect()
            }
        };
        let mut dealt = vec![Vec::new(); scatter.splits.max(1)];
        let split_count = dealt.len() as u64;
        for row in 0..rows.num_rows() as u32 {
            let choice = RandomStream::new(hashes[row as usize], 1).word(scatter.seed);
            dealt[below_wide(choice, split_count) as usize].push(row);
        }
        let mut splits = Vec::with_capacity(dealt.len());
        let mut cuts = 0u64;
        for mut indices in dealt {
            indices.sort_by_key(|row| order_keys[*row as usize]);
            let mut batches = Vec::new();
            let mut rest = indices.as_slice();
            while !rest.is_empty() {
                cuts += 1;
                let len = 1 + below_wide(random.word(cuts), scatter.rows_max.max(1) as u64) as usize;
                let (own, others) = rest.split_at(len.min(rest.len()));
                let taken = take_record_batch(&rows, &UInt32Array::from(own.to_vec())).map_err(internal)?;
                batches.push(DeltaBatch::new(taken, Weights::from_vec(own.iter().map(|i| weights[*i as usize]).collect())));
                rest = others;
            }
            splits.push(batches);
        }
        Ok(Self { schema: self.schema.clone(), splits: Arc::new(splits), seed: Some(scatter.seed) })
    }

    /// Gives the rows a name, for `'connector' = 'memory', 'name' = …`.
    pub fn register(&self, name: &str) -> Result<Registration> {
        register(&SOURCES, name, Rows::Input(self.clone()), true)
    }

    /// The columns.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// All batches, split by split.
    pub fn batches(&self) -> impl Iterator<Item = &DeltaBatch> {
        self.splits.iter().flatten()
    }

    /// A source of the columns of `schema`, for `table`.
    pub(super) fn source(&self, table: &str, schema: &SchemaRef) -> Result<SourceRef> {
        project::check(table, &self.schema, schema)?;
        Ok(Arc::new(InputSource { input: self.clone(), schema: schema.clone() }))
    }
}

fn hashes(rows: &RecordBatch, seed: u64) -> Result<Vec<u64>> {
    let fields = rows.schema_ref().fields().iter().map(|f| SortField::new(f.data_type().clone())).collect::<Vec<_>>();
    if fields.is_empty() {
        return Ok(vec![0; rows.num_rows()]);
    }
    let refused =
        |e: arrow::error::ArrowError| Diagnostic::new(Code::UnsupportedSchema, format!("these rows can't be dealt: {e}"));
    let encoded = RowConverter::new(fields).and_then(|c| c.convert_columns(rows.columns())).map_err(refused)?;
    Ok(encoded.iter().map(|row| XxHash3_64::oneshot_with_seed(seed, row.as_ref())).collect())
}

#[derive(Debug)]
struct InputSource {
    input: MemoryInput,
    schema: SchemaRef,
}

impl Source for InputSource {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn is_bounded(&self) -> bool {
        true
    }

    fn is_append_only(&self) -> bool {
        self.input.batches().all(|batch| match &batch.weights {
            Weights::Ones(_) => true,
            Weights::Signed(weights) => weights.iter().all(|w| *w > 0),
        })
    }

    fn ring(&self) -> Ring {
        Ring::Core
    }

    fn rows_hint(&self) -> Option<u64> {
        Some(self.input.batches().map(|batch| batch.num_rows() as u64).sum())
    }

    fn is_resumable(&self) -> bool {
        true
    }

    fn open(&self, init: CoreInit) -> Result<Box<dyn SourceReader>> {
        let own = (usize::from(init.core.0)..self.input.splits.len()).step_by(init.cores);
        Ok(Box::new(InputReader {
            schema: self.schema.clone(),
            input: self.input.clone(),
            random: self.input.seed.map(|seed| RandomStream::new(seed, 2 + u64::from(init.core.0))),
            polls: 0,
            open: own.map(|split| (split, 0)).collect(),
            announced: false,
            told: Vec::new(),
            held: Vec::new(),
        }))
    }
}

struct InputReader {
    schema: SchemaRef,
    input: MemoryInput,
    random: Option<RandomStream>,
    polls: u64,
    /// Splits that are not finished, and the next batch of each.
    open: Vec<(usize, usize)>,
    announced: bool,
    /// Splits whose position was told.
    told: Vec<usize>,
    /// Splits that are not to be read now, in ascending order.
    held: Vec<SplitId>,
}

impl SourceReader for InputReader {
    fn position(&mut self, changed: &mut Vec<(u64, Value)>) {
        changed.extend(
            self.told
                .iter()
                .filter(|split| !self.open.iter().any(|(open, _)| open == *split))
                .map(|split| (*split as u64, Value::Null)),
        );
        changed.extend(self.open.iter().map(|(split, next)| (*split as u64, Value::from(*next))));
        self.told = self.open.iter().map(|(split, _)| *split).collect();
    }

    fn resume(&mut self, position: &Position) -> Result<()> {
        self.open.retain_mut(|(split, next)| {
            let at = position.get(&(*split as u64)).and_then(Value::as_u64);
            *next = at.unwrap_or(0) as usize;
            at.is_some()
        });
        Ok(())
    }

    fn poll(&mut self, _rows_max: usize, out: &mut Vec<SourceEvent>) -> Result<SourcePoll> {
        if !std::mem::replace(&mut self.announced, true) {
            out.extend(self.open.iter().map(|(split, _)| SourceEvent::SplitOpened(SplitId(*split as u32))));
        }
        if self.open.is_empty() {
            return Ok(SourcePoll::Finished);
        }
        self.polls += 1;
        let count = self.open.len() as u64;
        let choice = self.random.map_or(self.polls % count, |random| below_wide(random.word(self.polls), count)) as usize;
        // The next one from there that is not held.
        let is_free = |at: &usize| self.held.binary_search_by_key(&(self.open[*at].0 as u32), |split| split.0).is_err();
        let places = (choice..self.open.len()).chain(0..choice);
        let Some(choice) = places.into_iter().find(is_free) else { return Ok(SourcePoll::Idle) };
        let (split, next) = &mut self.open[choice];
        let id = SplitId(*split as u32);
        match self.input.splits[*split].get(*next) {
            Some(batch) => {
                *next += 1;
                if batch.num_rows() > 0 {
                    let rows = project::project(&batch.rows, &self.schema)?;
                    let weights = batch.weights.clone();
                    out.push(SourceEvent::Rows(SourceBatch { split: id, rows, weights, rejected: Vec::new() }));
                }
            }
            None => {
                out.push(SourceEvent::SplitFinished(id));
                self.open.remove(choice);
            }
        }
        Ok(if self.open.is_empty() { SourcePoll::Finished } else { SourcePoll::More })
    }

    fn hold(&mut self, splits: &[SplitId]) {
        self.held = splits.to_vec();
    }
}
