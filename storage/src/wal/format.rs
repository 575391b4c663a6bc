//! Bytes of the write-ahead log; `docs/storage-format.md` is their reference.
//!
//! ```text
//! segment file wal-<base position, 20 digits>.seg
//!   0     8  magic "TRWALSEG"
//!   8     4  format version, 1
//!   12    4  features a reader may ignore      16  4  features a reader must know
//!   20    4  zero
//!   24    8  salt
//!   32    8  base: the position of the first record
//!   40    8  length of the file
//!   48    12 zero
//!   60    4  crc32c of bytes 0..60
//!   4096  …  records, then zeros
//! record at position p (file offset 4096 + p − base), little endian
//!   0     4  length: 8 + payload bytes; never 0
//!   4     4  crc32c of salt, p (8 bytes each), length, batch distance, flags (4 each), payload
//!   8     4  batch distance: p − the position at which the write that brought this record began
//!   12    4  flags: 1 = last record of its group
//!   16    …  payload, then zeros to a multiple of 8
//! ```

use crc32c::{crc32c, crc32c_append};

use crate::device::FileName;

pub(super) const HEADER_BYTES: usize = 4096;
const HEADER_USED_BYTES: usize = 64;
pub(super) const RECORD_HEADER_BYTES: usize = 16;
const MAGIC: [u8; 8] = *b"TRWALSEG";
const VERSION: u32 = 1;
/// The record ends its group.
pub(super) const LAST_OF_GROUP: u32 = 1;
const FLAGS_KNOWN: u32 = LAST_OF_GROUP;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) salt: u64,
    pub(super) base: u64,
    pub(super) file_bytes: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl SegmentHeader {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.salt.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.base.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.file_bytes.to_le_bytes());
        let crc = crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header, or why it is none.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Some(bytes) = bytes.get(..HEADER_USED_BYTES) else { return Err("the file is shorter than its header".to_owned()) };
        if bytes[..8] != MAGIC {
            return Err("it doesn't begin as a segment does".to_owned());
        }
        if crc32c(&bytes[..60]) != u32_at(bytes, 60) {
            return Err("the header's checksum is wrong".to_owned());
        }
        let (version, must_know) = (u32_at(bytes, 8), u32_at(bytes, 16));
        if version != VERSION || must_know != 0 {
            return Err(format!("format {version} with features {must_know:#x} is not known to this version"));
        }
        Ok(Self { salt: u64_at(bytes, 24), base: u64_at(bytes, 32), file_bytes: u64_at(bytes, 40) })
    }
}

pub(super) fn segment_name(base: u64) -> FileName {
    FileName::new(&format!("wal-{base:020}.seg")).expect("letters, digits, a dash and a dot")
}

/// The base position in a segment's name; `None` for other files.
pub(super) fn segment_base(name: &FileName) -> Option<u64> {
    let digits = name.as_str().strip_prefix("wal-")?.strip_suffix(".seg")?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
}

/// How long a record with this payload is in the log.
pub(super) fn record_bytes(payload: usize) -> usize {
    (RECORD_HEADER_BYTES + payload).next_multiple_of(8)
}

/// Appends a record whose checksum and batch distance are still to be filled in by [`seal`].
pub(super) fn push_record(out: &mut Vec<u8>, payload: &[u8], flags: u32) {
    let length = u32::try_from(payload.len() + 8).expect("the log's owner has checked the record's length");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(8), 0);
}

fn checksum(salt: u64, position: u64, record: &[u8], length: usize) -> u32 {
    let crc = crc32c_append(crc32c(&salt.to_le_bytes()), &position.to_le_bytes());
    let crc = crc32c_append(crc, &record[..4]);
    crc32c_append(crc, &record[8..8 + length])
}

/// Fills in what records that [`push_record`] made lack; the first is at `start`, where their batch begins.
pub(super) fn seal(batch: &mut [u8], salt: u64, start: u64) {
    let mut at = 0;
    while at < batch.len() {
        let length = u32_at(batch, at) as usize;
        let record = &mut batch[at..];
        let distance = u32::try_from(at).expect("a batch is shorter than 4 GiB");
        record[8..12].copy_from_slice(&distance.to_le_bytes());
        let crc = checksum(salt, start + at as u64, record, length);
        record[4..8].copy_from_slice(&crc.to_le_bytes());
        at += record_bytes(length - 8);
    }
}

/// A record that validates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) payload: &'a [u8],
    pub(super) batch_start: u64,
    pub(super) is_last: bool,
    pub(super) bytes: usize,
}

/// The record at `at` of a segment's bytes, if a valid one is there.
pub(super) fn record_at<'a>(segment: &'a [u8], at: usize, header: &SegmentHeader) -> Option<Record<'a>> {
    let record = segment.get(at..)?;
    if record.len() < RECORD_HEADER_BYTES {
        return None;
    }
    let length = u32_at(record, 0) as usize;
    if length < 8 || length > record.len() - 8 {
        return None;
    }
    let position = header.base + (at - HEADER_BYTES) as u64;
    if checksum(header.salt, position, record, length) != u32_at(record, 4) {
        return None;
    }
    let (distance, flags) = (u64::from(u32_at(record, 8)), u32_at(record, 12));
    let payload = &record[RECORD_HEADER_BYTES..8 + length];
    let bytes = record_bytes(payload.len());
    if flags & !FLAGS_KNOWN != 0 || distance > position || bytes > record.len() {
        return None;
    }
    Some(Record { payload, batch_start: position - distance, is_last: flags & LAST_OF_GROUP != 0, bytes })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_carry_the_base_and_others_are_none() {
        for base in [0, 1, 4096, u64::MAX] {
            assert_eq!(segment_base(&segment_name(base)), Some(base));
        }
        for other in ["wal-1.seg", "wal-0000000000000000000x.seg", "wal-99999999999999999999.seg", "manifest-1", "wal-.seg"] {
            assert_eq!(segment_base(&FileName::new(other).unwrap()), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn anything_decodes_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000), at in 4096_usize..6000) {
            let header = SegmentHeader { salt: 1, base: 0, file_bytes: 8192 };
            prop_assert_eq!(record_at(&bytes, at, &header), None);
            prop_assert!(SegmentHeader::decode(&bytes).is_err());
        }

        #[test]
        fn records_come_back_and_no_changed_or_moved_one_does(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..6),
            salt in any::<u64>(), base in 0_u64..1 << 60, byte in any::<prop::sample::Index>(), bit in 0_u8..8,
        ) {
            let header = SegmentHeader { salt, base: base & !7, file_bytes: 4096 };
            prop_assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
            let mut segment = header.encode();
            let mut records = Vec::new();
            payloads.iter().for_each(|p| push_record(&mut records, p, LAST_OF_GROUP));
            seal(&mut records, salt, header.base);
            segment.extend_from_slice(&records);
            let mut at = HEADER_BYTES;
            for payload in &payloads {
                let record = record_at(&segment, at, &header).unwrap();
                prop_assert_eq!((record.payload, record.batch_start), (payload.as_slice(), header.base));
                at += record.bytes;
            }
            prop_assert_eq!(at, segment.len());
            // One bit changed in the first record (not in its padding): it is gone. Another salt, another base: all are.
            let used = 16 + payloads[0].len();
            segment[HEADER_BYTES + byte.index(used)] ^= 1 << bit;
            prop_assert_eq!(record_at(&segment, HEADER_BYTES, &header), None);
            let other = SegmentHeader { salt: salt ^ 1, ..header };
            prop_assert_eq!(record_at(&segment, HEADER_BYTES + record_bytes(payloads[0].len()), &other), None);
            let moved = SegmentHeader { base: header.base + 8, ..header };
            prop_assert_eq!(record_at(&segment, HEADER_BYTES + record_bytes(payloads[0].len()), &moved), None);
        }
    }
}
