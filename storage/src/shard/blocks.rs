//! Blocks of ordered tables between memory and the device: fetched for ranges, evicted and written under the budget, moved out of segments in
//! which little lives.

use std::collections::VecDeque;
use std::ops::Bound;

use hashbrown::{HashMap, HashSet};

use super::memory::NoRoom;
use super::pending::Residency;
use super::{Shard, TableId};
use crate::ordered::{BlockAway, NO_ENTRIES, OrderedTable};
use crate::store::{FramePlace, ReadTicket, StoreHandle};

/// Blocks of a range that are asked for at once.
const FETCHED_AT_ONCE: usize = 64;
/// Blocks that are read to be moved at once, and looked at in one turn.
const MOVED_AT_ONCE: usize = 16;
const LOOKED_AT_A_TURN: usize = 256;
/// Tables that are asked for memory in one call, those that hold most first.
const TABLES_ASKED: usize = 8;

#[derive(Debug)]
struct BlockRead {
    table: TableId,
    block: BlockAway,
    is_moved: bool,
}

/// Moving blocks out of segments.
#[derive(Debug)]
struct Moving {
    /// Ascending.
    segments: Vec<u32>,
    /// Tables that aren't done; the first is looked through from this key on.
    tables: VecDeque<TableId>,
    from: Box<[u8]>,
}

/// What a shard has under way with the blocks of its ordered tables.
#[derive(Debug, Default)]
pub(super) struct BlockTraffic {
    /// The number of the next block that is written.
    pub(super) next_number: u64,
    reads: HashMap<ReadTicket, BlockRead>,
    by_block: HashSet<(TableId, u64)>,
    moving: Option<Moving>,
    /// Bytes that were written before blocks were moved last.
    moved_at_bytes: u64,
}

impl Shard {
    /// Brings the entries of an ordered table between two keys into memory, blocks of which only the first key is there; as with
    /// [`fetch`](Self::fetch), call it until they are [`Resident`](Residency::Resident), with [`complete_pending`](Self::complete_pending) in
    /// between, then use the table before the next call of the shard's own. A range that doesn't fit into memory never is: take it in parts.
    ///
    /// What is to be written is [reserved](Self::reserve) before: making room for it might evict what was fetched.
    ///
    /// A call on what wasn't fetched is right too, but stands and waits for the device, and what it reads counts beyond what was reserved.
    pub fn fetch_range(&mut self, table: TableId, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Result<Residency, NoRoom> {
        self.take_block_reads();
        let Some(store) = self.store.clone() else { return Ok(Residency::Resident) };
        let Some(ordered) = self.ordered.get(&table) else { return Ok(Residency::Resident) };
        let away = ordered.away_in(from, to, FETCHED_AT_ONCE);
        if away.is_empty() {
            return Ok(Residency::Resident);
        }
        // Once as it comes, once as it is put back. All is made room for at once: what is in memory of the range has just been noted as used,
        // and stays this time.
        let is_coming = |blocks: &BlockTraffic, block: &BlockAway| blocks.by_block.contains(&(table, block.number));
        let missing: usize = away.iter().filter(|b| !is_coming(&self.blocks, b)).map(|b| 2 * b.place.bytes()).sum();
        let over = (self.used_bytes() + missing).saturating_sub(self.fetched_limit());
        if over > 0 {
            // What is on its way, and what was fetched before, is to be used: this makes nothing older.
            self.evict_more(over);
        }
        let (mut pending, mut bytes_needed) = (0, 0);
        for block in away {
            bytes_needed = bytes_needed.max(2 * block.place.bytes());
            if is_coming(&self.blocks, &block) || self.read_block(&store, table, block, false) {
                pending += 1;
            } else {
                break;
            }
        }
        if pending > 0 {
            return Ok(Residency::Pending(pending));
        }
        Err(self.shortfall_of(self.fetched_limit(), bytes_needed).map_or(NoRoom::Busy { bytes_needed }, NoRoom::BudgetTooSmall))
    }

    /// What may be in memory after blocks were fetched: what was reserved before still fits then.
    fn fetched_limit(&self) -> usize {
        self.options.budget_bytes / 16 * 14
    }

    /// Asks for a block; whether that could be done.
    fn read_block(&mut self, store: &StoreHandle, table: TableId, block: BlockAway, is_moved: bool) -> bool {
        if self.used_bytes() + 2 * block.place.bytes() > self.fetched_limit() {
            return false;
        }
        let Some(ticket) = store.lock().start_read(table, block.number, block.place) else { return false };
        self.blocks.by_block.insert((table, block.number));
        self.blocks.reads.insert(ticket, BlockRead { table, block, is_moved });
        true
    }

    /// Puts back the blocks that have arrived; whether any has.
    pub(super) fn take_block_reads(&mut self) -> bool {
        let Some(store) = self.store.clone().filter(|_| !self.blocks.reads.is_empty()) else { return false };
        let tickets = self.blocks.reads.keys();
        let arrived: Vec<_> = tickets.filter_map(|t| store.lock().take_read(*t).map(|bytes| (*t, bytes))).collect();
        let has_arrived = !arrived.is_empty();
        for (ticket, bytes) in arrived {
            let Some(read) = self.blocks.reads.remove(&ticket) else { continue };
            self.blocks.by_block.remove(&(read.table, read.block.number));
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(error) => {
                    store.lock().fail(error);
                    continue;
                }
            };
            let Some(table) = self.ordered.get_mut(&read.table) else { continue };
            let installed = table.install(&read.block.first, read.block.number, bytes, read.is_moved);
            if installed.is_none() {
                store.lock().fail_page(&read.block.place, NO_ENTRIES);
            } else if read.is_moved {
                let mut store = store.lock();
                store.counts_mut().pages_compacted += 1;
                store.counts_mut().pages_compacted_from_device += 1;
            }
        }
        has_arrived
    }

    /// Ordered tables by what they hold, most first, a few of them.
    fn largest_ordered(&self) -> Vec<TableId> {
        let mut tables: Vec<_> = self.ordered.iter().map(|(id, table)| (table.used_bytes(), *id)).collect();
        tables.sort_unstable_by_key(|(bytes, id)| (std::cmp::Reverse(*bytes), *id));
        tables.into_iter().take(TABLES_ASKED).map(|(_, id)| id).collect()
    }

    /// Frees blocks that are durable and weren't used lately; what that came to. `passes`: see [`OrderedTable::evict`].
    pub(super) fn evict_blocks(&mut self, wanted: usize, passes: bool) -> usize {
        if self.ordered.is_empty() {
            return 0;
        }
        let Some(durable) = self.store.as_ref().map(|store| store.lock().durable_batch()) else { return 0 };
        let mut freed = 0;
        for id in self.largest_ordered() {
            if freed < wanted
                && let Some(table) = self.ordered.get_mut(&id)
            {
                freed += table.evict(wanted - freed, durable, passes);
            }
        }
        freed
    }

    /// Memory of ordered tables.
    pub(super) fn ordered_bytes(&self) -> usize {
        self.ordered.values().map(OrderedTable::used_bytes).sum()
    }

    /// Gives blocks to the store until that has `wanted` bytes, or may have no more: those that a checkpoint waits for first.
    pub(super) fn write_blocks(&mut self, store: &StoreHandle, wanted: usize) {
        if self.ordered.is_empty() || !self.write_captured_blocks(store, wanted) {
            return;
        }
        let budget = self.options.budget_bytes;
        let used = std::sync::Arc::clone(&self.used_bytes);
        for id in self.largest_ordered() {
            let Some(table) = self.ordered.get_mut(&id).filter(|table| table.unwritten_blocks() > 0) else { continue };
            table.write_cold(&mut self.blocks.next_number, |bytes| {
                let unwritten = store.lock().unwritten_bytes();
                unwritten < wanted && fits(budget, used.load(std::sync::atomic::Ordering::Relaxed), unwritten, bytes)
            });
        }
    }

    /// Moves blocks out of segments in which little lives, a few a turn, so that the segments can go.
    pub(super) fn leave_wasteful_segments(&mut self, store: &StoreHandle) {
        if self.ordered.is_empty() {
            return;
        }
        let Some(mut moving) = self.blocks.moving.take().or_else(|| self.begin_moving(store)) else { return };
        if let Some(id) = moving.tables.front().copied() {
            let found = self.ordered.get_mut(&id).map(|t| t.leave_segments(&moving.from, &moving.segments, LOOKED_AT_A_TURN));
            let found = found.unwrap_or_default();
            store.lock().counts_mut().pages_compacted += found.blocks;
            let mut next = found.next;
            for block in found.away {
                if self.blocks.by_block.contains(&(id, block.number)) {
                    // It is on its way for somebody who wants to use it.
                    continue;
                }
                let first = block.first.clone();
                if self.blocks.reads.len() >= MOVED_AT_ONCE || !self.read_block(store, id, block, true) {
                    next = Some(first);
                    break;
                }
            }
            match next {
                Some(from) => moving.from = from,
                None => {
                    moving.tables.pop_front();
                    moving.from = Box::default();
                }
            }
        }
        if !moving.tables.is_empty() {
            self.blocks.moving = Some(moving);
        }
    }

    fn begin_moving(&mut self, store: &StoreHandle) -> Option<Moving> {
        let lock = store.lock();
        let written = lock.counts().bytes_written;
        // What can't be moved now, as it is a point table's, needn't be looked for each turn.
        if lock.failed().is_some() || written - self.blocks.moved_at_bytes < lock.options().segment_bytes / 2 {
            return None;
        }
        let segments = lock.wasteful_segments();
        drop(lock);
        self.blocks.moved_at_bytes = written;
        let tables = self.ordered.iter().filter(|(_, table)| !table.is_empty()).map(|(id, _)| *id).collect();
        (!segments.is_empty()).then_some(Moving { segments, tables, from: Box::default() })
    }
}

/// Whether a copy for the device may be made: an eighth of the budget is for such, and one may always be made that fits at all.
pub(super) fn fits(budget_bytes: usize, used_bytes: usize, unwritten_bytes: usize, bytes: usize) -> bool {
    used_bytes + bytes <= budget_bytes && (unwritten_bytes == 0 || unwritten_bytes + bytes <= budget_bytes / 8)
}

/// A block that a manifest names.
pub(super) struct NamedBlock {
    pub(super) table: TableId,
    pub(super) number: u64,
    pub(super) place: FramePlace,
}

impl Shard {
    /// Puts back a block that a manifest names, behind those before; `last`: their last key, which becomes this one's. Whether that went well,
    /// else the store knows why not.
    pub(super) fn adopt_block(
        &mut self,
        store: &StoreHandle,
        block: &NamedBlock,
        last: &mut Option<Vec<u8>>,
        stays: bool,
    ) -> bool {
        let read = store.lock().read_now(block.table, block.number, block.place);
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                store.lock().fail(error);
                return false;
            }
        };
        let adopted = self.ordered(block.table).adopt(bytes, block.number, block.place, last.as_deref(), stays);
        if adopted.is_none() {
            store.lock().fail_page(&block.place, NO_ENTRIES);
            return false;
        }
        *last = adopted;
        true
    }
}
