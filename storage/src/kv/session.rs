//! What one thread does with a store.

use std::time::Duration;

use crate::bugs::{self, Bug};
use crate::point::{Entry, RecordRef};
use crate::sync::{Arc, Ordering};

use super::batch::{Groups, KvKeys, KvSlot, hash};
use super::gate::{Batch, Slot};
use super::{BATCH_WAIT_MAX, Inner, KvError, TABLE, check_key, check_value};

/// A numbered sequence of changes, made by one thread at a time. A dropped session is remembered with its last serial and can be resumed.
///
/// Every change of a key has a serial, counted from 1 on; those of a batch in the order of its keys. A batch that returns an error has
/// changed nothing, except after [`KvError::Poisoned`].
pub struct Session {
    inner: Arc<Inner>,
    slot: Arc<Slot>,
    known: u64,
    wait: Duration,
    groups: Groups,
    group: KvKeys,
    entries: Vec<Entry>,
    found: Vec<Option<RecordRef>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(inner: Arc<Inner>, slot: Arc<Slot>) -> Self {
        let (groups, group) = (Groups::default(), KvKeys::default());
        Self { inner, slot, known: 0, wait: BATCH_WAIT_MAX, groups, group, entries: Vec::new(), found: Vec::new() }
    }

    /// Its number, to resume it by.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.slot.id
    }

    /// The serial of its last change; 0 before the first.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.slot.serial()
    }

    /// The serial of its last change that is in a committed checkpoint.
    #[must_use]
    pub fn durable_serial(&self) -> u64 {
        self.slot.durable.load(Ordering::Acquire)
    }

    fn enter<'a>(inner: &Inner, slot: &'a Slot, known: &mut u64, wait: Duration) -> Result<Batch<'a>, KvError> {
        let waited_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        inner.gate.enter(slot, known, wait).ok_or(KvError::Timeout { waited_ms })
    }

    /// The value of a key.
    pub fn read(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let hash = hash(key);
        let batch = Self::enter(&self.inner, &self.slot, &mut self.known, self.wait)?;
        let mut locked = self.inner.lock(self.inner.shard_of(hash), batch.version)?;
        Ok(locked.shard.point(TABLE, self.inner.options.value_bytes).get(hash, key).map(<[u8]>::to_vec))
    }

    /// Calls `f` with the value of a key while its shard stands: without a copy. `f` must not use the store.
    pub fn read_with<T>(&mut self, key: &[u8], f: impl FnOnce(Option<&[u8]>) -> T) -> Result<T, KvError> {
        let hash = hash(key);
        let batch = Self::enter(&self.inner, &self.slot, &mut self.known, self.wait)?;
        let mut locked = self.inner.lock(self.inner.shard_of(hash), batch.version)?;
        Ok(f(locked.shard.point(TABLE, self.inner.options.value_bytes).get(hash, key)))
    }

    /// Sets the value of a key, of any length up to 1 GiB; of the key, below 64 MiB.
    pub fn upsert(&mut self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.inner.has_room()?;
        check_key(key.len())?;
        check_value(value.len())?;
        let hash = hash(key);
        let batch = Self::enter(&self.inner, &self.slot, &mut self.known, self.wait)?;
        let mut locked = self.inner.lock(self.inner.shard_of(hash), batch.version)?;
        let before = locked.shard.used_bytes();
        locked.shard.point(TABLE, self.inner.options.value_bytes).put(hash, key, value);
        self.inner.account(before, locked.shard.used_bytes());
        drop(locked);
        batch.complete(1);
        Ok(())
    }

    /// Changes the value of a key as `f` says: `None` in and out is no value. `f` must not use the store.
    pub fn rmw(&mut self, key: &[u8], f: impl FnOnce(Option<&[u8]>) -> Option<Vec<u8>>) -> Result<(), KvError> {
        self.inner.has_room()?;
        check_key(key.len())?;
        let hash = hash(key);
        let batch = Self::enter(&self.inner, &self.slot, &mut self.known, self.wait)?;
        let mut locked = self.inner.lock(self.inner.shard_of(hash), batch.version)?;
        let before = locked.shard.used_bytes();
        let mut table = locked.shard.point(TABLE, self.inner.options.value_bytes);
        let new = f(table.get(hash, key));
        check_value(new.as_ref().map_or(0, Vec::len))?;
        if bugs::is_on(Bug::RmwBetweenLocks) {
            drop(locked);
            locked = self.inner.lock(self.inner.shard_of(hash), batch.version)?;
            table = locked.shard.point(TABLE, self.inner.options.value_bytes);
        }
        match new {
            Some(value) => drop(table.put(hash, key, &value)),
            None => drop(table.remove(hash, key)),
        }
        self.inner.account(before, locked.shard.used_bytes());
        drop(locked);
        batch.complete(1);
        Ok(())
    }

    /// Removes a key; whether it was there.
    pub fn delete(&mut self, key: &[u8]) -> Result<bool, KvError> {
        let hash = hash(key);
        let batch = Self::enter(&self.inner, &self.slot, &mut self.known, self.wait)?;
        let mut locked = self.inner.lock(self.inner.shard_of(hash), batch.version)?;
        let before = locked.shard.used_bytes();
        let removed = locked.shard.point(TABLE, self.inner.options.value_bytes).remove(hash, key);
        self.inner.account(before, locked.shard.used_bytes());
        drop(locked);
        batch.complete(1);
        Ok(removed)
    }

    /// Collects the keys of one shard.
    fn gather(group: &mut KvKeys, keys: &KvKeys, numbers: &[u32]) {
        group.clear();
        for i in numbers {
            let i = *i as usize;
            group.push_hashed(keys.hashes()[i], keys.key(i));
        }
    }

    /// Calls `f` with each key's number and value, shard by shard: not in the order of the keys. `f` must not use the store.
    pub fn read_batch(&mut self, keys: &KvKeys, mut f: impl FnMut(usize, Option<&[u8]>)) -> Result<(), KvError> {
        let Self { inner, slot, known, wait, groups, group, found, .. } = self;
        groups.of(keys.hashes(), inner.options.shards);
        let batch = Self::enter(inner, slot, known, *wait)?;
        for (shard, numbers) in groups.iter() {
            Self::gather(group, keys, numbers);
            let mut locked = inner.lock(shard, batch.version)?;
            let table = locked.shard.point(TABLE, inner.options.value_bytes);
            found.clear();
            table.find(&group.as_batch(), found);
            for (i, record) in numbers.iter().zip(&*found) {
                f(*i as usize, record.map(|r| table.value(r)));
            }
        }
        Ok(())
    }

    /// Sets the value of each key; `value` tells that of key `i`. Of keys that stand twice the last counts.
    pub fn upsert_batch<'v>(&mut self, keys: &KvKeys, value: impl Fn(usize) -> &'v [u8]) -> Result<(), KvError> {
        let Self { inner, slot, known, wait, groups, group, entries, .. } = self;
        inner.has_room()?;
        check_key(keys.longest_bytes())?;
        (0..keys.len()).try_for_each(|i| check_value(value(i).len()))?;
        groups.of(keys.hashes(), inner.options.shards);
        let width = inner.options.value_bytes;
        let batch = Self::enter(inner, slot, known, *wait)?;
        for (shard, numbers) in groups.iter() {
            Self::gather(group, keys, numbers);
            let mut locked = inner.lock(shard, batch.version)?;
            let before = locked.shard.used_bytes();
            let table = locked.shard.point(TABLE, width);
            if numbers.iter().all(|i| value(*i as usize).len() == width) {
                entries.clear();
                table.entries(&group.as_batch(), entries);
                if entries.iter().all(|e| table.value(e.record).len() == width) {
                    for (i, entry) in numbers.iter().zip(&*entries) {
                        table.value_mut(entry.record).copy_from_slice(value(*i as usize));
                    }
                    inner.account(before, locked.shard.used_bytes());
                    continue;
                }
            }
            // A value of another length moves its record, and with it what was found before.
            for (at, i) in numbers.iter().enumerate() {
                table.put(group.hashes()[at], group.key(at), value(*i as usize));
            }
            inner.account(before, locked.shard.used_bytes());
        }
        batch.complete(keys.len() as u64);
        Ok(())
    }

    /// Changes the value of each key in place, or makes it: `f` gets the key's number and the value, which has the store's `value_bytes`
    /// unless it was set with another length. Keys that stand twice are changed twice, in their order; `f` must not use the store.
    pub fn rmw_batch(&mut self, keys: &KvKeys, mut f: impl FnMut(usize, KvSlot<'_>)) -> Result<(), KvError> {
        let Self { inner, slot, known, wait, groups, group, entries, .. } = self;
        inner.has_room()?;
        check_key(keys.longest_bytes())?;
        groups.of(keys.hashes(), inner.options.shards);
        let batch = Self::enter(inner, slot, known, *wait)?;
        for (shard, numbers) in groups.iter() {
            Self::gather(group, keys, numbers);
            let mut locked = inner.lock(shard, batch.version)?;
            let before = locked.shard.used_bytes();
            let table = locked.shard.point(TABLE, inner.options.value_bytes);
            entries.clear();
            table.entries(&group.as_batch(), entries);
            for (i, entry) in numbers.iter().zip(&*entries) {
                let value = table.value_mut(entry.record);
                f(*i as usize, if entry.is_new { KvSlot::Initial(value) } else { KvSlot::InPlace(value) });
            }
            inner.account(before, locked.shard.used_bytes());
        }
        batch.complete(keys.len() as u64);
        Ok(())
    }

    /// Removes each key; how many were there.
    pub fn delete_batch(&mut self, keys: &KvKeys) -> Result<usize, KvError> {
        let Self { inner, slot, known, wait, groups, .. } = self;
        groups.of(keys.hashes(), inner.options.shards);
        let batch = Self::enter(inner, slot, known, *wait)?;
        let mut removed = 0;
        for (shard, numbers) in groups.iter() {
            let mut locked = inner.lock(shard, batch.version)?;
            let before = locked.shard.used_bytes();
            let table = locked.shard.point(TABLE, inner.options.value_bytes);
            removed += numbers.iter().filter(|i| table.remove(keys.hashes()[**i as usize], keys.key(**i as usize))).count();
            inner.account(before, locked.shard.used_bytes());
        }
        batch.complete(keys.len() as u64);
        Ok(removed)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.inner.sessions().live.remove(&self.slot.id);
    }
}
