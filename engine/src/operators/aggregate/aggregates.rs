//! A compiled set of calls: the layout of a group's slot, the loops that bring rows into it, the results out of it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{SortOptions, cast};
use arrow::datatypes::{DataType, Field, SchemaRef};
use tiderace_storage::{PointTable, RecordRef, Shard, TableId};

use super::call::AggregateCall;
use super::evaluate::{Evaluated, Evaluation};
use super::numeric::{FloatSum, Moments, Twofold, array};
use super::sets::{DistinctSet, Multiset, SketchSet};
use super::state::{HANDLE_BYTES, Locals, Part, StateKind, WeightSlice};
use super::value::{Handle, Values};
use crate::batch::{DeltaBatch, Weights};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::{CoreId, NodeId};
use crate::key::ordinal::{Numbers, View, numbers};
use crate::key::{Keys, RowCodec};
use crate::operators::OpCx;

/// Gives out the state tables of one node on one core.
#[derive(Clone, Copy, Debug)]
pub struct TableIds {
    next: u64,
    core: CoreId,
}

impl TableIds {
    /// The tables of a node: 65536 of them.
    #[must_use]
    pub fn of(node: NodeId, core: CoreId) -> Self {
        Self { next: u64::from(node.0) << 16, core }
    }

    /// The first table of a node beyond those that are given out here: 2^31 more, for windows.
    pub(crate) fn beyond(node: NodeId) -> u64 {
        1 << 63 | u64::from(node.0) << 31
    }

    /// The node that a table was given to.
    pub(crate) fn node_of(table: TableId) -> NodeId {
        let is_beyond = table.0 >> 63 == 1;
        NodeId(if is_beyond { (table.0 & !(1 << 63)) >> 31 } else { table.0 >> 16 } as u32)
    }

    /// A table that nobody else has.
    #[expect(clippy::should_implement_trait, reason = "not a sequence to iterate")]
    pub fn next(&mut self) -> TableId {
        self.next += 1;
        TableId(self.next - 1)
    }

    /// The core.
    #[must_use]
    pub fn core(&self) -> CoreId {
        self.core
    }
}

/// Bytes in front of the states of a slot: `rows: i64`, the group's place in the current batch (`u32`, scratch), and a `u32` for the
/// operator's own scratch. Scratch is believed only after a look into the list that it points to, so it needs no reset.
///
/// Groups with sets have a number behind it, `u64`, by which their entries are found.
pub(crate) const HEADER_BYTES: usize = 16;
const ID_AT: usize = HEADER_BYTES;
const PLACE_AT: usize = 8;
/// Where the operator's own `u32` lies in a slot.
pub const OPERATOR_SCRATCH_AT: usize = 12;

/// Which rows a state counts, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    /// True here.
    pub(crate) filter: Option<usize>,
    /// True here as well.
    pub(crate) truth: Option<usize>,
    /// Not NULL here.
    pub(crate) present: Option<usize>,
    /// Only rows that bring or take a value of this set and lane.
    pub(crate) distinct: Option<(usize, usize)>,
}

/// Where the weights of a source are, for one batch.
#[derive(Clone, Copy, Debug)]
enum Resolved {
    Ones,
    Batch,
    Own,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) kind: StateKind,
    pub(crate) source: usize,
    pub(crate) at: usize,
    pub(crate) locals: Locals,
}

/// An order by which the rows of growing input compete for first or last place.
#[derive(Debug)]
pub(crate) struct Order {
    columns: Vec<(usize, SortOptions)>,
    codec: RowCodec,
    keys: Keys,
}

/// Which states a batch is summed up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All.
    All,
    /// Those that do not look at different values.
    Plain,
    /// Those over the different values of one set.
    Distinct(usize),
}

impl Scope {
    fn covers(self, source: &Source) -> bool {
        match self {
            Self::All => true,
            Self::Plain => source.distinct.is_none(),
            Self::Distinct(set) => source.distinct.is_some_and(|(s, _)| s == set),
        }
    }
}

/// A compiled set of aggregate calls over one input schema; belongs to one operator on one core.
///
/// A group's state is a *slot*: [`Aggregates::slot_width`] bytes at the start of its record's value in a [`PointTable`], all zeros for a new
/// group, `rows: i64` (the sum of the weights of its rows) first. Rows come in by [`update`](Self::update). Before a result is made,
/// [`settle`](Self::settle) brings the slots of touched groups in order; from then on [`evaluate`](Self::evaluate) depends on the slot's bytes
/// alone, so a copy of the slot gives the same bits as long as [`release`](Self::release) was not called. That is how an old row is taken back
/// without keeping it.
///
/// What does not fit a slot lies in tables of its own: values of any length, different values with their weights, multisets, sketches. Whoever
/// removes a group's record calls [`forget`](Self::forget) before.
#[derive(Debug)]
pub struct Aggregates {
    pub(super) input: SchemaRef,
    pub(super) append_only: bool,
    pub(super) states: Vec<State>,
    pub(super) sources: Vec<Source>,
    pub(super) distincts: Vec<DistinctSet>,
    pub(super) multisets: Vec<Multiset>,
    pub(super) sketches: Vec<SketchSet>,
    pub(super) width: usize,
    evaluations: Vec<(Evaluation, DataType)>,
    orders: Vec<Order>,
    values: Values,
    next_id: u64,
    extra: usize,
    // One batch's scratch.
    weights: Vec<Vec<i64>>,
    resolved: Vec<Resolved>,
    places: Vec<u32>,
    groups: Vec<RecordRef>,
    group_ids: Vec<u64>,
    row_ids: Vec<u64>,
}

impl Aggregates {
    /// Compiles calls over the columns of `input`. `append_only`: no row ever has a negative weight; picks the cheaper states.
    /// Refuses (TR-1520) what can't take rows back when rows may be taken back, and (TR-1006) arguments that do not fit.
    pub fn new(calls: &[AggregateCall], input: &SchemaRef, append_only: bool, tables: &mut TableIds) -> Result<Self> {
        let mut this = Self {
            input: input.clone(),
            append_only,
            states: Vec::new(),
            sources: Vec::new(),
            distincts: Vec::new(),
            multisets: Vec::new(),
            sketches: Vec::new(),
            width: HEADER_BYTES,
            evaluations: Vec::new(),
            orders: Vec::new(),
            values: Values::new(tables.next(), tables.core()),
            next_id: u64::from(tables.core().0) << 48 | 1,
            extra: 0,
            weights: Vec::new(),
            resolved: Vec::new(),
            places: Vec::new(),
            groups: Vec::new(),
            group_ids: Vec::new(),
            row_ids: Vec::new(),
        };
        // The count of all rows is a state like others that lies at the start.
        this.sources.push(Source::default());
        this.states.push(State { kind: StateKind::Count, source: 0, at: 0, locals: StateKind::Count.locals() });
        for call in calls {
            let evaluation = this.compile(call, tables)?;
            this.evaluations.push((evaluation, call.output.data_type().clone()));
        }
        if this.has_sets() {
            for state in &mut this.states {
                state.at += if state.at >= HEADER_BYTES { 8 } else { 0 };
            }
            for (evaluation, _) in &mut this.evaluations {
                evaluation.shift(8);
            }
            this.width += 8;
        }
        this.weights = vec![Vec::new(); this.sources.len()];
        Ok(this)
    }

    /// The numbers that are given out next, between two epochs: of groups and of values.
    pub(crate) fn save(&self) -> Vec<u64> {
        vec![self.next_id, self.values.next()]
    }

    /// Goes on behind the numbers that another run gave out.
    pub(crate) fn restore(&mut self, saved: &[u64]) -> Result<()> {
        let [next_id, next_value] = saved else {
            return Err(Diagnostic::new(Code::CheckpointMismatch, "the checkpoint's numbers are not those of this operator"));
        };
        self.next_id = *next_id;
        self.values.resume(*next_value);
        Ok(())
    }

    /// How many results a group has.
    pub(crate) fn calls(&self) -> usize {
        self.evaluations.len()
    }

    fn has_sets(&self) -> bool {
        !(self.distincts.is_empty() && self.multisets.is_empty() && self.sketches.is_empty())
    }

    /// The same with so many bytes of the operator's own behind each slot. All records must then be made with
    /// [`record_width`](Self::record_width).
    #[must_use]
    pub fn with_extra(mut self, bytes: usize) -> Self {
        self.extra = bytes;
        self
    }

    /// Bytes of a group's slot.
    #[must_use]
    pub fn slot_width(&self) -> usize {
        self.width
    }

    /// Bytes of a group's record: the slot, then the operator's own bytes.
    #[must_use]
    pub fn record_width(&self) -> usize {
        self.width + self.extra
    }

    /// An order by which rows compete, which calls share when it is the same.
    pub(super) fn order(&mut self, columns: Vec<(usize, SortOptions)>, codec: RowCodec) -> usize {
        self.orders.iter().position(|o| o.columns == columns).unwrap_or_else(|| {
            self.orders.push(Order { columns, codec, keys: Keys::default() });
            self.orders.len() - 1
        })
    }

    /// Whether parts of a group can be merged: what [`merge_slots`](Self::merge_slots) and a two-phase aggregation need.
    #[must_use]
    pub fn can_merge(&self) -> bool {
        self.states.iter().all(|s| s.kind.merges())
    }

    /// Whether the first phase of a two-phase aggregation can send partial results if one more operator for each set of different values
    /// ([`distinct_columns`](Self::distinct_columns)) does so too.
    #[must_use]
    pub fn can_split(&self) -> bool {
        self.states.iter().all(|s| s.kind.merges() || matches!(s.kind, StateKind::Entries(_) | StateKind::NegativeValues(_)))
    }

    /// How many more values of a set have a negative weight since the last batch.
    pub(crate) fn values_below_zero(&self, set: usize) -> i64 {
        self.distincts[set].negative_tally.iter().sum()
    }

    /// The columns whose different values are kept, a set each.
    #[must_use]
    pub fn distinct_columns(&self) -> Vec<usize> {
        self.distincts.iter().map(|s| s.column).collect()
    }

    /// Asks for what groups keep beside their slots and a batch will look at: row `i` belongs to the group `records[i]` of table `groups`, if
    /// that is there. `false`: it is on its way from the device.
    pub(crate) fn prepare(
        &mut self,
        cx: &mut OpCx<'_>,
        groups: TableId,
        records: &[Option<RecordRef>],
        batch: &RecordBatch,
    ) -> Result<bool> {
        if self.distincts.is_empty() {
            return Ok(true);
        }
        let table = cx.shard.point(groups, self.record_width());
        self.row_ids.clear();
        self.row_ids.extend(records.iter().map(|r| r.map_or(0, |record| u64::from_le_bytes(array(table.value(record), ID_AT)))));
        let mut columns = Columns::new(batch);
        let (mut keys, mut is_there) = (Keys::default(), true);
        for set in &self.distincts {
            set.keys_of(&columns.array(set.column)?, &self.row_ids, &mut keys)?;
            let (table, value_width) = set.table();
            is_there &= cx.fetch(table, value_width, &keys.as_batch());
        }
        Ok(is_there)
    }

    /// The table of the different values of one set, whose keys are the caller's, and the bytes of its values.
    pub(crate) fn table_of_values(&self, set: usize) -> (TableId, usize) {
        self.distincts[set].table()
    }

    /// Brings the rows of a batch into their groups: row `i` belongs to `records[i]` of table `groups`, whose values are
    /// [`record_width`](Self::record_width) bytes wide.
    pub fn update(&mut self, shard: &mut Shard, groups: TableId, records: &[RecordRef], batch: &DeltaBatch) -> Result<()> {
        self.place(shard.point(groups, self.record_width()), records);
        self.apply(shard, groups, batch)
    }

    /// Numbers the groups of a batch; [`touched`](Self::touched) are they.
    pub(crate) fn place(&mut self, table: &mut PointTable, records: &[RecordRef]) {
        self.places.clear();
        self.groups.clear();
        for record in records {
            let slot = table.value_mut(*record);
            let place = u32::from_le_bytes(array(slot, PLACE_AT));
            if self.groups.get(place as usize) == Some(record) {
                self.places.push(place);
            } else {
                let place = self.groups.len() as u32;
                slot[PLACE_AT..PLACE_AT + 4].copy_from_slice(&place.to_le_bytes());
                self.groups.push(*record);
                self.places.push(place);
            }
        }
    }

    /// The groups of the batch, each once.
    pub(crate) fn touched(&self) -> &[RecordRef] {
        &self.groups
    }

    /// The second half of [`update`](Self::update).
    pub(crate) fn apply(&mut self, shard: &mut Shard, groups: TableId, batch: &DeltaBatch) -> Result<()> {
        let mut columns = Columns::new(&batch.rows);
        if self.has_sets() {
            self.number_groups(shard.point(groups, self.record_width()));
        }
        for set in 0..self.distincts.len() {
            let column = columns.array(self.distincts[set].column)?;
            let filters = self.filters_of(set, &mut columns)?;
            let set = &mut self.distincts[set];
            set.encode(&column, &filters, &self.row_ids)?;
            set.apply(shard, &self.places, self.groups.len(), &batch.weights);
        }
        self.sum_up(batch, &mut columns, self.groups.len(), Scope::All)?;
        for set in &mut self.multisets {
            let arrays: Vec<ArrayRef> = set.columns.iter().map(|(c, _)| columns.array(*c)).collect::<Result<_>>()?;
            let weights = weights_of(&self.resolved, &self.weights, &batch.weights, set.source);
            set.apply(shard, &arrays, &self.row_ids, &self.places, self.groups.len(), weights)?;
        }
        for set in &mut self.sketches {
            let weights = weights_of(&self.resolved, &self.weights, &batch.weights, set.source);
            set.apply(shard, &columns.array(set.column)?, &self.group_ids, &self.places, weights)?;
        }
        for state in &mut self.states {
            let tally = match state.kind {
                StateKind::Entries(set) => &self.distincts[set].entry_tally,
                StateKind::NegativeValues(set) => &self.distincts[set].negative_tally,
                StateKind::NegativeRows(set) => &self.multisets[set].negative_tally,
                _ => continue,
            };
            if let Locals::Count(locals) = &mut state.locals {
                locals.clone_from(tally);
            }
        }
        self.place_best(shard, groups);
        self.merge_locals(shard.point(groups, self.record_width()));
        Ok(())
    }

    /// Brings partial results into their groups: row `i`, of the columns of [`partial_fields`](Self::partial_fields), belongs to the group that
    /// [`place`](Self::place) was given for it.
    pub(crate) fn apply_partial(&mut self, shard: &mut Shard, groups: TableId, columns: &[ArrayRef]) -> Result<()> {
        let mut rest = columns;
        let count = self.groups.len();
        for state in &mut self.states {
            state.locals.reset(count);
            if let StateKind::Best { order, last } = state.kind {
                let candidates = rest[0].as_binary::<i32>();
                let keys = &mut self.orders[order].keys;
                keys.clear();
                for i in 0..candidates.len() {
                    keys.push(if candidates.is_null(i) { &[] } else { candidates.value(i) }, 0);
                }
                state.locals.add_best(&self.places, WeightSlice::Ones, keys, last);
                rest = &rest[1..];
                // Several states may share the order's keys: each is placed before the next one fills them.
                Self::place_best_of(state, &self.orders, &mut self.values, shard, groups, self.width + self.extra, &self.groups);
            } else {
                rest = state.locals.add_partial(&state.kind, &self.places, rest);
            }
        }
        self.merge_locals(shard.point(groups, self.record_width()));
        Ok(())
    }

    /// Sums a batch up by groups of the caller's: row `i` belongs to group `places[i]` of `count`. [`to_partial`](Self::to_partial) has the result.
    pub(crate) fn sum_up_local(&mut self, batch: &DeltaBatch, places: &[u32], count: usize, scope: Scope) -> Result<()> {
        self.places.clear();
        self.places.extend_from_slice(places);
        self.sum_up(batch, &mut Columns::new(&batch.rows), count, scope)
    }

    /// As [`sum_up_local`](Self::sum_up_local) for the values of one set, whose table is keyed by `keys`: the row's group and value.
    pub(crate) fn sum_up_distinct(
        &mut self,
        shard: &mut Shard,
        batch: &DeltaBatch,
        keys: &mut Keys,
        places: &[u32],
        count: usize,
        set: usize,
    ) -> Result<()> {
        let mut columns = Columns::new(&batch.rows);
        let filters = self.filters_of(set, &mut columns)?;
        self.distincts[set].encode_by(&filters, batch.num_rows(), keys);
        self.distincts[set].apply(shard, places, count, &batch.weights);
        self.places.clear();
        self.places.extend_from_slice(places);
        self.sum_up(batch, &mut columns, count, Scope::Distinct(set))
    }

    /// The rows of a batch that may bring a new value to a set, ascending; `groups[i]` is a number of row `i`'s group.
    pub(crate) fn select_unknown(&mut self, set: usize, batch: &DeltaBatch, groups: &[u64]) -> Result<&[u32]> {
        let mut columns = Columns::new(&batch.rows);
        let filters = self.filters_of(set, &mut columns)?;
        let column = columns.array(self.distincts[set].column)?;
        self.distincts[set].select_unknown(&column, &filters, groups)
    }

    /// The sums of the last batch as columns of [`partial_fields`](Self::partial_fields).
    pub(crate) fn to_partial(&self, count: usize) -> Vec<ArrayRef> {
        let mut out = Vec::new();
        for state in &self.states {
            let best = |row: u32| match state.kind {
                StateKind::Best { order, .. } => self.orders[order].keys.key(row as usize),
                _ => &[],
            };
            state.locals.to_partial(&state.kind, count, best, &mut out);
        }
        out
    }

    /// Whether the last batch left something of group `local`.
    pub(crate) fn has_local(&self, local: usize) -> bool {
        self.states.iter().any(|s| s.kind.travels() && !s.locals.is_identity(local))
    }

    fn filters_of(&self, set: usize, columns: &mut Columns<'_>) -> Result<Vec<Option<BooleanArray>>> {
        self.distincts[set].lanes.iter().map(|filter| filter.map(|column| columns.booleans(column)).transpose()).collect()
    }

    /// Gives each group of the batch its number.
    fn number_groups(&mut self, table: &mut PointTable) {
        self.group_ids.clear();
        for record in &self.groups {
            let slot = table.value_mut(*record);
            let mut id = u64::from_le_bytes(array(slot, ID_AT));
            if id == 0 {
                id = self.next_id;
                self.next_id += 1;
                slot[ID_AT..ID_AT + 8].copy_from_slice(&id.to_le_bytes());
            }
            self.group_ids.push(id);
        }
        self.row_ids.clear();
        self.row_ids.extend(self.places.iter().map(|place| self.group_ids[*place as usize]));
    }

    /// Sums the rows of a batch up by `places`.
    fn sum_up(&mut self, batch: &DeltaBatch, columns: &mut Columns<'_>, count: usize, scope: Scope) -> Result<()> {
        if let (true, Weights::Signed(weights)) = (self.append_only, &batch.weights)
            && weights.iter().any(|w| *w < 0)
        {
            return Err(Diagnostic::new(
                Code::Internal,
                "a row is taken back from an aggregate that was planned for growing input",
            ));
        }
        self.resolve(batch, columns, scope)?;
        for order in &mut self.orders {
            let arrays: Vec<ArrayRef> = order.columns.iter().map(|(c, _)| columns.array(*c)).collect::<Result<_>>()?;
            order.codec.encode_unhashed(&arrays, batch.num_rows(), None, &mut order.keys)?;
        }
        for state in &mut self.states {
            state.locals.reset(count);
            if !scope.covers(&self.sources[state.source]) {
                continue;
            }
            let weights = weights_of(&self.resolved, &self.weights, &batch.weights, state.source);
            if let StateKind::Best { order, last } = state.kind {
                state.locals.add_best(&self.places, weights, &self.orders[order].keys, last);
                continue;
            }
            let view = match state.kind.view() {
                Some((column, view)) => Some(columns.numbers(column, view)?),
                None => None,
            };
            state.locals.add(&state.kind, &self.places, weights, view.as_ref());
        }
        Ok(())
    }

    /// Puts the best rows of the batch into the slots where they beat what is there.
    fn place_best(&mut self, shard: &mut Shard, groups: TableId) {
        for state in &self.states {
            Self::place_best_of(state, &self.orders, &mut self.values, shard, groups, self.width + self.extra, &self.groups);
        }
    }

    fn place_best_of(
        state: &State,
        orders: &[Order],
        values: &mut Values,
        shard: &mut Shard,
        groups: TableId,
        record_width: usize,
        records: &[RecordRef],
    ) {
        let (StateKind::Best { order, last }, Locals::Row(rows)) = (&state.kind, &state.locals) else { return };
        let (at, keys) = (state.at, &orders[*order].keys);
        let mut handles: Vec<Handle> = Vec::with_capacity(records.len());
        let table = shard.point(groups, record_width);
        handles.extend(records.iter().map(|r| array::<HANDLE_BYTES>(table.value(*r), at)));
        let table = shard.point(values.table, 0);
        for (handle, row) in handles.iter_mut().zip(rows) {
            let Some(row) = row.checked_sub(1) else { continue };
            let candidate = keys.key(row as usize);
            let have = Values::bytes(table, handle);
            if have.is_empty() || if *last { candidate > have } else { candidate < have } {
                values.retire(table, handle);
                *handle = values.store(table, candidate);
            }
        }
        let table = shard.point(groups, record_width);
        for (record, handle) in records.iter().zip(&handles) {
            table.value_mut(*record)[at..at + HANDLE_BYTES].copy_from_slice(handle);
        }
    }

    fn merge_locals(&self, table: &mut PointTable) {
        for (local, record) in self.groups.iter().enumerate() {
            let slot = table.value_mut(*record);
            for state in &self.states {
                state.locals.merge_into(local, slot, state.at);
            }
        }
    }

    /// Makes the weights of each source for a batch.
    fn resolve(&mut self, batch: &DeltaBatch, columns: &mut Columns<'_>, scope: Scope) -> Result<()> {
        let rows = batch.num_rows();
        self.resolved.clear();
        for (i, source) in self.sources.iter().enumerate() {
            if !scope.covers(source) {
                self.resolved.push(Resolved::Ones);
                continue;
            }
            let nulls = match source.present {
                Some(column) => columns.array(column)?.logical_nulls().filter(|n| n.null_count() > 0),
                None => None,
            };
            if source.filter.is_none() && source.truth.is_none() && source.distinct.is_none() && nulls.is_none() {
                self.resolved.push(if matches!(batch.weights, Weights::Ones(_)) { Resolved::Ones } else { Resolved::Batch });
                continue;
            }
            let own = &mut self.weights[i];
            own.clear();
            match (source.distinct, &batch.weights) {
                (Some((set, lane)), _) => self.distincts[set].weights_of(lane, own),
                (None, Weights::Ones(_)) => own.resize(rows, 1),
                (None, Weights::Signed(w)) => own.extend_from_slice(w),
            }
            for column in source.filter.iter().chain(&source.truth) {
                let flags = columns.booleans(*column)?;
                let both = flags.nulls().map(|n| flags.values() & n.inner());
                let bits = both.as_ref().unwrap_or_else(|| flags.values());
                for (weight, bit) in own.iter_mut().zip(bits.iter()) {
                    *weight *= i64::from(bit);
                }
            }
            if let Some(nulls) = nulls {
                for (weight, valid) in own.iter_mut().zip(nulls.iter()) {
                    *weight *= i64::from(valid);
                }
            }
            self.resolved.push(Resolved::Own);
        }
        Ok(())
    }

    /// Brings the slots of touched groups in order before they are evaluated. `Err` (TR-2006) when a group has less than no rows of a kind.
    pub fn settle(&mut self, shard: &mut Shard, groups: TableId, records: &[RecordRef]) -> Result<()> {
        let table = shard.point(groups, self.record_width());
        let is_looked_at = |state: &&State| {
            use StateKind::{Count, Moments, NegativeRows, NegativeValues, SumFloat};
            matches!(state.kind, SumFloat(_) | Moments(_) | Count | NegativeRows(_) | NegativeValues(_))
        };
        let looked_at: Vec<&State> = self.states.iter().filter(is_looked_at).collect();
        for record in records {
            for state in &looked_at {
                let at = state.at;
                // A record is changed only where it must be: one that came from a device would be copied for it.
                let slot = table.value(*record);
                match state.kind {
                    // Without finite values left a sum starts anew: no noise survives.
                    StateKind::SumFloat(_) => {
                        let sum = FloatSum::read(&slot[at..]);
                        if sum.finite == 0 && sum.sum != Twofold::default() {
                            let slot = table.value_mut(*record);
                            FloatSum { sum: Twofold::default(), ..sum }.write(&mut slot[at..at + FloatSum::BYTES]);
                        }
                    }
                    StateKind::Moments(_) => {
                        let sum = Moments::read(&slot[at..]);
                        if sum.finite == 0 && (sum.sum != Twofold::default() || sum.squares != Twofold::default()) {
                            let clean = Moments { infinite: sum.infinite, ..Moments::default() };
                            let slot = table.value_mut(*record);
                            clean.write(&mut slot[at..at + Moments::BYTES]);
                        }
                    }
                    StateKind::Count if i64::from_le_bytes(array(slot, at)) < 0 => return Err(below_zero()),
                    StateKind::NegativeRows(_) | StateKind::NegativeValues(_) if i64::from_le_bytes(array(slot, at)) != 0 => {
                        return Err(below_zero());
                    }
                    _ => {}
                }
            }
        }
        let mut made = Vec::new();
        for state in &self.states {
            let at = state.at;
            match state.kind {
                StateKind::SetValue { set, part } => {
                    for record in records {
                        let slot = shard.point(groups, self.width + self.extra).value(*record);
                        let (id, old) = (u64::from_le_bytes(array(slot, ID_AT)), array::<HANDLE_BYTES>(slot, at));
                        made.clear();
                        match part {
                            Part::First | Part::Last => self.multisets[set].end(shard, id, part == Part::Last, &mut made),
                            Part::All => self.multisets[set].all(shard, id, &mut made),
                        }
                        let table = shard.point(self.values.table, 0);
                        if Values::bytes(table, &old) != made {
                            self.values.retire(table, &old);
                            let handle = self.values.store(table, &made);
                            let slot = shard.point(groups, self.width + self.extra).value_mut(*record);
                            slot[at..at + HANDLE_BYTES].copy_from_slice(&handle);
                        }
                    }
                }
                StateKind::Estimate(set) => {
                    for record in records {
                        let slot = shard.point(groups, self.width + self.extra).value(*record);
                        let id = u64::from_le_bytes(array(slot, ID_AT));
                        let estimate = self.sketches[set].estimate(shard, id);
                        let slot = shard.point(groups, self.width + self.extra).value_mut(*record);
                        slot[at..at + 8].copy_from_slice(&estimate.to_le_bytes());
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Copies slots, one behind the other, to the end of `out`.
    pub fn gather(&self, shard: &mut Shard, groups: TableId, records: &[RecordRef], out: &mut Vec<u8>) {
        let table = shard.point(groups, self.record_width());
        for record in records {
            out.extend_from_slice(&table.value(*record)[..self.width]);
        }
    }

    /// The results of slots that lie one behind the other, a column a call. A slot of zeros gives the results over no rows. A result that its
    /// type can't hold is NULL and named in [`Evaluated::failures`].
    pub fn evaluate(&mut self, shard: &mut Shard, slots: &[u8]) -> Result<Evaluated> {
        let mut evaluated = Evaluated { columns: Vec::with_capacity(self.evaluations.len()), failures: Vec::new() };
        let values = shard.point(self.values.table, 0);
        for (call, (evaluation, output)) in self.evaluations.iter().enumerate() {
            let mut column = evaluation.evaluate(slots, self.width, values, call, &mut evaluated.failures)?;
            if column.data_type() != output {
                column = cast(&column, output)
                    .map_err(|e| Diagnostic::new(Code::Internal, format!("a result does not have its type: {e}")))?;
            }
            evaluated.columns.push(column);
        }
        Ok(evaluated)
    }

    /// Adds slot `from[i]` to slot `into[i]`, both among dense slots as of [`gather`](Self::gather); see [`can_merge`](Self::can_merge). What
    /// is made owns its values: write it back to a record that is [forgotten](Self::forget) one day.
    pub fn merge_slots(&mut self, shard: &mut Shard, from: &[u8], into: &mut [u8]) {
        let values = shard.point(self.values.table, 0);
        for (from, into) in from.chunks_exact(self.width).zip(into.chunks_exact_mut(self.width)) {
            for state in &self.states {
                let StateKind::Best { last, .. } = state.kind else {
                    state.kind.merge_slot(from, into, state.at);
                    continue;
                };
                let handles = state.at..state.at + HANDLE_BYTES;
                let candidate = Values::bytes(values, &from[handles.clone()]);
                let have = Values::bytes(values, &into[handles.clone()]);
                let better = have.is_empty() || if last { candidate > have } else { candidate < have };
                if !candidate.is_empty() && better {
                    let candidate = candidate.to_vec();
                    self.values.retire(values, &into[handles.clone()]);
                    into[handles].copy_from_slice(&self.values.store(values, &candidate));
                }
            }
        }
    }

    /// Whether groups hold anything outside their slots, so that whole tables of them can't be dropped without [`forget`](Self::forget).
    #[must_use]
    pub fn needs_forget(&self) -> bool {
        self.has_sets() || self.states.iter().any(|s| matches!(s.kind, StateKind::Best { .. }))
    }

    /// Frees what groups hold outside their slots; call it before their records are removed, when no copy of their slots is needed any more.
    pub fn forget(&mut self, shard: &mut Shard, groups: TableId, records: &[RecordRef]) {
        for record in records {
            let slot = shard.point(groups, self.width + self.extra).value(*record);
            let has_id = !(self.distincts.is_empty() && self.multisets.is_empty() && self.sketches.is_empty());
            let id = if has_id { u64::from_le_bytes(array(slot, ID_AT)) } else { 0 };
            let (mut handles, mut entries) = (Vec::new(), Vec::new());
            for state in &self.states {
                match state.kind {
                    StateKind::Best { .. } | StateKind::SetValue { .. } => handles.push(array::<HANDLE_BYTES>(slot, state.at)),
                    StateKind::Entries(set) => entries.push((set, i64::from_le_bytes(array(slot, state.at)))),
                    _ => {}
                }
            }
            let values = shard.point(self.values.table, 0);
            for handle in handles {
                Values::forget(values, &handle);
            }
            if id == 0 {
                continue;
            }
            for (set, entries) in entries {
                self.distincts[set].forget(id, entries);
            }
            for set in &self.multisets {
                set.forget(shard, id);
            }
            for set in &self.sketches {
                set.forget(shard, id);
            }
        }
        for set in &mut self.distincts {
            set.sweep(shard);
        }
    }

    /// Frees values that slots no longer show: call it at the end of an epoch, when copies of slots are no longer needed.
    pub fn release(&mut self, shard: &mut Shard) {
        self.values.release(shard.point(self.values.table, 0));
        for set in &mut self.distincts {
            set.sweep(shard);
        }
    }

    /// The columns of partial results behind the group's keys: what a first phase sends to a second one.
    #[must_use]
    pub fn partial_fields(&self) -> Vec<Field> {
        self.states.iter().enumerate().flat_map(|(i, s)| s.kind.partial_fields(i)).collect()
    }
}

fn below_zero() -> Diagnostic {
    Diagnostic::new(Code::NegativeWeight, "more rows were taken back from a group than it had")
        .hint("the input deletes rows that it never inserted; look at what feeds it")
}

fn weights_of<'w>(resolved: &[Resolved], own: &'w [Vec<i64>], batch: &'w Weights, source: usize) -> WeightSlice<'w> {
    match (resolved[source], batch) {
        (Resolved::Own, _) => WeightSlice::Signed(&own[source]),
        (Resolved::Batch, Weights::Signed(w)) => WeightSlice::Signed(w),
        _ => WeightSlice::Ones,
    }
}

/// The columns of a batch, as numbers when asked for, each made once.
struct Columns<'a> {
    rows: &'a RecordBatch,
    plain: Vec<Option<ArrayRef>>,
    numbers: Vec<(usize, View, Numbers)>,
}

impl<'a> Columns<'a> {
    fn new(rows: &'a RecordBatch) -> Self {
        Self { rows, plain: vec![None; rows.num_columns()], numbers: Vec::new() }
    }

    /// The column, its values instead of a dictionary.
    fn array(&mut self, column: usize) -> Result<ArrayRef> {
        if let Some(array) = &self.plain[column] {
            return Ok(array.clone());
        }
        let array = self.rows.column(column);
        let array = match array.data_type() {
            DataType::Dictionary(_, values) => {
                cast(array, values).map_err(|e| Diagnostic::new(Code::Internal, format!("a dictionary can't be read: {e}")))?
            }
            _ => Arc::clone(array),
        };
        self.plain[column] = Some(array.clone());
        Ok(array)
    }

    fn booleans(&mut self, column: usize) -> Result<BooleanArray> {
        let array = self.array(column)?;
        let flags = array.as_boolean_opt().cloned();
        flags.ok_or_else(|| Diagnostic::new(Code::Internal, format!("column {column} is {}, not BOOLEAN", array.data_type())))
    }

    fn numbers(&mut self, column: usize, view: View) -> Result<Numbers> {
        if let Some((_, _, numbers)) = self.numbers.iter().find(|(c, v, _)| *c == column && *v == view) {
            return Ok(numbers.clone());
        }
        let made = numbers(&self.array(column)?, view)?;
        self.numbers.push((column, view, made.clone()));
        Ok(made)
    }
}
