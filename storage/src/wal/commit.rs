//! How far the sources had been read, and time had come, when what stands before was complete.
//!
//! Payload of a control record of the write-ahead log, little endian: kind 1 (1 byte: 1 where it was appended, 2 where it is repeated at
//! the beginning of a segment), version 1 (1), flags (2: bit 0 = there is a watermark), number of sources (4), epoch (8), watermark in
//! microseconds (8), then for each: source (4), partition bytes (4), offset bytes (4), partition, offset.

/// How far one partition of a source has been read. Both fields are in the source's own form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceOffset {
    /// The source, by the job's numbering.
    pub source: u32,
    /// The partition.
    pub partition: Vec<u8>,
    /// The first thing that has not been read.
    pub offset: Vec<u8>,
}

/// All that stands before it in the log belongs to epochs up to this one, and came from before these offsets.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Commit {
    /// The epoch.
    pub epoch: u64,
    /// The watermark at its end, in microseconds since 1970; `None` when there is none yet.
    pub watermark_us: Option<i64>,
    /// The first unread offset of each partition.
    pub offsets: Vec<SourceOffset>,
}

const APPENDED: u8 = 1;
const REPEATED: u8 = 2;
const VERSION: u8 = 1;
const HAS_WATERMARK: u16 = 1;
const HEADER_BYTES: usize = 24;
const OFFSET_BYTES: usize = 12;

impl Commit {
    /// The payload, as appended.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.offsets.len() * 32);
        bytes.extend_from_slice(&[APPENDED, VERSION]);
        bytes.extend_from_slice(&u16::from(self.watermark_us.is_some()).to_le_bytes());
        bytes.extend_from_slice(&length(self.offsets.len()));
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        bytes.extend_from_slice(&self.watermark_us.unwrap_or(0).to_le_bytes());
        for offset in &self.offsets {
            bytes.extend_from_slice(&offset.source.to_le_bytes());
            bytes.extend_from_slice(&length(offset.partition.len()));
            bytes.extend_from_slice(&length(offset.offset.len()));
            bytes.extend_from_slice(&offset.partition);
            bytes.extend_from_slice(&offset.offset);
        }
        bytes
    }

    /// Marks a payload as repeated.
    pub(super) fn repeated(mut payload: Vec<u8>) -> Vec<u8> {
        if let Some(kind) = payload.first_mut() {
            *kind = REPEATED;
        }
        payload
    }

    /// The commit, and whether it stands where it was appended; `None` when it is none.
    pub(crate) fn decode(payload: &[u8]) -> Option<(Self, bool)> {
        let (header, mut rest) = payload.split_at_checked(HEADER_BYTES)?;
        let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let wide = |at: usize| u64::from(number(at)) | u64::from(number(at + 4)) << 32;
        let flags = u16::from_le_bytes([header[2], header[3]]);
        if !matches!(header[0], APPENDED | REPEATED) || header[1] != VERSION || flags & !HAS_WATERMARK != 0 {
            return None;
        }
        let count = number(4) as usize;
        if count > rest.len() / OFFSET_BYTES {
            return None;
        }
        let mut offsets = Vec::with_capacity(count);
        for _ in 0..count {
            let (lengths, behind) = rest.split_at_checked(OFFSET_BYTES)?;
            let field = |at: usize| u32::from_le_bytes([lengths[at], lengths[at + 1], lengths[at + 2], lengths[at + 3]]);
            let (partition, behind) = behind.split_at_checked(field(4) as usize)?;
            let (offset, behind) = behind.split_at_checked(field(8) as usize)?;
            offsets.push(SourceOffset { source: field(0), partition: partition.to_vec(), offset: offset.to_vec() });
            rest = behind;
        }
        let watermark_us = (flags & HAS_WATERMARK != 0).then(|| wide(16).cast_signed());
        rest.is_empty().then(|| (Self { epoch: wide(8), watermark_us, offsets }, header[0] == APPENDED))
    }
}

fn length(n: usize) -> [u8; 4] {
    // A commit longer than a record may be is refused by the log; saturating keeps this total until then.
    u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn anything_decodes_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), known in any::<bool>()) {
            if known && bytes.len() > 8 {
                bytes[..8].copy_from_slice(&[1, 1, 1, 0, 2, 0, 0, 0]);
            }
            let _ = Commit::decode(&bytes);
        }

        #[test]
        fn commits_come_back(
            epoch in any::<u64>(),
            watermark_us in any::<Option<i64>>(),
            offsets in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 0..9), prop::collection::vec(any::<u8>(), 0..9)), 0..5),
        ) {
            let offsets = offsets.into_iter().map(|(source, partition, offset)| SourceOffset { source, partition, offset }).collect();
            let commit = Commit { epoch, watermark_us, offsets };
            let bytes = commit.encode();
            prop_assert_eq!(Commit::decode(&bytes), Some((commit.clone(), true)));
            prop_assert_eq!(Commit::decode(&bytes[..bytes.len() - 1]), None);
            prop_assert_eq!(Commit::decode(&Commit::repeated(bytes)), Some((commit, false)));
        }
    }
}
