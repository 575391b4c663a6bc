//! Groups that an epoch has changed, each once, and their slots from before: what an old row is made of that has to be taken back.
//!
//! In a shard in memory groups are named by reference. In one with a device references end with the turn, so there they are named by key: a
//! group whose record went to the device and came back is still the same one.

use std::ops::Range;

use tiderace_storage::{KeyBatch, PointTable, RecordRef, Shard, TableId};

use super::OpCx;
use super::aggregate::aggregates::OPERATOR_SCRATCH_AT;
use super::aggregate::numeric::array;
use crate::error::{Code, Diagnostic, Result};
use crate::key::Keys;

/// See the module. The default is of tables in memory.
#[derive(Debug, Default)]
pub(super) struct Touched {
    names: Names,
    before: Vec<u8>,
}

#[derive(Debug)]
enum Names {
    References(Vec<RecordRef>),
    Keys(Keys),
}

impl Default for Names {
    fn default() -> Self {
        Self::References(Vec::new())
    }
}

impl Touched {
    /// None yet, of tables of this shard.
    pub(super) fn none(shard: &Shard) -> Self {
        let names = if shard.has_device() { Names::Keys(Keys::default()) } else { Names::References(Vec::new()) };
        Self { names, before: Vec::new() }
    }

    /// Takes all, and leaves none.
    pub(super) fn take(&mut self) -> Self {
        let names = match self.names {
            Names::References(_) => Names::References(Vec::new()),
            Names::Keys(_) => Names::Keys(Keys::default()),
        };
        std::mem::replace(self, Self { names, before: Vec::new() })
    }

    /// Forgets all. A rare large epoch does not hold its memory for ever.
    pub(super) fn clear(&mut self) {
        match &mut self.names {
            Names::References(records) => {
                records.clear();
                records.shrink_to(1 << 16);
            }
            Names::Keys(keys) => {
                keys.clear();
                keys.bytes.shrink_to(1 << 20);
                keys.offsets.shrink_to(1 << 16);
                keys.hashes.shrink_to(1 << 16);
            }
        }
        self.before.clear();
        self.before.shrink_to(1 << 22);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match &self.names {
            Names::References(records) => records.len(),
            Names::Keys(keys) => keys.hashes.len(),
        }
    }

    /// Notes groups that the epoch touches for the first time, with their slots (`slot_width` bytes at the start of their values) as they are.
    /// The operator's scratch in a slot says where its group stands; it is believed only when that one is really there.
    pub(super) fn note(&mut self, table: &mut PointTable, records: &[RecordRef], slot_width: usize) {
        for record in records {
            let place = u32::from_le_bytes(array(table.value(*record), OPERATOR_SCRATCH_AT)) as usize;
            let next = self.len();
            match &mut self.names {
                Names::References(touched) => {
                    if touched.get(place) == Some(record) {
                        continue;
                    }
                    touched.push(*record);
                }
                Names::Keys(keys) => {
                    let key = table.key(*record);
                    if place < next && keys.key(place) == key {
                        continue;
                    }
                    keys.push(key, table.hash(*record));
                }
            }
            let slot = table.value_mut(*record);
            slot[OPERATOR_SCRATCH_AT..OPERATOR_SCRATCH_AT + 4].copy_from_slice(&(next as u32).to_le_bytes());
            self.before.extend_from_slice(&slot[..slot_width]);
        }
    }

    /// The slots of some from before, one behind the other.
    pub(super) fn before(&self, which: Range<usize>, slot_width: usize) -> &[u8] {
        &self.before[which.start * slot_width..which.end * slot_width]
    }

    /// Asks for the records of some; `false`: they are on their way from the device, ask again.
    pub(super) fn fetch(&self, which: Range<usize>, table: TableId, record_width: usize, cx: &mut OpCx<'_>) -> bool {
        match &self.names {
            Names::References(_) => true,
            Names::Keys(keys) => cx.fetch(table, record_width, &some(keys, which)),
        }
    }

    /// The records of some. No group may have been removed since it was noted.
    pub(super) fn records(&self, which: Range<usize>, table: &PointTable, out: &mut Vec<RecordRef>) -> Result<()> {
        out.clear();
        match &self.names {
            Names::References(records) => out.extend_from_slice(&records[which]),
            Names::Keys(keys) => {
                let mut found = Vec::with_capacity(which.len());
                table.find(&some(keys, which), &mut found);
                let count = found.len();
                out.extend(found.into_iter().flatten());
                if out.len() < count {
                    let message = format!("{} of {count} groups that were changed can't be read", count - out.len());
                    return Err(Diagnostic::new(Code::StateUnavailable, message).hint("look at the disk of the state directory"));
                }
            }
        }
        Ok(())
    }
}

fn some(keys: &Keys, which: Range<usize>) -> KeyBatch<'_> {
    KeyBatch { bytes: &keys.bytes, offsets: &keys.offsets[which.start..=which.end], hashes: &keys.hashes[which] }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tiderace_storage::{Entry, ShardOptions, SimDevice, StoreOptions, TableLayout};

    use super::*;

    const TABLE: TableId = TableId(1);
    const WIDTH: usize = 64;

    fn in_memory() -> Shard {
        Shard::new(ShardOptions { budget_bytes: 1 << 20 })
    }

    fn on_device() -> Shard {
        let options = ShardOptions { budget_bytes: 4 << 20 };
        let device = Box::new(SimDevice::new(7));
        Shard::with_device(options, TableLayout::for_device(), device, StoreOptions::default()).unwrap()
    }

    fn keys(which: Range<u64>) -> Keys {
        let mut keys = Keys::default();
        for number in which {
            let key = number.to_be_bytes();
            keys.push(&key, crate::key::hash(&key));
        }
        keys
    }

    /// Counts up the first word of the slots of these groups, as an operator does for a batch.
    fn touch(shard: &mut Shard, touched: &mut Touched, which: Range<u64>) {
        let table = shard.point(TABLE, WIDTH);
        let mut entries: Vec<Entry> = Vec::new();
        table.entries(&keys(which).as_batch(), &mut entries);
        let records: Vec<RecordRef> = entries.iter().map(|e| e.record).collect();
        touched.note(table, &records, WIDTH);
        for record in records {
            table.value_mut(record)[0] += 1;
        }
    }

    fn turn(shard: &mut Shard) {
        if shard.has_device() {
            shard.maintain().unwrap();
            shard.complete_pending(std::time::Duration::from_millis(1));
        }
    }

    fn check(mut shard: Shard) {
        let mut touched = Touched::none(&shard);
        for begin in 0..12 {
            touch(&mut shard, &mut touched, begin * 5_000..begin * 5_000 + 5_000);
            turn(&mut shard);
        }
        assert_eq!(touched.take().len(), 60_000);
        // The next epoch: old scratch is in all slots, and means nothing.
        for begin in 0..200_u64 {
            touch(&mut shard, &mut touched, begin * 50..begin * 50 + 100);
            touch(&mut shard, &mut touched, 15_000..15_010);
            turn(&mut shard);
        }
        assert_eq!(touched.len(), 10_050 + 10);
        let mut records = Vec::new();
        let table = shard.point(TABLE, WIDTH);
        touched.records(10_000..10_060, table, &mut records).unwrap();
        assert_eq!(table.key(records[0]), 9_990_u64.to_be_bytes());
        assert_eq!(table.value(records[0])[0], 3);
        assert_eq!(shard.has_device(), shard.store_counts().pages_waited_for > 0);
        assert!(touched.before(0..10_060, WIDTH).chunks(WIDTH).all(|slot| slot[0] == 1), "each is as it was before the epoch");
    }

    #[test]
    fn a_group_is_noted_once_an_epoch_with_its_slot_from_before() {
        check(in_memory());
    }

    #[test]
    fn a_group_that_went_to_the_device_and_came_back_is_the_same_one() {
        check(on_device());
    }
}
