//! One thread's table, a plain hash map and bare memory, measured in turn, round by round: what else the machine does hits all alike.
//!
//! Figures are of CPU time, the median and the least of the rounds, and ratios are medians of ratios within a round.

use std::hint::black_box;

use hashbrown::HashTable;
use tiderace_storage::{Entry, RecordRef, Shard, ShardOptions};

use super::owner::{Keys, TABLE, hash, load};
use super::{BATCH, Choice, Plan, Random, Workload, mix};

/// Bytes of the chase: what ten million keys take, and far more than any cache.
const CHASE_BYTES: usize = 512 << 20;
const LINE_BYTES: usize = 64;

/// CPU time of this thread in nanoseconds.
#[expect(unsafe_code, reason = "the clock of a thread is behind a C call")]
fn cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid and nobody else's; the clock of the calling thread is always there.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Cache lines in one ring, in no order, on huge pages where the system gives them.
struct Chase {
    lines: Vec<[u64; LINE_BYTES / 8]>,
    at: usize,
}

impl Chase {
    #[expect(unsafe_code, reason = "asking for huge pages is a C call")]
    fn new() -> Self {
        let count = CHASE_BYTES / LINE_BYTES;
        let mut lines: Vec<[u64; LINE_BYTES / 8]> = Vec::with_capacity(count);
        // Whole pages inside of the vector's memory.
        let (start, end) = (lines.as_ptr() as usize, lines.as_ptr() as usize + CHASE_BYTES);
        let (start, end) = (start.next_multiple_of(4096), end / 4096 * 4096);
        // SAFETY: the range is ours, and nobody has written to it yet; the call is advice and changes no content.
        let _ = unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        lines.extend((0..count as u64).map(|i| [i; LINE_BYTES / 8]));
        // Sattolo's shuffle: one ring through all.
        let mut random = Random(7);
        for i in (1..count).rev() {
            let other = (random.next() % i as u64) as usize;
            let (a, b) = (lines[i][0], lines[other][0]);
            (lines[i][0], lines[other][0]) = (b, a);
        }
        Self { lines, at: 0 }
    }

    /// Loads of which each tells where the next one is.
    fn dependent(&mut self, loads: usize) {
        for _ in 0..loads {
            self.at = self.lines[self.at][0] as usize;
        }
        black_box(self.at);
    }

    /// Loads that don't wait for each other.
    fn independent(&mut self, loads: usize, random: &mut Random) {
        let mask = self.lines.len() - 1;
        let sum = (0..loads).fold(0_u64, |sum, _| sum.wrapping_add(self.lines[random.next() as usize & mask][1]));
        black_box(sum);
    }
}

/// Keys of the rounds, so many that they aren't in a cache when they come again.
struct Rounds {
    plan: Plan,
    at: usize,
}

impl Rounds {
    fn next(&mut self, count: usize) -> std::ops::Range<usize> {
        if self.at + count > self.plan.keys.len() {
            self.at = 0;
        }
        self.at += count;
        self.at - count..self.at
    }
}

/// One line of the table that is printed.
struct Line {
    what: &'static str,
    ns: Vec<f64>,
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

pub(super) fn part(keys: u64, value_bytes: usize, rounds: usize) {
    let operations = 1 << 19;
    let mut shard = Shard::new(ShardOptions { budget_bytes: usize::MAX });
    load(&mut shard, keys, value_bytes);
    let mut map: HashTable<([u8; 8], [u8; 8])> = HashTable::with_capacity(keys as usize);
    for key in 0..keys {
        let key = mix(key).to_le_bytes();
        map.insert_unique(hash(&key), (key, [7; 8]), |(k, _)| hash(k));
    }
    let mut chase = Chase::new();
    let mut random = Random(11);
    let mut reads = Rounds { plan: Plan::new(Workload::F, Choice::Uniform, keys, 3), at: 0 };
    let mut batch = Keys::default();
    let (mut found, mut entries): (Vec<Option<RecordRef>>, Vec<Entry>) = (Vec::new(), Vec::new());
    let names = [
        "memory: loads that wait for each other",
        "memory: loads that don't",
        "hashbrown, reads",
        "table, reads, one by one",
        "table, reads, in batches",
        "hashbrown, changes",
        "table, changes, one by one",
        "table, changes, in batches",
        "table, puts, one by one",
    ];
    let value = vec![3; value_bytes];
    let mut lines = names.map(|what| Line { what, ns: Vec::new() });
    for _ in 0..rounds {
        for (which, line) in lines.iter_mut().enumerate() {
            let range = reads.next(operations);
            let keys = &reads.plan.keys[range];
            let begin = cpu_ns();
            match which {
                0 => chase.dependent(operations / 4),
                1 => chase.independent(operations, &mut random),
                2 => {
                    for key in keys {
                        let key = mix(*key).to_le_bytes();
                        black_box(map.find(hash(&key), |(k, _)| *k == key).map(|(_, v)| v[0]));
                    }
                }
                3 => {
                    let table = shard.point(TABLE, value_bytes);
                    for key in keys {
                        let key = mix(*key).to_le_bytes();
                        black_box(table.get(hash(&key), &key).map(|v| v[0]));
                    }
                }
                4 => {
                    let table = shard.point(TABLE, value_bytes);
                    for keys in keys.chunks(BATCH) {
                        batch.clear();
                        keys.iter().for_each(|key| batch.push(*key));
                        found.clear();
                        table.find(&batch.as_batch(), &mut found);
                        let sum: u64 = found.iter().flatten().map(|record| u64::from(table.value(*record)[0])).sum();
                        black_box(sum);
                    }
                }
                5 => {
                    for key in keys {
                        let key = mix(*key).to_le_bytes();
                        if let Some((_, value)) = map.find_mut(hash(&key), |(k, _)| *k == key) {
                            value[0] = value[0].wrapping_add(1);
                        }
                    }
                }
                6 => {
                    let table = shard.point(TABLE, value_bytes);
                    for key in keys {
                        let key = mix(*key).to_le_bytes();
                        table.change(hash(&key), &key, |value, _| value[0] = value[0].wrapping_add(1));
                    }
                }
                7 => {
                    let table = shard.point(TABLE, value_bytes);
                    for keys in keys.chunks(BATCH) {
                        batch.clear();
                        keys.iter().for_each(|key| batch.push(*key));
                        entries.clear();
                        table.entries(&batch.as_batch(), &mut entries);
                        for entry in &entries {
                            let value = table.value_mut(entry.record);
                            value[0] = value[0].wrapping_add(1);
                        }
                    }
                }
                _ => {
                    let table = shard.point(TABLE, value_bytes);
                    for key in keys {
                        let key = mix(*key).to_le_bytes();
                        black_box(table.put(hash(&key), &key, &value));
                    }
                }
            }
            let ns = (cpu_ns() - begin) as f64;
            line.ns.push(ns / if which == 0 { operations / 4 } else { operations } as f64);
        }
    }
    println!(
        "{keys} keys of 8 B, values of {value_bytes} B (hashbrown's of 8), uniform, 1 thread, {rounds} rounds of {operations} operations, CPU time"
    );
    let ratio = |a: &Line, b: &Line| median(a.ns.iter().zip(&b.ns).map(|(a, b)| a / b).collect());
    for (i, line) in lines.iter().enumerate() {
        let least = line.ns.iter().copied().fold(f64::INFINITY, f64::min);
        print!("  {:<40} median {:>6.1}  least {least:>6.1} ns an operation", line.what, median(line.ns.clone()));
        if i > 2 {
            let own = if i < 5 { 2 } else { 5 };
            print!("   x hashbrown {:>4.2}", ratio(line, &lines[own]));
        }
        if i > 0 {
            print!("   x chase {:>4.2}", ratio(line, &lines[0]));
        }
        println!();
    }
}
