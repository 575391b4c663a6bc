//! A log for many appenders and readers: append, commit in groups, scan, follow, read by position, give space back.
//!
//! ```text
//! appenders ──lock, copy──▶ core ──task──▶ the log's thread ──▶ device (write + fdatasync)
//! scans ◀── files, up to what is durable
//! ```

mod core;
mod owned;
mod read_only;
mod reader;
mod shared;
mod state;

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::device::{Device, DeviceError, ReadOnlyDevice, open_device};
use crate::segment::{LogError, LogOptions, Lsn, RepairPolicy, RepairReport, SegmentKind, repair};
use crate::sync::{Arc, thread};

use self::core::LogCore;
use reader::Reader;
use shared::Shared;

pub use owned::OwnedLog;
pub use read_only::ReadOnlyLog;
pub(crate) use state::LogState;
pub use state::{ITERATOR_NAME_BYTES_MAX, ITERATORS_MAX};

/// So long closing a log waits for its device.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(30);

/// Opens a log's directory once more, to read.
pub type OpenForReading = dyn Fn() -> Result<Box<dyn Device + Send>, DeviceError> + Send + Sync;

/// A record of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRecord<'a> {
    /// Where it begins.
    pub lsn: Lsn,
    /// What was appended.
    pub payload: &'a [u8],
}

/// A log that is open for writing. All calls take `&self`; none but those that say so wait for the disk.
pub struct Log {
    shared: Arc<Shared>,
    open_for_reading: Box<OpenForReading>,
    thread: Option<thread::JoinHandle<Result<(), LogError>>>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("bounds", &self.shared.bounds()).finish_non_exhaustive()
    }
}

impl Log {
    /// Opens the log in a directory of the file system, or begins one; by io_uring where that is allowed and there.
    pub fn open_directory(directory: &Path, options: LogOptions, allow_io_uring: bool) -> Result<Self, LogError> {
        let (device, _) = open_device(directory, allow_io_uring)?;
        let directory = directory.to_owned();
        let for_reading = move || ReadOnlyDevice::open(&directory).map(|d| Box::new(d) as Box<dyn Device + Send>);
        Self::open(device, Box::new(for_reading), options)
    }

    /// Opens the log in the device's directory, or begins one. `open_for_reading` opens the same directory for each scan.
    pub fn open(
        mut device: impl Device + Send + 'static,
        open_for_reading: Box<OpenForReading>,
        options: LogOptions,
    ) -> Result<Self, LogError> {
        let shared = Arc::new(Shared::new(LogCore::open(&mut device, options)?));
        let its = Arc::clone(&shared);
        let thread = thread::Builder::new().name("tiderace-log".to_owned()).spawn(move || its.run(&mut device));
        let thread = thread.map_err(|e| DeviceError::Io { what: "start the log's thread".to_owned(), message: e.to_string() })?;
        Ok(Self { shared, open_for_reading, thread: Some(thread) })
    }

    /// Looks for damage in the log of a device's directory and, if `apply`, repairs it: see [`RepairPolicy`]. Copies of all files that are
    /// changed are kept; the log must not be open.
    pub fn repair(device: &mut impl Device, policy: RepairPolicy, apply: bool) -> Result<RepairReport, LogError> {
        repair::repair(device, SegmentKind::Log, policy, apply)
    }

    /// Appends a record: durable once [`durable`](Self::durable) is above the position returned. [`LogError::Full`] when too much waits.
    pub fn append(&self, payload: &[u8]) -> Result<Lsn, LogError> {
        self.shared.append(&[payload])
    }

    /// Appends records of which a crash keeps all or none, and between which no other thread's come. The position of the first.
    pub fn append_batch(&self, payloads: &[&[u8]]) -> Result<Lsn, LogError> {
        self.shared.append(payloads)
    }

    /// As [`append_batch`](Self::append_batch), but waits for room, for `timeout` at most.
    pub fn append_or_wait(&self, payloads: &[&[u8]], timeout: Duration) -> Result<Lsn, LogError> {
        self.shared.append_or_wait(payloads, timeout)
    }

    /// Asks for all that was appended to be made durable, and doesn't wait; the position to wait for.
    pub fn commit(&self) -> Result<Lsn, LogError> {
        self.shared.commit()
    }

    /// Waits until all below `until` is durable, for `timeout` at most. Does not ask for it.
    pub fn wait_for_commit(&self, until: Lsn, timeout: Duration) -> Result<(), LogError> {
        self.shared.wait(until, timeout)
    }

    /// Appends a record and waits until it is durable.
    pub fn append_and_wait(&self, payload: &[u8], timeout: Duration) -> Result<Lsn, LogError> {
        let lsn = self.append(payload)?;
        let until = self.commit()?;
        self.wait_for_commit(until, timeout)?;
        Ok(lsn)
    }

    /// The first position that is kept.
    pub fn begin(&self) -> Result<Lsn, LogError> {
        self.shared.bounds().map(|(begin, ..)| begin)
    }

    /// All below is durable.
    pub fn durable(&self) -> Result<Lsn, LogError> {
        self.shared.bounds().map(|(_, durable, _)| durable)
    }

    /// Where the next record goes.
    pub fn tail(&self) -> Result<Lsn, LogError> {
        self.shared.bounds().map(|(.., tail)| tail)
    }

    /// Gives up all below `lsn`, which is durable: it can't be read from now on, and files that hold nothing else are removed once that is
    /// durable too. The position to wait for.
    pub fn truncate_before(&self, lsn: Lsn) -> Result<Lsn, LogError> {
        self.shared.change(|core| core.truncate_before(lsn))
    }

    /// Where a named iterator stands.
    pub fn iterator(&self, name: &str) -> Result<Option<Lsn>, LogError> {
        Ok(self.shared.state()?.iterators.get(name).copied().map(Lsn))
    }

    /// All named iterators, by name.
    pub fn iterators(&self) -> Result<Vec<(String, Lsn)>, LogError> {
        Ok(self.shared.state()?.iterators.into_iter().map(|(name, at)| (name, Lsn(at))).collect())
    }

    /// Sets a named iterator, and makes it where there is none. It survives once all below the position returned is durable.
    pub fn set_iterator(&self, name: &str, position: Lsn) -> Result<Lsn, LogError> {
        self.shared.change(|core| core.set_iterator(name, position))
    }

    /// Forgets a named iterator. The position to wait for.
    pub fn remove_iterator(&self, name: &str) -> Result<Lsn, LogError> {
        self.shared.change(|core| core.remove_iterator(name))
    }

    /// A scan that begins with the first record at or behind `from`.
    pub fn scan(&self, from: Lsn) -> Result<LogScan, LogError> {
        let reader = Reader::new((self.open_for_reading)()?);
        Ok(LogScan { shared: Arc::clone(&self.shared), reader, position: from.0, aligned: false, lost_bytes: 0, found: None })
    }

    /// The durable record that begins at a position. Who reads many keeps a [`LogScan`] and asks that.
    pub fn read(&self, lsn: Lsn) -> Result<Vec<u8>, LogError> {
        self.scan(lsn)?.read(lsn)
    }

    /// Makes all durable that was appended, and ends.
    pub fn close(mut self) -> Result<(), LogError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), LogError> {
        self.shared.stop();
        if self.thread.is_some() && !self.shared.wait_ended(CLOSE_WAIT_MAX) {
            // A device that doesn't answer must not hold its owner for ever; what isn't durable by now may never be.
            self.thread = None;
            let (_, lsn, _) = self.shared.bounds()?;
            return Err(LogError::Timeout { lsn, waited_ms: CLOSE_WAIT_MAX.as_millis() as u64 });
        }
        match self.thread.take().map(thread::JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(LogError::Poisoned { because: "the log's thread panicked".to_owned() }),
            None => Ok(()),
        }
    }
}

impl Drop for Log {
    /// As [`Log::close`], whose result nobody sees here.
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "a log was dropped and could not make its end durable");
        }
    }
}

/// Reads durable records in order, beside appenders and truncation. May outlive its log.
#[derive(Debug)]
pub struct LogScan {
    shared: Arc<Shared>,
    reader: Reader<Box<dyn Device + Send>>,
    position: u64,
    aligned: bool,
    lost_bytes: u64,
    /// The record that the last step reached, in the reader's buffer.
    found: Option<(Lsn, Range<usize>)>,
}

impl LogScan {
    /// Where it stands: what to set a named iterator to when all that was returned has been dealt with.
    #[must_use]
    pub fn position(&self) -> Lsn {
        Lsn(self.position)
    }

    /// Bytes that repair has left out of what was scanned.
    #[must_use]
    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    fn durable(&self, lsn: Lsn) -> Result<Lsn, LogError> {
        let (begin, durable, _) = self.shared.bounds()?;
        if lsn < begin { Err(LogError::Truncated { lsn, begin }) } else { Ok(durable) }
    }

    /// The next durable record; `None` when there is no more now. [`LogError::Truncated`] when the log has given up the place meanwhile.
    #[allow(clippy::should_implement_trait, reason = "lends from the scan's buffer")]
    pub fn next(&mut self) -> Result<Option<LogRecord<'_>>, LogError> {
        self.advance()?;
        Ok(self.found.take().map(|(lsn, range)| LogRecord { lsn, payload: self.reader.payload(&range) }))
    }

    fn advance(&mut self) -> Result<Option<()>, LogError> {
        let lsn = Lsn(self.position);
        let end = self.durable(lsn)?.0;
        let mut position = self.position;
        if !self.aligned {
            position = self.reader.align(position, end).map_err(|e| self.truncated_meanwhile(lsn, e))?;
            self.aligned = position < end;
        }
        let found = self.reader.next(&mut position, end, &mut self.lost_bytes);
        let found = found.map_err(|e| self.truncated_meanwhile(lsn, e))?;
        self.position = position;
        self.found = found;
        Ok(self.found.as_ref().map(|_| ()))
    }

    /// A file that goes while it is read was given up, and that is no damage.
    fn truncated_meanwhile(&self, lsn: Lsn, error: LogError) -> LogError {
        match self.durable(lsn) {
            Err(truncated @ LogError::Truncated { .. }) => truncated,
            _ => error,
        }
    }

    /// As [`next`](Self::next), but waits at the end until more is durable, for `timeout` at most.
    pub fn next_or_wait(&mut self, timeout: Duration) -> Result<Option<LogRecord<'_>>, LogError> {
        let start = Instant::now();
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            let durable = self.shared.wait_progress(Lsn(self.position), left)?;
            let is_over = durable.0 <= self.position;
            // What came may be the log's own.
            if is_over || self.advance()?.is_some() {
                return Ok(self.found.take().map(|(lsn, range)| LogRecord { lsn, payload: self.reader.payload(&range) }));
            }
        }
    }

    /// The durable record that begins at a position; the scan stays where it is.
    pub fn read(&mut self, lsn: Lsn) -> Result<Vec<u8>, LogError> {
        let end = self.durable(lsn)?;
        if lsn >= end {
            return Err(LogError::BeyondEnd { lsn, end });
        }
        match self.reader.step(lsn.0).map_err(|e| self.truncated_meanwhile(lsn, e))? {
            Some(step) if !step.is_control && !step.is_filler => Ok(self.reader.payload(&step.payload).to_vec()),
            _ => Err(LogError::NoRecord { lsn }),
        }
    }
}
