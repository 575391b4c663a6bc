//! The table of a core under YCSB: each thread owns its shard, as operators do; beside a plain hash map per thread in the same run.

use std::sync::Mutex;
use std::time::Instant;

use hashbrown::HashTable;
use hdrhistogram::Histogram;
use tiderace_storage::{KeyBatch, Shard, ShardOptions, TableId};
use twox_hash::XxHash3_64;

use super::{BATCH, Choice, Outcome, Plan, Workload, cpu_seconds, measure, mix, print};

pub(super) const TABLE: TableId = TableId(0);

/// The hash of a key, as the engine has it.
pub(super) fn hash(key: &[u8]) -> u64 {
    XxHash3_64::oneshot(key)
}

/// Keys of a batch, gathered as an operator does from a column.
#[derive(Default)]
pub(super) struct Keys {
    bytes: Vec<u8>,
    offsets: Vec<u32>,
    hashes: Vec<u64>,
}

impl Keys {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.offsets.clear();
        self.offsets.push(0);
        self.hashes.clear();
    }

    pub(super) fn push(&mut self, key: u64) {
        let key = mix(key).to_le_bytes();
        self.bytes.extend_from_slice(&key);
        self.offsets.push(self.bytes.len() as u32);
        self.hashes.push(hash(&key));
    }

    pub(super) fn as_batch(&self) -> KeyBatch<'_> {
        KeyBatch { bytes: &self.bytes, offsets: &self.offsets, hashes: &self.hashes }
    }
}

pub(super) fn load(shard: &mut Shard, keys: u64, value_bytes: usize) -> Outcome {
    let (start, cpu, mut latencies) = (Instant::now(), cpu_seconds(), Histogram::new(3).unwrap());
    let (mut batch, mut entries) = (Keys::default(), Vec::new());
    let table = shard.point(TABLE, value_bytes);
    for from in (0..keys).step_by(BATCH) {
        let begin = Instant::now();
        batch.clear();
        (from..keys.min(from + BATCH as u64)).for_each(|k| batch.push(k));
        entries.clear();
        table.entries(&batch.as_batch(), &mut entries);
        for entry in &entries {
            table.value_mut(entry.record).fill(7);
        }
        latencies.record(begin.elapsed().as_nanos() as u64 / batch.hashes.len() as u64).unwrap();
    }
    assert_eq!(table.len() as u64, keys);
    Outcome { operations: keys, seconds: start.elapsed().as_secs_f64(), cpu_seconds: cpu_seconds() - cpu, latencies }
}

/// All workloads, with `keys` spread over the threads' shards.
pub(super) fn part(keys: u64, value_bytes: usize, threads: &[usize], seconds: f64) {
    let name = |what: &str, how: &str| format!("{what:<4} {keys:>9} keys {value_bytes:>4} B {how}");
    for count in threads {
        let each = keys / *count as u64;
        let shards: Vec<Mutex<Shard>> =
            (0..*count).map(|_| Mutex::new(Shard::new(ShardOptions { budget_bytes: usize::MAX }))).collect();
        let loads: Vec<Mutex<Option<Outcome>>> = shards.iter().map(|_| Mutex::new(None)).collect();
        std::thread::scope(|scope| {
            for (shard, outcome) in shards.iter().zip(&loads) {
                scope.spawn(move || *outcome.lock().unwrap() = Some(load(&mut shard.lock().unwrap(), each, value_bytes)));
            }
        });
        let first = loads[0].lock().unwrap().take().unwrap();
        print(&name("load", &format!("owner, {count} threads, batched (of one)")), &first);
        for (spread, choice) in [("uniform", Choice::Uniform), ("zipfian", Choice::zipfian(each))] {
            for (letter, workload) in [("A", Workload::A), ("B", Workload::B), ("C", Workload::C), ("F", Workload::F)] {
                let alone = measure(*count, seconds, |thread| {
                    let plan = Plan::new(workload, choice, each, thread as u64);
                    let mut shard = shards[thread].lock().unwrap();
                    move |at, histogram| {
                        let table = shard.point(TABLE, value_bytes);
                        for i in 0..64 {
                            let i = (at * 64 + i) % plan.keys.len();
                            let key = mix(plan.keys[i]).to_le_bytes();
                            let timed = i.is_multiple_of(64).then(Instant::now);
                            if plan.reads[i] {
                                std::hint::black_box(table.get(hash(&key), &key).map(|v| v[0]));
                            } else if workload == Workload::F {
                                table.change(hash(&key), &key, |value, _| value[0] = value[0].wrapping_add(1));
                            } else {
                                table.change(hash(&key), &key, |value, _| value.fill(9));
                            }
                            if let Some(timed) = timed {
                                histogram.record(timed.elapsed().as_nanos() as u64).unwrap();
                            }
                        }
                        64
                    }
                });
                print(&name(letter, &format!("{spread}, owner, {count} threads, alone")), &alone);
                let batched = measure(*count, seconds, |thread| {
                    let plan = Plan::new(workload, choice, each, thread as u64);
                    let mut shard = shards[thread].lock().unwrap();
                    let (mut reads, mut writes) = (Keys::default(), Keys::default());
                    let (mut found, mut entries, mut sum) = (Vec::new(), Vec::new(), 0_u64);
                    move |at, histogram| {
                        let begin = Instant::now();
                        let table = shard.point(TABLE, value_bytes);
                        reads.clear();
                        writes.clear();
                        for i in 0..BATCH {
                            let i = (at * BATCH + i) % plan.keys.len();
                            if plan.reads[i] { &mut reads } else { &mut writes }.push(plan.keys[i]);
                        }
                        found.clear();
                        table.find(&reads.as_batch(), &mut found);
                        for record in found.iter().flatten() {
                            sum += u64::from(table.value(*record)[0]);
                        }
                        entries.clear();
                        table.entries(&writes.as_batch(), &mut entries);
                        for entry in &entries {
                            let value = table.value_mut(entry.record);
                            if workload == Workload::F {
                                value[0] = value[0].wrapping_add(1);
                            } else {
                                value.fill(9);
                            }
                        }
                        std::hint::black_box(sum);
                        histogram.record(begin.elapsed().as_nanos() as u64 / BATCH as u64).unwrap();
                        BATCH as u64
                    }
                });
                print(&name(letter, &format!("{spread}, owner, {count} threads, batches of {BATCH}")), &batched);
            }
        }
        drop(shards);
        hashbrown_part(each, value_bytes, *count, seconds);
    }
}

/// The yardstick: key and value side by side in the map's own array, one array a thread.
fn hashbrown_part(each: u64, value_bytes: usize, count: usize, seconds: f64) {
    if value_bytes != 8 {
        return;
    }
    let tables: Vec<Mutex<HashTable<([u8; 8], [u8; 8])>>> = (0..count)
        .map(|_| {
            let mut table = HashTable::with_capacity(each as usize);
            for key in 0..each {
                let key = mix(key).to_le_bytes();
                table.insert_unique(hash(&key), (key, [7; 8]), |(k, _)| hash(k));
            }
            Mutex::new(table)
        })
        .collect();
    for (spread, choice) in [("uniform", Choice::Uniform), ("zipfian", Choice::zipfian(each))] {
        for (letter, workload) in [("C", Workload::C), ("F", Workload::F)] {
            let outcome = measure(count, seconds, |thread| {
                let plan = Plan::new(workload, choice, each, thread as u64);
                let mut table = tables[thread].lock().unwrap();
                move |at, histogram| {
                    for i in 0..64 {
                        let i = (at * 64 + i) % plan.keys.len();
                        let key = mix(plan.keys[i]).to_le_bytes();
                        let timed = i.is_multiple_of(64).then(Instant::now);
                        let found = table.find_mut(hash(&key), |(k, _)| *k == key);
                        if let Some((_, value)) = found {
                            if plan.reads[i] {
                                std::hint::black_box(value[0]);
                            } else {
                                value[0] = value[0].wrapping_add(1);
                            }
                        }
                        if let Some(timed) = timed {
                            histogram.record(timed.elapsed().as_nanos() as u64).unwrap();
                        }
                    }
                    64
                }
            });
            let keys = each * count as u64;
            print(
                &format!("{letter:<4} {keys:>9} keys {value_bytes:>4} B {spread}, hashbrown, {count} threads, alone"),
                &outcome,
            );
        }
    }
}
