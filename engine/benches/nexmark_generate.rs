//! What an event of the `nexmark` source costs on one core: full rows, bids alone, and the columns that q17 and q2 read.
//!
//! Rates are of all events, also where only bids are built.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, TimeUnit};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use datafusion::common::ScalarValue;
use tiderace_engine::connect::{CoreInit, Options, SourceEvent, SourcePoll, SourceRef, TableSpec, connector};
use tiderace_engine::ids::CoreId;

const EVENTS: u64 = 1_000_000;
const ROWS_MAX: usize = 8192;

fn field(name: &str) -> Field {
    let data_type = match name {
        "dateTime" | "expires" => DataType::Timestamp(TimeUnit::Microsecond, None),
        "id" | "initialBid" | "reserve" | "seller" | "category" | "auction" | "bidder" | "price" => DataType::Int64,
        _ => DataType::Utf8View,
    };
    Field::new(name, data_type, true)
}

fn row(name: &str, fields: &[&str]) -> Field {
    Field::new(name, DataType::Struct(fields.iter().map(|f| field(f)).collect::<Fields>()), true)
}

fn source(columns: Vec<Field>) -> SourceRef {
    let mut all = vec![Field::new("event_type", DataType::Int32, true)];
    all.extend(columns);
    let options = Options::new([("events.num".to_owned(), EVENTS.to_string(), None)]);
    let plan = connector("nexmark").and_then(|spec| spec.source).expect("nexmark is a source");
    let schema: arrow::datatypes::SchemaRef = Arc::new(Schema::new(all));
    plan(&TableSpec {
        name: "events",
        physical: schema.clone(),
        schema,
        metadata: vec![],
        primary_key: vec![],
        partitioned_by: vec![],
        options: &options,
    })
    .expect("the schema is the official one")
}

/// Reads all events as the runtime does, and drops them; returns how many there were.
fn read(source: &SourceRef) -> u64 {
    let mut reader = source.open(CoreInit { core: CoreId(0), cores: 1 }).expect("a generator opens");
    let (mut events, mut rows) = (Vec::new(), 0);
    loop {
        let poll = reader.poll(ROWS_MAX, &mut events).expect("a generator does not fail");
        for event in events.drain(..) {
            if let SourceEvent::Rows(batch) = event {
                rows += batch.rows.num_rows() as u64;
            }
        }
        if poll == SourcePoll::Finished {
            return rows + reader.rows_left_out();
        }
    }
}

fn generate(criterion: &mut Criterion) {
    let person = row("person", &["id", "name", "emailAddress", "creditCard", "city", "state", "dateTime", "extra"]);
    let auction = row(
        "auction",
        &["id", "itemName", "description", "initialBid", "reserve", "dateTime", "expires", "seller", "category", "extra"],
    );
    let bid = row("bid", &["auction", "bidder", "price", "channel", "url", "dateTime", "extra"]);
    let full = source(vec![person, auction, bid.clone()]);
    let bids = |columns| source(columns).restrict(0, &[ScalarValue::Int32(Some(2))]).expect("event_type is the first column");
    let mut group = criterion.benchmark_group("nexmark_generate");
    group.throughput(Throughput::Elements(EVENTS)).sample_size(20);
    for (name, source) in [
        ("full_rows", full),
        ("bids_all_fields", bids(vec![bid])),
        ("bids_auction_price_time", bids(vec![row("bid", &["auction", "price", "dateTime"])])),
        ("bids_auction_price", bids(vec![row("bid", &["auction", "price"])])),
    ] {
        assert_eq!(read(&source), EVENTS);
        group.bench_function(name, |bencher| bencher.iter(|| read(&source)));
    }
    group.finish();
}

criterion_group!(benches, generate);
criterion_main!(benches);
