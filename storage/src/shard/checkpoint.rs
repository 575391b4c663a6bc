//! Checkpoints that a shard's own pages make up (fold-over): at the cut all pages are sealed, then those that aren't durable yet are written,
//! a slice a turn, while the shard goes on at the tail; the manifest that names them comes last.
//!
//! ```text
//! cut ─▶ pages and blocks: write, sync ─▶ manifest under a temporary name: write, sync ─▶ rename ─▶ directory sync = committed
//!   ─▶ manifests beyond those kept: remove, directory sync ─▶ segments that no manifest names and no table uses: remove
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::blocks::{NamedBlock, fits};
use super::manifest::{ManifestDraft, PagesManifest, TableKind, is_temporary, manifest_name, manifest_version, temporary_name};
use super::{Shard, ShardOptions, TableId};
use crate::bugs::{self, Bug};
use crate::checkpoint::CheckpointError;
use crate::device::{Device, DeviceError, DeviceOp, Done};
use crate::directory_kind::{DirectoryKind, foreign_file};
use crate::memory::Account;
use crate::ordered::{NextBlock, OrderedSnapshot};
use crate::point::{PageImage, PointTable, TableLayout};
use crate::store::{PageStore, StoreHandle, StoreOptions, frame_bytes};

/// A slice of a checkpoint writes about this much.
const SLICE_BYTES: usize = 64 << 10;
/// Pages that a slice tells or looks at; dropping one counts as many.
const SLICE_STEPS: usize = 128;
/// Longest note.
const NOTE_BYTES_MAX: usize = 16 << 20;
/// Longest manifest that is read.
const MANIFEST_BYTES_MAX: usize = 1 << 30;

/// Which checkpoint a shard is opened at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenAt {
    /// The newest; it is an error when that can't be read.
    Newest,
    /// This version, knowingly; newer ones are given up with the next checkpoint.
    Version(u64),
}

/// A checkpoint that a shard was opened at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Its version.
    pub version: u64,
    /// What its owner noted with it.
    pub note: Vec<u8>,
}

#[derive(Debug)]
enum Phase {
    Writing,
    /// All is written; durable with this batch.
    Syncing {
        batch: u64,
    },
    /// What is durable is told, page by page.
    Describing {
        draft: ManifestDraft,
        /// Point tables that were told, and whether the next one was begun.
        told: usize,
        is_begun: bool,
    },
    Committing {
        segments: Vec<u32>,
    },
    Cleaning {
        unpin: Vec<u32>,
        /// Point tables whose dead pages were dropped.
        swept: usize,
    },
}

/// A checkpoint that is being written.
#[derive(Debug)]
struct Capture {
    version: u64,
    note: Vec<u8>,
    point: Vec<TableId>,
    ordered: Vec<(TableId, OrderedSnapshot)>,
    phase: Phase,
}

/// What a shard that keeps checkpoints knows of them.
#[derive(Debug)]
pub(super) struct Durable {
    /// Ascending, with the segments that each names.
    versions: VecDeque<(u64, Vec<u32>)>,
    keep: usize,
    /// Newer than the one that was opened; removed with the next commit.
    given_up: Vec<(u64, Vec<u32>)>,
    capture: Option<Capture>,
    /// Tables dropped while a checkpoint was written that has them.
    dropped: Vec<TableId>,
}

impl Shard {
    /// A shard whose checkpoints are its own pages on `device`, opened at one of them; empty when there is none. `keep`: how many are kept,
    /// at least 2.
    pub fn open(
        options: ShardOptions,
        layout: TableLayout,
        mut device: Box<dyn Device + Send>,
        store: StoreOptions,
        keep: usize,
        at: OpenAt,
    ) -> Result<(Self, Option<Recovered>), CheckpointError> {
        let mut shard = Self::within_budget(options, layout)?;
        let mut found = Vec::new();
        if let Done::Files(files) = device.execute(DeviceOp::List)? {
            if let Some((file, holds)) = foreign_file(&files, Some(DirectoryKind::Pages)) {
                return Err(CheckpointError::Foreign { file, holds });
            }
            for (file, _) in files {
                if is_temporary(&file) {
                    device.execute(DeviceOp::Remove { file })?;
                } else if let Some(version) = manifest_version(&file) {
                    found.push(version);
                }
            }
        }
        found.sort_unstable();
        let chosen = match at {
            OpenAt::Newest => found.last().copied(),
            OpenAt::Version(version) if found.contains(&version) => Some(version),
            OpenAt::Version(version) => return Err(CheckpointError::NoSuchVersion { version }),
        };
        let (mut manifest, mut segments, mut versions, mut given_up) = (None, BTreeMap::new(), VecDeque::new(), Vec::new());
        let mut all_known = true;
        for version in found {
            let read = load(&mut *device, version, store.shard);
            let named = match read {
                Ok(read) => {
                    let named = read.segments();
                    if Some(version) == chosen {
                        manifest = Some(read);
                    }
                    named
                }
                // What it names isn't known, so that no segment is superfluous as long as it is there.
                Err(CheckpointError::Damaged { .. } | CheckpointError::Unsupported { .. }) if Some(version) != chosen => {
                    all_known = false;
                    BTreeMap::new()
                }
                // A device that fails now may have it the next time.
                Err(error) => return Err(error),
            };
            for (segment, sectors) in &named {
                let all = segments.entry(*segment).or_insert(0);
                *all = (*all).max(*sectors);
            }
            let named = (version, named.into_keys().collect::<Vec<u32>>());
            if chosen.is_some_and(|chosen| version > chosen) { given_up.push(named) } else { versions.push_back(named) }
        }
        let account = Account::new(Arc::clone(&shard.used_bytes));
        let batch_bytes = store.batch_bytes.min(shard.options.budget_bytes / 16);
        let keep_unnamed = !all_known;
        let mut pages = PageStore::open(device, StoreOptions { batch_bytes, ..store }, account, &segments, keep_unnamed)?;
        for (_, named) in versions.iter().chain(&given_up) {
            pages.pin(named);
        }
        shard.store = Some(StoreHandle::new(pages));
        shard.keeps_tombstones = true;
        let recovered = manifest.as_ref().map(|m| Recovered { version: m.version, note: m.note.clone() });
        if let Some(manifest) = &manifest {
            shard.restore_pages(manifest);
        }
        shard.durable = Some(Durable { versions, keep: keep.max(2), given_up, capture: None, dropped: Vec::new() });
        if let Some(error) = shard.failure() {
            return Err(error.into());
        }
        Ok((shard, recovered))
    }

    /// Puts back what a manifest names. Errors stay in the store.
    fn restore_pages(&mut self, manifest: &PagesManifest) {
        let Some(store) = self.store.clone() else { return };
        for table in &manifest.tables {
            match table.kind {
                TableKind::Point => {
                    self.point(table.id, table.value_width as usize);
                    for page in &table.pages {
                        let limit = self.admitted_bytes() / 2;
                        let keep_in_memory = self.used_bytes() + page.place.bytes() < limit;
                        if let Some(point) = self.point.get_mut(&table.id)
                            && !point.adopt(*page, keep_in_memory)
                        {
                            return;
                        }
                        if self.used_bytes() > limit {
                            self.evict(self.used_bytes() - limit);
                        }
                    }
                    if let Some(point) = self.point.get_mut(&table.id) {
                        point.end_adoption(table.next_number);
                    }
                }
                TableKind::Ordered => {
                    self.blocks.next_number = self.blocks.next_number.max(table.next_number);
                    self.ordered(table.id);
                    let mut last = None;
                    for page in &table.pages {
                        let limit = self.admitted_bytes() / 2;
                        let stays = self.used_bytes() + page.place.bytes() < limit;
                        let block = NamedBlock { table: table.id, number: page.number, place: page.place };
                        if !self.adopt_block(&store, &block, &mut last, stays) {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Versions that have a manifest, ascending.
    #[must_use]
    pub fn versions(&self) -> Vec<u64> {
        self.durable.as_ref().map_or_else(Vec::new, |d| d.versions.iter().map(|(version, _)| *version).collect())
    }

    /// Cuts: what the shard holds now becomes checkpoint `version`, with a note of the owner's. Takes time for the number of tables (and of
    /// 256-block chunks of ordered ones), not for what they hold. [`advance_checkpoint`](Self::advance_checkpoint) writes it.
    ///
    /// Nothing may be pending: an operation that was submitted and isn't done belongs to neither side of the cut.
    pub fn cut(&mut self, version: u64, note: &[u8]) -> Result<(), CheckpointError> {
        if let Some(error) = self.failure() {
            return Err(CheckpointError::Poisoned { because: error.to_string() });
        }
        if self.pending() > 0 {
            return Err(CheckpointError::OperationsPending { count: self.pending() });
        }
        let Some(durable) = &mut self.durable else { return Err(CheckpointError::NotDurable) };
        if let Some(capture) = &durable.capture {
            return Err(CheckpointError::InProgress { version: capture.version });
        }
        let newest = durable.versions.iter().chain(&durable.given_up).map(|(v, _)| *v).max();
        if let Some(newest) = newest.filter(|newest| *newest >= version) {
            return Err(CheckpointError::NotNewer { version, newest });
        }
        if note.len() > NOTE_BYTES_MAX {
            return Err(CheckpointError::NoteTooLong { size_bytes: note.len(), limit_bytes: NOTE_BYTES_MAX });
        }
        if !bugs::is_on(Bug::CaptureIsLate) {
            self.point.values_mut().for_each(PointTable::cut_pages);
        }
        let mut point: Vec<_> = self.point.keys().copied().collect();
        point.sort_unstable();
        let mut ordered: Vec<_> = self.ordered.iter().map(|(id, table)| (*id, table.snapshot())).collect();
        ordered.sort_unstable_by_key(|(id, _)| *id);
        durable.capture = Some(Capture { version, note: note.to_vec(), point, ordered, phase: Phase::Writing });
        Ok(())
    }

    /// One slice of the checkpoint that was cut: never blocks where its device doesn't, and gathers about 64 KiB or gives the device a piece of
    /// 128 KiB at most. `Some(version)` once, when it has become durable: it
    /// survives any crash from then on. After an error the version may or may not be there at the next start, and nothing more is accepted.
    pub fn advance_checkpoint(&mut self) -> Result<Option<u64>, CheckpointError> {
        let Some(store) = self.store.clone() else { return Ok(None) };
        let Some(mut capture) = self.durable.as_mut().and_then(|d| d.capture.take()) else { return Ok(None) };
        let result = self.checkpoint_slice(&store, &mut capture);
        match result {
            Ok(Progress::Goes) => {}
            Ok(Progress::Committed) => {
                let version = capture.version;
                if let Some(durable) = &mut self.durable {
                    durable.capture = Some(capture);
                }
                return Ok(Some(version));
            }
            Ok(Progress::Ended) => return Ok(None),
            Err(e) => {
                if let Some(durable) = &mut self.durable {
                    durable.capture = Some(capture);
                }
                return Err(e);
            }
        }
        if let Some(durable) = &mut self.durable {
            durable.capture = Some(capture);
        }
        Ok(None)
    }

    /// Whether a checkpoint is being written, or what it made superfluous being removed.
    #[must_use]
    pub fn is_checkpointing(&self) -> bool {
        self.durable.as_ref().is_some_and(|d| d.capture.is_some())
    }

    /// Cuts, and stands until the checkpoint is durable and old ones are removed.
    pub fn checkpoint_now(&mut self, version: u64, note: &[u8]) -> Result<(), CheckpointError> {
        self.cut(version, note)?;
        let since = Instant::now();
        while self.is_checkpointing() {
            self.advance_checkpoint()?;
            if let Some(store) = self.store.clone() {
                let mut store = store.lock();
                // Nobody minds that this takes long.
                store.step(true)?;
                store.wait(Duration::from_millis(1));
            }
            self.evict_for_checkpoint();
            if since.elapsed() > Duration::from_secs(600) {
                return Err(CheckpointError::Device(DeviceError::Io {
                    what: format!("checkpoint {version}"),
                    message: "not written within ten minutes".to_owned(),
                }));
            }
        }
        Ok(())
    }

    fn evict_for_checkpoint(&mut self) {
        let over = (self.used_bytes() + SLICE_BYTES * 2).saturating_sub(self.options.budget_bytes / 16 * 15);
        if over > 0 {
            self.evict(over);
        }
    }

    fn checkpoint_slice(&mut self, store: &StoreHandle, capture: &mut Capture) -> Result<Progress, CheckpointError> {
        let has_given = store.lock().step_slice()?;
        match &mut capture.phase {
            // Giving the device a piece takes about as long as gathering one: each has a slice of its own.
            Phase::Writing if has_given => Ok(Progress::Goes),
            Phase::Writing => {
                if bugs::is_on(Bug::CaptureIsLate) {
                    self.point.values_mut().for_each(PointTable::cut_pages);
                }
                if self.write_slice(store, capture) || bugs::is_on(Bug::ManifestFirst) {
                    let batch = store.lock().last_batch();
                    capture.phase = Phase::Syncing { batch };
                }
                Ok(Progress::Goes)
            }
            Phase::Syncing { batch } => {
                if store.lock().durable_batch() < *batch && !bugs::is_on(Bug::ManifestFirst) {
                    return Ok(Progress::Goes);
                }
                let shard = store.lock().options().shard;
                let draft = ManifestDraft::new(capture.version, shard, &capture.note);
                capture.phase = Phase::Describing { draft, told: 0, is_begun: false };
                Ok(Progress::Goes)
            }
            Phase::Describing { draft, told, is_begun } => {
                if self.describe_slice(&capture.point, draft, told, is_begun) {
                    return Ok(Progress::Goes);
                }
                let Phase::Describing { mut draft, .. } = std::mem::replace(&mut capture.phase, Phase::Writing) else {
                    unreachable!("it was so a moment ago")
                };
                self.end_capture(capture, &mut draft);
                let segments = draft.segments();
                if !bugs::is_on(Bug::RemovesPinnedSegments) {
                    store.lock().pin(&segments);
                }
                self.point
                    .iter_mut()
                    .filter(|(id, _)| capture.point.binary_search(id).is_ok())
                    .for_each(|(_, table)| table.end_cut());
                self.drop_kept();
                let mut store = store.lock();
                let (temporary, name) = (temporary_name(capture.version), manifest_name(capture.version));
                store.begin_side(vec![
                    vec![DeviceOp::Create { file: temporary.clone() }],
                    vec![DeviceOp::WriteSync { file: temporary.clone(), offset: 0, data: draft.finish() }],
                    vec![DeviceOp::Rename { from: temporary, to: name }],
                    vec![DeviceOp::SyncDir],
                ]);
                store.step_slice()?;
                capture.phase = Phase::Committing { segments };
                Ok(Progress::Goes)
            }
            Phase::Committing { segments } => {
                if !store.lock().is_side_done() {
                    return Ok(Progress::Goes);
                }
                let segments = std::mem::take(segments);
                let Some(durable) = &mut self.durable else { return Ok(Progress::Ended) };
                durable.versions.push_back((capture.version, segments));
                let mut old = std::mem::take(&mut durable.given_up);
                while durable.versions.len() > durable.keep {
                    old.extend(durable.versions.pop_front());
                }
                let removes = old.iter().map(|(version, _)| DeviceOp::Remove { file: manifest_name(*version) }).collect();
                let unpin = old.into_iter().flat_map(|(_, segments)| segments).collect();
                store.lock().begin_side(vec![removes, vec![DeviceOp::SyncDir]]);
                capture.phase = Phase::Cleaning { unpin, swept: 0 };
                Ok(Progress::Committed)
            }
            Phase::Cleaning { unpin, swept } => {
                let mut steps = SLICE_STEPS;
                while let Some(id) = capture.point.get(*swept) {
                    if self.point.get_mut(id).is_some_and(|table| table.drop_dead(&mut steps)) {
                        return Ok(Progress::Goes);
                    }
                    *swept += 1;
                }
                if !store.lock().is_side_done() {
                    return Ok(Progress::Goes);
                }
                store.lock().unpin(unpin);
                store.lock().step_slice()?;
                Ok(Progress::Ended)
            }
        }
    }

    /// Writes some pages of the checkpoint; whether none is left.
    fn write_slice(&mut self, store: &StoreHandle, capture: &mut Capture) -> bool {
        let mut written = 0;
        for id in &capture.point {
            let Some(table) = self.point.get_mut(id) else { continue };
            while let Some(bytes) = table.next_captured() {
                if written > 0 && written + bytes > SLICE_BYTES {
                    return false;
                }
                // The first page of a slice is written whatever it takes, unless another is on its way.
                let used = self.used_bytes.load(std::sync::atomic::Ordering::Relaxed);
                if used + bytes > self.options.budget_bytes && store.lock().unwritten_bytes() > 0 {
                    return false;
                }
                table.write_next();
                written += bytes;
            }
        }
        for (id, snapshot) in &mut capture.ordered {
            loop {
                let bytes = match snapshot.next_unwritten() {
                    NextBlock::Unwritten(bytes) => bytes,
                    NextBlock::Passed => return false,
                    NextBlock::End => break,
                };
                if written > 0 && written + bytes.len() > SLICE_BYTES {
                    return false;
                }
                let used = self.used_bytes.load(std::sync::atomic::Ordering::Relaxed);
                if used + frame_bytes(bytes.len()) > self.options.budget_bytes && store.lock().unwritten_bytes() > 0 {
                    return false;
                }
                write_block(store, &mut self.blocks.next_number, *id, snapshot, &bytes);
                written += bytes.len();
            }
        }
        true
    }

    /// Writes blocks of ordered tables that a checkpoint waits for, until the store has `wanted` bytes or may have no more; whether no
    /// checkpoint has any, so that others can be written.
    pub(super) fn write_captured_blocks(&mut self, store: &StoreHandle, wanted: usize) -> bool {
        let Some(capture) = self.durable.as_mut().and_then(|durable| durable.capture.as_mut()) else { return true };
        for (id, snapshot) in &mut capture.ordered {
            loop {
                let bytes = match snapshot.next_unwritten() {
                    NextBlock::Unwritten(bytes) => bytes,
                    NextBlock::Passed => return false,
                    NextBlock::End => break,
                };
                let unwritten = store.lock().unwritten_bytes();
                let used = self.used_bytes.load(std::sync::atomic::Ordering::Relaxed);
                if unwritten >= wanted || !fits(self.options.budget_bytes, used, unwritten, frame_bytes(bytes.len())) {
                    return false;
                }
                write_block(store, &mut self.blocks.next_number, *id, snapshot, &bytes);
            }
        }
        true
    }

    /// Tells some pages of point tables; whether there are more.
    fn describe_slice(&mut self, tables: &[TableId], draft: &mut ManifestDraft, told: &mut usize, is_begun: &mut bool) -> bool {
        let mut steps = SLICE_STEPS;
        while let Some(id) = tables.get(*told) {
            if let Some(table) = self.point.get_mut(id) {
                if !std::mem::replace(is_begun, true) {
                    let (width, pages) = (table.value_width() as u32, table.captured_pages_max());
                    draft.begin_table(*id, TableKind::Point, width, table.cut_number(), pages);
                }
                if table.tell_captured(&mut steps, |page| draft.push(page)) {
                    return true;
                }
            }
            (*told, *is_begun) = (*told + 1, false);
        }
        false
    }

    /// Tells the blocks of ordered tables, which the capture gives back.
    fn end_capture(&mut self, capture: &mut Capture, draft: &mut ManifestDraft) {
        let next_block = self.blocks.next_number;
        for (id, snapshot) in capture.ordered.drain(..) {
            let places = snapshot.places();
            draft.begin_table(id, TableKind::Ordered, 0, next_block, places.len());
            places.iter().for_each(|(number, place)| draft.push(&PageImage { number: *number, place: *place }));
            drop(snapshot);
        }
    }

    /// Tables that were dropped while the checkpoint wanted their pages go.
    fn drop_kept(&mut self) {
        let dropped = self.durable.as_mut().map_or_else(Vec::new, |d| std::mem::take(&mut d.dropped));
        for id in dropped {
            if self.point.get(&id).is_some_and(PointTable::is_empty) {
                self.point.remove(&id);
            }
        }
    }

    /// Whether a table's pages are wanted by a checkpoint; it is emptied instead of dropped then.
    pub(super) fn keep_for_checkpoint(&mut self, id: TableId) -> bool {
        let Some(durable) = &mut self.durable else { return false };
        let writing = |c: &Capture| {
            matches!(c.phase, Phase::Writing | Phase::Syncing { .. } | Phase::Describing { .. }) && c.point.contains(&id)
        };
        let wanted = durable.capture.as_ref().is_some_and(writing);
        if wanted {
            durable.dropped.push(id);
        }
        wanted
    }
}

fn write_block(store: &StoreHandle, next_number: &mut u64, table: TableId, snapshot: &mut OrderedSnapshot, bytes: &[u8]) {
    let number = *next_number;
    *next_number += 1;
    let (place, batch) = store.lock().append(table, number, bytes);
    snapshot.written(place, number, batch);
}

enum Progress {
    Goes,
    Committed,
    Ended,
}

pub(super) fn load(device: &mut dyn Device, version: u64, shard: u32) -> Result<PagesManifest, CheckpointError> {
    let file = manifest_name(version);
    let damaged = |because: String| CheckpointError::Damaged { file: file.clone(), because };
    let read = device.execute(DeviceOp::Read { file: file.clone(), offset: 0, len: MANIFEST_BYTES_MAX })?;
    let Done::Data(bytes) = read else { return Err(damaged("it can't be read".to_owned())) };
    let manifest = PagesManifest::decode(&bytes).map_err(|e| CheckpointError::of_file(&file, e))?;
    if (manifest.version, manifest.shard) != (version, shard) {
        return Err(damaged(format!("it is of version {} and shard {}", manifest.version, manifest.shard)));
    }
    Ok(manifest)
}
