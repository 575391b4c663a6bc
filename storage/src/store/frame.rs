//! A page on a device; `docs/storage-format.md` is the reference.
//!
//! ```text
//! frame, a multiple of 512 bytes, at a multiple of 512
//!   0        …  the page's bytes, `used` of them, then zeros
//!   end−64   8  magic "TRPAGE01"     end−56  4  format, 1       end−52  4  shard
//!   end−48   8  table                end−40  8  page number     end−32  8  used
//!   end−24   4  sectors              end−20  4  segment         end−16  4  first sector in the segment
//!   end−12   8  zero                 end−4   4  crc32c of all bytes before
//! ```

use crc32c::crc32c;

use crate::bugs::{self, Bug};
use crate::device::FileName;
use crate::shard::TableId;

/// Frames begin and end at multiples of this.
pub(crate) const SECTOR_BYTES: usize = 512;
pub(crate) const TRAILER_BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"TRPAGE01";
const FORMAT: u32 = 1;

/// Where a frame is, and what its checksum is: a frame that was lost, misdirected or replaced doesn't pass for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FramePlace {
    pub(crate) segment: u32,
    pub(crate) sector: u32,
    pub(crate) sectors: u32,
    pub(crate) crc: u32,
}

impl FramePlace {
    pub(crate) fn offset(&self) -> u64 {
        u64::from(self.sector) * SECTOR_BYTES as u64
    }

    pub(crate) fn bytes(&self) -> usize {
        self.sectors as usize * SECTOR_BYTES
    }
}

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameLabel {
    pub(crate) shard: u32,
    pub(crate) table: TableId,
    pub(crate) page: u64,
}

pub(crate) fn segment_name(segment: u32) -> FileName {
    FileName::new(&format!("pages-{segment:010}.seg")).expect("letters, digits, a dash and a dot")
}

/// The number of a segment file, if it is one's name.
pub(crate) fn segment_number(name: &FileName) -> Option<u32> {
    let digits = name.as_str().strip_prefix("pages-")?.strip_suffix(".seg")?;
    (digits.len() == 10 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
}

/// How long the frame of a page is.
pub(crate) fn frame_bytes(used: usize) -> usize {
    (used + TRAILER_BYTES).next_multiple_of(SECTOR_BYTES)
}

/// Appends the frame of a page to `out`, to be written at `sector` of `segment`.
pub(crate) fn push_frame(out: &mut Vec<u8>, label: &FrameLabel, page: &[u8], segment: u32, sector: u32) -> FramePlace {
    let start = out.len();
    let bytes = frame_bytes(page.len());
    let sectors = u32::try_from(bytes / SECTOR_BYTES).expect("a record is shorter than 5 GiB");
    out.extend_from_slice(page);
    out.resize(start + bytes - TRAILER_BYTES, 0);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&label.shard.to_le_bytes());
    out.extend_from_slice(&label.table.0.to_le_bytes());
    out.extend_from_slice(&label.page.to_le_bytes());
    out.extend_from_slice(&(page.len() as u64).to_le_bytes());
    out.extend_from_slice(&sectors.to_le_bytes());
    out.extend_from_slice(&segment.to_le_bytes());
    out.extend_from_slice(&sector.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    let crc = crc32c(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
    FramePlace { segment, sector, sectors, crc }
}

/// Cuts a frame down to its page's bytes, or says why it isn't the frame that is meant.
pub(crate) fn open_frame(mut bytes: Vec<u8>, label: &FrameLabel, place: &FramePlace) -> Result<Vec<u8>, String> {
    if bytes.len() != place.bytes() {
        return Err(format!("it has {} B instead of {}", bytes.len(), place.bytes()));
    }
    let trailer: [u8; TRAILER_BYTES] = *bytes.last_chunk().ok_or_else(|| "it is shorter than a trailer".to_owned())?;
    let u32_at = |at: usize| u32::from_le_bytes(trailer[at..at + 4].try_into().expect("four bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(trailer[at..at + 8].try_into().expect("eight bytes"));
    if trailer[..8] != MAGIC {
        return Err("it has no trailer of a page".to_owned());
    }
    if bugs::is_on(Bug::TrustsPages) {
        // Nothing is compared.
    } else if u32_at(60) != place.crc || crc32c(&bytes[..bytes.len() - 4]) != place.crc {
        return Err("its checksum is wrong".to_owned());
    }
    if u32_at(8) != FORMAT {
        return Err(format!("format {} is not known to this version", u32_at(8)));
    }
    let told = FrameLabel { shard: u32_at(12), table: TableId(u64_at(16)), page: u64_at(24) };
    if told != *label || (u32_at(44), u32_at(48), u32_at(40)) != (place.segment, place.sector, place.sectors) {
        return Err(format!("it is {told:?}, not {label:?}"));
    }
    let used = usize::try_from(u64_at(32)).unwrap_or(usize::MAX);
    if used > bytes.len() - TRAILER_BYTES {
        return Err("its page is longer than itself".to_owned());
    }
    bytes.truncate(used);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    const LABEL: FrameLabel = FrameLabel { shard: 3, table: TableId(9), page: 77 };

    proptest! {
        #[test]
        fn frames_come_back_and_no_changed_one_does(
            page in prop::collection::vec(any::<u8>(), 0..2000), bit in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Vec::new();
            let place = push_frame(&mut bytes, &LABEL, &page, 5, 40);
            prop_assert_eq!(bytes.len(), place.bytes());
            prop_assert!(bytes.len().is_multiple_of(SECTOR_BYTES));
            prop_assert_eq!(open_frame(bytes.clone(), &LABEL, &place), Ok(page));
            let (other_page, other_sector) = (FrameLabel { page: 78, ..LABEL }, FramePlace { sector: 41, ..place });
            prop_assert!(open_frame(bytes.clone(), &other_page, &place).is_err());
            prop_assert!(open_frame(bytes.clone(), &LABEL, &other_sector).is_err());
            prop_assert!(open_frame(bytes[..cut.index(bytes.len())].to_vec(), &LABEL, &place).is_err());
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(open_frame(bytes, &LABEL, &place).is_err());
        }

        #[test]
        fn anything_opens_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..1200), crc in any::<u32>()) {
            let place = FramePlace { segment: 0, sector: 0, sectors: (bytes.len() / SECTOR_BYTES) as u32, crc };
            prop_assert!(open_frame(bytes, &LABEL, &place).is_err());
        }
    }

    // R14: a checksum that adds words up misses these two.
    #[test]
    fn swapped_words_and_zeroed_repeats_are_noticed() {
        let mut page = vec![0xAB; 4096];
        page[..8].copy_from_slice(b"firstone");
        page[8..16].copy_from_slice(b"secondly");
        let mut bytes = Vec::new();
        let place = push_frame(&mut bytes, &LABEL, &page, 0, 0);
        let mut swapped = bytes.clone();
        swapped.copy_within(0..8, 16);
        swapped.copy_within(8..16, 0);
        swapped[8..16].copy_from_slice(b"firstone");
        swapped[16..24].copy_from_slice(&[0xAB; 8]);
        assert_eq!(swapped[..8], *b"secondly");
        assert!(open_frame(swapped, &LABEL, &place).is_err());
        bytes[512..4096].fill(0);
        assert!(open_frame(bytes, &LABEL, &place).is_err());
    }

    #[test]
    fn segments_have_names_of_their_own() {
        for number in [0, 7, u32::MAX] {
            assert_eq!(segment_number(&segment_name(number)), Some(number));
        }
        for other in ["pages-1.seg", "pages-99999999999.seg", "pages-.seg", "wal-0000000001.seg"] {
            assert_eq!(segment_number(&FileName::new(other).unwrap()), None, "{other}");
        }
    }
}
