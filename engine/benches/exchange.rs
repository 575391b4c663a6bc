//! Moving rows between cores: hash, cut by destination, hand over. `cargo bench --bench exchange`.

use std::hint::black_box;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use criterion::{BatchSize, Criterion, Throughput, criterion_group};
use tiderace_engine::batch::DeltaBatch;
use tiderace_engine::key::{KeyCodec, Keys};
use tiderace_engine::runtime::scatter::{Scatter, Scattered, VnodeMap, gather};

const ROWS: usize = 8192;

fn batch() -> DeltaBatch {
    let schema = Arc::new(Schema::new(vec![
        Field::new("auction", DataType::Int64, false),
        Field::new("price", DataType::Int64, false),
        Field::new("channel", DataType::Utf8, false),
    ]));
    let columns: Vec<ArrayRef> = vec![
        Arc::new((0..ROWS as i64).map(|i| i * 7919 % 1000).collect::<Int64Array>()),
        Arc::new((0..ROWS as i64).collect::<Int64Array>()),
        Arc::new((0..ROWS).map(|i| Some(["Google", "Facebook", "Baidu", "Apple"][i % 4])).collect::<StringArray>()),
    ];
    DeltaBatch::append(RecordBatch::try_new(schema, columns).expect("three columns"))
}

fn kernels(c: &mut Criterion) {
    let batch = batch();
    let mut group = c.benchmark_group("exchange");
    group.throughput(Throughput::Elements(ROWS as u64));

    let mut codec = KeyCodec::new(&batch.rows.schema(), &[0]).expect("a key");
    let mut keys = Keys::default();
    group.bench_function("hash", |b| b.iter(|| codec.encode(black_box(&batch.rows), &mut keys)));

    codec.encode(&batch.rows, &mut keys).expect("encoded");
    for cores in [2, 8] {
        let map = VnodeMap::even(256, cores);
        let mut scatter = Scatter::default();
        group.bench_function(format!("scatter/{cores}"), |b| {
            b.iter(|| match scatter.group(black_box(&keys.hashes), &map) {
                Scattered::Whole(_) => 0,
                Scattered::Parts(rows, starts) => starts
                    .windows(2)
                    .map(|range| gather(&batch, &rows, range[0], range[1]).expect("gathered").num_rows())
                    .sum::<usize>(),
            });
        });
    }
    group.finish();
}

/// A batch from one thread to another and the answer back, and many in a row.
fn ring(c: &mut Criterion) {
    const MANY: u64 = 10_000;
    let mut group = c.benchmark_group("ring");
    let (mut there, mut arrive) = rtrb::RingBuffer::<Option<DeltaBatch>>::new(1024);
    let (mut answer, mut back) = rtrb::RingBuffer::<()>::new(1024);
    let echo = thread::spawn(move || {
        loop {
            match arrive.pop() {
                Ok(Some(batch)) => {
                    black_box(batch);
                    while answer.push(()).is_err() {
                        std::hint::spin_loop();
                    }
                }
                Ok(None) => return,
                Err(_) => std::hint::spin_loop(),
            }
        }
    });
    let batch = batch();
    group.throughput(Throughput::Elements(1));
    group.bench_function("round trip", |b| {
        b.iter_batched(
            || batch.clone(),
            |batch| {
                assert!(there.push(Some(batch)).is_ok(), "the ring is empty");
                while back.pop().is_err() {
                    std::hint::spin_loop();
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.throughput(Throughput::Elements(MANY));
    group.bench_function("stream", |b| {
        b.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                let began = Instant::now();
                let mut answers = 0;
                for _ in 0..MANY {
                    let mut next = Some(batch.clone());
                    while let Err(rtrb::PushError::Full(full)) = there.push(next) {
                        next = full;
                        while back.pop().is_ok() {
                            answers += 1;
                        }
                    }
                }
                while answers < MANY {
                    answers += u64::from(back.pop().is_ok());
                }
                spent += began.elapsed();
            }
            spent
        });
    });
    group.finish();
    assert!(there.push(None).is_ok(), "the ring is empty");
    echo.join().expect("the echo ends");
}

criterion_group!(benches, kernels, ring);

criterion::criterion_main!(benches);
