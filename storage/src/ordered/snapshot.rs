//! An ordered table as it was at one moment.

use super::Chunk;
use super::block::BlockFrame;
use crate::store::{FramePlace, StoreHandle};

/// Blocks that are passed at once, at most.
const PASSED_MAX: usize = 4096;

/// The blocks of a table at one moment, in order. The table goes on; a block that it changes it copies first.
///
/// Blocks that are passed are let go: of one that was written only its place is kept, and the space there.
#[derive(Debug)]
pub(crate) struct OrderedSnapshot {
    chunks: Vec<Chunk>,
    chunk: usize,
    block: usize,
    /// Where the blocks are that were passed, in order.
    places: Vec<(u64, FramePlace)>,
    store: Option<StoreHandle>,
}

/// What a snapshot that is written comes to next.
#[derive(Debug)]
pub(crate) enum NextBlock {
    /// A block that isn't written, as bytes.
    Unwritten(Vec<u8>),
    /// Many that were; more are to be looked at.
    Passed,
    /// The end.
    End,
}

impl OrderedSnapshot {
    pub(super) fn new(chunks: Vec<Chunk>, store: Option<StoreHandle>) -> Self {
        Self { chunks, chunk: 0, block: 0, places: Vec::new(), store }
    }

    /// Tells the entries of the next block, in order; whether there is another. What the snapshot alone still holds of it is freed.
    pub(crate) fn take_block(&mut self, mut f: impl FnMut(&[u8], &[u8])) -> bool {
        let Some(blocks) = self.chunks.get(self.chunk) else { return false };
        if let Some(block) = blocks.list.get(self.block) {
            let body = block.body();
            (0..body.len()).map(|slot| body.entry(slot)).for_each(|(key, value)| f(key, value));
            self.block += 1;
        }
        if self.block >= blocks.list.len() {
            self.chunks[self.chunk] = Chunk::default();
            (self.chunk, self.block) = (self.chunk + 1, 0);
        }
        self.chunk < self.chunks.len()
    }

    /// Goes on to the next block that has no copy in the store; those that have are passed.
    pub(crate) fn next_unwritten(&mut self) -> NextBlock {
        for _ in 0..PASSED_MAX {
            let Some(blocks) = self.chunks.get(self.chunk) else { return NextBlock::End };
            let Some(block) = blocks.list.get(self.block) else {
                self.chunks[self.chunk] = Chunk::default();
                (self.chunk, self.block) = (self.chunk + 1, 0);
                continue;
            };
            match (block.frame(), block.body_at_hand()) {
                (Some(frame), _) => {
                    // The table may change the block at any time, and give its space back.
                    if let Some(store) = &self.store {
                        store.lock().adopt(&frame.place);
                    }
                    self.places.push((frame.number, frame.place));
                    self.block += 1;
                }
                (None, Some(body)) => return NextBlock::Unwritten(body.encode()),
                // A block is written, or in memory.
                (None, None) => self.block += 1,
            }
        }
        NextBlock::Passed
    }

    /// Tells where the block of `next_unwritten` was written to.
    pub(crate) fn written(&mut self, place: FramePlace, number: u64, batch: u64) {
        if let Some(block) = self.chunks.get(self.chunk).and_then(|blocks| blocks.list.get(self.block)) {
            block.written(BlockFrame { place, number, batch });
        }
    }

    /// Where all blocks are, in order, once all are written.
    pub(crate) fn places(&self) -> &[(u64, FramePlace)] {
        &self.places
    }
}

impl Drop for OrderedSnapshot {
    fn drop(&mut self) {
        if let Some(store) = &self.store {
            let mut store = store.lock();
            self.places.iter().for_each(|(_, place)| store.release(place));
        }
    }
}
