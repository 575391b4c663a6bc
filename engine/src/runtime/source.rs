//! The source stage: polls a reader, on the core itself or on a thread of its own, computes columns, and makes the watermark.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute::{filter_record_batch, max};
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use rtrb::{Consumer, Producer, RingBuffer};
use serde_json::Value;

use super::checkpoint::NodeState;
use super::control::{Control, IoThread};
use super::graph::{NodeSpec, SourceSpec};
use super::inbox::LaneMark;
use super::wake::Wake;
use crate::batch::{DeltaBatch, Weights, rows_bytes};
use crate::connect::{CoreInit, Position, Rejected, Ring, SourceBatch, SourceEvent, SourcePoll, SourceReader};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::{CoreId, Epoch, SplitId};
use crate::operators::chain::{ChainCx, FusedChain, render_row};
use crate::operators::{EpochMark, Output, PORT_MAIN, RowAccounts, Watermark};
use crate::time::{DriftSlot, SplitWatermarks, TickSchedule, WatermarkSpec};

/// How many polls' worth of events wait between a reader's thread and its core.
const POLLS_MAX: usize = 64;
/// The same for a source whose splits wait for each other.
const POLLS_OF_ALIGNED_MAX: usize = 2;
/// How many times a reader's thread may be told which splits are held before it has heard the first.
const HOLDS_MAX: usize = 4;
/// How many bytes of rows wait there before the reader waits.
const QUEUED_BYTES_MAX: usize = 16 << 20;
/// How soon an idle reader on the core is asked again: at first, and at most, µs.
const RETRY_US: (i64, i64) = (500, 10_000);
/// How long a source waits for others of its `max_drift` group before it looks again, µs.
const DRIFT_RETRY_US: i64 = 1_000;

enum Input {
    Core(Box<dyn SourceReader>),
    Io(IoReader),
}

/// Why nothing more is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The input ended: event time is over.
    Finished,
    /// The job was stopped: event time stands still.
    Stopped,
}

/// What a poll brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// Something.
    Some,
    /// Nothing, and there will be none before another thread or time brings it.
    Nothing,
}

/// A source on one core.
pub struct SourceStage {
    input: Input,
    chain: Option<FusedChain>,
    watermark_spec: Option<WatermarkSpec>,
    splits: SplitWatermarks,
    drift: Option<DriftSlot>,
    /// Whether the reader has yet to hear which splits are held.
    untold_holds: bool,
    schedule: TickSchedule,
    /// The epoch that is running, and the last mark's time and watermark.
    epoch: Epoch,
    time_us: i64,
    watermark: Watermark,
    /// Whether the reader had nothing at some time in this epoch.
    starved: bool,
    /// Whether it was not asked at some time in this epoch although it may have had something.
    held_back: bool,
    ending: Option<Ending>,
    closed: bool,
    retry_us: i64,
    not_before_us: i64,
    events: Vec<SourceEvent>,
    rows_in: u64,
    bytes_in: u64,
    /// Where the reader was when it gave what was taken in last; kept where the job has checkpoints.
    position: Option<Position>,
    changed: Vec<(u64, Value)>,
}

impl SourceStage {
    /// Opens this core's share of `spec`.
    pub fn open(
        node: &NodeSpec,
        spec: &SourceSpec,
        init: CoreInit,
        drift: Option<DriftSlot>,
        schedule: TickSchedule,
        control: &Arc<Control>,
        Reading { poll_rows, resume }: Reading<'_>,
    ) -> Result<Self> {
        if let Some(watermark) = &spec.watermark {
            let column = node.schema.fields().get(watermark.column).map(|field| field.data_type());
            if !matches!(column, Some(DataType::Timestamp(TimeUnit::Microsecond, _))) {
                let found = column.map_or_else(|| "no column".to_owned(), ToString::to_string);
                return Err(Diagnostic::new(
                    Code::Internal,
                    format!("the time column is not a TIMESTAMP in microseconds but {found}"),
                ));
            }
        }
        let mut reader = match resume {
            Resume::From(from) => spec.source.reopen(init, &from.position)?,
            Resume::Never | Resume::Start => spec.source.open(init)?,
        };
        let mut position = None;
        if resume != Resume::Never {
            let mut start = Position::new();
            if let Resume::From(from) = resume {
                start.clone_from(&from.position);
            }
            let mut changed = Vec::new();
            reader.position(&mut changed);
            move_on(&mut start, changed.drain(..));
            position = Some(start);
        }
        let input = match spec.source.ring() {
            Ring::Core => Input::Core(reader),
            Ring::Io => {
                // Splits that wait for each other must not be far ahead in what is already decoded.
                let polls_max = if drift.is_some() { POLLS_OF_ALIGNED_MAX } else { POLLS_MAX };
                Input::Io(IoReader::spawn(node, reader, init.core, poll_rows, polls_max, control, position.is_some())?)
            }
        };
        let idle_timeout_us = spec.watermark.as_ref().and_then(|watermark| watermark.idle_timeout_us);
        let mut splits = SplitWatermarks::new(idle_timeout_us);
        let mut watermark = Watermark::MIN;
        if let Resume::From(NodeState { watermark_us: Some(us), .. }) = resume {
            // The end of all input is told anew by the reader, which has nothing more.
            watermark = Watermark(*us);
            if watermark < Watermark::MAX {
                splits.resume(watermark);
            }
        }
        Ok(Self {
            input,
            chain: spec.chain.clone(),
            watermark_spec: spec.watermark.clone(),
            splits,
            drift,
            untold_holds: false,
            epoch: Epoch(1),
            time_us: schedule.time_us(Epoch(0)),
            schedule,
            watermark,
            starved: false,
            held_back: false,
            ending: None,
            closed: false,
            retry_us: 0,
            not_before_us: i64::MIN,
            events: Vec::new(),
            rows_in: 0,
            bytes_in: 0,
            position,
            changed: Vec::new(),
        })
    }

    /// Where the reader was when it gave what was taken in last.
    pub fn position(&self) -> Position {
        self.position.clone().unwrap_or_default()
    }

    /// Whether all of its input was taken in.
    pub fn has_finished(&self) -> bool {
        self.ending == Some(Ending::Finished)
    }

    /// The epoch that is running.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The time of the last mark.
    pub fn time_us(&self) -> i64 {
        self.time_us
    }

    /// The watermark of the last mark.
    pub fn watermark(&self) -> Watermark {
        self.watermark
    }

    /// Whether the last mark was cut.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Rows read so far and their size as decoded; rows that the reader passed over because nobody wants them count as read.
    pub fn read(&self) -> (u64, u64) {
        let left_out = match &self.input {
            Input::Core(reader) => reader.rows_left_out(),
            Input::Io(io) => io.shared.rows_left_out.load(Ordering::Relaxed),
        };
        (self.rows_in + left_out, self.bytes_in)
    }

    /// What the reader has read from outside so far, in the unit of [`crate::connect::Source::bytes_hint`].
    pub fn bytes_read(&self) -> u64 {
        match &self.input {
            Input::Core(reader) => reader.bytes_read(),
            Input::Io(io) => io.shared.bytes_read.load(Ordering::Relaxed),
        }
    }

    /// Splits opened and finished so far.
    pub fn split_counts(&self) -> (u64, u64) {
        self.splits.counts()
    }

    /// The job stops: what the reader has handed over is still taken in.
    pub fn stop(&mut self) {
        if self.ending.is_none() && matches!(self.input, Input::Core(_)) {
            self.ending = Some(Ending::Stopped);
        }
    }

    /// There was no room behind the source, so that it was not polled.
    pub fn hold_back(&mut self) {
        self.held_back = true;
        if let Input::Io(io) = &mut self.input {
            io.was_empty = false; // what its thread brings meanwhile is no news
        }
    }

    /// When to look again at the latest although no other thread calls, µs since 1970.
    pub fn retry_at_us(&self) -> Option<i64> {
        (self.ending.is_none() && self.not_before_us > i64::MIN).then_some(self.not_before_us)
    }

    /// Whether its reader's thread has brought something since a poll found nothing.
    pub fn has_news(&self) -> bool {
        match &self.input {
            Input::Core(_) => false,
            Input::Io(io) => self.ending.is_none() && io.was_empty && !io.ring.is_empty(),
        }
    }

    /// Takes in about `rows_max` rows.
    pub fn poll(&mut self, now_us: i64, rows_max: usize, rows: &mut RowAccounts, out: &mut Output) -> Result<Polled> {
        if self.ending.is_some() || now_us < self.not_before_us {
            return Ok(Polled::Nothing);
        }
        if let Some(drift) = &self.drift {
            self.untold_holds |= self.splits.hold_beyond(drift.limit_us());
            if self.untold_holds {
                let held = self.splits.held();
                self.untold_holds = match &mut self.input {
                    Input::Core(reader) => {
                        reader.hold(&held);
                        false
                    }
                    Input::Io(io) => !io.hold(held),
                };
            }
            if self.splits.is_held() {
                self.hold_back();
                self.not_before_us = now_us.saturating_add(DRIFT_RETRY_US);
                return Ok(Polled::Nothing);
            }
        }
        self.not_before_us = i64::MIN;
        let mut events = std::mem::take(&mut self.events);
        let polled = self.read_events(now_us, rows_max, &mut events)?;
        for event in events.drain(..) {
            self.take(event, rows, out)?;
        }
        self.events = events;
        if self.ending == Some(Ending::Finished) {
            self.splits.finish_all();
        }
        if let Some(drift) = &self.drift {
            let (watermark, idle) = self.splits.current();
            drift.publish((!idle && self.ending.is_none()).then_some(watermark));
        }
        Ok(polled)
    }

    fn read_events(&mut self, now_us: i64, rows_max: usize, events: &mut Vec<SourceEvent>) -> Result<Polled> {
        match &mut self.input {
            Input::Core(reader) => {
                let polled = reader.poll(rows_max, events)?;
                if let Some(position) = &mut self.position {
                    reader.position(&mut self.changed);
                    move_on(position, self.changed.drain(..));
                }
                match polled {
                    SourcePoll::More => self.retry_us = 0,
                    SourcePoll::Idle => {
                        self.starved = true;
                        self.retry_us =
                            if events.is_empty() { (self.retry_us * 2).clamp(RETRY_US.0, RETRY_US.1) } else { RETRY_US.0 };
                        self.not_before_us = now_us.saturating_add(self.retry_us);
                        if events.is_empty() {
                            return Ok(Polled::Nothing);
                        }
                    }
                    SourcePoll::Finished => self.ending = Some(Ending::Finished),
                }
            }
            Input::Io(io) => match io.take(rows_max, events, &mut self.position) {
                IoTaken::Some => {}
                IoTaken::Nothing => {
                    self.starved |= io.shared.idle.load(Ordering::Relaxed);
                    return Ok(Polled::Nothing);
                }
                IoTaken::End(ending) => self.ending = Some(ending),
            },
        }
        Ok(Polled::Some)
    }

    fn take(&mut self, event: SourceEvent, rows: &mut RowAccounts, out: &mut Output) -> Result<()> {
        match event {
            SourceEvent::SplitOpened(split) => self.splits.open(split),
            SourceEvent::SplitFinished(split) => self.splits.finish(split),
            SourceEvent::Rows(SourceBatch { split, rows: batch, weights, rejected }) => {
                if weights.len() != batch.num_rows() {
                    return Err(Diagnostic::new(Code::Internal, "the reader gave rows and weights of different numbers"));
                }
                self.rows_in += batch.num_rows() as u64 + rejected.len() as u64;
                self.bytes_in += rows_bytes(&batch) as u64;
                for bad in rejected {
                    rows.reject(bad)?;
                }
                let batch = DeltaBatch::new(batch, weights);
                let mut parts = match &self.chain {
                    Some(chain) => chain.apply(batch, &mut ChainCx { time_us: self.time_us, watermark: self.watermark, rows })?,
                    None => vec![batch],
                };
                let mut watermark_us = None;
                if let Some(spec) = &self.watermark_spec {
                    for part in &mut parts {
                        *part = refuse_future(part.clone(), spec, self.time_us, rows)?;
                        watermark_us = watermark_us.max(greatest(spec, part)?);
                    }
                }
                self.splits.advance(split, watermark_us);
                for part in parts {
                    out.emit(PORT_MAIN, part);
                }
            }
        }
        Ok(())
    }

    /// When the running epoch has to end: at once when nothing more comes, else by the schedule.
    pub fn is_due(&self, now_us: i64) -> bool {
        !self.closed && (self.ending.is_some() || now_us >= self.due_us())
    }

    /// When the schedule ends the running epoch, µs since 1970.
    pub fn due_us(&self) -> i64 {
        self.schedule.time_us(self.epoch)
    }

    /// Ends the running epoch.
    pub fn cut(&mut self) -> LaneMark {
        let starved = std::mem::take(&mut self.starved) & !std::mem::take(&mut self.held_back);
        let (mut watermark, idle) = self.splits.cut(self.schedule.interval_us(), starved);
        if self.watermark_spec.is_none() {
            watermark = if self.ending == Some(Ending::Finished) { Watermark::MAX } else { Watermark::MIN };
        }
        let mark = EpochMark {
            epoch: self.epoch,
            time_us: self.schedule.time_us(self.epoch),
            watermark: watermark.max(self.watermark),
            last: self.ending.is_some(),
        };
        if let Some(drift) = &self.drift {
            drift.publish((!idle && self.ending.is_none()).then_some(mark.watermark));
        }
        self.closed = mark.last;
        self.epoch = self.epoch.next();
        self.time_us = mark.time_us;
        self.watermark = mark.watermark;
        LaneMark { mark, idle: idle && self.watermark_spec.is_some() }
    }
}

/// The greatest value of the watermark expression; `None` when all are NULL.
fn greatest(spec: &WatermarkSpec, batch: &DeltaBatch) -> Result<Option<i64>> {
    if batch.num_rows() == 0 {
        return Ok(None);
    }
    let values = spec
        .expr
        .evaluate(&batch.rows)
        .and_then(|value| value.into_array(batch.num_rows()))
        .map_err(|e| Diagnostic::new(Code::RowExpression, format!("the watermark can't be computed: {e}")))?;
    match values.as_primitive_opt::<TimestampMicrosecondType>() {
        Some(values) => Ok(max(values)),
        None => Err(Diagnostic::new(
            Code::Internal,
            format!("the watermark is not a TIMESTAMP in microseconds but {}", values.data_type()),
        )),
    }
}

/// Refuses rows whose event time is too far ahead of epoch time: one of them would close all windows.
fn refuse_future(batch: DeltaBatch, spec: &WatermarkSpec, time_us: i64, rows: &mut RowAccounts) -> Result<DeltaBatch> {
    let Some(max_future_us) = spec.max_future_us else { return Ok(batch) };
    let limit_us = time_us.saturating_add(max_future_us);
    let Some(times) = batch.rows.column(spec.column).as_primitive_opt::<TimestampMicrosecondType>() else {
        return Err(Diagnostic::new(Code::Internal, "the time column is not a TIMESTAMP in microseconds"));
    };
    if max(times).is_none_or(|latest| latest <= limit_us) {
        return Ok(batch);
    }
    let fits: Vec<bool> = (0..times.len()).map(|row| times.is_null(row) || times.value(row) <= limit_us).collect();
    for row in (0..fits.len()).filter(|row| !fits[*row]) {
        rows.reject(Rejected {
            code: Code::FutureEventTime,
            message: format!("the event time is more than {} s ahead of the job's time", max_future_us / 1_000_000),
            origin: rows.node.clone(),
            position: None,
            raw: render_row(&batch.rows, row),
        })?;
    }
    let weights = match &batch.weights {
        Weights::Ones(_) => Weights::Ones(fits.iter().filter(|fits| **fits).count()),
        Weights::Signed(weights) => {
            Weights::Signed(weights.iter().zip(&fits).filter(|(_, fits)| **fits).map(|(weight, _)| *weight).collect())
        }
    };
    let rows = filter_record_batch(&batch.rows, &BooleanArray::from(fits))
        .map_err(|e| Diagnostic::new(Code::Internal, e.to_string()))?;
    Ok(DeltaBatch::new(rows, weights))
}

/// How a source is read.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// How many rows its reader is asked for at once.
    pub poll_rows: usize,
    /// Where it begins.
    pub resume: Resume<'a>,
}

/// Where a source begins.
#[derive(Clone, Copy, Debug)]
pub enum Resume<'a> {
    /// At the start, and nobody asks where it is.
    Never,
    /// At the start.
    Start,
    /// Where another run's was.
    From(&'a NodeState),
}

impl PartialEq for Resume<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

fn move_on(position: &mut Position, changed: impl Iterator<Item = (u64, Value)>) {
    for (number, value) in changed {
        if value.is_null() {
            position.remove(&number);
        } else {
            position.insert(number, value);
        }
    }
}

/// What one poll gave.
struct Polls {
    events: Vec<SourceEvent>,
    rows: usize,
    bytes: usize,
    /// How the reader's position changed.
    changed: Vec<(u64, Value)>,
}

enum Handed {
    Events(Polls),
    End(Ending),
}

enum IoTaken {
    Some,
    Nothing,
    End(Ending),
}

#[derive(Debug, Default)]
struct IoShared {
    wake: Wake,
    queued_bytes: AtomicUsize,
    /// The reader's last answer was that it has nothing.
    idle: AtomicBool,
    /// What the reader says of itself, as of its last poll.
    rows_left_out: AtomicU64,
    bytes_read: AtomicU64,
    closed: AtomicBool,
}

/// The core's end of the ring from a reader's thread.
struct IoReader {
    ring: Consumer<Handed>,
    holds: Producer<Vec<SplitId>>,
    shared: Arc<IoShared>,
    was_empty: bool,
}

impl IoReader {
    fn spawn(
        node: &NodeSpec,
        reader: Box<dyn SourceReader>,
        core: CoreId,
        poll_rows: usize,
        polls_max: usize,
        control: &Arc<Control>,
        keeps_position: bool,
    ) -> Result<Self> {
        let (producer, ring) = RingBuffer::new(polls_max);
        let (holds, told) = RingBuffer::new(HOLDS_MAX);
        let shared = Arc::new(IoShared::default());
        let io = shared.clone();
        let thread = IoThread { node: node.name.clone(), kind: "source", core };
        let ends = ReaderEnds { ring: producer, holds: told };
        let polls = PollOptions { core, rows: poll_rows, keeps_position };
        control.clone().spawn_io(thread, move |control| read_on(reader, ends, &io, polls, control))?;
        Ok(Self { ring, holds, shared, was_empty: false })
    }

    /// Tells the reader which splits are held; `false`: there was no room, to be told again.
    fn hold(&mut self, splits: Vec<SplitId>) -> bool {
        let is_told = self.holds.push(splits).is_ok();
        self.shared.wake.notify();
        is_told
    }

    fn take(&mut self, rows_max: usize, events: &mut Vec<SourceEvent>, position: &mut Option<Position>) -> IoTaken {
        let (mut rows, mut bytes, mut any) = (0, 0, false);
        let mut ending = None;
        while rows < rows_max && ending.is_none() {
            match self.ring.pop() {
                Ok(Handed::Events(handed)) => {
                    events.extend(handed.events);
                    rows += handed.rows;
                    bytes += handed.bytes;
                    if let Some(position) = position {
                        move_on(position, handed.changed.into_iter());
                    }
                    any = true;
                }
                Ok(Handed::End(why)) => ending = Some(why),
                Err(_) => break,
            }
        }
        self.was_empty = !any && ending.is_none();
        if any {
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.shared.wake.notify();
        }
        match ending {
            Some(why) => IoTaken::End(why),
            None if any => IoTaken::Some,
            None => IoTaken::Nothing,
        }
    }
}

impl Drop for IoReader {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.wake.notify();
    }
}

/// How a reader's thread polls.
#[derive(Clone, Copy)]
struct PollOptions {
    core: CoreId,
    rows: usize,
    keeps_position: bool,
}

/// The thread's ends of the rings to and from its core.
struct ReaderEnds {
    ring: Producer<Handed>,
    holds: Consumer<Vec<SplitId>>,
}

/// A reader's thread: polls while there is room, hands over, ends with the input, the job's stop or its abort.
fn read_on(
    mut reader: Box<dyn SourceReader>,
    ReaderEnds { mut ring, mut holds }: ReaderEnds,
    io: &IoShared,
    polls: PollOptions,
    control: &Control,
) -> Result<()> {
    let core = polls.core;
    let mut changed = Vec::new();
    io.wake.attach();
    let is_over = || control.is_aborted() || io.closed.load(Ordering::Acquire);
    loop {
        while ring.is_full() || io.queued_bytes.load(Ordering::Relaxed) >= QUEUED_BYTES_MAX {
            if is_over() {
                return Ok(());
            }
            let has_room = || !ring.is_full() && io.queued_bytes.load(Ordering::Relaxed) < QUEUED_BYTES_MAX;
            io.wake.sleep(Duration::from_millis(100), || has_room() || is_over());
        }
        if is_over() {
            return Ok(());
        }
        let mut ending = control.is_stopped().then_some(Ending::Stopped);
        if ending.is_none() {
            while let Ok(held) = holds.pop() {
                reader.hold(&held);
            }
            let asked = Instant::now();
            let mut events = Vec::new();
            let answer = reader.poll(polls.rows, &mut events)?;
            if polls.keeps_position {
                reader.position(&mut changed);
            }
            io.idle.store(answer == SourcePoll::Idle, Ordering::Relaxed);
            io.rows_left_out.store(reader.rows_left_out(), Ordering::Relaxed);
            io.bytes_read.store(reader.bytes_read(), Ordering::Relaxed);
            let is_empty = events.is_empty();
            if !is_empty {
                let sizes = events.iter().map(|event| match event {
                    SourceEvent::Rows(batch) => {
                        let rejected_bytes: usize = batch.rejected.iter().map(|bad| bad.raw.len() + size_of::<Rejected>()).sum();
                        (batch.rows.num_rows() + batch.rejected.len(), rows_bytes(&batch.rows) + rejected_bytes)
                    }
                    SourceEvent::SplitOpened(_) | SourceEvent::SplitFinished(_) => (0, 0),
                });
                let (rows, bytes) = sizes.fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1));
                io.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
                // A change without events goes with the next ones: nothing was delivered in between.
                let changed = std::mem::take(&mut changed);
                hand_over(&mut ring, Handed::Events(Polls { events, rows, bytes, changed }), io, control);
                control.wake_core(core);
            }
            match answer {
                SourcePoll::Finished => ending = Some(Ending::Finished),
                SourcePoll::Idle if is_empty && asked.elapsed() < Duration::from_millis(1) => {
                    // A reader that answers at once instead of waiting for input.
                    io.wake.sleep(Duration::from_millis(5), || is_over() || control.is_stopped() || !holds.is_empty());
                }
                SourcePoll::Idle | SourcePoll::More => {}
            }
        }
        if let Some(why) = ending {
            hand_over(&mut ring, Handed::End(why), io, control);
            control.wake_core(core);
            return Ok(());
        }
    }
}

/// Puts one thing into the ring, waiting for room; gives up when the job is over.
fn hand_over(ring: &mut Producer<Handed>, mut handed: Handed, io: &IoShared, control: &Control) {
    while let Err(rtrb::PushError::Full(back)) = ring.push(handed) {
        if control.is_aborted() || io.closed.load(Ordering::Acquire) {
            return;
        }
        handed = back;
        io.wake
            .sleep(Duration::from_millis(100), || !ring.is_full() || control.is_aborted() || io.closed.load(Ordering::Acquire));
    }
}
