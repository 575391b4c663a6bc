//! Checkpoints of what has changed: captured record by record while the shard goes on, written beside it, read back as layers; under crashes,
//! errors and damage.

use std::collections::BTreeMap;
use std::ops::Bound;

use tiderace_storage::{
    CaptureKind, CapturedBlock, CheckpointError, Checkpoints, Device, DeviceOp, Done, Fault, Shard, ShardOptions, SimDevice,
    TableId, TableLayout, vnode_of,
};

use super::{Random, Tally, setting};

const VNODES: u32 = 8;
const LAYOUT: TableLayout =
    TableLayout { page_bits: 9, index_bits: 1, segment_bits: 3, tag_bits: 2, block_bits: 7, chunk_blocks: 4 };
const POINT: TableId = TableId(0);
const DROPPED: TableId = TableId(2);

/// Table (point ones are even), key, value.
type Model = BTreeMap<(u64, Vec<u8>), Vec<u8>>;

fn hash(key: &[u8]) -> u64 {
    let sum = key.iter().fold(7_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01B3));
    Random(sum).next()
}

fn shard() -> Shard {
    Shard::with_layout(ShardOptions { budget_bytes: usize::MAX }, LAYOUT)
}

/// All ways in which records come, change, move and go. `keys`: few of them are hot.
fn change(shard: &mut Shard, model: &mut Model, random: &mut Random, count: u64) {
    for _ in 0..count {
        let table = [0, 0, 0, 0, 2, 1][random.below(6) as usize];
        let id = TableId(table);
        let range = if random.below(3) > 0 { 12 } else { 400 };
        let key = (random.below(range) as u32).to_be_bytes()[2..].to_vec();
        let value: Vec<u8> = (0..random.below(40)).map(|_| random.next() as u8).collect();
        let removes = random.below(4) == 0;
        match (table, removes) {
            (2, _) if random.below(40) == 0 => {
                if random.below(2) == 0 {
                    shard.drop_table(id);
                } else {
                    shard.point(id, 8).clear();
                }
                model.retain(|(t, _), _| *t != table);
                continue;
            }
            (1, true) => drop(shard.ordered(id).remove(&key)),
            (1, false) => shard.ordered(id).put(&key, &value),
            (_, true) => drop(shard.point(id, 8).remove(hash(&key), &key)),
            (_, false) if random.below(3) == 0 => {
                // In place, as operators do: what is there keeps its length.
                let batch = tiderace_storage::KeyBatch { bytes: &key, offsets: &[0, key.len() as u32], hashes: &[hash(&key)] };
                let (points, mut entries) = (shard.point(id, 8), Vec::new());
                points.entries(&batch, &mut entries);
                let place = points.value_mut(entries[0].record);
                place.iter_mut().zip(value.iter().chain(std::iter::repeat(&7))).for_each(|(to, from)| *to = *from);
                let now = place.to_vec();
                model.insert((table, key), now);
                continue;
            }
            (_, false) => drop(shard.point(id, 8).put(hash(&key), &key, &value)),
        }
        if removes {
            model.remove(&(table, key));
        } else {
            model.insert((table, key), value);
        }
    }
}

fn content(shard: &mut Shard) -> Model {
    let mut model = Model::new();
    for table in [POINT, DROPPED] {
        let mut records = Vec::new();
        let found = shard.point(table, 8);
        assert_eq!(found.scan(0, usize::MAX, &mut records), None);
        model.extend(records.iter().map(|r| ((table.0, found.key(*r).to_vec()), found.value(*r).to_vec())));
        assert_eq!(found.len(), records.len());
    }
    let found = shard.ordered(TableId(1));
    model.extend(found.range(Bound::Unbounded, Bound::Unbounded).map(|(k, v)| ((1, k.to_vec()), v.to_vec())));
    model
}

/// What was true when each version was cut; which ones were acknowledged.
#[derive(Clone, Debug, Default)]
struct History {
    cuts: BTreeMap<u64, Model>,
    committed: Vec<u64>,
    /// How many checkpoints held changes only, and how many were given up.
    changes: u64,
    abandoned: u64,
}

/// Changes a shard and takes checkpoints of it, with changes between the slices, until the device fails or `rounds` are over.
fn work(device: &mut SimDevice, seed: u64, rounds: u64, history: &mut History) -> Result<(), CheckpointError> {
    let mut checkpoints = Checkpoints::open(&mut *device, 2)?;
    let (mut random, mut shard, mut model) = (Random(seed), shard(), Model::new());
    if let Some(newest) = checkpoints.newest()? {
        checkpoints.restore(&newest, &mut shard, 0..VNODES, |_, _| true)?;
        model = history.cuts[&newest.version()].clone();
        assert!(content(&mut shard) == model, "version {} isn't what was cut", newest.version());
    }
    let first = checkpoints.versions().last().copied().unwrap_or(0) + 1;
    change(&mut shard, &mut model, &mut random, 300);
    for version in first..first + rounds {
        let changes = random.below(60);
        change(&mut shard, &mut model, &mut random, changes);
        let base = checkpoints.base(VNODES).filter(|_| checkpoints.parts_to_rewrite().len() < 4);
        let kind = shard.begin_capture(version, base)?;
        let records = model.len() as u64;
        if random.below(8) == 0 {
            // Given up, at any place: the next one must not rely on it.
            let mut more = random.below(2) == 0 && shard.capture_slice(300, &mut Vec::new());
            more |= shard.is_capturing();
            while more {
                more = shard.abandon_capture(400);
                change(&mut shard, &mut model, &mut random, 1);
            }
            history.abandoned += 1;
            continue;
        }
        history.cuts.insert(version, model.clone());
        history.changes += u64::from(kind == CaptureKind::Changes);
        let mut writer = checkpoints.begin(version, VNODES)?;
        writer.begin_all(kind);
        let mut blocks: Vec<CapturedBlock> = Vec::new();
        loop {
            let more = shard.capture_slice(1 + random.below(900) as usize, &mut blocks);
            blocks.drain(..).try_for_each(|block| writer.push(&block))?;
            if !more {
                break;
            }
            let changes = random.below(7);
            change(&mut shard, &mut model, &mut random, changes);
        }
        writer.commit(records, &version.to_le_bytes())?;
        history.committed.push(version);
        assert!(content(&mut shard) == model, "a capture changes nothing");
    }
    Ok(())
}

fn judge(device: SimDevice, history: &History) -> Result<(), String> {
    let mut checkpoints = Checkpoints::open(device, 2).map_err(|e| e.to_string())?;
    let newest = checkpoints.newest().map_err(|e| e.to_string())?.map(|c| c.version());
    let acknowledged = history.committed.last();
    if newest < acknowledged.copied() {
        return Err(format!("{newest:?} is the newest, {acknowledged:?} was acknowledged"));
    }
    let versions = checkpoints.versions().to_vec();
    if versions.len() < history.committed.len().min(2) {
        return Err(format!("only {versions:?} are kept of {:?}", history.committed));
    }
    for version in versions {
        let checkpoint = checkpoints.load(version).map_err(|e| e.to_string())?;
        let cut = history.cuts.get(&version).ok_or(format!("version {version} was never cut"))?;
        let mut all = shard();
        checkpoints.restore(&checkpoint, &mut all, 0..VNODES, |_, _| true).map_err(|e| format!("{version}: {e}"))?;
        let held = content(&mut all);
        if held != *cut || checkpoint.note() != version.to_le_bytes() {
            let differs: Vec<_> = cut.iter().filter(|(k, v)| held.get(*k) != Some(*v)).map(|(k, _)| k).take(3).collect();
            let extra: Vec<_> = held.keys().filter(|k| !cut.contains_key(*k)).take(3).collect();
            return Err(format!("version {version} differs at {differs:?}, has besides {extra:?}"));
        }
        let (one, mut some) = (version as u32 % VNODES, shard());
        checkpoints.restore(&checkpoint, &mut some, one..one + 1, |_, _| false).map_err(|e| e.to_string())?;
        let mut wanted = cut.clone();
        wanted.retain(|(table, key), _| table.is_multiple_of(2) && vnode_of(hash(key), VNODES) == one);
        if content(&mut some) != wanted {
            return Err(format!("vnode {one} of version {version} holds something else than was cut"));
        }
    }
    Ok(())
}

fn whole(seed: u64, rounds: u64) -> (SimDevice, History) {
    let (mut device, mut history) = (SimDevice::new(seed), History::default());
    work(&mut device, seed, rounds, &mut history).unwrap();
    judge(device.crash(0), &history).unwrap_or_else(|e| panic!("workload {seed}: {e}"));
    (device, history)
}

// R5, R7: what is changed while it is captured is in the checkpoint as it was; layers come back as one state.
#[test]
fn r5_r7_changes_that_are_captured_beside_the_work_come_back_as_they_were_cut() {
    let base = setting("TIDERACE_CRASH_SEED", 1);
    let (mut changes, mut abandoned, mut taken) = (0, 0, 0);
    for seed in base..base + setting("TIDERACE_CRASH_ROUNDS", 150).min(20_000) {
        let (_, history) = whole(seed, 9);
        changes += history.changes;
        abandoned += history.abandoned;
        taken += history.committed.len() as u64;
    }
    // A few workloads may happen to give up none.
    assert!(
        taken < 500 || changes > taken / 3 && abandoned > taken / 30,
        "{changes} of {taken} held changes only, {abandoned} were given up"
    );
}

#[test]
fn checkpoints_of_changes_survive_a_crash_at_every_operation() {
    let tally = Tally::default();
    let base = setting("TIDERACE_CRASH_SEED", 1);
    for seed in base..base + setting("TIDERACE_CRASH_ROUNDS", 16).min(2000) {
        let rounds = 7;
        for at in 0..whole(seed, rounds).0.submitted() {
            let (mut device, mut history) = (SimDevice::new(seed), History::default());
            device.inject(at, Fault::PowerOff);
            let _ = work(&mut device, seed, rounds, &mut history);
            for crash in 0..6 {
                let place = || format!("workload {seed}, operation {at}, crash {crash}");
                let mut after = device.crash(crash * 17 + at);
                tally.check(judge(after.crash(1), &history).map_err(|e| format!("{}: {e}", place())));
                if crash > 0 {
                    continue;
                }
                // Go on from what is there, crash again.
                let mut second = history.clone();
                let mut random = Random(seed * 100 + at);
                let opened = Checkpoints::open(after.crash(1), 2).ok().and_then(|c| c.versions().last().copied());
                second.committed = opened.into_iter().collect();
                after.inject(after.submitted() + 2 + random.below(40), Fault::PowerOff);
                let _ = work(&mut after, seed + 7, 3, &mut second);
                tally.check(judge(after.crash(crash), &second).map_err(|e| format!("{}, again: {e}", place())));
            }
        }
    }
    tally.finish("captures", if base == 1 { 5000 } else { 0 });
}

#[test]
fn every_damaged_byte_of_any_layer_is_an_error_and_never_other_content() {
    // The first workload that ends with several layers.
    let (device, history, files) = (3..40)
        .find_map(|seed| {
            let (mut device, history) = whole(seed, 9);
            let Done::Files(files) = device.execute(DeviceOp::List).unwrap() else { panic!("files") };
            (files.len() > 4).then_some((device, history, files))
        })
        .expect("one of them does");
    let newest = *history.committed.last().unwrap();
    let (mut errors, mut same) = (0, 0);
    for (file, len) in &files {
        for offset in (0..*len as usize).step_by(5) {
            let mut damaged = device.crash(1);
            assert!(damaged.corrupt(file, offset, 0x04));
            let mut target = shard();
            let result = Checkpoints::open(damaged, 2).and_then(|mut checkpoints| {
                let checkpoint = checkpoints.newest()?.unwrap();
                checkpoints.restore(&checkpoint, &mut target, 0..VNODES, |_, _| true)
            });
            match result {
                Err(_) => errors += 1,
                Ok(_) => {
                    // Of the older manifest, or of blocks that the newest doesn't name.
                    same += 1;
                    assert!(content(&mut target) == history.cuts[&newest], "{file} at {offset}");
                }
            }
        }
    }
    assert!(errors > 100, "{errors} errors, {same} without effect");
}

#[test]
fn old_layers_are_rewritten_and_their_files_removed() {
    let (mut device, mut history) = (SimDevice::new(4), History::default());
    work(&mut device, 4, 60, &mut history).unwrap();
    let Done::Files(files) = device.execute(DeviceOp::List).unwrap() else { panic!("files") };
    let bytes: u64 = files.iter().map(|(_, len)| len).sum();
    let live =
        history.cuts[history.committed.last().unwrap()].iter().map(|((_, k), v)| k.len() + v.len() + 16).sum::<usize>() as u64;
    assert!(files.len() < 24 && bytes < 8 * live + (64 << 10), "{} files of {bytes} B for {live} B", files.len());
    assert!(history.changes > 10, "{} of {}", history.changes, history.committed.len());
}
