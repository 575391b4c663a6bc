//! How fast JSON lines become columns, in bytes of input a second: Nexmark bids with all columns, and with the two that q2 needs.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tiderace_engine::connect::Options;
use tiderace_engine::format::Format;

fn bids(count: u64) -> String {
    let mut out = String::new();
    for i in 0..count {
        let (auction, bidder, price) = (1000 + i * 7 % 900, 2000 + i * 13 % 700, 100 + i * 104_729 % 100_000_000);
        let time = 1_700_000_000_000 + i;
        let extra: String = (0..90).map(|k| char::from(b'a' + ((i * 31 + k * 17) % 26) as u8)).collect();
        writeln!(
            out,
            "{{\"auction\":{auction},\"bidder\":{bidder},\"price\":{price},\"channel\":\"channel-{}\",\"url\":\"https://www.nexmark.com/wqu/t_pf/nfl/item.htm?query=1&channel_id={}\",\"dateTime\":{time},\"extra\":\"{extra}\"}}",
            i % 10_000,
            i * 48_271 % 1_000_000_000,
        )
        .unwrap();
    }
    out
}

fn json_decode(criterion: &mut Criterion) {
    let input = bids(20_000);
    let table: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("auction", DataType::Int64, true),
        Field::new("bidder", DataType::Int64, true),
        Field::new("price", DataType::Int64, true),
        Field::new("channel", DataType::Utf8View, true),
        Field::new("url", DataType::Utf8View, true),
        Field::new("dateTime", DataType::Int64, true),
        Field::new("extra", DataType::Utf8View, true),
    ]));
    let format = Format::read(&Options::new([("format".to_owned(), "json".to_owned(), None)])).unwrap();
    let mut group = criterion.benchmark_group("json_decode");
    group.throughput(Throughput::Bytes(input.len() as u64));
    for (name, needed) in
        [("bids, all columns", Arc::clone(&table)), ("bids, auction and price", Arc::new(table.project(&[0, 2]).unwrap()))]
    {
        group.bench_function(name, |bencher| {
            let mut decoder = format.decoder(&needed, &table).unwrap();
            bencher.iter(|| {
                decoder.begin("bids");
                let mut rows = 0;
                for block in input.as_bytes().chunks(256 * 1024) {
                    decoder.push(block);
                    if decoder.rows() >= 4096 {
                        rows += decoder.finish().unwrap().rows.num_rows();
                    }
                }
                decoder.end();
                rows += decoder.finish().unwrap().rows.num_rows();
                assert_eq!(rows, 20_000);
            });
        });
    }
    group.bench_function("bids, all columns, by arrow-json", |bencher| {
        bencher.iter(|| {
            let reader =
                arrow::json::ReaderBuilder::new(Arc::clone(&table)).with_batch_size(4096).build(input.as_bytes()).unwrap();
            let rows: usize = reader.map(|batch| batch.unwrap().num_rows()).sum();
            assert_eq!(rows, 20_000);
        });
    });
    group.finish();
}

criterion_group! { name = benches; config = Criterion::default().sample_size(20); targets = json_decode }
criterion_main!(benches);
