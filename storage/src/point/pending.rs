//! What a shard does with a point table whose records may be on the device, without waiting for any.

use super::cold::PageImage;
use super::log::{HAS_OLDER, LIVE, Lengths, Log, RECORD_BYTES_MIN, TOMBSTONE};
use super::merging::Compacted;
use super::{KeyBatch, MemoryUse, PointTable};
use crate::bugs::{self, Bug};
use crate::store::{ReadTicket, StoreError, segment_name};

/// How many records ahead recovery asks for buckets of the index.
const ADOPTED_AHEAD: usize = 16;

/// Where a key's record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Located {
    /// In memory.
    At(u64),
    /// In the page that was read for it.
    Read(u64),
    /// Nowhere.
    Absent,
    /// On the device, if the record at this address is the key's.
    OnDevice(u64),
}

/// A page that was read from the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageRead<'a> {
    /// The page.
    pub(crate) number: u64,
    /// What it holds.
    pub(crate) bytes: &'a [u8],
}

impl PointTable {
    /// Whether any record is on the device alone.
    pub(crate) fn is_partly_away(&self) -> bool {
        self.log.pages_away() > 0
    }

    /// Looks for a key in memory and in a page that was read; `refused` are addresses, with the numbers of their pages, that aren't its.
    pub(crate) fn locate_now(&self, hash: u64, key: &[u8], read: Option<PageRead<'_>>, refused: &[(u64, u64)]) -> Located {
        let mut result = Located::Absent;
        let mut probe = self.index.probe(hash);
        while let Some(at) = probe.next() {
            if self.log.is_resident(at) {
                if self.log.is_key(at, hash, key) {
                    return Located::At(at);
                }
                continue;
            }
            let number = self.log.page_number(at);
            if let Some(read) = read.filter(|r| r.number == number) {
                let record = self.log.record_in(at, number, read.bytes);
                if record.is_some_and(|r| parts(r).is_some_and(|(h, k, _)| h == hash && k == key)) {
                    result = Located::Read(at);
                }
            } else if result == Located::Absent && !refused.contains(&(at, number)) {
                result = Located::OnDevice(at);
            }
        }
        result
    }

    /// Candidates of a hash on a page.
    pub(crate) fn candidates_on(&self, hash: u64, number: u64, out: &mut Vec<(u64, u64)>) {
        let mut probe = self.index.probe(hash);
        while let Some(at) = probe.next() {
            if self.log.page_number(at) == number {
                out.push((at, number));
            }
        }
    }

    /// A record on the device that has to be looked at to find a key of this hash.
    pub(crate) fn first_away(&self, hash: u64) -> Option<u64> {
        let mut probe = self.index.probe(hash);
        while let Some(at) = probe.next() {
            if !self.log.is_resident(at) {
                return Some(at);
            }
        }
        None
    }

    /// Copies all records on this page that may be of this hash to the tail.
    pub(crate) fn fetch_from(&mut self, hash: u64, read: PageRead<'_>) {
        let mut candidates = Vec::new();
        self.candidates_on(hash, read.number, &mut candidates);
        for (at, number) in candidates {
            if self.log.is_resident(at) {
                continue;
            }
            if let Some(record) = self.log.record_in(at, number, read.bytes)
                && let Some((its_hash, ..)) = parts(record)
            {
                self.copy_up(its_hash, at, record);
            }
        }
        self.settle();
    }

    /// The value of a located record.
    pub(crate) fn value_located<'a>(&'a self, located: Located, read: Option<PageRead<'a>>) -> Option<&'a [u8]> {
        self.stored_value(located, read).and_then(|value| self.shown(value))
    }

    /// The same with what only the table sees.
    fn stored_value<'a>(&'a self, located: Located, read: Option<PageRead<'a>>) -> Option<&'a [u8]> {
        match (located, read) {
            (Located::At(at), _) => Some(self.log.value(at)),
            (Located::Read(at), Some(read)) => {
                self.log.record_in(at, read.number, read.bytes).and_then(parts).map(|(_, _, value)| value)
            }
            _ => None,
        }
    }

    /// Whether a located record is there for its user: it hasn't expired.
    pub(crate) fn exists(&self, located: Located, read: Option<PageRead<'_>>) -> bool {
        self.value_located(located, read).is_some()
    }

    /// Counts a located record that has expired and goes.
    fn note_expired(&mut self, located: Located, read: Option<PageRead<'_>>) {
        let has_expired = self.stored_value(located, read).is_some_and(|value| self.has_expired(value));
        self.count_expired(u64::from(has_expired));
    }

    /// Sets the value of a key that was located.
    pub(crate) fn put_located(&mut self, hash: u64, key: &[u8], value: &[u8], located: Located, read: Option<PageRead<'_>>) {
        self.note_expired(located, read);
        let old_stamp = self.stored_value(located, read).and_then(|old| self.live_stamp(old));
        let stored = value.len() + self.stamp_bytes();
        let address = match located {
            Located::At(at) => self.place_for(hash, key, stored, Some(at)),
            Located::Read(at) => {
                self.take_read_record(hash, at, read);
                self.add(hash, key, stored, HAS_OLDER)
            }
            Located::Absent | Located::OnDevice(_) => self.add(hash, key, stored, 0),
        };
        self.set_value(address, value, old_stamp);
        self.settle();
    }

    /// Takes a record on the device out of the index.
    fn take_read_record(&mut self, hash: u64, at: u64, read: Option<PageRead<'_>>) {
        self.index.remove(hash, at);
        let size = read.and_then(|r| self.log.record_in(at, r.number, r.bytes)).map_or(0, <[u8]>::len);
        let (slot, _) = self.log.split(at);
        self.log.free_sealed(slot, size);
    }

    /// Forgets a key that was located; whether it was there.
    pub(crate) fn remove_located(&mut self, hash: u64, key: &[u8], located: Located, read: Option<PageRead<'_>>) -> bool {
        self.note_expired(located, read);
        match located {
            Located::At(at) => {
                self.forget(hash, at, self.has_older(at));
                self.compact();
            }
            Located::Read(at) => {
                self.take_read_record(hash, at, read);
                self.bury(hash, key);
            }
            Located::Absent | Located::OnDevice(_) => return false,
        }
        self.settle();
        true
    }

    /// Begins to read the page of a record.
    pub(crate) fn start_read(&self, address: u64) -> Option<(ReadTicket, u64)> {
        self.log.start_read(address).map(|(ticket, (number, _))| (ticket, number))
    }

    /// The page of a record, and how many bytes reading it takes.
    pub(crate) fn page_of(&self, address: u64) -> (u64, usize) {
        (self.log.page_number(address), self.log.frame_bytes(address))
    }

    // === memory

    /// An upper bound of the memory that making, or copying, so many records takes; `bytes`: their keys and values together.
    #[must_use]
    pub fn room_for(&self, records: usize, bytes: usize) -> usize {
        self.room_for_copies(records, bytes + records * 40) + self.index.room_for(records)
    }

    /// An upper bound of the memory that copying so many records takes, so long together.
    pub(crate) fn room_for_copies(&self, records: usize, bytes: usize) -> usize {
        let pages = self.log.pages_for(records, bytes);
        self.log.room_for(records, bytes) + self.log.cold.as_ref().map_or(0, |c| c.room_for(pages, records))
    }

    /// The same for the note that a key so long was removed.
    pub(crate) fn room_for_removal(&self, key_bytes: usize) -> usize {
        self.room_for_copies(1, key_bytes + 48)
    }

    /// Whether a page is being filled of which half is free.
    pub(crate) fn has_room_at_tail(&self) -> bool {
        self.log.tail.is_some_and(|tail| self.log.pages[tail].used < self.log.pages[tail].memory() / 2)
    }

    /// The same for a copy of one record, even if the page that is being filled is sealed before.
    pub(crate) fn room_for_later_copy(&self, bytes: usize) -> usize {
        let pages = self.log.pages_for(1, bytes + 40);
        let cold = self.log.cold.as_ref().map_or(0, |c| c.room_for(pages, 1));
        self.log.room_beside(0, 1, bytes + 40) + cold
    }

    /// The same for a new record.
    pub(crate) fn room_for_later(&self, bytes: usize) -> usize {
        self.room_for_later_copy(bytes) + self.index.room_for(1)
    }

    /// The same for what [`fetch_from`](Self::fetch_from) copies.
    pub(crate) fn room_for_fetch(&self, hash: u64, read: PageRead<'_>) -> usize {
        let mut candidates = Vec::new();
        self.candidates_on(hash, read.number, &mut candidates);
        let records = candidates.iter().filter_map(|(at, number)| self.log.record_in(*at, *number, read.bytes));
        self.room_for_copies(candidates.len(), records.map(<[u8]>::len).sum())
    }

    /// The same for what is left of a page that is compacted.
    pub(crate) fn room_for_victim(&self, id: (u64, usize), records_max: usize) -> usize {
        let live = self.log.address_in(id, 0).map_or(0, |_| self.log.pages[id.1].live);
        self.room_for_copies((live / RECORD_BYTES_MIN).min(records_max), live)
    }

    /// An upper bound of the memory that [`entries`](Self::entries) of these keys takes, and changing what it gives.
    #[must_use]
    pub fn room_for_entries(&self, keys: &KeyBatch<'_>) -> usize {
        self.room_for(keys.len(), keys.bytes.len() + keys.len() * self.value_width)
    }

    /// What it holds that never leaves memory for the device: its index, and the places of its pages, as far as compaction doesn't bring that
    /// down. Both get smaller by themselves where records expire: nothing then.
    pub(crate) fn fixed_bytes(&self) -> (usize, usize) {
        if self.expiry.is_some() {
            return (0, 0);
        }
        (self.index.allocated_bytes(), size_of::<Self>() + self.log.settled_places_bytes())
    }

    // === compaction

    /// A page that compaction would gain much from.
    pub(crate) fn find_victim(&mut self, memory: MemoryUse) -> Option<(u64, usize)> {
        self.log.find_victim(self.expires_by(), memory)
    }

    /// Asks for a page that is to be compacted, unless it is in memory.
    pub(crate) fn read_victim(&self, id: (u64, usize)) -> Option<ReadTicket> {
        let at = self.log.address_in(id, 0)?;
        if self.log.is_resident(at) { None } else { self.log.start_read(at).map(|(ticket, _)| ticket) }
    }

    /// The bytes of a victim that is in memory.
    pub(crate) fn victim_bytes(&self, id: (u64, usize)) -> Option<Vec<u8>> {
        let at = self.log.address_in(id, 0)?;
        self.log.is_resident(at).then(|| self.log.page_bytes_of(id.1).to_vec())
    }

    /// Copies what lives on a page to the tail, from an offset on, a few records at most; where to go on, or `None` at the end. Adds how many
    /// were copied to `copied`.
    pub(crate) fn compact_page(
        &mut self,
        id: (u64, usize),
        page: &[u8],
        from: usize,
        records_max: usize,
        copied: &mut u64,
    ) -> Option<usize> {
        if self.log.floor.get() > 0 {
            // Scans find a page's records where they were when they began.
            return Some(from);
        }
        let (is_small, next_number, records) = (self.log.is_small(id), self.log.next_number, self.log.records_written);
        let next = self.copy_live(id, page, from, records_max, copied);
        let is_gone = self.log.address_in(id, 0).is_none_or(|_| self.log.pages[id.1].live == 0);
        if let Some(cold) = &mut self.log.cold {
            cold.merging.note(Compacted {
                is_small,
                records: self.log.records_written - records,
                pages: self.log.next_number - next_number,
                ended: next.is_none().then_some(is_gone),
            });
        }
        self.settle();
        next
    }

    fn copy_live(&mut self, id: (u64, usize), page: &[u8], from: usize, records_max: usize, copied: &mut u64) -> Option<usize> {
        let mut offset = from;
        for _ in 0..records_max {
            let Some(lengths) = Lengths::at(page, offset) else { break };
            if let Some(hash) = page.get(offset + 8..offset + 16) {
                self.index.prefetch(Log::word(hash, 0));
            }
            offset += lengths.size();
        }
        offset = from;
        for _ in 0..records_max {
            let lengths = Lengths::at(page, offset)?;
            let record = page.get(offset..offset.checked_add(lengths.size())?)?;
            // The page goes when its last record does.
            let at = self.log.address_in(id, offset)?;
            let (hash, key, value) = parts(record)?;
            if lengths.is(LIVE) && self.index.contains(hash, at) {
                if self.has_expired(value) {
                    self.index.remove(hash, at);
                    if lengths.is(HAS_OLDER) {
                        self.bury(hash, key);
                    }
                    self.log.free_sealed(id.1, record.len());
                    self.count_expired(1);
                } else if bugs::is_on(Bug::CompactionLosesCold) {
                    self.index.remove(hash, at);
                    self.log.free_sealed(id.1, record.len());
                } else {
                    self.copy_up(hash, at, record);
                    *copied += 1;
                }
            } else if lengths.is(TOMBSTONE) {
                let origin = u64::from_le_bytes(value.try_into().ok()?);
                if self.log.has_page_below(origin, id.0) {
                    let copy = self.log.append(hash, key, 8, TOMBSTONE);
                    self.log.value_mut(copy).copy_from_slice(value);
                    *copied += 1;
                }
                self.log.free_sealed(id.1, record.len());
            }
            offset += record.len();
        }
        Some(offset)
    }

    /// Pages that are made from now on are this large at most, a power of two.
    pub(crate) fn limit_pages(&mut self, bytes: usize) {
        self.log.limit_pages(bytes);
    }

    pub(crate) fn mutable_bytes(&self) -> usize {
        self.log.page_bytes
    }

    /// The same, or nothing when that is one page in which there is much room.
    pub(crate) fn filled_mutable_bytes(&self) -> usize {
        self.log.filled_page_bytes()
    }

    pub(crate) fn seal_oldest(&mut self) -> Option<usize> {
        let sealed = self.log.seal_oldest();
        self.settle();
        sealed
    }

    pub(crate) fn next_unwritten(&mut self) -> Option<usize> {
        let bytes = self.log.next_unwritten();
        self.settle();
        bytes
    }

    pub(crate) fn write_next(&mut self) {
        if !self.drop_expired_unwritten() {
            self.log.write_next();
        }
        self.settle();
    }

    pub(crate) fn evict(&mut self, wanted: usize) -> usize {
        let freed = self.log.evict(wanted);
        self.settle();
        freed
    }

    pub(crate) fn awaits_eviction(&self) -> bool {
        self.log.awaits_eviction()
    }

    pub(crate) fn begin_turn(&mut self) {
        self.log.forget_forwards();
        self.settle();
    }

    // === checkpoints of pages

    /// Seals everything: what the table holds now is what its pages below the returned number hold.
    pub(crate) fn cut_pages(&mut self) {
        self.log.seal_all();
        self.log.begin_capture();
        self.log.forget_forwards();
        self.settle();
    }

    /// Bytes of the next page of the cut that isn't given to the store; `None` when all are.
    pub(crate) fn next_captured(&mut self) -> Option<usize> {
        self.log.next_captured()
    }

    /// All pages of the cut have lower numbers.
    pub(crate) fn cut_number(&self) -> u64 {
        self.log.cold.as_ref().map_or(0, |c| c.capture_below)
    }

    /// Puts a page back that a manifest names, after all with lower numbers; whether that went well, else the store knows why not.
    pub(crate) fn adopt(&mut self, image: PageImage, keep_in_memory: bool) -> bool {
        let Some((store, id)) = self.log.cold.as_ref().map(|c| (c.store.clone(), c.table)) else { return false };
        let read = store.lock().read_now(id, image.number, image.place);
        let page = match read {
            Ok(page) => page,
            Err(error) => {
                store.lock().fail(error);
                return false;
            }
        };
        let slot = self.log.adopt_page(image, &page, keep_in_memory);
        let (mut records, mut offset) = (Vec::with_capacity(page.len() / RECORD_BYTES_MIN / 2), 0);
        while offset + RECORD_BYTES_MIN <= page.len() {
            let record = Lengths::at(&page, offset).and_then(|l| Some((l, page.get(offset..offset.checked_add(l.size())?)?)));
            let Some((lengths, record)) = record else { break };
            if lengths.is(LIVE | TOMBSTONE) {
                records.push((offset, lengths, record));
            }
            offset += record.len();
        }
        let last = records.last().map_or(0, |(offset, ..)| *offset);
        if !self.log.has_address_for(last) {
            store.lock().fail(StoreError::PagesTooLong {
                file: segment_name(image.place.segment),
                offset: image.place.offset(),
                page_bits: (last + 1).next_power_of_two().ilog2(),
            });
            return false;
        }
        let mut whole = offset + RECORD_BYTES_MIN > page.len();
        for (i, (offset, lengths, record)) in records.iter().enumerate() {
            if let Some((_, _, ahead)) = records.get(i + ADOPTED_AHEAD) {
                self.index.prefetch(Log::word(ahead, 8));
            }
            whole = whole && self.adopt_record(slot, *offset, *lengths, record);
        }
        if !whole {
            store.lock().fail_page(&image.place, "it holds no records as they should be");
            return false;
        }
        self.log.adopted(slot);
        self.settle();
        store.lock().failed().is_none()
    }

    fn adopt_record(&mut self, slot: usize, offset: usize, lengths: Lengths, record: &[u8]) -> bool {
        let Some((hash, key, value)) = parts(record) else { return false };
        let before = self.locate(hash, key);
        let address = self.log.address(slot, offset);
        self.log.adopt_live(slot, record.len());
        if lengths.is(LIVE) {
            match before {
                Some(before) => {
                    self.index.replace(hash, before, address);
                    self.log.free(before);
                }
                None => self.index_new(hash, address),
            }
            return true;
        }
        let Ok(origin) = value.try_into().map(u64::from_le_bytes) else { return false };
        if let Some(before) = before
            && self.log.page_number(before) < origin
        {
            self.index.remove(hash, before);
            self.log.free(before);
        }
        true
    }

    /// All pages of a manifest are back; numbers go on from here.
    pub(crate) fn end_adoption(&mut self, next_number: u64) {
        self.log.next_number = next_number;
        self.log.sealed_below = next_number;
        self.begin_turn();
    }

    /// How many pages the cut has at most.
    pub(crate) fn captured_pages_max(&self) -> usize {
        self.log.captured_pages_max()
    }

    /// Tells `f` where pages of the cut are, by number, `steps` of them or of looks for them. Whether there is more. All are written.
    pub(crate) fn tell_captured(&mut self, steps: &mut usize, f: impl FnMut(&PageImage)) -> bool {
        self.log.tell_captured(steps, f)
    }

    /// The pages of the cut were told, and their segments are pinned.
    pub(crate) fn end_cut(&mut self) {
        self.log.end_capture();
        self.settle();
    }

    /// Gives back what has died while a cut had it, in so many steps; whether there may be more.
    pub(crate) fn drop_dead(&mut self, steps: &mut usize) -> bool {
        let more = self.log.drop_dead(steps);
        self.settle();
        more
    }
}

/// Hash, key and value of a record.
#[inline(always)]
pub(super) fn parts(record: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let lengths = Lengths::at(record, 0)?;
    let hash = u64::from_ne_bytes(record.get(8..16)?.try_into().ok()?);
    let start = 16 + lengths.value().next_multiple_of(8);
    let key = record.get(start..start.checked_add(lengths.key())?)?;
    Some((hash, key, record.get(16..16 + lengths.value())?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::point::expiry::latest_stamp;
    use crate::point::log::Log;
    use crate::point::{PageRecord, read_page};
    use crate::{Shard, ShardOptions, TableId, TableLayout};

    proptest! {
        #[test]
        fn any_page_is_walked_without_a_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..400),
            // The lengths of a record that fits about, so that walking gets somewhere.
            lengths in prop::collection::vec((0_usize..400, 0_u64..80, 0_u64..40, 0_u64..64), 0..6),
        ) {
            for (at, value, key, flags) in lengths {
                if let Some(word) = bytes.get_mut(at / 8 * 8..at / 8 * 8 + 8) {
                    word.copy_from_slice(&(value << 32 | key << 6 | flags).to_ne_bytes());
                }
            }
            let _ = latest_stamp(&bytes);
            let mut seen = 0;
            let _ = read_page(&bytes, |_| seen += 1);
            prop_assert!(seen <= bytes.len() / RECORD_BYTES_MIN);
            for offset in (0..bytes.len()).step_by(8) {
                let _ = parts(&bytes[offset..]);
            }
        }

        #[test]
        fn records_of_a_page_are_walked_in_order(keys in prop::collection::btree_set(prop::collection::vec(any::<u8>(), 0..40), 1..10)) {
            let mut shard = Shard::with_layout(ShardOptions { budget_bytes: usize::MAX }, TableLayout::default());
            let table = shard.point(TableId(1), 8);
            for (i, key) in keys.iter().enumerate() {
                table.put(i as u64, key, &[1; 5]);
            }
            let page = Log::page_bytes_of(&table.log, 1);
            let mut seen = Vec::new();
            let read = read_page(page, |record| {
                if let PageRecord::Live { key, .. } = record {
                    seen.push(key.to_vec());
                }
            });
            prop_assert!(read.is_some());
            prop_assert_eq!(seen, keys.into_iter().collect::<Vec<_>>());
        }
    }
}
