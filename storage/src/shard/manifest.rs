//! The manifest of a checkpoint that a shard's own pages make up; `docs/storage-format.md` is the reference.
//!
//! ```text
//! file pages-manifest-<version, 20 digits>
//!   0    8  magic "TRFOLDOV"     8  4  format, 1     12  4  body bytes     16  4  crc32c of 0..16 and the body
//!   20   …  body: version 8 · shard 4 · note bytes 4 · note · tables 4 ·
//!           for each table: id 8 · kind 4 (0 point, 1 ordered) · value width 4 · next page number 8 · pages 4 ·
//!             for each page: number 8 · segment 4 · first sector 4 · sectors 4 · crc 4
//! ```

use super::TableId;
use crate::device::FileName;
use crate::point::PageImage;
use crate::sealed::Frame;
use crate::store::FramePlace;

const FRAME: Frame = Frame { magic: *b"TRFOLDOV", format: 1, oldest_format: 1, name: "a manifest of pages" };
const PAGE_BYTES: usize = 24;
const PREFIX: &str = "pages-manifest-";
/// A manifest is at most this long.
pub(crate) const MANIFEST_BYTES_MAX: usize = 1 << 30;
const TEMPORARY: &str = "pages-temporary-";

pub(crate) fn manifest_name(version: u64) -> FileName {
    FileName::new(&format!("{PREFIX}{version:020}")).expect("letters, digits and dashes")
}

pub(crate) fn temporary_name(version: u64) -> FileName {
    FileName::new(&format!("{TEMPORARY}{version:020}")).expect("letters, digits and dashes")
}

pub(crate) fn is_temporary(name: &FileName) -> bool {
    name.as_str().starts_with(TEMPORARY)
}

pub(crate) fn manifest_version(name: &FileName) -> Option<u64> {
    let digits = name.as_str().strip_prefix(PREFIX)?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableKind {
    Point,
    Ordered,
}

/// The pages of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TablePages {
    pub(crate) id: TableId,
    pub(crate) kind: TableKind,
    pub(crate) value_width: u32,
    pub(crate) next_number: u64,
    /// Of point tables by number, of ordered ones in the order of their keys.
    pub(crate) pages: Vec<PageImage>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PagesManifest {
    pub(crate) version: u64,
    pub(crate) shard: u32,
    pub(crate) note: Vec<u8>,
    pub(crate) tables: Vec<TablePages>,
}

fn length(count: usize) -> [u8; 4] {
    u32::try_from(count).expect("fewer pages, and shorter notes, than 2^32").to_le_bytes()
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (front, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(front)
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?))
}

fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(bytes, 8)?.try_into().ok()?))
}

impl PagesManifest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend_from_slice(&self.version.to_le_bytes());
        body.extend_from_slice(&self.shard.to_le_bytes());
        body.extend_from_slice(&length(self.note.len()));
        body.extend_from_slice(&self.note);
        body.extend_from_slice(&length(self.tables.len()));
        for table in &self.tables {
            body.extend_from_slice(&table.id.0.to_le_bytes());
            body.extend_from_slice(&u32::from(table.kind == TableKind::Ordered).to_le_bytes());
            body.extend_from_slice(&table.value_width.to_le_bytes());
            body.extend_from_slice(&table.next_number.to_le_bytes());
            body.extend_from_slice(&length(table.pages.len()));
            for page in &table.pages {
                body.extend_from_slice(&page.number.to_le_bytes());
                for word in [page.place.segment, page.place.sector, page.place.sectors, page.place.crc] {
                    body.extend_from_slice(&word.to_le_bytes());
                }
            }
        }
        FRAME.seal(&body, length(body.len()))
    }

    /// The manifest in a file's bytes, or why it is none.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        Self::decode_body(FRAME.open(bytes)?).ok_or_else(|| "its body makes no sense".to_owned())
    }

    fn decode_body(mut body: &[u8]) -> Option<Self> {
        let bytes = &mut body;
        let (version, shard) = (take_u64(bytes)?, take_u32(bytes)?);
        let note = take_u32(bytes)? as usize;
        let note = take(bytes, note)?.to_vec();
        let mut tables = Vec::new();
        for _ in 0..take_u32(bytes)? {
            let id = TableId(take_u64(bytes)?);
            let kind = match take_u32(bytes)? {
                0 => TableKind::Point,
                1 => TableKind::Ordered,
                _ => return None,
            };
            let (value_width, next_number, count) = (take_u32(bytes)?, take_u64(bytes)?, take_u32(bytes)? as usize);
            let mut pages = Vec::with_capacity(count.min(bytes.len() / PAGE_BYTES));
            for _ in 0..count {
                let number = take_u64(bytes)?;
                let (segment, sector, sectors, crc) = (take_u32(bytes)?, take_u32(bytes)?, take_u32(bytes)?, take_u32(bytes)?);
                sector.checked_add(sectors)?;
                if number >= next_number || sectors == 0 {
                    return None;
                }
                pages.push(PageImage { number, place: FramePlace { segment, sector, sectors, crc } });
            }
            tables.push(TablePages { id, kind, value_width, next_number, pages });
        }
        bytes.is_empty().then_some(Self { version, shard, note, tables })
    }

    /// The segments it names, with the sectors that they must have at least.
    pub(crate) fn segments(&self) -> std::collections::BTreeMap<u32, u32> {
        let mut segments = std::collections::BTreeMap::new();
        for page in self.tables.iter().flat_map(|t| &t.pages) {
            let end = segments.entry(page.place.segment).or_insert(0);
            *end = (*end).max(page.place.sector + page.place.sectors);
        }
        segments
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn anything_decodes_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(PagesManifest::decode(&bytes).is_err());
            let _ = PagesManifest::decode_body(&bytes);
        }

        #[test]
        fn manifests_come_back_and_no_changed_one_does(
            note in prop::collection::vec(any::<u8>(), 0..50), count in 0_u32..20, bit in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>(),
        ) {
            let page = |i: u32| PageImage { number: u64::from(i), place: FramePlace { segment: i, sector: 3, sectors: 2, crc: 7 } };
            let table = |id, kind| TablePages { id: TableId(id), kind, value_width: 8, next_number: 20, pages: (0..count).map(page).collect() };
            let tables = vec![table(1, TableKind::Point), table(2, TableKind::Ordered)];
            let manifest = PagesManifest { version: 9, shard: 4, note, tables };
            let mut bytes = manifest.encode();
            prop_assert_eq!(PagesManifest::decode(&bytes), Ok(manifest));
            prop_assert!(PagesManifest::decode(&bytes[..cut.index(bytes.len())]).is_err());
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(PagesManifest::decode(&bytes).is_err());
        }
    }
}
