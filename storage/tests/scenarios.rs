//! What the tests of FASTER (C++ `compact_lookup_test`, `paging_test`, `in_memory_test`, `recovery_test`; C# `BasicDiskFASTERTests`,
//! `NeedCopyUpdateTests`, `LargeObjectTests`, `FasterLogTests`) and of oxifaster (`compaction`, `pending_io`, `index_growth`, `varlen`,
//! `conditional_insert`, `recovery`) ask of a store, asked of ours: the scenarios, each key checked. Shards hold a quarter or less of their
//! records in memory, on a simulated disk and on a real one by every device.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tiderace_storage::{
    Answer, CheckpointError, Checkpoints, Completion, Device, DeviceOp, DeviceOptions, FileDevice, Image, Log, LogError,
    LogOptions, Lsn, OpenAt, Operation, Shard, ShardOptions, SimDevice, StoreOptions, Submitted, TableId, TableLayout, Ticket,
    TimeToLive, Token, open_device_with,
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

/// The hash that this test gives a key of bytes.
fn hash(key: &[u8]) -> u64 {
    mix(key.iter().fold(7, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01B3)))
}

fn every_record(log: &Log) -> Vec<(Lsn, Vec<u8>)> {
    let mut scan = log.scan(log.begin().unwrap()).unwrap();
    let mut found = Vec::new();
    while let Some(record) = scan.next().unwrap() {
        found.push((record.lsn, record.payload.to_vec()));
    }
    found
}

const SOON: Duration = Duration::from_secs(30);

// FasterLogTest1: a scan that gives up behind itself what it has dealt with sees everything, once.
#[test]
fn a_scan_may_truncate_behind_itself() {
    let options =
        || LogOptions { segment_bytes: 16 << 10, pending_bytes_max: 64 << 10, commit_bytes: 8 << 10, ..LogOptions::new(3) };
    let directory = tempfile::tempdir().unwrap();
    let log = Log::open_directory(directory.path(), options(), true).unwrap();
    let entry = |i: u32| vec![i as u8; 100];
    for i in 0..3000 {
        log.append_or_wait(&[&entry(i)], SOON).unwrap();
    }
    log.wait_for_commit(log.commit().unwrap(), SOON).unwrap();
    let mut scan = log.scan(Lsn(0)).unwrap();
    let mut count = 0;
    while let Some(record) = scan.next().unwrap() {
        assert_eq!(record.payload, entry(count));
        count += 1;
        if count % 100 == 0 {
            log.truncate_before(scan.position()).unwrap();
        }
    }
    assert_eq!(count, 3000);
    log.wait_for_commit(log.commit().unwrap(), SOON).unwrap();
    log.close().unwrap();
    // Begin is durable, and the disk has its space back.
    let log = Log::open_directory(directory.path(), options(), false).unwrap();
    assert_eq!(every_record(&log).len(), 0);
    let segments = std::fs::read_dir(directory.path()).unwrap().filter(|f| f.as_ref().unwrap().file_name() != ".lock").count();
    assert!(segments <= 2, "{segments} segments of an empty log");
}

// FasterLogTest2 and 4: what was appended isn't seen before it is durable; then at once.
#[test]
fn a_scan_shows_nothing_that_is_not_durable() {
    let options = LogOptions { commit_interval_us: u64::MAX, ..LogOptions::new(3) };
    let directory = tempfile::tempdir().unwrap();
    let log = Log::open_directory(directory.path(), options, true).unwrap();
    let mut scan = log.scan(Lsn(0)).unwrap();
    for i in 0..200_u32 {
        let lsn = log.append(&i.to_le_bytes()).unwrap();
        assert!(scan.next().unwrap().is_none(), "entry {i} was never committed");
        assert!(matches!(log.read(lsn), Err(LogError::BeyondEnd { .. })));
        log.wait_for_commit(log.commit().unwrap(), SOON).unwrap();
        assert_eq!(scan.next().unwrap().unwrap().payload, i.to_le_bytes());
        assert!(scan.next().unwrap().is_none());
        assert_eq!(log.read(lsn).unwrap(), i.to_le_bytes());
    }
}

// FasterLogTest5: entries that fill whole segments, one after the other; one byte more is refused.
#[test]
fn entries_as_long_as_a_segment_fit_and_longer_ones_are_refused() {
    let options = || LogOptions { segment_bytes: 64 << 10, pending_bytes_max: 256 << 10, ..LogOptions::new(3) };
    let directory = tempfile::tempdir().unwrap();
    let log = Log::open_directory(directory.path(), options(), true).unwrap();
    let Err(LogError::TooLarge { limit_bytes, .. }) = log.append(&vec![0; 64 << 10]) else { panic!("it fits no segment") };
    let longest = limit_bytes - 16;
    assert!(matches!(log.append(&vec![0; longest + 1]), Err(LogError::TooLarge { .. })));
    for i in 0..7_u8 {
        log.append_and_wait(&vec![i; longest - usize::from(i % 2)], SOON).unwrap();
    }
    log.close().unwrap();
    let found = every_record(&Log::open_directory(directory.path(), options(), true).unwrap());
    let expected: Vec<_> = (0..7_u8).map(|i| vec![i; longest - usize::from(i % 2)]).collect();
    assert!(found.into_iter().map(|(_, payload)| payload).eq(expected));
}

// log_truncation: all is given up, by a log that is opened again, and goes on; positions are never given out twice.
#[test]
fn a_log_that_was_truncated_at_its_end_is_empty_and_goes_on() {
    let options =
        || LogOptions { segment_bytes: 8 << 10, pending_bytes_max: 16 << 10, commit_bytes: 2 << 10, ..LogOptions::new(3) };
    let directory = tempfile::tempdir().unwrap();
    let mut last = Lsn(0);
    for round in 0..6_u64 {
        let log = Log::open_directory(directory.path(), options(), round % 2 == 0).unwrap();
        assert!(every_record(&log).is_empty());
        assert!(matches!(log.read(last), Err(LogError::Truncated { .. } | LogError::BeyondEnd { .. })) || round == 0);
        for i in 0..100_u64 {
            let lsn = log.append_or_wait(&[&(round * 100 + i).to_le_bytes()], SOON).unwrap();
            assert!(lsn > last || (round, i) == (0, 0), "{lsn:?} again, after {last:?}");
            last = lsn;
        }
        log.wait_for_commit(log.commit().unwrap(), SOON).unwrap();
        assert_eq!(every_record(&log).len(), 100);
        let until = log.truncate_before(log.durable().unwrap()).unwrap();
        log.wait_for_commit(until, SOON).unwrap();
        assert!(every_record(&log).is_empty());
        log.close().unwrap();
    }
}

// EnqueueAndWaitForCommit: many threads, each waiting for each of its own entries.
#[test]
fn threads_that_wait_for_each_of_their_entries_find_all_of_them_in_their_order() {
    let options = || LogOptions { segment_bytes: 16 << 10, ..LogOptions::new(3) };
    let directory = tempfile::tempdir().unwrap();
    let log = Log::open_directory(directory.path(), options(), true).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let log = &log;
            scope.spawn(move || {
                for i in 0..40_u64 {
                    let lsn = log.append_and_wait(&[thread.to_le_bytes(), i.to_le_bytes()].concat(), SOON).unwrap();
                    assert!(log.durable().unwrap() > lsn);
                }
            });
        }
    });
    // As a crash leaves it: nothing that was waited for depends on a good end.
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(directory.path()).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    let mut next = [0; 8];
    for (_, payload) in every_record(&Log::open_directory(copy.path(), options(), true).unwrap()) {
        let (thread, i) = payload.split_at(8);
        let at = &mut next[u64::from_le_bytes(thread.try_into().unwrap()) as usize];
        assert_eq!(u64::from_le_bytes(i.try_into().unwrap()), *at);
        *at += 1;
    }
    assert_eq!(next, [40; 8]);
}

/// What the shards below hold: point table 1, ordered table 2.
type Model = (BTreeMap<Vec<u8>, Vec<u8>>, BTreeMap<Vec<u8>, Vec<u8>>);

/// Changes a shard and a model alike: puts of all lengths, removals, now and then a cleared table.
fn change(shard: &mut Shard, model: &mut Model, seed: u64, count: u64) {
    for i in 0..count {
        let random = mix(seed * 1_000_003 + i);
        let key = (random % 700).to_le_bytes()[..2 + (random >> 20) as usize % 3].to_vec();
        let value = vec![random as u8; (random >> 8) as usize % 90];
        match random >> 56 {
            0 if i % 7 == 0 => {
                shard.point(TABLE, WIDTH).clear();
                model.0.clear();
            }
            1..=50 => {
                assert_eq!(shard.point(TABLE, WIDTH).remove(hash(&key), &key), model.0.remove(&key).is_some(), "{key:?}");
            }
            51..=150 => {
                shard.point(TABLE, WIDTH).put(hash(&key), &key, &value);
                model.0.insert(key, value);
            }
            151..=180 => assert_eq!(shard.ordered(SORTED).remove(&key), model.1.remove(&key).is_some(), "{key:?}"),
            _ => {
                shard.ordered(SORTED).put(&key, &value);
                model.1.insert(key, value);
            }
        }
        if shard.has_device() && i % 16 == 0 {
            shard.maintain().unwrap();
            shard.complete_pending(Duration::from_millis(1));
        }
    }
}

const SORTED: TableId = TableId(2);

fn assert_holds(shard: &mut Shard, model: &Model, what: &str) {
    let (mut records, table) = (Vec::new(), shard.point(TABLE, WIDTH));
    assert_eq!(table.scan(0, usize::MAX, &mut records), None);
    let found: BTreeMap<_, _> = records.iter().map(|r| (table.key(*r).to_vec(), table.value(*r).to_vec())).collect();
    assert_eq!(found.len(), records.len(), "{what}: a key stands there twice");
    assert!(found == model.0, "{what}");
    let ordered = shard.ordered(SORTED);
    let all = ordered.range(Bound::Unbounded, Bound::Unbounded).map(|(k, v)| (k.to_vec(), v.to_vec()));
    assert!(all.eq(model.1.iter().map(|(k, v)| (k.clone(), v.clone()))), "{what}");
    assert_eq!(shard.failure(), None, "{what}");
}

fn open_pages(disk: &Disk, budget_bytes: usize, layout: TableLayout, store: StoreOptions, keep: usize, at: OpenAt) -> Shard {
    // What the shard before this one has left on its way.
    (0..200).for_each(|_| disk.0.lock().unwrap().poll(&mut Vec::new()));
    Shard::open(ShardOptions { budget_bytes }, layout, Box::new(disk.clone()), store, keep, at).unwrap().0
}

const SMALL: TableLayout =
    TableLayout { page_bits: 10, index_bits: 2, segment_bits: 4, tag_bits: 14, block_bits: 8, chunk_blocks: 8 };
const STORE: StoreOptions = StoreOptions { shard: 2, segment_bytes: 32 << 10, batch_bytes: 8 << 10 };

// RecoverReadOnly, incremental checkpoints and RemoveOutdatedCheckpoints: after each of many checkpoints every version that is kept, and no
// other, can be recovered, of both kinds.
#[test]
fn each_checkpoint_that_is_kept_of_many_can_be_recovered() {
    let disk = Disk(Arc::new(Mutex::new(SimDevice::new(6))));
    let mut shard = open_pages(&disk, 256 << 10, SMALL, STORE, 5, OpenAt::Newest);
    let (mut model, mut cuts) = (Model::default(), BTreeMap::new());
    for version in 1..=14_u64 {
        change(&mut shard, &mut model, version, if version % 4 == 0 { 0 } else { 500 });
        shard.checkpoint_now(version * 10, &[version as u8]).unwrap();
        cuts.insert(version * 10, model.clone());
        while cuts.len() > 5 {
            cuts.pop_first();
        }
        assert!(shard.versions().iter().eq(cuts.keys()), "{:?}", shard.versions());
        if version % 3 > 0 {
            continue;
        }
        for (kept, cut) in &cuts {
            let copy = Disk(Arc::new(Mutex::new(disk.0.lock().unwrap().crash(version))));
            let mut older = open_pages(&copy, 256 << 10, SMALL, STORE, 5, OpenAt::Version(*kept));
            assert_holds(&mut older, cut, &format!("{kept} of pages, after {version} checkpoints"));
        }
        let gone = Shard::open(
            ShardOptions { budget_bytes: 256 << 10 },
            SMALL,
            Box::new(Disk(Arc::new(Mutex::new(disk.0.lock().unwrap().crash(1))))),
            STORE,
            5,
            OpenAt::Version(7),
        );
        assert!(matches!(gone.map(drop), Err(CheckpointError::NoSuchVersion { version: 7 })));
    }

    let (mut shard, mut model, mut cuts) =
        (Shard::new(ShardOptions { budget_bytes: usize::MAX }), Model::default(), BTreeMap::new());
    let mut checkpoints = Checkpoints::open(SimDevice::new(6), 5).unwrap();
    for version in 1..=14_u64 {
        change(&mut shard, &mut model, version + 100, if version % 4 == 0 { 0 } else { 500 });
        capture(&mut shard, &mut checkpoints, version * 10, &model);
        cuts.insert(version * 10, model.clone());
        while cuts.len() > 5 {
            cuts.pop_first();
        }
        assert!(checkpoints.versions().iter().eq(cuts.keys()));
        for (kept, cut) in cuts.iter().filter(|_| version % 3 == 0) {
            let mut copies = Checkpoints::open(checkpoints.device_mut().crash(version), 5).unwrap();
            let checkpoint = copies.load(*kept).unwrap();
            let mut older = Shard::new(ShardOptions { budget_bytes: usize::MAX });
            copies.restore(&checkpoint, &mut older, 0..4, |_, _| true).unwrap();
            assert_holds(&mut older, cut, &format!("{kept} of changes, after {version} checkpoints"));
        }
    }
}

/// A checkpoint of a shard in memory: of what has changed since the one before, where that is possible.
fn capture(shard: &mut Shard, checkpoints: &mut Checkpoints<SimDevice>, version: u64, model: &Model) {
    let kind = shard.begin_capture(version, checkpoints.base(4)).unwrap();
    let (mut writer, mut blocks) = (checkpoints.begin(version, 4).unwrap(), Vec::new());
    writer.begin_all(kind);
    while shard.capture_slice(2000, &mut blocks) {}
    blocks.iter().try_for_each(|block| writer.push(block)).unwrap();
    writer.commit((model.0.len() + model.1.len()) as u64, b"").unwrap();
}

// A snapshot, then fold-over, and back: what one kind of checkpoint holds, the other takes over.
#[test]
fn state_moves_between_checkpoints_of_changes_and_checkpoints_of_pages_and_back() {
    let mut model = Model::default();
    let mut checkpoints = Checkpoints::open(SimDevice::new(1), 2).unwrap();
    let disk = Disk(Arc::new(Mutex::new(SimDevice::new(2))));
    for round in 0..4_u64 {
        let mut in_memory = Shard::new(ShardOptions { budget_bytes: usize::MAX });
        if let Some(newest) = checkpoints.newest().unwrap() {
            checkpoints.restore(&newest, &mut in_memory, 0..4, |_, _| true).unwrap();
        }
        assert_holds(&mut in_memory, &model, &format!("in memory, round {round}"));
        change(&mut in_memory, &mut model, 50 + round, 800);
        capture(&mut in_memory, &mut checkpoints, round * 2 + 1, &model);
        // Into pages, which hold what was there the round before.
        let mut paged = open_pages(&disk, 256 << 10, SMALL, STORE, 2, OpenAt::Newest);
        paged.point(TABLE, WIDTH).clear();
        paged.drop_table(SORTED);
        let newest = checkpoints.newest().unwrap().unwrap();
        checkpoints.restore(&newest, &mut paged, 0..4, |_, _| true).unwrap();
        change(&mut paged, &mut model, 90 + round, 800);
        paged.checkpoint_now(round + 1, b"").unwrap();
        drop(paged);
        let mut paged = open_pages(&disk, 256 << 10, SMALL, STORE, 2, OpenAt::Newest);
        assert_holds(&mut paged, &model, &format!("in pages, round {round}"));
        checkpoints.commit(round * 2 + 2, &Image::of(&paged, 4), b"").unwrap();
    }
}

// Recovery with other settings than before: pages, budgets, segments and blocks of other sizes, in any order.
#[test]
fn a_shard_is_opened_with_other_settings_than_it_was_written_with() {
    let layouts = [
        SMALL,
        TableLayout { page_bits: 13, segment_bits: 8, ..TableLayout::for_device() },
        TableLayout { page_bits: 9, index_bits: 1, segment_bits: 3, tag_bits: 2, block_bits: 7, chunk_blocks: 4 },
        TableLayout { page_bits: 14, block_bits: 12, ..SMALL },
        TableLayout::for_device(),
    ];
    let disk = Disk(Arc::new(Mutex::new(SimDevice::new(8))));
    let mut model = Model::default();
    let (mut largest, mut refused) = (0, 0);
    for round in 0..30_u64 {
        let layout = layouts[(mix(round) % 5) as usize];
        let budget = Shard::least_budget_bytes(&layout).max(128 << 10) * (1 + (mix(round + 50) % 3) as usize);
        let store = StoreOptions {
            segment_bytes: (8 << 10) << (mix(round + 90) % 5),
            batch_bytes: (2 << 10) << (mix(round + 70) % 4),
            ..STORE
        };
        (0..200).for_each(|_| disk.0.lock().unwrap().poll(&mut Vec::new()));
        let (options, keep) = (ShardOptions { budget_bytes: budget }, 2 + (round % 3) as usize);
        let mut shard = match Shard::open(options, layout, Box::new(disk.clone()), store, keep, OpenAt::Newest) {
            Ok((shard, _)) => shard,
            // Pages may be larger than those that are there, not smaller.
            Err(error) => {
                assert!(layout.page_bits < largest && error.to_string().contains("page_bits"), "round {round}: {error}");
                refused += 1;
                continue;
            }
        };
        assert_holds(&mut shard, &model, &format!("round {round}: {layout:?}, {budget} B, {store:?}"));
        change(&mut shard, &mut model, 200 + round, 600);
        shard.checkpoint_now(round + 1, b"").unwrap();
        largest = largest.max(layout.page_bits);
    }
    assert!((3..20).contains(&refused), "{refused}");
    // Another shard's number is no setting.
    let other = StoreOptions { shard: 3, ..STORE };
    let options = ShardOptions { budget_bytes: 16 << 20 };
    let foreign = Shard::open(options, TableLayout::for_device(), Box::new(disk.clone()), other, 2, OpenAt::Newest);
    assert!(matches!(foreign.map(drop), Err(CheckpointError::Damaged { .. })));
}

// LargeObjectTests: records many times as long as a page, in memory, on the device, and after recovery.
#[test]
fn records_longer_than_a_page_are_kept_like_others() {
    let lengths = [0, 1, 1000, 5000, 40_000, 8191, 100_000, 8192, 300];
    let value = |key: u64, round: u64| vec![(key + round) as u8; lengths[((key + round) % 9) as usize]];
    let disk = Disk(Arc::new(Mutex::new(SimDevice::new(5))));
    let mut store = Store::open(Box::new(disk.clone()), 2 << 20);
    for round in 0..4_u64 {
        for key in 0..120 {
            store.upsert(key, &value(key, round), round > 0);
        }
        store.settle();
        store.shard.checkpoint_now(round + 1, b"").unwrap();
    }
    drop(store);
    (0..200).for_each(|_| disk.0.lock().unwrap().poll(&mut Vec::new()));
    let mut store = Store::open(Box::new(disk), 2 << 20);
    for key in 0..120 {
        store.expect(key, Some(value(key, 3)));
    }
    store.settle();
}

// ExpirationTests, over recoveries: what has expired never comes back, what hasn't is there, whatever the clock does meanwhile.
#[test]
fn records_expire_across_recoveries_and_a_clock_that_goes_back_brings_none_back() {
    let rule = TimeToLive { ttl_us: 1000, renewed_by_writes: true };
    let disk = Disk(Arc::new(Mutex::new(SimDevice::new(5))));
    // Of each key its value and the moment at which it expires.
    let mut model: BTreeMap<u64, (u64, i64)> = BTreeMap::new();
    let mut now = 10_000_i64;
    for round in 0..12_u64 {
        let mut shard = open_pages(&disk, 256 << 10, SMALL, STORE, 2, OpenAt::Newest);
        for step in 0..200_u64 {
            let random = mix(round * 1000 + step);
            let key = random % 90;
            let mut table = shard.expiring(TABLE, 8, rule);
            table.advance(now);
            // The clock goes back by an hour for a moment.
            table.advance(now - 3_600_000_000);
            let bytes = key.to_le_bytes();
            let expected = model.get(&key).filter(|(_, until)| *until > now).map(|(value, _)| value.to_le_bytes());
            assert_eq!(table.get(mix(key), &bytes), expected.as_ref().map(<[u8; 8]>::as_slice), "key {key}, round {round}");
            match random >> 60 {
                0..=2 => {
                    assert_eq!(table.remove(mix(key), &bytes), expected.is_some());
                    model.remove(&key);
                }
                3..=9 => {
                    table.put(mix(key), &bytes, &random.to_le_bytes());
                    model.insert(key, (random, now + 1000));
                }
                _ => {}
            }
            now += (random >> 32) as i64 % 20;
            if step % 9 == 0 {
                shard.maintain().unwrap();
            }
        }
        shard.checkpoint_now(round + 1, b"").unwrap();
        // Sometimes nothing runs for long.
        now += [0, 300, 5000][round as usize % 3];
    }
}

// GenericIteration, and scans while the log moves: each key that stays is seen once by a scan in steps, whatever happens to the others.
#[test]
fn a_scan_in_steps_sees_each_key_that_stays_once_while_others_come_and_go() {
    let mut shard = Shard::with_layout(ShardOptions { budget_bytes: usize::MAX }, SMALL);
    let table = shard.point(TABLE, WIDTH);
    let stays = |key: u64| key.is_multiple_of(3);
    for key in 0..3000_u64 {
        table.put(mix(key), &key.to_le_bytes(), &stored(key));
    }
    let (mut cursor, mut seen, mut step) = (Some(0), BTreeMap::new(), 0_u64);
    while let Some(at) = cursor {
        let mut found = Vec::new();
        cursor = table.scan(at, 17, &mut found);
        for record in &found {
            let key = u64::from_le_bytes(table.key(*record).try_into().unwrap());
            *seen.entry(key).or_insert(0) += 1;
        }
        for i in 0..40 {
            let key = mix(step * 64 + i) % 6000;
            if stays(key) {
                continue;
            }
            if i % 2 == 0 {
                table.remove(mix(key), &key.to_le_bytes());
            } else {
                table.put(mix(key), &key.to_le_bytes(), &stored(i));
            }
        }
        step += 1;
    }
    for key in (0..3000).filter(|key| stays(*key)) {
        assert_eq!(seen.get(&key), Some(&1), "key {key}");
    }
}
