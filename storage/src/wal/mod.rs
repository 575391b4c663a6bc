//! A write-ahead log over a [`Device`]: append, commit in groups, recover after a crash, give space back.
//!
//! ```text
//! append ──▶ chunk being filled ──commit──▶ one write + fdatasync on its way ──▶ durable
//! ```
//! One write is on its way at a time and every record says where its write began. That is how recovery tells damage from a torn end: behind
//! a torn write there can be nothing but records of that same write, so a valid record of a later write proves that what is broken before it
//! had been durable. The log never retries: after any failed write or sync it is poisoned, and what wasn't durable then is decided by
//! recovery.

mod format;
mod recovery;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::device::{Device, DeviceError, DeviceOp, FileName, Token};
use format::{HEADER_BYTES, LAST_OF_GROUP, SegmentHeader, push_record, record_bytes, seal, segment_name};

/// A position in the log: bytes since its beginning, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// Bounds of a log.
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// Length of a segment file; at least 8192. Segments are filled with zeros when they are made.
    pub segment_bytes: u64,
    /// Most that may wait to become durable; what is beyond is refused.
    pub pending_bytes_max: usize,
    /// So much waiting is committed without being asked.
    pub commit_bytes: usize,
    /// So long after the first waiting record all are committed without being asked, when [`Wal::poll`] is told the time.
    pub commit_interval_us: u64,
    /// Distinguishes this log's records from stale bytes; random, another one each time a log is opened.
    pub salt: u64,
}

impl WalOptions {
    /// The usual bounds.
    #[must_use]
    pub fn new(salt: u64) -> Self {
        Self { segment_bytes: 16 << 20, pending_bytes_max: 8 << 20, commit_bytes: 256 << 10, commit_interval_us: 2000, salt }
    }
}

/// What a log refuses or suffers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// Too much waits to become durable: poll, then try again.
    #[error("the log has {pending_bytes} B waiting to become durable, its limit is {limit_bytes} B")]
    Full {
        /// What waits.
        pending_bytes: usize,
        /// What may.
        limit_bytes: usize,
    },
    /// A record, or the records of one group, that no segment has room for.
    #[error("{size_bytes} B can't be appended at once, the limit is {limit_bytes} B")]
    TooLarge {
        /// With headers.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// A write or a sync has failed before. Nothing more is accepted; open the log anew.
    #[error("the log is stopped: {because}")]
    Poisoned {
        /// What failed.
        because: String,
    },
    /// Something that had been durable is broken or missing.
    #[error("{file} is damaged at offset {offset}: {because}")]
    Damaged {
        /// The segment.
        file: FileName,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        because: String,
    },
    /// Waiting has taken too long.
    #[error("position {} isn't durable after {waited_ms} ms", .lsn.0)]
    Timeout {
        /// Waited for.
        lsn: Lsn,
        /// How long.
        waited_ms: u64,
    },
    /// The device failed during recovery.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

#[derive(Clone, Debug)]
struct Segment {
    file: FileName,
    base: u64,
    salt: u64,
    created: bool,
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
        op: DeviceOp,
        end: u64,
    },
}

/// A write-ahead log.
#[derive(Debug)]
pub struct Wal<D> {
    device: D,
    options: WalOptions,
    /// In order; the last is the one that is filled. Never empty.
    segments: VecDeque<Segment>,
    /// Behind each other; the last is the one that is filled. Never empty.
    chunks: VecDeque<Chunk>,
    steps: VecDeque<Step>,
    on_its_way: Option<(Token, Step)>,
    durable: u64,
    /// Commit all before this position.
    wanted: u64,
    first_waiting_us: Option<u64>,
    now_us: u64,
    poisoned: Option<String>,
}

impl<D: Device> Wal<D> {
    /// Opens the log in the device's directory, or begins one. `replay` gets each surviving record in order; after an error what it got must
    /// be dropped.
    ///
    /// A torn end (a write that a crash interrupted) is cut off. What had been durable and is broken or missing is [`WalError::Damaged`].
    /// Damage to the very last write alone can't be told from a torn one, and is cut off.
    pub fn open(mut device: D, options: WalOptions, mut replay: impl FnMut(Lsn, &[u8])) -> Result<Self, WalError> {
        assert!(options.segment_bytes >= 8192 && options.segment_bytes <= 1 << 30, "segments have 8 KiB to 1 GiB");
        let segments = recovery::recover(&mut device, &mut replay)?;
        let (mut tail, mut known) = (0, VecDeque::new());
        for (header, end) in segments {
            tail = end;
            known.push_back(Segment { file: segment_name(header.base), base: header.base, salt: header.salt, created: true });
        }
        let mut wal = Self {
            device,
            options,
            segments: known,
            chunks: VecDeque::from([Chunk { start: tail, bytes: Vec::new() }]),
            steps: VecDeque::new(),
            on_its_way: None,
            durable: tail,
            wanted: tail,
            first_waiting_us: None,
            now_us: 0,
            poisoned: None,
        };
        if wal.segments.is_empty() {
            wal.start_segment(tail);
            for step in wal.creation(tail) {
                if let Step::Prepare(op) = step {
                    wal.device.execute(op)?;
                }
            }
            wal.segments[0].created = true;
        }
        Ok(wal)
    }

    fn start_segment(&mut self, base: u64) {
        let salt = (self.options.salt ^ base).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31) ^ self.options.salt;
        self.segments.push_back(Segment { file: segment_name(base), base, salt, created: false });
    }

    /// What makes a segment. Its header is durable, and so is its name, before the first record is written.
    fn creation(&self, base: u64) -> Vec<Step> {
        let Some(segment) = self.segments.iter().find(|s| s.base == base) else { return Vec::new() };
        let file = || segment.file.clone();
        let header = SegmentHeader { salt: segment.salt, base, file_bytes: self.options.segment_bytes };
        vec![
            Step::Prepare(DeviceOp::Create { file: file() }),
            Step::Prepare(DeviceOp::Allocate { file: file(), len: self.options.segment_bytes }),
            Step::Prepare(DeviceOp::WriteSync { file: file(), offset: 0, data: header.encode() }),
            Step::Prepare(DeviceOp::SyncDir),
            Step::Created { base },
        ]
    }

    /// Most that one record, or one group, may take.
    fn group_bytes_max(&self) -> usize {
        ((self.options.segment_bytes as usize) - HEADER_BYTES).min(self.options.pending_bytes_max)
    }

    /// Appends a record; it is durable once [`durable`](Self::durable) is above the position returned. Never blocks.
    pub fn append(&mut self, payload: &[u8]) -> Result<Lsn, WalError> {
        self.append_batch(&[payload])
    }

    /// Appends records of which a crash keeps all or none. The position of the first.
    pub fn append_batch(&mut self, payloads: &[&[u8]]) -> Result<Lsn, WalError> {
        self.check()?;
        let size_bytes: usize = payloads.iter().map(|p| record_bytes(p.len())).sum();
        let limit_bytes = self.group_bytes_max();
        if size_bytes > limit_bytes || payloads.iter().any(|p| p.len() > limit_bytes) {
            return Err(WalError::TooLarge { size_bytes, limit_bytes });
        }
        let (start, pending_bytes) = (self.tail().0, self.pending_bytes());
        if pending_bytes + size_bytes > self.options.pending_bytes_max {
            return Err(WalError::Full { pending_bytes, limit_bytes: self.options.pending_bytes_max });
        }
        let base = self.segments.back().map_or(0, |s| s.base);
        if start - base + size_bytes as u64 > self.options.segment_bytes - HEADER_BYTES as u64 {
            self.start_segment(start);
            self.chunks.push_back(Chunk { start, bytes: Vec::new() });
        }
        let chunk = self.chunks.back_mut().expect("there is always a chunk");
        for (i, payload) in payloads.iter().enumerate() {
            push_record(&mut chunk.bytes, payload, if i + 1 == payloads.len() { LAST_OF_GROUP } else { 0 });
        }
        self.first_waiting_us.get_or_insert(self.now_us);
        Ok(Lsn(start))
    }

    fn check(&self) -> Result<(), WalError> {
        match &self.poisoned {
            Some(because) => Err(WalError::Poisoned { because: because.clone() }),
            None => Ok(()),
        }
    }

    /// Where the next record goes.
    #[must_use]
    pub fn tail(&self) -> Lsn {
        let chunk = self.chunks.back().expect("there is always a chunk");
        Lsn(chunk.start + chunk.bytes.len() as u64)
    }

    /// All below is durable.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        Lsn(self.durable)
    }

    /// The first position that is kept.
    #[must_use]
    pub fn begin(&self) -> Lsn {
        Lsn(self.segments.front().map_or(0, |s| s.base))
    }

    /// What waits to become durable.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        (self.tail().0 - self.durable) as usize
    }

    /// Asks for all that was appended to be made durable; the position to wait for.
    pub fn commit(&mut self) -> Result<Lsn, WalError> {
        self.wanted = self.tail().0;
        self.advance()?;
        Ok(Lsn(self.wanted))
    }

    /// Takes completions and begins what is due at `now_us`, a clock of the caller's that never goes back.
    pub fn poll(&mut self, now_us: u64) -> Result<(), WalError> {
        self.now_us = now_us;
        self.advance()
    }

    fn advance(&mut self) -> Result<(), WalError> {
        let mut done = Vec::new();
        self.device.poll(&mut done);
        for completion in done {
            if let Some((token, step)) = self.on_its_way.take() {
                if token != completion.token {
                    self.on_its_way = Some((token, step));
                    continue;
                }
                if let Err(e) = completion.result {
                    self.poisoned.get_or_insert_with(|| e.to_string());
                }
                if let (Step::Batch { end, .. }, None) = (step, &self.poisoned) {
                    self.durable = end;
                }
            }
        }
        self.check()?;
        while self.on_its_way.is_none() {
            let Some(step) = self.steps.pop_front() else {
                if !self.plan() {
                    break;
                }
                continue;
            };
            let op = match &step {
                Step::Prepare(op) | Step::Batch { op, .. } => op.clone(),
                Step::Created { base } => {
                    self.segments.iter_mut().filter(|s| s.base == *base).for_each(|s| s.created = true);
                    continue;
                }
            };
            let step = match step {
                // The data went with the operation.
                Step::Batch { end, .. } => Step::Batch { op: DeviceOp::SyncDir, end },
                other => other,
            };
            self.on_its_way = Some((self.device.submit(op), step));
        }
        Ok(())
    }

    /// Seals what waits, when it is due; whether it did.
    fn plan(&mut self) -> bool {
        let waiting = self.tail().0 - self.durable;
        let is_late =
            self.first_waiting_us.is_some_and(|first| self.now_us >= first.saturating_add(self.options.commit_interval_us));
        let due = self.wanted > self.durable || waiting >= self.options.commit_bytes as u64 || is_late;
        if waiting == 0 || !due {
            return false;
        }
        while self.chunks.len() > 1 && self.chunks[0].bytes.is_empty() {
            self.chunks.pop_front();
        }
        let chunk = &mut self.chunks[0];
        let (start, mut data) = (chunk.start, std::mem::take(&mut chunk.bytes));
        chunk.start += data.len() as u64;
        let end = chunk.start;
        debug_assert_eq!(start, self.durable);
        if self.chunks.len() == 1 {
            self.first_waiting_us = None;
        }
        let segment =
            self.segments.iter().rev().find(|s| s.base <= start).expect("a chunk's segment is kept until it is durable");
        let (base, created) = (segment.base, segment.created);
        seal(&mut data, segment.salt, start);
        let op = DeviceOp::WriteSync { file: segment.file.clone(), offset: HEADER_BYTES as u64 + start - base, data };
        if !created {
            let creation = self.creation(base);
            self.steps.extend(creation);
        }
        self.steps.push_back(Step::Batch { op, end });
        true
    }

    /// Waits until all below `lsn` is durable, for `timeout` at most. Does not ask for it: [`commit`](Self::commit) does.
    pub fn wait_durable(&mut self, lsn: Lsn, timeout: Duration) -> Result<(), WalError> {
        let start = Instant::now();
        loop {
            self.advance()?;
            if self.durable >= lsn.0 {
                return Ok(());
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(WalError::Timeout { lsn, waited_ms: timeout.as_millis() as u64 });
            }
            self.device.wait(left.min(Duration::from_millis(50)));
        }
    }

    /// Says that records below `lsn` are needed no more. Segments that hold nothing else are removed, in order, each durably before the
    /// next; records of the first segment kept are still replayed.
    pub fn truncate_before(&mut self, lsn: Lsn) -> Result<(), WalError> {
        self.check()?;
        while self.segments.len() > 1 {
            let next = &self.segments[1];
            if next.base > lsn.0 || next.base > self.durable || !next.created {
                break;
            }
            if let Some(gone) = self.segments.pop_front() {
                self.steps.push_back(Step::Prepare(DeviceOp::Remove { file: gone.file }));
                self.steps.push_back(Step::Prepare(DeviceOp::SyncDir));
            }
        }
        self.advance()
    }

    /// Whether nothing is on its way and nothing waits to be.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.on_its_way.is_none() && self.steps.is_empty() && self.pending_bytes() == 0
    }

    /// The device; a log that is dropped leaves what is on its way to it.
    pub fn into_device(self) -> D {
        self.device
    }

    /// The device.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }
}
