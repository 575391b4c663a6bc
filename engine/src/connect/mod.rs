//! Where rows come from and go to: the traits that every connector implements, and the connectors that need no foreign client.
//!
//! ```text
//! CREATE TABLE … WITH (…) ── ConnectorSpec::source/sink ──▶ dyn Source / dyn Sink     (planned once, checked before any I/O)
//!                                                              │ open(core)
//!                                                              ▼
//!                                               dyn SourceReader / dyn SinkWriter      (one a core)
//! ```
//! A reader or writer that may block (files, sockets) says [`Ring::Io`] and is hosted on a thread of its own, behind a bounded ring; one
//! that only computes (generators, `blackhole`) says [`Ring::Core`] and is called on the pinned core itself, where it must never block.

pub mod blackhole;
pub mod datagen;
pub mod filesystem;
pub mod memory;
pub mod nexmark;
mod options;
pub mod print;
pub(crate) mod random;
mod registry;
mod row_digest;
mod secrets;
pub mod table_options;
pub mod values;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::ScalarValue;
use serde_json::Value;

use crate::batch::Weights;
use crate::error::{Code, Diagnostic, Result};
use crate::ids::{CoreId, Epoch, SplitId};
use crate::operators::Watermark;

pub use options::{OptionSpec, OptionType, Options, parse_bytes, parse_duration};
pub use registry::{ConnectorSpec, TableSpec, connector, connectors};
pub use secrets::Secrets;

/// Where a reader or writer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// On the pinned core: never blocks, makes no system call.
    Core,
    /// On an I/O thread.
    Io,
}

/// Which core of the job opens a reader or writer.
#[derive(Clone, Copy, Debug)]
pub struct CoreInit {
    /// This core.
    pub core: CoreId,
    /// How many cores the job has in all.
    pub cores: usize,
}

/// A planned source: its options are checked, nothing is open yet.
pub trait Source: std::fmt::Debug + Send + Sync {
    /// The columns that readers deliver, in this order: the physical columns that the plan needs, then metadata columns.
    fn schema(&self) -> SchemaRef;
    /// Whether the input ends by itself.
    fn is_bounded(&self) -> bool;
    /// Whether rows are only ever inserted. `debezium-json` and the like say false.
    fn is_append_only(&self) -> bool;
    /// Where its readers run.
    fn ring(&self) -> Ring;
    /// The number of rows to come over all cores, when it is known beforehand; for progress bars only.
    fn rows_hint(&self) -> Option<u64> {
        None
    }
    /// The same source without the rows whose `column` (an index into [`Self::schema`]) has none of `values`, if it can leave them out more
    /// cheaply than a filter behind it would. Rows left out no longer move the watermark on; readers count them
    /// ([`SourceReader::rows_left_out`]). A filter on the column may be dropped when this answers `Some`.
    fn restrict(&self, _column: usize, _values: &[ScalarValue]) -> Option<SourceRef> {
        None
    }
    /// The number of bytes to read over all cores, when it is known beforehand and rows are not; for progress bars only. May do I/O
    /// (list files), so call it once, off the cores. Compare with [`SourceReader::bytes_read`].
    fn bytes_hint(&self) -> Option<u64> {
        None
    }
    /// How many digits of a second its times have at most: beyond them all are zero. `None`: as many as a time can have.
    fn time_digits(&self) -> Option<u8> {
        None
    }
    /// Whether its readers can say where they are, and go on from there in another process.
    fn is_resumable(&self) -> bool {
        false
    }
    /// Opens this core's share of the splits. The shares of all cores are disjoint and together the whole input, at any `cores`.
    fn open(&self, init: CoreInit) -> Result<Box<dyn SourceReader>>;
    /// As [`Self::open`], for a reader that goes on where another run's was. What was read to its end need not be there any more.
    fn reopen(&self, init: CoreInit, position: &Position) -> Result<Box<dyn SourceReader>> {
        let mut reader = self.open(init)?;
        reader.resume(position)?;
        Ok(reader)
    }
}

/// One core's share of a source.
pub trait SourceReader: Send {
    /// Appends what there is to `out`, about `rows_max` rows (a reader may go over by one of its own batches).
    ///
    /// Announces every split that it knows of with [`SourceEvent::SplitOpened`] before it reads the first row of any of them, so that
    /// unread splits hold the watermark back. What one poll appends belongs to one epoch: a mark may stand between two polls, not inside one,
    /// so that a reader may deliver the rows of a stretch of time ordered by something else. On [`Ring::Io`] it may block for at most 100 ms before it answers [`SourcePoll::Idle`].
    fn poll(&mut self, rows_max: usize, out: &mut Vec<SourceEvent>) -> Result<SourcePoll>;
    /// These splits, in ascending order, shall not be read on for now: they are too far ahead of others in event time. What was said
    /// before no longer counts. A reader that can't choose among its splits ignores it: it is not polled while all of them are held.
    fn hold(&mut self, _splits: &[SplitId]) {}
    /// Where it is, between two polls: appends the entries of its [`Position`] that have changed since it was asked last, NULL for those that are
    /// gone. Asked before the first poll and after each one where the job keeps checkpoints. A reader that [resumes](Self::resume) there
    /// delivers what this one has yet to deliver, no more and no less.
    fn position(&mut self, _changed: &mut Vec<(u64, Value)>) {}
    /// Goes to where another run's reader was, on as many cores. Called before all else. Fails when what is to be read is no longer there.
    fn resume(&mut self, _position: &Position) -> Result<()> {
        Err(Diagnostic::new(Code::Internal, "a reader that has no position can't resume"))
    }
    /// How many rows it has passed over so far because of [`Source::restrict`]. What was taken in is these and the rows delivered.
    fn rows_left_out(&self) -> u64 {
        0
    }
    /// How many bytes it has read so far, in the unit of [`Source::bytes_hint`]; 0 where bytes have no meaning.
    fn bytes_read(&self) -> u64 {
        0
    }
}

/// Where a reader is: what it has yet to deliver, by a number of its own choice (a split's, most often).
pub type Position = BTreeMap<u64, Value>;

/// What a reader says after a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourcePoll {
    /// There is more now.
    More,
    /// Nothing now, perhaps later.
    Idle,
    /// Nothing, ever: every split is finished.
    Finished,
}

/// One thing that a reader delivers.
#[derive(Debug)]
pub enum SourceEvent {
    /// A split joins: from now on the watermark waits for it.
    SplitOpened(SplitId),
    /// Rows of one split, in its order.
    Rows(SourceBatch),
    /// A split ended: the watermark no longer waits for it.
    SplitFinished(SplitId),
}

/// Rows of one split.
#[derive(Debug)]
pub struct SourceBatch {
    /// The split.
    pub split: SplitId,
    /// Rows in the source's schema.
    pub rows: RecordBatch,
    /// A weight for each row; `Ones` from a source that is append-only.
    pub weights: Weights,
    /// Records that could not be decoded; the table's `on_error` decides what becomes of them.
    pub rejected: Vec<Rejected>,
}

/// A record or row that can't be used: what `on_error = dead_letter(…)` keeps, `skip` counts and `fail` reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejected {
    /// What is wrong.
    pub code: Code,
    /// One sentence.
    pub message: String,
    /// The file, topic or operator it comes from.
    pub origin: String,
    /// The line (from 1), offset or ordinal in `origin`.
    pub position: Option<u64>,
    /// The record as far as it can be shown, at most [`Rejected::RAW_BYTES_MAX`] bytes, as valid UTF-8.
    pub raw: String,
}

impl Rejected {
    /// The longest excerpt of a bad record that is kept.
    pub const RAW_BYTES_MAX: usize = 16 * 1024;
}

/// What happened to a row at the boundary to the outside, where multiplicities end. Flink's `RowKind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RowKind {
    /// `+I`
    Insert,
    /// `-U`: the old image of a row that changes; directly followed by its `UpdateAfter`.
    UpdateBefore,
    /// `+U`
    UpdateAfter,
    /// `-D`
    Delete,
}

impl RowKind {
    /// `+I`, `-U`, `+U` or `-D`.
    #[must_use]
    pub fn short(self) -> &'static str {
        match self {
            Self::Insert => "+I",
            Self::UpdateBefore => "-U",
            Self::UpdateAfter => "+U",
            Self::Delete => "-D",
        }
    }
}

/// The net changes of an epoch, or a part of them, as a sink gets them.
#[derive(Clone, Debug)]
pub struct Changes {
    /// One row a change. A row of weight n stands n times.
    pub rows: RecordBatch,
    /// What happened to each row; `None` when all are inserted.
    pub kinds: Option<Vec<RowKind>>,
}

/// Which changes reach a sink, decided when the job is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangelogMode {
    /// Only `+I`.
    Append,
    /// `+I`, `+U` and `-D`, identified by the primary key: no old images.
    Upsert,
    /// All four kinds.
    Retract,
}

/// A planned sink: its options are checked, nothing is open yet.
pub trait Sink: std::fmt::Debug + Send + Sync {
    /// Whether it writes to the process's stdout: a terminal is then left to its rows.
    fn writes_stdout(&self) -> bool {
        false
    }
    /// Whether nobody takes its rows any more, for good: the reader of a pipe has gone. A job all of whose sinks say so may end.
    fn is_abandoned(&self) -> bool {
        false
    }
    /// Whether it can take such changes (`Append` must always be true).
    fn accepts(&self, mode: ChangelogMode) -> bool;
    /// Where its writers run.
    fn ring(&self) -> Ring;
    /// The job keeps checkpoints: `job` is its name among all jobs, `run` counts its runs. Called once, before all else. Whether writers from
    /// now on show nothing before it is [committed](Self::commit), so that each row is seen once whatever crashes; `false`: what came
    /// after the last checkpoint is written again after a crash.
    fn begin_checkpoints(&self, _job: &str, _run: u64) -> Result<bool> {
        Ok(false)
    }
    /// Shows pieces that writers have [prepared](SinkWriter::prepare). What is shown already stays as it is: after a crash the same are committed
    /// again.
    fn commit(&self, _pieces: &[String]) -> Result<()> {
        Ok(())
    }
    /// After a crash, before writers are opened and after all sinks have committed what the checkpoint has: removes what earlier runs of the job
    /// have prepared besides. Other sinks of the job may write to the same place.
    fn remove_uncommitted(&self) -> Result<()> {
        Ok(())
    }
    /// Opens this core's writer.
    fn open(&self, init: CoreInit, schema: SchemaRef, mode: ChangelogMode) -> Result<Box<dyn SinkWriter>>;
}

/// One core's writer of a sink. Calls come in epoch order; after an error none comes any more.
pub trait SinkWriter: Send {
    /// Takes changes of `epoch`.
    fn write(&mut self, epoch: Epoch, changes: &Changes) -> Result<()>;
    /// The watermark that the mark of the running epoch carries; called before that epoch's `end_epoch`. Only sinks that wait for event
    /// time (a partition is complete) care.
    fn watermark(&mut self, _watermark: Watermark) -> Result<()> {
        Ok(())
    }
    /// All changes of `epoch` were written. Data need not be durable yet.
    fn end_epoch(&mut self, epoch: Epoch) -> Result<()>;
    /// A checkpoint stands at this place, between two epochs: makes all that was written before durable. What [`Sink::commit`] is to show of it.
    fn prepare(&mut self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
    /// The job ends in good order: make everything durable and visible. No call follows. Not called where [`Sink::begin_checkpoints`] said
    /// yes: there the last checkpoint shows what is left.
    fn finish(&mut self) -> Result<()>;
}

/// A source or sink, shared by the plan and all cores.
pub type SourceRef = Arc<dyn Source>;
/// A sink, shared by the plan and all cores.
pub type SinkRef = Arc<dyn Sink>;
