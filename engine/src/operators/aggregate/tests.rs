//! Every function against a model that knows nothing of slots: rows in a vector, each result computed anew.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::*;
use arrow::compute::SortOptions;
use arrow::datatypes::*;
use arrow::util::display::array_value_to_string;
use datafusion::common::ScalarValue;
use tiderace_storage::{Shard, ShardOptions};

use super::local_distinct::LocalDistinct;
use super::*;
use crate::batch::{DeltaBatch, Weights};
use crate::error::{Code, Diagnostic};
use crate::ids::{CoreId, Epoch, NodeId};
use crate::operators::{EpochMark, OpCx, Operator, Output, Progress, RowAccounts, RowPolicy, Watermark};
use crate::runtime::graph::Route;

#[derive(Clone, Debug, PartialEq)]
struct Row {
    k: Option<i64>,
    flag: Option<bool>,
    i: Option<i64>,
    f: Option<f64>,
    d: Option<i128>,
    s: Option<String>,
    t: i64,
}

const K: usize = 0;
const FLAG: usize = 1;
const I: usize = 2;
const F: usize = 3;
const D: usize = 4;
const S: usize = 5;
const T: usize = 6;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, true),
        Field::new("flag", DataType::Boolean, true),
        Field::new("i", DataType::Int64, true),
        Field::new("f", DataType::Float64, true),
        Field::new("d", DataType::Decimal128(10, 2), true),
        Field::new("s", DataType::Utf8, true),
        Field::new("t", DataType::Int64, false),
    ]))
}

fn batch(rows: &[(Row, i64)]) -> DeltaBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|r| r.0.k).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|r| r.0.flag).collect::<BooleanArray>()),
        Arc::new(rows.iter().map(|r| r.0.i).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|r| r.0.f).collect::<Float64Array>()),
        Arc::new(rows.iter().map(|r| r.0.d).collect::<Decimal128Array>().with_precision_and_scale(10, 2).unwrap()),
        Arc::new(rows.iter().map(|r| r.0.s.clone()).collect::<StringArray>()),
        Arc::new(rows.iter().map(|r| Some(r.0.t)).collect::<Int64Array>()),
    ];
    let weights = Weights::from_vec(rows.iter().map(|r| r.1).collect());
    DeltaBatch::new(RecordBatch::try_new(schema(), columns).unwrap(), weights)
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize].clone()
    }

    fn maybe<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        (self.below(6) > 0).then(|| self.pick(of))
    }

    fn row(&mut self) -> Row {
        let long = "a string that is longer than a handle";
        Row {
            k: self.maybe(&[1, 2, 3]),
            flag: self.maybe(&[true, false]),
            i: self.maybe(&[-5, 0, 1, 2, 7, 1 << 40]),
            f: self.maybe(&[-0.0, 0.0, 0.25, -1.5, 1e3, f64::NAN, -f64::NAN, f64::INFINITY]),
            d: self.maybe(&[-1, 0, 150, 9_999_999_999]),
            s: self.maybe(&["", "a", "b\u{0}", "zz", long]).map(Into::into),
            t: self.below(4) as i64,
        }
    }

    fn shuffle<T>(&mut self, of: &mut [T]) {
        for i in (1..of.len()).rev() {
            of.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

type Model = Box<dyn Fn(&[&Row]) -> String>;

fn text<T: ToString>(value: Option<T>) -> String {
    value.map_or(String::new(), |v| v.to_string())
}

/// Doubles as text, so that what differs in the last bits is equal.
fn double(value: Option<f64>) -> String {
    value.map_or(String::new(), |v| if v.is_nan() { "NaN".into() } else { format!("{:.9e}", v + 0.0) })
}

fn decimal(value: Option<i128>, scale: i8) -> String {
    value.map_or(String::new(), |v| Decimal128Type::format_decimal(v, 38, scale))
}

fn rounded(sum: i128, count: i128, digits: u32) -> i128 {
    let scaled = sum * 10_i128.pow(digits);
    let (quotient, rest) = (scaled / count, scaled % count);
    quotient + if rest.abs() * 2 >= count { scaled.signum() } else { 0 }
}

fn float_order(value: f64) -> (bool, f64) {
    if value.is_nan() { (true, 0.0) } else { (false, value + 0.0) }
}

fn variance(values: &[f64], sample: bool) -> Option<f64> {
    let n = values.len() as f64;
    let divisor = if sample { n - 1.0 } else { n };
    let mean = values.iter().sum::<f64>() / n;
    (divisor > 0.0).then(|| values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / divisor)
}

fn list<T: ToString>(values: &[Option<T>]) -> String {
    if values.is_empty() {
        return String::new();
    }
    format!("[{}]", values.iter().map(|v| v.as_ref().map_or(String::new(), ToString::to_string)).collect::<Vec<_>>().join(", "))
}

struct Case {
    call: AggregateCall,
    model: Model,
}

fn case(function: AggregateFunction, args: &[usize], model: impl Fn(&[&Row]) -> String + 'static) -> Case {
    let types: Vec<DataType> = args.iter().map(|a| schema().field(*a).data_type().clone()).collect();
    let output = Arc::new(Field::new(function.name(), function.return_type(&types).unwrap(), true));
    Case { call: AggregateCall::new(function, args.to_vec(), output), model: Box::new(model) }
}

impl Case {
    fn filtered(mut self) -> Self {
        self.call.filter = Some(FLAG);
        let model = self.model;
        self.model = Box::new(move |rows| {
            let rows: Vec<&Row> = rows.iter().copied().filter(|r| r.flag == Some(true)).collect();
            model(&rows)
        });
        self
    }

    fn distinct(mut self) -> Self {
        self.call.distinct = true;
        self
    }

    fn ordered(mut self, column: usize, descending: bool, nulls_first: bool) -> Self {
        self.call.order_by.push((column, SortOptions { descending, nulls_first }));
        self
    }

    fn without_nulls(mut self) -> Self {
        self.call.ignore_nulls = true;
        self
    }

    fn joined_by(mut self, separator: &str) -> Self {
        self.call.constants.push(ScalarValue::from(separator));
        self
    }
}

fn present<T: Clone>(rows: &[&Row], get: impl Fn(&Row) -> Option<T>) -> Vec<T> {
    rows.iter().filter_map(|r| get(r)).collect()
}

/// Functions whose partial results can be sent on.
fn mergeable_cases() -> Vec<Case> {
    use AggregateFunction as A;
    let ints = |rows: &[&Row]| present(rows, |r| r.i);
    let floats = |rows: &[&Row]| present(rows, |r| r.f);
    let decimals = |rows: &[&Row]| present(rows, |r| r.d);
    let sum_float = |v: &[f64]| (!v.is_empty()).then(|| v.iter().sum::<f64>());
    let non_empty = |v: &Vec<i64>| !v.is_empty();
    let as_floats = move |rows: &[&Row]| ints(rows).iter().map(|v| *v as f64).collect::<Vec<_>>();
    let different = move |rows: &[&Row]| ints(rows).into_iter().collect::<BTreeSet<_>>();
    vec![
        case(A::Count, &[], |r| r.len().to_string()),
        case(A::Count, &[], |r| r.len().to_string()).filtered(),
        case(A::Count, &[I], move |r| ints(r).len().to_string()),
        case(A::Count, &[S], |r| present(r, |r| r.s.clone()).len().to_string()).filtered(),
        case(A::Sum, &[I], move |r| text(Some(ints(r)).filter(non_empty).map(|v| v.iter().sum::<i64>()))),
        case(A::Sum, &[I], move |r| text(Some(ints(r)).filter(non_empty).map(|v| v.iter().sum::<i64>()))).filtered(),
        case(A::Sum, &[F], move |r| double(sum_float(&floats(r)))),
        case(A::Sum, &[D], move |r| decimal(Some(decimals(r)).filter(|v| !v.is_empty()).map(|v| v.iter().sum()), 2)),
        case(A::Avg, &[I], move |r| {
            let v = ints(r);
            decimal((!v.is_empty()).then(|| rounded(v.iter().map(|v| i128::from(*v)).sum(), v.len() as i128, 16)), 16)
        }),
        case(A::Avg, &[D], move |r| {
            let v = decimals(r);
            decimal((!v.is_empty()).then(|| rounded(v.iter().sum(), v.len() as i128, 14)), 16)
        }),
        case(A::Avg, &[F], move |r| double(sum_float(&floats(r)).map(|s| s / floats(r).len() as f64))).filtered(),
        case(A::VarPop, &[I], move |r| double(variance(&as_floats(r), false))),
        case(A::VarSamp, &[I], move |r| double(variance(&as_floats(r), true))).filtered(),
        case(A::StddevPop, &[I], move |r| double(variance(&as_floats(r), false).map(f64::sqrt))),
        case(A::StddevSamp, &[T], |r| double(variance(&r.iter().map(|r| r.t as f64).collect::<Vec<_>>(), true).map(f64::sqrt))),
        case(A::VarPop, &[F], move |r| {
            let v = floats(r);
            double(if v.iter().any(|v| !v.is_finite()) { Some(f64::NAN) } else { variance(&v, false) })
        }),
        case(A::BoolAnd, &[FLAG], |r| text(Some(present(r, |r| r.flag)).filter(|v| !v.is_empty()).map(|v| v.iter().all(|b| *b)))),
        case(A::BoolOr, &[FLAG], |r| text(Some(present(r, |r| r.flag)).filter(|v| !v.is_empty()).map(|v| v.iter().any(|b| *b)))),
        case(A::Count, &[I], move |r| different(r).len().to_string()).distinct(),
        case(A::Count, &[I], move |r| different(r).len().to_string()).filtered().distinct(),
        case(A::Count, &[S], |r| present(r, |r| r.s.clone()).into_iter().collect::<BTreeSet<_>>().len().to_string()).distinct(),
        case(A::Count, &[F], move |r| {
            floats(r).iter().map(|f| format!("{:?}", float_order(*f))).collect::<BTreeSet<_>>().len().to_string()
        })
        .filtered()
        .distinct(),
        case(A::Sum, &[I], move |r| text(Some(different(r)).filter(|v| !v.is_empty()).map(|v| v.iter().sum::<i64>()))).distinct(),
        case(A::Avg, &[I], move |r| {
            let v = different(r);
            decimal((!v.is_empty()).then(|| rounded(v.iter().map(|v| i128::from(*v)).sum(), v.len() as i128, 16)), 16)
        })
        .filtered()
        .distinct(),
    ]
}

/// Functions that compare rows.
fn comparing_cases() -> Vec<Case> {
    use AggregateFunction as A;
    let by_float = |a: &f64, b: &f64| float_order(*a).partial_cmp(&float_order(*b)).unwrap();
    let by_time = |r: &[&Row]| {
        let mut rows: Vec<(i64, Option<String>)> = r.iter().map(|r| (r.t, r.s.clone())).collect();
        rows.sort();
        rows
    };
    let by_time_down = |r: &[&Row]| {
        let mut rows: Vec<_> = r.iter().map(|r| (std::cmp::Reverse(r.t), r.i)).collect();
        rows.sort();
        rows
    };
    vec![
        case(A::Min, &[I], |r| text(present(r, |r| r.i).into_iter().min())),
        case(A::Max, &[I], |r| text(present(r, |r| r.i).into_iter().max())).filtered(),
        case(A::Min, &[F], move |r| double(present(r, |r| r.f).into_iter().min_by(by_float))),
        case(A::Max, &[F], move |r| double(present(r, |r| r.f).into_iter().max_by(by_float))),
        case(A::Min, &[D], |r| decimal(present(r, |r| r.d).into_iter().min(), 2)).filtered(),
        case(A::Max, &[D], |r| decimal(present(r, |r| r.d).into_iter().max(), 2)).distinct(),
        case(A::Min, &[S], |r| text(present(r, |r| r.s.clone()).into_iter().min())),
        case(A::Max, &[S], |r| text(present(r, |r| r.s.clone()).into_iter().max())).filtered(),
        case(A::Max, &[FLAG], |r| text(present(r, |r| r.flag).into_iter().max())),
        case(A::FirstValue, &[S], move |r| text(by_time(r).first().and_then(|r| r.1.clone()))).ordered(T, false, true),
        case(A::LastValue, &[S], move |r| text(by_time(r).last().and_then(|r| r.1.clone()))).ordered(T, false, true).filtered(),
        case(A::LastValue, &[S], move |r| {
            let known: Vec<&Row> = r.iter().copied().filter(|r| r.s.is_some()).collect();
            text(by_time(&known).last().and_then(|r| r.1.clone()))
        })
        .ordered(T, false, true)
        .without_nulls(),
        case(A::FirstValue, &[I], move |r| text(by_time_down(r).first().and_then(|r| r.1))).ordered(T, true, true),
        case(A::ArgMin, &[S, I], |r| {
            let known = r.iter().filter_map(|r| r.i.map(|i| (i, r.s.clone())));
            text(known.min().and_then(|r| r.1))
        }),
        case(A::ArgMax, &[S, I], |r| {
            let known = r.iter().filter_map(|r| r.i.map(|i| (i, r.s.clone())));
            text(known.max().and_then(|r| r.1))
        })
        .filtered(),
    ]
}

/// Functions that need all rows.
fn whole_cases() -> Vec<Case> {
    use AggregateFunction as A;
    let sorted = |mut v: Vec<Option<i64>>| {
        v.sort();
        v
    };
    vec![
        case(A::ArrayAgg, &[I], move |r| list(&sorted(r.iter().map(|r| r.i).collect()))),
        case(A::ArrayAgg, &[I], move |r| list(&sorted(r.iter().filter(|r| r.i.is_some()).map(|r| r.i).collect())))
            .without_nulls(),
        case(A::ArrayAgg, &[I], move |r| {
            let mut v = sorted(r.iter().map(|r| r.i).collect());
            v.dedup();
            list(&v)
        })
        .distinct()
        .filtered(),
        case(A::ArrayAgg, &[I], |r| {
            // Descending, NULL last.
            let mut rows: Vec<_> = r.iter().map(|r| (r.flag.is_none(), std::cmp::Reverse(r.flag), r.i)).collect();
            rows.sort();
            list(&rows.iter().map(|r| r.2).collect::<Vec<_>>())
        })
        .ordered(FLAG, true, false),
        case(A::StringAgg, &[S], |r| {
            let mut rows: Vec<_> = r.iter().filter_map(|r| r.s.clone().map(|s| (r.t, s))).collect();
            rows.sort();
            text(Some(rows).filter(|r| !r.is_empty()).map(|r| r.into_iter().map(|r| r.1).collect::<Vec<_>>().join("; ")))
        })
        .ordered(T, false, true)
        .joined_by("; "),
        case(A::StringAgg, &[S], |r| {
            let different: BTreeSet<_> = r.iter().filter_map(|r| r.s.clone()).collect();
            text(Some(different).filter(|r| !r.is_empty()).map(|r| r.into_iter().collect::<Vec<_>>().join("")))
        })
        .distinct(),
    ]
}

fn plan(cases: &[Case], keys: &[usize], append_only: bool) -> GroupPlan {
    GroupPlan { keys: keys.to_vec(), calls: cases.iter().map(|c| c.call.clone()).collect(), input: schema(), append_only }
}

/// A row of a result, to the bit.
fn exact(batch: &RecordBatch, row: usize) -> Vec<String> {
    let show = |c: &ArrayRef| match c.data_type() {
        DataType::Float64 if c.is_valid(row) => format!("f{}", c.as_primitive::<Float64Type>().value(row).to_bits()),
        _ => array_value_to_string(c, row).unwrap(),
    };
    batch.columns().iter().map(show).collect()
}

/// The same as the model writes it.
fn shown(row: &[String]) -> Vec<String> {
    let show = |v: &String| match v.strip_prefix('f').and_then(|bits| bits.parse().ok()) {
        Some(bits) => double(Some(f64::from_bits(bits))),
        None => v.clone(),
    };
    row.iter().map(show).collect()
}

/// Operators on one shard, and what came out of the last one.
struct Bench {
    shard: Shard,
    accounts: RowAccounts,
    epoch: u64,
    result: BTreeMap<Vec<String>, i64>,
}

impl Bench {
    fn new() -> Self {
        let accounts = RowAccounts { node: "GroupAggregate#1".into(), ..RowAccounts::default() };
        Self { shard: Shard::new(ShardOptions { budget_bytes: 1 << 30 }), accounts, epoch: 1, result: BTreeMap::new() }
    }

    fn cx(&mut self) -> OpCx<'_> {
        let epoch = Epoch(self.epoch);
        OpCx {
            shard: &mut self.shard,
            core: CoreId(0),
            epoch,
            watermark: Watermark::MIN,
            time_us: 0,
            may_wait: true,
            rows: &mut self.accounts,
        }
    }

    fn delta(&mut self, operator: &mut dyn Operator, batch: DeltaBatch) -> Vec<DeltaBatch> {
        let mut out = Output::default();
        operator.on_delta(0, batch, &mut self.cx(), &mut out).unwrap();
        out.batches.into_iter().map(|b| b.1).collect()
    }

    fn try_mark(&mut self, operator: &mut dyn Operator) -> crate::error::Result<()> {
        let mark = EpochMark { epoch: Epoch(self.epoch), time_us: 0, watermark: Watermark::MIN, last: false };
        let mut out = Output::default();
        while operator.on_mark(&mark, &mut self.cx(), &mut out)? == Progress::More {}
        for (_, batch) in out.batches {
            for row in 0..batch.num_rows() {
                let weight = self.result.entry(exact(&batch.rows, row)).or_default();
                *weight += batch.weights.get(row);
            }
        }
        self.result.retain(|_, weight| *weight != 0);
        self.epoch += 1;
        Ok(())
    }

    fn mark(&mut self, operator: &mut dyn Operator) {
        self.try_mark(operator).unwrap();
    }
}

fn expected(cases: &[Case], rows: &[Row], keys: &[usize]) -> Vec<Vec<String>> {
    let mut groups: BTreeMap<Option<Option<i64>>, Vec<&Row>> = BTreeMap::new();
    if keys.is_empty() {
        groups.insert(None, Vec::new());
    }
    for row in rows {
        groups.entry((!keys.is_empty()).then_some(row.k)).or_default().push(row);
    }
    let mut out: Vec<Vec<String>> = groups
        .iter()
        .map(|(key, rows)| key.iter().map(|k| text(*k)).chain(cases.iter().map(|c| (c.model)(rows))).collect())
        .collect();
    out.sort();
    out
}

/// Epochs of changes, shuffled inside; `live` is what is there after each.
fn script(random: &mut Random, append_only: bool) -> Vec<(Vec<(Row, i64)>, Vec<Row>)> {
    let mut live: Vec<Row> = Vec::new();
    let epochs = 1 + random.below(5);
    (0..epochs)
        .map(|_| {
            let mut changes = Vec::new();
            for _ in 0..random.below(25) {
                if !append_only && !live.is_empty() && random.below(2) == 0 {
                    let gone = live.swap_remove(random.below(live.len() as u64) as usize);
                    changes.push((gone, -1));
                } else {
                    let row = random.row();
                    let weight = 1 + random.below(2) as i64;
                    live.extend((0..weight).map(|_| row.clone()));
                    changes.push((row, weight));
                }
            }
            if !append_only && random.below(8) == 0 {
                changes.extend(live.drain(..).map(|r| (r, -1)));
            }
            random.shuffle(&mut changes);
            (changes, live.clone())
        })
        .collect()
}

fn cut(random: &mut Random, changes: &[(Row, i64)]) -> Vec<Vec<(Row, i64)>> {
    let mut rest = changes;
    let mut out = Vec::new();
    while !rest.is_empty() {
        let (batch, others) = rest.split_at(1 + random.below(rest.len() as u64) as usize);
        out.push(batch.to_vec());
        rest = others;
    }
    out
}

fn check(bench: &Bench, cases: &[Case], live: &[Row], keys: &[usize], seed: u64) {
    assert!(bench.result.values().all(|w| *w == 1), "seed {seed}: not what was emitted is taken back: {:?}", bench.result);
    let mut have: Vec<Vec<String>> = bench.result.keys().map(|row| shown(row)).collect();
    have.sort();
    let want = expected(cases, live, keys);
    if have != want {
        for (have, want) in have.iter().zip(&want) {
            for (i, (h, w)) in have.iter().zip(want).enumerate() {
                let name = i.checked_sub(keys.len()).map_or("key", |i| cases[i].call.function.name());
                assert_eq!(h, w, "seed {seed}: column {i}, {name}, key {:?}", have[0]);
            }
        }
    }
    assert_eq!(have, want, "seed {seed}");
}

fn run(cases: &[Case], keys: &[usize], append_only: bool, seed: u64) {
    let mut random = Random(seed);
    let mut bench = Bench::new();
    let mut operator = GroupAggregate::new(&plan(cases, keys, append_only), NodeId(3), CoreId(0)).unwrap();
    operator.open(&mut bench.shard).unwrap();
    for (changes, live) in script(&mut random, append_only) {
        for rows in cut(&mut random, &changes) {
            assert!(bench.delta(&mut operator, batch(&rows)).is_empty());
        }
        bench.mark(&mut operator);
        check(&bench, cases, &live, keys, seed);
    }
}

#[test]
fn results_over_changing_input_equal_the_model() {
    let cases: Vec<Case> = mergeable_cases().into_iter().chain(comparing_cases()).chain(whole_cases()).collect();
    for seed in 0..60 {
        run(&cases, &[K], false, seed);
    }
}

#[test]
fn results_over_growing_input_equal_the_model() {
    let mut cases: Vec<Case> = mergeable_cases().into_iter().chain(comparing_cases()).chain(whole_cases()).collect();
    // So few values that the sketch is exact.
    cases.push(case(AggregateFunction::ApproxDistinct, &[S], |r| {
        present(r, |r| r.s.clone()).into_iter().collect::<BTreeSet<_>>().len().to_string()
    }));
    for seed in 100..160 {
        run(&cases, &[K], true, seed);
    }
}

#[test]
fn one_group_over_all_rows_always_has_a_row() {
    let cases: Vec<Case> = mergeable_cases().into_iter().chain(comparing_cases()).chain(whole_cases()).collect();
    for seed in 200..230 {
        run(&cases, &[], seed % 2 == 0, seed);
    }
}

#[test]
fn each_function_works_alone() {
    let count = mergeable_cases().len() + comparing_cases().len() + whole_cases().len();
    for i in 0..count {
        let mut cases: Vec<Case> = mergeable_cases().into_iter().chain(comparing_cases()).chain(whole_cases()).collect();
        let one = vec![cases.swap_remove(i)];
        for seed in 0..6 {
            run(&one, &[K], seed % 2 == 0, 300 + seed);
        }
    }
}

#[test]
fn distinct_rows_of_growing_input_are_only_added() {
    let plan = plan(&[], &[K], true);
    assert!(plan.emits_append_only());
    let mut random = Random(7);
    let mut bench = Bench::new();
    let mut operator = GroupAggregate::new(&plan, NodeId(0), CoreId(0)).unwrap();
    for (changes, live) in script(&mut random, true) {
        bench.delta(&mut operator, batch(&changes));
        bench.mark(&mut operator);
        check(&bench, &[], &live, &[K], 7);
    }
}

/// Two cores that sum up locally, two that keep different values, one that merges.
fn run_in_phases(cases: &[Case], keys: &[usize], append_only: bool, seed: u64) {
    let mut random = Random(seed);
    let plan = plan(cases, keys, append_only);
    let phases = plan.first_phases().unwrap();
    let mut benches: Vec<Bench> = (0..2).map(|_| Bench::new()).collect();
    // Of each node an operator a core.
    let mut nodes: Vec<Vec<_>> = (0..)
        .zip(&phases)
        .map(|(node, phase)| (0..2).map(|core| (phase.factory)(NodeId(node), CoreId(core)).unwrap()).collect())
        .collect();
    let mut before: Vec<Vec<_>> = (10..)
        .zip(&phases)
        .map(|(node, phase)| {
            let make = phase.before.as_ref().map(|(_, make)| make);
            make.map_or_else(Vec::new, |make| (0..2).map(|core| make(NodeId(node), CoreId(core)).unwrap()).collect())
        })
        .collect();
    let mut merging = GroupAggregate::merging(&plan, NodeId(9), CoreId(0)).unwrap();
    let mut bench = Bench::new();
    for (changes, live) in script(&mut random, append_only) {
        for rows in cut(&mut random, &changes) {
            let here = random.below(2) as usize;
            let mut partials = Vec::new();
            for ((phase, operators), before) in phases.iter().zip(&mut nodes).zip(&mut before) {
                let inputs = match before.get_mut(here) {
                    Some(operator) => benches[here].delta(operator.as_mut(), batch(&rows)),
                    None => vec![batch(&rows)],
                };
                for input in inputs {
                    let mut hashed = crate::key::Keys::default();
                    if let Route::Hash(columns) = &phase.route {
                        crate::key::KeyCodec::new(&schema(), columns).unwrap().encode(&input.rows, &mut hashed).unwrap();
                    }
                    for (core, operator) in operators.iter_mut().enumerate() {
                        let goes = |row: usize| hashed.hashes.get(row).map_or(here, |h| (h >> 63) as usize) == core;
                        let own: Vec<u32> = (0..input.num_rows()).filter(|row| goes(*row)).map(|row| row as u32).collect();
                        if !own.is_empty() {
                            let weights = Weights::from_vec(own.iter().map(|row| input.weights.get(*row as usize)).collect());
                            let rows = arrow::compute::take_record_batch(&input.rows, &UInt32Array::from(own)).unwrap();
                            partials.extend(benches[core].delta(operator.as_mut(), DeltaBatch::new(rows, weights)));
                        }
                    }
                }
            }
            for partial in partials {
                assert_eq!(partial.rows.schema(), plan.partial_schema().unwrap());
                bench.delta(&mut merging, partial);
            }
        }
        for operators in &mut nodes {
            for (core, operator) in operators.iter_mut().enumerate() {
                benches[core].mark(operator.as_mut());
            }
        }
        bench.mark(&mut merging);
        check(&bench, cases, &live, keys, seed);
    }
}

#[test]
fn two_phases_give_what_one_gives() {
    for seed in 0..40 {
        run_in_phases(&mergeable_cases(), &[K], false, 400 + seed);
        let growing: Vec<Case> = mergeable_cases().into_iter().chain(comparing_cases()).collect();
        run_in_phases(&growing, &[K], true, 500 + seed);
        run_in_phases(&growing, &[], true, 600 + seed);
    }
}

#[test]
fn a_first_phase_without_use_switches_itself_off_and_stays_right() {
    let cases = vec![case(AggregateFunction::Count, &[], |r| r.len().to_string())];
    let plan = plan(&cases, &[T], true);
    let mut local = LocalAggregate::new(&plan, NodeId(1), CoreId(0)).unwrap();
    let mut bench = Bench::new();
    let mut random = Random(1);
    let template = random.row();
    let mut rows_out = 0;
    for part in 0..40 {
        let rows: Vec<(Row, i64)> = (0..4096).map(|i| (Row { t: part * 4096 + i, ..template.clone() }, 1)).collect();
        let out = bench.delta(&mut local, batch(&rows));
        rows_out += out.iter().map(DeltaBatch::num_rows).sum::<usize>();
    }
    assert_eq!(rows_out, 40 * 4096);
    // It is off: even one group goes out row by row.
    let same: Vec<(Row, i64)> = (0..100).map(|_| (template.clone(), 1)).collect();
    assert_eq!(bench.delta(&mut local, batch(&same))[0].num_rows(), 100);
    // And tries again later.
    for _ in 0..300 {
        bench.delta(&mut local, batch(&same));
    }
    assert_eq!(bench.delta(&mut local, batch(&same))[0].num_rows(), 1);
}

#[test]
fn values_that_were_sent_on_lately_do_not_cross_again() {
    let cases = vec![case(AggregateFunction::Count, &[K], |r| r.len().to_string()).distinct()];
    let plan = plan(&cases, &[T], true);
    let mut local = LocalDistinct::new(&plan, 0, NodeId(1), CoreId(0)).unwrap();
    let mut bench = Bench::new();
    let template = Random(1).row();
    let rows = |group: i64, keys: std::ops::Range<i64>| -> Vec<(Row, i64)> {
        keys.map(|k| (Row { t: group, k: Some(k % 50), ..template.clone() }, 1)).collect()
    };
    let mut sent = |rows: &[(Row, i64)]| bench.delta(&mut local, batch(rows)).iter().map(DeltaBatch::num_rows).sum::<usize>();
    assert_eq!(sent(&rows(7, 0..200)), 50, "each value once");
    assert_eq!(sent(&rows(7, 0..200)), 0, "nothing new");
    assert_eq!(sent(&rows(8, 0..200)), 50, "another group's values are others");
}

fn sum_of(values: &[i64]) -> Vec<(Row, i64)> {
    let template = Random(3).row();
    values.iter().map(|v| (Row { k: Some(9), i: Some(*v), ..template.clone() }, 1)).collect()
}

#[test]
fn an_overflow_fails_the_job_and_names_the_group() {
    let cases = vec![case(AggregateFunction::Sum, &[I], |_| String::new())];
    let mut bench = Bench::new();
    let mut operator = GroupAggregate::new(&plan(&cases, &[K], true), NodeId(0), CoreId(0)).unwrap();
    bench.delta(&mut operator, batch(&sum_of(&[i64::MAX, 1])));
    let failed = bench.try_mark(&mut operator).unwrap_err();
    assert_eq!(failed.code, Code::Overflow);
    assert!(failed.message.contains("k = 9") && failed.message.contains("GroupAggregate#1"), "{failed}");
}

#[test]
fn a_skipped_overflow_is_counted_and_comes_back_when_it_fits() {
    let cases = vec![case(AggregateFunction::Sum, &[I], |r| text(Some(r.iter().filter_map(|r| r.i).sum::<i64>())))];
    let mut bench = Bench::new();
    bench.accounts.policy = RowPolicy::Skip;
    let mut operator = GroupAggregate::new(&plan(&cases, &[K], false), NodeId(0), CoreId(0)).unwrap();
    bench.delta(&mut operator, batch(&sum_of(&[i64::MAX])));
    bench.mark(&mut operator);
    assert_eq!(bench.result.len(), 1);
    bench.delta(&mut operator, batch(&sum_of(&[i64::MAX])));
    bench.mark(&mut operator);
    assert!(bench.result.is_empty(), "the old row is taken back, no wrapped one comes: {:?}", bench.result);
    assert_eq!(bench.accounts.rejected, [(Code::Overflow, 1)]);
    let mut gone = sum_of(&[i64::MAX]);
    gone[0].1 = -1;
    bench.delta(&mut operator, batch(&gone));
    bench.mark(&mut operator);
    assert_eq!(bench.result.keys().next().unwrap()[1], i64::MAX.to_string());
}

#[test]
fn a_decimal_sum_beyond_38_digits_is_an_overflow_and_comes_back() {
    let input: SchemaRef = Arc::new(Schema::new(vec![Field::new("d", DataType::Decimal128(38, 0), false)]));
    let output = Arc::new(Field::new("sum", DataType::Decimal128(38, 0), true));
    let calls = vec![AggregateCall::new(AggregateFunction::Sum, vec![0], output)];
    let plan = GroupPlan { keys: vec![], calls, input: input.clone(), append_only: false };
    let big = 10_i128.pow(38) - 1;
    let rows = |weight: i64| {
        let digits = Decimal128Array::from(vec![big; 3]).with_precision_and_scale(38, 0).unwrap();
        DeltaBatch::new(RecordBatch::try_new(input.clone(), vec![Arc::new(digits)]).unwrap(), Weights::from_vec(vec![weight; 3]))
    };
    let mut bench = Bench::new();
    bench.accounts.policy = RowPolicy::Skip;
    let mut operator = GroupAggregate::new(&plan, NodeId(0), CoreId(0)).unwrap();
    bench.delta(&mut operator, rows(1));
    bench.mark(&mut operator);
    assert!(bench.result.is_empty());
    bench.delta(&mut operator, rows(-1));
    bench.mark(&mut operator);
    assert_eq!(bench.result.keys().next().unwrap(), &vec![String::new()]);
}

#[test]
fn taking_back_what_was_never_there_is_an_error() {
    for function in [AggregateFunction::Count, AggregateFunction::Max, AggregateFunction::ArrayAgg] {
        for distinct in [false, true] {
            let mut one = case(function, &[I], |_| String::new());
            one.call.distinct = distinct;
            let mut bench = Bench::new();
            let mut operator = GroupAggregate::new(&plan(&[one], &[K], false), NodeId(0), CoreId(0)).unwrap();
            let mut rows = sum_of(&[5, 6, 7]);
            rows[0].1 = -1;
            bench.delta(&mut operator, batch(&rows));
            // The group has rows enough, but not this one.
            let result = bench.try_mark(&mut operator);
            if function != AggregateFunction::Count || distinct {
                assert_eq!(result.unwrap_err().code, Code::NegativeWeight, "{function:?} {distinct}");
            }
        }
    }
    let mut bench = Bench::new();
    let mut operator = GroupAggregate::new(&plan(&[], &[K], false), NodeId(0), CoreId(0)).unwrap();
    let mut rows = sum_of(&[5]);
    rows[0].1 = -1;
    bench.delta(&mut operator, batch(&rows));
    assert_eq!(bench.try_mark(&mut operator).unwrap_err().code, Code::NegativeWeight);
}

fn refusal(one: Case, append_only: bool) -> Diagnostic {
    plan(&[one], &[K], append_only).check().unwrap_err()
}

#[test]
fn what_can_not_be_computed_is_refused_with_its_code() {
    let sketch = case(AggregateFunction::ApproxDistinct, &[I], |_| String::new());
    assert_eq!(refusal(sketch, false).code, Code::NoRetraction);
    let star = case(AggregateFunction::Count, &[], |_| String::new()).distinct();
    assert_eq!(refusal(star, true).code, Code::InvalidArgument);
    let other_order = case(AggregateFunction::ArrayAgg, &[I], |_| String::new()).distinct().ordered(T, false, true);
    assert_eq!(refusal(other_order, true).code, Code::InvalidArgument);
    assert_eq!(AggregateFunction::Sum.return_type(&[DataType::Utf8]).unwrap_err().code, Code::TypeMismatch);
    assert_eq!(AggregateFunction::from_name("LISTAGG"), Some(AggregateFunction::StringAgg));
}

#[test]
fn removed_groups_leave_nothing_behind() {
    let cases: Vec<Case> = mergeable_cases().into_iter().chain(comparing_cases()).chain(whole_cases()).collect();
    let mut bench = Bench::new();
    let mut operator = GroupAggregate::new(&plan(&cases, &[K], false), NodeId(0), CoreId(0)).unwrap();
    let mut random = Random(11);
    let mut rows: Vec<(Row, i64)> = (0..200).map(|_| (random.row(), 1)).collect();
    bench.delta(&mut operator, batch(&rows));
    bench.mark(&mut operator);
    rows.iter_mut().for_each(|r| r.1 = -1);
    bench.delta(&mut operator, batch(&rows));
    bench.mark(&mut operator);
    assert!(bench.result.is_empty());
    for table in 0..20 {
        assert!(bench.shard.point(tiderace_storage::TableId(table), 8).is_empty(), "point table {table}");
        assert!(bench.shard.ordered(tiderace_storage::TableId(table)).is_empty(), "ordered table {table}");
    }
}

#[test]
fn different_values_of_forgotten_groups_are_swept() {
    let cases = [case(AggregateFunction::Count, &[I], |_| String::new()).distinct()];
    let calls: Vec<AggregateCall> = cases.iter().map(|c| c.call.clone()).collect();
    let mut tables = TableIds::of(NodeId(0), CoreId(0));
    let groups = tables.next();
    let mut aggregates = Aggregates::new(&calls, &schema(), true, &mut tables).unwrap();
    let mut shard = Shard::new(ShardOptions { budget_bytes: 1 << 30 });
    for round in 0..50_i64 {
        let mut keys = crate::key::Keys::default();
        let key = round.to_be_bytes();
        keys.push(&key, crate::key::hash(&key));
        let mut entries = Vec::new();
        shard.point(groups, aggregates.record_width()).entries(&keys.as_batch(), &mut entries);
        let rows = sum_of(&(0..100).collect::<Vec<_>>());
        let records = vec![entries[0].record; rows.len()];
        aggregates.update(&mut shard, groups, &records, &batch(&rows)).unwrap();
        let mut slots = Vec::new();
        aggregates.settle(&mut shard, groups, &records[..1]).unwrap();
        aggregates.gather(&mut shard, groups, &records[..1], &mut slots);
        let evaluated = aggregates.evaluate(&mut shard, &slots).unwrap();
        assert_eq!(evaluated.columns[0].as_primitive::<Int64Type>().value(0), 100);
        aggregates.forget(&mut shard, groups, &records[..1]);
        shard.point(groups, aggregates.record_width()).remove(keys.hashes[0], &key);
        aggregates.release(&mut shard);
        let left: usize = (1..8).map(|t| shard.point(tiderace_storage::TableId(t), 8).len()).sum();
        assert!(left <= 300, "round {round}: {left} entries");
    }
}

#[test]
fn panes_merge_to_what_one_slot_would_hold() {
    let cases: Vec<Case> = mergeable_cases().into_iter().filter(|c| !c.call.distinct).chain(comparing_cases()).collect();
    let calls: Vec<AggregateCall> = cases.iter().map(|c| c.call.clone()).collect();
    for seed in 0..30 {
        let mut random = Random(700 + seed);
        let mut tables = TableIds::of(NodeId(0), CoreId(0));
        let groups = tables.next();
        let mut aggregates = Aggregates::new(&calls, &schema(), true, &mut tables).unwrap();
        assert!(aggregates.can_merge());
        let mut shard = Shard::new(ShardOptions { budget_bytes: 1 << 30 });
        let mut keys = crate::key::Keys::default();
        (0..5_u8).for_each(|pane| keys.push(&[pane], crate::key::hash(&[pane])));
        let mut entries = Vec::new();
        shard.point(groups, aggregates.record_width()).entries(&keys.as_batch(), &mut entries);
        let rows: Vec<(Row, i64)> = (0..random.below(40)).map(|_| (random.row(), 1)).collect();
        let records: Vec<_> = rows.iter().map(|_| entries[random.below(5) as usize].record).collect();
        aggregates.update(&mut shard, groups, &records, &batch(&rows)).unwrap();
        let mut merged = vec![0; aggregates.slot_width()];
        for entry in &entries {
            let mut slot = Vec::new();
            aggregates.settle(&mut shard, groups, &[entry.record]).unwrap();
            aggregates.gather(&mut shard, groups, &[entry.record], &mut slot);
            aggregates.merge_slots(&mut shard, &slot, &mut merged);
        }
        let evaluated = aggregates.evaluate(&mut shard, &merged).unwrap();
        let columns = evaluated.columns.into_iter().zip(&cases).map(|(c, case)| (case.call.function.name(), c));
        let live: Vec<&Row> = rows.iter().map(|r| &r.0).collect();
        for ((name, column), case) in columns.zip(&cases) {
            let row = RecordBatch::try_from_iter(vec![("r", column)]).unwrap();
            assert_eq!(shown(&exact(&row, 0))[0], (case.model)(&live), "seed {seed} {name}");
        }
    }
}

#[test]
fn many_groups_go_out_in_slices_and_all_come_back() {
    let cases = vec![case(AggregateFunction::Count, &[], |r| r.len().to_string())];
    let plan = plan(&cases, &[T], false);
    let mut bench = Bench::new();
    let mut operator = GroupAggregate::new(&plan, NodeId(0), CoreId(0)).unwrap();
    let template = Random(5).row();
    let rows = |weight: i64| -> Vec<(Row, i64)> { (0..20_000).map(|t| (Row { t, ..template.clone() }, weight)).collect() };
    bench.delta(&mut operator, batch(&rows(1)));
    let mark = EpochMark { epoch: Epoch(1), time_us: 0, watermark: Watermark::MIN, last: false };
    let (mut calls, mut emitted) = (1, 0);
    let mut out = Output::default();
    while operator.on_mark(&mark, &mut bench.cx(), &mut out).unwrap() == Progress::More {
        let now: usize = out.batches.drain(..).map(|b| b.1.num_rows()).sum();
        assert!(now <= crate::operators::SLICE_ROWS);
        (calls, emitted) = (calls + 1, emitted + now);
    }
    emitted += out.batches.iter().map(|b| b.1.num_rows()).sum::<usize>();
    assert!(calls > 4, "{calls}");
    assert_eq!(emitted, 20_000);
    bench.delta(&mut operator, batch(&rows(1)));
    bench.delta(&mut operator, batch(&rows(-1)));
    bench.mark(&mut operator);
    assert!(bench.result.is_empty(), "nothing changed in the epoch, nothing goes out");
    bench.delta(&mut operator, batch(&rows(-1)));
    bench.mark(&mut operator);
    assert!(bench.result.len() == 20_000 && bench.result.values().all(|w| *w == -1));
}

#[test]
fn dictionaries_count_as_their_values() {
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let input: SchemaRef = Arc::new(Schema::new(vec![Field::new("s", dictionary.clone(), true)]));
    let output = |name: &str, t: &DataType| Arc::new(Field::new(name, t.clone(), true));
    let mut distinct = AggregateCall::new(AggregateFunction::Count, vec![0], output("n", &DataType::Int64));
    distinct.distinct = true;
    let max = AggregateCall::new(AggregateFunction::Max, vec![0], output("max", &dictionary));
    for append_only in [true, false] {
        let calls = vec![distinct.clone(), max.clone()];
        let plan = GroupPlan { keys: vec![0], calls, input: input.clone(), append_only };
        let words: DictionaryArray<Int32Type> = vec![Some("x"), None, Some("y"), Some("x")].into_iter().collect();
        let mut bench = Bench::new();
        let mut operator = GroupAggregate::new(&plan, NodeId(0), CoreId(0)).unwrap();
        bench.delta(&mut operator, DeltaBatch::append(RecordBatch::try_new(input.clone(), vec![Arc::new(words)]).unwrap()));
        bench.mark(&mut operator);
        let rows: Vec<String> = bench.result.keys().map(|r| r.join(",")).collect();
        assert_eq!(rows, [",0,", "x,1,x", "y,1,y"]);
    }
}
