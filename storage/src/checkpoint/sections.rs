//! What shards captured, sorted by vnode on its way into a data file.

use super::format::{SectionKind, SectionWriter};
use super::image::{Part, vnode_of};
use crate::point::{PageRecord, read_page, read_removals};
use crate::shard::{BLOCK_BYTES, CapturedBlock, CapturedContent, CapturedPieces};

/// Sections that are being filled: a vnode that has anything takes 64 to 128 KiB.
#[derive(Debug, Default)]
pub(super) struct OpenSections {
    by_vnode: Vec<SectionWriter>,
    /// Ends of what was captured of ordered tables: they come last, as blocks that aren't full do.
    ordered: Vec<Vec<u8>>,
}

impl OpenSections {
    /// Takes a block's content in, and gives each payload that is full to `full`.
    pub(super) fn add<E>(
        &mut self,
        block: &CapturedBlock,
        vnode_count: u32,
        mut full: impl FnMut(Part, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.by_vnode.resize_with(vnode_count as usize, SectionWriter::default);
        let (id, width, pieces) = match &block.content {
            CapturedContent::Ordered(payload) if payload.len() >= BLOCK_BYTES => return full(Part::Ordered, payload),
            CapturedContent::Ordered(payload) => {
                self.ordered.push(payload.clone());
                return Ok(());
            }
            CapturedContent::Point { table, value_width, pieces } => (*table, *value_width, pieces),
        };
        let mut result = Ok(());
        let mut push = |kind, hash, key: &[u8], value: &[u8]| {
            let vnode = vnode_of(hash, vnode_count);
            let writer = &mut self.by_vnode[vnode as usize];
            writer.push(id, kind, width, hash, key, value);
            if writer.len() >= BLOCK_BYTES {
                if result.is_ok() {
                    result = full(Part::Vnode(vnode), writer.payload());
                }
                writer.clear();
            }
        };
        match pieces {
            CapturedPieces::Cleared => self.by_vnode.iter_mut().for_each(|w| w.mark(id, width, SectionKind::Cleared)),
            CapturedPieces::Removed(keys) => read_removals(keys, |hash, key| push(SectionKind::Removed, hash, key, &[])),
            CapturedPieces::Records(records) => {
                let whole = read_page(records, |record| match record {
                    PageRecord::Live { hash, key, value } => push(SectionKind::Point, hash, key, value),
                    PageRecord::Removed { .. } => unreachable!("a table in memory has no tombstones"),
                });
                // A checkpoint without some of its records must not be written.
                assert!(whole.is_some(), "what a capture gave is whole records");
            }
        }
        result
    }

    /// Gives what is gathered of a vnode to `full`.
    pub(super) fn close_vnode<E>(&mut self, vnode: u32, full: impl FnOnce(Part, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut writer = self.by_vnode.get_mut(vnode as usize).map(std::mem::take).unwrap_or_default();
        if writer.len() > 0 { full(Part::Vnode(vnode), writer.payload()) } else { Ok(()) }
    }

    /// Gives what isn't full to `full`, vnodes in their order; nothing is left.
    pub(super) fn close<E>(&mut self, mut full: impl FnMut(Part, &[u8]) -> Result<(), E>) -> Result<(), E> {
        for (vnode, mut writer) in self.by_vnode.drain(..).enumerate() {
            if writer.len() > 0 {
                full(Part::Vnode(vnode as u32), writer.payload())?;
            }
        }
        self.ordered.drain(..).try_for_each(|payload| full(Part::Ordered, &payload))
    }
}
