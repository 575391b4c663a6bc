//! Nexmark over recorded events that are replayed from memory: what the queries cost, without the making of events.
//!
//! Flink beside us is measured with a source that replays the same rows (`docs/bench/`), so the two are alike: 20 000 recorded events, their times
//! moved on by 20 s a loop, given to a table with a computed event time and a watermark. Its `blackhole` adds nothing up; ours does with
//! `digest`, which proves the rows, and doesn't with `plain`, which is the rate beside Flink. The events of all loops are made before the
//! clock starts.
//!
//! Usage: `cargo bench -p tiderace-engine --bench replayed -- [q0 q1 …] [--loops N] [--cores 1,2] [--rounds N]`

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Int64Type;
use tiderace_engine::batch::DeltaBatch;
use tiderace_engine::connect::blackhole;
use tiderace_engine::connect::memory::{MemoryInput, MemoryOutput};
use tiderace_engine::plan::{PlanOptions, plan};
use tiderace_engine::runtime::{Job, JobOptions};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const QUERIES: &[&str] = &["q0", "q1", "q2", "q12", "q14", "q15", "q16", "q17", "q21", "q22"];
const SCRIPT: &str = include_str!("replayed.sql");
/// Rows of a batch, as sources of files make them.
const BATCH_ROWS: usize = 4096;
/// How far a loop's times are behind those of the one before it.
const LOOP_MS: i64 = 20_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let Some(at) = args.iter().position(|a| a == "--one") {
        run_one(&args[at + 1..]);
        return;
    }
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1)).cloned();
    let loops: usize = value("--loops").and_then(|v| v.parse().ok()).unwrap_or(500);
    let cores: Vec<usize> = value("--cores").map_or(vec![1, 2], |v| v.split(',').filter_map(|c| c.parse().ok()).collect());
    let rounds: usize = value("--rounds").and_then(|v| v.parse().ok()).unwrap_or(3);
    let chosen: Vec<&str> = args.iter().map(String::as_str).filter(|a| a.starts_with('q')).collect();
    println!(
        "{:<5} {:<7} {:>5} {:>11} {:>12} {:>9} {:>12}  digest",
        "query", "sink", "cores", "events", "M ev/s/core", "(least)", "result rows"
    );
    for query in QUERIES.iter().filter(|query| chosen.is_empty() || chosen.contains(*query)) {
        for cores in &cores {
            for sink in ["plain", "digest"] {
                let runs: Vec<Vec<String>> = (0..rounds).filter_map(|_| child(query, loops, *cores, sink)).collect();
                let rate = |run: &Vec<String>| {
                    run[0].parse::<f64>().unwrap_or(f64::NAN) / run[1].parse::<f64>().unwrap_or(f64::NAN) / *cores as f64 / 1e6
                };
                let (most, least) = runs.iter().map(rate).fold((f64::MIN, f64::MAX), |(m, l), r| (m.max(r), l.min(r)));
                let Some(first) = runs.first() else { continue };
                println!(
                    "{query:<5} {sink:<7} {cores:>5} {:>11} {most:>12.2} {least:>9.2} {:>12}  {}",
                    first[0], first[2], first[3]
                );
            }
        }
    }
}

fn child(query: &str, loops: usize, cores: usize, sink: &str) -> Option<Vec<String>> {
    let program = std::env::current_exe().ok()?;
    let output = Command::new(program).args(["--one", query, &loops.to_string(), &cores.to_string(), sink]).output().ok()?;
    if !output.status.success() {
        eprintln!("{query}: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    let fields: Vec<String> = String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect();
    (fields.len() == 4).then_some(fields)
}

/// One query in this process; prints `events seconds rows digest`.
fn run_one(args: &[String]) {
    let [query, loops, cores, sink] = args else { panic!("--one QUERY LOOPS CORES plain|digest") };
    let loops: i64 = loops.parse().expect("a number of loops");
    let cores: usize = cores.parse().expect("a number of cores");
    let recorded = recorded();
    let mut splits = vec![Vec::new(); cores];
    for round in 0..loops {
        splits[round as usize % cores].extend(recorded.iter().map(|batch| moved(batch, round * LOOP_MS)));
    }
    let events = recorded.iter().map(RecordBatch::num_rows).sum::<usize>() as i64 * loops;
    let input = MemoryInput::with_splits(recorded[0].schema(), splits).expect("batches of one schema");
    let _registration = input.register("events").expect("a free name");
    let digest = sink == "digest";
    let job = planned(
        &format!("{}\n{}", section("tables"), section(query)),
        &[
            ("source", "'connector' = 'memory', 'name' = 'events'"),
            ("sink", &format!("'connector' = 'blackhole', 'digest' = '{digest}'")),
        ],
        cores,
    );
    let start = Instant::now();
    // The sink's sums last as long as the job.
    let running = Job::start(job.graph, JobOptions { cores, pin: true, ..JobOptions::default() });
    running.wait().unwrap_or_else(|error| panic!("{query}: {error}"));
    let seconds = start.elapsed().max(Duration::from_micros(1)).as_secs_f64();
    let total = blackhole::total("sink").expect("the query's sink");
    println!("{events} {seconds} {} {:032x}", total.rows, total.digest);
}

fn planned(sql: &str, variables: &[(&str, &str)], cores: usize) -> tiderace_engine::plan::JobPlan {
    let mut options = PlanOptions { cores, ..PlanOptions::default() };
    options.variables.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    plan(sql, &options).unwrap_or_else(|errors| panic!("{errors}"))
}

fn section(name: &str) -> &'static str {
    let head = format!("--- {name}\n");
    let from = SCRIPT.find(&head).unwrap_or_else(|| panic!("replayed.sql has no section {name}")) + head.len();
    SCRIPT[from..].split("\n--- ").next().unwrap_or_default()
}

/// The recorded events, by the columns of the table.
fn recorded() -> Vec<RecordBatch> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/events.jsonl.gz");
    let output = MemoryOutput::new(1 << 20);
    let _registration = output.register("recorded").expect("a free name");
    let columns =
        "t INT, auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING, `dateTime` BIGINT, extra STRING";
    let job = planned(
        &format!(
            "CREATE TABLE file ({columns}) WITH ('connector' = 'filesystem', 'path' = '{}', 'format' = 'json');
             CREATE TABLE recorded ({columns}) WITH ('connector' = 'memory', 'name' = 'recorded');
             INSERT INTO recorded SELECT * FROM file;",
            file.display()
        ),
        &[],
        1,
    );
    Job::start(job.graph, JobOptions { cores: 1, pin: false, ..JobOptions::default() }).wait().expect("the recorded events");
    let batches: Vec<RecordBatch> = output.take().into_iter().map(|part| part.changes.rows).collect();
    let all = concat_batches(&batches[0].schema(), &batches).expect("batches of one schema");
    (0..all.num_rows()).step_by(BATCH_ROWS).map(|from| all.slice(from, BATCH_ROWS.min(all.num_rows() - from))).collect()
}

/// The same events, later.
fn moved(batch: &RecordBatch, by_ms: i64) -> DeltaBatch {
    let at = batch.schema().index_of("dateTime").expect("a column of the table");
    let mut columns = batch.columns().to_vec();
    columns[at] = Arc::new(columns[at].as_primitive::<Int64Type>().unary::<_, Int64Type>(|ms| ms + by_ms)) as ArrayRef;
    DeltaBatch::append(RecordBatch::try_new(batch.schema(), columns).expect("the same columns"))
}
