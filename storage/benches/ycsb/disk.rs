//! YCSB on shards that may hold a quarter of their records in memory, and the index: each thread owns a shard and its device.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tiderace_storage::{
    DeviceOptions, Operation, Shard, ShardOptions, StoreOptions, Submitted, TableId, TableLayout, Ticket, open_device_with,
};
use twox_hash::XxHash3_64;

use super::{Choice, Plan, Workload, mix};

const TABLE: TableId = TableId(0);
/// Operations of a thread that wait for the device at once.
const PENDING_MAX: usize = 128;
/// What a key takes of the budget beside its record: its place in the index, which stays in memory, and what is never filled of the budget.
const INDEX_BYTES: u64 = 24;
/// A shard that accepts nothing for so long has too little memory for its keys.
const STUCK: Duration = Duration::from_secs(20);

fn options(device: &str) -> DeviceOptions {
    DeviceOptions { io_uring: device.contains("io_uring"), direct_io: device.contains("direct"), ..DeviceOptions::default() }
}

/// A thread's work: operations are submitted until it is over; each is timed from its submission to its answer.
struct Driver<'a> {
    shard: &'a mut Shard,
    value_bytes: usize,
    began: HashMap<Ticket, Instant>,
    latencies: Histogram<u64>,
    done: u64,
}

impl Driver<'_> {
    fn settle(&mut self, wait: Duration) {
        self.shard.maintain().unwrap();
        self.shard.complete_pending(wait);
        let mut completed = Vec::new();
        self.shard.take_completed(&mut completed);
        for (ticket, answer) in completed {
            answer.unwrap();
            let began = self.began.remove(&ticket).unwrap();
            self.latencies.record(began.elapsed().as_nanos() as u64).unwrap();
            self.done += 1;
        }
    }

    fn run(&mut self, key: u64, mut make: impl FnMut() -> Operation) {
        let key = mix(key).to_le_bytes();
        let begin = Instant::now();
        loop {
            match self.shard.submit(TABLE, self.value_bytes, XxHash3_64::oneshot(&key), &key, make()) {
                Ok(Submitted::Done(_)) => {
                    self.latencies.record(begin.elapsed().as_nanos() as u64).unwrap();
                    self.done += 1;
                }
                Ok(Submitted::Pending(ticket)) => drop(self.began.insert(ticket, begin)),
                Err(busy) => {
                    assert!(begin.elapsed() < STUCK, "{busy} after {} operations, {:?}", self.done, self.shard.store_counts());
                    self.settle(Duration::from_millis(1));
                    continue;
                }
            }
            break;
        }
        if self.began.len() >= PENDING_MAX {
            self.settle(Duration::from_micros(200));
        }
    }

    fn drain(&mut self) {
        while !self.began.is_empty() {
            self.settle(Duration::from_millis(1));
        }
    }
}

fn print(what: &str, done: u64, seconds: f64, cpu: f64, h: &Histogram<u64>) {
    println!(
        "{what:<72} {:>8.1} k/s {:>7.0} ns CPU/op   p50 {:>7.1}  p99 {:>8.1}  p99.9 {:>9.1}  max {:>10.1} µs",
        done as f64 / seconds / 1e3,
        cpu * 1e9 / done.max(1) as f64,
        h.value_at_quantile(0.5) as f64 / 1e3,
        h.value_at_quantile(0.99) as f64 / 1e3,
        h.value_at_quantile(0.999) as f64 / 1e3,
        h.max() as f64 / 1e3
    );
}

/// All workloads on `data_bytes` of records, with a quarter of that and room for the index as the budget, both spread over the threads.
pub(super) fn part(device: &str, data_bytes: u64, value_bytes: usize, threads: &[usize], seconds: f64) {
    // Header, value and key, each padded to eight bytes.
    let record_bytes = 16 + value_bytes.next_multiple_of(8) as u64 + 8;
    let name = |what: &str, how: &str| format!("{what:<4} 4x memory, {value_bytes:>3} B, {device}, {how}");
    for count in threads {
        let each = data_bytes / record_bytes / *count as u64;
        let budget_bytes = (data_bytes / 4 / *count as u64 + each * INDEX_BYTES) as usize;
        let directories: Vec<_> = (0..*count).map(|_| tempfile::tempdir().unwrap()).collect();
        let shards: Vec<Mutex<Shard>> = directories
            .iter()
            .map(|directory| {
                let opened = open_device_with(directory.path(), &options(device)).unwrap();
                println!("     {:?}, {:?}, budget {} MiB a thread", opened.backend, opened.direct_io, budget_bytes >> 20);
                let (layout, store) = (TableLayout::for_device(), StoreOptions::default());
                Mutex::new(Shard::with_device(ShardOptions { budget_bytes }, layout, opened.device, store).unwrap())
            })
            .collect();
        let together = |what: &str, work: &(dyn Fn(usize, &mut Driver<'_>) + Sync)| {
            let start = Instant::now();
            let all = Mutex::new((0, 0.0, Histogram::new(3).unwrap()));
            std::thread::scope(|scope| {
                for (thread, shard) in shards.iter().enumerate() {
                    let all = &all;
                    scope.spawn(move || {
                        let mut shard = shard.lock().unwrap();
                        let mut driver = Driver {
                            shard: &mut shard,
                            value_bytes,
                            began: HashMap::new(),
                            latencies: Histogram::new(3).unwrap(),
                            done: 0,
                        };
                        let begin_cpu = thread_cpu();
                        work(thread, &mut driver);
                        driver.drain();
                        assert!(driver.shard.used_bytes() <= driver.shard.budget_bytes());
                        let mut all = all.lock().unwrap();
                        all.0 += driver.done;
                        all.1 += thread_cpu() - begin_cpu;
                        all.2.add(&driver.latencies).unwrap();
                    });
                }
            });
            let (done, cpu, latencies) = all.into_inner().unwrap();
            print(&name(what, &format!("{count} threads")), done, start.elapsed().as_secs_f64(), cpu, &latencies);
        };
        together("load", &|_, driver| {
            for key in 0..each {
                driver.run(key, || Operation::Upsert(vec![7; value_bytes]));
                if key % 64 == 0 {
                    driver.settle(Duration::ZERO);
                }
            }
        });
        for (spread, choice) in [("uniform", Choice::Uniform), ("zipfian", Choice::zipfian(each))] {
            for (letter, workload) in [("A", Workload::A), ("B", Workload::B), ("C", Workload::C), ("F", Workload::F)] {
                together(&format!("{letter} {spread}"), &|thread, driver| {
                    let plan = Plan::new(workload, choice, each, thread as u64);
                    let end = Instant::now() + Duration::from_secs_f64(seconds);
                    let mut at = 0;
                    while at % 16 != 0 || Instant::now() < end {
                        let i = at % plan.keys.len();
                        driver.run(plan.keys[i], || match (plan.reads[i], workload) {
                            (true, _) => Operation::Read,
                            (false, Workload::F) => Operation::Rmw(Box::new(move |old| {
                                let mut value = old.map_or_else(|| vec![0; value_bytes], <[u8]>::to_vec);
                                value[0] = value[0].wrapping_add(1);
                                value
                            })),
                            (false, _) => Operation::Upsert(vec![9; value_bytes]),
                        });
                        at += 1;
                        if at % 64 == 0 {
                            driver.settle(Duration::ZERO);
                        }
                    }
                });
            }
        }
        for shard in &shards {
            let shard = shard.lock().unwrap();
            println!("     {:?}", shard.store_counts());
        }
    }
}

/// What this thread has computed; 0 where the system doesn't tell.
fn thread_cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}
