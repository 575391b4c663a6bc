//! Directories as nobody leaves them on purpose: files cut off, foreign ones, links, folders and broken links in the place of files, formats of
//! a newer version, another kind of directory, copies, a device that fails once while it is opened. Each is a clear error or the right data,
//! and never costs what was there: once it is mended, everything opens as before.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crc32c::{crc32c, crc32c_append};
use tiderace_storage::inspect::{InspectError, set_damaged_checkpoints_aside, set_damaged_pages_aside};
use tiderace_storage::{
    Checkpoints, Completion, Device, DeviceOp, Done, Fault, FileDevice, FileName, KvOptions, LogOptions, OpenAt, OwnedLog,
    ReadOnlyLog, RepairPolicy, Shard, ShardOptions, ShardedKv, SimDevice, StoreOptions, TableId, TableLayout, Token, Wal,
    WalEntry,
};

type Files = BTreeMap<String, Vec<u8>>;

/// What was read: a list of things, in order.
type Read = Result<Vec<Vec<u8>>, String>;

/// A device that its test keeps a hand on.
#[derive(Clone, Debug)]
struct Hand(Arc<Mutex<SimDevice>>);

impl Device for Hand {
    fn submit(&mut self, op: DeviceOp) -> Token {
        self.0.lock().unwrap().submit(op)
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        self.0.lock().unwrap().poll(done);
    }

    fn wait(&mut self, _: Duration) {}
}

impl Hand {
    fn new(device: SimDevice) -> Self {
        Self(Arc::new(Mutex::new(device)))
    }

    fn with<R>(&self, f: impl FnOnce(&mut SimDevice) -> R) -> R {
        f(&mut self.0.lock().unwrap())
    }
}

// === what is read, by each kind of owner

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Wal,
    Log,
    Checkpoints,
    Kv,
    Pages,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Wal, Self::Log, Self::Checkpoints, Self::Kv, Self::Pages];

    fn fixture(self) -> Files {
        let name = match self {
            Self::Wal => "wal-v1",
            Self::Log => "log-v1",
            Self::Checkpoints => "checkpoints-v2",
            Self::Kv => "kv-v2",
            Self::Pages => "pages-v1",
        };
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        read_directory(&directory)
    }

    /// Opens what is there as its owner does, and tells what it holds.
    fn read(self, device: Box<dyn Device + Send>) -> Read {
        match self {
            Self::Wal => read_wal(device),
            Self::Log => read_log(device),
            Self::Checkpoints => read_checkpoints(device, None),
            Self::Kv => read_kv(device),
            Self::Pages => read_pages(device, OpenAt::Newest),
        }
    }
}

fn log_options() -> LogOptions {
    LogOptions { segment_bytes: 8192, pending_bytes_max: 4000, commit_bytes: 2000, commit_interval_us: 50, salt: 0x5EED }
}

fn read_wal(device: Box<dyn Device + Send>) -> Read {
    let mut records = Vec::new();
    let wal = Wal::open(Boxed(device), log_options(), |lsn, entry| match entry {
        WalEntry::Record(payload) => records.push([&lsn.0.to_be_bytes(), payload].concat()),
        WalEntry::Commit(commit) => records.push(format!("{commit:?}").into_bytes()),
    });
    wal.map(|_| records).map_err(|e| e.to_string())
}

fn read_log(device: Box<dyn Device + Send>) -> Read {
    let log = OwnedLog::open(Boxed(device), log_options()).map_err(|e| e.to_string())?;
    let mut records = vec![format!("{:?} {:?}", log.begin(), log.iterator("audit")).into_bytes()];
    let mut beside = ReadOnlyLog::open(log.into_device()).map_err(|e| e.to_string())?;
    let mut cursor = beside.begin();
    while let Some(record) = beside.next(&mut cursor).map_err(|e| e.to_string())? {
        records.push([&record.lsn.0.to_be_bytes(), record.payload].concat());
    }
    Ok(records)
}

fn held(shard: &mut Shard) -> Vec<Vec<u8>> {
    let mut content = Vec::new();
    for table in [0, 1, 3] {
        let (mut records, points) = (Vec::new(), shard.point(TableId(table), 8));
        assert_eq!(points.scan(0, usize::MAX, &mut records), None);
        content.extend(records.iter().map(|r| [&[table as u8], points.key(*r), b"=", points.value(*r)].concat()));
    }
    content.sort();
    let all = shard.ordered(TableId(9)).range(Bound::Unbounded, Bound::Unbounded);
    content.extend(all.map(|(k, v)| [k, b"=", v].concat()));
    content
}

fn read_checkpoints(device: Box<dyn Device + Send>, version: Option<u64>) -> Read {
    let mut checkpoints = Checkpoints::open(Boxed(device), 2).map_err(|e| e.to_string())?;
    let chosen = match version {
        Some(version) => checkpoints.load(version).map(Some),
        None => checkpoints.newest(),
    };
    let chosen = chosen.map_err(|e| e.to_string())?.ok_or("there is none")?;
    let mut shard = Shard::new(ShardOptions { budget_bytes: usize::MAX });
    checkpoints.restore(&chosen, &mut shard, 0..chosen.vnode_count(), |_, _| true).map_err(|e| e.to_string())?;
    Ok(held(&mut shard))
}

fn read_kv(device: Box<dyn Device + Send>) -> Read {
    let options = KvOptions { shards: 4, ..KvOptions::new(1) };
    let kv = ShardedKv::open(Boxed(device), options).map_err(|e| e.to_string())?;
    let mut content = Vec::new();
    kv.for_each(|key, value| content.push([key, b"=", value].concat())).map_err(|e| e.to_string())?;
    content.sort();
    content.extend(kv.sessions().iter().map(|s| format!("{s:?}").into_bytes()));
    Ok(content)
}

const LAYOUT: TableLayout =
    TableLayout { page_bits: 9, index_bits: 1, segment_bits: 3, tag_bits: 2, block_bits: 7, chunk_blocks: 4 };
const STORE: StoreOptions = StoreOptions { shard: 6, segment_bytes: 4 << 10, batch_bytes: 2 << 10 };

fn read_pages(device: Box<dyn Device + Send>, at: OpenAt) -> Read {
    let opened = Shard::open(ShardOptions { budget_bytes: 1 << 20 }, LAYOUT, device, STORE, 2, at);
    let (mut shard, recovered) = opened.map_err(|e| e.to_string())?;
    recovered.ok_or("there is no checkpoint")?;
    let content = held(&mut shard);
    shard.failure().map_or(Ok(content), |e| Err(e.to_string()))
}

/// For owners that take a device of their own type.
#[derive(Debug)]
struct Boxed(Box<dyn Device + Send>);

impl Device for Boxed {
    fn submit(&mut self, op: DeviceOp) -> Token {
        self.0.submit(op)
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        self.0.poll(done);
    }

    fn wait(&mut self, timeout: Duration) {
        self.0.wait(timeout);
    }
}

// === files

fn read_directory(directory: &Path) -> Files {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let files = entries.filter(|e| e.file_type().unwrap().is_file() && e.file_name() != ".lock");
    files.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

fn write_directory(files: &Files) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, data)| fs::write(directory.path().join(name), data).unwrap());
    directory
}

fn name(text: &str) -> FileName {
    FileName::new(text).unwrap()
}

fn device(files: &Files) -> SimDevice {
    let mut device = SimDevice::new(1);
    for (file, data) in files {
        device.execute(DeviceOp::Create { file: name(file) }).unwrap();
        device.execute(DeviceOp::WriteSync { file: name(file), offset: 0, data: data.clone() }).unwrap();
    }
    device.execute(DeviceOp::SyncDir).unwrap();
    device
}

/// The files that a device shows.
fn files(device: &mut SimDevice) -> Files {
    let Done::Files(files) = device.execute(DeviceOp::List).unwrap() else { panic!("files") };
    files.into_iter().map(|(name, _)| (name.as_str().to_owned(), device.content(&name).unwrap().to_vec())).collect()
}

fn boxed(files: &Files) -> Box<dyn Device + Send> {
    Box::new(device(files))
}

fn real(directory: &Path) -> Box<dyn Device + Send> {
    Box::new(FileDevice::open(directory).unwrap())
}

fn expected(kind: Kind) -> Vec<Vec<u8>> {
    kind.read(boxed(&kind.fixture())).unwrap()
}

/// The checksum of a manifest's file, made to fit.
fn reseal(manifest: &mut [u8]) {
    let crc = crc32c_append(crc32c(&manifest[..16]), &manifest[20..]);
    manifest[16..20].copy_from_slice(&crc.to_le_bytes());
}

fn newest(files: &Files, prefix: &str) -> String {
    files.keys().rfind(|file| file.starts_with(prefix)).unwrap().clone()
}

// === cut off, foreign, linked

#[test]
fn a_file_that_was_cut_off_anywhere_is_an_error_or_makes_no_difference() {
    for kind in Kind::ALL {
        let (whole, expected) = (kind.fixture(), expected(kind));
        let last_segment = whole.keys().rfind(|file| file.ends_with(".seg")).cloned();
        let (mut errors, mut same) = (0, 0);
        for (file, data) in &whole {
            // Each length of small files, some of large ones.
            let step = (data.len() / 400).max(1);
            for len in (0..data.len()).step_by(step).chain([data.len() - 1]) {
                let mut cut = whole.clone();
                cut.get_mut(file).unwrap().truncate(len);
                match kind.read(boxed(&cut)) {
                    Err(_) => errors += 1,
                    // An older manifest, or data that only it names.
                    Ok(read) if read == expected => same += 1,
                    // Looks as a segment whose making was interrupted.
                    Ok(read) => {
                        assert!(len == 0 && Some(file) == last_segment.as_ref() && matches!(kind, Kind::Wal | Kind::Log));
                        assert!(read.len() < expected.len(), "{kind:?}: {file} of {len} B");
                    }
                }
            }
        }
        assert!(errors > 300, "{kind:?}: {errors} errors, {same} without effect");
        let keeps_older = matches!(kind, Kind::Checkpoints | Kind::Pages);
        assert_eq!(same > 0, keeps_older, "{kind:?}: {errors} errors, {same} without effect");
    }
}

#[test]
fn a_log_that_was_cut_off_is_repaired_to_all_that_is_left() {
    for policy in [RepairPolicy::Truncate, RepairPolicy::Skip] {
        let (whole, expected) = (Kind::Wal.fixture(), expected(Kind::Wal));
        for (number, (file, data)) in whole.iter().enumerate() {
            let is_last = number + 1 == whole.len();
            for len in (64..data.len()).step_by(301) {
                let mut cut = whole.clone();
                cut.get_mut(file).unwrap().truncate(len);
                let mut device = device(&cut);
                let report = Wal::repair(&mut device, policy).unwrap();
                assert!(report.applied && !report.copies.is_empty(), "{file} of {len} B: {report:?}");
                assert!(report.findings.iter().any(|f| f.what.contains("missing") && f.offset == len as u64), "{report:?}");
                let read = read_wal(Box::new(device)).unwrap_or_else(|e| panic!("{file} of {len} B: {e}"));
                let is_subsequence = {
                    let mut all = expected.iter();
                    read.iter().all(|record| all.any(|other| other == record))
                };
                assert!(is_subsequence, "{file} of {len} B, {policy:?}");
                if policy == RepairPolicy::Skip && !is_last {
                    assert_eq!(read.last(), expected.last(), "{file} of {len} B: what is behind is kept");
                }
            }
        }
    }
}

#[test]
fn foreign_files_are_left_alone_and_disturb_nobody() {
    let foreign = [
        "notes.txt",
        "manifest-5",
        "manifest-00000000000000000009.bak",
        "pages-manifest-9",
        "wal-1.seg",
        "wal-0.seg",
        "log-.seg",
        "wal-00000000000000000000.seg.gz",
        "shard-00000000000000000009.data.tmp",
        "pages-0000000009.seg~",
        "before-repair-1-x",
        ".hidden",
        "wal-99999999999999999999.seg",
        "manifest-99999999999999999999",
        "pages-9999999999.seg",
        "Ünïcode",
        "core-0",
    ];
    for kind in Kind::ALL {
        let directory = write_directory(&kind.fixture());
        for file in foreign {
            fs::write(directory.path().join(file), b"not ours").unwrap();
        }
        fs::create_dir(directory.path().join("lost+found")).unwrap();
        fs::create_dir(directory.path().join("backups")).unwrap();
        fs::write(directory.path().join("backups").join("manifest-00000000000000000009"), b"").unwrap();
        for _ in 0..2 {
            assert!(kind.read(real(directory.path())).unwrap() == expected(kind), "{kind:?}");
        }
        for file in foreign {
            assert_eq!(fs::read(directory.path().join(file)).unwrap(), b"not ours", "{kind:?}: {file}");
        }
        assert!(directory.path().join("backups").join("manifest-00000000000000000009").exists());
    }
}

#[test]
fn a_file_that_was_moved_away_and_linked_is_read_and_none_is_overlooked_where_a_link_or_a_folder_stands_for_it() {
    for kind in Kind::ALL {
        let (whole, expected) = (kind.fixture(), expected(kind));
        for file in whole.keys() {
            let (directory, elsewhere) = (write_directory(&whole), tempfile::tempdir().unwrap());
            let (place, moved) = (directory.path().join(file), elsewhere.path().join("moved"));
            fs::rename(&place, &moved).unwrap();
            std::os::unix::fs::symlink(&moved, &place).unwrap();
            assert!(kind.read(real(directory.path())).unwrap() == expected, "{kind:?}: {file} is a link");
            // The disk with what it leads to is away.
            fs::rename(&moved, elsewhere.path().join("away")).unwrap();
            let away = kind.read(real(directory.path()));
            fs::rename(elsewhere.path().join("away"), &moved).unwrap();
            fs::remove_file(&place).unwrap();
            fs::create_dir(&place).unwrap();
            let folder = kind.read(real(directory.path()));
            for (what, read) in [("leads nowhere", away), ("is a folder", folder)] {
                // Where only an older version needs it.
                match read {
                    Ok(read) => assert!(read == expected, "{kind:?}: {file} {what}, and something else is read"),
                    Err(error) => assert!(error.contains(file.as_str()), "{kind:?}: {file} {what}: {error}"),
                }
            }
            fs::remove_dir(&place).unwrap();
            fs::rename(&moved, &place).unwrap();
            assert!(kind.read(real(directory.path())).unwrap() == expected, "{kind:?}: {file} is back");
            assert!(read_directory(directory.path()) == whole, "{kind:?}: {file} is back");
        }
    }
}

// === newer versions, other kinds

/// The fixture as a newer version of this software might have written its newest file.
fn of_a_newer_version(kind: Kind) -> Files {
    let mut files = kind.fixture();
    let file = match kind {
        Kind::Wal | Kind::Log => newest(&files, if kind == Kind::Wal { "wal-" } else { "log-" }),
        Kind::Checkpoints | Kind::Kv => newest(&files, "manifest-"),
        Kind::Pages => newest(&files, "pages-manifest-"),
    };
    let data = files.get_mut(&file).unwrap();
    data[8..12].copy_from_slice(&77_u32.to_le_bytes());
    if matches!(kind, Kind::Wal | Kind::Log) {
        let crc = crc32c(&data[..60]);
        data[60..64].copy_from_slice(&crc.to_le_bytes());
        data.copy_within(..64, 2048);
    } else {
        reseal(data);
    }
    files
}

#[test]
fn files_of_a_newer_version_are_refused_by_name_and_neither_repaired_nor_removed() {
    for kind in Kind::ALL {
        let newer = of_a_newer_version(kind);
        let mut device = device(&newer);
        let error = kind.read(Box::new(Hand::new(device.crash(1)))).unwrap_err();
        assert!(error.contains("format 77") && error.contains("the version that wrote it"), "{kind:?}: {error}");
        assert!(!error.contains("damaged"), "{kind:?}: {error}");
        let refused = match kind {
            Kind::Wal => Wal::repair(&mut device, RepairPolicy::Truncate).unwrap_err().to_string(),
            Kind::Log => tiderace_storage::Log::repair(&mut device, RepairPolicy::Truncate, true).unwrap_err().to_string(),
            Kind::Checkpoints | Kind::Kv => set_damaged_checkpoints_aside(&mut device).unwrap_err().to_string(),
            Kind::Pages => set_damaged_pages_aside(&mut device).unwrap_err().to_string(),
        };
        assert!(refused.contains("format 77"), "{kind:?}: {refused}");
        assert!(files(&mut device) == newer, "{kind:?}");
        // To go back to what this version has written is a choice of its own, and takes nothing from the newer one.
        let hand = Hand::new(device);
        let older = match kind {
            Kind::Checkpoints => Some(read_checkpoints(Box::new(hand.clone()), Some(4))),
            Kind::Pages => Some(read_pages(Box::new(hand.clone()), OpenAt::Version(4))),
            _ => None,
        };
        assert!(older.is_none_or(|read| read.is_ok_and(|content| content.len() > 70)), "{kind:?}");
        assert!(hand.with(files) == newer, "{kind:?}");
    }
}

#[test]
fn a_directory_of_another_kind_is_refused_and_stays_as_it_is() {
    for there in Kind::ALL {
        let whole = there.fixture();
        for opened in Kind::ALL.into_iter().filter(|opened| *opened != there) {
            let hand = Hand::new(device(&whole));
            let read = opened.read(Box::new(hand.clone()));
            // Checkpoints of a store are checkpoints; their tables are the store's.
            if (there, opened) == (Kind::Kv, Kind::Checkpoints) {
                assert_eq!(read.unwrap().len(), 101);
            } else {
                let error = read.unwrap_err();
                assert!(error.contains("the directory holds") || error.contains("sessions"), "{there:?} as {opened:?}: {error}");
            }
            assert!(hand.with(files) == whole, "{there:?} as {opened:?}");
        }
        // A shard that only spills would remove all pages that it finds.
        let hand = Hand::new(device(&whole));
        let spilling = Shard::with_device(ShardOptions { budget_bytes: 1 << 20 }, LAYOUT, Box::new(hand.clone()), STORE);
        assert!(spilling.unwrap_err().to_string().contains("the directory holds"), "{there:?}");
        assert!(hand.with(files) == whole, "{there:?}");
    }
}

#[test]
fn copies_of_a_directory_are_independent_of_each_other() {
    let whole = Kind::Pages.fixture();
    let directories = [write_directory(&whole), write_directory(&whole)];
    let open = |directory: &tempfile::TempDir| {
        let device = real(directory.path());
        Shard::open(ShardOptions { budget_bytes: 1 << 20 }, LAYOUT, device, STORE, 2, OpenAt::Newest).unwrap().0
    };
    let mut shards = directories.each_ref().map(open);
    for (number, shard) in shards.iter_mut().enumerate() {
        for i in 0..200_u64 {
            shard.point(TableId(7), 8).put(i * 77, &i.to_le_bytes(), &(i + number as u64).to_le_bytes());
        }
        shard.checkpoint_now(6, &[number as u8]).unwrap();
        shard.checkpoint_now(7, &[number as u8]).unwrap();
    }
    drop(shards);
    for (number, directory) in directories.iter().enumerate() {
        let mut shard = open(directory);
        assert!(held(&mut shard) == expected(Kind::Pages));
        let table = shard.point(TableId(7), 8);
        for i in 0..200_u64 {
            assert_eq!(table.get(i * 77, &i.to_le_bytes()), Some((i + number as u64).to_le_bytes().as_slice()));
        }
    }
}

// === devices that fail while something is opened

/// Files as an interrupted process leaves them: there is something for recovery to do.
fn interrupted(kind: Kind) -> Files {
    let mut files = kind.fixture();
    match kind {
        Kind::Wal | Kind::Log => {
            // The last write is torn, and a segment was begun. (Its end is where the log's is, without what is torn.)
            let last = newest(&files, if kind == Kind::Wal { "wal-" } else { "log-" });
            let data = files.get_mut(&last).unwrap();
            let end = data.iter().rposition(|b| *b != 0).unwrap() + 1;
            data.get_mut(end - 3..end).unwrap().fill(0);
        }
        Kind::Checkpoints | Kind::Kv => {
            files.insert("shard-00000000000000000009.data".to_owned(), vec![7; 900]);
            files.insert("temporary-00000000000000000009".to_owned(), vec![7; 90]);
        }
        Kind::Pages => {
            files.insert("pages-0000000007.seg".to_owned(), vec![7; 1024]);
            files.insert("pages-temporary-00000000000000000009".to_owned(), vec![7; 90]);
        }
    }
    files
}

#[test]
fn a_device_that_fails_once_while_something_is_opened_costs_nothing() {
    let mut faults_tried = 0;
    for kind in Kind::ALL {
        let files = interrupted(kind);
        let hand = Hand::new(device(&files));
        let first = hand.with(|d| d.submitted());
        let expected = kind.read(Box::new(hand.clone())).unwrap();
        let operations = hand.with(|d| d.submitted()) - first;
        for fault in [Fault::Io, Fault::NoSpace, Fault::PowerOff] {
            for at in 0..operations {
                let place = || format!("{kind:?}, {fault:?} at operation {at}");
                let hand = Hand::new(device(&files));
                hand.with(|d| d.inject(first + at, fault));
                // A file that can't be removed now may be removed later; all else is an error.
                if let Ok(read) = kind.read(Box::new(hand.clone())) {
                    assert!(read == expected, "{}", place());
                }
                // The process goes on, with the device healed; or the machine goes off, and starts, and goes off while it starts.
                if fault != Fault::PowerOff {
                    let healed = kind.read(Box::new(hand.clone())).unwrap_or_else(|e| panic!("{}: {e}", place()));
                    assert!(healed == expected, "{}", place());
                }
                for seed in 0..3 {
                    let mut after = hand.with(|d| d.crash(seed));
                    after.inject(after.submitted() + (at * 7 + seed) % operations, Fault::PowerOff);
                    let second = Hand::new(after);
                    let _ = kind.read(Box::new(second.clone()));
                    let third = second.with(|d| d.crash(seed + 1));
                    let read = kind.read(Box::new(third)).unwrap_or_else(|e| panic!("{}: {e}", place()));
                    assert!(read == expected, "{}, crash {seed}", place());
                }
                faults_tried += 1;
            }
        }
    }
    assert!(faults_tried > 100, "{faults_tried}");
}

// === manifests that can't be read

#[test]
fn while_a_manifest_cannot_be_read_nothing_is_removed_that_it_may_need() {
    // Which file is damaged, and at which version the others are opened meanwhile.
    for (damaged, opened) in [(4_u64, 5), (5, 4)] {
        for kind in [Kind::Checkpoints, Kind::Pages] {
            let whole = kind.fixture();
            let prefix = if kind == Kind::Pages { "pages-manifest" } else { "manifest" };
            let file = name(&format!("{prefix}-{damaged:020}"));
            let read = |hand: &Hand, version| match kind {
                Kind::Pages => read_pages(Box::new(hand.clone()), OpenAt::Version(version)),
                _ => read_checkpoints(Box::new(hand.clone()), Some(version)),
            };
            let expected = [4, 5].map(|version| read(&Hand::new(device(&whole)), version).unwrap());
            let hand = Hand::new(device(&whole));
            assert!(hand.with(|d| d.corrupt(&file, 25, 0x40)));
            assert!(read(&hand, damaged).unwrap_err().contains("damaged"));
            for _ in 0..2 {
                assert!(read(&hand, opened).unwrap() == expected[opened as usize - 4], "{kind:?} at {opened}");
            }
            // It was the cable.
            assert!(hand.with(|d| d.corrupt(&file, 25, 0x40)));
            for version in [4, 5] {
                assert!(read(&hand, version).unwrap() == expected[version as usize - 4], "{kind:?} at {version} afterwards");
            }
            // A read that fails is no reason either.
            let hand = Hand::new(device(&whole));
            for at in 0..6 {
                hand.with(|d| d.inject(d.submitted() + at, Fault::Io));
                let _ = read(&hand, opened);
            }
            for version in [4, 5] {
                assert!(read(&hand, version).unwrap() == expected[version as usize - 4], "{kind:?} at {version} after errors");
            }
        }
    }
}

#[test]
fn segments_that_an_unreadable_manifest_kept_are_removed_when_it_is_gone() {
    let hand = Hand::new(device(&Kind::Pages.fixture()));
    assert!(hand.with(|d| d.corrupt(&name("pages-manifest-00000000000000000004"), 25, 0x40)));
    hand.with(|d| d.execute(DeviceOp::Create { file: name("pages-0000000050.seg") }).unwrap());
    let open = || {
        let device = Box::new(hand.clone());
        Shard::open(ShardOptions { budget_bytes: 1 << 20 }, LAYOUT, device, STORE, 2, OpenAt::Newest).unwrap().0
    };
    let has = |file: &str| hand.with(|d| d.content(&name(file)).is_some());
    let mut shard = open();
    assert!(has("pages-0000000050.seg"));
    for version in 6..8 {
        shard.point(TableId(1), 8).put(version, &version.to_le_bytes(), b"new");
        shard.checkpoint_now(version, b"").unwrap();
    }
    assert_eq!(shard.versions(), [6, 7]);
    drop(shard);
    let mut shard = open();
    assert!(!has("pages-0000000050.seg"));
    assert_eq!(held(&mut shard).len(), expected(Kind::Pages).len() + 2);
}

#[test]
fn setting_checkpoints_aside_may_crash_anywhere_and_be_done_again() {
    for kind in [Kind::Checkpoints, Kind::Pages] {
        let (whole, prefix) = (kind.fixture(), if kind == Kind::Pages { "pages-manifest" } else { "manifest" });
        let aside = |device: &mut SimDevice| match kind {
            Kind::Pages => set_damaged_pages_aside(device),
            _ => set_damaged_checkpoints_aside(device),
        };
        let older = match kind {
            Kind::Pages => read_pages(boxed(&whole), OpenAt::Version(4)),
            _ => read_checkpoints(boxed(&whole), Some(4)),
        };
        let older = older.unwrap();
        let damaged = || {
            let mut device = device(&whole);
            assert!(device.corrupt(&name(&format!("{prefix}-{:020}", 5)), 25, 0x40));
            device
        };
        let mut device = damaged();
        let first = device.submitted();
        assert_eq!(aside(&mut device).unwrap().kept, 4);
        let operations = device.submitted() - first;
        for at in 0..operations {
            for crash in 0..6 {
                let mut device = damaged();
                device.inject(first + at, Fault::PowerOff);
                let _ = aside(&mut device);
                let mut after = device.crash(crash);
                let place = || format!("{kind:?}, crash {crash} at operation {at}");
                // Unchanged, or done.
                match kind.read(Box::new(after.crash(1))) {
                    Ok(read) => assert!(read == older, "{}", place()),
                    Err(error) => assert!(error.contains("damaged"), "{}: {error}", place()),
                }
                assert_eq!(aside(&mut after).unwrap().kept, 4, "{}", place());
                assert!(kind.read(Box::new(after)).unwrap() == older, "{}", place());
            }
        }
        // Where no checkpoint is whole none is given up.
        let mut device = damaged();
        assert!(device.corrupt(&name(&format!("{prefix}-{:020}", 4)), 25, 0x40));
        let before = files(&mut device);
        assert!(matches!(aside(&mut device), Err(InspectError::Nothing { .. })));
        assert!(files(&mut device) == before);
    }
}
