//! What the tests of FASTER (C++ `compact_lookup_test`, `paging_test`, `in_memory_test`, `recovery_test`; C# `BasicDiskFASTERTests`,
//! `NeedCopyUpdateTests`, `LargeObjectTests`, `FasterLogTests`) and of oxifaster (`compaction`, `pending_io`, `index_growth`, `varlen`,
//! `conditional_insert`, `recovery`) ask of a store, asked of ours: the scenarios, each key checked. Shards hold a quarter or less of their
//! records in memory, on a simulated disk and on a real one by every device.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tiderace_storage::{
    Answer, Completion, Device, DeviceOp, DeviceOptions, FileDevice, Log, LogOptions, OpenAt, Operation, Shard, ShardOptions,
    SimDevice, StoreOptions, Submitted, TableId, TableLayout, Ticket, Token, open_device_with,
};

const TABLE: TableId = TableId(1);
const WIDTH: usize = 104;

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The same order for the same seed.
fn shuffled(mut keys: Vec<u64>, seed: u64) -> Vec<u64> {
    for i in (1..keys.len()).rev() {
        keys.swap(i, (mix(seed ^ i as u64) % (i as u64 + 1)) as usize);
    }
    keys
}

/// A simulated disk that outlives its shard.
#[derive(Clone, Debug)]
struct Disk(Arc<Mutex<SimDevice>>);

impl Device for Disk {
    fn submit(&mut self, op: DeviceOp) -> Token {
        self.0.lock().unwrap().submit(op)
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        self.0.lock().unwrap().poll(done);
    }

    fn wait(&mut self, timeout: Duration) {
        self.0.lock().unwrap().wait(timeout);
    }
}

struct Store {
    shard: Shard,
    /// Answers that are waited for, and what they must be.
    expected: BTreeMap<Ticket, (u64, Answer)>,
}

impl Store {
    fn open(device: Box<dyn Device + Send>, budget_bytes: usize) -> Self {
        let layout = TableLayout { page_bits: 13, segment_bits: 8, ..TableLayout::for_device() };
        let store = StoreOptions { shard: 2, segment_bytes: 256 << 10, batch_bytes: 32 << 10 };
        let (shard, _) = Shard::open(ShardOptions { budget_bytes }, layout, device, store, 2, OpenAt::Newest).unwrap();
        Self { shard, expected: BTreeMap::new() }
    }

    fn turn(&mut self) {
        self.shard.maintain().unwrap();
        self.shard.complete_pending(Duration::from_millis(1));
        assert!(self.shard.used_bytes() <= self.shard.budget_bytes());
        let mut done = Vec::new();
        self.shard.take_completed(&mut done);
        for (ticket, answer) in done {
            let (key, expected) = self.expected.remove(&ticket).unwrap();
            assert_eq!(answer.unwrap(), expected, "key {key}");
        }
    }

    fn submit(&mut self, key: u64, expected: Answer, make: impl Fn() -> Operation) {
        let mut busy = None;
        for _ in 0..10_000 {
            match self.shard.submit(TABLE, WIDTH, mix(key), &key.to_le_bytes(), make()) {
                Ok(Submitted::Done(answer)) => {
                    assert_eq!(answer, expected, "key {key}");
                    return;
                }
                Ok(Submitted::Pending(ticket)) => {
                    self.expected.insert(ticket, (key, expected));
                    if self.expected.len() >= 64 {
                        self.turn();
                    }
                    return;
                }
                Err(why) => {
                    busy = Some(why);
                    self.turn();
                }
            }
        }
        let (shard, waiting) = (&self.shard, self.expected.len());
        let (used, budget) = (shard.used_bytes(), shard.budget_bytes());
        panic!("key {key}: no room in 10000 turns: {used} B of {budget}, {busy:?}, {waiting} wait, {:?}", shard.store_counts());
    }

    fn upsert(&mut self, key: u64, value: &[u8], existed: bool) {
        self.submit(key, Answer::Done { existed }, || Operation::Upsert(value.to_vec()));
    }

    fn add(&mut self, key: u64, delta: u64, existed: bool) {
        self.submit(key, Answer::Done { existed }, move || {
            Operation::Rmw(Box::new(move |old| {
                let old = old.map_or(0, |v| u64::from_le_bytes(v[..8].try_into().unwrap()));
                stored(old.wrapping_add(delta))
            }))
        });
    }

    fn delete(&mut self, key: u64, existed: bool) {
        self.submit(key, Answer::Done { existed }, || Operation::Delete);
    }

    fn expect(&mut self, key: u64, value: Option<Vec<u8>>) {
        self.submit(key, Answer::Value(value), || Operation::Read);
    }

    fn settle(&mut self) {
        for _ in 0..20_000 {
            if self.expected.is_empty() {
                return;
            }
            self.turn();
        }
        panic!("{} operations wait for ever", self.expected.len());
    }

    /// Turns until compaction has nothing more to do: what is dead takes no more than what lives, and some pages.
    fn compact(&mut self) {
        self.settle();
        for _ in 0..3000 {
            self.turn();
        }
    }
}

/// A number as a value of this test: 8 bytes of it, 96 that follow from it.
fn stored(n: u64) -> Vec<u8> {
    let mut value = n.to_le_bytes().to_vec();
    value.resize(WIDTH, mix(n) as u8);
    value
}

fn number(n: u64) -> Option<Vec<u8>> {
    Some(stored(n))
}

/// Runs a scenario on the simulated disk, and on a real one by each device.
fn everywhere(budget_bytes: usize, scenario: impl Fn(&mut Store)) {
    scenario(&mut Store::open(Box::new(SimDevice::new(11)), budget_bytes));
    for options in devices() {
        let directory = tempfile::tempdir().unwrap();
        let device = open_device_with(directory.path(), &options).unwrap().device;
        scenario(&mut Store::open(device, budget_bytes));
    }
}

fn devices() -> [DeviceOptions; 3] {
    let usual = DeviceOptions::default();
    [usual, DeviceOptions { direct_io: true, ..usual }, DeviceOptions { io_uring: false, ..usual }]
}

const KEYS: u64 = 6000;
/// 128 bytes a record, and an index that stays: a quarter of the records fits.
const BUDGET: usize = 384 << 10;

// compact_lookup: all live.
#[test]
fn compaction_keeps_what_lives() {
    everywhere(BUDGET, |store| {
        (1..=KEYS).for_each(|key| store.upsert(key, &stored(key), false));
        store.compact();
        (1..=KEYS).for_each(|key| store.expect(key, number(key)));
        store.settle();
    });
}

// compact_lookup: half live, then what was deleted comes back with other values.
#[test]
fn what_was_deleted_stays_deleted_through_compaction_until_it_is_inserted_anew() {
    everywhere(BUDGET, |store| {
        (1..=KEYS).for_each(|key| store.upsert(key, &stored(key), false));
        (1..=KEYS).filter(|key| key % 2 == 1).for_each(|key| store.delete(key, true));
        store.compact();
        (1..=KEYS).for_each(|key| store.expect(key, if key % 2 == 0 { number(key) } else { None }));
        (1..=KEYS).filter(|key| key % 2 == 1).for_each(|key| store.upsert(key, &stored(key * 5), false));
        store.compact();
        (1..=KEYS).for_each(|key| store.expect(key, number(if key % 2 == 0 { key } else { key * 5 })));
        store.settle();
    });
}

// compact_lookup: read-modify-writes in random order on both sides of compactions. 5 + 4 × 1 − 8 × 1 = 1.
#[test]
fn read_modify_writes_around_compactions_are_each_applied_once() {
    everywhere(BUDGET, |store| {
        (1..=KEYS).for_each(|key| store.add(key, 5, false));
        let times = |n: u64| shuffled((1..=KEYS).flat_map(|key| (0..n).map(move |_| key)).collect(), n);
        for key in times(4) {
            store.add(key, 1, true);
        }
        store.compact();
        (1..=KEYS).for_each(|key| store.expect(key, number(9)));
        for key in times(8) {
            store.add(key, 1_u64.wrapping_neg(), true);
        }
        store.compact();
        (1..=KEYS).for_each(|key| store.expect(key, number(1)));
        store.settle();
    });
}

// compact_lookup: new entries for half of the records; the space of the old ones comes back.
#[test]
fn newer_values_win_over_compacted_ones_and_their_space_comes_back() {
    everywhere(BUDGET, |store| {
        (1..=KEYS).for_each(|key| store.upsert(key, &stored(key), false));
        for round in 2..8 {
            for key in (1..=KEYS).filter(|key| key % 2 == 1) {
                store.upsert(key, &stored(key * round), true);
            }
        }
        store.compact();
        assert!(store.shard.store_counts().segments_removed > 0, "{:?}", store.shard.store_counts());
        (1..=KEYS).for_each(|key| store.expect(key, number(if key % 2 == 1 { key * 7 } else { key })));
        store.settle();
    });
}

// compact_lookup on disk with a checkpoint; recovery_test: what came after the checkpoint isn't there.
#[test]
fn compaction_between_checkpoints_loses_nothing_of_either() {
    let disk = Disk(Arc::new(Mutex::new(SimDevice::new(4))));
    let mut store = Store::open(Box::new(disk.clone()), BUDGET);
    (1..=KEYS).for_each(|key| store.upsert(key, &stored(key), false));
    (1..=KEYS).filter(|key| key % 3 == 0).for_each(|key| store.delete(key, true));
    store.settle();
    store.shard.checkpoint_now(1, b"first").unwrap();
    store.compact();
    (1..=KEYS).filter(|key| key % 3 == 1).for_each(|key| store.add(key, 1000, true));
    store.compact();
    store.shard.checkpoint_now(2, b"second").unwrap();
    (1..=KEYS).for_each(|key| store.upsert(key, b"after the checkpoint", key % 3 != 0));
    store.compact();
    for (version, added) in [(2, 1000), (1, 0)] {
        let after = Disk(Arc::new(Mutex::new(disk.0.lock().unwrap().crash(version))));
        let layout = TableLayout { page_bits: 13, segment_bits: 8, ..TableLayout::for_device() };
        let options = StoreOptions { shard: 2, segment_bytes: 256 << 10, batch_bytes: 32 << 10 };
        let at = OpenAt::Version(version);
        let (shard, recovered) =
            Shard::open(ShardOptions { budget_bytes: BUDGET }, layout, Box::new(after), options, 2, at).unwrap();
        assert_eq!(recovered.unwrap().version, version);
        let mut store = Store { shard, expected: BTreeMap::new() };
        for key in 1..=KEYS {
            let value = if key % 3 == 1 { key + added } else { key };
            store.expect(key, if key % 3 == 0 { None } else { number(value) });
        }
        store.settle();
    }
}

// paging_test: large records, many times the memory; read, changed on the device, read again.
#[test]
fn large_records_on_the_device_are_read_and_changed() {
    let value = |key: u64, fill: u8| [key.to_le_bytes().as_slice(), &vec![fill; 992]].concat();
    everywhere(BUDGET, |store| {
        let keys = 2000;
        (0..keys).for_each(|key| store.upsert(key, &value(key, 1), false));
        (0..keys).for_each(|key| store.expect(key, Some(value(key, 1))));
        for key in shuffled((0..keys).collect(), 3) {
            store.submit(key, Answer::Done { existed: true }, move || {
                Operation::Rmw(Box::new(move |old| old.unwrap().iter().map(|b| b.wrapping_add(1)).collect()))
            });
        }
        for key in 0..keys {
            let changed: Vec<u8> = value(key, 1).iter().map(|b| b.wrapping_add(1)).collect();
            store.expect(key, Some(changed));
        }
        (keys..2 * keys).for_each(|key| store.expect(key, None));
        store.settle();
        assert!(store.shard.store_counts().pages_read > 100, "{:?}", store.shard.store_counts());
    });
}

// in_memory_test and varlen: values that grow and shrink, in memory and on the device; NeedCopyUpdate: one that is as it should be stays.
#[test]
fn values_grow_and_shrink_by_read_modify_writes() {
    everywhere(BUDGET, |store| {
        let keys = 3000;
        let of_length = |key: u64, len: usize| vec![key as u8; len];
        let lengths = [0, 7, 300, 8, 64, 1];
        for (round, len) in lengths.into_iter().enumerate() {
            for key in 0..keys {
                let len = len + (key % 5) as usize;
                store.submit(key, Answer::Done { existed: round > 0 }, move || {
                    Operation::Rmw(Box::new(move |old| match old {
                        Some(old) if old.len() == len => old.to_vec(),
                        _ => vec![key as u8; len],
                    }))
                });
            }
            (0..keys).for_each(|key| store.expect(key, Some(of_length(key, len + (key % 5) as usize))));
        }
        store.settle();
    });
}

// conditional_insert: only where there is nothing.
#[test]
fn a_conditional_insert_changes_nothing_that_is_there() {
    everywhere(BUDGET, |store| {
        (0..KEYS).filter(|key| key % 4 == 0).for_each(|key| store.upsert(key, &stored(key), false));
        for key in 0..KEYS {
            store.submit(key, Answer::Done { existed: key % 4 == 0 }, move || {
                Operation::Rmw(Box::new(|old| old.map_or_else(|| stored(7), <[u8]>::to_vec)))
            });
        }
        (0..KEYS).for_each(|key| store.expect(key, number(if key % 4 == 0 { key } else { 7 })));
        store.settle();
    });
}

// index_growth: from the smallest index through many doublings, with reads, changes and removals in between, in memory.
#[test]
fn the_index_grows_through_many_doublings_and_shrinks_again() {
    let mut shard = Shard::new(ShardOptions { budget_bytes: usize::MAX });
    let table = shard.point(TABLE, WIDTH);
    let mut next = 0_u64;
    for doubling in 4..17_u32 {
        while next < 1 << doubling {
            table.put(mix(next), &next.to_le_bytes(), &(next * 3).to_le_bytes());
            next += 1;
        }
        for key in 0..next {
            let expected = (key * 3).to_le_bytes();
            assert_eq!(table.get(mix(key), &key.to_le_bytes()), Some(expected.as_slice()), "key {key} at {next}");
        }
        assert_eq!(table.get(mix(next), &next.to_le_bytes()), None);
    }
    let full = table.used_bytes();
    for key in 0..next {
        if key % 64 != 0 {
            assert!(table.remove(mix(key), &key.to_le_bytes()));
        }
    }
    assert!(table.used_bytes() < full / 4, "{} B of {full}", table.used_bytes());
    for key in 0..next {
        assert_eq!(table.get(mix(key), &key.to_le_bytes()).is_some(), key % 64 == 0, "key {key}");
    }
}

// FasterLogTests: entries of every length, truncation, going on after opening again, by every device.
#[test]
fn a_log_of_entries_of_every_length_is_scanned_truncated_and_opened_again() {
    let entry = |i: u64| vec![i as u8; (i * 7 % 3000) as usize + 1];
    let scan = |log: &Log| {
        let mut scan = log.scan(log.begin().unwrap()).unwrap();
        let mut found = Vec::new();
        while let Some(record) = scan.next().unwrap() {
            found.push((record.lsn, record.payload.to_vec()));
        }
        found
    };
    let options =
        || LogOptions { segment_bytes: 256 << 10, pending_bytes_max: 128 << 10, commit_bytes: 16 << 10, ..LogOptions::new(9) };
    for io_uring in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let path: &Path = directory.path();
        let mut kept = 0;
        for run in 0..3_u64 {
            let log = Log::open_directory(path, options(), io_uring).unwrap();
            for i in run * 300..(run + 1) * 300 {
                log.append_or_wait(&[&entry(i)], Duration::from_secs(30)).unwrap();
            }
            let until = log.commit().unwrap();
            log.wait_for_commit(until, Duration::from_secs(30)).unwrap();
            let found = scan(&log);
            let expected: Vec<_> = (kept..(run + 1) * 300).map(entry).collect();
            assert!(found.iter().map(|(_, payload)| payload).eq(&expected), "run {run}");
            log.truncate_before(found[100].0).unwrap();
            kept += 100;
            log.close().unwrap();
        }
        drop(FileDevice::open(path).unwrap());
    }
}
