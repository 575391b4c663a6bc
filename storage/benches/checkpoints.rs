//! What checkpoints cost those who go on working, and how long recovery takes.
//!
//! `cargo bench -p tiderace-storage --bench checkpoints -- [--part shard,pages,kv,recovery] [--keys N] [--threads 1,2,12] [--seconds S] [--every S]
//! [--devices io_uring,io_uring+direct,threads] [--slice-kib N]`
//!
//! Times of a shard's calls are given twice: as the clock has them, and as CPU time of the thread, which has no part of what others did on
//! the same core (asking that clock is part of it). Percentiles are of single calls; `max` is the longest of all.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tiderace_storage::{
    CaptureKind, CapturedBlock, Checkpoints, Device, DeviceOptions, Entry, FileDevice, KeyBatch, KvKeys, KvOptions, KvSlot,
    OpenAt, Shard, ShardOptions, ShardedKv, StoreOptions, TableId, TableLayout, open_device_with,
};

const BATCH: usize = 256;
const VNODES: u32 = 256;
const TABLE: TableId = TableId(1);
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// CPU time of this thread in nanoseconds.
#[expect(unsafe_code, reason = "the clock of a thread is behind a C call")]
fn cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid and nobody else's; the clock of the calling thread is always there.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Durations of one kind of call, by the clock and in CPU time.
struct Times {
    wall: Histogram<u64>,
    cpu: Histogram<u64>,
}

impl Times {
    fn new() -> Self {
        Self { wall: Histogram::new(3).unwrap(), cpu: Histogram::new(3).unwrap() }
    }

    fn measure<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let (cpu, wall) = (cpu_ns(), Instant::now());
        let result = call();
        self.wall.record(wall.elapsed().as_nanos() as u64).unwrap();
        self.cpu.record(cpu_ns() - cpu).unwrap();
        result
    }

    fn print(&self, what: &str) {
        for (clock, h) in [("clock", &self.wall), ("CPU", &self.cpu)] {
            println!(
                "  {what:<44} {clock:<5} p50 {:>8.1}  p99 {:>8.1}  max {:>9.1} µs  of {}",
                h.value_at_quantile(0.5) as f64 / 1e3,
                h.value_at_quantile(0.99) as f64 / 1e3,
                h.max() as f64 / 1e3,
                h.len()
            );
        }
    }
}

struct Rows {
    bytes: Vec<u8>,
    offsets: Vec<u32>,
    hashes: Vec<u64>,
    entries: Vec<Entry>,
}

impl Rows {
    fn new() -> Self {
        let offsets = (0..=BATCH as u32).map(|i| i * 8).collect();
        Self { bytes: vec![0; BATCH * 8], offsets, hashes: vec![0; BATCH], entries: Vec::new() }
    }

    /// Adds one to the values of some keys, as an aggregation does.
    fn update(&mut self, shard: &mut Shard, keys: impl Iterator<Item = u64>) {
        for (i, key) in keys.enumerate() {
            self.bytes[i * 8..i * 8 + 8].copy_from_slice(&key.to_le_bytes());
            self.hashes[i] = mix(key);
        }
        self.entries.clear();
        let batch = KeyBatch { bytes: &self.bytes, offsets: &self.offsets, hashes: &self.hashes };
        let table = shard.point(TABLE, 8);
        table.entries(&batch, &mut self.entries);
        for entry in &self.entries {
            let value = table.value_mut(entry.record);
            let sum = u64::from_le_bytes(value[..8].try_into().unwrap()) + 1;
            value[..8].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

fn fill(shard: &mut Shard, rows: &mut Rows, keys: u64) {
    for from in (0..keys).step_by(BATCH) {
        rows.update(shard, (from..from + BATCH as u64).map(|k| k % keys));
        shard.maintain().unwrap();
    }
}

/// Batches of updates for so long; how many there were in a second of CPU time. `between` is called behind each batch.
fn work(shard: &mut Shard, rows: &mut Rows, keys: u64, seconds: f64, mut between: impl FnMut(&mut Shard)) -> f64 {
    let (start, cpu, mut at) = (Instant::now(), cpu_ns(), 0_u64);
    while start.elapsed().as_secs_f64() < seconds {
        rows.update(shard, (0..BATCH as u64).map(|i| mix(at + i) % keys));
        at += BATCH as u64;
        between(shard);
    }
    at as f64 / ((cpu_ns() - cpu) as f64 / 1e9)
}

/// Updates of one shard before it is the other's turn.
const TURN: u64 = 1 << 20;

/// Two shards in memory, alike and in turn: one is left alone, of the other captures are taken, which another thread writes. Whatever else the
/// machine does slows both down; seconds are of CPU time.
fn shard_part(keys: u64, seconds: f64, every: f64, slice_bytes: usize) {
    let directory = tempfile::tempdir().unwrap();
    let new = || Shard::new(ShardOptions { budget_bytes: usize::MAX });
    let (mut plain, mut shard, mut rows) = (new(), new(), Rows::new());
    fill(&mut plain, &mut rows, keys);
    fill(&mut shard, &mut rows, keys);
    let (to_writer, blocks) = mpsc::sync_channel::<Message>(1024);
    let (committed, commits) = mpsc::channel::<u64>();
    let path = directory.path().to_owned();
    let writer = std::thread::spawn(move || {
        let mut checkpoints = Checkpoints::open(FileDevice::open(&path).unwrap(), 2).unwrap();
        let begin = cpu_ns();
        while let Ok(Message::Begin(version, kind)) = blocks.recv() {
            let mut writer = checkpoints.begin(version, VNODES).unwrap();
            writer.begin_all(kind);
            loop {
                match blocks.recv().unwrap() {
                    Message::Block(block) => writer.push(&block).unwrap(),
                    Message::End(records) => break drop(writer.commit(records, b"").unwrap()),
                    Message::Begin(..) => unreachable!("one at a time"),
                }
            }
            committed.send(version).unwrap();
        }
        cpu_ns() - begin
    });
    let (mut cuts, mut slices) = (Times::new(), Times::new());
    let (mut version, mut base, mut last, mut out) = (0_u64, None, 0.0, Vec::new());
    let (mut changes, mut running, mut records, mut at) = (0, false, 0, 0);
    let (mut without, mut with, mut clock) = (0_u64, 0_u64, 0.0);
    while clock < seconds.max(every * 3.5) {
        let begin = cpu_ns();
        for from in (at..at + TURN).step_by(BATCH) {
            rows.update(&mut plain, (0..BATCH as u64).map(|i| mix(from + i) % keys));
        }
        let middle = cpu_ns();
        for from in (at..at + TURN).step_by(BATCH) {
            rows.update(&mut shard, (0..BATCH as u64).map(|i| mix(from + i) % keys));
            if let Ok(version) = commits.try_recv() {
                base = Some(version);
                running = false;
            }
            if !running && clock - last >= every {
                last = clock;
                version += 1;
                records = shard.point(TABLE, 8).len() as u64;
                let kind = cuts.measure(|| shard.begin_capture(version, base)).unwrap();
                changes += u64::from(kind == CaptureKind::Changes);
                to_writer.send(Message::Begin(version, kind)).unwrap();
                running = true;
            }
            if shard.is_capturing() {
                let more = slices.measure(|| shard.capture_slice(slice_bytes, &mut out));
                out.drain(..).for_each(|block| to_writer.send(Message::Block(block)).unwrap());
                if !more {
                    to_writer.send(Message::End(records)).unwrap();
                }
            }
        }
        without += middle - begin;
        with += cpu_ns() - middle;
        clock = with as f64 / 1e9;
        at += TURN;
    }
    while shard.is_capturing() {
        shard.capture_slice(1 << 20, &mut out);
        out.drain(..).for_each(|block| to_writer.send(Message::Block(block)).unwrap());
        if !shard.is_capturing() {
            to_writer.send(Message::End(records)).unwrap();
        }
    }
    drop(to_writer);
    let writer = writer.join().unwrap();
    println!(
        "shards in memory, {keys} keys of 8 B with values of 8 B, updates in batches of {BATCH}, a capture each {every} s of one"
    );
    let rate = |ns: u64| at as f64 * 1e3 / ns as f64;
    println!(
        "  updates: {:.2} M/s of CPU without, {:.2} M/s with captures ({:+.1} %), {:.1} a key and capture",
        rate(without),
        rate(with),
        (without as f64 / with as f64 - 1.0) * 100.0,
        at as f64 / keys as f64 / version as f64
    );
    let per_record = |ns: f64| ns / (version * keys) as f64;
    println!(
        "  captures: {version}, of changes {changes}; a record costs the shard {:.0} ns in all, the thread that writes {:.0} ns",
        per_record(with as f64 - without as f64),
        per_record(writer as f64)
    );
    cuts.print("begin_capture (the cut)");
    slices.print(&format!("capture_slice of {} KiB", slice_bytes >> 10));
}

enum Message {
    Begin(u64, CaptureKind),
    Block(CapturedBlock),
    End(u64),
}

/// A shard on `device` whose pages are its checkpoints, opened at the newest.
fn open_pages(device: Box<dyn Device + Send>) -> Shard {
    let options = ShardOptions { budget_bytes: 4 << 30 };
    Shard::open(options, TableLayout::for_device(), device, StoreOptions::default(), 2, OpenAt::Newest).unwrap().0
}

/// A shard whose pages are its checkpoints; `device` as `io_uring+direct`, or `threads`.
fn pages_part(device: &str, keys: u64, seconds: f64, every: f64) {
    let directory = tempfile::tempdir().unwrap();
    let wanted =
        DeviceOptions { io_uring: device.contains("io_uring"), direct_io: device.contains("direct"), ..DeviceOptions::default() };
    let opened = open_device_with(directory.path(), &wanted).unwrap();
    let (backend, direct_io) = (opened.backend.clone(), opened.direct_io.clone());
    let mut shard = open_pages(opened.device);
    let mut rows = Rows::new();
    fill(&mut shard, &mut rows, keys);
    let without = work(&mut shard, &mut rows, keys, seconds, |s| s.maintain().unwrap());
    let (mut cuts, mut slices) = (Times::new(), Times::new());
    let (mut version, mut last) = (0, Instant::now());
    let with = work(&mut shard, &mut rows, keys, seconds.max(every * 3.5), |shard| {
        shard.maintain().unwrap();
        if !shard.is_checkpointing() && last.elapsed().as_secs_f64() >= every {
            last = Instant::now();
            version += 1;
            cuts.measure(|| shard.cut(version, b"")).unwrap();
        }
        if shard.is_checkpointing() {
            slices.measure(|| shard.advance_checkpoint()).unwrap();
        }
    });
    println!(
        "shard with pages, {keys} keys of 8 B with values of 8 B, updates in batches of {BATCH}, a fold-over each {every} s, {backend:?}, {direct_io:?}"
    );
    println!(
        "  updates: {:.2} M/s of CPU without, {:.2} M/s with ({:+.1} %)",
        without / 1e6,
        with / 1e6,
        (with / without - 1.0) * 100.0
    );
    cuts.print("cut");
    slices.print("advance_checkpoint (64 KiB)");
}

/// The concurrent store: many threads, a checkpoint each few seconds.
fn kv_part(keys: u64, threads: usize, seconds: f64, every: f64) {
    let directory = tempfile::tempdir().unwrap();
    let kv = ShardedKv::open(FileDevice::open(directory.path()).unwrap(), KvOptions::new(2)).unwrap();
    let mut session = kv.start_session().unwrap();
    let mut batch = KvKeys::default();
    for from in (0..keys).step_by(BATCH) {
        batch.clear();
        (from..keys.min(from + BATCH as u64)).for_each(|k| assert!(batch.push(&mix(k).to_le_bytes())));
        session.upsert_batch(&batch, |_| &[1; 8]).unwrap();
    }
    println!(
        "concurrent store, {keys} keys of 8 B with values of 8 B, {} shards, {threads} threads, rmw in batches of {BATCH}, uniform",
        kv.shards()
    );
    let mut rates = Vec::new();
    for checkpoints in [false, true] {
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let barrier = Barrier::new(threads + 1);
        let latencies = std::sync::Mutex::new(Histogram::<u64>::new(3).unwrap());
        let (mut taken, mut longest) = (0, Duration::ZERO);
        let mut elapsed = 0.0;
        std::thread::scope(|scope| {
            for thread in 0..threads as u64 {
                let (kv, stop, done, barrier, latencies) = (&kv, &stop, &done, &barrier, &latencies);
                scope.spawn(move || {
                    let mut session = kv.start_session().unwrap();
                    let (mut batch, mut own, mut at) = (KvKeys::default(), Histogram::<u64>::new(3).unwrap(), thread << 40);
                    barrier.wait();
                    while !stop.load(Ordering::Relaxed) {
                        batch.clear();
                        (at..at + BATCH as u64).for_each(|i| assert!(batch.push(&mix(mix(i) % keys).to_le_bytes())));
                        at += BATCH as u64;
                        let begin = Instant::now();
                        session
                            .rmw_batch(&batch, |_, slot| {
                                let (KvSlot::Initial(value) | KvSlot::InPlace(value)) = slot;
                                value[0] = value[0].wrapping_add(1);
                            })
                            .unwrap();
                        own.record(begin.elapsed().as_nanos() as u64).unwrap();
                    }
                    done.fetch_add(at - (thread << 40), Ordering::Relaxed);
                    latencies.lock().unwrap().add(own).unwrap();
                });
            }
            barrier.wait();
            let start = Instant::now();
            let mut next = Duration::from_secs_f64(every / 2.0);
            let run = seconds.max(if checkpoints { every * 3.0 } else { 0.0 });
            while start.elapsed().as_secs_f64() < run {
                if checkpoints && start.elapsed() >= next {
                    next += Duration::from_secs_f64(every);
                    let begin = Instant::now();
                    kv.checkpoint(Duration::from_secs(60)).unwrap();
                    longest = longest.max(begin.elapsed());
                    taken += 1;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            elapsed = start.elapsed().as_secs_f64();
            stop.store(true, Ordering::Relaxed);
        });
        let rate = done.into_inner() as f64 / elapsed;
        rates.push(rate);
        let h = latencies.into_inner().unwrap();
        let at = |q: f64| h.value_at_quantile(q) as f64 / 1e3;
        println!(
            "  {:<24} {:>6.2} M/s   a batch: p50 {:>7.1}  p99 {:>8.1}  p99.9 {:>9.1}  max {:>10.1} µs   {taken} checkpoints, the longest {} ms",
            if checkpoints { format!("a checkpoint each {every} s") } else { "no checkpoints".to_owned() },
            rate / 1e6,
            at(0.5),
            at(0.99),
            at(0.999),
            h.max() as f64 / 1e3,
            longest.as_millis()
        );
    }
    println!("  with checkpoints {:+.1} %", (rates[1] / rates[0] - 1.0) * 100.0);
}

/// How long one core takes until all records are back.
fn recovery_part(keys: u64) {
    let timed = |what: &str, call: &mut dyn FnMut() -> u64| {
        let (start, cpu) = (Instant::now(), cpu_ns());
        let records = call();
        let (wall, cpu) = (start.elapsed().as_secs_f64(), (cpu_ns() - cpu) as f64 / 1e9);
        println!(
            "  {what:<52} {records} records in {wall:.2} s ({cpu:.2} s of CPU, {:.0} ns a record)",
            wall * 1e9 / records as f64
        );
        assert_eq!(records, keys);
    };
    println!("recovery, {keys} keys of 8 B with values of 8 B, files in the page cache");
    let directory = tempfile::tempdir().unwrap();
    {
        let mut shard = Shard::new(ShardOptions { budget_bytes: usize::MAX });
        let mut rows = Rows::new();
        fill(&mut shard, &mut rows, keys);
        let mut checkpoints = Checkpoints::open(FileDevice::open(directory.path()).unwrap(), 2).unwrap();
        for version in 1..3 {
            let kind = shard.begin_capture(version, (version > 1).then_some(1)).unwrap();
            let (mut writer, mut out) = (checkpoints.begin(version, VNODES).unwrap(), Vec::new());
            writer.begin_all(kind);
            while shard.capture_slice(1 << 20, &mut out) {
                out.drain(..).for_each(|block| writer.push(&block).unwrap());
            }
            out.drain(..).for_each(|block| writer.push(&block).unwrap());
            writer.commit(shard.point(TABLE, 8).len() as u64, b"").unwrap();
            // A tenth of the keys changes before the second, which so is a layer of changes.
            for from in (0..keys / 10).step_by(BATCH) {
                rows.update(&mut shard, (from..from + BATCH as u64).map(|i| i * 10 % keys));
            }
        }
    }
    for version in [1, 2] {
        timed(&format!("blocks by vnode, {version} layer(s)"), &mut || {
            let mut checkpoints = Checkpoints::open(FileDevice::open(directory.path()).unwrap(), 2).unwrap();
            let checkpoint = checkpoints.load(version).unwrap();
            let mut shard = Shard::new(ShardOptions { budget_bytes: usize::MAX });
            checkpoints.restore(&checkpoint, &mut shard, 0..VNODES, |_, _| true).unwrap();
            shard.point(TABLE, 8).len() as u64
        });
    }
    let directory = tempfile::tempdir().unwrap();
    let open = || open_pages(Box::new(FileDevice::open(directory.path()).unwrap()));
    let mut shard = open();
    fill(&mut shard, &mut Rows::new(), keys);
    shard.checkpoint_now(1, b"").unwrap();
    drop(shard);
    timed("pages of a shard (fold-over)", &mut || open().point(TABLE, 8).len() as u64);
    let directory = tempfile::tempdir().unwrap();
    let open = || ShardedKv::open(FileDevice::open(directory.path()).unwrap(), KvOptions::new(2)).unwrap();
    {
        let kv = open();
        let (mut session, mut batch) = (kv.start_session().unwrap(), KvKeys::default());
        for from in (0..keys).step_by(BATCH) {
            batch.clear();
            (from..keys.min(from + BATCH as u64)).for_each(|k| assert!(batch.push(&mix(k).to_le_bytes())));
            session.upsert_batch(&batch, |_| &[1; 8]).unwrap();
        }
        kv.checkpoint(Duration::from_secs(60)).unwrap();
    }
    timed("concurrent store", &mut || open().len().unwrap() as u64);
}

fn numbers<T: std::str::FromStr>(arguments: &[String], name: &str, usual: Vec<T>) -> Vec<T> {
    let at = arguments.iter().position(|a| a == name);
    at.and_then(|at| arguments.get(at + 1)).map_or(usual, |list| list.split(',').filter_map(|n| n.parse().ok()).collect())
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let seconds = numbers(&arguments, "--seconds", vec![10.0])[0];
    let every = numbers(&arguments, "--every", vec![10.0])[0];
    // What a shard captures between two batches: well below 50 µs.
    let slice_kib = numbers(&arguments, "--slice-kib", vec![16])[0];
    let devices = numbers(&arguments, "--devices", ["io_uring", "io_uring+direct", "threads"].map(str::to_owned).to_vec());
    let parts = numbers(&arguments, "--part", ["shard", "pages", "kv", "recovery"].map(str::to_owned).to_vec());
    for keys in numbers(&arguments, "--keys", vec![10_000_000_u64]) {
        for part in &parts {
            match part.as_str() {
                "shard" => shard_part(keys, seconds, every, slice_kib << 10),
                "pages" => devices.iter().for_each(|device| pages_part(device, keys, seconds, every)),
                "kv" => numbers(&arguments, "--threads", vec![2, 12]).into_iter().for_each(|t| kv_part(keys, t, seconds, every)),
                "recovery" => recovery_part(keys),
                other => println!("no part is named {other}"),
            }
        }
    }
}
