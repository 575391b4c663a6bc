//! One core's part in checkpoints: when it cuts, and how what it cut gets to its folder.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tiderace_storage::{CaptureKind, CapturedBlock, CheckpointError, Checkpoints, Device, DeviceError, Shard, open_device};

use super::directory::{damaged, unusable};
use super::manifest::CoreNote;
use super::{Coordinator, KEPT};
use crate::connect::Position;
use crate::error::{Code, Diagnostic, Result};
use crate::ids::{CoreId, Epoch};
use crate::runtime::control::{Control, IoThread};

/// What a turn of the core captures: some microseconds.
const SLICE_BYTES: usize = 64 << 10;
/// How many blocks of about 64 KiB wait for the thread that writes them.
const BLOCKS_MAX: usize = 32;
/// Parts that a core's records are sorted into when they are written, at most: each takes memory then.
const VNODES_MAX: u32 = 256;

/// What a checkpoint brings back of a node.
#[derive(Clone, Debug, Default)]
pub(in crate::runtime) struct NodeState {
    pub(in crate::runtime) name: String,
    pub(in crate::runtime) watermark_us: Option<i64>,
    pub(in crate::runtime) numbers: Vec<u64>,
    pub(in crate::runtime) position: Position,
}

/// What a core cut.
struct Cut {
    note: CoreNote,
    time_us: i64,
    last: Option<bool>,
}

enum ToWriter {
    Begin(u64, CaptureKind),
    Block(CapturedBlock),
    End(Box<Cut>),
}

/// See the module.
pub(in crate::runtime) struct CoreCheckpoints {
    coordinator: Arc<Coordinator>,
    /// Epochs from one checkpoint to the next.
    every: u64,
    /// The epoch whose end is cut next: nothing of a later one is done before.
    at: Epoch,
    /// The number of that checkpoint.
    version: u64,
    /// The one before, if this run has made it.
    base: Option<u64>,
    /// Too much of what the folder holds is old: the next capture had better be whole.
    rewrites: Arc<AtomicBool>,
    to_writer: SyncSender<ToWriter>,
    waiting: VecDeque<ToWriter>,
    blocks: Vec<CapturedBlock>,
    /// What follows when the capture is at its end.
    cut: Option<Box<Cut>>,
    has_cut_last: bool,
}

impl CoreCheckpoints {
    /// Opens the core's folder and brings back what the last checkpoint has of its tables; and of its nodes, in the order of the graph.
    pub(in crate::runtime) fn open(
        coordinator: &Arc<Coordinator>,
        control: &Arc<Control>,
        core: CoreId,
        shard: &mut Shard,
        every: u64,
    ) -> Result<(Self, Option<Vec<NodeState>>)> {
        let directory = &coordinator.directory;
        let folder = directory.folder(core);
        let failed = |e: CheckpointError| failed(&folder, &e);
        let (device, _) = open_device(&folder, true).map_err(|e| unusable(&folder, &e))?;
        let mut checkpoints = Checkpoints::open(device, KEPT).map_err(failed)?;
        let found = directory.note(core)?;
        let vnodes = coordinator.max_parallelism.min(VNODES_MAX);
        let nodes = match found {
            None => {
                checkpoints.forget_newer(0).map_err(failed)?;
                None
            }
            Some((version, note)) => {
                // What a run left that came to no manifest.
                checkpoints.forget_newer(version).map_err(failed)?;
                let checkpoint = checkpoints.load(version).map_err(failed)?;
                let count = checkpoint.vnode_count();
                let records = checkpoints.restore(&checkpoint, shard, 0..count, |_, _| true).map_err(failed)?;
                if records != note.records {
                    let because = format!("its tables hold {records} records instead of {}", note.records);
                    return Err(damaged(directory.path(), &format!("core-{core}"), &because));
                }
                let state = |node: super::NodeNote| NodeState {
                    name: node.name,
                    watermark_us: Some(node.watermark_us),
                    numbers: node.numbers,
                    position: node.position,
                };
                Some(note.nodes.into_iter().map(state).collect())
            }
        };
        let (to_writer, blocks) = sync_channel(BLOCKS_MAX);
        let rewrites = Arc::new(AtomicBool::new(false));
        let writer = Writer { checkpoints, coordinator: coordinator.clone(), core, vnodes, blocks, rewrites: rewrites.clone() };
        let thread = IoThread { node: format!("core {core}"), kind: "checkpoints", core };
        control.clone().spawn_io(thread, move |control| writer.run(control))?;
        let version = coordinator.complete() + 1;
        let this = Self {
            coordinator: coordinator.clone(),
            every,
            at: Epoch(every),
            version,
            base: None,
            rewrites,
            to_writer,
            waiting: VecDeque::new(),
            blocks: Vec::new(),
            cut: None,
            has_cut_last: false,
        };
        Ok((this, nodes))
    }

    /// Whether rows and marks of an epoch may be worked on: not when they are of after the next cut.
    pub(in crate::runtime) fn allows(&self, epoch: Epoch) -> bool {
        epoch <= self.at
    }

    /// The last epoch that may be worked on before the cut.
    pub(in crate::runtime) fn at(&self) -> Epoch {
        self.at
    }

    /// Whether the core may cut: the checkpoint before is complete.
    pub(in crate::runtime) fn may_cut(&self) -> bool {
        self.cut.is_none() && self.waiting.is_empty() && !self.waits()
    }

    /// Whether the last cut was made.
    pub(in crate::runtime) fn has_cut_last(&self) -> bool {
        self.has_cut_last
    }

    /// Whether the checkpoint before is not complete yet, so that no cut can be made.
    pub(in crate::runtime) fn waits(&self) -> bool {
        self.coordinator.complete() + 1 < self.version
    }

    /// Whether the last cut is with the threads that write it: the core has nothing more to do.
    pub(in crate::runtime) fn is_over(&self) -> bool {
        self.has_cut_last && self.cut.is_none() && self.waiting.is_empty()
    }

    /// The number of the checkpoint that is cut next.
    pub(in crate::runtime) fn version(&self) -> u64 {
        self.version
    }

    /// Cuts: what the shard holds now, and `note`, are this core's part of the next checkpoint. `last`: there is nothing after it; `Some(true)`:
    /// as all input has been read.
    pub(in crate::runtime) fn cut(&mut self, shard: &mut Shard, note: CoreNote, time_us: i64, last: Option<bool>) -> Result<()> {
        let base = if self.rewrites.load(Ordering::Relaxed) { None } else { self.base };
        let kind = shard
            .begin_capture(self.version, base)
            .map_err(|e| Diagnostic::new(Code::Internal, format!("a checkpoint can't be cut: {e}")))?;
        self.waiting.push_back(ToWriter::Begin(self.version, kind));
        self.cut = Some(Box::new(Cut { note, time_us, last }));
        self.has_cut_last = last.is_some();
        self.base = Some(self.version);
        self.version += 1;
        self.at = Epoch(self.at.0 + self.every);
        Ok(())
    }

    /// Once a turn: goes on with the capture, as fast as it is written. Whether there was something to do that goes on.
    pub(in crate::runtime) fn turn(&mut self, shard: &mut Shard) -> bool {
        if self.cut.is_none() && self.waiting.is_empty() {
            return false;
        }
        let before = self.waiting.len();
        if self.waiting.is_empty() && self.cut.is_some() {
            let more = shard.capture_slice(SLICE_BYTES, &mut self.blocks);
            self.waiting.extend(self.blocks.drain(..).map(ToWriter::Block));
            if !more {
                self.waiting.extend(self.cut.take().map(ToWriter::End));
            }
            if self.waiting.is_empty() {
                return true;
            }
        }
        while let Some(next) = self.waiting.pop_front() {
            match self.to_writer.try_send(next) {
                Ok(()) => {}
                Err(TrySendError::Full(next)) => {
                    self.waiting.push_front(next);
                    break;
                }
                // It failed, and the job with it.
                Err(TrySendError::Disconnected(_)) => {
                    self.waiting.clear();
                    self.cut = None;
                }
            }
        }
        self.waiting.len() != before || self.waiting.is_empty()
    }
}

/// The thread that writes a core's checkpoints.
struct Writer {
    checkpoints: Checkpoints<Box<dyn Device + Send>>,
    coordinator: Arc<Coordinator>,
    core: CoreId,
    vnodes: u32,
    blocks: Receiver<ToWriter>,
    rewrites: Arc<AtomicBool>,
}

impl Writer {
    fn run(mut self, control: &Control) -> Result<()> {
        let folder = self.coordinator.directory.folder(self.core);
        let failed = |e: CheckpointError| failed(&folder, &e);
        while let Some(first) = self.next(control) {
            let ToWriter::Begin(version, kind) = first else {
                return Err(Diagnostic::new(Code::Internal, "a block of a checkpoint that was not begun"));
            };
            let mut writer = self.checkpoints.begin(version, self.vnodes).map_err(failed)?;
            writer.begin_all(kind);
            let cut = loop {
                match next_of(&self.blocks, control) {
                    Some(ToWriter::Block(block)) => writer.push(&block).map_err(failed)?,
                    Some(ToWriter::End(cut)) => break cut,
                    Some(ToWriter::Begin(..)) => return Err(Diagnostic::new(Code::Internal, "a checkpoint in another one")),
                    None => return Ok(()),
                }
            };
            writer.commit(cut.note.records, b"").map_err(failed)?;
            self.rewrites.store(!self.checkpoints.parts_to_rewrite().is_empty(), Ordering::Relaxed);
            self.coordinator.directory.write_note(version, self.core, &cut.note)?;
            self.coordinator.written(self.core, version, cut.time_us, cut.last, control)?;
            if cut.last.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn next(&self, control: &Control) -> Option<ToWriter> {
        next_of(&self.blocks, control)
    }
}

/// What comes next; `None` when the job was aborted or the core is gone.
fn next_of(blocks: &Receiver<ToWriter>, control: &Control) -> Option<ToWriter> {
    loop {
        match blocks.recv_timeout(Duration::from_millis(100)) {
            Ok(next) => return Some(next),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) if control.is_aborted() => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn failed(folder: &Path, error: &CheckpointError) -> Diagnostic {
    match error {
        CheckpointError::Damaged { .. }
        | CheckpointError::NoSuchVersion { .. }
        | CheckpointError::Device(DeviceError::NotFound { .. }) => damaged(folder, "", error.to_string().as_str()),
        _ => unusable(folder, error),
    }
}
