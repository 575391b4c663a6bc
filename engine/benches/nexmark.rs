//! Nexmark end to end, from the published Flink SQL: events per second and core, CPU per event, peak memory, and a digest of the result.
//!
//! `make bench` runs it in release. Each run is a process of its own, so that memory and allocator state don't carry over; runs of a
//! query alternate between its settings, and the best and the spread are printed. All events count (1 person : 3 auctions : 46 bids).
//! The digests of a query must be the same at every core count and in both modes, or it ends with an error.
//! The generator runs in the measured cores. `full`: every column of every event is built; `projected`: what the plan needs.
//!
//! Usage: `cargo bench -p tiderace-engine --bench nexmark -- [q0 q1 …] [--events N] [--cores 1,2] [--rounds N] [--json]`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tiderace_engine::connect::blackhole;
use tiderace_engine::plan::{PlanOptions, plan};
use tiderace_engine::runtime::{Job, JobOptions};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What Flink 2.3 does on one core of a 2-core VM of the kind that the goals were set on, million events a second (docs/design).
const FLINK: &[(&str, f64)] = &[
    ("q0", 1.2),
    ("q1", 1.4),
    ("q2", 1.5),
    ("q12", 0.58),
    ("q14", 0.94),
    ("q15", 0.46),
    ("q16", 0.17),
    ("q17", 0.38),
    ("q21", 0.42),
    ("q22", 0.79),
];

/// Their windows are those of the clock, so no two runs have the same rows.
const BY_PROCESSING_TIME: &[&str] = &["q12"];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let Some(at) = args.iter().position(|a| a == "--one") {
        run_one(&args[at + 1..]);
        return;
    }
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1)).cloned();
    let events: Option<u64> = value("--events").and_then(|v| v.parse().ok());
    let cores: Vec<usize> = value("--cores").map_or(vec![1, 2], |v| v.split(',').filter_map(|c| c.parse().ok()).collect());
    let rounds: usize = value("--rounds").and_then(|v| v.parse().ok()).unwrap_or(3);
    let chosen: Vec<&str> = args.iter().map(String::as_str).filter(|a| a.starts_with('q')).collect();
    println!(
        "{:<5} {:<9} {:>5} {:>11} {:>12} {:>12} {:>9} {:>8} {:>9} {:>10}  digest",
        "query", "rows", "cores", "events", "M ev/s/core", "(least)", "ns CPU/ev", "x Flink", "peak MiB", "result rows"
    );
    let mut wrong = false;
    for (query, flink) in FLINK {
        if !chosen.is_empty() && !chosen.contains(query) {
            continue;
        }
        let events = events.unwrap_or(if matches!(*query, "q15" | "q16" | "q17") { 10_000_000 } else { 30_000_000 });
        let mut best: BTreeMap<(usize, bool), Vec<Figures>> = BTreeMap::new();
        for _ in 0..rounds {
            for cores in &cores {
                for full in [true, false] {
                    if let Some(figures) = child(query, events, *cores, full) {
                        best.entry((*cores, full)).or_default().push(figures);
                    }
                }
            }
        }
        let mut digests: Vec<&str> = best.values().flatten().map(|f| f.digest.as_str()).collect();
        digests.dedup();
        if digests.len() > 1 && !BY_PROCESSING_TIME.contains(query) {
            eprintln!("{query}: not the same rows at all core counts and in both modes: {digests:?}");
            wrong = true;
        }
        for ((cores, full), all) in &best {
            let rate = |f: &Figures| events as f64 / f.seconds / *cores as f64 / 1e6;
            let most = all.iter().map(rate).fold(f64::MIN, f64::max);
            let least = all.iter().map(rate).fold(f64::MAX, f64::min);
            let cpu = all.iter().map(|f| f.cpu_seconds).fold(f64::MAX, f64::min) / events as f64 * 1e9;
            let peak = all.iter().map(|f| f.peak_bytes).max().unwrap_or(0) >> 20;
            let same = all.iter().all(|f| f.digest == all[0].digest);
            let digest = match same {
                true => all[0].digest.clone(),
                false if BY_PROCESSING_TIME.contains(query) => "(by processing time: other rows each time)".into(),
                false => "DIFFERS BETWEEN RUNS".into(),
            };
            println!(
                "{query:<5} {:<9} {cores:>5} {events:>11} {most:>12.2} {least:>12.2} {cpu:>9.1} {:>8.1} {peak:>9} {:>10}  {digest}",
                if *full { "full" } else { "projected" },
                most / flink,
                all[0].rows,
            );
        }
    }
    if wrong {
        std::process::exit(1);
    }
}

#[derive(Clone, Debug)]
struct Figures {
    seconds: f64,
    cpu_seconds: f64,
    peak_bytes: u64,
    rows: i64,
    digest: String,
}

fn child(query: &str, events: u64, cores: usize, full: bool) -> Option<Figures> {
    let program = std::env::current_exe().ok()?;
    let output = Command::new(program)
        .args(["--one", query, &events.to_string(), &cores.to_string(), if full { "full" } else { "projected" }])
        .output()
        .ok()?;
    if !output.status.success() {
        eprintln!("{query}: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let fields: Vec<&str> = text.split_whitespace().collect();
    let [seconds, cpu_seconds, peak_bytes, rows, digest] = fields.as_slice() else { return None };
    Some(Figures {
        seconds: seconds.parse().ok()?,
        cpu_seconds: cpu_seconds.parse().ok()?,
        peak_bytes: peak_bytes.parse().ok()?,
        rows: rows.parse().ok()?,
        digest: (*digest).to_owned(),
    })
}

/// One query in this process; prints `seconds cpu_seconds peak_bytes rows digest`.
fn run_one(args: &[String]) {
    let [query, events, cores, rows] = args else { panic!("--one QUERY EVENTS CORES full|projected") };
    let cores: usize = cores.parse().expect("a number of cores");
    let sql = script(query);
    let mut options = PlanOptions { cores, ..PlanOptions::default() };
    for (name, value) in [
        ("TPS", "10000000"),
        ("EVENTS_NUM", events.as_str()),
        ("PERSON_PROPORTION", "1"),
        ("AUCTION_PROPORTION", "3"),
        ("BID_PROPORTION", "46"),
        ("NEXMARK_TABLE", "datagen"),
        ("BOOTSTRAP_SERVERS", ""),
        ("NEXMARK_DIR", ""),
        ("FLINK_HOME", ""),
    ] {
        options.variables.insert(name.into(), value.into());
    }
    if rows == "full" {
        options.config.insert("source.project".into(), "false".into());
    }
    let job = match plan(&sql, &options) {
        Ok(job) => job,
        Err(errors) => panic!("{query}: {errors}"),
    };
    let start = Instant::now();
    let cpu = cpu_time();
    let running = Job::start(job.graph, JobOptions { cores, pin: true, ..JobOptions::default() });
    if let Err(error) = running.wait() {
        panic!("{query}: {error}");
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu = (cpu_time() - cpu).as_secs_f64();
    let total = blackhole::total(&format!("nexmark_{query}")).expect("the query's sink");
    println!("{seconds} {cpu} {} {} {:032x}", peak_bytes(), total.rows, total.digest);
}

/// The query's script, with a digest asked of its sink.
fn script(query: &str) -> String {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "examples", "nexmark"].iter().collect();
    let read = |name: &str| std::fs::read_to_string(Path::new(&folder).join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut text = String::new();
    for part in ["ddl_gen.sql", "ddl_views.sql"] {
        text.push_str(&read(part));
        text.push('\n');
    }
    text.push_str(
        &read(&format!("{query}.sql")).replace("'connector' = 'blackhole'", "'connector' = 'blackhole', 'digest' = 'true'"),
    );
    text
}

/// User and system time of this process so far, in steps of 10 ms.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields.iter().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}
