//! Files of the first format version, whole and damaged, as they are checked in: they must open, or be refused, for ever as they are now.
//!
//! `UPDATE=1` writes them anew: only when a format that was never released has changed.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tiderace_storage::inspect::{inspect_checkpoint, inspect_log, inspect_wal};
use tiderace_storage::{
    CaptureKind, CheckpointError, Checkpoints, Commit, Device, DeviceOp, FileDevice, FileName, KvKeys, KvOptions, LogOptions,
    Lsn, OpenAt, OwnedLog, ReadOnlyLog, RepairPolicy, Shard, ShardOptions, ShardedKv, SimDevice, SourceOffset, StoreOptions,
    TableId, TableLayout, Wal, WalEntry, WalError,
};

const SOON: Duration = Duration::from_secs(20);

type Files = BTreeMap<String, Vec<u8>>;

fn options() -> LogOptions {
    LogOptions { segment_bytes: 8192, pending_bytes_max: 4000, commit_bytes: 2000, commit_interval_us: 50, salt: 0x5EED }
}

fn files(device: &mut SimDevice) -> Files {
    let Ok(tiderace_storage::Done::Files(names)) = device.execute(DeviceOp::List) else { panic!("files") };
    names.iter().map(|(name, _)| (name.as_str().to_owned(), device.content(name).unwrap().to_vec())).collect()
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

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The files that are checked in; with `UPDATE` set, those that are made now are.
fn checked_in(name: &str, made: &Files) -> Files {
    let directory = fixture(name);
    if std::env::var_os("UPDATE").is_some() {
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        made.iter().for_each(|(file, data)| std::fs::write(directory.join(file), data).unwrap());
    }
    read_directory(&directory)
}

fn record(i: u8) -> Vec<u8> {
    vec![i; usize::from(i) * 11 % 300]
}

fn commit() -> Commit {
    let offset = SourceOffset { source: 2, partition: b"p1".to_vec(), offset: 77_u64.to_le_bytes().to_vec() };
    Commit { epoch: 9, watermark_us: Some(-5), offsets: vec![offset] }
}

fn make_wal() -> Files {
    let mut wal = Wal::open(SimDevice::new(1), options(), |_, _| {}).unwrap();
    for i in 0..60_u8 {
        if i % 3 == 0 {
            wal.append_batch(&[&record(i), &record(i + 100)]).unwrap();
        } else {
            wal.append(&record(i)).unwrap();
        }
        if i == 20 {
            wal.append_commit(&commit()).unwrap();
        }
        let until = wal.commit().unwrap();
        wal.wait_durable(until, SOON).unwrap();
    }
    files(&mut wal.into_device())
}

fn wal_content(files: &Files) -> Result<(Vec<Vec<u8>>, Option<Commit>), WalError> {
    let mut records = Vec::new();
    let wal = Wal::open(device(files), options(), |_, entry| match entry {
        WalEntry::Record(payload) => records.push(payload.to_vec()),
        WalEntry::Commit(c) => assert_eq!(c, commit()),
    })?;
    Ok((records, wal.last_commit().cloned()))
}

fn wal_records() -> Vec<Vec<u8>> {
    (0..60).flat_map(|i| if i % 3 == 0 { vec![record(i), record(i + 100)] } else { vec![record(i)] }).collect()
}

#[test]
fn write_ahead_logs_of_the_first_version_open_and_are_written_alike() {
    let made = make_wal();
    let whole = checked_in("wal-v1", &made);
    assert!(whole == made, "the same calls write other bytes than are checked in");
    assert_eq!(whole.len(), 4);
    assert_eq!(wal_content(&whole).unwrap(), (wal_records(), Some(commit())));
    let report = inspect_wal(&mut device(&whole), 3).unwrap();
    assert_eq!((report.records, report.commits, report.problems.len()), (80, 1, 0));
    assert_eq!(report.entries.iter().map(|e| e.position).collect::<Vec<_>>(), [0, 16, 232]);
    assert_eq!(report.last_commit.unwrap().offsets, [(2, "p1".to_owned(), "4d00000000000000".to_owned())]);

    // A write that was torn: its end is missing.
    let mut torn = whole.clone();
    let last = torn.last_entry().unwrap().into_mut();
    let end = last.iter().rposition(|b| *b != 0).unwrap();
    last[end - 40..].fill(0);
    let torn = checked_in("wal-v1-torn", &torn);
    let (records, _) = wal_content(&torn).unwrap();
    assert_eq!(records, wal_records()[..79]);
    let report = inspect_wal(&mut device(&torn), 0).unwrap();
    assert!(report.problems.is_empty() && report.segments.last().unwrap().torn_bytes > 0);

    // One byte in the middle: an error, and what repair makes of it.
    let mut damaged = whole.clone();
    let name = whole.keys().nth(1).unwrap().clone();
    damaged.get_mut(&name).unwrap()[5000] ^= 0x10;
    let damaged = checked_in("wal-v1-damaged", &damaged);
    let error = wal_content(&damaged).unwrap_err();
    assert!(matches!(&error, WalError::Damaged { file, .. } if file.as_str() == name), "{error}");
    let report = inspect_wal(&mut device(&damaged), 0).unwrap();
    assert_eq!((report.problems.len(), report.problems[0].file.as_str()), (1, name.as_str()));
    let mut repaired = device(&damaged);
    let found = Wal::repair(&mut repaired, RepairPolicy::Skip).unwrap();
    assert_eq!((found.findings.len(), found.copies.len()), (1, 1));
    let repaired = checked_in("wal-v1-repaired", &files(&mut repaired));
    let (records, last) = wal_content(&repaired).unwrap();
    assert!((77..80).contains(&records.len()) && last == Some(commit()), "{}", records.len());
    assert!(records.first() == wal_records().first() && records.last() == wal_records().last());

    // Features that a reader must know are refused, those that it may ignore are read.
    for (at, opens) in [(16, false), (12, true)] {
        let mut newer = whole.clone();
        for bytes in newer.values_mut() {
            bytes[at] = 1;
            let crc = crc32c::crc32c(&bytes[..60]);
            bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        }
        let newer = checked_in(if opens { "wal-v1-with-optional-feature" } else { "wal-v1-with-unknown-feature" }, &newer);
        match wal_content(&newer) {
            Ok((records, _)) => assert!(opens && records == wal_records()),
            Err(e) => assert!(!opens && matches!(e, WalError::Unsupported { .. }), "{e}"),
        }
        if opens {
            // Who doesn't know a feature leaves the segment that has it alone.
            let mut wal = Wal::open(device(&newer), options(), |_, _| {}).unwrap();
            wal.append(b"behind").unwrap();
            let until = wal.commit().unwrap();
            wal.wait_durable(until, SOON).unwrap();
            let after = files(&mut wal.into_device());
            assert!(after.len() == newer.len() + 1 && newer.iter().all(|(name, data)| after[name] == *data));
        }
    }
}

#[test]
fn logs_of_the_first_version_open_and_are_written_alike() {
    let mut log = OwnedLog::open(SimDevice::new(1), options()).unwrap();
    let mut lsns = Vec::new();
    for i in 0..60_u8 {
        lsns.push(log.append_batch(&[&record(i)]).unwrap());
        if i == 10 {
            log.set_iterator("audit", lsns[4]).unwrap();
        }
        let until = log.commit().unwrap();
        log.wait_for_commit(until, SOON).unwrap();
    }
    let until = log.truncate_before(lsns[3]).unwrap();
    log.wait_for_commit(until, SOON).unwrap();
    let made = files(&mut log.into_device());
    let whole = checked_in("log-v1", &made);
    assert!(whole == made, "the same calls write other bytes than are checked in");
    let log = OwnedLog::open(device(&whole), options()).unwrap();
    assert_eq!((log.begin(), log.iterator("audit")), (lsns[3], Some(lsns[4])));
    let mut reader = ReadOnlyLog::open(device(&whole)).unwrap();
    let mut cursor = Lsn(lsns[3].0);
    for i in 3..60_u8 {
        let found = reader.next(&mut cursor).unwrap().unwrap();
        assert_eq!((found.lsn, found.payload), (lsns[usize::from(i)], record(i).as_slice()));
    }
    assert_eq!(reader.next(&mut cursor), Ok(None));
    let report = inspect_log(&mut device(&whole), 1).unwrap();
    assert_eq!(
        (report.begin, report.iterators, report.entries[0].position),
        (lsns[3].0, vec![("audit".to_owned(), lsns[4].0)], lsns[3].0)
    );
}

#[test]
fn stores_of_the_first_version_open_and_damaged_ones_are_refused() {
    let options = KvOptions { shards: 4, ..KvOptions::new(1) };
    let kv = ShardedKv::open(SimDevice::new(1), options.clone()).unwrap();
    let mut session = kv.start_session().unwrap();
    for i in 0..50_u8 {
        let keys: KvKeys = [[i, 1], [i, 2]].iter().collect();
        session.upsert_batch(&keys, |_| &[7; 8]).unwrap();
    }
    session.upsert(b"long", &[8; 100]).unwrap();
    kv.checkpoint(SOON).unwrap();
    drop(session);
    let now = files(&mut kv.into_device().unwrap());
    let whole = checked_in("kv-v2", &now);
    assert!(whole == now, "the same calls write other bytes than are checked in");
    assert_eq!(
        from_the_documentation::checkpoint(&whole, 2).content,
        from_the_documentation::checkpoint(&fixture_files("kv-v1"), 2).content
    );
    // The same as it was written before there were layers.
    let whole = fixture_files("kv-v1");
    let kv = ShardedKv::open(device(&whole), options.clone()).unwrap();
    assert_eq!((kv.len().unwrap(), kv.sessions()), (101, vec![(0, 101)]));
    let mut session = kv.resume_session(0, 102).unwrap();
    assert_eq!(session.read(b"long").unwrap().unwrap(), [8; 100]);
    assert_eq!(session.read(&[49, 2]).unwrap().unwrap(), [7; 8]);
    let report = inspect_checkpoint(&mut device(&whole), None, true).unwrap();
    assert_eq!((report.records, report.tables[0].records, report.problems.len()), (101, 101, 0));

    for (name, is_manifest) in [("kv-v1-damaged-manifest", true), ("kv-v1-damaged-data", false)] {
        let mut damaged = whole.clone();
        for (file, data) in &mut damaged {
            if file.starts_with("manifest") == is_manifest {
                data[50] ^= 1;
            }
        }
        let damaged = checked_in(name, &damaged);
        let refused = ShardedKv::open(device(&damaged), options.clone()).map(drop);
        let is_damage = matches!(refused, Err(tiderace_storage::KvError::Checkpoint(CheckpointError::Damaged { .. })));
        assert!(is_damage, "{name}: {refused:?}");
        assert_eq!(inspect_checkpoint(&mut device(&damaged), None, true).unwrap().problems.len(), 1, "{name}");
    }
    // The table that the store keeps its keys in is the first.
    let mut shard = tiderace_storage::Shard::new(tiderace_storage::ShardOptions { budget_bytes: usize::MAX });
    let mut checkpoints = Checkpoints::open(device(&whole), 2).unwrap();
    let newest = checkpoints.newest().unwrap().unwrap();
    checkpoints.restore(&newest, &mut shard, 0..4, |_, _| true).unwrap();
    assert_eq!(shard.point(TableId(0), 8).len(), 101);
}

/// What a shard's tables hold: table, key, value.
type Content = BTreeMap<u64, BTreeMap<Vec<u8>, Vec<u8>>>;

fn put(shard: &mut Shard, table: u64, key: &[u8], value: &[u8], content: &mut Content) {
    match table {
        9 => shard.ordered(TableId(table)).put(key, value),
        _ => drop(shard.point(TableId(table), 8).put(u64::from(crc32c::crc32c(key)) << 32, key, value)),
    }
    content.entry(table).or_default().insert(key.to_vec(), value.to_vec());
}

fn remove(shard: &mut Shard, table: u64, key: &[u8], content: &mut Content) {
    match table {
        9 => assert!(shard.ordered(TableId(table)).remove(key)),
        _ => assert!(shard.point(TableId(table), 8).remove(u64::from(crc32c::crc32c(key)) << 32, key)),
    }
    content.entry(table).or_default().remove(key);
}

/// Two rounds of changes, with all that a checkpoint can say; what the shard holds after each.
fn change(shard: &mut Shard, round: u8, content: &mut Content) {
    for i in 0..40_u8 {
        if round == 0 || i % 8 == 0 {
            put(shard, 1, &[i, 1], &vec![i + round; usize::from(i)], content);
            put(shard, 9, &[i / 3, i], &[round, i, 7], content);
        }
    }
    if round == 0 {
        put(shard, 3, b"of a table that is cleared", b"12345678", content);
        put(shard, 3, b"", b"of an empty key", content);
    } else {
        (10..15).for_each(|i| remove(shard, 1, &[i, 1], content));
        remove(shard, 9, &[0, 2], content);
        shard.point(TableId(3), 8).clear();
        content.remove(&3);
        put(shard, 3, b"behind", b"", content);
    }
}

#[test]
fn checkpoints_of_changes_open_are_written_alike_and_are_as_documented() {
    let mut shard = Shard::new(ShardOptions { budget_bytes: usize::MAX });
    let (mut device, mut content) = (SimDevice::new(1), Content::new());
    let mut checkpoints = Checkpoints::open(&mut device, 2).unwrap();
    let mut cuts = Vec::new();
    for round in 0..2_u8 {
        change(&mut shard, round, &mut content);
        let version = 4 + u64::from(round);
        let kind = shard.begin_capture(version, checkpoints.base(8)).unwrap();
        assert_eq!(kind == CaptureKind::Changes, round == 1);
        let (mut writer, mut blocks) = (checkpoints.begin(version, 8).unwrap(), Vec::new());
        writer.begin_all(kind);
        while shard.capture_slice(1000, &mut blocks) {}
        blocks.iter().try_for_each(|block| writer.push(block)).unwrap();
        writer.commit(content.values().map(|t| t.len() as u64).sum(), b"a note").unwrap();
        cuts.push(content.clone());
    }
    drop(checkpoints);
    let made = files(&mut device);
    let whole = checked_in("checkpoints-v2", &made);
    assert!(whole == made, "the same calls write other bytes than are checked in");
    for (version, cut) in [(4, &cuts[0]), (5, &cuts[1])] {
        let read = from_the_documentation::checkpoint(&whole, version);
        assert!(read.content == *cut, "version {version}");
        assert_eq!((read.note.as_slice(), read.vnodes), (b"a note".as_slice(), 8));
        let mut checkpoints = Checkpoints::open(self::device(&whole), 2).unwrap();
        let checkpoint = checkpoints.load(version).unwrap();
        let mut target = Shard::new(ShardOptions { budget_bytes: usize::MAX });
        checkpoints.restore(&checkpoint, &mut target, 0..8, |_, _| true).unwrap();
        assert!(held(&mut target) == *cut, "version {version}");
    }
    // The concurrent store's, of the format before: one data file, no layers.
    let (kv, content) = (fixture_files("kv-v1"), &from_the_documentation::checkpoint(&fixture_files("kv-v1"), 2));
    assert_eq!((content.vnodes, content.content[&0].len()), (4, 101));
    assert_eq!(content.content[&0][b"long".as_slice()], [8; 100]);
    assert_eq!(from_the_documentation::sessions(&content.note), (8, 1, vec![(0, 101)]));
    assert!(ShardedKv::open(self::device(&kv), KvOptions { shards: 4, ..KvOptions::new(1) }).is_ok());
}

#[test]
fn pages_of_shards_open_are_written_alike_and_are_as_documented() {
    let directory = tempfile::tempdir().unwrap();
    let layout = TableLayout { page_bits: 9, index_bits: 1, segment_bits: 3, tag_bits: 2, block_bits: 7, chunk_blocks: 4 };
    let store = StoreOptions { shard: 6, segment_bytes: 4 << 10, batch_bytes: 2 << 10 };
    let open = |path: &Path, at| {
        let device = Box::new(FileDevice::open(path).unwrap());
        Shard::open(ShardOptions { budget_bytes: 1 << 20 }, layout, device, store, 2, at).unwrap()
    };
    let (mut shard, _) = open(directory.path(), OpenAt::Newest);
    let (mut content, mut cuts) = (Content::new(), Vec::new());
    for round in 0..2_u8 {
        change(&mut shard, round, &mut content);
        shard.checkpoint_now(4 + u64::from(round), b"a note").unwrap();
        cuts.push(content.clone());
    }
    drop(shard);
    let mut made = read_directory(directory.path());
    made.remove(".lock");
    let whole = checked_in("pages-v1", &made);
    assert!(whole == made, "the same calls write other bytes than are checked in");
    for (version, cut) in [(4, &cuts[0]), (5, &cuts[1])] {
        let (note, read) = from_the_documentation::pages(&whole, version, 6);
        assert!(read == *cut, "version {version}");
        assert_eq!(note, b"a note");
        let copy = tempfile::tempdir().unwrap();
        whole.iter().for_each(|(file, data)| std::fs::write(copy.path().join(file), data).unwrap());
        let (mut shard, recovered) = open(copy.path(), OpenAt::Version(version));
        assert_eq!(recovered.unwrap().note, b"a note");
        assert!(held(&mut shard) == *cut, "version {version}");
    }
}

fn held(shard: &mut Shard) -> Content {
    let mut content = Content::new();
    for table in [1, 3] {
        let (mut records, points) = (Vec::new(), shard.point(TableId(table), 8));
        assert_eq!(points.scan(0, usize::MAX, &mut records), None);
        content.insert(table, records.iter().map(|r| (points.key(*r).to_vec(), points.value(*r).to_vec())).collect());
    }
    let all = shard.ordered(TableId(9)).range(Bound::Unbounded, Bound::Unbounded);
    content.insert(9, all.map(|(k, v)| (k.to_vec(), v.to_vec())).collect());
    content
}

fn read_directory(directory: &Path) -> Files {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

fn fixture_files(name: &str) -> Files {
    read_directory(&fixture(name))
}

/// Readers of all formats that are written from `docs/storage-format.md` alone and share no code with the crate, not even the checksum.
mod from_the_documentation {
    use super::{Content, Files};

    fn crc32c(bytes: &[u8]) -> u32 {
        let mut crc = !0_u32;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
            }
        }
        !crc
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    pub(super) struct Record {
        pub(super) position: u64,
        pub(super) flags: u32,
        pub(super) payload: Vec<u8>,
    }

    /// All records of whole groups of a segment, and the position behind them.
    pub(super) fn segment(bytes: &[u8], magic: &[u8; 8], base: u64) -> (Vec<Record>, u64) {
        assert_eq!(&bytes[..8], magic);
        assert_eq!((u32_at(bytes, 8), u32_at(bytes, 16)), (1, 0));
        assert_eq!(crc32c(&bytes[..60]), u32_at(bytes, 60));
        assert_eq!(bytes[..64], bytes[2048..2112]);
        assert_eq!(u64_at(bytes, 32), base);
        let salt = &bytes[24..32];
        let (mut records, mut group, mut at, mut end) = (Vec::new(), Vec::new(), 4096, base);
        loop {
            let position = base + (at as u64 - 4096);
            let Some(header) = bytes.get(at..at + 16) else { break };
            let (length, flags) = (u32_at(header, 0) as usize, u32_at(header, 12) & 0xFF);
            if length < 8 || at + 8 + length > bytes.len() {
                break;
            }
            let place = [salt, &position.to_le_bytes()].concat();
            let check = crc32c(&[&place, &header[..4], &header[8..12], &flags.to_le_bytes()[..]].concat());
            let crc = crc32c(&[&place, &header[..4], &bytes[at + 8..at + 8 + length]].concat());
            if check >> 8 != u32_at(header, 12) >> 8 || crc != u32_at(header, 4) || flags > 15 {
                break;
            }
            if flags & 8 != 0 {
                at += u32_at(header, 8) as usize * 8;
                end = base + (at as u64 - 4096);
                continue;
            }
            assert_eq!(flags & 2 != 0, group.is_empty(), "a group begins with its first record");
            group.push(Record { position, flags, payload: bytes[at + 16..at + 8 + length].to_vec() });
            at += (8 + length).next_multiple_of(8);
            if flags & 1 != 0 {
                records.append(&mut group);
                end = base + (at as u64 - 4096);
            }
        }
        (records, end)
    }

    /// Takes numbers and bytes from the front.
    struct Reader<'a>(&'a [u8]);

    impl<'a> Reader<'a> {
        fn bytes(&mut self, count: usize) -> &'a [u8] {
            let (front, rest) = self.0.split_at(count);
            self.0 = rest;
            front
        }

        fn u32(&mut self) -> u32 {
            u32::from_le_bytes(self.bytes(4).try_into().unwrap())
        }

        fn u64(&mut self) -> u64 {
            u64::from_le_bytes(self.bytes(8).try_into().unwrap())
        }
    }

    /// The format and the body of a manifest.
    fn sealed<'a>(bytes: &'a [u8], magic: &[u8; 8]) -> (u32, &'a [u8]) {
        assert_eq!(&bytes[..8], magic);
        assert_eq!(u32_at(bytes, 12) as usize, bytes.len() - 20);
        assert_eq!(crc32c(&[&bytes[..16], &bytes[20..]].concat()), u32_at(bytes, 16));
        (u32_at(bytes, 8), &bytes[20..])
    }

    pub(super) struct Checkpoint {
        pub(super) vnodes: u32,
        pub(super) note: Vec<u8>,
        pub(super) content: Content,
    }

    /// A checkpoint: its manifest, and the blocks of data files that it names.
    pub(super) fn checkpoint(files: &Files, version: u64) -> Checkpoint {
        let (format, body) = sealed(&files[&format!("manifest-{version:020}")], b"TRMANIFE");
        let mut body = Reader(body);
        assert_eq!(body.u64(), version);
        let (vnodes, records) = (body.u32(), body.u64());
        let data_bytes = if format == 1 { body.u64() } else { 0 };
        let note_bytes = body.u32() as usize;
        let note = body.bytes(note_bytes).to_vec();
        let data_files: Vec<(u64, u64)> = match format {
            1 => vec![(version, data_bytes)],
            2 => (0..body.u32()).map(|_| (body.u64(), body.u64())).collect(),
            other => panic!("format {other}"),
        };
        // Of each part (and so of each key) later blocks replace what earlier ones say.
        let mut held: std::collections::BTreeMap<u64, std::collections::BTreeMap<Vec<u8>, (u32, Vec<u8>)>> = Default::default();
        for _ in 0..body.u32() {
            let (of, data_bytes) = data_files[if format == 1 { 0 } else { body.u32() as usize }];
            let (offset, bytes, part, crc) = (body.u64(), body.u32() as usize, body.u32(), body.u32());
            let data = &files[&format!("shard-{of:020}.data")];
            assert_eq!(data.len() as u64, data_bytes);
            let block = &data[offset as usize..offset as usize + bytes];
            let payload = &block[12..];
            assert_eq!((u32_at(block, 0) as usize, u32_at(block, 4), u32_at(block, 8)), (payload.len(), crc, part));
            let place = [&of.to_le_bytes()[..], &offset.to_le_bytes(), &part.to_le_bytes(), payload].concat();
            assert_eq!(crc32c(&place), crc);
            let mut payload = Reader(payload);
            while !payload.0.is_empty() {
                let (table, _width, kind, records) = (payload.u64(), payload.u32(), payload.u32(), payload.u32());
                let table = held.entry(table).or_default();
                if kind == 3 {
                    assert_eq!(records, 0);
                    table.retain(|_, (of, _)| *of != part);
                }
                for _ in 0..records {
                    let hash = if kind == 1 { None } else { Some(payload.u64()) };
                    let (key, value) = (payload.u32() as usize, payload.u32() as usize);
                    let (key, value) = (payload.bytes(key).to_vec(), payload.bytes(value).to_vec());
                    match hash {
                        Some(hash) => assert_eq!((u128::from(hash) * u128::from(vnodes)) >> 64, u128::from(part)),
                        None => assert_eq!(part, u32::MAX),
                    }
                    match kind {
                        0 | 1 => drop(table.insert(key, (part, value))),
                        2 => drop(table.remove(&key)),
                        other => panic!("kind {other}"),
                    }
                }
            }
        }
        assert!(body.0.is_empty());
        let content: Content =
            held.into_iter().map(|(table, held)| (table, held.into_iter().map(|(k, (_, v))| (k, v)).collect())).collect();
        assert_eq!(content.values().map(|t| t.len() as u64).sum::<u64>(), records);
        Checkpoint { vnodes, note, content }
    }

    /// A concurrent store's note: bytes of values, next session, sessions with serials.
    pub(super) fn sessions(note: &[u8]) -> (u32, u64, Vec<(u64, u64)>) {
        let mut note = Reader(note);
        assert_eq!((note.bytes(8), note.u32()), (b"TRKVSESS".as_slice(), 1));
        let (value_bytes, next, count) = (note.u32(), note.u64(), note.u32());
        let sessions = (0..count).map(|_| (note.u64(), note.u64())).collect();
        assert!(note.0.is_empty());
        (value_bytes, next, sessions)
    }

    /// A checkpoint of a shard's own pages: its note and content.
    pub(super) fn pages(files: &Files, version: u64, shard: u32) -> (Vec<u8>, Content) {
        let (format, body) = sealed(&files[&format!("pages-manifest-{version:020}")], b"TRFOLDOV");
        let mut body = Reader(body);
        assert_eq!((format, body.u64(), body.u32()), (1, version, shard));
        let note_bytes = body.u32() as usize;
        let note = body.bytes(note_bytes).to_vec();
        let mut content = Content::new();
        for _ in 0..body.u32() {
            let (table, kind, _width, next, count) = (body.u64(), body.u32(), body.u32(), body.u64(), body.u32());
            let mut pages = Vec::new();
            for _ in 0..count {
                let (number, segment, sector, sectors, crc) = (body.u64(), body.u32(), body.u32(), body.u32(), body.u32());
                assert!(number <= next);
                let from = sector as usize * 512;
                let frame = &files[&format!("pages-{segment:010}.seg")][from..from + sectors as usize * 512];
                let trailer = &frame[frame.len() - 64..];
                assert_eq!((&trailer[..8], u32_at(trailer, 8), u32_at(trailer, 12)), (b"TRPAGE01".as_slice(), 1, shard));
                assert_eq!((u64_at(trailer, 16), u64_at(trailer, 24)), (table, number));
                let used = u64_at(trailer, 32) as usize;
                assert_eq!((u32_at(trailer, 40), u32_at(trailer, 44), u32_at(trailer, 48)), (sectors, segment, sector));
                assert_eq!((u32_at(trailer, 60), crc32c(&frame[..frame.len() - 4])), (crc, crc));
                assert_eq!((used + 64).next_multiple_of(512), frame.len());
                pages.push((number, &frame[..used]));
            }
            let of = content.entry(table).or_default();
            if kind == 1 {
                let mut last: Option<Vec<u8>> = None;
                for (_, block) in pages {
                    let mut block = Reader(block);
                    while !block.0.is_empty() {
                        let (key, value) = (block.u32() as usize, block.u32() as usize);
                        let (key, value) = (block.bytes(key).to_vec(), block.bytes(value).to_vec());
                        assert!(last.as_ref().is_none_or(|last| *last < key), "ascending over all blocks");
                        last = Some(key.clone());
                        of.insert(key, value);
                    }
                }
                continue;
            }
            pages.sort_by_key(|(number, _)| *number);
            let mut found_on = std::collections::BTreeMap::new();
            for (number, page) in pages {
                let mut at = 0;
                while at + 24 <= page.len() {
                    let word = u64_at(page, at);
                    let (value_bytes, key_bytes, flags) =
                        ((word >> 32) as usize, (word >> 6) as usize & ((1 << 26) - 1), word & 63);
                    assert_eq!(flags & 0b11_0000, 0);
                    let padded = value_bytes.next_multiple_of(8);
                    if flags & 3 != 0 {
                        let value = &page[at + 16..at + 16 + value_bytes];
                        let key = page[at + 16 + padded..at + 16 + padded + key_bytes].to_vec();
                        if flags & 1 != 0 {
                            of.insert(key.clone(), value.to_vec());
                            found_on.insert(key, number);
                        } else if found_on.get(&key).is_some_and(|on| *on < u64_at(value, 0)) {
                            of.remove(&key);
                        }
                    }
                    at += (16 + padded + key_bytes.next_multiple_of(8)).max(24);
                }
            }
        }
        assert!(body.0.is_empty());
        (note, content)
    }
}

#[test]
fn a_reader_written_from_the_documentation_reads_all_fixtures() {
    let base = |name: &str| name[4..24].parse::<u64>().unwrap();
    for (fixture, count) in [("wal-v1", 80), ("wal-v1-torn", 79), ("wal-v1-repaired", 77), ("log-v1", 60)] {
        let magic = if fixture.starts_with("wal") { b"TRWALSEG" } else { b"TRLOGSEG" };
        let (mut records, mut end) = (Vec::new(), 0);
        for entry in std::fs::read_dir(self::fixture(fixture))
            .unwrap()
            .collect::<Result<Vec<_>, _>>()
            .unwrap()
            .iter()
            .map(std::fs::DirEntry::path)
            .collect::<std::collections::BTreeSet<_>>()
        {
            let name = entry.file_name().unwrap().to_str().unwrap();
            if !name.starts_with("before-repair") {
                assert_eq!(base(name), end, "{fixture}: {name}");
                let (mut found, behind) = from_the_documentation::segment(&std::fs::read(&entry).unwrap(), magic, end);
                records.append(&mut found);
                end = behind;
            }
        }
        let own: Vec<_> = records.iter().filter(|r| r.flags & 4 == 0).collect();
        assert!(own.len() >= count && own.len() <= count + 2, "{fixture}: {}", own.len());
        assert!(own.windows(2).all(|w| w[0].position < w[1].position));
        let control: Vec<_> = records.iter().filter(|r| r.flags & 4 != 0).map(|r| &r.payload).collect();
        if fixture.starts_with("wal") {
            let offsets =
                control.iter().map(|c| (c[0], c[1], c[2], u64::from_le_bytes(c[8..16].try_into().unwrap()), &c[36..38]));
            assert!(
                offsets.clone().count() >= 2
                    && offsets
                        .clone()
                        .all(|(_, version, flags, epoch, partition)| { (version, flags, epoch, partition) == (1, 1, 9, b"p1") })
            );
            assert_eq!(offsets.filter(|(kind, ..)| *kind == 1).count(), 1);
            let expected = wal_records();
            assert!(own.iter().all(|r| expected.contains(&r.payload)));
        } else {
            let last = control.last().unwrap();
            assert_eq!((last[0], last[1], last[4], &last[28..33]), (3, 1, 1, b"audit".as_slice()));
        }
    }
}
