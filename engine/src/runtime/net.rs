//! What an epoch changed, as a sink gets it: multiplicities become inserts, updates and deletes.
//!
//! Rows are gathered by key while the epoch runs; when it ends, rows that cancel are left out and the old and the new image of a key
//! become one update. Without a key every row is its own.

use std::cmp::Ordering;
use std::ops::Range;

use arrow::array::{DynComparator, RecordBatch, make_comparator};
use arrow::compute::{SortOptions, interleave_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use hashbrown::HashTable;

use crate::batch::DeltaBatch;
use crate::connect::{ChangelogMode, Changes, Rejected, RowKind};
use crate::error::{Code, Diagnostic, Result};
use crate::key::{KeyCodec, Keys};
use crate::operators::chain::render_row;
use crate::operators::{RowAccounts, SLICE_ROWS};

const NONE: u32 = u32::MAX;
/// How much room an empty net keeps for the next epoch.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// One key that changed in this epoch.
#[derive(Debug)]
struct Slot {
    hash: u64,
    key: Range<usize>,
    /// Its latest change; the earlier ones follow.
    head: u32,
    changes: u32,
}

/// One row that came in.
#[derive(Debug, Clone, Copy)]
struct Change {
    batch: u32,
    row: u32,
    weight: i64,
    next: u32,
}

/// The changes of one epoch on one core, gathered and then drained in slices.
#[derive(Debug)]
pub struct Net {
    mode: ChangelogMode,
    keyed: bool,
    key_codec: KeyCodec,
    keys: Keys,
    batches: Vec<RecordBatch>,
    held_bytes: usize,
    key_bytes: Vec<u8>,
    table: HashTable<u32>,
    slots: Vec<Slot>,
    changes: Vec<Change>,
    /// How many slots are drained.
    drained: usize,
    /// The distinct changes of the keys of one slice that changed more than once, and where each key's end.
    resolved: Vec<Change>,
    resolved_ends: Vec<usize>,
}

/// Rows to write: where each is, and what happened to it.
#[derive(Default)]
struct Picked {
    at: Vec<(usize, usize)>,
    kinds: Vec<RowKind>,
}

impl Picked {
    fn push(&mut self, change: Change, kind: RowKind) {
        self.at.push((change.batch as usize, change.row as usize));
        self.kinds.push(kind);
    }
}

impl Net {
    /// Nets changes of rows of `schema` by the columns `key` (empty: by the whole row) for a sink in `mode` (not `Append`, which needs none).
    pub fn new(schema: &SchemaRef, mode: ChangelogMode, key: &[usize]) -> Result<Self> {
        let all: Vec<usize> = (0..schema.fields().len()).collect();
        let keyed = !key.is_empty();
        if mode == ChangelogMode::Upsert && !keyed {
            return Err(Diagnostic::new(Code::Internal, "an upsert sink has no key"));
        }
        if keyed {
            comparators(&RecordBatch::new_empty(schema.clone()))?;
        }
        Ok(Self {
            mode,
            keyed,
            key_codec: KeyCodec::new(schema, if keyed { key } else { &all })?,
            keys: Keys::default(),
            batches: Vec::new(),
            held_bytes: 0,
            key_bytes: Vec::new(),
            table: HashTable::new(),
            slots: Vec::new(),
            changes: Vec::new(),
            drained: 0,
            resolved: Vec::new(),
            resolved_ends: Vec::new(),
        })
    }

    /// What is held for the running epoch, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
            + self.key_bytes.capacity()
            + self.table.allocation_size()
            + self.slots.capacity() * size_of::<Slot>()
            + self.changes.capacity() * size_of::<Change>()
    }

    /// Takes rows of the running epoch.
    pub fn add(&mut self, batch: DeltaBatch) -> Result<()> {
        let too_many = self.changes.len() + batch.num_rows() >= NONE as usize;
        if too_many {
            return Err(Diagnostic::new(Code::MemoryExceeded, "an epoch changes more than four billion rows")
                .hint("set a shorter epoch interval"));
        }
        self.key_codec.encode(&batch.rows, &mut self.keys)?;
        let at = self.batches.len() as u32;
        for row in 0..batch.num_rows() {
            let (hash, key) = (self.keys.hashes[row], self.keys.as_batch().key(row));
            let (slots, key_bytes) = (&mut self.slots, &mut self.key_bytes);
            let same = |slot: &u32| {
                let slot = &slots[*slot as usize];
                slot.hash == hash && &key_bytes[slot.key.clone()] == key
            };
            let slot = match self.table.find(hash, same) {
                Some(slot) => *slot as usize,
                None => {
                    let start = key_bytes.len();
                    key_bytes.extend_from_slice(key);
                    let new = slots.len() as u32;
                    slots.push(Slot { hash, key: start..key_bytes.len(), head: NONE, changes: 0 });
                    self.table.insert_unique(hash, new, |slot| slots[*slot as usize].hash);
                    new as usize
                }
            };
            let slot = &mut slots[slot];
            let weight = batch.weights.get(row);
            if !self.keyed && slot.head != NONE {
                // Equal keys are equal rows.
                let change = &mut self.changes[slot.head as usize];
                change.weight = change.weight.saturating_add(weight);
                continue;
            }
            self.changes.push(Change { batch: at, row: row as u32, weight, next: slot.head });
            slot.head = self.changes.len() as u32 - 1;
            slot.changes += 1;
        }
        self.held_bytes += batch.charged_bytes();
        self.batches.push(batch.rows);
        Ok(())
    }

    /// The next part of the epoch's net changes; `None` when all is drained and the next epoch may begin. Rows of a declared key that
    /// stands twice go to `rows`.
    pub fn drain(&mut self, rows: &mut RowAccounts) -> Result<Option<Changes>> {
        while self.drained < self.slots.len() {
            let from = self.drained;
            let mut to = from;
            let mut changes = 0;
            while to < self.slots.len() && changes < SLICE_ROWS {
                changes += self.slots[to].changes as usize;
                to += 1;
            }
            self.drained = to;
            let picked = if self.keyed { self.pick_keyed(from..to, rows)? } else { self.pick_rows(from..to)? };
            if !picked.at.is_empty() {
                return self.assemble(&picked).map(Some);
            }
        }
        self.clear();
        Ok(None)
    }

    fn clear(&mut self) {
        self.batches.clear();
        self.held_bytes = 0;
        // Room for an epoch of usual size is kept, that of a large one is given back.
        if self.held_bytes() > KEPT_BYTES_MAX {
            self.key_bytes = Vec::new();
            self.table = HashTable::new();
            self.slots = Vec::new();
            self.changes = Vec::new();
        }
        self.key_bytes.clear();
        self.table.clear();
        self.slots.clear();
        self.changes.clear();
        self.drained = 0;
    }

    fn assemble(&self, picked: &Picked) -> Result<Changes> {
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        let rows = interleave_record_batch(&batches, &picked.at)
            .map_err(|e| Diagnostic::new(Code::Internal, format!("the changes of an epoch can't be put together: {e}")))?;
        let inserts_only = picked.kinds.iter().all(|kind| *kind == RowKind::Insert);
        Ok(Changes { rows, kinds: (!inserts_only).then(|| picked.kinds.clone()) })
    }

    fn pick_rows(&self, slots: Range<usize>) -> Result<Picked> {
        let mut picked = Picked::default();
        for slot in &self.slots[slots] {
            let change = self.changes[slot.head as usize];
            let kind = if change.weight > 0 { RowKind::Insert } else { RowKind::Delete };
            for _ in 0..multiplicity(change.weight)? {
                picked.push(change, kind);
            }
        }
        Ok(picked)
    }

    fn pick_keyed(&mut self, slots: Range<usize>, rows: &mut RowAccounts) -> Result<Picked> {
        let mut picked = Picked::default();
        self.resolve(slots.clone())?;
        let (mut group, mut start) = (0, 0);
        for slot in slots {
            if self.slots[slot].changes == 1 {
                let change = self.changes[self.slots[slot].head as usize];
                self.pick_key(&[change], &mut picked, rows)?;
            } else {
                let end = self.resolved_ends[group];
                self.pick_key(&self.resolved[start..end], &mut picked, rows)?;
                (group, start) = (group + 1, end);
            }
        }
        Ok(picked)
    }

    /// For each slot with several changes, into `resolved`: its distinct rows with the sum of their weights, ascending, without those that
    /// cancel out.
    fn resolve(&mut self, slots: Range<usize>) -> Result<()> {
        self.resolved.clear();
        self.resolved_ends.clear();
        let mut all: Vec<Change> = Vec::new();
        let mut ends = Vec::new();
        for slot in self.slots[slots].iter().filter(|slot| slot.changes > 1) {
            let mut at = slot.head;
            while at != NONE {
                all.push(self.changes[at as usize]);
                at = self.changes[at as usize].next;
            }
            ends.push(all.len());
        }
        if all.is_empty() {
            return Ok(());
        }
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        let at: Vec<(usize, usize)> = all.iter().map(|change| (change.batch as usize, change.row as usize)).collect();
        let rows = interleave_record_batch(&batches, &at).map_err(|e| not_comparable(&e))?;
        let columns = comparators(&rows)?;
        let order = |a: &usize, b: &usize| {
            columns.iter().map(|compare| compare(*a, *b)).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
        };
        let mut group: Vec<usize> = Vec::new();
        let mut start = 0;
        for end in ends {
            group.clear();
            group.extend(start..end);
            group.sort_unstable_by(order);
            let first = self.resolved.len();
            for (i, row) in group.iter().enumerate() {
                match self.resolved.last_mut() {
                    Some(last) if i > 0 && order(&group[i - 1], row).is_eq() => {
                        last.weight = last.weight.saturating_add(all[*row].weight)
                    }
                    _ => self.resolved.push(all[*row]),
                }
            }
            let mut kept = first;
            for i in first..self.resolved.len() {
                if self.resolved[i].weight != 0 {
                    self.resolved[kept] = self.resolved[i];
                    kept += 1;
                }
            }
            self.resolved.truncate(kept);
            self.resolved_ends.push(kept);
            start = end;
        }
        Ok(())
    }

    /// The changes of one key: at most one row goes and one comes. A second row that comes, or one that comes twice, is a duplicate.
    fn pick_key(&self, group: &[Change], picked: &mut Picked, rows: &mut RowAccounts) -> Result<()> {
        let mut gone = group.iter().filter(|change| change.weight < 0);
        let mut came = group.iter().filter(|change| change.weight > 0);
        let (old, new) = (gone.next(), came.next());
        let update = self.mode == ChangelogMode::Retract;
        match (old, new) {
            (Some(old), Some(new)) => {
                if update {
                    picked.push(*old, RowKind::UpdateBefore);
                }
                picked.push(*new, RowKind::UpdateAfter);
            }
            (None, Some(new)) => picked.push(*new, RowKind::Insert),
            (Some(old), None) => picked.push(*old, RowKind::Delete),
            (None, None) => {}
        }
        let twice = new.filter(|new| new.weight > 1).into_iter().map(|new| (new, new.weight - 1));
        for (extra, times) in twice.chain(came.map(|change| (change, change.weight))) {
            for _ in 0..multiplicity(times)? {
                rows.reject(self.duplicate(extra, &rows.node))?;
            }
        }
        Ok(())
    }

    fn duplicate(&self, change: &Change, node: &str) -> Rejected {
        let mut raw = render_row(&self.batches[change.batch as usize], change.row as usize);
        if raw.len() > Rejected::RAW_BYTES_MAX {
            let end = (0..=Rejected::RAW_BYTES_MAX).rev().find(|at| raw.is_char_boundary(*at)).unwrap_or(0);
            raw.truncate(end);
        }
        let message = "two rows of one epoch have the same primary key".to_owned();
        Rejected { code: Code::DuplicateKey, message, origin: node.to_owned(), position: None, raw }
    }
}

/// One comparison of two rows a column.
fn comparators(rows: &RecordBatch) -> Result<Vec<DynComparator>> {
    let columns = rows.columns().iter();
    columns
        .map(|column| make_comparator(column, column, SortOptions::default()))
        .collect::<Result<_, _>>()
        .map_err(|e| not_comparable(&e))
}

fn not_comparable(error: &ArrowError) -> Diagnostic {
    Diagnostic::new(Code::Internal, format!("the changes of an epoch can't be compared: {error}"))
}

/// How often a row of that weight stands in the output.
fn multiplicity(weight: i64) -> Result<u64> {
    const MULTIPLICITY_MAX: u64 = 1 << 32;
    let n = weight.unsigned_abs();
    if n > MULTIPLICITY_MAX {
        return Err(Diagnostic::new(Code::Internal, format!("a row has the multiplicity {weight}")));
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use proptest::prelude::*;

    use super::*;
    use crate::batch::Weights;
    use crate::operators::RowPolicy;

    type Row = (i64, i64);

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("k", DataType::Int64, true),
            Field::new("text", DataType::Utf8, false),
            Field::new("v", DataType::Int64, false),
        ]))
    }

    fn batch(rows: &[(Row, i64)]) -> DeltaBatch {
        let keys: ArrayRef = Arc::new(rows.iter().map(|((k, _), _)| (*k != 0).then_some(*k)).collect::<Int64Array>());
        let texts: ArrayRef = Arc::new(rows.iter().map(|((k, v), _)| Some(format!("{k}-{v}"))).collect::<StringArray>());
        let values: ArrayRef = Arc::new(rows.iter().map(|((_, v), _)| *v).collect::<Int64Array>());
        let weights = Weights::from_vec(rows.iter().map(|(_, weight)| *weight).collect());
        DeltaBatch::new(RecordBatch::try_new(schema(), vec![keys, texts, values]).expect("three columns"), weights)
    }

    /// All changes of the epoch, in order.
    fn drain(net: &mut Net, rows: &mut RowAccounts) -> Result<Vec<(RowKind, Row)>> {
        let mut all = Vec::new();
        while let Some(changes) = net.drain(rows)? {
            let (keys, values) =
                (changes.rows.column(0).as_primitive::<Int64Type>(), changes.rows.column(2).as_primitive::<Int64Type>());
            for row in 0..changes.rows.num_rows() {
                let k = keys.iter().nth(row).flatten().unwrap_or(0);
                let v = values.value(row);
                assert_eq!(changes.rows.column(1).as_string::<i32>().value(row), format!("{k}-{v}"), "columns stay together");
                all.push((changes.kinds.as_ref().map_or(RowKind::Insert, |kinds| kinds[row]), (k, v)));
            }
        }
        assert_eq!((net.changes.len(), net.batches.len()), (0, 0), "the next epoch begins empty");
        Ok(all)
    }

    fn skipping() -> RowAccounts {
        RowAccounts { policy: RowPolicy::Skip, node: "out".to_owned(), ..RowAccounts::default() }
    }

    #[test]
    fn an_update_carries_both_images_and_what_cancels_is_left_out() {
        use RowKind::{Delete, Insert, UpdateAfter, UpdateBefore};
        let input =
            [((1, 10), -1), ((1, 11), 1), ((2, 20), 1), ((3, 30), -1), ((4, 40), 1), ((4, 40), -1), ((1, 11), -1), ((1, 12), 1)];
        for (mode, expected) in [
            (ChangelogMode::Retract, vec![(UpdateBefore, (1, 10)), (UpdateAfter, (1, 12)), (Insert, (2, 20)), (Delete, (3, 30))]),
            (ChangelogMode::Upsert, vec![(UpdateAfter, (1, 12)), (Insert, (2, 20)), (Delete, (3, 30))]),
        ] {
            let mut net = Net::new(&schema(), mode, &[0]).expect("keys");
            for rows in input.chunks(3) {
                net.add(batch(rows)).expect("added");
            }
            assert_eq!(drain(&mut net, &mut RowAccounts::default()), Ok(expected));
        }
    }

    #[test]
    fn without_a_key_rows_stand_as_often_as_they_weigh() {
        let mut net = Net::new(&schema(), ChangelogMode::Retract, &[]).expect("keys");
        net.add(batch(&[((1, 1), 2), ((2, 2), -3), ((0, 0), 1)])).expect("added");
        net.add(batch(&[((2, 2), 1), ((0, 0), -1)])).expect("added");
        let (i, d) = (RowKind::Insert, RowKind::Delete);
        let expected = vec![(i, (1, 1)), (i, (1, 1)), (d, (2, 2)), (d, (2, 2))];
        assert_eq!(drain(&mut net, &mut RowAccounts::default()), Ok(expected));
        assert_eq!(drain(&mut net, &mut RowAccounts::default()), Ok(vec![]));
    }

    #[test]
    fn two_live_rows_of_one_key_follow_the_policy() {
        for mode in [ChangelogMode::Retract, ChangelogMode::Upsert] {
            let mut net = Net::new(&schema(), mode, &[0]).expect("keys");
            let input = batch(&[((1, 11), 1), ((1, 10), 1), ((2, 2), 3), ((3, 3), 1)]);
            net.add(input.clone()).expect("added");
            let failure = drain(&mut net, &mut RowAccounts::default()).expect_err("fails by default");
            assert_eq!(failure.code, Code::DuplicateKey);

            let mut net = Net::new(&schema(), mode, &[0]).expect("keys");
            let mut rows = skipping();
            net.add(input).expect("added");
            let kept = drain(&mut net, &mut rows).expect("skipped");
            assert_eq!(kept, vec![(RowKind::Insert, (1, 10)), (RowKind::Insert, (2, 2)), (RowKind::Insert, (3, 3))]);
            assert_eq!(rows.rejected, vec![(Code::DuplicateKey, 3)], "every row is accounted for");
        }
    }

    #[test]
    fn large_epochs_come_in_slices() {
        let mut net = Net::new(&schema(), ChangelogMode::Upsert, &[0]).expect("keys");
        let n = 3 * SLICE_ROWS as i64;
        let rows: Vec<(Row, i64)> = (1..=n).map(|k| ((k, k), 1)).collect();
        net.add(batch(&rows)).expect("added");
        assert!(net.held_bytes() > 0);
        let mut rows = RowAccounts::default();
        let mut sizes = Vec::new();
        while let Some(changes) = net.drain(&mut rows).expect("drained") {
            sizes.push(changes.rows.num_rows());
        }
        assert_eq!(sizes, vec![SLICE_ROWS; 3]);
    }

    proptest! {
        /// A table of one row a key, changed at random over epochs: what is written always leads to the table, whatever the order of deltas.
        #[test]
        fn written_changes_lead_to_the_table(
            steps in prop::collection::vec(prop::collection::vec((1i64..6, prop::option::of(0i64..4)), 0..12), 1..5),
            shuffle in any::<u64>(),
        ) {
            for mode in [ChangelogMode::Retract, ChangelogMode::Upsert] {
                let mut net = Net::new(&schema(), mode, &[0]).expect("keys");
                let mut table: BTreeMap<i64, i64> = BTreeMap::new();
                let mut written: BTreeMap<i64, i64> = BTreeMap::new();
                for epoch in &steps {
                    let before = table.clone();
                    let mut deltas = Vec::new();
                    for (k, v) in epoch {
                        let old = match v { Some(v) => table.insert(*k, *v), None => table.remove(k) };
                        deltas.extend(old.map(|old| ((*k, old), -1)));
                        deltas.extend(v.map(|v| ((*k, v), 1)));
                    }
                    deltas.sort_by_key(|(row, weight)| (row.0 * 31 + row.1 * 7 + weight).wrapping_mul(shuffle as i64 | 1));
                    for part in deltas.chunks(3) {
                        net.add(batch(part)).expect("added");
                    }
                    let mut changes = drain(&mut net, &mut RowAccounts::default()).expect("no duplicates").into_iter();
                    let mut touched = Vec::new();
                    while let Some((kind, (k, v))) = changes.next() {
                        touched.push(k);
                        match kind {
                            RowKind::Insert => prop_assert_eq!(written.insert(k, v), None),
                            RowKind::Delete => prop_assert_eq!(written.remove(&k), Some(v)),
                            RowKind::UpdateBefore => {
                                prop_assert_eq!(mode, ChangelogMode::Retract);
                                prop_assert_eq!(written.insert(k, v), Some(v));
                                prop_assert!(matches!(changes.next(), Some((RowKind::UpdateAfter, (after, new))) if after == k && written.insert(k, new) == Some(v) && new != v));
                            }
                            RowKind::UpdateAfter => {
                                prop_assert_eq!(mode, ChangelogMode::Upsert);
                                prop_assert!(written.insert(k, v).is_some_and(|old| old != v));
                            }
                        }
                    }
                    prop_assert_eq!(&written, &table);
                    let changed: Vec<i64> = (1..6).filter(|k| before.get(k) != table.get(k)).collect();
                    touched.sort_unstable();
                    prop_assert_eq!(touched, changed, "each changed key once, no other");
                }
            }
        }
    }
}
