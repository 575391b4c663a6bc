//! What is on disk is foreign: each format's files, as they are checked in as fixtures, with some bytes changed, are opened by all who read them.
//!
//! Changed bytes under checksums that don't fit any more are an error, or make no difference; of a log its last write may be missing, as after
//! a crash. Under checksums that are made to fit again, as of a hostile file, anything may come out, but no panic and no memory out of
//! proportion. `PROPTEST_CASES` chooses how many changes are tried.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;

use crc32c::{crc32c, crc32c_append};
use proptest::prelude::*;
use proptest::sample::Index;
use tiderace_storage::inspect::{inspect_checkpoints, inspect_kv, inspect_log, inspect_pages, inspect_wal};
use tiderace_storage::{
    Checkpoints, Device, DeviceOp, FileName, KvOptions, LogOptions, Lsn, OpenAt, OwnedLog, ReadOnlyLog, RepairPolicy, Shard,
    ShardOptions, ShardedKv, SimDevice, StoreOptions, TableId, TableLayout, Wal, WalEntry,
};

/// Counts what a thread allocates.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn note(bytes: isize) {
    // A thread that ends counts no more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: the system's allocator does all; counting neither allocates nor fails.
#[expect(unsafe_code, reason = "an allocator that counts")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size().cast_signed());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(-layout.size().cast_signed());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Memory that opening may take, whatever the files (of some ten kilobytes) say.
const MEMORY_MAX: isize = 8 << 20;

type Files = BTreeMap<String, Vec<u8>>;

fn fixture(name: &str) -> Files {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

fn device(files: &Files) -> SimDevice {
    let mut device = SimDevice::new(1);
    for (name, data) in files {
        let file = FileName::new(name).unwrap();
        device.execute(DeviceOp::Create { file: file.clone() }).unwrap();
        device.execute(DeviceOp::WriteSync { file, offset: 0, data: data.clone() }).unwrap();
    }
    device.execute(DeviceOp::SyncDir).unwrap();
    device
}

/// What somebody or something does to a file.
#[derive(Clone, Debug)]
enum Change {
    Flip { at: Index, bit: u8 },
    Number { at: Index, number: u32 },
    Fill { at: Index, bytes: usize, byte: u8 },
    Move { from: Index, to: Index, bytes: usize },
    Insert { at: Index, bytes: Vec<u8> },
    Cut { at: Index },
}

fn change() -> impl Strategy<Value = (Index, Change)> {
    let at = any::<Index>;
    let number = prop_oneof![
        Just(0_u32),
        Just(1),
        Just(u32::MAX),
        Just(u32::MAX - 7),
        Just(1 << 31),
        Just(1 << 30),
        any::<u32>(),
        (0_u32..64).prop_map(|n| n * 8),
    ];
    let change = prop_oneof![
        4 => (at(), 0_u8..8).prop_map(|(at, bit)| Change::Flip { at, bit }),
        6 => (at(), number).prop_map(|(at, number)| Change::Number { at, number }),
        1 => (at(), 0_usize..700, any::<u8>()).prop_map(|(at, bytes, byte)| Change::Fill { at, bytes, byte }),
        1 => (at(), at(), 0_usize..700).prop_map(|(from, to, bytes)| Change::Move { from, to, bytes }),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Change::Insert { at, bytes }),
        1 => at().prop_map(|at| Change::Cut { at }),
    ];
    (any::<Index>(), change)
}

/// A place in a file: where something is, mostly, as segments are filled with zeros.
fn place(data: &[u8], at: &Index) -> usize {
    let used: Vec<usize> = data.iter().enumerate().filter(|(_, b)| **b != 0).map(|(i, _)| i).collect();
    if used.is_empty() { 0 } else { *at.get(&used) }
}

fn apply(files: &mut Files, changes: &[(Index, Change)]) {
    for (file, change) in changes {
        let count = files.len();
        let Some(data) = files.values_mut().nth(file.index(count)).filter(|data| !data.is_empty()) else { continue };
        let len = data.len();
        match change {
            Change::Flip { at, bit } => {
                let at = place(data, at);
                data[at] ^= 1 << bit;
            }
            Change::Number { at, number } => {
                let at = place(data, at) & !3;
                let bytes = number.to_le_bytes();
                data.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = from);
            }
            Change::Fill { at, bytes, byte } => {
                let at = place(data, at);
                data[at..len.min(at + bytes)].fill(*byte);
            }
            Change::Move { from, to, bytes } => {
                let (from, to) = (place(data, from), place(data, to));
                let bytes = (*bytes).min(len - from).min(len - to);
                data.copy_within(from..from + bytes, to);
            }
            Change::Insert { at, bytes } => {
                let at = place(data, at);
                data.splice(at..at, bytes.iter().copied());
            }
            Change::Cut { at } => data.truncate(at.index(len)),
        }
    }
}

// === checksums that fit again, from the documentation of the formats

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn set(bytes: &mut [u8], at: usize, number: u32) {
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&number.to_le_bytes());
    }
}

fn reseal_segment(data: &mut [u8]) -> Option<()> {
    let crc = crc32c(data.get(..60)?);
    set(data, 60, crc);
    let (salt, base) = (data.get(24..32)?.to_vec(), u64_at(data, 32)?);
    let mut at = 4096;
    loop {
        let (length, flags) = (u32_at(data, at)? as usize, u32_at(data, at + 12)? & 0xFF);
        if length < 8 {
            return None;
        }
        let position = base.wrapping_add(at as u64 - 4096);
        let placed = crc32c_append(crc32c(&salt), &position.to_le_bytes());
        let check = crc32c_append(crc32c_append(placed, &data[at..at + 4]), data.get(at + 8..at + 12)?);
        let check = crc32c_append(check, &flags.to_le_bytes()) & !0xFF;
        set(data, at + 12, check | flags);
        let end = at.checked_add(8 + length)?;
        let crc = crc32c_append(crc32c_append(placed, &data[at..at + 4]), data.get(at + 8..end)?);
        set(data, at + 4, crc);
        at = end.next_multiple_of(8);
    }
}

fn reseal_frame(data: &mut [u8]) -> Option<()> {
    let body = u32::try_from(data.len().checked_sub(20)?).ok()?;
    set(data, 12, body);
    let crc = crc32c_append(crc32c(&data[..16]), &data[20..]);
    set(data, 16, crc);
    Some(())
}

/// The checksums of blocks, in a manifest of format 2 and in the data files that it names.
fn reseal_blocks(manifest: &mut [u8], files: &mut Files) -> Option<()> {
    let note = u32_at(manifest, 40)? as usize;
    let list = 44_usize.checked_add(note)?;
    let count = u32_at(manifest, list)? as usize;
    let versions: Vec<u64> = (0..count.min(64)).map_while(|i| u64_at(manifest, list + 4 + 16 * i)).collect();
    let blocks = list.checked_add(4 + 16 * count)?;
    for i in 0..(u32_at(manifest, blocks)? as usize).min(4096) {
        let entry = blocks + 4 + 24 * i;
        let (file, offset) = (u32_at(manifest, entry)? as usize, u64_at(manifest, entry + 4)?);
        let (bytes, part) = (u32_at(manifest, entry + 12)? as usize, u32_at(manifest, entry + 16)?);
        let Some(version) = versions.get(file) else { continue };
        let Some(data) = files.get_mut(&format!("shard-{version:020}.data")) else { continue };
        let start = usize::try_from(offset).ok()?;
        let Some(block) = start.checked_add(bytes).and_then(|end| data.get_mut(start..end)) else { continue };
        let Some(payload) = block.get(12..) else { continue };
        let length = payload.len() as u32;
        let crc = crc32c_append(crc32c(&version.to_le_bytes()), &offset.to_le_bytes());
        let crc = crc32c_append(crc32c_append(crc, &part.to_le_bytes()), payload);
        set(block, 0, length);
        set(block, 4, crc);
        set(block, 8, part);
        set(manifest, entry + 20, crc);
    }
    Some(())
}

/// The checksums of frames, in a manifest of pages and in the segments that it names.
fn reseal_pages(manifest: &mut [u8], files: &mut Files) -> Option<()> {
    let mut at = 36_usize.checked_add(u32_at(manifest, 32)? as usize)?;
    let tables = u32_at(manifest, at)?;
    at += 4;
    for _ in 0..tables.min(64) {
        let pages = u32_at(manifest, at + 24)? as usize;
        at += 28;
        for _ in 0..pages.min(4096) {
            let (segment, sector) = (u32_at(manifest, at + 8)?, u32_at(manifest, at + 12)? as usize);
            let sectors = u32_at(manifest, at + 16)? as usize;
            if let Some(data) = files.get_mut(&format!("pages-{segment:010}.seg"))
                && let Some(frame) = data.get_mut(sector * 512..(sector + sectors) * 512)
                && let Some(end) = frame.len().checked_sub(4)
            {
                let crc = crc32c(&frame[..end]);
                set(frame, end, crc);
                set(manifest, at + 20, crc);
            }
            at += 24;
        }
    }
    Some(())
}

fn reseal(files: &mut Files) {
    let names: Vec<String> = files.keys().cloned().collect();
    for name in &names {
        let Some(mut data) = files.remove(name) else { continue };
        // What can't be walked to its end keeps the checksums that it has.
        let _ = if name.starts_with("wal-") || name.starts_with("log-") {
            reseal_segment(&mut data)
        } else if name.starts_with("manifest-") {
            reseal_blocks(&mut data, files).or(Some(())).and_then(|()| reseal_frame(&mut data))
        } else if name.starts_with("pages-manifest-") {
            reseal_pages(&mut data, files).or(Some(())).and_then(|()| reseal_frame(&mut data))
        } else {
            None
        };
        files.insert(name.clone(), data);
    }
}

// === who reads them

/// What was read: a list of things, in order.
type Read = Result<Vec<Vec<u8>>, String>;

fn log_options() -> LogOptions {
    LogOptions { segment_bytes: 8192, pending_bytes_max: 4000, commit_bytes: 2000, commit_interval_us: 50, salt: 0x5EED }
}

fn read_wal(files: &Files) -> Read {
    let _ = inspect_wal(&mut device(files), 5);
    let _ = Wal::examine(&mut device(files), RepairPolicy::Skip);
    let mut records = Vec::new();
    Wal::open(device(files), log_options(), |_, entry| match entry {
        WalEntry::Record(payload) => records.push(payload.to_vec()),
        WalEntry::Commit(commit) => records.push(format!("{commit:?}").into_bytes()),
    })
    .map_err(|e| e.to_string())?;
    Ok(records)
}

fn read_log(files: &Files) -> Read {
    let _ = inspect_log(&mut device(files), 5);
    let owned = OwnedLog::open(device(files), log_options()).map_err(|e| e.to_string());
    // A reader beside the log's owner goes on its own way through the files.
    let mut records = Vec::new();
    let read = ReadOnlyLog::open(device(files)).and_then(|mut log| {
        let mut cursor = log.begin();
        while let Some(record) = log.next(&mut cursor)? {
            records.push([&record.lsn.0.to_be_bytes(), record.payload].concat());
        }
        Ok(())
    });
    let log = owned?;
    read.map_err(|e| e.to_string())?;
    records.insert(0, format!("{:?} {:?}", log.begin(), log.iterator("audit")).into_bytes());
    let _ = log.tail() > Lsn(0);
    Ok(records)
}

/// All that a shard holds.
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
    assert!(shard.used_bytes() < MEMORY_MAX as usize, "{} B for a few records", shard.used_bytes());
    content
}

fn read_checkpoints(files: &Files) -> Read {
    let _ = inspect_checkpoints(&mut device(files), true);
    let mut checkpoints = Checkpoints::open(device(files), 2).map_err(|e| e.to_string())?;
    let newest = checkpoints.newest().map_err(|e| e.to_string())?.ok_or("there is none")?;
    let mut shard = Shard::new(ShardOptions { budget_bytes: usize::MAX });
    checkpoints.restore(&newest, &mut shard, 0..newest.vnode_count(), |_, _| true).map_err(|e| e.to_string())?;
    Ok(held(&mut shard))
}

fn read_kv(files: &Files) -> Read {
    let _ = inspect_kv(&mut device(files), None, true);
    let kv = ShardedKv::open(device(files), KvOptions { shards: 4, ..KvOptions::new(1) }).map_err(|e| e.to_string())?;
    let mut content = Vec::new();
    kv.for_each(|key, value| content.push([key, b"=", value].concat())).map_err(|e| e.to_string())?;
    content.sort();
    content.extend(kv.sessions().iter().map(|s| format!("{s:?}").into_bytes()));
    Ok(content)
}

fn read_pages(files: &Files) -> Read {
    let _ = inspect_pages(&mut device(files), true);
    let layout = TableLayout { page_bits: 9, index_bits: 1, segment_bits: 3, tag_bits: 2, block_bits: 7, chunk_blocks: 4 };
    let store = StoreOptions { shard: 6, segment_bytes: 4 << 10, batch_bytes: 2 << 10 };
    let options = || ShardOptions { budget_bytes: 1 << 20 };
    let mut moved = Shard::new(options());
    let _ = moved.restore_tables(&mut device(files), 6, 5, |_| true);
    let opened = Shard::open(options(), layout, Box::new(device(files)), store, 2, OpenAt::Newest);
    let (mut shard, recovered) = opened.map_err(|e| e.to_string())?;
    recovered.ok_or("there is no checkpoint")?;
    let content = held(&mut shard);
    // Pages are read when they are wanted.
    shard.failure().map_or(Ok(content), |e| Err(e.to_string()))
}

/// Opens changed files; what came of it, if no panic did.
fn open(files: &Files, read: fn(&Files) -> Read) -> Read {
    MOST.set(HELD.get());
    let before = HELD.get();
    let result = read(files);
    let most = MOST.get() - before;
    assert!(most < MEMORY_MAX, "{most} B of memory for files of {} B", files.values().map(Vec::len).sum::<usize>());
    result
}

/// Whether a log was as `found` before it was as `expected`: the end is missing. With it may be where the log begins, told first; then
/// records are there that had been given up.
fn is_earlier(expected: &[Vec<u8>], found: &[Vec<u8>], tells_begin: bool) -> bool {
    let kept = |found: &[Vec<u8>]| -> Vec<Vec<u8>> { found.iter().filter(|r| r[..8] >= expected[1][..8]).cloned().collect() };
    expected.starts_with(found) || tells_begin && found.len() > 1 && expected[1..].starts_with(&kept(&found[1..]))
}

/// `loses_end`: whether the end may be missing, as after a crash.
fn check(name: &str, read: fn(&Files) -> Read, loses_end: bool, changes: &[(Index, Change)]) {
    let whole = fixture(name);
    let expected = open(&whole, read).unwrap();
    assert!(expected.len() > 10, "{name} holds something");
    let mut changed = whole.clone();
    apply(&mut changed, changes);
    match open(&changed, read) {
        Err(error) => assert!(!error.is_empty()),
        Ok(found) if loses_end => {
            assert!(is_earlier(&expected, &found, name == "log-v1"), "{} of {} records", found.len(), expected.len());
            // A single small change can't hit more than the last write.
            let is_small = matches!(changes, [(_, Change::Flip { .. } | Change::Number { .. })]);
            assert!(!is_small || found.len() + 3 > expected.len(), "only {} of {} are left", found.len(), expected.len());
        }
        Ok(found) => assert!(found == expected, "{} of {} things", found.len(), expected.len()),
    }
    reseal(&mut changed);
    let _ = open(&changed, read);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_write_ahead_logs_are_errors_or_end_earlier(changes in prop::collection::vec(change(), 1..4)) {
        check("wal-v1", read_wal, true, &changes);
    }

    #[test]
    fn changed_logs_are_errors_or_end_earlier(changes in prop::collection::vec(change(), 1..4)) {
        check("log-v1", read_log, true, &changes);
    }

    #[test]
    fn changed_checkpoints_of_changes_are_errors(changes in prop::collection::vec(change(), 1..4)) {
        check("checkpoints-v2", read_checkpoints, false, &changes);
    }

    #[test]
    fn changed_stores_and_their_sessions_are_errors(changes in prop::collection::vec(change(), 1..4), old in any::<bool>()) {
        check(if old { "kv-v1" } else { "kv-v2" }, read_kv, false, &changes);
    }

    #[test]
    fn changed_pages_of_shards_are_errors(changes in prop::collection::vec(change(), 1..4)) {
        check("pages-v1", read_pages, false, &changes);
    }
}

/// Checksums that are made to fit do fit: what is opened under them is what was written.
#[test]
fn resealing_what_was_not_changed_changes_nothing() {
    for name in ["wal-v1", "log-v1", "checkpoints-v2", "kv-v1", "kv-v2", "pages-v1"] {
        let whole = fixture(name);
        let mut resealed = whole.clone();
        reseal(&mut resealed);
        assert!(resealed == whole, "{name}");
        // Without the checksums of before they are made from nothing, and are the same.
        let mut bare = whole.clone();
        for (file, data) in &mut bare {
            if file.contains("manifest-") {
                data[16..20].fill(0);
            } else if file.ends_with(".seg") && !file.starts_with("pages-") {
                data[4100..4104].fill(0);
            }
        }
        assert!(bare != whole || name == "pages-v1", "{name}");
        reseal(&mut bare);
        assert!(bare == whole, "{name}");
    }
}
