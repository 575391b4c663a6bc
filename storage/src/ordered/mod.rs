//! Keys with values, in the order of the keys: timers, sessions, multisets, join sides.
//!
//! A tree of three levels: a list of chunks, each a list of blocks, each some kilobytes of sorted entries. No entry is an allocation of its
//! own; a lookup compares first keys by their first eight bytes, then searches one block.

mod block;
mod snapshot;

use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

use crate::memory::Account;
use crate::point::TableLayout;
use block::{Block, entry_bytes, key_prefix};
pub(crate) use snapshot::OrderedSnapshot;

/// Blocks, shared with snapshots until one is changed.
type Chunk = Arc<Vec<Arc<Block>>>;

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
    allocated_bytes: usize,
    account: Account,
}

/// An entry's place: chunk, block, slot. The end is (number of chunks, 0, 0).
type Place = (usize, usize, usize);

impl Default for OrderedTable {
    /// A table that belongs to no shard.
    fn default() -> Self {
        Self::new(&TableLayout::default(), Account::new(Arc::default()))
    }
}

impl OrderedTable {
    pub(crate) fn new(layout: &TableLayout, account: Account) -> Self {
        let mut table = Self {
            chunks: Vec::new(),
            len: 0,
            block_bytes: 1 << layout.block_bits,
            chunk_blocks: usize::from(layout.chunk_blocks),
            allocated_bytes: 0,
            account,
        };
        table.settle();
        table
    }

    fn settle(&mut self) {
        let directory = self.chunks.capacity() * size_of::<Chunk>();
        self.account.settle(size_of::<Self>() + directory + self.allocated_bytes);
    }

    /// The block that has `key` if any has: the last that begins at or below it, else the first. The table isn't empty.
    #[inline(always)]
    fn block_of(&self, key: &[u8]) -> (usize, usize) {
        let prefix = key_prefix(key);
        let begins_at_or_below = |block: &Arc<Block>| block.first_cmp(key, prefix) != Ordering::Greater;
        let chunk = self.chunks.partition_point(|blocks| begins_at_or_below(&blocks[0])).saturating_sub(1);
        let block = self.chunks[chunk].partition_point(begins_at_or_below).saturating_sub(1);
        (chunk, block)
    }

    /// Runs `f` on a block and accounts for what it allocates or frees.
    fn with_block<R>(&mut self, chunk: usize, block: usize, f: impl FnOnce(&mut Block) -> R) -> R {
        let before = self.chunks[chunk][block].allocated_bytes();
        let block = self.block_mut(chunk, block);
        let result = f(block);
        let after = block.allocated_bytes();
        self.allocated_bytes = self.allocated_bytes - before + after;
        result
    }

    /// A chunk to change; a snapshot that has it keeps what it was.
    fn chunk_mut(&mut self, chunk: usize) -> &mut Vec<Arc<Block>> {
        let before = self.chunk_bytes(chunk);
        let blocks = Arc::make_mut(&mut self.chunks[chunk]);
        // A copy has no spare room.
        self.allocated_bytes = self.allocated_bytes - before + blocks.capacity() * size_of::<Arc<Block>>();
        blocks
    }

    /// A block to change; a snapshot that has it keeps what it was.
    fn block_mut(&mut self, chunk: usize, block: usize) -> &mut Block {
        let block = Arc::make_mut(&mut self.chunk_mut(chunk)[block]);
        block.changes();
        block
    }

    fn chunk_bytes(&self, chunk: usize) -> usize {
        self.chunks[chunk].capacity() * size_of::<Arc<Block>>()
    }

    fn add_chunk(&mut self, at: usize, blocks: Vec<Arc<Block>>) {
        self.chunks.insert(at, Arc::new(blocks));
        self.allocated_bytes += self.chunk_bytes(at);
    }

    /// Puts a block into a chunk, and splits the chunk when that makes it too long.
    fn add_block(&mut self, chunk: usize, at: usize, block: Block) {
        self.allocated_bytes += block.allocated_bytes();
        self.chunk_mut(chunk);
        let before = self.chunk_bytes(chunk);
        self.chunk_mut(chunk).insert(at, Arc::new(block));
        self.allocated_bytes = self.allocated_bytes - before + self.chunk_bytes(chunk);
        let len = self.chunks[chunk].len();
        if len > self.chunk_blocks {
            // Behind the last block of all the next one will come too: leave this chunk full.
            let kept = if at + 1 == len && chunk + 1 == self.chunks.len() { len - 1 } else { len / 2 };
            let blocks = self.chunk_mut(chunk).split_off(kept);
            self.add_chunk(chunk + 1, blocks);
        }
    }

    fn drop_block(&mut self, chunk: usize, block: usize) {
        let gone = self.chunk_mut(chunk).remove(block);
        self.allocated_bytes -= gone.allocated_bytes();
        if self.chunks[chunk].is_empty() {
            self.allocated_bytes -= self.chunk_bytes(chunk);
            self.chunks.remove(chunk);
        } else {
            self.shrink_chunk(chunk);
        }
    }

    /// Gives memory back when few of the places of a chunk are taken.
    fn shrink_chunk(&mut self, chunk: usize) {
        let blocks = &self.chunks[chunk];
        if blocks.len() < blocks.capacity() / 4 {
            self.allocated_bytes -= self.chunk_bytes(chunk);
            let len = self.chunks[chunk].len();
            self.chunk_mut(chunk).shrink_to(2 * len);
            self.allocated_bytes += self.chunk_bytes(chunk);
        }
    }

    /// Sets the value of `key`.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        assert!(u32::try_from(key.len()).is_ok() && u32::try_from(value.len()).is_ok(), "keys and values are shorter than 4 GiB");
        if self.chunks.is_empty() {
            self.add_chunk(0, Vec::with_capacity(1));
            let mut block = Block::with_capacity(entry_bytes(key, value) + SPARE_BYTES);
            block.insert(0, key, value);
            self.add_block(0, 0, block);
            self.len += 1;
            self.settle();
            return;
        }
        let (chunk, block) = self.block_of(key);
        let found = &self.chunks[chunk][block];
        let slot = match found.search(key) {
            Ok(slot) => {
                if found.entry(slot).1.len() == value.len() {
                    self.with_block(chunk, block, |b| b.value_mut(slot).copy_from_slice(value));
                    self.settle();
                    return;
                }
                self.with_block(chunk, block, |b| b.remove(slot));
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

    /// Inserts a key that isn't there at its place. The block may be empty at this moment.
    fn insert_at(&mut self, chunk: usize, block: usize, slot: usize, key: &[u8], value: &[u8]) {
        let size = entry_bytes(key, value);
        let limit = self.block_bytes;
        let target = &self.chunks[chunk][block];
        let len = target.len();
        if len == 0 || target.filled_bytes() + size <= limit {
            self.with_block(chunk, block, |b| b.insert(slot, key, value));
        } else if target.live_bytes() + size <= limit {
            self.with_block(chunk, block, |b| {
                *b = b.part(0, len, size);
                b.insert(slot, key, value);
            });
        } else if slot == len || slot == 0 {
            // Keys that arrive in order fill block after block.
            let mut fresh = Block::with_capacity(size + SPARE_BYTES);
            fresh.insert(0, key, value);
            self.add_block(chunk, if slot == 0 { block } else { block + 1 }, fresh);
        } else {
            let middle = target.middle();
            let (lower, upper) = (target.part(0, middle, 0), target.part(middle, len, 0));
            self.with_block(chunk, block, |b| *b = lower);
            self.add_block(chunk, block + 1, upper);
            // The halves may be too full for it still, when entries differ much in length; each time there are fewer of them.
            let (chunk, block) = self.block_of(key);
            let (Ok(slot) | Err(slot)) = self.chunks[chunk][block].search(key);
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
        let block = &self.chunks[chunk][block];
        block.search(key).ok().map(|slot| block.entry(slot).1)
    }

    /// Forgets `key`; whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        if self.chunks.is_empty() {
            return false;
        }
        let (chunk, block) = self.block_of(key);
        let Ok(slot) = self.chunks[chunk][block].search(key) else { return false };
        self.with_block(chunk, block, |b| b.remove(slot));
        self.len -= 1;
        self.tidy(chunk, block);
        self.settle();
        true
    }

    /// Drops, packs or merges a block that has lost entries.
    fn tidy(&mut self, chunk: usize, block: usize) {
        let limit = self.block_bytes;
        let (len, live, filled) = {
            let b = &self.chunks[chunk][block];
            (b.len(), b.live_bytes(), b.filled_bytes())
        };
        if len == 0 {
            self.drop_block(chunk, block);
            return;
        }
        if live >= filled / 2 {
            return;
        }
        self.with_block(chunk, block, |b| *b = b.part(0, len, SPARE_BYTES));
        let blocks = &self.chunks[chunk];
        if live < limit / 4 {
            let fits = |lower: usize| {
                blocks.get(lower + 1).is_some_and(|upper| blocks[lower].live_bytes() + upper.live_bytes() <= limit * 3 / 4)
            };
            let lower = if fits(block) {
                block
            } else if block > 0 && fits(block - 1) {
                block - 1
            } else {
                return;
            };
            let upper = self.chunk_mut(chunk).remove(lower + 1);
            self.allocated_bytes -= upper.allocated_bytes();
            self.with_block(chunk, lower, |b| {
                *b = b.part(0, b.len(), upper.live_bytes());
                b.append(&upper, 0, upper.len());
            });
            self.shrink_chunk(chunk);
        }
    }

    /// The place of the first entry at or above `key` (above it, if `above`).
    fn place_of(&self, key: &[u8], above: bool) -> Place {
        if self.chunks.is_empty() {
            return (0, 0, 0);
        }
        let (chunk, block) = self.block_of(key);
        let slot = match self.chunks[chunk][block].search(key) {
            Ok(slot) => slot + usize::from(above),
            Err(slot) => slot,
        };
        if slot < self.chunks[chunk][block].len() {
            (chunk, block, slot)
        } else if block + 1 < self.chunks[chunk].len() {
            (chunk, block + 1, 0)
        } else {
            (chunk + 1, 0, 0)
        }
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
        OrderedRange { table: self, front, back }
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
        let (chunk, block) = self.block_of(end);
        let (Ok(slot) | Err(slot)) = self.chunks[chunk][block].search(end);
        let mut gone = slot;
        for blocks in &self.chunks[..chunk] {
            self.allocated_bytes -= blocks.capacity() * size_of::<Arc<Block>>();
            self.allocated_bytes -= blocks.iter().map(|b| b.allocated_bytes()).sum::<usize>();
            gone += blocks.iter().map(|b| b.len()).sum::<usize>();
        }
        for block in &self.chunks[chunk][..block] {
            self.allocated_bytes -= block.allocated_bytes();
            gone += block.len();
        }
        self.chunks.drain(..chunk);
        self.chunk_mut(0).drain(..block);
        self.shrink_chunk(0);
        if slot > 0 {
            self.with_block(0, 0, |b| b.remove_first(slot));
            self.tidy(0, 0);
        }
        self.len -= gone;
        self.settle();
        gone
    }

    /// What the table holds now; takes time for chunks. The table goes on, and copies what it changes.
    pub(crate) fn snapshot(&self) -> OrderedSnapshot {
        OrderedSnapshot::new(self.chunks.clone())
    }

    /// Puts the entries of an encoded block in; `None` when they are none.
    pub(crate) fn put_encoded(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let (lengths, rest) = bytes.split_first_chunk::<8>()?;
            let length = |at: usize| Some(u32::from_le_bytes(lengths[at..at + 4].try_into().ok()?) as usize);
            let (key, rest) = rest.split_at_checked(length(0)?)?;
            let (value, rest) = rest.split_at_checked(length(4)?)?;
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

    /// The memory the table holds.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.account.used_bytes()
    }
}

/// Entries of an [`OrderedTable`] in order; see [`OrderedTable::range`].
#[derive(Clone, Debug)]
pub struct OrderedRange<'s> {
    table: &'s OrderedTable,
    front: Place,
    /// Behind the last.
    back: Place,
}

impl<'s> Iterator for OrderedRange<'s> {
    type Item = (&'s [u8], &'s [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.front >= self.back {
            return None;
        }
        let (chunk, block, slot) = self.front;
        let blocks = &self.table.chunks[chunk];
        let found = &blocks[block];
        self.front = if slot + 1 < found.len() {
            (chunk, block, slot + 1)
        } else if block + 1 < blocks.len() {
            (chunk, block + 1, 0)
        } else {
            (chunk + 1, 0, 0)
        };
        Some(found.entry(slot))
    }
}

impl DoubleEndedIterator for OrderedRange<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        if self.front >= self.back {
            return None;
        }
        let (chunk, block, slot) = self.back;
        self.back = if slot > 0 {
            (chunk, block, slot - 1)
        } else {
            let (chunk, block) = if block > 0 { (chunk, block - 1) } else { (chunk - 1, self.table.chunks[chunk - 1].len() - 1) };
            (chunk, block, self.table.chunks[chunk][block].len() - 1)
        };
        let (chunk, block, slot) = self.back;
        Some(self.table.chunks[chunk][block].entry(slot))
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
                assert!(!blocks.is_empty() && blocks.len() <= self.chunk_blocks);
                for block in blocks.iter() {
                    assert!(block.len() > 0);
                    assert!(block.filled_bytes() <= self.block_bytes || block.len() == 1);
                    assert_eq!(block.first_cmp(block.key(0), key_prefix(block.key(0))), Ordering::Equal);
                    for slot in 0..block.len() {
                        let key = block.key(slot);
                        assert!(previous.is_none_or(|p| p < key));
                        previous = Some(key);
                        len += 1;
                    }
                    assert_eq!(
                        block.live_bytes(),
                        (0..block.len()).map(|s| entry_bytes(block.entry(s).0, block.entry(s).1)).sum::<usize>()
                    );
                }
            }
            assert_eq!(len, self.len);
            let blocks = self.chunks.iter().map(|c| c.capacity() * size_of::<Arc<Block>>()).sum::<usize>();
            let held = self.chunks.iter().flat_map(|c| c.iter()).map(|b| b.allocated_bytes()).sum::<usize>();
            let directory = self.chunks.capacity() * size_of::<Chunk>();
            assert_eq!(self.used_bytes(), size_of::<Self>() + directory + blocks + held);
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
}
