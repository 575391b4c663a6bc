//! How many rows a second one core brings into groups: Nexmark q17 (eight plain results a group), q15 and q16 (different values).
#![allow(clippy::unwrap_used, missing_docs, reason = "benches")]

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tiderace_engine::batch::DeltaBatch;
use tiderace_engine::ids::{CoreId, Epoch, NodeId};
use tiderace_engine::operators::aggregate::{AggregateCall, AggregateFunction, GroupAggregate, GroupPlan};
use tiderace_engine::operators::{EpochMark, OpCx, Operator, Output, Progress, RowAccounts, Watermark};
use tiderace_storage::{Shard, ShardOptions};

const ROWS: usize = 8192;
const BATCHES: usize = 64;

/// Bids: auction, bidder, price, day, and a flag for each price range.
fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("auction", DataType::Int64, false),
        Field::new("bidder", DataType::Int64, false),
        Field::new("price", DataType::Int64, false),
        Field::new("day", DataType::Utf8, false),
        Field::new("channel", DataType::Utf8, false),
        Field::new("low", DataType::Boolean, false),
        Field::new("middle", DataType::Boolean, false),
        Field::new("high", DataType::Boolean, false),
    ]))
}

fn batches(groups: u64) -> Vec<DeltaBatch> {
    let mut state = 1_u64;
    let mut next = move |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    (0..BATCHES)
        .map(|_| {
            let auctions: Vec<i64> = (0..ROWS).map(|_| 1000 + next(groups) as i64).collect();
            let bidders: Vec<i64> = (0..ROWS).map(|_| next(groups) as i64).collect();
            let prices: Vec<i64> = (0..ROWS).map(|_| next(10_000_000) as i64).collect();
            let days: Vec<&str> = (0..ROWS).map(|_| "2024-06-01").collect();
            let channels: Vec<String> = (0..ROWS).map(|_| format!("channel-{}", next(10_000))).collect();
            let flag =
                |f: &dyn Fn(i64) -> bool| -> ArrayRef { Arc::new(prices.iter().map(|p| Some(f(*p))).collect::<BooleanArray>()) };
            let columns: Vec<ArrayRef> = vec![
                Arc::new(Int64Array::from(auctions)),
                Arc::new(Int64Array::from(bidders)),
                Arc::new(Int64Array::from(prices.clone())),
                Arc::new(StringArray::from(days)),
                Arc::new(StringArray::from(channels)),
                flag(&|p| p < 10_000),
                flag(&|p| (10_000..1_000_000).contains(&p)),
                flag(&|p| p >= 1_000_000),
            ];
            DeltaBatch::append(RecordBatch::try_new(schema(), columns).unwrap())
        })
        .collect()
}

fn call(function: AggregateFunction, args: &[usize], filter: Option<usize>, distinct: bool) -> AggregateCall {
    let types: Vec<DataType> = args.iter().map(|a| schema().field(*a).data_type().clone()).collect();
    let output = Arc::new(Field::new(function.name(), function.return_type(&types).unwrap(), true));
    AggregateCall { filter, distinct, ..AggregateCall::new(function, args.to_vec(), output) }
}

fn counts(distinct: &[usize]) -> Vec<AggregateCall> {
    let filters = [None, Some(5), Some(6), Some(7)];
    let mut calls: Vec<AggregateCall> = filters.iter().map(|f| call(AggregateFunction::Count, &[], *f, false)).collect();
    for column in distinct {
        calls.extend(filters.iter().map(|f| call(AggregateFunction::Count, &[*column], *f, true)));
    }
    calls
}

struct Run {
    shard: Shard,
    operator: GroupAggregate,
    accounts: RowAccounts,
}

impl Run {
    fn new(plan: &GroupPlan) -> Self {
        let shard = Shard::new(ShardOptions { budget_bytes: 8 << 30 });
        Self { shard, operator: GroupAggregate::new(plan, NodeId(0), CoreId(0)).unwrap(), accounts: RowAccounts::default() }
    }

    fn cx(&mut self) -> (OpCx<'_>, &mut GroupAggregate) {
        let Self { shard, operator, accounts } = self;
        let cx = OpCx {
            shard,
            core: CoreId(0),
            epoch: Epoch(1),
            watermark: Watermark::MIN,
            time_us: 0,
            may_wait: true,
            rows: accounts,
        };
        (cx, operator)
    }

    fn update(&mut self, batches: &[DeltaBatch]) {
        let mut out = Output::default();
        for batch in batches {
            let (mut cx, operator) = self.cx();
            operator.on_delta(0, batch.clone(), &mut cx, &mut out).unwrap();
        }
    }

    fn mark(&mut self) -> usize {
        let mark = EpochMark { epoch: Epoch(1), time_us: 0, watermark: Watermark::MIN, last: false };
        let mut out = Output::default();
        let (mut cx, operator) = self.cx();
        while operator.on_mark(&mark, &mut cx, &mut out).unwrap() == Progress::More {}
        out.batches.iter().map(|b| b.1.num_rows()).sum()
    }
}

fn group_update(c: &mut Criterion) {
    use AggregateFunction as A;
    let q17: Vec<AggregateCall> = [None, Some(5), Some(6), Some(7)]
        .iter()
        .map(|f| call(A::Count, &[], *f, false))
        .chain([A::Min, A::Max, A::Avg, A::Sum].map(|f| call(f, &[2], None, false)))
        .collect();
    let cases = [
        ("q17, 100k groups", vec![0, 3], q17.clone(), 100_000),
        ("q17, 1k groups", vec![0, 3], q17, 1_000),
        ("q15, one group", vec![3], counts(&[1, 0]), 100_000),
        ("q16, 10k groups", vec![4, 3], counts(&[1, 0]), 100_000),
    ];
    let mut group = c.benchmark_group("group_update");
    group.sample_size(10).throughput(Throughput::Elements((ROWS * BATCHES) as u64));
    for (name, keys, calls, groups) in cases {
        let plan = GroupPlan { keys, calls, input: schema(), append_only: true };
        let batches = batches(groups);
        // Groups exist, as they do most of the time.
        let warm = || {
            let mut run = Run::new(&plan);
            run.update(&batches);
            run.mark();
            run
        };
        let mut run = warm();
        let rows = (ROWS * BATCHES) as f64;
        println!(
            "{name}: {} bytes of state for {} rows, {:.0} a row",
            run.shard.used_bytes(),
            rows,
            run.shard.used_bytes() as f64 / rows
        );
        let emitted = {
            run.update(&batches);
            run.mark()
        };
        println!("{name}: {emitted} rows a mark");
        group.bench_function(format!("{name}, update"), |b| {
            b.iter_custom(|iterations| {
                let mut spent = std::time::Duration::ZERO;
                for _ in 0..iterations {
                    let begin = std::time::Instant::now();
                    run.update(&batches);
                    spent += begin.elapsed();
                    run.mark();
                }
                spent
            });
        });
        group.bench_function(format!("{name}, update and mark"), |b| {
            b.iter(|| {
                run.update(&batches);
                run.mark()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, group_update);
criterion_main!(benches);
