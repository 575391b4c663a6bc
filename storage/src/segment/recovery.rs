//! What a log is after a crash.

use super::format::{HEADER_BYTES, HEADER_COPY_AT, HeaderError, RECORD_HEADER_BYTES, SegmentHeader, length_at, record_at};
use super::{LogError, Lsn, SegmentKind};
use crate::device::{Device, DeviceError, DeviceOp, Done, FileName};
use crate::directory_kind::foreign_file;

/// Longest segment file that is read.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// A record that recovery hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) payload: &'a [u8],
    pub(crate) is_control: bool,
    /// Position behind it.
    pub(crate) end: Lsn,
}

/// A segment and the position behind its last whole group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecoveredSegment {
    pub(crate) header: SegmentHeader,
    pub(crate) end: u64,
}

/// The segments of a log, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) segments: Vec<RecoveredSegment>,
}

/// All segment files: base, name, length; by base. A directory that holds something else instead is an error.
pub(crate) fn list(device: &mut (impl Device + ?Sized), kind: SegmentKind) -> Result<Vec<(u64, FileName, u64)>, LogError> {
    let Done::Files(files) = device.execute(DeviceOp::List)? else { return Ok(Vec::new()) };
    if let Some((file, holds)) = foreign_file(&files, Some(kind.directory_kind())) {
        return Err(LogError::Foreign { file, holds });
    }
    Ok(named(files, kind))
}

/// Those of these files that are segments.
pub(crate) fn named(files: Vec<(FileName, u64)>, kind: SegmentKind) -> Vec<(u64, FileName, u64)> {
    let mut names: Vec<_> = files.into_iter().filter_map(|(name, len)| kind.base(&name).map(|base| (base, name, len))).collect();
    names.sort();
    names
}

pub(crate) fn read(
    device: &mut (impl Device + ?Sized),
    file: &FileName,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>, DeviceError> {
    match device.execute(DeviceOp::Read { file: file.clone(), offset, len })? {
        Done::Data(bytes) => Ok(bytes),
        other => Err(DeviceError::Io { what: format!("read {file}"), message: format!("the device answered with {other:?}") }),
    }
}

/// Reads all segments, hands out what they hold, and cuts a torn end off. After an error what was handed out must be dropped.
pub(crate) fn recover(
    device: &mut (impl Device + ?Sized),
    kind: SegmentKind,
    replay: &mut dyn FnMut(Lsn, Entry<'_>),
) -> Result<Recovered, LogError> {
    let names = list(device, kind)?;
    let mut segments: Vec<RecoveredSegment> = Vec::new();
    for (i, (base, file, len)) in names.iter().enumerate() {
        let is_last = i + 1 == names.len();
        let damaged = |offset: u64, because: &str| LogError::Damaged { file: file.clone(), offset, because: because.to_owned() };
        if *len > SEGMENT_BYTES_MAX {
            return Err(damaged(0, "the file is longer than any segment"));
        }
        let bytes = read(device, file, 0, *len as usize)?;
        let header = match SegmentHeader::decode(&bytes, kind) {
            Ok(header) if header.base == *base => header,
            Ok(_) => return Err(damaged(32, "the base in the header is not that of the name")),
            Err(e @ HeaderError::Unsupported { .. }) => {
                return Err(LogError::Unsupported { file: file.clone(), because: e.to_string() });
            }
            // The header is durable before the first record is written, and before older segments are removed.
            Err(_) if is_last && is_unfinished(&bytes) && (*base == 0 || !segments.is_empty()) => {
                device.execute(DeviceOp::Remove { file: file.clone() })?;
                device.execute(DeviceOp::SyncDir)?;
                break;
            }
            Err(because) => return Err(damaged(0, &because.to_string())),
        };
        if let Some(before) = segments.last()
            && before.end != header.base
        {
            let because = format!("the log before it ends at {}, it begins at {}: a segment is missing", before.end, header.base);
            return Err(damaged(0, &because));
        }
        if let Some(because) = cut_short(&bytes, &header) {
            return Err(damaged(bytes.len() as u64, &because));
        }
        let walk = walk(&bytes, &header, HEADER_BYTES, replay);
        if let Some(valid) = walk.evidence {
            return Err(damaged(walk.broken_at as u64, &format!("records of a later write are valid at offset {valid}")));
        }
        // The last segment's end may be torn, and so may this one's when the next was never finished: nothing was written to it then.
        if let Some((next, _, _)) = names.get(i + 1)
            && *next != walk.end
        {
            let because = format!("its records end {} B before the next segment begins", next.wrapping_sub(walk.end));
            return Err(damaged(walk.broken_at as u64, &because));
        }
        cut_off(device, file, &bytes, walk.kept)?;
        segments.push(RecoveredSegment { header, end: walk.end });
    }
    Ok(Recovered { segments })
}

/// Whether a segment without a valid header is one whose making was interrupted: its header is the first that is written to it.
pub(super) fn is_unfinished(bytes: &[u8]) -> bool {
    // The header is written at once, in one sector, and so is its copy: either is there or it is zeros.
    let zero = |range: std::ops::Range<usize>| bytes.iter().take(range.end).skip(range.start).all(|b| *b == 0);
    zero(0..HEADER_COPY_AT) && zero(HEADER_BYTES..bytes.len().max(HEADER_BYTES))
}

/// What is wrong with a file that ends before its header says: its length is durable before the header is written.
pub(super) fn cut_short(bytes: &[u8], header: &SegmentHeader) -> Option<String> {
    let missing = header.file_bytes.saturating_sub(bytes.len() as u64);
    (missing > 0).then(|| format!("its last {missing} B are missing: it was made with {} B", header.file_bytes))
}

/// What a walk over a segment's records found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    /// Offset behind the last record of the last whole group.
    pub(crate) kept: usize,
    /// Position behind that; beyond the file when the last is a filler.
    pub(crate) end: u64,
    /// Offset at which no valid record is.
    pub(crate) broken_at: usize,
    /// Offset of a valid record of a write that began behind `broken_at`.
    pub(crate) evidence: Option<usize>,
}

/// Walks the records from offset `from` on, where a group begins, and hands out those of whole groups.
pub(crate) fn walk(bytes: &[u8], header: &SegmentHeader, from: usize, replay: &mut dyn FnMut(Lsn, Entry<'_>)) -> Walk {
    let position = |at: usize| header.base + (at - HEADER_BYTES) as u64;
    let (mut at, mut kept) = (from, from);
    let mut group: Vec<(usize, Entry<'_>)> = Vec::new();
    while let Some(record) = bytes.get(at..).and_then(|rest| record_at(rest, header.salt, position(at))) {
        // A group's first record says so; one that stands elsewhere ends what can be understood.
        if record.is_first != group.is_empty() {
            break;
        }
        if record.is_filler {
            let end = position(at).saturating_add(record.bytes);
            match usize::try_from(record.bytes).ok().and_then(|n| at.checked_add(n)).filter(|next| *next < bytes.len()) {
                Some(next) => (at, kept) = (next, next),
                // It stands for all up to another segment's beginning.
                None => return Walk { kept: at + RECORD_HEADER_BYTES, end, broken_at: at, evidence: None },
            }
            continue;
        }
        let next = at + record.bytes as usize;
        let entry = Entry { payload: record.payload, is_control: record.is_control, end: Lsn(position(next)) };
        group.push((at, entry));
        at = next;
        if record.is_last {
            for (at, entry) in group.drain(..) {
                replay(Lsn(position(at)), entry);
            }
            kept = at;
        }
    }
    Walk { kept, end: position(kept), broken_at: at, evidence: later_write(bytes, header, at) }
}

/// Offset of a valid record, behind `broken`, of a write that began behind `broken`.
fn later_write(bytes: &[u8], header: &SegmentHeader, broken: usize) -> Option<usize> {
    let position = |at: usize| header.base + (at - HEADER_BYTES) as u64;
    next_valid(bytes, header, broken + 8, |record| record.batch_start > position(broken))
}

/// Offset of the first valid record at or behind `from` that `accepts`.
pub(super) fn next_valid(
    bytes: &[u8],
    header: &SegmentHeader,
    from: usize,
    accepts: impl Fn(&super::format::Record<'_>) -> bool,
) -> Option<usize> {
    let position = |at: usize| header.base + (at - HEADER_BYTES) as u64;
    (from..bytes.len().max(from)).step_by(8).find(|at| {
        let rest = &bytes[*at..];
        // The header's own check keeps this linear, whatever the bytes are.
        length_at(rest, header.salt, position(*at)).is_some()
            && record_at(rest, header.salt, position(*at)).is_some_and(|record| accepts(&record))
    })
}

/// Overwrites what is left of a torn write with zeros, so that it can never be taken for records again.
pub(super) fn cut_off(
    device: &mut (impl Device + ?Sized),
    file: &FileName,
    bytes: &[u8],
    kept: usize,
) -> Result<(), DeviceError> {
    let rest = bytes.get(kept..).unwrap_or_default();
    if let Some(last) = rest.iter().rposition(|b| *b != 0) {
        device.execute(DeviceOp::WriteSync { file: file.clone(), offset: kept as u64, data: vec![0; last + 1] })?;
    }
    Ok(())
}
