#![allow(clippy::unwrap_used, reason = "tests")]
use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::*;
use proptest::prelude::*;

use super::*;

fn encode(array: &ArrayRef, options: SortOptions) -> Keys {
    let codec = RowCodec::new(vec![(array.data_type().clone(), options)]).unwrap();
    let mut keys = Keys::default();
    codec.encode(std::slice::from_ref(array), array.len(), None, &mut keys).unwrap();
    keys
}

/// Bytes must be equal and ordered exactly as Arrow's comparator says (which the canonical floats are exempt from), and come back.
fn check_column(array: &ArrayRef) {
    for descending in [false, true] {
        for nulls_first in [false, true] {
            let options = SortOptions { descending, nulls_first };
            let keys = encode(array, options);
            // Inside of nested values NULL is always least, so only the outermost NULL follows the options.
            let compare =
                make_comparator(array.as_ref(), array.as_ref(), SortOptions { descending: false, nulls_first: true }).unwrap();
            let expected = |i: usize, j: usize| match (array.is_null(i), array.is_null(j)) {
                (false, false) if descending => compare(j, i),
                (false, false) | (true, true) => compare(i, j),
                _ if nulls_first => compare(i, j),
                _ => compare(j, i),
            };
            for i in 0..array.len() {
                for j in 0..array.len() {
                    assert_eq!(keys.key(i).cmp(keys.key(j)), expected(i, j), "{} rows {i}, {j} {options:?}", array.data_type());
                    assert!(i == j || !keys.key(j).starts_with(keys.key(i)) || keys.key(i) == keys.key(j));
                }
            }
            let codec = RowCodec::new(vec![(array.data_type().clone(), options)]).unwrap();
            let back = codec.decode((0..array.len()).map(|i| keys.key(i))).unwrap().remove(0);
            assert_eq!(&back, array);
        }
    }
}

#[test]
fn every_fixed_type_keeps_order_and_comes_back() {
    let ints = [Some(i64::MIN), None, Some(-1), Some(0), Some(1), Some(255), Some(256), Some(i64::MAX), Some(77)];
    let base: ArrayRef = Arc::new(Int64Array::from(ints.to_vec()));
    check_column(&base);
    macro_rules! narrow {
        ($($array:ty, $native:ty);*) => {$(
            let values: Vec<Option<$native>> =
                vec![Some(<$native>::MIN), None, Some(0), Some(1), Some(<$native>::MAX), Some(<$native>::MAX / 2), Some(<$native>::MAX / 2 + 1)];
            check_column(&(Arc::new(<$array>::from(values)) as ArrayRef));
        )*};
    }
    narrow!(Int8Array, i8; Int16Array, i16; Int32Array, i32; UInt8Array, u8; UInt16Array, u16; UInt32Array, u32; UInt64Array, u64;
        Date32Array, i32; Date64Array, i64; Time32SecondArray, i32; Time32MillisecondArray, i32; Time64MicrosecondArray, i64;
        Time64NanosecondArray, i64; TimestampSecondArray, i64; TimestampMillisecondArray, i64; TimestampMicrosecondArray, i64;
        TimestampNanosecondArray, i64; DurationMicrosecondArray, i64; IntervalYearMonthArray, i32);
    check_column(&(Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])) as ArrayRef));
    let zoned = TimestampMicrosecondArray::from(vec![Some(5), None, Some(-5)]).with_timezone("UTC");
    check_column(&(Arc::new(zoned) as ArrayRef));
    let decimals = Decimal128Array::from(vec![Some(-10_i128.pow(37)), Some(0), None, Some(1), Some(10_i128.pow(37))]);
    check_column(&(Arc::new(decimals.with_precision_and_scale(38, 4).unwrap()) as ArrayRef));
    let interval = |m, d, n| Some(IntervalMonthDayNano::new(m, d, n));
    let intervals =
        vec![interval(-1, 0, 0), interval(1, -1, 0), None, interval(1, 0, -1), interval(1, 0, 1), interval(0, i32::MAX, 0)];
    check_column(&(Arc::new(IntervalMonthDayNanoArray::from(intervals)) as ArrayRef));
    let day_time = |d, m| Some(IntervalDayTime::new(d, m));
    check_column(
        &(Arc::new(IntervalDayTimeArray::from(vec![day_time(1, -5), day_time(1, 5), None, day_time(-1, 0)])) as ArrayRef),
    );
    check_column(&(Arc::new(NullArray::new(3)) as ArrayRef));
}

#[test]
fn floats_have_one_nan_and_one_zero() {
    let negative_nan = f64::from_bits(f64::NAN.to_bits() | 1 << 63);
    let values = vec![f64::NEG_INFINITY, -1.5, -0.0, 0.0, f64::MIN_POSITIVE, 2.0, f64::INFINITY, f64::NAN, negative_nan];
    let array: ArrayRef = Arc::new(Float64Array::from(values));
    let keys = encode(&array, SortOptions { descending: false, nulls_first: true });
    assert_eq!(keys.key(2), keys.key(3));
    assert_eq!(keys.key(7), keys.key(8));
    for (i, j) in [(0, 1), (1, 2), (3, 4), (4, 5), (5, 6), (6, 7)] {
        assert!(keys.key(i) < keys.key(j), "{i} {j}");
    }
    let codec = RowCodec::new(vec![(DataType::Float64, SortOptions { descending: false, nulls_first: true })]).unwrap();
    let back = codec.decode((0..9).map(|i| keys.key(i))).unwrap().remove(0);
    let back = back.as_primitive::<Float64Type>();
    assert_eq!(back.value(2).to_bits(), 0);
    assert!(back.value(8).is_nan() && back.value(8).is_sign_positive());
    assert_eq!(back.value(1), -1.5);
    let single: ArrayRef = Arc::new(Float32Array::from(vec![Some(1.5_f32), None, Some(-2.25), Some(f32::INFINITY)]));
    check_column(&single);
}

fn all_string_layouts(values: &[Option<String>]) -> Vec<ArrayRef> {
    let plain = StringArray::from(values.to_vec());
    let bytes: Vec<Option<&[u8]>> = values.iter().map(|v| v.as_deref().map(str::as_bytes)).collect();
    vec![
        Arc::new(plain),
        Arc::new(LargeStringArray::from(values.to_vec())),
        Arc::new(StringViewArray::from_iter(values.iter().map(Option::as_deref))),
        Arc::new(BinaryArray::from_iter(bytes.iter().copied())),
        Arc::new(LargeBinaryArray::from_iter(bytes.iter().copied())),
        Arc::new(BinaryViewArray::from_iter(bytes.iter().copied())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn strings_keep_order_and_come_back(values in prop::collection::vec(prop::option::of("[\u{0}\u{1}\u{2}a-c\u{ff}]{0,6}|[a-z]{10,30}"), 1..12)) {
        let layouts = all_string_layouts(&values);
        let first = encode(&layouts[0], SortOptions { descending: false, nulls_first: true });
        for array in &layouts {
            check_column(array);
            let keys = encode(array, SortOptions { descending: false, nulls_first: true });
            prop_assert_eq!(&keys.bytes, &first.bytes, "all layouts give the same bytes");
        }
    }

    #[test]
    fn rows_compare_column_by_column(rows in prop::collection::vec((prop::option::of(-2_i64..2), prop::option::of("[\u{0}\u{1}a]{0,3}"), prop::option::of(-3_i32..3)), 1..20), flags in prop::collection::vec(any::<(bool, bool)>(), 3)) {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(rows.iter().map(|r| r.0).collect::<Int64Array>()),
            Arc::new(rows.iter().map(|r| r.1.clone()).collect::<StringArray>()),
            Arc::new(rows.iter().map(|r| r.2).collect::<Int32Array>()),
        ];
        let options: Vec<SortOptions> = flags.iter().map(|(descending, nulls_first)| SortOptions { descending: *descending, nulls_first: *nulls_first }).collect();
        let codec = RowCodec::new(columns.iter().zip(&options).map(|(c, o)| (c.data_type().clone(), *o)).collect()).unwrap();
        let mut keys = Keys::default();
        codec.encode(&columns, rows.len(), None, &mut keys).unwrap();
        let compare: Vec<_> = columns.iter().zip(&options).map(|(c, o)| make_comparator(c.as_ref(), c.as_ref(), *o).unwrap()).collect();
        for i in 0..rows.len() {
            for j in 0..rows.len() {
                let expected = compare.iter().map(|c| c(i, j)).find(|o| o.is_ne()).unwrap_or(std::cmp::Ordering::Equal);
                prop_assert_eq!(keys.key(i).cmp(keys.key(j)), expected);
            }
            prop_assert_eq!(keys.hashes[i], twox_hash::XxHash3_64::oneshot(keys.key(i)));
        }
        let back = codec.decode((0..rows.len()).map(|i| keys.key(i))).unwrap();
        prop_assert_eq!(&back, &columns);
        let prefix: Vec<u64> = (0..rows.len() as u64).collect();
        let mut prefixed = Keys::default();
        codec.encode(&columns, rows.len(), Some(&prefix), &mut prefixed).unwrap();
        for i in 0..rows.len() {
            prop_assert_eq!(&prefixed.key(i)[..8], &(i as u64).to_be_bytes()[..]);
            prop_assert_eq!(&prefixed.key(i)[8..], keys.key(i));
        }
    }

    #[test]
    fn nested_values_keep_order_and_come_back(lists in prop::collection::vec(prop::option::of(prop::collection::vec(prop::option::of((prop::option::of(-2_i32..2), "[\u{0}\u{1}x]{0,2}")), 0..3)), 1..10)) {
        let fields: Fields = vec![Field::new("n", DataType::Int32, true), Field::new("s", DataType::Utf8, true)].into();
        let builders: Vec<Box<dyn ArrayBuilder>> = vec![Box::new(Int32Builder::new()), Box::new(StringBuilder::new())];
        let mut builder = ListBuilder::new(StructBuilder::new(fields, builders));
        for list in &lists {
            for item in list.iter().flatten() {
                let values = builder.values();
                let (n, s) = item.clone().map_or((None, None), |(n, s)| (n, Some(s)));
                values.field_builder::<Int32Builder>(0).unwrap().append_option(n);
                values.field_builder::<StringBuilder>(1).unwrap().append_option(s);
                values.append(item.is_some());
            }
            builder.append(list.is_some());
        }
        let array: ArrayRef = Arc::new(builder.finish());
        check_column(&array);
    }
}

#[test]
fn fixed_size_lists_maps_and_dictionaries_come_back() {
    let lists = FixedSizeListArray::from_iter_primitive::<Int32Type, _, _>(
        vec![Some(vec![Some(1), None]), None, Some(vec![Some(-1), Some(2)])],
        2,
    );
    let array: ArrayRef = Arc::new(lists);
    let keys = encode(&array, SortOptions { descending: false, nulls_first: true });
    let codec = KeyCodec::new(&Arc::new(Schema::new(vec![Field::new("l", array.data_type().clone(), true)])), &[0]).unwrap();
    assert_eq!(codec.decode((0..3).map(|i| keys.key(i))).unwrap()[0].to_data(), array.to_data());

    let mut map = MapBuilder::new(None, StringBuilder::new(), Int32Builder::new());
    map.keys().append_value("a");
    map.values().append_value(1);
    map.append(true).unwrap();
    map.append(false).unwrap();
    let array: ArrayRef = Arc::new(map.finish());
    let keys = encode(&array, SortOptions { descending: false, nulls_first: true });
    let codec = KeyCodec::new(&Arc::new(Schema::new(vec![Field::new("m", array.data_type().clone(), true)])), &[0]).unwrap();
    assert_eq!(&codec.decode((0..2).map(|i| keys.key(i))).unwrap()[0], &array);

    let words: DictionaryArray<Int32Type> = vec![Some("x"), None, Some("y"), Some("x")].into_iter().collect();
    let array: ArrayRef = Arc::new(words);
    let plain: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None, Some("y"), Some("x")]));
    let options = SortOptions { descending: false, nulls_first: true };
    assert_eq!(encode(&array, options).bytes, encode(&plain, options).bytes);
    let codec = RowCodec::new(vec![(array.data_type().clone(), options)]).unwrap();
    let keys = encode(&array, options);
    let back = codec.decode((0..4).map(|i| keys.key(i))).unwrap().remove(0);
    assert_eq!(&arrow::compute::cast(&back, &DataType::Utf8).unwrap(), &plain);
}

/// These bytes and hashes name state on disks: they must never change.
#[test]
fn golden_keys_never_change() {
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("day", DataType::Utf8, true),
        Field::new("price", DataType::Float64, true),
        Field::new("total", DataType::Decimal128(10, 2), true),
    ]));
    let rows = RecordBatch::try_new(
        schema.clone(),
        vec![
            Arc::new(Int64Array::from(vec![Some(1), None])),
            Arc::new(StringArray::from(vec![Some("2020-01-01"), Some("\u{0}a\u{1}")])),
            Arc::new(Float64Array::from(vec![Some(-0.0), Some(-1.0)])),
            Arc::new(Decimal128Array::from(vec![Some(-1), None]).with_precision_and_scale(10, 2).unwrap()),
        ],
    )
    .unwrap();
    let mut keys = Keys::default();
    KeyCodec::new(&schema, &[0, 1, 2, 3]).unwrap().encode(&rows, &mut keys).unwrap();
    let hex = |i: usize| keys.key(i).iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(
        hex(0),
        "01800000000000000101323032302d30312d30310001800000000000000001\
                        7fffffffffffffffffffffffffffffff"
            .replace(' ', "")
    );
    assert_eq!(
        hex(1),
        "000000000000000000010101610102000140\
                        0fffffffffffff0000000000000000000000000000000000"
            .replace(' ', "")
    );
    assert_eq!(hash(b""), 0x2d06_8005_38d3_94c2);
    let mut single = Keys::default();
    KeyCodec::new(&schema, &[0]).unwrap().encode(&rows, &mut single).unwrap();
    assert_eq!(single.hashes, [GOLDEN_ONE, GOLDEN_NULL]);
    assert_eq!(vnode(single.hashes[0], 256).0, (single.hashes[0] >> 56) as u16);
}

// As the reference implementation of xxHash gives them.
const GOLDEN_ONE: u64 = 9_386_959_315_897_320_766;
const GOLDEN_NULL: u64 = 3_767_706_845_506_508_887;

#[test]
fn types_without_order_are_refused() {
    let refused = RowCodec::new(vec![(DataType::Decimal256(50, 0), SortOptions::default())]).unwrap_err();
    assert_eq!(refused.code, Code::TypeMismatch);
}

#[test]
fn damaged_keys_are_an_error() {
    let codec = RowCodec::new(vec![(DataType::Utf8, SortOptions::default()), (DataType::Int64, SortOptions::default())]).unwrap();
    for bytes in [&[][..], &[1, b'a'], &[1, b'a', 0, 1, 2], &[1, 1, 0], &[1, 0xFF, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]] {
        assert_eq!(codec.decode(std::iter::once(bytes)).unwrap_err().code, Code::StateCorrupt, "{bytes:?}");
    }
}

#[test]
fn one_key_for_rows_that_are_all_equal_is_the_key_of_each() {
    let text = |values: [Option<&str>; 3]| Arc::new(StringViewArray::from_iter(values)) as ArrayRef;
    let day: ArrayRef = Arc::new(Date32Array::from(vec![7, 7, 7]));
    let cases: [(Vec<ArrayRef>, bool); 7] = [
        (vec![text([Some("2026-11-21"); 3]), day.clone()], true),
        (vec![text([Some("a"), Some("a"), Some("b")]), day.clone()], false),
        (vec![text([Some("a text that is too long for a view"); 3])], false),
        (vec![text([None; 3])], false),
        (vec![Arc::new(Int64Array::from(vec![Some(1), None, Some(1)]))], false),
        (vec![Arc::new(Int64Array::from(vec![5, 5, 5]))], true),
        (vec![day, Arc::new(Int64Array::from(vec![5, 5, 6]))], false),
    ];
    for (columns, equal) in cases {
        let fields: Vec<Field> =
            columns.iter().enumerate().map(|(i, c)| Field::new(i.to_string(), c.data_type().clone(), true)).collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.clone()).unwrap();
        let mut codec = KeyCodec::new(&batch.schema(), &(0..columns.len()).collect::<Vec<_>>()).unwrap();
        let (mut all, mut once) = (Keys::default(), Keys::default());
        codec.encode(&batch, &mut all).unwrap();
        assert_eq!(codec.encode_once_if_equal(&batch, &mut once).unwrap(), equal, "{columns:?}");
        assert_eq!(once.hashes.len(), if equal { 1 } else { 3 });
        assert!((0..3).all(|row| all.key(row) == once.key(if equal { 0 } else { row })));
    }
}

#[test]
fn bytes_to_escape_are_seen_in_texts_of_every_length_and_place() {
    for len in 1..30 {
        for at in 0..len {
            for byte in [0, 1, 2, 0x7f] {
                let mut bytes = vec![b'x'; len];
                bytes[at] = byte;
                let text = String::from_utf8(bytes).unwrap();
                check_column(&(Arc::new(StringViewArray::from_iter_values([text.as_str(), "", "xx"])) as ArrayRef));
            }
        }
    }
}
