//! Counting what tables hold, for the budget of their shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One table's part of its shard's memory. What it counts is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Account {
    used_bytes: usize,
    shard_bytes: Arc<AtomicUsize>,
}

impl Account {
    /// An account that counts into `shard_bytes`, empty.
    pub(crate) fn new(shard_bytes: Arc<AtomicUsize>) -> Self {
        Self { used_bytes: 0, shard_bytes }
    }

    /// What it counts into.
    pub(crate) fn shard_bytes(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.shard_bytes)
    }

    /// What the table holds, as last told.
    pub(crate) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Tells what the table holds now. Cheap while that doesn't change.
    #[inline(always)]
    pub(crate) fn settle(&mut self, used_bytes: usize) {
        if used_bytes != self.used_bytes {
            self.change(used_bytes);
        }
    }

    #[cold]
    fn change(&mut self, used_bytes: usize) {
        // Wrapping addition of the difference, in either direction. Relaxed: a statistic of one writer, ordering nothing.
        self.shard_bytes.fetch_add(used_bytes.wrapping_sub(self.used_bytes), Ordering::Relaxed);
        self.used_bytes = used_bytes;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.settle(0);
    }
}
