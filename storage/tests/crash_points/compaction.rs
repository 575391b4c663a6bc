//! Compaction of pages on the device, growth of the index, eviction and removal of segments, under a crash at every operation.
//!
//! Few keys change all the time, and between them lie keys that were written once: every page ends up with a little that lives on it, so
//! nothing is ever freed but by compaction, and what compaction loses is in no later page. That is what the workloads of `shard` lack, whose
//! pages die by themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use tiderace_storage::{
    Answer, CheckpointError, Fault, OpenAt, Operation, Shard, ShardOptions, SimDevice, StoreCounts, StoreOptions, Submitted,
    TableId, TableLayout,
};

use super::shard::Shared;
use super::{Random, Tally, setting};

const TABLE: TableId = TableId(0);
const WIDTH: usize = 16;
/// Pages of a few dozens of records, an index of two buckets that doubles again and again.
const LAYOUT: TableLayout =
    TableLayout { page_bits: 10, index_bits: 1, segment_bits: 3, tag_bits: 6, block_bits: 7, chunk_blocks: 4 };
const BUDGET: usize = 37 << 10;
const HOT_KEYS: u64 = 120;
const ROUNDS: u64 = 6;
/// Changes before a cut, and how many in sixty make a key that stays.
const CHANGES: u64 = 140;
const COLD: u64 = 3;

type Model = BTreeMap<u64, Vec<u8>>;

fn hash(key: u64) -> u64 {
    Random(key).next()
}

fn open(device: &Shared, at: OpenAt) -> Result<(Shard, Option<u64>), CheckpointError> {
    let store = StoreOptions { shard: 2, segment_bytes: 6 << 10, batch_bytes: 2 << 10 };
    device.with(|d| (0..200).for_each(|_| tiderace_storage::Device::poll(d, &mut Vec::new())));
    let options = ShardOptions { budget_bytes: BUDGET };
    let (shard, recovered) = Shard::open(options, LAYOUT, Box::new(device.clone()), store, 2, at)?;
    Ok((shard, recovered.map(|r| r.version)))
}

/// One operation, to its end, within the budget.
fn perform(shard: &mut Shard, key: u64, operation: impl Fn() -> Operation) -> Result<Answer, CheckpointError> {
    let mut turns = 0;
    let submitted = loop {
        match shard.submit(TABLE, WIDTH, hash(key), &key.to_be_bytes(), operation()) {
            Ok(submitted) => break submitted,
            Err(busy) => {
                turns += 1;
                assert!(turns < 10_000, "no room for one record: {busy}");
                shard.maintain()?;
                shard.complete_pending(Duration::from_micros(100));
            }
        }
    };
    let Submitted::Pending(ticket) = submitted else {
        let Submitted::Done(answer) = submitted else { unreachable!("done or pending") };
        return Ok(answer);
    };
    let mut out = Vec::new();
    for _ in 0..10_000 {
        shard.complete_pending(Duration::from_micros(100));
        shard.maintain()?;
        shard.take_completed(&mut out);
        if let Some(at) = out.iter().position(|(t, _)| *t == ticket) {
            return Ok(out.swap_remove(at).1?);
        }
    }
    panic!("an operation waits for ever: {} B used", shard.used_bytes());
}

/// What lives as long as a shard and its model.
struct Run<'a> {
    shard: Shard,
    model: &'a mut Model,
    random: Random,
    next_cold: u64,
}

impl Run<'_> {
    fn change(&mut self, count: u64) -> Result<(), CheckpointError> {
        for _ in 0..count {
            let fresh: Vec<u8> = (0..8 + self.random.below(64)).map(|_| self.random.next() as u8).collect();
            let some_cold = 1000 + self.random.below(self.next_cold.max(1001) - 1000);
            let (key, removes, changes) = match self.random.below(60) {
                n if n < COLD => {
                    self.next_cold += 1;
                    (self.next_cold - 1, false, false)
                }
                20 => (some_cold, true, false),
                21 => (some_cold, false, true),
                _ => (self.random.below(HOT_KEYS), false, false),
            };
            let answer = if removes {
                perform(&mut self.shard, key, || Operation::Delete)?
            } else if changes {
                perform(&mut self.shard, key, || Operation::Rmw(Box::new(|old| [old.unwrap_or(b"none"), b"+"].concat())))?
            } else {
                perform(&mut self.shard, key, || Operation::Upsert(fresh.clone()))?
            };
            let before = match (removes, changes) {
                (true, _) => self.model.remove(&key),
                (_, true) => {
                    let old = self.model.get(&key).cloned();
                    self.model.insert(key, [old.as_deref().unwrap_or(b"none"), b"+"].concat())
                }
                _ => self.model.insert(key, fresh),
            };
            // After the device has failed answers mean nothing.
            if let Some(error) = self.shard.failure() {
                return Err(error.into());
            }
            // What a change says of before is the same as what the model has; a record that compaction lost would show here first.
            assert_eq!(answer, Answer::Done { existed: before.is_some() }, "key {key}");
            if self.random.below(3) == 0 {
                self.shard.maintain()?;
            }
            assert!(self.shard.used_bytes() <= BUDGET, "{} B", self.shard.used_bytes());
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Default)]
struct History {
    /// What was true when each version was cut, and the next cold key then.
    cuts: BTreeMap<u64, (Model, u64)>,
    committed: Vec<u64>,
    counts: StoreCounts,
}

fn work(device: &Shared, seed: u64, rounds: u64, history: &mut History) -> Result<(), CheckpointError> {
    let (shard, recovered) = open(device, OpenAt::Newest)?;
    let (mut model, next_cold) = recovered.map_or((Model::new(), 1000), |version| history.cuts[&version].clone());
    let first = recovered.unwrap_or(0).max(shard.versions().last().copied().unwrap_or(0)) + 1;
    let mut run = Run { shard, model: &mut model, random: Random(seed), next_cold };
    for version in first..first + rounds {
        run.change(CHANGES)?;
        // The device and compaction get some turns for themselves.
        for _ in 0..20 + run.random.below(60) {
            run.shard.maintain()?;
            run.shard.complete_pending(Duration::ZERO);
        }
        run.shard.cut(version, b"")?;
        history.cuts.insert(version, (run.model.clone(), run.next_cold));
        let mut turns = 0;
        while run.shard.is_checkpointing() {
            if run.random.below(3) == 0 {
                run.change(2)?;
            }
            if let Some(version) = run.shard.advance_checkpoint()? {
                history.committed.push(version);
            }
            history.counts = run.shard.store_counts();
            turns += 1;
            assert!(turns < 10_000, "a checkpoint never ends");
        }
    }
    Ok(())
}

fn content(shard: &mut Shard) -> Result<Model, String> {
    let (mut model, mut cursor) = (Model::new(), Some(0));
    while let Some(at) = cursor {
        let mut records = Vec::new();
        let table = shard.point(TABLE, WIDTH);
        cursor = table.scan(at, 64, &mut records);
        for record in records {
            let key = u64::from_be_bytes(table.key(record).try_into().map_err(|_| "a key of another length".to_owned())?);
            if model.insert(key, table.value(record).to_vec()).is_some() {
                return Err(format!("{key} stands there twice"));
            }
        }
    }
    let found = shard.point(TABLE, WIDTH).len();
    if found != model.len() { Err(format!("{} records, the index has {found}", model.len())) } else { Ok(model) }
}

fn judge(device: SimDevice, history: &History) -> Result<(), String> {
    let device = Shared::new(device);
    let (shard, newest) = open(&device, OpenAt::Newest).map_err(|e| e.to_string())?;
    let acknowledged = history.committed.last();
    if newest < acknowledged.copied() {
        return Err(format!("{newest:?} is the newest, {acknowledged:?} was acknowledged"));
    }
    let versions = shard.versions();
    if versions.len() < history.committed.len().min(2) {
        return Err(format!("only {versions:?} are kept of {:?}", history.committed));
    }
    drop(shard);
    for version in versions {
        let (mut shard, _) = open(&device, OpenAt::Version(version)).map_err(|e| format!("{version}: {e}"))?;
        let (cut, _) = history.cuts.get(&version).ok_or(format!("version {version} was never cut"))?;
        let held = content(&mut shard).map_err(|e| format!("version {version}: {e}"))?;
        if held != *cut {
            let differs: Vec<_> = cut.iter().filter(|(k, v)| held.get(*k) != Some(*v)).map(|(k, _)| k).take(3).collect();
            let extra: Vec<_> = held.keys().filter(|k| !cut.contains_key(*k)).take(3).collect();
            return Err(format!("version {version}: differs at {differs:?}, has besides {extra:?}"));
        }
        // Every key by its hash, also those that are on the device: what growth of the index sends to the wrong half isn't found.
        for (key, value) in cut.iter().step_by(7) {
            if shard.point(TABLE, WIDTH).get(hash(*key), &key.to_be_bytes()) != Some(value.as_slice()) {
                return Err(format!("version {version}: {key} isn't found by its hash"));
            }
            shard.maintain().map_err(|e| e.to_string())?;
        }
        if let Some(error) = shard.failure() {
            return Err(error.to_string());
        }
    }
    Ok(())
}

/// Operations of a whole workload. It must do what this file is about, or its crash points prove nothing.
fn whole(seed: u64) -> u64 {
    let (device, mut history) = (Shared::new(SimDevice::new(seed)), History::default());
    work(&device, seed, ROUNDS, &mut history).unwrap();
    judge(device.with(|d| d.crash(0)), &history).unwrap();
    let counts = history.counts;
    let records = history.cuts[&ROUNDS].0.len();
    assert!(counts.pages_compacted > 10 && counts.records_compacted > 40, "compaction did little: {counts:?}");
    assert!(counts.pages_compacted_from_device > 5, "compaction never read a page: {counts:?}");
    assert!(counts.segments_removed > 0, "no space came back: {counts:?}");
    assert!(counts.pages_read > 40, "nothing was larger than memory: {counts:?}");
    assert!(records > 80, "the index has grown from 2 buckets for {records} records only");
    device.with(|d| d.submitted())
}

#[test]
fn compaction_growth_and_eviction_survive_a_crash_at_every_operation() {
    let tally = Tally::default();
    let base = setting("TIDERACE_CRASH_SEED", 1);
    for seed in base..base + setting("TIDERACE_CRASH_ROUNDS", 12).min(500) {
        let operations = whole(seed);
        for at in 0..operations {
            let (device, mut history) = (Shared::new(SimDevice::new(seed)), History::default());
            device.with(|d| d.inject(at, Fault::PowerOff));
            let _ = work(&device, seed, ROUNDS, &mut history);
            for crash in 0..3 {
                let place = || format!("workload {seed}, operation {at}, crash {crash}");
                let mut after = device.with(|d| d.crash(crash * 31 + at));
                tally.check(judge(after.crash(1), &history).map_err(|e| format!("{}: {e}", place())));
                if crash > 0 || at % 3 > 0 {
                    continue;
                }
                // Start again, compact what recovery has counted as dead, crash again.
                let mut second = history.clone();
                let mut random = Random(seed * 100 + at);
                after.inject(after.submitted() + 20 + random.below(300), Fault::PowerOff);
                let again = Shared::new(after);
                let opened = open(&Shared::new(again.with(|d| d.crash(1))), OpenAt::Newest);
                second.committed = opened.ok().and_then(|(_, version)| version).into_iter().collect();
                let _ = work(&again, seed + 7, 2, &mut second);
                tally.check(judge(again.with(|d| d.crash(crash)), &second).map_err(|e| format!("{}, again: {e}", place())));
            }
        }
    }
    tally.finish("compaction", if base == 1 { 5000 } else { 0 });
}
