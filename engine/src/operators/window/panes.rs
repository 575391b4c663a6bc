//! Which state tables there are: one a window, or one a slice. In order of their ends, and written down, so that a restored operator finds
//! them again.

use std::collections::BTreeMap;
use std::ops::Bound;

use tiderace_storage::{Shard, TableId};

use super::spec::Window;
use crate::ids::NodeId;
use crate::operators::aggregate::TableIds;
use crate::operators::touched::Touched;

/// A table of groups.
#[derive(Debug)]
pub(super) struct Pane {
    pub(super) table: TableId,
    /// Its result is out.
    pub(super) fired: bool,
    /// When nothing needs it any more, as a time that watermarks reach.
    pub(super) keep_until_us: i64,
    /// Groups that this epoch changed, and their slots from before; kept only where an old row may have to be taken back.
    pub(super) touched: Touched,
}

/// What a table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PaneKind {
    /// A window or a slice.
    Pane = 1,
    /// What is common to the windows of a CUMULATE that are still to come.
    Prefix = 2,
}

/// By end, then start.
type ByEnd = BTreeMap<(i64, i64), Pane>;

/// The tables of one operator on one core.
#[derive(Debug)]
pub(super) struct Panes {
    directory: TableId,
    tables_base: u64,
    next: u64,
    free: Vec<TableId>,
    pub(super) panes: ByEnd,
    pub(super) prefixes: ByEnd,
}

const CLOSED_KEY: &[u8] = &[0];

impl Panes {
    /// `directory` is an ordered table of the operator's own.
    pub(super) fn new(node: NodeId, directory: TableId) -> Self {
        Self {
            directory,
            tables_base: TableIds::beyond(node),
            next: 0,
            free: Vec::new(),
            panes: ByEnd::new(),
            prefixes: ByEnd::new(),
        }
    }

    /// Finds the tables that the shard has already; the watermark up to which windows were closed.
    pub(super) fn open(&mut self, shard: &mut Shard) -> i64 {
        let word = |bytes: &[u8], at: usize| -> u64 { u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes")) };
        let mut closed_us = i64::MIN;
        let mut none = Touched::none(shard);
        for (key, value) in shard.ordered(self.directory).range(Bound::Unbounded, Bound::Unbounded) {
            if key == CLOSED_KEY {
                closed_us = ordered_to_time(word(value, 0));
                continue;
            }
            let table = TableId(word(value, 0));
            let keep_until_us = ordered_to_time(word(value, 8));
            let pane = Pane { table, fired: value[16] == 1, keep_until_us, touched: none.take() };
            let place = (ordered_to_time(word(key, 1)), ordered_to_time(word(key, 9)));
            self.next = self.next.max(table.0 - self.tables_base + 1);
            if key[0] == PaneKind::Pane as u8 { &mut self.panes } else { &mut self.prefixes }.insert(place, pane);
        }
        closed_us
    }

    /// Writes down up to where windows were closed.
    pub(super) fn closed(&self, shard: &mut Shard, closed_us: i64) {
        shard.ordered(self.directory).put(CLOSED_KEY, &time_to_ordered(closed_us).to_be_bytes());
    }

    /// A table number that no pane uses.
    pub(super) fn table(&mut self) -> TableId {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            TableId(self.tables_base + self.next - 1)
        })
    }

    /// Frees a table and gives its number back.
    pub(super) fn drop_table(&mut self, shard: &mut Shard, table: TableId) {
        shard.drop_table(table);
        self.free.push(table);
    }

    /// The pane of a span, made if there is none.
    pub(super) fn pane(&mut self, shard: &mut Shard, kind: PaneKind, span: Window, keep_until_us: i64) -> &mut Pane {
        let place = (span.end_us, span.start_us);
        let known = if kind == PaneKind::Pane { &self.panes } else { &self.prefixes };
        if !known.contains_key(&place) {
            let table = self.table();
            let pane = Pane { table, fired: false, keep_until_us, touched: Touched::none(shard) };
            self.write(shard, kind, span, &pane);
            if kind == PaneKind::Pane { &mut self.panes } else { &mut self.prefixes }.insert(place, pane);
        }
        let known = if kind == PaneKind::Pane { &mut self.panes } else { &mut self.prefixes };
        known.get_mut(&place).expect("it was there or has just been inserted")
    }

    fn write(&self, shard: &mut Shard, kind: PaneKind, span: Window, pane: &Pane) {
        let mut value = pane.table.0.to_be_bytes().to_vec();
        value.extend_from_slice(&time_to_ordered(pane.keep_until_us).to_be_bytes());
        value.push(u8::from(pane.fired));
        shard.ordered(self.directory).put(&key(kind, span), &value);
    }

    /// Notes that the result of a window is out.
    pub(super) fn fired(&mut self, shard: &mut Shard, span: Window) {
        if let Some(mut pane) = self.panes.remove(&(span.end_us, span.start_us)) {
            pane.fired = true;
            self.write(shard, PaneKind::Pane, span, &pane);
            self.panes.insert((span.end_us, span.start_us), pane);
        }
    }

    /// Takes a pane out of the books; its table still is to be dropped.
    pub(super) fn forget(&mut self, shard: &mut Shard, kind: PaneKind, span: Window) -> Option<Pane> {
        shard.ordered(self.directory).remove(&key(kind, span));
        if kind == PaneKind::Pane { &mut self.panes } else { &mut self.prefixes }.remove(&(span.end_us, span.start_us))
    }
}

fn key(kind: PaneKind, span: Window) -> [u8; 17] {
    let mut key = [kind as u8; 17];
    key[1..9].copy_from_slice(&time_to_ordered(span.end_us).to_be_bytes());
    key[9..].copy_from_slice(&time_to_ordered(span.start_us).to_be_bytes());
    key
}

/// Order of the bits = order of the times.
fn time_to_ordered(time_us: i64) -> u64 {
    time_us as u64 ^ (1 << 63)
}

fn ordered_to_time(bits: u64) -> i64 {
    (bits ^ (1 << 63)) as i64
}
