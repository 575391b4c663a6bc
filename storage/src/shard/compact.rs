//! Compaction of sealed pages: what lives on a page that is mostly dead goes to the tail, a few records a turn.

use super::{Shard, TableId};
use crate::point::MemoryUse;
use crate::store::{ReadTicket, StoreHandle};

/// Records looked at in one turn.
const RECORDS_A_TURN: usize = 256;

/// A page on its way out.
#[derive(Debug)]
pub(super) struct Compaction {
    table: TableId,
    page: (u64, usize),
    ticket: Option<ReadTicket>,
    bytes: Vec<u8>,
    offset: usize,
    /// Whether the page was read from the device for this.
    was_away: bool,
}

impl Shard {
    /// One slice of compaction. What can't be read stays where it is; who needs it gets the error.
    pub(super) fn compact_turn(&mut self, store: &StoreHandle) {
        let Some(mut compaction) = self.compaction.take().or_else(|| self.begin_compaction(store)) else { return };
        if let Some(ticket) = compaction.ticket {
            // Not in the match itself, whose arms would run under the lock: the one for an error takes it.
            let read = store.lock().take_read(ticket);
            match read {
                None => {
                    self.compaction = Some(compaction);
                    return;
                }
                Some(Err(error)) => {
                    store.lock().fail(error);
                    return;
                }
                Some(Ok(bytes)) => (compaction.ticket, compaction.bytes, compaction.was_away) = (None, bytes, true),
            }
        }
        let room = self.point.get(&compaction.table).map_or(0, |t| t.room_for_victim(compaction.page, RECORDS_A_TURN));
        let limit = self.options.budget_bytes / 16 * 15;
        if self.used_bytes() + room > limit {
            // It needs memory to give memory back: users are held back earlier than it is, by what copies for the device may take when there
            // are any.
            self.evict(room);
            if self.used_bytes() + room > limit {
                self.compaction = Some(compaction);
                return;
            }
        }
        let Some(table) = self.point.get_mut(&compaction.table) else { return };
        let mut copied = 0;
        let next = table.compact_page(compaction.page, &compaction.bytes, compaction.offset, RECORDS_A_TURN, &mut copied);
        let mut store = store.lock();
        let counts = store.counts_mut();
        counts.records_compacted += copied;
        if let Some(offset) = next {
            compaction.offset = offset;
            self.compaction = Some(compaction);
        } else {
            counts.pages_compacted += 1;
            counts.pages_compacted_from_device += u64::from(compaction.was_away);
        }
    }

    fn begin_compaction(&mut self, store: &StoreHandle) -> Option<Compaction> {
        let memory = MemoryUse { used_bytes: self.used_bytes(), budget_bytes: self.options.budget_bytes };
        let (id, page) = self.point.iter_mut().find_map(|(id, table)| table.find_victim(memory).map(|page| (*id, page)))?;
        let table = self.point.get(&id)?;
        let begun = Compaction { table: id, page, ticket: None, bytes: Vec::new(), offset: 0, was_away: false };
        if let Some(bytes) = table.victim_bytes(page) {
            return Some(Compaction { bytes, ..begun });
        }
        let busy = store.lock().failed().is_some();
        let ticket = if busy { None } else { table.read_victim(page) };
        ticket.map(|ticket| Compaction { ticket: Some(ticket), ..begun })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::{OpenAt, ShardOptions, SimDevice, StoreOptions, TableLayout};

    const KEYS: u64 = 100_000;

    fn change(shard: &mut Shard, keys: impl Iterator<Item = u64>) {
        for (i, key) in keys.enumerate() {
            let hash = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            shard.point(TableId(1), 8).change(hash, &key.to_le_bytes(), |value, _| value[0] += 1);
            if i % 256 == 0 {
                shard.maintain().unwrap();
            }
        }
    }

    #[test]
    fn pages_that_the_last_cut_has_sealed_are_left_to_die_and_older_ones_are_compacted() {
        let options = ShardOptions { budget_bytes: 256 << 20 };
        let device = Box::new(SimDevice::new(1));
        let (mut shard, _) =
            Shard::open(options, TableLayout::for_device(), device, StoreOptions::default(), 2, OpenAt::Newest).unwrap();
        change(&mut shard, 0..KEYS);
        shard.checkpoint_now(1, b"").unwrap();
        // Three of four records of each page are changed, so it is mostly dead.
        change(&mut shard, (0..KEYS).filter(|key| key % 4 > 0));
        (0..2000).for_each(|_| shard.maintain().unwrap());
        assert_eq!(shard.store_counts().records_compacted, 0);
        shard.checkpoint_now(2, b"").unwrap();
        (0..2000).for_each(|_| shard.maintain().unwrap());
        assert!(shard.store_counts().records_compacted > KEYS / 8, "{:?}", shard.store_counts());
        for key in 0..KEYS {
            let hash = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let value = 1 + u8::from(key % 4 > 0);
            assert_eq!(shard.point(TableId(1), 8).get(hash, &key.to_le_bytes()).map(|v| v[0]), Some(value), "key {key}");
        }
    }
}
