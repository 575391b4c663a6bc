//! An ordered table larger than memory: its blocks leave memory, come back for points and ranges, are checkpointed and moved out of segments;
//! against a sorted map, under a crash at every operation, errors and damage.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use tiderace_storage::{
    CheckpointError, Device, DeviceOp, Done, Fault, NoRoom, OpenAt, Residency, Shard, ShardOptions, SimDevice, StoreCounts,
    StoreOptions, TableId, TableLayout,
};

use super::shard::Shared;
use super::{Random, Tally, setting};

const ORDERED: TableId = TableId(1);
const OTHER: TableId = TableId(3);
const POINT: TableId = TableId(2);
const LAYOUT: TableLayout =
    TableLayout { page_bits: 9, index_bits: 1, segment_bits: 3, tag_bits: 6, block_bits: 11, chunk_blocks: 5 };
const BUDGET: usize = 72 << 10;
const KEYS: u64 = 2400;
const ROUNDS: u64 = 4;
/// Before each cut.
const CHANGES: u64 = 300;

/// Table, key, value.
type Model = BTreeMap<(u64, Vec<u8>), Vec<u8>>;

fn open_with(
    device: &Shared,
    layout: TableLayout,
    budget_bytes: usize,
    at: OpenAt,
) -> Result<(Shard, Option<u64>), CheckpointError> {
    let store = StoreOptions { shard: 4, segment_bytes: 12 << 10, batch_bytes: 3 << 10 };
    device.with(|d| (0..200).for_each(|_| Device::poll(d, &mut Vec::new())));
    let (shard, recovered) = Shard::open(ShardOptions { budget_bytes }, layout, Box::new(device.clone()), store, 2, at)?;
    Ok((shard, recovered.map(|r| r.version)))
}

fn open(device: &Shared, at: OpenAt) -> Result<(Shard, Option<u64>), CheckpointError> {
    open_with(device, LAYOUT, BUDGET, at)
}

/// Some keys are their numbers, of some another's beginning, some are longer than what a fence has of them.
fn key_of(n: u64) -> Vec<u8> {
    match n % 5 {
        0 => (n as u16).to_be_bytes().to_vec(),
        1 => [&(n as u16).to_be_bytes()[..], b"\0"].concat(),
        _ => [b"a common prefix ".as_slice(), &n.to_be_bytes()].concat(),
    }
}

struct Run<'a> {
    shard: Shard,
    model: &'a mut Model,
    random: Random,
    budget_bytes: usize,
}

impl Run<'_> {
    /// Tries until there is room; a bounded number of turns.
    fn patiently<T>(&mut self, mut call: impl FnMut(&mut Shard) -> Result<T, NoRoom>) -> Result<T, CheckpointError> {
        for _ in 0..1000 {
            if let Ok(done) = call(&mut self.shard) {
                return Ok(done);
            }
            self.shard.maintain()?;
            self.shard.complete_pending(Duration::from_micros(100));
        }
        let (used, busy) = (self.shard.used_bytes(), call(&mut self.shard).err());
        panic!("no room in 1000 turns: {used} B of {}, {busy:?}, {:?}", self.budget_bytes, self.shard.store_counts());
    }

    fn fetch(&mut self, id: TableId, from: &[u8], to: &[u8]) -> Result<(), CheckpointError> {
        self.patiently(|shard| match shard.fetch_range(id, Bound::Included(from), Bound::Included(to))? {
            Residency::Resident => Ok(()),
            Residency::Pending(_) => Err(NoRoom::Busy { bytes_needed: 0 }),
        })
    }

    fn one(&mut self) -> Result<(), CheckpointError> {
        let id = if self.random.below(6) == 0 { OTHER } else { ORDERED };
        // Half of the changes are among few keys.
        let n = if self.random.below(2) == 0 { 1000 + self.random.below(60) } else { self.random.below(KEYS) };
        let (key, value) = (key_of(n), vec![n as u8; self.random.below(if n % 50 == 0 { 900 } else { 50 }) as usize]);
        let end = key_of(n + self.random.below(12));
        let (from, to) = if key <= end { (key.clone(), end) } else { (end, key.clone()) };
        let (kind, fetches) = (self.random.below(24), self.random.below(3) > 0);
        let room = self.shard.ordered(id).room_for(1, key.len() + value.len());
        self.patiently(|shard| shard.reserve(room))?;
        let is_range = (9..=12).contains(&kind) && from != to && fetches;
        let last = if is_range {
            self.model.range((id.0, from.clone())..=(id.0, to.clone())).map(|((_, k), _)| k.clone()).nth(30)
        } else {
            None
        };
        if fetches {
            let (first, last) =
                if is_range { (from.clone(), last.clone().unwrap_or(to.clone())) } else { (key.clone(), key.clone()) };
            self.fetch(id, &first, &last)?;
        }
        let waited = self.shard.store_counts().pages_waited_for;
        let table = self.shard.ordered(id);
        let place = (id.0, key.clone());
        let (held, right): (Vec<_>, Vec<_>) = match kind {
            0..=8 => {
                table.put(&key, &value);
                self.model.insert(place, value.clone());
                (table.get(&key).map(|v| (key.clone(), v.to_vec())).into_iter().collect(), vec![(key.clone(), value)])
            }
            9..=12 if is_range => {
                let held =
                    table.range(Bound::Included(&from), Bound::Included(&to)).take(30).map(|(k, v)| (k.to_vec(), v.to_vec()));
                let right = self.model.range((id.0, from)..=(id.0, to)).take(30).map(|((_, k), v)| (k.clone(), v.clone()));
                (held.collect(), right.collect())
            }
            9..=12 => {
                // From behind, without a fetch.
                let held =
                    table.range(Bound::Unbounded, Bound::Excluded(&key)).rev().take(5).map(|(k, v)| (k.to_vec(), v.to_vec()));
                let right = self.model.range((id.0, Vec::new())..(id.0, key.clone())).rev().take(5);
                (held.collect(), right.map(|((_, k), v)| (k.clone(), v.clone())).collect())
            }
            13..=16 => {
                let gone = (vec![], vec![u8::from(table.remove(&key))]);
                (vec![gone], vec![(vec![], vec![u8::from(self.model.remove(&place).is_some())])])
            }
            17 if self.random.below(12) == 0 => {
                // Few are below, mostly.
                let end = key_of(self.random.below(40) * 5);
                let kept = self.model.split_off(&(id.0, end.clone()));
                let mut below = std::mem::replace(self.model, kept);
                let mut others = below.split_off(&(id.0, Vec::new()));
                std::mem::swap(&mut below, &mut others);
                // `others` are of tables with lower numbers.
                self.model.extend(others);
                (
                    vec![(vec![], (table.remove_below(&end) as u64).to_be_bytes().to_vec())],
                    vec![(vec![], (below.len() as u64).to_be_bytes().to_vec())],
                )
            }
            _ => {
                let held = table.get(&key).map(|v| (key.clone(), v.to_vec()));
                (held.into_iter().collect(), self.model.get(&place).map(|v| (key.clone(), v.clone())).into_iter().collect())
            }
        };
        // What can't be read seems absent; then the store has failed.
        if let Some(error) = self.shard.failure() {
            return Err(error.into());
        }
        assert_eq!(held, right, "{kind} at {key:?}");
        let counts = self.shard.store_counts();
        let (used, limit) = (self.shard.used_bytes(), self.budget_bytes);
        if counts.pages_waited_for == waited {
            assert!(used <= limit, "{used} B of {limit}, {kind}");
        } else {
            assert!(!fetches || (9..=12).contains(&kind) || kind == 17, "{kind} waited for what was fetched");
            assert!(used <= limit + (16 << 10), "{used} B of {limit} after calls that waited");
        }
        if self.random.below(40) == 0 {
            let key = self.random.below(200);
            self.shard.point(POINT, 8).put(Random(key).next(), &key.to_be_bytes(), &value_of(key));
            self.model.insert((POINT.0, key.to_be_bytes().to_vec()), value_of(key));
        }
        if self.random.below(3) == 0 {
            self.shard.maintain()?;
        }
        Ok(())
    }

    fn change(&mut self, count: u64) -> Result<(), CheckpointError> {
        for _ in 0..count {
            self.one()?;
        }
        Ok(())
    }
}

fn value_of(key: u64) -> Vec<u8> {
    vec![key as u8; 30]
}

#[derive(Clone, Debug, Default)]
struct History {
    cuts: BTreeMap<u64, Model>,
    committed: Vec<u64>,
    counts: StoreCounts,
}

fn work(device: &Shared, seed: u64, rounds: u64, changes: u64, history: &mut History) -> Result<(), CheckpointError> {
    let (shard, recovered) = open(device, OpenAt::Newest)?;
    let mut model = recovered.map_or_else(Model::new, |version| history.cuts[&version].clone());
    let first = recovered.unwrap_or(0).max(shard.versions().last().copied().unwrap_or(0)) + 1;
    let mut run = Run { shard, model: &mut model, random: Random(seed), budget_bytes: BUDGET };
    if recovered.is_none() {
        for n in 0..KEYS {
            let (key, value) = (key_of(n), vec![n as u8; 30]);
            let room = run.shard.ordered(ORDERED).room_for(1, key.len() + value.len());
            run.patiently(|shard| shard.reserve(room))?;
            run.fetch(ORDERED, &key, &key)?;
            run.shard.ordered(ORDERED).put(&key, &value);
            run.model.insert((ORDERED.0, key), value);
        }
    }
    for version in first..first + rounds {
        run.change(changes)?;
        for _ in 0..run.random.below(60) {
            run.shard.maintain()?;
            run.shard.complete_pending(Duration::ZERO);
        }
        run.shard.cut(version, b"")?;
        history.cuts.insert(version, run.model.clone());
        let mut turns = 0;
        while run.shard.is_checkpointing() {
            // The shard goes on while what was cut is written.
            if run.random.below(3) == 0 {
                run.change(3)?;
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

/// Everything, in windows, within the budget.
fn content(shard: &mut Shard) -> Result<Model, CheckpointError> {
    let mut model = Model::new();
    for id in [ORDERED, OTHER] {
        let mut last: Option<Vec<u8>> = None;
        loop {
            let from = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let window: Vec<_> =
                shard.ordered(id).range(from, Bound::Unbounded).take(40).map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
            let Some((key, _)) = window.last() else { break };
            last = Some(key.clone());
            model.extend(window.into_iter().map(|(k, v)| ((id.0, k), v)));
            shard.maintain()?;
        }
        assert_eq!(shard.ordered(id).len(), model.range((id.0, Vec::new())..(id.0 + 1, Vec::new())).count());
    }
    let mut records = Vec::new();
    let point = shard.point(POINT, 8);
    point.scan(0, usize::MAX, &mut records);
    model.extend(records.iter().map(|r| ((POINT.0, point.key(*r).to_vec()), point.value(*r).to_vec())));
    Ok(model)
}

fn judge(device: SimDevice, history: &History) -> Result<(), String> {
    let device = Shared::new(device);
    let (shard, newest) = open(&device, OpenAt::Newest).map_err(|e| e.to_string())?;
    let acknowledged = history.committed.last();
    if newest < acknowledged.copied() {
        return Err(format!("{newest:?} is the newest, {acknowledged:?} was acknowledged"));
    }
    let versions = shard.versions();
    drop(shard);
    for version in versions {
        let (mut shard, _) = open(&device, OpenAt::Version(version)).map_err(|e| format!("{version}: {e}"))?;
        let cut = history.cuts.get(&version).ok_or(format!("version {version} was never cut"))?;
        let held = content(&mut shard).map_err(|e| e.to_string())?;
        if let Some(error) = shard.failure() {
            return Err(error.to_string());
        }
        if held != *cut {
            let differs: Vec<_> = cut.iter().filter(|(k, v)| held.get(*k) != Some(*v)).map(|(k, _)| k).take(3).collect();
            let extra: Vec<_> = held.keys().filter(|k| !cut.contains_key(*k)).take(3).collect();
            return Err(format!("version {version}: differs at {differs:?}, has besides {extra:?}"));
        }
    }
    Ok(())
}

/// Operations of a whole workload, which must do what this file is about.
fn whole(seed: u64, changes: u64) -> u64 {
    let (device, mut history) = (Shared::new(SimDevice::new(seed)), History::default());
    work(&device, seed, ROUNDS, changes, &mut history).unwrap();
    assert_eq!(history.committed.len() as u64, ROUNDS);
    judge(device.with(|d| d.crash(0)), &history).unwrap();
    let counts = history.counts;
    assert!(counts.pages_read > 60 && counts.pages_waited_for > 10, "nothing was larger than memory: {counts:?}");
    assert!(counts.segments_removed > 0 && counts.pages_compacted > 0, "no space came back: {counts:?}");
    let bytes: usize = history.cuts[&ROUNDS].iter().map(|((_, k), v)| k.len() + v.len() + 8).sum();
    assert!(bytes > 3 * BUDGET / 2, "{bytes} B are hardly more than memory");
    device.with(|d| d.submitted())
}

#[test]
fn an_ordered_table_larger_than_memory_survives_a_crash_at_every_operation() {
    let tally = Tally::default();
    let base = setting("TIDERACE_CRASH_SEED", 1);
    for seed in base..base + setting("TIDERACE_CRASH_ROUNDS", 1).min(500) {
        let operations = whole(seed, CHANGES);
        // The first part is always the same filling.
        for at in (0..operations).filter(|at| *at > operations / 3 || at % 8 == 0) {
            let (device, mut history) = (Shared::new(SimDevice::new(seed)), History::default());
            device.with(|d| d.inject(at, Fault::PowerOff));
            let _ = work(&device, seed, ROUNDS, CHANGES, &mut history);
            for crash in 0..2 {
                let place = || format!("workload {seed}, operation {at}, crash {crash}");
                let mut after = device.with(|d| d.crash(crash * 31 + at));
                tally.check(judge(after.crash(1), &history).map_err(|e| format!("{}: {e}", place())));
                if crash > 0 || at % 4 > 0 {
                    continue;
                }
                // Start again, go on with blocks that recovery has left on the device, crash again.
                let mut second = history.clone();
                let mut random = Random(seed * 100 + at);
                after.inject(after.submitted() + 20 + random.below(400), Fault::PowerOff);
                let again = Shared::new(after);
                let opened = open(&Shared::new(again.with(|d| d.crash(1))), OpenAt::Newest);
                second.committed = opened.ok().and_then(|(_, version)| version).into_iter().collect();
                let _ = work(&again, seed + 7, 1, 60, &mut second);
                tally.check(judge(again.with(|d| d.crash(crash)), &second).map_err(|e| format!("{}, again: {e}", place())));
            }
        }
    }
    tally.finish("ordered tables", if base == 1 { 1000 } else { 0 });
}

#[test]
fn ordered_tables_behave_as_sorted_maps_while_their_blocks_come_and_go() {
    let base = setting("TIDERACE_CRASH_SEED", 1);
    for seed in base..base + setting("TIDERACE_CRASH_ROUNDS", 8).min(500) {
        whole(seed + 1000, 900);
    }
}

#[test]
fn damage_and_errors_under_an_ordered_table_are_errors_and_never_absence() {
    for fault in [Fault::BitFlip, Fault::Io, Fault::Misdirected(512), Fault::Lost, Fault::Zeroed, Fault::NoSpace] {
        for seed in 1..12 {
            let operations = whole(seed, CHANGES);
            let (device, mut history) = (Shared::new(SimDevice::new(seed)), History::default());
            device.with(|d| d.inject(Random(seed).below(operations), fault));
            // `one` compares each answer with the model, unless the store says that it has failed.
            match work(&device, seed, ROUNDS, CHANGES, &mut history) {
                Err(_) => {}
                Ok(()) => {
                    if let Err(e) = judge(device.with(|d| d.crash(0)), &history) {
                        assert!(e.contains("damaged"), "{fault:?}, {seed}: {e}");
                    }
                }
            }
        }
    }
}

// Compaction: what lives long keeps segments; its blocks move so that they can go.
#[test]
fn blocks_that_live_long_are_moved_so_that_space_comes_back() {
    let device = Shared::new(SimDevice::new(5));
    let layout = TableLayout { block_bits: 10, chunk_blocks: 64, ..LAYOUT };
    let budget = 128 << 10;
    let (shard, _) = open_with(&device, layout, budget, OpenAt::Newest).unwrap();
    let mut model = Model::new();
    let mut run = Run { shard, model: &mut model, random: Random(5), budget_bytes: budget };
    let put = |run: &mut Run<'_>, n: u64, fill: u8| {
        let (key, value) = (n.to_be_bytes(), vec![fill; 60]);
        let room = run.shard.ordered(ORDERED).room_for(1, key.len() + value.len());
        run.patiently(|shard| shard.reserve(room)).unwrap();
        run.fetch(ORDERED, &key, &key).unwrap();
        run.shard.ordered(ORDERED).put(&key, &value);
        run.model.insert((ORDERED.0, key.to_vec()), value);
        run.shard.maintain().unwrap();
    };
    let keys = 4000;
    (0..keys).for_each(|n| put(&mut run, n, 1));
    let on_disk = || -> u64 {
        let Done::Files(files) = device.with(|d| d.execute(DeviceOp::List)).unwrap() else { panic!("files") };
        files.iter().map(|(_, len)| len).sum()
    };
    let mut most = 0;
    for round in 0..60_u64 {
        // One block in five changes all the time, and between them lie others that change once: each segment keeps some of these.
        for n in (0..keys).filter(|n| n / 12 % 5 == 0 || n / 12 % 60 == round) {
            put(&mut run, n, round as u8);
        }
        run.shard.checkpoint_now(round + 1, b"").unwrap();
        for _ in 0..100 {
            run.shard.maintain().unwrap();
            run.shard.complete_pending(Duration::ZERO);
        }
        if round > 5 {
            most = most.max(on_disk());
        }
    }
    let counts = run.shard.store_counts();
    assert!(counts.pages_compacted_from_device > 20 && counts.segments_removed > 50, "{counts:?}");
    // Twice what lives, and what two checkpoints keep of before.
    assert!(most < 8 * (keys * 76), "{most} B for {} B", keys * 76);
    let held = content(&mut run.shard).unwrap();
    assert!(held == *run.model);
}
