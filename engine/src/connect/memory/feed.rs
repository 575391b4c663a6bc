//! Rows that are pushed while the job runs.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use arrow::datatypes::SchemaRef;

use super::{Registration, Rows, SOURCES, lock, project, register};
use crate::batch::{DeltaBatch, Weights};
use crate::connect::{CoreInit, Ring, Source, SourceBatch, SourceEvent, SourcePoll, SourceReader, SourceRef};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::SplitId;

/// A bounded queue into one running job, read as one split by core 0. Clones are handles of the same queue.
#[derive(Clone, Debug)]
pub struct MemoryFeed {
    schema: SchemaRef,
    append_only: bool,
    queue: Arc<(Mutex<Queue>, Condvar)>,
}

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<DeltaBatch>,
    rows: usize,
    finished: bool,
    /// A feed is read once: what a reader has taken is gone.
    opened: bool,
}

/// Why a batch was not taken. It comes back unchanged.
#[derive(Debug)]
pub enum PushError {
    /// The queue has [`MemoryFeed::ROWS_MAX`] rows: try again when the job has read some.
    Full(DeltaBatch),
    /// [`MemoryFeed::finish`] was called.
    Finished(DeltaBatch),
    /// Its columns are not the feed's, or it takes rows back and the feed is append-only.
    Refused(DeltaBatch),
}

impl MemoryFeed {
    /// A batch is taken as long as fewer rows than this wait.
    pub const ROWS_MAX: usize = 1 << 20;
    /// The longest that a reader waits for rows.
    const WAIT: Duration = Duration::from_millis(50);

    /// A feed of rows with these columns. Only a feed that is not `append_only` takes negative weights.
    #[must_use]
    pub fn new(schema: SchemaRef, append_only: bool) -> Self {
        Self { schema, append_only, queue: Arc::default() }
    }

    /// Gives the feed a name, for `'connector' = 'memory', 'name' = …`.
    pub fn register(&self, name: &str) -> Result<Registration> {
        register(&SOURCES, name, Rows::Feed(self.clone()), true)
    }

    /// Hands rows to the job; never waits.
    pub fn push(&self, batch: DeltaBatch) -> std::result::Result<(), PushError> {
        let takes_back = matches!(&batch.weights, Weights::Signed(weights) if weights.iter().any(|w| *w < 0));
        if batch.rows.schema_ref().fields() != self.schema.fields() || self.append_only && takes_back {
            return Err(PushError::Refused(batch));
        }
        let mut queue = lock(&self.queue.0);
        if queue.finished {
            return Err(PushError::Finished(batch));
        }
        if queue.rows >= Self::ROWS_MAX {
            return Err(PushError::Full(batch));
        }
        if batch.num_rows() > 0 {
            queue.rows += batch.num_rows();
            queue.batches.push_back(batch);
            self.queue.1.notify_all();
        }
        Ok(())
    }

    /// No more rows come: the job ends when it has read what is there.
    pub fn finish(&self) {
        lock(&self.queue.0).finished = true;
        self.queue.1.notify_all();
    }

    pub(super) fn source(&self, table: &str, schema: &SchemaRef) -> Result<SourceRef> {
        project::check(table, &self.schema, schema)?;
        Ok(Arc::new(FeedSource { feed: self.clone(), schema: schema.clone(), table: table.to_owned() }))
    }
}

#[derive(Debug)]
struct FeedSource {
    feed: MemoryFeed,
    schema: SchemaRef,
    table: String,
}

impl Source for FeedSource {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn is_bounded(&self) -> bool {
        false
    }

    fn is_append_only(&self) -> bool {
        self.feed.append_only
    }

    fn ring(&self) -> Ring {
        Ring::Io
    }

    fn open(&self, init: CoreInit) -> Result<Box<dyn SourceReader>> {
        let reads = init.core.0 == 0;
        if reads && std::mem::replace(&mut lock(&self.feed.queue.0).opened, true) {
            let message = format!("table `{}`: the feed has been read by another job or table", self.table);
            return Err(Diagnostic::new(Code::SourceUnavailable, message));
        }
        Ok(Box::new(FeedReader { feed: self.feed.clone(), schema: self.schema.clone(), announced: false, finished: !reads }))
    }
}

struct FeedReader {
    feed: MemoryFeed,
    schema: SchemaRef,
    announced: bool,
    finished: bool,
}

impl SourceReader for FeedReader {
    fn poll(&mut self, rows_max: usize, out: &mut Vec<SourceEvent>) -> Result<SourcePoll> {
        if self.finished {
            return Ok(SourcePoll::Finished);
        }
        let split = SplitId(0);
        if !std::mem::replace(&mut self.announced, true) {
            out.push(SourceEvent::SplitOpened(split));
        }
        let mut taken = Vec::new();
        let finished = {
            let queue = lock(&self.feed.queue.0);
            let waiting = |queue: &mut Queue| queue.batches.is_empty() && !queue.finished;
            let waited = self.feed.queue.1.wait_timeout_while(queue, MemoryFeed::WAIT, waiting);
            let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let mut rows = 0;
            while rows < rows_max.max(1) {
                let Some(batch) = queue.batches.pop_front() else { break };
                rows += batch.num_rows();
                taken.push(batch);
            }
            queue.rows -= rows;
            queue.finished && queue.batches.is_empty()
        };
        let idle = taken.is_empty();
        for batch in taken {
            let rows = project::project(&batch.rows, &self.schema)?;
            out.push(SourceEvent::Rows(SourceBatch { split, rows, weights: batch.weights, rejected: Vec::new() }));
        }
        if finished {
            self.finished = true;
            out.push(SourceEvent::SplitFinished(split));
            return Ok(SourcePoll::Finished);
        }
        Ok(if idle { SourcePoll::Idle } else { SourcePoll::More })
    }
}
