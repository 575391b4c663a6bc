//! Aggregation in two phases, so that one hot group does not sit on one core.
//!
//! ```text
//!            ┌─ Local ─▶ LocalAggregate ──────────────────── Hash(keys) ─▶┐
//! input ─────┤                                                            ├─ GroupAggregate::merging
//!            └─ Local ─▶ LocalDistinct ─ Hash(keys, column) ─▶ DistinctCount ─ Hash(keys) ─▶┘   (one such pair a column)
//! ```
//! [`GroupPlan::first_phases`] lists the nodes of the first phase with the routes of their inputs, and [`GroupPlan::merging_route`] is the route
//! of all edges to the merging node. In words: one `LocalAggregate` beside the input (`Route::Local`); for each column of [`GroupPlan::distinct_columns`] one
//! `DistinctCount` (`Route::Hash` of the group's columns *and* that column, over the input, or over what a `LocalDistinct` beside the input lets pass); and a merging `GroupAggregate` whose inputs are all
//! of them, by `Route::Hash` of columns `0..keys.len()` of their common schema [`GroupPlan::partial_schema`], or `Route::Single` without keys.
//! [`GroupPlan::splits`] says whether that is possible: multisets and sketches need all rows of a group in one place.
//!
//! A partial row is a message, not a fact: its weight is always +1, what it takes away stands in its columns.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::SchemaRef;
use hashbrown::HashTable;

use super::aggregates::{Aggregates, Scope, TableIds};
use super::group::GroupPlan;
use super::local_distinct::LocalDistinct;
use crate::batch::DeltaBatch;
use crate::error::{Code, Diagnostic, Result};
use crate::ids::{CoreId, NodeId};
use crate::key::{KeyCodec, Keys};
use crate::operators::{EpochMark, OpCx, Operator, Output, PORT_MAIN, Port, Progress};
use crate::runtime::graph::Route;

/// Makes a first phase's operator for a node on a core.
pub type PhaseFactory = Arc<dyn Fn(NodeId, CoreId) -> Result<Box<dyn Operator>> + Send + Sync>;

/// A node of the first phase; its output has the columns of [`GroupPlan::partial_schema`].
#[derive(Clone)]
pub struct FirstPhase {
    /// For names and EXPLAIN.
    pub kind: &'static str,
    /// How the rows to be grouped come to it.
    pub route: Route,
    /// Its operators.
    pub factory: PhaseFactory,
    /// What stands between the input and that route, beside the input: name and operators; its output has the input's columns.
    pub before: Option<(&'static str, PhaseFactory)>,
}

impl GroupPlan {
    /// The nodes of the first phase. Only for plans that [split](Self::splits).
    ///
    /// Without different values a first phase costs little where it does not help, because it switches itself off. Each column of different
    /// values costs another exchange of the rows: worth it for few, large groups.
    pub fn first_phases(&self) -> Result<Vec<FirstPhase>> {
        let plan = self.clone();
        let local: PhaseFactory = Arc::new(move |node, core| Ok(Box::new(LocalAggregate::new(&plan, node, core)?)));
        let mut phases = vec![FirstPhase { kind: "LocalAggregate", route: Route::Local, factory: local, before: None }];
        for (set, column) in self.distinct_columns()?.into_iter().enumerate() {
            let plan = self.clone();
            let factory: PhaseFactory = Arc::new(move |node, core| Ok(Box::new(DistinctCount::new(&plan, set, node, core)?)));
            let route = Route::Hash(self.keys.iter().copied().chain([column]).collect());
            let before = self.append_only.then(|| {
                let plan = self.clone();
                let local: PhaseFactory = Arc::new(move |node, core| Ok(Box::new(LocalDistinct::new(&plan, set, node, core)?)));
                ("LocalDistinct", local)
            });
            phases.push(FirstPhase { kind: "DistinctCount", route, factory, before });
        }
        Ok(phases)
    }

    /// How partial results come to the merging node.
    #[must_use]
    pub fn merging_route(&self) -> Route {
        if self.keys.is_empty() { Route::Single } else { Route::Hash((0..self.keys.len()).collect()) }
    }
}

/// The groups of one batch.
#[derive(Debug, Default)]
pub(super) struct BatchGroups {
    index: HashTable<u32>,
    /// The group of each row.
    pub(super) places: Vec<u32>,
    /// The first row of each group.
    pub(super) firsts: Vec<u32>,
}

impl BatchGroups {
    /// The groups of `rows` by the columns of `codec`; `keys` has the key of each group's first row afterwards, at that row or alone.
    pub(super) fn find_of(&mut self, codec: &mut KeyCodec, rows: &RecordBatch, keys: &mut Keys) -> Result<()> {
        if codec.encode_once_if_equal(rows, keys)? {
            self.one(rows.num_rows());
        } else {
            self.find(keys);
        }
        Ok(())
    }

    fn find(&mut self, keys: &Keys) {
        self.index.clear();
        self.places.clear();
        self.firsts.clear();
        for (row, hash) in keys.hashes.iter().enumerate() {
            let key = keys.key(row);
            let firsts = &self.firsts;
            let found = self.index.find(*hash, |group| keys.key(firsts[*group as usize] as usize) == key);
            let place = match found {
                Some(group) => *group,
                None => {
                    let group = self.firsts.len() as u32;
                    self.firsts.push(row as u32);
                    let firsts = &self.firsts;
                    self.index.insert_unique(*hash, group, |group| keys.hashes[firsts[*group as usize] as usize]);
                    group
                }
            };
            self.places.push(place);
        }
    }

    /// Each row is a group of its own.
    fn each_row(&mut self, rows: usize) {
        self.places.clear();
        self.places.extend(0..rows as u32);
        self.firsts.clone_from(&self.places);
    }

    /// All rows are one group.
    fn one(&mut self, rows: usize) {
        self.places.clear();
        self.places.resize(rows, 0);
        self.firsts.clear();
        self.firsts.push(0);
    }
}

/// Emits the groups of a batch to which something came.
fn emit_partial(
    aggregates: &Aggregates,
    schema: &SchemaRef,
    keys: &[usize],
    batch: &DeltaBatch,
    firsts: &[u32],
    out: &mut Output,
) -> Result<()> {
    let internal = |e| Diagnostic::new(Code::Internal, format!("a partial result can't be built: {e}"));
    let kept: UInt32Array = (0..firsts.len() as u32).filter(|group| aggregates.has_local(*group as usize)).collect();
    let rows: UInt32Array = kept.values().iter().map(|group| firsts[*group as usize]).collect();
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for key in keys {
        columns.push(take(batch.rows.column(*key), &rows, None).map_err(internal)?);
    }
    for column in aggregates.to_partial(firsts.len()) {
        columns.push(if kept.values().len() == firsts.len() { column } else { take(&column, &kept, None).map_err(internal)? });
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows.values().len()));
    let rows = RecordBatch::try_new_with_options(schema.clone(), columns, &options).map_err(internal)?;
    out.emit(PORT_MAIN, DeltaBatch::append(rows));
    Ok(())
}

fn refuse_unsplittable(plan: &GroupPlan, aggregates: &Aggregates) -> Result<()> {
    if aggregates.can_split() {
        return Ok(());
    }
    let calls: Vec<&str> = plan.calls.iter().map(|c| c.function.name()).collect();
    Err(Diagnostic::new(Code::Internal, format!("an aggregation of {} can't be split", calls.join(", "))))
}

/// The first phase: sums each batch up by group. Keeps no state.
///
/// Switches itself off while it makes less than two rows into one (each row is then its own partial result, without a look at keys), and tries
/// again from time to time.
pub struct LocalAggregate {
    schema: SchemaRef,
    key_columns: Vec<usize>,
    codec: KeyCodec,
    aggregates: Aggregates,
    keys: Keys,
    groups: BatchGroups,
    reduction: Reduction,
}

/// How well the first phase does.
#[derive(Debug, Default)]
struct Reduction {
    rows: usize,
    groups: usize,
    off: bool,
    batches_off: u32,
}

impl Reduction {
    /// Rows after which it is judged.
    const ROWS: usize = 1 << 16;
    /// Batches that pass before an idle first phase is tried again.
    const BATCHES_OFF: u32 = 256;

    /// Whether the next batch is summed up.
    fn is_on(&mut self) -> bool {
        if self.off {
            self.batches_off += 1;
            if self.batches_off >= Self::BATCHES_OFF {
                *self = Self::default();
            }
        }
        !self.off
    }

    fn saw(&mut self, rows: usize, groups: usize) {
        self.rows += rows;
        self.groups += groups;
        if self.rows >= Self::ROWS {
            *self = Self { off: self.groups * 2 > self.rows, ..Self::default() };
        }
    }
}

impl LocalAggregate {
    /// The operator of one core.
    pub fn new(plan: &GroupPlan, node: NodeId, core: CoreId) -> Result<Self> {
        let aggregates = Aggregates::new(&plan.calls, &plan.input, plan.append_only, &mut TableIds::of(node, core))?;
        refuse_unsplittable(plan, &aggregates)?;
        Ok(Self {
            schema: plan.partial_schema()?,
            key_columns: plan.keys.clone(),
            codec: KeyCodec::new(&plan.input, &plan.keys)?,
            aggregates,
            keys: Keys::default(),
            groups: BatchGroups::default(),
            reduction: Reduction::default(),
        })
    }
}

impl Operator for LocalAggregate {
    fn on_delta(&mut self, _port: Port, batch: DeltaBatch, _cx: &mut OpCx<'_>, out: &mut Output) -> Result<()> {
        let rows = batch.num_rows();
        if rows == 0 {
            return Ok(());
        }
        if self.key_columns.is_empty() {
            self.groups.one(rows);
        } else if self.reduction.is_on() {
            self.groups.find_of(&mut self.codec, &batch.rows, &mut self.keys)?;
            self.reduction.saw(rows, self.groups.firsts.len());
        } else {
            self.groups.each_row(rows);
        }
        self.aggregates.sum_up_local(&batch, &self.groups.places, self.groups.firsts.len(), Scope::Plain)?;
        emit_partial(&self.aggregates, &self.schema, &self.key_columns, &batch, &self.groups.firsts, out)
    }

    fn on_mark(&mut self, _mark: &EpochMark, _cx: &mut OpCx<'_>, _out: &mut Output) -> Result<Progress> {
        Ok(Progress::Done)
    }
}

/// Keeps the different values of one column in each group, and sends what that changes in `count(DISTINCT …)` and its like. Its rows are
/// spread by group *and* value, so that one group's values lie on all cores.
///
/// State: a record for each group and value: for growing input a bit, else a weight, for each FILTER.
pub struct DistinctCount {
    schema: SchemaRef,
    key_columns: Vec<usize>,
    set: usize,
    group_codec: KeyCodec,
    value_codec: KeyCodec,
    aggregates: Aggregates,
    /// Values with a negative weight.
    below_zero: i64,
    keys: Keys,
    groups: BatchGroups,
}

impl DistinctCount {
    /// The operator of one core, for the column `plan.distinct_columns()[set]`.
    pub fn new(plan: &GroupPlan, set: usize, node: NodeId, core: CoreId) -> Result<Self> {
        let aggregates = Aggregates::new(&plan.calls, &plan.input, plan.append_only, &mut TableIds::of(node, core))?;
        refuse_unsplittable(plan, &aggregates)?;
        let columns = aggregates.distinct_columns();
        let Some(column) = columns.get(set) else {
            return Err(Diagnostic::new(Code::Internal, format!("there is no set {set} of different values")));
        };
        let value_columns: Vec<usize> = plan.keys.iter().copied().chain([*column]).collect();
        Ok(Self {
            schema: plan.partial_schema()?,
            key_columns: plan.keys.clone(),
            set,
            group_codec: KeyCodec::new(&plan.input, &plan.keys)?,
            value_codec: KeyCodec::new(&plan.input, &value_columns)?,
            aggregates,
            below_zero: 0,
            keys: Keys::default(),
            groups: BatchGroups::default(),
        })
    }
}

impl Operator for DistinctCount {
    fn save(&self) -> Vec<u64> {
        self.aggregates.save()
    }

    fn restore(&mut self, saved: &[u64]) -> Result<()> {
        self.aggregates.restore(saved)
    }

    fn prepare(&mut self, _port: Port, batch: &DeltaBatch, cx: &mut OpCx<'_>) -> Result<bool> {
        if batch.num_rows() == 0 {
            return Ok(true);
        }
        self.value_codec.encode(&batch.rows, &mut self.keys)?;
        let (table, value_width) = self.aggregates.table_of_values(self.set);
        Ok(cx.fetch(table, value_width, &self.keys.as_batch()))
    }

    fn on_delta(&mut self, _port: Port, batch: DeltaBatch, cx: &mut OpCx<'_>, out: &mut Output) -> Result<()> {
        let rows = batch.num_rows();
        if rows == 0 {
            return Ok(());
        }
        if self.key_columns.is_empty() {
            self.groups.one(rows);
        } else {
            self.groups.find_of(&mut self.group_codec, &batch.rows, &mut self.keys)?;
        }
        self.value_codec.encode(&batch.rows, &mut self.keys)?;
        let count = self.groups.firsts.len();
        self.aggregates.sum_up_distinct(cx.shard, &batch, &mut self.keys, &self.groups.places, count, self.set)?;
        self.below_zero += self.aggregates.values_below_zero(self.set);
        emit_partial(&self.aggregates, &self.schema, &self.key_columns, &batch, &self.groups.firsts, out)
    }

    fn on_mark(&mut self, _mark: &EpochMark, cx: &mut OpCx<'_>, _out: &mut Output) -> Result<Progress> {
        if self.below_zero != 0 {
            let what = format!("operator `{}`: more rows were taken back from a group than it had", cx.rows.node);
            return Err(Diagnostic::new(Code::NegativeWeight, what));
        }
        Ok(Progress::Done)
    }
}
