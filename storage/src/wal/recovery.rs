//! What a log is after a crash.

use super::format::{HEADER_BYTES, SegmentHeader, record_at, segment_base};
use super::{Lsn, WalError};
use crate::device::{Device, DeviceOp, Done, FileName};

/// Longest segment file that is read.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// Reads all segments, replays what they hold, cuts a torn end off. Their headers, and the position behind the last record of each.
pub(super) fn recover(
    device: &mut impl Device,
    replay: &mut impl FnMut(Lsn, &[u8]),
) -> Result<Vec<(SegmentHeader, u64)>, WalError> {
    let Done::Files(files) = device.execute(DeviceOp::List)? else { return Ok(Vec::new()) };
    let mut names: Vec<(u64, FileName, u64)> =
        files.into_iter().filter_map(|(name, len)| segment_base(&name).map(|base| (base, name, len))).collect();
    names.sort();
    let mut segments: Vec<(SegmentHeader, u64)> = Vec::new();
    for (i, (base, file, len)) in names.iter().enumerate() {
        let is_last = i + 1 == names.len();
        let damaged = |offset: u64, because: &str| WalError::Damaged { file: file.clone(), offset, because: because.to_owned() };
        if *len > SEGMENT_BYTES_MAX {
            return Err(damaged(0, "the file is longer than any segment"));
        }
        let read = DeviceOp::Read { file: file.clone(), offset: 0, len: *len as usize };
        let Done::Data(bytes) = device.execute(read)? else { return Err(damaged(0, "it can't be read")) };
        let header = match SegmentHeader::decode(&bytes) {
            Ok(header) if header.base == *base => header,
            Ok(_) => return Err(damaged(32, "the base in the header is not that of the name")),
            // The header is durable before the first record is written: without records, its making was interrupted.
            Err(_) if is_last && bytes.iter().skip(HEADER_BYTES).all(|b| *b == 0) && !looks_finished(&bytes) => {
                device.execute(DeviceOp::Remove { file: file.clone() })?;
                device.execute(DeviceOp::SyncDir)?;
                break;
            }
            Err(because) => return Err(damaged(0, &because)),
        };
        if let Some((_, end)) = segments.last()
            && *end != header.base
        {
            return Err(damaged(
                0,
                &format!("the log before it ends at {end}, it begins at {}: a segment is missing", header.base),
            ));
        }
        let end = read_segment(&bytes, &header, replay);
        let next_base = names.get(i + 1).map(|(base, _, _)| *base);
        if let Some(broken) = end.evidence {
            return Err(damaged(end.broken_at, &format!("records of a later write are valid at offset {broken}")));
        }
        match next_base {
            // The last segment's end may be torn, and so may this one's when the next was never finished: nothing was written to it then.
            Some(next) if next == header.base + (end.kept - HEADER_BYTES) as u64 => {}
            Some(next) => {
                let because = format!(
                    "its records end {} B before the next segment begins",
                    next.wrapping_sub(header.base + (end.kept - HEADER_BYTES) as u64)
                );
                return Err(damaged(end.broken_at, &because));
            }
            None => {}
        }
        cut_off(device, file, &bytes, end.kept)?;
        segments.push((header, header.base + (end.kept - HEADER_BYTES) as u64));
    }
    Ok(segments)
}

/// Whether a header that doesn't decode shows traces of one that was whole: it was written at once, in one sector.
fn looks_finished(bytes: &[u8]) -> bool {
    bytes.iter().take(HEADER_BYTES).any(|b| *b != 0)
}

struct End {
    /// Offset behind the last record of the last whole group.
    kept: usize,
    /// Offset at which no valid record is.
    broken_at: u64,
    /// Offset of a valid record of a write that began behind `broken_at`.
    evidence: Option<usize>,
}

fn read_segment(bytes: &[u8], header: &SegmentHeader, replay: &mut impl FnMut(Lsn, &[u8])) -> End {
    let position = |at: usize| header.base + (at - HEADER_BYTES) as u64;
    let (mut at, mut kept) = (HEADER_BYTES, HEADER_BYTES);
    let mut group: Vec<(usize, &[u8])> = Vec::new();
    while let Some(record) = record_at(bytes, at, header) {
        group.push((at, record.payload));
        at += record.bytes;
        if record.is_last {
            for (at, payload) in group.drain(..) {
                replay(Lsn(position(at)), payload);
            }
            kept = at;
        }
    }
    let broken = position(at);
    let later = |other: &usize| record_at(bytes, *other, header).is_some_and(|record| record.batch_start > broken);
    let evidence = (at + 8..bytes.len().max(at + 8)).step_by(8).find(later);
    End { kept, broken_at: at as u64, evidence }
}

/// Overwrites what is left of a torn write with zeros, so that it can never be taken for records again.
fn cut_off(device: &mut impl Device, file: &FileName, bytes: &[u8], kept: usize) -> Result<(), WalError> {
    let rest = bytes.get(kept..).unwrap_or_default();
    if let Some(last) = rest.iter().rposition(|b| *b != 0) {
        device.execute(DeviceOp::WriteSync { file: file.clone(), offset: kept as u64, data: vec![0; last + 1] })?;
    }
    Ok(())
}
