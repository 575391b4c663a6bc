//! Checkpoints under crashes, errors and damage.

use std::collections::BTreeMap;
use std::ops::Bound;

use tiderace_storage::{
    CheckpointError, Checkpoints, Device, DeviceOp, Done, Fault, FileName, Image, Shard, ShardOptions, SimDevice, TableId,
    TableLayout, vnode_of,
};

use super::{Random, Tally, setting};

const VNODES: u32 = 8;
const LAYOUT: TableLayout =
    TableLayout { page_bits: 9, index_bits: 1, segment_bits: 3, tag_bits: 2, block_bits: 7, chunk_blocks: 4 };

/// Table (point ones are even), key, value.
type Model = BTreeMap<(u64, Vec<u8>), Vec<u8>>;

fn hash(key: &[u8]) -> u64 {
    let sum = key.iter().fold(7_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01B3));
    Random(sum).next()
}

fn shard() -> Shard {
    Shard::with_layout(ShardOptions { budget_bytes: usize::MAX }, LAYOUT)
}

fn change(shard: &mut Shard, model: &mut Model, random: &mut Random) {
    for _ in 0..random.below(40) {
        let table = random.below(4);
        let key: Vec<u8> = (0..random.below(3)).map(|_| random.below(6) as u8).collect();
        let value: Vec<u8> = (0..random.below(30)).map(|_| random.next() as u8).collect();
        let removes = random.below(4) == 0;
        match (table.is_multiple_of(2), removes) {
            (true, true) => drop(shard.point(TableId(table), 8).remove(hash(&key), &key)),
            (true, false) => drop(shard.point(TableId(table), 8).put(hash(&key), &key, &value)),
            (false, true) => drop(shard.ordered(TableId(table)).remove(&key)),
            (false, false) => shard.ordered(TableId(table)).put(&key, &value),
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
    for table in 0..4 {
        if table % 2 == 0 {
            let mut records = Vec::new();
            let found = shard.point(TableId(table), 8);
            assert_eq!(found.scan(0, usize::MAX, &mut records), None);
            model.extend(records.iter().map(|r| ((table, found.key(*r).to_vec()), found.value(*r).to_vec())));
        } else {
            let found = shard.ordered(TableId(table));
            model.extend(found.range(Bound::Unbounded, Bound::Unbounded).map(|(k, v)| ((table, k.to_vec()), v.to_vec())));
        }
    }
    model
}

/// What was true when each version was cut; which ones were acknowledged.
#[derive(Debug, Default)]
struct History {
    cuts: BTreeMap<u64, Model>,
    committed: Vec<u64>,
}

/// Changes a shard and takes checkpoints of it until the device fails or `rounds` are over.
fn work(device: &mut SimDevice, seed: u64, rounds: u64, history: &mut History) -> Result<(), CheckpointError> {
    let mut checkpoints = Checkpoints::open(&mut *device, 2)?;
    let (mut random, mut shard, mut model) = (Random(seed), shard(), Model::new());
    let first = checkpoints.versions().last().copied().unwrap_or(0) + 1;
    for version in first..first + rounds {
        change(&mut shard, &mut model, &mut random);
        history.cuts.insert(version, model.clone());
        let image = Image::of(&shard, VNODES);
        // The shard goes on; what is written is what was cut.
        change(&mut shard, &mut model, &mut random);
        checkpoints.commit(version, &image, &version.to_le_bytes())?;
        history.committed.push(version);
    }
    Ok(())
}

fn judge(device: SimDevice, history: &History) -> Result<(), String> {
    let mut checkpoints = Checkpoints::open(device, 2).map_err(|e| e.to_string())?;
    let newest = checkpoints.newest().map_err(|e| e.to_string())?;
    let acknowledged = history.committed.last();
    let Some(newest) = newest else {
        return if acknowledged.is_none() { Ok(()) } else { Err(format!("nothing is there, {acknowledged:?} was acknowledged")) };
    };
    if acknowledged.is_some_and(|version| newest.version() < *version) {
        return Err(format!("{} is the newest, {acknowledged:?} was acknowledged", newest.version()));
    }
    let versions = checkpoints.versions().to_vec();
    if versions.len() < history.committed.len().min(2) {
        return Err(format!("only {versions:?} are kept of {:?}", history.committed));
    }
    for version in versions {
        let checkpoint = checkpoints.load(version).map_err(|e| e.to_string())?;
        let cut = history.cuts.get(&version).ok_or(format!("version {version} was never cut"))?;
        let mut all = shard();
        checkpoints.restore(&checkpoint, &mut all, 0..VNODES, |_, _| true).map_err(|e| e.to_string())?;
        if content(&mut all) != *cut || checkpoint.note() != version.to_le_bytes() || checkpoint.records() != cut.len() as u64 {
            return Err(format!("version {version} holds something else than was cut"));
        }
        let vnode = (version % u64::from(VNODES)) as u32;
        let mut one = shard();
        let odd = |key: &[u8]| key.len() % 2 == 1;
        checkpoints.restore(&checkpoint, &mut one, vnode..vnode + 1, |_, key| odd(key)).map_err(|e| e.to_string())?;
        let expected: Model = cut
            .iter()
            .filter(|((table, key), _)| if table % 2 == 0 { vnode_of(hash(key), VNODES) == vnode } else { odd(key) })
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        if content(&mut one) != expected {
            return Err(format!("vnode {vnode} of version {version} holds something else than was cut"));
        }
    }
    Ok(())
}

#[test]
fn committed_checkpoints_survive_a_crash_at_every_operation() {
    let tally = Tally::default();
    let base = setting("TIDERACE_CRASH_SEED", 1);
    for seed in base..base + setting("TIDERACE_CRASH_ROUNDS", 20).min(3000) {
        let mut whole = SimDevice::new(seed);
        work(&mut whole, seed, 4, &mut History::default()).unwrap();
        for at in 0..whole.submitted() {
            let (mut device, mut history) = (SimDevice::new(seed), History::default());
            device.inject(at, Fault::PowerOff);
            let _ = work(&mut device, seed, 4, &mut history);
            for crash in 0..8 {
                let place = || format!("workload {seed}, operation {at}, crash {crash}");
                let mut after = device.crash(crash * 31 + at);
                tally.check(judge(after.crash(1), &history).map_err(|e| format!("{}: {e}", place())));
                // Start again, crash again.
                let mut second = History::default();
                if let Ok(Some(newest)) = Checkpoints::open(&mut after, 2).and_then(|mut c| c.newest()) {
                    second.cuts = history.cuts.clone();
                    second.committed = vec![newest.version()];
                }
                let mut random = Random(seed * 100 + at * 8 + crash);
                let power_off = after.submitted() + random.below(50);
                after.inject(power_off, Fault::PowerOff);
                let _ = work(&mut after, seed + 7, 3, &mut second);
                tally.check(judge(after.crash(crash), &second).map_err(|e| format!("{}, again: {e}", place())));
            }
        }
    }
    tally.finish("checkpoint", if base == 1 { 10_000 } else { 0 });
}

#[test]
fn an_error_stops_checkpoints_and_leaves_those_before() {
    let tally = Tally::default();
    for fault in [Fault::Io, Fault::NoSpace] {
        for seed in 1..10 {
            let mut whole = SimDevice::new(seed);
            work(&mut whole, seed, 4, &mut History::default()).unwrap();
            for at in 0..whole.submitted() {
                let (mut device, mut history) = (SimDevice::new(seed), History::default());
                device.inject(at, fault);
                let result = work(&mut device, seed, 4, &mut history);
                assert!(result.is_err(), "operation {at} of workload {seed} failed and nobody said so");
                for crash in 0..4 {
                    tally.check(
                        judge(device.crash(crash), &history)
                            .map_err(|e| format!("workload {seed}, {fault:?} at {at}, crash {crash}: {e}")),
                    );
                }
            }
        }
    }
    tally.finish("checkpoint errors", 1000);
}

#[test]
fn every_damaged_byte_is_an_error_and_never_other_content() {
    let (mut device, mut history) = (SimDevice::new(5), History::default());
    work(&mut device, 5, 3, &mut history).unwrap();
    let Done::Files(files) = device.execute(DeviceOp::List).unwrap() else { panic!("files") };
    assert_eq!(files.len(), 4, "{files:?}");
    let newest = *history.committed.last().unwrap();
    for (file, len) in &files {
        let is_newest = file.as_str().contains(&format!("{newest:020}"));
        for offset in 0..*len as usize {
            let mut damaged = device.crash(1);
            assert!(damaged.corrupt(file, offset, 0x10));
            let mut checkpoints = Checkpoints::open(damaged, 2).unwrap();
            let mut target = shard();
            let result = checkpoints.newest().and_then(|c| checkpoints.restore(&c.unwrap(), &mut target, 0..VNODES, |_, _| true));
            match result {
                Err(CheckpointError::Damaged { .. }) => assert!(is_newest, "{file} at {offset}"),
                Err(e) => panic!("{e}"),
                Ok(_) => assert!(!is_newest && content(&mut target) == history.cuts[&newest], "{file} at {offset}"),
            }
            if is_newest {
                // The one before is there for who asks for it.
                let before = checkpoints.load(newest - 1).unwrap();
                let mut target = shard();
                checkpoints.restore(&before, &mut target, 0..VNODES, |_, _| true).unwrap();
                assert!(content(&mut target) == history.cuts[&(newest - 1)]);
            }
        }
        let mut damaged = device.crash(1);
        assert!(damaged.lose(file));
        let mut checkpoints = Checkpoints::open(damaged, 2).unwrap();
        let result = checkpoints.newest().and_then(|c| checkpoints.restore(&c.unwrap(), &mut shard(), 0..VNODES, |_, _| true));
        // A manifest that is gone was never committed as far as anybody can tell.
        assert_eq!(result.is_err(), file.as_str() == format!("shard-{newest:020}.data"), "{file}: {result:?}");
    }
}

#[test]
fn restoring_one_vnode_reads_its_blocks_alone() {
    let (mut device, mut history) = (SimDevice::new(8), History::default());
    work(&mut device, 8, 1, &mut history).unwrap();
    let mut checkpoints = Checkpoints::open(device, 2).unwrap();
    let checkpoint = checkpoints.newest().unwrap().unwrap();
    let before = checkpoints.device_mut().submitted();
    checkpoints.restore(&checkpoint, &mut shard(), 3..4, |_, _| false).unwrap();
    // One block of the vnode, one of the ordered tables.
    assert_eq!(checkpoints.device_mut().submitted() - before, 2);
}

#[test]
fn versions_only_grow_and_files_of_others_stay() {
    let mut device = SimDevice::new(1);
    let other = FileName::new("shard-notes").unwrap();
    device.execute(DeviceOp::Create { file: other.clone() }).unwrap();
    let mut checkpoints = Checkpoints::open(device, 2).unwrap();
    assert_eq!(checkpoints.newest(), Ok(None));
    let image = Image::of(&shard(), VNODES);
    checkpoints.commit(5, &image, b"").unwrap();
    assert_eq!(checkpoints.commit(5, &image, b""), Err(CheckpointError::NotNewer { version: 5, newest: 5 }));
    assert_eq!(checkpoints.load(4), Err(CheckpointError::NoSuchVersion { version: 4 }));
    assert!(checkpoints.into_device().content(&other).is_some());
}
