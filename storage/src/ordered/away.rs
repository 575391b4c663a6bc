//! Blocks of an ordered table that leave memory and come back.
//!
//! Two hands go round the blocks: one evicts what is durable and hasn't been used since it was there some times, the other gives changed blocks
//! that weren't used either to the store. Both go a bounded way a call.

use std::ops::Bound;
use std::sync::Arc;

use super::block::{Block, BlockFrame};
use super::body::{Body, entry_bytes};
use super::{OrderedTable, SPARE_BYTES};
use crate::store::{FramePlace, frame_bytes};

/// A hand passes so many blocks a call, at most.
const STEPS: usize = 2048;

/// A block that is on the device alone.
#[derive(Clone, Debug)]
pub(crate) struct BlockAway {
    /// Its first key.
    pub(crate) first: Box<[u8]>,
    pub(crate) number: u64,
    pub(crate) place: FramePlace,
}

/// What came of looking for blocks in some segments.
#[derive(Debug, Default)]
pub(crate) struct Unframed {
    /// Blocks in memory that will be written anew.
    pub(crate) blocks: u64,
    /// Blocks that have to be read for that.
    pub(crate) away: Vec<BlockAway>,
    /// The first key of the block that comes next.
    pub(crate) next: Option<Box<[u8]>>,
}

impl OrderedTable {
    /// Blocks that are on the device alone.
    pub(crate) fn blocks_away(&self) -> usize {
        self.held.away()
    }

    /// What never leaves memory of its blocks, but for their first keys.
    pub(crate) fn places_bytes(&self) -> usize {
        self.account.used_bytes() + self.chunks.iter().map(|blocks| blocks.list.len()).sum::<usize>() * size_of::<Block>()
    }

    /// Blocks that were changed since they were written, or never were.
    pub(crate) fn unwritten_blocks(&self) -> usize {
        self.held.unwritten()
    }

    /// An upper bound, but for entries longer than a block, of the memory that putting so many entries takes; `bytes`: their keys and values
    /// together. When their blocks are in memory: see [`Shard::fetch_range`](crate::Shard::fetch_range).
    #[must_use]
    pub fn room_for(&self, entries: usize, bytes: usize) -> usize {
        // A block that grows doubles at most, and one that is split becomes two; what is changed may be a checkpoint's too, and is copied.
        let entry_bytes = entry_bytes(&[], &[]) + size_of::<u32>() + SPARE_BYTES;
        let blocks =
            entries.min(1 + (bytes + entries * entry_bytes) / (self.block_bytes / 2) + self.held.bytes() / self.block_bytes * 2);
        let lists = (self.chunk_blocks + 1) * size_of::<Arc<Block>>() * 2 + self.chunks.capacity() * 8;
        2 * (bytes + entries * entry_bytes) + blocks * (3 * self.block_bytes + 2 * size_of::<Block>()) + lists
    }

    /// Frees memory of durable blocks that weren't used lately until so much is free; what it came to. `durable`: the newest durable batch.
    /// `passes`: it was some time ago that this was asked, so what was used is that much less lately.
    pub(crate) fn evict(&mut self, wanted: usize, durable: u64, passes: bool) -> usize {
        let (mut chunk, mut at) = self.evict_hand;
        let (mut freed, mut steps, mut begun) = (0, 0, 0);
        while freed < wanted && steps < STEPS && begun <= self.chunks.len() {
            if chunk >= self.chunks.len() {
                (chunk, at) = (0, 0);
                if self.chunks.is_empty() {
                    break;
                }
            }
            (begun, steps) = (begun + 1, steps + 1);
            // What a checkpoint that is being written still has to look at stays; it is let go soon.
            let Some(blocks) = Arc::get_mut(&mut self.chunks[chunk]).filter(|blocks| blocks.is_warm.load(super::Atomic::Relaxed))
            else {
                (chunk, at) = (chunk + 1, 0);
                continue;
            };
            let (from_start, mut stays) = (at == 0, false);
            while freed < wanted && steps < STEPS && at < blocks.list.len() {
                let block = &mut blocks.list[at];
                (at, steps) = (at + 1, steps + 1);
                if !block.is_resident() {
                    continue;
                }
                let is_durable = block.frame().is_some_and(|frame| frame.batch <= durable);
                match Arc::get_mut(block) {
                    Some(block) if is_durable && !block.is_in_use() => freed += block.evict(),
                    _ => {
                        if passes {
                            block.pass();
                        }
                        stays = true;
                    }
                }
            }
            if at >= blocks.list.len() {
                if from_start {
                    *blocks.is_warm.get_mut() = stays;
                }
                (chunk, at) = (chunk + 1, 0);
            }
        }
        self.evict_hand = (chunk, at);
        freed
    }

    /// Gives changed blocks that weren't used lately to the store, as long as there is room for the copies, which `fits` is asked before each
    /// with its bytes. `next_number` counts.
    pub(crate) fn write_cold(&mut self, next_number: &mut u64, mut fits: impl FnMut(usize) -> bool) {
        let Some((store, table)) = self.held.store().cloned() else { return };
        let (mut chunk, mut at) = self.write_hand;
        let (mut steps, mut begun) = (0, 0);
        while steps < STEPS && begun <= self.chunks.len() && self.held.unwritten() > 0 {
            if chunk >= self.chunks.len() {
                (chunk, at) = (0, 0);
                if self.chunks.is_empty() {
                    break;
                }
            }
            (begun, steps) = (begun + 1, steps + 1);
            let blocks = &self.chunks[chunk];
            if !blocks.is_warm.load(super::Atomic::Relaxed) {
                (chunk, at) = (chunk + 1, 0);
                continue;
            }
            while steps < STEPS && at < blocks.list.len() {
                let block = &blocks.list[at];
                if block.frame().is_none()
                    && !block.is_in_use()
                    && let Some(body) = block.body_at_hand()
                {
                    if !fits(frame_bytes(block.live_bytes())) {
                        self.write_hand = (chunk, at);
                        return;
                    }
                    let number = *next_number;
                    *next_number += 1;
                    let (place, batch) = store.lock().append(table, number, &body.encode());
                    block.written(BlockFrame { place, number, batch });
                }
                (at, steps) = (at + 1, steps + 1);
            }
            if at >= blocks.list.len() {
                (chunk, at) = (chunk + 1, 0);
            }
        }
        self.write_hand = (chunk, at);
    }

    /// Blocks of a range that are on the device alone, the first `max` of them; those that are in memory count as used.
    pub(crate) fn away_in(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, max: usize) -> Vec<BlockAway> {
        let mut away = Vec::new();
        if self.chunks.is_empty() || self.blocks_away() == 0 {
            return away;
        }
        let (mut chunk, mut at) = match from {
            Bound::Included(key) | Bound::Excluded(key) => self.block_of(key),
            Bound::Unbounded => (0, 0),
        };
        let is_first = (chunk, at);
        while away.len() < max
            && let Some(blocks) = self.chunks.get(chunk)
        {
            let Some(block) = blocks.list.get(at) else {
                (chunk, at) = (chunk + 1, 0);
                continue;
            };
            let is_behind = match to {
                Bound::Included(key) => block.first_key() > key,
                Bound::Excluded(key) => block.first_key() >= key,
                Bound::Unbounded => false,
            };
            if is_behind && (chunk, at) != is_first {
                break;
            }
            if block.is_resident() {
                block.touch();
            } else {
                away.extend(away_of(block));
            }
            at += 1;
        }
        away
    }

    /// Puts back the entries of a block that was read, unless it has changed or is there; `is_to_be_written`: anew. `None` when they are none.
    pub(crate) fn install(&mut self, first: &[u8], number: u64, bytes: Vec<u8>, is_to_be_written: bool) -> Option<()> {
        if self.chunks.is_empty() {
            return Some(());
        }
        let (chunk, at) = self.block_of(first);
        let blocks = &mut self.chunks[chunk];
        if blocks.list[at].frame().is_none_or(|frame| frame.number != number) {
            return Some(());
        }
        if !blocks.list[at].is_resident() {
            let body = Body::decode(bytes)?;
            blocks.warm();
            blocks.list[at].install(body);
        }
        if is_to_be_written
            && let Some(blocks) = Arc::get_mut(blocks)
            && let Some(block) = Arc::get_mut(&mut blocks.list[at])
        {
            block.forget_frame();
        }
        Some(())
    }

    /// Looks at `max` blocks from the one that has `from` on: those that lie in these segments, ascending, are to be written anew.
    pub(crate) fn leave_segments(&mut self, from: &[u8], segments: &[u32], max: usize) -> Unframed {
        let mut found = Unframed::default();
        if self.chunks.is_empty() {
            return found;
        }
        let (mut chunk, mut at) = self.block_of(from);
        for _ in 0..max {
            let Some(blocks) = self.chunks.get_mut(chunk) else { return found };
            if at >= blocks.list.len() {
                (chunk, at) = (chunk + 1, 0);
                continue;
            }
            let block = &blocks.list[at];
            if block.frame().is_some_and(|frame| segments.binary_search(&frame.place.segment).is_ok()) {
                if !block.is_resident() {
                    found.away.extend(away_of(block));
                } else if let Some(block) = Arc::get_mut(blocks).and_then(|blocks| Arc::get_mut(&mut blocks.list[at])) {
                    block.forget_frame();
                    found.blocks += 1;
                }
            }
            at += 1;
        }
        let next = self.chunks.get(chunk).and_then(|blocks| blocks.list.get(at));
        let next = next.or_else(|| self.chunks.get(chunk + 1).and_then(|blocks| blocks.list.first()));
        found.next = next.map(|block| block.first_key().into());
        found
    }

    /// Puts a block behind all others that recovery has found at `place`, which was written as `number`; the last of its keys, or `None` when
    /// the bytes are no block, or begin at or below `above`, the last key of the block before. `stays`: in memory.
    pub(crate) fn adopt(
        &mut self,
        bytes: Vec<u8>,
        number: u64,
        place: FramePlace,
        above: Option<&[u8]>,
        stays: bool,
    ) -> Option<Vec<u8>> {
        let body = Body::decode(bytes)?;
        if above.is_some_and(|above| body.key(0) <= above) {
            return None;
        }
        let last = body.key(body.len() - 1).to_vec();
        self.len += body.len();
        if let Some((store, _)) = self.held.store() {
            store.lock().adopt(&place);
        }
        let mut block = Block::adopted(&self.held, body, BlockFrame { place, number, batch: 0 });
        if !stays {
            block.evict();
        }
        if self.chunks.is_empty() {
            self.add_chunk(0, Vec::with_capacity(1));
        }
        let chunk = self.chunks.len() - 1;
        self.add_block(chunk, self.chunks[chunk].list.len(), block);
        self.settle();
        Some(last)
    }

    /// Tells all entries in order. Blocks that are on the device alone are read, one at a time, and not kept.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&[u8], &[u8])) {
        for block in self.chunks.iter().flat_map(|blocks| &blocks.list) {
            let mut tell = |body: &Body| (0..body.len()).map(|slot| body.entry(slot)).for_each(|(key, value)| f(key, value));
            match (block.body_at_hand(), block.frame()) {
                (Some(body), _) => tell(body),
                (None, Some(frame)) => {
                    if let Some(body) = self.held.read_now(frame.number, frame.place) {
                        tell(&body);
                    }
                }
                (None, None) => {}
            }
        }
    }
}

fn away_of(block: &Block) -> Option<BlockAway> {
    block.frame().map(|frame| BlockAway { first: block.first_key().into(), number: frame.number, place: frame.place })
}
