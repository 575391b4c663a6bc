//! Regions of a point table's log with a store: mutable, sealed, on the device.
//!
//! ```text
//! page numbers:   … oldest ──────────── sealed_below ─────────── next_number
//!                  sealed: never changed again        mutable: changed, freed and reused in place
//!                  unwritten ▶ written ▶ durable ▶ evicted (▶ read again, for who can't wait)
//! ```
//! A sealed record that is changed, or wanted in memory, is copied to the tail. Whether a sealed record is live only the index knows: its own
//! bytes stay as they were when its page was sealed, so that a page that is written later is what it was at that moment.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use hashbrown::HashMap;

use super::expiry::latest_stamp;
use super::log::{LINKED, Lengths, Log, Page, RECORD_BYTES_MIN};
use super::merging::{MemoryUse, Merging};
use crate::bugs::{self, Bug};
use crate::raw::Buffer;
use crate::shard::TableId;
use crate::store::{FramePlace, ReadTicket, StoreHandle, frame_bytes};

/// Where a sealed page was written to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) place: FramePlace,
    /// It is durable once this batch is.
    batch: u64,
}

/// A page by its number and its slot; the slot is another page's when the numbers differ.
type PageId = (u64, usize);

/// A page of a checkpoint that the table's pages make up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageImage {
    /// Its number.
    pub(crate) number: u64,
    /// Where it is.
    pub(crate) place: FramePlace,
}

/// How far the pages of a checkpoint were told: first they are gathered, slot by slot, then told by their numbers.
#[derive(Debug, Default)]
struct Telling {
    slot: usize,
    is_gathered: bool,
    gathered: BTreeMap<u64, FramePlace>,
}

/// What a log with a store has besides.
#[derive(Debug)]
pub(super) struct Cold {
    pub(super) store: StoreHandle,
    pub(super) table: TableId,
    /// Whether removals leave tombstones, so that pages alone tell what lives.
    pub(super) keeps_tombstones: bool,
    /// By slot.
    frames: Vec<Option<Frame>>,
    /// Mutable pages, oldest first; some may be gone.
    order: VecDeque<PageId>,
    /// Sealed and not yet given to the store.
    unwritten: VecDeque<PageId>,
    /// Given to the store and in memory.
    evictable: VecDeque<PageId>,
    /// Read again by somebody who couldn't wait.
    loaded: RefCell<Vec<PageId>>,
    /// Sealed records that were copied since the last [`Log::forget_forwards`]: references to them mean the copies.
    forwards: HashMap<u64, u64>,
    /// Pages below are part of a checkpoint that isn't written yet: they are, even if nothing lives in them any more.
    pub(super) capture_below: u64,
    /// Pages of that checkpoint whose table was cleared since.
    saved: Vec<(u64, Frame)>,
    /// While the pages of that checkpoint are told.
    telling: Option<Telling>,
    /// Pages below a number that died while a checkpoint had them, from this slot on, are still to be dropped.
    sweeping: Option<(u64, usize)>,
    /// Bytes filled in sealed pages, and those of them that are live.
    pub(super) sealed_used: usize,
    pub(super) sealed_live: usize,
    /// Pages that the last cut has sealed, by number; and of them what is filled, and lives. Of a table that is changed all over between two cuts
    /// they die by themselves, and until the next cut they can't be wasted more than once: they aren't compacted before.
    fresh: Range<u64>,
    fresh_used: usize,
    fresh_live: usize,
    /// Where the search for a page to compact goes on.
    next_victim: usize,
    pub(super) merging: Merging,
    /// Sealed pages that died while scans were open.
    dead: Vec<PageId>,
    /// Sealed pages that are gone but for their slots.
    husks: Vec<PageId>,
    /// Pages that are on the device alone.
    away: Cell<usize>,
}

impl Cold {
    pub(super) fn new(store: StoreHandle, table: TableId, keeps_tombstones: bool) -> Self {
        Self {
            store,
            table,
            keeps_tombstones,
            frames: Vec::new(),
            order: VecDeque::new(),
            unwritten: VecDeque::new(),
            evictable: VecDeque::new(),
            loaded: RefCell::default(),
            forwards: HashMap::new(),
            capture_below: 0,
            saved: Vec::new(),
            telling: None,
            sweeping: None,
            sealed_used: 0,
            sealed_live: 0,
            fresh: 0..0,
            fresh_used: 0,
            fresh_live: 0,
            next_victim: 0,
            merging: Merging::default(),
            dead: Vec::new(),
            husks: Vec::new(),
            away: Cell::new(0),
        }
    }

    /// The same for a log without pages; what was on the device is given back when this is dropped, but for what a checkpoint waits for.
    pub(super) fn emptied(mut self, pages: &[super::log::Page]) -> Self {
        let mut fresh = Self::new(self.store.clone(), self.table, self.keeps_tombstones);
        if self.capture_below > 0 {
            fresh.capture_below = self.capture_below;
            fresh.saved = std::mem::take(&mut self.saved);
            fresh.telling = self.telling.take();
            for (frame, page) in self.frames.iter_mut().zip(pages) {
                if page.in_use
                    && page.number < self.capture_below
                    && let Some(frame) = frame.take()
                {
                    fresh.saved.push((page.number, frame));
                }
            }
        }
        fresh
    }

    /// Memory it holds itself.
    pub(super) fn allocated_bytes(&self) -> usize {
        let ids = self.order.capacity()
            + self.unwritten.capacity()
            + self.evictable.capacity()
            + self.husks.capacity()
            + self.dead.capacity()
            + self.loaded.borrow().capacity();
        size_of::<Self>()
            + self.frames.capacity() * size_of::<Option<Frame>>()
            + ids * size_of::<PageId>()
            + self.forwards.allocation_size()
    }

    /// Of that what stays: what each page takes for as long as it is one, and lists that are empty already.
    fn settled_bytes(&self) -> usize {
        let passing = (self.husks.capacity() + self.dead.capacity()) * size_of::<PageId>();
        let forwards = if self.forwards.is_empty() { 0 } else { self.forwards.allocation_size() };
        self.allocated_bytes() - passing - forwards
    }

    /// An upper bound of what that grows by when so many pages and copies are added.
    pub(super) fn room_for(&self, pages: usize, copies: usize) -> usize {
        let forwards = if self.forwards.len() + copies > self.forwards.capacity() {
            (self.forwards.len() + copies) * 8 / 7 * 2 * 17 + 64
        } else {
            0
        };
        let ids = [&self.order, &self.unwritten, &self.evictable];
        let ids: usize = ids.iter().map(|ids| growth(ids.len(), ids.capacity(), pages)).sum();
        let ids = ids + growth(self.husks.len(), self.husks.capacity(), copies);
        ids * size_of::<PageId>()
            + growth(self.frames.len(), self.frames.capacity(), pages) * size_of::<Option<Frame>>()
            + forwards
    }
}

/// By how many places a directory of so many grows at most when `more` are added: an eighth at a time, as its owner's budget may have no room
/// to double it.
pub(super) fn growth(len: usize, capacity: usize, more: usize) -> usize {
    if len + more <= capacity { 0 } else { (capacity / 8).max(16) + more }
}

fn push_gently(ids: &mut VecDeque<PageId>, id: PageId) {
    if ids.len() == ids.capacity() {
        ids.reserve_exact(growth(ids.len(), ids.capacity(), 1) - 1);
    }
    ids.push_back(id);
}

/// The place of a slot; the directory grows up to it.
fn frame_of(frames: &mut Vec<Option<Frame>>, slot: usize) -> &mut Option<Frame> {
    if frames.len() <= slot {
        if frames.capacity() <= slot {
            frames.reserve_exact(slot - frames.len() + growth(frames.len(), frames.capacity(), 1));
        }
        frames.resize(slot + 1, None);
    }
    &mut frames[slot]
}

impl Drop for Cold {
    fn drop(&mut self) {
        let mut store = self.store.lock();
        for frame in self.frames.iter().flatten().chain(self.saved.iter().map(|(_, frame)| frame)) {
            store.release(&frame.place);
        }
    }
}

/// Whether little of a page is filled.
fn is_small(page: &Page, page_bytes: usize) -> bool {
    page.used < page_bytes / 4
}

/// Dropping a page counts as this many steps.
const DROP_STEPS: usize = 32;

/// Stands for a record that can't be read: nobody's key.
static UNREADABLE: [u8; 64] = [0; 64];

impl Log {
    pub(super) fn attach(&mut self, store: StoreHandle, table: TableId, keeps_tombstones: bool) {
        debug_assert!(self.pages.is_empty());
        self.cold = Some(Box::new(Cold::new(store, table, keeps_tombstones)));
    }

    fn is_page(&self, (number, slot): PageId) -> bool {
        self.pages.get(slot).is_some_and(|p| p.in_use && p.number == number)
    }

    pub(super) fn page_added(&mut self, number: u64, slot: usize) {
        let Some(cold) = &mut self.cold else { return };
        *frame_of(&mut cold.frames, slot) = None;
        push_gently(&mut cold.order, (number, slot));
        if cold.order.len() > 2 * self.pages.len() + 16 {
            let pages = &self.pages;
            cold.order.retain(|(number, slot)| pages.get(*slot).is_some_and(|page| page.in_use && page.number == *number));
        }
    }

    // === sealing

    /// Seals the oldest mutable page; the memory it holds, or `None` when there is none.
    pub(super) fn seal_oldest(&mut self) -> Option<usize> {
        let id = loop {
            let id = self.cold.as_mut()?.order.pop_front()?;
            if self.is_page(id) {
                break id;
            }
        };
        let (number, slot) = id;
        if self.victim.is_some_and(|v| v.page == slot) {
            self.victim = None;
        }
        if self.tail == Some(slot) {
            self.tail = None;
        }
        self.unlist(slot);
        let page = &self.pages[slot];
        let (memory, live, rest) = (page.memory(), page.live, page.rest as usize);
        if live == 0 {
            self.drop_page(slot);
            self.sealed_below = number + 1;
            return Some(memory);
        }
        self.sealed_below = number + 1;
        self.page_bytes -= memory;
        self.live_bytes -= live;
        self.rest_bytes -= rest;
        let used = self.pages[slot].used;
        if let Some(cold) = &mut self.cold {
            push_gently(&mut cold.unwritten, id);
            cold.sealed_used += used;
            cold.sealed_live += live;
        }
        Some(memory)
    }

    /// Takes the free space of a page out of the lists.
    fn unlist(&mut self, slot: usize) {
        let mut offset = 0;
        while offset + RECORD_BYTES_MIN <= self.pages[slot].used {
            let address = self.address(slot, offset);
            let lengths = self.lengths(address);
            if lengths.is(LINKED) {
                self.unlink(address);
            }
            offset += lengths.size();
        }
    }

    /// Seals all pages at once, in constant time.
    pub(super) fn seal_all(&mut self) {
        let fresh = self.sealed_below..self.next_number;
        self.sealed_below = self.next_number;
        self.drop_lists();
        self.tail = None;
        self.victim = None;
        let live = std::mem::take(&mut self.live_bytes);
        let used = std::mem::take(&mut self.page_bytes);
        self.rest_bytes = 0;
        if let Some(cold) = &mut self.cold {
            // Of the pages that were the tail what isn't filled counts too; compaction sees each page as it is.
            cold.sealed_used += used;
            cold.sealed_live += live;
            (cold.fresh, cold.fresh_used, cold.fresh_live) = (fresh, used, live);
            if cold.unwritten.is_empty() {
                std::mem::swap(&mut cold.unwritten, &mut cold.order);
            } else {
                cold.unwritten.append(&mut cold.order);
            }
        }
    }

    // === writing

    /// Bytes that giving the oldest sealed page to the store will take there; `None` when there is none.
    pub(super) fn next_unwritten(&mut self) -> Option<usize> {
        loop {
            let id = *self.cold.as_ref()?.unwritten.front()?;
            if self.is_page(id) {
                if self.pages[id.1].live > 0 || self.cold.as_ref().is_some_and(|c| id.0 < c.capture_below) {
                    return Some(frame_bytes(self.pages[id.1].used));
                }
                self.drop_if_dead(id.1);
            }
            self.cold.as_mut()?.unwritten.pop_front();
        }
    }

    /// The slot of the oldest sealed page that isn't given to the store and is no part of a checkpoint, and how much of it is filled.
    pub(super) fn next_unwritten_slot(&mut self) -> Option<(usize, usize)> {
        self.next_unwritten()?;
        let cold = self.cold.as_ref()?;
        let (number, slot) = *cold.unwritten.front()?;
        (number >= cold.capture_below).then(|| (slot, self.pages[slot].used))
    }

    /// Gives the oldest sealed page to the store.
    pub(super) fn write_next(&mut self) {
        if self.next_unwritten().is_none() {
            return;
        }
        let Some(cold) = &mut self.cold else { return };
        let Some((number, slot)) = cold.unwritten.pop_front() else { return };
        let page = &self.pages[slot];
        let Some(buffer) = page.buffer.get() else { return };
        let (place, batch) = cold.store.lock().append(cold.table, number, &buffer.bytes()[..page.used]);
        cold.frames[slot] = Some(Frame { place, batch });
        push_gently(&mut cold.evictable, (number, slot));
    }

    /// Frees memory of durable pages until so much is free; what it came to.
    pub(super) fn evict(&mut self, wanted: usize) -> usize {
        let Some(cold) = &mut self.cold else { return 0 };
        self.allocated_bytes += self.loaded_bytes.take();
        for id in cold.loaded.get_mut().drain(..) {
            cold.evictable.push_front(id);
        }
        let durable = cold.store.lock().durable_batch();
        let mut freed = 0;
        while freed < wanted {
            let Some(id) = self.cold.as_ref().and_then(|c| c.evictable.front().copied()) else { break };
            let frame = self.cold.as_ref().and_then(|c| c.frames.get(id.1).copied().flatten());
            if self.is_page(id)
                && let Some(frame) = frame
            {
                if frame.batch > durable && !bugs::is_on(Bug::EvictsUndurable) {
                    break;
                }
                if let Some(gone) = self.pages[id.1].buffer.take() {
                    freed += gone.len();
                    self.allocated_bytes -= gone.len();
                    if let Some(cold) = &self.cold {
                        cold.away.set(cold.away.get() + 1);
                    }
                }
                self.drop_if_dead(id.1);
            }
            if let Some(cold) = &mut self.cold {
                cold.evictable.pop_front();
            }
        }
        freed
    }

    /// Whether a page waits for nothing but the device to be evicted.
    pub(super) fn awaits_eviction(&self) -> bool {
        self.cold.as_ref().is_some_and(|c| !c.evictable.is_empty() || !c.loaded.borrow().is_empty())
    }

    /// A record of a sealed page is dead.
    pub(super) fn free_sealed(&mut self, slot: usize, size: usize) {
        let page = &mut self.pages[slot];
        page.live -= size;
        if let Some(cold) = &mut self.cold {
            cold.sealed_live = cold.sealed_live.saturating_sub(size);
            if cold.fresh.contains(&page.number) {
                cold.fresh_live = cold.fresh_live.saturating_sub(size);
            }
        }
        if page.live == 0 {
            self.drop_if_dead(slot);
        }
    }

    fn drop_if_dead(&mut self, slot: usize) {
        let page = &self.pages[slot];
        let Some(cold) = &mut self.cold else { return };
        if !page.in_use || page.used == 0 || page.live > 0 || page.number < cold.capture_below {
            return;
        }
        if self.floor.get() > 0 {
            // An open scan finds copies by the places where their records were.
            cold.dead.push((page.number, slot));
            return;
        }
        cold.sealed_used = cold.sealed_used.saturating_sub(page.used);
        if cold.fresh.contains(&page.number) {
            cold.fresh_used = cold.fresh_used.saturating_sub(page.used);
        }
        if let Some(frame) = cold.frames[slot].take() {
            cold.store.lock().release(&frame.place);
        }
        if self.pages[slot].buffer.get().is_none() {
            cold.away.set(cold.away.get() - 1);
        }
        // It may have been read again since the last eviction.
        self.allocated_bytes += self.loaded_bytes.take();
        let page = &mut self.pages[slot];
        self.allocated_bytes -= page.buffer.take().map_or(0, |b| b.len());
        page.used = 0;
        // References of this turn may still name its records, so the slot isn't used for another page yet.
        cold.husks.push((page.number, slot));
    }

    /// The directory has so many slots now.
    pub(super) fn shrink_cold(&mut self, slots: usize) {
        let Some(cold) = &mut self.cold else { return };
        cold.frames.truncate(slots);
        cold.frames.shrink_to(slots + 16);
        for ids in [&mut cold.order, &mut cold.unwritten, &mut cold.evictable] {
            ids.shrink_to(ids.len() + 16);
        }
    }

    fn drop_husks(&mut self) {
        let husks = self.cold.as_mut().map_or_else(Vec::new, |c| std::mem::take(&mut c.husks));
        for id in husks {
            if self.is_page(id) {
                self.drop_page(id.1);
            }
        }
    }

    // === copies

    /// Where the record is that a reference of a sealed record means.
    #[inline(always)]
    pub(super) fn resolve(&self, address: u64) -> u64 {
        if self.is_sealed(address) { self.forwarded(address) } else { address }
    }

    #[cold]
    pub(super) fn forwarded(&self, address: u64) -> u64 {
        let Some(cold) = &self.cold else { return address };
        let mut at = address;
        // A copy is newer than what it is of, so this ends.
        while let Some(to) = cold.forwards.get(&at) {
            at = *to;
        }
        at
    }

    /// As [`copy_to_tail`](Self::copy_to_tail), of a record whose page is in memory; `None` when it isn't.
    #[inline(always)]
    pub(super) fn copy_resident_to_tail(&mut self, from: u64, flags: u64) -> Option<(u64, usize)> {
        let (from_slot, from_offset) = self.split(from);
        let size = Lengths::at(self.pages[from_slot].buffer.get()?.bytes(), from_offset)?.size();
        let to = self.allocate(size);
        let (slot, offset) = self.split(to);
        let Ok([sealed, page]) = self.pages.get_disjoint_mut([from_slot, slot]) else {
            unreachable!("a sealed page isn't the tail")
        };
        page.latest_stamp_us = page.latest_stamp_us.max(sealed.latest_stamp_us);
        page.live += size;
        let bytes = &sealed.buffer.get()?.bytes()[from_offset..from_offset + size];
        let copy = &mut page.buffer.get_mut().expect("a mutable page is in memory").bytes_mut()[offset..offset + size];
        copy.copy_from_slice(bytes);
        Self::set_word(copy, 0, Self::word(bytes, 0) | flags);
        self.live_bytes += size;
        if let Some(cold) = &mut self.cold {
            cold.forwards.insert(from, to);
        }
        Some((to, size))
    }

    /// Copies a sealed record, which is `bytes`, to the tail. The owner puts the copy into the index and frees the record.
    pub(super) fn copy_to_tail(&mut self, from: u64, bytes: &[u8], flags: u64) -> u64 {
        let size = bytes.len();
        let to = self.allocate(size);
        let (slot, offset) = self.split(to);
        let (from_slot, _) = self.split(from);
        let latest = self.pages[from_slot].latest_stamp_us;
        let page = &mut self.pages[slot];
        page.latest_stamp_us = page.latest_stamp_us.max(latest);
        let buffer = page.buffer.get_mut().expect("a mutable page is in memory");
        let copy = &mut buffer.bytes_mut()[offset..offset + size];
        copy.copy_from_slice(bytes);
        Self::set_word(copy, 0, Self::word(bytes, 0) | flags);
        page.live += size;
        self.live_bytes += size;
        if let Some(cold) = &mut self.cold {
            cold.forwards.insert(from, to);
        }
        to
    }

    /// References given out before mean nothing any more.
    pub(super) fn forget_forwards(&mut self) {
        if self.floor.get() > 0 {
            return;
        }
        for id in self.cold.as_mut().map_or_else(Vec::new, |c| std::mem::take(&mut c.dead)) {
            if self.is_page(id) {
                self.drop_if_dead(id.1);
            }
        }
        self.drop_husks();
        self.shrink_directory();
        if let Some(cold) = &mut self.cold
            && !cold.forwards.is_empty()
        {
            if cold.forwards.len() > 1024 {
                cold.forwards = HashMap::new();
            } else {
                cold.forwards.clear();
            }
        }
    }

    // === reading

    #[cold]
    pub(super) fn read_on_demand(&self, slot: usize, offset: usize) -> &[u8] {
        let page = &self.pages[slot];
        let Some((cold, frame)) = self.cold.as_ref().and_then(|c| Some((c, c.frames.get(slot)?.as_ref()?))) else {
            return &UNREADABLE;
        };
        let mut store = cold.store.lock();
        match store.read_now(cold.table, page.number, frame.place) {
            Ok(bytes) if bytes.len() == page.used => {
                let mut buffer = Buffer::zeroed(bytes.len());
                buffer.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
                self.loaded_bytes.set(self.loaded_bytes.get() + buffer.len());
                cold.away.set(cold.away.get() - 1);
                cold.loaded.borrow_mut().push((page.number, slot));
                &page.buffer.get_or_init(|| buffer).bytes()[offset..]
            }
            Ok(_) => &UNREADABLE,
            Err(error) => {
                store.fail(error);
                &UNREADABLE
            }
        }
    }

    /// How many pages are on the device alone.
    pub(super) fn pages_away(&self) -> usize {
        self.cold.as_ref().map_or(0, |c| c.away.get())
    }

    // === compaction

    /// A sealed page that is mostly dead, if the sealed pages together are; looks at a few pages a call.
    /// `now_us`: pages on which everything has expired by then are victims too, always.
    pub(super) fn find_victim(&mut self, now_us: Option<i64>, memory: MemoryUse) -> Option<PageId> {
        let (page_bytes, is_wasteful) = (self.page_bytes_wanted(), self.is_wasteful_sealed());
        let records = self.records_written;
        let is_scattered =
            self.is_scattered() && self.cold.as_mut().is_some_and(|cold| !cold.merging.rests(records, page_bytes, memory));
        let cold = self.cold.as_mut()?;
        if self.floor.get() > 0 || !(is_wasteful || is_scattered || now_us.is_some()) {
            return None;
        }
        for _ in 0..64.min(self.pages.len()) {
            cold.next_victim = (cold.next_victim + 1) % self.pages.len();
            let page = &self.pages[cold.next_victim];
            let sealed = page.in_use && page.used > 0 && page.number < self.sealed_below;
            // What a checkpoint waits for is left alone until then.
            let has_expired = now_us.is_some_and(|now_us| page.live > 0 && page.latest_stamp_us <= now_us);
            let is_fresh = cold.fresh.contains(&page.number);
            let gains = (is_wasteful && !is_fresh && page.live < page.used / 2) || (is_scattered && is_small(page, page_bytes));
            // One in which nothing lives waits to be dropped, after a checkpoint that had it.
            if sealed && page.live > 0 && page.number >= cold.capture_below && (has_expired || gains) {
                return Some((page.number, cold.next_victim));
            }
        }
        None
    }

    /// Whether the sealed pages that the last cut didn't seal are mostly dead.
    fn is_wasteful_sealed(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| {
            let used = cold.sealed_used.saturating_sub(cold.fresh_used);
            let live = cold.sealed_live.saturating_sub(cold.fresh_live);
            used > 2 * live + 4 * self.page_bytes_max
        })
    }

    /// Whether there are many pages in which little was filled when they had to go, or that a checkpoint sealed: each takes memory for its
    /// place.
    fn is_scattered(&self) -> bool {
        let (page_bytes, pages) = (self.page_bytes_wanted(), self.page_count());
        let used = self.cold.as_ref().map_or(0, |cold| cold.sealed_used) + self.page_bytes;
        pages > 16 && pages * (page_bytes / 4) > used + 8 * page_bytes
    }

    /// Whether a page is worth merging with others.
    pub(super) fn is_small(&self, (_, slot): PageId) -> bool {
        self.pages.get(slot).is_some_and(|page| is_small(page, self.page_bytes_wanted()))
    }

    /// Memory of the places of pages, in memory or not, unless compaction may bring it down.
    pub(super) fn settled_places_bytes(&self) -> usize {
        let merges = self.is_scattered() && self.cold.as_ref().is_some_and(|cold| !cold.merging.is_resting());
        if merges || self.is_wasteful_sealed() || self.floor.get() > 0 {
            return 0;
        }
        self.directory_bytes() + self.cold.as_ref().map_or(0, |cold| cold.settled_bytes())
    }

    /// The address of an offset of a page, if it still is that page.
    pub(super) fn address_in(&self, id: PageId, offset: usize) -> Option<u64> {
        self.is_page(id).then(|| self.address(id.1, offset))
    }

    /// Whether there is a page older than this number, beside one.
    pub(super) fn has_page_below(&self, number: u64, beside: u64) -> bool {
        self.pages.iter().any(|p| p.in_use && p.used > 0 && p.number < number && p.number != beside)
    }

    // === checkpoints

    /// All pages there are belong to a checkpoint from now on: they are written even if nothing lives in them any more.
    pub(super) fn begin_capture(&mut self) {
        if let Some(cold) = &mut self.cold {
            cold.capture_below = self.sealed_below;
        }
    }

    /// Bytes of the next page of the checkpoint that isn't given to the store; `None` when all are.
    pub(super) fn next_captured(&mut self) -> Option<usize> {
        let bytes = self.next_unwritten()?;
        let cold = self.cold.as_ref()?;
        // They were sealed, and wait, in the order of their numbers.
        cold.unwritten.front().is_some_and(|(number, _)| *number < cold.capture_below).then_some(bytes)
    }

    /// How many pages the checkpoint has at most.
    pub(super) fn captured_pages_max(&self) -> usize {
        self.pages.len() + self.cold.as_ref().map_or(0, |c| c.saved.len())
    }

    /// Tells `f` pages of the checkpoint, all of which are written, by their numbers; counts `steps` down, and stops at 0. Whether there is more.
    pub(super) fn tell_captured(&mut self, steps: &mut usize, mut f: impl FnMut(&PageImage)) -> bool {
        let Some(cold) = &mut self.cold else { return false };
        let telling = cold.telling.get_or_insert_default();
        while !telling.is_gathered {
            if *steps == 0 {
                return true;
            }
            *steps -= 1;
            let slot = telling.slot;
            let Some(page) = self.pages.get(slot) else {
                // Whoever cleared the table meanwhile has left them here; some may be known.
                telling.gathered.extend(cold.saved.iter().map(|(number, frame)| (*number, frame.place)));
                telling.is_gathered = true;
                break;
            };
            if let Some(frame) = cold.frames.get(slot).and_then(Option::as_ref)
                && page.in_use
                && page.number < cold.capture_below
            {
                telling.gathered.insert(page.number, frame.place);
            }
            telling.slot += 1;
        }
        while *steps > 0 {
            let Some((number, place)) = telling.gathered.pop_first() else { return false };
            f(&PageImage { number, place });
            *steps -= 1;
        }
        !telling.gathered.is_empty()
    }

    /// The pages of the checkpoint were all told, and what they lie in is held by others: from now on dead ones among them are dropped again,
    /// by [`drop_dead`](Self::drop_dead) those that are dead already.
    pub(super) fn end_capture(&mut self) {
        let Some(cold) = &mut self.cold else { return };
        let below = std::mem::take(&mut cold.capture_below);
        cold.telling = None;
        cold.sweeping = Some((below, 0));
        for (_, frame) in cold.saved.drain(..) {
            cold.store.lock().release(&frame.place);
        }
    }

    /// Drops pages that have died while a checkpoint had them; counts `steps` down, and stops at 0. Whether there may be more.
    pub(super) fn drop_dead(&mut self, steps: &mut usize) -> bool {
        while let Some((below, slot)) = self.cold.as_ref().and_then(|c| c.sweeping) {
            if *steps == 0 {
                return true;
            }
            *steps -= 1;
            let Some(page) = self.pages.get(slot) else {
                if let Some(cold) = &mut self.cold {
                    cold.sweeping = None;
                }
                break;
            };
            let is_written = self.cold.as_ref().is_some_and(|c| c.frames.get(slot).is_some_and(Option::is_some));
            if page.in_use && page.number < below && page.live == 0 && is_written {
                self.drop_if_dead(slot);
                // Giving memory back takes as long as looking at many.
                *steps = steps.saturating_sub(DROP_STEPS);
            }
            if let Some(cold) = &mut self.cold {
                cold.sweeping = Some((below, slot + 1));
            }
        }
        false
    }

    /// The hash of a record, which is read from the device if need be, and not kept. Only tables with tiny indexes ask.
    pub(super) fn hash_wherever(&self, address: u64) -> u64 {
        if self.is_resident(address) {
            return self.hash(address);
        }
        let (slot, offset) = self.split(address);
        let Some((cold, frame)) = self.cold.as_ref().and_then(|c| Some((c, c.frames.get(slot)?.as_ref()?))) else { return 0 };
        let mut store = cold.store.lock();
        match store.read_now(cold.table, self.pages[slot].number, frame.place) {
            Ok(page) if page.len() >= offset + 16 => Self::word(&page, offset + 8),
            Ok(_) => 0,
            Err(error) => {
                store.fail(error);
                0
            }
        }
    }

    /// Begins to read the page of a record; `None` when the device has enough to do.
    pub(super) fn start_read(&self, address: u64) -> Option<(ReadTicket, PageId)> {
        let (slot, _) = self.split(address);
        let cold = self.cold.as_ref()?;
        let frame = cold.frames.get(slot)?.as_ref()?;
        let number = self.pages[slot].number;
        let ticket = cold.store.lock().start_read(cold.table, number, frame.place)?;
        Some((ticket, (number, slot)))
    }

    /// How many bytes reading the page of a record takes.
    pub(super) fn frame_bytes(&self, address: u64) -> usize {
        let (slot, _) = self.split(address);
        frame_bytes(self.pages[slot].used)
    }

    /// The record's bytes in its page, which was read as `page`; `None` when it isn't that page's.
    pub(super) fn record_in<'p>(&self, address: u64, number: u64, page: &'p [u8]) -> Option<&'p [u8]> {
        let (slot, offset) = self.split(address);
        if !self.pages.get(slot).is_some_and(|p| p.in_use && p.number == number) {
            return None;
        }
        let size = Lengths::at(page, offset)?.size();
        page.get(offset..offset.checked_add(size)?)
    }

    pub(super) fn page_number(&self, address: u64) -> u64 {
        let (slot, _) = self.split(address);
        self.pages.get(slot).map_or(u64::MAX, |p| p.number)
    }

    /// Puts a page back that recovery has found on the device, without its records.
    pub(super) fn adopt_page(&mut self, image: PageImage, bytes: &[u8], keep_in_memory: bool) -> usize {
        let slot = self.add_slot();
        let page = &mut self.pages[slot];
        (page.number, page.used, page.in_use, page.buffer) = (image.number, bytes.len(), true, OnceCell::new());
        page.latest_stamp_us = latest_stamp(bytes);
        let mut memory = 0;
        if keep_in_memory {
            let mut buffer = Buffer::zeroed(bytes.len());
            buffer.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
            memory = buffer.len();
            page.buffer = OnceCell::from(buffer);
        }
        self.allocated_bytes += memory;
        self.next_number = self.next_number.max(image.number + 1);
        self.sealed_below = self.next_number;
        if let Some(cold) = &mut self.cold {
            *frame_of(&mut cold.frames, slot) = Some(Frame { place: image.place, batch: 0 });
            cold.sealed_used += bytes.len();
            if keep_in_memory {
                cold.evictable.push_back((image.number, slot));
            } else {
                cold.away.set(cold.away.get() + 1);
            }
            cold.store.lock().adopt(&image.place);
        }
        slot
    }

    /// Counts a record of an adopted page.
    pub(super) fn adopt_live(&mut self, slot: usize, size: usize) {
        self.pages[slot].live += size;
        if let Some(cold) = &mut self.cold {
            cold.sealed_live += size;
        }
    }

    /// All records of an adopted page are counted.
    pub(super) fn adopted(&mut self, slot: usize) {
        self.drop_if_dead(slot);
    }
}
