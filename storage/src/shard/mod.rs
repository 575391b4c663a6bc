//! One core's state: tables behind small integer ids, counted against one budget; with a device, larger than that.

mod blocks;
mod capture;
mod checkpoint;
mod compact;
pub(crate) mod manifest;
mod memory;
mod pending;
mod restore;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashMap;

use crate::device::{Device, DeviceOp, Done};
use crate::directory_kind::foreign_file;
use crate::memory::Account;
use crate::ordered::OrderedTable;
use crate::point::{ExpiringTable, PointTable, STAMP_BYTES, TableLayout, TimeToLive};
use crate::pressure::PressureGauge;
use crate::store::{PageStore, StoreCounts, StoreError, StoreHandle, StoreOptions};
use blocks::BlockTraffic;
use capture::RecordCaptures;
pub(crate) use capture::{BLOCK_BYTES, CapturedContent, CapturedPieces};
pub use capture::{CaptureKind, CapturedBlock};
use checkpoint::Durable;
pub use checkpoint::{OpenAt, Recovered};
use compact::Compaction;
pub use memory::{BudgetShortfall, NoRoom};
use pending::Pending;
pub use pending::{Answer, Operation, Residency, Submitted, Ticket};

/// Names a table of a shard. The caller gives out the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId(pub u64);

/// Bounds of a shard.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// How many bytes its tables may hold together. The owner asks [`Shard::used_bytes`] and pushes back; a single call never fails for it.
    pub budget_bytes: usize,
}

/// One core's state. Not shared, not locked: its owner works through `&mut`.
#[derive(Debug)]
pub struct Shard {
    options: ShardOptions,
    layout: TableLayout,
    point: HashMap<TableId, PointTable>,
    ordered: HashMap<TableId, OrderedTable>,
    used_bytes: Arc<AtomicUsize>,
    store: Option<StoreHandle>,
    keeps_tombstones: bool,
    pending: Pending,
    blocks: BlockTraffic,
    compaction: Option<Compaction>,
    durable: Option<Durable>,
    captures: RecordCaptures,
    /// Dropped tables whose memory is given back piece by piece.
    retired: VecDeque<PointTable>,
    pressure: PressureGauge,
    /// How many tables there were, about, when the size of their pages was looked at.
    pages_limited_for: usize,
}

/// A shard with a device has a budget of so many pages at least.
const PAGES_IN_BUDGET: usize = 32;
/// And of so many indexes of the smallest size: one and its growth.
const INDEXES_IN_BUDGET: usize = 2;
/// A bucket of an index.
const BUCKET_BYTES: usize = 64;
/// Pages aren't made smaller than this, unless the layout says so: what a page takes in memory while it is on the device, about 130 bytes,
/// stays small against it.
const LEAST_PAGE_BYTES: usize = 4096;
/// A dropped table that holds more than this is freed by [`Shard::reclaim`], a smaller one at once: some ten microseconds of work.
const FREED_AT_ONCE_BYTES: usize = 1 << 20;

impl Shard {
    /// An empty shard in memory.
    #[must_use]
    pub fn new(options: ShardOptions) -> Self {
        Self::with_layout(options, TableLayout::default())
    }

    /// An empty shard in memory whose tables are laid out as told.
    #[must_use]
    pub fn with_layout(options: ShardOptions, layout: TableLayout) -> Self {
        assert!((9..=24).contains(&layout.page_bits) && layout.tag_bits <= 24, "{layout:?}");
        assert!(layout.index_bits <= 15 && (layout.index_bits..=20).contains(&layout.segment_bits), "{layout:?}");
        assert!((6..=16).contains(&layout.block_bits) && layout.chunk_blocks >= 4, "{layout:?}");
        let used_bytes = Arc::default();
        Self {
            options,
            layout,
            point: HashMap::new(),
            ordered: HashMap::new(),
            pending: Pending::new(Account::new(Arc::clone(&used_bytes))),
            blocks: BlockTraffic::default(),
            used_bytes,
            store: None,
            keeps_tombstones: false,
            compaction: None,
            durable: None,
            captures: RecordCaptures::default(),
            retired: VecDeque::new(),
            pressure: PressureGauge::default(),
            pages_limited_for: 0,
        }
    }

    /// An empty shard whose tables may be larger than its budget: pages and blocks that don't fit lie on `device`. What an earlier shard left
    /// there is removed: this one's content is durable by its checkpoints only. A directory that holds checkpoints
    /// or logs is refused. The budget is at least [`least_budget_bytes`](Self::least_budget_bytes).
    ///
    /// Its owner calls [`maintain`](Self::maintain) each turn, and before a batch of keys [`fetch`](Self::fetch), or before a range of an
    /// ordered table [`fetch_range`](Self::fetch_range), until all are [`Resident`](Residency::Resident), with
    /// [`complete_pending`](Self::complete_pending) in between. A call on a key that wasn't fetched is right too, but stands and waits for the
    /// device.
    pub fn with_device(
        options: ShardOptions,
        layout: TableLayout,
        mut device: Box<dyn Device + Send>,
        store: StoreOptions,
    ) -> Result<Self, StoreError> {
        let mut shard = Self::within_budget(options, layout)?;
        if let Done::Files(files) = device.execute(DeviceOp::List)?
            && let Some((file, holds)) = foreign_file(&files, None)
        {
            return Err(StoreError::Foreign { file, holds });
        }
        let account = Account::new(Arc::clone(&shard.used_bytes));
        let batch_bytes = store.batch_bytes.min(shard.options.budget_bytes / 16);
        let store = PageStore::open(device, StoreOptions { batch_bytes, ..store }, account, &BTreeMap::new(), false)?;
        shard.store = Some(StoreHandle::new(store));
        Ok(shard)
    }

    /// Whether its tables may be larger than its budget. References to records then don't outlive [`maintain`](Self::maintain).
    #[must_use]
    pub fn has_device(&self) -> bool {
        self.store.is_some()
    }

    /// The smallest budget that a shard with a device works in, whose tables are laid out so: some pages, which get smaller with the budget,
    /// down to 4 KiB (or what the layout says, if that is less), and the smallest index. What the shard holds needs memory too: an index of
    /// about 13 bytes a key of point tables, 130 bytes a page, and 150 bytes and a key a block of ordered tables. A budget that has no room
    /// for that beside some pages is [`NoRoom::BudgetTooSmall`].
    #[must_use]
    pub fn least_budget_bytes(layout: &TableLayout) -> usize {
        let pages = PAGES_IN_BUDGET * (1 << layout.page_bits).min(LEAST_PAGE_BYTES);
        pages + INDEXES_IN_BUDGET * (BUCKET_BYTES << layout.index_bits)
    }

    /// An empty shard that will have a device, if the budget is large enough for one.
    fn within_budget(options: ShardOptions, layout: TableLayout) -> Result<Self, StoreError> {
        let (budget_bytes, least_bytes) = (options.budget_bytes, Self::least_budget_bytes(&layout));
        if budget_bytes < least_bytes {
            return Err(StoreError::BudgetTooSmall { budget_bytes, least_bytes });
        }
        // An index grows by a small part of the budget at once.
        let grows_by = (budget_bytes / (2 * PAGES_IN_BUDGET * BUCKET_BYTES)).max(1).ilog2() as u8;
        let segment_bits = layout.segment_bits.min(grows_by).max(layout.index_bits);
        Ok(Self::with_layout(options, TableLayout { segment_bits, ..layout }))
    }

    /// The largest page of so many tables that the budget can carry: the pages that they fill are a part of it.
    fn page_limit_bytes(options: &ShardOptions, layout: &TableLayout, tables: usize) -> usize {
        let part = options.budget_bytes / PAGES_IN_BUDGET.max(tables.next_power_of_two());
        let limit = part.max(LEAST_PAGE_BYTES).min(1 << layout.page_bits);
        1 << limit.ilog2()
    }

    /// Tables that were added make all tables' pages smaller; looked at when there are twice as many.
    fn limit_pages(&mut self) {
        let tables = self.point.len().next_power_of_two();
        if self.pages_limited_for != tables {
            self.pages_limited_for = tables;
            let limit = Self::page_limit_bytes(&self.options, &self.layout, tables);
            self.point.values_mut().for_each(|table| table.limit_pages(limit));
        }
    }

    /// What has made the shard's device useless, if anything did. Answers given since then may be wrong: records that couldn't be read seem
    /// absent. Whoever makes something of an answer durable or visible asks here first.
    #[must_use]
    pub fn failure(&self) -> Option<StoreError> {
        self.store.as_ref().and_then(|store| store.lock().failed().cloned())
    }

    /// What its device has been used for; all zeros without one.
    #[must_use]
    pub fn store_counts(&self) -> StoreCounts {
        self.store.as_ref().map_or_else(StoreCounts::default, |store| store.lock().counts())
    }

    /// Lets the shard hold less than it may while the process is short of memory; one with a device, by [`maintain`](Self::maintain).
    pub fn heed(&mut self, pressure: PressureGauge) {
        self.pressure = pressure;
    }

    /// The budget it was made with.
    #[must_use]
    pub fn budget_bytes(&self) -> usize {
        self.options.budget_bytes
    }

    /// What all tables hold now, with their indexes. Costs nothing to ask.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// What each table holds in memory now, with its index.
    pub fn table_bytes(&self) -> impl Iterator<Item = (TableId, usize)> {
        let point = self.point.iter().map(|(id, table)| (*id, table.used_bytes()));
        point.chain(self.ordered.iter().map(|(id, table)| (*id, table.used_bytes())))
    }

    /// The point table `id`, made on first use. `value_width`: bytes of each value made by `entries`; the same at every call.
    pub fn point(&mut self, id: TableId, value_width: usize) -> &mut PointTable {
        let tables = self.point.len() + 1;
        let page_limit = || Self::page_limit_bytes(&self.options, &self.layout, tables);
        let (layout, used_bytes) = (&self.layout, &self.used_bytes);
        let (store, keeps_tombstones, tracks) = (&self.store, self.keeps_tombstones, self.captures.tracks());
        self.point.entry(id).or_insert_with(|| {
            let mut table = PointTable::new(value_width, layout, Account::new(Arc::clone(used_bytes)));
            if let Some(store) = store {
                table.attach(store.clone(), id, keeps_tombstones);
                table.limit_pages(page_limit());
            } else if tracks {
                table.track_changes();
            }
            table
        })
    }

    /// The point table `id`, whose records expire: made on first use, with values of `value_width` bytes as their user sees them. Each value
    /// takes 8 bytes more. What is asked of the table by [`submit`](Self::submit) and [`fetch`](Self::fetch), with a width that is
    /// [`expiring_width`](Self::expiring_width) of this one, obeys the rule too; by [`point`](Self::point) values are seen with the bytes
    /// behind them, and expired ones until they are forgotten. All users of a table call it so, from the start and after each recovery, and
    /// tell no time before that of the checkpoint.
    pub fn expiring(&mut self, id: TableId, value_width: usize, rule: TimeToLive) -> ExpiringTable<'_> {
        let table = self.point(id, Self::expiring_width(value_width));
        table.expire_by(rule);
        ExpiringTable::new(table)
    }

    /// Bytes of the stored values of an expiring table.
    #[must_use]
    pub fn expiring_width(value_width: usize) -> usize {
        value_width + STAMP_BYTES
    }

    /// The ordered table `id`, made on first use.
    pub fn ordered(&mut self, id: TableId) -> &mut OrderedTable {
        let (layout, used_bytes, store) = (&self.layout, &self.used_bytes, &self.store);
        self.ordered.entry(id).or_insert_with(|| {
            let account = Account::new(Arc::clone(used_bytes));
            OrderedTable::with_store(layout, account, store.as_ref().map(|store| (store.clone(), id)))
        })
    }

    /// Forgets what [`Image::of_vnodes`](crate::Image::of_vnodes) has copied: records of these vnodes out of `vnode_count`, and entries of
    /// which `has_ordered` says so; how many. Takes time for all records.
    pub fn remove_vnodes(
        &mut self,
        vnode_count: u32,
        vnodes: std::ops::Range<u32>,
        has_ordered: impl Fn(TableId, &[u8]) -> bool,
    ) -> u64 {
        let mut count = 0;
        for table in self.point.values_mut() {
            let (mut gone, mut found, mut cursor) = (Vec::new(), Vec::new(), Some(0));
            while let Some(at) = cursor {
                found.clear();
                cursor = table.scan(at, 1024, &mut found);
                let moved = found.iter().filter(|r| vnodes.contains(&crate::checkpoint::vnode_of(table.hash(**r), vnode_count)));
                gone.extend(moved.map(|r| (table.hash(*r), table.key(*r).to_vec())));
            }
            for (hash, key) in gone {
                count += u64::from(table.remove(hash, &key));
            }
        }
        for (id, table) in &mut self.ordered {
            let mut gone = Vec::new();
            table.for_each(|key, _| {
                if has_ordered(*id, key) {
                    gone.push(key.to_vec());
                }
            });
            for key in gone {
                count += u64::from(table.remove(&key));
            }
        }
        count
    }

    /// How many records all tables hold: what a checkpoint's restore counts.
    #[must_use]
    pub fn records(&self) -> u64 {
        let point: u64 = self.point.values().map(|table| table.len() as u64).sum();
        let ordered: u64 = self.ordered.values().map(|table| table.len() as u64).sum();
        point + ordered
    }

    /// All point tables, by their numbers.
    pub(crate) fn point_tables(&self) -> Vec<(TableId, &PointTable)> {
        let mut tables: Vec<_> = self.point.iter().map(|(id, table)| (*id, table)).collect();
        tables.sort_by_key(|(id, _)| *id);
        tables
    }

    /// All ordered tables, by their numbers.
    pub(crate) fn ordered_tables(&self) -> Vec<(TableId, &OrderedTable)> {
        let mut tables: Vec<_> = self.ordered.iter().map(|(id, table)| (*id, table)).collect();
        tables.sort_by_key(|(id, _)| *id);
        tables
    }

    /// Forgets a table; nothing happens when there is none. A large point table's memory counts as used until [`reclaim`](Self::reclaim) has
    /// freed it, so that no call takes long.
    pub fn drop_table(&mut self, id: TableId) {
        if self.point.contains_key(&id) && self.keep_for_checkpoint(id) {
            if let Some(table) = self.point.get_mut(&id) {
                table.clear();
            }
        } else if let Some(table) = self.point.remove(&id)
            && let Some(table) = self.drop_for_captures(id, table)
            && table.used_bytes() > FREED_AT_ONCE_BYTES
        {
            self.retired.push_back(table);
        }
        self.ordered.remove(&id);
    }

    /// Frees up to `pages` pages (of 2 MiB by default) of dropped tables. Whether there are more.
    pub fn reclaim(&mut self, pages: usize) -> bool {
        for _ in 0..pages {
            let Some(table) = self.retired.front_mut() else { return false };
            if !table.dismantle_step() {
                self.retired.pop_front();
            }
        }
        !self.retired.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_large_table_that_is_dropped_is_freed_page_by_page() {
        let mut shard = Shard::new(ShardOptions { budget_bytes: 1 << 30 });
        let table = shard.point(TableId(1), 8);
        for key in 0..300_000_u64 {
            table.put(key.wrapping_mul(0x9e37_79b9_7f4a_7c15), &key.to_be_bytes(), &[1; 8]);
        }
        let held = shard.used_bytes();
        assert!(held > 8 << 20, "{held}");
        shard.drop_table(TableId(1));
        assert_eq!(shard.used_bytes(), held, "nothing is freed at once");
        assert!(shard.point(TableId(1), 8).is_empty(), "a table of the same number is a new one");
        let mut calls = 0;
        let mut before = shard.used_bytes();
        while shard.reclaim(1) {
            calls += 1;
            assert!(before - shard.used_bytes() <= 4 << 20, "at most a page or a segment a call");
            before = shard.used_bytes();
        }
        assert!(calls > 4, "{calls}");
        assert!(shard.used_bytes() < 1 << 16, "{} bytes are left", shard.used_bytes());
    }
}
