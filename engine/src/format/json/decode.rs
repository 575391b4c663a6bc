//! JSON records to columns.

use arrow::datatypes::SchemaRef;

use super::JsonOptions;
use super::scan::Scanner;
use crate::error::{Code, Result};
use crate::format::columns::{Column, Decode, FieldSet, Kind, TextRules, close_list, flaw};
use crate::format::names::{NameTable, Place, Target};

/// Fills columns from the objects of a JSON text.
pub struct RecordReader {
    fields: FieldSet,
    names: NameTable,
    values: ValueReader,
}

/// The policies, and memory for strings with escapes.
struct ValueReader {
    options: JsonOptions,
    scratch: String,
}

impl RecordReader {
    /// For the columns `schema` of a table that has the physical columns `declared`.
    pub fn new(schema: &SchemaRef, declared: &SchemaRef, options: JsonOptions) -> Result<Self> {
        let built = schema.fields().iter().map(|f| f.name().as_str());
        let declared = declared.fields().iter().map(|f| f.name().as_str());
        Ok(Self {
            fields: FieldSet::new(schema)?,
            names: NameTable::new(built, declared),
            values: ValueReader { options, scratch: String::new() },
        })
    }

    /// The columns and rows so far.
    pub fn fields(&mut self) -> &mut FieldSet {
        &mut self.fields
    }

    /// Reads a text that is one object, as one row. After an error the caller gives the row up with [`FieldSet::kill_from`].
    pub fn record(&mut self, text: &str) -> Decode<()> {
        let mut scanner = Scanner::new(text);
        if scanner.peek() != Some(b'{') {
            scanner.skip(0, &mut self.values.scratch)?;
            scanner.end()?;
            return flaw(Code::BadRecord, "the record is no JSON object");
        }
        let rows = self.fields.rows();
        self.values.members(&mut scanner, &mut self.fields.columns, &mut self.names, rows, 0)?;
        scanner.end()?;
        self.fields.end_row();
        Ok(())
    }
}

impl ValueReader {
    /// The members of the object that opens here, into `columns`, which have `rows` slots each, and one more on success.
    fn members(
        &mut self,
        scanner: &mut Scanner<'_>,
        columns: &mut [Column],
        names: &mut NameTable,
        rows: usize,
        depth: usize,
    ) -> Decode<()> {
        let mut is_first = scanner.open(b'{', depth)?;
        let mut place = Place::default();
        let mut filled = 0;
        while scanner.next_item(b'}', &mut is_first)? {
            let name = scanner.name(&mut self.scratch)?;
            match names.find(&mut place, name) {
                Target::Column(index) => {
                    let column = &mut columns[index];
                    if column.len() > rows {
                        return flaw(Code::BadRecord, format!("field '{}' stands twice", column.field.name()));
                    }
                    filled += 1;
                    self.value(scanner, column, depth + 1)?;
                }
                Target::Extra if self.options.fail_on_unknown_field => {
                    let name: String = name.chars().take(80).collect();
                    return flaw(Code::ExtraField, format!("the table has no column for field '{name}'"));
                }
                Target::Unneeded | Target::Extra => {
                    scanner.skip(depth + 1, &mut self.scratch)?;
                }
            }
        }
        if filled < columns.len() {
            for column in columns.iter_mut().filter(|c| c.len() == rows) {
                if !column.field.is_nullable() || self.options.fail_on_missing_field {
                    return flaw(Code::MissingField, format!("field '{}' is missing", column.field.name()));
                }
                column.append_null();
            }
        }
        Ok(())
    }

    /// One value into one slot of `column`; filler after an error.
    fn value(&mut self, scanner: &mut Scanner<'_>, column: &mut Column, depth: usize) -> Decode<()> {
        let slots = column.len();
        let answer = self.try_value(scanner, column, depth);
        if answer.is_err() && column.len() == slots {
            column.append_filler();
        }
        answer
    }

    fn try_value(&mut self, scanner: &mut Scanner<'_>, column: &mut Column, depth: usize) -> Decode<()> {
        let first = scanner.peek();
        macro_rules! small_integer {
            ($b:expr) => {
                if let Some(value) = scanner.short_integer() {
                    return match value.try_into() {
                        Ok(value) => Ok($b.append_value(value)),
                        Err(_) => column.misfit(crate::format::scalar::Misfit::Range, &value.to_string()),
                    };
                }
            };
        }
        // The common cases first; what falls through is decided by the kind of JSON value.
        match (&mut column.kind, first) {
            (Kind::I64(b), Some(b'-' | b'0'..=b'9')) => {
                if let Some(value) = scanner.short_integer() {
                    b.append_value(value);
                    return Ok(());
                }
            }
            (Kind::Text(b), Some(b'"')) => {
                b.append_value(scanner.string(&mut self.scratch)?);
                return Ok(());
            }
            (Kind::I32(b), Some(b'-' | b'0'..=b'9')) => small_integer!(b),
            (Kind::I16(b), Some(b'-' | b'0'..=b'9')) => small_integer!(b),
            (Kind::I8(b), Some(b'-' | b'0'..=b'9')) => small_integer!(b),
            (_, Some(b'n')) => {
                scanner.word("null")?;
                if !column.field.is_nullable() {
                    return flaw(
                        Code::MissingField,
                        format!("field '{}' is null, but its column is NOT NULL", column.field.name()),
                    );
                }
                column.append_null();
                return Ok(());
            }
            (Kind::Json(b), _) => {
                b.append_value(scanner.skip(depth, &mut self.scratch)?);
                return Ok(());
            }
            (Kind::Struct { children, names, validity }, Some(b'{')) => {
                let rows = validity.len();
                let answer = self.members(scanner, children, names, rows, depth);
                if answer.is_err() {
                    children.iter_mut().filter(|c| c.len() == rows).for_each(Column::append_filler);
                }
                validity.append_non_null();
                return answer;
            }
            (Kind::List { child, offsets, validity }, Some(b'[')) => {
                let answer = self.elements(scanner, child, depth);
                close_list(child.len(), offsets, validity, true);
                return answer;
            }
            (Kind::Map { keys, values, offsets, validity, .. }, Some(b'{')) => {
                let answer = self.entries(scanner, keys, values, depth);
                close_list(keys.len(), offsets, validity, true);
                return answer;
            }
            _ => {}
        }
        let rules = TextRules { timestamps: self.options.timestamps, raw_bytes: false };
        match first {
            Some(b'"') => {
                let text = scanner.string(&mut self.scratch)?;
                column.append_text(if matches!(column.kind, Kind::Bytes(_)) { text } else { text.trim() }, rules)
            }
            Some(b'-' | b'0'..=b'9') => {
                let text = scanner.number()?;
                match column.kind {
                    // A number is no date; its unit would be a guess.
                    Kind::Date(_) | Kind::Time(_) | Kind::Timestamp(..) | Kind::Bytes(_) | Kind::Bool(_) => {
                        column.misfit(crate::format::scalar::Misfit::Type, text)
                    }
                    _ => column.append_text(text, rules),
                }
            }
            Some(b't' | b'f') => {
                let text = scanner.skip(depth, &mut self.scratch)?;
                if matches!(column.kind, Kind::Bytes(_)) {
                    return column.misfit(crate::format::scalar::Misfit::Type, text); // "true" is base64, too
                }
                column.append_text(text, rules)
            }
            // An array or object where a plain value is wanted; STRING takes its text.
            _ => {
                let text = scanner.skip(depth, &mut self.scratch)?;
                match &column.kind {
                    Kind::Text(_) => column.append_text(text, rules),
                    _ => column.misfit(crate::format::scalar::Misfit::Type, text),
                }
            }
        }
    }

    fn elements(&mut self, scanner: &mut Scanner<'_>, child: &mut Column, depth: usize) -> Decode<()> {
        let mut is_first = scanner.open(b'[', depth)?;
        while scanner.next_item(b']', &mut is_first)? {
            self.value(scanner, child, depth + 1)?;
        }
        Ok(())
    }

    fn entries(&mut self, scanner: &mut Scanner<'_>, keys: &mut Column, values: &mut Column, depth: usize) -> Decode<()> {
        let mut is_first = scanner.open(b'{', depth)?;
        let rules = TextRules { timestamps: self.options.timestamps, raw_bytes: false };
        while scanner.next_item(b'}', &mut is_first)? {
            let name = scanner.name(&mut self.scratch)?;
            let key = keys.append_text(name, rules);
            // Both get their slot, whatever becomes of the key.
            let value = self.value(scanner, values, depth + 1);
            key.and(value)?;
        }
        Ok(())
    }
}

/// JSON lines: a row a record.
pub struct JsonLines {
    reader: RecordReader,
}

impl JsonLines {
    /// See [`RecordReader::new`].
    pub fn new(schema: &SchemaRef, declared: &SchemaRef, options: JsonOptions) -> Result<Self> {
        Ok(Self { reader: RecordReader::new(schema, declared, options)? })
    }
}

impl crate::format::lines::LineDecoder for JsonLines {
    fn line(&mut self, text: &str, weights: &mut Vec<i64>) -> Decode<()> {
        self.reader.record(text)?;
        weights.push(1);
        Ok(())
    }

    fn fields(&mut self) -> &mut FieldSet {
        self.reader.fields()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::Arc;

    use arrow::array::{Array, AsArray, RecordBatch};
    use arrow::datatypes::{DataType, Field, Fields, Int32Type, Int64Type, Schema, TimeUnit};
    use proptest::prelude::*;

    use super::*;
    use crate::connect::Rejected;
    use crate::format::lines::LineFramer;
    use crate::format::{Decoded, Decoder};

    fn schema(fields: Vec<Field>) -> SchemaRef {
        Arc::new(Schema::new(fields))
    }

    fn nullable(name: &str, data_type: DataType) -> Field {
        Field::new(name, data_type, true)
    }

    /// Decodes `input` in blocks that end at `cuts`.
    fn decode(schema: &SchemaRef, options: JsonOptions, input: &[u8], cuts: &[usize]) -> Decoded {
        let mut decoder = LineFramer::new(JsonLines::new(schema, schema, options).unwrap(), 1000);
        decoder.begin("t.json");
        let mut start = 0;
        for cut in cuts {
            let cut = (*cut).clamp(start, input.len());
            decoder.push(&input[start..cut]);
            start = cut;
        }
        decoder.push(&input[start..]);
        decoder.end();
        decoder.finish().unwrap()
    }

    fn one(field: Field, value: &str) -> std::result::Result<RecordBatch, Rejected> {
        let mut decoded = decode(&schema(vec![field]), JsonOptions::default(), format!("{{\"v\": {value}}}").as_bytes(), &[]);
        assert_eq!(decoded.rows.num_rows() + decoded.rejected.len(), 1, "{value}");
        decoded.rejected.pop().map_or(Ok(decoded.rows), Err)
    }

    #[test]
    fn values_of_each_type_are_read_or_refused_with_their_code() {
        let timestamp = |zone: Option<&str>| DataType::Timestamp(TimeUnit::Microsecond, zone.map(Into::into));
        let item = |data_type| Arc::new(nullable("item", data_type));
        for (data_type, good, wrong_type, out_of_range) in [
            (DataType::Boolean, vec!["true", "false", "\"TRUE\"", "null"], vec!["1", "\"yes\"", "[]"], vec![]),
            (DataType::Int8, vec!["127", "-128", "1e2", "\"12\""], vec!["1.5", "\"\"", "true"], vec!["128", "-129", "1e3"]),
            (DataType::Int32, vec!["2147483647", "2.0", "-0"], vec!["0.1", "{}"], vec!["2147483648", "99999999999999999999999"]),
            (
                DataType::Int64,
                vec!["9223372036854775807", "-9223372036854775808", "1e18"],
                vec!["\"abc\"", "1e-1", "false", "[1]", "{\"a\":1}"],
                vec!["9223372036854775808", "-9223372036854775809", "1e400"],
            ),
            (DataType::UInt64, vec!["18446744073709551615"], vec!["\"x\""], vec!["-1", "18446744073709551616"]),
            (DataType::Float32, vec!["1", "1e38", "\"NaN\""], vec!["\"x\"", "true"], vec!["1e39"]),
            (DataType::Float64, vec!["1", "1e308", "-0.0", "\"-Infinity\""], vec!["\"inf\"", "[]"], vec!["1e309"]),
            (DataType::Decimal128(5, 2), vec!["999.99", "-1e2", "0.001", "\"1.5\""], vec!["\"1,5\""], vec!["1000", "999.995"]),
            (DataType::Utf8View, vec!["\"a\\u0041\\ud83d\\ude00\"", "12.50", "true", "{\"a\": [1]}"], vec![], vec![]),
            (
                DataType::Date32,
                vec!["\"2024-02-29\""],
                vec!["19000", "\"2024-2-29\"", "\"\""],
                vec!["\"2023-02-29\"", "\"2023-13-01\""],
            ),
            (DataType::Time64(TimeUnit::Nanosecond), vec!["\"23:59:59.999999\""], vec!["1", "\"1:2:3\""], vec!["\"24:00:00\""]),
            (
                timestamp(None),
                vec!["\"2024-01-01 00:00:00\"", "\"2024-01-01T00:00:00.5\""],
                vec!["1700000000", "\"2024-01-01 00:00:00Z\""],
                vec!["\"2024-01-01 00:60:00\""],
            ),
            (
                timestamp(Some("UTC")),
                vec!["\"2024-01-01 00:00:00Z\"", "\"2024-01-01T01:00:00+01:00\""],
                vec!["\"2024-01-01 00:00:00\""],
                vec![],
            ),
            (DataType::Binary, vec!["\"AQID\"", "\"\""], vec!["\"AQI\"", "12", "true"], vec![]),
            (
                DataType::List(item(DataType::Int32)),
                vec!["[]", "[1, null, 3]"],
                vec!["1", "[\"a\"]", "[1.5]"],
                vec!["[1, 2147483648]"],
            ),
            (
                DataType::Struct(Fields::from(vec![nullable("x", DataType::Int32), Field::new("y", DataType::Utf8View, true)])),
                vec!["{}", "{\"Y\": \"a\", \"x\": 1, \"z\": []}"],
                vec!["[]", "{\"x\": \"a\"}"],
                vec!["{\"y\": \"a\", \"x\": 1e10}"],
            ),
        ] {
            for value in good {
                let batch =
                    one(nullable("v", data_type.clone()), value).unwrap_or_else(|bad| panic!("{data_type} {value}: {bad:?}"));
                assert_eq!(*batch.column(0).data_type(), data_type);
                assert_eq!(batch.column(0).is_null(0), value == "null");
            }
            for (code, values) in [(Code::FieldType, wrong_type), (Code::FieldRange, out_of_range)] {
                for value in values {
                    let bad = one(nullable("v", data_type.clone()), value).map_err(|bad| bad.code);
                    assert_eq!(bad.err(), Some(code), "{data_type} {value}");
                }
            }
        }
    }

    #[test]
    fn maps_and_json_text_keep_what_they_held() {
        let entries = Fields::from(vec![Field::new("key", DataType::Utf8View, false), nullable("value", DataType::Int64)]);
        let map = DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false);
        let batch = one(nullable("v", map.clone()), r#"{"a": 1, "b": null}"#).unwrap();
        let map_column = batch.column(0).as_map();
        assert_eq!(map_column.keys().as_string_view().iter().flatten().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(map_column.values().as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(1), None]);
        assert_eq!(one(nullable("v", map), r#"{"a": "x"}"#).unwrap_err().code, Code::FieldType);

        let json = nullable("v", DataType::Utf8View)
            .with_metadata([("ARROW:extension:name".to_owned(), "arrow.json".to_owned())].into());
        assert_eq!(
            one(json.clone(), r#"{"a":  [1, "x\n"]}"#).unwrap().column(0).as_string_view().value(0),
            r#"{"a":  [1, "x\n"]}"#
        );
        assert_eq!(one(json, r#""text""#).unwrap().column(0).as_string_view().value(0), r#""text""#);
    }

    #[test]
    fn a_bad_record_takes_no_neighbour_with_it() {
        let list = DataType::List(Arc::new(Field::new("item", DataType::Int32, false)));
        let inner = DataType::Struct(Fields::from(vec![Field::new("n", DataType::Int32, false), nullable("l", list.clone())]));
        let schema = schema(vec![
            Field::new("id", DataType::Int32, false),
            Field::new("s", inner, false),
            nullable("l", list),
            Field::new("t", DataType::Utf8View, false),
        ]);
        let good = |id: i32| format!(r#"{{"id":{id},"s":{{"n":{id},"l":[1,2]}},"l":[{id}],"t":"t{id}"}}"#);
        let bad = [
            (Code::FieldType, r#"{"id":1,"s":{"n":1,"l":[1,"x"]},"l":[1],"t":"a"}"#),
            (Code::FieldRange, r#"{"id":1,"s":{"n":1,"l":[1]},"l":[1,9999999999],"t":"a"}"#),
            (Code::MissingField, r#"{"id":1,"s":{"l":[1,2]},"l":[1],"t":"a"}"#),
            (Code::MissingField, r#"{"id":1,"s":{"n":1},"l":[null],"t":"a"}"#),
            (Code::MissingField, r#"{"id":1,"s":{"n":1}}"#),
            (Code::MissingField, r#"{"id":null,"s":{"n":1},"t":"a"}"#),
            (Code::BadRecord, r#"{"id":1,"id":2,"s":{"n":1},"t":"a"}"#),
            (Code::BadRecord, r#"{"id":1,"s":{"n":1,"n":1},"t":"a"}"#),
            (Code::BadRecord, r#"{"id":1,"s":{"n":1},"t":"a""#),
            (Code::BadRecord, r#"{"id":1,"s":{"n":1},"t":"a"} x"#),
            (Code::BadRecord, r#"{"id":1,"s":{"n":1},"t":"a","other":[1,}"#),
            (Code::BadRecord, "[1]"),
            (Code::BadRecord, "null"),
            (Code::BadUtf8, "{\"id\":1,\"s\":{\"n\":1},\"t\":\"\u{1}\"}"),
        ];
        let mut input = Vec::new();
        for (i, (_, line)) in bad.iter().enumerate() {
            input.extend_from_slice(good(i as i32).as_bytes());
            input.extend_from_slice(b"\r\n\n");
            // A byte that is never UTF-8 stands in for the control character.
            input.extend(line.bytes().map(|b| if b == 1 { 0xFF } else { b }));
            input.push(b'\n');
        }
        input.extend_from_slice(good(bad.len() as i32).as_bytes());
        for cuts in [vec![], (0..input.len()).collect(), vec![1, 57, 58, 400]] {
            let decoded = decode(&schema, JsonOptions::default(), &input, &cuts);
            let ids: Vec<_> = decoded.rows.column(0).as_primitive::<Int32Type>().values().to_vec();
            assert_eq!(ids, (0..=bad.len() as i32).collect::<Vec<_>>());
            let lists = decoded.rows.column(2).as_list::<i32>();
            assert!((0..ids.len()).all(|i| lists.value(i).as_primitive::<Int32Type>().values()[..] == [ids[i]]));
            let texts = decoded.rows.column(3).as_string_view();
            assert!((0..ids.len()).all(|i| texts.value(i) == format!("t{i}")));
            assert_eq!(decoded.lines, (0..=bad.len() as i64).map(|i| i * 3 + 1).collect::<Vec<_>>());
            let codes: Vec<_> = decoded.rejected.iter().map(|r| (r.code, r.position)).collect();
            let wanted: Vec<_> = bad.iter().enumerate().map(|(i, (code, _))| (*code, Some(i as u64 * 3 + 3))).collect();
            assert_eq!(codes, wanted);
            assert!(decoded.rejected.iter().all(|r| r.origin == "t.json" && !r.raw.is_empty()));
        }
    }

    #[test]
    fn policies_for_missing_and_extra_fields() {
        let table = schema(vec![nullable("a", DataType::Int32), nullable("b", DataType::Int32)]);
        let input = b"{\"a\":1}\n{\"a\":1,\"b\":2,\"c\":3}\n";
        let decoded = decode(&table, JsonOptions::default(), input, &[]);
        assert_eq!((decoded.rows.num_rows(), decoded.rows.column(1).null_count()), (2, 1));
        let strict = JsonOptions { fail_on_missing_field: true, fail_on_unknown_field: true, ..JsonOptions::default() };
        let codes: Vec<_> = decode(&table, strict, input, &[]).rejected.iter().map(|r| r.code).collect();
        assert_eq!(codes, [Code::MissingField, Code::ExtraField]);
        // A column that the plan does not need is no extra field.
        let needed = schema(vec![nullable("a", DataType::Int32)]);
        let mut lines = JsonLines::new(&needed, &table, strict).unwrap();
        lines.reader.record(r#"{"a":1,"B":2}"#).unwrap();
        assert!(lines.reader.record(r#"{"a":1,"c":2}"#).is_err());
    }

    #[test]
    fn long_lines_a_byte_order_mark_and_a_missing_last_newline() {
        let table = schema(vec![nullable("a", DataType::Utf8View)]);
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(2000));
        let fits = format!("{{\"a\":\"{}\"}}", "x".repeat(1000 - 8));
        let input = format!("\u{feff}{{\"a\":\"1\"}}\n{long}\n{fits}\r\n{long}");
        for cuts in [vec![], (0..input.len()).collect::<Vec<_>>(), vec![2, 500, 1500, 2020]] {
            let decoded = decode(&table, JsonOptions::default(), input.as_bytes(), &cuts);
            assert_eq!(decoded.lines, [1, 3]);
            let bad: Vec<_> = decoded.rejected.iter().map(|r| (r.code, r.position)).collect();
            assert_eq!(bad, [(Code::RecordTooLong, Some(2)), (Code::RecordTooLong, Some(4))]);
        }
    }

    fn oracle_schema() -> SchemaRef {
        let item = Arc::new(nullable("item", DataType::Int64));
        let inner = Fields::from(vec![nullable("x", DataType::Utf8View), nullable("y", DataType::Float64)]);
        schema(vec![
            nullable("i", DataType::Int64),
            nullable("f", DataType::Float64),
            nullable("b", DataType::Boolean),
            nullable("s", DataType::Utf8View),
            nullable("l", DataType::List(item)),
            nullable("r", DataType::Struct(inner)),
        ])
    }

    /// Objects of that schema, with fields in any order, missing, null or unknown.
    fn oracle_record() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::Value;
        fn text() -> impl Strategy<Value = Value> {
            "\\PC{0,20}|[\\x00-\\x7f]{0,20}".prop_map(Value::from)
        }
        fn float() -> impl Strategy<Value = Value> {
            (-1e9f64..1e9).prop_map(Value::from)
        }
        let some = |s: BoxedStrategy<Value>| prop_oneof![4 => s, 1 => Just(Value::Null)];
        let fields = (
            prop::option::of(some(any::<i64>().prop_map(Value::from).boxed())),
            prop::option::of(some(float().boxed())),
            prop::option::of(some(any::<bool>().prop_map(Value::from).boxed())),
            prop::option::of(some(text().boxed())),
            prop::option::of(some(prop::collection::vec(any::<i64>().prop_map(Value::from), 0..4).prop_map(Value::from).boxed())),
            prop::option::of((prop::option::of(text()), prop::option::of(float()))),
            prop::option::of(text()),
        );
        fields.prop_map(|(i, f, b, s, l, r, unknown)| {
            let pairs = [("i", i), ("f", f), ("b", b), ("s", s), ("l", l), ("unknown", unknown)];
            let mut object: serde_json::Map<_, _> = pairs.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?))).collect();
            if let Some((x, y)) = r {
                let inner: serde_json::Map<_, _> =
                    [("x", x), ("y", y)].into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?))).collect();
                object.insert("r".into(), inner.into());
            }
            object.into()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn batches_equal_those_of_arrow_json(
            records in prop::collection::vec(oracle_record(), 1..20),
            cuts in prop::collection::vec(0usize..2000, 0..6),
        ) {
            let mut input = String::new();
            for record in &records {
                input.push_str(&serde_json::to_string(record).unwrap());
                input.push('\n');
            }
            let mut cuts = cuts;
            cuts.sort_unstable();
            let schema = oracle_schema();
            let ours = decode(&schema, JsonOptions::default(), input.as_bytes(), &cuts);
            prop_assert!(ours.rejected.is_empty(), "{:?}", ours.rejected);
            let mut reader = arrow::json::ReaderBuilder::new(schema).build(input.as_bytes()).unwrap();
            prop_assert_eq!(ours.rows, reader.next().unwrap().unwrap());
        }

        #[test]
        fn any_bytes_become_rows_and_rejections_line_by_line(
            lines in prop::collection::vec(prop_oneof![
                oracle_record().prop_map(|v| v.to_string().into_bytes()),
                (oracle_record(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(v, at, byte)| {
                    let mut bytes = v.to_string().into_bytes();
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                    bytes
                }),
                prop::collection::vec(any::<u8>(), 0..40),
            ], 0..30),
            cuts in prop::collection::vec(0usize..2000, 0..6),
        ) {
            let input = lines.join(&b'\n');
            let mut cuts = cuts;
            cuts.sort_unstable();
            let decoded = decode(&oracle_schema(), JsonOptions::default(), &input, &cuts);
            let blank = |line: &[u8]| line.iter().all(|b| matches!(b, b' ' | b'\t' | b'\r'));
            // A mark at the very start is no part of the first line.
            let content = input.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&input);
            let records = content.split(|b| *b == b'\n').filter(|l| !blank(l)).count();
            prop_assert_eq!(decoded.rows.num_rows() + decoded.rejected.len(), records);
            let whole = decode(&oracle_schema(), JsonOptions::default(), &input, &[]);
            prop_assert_eq!(whole.rows, decoded.rows);
            prop_assert_eq!(whole.rejected, decoded.rejected);
            prop_assert_eq!(whole.lines, decoded.lines);
        }
    }
}
