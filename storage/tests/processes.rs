//! The real file system under real misfortune: processes killed at any moment, a full disk, a read-only one, two processes in one directory.
//!
//! Children are this binary itself, asked for one of its ignored tests. `TIDERACE_KILL_ROUNDS` chooses how often each is killed.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tiderace_storage::{
    Commit, DeviceError, FileDevice, KvKeys, KvOptions, KvSlot, Log, LogError, LogOptions, Lsn, OpenAt, ReadOnlyDevice,
    ReadOnlyLog, Shard, ShardOptions, ShardedKv, StoreOptions, TableId, TableLayout, Wal, WalEntry, open_device,
};

const SOON: Duration = Duration::from_secs(20);

fn options(salt: u64) -> LogOptions {
    LogOptions { segment_bytes: 64 << 10, pending_bytes_max: 32 << 10, commit_bytes: 8 << 10, commit_interval_us: 300, salt }
}

/// Record `i` of every workload here.
fn record(i: u64) -> Vec<u8> {
    let mut bytes = i.to_le_bytes().to_vec();
    bytes.resize(8 + (i * 37 % 700) as usize, (i % 251) as u8);
    bytes
}

fn number(record: &[u8]) -> u64 {
    let i = u64::from_le_bytes(record[..8].try_into().unwrap());
    assert_eq!(record, self::record(i), "record {i} is not what was written");
    i
}

fn salt() -> u64 {
    u64::from(std::process::id()) << 32 | u64::from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos())
}

fn directory() -> PathBuf {
    PathBuf::from(std::env::var("TIDERACE_CHILD_DIRECTORY").expect("a child is told its directory"))
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n@{line}").unwrap();
    out.flush().unwrap();
}

/// Numbers of the records that are there: a run without gaps.
fn run_of(numbers: &[u64]) -> Option<(u64, u64)> {
    assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "records are missing or stand twice");
    Some((*numbers.first()?, *numbers.last()?))
}

fn log_numbers(log: &Log) -> Vec<u64> {
    let mut scan = log.scan(log.begin().unwrap()).unwrap();
    let mut numbers = Vec::new();
    while let Some(record) = scan.next().unwrap() {
        numbers.push(number(record.payload));
    }
    numbers
}

#[test]
#[ignore = "a child of the tests here"]
fn child_log() {
    let log = Log::open_directory(&directory(), options(salt()), true).unwrap();
    let mut next = run_of(&log_numbers(&log)).map_or(0, |(_, last)| last + 1);
    say("open");
    loop {
        let records: Vec<_> = (next..next + 1 + next % 4).map(record).collect();
        let views: Vec<_> = records.iter().map(Vec::as_slice).collect();
        let result = log.append_or_wait(&views, SOON);
        let Ok(lsn) = result else {
            say(&format!("error {}", result.unwrap_err()));
            return;
        };
        next += records.len() as u64;
        if next.is_multiple_of(5) {
            let result = log.commit().and_then(|until| log.wait_for_commit(until, SOON));
            if let Err(e) = result {
                say(&format!("error {e}"));
                return;
            }
            say(&format!("acknowledged {}", next - 1));
        }
        if next % 400 < 4 && std::env::var("TIDERACE_CHILD_KEEPS_ALL").is_err() {
            let begin = log.begin().unwrap();
            let middle = begin.0 + (log.durable().unwrap().0 - begin.0) / 2;
            if lsn.0 > 1 << 17 {
                log.truncate_before(Lsn(middle)).unwrap();
            }
        }
    }
}

#[test]
#[ignore = "a child of the tests here"]
fn child_wal() {
    let (device, _) = open_device(&directory(), true).unwrap();
    let mut numbers = Vec::new();
    let mut wal = Wal::open(device, options(salt()), |_, entry| match entry {
        WalEntry::Record(payload) => numbers.push(number(payload)),
        WalEntry::Commit(_) => {}
    })
    .unwrap();
    let mut next = run_of(&numbers).map_or(0, |(_, last)| last + 1);
    say("open");
    let mut marks = std::collections::VecDeque::new();
    loop {
        let Ok(lsn) = wal.append(&record(next)) else {
            let until = wal.commit().unwrap();
            wal.wait_durable(until, SOON).unwrap();
            continue;
        };
        marks.push_back(lsn);
        next += 1;
        if next.is_multiple_of(7) {
            wal.append_commit(&Commit { epoch: next, watermark_us: Some(next as i64), offsets: Vec::new() }).unwrap();
            let until = wal.commit().unwrap();
            wal.wait_durable(until, SOON).unwrap();
            say(&format!("acknowledged {}", next - 1));
        }
        if marks.len() > 500 {
            wal.truncate_before(marks.drain(..250).next_back().unwrap()).unwrap();
        }
    }
}

fn add_one(slot: KvSlot<'_>) {
    let (KvSlot::Initial(value) | KvSlot::InPlace(value)) = slot;
    let sum = u64::from_le_bytes(value.try_into().unwrap()) + 1;
    value.copy_from_slice(&sum.to_le_bytes());
}

fn kv(directory: &Path) -> Result<ShardedKv<FileDevice>, String> {
    let device = FileDevice::open(directory).map_err(|e| e.to_string())?;
    ShardedKv::open(device, KvOptions::new(1)).map_err(|e| e.to_string())
}

/// Change `serial` of any session adds one to one of a few keys of the session's.
fn key(session: u64, serial: u64) -> [u8; 2] {
    [session as u8, (serial % 53) as u8]
}

#[test]
#[ignore = "a child of the tests here"]
fn child_kv() {
    let kv = kv(&directory()).unwrap();
    let mut sessions: Vec<_> = kv.sessions().iter().map(|(id, s)| kv.resume_session(*id, s + 1).unwrap()).collect();
    while sessions.len() < 10 {
        sessions.push(kv.start_session().unwrap());
    }
    say("open");
    std::thread::scope(|scope| {
        for mut session in sessions {
            scope.spawn(move || {
                loop {
                    let from = session.serial() + 1;
                    let keys: KvKeys = (from..from + 1 + from % 9).map(|serial| key(session.id(), serial)).collect();
                    session.rmw_batch(&keys, |_, slot| add_one(slot)).unwrap();
                }
            });
        }
        loop {
            let checkpoint = kv.checkpoint(SOON).unwrap();
            let serials: Vec<_> = checkpoint.serials.iter().map(|(id, s)| format!("{id}={s}")).collect();
            say(&format!("checkpoint {} {}", checkpoint.version, serials.join(" ")));
        }
    });
}

/// Of round `round` of a shard's work: what it sets, in the point table and in the ordered one, and what it removes from both.
fn changes_of(round: u64) -> (Vec<(u64, Vec<u8>)>, Vec<u64>) {
    let set = (0..80).map(|i| ((round * 37 + i * 3) % 400, vec![round as u8; (round * 31 + i * 7) as usize % 120])).collect();
    (set, (0..20).map(|i| (round * 11 + i * 5) % 400).collect())
}

fn pages(directory: &Path, io_uring: bool) -> (Shard, u64) {
    let (device, _) = open_device(directory, io_uring).unwrap();
    let layout = TableLayout { page_bits: 11, segment_bits: 5, ..TableLayout::for_device() };
    let store = StoreOptions { shard: 1, segment_bytes: 32 << 10, batch_bytes: 8 << 10 };
    let options = ShardOptions { budget_bytes: 256 << 10 };
    let (shard, recovered) = Shard::open(options, layout, device, store, 2, OpenAt::Newest).unwrap();
    (shard, recovered.map_or(0, |r| r.version))
}

fn apply(shard: &mut Shard, round: u64) {
    let (set, removed) = changes_of(round);
    for (key, value) in &set {
        shard.point(TableId(0), 8).put(key.wrapping_mul(0x9E37_79B9_7F4A_7C15), &key.to_le_bytes(), value);
        shard.ordered(TableId(1)).put(&key.to_be_bytes(), value);
    }
    for key in removed {
        shard.point(TableId(0), 8).remove(key.wrapping_mul(0x9E37_79B9_7F4A_7C15), &key.to_le_bytes());
        shard.ordered(TableId(1)).remove(&key.to_be_bytes());
    }
    shard.maintain().unwrap();
}

#[test]
#[ignore = "a child of the tests here"]
fn child_pages() {
    let (mut shard, mut version) = pages(&directory(), true);
    say("open");
    apply(&mut shard, version + 1);
    loop {
        version += 1;
        shard.cut(version, b"").unwrap();
        // The shard goes on with the next round while it is written.
        apply(&mut shard, version + 1);
        while shard.is_checkpointing() {
            if let Some(version) = shard.advance_checkpoint().unwrap() {
                say(&format!("acknowledged {version}"));
            }
            shard.maintain().unwrap();
            shard.complete_pending(Duration::from_micros(50));
        }
    }
}

fn start(test: &str, directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("TIDERACE_CHILD_DIRECTORY", directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What the child said until it was killed, some time after it had opened the directory, or until it ended.
fn lines_until_killed(mut child: Child, after: Option<Duration>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut kill_at = None;
    let (send, receive) = std::sync::mpsc::channel();
    let out = BufReader::new(child.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        for line in out.lines() {
            let Ok(line) = line else { break };
            if let Some(said) = line.strip_prefix('@')
                && send.send(said.to_owned()).is_err()
            {
                break;
            }
        }
    });
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let until: Instant = kill_at.unwrap_or(deadline);
        match receive.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if line == "open" {
                    kill_at = after.map(|after| Instant::now() + after);
                }
                lines.push(line);
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                assert!(kill_at.is_some(), "the child has said nothing for two minutes");
                child.kill().unwrap();
                break;
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    child.wait().unwrap();
    // What it had said before it was killed and we hadn't read yet.
    lines.extend(receive.iter());
    reader.join().unwrap();
    assert!(lines.first().is_some_and(|l| l == "open"), "the child could not open its directory: {lines:?}");
    lines
}

fn rounds() -> u64 {
    std::env::var("TIDERACE_KILL_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(12)
}

fn acknowledged(lines: &[String]) -> Option<u64> {
    lines.iter().filter_map(|l| l.strip_prefix("acknowledged ")).next_back().map(|n| n.parse().unwrap())
}

#[test]
fn a_log_keeps_what_it_acknowledged_however_often_its_process_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let mut last = None;
    for round in 0..rounds() {
        let lines = lines_until_killed(start("child_log", directory.path()), Some(Duration::from_millis(round * 37 % 160)));
        last = acknowledged(&lines).max(last);
        let log = Log::open_directory(directory.path(), options(salt()), round % 2 == 0).unwrap();
        let run = run_of(&log_numbers(&log));
        assert!(run.map(|(_, end)| end) >= last, "round {round}: {run:?}, acknowledged {last:?}");
    }
    assert!(last.is_some_and(|n| n > 50), "{last:?}");
}

#[test]
fn a_write_ahead_log_keeps_what_it_acknowledged_however_often_its_process_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let mut last = None;
    for round in 0..rounds() {
        let lines = lines_until_killed(start("child_wal", directory.path()), Some(Duration::from_millis(round * 41 % 150)));
        last = acknowledged(&lines).max(last);
        let (mut numbers, mut epochs) = (Vec::new(), Vec::new());
        let (device, _) = open_device(directory.path(), round % 2 == 0).unwrap();
        let wal = Wal::open(device, options(salt()), |_, entry| match entry {
            WalEntry::Record(payload) => numbers.push(number(payload)),
            WalEntry::Commit(commit) => epochs.push(commit.epoch),
        })
        .unwrap();
        let run = run_of(&numbers);
        assert!(run.map(|(_, end)| end) >= last, "round {round}: {run:?}, acknowledged {last:?}");
        assert!(wal.last_commit().map(|c| c.epoch) >= last.map(|n| n + 1));
        assert!(epochs.windows(2).all(|w| w[1] == w[0] + 7));
    }
    assert!(last.is_some_and(|n| n > 50), "{last:?}");
}

#[test]
fn a_store_keeps_each_acknowledged_checkpoint_however_often_its_process_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let mut last: (u64, Vec<(u64, u64)>) = (0, Vec::new());
    for round in 0..rounds() {
        let lines = lines_until_killed(start("child_kv", directory.path()), Some(Duration::from_millis(20 + round * 43 % 200)));
        for line in lines.iter().filter_map(|l| l.strip_prefix("checkpoint ")) {
            let mut words = line.split(' ');
            let version = words.next().unwrap().parse().unwrap();
            let pair = |w: &str| w.split_once('=').map(|(id, s)| (id.parse().unwrap(), s.parse().unwrap()));
            last = (version, words.filter_map(pair).collect());
        }
        let kv = kv(directory.path()).unwrap();
        let serials = kv.sessions();
        for (id, serial) in &last.1 {
            assert!(
                serials.iter().any(|(i, s)| i == id && s >= serial),
                "round {round}: session {id} of {last:?} is at {serials:?}"
            );
        }
        let mut expected = std::collections::BTreeMap::new();
        for (id, last) in &serials {
            (1..=*last).for_each(|serial| *expected.entry(key(*id, serial).to_vec()).or_insert(0_u64) += 1);
        }
        let mut found = std::collections::BTreeMap::new();
        kv.for_each(|k, v| assert!(found.insert(k.to_vec(), u64::from_le_bytes(v.try_into().unwrap())).is_none())).unwrap();
        assert!(found == expected, "round {round}: the store is not what its serials tell");
    }
    assert!(last.0 > 3, "{last:?}");
}

#[test]
fn a_shard_keeps_each_acknowledged_checkpoint_of_its_pages_however_often_its_process_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let mut last = 0;
    for round in 0..rounds() {
        let lines = lines_until_killed(start("child_pages", directory.path()), Some(Duration::from_millis(round * 29 % 120)));
        last = acknowledged(&lines).unwrap_or(0).max(last);
        let (mut shard, version) = pages(directory.path(), round % 2 == 0);
        assert!(version >= last, "round {round}: {version} is the newest, {last} was acknowledged");
        let mut expected = BTreeMap::new();
        for (set, removed) in (1..=version).map(changes_of) {
            expected.extend(set);
            removed.iter().for_each(|key| drop(expected.remove(key)));
        }
        let (mut records, table) = (Vec::new(), shard.point(TableId(0), 8));
        assert_eq!(table.scan(0, usize::MAX, &mut records), None);
        let key = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let found: BTreeMap<_, _> = records.iter().map(|r| (key(table.key(*r)), table.value(*r).to_vec())).collect();
        assert!(found == expected, "round {round}: version {version} holds something else than was cut");
        let all = shard.ordered(TableId(1)).range(Bound::Unbounded, Bound::Unbounded);
        let sorted: Vec<_> = all.map(|(k, v)| (u64::from_be_bytes(k.try_into().unwrap()), v.to_vec())).collect();
        assert!(sorted.into_iter().eq(expected), "round {round}: version {version} holds other entries than were cut");
        assert_eq!(shard.failure(), None);
    }
    assert!(last > 10, "{last}");
}

/// A small file system of its own, for who may mount one.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(size: &str) -> Option<Self> {
        if std::env::var_os("TIDERACE_TEST_WITHOUT_MOUNTS").is_some() {
            return None;
        }
        let at = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at.path()).stderr(Stdio::null());
        let mounted = mount.status().is_ok_and(|s| s.success());
        mounted.then_some(Self(at))
    }

    fn remount(&self, how: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(self.0.path()).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_ends_a_log_with_an_error_and_loses_nothing_that_was_acknowledged() {
    let mounted = Mounted::new("1m");
    let plain = tempfile::tempdir().unwrap();
    let directory = mounted.as_ref().map_or(plain.path(), |m| m.0.path()).join("log");
    let mut command = Command::new("bash");
    if mounted.is_none() {
        println!("no file system can be mounted here: a limit to the length of files stands for a full disk");
        // Its first segment is longer than the limit, so that the child can open the log and fails where that is reached.
        Log::open_directory(&directory, options(salt()), true).unwrap().close().unwrap();
        // The shell lets the child see an error in place of the signal.
        command.args(["-c", "trap '' XFSZ; ulimit -f 40; exec \"$0\" child_log --exact --ignored --nocapture"]);
    } else {
        command.args(["-c", "exec \"$0\" child_log --exact --ignored --nocapture"]);
    }
    let child = command
        .arg(std::env::current_exe().unwrap())
        .env("TIDERACE_CHILD_DIRECTORY", &directory)
        .env("TIDERACE_CHILD_KEEPS_ALL", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = lines_until_killed(child, None);
    let error = lines.last().unwrap();
    let expected = if mounted.is_some() { "no space left" } else { "File too large" };
    assert!(error.starts_with("error ") && error.contains(expected), "{error}");
    let last = acknowledged(&lines).unwrap();
    let mut beside = ReadOnlyLog::open(ReadOnlyDevice::open(&directory).unwrap()).unwrap();
    let (mut cursor, mut numbers) = (beside.begin(), Vec::new());
    while let Some(record) = beside.next(&mut cursor).unwrap() {
        numbers.push(number(record.payload));
    }
    assert!(run_of(&numbers).is_some_and(|(first, end)| first == 0 && end >= last));
    // Space that truncation gives back is enough to go on, once the log is opened again.
    let log = Log::open_directory(&directory, options(salt()), true).unwrap();
    assert!(run_of(&log_numbers(&log)).is_some_and(|(_, end)| end >= last));
    let until = log.truncate_before(log.durable().unwrap()).unwrap();
    log.wait_for_commit(until, SOON).unwrap();
    for i in 0..200 {
        log.append_or_wait(&[&record(i)], SOON).unwrap();
    }
    log.close().unwrap();
}

#[test]
fn a_read_only_directory_is_refused_for_writing_and_can_be_read() {
    let Some(mounted) = Mounted::new("4m") else {
        println!("not run: no file system can be mounted here, and permissions don't bind every user");
        return;
    };
    let directory = mounted.0.path().join("log");
    let log = Log::open_directory(&directory, options(1), true).unwrap();
    log.append_and_wait(&record(0), SOON).unwrap();
    log.close().unwrap();
    mounted.remount("ro");
    let refused = Log::open_directory(&directory, options(2), true).map(drop);
    let message = refused.as_ref().unwrap_err().to_string();
    assert!(matches!(refused, Err(LogError::Device(DeviceError::Io { .. }))), "{refused:?}");
    assert!(message.contains(directory.to_str().unwrap()) && message.contains("Read-only"), "{message}");
    let mut beside = ReadOnlyLog::open(ReadOnlyDevice::open(&directory).unwrap()).unwrap();
    let mut cursor = Lsn(0);
    assert_eq!(beside.next(&mut cursor).unwrap().unwrap().payload, record(0));
    mounted.remount("rw");
    Log::open_directory(&directory, options(2), true).unwrap().append_and_wait(&record(1), SOON).unwrap();
}

#[test]
fn a_second_process_is_refused_and_welcome_when_the_first_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = start("child_wal", directory.path());
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while line.trim() != "@open" {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "the child ended");
    }
    for uring in [true, false] {
        let refused = open_device(directory.path(), uring).map(drop);
        assert!(matches!(refused, Err(DeviceError::Locked { .. })), "{refused:?}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    open_device(directory.path(), true).unwrap();
}
