//! Bytes of checkpoints; `docs/storage-format.md` is their reference.
//!
//! ```text
//! data file shard-<version, 20 digits>.data: blocks, one behind the other
//!   0    4  payload bytes        4   4  crc32c of version, file offset (8 bytes each), part, payload
//!   8    4  part: vnode, or 0xffffffff for ordered tables
//!   12   …  payload: sections
//! section
//!   0    8  table     8  4  value width     12  4  kind: 0 point, 1 ordered, 2 removed, 3 cleared     16  4  records
//!   20   …  records: hash 8 (not ordered) · key bytes 4 · value bytes 4 · key · value
//! manifest file manifest-<version, 20 digits>
//!   0    8  magic "TRMANIFE"     8  4  format, 2     12  4  body bytes     16  4  crc32c of 0..16 and the body
//!   20   …  body: version 8 · vnodes 4 · records 8 · note bytes 4 · note ·
//!           files 4 · for each data file: version 8 · bytes 8 ·
//!           blocks 4 · for each block: file 4 · offset 8 · bytes 4 · part 4 · crc 4
//! format 1: body: version 8 · vnodes 4 · records 8 · data file bytes 8 · note bytes 4 · note · blocks 4 ·
//!           for each block: offset 8 · bytes 4 · part 4 · crc 4
//! ```
//! All numbers are little endian.

use crc32c::{crc32c, crc32c_append};

use super::image::Part;
use crate::device::FileName;
use crate::sealed::{Frame, SealedError};
use crate::shard::TableId;

/// What the records of a section say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SectionKind {
    /// Keys of a point table have these values.
    Point = 0,
    /// Keys of an ordered table have these values.
    Ordered = 1,
    /// Keys of a point table are gone.
    Removed = 2,
    /// All that blocks before have of the table in this vnode is gone; no records.
    Cleared = 3,
}

impl SectionKind {
    fn of(number: u32) -> Option<Self> {
        [Self::Point, Self::Ordered, Self::Removed, Self::Cleared].into_iter().find(|kind| *kind as u32 == number)
    }
}

pub(super) const BLOCK_HEADER_BYTES: usize = 12;
const SECTION_BYTES: usize = 20;
const FRAME: Frame = Frame { magic: *b"TRMANIFE", format: 2, oldest_format: 1, name: "a manifest" };
/// Bytes of a block in a manifest, and of one of format 1.
const PLACE_BYTES: usize = 24;
const PLACE_BYTES_1: usize = 20;
const ORDERED: u32 = u32::MAX;

pub(super) fn data_name(version: u64) -> FileName {
    FileName::new(&format!("shard-{version:020}.data")).expect("letters, digits, a dash and a dot")
}

pub(super) fn manifest_name(version: u64) -> FileName {
    FileName::new(&format!("manifest-{version:020}")).expect("letters, digits and a dash")
}

pub(super) fn temporary_name(version: u64) -> FileName {
    FileName::new(&format!("temporary-{version:020}")).expect("letters, digits and a dash")
}

/// What a file of this directory is to checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Data(u64),
    Manifest(u64),
    Temporary(u64),
}

pub(super) fn role(name: &FileName) -> Option<Role> {
    let number =
        |digits: &str| (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten();
    let name = name.as_str();
    if let Some(rest) = name.strip_prefix("shard-") {
        number(rest.strip_suffix(".data")?).map(Role::Data)
    } else if let Some(rest) = name.strip_prefix("manifest-") {
        number(rest).map(Role::Manifest)
    } else {
        number(name.strip_prefix("temporary-")?).map(Role::Temporary)
    }
}

/// Makes the payload of one block.
#[derive(Debug, Default)]
pub(crate) struct SectionWriter {
    bytes: Vec<u8>,
    /// Where the open section begins, and what it is of.
    section: Option<(usize, TableId, SectionKind)>,
    count: u32,
    /// How long the payload before was: the next is given so much room at once, as it isn't copied then while it grows.
    last_bytes: usize,
}

impl SectionWriter {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Begins a section, even if it is to have no records.
    pub(crate) fn mark(&mut self, id: TableId, value_width: usize, kind: SectionKind) {
        self.end_section();
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(self.last_bytes);
        }
        self.section = Some((self.bytes.len(), id, kind));
        self.bytes.extend_from_slice(&id.0.to_le_bytes());
        self.bytes.extend_from_slice(&length(value_width));
        self.bytes.extend_from_slice(&(kind as u32).to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
    }

    #[inline]
    pub(crate) fn push(&mut self, id: TableId, kind: SectionKind, value_width: usize, hash: u64, key: &[u8], value: &[u8]) {
        if self.section.is_none_or(|(_, open, open_kind)| (open, open_kind) != (id, kind)) {
            self.mark(id, value_width, kind);
        }
        self.count += 1;
        if let (Ok(key), Ok(value)) = (<[u8; 8]>::try_from(key), <[u8; 8]>::try_from(value))
            && kind != SectionKind::Ordered
        {
            // Most records by far: one copy, of a length that is known.
            let mut record = [0; 32];
            record[..8].copy_from_slice(&hash.to_le_bytes());
            (record[8], record[12]) = (8, 8);
            record[16..24].copy_from_slice(&key);
            record[24..].copy_from_slice(&value);
            self.bytes.extend_from_slice(&record);
            return;
        }
        let mut header = [0; 16];
        header[..8].copy_from_slice(&hash.to_le_bytes());
        header[8..12].copy_from_slice(&length(key.len()));
        header[12..].copy_from_slice(&length(value.len()));
        self.bytes.extend_from_slice(if kind == SectionKind::Ordered { &header[8..] } else { &header });
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
    }

    fn end_section(&mut self) {
        if let Some((at, ..)) = self.section.take() {
            self.bytes[at + 16..at + 20].copy_from_slice(&self.count.to_le_bytes());
            self.count = 0;
        }
    }

    /// The payload so far, to be followed by [`clear`](Self::clear).
    pub(super) fn payload(&mut self) -> &[u8] {
        self.end_section();
        &self.bytes
    }

    /// The writer is empty again, and keeps its memory.
    pub(super) fn clear(&mut self) {
        self.section = None;
        self.count = 0;
        self.bytes.clear();
    }

    /// The payload; the writer is empty again.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        self.end_section();
        self.last_bytes = self.bytes.len();
        std::mem::take(&mut self.bytes)
    }
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).expect("keys and values are shorter than 4 GiB").to_le_bytes()
}

/// Takes bytes from the front; `None` when there are too few.
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

/// A record of a block's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockRecord<'a> {
    pub(super) table: TableId,
    pub(super) kind: SectionKind,
    pub(super) value_width: usize,
    pub(super) hash: u64,
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
}

/// Calls `f` for each record of a payload, and once (with no key) for a section that clears a table; `None` when it is none.
pub(super) fn read_payload<'p>(mut payload: &'p [u8], mut f: impl FnMut(BlockRecord<'p>)) -> Option<()> {
    let bytes = &mut payload;
    while !bytes.is_empty() {
        let table = TableId(take_u64(bytes)?);
        let value_width = take_u32(bytes)? as usize;
        let kind = SectionKind::of(take_u32(bytes)?)?;
        let count = take_u32(bytes)?;
        if kind == SectionKind::Cleared {
            f(BlockRecord { table, kind, value_width, hash: 0, key: &[], value: &[] });
            if count > 0 {
                return None;
            }
        }
        for _ in 0..count {
            let hash = if kind == SectionKind::Ordered { 0 } else { take_u64(bytes)? };
            let (key, value) = (take_u32(bytes)? as usize, take_u32(bytes)? as usize);
            let (key, value) = (take(bytes, key)?, take(bytes, value)?);
            f(BlockRecord { table, kind, value_width, hash, key, value });
        }
    }
    Some(())
}

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockPlace {
    /// The version whose data file has it.
    pub(super) file: u64,
    pub(super) offset: u64,
    /// With its header.
    pub(super) bytes: u32,
    pub(super) part: Part,
    pub(super) crc: u32,
}

fn part_number(part: Part) -> u32 {
    match part {
        Part::Vnode(vnode) => vnode,
        Part::Ordered => ORDERED,
    }
}

fn block_crc(version: u64, offset: u64, part: u32, payload: &[u8]) -> u32 {
    let crc = crc32c_append(crc32c(&version.to_le_bytes()), &offset.to_le_bytes());
    crc32c_append(crc32c_append(crc, &part.to_le_bytes()), payload)
}

/// Appends a block to the bytes of a data file that begin at `base`.
pub(super) fn push_block(out: &mut Vec<u8>, base: u64, version: u64, part: Part, payload: &[u8]) -> BlockPlace {
    let offset = base + out.len() as u64;
    let number = part_number(part);
    let crc = block_crc(version, offset, number, payload);
    out.extend_from_slice(&length(payload.len()));
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(payload);
    BlockPlace { file: version, offset, bytes: u32::from_le_bytes(length(payload.len() + BLOCK_HEADER_BYTES)), part, crc }
}

/// The payload of a block, if it is the one meant.
pub(super) fn open_block<'a>(bytes: &'a [u8], place: &BlockPlace) -> Option<&'a [u8]> {
    let mut rest = bytes;
    let (length, crc, part) = (take_u32(&mut rest)?, take_u32(&mut rest)?, take_u32(&mut rest)?);
    let fits = length as usize == rest.len() && bytes.len() == place.bytes as usize;
    (fits && part == part_number(place.part) && crc == place.crc && block_crc(place.file, place.offset, part, rest) == crc)
        .then_some(rest)
}

/// A data file that a checkpoint reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DataFile {
    pub(super) version: u64,
    pub(super) bytes: u64,
}

/// What a checkpoint consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ManifestBody {
    pub(super) version: u64,
    pub(super) vnode_count: u32,
    pub(super) records: u64,
    pub(super) note: Vec<u8>,
    /// By version, ascending.
    pub(super) files: Vec<DataFile>,
    /// Of each part in the order in which they are to be read: a later block replaces what an earlier one says.
    pub(super) blocks: Vec<BlockPlace>,
}

impl ManifestBody {
    /// Bytes of all data files together.
    pub(super) fn data_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(64 + self.note.len() + self.files.len() * 16 + self.blocks.len() * PLACE_BYTES);
        body.extend_from_slice(&self.version.to_le_bytes());
        body.extend_from_slice(&self.vnode_count.to_le_bytes());
        body.extend_from_slice(&self.records.to_le_bytes());
        body.extend_from_slice(&length(self.note.len()));
        body.extend_from_slice(&self.note);
        body.extend_from_slice(&length(self.files.len()));
        for file in &self.files {
            body.extend_from_slice(&file.version.to_le_bytes());
            body.extend_from_slice(&file.bytes.to_le_bytes());
        }
        body.extend_from_slice(&length(self.blocks.len()));
        for block in &self.blocks {
            let file = self.files.iter().position(|f| f.version == block.file).expect("a block is in a file that is listed");
            body.extend_from_slice(&length(file));
            body.extend_from_slice(&block.offset.to_le_bytes());
            body.extend_from_slice(&block.bytes.to_le_bytes());
            body.extend_from_slice(&part_number(block.part).to_le_bytes());
            body.extend_from_slice(&block.crc.to_le_bytes());
        }
        FRAME.seal(&body, length(body.len()))
    }

    /// The manifest in a file's bytes, or why it is none.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, SealedError> {
        let (format, body) = FRAME.open_any(bytes)?;
        Self::decode_body(format, body).ok_or_else(|| "its body makes no sense".into())
    }

    fn decode_body(format: u32, mut body: &[u8]) -> Option<Self> {
        let bytes = &mut body;
        let (version, vnode_count, records) = (take_u64(bytes)?, take_u32(bytes)?, take_u64(bytes)?);
        let data_bytes = if format == 1 { take_u64(bytes)? } else { 0 };
        let note = take_u32(bytes)? as usize;
        let note = take(bytes, note)?.to_vec();
        let files = if format == 1 {
            vec![DataFile { version, bytes: data_bytes }]
        } else {
            let count = take_u32(bytes)? as usize;
            let mut files = Vec::with_capacity(count.min(bytes.len() / 16));
            for _ in 0..count {
                files.push(DataFile { version: take_u64(bytes)?, bytes: take_u64(bytes)? });
            }
            files
        };
        let is_ascending = files.windows(2).all(|pair| pair[0].version < pair[1].version);
        let count = take_u32(bytes)? as usize;
        let place_bytes = if format == 1 { PLACE_BYTES_1 } else { PLACE_BYTES };
        if bytes.len() != count.checked_mul(place_bytes)? || vnode_count == 0 || !is_ascending {
            return None;
        }
        let mut blocks = Vec::with_capacity(count);
        for _ in 0..count {
            let file = if format == 1 { files[0] } else { *files.get(take_u32(bytes)? as usize)? };
            let (offset, length, part, crc) = (take_u64(bytes)?, take_u32(bytes)?, take_u32(bytes)?, take_u32(bytes)?);
            let part = if part == ORDERED { Part::Ordered } else { Part::Vnode(part) };
            let end = offset.checked_add(u64::from(length))?;
            let is_newer = file.version > version;
            if end > file.bytes || is_newer || matches!(part, Part::Vnode(v) if v >= vnode_count) {
                return None;
            }
            blocks.push(BlockPlace { file: file.version, offset, bytes: length, part, crc });
        }
        Some(Self { version, vnode_count, records, note, files, blocks })
    }
}

const _: () = assert!(SECTION_BYTES == 8 + 4 + 4 + 4);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_tell_roles_and_versions() {
        for version in [0, 7, u64::MAX] {
            assert_eq!(role(&data_name(version)), Some(Role::Data(version)));
            assert_eq!(role(&manifest_name(version)), Some(Role::Manifest(version)));
            assert_eq!(role(&temporary_name(version)), Some(Role::Temporary(version)));
        }
        for other in ["shard-1.data", "manifest-", "manifest-1", "wal-00000000000000000000.seg", "shard-00000000000000000001"] {
            assert_eq!(role(&FileName::new(other).unwrap()), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn anything_decodes_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_payload(&bytes, |_| {});
            prop_assert!(ManifestBody::decode(&bytes).is_err());
            let _ = (ManifestBody::decode_body(1, &bytes), ManifestBody::decode_body(2, &bytes));
            let place = BlockPlace { file: 1, offset: 0, bytes: bytes.len() as u32, part: Part::Ordered, crc: 0 };
            let _ = open_block(&bytes, &place);
        }

        #[test]
        fn manifests_come_back_and_no_changed_one_does(
            note in prop::collection::vec(any::<u8>(), 0..50), count in 0_u32..20, bit in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>(),
        ) {
            let blocks = (0..count).map(|i| BlockPlace { file: 7 + 2 * u64::from(i % 2), offset: u64::from(i) * 10, bytes: 10, part: if i == 3 { Part::Ordered } else { Part::Vnode(i) }, crc: i }).collect();
            let files = vec![DataFile { version: 7, bytes: 200 }, DataFile { version: 9, bytes: 200 }];
            let manifest = ManifestBody { version: 9, vnode_count: 20, records: 5, note, files, blocks };
            let mut bytes = manifest.encode();
            prop_assert_eq!(ManifestBody::decode(&bytes), Ok(manifest));
            prop_assert!(ManifestBody::decode(&bytes[..cut.index(bytes.len())]).is_err());
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(ManifestBody::decode(&bytes).is_err());
        }
    }
}
