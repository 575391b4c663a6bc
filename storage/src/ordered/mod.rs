//! Keys with values, in the order of the keys: timers, sessions, multisets, join sides.
//!
//! A tree of three levels: a list of chunks, each a list of blocks, each some kilobytes of sorted entries. No entry is an allocation of its
//! own; a lookup compares first keys by their first eight bytes, then searches one block.
//!
//! A table of a shard with a device may be larger than memory: blocks that weren't used for a while are written there, and only their first
//! keys stay; see [`away`].

mod away;
mod block;
mod body;
mod held;
mod range;
mod snapshot;

use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};

use crate::memory::Account;
use crate::point::TableLayout;
use crate::shard::TableId;
use crate::store::StoreHandle;
pub(crate) use away::BlockAway;
use block::{Block, key_prefix};
pub(crate) use body::count_entries;
use body::{Body, entry_bytes, split_entry};
use held::Held;
pub(crate) use held::NO_ENTRIES;
pub use range::OrderedRange;
pub(crate) use snapshot::{NextBlock, OrderedSnapshot};

/// Some blocks that lie in one list.
#[derive(Debug, Default)]
struct Blocks {
    list: Vec<Arc<Block>>,
    /// Whether any of them may be in memory.
    is_warm: AtomicBool,
}

impl Clone for Blocks {
    fn clone(&self) -> Self {
        Self { list: self.list.clone(), is_warm: AtomicBool::new(true) }
    }
}

impl Blocks {
    fn new(list: Vec<Arc<Block>>) -> Self {
        Self { list, is_warm: AtomicBool::new(true) }
    }

    fn warm(&self) {
        if !self.is_warm.load(Atomic::Relaxed) {
            self.is_warm.store(true, Atomic::Relaxed);
        }
    }
}

/// Blocks, shared with snapshots until one is changed.
type Chunk = Arc<Blocks>;

/// A new block has room for this much more than what made it.
const SPARE_BYTES: usize = 64;

/// Keys with values, in the order of the keys' bytes. Keys and values are shorter than 4 GiB.
#[derive(Debug)]
pub struct OrderedTable {
    /// None is empty, and no block in them is.
    chunks: Vec<Chunk>,
    len: usize,
    block_bytes: usize,
    chunk_blocks: usize,
    /// What the lists of blocks take.
    list_bytes: usize,
    /// Of the lists; the blocks count what they hold themselves.
    account: Account,
    held: Arc<Held>,
    /// Where the search for blocks to evict, and for those to write, goes on.
    evict_hand: (usize, usize),
    write_hand: (usize, usize),
}

/// An entry's place: chunk, block, slot. One behind a block's last slot is the next block's first; the end is (number of chunks, 0, 0).
type Place = (usize, usize, usize);

impl Default for OrderedTable {
    /// A table that belongs to no shard.
    fn default() -> Self {
        Self::new(&TableLayout::default(), Account::new(Arc::default()))
    }
}

impl OrderedTable {
    pub(crate) fn new(layout: &TableLayout, account: Account) -> Self {
        Self::with_store(layout, account, None)
    }

    /// A table whose blocks may go to a store.
    pub(crate) fn with_store(layout: &TableLayout, account: Account, store: Option<(StoreHandle, TableId)>) -> Self {
        let held = Held::new(account.shard_bytes(), store);
        let mut table = Self {
            chunks: Vec::new(),
            len: 0,
            block_bytes: 1 << layout.block_bits,
            chunk_blocks: usize::from(layout.chunk_blocks),
            list_bytes: 0,
            account,
            held,
            evict_hand: (0, 0),
            write_hand: (0, 0),
        };
        table.settle();
        table
    }

    fn settle(&mut self) {
        let directory = self.chunks.capacity() * size_of::<Chunk>();
        self.account.settle(size_of::<Self>() + size_of::<Held>() + directory + self.list_bytes);
    }

    /// The block that has `key` if any has: the last that begins at or below it, else the first. The table isn't empty.
    #[inline(always)]
    fn block_of(&self, key: &[u8]) -> (usize, usize) {
        let prefix = key_prefix(key);
        let begins_at_or_below = |block: &Arc<Block>| block.first_cmp(key, prefix) != Ordering::Greater;
        let chunk = self.chunks.partition_point(|blocks| begins_at_or_below(&blocks.list[0])).saturating_sub(1);
        let block = self.chunks[chunk].list.partition_point(begins_at_or_below).saturating_sub(1);
        (chunk, block)
    }

    fn block(&self, chunk: usize, block: usize) -> &Block {
        &self.chunks[chunk].list[block]
    }

    /// The entries of a block, which are read when they are on the device alone.
    #[inline(always)]
    fn body(&self, chunk: usize, block: usize) -> &Body {
        let blocks = &self.chunks[chunk];
        blocks.warm();
        blocks.list[block].body()
    }

    /// A chunk to change; a snapshot that has it keeps what it was.
    fn chunk_mut(&mut self, chunk: usize) -> &mut Vec<Arc<Block>> {
        let before = self.chunk_bytes(chunk);
        let blocks = Arc::make_mut(&mut self.chunks[chunk]);
        // A copy has no spare room.
        self.list_bytes = self.list_bytes - before + blocks.list.capacity() * size_of::<Arc<Block>>();
        *blocks.is_warm.get_mut() = true;
        &mut blocks.list
    }

    /// A block to change; a snapshot that has it keeps what it was.
    fn block_mut(&mut self, chunk: usize, block: usize) -> &mut Block {
        Arc::make_mut(&mut self.chunk_mut(chunk)[block])
    }

    fn chunk_bytes(&self, chunk: usize) -> usize {
        self.chunks[chunk].list.capacity() * size_of::<Arc<Block>>()
    }

    fn add_chunk(&mut self, at: usize, blocks: Vec<Arc<Block>>) {
        self.chunks.insert(at, Arc::new(Blocks::new(blocks)));
        self.list_bytes += self.chunk_bytes(at);
    }

    /// Puts a block into a chunk, and splits the chunk when that makes it too long.
    fn add_block(&mut self, chunk: usize, at: usize, block: Block) {
        self.chunk_mut(chunk);
        let before = self.chunk_bytes(chunk);
        self.chunk_mut(chunk).insert(at, Arc::new(block));
        self.list_bytes = self.list_bytes - before + self.chunk_bytes(chunk);
        let len = self.chunks[chunk].list.len();
        if len > self.chunk_blocks {
            // Behind the last block of all the next one will come too: leave this chunk full.
            let kept = if at + 1 == len && chunk + 1 == self.chunks.len() { len - 1 } else { len / 2 };
            let blocks = self.chunk_mut(chunk).split_off(kept);
            self.add_chunk(chunk + 1, blocks);
        }
    }

    fn drop_block(&mut self, chunk: usize, block: usize) {
        self.chunk_mut(chunk).remove(block);
        if self.chunks[chunk].list.is_empty() {
            self.list_bytes -= self.chunk_bytes(chunk);
            self.chunks.remove(chunk);
        } else {
            self.shrink_chunk(chunk);
        }
    }

    /// Gives memory back when few of the places of a chunk are taken.
    fn shrink_chunk(&mut self, chunk: usize) {
        let blocks = &self.chunks[chunk].list;
        if blocks.len() < blocks.capacity() / 4 {
            self.list_bytes -= self.chunk_bytes(chunk);
            let len = self.chunks[chunk].list.len();
            let list = &mut Arc::make_mut(&mut self.chunks[chunk]).list;
            list.shrink_to(2 * len);
            self.list_bytes += self.chunk_bytes(chunk);
        }
    }

    /// Sets the value of `key`.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        assert!(u32::try_from(key.len()).is_ok() && u32::try_from(value.len()).is_ok(), "keys and values are shorter than 4 GiB");
        if self.chunks.is_empty() {
            self.add_chunk(0, Vec::with_capacity(1));
            let block = self.block_of_one(key, value);
            self.add_block(0, 0, block);
            self.len += 1;
            self.settle();
            return;
        }
        let (chunk, block) = self.block_of(key);
        let found = self.body(chunk, block);
        let slot = match found.search(key) {
            Ok(slot) => {
                if found.entry(slot).1.len() == value.len() {
                    self.block_mut(chunk, block).change(|body, _| body.value_mut(slot).copy_from_slice(value));
                    self.settle();
                    return;
                }
                self.block_mut(chunk, block).remove(slot);
                slot
            }
            Err(slot) => {
                self.len += 1;
                slot
            }
        };
        self.insert_at(chunk, block, slot, key, value);
        self.settle();
    }

    fn block_of_one(&self, key: &[u8], value: &[u8]) -> Block {
        let mut body = Body::with_capacity(entry_bytes(key, value) + SPARE_BYTES);
        body.insert(0, key, value);
        Block::of_body(&self.held, body)
    }

    /// Inserts a key that isn't there at its place. The block may be empty at this moment.
    fn insert_at(&mut self, chunk: usize, block: usize, slot: usize, key: &[u8], value: &[u8]) {
        let size = entry_bytes(key, value);
        let limit = self.block_bytes;
        let target = self.body(chunk, block);
        let (len, filled) = (target.len(), target.filled_bytes());
        let live = self.block(chunk, block).live_bytes();
        if len == 0 || filled + size <= limit {
            self.block_mut(chunk, block).insert(slot, key, value);
        } else if live + size <= limit {
            let target = self.block_mut(chunk, block);
            target.pack(size);
            target.insert(slot, key, value);
        } else if slot == len || slot == 0 {
            // Keys that arrive in order fill block after block.
            let fresh = self.block_of_one(key, value);
            self.add_block(chunk, if slot == 0 { block } else { block + 1 }, fresh);
        } else {
            let target = self.block_mut(chunk, block);
            let upper = target.split_off(target.middle());
            self.add_block(chunk, block + 1, upper);
            // The halves may be too full for it still, when entries differ much in length; each time there are fewer of them.
            let (chunk, block) = self.block_of(key);
            let (Ok(slot) | Err(slot)) = self.body(chunk, block).search(key);
            self.insert_at(chunk, block, slot, key, value);
        }
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        if self.chunks.is_empty() {
            return None;
        }
        let (chunk, block) = self.block_of(key);
        let body = self.body(chunk, block);
        body.search(key).ok().map(|slot| body.entry(slot).1)
    }

    /// Forgets `key`; whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        if self.chunks.is_empty() {
            return false;
        }
        let (chunk, block) = self.block_of(key);
        let Ok(slot) = self.body(chunk, block).search(key) else { return false };
        self.block_mut(chunk, block).remove(slot);
        self.len -= 1;
        self.tidy(chunk, block);
        self.settle();
        true
    }

    /// Drops, packs or merges a block that has lost entries.
    fn tidy(&mut self, chunk: usize, block: usize) {
        let limit = self.block_bytes;
        let (len, live) = (self.block(chunk, block).len(), self.block(chunk, block).live_bytes());
        if len == 0 {
            self.drop_block(chunk, block);
            return;
        }
        if live >= self.body(chunk, block).filled_bytes() / 2 {
            return;
        }
        self.block_mut(chunk, block).pack(SPARE_BYTES);
        let blocks = &self.chunks[chunk].list;
        if live < limit / 4 {
            // A neighbour that is on the device alone isn't read for this.
            let fits = |lower: usize| {
                let upper = blocks.get(lower + 1);
                upper.is_some_and(|upper| {
                    let both = blocks[lower].live_bytes() + upper.live_bytes() <= limit * 3 / 4;
                    both && upper.is_resident() && blocks[lower].is_resident()
                })
            };
            let lower = if fits(block) {
                block
            } else if block > 0 && fits(block - 1) {
                block - 1
            } else {
                return;
            };
            let upper = self.chunk_mut(chunk).remove(lower + 1);
            self.block_mut(chunk, lower).append(&upper);
            self.shrink_chunk(chunk);
        }
    }

    /// The place of the first entry at or above `key` (above it, if `above`).
    fn place_of(&self, key: &[u8], above: bool) -> Place {
        if self.chunks.is_empty() {
            return (0, 0, 0);
        }
        let (chunk, block) = self.block_of(key);
        let found = self.block(chunk, block);
        // What lies before all of a block, or at its beginning, is told by its first key: it isn't read for that.
        if !found.is_resident() {
            match found.first_key().cmp(key) {
                Ordering::Greater => return (chunk, block, 0),
                Ordering::Equal => return (chunk, block, usize::from(above)),
                Ordering::Less => {}
            }
        }
        let slot = match self.body(chunk, block).search(key) {
            Ok(slot) => slot + usize::from(above),
            Err(slot) => slot,
        };
        (chunk, block, slot)
    }

    /// Keys and values between two keys, ascending; reversible. Empty when `from` is above `to`. Takes time for what it yields.
    pub fn range<'s>(&'s self, from: Bound<&[u8]>, to: Bound<&[u8]>) -> OrderedRange<'s> {
        let front = match from {
            Bound::Included(key) => self.place_of(key, false),
            Bound::Excluded(key) => self.place_of(key, true),
            Bound::Unbounded => (0, 0, 0),
        };
        let back = match to {
            Bound::Included(key) => self.place_of(key, true),
            Bound::Excluded(key) => self.place_of(key, false),
            Bound::Unbounded => (self.chunks.len(), 0, 0),
        };
        OrderedRange::new(self, front, back)
    }

    /// Keys that begin with `prefix`, ascending; reversible. Takes time for what it yields.
    pub fn prefix<'s>(&'s self, prefix: &[u8]) -> OrderedRange<'s> {
        let last = prefix.iter().rposition(|byte| *byte != 0xFF);
        match last {
            Some(last) => {
                let mut end = prefix[..=last].to_vec();
                end[last] += 1;
                self.range(Bound::Included(prefix), Bound::Excluded(&end))
            }
            None => self.range(Bound::Included(prefix), Bound::Unbounded),
        }
    }

    /// Forgets all keys below `end`; how many there were. Takes time for blocks, not for entries.
    pub fn remove_below(&mut self, end: &[u8]) -> usize {
        if self.chunks.is_empty() {
            return 0;
        }
        let (chunk, block, slot) = self.place_of(end, false);
        let mut gone = slot;
        for blocks in &self.chunks[..chunk] {
            self.list_bytes -= blocks.list.capacity() * size_of::<Arc<Block>>();
            gone += blocks.list.iter().map(|b| b.len()).sum::<usize>();
        }
        gone += self.chunks[chunk].list[..block].iter().map(|b| b.len()).sum::<usize>();
        self.chunks.drain(..chunk);
        self.chunk_mut(0).drain(..block);
        self.shrink_chunk(0);
        if slot > 0 {
            self.block_mut(0, 0).remove_first(slot);
            self.tidy(0, 0);
        }
        // What couldn't be read is still counted.
        self.len = self.len.saturating_sub(gone);
        self.settle();
        gone
    }

    /// What the table holds now; takes time for chunks. The table goes on, and copies what it changes.
    pub(crate) fn snapshot(&self) -> OrderedSnapshot {
        OrderedSnapshot::new(self.chunks.clone(), self.held.store().map(|(store, _)| store.clone()))
    }

    /// Puts the entries of an encoded block in; `None` when they are none.
    pub(crate) fn put_encoded(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let (key, value, rest) = split_entry(bytes)?;
            self.put(key, value);
            bytes = rest;
        }
        Some(())
    }

    /// How many keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory the table holds, with what checkpoints that are being written still have of it.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.account.used_bytes() + self.held.bytes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl OrderedTable {
        fn check(&self) {
            let mut previous: Option<&[u8]> = None;
            let mut len = 0;
            for blocks in &self.chunks {
                assert!(!blocks.list.is_empty() && blocks.list.len() <= self.chunk_blocks);
                for block in &blocks.list {
                    let body = block.body();
                    assert!(block.len() > 0 && block.len() == body.len());
                    assert!(body.filled_bytes() <= self.block_bytes || block.len() == 1);
                    assert_eq!(block.first_cmp(body.key(0), key_prefix(body.key(0))), Ordering::Equal);
                    for slot in 0..block.len() {
                        let key = body.key(slot);
                        assert!(previous.is_none_or(|p| p < key));
                        previous = Some(key);
                        len += 1;
                    }
                    assert_eq!(block.live_bytes(), body.encoded_bytes());
                }
            }
            assert_eq!(len, self.len);
            let lists = self.chunks.iter().map(|c| c.list.capacity() * size_of::<Arc<Block>>()).sum::<usize>();
            let blocks = self.chunks.iter().flat_map(|c| c.list.iter()).map(|b| b.allocated_bytes()).sum::<usize>();
            let directory = self.chunks.capacity() * size_of::<Chunk>();
            assert_eq!(self.used_bytes(), size_of::<Self>() + size_of::<Held>() + directory + lists + blocks);
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Put(Vec<u8>, Vec<u8>),
        PutRun(u16, u8, bool),
        Remove(Vec<u8>),
        RemoveEvery(u8),
        RemoveBelow(Vec<u8>),
        Range(Bound<Vec<u8>>, Bound<Vec<u8>>),
        Prefix(Vec<u8>),
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            4 => (0_u16..300).prop_map(|k| k.to_be_bytes().to_vec()),
            3 => prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(0xFE), Just(0xFF)], 0..5),
            2 => (0_u16..100).prop_map(|k| [b"a common prefix".as_slice(), &k.to_be_bytes()].concat()),
            1 => (0_usize..300).prop_map(|n| vec![9; n]),
        ]
    }

    fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
        prop_oneof![Just(Bound::Unbounded), key().prop_map(Bound::Included), key().prop_map(Bound::Excluded)]
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            10 => (key(), prop::collection::vec(any::<u8>(), 0..30)).prop_map(|(k, v)| Op::Put(k, v)),
            1 => (key(), 0_usize..400).prop_map(|(k, n)| Op::Put(k, vec![3; n])),
            4 => (any::<u16>(), 1_u8..90, any::<bool>()).prop_map(|(s, n, up)| Op::PutRun(s % 300, n, up)),
            6 => key().prop_map(Op::Remove),
            1 => (2_u8..6).prop_map(Op::RemoveEvery),
            1 => key().prop_map(Op::RemoveBelow),
            3 => (bound(), bound()).prop_map(|(f, t)| Op::Range(f, t)),
            3 => key().prop_map(Op::Prefix),
        ]
    }

    fn borrowed(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
        bound.as_ref().map(Vec::as_slice)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn behaves_as_a_sorted_map(
            block_bits in prop_oneof![Just(6_u8), Just(7), Just(12)],
            chunk_blocks in 4_u16..7,
            ops in prop::collection::vec(op(), 1..120),
            picks in prop::collection::vec(any::<bool>(), 40),
        ) {
            let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
            let layout = TableLayout { block_bits, chunk_blocks, ..TableLayout::default() };
            let mut table = OrderedTable::new(&layout, Account::new(Arc::default()));
            for op in ops {
                match op {
                    Op::Put(key, value) => {
                        table.put(&key, &value);
                        model.insert(key, value);
                    }
                    Op::PutRun(start, count, up) => {
                        for i in 0..u16::from(count) {
                            let key = (start + if up { i } else { u16::from(count) - i }).to_be_bytes();
                            table.put(&key, &key);
                            model.insert(key.to_vec(), key.to_vec());
                        }
                    }
                    Op::Remove(key) => assert_eq!(table.remove(&key), model.remove(&key).is_some()),
                    Op::RemoveEvery(n) => {
                        let gone: Vec<_> = model.keys().step_by(usize::from(n)).cloned().collect();
                        for key in gone {
                            assert!(table.remove(&key));
                            model.remove(&key);
                            table.check();
                        }
                    }
                    Op::RemoveBelow(end) => {
                        let kept = model.split_off(&end);
                        assert_eq!(table.remove_below(&end), model.len());
                        model = kept;
                    }
                    Op::Range(from, to) => {
                        let inside = |k: &[u8]| {
                            (match &from { Bound::Included(f) => k >= f.as_slice(), Bound::Excluded(f) => k > f.as_slice(), Bound::Unbounded => true })
                            && (match &to { Bound::Included(t) => k <= t.as_slice(), Bound::Excluded(t) => k < t.as_slice(), Bound::Unbounded => true })
                        };
                        let expected: Vec<_> = model.iter().filter(|(k, _)| inside(k)).map(|(k, v)| (k.as_slice(), v.as_slice())).collect();
                        assert_eq!(table.range(borrowed(&from), borrowed(&to)).collect::<Vec<_>>(), expected);
                        // From both ends in turn, as `picks` says.
                        let (mut ours, mut theirs) = (table.range(borrowed(&from), borrowed(&to)), expected.into_iter());
                        for front in &picks {
                            let (a, b) = if *front { (ours.next(), theirs.next()) } else { (ours.next_back(), theirs.next_back()) };
                            assert_eq!(a, b);
                        }
                    }
                    Op::Prefix(prefix) => {
                        let expected: Vec<_> = model.iter().filter(|(k, _)| k.starts_with(&prefix)).map(|(k, v)| (k.as_slice(), v.as_slice())).collect();
                        assert_eq!(table.prefix(&prefix).collect::<Vec<_>>(), expected);
                        assert_eq!(table.prefix(&prefix).rev().count(), table.prefix(&prefix).count());
                    }
                }
                table.check();
                for key in model.keys().take(3) {
                    assert_eq!(table.get(key), model.get(key).map(Vec::as_slice));
                }
            }
            assert!(table.range(Bound::Unbounded, Bound::Unbounded).eq(model.iter().map(|(k, v)| (k.as_slice(), v.as_slice()))));
            assert_eq!(table.get(b"never there"), None);
        }
    }

    #[test]
    fn memory_follows_what_is_in_it() {
        let mut table = OrderedTable::default();
        for i in 0..100_000_u64 {
            table.put(&i.to_be_bytes(), &[1; 16]);
        }
        assert!(table.used_bytes() < 100_000 * 40, "{} B for ascending keys", table.used_bytes());
        assert_eq!(table.remove_below(&50_000_u64.to_be_bytes()), 50_000);
        for i in (50_000..100_000_u64).filter(|i| !i.is_multiple_of(100)) {
            assert!(table.remove(&i.to_be_bytes()));
        }
        assert!(table.used_bytes() < 500 * 100, "{} B for 500 left", table.used_bytes());
    }

    proptest! {
        // What a checkpoint's block says is put in as far as it makes sense; the rest is told, and nothing panics.
        #[test]
        fn any_bytes_are_put_in_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            lengths in prop::collection::vec((0_usize..200, 0_u32..20, 0_u32..20), 0..12),
            block_bits in 6_u8..13,
        ) {
            let mut bytes = bytes;
            // Lengths that fit about, so that reading gets somewhere.
            for (at, key, value) in lengths {
                if let Some(header) = bytes.get_mut(at..at + 8) {
                    header[..4].copy_from_slice(&key.to_le_bytes());
                    header[4..].copy_from_slice(&value.to_le_bytes());
                }
            }
            let (mut model, mut rest, mut whole) = (BTreeMap::new(), bytes.as_slice(), true);
            while whole && !rest.is_empty() {
                let length = |at: usize| rest.get(at..at + 4).map_or(u64::MAX / 4, |b| u64::from(u32::from_le_bytes(b.try_into().unwrap())));
                let (key, value) = (length(0), length(4));
                whole = 8 + key + value <= rest.len() as u64;
                if whole {
                    model.insert(rest[8..][..key as usize].to_vec(), rest[8 + key as usize..][..value as usize].to_vec());
                    rest = &rest[(8 + key + value) as usize..];
                }
            }
            let layout = TableLayout { block_bits, chunk_blocks: 4, ..TableLayout::default() };
            let mut table = OrderedTable::new(&layout, Account::new(Arc::default()));
            prop_assert_eq!(table.put_encoded(&bytes).is_some(), whole);
            table.check();
            prop_assert!(table.range(Bound::Unbounded, Bound::Unbounded).eq(model.iter().map(|(k, v)| (k.as_slice(), v.as_slice()))));
        }
    }
}
