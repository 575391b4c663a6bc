//! One core's state: tables behind small integer ids, counted against one budget.

use std::collections::BTreeMap;
use std::ops::Bound;

use hashbrown::{HashMap, HashTable};

/// Names a table of a shard. The caller gives out the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId(pub u64);

/// Where a record of a [`PointTable`] lies. Valid until that table's next `remove`, `clear` or `put`; inserting by `entries` keeps it valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordRef(u64);

/// What [`PointTable::entries`] found.
#[derive(Clone, Copy, Debug)]
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
    pub fn key(&self, i: usize) -> &'a [u8] {
        &self.bytes[self.offsets[i] as usize..self.offsets[i + 1] as usize]
    }
}

/// Bounds of a shard.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// How many bytes its tables may hold together. The owner asks [`Shard::used_bytes`] and pushes back; a single call never fails for it.
    pub budget_bytes: usize,
}

/// One core's state. Not shared, not locked: its owner works through `&mut`.
#[derive(Debug)]
pub struct Shard {
    options: ShardOptions,
    point: HashMap<TableId, PointTable>,
    ordered: HashMap<TableId, OrderedTable>,
}

impl Shard {
    /// An empty shard in memory.
    #[must_use]
    pub fn new(options: ShardOptions) -> Self {
        Self { options, point: HashMap::new(), ordered: HashMap::new() }
    }

    /// The budget it was made with.
    #[must_use]
    pub fn budget_bytes(&self) -> usize {
        self.options.budget_bytes
    }

    /// What all tables hold now, with their indexes.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.point.values().map(PointTable::used_bytes).sum::<usize>()
            + self.ordered.values().map(OrderedTable::used_bytes).sum::<usize>()
    }

    /// The point table `id`, made on first use. `value_width`: bytes of each value made by `entries`; the same at every call.
    pub fn point(&mut self, id: TableId, value_width: usize) -> &mut PointTable {
        self.point.entry(id).or_insert_with(|| PointTable::new(value_width))
    }

    /// The ordered table `id`, made on first use.
    pub fn ordered(&mut self, id: TableId) -> &mut OrderedTable {
        self.ordered.entry(id).or_default()
    }

    /// Forgets a table and frees what it holds; nothing happens when there is none.
    pub fn drop_table(&mut self, id: TableId) {
        self.point.remove(&id);
        self.ordered.remove(&id);
    }
}

const HEADER: usize = 16; // hash u64, key length u32, value length u32

/// Keys with values, found by hash. Batch calls first.
#[derive(Debug)]
pub struct PointTable {
    value_width: usize,
    index: HashTable<u64>,
    log: Vec<u8>,
    dead_bytes: usize,
}

impl PointTable {
    fn new(value_width: usize) -> Self {
        Self { value_width, index: HashTable::new(), log: Vec::new(), dead_bytes: 0 }
    }

    fn hash_at(log: &[u8], at: u64) -> u64 {
        let at = at as usize;
        u64::from_le_bytes(log[at..at + 8].try_into().expect("eight bytes"))
    }

    fn lengths(&self, at: u64) -> (usize, usize) {
        let at = at as usize;
        let key = u32::from_le_bytes(self.log[at + 8..at + 12].try_into().expect("four bytes"));
        let value = u32::from_le_bytes(self.log[at + 12..at + 16].try_into().expect("four bytes"));
        (key as usize, value as usize)
    }

    fn append(log: &mut Vec<u8>, hash: u64, key: &[u8], value_len: usize) -> u64 {
        let at = log.len() as u64;
        log.extend_from_slice(&hash.to_le_bytes());
        log.extend_from_slice(&u32::try_from(key.len()).expect("a key is shorter than 4 GiB").to_le_bytes());
        log.extend_from_slice(&u32::try_from(value_len).expect("a value is shorter than 4 GiB").to_le_bytes());
        log.extend_from_slice(key);
        let end = (log.len() + value_len).next_multiple_of(8);
        log.resize(end, 0);
        at
    }

    fn locate(&self, hash: u64, key: &[u8]) -> Option<u64> {
        let (log, lengths) = (&self.log, |at| self.lengths(at).0);
        self.index
            .find(hash, |at| {
                Self::hash_at(log, *at) == hash && {
                    let start = *at as usize + HEADER;
                    lengths(*at) == key.len() && &log[start..start + key.len()] == key
                }
            })
            .copied()
    }

    /// Finds each key, or makes it with a value of zeros; one entry a key, in order. A key that stands twice gets the same record.
    pub fn entries(&mut self, keys: &KeyBatch<'_>, out: &mut Vec<Entry>) {
        for i in 0..keys.len() {
            let (hash, key) = (keys.hashes[i], keys.key(i));
            let (at, is_new) = match self.locate(hash, key) {
                Some(at) => (at, false),
                None => {
                    let at = Self::append(&mut self.log, hash, key, self.value_width);
                    let log = &self.log;
                    self.index.insert_unique(hash, at, |at| Self::hash_at(log, *at));
                    (at, true)
                }
            };
            out.push(Entry { record: RecordRef(at), is_new });
        }
    }

    /// Finds each key.
    pub fn find(&self, keys: &KeyBatch<'_>, out: &mut Vec<Option<RecordRef>>) {
        out.extend((0..keys.len()).map(|i| self.locate(keys.hashes[i], keys.key(i)).map(RecordRef)));
    }

    /// The key of a record.
    #[must_use]
    pub fn key(&self, record: RecordRef) -> &[u8] {
        let (key, _) = self.lengths(record.0);
        let start = record.0 as usize + HEADER;
        &self.log[start..start + key]
    }

    /// The hash of a record's key.
    #[must_use]
    pub fn hash(&self, record: RecordRef) -> u64 {
        Self::hash_at(&self.log, record.0)
    }

    /// The value of a record.
    #[must_use]
    pub fn value(&self, record: RecordRef) -> &[u8] {
        let (key, value) = self.lengths(record.0);
        let start = record.0 as usize + HEADER + key;
        &self.log[start..start + value]
    }

    /// The value of a record, to change in place.
    pub fn value_mut(&mut self, record: RecordRef) -> &mut [u8] {
        let (key, value) = self.lengths(record.0);
        let start = record.0 as usize + HEADER + key;
        &mut self.log[start..start + value]
    }

    /// Sets the value of `key`, of any length; the record may move.
    pub fn put(&mut self, hash: u64, key: &[u8], value: &[u8]) -> RecordRef {
        if let Some(at) = self.locate(hash, key) {
            let (_, old) = self.lengths(at);
            if old == value.len() {
                self.value_mut(RecordRef(at)).copy_from_slice(value);
                return RecordRef(at);
            }
            self.remove(hash, key);
        }
        let at = Self::append(&mut self.log, hash, key, value.len());
        let start = at as usize + HEADER + key.len();
        self.log[start..start + value.len()].copy_from_slice(value);
        let log = &self.log;
        self.index.insert_unique(hash, at, |at| Self::hash_at(log, *at));
        RecordRef(at)
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, hash: u64, key: &[u8]) -> Option<&[u8]> {
        self.locate(hash, key).map(|at| self.value(RecordRef(at)))
    }

    /// Forgets `key`; whether it was there.
    pub fn remove(&mut self, hash: u64, key: &[u8]) -> bool {
        let Some(at) = self.locate(hash, key) else { return false };
        let (key_len, value_len) = self.lengths(at);
        self.dead_bytes += HEADER + key_len + value_len;
        if let Ok(entry) = self.index.find_entry(hash, |other| *other == at) {
            entry.remove();
        }
        true
    }

    /// Appends up to `max` live records to `out`, going on behind `cursor` (0 at first); the next cursor, or `None` at the end. Records
    /// made meanwhile may or may not be seen.
    pub fn scan(&self, cursor: u64, max: usize, out: &mut Vec<RecordRef>) -> Option<u64> {
        let mut at = cursor;
        let mut left = max;
        while (at as usize) < self.log.len() {
            if left == 0 {
                return Some(at);
            }
            let (key, value) = self.lengths(at);
            let hash = Self::hash_at(&self.log, at);
            if self.index.find(hash, |other| *other == at).is_some() {
                out.push(RecordRef(at));
                left -= 1;
            }
            at = (at as usize + HEADER + key + value).next_multiple_of(8) as u64;
        }
        None
    }

    /// How many keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// What the table holds, with its index.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.log.capacity() + self.index.allocation_size()
    }
}

/// Keys with values, in the order of the keys' bytes.
#[derive(Debug, Default)]
pub struct OrderedTable {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    bytes: usize,
}

impl OrderedTable {
    /// Sets the value of `key`.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.bytes += key.len() + value.len();
        if let Some(old) = self.rows.insert(key.to_vec(), value.to_vec()) {
            self.bytes -= key.len() + old.len();
        }
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.rows.get(key).map(Vec::as_slice)
    }

    /// Forgets `key`; whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        match self.rows.remove(key) {
            Some(old) => {
                self.bytes -= key.len() + old.len();
                true
            }
            None => false,
        }
    }

    /// Keys and values between two keys, ascending; reversible.
    pub fn range<'s>(&'s self, from: Bound<&[u8]>, to: Bound<&[u8]>) -> impl DoubleEndedIterator<Item = (&'s [u8], &'s [u8])> {
        self.rows.range::<[u8], _>((from, to)).map(|(k, v)| (k.as_slice(), v.as_slice()))
    }

    /// Keys that begin with `prefix`, ascending; reversible.
    pub fn prefix<'s>(&'s self, prefix: &[u8]) -> impl DoubleEndedIterator<Item = (&'s [u8], &'s [u8])> {
        let mut end = prefix.to_vec();
        while end.last() == Some(&0xFF) {
            end.pop();
        }
        let to = match end.last_mut() {
            Some(last) => {
                *last += 1;
                Bound::Excluded(end)
            }
            None => Bound::Unbounded,
        };
        self.rows
            .range::<[u8], _>((Bound::Included(prefix), to.as_ref().map(Vec::as_slice)))
            .map(|(k, v)| (k.as_slice(), v.as_slice()))
    }

    /// Forgets all keys below `end`; how many there were.
    pub fn remove_below(&mut self, end: &[u8]) -> usize {
        let kept = self.rows.split_off(end);
        let gone = std::mem::replace(&mut self.rows, kept);
        self.bytes -= gone.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
        gone.len()
    }

    /// How many keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// What the table holds; 64 bytes a key are charged for the tree.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.bytes + self.rows.len() * 64
    }
}
