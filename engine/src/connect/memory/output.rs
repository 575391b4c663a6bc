//! What jobs have written, kept in memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};

use super::{Registration, SINKS, lock, register};
use crate::batch::{DeltaBatch, Weights};
use crate::connect::{ChangelogMode, Changes, CoreInit, Ring, RowKind, Sink, SinkRef, SinkWriter};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::{CoreId, Epoch};

/// Collects what jobs write to it, all jobs into one heap. Clones are handles of the same heap.
#[derive(Clone, Debug)]
pub struct MemoryOutput {
    collected: Arc<Mutex<Heap>>,
    rows_max: usize,
}

/// Changes that one core wrote in one epoch.
#[derive(Clone, Debug)]
pub struct Collected {
    /// The run of the job that wrote it; 0 of one without checkpoints.
    pub run: u64,
    /// The core.
    pub core: CoreId,
    /// The epoch, counted in each run.
    pub epoch: Epoch,
    /// What it wrote, in order.
    pub changes: Changes,
}

#[derive(Debug, Default)]
struct Heap {
    parts: Vec<Collected>,
    /// What writers have prepared for a checkpoint, by the piece's name.
    prepared: BTreeMap<String, Vec<Collected>>,
    rows: usize,
    /// Of the writer that was opened last.
    schema: Option<SchemaRef>,
    /// Writers that have finished in good order.
    finished: usize,
}

impl Default for MemoryOutput {
    fn default() -> Self {
        Self::new(Self::ROWS_MAX)
    }
}

impl MemoryOutput {
    /// The most rows that [`Self::default`] keeps.
    pub const ROWS_MAX: usize = 10_000_000;

    /// An empty heap. A job that would make it larger than `rows_max` rows fails with `MemoryExceeded`.
    #[must_use]
    pub fn new(rows_max: usize) -> Self {
        Self { collected: Arc::default(), rows_max }
    }

    /// Gives the heap a name, for `'connector' = 'memory', 'name' = …`.
    pub fn register(&self, name: &str) -> Result<Registration> {
        register(&SINKS, name, self.clone(), false)
    }

    /// A sink into this heap, without a name.
    #[must_use]
    pub fn sink(&self) -> SinkRef {
        Arc::new(OutputSink { output: self.clone(), run: AtomicU64::new(0) })
    }

    /// The changes of all epochs that were ended, by run and epoch, then by core. Of a job that keeps checkpoints: those that were committed.
    #[must_use]
    pub fn changes(&self) -> Vec<Collected> {
        let mut parts = lock(&self.collected).parts.clone();
        parts.sort_by_key(|part| (part.run, part.epoch, part.core));
        parts
    }

    /// As [`Self::changes`], and empties the heap.
    #[must_use]
    pub fn take(&self) -> Vec<Collected> {
        let mut heap = lock(&self.collected);
        heap.rows = 0;
        let mut parts = std::mem::take(&mut heap.parts);
        parts.sort_by_key(|part| (part.run, part.epoch, part.core));
        parts
    }

    /// How many writers have finished in good order, over all jobs: a job has one a core.
    #[must_use]
    pub fn writers_finished(&self) -> usize {
        lock(&self.collected).finished
    }

    /// The net rows of all changes, each distinct row once with its weight (negative when more were taken back than were there), in
    /// ascending order of the columns. Not for upserts, whose updates don't say what they replace.
    pub fn net(&self) -> Result<DeltaBatch> {
        let (rows, kinds) = self.all()?;
        let encoded = encode(&rows, rows.columns())?;
        let mut net = BTreeMap::<&[u8], (u32, i64)>::new();
        for (i, kind) in kinds.iter().enumerate() {
            let weight = match kind {
                RowKind::Insert | RowKind::UpdateAfter => 1,
                RowKind::UpdateBefore | RowKind::Delete => -1,
            };
            net.entry(&encoded[i]).or_insert((i as u32, 0)).1 += weight;
        }
        net.retain(|_, (_, weight)| *weight != 0);
        let (indices, weights): (Vec<u32>, Vec<i64>) = net.into_values().unzip();
        Ok(DeltaBatch::new(take(&rows, indices)?, Weights::from_vec(weights)))
    }

    /// The last row of each key (`columns`) that was not deleted since, in ascending order of the keys: what a table with that primary key
    /// holds in the end. Changes of a key must all come from one core.
    pub fn latest(&self, columns: &[usize]) -> Result<RecordBatch> {
        let (rows, kinds) = self.all()?;
        let keys = encode(&rows, &columns.iter().map(|c| rows.column(*c).clone()).collect::<Vec<_>>())?;
        let mut latest = BTreeMap::<&[u8], u32>::new();
        for (i, kind) in kinds.iter().enumerate() {
            match kind {
                RowKind::Insert | RowKind::UpdateAfter => latest.insert(&keys[i], i as u32),
                RowKind::UpdateBefore | RowKind::Delete => latest.remove(keys[i].as_slice()),
            };
        }
        take(&rows, latest.into_values().collect())
    }

    /// All changes in one batch, by epoch.
    fn all(&self) -> Result<(RecordBatch, Vec<RowKind>)> {
        let parts = self.changes();
        let schema = lock(&self.collected).schema.clone();
        let Some(schema) = schema else {
            return Err(Diagnostic::new(Code::Internal, "no job has opened this output yet"));
        };
        let rows = concat_batches(&schema, parts.iter().map(|part| &part.changes.rows)).map_err(internal)?;
        let kinds = parts.iter().flat_map(|part| match &part.changes.kinds {
            Some(kinds) => kinds.clone(),
            None => vec![RowKind::Insert; part.changes.rows.num_rows()],
        });
        Ok((rows, kinds.collect()))
    }
}

impl Heap {
    fn add(&mut self, part: Collected, rows_max: usize) -> Result<()> {
        self.rows += part.changes.rows.num_rows();
        self.parts.push(part);
        if self.rows > rows_max {
            let message = format!("a sink in memory got more than {rows_max} rows");
            return Err(Diagnostic::new(Code::MemoryExceeded, message));
        }
        Ok(())
    }
}

fn encode(rows: &RecordBatch, columns: &[ArrayRef]) -> Result<Vec<Vec<u8>>> {
    if columns.is_empty() {
        return Ok(vec![Vec::new(); rows.num_rows()]);
    }
    let fields = columns.iter().map(|c| SortField::new(c.data_type().clone())).collect();
    let encoded = RowConverter::new(fields).and_then(|c| c.convert_columns(columns)).map_err(internal)?;
    Ok(encoded.iter().map(|row| row.as_ref().to_vec()).collect())
}

fn take(rows: &RecordBatch, indices: Vec<u32>) -> Result<RecordBatch> {
    take_record_batch(rows, &UInt32Array::from(indices)).map_err(internal)
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err gives it")]
fn internal(error: arrow::error::ArrowError) -> Diagnostic {
    Diagnostic::new(Code::Internal, error.to_string())
}

#[derive(Debug)]
struct OutputSink {
    output: MemoryOutput,
    /// The run of a job that keeps checkpoints, else 0.
    run: AtomicU64,
}

impl Sink for OutputSink {
    fn accepts(&self, _mode: ChangelogMode) -> bool {
        true
    }

    fn ring(&self) -> Ring {
        Ring::Core
    }

    fn begin_checkpoints(&self, _job: &str, run: u64) -> Result<bool> {
        self.run.store(run, Ordering::Relaxed);
        Ok(true)
    }

    fn commit(&self, pieces: &[String]) -> Result<()> {
        let mut heap = lock(&self.output.collected);
        for piece in pieces {
            // What is not there any more was shown by the first call.
            for part in heap.prepared.remove(piece).unwrap_or_default() {
                heap.add(part, self.output.rows_max)?;
            }
        }
        Ok(())
    }

    fn remove_uncommitted(&self) -> Result<()> {
        lock(&self.output.collected).prepared.clear();
        Ok(())
    }

    fn open(&self, init: CoreInit, schema: SchemaRef, _mode: ChangelogMode) -> Result<Box<dyn SinkWriter>> {
        lock(&self.output.collected).schema = Some(schema);
        let run = self.run.load(Ordering::Relaxed);
        Ok(Box::new(OutputWriter { run, core: init.core, output: self.output.clone(), pending: Vec::new(), pieces: 0 }))
    }
}

struct OutputWriter {
    run: u64,
    core: CoreId,
    output: MemoryOutput,
    /// Of the epoch that is not ended, or since the last checkpoint: nobody sees half of one.
    pending: Vec<Collected>,
    /// How many it has prepared.
    pieces: u64,
}

impl SinkWriter for OutputWriter {
    fn write(&mut self, epoch: Epoch, changes: &Changes) -> Result<()> {
        if changes.rows.num_rows() > 0 {
            self.pending.push(Collected { run: self.run, core: self.core, epoch, changes: changes.clone() });
        }
        Ok(())
    }

    fn end_epoch(&mut self, _epoch: Epoch) -> Result<()> {
        if self.run > 0 {
            return Ok(());
        }
        let mut heap = lock(&self.output.collected);
        self.pending.drain(..).try_for_each(|part| heap.add(part, self.output.rows_max))
    }

    fn prepare(&mut self) -> Result<Vec<String>> {
        if self.pending.is_empty() {
            return Ok(Vec::new());
        }
        self.pieces += 1;
        let piece = format!("{}-{}-{}-{:p}", self.run, self.core, self.pieces, self);
        lock(&self.output.collected).prepared.insert(piece.clone(), std::mem::take(&mut self.pending));
        Ok(vec![piece])
    }

    fn finish(&mut self) -> Result<()> {
        let mut heap = lock(&self.output.collected);
        heap.parts.append(&mut self.pending);
        heap.finished += 1;
        Ok(())
    }
}
