//! A write-ahead log over a [`Device`], for one owner: append, commit in groups, recover after a crash, give space back.

mod commit;

use std::time::{Duration, Instant};

use crate::device::Device;
use crate::segment::format::CONTROL;
use crate::segment::repair::{RepairPolicy, RepairReport};
use crate::segment::{LogError, LogOptions, Lsn, Pump, SegmentKind, Writer, recovery, repair};

pub use commit::{Commit, SourceOffset};

/// Bounds of a write-ahead log.
pub type WalOptions = LogOptions;
/// What a write-ahead log refuses or suffers.
pub type WalError = LogError;

/// What recovery gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalEntry<'a> {
    /// What [`Wal::append`] was given.
    Record(&'a [u8]),
    /// What [`Wal::append_commit`] was given.
    Commit(Commit),
}

/// A write-ahead log.
#[derive(Debug)]
pub struct Wal<D> {
    pump: Pump<D>,
    writer: Writer,
    last_commit: Option<Commit>,
}

impl<D: Device> Wal<D> {
    /// Opens the log in the device's directory, or begins one. `replay` gets each surviving entry in order; after an error what it got must
    /// be dropped.
    ///
    /// A torn end (a write that a crash interrupted) is cut off. What had been durable and is broken or missing is [`WalError::Damaged`];
    /// see [`Wal::repair`].
    pub fn open(mut device: D, options: WalOptions, mut replay: impl FnMut(Lsn, WalEntry<'_>)) -> Result<Self, WalError> {
        let (mut last_commit, mut undecodable) = (None, None);
        let recovered = recovery::recover(&mut device, SegmentKind::Wal, &mut |lsn, entry| {
            if !entry.is_control {
                return replay(lsn, WalEntry::Record(entry.payload));
            }
            match Commit::decode(entry.payload) {
                Some((commit, is_here)) => {
                    last_commit = Some(commit.clone());
                    if is_here {
                        replay(lsn, WalEntry::Commit(commit));
                    }
                }
                None => undecodable = undecodable.or(Some(lsn)),
            }
        })?;
        if let Some(lsn) = undecodable {
            let because = format!("the commit record at position {} is of a kind that is not known", lsn.0);
            let segment = recovered.segments.iter().rev().find(|s| s.header.base <= lsn.0).map_or(0, |s| s.header.base);
            return Err(WalError::Unsupported { file: SegmentKind::Wal.name(segment), because });
        }
        let preamble_max = preamble_bytes_max(&options);
        let preamble = last_commit.as_ref().map_or_else(Vec::new, |c: &Commit| Commit::repeated(c.encode()));
        if preamble.len() > preamble_max {
            return Err(WalError::TooLarge { size_bytes: preamble.len(), limit_bytes: preamble_max });
        }
        let mut writer = Writer::new(SegmentKind::Wal, options, &recovered, preamble, preamble_max);
        writer.begin_first_segment();
        while let Some(task) = writer.next_task() {
            writer.finished(device.execute(task.into_op()).map(|_| ()));
        }
        writer.check()?;
        Ok(Self { pump: Pump::new(device), writer, last_commit })
    }

    /// Looks for damage in the log of the device's directory, which must not be open, and says what [`repair`](Self::repair) would do.
    pub fn examine(device: &mut D, policy: RepairPolicy) -> Result<RepairReport, WalError> {
        repair::repair(device, SegmentKind::Wal, policy, false)
    }

    /// Makes a damaged log one that opens. Copies of all files that are changed are kept beside them; the report says what is lost. A log
    /// that is whole isn't changed.
    pub fn repair(device: &mut D, policy: RepairPolicy) -> Result<RepairReport, WalError> {
        repair::repair(device, SegmentKind::Wal, policy, true)
    }

    /// Appends a record; it is durable once [`durable`](Self::durable) is above the position returned. Never blocks.
    pub fn append(&mut self, payload: &[u8]) -> Result<Lsn, WalError> {
        self.append_batch(&[payload])
    }

    /// Appends records of which a crash keeps all or none. The position of the first.
    pub fn append_batch(&mut self, payloads: &[&[u8]]) -> Result<Lsn, WalError> {
        self.writer.append(payloads, 0)
    }

    /// Appends a commit record: how far sources and time had come when all before it was appended. The newest one outlives truncation. It
    /// asks for nothing to be written; [`commit`](Self::commit) does.
    pub fn append_commit(&mut self, commit: &Commit) -> Result<Lsn, WalError> {
        let payload = commit.encode();
        let repeated = Commit::repeated(payload.clone());
        self.writer.preamble_fits(&repeated)?;
        let lsn = self.writer.append(&[&payload], CONTROL)?;
        self.writer.set_preamble(repeated)?;
        self.last_commit = Some(commit.clone());
        Ok(lsn)
    }

    /// The newest commit record: of those recovered and appended since.
    #[must_use]
    pub fn last_commit(&self) -> Option<&Commit> {
        self.last_commit.as_ref()
    }

    /// Where the next record goes.
    #[must_use]
    pub fn tail(&self) -> Lsn {
        self.writer.tail()
    }

    /// All below is durable.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.writer.durable()
    }

    /// The first position that is kept.
    #[must_use]
    pub fn begin(&self) -> Lsn {
        self.writer.first()
    }

    /// What waits to become durable.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.writer.pending_bytes()
    }

    /// Asks for all that was appended to be made durable; the position to wait for.
    pub fn commit(&mut self) -> Result<Lsn, WalError> {
        let lsn = self.writer.commit();
        self.advance()?;
        Ok(lsn)
    }

    /// Takes completions and begins what is due at `now_us`, a clock of the caller's that never goes back.
    pub fn poll(&mut self, now_us: u64) -> Result<(), WalError> {
        self.writer.set_now(now_us);
        self.advance()
    }

    fn advance(&mut self) -> Result<(), WalError> {
        if let Some(result) = self.pump.finished() {
            self.writer.finished(result);
        }
        self.writer.check()?;
        if self.pump.is_free()
            && let Some(task) = self.writer.next_task()
        {
            self.pump.submit(task);
        }
        Ok(())
    }

    /// Waits until all below `lsn` is durable, for `timeout` at most. Does not ask for it: [`commit`](Self::commit) does.
    pub fn wait_durable(&mut self, lsn: Lsn, timeout: Duration) -> Result<(), WalError> {
        let start = Instant::now();
        loop {
            self.advance()?;
            if self.durable() >= lsn {
                return Ok(());
            }
            if lsn > self.tail() {
                return Err(WalError::BeyondEnd { lsn, end: self.tail() });
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(WalError::Timeout { lsn, waited_ms: timeout.as_millis() as u64 });
            }
            self.pump.wait(left);
        }
    }

    /// Says that records below `lsn` are needed no more. Segments that hold nothing else are removed, in order, each durably before the
    /// next; records of the first segment kept are still replayed.
    pub fn truncate_before(&mut self, lsn: Lsn) -> Result<(), WalError> {
        self.writer.check()?;
        self.writer.remove_segments_before(lsn);
        self.advance()
    }

    /// Whether nothing is on its way and nothing waits to be.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pump.is_free() && self.writer.is_idle()
    }

    /// The device; a log that is dropped leaves what is on its way to it.
    pub fn into_device(self) -> D {
        self.pump.into_device()
    }

    /// The device.
    pub fn device_mut(&mut self) -> &mut D {
        self.pump.device_mut()
    }
}

/// A commit record is repeated in each segment, so it may take a quarter of one at most.
fn preamble_bytes_max(options: &WalOptions) -> usize {
    (options.segment_bytes as usize / 4).min(options.pending_bytes_max / 4).min(1 << 20)
}
