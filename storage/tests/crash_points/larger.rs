//! Shards larger than their memory, against a map.

use std::collections::BTreeMap;
use std::time::Duration;

use tiderace_storage::{
    Answer, Fault, KeyBatch, NoRoom, OpenAt, Operation, Residency, Shard, ShardOptions, SimDevice, StoreError, StoreOptions,
    Submitted, TableId, TableLayout, Ticket, open_device,
};

use super::{Random, setting};

const TABLE: TableId = TableId(1);
const WIDTH: usize = 16;
/// Two buckets, two bits of tag.
const TINY: TableLayout =
    TableLayout { page_bits: 9, index_bits: 1, segment_bits: 3, tag_bits: 2, block_bits: 7, chunk_blocks: 4 };
const SMALL: TableLayout = TableLayout { page_bits: 11, tag_bits: 24, index_bits: 2, segment_bits: 4, ..TINY };

fn hash(key: u64) -> u64 {
    Random(key).next()
}

fn store() -> StoreOptions {
    StoreOptions { shard: 3, segment_bytes: 32 << 10, batch_bytes: 4 << 10 }
}

fn open(seed: u64, layout: TableLayout, budget_bytes: usize) -> Shard {
    Shard::with_device(ShardOptions { budget_bytes }, layout, Box::new(SimDevice::new(seed)), store()).unwrap()
}

fn value(random: &mut Random, len_max: u64) -> Vec<u8> {
    (0..random.below(len_max)).map(|_| random.next() as u8).collect()
}

/// Tries until there is room.
fn patiently<T>(shard: &mut Shard, mut call: impl FnMut(&mut Shard) -> Result<T, NoRoom>) -> T {
    for _ in 0..2000 {
        match call(shard) {
            Ok(done) => return done,
            Err(_) => {
                shard.maintain().unwrap();
                shard.complete_pending(Duration::from_millis(1));
            }
        }
    }
    let busy = call(shard).err();
    panic!("no room in 2000 attempts: {} B of {}, {busy:?}", shard.used_bytes(), shard.budget_bytes());
}

fn drain(shard: &mut Shard, out: &mut Vec<(Ticket, Result<Answer, StoreError>)>) {
    for _ in 0..5000 {
        shard.complete_pending(Duration::from_millis(1));
        shard.maintain().unwrap();
        if shard.pending() == 0 {
            shard.take_completed(out);
            return;
        }
    }
    panic!("{} operations wait for ever, {} B of {} used", shard.pending(), shard.used_bytes(), shard.budget_bytes());
}

fn sum(old: Option<&[u8]>, add: u8) -> Vec<u8> {
    let mut new = old.map_or_else(|| vec![0; 5], <[u8]>::to_vec);
    new.push(add);
    new.truncate(150);
    if let Some(first) = new.first_mut() {
        *first = first.wrapping_add(add);
    }
    new
}

/// Operations by `submit` alone: the budget holds after each.
fn run(seed: u64, layout: TableLayout, keys: u64, budget_bytes: usize, ops: u64) -> Shard {
    let mut random = Random(seed);
    let mut shard = open(seed, layout, budget_bytes);
    let mut model: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut expected: BTreeMap<Ticket, Answer> = BTreeMap::new();
    let mut completed = Vec::new();
    for op in 0..ops {
        let key = if random.below(4) == 0 { random.below(10) } else { random.below(keys) };
        let before = model.get(&key).cloned();
        let what = random.below(10);
        let (fresh, add) = (value(&mut random, 200), random.next() as u8);
        let answer = match what {
            0..=2 => Answer::Value(before),
            3..=5 => Answer::Done { existed: model.insert(key, fresh.clone()).is_some() },
            6..=8 => Answer::Done { existed: model.insert(key, sum(before.as_deref(), add)).is_some() },
            _ => Answer::Done { existed: model.remove(&key).is_some() },
        };
        let submitted = patiently(&mut shard, |shard| {
            let operation = match what {
                0..=2 => Operation::Read,
                3..=5 => Operation::Upsert(fresh.clone()),
                6..=8 => Operation::Rmw(Box::new(move |old| sum(old, add))),
                _ => Operation::Delete,
            };
            shard.submit(TABLE, WIDTH, hash(key), &key.to_be_bytes(), operation)
        });
        match submitted {
            Submitted::Done(done) => assert_eq!(done, answer, "seed {seed}, operation {op}"),
            Submitted::Pending(ticket) => assert!(expected.insert(ticket, answer).is_none()),
        }
        assert!(shard.used_bytes() <= budget_bytes, "seed {seed}, operation {op}: {} B of {budget_bytes}", shard.used_bytes());
        if random.below(30) == 0 {
            shard.maintain().unwrap();
        }
        if random.below(20) == 0 {
            shard.complete_pending(Duration::ZERO);
        }
        shard.take_completed(&mut completed);
        for (ticket, done) in completed.drain(..) {
            assert_eq!(Some(done.unwrap()), expected.remove(&ticket), "seed {seed}, {ticket:?}");
        }
    }
    drain(&mut shard, &mut completed);
    for (ticket, done) in completed.drain(..) {
        assert_eq!(Some(done.unwrap()), expected.remove(&ticket), "seed {seed}, {ticket:?}");
    }
    assert!(expected.is_empty());
    check(&mut shard, &model, keys, seed);
    assert_eq!(shard.failure(), None);
    shard
}

/// Every key, by calls that wait.
fn check(shard: &mut Shard, model: &BTreeMap<u64, Vec<u8>>, keys: u64, seed: u64) {
    for key in 0..keys {
        let found = shard.point(TABLE, WIDTH).get(hash(key), &key.to_be_bytes()).map(<[u8]>::to_vec);
        assert_eq!(found.as_ref(), model.get(&key), "seed {seed}, key {key}");
        shard.maintain().unwrap();
    }
    let (mut cursor, mut seen) = (Some(0), BTreeMap::new());
    while let Some(at) = cursor {
        let mut out = Vec::new();
        let table = shard.point(TABLE, WIDTH);
        cursor = table.scan(at, 7, &mut out);
        for record in out {
            let key = u64::from_be_bytes(table.key(record).try_into().unwrap());
            assert!(seen.insert(key, table.value(record).to_vec()).is_none(), "seed {seed}: key {key} twice");
        }
        shard.maintain().unwrap();
    }
    assert_eq!(&seen, model, "seed {seed}");
    assert_eq!(shard.point(TABLE, WIDTH).len(), model.len());
}

#[test]
fn a_shard_larger_than_its_memory_answers_as_a_map_and_keeps_its_budget() {
    let base = setting("TIDERACE_CRASH_SEED", 1);
    for seed in base..base + setting("TIDERACE_CRASH_ROUNDS", 6) {
        let shard = run(seed, SMALL, 1500, 160 << 10, 12_000);
        let counts = shard.store_counts();
        assert!(counts.pages_read > 500 && counts.pages_written > 200, "seed {seed}: {counts:?}");
        run(seed, TINY, 800, 128 << 10, 6000);
    }
}

// R4: the index doubles many times while most records are on the device.
#[test]
fn r4_the_index_grows_while_records_are_on_the_device() {
    let mut shard = open(4, SMALL, 352 << 10);
    for key in 0..6000_u64 {
        patiently(&mut shard, |s| s.submit(TABLE, WIDTH, hash(key), &key.to_be_bytes(), Operation::Upsert(vec![key as u8; 60])));
        assert!(shard.used_bytes() <= 352 << 10);
        if key % 64 == 0 {
            shard.maintain().unwrap();
        }
    }
    let mut out = Vec::new();
    drain(&mut shard, &mut out);
    let model = (0..6000).map(|k| (k, vec![k as u8; 60])).collect();
    check(&mut shard, &model, 6000, 4);
}

// R2, and FASTER's lost updates: rmw of a key that is on the device sees it; many on one key all count.
#[test]
fn r2_rmw_of_a_key_on_the_device_sees_it() {
    let mut shard = open(2, SMALL, 128 << 10);
    for key in 0..1500_u64 {
        patiently(&mut shard, |s| s.submit(TABLE, 8, hash(key), &key.to_be_bytes(), Operation::Upsert(vec![1; 100])));
        shard.maintain().unwrap();
    }
    drain(&mut shard, &mut Vec::new());
    let mut tickets = 0;
    for _ in 0..10 {
        let add = Operation::Rmw(Box::new(|old| {
            let mut new = old.map_or_else(Vec::new, <[u8]>::to_vec);
            new[0] += 1;
            new
        }));
        let submitted = shard.submit(TABLE, 8, hash(0), &0_u64.to_be_bytes(), add).unwrap();
        tickets += u32::from(matches!(submitted, Submitted::Pending(_)));
    }
    assert_eq!(tickets, 10, "the first is on the device, the others wait for it");
    let mut out = Vec::new();
    drain(&mut shard, &mut out);
    assert_eq!(out.len(), 10);
    assert!(out.is_sorted_by_key(|(ticket, _)| *ticket), "in the order of submission: {out:?}");
    let read = shard.submit(TABLE, 8, hash(0), &0_u64.to_be_bytes(), Operation::Read).unwrap();
    let Submitted::Done(Answer::Value(Some(value))) = read else { panic!("{read:?}") };
    assert_eq!((value[0], value.len()), (11, 100));
}

// FASTER #911, #300: what waits for the device must not overlook newer records and removals of its key.
#[test]
fn a_pending_read_sees_what_was_submitted_before_it_and_nothing_later() {
    let mut shard = open(9, SMALL, 128 << 10);
    for key in 0..1500_u64 {
        patiently(&mut shard, |s| s.submit(TABLE, 8, hash(key), &key.to_be_bytes(), Operation::Upsert(vec![1; 100])));
        shard.maintain().unwrap();
    }
    drain(&mut shard, &mut Vec::new());
    let key = 1_u64.to_be_bytes();
    let mut submit = |operation| match shard.submit(TABLE, 8, hash(1), &key, operation).unwrap() {
        Submitted::Pending(ticket) => ticket,
        done @ Submitted::Done(_) => panic!("{done:?}"),
    };
    let first = submit(Operation::Read);
    submit(Operation::Delete);
    let gone = submit(Operation::Read);
    submit(Operation::Upsert(b"new".to_vec()));
    let new = submit(Operation::Read);
    let mut out = Vec::new();
    drain(&mut shard, &mut out);
    let answers: BTreeMap<_, _> = out.into_iter().collect();
    assert_eq!(answers[&first], Ok(Answer::Value(Some(vec![1; 100]))));
    assert_eq!(answers[&gone], Ok(Answer::Value(None)));
    assert_eq!(answers[&new], Ok(Answer::Value(Some(b"new".to_vec()))));
}

/// The calls of batch operators: fetch, then entries and changes in place.
#[test]
fn batches_that_were_fetched_never_wait_for_the_device() {
    let mut random = Random(11);
    let budget = 256 << 10;
    let mut shard = open(11, TableLayout { index_bits: 8, segment_bits: 8, ..SMALL }, budget);
    let mut model: BTreeMap<u64, u64> = BTreeMap::new();
    let mut entries = Vec::new();
    for round in 0..1500_u64 {
        shard.maintain().unwrap();
        let keys: Vec<u64> = (0..1 + random.below(24)).map(|_| random.below(4000)).collect();
        let bytes: Vec<u8> = keys.iter().flat_map(|k| k.to_be_bytes()).collect();
        let offsets: Vec<u32> = (0..=keys.len() as u32).map(|i| i * 8).collect();
        let hashes: Vec<u64> = keys.iter().map(|k| hash(*k)).collect();
        let batch = KeyBatch { bytes: &bytes, offsets: &offsets, hashes: &hashes };
        patiently(&mut shard, |shard| match shard.fetch(TABLE, 40, &batch)? {
            Residency::Pending(_) => Err(NoRoom::Busy { bytes_needed: 0 }),
            Residency::Resident => Ok(()),
        });
        let waited = shard.store_counts().pages_waited_for;
        let table = shard.point(TABLE, 40);
        entries.clear();
        table.entries(&batch, &mut entries);
        for (entry, key) in entries.iter().zip(&keys) {
            let count = model.entry(*key).or_insert_with(|| {
                assert!(entry.is_new, "round {round}, key {key}");
                0
            });
            let old = u64::from_le_bytes(table.value(entry.record)[..8].try_into().unwrap());
            assert_eq!(old, *count, "round {round}, key {key}");
            *count += 1;
            table.value_mut(entry.record)[..8].copy_from_slice(&count.to_le_bytes());
            // Whoever still has the reference sees the change, wherever the record is by now.
            assert_eq!(table.value(entry.record)[..8], count.to_le_bytes());
        }
        assert_eq!(shard.store_counts().pages_waited_for, waited, "round {round}: a fetched key was waited for");
        assert!(shard.used_bytes() <= budget, "round {round}: {} B", shard.used_bytes());
    }
    assert!(shard.store_counts().pages_read > 1000, "{:?}", shard.store_counts());
}

#[test]
fn damage_and_errors_of_the_device_are_errors_and_never_absence() {
    for (seed, fault) in (0..30)
        .flat_map(|s| [(s, Fault::BitFlip), (s, Fault::Io), (s, Fault::Misdirected(512)), (s, Fault::Lost), (s, Fault::Zeroed)])
    {
        let mut device = SimDevice::new(seed);
        let mut random = Random(seed);
        device.inject(20 + random.below(200), fault);
        let mut shard = Shard::with_device(ShardOptions { budget_bytes: 72 << 10 }, SMALL, Box::new(device), store()).unwrap();
        let mut model: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut expected: BTreeMap<Ticket, Option<Vec<u8>>> = BTreeMap::new();
        let mut completed = Vec::new();
        'work: for _ in 0..4000 {
            let key = random.below(600);
            let write = random.below(2) == 0;
            let fresh = value(&mut random, 200);
            for attempt in 0.. {
                let operation = if write { Operation::Upsert(fresh.clone()) } else { Operation::Read };
                match shard.submit(TABLE, 8, hash(key), &key.to_be_bytes(), operation) {
                    Ok(Submitted::Done(Answer::Value(found))) => {
                        assert_eq!(found.as_ref(), model.get(&key), "seed {seed} {fault:?}")
                    }
                    Ok(Submitted::Pending(ticket)) if !write => drop(expected.insert(ticket, model.get(&key).cloned())),
                    Ok(_) => drop(model.insert(key, fresh.clone())),
                    Err(_) if attempt < 1000 && shard.maintain().is_ok() => {
                        shard.complete_pending(Duration::from_millis(1));
                        continue;
                    }
                    Err(_) => break 'work,
                }
                break;
            }
            shard.complete_pending(Duration::ZERO);
            let failed = shard.maintain().is_err();
            shard.take_completed(&mut completed);
            for (ticket, answer) in completed.drain(..) {
                if let (Some(right), Ok(answer)) = (expected.remove(&ticket), answer) {
                    assert_eq!(answer, Answer::Value(right), "seed {seed} {fault:?}");
                }
            }
            if failed {
                assert!(shard.failure().is_some());
                break;
            }
        }
    }
}

// On files, by io_uring where there is one and by plain calls: larger than memory, checkpointed, opened anew.
#[test]
fn a_shard_on_real_files_is_what_it_was_after_it_is_opened_anew() {
    for allow_io_uring in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let budget = 1 << 20;
        let layout = TableLayout { page_bits: 13, segment_bits: 8, ..TableLayout::for_device() };
        let options = StoreOptions { segment_bytes: 256 << 10, ..store() };
        let open = || {
            let (device, _) = open_device(directory.path(), allow_io_uring).unwrap();
            Shard::open(ShardOptions { budget_bytes: budget }, layout, device, options, 2, OpenAt::Newest).unwrap()
        };
        let mut model: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut random = Random(21);
        for version in 1..4 {
            let (mut shard, recovered) = open();
            assert_eq!(recovered.map(|r| r.version), (version > 1).then(|| version - 1));
            for _ in 0..6000 {
                let (key, fresh) = (random.below(8000), value(&mut random, 600));
                if random.below(8) == 0 {
                    patiently(&mut shard, |s| s.submit(TABLE, WIDTH, hash(key), &key.to_be_bytes(), Operation::Delete));
                    model.remove(&key);
                } else {
                    let upsert = || Operation::Upsert(fresh.clone());
                    patiently(&mut shard, |s| s.submit(TABLE, WIDTH, hash(key), &key.to_be_bytes(), upsert()));
                    model.insert(key, fresh);
                }
                assert!(shard.used_bytes() <= budget, "{} B", shard.used_bytes());
            }
            drain(&mut shard, &mut Vec::new());
            shard.checkpoint_now(version, b"").unwrap();
            // What comes after the checkpoint is gone when it is opened anew.
            patiently(&mut shard, |s| s.submit(TABLE, WIDTH, hash(9999), &9999_u64.to_be_bytes(), Operation::Upsert(vec![1])));
        }
        let (mut shard, _) = open();
        check(&mut shard, &model, 10_000, 21);
        assert_eq!(shard.failure(), None);
        assert!(shard.store_counts().pages_read > 200, "{:?}", shard.store_counts());
    }
}
