//! One core's state: tables behind small integer ids, counted against one budget.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashMap;

use crate::memory::Account;
use crate::ordered::OrderedTable;
use crate::point::{PointTable, TableLayout};

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
    /// Dropped tables whose memory is given back piece by piece.
    retired: VecDeque<PointTable>,
}

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
        Self {
            options,
            layout,
            point: HashMap::new(),
            ordered: HashMap::new(),
            used_bytes: Arc::default(),
            retired: VecDeque::new(),
        }
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

    /// The point table `id`, made on first use. `value_width`: bytes of each value made by `entries`; the same at every call.
    pub fn point(&mut self, id: TableId, value_width: usize) -> &mut PointTable {
        let (layout, used_bytes) = (&self.layout, &self.used_bytes);
        self.point.entry(id).or_insert_with(|| PointTable::new(value_width, layout, Account::new(Arc::clone(used_bytes))))
    }

    /// The ordered table `id`, made on first use.
    pub fn ordered(&mut self, id: TableId) -> &mut OrderedTable {
        let (layout, used_bytes) = (&self.layout, &self.used_bytes);
        self.ordered.entry(id).or_insert_with(|| OrderedTable::new(layout, Account::new(Arc::clone(used_bytes))))
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
        if let Some(table) = self.point.remove(&id)
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
