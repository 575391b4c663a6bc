//! What an operation on the tables costs, beside hashbrown and std's B-tree in the same run.
//!
//! `cargo bench -p tiderace-storage --bench tables -- [keys …]`, by default 250 000 and 10 000 000 keys of 8 bytes, values of 8 bytes, uniform.
//! The first column is CPU time of the thread, the second wall time, both a mean over all operations; percentiles are wall time over groups of 1024 operations for batched and unbatched calls alike (a clock read costs more
//! than an operation), except `single get`, where each operation has its own two clock reads, whose cost is printed beside.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::collections::BTreeMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::hint::black_box;
use std::ops::Bound;
use std::time::Instant;

use hashbrown::HashMap;
use hdrhistogram::Histogram;
use tiderace_storage::{KeyBatch, Shard, ShardOptions, TableId};

const GROUP: usize = 1024;

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The hash is given to the shard, so hashbrown gets one that costs nothing too.
#[derive(Default)]
struct Given(u64);
impl Hasher for Given {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64")
    }
    fn write_u64(&mut self, x: u64) {
        self.0 = mix(x);
    }
}

struct Trace {
    keys: Vec<u64>,
    bytes: Vec<u8>,
    offsets: Vec<u32>,
    hashes: Vec<u64>,
}

impl Trace {
    fn new(keys: Vec<u64>) -> Self {
        let bytes = keys.iter().flat_map(|k| k.to_le_bytes()).collect();
        let offsets = (0..=GROUP as u32).map(|i| i * 8).collect();
        let hashes = keys.iter().map(|k| mix(*k)).collect();
        Self { keys, bytes, offsets, hashes }
    }

    fn batch(&self, from: usize, len: usize) -> KeyBatch<'_> {
        KeyBatch { bytes: &self.bytes[from * 8..], offsets: &self.offsets[..=len], hashes: &self.hashes[from..from + len] }
    }
}

/// CPU time of this thread, where the system tells it.
fn cpu_ns() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(f64::NAN)
}

fn report(name: &str, total: usize, mut group: impl FnMut(usize, usize)) {
    let mut histogram = Histogram::<u64>::new(3).unwrap();
    let (begin, begin_cpu) = (Instant::now(), cpu_ns());
    let mut from = 0;
    while from < total {
        let len = GROUP.min(total - from);
        let start = Instant::now();
        group(from, len);
        histogram.record(start.elapsed().as_nanos() as u64).unwrap();
        from += len;
    }
    let ns = begin.elapsed().as_nanos() as f64 / total as f64;
    let cpu = (cpu_ns() - begin_cpu) / total as f64;
    let of = |q: f64| histogram.value_at_quantile(q) as f64 / GROUP as f64;
    println!(
        "{name:<34} {cpu:>8.1} cpu-ns/op {ns:>8.1} ns/op   groups of {GROUP}: p50 {:>7.1}  p99 {:>7.1}  p99.9 {:>7.1}  max {:>8.1} ns/op",
        of(0.5),
        of(0.99),
        of(0.999),
        histogram.max() as f64 / GROUP as f64
    );
}

fn point(count: usize) {
    println!("--- {count} keys, point");
    let mut seed = 42_u64;
    let mut random = move || {
        seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(seed)
    };
    let ops = count.clamp(2_000_000, 10_000_000);
    let load = Trace::new((0..count as u64).collect());
    let trace = Trace::new((0..ops).map(|_| random() % count as u64).collect());
    let mut shard = Shard::new(ShardOptions { budget_bytes: usize::MAX });
    let table = shard.point(TableId(0), 8);
    let mut entries = Vec::with_capacity(GROUP);
    report("load, batched entries", count, |from, len| {
        entries.clear();
        table.entries(&load.batch(from, len), &mut entries);
        for (i, entry) in entries.iter().enumerate() {
            assert!(entry.is_new);
            table.value_mut(entry.record).copy_from_slice(&load.keys[from + i].to_le_bytes());
        }
    });
    assert_eq!(table.len(), count);
    println!("{:<34} {:>8.1} B/key", "memory", table.used_bytes() as f64 / count as f64);
    let mut found = Vec::with_capacity(GROUP);
    let mut sum = 0_u64;
    for _ in 0..2 {
        report("find + read, batched", ops, |from, len| {
            found.clear();
            table.find(&trace.batch(from, len), &mut found);
            for (i, record) in found.iter().enumerate() {
                let value = u64::from_le_bytes(table.value(record.unwrap()).try_into().unwrap());
                assert_eq!(value, trace.keys[from + i]);
            }
        });
    }
    report("find + read, batches of 16", ops, |from, len| {
        for from in (from..from + len).step_by(16) {
            found.clear();
            table.find(&trace.batch(from, 16.min(ops - from)), &mut found);
            for record in &found {
                sum += u64::from(table.value(record.unwrap())[0]);
            }
        }
    });
    report("get, one by one, independent", ops, |from, len| {
        for i in from..from + len {
            let value = table.get(trace.hashes[i], &trace.bytes[i * 8..i * 8 + 8]).unwrap();
            sum += u64::from(value[0]);
        }
    });
    report("get, one by one, dependent", ops / 4, |from, len| {
        let mut last = 0_u64;
        for i in from..from + len {
            // The next key waits for the last value.
            let i = i + (last >> 63) as usize;
            last = u64::from_le_bytes(table.get(trace.hashes[i], &trace.bytes[i * 8..i * 8 + 8]).unwrap().try_into().unwrap());
        }
        sum += last;
    });
    report("rmw (+1), batched entries", ops, |from, len| {
        entries.clear();
        table.entries(&trace.batch(from, len), &mut entries);
        for entry in &entries {
            assert!(!entry.is_new);
            let value = table.value_mut(entry.record);
            let new = u64::from_le_bytes((&*value).try_into().unwrap()) + 1;
            value.copy_from_slice(&new.to_le_bytes());
        }
    });
    report("rmw (+1), one by one", ops, |from, len| {
        for i in from..from + len {
            entries.clear();
            table.entries(&trace.batch(i, 1), &mut entries);
            let value = table.value_mut(entries[0].record);
            let new = u64::from_le_bytes((&*value).try_into().unwrap()) + 1;
            value.copy_from_slice(&new.to_le_bytes());
        }
    });
    let mut histogram = Histogram::<u64>::new(3).unwrap();
    let mut clock = Histogram::<u64>::new(3).unwrap();
    for i in 0..1_000_000.min(ops) {
        let start = Instant::now();
        clock.record(start.elapsed().as_nanos() as u64).unwrap();
        let start = Instant::now();
        black_box(table.get(trace.hashes[i], &trace.bytes[i * 8..i * 8 + 8]));
        histogram.record(start.elapsed().as_nanos() as u64).unwrap();
    }
    println!(
        "single get, with the clock: p50 {} p99 {} p99.9 {} max {} ns; the clock alone: p50 {} p99 {} ns",
        histogram.value_at_quantile(0.5),
        histogram.value_at_quantile(0.99),
        histogram.value_at_quantile(0.999),
        histogram.max(),
        clock.value_at_quantile(0.5),
        clock.value_at_quantile(0.99)
    );
    report("churn: remove + entries of new", ops / 2, |from, len| {
        for i in from..from + len {
            let (hash, key) = (trace.hashes[i], &trace.bytes[i * 8..i * 8 + 8]);
            table.remove(hash, key);
            entries.clear();
            table.entries(&trace.batch(ops - 1 - i, 1), &mut entries);
        }
    });
    let start = Instant::now();
    shard.drop_table(TableId(0));
    println!("drop of the table: {:?}", start.elapsed());
    assert_eq!(shard.used_bytes(), 0);

    let mut map: HashMap<u64, u64, BuildHasherDefault<Given>> = HashMap::default();
    report("hashbrown: load", count, |from, len| {
        for key in &load.keys[from..from + len] {
            map.insert(*key, *key);
        }
    });
    report("hashbrown: get, independent", ops, |from, len| {
        for key in &trace.keys[from..from + len] {
            sum += map[key];
        }
    });
    report("hashbrown: rmw (+1)", ops, |from, len| {
        for key in &trace.keys[from..from + len] {
            *map.entry(*key).or_insert(0) += 1;
        }
    });
    println!("hashbrown: memory {:.1} B/key", map.allocation_size() as f64 / count as f64);
    black_box(sum);
}

fn ordered(count: usize) {
    println!("--- {count} keys, ordered");
    let keys: Vec<[u8; 16]> = (0..count as u64)
        .map(|i| {
            let mut key = [0; 16];
            key[..8].copy_from_slice(&(mix(i) % count as u64).to_be_bytes());
            key[8..].copy_from_slice(&mix(i + 77).to_be_bytes());
            key
        })
        .collect();
    let mut shard = Shard::new(ShardOptions { budget_bytes: usize::MAX });
    let table = shard.ordered(TableId(0));
    let mut sum = 0;
    report("put, random", count, |from, len| keys[from..from + len].iter().for_each(|k| table.put(k, &k[..8])));
    println!("{:<34} {:>8.1} B/key", "memory", table.used_bytes() as f64 / count as f64);
    report("get, random", count, |from, len| keys[from..from + len].iter().for_each(|k| sum += table.get(k).unwrap().len()));
    report("range of ~10, random", count / 10, |from, len| {
        for key in &keys[from..from + len] {
            sum += table.range(Bound::Included(key), Bound::Unbounded).take(10).map(|(_, v)| v.len()).sum::<usize>();
        }
    });
    let start = Instant::now();
    sum += table.range(Bound::Unbounded, Bound::Unbounded).map(|(k, v)| k.len() + v.len()).sum::<usize>();
    println!("scan of all: {:.1} ns/entry", start.elapsed().as_nanos() as f64 / count as f64);
    let start = Instant::now();
    let gone = table.remove_below(&(count as u64 / 2).to_be_bytes());
    println!("remove_below half: {gone} in {:?}", start.elapsed());
    let rest: Vec<_> = keys.iter().filter(|k| table.get(*k).is_some()).collect();
    report("remove, random", rest.len(), |from, len| rest[from..from + len].iter().for_each(|k| assert!(table.remove(*k))));

    let mut map: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    report("BTreeMap: put, random", count, |from, len| {
        for key in &keys[from..from + len] {
            map.insert(key.to_vec(), key[..8].to_vec());
        }
    });
    report("BTreeMap: get, random", count, |from, len| {
        keys[from..from + len].iter().for_each(|k| sum += map[k.as_slice()].len())
    });
    let start = Instant::now();
    sum += map.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
    println!("BTreeMap: scan of all: {:.1} ns/entry", start.elapsed().as_nanos() as f64 / count as f64);
    black_box(sum);
}

fn main() {
    let mut counts: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    if counts.is_empty() {
        counts = vec![250_000, 10_000_000];
    }
    for count in &counts {
        point(*count);
    }
    for count in &counts {
        ordered((*count).min(1_000_000));
    }
}
