//! Shards with little memory: below the least budget they are refused, from there on workloads larger than memory make progress.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use tiderace_storage::{
    Answer, Busy, CheckpointError, OpenAt, Operation, Residency, Shard, ShardOptions, SimDevice, StoreError, StoreOptions,
    Submitted, TableId, TableLayout, Ticket,
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
    fn patiently<T>(&mut self, mut call: impl FnMut(&mut Shard) -> Result<T, Busy>) -> T {
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
            Residency::Pending(_) => Err(Busy { bytes_needed: 0 }),
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
