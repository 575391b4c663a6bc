//! The concurrent store under YCSB's workloads, beside a plain hash map in the same run; and the log under appends of 100 bytes.
//!
//! `cargo bench -p tiderace-storage --bench ycsb -- [--keys N,N] [--seconds S] [--threads 1,2] [--values 8,100] [--part pairs,owner,kv,disk,log]
//! [--rounds 9] [--disk-mib 256] [--devices io_uring,io_uring+direct,threads,threads+direct]`
//!
//! Prints operations a second, and percentiles of what one call takes: of one operation, or of a batch divided by its length where a column
//! says so. Latencies are taken of one call in 64 (of all batches), the clock's own time is part of them.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

#[path = "ycsb/disk.rs"]
mod disk;
#[path = "ycsb/owner.rs"]
mod owner;
#[path = "ycsb/pairs.rs"]
mod pairs;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use hdrhistogram::Histogram;
use tiderace_storage::{FileDevice, KvKeys, KvOptions, KvSlot, Log, LogOptions, ShardedKv, SimDevice};

const BATCH: usize = 256;

/// A small generator: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Which keys are asked for: all alike, or few of them most of the time (Gray et al., "Quickly generating billion-record synthetic
/// databases", with YCSB's constant 0.99 and its scattering).
#[derive(Clone, Copy)]
enum Choice {
    Uniform,
    Zipfian { theta: f64, zeta: f64, eta: f64 },
}

impl Choice {
    fn zipfian(keys: u64) -> Self {
        let theta = 0.99;
        let zeta = |n: u64| (1..=n).map(|i| (i as f64).powf(-theta)).sum::<f64>();
        let all = zeta(keys);
        let eta = (1.0 - (2.0 / keys as f64).powf(1.0 - theta)) / (1.0 - zeta(2) / all);
        Self::Zipfian { theta, zeta: all, eta }
    }

    fn key(self, random: &mut Random, keys: u64) -> u64 {
        match self {
            Self::Uniform => random.next() % keys,
            Self::Zipfian { theta, zeta, eta } => {
                let u = random.unit();
                let rank = if u * zeta < 1.0 {
                    0
                } else if u * zeta < 1.0 + 0.5_f64.powf(theta) {
                    1
                } else {
                    (keys as f64 * (eta * u - eta + 1.0).powf(1.0 / (1.0 - theta))) as u64
                };
                mix(rank.min(keys - 1)) % keys
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Workload {
    /// Half reads, half updates.
    A,
    /// 95 of 100 read.
    B,
    /// All read.
    C,
    /// Half reads, half read-modify-writes.
    F,
}

/// A worker's chosen keys, made before the clock runs: what is measured is the store.
struct Plan {
    keys: Vec<u64>,
    /// Whether operation `i` reads.
    reads: Vec<bool>,
}

impl Plan {
    fn new(workload: Workload, choice: Choice, keys: u64, seed: u64) -> Self {
        let mut random = Random(seed);
        // Beyond a million keys more are chosen, or the same million would be in the processor's cache when it comes again.
        let count = (keys.next_power_of_two() as usize).clamp(1 << 20, 1 << 23);
        let percent = match workload {
            Workload::A | Workload::F => 50,
            Workload::B => 95,
            Workload::C => 100,
        };
        Self {
            keys: (0..count).map(|_| choice.key(&mut random, keys)).collect(),
            reads: (0..count).map(|_| random.next() % 100 < percent).collect(),
        }
    }
}

struct Outcome {
    operations: u64,
    seconds: f64,
    cpu_seconds: f64,
    latencies: Histogram<u64>,
}

/// What the threads that live have computed; 0 where the system doesn't tell.
fn cpu_seconds() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0.0 };
    let of =
        |task: std::path::PathBuf| std::fs::read_to_string(task.join("schedstat")).ok()?.split(' ').next()?.parse::<f64>().ok();
    tasks.filter_map(|t| of(t.ok()?.path())).sum::<f64>() / 1e9
}

/// Runs `work` on each thread until the time is over; it does some operations and tells how many, and what one of them took.
fn measure<W: FnMut(usize, &mut Histogram<u64>) -> u64>(
    threads: usize,
    seconds: f64,
    make: impl Fn(usize) -> W + Sync,
) -> Outcome {
    let (stop, operations) = (AtomicBool::new(false), AtomicU64::new(0));
    let latencies = Mutex::new(Histogram::new(3).unwrap());
    let barrier = Barrier::new(threads + 1);
    let (mut elapsed, mut cpu) = (0.0, 0.0);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (make, stop, operations, latencies, barrier) = (&make, &stop, &operations, &latencies, &barrier);
            scope.spawn(move || {
                let mut work = make(thread);
                let mut own = Histogram::new(3).unwrap();
                let (mut done, mut at) = (0, 0);
                barrier.wait();
                while !stop.load(Ordering::Relaxed) {
                    done += work(at, &mut own);
                    at += 1;
                }
                operations.fetch_add(done, Ordering::Relaxed);
                latencies.lock().unwrap().add(own).unwrap();
                barrier.wait();
                barrier.wait();
            });
        }
        barrier.wait();
        let (start, cpu_start) = (Instant::now(), cpu_seconds());
        std::thread::sleep(Duration::from_secs_f64(seconds));
        stop.store(true, Ordering::Relaxed);
        // Threads wait for each other once more, so that all still live when their time is asked for.
        barrier.wait();
        (elapsed, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu_start);
        barrier.wait();
    });
    Outcome {
        operations: operations.into_inner(),
        seconds: elapsed,
        cpu_seconds: cpu,
        latencies: latencies.into_inner().unwrap(),
    }
}

fn print(what: &str, outcome: &Outcome) {
    let h = &outcome.latencies;
    let at = |q: f64| h.value_at_quantile(q);
    println!(
        "{what:<58} {:>8.2} M/s {:>7.1} ns CPU/op   p50 {:>6}  p99 {:>7}  p99.9 {:>8}  max {:>10} ns",
        outcome.operations as f64 / outcome.seconds / 1e6,
        outcome.cpu_seconds * 1e9 / outcome.operations.max(1) as f64,
        at(0.5),
        at(0.99),
        at(0.999),
        h.max()
    );
}

fn kv_part(keys: u64, value_bytes: usize, threads: &[usize], seconds: f64) {
    let most = *threads.iter().max().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let kv =
        ShardedKv::open(FileDevice::open(directory.path()).unwrap(), KvOptions { value_bytes, ..KvOptions::new(most) }).unwrap();
    let name = |what: &str, how: &str| format!("{what:<4} {keys:>9} keys {value_bytes:>4} B {how}");
    // Load: in batches, by one thread.
    let mut session = kv.start_session().unwrap();
    let (mut batch, value) = (KvKeys::default(), vec![7_u8; value_bytes]);
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let mut histogram = Histogram::new(3).unwrap();
    for from in (0..keys).step_by(BATCH) {
        let begin = Instant::now();
        batch.clear();
        (from..keys.min(from + BATCH as u64)).for_each(|k| assert!(batch.push(&mix(k).to_le_bytes())));
        session.upsert_batch(&batch, |_| &value).unwrap();
        histogram.record(begin.elapsed().as_nanos() as u64 / batch.len() as u64).unwrap();
    }
    let outcome = Outcome {
        operations: keys,
        seconds: start.elapsed().as_secs_f64(),
        cpu_seconds: cpu_seconds() - cpu,
        latencies: histogram,
    };
    print(&name("load", "1 thread, batched"), &outcome);
    assert_eq!(kv.len().unwrap() as u64, keys);
    drop(session);
    for (spread, choice) in [("uniform", Choice::Uniform), ("zipfian", Choice::zipfian(keys))] {
        for (letter, workload) in [("A", Workload::A), ("B", Workload::B), ("C", Workload::C), ("F", Workload::F)] {
            for count in threads {
                let alone = measure(*count, seconds, |thread| {
                    let (plan, mut session) = (Plan::new(workload, choice, keys, thread as u64), kv.start_session().unwrap());
                    let value = vec![9_u8; value_bytes];
                    let mut one = KvKeys::default();
                    move |at, histogram| {
                        for i in 0..64 {
                            let i = (at * 64 + i) % plan.keys.len();
                            let key = mix(plan.keys[i]).to_le_bytes();
                            let timed = i.is_multiple_of(64).then(Instant::now);
                            if plan.reads[i] {
                                session.read_with(&key, |v| std::hint::black_box(v.map(|v| v[0]))).unwrap();
                            } else if workload == Workload::F {
                                one.clear();
                                one.push(&key);
                                session.rmw_batch(&one, |_, slot| add_one(slot)).unwrap();
                            } else {
                                session.upsert(&key, &value).unwrap();
                            }
                            if let Some(timed) = timed {
                                histogram.record(timed.elapsed().as_nanos() as u64).unwrap();
                            }
                        }
                        64
                    }
                });
                print(&name(letter, &format!("{spread}, {count} threads, alone")), &alone);
                let batched = measure(*count, seconds, |thread| {
                    let (plan, mut session) = (Plan::new(workload, choice, keys, thread as u64), kv.start_session().unwrap());
                    let value = vec![9_u8; value_bytes];
                    let (mut reads, mut writes) = (KvKeys::default(), KvKeys::default());
                    let mut sum = 0_u64;
                    move |at, histogram| {
                        let begin = Instant::now();
                        reads.clear();
                        writes.clear();
                        for i in 0..BATCH {
                            let i = (at * BATCH + i) % plan.keys.len();
                            let into = if plan.reads[i] { &mut reads } else { &mut writes };
                            into.push(&mix(plan.keys[i]).to_le_bytes());
                        }
                        session.read_batch(&reads, |_, v| sum += u64::from(v.map_or(0, |v| v[0]))).unwrap();
                        if workload == Workload::F {
                            session.rmw_batch(&writes, |_, slot| add_one(slot)).unwrap();
                        } else if !writes.is_empty() {
                            session.upsert_batch(&writes, |_| &value).unwrap();
                        }
                        std::hint::black_box(sum);
                        histogram.record(begin.elapsed().as_nanos() as u64 / BATCH as u64).unwrap();
                        BATCH as u64
                    }
                });
                print(&name(letter, &format!("{spread}, {count} threads, batches of {BATCH}")), &batched);
            }
        }
        if spread == "uniform" {
            checkpoints(&kv, keys, value_bytes, seconds);
        }
    }
    drop(kv);
    // The yardstick: a map of one thread, without locks, versions, sessions or checkpoints.
    let mut map: HashMap<[u8; 8], Box<[u8]>, foldhash::fast::FixedState> = HashMap::default();
    (0..keys).for_each(|k| drop(map.insert(mix(k).to_le_bytes(), value.clone().into_boxed_slice())));
    let mut inline: HashMap<[u8; 8], [u8; 8], foldhash::fast::FixedState> = HashMap::default();
    if value_bytes == 8 {
        drop(std::mem::take(&mut map));
        inline.extend((0..keys).map(|k| (mix(k).to_le_bytes(), [7; 8])));
    }
    let (map, inline) = (Mutex::new(map), Mutex::new(inline));
    for (spread, choice) in [("uniform", Choice::Uniform), ("zipfian", Choice::zipfian(keys))] {
        for (letter, workload) in [("C", Workload::C), ("F", Workload::F)] {
            let outcome = measure(1, seconds, |_| {
                let plan = Plan::new(workload, choice, keys, 0);
                let (mut map, mut inline) = (map.lock().unwrap(), inline.lock().unwrap());
                move |at, histogram| {
                    for i in 0..64 {
                        let i = (at * 64 + i) % plan.keys.len();
                        let key = mix(plan.keys[i]).to_le_bytes();
                        let timed = i.is_multiple_of(64).then(Instant::now);
                        let value: &mut [u8] = match value_bytes {
                            8 => inline.get_mut(&key).unwrap(),
                            _ => map.get_mut(&key).unwrap(),
                        };
                        if plan.reads[i] {
                            std::hint::black_box(value[0]);
                        } else {
                            add_one(KvSlot::InPlace(value));
                        }
                        if let Some(timed) = timed {
                            histogram.record(timed.elapsed().as_nanos() as u64).unwrap();
                        }
                    }
                    64
                }
            });
            print(&name(letter, &format!("{spread}, hashbrown, 1 thread")), &outcome);
        }
    }
}

fn add_one(slot: KvSlot<'_>) {
    let (KvSlot::Initial(value) | KvSlot::InPlace(value)) = slot;
    value[0] = value[0].wrapping_add(1);
}

/// Read-modify-writes in batches while checkpoints are taken one after the other.
fn checkpoints(kv: &ShardedKv<FileDevice>, keys: u64, value_bytes: usize, seconds: f64) {
    let taken = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let longest = AtomicU64::new(0);
    let mut outcome = None;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let begin = Instant::now();
                kv.checkpoint(Duration::from_secs(60)).unwrap();
                longest.fetch_max(begin.elapsed().as_millis() as u64, Ordering::Relaxed);
                taken.fetch_add(1, Ordering::Relaxed);
            }
        });
        outcome = Some(measure(1, seconds * 2.0, |_| {
            let (plan, mut session) = (Plan::new(Workload::F, Choice::Uniform, keys, 0), kv.start_session().unwrap());
            let mut writes = KvKeys::default();
            move |at, histogram| {
                writes.clear();
                for i in 0..BATCH {
                    writes.push(&mix(plan.keys[(at * BATCH + i) % plan.keys.len()]).to_le_bytes());
                }
                let begin = Instant::now();
                session.rmw_batch(&writes, |_, slot| add_one(slot)).unwrap();
                histogram.record(begin.elapsed().as_nanos() as u64).unwrap();
                BATCH as u64
            }
        }));
        stop.store(true, Ordering::Relaxed);
    });
    let what = format!("rmw  {keys:>9} keys {value_bytes:>4} B 1 thread, checkpoint after checkpoint");
    print(&what, &outcome.unwrap());
    println!(
        "     {} checkpoints, the longest {} ms; percentiles above are of whole batches of {BATCH}",
        taken.load(Ordering::Relaxed),
        longest.load(Ordering::Relaxed)
    );
}

fn log_part(threads: &[usize], seconds: f64) {
    let payload = [5_u8; 100];
    for count in threads {
        for on_disk in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let options =
                LogOptions { segment_bytes: 64 << 20, pending_bytes_max: 32 << 20, commit_bytes: 4 << 20, ..LogOptions::new(1) };
            let log = if on_disk {
                Log::open_directory(directory.path(), options, true).unwrap()
            } else {
                let reading = Box::new(|| Ok(Box::new(SimDevice::new(0)) as Box<dyn tiderace_storage::Device + Send>));
                Log::open(Nowhere, reading, options).unwrap()
            };
            let outcome = measure(*count, seconds, |_| {
                let log = &log;
                move |_, histogram| {
                    for i in 0..64 {
                        let timed = (i == 0).then(Instant::now);
                        log.append_or_wait(&[&payload], Duration::from_secs(30)).unwrap();
                        if let Some(timed) = timed {
                            histogram.record(timed.elapsed().as_nanos() as u64).unwrap();
                        }
                    }
                    64
                }
            });
            let end = Instant::now();
            let until = log.commit().unwrap();
            log.wait_for_commit(until, Duration::from_secs(60)).unwrap();
            let place = if on_disk { "written and synced" } else { "device that forgets" };
            print(&format!("log: append of 100 B, {count} threads, {place}"), &outcome);
            println!("     the rest was durable {} ms later", end.elapsed().as_millis());
            if on_disk {
                log.truncate_before(log.durable().unwrap()).unwrap();
            }
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let log = Log::open(
        FileDevice::open(directory.path()).unwrap(),
        Box::new(|| Ok(Box::new(SimDevice::new(0)) as Box<dyn tiderace_storage::Device + Send>)),
        LogOptions::new(1),
    )
    .unwrap();
    let outcome = measure(1, seconds, |_| {
        let log = &log;
        move |_, histogram| {
            let begin = Instant::now();
            log.append_and_wait(&payload, Duration::from_secs(30)).unwrap();
            histogram.record(begin.elapsed().as_nanos() as u64).unwrap();
            1
        }
    });
    print("log: append of 100 B and wait for it", &outcome);
}

/// A device that is done at once: what is measured is the log.
#[derive(Debug)]
struct Nowhere;

impl tiderace_storage::Device for Nowhere {
    fn submit(&mut self, _: tiderace_storage::DeviceOp) -> tiderace_storage::Token {
        tiderace_storage::Token(0)
    }

    fn poll(&mut self, _: &mut Vec<tiderace_storage::Completion>) {}

    fn wait(&mut self, _: Duration) {}

    fn execute(&mut self, op: tiderace_storage::DeviceOp) -> Result<tiderace_storage::Done, tiderace_storage::DeviceError> {
        Ok(match op {
            tiderace_storage::DeviceOp::List => tiderace_storage::Done::Files(Vec::new()),
            tiderace_storage::DeviceOp::Read { .. } => tiderace_storage::Done::Data(Vec::new()),
            _ => tiderace_storage::Done::Nothing,
        })
    }
}

fn numbers<T: std::str::FromStr>(arguments: &[String], name: &str, usual: Vec<T>) -> Vec<T> {
    let at = arguments.iter().position(|a| a == name);
    at.and_then(|at| arguments.get(at + 1)).map_or(usual, |list| list.split(',').filter_map(|n| n.parse().ok()).collect())
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let seconds = numbers(&arguments, "--seconds", vec![2.0])[0];
    let threads = numbers(&arguments, "--threads", vec![1, 2]);
    let parts = numbers(&arguments, "--part", ["pairs", "owner", "kv", "disk", "log"].map(str::to_owned).to_vec());
    if parts.iter().any(|p| p == "pairs") {
        let rounds = numbers(&arguments, "--rounds", vec![9])[0];
        for keys in numbers(&arguments, "--keys", vec![250_000, 10_000_000]) {
            for value_bytes in numbers(&arguments, "--values", vec![8, 100]) {
                pairs::part(keys, value_bytes, rounds);
            }
        }
    }
    if parts.iter().any(|p| p == "owner") {
        for keys in numbers(&arguments, "--keys", vec![250_000, 10_000_000]) {
            for value_bytes in numbers(&arguments, "--values", vec![8, 100]) {
                owner::part(keys, value_bytes, &threads, seconds);
            }
        }
    }
    if parts.iter().any(|p| p == "kv") {
        for keys in numbers(&arguments, "--keys", vec![250_000, 10_000_000]) {
            for value_bytes in numbers(&arguments, "--values", vec![8, 100]) {
                kv_part(keys, value_bytes, &threads, seconds);
            }
        }
    }
    if parts.iter().any(|p| p == "disk") {
        let devices = numbers(&arguments, "--devices", vec!["io_uring+direct".to_owned(), "threads".to_owned()]);
        let mib = numbers(&arguments, "--disk-mib", vec![256_u64])[0];
        for value_bytes in numbers(&arguments, "--values", vec![8, 100]) {
            for device in &devices {
                disk::part(device, mib << 20, value_bytes, &threads, seconds);
            }
        }
    }
    if parts.iter().any(|p| p == "log") {
        log_part(&threads, seconds);
    }
}
