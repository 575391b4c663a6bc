//! What a shard in memory held at a cut, in blocks, taken in slices while the shard goes on.
//!
//! ```text
//! begin_capture ─▶ each table: its bit flips, its lists are swapped; ordered tables are snapshots     O(tables)
//!   ─▶ capture_slice … capture_slice ─▶ CapturedBlock ─▶ CheckpointWriter (another thread's work)
//! ```
//! The shard copies records of point tables as they lie, and no more: whoever writes them sorts them by vnode.
//!
//! A capture is whole, or holds what has changed since the one before: then a checkpoint is that one's blocks and these. Ordered tables are
//! captured whole each time. A shard with a store has `cut` instead.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::{Arc, Mutex, Weak};

use super::{Shard, TableId};
use crate::checkpoint::{CheckpointError, SectionKind, SectionWriter};
use crate::ordered::OrderedSnapshot;
use crate::point::{Captured, PointTable};

/// A block is closed when it is about this long; one record may make it longer.
pub(crate) const BLOCK_BYTES: usize = 64 << 10;
/// Blocks whose memory a capture keeps to be filled again.
const POOLED_MAX: usize = 16;

/// A piece of a captured shard, for [`CheckpointWriter::push`](crate::CheckpointWriter::push).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedBlock {
    pub(crate) content: CapturedContent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CapturedContent {
    /// Of a point table.
    Point { table: TableId, value_width: usize, pieces: CapturedPieces },
    /// Sections of ordered tables.
    Ordered(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CapturedPieces {
    /// All that the table held before is gone.
    Cleared,
    /// Keys that are gone, for [`read_removals`](crate::point::read_removals).
    Removed(BlockBytes),
    /// Records, for [`read_page`](crate::point::read_page).
    Records(BlockBytes),
}

/// Memory of blocks that were written, for blocks of the same capture: new memory would cost more than copying records into it.
#[derive(Debug, Default)]
struct BlockPool(Mutex<Vec<Vec<u8>>>);

impl BlockPool {
    /// Never waits: who finds it in use does without.
    fn take(&self) -> Option<Vec<u8>> {
        self.0.try_lock().ok()?.pop()
    }

    fn give(&self, bytes: Vec<u8>) {
        if let Ok(mut pooled) = self.0.try_lock()
            && pooled.len() < POOLED_MAX
        {
            pooled.push(bytes);
        }
    }
}

/// Bytes of a block; their memory goes back to the capture when they are dropped, if that still runs.
#[derive(Debug, Default)]
pub(crate) struct BlockBytes {
    bytes: Vec<u8>,
    pool: Weak<BlockPool>,
}

impl Deref for BlockBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for BlockBytes {
    fn drop(&mut self) {
        if self.bytes.capacity() == BLOCK_BYTES
            && let Some(pool) = self.pool.upgrade()
        {
            self.bytes.clear();
            pool.give(std::mem::take(&mut self.bytes));
        }
    }
}

impl Clone for BlockBytes {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), pool: Weak::new() }
    }
}

impl PartialEq for BlockBytes {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for BlockBytes {}

impl CapturedBlock {
    /// How long it is.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.content {
            CapturedContent::Point { pieces: CapturedPieces::Removed(bytes) | CapturedPieces::Records(bytes), .. } => bytes.len(),
            CapturedContent::Ordered(bytes) => bytes.len(),
            CapturedContent::Point { pieces: CapturedPieces::Cleared, .. } => 0,
        }
    }
}

/// A block of a point table that is being filled.
#[derive(Debug, Default)]
struct OpenBlock {
    bytes: Vec<u8>,
    /// Of removed keys, not of records.
    is_removed: bool,
    pool: Arc<BlockPool>,
}

impl OpenBlock {
    /// Adds a run, which fits into one block or is one record.
    #[inline(always)]
    fn add(&mut self, is_removed: bool, run: &[u8], table: (TableId, usize), out: &mut Vec<CapturedBlock>) {
        if self.is_removed != is_removed || self.bytes.capacity() - self.bytes.len() < run.len() {
            self.next(is_removed, run.len(), table, out);
        }
        self.bytes.extend_from_slice(run);
    }

    #[cold]
    fn next(&mut self, is_removed: bool, run_bytes: usize, table: (TableId, usize), out: &mut Vec<CapturedBlock>) {
        self.close(table, out);
        self.is_removed = is_removed;
        if self.bytes.capacity() == 0 && run_bytes <= BLOCK_BYTES {
            self.bytes = self.pool.take().unwrap_or_default();
        }
        self.bytes.reserve_exact(run_bytes.max(BLOCK_BYTES));
    }

    fn close(&mut self, (table, value_width): (TableId, usize), out: &mut Vec<CapturedBlock>) {
        if self.bytes.is_empty() {
            return;
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.len() < bytes.capacity() / 2 {
            // It may wait long to be written.
            bytes.shrink_to_fit();
        }
        let bytes = BlockBytes { bytes, pool: Arc::downgrade(&self.pool) };
        let pieces = if self.is_removed { CapturedPieces::Removed(bytes) } else { CapturedPieces::Records(bytes) };
        out.push(CapturedBlock { content: CapturedContent::Point { table, value_width, pieces } });
    }
}

/// What a capture that has begun will hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureKind {
    /// All of the shard.
    Whole,
    /// What has changed since the capture of the version that was asked for.
    Changes,
}

#[derive(Debug)]
pub(super) struct RecordCapture {
    /// Tables that aren't taken yet; the first is being taken.
    point: VecDeque<TableId>,
    /// Those of them that were dropped after the cut.
    dropped: Vec<(TableId, PointTable)>,
    ordered: VecDeque<(TableId, OrderedSnapshot)>,
    /// Tables that were dropped before the cut, of which nothing counts any more.
    gone: Vec<TableId>,
    /// Of the first point table.
    open: OpenBlock,
    open_ordered: SectionWriter,
}

/// What a shard knows of its captures.
#[derive(Debug, Default)]
pub(super) struct RecordCaptures {
    /// The version of the last capture.
    version: Option<u64>,
    /// It was given up.
    is_broken: bool,
    /// Dropped since then.
    gone: Vec<TableId>,
    pub(super) running: Option<RecordCapture>,
}

impl RecordCaptures {
    /// Whether tables that are made note their changes.
    pub(super) fn tracks(&self) -> bool {
        self.version.is_some()
    }
}

impl Shard {
    /// Cuts: what the shard holds now is captured as `version` by [`capture_slice`](Self::capture_slice). It is whole unless the capture
    /// before was that of version `base`, and not too much has changed since.
    ///
    /// A shard with a device is cut by [`cut`](Self::cut).
    pub fn begin_capture(&mut self, version: u64, base: Option<u64>) -> Result<CaptureKind, CheckpointError> {
        if self.store.is_some() {
            return Err(CheckpointError::HasDevice);
        }
        if self.captures.running.is_some() {
            return Err(CheckpointError::InProgress { version: self.captures.version.unwrap_or(version) });
        }
        let follows = base.is_some() && self.captures.version == base && !self.captures.is_broken;
        let is_whole = !follows || self.point.values().any(|t| !t.knows_changes());
        let mut point: Vec<_> = self.point.keys().copied().collect();
        point.sort_unstable();
        for table in self.point.values_mut() {
            let all = table.begin_capture(is_whole);
            debug_assert_eq!(all, is_whole, "each table was asked");
        }
        let mut ordered: Vec<_> = self.ordered.iter().map(|(id, table)| (*id, table.snapshot())).collect();
        ordered.sort_unstable_by_key(|(id, _)| *id);
        let gone = std::mem::take(&mut self.captures.gone);
        (self.captures.version, self.captures.is_broken) = (Some(version), false);
        self.captures.running = Some(RecordCapture {
            point: point.into(),
            dropped: Vec::new(),
            ordered: ordered.into(),
            gone: if is_whole { Vec::new() } else { gone },
            open: OpenBlock::default(),
            open_ordered: SectionWriter::default(),
        });
        Ok(if is_whole { CaptureKind::Whole } else { CaptureKind::Changes })
    }

    /// Whether a capture has begun and isn't taken to its end.
    #[must_use]
    pub fn is_capturing(&self) -> bool {
        self.captures.running.is_some()
    }

    /// Takes about `bytes` more of the capture, and appends blocks that are full to `out`; whether there is more. Takes about ten nanoseconds a
    /// small record: 16 KiB are five microseconds.
    pub fn capture_slice(&mut self, bytes: usize, out: &mut Vec<CapturedBlock>) -> bool {
        let Some(mut running) = self.captures.running.take() else { return false };
        let mut left = bytes.max(1);
        let more = self.capture_some(&mut running, &mut left, out);
        if more {
            self.captures.running = Some(running);
        } else {
            self.retired.extend(running.dropped.into_iter().map(|(_, table)| table));
        }
        more
    }

    /// Gives up what is being captured, about `bytes` of it a call; whether there is more. The next capture will be whole.
    pub fn abandon_capture(&mut self, bytes: usize) -> bool {
        self.captures.is_broken = true;
        self.capture_slice(bytes, &mut Vec::new())
    }

    fn capture_some(&mut self, running: &mut RecordCapture, left: &mut usize, out: &mut Vec<CapturedBlock>) -> bool {
        let of_point =
            |table, value_width, pieces| CapturedBlock { content: CapturedContent::Point { table, value_width, pieces } };
        for id in std::mem::take(&mut running.gone) {
            out.push(of_point(id, 0, CapturedPieces::Cleared));
        }
        while let Some(id) = running.point.front().copied() {
            let open = &mut running.open;
            let dropped = running.dropped.iter_mut().find(|(dropped, _)| *dropped == id).map(|(_, table)| table);
            let Some(table) = dropped.or_else(|| self.point.get_mut(&id)) else {
                running.point.pop_front();
                continue;
            };
            let width = table.value_width();
            let more = table.capture_slice(left, |captured| match captured {
                // Comes before all else of the table.
                Captured::Cleared => out.push(of_point(id, width, CapturedPieces::Cleared)),
                Captured::Removed(keys) => open.add(true, keys, (id, width), out),
                Captured::Records(records) => open.add(false, records, (id, width), out),
            });
            if more {
                return true;
            }
            open.close((id, width), out);
            running.point.pop_front();
            if *left == 0 {
                return true;
            }
        }
        let writer = &mut running.open_ordered;
        let mut close = |writer: &mut SectionWriter| {
            out.push(CapturedBlock { content: CapturedContent::Ordered(writer.finish()) });
        };
        while let Some((id, snapshot)) = running.ordered.front_mut() {
            let before = writer.len();
            let more = snapshot.take_block(|key, value| writer.push(*id, SectionKind::Ordered, 0, 0, key, value));
            *left = left.saturating_sub(writer.len() - before);
            if writer.len() >= BLOCK_BYTES {
                close(writer);
            }
            if !more {
                running.ordered.pop_front();
            }
            if *left == 0 {
                return true;
            }
        }
        if writer.len() > 0 {
            close(writer);
        }
        false
    }

    /// A point table is dropped: what a capture wants of it is kept, and later ones are told.
    pub(super) fn drop_for_captures(&mut self, id: TableId, table: PointTable) -> Option<PointTable> {
        if self.captures.tracks() {
            self.captures.gone.push(id);
        }
        match &mut self.captures.running {
            // A table that was dropped after the cut, made and dropped again, has nothing of the cut.
            Some(running) if running.point.contains(&id) && running.dropped.iter().all(|(dropped, _)| *dropped != id) => {
                running.dropped.push((id, table));
                None
            }
            _ => Some(table),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::HashSet;

    use super::*;
    use crate::ShardOptions;

    #[test]
    fn memory_of_blocks_that_were_written_is_filled_again() {
        let mut shard = Shard::new(ShardOptions { budget_bytes: usize::MAX });
        for key in 0..40_000_u64 {
            shard.point(TableId(1), 8).put(key.wrapping_mul(0x9E37_79B9_7F4A_7C15), &key.to_le_bytes(), &[1; 8]);
        }
        assert_eq!(shard.begin_capture(1, None).unwrap(), CaptureKind::Whole);
        let (mut places, mut blocks, mut out) = (HashSet::new(), 0, Vec::new());
        let mut more = true;
        while more {
            more = shard.capture_slice(4096, &mut out);
            for block in out.drain(..) {
                let CapturedContent::Point { pieces: CapturedPieces::Records(records), .. } = &block.content else {
                    panic!("there are records alone")
                };
                places.insert(records.as_ptr());
                blocks += 1;
            }
        }
        assert!(blocks >= 40_000 * 32 / BLOCK_BYTES && places.len() <= 3, "{blocks} blocks in {} places", places.len());
    }
}
