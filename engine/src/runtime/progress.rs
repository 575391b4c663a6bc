//! Where a job is: counts that each core keeps for itself and publishes at marks.

use std::time::Duration;

use crate::error::Code;
use crate::ids::{Epoch, NodeId};
use crate::operators::{LastRejected, Watermark};

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// Reads from outside.
    Source,
    /// Between.
    Operator,
    /// Writes to outside.
    Sink,
}

/// A node on one core, or, in [`JobProgress`], over all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeProgress {
    /// Its place in the graph.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// What it does.
    pub kind: NodeKind,
    /// Rows that came in: for a source, records read, rejected ones too.
    pub rows_in: u64,
    /// Rows that went out on the main output: for a sink, changes given to its writer.
    pub rows_out: u64,
    /// Bytes of rows that came in (source: as decoded).
    pub bytes_in: u64,
    /// Source: bytes read from outside, comparable with [`crate::connect::Source::bytes_hint`].
    pub bytes_read: u64,
    /// Bytes given to the writer of a sink.
    pub bytes_out: u64,
    /// Source: splits opened so far.
    pub splits_opened: u64,
    /// Source: splits that are finished.
    pub splits_finished: u64,
    /// Source: whether it ended, by itself or because the job was stopped.
    pub ended: bool,
    /// The watermark of the last completed mark; over all cores, the least.
    pub watermark: Watermark,
    /// The time of the last mark less the watermark, µs; `None` without a watermark or at its end.
    pub lag_us: Option<i64>,
    /// Late rows, dropped or sent to `LATE DATA TO`.
    pub late_rows: u64,
    /// Rows refused, by code.
    pub rejected: Vec<(Code, u64)>,
    /// The last row refused for each of these codes; over all cores, one of theirs.
    pub last_rejected: Vec<LastRejected>,
    /// What its state tables hold, bytes; for a sink, what it holds back for the running epoch and its writer.
    pub state_bytes: u64,
    /// What waits in front of it, bytes.
    pub queued_bytes: u64,
    /// What waits behind it to cross to other cores, bytes.
    pub outbound_bytes: u64,
    /// The last epoch that it completed; over all cores, the least.
    pub epoch: Epoch,
}

/// A core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreProgress {
    /// Time spent working.
    pub busy: Duration,
    /// Time spent without work.
    pub idle: Duration,
    /// The longest time between two looks at its rings and the clock since the start.
    pub longest_turn: Duration,
    /// The CPU that it is pinned to.
    pub cpu: Option<usize>,
    /// What its state holds, bytes.
    pub state_bytes: u64,
    /// What its state may hold in memory, bytes.
    pub budget_bytes: u64,
    /// What its state's folder has been used for; `None` without one.
    pub state_io: Option<StateIo>,
}

/// How a core's state reaches its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoBackend {
    /// By io_uring.
    IoUring,
    /// By threads that read and write.
    Threads,
}

impl IoBackend {
    /// As it stands in metrics and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Threads => "threads",
        }
    }
}

/// What a core's state has written to its folder and read back, since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateIo {
    /// How.
    pub backend: IoBackend,
    /// Pages written.
    pub pages_written: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Pages read.
    pub pages_read: u64,
    /// Those of them for which the core stood and waited.
    pub pages_waited_for: u64,
    /// How much of its memory it gives up now because the process is short of memory, in thousandths.
    pub relief_permille: u32,
}

/// What one core publishes.
#[derive(Clone, Debug, Default)]
pub struct CoreSnapshot {
    /// The core.
    pub core: CoreProgress,
    /// Its nodes, in the graph's order; empty before the first mark.
    pub nodes: Vec<NodeProgress>,
}

/// Where a job is. Counts of different nodes may be of different marks.
#[derive(Clone, Debug)]
pub struct JobProgress {
    /// Each node over all cores, in the graph's order.
    pub nodes: Vec<NodeProgress>,
    /// Each core.
    pub cores: Vec<CoreProgress>,
    /// The last epoch that all nodes behind sources completed on all cores.
    pub epoch: Epoch,
    /// Time since the start.
    pub elapsed: Duration,
    /// Whether all threads have ended.
    pub finished: bool,
}

impl JobProgress {
    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeProgress> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The sources.
    pub fn sources(&self) -> impl Iterator<Item = &NodeProgress> {
        self.nodes.iter().filter(|node| node.kind == NodeKind::Source)
    }

    /// The sinks.
    pub fn sinks(&self) -> impl Iterator<Item = &NodeProgress> {
        self.nodes.iter().filter(|node| node.kind == NodeKind::Sink)
    }
}

/// How a job ended well.
#[derive(Clone, Debug)]
pub struct JobReport {
    /// The last counts.
    pub progress: JobProgress,
}

impl NodeProgress {
    /// A node before its first row.
    #[must_use]
    pub fn new(id: NodeId, name: &str, kind: NodeKind) -> Self {
        Self {
            id,
            name: name.to_owned(),
            kind,
            rows_in: 0,
            rows_out: 0,
            bytes_in: 0,
            bytes_read: 0,
            bytes_out: 0,
            splits_opened: 0,
            splits_finished: 0,
            ended: false,
            watermark: Watermark::MIN,
            lag_us: None,
            late_rows: 0,
            rejected: Vec::new(),
            last_rejected: Vec::new(),
            state_bytes: 0,
            queued_bytes: 0,
            outbound_bytes: 0,
            epoch: Epoch(0),
        }
    }

    /// Adds another core's counts of the same node.
    pub fn merge(&mut self, other: &Self) {
        debug_assert_eq!(self.id, other.id);
        self.rows_in += other.rows_in;
        self.rows_out += other.rows_out;
        self.bytes_in += other.bytes_in;
        self.bytes_read += other.bytes_read;
        self.bytes_out += other.bytes_out;
        self.splits_opened += other.splits_opened;
        self.splits_finished += other.splits_finished;
        self.ended &= other.ended;
        self.watermark = self.watermark.min(other.watermark);
        self.lag_us = self.lag_us.max(other.lag_us);
        self.late_rows += other.late_rows;
        for (code, n) in &other.rejected {
            match self.rejected.iter_mut().find(|(mine, _)| mine == code) {
                Some((_, sum)) => *sum += n,
                None => self.rejected.push((*code, *n)),
            }
        }
        for last in &other.last_rejected {
            if !self.last_rejected.iter().any(|mine| mine.code == last.code) {
                self.last_rejected.push(last.clone());
            }
        }
        self.state_bytes += other.state_bytes;
        self.queued_bytes += other.queued_bytes;
        self.outbound_bytes += other.outbound_bytes;
        self.epoch = self.epoch.min(other.epoch);
    }
}
