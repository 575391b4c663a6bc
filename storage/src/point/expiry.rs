//! Records that live for a time: each has a moment after which it isn't there any more.
//!
//! ```text
//! value of a record: what its user sees · expires_at_us (i64, little endian, 8 bytes)
//! ```
//! The table's owner tells the time, of events or of the processor as it likes; the time never goes back. A record whose moment has come is
//! hidden from then on. Its memory, or its place on the device, is given back later: when its page is compacted, when its page would be
//! written, or by the sweep of the owner's turns. Each record that goes so is counted once.

use super::log::{HAS_OLDER, LIVE, Lengths, RECORD_BYTES_MIN};
use super::{BUCKETS_AHEAD, Entry, KeyBatch, PointTable, RECORDS_AHEAD, RecordRef};

/// Bytes of the moment behind each value.
pub(crate) const STAMP_BYTES: usize = 8;
/// Records that one turn of the sweep visits.
pub(crate) const SWEPT_A_TURN: usize = 256;

/// How long records live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeToLive {
    /// From the last write on, or from the making; above 0.
    pub ttl_us: u64,
    /// Whether a write to a record that is there begins its time anew.
    pub renewed_by_writes: bool,
}

/// What an expiring table has besides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expiry {
    rule: TimeToLive,
    now_us: i64,
    expired: u64,
    /// Where the sweep goes on: the number and slot of a page, and an offset.
    swept: (u64, usize, usize),
}

impl Expiry {
    pub(super) fn new(rule: TimeToLive) -> Self {
        Self { rule, now_us: i64::MIN, expired: 0, swept: (0, 0, 0) }
    }

    fn stamp(&self) -> i64 {
        debug_assert!(self.now_us > i64::MIN, "the time is told before the first record is made");
        self.now_us.saturating_add_unsigned(self.rule.ttl_us)
    }
}

/// The moment of a value as it is stored; what is too short to have one never expires.
#[inline(always)]
pub(super) fn stamp_of(value: &[u8]) -> i64 {
    value.last_chunk().map_or(i64::MAX, |stamp| i64::from_le_bytes(*stamp))
}

/// A stored value without its moment.
#[inline(always)]
fn visible(value: &[u8]) -> &[u8] {
    value.split_last_chunk::<STAMP_BYTES>().map_or(value, |(visible, _)| visible)
}

impl PointTable {
    /// Makes the table's records expire. Called before the first record is made or adopted records are used; a rule that is there stays but
    /// for how long later writes live.
    pub(crate) fn expire_by(&mut self, rule: TimeToLive) {
        match &mut self.expiry {
            Some(expiry) => expiry.rule = rule,
            None => self.expiry = Some(Expiry::new(rule)),
        }
    }

    /// Whether a stored value's moment has come; never without a rule.
    #[inline(always)]
    pub(super) fn has_expired(&self, value: &[u8]) -> bool {
        self.expiry.is_some_and(|e| stamp_of(value) <= e.now_us)
    }

    /// What a user sees of a stored value, if anything.
    #[inline(always)]
    pub(super) fn shown<'v>(&self, value: &'v [u8]) -> Option<&'v [u8]> {
        match &self.expiry {
            None => Some(value),
            Some(expiry) => (stamp_of(value) > expiry.now_us).then(|| visible(value)),
        }
    }

    /// Bytes that a value takes besides what its user sees.
    #[inline(always)]
    pub(super) fn stamp_bytes(&self) -> usize {
        if self.expiry.is_some() { STAMP_BYTES } else { 0 }
    }

    /// Writes a value as its user sees it into a record that has room for it, and its moment behind it. `old_stamp`: that of the record it
    /// replaces, if there was one that hadn't expired.
    pub(super) fn set_value(&mut self, at: u64, value: &[u8], old_stamp: Option<i64>) {
        let Some(expiry) = &self.expiry else {
            self.log.value_mut(at).copy_from_slice(value);
            return;
        };
        let stamp = match old_stamp {
            Some(old) if !expiry.rule.renewed_by_writes => old,
            // Time doesn't go back, but rules may become shorter: what was promised to a record holds.
            Some(old) => old.max(expiry.stamp()),
            None => expiry.stamp(),
        };
        let stored = self.log.value_mut(at);
        stored[..value.len()].copy_from_slice(value);
        stored[value.len()..].copy_from_slice(&stamp.to_le_bytes());
        self.log.note_stamp(at, stamp);
    }

    /// The moment of a record that is there and hasn't expired.
    pub(super) fn live_stamp(&self, value: &[u8]) -> Option<i64> {
        let expiry = self.expiry.as_ref()?;
        let stamp = stamp_of(value);
        (stamp > expiry.now_us).then_some(stamp)
    }

    pub(super) fn count_expired(&mut self, records: u64) {
        if let Some(expiry) = &mut self.expiry {
            expiry.expired += records;
        }
    }

    /// Forgets a record that has expired.
    fn drop_expired(&mut self, hash: u64, at: u64) {
        let older = self.has_older(at);
        self.forget(hash, at, older);
        self.count_expired(1);
    }

    /// Of the page that would be written next: forgets what has expired, unless older pages hold records of its keys, of which a tombstone
    /// would have to tell; those go when the page is compacted. Whether the page needn't be written any more.
    pub(super) fn drop_expired_unwritten(&mut self) -> bool {
        let Some(now_us) = self.expiry.map(|e| e.now_us) else { return false };
        let Some((slot, used)) = self.log.next_unwritten_slot() else { return false };
        let mut offset = 0;
        while offset + RECORD_BYTES_MIN <= used {
            let at = self.log.address(slot, offset);
            let lengths = self.log.lengths(at);
            if lengths.is(LIVE) && !lengths.is(HAS_OLDER) && stamp_of(self.log.value(at)) <= now_us {
                let hash = self.log.hash(at);
                if self.index.contains(hash, at) {
                    self.index.remove(hash, at);
                    self.log.free_sealed(slot, lengths.size());
                    self.count_expired(1);
                    if self.log.next_unwritten_slot().is_none_or(|(next, _)| next != slot) {
                        // It was the last: the page is gone.
                        return true;
                    }
                }
            }
            offset += lengths.size();
        }
        false
    }

    /// One step of the sweep: looks at up to `records` records in memory that can be changed, or of pages on which all have expired, and
    /// forgets what has expired.
    pub(crate) fn sweep(&mut self, records: usize) {
        let Some(mut expiry) = self.expiry else { return };
        if self.open_scans.get() > 0 || self.index.len() == 0 {
            return;
        }
        let (mut number, mut slot, mut offset) = expiry.swept;
        let mut pages_left = self.log.pages.len();
        let mut left = records;
        while left > 0 && pages_left > 0 {
            let page = self.log.pages.get(slot).filter(|p| p.in_use && p.number == number && p.number >= self.log.sealed_below);
            match page.map(|p| p.used) {
                Some(used) if offset + RECORD_BYTES_MIN <= used => {
                    let at = self.log.address(slot, offset);
                    let lengths = self.log.lengths(at);
                    if lengths.is(LIVE) && stamp_of(self.log.value(at)) <= expiry.now_us {
                        let hash = self.log.hash(at);
                        self.drop_expired(hash, at);
                    }
                    offset += lengths.size();
                    left -= 1;
                }
                _ => {
                    slot = if slot + 1 < self.log.pages.len() { slot + 1 } else { 0 };
                    number = self.log.pages.get(slot).map_or(0, |p| p.number);
                    (offset, pages_left) = (0, pages_left - 1);
                }
            }
        }
        expiry.swept = (number, slot, offset);
        if let Some(own) = &mut self.expiry {
            own.swept = expiry.swept;
        }
        self.compact();
        self.settle();
    }
}

/// A point table whose records expire, for its user: values are seen without their moments, and what has expired isn't seen.
#[derive(Debug)]
pub struct ExpiringTable<'a> {
    table: &'a mut PointTable,
}

impl<'a> ExpiringTable<'a> {
    /// The table has a rule.
    pub(crate) fn new(table: &'a mut PointTable) -> Self {
        Self { table }
    }

    /// Tells the time, before the first record is made, and from then on as it goes. References to records given out before are void. A time before the last one told is taken for that one.
    pub fn advance(&mut self, now_us: i64) {
        if let Some(expiry) = &mut self.table.expiry {
            expiry.now_us = expiry.now_us.max(now_us);
        }
    }

    /// How many records have expired and were forgotten; of those that are only hidden nobody knows.
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.table.expiry.map_or(0, |e| e.expired)
    }

    /// How many records there are, hidden ones included.
    #[must_use]
    pub fn stored_len(&self) -> usize {
        self.table.len()
    }

    /// Asks for the memory of later keys of a batch.
    fn ahead(&self, keys: &KeyBatch<'_>, i: usize) {
        if let Some(hash) = keys.hashes.get(i + BUCKETS_AHEAD) {
            self.table.index.prefetch(*hash);
        }
        if let Some(hash) = keys.hashes.get(i + RECORDS_AHEAD) {
            self.table.log.prefetch(self.table.index.candidate(*hash));
        }
    }

    /// Finds each key, or makes it with a value of zeros, as [`PointTable::entries`] does. One that has expired is made anew.
    pub fn entries(&mut self, keys: &KeyBatch<'_>, out: &mut Vec<Entry>) {
        out.reserve(keys.len());
        let width = self.table.value_width;
        for i in 0..keys.len() {
            self.ahead(keys, i);
            let (hash, key) = (keys.hashes[i], keys.key(i));
            let found = self.table.locate(hash, key);
            let live = found.filter(|at| !self.table.has_expired(self.table.log.value(*at)));
            let entry = match live {
                Some(at) => Entry { record: RecordRef(at), is_new: false },
                None => {
                    self.table.count_expired(u64::from(found.is_some()));
                    Entry { record: RecordRef(self.table.make_stamped(hash, key, width, found)), is_new: true }
                }
            };
            out.push(entry);
        }
        self.table.settle();
    }

    /// Finds each key that hasn't expired.
    pub fn find(&self, keys: &KeyBatch<'_>, out: &mut Vec<Option<RecordRef>>) {
        let from = out.len();
        self.table.find(keys, out);
        for found in &mut out[from..] {
            *found = found.filter(|r| !self.table.has_expired(self.table.value(*r)));
        }
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, hash: u64, key: &[u8]) -> Option<&[u8]> {
        self.table.get(hash, key).and_then(|value| self.table.shown(value))
    }

    /// The key of a record.
    #[must_use]
    pub fn key(&self, record: RecordRef) -> &[u8] {
        self.table.key(record)
    }

    /// The value of a record.
    #[must_use]
    pub fn value(&self, record: RecordRef) -> &[u8] {
        visible(self.table.value(record))
    }

    /// The moment of a record.
    #[must_use]
    pub fn expires_at_us(&self, record: RecordRef) -> i64 {
        stamp_of(self.table.value(record))
    }

    /// The value of a record, to change in place: a write.
    pub fn value_mut(&mut self, record: RecordRef) -> &mut [u8] {
        let at = self.table.writable(record);
        if let Some(expiry) = &self.table.expiry
            && expiry.rule.renewed_by_writes
        {
            let stamp = expiry.stamp().max(stamp_of(self.table.log.value(at)));
            if let Some(last) = self.table.log.value_mut(at).last_chunk_mut() {
                *last = stamp.to_le_bytes();
            }
            self.table.log.note_stamp(at, stamp);
        }
        let value = self.table.log.value_mut(at);
        let len = value.len().saturating_sub(STAMP_BYTES);
        &mut value[..len]
    }

    /// Sets the value of `key`, of any length; the record may move.
    pub fn put(&mut self, hash: u64, key: &[u8], value: &[u8]) -> RecordRef {
        RecordRef(self.table.put_stamped(hash, key, value))
    }

    /// Forgets `key`; whether it was there.
    pub fn remove(&mut self, hash: u64, key: &[u8]) -> bool {
        let was_live = self.get(hash, key).is_some();
        let was_stored = self.table.remove(hash, key);
        self.table.count_expired(u64::from(was_stored && !was_live));
        was_live
    }

    /// Appends records that haven't expired, out of up to `max`; see [`PointTable::scan`].
    pub fn scan(&self, cursor: u64, max: usize, out: &mut Vec<RecordRef>) -> Option<u64> {
        let mut found = Vec::new();
        let next = self.table.scan(cursor, max, &mut found);
        out.extend(found.into_iter().filter(|r| !self.table.has_expired(self.table.value(*r))));
        next
    }

    /// Gives up a scan that returned a cursor and won't be continued.
    pub fn end_scan(&self) {
        self.table.end_scan();
    }
}

impl PointTable {
    /// A new record with a value of zeros, in place of one that has expired if one was found. Moves no record, so that references to others
    /// stay what they are.
    fn make_stamped(&mut self, hash: u64, key: &[u8], width: usize, found: Option<u64>) -> u64 {
        let at = match found {
            Some(at) if self.log.lengths(at).value() == width && !self.log.is_sealed(at) => {
                self.log.value_mut(at).fill(0);
                at
            }
            Some(at) => {
                let flags = if self.has_older(at) { HAS_OLDER } else { 0 };
                self.index.remove(hash, at);
                self.log.free(at);
                self.add(hash, key, width, flags)
            }
            None => self.add(hash, key, width, 0),
        };
        if let Some(stamp) = self.expiry.as_ref().map(Expiry::stamp) {
            if let Some(last) = self.log.value_mut(at).last_chunk_mut() {
                *last = stamp.to_le_bytes();
            }
            self.log.note_stamp(at, stamp);
        }
        at
    }

    /// [`put`](Self::put) of a value as its user sees it.
    fn put_stamped(&mut self, hash: u64, key: &[u8], value: &[u8]) -> u64 {
        let stored = value.len() + self.stamp_bytes();
        let found = self.locate(hash, key);
        let old_stamp = found.and_then(|at| self.live_stamp(self.log.value(at)));
        self.count_expired(u64::from(found.is_some() && old_stamp.is_none() && self.expiry.is_some()));
        let address = self.place_for(hash, key, stored, found);
        self.set_value(address, value, old_stamp);
        self.settle();
        address
    }

    /// The time by which records have expired; `None` where none does.
    pub(super) fn expires_by(&self) -> Option<i64> {
        self.expiry.map(|e| e.now_us)
    }
}

/// The latest moment of the records in a page's bytes.
pub(super) fn latest_stamp(page: &[u8]) -> i64 {
    let (mut latest, mut offset) = (i64::MIN, 0);
    while let Some(lengths) = Lengths::at(page, offset) {
        let Some(record) = offset.checked_add(lengths.size()).and_then(|end| page.get(offset..end)) else { break };
        if lengths.is(LIVE)
            && let Some((_, _, value)) = super::pending::parts(record)
        {
            latest = latest.max(stamp_of(value));
        }
        offset += record.len();
    }
    latest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        Answer, Device, NoRoom, OpenAt, Operation, Shard, ShardOptions, SimDevice, StoreOptions, Submitted, TableId, TableLayout,
        Ticket,
    };

    const TABLE: TableId = TableId(4);
    const WIDTH: usize = 8;
    const LAYOUT: TableLayout =
        TableLayout { page_bits: 9, index_bits: 2, segment_bits: 8, tag_bits: 24, block_bits: 7, chunk_blocks: 4 };

    #[derive(Clone, Debug)]
    enum Op {
        /// Adds to the first byte.
        Entries(Vec<u8>, u8),
        Put(u8, u8, u8),
        Find(Vec<u8>),
        Remove(u8),
        Submit(u8, u8, u8),
        Advance(u8),
        Scan,
        Turns(u8),
        Checkpoint,
        Recover,
    }

    fn op() -> impl Strategy<Value = Op> {
        let keys = || prop::collection::vec(0_u8..250, 1..30);
        prop_oneof![
            8 => (keys(), any::<u8>()).prop_map(|(k, add)| Op::Entries(k, add)),
            6 => (0_u8..250, any::<u8>(), 0_u8..40).prop_map(|(k, byte, len)| Op::Put(k, byte, len)),
            5 => keys().prop_map(Op::Find),
            3 => (0_u8..250).prop_map(Op::Remove),
            8 => (0_u8..250, 0_u8..4, any::<u8>()).prop_map(|(k, what, byte)| Op::Submit(k, what, byte)),
            5 => (0_u8..60).prop_map(Op::Advance),
            2 => Just(Op::Scan),
            5 => (1_u8..9).prop_map(Op::Turns),
            1 => Just(Op::Checkpoint),
            1 => Just(Op::Recover),
        ]
    }

    /// What a user sees of an expiring table, told by a map.
    #[derive(Clone, Default)]
    struct Model {
        now_us: i64,
        records: BTreeMap<u8, (Vec<u8>, i64)>,
    }

    impl Model {
        fn get(&self, key: u8) -> Option<&Vec<u8>> {
            self.records.get(&key).filter(|(_, until)| *until > self.now_us).map(|(value, _)| value)
        }

        fn set(&mut self, key: u8, value: Vec<u8>, rule: TimeToLive) {
            let until = match self.records.get(&key).filter(|(_, until)| *until > self.now_us) {
                Some((_, until)) if !rule.renewed_by_writes => *until,
                _ => self.now_us + rule.ttl_us as i64,
            };
            self.records.insert(key, (value, until));
        }
    }

    fn hash(key: u8) -> u64 {
        (u64::from(key) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    /// A simulated disk that outlives its shard.
    #[derive(Clone, Debug)]
    struct Disk(Arc<Mutex<SimDevice>>);

    impl Disk {
        fn lock(&self) -> std::sync::MutexGuard<'_, SimDevice> {
            self.0.lock().unwrap()
        }
    }

    impl Device for Disk {
        fn submit(&mut self, op: crate::DeviceOp) -> crate::Token {
            self.lock().submit(op)
        }

        fn poll(&mut self, done: &mut Vec<crate::Completion>) {
            self.lock().poll(done);
        }

        fn wait(&mut self, timeout: Duration) {
            self.lock().wait(timeout);
        }
    }

    struct Fixture {
        disk: Disk,
        shard: Shard,
        rule: TimeToLive,
        model: Model,
        /// What a recovery gives back.
        committed: Option<Model>,
        version: u64,
        stored: bool,
    }

    impl Fixture {
        fn options(budget_bytes: usize) -> (ShardOptions, StoreOptions) {
            (ShardOptions { budget_bytes }, StoreOptions { shard: 1, segment_bytes: 16 << 10, batch_bytes: 2 << 10 })
        }

        fn new(rule: TimeToLive, stored: bool) -> Self {
            let (options, store) = Self::options(24 << 10);
            let disk = Disk(Arc::new(Mutex::new(SimDevice::new(5))));
            let shard = if stored {
                Shard::open(options, LAYOUT, Box::new(disk.clone()), store, 2, OpenAt::Newest).unwrap().0
            } else {
                Shard::with_layout(options, LAYOUT)
            };
            let mut made = Self { disk, shard, rule, model: Model::default(), committed: None, version: 0, stored };
            made.table().advance(0);
            made
        }

        fn table(&mut self) -> ExpiringTable<'_> {
            self.shard.expiring(TABLE, WIDTH, self.rule)
        }

        fn patiently<T>(&mut self, mut call: impl FnMut(&mut Shard) -> Result<T, NoRoom>) -> T {
            for _ in 0..2000 {
                if let Ok(done) = call(&mut self.shard) {
                    return done;
                }
                self.shard.maintain().unwrap();
                self.shard.complete_pending(Duration::from_millis(1));
            }
            panic!("no room in 2000 attempts: {} B", self.shard.used_bytes());
        }

        fn drain(&mut self) -> Vec<(Ticket, Answer)> {
            let mut done = Vec::new();
            for _ in 0..5000 {
                if self.shard.pending() == 0 {
                    break;
                }
                self.shard.complete_pending(Duration::from_millis(1));
                self.shard.maintain().unwrap();
            }
            assert_eq!(self.shard.pending(), 0);
            self.shard.take_completed(&mut done);
            done.into_iter().map(|(ticket, answer)| (ticket, answer.unwrap())).collect()
        }

        fn apply(&mut self, op: Op) {
            let width = Shard::expiring_width(WIDTH);
            match op {
                Op::Entries(keys, add) => {
                    let (bytes, offsets): (Vec<u8>, Vec<u32>) = (keys.clone(), (0..=keys.len() as u32).collect());
                    let hashes: Vec<u64> = keys.iter().map(|k| hash(*k)).collect();
                    let batch = KeyBatch { bytes: &bytes, offsets: &offsets, hashes: &hashes };
                    let mut table = self.table();
                    let mut entries = Vec::new();
                    table.entries(&batch, &mut entries);
                    for (key, entry) in keys.iter().zip(entries) {
                        let before = self.model.get(*key).cloned();
                        assert_eq!(entry.is_new, before.is_none(), "key {key}");
                        let mut expected = before.unwrap_or_else(|| vec![0; WIDTH]);
                        let mut table = self.shard.expiring(TABLE, WIDTH, self.rule);
                        assert_eq!(
                            (table.key(entry.record), table.value(entry.record)),
                            ([*key].as_slice(), expected.as_slice())
                        );
                        let value = table.value_mut(entry.record);
                        if let (Some(first), Some(wanted)) = (value.first_mut(), expected.first_mut()) {
                            *first = first.wrapping_add(add);
                            *wanted = wanted.wrapping_add(add);
                        }
                        self.model.set(*key, expected, self.rule);
                        let until = self.model.records[key].1;
                        assert_eq!(self.table().expires_at_us(entry.record), until);
                    }
                }
                Op::Put(key, byte, len) => {
                    let value = vec![byte; len.into()];
                    self.table().put(hash(key), &[key], &value);
                    self.model.set(key, value, self.rule);
                }
                Op::Find(keys) => {
                    let (bytes, offsets): (Vec<u8>, Vec<u32>) = (keys.clone(), (0..=keys.len() as u32).collect());
                    let hashes: Vec<u64> = keys.iter().map(|k| hash(*k)).collect();
                    let mut found = Vec::new();
                    self.table().find(&KeyBatch { bytes: &bytes, offsets: &offsets, hashes: &hashes }, &mut found);
                    for (key, record) in keys.iter().zip(found) {
                        let expected = self.model.get(*key).cloned();
                        let table = self.table();
                        assert_eq!(record.map(|r| table.value(r).to_vec()), expected, "key {key}");
                        assert_eq!(table.get(hash(*key), &[*key]).map(<[u8]>::to_vec), expected, "key {key}");
                    }
                }
                Op::Remove(key) => {
                    let expected = self.model.get(key).is_some();
                    assert_eq!(self.table().remove(hash(key), &[key]), expected);
                    self.model.records.remove(&key);
                }
                Op::Submit(key, what, byte) => {
                    self.table();
                    let before = self.model.get(key).cloned();
                    let made = move |old: Option<&[u8]>| {
                        old.map_or_else(|| vec![byte], |v| [v, &[byte]].concat()[..(v.len() + 1).min(30)].to_vec())
                    };
                    let expected = match what {
                        0 => Answer::Value(before),
                        1 | 2 => {
                            let value = if what == 1 { vec![byte; 12] } else { made(before.as_deref()) };
                            self.model.set(key, value, self.rule);
                            Answer::Done { existed: before.is_some() }
                        }
                        _ => {
                            self.model.records.remove(&key);
                            Answer::Done { existed: before.is_some() }
                        }
                    };
                    let submitted = self.patiently(|shard| {
                        let operation = match what {
                            0 => Operation::Read,
                            1 => Operation::Upsert(vec![byte; 12]),
                            #[expect(clippy::redundant_closure, reason = "without it the box would borrow")]
                            2 => Operation::Rmw(Box::new(move |old| made(old))),
                            _ => Operation::Delete,
                        };
                        shard.submit(TABLE, width, hash(key), &[key], operation)
                    });
                    match submitted {
                        Submitted::Done(answer) => assert_eq!(answer, expected, "key {key}"),
                        Submitted::Pending(ticket) => assert_eq!(self.drain(), [(ticket, expected)], "key {key}"),
                    }
                }
                Op::Advance(us) => {
                    self.model.now_us += i64::from(us);
                    let now_us = self.model.now_us;
                    self.table().advance(now_us);
                    // Time doesn't go back.
                    self.table().advance(now_us - 50);
                }
                Op::Scan => {
                    let (mut cursor, mut seen) = (Some(0), BTreeMap::new());
                    while let Some(at) = cursor {
                        let mut found = Vec::new();
                        let table = self.table();
                        cursor = table.scan(at, 7, &mut found);
                        for record in found {
                            assert!(seen.insert(table.key(record)[0], table.value(record).to_vec()).is_none());
                        }
                    }
                    let expected: BTreeMap<_, _> =
                        self.model.records.keys().filter_map(|k| Some((*k, self.model.get(*k)?.clone()))).collect();
                    assert_eq!(seen, expected);
                }
                Op::Turns(turns) => {
                    for _ in 0..turns {
                        self.shard.maintain().unwrap();
                        self.shard.complete_pending(Duration::ZERO);
                    }
                }
                Op::Checkpoint if self.stored => {
                    self.version += 1;
                    self.shard.checkpoint_now(self.version, b"").unwrap();
                    self.committed = Some(self.model.clone());
                }
                Op::Recover if self.stored => {
                    let (options, store) = Self::options(24 << 10);
                    let after = self.disk.lock().crash(self.version);
                    self.disk = Disk(Arc::new(Mutex::new(after)));
                    self.shard = Shard::open(options, LAYOUT, Box::new(self.disk.clone()), store, 2, OpenAt::Newest).unwrap().0;
                    self.model = self.committed.clone().unwrap_or_default();
                    let now_us = self.model.now_us;
                    self.table().advance(now_us);
                }
                Op::Checkpoint | Op::Recover => {}
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

        #[test]
        fn an_expiring_table_behaves_as_a_map_whose_records_end(
            ops in prop::collection::vec(op(), 1..120),
            ttl_us in 1_u64..100,
            renewed_by_writes in any::<bool>(),
            stored in any::<bool>(),
        ) {
            let mut fixture = Fixture::new(TimeToLive { ttl_us, renewed_by_writes }, stored);
            for op in ops {
                fixture.apply(op);
            }
            fixture.apply(Op::Scan);
            // When everything has expired everything goes, and is counted.
            let (gone, before) = (fixture.model.now_us + 1000, fixture.table().expired());
            let stored = fixture.table().stored_len() as u64;
            fixture.table().advance(gone);
            for _ in 0..3000 {
                fixture.shard.maintain().unwrap();
                fixture.shard.complete_pending(Duration::from_millis(1));
                if fixture.table().stored_len() == 0 {
                    break;
                }
            }
            prop_assert_eq!(fixture.table().stored_len(), 0);
            prop_assert_eq!(fixture.table().expired() - before, stored);
        }
    }

    #[test]
    fn memory_of_expired_records_comes_back_without_their_keys_being_asked_for() {
        let mut shard = Shard::new(ShardOptions { budget_bytes: usize::MAX });
        let rule = TimeToLive { ttl_us: 1000, renewed_by_writes: true };
        let mut most = 0;
        for second in 0..200_u64 {
            let mut table = shard.expiring(TABLE, 8, rule);
            table.advance(second as i64 * 100);
            for i in 0..200_u64 {
                let key = second * 200 + i;
                table.put(key.wrapping_mul(0x9E37_79B9_7F4A_7C15), &key.to_be_bytes(), &[1; 8]);
            }
            for _ in 0..8 {
                shard.maintain().unwrap();
            }
            if second > 50 {
                most = most.max(shard.used_bytes());
            }
        }
        // Ten "seconds" of 200 records live; a record takes 48 bytes and its index entry.
        assert!(most < 6 * 2000 * 64 && shard.expiring(TABLE, 8, rule).expired() > 30_000, "{most} B");
    }
}
