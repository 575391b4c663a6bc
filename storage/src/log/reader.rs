//! Reads a log's records from its files, whoever writes them meanwhile.

use std::ops::Range;

use crate::device::{Device, DeviceError, FileName};
use crate::segment::format::{HEADER_BYTES, HeaderError, RECORD_HEADER_BYTES, SegmentHeader, length_at, record_at};
use crate::segment::recovery::{self, SEGMENT_BYTES_MAX};
use crate::segment::{LogError, Lsn, SegmentKind};

/// So much is read at once.
const READ_BYTES: usize = 256 << 10;
/// Files may go between being listed and being read; then all is looked at again, so often at most.
const LOOKS_MAX: usize = 8;

/// What is at a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The payload, in the reader's buffer.
    pub(super) payload: Range<usize>,
    pub(super) is_control: bool,
    pub(super) is_filler: bool,
    pub(super) is_last: bool,
    /// Where the write began that brought it: all before was durable then.
    pub(super) batch_start: u64,
    /// Position of what follows.
    pub(super) next: u64,
}

#[derive(Clone, Debug)]
struct Segment {
    file: FileName,
    header: SegmentHeader,
}

/// Reads records by position.
#[derive(Debug)]
pub(super) struct Reader<D> {
    device: D,
    segment: Option<Segment>,
    buffer: Vec<u8>,
    /// Position of the buffer's first byte.
    buffer_at: u64,
}

impl<D: Device> Reader<D> {
    pub(super) fn new(device: D) -> Self {
        Self { device, segment: None, buffer: Vec::new(), buffer_at: 0 }
    }

    pub(super) fn into_device(self) -> D {
        self.device
    }

    /// A payload that a step has told.
    pub(super) fn payload(&self, range: &Range<usize>) -> &[u8] {
        &self.buffer[range.clone()]
    }

    /// The record at a position; `None` when there is no valid one (yet).
    pub(super) fn step(&mut self, position: u64) -> Result<Option<Step>, LogError> {
        if self.segment.as_ref().is_some_and(|s| s.header.base <= position) {
            match self.try_step(position) {
                Ok(None) | Err(LogError::Device(DeviceError::NotFound { .. })) => {}
                other => return other,
            }
        }
        // Written since the buffer was read, or in another segment.
        for _ in 0..LOOKS_MAX {
            self.forget();
            match self.locate(position).and_then(|found| if found { self.try_step(position) } else { Ok(None) }) {
                Err(LogError::Device(DeviceError::NotFound { .. })) => {}
                other => return other,
            }
        }
        Ok(None)
    }

    fn forget(&mut self) {
        self.segment = None;
        self.buffer.clear();
    }

    /// Bases of the segments, ascending.
    pub(super) fn bases(&mut self) -> Result<Vec<u64>, LogError> {
        Ok(recovery::list(&mut self.device, SegmentKind::Log)?.into_iter().map(|(base, ..)| base).collect())
    }

    /// Finds the segment that holds a position; whether there is one.
    pub(super) fn locate(&mut self, position: u64) -> Result<bool, LogError> {
        let names = recovery::list(&mut self.device, SegmentKind::Log)?;
        if let Some((first, ..)) = names.first()
            && *first > position
        {
            return Err(LogError::Truncated { lsn: Lsn(position), begin: Lsn(*first) });
        }
        // The newest may not have its header yet; what is written is in the one before then.
        for (base, file, _) in names.into_iter().rev().filter(|(base, ..)| *base <= position).take(2) {
            let bytes = recovery::read(&mut self.device, &file, 0, HEADER_BYTES)?;
            match SegmentHeader::decode(&bytes, SegmentKind::Log) {
                Ok(header) if header.base == base => {
                    self.segment = Some(Segment { file, header });
                    return Ok(true);
                }
                Err(e @ HeaderError::Unsupported { .. }) => {
                    return Err(LogError::Unsupported { file, because: e.to_string() });
                }
                _ => {}
            }
        }
        Ok(false)
    }

    /// File and offset of a position, for messages.
    pub(super) fn place(&self, position: u64) -> (FileName, u64) {
        match &self.segment {
            Some(s) => (s.file.clone(), HEADER_BYTES as u64 + position.saturating_sub(s.header.base)),
            None => (SegmentKind::Log.name(position), 0),
        }
    }

    fn try_step(&mut self, position: u64) -> Result<Option<Step>, LogError> {
        let Some(salt) = self.segment.as_ref().map(|s| s.header.salt) else { return Ok(None) };
        self.fill(position, RECORD_HEADER_BYTES)?;
        let Some(length) = length_at(self.window(position), salt, position) else { return Ok(None) };
        let bytes = (8 + length).next_multiple_of(8);
        if bytes as u64 > SEGMENT_BYTES_MAX {
            return Ok(None);
        }
        self.fill(position, bytes)?;
        let Some(record) = record_at(self.window(position), salt, position) else { return Ok(None) };
        let start = (position - self.buffer_at) as usize + RECORD_HEADER_BYTES;
        Ok(Some(Step {
            payload: start..start + record.payload.len(),
            is_control: record.is_control,
            is_filler: record.is_filler,
            is_last: record.is_last,
            batch_start: record.batch_start,
            next: position.saturating_add(record.bytes),
        }))
    }

    fn window(&self, position: u64) -> &[u8] {
        let at = position.checked_sub(self.buffer_at).and_then(|at| usize::try_from(at).ok()).unwrap_or(usize::MAX);
        self.buffer.get(at..).unwrap_or_default()
    }

    /// Makes `need` bytes from `position` on available, if the file has them.
    fn fill(&mut self, position: u64, need: usize) -> Result<(), LogError> {
        if self.window(position).len() >= need {
            return Ok(());
        }
        let Some(segment) = &self.segment else { return Ok(()) };
        let offset = HEADER_BYTES as u64 + (position - segment.header.base);
        let file = segment.file.clone();
        self.buffer = recovery::read(&mut self.device, &file, offset, need.max(READ_BYTES))?;
        self.buffer_at = position;
        Ok(())
    }

    /// The first position at or behind `from`, and before `end`, at which a record begins.
    pub(super) fn align(&mut self, from: u64, end: u64) -> Result<u64, LogError> {
        if from >= end || self.step(from)?.is_some() {
            return Ok(from);
        }
        let mut at = self.bases()?.into_iter().rev().find(|base| *base <= from).unwrap_or(from);
        while at < from {
            match self.step(at)? {
                Some(step) => at = step.next,
                None => return Err(self.damaged(at)),
            }
        }
        Ok(at)
    }

    pub(super) fn damaged(&self, position: u64) -> LogError {
        let (file, offset) = self.place(position);
        LogError::Damaged { file, offset, because: format!("no valid record is at position {position}") }
    }

    /// The next record of the owner's at or behind `position`, before `end`, and moves the position behind it. What repair has left out is
    /// counted in `lost_bytes`.
    pub(super) fn next(
        &mut self,
        position: &mut u64,
        end: u64,
        lost_bytes: &mut u64,
    ) -> Result<Option<(Lsn, Range<usize>)>, LogError> {
        while *position < end {
            let Some(step) = self.step(*position)? else { return Err(self.damaged(*position)) };
            let lsn = Lsn(*position);
            *position = step.next;
            if step.is_filler {
                *lost_bytes += step.next - lsn.0;
            } else if !step.is_control {
                return Ok(Some((lsn, step.payload)));
            }
        }
        Ok(None)
    }
}
