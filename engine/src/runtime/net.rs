//! What an epoch changed, as a sink gets it: multiplicities become inserts, updates and deletes.
//!
//! Rows are gathered by key while the epoch runs; when it ends, rows that cancel are left out and the old and the new image of a key
//! become one update. Without a key every row is its own.

use std::ops::Range;

use arrow::array::RecordBatch;
use arrow::compute::interleave_record_batch;
use arrow::datatypes::SchemaRef;
use hashbrown::HashTable;

use crate::batch::DeltaBatch;
use crate::connect::{ChangelogMode, Changes, Rejected, RowKind};
use crate::error::{Code, Diagnostic, Result};
use crate::key::{KeyCodec, Keys};
use crate::operators::chain::render_row;
use crate::operators::{RowAccounts, SLICE_ROWS};

const NONE: u32 = u32::MAX;

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
    row_codec: KeyCodec,
    keys: Keys,
    batches: Vec<RecordBatch>,
    held_bytes: usize,
    key_bytes: Vec<u8>,
    table: HashTable<u32>,
    slots: Vec<Slot>,
    changes: Vec<Change>,
    /// How many slots are drained.
    drained: usize,
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
        Ok(Self {
            mode,
            keyed,
            key_codec: KeyCodec::new(schema, if keyed { key } else { &all })?,
            row_codec: KeyCodec::new(schema, &all)?,
            keys: Keys::default(),
            batches: Vec::new(),
            held_bytes: 0,
            key_bytes: Vec::new(),
            table: HashTable::new(),
            slots: Vec::new(),
            changes: Vec::new(),
            drained: 0,
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
        let resolved = self.resolve(slots.clone())?;
        let mut resolved = resolved.into_iter();
        let mut group: Vec<Change> = Vec::new();
        for slot in slots {
            group.clear();
            if self.slots[slot].changes == 1 {
                group.push(self.changes[self.slots[slot].head as usize]);
            } else if let Some(several) = resolved.next() {
                group.extend(several);
            }
            self.pick_key(&group, &mut picked, rows)?;
        }
        Ok(picked)
    }

    /// For each slot with several changes: its distinct rows with the sum of their weights, in the order of their encoding, without those
    /// that cancel out.
    fn resolve(&mut self, slots: Range<usize>) -> Result<Vec<Vec<Change>>> {
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
            return Ok(Vec::new());
        }
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        let at: Vec<(usize, usize)> = all.iter().map(|change| (change.batch as usize, change.row as usize)).collect();
        let rows = interleave_record_batch(&batches, &at)
            .map_err(|e| Diagnostic::new(Code::Internal, format!("the changes of an epoch can't be compared: {e}")))?;
        self.row_codec.encode(&rows, &mut self.keys)?;
        let keys = self.keys.as_batch();
        let mut start = 0;
        let mut resolved = Vec::with_capacity(ends.len());
        for end in ends {
            let mut order: Vec<usize> = (start..end).collect();
            order.sort_by(|a, b| keys.key(*a).cmp(keys.key(*b)));
            let mut distinct: Vec<Change> = Vec::with_capacity(2);
            let mut previous = None;
            for i in order {
                match (previous, distinct.last_mut()) {
                    (Some(before), Some(last)) if keys.key(before) == keys.key(i) => {
                        last.weight = last.weight.saturating_add(all[i].weight);
                    }
                    _ => distinct.push(all[i]),
                }
                previous = Some(i);
            }
            distinct.retain(|change| change.weight != 0);
            resolved.push(distinct);
            start = end;
        }
        Ok(resolved)
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

/// How often a row of that weight stands in the output.
fn multiplicity(weight: i64) -> Result<u64> {
    const MULTIPLICITY_MAX: u64 = 1 << 32;
    let n = weight.unsigned_abs();
    if n > MULTIPLICITY_MAX {
        return Err(Diagnostic::new(Code::Internal, format!("a row has the multiplicity {weight}")));
    }
    Ok(n)
}
