//! One core's state: tables behind small integer ids, counted against one budget.

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
}

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
        Self { options, layout, point: HashMap::new(), ordered: HashMap::new(), used_bytes: Arc::default() }
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

    /// Forgets a table and frees what it holds; nothing happens when there is none.
    pub fn drop_table(&mut self, id: TableId) {
        self.point.remove(&id);
        self.ordered.remove(&id);
    }
}
