//! Test data: tables of random rows, cut into batches and shuffled inside their watermark bound, and the net rows of a result.
//!
//! A table block of an `.slt` file: `table NAME rows=N [seed=N] [noise=N]`, then a line a column:
//! `name TYPE [lo..hi] [words=N] [step=700ms] [null=PERCENT]`, and `watermark COLUMN BOUND` (`5s`). `noise=N` adds N rows that are inserted
//! and taken back again: the table's input retracts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array, RecordBatch,
    StringViewArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::{cast, concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use tiderace_engine::batch::{DeltaBatch, Weights};
use tiderace_engine::connect::memory::{MemoryInput, Registration};
use tiderace_engine::connect::parse_duration;
use tiderace_engine::ids::CoreId;
use tiderace_engine::plan::{PlanOptions, plan};
use tiderace_engine::runtime::env::{EnvFactory, VirtualEnv};
use tiderace_engine::runtime::{Job, JobOptions, JobReport};

/// A small generator of random numbers (splitmix64): the same for a seed everywhere.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678_9ABC_DEF0)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to `n - 1`; 0 when `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }

    /// From `lo` to `hi`, both included.
    pub fn between(&mut self, lo: i64, hi: i64) -> i64 {
        lo + self.below((hi - lo + 1).unsigned_abs()) as i64
    }
}

/// A table of test rows.
#[derive(Clone, Debug)]
pub struct Table {
    pub name: String,
    /// In arrival order by time.
    pub rows: RecordBatch,
    /// SQL types of the columns, as declared.
    pub types: Vec<String>,
    /// The time column and its bound in µs.
    pub watermark: Option<(usize, i64)>,
    /// Rows that come and go again.
    pub noise: Option<RecordBatch>,
}

impl Table {
    pub fn parse(head: &str, lines: &[String]) -> Self {
        let mut words = head.split_whitespace();
        let name = words.next().expect("a table's name").to_owned();
        let options: BTreeMap<&str, &str> = words.map(|w| w.split_once('=').expect("key=value")).collect();
        let count: usize = options.get("rows").map_or(200, |r| r.parse().unwrap());
        let noise: usize = options.get("noise").map_or(0, |r| r.parse().unwrap());
        let seed: u64 = options.get("seed").map_or(7, |r| r.parse().unwrap());
        let mut rng = Rng::new(seed);
        let mut columns: Vec<(String, String, Vec<String>)> = Vec::new();
        let mut mark = None;
        for line in lines {
            let mut words = line.split_whitespace();
            let first = words.next().unwrap().to_owned();
            if first == "watermark" {
                mark = Some((words.next().unwrap().to_owned(), words.next().unwrap().to_owned()));
                continue;
            }
            let kind = words.next().unwrap().to_owned();
            columns.push((first, kind, words.map(str::to_owned).collect()));
        }
        let fields: Vec<Field> = columns.iter().map(|(name, kind, _)| Field::new(name, arrow_type(kind), true)).collect();
        let schema = Arc::new(Schema::new(fields));
        let mut make = |n: usize| {
            let arrays = columns.iter().map(|(_, kind, words)| column(kind, words, n, &mut rng)).collect();
            RecordBatch::try_new(schema.clone(), arrays).unwrap()
        };
        let rows = make(count);
        let noise = (noise > 0).then(|| make(noise));
        let watermark = mark.map(|(column, bound)| {
            let at = schema.index_of(&column).unwrap();
            (at, parse_duration(&bound).unwrap().as_micros() as i64)
        });
        Self { name, rows, types: columns.into_iter().map(|(_, kind, _)| kind).collect(), watermark, noise }
    }

    /// The CREATE TABLE that reads it from memory.
    pub fn ddl(&self) -> String {
        let mut parts: Vec<String> =
            self.rows.schema().fields().iter().zip(&self.types).map(|(f, t)| format!("`{}` {t}", f.name())).collect();
        if let Some((at, bound)) = self.watermark {
            let name = self.rows.schema().field(at).name().clone();
            parts.push(format!("WATERMARK FOR `{name}` AS `{name}` - INTERVAL '{}' SECOND", bound as f64 / 1e6));
        }
        format!("CREATE TABLE `{}` ({}) WITH ('connector' = 'memory', 'name' = '{}');", self.name, parts.join(", "), self.name)
    }
}

fn arrow_type(kind: &str) -> DataType {
    match kind {
        "INT" => DataType::Int32,
        "BIGINT" => DataType::Int64,
        "DOUBLE" => DataType::Float64,
        "BOOLEAN" => DataType::Boolean,
        "STRING" => DataType::Utf8View,
        "DATE" => DataType::Date32,
        "TIMESTAMP" => DataType::Timestamp(TimeUnit::Microsecond, None),
        "DECIMAL(12,2)" => DataType::Decimal128(12, 2),
        other => panic!("no test data of type {other}"),
    }
}

fn column(kind: &str, words: &[String], n: usize, rng: &mut Rng) -> ArrayRef {
    let option = |key: &str| words.iter().find_map(|w| w.strip_prefix(key));
    let nulls: u64 = option("null=").map_or(0, |p| p.parse().unwrap());
    let (lo, hi) = words
        .iter()
        .find_map(|w| w.split_once(".."))
        .map_or((0, 100), |(a, b)| (a.parse::<i64>().unwrap(), b.parse::<i64>().unwrap()));
    let words_count: u64 = option("words=").map_or(20, |w| w.parse().unwrap());
    let step = option("step=").map_or(Duration::from_millis(500), |s| parse_duration(s).unwrap()).as_micros() as i64;
    let mut numbers: Vec<Option<i64>> = Vec::with_capacity(n);
    let mut time = 1_700_000_000_000_000i64 - 1_700_000_000_000_000 % 60_000_000;
    for _ in 0..n {
        let value = match kind {
            "TIMESTAMP" => {
                time += rng.between(0, 2 * step);
                time - time % 1000
            }
            "STRING" => rng.below(words_count) as i64,
            _ => rng.between(lo, hi),
        };
        numbers.push((rng.below(100) >= nulls).then_some(value));
    }
    match kind {
        "INT" => Arc::new(Int32Array::from_iter(numbers.into_iter().map(|v| v.map(|v| v as i32)))),
        "BIGINT" => Arc::new(Int64Array::from_iter(numbers)),
        // Halves: sums of them are exact, in any order.
        "DOUBLE" => Arc::new(Float64Array::from_iter(numbers.into_iter().map(|v| v.map(|v| v as f64 / 2.0)))),
        "BOOLEAN" => Arc::new(BooleanArray::from_iter(numbers.into_iter().map(|v| v.map(|v| v % 2 == 0)))),
        "STRING" => Arc::new(StringViewArray::from_iter(
            numbers.into_iter().map(|v| v.map(|v| format!("word-{v}-{}", "x".repeat(v as usize % 17)))),
        )),
        "DATE" => Arc::new(Date32Array::from_iter(numbers.into_iter().map(|v| v.map(|v| 19_000 + v as i32)))),
        "TIMESTAMP" => Arc::new(TimestampMicrosecondArray::from_iter(numbers)),
        _ => Arc::new(
            Decimal128Array::from_iter(numbers.into_iter().map(|v| v.map(i128::from))).with_precision_and_scale(12, 2).unwrap(),
        ),
    }
}

/// Rows with a weight each, in the order in which they arrive, as random batches.
pub type Input = Vec<(RecordBatch, Vec<i64>)>;

/// Cuts a table into random batches, in an order that is shuffled inside the watermark's bound; noise comes, and goes later.
pub fn cut(table: &Table, rng: &mut Rng) -> Input {
    let n = table.rows.num_rows();
    let bound = table.watermark.map_or(0, |(_, b)| b);
    let times: Vec<i64> = match table.watermark {
        Some((at, _)) => {
            let column = table.rows.column(at).as_any().downcast_ref::<TimestampMicrosecondArray>().unwrap();
            let mut last = 0;
            (0..n)
                .map(|i| {
                    // A row without time keeps its place.
                    last = if column.is_null(i) { last } else { column.value(i) };
                    last
                })
                .collect()
        }
        None => (0..n as i64).collect(),
    };
    let disorder = if table.watermark.is_some() { bound } else { n as i64 };
    // (arrival, row, weight); rows of `noise` are numbered from n.
    let mut arrivals: Vec<(i64, usize, i64)> = (0..n).map(|i| (times[i] + rng.between(0, disorder.max(0)), i, 1)).collect();
    let mut all = vec![table.rows.clone()];
    if let Some(noise) = &table.noise {
        all.push(noise.clone());
        let column =
            table.watermark.map(|(at, _)| noise.column(at).as_any().downcast_ref::<TimestampMicrosecondArray>().unwrap().clone());
        for i in 0..noise.num_rows() {
            let time = column.as_ref().map_or(i as i64, |c| if c.is_null(i) { times[0] } else { c.value(i) });
            // It comes, and goes, while its window is still open.
            let come = time + rng.between(0, disorder.max(0) / 2);
            let go = come + rng.between(0, disorder.max(0) / 2);
            arrivals.push((come, n + i, 1));
            arrivals.push((go.max(come + 1), n + i, -1));
        }
    }
    arrivals.sort_by_key(|(at, row, weight)| (*at, *row, -*weight));
    let all = concat_batches(&table.rows.schema(), &all).unwrap();
    let mut input = Vec::new();
    let mut at = 0;
    while at < arrivals.len() {
        let len = (1 + rng.below(40) as usize).min(arrivals.len() - at);
        let part = &arrivals[at..at + len];
        let indices = UInt32Array::from_iter_values(part.iter().map(|(_, row, _)| *row as u32));
        input.push((take_record_batch(&all, &indices).unwrap(), part.iter().map(|(_, _, w)| *w).collect()));
        at += len;
    }
    input
}

/// The rows that changes add up to, as text, with their multiplicity; `None` weights count 1.
pub fn net_rows(batches: impl Iterator<Item = (RecordBatch, Option<Vec<i64>>)>) -> BTreeMap<String, i64> {
    let mut net = BTreeMap::new();
    for (batch, weights) in batches {
        let columns: Vec<ArrayRef> = batch.columns().iter().map(canonical).collect();
        let options = FormatOptions::default().with_null("NULL");
        let formats: Vec<ArrayFormatter<'_>> = columns.iter().map(|c| ArrayFormatter::try_new(c, &options).unwrap()).collect();
        for row in 0..batch.num_rows() {
            let text: Vec<String> =
                formats.iter().zip(&columns).map(|(f, c)| number(&f.value(row).to_string(), c.data_type())).collect();
            let count = net.entry(text.join("|")).or_insert(0);
            *count += weights.as_ref().map_or(1, |w| w[row]);
        }
    }
    net.retain(|_, n| *n != 0);
    net
}

/// One form for values that only differ in their type: zones and units of timestamps, kinds of strings.
fn canonical(column: &ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Timestamp(_, _) => {
            let micros = cast(column, &DataType::Timestamp(TimeUnit::Microsecond, None)).unwrap();
            cast(&micros, &DataType::Timestamp(TimeUnit::Microsecond, None)).unwrap()
        }
        _ => column.clone(),
    }
}

/// Numbers with a fraction are compared to 9 digits: an average is a DECIMAL with us and a DOUBLE in the oracle.
fn number(text: &str, kind: &DataType) -> String {
    if matches!(kind, DataType::Float64 | DataType::Float32 | DataType::Decimal128(..))
        && text != "NULL"
        && let Ok(value) = text.parse::<f64>()
    {
        let rounded = format!("{value:.8e}");
        return rounded.parse::<f64>().map_or(rounded.clone(), |v| format!("{v}"));
    }
    text.to_owned()
}

/// The CREATE TABLE of a table without rows under a name of its own, and what keeps that name.
pub fn empty(table: &Table, name: &str) -> (String, Registration) {
    let name = format!("{name}-{}", table.name);
    let registration = MemoryInput::new(table.rows.schema(), Vec::new()).unwrap().register(&name).unwrap();
    (table.ddl().replace(&format!("'name' = '{}'", table.name), &format!("'name' = '{name}'")), registration)
}

/// Runs `sql` (one query, perhaps with EMIT) over `inputs` and gives the net rows.
pub fn run(tables: &[Table], inputs: Vec<Input>, sql: &str, cores: usize, seed: u64) -> Result<BTreeMap<String, i64>, String> {
    run_with(tables, inputs, sql, seed, JobOptions { cores, ..JobOptions::default() }).map(|(rows, _)| rows)
}

/// The same with options of its own; how the job ended besides.
pub fn run_with(
    tables: &[Table],
    inputs: Vec<Input>,
    sql: &str,
    seed: u64,
    options: JobOptions,
) -> Result<(BTreeMap<String, i64>, JobReport), String> {
    run_by(tables, inputs, sql, seed, options, |start| start().wait().map_err(|e| e.to_string()))
}

/// As [`run_with`], by whoever starts the job as often as it takes.
pub fn run_by(
    tables: &[Table],
    inputs: Vec<Input>,
    sql: &str,
    seed: u64,
    options: JobOptions,
    drive: impl FnOnce(&dyn Fn() -> Job) -> Result<JobReport, String>,
) -> Result<(BTreeMap<String, i64>, JobReport), String> {
    let (cores, job_options) = (options.cores, options);
    let mut text = String::new();
    let mut names = Vec::new();
    for (table, input) in tables.iter().zip(inputs) {
        // Names are given out once in a process, and tests run side by side.
        let unique = format!("{}-{seed}-{:?}", table.name, std::thread::current().id());
        let batches =
            input.into_iter().map(|(rows, weights)| DeltaBatch::new(rows, Weights::from_vec(weights))).collect::<Vec<_>>();
        // Several splits: each keeps its order, so that the least of their watermarks is right.
        let splits = 1 + (seed % 3) as usize;
        let mut dealt: Vec<Vec<DeltaBatch>> = vec![Vec::new(); splits];
        let retracts = table.noise.is_some();
        for (at, batch) in batches.into_iter().enumerate() {
            // A row and its deletion stay in one split, as in a changelog's partition.
            dealt[if retracts { 0 } else { at % splits }].push(batch);
        }
        let memory = MemoryInput::with_splits(table.rows.schema(), dealt).map_err(|e| e.to_string())?;
        names.push(memory.register(&unique).map_err(|e| e.to_string())?);
        text.push_str(&table.ddl().replace(&format!("'name' = '{}'", table.name), &format!("'name' = '{unique}'")));
        text.push('\n');
    }
    text.push_str(sql);
    let mut options = PlanOptions { cores, collect_results: true, ..PlanOptions::default() };
    // Both ways to aggregate are taken, whatever the planner would choose.
    let phases = if seed.is_multiple_of(2) { "two" } else { "auto" };
    options.config.insert("engine.aggregate-phases".into(), phases.into());
    let job = plan(&text, &options).map_err(|e| e.to_string())?;
    let [result] = job.results.as_slice() else { return Err(format!("{} results", job.results.len())) };
    let result = result.clone();
    let env: EnvFactory = Arc::new(move |core: CoreId| Box::new(VirtualEnv::new(0, 120_000, seed, core)) as _);
    let options = JobOptions { pin: false, start_us: Some(0), env: Some(env), ..job_options };
    let report = drive(&|| Job::start(job.graph.clone(), options.clone()))?;
    drop(names);
    let net = result.rows().map_err(|e| e.to_string())?;
    let weights = (0..net.num_rows()).map(|i| net.weights.get(i)).collect();
    let rows = net_rows(std::iter::once((net.rows, Some(weights))));
    match rows.iter().find(|(_, n)| **n < 0) {
        Some((row, n)) => Err(format!("a row was taken back more often than it came ({n}): {row}")),
        None => Ok((rows, report)),
    }
}
