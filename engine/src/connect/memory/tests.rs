#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, StructArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};

use super::*;
use crate::batch::{DeltaBatch, Weights};
use crate::connect::{ChangelogMode, Changes, CoreInit, Options, RowKind, SourceEvent, SourcePoll};
use crate::ids::{CoreId, Epoch};

fn rows(ids: std::ops::Range<i64>) -> RecordBatch {
    let nested = StructArray::from(vec![
        (Arc::new(Field::new("a", DataType::Int64, true)), Arc::new(Int64Array::from_iter_values(ids.clone())) as ArrayRef),
        (
            Arc::new(Field::new("b", DataType::Utf8, true)),
            Arc::new(StringArray::from_iter_values(ids.clone().map(|i| format!("b{i}")))),
        ),
    ]);
    RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int64Array::from_iter_values(ids.clone())) as ArrayRef, true),
        ("at", Arc::new(TimestampMicrosecondArray::from_iter_values(ids.map(|i| i * 1000))), true),
        ("nested", Arc::new(nested), true),
    ])
    .unwrap()
}

fn table<'a>(name: &'a str, schema: SchemaRef, options: &'a Options) -> TableSpec<'a> {
    TableSpec { name, physical: schema.clone(), schema, metadata: vec![], primary_key: vec![], partitioned_by: vec![], options }
}

fn named(name: &str) -> Options {
    Options::new([("name".to_owned(), name.to_owned(), None)])
}

/// Rows in the order in which each split gives them, with weights.
fn read(source: &crate::connect::SourceRef, cores: usize) -> Vec<Vec<(RecordBatch, Weights)>> {
    let mut splits = Vec::new();
    for core in 0..cores {
        let mut reader = source.open(CoreInit { core: CoreId(core as u16), cores }).unwrap();
        let mut events = Vec::new();
        while reader.poll(100, &mut events).unwrap() != SourcePoll::Finished {}
        let mut opened = std::collections::BTreeMap::new();
        for event in events {
            match event {
                SourceEvent::SplitOpened(split) => assert!(opened.insert(split, (Vec::new(), false)).is_none()),
                SourceEvent::Rows(batch) => {
                    let (rows, finished) = opened.get_mut(&batch.split).unwrap();
                    assert!(!*finished);
                    rows.push((batch.rows, batch.weights));
                }
                SourceEvent::SplitFinished(split) => opened.get_mut(&split).unwrap().1 = true,
            }
        }
        assert!(opened.values().all(|(_, finished)| *finished));
        splits.extend(opened.into_values().map(|(rows, _)| rows));
    }
    splits
}

fn ids(batches: &[(RecordBatch, Weights)]) -> Vec<(i64, i64)> {
    let of = |(rows, weights): &(RecordBatch, Weights)| {
        let column = rows.column_by_name("id").unwrap().as_primitive::<Int64Type>().clone();
        (0..rows.num_rows()).map(|i| (column.value(i), weights.get(i))).collect::<Vec<_>>()
    };
    batches.iter().flat_map(of).collect()
}

#[test]
fn scattered_rows_are_the_same_rows_over_all_splits_and_cores() {
    let weights = Weights::from_vec((0..1000).map(|i| if i % 3 == 0 { 2 } else { 1 }).collect());
    let input = MemoryInput::new(rows(0..1).schema(), vec![DeltaBatch::new(rows(0..1000), weights)]).unwrap();
    let mut expected = ids(&read(&input.source("t", &input.schema()).unwrap(), 1).concat());
    expected.sort_unstable();
    let mut orders = Vec::new();
    for seed in 0..5 {
        for cores in [1, 2, 7] {
            let scatter = Scatter { seed, splits: 5, rows_max: 40, shuffle: Shuffle::Free };
            let source = input.scattered(scatter).unwrap().source("t", &input.schema()).unwrap();
            assert_eq!(source.rows_hint(), Some(1000));
            assert!(source.is_bounded() && source.is_append_only());
            let splits = read(&source, cores);
            assert!(splits.iter().all(|s| !s.is_empty()) && splits.len() == 5, "seed {seed}");
            assert!(splits.iter().flatten().all(|(rows, _)| rows.num_rows() <= 40));
            let mut found = ids(&splits.concat());
            orders.push(found.clone());
            found.sort_unstable();
            assert_eq!(found, expected, "seed {seed}, {cores} cores");
        }
    }
    orders.sort_unstable();
    orders.dedup();
    assert!(orders.len() >= 5);
}

#[test]
fn a_bounded_shuffle_makes_no_row_late() {
    let input = MemoryInput::new(rows(0..1).schema(), vec![DeltaBatch::append(rows(0..2000))]).unwrap();
    for seed in 0..5 {
        let shuffle = Shuffle::Within { column: 1, bound_us: 50_000 };
        let source =
            input.scattered(Scatter { seed, splits: 2, rows_max: 7, shuffle }).unwrap().source("t", &input.schema()).unwrap();
        let mut moved = 0;
        for split in read(&source, 1) {
            let (mut newest, mut last) = (i64::MIN, i64::MIN);
            for (rows, _) in split {
                for time in rows.column(1).as_primitive::<TimestampMicrosecondType>().values() {
                    assert!(newest == i64::MIN || *time > newest - 50_000, "seed {seed}: {time} after {newest}");
                    moved += i32::from(*time < last);
                    newest = newest.max(*time);
                    last = *time;
                }
            }
        }
        assert!(moved > 100, "seed {seed}: {moved} rows moved");
    }
}

#[test]
fn a_row_is_never_taken_back_before_it_was_there() {
    let batches = vec![
        DeltaBatch::append(rows(0..500)),
        DeltaBatch::new(rows(0..400), Weights::from_vec(vec![-1; 400])),
        DeltaBatch::append(rows(0..300)),
    ];
    let input = MemoryInput::new(rows(0..1).schema(), batches).unwrap();
    for shuffle in [Shuffle::Never, Shuffle::Free, Shuffle::Within { column: 1, bound_us: 10_000_000 }] {
        for seed in 0..5 {
            let source =
                input.scattered(Scatter { seed, splits: 3, rows_max: 9, shuffle }).unwrap().source("t", &input.schema()).unwrap();
            assert!(!source.is_append_only());
            let mut there = std::collections::BTreeMap::new();
            for (id, weight) in read(&source, 2).concat().iter().flat_map(|batch| ids(std::slice::from_ref(batch))) {
                let count = there.entry(id).or_insert(0);
                *count += weight;
                assert!(*count >= 0, "seed {seed}, {shuffle:?}: row {id}");
            }
            assert_eq!(there.values().sum::<i64>(), 400);
        }
    }
}

#[test]
fn columns_and_fields_are_taken_by_name() {
    let input = MemoryInput::new(rows(0..1).schema(), vec![DeltaBatch::append(rows(0..3))]).unwrap();
    let _registration = input.register("projected").unwrap();
    let inner = vec![Field::new("b", DataType::Utf8View, true)];
    let schema = Arc::new(Schema::new(vec![
        Field::new("nested", DataType::Struct(inner.into()), true),
        Field::new("at", DataType::Timestamp(TimeUnit::Millisecond, None), true),
    ]));
    let options = named("projected");
    let source = plan_source(&table("t", schema.clone(), &options)).unwrap();
    let batch = &read(&source, 1)[0][0].0;
    assert_eq!(batch.schema(), schema);
    assert_eq!(batch.column(0).as_struct().column(0).as_string_view().iter().flatten().collect::<Vec<_>>(), ["b0", "b1", "b2"]);

    let none = plan_source(&table("t", Arc::new(Schema::empty()), &options)).unwrap();
    assert_eq!(read(&none, 1)[0][0].0.num_rows(), 3);
    for (field, message) in [
        (Field::new("other", DataType::Int64, true), "table `t`: the rows in memory have no column `other`"),
        (Field::new("id", DataType::Utf8, true), "table `t`: column `id` is Int64 in memory, which is not Utf8"),
    ] {
        let error = plan_source(&table("t", Arc::new(Schema::new(vec![field])), &options)).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (Code::UnsupportedSchema, message));
    }
}

#[test]
fn names_are_unique_while_they_are_held() {
    let input = MemoryInput::new(rows(0..1).schema(), vec![]).unwrap();
    let options = Options::default();
    let missing = plan_source(&table("held", input.schema(), &options)).unwrap_err();
    assert_eq!(missing.message, "table `held`: nothing is registered in memory as 'held'");
    let registration = input.register("held").unwrap();
    assert!(plan_source(&table("held", input.schema(), &options)).is_ok());
    assert_eq!(input.register("held").unwrap_err().code, Code::DuplicateName);
    assert_eq!(plan_sink(&table("held", input.schema(), &options)).unwrap_err().code, Code::InvalidOption);
    drop(registration);
    assert!(input.register("held").is_ok());
    let other = DeltaBatch::append(rows(0..1).project(&[0]).unwrap());
    assert_eq!(MemoryInput::new(input.schema(), vec![other]).unwrap_err().code, Code::UnsupportedSchema);
}

#[test]
fn a_feed_gives_what_is_pushed_until_it_is_finished() {
    let feed = MemoryFeed::new(rows(0..1).schema(), true);
    let _registration = feed.register("feed").unwrap();
    let options = Options::default();
    let source = plan_source(&table("feed", rows(0..1).schema(), &options)).unwrap();
    assert!(!source.is_bounded() && source.is_append_only());
    let mut idle_core = source.open(CoreInit { core: CoreId(1), cores: 2 }).unwrap();
    assert_eq!(idle_core.poll(1, &mut Vec::new()).unwrap(), SourcePoll::Finished);
    let mut reader = source.open(CoreInit { core: CoreId(0), cores: 2 }).unwrap();
    assert!(matches!(source.open(CoreInit { core: CoreId(0), cores: 2 }), Err(e) if e.code == Code::SourceUnavailable));

    let mut out = Vec::new();
    assert_eq!(reader.poll(10, &mut out).unwrap(), SourcePoll::Idle);
    feed.push(DeltaBatch::append(rows(0..10))).unwrap();
    feed.push(DeltaBatch::append(rows(10..11))).unwrap();
    assert_eq!(reader.poll(10, &mut out).unwrap(), SourcePoll::More);
    feed.finish();
    assert!(matches!(feed.push(DeltaBatch::append(rows(0..1))), Err(feed::PushError::Finished(_))));
    assert_eq!(reader.poll(10, &mut out).unwrap(), SourcePoll::Finished);
    let found: usize = out.iter().map(|e| if let SourceEvent::Rows(b) = e { b.rows.num_rows() } else { 0 }).sum();
    assert_eq!((found, out.len()), (11, 4));
}

#[test]
fn a_feed_is_bounded_and_gives_back_what_it_does_not_take() {
    let feed = MemoryFeed::new(rows(0..1).schema(), true);
    let large = DeltaBatch::append(rows(0..MemoryFeed::ROWS_MAX as i64));
    feed.push(large).unwrap();
    match feed.push(DeltaBatch::append(rows(7..9))) {
        Err(feed::PushError::Full(batch)) => assert_eq!(batch.num_rows(), 2),
        other => panic!("{other:?}"),
    }
    let back = DeltaBatch::new(rows(0..1), Weights::from_vec(vec![-1]));
    assert!(matches!(feed.push(back), Err(feed::PushError::Refused(_))));
}

fn change(ids: &[i64], kinds: &[RowKind]) -> Changes {
    let batch = rows(0..100);
    let indices: Vec<u32> = ids.iter().map(|i| *i as u32).collect();
    Changes { rows: arrow::compute::take_record_batch(&batch, &UInt32Array::from(indices)).unwrap(), kinds: Some(kinds.to_vec()) }
}

#[test]
fn an_output_shows_whole_epochs_and_their_net() {
    use RowKind::{Delete, Insert, UpdateAfter, UpdateBefore};
    let output = MemoryOutput::default();
    let _registration = output.register("out").unwrap();
    let options = named("out");
    let sink = plan_sink(&table("t", rows(0..1).schema(), &options)).unwrap();
    let open = |core| sink.open(CoreInit { core: CoreId(core), cores: 2 }, rows(0..1).schema(), ChangelogMode::Retract).unwrap();
    let (mut first, mut second) = (open(0), open(1));
    first.write(Epoch(1), &change(&[1, 2, 3], &[Insert; 3])).unwrap();
    assert!(output.changes().is_empty(), "the epoch is not ended");
    first.end_epoch(Epoch(1)).unwrap();
    second.write(Epoch(2), &change(&[1, 9], &[UpdateBefore, UpdateAfter])).unwrap();
    second.end_epoch(Epoch(2)).unwrap();
    first.write(Epoch(2), &change(&[3, 2], &[Delete, Insert])).unwrap();
    first.end_epoch(Epoch(2)).unwrap();
    first.finish().unwrap();
    second.finish().unwrap();
    let parts: Vec<_> = output.changes().iter().map(|p| (p.epoch.0, p.core.0, p.changes.rows.num_rows())).collect();
    assert_eq!(parts, [(1, 0, 3), (2, 0, 2), (2, 1, 2)]);
    let net = output.net().unwrap();
    let ids = net.rows.column(0).as_primitive::<Int64Type>().values().to_vec();
    assert_eq!((ids, net.weights), (vec![2, 9], Weights::from_vec(vec![2, 1])));
    assert_eq!(output.writers_finished(), 2);
    assert_eq!(output.take().len(), 3);
    assert!(output.changes().is_empty());
}

#[test]
fn the_latest_row_of_a_key_is_what_upserts_leave() {
    use RowKind::{Delete, Insert, UpdateAfter};
    let output = MemoryOutput::default();
    let mut writer =
        output.sink().open(CoreInit { core: CoreId(0), cores: 1 }, rows(0..1).schema(), ChangelogMode::Upsert).unwrap();
    let keyed = |key: i64, value: i64, kind| {
        let batch = rows(value..value + 1);
        let mut columns = batch.columns().to_vec();
        columns[0] = Arc::new(Int64Array::from(vec![key]));
        Changes { rows: RecordBatch::try_new(batch.schema(), columns).unwrap(), kinds: Some(vec![kind]) }
    };
    for (key, value, kind) in [(1, 10, Insert), (2, 20, Insert), (1, 11, UpdateAfter), (3, 30, Insert), (2, 20, Delete)] {
        writer.write(Epoch(1), &keyed(key, value, kind)).unwrap();
    }
    writer.end_epoch(Epoch(1)).unwrap();
    let latest = output.latest(&[0]).unwrap();
    assert_eq!(latest.column(0).as_primitive::<Int64Type>().values().to_vec(), [1, 3]);
    assert_eq!(latest.column(1).as_primitive::<TimestampMicrosecondType>().values().to_vec(), [11_000, 30_000]);
}

#[test]
fn an_output_that_grows_too_large_fails_the_job() {
    let output = MemoryOutput::new(5);
    let init = CoreInit { core: CoreId(0), cores: 1 };
    let mut writer = output.sink().open(init, rows(0..1).schema(), ChangelogMode::Append).unwrap();
    writer.write(Epoch(1), &Changes { rows: rows(0..6), kinds: None }).unwrap();
    assert_eq!(writer.end_epoch(Epoch(1)).unwrap_err().code, Code::MemoryExceeded);
}
