//! The sink stage: nets each epoch on its core and hands it to the writer, on the core itself or on a thread of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::UInt32Array;
use arrow::compute::take_record_batch;
use arrow::datatypes::SchemaRef;
use rtrb::{Consumer, Producer, RingBuffer};

use super::checkpoint::Prepared;
use super::control::{Control, IoThread};
use super::graph::{NodeSpec, SinkSpec};
use super::net::Net;
use super::wake::Wake;
use crate::batch::{DeltaBatch, Weights, rows_bytes};
use crate::connect::{ChangelogMode, Changes, CoreInit, Ring, SinkWriter};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::Epoch;
use crate::operators::{EpochMark, Progress, RowAccounts, Watermark};

/// How many commands wait for a writer's thread.
const COMMANDS_MAX: usize = 64;
/// How many bytes of rows wait for a writer's thread before its core waits.
const QUEUED_BYTES_MAX: usize = 8 << 20;

enum Command {
    Write(Epoch, Changes, usize),
    EndEpoch(Epoch, Watermark),
    /// Of a checkpoint; whether none follows.
    Prepare(u64, bool),
    Finish,
}

enum Writer {
    Core(Box<dyn SinkWriter>),
    Io(IoWriter),
}

/// A sink on one core.
pub struct SinkStage {
    mode: ChangelogMode,
    /// `None` in append mode, where every row is a change.
    net: Option<Net>,
    writer: Writer,
    /// Where its part of a checkpoint goes, if the job has any.
    share: Option<Prepared>,
    /// Its rows are shown by checkpoints, not by the writer's end.
    is_committed: bool,
    written_rows: u64,
    written_bytes: u64,
}

impl SinkStage {
    /// Opens this core's writer of `spec`.
    pub fn open(
        node: &NodeSpec,
        spec: &SinkSpec,
        schema: &SchemaRef,
        init: CoreInit,
        control: &Arc<Control>,
        share: Option<Prepared>,
    ) -> Result<Self> {
        let net = match spec.mode {
            ChangelogMode::Append => None,
            mode @ (ChangelogMode::Upsert | ChangelogMode::Retract) => Some(Net::new(schema, mode, &spec.key)?),
        };
        let writer = spec.sink.open(init, schema.clone(), spec.mode)?;
        let writer = match spec.sink.ring() {
            Ring::Core => Writer::Core(writer),
            Ring::Io => Writer::Io(IoWriter::spawn(node, writer, init, control, share.clone())?),
        };
        let is_committed = share.as_ref().is_some_and(Prepared::is_committed);
        Ok(Self { mode: spec.mode, net, writer, share, is_committed, written_rows: 0, written_bytes: 0 })
    }

    /// Whether there is room before the writer.
    pub fn has_room(&mut self) -> bool {
        match &mut self.writer {
            Writer::Core(_) => true,
            Writer::Io(io) => io.has_room(),
        }
    }

    /// Whether a writer that was found without room has some again.
    pub fn has_news(&self) -> bool {
        match &self.writer {
            Writer::Core(_) => false,
            Writer::Io(io) => io.was_full && io.room(),
        }
    }

    /// Rows of `epoch`.
    pub fn on_delta(&mut self, epoch: Epoch, batch: DeltaBatch, name: &str) -> Result<()> {
        if let Some(net) = &mut self.net {
            return net.add(batch);
        }
        debug_assert_eq!(self.mode, ChangelogMode::Append);
        let rows = match &batch.weights {
            Weights::Ones(_) => batch.rows,
            Weights::Signed(weights) => {
                if weights.iter().any(|weight| *weight < 0) {
                    return Err(Diagnostic::new(
                        Code::NegativeWeight,
                        format!("sink `{name}` takes only inserts, but a row was taken back"),
                    ));
                }
                let times = weights.iter().enumerate().flat_map(|(row, n)| std::iter::repeat_n(row as u32, *n as usize));
                let rows = UInt32Array::from_iter_values(times);
                take_record_batch(&batch.rows, &rows).map_err(|e| Diagnostic::new(Code::Internal, e.to_string()))?
            }
        };
        self.write(epoch, Changes { rows, kinds: None })
    }

    /// The epoch of `mark` ends; `More` when the writer has no room or has had its slice.
    pub fn on_mark(&mut self, mark: &EpochMark, rows: &mut RowAccounts) -> Result<Progress> {
        if let Some(net) = &mut self.net
            && let Some(changes) = net.drain(rows)?
        {
            self.write(mark.epoch, changes)?;
            return Ok(Progress::More);
        }
        match &mut self.writer {
            Writer::Core(writer) => {
                writer.watermark(mark.watermark)?;
                writer.end_epoch(mark.epoch)?;
                if mark.last && !self.is_committed {
                    writer.finish()?;
                }
            }
            Writer::Io(io) => {
                io.push(Command::EndEpoch(mark.epoch, mark.watermark));
                // With checkpoints the last one ends it.
                if mark.last && self.share.is_none() {
                    io.push(Command::Finish);
                }
            }
        }
        Ok(Progress::Done)
    }

    /// Checkpoint `version` stands behind all that the stage was given. `last`: none follows, and no rows.
    pub fn prepare(&mut self, version: u64, last: bool, control: &Control) -> Result<()> {
        let Some(share) = &self.share else { return Ok(()) };
        match &mut self.writer {
            Writer::Core(writer) => share.deliver(version, writer.prepare()?, control),
            Writer::Io(io) => {
                io.push(Command::Prepare(version, last));
                Ok(())
            }
        }
    }

    fn write(&mut self, epoch: Epoch, changes: Changes) -> Result<()> {
        let bytes = rows_bytes(&changes.rows);
        self.written_rows += changes.rows.num_rows() as u64;
        self.written_bytes += bytes as u64;
        match &mut self.writer {
            Writer::Core(writer) => writer.write(epoch, &changes),
            Writer::Io(io) => {
                io.push(Command::Write(epoch, changes, bytes));
                Ok(())
            }
        }
    }

    /// Rows and bytes given to the writer so far.
    pub fn written(&self) -> (u64, u64) {
        (self.written_rows, self.written_bytes)
    }

    /// What the stage holds of the running epoch to net it, in bytes.
    pub fn netted_bytes(&self) -> usize {
        self.net.as_ref().map_or(0, Net::held_bytes)
    }

    /// What the stage holds for the running epoch and the writer, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.netted_bytes()
            + match &self.writer {
                Writer::Core(_) => 0,
                Writer::Io(io) => io.shared.queued_bytes.load(Ordering::Relaxed),
            }
    }

    /// Sends on what did not fit; whether nothing is left over.
    pub fn flush(&mut self) -> bool {
        match &mut self.writer {
            Writer::Core(_) => true,
            Writer::Io(io) => {
                io.flush();
                io.overflow.is_empty()
            }
        }
    }
}

#[derive(Debug, Default)]
struct IoShared {
    wake: Wake,
    queued_bytes: AtomicUsize,
    closed: AtomicBool,
}

/// The core's end of the ring to a writer's thread.
struct IoWriter {
    ring: Producer<Command>,
    /// Commands that did not fit: at most those of one call.
    overflow: VecDeque<Command>,
    shared: Arc<IoShared>,
    was_full: bool,
}

impl IoWriter {
    fn spawn(
        node: &NodeSpec,
        mut writer: Box<dyn SinkWriter>,
        init: CoreInit,
        control: &Arc<Control>,
        share: Option<Prepared>,
    ) -> Result<Self> {
        let (ring, mut commands) = RingBuffer::new(COMMANDS_MAX);
        let shared = Arc::new(IoShared::default());
        let (io, core) = (shared.clone(), init.core);
        control.clone().spawn_io(IoThread { node: node.name.clone(), kind: "sink", core }, move |control| {
            io.wake.attach();
            loop {
                match next_command(&mut commands, &io, control) {
                    Some(Command::Write(epoch, changes, bytes)) => {
                        writer.write(epoch, &changes)?;
                        drop(changes);
                        io.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                    }
                    Some(Command::EndEpoch(epoch, watermark)) => {
                        writer.watermark(watermark)?;
                        writer.end_epoch(epoch)?;
                    }
                    Some(Command::Prepare(version, last)) => {
                        let Some(share) = &share else { continue };
                        let pieces = writer.prepare()?;
                        if last && !share.is_committed() {
                            writer.finish()?;
                        }
                        share.deliver(version, pieces, control)?;
                        if last {
                            return Ok(());
                        }
                    }
                    Some(Command::Finish) => return writer.finish(),
                    None => return Ok(()),
                }
                control.wake_core(core);
            }
        })?;
        Ok(Self { ring, overflow: VecDeque::new(), shared, was_full: false })
    }

    fn room(&self) -> bool {
        self.shared.queued_bytes.load(Ordering::Relaxed) < QUEUED_BYTES_MAX && self.ring.slots() > self.overflow.len()
    }

    fn has_room(&mut self) -> bool {
        self.flush();
        self.was_full = !self.overflow.is_empty() || !self.room();
        !self.was_full
    }

    fn push(&mut self, command: Command) {
        if let Command::Write(_, _, bytes) = &command {
            self.shared.queued_bytes.fetch_add(*bytes, Ordering::Relaxed);
        }
        self.overflow.push_back(command);
        self.flush();
    }

    fn flush(&mut self) {
        let mut any = false;
        while let Some(command) = self.overflow.pop_front() {
            if let Err(rtrb::PushError::Full(command)) = self.ring.push(command) {
                self.overflow.push_front(command);
                break;
            }
            any = true;
        }
        self.was_full |= !self.overflow.is_empty();
        if any {
            self.shared.wake.notify();
        }
    }
}

impl Drop for IoWriter {
    fn drop(&mut self) {
        // Nothing comes any more: a thread that has not seen `Finish` ends too.
        self.shared.closed.store(true, Ordering::Release);
        self.shared.wake.notify();
    }
}

/// The next command; `None` when the job was aborted or its core is gone.
fn next_command(commands: &mut Consumer<Command>, io: &IoShared, control: &Control) -> Option<Command> {
    loop {
        if control.is_aborted() {
            return None;
        }
        if let Ok(command) = commands.pop() {
            return Some(command);
        }
        if io.closed.load(Ordering::Acquire) && commands.is_empty() {
            return None;
        }
        io.wake.sleep(Duration::from_millis(100), || {
            !commands.is_empty() || io.closed.load(Ordering::Acquire) || control.is_aborted()
        });
    }
}
