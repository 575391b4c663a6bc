//! Sources and sinks through their traits, as the runtime uses them.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, StringViewArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use arrow::util::display::array_value_to_string;

use super::SPEC;
use crate::connect::{
    ChangelogMode, Changes, CoreInit, Options, Rejected, RowKind, SinkRef, SinkWriter, SourceEvent, SourcePoll, SourceReader,
    SourceRef, TableSpec,
};
use crate::error::{Code, Result};
use crate::ids::{CoreId, Epoch, SplitId};
use crate::operators::Watermark;

fn table() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int32, false),
        Field::new("name", DataType::Utf8View, true),
        Field::new("price", DataType::Int64, true),
    ]))
}

fn options(pairs: &[(&str, &str)]) -> Options {
    Options::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned(), None)))
}

/// A table for source or sink.
struct Table<'a> {
    schema: SchemaRef,
    physical: SchemaRef,
    metadata: Vec<(usize, &'a str)>,
    partitioned_by: Vec<usize>,
    options: Vec<(&'a str, &'a str)>,
}

impl<'a> Table<'a> {
    fn new(schema: &SchemaRef, options: &[(&'a str, &'a str)]) -> Self {
        Self {
            schema: Arc::clone(schema),
            physical: Arc::clone(schema),
            metadata: vec![],
            partitioned_by: vec![],
            options: options.to_vec(),
        }
    }

    fn plan<T>(&self, plan: fn(&TableSpec<'_>) -> Result<T>) -> Result<T> {
        let options = options(&self.options);
        let spec = TableSpec {
            name: "t",
            schema: Arc::clone(&self.schema),
            physical: Arc::clone(&self.physical),
            metadata: self.metadata.iter().map(|(i, k)| (*i, (*k).to_owned())).collect(),
            primary_key: vec![],
            partitioned_by: self.partitioned_by.clone(),
            options: &options,
        };
        let answer = plan(&spec);
        if answer.is_ok() {
            let unknown = options.finish(&[]).err();
            assert_eq!(unknown, None, "each option is read");
        }
        answer
    }

    fn source(&self) -> Result<SourceRef> {
        self.plan(SPEC.source.unwrap())
    }

    fn sink(&self) -> Result<SinkRef> {
        self.plan(SPEC.sink.unwrap())
    }
}

/// What came out of a source: rows as text with their weights, sorted, and bad records.
#[derive(Debug, PartialEq)]
struct Read {
    rows: Vec<(String, i64)>,
    rejected: Vec<Rejected>,
    splits: HashSet<u32>,
    bytes: u64,
}

fn rows_of(batch: &RecordBatch) -> Vec<String> {
    if batch.num_columns() == 0 {
        return vec![String::new(); batch.num_rows()];
    }
    let cell =
        |column: &ArrayRef, row| if column.is_null(row) { String::new() } else { array_value_to_string(column, row).unwrap() };
    let rows = (0..batch.num_rows()).map(|row| {
        let cells: Vec<_> = batch.columns().iter().map(|column| cell(column, row)).collect();
        format!("| {} |", cells.join(" | ")).split_whitespace().collect::<Vec<_>>().join(" ")
    });
    rows.collect()
}

fn read(source: &SourceRef, cores: usize) -> Result<Read> {
    let mut all = Read { rows: vec![], rejected: vec![], splits: HashSet::new(), bytes: 0 };
    for core in 0..cores {
        let mut reader = source.open(CoreInit { core: CoreId(core as u16), cores })?;
        let (mut open, mut seen_rows) = (HashSet::new(), false);
        loop {
            let mut events = Vec::new();
            let answer = reader.poll(100, &mut events)?;
            for event in events {
                match event {
                    SourceEvent::SplitOpened(split) => {
                        assert!(!seen_rows, "splits are announced before the first row");
                        assert!(all.splits.insert(split.0), "a split belongs to one core");
                        open.insert(split.0);
                    }
                    SourceEvent::Rows(batch) => {
                        seen_rows = true;
                        assert!(open.contains(&batch.split.0));
                        assert_eq!(batch.rows.schema(), source.schema());
                        assert_eq!(batch.rows.num_rows(), batch.weights.len());
                        all.rows.extend(rows_of(&batch.rows).into_iter().enumerate().map(|(i, row)| (row, batch.weights.get(i))));
                        all.rejected.extend(batch.rejected);
                    }
                    SourceEvent::SplitFinished(split) => assert!(open.remove(&split.0)),
                }
            }
            match answer {
                SourcePoll::Finished => break,
                SourcePoll::More => {}
                SourcePoll::Idle => panic!("a bounded source is never idle"),
            }
        }
        assert!(open.is_empty(), "each split is finished");
        all.bytes += reader.bytes_read();
    }
    all.rows.sort();
    all.rejected.sort_by(|a, b| (&a.origin, a.position).cmp(&(&b.origin, b.position)));
    Ok(all)
}

fn dirty(file: &str) -> String {
    format!("{}/tests/data/dirty/{file}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn dirty_files_give_every_good_row_and_name_every_bad_one() {
    use Code::{BadRecord, BadUtf8, ExtraField, FieldRange, FieldType, MissingField, RecordTooLong};
    let long = RecordTooLong;
    for (file, ids, bad) in [
        ("bom_crlf_no_last_newline.json", vec![1, 2, 3], vec![]),
        ("wrong_bytes.json", vec![1, 3, 5, 6], vec![(BadUtf8, 2), (BadRecord, 4), (BadUtf8, 6)]),
        ("wrong_types.json", vec![1, 5], vec![(FieldType, 2), (FieldType, 3), (FieldType, 4)]),
        ("out_of_range.json", vec![1, 5], vec![(FieldRange, 2), (FieldRange, 3), (FieldRange, 4)]),
        ("missing_and_extra.json", vec![1, 4, 5], vec![(MissingField, 2), (MissingField, 3)]),
        ("no_json.json", vec![1, 13], (2..=11).map(|line| (BadRecord, line)).chain([(long, 12)]).collect()),
        ("long_line.json", vec![1, 3], vec![(long, 2)]),
        ("empty.json", vec![], vec![]),
        ("blank_lines.json", vec![], vec![]),
        ("two_members.json.gz", vec![1, 2, 3], vec![]),
        ("two_frames.json.zst", vec![1, 2], vec![]),
        (
            "stray_quotes.csv",
            vec![1, 3, 8, 11],
            vec![
                (BadRecord, 2),
                (BadRecord, 4),
                (MissingField, 5),
                (ExtraField, 6),
                (FieldType, 7),
                (FieldRange, 10),
                (BadUtf8, 11),
            ],
        ),
    ] {
        let path = dirty(file);
        let format = if file.contains(".csv") { "csv" } else { "json" };
        let table = Table {
            schema: Arc::new(table().project(&[0]).unwrap()),
            ..Table::new(&table(), &[("path", &path), ("format", format), ("max-record-size", "2 KiB")])
        };
        // Types are checked in needed columns only, so all are needed.
        let table = Table { schema: Arc::clone(&table.physical), ..table };
        for cores in [1, 2] {
            let read = read(&table.source().unwrap(), cores).unwrap();
            let mut found: Vec<i32> = read.rows.iter().map(|(row, _)| row.split(' ').nth(1).unwrap().parse().unwrap()).collect();
            found.sort_unstable();
            assert_eq!(found, ids, "{file}");
            let codes: Vec<_> = read.rejected.iter().map(|r| (r.code, r.position.unwrap())).collect();
            assert_eq!(codes, bad, "{file}");
            assert!(read.rejected.iter().all(|r| r.origin == path && !r.raw.is_empty()));
        }
    }
}

#[test]
fn a_damaged_file_is_one_bad_record_behind_what_could_be_read() {
    for (file, format) in [
        ("truncated.json.gz", "json"),
        ("truncated.json.zst", "json"),
        ("no_gzip.json.gz", "json"),
        ("wrong_types.json", "parquet"),
    ] {
        let path = dirty(file);
        let source = Table::new(&table(), &[("path", &path), ("format", format)]).source().unwrap();
        let read = read(&source, 1).unwrap();
        let [bad] = read.rejected.as_slice() else { panic!("{file}: {:?}", read.rejected) };
        assert_eq!((bad.code, bad.origin.as_str()), (Code::CorruptFile, path.as_str()), "{file}");
        // Every whole record before the damage is a row, the one that is cut off is none: its line is named.
        let line = (format == "json").then_some(read.rows.len() as u64 + 1);
        assert_eq!(bad.position, line, "{file}: {}", bad.message);
        assert_eq!(file == "truncated.json.gz", read.rows.len() > 200, "{file}: {} rows", read.rows.len());
    }
    let path = dirty("no_gzip.json.gz");
    let plain = Table::new(&table(), &[("path", &path), ("format", "json"), ("compression", "none")]).source().unwrap();
    assert_eq!(read(&plain, 1).unwrap().rows.len(), 1);
}

#[test]
fn missing_files_end_the_job_with_their_name() {
    for file in ["not_there.json", "none*.json"] {
        let path = dirty(file);
        let source = Table::new(&table(), &[("path", &path), ("format", "json")]).source().unwrap();
        let error = read(&source, 1).unwrap_err();
        assert_eq!(error.code, Code::PathNotFound, "{error}");
        assert!(error.message.contains(file), "{error}");
    }
}

#[test]
fn wrong_options_are_refused_when_the_table_is_planned() {
    for (pairs, code) in [
        (vec![("format", "json")], Code::MissingOption),
        (vec![("path", "x")], Code::MissingOption),
        (vec![("path", "x"), ("format", "jsonl")], Code::UnknownFormat),
        (vec![("path", "s3://b/x"), ("format", "json")], Code::InvalidOption),
        (vec![("path", "x"), ("format", "json"), ("max-record-size", "1")], Code::InvalidOption),
        (vec![("path", "x"), ("format", "json"), ("json.ignore-parse-errors", "true")], Code::InvalidOption),
        (vec![("path", "x"), ("format", "csv"), ("csv.field-delimiter", "ab")], Code::InvalidOption),
        (vec![("path", "x"), ("format", "json"), ("compression", "lzo")], Code::InvalidOption),
        (vec![("path", "x"), ("format", "raw")], Code::UnsupportedSchema),
    ] {
        assert_eq!(Table::new(&table(), &pairs).source().unwrap_err().code, code, "{pairs:?}");
    }
    let changes = Table::new(&table(), &[("path", "x"), ("format", "json")]).sink().unwrap();
    assert!(changes.accepts(ChangelogMode::Append) && !changes.accepts(ChangelogMode::Retract));
}

/// Some files of different sizes, compressed or not, in folders.
fn many_files(folder: &Path) -> usize {
    let mut id = 0;
    for file in 0..11 {
        let mut text = String::new();
        for _ in 0..file * 37 {
            id += 1;
            text.push_str(&format!("{{\"id\":{id},\"name\":\"n{id}\",\"price\":{}}}\n", id * 100));
        }
        let path = folder.join(format!("{}/{file}.json", file % 3));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match file % 4 {
            1 => fs::write(path.with_extension("json.zst"), zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap(),
            _ => fs::write(path, text).unwrap(),
        }
    }
    fs::write(folder.join("_SUCCESS"), "not json").unwrap();
    fs::write(folder.join(".part.inprogress"), "not json").unwrap();
    id
}

#[test]
fn any_number_of_cores_reads_each_file_once() {
    let dir = tempfile::tempdir().unwrap();
    let rows = many_files(dir.path());
    let path = dir.path().display().to_string();
    let source = Table::new(&table(), &[("path", &path), ("format", "json")]).source().unwrap();
    let one = read(&source, 1).unwrap();
    assert_eq!((one.rows.len(), one.splits.len()), (rows, 11));
    assert_eq!(source.bytes_hint(), Some(one.bytes));
    for cores in [2, 7, 20] {
        assert_eq!(read(&source, cores).unwrap(), one, "{cores} cores");
    }
}

#[test]
fn metadata_and_unneeded_columns() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.json"), "{\"id\":1,\"price\":7}\n\n{\"id\":2}\n").unwrap();
    let path = format!("file://{}", dir.path().display());
    let zone: Option<Arc<str>> = Some("UTC".into());
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("line", DataType::Int64, true),
        Field::new("price", DataType::Int64, true),
        Field::new("file", DataType::Utf8View, true),
        Field::new("size", DataType::Int64, true),
        Field::new("changed", DataType::Timestamp(TimeUnit::Microsecond, zone), true),
        Field::new("path", DataType::Utf8View, true),
    ]));
    let metadata = vec![(0, "file.line"), (2, "file.name"), (3, "file.size"), (4, "file.modification-time"), (5, "file.path")];
    let with_unknown = ("json.fail-on-unknown-field", "true");
    let table =
        Table { physical: table(), metadata, ..Table::new(&schema, &[("path", &path), ("format", "json"), with_unknown]) };
    let rows = read(&table.source().unwrap(), 1).unwrap().rows;
    assert_eq!(rows.len(), 2);
    assert!(rows[0].0.starts_with("| 1 | 7 | a.json | 29 | 20") && rows[0].0.ends_with("/a.json |"), "{}", rows[0].0);
    assert!(rows[1].0.starts_with("| 3 | | a.json | 29 | 20"), "{}", rows[1].0);

    let unknown = Table { metadata: vec![(0, "file.owner")], ..table };
    assert_eq!(unknown.source().unwrap_err().code, Code::UnsupportedSchema);
    let count =
        Table { schema: Arc::new(Schema::empty()), ..Table::new(&unknown.physical, &[("path", &path), ("format", "json")]) };
    assert_eq!(read(&count.source().unwrap(), 2).unwrap().rows.len(), 2);
}

#[test]
fn a_watched_folder_gives_files_that_come_later_to_one_core_each() {
    let dir = tempfile::tempdir().unwrap();
    let write = |id: i32| fs::write(dir.path().join(format!("{id}.json")), format!("{{\"id\":{id}}}\n")).unwrap();
    (0..5).for_each(write);
    let path = dir.path().display().to_string();
    let table = Table::new(&table(), &[("path", &path), ("format", "json"), ("source.monitor-interval", "1 ms")]);
    let source = table.source().unwrap();
    assert!(!source.is_bounded());
    let mut readers: Vec<_> = (0..3).map(|core| source.open(CoreInit { core: CoreId(core), cores: 3 }).unwrap()).collect();
    let (mut rows, mut splits) = (Vec::new(), HashSet::new());
    for round in 0..3 {
        let wanted = 5 + round as usize * 10;
        if round > 0 {
            (round * 10..round * 10 + 10).for_each(write);
            fs::write(dir.path().join(".hidden.json"), "no json").unwrap();
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while rows.len() < wanted || readers.iter_mut().any(|r| r.poll(100, &mut Vec::new()).unwrap() == SourcePoll::Finished) {
            assert!(std::time::Instant::now() < deadline, "{} of {wanted} rows", rows.len());
            for reader in &mut readers {
                let mut events = Vec::new();
                assert_ne!(reader.poll(100, &mut events).unwrap(), SourcePoll::Finished);
                for event in events {
                    match event {
                        SourceEvent::SplitOpened(split) => assert!(splits.insert(split)),
                        SourceEvent::Rows(batch) => rows.extend(rows_of(&batch.rows)),
                        SourceEvent::SplitFinished(split) => assert!(splits.contains(&split)),
                    }
                }
            }
        }
        assert_eq!(rows.iter().collect::<HashSet<_>>().len(), wanted);
    }
    assert_eq!(splits.len(), 25);
}

#[test]
fn a_held_file_waits_while_others_are_read_and_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let line = |file: usize, row: usize| format!("{{\"id\": {}, \"name\": \"x\", \"price\": 0}}\n", file * 100_000 + row);
    for file in 0..3 {
        std::fs::write(folder.path().join(format!("{file}.json")), (0..20_000).map(|row| line(file, row)).collect::<String>())
            .unwrap();
    }
    let path = folder.path().display().to_string();
    let source = Table::new(&table(), &[("path", &path), ("format", "json")]).source().unwrap();
    let mut reader = source.open(CoreInit { core: CoreId(0), cores: 1 }).unwrap();
    let mut read = [0usize; 3];
    let poll = |reader: &mut Box<dyn SourceReader>, read: &mut [usize; 3]| {
        let mut events = Vec::new();
        let answer = reader.poll(100, &mut events).unwrap();
        let mut splits = Vec::new();
        for event in events {
            if let SourceEvent::Rows(batch) = event {
                read[batch.split.0 as usize] += batch.rows.num_rows();
                splits.push(batch.split.0);
            }
        }
        (answer, splits)
    };
    assert_eq!(poll(&mut reader, &mut read).1, [0]);
    reader.hold(&[SplitId(0)]);
    assert_eq!(poll(&mut reader, &mut read).1, [1]);
    reader.hold(&[SplitId(0), SplitId(1)]);
    assert_eq!(poll(&mut reader, &mut read).1, [2]);
    reader.hold(&[SplitId(0), SplitId(1), SplitId(2)]);
    assert_eq!(poll(&mut reader, &mut read), (SourcePoll::Idle, vec![]), "all are held");
    reader.hold(&[SplitId(1), SplitId(2)]);
    assert_eq!(poll(&mut reader, &mut read).1, [0], "it goes on");
    reader.hold(&[]);
    while poll(&mut reader, &mut read).0 != SourcePoll::Finished {}
    assert_eq!(read, [20_000; 3], "nothing is lost or read twice");
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.json");
    fs::write(&file, "{\"id\":1}\n".repeat(10)).unwrap();
    let path = file.display().to_string();
    let source = Table::new(&table(), &[("path", &path), ("format", "json")]).source().unwrap();
    let mut reader = source.open(CoreInit { core: CoreId(0), cores: 1 }).unwrap();
    fs::write(&file, "{\"id\":1}\n").unwrap();
    let mut events = Vec::new();
    let error = loop {
        match reader.poll(100, &mut events) {
            Ok(SourcePoll::More) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code, Code::CorruptFile);
    assert!(reader.poll(100, &mut events).is_err(), "it stays failed");
}

fn batch(ids: std::ops::Range<i32>) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ids.clone().collect::<Int32Array>()),
        Arc::new(ids.clone().map(|i| (i % 5 != 0).then(|| format!("n,{i}\"é"))).collect::<StringViewArray>()),
        Arc::new(ids.map(|i| (i % 7 != 0).then_some(i64::from(i) * 1_000_000_007)).collect::<Int64Array>()),
    ];
    RecordBatch::try_new(table(), columns).unwrap()
}

fn writer(sink: &SinkRef, core: u16, cores: usize, mode: ChangelogMode, schema: &SchemaRef) -> Box<dyn SinkWriter> {
    sink.open(CoreInit { core: CoreId(core), cores }, Arc::clone(schema), mode).unwrap()
}

fn visible(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.file_name().unwrap().to_str().unwrap().starts_with('.') {
                names.push(path.strip_prefix(folder).unwrap().display().to_string());
            }
        }
    }
    names.sort();
    names
}

#[test]
fn what_a_sink_writes_a_source_reads() {
    for format_options in [
        vec![("format", "json")],
        vec![("format", "json"), ("compression", "gzip")],
        vec![("format", "csv"), ("csv.null-literal", "NULL"), ("csv.header", "true")],
        vec![("format", "csv"), ("csv.null-literal", "-"), ("compression", "zstd")],
        vec![("format", "parquet")],
        vec![("format", "parquet"), ("parquet.compression", "zstd")],
        vec![("format", "debezium-json")],
        vec![("format", "changelog-json")],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/out.json").display().to_string();
        let mut pairs = vec![("path", path.as_str())];
        pairs.extend(&format_options);
        let sink_pairs: Vec<_> = pairs.iter().copied().chain([("sink.rolling-policy.file-size", "2 KiB")]).collect();
        for run in 0..2 {
            let sink = Table::new(&table(), &sink_pairs).sink().unwrap();
            let mut writers: Vec<_> = (0..2).map(|core| writer(&sink, core, 2, ChangelogMode::Append, &table())).collect();
            for epoch in 0..10 {
                for (core, writer) in writers.iter_mut().enumerate() {
                    let start = (run * 20 + epoch * 2 + core as i32) * 50;
                    writer.write(Epoch(epoch as u64 + 1), &Changes { rows: batch(start..start + 50), kinds: None }).unwrap();
                    writer.end_epoch(Epoch(epoch as u64 + 1)).unwrap();
                }
            }
            writers.iter_mut().for_each(|w| w.finish().unwrap());
        }
        let files = visible(Path::new(&path));
        assert!(files.len() > 2, "{format_options:?} rolls by size: {files:?}");
        let mut wanted: Vec<_> = rows_of(&batch(0..2000)).into_iter().map(|row| (row, 1)).collect();
        wanted.sort();
        for cores in [1, 2, 7] {
            let read = read(&Table::new(&table(), &pairs).source().unwrap(), cores).unwrap();
            assert!(read.rejected.is_empty(), "{:?}", read.rejected);
            assert_eq!(read.rows, wanted, "{format_options:?}");
        }
    }
}

#[test]
fn changes_come_back_as_weights() {
    use RowKind::{Delete, Insert, UpdateAfter, UpdateBefore};
    let kinds = vec![Insert, Insert, UpdateBefore, UpdateAfter, Delete, UpdateBefore, UpdateAfter];
    for (format, wanted_first) in [
        ("debezium-json", r#"{"before":null,"after":{"id":1,"name":"n,1\"é","price":1000000007},"op":"c"}"#),
        ("changelog-json", r#"{"data":{"id":1,"name":"n,1\"é","price":1000000007},"op":"+I"}"#),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display().to_string();
        let table = Table::new(&table(), &[("path", &path), ("format", format)]);
        let sink = table.sink().unwrap();
        assert!(sink.accepts(ChangelogMode::Retract) && !sink.accepts(ChangelogMode::Upsert));
        let mut writer = writer(&sink, 0, 1, ChangelogMode::Retract, &table.schema);
        writer.write(Epoch(1), &Changes { rows: batch(1..8), kinds: Some(kinds.clone()) }).unwrap();
        writer.finish().unwrap();
        let files = visible(dir.path());
        let text = fs::read_to_string(dir.path().join(&files[0])).unwrap();
        assert_eq!(text.lines().next(), Some(wanted_first));
        let source = table.source().unwrap();
        assert!(!source.is_append_only());
        let weights: BTreeMap<_, _> = read(&source, 1).unwrap().rows.into_iter().collect();
        let wanted: BTreeMap<_, _> = rows_of(&batch(1..8)).into_iter().zip([1, 1, -1, 1, -1, -1, 1]).collect();
        assert_eq!(weights, wanted);
    }
}

#[test]
fn envelopes_of_debezium_are_read_with_and_without_schema_and_bad_ones_refused() {
    let dir = tempfile::tempdir().unwrap();
    let lines = [
        r#"{"before":null,"after":{"id":1},"op":"r","ts_ms":5,"source":{"db":"x"}}"#,
        r#"{"schema":{"type":"struct"},"payload":{"op":"u","after":{"id":2},"before":{"id":1}}}"#,
        r#"{"before":{"id":2},"after":null,"op":"d"}"#,
        r#"{"before":null,"after":{"id":3},"op":"u"}"#,
        r#"{"before":{"id":1},"after":{"id":"x"},"op":"u"}"#,
        r#"{"after":{"id":3},"op":"t"}"#,
        r#"{"after":{"id":3}}"#,
        "null",
        r#"{"after":5,"op":"c"}"#,
        r#"{"after":{"id":4},"op":"c"}"#,
    ];
    fs::write(dir.path().join("a.json"), lines.join("\n")).unwrap();
    let path = dir.path().display().to_string();
    let table = Table {
        schema: Arc::new(table().project(&[0]).unwrap()),
        ..Table::new(&table(), &[("path", &path), ("format", "debezium-json")])
    };
    let read = read(&table.source().unwrap(), 1).unwrap();
    let mut net: BTreeMap<String, i64> = BTreeMap::new();
    for (row, weight) in read.rows {
        *net.entry(row).or_default() += weight;
    }
    net.retain(|_, weight| *weight != 0);
    assert_eq!(net, BTreeMap::from([("| 4 |".to_owned(), 1)]));
    let bad: Vec<_> = read.rejected.iter().map(|r| (r.code, r.position.unwrap())).collect();
    use Code::{BadRecord, FieldType};
    assert_eq!(bad, [(BadRecord, 4), (FieldType, 5), (BadRecord, 6), (BadRecord, 7), (BadRecord, 8), (BadRecord, 9)]);
}

#[test]
fn partitions_are_folders_that_are_complete_when_the_watermark_says_so() {
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("dt", DataType::Utf8View, true),
        Field::new("hm", DataType::Utf8View, true),
    ]));
    let row = |id: i64, dt: Option<&str>, hm: &str| {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(vec![id])),
            Arc::new(StringViewArray::from(vec![dt])),
            Arc::new(StringViewArray::from(vec![hm])),
        ];
        Changes { rows: RecordBatch::try_new(Arc::clone(&schema), columns).unwrap(), kinds: None }
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    // As in Nexmark's q10.
    let pairs = [
        ("path", path.as_str()),
        ("format", "csv"),
        ("sink.partition-commit.trigger", "partition-time"),
        ("sink.partition-commit.delay", "1 min"),
        ("sink.partition-commit.policy.kind", "success-file"),
        ("partition.time-extractor.timestamp-pattern", "$dt $hm:00"),
        ("sink.rolling-policy.rollover-interval", "1min"),
        ("sink.rolling-policy.check-interval", "1min"),
    ];
    let table = Table { partitioned_by: vec![1, 2], ..Table::new(&schema, &pairs) };
    let sink = table.sink().unwrap();
    let mut cores: Vec<_> = (0..2).map(|core| writer(&sink, core, 2, ChangelogMode::Append, &schema)).collect();
    cores[0].write(Epoch(1), &row(1, Some("2024-01-01"), "10:00")).unwrap();
    cores[1].write(Epoch(1), &row(2, Some("2024-01-01"), "10:00")).unwrap();
    cores[1].write(Epoch(1), &row(3, Some("2024-01-01"), "10:01")).unwrap();
    cores[0].write(Epoch(1), &row(4, None, "a/b=c")).unwrap();
    let at = |text: &str| Watermark(crate::format::scalar::parse_timestamp(text, false, None).unwrap());
    let mark = |cores: &mut Vec<Box<dyn SinkWriter>>, core: usize, time: &str| {
        cores[core].watermark(at(time)).unwrap();
        cores[core].end_epoch(Epoch(1)).unwrap();
        visible(dir.path())
    };
    assert!(mark(&mut cores, 0, "2024-01-01 10:00:59").is_empty());
    let first = mark(&mut cores, 0, "2024-01-01 10:01:00");
    assert!(first.len() == 1 && first[0].starts_with("dt=2024-01-01/hm=10%3A00/part-"), "{first:?}");
    let both = mark(&mut cores, 1, "2024-01-01 10:01:30");
    assert_eq!(both.len(), 3, "{both:?}");
    assert_eq!(both[0], "dt=2024-01-01/hm=10%3A00/_SUCCESS");
    cores.iter_mut().for_each(|w| w.finish().unwrap());
    let all = visible(dir.path());
    assert_eq!(all.iter().filter(|f| f.ends_with("_SUCCESS")).count(), 3, "{all:?}");
    assert!(all.iter().any(|f| f.starts_with("dt=__DEFAULT_PARTITION__/hm=a%2Fb%3Dc/")), "{all:?}");

    let back = Table { partitioned_by: vec![1, 2], ..Table::new(&schema, &[("path", path.as_str()), ("format", "csv")]) };
    let rows: Vec<_> = read(&back.source().unwrap(), 2).unwrap().rows.into_iter().map(|(row, _)| row).collect();
    assert_eq!(
        rows,
        ["| 1 | 2024-01-01 | 10:00 |", "| 2 | 2024-01-01 | 10:00 |", "| 3 | 2024-01-01 | 10:01 |", "| 4 | | a/b=c |"]
    );
}

#[test]
fn the_number_of_open_partitions_is_bounded_and_nothing_is_lost_by_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    let pairs = [("path", path.as_str()), ("format", "json"), ("sink.open-partitions-max", "3")];
    let table = Table { partitioned_by: vec![0], ..Table::new(&table(), &pairs) };
    let sink = table.sink().unwrap();
    let mut writer = writer(&sink, 0, 1, ChangelogMode::Append, &table.schema);
    writer.write(Epoch(1), &Changes { rows: batch(0..20), kinds: None }).unwrap();
    assert_eq!(visible(dir.path()).len(), 17);
    writer.write(Epoch(2), &Changes { rows: batch(0..20), kinds: None }).unwrap();
    writer.finish().unwrap();
    let back = Table { partitioned_by: vec![0], ..Table::new(&table.schema, &pairs[..2]) };
    assert_eq!(read(&back.source().unwrap(), 2).unwrap().rows.len(), 40);
}

#[test]
fn a_failed_or_dropped_writer_leaves_only_whole_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out").display().to_string();
    let sink = Table::new(&table(), &[("path", &path), ("format", "json")]).sink().unwrap();
    let mut dropped = writer(&sink, 0, 1, ChangelogMode::Append, &table());
    dropped.write(Epoch(1), &Changes { rows: batch(0..10), kinds: None }).unwrap();
    assert!(visible(dir.path()).is_empty());
    drop(dropped);
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "the hidden file is gone");

    let path = dir.path().join("file/out").display().to_string();
    fs::write(dir.path().join("file"), "a file where a folder is needed").unwrap();
    let sink = Table::new(&table(), &[("path", &path), ("format", "json")]).sink().unwrap();
    let mut failed = writer(&sink, 0, 1, ChangelogMode::Append, &table());
    let changes = Changes { rows: batch(0..10), kinds: None };
    let error = failed.write(Epoch(1), &changes).unwrap_err();
    assert!(error.code == Code::SinkPoisoned && error.message.contains("file/out/part-"), "{error}");
    assert_eq!(failed.write(Epoch(1), &changes).unwrap_err().code, Code::SinkPoisoned, "it stays failed");
    assert_eq!(failed.finish().unwrap_err().code, Code::SinkPoisoned);
}

#[test]
fn parquet_columns_are_found_by_name_and_rows_out_of_range_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.parquet");
    let in_file: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("price", DataType::Int64, true),
        Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, None), true),
        Field::new("ID", DataType::Int64, true),
    ]));
    let ids: Int64Array = (0..5000)
        .map(|i| {
            if i == 7 {
                Some(1 << 40)
            } else if i == 4000 {
                None
            } else {
                Some(i)
            }
        })
        .collect();
    let prices: Int64Array = (0..5000).map(Some).collect();
    let times = TimestampMicrosecondArray::from_iter_values(0..5000);
    let batch = RecordBatch::try_new(Arc::clone(&in_file), vec![Arc::new(prices), Arc::new(times), Arc::new(ids)]).unwrap();
    let properties = ::parquet::file::properties::WriterProperties::builder().set_max_row_group_row_count(Some(1000)).build();
    let mut parquet =
        ::parquet::arrow::ArrowWriter::try_new(fs::File::create(&file).unwrap(), in_file, Some(properties)).unwrap();
    parquet.write(&batch).unwrap();
    parquet.close().unwrap();

    let path = file.display().to_string();
    let table = Table::new(&table(), &[("path", &path), ("format", "parquet")]);
    for cores in [1, 2, 7] {
        let read = read(&table.source().unwrap(), cores).unwrap();
        assert_eq!((read.rows.len(), read.splits.len()), (4998, 5));
        assert!(read.rows.contains(&("| 4999 | | 4999 |".to_owned(), 1)));
        let bad: Vec<_> = read.rejected.iter().map(|r| (r.code, r.position)).collect();
        assert_eq!(bad, [(Code::FieldRange, Some(8)), (Code::MissingField, Some(4001))]);
        assert!(read.rejected[0].raw.contains("ID=1099511627776"), "{}", read.rejected[0].raw);
    }
    let other = Arc::new(Schema::new(vec![Field::new("ts", DataType::Int64, true)]));
    let wrong = Table::new(&other, &[("path", &path), ("format", "parquet")]);
    let error = read(&wrong.source().unwrap(), 1).unwrap_err();
    assert!(error.code == Code::FieldType && error.message.contains("'ts' is TIMESTAMP"), "{error}");
}

#[test]
fn raw_lines_keep_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), b"one\n\n\xFF\xFE\nlast").unwrap();
    let path = dir.path().display().to_string();
    let schema = |data_type| Arc::new(Schema::new(vec![Field::new("line", data_type, true)]));
    let pairs = [("path", path.as_str()), ("format", "raw")];
    let bytes = read(&Table::new(&schema(DataType::Binary), &pairs).source().unwrap(), 1).unwrap();
    assert_eq!(bytes.rows.len(), 4);
    let text = read(&Table::new(&schema(DataType::Utf8View), &pairs).source().unwrap(), 1).unwrap();
    assert_eq!(text.rows.len(), 3);
    assert_eq!(text.rejected.iter().map(|r| (r.code, r.position)).collect::<Vec<_>>(), [(Code::BadUtf8, Some(3))]);
}

#[test]
fn numbers_survive_json_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("price", DataType::Int64, true)]));
    let values = Int64Array::from(vec![i64::MIN, i64::MAX, 0, -1]);
    let sink_table = Table::new(&schema, &[("path", &path), ("format", "json")]);
    let mut writer = writer(&sink_table.sink().unwrap(), 0, 1, ChangelogMode::Append, &schema);
    let rows = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(values)]).unwrap();
    writer.write(Epoch(1), &Changes { rows: rows.clone(), kinds: None }).unwrap();
    writer.finish().unwrap();
    let mut reader = sink_table.source().unwrap().open(CoreInit { core: CoreId(0), cores: 1 }).unwrap();
    let mut events = Vec::new();
    while reader.poll(10, &mut events).unwrap() != SourcePoll::Finished {}
    let batches: Vec<_> =
        events.into_iter().filter_map(|e| if let SourceEvent::Rows(b) = e { Some(b.rows) } else { None }).collect();
    assert_eq!(batches[0].column(0).as_primitive::<Int64Type>(), rows.column(0).as_primitive::<Int64Type>());
    assert_eq!(batches[0].column(0).null_count(), 0);
}
