//! A block of an ordered table: some keys with values, sorted.
//!
//! Entries lie in the order of their arrival, `key length u32 | value length u32 | key | value`; `slots` holds where each begins, in the
//! order of the keys. So an insertion moves four bytes a neighbour, not the entries.

use std::cmp::Ordering;
use std::sync::OnceLock;

use super::snapshot::BlockFrame;

const ENTRY_HEADER_BYTES: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Block {
    /// The first eight bytes of the first key, zero behind a shorter one's end, most significant first.
    fence: u64,
    entries: Vec<u8>,
    slots: Vec<u32>,
    /// Bytes of entries that are in use.
    live_bytes: usize,
    /// Where it was written to, as it is.
    pub(super) frame: OnceLock<BlockFrame>,
}

/// What an `Arc` needs beside what is in it.
const ARC_BYTES: usize = 16;

impl Clone for Block {
    /// The copy is to be changed, so it isn't written anywhere.
    fn clone(&self) -> Self {
        Self {
            fence: self.fence,
            entries: self.entries.clone(),
            slots: self.slots.clone(),
            live_bytes: self.live_bytes,
            frame: OnceLock::new(),
        }
    }
}

/// The first eight bytes of a key as a number that orders as they do.
#[inline(always)]
pub(super) fn key_prefix(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(eight) => u64::from_be_bytes(*eight),
        None => key.iter().enumerate().fold(0, |prefix, (i, byte)| prefix | u64::from(*byte) << (56 - 8 * i)),
    }
}

pub(super) fn entry_bytes(key: &[u8], value: &[u8]) -> usize {
    ENTRY_HEADER_BYTES + key.len() + value.len()
}

impl Block {
    /// An empty block with room for `bytes`. Powers of two, so that growth by doubling ends at the block's limit, which is one.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { entries: Vec::with_capacity(bytes.next_power_of_two()), ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    pub(super) fn filled_bytes(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        ARC_BYTES + size_of::<Self>() + self.entries.capacity() + self.slots.capacity() * size_of::<u32>()
    }

    /// It isn't what was written of it any more.
    #[inline(always)]
    pub(super) fn changes(&mut self) {
        if self.frame.get_mut().is_some() {
            self.frame.take();
        }
    }

    /// All entries in order: key length 4 · value length 4 · key · value.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.live_bytes);
        for at in &self.slots {
            let at = *at as usize;
            bytes.extend_from_slice(&self.entries[at..at + ENTRY_HEADER_BYTES + self.length(at) + self.length(at + 4)]);
        }
        bytes
    }

    fn length(&self, at: usize) -> usize {
        u32::from_le_bytes(self.entries[at..at + 4].try_into().expect("four bytes")) as usize
    }

    #[inline(always)]
    pub(super) fn key(&self, slot: usize) -> &[u8] {
        let at = self.slots[slot] as usize;
        let start = at + ENTRY_HEADER_BYTES;
        &self.entries[start..start + self.length(at)]
    }

    #[inline(always)]
    pub(super) fn entry(&self, slot: usize) -> (&[u8], &[u8]) {
        let at = self.slots[slot] as usize;
        let (key, value) = (self.length(at), self.length(at + 4));
        self.entries[at + ENTRY_HEADER_BYTES..at + ENTRY_HEADER_BYTES + key + value].split_at(key)
    }

    pub(super) fn value_mut(&mut self, slot: usize) -> &mut [u8] {
        let at = self.slots[slot] as usize;
        let (key, value) = (self.length(at), self.length(at + 4));
        let start = at + ENTRY_HEADER_BYTES + key;
        &mut self.entries[start..start + value]
    }

    /// How the block's first key compares with `key`. The block isn't empty.
    #[inline(always)]
    pub(super) fn first_cmp(&self, key: &[u8], prefix: u64) -> Ordering {
        self.fence.cmp(&prefix).then_with(|| self.key(0).cmp(key))
    }

    /// Where `key` is, or where it belongs.
    #[inline(always)]
    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.slots.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.key(middle).cmp(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    fn set_fence(&mut self) {
        self.fence = if self.slots.is_empty() { 0 } else { key_prefix(self.key(0)) };
    }

    pub(super) fn insert(&mut self, slot: usize, key: &[u8], value: &[u8]) {
        if self.slots.is_empty() {
            self.entries.clear();
        }
        let at = u32::try_from(self.entries.len()).expect("a block is shorter than 4 GiB: only its first entry can be large");
        let length = |bytes: &[u8]| {
            u32::try_from(bytes.len()).expect("keys and values were checked to be shorter than 4 GiB").to_le_bytes()
        };
        self.entries.extend_from_slice(&length(key));
        self.entries.extend_from_slice(&length(value));
        self.entries.extend_from_slice(key);
        self.entries.extend_from_slice(value);
        self.slots.insert(slot, at);
        self.live_bytes += entry_bytes(key, value);
        if slot == 0 {
            self.set_fence();
        }
    }

    pub(super) fn remove(&mut self, slot: usize) {
        let (key, value) = self.entry(slot);
        self.live_bytes -= entry_bytes(key, value);
        self.slots.remove(slot);
        if slot == 0 {
            self.set_fence();
        }
    }

    /// Forgets the first `count` entries.
    pub(super) fn remove_first(&mut self, count: usize) {
        for slot in 0..count {
            let (key, value) = self.entry(slot);
            self.live_bytes -= entry_bytes(key, value);
        }
        self.slots.drain(..count);
        self.set_fence();
    }

    /// A block of the entries from `from` to `to`, packed, with room for `spare_bytes` more.
    pub(super) fn part(&self, from: usize, to: usize, spare_bytes: usize) -> Self {
        let bytes = (from..to).map(|slot| self.entry_len(slot)).sum::<usize>();
        let mut part = Self::with_capacity(bytes + spare_bytes);
        part.slots.reserve(to - from);
        part.append(self, from, to);
        part
    }

    /// Adds the entries from `from` to `to` of another block; its keys are above all of this one's.
    pub(super) fn append(&mut self, other: &Self, from: usize, to: usize) {
        for slot in from..to {
            let at = other.slots[slot] as usize;
            let new_at = self.entries.len() as u32;
            self.entries.extend_from_slice(&other.entries[at..at + other.entry_len(slot)]);
            self.slots.push(new_at);
            self.live_bytes += other.entry_len(slot);
        }
        self.set_fence();
    }

    fn entry_len(&self, slot: usize) -> usize {
        let at = self.slots[slot] as usize;
        ENTRY_HEADER_BYTES + self.length(at) + self.length(at + 4)
    }

    /// The slot at which about half of the bytes are before it; never 0 with two entries or more.
    pub(super) fn middle(&self) -> usize {
        let mut bytes = 0;
        for slot in 0..self.slots.len() {
            bytes += self.entry_len(slot);
            if bytes * 2 >= self.live_bytes {
                return (slot + 1).clamp(1, (self.slots.len() - 1).max(1));
            }
        }
        self.slots.len()
    }
}
