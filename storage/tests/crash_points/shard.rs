//! A shard's own pages as checkpoints: flush, cut, compaction, growth, truncation, under crashes, errors and damage.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use tiderace_storage::{
    Answer, CheckpointError, Completion, Device, DeviceOp, Done, Fault, Image, OpenAt, Operation, Shard, ShardOptions, SimDevice,
    StoreOptions, Submitted, TableId, TableLayout, Token, vnode_of,
};

use super::{Random, Tally, setting};

const LAYOUT: TableLayout =
    TableLayout { page_bits: 9, index_bits: 1, segment_bits: 3, tag_bits: 2, block_bits: 7, chunk_blocks: 4 };
const BUDGET: usize = 96 << 10;

/// A device that the test keeps a hand on while a shard owns it.
#[derive(Clone, Debug)]
pub struct Shared(std::sync::Arc<std::sync::Mutex<SimDevice>>);

impl Shared {
    pub fn new(device: SimDevice) -> Self {
        Self(std::sync::Arc::new(std::sync::Mutex::new(device)))
    }

    pub fn with<R>(&self, f: impl FnOnce(&mut SimDevice) -> R) -> R {
        f(&mut self.0.lock().unwrap())
    }
}

impl Device for Shared {
    fn submit(&mut self, op: DeviceOp) -> Token {
        self.with(|d| d.submit(op))
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        self.with(|d| d.poll(done));
    }

    fn wait(&mut self, _: Duration) {}
}

/// Table (point ones are even), key, value.
type Model = BTreeMap<(u64, Vec<u8>), Vec<u8>>;

fn hash(key: &[u8]) -> u64 {
    let sum = key.iter().fold(7_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01B3));
    Random(sum).next()
}

fn open(device: &Shared, keep: usize, at: OpenAt) -> Result<(Shard, Option<(u64, Vec<u8>)>), CheckpointError> {
    let store = StoreOptions { shard: 5, segment_bytes: 8 << 10, batch_bytes: 2 << 10 };
    let options = ShardOptions { budget_bytes: BUDGET };
    // What a shard before this one has left on its way.
    device.with(|d| (0..200).for_each(|_| d.poll(&mut Vec::new())));
    let (shard, recovered) = Shard::open(options, LAYOUT, Box::new(device.clone()), store, keep, at)?;
    Ok((shard, recovered.map(|r| (r.version, r.note))))
}

fn change(shard: &mut Shard, model: &mut Model, random: &mut Random, count: u64) -> Result<(), CheckpointError> {
    for _ in 0..count {
        let table = random.below(4);
        let key: Vec<u8> = (0..1 + random.below(2)).map(|_| random.below(12) as u8).collect();
        let value: Vec<u8> =
            (0..random.below(if table.is_multiple_of(2) { 300 } else { 40 })).map(|_| random.next() as u8).collect();
        let kind = random.below(16);
        let id = TableId(table);
        match (table.is_multiple_of(2), kind) {
            (_, 0) if random.below(12) == 0 => {
                shard.drop_table(id);
                model.retain(|(t, _), _| *t != table);
                continue;
            }
            (true, 0..=3) => drop(shard.point(id, 8).remove(hash(&key), &key)),
            (true, 4..=9) => drop(shard.point(id, 8).put(hash(&key), &key, &value)),
            (true, _) => {
                let mut answer = None;
                for _ in 0..200 {
                    match shard.submit(id, 8, hash(&key), &key, Operation::Upsert(value.clone())) {
                        Ok(submitted) => {
                            answer = Some(submitted);
                            break;
                        }
                        Err(_) => {
                            shard.maintain()?;
                            shard.complete_pending(Duration::from_micros(100));
                        }
                    }
                }
                if let Submitted::Pending(_) = answer.expect("room comes within 200 turns") {
                    let mut out: Vec<(_, Result<Answer, _>)> = Vec::new();
                    let mut turns = 0;
                    while shard.pending() > 0 {
                        turns += 1;
                        assert!(turns < 10_000, "{} operations wait for ever, {} B used", shard.pending(), shard.used_bytes());
                        shard.complete_pending(Duration::from_micros(100));
                        shard.maintain()?;
                    }
                    shard.take_completed(&mut out);
                    for (_, answer) in out {
                        answer?;
                    }
                }
            }
            (false, 0..=3) => drop(shard.ordered(id).remove(&key)),
            (false, _) => shard.ordered(id).put(&key, &value),
        }
        if kind < 4 {
            model.remove(&(table, key));
        } else {
            model.insert((table, key), value);
        }
        if random.below(4) == 0 {
            shard.maintain()?;
        }
    }
    shard.maintain()?;
    Ok(())
}

fn content(shard: &mut Shard) -> Model {
    let mut model = Model::new();
    for table in 0..4 {
        if table % 2 == 0 {
            let mut records = Vec::new();
            let found = shard.point(TableId(table), 8);
            assert_eq!(found.scan(0, usize::MAX, &mut records), None);
            for record in records {
                let (key, value) = (found.key(record).to_vec(), found.value(record).to_vec());
                assert!(model.insert((table, key.clone()), value).is_none(), "{key:?} twice");
            }
            assert_eq!(found.len(), model.range((table, Vec::new())..(table + 1, Vec::new())).count());
        } else {
            let found = shard.ordered(TableId(table));
            model.extend(found.range(Bound::Unbounded, Bound::Unbounded).map(|(k, v)| ((table, k.to_vec()), v.to_vec())));
        }
    }
    model
}

/// What was true when each version was cut; which ones were acknowledged.
#[derive(Clone, Debug, Default)]
struct History {
    cuts: BTreeMap<u64, Model>,
    committed: Vec<u64>,
}

/// Opens what is there, goes on from it and takes checkpoints while it works, until the device fails or `rounds` are over.
fn work(device: &Shared, seed: u64, rounds: u64, history: &mut History) -> Result<(), CheckpointError> {
    let mut random = Random(seed);
    let (mut shard, recovered) = open(device, 2, OpenAt::Newest)?;
    let mut model = match &recovered {
        Some((version, _)) => history.cuts[version].clone(),
        None => Model::new(),
    };
    let first = recovered.map_or(1, |(version, _)| version + 1);
    let first = first.max(shard.versions().last().copied().unwrap_or(0) + 1);
    for version in first..first + rounds {
        change(&mut shard, &mut model, &mut random, 90)?;
        shard.cut(version, &version.to_le_bytes())?;
        history.cuts.insert(version, model.clone());
        // The shard goes on while what was cut is written.
        let mut turns = 0;
        while shard.is_checkpointing() {
            // R5: what is changed while the checkpoint is written isn't in it, and nothing that was before the cut is missing.
            if random.below(3) == 0 {
                change(&mut shard, &mut model, &mut random, 4)?;
            }
            if let Some(version) = shard.advance_checkpoint()? {
                history.committed.push(version);
            }
            turns += 1;
            assert!(turns < 10_000, "a checkpoint never ends");
        }
    }
    Ok(())
}

fn judge(device: SimDevice, history: &History) -> Result<(), String> {
    let device = Shared::new(device);
    let (shard, recovered) = open(&device, 2, OpenAt::Newest).map_err(|e| e.to_string())?;
    let acknowledged = history.committed.last();
    let Some((newest, _)) = recovered else {
        return if acknowledged.is_none() { Ok(()) } else { Err(format!("nothing is there, {acknowledged:?} was acknowledged")) };
    };
    if acknowledged.is_some_and(|version| newest < *version) {
        return Err(format!("{newest} is the newest, {acknowledged:?} was acknowledged"));
    }
    let versions = shard.versions();
    if versions.len() < history.committed.len().min(2) {
        return Err(format!("only {versions:?} are kept of {:?}", history.committed));
    }
    drop(shard);
    for version in versions {
        let (mut shard, recovered) = open(&device, 2, OpenAt::Version(version)).map_err(|e| format!("{version}: {e}"))?;
        let cut = history.cuts.get(&version).ok_or(format!("version {version} was never cut"))?;
        let held = content(&mut shard);
        if held != *cut || recovered != Some((version, version.to_le_bytes().to_vec())) {
            let differs: Vec<_> = cut.iter().filter(|(k, v)| held.get(*k) != Some(*v)).map(|(k, _)| k).take(3).collect();
            let extra: Vec<_> = held.keys().filter(|k| !cut.contains_key(*k)).take(3).collect();
            return Err(format!(
                "version {version} of {newest} holds something else than was cut: {differs:?}, and besides {extra:?}"
            ));
        }
        if let Some(error) = shard.failure() {
            return Err(error.to_string());
        }
    }
    Ok(())
}

fn whole(seed: u64) -> (u64, History) {
    let (device, mut history) = (Shared::new(SimDevice::new(seed)), History::default());
    work(&device, seed, 4, &mut history).unwrap();
    assert_eq!(history.committed.len(), 4);
    judge(device.with(|d| d.crash(0)), &history).unwrap();
    (device.with(|d| d.submitted()), history)
}

#[test]
fn checkpoints_of_pages_survive_a_crash_at_every_operation() {
    let tally = Tally::default();
    let base = setting("TIDERACE_CRASH_SEED", 1);
    for seed in base..base + setting("TIDERACE_CRASH_ROUNDS", 40).min(3000) {
        for at in 0..whole(seed).0 {
            let (device, mut history) = (Shared::new(SimDevice::new(seed)), History::default());
            device.with(|d| d.inject(at, Fault::PowerOff));
            let _ = work(&device, seed, 4, &mut history);
            for crash in 0..4 {
                let place = || format!("workload {seed}, operation {at}, crash {crash}");
                let mut after = device.with(|d| d.crash(crash * 31 + at));
                tally.check(judge(after.crash(1), &history).map_err(|e| format!("{}: {e}", place())));
                if crash % 2 > 0 {
                    continue;
                }
                // Start again, go on, crash again.
                let mut second = history.clone();
                let mut random = Random(seed * 100 + at * 8 + crash);
                after.inject(after.submitted() + 20 + random.below(300), Fault::PowerOff);
                let again = Shared::new(after);
                let opened = open(&Shared::new(again.with(|d| d.crash(1))), 2, OpenAt::Newest);
                second.committed = opened.ok().and_then(|(_, r)| r).map(|(version, _)| version).into_iter().collect();
                let _ = work(&again, seed + 7, 2, &mut second);
                tally.check(judge(again.with(|d| d.crash(crash)), &second).map_err(|e| format!("{}, again: {e}", place())));
            }
        }
    }
    tally.finish("shard", if base == 1 { 10_000 } else { 0 });
}

/// Moves a vnode from one durable shard to another: into the target, durably, then out of the source, durably; then says so.
fn move_vnode(from: &Shared, to: &Shared, vnode: u32, moved: &mut bool) -> Result<(), CheckpointError> {
    let (mut source, at) = open(from, 2, OpenAt::Newest)?;
    let (mut target, target_at) = open(to, 2, OpenAt::Newest)?;
    let odd = |_: TableId, key: &[u8]| key[0] % 2 == 1;
    let image = Image::of_vnodes(&source, 8, vnode..vnode + 1, odd);
    image.put_into(&mut target);
    target.checkpoint_now(target_at.map_or(1, |(v, _)| v + 1), b"moved in")?;
    assert_eq!(source.remove_vnodes(8, vnode..vnode + 1, odd), image.records());
    source.checkpoint_now(at.map_or(1, |(v, _)| v + 1), b"moved out")?;
    *moved = true;
    Ok(())
}

#[test]
fn a_vnode_that_moves_is_in_one_shard_or_the_other_whatever_crashes() {
    let tally = Tally::default();
    for seed in 1..6 {
        let (from, mut history) = (Shared::new(SimDevice::new(seed)), History::default());
        work(&from, seed, 2, &mut history).unwrap();
        let whole = history.cuts[history.committed.last().unwrap()].clone();
        let before = from.with(|d| d.crash(1));
        let vnode = (seed % 8) as u32;
        let moves = |table: u64, key: &[u8]| {
            if table.is_multiple_of(2) { vnode_of(hash(key), 8) == vnode } else { key[0] % 2 == 1 }
        };
        let moving: Model = whole.iter().filter(|((t, k), _)| moves(*t, k)).map(|(k, v)| (k.clone(), v.clone())).collect();
        let staying: Model = whole.iter().filter(|((t, k), _)| !moves(*t, k)).map(|(k, v)| (k.clone(), v.clone())).collect();
        assert!(!moving.is_empty() && !staying.is_empty());
        // Each device in turn goes off at each of its operations.
        for side in 0..2 {
            for at in 0..200 {
                let (source, target) = (Shared::new(before.crash(1)), Shared::new(SimDevice::new(seed)));
                [&source, &target][side].with(|d| d.inject(d.submitted() + at, Fault::PowerOff));
                let mut moved = false;
                let _ = move_vnode(&source, &target, vnode, &mut moved);
                if ![&source, &target][side].with(|d| d.is_off()) {
                    break;
                }
                for crash in 0..4 {
                    let after = |d: &Shared| open(&Shared::new(d.with(|d| d.crash(crash))), 2, OpenAt::Newest);
                    let check = after(&source).and_then(|(mut s, _)| Ok((content(&mut s), content(&mut after(&target)?.0))));
                    let check = check.map_err(|e| e.to_string()).and_then(|(source, target)| {
                        let is_whole = source == whole && (target.is_empty() || target == moving) && !moved;
                        let is_moved = source == staying && target == moving;
                        if is_whole || is_moved { Ok(()) } else { Err(format!("{} here, {} there", source.len(), target.len())) }
                    });
                    tally.check(check.map_err(|e| format!("seed {seed}, side {side}, operation {at}, crash {crash}: {e}")));
                }
            }
        }
    }
    tally.finish("vnode move", 300);
}

#[test]
fn an_error_stops_a_shards_checkpoints_and_leaves_those_before() {
    let tally = Tally::default();
    for fault in [Fault::Io, Fault::NoSpace] {
        for seed in 1..4 {
            for at in 0..whole(seed).0 {
                let (device, mut history) = (Shared::new(SimDevice::new(seed)), History::default());
                device.with(|d| d.inject(at, fault));
                // A file that couldn't be removed is the one thing that may go unsaid.
                let _ = work(&device, seed, 4, &mut history);
                for crash in 0..2 {
                    tally.check(
                        judge(device.with(|d| d.crash(crash)), &history)
                            .map_err(|e| format!("workload {seed}, {fault:?} at {at}, crash {crash}: {e}")),
                    );
                }
            }
        }
    }
    tally.finish("shard errors", 500);
}

// R6, R14: damage anywhere in what a checkpoint names is an error; never other content, never an empty shard.
#[test]
fn r14_every_damaged_byte_of_a_page_or_manifest_is_an_error() {
    let (device, mut history) = (Shared::new(SimDevice::new(5)), History::default());
    work(&device, 5, 2, &mut history).unwrap();
    let Done::Files(files) = device.with(|d| d.execute(DeviceOp::List)).unwrap() else { panic!("files") };
    let newest = *history.committed.last().unwrap();
    let (mut errors, mut same) = (0, 0);
    for (file, len) in &files {
        for offset in (0..*len as usize).step_by(7) {
            let mut damaged = device.with(|d| d.crash(1));
            assert!(damaged.corrupt(file, offset, 0x10));
            let result = open(&Shared::new(damaged), 2, OpenAt::Newest).and_then(|(mut shard, _)| {
                let held = content(&mut shard);
                shard.failure().map_or(Ok(held), |e| Err(e.into()))
            });
            match result {
                Err(_) => errors += 1,
                Ok(held) => {
                    // Of the older manifest, of dead pages, or of pages of the older version alone.
                    same += 1;
                    assert!(held == history.cuts[&newest], "{file} at {offset}");
                }
            }
        }
    }
    assert!(errors > 300, "{errors} errors, {same} without effect");
}

#[test]
fn an_unreadable_newest_manifest_fails_the_open_unless_told_otherwise() {
    let (device, mut history) = (Shared::new(SimDevice::new(6)), History::default());
    work(&device, 6, 3, &mut history).unwrap();
    let newest = *history.committed.last().unwrap();
    let file = tiderace_storage::FileName::new(&format!("pages-manifest-{newest:020}")).unwrap();
    assert!(device.with(|d| d.corrupt(&file, 30, 1)));
    assert!(matches!(open(&device, 2, OpenAt::Newest), Err(CheckpointError::Damaged { .. })));
    let (mut shard, recovered) = open(&device, 2, OpenAt::Version(newest - 1)).unwrap();
    assert_eq!(recovered.unwrap().0, newest - 1);
    assert!(content(&mut shard) == history.cuts[&(newest - 1)]);
    assert!(matches!(shard.cut(newest, b""), Err(CheckpointError::NotNewer { .. })));
    shard.checkpoint_now(newest + 1, b"").unwrap();
    drop(shard);
    let (mut shard, recovered) = open(&device, 2, OpenAt::Newest).unwrap();
    assert_eq!(recovered.unwrap().0, newest + 1);
    assert_eq!(shard.versions(), [newest - 1, newest + 1]);
    assert!(content(&mut shard) == history.cuts[&(newest - 1)]);
}

// R3: compaction of what is on the device keeps it. Space comes back.
#[test]
fn r3_compaction_keeps_what_lives_and_gives_space_back() {
    let device = Shared::new(SimDevice::new(3));
    let (mut shard, _) = open(&device, 2, OpenAt::Newest).unwrap();
    let mut model = Model::new();
    let mut random = Random(3);
    let mut most = 0;
    for version in 1..40 {
        change(&mut shard, &mut model, &mut random, 300).unwrap();
        shard.checkpoint_now(version, b"").unwrap();
        for _ in 0..300 {
            shard.maintain().unwrap();
            shard.complete_pending(Duration::ZERO);
        }
        let Done::Files(files) = device.with(|d| d.execute(DeviceOp::List)).unwrap() else { panic!("files") };
        most = most.max(files.iter().map(|(_, len)| len).sum());
    }
    assert!(content(&mut shard) == model);
    assert!(most < 1 << 20, "{most} B for {} records", model.len());
    let counts = shard.store_counts();
    assert!(counts.segments_removed > 20, "{counts:?}");
    assert!(counts.bytes_written > 2 * most, "{counts:?}");
    drop(shard);
    let (mut shard, _) = open(&device, 2, OpenAt::Newest).unwrap();
    assert!(!content(&mut shard).is_empty());
}

// R7: a checkpoint that follows another writes what has changed, and is whole.
#[test]
fn r7_a_checkpoint_after_another_writes_only_what_has_changed() {
    let device = Shared::new(SimDevice::new(7));
    let store = StoreOptions { shard: 5, segment_bytes: 64 << 10, batch_bytes: 8 << 10 };
    let layout = TableLayout { page_bits: 12, tag_bits: 24, index_bits: 8, segment_bits: 8, block_bits: 10, ..LAYOUT };
    let options = ShardOptions { budget_bytes: 4 << 20 };
    let open = || Shard::open(options.clone(), layout, Box::new(device.clone()), store, 2, OpenAt::Newest).unwrap();
    let (mut shard, _) = open();
    let mut model = Model::new();
    for key in 0..4000_u32 {
        let key = key.to_be_bytes();
        shard.point(TableId(0), 8).put(hash(&key), &key, &[1; 100]);
        shard.ordered(TableId(1)).put(&key, &[1; 50]);
        model.extend([((0, key.to_vec()), vec![1; 100]), ((1, key.to_vec()), vec![1; 50])]);
    }
    shard.checkpoint_now(1, b"").unwrap();
    let all = shard.store_counts().bytes_written;
    for key in (0..4000_u32).step_by(400) {
        let key = key.to_be_bytes();
        shard.point(TableId(0), 8).put(hash(&key), &key, &[2; 100]);
        shard.ordered(TableId(1)).put(&key, &[2; 50]);
        model.extend([((0, key.to_vec()), vec![2; 100]), ((1, key.to_vec()), vec![2; 50])]);
    }
    shard.checkpoint_now(2, b"").unwrap();
    let changed = shard.store_counts().bytes_written - all;
    assert!(all > 700_000 && changed < all / 20, "{all} B, then {changed} B");
    drop(shard);
    let (mut shard, recovered) = open();
    assert_eq!(recovered.unwrap().version, 2);
    assert!(content(&mut shard) == model);
}

// R6: state four times the memory, checkpoint, recover: every key.
#[test]
fn r6_a_shard_larger_than_its_memory_comes_back_whole() {
    let device = Shared::new(SimDevice::new(6));
    let store = StoreOptions { shard: 5, segment_bytes: 64 << 10, batch_bytes: 8 << 10 };
    let layout = TableLayout { page_bits: 12, tag_bits: 24, index_bits: 8, segment_bits: 8, ..LAYOUT };
    let options = ShardOptions { budget_bytes: 320 << 10 };
    let open = || Shard::open(options.clone(), layout, Box::new(device.clone()), store, 2, OpenAt::Newest).unwrap();
    let (mut shard, _) = open();
    let value = |key: u64| vec![key as u8; 400];
    for key in 0..3000_u64 {
        for attempt in 0.. {
            match shard.submit(TableId(0), 8, hash(&key.to_be_bytes()), &key.to_be_bytes(), Operation::Upsert(value(key))) {
                Ok(_) => break,
                Err(e) => assert!(attempt < 1000, "{e}"),
            }
            shard.maintain().unwrap();
            shard.complete_pending(Duration::from_micros(100));
        }
        assert!(shard.used_bytes() <= 320 << 10);
    }
    while shard.pending() > 0 {
        shard.complete_pending(Duration::from_millis(1));
        shard.maintain().unwrap();
    }
    shard.checkpoint_now(1, b"note").unwrap();
    drop(shard);
    let (mut shard, recovered) = open();
    assert_eq!(recovered.unwrap().note, b"note");
    assert_eq!(shard.point(TableId(0), 8).len(), 3000);
    for key in 0..3000_u64 {
        let found = shard.point(TableId(0), 8).get(hash(&key.to_be_bytes()), &key.to_be_bytes()).map(<[u8]>::to_vec);
        assert_eq!(found, Some(value(key)), "{key}");
        shard.maintain().unwrap();
    }
    assert_eq!(shard.failure(), None);
}

// FASTER #153: a checkpoint of nothing, and one of nothing new, end.
#[test]
fn checkpoints_of_an_empty_shard_and_without_changes_end_and_come_back() {
    let device = Shared::new(SimDevice::new(8));
    let (mut shard, recovered) = open(&device, 2, OpenAt::Newest).unwrap();
    assert_eq!(recovered, None);
    shard.checkpoint_now(1, b"empty").unwrap();
    shard.checkpoint_now(2, b"still empty").unwrap();
    shard.point(TableId(0), 8).put(1, b"key", b"value");
    shard.checkpoint_now(3, b"one").unwrap();
    let written = shard.store_counts().bytes_written;
    shard.checkpoint_now(4, b"the same").unwrap();
    assert_eq!(shard.store_counts().bytes_written, written, "nothing has changed");
    drop(shard);
    let (mut shard, recovered) = open(&device, 2, OpenAt::Newest).unwrap();
    assert_eq!(recovered, Some((4, b"the same".to_vec())));
    assert_eq!(content(&mut shard), Model::from([((0, b"key".to_vec()), b"value".to_vec())]));
}

// FASTER #232: what waits for the device when a checkpoint begins belongs to a side of it, or there is no checkpoint.
#[test]
fn a_cut_waits_for_operations_that_wait_for_the_device() {
    let device = Shared::new(SimDevice::new(9));
    let layout = TableLayout { page_bits: 11, tag_bits: 24, index_bits: 8, segment_bits: 8, ..LAYOUT };
    let store = StoreOptions { shard: 5, segment_bytes: 32 << 10, batch_bytes: 4 << 10 };
    let options = ShardOptions { budget_bytes: 160 << 10 };
    let open = || Shard::open(options.clone(), layout, Box::new(device.clone()), store, 2, OpenAt::Newest).unwrap().0;
    let mut shard = open();
    let upsert = |shard: &mut Shard, key: u64, value: Vec<u8>| {
        for _ in 0..2000 {
            let key = key.to_be_bytes();
            match shard.submit(TableId(0), 8, hash(&key), &key, Operation::Upsert(value.clone())) {
                Ok(submitted) => return submitted,
                Err(_) => {
                    shard.maintain().unwrap();
                    shard.complete_pending(Duration::from_micros(100));
                }
            }
        }
        panic!("no room");
    };
    let finish = |shard: &mut Shard| {
        for _ in 0..5000 {
            if shard.pending() == 0 {
                return;
            }
            shard.complete_pending(Duration::from_millis(1));
            shard.maintain().unwrap();
        }
        panic!("operations wait for ever");
    };
    for key in 0..1500 {
        upsert(&mut shard, key, vec![1; 100]);
        shard.maintain().unwrap();
    }
    finish(&mut shard);
    let waiting = (0..50).filter(|key| matches!(upsert(&mut shard, *key, vec![2; 50]), Submitted::Pending(_))).count();
    assert!(waiting > 0, "the oldest keys are on the device");
    assert!(matches!(shard.cut(1, b""), Err(CheckpointError::OperationsPending { count }) if count > 0));
    finish(&mut shard);
    shard.checkpoint_now(1, b"").unwrap();
    drop(shard);
    let mut shard = open();
    for key in 0..1500_u64 {
        let wanted = if key < 50 { vec![2; 50] } else { vec![1; 100] };
        let found = shard.point(TableId(0), 8).get(hash(&key.to_be_bytes()), &key.to_be_bytes()).map(<[u8]>::to_vec);
        assert_eq!(found, Some(wanted), "{key}");
        shard.maintain().unwrap();
    }
}

// A rescale reads the tables of the vnodes that move, and no page of others.
#[test]
fn one_vnodes_tables_are_restored_without_reading_the_others() {
    let device = Shared::new(SimDevice::new(10));
    let (mut shard, _) = open(&device, 2, OpenAt::Newest).unwrap();
    let (mut models, mut random) = (vec![Model::new(); 8], Random(10));
    let table = |vnode: usize, is_ordered: bool| TableId(vnode as u64 * 2 + u64::from(is_ordered));
    for version in 1..6 {
        for _ in 0..600 {
            let key = vec![random.below(40) as u8, random.below(3) as u8];
            let vnode = vnode_of(hash(&key), 8) as usize;
            let value: Vec<u8> = (0..random.below(60)).map(|_| random.next() as u8).collect();
            let model = &mut models[vnode];
            if random.below(4) == 0 {
                shard.point(table(vnode, false), 8).remove(hash(&key), &key);
                model.remove(&(0, key));
            } else if random.below(3) == 0 {
                shard.ordered(table(vnode, true)).put(&key, &value);
                model.insert((1, key), value);
            } else {
                shard.point(table(vnode, false), 8).put(hash(&key), &key, &value);
                model.insert((0, key), value);
            }
        }
        shard.maintain().unwrap();
        shard.checkpoint_now(version, b"moving").unwrap();
    }
    drop(shard);
    let mut reads = 0;
    for (vnode, model) in models.iter().enumerate() {
        let mut source = device.with(|d| d.crash(3));
        let before = source.submitted();
        let mut target = Shard::with_layout(ShardOptions { budget_bytes: usize::MAX }, LAYOUT);
        let wants = |id: TableId| id.0 / 2 == vnode as u64;
        let (recovered, records) = target.restore_tables(&mut source, 5, 5, wants).unwrap();
        assert_eq!((recovered.version, recovered.note.as_slice(), records), (5, b"moving".as_slice(), model.len() as u64));
        reads += source.submitted() - before - 1;
        let mut held = Model::new();
        let mut found = Vec::new();
        let points = target.point(table(vnode, false), 8);
        assert_eq!(points.scan(0, usize::MAX, &mut found), None);
        held.extend(found.iter().map(|r| ((0, points.key(*r).to_vec()), points.value(*r).to_vec())));
        let ordered = target.ordered(table(vnode, true)).range(Bound::Unbounded, Bound::Unbounded);
        held.extend(ordered.map(|(k, v)| ((1, k.to_vec()), v.to_vec())));
        assert!(held == *model, "vnode {vnode}");
    }
    // All vnodes together have read each page once.
    let mut source = device.with(|d| d.crash(3));
    let (before, mut all) = (source.submitted(), Shard::with_layout(ShardOptions { budget_bytes: usize::MAX }, LAYOUT));
    all.restore_tables(&mut source, 5, 5, |_| true).unwrap();
    assert_eq!(source.submitted() - before - 1, reads);
    // Damage on a page that isn't read is none; on one that is it is an error.
    let Done::Files(files) = source.execute(DeviceOp::List).unwrap() else { panic!("files") };
    let (mut errors, mut same) = (0, 0);
    for (file, len) in files.iter().filter(|(file, _)| file.as_str().starts_with("pages-0")) {
        for offset in (0..*len as usize).step_by(512) {
            let mut damaged = device.with(|d| d.crash(3));
            assert!(damaged.corrupt(file, offset, 0x40));
            let mut target = Shard::with_layout(ShardOptions { budget_bytes: usize::MAX }, LAYOUT);
            match target.restore_tables(&mut damaged, 5, 5, |id| id.0 / 2 == 3) {
                Err(e) => errors += u32::from(matches!(e, CheckpointError::Damaged { .. })),
                Ok((_, records)) => {
                    same += 1;
                    assert_eq!(records, models[3].len() as u64);
                }
            }
        }
    }
    assert!(errors > 0 && same > 3 * errors, "{errors} errors, {same} without effect");
}
