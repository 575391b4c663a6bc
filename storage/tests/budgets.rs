//! Shards with little memory: below the least budget they are refused, from there on workloads larger than memory make progress.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use tiderace_storage::{
    Answer, BudgetShortfall, CheckpointError, NoRoom, OpenAt, Operation, Residency, Shard, ShardOptions, SimDevice, StoreCounts,
    StoreError, StoreOptions, Submitted, TableId, TableLayout, Ticket,
};

const POINT: TableId = TableId(0);
const ORDERED: TableId = TableId(1);

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn store() -> StoreOptions {
    StoreOptions { shard: 1, segment_bytes: 256 << 10, batch_bytes: 64 << 10 }
}

fn layouts() -> [TableLayout; 3] {
    let usual = TableLayout::for_device();
    [
        usual,
        TableLayout { page_bits: 13, segment_bits: 8, ..usual },
        TableLayout { page_bits: 12, block_bits: 11, index_bits: 4, segment_bits: 8, ..usual },
    ]
}

#[test]
fn a_budget_below_the_least_is_refused_and_the_error_tells_the_least() {
    for layout in layouts() {
        let least = Shard::least_budget_bytes(&layout);
        for budget_bytes in [0, 1, least / 2, least - 1] {
            let options = ShardOptions { budget_bytes };
            let refused = Shard::with_device(options.clone(), layout, Box::new(SimDevice::new(1)), store()).unwrap_err();
            assert_eq!(refused, StoreError::BudgetTooSmall { budget_bytes, least_bytes: least });
            assert!(refused.to_string().contains(&format!("needs {least} B at least")), "{refused}");
            let refused = Shard::open(options, layout, Box::new(SimDevice::new(1)), store(), 2, OpenAt::Newest).unwrap_err();
            assert!(matches!(refused, CheckpointError::Store(StoreError::BudgetTooSmall { .. })), "{refused}");
        }
        let options = ShardOptions { budget_bytes: least };
        drop(Shard::with_device(options, layout, Box::new(SimDevice::new(1)), store()).unwrap());
    }
}

struct Run {
    shard: Shard,
    random: u64,
    model: BTreeMap<u64, Vec<u8>>,
    ordered: BTreeMap<u64, Vec<u8>>,
    expected: BTreeMap<Ticket, Answer>,
    what: String,
}

impl Run {
    fn below(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.random) % end
    }

    fn turn(&mut self) {
        self.shard.maintain().unwrap();
        self.shard.complete_pending(Duration::from_micros(200));
        let mut done = Vec::new();
        self.shard.take_completed(&mut done);
        for (ticket, answer) in done {
            assert_eq!(Some(answer.unwrap()), self.expected.remove(&ticket), "{}", self.what);
        }
    }

    /// Progress is bounded: no call is refused for more turns than this.
    fn patiently<T>(&mut self, mut call: impl FnMut(&mut Shard) -> Result<T, NoRoom>) -> T {
        for _ in 0..300 {
            if let Ok(done) = call(&mut self.shard) {
                return done;
            }
            self.turn();
        }
        let (used, budget, busy) = (self.shard.used_bytes(), self.shard.budget_bytes(), call(&mut self.shard).err());
        panic!("{}: no room in 300 turns: {used} B of {budget}, {busy:?}, {:?}", self.what, self.shard.store_counts());
    }

    fn point(&mut self, keys: u64, value_bytes: u64) {
        let key = self.below(keys);
        let value = vec![mix(self.random) as u8; (value_bytes / 2 + self.below(value_bytes)) as usize];
        let kind = self.below(8);
        let before = self.model.get(&key).cloned();
        let (answer, make): (Answer, Box<dyn Fn() -> Operation>) = match kind {
            0 => (Answer::Value(before), Box::new(|| Operation::Read)),
            1 => {
                self.model.remove(&key);
                (Answer::Done { existed: before.is_some() }, Box::new(|| Operation::Delete))
            }
            2 | 3 => {
                let mut new = before.clone().unwrap_or_default();
                new.truncate(value.len());
                new.push(kind as u8);
                self.model.insert(key, new);
                let limit = value.len();
                let make = move |old: Option<&[u8]>| {
                    let mut new = old.unwrap_or_default().to_vec();
                    new.truncate(limit);
                    new.push(kind as u8);
                    new
                };
                (Answer::Done { existed: before.is_some() }, Box::new(move || Operation::Rmw(Box::new(make))))
            }
            _ => {
                self.model.insert(key, value.clone());
                (Answer::Done { existed: before.is_some() }, Box::new(move || Operation::Upsert(value.clone())))
            }
        };
        match self.patiently(|shard| shard.submit(POINT, 8, mix(key), &key.to_be_bytes(), make())) {
            Submitted::Done(done) => assert_eq!(done, answer, "{}", self.what),
            Submitted::Pending(ticket) => drop(self.expected.insert(ticket, answer)),
        }
    }

    fn ordered(&mut self, keys: u64, value_bytes: u64) {
        let n = self.below(keys);
        let (key, value) = (n.to_be_bytes(), vec![mix(self.random) as u8; self.below(value_bytes) as usize]);
        let room = self.shard.ordered(ORDERED).room_for(1, key.len() + value.len());
        self.patiently(|shard| shard.reserve(room));
        self.patiently(|shard| match shard.fetch_range(ORDERED, Bound::Included(&key), Bound::Included(&key))? {
            Residency::Resident => Ok(()),
            Residency::Pending(_) => Err(NoRoom::Busy { bytes_needed: 0 }),
        });
        let kind = self.below(4);
        let table = self.shard.ordered(ORDERED);
        match kind {
            0 => assert_eq!(table.remove(&key), self.ordered.remove(&n).is_some(), "{}", self.what),
            1 => assert_eq!(table.get(&key), self.ordered.get(&n).map(Vec::as_slice), "{}", self.what),
            _ => {
                table.put(&key, &value);
                self.ordered.insert(n, value);
            }
        }
    }
}

fn run(layout: TableLayout, budget_bytes: usize, seed: u64, is_durable: bool) {
    let options = ShardOptions { budget_bytes };
    let device = Box::new(SimDevice::new(seed));
    let shard = if is_durable {
        Shard::open(options, layout, device, store(), 2, OpenAt::Newest).unwrap().0
    } else {
        Shard::with_device(options, layout, device, store()).unwrap()
    };
    let what = format!("budget {budget_bytes}, pages of 2^{}, seed {seed}, durable {is_durable}", layout.page_bits);
    let mut run = Run { shard, random: seed, model: BTreeMap::new(), ordered: BTreeMap::new(), expected: BTreeMap::new(), what };
    // About three times the memory, most of it in the point table, whose index takes a part of that.
    let value_bytes = [100, 300, 1500][seed as usize % 3];
    let (keys, entries) = (2 * budget_bytes as u64 / (value_bytes + 24), budget_bytes as u64 / (value_bytes / 2 + 16));
    let operations = 3 * (keys + entries);
    let mut version = 0;
    for i in 0..operations.min(60_000) {
        if run.below(3) == 0 {
            run.ordered(entries, value_bytes)
        } else {
            run.point(keys, value_bytes)
        }
        if run.below(16) == 0 {
            run.turn();
        }
        let used = run.shard.used_bytes();
        assert!(used <= budget_bytes, "{}: {used} B used", run.what);
        if is_durable && i % (operations / 3 + 1) == operations / 4 {
            for _ in 0..20_000 {
                if run.shard.pending() == 0 {
                    break;
                }
                run.turn();
            }
            version += 1;
            run.shard.cut(version, b"").unwrap();
        }
        if run.shard.is_checkpointing() {
            run.shard.advance_checkpoint().unwrap();
        }
    }
    for _ in 0..20_000 {
        if run.shard.pending() == 0 {
            break;
        }
        run.turn();
    }
    assert!(run.expected.is_empty(), "{}: {} operations wait for ever", run.what, run.expected.len());
    let (model, ordered) = (std::mem::take(&mut run.model), std::mem::take(&mut run.ordered));
    for (key, value) in model.iter().step_by(7) {
        let found = run.shard.point(POINT, 8).get(mix(*key), &key.to_be_bytes()).map(<[u8]>::to_vec);
        assert_eq!(found.as_ref(), Some(value), "{}: key {key}", run.what);
        run.shard.maintain().unwrap();
    }
    assert_eq!(run.shard.point(POINT, 8).len(), model.len(), "{}", run.what);
    assert_eq!(run.shard.ordered(ORDERED).len(), ordered.len(), "{}", run.what);
    for (key, value) in ordered.iter().step_by(7) {
        assert_eq!(run.shard.ordered(ORDERED).get(&key.to_be_bytes()), Some(value.as_slice()), "{}: entry {key}", run.what);
        run.shard.maintain().unwrap();
    }
    assert_eq!(run.shard.failure(), None, "{}", run.what);
    assert!(run.shard.store_counts().pages_read > 50, "{}: {:?}", run.what, run.shard.store_counts());
}

#[test]
fn workloads_larger_than_memory_make_progress_in_every_budget() {
    for layout in layouts() {
        let (mut budget, mut seed) = (Shard::least_budget_bytes(&layout), 0);
        while budget <= 4 << 20 {
            run(layout, budget, seed, seed % 2 == 0);
            // 32, 40, 52, 67 …: no power of two in particular.
            (budget, seed) = (budget / 10 * 13, seed + 1);
        }
    }
}

/// Turns after which a shard that refuses a key has done all that it will: among that is merging of some hundred small pages.
const PATIENCE: usize = 4000;

/// A shard and the answers it still owes.
struct Asker {
    shard: Shard,
    /// Operations that were told that there will never be room.
    refused: u64,
}

impl Asker {
    fn open(layout: TableLayout, budget_bytes: usize, seed: u64, is_durable: bool) -> Self {
        let (options, device) = (ShardOptions { budget_bytes }, Box::new(SimDevice::new(seed)));
        let shard = if is_durable {
            Shard::open(options, layout, device, store(), 2, OpenAt::Newest).unwrap().0
        } else {
            Shard::with_device(options, layout, device, store()).unwrap()
        };
        Self { shard, refused: 0 }
    }

    fn turn(&mut self) {
        self.shard.maintain().unwrap();
        self.shard.complete_pending(Duration::from_micros(200));
        let mut done = Vec::new();
        self.shard.take_completed(&mut done);
        for (_, answer) in done {
            match answer {
                Ok(_) => {}
                Err(StoreError::BudgetShortfall(_)) => self.refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
    }

    /// Asks for a change of this key until it is taken, or will never be, or so many turns are over.
    fn ask(&mut self, key: u64, turns: usize, operation: impl Fn() -> Operation) -> Result<(), NoRoom> {
        let mut refusal = NoRoom::Busy { bytes_needed: 0 };
        for _ in 0..turns {
            match self.shard.submit(POINT, 8, mix(key), &key.to_be_bytes(), operation()) {
                Ok(_) => return Ok(()),
                Err(why) => refusal = why,
            }
            self.turn();
        }
        Err(refusal)
    }

    fn put(&mut self, key: u64, turns: usize) -> Result<(), NoRoom> {
        self.ask(key, turns, || Operation::Upsert(key.to_le_bytes().to_vec()))
    }

    /// Sets keys, one after the other, until no more are taken; how many were, and why not the next.
    fn fill(&mut self, from: u64) -> (u64, NoRoom) {
        for key in from.. {
            if let Err(why) = self.put(key, PATIENCE) {
                return (key, why);
            }
            if key % 16 == 0 {
                self.turn();
            }
        }
        unreachable!("a budget has an end")
    }

    /// Insists on one more key, which is refused each time; what the device did meanwhile.
    fn insist(&mut self, key: u64, turns: usize) -> (StoreCounts, StoreCounts) {
        let before = self.shard.store_counts();
        assert!(self.put(key, turns).is_err(), "it was refused for longer before");
        (before, self.shard.store_counts())
    }
}

/// Layouts and budgets, in parts of the least, that the index of small records fills.
fn tight() -> impl Iterator<Item = (TableLayout, usize, u64)> {
    let parts = [(3, 24), (8, 8), (20, 6)];
    layouts().into_iter().enumerate().flat_map(move |(seed, layout)| {
        parts.into_iter().map(move |(parts, tag_bits)| {
            // Few bits of the hash beside an address: many records must be looked at that aren't the key's.
            let layout = TableLayout { tag_bits, ..layout };
            (layout, Shard::least_budget_bytes(&layout) * parts / 2, seed as u64)
        })
    })
}

#[test]
fn a_shard_whose_budget_its_index_fills_says_what_it_needs_and_leaves_its_device_alone() {
    for (layout, budget_bytes, seed) in tight() {
        for is_durable in [false, true] {
            let what = format!("{layout:?}, budget {budget_bytes}, durable {is_durable}");
            let mut asker = Asker::open(layout, budget_bytes, seed, is_durable);
            let (keys, why) = asker.fill(0);
            let (before, after) = asker.insist(keys, 1000);
            assert_eq!(before, after, "{what}: {keys} keys, {why}");
            let refusal = asker.put(keys, 1);
            let Err(NoRoom::BudgetTooSmall(shortfall)) = refusal else { panic!("{what}: {refusal:?}") };
            let BudgetShortfall { admitted_bytes, index_bytes, places_bytes, bytes_needed, .. } = shortfall;
            assert!(shortfall.budget_bytes == budget_bytes && index_bytes > budget_bytes / 4, "{what}: {shortfall:?}");
            assert!(index_bytes + places_bytes + bytes_needed > admitted_bytes, "{what}: {shortfall:?}");
            let text = shortfall.to_string();
            for number in [budget_bytes, index_bytes, places_bytes, bytes_needed, admitted_bytes, shortfall.least_bytes()] {
                assert!(text.contains(&format!("{number} B")), "{what}: {text}");
            }
            assert!(asker.shard.used_bytes() <= budget_bytes && asker.shard.failure().is_none(), "{what}");
            // Nothing was lost of what was taken; and some keys can always be given up, for others.
            let mut known = 0;
            for key in (0..keys).step_by(97) {
                known += u64::from(asker.shard.point(POINT, 8).get(mix(key), &key.to_be_bytes()) == Some(&key.to_le_bytes()));
                asker.turn();
            }
            assert!(known + asker.refused >= keys.div_ceil(97), "{what}: {known} of {keys} keys, {} refused", asker.refused);
            for key in 0..keys / 8 * 7 {
                asker.ask(key, 400, || Operation::Delete).unwrap();
            }
            let (more, _) = asker.fill(keys);
            assert!(more > keys + keys / 16, "{what}: {keys} keys, most of them removed, then {} more", more - keys);
            // In the budget that it asked for, and a bit, there is room for the key.
            let (enough, _) = Asker::open(layout, shortfall.least_bytes() / 8 * 9, seed, is_durable).fill(0);
            assert!(enough > keys, "{what}: {keys} keys, {enough} in {} B", shortfall.least_bytes());
        }
    }
}

#[test]
fn small_pages_of_many_checkpoints_are_merged_or_left_alone() {
    for (layout, budget_bytes, seed) in tight() {
        let mut asker = Asker::open(TableLayout { tag_bits: 24, ..layout }, budget_bytes, seed, true);
        let (keys, _) = asker.fill(0);
        let what = format!("{layout:?}, budget {budget_bytes}, {keys} keys");
        let mut version = 0;
        for i in 0..400_u64 {
            for j in 0..3 {
                let _ = asker.put(mix(i * 3 + j) % keys, 3);
            }
            for _ in 0..100 {
                if asker.shard.pending() > 0 {
                    asker.turn();
                }
            }
            if asker.shard.pending() == 0 && !asker.shard.is_checkpointing() {
                version += 1;
                asker.shard.cut(version, b"").unwrap();
            }
            for _ in 0..20 {
                asker.shard.advance_checkpoint().unwrap();
            }
        }
        for _ in 0..10_000 {
            if asker.shard.is_checkpointing() {
                asker.shard.advance_checkpoint().unwrap();
            }
        }
        assert!(version > 10 && !asker.shard.is_checkpointing(), "{what}: {version} checkpoints");
        let (keys, _) = asker.fill(keys);
        let (before, after) = asker.insist(keys, 1000);
        assert_eq!(before, after, "{what}: {version} checkpoints");
    }
}
