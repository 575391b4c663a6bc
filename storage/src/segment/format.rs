//! Bytes of segment files, of the write-ahead log and of logs; `docs/storage-format.md` is their reference.
//!
//! ```text
//! segment file wal-<base position, 20 digits>.seg or log-<…>.seg
//!   0     8  magic "TRWALSEG" or "TRLOGSEG"
//!   8     4  format version, 1
//!   12    4  features a reader may ignore      16  4  features a reader must know
//!   20    4  zero
//!   24    8  salt
//!   32    8  base: the position of the first record
//!   40    8  length of the file
//!   48    12 zero
//!   60    4  crc32c of bytes 0..60
//!   2048  64 the same again, for repair
//!   4096  …  records, then zeros
//! record at position p (file offset 4096 + p − base), little endian
//!   0     4  length: 8 + payload bytes; never 0
//!   4     4  crc32c of salt, p (8 bytes each), length, batch distance, flags (4 each), payload
//!   8     4  batch distance: p − the position at which the write that brought this record began; of a filler: bytes to skip / 8
//!   12    4  flags: 1 = last of its group, 2 = first of its group, 4 = control, 8 = filler;
//!            bits 8–31: the upper 24 bits of the crc32c of salt, p, length, batch distance, flags below 256
//!   16    …  payload, then zeros to a multiple of 8
//! ```

use crc32c::{crc32c, crc32c_append};

use super::SegmentKind;
use crate::bugs::{self, Bug};

pub(crate) const HEADER_BYTES: usize = 4096;
pub(super) const HEADER_USED_BYTES: usize = 64;
/// Where the header stands a second time.
pub(super) const HEADER_COPY_AT: usize = 2048;
pub(crate) const RECORD_HEADER_BYTES: usize = 16;
const VERSION: u32 = 1;
/// Positions stay below this, so that sums of them and lengths can't overflow.
const POSITION_MAX: u64 = 1 << 62;
/// The record ends its group.
pub(crate) const LAST_OF_GROUP: u32 = 1;
/// The record begins its group.
pub(crate) const FIRST_OF_GROUP: u32 = 2;
/// The payload is the log's own, not its owner's.
pub(crate) const CONTROL: u32 = 4;
/// Repair has put it in the place of what was damaged: reading goes on behind what it covers.
pub(crate) const FILLER: u32 = 8;
const FLAGS_KNOWN: u32 = LAST_OF_GROUP | FIRST_OF_GROUP | CONTROL | FILLER;
const FLAGS_MASK: u32 = 0xFF;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) salt: u64,
    pub(crate) base: u64,
    pub(crate) file_bytes: u64,
    /// Features of a newer version that a reader may ignore. Who doesn't know them all doesn't append to the segment.
    pub(crate) may_ignore: u32,
}

/// Why bytes are no header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// They are damaged, or were never written.
    Damaged(String),
    /// A newer version has written them.
    Unsupported { version: u32, must_know: u32 },
}

impl std::fmt::Display for HeaderError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Damaged(because) => f.write_str(because),
            Self::Unsupported { version, must_know } => {
                write!(f, "format {version} with features {must_know:#x} is not known to this version")
            }
        }
    }
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl SegmentHeader {
    pub(crate) fn encode(self, kind: SegmentKind) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..8].copy_from_slice(kind.magic());
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.may_ignore.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.salt.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.base.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.file_bytes.to_le_bytes());
        let crc = crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes.copy_within(..HEADER_USED_BYTES, HEADER_COPY_AT);
        bytes
    }

    /// The header at the beginning of a file.
    pub(crate) fn decode(bytes: &[u8], kind: SegmentKind) -> Result<Self, HeaderError> {
        Self::decode_at(bytes, 0, kind)
    }

    /// The header's copy.
    pub(crate) fn decode_copy(bytes: &[u8], kind: SegmentKind) -> Result<Self, HeaderError> {
        Self::decode_at(bytes, HEADER_COPY_AT, kind)
    }

    fn decode_at(bytes: &[u8], at: usize, kind: SegmentKind) -> Result<Self, HeaderError> {
        let damaged = |because: &str| Err(HeaderError::Damaged(because.to_owned()));
        let Some(bytes) = bytes.get(at..at + HEADER_USED_BYTES) else { return damaged("the file is shorter than its header") };
        if bytes[..8] != *kind.magic() {
            return damaged("it doesn't begin as a segment does");
        }
        if crc32c(&bytes[..60]) != u32_at(bytes, 60) {
            return damaged("the header's checksum is wrong");
        }
        let (version, must_know) = (u32_at(bytes, 8), u32_at(bytes, 16));
        if version != VERSION || must_know != 0 {
            return Err(HeaderError::Unsupported { version, must_know });
        }
        let header = Self {
            salt: u64_at(bytes, 24),
            base: u64_at(bytes, 32),
            file_bytes: u64_at(bytes, 40),
            may_ignore: u32_at(bytes, 12),
        };
        if header.base >= POSITION_MAX || !header.base.is_multiple_of(8) {
            return damaged("no segment begins at such a position");
        }
        Ok(header)
    }
}

/// How long a record with this payload is in the log.
pub(crate) fn record_bytes(payload: usize) -> usize {
    (RECORD_HEADER_BYTES + payload).next_multiple_of(8)
}

/// Appends a record whose checksums and batch distance are still to be filled in by [`seal`].
pub(crate) fn push_record(out: &mut Vec<u8>, payload: &[u8], flags: u32) {
    let length = u32::try_from(payload.len() + 8).expect("the log's owner has checked the record's length");
    let mut header = [0; RECORD_HEADER_BYTES];
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[12..].copy_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    let padding = out.len().next_multiple_of(8) - out.len();
    out.extend_from_slice(&[0; 8][..padding]);
}

/// The checksum that salt and position begin.
fn place_crc(salt: u64, position: u64) -> u32 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&salt.to_le_bytes());
    place[8..].copy_from_slice(&position.to_le_bytes());
    crc32c(&place)
}

fn header_check(place: u32, record: &[u8], flags: u32) -> u32 {
    let mut fields = [0; 12];
    fields[..4].copy_from_slice(&record[..4]);
    fields[4..8].copy_from_slice(&record[8..12]);
    fields[8..].copy_from_slice(&flags.to_le_bytes());
    crc32c_append(place, &fields) & !FLAGS_MASK
}

fn checksum(place: u32, record: &[u8], length: usize) -> u32 {
    crc32c_append(crc32c_append(place, &record[..4]), &record[8..8 + length])
}

fn seal_one(record: &mut [u8], salt: u64, position: u64, distance: u32) -> usize {
    let length = u32_at(record, 0) as usize;
    let flags = u32_at(record, 12) & FLAGS_MASK;
    let place = place_crc(salt, position);
    record[8..12].copy_from_slice(&distance.to_le_bytes());
    let check = header_check(place, record, flags);
    record[12..16].copy_from_slice(&(flags | check).to_le_bytes());
    let crc = checksum(place, record, length);
    record[4..8].copy_from_slice(&crc.to_le_bytes());
    record_bytes(length - 8)
}

/// Fills in what records that [`push_record`] made lack; the first is at `start`, where their batch begins.
pub(crate) fn seal(batch: &mut [u8], salt: u64, start: u64) {
    let mut at = 0;
    while at < batch.len() {
        let distance = u32::try_from(at).expect("a batch is shorter than 4 GiB");
        at += seal_one(&mut batch[at..], salt, start + at as u64, distance);
    }
}

/// A record that covers `bytes` (a multiple of 8, at least 16) from `position` on; `None` when it is too much for one.
pub(super) fn filler(salt: u64, position: u64, bytes: u64) -> Option<Vec<u8>> {
    debug_assert!(bytes.is_multiple_of(8) && bytes >= RECORD_HEADER_BYTES as u64);
    let skip = u32::try_from(bytes / 8).ok()?;
    let mut record = Vec::new();
    push_record(&mut record, &[], FILLER | FIRST_OF_GROUP | LAST_OF_GROUP);
    seal_one(&mut record, salt, position, skip);
    Some(record)
}

/// A record that validates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) payload: &'a [u8],
    /// Where the write began that brought it.
    pub(crate) batch_start: u64,
    pub(crate) is_first: bool,
    pub(crate) is_last: bool,
    pub(crate) is_control: bool,
    pub(crate) is_filler: bool,
    /// To the next record; a filler may reach beyond its segment.
    pub(crate) bytes: u64,
}

/// The length field of a record whose header validates at position `position`: payload bytes + 8.
pub(crate) fn length_at(record: &[u8], salt: u64, position: u64) -> Option<usize> {
    let header = record.get(..RECORD_HEADER_BYTES)?;
    let (length, flags) = (u32_at(header, 0) as usize, u32_at(header, 12));
    let known = flags & FLAGS_MASK & !FLAGS_KNOWN == 0;
    (length >= 8 && known && header_check(place_crc(salt, position), header, flags & FLAGS_MASK) == flags & !FLAGS_MASK)
        .then_some(length)
}

/// The record at the beginning of `record`, which is at `position`, if a valid one is there.
pub(crate) fn record_at(record: &[u8], salt: u64, position: u64) -> Option<Record<'_>> {
    let length = length_at(record, salt, position)?;
    let fits = |record: &[u8]| checksum(place_crc(salt, position), record, length) == u32_at(record, 4);
    if length > record.len() - 8 || !(fits(record) || bugs::is_on(Bug::TrustsRecords)) {
        return None;
    }
    let (distance, flags) = (u64::from(u32_at(record, 8)), u32_at(record, 12));
    let payload = &record[RECORD_HEADER_BYTES..8 + length];
    let is_filler = flags & FILLER != 0;
    let (bytes, batch_start) = match is_filler {
        true if distance * 8 < RECORD_HEADER_BYTES as u64 || !payload.is_empty() => return None,
        true => (distance * 8, position),
        false if distance > position || record_bytes(payload.len()) > record.len() => return None,
        false => (record_bytes(payload.len()) as u64, position - distance),
    };
    Some(Record {
        payload,
        batch_start,
        is_first: flags & FIRST_OF_GROUP != 0,
        is_last: flags & LAST_OF_GROUP != 0,
        is_control: flags & CONTROL != 0,
        is_filler,
        bytes,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;
    use crate::device::FileName;

    #[test]
    fn names_carry_the_base_and_others_are_none() {
        let kind = SegmentKind::Wal;
        for base in [0, 1, 4096, u64::MAX] {
            assert_eq!(kind.base(&kind.name(base)), Some(base));
            assert_eq!(SegmentKind::Log.base(&kind.name(base)), None);
        }
        for other in ["wal-1.seg", "wal-0000000000000000000x.seg", "wal-99999999999999999999.seg", "manifest-1", "wal-.seg"] {
            assert_eq!(kind.base(&FileName::new(other).unwrap()), None, "{other}");
        }
    }

    #[test]
    fn headers_of_newer_versions_are_told_from_damaged_ones() {
        let header = SegmentHeader { salt: 1, base: 64, file_bytes: 8192, may_ignore: 0 };
        let with = |at: usize, value: u32| {
            let mut bytes = header.encode(SegmentKind::Log);
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let crc = crc32c(&bytes[..60]);
            bytes[60..64].copy_from_slice(&crc.to_le_bytes());
            SegmentHeader::decode(&bytes, SegmentKind::Log)
        };
        assert_eq!(with(8, 2), Err(HeaderError::Unsupported { version: 2, must_know: 0 }));
        assert_eq!(with(16, 4), Err(HeaderError::Unsupported { version: 1, must_know: 4 }));
        assert_eq!(with(12, 4), Ok(SegmentHeader { may_ignore: 4, ..header }));
        assert!(matches!(with(32, 3), Err(HeaderError::Damaged(_))), "a base that is no multiple of 8");
        let of_wal = SegmentHeader::decode(&header.encode(SegmentKind::Wal), SegmentKind::Log);
        assert!(matches!(of_wal, Err(HeaderError::Damaged(_))));
    }

    #[test]
    fn a_filler_tells_where_reading_goes_on() {
        let record = filler(9, 80, 1 << 20).unwrap();
        let read = record_at(&record, 9, 80).unwrap();
        assert!(read.is_filler && read.bytes == 1 << 20 && read.payload.is_empty());
        assert_eq!(record_at(&record, 9, 88), None);
        assert_eq!(filler(9, 80, 1 << 40), None);
    }

    proptest! {
        #[test]
        fn anything_decodes_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000), at in 0_usize..6000) {
            prop_assert_eq!(record_at(bytes.get(at..).unwrap_or_default(), 1, at as u64), None);
            prop_assert!(SegmentHeader::decode(&bytes, SegmentKind::Wal).is_err());
            prop_assert!(SegmentHeader::decode_copy(&bytes, SegmentKind::Log).is_err());
        }

        #[test]
        fn records_come_back_and_no_changed_or_moved_one_does(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..6),
            salt in any::<u64>(), base in 0_u64..1 << 60, byte in any::<prop::sample::Index>(), bit in 0_u8..8,
        ) {
            let header = SegmentHeader { salt, base: base & !7, file_bytes: 4096, may_ignore: 0 };
            prop_assert_eq!(SegmentHeader::decode(&header.encode(SegmentKind::Wal), SegmentKind::Wal), Ok(header));
            prop_assert_eq!(SegmentHeader::decode_copy(&header.encode(SegmentKind::Wal), SegmentKind::Wal), Ok(header));
            let mut records = Vec::new();
            payloads.iter().for_each(|p| push_record(&mut records, p, LAST_OF_GROUP));
            seal(&mut records, salt, header.base);
            let (mut at, mut position) = (0, header.base);
            for payload in &payloads {
                let record = record_at(&records[at..], salt, position).unwrap();
                prop_assert_eq!((record.payload, record.batch_start), (payload.as_slice(), header.base));
                prop_assert_eq!(length_at(&records[at..at + 16], salt, position), Some(payload.len() + 8));
                at += record.bytes as usize;
                position += record.bytes;
            }
            prop_assert_eq!(at, records.len());
            // One bit changed in the first record (not in its padding): it is gone. Another salt, another base: all are.
            let used = 16 + payloads[0].len();
            records[byte.index(used)] ^= 1 << bit;
            prop_assert_eq!(record_at(&records, salt, header.base), None);
            let second = record_bytes(payloads[0].len());
            prop_assert_eq!(record_at(&records[second..], salt ^ 1, header.base + second as u64), None);
            prop_assert_eq!(record_at(&records[second..], salt, header.base + 8 + second as u64), None);
        }
    }
}
