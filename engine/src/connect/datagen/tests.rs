#![expect(clippy::unwrap_used, reason = "tests")]

use arrow::array::{Array, AsArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{
    DataType, Decimal128Type, Field, Float64Type, Int16Type, Int64Type, Schema, TimeUnit, TimestampMicrosecondType,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::*;
use crate::connect::Options;
use crate::ids::CoreId;

fn all_types() -> SchemaRef {
    let field = |name: &str, data_type| Field::new(name, data_type, true);
    let row = vec![field("x", DataType::Int32), field("y", DataType::Utf8View)];
    Arc::new(Schema::new(vec![
        field("id", DataType::Int64),
        field("flag", DataType::Boolean),
        field("tiny", DataType::Int8),
        field("small", DataType::Int16),
        field("big", DataType::Int64),
        field("real", DataType::Float32),
        field("double", DataType::Float64),
        field("money", DataType::Decimal128(10, 2)),
        field("huge", DataType::Decimal128(38, 0)),
        field("text", DataType::Utf8View),
        field("bytes", DataType::Binary),
        field("day", DataType::Date32),
        field("clock", DataType::Time64(TimeUnit::Microsecond)),
        field("at", DataType::Timestamp(TimeUnit::Microsecond, None)),
        field("zoned", DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))),
        field("row", DataType::Struct(row.into())),
        field("list", DataType::List(Arc::new(field("item", DataType::Int32)))),
    ]))
}

fn planned(schema: SchemaRef, pairs: &[(&str, &str)]) -> Result<SourceRef> {
    planned_of(schema.clone(), schema, pairs)
}

/// A source of a table with the columns `physical`, of which the plan needs those of `schema`.
fn planned_of(schema: SchemaRef, physical: SchemaRef, pairs: &[(&str, &str)]) -> Result<SourceRef> {
    let options = Options::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned(), None)));
    let table = TableSpec {
        name: "t",
        physical,
        schema,
        metadata: vec![],
        primary_key: vec![],
        partitioned_by: vec![],
        options: &options,
    };
    let source = plan(&table)?;
    options.finish(&[]).map_err(|mut errors| errors.remove(0))?;
    Ok(source)
}

fn read(source: &SourceRef, cores: usize, rows_max: usize) -> RecordBatch {
    let mut batches = Vec::new();
    for core in 0..cores {
        let mut reader = source.open(CoreInit { core: CoreId(core as u16), cores }).unwrap();
        let mut events = Vec::new();
        while reader.poll(rows_max, &mut events).unwrap() != SourcePoll::Finished {}
        batches.extend(events.into_iter().filter_map(|event| match event {
            SourceEvent::Rows(batch) => Some(batch.rows),
            SourceEvent::SplitOpened(_) | SourceEvent::SplitFinished(_) => None,
        }));
    }
    concat_batches(&source.schema(), &batches).unwrap()
}

fn lines(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let columns: Vec<_> = batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options).unwrap()).collect();
    let line = |row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" | ");
    let mut lines: Vec<String> = (0..batch.num_rows()).map(line).collect();
    lines.sort_unstable();
    lines
}

const FAST: [(&str, &str); 3] = [("rows-per-second", "0"), ("start-time", "2024-01-01"), ("fields.list.length", "3")];

#[test]
fn rows_are_the_same_at_any_number_of_cores_for_all_types() {
    let mut pairs = FAST.to_vec();
    pairs.extend([("number-of-rows", "10000"), ("seed", "5"), ("fields.text.null-rate", "0.5")]);
    let source = planned(all_types(), &pairs).unwrap();
    let expected = lines(&read(&source, 1, 100_000));
    assert_eq!(expected.len(), 10_000);
    for (cores, rows_max) in [(2, 100), (7, 1)] {
        assert!(lines(&read(&source, cores, rows_max)) == expected);
    }
    // Each column has many values.
    let rows = read(&source, 1, 100_000);
    for (column, field) in rows.columns().iter().zip(rows.schema().fields()) {
        let options = FormatOptions::default();
        let formatter = ArrayFormatter::try_new(column, &options).unwrap();
        let distinct: std::collections::HashSet<String> = (0..1000).map(|i| formatter.value(i).to_string()).collect();
        let least = if field.name() == "flag" {
            2
        } else if field.name() == "day" {
            1
        } else {
            100
        };
        assert!(distinct.len() >= least, "{}: {}", field.name(), distinct.len());
    }
    pairs.retain(|(key, _)| *key != "seed");
    assert!(lines(&read(&planned(all_types(), &pairs).unwrap(), 1, 100_000)) != expected);
}

#[test]
fn numbers_stay_in_their_ranges_and_reach_them() {
    let mut pairs = FAST.to_vec();
    pairs.extend([
        ("number-of-rows", "20000"),
        ("fields.small.min", "-3"),
        ("fields.small.max", "3"),
        ("fields.double.min", "1.5"),
        ("fields.double.max", "2.5"),
        ("fields.money.min", "-0.05"),
        ("fields.money.max", "0.05"),
        ("fields.text.length", "8"),
        ("fields.text.var-len", "true"),
        ("fields.at.max-past", "1 h"),
        ("fields.big.null-rate", "0.25"),
    ]);
    let rows = read(&planned(all_types(), &pairs).unwrap(), 1, 100_000);
    let column = |name: &str| rows.column_by_name(name).unwrap();
    let distinct =
        |values: Vec<i128>| values.into_iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>();
    let small = column("small").as_primitive::<Int16Type>().values().iter().map(|v| i128::from(*v)).collect();
    assert_eq!(distinct(small), (-3..=3).collect::<Vec<_>>());
    assert_eq!(distinct(column("money").as_primitive::<Decimal128Type>().values().to_vec()), (-5..=5).collect::<Vec<_>>());
    assert!(column("double").as_primitive::<Float64Type>().values().iter().all(|v| (1.5..=2.5).contains(v)));
    let lengths: Vec<i128> = column("text").as_string_view().iter().flatten().map(|t| t.len() as i128).collect();
    assert_eq!(distinct(lengths), (1..=8).collect::<Vec<_>>());
    let start_us = 1_704_067_200_000_000;
    for (n, at) in column("at").as_primitive::<TimestampMicrosecondType>().values().iter().enumerate() {
        let clock = start_us + n as i64 * 1000;
        assert!((clock - 3_600_000_000..=clock).contains(at));
    }
    let nulls = column("big").null_count();
    assert!((4700..5300).contains(&nulls), "{nulls} NULLs of 20 000");
    let list = column("list").as_list::<i32>();
    assert!((0..rows.num_rows()).all(|i| list.value_length(i) == 3));
}

#[test]
fn a_sequence_counts_and_ends_the_source_even_when_it_is_not_read() {
    let pairs = [("rows-per-second", "0"), ("fields.id.kind", "sequence"), ("fields.id.start", "-5"), ("fields.id.end", "9994")];
    let schema = |names: &[&str]| {
        let all = all_types();
        Arc::new(Schema::new(names.iter().map(|n| all.field_with_name(n).unwrap().clone()).collect::<Vec<_>>()))
    };
    let source = planned(schema(&["id"]), &pairs).unwrap();
    assert!(source.is_bounded());
    let mut ids = read(&source, 3, 1000).column(0).as_primitive::<Int64Type>().values().to_vec();
    ids.sort_unstable();
    assert_eq!(ids, (-5..9995).collect::<Vec<_>>());
    let other = planned_of(schema(&["flag"]), all_types(), &pairs).unwrap();
    assert_eq!(other.rows_hint(), Some(10_000));
    let mut fewer = pairs.to_vec();
    fewer.push(("number-of-rows", "7"));
    assert_eq!(planned(schema(&["id"]), &fewer).unwrap().rows_hint(), Some(7));
    assert!(!planned(schema(&["id"]), &[]).unwrap().is_bounded());
}

#[test]
fn fields_of_rows_and_elements_of_arrays_have_options_of_their_own() {
    let mut pairs = FAST.to_vec();
    pairs.extend([
        ("number-of-rows", "500"),
        ("fields.row.x.min", "1"),
        ("fields.row.x.max", "2"),
        ("fields.row.null-rate", "0.5"),
        ("fields.list.element.min", "7"),
        ("fields.list.element.max", "7"),
    ]);
    let rows = read(&planned(all_types(), &pairs).unwrap(), 2, 100);
    let nested = rows.column_by_name("row").unwrap().as_struct();
    assert!((150..350).contains(&nested.null_count()));
    let x = nested.column(0).as_primitive::<arrow::datatypes::Int32Type>();
    assert!(x.values().iter().all(|x| (1..=2).contains(x)));
    let elements = rows.column_by_name("list").unwrap().as_list::<i32>().values().clone();
    assert!(elements.as_primitive::<arrow::datatypes::Int32Type>().values().iter().all(|e| *e == 7));
}

#[test]
fn rows_come_at_their_rate() {
    let source = planned(all_types(), &[("rows-per-second", "1"), ("fields.list.length", "1")]).unwrap();
    let mut reader = source.open(CoreInit { core: CoreId(0), cores: 1 }).unwrap();
    let mut out = Vec::new();
    let polls: Vec<_> = (0..10).map(|_| reader.poll(1000, &mut out).unwrap()).collect();
    assert!(polls.contains(&SourcePoll::Idle));
}

#[test]
fn bad_options_and_types_are_refused_by_name() {
    for (key, value, code, message) in [
        (
            "fields.small.min",
            "40000",
            Code::InvalidOption,
            "option 'fields.small.min' must be a whole number between -32768 and 32767, not '40000'",
        ),
        (
            "fields.small.max",
            "x",
            Code::InvalidOption,
            "option 'fields.small.max' must be a whole number between -32768 and 32767, not 'x'",
        ),
        (
            "fields.money.max",
            "123456789.01",
            Code::InvalidOption,
            "option 'fields.money.max' must be a number of type DECIMAL(10, 2), not '123456789.01'",
        ),
        ("fields.big.null-rate", "1.5", Code::InvalidOption, "option 'fields.big.null-rate' must be between 0 and 1"),
        ("fields.text.length", "9999999", Code::InvalidOption, "option 'fields.text.length' must be at most 1048576"),
        (
            "fields.id.kind",
            "serial",
            Code::InvalidOption,
            "option 'fields.id.kind' must be one of random, sequence, not 'serial'",
        ),
        ("fields.id.kind", "sequence", Code::MissingOption, "option 'fields.id.start' is missing"),
        ("fields.flag.min", "0", Code::UnknownOption, "there is no option 'fields.flag.min'"),
        ("fields.big.size", "0", Code::UnknownOption, "there is no option 'fields.big.size'"),
        ("start-time", "noon", Code::InvalidOption, "option 'start-time' must be a timestamp such as"),
    ] {
        let error = planned(all_types(), &[(key, value)]).unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.trim_start_matches("table `t`: ").starts_with(message), "{}", error.message);
    }
    let crossed = [("fields.big.min", "5"), ("fields.big.max", "4")];
    assert_eq!(planned(all_types(), &crossed).unwrap_err().code, Code::InvalidOption);
    let backwards = [("fields.id.kind", "sequence"), ("fields.id.start", "5"), ("fields.id.end", "4")];
    assert_eq!(planned(all_types(), &backwards).unwrap_err().code, Code::InvalidOption);
    let flags = [("fields.flag.kind", "sequence"), ("fields.flag.start", "0"), ("fields.flag.end", "1")];
    assert_eq!(planned(all_types(), &flags).unwrap_err().code, Code::UnsupportedSchema);
    let key = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
    assert_eq!(planned(key, &[("fields.id.null-rate", "0.1")]).unwrap_err().code, Code::InvalidOption);
    let span = Arc::new(Schema::new(vec![Field::new("span", DataType::Duration(TimeUnit::Second), true)]));
    assert_eq!(planned(span, &[]).unwrap_err().message, "table `t`: column `span` of type INTERVAL can't be generated");
}
