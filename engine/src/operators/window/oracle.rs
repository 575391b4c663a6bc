//! Windowed aggregation against a model that knows only rows: all that were accepted, and what a view over them would show.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use proptest::prelude::*;
use tiderace_storage::{Shard, ShardOptions};

use super::*;
use crate::batch::{DeltaBatch, Weights};
use crate::error::{Code, Result};
use crate::ids::{CoreId, Epoch, NodeId};
use crate::operators::aggregate::{AggregateCall, AggregateFunction};
use crate::operators::{
    EpochMark, OpCx, Operator, Output, PORT_LATE, PORT_MAIN, Progress, RowAccounts, RowPolicy, SLICE_ROWS, Watermark,
};

/// Time, key, value, weight.
type Row = (Option<i64>, Option<i64>, i64, i64);
/// Key, window, count, sum, least value.
type Shown = (Option<i64>, i64, i64, i64, i64, Option<i64>);

fn input() -> SchemaRef {
    let ts = DataType::Timestamp(TimeUnit::Microsecond, None);
    Arc::new(Schema::new(vec![
        Field::new("ts", ts.clone(), true),
        Field::new("k", DataType::Int64, true),
        Field::new("v", DataType::Int64, false),
        Field::new("window_start", ts.clone(), true),
        Field::new("window_end", ts, true),
    ]))
}

/// Rows with their windows attached, once for each; `spec` none: without.
fn batch(rows: &[Row], spec: Option<WindowSpec>) -> DeltaBatch {
    let mut all: Vec<(Row, Option<Window>)> = Vec::new();
    for row in rows {
        match (spec, row.0) {
            (Some(spec), Some(ts)) => all.extend(spec.assign(ts).unwrap().into_iter().map(|w| (*row, Some(w)))),
            _ => all.push((*row, None)),
        }
    }
    let column = |value: &dyn Fn(&(Row, Option<Window>)) -> Option<i64>| {
        Arc::new(TimestampMicrosecondArray::from_iter(all.iter().map(value)))
    };
    let columns: Vec<Arc<dyn Array>> = vec![
        column(&|r| r.0.0),
        Arc::new(Int64Array::from_iter(all.iter().map(|r| r.0.1))),
        Arc::new(Int64Array::from_iter_values(all.iter().map(|r| r.0.2))),
        column(&|r| r.1.map(|w| w.start_us)),
        column(&|r| r.1.map(|w| w.end_us)),
    ];
    let weights = Weights::from_vec(all.iter().map(|r| r.0.3).collect());
    DeltaBatch::new(RecordBatch::try_new(input(), columns).unwrap(), weights)
}

fn call(function: AggregateFunction, args: Vec<usize>) -> AggregateCall {
    AggregateCall::new(function, args, Arc::new(Field::new(function.name(), DataType::Int64, true)))
}

fn plan(windows: WindowSource, keyed: bool, append_only: bool, emission: WindowEmission, lateness_us: i64) -> WindowPlan {
    let mut calls = vec![call(AggregateFunction::Count, vec![]), call(AggregateFunction::Sum, vec![2])];
    if append_only {
        calls.push(call(AggregateFunction::Min, vec![2]));
    }
    let keys = if keyed { vec![1] } else { vec![] };
    WindowPlan { input: input(), windows, keys, calls, append_only, emission, lateness_us, late_rows: true }
}

fn by_column(spec: WindowSpec) -> WindowSource {
    WindowSource::Assign { time: WindowTime::Column(0), spec }
}

struct Bench {
    plan: WindowPlan,
    operator: WindowAggregate,
    shard: Shard,
    accounts: RowAccounts,
    mark: EpochMark,
    /// Net of the epoch's main output.
    net: BTreeMap<Shown, i64>,
    late: Vec<(Row, i64)>,
    /// The most rows that one call gave.
    call_rows: usize,
    calls: usize,
}

impl Bench {
    fn new(plan: WindowPlan) -> Self {
        let operator = WindowAggregate::new(&plan, NodeId(3), CoreId(0)).unwrap();
        let mark = EpochMark { epoch: Epoch(0), time_us: 0, watermark: Watermark::MIN, last: false };
        let accounts = RowAccounts { policy: RowPolicy::Skip, node: "WindowAggregate#3".into(), ..RowAccounts::default() };
        let shard = Shard::new(ShardOptions { budget_bytes: 1 << 30 });
        let mut bench =
            Self { plan, operator, shard, accounts, mark, net: BTreeMap::new(), late: Vec::new(), call_rows: 0, calls: 0 };
        bench.operator.open(&mut bench.shard).unwrap();
        bench
    }

    /// Makes the operator anew over the same state.
    fn restart(&mut self) {
        self.operator = WindowAggregate::new(&self.plan, NodeId(3), CoreId(0)).unwrap();
        self.operator.open(&mut self.shard).unwrap();
    }

    fn take(&mut self, out: &mut Output) {
        let mut rows = 0;
        for (port, b) in out.batches.drain(..) {
            rows += b.num_rows();
            let times = |i: usize| b.rows.column(i).as_primitive::<TimestampMicrosecondType>().clone();
            let longs = |i: usize| b.rows.column(i).as_primitive::<Int64Type>().clone();
            let known = |a: &Int64Array, i: usize| a.is_valid(i).then(|| a.value(i));
            if port == PORT_LATE {
                for i in 0..b.num_rows() {
                    let row = (Some(times(0).value(i)), known(&longs(1), i), longs(2).value(i), b.weights.get(i));
                    self.late.push((row, times(5).value(i)));
                }
                continue;
            }
            assert_eq!(port, PORT_MAIN);
            assert_eq!(b.rows.schema(), self.plan.output_schema().unwrap());
            let keys = self.plan.keys.len();
            for i in 0..b.num_rows() {
                let key = if keys == 1 { known(&longs(0), i) } else { None };
                let (start, end, time) = (times(keys).value(i), times(keys + 1).value(i), times(keys + 2).value(i));
                assert_eq!(time, end - 1000);
                let least = if self.plan.append_only { known(&longs(keys + 5), i) } else { None };
                let shown = (key, start, end, longs(keys + 3).value(i), longs(keys + 4).value(i), least);
                assert!(self.net.insert(shown, b.weights.get(i)).is_none(), "{shown:?} stands twice in one epoch");
            }
        }
        self.call_rows = self.call_rows.max(rows);
    }

    fn try_epoch(&mut self, batches: &[DeltaBatch], time_us: i64, watermark: i64, last: bool) -> Result<()> {
        (self.net, self.late, self.calls) = (BTreeMap::new(), Vec::new(), 0);
        let (before, mut accounts) = (self.mark, std::mem::take(&mut self.accounts));
        let mut shard = std::mem::replace(&mut self.shard, Shard::new(ShardOptions { budget_bytes: 0 }));
        let epoch = before.epoch.next();
        let mark = EpochMark { epoch, time_us, watermark: Watermark(watermark), last };
        let (watermark, time_us) = (before.watermark, before.time_us);
        let rows = &mut accounts;
        let mut cx = OpCx { shard: &mut shard, core: CoreId(0), epoch, watermark, time_us, may_wait: true, rows };
        let mut out = Output::default();
        for batch in batches {
            self.operator.on_delta(0, batch.clone(), &mut cx, &mut out)?;
            self.take(&mut out);
        }
        self.call_rows = 0;
        loop {
            let progress = self.operator.on_mark(&mark, &mut cx, &mut out)?;
            self.calls += 1;
            self.take(&mut out);
            if progress == Progress::Done {
                break;
            }
        }
        (self.mark, self.accounts, self.shard) = (mark, accounts, shard);
        Ok(())
    }

    fn epoch(&mut self, batches: &[DeltaBatch], watermark: i64, last: bool) {
        self.try_epoch(batches, self.mark.time_us + 1, watermark, last).unwrap();
    }
}

/// All rows that were accepted, by window and key: the values with their net weights.
#[derive(Default)]
struct Model {
    accepted: BTreeMap<(Window, Option<i64>), BTreeMap<i64, i64>>,
    out: BTreeMap<Shown, i64>,
    late: u64,
}

impl Model {
    fn view(&self, plan: &WindowPlan, watermark: i64) -> BTreeMap<Shown, i64> {
        let mut view = BTreeMap::new();
        for ((window, key), values) in &self.accepted {
            let count: i64 = values.values().sum();
            if count == 0 || (plan.emission == WindowEmission::OnClose && window.end_us > watermark) {
                continue;
            }
            let least = values.iter().find(|(_, w)| **w > 0).map(|(v, _)| *v).filter(|_| plan.append_only);
            let sum = values.iter().map(|(v, w)| v * w).sum();
            view.insert((*key, window.start_us, window.end_us, count, sum, least), 1);
        }
        view
    }

    /// The rows of an epoch come in, then its mark; the net output.
    fn epoch(&mut self, plan: &WindowPlan, spec: WindowSpec, rows: &[Row], before: i64, watermark: i64) -> BTreeMap<Shown, i64> {
        for (ts, key, value, weight) in rows {
            let Some(ts) = ts else { continue };
            let mut late = 0;
            for window in spec.assign(*ts).unwrap() {
                if window.end_us.saturating_add(plan.lateness_us) <= before {
                    late += 1;
                    continue;
                }
                let key = if plan.keys.is_empty() { None } else { *key };
                *self.accepted.entry((window, key)).or_default().entry(*value).or_default() += weight;
            }
            // With attached windows each row is one row a window.
            let attached = matches!(plan.windows, WindowSource::Attached { .. });
            self.late += weight.unsigned_abs() * if attached { late } else { late.min(1) };
        }
        let view = self.view(plan, watermark);
        let mut net = view.clone();
        for (row, weight) in std::mem::replace(&mut self.out, view) {
            *net.entry(row).or_default() -= weight;
        }
        net.retain(|_, w| *w != 0);
        net
    }
}

fn specs() -> impl Strategy<Value = WindowSpec> {
    prop_oneof![
        (2_i64..12).prop_map(|n| WindowSpec::tumble_us(n * 1000).unwrap()),
        (1_i64..6, 0_i64..12).prop_map(|(slide, more)| WindowSpec::hop_us(slide * 1000, (slide + more) * 1000).unwrap()),
        (1_i64..5, 1_i64..5).prop_map(|(step, n)| WindowSpec::cumulate_us(step * 1000, step * n * 1000).unwrap()),
    ]
}

/// Rows, whether one of them is taken back later, the watermark's step, whether the operator is made anew after the epoch.
type EpochPlan = (Vec<(i64, Option<i64>, i64)>, Vec<usize>, i64, bool);

fn epochs() -> impl Strategy<Value = Vec<EpochPlan>> {
    let row = (-20_000_i64..60_000, proptest::option::weighted(0.9, 0_i64..3), -5_i64..6);
    let rows = proptest::collection::vec(row, 0..12);
    proptest::collection::vec(
        (
            rows,
            proptest::collection::vec(any::<prop::sample::Index>().prop_map(|i| i.index(1 << 20)), 0..5),
            0_i64..9000,
            any::<bool>(),
        ),
        1..12,
    )
}

fn check(plan: WindowPlan, spec: WindowSpec, epochs: &[EpochPlan]) -> Result<(), TestCaseError> {
    let mut bench = Bench::new(plan.clone());
    let mut model = Model::default();
    let attached = matches!(plan.windows, WindowSource::Attached { .. }).then_some(spec);
    let mut live: Vec<Row> = Vec::new();
    let mut watermark = -15_000;
    let mut before = i64::MIN;
    for (i, (new, taken, step, restart)) in epochs.iter().enumerate() {
        let mut rows: Vec<Row> = new.iter().map(|(ts, k, v)| (Some(*ts), *k, *v, 1)).collect();
        if !plan.append_only {
            // Only rows of epochs before that no window refused: what is late now may not have been late then.
            for pick in taken {
                if !live.is_empty() {
                    let (ts, k, v, _) = live.swap_remove(pick % live.len());
                    rows.insert(pick % (rows.len() + 1), (ts, k, v, -1));
                }
            }
        }
        let accepted =
            |row: &&Row| spec.assign(row.0.unwrap()).unwrap().iter().all(|w| w.end_us.saturating_add(plan.lateness_us) > before);
        live.extend(rows.iter().filter(|r| r.3 > 0).filter(accepted).copied().collect::<Vec<_>>());
        let last = i + 1 == epochs.len();
        watermark = if last { i64::MAX } else { watermark + step };
        let cut = rows.len() / 2;
        bench.epoch(&[batch(&rows[..cut], attached), batch(&rows[cut..], attached)], watermark, last);
        let expected = model.epoch(&plan, spec, &rows, before, watermark);
        prop_assert_eq!(&bench.net, &expected, "epoch {}", i + 1);
        prop_assert_eq!(bench.accounts.late, model.late);
        if plan.emits_append_only() {
            prop_assert!(bench.net.values().all(|w| *w == 1));
        }
        for (row, judge) in &bench.late {
            prop_assert_eq!(*judge, before);
            prop_assert!(
                spec.assign(row.0.unwrap()).unwrap().iter().any(|w| w.end_us.saturating_add(plan.lateness_us) <= before)
            );
        }
        before = watermark;
        if *restart {
            bench.restart();
        }
    }
    prop_assert_eq!(bench.operator.panes.panes.len() + bench.operator.panes.prefixes.len(), 0, "tables are left");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn results_are_those_of_the_model(
        spec in specs(), keyed in any::<bool>(), append_only in any::<bool>(), changes in any::<bool>(),
        lateness_us in prop_oneof![Just(0_i64), 0_i64..20_000], attached in prop::bool::weighted(0.3), epochs in epochs(),
    ) {
        let emission = if changes { WindowEmission::Changes } else { WindowEmission::OnClose };
        let windows = if attached { WindowSource::Attached { window_start: 3, window_end: 4, processing: false } } else { by_column(spec) };
        check(plan(windows, keyed, append_only, emission, lateness_us), spec, &epochs)?;
    }

    #[test]
    fn shared_slices_give_what_the_model_gives(spec in specs(), append_only in any::<bool>(), epochs in epochs()) {
        check(plan(by_column(spec), true, append_only, WindowEmission::OnClose, 0), spec, &epochs)?;
    }
}

#[test]
fn slices_are_shared_where_that_is_possible_and_pays() {
    let shares = |spec, emission, lateness_us| {
        WindowAggregate::new(&plan(by_column(spec), true, true, emission, lateness_us), NodeId(0), CoreId(0))
            .unwrap()
            .shares_slices()
    };
    let hop = WindowSpec::hop_us(2000, 10_000).unwrap();
    assert!(shares(hop, WindowEmission::OnClose, 0));
    assert!(shares(WindowSpec::cumulate_us(1000, 60_000).unwrap(), WindowEmission::OnClose, 0));
    assert!(!shares(hop, WindowEmission::OnClose, 1));
    assert!(!shares(hop, WindowEmission::Changes, 0));
    assert!(!shares(WindowSpec::tumble_us(2000).unwrap(), WindowEmission::OnClose, 0));
    // slices of 1 µs: cheaper to bring a row into its two windows
    assert!(!shares(WindowSpec::hop_us(6001, 10_000).unwrap(), WindowEmission::OnClose, 0));
}

#[test]
fn a_late_row_is_counted_and_goes_to_the_late_port_with_the_watermark() {
    let spec = WindowSpec::tumble_us(10_000).unwrap();
    let mut bench = Bench::new(plan(by_column(spec), true, true, WindowEmission::OnClose, 0));
    bench.epoch(&[batch(&[(Some(5000), Some(1), 7, 1)], None)], 10_000, false);
    assert_eq!(bench.net, BTreeMap::from([((Some(1), 0, 10_000, 1, 7, Some(7)), 1)]));
    bench.epoch(&[batch(&[(Some(9999), Some(1), 8, 1), (Some(10_000), Some(1), 9, 1)], None)], 10_000, false);
    assert!(bench.net.is_empty());
    assert_eq!((bench.late.clone(), bench.accounts.late), (vec![((Some(9999), Some(1), 8, 1), 10_000)], 1));
}

#[test]
fn a_row_within_the_lateness_corrects_its_window() {
    let spec = WindowSpec::tumble_us(10_000).unwrap();
    let mut bench = Bench::new(plan(by_column(spec), true, true, WindowEmission::OnClose, 5000));
    bench.epoch(&[batch(&[(Some(5000), Some(1), 7, 1)], None)], 10_000, false);
    bench.epoch(&[batch(&[(Some(5001), Some(1), 3, 1), (Some(5001), Some(2), 3, 1)], None)], 15_000, false);
    let (old, new, other) =
        ((Some(1), 0, 10_000, 1, 7, Some(7)), (Some(1), 0, 10_000, 2, 10, Some(3)), (Some(2), 0, 10_000, 1, 3, Some(3)));
    assert_eq!(bench.net, BTreeMap::from([(old, -1), (new, 1), (other, 1)]));
    bench.epoch(&[batch(&[(Some(5002), Some(1), 1, 1)], None)], 15_000, true);
    assert!(bench.net.is_empty());
    assert_eq!(bench.accounts.late, 1);
}

#[test]
fn windows_of_processing_time_close_by_the_epochs_time_or_the_end() {
    let spec = WindowSpec::tumble_us(10_000).unwrap();
    let windows = WindowSource::Assign { time: WindowTime::Processing, spec };
    let mut bench = Bench::new(plan(windows, true, true, WindowEmission::OnClose, 0));
    let row = || batch(&[(None, Some(1), 7, 1)], None);
    bench.try_epoch(&[row()], 9999, i64::MIN, false).unwrap();
    assert!(bench.net.is_empty());
    bench.try_epoch(&[row()], 10_000, i64::MIN, false).unwrap();
    assert_eq!(bench.net, BTreeMap::from([((Some(1), 0, 10_000, 2, 14, Some(7)), 1)]));
    bench.try_epoch(&[row()], 10_001, i64::MAX, true).unwrap();
    assert_eq!(bench.net, BTreeMap::from([((Some(1), 10_000, 20_000, 1, 7, Some(7)), 1)]));
}

#[test]
fn rows_without_time_or_out_of_range_are_rejected_and_lose_nothing_else() {
    let spec = WindowSpec::tumble_us(10_000).unwrap();
    let mut bench = Bench::new(plan(by_column(spec), true, true, WindowEmission::OnClose, 0));
    let rows =
        [(None, Some(1), 1, 1), (Some(i64::MAX), Some(1), 1, 1), (Some(i64::MIN), Some(1), 1, 1), (Some(-1), Some(1), 4, 1)];
    bench.epoch(&[batch(&rows, None)], i64::MAX, true);
    assert_eq!(bench.accounts.rejected, [(Code::NullEventTime, 1), (Code::Overflow, 2)]);
    assert_eq!(bench.net, BTreeMap::from([((Some(1), -10_000, 0, 1, 4, Some(4)), 1)]));
}

#[test]
fn windows_at_the_ends_of_time_close_only_with_the_input() {
    let spec = WindowSpec::tumble_us(10_000).unwrap();
    let mut bench = Bench::new(plan(by_column(spec), true, true, WindowEmission::OnClose, i64::MAX));
    let far = i64::MAX - 20_000;
    bench.epoch(&[batch(&[(Some(far), Some(1), 1, 1), (Some(0), Some(1), 1, 1)], None)], 20_000, false);
    assert_eq!(bench.net.len(), 1);
    bench.epoch(&[], i64::MAX, true);
    assert_eq!(bench.net.len(), 1);
    assert!(bench.operator.panes.panes.is_empty());
}

#[test]
fn a_sum_out_of_range_leaves_its_group_out_and_is_counted() {
    let spec = WindowSpec::tumble_us(10_000).unwrap();
    let mut bench = Bench::new(plan(by_column(spec), true, true, WindowEmission::OnClose, 0));
    let rows = [(Some(1), Some(1), i64::MAX, 1), (Some(1), Some(1), 1, 1), (Some(1), Some(2), 5, 1)];
    bench.epoch(&[batch(&rows, None)], i64::MAX, true);
    assert_eq!(bench.accounts.rejected, [(Code::Overflow, 1)]);
    assert_eq!(bench.net, BTreeMap::from([((Some(2), 0, 10_000, 1, 5, Some(5)), 1)]));
}

#[test]
fn taking_back_a_row_that_was_never_there_fails_the_job() {
    let spec = WindowSpec::tumble_us(10_000).unwrap();
    let mut bench = Bench::new(plan(by_column(spec), true, false, WindowEmission::OnClose, 0));
    let failed = bench.try_epoch(&[batch(&[(Some(1), Some(1), 1, -1)], None)], 1, i64::MAX, true).unwrap_err();
    assert_eq!(failed.code, Code::NegativeWeight);
    assert!(failed.message.contains("WindowAggregate#3"), "{failed}");
}

#[test]
fn many_groups_fire_in_slices() {
    let many: Vec<Row> = (0..SLICE_ROWS as i64 * 5).map(|k| (Some(k % 3000), Some(k), 1, 1)).collect();
    for (spec, emission) in [
        (WindowSpec::tumble_us(10_000).unwrap(), WindowEmission::OnClose),
        (WindowSpec::tumble_us(10_000).unwrap(), WindowEmission::Changes),
        (WindowSpec::hop_us(1000, 3000).unwrap(), WindowEmission::OnClose),
    ] {
        let mut bench = Bench::new(plan(by_column(spec), true, true, emission, 0));
        bench.epoch(&[batch(&many, None)], i64::MAX, true);
        assert_eq!(bench.net.values().sum::<i64>() as usize, many.len() * spec.windows_per_row());
        assert!(bench.call_rows <= SLICE_ROWS && bench.calls >= 5, "{} rows in one of {} calls", bench.call_rows, bench.calls);
    }
    // Very many small windows are worked off in slices too.
    let spread: Vec<Row> = (0..5000).map(|k| (Some(k * 1000), Some(1), 1, 1)).collect();
    let mut bench = Bench::new(plan(by_column(WindowSpec::tumble_us(1000).unwrap()), true, true, WindowEmission::OnClose, 0));
    bench.epoch(&[batch(&spread, None)], i64::MAX, true);
    assert!(bench.net.len() == 5000 && bench.calls > 5, "{} in {} calls", bench.net.len(), bench.calls);
}

#[test]
fn negative_lateness_and_wrong_time_columns_are_refused() {
    let spec = WindowSpec::tumble_us(10_000).unwrap();
    let refused = plan(by_column(spec), true, true, WindowEmission::OnClose, -1).check().unwrap_err();
    assert_eq!(refused.code, Code::InvalidArgument);
    let windows = WindowSource::Assign { time: WindowTime::Column(1), spec };
    assert_eq!(plan(windows, true, true, WindowEmission::OnClose, 0).check().unwrap_err().code, Code::TypeMismatch);
}
