//! What a windowed aggregation does at a mark: a list of actions in order of the windows' ends, worked off in slices.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::{cast, take};
use arrow::util::display::array_value_to_string;
use tiderace_storage::{RecordRef, Shard, TableId};

use super::aggregate::{Layout, Target, WindowAggregate, WindowEmission};
use super::assign::{internal, window_columns};
use super::panes::{PaneKind, Panes};
use super::spec::{Window, WindowCursor, WindowKind};
use crate::batch::{DeltaBatch, Weights};
use crate::connect::Rejected;
use crate::error::{Code, Result};
use crate::key::Keys;
use crate::operators::aggregate::group::same_rows;
use crate::operators::touched::Touched;
use crate::operators::{EpochMark, OpCx, Output, PORT_MAIN, Progress, SLICE_ROWS};
use crate::sql::types::data_type_name;

/// What an action costs besides its rows, so that a call ends among very many small windows too.
const ACTION_ROWS: usize = 32;
/// A row that is merged into the table of a window costs as much as so many that are emitted: it is looked for there, and may make it grow.
const MERGED_ROW_COST: usize = 4;

/// Work at a mark that is not done yet.
#[derive(Debug, Default)]
pub(super) struct Firing {
    in_mark: bool,
    actions: VecDeque<Action>,
    /// Windows above slices that are still to close, by end, then start.
    due: BTreeSet<(i64, i64)>,
    rows: Rows,
    after: Vec<After>,
    records: Vec<RecordRef>,
    keys: Keys,
}

#[derive(Debug)]
enum Action {
    /// Emit the groups of a window that the epoch changed, from `at` on.
    Changes { window: Window, table: TableId, touched: Touched, at: usize, dead: Keys, is_last: bool },
    /// Add the groups of one table to those of another, from a cursor on.
    Merge { from: TableId, into: TableId, cursor: u64, drops: bool },
    /// Emit all groups of a table, from a cursor on.
    Fire { window: Window, table: TableId, cursor: u64, drops: bool },
    /// Free a table, from a cursor on.
    Drop { table: TableId, cursor: u64 },
}

/// What may be done only when the rows collected so far are out, because they may still refer to it.
#[derive(Debug)]
enum After {
    Forget { table: TableId, records: Vec<RecordRef> },
    Remove { table: TableId, dead: Keys },
    Drop { table: TableId },
}

/// Groups to be emitted: their keys, windows and slots, and where something may have been emitted before, their slots from then.
#[derive(Debug, Default)]
struct Rows {
    keys: Keys,
    windows: Vec<Window>,
    before: Vec<u8>,
    after: Vec<u8>,
    are_changes: bool,
}

fn push_key(keys: &mut Keys, key: &[u8], hash: u64) {
    if keys.offsets.is_empty() {
        keys.offsets.push(0);
    }
    keys.bytes.extend_from_slice(key);
    keys.offsets.push(keys.bytes.len() as u32);
    keys.hashes.push(hash);
}

fn rows_of(slot: &[u8]) -> i64 {
    i64::from_le_bytes(slot[..8].try_into().expect("a slot begins with its number of rows"))
}

impl Firing {
    /// The windows above a slice that got rows are to close some time.
    pub(super) fn due_with(&mut self, target: &Target) {
        self.due.extend(target.windows.iter().map(|w| (w.end_us, w.start_us)));
    }

    /// Finds out again which windows are to close, from the tables that there are.
    pub(super) fn reopen(&mut self, layout: Layout, panes: &Panes, closed_us: i64) {
        let Layout::Slices(spec) = layout else { return };
        let mut cursor = WindowCursor::new(spec);
        for (_, start_us) in panes.panes.keys().chain(panes.prefixes.keys()) {
            // The start of a pane was computed from this specification, so it has windows.
            let windows = cursor.seek(*start_us).unwrap_or(&[]);
            self.due.extend(windows.iter().filter(|w| w.end_us > closed_us).map(|w| (w.end_us, w.start_us)));
        }
    }
}

impl WindowAggregate {
    pub(super) fn fire(&mut self, mark: &EpochMark, cx: &mut OpCx<'_>, out: &mut Output) -> Result<Progress> {
        if !self.firing.in_mark {
            self.firing.in_mark = true;
            let now_us = self.now(mark.watermark, mark.time_us);
            self.plan_changes(now_us);
            match self.layout {
                Layout::Windows => self.plan_windows(now_us, cx.shard),
                Layout::Slices(spec) => {
                    self.plan_slices(now_us, matches!(spec.kind(), WindowKind::Cumulate { .. }), cx.shard);
                    self.panes.closed(cx.shard, now_us);
                }
            }
        }
        let mut budget = SLICE_ROWS;
        while budget > 0
            && let Some(action) = self.firing.actions.pop_front()
        {
            let (cost, rest) = self.act(action, budget, cx, out)?;
            budget = budget.saturating_sub(cost + ACTION_ROWS);
            if let Some(rest) = rest {
                self.firing.actions.push_front(rest);
            }
        }
        self.flush(cx, out)?;
        if !self.firing.actions.is_empty() {
            return Ok(Progress::More);
        }
        self.aggregates.release(cx.shard);
        self.firing.in_mark = false;
        Ok(Progress::Done)
    }

    /// Old and new rows of the groups that the epoch changed, where old ones may be out.
    fn plan_changes(&mut self, now_us: i64) {
        for window in std::mem::take(&mut self.dirty) {
            let Some(pane) = self.panes.panes.get_mut(&(window.end_us, window.start_us)) else { continue };
            let touched = pane.touched.take();
            let (table, is_last) = (pane.table, pane.keep_until_us <= now_us);
            self.firing.actions.push_back(Action::Changes { window, table, touched, at: 0, dead: Keys::default(), is_last });
        }
    }

    /// Windows with a table of their own.
    fn plan_windows(&mut self, now_us: i64, shard: &mut Shard) {
        let closed: Vec<_> =
            self.panes.panes.range(..=(now_us, i64::MAX)).map(|(k, p)| (*k, p.table, p.fired, p.keep_until_us)).collect();
        for ((end_us, start_us), table, fired, keep_until_us) in closed {
            let window = Window { start_us, end_us };
            let drops = keep_until_us <= now_us;
            let fires = self.plan.emission == WindowEmission::OnClose && !fired;
            if fires {
                self.firing.actions.push_back(Action::Fire { window, table, cursor: 0, drops });
            } else if drops {
                self.firing.actions.push_back(Action::Drop { table, cursor: 0 });
            }
            if drops {
                self.panes.forget(shard, PaneKind::Pane, window);
            } else if fires {
                self.panes.fired(shard, window);
            }
        }
    }

    /// Windows over shared slices. HOP: a merge of the window's slices. CUMULATE: what closed so far, plus the slices since.
    fn plan_slices(&mut self, now_us: i64, is_cumulate: bool, shard: &mut Shard) {
        let due = &mut self.firing.due;
        let open = if now_us == i64::MAX { BTreeSet::new() } else { due.split_off(&(now_us + 1, i64::MIN)) };
        let closed = std::mem::replace(due, open);
        for (end_us, start_us) in closed {
            let window = Window { start_us, end_us };
            let inside = (Bound::Excluded((start_us, i64::MAX)), Bound::Included((end_us, i64::MAX)));
            let slices: Vec<_> = self
                .panes
                .panes
                .range(inside)
                .filter(|((_, s), _)| *s >= start_us)
                .map(|(k, p)| (*k, p.table, p.keep_until_us))
                .collect();
            if is_cumulate {
                let known = self.panes.prefixes.iter().find(|((_, s), _)| *s == start_us).map(|(_, p)| p.keep_until_us);
                let Some(until_us) = known.or(slices.first().map(|(_, _, until_us)| *until_us)) else { continue };
                let whole = Window { start_us, end_us: until_us };
                let into = self.panes.pane(shard, PaneKind::Prefix, whole, until_us).table;
                for ((slice_end_us, slice_start_us), from, _) in slices {
                    self.panes.forget(shard, PaneKind::Pane, Window { start_us: slice_start_us, end_us: slice_end_us });
                    self.firing.actions.push_back(Action::Merge { from, into, cursor: 0, drops: true });
                }
                let drops = end_us >= until_us;
                self.firing.actions.push_back(Action::Fire { window, table: into, cursor: 0, drops });
                if drops {
                    self.panes.forget(shard, PaneKind::Prefix, whole);
                }
            } else if let [(_, table, _)] = slices.as_slice() {
                self.firing.actions.push_back(Action::Fire { window, table: *table, cursor: 0, drops: false });
            } else if !slices.is_empty() {
                let into = self.panes.table();
                for (_, from, _) in slices {
                    self.firing.actions.push_back(Action::Merge { from, into, cursor: 0, drops: false });
                }
                self.firing.actions.push_back(Action::Fire { window, table: into, cursor: 0, drops: true });
            }
        }
        let done: Vec<_> = self
            .panes
            .panes
            .range(..=(now_us, i64::MAX))
            .filter(|(_, p)| p.keep_until_us <= now_us)
            .map(|(k, p)| (*k, p.table))
            .collect();
        for ((end_us, start_us), table) in done {
            self.panes.forget(shard, PaneKind::Pane, Window { start_us, end_us });
            self.firing.actions.push_back(Action::Drop { table, cursor: 0 });
        }
    }

    /// Works on an action for about `rows_max` rows; what it cost, and what is left of it.
    fn act(&mut self, action: Action, rows_max: usize, cx: &mut OpCx<'_>, out: &mut Output) -> Result<(usize, Option<Action>)> {
        match action {
            Action::Changes { window, table, touched, at, mut dead, is_last } => {
                self.expect_rows(true, cx, out)?;
                let to = touched.len().min(at + rows_max.div_ceil(2));
                let mut records = std::mem::take(&mut self.firing.records);
                touched.records(at..to, cx.shard.point(table, self.aggregates.record_width()), &mut records)?;
                self.collect(window, table, &records, cx)?;
                self.firing.rows.before.extend_from_slice(touched.before(at..to, self.aggregates.slot_width()));
                if !is_last {
                    let groups = cx.shard.point(table, self.aggregates.record_width());
                    for record in &records {
                        if rows_of(groups.value(*record)) == 0 {
                            push_key(&mut dead, groups.key(*record), groups.hash(*record));
                        }
                    }
                }
                self.firing.records = records;
                let cost = 2 * (to - at);
                if to < touched.len() {
                    return Ok((cost, Some(Action::Changes { window, table, touched, at: to, dead, is_last })));
                }
                if !dead.hashes.is_empty() {
                    self.firing.after.push(After::Remove { table, dead });
                }
                Ok((cost, None))
            }
            Action::Merge { from, into, cursor, drops } => {
                if self.aggregates.needs_forget() {
                    // Merging may replace values that slots on the list still refer to.
                    self.flush(cx, out)?;
                }
                let next = self.merge(from, into, cursor, rows_max.div_ceil(MERGED_ROW_COST), cx.shard);
                let cost = self.firing.records.len() * MERGED_ROW_COST;
                if drops && self.aggregates.needs_forget() {
                    // The merged groups own copies of what these had outside their slots.
                    self.aggregates.forget(cx.shard, from, &self.firing.records);
                }
                let rest = next.map(|cursor| Action::Merge { from, into, cursor, drops });
                if rest.is_none() && drops {
                    self.panes.drop_table(cx.shard, from);
                }
                Ok((cost, rest))
            }
            Action::Fire { window, table, cursor, drops } => {
                self.expect_rows(false, cx, out)?;
                let mut records = std::mem::take(&mut self.firing.records);
                records.clear();
                let next = cx.shard.point(table, self.aggregates.record_width()).scan(cursor, rows_max, &mut records);
                self.collect(window, table, &records, cx)?;
                let cost = records.len();
                if drops && self.aggregates.needs_forget() {
                    self.firing.after.push(After::Forget { table, records });
                } else {
                    self.firing.records = records;
                }
                let rest = next.map(|cursor| Action::Fire { window, table, cursor, drops });
                if rest.is_none() && drops {
                    self.firing.after.push(After::Drop { table });
                }
                Ok((cost, rest))
            }
            Action::Drop { table, cursor } => {
                if !self.aggregates.needs_forget() {
                    self.firing.after.push(After::Drop { table });
                    return Ok((0, None));
                }
                let mut records = Vec::new();
                let next = cx.shard.point(table, self.aggregates.record_width()).scan(cursor, rows_max, &mut records);
                let cost = records.len();
                self.firing.after.push(After::Forget { table, records });
                if next.is_none() {
                    self.firing.after.push(After::Drop { table });
                }
                Ok((cost, next.map(|cursor| Action::Drop { table, cursor })))
            }
        }
    }

    /// Groups collected from here on are (or are not) changes of what may be out.
    fn expect_rows(&mut self, are_changes: bool, cx: &mut OpCx<'_>, out: &mut Output) -> Result<()> {
        if self.firing.rows.are_changes != are_changes {
            self.flush(cx, out)?;
            self.firing.rows.are_changes = are_changes;
        }
        Ok(())
    }

    /// Puts groups of a window on the list of those to emit.
    fn collect(&mut self, window: Window, table: TableId, records: &[RecordRef], cx: &mut OpCx<'_>) -> Result<()> {
        self.aggregates.settle(cx.shard, table, records).map_err(|mut problem| {
            problem.message = format!("operator `{}`: {}", cx.rows.node, problem.message);
            problem
        })?;
        let rows = &mut self.firing.rows;
        self.aggregates.gather(cx.shard, table, records, &mut rows.after);
        let groups = cx.shard.point(table, self.aggregates.record_width());
        for record in records {
            push_key(&mut rows.keys, groups.key(*record), groups.hash(*record));
        }
        rows.windows.resize(rows.windows.len() + records.len(), window);
        Ok(())
    }

    fn merge(&mut self, from: TableId, into: TableId, cursor: u64, rows_max: usize, shard: &mut Shard) -> Option<u64> {
        let Firing { records, keys, .. } = &mut self.firing;
        let width = self.aggregates.record_width();
        records.clear();
        let source = shard.point(from, width);
        let next = source.scan(cursor, rows_max, records);
        keys.bytes.clear();
        keys.offsets.clear();
        keys.hashes.clear();
        for record in records.iter() {
            push_key(keys, source.key(*record), source.hash(*record));
        }
        if records.is_empty() {
            return next;
        }
        let (mut parts, mut sums) = (Vec::new(), Vec::new());
        self.aggregates.gather(shard, from, records, &mut parts);
        let mut entries = Vec::with_capacity(records.len());
        shard.point(into, width).entries(&keys.as_batch(), &mut entries);
        let targets: Vec<RecordRef> = entries.iter().map(|e| e.record).collect();
        self.aggregates.gather(shard, into, &targets, &mut sums);
        self.aggregates.merge_slots(shard, &parts, &mut sums);
        let slot_width = self.aggregates.slot_width();
        let target = shard.point(into, width);
        for (record, slot) in targets.iter().zip(sums.chunks_exact(slot_width)) {
            target.value_mut(*record)[..slot_width].copy_from_slice(slot);
        }
        next
    }

    /// Emits the rows collected so far, and then frees what only they referred to.
    fn flush(&mut self, cx: &mut OpCx<'_>, out: &mut Output) -> Result<()> {
        let rows = std::mem::take(&mut self.firing.rows);
        self.firing.rows.are_changes = rows.are_changes;
        if !rows.windows.is_empty() {
            self.emit_rows(&rows, cx, out)?;
        }
        for after in std::mem::take(&mut self.firing.after) {
            match after {
                After::Forget { table, records } => self.aggregates.forget(cx.shard, table, &records),
                After::Remove { table, dead } => {
                    let width = self.aggregates.record_width();
                    let dead = dead.as_batch();
                    let mut found = Vec::new();
                    cx.shard.point(table, width).find(&dead, &mut found);
                    let records: Vec<RecordRef> = found.into_iter().flatten().collect();
                    self.aggregates.forget(cx.shard, table, &records);
                    let groups = cx.shard.point(table, width);
                    for i in 0..dead.len() {
                        groups.remove(dead.hashes[i], dead.key(i));
                    }
                }
                After::Drop { table } => self.panes.drop_table(cx.shard, table),
            }
        }
        Ok(())
    }

    fn emit_rows(&mut self, rows: &Rows, cx: &mut OpCx<'_>, out: &mut Output) -> Result<()> {
        let count = rows.windows.len();
        let width = self.aggregates.slot_width();
        // The old slots of all, then the new ones.
        let slots = if rows.are_changes { [rows.before.as_slice(), &rows.after].concat() } else { Vec::new() };
        let slots = if rows.are_changes { &slots } else { &rows.after };
        let new = if rows.are_changes { count } else { 0 };
        let evaluated = self.aggregates.evaluate(cx.shard, slots)?;
        let key_batch = rows.keys.as_batch();
        let keys = self.codec.decode((0..count).map(|i| key_batch.key(i)))?;
        let mut failed = vec![false; new + count];
        for failure in &evaluated.failures {
            failed[failure.row] = true;
            if failure.row >= new {
                let row = failure.row - new;
                cx.rows.reject(self.overflow(failure.call, &keys, rows.windows[row], row, &cx.rows.node))?;
            }
        }
        let has_rows = |i: usize| rows_of(&slots[i * width..]) > 0 && !failed[i];
        let (mut indices, mut weights) = (Vec::with_capacity(new + count), Vec::new());
        if rows.are_changes {
            let same = same_rows(&evaluated, count)?;
            for i in 0..count {
                let (had, has) = (has_rows(i), has_rows(count + i));
                if had && has && same(i) {
                    continue;
                }
                for (is, index, weight) in [(had, i, -1), (has, count + i, 1)] {
                    if is {
                        indices.push(index as u32);
                        weights.push(weight);
                    }
                }
            }
        } else {
            indices.extend((0..count).filter(|i| has_rows(*i)).map(|i| i as u32));
        }
        if indices.is_empty() {
            return Ok(());
        }
        let weights = if rows.are_changes { Weights::from_vec(weights) } else { Weights::Ones(indices.len()) };
        let windows: Vec<Window> = indices.iter().map(|i| rows.windows[*i as usize % count]).collect();
        let all = !rows.are_changes && indices.len() == count;
        let of_key: UInt32Array = indices.iter().map(|i| i % count as u32).collect();
        let of_result = UInt32Array::from(indices);
        let pick = |column: &ArrayRef, which: &UInt32Array| if all { Ok(column.clone()) } else { take(column, which, None) };
        let keys = keys.iter().map(|column| pick(column, &of_key));
        let windows = window_columns(&self.window_type, &windows).into_iter().map(Ok);
        let results = evaluated.columns.iter().map(|column| pick(column, &of_result));
        let columns: Result<Vec<ArrayRef>, _> = keys
            .chain(windows)
            .chain(results)
            .zip(self.schema.fields())
            .map(|(column, field)| {
                let column = column?;
                if column.data_type() == field.data_type() { Ok(column) } else { cast(&column, field.data_type()) }
            })
            .collect();
        let batch = RecordBatch::try_new(self.schema.clone(), columns.map_err(internal)?).map_err(internal)?;
        out.emit(PORT_MAIN, DeltaBatch::new(batch, weights));
        Ok(())
    }

    /// A result that its type can't hold.
    fn overflow(&self, call: usize, keys: &[ArrayRef], window: Window, row: usize, node: &str) -> Rejected {
        let result = self.schema.field(keys.len() + 3 + call);
        let [start, end, _] = window_columns(&self.window_type, &[window]);
        let show = |column: &ArrayRef, row: usize| array_value_to_string(column, row).unwrap_or_else(|_| "?".into());
        let mut raw = format!("window [{}, {})", show(&start, 0), show(&end, 0));
        for (field, key) in self.schema.fields().iter().zip(keys) {
            // The planner's own names are told to nobody.
            let name = if field.name().starts_with("__") { String::new() } else { format!("{} = ", field.name()) };
            raw.push_str(&format!(", {name}{}", show(key, row)));
        }
        if raw.len() > Rejected::RAW_BYTES_MAX {
            let end = (0..=Rejected::RAW_BYTES_MAX).rev().find(|i| raw.is_char_boundary(*i)).unwrap_or(0);
            raw.truncate(end);
        }
        let message = format!("`{}` is out of the range of {}", result.name(), data_type_name(result.data_type()));
        Rejected { code: Code::Overflow, message, origin: node.to_owned(), position: None, raw }
    }
}
