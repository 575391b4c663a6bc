//! The hash index of a point table: linear hashing over buckets of one cache line.
//!
//! A bucket is eight words: seven entries `tag:24 | address:40`, 0 when empty, and the number of an overflow bucket plus one, 0 when none.
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
const LINK: usize = 7;
const BUCKET_WORDS: usize = 8;
const BUCKET_BYTES: usize = 64;
/// A doubling begins when buckets hold this many entries on average.
const FILL_GROW: usize = 5;
/// Buckets split for each insert while the index grows, and merged for each removal while it shrinks.
const STEPS: usize = 2;

type Bucket = [u64; BUCKET_WORDS];

/// Buckets by number, in segments: the first small, each next as large as all before, up to `2^segment_bits`.
#[derive(Debug)]
struct Buckets {
    segments: Vec<Buffer>,
    first_bits: u32,
    segment_bits: u32,
    len: usize,
    allocated_bytes: usize,
}

impl Buckets {
    fn new(first_bits: u32, segment_bits: u32) -> Self {
        Self { segments: Vec::new(), first_bits, segment_bits: segment_bits.max(first_bits), len: 0, allocated_bytes: 0 }
    }

    #[inline(always)]
    fn place(&self, id: usize) -> (usize, usize) {
        let large = id >> self.segment_bits;
        if large > 0 {
            ((self.segment_bits - self.first_bits) as usize + large, id & ((1 << self.segment_bits) - 1))
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
        &self.segments[segment].words().as_chunks::<BUCKET_WORDS>().0[at]
    }

    #[inline(always)]
    fn get_mut(&mut self, id: usize) -> &mut Bucket {
        let (segment, at) = self.place(id);
        &mut self.segments[segment].words_mut().as_chunks_mut::<BUCKET_WORDS>().0[at]
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
            *self.get_mut(id) = [0; BUCKET_WORDS];
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
    first_bits: u32,
    tag_mask: u64,
    len: usize,
}

impl Index {
    pub(super) fn new(layout: &TableLayout) -> Self {
        let first_bits = u32::from(layout.index_bits);
        let segment_bits = u32::from(layout.segment_bits);
        Self {
            buckets: Buckets::new(first_bits, segment_bits),
            overflow: Buckets::new(0, segment_bits),
            overflow_free: 0,
            level: first_bits,
            half: 1 << first_bits,
            split: 0,
            first_bits,
            tag_mask: (1 << u32::from(layout.tag_bits).min(TAG_BITS)) - 1,
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
        // All buckets together are `half + split`.
        let id = hash as usize & (2 * self.half - 1);
        if id < self.half + self.split { id } else { id - self.half }
    }

    #[inline(always)]
    fn tagged(&self, hash: u64) -> u64 {
        ((hash >> TAG_SHIFT) & self.tag_mask) << ADDRESS_BITS
    }

    /// The slots of a bucket whose tag fits, as bits; empty slots may be among them when the tag is 0.
    #[inline(always)]
    fn matches(bucket: &Bucket, tagged: u64) -> u32 {
        matching_tags(bucket, (tagged >> ADDRESS_BITS) as u32) & ((1 << SLOTS) - 1)
    }

    /// Asks for the bucket of a hash.
    #[inline(always)]
    pub(super) fn prefetch(&self, hash: u64) {
        if self.buckets.len > 0 {
            self.buckets.prefetch(self.bucket_of(hash));
        }
    }

    /// The first address in the hash's bucket that may be it, or 0.
    #[inline(always)]
    pub(super) fn candidate(&self, hash: u64) -> u64 {
        if self.buckets.len == 0 {
            return 0;
        }
        let bucket = self.buckets.get(self.bucket_of(hash));
        let mask = Self::matches(bucket, self.tagged(hash));
        if mask != 0 {
            return bucket[mask.trailing_zeros() as usize & 7] & ADDRESS_MASK;
        }
        if bucket[LINK] != 0 {
            // It may be there; whoever looks won't wait for that too.
            self.overflow.prefetch(bucket[LINK] as usize - 1);
        }
        0
    }

    /// Begins to look for a hash; see [`Probe::next`].
    #[inline(always)]
    pub(super) fn probe(&self, hash: u64) -> Probe<'_> {
        static NOTHING: Bucket = [0; BUCKET_WORDS];
        let tagged = self.tagged(hash);
        let bucket = if self.buckets.len == 0 { &NOTHING } else { self.buckets.get(self.bucket_of(hash)) };
        Probe { index: self, bucket, mask: Self::matches(bucket, tagged), tagged }
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
        if self.len > FILL_GROW << self.level || (self.split > 0 && self.len > 2 * self.buckets.len) {
            for _ in 0..STEPS {
                self.split_one(&hash_of);
            }
            if self.level < TAG_SHIFT {
                for word in &self.buckets.get(self.split)[..SLOTS] {
                    prefetch(word & ADDRESS_MASK);
                }
            } else {
                self.buckets.prefetch(self.split);
            }
        }
    }

    /// Puts a word into the first empty slot of a bucket's chain.
    fn place(&mut self, id: usize, word: u64) {
        let bucket = self.buckets.get_mut(id);
        if let Some(slot) = bucket[..SLOTS].iter_mut().find(|w| **w == 0) {
            *slot = word;
            return;
        }
        let mut next = bucket[LINK];
        while next != 0 {
            let bucket = self.overflow.get_mut(next as usize - 1);
            if let Some(slot) = bucket[..SLOTS].iter_mut().find(|w| **w == 0) {
                *slot = word;
                return;
            }
            next = bucket[LINK];
        }
        let fresh = match self.overflow_free {
            0 => self.overflow.push(),
            free => {
                self.overflow_free = self.overflow.get(free as usize - 1)[LINK];
                free as usize - 1
            }
        };
        let head = std::mem::replace(&mut self.buckets.get_mut(id)[LINK], fresh as u64 + 1);
        let bucket = self.overflow.get_mut(fresh);
        *bucket = [0; BUCKET_WORDS];
        bucket[0] = word;
        bucket[LINK] = head;
    }

    /// Takes all words out of a bucket's chain.
    fn drain(&mut self, id: usize, words: &mut SmallVec<[u64; 24]>) {
        let bucket = self.buckets.get_mut(id);
        words.extend(bucket[..SLOTS].iter().copied().filter(|w| *w != 0));
        let mut next = bucket[LINK];
        *bucket = [0; BUCKET_WORDS];
        while next != 0 {
            let bucket = self.overflow.get_mut(next as usize - 1);
            words.extend(bucket[..SLOTS].iter().copied().filter(|w| *w != 0));
            let after = std::mem::replace(&mut bucket[LINK], self.overflow_free);
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
        let in_tag = self.level.checked_sub(TAG_SHIFT).filter(|b| self.tag_mask >> b & 1 == 1);
        for word in words {
            let goes_up = match in_tag {
                Some(tag_bit) => word >> (ADDRESS_BITS + tag_bit) & 1 == 1,
                None => hash_of(word & ADDRESS_MASK) & bit != 0,
            };
            self.place(if goes_up != bugs::is_on(Bug::SplitsWrong) { to } else { from }, word);
        }
        self.split += 1;
        if self.split == 1 << self.level {
            self.level += 1;
            self.half *= 2;
            self.split = 0;
        }
    }

    fn merge_one(&mut self) {
        if self.split == 0 {
            self.level -= 1;
            self.half /= 2;
            self.split = 1 << self.level;
        }
        self.split -= 1;
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
        let word = self.tagged(hash) | address;
        let mut bucket = self.buckets.get_mut(self.bucket_of(hash));
        loop {
            if let Some(slot) = bucket[..SLOTS].iter().position(|w| *w == word) {
                f(&mut bucket[slot]);
                return true;
            }
            match bucket[LINK] {
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
        self.buckets.room_for(STEPS * insertions + (1 << self.first_bits))
            + self.overflow.room_for(insertions * (1 + STEPS) + overflow_free)
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
                self.buckets.get_mut(id)[LINK] = 0;
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
            first_bits,
            tag_mask: self.tag_mask,
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
                let address = self.bucket[self.mask.trailing_zeros() as usize & 7] & ADDRESS_MASK;
                self.mask &= self.mask - 1;
                if address != 0 {
                    return Some(address);
                }
            }
            match self.bucket[LINK] {
                0 => return None,
                next => self.bucket = self.index.overflow.get(next as usize - 1),
            }
            self.mask = Index::matches(self.bucket, self.tagged);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
