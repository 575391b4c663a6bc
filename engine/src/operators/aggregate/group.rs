//! `GROUP BY` without windows: the running result of each group, taken back and replaced at each mark.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array, make_comparator};
use arrow::compute::{SortOptions, take};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::util::display::array_value_to_string;
use tiderace_storage::{Entry, RecordRef, Shard, TableId};

use super::aggregates::{Aggregates, TableIds};
use super::call::AggregateCall;
use super::evaluate::Evaluated;
use super::numeric::array;
use crate::batch::{DeltaBatch, Weights};
use crate::connect::Rejected;
use crate::error::{Code, Diagnostic, Result};
use crate::ids::{CoreId, NodeId};
use crate::key::{KeyCodec, Keys};
use crate::operators::touched::Touched;
use crate::operators::{EpochMark, OpCx, Operator, Output, PORT_MAIN, Port, Progress, SLICE_ROWS};
use crate::sql::types::data_type_name;

/// A grouping as the planner sees it.
#[derive(Clone, Debug)]
pub struct GroupPlan {
    /// The group's columns, of `input`; none for one group over all rows, which then has a row even when there is no input.
    pub keys: Vec<usize>,
    /// What is computed for each group; none for `SELECT DISTINCT`.
    pub calls: Vec<AggregateCall>,
    /// The columns of the rows that are grouped.
    pub input: SchemaRef,
    /// No row is ever taken back.
    pub append_only: bool,
}

impl GroupPlan {
    /// The result's columns: the keys, then a column a call.
    #[must_use]
    pub fn output_schema(&self) -> SchemaRef {
        let keys = self.keys.iter().map(|c| Arc::new(self.input.field(*c).clone()));
        Arc::new(Schema::new(keys.chain(self.calls.iter().map(|c| c.output.clone())).collect::<Vec<_>>()))
    }

    /// Whether results only ever get more rows: nothing is computed, and nothing taken back.
    #[must_use]
    pub fn emits_append_only(&self) -> bool {
        self.append_only && self.calls.is_empty() && !self.keys.is_empty()
    }

    fn compiled(&self) -> Result<Aggregates> {
        KeyCodec::new(&self.input, &self.keys)?;
        Aggregates::new(&self.calls, &self.input, self.append_only, &mut TableIds::of(NodeId(0), CoreId(0)))
    }

    /// Refuses what can't be computed, as the operator itself would.
    pub fn check(&self) -> Result<()> {
        self.compiled().map(|_| ())
    }

    /// Whether it can be done in two phases; see [`super::phases`].
    pub fn splits(&self) -> Result<bool> {
        Ok(!self.calls.is_empty() && self.compiled()?.can_split())
    }

    /// The columns that need a `DistinctCount` each when it is done in two phases.
    pub fn distinct_columns(&self) -> Result<Vec<usize>> {
        Ok(self.compiled()?.distinct_columns())
    }

    /// The columns between the phases: the keys, then partial results.
    pub fn partial_schema(&self) -> Result<SchemaRef> {
        let keys = self.keys.iter().map(|c| self.input.field(*c).clone());
        Ok(Arc::new(Schema::new(keys.chain(self.compiled()?.partial_fields()).collect::<Vec<_>>())))
    }
}

/// The operator of `GROUP BY` and `SELECT DISTINCT`. Input: rows by [`crate::runtime::graph::Route::Hash`] of the keys, or `Single` without
/// keys. Output at each mark: for each group whose result changed in the epoch the old row with weight −1 and the new one with +1.
///
/// State: a slot a group ([`Aggregates`]). The row that was emitted is not kept: the slot is copied when the epoch first touches its group,
/// and evaluating the copy gives the same bits again. The copies live until the mark, so their memory is bounded by the groups that one epoch
/// touches. A group without rows is deleted.
///
/// A result that its type can't hold leaves the group without a row, under the node's row policy, until it fits again.
pub struct GroupAggregate {
    schema: SchemaRef,
    codec: KeyCodec,
    groups: TableId,
    global: bool,
    /// The input is partial results.
    merges: bool,
    aggregates: Aggregates,
    /// The global group's first row is out.
    started: bool,
    /// The epoch's groups.
    touched: Touched,
    emitted: usize,
    dead: Keys,
    // One batch's scratch.
    keys: Keys,
    entries: Vec<Entry>,
    records: Vec<RecordRef>,
}

impl GroupAggregate {
    /// The operator of one core, over rows.
    pub fn new(plan: &GroupPlan, node: NodeId, core: CoreId) -> Result<Self> {
        let codec = KeyCodec::new(&plan.input, &plan.keys)?;
        Self::build(plan, codec, false, node, core)
    }

    /// The operator of one core, over partial results ([`GroupPlan::partial_schema`]) of first phases.
    pub fn merging(plan: &GroupPlan, node: NodeId, core: CoreId) -> Result<Self> {
        let keys: Vec<usize> = (0..plan.keys.len()).collect();
        let codec = KeyCodec::new(&plan.partial_schema()?, &keys)?;
        Self::build(plan, codec, true, node, core)
    }

    fn build(plan: &GroupPlan, codec: KeyCodec, merges: bool, node: NodeId, core: CoreId) -> Result<Self> {
        let mut tables = TableIds::of(node, core);
        let groups = tables.next();
        Ok(Self {
            schema: plan.output_schema(),
            codec,
            groups,
            global: plan.keys.is_empty(),
            merges,
            aggregates: Aggregates::new(&plan.calls, &plan.input, plan.append_only, &mut tables)?,
            started: false,
            touched: Touched::default(),
            emitted: 0,
            dead: Keys::default(),
            keys: Keys::default(),
            entries: Vec::new(),
            records: Vec::new(),
        })
    }

    /// Remembers the slots of groups that the epoch touches for the first time, as they are.
    fn keep_before(&mut self, shard: &mut Shard) {
        let table = shard.point(self.groups, self.aggregates.record_width());
        self.touched.note(table, self.aggregates.touched(), self.aggregates.slot_width());
    }

    /// Finds or makes the record of each row of the last `keys`.
    fn find_records(&mut self, shard: &mut Shard) {
        let table = shard.point(self.groups, self.aggregates.record_width());
        self.entries.clear();
        table.entries(&self.keys.as_batch(), &mut self.entries);
        self.records.clear();
        self.records.extend(self.entries.iter().map(|e| e.record));
    }

    /// The global group's record, once a row.
    fn global_records(&mut self, shard: &mut Shard, rows: usize) {
        self.keys = Keys { bytes: Vec::new(), offsets: vec![0, 0], hashes: vec![crate::key::hash(&[])] };
        self.find_records(shard);
        let one = self.records[0];
        self.records.resize(rows, one);
    }

    /// Emits the changes of the next groups of the epoch; `false`: they are on their way from the device.
    fn emit_slice(&mut self, cx: &mut OpCx<'_>, out: &mut Output) -> Result<bool> {
        let width = self.aggregates.slot_width();
        let which = self.emitted..(self.emitted + SLICE_ROWS / 2).min(self.touched.len());
        if !self.touched.fetch(which.clone(), self.groups, self.aggregates.record_width(), cx) {
            return Ok(false);
        }
        let mut records = std::mem::take(&mut self.records);
        self.touched.records(which.clone(), cx.shard.point(self.groups, self.aggregates.record_width()), &mut records)?;
        let count = records.len();
        self.aggregates.settle(cx.shard, self.groups, &records).map_err(|e| self.named(e, cx))?;
        // The old slots of all, then the new ones.
        let mut slots = self.touched.before(which.clone(), width).to_vec();
        self.emitted = which.end;
        self.aggregates.gather(cx.shard, self.groups, &records, &mut slots);
        let evaluated = self.aggregates.evaluate(cx.shard, &slots)?;
        let rows_of = |i: usize| i64::from_le_bytes(array(&slots, i * width));

        let table = cx.shard.point(self.groups, self.aggregates.record_width());
        let keys = self.codec.decode(records.iter().map(|r| table.key(*r)))?;
        let mut failed = vec![false; 2 * count];
        for failure in &evaluated.failures {
            failed[failure.row] = true;
            if failure.row >= count {
                let bad = self.overflow(failure.call, &keys, failure.row - count, &cx.rows.node);
                cx.rows.reject(bad)?;
            }
        }
        let same = same_rows(&evaluated, count)?;
        let (mut indices, mut weights) = (Vec::with_capacity(2 * count), Vec::with_capacity(2 * count));
        for i in 0..count {
            let had = if self.global { self.started } else { rows_of(i) > 0 } && !failed[i];
            let has = (self.global || rows_of(count + i) > 0) && !failed[count + i];
            if had && has && same(i) {
                continue;
            }
            if had {
                indices.push(i as u32);
                weights.push(-1);
            }
            if has {
                indices.push((count + i) as u32);
                weights.push(1);
            }
            if !self.global && rows_of(count + i) == 0 {
                self.dead.push(table.key(records[i]), table.hash(records[i]));
            }
        }
        if !indices.is_empty() {
            let of_key: UInt32Array = indices.iter().map(|i| i % count as u32).collect();
            let of_result = UInt32Array::from(indices);
            let keys = keys.iter().map(|column| take(column, &of_key, None));
            let results = evaluated.columns.iter().map(|column| take(column, &of_result, None));
            let columns: Vec<ArrayRef> = keys.chain(results).collect::<Result<_, _>>().map_err(internal)?;
            let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(weights.len()));
            let rows = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options).map_err(internal)?;
            out.emit(PORT_MAIN, DeltaBatch::new(rows, Weights::from_vec(weights)));
        }
        self.records = records;
        Ok(true)
    }

    /// Removes groups without rows, and all that the epoch kept.
    fn finish_epoch(&mut self, shard: &mut Shard) {
        if !self.dead.hashes.is_empty() {
            let table = shard.point(self.groups, self.aggregates.record_width());
            let mut found = Vec::new();
            table.find(&self.dead.as_batch(), &mut found);
            let records: Vec<RecordRef> = found.into_iter().flatten().collect();
            self.aggregates.forget(shard, self.groups, &records);
            let table = shard.point(self.groups, self.aggregates.record_width());
            let dead = self.dead.as_batch();
            for i in 0..dead.len() {
                table.remove(dead.hashes[i], dead.key(i));
            }
            self.dead = Keys::default();
        }
        self.aggregates.release(shard);
        self.touched.clear();
        self.emitted = 0;
        self.started = true;
    }

    fn named(&self, mut problem: Diagnostic, cx: &OpCx<'_>) -> Diagnostic {
        problem.message = format!("operator `{}`: {}", cx.rows.node, problem.message);
        problem
    }

    fn overflow(&self, call: usize, keys: &[ArrayRef], row: usize, node: &str) -> Rejected {
        let result = self.schema.field(keys.len() + call);
        let key: Vec<String> = keys
            .iter()
            .enumerate()
            .map(|(i, k)| {
                format!("{} = {}", self.schema.field(i).name(), array_value_to_string(k, row).unwrap_or_else(|_| "?".into()))
            })
            .collect();
        let mut raw = if key.is_empty() { "all rows".to_owned() } else { format!("group {}", key.join(", ")) };
        if raw.len() > Rejected::RAW_BYTES_MAX {
            let end = (0..=Rejected::RAW_BYTES_MAX).rev().find(|i| raw.is_char_boundary(*i)).unwrap_or(0);
            raw.truncate(end);
        }
        Rejected {
            code: Code::Overflow,
            message: format!("`{}` is out of the range of {}", result.name(), data_type_name(result.data_type())),
            origin: node.to_owned(),
            position: None,
            raw,
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of map_err")]
fn internal(error: arrow::error::ArrowError) -> Diagnostic {
    Diagnostic::new(Code::Internal, format!("a result can't be built: {error}"))
}

/// Whether results `i` and `count + i` are the same in all columns.
pub(crate) fn same_rows(evaluated: &Evaluated, count: usize) -> Result<impl Fn(usize) -> bool + use<>> {
    let mut comparators = Vec::new();
    let mut different = vec![false; count];
    for column in &evaluated.columns {
        if column.data_type().is_nested() || matches!(column.data_type(), DataType::Null) {
            let compare = make_comparator(column.as_ref(), column.as_ref(), SortOptions::default()).map_err(internal)?;
            comparators.push(compare);
        } else {
            let (old, new) = (column.slice(0, count), column.slice(count, count));
            let unequal = arrow::compute::kernels::cmp::distinct(&old, &new).map_err(internal)?;
            for (flag, unequal) in different.iter_mut().zip(unequal.values().iter()) {
                *flag |= unequal;
            }
        }
    }
    Ok(move |i: usize| !different[i] && comparators.iter().all(|compare| compare(i, count + i).is_eq()))
}

impl Operator for GroupAggregate {
    fn save(&self) -> Vec<u64> {
        self.aggregates.save()
    }

    fn restore(&mut self, saved: &[u64]) -> Result<()> {
        self.aggregates.restore(saved)
    }

    fn open(&mut self, shard: &mut Shard) -> Result<()> {
        self.touched = Touched::none(shard);
        // A global group that is there already was emitted before the job was restored.
        self.started = self.global && !shard.point(self.groups, self.aggregates.record_width()).is_empty();
        Ok(())
    }

    fn prepare(&mut self, _port: Port, batch: &DeltaBatch, cx: &mut OpCx<'_>) -> Result<bool> {
        if self.global || batch.num_rows() == 0 {
            return Ok(true);
        }
        let one = self.codec.encode_once_if_equal(&batch.rows, &mut self.keys)?;
        let width = self.aggregates.record_width();
        if !cx.fetch(self.groups, width, &self.keys.as_batch()) {
            return Ok(false);
        }
        if self.merges {
            // Different values are kept where they came in.
            return Ok(true);
        }
        let mut found = Vec::with_capacity(batch.num_rows());
        cx.shard.point(self.groups, width).find(&self.keys.as_batch(), &mut found);
        if one {
            found.resize(batch.num_rows(), found[0]);
        }
        self.aggregates.prepare(cx, self.groups, &found, &batch.rows)
    }

    fn on_delta(&mut self, _port: Port, batch: DeltaBatch, cx: &mut OpCx<'_>, _out: &mut Output) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        if self.global {
            self.global_records(cx.shard, batch.num_rows());
        } else {
            let one = self.codec.encode_once_if_equal(&batch.rows, &mut self.keys)?;
            self.find_records(cx.shard);
            if one {
                let record = self.records[0];
                self.records.resize(batch.num_rows(), record);
            }
        }
        self.aggregates.place(cx.shard.point(self.groups, self.aggregates.record_width()), &self.records);
        self.keep_before(cx.shard);
        if self.merges {
            let partial = &batch.rows.columns()[self.schema.fields().len() - self.aggregates.calls()..];
            return self.aggregates.apply_partial(cx.shard, self.groups, partial);
        }
        self.aggregates.apply(cx.shard, self.groups, &batch)
    }

    fn on_mark(&mut self, _mark: &EpochMark, cx: &mut OpCx<'_>, out: &mut Output) -> Result<Progress> {
        if self.global && !self.started && self.touched.len() == 0 && cx.core == CoreId(0) {
            self.global_records(cx.shard, 1);
            self.aggregates.place(cx.shard.point(self.groups, self.aggregates.record_width()), &self.records);
            self.keep_before(cx.shard);
        }
        if self.emitted < self.touched.len() && !self.emit_slice(cx, out)? {
            return Ok(Progress::Waiting);
        }
        if self.emitted < self.touched.len() {
            return Ok(Progress::More);
        }
        self.finish_epoch(cx.shard);
        Ok(Progress::Done)
    }
}
