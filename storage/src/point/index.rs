//! The hash index of a point table: linear hashing over buckets of one cache line.
//!
//! A bucket has seven entries, `tag:24 | address:40`, all 0 when empty, and the number of an overflow bucket plus one, 0 when none:
//!
//! ```text
//!  0  7 × u16   upper bits of the tags, side by side, to be compared at once; then 2 bytes unused
//! 16  7 × u48   address:40 | lower bits of the tag:8, little endian
//! 58  u48       overflow bucket
//! ```
//! The low bits of the hash choose the bucket, bits 8 to 31 are the tag (the topmost place keys on cores, so they differ little within one
//! core). So a bucket of 256 or more is split by what its entries themselves say: records on a device needn't be read for it, and those in
//! memory aren't touched; 10 M keys leave 11 bits of the tag that the bucket doesn't imply. Growth splits two buckets an insert, shrinking merges two a removal, and memory comes in segments of at most 2 MiB, so no single
//! operation pauses for the size of the table.

use smallvec::SmallVec;

use super::TableLayout;
use crate::bugs::{self, Bug};
use crate::raw::{Buffer, matching_tags};

/// Bits of an entry that are the address.
pub(super) const ADDRESS_BITS: u32 = 40;
const ADDRESS_MASK: u64 = (1 << ADDRESS_BITS) - 1;
const TAG_BITS: u32 = 24;
/// The lowest bit of the hash in the tag.
const TAG_SHIFT: u32 = 8;
/// Tables with at least this many buckets never ask for the hash of a record that is there.
pub(super) const SELF_SUFFICIENT_BITS: u8 = TAG_SHIFT as u8;
const SLOTS: usize = 7;
const BUCKET_BYTES: usize = 64;
/// Two bytes before the first entry, so that one load has an entry as its upper bits.
const ENTRIES: usize = 14;
const ENTRY_BYTES: usize = 6;
/// Bits of the load that are an entry's neighbour, and the lower bits of its tag.
const NOT_ENTRY_BITS: u32 = 16;
const TAG_LOW_BITS: u32 = 8;
/// A doubling begins when buckets hold this many entries on average.
const FILL_GROW: usize = 5;
/// Buckets split for each insert while the index grows, and merged for each removal while it shrinks.
const STEPS: usize = 2;

type Bucket = [u8; BUCKET_BYTES];
const EMPTY: Bucket = [0; BUCKET_BYTES];

/// The entry that begins so many bytes behind `ENTRIES`, with what lies before it in the lower bits.
#[inline(always)]
fn load(bucket: &Bucket, at: usize) -> u64 {
    let at = ENTRIES + at;
    u64::from_le_bytes(bucket[at..at + 8].try_into().expect("eight bytes"))
}

/// An entry: its tag above, its address below.
#[inline(always)]
fn word(bucket: &Bucket, slot: usize) -> u64 {
    let entry = load(bucket, slot * ENTRY_BYTES) >> NOT_ENTRY_BITS;
    let upper = u16::from_le_bytes([bucket[2 * slot], bucket[2 * slot + 1]]);
    u64::from(upper) << (ADDRESS_BITS + TAG_LOW_BITS) | (entry & 0xFF) << ADDRESS_BITS | entry >> TAG_LOW_BITS
}

fn set_entry(bucket: &mut Bucket, slot: usize, entry: u64) {
    let at = ENTRIES + 2 + slot * ENTRY_BYTES;
    bucket[at..at + ENTRY_BYTES].copy_from_slice(&entry.to_le_bytes()[..ENTRY_BYTES]);
}

fn set_word(bucket: &mut Bucket, slot: usize, word: u64) {
    bucket[2 * slot..2 * slot + 2].copy_from_slice(&((word >> (ADDRESS_BITS + TAG_LOW_BITS)) as u16).to_le_bytes());
    set_entry(bucket, slot, (word & ADDRESS_MASK) << TAG_LOW_BITS | word >> ADDRESS_BITS & 0xFF);
}

/// Whether there is no entry. One has an address, and no address is 0.
#[inline(always)]
fn is_empty(bucket: &Bucket, slot: usize) -> bool {
    load(bucket, slot * ENTRY_BYTES) >> NOT_ENTRY_BITS == 0
}

/// The entries that aren't empty.
fn words(bucket: &Bucket) -> impl Iterator<Item = u64> {
    (0..SLOTS).filter(|slot| !is_empty(bucket, *slot)).map(|slot| word(bucket, slot))
}

/// The overflow bucket's number plus one, or 0.
#[inline(always)]
fn link(bucket: &Bucket) -> u64 {
    load(bucket, SLOTS * ENTRY_BYTES) >> NOT_ENTRY_BITS
}

fn set_link(bucket: &mut Bucket, link: u64) {
    set_entry(bucket, SLOTS, link);
}

/// Puts an entry where none is; whether there was room.
fn put_into(bucket: &mut Bucket, entry: u64) -> bool {
    match (0..SLOTS).find(|slot| is_empty(bucket, *slot)) {
        Some(slot) => set_word(bucket, slot, entry),
        None => return false,
    }
    true
}

/// Buckets by number, in segments: the first small, each next as large as all before, up to `2^segment_bits`.
#[derive(Debug)]
struct Buckets {
    segments: Vec<Buffer>,
    first_bits: u32,
    segment_bits: u32,
    /// Buckets of a large segment, less one.
    segment_mask: usize,
    /// How many segments are smaller than the large ones, less one: the first large one begins at bucket `1 << segment_bits`.
    small_segments: usize,
    len: usize,
    allocated_bytes: usize,
}

impl Buckets {
    fn new(first_bits: u32, segment_bits: u32) -> Self {
        let segment_bits = segment_bits.max(first_bits);
        Self {
            segments: Vec::new(),
            first_bits,
            segment_bits,
            segment_mask: (1 << segment_bits) - 1,
            small_segments: (segment_bits - first_bits) as usize,
            len: 0,
            allocated_bytes: 0,
        }
    }

    #[inline(always)]
    fn place(&self, id: usize) -> (usize, usize) {
        let large = id >> self.segment_bits;
        if large > 0 {
            (self.small_segments + large, id & self.segment_mask)
        } else {
            let high = id >> self.first_bits;
            if high == 0 {
                (0, id)
            } else {
                let segment = usize::BITS - high.leading_zeros();
                (segment as usize, id - (1 << (self.first_bits + segment - 1)))
            }
        }
    }

    fn segment_len(&self, segment: usize) -> usize {
        match segment as u32 {
            0 => 1 << self.first_bits,
            s => 1 << (self.first_bits + s - 1).min(self.segment_bits),
        }
    }

    #[inline(always)]
    fn get(&self, id: usize) -> &Bucket {
        let (segment, at) = self.place(id);
        &self.segments[segment].bytes().as_chunks::<BUCKET_BYTES>().0[at]
    }

    /// `None` when there is no such bucket.
    #[inline(always)]
    fn find(&self, id: usize) -> Option<&Bucket> {
        let (segment, at) = self.place(id);
        self.segments.get(segment)?.bytes().as_chunks::<BUCKET_BYTES>().0.get(at)
    }

    #[inline(always)]
    fn get_mut(&mut self, id: usize) -> &mut Bucket {
        let (segment, at) = self.place(id);
        &mut self.segments[segment].bytes_mut().as_chunks_mut::<BUCKET_BYTES>().0[at]
    }

    #[inline(always)]
    fn prefetch(&self, id: usize) {
        let (segment, at) = self.place(id);
        self.segments[segment].prefetch(at * BUCKET_BYTES);
    }

    /// Adds an empty bucket; its number.
    fn push(&mut self) -> usize {
        let id = self.len;
        let (segment, _) = self.place(id);
        if segment == self.segments.len() {
            let directory = self.segments.capacity();
            let buffer = Buffer::zeroed(self.segment_len(segment) * BUCKET_BYTES);
            self.allocated_bytes += buffer.len();
            self.segments.push(buffer);
            self.allocated_bytes += (self.segments.capacity() - directory) * size_of::<Buffer>();
        } else {
            *self.get_mut(id) = EMPTY;
        }
        self.len += 1;
        id
    }

    /// An upper bound of the memory that so many more buckets take.
    fn room_for(&self, more: usize) -> usize {
        let (last, _) = self.place(self.len + more);
        let new: usize = (self.segments.len()..=last).map(|s| self.segment_len(s) * BUCKET_BYTES).sum();
        let more = (last + 1).saturating_sub(self.segments.len());
        let directory =
            if self.segments.len() + more <= self.segments.capacity() { 0 } else { self.segments.capacity().max(more).max(4) };
        new + directory * size_of::<Buffer>()
    }

    /// Takes the last bucket away, and its segment when that is empty then.
    fn pop(&mut self) {
        self.len -= 1;
        let (segment, at) = self.place(self.len);
        if at == 0
            && segment + 1 == self.segments.len()
            && let Some(buffer) = self.segments.pop()
        {
            self.allocated_bytes -= buffer.len();
        }
    }
}

/// Where records lie, by hash.
#[derive(Debug)]
pub(super) struct Index {
    buckets: Buckets,
    overflow: Buckets,
    /// Head of the list of unused overflow buckets, plus one; linked by their last words.
    overflow_free: u64,
    /// Buckets below `split` and those from `1 << level` on are hashed by `level + 1` bits, the others by `level`.
    level: u32,
    /// `1 << level`.
    half: usize,
    split: usize,
    /// `2 * half - 1`.
    mask: usize,
    /// `half + split`: all buckets together, unless there are none yet.
    count: usize,
    first_bits: u32,
    tag_mask: u64,
    /// Its upper bits.
    upper_mask: u16,
    len: usize,
}

impl Index {
    pub(super) fn new(layout: &TableLayout) -> Self {
        let first_bits = u32::from(layout.index_bits);
        let segment_bits = u32::from(layout.segment_bits);
        let tag_mask = (1 << u32::from(layout.tag_bits).min(TAG_BITS)) - 1;
        Self {
            buckets: Buckets::new(first_bits, segment_bits),
            overflow: Buckets::new(0, segment_bits),
            overflow_free: 0,
            level: first_bits,
            half: 1 << first_bits,
            split: 0,
            mask: (2 << first_bits) - 1,
            count: 1 << first_bits,
            first_bits,
            tag_mask,
            upper_mask: (tag_mask >> TAG_LOW_BITS) as u16,
            len: 0,
        }
    }

    /// How many entries.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Memory held.
    #[inline(always)]
    pub(super) fn allocated_bytes(&self) -> usize {
        self.buckets.allocated_bytes + self.overflow.allocated_bytes
    }

    #[inline(always)]
    fn bucket_of(&self, hash: u64) -> usize {
        // By arithmetic, not by a branch: while the table grows, nobody can guess it.
        let id = hash as usize & self.mask;
        id & self.mask >> u32::from(id >= self.count)
    }

    /// `half` or `split` have changed.
    fn sizes_changed(&mut self) {
        (self.mask, self.count) = (2 * self.half - 1, self.half + self.split);
    }

    #[inline(always)]
    fn tagged(&self, hash: u64) -> u64 {
        ((hash >> TAG_SHIFT) & self.tag_mask) << ADDRESS_BITS
    }

    /// The slots of a bucket where the upper bits of the tag fit, as every second bit; empty slots may be among them when these are 0.
    #[inline(always)]
    fn matches(bucket: &Bucket, upper: u16) -> u32 {
        let tags = bucket.first_chunk().expect("a bucket is longer");
        matching_tags(tags, upper) & ((1 << (2 * SLOTS)) - 1)
    }

    /// The upper bits of a hash's tag.
    #[inline(always)]
    fn upper(&self, hash: u64) -> u16 {
        (hash >> (TAG_SHIFT + TAG_LOW_BITS)) as u16 & self.upper_mask
    }

    /// The entry of the first slot of `matches`, which isn't 0; with what lies before it in the lower bits.
    #[inline(always)]
    fn first_of(bucket: &Bucket, matches: u32) -> u64 {
        // Two bits a slot; the mask says to the compiler that the entry is inside.
        load(bucket, (matches.trailing_zeros() as usize & 14) * (ENTRY_BYTES / 2))
    }

    /// Asks for the bucket of a hash.
    #[inline(always)]
    pub(super) fn prefetch(&self, hash: u64) {
        if self.buckets.len > 0 {
            self.buckets.prefetch(self.bucket_of(hash));
        }
    }

    /// The first address in the hash's bucket that may be it, if one is, or 0 for an empty slot.
    #[inline(always)]
    pub(super) fn first(&self, hash: u64) -> Option<u64> {
        let bucket = self.buckets.find(self.bucket_of(hash))?;
        let mask = Self::matches(bucket, self.upper(hash));
        if mask == 0 {
            return None;
        }
        Some(Self::first_of(bucket, mask) >> (NOT_ENTRY_BITS + TAG_LOW_BITS))
    }

    /// The same for a batch: 0 for none, and a bucket that holds more of this one's is asked for.
    #[inline(always)]
    pub(super) fn candidate(&self, hash: u64) -> u64 {
        if self.buckets.len == 0 {
            return 0;
        }
        let bucket = self.buckets.get(self.bucket_of(hash));
        let mask = Self::matches(bucket, self.upper(hash));
        if mask != 0 {
            return Self::first_of(bucket, mask) >> (NOT_ENTRY_BITS + TAG_LOW_BITS);
        }
        if let Some(overflow) = link(bucket).checked_sub(1) {
            // It may be there; whoever looks won't wait for that too.
            self.overflow.prefetch(overflow as usize);
        }
        0
    }

    /// Begins to look for a hash; see [`Probe::next`].
    #[inline(always)]
    pub(super) fn probe(&self, hash: u64) -> Probe<'_> {
        static NOTHING: Bucket = EMPTY;
        let tagged = self.tagged(hash);
        let bucket = if self.buckets.len == 0 { &NOTHING } else { self.buckets.get(self.bucket_of(hash)) };
        Probe { index: self, bucket, mask: Self::matches(bucket, self.upper(hash)), tagged }
    }

    /// Adds an address that isn't there. `hash_of` tells the hash of any address that was added, `prefetch` asks for it ahead.
    pub(super) fn insert(&mut self, hash: u64, address: u64, hash_of: impl Fn(u64) -> u64, prefetch: impl Fn(u64)) {
        debug_assert!(address != 0 && address <= ADDRESS_MASK, "address {address}");
        while self.buckets.len < 1 << self.first_bits {
            self.buckets.push();
        }
        let word = self.tagged(hash) | address;
        self.place(self.bucket_of(hash), word);
        self.len += 1;
        if self.grows_at(self.len) {
            for _ in 0..STEPS {
                self.split_one(&hash_of);
            }
            if self.level < TAG_SHIFT {
                for word in words(self.buckets.get(self.split)) {
                    prefetch(word & ADDRESS_MASK);
                }
            } else {
                self.buckets.prefetch(self.split);
            }
        }
    }

    /// Whether an insertion that makes it so many entries splits buckets.
    #[inline(always)]
    fn grows_at(&self, len: usize) -> bool {
        len > FILL_GROW << self.level || (self.split > 0 && len > 2 * self.buckets.len)
    }

    /// Puts a word into the first empty slot of a bucket's chain.
    fn place(&mut self, id: usize, word: u64) {
        let bucket = self.buckets.get_mut(id);
        if put_into(bucket, word) {
            return;
        }
        let mut next = link(bucket);
        while next != 0 {
            let bucket = self.overflow.get_mut(next as usize - 1);
            if put_into(bucket, word) {
                return;
            }
            next = link(bucket);
        }
        let fresh = match self.overflow_free {
            0 => self.overflow.push(),
            free => {
                self.overflow_free = link(self.overflow.get(free as usize - 1));
                free as usize - 1
            }
        };
        let bucket = self.buckets.get_mut(id);
        let head = link(bucket);
        set_link(bucket, fresh as u64 + 1);
        let bucket = self.overflow.get_mut(fresh);
        *bucket = EMPTY;
        set_word(bucket, 0, word);
        set_link(bucket, head);
    }

    /// Takes all words out of a bucket's chain.
    fn drain(&mut self, id: usize, drained: &mut SmallVec<[u64; 24]>) {
        let bucket = self.buckets.get_mut(id);
        drained.extend(words(bucket));
        let mut next = link(bucket);
        *bucket = EMPTY;
        while next != 0 {
            let bucket = self.overflow.get_mut(next as usize - 1);
            drained.extend(words(bucket));
            let after = link(bucket);
            set_link(bucket, self.overflow_free);
            self.overflow_free = next;
            next = after;
        }
    }

    fn split_one(&mut self, hash_of: &impl Fn(u64) -> u64) {
        let (from, bit) = (self.split, 1_u64 << self.level);
        let mut words = SmallVec::new();
        self.drain(from, &mut words);
        let to = self.buckets.push();
        debug_assert_eq!(to, from + (1 << self.level));
        let (mut filled_from, mut filled_to) = (0, 0);
        let in_tag = self.level.checked_sub(TAG_SHIFT).filter(|b| self.tag_mask >> b & 1 == 1);
        for word in words {
            let goes_up = match in_tag {
                Some(tag_bit) => word >> (ADDRESS_BITS + tag_bit) & 1 == 1,
                None => hash_of(word & ADDRESS_MASK) & bit != 0,
            };
            // Both are empty, so it's known where the next goes: loads of what was just stored piece by piece would wait.
            let (id, filled) =
                if goes_up != bugs::is_on(Bug::SplitsWrong) { (to, &mut filled_to) } else { (from, &mut filled_from) };
            match *filled {
                SLOTS => self.place(id, word),
                slot => {
                    set_word(self.buckets.get_mut(id), slot, word);
                    *filled += 1;
                }
            }
        }
        self.split += 1;
        if self.split == 1 << self.level {
            self.level += 1;
            self.half *= 2;
            self.split = 0;
        }
        self.sizes_changed();
    }

    fn merge_one(&mut self) {
        if self.split == 0 {
            self.level -= 1;
            self.half /= 2;
            self.split = 1 << self.level;
        }
        self.split -= 1;
        self.sizes_changed();
        let mut words = SmallVec::new();
        self.drain(self.split + (1 << self.level), &mut words);
        self.buckets.pop();
        for word in words {
            self.place(self.split, word);
        }
    }

    /// Calls `f` on the word of `address` under `hash`, wherever it is.
    fn with_word(&mut self, hash: u64, address: u64, f: impl FnOnce(&mut u64)) -> bool {
        if self.buckets.len == 0 {
            return false;
        }
        let mut wanted = self.tagged(hash) | address;
        let mut bucket = self.buckets.get_mut(self.bucket_of(hash));
        loop {
            if let Some(slot) = (0..SLOTS).find(|slot| word(bucket, *slot) == wanted) {
                f(&mut wanted);
                set_word(bucket, slot, wanted);
                return true;
            }
            match link(bucket) {
                0 => return false,
                next => bucket = self.overflow.get_mut(next as usize - 1),
            }
        }
    }

    /// Whether an address is there.
    pub(super) fn contains(&self, hash: u64, address: u64) -> bool {
        let mut probe = self.probe(hash);
        while let Some(at) = probe.next() {
            if at == address {
                return true;
            }
        }
        false
    }

    /// An upper bound of the memory that so many insertions take.
    pub(super) fn room_for(&self, insertions: usize) -> usize {
        let overflow_free = if self.overflow_free == 0 { insertions } else { insertions.saturating_sub(1) };
        let first = if self.buckets.len < 1 << self.first_bits { 1 << self.first_bits } else { 0 };
        let splits = if first > 0 || self.grows_at(self.len + insertions) { STEPS * insertions } else { 0 };
        self.buckets.room_for(splits + first) + self.overflow.room_for(insertions + splits + overflow_free)
    }

    /// Forgets an address; whether it was there.
    pub(super) fn remove(&mut self, hash: u64, address: u64) -> bool {
        let found = self.with_word(hash, address, |word| *word = 0);
        if found {
            self.len -= 1;
            for _ in 0..STEPS {
                if self.buckets.len > 1 << self.first_bits && self.len < self.buckets.len {
                    self.merge_one();
                }
            }
            if self.len == 0 {
                // Nothing refers to an overflow bucket any more.
                self.clear_overflow();
            }
        }
        found
    }

    fn clear_overflow(&mut self) {
        if self.overflow.len > 0 {
            for id in 0..self.buckets.len {
                set_link(self.buckets.get_mut(id), 0);
            }
            self.overflow = Buckets::new(0, self.overflow.segment_bits);
            self.overflow_free = 0;
        }
    }

    /// Frees one segment of an index that is given up; `false` when there is none left. Nothing else may be asked of it any more.
    pub(super) fn free_segment(&mut self) -> bool {
        for buckets in [&mut self.buckets, &mut self.overflow] {
            if let Some(segment) = buckets.segments.pop() {
                buckets.allocated_bytes -= segment.len().min(buckets.allocated_bytes);
                return true;
            }
        }
        false
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        let (first_bits, segment_bits) = (self.first_bits, self.buckets.segment_bits);
        *self = Self {
            buckets: Buckets::new(first_bits, segment_bits),
            overflow: Buckets::new(0, segment_bits),
            overflow_free: 0,
            level: first_bits,
            half: 1 << first_bits,
            split: 0,
            mask: (2 << first_bits) - 1,
            count: 1 << first_bits,
            first_bits,
            tag_mask: self.tag_mask,
            upper_mask: self.upper_mask,
            len: 0,
        };
    }

    /// A record has moved.
    pub(super) fn replace(&mut self, hash: u64, from: u64, to: u64) -> bool {
        self.with_word(hash, from, |word| *word = (*word & !ADDRESS_MASK) | to)
    }
}

/// The addresses that a hash's tag fits.
pub(super) struct Probe<'a> {
    index: &'a Index,
    bucket: &'a Bucket,
    mask: u32,
    tagged: u64,
}

impl Probe<'_> {
    /// The next address, in no order.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Option<u64> {
        loop {
            while self.mask != 0 {
                let entry = Index::first_of(self.bucket, self.mask) >> NOT_ENTRY_BITS;
                self.mask &= self.mask - 1;
                let address = entry >> TAG_LOW_BITS;
                if address != 0 && entry & 0xFF == self.tagged >> ADDRESS_BITS & 0xFF {
                    return Some(address);
                }
            }
            match link(self.bucket) {
                0 => return None,
                next => self.bucket = self.index.overflow.get(next as usize - 1),
            }
            self.mask = Index::matches(self.bucket, (self.tagged >> (ADDRESS_BITS + TAG_LOW_BITS)) as u16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_link_of_a_bucket_lie_side_by_side_without_touching_each_other() {
        let mut bucket = EMPTY;
        // Tag and address with their outermost bits set, different in each slot.
        let of =
            |slot: usize| (0x80_0001 + 0x1_0101 * slot as u64) << ADDRESS_BITS | (0x80_0000_0001 + 0x01_0101_0101 * slot as u64);
        for (filled, slot) in [3, 0, 6, 1, 5, 2, 4].into_iter().enumerate() {
            assert!(is_empty(&bucket, slot) && words(&bucket).count() == filled);
            set_word(&mut bucket, slot, of(slot));
            assert_eq!(word(&bucket, slot), of(slot), "slot {slot}");
            assert_eq!(Index::first_of(&bucket, 1 << (2 * slot)) >> (NOT_ENTRY_BITS + TAG_LOW_BITS), of(slot) & ADDRESS_MASK);
        }
        set_link(&mut bucket, (1 << 48) - 1);
        assert!(words(&bucket).eq((0..SLOTS).map(of)) && !put_into(&mut bucket, 1));
        for slot in 0..SLOTS {
            let upper = (of(slot) >> (ADDRESS_BITS + TAG_LOW_BITS)) as u16;
            assert_eq!(Index::matches(&bucket, upper), 1 << (2 * slot), "slot {slot}");
        }
        set_word(&mut bucket, 6, 0);
        assert!(link(&bucket) == (1 << 48) - 1 && put_into(&mut bucket, of(1)));
        assert!(word(&bucket, 6) == of(1) && word(&bucket, 5) == of(5));
        set_link(&mut bucket, 0);
        assert_eq!((link(&bucket), word(&bucket, 6)), (0, of(1)));
    }

    #[test]
    fn bucket_numbers_map_to_segments_without_gap_or_overlap() {
        for (first, segment) in [(0, 0), (0, 3), (1, 3), (2, 2), (2, 15)] {
            let mut buckets = Buckets::new(first, segment);
            let (mut expected_segment, mut expected_at) = (0, 0);
            for id in 0..300 {
                assert_eq!(buckets.push(), id);
                assert_eq!(buckets.place(id), (expected_segment, expected_at), "bucket {id} of {first}, {segment}");
                expected_at += 1;
                if expected_at == buckets.segment_len(expected_segment) {
                    (expected_segment, expected_at) = (expected_segment + 1, 0);
                }
            }
            let full = buckets.allocated_bytes;
            for _ in 0..300 {
                buckets.pop();
            }
            assert!(buckets.segments.is_empty() && buckets.allocated_bytes < full);
        }
    }
}
