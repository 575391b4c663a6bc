//! Windows: how fast rows come into them, how fast a window of many keys fires, and how long one call of the operator holds its core.
//!
//! `cargo bench --workspace --bench window_fire`; `FIRE_KEYS=10000000` also prints the longest calls for a window of so many keys.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tiderace_engine::batch::DeltaBatch;
use tiderace_engine::ids::{CoreId, Epoch, NodeId};
use tiderace_engine::operators::aggregate::{AggregateCall, AggregateFunction};
use tiderace_engine::operators::window::{
    Assignment, WindowAggregate, WindowEmission, WindowPlan, WindowSource, WindowSpec, WindowTime,
};
use tiderace_engine::operators::{EpochMark, OpCx, Operator, Output, Progress, RowAccounts, Watermark};
use tiderace_storage::{Shard, ShardOptions};

const BATCH_ROWS: usize = 8192;

fn input() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, None), false),
        Field::new("k", DataType::Int64, false),
        Field::new("v", DataType::Int64, false),
    ]))
}

/// Each key once, its times spread over 10 s.
fn batches(keys: usize) -> Vec<DeltaBatch> {
    (0..keys.div_ceil(BATCH_ROWS))
        .map(|b| {
            let rows = (b * BATCH_ROWS) as i64..((b + 1) * BATCH_ROWS).min(keys) as i64;
            let ts = TimestampMicrosecondArray::from_iter_values(rows.clone().map(|k| k * 10_000_000 / keys as i64));
            let k = Int64Array::from_iter_values(rows.clone().map(|k| k.wrapping_mul(0x9E37_79B9)));
            let v = Int64Array::from_iter_values(rows);
            DeltaBatch::append(RecordBatch::try_new(input(), vec![Arc::new(ts), Arc::new(k), Arc::new(v)]).unwrap())
        })
        .collect()
}

struct Core {
    operator: WindowAggregate,
    shard: Shard,
    accounts: RowAccounts,
}

impl Core {
    fn new(spec: WindowSpec) -> Self {
        let call = |function: AggregateFunction, args| {
            AggregateCall::new(function, args, Arc::new(Field::new(function.name(), DataType::Int64, true)))
        };
        let plan = WindowPlan {
            input: input(),
            windows: WindowSource::Assign { time: WindowTime::Column(0), spec },
            keys: vec![1],
            calls: vec![call(AggregateFunction::Count, vec![]), call(AggregateFunction::Max, vec![2])],
            append_only: true,
            emission: WindowEmission::OnClose,
            lateness_us: 0,
            late_rows: false,
        };
        let operator = WindowAggregate::new(&plan, NodeId(1), CoreId(0)).unwrap();
        Self { operator, shard: Shard::new(ShardOptions { budget_bytes: usize::MAX }), accounts: RowAccounts::default() }
    }

    fn call<T>(&mut self, work: impl FnOnce(&mut WindowAggregate, &mut OpCx<'_>, &mut Output) -> T) -> (T, usize) {
        let rows = &mut self.accounts;
        let (epoch, watermark) = (Epoch(1), Watermark::MIN);
        let mut cx = OpCx { shard: &mut self.shard, core: CoreId(0), epoch, watermark, time_us: 0, may_wait: true, rows };
        let mut out = Output::default();
        let answer = work(&mut self.operator, &mut cx, &mut out);
        (answer, out.batches.iter().map(|(_, b)| b.num_rows()).sum())
    }

    fn filled(spec: WindowSpec, batches: &[DeltaBatch]) -> Self {
        let mut core = Self::new(spec);
        for batch in batches {
            core.call(|operator, cx, out| operator.on_delta(0, batch.clone(), cx, out).unwrap());
        }
        core
    }

    /// Closes all windows; the rows that came out, and how long the longest calls took.
    fn fire(&mut self) -> (usize, Vec<Duration>) {
        let mark = EpochMark { epoch: Epoch(1), time_us: 0, watermark: Watermark::MAX, last: true };
        let (mut rows, mut calls) = (0, Vec::new());
        loop {
            let start = Instant::now();
            let (progress, emitted) = self.call(|operator, cx, out| operator.on_mark(&mark, cx, out).unwrap());
            calls.push(start.elapsed());
            rows += emitted;
            if progress == Progress::Done {
                calls.sort_unstable();
                return (rows, calls);
            }
        }
    }
}

fn window_fire(c: &mut Criterion) {
    let tumble = WindowSpec::tumble_us(10_000_000).unwrap();
    let hop = WindowSpec::hop_us(2_000_000, 10_000_000).unwrap();
    let keys = 1_000_000;
    let rows = batches(keys);
    let mut group = c.benchmark_group("window_fire");
    group.sample_size(10);
    group.throughput(Throughput::Elements(keys as u64));
    for (name, spec) in [("tumble", tumble), ("hop_5_slices", hop)] {
        group.bench_function(format!("{name}/take_in"), |b| {
            b.iter_batched_ref(
                || Core::new(spec),
                |core| {
                    rows.iter().for_each(|batch| {
                        core.call(|operator, cx, out| operator.on_delta(0, batch.clone(), cx, out).unwrap());
                    })
                },
                BatchSize::PerIteration,
            );
        });
        group.bench_function(format!("{name}/fire"), |b| {
            b.iter_batched_ref(|| Core::filled(spec, &rows), |core| assert!(core.fire().0 >= keys), BatchSize::PerIteration);
        });
    }
    group.throughput(Throughput::Elements(BATCH_ROWS as u64));
    let times = rows[0].rows.column(0).as_any().downcast_ref::<TimestampMicrosecondArray>().unwrap().clone();
    group.bench_function("assign/hop", |b| {
        let mut assignment = Assignment::default();
        b.iter(|| hop.assign_column(&times, &mut assignment));
    });
    group.finish();

    if let Some(keys) = std::env::var("FIRE_KEYS").ok().and_then(|n| n.parse().ok()) {
        for (name, spec) in [("tumble", tumble), ("hop_5_slices", hop)] {
            let (rows, calls) = Core::filled(spec, &batches(keys)).fire();
            let at = |part: f64| calls[((calls.len() - 1) as f64 * part) as usize].as_micros();
            let total: Duration = calls.iter().sum();
            println!(
                "{name}: {rows} rows of {keys} keys in {} calls, {} ms; a call µs p50 {} p99 {} max {}",
                calls.len(),
                total.as_millis(),
                at(0.5),
                at(0.99),
                at(1.0)
            );
        }
    }
}

criterion_group!(benches, window_fire);
criterion_main!(benches);
