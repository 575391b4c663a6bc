//! The log as many threads use it: appenders, waiters, scans and readers beside. Rows R8 to R12 of the storage design and the defects of
//! other logs that apply are named at their tests.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tiderace_storage::{
    Completion, Device, DeviceError, DeviceOp, FileDevice, Log, LogError, LogOptions, Lsn, OwnedLog, ReadOnlyDevice, ReadOnlyLog,
    SimDevice, Token,
};

const SOON: Duration = Duration::from_secs(20);

fn small(salt: u64) -> LogOptions {
    LogOptions { segment_bytes: 16 << 10, pending_bytes_max: 8 << 10, commit_bytes: 2 << 10, commit_interval_us: 500, salt }
}

fn open(directory: &Path, salt: u64) -> Log {
    Log::open_directory(directory, small(salt), true).unwrap()
}

fn all(log: &Log) -> Vec<(Lsn, Vec<u8>)> {
    let mut scan = log.scan(log.begin().unwrap()).unwrap();
    let mut records = Vec::new();
    while let Some(record) = scan.next().unwrap() {
        records.push((record.lsn, record.payload.to_vec()));
    }
    assert_eq!(scan.lost_bytes(), 0);
    records
}

/// R8: a thousand appends into a small buffer are refused or kept, never overwritten.
#[test]
fn appends_beyond_the_buffer_are_refused_and_none_that_was_accepted_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path(), 1);
    let (mut expected, mut refused) = (Vec::new(), 0);
    for i in 0..1000_u64 {
        let payload = [i.to_le_bytes().as_slice(), &[i as u8; 92]].concat();
        match log.append(&payload) {
            Ok(lsn) => expected.push((lsn, payload)),
            Err(LogError::Full { limit_bytes, .. }) => {
                assert_eq!(limit_bytes, 8 << 10);
                refused += 1;
                expected.push((log.append_or_wait(&[&payload], SOON).unwrap(), payload));
            }
            Err(e) => panic!("{e}"),
        }
    }
    let until = log.commit().unwrap();
    log.wait_for_commit(until, SOON).unwrap();
    assert!(refused > 0, "the buffer was never full");
    assert!(all(&log) == expected);
    log.close().unwrap();
    assert!(all(&open(directory.path(), 2)) == expected);
}

/// R9, and FASTER #165: what is committed is there after each of many openings that each append a little.
#[test]
fn a_log_opened_again_and_again_goes_on_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for round in 0..60_u64 {
        let log = open(directory.path(), round);
        assert!(all(&log) == expected, "round {round}");
        for i in 0..round % 4 * 30 {
            let payload = vec![i as u8; (round * 3 + i) as usize];
            expected.push((log.append(&payload).unwrap_or_else(|_| log.append_or_wait(&[&payload], SOON).unwrap()), payload));
        }
        log.close().unwrap();
    }
    assert!(expected.len() > 1000);
}

/// Makes a device panic where another number makes it hang.
const PANICS: u64 = 99;

/// A device in memory that several hands share, and that counts and can be told to hang.
#[derive(Debug)]
struct SharedDevice {
    done: Vec<Completion>,
    sim: Arc<Mutex<SimDevice>>,
    writes: Arc<AtomicU64>,
    syncs_of_directory: Arc<AtomicU64>,
    hangs: Arc<AtomicU64>,
}

impl Clone for SharedDevice {
    fn clone(&self) -> Self {
        let Self { sim, writes, syncs_of_directory, hangs, .. } = self;
        let (writes, syncs_of_directory) = (Arc::clone(writes), Arc::clone(syncs_of_directory));
        Self { done: Vec::new(), sim: Arc::clone(sim), writes, syncs_of_directory, hangs: Arc::clone(hangs) }
    }
}

impl SharedDevice {
    fn new(sim: SimDevice) -> Self {
        Self {
            done: Vec::new(),
            sim: Arc::new(Mutex::new(sim)),
            writes: Arc::default(),
            syncs_of_directory: Arc::default(),
            hangs: Arc::default(),
        }
    }

    fn log(&self, options: LogOptions) -> Result<Log, LogError> {
        let its = self.clone();
        Log::open(self.clone(), Box::new(move || Ok(Box::new(its.clone()) as Box<dyn Device + Send>)), options)
    }
}

impl Device for SharedDevice {
    fn submit(&mut self, op: DeviceOp) -> Token {
        let result = self.execute(op);
        self.done.push(Completion { token: Token(0), result });
        Token(0)
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }

    fn wait(&mut self, _: Duration) {}

    fn execute(&mut self, op: DeviceOp) -> Result<tiderace_storage::Done, DeviceError> {
        match &op {
            DeviceOp::Write { .. } | DeviceOp::WriteSync { .. } => {
                self.writes.fetch_add(1, Ordering::SeqCst);
                assert!(self.hangs.load(Ordering::SeqCst) != PANICS, "meant");
                while self.hangs.load(Ordering::SeqCst) > 0 {
                    std::thread::yield_now();
                }
            }
            DeviceOp::SyncDir => drop(self.syncs_of_directory.fetch_add(1, Ordering::SeqCst)),
            _ => {}
        }
        self.sim.lock().unwrap().execute(op)
    }
}

/// R10: a full disk is an error for who waits, at once, and nothing counts as durable that isn't.
#[test]
fn waiting_for_a_commit_on_a_full_disk_ends_with_an_error() {
    let mut sim = SimDevice::new(1);
    sim.set_capacity_bytes(40 << 10);
    let device = SharedDevice::new(sim);
    let log = device.log(small(1)).unwrap();
    let start = Instant::now();
    let mut durable = Lsn(0);
    let error = loop {
        let result = log.append_or_wait(&[&[7; 900]], SOON).and_then(|_| log.commit());
        match result.and_then(|until| log.wait_for_commit(until, SOON).map(|()| until)) {
            Ok(until) => durable = until,
            Err(e) => break e,
        }
    };
    assert!(matches!(&error, LogError::Poisoned { because } if because.contains("no space")), "{error}");
    assert!(start.elapsed() < SOON / 2);
    assert_eq!(log.durable().unwrap(), durable);
    assert!(matches!(log.append(b"x"), Err(LogError::Poisoned { .. })));
    assert!(matches!(log.close(), Err(LogError::Poisoned { .. })));
    let sim = device.sim.lock().unwrap().crash(5);
    let again = SharedDevice::new(sim).log(small(2)).unwrap();
    assert_eq!(again.durable().unwrap(), durable);
    assert_eq!(all(&again).len() as u64, (durable.0 - 40) / 920);
}

/// R11: appends race commits, of several threads, and each record is whole and in its thread's order; batches stay together.
#[test]
fn records_of_racing_appenders_are_whole_and_in_order_and_batches_stay_together() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path(), 1);
    std::thread::scope(|scope| {
        for thread in 0..6_u64 {
            let log = &log;
            scope.spawn(move || {
                for i in 0..800_u64 {
                    let body = vec![(thread * 31 + i) as u8; (i % 90) as usize];
                    let record =
                        |part: u64| [thread.to_le_bytes().as_slice(), &i.to_le_bytes(), &part.to_le_bytes(), &body].concat();
                    let records: Vec<_> = (0..1 + i % 3).map(record).collect();
                    let views: Vec<_> = records.iter().map(Vec::as_slice).collect();
                    let lsn = log.append_or_wait(&views, SOON).unwrap();
                    if i % 50 == 0 {
                        let until = log.commit().unwrap();
                        assert!(until > lsn);
                        log.wait_for_commit(until, SOON).unwrap();
                        assert_eq!(log.read(lsn).unwrap(), records[0]);
                    }
                }
            });
        }
    });
    log.close().unwrap();
    let log = open(directory.path(), 2);
    let (mut next, mut batch) = (BTreeMap::new(), None);
    for (lsn, record) in all(&log) {
        let number = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().unwrap());
        let (thread, i, part) = (number(0), number(8), number(16));
        assert!(record[24..].iter().all(|b| *b == (thread * 31 + i) as u8) && record.len() == 24 + (i % 90) as usize, "{lsn:?}");
        assert_eq!(*next.entry(thread).or_insert(0), i, "thread {thread}");
        assert!(part == 0 || batch == Some((thread, i, part - 1)), "batch of {thread} at {i} is torn");
        batch = Some((thread, i, part));
        if part == i % 3 {
            next.insert(thread, i + 1);
        }
    }
    assert!(next.len() == 6 && next.values().all(|n| *n == 800), "{next:?}");
}

/// R12: a commit is one write with its sync, and nothing else; neither a metadata page nor a second sync.
#[test]
fn a_commit_costs_one_write_and_its_sync() {
    let device = SharedDevice::new(SimDevice::new(1));
    let options = LogOptions { commit_interval_us: u64::MAX / 2, ..LogOptions::new(1) };
    let log = device.log(LogOptions { segment_bytes: 1 << 20, ..options }).unwrap();
    log.append_and_wait(&[1; 100], SOON).unwrap();
    let (writes, syncs) = (device.writes.load(Ordering::SeqCst), device.syncs_of_directory.load(Ordering::SeqCst));
    for _ in 0..50 {
        log.append_and_wait(&[1; 100], SOON).unwrap();
    }
    assert_eq!(device.writes.load(Ordering::SeqCst) - writes, 50);
    assert_eq!(device.syncs_of_directory.load(Ordering::SeqCst), syncs);
}

/// FASTER #195: a position that is durable needs no waiting; one that was never appended is an error, not a hang.
#[test]
fn waiting_ends_at_once_where_there_is_nothing_to_wait_for_and_at_the_deadline_otherwise() {
    let device = SharedDevice::new(SimDevice::new(1));
    let log = device.log(small(1)).unwrap();
    let lsn = log.append_and_wait(b"one", SOON).unwrap();
    log.wait_for_commit(lsn, Duration::ZERO).unwrap();
    let end = log.tail().unwrap();
    assert_eq!(log.wait_for_commit(Lsn(end.0 + 8), SOON), Err(LogError::BeyondEnd { lsn: Lsn(end.0 + 8), end }));
    device.hangs.store(1, Ordering::SeqCst);
    log.append(b"two").unwrap();
    let until = log.commit().unwrap();
    assert!(matches!(log.wait_for_commit(until, Duration::from_millis(30)), Err(LogError::Timeout { waited_ms: 30, .. })));
    // Appending goes on while the device hangs, up to the bound.
    let mut accepted = 0;
    while log.append(&[0; 100]).is_ok() {
        accepted += 1;
    }
    assert_eq!(accepted, (8192 - 24) / 120);
    device.hangs.store(0, Ordering::SeqCst);
    log.wait_for_commit(until, SOON).unwrap();
}

#[test]
fn a_device_that_panics_ends_the_log_and_nobody_waits_for_it() {
    let device = SharedDevice::new(SimDevice::new(1));
    let log = device.log(small(1)).unwrap();
    log.append_and_wait(b"one", SOON).unwrap();
    device.hangs.store(PANICS, Ordering::SeqCst);
    let start = Instant::now();
    let error = log.append_and_wait(b"two", SOON).unwrap_err();
    assert!(matches!(error, LogError::Poisoned { .. }) && start.elapsed() < SOON / 2, "{error}");
    assert!(matches!(log.append(b"three"), Err(LogError::Poisoned { .. })));
    let mut scan = log.scan(Lsn(0)).unwrap();
    assert_eq!(scan.next().unwrap().unwrap().payload, b"one");
    assert!(matches!(log.close(), Err(LogError::Poisoned { .. })));
}

/// FASTER #755: a scan whose place is given up says so; it reads neither garbage nor nothing.
#[test]
fn a_scan_that_truncation_overtakes_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path(), 1);
    let lsns: Vec<_> = (0..600_u64).map(|i| log.append_or_wait(&[&[i as u8; 200]], SOON).unwrap()).collect();
    let until = log.commit().unwrap();
    log.wait_for_commit(until, SOON).unwrap();
    let files = || std::fs::read_dir(directory.path()).unwrap().count();
    let before = files();
    let mut scan = log.scan(lsns[0]).unwrap();
    assert_eq!(scan.next().unwrap().unwrap().lsn, lsns[0]);
    let until = log.truncate_before(lsns[400]).unwrap();
    log.wait_for_commit(until, SOON).unwrap();
    assert_eq!(scan.next(), Err(LogError::Truncated { lsn: lsns[1], begin: lsns[400] }));
    assert_eq!(log.read(lsns[399]), Err(LogError::Truncated { lsn: lsns[399], begin: lsns[400] }));
    assert_eq!(log.read(lsns[400]).unwrap(), [400_u64 as u8; 200]);
    assert_eq!(all(&log).len(), 200);
    log.close().unwrap();
    assert!(files() + 4 < before, "{before} files, now {}", files());
    // Garnet #559: segments that don't begin at 0 are the log, not damage and not an empty one.
    let log = open(directory.path(), 2);
    assert_eq!((log.begin().unwrap(), all(&log).len()), (lsns[400], 200));
    assert!(matches!(log.truncate_before(Lsn(log.tail().unwrap().0 + 1)), Err(LogError::BeyondEnd { .. })));
}

#[test]
fn only_positions_of_records_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path(), 1);
    let first = log.append_and_wait(&[1; 100], SOON).unwrap();
    let second = log.append_and_wait(&[2; 30], SOON).unwrap();
    assert_eq!(log.read(first).unwrap(), [1; 100]);
    assert_eq!(log.read(second).unwrap(), [2; 30]);
    for wrong in [0, first.0 + 1, first.0 + 8, second.0 - 8] {
        assert_eq!(log.read(Lsn(wrong)), Err(LogError::NoRecord { lsn: Lsn(wrong) }), "{wrong}");
    }
    let end = log.durable().unwrap();
    assert_eq!(log.read(end), Err(LogError::BeyondEnd { lsn: end, end }));
    // A scan may begin anywhere.
    assert_eq!(log.scan(Lsn(first.0 + 8)).unwrap().next().unwrap().unwrap().lsn, second);
}

#[test]
fn a_tailing_scan_gets_each_record_once_it_is_durable() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path(), 1);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut scan = log.scan(Lsn(0)).unwrap();
            for i in 0..3000_u64 {
                let lsn = {
                    let record = scan.next_or_wait(SOON).unwrap().expect("a record in time");
                    assert_eq!(record.payload, i.to_le_bytes());
                    record.lsn
                };
                assert!(log.durable().unwrap() > lsn);
            }
            assert_eq!(scan.next_or_wait(Duration::from_millis(5)), Ok(None));
        });
        for i in 0..3000_u64 {
            log.append_or_wait(&[&i.to_le_bytes()], SOON).unwrap();
        }
        reader.join().unwrap();
    });
}

#[test]
fn a_reader_beside_follows_the_writer_and_is_told_of_truncation() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path(), 1);
    let mut beside = ReadOnlyLog::open(ReadOnlyDevice::open(directory.path()).unwrap()).unwrap();
    let mut cursor = Lsn(0);
    assert_eq!(beside.next(&mut cursor), Ok(None));
    let mut lsns = Vec::new();
    for i in 0..400_u64 {
        lsns.push(log.append_and_wait(&[i as u8; 150], SOON).unwrap());
        if i % 10 == 9 {
            for expected in i - 9..=i {
                let record = beside.next_or_wait(&mut cursor, SOON).unwrap().expect("committed records are seen");
                assert_eq!((record.lsn, record.payload[0]), (lsns[expected as usize], expected as u8));
            }
            assert!(beside.durable_at_least() <= log.durable().unwrap() && beside.end() >= beside.durable_at_least());
        }
    }
    assert_eq!(
        log.set_iterator("copied", lsns[200]).and_then(|_| log.commit()).and_then(|u| log.wait_for_commit(u, SOON)),
        Ok(())
    );
    let until = log.truncate_before(lsns[300]).unwrap();
    log.wait_for_commit(until, SOON).unwrap();
    log.append_and_wait(b"x", SOON).unwrap();
    beside.refresh().unwrap();
    assert_eq!((beside.begin(), beside.iterator("copied")), (lsns[300], Some(lsns[200])));
    let mut from = lsns[10];
    assert!(matches!(beside.next(&mut from), Err(LogError::Truncated { .. })));
    assert_eq!(beside.read(lsns[350]).unwrap(), [350_u64 as u8; 150]);
    // One that opens now finds the same, without reading all.
    let fresh = ReadOnlyLog::open(ReadOnlyDevice::open(directory.path()).unwrap()).unwrap();
    assert_eq!((fresh.begin(), fresh.end(), fresh.iterator("copied")), (lsns[300], beside.end(), Some(lsns[200])));
    // The writer is refused to a second one, and readers can't write.
    assert!(matches!(Log::open_directory(directory.path(), small(3), true), Err(LogError::Device(DeviceError::Locked { .. }))));
    let mut reading = ReadOnlyDevice::open(directory.path()).unwrap();
    assert!(reading.execute(DeviceOp::SyncDir).is_err());
}

#[test]
fn iterators_survive_with_the_log_and_are_independent_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path(), 1);
    let lsns: Vec<_> = (0..20_u8).map(|i| log.append(&[i; 10]).unwrap()).collect();
    log.set_iterator("audit", lsns[3]).unwrap();
    log.set_iterator("copy", lsns[7]).unwrap();
    log.set_iterator("audit", lsns[5]).unwrap();
    log.set_iterator("gone", lsns[1]).unwrap();
    log.remove_iterator("gone").unwrap();
    log.remove_iterator("never there").unwrap();
    assert!(matches!(log.set_iterator("ahead", Lsn(1 << 40)), Err(LogError::BeyondEnd { .. })));
    log.close().unwrap();
    let log = open(directory.path(), 2);
    assert_eq!(log.iterators().unwrap(), vec![("audit".to_owned(), lsns[5]), ("copy".to_owned(), lsns[7])]);
    let mut scan = log.scan(log.iterator("audit").unwrap().unwrap()).unwrap();
    assert_eq!(scan.next().unwrap().unwrap().payload, [5; 10]);
    assert_eq!(scan.position(), lsns[6]);
}

#[test]
fn what_waits_becomes_durable_by_time_and_by_size_without_being_asked() {
    let device = SharedDevice::new(SimDevice::new(1));
    let by_time = device.log(LogOptions { commit_interval_us: 300, ..LogOptions::new(1) }).unwrap();
    by_time.append(b"x").unwrap();
    by_time.wait_for_commit(by_time.tail().unwrap(), SOON).unwrap();
    let device = SharedDevice::new(SimDevice::new(2));
    let by_size = device.log(LogOptions { commit_interval_us: u64::MAX / 2, commit_bytes: 1000, ..LogOptions::new(1) }).unwrap();
    by_size.append(&[0; 100]).unwrap();
    assert!(matches!(by_size.wait_for_commit(by_size.tail().unwrap(), Duration::from_millis(30)), Err(LogError::Timeout { .. })));
    for _ in 0..9 {
        by_size.append(&[0; 100]).unwrap();
    }
    by_size.wait_for_commit(by_size.tail().unwrap(), SOON).unwrap();
}

#[test]
fn a_log_of_a_newer_version_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path(), 1).close().unwrap();
    let path = directory.path().join("log-00000000000000000000.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[16] = 1;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let refused = Log::open_directory(directory.path(), small(2), true).map(drop);
    assert!(matches!(refused, Err(LogError::Unsupported { .. })), "{refused:?}");
    let repair = Log::repair(&mut FileDevice::open(directory.path()).unwrap(), tiderace_storage::RepairPolicy::Skip, true);
    assert!(matches!(repair, Err(LogError::Unsupported { .. })), "{repair:?}");
}

#[test]
fn a_clock_that_goes_back_makes_no_record_wait_longer() {
    let mut log = OwnedLog::open(SimDevice::new(1), small(1)).unwrap();
    log.poll(3_600_000_000).unwrap();
    let lsn = log.append_batch(&[b"record"]).unwrap();
    // By an hour; then it goes on.
    log.poll(10).unwrap();
    assert!(log.durable() <= lsn, "it waits for others, as long as it may");
    (0..100).for_each(|i| log.poll(600 + i).unwrap());
    assert!(log.durable() > lsn);
}

#[test]
fn a_log_is_opened_with_other_settings_than_it_was_written_with() {
    let directory = tempfile::tempdir().unwrap();
    let (mut expected, mut random) = (Vec::new(), 7_u64);
    for round in 0..16_u64 {
        let mut below = |end: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % end
        };
        let options = LogOptions {
            segment_bytes: (8 << 10) << below(6),
            pending_bytes_max: (4 << 10) << below(6),
            commit_bytes: 512 << below(6),
            commit_interval_us: 1 << below(12),
            salt: below(4),
        };
        let log = Log::open_directory(directory.path(), options.clone(), below(2) == 0).unwrap();
        assert!(all(&log) == expected, "round {round}: {options:?}");
        for i in 0..40 + below(80) {
            let payload = vec![i as u8; below(1500) as usize];
            expected.push((log.append_or_wait(&[&payload], SOON).unwrap(), payload));
        }
        log.wait_for_commit(log.commit().unwrap(), SOON).unwrap();
        if below(3) == 0 {
            let gone = below(expected.len() as u64) as usize;
            log.wait_for_commit(log.truncate_before(expected[gone].0).unwrap(), SOON).unwrap();
            expected.drain(..gone);
        }
        assert!(all(&log) == expected, "round {round}: {options:?}");
    }
}
