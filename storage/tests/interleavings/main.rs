//! The shared pieces of the log and of the concurrent store, as they run in production, under a scheduler that tries many interleavings:
//! their files are compiled here once more, with the scheduler's primitives in the place of `crate::sync`.
//!
//! `TIDERACE_INTERLEAVINGS` chooses how many. A failure prints the schedule that shows it again.
#![allow(clippy::unwrap_used, dead_code, unused_imports, unreachable_pub, reason = "tests; the modules are used in part")]

#[path = "../../src/bugs.rs"]
mod bugs;
#[path = "../../src/directory_kind.rs"]
mod directory_kind;
#[path = "../../src/kv/mod.rs"]
mod kv;
#[path = "../../src/log/mod.rs"]
mod log;
#[path = "../../src/segment/mod.rs"]
mod segment;

mod sync {
    pub use shuttle::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    pub use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
    pub use shuttle::thread;
}

mod checkpoint {
    pub use tiderace_storage::{Checkpoint, CheckpointError, Checkpoints, Image, Part, vnode_of};
}

mod device {
    pub use tiderace_storage::{Completion, Device, DeviceError, DeviceOp, Done, FileName, ReadOnlyDevice, Token, open_device};
}

mod point {
    pub use tiderace_storage::{Entry, KeyBatch, RecordRef};
}

mod shard {
    pub use tiderace_storage::{CaptureKind, Shard, ShardOptions, TableId};
}

use std::collections::BTreeMap;
use std::sync::Mutex as StdMutex;
use std::time::Duration;

use kv::{KvKeys, KvOptions, KvSlot, Session, ShardedKv};
use log::Log;
use segment::{LogOptions, Lsn};
use shuttle::sync::Arc;
use shuttle::thread;
use tiderace_storage::{Completion, Device, DeviceError, DeviceOp, Done, SimDevice, Token};

const SOON: Duration = Duration::from_secs(60);

fn interleavings(usual: usize) -> usize {
    std::env::var("TIDERACE_INTERLEAVINGS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// One disk in several hands. Its lock is never held while the scheduler may switch.
#[derive(Clone, Debug)]
struct SharedDisk {
    sim: Arc<StdMutex<SimDevice>>,
    done: Arc<StdMutex<Vec<Completion>>>,
}

impl SharedDisk {
    fn new() -> Self {
        Self { sim: Arc::new(StdMutex::new(SimDevice::new(1))), done: Arc::default() }
    }

    fn log(&self) -> Log {
        let its = self.sim.clone();
        let reading = move || Ok(Box::new(SharedDisk { sim: its.clone(), done: Arc::default() }) as Box<dyn Device + Send>);
        let options = LogOptions { segment_bytes: 8192, pending_bytes_max: 600, commit_bytes: 200, ..LogOptions::new(1) };
        let device = SharedDisk { sim: self.sim.clone(), done: Arc::default() };
        Log::open(device, Box::new(reading), options).unwrap()
    }
}

impl Device for SharedDisk {
    fn submit(&mut self, op: DeviceOp) -> Token {
        let result = self.sim.lock().unwrap().execute(op);
        self.done.lock().unwrap().push(Completion { token: Token(0), result });
        Token(0)
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done.lock().unwrap());
    }

    fn wait(&mut self, _: Duration) {}
}

fn records(log: &Log) -> Vec<Vec<u8>> {
    let mut scan = log.scan(log.begin().unwrap()).unwrap();
    let mut found = Vec::new();
    while let Some(record) = scan.next().unwrap() {
        found.push(record.payload.to_vec());
    }
    found
}

/// R11: whatever the order of appends, commits and the log's own thread, each record is whole, once there, and durable when it is said to be.
#[test]
fn appends_race_commits_and_closing() {
    shuttle::check_random(
        || {
            let disk = SharedDisk::new();
            let log = Arc::new(disk.log());
            let appenders: Vec<_> = (0..3_u8)
                .map(|thread| {
                    let log = Arc::clone(&log);
                    thread::spawn(move || {
                        for i in 0..3_u8 {
                            let record = vec![thread * 16 + i; 40 + usize::from(i) * 20];
                            let lsn = log.append_or_wait(&[&record, &[thread, i]], SOON).unwrap();
                            if i == 1 {
                                let until = log.commit().unwrap();
                                log.wait_for_commit(until, SOON).unwrap();
                                assert_eq!(log.read(lsn).unwrap(), record);
                            }
                        }
                    })
                })
                .collect();
            appenders.into_iter().for_each(|a| a.join().unwrap());
            Arc::into_inner(log).unwrap().close().unwrap();
            let log = disk.log();
            let found = records(&log);
            assert_eq!(found.len(), 18);
            let mut next = [0_u8; 3];
            for pair in found.chunks(2) {
                let [thread, i] = pair[1][..] else { panic!("a batch is torn") };
                assert_eq!(pair[0], vec![thread * 16 + i; 40 + usize::from(i) * 20]);
                assert_eq!(next[usize::from(thread)], i);
                next[usize::from(thread)] += 1;
            }
            log.close().unwrap();
        },
        interleavings(300),
    );
}

/// A tailing scan gets all there is and ends, whatever comes between its look and its wait; truncation beside it is told.
#[test]
fn a_tailing_scan_races_appends_and_truncation() {
    shuttle::check_random(
        || {
            let disk = SharedDisk::new();
            let log = Arc::new(disk.log());
            let writer = {
                let log = Arc::clone(&log);
                thread::spawn(move || {
                    for i in 0..6_u8 {
                        log.append_or_wait(&[&[i; 30]], SOON).unwrap();
                        log.commit().unwrap();
                    }
                    let until = log.truncate_before(log.durable().unwrap()).unwrap();
                    log.wait_for_commit(until, SOON).unwrap();
                })
            };
            let mut scan = log.scan(Lsn(0)).unwrap();
            for i in 0..6_u8 {
                match scan.next_or_wait(SOON) {
                    Ok(record) => assert_eq!(record.unwrap().payload, [i; 30]),
                    Err(segment::LogError::Truncated { .. }) => break,
                    Err(e) => panic!("{e}"),
                }
            }
            writer.join().unwrap();
            drop(scan);
            Arc::into_inner(log).unwrap().close().unwrap();
        },
        interleavings(300),
    );
}

/// Change `serial` of a session adds one to a key of its own or to one that all share.
fn key(session: u64, serial: u64) -> [u8; 2] {
    [if serial.is_multiple_of(2) { 99 } else { session as u8 }, (serial % 3) as u8]
}

fn add_one(slot: KvSlot<'_>) {
    let (KvSlot::Initial(value) | KvSlot::InPlace(value)) = slot;
    value[0] += 1;
}

fn change(session: &mut Session, count: u64) {
    let from = session.serial() + 1;
    let keys: KvKeys = (from..from + count).map(|serial| key(session.id(), serial)).collect();
    session.rmw_batch(&keys, |_, slot| add_one(slot)).unwrap();
}

fn change_alone(session: &mut Session) {
    let key = key(session.id(), session.serial() + 1);
    let plus_one = |v: Option<&[u8]>| Some(vec![v.map_or(0, |v| v[0]) + 1, 0, 0, 0, 0, 0, 0, 0]);
    session.rmw(&key, plus_one).unwrap();
}

/// R5, R13, the CPR prefix: checkpoints beside batches, single changes, sessions that start, end, or never do anything hold of each session
/// exactly the changes up to the serial that they tell.
#[test]
fn checkpoints_race_batches_and_sessions() {
    shuttle::check_random(
        || {
            let options = KvOptions { shards: 3, ..KvOptions::new(1) };
            let kv = Arc::new(ShardedKv::open(SimDevice::new(1), options.clone()).unwrap());
            let _idle = kv.start_session().unwrap();
            let workers: Vec<_> = (0..3_u64)
                .map(|worker| {
                    let kv = Arc::clone(&kv);
                    thread::spawn(move || {
                        let mut session = kv.start_session().unwrap();
                        for count in [2, 3] {
                            change(&mut session, count + worker);
                            change_alone(&mut session);
                        }
                        assert!(session.durable_serial() <= session.serial());
                    })
                })
                .collect();
            let first = kv.checkpoint(SOON).unwrap();
            let last = kv.checkpoint(SOON).unwrap();
            workers.into_iter().for_each(|w| w.join().unwrap());
            let went_back = |(id, s): &(u64, u64)| last.serials.iter().any(|(i, later)| i == id && later < s);
            assert!(first.version < last.version && !first.serials.iter().any(went_back));
            drop(_idle);
            let device = Arc::into_inner(kv).unwrap().into_device().unwrap();
            let kv = ShardedKv::open(device.crash(1), options).unwrap();
            assert_eq!(kv.sessions(), last.serials);
            let (mut expected, mut found) = (BTreeMap::new(), BTreeMap::new());
            for (id, last) in &last.serials {
                (1..=*last).for_each(|serial| *expected.entry(key(*id, serial).to_vec()).or_insert(0_u8) += 1);
            }
            kv.for_each(|key, value| assert!(found.insert(key.to_vec(), value[0]).is_none())).unwrap();
            assert_eq!(found, expected);
        },
        interleavings(600),
    );
}
