//! The concurrent store: nothing is lost between threads, and every checkpoint is, of each session, exactly its changes up to one serial.
//! Rows R1, R5 and R13 of the storage design and the defects of other stores that apply are named at their tests.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tiderace_storage::{
    DeviceOp, Done, FileDevice, KvCheckpoint, KvError, KvKeys, KvOptions, KvSlot, Session, ShardedKv, SimDevice,
};

const SOON: Duration = Duration::from_secs(30);

fn open(directory: &Path) -> ShardedKv<FileDevice> {
    ShardedKv::open(FileDevice::open(directory).unwrap(), KvOptions { shards: 16, ..KvOptions::new(2) }).unwrap()
}

fn add_one(slot: KvSlot<'_>) {
    let (KvSlot::Initial(value) | KvSlot::InPlace(value)) = slot;
    let sum = u64::from_le_bytes(value.try_into().unwrap()) + 1;
    value.copy_from_slice(&sum.to_le_bytes());
}

fn number(value: Option<Vec<u8>>) -> u64 {
    value.map_or(0, |v| u64::from_le_bytes(v.try_into().unwrap()))
}

/// R1, and FASTER #533: read-modify-writes of one key by several threads all count.
#[test]
fn no_update_of_a_hot_key_is_lost() {
    let kv = ShardedKv::open(SimDevice::new(1), KvOptions::new(2)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let mut session = kv.start_session().unwrap();
            scope.spawn(move || {
                let keys: KvKeys = std::iter::repeat_n(b"hot", 100).collect();
                for i in 0..500_000_u64 {
                    match thread {
                        0 if i % 100 == 0 => session.rmw_batch(&keys, |_, slot| add_one(slot)).unwrap(),
                        0 => {}
                        _ => session.rmw(b"hot", |v| Some((number(v.map(<[u8]>::to_vec)) + 1).to_le_bytes().to_vec())).unwrap(),
                    }
                }
                assert_eq!(session.serial(), 500_000);
            });
        }
    });
    assert_eq!(number(kv.start_session().unwrap().read(b"hot").unwrap()), 2_000_000);
}

const KEYS: u64 = 400;

/// Change `serial` of a session: it counts itself under a key of the session's own, and under one of a few that all share.
fn changes(session: u64, serials: std::ops::Range<u64>) -> KvKeys {
    serials
        .map(|serial| {
            let own = serial.is_multiple_of(2);
            if own { (session + 1, serial % KEYS).to_key() } else { (0, (serial / 2) % 7).to_key() }
        })
        .collect()
}

trait ToKey {
    fn to_key(self) -> Vec<u8>;
}

impl ToKey for (u64, u64) {
    fn to_key(self) -> Vec<u8> {
        [self.0.to_be_bytes(), self.1.to_be_bytes()].concat()
    }
}

/// What the store holds when each session has made its changes up to a serial.
fn expected(serials: &[(u64, u64)]) -> BTreeMap<Vec<u8>, u64> {
    let mut model = BTreeMap::new();
    for (session, last) in serials {
        let keys = changes(*session, 1..last + 1);
        (0..keys.len()).for_each(|i| *model.entry(keys.key(i).to_vec()).or_insert(0) += 1);
    }
    model
}

fn content<D: tiderace_storage::Device>(kv: &ShardedKv<D>) -> BTreeMap<Vec<u8>, u64> {
    let mut found = BTreeMap::new();
    kv.for_each(|key, value| {
        assert!(found.insert(key.to_vec(), number(Some(value.to_vec()))).is_none(), "a key stands there twice");
    })
    .unwrap();
    found
}

/// Makes changes from the session's next serial on, in batches and alone, until told to stop or `last` is reached.
fn change_until(session: &mut Session, stop: &AtomicBool, last: u64) {
    let mut size = session.id() % 5;
    while !stop.load(Ordering::Relaxed) && session.serial() < last {
        size = (size * 7 + 3) % 61;
        let from = session.serial() + 1;
        let keys = changes(session.id(), from..(from + 1 + size).min(last + 1));
        session.rmw_batch(&keys, |_, slot| add_one(slot)).unwrap();
    }
}

/// R5, and FASTER #322: while twelve threads write, each checkpoint holds exactly the changes up to the serials that it tells, over all keys.
#[test]
fn each_checkpoint_under_load_is_a_prefix_of_every_session() {
    for round in 0..4 {
        let directory = tempfile::tempdir().unwrap();
        let kv = open(directory.path());
        let stop = AtomicBool::new(false);
        let mut last: Option<KvCheckpoint> = None;
        std::thread::scope(|scope| {
            for _ in 0..12 {
                let (kv, stop) = (&kv, &stop);
                scope.spawn(move || change_until(&mut kv.start_session().unwrap(), stop, u64::MAX / 2));
            }
            for _ in 0..3 + round {
                let checkpoint = kv.checkpoint(SOON).unwrap();
                if let Some(before) = &last {
                    assert!(checkpoint.version > before.version);
                    for (id, serial) in &before.serials {
                        assert!(checkpoint.serials.iter().any(|(i, s)| i == id && s >= serial), "session {id} went back");
                    }
                }
                last = Some(checkpoint);
            }
            stop.store(true, Ordering::Relaxed);
        });
        let last = last.unwrap();
        let finals = kv.sessions();
        drop(kv);
        let kv = open(directory.path());
        assert_eq!(kv.sessions(), last.serials);
        assert!(content(&kv) == expected(&last.serials), "round {round}: something else than the serials tell");
        assert!(finals.iter().zip(&last.serials).any(|(end, cut)| end.1 > cut.1), "nobody wrote during the checkpoint");
    }
}

/// FASTER's recovery tests: sessions go on behind their last serials, by several threads, and the end is as if nothing had happened.
#[test]
fn sessions_go_on_where_the_checkpoint_has_them() {
    let directory = tempfile::tempdir().unwrap();
    let goal = 4000;
    let mut generation = 0;
    loop {
        let kv = open(directory.path());
        let sessions: Vec<Session> = if generation == 0 {
            (0..10).map(|_| kv.start_session().unwrap()).collect()
        } else {
            kv.sessions().iter().map(|(id, serial)| kv.resume_session(*id, serial + 1).unwrap()).collect()
        };
        generation += 1;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for mut session in sessions {
                let stop = &stop;
                scope.spawn(move || change_until(&mut session, stop, goal));
            }
            kv.checkpoint(SOON).unwrap();
            std::thread::yield_now();
            kv.checkpoint(SOON).unwrap();
            stop.store(generation < 5, Ordering::Relaxed);
        });
        if generation >= 5 {
            assert!(kv.sessions().iter().all(|(_, serial)| *serial == goal));
            let checkpoint = kv.checkpoint(SOON).unwrap();
            assert_eq!(content(&kv), expected(&checkpoint.serials));
            break;
        }
    }
    let kv = open(directory.path());
    assert_eq!(content(&kv), expected(&(0..10).map(|id| (id, goal)).collect::<Vec<_>>()));
}

/// R13, and FASTER #227, #280, #153: sessions that are idle, dropped, or started meanwhile don't hold up a checkpoint; nor does an empty store.
#[test]
fn idle_dropped_and_fresh_sessions_never_hold_up_a_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let kv = open(directory.path());
    let soon = Duration::from_secs(5);
    assert_eq!(kv.checkpoint(soon).unwrap().records, 0);
    let mut idle = kv.start_session().unwrap();
    let never_used = kv.start_session().unwrap();
    let mut dropped = kv.start_session().unwrap();
    let no_stop = AtomicBool::new(false);
    change_until(&mut idle, &no_stop, 10);
    change_until(&mut dropped, &no_stop, 20);
    drop(dropped);
    let start = Instant::now();
    let checkpoint = kv.checkpoint(soon).unwrap();
    assert!(start.elapsed() < soon);
    assert_eq!(checkpoint.serials, [(0, 10), (1, 0), (2, 20)]);
    assert_eq!((idle.durable_serial(), never_used.durable_serial()), (10, 0));
    let mut fresh = kv.start_session().unwrap();
    change_until(&mut fresh, &no_stop, 5);
    change_until(&mut idle, &no_stop, 15);
    // Of two checkpoints without changes between them the second is as the first.
    let one = kv.checkpoint(soon).unwrap();
    let two = kv.checkpoint(soon).unwrap();
    assert_eq!((one.serials.as_slice(), &one.serials), ([(0, 15), (1, 0), (2, 20), (3, 5)].as_slice(), &two.serials));
    drop((idle, never_used, fresh, kv));
    let kv = open(directory.path());
    assert_eq!(content(&kv), expected(&two.serials));
    assert_eq!(kv.start_session().unwrap().id(), 4, "numbers of sessions are never given out again");
}

#[test]
fn serials_are_validated_when_a_session_is_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let kv = open(directory.path());
    let mut session = kv.start_session().unwrap();
    change_until(&mut session, &AtomicBool::new(false), 7);
    kv.checkpoint(SOON).unwrap();
    change_until(&mut session, &AtomicBool::new(false), 9);
    assert_eq!(kv.resume_session(0, 10).map(|_| ()), Err(KvError::SessionInUse { session: 0 }));
    assert_eq!(kv.forget_session(0), Err(KvError::SessionInUse { session: 0 }));
    drop((session, kv));
    let kv = open(directory.path());
    assert_eq!(kv.resume_session(0, 10).map(|_| ()), Err(KvError::SerialGap { session: 0, expected: 8, got: 10 }));
    assert_eq!(kv.resume_session(0, 7).map(|_| ()), Err(KvError::SerialGap { session: 0, expected: 8, got: 7 }));
    assert_eq!(kv.resume_session(5, 1).map(|_| ()), Err(KvError::UnknownSession { session: 5 }));
    assert_eq!(kv.resume_session(0, 8).unwrap().serial(), 7);
    kv.forget_session(0).unwrap();
    assert_eq!(kv.forget_session(0), Err(KvError::UnknownSession { session: 0 }));
    assert_eq!(kv.checkpoint(SOON).unwrap().serials, []);
}

/// A batch that doesn't end makes a checkpoint fail by its deadline; the next one, when it has ended, holds all.
#[test]
fn a_batch_that_hangs_costs_a_checkpoint_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let kv = open(directory.path());
    let mut writer = kv.start_session().unwrap();
    change_until(&mut writer, &AtomicBool::new(false), 50);
    let (release, wait) = mpsc::channel::<()>();
    let (entered, has_entered) = mpsc::channel::<()>();
    let mut slow = kv.start_session().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            slow.read_with(b"some key", |_| {
                entered.send(()).unwrap();
                wait.recv_timeout(SOON).unwrap();
            })
            .unwrap();
        });
        has_entered.recv_timeout(SOON).unwrap();
        assert_eq!(kv.checkpoint(Duration::from_millis(40)), Err(KvError::Timeout { waited_ms: 40 }));
        release.send(()).unwrap();
    });
    change_until(&mut writer, &AtomicBool::new(false), 80);
    let checkpoint = kv.checkpoint(SOON).unwrap();
    assert_eq!((checkpoint.version, checkpoint.serials[0]), (3, (0, 80)));
    drop((writer, kv));
    assert_eq!(content(&open(directory.path())), expected(&[(0, 80)]));
}

#[test]
fn a_panic_inside_a_change_stops_the_store_and_hangs_nobody() {
    let kv = ShardedKv::open(SimDevice::new(1), KvOptions { shards: 1, ..KvOptions::new(1) }).unwrap();
    let mut session = kv.start_session().unwrap();
    session.upsert(b"a", b"12345678").unwrap();
    let panicked = std::thread::scope(|scope| {
        let mut other = kv.start_session().unwrap();
        scope.spawn(move || other.rmw(b"a", |_| panic!("meant"))).join()
    });
    assert!(panicked.is_err());
    assert_eq!(session.upsert(b"b", b"12345678"), Err(KvError::Poisoned));
    assert_eq!(kv.checkpoint(SOON), Err(KvError::Poisoned));
}

#[test]
fn a_store_over_its_budget_refuses_changes_until_keys_are_removed() {
    let options = KvOptions { shards: 4, budget_bytes: 4 << 20, ..KvOptions::new(1) };
    let kv = ShardedKv::open(SimDevice::new(1), options).unwrap();
    let mut session = kv.start_session().unwrap();
    let mut added = 0_u64;
    let refused = loop {
        match session.upsert(&added.to_be_bytes(), &[1; 500]) {
            Ok(()) => added += 1,
            Err(e) => break e,
        }
    };
    assert!(matches!(refused, KvError::Full { budget_bytes: 4_194_304, .. }), "{refused}");
    assert!(added > 3000 && kv.len().unwrap() as u64 == added, "{added}");
    assert_eq!(session.serial(), added);
    let keys: KvKeys = (0..added).map(u64::to_be_bytes).collect();
    assert_eq!(session.delete_batch(&keys).unwrap() as u64, added);
    session.upsert(b"again", &[1; 500]).unwrap();
}

#[test]
fn values_of_another_kind_are_refused_and_shards_stay_as_they_were_made() {
    let directory = tempfile::tempdir().unwrap();
    let kv = open(directory.path());
    kv.start_session().unwrap().upsert(b"key", b"a value of another length").unwrap();
    kv.checkpoint(SOON).unwrap();
    drop(kv);
    let device = || FileDevice::open(directory.path()).unwrap();
    let other = ShardedKv::open(device(), KvOptions { value_bytes: 16, ..KvOptions::new(2) }).map(drop);
    assert!(matches!(other, Err(KvError::Foreign { .. })), "{other:?}");
    let kv = ShardedKv::open(device(), KvOptions { shards: 5, ..KvOptions::new(2) }).unwrap();
    assert_eq!(kv.shards(), 16);
    assert_eq!(kv.start_session().unwrap().read(b"key").unwrap().unwrap(), b"a value of another length");
}

/// A key or a value that is too long is the caller's mistake: an error, and the store goes on.
#[test]
fn keys_and_values_that_are_too_long_are_refused_and_the_store_goes_on() {
    let kv = ShardedKv::open(SimDevice::new(1), KvOptions::new(1)).unwrap();
    let mut session = kv.start_session().unwrap();
    let long = vec![7; 1 << 26];
    let is_refused = |result: Result<(), KvError>| matches!(result, Err(KvError::TooLarge { what: "key", .. }));
    assert!(is_refused(session.upsert(&long, b"")));
    assert!(is_refused(session.rmw(&long, |_| Some(Vec::new()))));
    let keys: KvKeys = [b"short".as_slice(), &long].into_iter().collect();
    assert!(is_refused(session.upsert_batch(&keys, |_| b"12345678")));
    assert!(is_refused(session.rmw_batch(&keys, |_, slot| add_one(slot))));
    // Such a key is nowhere.
    assert_eq!(session.read(&long).unwrap(), None);
    assert!(!session.delete(&long).unwrap());
    assert_eq!((session.serial(), kv.len().unwrap()), (1, 0));
    // One byte less is a key like others, also in a checkpoint.
    session.upsert(&long[1..], b"value").unwrap();
    kv.checkpoint(SOON).unwrap();
    let kv = ShardedKv::open(kv.into_device().unwrap(), KvOptions::new(1)).unwrap();
    assert_eq!(kv.start_session().unwrap().read(&long[1..]).unwrap().unwrap(), b"value");
}

#[test]
fn only_one_checkpoint_is_taken_at_a_time() {
    let kv = ShardedKv::open(SimDevice::new(1), KvOptions { shards: 8, ..KvOptions::new(2) }).unwrap();
    let taken = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    // A device in memory is not shared between threads by itself, the store's lock does that.
    std::thread::scope(|scope| {
        let (kv, stop, taken) = (&kv, &stop, &taken);
        scope.spawn(move || change_until(&mut kv.start_session().unwrap(), stop, u64::MAX / 2));
        let checkpoints: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(move || {
                    for _ in 0..20 {
                        match kv.checkpoint(SOON) {
                            Ok(_) => drop(taken.fetch_add(1, Ordering::Relaxed)),
                            Err(e) => assert_eq!(e, KvError::Busy),
                        }
                    }
                })
            })
            .collect();
        checkpoints.into_iter().for_each(|c| c.join().unwrap());
        stop.store(true, Ordering::Relaxed);
    });
    assert!(taken.load(Ordering::Relaxed) >= 20);
}

#[derive(Clone, Debug)]
enum Step {
    Upsert(Vec<(u8, u8)>, usize),
    Rmw(Vec<u8>),
    Delete(Vec<u8>),
    One(u8, Option<u8>),
    Read(Vec<u8>),
    Checkpoint,
    Recover,
}

fn step() -> impl Strategy<Value = Step> {
    let keys = || prop::collection::vec(0_u8..40, 0..20);
    prop_oneof![
        6 => (prop::collection::vec((0_u8..40, any::<u8>()), 0..20), prop::sample::select(vec![8_usize, 8, 8, 3, 30])).prop_map(|(k, n)| Step::Upsert(k, n)),
        6 => keys().prop_map(Step::Rmw),
        3 => keys().prop_map(Step::Delete),
        3 => (0_u8..40, any::<Option<u8>>()).prop_map(|(k, v)| Step::One(k, v)),
        4 => keys().prop_map(Step::Read),
        2 => Just(Step::Checkpoint),
        1 => Just(Step::Recover),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_session_behaves_as_a_map_and_recovery_as_going_back(steps in prop::collection::vec(step(), 1..60), shards in 1_u32..9) {
        let options = KvOptions { shards, ..KvOptions::new(1) };
        let mut kv = ShardedKv::open(SimDevice::new(1), options.clone()).unwrap();
        let mut session = kv.start_session().unwrap();
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut saved = None;
        let mut serial = 0;
        let batch = |keys: &[u8]| keys.iter().map(|k| [*k; 3]).collect::<KvKeys>();
        for step in steps {
            match step {
                Step::Upsert(pairs, bytes) => {
                    let keys: KvKeys = pairs.iter().map(|(k, _)| [*k; 3]).collect();
                    let values: Vec<_> = pairs.iter().map(|(k, v)| vec![*v; if k % 5 == 0 { bytes } else { 8 }]).collect();
                    session.upsert_batch(&keys, |i| &values[i]).unwrap();
                    serial += pairs.len() as u64;
                    pairs.iter().zip(values).for_each(|((k, _), v)| drop(model.insert(vec![*k; 3], v)));
                }
                Step::Rmw(keys) => {
                    session.rmw_batch(&batch(&keys), |i, slot| {
                        let (is_new, value) = match slot {
                            KvSlot::Initial(value) => (true, value),
                            KvSlot::InPlace(value) => (false, value),
                        };
                        value[0] = value[0].wrapping_add(keys[i]).wrapping_add(u8::from(is_new));
                    }).unwrap();
                    serial += keys.len() as u64;
                    for k in keys {
                        let is_new = !model.contains_key([k; 3].as_slice());
                        let value = model.entry(vec![k; 3]).or_insert(vec![0; 8]);
                        value[0] = value[0].wrapping_add(k).wrapping_add(u8::from(is_new));
                    }
                }
                Step::Delete(keys) => {
                    let removed = session.delete_batch(&batch(&keys)).unwrap();
                    serial += keys.len() as u64;
                    prop_assert_eq!(removed, keys.iter().filter(|k| model.remove([**k; 3].as_slice()).is_some()).count());
                }
                Step::One(key, value) => {
                    session.rmw(&[key; 3], |old| {
                        assert_eq!(old, model.get([key; 3].as_slice()).map(Vec::as_slice));
                        value.map(|v| vec![v; usize::from(v % 12)])
                    }).unwrap();
                    serial += 1;
                    match value {
                        // Batches change the first byte of values in place, so none of length 0 stays.
                        Some(v) if v % 12 > 0 => drop(model.insert(vec![key; 3], vec![v; usize::from(v % 12)])),
                        _ => {
                            session.delete(&[key; 3]).unwrap();
                            serial += 1;
                            model.remove([key; 3].as_slice());
                        }
                    }
                }
                Step::Read(keys) => {
                    let mut seen = 0;
                    session.read_batch(&batch(&keys), |i, value| {
                        seen += 1;
                        assert_eq!(value, model.get([keys[i]; 3].as_slice()).map(Vec::as_slice));
                    }).unwrap();
                    prop_assert_eq!(seen, keys.len());
                    for k in keys {
                        prop_assert_eq!(session.read(&[k; 3]).unwrap(), model.get([k; 3].as_slice()).cloned());
                    }
                }
                Step::Checkpoint => {
                    let checkpoint = kv.checkpoint(SOON).unwrap();
                    prop_assert_eq!(checkpoint.records, model.len() as u64);
                    prop_assert_eq!(session.durable_serial(), serial);
                    saved = Some((model.clone(), serial));
                }
                Step::Recover => {
                    drop(session);
                    kv = ShardedKv::open(kv.into_device().unwrap().crash(3), options.clone()).unwrap();
                    (model, serial) = saved.clone().unwrap_or_default();
                    session = if saved.is_some() { kv.resume_session(0, serial + 1).unwrap() } else { kv.start_session().unwrap() };
                }
            }
            prop_assert_eq!(session.serial(), serial);
            prop_assert_eq!(kv.len().unwrap(), model.len());
        }
    }
}

#[test]
fn a_checkpoint_whose_note_is_another_kind_is_refused() {
    let mut device = SimDevice::new(1);
    let image = tiderace_storage::Image::of(
        &tiderace_storage::Shard::new(tiderace_storage::ShardOptions { budget_bytes: usize::MAX }),
        4,
    );
    tiderace_storage::Checkpoints::open(&mut device, 2).unwrap().commit(1, &image, b"of a job").unwrap();
    let Done::Files(files) = tiderace_storage::Device::execute(&mut device, DeviceOp::List).unwrap() else { panic!("files") };
    assert_eq!(files.len(), 1, "a manifest; nothing has no data");
    let refused = ShardedKv::open(device, KvOptions::new(1)).map(drop);
    assert!(matches!(refused, Err(KvError::Foreign { version: 1, .. })), "{refused:?}");
}
