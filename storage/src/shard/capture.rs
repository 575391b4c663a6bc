//! What a shard in memory held at a cut, in blocks by vnode, taken in slices while the shard goes on.
//!
//! ```text
//! begin_capture ─▶ each table: its bit flips, its lists are swapped; ordered tables are snapshots     O(tables)
//!   ─▶ capture_slice … capture_slice ─▶ CapturedBlock ─▶ CheckpointWriter (another thread's work)
//! ```
//! A capture is whole, or holds what has changed since the one before: then a checkpoint is that one's blocks and these. Ordered tables are
//! captured whole each time. A shard with a store has `cut` instead.

use std::collections::VecDeque;

use super::{Shard, TableId};
use crate::checkpoint::{CheckpointError, Part, SectionKind, SectionWriter, vnode_of};
use crate::ordered::OrderedSnapshot;
use crate::point::{Captured, PointTable};

/// A block is closed when it is at least this long; one record may make it longer.
const BLOCK_BYTES: usize = 64 << 10;

/// A piece of a captured shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedBlock {
    pub(crate) part: Part,
    pub(crate) payload: Vec<u8>,
}

impl CapturedBlock {
    /// Which part of the state it holds.
    #[must_use]
    pub fn part(&self) -> Part {
        self.part
    }

    /// How long it is.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.payload.len()
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
    vnode_count: u32,
    /// Tables that aren't taken yet; the first is being taken.
    point: VecDeque<TableId>,
    /// Those of them that were dropped after the cut.
    dropped: Vec<(TableId, PointTable)>,
    ordered: VecDeque<(TableId, OrderedSnapshot)>,
    /// By vnode; the last is of ordered tables.
    open: Vec<SectionWriter>,
    /// Tables that were dropped before the cut, of which nothing counts any more.
    gone: Vec<TableId>,
    /// Writers below are closed, when all is taken.
    closed: usize,
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
    /// before was that of version `base`, and not too much has changed since. `vnode_count`: 1 to 65 535, always the same.
    ///
    /// A shard with a device is cut by [`cut`](Self::cut).
    pub fn begin_capture(&mut self, version: u64, base: Option<u64>, vnode_count: u32) -> Result<CaptureKind, CheckpointError> {
        assert!((1..=65_535).contains(&vnode_count), "1 to 65535 vnodes");
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
            vnode_count,
            point: point.into(),
            dropped: Vec::new(),
            ordered: ordered.into(),
            open: Vec::new(),
            gone: if is_whole { Vec::new() } else { gone },
            closed: 0,
        });
        Ok(if is_whole { CaptureKind::Whole } else { CaptureKind::Changes })
    }

    /// Whether a capture has begun and isn't taken to its end.
    #[must_use]
    pub fn is_capturing(&self) -> bool {
        self.captures.running.is_some()
    }

    /// Takes about `bytes` more of the capture, and appends blocks that are full to `out`; whether there is more. Takes some ten nanoseconds a
    /// record: 16 KiB are a few microseconds.
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
        let count = running.vnode_count as usize;
        if running.open.is_empty() {
            running.open.resize_with(count + 1, SectionWriter::default);
            for id in std::mem::take(&mut running.gone) {
                running.open[..count].iter_mut().for_each(|w| w.mark(id, 0, SectionKind::Cleared));
            }
        }
        while let Some(id) = running.point.front().copied() {
            let (open, vnodes) = (&mut running.open, running.vnode_count);
            let dropped = running.dropped.iter_mut().find(|(dropped, _)| *dropped == id).map(|(_, table)| table);
            let Some(table) = dropped.or_else(|| self.point.get_mut(&id)) else {
                running.point.pop_front();
                continue;
            };
            let width = table.value_width();
            let more = table.capture_slice(left, |captured| {
                let hash = match captured {
                    Captured::Cleared => {
                        open[..count].iter_mut().for_each(|w| w.mark(id, width, SectionKind::Cleared));
                        return;
                    }
                    Captured::Removed { hash, .. } | Captured::Record { hash, .. } => hash,
                };
                let vnode = vnode_of(hash, vnodes);
                let writer = &mut open[vnode as usize];
                match captured {
                    Captured::Record { key, value, .. } => writer.push(id, SectionKind::Point, width, hash, key, value),
                    Captured::Removed { key, .. } => writer.push(id, SectionKind::Removed, width, hash, key, &[]),
                    Captured::Cleared => {}
                }
                if writer.len() >= BLOCK_BYTES {
                    out.push(CapturedBlock { part: Part::Vnode(vnode), payload: writer.finish() });
                }
            });
            if more {
                return true;
            }
            running.point.pop_front();
            if *left == 0 {
                return true;
            }
        }
        while let Some((id, snapshot)) = running.ordered.front_mut() {
            let writer = &mut running.open[count];
            let before = writer.len();
            let more = snapshot.take_block(|key, value| writer.push(*id, SectionKind::Ordered, 0, 0, key, value));
            *left = left.saturating_sub(writer.len() - before);
            if writer.len() >= BLOCK_BYTES {
                out.push(CapturedBlock { part: Part::Ordered, payload: writer.finish() });
            }
            if !more {
                running.ordered.pop_front();
            }
            if *left == 0 {
                return true;
            }
        }
        while let Some(writer) = running.open.get_mut(running.closed) {
            if writer.len() > 0 {
                *left = left.saturating_sub(writer.len());
                let part = if running.closed == count { Part::Ordered } else { Part::Vnode(running.closed as u32) };
                out.push(CapturedBlock { part, payload: writer.finish() });
            }
            running.closed += 1;
            if *left == 0 && running.closed <= count {
                return true;
            }
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
