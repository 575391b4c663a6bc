//! The manifest of a checkpoint that a shard's own pages make up; `docs/storage-format.md` is the reference.
//!
//! ```text
//! file pages-manifest-<version, 20 digits>
//!   0    8  magic "TRFOLDOV"     8  4  format, 1     12  4  body bytes     16  4  crc32c of 0..16 and the body
//!   20   …  body: version 8 · shard 4 · note bytes 4 · note · tables 4 ·
//!           for each table: id 8 · kind 4 (0 point, 1 ordered) · value width 4 · next page number 8 · pages 4 ·
//!             for each page: number 8 · segment 4 · first sector 4 · sectors 4 · crc 4
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::TableId;
use crate::device::FileName;
use crate::point::PageImage;
use crate::sealed::{Frame, HEADER_BYTES, SealedError};
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
    /// The manifest in a file's bytes, or why it is none.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, SealedError> {
        Self::decode_body(FRAME.open(bytes)?).ok_or_else(|| "its body makes no sense".into())
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
    pub(crate) fn segments(&self) -> BTreeMap<u32, u32> {
        let mut segments = BTreeMap::new();
        for page in self.tables.iter().flat_map(|t| &t.pages) {
            let end = segments.entry(page.place.segment).or_insert(0);
            *end = (*end).max(page.place.sector + page.place.sectors);
        }
        segments
    }
}

/// A manifest's file that is put together page by page, as there may be very many.
#[derive(Debug)]
pub(crate) struct ManifestDraft {
    /// Room for the header, and the body so far.
    bytes: Vec<u8>,
    /// Where the number of tables stands.
    tables_at: usize,
    tables: usize,
    /// Where the number of the last table's pages stands.
    pages_at: usize,
    pages: usize,
    segments: BTreeSet<u32>,
    last_segment: Option<u32>,
}

impl ManifestDraft {
    pub(crate) fn new(version: u64, shard: u32, note: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend_from_slice(&version.to_le_bytes());
        bytes.extend_from_slice(&shard.to_le_bytes());
        bytes.extend_from_slice(&length(note.len()));
        bytes.extend_from_slice(note);
        let tables_at = bytes.len();
        bytes.extend_from_slice(&[0; 4]);
        Self { bytes, tables_at, tables: 0, pages_at: 0, pages: 0, segments: BTreeSet::new(), last_segment: None }
    }

    /// Begins a table, which has `pages` pages at most.
    pub(crate) fn begin_table(&mut self, id: TableId, kind: TableKind, value_width: u32, next_number: u64, pages: usize) {
        self.end_table();
        self.bytes.reserve(28 + pages * PAGE_BYTES);
        self.bytes.extend_from_slice(&id.0.to_le_bytes());
        self.bytes.extend_from_slice(&u32::from(kind == TableKind::Ordered).to_le_bytes());
        self.bytes.extend_from_slice(&value_width.to_le_bytes());
        self.bytes.extend_from_slice(&next_number.to_le_bytes());
        (self.pages_at, self.pages) = (self.bytes.len(), 0);
        self.bytes.extend_from_slice(&[0; 4]);
        self.tables += 1;
    }

    /// The next page of the table that was begun last.
    pub(crate) fn push(&mut self, page: &PageImage) {
        let mut bytes = [0; PAGE_BYTES];
        bytes[..8].copy_from_slice(&page.number.to_le_bytes());
        let words = [page.place.segment, page.place.sector, page.place.sectors, page.place.crc];
        for (place, word) in bytes[8..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        self.bytes.extend_from_slice(&bytes);
        self.pages += 1;
        if self.last_segment != Some(page.place.segment) {
            self.last_segment = Some(page.place.segment);
            self.segments.insert(page.place.segment);
        }
    }

    fn end_table(&mut self) {
        if self.tables > 0 {
            self.bytes[self.pages_at..self.pages_at + 4].copy_from_slice(&length(self.pages));
        }
    }

    /// The segments that it names.
    pub(crate) fn segments(&self) -> Vec<u32> {
        self.segments.iter().copied().collect()
    }

    /// The file.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.end_table();
        self.bytes[self.tables_at..self.tables_at + 4].copy_from_slice(&length(self.tables));
        let body = length(self.bytes.len() - HEADER_BYTES);
        FRAME.seal_around(&mut self.bytes, body);
        self.bytes
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
            let mut draft = ManifestDraft::new(manifest.version, manifest.shard, &manifest.note);
            for table in &manifest.tables {
                draft.begin_table(table.id, table.kind, table.value_width, table.next_number, table.pages.len());
                table.pages.iter().for_each(|page| draft.push(page));
            }
            prop_assert_eq!(draft.segments(), manifest.segments().into_keys().collect::<Vec<_>>());
            let mut bytes = draft.finish();
            prop_assert_eq!(PagesManifest::decode(&bytes), Ok(manifest));
            prop_assert!(PagesManifest::decode(&bytes[..cut.index(bytes.len())]).is_err());
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(PagesManifest::decode(&bytes).is_err());
        }
    }
}
