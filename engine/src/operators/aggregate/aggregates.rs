//! A compiled set of calls: the layout of a group's slot, the loops that bring rows into it, the results out of it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, SchemaRef};
use tiderace_storage::{PointTable, RecordRef, Shard, TableId};

use super::call::{AggregateCall, AggregateFunction, plain};
use super::evaluate::{Evaluated, Evaluation};
use super::numeric::array;
use super::state::{Locals, StateKind, WeightSlice};
use super::view::{Numbers, View, numbers, ordinal_of};
use crate::batch::{DeltaBatch, Weights};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::{CoreId, NodeId};

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
pub(crate) const HEADER_BYTES: usize = 16;
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

/// A compiled set of aggregate calls over one input schema; belongs to one operator on one core.
///
/// A group's state is a *slot*: [`Aggregates::slot_width`] bytes at the start of its record's value in a [`PointTable`], all zeros for a new
/// group, `rows: i64` (the sum of the weights of its rows) first. Rows come in by [`update`](Self::update). Before a result is made,
/// [`settle`](Self::settle) brings the slots of touched groups in order; from then on [`evaluate`](Self::evaluate) depends on the slot's bytes
/// alone, so a copy of the slot gives the same bits as long as [`release`](Self::release) was not called. That is how an old row is taken back
/// without keeping it.
#[derive(Debug)]
pub struct Aggregates {
    input: SchemaRef,
    append_only: bool,
    states: Vec<State>,
    sources: Vec<Source>,
    evaluations: Vec<Evaluation>,
    width: usize,
    extra: usize,
    // One batch's scratch.
    weights: Vec<Vec<i64>>,
    resolved: Vec<Resolved>,
    places: Vec<u32>,
    groups: Vec<RecordRef>,
}

impl Aggregates {
    /// Compiles calls over the columns of `input`. `append_only`: no row ever has a negative weight; picks the cheaper states.
    /// Refuses (TR-1520) what can't take rows back when rows may be taken back, and (TR-1006) arguments that do not fit.
    pub fn new(calls: &[AggregateCall], input: &SchemaRef, append_only: bool, tables: &mut TableIds) -> Result<Self> {
        let _ = &tables;
        let mut this = Self {
            input: input.clone(),
            append_only,
            states: Vec::new(),
            sources: Vec::new(),
            evaluations: Vec::new(),
            width: HEADER_BYTES,
            extra: 0,
            weights: Vec::new(),
            resolved: Vec::new(),
            places: Vec::new(),
            groups: Vec::new(),
        };
        // The count of all rows is a state like others that lies at the start.
        this.sources.push(Source::default());
        this.states.push(State { kind: StateKind::Count, source: 0, at: 0, locals: StateKind::Count.locals() });
        for call in calls {
            let evaluation = this.compile(call)?;
            this.evaluations.push(evaluation);
        }
        this.weights = vec![Vec::new(); this.sources.len()];
        Ok(this)
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

    fn source(&mut self, source: Source) -> usize {
        let source = Source { present: source.present.filter(|c| self.input.field(*c).is_nullable()), ..source };
        self.sources.iter().position(|s| *s == source).unwrap_or_else(|| {
            self.sources.push(source);
            self.sources.len() - 1
        })
    }

    /// The slot offset of a state, which calls share when it is the same.
    fn state(&mut self, kind: StateKind, source: Source) -> usize {
        let source = self.source(source);
        if let Some(state) = self.states.iter().find(|s| s.kind == kind && s.source == source) {
            return state.at;
        }
        let at = self.width;
        self.width += kind.width();
        let locals = kind.locals();
        self.states.push(State { kind, source, at, locals });
        at
    }

    fn compile(&mut self, call: &AggregateCall) -> Result<Evaluation> {
        use AggregateFunction as F;
        let columns = self.input.fields().len();
        let used = call.args.iter().chain(&call.filter).chain(call.order_by.iter().map(|(c, _)| c));
        if let Some(column) = used.copied().find(|c| *c >= columns) {
            return Err(Diagnostic::new(Code::Internal, format!("an aggregate reads column {column} of {columns}")));
        }
        let types: Vec<DataType> = call.args.iter().map(|c| plain(self.input.field(*c).data_type()).clone()).collect();
        let result = call.function.return_type(&types)?;
        if *plain(call.output.data_type()) != result {
            let what = format!("`{}` gives {result}, not {}", call.function.name(), call.output.data_type());
            return Err(Diagnostic::new(Code::Internal, what));
        }
        if !self.append_only && !call.function.retracts() {
            let what = format!("`{}` can't take rows back, and its input changes", call.function.name());
            return Err(Diagnostic::new(Code::NoRetraction, what)
                .hint("use an exact function, as count(DISTINCT …), or an input that only grows"));
        }
        let rows = Source { filter: call.filter, ..Source::default() };
        let argument = call.args.first().copied();
        let present = Source { present: argument, ..rows };
        let first = types.first().cloned().unwrap_or(DataType::Null);
        let count = self.state(StateKind::Count, present);
        let Some(column) = argument else { return Ok(Evaluation::Count { count }) };
        Ok(match call.function {
            F::Count => Evaluation::Count { count },
            F::Sum | F::Avg if matches!(first, DataType::Decimal128(..) | DataType::UInt64) => {
                let sum = self.state(StateKind::SumDecimal(column), present);
                if call.function == F::Sum {
                    Evaluation::SumDecimal { sum, count, result }
                } else {
                    Evaluation::AverageDecimal { sum, count, digits: digits_to_add(&first, &result), result }
                }
            }
            F::Sum | F::Avg if first.is_integer() => {
                let sum = self.state(StateKind::SumInteger(column), present);
                if call.function == F::Sum {
                    Evaluation::SumInteger { sum, count }
                } else {
                    Evaluation::AverageInteger { sum, count, digits: digits_to_add(&first, &result), result }
                }
            }
            F::Sum | F::Avg => {
                let sum = self.state(StateKind::SumFloat(column), present);
                Evaluation::SumFloat { sum, count, average: call.function == F::Avg }
            }
            F::VarPop | F::VarSamp | F::StddevPop | F::StddevSamp => Evaluation::Variance {
                moments: self.state(StateKind::Moments(column), present),
                sample: matches!(call.function, F::VarSamp | F::StddevSamp),
                root: matches!(call.function, F::StddevPop | F::StddevSamp),
            },
            F::BoolAnd | F::BoolOr => {
                let truths = self.state(StateKind::Count, Source { truth: argument, ..present });
                Evaluation::Boolean { count, truths, all: call.function == F::BoolAnd }
            }
            F::Min | F::Max if self.append_only && ordinal_of(&first).is_some() => {
                let least = call.function == F::Min;
                if ordinal_of(&first) == Some(View::Ordinal64) {
                    let best = self.state(StateKind::Extremum64 { column, least }, present);
                    Evaluation::Extremum64 { best, count, least, result }
                } else {
                    let best = self.state(StateKind::Extremum128 { column, least }, present);
                    Evaluation::Extremum128 { best, count, least, result }
                }
            }
            other => {
                return Err(Diagnostic::new(Code::Unsupported, format!("`{}` over this input", other.name())));
            }
        })
    }

    /// Whether parts of a group can be merged: what [`merge`](Self::merge) and a two-phase aggregation need.
    #[must_use]
    pub fn can_merge(&self) -> bool {
        self.states.iter().all(|s| s.kind.merges())
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
        self.sum_up(batch, self.groups.len())?;
        self.merge_locals(shard.point(groups, self.record_width()));
        Ok(())
    }

    /// Sums the rows of a batch up by `places`.
    fn sum_up(&mut self, batch: &DeltaBatch, count: usize) -> Result<()> {
        if let (true, Weights::Signed(weights)) = (self.append_only, &batch.weights)
            && weights.iter().any(|w| *w < 0)
        {
            return Err(Diagnostic::new(
                Code::Internal,
                "a row is taken back from an aggregate that was planned for growing input",
            ));
        }
        let mut columns = Columns::new(&batch.rows);
        self.resolve(batch, &mut columns)?;
        for i in 0..self.states.len() {
            let view = match self.states[i].kind.view() {
                Some((column, view)) => Some(columns.numbers(column, view)?),
                None => None,
            };
            let state = &mut self.states[i];
            let weights = match self.resolved[state.source] {
                Resolved::Ones => WeightSlice::Ones,
                Resolved::Own => WeightSlice::Signed(&self.weights[state.source]),
                Resolved::Batch => match &batch.weights {
                    Weights::Ones(_) => WeightSlice::Ones,
                    Weights::Signed(w) => WeightSlice::Signed(w),
                },
            };
            state.locals.reset(count);
            state.locals.add(&state.kind, &self.places, weights, view.as_ref());
        }
        Ok(())
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
    fn resolve(&mut self, batch: &DeltaBatch, columns: &mut Columns<'_>) -> Result<()> {
        let rows = batch.num_rows();
        self.resolved.clear();
        for (i, source) in self.sources.iter().enumerate() {
            let nulls = match source.present {
                Some(column) => columns.array(column)?.logical_nulls().filter(|n| n.null_count() > 0),
                None => None,
            };
            if source.filter.is_none() && source.truth.is_none() && nulls.is_none() {
                self.resolved.push(if matches!(batch.weights, Weights::Ones(_)) { Resolved::Ones } else { Resolved::Batch });
                continue;
            }
            let own = &mut self.weights[i];
            own.clear();
            match &batch.weights {
                Weights::Ones(_) => own.resize(rows, 1),
                Weights::Signed(w) => own.extend_from_slice(w),
            }
            for column in source.filter.iter().chain(&source.truth) {
                let flags = columns.array(*column)?;
                let flags = flags.as_any().downcast_ref::<BooleanArray>().ok_or_else(|| {
                    Diagnostic::new(Code::Internal, format!("column {column} is {}, not BOOLEAN", flags.data_type()))
                })?;
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
        for record in records {
            let slot = table.value_mut(*record);
            for state in &self.states {
                match state.kind {
                    // Every state that counts rows of a group with none left starts anew: no noise of float sums survives.
                    StateKind::SumFloat(_) => {
                        let sum = super::numeric::FloatSum::read(&slot[state.at..]);
                        if sum.finite == 0 && sum.sum != super::numeric::Twofold::default() {
                            let clean = super::numeric::FloatSum { sum: super::numeric::Twofold::default(), ..sum };
                            clean.write(&mut slot[state.at..state.at + super::numeric::FloatSum::BYTES]);
                        }
                    }
                    StateKind::Moments(_) => {
                        let sum = super::numeric::Moments::read(&slot[state.at..]);
                        if sum.finite == 0 && sum != super::numeric::Moments::default() {
                            let clean = super::numeric::Moments { infinite: sum.infinite, ..super::numeric::Moments::default() };
                            clean.write(&mut slot[state.at..state.at + super::numeric::Moments::BYTES]);
                        }
                    }
                    StateKind::Count if i64::from_le_bytes(array(slot, state.at)) < 0 => {
                        return Err(Diagnostic::new(Code::NegativeWeight, "more rows were taken back from a group than it had"));
                    }
                    _ => {}
                }
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
    pub fn evaluate(&mut self, _shard: &mut Shard, slots: &[u8]) -> Result<Evaluated> {
        let mut evaluated = Evaluated { columns: Vec::with_capacity(self.evaluations.len()), failures: Vec::new() };
        for (call, evaluation) in self.evaluations.iter().enumerate() {
            let column = evaluation.evaluate(slots, self.width, call, &mut evaluated.failures)?;
            evaluated.columns.push(column);
        }
        Ok(evaluated)
    }

    /// Adds slot `from[i]` to slot `into[i]`, both among dense slots as of [`gather`](Self::gather); see [`can_merge`](Self::can_merge).
    pub fn merge_slots(&self, from: &[u8], into: &mut [u8]) {
        for (from, into) in from.chunks_exact(self.width).zip(into.chunks_exact_mut(self.width)) {
            for state in &self.states {
                state.kind.merge_slot(from, into, state.at);
            }
        }
    }

    /// Frees what groups hold outside their slots; call it before their records are removed.
    pub fn forget(&mut self, _shard: &mut Shard, _groups: TableId, _records: &[RecordRef]) {}

    /// Frees values that slots no longer show: call it at the end of an epoch, when copies of slots are no longer needed.
    pub fn release(&mut self, _shard: &mut Shard) {}

    /// The columns of partial results behind the group's keys: what a first phase sends to a second one.
    #[must_use]
    pub fn partial_fields(&self) -> Vec<Field> {
        self.states.iter().enumerate().flat_map(|(i, s)| s.kind.partial_fields(i)).collect()
    }
}

/// How many digits an average gets more than its argument.
fn digits_to_add(argument: &DataType, result: &DataType) -> u32 {
    let scale = |t: &DataType| if let DataType::Decimal128(_, scale) = t { i32::from(*scale) } else { 0 };
    (scale(result) - scale(argument)).max(0) as u32
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

    fn numbers(&mut self, column: usize, view: View) -> Result<Numbers> {
        if let Some((_, _, numbers)) = self.numbers.iter().find(|(c, v, _)| *c == column && *v == view) {
            return Ok(numbers.clone());
        }
        let made = numbers(&self.array(column)?, view)?;
        self.numbers.push((column, view, made.clone()));
        Ok(made)
    }
}
