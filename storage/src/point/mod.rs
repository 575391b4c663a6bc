//! Keys with values, found by hash: the table of groups, windows and join sides.

mod capture;
mod cold;
mod expiry;
mod index;
mod log;
mod merging;
mod page;
mod pending;
mod pieces;

use std::cell::{Cell, RefCell};

use crate::bugs::{self, Bug};
use crate::memory::Account;
use crate::shard::TableId;
use crate::store::StoreHandle;
pub(crate) use capture::{Captured, read_removals};
pub(crate) use cold::PageImage;
pub use expiry::{ExpiringTable, TimeToLive};
pub(crate) use expiry::{STAMP_BYTES, SWEPT_A_TURN};
use index::{ADDRESS_BITS, Index, SELF_SUFFICIENT_BITS};
use log::{HAS_OLDER, KEY_BYTES_MAX, LIVE, Log, TOMBSTONE, Usual, VALUE_BYTES_MAX};
pub(crate) use merging::MemoryUse;
pub(crate) use page::{PageRecord, read_page};
pub(crate) use pending::{Located, PageRead};

/// How many keys ahead a batch call asks for buckets, and for records.
const BUCKETS_AHEAD: usize = 24;
const RECORDS_AHEAD: usize = 12;
/// Places for what was found ahead; a power of two above `RECORDS_AHEAD`.
const LIKELY: usize = 16;
/// Records that a removal may visit to empty a wasteful page. A page with a third of waste gains one record in three visits, so eight keep up.
const COMPACTION_VISITS: usize = 8;

/// Where a record of a [`PointTable`] lies. Valid until that table's next `remove`, `clear` or `put`, and until [`Shard::maintain`] of a shard
/// with a store or of a table whose records expire; inserting by `entries` keeps it valid.
///
/// [`Shard::maintain`]: crate::Shard::maintain
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordRef(u64);

/// What [`PointTable::entries`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The record.
    pub record: RecordRef,
    /// Whether it was made by this call; its value is all zeros then.
    pub is_new: bool,
}

/// Many keys: key `i` is `bytes[offsets[i]..offsets[i + 1]]` and hashes to `hashes[i]`. `offsets.len() == hashes.len() + 1`.
#[derive(Clone, Copy, Debug)]
pub struct KeyBatch<'a> {
    /// All keys, one behind the other.
    pub bytes: &'a [u8],
    /// Where each begins, and where the last ends.
    pub offsets: &'a [u32],
    /// A 64-bit hash of each; equal keys must have equal hashes, everywhere and for ever (it also places rows on cores).
    pub hashes: &'a [u64],
}

impl<'a> KeyBatch<'a> {
    /// How many keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Key `i`.
    #[must_use]
    #[inline(always)]
    pub fn key(&self, i: usize) -> &'a [u8] {
        &self.bytes[self.offsets[i] as usize..self.offsets[i + 1] as usize]
    }
}

/// Sizes that a table is made of. The default is right for use; tests make everything tiny, so that every boundary is crossed often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLayout {
    /// Largest page of records: `1 << page_bits` bytes, 9 to 24. Not smaller than where a shard was written that is opened.
    pub page_bits: u8,
    /// Fewest buckets: `1 << index_bits`.
    pub index_bits: u8,
    /// Largest segment of the index: `1 << segment_bits` buckets.
    pub segment_bits: u8,
    /// Bits of the hash kept beside an address, 0 to 24.
    pub tag_bits: u8,
    /// Largest block of an ordered table that isn't one entry: `1 << block_bits` bytes, 6 to 16.
    pub block_bits: u8,
    /// Most blocks of an ordered table that lie in one list, at least 4.
    pub chunk_blocks: u16,
}

impl TableLayout {
    /// For shards larger than their memory: pages of 64 KiB, so that reading one record isn't reading two megabytes, and indexes that grow
    /// without asking for records.
    #[must_use]
    pub fn for_device() -> Self {
        Self { page_bits: 16, index_bits: SELF_SUFFICIENT_BITS, segment_bits: 12, ..Self::default() }
    }
}

impl Default for TableLayout {
    fn default() -> Self {
        Self { page_bits: 21, index_bits: 2, segment_bits: 15, tag_bits: 24, block_bits: 12, chunk_blocks: 256 }
    }
}

/// Keys with values, found by hash. Batch calls first: they ask for the memory of later keys while they work on earlier ones.
///
/// A value made by [`entries`](Self::entries) has the table's width, one made by [`put`](Self::put) any length below 4 GiB; values begin at
/// addresses that are multiples of 8. Keys are shorter than 64 MiB. Space of removed records is used again, and pages that removals leave
/// mostly empty are emptied and freed, a few records a removal.
#[derive(Debug)]
pub struct PointTable {
    value_width: usize,
    /// What a record with a value so long looks like.
    usual: Usual,
    index: Index,
    log: Log,
    account: Account,
    /// Scans that wait to be continued: nothing may move meanwhile.
    open_scans: Cell<usize>,
    /// With a store, for each open scan its number and the page number at which it ends.
    scan_ends: RefCell<Vec<(u64, u64)>>,
    scan_number: Cell<u64>,
    /// Of a table whose records expire.
    expiry: Option<expiry::Expiry>,
    /// A record on its way from a sealed page to the tail; kept while it is short.
    on_its_way: Vec<u8>,
}

/// So much memory is kept for a record on its way.
const ON_ITS_WAY_KEPT_BYTES: usize = 4096;

/// Bits of a scan's cursor that are its number; the lower ones are an address.
const SCAN_NUMBERS: u64 = (1 << (64 - ADDRESS_BITS)) - 1;

impl PointTable {
    pub(crate) fn new(value_width: usize, layout: &TableLayout, account: Account) -> Self {
        assert!(value_width <= VALUE_BYTES_MAX, "a value is shorter than 4 GiB");
        let mut table = Self {
            value_width,
            usual: Usual::of(value_width),
            index: Index::new(layout),
            log: Log::new(layout),
            account,
            open_scans: Cell::new(0),
            scan_ends: RefCell::default(),
            scan_number: Cell::new(0),
            expiry: None,
            on_its_way: Vec::new(),
        };
        table.settle();
        table
    }

    /// Lets pages go to a store. The table is new.
    pub(crate) fn attach(&mut self, store: StoreHandle, id: TableId, keeps_tombstones: bool) {
        self.log.attach(store, id, keeps_tombstones);
        self.settle();
    }

    #[inline(always)]
    fn settle(&mut self) {
        let cold = match &self.log.cold {
            Some(cold) => cold.allocated_bytes(),
            None if self.log.touch != 0 => self.log.track_bytes(),
            None => 0,
        };
        self.account.settle(size_of::<Self>() + self.log.allocated_bytes() + self.index.allocated_bytes() + cold);
    }

    #[inline(always)]
    fn locate(&self, hash: u64, key: &[u8]) -> Option<u64> {
        let mut probe = self.index.probe(hash);
        while let Some(address) = probe.next() {
            if self.log.is_key(address, hash, key) {
                return Some(address);
            }
        }
        None
    }

    /// A new record that is in the index. The key isn't there yet.
    fn add(&mut self, hash: u64, key: &[u8], value_len: usize, flags: u64) -> u64 {
        assert!(key.len() <= KEY_BYTES_MAX, "a key is shorter than 64 MiB");
        let address = self.log.append(hash, key, value_len, LIVE | flags);
        self.index_new(hash, address);
        address
    }

    /// Puts a new record into the index.
    fn index_new(&mut self, hash: u64, address: u64) {
        let log = &self.log;
        self.index.insert(hash, address, |at| log.hash_wherever(at), |at| log.prefetch(at));
    }

    /// Forgets a record that is there. `older`: whether sealed pages may hold older records of the key.
    fn forget(&mut self, hash: u64, at: u64, older: bool) {
        self.index.remove(hash, at);
        if older && self.keeps_tombstones() {
            let key = self.log.key(at).to_vec();
            self.bury(hash, &key);
        }
        self.log.free(at);
    }

    fn keeps_tombstones(&self) -> bool {
        self.log.cold.as_ref().is_some_and(|c| c.keeps_tombstones) && !bugs::is_on(Bug::ForgetsTombstones)
    }

    /// Says in the log that a key, of which sealed pages may hold records, was removed.
    fn bury(&mut self, hash: u64, key: &[u8]) {
        if self.keeps_tombstones() {
            let origin = self.log.sealed_below;
            let tombstone = self.log.append(hash, key, 8, TOMBSTONE);
            self.log.value_mut(tombstone).copy_from_slice(&origin.to_le_bytes());
        }
    }

    /// Whether sealed pages may hold a record of the key of the record `at`, that one included.
    fn has_older(&self, at: u64) -> bool {
        self.log.is_sealed(at) || self.log.lengths(at).is(HAS_OLDER)
    }

    /// Copies a sealed record to the tail, where it may be changed. `bytes` is the record.
    fn copy_up(&mut self, hash: u64, at: u64, bytes: &[u8]) -> u64 {
        let copy = self.log.copy_to_tail(at, bytes, HAS_OLDER);
        self.copied_up(hash, at, copy, bytes.len());
        copy
    }

    /// The copy of a sealed record takes its place.
    #[inline(always)]
    fn copied_up(&mut self, hash: u64, at: u64, copy: u64, record_bytes: usize) {
        let found = self.index.replace(hash, at, copy);
        debug_assert!(found, "a live record is in the index");
        let (slot, _) = self.log.split(at);
        self.log.free_sealed(slot, record_bytes);
    }

    /// The record that a reference means, where it may be changed.
    #[cold]
    fn unseal(&mut self, at: u64) -> u64 {
        let at = self.log.resolve(at);
        if !self.log.is_sealed(at) {
            return at;
        }
        let hash = self.log.hash(at);
        if let Some((copy, record_bytes)) = self.log.copy_resident_to_tail(at, HAS_OLDER) {
            self.copied_up(hash, at, copy, record_bytes);
            self.settle();
            return copy;
        }
        let mut bytes = std::mem::take(&mut self.on_its_way);
        bytes.clear();
        bytes.extend_from_slice(self.log.record(at));
        let copy = self.copy_up(hash, at, &bytes);
        if bytes.capacity() <= ON_ITS_WAY_KEPT_BYTES {
            self.on_its_way = bytes;
        }
        self.settle();
        copy
    }

    /// Asks for the bucket of a key long before it is its turn, then for the record that is
    /// probably its own; when it is its turn that record is tried first.
    #[inline(always)]
    fn ahead(&self, keys: &KeyBatch<'_>, i: usize, likely: &mut [u64; LIKELY]) {
        if let Some(hash) = keys.hashes.get(i + BUCKETS_AHEAD) {
            self.index.prefetch(*hash);
        }
        if let Some(hash) = keys.hashes.get(i + RECORDS_AHEAD) {
            let address = self.index.candidate(*hash);
            likely[(i + RECORDS_AHEAD) % LIKELY] = address;
            self.log.prefetch(address);
        }
    }

    /// Asks for the memory that the first keys of a batch will need.
    fn likely_first(&self, keys: &KeyBatch<'_>) -> [u64; LIKELY] {
        let mut likely = [0; LIKELY];
        if keys.len() > 1 {
            for hash in keys.hashes.iter().take(BUCKETS_AHEAD) {
                self.index.prefetch(*hash);
            }
            for (hash, likely) in keys.hashes.iter().zip(&mut likely).take(RECORDS_AHEAD) {
                *likely = self.index.candidate(*hash);
                self.log.prefetch(*likely);
            }
        }
        likely
    }

    /// `likely` is the address of a record that hasn't been freed since, or 0.
    #[inline(always)]
    fn locate_likely(&self, likely: u64, hash: u64, key: &[u8]) -> Option<u64> {
        match <[u8; 8]>::try_from(key) {
            Ok(eight) if self.log.usual_value(likely, u64::from_ne_bytes(eight), &self.usual).is_some() => Some(likely),
            _ if likely != 0 && self.log.is_key(likely, hash, key) => Some(likely),
            _ => self.locate(hash, key),
        }
    }

    /// Finds each key, or makes it with a value of zeros; one entry a key, in order. A key that stands twice gets the same record.
    pub fn entries(&mut self, keys: &KeyBatch<'_>, out: &mut Vec<Entry>) {
        out.reserve(keys.len());
        let mut likely = self.likely_first(keys);
        for i in 0..keys.len() {
            // Nothing is freed or moved here, so an address seen some keys ago still is a record's.
            let first_try = likely[i % LIKELY];
            self.ahead(keys, i, &mut likely);
            let (hash, key) = (keys.hashes[i], keys.key(i));
            let entry = match self.locate_likely(first_try, hash, key) {
                Some(at) => Entry { record: RecordRef(at), is_new: false },
                None => Entry { record: RecordRef(self.add(hash, key, self.value_width, 0)), is_new: true },
            };
            out.push(entry);
        }
        self.settle();
    }

    /// Finds each key.
    pub fn find(&self, keys: &KeyBatch<'_>, out: &mut Vec<Option<RecordRef>>) {
        out.reserve(keys.len());
        let mut likely = self.likely_first(keys);
        for i in 0..keys.len() {
            let first_try = likely[i % LIKELY];
            self.ahead(keys, i, &mut likely);
            out.push(self.locate_likely(first_try, keys.hashes[i], keys.key(i)).map(RecordRef));
        }
    }

    /// The key of a record.
    #[must_use]
    #[inline(always)]
    pub fn key(&self, record: RecordRef) -> &[u8] {
        self.log.key(self.log.resolve(record.0))
    }

    /// The hash of a record's key.
    #[must_use]
    #[inline(always)]
    pub fn hash(&self, record: RecordRef) -> u64 {
        self.log.hash(self.log.resolve(record.0))
    }

    /// The value of a record.
    #[must_use]
    #[inline(always)]
    pub fn value(&self, record: RecordRef) -> &[u8] {
        self.log.value(self.log.resolve(record.0))
    }

    /// The value of a record, to change in place.
    #[inline(always)]
    pub fn value_mut(&mut self, record: RecordRef) -> &mut [u8] {
        let at = self.writable(record);
        self.log.value_mut(at)
    }

    /// Where a record is that may be changed in place.
    #[inline(always)]
    fn writable(&mut self, record: RecordRef) -> u64 {
        if self.log.is_sealed(record.0) { self.unseal(record.0) } else { record.0 }
    }

    /// Sets the value of `key`, of any length; the record may move.
    #[inline]
    pub fn put(&mut self, hash: u64, key: &[u8], value: &[u8]) -> RecordRef {
        if value.len() == self.value_width
            && let Ok(eight) = <[u8; 8]>::try_from(key)
            && let Some(first) = self.index.first(hash)
            && let Some(place) = self.log.usual_value_in_place(first, u64::from_ne_bytes(eight), &self.usual)
        {
            match (<&mut [u8; 8]>::try_from(&mut *place), <[u8; 8]>::try_from(value)) {
                // One store instead of a call.
                (Ok(place), Ok(eight)) => *place = eight,
                _ => place.copy_from_slice(value),
            }
            return RecordRef(first);
        }
        self.put_any(hash, key, value)
    }

    /// The same, wherever the record is.
    #[inline(never)]
    fn put_any(&mut self, hash: u64, key: &[u8], value: &[u8]) -> RecordRef {
        let found = self.locate(hash, key);
        let address = self.place_for(hash, key, value.len(), found);
        self.log.value_mut(address).copy_from_slice(value);
        self.settle();
        RecordRef(address)
    }

    /// A record of the key that has room for a value of exactly this length and may be written: the one that was found, or a new one.
    #[inline(always)]
    fn place_for(&mut self, hash: u64, key: &[u8], value_len: usize, found: Option<u64>) -> u64 {
        assert!(value_len <= VALUE_BYTES_MAX, "a value is shorter than 4 GiB");
        match found {
            Some(at) if self.log.lengths(at).value() == value_len && !self.log.is_sealed(at) => at,
            _ => self.make_anew(hash, key, value_len, found),
        }
    }

    /// A new record, with a value of zeros, in place of the one that was found, if one was.
    fn make_anew(&mut self, hash: u64, key: &[u8], value_len: usize, found: Option<u64>) -> u64 {
        let Some(at) = found else { return self.add(hash, key, value_len, 0) };
        let flags = if self.has_older(at) { HAS_OLDER } else { 0 };
        self.index.remove(hash, at);
        self.log.free(at);
        self.compact();
        self.add(hash, key, value_len, flags)
    }

    /// The value of `key`.
    #[must_use]
    #[inline]
    pub fn get(&self, hash: u64, key: &[u8]) -> Option<&[u8]> {
        if let Ok(eight) = <[u8; 8]>::try_from(key)
            && let Some(first) = self.index.first(hash)
            && let Some(value) = self.log.usual_value(first, u64::from_ne_bytes(eight), &self.usual)
        {
            return Some(value);
        }
        self.get_any(hash, key)
    }

    /// The value of `key`, wherever it is.
    #[inline(never)]
    fn get_any(&self, hash: u64, key: &[u8]) -> Option<&[u8]> {
        let mut probe = self.index.probe(hash);
        while let Some(address) = probe.next() {
            let value = self.log.value_of(address, hash, key);
            if value.is_some() {
                return value;
            }
        }
        None
    }

    /// Finds one key, or makes it with a value of zeros, and lets `f` change its value in place; `f` is told whether it is new. What
    /// [`entries`](Self::entries) does for many.
    #[inline]
    pub fn change<T>(&mut self, hash: u64, key: &[u8], f: impl FnOnce(&mut [u8], bool) -> T) -> T {
        let usual = match (<[u8; 8]>::try_from(key), self.index.first(hash)) {
            (Ok(eight), Some(first)) => self.log.usual_value_in_place(first, u64::from_ne_bytes(eight), &self.usual),
            _ => None,
        };
        let (value, is_new) = match usual {
            Some(value) => (value, false),
            None => self.change_any(hash, key),
        };
        f(value, is_new)
    }

    /// The value of `key`, wherever it is, to change in place, or a new one; and whether it is new.
    #[inline(never)]
    fn change_any(&mut self, hash: u64, key: &[u8]) -> (&mut [u8], bool) {
        match self.locate(hash, key) {
            Some(at) => (self.value_mut(RecordRef(at)), false),
            None => {
                let at = self.add(hash, key, self.value_width, 0);
                self.settle();
                (self.log.value_mut(at), true)
            }
        }
    }

    /// Forgets `key`; whether it was there.
    pub fn remove(&mut self, hash: u64, key: &[u8]) -> bool {
        let Some(at) = self.locate(hash, key) else { return false };
        self.forget(hash, at, self.has_older(at));
        self.compact();
        self.settle();
        true
    }

    /// Forgets all keys and frees what they took.
    pub fn clear(&mut self) {
        self.index.clear();
        self.log.clear();
        self.open_scans.set(0);
        self.scan_ends.borrow_mut().clear();
        self.settle();
    }

    /// Frees one page of records, or at last the index, of a table that is given up; `false` when it is empty. Nothing else may be asked of
    /// the table any more.
    pub(crate) fn dismantle_step(&mut self) -> bool {
        let more = self.log.free_page() || self.index.free_segment();
        self.settle();
        more
    }

    fn compact(&mut self) {
        // Moves of records in mutable pages; sealed ones are compacted by segment.
        if self.open_scans.get() == 0 && self.log.is_wasteful() {
            let index = &mut self.index;
            self.log.compact_step(COMPACTION_VISITS, |hash, from, to| {
                let found = index.replace(hash, from, to);
                debug_assert!(found, "a live record is in the index");
            });
        }
    }

    /// Appends up to `max` live records to `out`, going on behind `cursor` (0 at first); the next cursor, or `None` at the end. Records
    /// made meanwhile may or may not be seen, all others are seen once, whatever is removed meanwhile; `put` with another length makes a
    /// record anew. A scan that isn't continued to its end must be given up with [`end_scan`](Self::end_scan), or pages stay uncompacted.
    pub fn scan(&self, cursor: u64, max: usize, out: &mut Vec<RecordRef>) -> Option<u64> {
        let stored = self.log.cold.is_some();
        let (address, number) = (cursor & ((1 << ADDRESS_BITS) - 1), cursor >> ADDRESS_BITS);
        let end = match (stored, cursor) {
            (false, _) => u64::MAX,
            (true, 0) => self.log.next_number,
            (true, _) => self.scan_ends.borrow().iter().find(|(n, _)| *n == number).map_or(0, |(_, end)| *end),
        };
        let now_at = |hash, at| {
            if self.index.contains(hash, at) {
                return Some(at);
            }
            // It may have been copied since the scan began; then its copy is behind the end of the scan. A copy from before is seen where it is.
            let now = self.log.forwarded(at);
            (now != at && self.log.page_number(now) >= end && self.index.contains(hash, now)).then_some(now)
        };
        let next = self.log.scan(address, end, max, now_at, |at| out.push(RecordRef(at)));
        match (cursor, next) {
            (0, Some(next)) => {
                self.open_scans.set(self.open_scans.get() + 1);
                if !stored {
                    return Some(next);
                }
                let number = self.scan_number.get() % SCAN_NUMBERS + 1;
                self.scan_number.set(number);
                self.scan_ends.borrow_mut().push((number, end));
                self.log.floor.set(end);
                Some(next | number << ADDRESS_BITS)
            }
            (1.., None) => {
                self.scan_ends.borrow_mut().retain(|(n, _)| *n != number);
                self.end_scan();
                None
            }
            (_, next) => next.map(|next| next | number << ADDRESS_BITS),
        }
    }

    /// Gives up a scan that returned a cursor and won't be continued.
    pub fn end_scan(&self) {
        self.open_scans.set(self.open_scans.get().saturating_sub(1));
        if self.open_scans.get() == 0 {
            self.scan_ends.borrow_mut().clear();
            self.log.floor.set(0);
        }
    }

    // === captures

    /// Cuts: what the table holds now, or what of it has changed since the last cut, is captured from here on. Whether it is all of it.
    pub(crate) fn begin_capture(&mut self, wants_whole: bool) -> bool {
        let is_whole = self.log.begin_capture_of_records(wants_whole);
        self.settle();
        is_whole
    }

    /// Whether the next capture can be one of changes.
    pub(crate) fn knows_changes(&self) -> bool {
        self.log.knows_changes()
    }

    /// The table is new: all of it is a change.
    pub(crate) fn track_changes(&mut self) {
        self.log.track_changes();
        self.settle();
    }

    /// Some more of what is captured, of about as many bytes as are left; whether there is more.
    pub(crate) fn capture_slice(&mut self, bytes: &mut usize, f: impl FnMut(Captured<'_>)) -> bool {
        let more = self.log.capture_slice(bytes, f);
        self.settle();
        more
    }

    /// Bytes of each value made by [`entries`](Self::entries).
    #[must_use]
    pub fn value_width(&self) -> usize {
        self.value_width
    }

    /// How many keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.len() == 0
    }

    /// The memory the table holds, with its index.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.account.used_bytes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;

    const TINY: TableLayout =
        TableLayout { page_bits: 9, index_bits: 1, segment_bits: 3, tag_bits: 2, block_bits: 7, chunk_blocks: 4 };

    fn table(width: usize, layout: &TableLayout) -> PointTable {
        PointTable::new(width, layout, Account::new(Arc::new(AtomicUsize::new(0))))
    }

    /// Any function of the key will do; this one makes collisions of whole hashes common.
    fn hash_of(key: &[u8], hash_bits: u32) -> u64 {
        let mixed = key.iter().fold(0xCBF2_9CE4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01B3));
        let mixed = mixed ^ (mixed >> 29);
        if hash_bits == 64 { mixed } else { (mixed & ((1 << hash_bits) - 1)).wrapping_mul(0x0001_0001_0001_0001) }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Entries(Vec<Vec<u8>>, u8),
        Find(Vec<Vec<u8>>),
        Put(Vec<u8>, Vec<u8>),
        Change(Vec<u8>, u8),
        Remove(Vec<Vec<u8>>),
        RemoveWhere(u8, u8),
        Scan(usize),
        Clear,
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            6 => (0_u64..400).prop_map(|k| k.to_be_bytes().to_vec()),
            3 => prop::collection::vec(any::<u8>(), 0..4),
            1 => (0_usize..5, any::<u8>()).prop_map(|(n, b)| vec![b; n * 37]),
        ]
    }

    fn op() -> impl Strategy<Value = Op> {
        let keys = || prop::collection::vec(key(), 0..60);
        prop_oneof![
            20 => (keys(), any::<u8>()).prop_map(|(k, b)| Op::Entries(k, b)),
            5 => keys().prop_map(Op::Find),
            10 => (key(), prop::collection::vec(any::<u8>(), 0..70)).prop_map(|(k, v)| Op::Put(k, v)),
            5 => (key(), any::<u8>()).prop_map(|(k, b)| Op::Change(k, b)),
            2 => (key(), 0_usize..2000).prop_map(|(k, n)| Op::Put(k, vec![7; n])),
            10 => keys().prop_map(Op::Remove),
            4 => (1_u8..4, 0_u8..4).prop_map(|(m, r)| Op::RemoveWhere(m, r)),
            4 => (1_usize..50).prop_map(Op::Scan),
            1 => Just(Op::Clear),
        ]
    }

    struct Batch {
        bytes: Vec<u8>,
        offsets: Vec<u32>,
        hashes: Vec<u64>,
    }

    fn batch(keys: &[Vec<u8>], hash_bits: u32) -> Batch {
        let mut offsets = vec![0];
        offsets.extend(keys.iter().scan(0, |at, k| {
            *at += k.len() as u32;
            Some(*at)
        }));
        Batch { bytes: keys.concat(), offsets, hashes: keys.iter().map(|k| hash_of(k, hash_bits)).collect() }
    }

    impl Batch {
        fn as_batch(&self) -> KeyBatch<'_> {
            KeyBatch { bytes: &self.bytes, offsets: &self.offsets, hashes: &self.hashes }
        }
    }

    fn run(width: usize, hash_bits: u32, layout: &TableLayout, ops: Vec<Op>) {
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut table = table(width, layout);
        for op in ops {
            match op {
                Op::Entries(keys, byte) => {
                    let batch = batch(&keys, hash_bits);
                    let mut out = Vec::new();
                    table.entries(&batch.as_batch(), &mut out);
                    assert_eq!(out.len(), keys.len());
                    for (key, entry) in keys.iter().zip(&out) {
                        assert_eq!(entry.is_new, !model.contains_key(key), "{key:?}");
                        let expected = model.entry(key.clone()).or_insert_with(|| vec![0; width]);
                        if entry.is_new {
                            assert!(table.value(entry.record).len() == width);
                        }
                        assert_eq!(table.key(entry.record), key);
                        assert_eq!(table.hash(entry.record), hash_of(key, hash_bits));
                        assert_eq!(table.value(entry.record), expected);
                        assert_eq!(table.value(entry.record).as_ptr() as usize % 8, 0);
                        if let Some(last) = expected.last_mut() {
                            *last = byte;
                            *table.value_mut(entry.record).last_mut().unwrap() = byte;
                        }
                    }
                }
                Op::Find(keys) => {
                    let batch = batch(&keys, hash_bits);
                    let mut out = Vec::new();
                    table.find(&batch.as_batch(), &mut out);
                    let found: Vec<_> = out.iter().map(|r| r.map(|r| table.value(r).to_vec())).collect();
                    let expected: Vec<_> = keys.iter().map(|k| model.get(k).cloned()).collect();
                    assert_eq!(found, expected);
                }
                Op::Put(key, value) => {
                    let record = table.put(hash_of(&key, hash_bits), &key, &value);
                    assert_eq!((table.key(record), table.value(record)), (key.as_slice(), value.as_slice()));
                    model.insert(key, value);
                }
                Op::Change(key, byte) => {
                    let is_known = model.contains_key(&key);
                    let expected = model.entry(key.clone()).or_insert_with(|| vec![0; width]);
                    table.change(hash_of(&key, hash_bits), &key, |value, is_new| {
                        assert_eq!((&*value, is_new), (expected.as_slice(), !is_known));
                        if let (Some(first), Some(wanted)) = (value.first_mut(), expected.first_mut()) {
                            (*first, *wanted) = (byte, byte);
                        }
                    });
                    assert_eq!(table.get(hash_of(&key, hash_bits), &key), Some(expected.as_slice()));
                }
                Op::Remove(keys) => {
                    for key in keys {
                        assert_eq!(table.remove(hash_of(&key, hash_bits), &key), model.remove(&key).is_some(), "{key:?}");
                    }
                }
                Op::RemoveWhere(modulus, rest) => {
                    let gone: Vec<_> = model.keys().filter(|k| k.last().unwrap_or(&0) % modulus == rest).cloned().collect();
                    for key in gone {
                        assert!(table.remove(hash_of(&key, hash_bits), &key));
                        model.remove(&key);
                    }
                }
                Op::Scan(max) => {
                    // Removes every second record as it goes, as operators that close groups do.
                    let (mut cursor, mut seen) = (Some(0), Vec::new());
                    let mut expected: Vec<_> = model.keys().cloned().collect();
                    while let Some(at) = cursor {
                        let mut out = Vec::new();
                        cursor = table.scan(at, max, &mut out);
                        assert!(out.len() <= max);
                        let keys: Vec<_> = out.iter().map(|r| table.key(*r).to_vec()).collect();
                        for (i, key) in keys.into_iter().enumerate() {
                            assert_eq!(Some(table.value(out[i])), model.get(&key).map(Vec::as_slice));
                            seen.push(key);
                        }
                        for key in seen.iter().skip(seen.len().saturating_sub(max)).step_by(2) {
                            assert_eq!(table.remove(hash_of(key, hash_bits), key), model.remove(key).is_some());
                        }
                    }
                    seen.sort();
                    expected.sort();
                    assert_eq!(seen, expected, "a scan sees each record once");
                }
                Op::Clear => {
                    table.clear();
                    model.clear();
                }
            }
            table.log.check();
            assert_eq!(table.len(), model.len());
            if table.log.cold.is_none() {
                let parts = table.log.allocated_bytes() + table.index.allocated_bytes();
                assert_eq!(table.used_bytes(), size_of::<PointTable>() + parts);
            }
        }
        for (key, value) in &model {
            assert_eq!(table.get(hash_of(key, hash_bits), key), Some(value.as_slice()));
        }
        assert_eq!(table.open_scans.get(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

        #[test]
        fn behaves_as_a_map_with_tiny_pages_few_tag_bits_and_colliding_hashes(
            width in prop_oneof![Just(0_usize), Just(8), Just(13), Just(40)],
            hash_bits in prop_oneof![Just(64_u32), Just(6), Just(1)],
            page_bits in 9_u8..12,
            ops in prop::collection::vec(op(), 1..60),
        ) {
            run(width, hash_bits, &TableLayout { page_bits, ..TINY }, ops);
        }

        #[test]
        fn behaves_as_a_map_in_its_usual_layout(ops in prop::collection::vec(op(), 1..60)) {
            run(16, 64, &TableLayout::default(), ops);
        }
    }

    #[test]
    fn memory_stays_bounded_while_records_of_all_lengths_come_and_go() {
        let mut table = table(8, &TableLayout { page_bits: 14, ..TableLayout::default() });
        let mut seed = 1_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize
        };
        let mut live: BTreeMap<u64, usize> = BTreeMap::new();
        let mut live_bytes = 0;
        for round in 0..400_000_u64 {
            // The usual length drifts, so that freed space seldom fits what comes next.
            let len = 16 + random() % (16 + (round / 1000) as usize);
            let key = (random() % 3000) as u64;
            if random().is_multiple_of(2) {
                table.put(hash_of(&key.to_be_bytes(), 64), &key.to_be_bytes(), &vec![1; len]);
                live_bytes += len + 24;
                live_bytes -= live.insert(key, len).map_or(0, |old| old + 24);
            } else {
                assert_eq!(table.remove(hash_of(&key.to_be_bytes(), 64), &key.to_be_bytes()), live.contains_key(&key));
                live_bytes -= live.remove(&key).map_or(0, |old| old + 24);
            }
            if round > 10_000 {
                assert!(
                    table.used_bytes() < 2 * live_bytes + 150_000,
                    "{} B for {live_bytes} B in round {round}",
                    table.used_bytes()
                );
            }
        }
        table.log.check();
        for key in 0..3000_u64 {
            table.remove(hash_of(&key.to_be_bytes(), 64), &key.to_be_bytes());
        }
        assert!(table.is_empty() && table.used_bytes() < 100_000, "{} B when empty", table.used_bytes());
    }

    #[test]
    fn a_small_table_costs_little_and_a_dropped_one_nothing() {
        let shard_bytes = Arc::new(AtomicUsize::new(0));
        let tables: Vec<_> = (0..100)
            .map(|i: u64| {
                let mut table = PointTable::new(8, &TableLayout::default(), Account::new(Arc::clone(&shard_bytes)));
                table.put(i, b"key", b"12345678");
                table
            })
            .collect();
        let used = shard_bytes.load(std::sync::atomic::Ordering::Relaxed);
        assert!(used < 100 * 2560, "{used}");
        assert_eq!(used, tables.iter().map(PointTable::used_bytes).sum::<usize>());
        drop(tables);
        assert_eq!(shard_bytes.load(std::sync::atomic::Ordering::Relaxed), 0);
    }

    #[test]
    fn an_abandoned_scan_holds_compaction_back_until_it_is_ended() {
        let mut table = table(8, &TINY);
        let keys: Vec<_> = (0..2000_u64).map(|k| k.to_be_bytes().to_vec()).collect();
        let batch = batch(&keys, 64);
        table.entries(&batch.as_batch(), &mut Vec::new());
        assert!(table.scan(0, 1, &mut Vec::new()).is_some());
        let full = table.log.allocated_bytes();
        for key in &keys[..1900] {
            table.remove(hash_of(key, 64), key);
        }
        assert!(table.log.allocated_bytes() >= full);
        table.end_scan();
        for key in &keys[1900..] {
            table.remove(hash_of(key, 64), key);
        }
        assert!(table.log.allocated_bytes() < full);
    }
}
