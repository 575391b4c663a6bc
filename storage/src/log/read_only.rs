//! A log as another process writes it.

use std::time::{Duration, Instant};

use crate::device::Device;
use crate::segment::{LogError, Lsn};

use super::LogRecord;
use super::reader::Reader;
use super::state::LogState;

/// How often a tailing scan looks whether the writer has written more.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A log opened for reading alone, beside its writer or without one: takes no lock and changes nothing.
///
/// What it shows are whole groups that have been written. The last of them, the part from [`durable_at_least`](Self::durable_at_least) to
/// [`end`](Self::end), may still be on its way to the disk: should the writer's machine crash at that moment, its log may go on without
/// them.
#[derive(Debug)]
pub struct ReadOnlyLog<D> {
    reader: Reader<D>,
    state: LogState,
    end: u64,
    durable_at_least: u64,
    lost_bytes: u64,
}

impl<D: Device> ReadOnlyLog<D> {
    /// Opens the log in the device's directory; an empty directory holds an empty log. Reads its newest segment only.
    pub fn open(device: D) -> Result<Self, LogError> {
        let mut log =
            Self { reader: Reader::new(device), state: LogState::default(), end: 0, durable_at_least: 0, lost_bytes: 0 };
        log.restart()?;
        Ok(log)
    }

    /// Looks for the log's end anew, in its newest segments.
    fn restart(&mut self) -> Result<(), LogError> {
        let bases = self.reader.bases()?;
        let Some(first) = bases.first() else { return Ok(()) };
        // Every segment's first record says where the log begins, but the newest may not have one yet.
        for base in bases.iter().rev().take(2) {
            self.end = *base;
            if self.follow()? {
                return Ok(());
            }
        }
        self.state.begin = self.state.begin.max(*first);
        Ok(())
    }

    /// Takes notice of what has been written since.
    pub fn refresh(&mut self) -> Result<(), LogError> {
        match self.follow() {
            // The writer has given up all that was known: go on at its newest segment.
            Err(LogError::Truncated { .. }) => self.restart(),
            other => other.map(|_| ()),
        }
    }

    /// Walks from the known end on; whether begin and iterators were read on the way.
    fn follow(&mut self) -> Result<bool, LogError> {
        let (mut position, mut found, mut pending) = (self.end, false, None);
        while let Some(step) = self.reader.step(position)? {
            if step.is_control {
                let (file, _) = self.reader.place(position);
                let Some(state) = LogState::decode(self.reader.payload(&step.payload)) else {
                    let because = format!("the control record at position {position} is of a kind that is not known");
                    return Err(LogError::Unsupported { file, because });
                };
                pending = Some(state);
            }
            position = step.next;
            if step.is_last {
                self.end = position;
                self.durable_at_least = self.durable_at_least.max(step.batch_start);
                if let Some(state) = pending.take() {
                    self.state = state;
                    found = true;
                }
            }
        }
        if let Some(later) = self.reader.bases()?.into_iter().find(|base| *base > position) {
            // Segments follow each other without gaps, so there should have been a record; unless it has come just now.
            if self.reader.step(position)?.is_none() && self.reader.step(later)?.is_some() {
                return Err(self.reader.damaged(position));
            }
        }
        Ok(found)
    }

    /// The first position that is kept.
    #[must_use]
    pub fn begin(&self) -> Lsn {
        Lsn(self.state.begin)
    }

    /// Behind the last whole group that has been written, as of the last [`refresh`](Self::refresh).
    #[must_use]
    pub fn end(&self) -> Lsn {
        Lsn(self.end)
    }

    /// All below is surely durable.
    #[must_use]
    pub fn durable_at_least(&self) -> Lsn {
        Lsn(self.durable_at_least)
    }

    /// Where a named iterator of the writer's stands.
    #[must_use]
    pub fn iterator(&self, name: &str) -> Option<Lsn> {
        self.state.iterators.get(name).copied().map(Lsn)
    }

    /// Bytes that repair has left out of what was scanned.
    #[must_use]
    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    /// The record that begins at a position.
    pub fn read(&mut self, lsn: Lsn) -> Result<Vec<u8>, LogError> {
        self.check(lsn)?;
        if lsn >= self.end() {
            return Err(LogError::BeyondEnd { lsn, end: self.end() });
        }
        match self.reader.step(lsn.0)? {
            Some(step) if !step.is_control && !step.is_filler => Ok(self.reader.payload(&step.payload).to_vec()),
            _ => Err(LogError::NoRecord { lsn }),
        }
    }

    fn check(&self, lsn: Lsn) -> Result<(), LogError> {
        let begin = self.begin();
        if lsn < begin { Err(LogError::Truncated { lsn, begin }) } else { Ok(()) }
    }

    /// The first record at or behind `cursor`, and moves the cursor behind it; `None` at the end that is known.
    pub fn next(&mut self, cursor: &mut Lsn) -> Result<Option<LogRecord<'_>>, LogError> {
        self.check(*cursor)?;
        let mut position = self.reader.align(cursor.0, self.end)?;
        let found = self.reader.next(&mut position, self.end, &mut self.lost_bytes);
        let found = found.map_err(|e| self.truncated_meanwhile(*cursor, e))?;
        *cursor = Lsn(position);
        Ok(found.map(|(lsn, range)| LogRecord { lsn, payload: self.reader.payload(&range) }))
    }

    fn truncated_meanwhile(&mut self, lsn: Lsn, error: LogError) -> LogError {
        if self.refresh().is_ok() && lsn < self.begin() { LogError::Truncated { lsn, begin: self.begin() } } else { error }
    }

    /// As [`next`](Self::next), but waits at the end until the writer has written more, for `timeout` at most.
    pub fn next_or_wait(&mut self, cursor: &mut Lsn, timeout: Duration) -> Result<Option<LogRecord<'_>>, LogError> {
        let start = Instant::now();
        while cursor.0 >= self.end {
            self.refresh()?;
            if cursor.0 < self.end {
                break;
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            std::thread::sleep(LOOK_EVERY.min(left));
        }
        self.next(cursor)
    }

    /// The device.
    pub fn into_device(self) -> D {
        self.reader.into_device()
    }
}
