//! What a group keeps outside its slot: different values with their weights, ordered multisets, sketches.
//!
//! Entries begin with the group's number (8 bytes, big endian; it stands in the slot), so the vnode of an entry is that of its group, not of
//! its own hash.

use std::collections::HashSet;

use arrow::array::{Array, ArrayRef, BooleanArray};
use arrow::compute::SortOptions;
use tiderace_storage::{Entry, PointTable, Shard, TableId};

use super::numeric::array;
use super::recent::RecentValues;
use super::sketch;
use super::state::{WeightSlice, each_row};
use crate::batch::Weights;
use crate::error::{Code, Diagnostic, Result};
use crate::key::ordinal::{View, numbers, ordinal_of};
use crate::key::{Keys, RowCodec};

/// The most filters over one column that share a table: the bits of a word.
pub(crate) const LANES_MAX: usize = 64;
/// How many entries a sweep visits at once.
const SWEEP_ENTRIES: usize = 8192;

/// The different values of one column in each group, with a weight for each FILTER that calls have over it.
///
/// Growing input: a bit for each lane, set when the value was seen. Else a weight for each; a value is there while its weight is positive.
#[derive(Debug)]
pub(crate) struct DistinctSet {
    pub(crate) column: usize,
    /// The FILTER of each lane.
    pub(crate) lanes: Vec<Option<usize>>,
    append_only: bool,
    table: TableId,
    codec: RowCodec,
    recent: RecentValues,
    sweep: Sweep,
    /// Which rows matter, where not all do.
    selected: Vec<u32>,
    keys: Keys,
    entries: Vec<Entry>,
    active: Vec<u64>,
    /// Growing input: the lanes for which a row brings a new value.
    fresh: Vec<u64>,
    /// Else: what a row adds to the number of values, by lane.
    deltas: Vec<Vec<i64>>,
    /// New entries less removed ones, by group of the batch.
    pub(crate) entry_tally: Vec<i64>,
    /// Entries below zero, by group of the batch.
    pub(crate) negative_tally: Vec<i64>,
}

impl DistinctSet {
    pub(crate) fn new(column: usize, append_only: bool, table: TableId, codec: RowCodec) -> Self {
        Self {
            column,
            lanes: Vec::new(),
            append_only,
            table,
            codec,
            recent: RecentValues::default(),
            sweep: Sweep::default(),
            selected: Vec::new(),
            keys: Keys::default(),
            entries: Vec::new(),
            active: Vec::new(),
            fresh: Vec::new(),
            deltas: Vec::new(),
            entry_tally: Vec::new(),
            negative_tally: Vec::new(),
        }
    }

    /// The table of entries, and the bytes of their values.
    pub(crate) fn table(&self) -> (TableId, usize) {
        (self.table, self.value_width())
    }

    /// The keys of the entries of all rows, for who wants to look at them beforehand.
    pub(crate) fn keys_of(&self, column: &ArrayRef, ids: &[u64], keys: &mut Keys) -> Result<()> {
        self.codec.clone().encode(std::slice::from_ref(column), column.len(), Some(ids), keys)
    }

    fn value_width(&self) -> usize {
        if self.append_only { 8 } else { 8 * self.lanes.len() }
    }

    /// Marks the lanes that each row counts for, and encodes the values of rows that count at all behind the number of their group; then
    /// [`apply`](Self::apply) has work.
    pub(crate) fn encode(&mut self, column: &ArrayRef, filters: &[Option<BooleanArray>], ids: &[u64]) -> Result<()> {
        self.activate(filters, column.len());
        self.leave_out_known(column, ids)?;
        if self.selected.len() == column.len() {
            return self.codec.encode(std::slice::from_ref(column), column.len(), Some(ids), &mut self.keys);
        }
        let indices = arrow::array::UInt32Array::from(self.selected.clone());
        let values = arrow::compute::take(column, &indices, None)
            .map_err(|e| Diagnostic::new(Code::Internal, format!("values can't be selected: {e}")))?;
        let ids: Vec<u64> = self.selected.iter().map(|row| ids[*row as usize]).collect();
        self.codec.encode(&[values], ids.len(), Some(&ids), &mut self.keys)
    }

    /// The rows that may bring a new value, ascending, by what was seen lately alone.
    pub(crate) fn select_unknown(
        &mut self,
        column: &ArrayRef,
        filters: &[Option<BooleanArray>],
        groups: &[u64],
    ) -> Result<&[u32]> {
        self.activate(filters, column.len());
        self.leave_out_known(column, groups)?;
        Ok(&self.selected)
    }

    /// Of the rows that count, leaves out those that can bring nothing new.
    fn leave_out_known(&mut self, column: &ArrayRef, ids: &[u64]) -> Result<()> {
        if !self.append_only || ordinal_of(column.data_type()) != Some(View::Ordinal64) || !self.recent.is_on() {
            return Ok(());
        }
        let values = numbers(column, View::Ordinal64)?;
        let values = values.as_i64();
        let nulls = column.nulls().filter(|nulls| nulls.null_count() > 0);
        let Self { recent, active, selected, .. } = self;
        selected.retain(|row| {
            let row = *row as usize;
            // NULL has no number; there is one entry for it.
            nulls.is_some_and(|nulls| nulls.is_null(row)) || !recent.is_known(ids[row], values[row], active[row])
        });
        Ok(())
    }

    /// The same with keys made by the caller: a row's group and value.
    pub(crate) fn encode_by(&mut self, filters: &[Option<BooleanArray>], rows: usize, keys: &mut Keys) {
        self.activate(filters, rows);
        self.selected.clear();
        self.selected.extend(0..rows as u32);
        std::mem::swap(&mut self.keys, keys);
    }

    fn activate(&mut self, filters: &[Option<BooleanArray>], rows: usize) {
        let always: u64 = filters.iter().enumerate().filter(|(_, f)| f.is_none()).map(|(lane, _)| 1 << lane).sum();
        self.active.clear();
        self.active.resize(rows, always);
        for (lane, filter) in filters.iter().enumerate() {
            let Some(filter) = filter else { continue };
            let both = filter.nulls().map(|n| filter.values() & n.inner());
            let bits = both.as_ref().unwrap_or_else(|| filter.values());
            for (active, bit) in self.active.iter_mut().zip(bits) {
                *active |= u64::from(bit) << lane;
            }
        }
        self.selected.clear();
        if always != 0 {
            self.selected.extend(0..rows as u32);
        } else {
            self.selected.extend((0..rows as u32).filter(|row| self.active[*row as usize] != 0));
        }
    }

    /// Brings the rows in; `groups` says which of the batch's `count` groups a row belongs to.
    pub(crate) fn apply(&mut self, shard: &mut Shard, groups: &[u32], count: usize, weights: &Weights) {
        let rows = groups.len();
        let table = shard.point(self.table, self.value_width());
        self.entries.clear();
        if !self.selected.is_empty() {
            table.entries(&self.keys.as_batch(), &mut self.entries);
        }
        self.entry_tally.clear();
        self.entry_tally.resize(count, 0);
        for (entry, row) in self.entries.iter().zip(&self.selected) {
            self.entry_tally[groups[*row as usize] as usize] += i64::from(entry.is_new);
        }
        if self.append_only {
            self.fresh.clear();
            self.fresh.resize(rows, 0);
            for (entry, row) in self.entries.iter().zip(&self.selected) {
                let seen = u64::from_le_bytes(array(table.value(entry.record), 0));
                let fresh = self.active[*row as usize] & !seen;
                if fresh != 0 {
                    table.value_mut(entry.record)[..8].copy_from_slice(&(seen | fresh).to_le_bytes());
                    self.fresh[*row as usize] = fresh;
                }
            }
            return;
        }
        self.negative_tally.clear();
        self.negative_tally.resize(count, 0);
        self.deltas.resize_with(self.lanes.len(), Vec::new);
        for lane in &mut self.deltas {
            lane.clear();
            lane.resize(rows, 0);
        }
        let mut zero = Vec::new();
        for (i, (entry, row)) in self.entries.iter().zip(&self.selected).enumerate() {
            let (row, weight) = (*row as usize, weights.get(*row as usize));
            let value = table.value_mut(entry.record);
            for (lane, delta) in self.deltas.iter_mut().enumerate() {
                if self.active[row] >> lane & 1 == 1 {
                    let before = i64::from_le_bytes(array(value, 8 * lane));
                    let after = before.wrapping_add(weight);
                    value[8 * lane..8 * lane + 8].copy_from_slice(&after.to_le_bytes());
                    delta[row] = i64::from(after > 0) - i64::from(before > 0);
                    self.negative_tally[groups[row] as usize] += i64::from(after < 0) - i64::from(before < 0);
                }
            }
            if value.iter().all(|b| *b == 0) {
                zero.push(i);
            }
        }
        // A value may have come back behind its zero, and may stand twice.
        zero.retain(|i| table.value(self.entries[*i].record).iter().all(|b| *b == 0));
        for i in zero {
            if table.remove(self.keys.hashes[i], self.keys.key(i)) {
                self.entry_tally[groups[self.selected[i] as usize] as usize] -= 1;
            }
        }
    }

    /// The weights of the rows of the last batch for a lane: 1 where a value appears in its group, −1 where it vanishes.
    pub(crate) fn weights_of(&self, lane: usize, out: &mut Vec<i64>) {
        out.clear();
        if self.append_only {
            out.extend(self.fresh.iter().map(|f| (f >> lane & 1) as i64));
        } else {
            out.extend_from_slice(&self.deltas[lane]);
        }
    }

    /// Forgets a group that still had so many entries; they are swept later.
    pub(crate) fn forget(&mut self, id: u64, entries: i64) {
        if entries > 0 {
            self.sweep.dead.insert(id);
            self.sweep.dead_entries += entries as usize;
        }
    }

    /// Removes entries of dead groups, a limited number a call, once there are more of them than of others.
    pub(crate) fn sweep(&mut self, shard: &mut Shard) {
        let table = shard.point(self.table, self.value_width());
        self.sweep.step(table);
    }
}

#[derive(Debug, Default)]
struct Sweep {
    dead: HashSet<u64>,
    dead_entries: usize,
    /// The groups whose entries the current pass removes, and where it is.
    dying: HashSet<u64>,
    cursor: u64,
}

impl Sweep {
    fn step(&mut self, table: &mut PointTable) {
        if self.dying.is_empty() {
            if self.dead.is_empty() || self.dead_entries * 2 < table.len() {
                return;
            }
            self.dying = std::mem::take(&mut self.dead);
            self.dead_entries = 0;
            self.cursor = 0;
        }
        let mut records = Vec::with_capacity(SWEEP_ENTRIES);
        let next = table.scan(self.cursor, SWEEP_ENTRIES, &mut records);
        let mut keys = Keys::default();
        for record in records {
            let key = table.key(record);
            if self.dying.contains(&u64::from_be_bytes(array(key, 0))) {
                keys.push(key, table.hash(record));
            }
        }
        for (i, hash) in keys.hashes.iter().enumerate() {
            table.remove(*hash, keys.key(i));
        }
        match next {
            Some(cursor) => self.cursor = cursor,
            None => self.dying = HashSet::new(),
        }
    }
}

/// The rows of each group in an order, each with its weight.
#[derive(Debug)]
pub(crate) struct Multiset {
    /// The order's columns, then the value's.
    pub(crate) columns: Vec<(usize, SortOptions)>,
    /// The index of the source of weights.
    pub(crate) source: usize,
    pub(crate) table: TableId,
    pub(crate) codec: RowCodec,
    keys: Keys,
    /// Entries below zero, by group of the batch.
    pub(crate) negative_tally: Vec<i64>,
}

impl Multiset {
    pub(crate) fn new(columns: Vec<(usize, SortOptions)>, source: usize, table: TableId, codec: RowCodec) -> Self {
        Self { columns, source, table, codec, keys: Keys::default(), negative_tally: Vec::new() }
    }

    pub(crate) fn apply(
        &mut self,
        shard: &mut Shard,
        arrays: &[ArrayRef],
        ids: &[u64],
        groups: &[u32],
        count: usize,
        weights: WeightSlice<'_>,
    ) -> Result<()> {
        self.codec.encode_unhashed(arrays, groups.len(), Some(ids), &mut self.keys)?;
        self.negative_tally.clear();
        self.negative_tally.resize(count, 0);
        let table = shard.ordered(self.table);
        let keys = &self.keys;
        let tally = &mut self.negative_tally;
        each_row(groups, weights, |row, group, weight| {
            if weight == 0 {
                return;
            }
            let key = keys.key(row);
            let before = table.get(key).map_or(0, |v| i64::from_le_bytes(array(v, 0)));
            let after = before.wrapping_add(weight);
            if after == 0 {
                table.remove(key);
            } else {
                table.put(key, &after.to_le_bytes());
            }
            tally[group] += i64::from(after < 0) - i64::from(before < 0);
        });
        Ok(())
    }

    /// Appends the first or the last row of a group, without the group's number; nothing if there is none.
    pub(crate) fn end(&self, shard: &mut Shard, id: u64, last: bool, out: &mut Vec<u8>) {
        let prefix = id.to_be_bytes();
        let mut rows = shard.ordered(self.table).prefix(&prefix);
        if let Some((key, _)) = if last { rows.next_back() } else { rows.next() } {
            out.extend_from_slice(&key[8..]);
        }
    }

    /// All rows of a group in order: weight `i64`, length `u32`, bytes.
    pub(crate) fn all(&self, shard: &mut Shard, id: u64, out: &mut Vec<u8>) {
        for (key, weight) in shard.ordered(self.table).prefix(&id.to_be_bytes()) {
            out.extend_from_slice(weight);
            out.extend_from_slice(&((key.len() - 8) as u32).to_le_bytes());
            out.extend_from_slice(&key[8..]);
        }
    }

    pub(crate) fn forget(&self, shard: &mut Shard, id: u64) {
        let table = shard.ordered(self.table);
        let keys: Vec<Vec<u8>> = table.prefix(&id.to_be_bytes()).map(|(key, _)| key.to_vec()).collect();
        for key in keys {
            table.remove(&key);
        }
    }
}

/// A sketch of the different values of each group.
#[derive(Debug)]
pub(crate) struct SketchSet {
    pub(crate) column: usize,
    pub(crate) source: usize,
    pub(crate) table: TableId,
    codec: RowCodec,
    keys: Keys,
}

impl SketchSet {
    pub(crate) fn new(column: usize, source: usize, table: TableId, codec: RowCodec) -> Self {
        Self { column, source, table, codec, keys: Keys::default() }
    }

    pub(crate) fn apply(
        &mut self,
        shard: &mut Shard,
        array: &ArrayRef,
        group_ids: &[u64],
        groups: &[u32],
        weights: WeightSlice<'_>,
    ) -> Result<()> {
        self.codec.encode(std::slice::from_ref(array), groups.len(), None, &mut self.keys)?;
        let table = shard.point(self.table, sketch::REGISTERS);
        let mut entries = Vec::with_capacity(group_ids.len());
        table.entries(&id_keys(group_ids).as_batch(), &mut entries);
        let hashes = &self.keys.hashes;
        each_row(groups, weights, |row, group, weight| {
            if weight > 0 {
                sketch::add(table.value_mut(entries[group].record), hashes[row]);
            }
        });
        Ok(())
    }

    pub(crate) fn estimate(&self, shard: &mut Shard, id: u64) -> i64 {
        let id = id.to_be_bytes();
        shard.point(self.table, sketch::REGISTERS).get(crate::key::hash(&id), &id).map_or(0, sketch::estimate)
    }

    pub(crate) fn forget(&self, shard: &mut Shard, id: u64) {
        let id = id.to_be_bytes();
        shard.point(self.table, sketch::REGISTERS).remove(crate::key::hash(&id), &id);
    }
}

fn id_keys(ids: &[u64]) -> Keys {
    let mut keys = Keys::default();
    for id in ids {
        let id = id.to_be_bytes();
        keys.push(&id, crate::key::hash(&id));
    }
    keys
}
