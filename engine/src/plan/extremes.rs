//! Every scalar function over the ends of its arguments' ranges: a value, NULL or a bad row, never a panic, never memory without bound.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Field, FieldRef, IntervalMonthDayNano, Schema, TimeUnit};
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::type_coercion::functions::fields_with_udf;
use datafusion::logical_expr::{Cast, Expr, ScalarUDF, lit};
use datafusion::prelude::{SessionConfig, SessionContext};

use super::compile::physical;
use crate::allocation_watch::largest_of;
use crate::batch::DeltaBatch;
use crate::error::Code;
use crate::operators::chain::{ChainCx, FusedChain, Step};
use crate::operators::{RowAccounts, RowPolicy, Watermark};

/// The most that a call over a small batch may ask for at once.
const ALLOCATION_MAX: usize = 600 << 20;

fn texts() -> DataType {
    DataType::Utf8View
}

fn list_of(values: Option<&[ScalarValue]>, kind: &DataType) -> ScalarValue {
    match values {
        Some(values) => ScalarValue::List(ScalarValue::new_list_nullable(values, kind)),
        None => ScalarValue::try_from(&DataType::new_list(kind.clone(), true)).unwrap(),
    }
}

/// The ends of each type's range.
fn extremes() -> Vec<Vec<ScalarValue>> {
    let int = |v: i64| ScalarValue::Int64(Some(v));
    let text = |v: &str| ScalarValue::Utf8View(Some(v.into()));
    let time = |v: Option<i64>| ScalarValue::TimestampMicrosecond(v, None);
    let step =
        |months, days, nanoseconds| ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano::new(months, days, nanoseconds)));
    let greatest = 10i128.pow(38) - 1;
    vec![
        [None, Some(0), Some(-1), Some(3), Some(i64::MIN), Some(i64::MAX), Some(1 << 31)].map(ScalarValue::Int64).to_vec(),
        vec![ScalarValue::Utf8View(None), text(""), text("aé€𝄞b"), text("(%"), text("-1")],
        vec![
            list_of(None, &DataType::Int64),
            list_of(Some(&[]), &DataType::Int64),
            list_of(Some(&[int(1), ScalarValue::Int64(None), int(i64::MIN)]), &DataType::Int64),
        ],
        vec![time(None), time(Some(0)), time(Some(i64::MIN)), time(Some(i64::MAX))],
        [None, Some(0), Some(i32::MIN), Some(i32::MAX)].map(ScalarValue::Date32).to_vec(),
        vec![
            ScalarValue::IntervalMonthDayNano(None),
            step(0, 0, 0),
            step(i32::MAX, i32::MAX, i64::MAX),
            step(i32::MIN, i32::MIN, i64::MIN),
            step(1, -31, 0),
            step(0, 1, -86_400_000_000_000),
        ],
        [None, Some(f64::NAN), Some(f64::INFINITY), Some(-0.0), Some(f64::MIN), Some(1e300)].map(ScalarValue::Float64).to_vec(),
        // From here on only with fewer than three arguments.
        [None, Some(i32::MIN), Some(i32::MAX)].map(ScalarValue::Int32).to_vec(),
        [None, Some(true)].map(ScalarValue::Boolean).to_vec(),
        vec![list_of(None, &texts()), list_of(Some(&[text("a"), ScalarValue::Utf8View(None)]), &texts())],
        [None, Some(0), Some(greatest), Some(-greatest)].map(|v| ScalarValue::Decimal128(v, 38, 10)).to_vec(),
        vec![ScalarValue::Binary(None), ScalarValue::Binary(Some(vec![])), ScalarValue::Binary(Some(vec![0xff, 0]))],
    ]
}

fn functions() -> Vec<Arc<ScalarUDF>> {
    let mut config = SessionConfig::new();
    config.options_mut().sql_parser.map_string_types_to_utf8view = true;
    let context = SessionContext::new_with_config(config);
    crate::functions::register(&mut *context.state_ref().write()).unwrap();
    let state = context.state();
    let mut found: Vec<Arc<ScalarUDF>> = state.scalar_functions().values().cloned().collect();
    found.sort_by_key(|function| function.name().to_owned());
    found.dedup_by_key(|function| function.name().to_owned());
    found
}

/// Each choice of one value of every list.
fn products(lists: &[&Vec<ScalarValue>]) -> Vec<Vec<ScalarValue>> {
    lists.iter().fold(vec![Vec::new()], |so_far, list| {
        so_far.iter().flat_map(|row| list.iter().map(move |value| row.iter().cloned().chain([value.clone()]).collect())).collect()
    })
}

fn table(rows: &[Vec<ScalarValue>], columns: usize) -> RecordBatch {
    let arrays = (0..columns).map(|at| {
        let array = ScalarValue::iter_to_array(rows.iter().map(|row| row[at].clone())).unwrap();
        (format!("a{at}"), array, true)
    });
    if columns == 0 {
        let none: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        return RecordBatch::try_from_iter([("a0", none)]).unwrap();
    }
    RecordBatch::try_from_iter_with_nullable(arrays).unwrap()
}

/// Runs `expr` over `rows` under 'on_error' = 'skip'; the answer is the rows that are left and the causes of the others.
fn run(expr: &Expr, rows: &RecordBatch) -> Option<(usize, Vec<(Code, u64)>)> {
    let schema = DFSchema::try_from(rows.schema().as_ref().clone()).unwrap();
    let compiled = physical(expr, &schema).ok()?;
    let kind = compiled.data_type(schema.as_arrow()).ok()?;
    let out = Arc::new(Schema::new(vec![Field::new("x", kind, true)]));
    let chain = FusedChain::new(&rows.schema(), vec![Step::Project { exprs: vec![compiled], schema: out }], false);
    let mut accounts = RowAccounts { policy: RowPolicy::Skip, node: "n".into(), ..Default::default() };
    let mut cx = ChainCx { time_us: 0, watermark: Watermark::MIN, rows: &mut accounts };
    let done = chain.apply(DeltaBatch::append(rows.clone()), &mut cx).unwrap_or_else(|e| panic!("the job ended: {e}"));
    Some((done.iter().map(DeltaBatch::num_rows).sum(), accounts.rejected))
}

fn column(at: usize) -> Expr {
    Expr::Column(Column::new_unqualified(format!("a{at}")))
}

/// A call with these arguments, brought to the types that the function wants; `None`: it can't be called so.
fn call(
    function: &Arc<ScalarUDF>,
    args: &[Expr],
    types: &[DataType],
    seen: &mut HashSet<(String, Vec<DataType>)>,
) -> Option<Expr> {
    let fields: Vec<FieldRef> = types.iter().map(|kind| Arc::new(Field::new("a", kind.clone(), true))).collect();
    let wanted = fields_with_udf(&fields, function.as_ref()).ok()?;
    let wanted: Vec<DataType> = wanted.iter().map(|field| field.data_type().clone()).collect();
    if !seen.insert((function.name().to_owned(), wanted.clone())) {
        return None;
    }
    Some(with_types(function, args, types, &wanted))
}

fn with_types(function: &Arc<ScalarUDF>, args: &[Expr], types: &[DataType], wanted: &[DataType]) -> Expr {
    let args = args.iter().zip(types).zip(wanted).map(|((arg, given), wanted)| match given == wanted {
        true => arg.clone(),
        false => Expr::Cast(Cast::new(Box::new(arg.clone()), wanted.clone())),
    });
    Expr::ScalarFunction(ScalarFunction::new_udf(function.clone(), args.collect()))
}

#[test]
fn no_function_panics_or_takes_all_memory_whatever_its_arguments() {
    let extremes = extremes();
    let mut seen = HashSet::new();
    let mut failures: Vec<String> = Vec::new();
    let (mut calls, mut values, mut bad) = (0, 0, 0);
    // The time of the epoch is put in their place when a plan is bound.
    let is_bound = |function: &Arc<ScalarUDF>| {
        matches!(function.name(), "current_date" | "current_time" | "current_watermark" | "localtimestamp" | "now" | "proctime")
    };
    for function in functions().into_iter().filter(|function| !is_bound(function)) {
        let mut signatures: Vec<Vec<usize>> = vec![vec![]];
        for arity in 1..=4usize {
            let kinds: usize = match arity {
                1 | 2 => extremes.len(),
                3 => 7,
                _ => 2,
            };
            signatures
                .extend((0..kinds.pow(arity as u32)).map(|n| (0..arity).map(|at| n / kinds.pow(at as u32) % kinds).collect()));
        }
        for signature in signatures {
            let types: Vec<DataType> = signature.iter().map(|kind| extremes[*kind][0].data_type()).collect();
            let columns: Vec<Expr> = (0..types.len()).map(column).collect();
            let done = catch_unwind(AssertUnwindSafe(|| {
                let expr = call(&function, &columns, &types, &mut seen)?;
                let rows = products(&signature.iter().map(|kind| &extremes[*kind]).collect::<Vec<_>>());
                let batch = table(&rows, types.len());
                let (largest, counted) = largest_of(|| run(&expr, &batch));
                let (kept, rejected) = counted?;
                let refused: u64 = rejected.iter().map(|(_, count)| count).sum();
                assert_eq!(kept as u64 + refused, batch.num_rows() as u64, "rows are lost");
                assert!(rejected.iter().all(|(code, _)| *code != Code::Internal), "{rejected:?}");
                assert!(largest < ALLOCATION_MAX, "{largest} bytes at once");
                // Constants take other ways through many functions.
                let wanted = match &expr {
                    Expr::ScalarFunction(call) => call.args.len(),
                    _ => 0,
                };
                for row in rows.iter().step_by((rows.len() / 24).max(1)).filter(|_| wanted > 0) {
                    let Expr::ScalarFunction(shape) = &expr else { break };
                    for first in 0..2usize.min(types.len()) {
                        let args = shape.args.iter().enumerate().map(|(at, arg)| {
                            if at < first {
                                return arg.clone();
                            }
                            match arg {
                                Expr::Cast(cast) => {
                                    Expr::Cast(Cast::new(Box::new(lit(row[at].clone())), cast.field.data_type().clone()))
                                }
                                _ => lit(row[at].clone()),
                            }
                        });
                        let constant = Expr::ScalarFunction(ScalarFunction::new_udf(function.clone(), args.collect()));
                        let (largest, _) = largest_of(|| run(&constant, &batch.slice(0, 1)));
                        assert!(largest < ALLOCATION_MAX, "{largest} bytes at once for {row:?}");
                    }
                }
                Some((kept, refused))
            }));
            match done {
                Ok(Some((kept, refused))) => {
                    calls += 1;
                    values += kept;
                    bad += refused;
                }
                Ok(None) => {}
                Err(panic) => {
                    let said = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "?".into());
                    failures.push(format!("{}({types:?}): {said}", function.name()));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    // So that the sweep is one.
    assert!(calls > 400 && values > 5_000 && bad > 1_000, "{calls} calls, {values} values, {bad} bad rows");
}

/// The values of a function over columns, and the causes of the rows that fail; all under 'on_error' = 'skip'.
fn of(name: &str, columns: Vec<ArrayRef>) -> (Vec<ArrayRef>, Vec<(Code, u64)>) {
    let function = functions().into_iter().find(|function| function.name() == name).unwrap();
    let types: Vec<DataType> = columns.iter().map(|column| column.data_type().clone()).collect();
    let named = columns.into_iter().enumerate().map(|(at, column)| (format!("a{at}"), column, true));
    let batch = RecordBatch::try_from_iter_with_nullable(named).unwrap();
    let args: Vec<Expr> = (0..types.len()).map(column).collect();
    let expr = call(&function, &args, &types, &mut HashSet::new()).unwrap();
    let schema = DFSchema::try_from(batch.schema().as_ref().clone()).unwrap();
    let compiled = physical(&expr, &schema).unwrap();
    let out = Arc::new(Schema::new(vec![Field::new("x", compiled.data_type(schema.as_arrow()).unwrap(), true)]));
    let chain = FusedChain::new(&batch.schema(), vec![Step::Project { exprs: vec![compiled], schema: out }], false);
    let mut accounts = RowAccounts { policy: RowPolicy::Skip, node: "n".into(), ..Default::default() };
    let mut cx = ChainCx { time_us: 0, watermark: Watermark::MIN, rows: &mut accounts };
    let (largest, done) = largest_of(|| chain.apply(DeltaBatch::append(batch), &mut cx).unwrap());
    assert!(largest < ALLOCATION_MAX, "{name}: {largest} bytes at once");
    (done.iter().map(|part| part.rows.column(0).clone()).collect(), accounts.rejected)
}

fn ints(values: &[i64]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

fn strings(values: &[&str]) -> ArrayRef {
    Arc::new(StringViewArray::from(values.to_vec()))
}

#[test]
fn a_value_that_would_be_too_long_is_a_bad_row_and_the_others_go_on() {
    let long = "x".repeat(100_000);
    let huge = "y".repeat(1_000_000);
    for (name, columns) in [
        ("lpad", vec![strings(&["ab", "ab"]), ints(&[i64::from(i32::MAX), 5])]),
        ("lpad", vec![strings(&["ab", "ab"]), ints(&[20_000_000, 5]), strings(&["é", "é"])]),
        ("rpad", vec![strings(&["ab", "ab"]), ints(&[i64::MAX, -5]), strings(&["x", "x"])]),
        ("repeat", vec![strings(&["ab", "ab"]), ints(&[1_000_000_000, 2])]),
        ("array_repeat", vec![ints(&[1, 1]), ints(&[i64::from(i32::MAX), 2])]),
        ("range", vec![ints(&[0, 0]), ints(&[10_000_000_000, 3])]),
        ("generate_series", vec![ints(&[i64::MIN, 0]), ints(&[i64::MAX, 3]), ints(&[7, 1])]),
        ("replace", vec![strings(&[&long, "xx"]), strings(&["x", "x"]), strings(&[&huge, "y"])]),
        ("replace", vec![strings(&[&long, "xx"]), strings(&["", ""]), strings(&[&huge, "y"])]),
        ("regexp_replace", vec![strings(&[&long, "xx"]), strings(&["x", "x"]), strings(&[&huge, "y"]), strings(&["g", "g"])]),
        ("concat", vec![strings(&[&huge, "a"]); 20]),
    ] {
        let (values, rejected) = of(name, columns);
        assert_eq!(values.iter().map(|array| array.len()).sum::<usize>(), 1, "{name}");
        assert_eq!(rejected, [(Code::RowExpression, 1)], "{name}");
    }
}

#[test]
fn long_values_that_are_allowed_come_out_whatever_they_take_together() {
    let (values, rejected) = of("lpad", vec![strings(&["ab"; 40]), ints(&[16_000_000; 40])]);
    assert_eq!(rejected, []);
    assert_eq!(values.iter().map(|array| array.len()).sum::<usize>(), 40);
    assert!(values.len() > 1, "more than one batch");
    // The exact count decides, not the first estimate.
    let (_, rejected) = of("replace", vec![strings(&[&"x".repeat(2_000_000)]), strings(&["y"]), strings(&["0123456789"])]);
    assert_eq!(rejected, []);
    let (_, rejected) = of(
        "regexp_replace",
        vec![strings(&[&"x".repeat(2_000_000)]), strings(&["y"]), strings(&["0123456789"]), strings(&["g"])],
    );
    assert_eq!(rejected, []);
}

#[test]
fn a_negative_length_pads_to_nothing() {
    for name in ["lpad", "rpad"] {
        let (values, rejected) = of(name, vec![strings(&["ab", "ab"]), ints(&[-5, i64::MIN])]);
        assert_eq!(rejected, []);
        let all: Vec<_> = values[0].as_string_opt::<i32>().map_or_else(
            || values[0].as_string_view().iter().map(|v| v.unwrap().to_owned()).collect(),
            |texts| texts.iter().map(|v| v.unwrap().to_owned()).collect(),
        );
        assert_eq!(all, ["", ""]);
    }
}

#[test]
fn the_least_number_has_no_negative() {
    let decimals = arrow::array::Decimal128Array::from(vec![Some(-150), None]).with_precision_and_scale(10, 2).unwrap();
    for (column_of, kept, codes) in [
        (Arc::new(Int64Array::from(vec![Some(i64::MIN), Some(5), None])) as ArrayRef, "[-5, NULL]", vec![(Code::Overflow, 1)]),
        (Arc::new(arrow::array::Int32Array::from(vec![i32::MIN, -7])), "[7]", vec![(Code::Overflow, 1)]),
        (Arc::new(arrow::array::Int16Array::from(vec![i16::MIN, 1])), "[-1]", vec![(Code::Overflow, 1)]),
        (Arc::new(arrow::array::Int8Array::from(vec![i8::MIN, 1])), "[-1]", vec![(Code::Overflow, 1)]),
        (Arc::new(decimals), "[1.50, NULL]", vec![]),
        (Arc::new(arrow::array::Float64Array::from(vec![f64::MIN, 2.5])), "[1.7976931348623157e308, -2.5]", vec![]),
        (
            Arc::new(arrow::array::IntervalMonthDayNanoArray::from(vec![
                IntervalMonthDayNano::new(0, i32::MIN, 0),
                IntervalMonthDayNano::new(-1, 2, -3),
            ])),
            "",
            vec![(Code::Overflow, 1)],
        ),
    ] {
        let batch = RecordBatch::try_from_iter_with_nullable([("a0", column_of, true)]).unwrap();
        let schema = DFSchema::try_from(batch.schema().as_ref().clone()).unwrap();
        let compiled = physical(&Expr::Negative(Box::new(column(0))), &schema).unwrap();
        let out = Arc::new(Schema::new(vec![Field::new("x", compiled.data_type(schema.as_arrow()).unwrap(), true)]));
        let chain = FusedChain::new(&batch.schema(), vec![Step::Project { exprs: vec![compiled], schema: out }], false);
        let mut accounts = RowAccounts { policy: RowPolicy::Skip, node: "n".into(), ..Default::default() };
        let mut cx = ChainCx { time_us: 0, watermark: Watermark::MIN, rows: &mut accounts };
        let done = chain.apply(DeltaBatch::append(batch), &mut cx).unwrap();
        let options = arrow::util::display::FormatOptions::new().with_null("NULL");
        let shown = arrow::util::display::ArrayFormatter::try_new(done[0].rows.column(0), &options).unwrap();
        let all: Vec<String> = (0..done[0].num_rows()).map(|row| shown.value(row).to_string()).collect();
        if !kept.is_empty() {
            assert_eq!(format!("[{}]", all.join(", ")), kept);
        }
        assert_eq!(accounts.rejected, codes, "{kept}");
    }
    let constant = Expr::Negative(Box::new(lit(i64::MIN)));
    let one = table(&[], 0);
    assert_eq!(run(&constant, &one), Some((0, vec![(Code::Overflow, 1)])));
    let time =
        Expr::Negative(Box::new(Expr::Cast(Cast::new(Box::new(column(0)), DataType::Timestamp(TimeUnit::Microsecond, None)))));
    assert!(run(&time, &one).is_none(), "a time is not negated");
}
