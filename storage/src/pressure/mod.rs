//! Memory of the whole process: when the system runs short, shards hold less.
//!
//! ```text
//! cgroup limit, usage, PSI ──sampled by a thread──▶ relief, 0 … 500 thousandths ──▶ each shard's turn: less mutable, more written, more evicted
//! ```
//! A shard's budget is what it may have when nobody else needs memory. Near the limit of the process's group, or when its threads begin to wait
//! for memory, shards with a device aim lower, by up to half. Budgets stay hard in any case; this only makes shards stop using what they may.

mod cgroup;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use cgroup::Group;
pub use cgroup::MemoryReading;

/// The most of their budgets that shards give up, in thousandths.
pub const RELIEF_PERMILLE_MAX: u32 = 500;
/// How often the system is asked at most.
const INTERVAL_MIN: Duration = Duration::from_millis(1);

/// When shards begin to give memory back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PressureOptions {
    /// Where groups are told of. Default: `/sys/fs/cgroup`.
    pub cgroup_root: PathBuf,
    /// What names this process's group. Default: `/proc/self/cgroup`.
    pub membership: PathBuf,
    /// How often the system is asked. Default: 250 ms.
    pub interval: Duration,
    /// The share of the limit at which shards begin to hold less, in thousandths. Default: 850.
    pub begin_permille: u32,
    /// The share of the limit at which they hold the least. Default: 970.
    pub full_permille: u32,
    /// The share of the last ten seconds in which threads waited for memory, at which shards begin to hold less, in thousandths. Default: 10.
    pub stalled_begin_permille: u32,
    /// The share at which they hold the least. Default: 100.
    pub stalled_full_permille: u32,
}

impl Default for PressureOptions {
    fn default() -> Self {
        Self {
            cgroup_root: PathBuf::from("/sys/fs/cgroup"),
            membership: PathBuf::from("/proc/self/cgroup"),
            interval: Duration::from_millis(250),
            begin_permille: 850,
            full_permille: 970,
            stalled_begin_permille: 10,
            stalled_full_permille: 100,
        }
    }
}

/// From nothing at `begin` to [`RELIEF_PERMILLE_MAX`] at `full`, straight.
fn between(at: u64, begin: u32, full: u32) -> u32 {
    let (begin, full) = (u64::from(begin), u64::from(full.max(begin + 1)));
    let part = at.clamp(begin, full) - begin;
    (part * u64::from(RELIEF_PERMILLE_MAX) / (full - begin)) as u32
}

/// How much of their budgets shards should give up, in thousandths: 0 to [`RELIEF_PERMILLE_MAX`].
#[must_use]
pub fn relief_permille(reading: &MemoryReading, options: &PressureOptions) -> u32 {
    let used = reading.limit_bytes.filter(|limit| *limit > 0).map_or(0, |limit| {
        let share = u128::from(reading.working_bytes) * 1000 / u128::from(limit);
        between(u64::try_from(share).unwrap_or(u64::MAX), options.begin_permille, options.full_permille)
    });
    let stalled = reading
        .stalled_permille
        .map_or(0, |share| between(share.into(), options.stalled_begin_permille, options.stalled_full_permille));
    used.max(stalled)
}

#[derive(Debug, Default)]
struct Shared {
    relief_permille: AtomicU32,
    is_watching: AtomicBool,
    working_bytes: AtomicU64,
    limit_bytes: AtomicU64,
    stalled_permille: AtomicU64,
    samples: AtomicU64,
    samples_failed: AtomicU64,
    relieved_turns: AtomicU64,
    written_bytes: AtomicU64,
    evicted_bytes: AtomicU64,
}

/// What shards are told of the process's memory, and what they did for it. Cheap to clone, and to ask: one load.
#[derive(Clone, Debug, Default)]
pub struct PressureGauge(Arc<Shared>);

/// A number to show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PressureMetric {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
    /// Whether it only grows.
    pub is_counter: bool,
    /// It.
    pub value: u64,
}

impl PressureGauge {
    /// How much of their budgets shards should give up, in thousandths.
    #[must_use]
    #[inline]
    pub fn relief_permille(&self) -> u32 {
        // Relaxed: a hint that is right some turns later too.
        self.0.relief_permille.load(Ordering::Relaxed)
    }

    /// Tells shards by hand; at most [`RELIEF_PERMILLE_MAX`]. A worker that samples overwrites it.
    pub fn set_relief_permille(&self, permille: u32) {
        self.0.relief_permille.store(permille.min(RELIEF_PERMILLE_MAX), Ordering::Relaxed);
    }

    /// What is left of so many bytes.
    #[inline]
    pub(crate) fn reduced(&self, bytes: usize) -> usize {
        bytes - (bytes / 1000).saturating_mul(self.relief_permille() as usize)
    }

    /// A turn in which a shard had to make room.
    pub(crate) fn note_turn(&self, written_bytes: u64, evicted_bytes: u64) {
        self.0.relieved_turns.fetch_add(1, Ordering::Relaxed);
        self.0.written_bytes.fetch_add(written_bytes, Ordering::Relaxed);
        self.0.evicted_bytes.fetch_add(evicted_bytes, Ordering::Relaxed);
    }

    /// Everything there is to show, under names of `tiderace_storage_memory_…`.
    #[must_use]
    pub fn metrics(&self) -> Vec<PressureMetric> {
        let s = &*self.0;
        let of = |name, help, is_counter, value: &AtomicU64| PressureMetric {
            name,
            help,
            is_counter,
            value: value.load(Ordering::Relaxed),
        };
        vec![
            PressureMetric {
                name: "tiderace_storage_memory_relief_permille",
                help: "Thousandths of their budgets that shards give up because the process is short of memory",
                is_counter: false,
                value: self.relief_permille().into(),
            },
            PressureMetric {
                name: "tiderace_storage_memory_is_watched",
                help: "1 where the system tells of the memory of the process's group",
                is_counter: false,
                value: s.is_watching.load(Ordering::Relaxed).into(),
            },
            of(
                "tiderace_storage_memory_working_bytes",
                "Memory of the process's group without idle file pages",
                false,
                &s.working_bytes,
            ),
            of(
                "tiderace_storage_memory_limit_bytes",
                "memory.high or memory.max of the group, the lower; 0 for none",
                false,
                &s.limit_bytes,
            ),
            of(
                "tiderace_storage_memory_stalled_permille",
                "Thousandths of the last ten seconds in which threads waited for memory",
                false,
                &s.stalled_permille,
            ),
            of("tiderace_storage_memory_samples_total", "How often the system was asked", true, &s.samples),
            of("tiderace_storage_memory_samples_failed_total", "How often it gave no answer", true, &s.samples_failed),
            of(
                "tiderace_storage_memory_relieved_turns_total",
                "Turns of shards in which memory had to be made free",
                true,
                &s.relieved_turns,
            ),
            of(
                "tiderace_storage_memory_written_bytes_total",
                "Bytes of pages given to the device to make memory free",
                true,
                &s.written_bytes,
            ),
            of(
                "tiderace_storage_memory_evicted_bytes_total",
                "Bytes of pages whose memory was made free",
                true,
                &s.evicted_bytes,
            ),
        ]
    }

    /// Asks the system once.
    fn sample(&self, group: &Group, options: &PressureOptions) {
        let s = &*self.0;
        s.samples.fetch_add(1, Ordering::Relaxed);
        match group.read() {
            Ok(reading) => {
                s.working_bytes.store(reading.working_bytes, Ordering::Relaxed);
                s.limit_bytes.store(reading.limit_bytes.unwrap_or(0), Ordering::Relaxed);
                s.stalled_permille.store(reading.stalled_permille.unwrap_or(0).into(), Ordering::Relaxed);
                self.set_relief_permille(relief_permille(&reading, options));
            }
            // Nothing is known: shards go by their budgets alone.
            Err(_) => {
                s.samples_failed.fetch_add(1, Ordering::Relaxed);
                self.set_relief_permille(0);
            }
        }
    }
}

/// The thread that asks the system. Dropping it ends the thread; shards go by their budgets alone then.
#[derive(Debug)]
pub struct PressureWorker {
    gauge: PressureGauge,
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl PressureWorker {
    /// Starts it. Where the system tells nothing of a group's memory, or gives no thread, the gauge says so and stays at no relief.
    #[must_use]
    pub fn start(options: PressureOptions) -> Self {
        let (gauge, stop) = (PressureGauge::default(), Arc::new((Mutex::new(false), Condvar::new())));
        let Some(group) = Group::find(&options.cgroup_root, &options.membership) else {
            tracing::info!(root = %options.cgroup_root.display(), "no memory controller: shards go by their budgets alone");
            return Self { gauge, stop, thread: None };
        };
        gauge.sample(&group, &options);
        let (own, own_stop) = (gauge.clone(), Arc::clone(&stop));
        let spawned = std::thread::Builder::new().name("storage-memory".to_owned()).spawn(move || {
            let (stopped, wake) = &*own_stop;
            let mut is_stopped = stopped.lock().unwrap_or_else(PoisonError::into_inner);
            while !*is_stopped {
                let interval = options.interval.max(INTERVAL_MIN);
                (is_stopped, _) = wake.wait_timeout(is_stopped, interval).unwrap_or_else(PoisonError::into_inner);
                if !*is_stopped {
                    own.sample(&group, &options);
                }
            }
            own.set_relief_permille(0);
        });
        match spawned {
            Ok(thread) => {
                gauge.0.is_watching.store(true, Ordering::Relaxed);
                Self { gauge, stop, thread: Some(thread) }
            }
            Err(e) => {
                tracing::warn!(because = %e, "no thread to watch memory: shards go by their budgets alone");
                gauge.set_relief_permille(0);
                Self { gauge, stop, thread: None }
            }
        }
    }

    /// For shards, and for who shows numbers.
    #[must_use]
    pub fn gauge(&self) -> PressureGauge {
        self.gauge.clone()
    }
}

impl Drop for PressureWorker {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // One that panicked has nothing more to say.
            let _ = thread.join();
        }
    }
}

/// What the system says now of the memory of this process's group; `None` where it says nothing.
#[must_use]
pub fn read_memory(cgroup_root: &Path, membership: &Path) -> Option<MemoryReading> {
    Group::find(cgroup_root, membership)?.read().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Instant;

    use super::*;
    use crate::{KeyBatch, Residency, Shard, ShardOptions, SimDevice, StoreOptions, TableId, TableLayout};

    fn reading(working_bytes: u64, limit_bytes: Option<u64>, stalled_permille: Option<u32>) -> MemoryReading {
        MemoryReading { working_bytes, limit_bytes, stalled_permille }
    }

    #[test]
    fn relief_grows_with_usage_and_with_stalls_and_the_stronger_counts() {
        let options = PressureOptions::default();
        for (reading, expected) in [
            (reading(u64::MAX, None, None), 0),
            (reading(0, Some(0), None), 0),
            (reading(849, Some(1000), None), 0),
            (reading(910, Some(1000), None), 250),
            (reading(970, Some(1000), None), 500),
            (reading(u64::MAX, Some(1), None), 500),
            (reading(1, Some(1000), Some(10)), 0),
            (reading(1, Some(1000), Some(55)), 250),
            (reading(860, Some(1000), Some(1000)), 500),
        ] {
            assert_eq!(relief_permille(&reading, &options), expected, "{reading:?}");
        }
        // Thresholds that make no sense don't divide by zero.
        let odd = PressureOptions { begin_permille: 900, full_permille: 900, ..options };
        assert_eq!(relief_permille(&reading(901, Some(1000), None), &odd), 500);
    }

    fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !is_so() {
            assert!(Instant::now() < until, "{what} within 30 s");
            std::thread::yield_now();
        }
    }

    fn metric(gauge: &PressureGauge, name: &str) -> u64 {
        gauge.metrics().iter().find(|m| m.name.ends_with(name)).unwrap().value
    }

    const TABLE: TableId = TableId(1);

    fn fill(shard: &mut Shard, from: u64, count: u64) {
        for key in from..from + count {
            let (hash, key) = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15), key.to_be_bytes());
            let batch = KeyBatch { bytes: &key, offsets: &[0, 8], hashes: &[hash] };
            loop {
                match shard.fetch(TABLE, 64, &batch) {
                    Ok(Residency::Resident) => break,
                    _ => {
                        shard.maintain().unwrap();
                        shard.complete_pending(Duration::from_millis(1));
                    }
                }
            }
            shard.point(TABLE, 64).entries(&batch, &mut Vec::new());
        }
    }

    fn settle(shard: &mut Shard) {
        for _ in 0..50 {
            shard.maintain().unwrap();
            shard.complete_pending(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_shard_holds_less_while_its_group_is_short_of_memory_and_all_its_records_stay() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("memory.current", "100000\n");
        write("memory.high", "1000000\n");
        let options = PressureOptions {
            cgroup_root: folder.path().to_owned(),
            membership: folder.path().join("none"),
            interval: Duration::from_millis(2),
            ..PressureOptions::default()
        };
        let worker = PressureWorker::start(options);
        let gauge = worker.gauge();
        assert_eq!((gauge.relief_permille(), metric(&gauge, "is_watched"), metric(&gauge, "limit_bytes")), (0, 1, 1_000_000));
        let budget_bytes = 1 << 20;
        let layout = TableLayout { page_bits: 13, ..TableLayout::for_device() };
        let store = StoreOptions { segment_bytes: 256 << 10, batch_bytes: 64 << 10, ..StoreOptions::default() };
        let device = Box::new(SimDevice::new(3));
        let mut shard = Shard::with_device(ShardOptions { budget_bytes }, layout, device, store).unwrap();
        shard.heed(gauge.clone());
        fill(&mut shard, 0, 9000);
        settle(&mut shard);
        let at_ease = shard.used_bytes();
        assert!(at_ease > budget_bytes / 2, "{at_ease} B");
        write("memory.current", "990000\n");
        wait_until("the worker notices", || gauge.relief_permille() == RELIEF_PERMILLE_MAX);
        settle(&mut shard);
        let short = shard.used_bytes();
        assert!(short < at_ease * 2 / 3, "{short} B of {at_ease}");
        assert!(metric(&gauge, "evicted_bytes_total") > 0 && metric(&gauge, "relieved_turns_total") > 0);
        // What can't be read is no reason to hold back.
        write("memory.current", "nonsense\n");
        wait_until("a sample fails", || metric(&gauge, "samples_failed_total") > 0);
        wait_until("relief ends", || gauge.relief_permille() == 0);
        fill(&mut shard, 9000, 3000);
        settle(&mut shard);
        assert!(shard.used_bytes() > short && shard.used_bytes() <= budget_bytes);
        write("memory.current", "100000\n");
        write("memory.pressure", "some avg10=20.00 avg60=0.00 avg300=0.00 total=1\n");
        wait_until("stalls count", || gauge.relief_permille() == RELIEF_PERMILLE_MAX);
        for key in 0..12_000_u64 {
            let hash = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            assert!(shard.point(TABLE, 64).get(hash, &key.to_be_bytes()).is_some(), "key {key}");
            if key % 64 == 0 {
                shard.maintain().unwrap();
            }
        }
        drop(worker);
        assert_eq!(gauge.relief_permille(), 0, "nobody watches any more");
    }

    #[test]
    fn without_a_controller_nothing_is_held_back_and_the_metrics_say_so() {
        let folder = tempfile::tempdir().unwrap();
        let options = PressureOptions { cgroup_root: folder.path().to_owned(), ..PressureOptions::default() };
        let worker = PressureWorker::start(options);
        assert_eq!((worker.gauge().relief_permille(), metric(&worker.gauge(), "is_watched")), (0, 0));
        let mut names: Vec<_> = worker.gauge().metrics().iter().map(|m| m.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), worker.gauge().metrics().len());
        assert!(names.iter().all(|n| n.starts_with("tiderace_storage_memory_")));
    }
}
