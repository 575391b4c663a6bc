//! Compaction of sealed pages: what lives on a page that is mostly dead goes to the tail, a few records a turn.

use super::{Shard, TableId};
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
}

impl Shard {
    /// One slice of compaction. What can't be read stays where it is; who needs it gets the error.
    pub(super) fn compact_turn(&mut self, store: &StoreHandle) {
        let Some(mut compaction) = self.compaction.take().or_else(|| self.begin_compaction(store)) else { return };
        if let Some(ticket) = compaction.ticket {
            match store.lock().take_read(ticket) {
                None => {
                    self.compaction = Some(compaction);
                    return;
                }
                Some(Err(error)) => {
                    store.lock().fail(error);
                    return;
                }
                Some(Ok(bytes)) => (compaction.ticket, compaction.bytes) = (None, bytes),
            }
        }
        let room = self.point.get(&compaction.table).map_or(0, |t| t.room_for_victim(compaction.page, RECORDS_A_TURN));
        if self.used_bytes() + room > self.options.budget_bytes / 16 * 14 {
            // It needs memory to give memory back; users are held back a little earlier than it is.
            self.evict(room);
            if self.used_bytes() + room > self.options.budget_bytes / 16 * 14 {
                self.compaction = Some(compaction);
                return;
            }
        }
        let Some(table) = self.point.get_mut(&compaction.table) else { return };
        if let Some(offset) = table.compact_page(compaction.page, &compaction.bytes, compaction.offset, RECORDS_A_TURN) {
            compaction.offset = offset;
            self.compaction = Some(compaction);
        }
    }

    fn begin_compaction(&mut self, store: &StoreHandle) -> Option<Compaction> {
        let (id, page) = self.point.iter_mut().find_map(|(id, table)| table.find_victim().map(|page| (*id, page)))?;
        let table = self.point.get(&id)?;
        let begun = Compaction { table: id, page, ticket: None, bytes: Vec::new(), offset: 0 };
        if let Some(bytes) = table.victim_bytes(page) {
            return Some(Compaction { bytes, ..begun });
        }
        let busy = store.lock().failed().is_some();
        let ticket = if busy { None } else { table.read_victim(page) };
        ticket.map(|ticket| Compaction { ticket: Some(ticket), ..begun })
    }
}
