//! An ordered table as it was at one moment.

use std::sync::Arc;

use super::block::Block;
use crate::store::{FramePlace, StoreHandle};

/// A block's copy in a store; given back when the last block that is it goes.
#[derive(Debug)]
pub(super) struct BlockFrame {
    pub(super) place: FramePlace,
    pub(super) number: u64,
    pub(super) store: StoreHandle,
}

impl Drop for BlockFrame {
    fn drop(&mut self) {
        self.store.lock().release(&self.place);
    }
}

/// The blocks of a table at one moment, in order. The table goes on; a block that it changes it copies first.
#[derive(Debug)]
pub(crate) struct OrderedSnapshot {
    pub(super) chunks: Vec<Arc<Vec<Arc<Block>>>>,
    chunk: usize,
    block: usize,
}

impl OrderedSnapshot {
    pub(super) fn new(chunks: Vec<Arc<Vec<Arc<Block>>>>) -> Self {
        Self { chunks, chunk: 0, block: 0 }
    }

    /// Tells the entries of the next block, in order; whether there is another. What the snapshot alone still holds of it is freed.
    pub(crate) fn take_block(&mut self, mut f: impl FnMut(&[u8], &[u8])) -> bool {
        let Some(blocks) = self.chunks.get(self.chunk) else { return false };
        if let Some(block) = blocks.get(self.block) {
            (0..block.len()).map(|slot| block.entry(slot)).for_each(|(key, value)| f(key, value));
            self.block += 1;
        }
        if self.block >= blocks.len() {
            self.chunks[self.chunk] = Arc::default();
            (self.chunk, self.block) = (self.chunk + 1, 0);
        }
        self.chunk < self.chunks.len()
    }

    /// The next block that has no copy in the store, as bytes; those that have are stepped over.
    pub(crate) fn next_unwritten(&mut self) -> Option<Vec<u8>> {
        while let Some(blocks) = self.chunks.get(self.chunk) {
            while let Some(block) = blocks.get(self.block) {
                if block.frame.get().is_none() {
                    return Some(block.encode());
                }
                self.block += 1;
            }
            (self.chunk, self.block) = (self.chunk + 1, 0);
        }
        None
    }

    /// Tells where the block of `next_unwritten` was written to.
    pub(crate) fn written(&mut self, place: FramePlace, number: u64, store: &StoreHandle) {
        if let Some(block) = self.chunks.get(self.chunk).and_then(|blocks| blocks.get(self.block)) {
            block.frame.get_or_init(|| BlockFrame { place, number, store: store.clone() });
        }
    }

    /// Where all blocks are, in order, once all are written.
    pub(crate) fn places(&self) -> Vec<(u64, FramePlace)> {
        let blocks = self.chunks.iter().flat_map(|blocks| blocks.iter());
        blocks.filter_map(|block| block.frame.get().map(|f| (f.number, f.place))).collect()
    }
}
