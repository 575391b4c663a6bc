//! What a table's blocks hold together, and where those that aren't in memory are read from.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::body::Body;
use crate::shard::TableId;
use crate::store::{FramePlace, StoreHandle};

/// Shared by all blocks of a table, and by copies of them that a checkpoint still has: what they hold counts until the last one goes.
pub(super) struct Held {
    /// Memory of this table's blocks.
    own: AtomicUsize,
    /// Of the whole shard.
    shard: Arc<AtomicUsize>,
    /// Blocks of which only the fence is in memory.
    away: AtomicUsize,
    /// Blocks that no frame holds.
    unwritten: AtomicUsize,
    store: Option<(StoreHandle, TableId)>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({} B, {} blocks away)", self.bytes(), self.away())
    }
}

// All relaxed: counts of one writer, which order nothing.
impl Held {
    pub(super) fn new(shard: Arc<AtomicUsize>, store: Option<(StoreHandle, TableId)>) -> Arc<Self> {
        Arc::new(Self { own: AtomicUsize::new(0), shard, away: AtomicUsize::new(0), unwritten: AtomicUsize::new(0), store })
    }

    pub(super) fn bytes(&self) -> usize {
        self.own.load(Ordering::Relaxed)
    }

    pub(super) fn away(&self) -> usize {
        self.away.load(Ordering::Relaxed)
    }

    pub(super) fn unwritten(&self) -> usize {
        self.unwritten.load(Ordering::Relaxed)
    }

    pub(super) fn store(&self) -> Option<&(StoreHandle, TableId)> {
        self.store.as_ref()
    }

    /// A block that held so much holds so much now.
    pub(super) fn recharge(&self, before: usize, after: usize) {
        // Wrapping addition of the difference, in either direction.
        self.own.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        self.shard.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    pub(super) fn went_away(&self) {
        self.away.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn came_back(&self) {
        self.away.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn count_unwritten(&self, is_unwritten: bool) {
        self.unwritten.fetch_add(if is_unwritten { 1 } else { usize::MAX }, Ordering::Relaxed);
    }

    /// Reads a block and waits for it. When that can't be the store knows why, and there is nothing.
    pub(super) fn read_now(&self, number: u64, place: FramePlace) -> Option<Body> {
        let (store, table) = self.store.as_ref()?;
        let mut store = store.lock();
        match store.read_now(*table, number, place) {
            Ok(bytes) => {
                let body = Body::decode(bytes);
                if body.is_none() {
                    store.fail_page(&place, NO_ENTRIES);
                }
                body
            }
            Err(error) => {
                store.fail(error);
                None
            }
        }
    }
}

/// Why a block is damaged whose checksum is right.
pub(crate) const NO_ENTRIES: &str = "it holds no entries as they should be";
