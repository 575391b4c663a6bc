//! The content of a shard at one moment, in blocks by vnode, ready to be written.

use super::format::{BlockRecord, SectionKind, SectionWriter, read_payload};
use crate::point::{Entry, KeyBatch};
use crate::shard::{Shard, TableId};

/// A block is closed when it is at least this long; one record may make it longer.
const BLOCK_BYTES: usize = 64 << 10;
/// Records taken from a table at once.
const SCAN_ROWS: usize = 1024;

/// The vnode of a hash, out of `count`: equal ranges of the hash space, by its top bits.
#[must_use]
pub fn vnode_of(hash: u64, count: u32) -> u32 {
    ((u128::from(hash) * u128::from(count)) >> 64) as u32
}

/// Which part of the state a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Records of point tables whose keys hash to this vnode.
    Vnode(u32),
    /// Ordered tables: their keys say nothing of vnodes to this crate.
    Ordered,
}

#[derive(Debug)]
pub(super) struct ImageBlock {
    pub(super) part: Part,
    pub(super) payload: Vec<u8>,
}

/// The content of a shard at one moment. Independent of the shard from then on: it can be written by another thread.
#[derive(Debug)]
pub struct Image {
    pub(super) vnode_count: u32,
    pub(super) records: u64,
    pub(super) tables: u64,
    pub(super) blocks: Vec<ImageBlock>,
}

impl Image {
    /// Copies what the shard holds: takes time and memory in proportion to that, and the shard stands meanwhile.
    ///
    /// `vnode_count`: 1 to 65 535.
    #[must_use]
    pub fn of(shard: &Shard, vnode_count: u32) -> Self {
        Self::filtered(shard, vnode_count, |_| true, |_, _| true)
    }

    fn filtered(
        shard: &Shard,
        vnode_count: u32,
        has_vnode: impl Fn(u32) -> bool,
        has_ordered: impl Fn(TableId, &[u8]) -> bool,
    ) -> Self {
        assert!((1..=65_535).contains(&vnode_count), "1 to 65535 vnodes");
        let mut image = Self { vnode_count, records: 0, tables: 0, blocks: Vec::new() };
        let mut open: Vec<SectionWriter> = (0..vnode_count).map(|_| SectionWriter::default()).collect();
        let mut found = Vec::new();
        for (id, table) in shard.point_tables() {
            image.tables += 1;
            let mut cursor = Some(0);
            while let Some(at) = cursor {
                found.clear();
                cursor = table.scan(at, SCAN_ROWS, &mut found);
                for record in &found {
                    let hash = table.hash(*record);
                    let vnode = vnode_of(hash, vnode_count);
                    if !has_vnode(vnode) {
                        continue;
                    }
                    let writer = &mut open[vnode as usize];
                    writer.push(id, SectionKind::Point, table.value_width(), hash, table.key(*record), table.value(*record));
                    image.records += 1;
                    if writer.len() >= BLOCK_BYTES {
                        image.blocks.push(ImageBlock { part: Part::Vnode(vnode), payload: writer.finish() });
                    }
                }
            }
        }
        for (vnode, mut writer) in open.into_iter().enumerate() {
            if writer.len() > 0 {
                image.blocks.push(ImageBlock { part: Part::Vnode(vnode as u32), payload: writer.finish() });
            }
        }
        let mut writer = SectionWriter::default();
        for (id, table) in shard.ordered_tables() {
            image.tables += 1;
            table.for_each(|key, value| {
                if has_ordered(id, key) {
                    writer.push(id, SectionKind::Ordered, 0, 0, key, value);
                    image.records += 1;
                }
                if writer.len() >= BLOCK_BYTES {
                    image.blocks.push(ImageBlock { part: Part::Ordered, payload: writer.finish() });
                }
            });
        }
        if writer.len() > 0 {
            image.blocks.push(ImageBlock { part: Part::Ordered, payload: writer.finish() });
        }
        image
    }

    /// The images of several shards as one; `None` for none. No vnode is in two of them, and all are of the same number of vnodes.
    #[must_use]
    pub fn join(images: Vec<Self>) -> Option<Self> {
        let mut images = images.into_iter();
        let mut all = images.next()?;
        for image in images {
            assert_eq!(image.vnode_count, all.vnode_count, "images of the same number of vnodes");
            all.records += image.records;
            all.tables += image.tables;
            all.blocks.extend(image.blocks);
        }
        Some(all)
    }

    /// What the shard holds of point tables in some vnodes out of `vnode_count`, and of ordered tables under keys of which `has_ordered` says
    /// that they belong to them: to be put into another shard by [`put_into`](Self::put_into), and taken out of this one by
    /// [`Shard::remove_vnodes`]. Other vnodes' records are looked at and not copied.
    #[must_use]
    pub fn of_vnodes(
        shard: &Shard,
        vnode_count: u32,
        vnodes: std::ops::Range<u32>,
        has_ordered: impl Fn(TableId, &[u8]) -> bool,
    ) -> Self {
        Self::filtered(shard, vnode_count, |vnode| vnodes.contains(&vnode), has_ordered)
    }

    /// Puts all its records into a shard, over what that has of their keys; how many.
    pub fn put_into(&self, shard: &mut Shard) -> u64 {
        let mut count = 0;
        for block in &self.blocks {
            let mut restorer = Restorer::new();
            let read = read_payload(&block.payload, |r| {
                restorer.push(shard, &r);
                count += 1;
            });
            restorer.finish(shard);
            debug_assert!(read.is_some(), "an image is what its writer made");
        }
        count
    }

    /// What it takes in memory, and about what it will take on the device.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(|b| b.payload.len()).sum()
    }

    /// How many records it holds.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }
}

/// Records of one point table that are put back together: the table asks for the memory of later ones while it works on earlier ones.
#[derive(Debug)]
struct Batch<'p> {
    table: TableId,
    value_width: usize,
    bytes: Vec<u8>,
    offsets: Vec<u32>,
    hashes: Vec<u64>,
    values: Vec<&'p [u8]>,
    entries: Vec<Entry>,
}

/// Puts records back, or takes them away, in their order as far as that matters.
#[derive(Debug)]
pub(super) struct Restorer<'p> {
    batch: Batch<'p>,
}

impl<'p> Restorer<'p> {
    pub(super) fn new() -> Self {
        let batch = Batch {
            table: TableId(0),
            value_width: 0,
            bytes: Vec::new(),
            offsets: vec![0],
            hashes: Vec::new(),
            values: Vec::new(),
            entries: Vec::new(),
        };
        Self { batch }
    }

    /// One record; the last ones are put by [`finish`](Self::finish).
    pub(super) fn push(&mut self, shard: &mut Shard, r: &BlockRecord<'p>) {
        let batches = r.kind == SectionKind::Point && r.value.len() == r.value_width && !r.value.is_empty();
        let full = self.batch.hashes.len() >= SCAN_ROWS || self.batch.bytes.len() > BLOCK_BYTES;
        if !batches || full || self.batch.table != r.table || self.batch.value_width != r.value_width {
            self.finish(shard);
        }
        match r.kind {
            SectionKind::Point if batches && r.key.len() < BLOCK_BYTES => {
                (self.batch.table, self.batch.value_width) = (r.table, r.value_width);
                self.batch.bytes.extend_from_slice(r.key);
                self.batch.offsets.push(self.batch.bytes.len() as u32);
                self.batch.hashes.push(r.hash);
                self.batch.values.push(r.value);
            }
            SectionKind::Point => {
                self.finish(shard);
                shard.point(r.table, r.value_width).put(r.hash, r.key, r.value);
            }
            SectionKind::Ordered => shard.ordered(r.table).put(r.key, r.value),
            SectionKind::Removed => {
                shard.point(r.table, r.value_width).remove(r.hash, r.key);
            }
            // Whoever reads blocks in their order leaves out what comes before this.
            SectionKind::Cleared => {}
        }
    }

    /// Puts what is gathered.
    pub(super) fn finish(&mut self, shard: &mut Shard) {
        let Batch { table, value_width, bytes, offsets, hashes, values, entries } = &mut self.batch;
        if hashes.is_empty() {
            return;
        }
        let table = shard.point(*table, *value_width);
        entries.clear();
        table.entries(&KeyBatch { bytes, offsets, hashes }, entries);
        let mut others = Vec::new();
        for (i, (entry, value)) in entries.iter().zip(&*values).enumerate() {
            let place = table.value_mut(entry.record);
            if place.len() == value.len() {
                place.copy_from_slice(value);
            } else {
                others.push(i);
            }
        }
        // An older layer had a value of another length: the record moves, and no reference given out before is used any more.
        for i in others {
            table.put(hashes[i], &bytes[offsets[i] as usize..offsets[i + 1] as usize], values[i]);
        }
        bytes.clear();
        offsets.truncate(1);
        hashes.clear();
        values.clear();
    }
}
