//! Aggregation per window and key: plan, operator, and how rows come into panes. What happens at marks is in [`super::fire`].

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use foldhash::HashMap;
use tiderace_storage::{Entry, KeyBatch, RecordRef, Shard};

use super::assign::{WindowTime, epoch_time_out_of_range, internal, refuse, timestamp_type, timestamps, window_fields};
use super::fire::Firing;
use super::panes::{PaneKind, Panes};
use super::spec::{Refusal, Window, WindowCursor, WindowSpec};
use crate::batch::DeltaBatch;
use crate::error::{Code, Diagnostic, Result};
use crate::ids::{CoreId, NodeId};
use crate::key::{KeyCodec, Keys};
use crate::operators::aggregate::{AggregateCall, Aggregates, TableIds};
use crate::operators::{EpochMark, OpCx, Operator, Output, PORT_LATE, Port, Progress, Watermark};

/// Where the windows of a row come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WindowSource {
    /// The operator assigns them itself.
    Assign {
        /// By this time.
        time: WindowTime,
        /// To these windows.
        spec: WindowSpec,
    },
    /// An operator below has: each row says its window.
    Attached {
        /// The column of its first instant, a timestamp in µs.
        window_start: usize,
        /// The column of the first instant behind it, of the same type.
        window_end: usize,
        /// The windows are of processing time: they close by epoch time, not by the watermark.
        processing: bool,
    },
}

/// What comes out, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowEmission {
    /// A row for each group when its window closes. Append-only, unless `lateness_us` lets late rows correct it.
    OnClose,
    /// At each mark the groups that changed in the epoch: the old row with −1, the new one with +1.
    Changes,
}

/// A windowed aggregation as the planner sees it.
#[derive(Clone, Debug)]
pub struct WindowPlan {
    /// The columns of the rows that are grouped.
    pub input: SchemaRef,
    /// Their windows.
    pub windows: WindowSource,
    /// The group's columns besides the window; may be none (an empty window then has no row, as in Flink).
    pub keys: Vec<usize>,
    /// What is computed for each window and group; may be none.
    pub calls: Vec<AggregateCall>,
    /// No row is ever taken back.
    pub append_only: bool,
    /// When results go out.
    pub emission: WindowEmission,
    /// For how long after its end (in event time, µs, not negative) a window still takes rows.
    pub lateness_us: i64,
    /// Whether late rows go to [`PORT_LATE`]; they are counted in any case.
    pub late_rows: bool,
}

impl WindowPlan {
    fn window_type(&self) -> Result<DataType> {
        match self.windows {
            WindowSource::Assign { time, .. } => time.window_type(&self.input),
            WindowSource::Attached { window_start, window_end, .. } => {
                timestamp_type(&self.input, window_start)?;
                timestamp_type(&self.input, window_end)
            }
        }
    }

    /// The result's columns: the keys, `window_start`, `window_end`, `window_time`, then a column a call.
    pub fn output_schema(&self) -> Result<SchemaRef> {
        let keys = self.keys.iter().map(|c| Arc::new(self.input.field(*c).clone()));
        let windows = window_fields(&self.window_type()?).map(Arc::new);
        let calls = self.calls.iter().map(|c| c.output.clone());
        Ok(Arc::new(Schema::new(keys.chain(windows).chain(calls).collect::<Vec<_>>())))
    }

    /// The columns of [`PORT_LATE`]: the input's, then `watermark`, which made the row late, of the windows' type.
    pub fn late_schema(&self) -> Result<SchemaRef> {
        let fields = self.input.fields().iter().cloned();
        let watermark = Arc::new(Field::new("watermark", self.window_type()?, false));
        Ok(Arc::new(Schema::new(fields.chain([watermark]).collect::<Vec<_>>())))
    }

    /// Whether no emitted row is ever taken back.
    #[must_use]
    pub fn emits_append_only(&self) -> bool {
        self.emission == WindowEmission::OnClose && self.lateness_us == 0
    }

    /// Refuses what can't be computed, as the operator itself would.
    pub fn check(&self) -> Result<()> {
        WindowAggregate::new(self, NodeId(0), CoreId(0)).map(|_| ())
    }
}

/// Which tables hold the groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// One a window. A row goes to the table of each of its windows.
    Windows,
    /// One a slice, which the windows above share; they are merged when a window closes.
    Slices(WindowSpec),
}

/// The operator of a windowed `GROUP BY`. Input: rows by [`crate::runtime::graph::Route::Hash`] of the keys, or `Single` without keys; with
/// [`WindowSource::Attached`] the window columns may be part of the hash.
///
/// **Time.** A window closes at the first mark whose watermark (processing time: whose time) is at or above its end; the watermark of the
/// end of input closes all. A row is late for a window when end + lateness is at or below the watermark *of the last mark*. A row that is
/// late for at least one of its windows is counted once (its weight's magnitude) and goes to [`PORT_LATE`] once; windows that are still open
/// do take it.
///
/// **State.** One table a window, or a slice when several windows can share it, dropped as a whole; groups as in [`Aggregates`]. Rows taken
/// back are subtracted; a group whose rows came to none has no result. A result that its type can't hold leaves the group without a row,
/// under the row policy.
#[derive(Debug)]
pub struct WindowAggregate {
    pub(super) plan: WindowPlan,
    pub(super) schema: SchemaRef,
    late_schema: SchemaRef,
    pub(super) window_type: DataType,
    pub(super) codec: KeyCodec,
    pub(super) aggregates: Aggregates,
    pub(super) layout: Layout,
    pub(super) panes: Panes,
    /// Panes that the epoch touched and whose results are out.
    pub(super) dirty: Vec<Window>,
    pub(super) firing: Firing,
    keys: Keys,
    entries: Vec<Entry>,
    records: Vec<RecordRef>,
}

/// With fewer slices in a window than this times the windows of a row, slices are shared.
const SLICES_PER_WINDOW_OF_A_ROW: usize = 4;

impl WindowAggregate {
    /// The operator of one core. Refuses time columns, keys and calls that can't be computed.
    pub fn new(plan: &WindowPlan, node: NodeId, core: CoreId) -> Result<Self> {
        if plan.lateness_us < 0 {
            return Err(Diagnostic::new(Code::InvalidArgument, "ALLOW LATENESS needs an interval that is not negative"));
        }
        let mut tables = TableIds::of(node, core);
        let directory = tables.next();
        let aggregates = Aggregates::new(&plan.calls, &plan.input, plan.append_only, &mut tables)?;
        let layout = match plan.windows {
            WindowSource::Assign { spec, .. }
                if spec.windows_per_row() > 1
                    && spec.slices_per_window() <= SLICES_PER_WINDOW_OF_A_ROW * spec.windows_per_row()
                    && aggregates.can_merge()
                    && plan.emits_append_only() =>
            {
                Layout::Slices(spec)
            }
            _ => Layout::Windows,
        };
        Ok(Self {
            schema: plan.output_schema()?,
            late_schema: plan.late_schema()?,
            window_type: plan.window_type()?,
            codec: KeyCodec::new(&plan.input, &plan.keys)?,
            aggregates,
            layout,
            panes: Panes::new(node, directory),
            dirty: Vec::new(),
            firing: Firing::default(),
            keys: Keys::default(),
            entries: Vec::new(),
            records: Vec::new(),
            plan: plan.clone(),
        })
    }

    /// Whether windows share slices (a row is brought in once, whatever the number of its windows); for EXPLAIN.
    #[must_use]
    pub fn shares_slices(&self) -> bool {
        matches!(self.layout, Layout::Slices(_))
    }

    pub(super) fn is_processing_time(&self) -> bool {
        matches!(
            self.plan.windows,
            WindowSource::Assign { time: WindowTime::Processing, .. } | WindowSource::Attached { processing: true, .. }
        )
    }

    /// The time that a mark or the last one stands for.
    pub(super) fn now(&self, watermark: Watermark, time_us: i64) -> i64 {
        if self.is_processing_time() && watermark != Watermark::MAX { time_us } else { watermark.0 }
    }

    /// Decides for each row which panes it goes to.
    fn route(&self, batch: &DeltaBatch, cx: &mut OpCx<'_>) -> Result<Routes> {
        let now_us = self.now(cx.watermark, cx.time_us);
        let mut routes = Routes::new(self.layout, now_us, self.plan.lateness_us);
        let rows = batch.num_rows();
        match self.plan.windows {
            WindowSource::Assign { time: WindowTime::Column(column), spec } => {
                let times = timestamps(&batch.rows, column)?;
                let mut cursor = WindowCursor::new(spec);
                for row in 0..rows as u32 {
                    if times.is_null(row as usize) {
                        refuse(&batch.rows, row, Refusal::NullTime, cx.rows)?;
                        continue;
                    }
                    let ts_us = times.value(row as usize);
                    if !cursor.holds(ts_us) {
                        if let Err(refusal) = cursor.seek(ts_us) {
                            refuse(&batch.rows, row, refusal, cx.rows)?;
                            continue;
                        }
                        routes.turn_to(cursor.slice(), cursor.windows());
                    }
                    routes.push(row);
                }
            }
            WindowSource::Assign { time: WindowTime::Processing, spec } => {
                let mut cursor = WindowCursor::new(spec);
                cursor.seek(cx.time_us).map_err(|_| epoch_time_out_of_range(cx.time_us))?;
                routes.turn_to(cursor.slice(), cursor.windows());
                (0..rows as u32).for_each(|row| routes.push(row));
            }
            WindowSource::Attached { window_start, window_end, .. } => {
                let (starts, ends) = (timestamps(&batch.rows, window_start)?, timestamps(&batch.rows, window_end)?);
                let mut last = None;
                for row in 0..rows {
                    if starts.is_null(row) || ends.is_null(row) {
                        refuse(&batch.rows, row as u32, Refusal::NullTime, cx.rows)?;
                        continue;
                    }
                    let window = Window { start_us: starts.value(row), end_us: ends.value(row) };
                    if last != Some(window) {
                        routes.turn_to(window, &[window]);
                        last = Some(window);
                    }
                    routes.push(row as u32);
                }
            }
        }
        Ok(routes)
    }

    fn emit_late(&self, batch: &DeltaBatch, late: Vec<u32>, cx: &mut OpCx<'_>, out: &mut Output) -> Result<()> {
        cx.rows.late += late.iter().map(|row| batch.weights.get(*row as usize).unsigned_abs()).sum::<u64>();
        if !self.plan.late_rows {
            return Ok(());
        }
        let weights = batch.weights.take(&late);
        let rows = take_record_batch(&batch.rows, &UInt32Array::from(late)).map_err(internal)?;
        let zone = if let DataType::Timestamp(_, zone) = &self.window_type { zone.clone() } else { None };
        let now_us = self.now(cx.watermark, cx.time_us);
        let watermark: ArrayRef =
            Arc::new(TimestampMicrosecondArray::from_value(now_us, rows.num_rows()).with_timezone_opt(zone));
        let columns = rows.columns().iter().cloned().chain([watermark]).collect();
        let rows = RecordBatch::try_new(self.late_schema.clone(), columns).map_err(internal)?;
        out.emit(PORT_LATE, DeltaBatch::new(rows, weights));
        Ok(())
    }

    /// Brings rows with these keys into a pane.
    fn take_in(&mut self, target: &Target, keys: &KeyBatch<'_>, batch: &DeltaBatch, shard: &mut Shard) -> Result<()> {
        let width = self.aggregates.record_width();
        let pane = self.panes.pane(shard, PaneKind::Pane, target.span, target.keep_until_us);
        let tracked = self.plan.emission == WindowEmission::Changes || pane.fired;
        let table = shard.point(pane.table, width);
        self.entries.clear();
        table.entries(keys, &mut self.entries);
        self.records.clear();
        self.records.extend(self.entries.iter().map(|e| e.record));
        self.aggregates.place(table, &self.records);
        if tracked {
            if pane.touched.len() == 0 {
                self.dirty.push(target.span);
            }
            pane.touched.note(table, self.aggregates.touched(), self.aggregates.slot_width());
        }
        let table = pane.table;
        self.aggregates.apply(shard, table, batch)
    }
}

impl Operator for WindowAggregate {
    fn save(&self) -> Vec<u64> {
        self.aggregates.save()
    }

    fn restore(&mut self, saved: &[u64]) -> Result<()> {
        self.aggregates.restore(saved)
    }

    fn open(&mut self, shard: &mut Shard) -> Result<()> {
        let closed_us = self.panes.open(shard);
        self.firing.reopen(self.layout, &self.panes, closed_us);
        Ok(())
    }

    fn on_delta(&mut self, _port: Port, batch: DeltaBatch, cx: &mut OpCx<'_>, out: &mut Output) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let mut routes = self.route(&batch, cx)?;
        if !routes.late.is_empty() {
            self.emit_late(&batch, std::mem::take(&mut routes.late), cx, out)?;
        }
        if routes.rows.is_empty() {
            return Ok(());
        }
        let (order, ends) = routes.by_target();
        let batch = if routes.targets.len() == 1 && order.len() == batch.num_rows() {
            batch
        } else {
            let weights = batch.weights.take(&order);
            let rows = take_record_batch(&batch.rows, &UInt32Array::from(order)).map_err(internal)?;
            DeltaBatch::new(rows, weights)
        };
        let mut keys = std::mem::take(&mut self.keys);
        if self.plan.keys.is_empty() {
            keys = Keys {
                bytes: Vec::new(),
                offsets: vec![0; batch.num_rows() + 1],
                hashes: vec![crate::key::hash(&[]); batch.num_rows()],
            };
        } else {
            self.codec.encode(&batch.rows, &mut keys)?;
        }
        let mut from = 0;
        for (target, to) in routes.targets.iter().zip(ends) {
            let of_target = KeyBatch { bytes: &keys.bytes, offsets: &keys.offsets[from..=to], hashes: &keys.hashes[from..to] };
            let rows = DeltaBatch::new(batch.rows.slice(from, to - from), batch.weights.slice(from, to - from));
            self.take_in(target, &of_target, &rows, cx.shard)?;
            if let Layout::Slices(_) = self.layout {
                self.firing.due_with(target);
            }
            from = to;
        }
        self.keys = keys;
        Ok(())
    }

    fn on_mark(&mut self, mark: &EpochMark, cx: &mut OpCx<'_>, out: &mut Output) -> Result<Progress> {
        self.fire(mark, cx, out)
    }
}

/// A pane that rows of a batch go to.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) span: Window,
    pub(super) keep_until_us: i64,
    /// Of a slice: the windows above it that are still open.
    pub(super) windows: Vec<Window>,
}

/// Rows of a batch and their panes.
struct Routes {
    layout: Layout,
    now_us: i64,
    lateness_us: i64,
    targets: Vec<Target>,
    known: HashMap<Window, u32>,
    /// Targets of the current slice, and whether it has a window that is closed.
    current: Vec<u32>,
    is_late: bool,
    rows: Vec<u32>,
    row_targets: Vec<u32>,
    late: Vec<u32>,
}

impl Routes {
    fn new(layout: Layout, now_us: i64, lateness_us: i64) -> Self {
        Self {
            layout,
            now_us,
            lateness_us,
            targets: Vec::new(),
            known: HashMap::default(),
            current: Vec::new(),
            is_late: false,
            rows: Vec::new(),
            row_targets: Vec::new(),
            late: Vec::new(),
        }
    }

    /// The rows to come are in this slice and these windows.
    fn turn_to(&mut self, slice: Window, windows: &[Window]) {
        self.current.clear();
        let (now_us, lateness_us) = (self.now_us, self.lateness_us);
        let open: Vec<Window> = windows.iter().copied().filter(|w| w.end_us.saturating_add(lateness_us) > now_us).collect();
        self.is_late = open.len() < windows.len();
        if let Layout::Slices(_) = self.layout {
            if let Some(keep_until_us) = open.iter().map(|w| w.end_us).max() {
                self.target(slice, keep_until_us, open);
            }
        } else {
            for window in open {
                self.target(window, window.end_us.saturating_add(lateness_us), Vec::new());
            }
        }
    }

    fn target(&mut self, span: Window, keep_until_us: i64, windows: Vec<Window>) {
        let targets = &mut self.targets;
        let target = *self.known.entry(span).or_insert_with(|| {
            targets.push(Target { span, keep_until_us, windows });
            targets.len() as u32 - 1
        });
        self.current.push(target);
    }

    #[inline]
    fn push(&mut self, row: u32) {
        for target in &self.current {
            self.rows.push(row);
            self.row_targets.push(*target);
        }
        if self.is_late {
            self.late.push(row);
        }
    }

    /// The rows in order of their targets, and where those of each target end.
    fn by_target(&self) -> (Vec<u32>, Vec<usize>) {
        if self.targets.len() == 1 {
            return (self.rows.clone(), vec![self.rows.len()]);
        }
        let mut ends = vec![0_usize; self.targets.len()];
        for target in &self.row_targets {
            ends[*target as usize] += 1;
        }
        let mut begin = 0;
        for end in &mut ends {
            (begin, *end) = (begin + *end, begin);
        }
        let mut order = vec![0; self.rows.len()];
        for (row, target) in self.rows.iter().zip(&self.row_targets) {
            order[ends[*target as usize]] = *row;
            ends[*target as usize] += 1;
        }
        (order, ends)
    }
}
