//! The records of a point table: pages of bytes, filled from one end, with lists of freed space.
//!
//! ```text
//! record, 8-byte aligned, never across a page:
//!   0  u64  value length:32 | key length:26 | flags:6 (two of them for `capture`)
//!   8  u64  hash of the key
//!  16       value, padded to 8 · key, padded to 8; at least 24 bytes in all
//! free space: the same lengths word, then u32 next | u32 previous of its list when LINKED
//! ```
//! An address is `page number << page_bits | offset`, in units of 8 bytes; it names a record until the record is freed or moved. Pages grow
//! with the table (a small table costs little), up to `1 << page_bits` bytes; a record larger than a quarter of that has a page of its own.
//!
//! With a store, pages have regions by the order in which they were made: those below `sealed_below` are sealed, their records are never
//! changed or reused again (a change copies to the tail), they are written to the device, and once durable their memory may go; see `cold`.

use std::cell::{Cell, OnceCell};

use super::TableLayout;
use super::capture::Track;
use super::cold::{Cold, growth};
use super::index::ADDRESS_BITS;
use crate::raw::Buffer;

/// Bytes before the value.
pub(super) const HEADER_BYTES: usize = 16;
pub(super) const RECORD_BYTES_MIN: usize = 24;
pub(super) const PAGE_BYTES_MIN: usize = 1024;

/// The record is in use.
pub(super) const LIVE: u64 = 1;
/// Says that its key was removed; not live, and in no index. The value is the `sealed_below` of that moment: older pages' records of the key
/// are dead.
pub(super) const TOMBSTONE: u64 = 2;
/// Sealed pages may hold older records of the key.
pub(super) const HAS_OLDER: u64 = 4;
/// Free space that is in a list.
pub(super) const LINKED: u64 = 8;
const KEY_SHIFT: u32 = 6;
/// Longest key.
pub(super) const KEY_BYTES_MAX: usize = (1 << 26) - 1;
/// Longest value.
pub(super) const VALUE_BYTES_MAX: usize = u32::MAX as usize;
const VALUE_SHIFT: u32 = 32;

/// Lists of free space: one for each size up to this many units, then one for each power of two.
const EXACT_UNITS: usize = 64;
const LISTS: usize = EXACT_UNITS + 32;
/// Links are 32-bit: only space at addresses below is listed (32 GiB of one table); compaction gets the rest.
const LINK_LIMIT: u64 = u32::MAX as u64;

#[inline(always)]
pub(super) fn pad(bytes: usize) -> usize {
    // Keys and values are shorter than 4 GiB, so this can't overflow.
    (bytes + 7) & !7
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lengths(u64);

impl Lengths {
    /// The lengths in a record's first word.
    #[inline(always)]
    pub(super) fn of(word: u64) -> Self {
        Self(word)
    }

    /// The word: lengths and flags.
    #[inline(always)]
    pub(super) fn word(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub(super) fn new(key: usize, value: usize, flags: u64) -> Self {
        Self((value as u64) << VALUE_SHIFT | (key as u64) << KEY_SHIFT | flags)
    }

    #[inline(always)]
    pub(super) fn key(self) -> usize {
        (self.0 >> KEY_SHIFT) as usize & KEY_BYTES_MAX
    }

    #[inline(always)]
    pub(super) fn value(self) -> usize {
        (self.0 >> VALUE_SHIFT) as usize
    }

    #[inline(always)]
    pub(super) fn is(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    /// The lengths at an offset of a page's bytes; `None` behind the last.
    pub(super) fn at(page: &[u8], offset: usize) -> Option<Self> {
        let word = page.get(offset..offset + 8)?;
        Some(Self(u64::from_ne_bytes(word.try_into().ok()?)))
    }

    #[inline(always)]
    pub(super) fn size(self) -> usize {
        (HEADER_BYTES + pad(self.value()) + pad(self.key())).max(RECORD_BYTES_MIN)
    }

    /// Free space of `size` bytes, a multiple of 8 and at least 24.
    fn free(size: usize) -> Self {
        // A value's length has 32 bits; what is more (an oversize page is never listed) can't be.
        Self::new(0, size - HEADER_BYTES, 0)
    }
}

/// What a record looks like that has a key of 8 bytes and a value of the table's own width.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usual {
    /// Its first word without the flags.
    lengths: u64,
    /// 32 bits each, so that sums with an offset can't overflow, and needn't be checked for it.
    value_bytes: u32,
    padded_bytes: u32,
}

impl Usual {
    /// Of values so long.
    pub(super) fn of(value_len: usize) -> Self {
        match (u32::try_from(value_len), u32::try_from(pad(value_len))) {
            (Ok(value_bytes), Ok(padded_bytes)) => {
                Self { lengths: Lengths::new(8, value_len, 0).0 >> KEY_SHIFT, value_bytes, padded_bytes }
            }
            // There is no such record: lengths without flags have fewer bits.
            _ => Self { lengths: u64::MAX, value_bytes: 0, padded_bytes: 0 },
        }
    }

    /// Bytes of the header and the value, and of the whole record.
    #[inline(always)]
    fn ends(&self) -> (usize, usize) {
        let value_end = HEADER_BYTES + self.padded_bytes as usize;
        (value_end, value_end + 8)
    }
}

/// Aligned so that finding a page is a shift, and its words share a cache line.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Page {
    /// Nothing when the slot is unused, or the page is on the device alone.
    pub(super) buffer: OnceCell<Buffer>,
    /// Bytes filled, live or not; 0 when the slot is unused.
    pub(super) used: usize,
    /// Bytes of live records, and of tombstones.
    pub(super) live: usize,
    /// Its place in the order in which pages were made.
    pub(super) number: u64,
    /// Bytes at the end that were too short for the record that came next; free, but not what compaction can gain.
    pub(super) rest: u32,
    /// Whether it is one large record's own.
    pub(super) oversize: bool,
    /// Whether it is a page at all.
    pub(super) in_use: bool,
    /// Of a table whose records expire: no record of the page does so later.
    pub(super) latest_stamp_us: i64,
}

const _: () = assert!(size_of::<Page>() == 64);

impl Page {
    fn unused() -> Self {
        Self {
            buffer: OnceCell::new(),
            used: 0,
            live: 0,
            number: u64::MAX,
            rest: 0,
            oversize: false,
            in_use: false,
            latest_stamp_us: i64::MIN,
        }
    }

    /// What compaction can gain.
    fn waste(&self) -> usize {
        (self.used - self.rest as usize).saturating_sub(self.live)
    }

    /// Bytes of memory it holds.
    pub(super) fn memory(&self) -> usize {
        self.buffer.get().map_or(0, Buffer::len)
    }
}

/// Moving live records out of a page, so that it can be freed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Victim {
    pub(super) page: usize,
    offset: usize,
    /// Whether its free space is out of the lists already.
    unlinked: bool,
}

#[derive(Debug)]
pub(super) struct Log {
    pub(super) pages: Vec<Page>,
    empty_slots: Vec<usize>,
    pub(super) tail: Option<usize>,
    /// Pages with a lower number are sealed. 0 without a store.
    pub(super) sealed_below: u64,
    pub(super) next_number: u64,
    /// Records that were ever written, copies included.
    pub(super) records_written: u64,
    /// While above 0, new records go to pages numbered so or higher only: scans that began before don't see them.
    pub(super) floor: Cell<u64>,
    /// What a store needs.
    pub(super) cold: Option<Box<Cold>>,
    /// The flag of records that were made or changed in the interval that runs; 0 while nobody asks for changes.
    pub(super) touch: u64,
    /// What was changed, when somebody asks.
    pub(super) track: Option<Box<Track>>,
    /// Memory of pages that were read again and isn't in `allocated_bytes` yet.
    pub(super) loaded_bytes: Cell<usize>,
    unit_bits: u32,
    unit_mask: usize,
    /// `8 * unit_mask`.
    offset_mask: u32,
    pub(super) page_bytes_max: usize,
    /// Sum of the mutable pages' `rest`.
    pub(super) rest_bytes: usize,
    pub(super) lists: Option<Box<[u64; LISTS]>>,
    /// Which of the exact lists have something.
    pub(super) exact: u64,
    pub(super) victim: Option<Victim>,
    /// Of mutable pages.
    pub(super) live_bytes: usize,
    /// Of mutable pages.
    pub(super) page_bytes: usize,
    pub(super) allocated_bytes: usize,
}

fn list_of(size: usize) -> usize {
    let units = size / 8;
    if units < EXACT_UNITS { units } else { EXACT_UNITS + (units / EXACT_UNITS).ilog2() as usize }
}

impl Log {
    pub(super) fn new(layout: &TableLayout) -> Self {
        Self::with_bits(u32::from(layout.page_bits))
    }

    fn with_bits(page_bits: u32) -> Self {
        Self {
            pages: Vec::new(),
            empty_slots: Vec::new(),
            tail: None,
            sealed_below: 0,
            next_number: 0,
            records_written: 0,
            floor: Cell::new(0),
            cold: None,
            touch: 0,
            track: None,
            loaded_bytes: Cell::new(0),
            unit_bits: page_bits - 3,
            unit_mask: (1 << (page_bits - 3)) - 1,
            offset_mask: (1 << page_bits) - 8,
            page_bytes_max: 1 << page_bits,
            rest_bytes: 0,
            lists: None,
            exact: 0,
            victim: None,
            live_bytes: 0,
            page_bytes: 0,
            allocated_bytes: 0,
        }
    }

    /// Memory held.
    #[inline(always)]
    pub(super) fn allocated_bytes(&self) -> usize {
        self.allocated_bytes + self.loaded_bytes.get()
    }

    #[inline(always)]
    pub(super) fn split(&self, address: u64) -> (usize, usize) {
        ((address >> self.unit_bits) as usize, (address as usize & self.unit_mask) * 8)
    }

    /// An address' offset on its page.
    #[inline(always)]
    fn offset(&self, address: u64) -> u32 {
        // A page has less than 4 GiB.
        (address as u32) << 3 & self.offset_mask
    }

    pub(super) fn address(&self, page: usize, offset: usize) -> u64 {
        (page as u64) << self.unit_bits | (offset / 8) as u64
    }

    #[inline(always)]
    fn page(&self, page: usize) -> &Page {
        &self.pages[page]
    }

    fn page_mut(&mut self, page: usize) -> &mut Page {
        &mut self.pages[page]
    }

    /// Whether the record may not be changed where it is.
    #[inline(always)]
    pub(super) fn is_sealed(&self, address: u64) -> bool {
        let (page, _) = self.split(address);
        self.pages[page].number < self.sealed_below
    }

    /// Whether the record is in memory.
    #[inline(always)]
    pub(super) fn is_resident(&self, address: u64) -> bool {
        let (page, _) = self.split(address);
        self.pages[page].buffer.get().is_some()
    }

    /// From the record's first byte to the end of its page. A page that is on the device alone is read and waited for.
    #[inline(always)]
    fn from(&self, address: u64) -> &[u8] {
        let (page, offset) = self.split(address);
        match self.page(page).buffer.get() {
            Some(buffer) => &buffer.bytes()[offset..],
            None => self.read_on_demand(page, offset),
        }
    }

    #[inline(always)]
    #[expect(clippy::wrong_self_convention, reason = "the bytes from an address on, not a conversion")]
    fn from_mut(&mut self, address: u64) -> &mut [u8] {
        let (page, offset) = self.split(address);
        let buffer = self.page_mut(page).buffer.get_mut().expect("a mutable page is in memory");
        &mut buffer.bytes_mut()[offset..]
    }

    #[inline(always)]
    pub(super) fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    pub(super) fn set_word(bytes: &mut [u8], at: usize, word: u64) {
        bytes[at..at + 8].copy_from_slice(&word.to_ne_bytes());
    }

    #[inline(always)]
    pub(super) fn lengths(&self, address: u64) -> Lengths {
        Lengths(Self::word(self.from(address), 0))
    }

    #[inline(always)]
    pub(super) fn hash(&self, address: u64) -> u64 {
        Self::word(self.from(address), 8)
    }

    /// Whether the record is this key's.
    #[inline(always)]
    pub(super) fn is_key(&self, address: u64, hash: u64, key: &[u8]) -> bool {
        self.value_of(address, hash, key).is_some()
    }

    /// The value of the record, if it is this key's.
    #[inline(always)]
    pub(super) fn value_of(&self, address: u64, hash: u64, key: &[u8]) -> Option<&[u8]> {
        let (header, rest) = self.from(address).split_first_chunk::<HEADER_BYTES>()?;
        let lengths = Lengths(Self::word(header, 0));
        if Self::word(header, 8) != hash || lengths.key() != key.len() {
            return None;
        }
        let (value, behind) = rest.split_at_checked(pad(lengths.value()))?;
        let is_key = match <[u8; 8]>::try_from(key) {
            Ok(eight) => behind.first_chunk::<8>() == Some(&eight),
            Err(_) => behind.get(..key.len()) == Some(key),
        };
        if is_key { value.get(..lengths.value()) } else { None }
    }

    /// The value of the record, if it is this key's and looks as usual; `None` doesn't mean that it isn't. One bounds check, one word of lengths
    /// and the key: as few instructions as can be wait for the record, and as few as can be lie between one operation and the next, so that
    /// the processor works on many operations at once. The hash isn't compared: equal keys have equal ones.
    #[inline(always)]
    pub(super) fn usual_value(&self, address: u64, key: u64, usual: &Usual) -> Option<&[u8]> {
        let offset = self.offset(address) as usize;
        let page = self.pages.get((address >> self.unit_bits) as usize)?;
        let (value_end, end) = usual.ends();
        let record = page.buffer.get()?.bytes().get(offset..offset + end)?;
        if Self::word(record, 0) >> KEY_SHIFT != usual.lengths || Self::word(record, value_end) != key {
            return None;
        }
        record[HEADER_BYTES..value_end].get(..usual.value_bytes as usize)
    }

    /// The same, to change in place, if that may be done at once: the record isn't sealed, and nobody wants to know of its change.
    #[inline(always)]
    pub(super) fn usual_value_in_place(&mut self, address: u64, key: u64, usual: &Usual) -> Option<&mut [u8]> {
        let offset = self.offset(address) as usize;
        let (touch, sealed_below) = (self.touch, self.sealed_below);
        let page = self.pages.get_mut((address >> self.unit_bits) as usize)?;
        if page.number < sealed_below {
            return None;
        }
        let (value_end, end) = usual.ends();
        let record = page.buffer.get_mut()?.bytes_mut().get_mut(offset..offset + end)?;
        let lengths = Self::word(record, 0);
        if lengths >> KEY_SHIFT != usual.lengths || Self::word(record, value_end) != key {
            return None;
        }
        if touch != 0 && !Lengths(lengths).is(touch) {
            return None;
        }
        record[HEADER_BYTES..value_end].get_mut(..usual.value_bytes as usize)
    }

    #[inline(always)]
    pub(super) fn key(&self, address: u64) -> &[u8] {
        let bytes = self.from(address);
        let lengths = Lengths(Self::word(bytes, 0));
        let start = HEADER_BYTES + pad(lengths.value());
        &bytes[start..start + lengths.key()]
    }

    /// The whole record.
    pub(super) fn record(&self, address: u64) -> &[u8] {
        let bytes = self.from(address);
        &bytes[..Lengths(Self::word(bytes, 0)).size()]
    }

    /// What is filled of a page in memory.
    pub(super) fn page_bytes_of(&self, slot: usize) -> &[u8] {
        let page = self.page(slot);
        page.buffer.get().map_or(&[], |b| &b.bytes()[..page.used])
    }

    #[inline(always)]
    pub(super) fn value(&self, address: u64) -> &[u8] {
        let bytes = self.from(address);
        &bytes[HEADER_BYTES..HEADER_BYTES + Lengths(Self::word(bytes, 0)).value()]
    }

    /// Sets a record's first word; its lengths stay.
    pub(super) fn set_flags(&mut self, address: u64, word: u64) {
        Self::set_word(self.from_mut(address), 0, word);
    }

    #[inline(always)]
    pub(super) fn value_mut(&mut self, address: u64) -> &mut [u8] {
        if self.touch != 0 && !self.lengths(address).is(self.touch) {
            self.note_change(address);
        }
        let bytes = self.from_mut(address);
        let end = HEADER_BYTES + Lengths(Self::word(bytes, 0)).value();
        &mut bytes[HEADER_BYTES..end]
    }

    #[inline(always)]
    pub(super) fn prefetch(&self, address: u64) {
        let (page, offset) = self.split(address);
        if let Some(buffer) = self.pages.get(page).and_then(|p| p.buffer.get()) {
            buffer.prefetch(offset);
        }
    }

    /// Whether a record that begins there in a page has an address: pages of a layout with larger ones have some that don't.
    pub(super) fn has_address_for(&self, offset: usize) -> bool {
        offset / 8 <= self.unit_mask
    }

    /// A new record with a value of zeros.
    pub(super) fn append(&mut self, hash: u64, key: &[u8], value_len: usize, flags: u64) -> u64 {
        let lengths = Lengths::new(key.len(), value_len, flags | self.touch);
        let size = lengths.size();
        let address = self.allocate(size);
        let bytes = &mut self.from_mut(address)[..size];
        Self::set_word(bytes, 0, lengths.0);
        Self::set_word(bytes, 8, hash);
        let start = HEADER_BYTES + pad(value_len);
        match <[u8; 8]>::try_from(key) {
            Ok(eight) => {
                bytes[HEADER_BYTES..start].fill(0);
                bytes[start..start + 8].copy_from_slice(&eight);
            }
            Err(_) => {
                bytes[HEADER_BYTES..].fill(0);
                bytes[start..start + key.len()].copy_from_slice(key);
            }
        }
        self.live_bytes += size;
        let (page, _) = self.split(address);
        self.page_mut(page).live += size;
        if self.touch != 0 {
            self.note_new(address);
        }
        address
    }

    /// A record of this page expires then, and none that is written in its place does so earlier.
    #[inline(always)]
    pub(super) fn note_stamp(&mut self, address: u64, stamp_us: i64) {
        let (page, _) = self.split(address);
        let page = self.page_mut(page);
        page.latest_stamp_us = page.latest_stamp_us.max(stamp_us);
    }

    /// Frees a record. The owner has taken it out of the index.
    pub(super) fn free(&mut self, address: u64) {
        if self.touch != 0 {
            self.note_removal(address);
        }
        let size = self.lengths(address).size();
        let (page_no, _) = self.split(address);
        if self.is_sealed(address) {
            self.free_sealed(page_no, size);
            return;
        }
        self.live_bytes -= size;
        let page = self.page_mut(page_no);
        page.live -= size;
        if page.oversize {
            self.drop_page(page_no);
            return;
        }
        self.release(address, size);
    }

    /// Frees all.
    pub(super) fn clear(&mut self) {
        // What belongs to a checkpoint that isn't written yet is written now, page by page.
        while self.cold.as_ref().is_some_and(|c| c.capture_below > 0) && self.next_unwritten().is_some() {
            self.write_next();
        }
        let fresh = Self { page_bytes_max: self.page_bytes_max, ..Self::with_bits(self.unit_bits + 3) };
        let mut cleared = std::mem::replace(self, fresh);
        if cleared.track.is_some() {
            self.note_clear(cleared);
            return;
        }
        if let Some(cold) = cleared.cold.take() {
            // Numbers go on: pages of before and after are never taken for each other.
            (self.next_number, self.sealed_below) = (cleared.next_number, cleared.next_number);
            self.cold = Some(Box::new(cold.emptied(&cleared.pages)));
        }
    }

    /// Frees one page of a log that is given up; `false` when there is none left. Nothing else may be asked of the log any more.
    pub(super) fn free_page(&mut self) -> bool {
        while let Some(page) = self.pages.pop() {
            let memory = page.memory();
            if memory > 0 {
                self.allocated_bytes -= memory.min(self.allocated_bytes);
                return true;
            }
        }
        false
    }

    // === space

    /// Bytes of live records, in memory or not: pages grow with the table, wherever that is.
    fn lives(&self) -> usize {
        self.live_bytes + self.cold.as_ref().map_or(0, |cold| cold.sealed_live)
    }

    /// How large the next page will be that small records fill.
    pub(super) fn page_bytes_wanted(&self) -> usize {
        (self.lives() / 2).max(PAGE_BYTES_MIN).next_power_of_two().min(self.page_bytes_max)
    }

    /// Pages that are made from now on are this large at most, a power of two; one record may take more.
    pub(super) fn limit_pages(&mut self, bytes: usize) {
        self.page_bytes_max = bytes.min(8 * (self.unit_mask + 1));
    }

    /// Memory of the mutable pages, unless all that is a tail of which less than half is filled.
    pub(super) fn filled_page_bytes(&self) -> usize {
        let tail = self.tail.map_or((0, 0), |tail| (self.page(tail).memory(), self.page(tail).used));
        if self.page_bytes == tail.0 && 2 * tail.1 < tail.0 { 0 } else { self.page_bytes }
    }

    /// How many pages there are.
    pub(super) fn page_count(&self) -> usize {
        self.pages.len() - self.empty_slots.len()
    }

    /// What the log holds beside its pages.
    pub(super) fn directory_bytes(&self) -> usize {
        let slots = self.pages.capacity() * size_of::<Page>() + self.empty_slots.capacity() * size_of::<usize>();
        slots + if self.lists.is_some() { LISTS * 8 } else { 0 }
    }

    /// Gives back what the directory takes for pages that are gone, when that is much; those in between are used again first.
    pub(super) fn shrink_directory(&mut self) {
        let (slots, empty) = (self.pages.len(), self.empty_slots.len());
        if empty < 64 || empty < slots / 2 || self.pages.last().is_some_and(|page| page.in_use) {
            return;
        }
        let end = self.pages.iter().rposition(|page| page.in_use).map_or(1, |last| last + 1);
        if end > slots - slots / 8 {
            return;
        }
        let before = self.directory_bytes();
        self.pages.truncate(end);
        self.pages.shrink_to(end + 16);
        self.empty_slots.retain(|slot| *slot < end);
        // The lowest is taken first, so that the highest become free.
        self.empty_slots.sort_unstable_by(|a, b| b.cmp(a));
        self.empty_slots.shrink_to(self.empty_slots.len() + 16);
        self.allocated_bytes = self.allocated_bytes + self.directory_bytes() - before;
        self.shrink_cold(end);
    }

    /// Space for a record.
    pub(super) fn allocate(&mut self, size: usize) -> u64 {
        self.records_written += 1;
        self.space(size)
    }

    #[inline(always)]
    fn space(&mut self, size: usize) -> u64 {
        if size > self.page_bytes_max / 4 {
            let page_no = self.add_page(size);
            let page = self.page_mut(page_no);
            page.used = size;
            page.oversize = true;
            return self.address(page_no, 0);
        }
        let floor = self.floor.get();
        if floor > 0 {
            return self.allocate_above(floor, size);
        }
        if self.lists.is_some()
            && let Some(address) = self.reuse_exact(size)
        {
            return address;
        }
        if let Some(tail) = self.tail {
            let page = self.page_mut(tail);
            if page.memory() - page.used >= size {
                let offset = page.used;
                page.used += size;
                return self.address(tail, offset);
            }
        }
        if self.lists.is_some()
            && let Some(address) = self.reuse_larger(size)
        {
            return address;
        }
        self.start_page(size);
        self.space_at_tail(size)
    }

    /// On a page that was just begun for it.
    fn space_at_tail(&mut self, size: usize) -> u64 {
        let tail = self.tail.expect("a page was just begun");
        let page = self.page_mut(tail);
        let offset = page.used;
        page.used += size;
        self.address(tail, offset)
    }

    /// At the tail, which is numbered so or higher.
    fn allocate_above(&mut self, floor: u64, size: usize) -> u64 {
        if let Some(tail) = self.tail
            && self.page(tail).number >= floor
            && self.page(tail).memory() - self.page(tail).used >= size
        {
            let page = self.page_mut(tail);
            let offset = page.used;
            page.used += size;
            return self.address(tail, offset);
        }
        self.start_page(size);
        self.allocate_above(floor, size)
    }

    /// An upper bound of the memory that records of so many bytes together may take.
    pub(super) fn room_for(&self, records: usize, bytes: usize) -> usize {
        let tail_room = self.tail.map_or(0, |t| self.page(t).memory() - self.page(t).used);
        if self.floor.get() == 0 && records == 1 && bytes <= tail_room {
            return 0;
        }
        self.room_beside(tail_room, records, bytes)
    }

    /// The same when so much is left of the page that is filled.
    pub(super) fn room_beside(&self, tail_room: usize, records: usize, bytes: usize) -> usize {
        let page = (self.lives() + bytes).max(PAGE_BYTES_MIN).next_power_of_two().min(self.page_bytes_max);
        // A page is left when the next record, a quarter of it at most, doesn't fit; larger records have pages of their own.
        let oversize = (bytes / (self.page_bytes_max / 4)).min(records);
        let memory = if bytes <= tail_room && self.floor.get() == 0 && oversize == 0 {
            0
        } else {
            bytes / 3 * 4 + 2 * page + 64 * oversize
        };
        let slots =
            growth(self.pages.len(), self.pages.capacity(), self.pages_for(records, bytes)).saturating_mul(size_of::<Page>());
        let lists = if self.lists.is_none() { LISTS * 8 } else { 0 };
        memory + slots + lists
    }

    /// An upper bound of the pages that records of so many bytes together may begin.
    pub(super) fn pages_for(&self, records: usize, bytes: usize) -> usize {
        let least = (self.lives() / 2).max(PAGE_BYTES_MIN).next_power_of_two().min(self.page_bytes_max);
        let oversize = (bytes / (self.page_bytes_max / 4)).min(records);
        (bytes / 3 * 4 / least + 2).min(records + 1) + oversize
    }

    /// Retires the tail page and starts one with room for `size`.
    pub(super) fn start_page(&mut self, size: usize) {
        if let Some(tail) = self.tail.take() {
            let page = self.page_mut(tail);
            let (offset, rest) = (page.used, page.memory() - page.used);
            if rest >= RECORD_BYTES_MIN {
                page.used = page.memory();
                page.rest = u32::try_from(rest).expect("a page that isn't one record's own is at most 16 MiB long");
                self.rest_bytes += rest;
                let address = self.address(tail, offset);
                self.release(address, rest);
            }
        }
        let wanted = (self.lives() / 2).max(PAGE_BYTES_MIN).max(size).next_power_of_two();
        self.tail = Some(self.add_page(wanted.min(self.page_bytes_max)));
    }

    fn add_page(&mut self, bytes: usize) -> usize {
        let buffer = Buffer::zeroed(bytes);
        self.page_bytes += buffer.len();
        self.allocated_bytes += buffer.len();
        let slot = self.add_slot();
        let number = self.next_number;
        self.next_number += 1;
        self.pages[slot] = Page { buffer: OnceCell::from(buffer), number, in_use: true, ..Page::unused() };
        if self.cold.is_some() {
            self.page_added(number, slot);
        }
        slot
    }

    /// A slot of no page.
    pub(super) fn add_slot(&mut self) -> usize {
        let directory = self.pages.capacity();
        // Page 0 is never used: no record has the address 0.
        if self.pages.is_empty() {
            self.pages.reserve_exact(4);
            self.pages.push(Page::unused());
        }
        let slot = self.empty_slots.pop().unwrap_or_else(|| {
            if self.pages.len() == self.pages.capacity() {
                self.pages.reserve_exact(growth(self.pages.len(), self.pages.capacity(), 1) - 1);
            }
            self.pages.push(Page::unused());
            self.pages.len() - 1
        });
        assert!(slot < 1 << (ADDRESS_BITS - self.unit_bits), "a table holds less than 8 TiB");
        self.allocated_bytes += (self.pages.capacity() - directory) * size_of::<Page>();
        slot
    }

    pub(super) fn drop_page(&mut self, page: usize) {
        let gone = std::mem::replace(&mut self.pages[page], Page::unused());
        if gone.in_use {
            let memory = gone.memory();
            if gone.number >= self.sealed_below {
                self.page_bytes -= memory;
                self.rest_bytes -= gone.rest as usize;
            }
            self.allocated_bytes -= memory;
            let directory = self.empty_slots.capacity();
            self.empty_slots.push(page);
            self.allocated_bytes += (self.empty_slots.capacity() - directory) * size_of::<usize>();
        }
    }

    /// Makes `size` bytes at `address` free space, listed if that is of use.
    fn release(&mut self, address: u64, size: usize) {
        let word = Lengths::free(size).0;
        let (page, _) = self.split(address);
        if address >= LINK_LIMIT || self.victim.is_some_and(|v| v.page == page) {
            Self::set_word(self.from_mut(address), 0, word);
            return;
        }
        let list = list_of(size);
        if self.lists.is_none() {
            self.lists = Some(Box::new([0; LISTS]));
            self.allocated_bytes += LISTS * 8;
        }
        let head = self.lists.as_ref().map_or(0, |l| l[list]);
        let bytes = self.from_mut(address);
        Self::set_word(bytes, 0, word | LINKED);
        Self::set_word(bytes, 8, head);
        if head != 0 {
            let bytes = self.from_mut(head);
            let next = Self::word(bytes, 8) & LINK_LIMIT;
            Self::set_word(bytes, 8, next | address << 32);
        }
        self.set_head(list, address);
    }

    /// Forgets free space.
    pub(super) fn drop_lists(&mut self) {
        if self.lists.take().is_some() {
            self.allocated_bytes -= LISTS * 8;
        }
        self.exact = 0;
    }

    fn set_head(&mut self, list: usize, address: u64) {
        if let Some(lists) = &mut self.lists {
            lists[list] = address;
        }
        if list < EXACT_UNITS {
            self.exact = self.exact & !(1 << list) | u64::from(address != 0) << list;
        }
    }

    /// Takes free space out of its list.
    pub(super) fn unlink(&mut self, address: u64) {
        let bytes = self.from_mut(address);
        let lengths = Lengths(Self::word(bytes, 0));
        debug_assert!(lengths.is(LINKED) && !lengths.is(LIVE));
        let links = Self::word(bytes, 8);
        let (next, previous) = (links & LINK_LIMIT, links >> 32);
        Self::set_word(bytes, 0, lengths.0 & !LINKED);
        if next != 0 {
            let bytes = self.from_mut(next);
            let after = Self::word(bytes, 8) & LINK_LIMIT;
            Self::set_word(bytes, 8, after | previous << 32);
        }
        if previous == 0 {
            self.set_head(list_of(lengths.size()), next);
        } else {
            let bytes = self.from_mut(previous);
            let before = Self::word(bytes, 8) >> 32;
            Self::set_word(bytes, 8, next | before << 32);
        }
    }

    fn reuse_exact(&mut self, size: usize) -> Option<u64> {
        let head = self.lists.as_ref()?[list_of(size)];
        if head == 0 || self.lengths(head).size() != size {
            return None;
        }
        self.unlink(head);
        Some(head)
    }

    /// Takes `size` bytes from larger free space; what is left of it stays free.
    fn reuse_larger(&mut self, size: usize) -> Option<u64> {
        let lists = self.lists.as_ref()?;
        let least = size + RECORD_BYTES_MIN;
        let list = list_of(least);
        // All space of a list behind `list_of(least)` is large enough; of that list itself only what is tried.
        let head = if list < EXACT_UNITS && self.exact >> list != 0 {
            lists[list + (self.exact >> list).trailing_zeros() as usize]
        } else {
            lists[list.max(EXACT_UNITS)..].iter().copied().find(|head| *head != 0 && self.lengths(*head).size() >= least)?
        };
        let whole = self.lengths(head).size();
        self.unlink(head);
        self.release(head + (size / 8) as u64, whole - size);
        Some(head)
    }

    // === compaction

    /// Whether so much is free that pages should be emptied: more than half of what lives, and not just a small page's worth.
    pub(super) fn is_wasteful(&self) -> bool {
        let tail_room = self.tail.map_or(0, |t| self.page(t).memory() - self.page(t).used);
        (self.page_bytes - tail_room - self.rest_bytes).saturating_sub(self.live_bytes) > self.live_bytes / 2 + 2 * PAGE_BYTES_MIN
    }

    /// One step of emptying the page with the most waste: visits up to `visits` records, calls `moved(hash, from, to)` for each that moves.
    pub(super) fn compact_step(&mut self, visits: usize, mut moved: impl FnMut(u64, u64, u64)) {
        let Some(mut victim) = self.victim.or_else(|| self.choose_victim()) else { return };
        self.victim = Some(victim);
        for _ in 0..visits {
            let used = self.page(victim.page).used;
            if victim.offset + RECORD_BYTES_MIN > used {
                if victim.unlinked {
                    debug_assert_eq!(self.page(victim.page).live, 0);
                    self.victim = None;
                    self.drop_page(victim.page);
                    return;
                }
                victim = Victim { unlinked: true, offset: 0, ..victim };
                self.victim = Some(victim);
                continue;
            }
            let from = self.address(victim.page, victim.offset);
            let lengths = self.lengths(from);
            let size = lengths.size();
            if !victim.unlinked {
                if lengths.is(LINKED) {
                    self.unlink(from);
                }
            } else if lengths.is(LIVE | TOMBSTONE) {
                self.move_record(from, size, victim.page, victim.offset, &mut moved);
            }
            victim.offset += size;
            self.victim = Some(victim);
        }
    }

    /// Copies a live record to elsewhere. Space for it is never found on its own page: a victim's free space is in no list, and it isn't the tail.
    fn move_record(&mut self, from: u64, size: usize, page_no: usize, offset: usize, moved: &mut impl FnMut(u64, u64, u64)) {
        if self.touch != 0 {
            self.note_move(from);
        }
        let to = self.allocate(size);
        let Some(mut buffer) = self.pages[page_no].buffer.take() else { return };
        let record = &mut buffer.bytes_mut()[offset..offset + size];
        self.from_mut(to)[..size].copy_from_slice(record);
        let is_live = Lengths(Self::word(record, 0)).is(LIVE);
        Self::set_word(record, 0, Lengths::free(size).0);
        let page = self.page_mut(page_no);
        page.live -= size;
        page.buffer = OnceCell::from(buffer);
        let latest = page.latest_stamp_us;
        let (to_page, _) = self.split(to);
        let to_page = self.page_mut(to_page);
        to_page.live += size;
        to_page.latest_stamp_us = to_page.latest_stamp_us.max(latest);
        if self.touch != 0 {
            self.note_moved(to);
        }
        if is_live {
            moved(self.hash(to), from, to);
        }
    }

    fn choose_victim(&mut self) -> Option<Victim> {
        let of = |(slot, p): (usize, &Page)| {
            let may = p.in_use && p.number >= self.sealed_below && !p.oversize && p.waste() > 0;
            may.then(|| (p.waste(), slot))
        };
        let (_, slot) = self.pages.iter().enumerate().filter_map(of).max()?;
        if Some(slot) == self.tail {
            self.start_page(0);
        }
        Some(Victim { page: slot, offset: 0, unlinked: false })
    }

    // === enumeration

    /// Appends up to `max` addresses of live records behind `cursor` (0 at first); the next cursor, or `None` at the end. Of pages numbered
    /// `end_number` and above nothing is seen. `now_at` tells of a record of a sealed page, by its hash
    /// and address, where it is now, if it lives.
    pub(super) fn scan(
        &self,
        cursor: u64,
        end_number: u64,
        max: usize,
        now_at: impl Fn(u64, u64) -> Option<u64>,
        mut found: impl FnMut(u64),
    ) -> Option<u64> {
        let (mut page_no, mut offset) = if cursor == 0 { (0, 0) } else { self.split(cursor) };
        let mut left = max;
        while page_no < self.pages.len() {
            let page = &self.pages[page_no];
            if page.in_use && page.used > 0 && page.number < end_number {
                let sealed = page.number < self.sealed_below;
                let bytes = self.from(self.address(page_no, 0));
                while offset + RECORD_BYTES_MIN <= page.used.min(bytes.len()) {
                    if left == 0 {
                        return Some(self.address(page_no, offset));
                    }
                    let lengths = Lengths(Self::word(bytes, offset));
                    let address = self.address(page_no, offset);
                    if lengths.is(LIVE) {
                        let now = if sealed { now_at(Self::word(bytes, offset + 8), address) } else { Some(address) };
                        if let Some(now) = now {
                            found(now);
                            left -= 1;
                        }
                    }
                    offset += lengths.size();
                }
            }
            (page_no, offset) = (page_no + 1, 0);
        }
        None
    }

    /// Checks everything that must hold between operations.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut live_total = 0;
        let mut linked = 0;
        for (page_no, page) in self.pages.iter().enumerate() {
            if !page.in_use || page.number < self.sealed_below {
                continue;
            }
            let bytes = page.buffer.get().expect("a mutable page is in memory").bytes();
            let (mut at, mut live) = (0, 0);
            while at + RECORD_BYTES_MIN <= page.used {
                let lengths = Lengths(Self::word(bytes, at));
                assert!(!(lengths.is(LIVE) && lengths.is(LINKED)));
                live += if lengths.is(LIVE | TOMBSTONE) { lengths.size() } else { 0 };
                linked += usize::from(lengths.is(LINKED));
                at += lengths.size();
            }
            assert!(
                at <= page.used && at + RECORD_BYTES_MIN > page.used,
                "records of page {page_no} end at {at}, used {}",
                page.used
            );
            assert_eq!(live, page.live, "live bytes of page {page_no}");
            live_total += live;
        }
        assert_eq!(live_total, self.live_bytes);
        let mut listed = 0;
        for (list, head) in self.lists.iter().flat_map(|l| l.iter().enumerate()) {
            let (mut at, mut previous) = (*head, 0);
            while at != 0 {
                let lengths = self.lengths(at);
                assert!(lengths.is(LINKED) && list_of(lengths.size()) == list);
                let links = self.hash(at);
                assert_eq!(links >> 32, previous);
                (previous, at) = (at, links & LINK_LIMIT);
                listed += 1;
            }
        }
        assert_eq!(linked, listed);
        let mutable = |p: &&Page| p.in_use && p.number >= self.sealed_below;
        let memory: usize = self.pages.iter().map(Page::memory).sum();
        assert_eq!(self.allocated_bytes(), memory + self.directory_bytes());
        assert_eq!(self.page_bytes, self.pages.iter().filter(mutable).map(Page::memory).sum::<usize>());
    }
}
