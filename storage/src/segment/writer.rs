//! The end of a log that grows: a state machine that knows what to write when, and does no I/O itself.
//!
//! Its owner asks [`Writer::next_task`], performs the task's operation wherever it likes, and reports with [`Writer::finished`]; one task is
//! out at a time.

use std::collections::VecDeque;

use super::format::{CONTROL, FIRST_OF_GROUP, HEADER_BYTES, LAST_OF_GROUP, SegmentHeader, push_record, record_bytes, seal};
use super::recovery::Recovered;
use super::{LogError, LogOptions, Lsn, SegmentKind};
use crate::bugs::{self, Bug};
use crate::device::{Device, DeviceError, DeviceOp, FileName};

#[derive(Clone, Debug)]
struct Segment {
    file: FileName,
    base: u64,
    salt: u64,
    created: bool,
    /// Position behind its preamble: while that isn't durable, what the preamble repeats must be kept where it is.
    preamble_end: u64,
}

/// Records for one segment, waiting.
#[derive(Debug, Default)]
struct Chunk {
    /// Position of the first byte.
    start: u64,
    bytes: Vec<u8>,
}

#[derive(Debug)]
enum Step {
    Prepare(DeviceOp),
    /// The last step of making a segment.
    Created {
        base: u64,
    },
    Batch {
        task: Task,
        end: u64,
    },
}

#[derive(Clone, Copy, Debug)]
enum Out {
    Prepare,
    Batch { end: u64 },
}

/// An operation to perform, for [`Writer::finished`].
#[derive(Debug)]
pub(crate) enum Task {
    Op(DeviceOp),
    /// Records that lack their checksums.
    Records {
        file: FileName,
        offset: u64,
        data: Vec<u8>,
        salt: u64,
        start: u64,
    },
}

impl Task {
    /// The operation; computes checksums where needed, so better called outside of locks.
    pub(crate) fn into_op(self) -> DeviceOp {
        match self {
            Self::Op(op) => op,
            Self::Records { file, offset, mut data, salt, start } => {
                seal(&mut data, salt, start);
                DeviceOp::WriteSync { file, offset, data }
            }
        }
    }

    /// Does it at once; what came of it, and memory for [`Writer::give_back`].
    pub(crate) fn perform(self, device: &mut (impl Device + ?Sized)) -> (Result<(), DeviceError>, Vec<u8>) {
        match self {
            Self::Op(op) => (device.execute(op).map(|_| ()), Vec::new()),
            Self::Records { file, offset, mut data, salt, start } => {
                seal(&mut data, salt, start);
                device.write_sync(file, offset, data)
            }
        }
    }
}

/// The end of a log that grows.
#[derive(Debug)]
pub(crate) struct Writer {
    kind: SegmentKind,
    options: LogOptions,
    /// In order; the last is the one that is filled. Never empty.
    segments: VecDeque<Segment>,
    /// Behind each other; the last is the one that is filled. Never empty.
    chunks: VecDeque<Chunk>,
    /// Memory of records that were written, for those to come: new memory costs more than copying records into it.
    spare: Vec<u8>,
    steps: VecDeque<Step>,
    out: Option<Out>,
    tail: u64,
    durable: u64,
    /// Commit all before this position.
    wanted: u64,
    first_waiting_us: Option<u64>,
    now_us: u64,
    poisoned: Option<String>,
    /// Payload of the control record with which every segment begins; empty for none.
    preamble: Vec<u8>,
    /// Longest preamble there may be.
    preamble_max: usize,
}

impl Writer {
    /// A writer behind what recovery found. `preamble`: with what every new segment begins, `preamble_max` bytes at most.
    pub(crate) fn new(
        kind: SegmentKind,
        options: LogOptions,
        recovered: &Recovered,
        preamble: Vec<u8>,
        preamble_max: usize,
    ) -> Self {
        assert!((8192..=1 << 30).contains(&options.segment_bytes), "segments have 8 KiB to 1 GiB");
        let segments: VecDeque<_> = recovered
            .segments
            .iter()
            .map(|s| Segment {
                file: kind.name(s.header.base),
                base: s.header.base,
                salt: s.header.salt,
                created: true,
                preamble_end: s.header.base,
            })
            .collect();
        let tail = recovered.segments.last().map_or(0, |s| s.end);
        let mut writer = Self {
            kind,
            options,
            segments,
            chunks: VecDeque::from([Chunk { start: tail, bytes: Vec::new() }]),
            spare: Vec::new(),
            steps: VecDeque::new(),
            out: None,
            tail,
            durable: tail,
            wanted: tail,
            first_waiting_us: None,
            now_us: 0,
            poisoned: None,
            preamble,
            preamble_max,
        };
        // What a newer version added to the last segment isn't ours to change.
        let foreign = recovered.segments.last().is_some_and(|s| s.header.may_ignore != 0 && s.end > s.header.base);
        if writer.segments.is_empty() || foreign {
            writer.start_segment();
        } else if recovered.segments.last().is_some_and(|s| s.end == s.header.base) {
            // It was made, and the write that was to bring its preamble was interrupted.
            writer.push_preamble();
        }
        writer
    }

    fn start_segment(&mut self) {
        let base = self.tail;
        let salt = (self.options.salt ^ base).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31) ^ self.options.salt;
        self.segments.push_back(Segment { file: self.kind.name(base), base, salt, created: false, preamble_end: base });
        if self.chunks.back().is_none_or(|c| !c.bytes.is_empty()) {
            self.chunks.push_back(Chunk { start: base, bytes: Vec::new() });
        }
        self.push_preamble();
    }

    fn push_preamble(&mut self) {
        if !self.preamble.is_empty() {
            let chunk = self.chunks.back_mut().expect("there is always a chunk");
            push_record(&mut chunk.bytes, &self.preamble, CONTROL | FIRST_OF_GROUP | LAST_OF_GROUP);
            self.tail += record_bytes(self.preamble.len()) as u64;
            self.segments.back_mut().expect("there is always a segment").preamble_end = self.tail;
            self.first_waiting_us.get_or_insert(self.now_us);
        }
    }

    /// What makes a segment. Its header is durable, and so is its name, before the first record is written.
    fn creation(&self, segment: &Segment) -> [Step; 6] {
        let file = || segment.file.clone();
        let file_bytes = self.options.segment_bytes;
        let header = SegmentHeader { salt: segment.salt, base: segment.base, file_bytes, may_ignore: 0 };
        [
            Step::Prepare(DeviceOp::Create { file: file() }),
            Step::Prepare(DeviceOp::Allocate { file: file(), len: file_bytes }),
            // Whoever finds the header and a shorter file knows that its end was lost.
            Step::Prepare(DeviceOp::Sync { file: file() }),
            Step::Prepare(DeviceOp::WriteSync { file: file(), offset: 0, data: header.encode(self.kind) }),
            Step::Prepare(if bugs::is_on(Bug::ForgetsDirectory) { DeviceOp::Sync { file: file() } } else { DeviceOp::SyncDir }),
            Step::Created { base: segment.base },
        ]
    }

    /// Plans the making of a first segment, where there is none yet, without waiting for a record.
    pub(crate) fn begin_first_segment(&mut self) {
        if let [first] = self.segments.make_contiguous()
            && !first.created
            && self.steps.is_empty()
        {
            let first = first.clone();
            let creation = self.creation(&first);
            self.steps.extend(creation);
        }
    }

    /// Most that one record, or one group, may take.
    fn group_bytes_max(&self) -> usize {
        let preamble = if self.preamble_max == 0 { 0 } else { record_bytes(self.preamble_max) };
        (self.options.segment_bytes as usize - HEADER_BYTES).min(self.options.pending_bytes_max).saturating_sub(preamble)
    }

    /// Appends records as one group; `flags` are those of all beside the group's. The position of the first. Never blocks.
    pub(crate) fn append(&mut self, payloads: &[&[u8]], flags: u32) -> Result<Lsn, LogError> {
        self.check()?;
        let size_bytes: usize = payloads.iter().map(|p| record_bytes(p.len())).sum();
        let limit_bytes = self.group_bytes_max();
        if size_bytes > limit_bytes || payloads.iter().any(|p| p.len() > limit_bytes) {
            return Err(LogError::TooLarge { size_bytes, limit_bytes });
        }
        let base = self.segments.back().map_or(0, |s| s.base);
        let starts_segment = self.tail - base + size_bytes as u64 > self.options.segment_bytes - HEADER_BYTES as u64;
        let with_preamble =
            size_bytes + if starts_segment && !self.preamble.is_empty() { record_bytes(self.preamble.len()) } else { 0 };
        let pending_bytes = self.pending_bytes();
        if pending_bytes + with_preamble > self.options.pending_bytes_max {
            return Err(LogError::Full { pending_bytes, limit_bytes: self.options.pending_bytes_max });
        }
        if starts_segment {
            self.start_segment();
        }
        let start = self.tail;
        let chunk = self.chunks.back_mut().expect("there is always a chunk");
        let last = payloads.len().saturating_sub(1);
        for (i, payload) in payloads.iter().enumerate() {
            let first = if i == 0 { FIRST_OF_GROUP } else { 0 };
            push_record(&mut chunk.bytes, payload, flags | first | if i == last { LAST_OF_GROUP } else { 0 });
        }
        self.tail = chunk.start + chunk.bytes.len() as u64;
        if !payloads.is_empty() {
            self.first_waiting_us.get_or_insert(self.now_us);
        }
        Ok(Lsn(start))
    }

    /// With what the segments begin that are started from now on.
    pub(crate) fn set_preamble(&mut self, preamble: Vec<u8>) -> Result<(), LogError> {
        self.preamble_fits(&preamble)?;
        self.preamble = preamble;
        Ok(())
    }

    pub(crate) fn preamble_fits(&self, preamble: &[u8]) -> Result<(), LogError> {
        if preamble.len() > self.preamble_max {
            return Err(LogError::TooLarge { size_bytes: preamble.len(), limit_bytes: self.preamble_max });
        }
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), LogError> {
        match &self.poisoned {
            Some(because) => Err(LogError::Poisoned { because: because.clone() }),
            None => Ok(()),
        }
    }

    pub(crate) fn poison(&mut self, because: &str) {
        self.poisoned.get_or_insert_with(|| because.to_owned());
    }

    pub(crate) fn tail(&self) -> Lsn {
        Lsn(self.tail)
    }

    pub(crate) fn durable(&self) -> Lsn {
        Lsn(if bugs::is_on(Bug::AcknowledgesEarly) { self.tail } else { self.durable })
    }

    /// The first position of the oldest segment.
    pub(crate) fn first(&self) -> Lsn {
        Lsn(self.segments.front().map_or(0, |s| s.base))
    }

    pub(crate) fn pending_bytes(&self) -> usize {
        (self.tail - self.durable) as usize
    }

    pub(crate) fn commit_bytes(&self) -> usize {
        self.options.commit_bytes
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.out.is_none() && self.steps.is_empty() && self.tail == self.durable
    }

    /// Asks for all that was appended to be made durable; the position to wait for.
    pub(crate) fn commit(&mut self) -> Lsn {
        self.wanted = self.tail;
        Lsn(self.wanted)
    }

    /// When [`next_task`](Self::next_task) will have something because of time alone.
    pub(crate) fn due_us(&self) -> Option<u64> {
        self.first_waiting_us.map(|first| first.saturating_add(self.options.commit_interval_us))
    }

    pub(crate) fn set_now(&mut self, now_us: u64) {
        // A clock that goes back makes nobody wait longer.
        self.first_waiting_us = self.first_waiting_us.map(|first| first.min(now_us));
        self.now_us = now_us;
    }

    /// What to do next, if anything is due and nothing is out.
    pub(crate) fn next_task(&mut self) -> Option<Task> {
        while self.out.is_none() && self.poisoned.is_none() {
            match self.steps.pop_front() {
                Some(Step::Created { base }) => {
                    self.segments.iter_mut().filter(|s| s.base == base).for_each(|s| s.created = true);
                }
                Some(Step::Prepare(op)) => {
                    self.out = Some(Out::Prepare);
                    return Some(Task::Op(op));
                }
                Some(Step::Batch { task, end }) => {
                    self.out = Some(Out::Batch { end });
                    return Some(task);
                }
                None => {
                    if !self.plan() {
                        return None;
                    }
                }
            }
        }
        None
    }

    /// Reports what came of the task that is out. Any failure is final.
    pub(crate) fn finished(&mut self, result: Result<(), DeviceError>) {
        match (self.out.take(), result) {
            (_, Err(e)) => self.poison(&e.to_string()),
            (Some(Out::Batch { end }), Ok(())) if self.poisoned.is_none() => self.durable = end,
            _ => {}
        }
    }

    /// Takes the memory of records that were written, to be filled again; not of more than half of what may wait.
    pub(crate) fn give_back(&mut self, mut memory: Vec<u8>) {
        if memory.capacity() > self.spare.capacity() && memory.capacity() <= self.options.pending_bytes_max / 2 {
            memory.clear();
            self.spare = memory;
        }
    }

    /// Takes what waits for the next write, when it is due; whether it did.
    fn plan(&mut self) -> bool {
        let waiting = self.tail - self.durable;
        let is_late = self.due_us().is_some_and(|due| self.now_us >= due);
        let due = self.wanted > self.durable || waiting >= self.options.commit_bytes as u64 || is_late;
        if waiting == 0 || !due {
            return false;
        }
        while self.chunks.len() > 1 && self.chunks[0].bytes.is_empty() {
            self.chunks.pop_front();
        }
        let is_only = self.chunks.len() == 1;
        let chunk = &mut self.chunks[0];
        let next = match is_only {
            true if self.spare.capacity() > 0 => std::mem::take(&mut self.spare),
            true => Vec::with_capacity(chunk.bytes.len()),
            false => Vec::new(),
        };
        let (start, data) = (chunk.start, std::mem::replace(&mut chunk.bytes, next));
        chunk.start += data.len() as u64;
        let end = chunk.start;
        debug_assert_eq!(start, self.durable);
        if is_only {
            self.first_waiting_us = None;
        }
        let segment =
            self.segments.iter().rev().find(|s| s.base <= start).expect("a chunk's segment is kept until it is durable");
        let offset = HEADER_BYTES as u64 + start - segment.base;
        let task = Task::Records { file: segment.file.clone(), offset, data, salt: segment.salt, start };
        if !segment.created {
            let segment = segment.clone();
            let creation = self.creation(&segment);
            self.steps.extend(creation);
        }
        self.steps.push_back(Step::Batch { task, end });
        true
    }

    /// Plans the removal of segments that end at or before `lsn`, oldest first, each durably before the next.
    pub(crate) fn remove_segments_before(&mut self, lsn: Lsn) {
        while self.segments.len() > 1 {
            let next = &self.segments[1];
            if next.base > lsn.0 || next.preamble_end > self.durable || !next.created {
                break;
            }
            if let Some(gone) = self.segments.pop_front() {
                self.steps.push_back(Step::Prepare(DeviceOp::Remove { file: gone.file }));
                self.steps.push_back(Step::Prepare(DeviceOp::SyncDir));
            }
        }
    }
}
