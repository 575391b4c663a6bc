//! What the nodes of a dataflow do: one operator, one file (or one folder).
//!
//! An operator is synchronous, owned by one core, and driven by the runtime: [`Operator::on_delta`] for rows, [`Operator::on_mark`] when
//! every input has reached the end of an epoch. It never blocks, logs per row, or reads a clock: time comes with marks.

pub mod aggregate;
pub mod chain;
pub mod emit;
pub mod materialize;
mod row_weights;
mod touched;
pub mod unnest;
pub mod window;

use tiderace_storage::{KeyBatch, Residency, Shard, TableId};

use crate::batch::DeltaBatch;
use crate::connect::Rejected;
use crate::error::{Diagnostic, Result};
use crate::ids::{CoreId, Epoch};

/// An output of a node. Marks go out on all of them.
pub type Port = usize;
/// The result.
pub const PORT_MAIN: Port = 0;
/// Rows that came too late (`LATE DATA TO`): the operator's input columns, then `watermark`.
pub const PORT_LATE: Port = 1;
/// Rows that could not be processed under `on_error = dead_letter(…)`; schema [`crate::operators::rejected_schema`].
pub const PORT_REJECTED: Port = 2;

/// How far event time is known to have come, in µs since 1970: no row below it is expected any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Watermark(pub i64);

impl Watermark {
    /// Nothing is known yet.
    pub const MIN: Self = Self(i64::MIN);
    /// The input ended: every window closes.
    pub const MAX: Self = Self(i64::MAX);
}

/// The end of an epoch. All rows of the epoch are before it on every lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochMark {
    /// The epoch that ends here.
    pub epoch: Epoch,
    /// The schedule's time of the cut, µs since 1970, the same on all cores: the only "now" that operators know.
    pub time_us: i64,
    /// The watermark in force from the next epoch on: rows of epoch n are judged by the mark of epoch n−1. Never lower than before.
    pub watermark: Watermark,
    /// Whether this is the last mark: the job drains, nothing follows.
    pub last: bool,
}

/// Whether an operator is through with a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The mark can go on downstream.
    Done,
    /// There is more to emit for this mark: call `on_mark` again with the same mark, after others had their turn. An operator works for at
    /// most about 2 ms ([`SLICE_ROWS`] rows) before it says so.
    More,
    /// State that is needed for this mark is on its way from the device: call `on_mark` again with the same mark when it has worked.
    Waiting,
}

/// About how many rows an operator emits or visits for a mark before it gives the core back.
pub const SLICE_ROWS: usize = 8192;

/// One node of the dataflow on one core.
pub trait Operator: Send {
    /// Makes its state tables. Called once, before anything else.
    fn open(&mut self, _shard: &mut Shard) -> Result<()> {
        Ok(())
    }

    /// What it knows between two epochs besides its tables, and can't tell from them: part of a checkpoint.
    fn save(&self) -> Vec<u64> {
        Vec::new()
    }

    /// Takes up what [`save`](Self::save) gave. Called once, before [`open`](Self::open), which finds the tables as they were.
    fn restore(&mut self, _saved: &[u64]) -> Result<()> {
        Ok(())
    }

    /// Asks for the state that [`on_delta`](Self::on_delta) of this batch will look at; `false`: it is on its way from the device, ask again.
    /// Called before `on_delta` where a shard has a device. Whoever asks for nothing is right too, but stands and waits when it touches what
    /// isn't in memory.
    fn prepare(&mut self, _port: Port, _batch: &DeltaBatch, _cx: &mut OpCx<'_>) -> Result<bool> {
        Ok(true)
    }

    /// Takes rows of the current epoch from input `port` (the number of the input, from 0).
    fn on_delta(&mut self, port: Port, batch: DeltaBatch, cx: &mut OpCx<'_>, out: &mut Output) -> Result<()>;

    /// The current epoch ends on all inputs; `mark.watermark` is the least of theirs. State changes become visible downstream here.
    fn on_mark(&mut self, mark: &EpochMark, cx: &mut OpCx<'_>, out: &mut Output) -> Result<Progress>;
}

/// What an operator may use while it is called.
pub struct OpCx<'a> {
    /// This core's state.
    pub shard: &'a mut Shard,
    /// This core.
    pub core: CoreId,
    /// The epoch that is running.
    pub epoch: Epoch,
    /// The watermark that judges rows of this epoch: that of the last mark.
    pub watermark: Watermark,
    /// The time of the last mark, µs since 1970 (the job's start before the first).
    pub time_us: i64,
    /// Whether an operator may be told to wait for its state. Not when it has waited long already: then it goes on, and stands.
    pub may_wait: bool,
    /// What became of rows that could not be processed.
    pub rows: &'a mut RowAccounts,
}

impl OpCx<'_> {
    /// Brings the records of these keys into memory, where a shard has a device; `false`: they are on their way, ask again. Where there is no
    /// room for them the caller goes on without: what it reads then counts beyond the budget until its turn is over.
    pub fn fetch(&mut self, table: TableId, value_width: usize, keys: &KeyBatch<'_>) -> bool {
        if !self.may_wait || !self.shard.has_device() {
            return true;
        }
        !matches!(self.shard.fetch(table, value_width, keys), Ok(Residency::Pending(_)))
    }
}

/// What is done with a row that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RowPolicy {
    /// The job fails, and names the row.
    #[default]
    Fail,
    /// It is counted and left out.
    Skip,
    /// It is counted and sent to [`PORT_REJECTED`].
    DeadLetter,
}

/// Per node and core: every row that does not reach the output is in one of these counts. Read by metrics and the final report.
#[derive(Debug, Default)]
pub struct RowAccounts {
    /// The node's policy.
    pub policy: RowPolicy,
    /// The node's name, for messages.
    pub node: String,
    /// Late rows, dropped or sent to `LATE DATA TO`.
    pub late: u64,
    /// Rows refused, by code.
    pub rejected: Vec<(crate::error::Code, u64)>,
    /// The last row refused for each of these codes, to be shown to people.
    pub last_rejected: Vec<LastRejected>,
    /// Rows waiting to go to [`PORT_REJECTED`]; the runtime takes them after each call.
    pub dead_letters: Vec<Rejected>,
}

/// The last row that a node refused for a cause: what was wrong and where, without the row itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastRejected {
    /// The cause.
    pub code: crate::error::Code,
    /// One sentence, at most [`Self::MESSAGE_BYTES_MAX`] bytes.
    pub message: String,
    /// The file, topic or operator it came from, as bounded.
    pub origin: String,
    /// The line (from 1), offset or ordinal in `origin`.
    pub position: Option<u64>,
}

impl LastRejected {
    /// The longest text that is kept of a message or an origin.
    pub const MESSAGE_BYTES_MAX: usize = 1024;

    fn new(bad: Rejected) -> Self {
        let short = |mut text: String| {
            text.truncate(text.floor_char_boundary(Self::MESSAGE_BYTES_MAX));
            text
        };
        Self { code: bad.code, message: short(bad.message), origin: short(bad.origin), position: bad.position }
    }
}

impl RowAccounts {
    /// Accounts for a bad row under the node's policy; `Err` under `Fail`.
    pub fn reject(&mut self, bad: Rejected) -> Result<()> {
        match self.policy {
            RowPolicy::Fail => {
                let place = bad.position.map(|p| format!(", line {p}")).unwrap_or_default();
                return Err(Diagnostic::new(bad.code, format!("{} ({}{place}): {}", bad.message, bad.origin, bad.raw))
                    .hint("set 'on_error' = 'skip' or 'dead_letter(<sink>)' on the table whose rows they are, or by SET for the whole job, to go on without such rows"));
            }
            RowPolicy::Skip => {}
            RowPolicy::DeadLetter => self.dead_letters.push(bad.clone()),
        }
        match self.rejected.iter_mut().find(|(code, _)| *code == bad.code) {
            Some((_, n)) => *n += 1,
            None => self.rejected.push((bad.code, 1)),
        }
        match self.last_rejected.iter_mut().find(|last| last.code == bad.code) {
            Some(last) => *last = LastRejected::new(bad),
            None => self.last_rejected.push(LastRejected::new(bad)),
        }
        Ok(())
    }
}

/// The columns of [`PORT_REJECTED`]: `origin`, `position`, `code`, `message`, `raw`.
#[must_use]
pub fn rejected_schema() -> arrow::datatypes::SchemaRef {
    use arrow::datatypes::{DataType, Field, Schema};
    std::sync::Arc::new(Schema::new(vec![
        Field::new("origin", DataType::Utf8, false),
        Field::new("position", DataType::Int64, true),
        Field::new("code", DataType::Utf8, false),
        Field::new("message", DataType::Utf8, false),
        Field::new("raw", DataType::Utf8, false),
    ]))
}

/// Collects what an operator emits in one call; the runtime delivers it afterwards.
#[derive(Debug, Default)]
pub struct Output {
    /// In the order of emission.
    pub batches: Vec<(Port, DeltaBatch)>,
}

impl Output {
    /// Emits rows on a port; an empty batch is dropped.
    pub fn emit(&mut self, port: Port, batch: DeltaBatch) {
        if batch.num_rows() > 0 {
            self.batches.push((port, batch));
        }
    }
}
