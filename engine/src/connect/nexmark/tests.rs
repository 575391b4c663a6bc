#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, HashSet};

use arrow::array::{AsArray, StructArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use twox_hash::XxHash3_64;

use super::*;
use crate::connect::{SourceEvent, SourcePoll};
use crate::ids::CoreId;

fn text() -> DataType {
    DataType::Utf8View
}

fn struct_of(kind: Kind, names: &[&str]) -> Field {
    let all = |kind| match kind {
        Kind::Person => generate::PersonField::ALL.iter().map(|f| (f.1, f.2)).collect::<Vec<_>>(),
        Kind::Auction => generate::AuctionField::ALL.iter().map(|f| (f.1, f.2)).collect(),
        Kind::Bid => generate::BidField::ALL.iter().map(|f| (f.1, f.2)).collect(),
    };
    let fields: Fields = all(kind)
        .into_iter()
        .filter(|(name, _)| names.is_empty() || names.contains(name))
        .map(|(name, value)| {
            let data_type = match value {
                Value::Long => DataType::Int64,
                Value::Text => text(),
                Value::Time => DataType::Timestamp(TimeUnit::Microsecond, None),
            };
            Field::new(name, data_type, true)
        })
        .collect();
    Field::new(["person", "auction", "bid"][kind as usize], DataType::Struct(fields), true)
}

fn full_schema() -> SchemaRef {
    let event_type = Field::new("event_type", DataType::Int32, true);
    Arc::new(Schema::new(vec![
        event_type,
        struct_of(Kind::Person, &[]),
        struct_of(Kind::Auction, &[]),
        struct_of(Kind::Bid, &[]),
    ]))
}

fn options(pairs: &[(&str, &str)]) -> Options {
    Options::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned(), None)))
}

fn source_of(schema: SchemaRef, pairs: &[(&str, &str)]) -> Result<SourceRef> {
    let options = options(pairs);
    plan(&TableSpec {
        name: "events",
        physical: schema.clone(),
        schema,
        metadata: vec![],
        primary_key: vec![],
        partitioned_by: vec![],
        options: &options,
    })
}

fn source(pairs: &[(&str, &str)]) -> SourceRef {
    source_of(full_schema(), pairs).unwrap()
}

/// All batches of all cores, and the rows that were left out.
fn read(source: &SourceRef, cores: usize, rows_max: usize) -> (Vec<RecordBatch>, u64) {
    let (mut batches, mut left_out) = (Vec::new(), 0);
    for core in 0..cores {
        let mut reader = source.open(CoreInit { core: CoreId(core as u16), cores }).unwrap();
        let mut events = Vec::new();
        while reader.poll(rows_max, &mut events).unwrap() != SourcePoll::Finished {}
        assert_eq!(reader.poll(rows_max, &mut events).unwrap(), SourcePoll::Finished);
        left_out += reader.rows_left_out();
        let n = events.len();
        for (i, event) in events.into_iter().enumerate() {
            match event {
                SourceEvent::SplitOpened(split) => assert_eq!((i, split.0), (0, core as u32)),
                SourceEvent::SplitFinished(split) => assert_eq!((i, split.0), (n - 1, core as u32)),
                SourceEvent::Rows(batch) => {
                    assert!(batch.rows.num_rows() > 0 && batch.rejected.is_empty());
                    assert_eq!(batch.weights, crate::batch::Weights::Ones(batch.rows.num_rows()));
                    batches.push(batch.rows);
                }
            }
        }
    }
    (batches, left_out)
}

fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<_> = batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options).unwrap()).collect();
        lines.extend(
            (0..batch.num_rows())
                .map(|row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" | ")),
        );
    }
    lines.sort_unstable();
    lines
}

fn kind_rows(batches: &[RecordBatch], kind: Kind) -> StructArray {
    let own: Vec<_> = batches.iter().filter(|b| b.column(0).as_primitive::<Int32Type>().value(0) == kind as i32).collect();
    let all = concat_batches(&full_schema(), own).unwrap();
    all.column(1 + kind as usize).as_struct().clone()
}

fn longs(rows: &StructArray, name: &str) -> Vec<i64> {
    rows.column_by_name(name).unwrap().as_primitive::<Int64Type>().values().to_vec()
}

fn times(rows: &StructArray, name: &str) -> Vec<i64> {
    rows.column_by_name(name).unwrap().as_primitive::<TimestampMicrosecondType>().values().to_vec()
}

fn strings(rows: &StructArray, name: &str) -> Vec<String> {
    rows.column_by_name(name).unwrap().as_string_view().iter().map(|s| s.unwrap().to_owned()).collect()
}

#[test]
fn the_stream_is_the_same_at_any_number_of_cores_and_in_polls_of_any_size() {
    let source = source(&[("events.num", "20123"), ("seed", "7")]);
    assert!(source.is_bounded() && source.is_append_only());
    assert_eq!(source.rows_hint(), Some(20_123));
    let expected = lines(&read(&source, 1, 8192).0);
    assert_eq!(expected.len(), 20_123);
    for (cores, rows_max) in [(2, 8192), (7, 1000), (1, 33), (3, 1), (2, usize::MAX)] {
        assert!(lines(&read(&source, cores, rows_max).0) == expected, "{cores} cores, polls of {rows_max}");
    }
}

/// If this fails, the events of a seed have changed: every published benchmark digest changes with them.
#[test]
fn the_first_events_of_a_seed_never_change() {
    let digest = |seed: &str| {
        let source = source(&[("events.num", "100000"), ("seed", seed)]);
        let sum = |sum: u64, line: &String| sum.wrapping_add(XxHash3_64::oneshot(line.as_bytes()));
        format!("{:016x}", lines(&read(&source, 1, 8192).0).iter().fold(0, sum))
    };
    assert_eq!([digest("0"), digest("1"), digest("20231")], ["0438067ecb63022f", "6e14a2c85f79d2ad", "8e6f9c1ede364dcb"]);
}

#[test]
fn kinds_come_in_their_proportions_and_only_their_own_struct_is_set() {
    let batches = read(&source(&[("events.num", "10000")]), 2, 999).0;
    let mut counts = BTreeMap::new();
    for batch in &batches {
        for row in 0..batch.num_rows() {
            let event_type = batch.column(0).as_primitive::<Int32Type>().value(row);
            *counts.entry(event_type).or_insert(0) += 1;
            for kind in Kind::ALL {
                assert_eq!(batch.column(1 + kind as usize).is_valid(row), kind as i32 == event_type);
            }
        }
    }
    assert_eq!(counts, BTreeMap::from([(0, 200), (1, 600), (2, 9200)]));
    let all = ["events.num", "person.proportion", "auction.proportion", "bid.proportion"];
    let pairs: Vec<_> = all.into_iter().zip(["1000", "0", "2", "3"]).collect();
    let batches = read(&source(&pairs), 1, 64).0;
    assert_eq!((kind_rows(&batches, Kind::Auction).len(), kind_rows(&batches, Kind::Bid).len()), (400, 600));
}

#[test]
fn ids_are_dense_and_refer_to_what_exists_or_soon_will() {
    let batches = read(&source(&[("events.num", "100000")]), 1, 8192).0;
    let persons = kind_rows(&batches, Kind::Person);
    assert_eq!(longs(&persons, "id"), (1000..3000).collect::<Vec<_>>());
    let auctions = kind_rows(&batches, Kind::Auction);
    assert_eq!(longs(&auctions, "id"), (1000..7000).collect::<Vec<_>>());
    for (i, seller) in longs(&auctions, "seller").into_iter().enumerate() {
        let newest = 1000 + i as i64 / 3;
        assert!(seller >= (newest - 1000).max(1000) && seller <= newest + 10, "auction {i}: seller {seller}");
    }
    let bids = kind_rows(&batches, Kind::Bid);
    for (i, (auction, bidder)) in longs(&bids, "auction").into_iter().zip(longs(&bids, "bidder")).enumerate() {
        let (round, newest_auction) = (i as i64 / 46, 1000 + i as i64 / 46 * 3 + 2);
        assert!(auction >= (newest_auction - 102).max(1000) && auction <= newest_auction + 10, "bid {i}: auction {auction}");
        assert!(bidder >= (2000 + round - 999).max(2000) && bidder <= 2000 + round + 10, "bid {i}: bidder {bidder}");
    }
    assert!(longs(&auctions, "category").iter().all(|c| (10..15).contains(c)));
    assert_eq!(longs(&auctions, "category").into_iter().collect::<HashSet<_>>().len(), 5);
}

#[test]
fn hot_ones_are_chosen_as_often_as_the_ratios_say() {
    for (auctions_ratio, bidders_ratio, sellers_ratio) in [(2u32, 4u32, 4u32), (1, 10, 3)] {
        let texts = [auctions_ratio, bidders_ratio, sellers_ratio].map(|r| r.to_string());
        let keys = ["bid.hot-ratio.auctions", "bid.hot-ratio.bidders", "auction.hot-ratio.sellers"];
        let mut pairs = vec![("events.num", "200000")];
        pairs.extend(keys.into_iter().zip(texts.iter().map(String::as_str)));
        let batches = read(&source(&pairs), 1, 8192).0;
        let bids = kind_rows(&batches, Kind::Bid);
        let share = |ids: Vec<i64>, rest: i64| ids.iter().filter(|id| *id % 100 == rest).count() as f64 / ids.len() as f64;
        // Other choices hit the hot one too: 1 in 100 or so.
        let near = |share: f64, ratio: u32| (share - (1.0 - 1.0 / f64::from(ratio))).abs() < 0.02;
        assert!(near(share(longs(&bids, "auction"), 0), auctions_ratio));
        assert!(near(share(longs(&bids, "bidder"), 1), bidders_ratio));
        assert!(near(share(longs(&kind_rows(&batches, Kind::Auction), "seller"), 0), sellers_ratio));
        let channels = strings(&bids, "channel");
        let hot = channels.iter().filter(|c| !c.starts_with("channel-")).count() as f64 / channels.len() as f64;
        assert!((hot - 0.5).abs() < 0.01, "{hot} of the bids through a hot channel");
    }
}

#[test]
fn prices_spread_evenly_over_six_powers_of_ten() {
    let batches = read(&source(&[("events.num", "200000")]), 1, 8192).0;
    let prices = longs(&kind_rows(&batches, Kind::Bid), "price");
    assert!(prices.iter().all(|p| (100..=100_000_000).contains(p)));
    for decade in 2..8u32 {
        let share =
            prices.iter().filter(|p| (10i64.pow(decade)..10i64.pow(decade + 1)).contains(p)).count() as f64 / prices.len() as f64;
        assert!((share - 1.0 / 6.0).abs() < 0.01, "10^{decade}: {share}");
    }
    let auctions = kind_rows(&batches, Kind::Auction);
    for (initial, reserve) in longs(&auctions, "initialBid").into_iter().zip(longs(&auctions, "reserve")) {
        assert!(reserve >= initial + 100);
    }
}

#[test]
fn times_follow_the_rate_and_auctions_expire_within_the_horizon() {
    for (rate, start) in [("10000", "2020-02-29 12:00:00"), ("700", "1582977600000"), ("3", "2020-02-29T12:00:00Z")] {
        let batches = read(&source(&[("events.num", "5000"), ("first-event.rate", rate), ("start-time", start)]), 1, 8192).0;
        let rate: i64 = rate.parse().unwrap();
        let start_us = 1_582_977_600_000_000;
        let time_us = |event: i64| start_us + event * 1000 / rate * 1000;
        let bids = kind_rows(&batches, Kind::Bid);
        let expected: Vec<_> = (0..bids.len() as i64).map(|i| time_us(i / 46 * 50 + 4 + i % 46)).collect();
        assert_eq!(times(&bids, "dateTime"), expected);
        let auctions = kind_rows(&batches, Kind::Auction);
        for (i, (at, expires)) in times(&auctions, "dateTime").into_iter().zip(times(&auctions, "expires")).enumerate() {
            let event = i as i64 / 3 * 50 + 1 + i as i64 % 3;
            assert_eq!(at, time_us(event));
            assert!(expires > at && expires <= at + 2 * (time_us(event + 1666) - at).max(1000), "auction {i}");
        }
    }
}

#[test]
fn rows_have_their_average_sizes() {
    let sizes = [("person.avg-size", "300 b"), ("auction.avg-size", "1kb"), ("bid.avg-size", "80")];
    let mut pairs = vec![("events.num", "50000")];
    pairs.extend(sizes);
    let batches = read(&source(&pairs), 1, 8192).0;
    let average = |kind, columns: &[&str], fixed: usize| {
        let rows = kind_rows(&batches, kind);
        let bytes: usize = columns.iter().flat_map(|c| strings(&rows, c)).map(|s| s.len()).sum();
        bytes as f64 / rows.len() as f64 + fixed as f64
    };
    let person = average(Kind::Person, &["name", "emailAddress", "creditCard", "city", "state", "extra"], 8);
    let auction = average(Kind::Auction, &["itemName", "description", "extra"], 48);
    let bid = average(Kind::Bid, &["extra"], 32);
    for (size, wanted) in [(person, 300.0), (auction, 1024.0), (bid, 80.0)] {
        assert!((size / wanted - 1.0).abs() < 0.02, "{size} instead of {wanted}");
    }
}

#[test]
fn texts_have_the_forms_of_the_original() {
    let batches = read(&source(&[("events.num", "50000")]), 1, 8192).0;
    let persons = kind_rows(&batches, Kind::Person);
    let matches = |column: &str, rows: &StructArray, pattern: &str| {
        let pattern = regex::Regex::new(pattern).unwrap();
        for text in strings(rows, column) {
            assert!(pattern.is_match(&text), "{column}: {text:?}");
        }
    };
    matches("name", &persons, "^[A-Z][a-z]+ [A-Z][a-z]+$");
    matches("emailAddress", &persons, "^[a-z ]{0,6}@[a-z ]{0,4}\\.com$");
    matches("creditCard", &persons, r"^\d{4}( \d{4}){3}$");
    matches("state", &persons, "^(AZ|CA|ID|OR|WA|WY)$");
    matches("city", &persons, "^[A-Z][A-Za-z ]+$");
    let auctions = kind_rows(&batches, Kind::Auction);
    matches("itemName", &auctions, "^([a-z]([a-z ]*[a-z])?)?$");
    let names = strings(&auctions, "itemName");
    assert_eq!(names.iter().map(String::len).max(), Some(19));
    assert_eq!(strings(&auctions, "description").iter().map(String::len).max(), Some(99));
    let bids = kind_rows(&batches, Kind::Bid);
    matches("extra", &bids, "^[H-z]{54,81}$");
    let urls = strings(&bids, "url").into_iter().zip(strings(&bids, "channel"));
    let pairs: HashSet<_> = urls.collect();
    let channels: HashSet<_> = pairs.iter().map(|(_, channel)| channel).collect();
    assert_eq!(pairs.len(), channels.len(), "a channel has one url");
    let distinct: HashSet<_> = strings(&bids, "extra").into_iter().collect();
    assert!(distinct.len() as f64 > 0.95 * bids.len() as f64, "{} of {}", distinct.len(), bids.len());
}

#[test]
fn a_projection_has_the_values_of_the_full_rows() {
    let pairs = [("events.num", "9000"), ("seed", "3")];
    let full = read(&source(&pairs), 1, 8192).0;
    for kind in Kind::ALL {
        let whole = kind_rows(&full, kind);
        for name in generate::Field::names(kind) {
            let schema = Arc::new(Schema::new(vec![struct_of(kind, &[name])]));
            let batches = read(&source_of(schema.clone(), &pairs).unwrap(), 1, 8192).0;
            assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 9000);
            let own: Vec<_> = batches.iter().filter(|b| b.column(0).is_valid(0)).collect();
            let own = concat_batches(&schema, own).unwrap();
            assert_eq!(own.column(0).as_struct().column(0), whole.column_by_name(name).unwrap(), "{name} of {kind:?}");
        }
    }
}

#[test]
fn no_column_and_no_field_can_be_asked_for() {
    let empty = source_of(Arc::new(Schema::empty()), &[("events.num", "777")]).unwrap();
    assert_eq!(read(&empty, 2, 100).0.iter().map(RecordBatch::num_rows).sum::<usize>(), 777);
    let bare = Field::new("bid", DataType::Struct(Fields::empty()), true);
    let bare = source_of(Arc::new(Schema::new(vec![bare])), &[("events.num", "500")]).unwrap();
    let bids: usize = read(&bare, 1, 100).0.iter().map(|b| b.num_rows() - b.column(0).null_count()).sum();
    assert_eq!(bids, 460);
}

#[test]
fn strings_come_in_the_type_that_is_asked_for() {
    let pairs = [("events.num", "500")];
    let plain = Fields::from(vec![
        Field::new("url", DataType::Utf8, true),
        Field::new("dateTime", DataType::Timestamp(TimeUnit::Millisecond, None), true),
        Field::new("extra", DataType::LargeUtf8, true),
    ]);
    let schema = Arc::new(Schema::new(vec![Field::new("bid", DataType::Struct(plain), true)]));
    let own = lines(&read(&source_of(schema, &pairs).unwrap(), 1, 500).0);
    let views = Arc::new(Schema::new(vec![struct_of(Kind::Bid, &["url", "extra", "dateTime"])]));
    let other = lines(&read(&source_of(views, &pairs).unwrap(), 1, 500).0);
    assert_eq!(own, other);
    assert!(own[499].contains("https://www.nexmark.com/"), "{}", own[499]);
}

#[test]
fn a_restricted_source_leaves_out_the_other_kinds_and_counts_them() {
    let source = source(&[("events.num", "20010")]);
    let full = read(&source, 1, 8192).0;
    for wanted in [vec![2], vec![0], vec![0, 1], vec![1, 2], vec![], vec![9], vec![0, 1, 2]] {
        let values: Vec<_> = wanted.iter().map(|v| ScalarValue::Int32(Some(*v))).collect();
        let restricted = source.restrict(0, &values).unwrap();
        let keep: Vec<_> =
            full.iter().filter(|b| wanted.contains(&b.column(0).as_primitive::<Int32Type>().value(0))).cloned().collect();
        let expected = lines(&keep);
        assert_eq!(restricted.rows_hint(), Some(expected.len() as u64));
        for (cores, rows_max) in [(1, 8192), (2, 100), (7, 7)] {
            let (batches, left_out) = read(&restricted, cores, rows_max);
            assert!(batches.iter().all(|b| b.num_rows() <= rows_max));
            assert!(lines(&batches) == expected, "{wanted:?}, {cores} cores");
            assert_eq!(left_out + expected.len() as u64, 20_010);
        }
    }
    assert!(source.restrict(3, &[ScalarValue::Int32(Some(1))]).is_none());
    assert!(source.restrict(0, &[ScalarValue::from("a bid")]).is_none());
    assert!(source.restrict(17, &[]).is_none());
}

#[test]
fn without_a_number_of_events_there_is_no_end() {
    let source = source(&[]);
    assert!(!source.is_bounded());
    assert_eq!(source.rows_hint(), None);
    let mut reader = source.open(CoreInit { core: CoreId(0), cores: 1 }).unwrap();
    let mut out = Vec::new();
    for _ in 0..30 {
        assert_eq!(reader.poll(8192, &mut out).unwrap(), SourcePoll::More);
    }
}

#[test]
fn a_limited_rate_holds_events_back_until_they_are_due() {
    for pair in [("rate.limited", "true"), ("max-emit-speed", "false")] {
        // One event in three years by the wall clock: the first is due at once or never in this test.
        let source = source(&[("events.num", "1000"), ("first-event.rate", "1"), pair]);
        let mut reader = source.open(CoreInit { core: CoreId(0), cores: 1 }).unwrap();
        let mut out = Vec::new();
        let polls: Vec<_> = (0..50).map(|_| reader.poll(100, &mut out).unwrap()).collect();
        let rows: usize = out.iter().map(|e| if let SourceEvent::Rows(b) = e { b.rows.num_rows() } else { 0 }).sum();
        assert!(polls.contains(&SourcePoll::Idle) && rows < 1000, "{rows} rows");
    }
    // At a thousand million a second all of a small stream is due at once.
    let source = source(&[("events.num", "1000"), ("first-event.rate", "1000000000"), ("rate.limited", "true")]);
    assert_eq!(read(&source, 2, 100).0.iter().map(RecordBatch::num_rows).sum::<usize>(), 1000);
}

#[test]
fn bad_options_are_refused_by_name() {
    for (pairs, message) in [
        (vec![("first-event.rate", "0")], "option 'first-event.rate' must be between 1 and 1000000000, not 0"),
        (vec![("first-event.rate", "fast")], "option 'first-event.rate' must be a whole number, not 'fast'"),
        (vec![("next-event.rate", "5")], "option 'next-event.rate' must equal 'first-event.rate', which is 10000"),
        (vec![("bid.proportion", "-1")], "option 'bid.proportion' must be a whole number, not '-1'"),
        (vec![("bid.hot-ratio.auctions", "0")], "option 'bid.hot-ratio.auctions' must be between 1 and 1000000, not 0"),
        (vec![("bid.avg-size", "1 GiB")], "option 'bid.avg-size' must be at most 102400 bytes"),
        (vec![("events.num", "99999999999999999999")], "option 'events.num' must be a whole number, not '99999999999999999999'"),
        (
            vec![("events.num", "9999999999999999999")],
            "option 'events.num' must be at most 9223372036854775: event time ends there",
        ),
        (vec![("rate.limited", "maybe")], "option 'rate.limited' must be true or false, not 'maybe'"),
        (
            vec![("rate.limited", "true"), ("max-emit-speed", "true")],
            "option 'max-emit-speed' says the opposite of 'rate.limited'",
        ),
        (
            vec![("person.proportion", "0"), ("auction.proportion", "0"), ("bid.proportion", "0")],
            "option 'bid.proportion' is 0, and so are the other proportions: there would be no event",
        ),
    ] {
        let error = source_of(full_schema(), &pairs).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (Code::InvalidOption, message));
    }
    let error = source_of(full_schema(), &[("start-time", "yesterday")]).unwrap_err();
    assert!(error.message.starts_with("option 'start-time' must be a timestamp"), "{}", error.message);
}

#[test]
fn every_option_is_read_and_others_are_unknown() {
    let all: Vec<_> = OPTIONS.iter().map(|o| (o.key, o.default.unwrap_or("10000"))).collect();
    let given = options(&all);
    let table = |options| TableSpec {
        name: "events",
        schema: full_schema(),
        physical: full_schema(),
        metadata: vec![],
        primary_key: vec![],
        partitioned_by: vec![],
        options,
    };
    // The documented defaults are the defaults.
    let source = plan(&table(&given)).unwrap();
    assert_eq!(given.finish(OPTIONS), Ok(()));
    let mut pairs = all.clone();
    pairs.retain(|(key, _)| *key != "events.num");
    pairs.push(("events.num", "3000"));
    let explicit = lines(&read(&source_of(full_schema(), &pairs).unwrap(), 1, 8192).0);
    assert!(explicit == lines(&read(&super::tests::source(&[("events.num", "3000")]), 1, 8192).0));
    assert!(!source.is_bounded());

    let strange = options(&[("rate.form", "SINE")]);
    plan(&table(&strange)).unwrap();
    let errors = strange.finish(OPTIONS).unwrap_err();
    assert_eq!((errors.len(), errors[0].code), (1, Code::UnknownOption));
}

#[test]
fn the_stream_stops_at_an_event_and_stays_open_when_it_is_kept_alive() {
    let events = |pairs: &[(&str, &str)]| source_of(full_schema(), pairs).unwrap();
    let rows = |source: &SourceRef| read(source, 1, 8192).0.iter().map(RecordBatch::num_rows).sum::<usize>();
    assert_eq!(rows(&events(&[("events.num", "3000"), ("stop-at", "-1")])), 3000);
    assert_eq!(rows(&events(&[("events.num", "3000"), ("stop-at", "1234")])), 1234);
    assert_eq!(rows(&events(&[("stop-at", "77")])), 77);
    for wrong in ["-2", "many", "1.5"] {
        assert_eq!(source_of(full_schema(), &[("stop-at", wrong)]).unwrap_err().code, Code::InvalidOption);
    }
    let kept = events(&[("stop-at", "100"), ("keep-alive", "true")]);
    assert!(!kept.is_bounded());
    let mut reader = kept.open(CoreInit { core: CoreId(0), cores: 1 }).unwrap();
    let mut out = Vec::new();
    while reader.poll(8192, &mut out).unwrap() == SourcePoll::More {}
    let count: usize = out.iter().map(|event| if let SourceEvent::Rows(batch) = event { batch.rows.num_rows() } else { 0 }).sum();
    assert_eq!((count, reader.poll(8192, &mut out).unwrap()), (100, SourcePoll::Idle));
    assert!(!out.iter().any(|event| matches!(event, SourceEvent::SplitFinished(_))));
}

#[test]
fn wrong_schemas_are_refused_by_column() {
    let field = |name: &str, data_type| Field::new(name, data_type, true);
    let bid = |inner: Field| field("bid", DataType::Struct(vec![inner].into()));
    for (column, message) in [
        (field("kind", DataType::Int32), "table `events`: there is no column `kind`"),
        (field("event_type", text()), "table `events`: column `event_type` must be INT"),
        (field("bid", DataType::Int64), "table `events`: column `bid` must be a ROW"),
        (bid(field("amount", DataType::Int64)), "table `events`: column `bid` has no field `amount`"),
        (bid(field("price", text())), "table `events`: field `price` of column `bid` must be BIGINT"),
        (bid(field("url", DataType::Int64)), "table `events`: field `url` of column `bid` must be VARCHAR"),
        (bid(field("dateTime", text())), "table `events`: field `dateTime` of column `bid` must be TIMESTAMP(3)"),
        (
            Field::new("bid", DataType::Struct(Fields::empty()), false),
            "table `events`: column `bid` can't be NOT NULL: it is NULL for events of other types",
        ),
    ] {
        let error = source_of(Arc::new(Schema::new(vec![column])), &[]).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (Code::UnsupportedSchema, message));
    }
}
