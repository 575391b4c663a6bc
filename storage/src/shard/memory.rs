//! The budget: pages are sealed, written and evicted so that what the shard holds never passes it.
//!
//! ```text
//! budget = what users may fill (13/16) + copies of pages on their way to the device (2/16) + pages on their way from it (1/16)
//! ```

use super::Shard;
use super::blocks::fits;
use crate::ordered::OrderedTable;
use crate::point::{PointTable, SWEPT_A_TURN};
use crate::store::{StoreError, StoreHandle};

/// There is no room: nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// Let the device work ([`Shard::complete_pending`], [`Shard::maintain`]) and try again. Without a device only what is removed makes room.
    #[error("the shard's memory is full: {bytes_needed} B more are needed")]
    Busy {
        /// How much memory must be freed for the call to be accepted.
        bytes_needed: usize,
    },
    /// Trying again is of no use while all keys stay.
    #[error(transparent)]
    BudgetTooSmall(#[from] BudgetShortfall),
}

/// A shard with a device has a budget that what can't leave memory fills: no page that is written would make enough room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a budget of {budget_bytes} B is too small for the keys of this shard: the index of its point tables takes {index_bytes} B and the places of \
     pages and blocks {places_bytes} B, which never leave memory, and {bytes_needed} B more are needed, but {admitted_bytes} B of the budget \
     may be filled; give it {} B at least, fewer keys (more shards), or smaller batches",
    self.least_bytes()
)]
pub struct BudgetShortfall {
    /// What the shard was given.
    pub budget_bytes: usize,
    /// What of it tables may fill.
    pub admitted_bytes: usize,
    /// What indexes of point tables take.
    pub index_bytes: usize,
    /// What is kept in memory of each page and block, wherever it is.
    pub places_bytes: usize,
    /// What the call needs beside that.
    pub bytes_needed: usize,
}

/// Memory that is to be free while no more than a part of the budget is filled.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Room {
    pub(super) bytes: usize,
    pub(super) limit_bytes: usize,
}

impl BudgetShortfall {
    /// A budget in which the call would be accepted.
    #[must_use]
    pub fn least_bytes(&self) -> usize {
        (self.index_bytes + self.places_bytes + self.bytes_needed).div_ceil(ADMITTED_PARTS) * BUDGET_PARTS
    }
}

/// Users may fill so many of so many parts of the budget of a shard with a device.
const ADMITTED_PARTS: usize = 13;
const BUDGET_PARTS: usize = 16;

impl Shard {
    /// What users may fill. Without a device there is nothing to keep free for.
    pub(super) fn admitted_bytes(&self) -> usize {
        let budget = self.options.budget_bytes;
        if self.store.is_some() { budget / BUDGET_PARTS * ADMITTED_PARTS } else { budget }
    }

    /// Makes room for `bytes` more in memory; with `Ok` calls that take no more than that keep the budget. See
    /// [`PointTable::room_for`](crate::PointTable::room_for).
    pub fn reserve(&mut self, bytes: usize) -> Result<(), NoRoom> {
        self.reserve_room(Room { bytes, limit_bytes: self.admitted_bytes() })
    }

    pub(super) fn reserve_room(&mut self, Room { bytes, limit_bytes }: Room) -> Result<(), NoRoom> {
        let wanted = |shard: &Self| (shard.used_bytes() + bytes).saturating_sub(limit_bytes);
        if wanted(self) > 0 && self.store.is_some() {
            self.relieve(wanted(self), 0);
        }
        match wanted(self) {
            0 => Ok(()),
            bytes_needed => {
                Err(self.shortfall_of(limit_bytes, bytes).map_or(NoRoom::Busy { bytes_needed }, NoRoom::BudgetTooSmall))
            }
        }
    }

    /// What removals may fill: that of what copies on their way to the device may take, so that a shard whose index has filled all else can give
    /// up keys. Two pages are a sixteenth of the budget at most.
    pub(super) fn removal_limit_bytes(&self) -> usize {
        if self.store.is_some() {
            self.options.budget_bytes / BUDGET_PARTS * (BUDGET_PARTS - 1)
        } else {
            self.options.budget_bytes
        }
    }

    /// Why `bytes` more will never fit while all keys stay, whatever the device does; `None` when they may, or there is no device.
    #[must_use]
    pub fn shortfall(&self, bytes: usize) -> Option<BudgetShortfall> {
        self.shortfall_of(self.admitted_bytes(), bytes)
    }

    /// The same where so many bytes of the budget may be filled.
    pub(super) fn shortfall_of(&self, admitted_bytes: usize, bytes: usize) -> Option<BudgetShortfall> {
        self.store.as_ref()?;
        let (mut index_bytes, mut places_bytes) = (0, 0);
        for table in self.point.values() {
            let (index, places) = table.fixed_bytes();
            index_bytes += index;
            places_bytes += places;
        }
        places_bytes += self.ordered.values().map(OrderedTable::places_bytes).sum::<usize>();
        if self.is_checkpointing() {
            // Dead pages that it waits for go when it is written.
            places_bytes = 0;
        }
        (index_bytes + places_bytes + bytes > admitted_bytes).then_some(BudgetShortfall {
            budget_bytes: self.options.budget_bytes,
            admitted_bytes,
            index_bytes,
            places_bytes,
            bytes_needed: bytes,
        })
    }

    /// The turn of the shard's owner: keeps memory below the budget, writes pages, takes what the device has done. Never blocks. References
    /// to records given out before are void.
    ///
    /// An error is the device's; see [`failure`](Self::failure).
    pub fn maintain(&mut self) -> Result<(), StoreError> {
        for table in self.point.values_mut() {
            table.begin_turn();
            table.sweep(SWEPT_A_TURN);
        }
        let Some(store) = self.store.clone() else { return Ok(()) };
        self.limit_pages();
        self.take_block_reads();
        let target = self.pressure.reduced(self.admitted_bytes() / 4 * 3);
        let pressure = self.used_bytes().saturating_sub(target);
        store.lock().step(pressure > 0)?;
        if pressure > 0 {
            self.relieve(pressure, self.pressure.reduced(self.options.budget_bytes / 8));
        }
        self.compact_turn(&store);
        self.leave_wasteful_segments(&store);
        store.lock().step(pressure > 0)
    }

    /// Frees what is durable, and lets the device make more durable, until `wanted` bytes are on their way out; `kept_mutable` bytes of the
    /// newest records aren't sealed for it.
    fn relieve(&mut self, wanted: usize, kept_mutable: usize) {
        let before = self.store_counts().bytes_written;
        let mut freed = self.evict(wanted);
        if freed < wanted {
            // Twice as much as is missing, so that the next one needn't wait.
            self.write_out(2 * (wanted - freed), kept_mutable);
            // What was written at once may be gone at once.
            if let Some(store) = self.store.clone() {
                // Its error stays in the store for who asks.
                let _ = store.lock().step(true);
            }
            freed += self.evict_more(wanted - freed);
        }
        self.pressure.note_turn(self.store_counts().bytes_written - before, freed as u64);
    }

    /// Frees what is durable, to so many bytes; what it came to.
    pub(super) fn evict(&mut self, wanted: usize) -> usize {
        self.evict_passing(wanted, true)
    }

    /// The same once more in a turn.
    pub(super) fn evict_more(&mut self, wanted: usize) -> usize {
        self.evict_passing(wanted, false)
    }

    fn evict_passing(&mut self, wanted: usize, passes: bool) -> usize {
        let mut freed = 0;
        for table in self.point.values_mut() {
            if freed >= wanted {
                break;
            }
            if table.awaits_eviction() {
                freed += table.evict(wanted - freed);
            }
        }
        if freed < wanted {
            freed += self.evict_blocks(wanted - freed, passes);
        }
        freed
    }

    /// Gives pages, which are sealed for that, and blocks to the store until that has `wanted` bytes, or may have no more.
    pub(super) fn write_out(&mut self, wanted: usize, kept_mutable: usize) {
        let Some(store) = self.store.clone() else { return };
        // Whatever there is more of goes first.
        let mutable: usize = self.point.values().map(PointTable::mutable_bytes).sum();
        if self.ordered_bytes() > mutable {
            self.write_blocks(&store, wanted);
            self.write_pages(&store, wanted, kept_mutable);
        } else {
            self.write_pages(&store, wanted, kept_mutable);
            self.write_blocks(&store, wanted);
        }
    }

    fn write_pages(&mut self, store: &StoreHandle, wanted: usize, kept_mutable: usize) {
        loop {
            let unwritten = store.lock().unwritten_bytes();
            if unwritten >= wanted {
                return;
            }
            // The table with the most sealed pages that wait, else the one with the most mutable bytes.
            let waiting = self.point.iter_mut().find_map(|(id, t)| t.next_unwritten().map(|bytes| (*id, bytes)));
            let Some((id, bytes)) = waiting else {
                // The newest records stay where they can be changed, or whoever fetches some never gets to use them.
                let mutable: usize = self.point.values().map(PointTable::mutable_bytes).sum();
                if mutable <= kept_mutable {
                    return;
                }
                // Tails that have room are sealed when there is nothing else that could go: many small pages would take more memory for their
                // places than they free.
                let busy = unwritten > 0 || self.point.values().any(PointTable::awaits_eviction);
                let of = |t: &PointTable| {
                    if busy { t.filled_mutable_bytes() } else { t.filled_mutable_bytes().max(t.mutable_bytes() / 2) }
                };
                let most = self.point.values_mut().max_by_key(|t| of(t)).filter(|t| of(t) > 0);
                if most.and_then(PointTable::seal_oldest).is_none() {
                    return;
                }
                continue;
            };
            // A copy is made for the device, and the budget holds for that too.
            if !fits(self.options.budget_bytes, self.used_bytes(), unwritten, bytes) {
                return;
            }
            if let Some(table) = self.point.get_mut(&id) {
                table.write_next();
            }
        }
    }
}
