//! Pages of a shard's tables on a device: segment files, filled in batches, each durable as a whole.
//!
//! ```text
//! append(page) ─▶ gathering ─▶ [create segments] ─▶ [write pieces] ─▶ [sync each segment, sync directory] ─▶ durable, may be evicted
//! release(place) ─▶ live bytes of its segment − n ─▶ 0, and no manifest names it: file removed
//! ```
//! A batch is gathered, and written, in pieces of [`PIECE_BYTES`], so that who may not stand still gives the device one of them at a time
//! ([`PageStore::step_slice`]); it has one data sync a segment it touches. Any failed write poisons the store: what is durable isn't known
//! then.

mod frame;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};

use crate::device::{Completion, Device, DeviceError, DeviceOp, Done, FileName, Token};
use crate::memory::Account;
pub(crate) use frame::{FrameLabel, FramePlace, frame_bytes, open_frame, segment_name, segment_number};
use frame::{SECTOR_BYTES, push_frame};

/// How long a caller that can't go on without a page waits for a device that says nothing.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Reads on their way at once.
pub(crate) const READS_MAX: usize = 256;
/// Pages are gathered in pieces of at most this, unless one page is longer: what a registered buffer of io_uring holds.
const PIECE_BYTES: usize = 128 << 10;
/// Of so much, and what it is part of, the device is told in one slice.
const SLICE_BYTES: usize = 64 << 10;

/// How a shard uses its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Stands in every page's trailer, so that one shard's pages never pass for another's.
    pub shard: u32,
    /// A segment file that is this long or longer gets no more pages. At most 1 TiB.
    pub segment_bytes: u64,
    /// Pages are written, and made durable, in batches of about this size.
    pub batch_bytes: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { shard: 0, segment_bytes: 64 << 20, batch_bytes: 4 << 20 }
    }
}

/// What goes wrong with a shard's pages on a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A page isn't what was written.
    #[error("{file} at {offset}: the page there is damaged: {because}")]
    Damaged {
        /// The file.
        file: FileName,
        /// Where the page's frame begins.
        offset: u64,
        /// What is wrong.
        because: String,
    },
    /// The shard was written with larger pages than it is opened with.
    #[error(
        "{file} at {offset}: the page there is longer than those of this layout: open the shard with page_bits of {page_bits} or more"
    )]
    PagesTooLong {
        /// The file.
        file: FileName,
        /// Where the page's frame begins.
        offset: u64,
        /// What the layout needs at least for this page.
        page_bits: u32,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A shard with a device needs some pages in memory at once.
    #[error("a budget of {budget_bytes} B is too small for a shard with a device: it needs {least_bytes} B at least")]
    BudgetTooSmall {
        /// What it was given.
        budget_bytes: usize,
        /// What it needs.
        least_bytes: usize,
    },
    /// The directory is of another kind.
    #[error("{file}: the directory holds {holds}: open it as that, or name another")]
    Foreign {
        /// What tells.
        file: FileName,
        /// What is in it.
        holds: &'static str,
    },
    /// An operation that waited will never have room.
    #[error(transparent)]
    BudgetShortfall(#[from] crate::shard::BudgetShortfall),
    /// The device has said nothing for a minute.
    #[error("the device hasn't answered for {seconds} s")]
    Silent {
        /// How long.
        seconds: u64,
    },
}

#[derive(Debug, Default)]
struct Segment {
    sectors: u32,
    live_sectors: u64,
    /// Manifests that name pages in it.
    pins: u32,
    /// Reads of it that are on their way.
    reads: u32,
}

/// Pages that become durable together.
#[derive(Debug, Default)]
struct Batch {
    number: u64,
    /// What is left to do: steps, one after the other, each of operations that go out together. The first is the one that runs; what of it is
    /// on its way isn't in it any more.
    steps: VecDeque<VecDeque<DeviceOp>>,
    on_their_way: HashSet<Token>,
    bytes: usize,
}

/// What is gathered for a segment.
#[derive(Debug, Default)]
struct Gathered {
    /// Whether the file is to be made.
    is_new: bool,
    /// Where in the file they go, and their bytes: one behind the other.
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Batch {
    /// Gives the device what may go out now, until that has come to about `left` bytes, which it counts down; whether all is done.
    fn advance(&mut self, device: &mut dyn Device, left: &mut usize) -> bool {
        while let Some(step) = self.steps.front_mut() {
            while *left > 0
                && let Some(op) = step.pop_front()
            {
                if let DeviceOp::Write { data, .. } | DeviceOp::WriteSync { data, .. } = &op {
                    *left = left.saturating_sub(data.len());
                }
                self.on_their_way.insert(device.submit(op));
            }
            if !step.is_empty() || !self.on_their_way.is_empty() {
                return false;
            }
            self.steps.pop_front();
        }
        self.on_their_way.is_empty()
    }
}

/// Counts of what a shard's store has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Pages written.
    pub pages_written: u64,
    /// Bytes written, with trailers.
    pub bytes_written: u64,
    /// Batches made durable.
    pub batches: u64,
    /// Pages read on request.
    pub pages_read: u64,
    /// Pages read while their user stood and waited.
    pub pages_waited_for: u64,
    /// Segment files removed.
    pub segments_removed: u64,
    /// Pages that compaction has emptied.
    pub pages_compacted: u64,
    /// Those of them that were read from the device for it.
    pub pages_compacted_from_device: u64,
    /// Records and tombstones that compaction has copied to newer pages.
    pub records_compacted: u64,
}

/// A read that has been asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ReadTicket(Token);

#[derive(Debug)]
pub(crate) struct PageStore {
    device: Box<dyn Device + Send>,
    options: StoreOptions,
    segments: BTreeMap<u32, Segment>,
    next_segment: u32,
    /// The segment that is being filled.
    tail: Option<u32>,
    /// The next batch, by segment.
    gathered: BTreeMap<u32, Gathered>,
    gathered_bytes: usize,
    /// The number of the batch that is gathered.
    batch_number: u64,
    writing: Option<Batch>,
    /// Steps beside the pages: a manifest.
    side: Option<Batch>,
    durable_batch: u64,
    reads: HashMap<Token, (FramePlace, FrameLabel)>,
    arrived: HashMap<Token, Result<Vec<u8>, StoreError>>,
    removals: HashSet<Token>,
    failed: Option<StoreError>,
    counts: StoreCounts,
    account: Account,
    arrived_bytes: usize,
}

/// The store of one shard's tables; locked only where a device is about to be asked.
#[derive(Clone, Debug)]
pub(crate) struct StoreHandle(Arc<Mutex<PageStore>>);

impl StoreHandle {
    pub(crate) fn new(store: PageStore) -> Self {
        Self(Arc::new(Mutex::new(store)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, PageStore> {
        // A panic elsewhere leaves the store as consistent as any other interruption: its state is what completions made of it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PageStore {
    /// Opens a device for pages. Segments that `keep` doesn't know are left from before, and removed unless `keep_unnamed`.
    pub(crate) fn open(
        mut device: Box<dyn Device + Send>,
        options: StoreOptions,
        account: Account,
        keep: &BTreeMap<u32, u32>,
        keep_unnamed: bool,
    ) -> Result<Self, StoreError> {
        let mut next_segment = keep.keys().next_back().map_or(0, |last| last + 1);
        if let Done::Files(files) = device.execute(DeviceOp::List)? {
            for (file, _) in files {
                let Some(number) = segment_number(&file) else { continue };
                next_segment = next_segment.max(number.saturating_add(1));
                if !keep_unnamed && !keep.contains_key(&number) {
                    device.execute(DeviceOp::Remove { file })?;
                }
            }
        }
        let segments =
            keep.iter().map(|(number, sectors)| (*number, Segment { sectors: *sectors, ..Segment::default() })).collect();
        Ok(Self {
            device,
            options,
            segments,
            next_segment,
            tail: None,
            gathered: BTreeMap::new(),
            gathered_bytes: 0,
            batch_number: 1,
            writing: None,
            side: None,
            durable_batch: 0,
            reads: HashMap::new(),
            arrived: HashMap::new(),
            removals: HashSet::new(),
            failed: None,
            counts: StoreCounts::default(),
            account,
            arrived_bytes: 0,
        })
    }

    pub(crate) fn options(&self) -> &StoreOptions {
        &self.options
    }

    pub(crate) fn counts(&self) -> StoreCounts {
        self.counts
    }

    /// To note what compaction does.
    pub(crate) fn counts_mut(&mut self) -> &mut StoreCounts {
        &mut self.counts
    }

    /// What made the store useless, if anything did.
    pub(crate) fn failed(&self) -> Option<&StoreError> {
        self.failed.as_ref()
    }

    pub(crate) fn fail(&mut self, error: StoreError) {
        self.failed.get_or_insert(error);
    }

    fn settle(&mut self) {
        let writing = self.writing.as_ref().map_or(0, |b| b.bytes);
        let reading: usize = self.reads.values().map(|(place, _)| place.bytes()).sum();
        self.account.settle(self.gathered_bytes + writing + reading + self.arrived_bytes);
    }

    /// Bytes that are gathered or on their way to the device.
    pub(crate) fn unwritten_bytes(&self) -> usize {
        self.gathered_bytes + self.writing.as_ref().map_or(0, |b| b.bytes)
    }

    // === pages to the device

    /// Adds a page to the batch that is gathered: where it will be, and in which batch.
    pub(crate) fn append(&mut self, table: crate::shard::TableId, page_number: u64, page: &[u8]) -> (FramePlace, u64) {
        let sectors_max = (self.options.segment_bytes / SECTOR_BYTES as u64).min(u64::from(u32::MAX / 2)) as u32;
        let tail = match self.tail {
            Some(tail) if self.segments.get(&tail).is_some_and(|s| s.sectors < sectors_max) => tail,
            _ => {
                let tail = self.next_segment;
                self.next_segment += 1;
                self.segments.insert(tail, Segment::default());
                self.gathered.insert(tail, Gathered { is_new: true, ..Gathered::default() });
                self.tail = Some(tail);
                tail
            }
        };
        let segment = self.segments.entry(tail).or_default();
        let sector = segment.sectors;
        let needed = frame_bytes(page.len());
        let pieces = &mut self.gathered.entry(tail).or_default().pieces;
        if pieces.last().is_none_or(|(_, bytes)| bytes.len() + needed > PIECE_BYTES) {
            // Made as long as it will be: it isn't copied while it grows.
            let is_alone = 2 * needed > PIECE_BYTES;
            let room = if is_alone { needed } else { PIECE_BYTES.min(self.options.batch_bytes).max(needed) };
            pieces.push((u64::from(sector) * SECTOR_BYTES as u64, Vec::with_capacity(room)));
        }
        let Some((_, bytes)) = pieces.last_mut() else { unreachable!("there is one: the last that was pushed") };
        let before = bytes.len();
        let label = FrameLabel { shard: self.options.shard, table, page: page_number };
        let place = push_frame(bytes, &label, page, tail, sector);
        let added = bytes.len() - before;
        segment.sectors += place.sectors;
        segment.live_sectors += u64::from(place.sectors);
        self.gathered_bytes += added;
        self.counts.pages_written += 1;
        self.counts.bytes_written += added as u64;
        self.settle();
        (place, self.batch_number)
    }

    /// All batches up to this number are durable.
    pub(crate) fn durable_batch(&self) -> u64 {
        self.durable_batch
    }

    /// The page isn't needed by the tables any more.
    pub(crate) fn release(&mut self, place: &FramePlace) {
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.live_sectors = segment.live_sectors.saturating_sub(u64::from(place.sectors));
        }
    }

    /// Counts a page in that recovery has found: it is live.
    pub(crate) fn adopt(&mut self, place: &FramePlace) {
        let segment = self.segments.entry(place.segment).or_default();
        segment.live_sectors += u64::from(place.sectors);
        segment.sectors = segment.sectors.max(place.sector + place.sectors);
    }

    /// A manifest names pages of these segments.
    pub(crate) fn pin(&mut self, segments: &[u32]) {
        for number in segments {
            self.segments.entry(*number).or_default().pins += 1;
        }
    }

    /// A manifest that named pages of these segments is durably gone.
    pub(crate) fn unpin(&mut self, segments: &[u32]) {
        for number in segments {
            if let Some(segment) = self.segments.get_mut(number) {
                segment.pins = segment.pins.saturating_sub(1);
            }
        }
    }

    /// Makes a batch to be written of what is gathered, if nothing else is being written and it is a batch (or `all`).
    fn begin_batch(&mut self, all: bool) {
        if self.writing.is_some() || self.gathered.is_empty() || !(all || self.gathered_bytes >= self.options.batch_bytes) {
            return;
        }
        let (mut creates, mut writes, mut syncs) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        for (number, Gathered { is_new, mut pieces }) in std::mem::take(&mut self.gathered) {
            let file = segment_name(number);
            if is_new {
                creates.push_back(DeviceOp::Create { file: file.clone() });
            }
            if pieces.len() == 1
                && let Some((offset, data)) = pieces.pop()
            {
                writes.push_back(DeviceOp::WriteSync { file, offset, data });
            } else if !pieces.is_empty() {
                writes.extend(pieces.into_iter().map(|(offset, data)| DeviceOp::Write { file: file.clone(), offset, data }));
                syncs.push_back(DeviceOp::Sync { file });
            }
        }
        if !creates.is_empty() {
            if syncs.is_empty() { &mut writes } else { &mut syncs }.push_back(DeviceOp::SyncDir);
        }
        let steps = [creates, writes, syncs].into_iter().filter(|s| !s.is_empty()).collect();
        self.writing = Some(Batch {
            number: self.batch_number,
            steps,
            on_their_way: HashSet::new(),
            bytes: std::mem::take(&mut self.gathered_bytes),
        });
        self.batch_number += 1;
    }

    /// Goes on with the batch that is written.
    fn write_on(&mut self, left: &mut usize) {
        if let Some(batch) = &mut self.writing
            && batch.advance(&mut *self.device, left)
        {
            self.durable_batch = batch.number;
            self.counts.batches += 1;
            self.writing = None;
        }
    }

    /// Begins steps beside the pages, one after the other.
    pub(crate) fn begin_side(&mut self, steps: Vec<Vec<DeviceOp>>) {
        debug_assert!(self.side.is_none());
        let steps = steps.into_iter().filter(|s| !s.is_empty()).map(VecDeque::from).collect();
        self.side = Some(Batch { steps, ..Batch::default() });
        self.side_on();
    }

    /// Whether those steps are all done, and durable.
    pub(crate) fn is_side_done(&self) -> bool {
        self.side.is_none() && self.failed.is_none()
    }

    /// Goes on with the steps beside the pages.
    fn side_on(&mut self) {
        let mut left = usize::MAX;
        if let Some(side) = &mut self.side
            && side.advance(&mut *self.device, &mut left)
        {
            self.side = None;
        }
    }

    /// The number of the newest batch that has anything.
    pub(crate) fn last_batch(&self) -> u64 {
        if self.gathered.is_empty() { self.batch_number - 1 } else { self.batch_number }
    }

    /// A page that can be read makes no sense.
    pub(crate) fn fail_page(&mut self, place: &FramePlace, because: &str) {
        self.fail(damaged(place, because.to_owned()));
    }

    /// Takes what the device has done and gives it more to do; never blocks. `all`: a batch that isn't full is begun too.
    pub(crate) fn step(&mut self, all: bool) -> Result<(), StoreError> {
        self.step_bounded(all, if all { usize::MAX } else { SLICE_BYTES }).map(|_| ())
    }

    /// As [`step`](Self::step) of all, but gives the device no more than a piece of what is to be written; whether it gave it any.
    pub(crate) fn step_slice(&mut self) -> Result<bool, StoreError> {
        self.step_bounded(true, SLICE_BYTES)
    }

    fn step_bounded(&mut self, all: bool, limit_bytes: usize) -> Result<bool, StoreError> {
        let mut left = limit_bytes;
        let mut done = Vec::new();
        self.device.poll(&mut done);
        for Completion { token, result } in done {
            if let Some((place, label)) = self.reads.remove(&token) {
                if let Some(segment) = self.segments.get_mut(&place.segment) {
                    segment.reads = segment.reads.saturating_sub(1);
                }
                let page = match result {
                    Ok(Done::Data(bytes)) => open_frame(bytes, &label, &place).map_err(|because| damaged(&place, because)),
                    Ok(_) => Err(damaged(&place, "it can't be read".to_owned())),
                    Err(e) => Err(e.into()),
                };
                self.arrived_bytes += page.as_ref().map_or(0, Vec::len);
                self.arrived.insert(token, page);
            } else if self.removals.remove(&token) {
                // What is left of a segment nobody needs costs space alone, and the next start removes it.
                self.counts.segments_removed += u64::from(result.is_ok());
            } else if let Some(batch) = &mut self.writing
                && batch.on_their_way.remove(&token)
                && let Err(e) = result
            {
                self.failed.get_or_insert(e.into());
            } else if let Some(side) = &mut self.side
                && side.on_their_way.remove(&token)
                && let Err(e) = result
            {
                self.failed.get_or_insert(e.into());
            }
        }
        if self.failed.is_none() {
            self.write_on(&mut left);
            self.side_on();
            if self.writing.is_none() {
                self.begin_batch(all);
                self.write_on(&mut left);
            }
            self.remove_dead();
        }
        self.settle();
        self.failed.clone().map_or(Ok(left < limit_bytes), Err)
    }

    fn remove_dead(&mut self) {
        let dead = |number: &u32, s: &Segment| s.live_sectors == 0 && s.pins == 0 && s.reads == 0 && self.tail != Some(*number);
        let writes = self.writing.is_some();
        let gone: Vec<u32> = self
            .segments
            .iter()
            .filter(|(number, segment)| dead(number, segment) && !writes && !self.gathered.contains_key(*number))
            .map(|(number, _)| *number)
            .collect();
        for number in gone {
            self.segments.remove(&number);
            self.removals.insert(self.device.submit(DeviceOp::Remove { file: segment_name(number) }));
        }
    }

    /// Segments in which less than half lives, if there are many; ascending.
    pub(crate) fn wasteful_segments(&self) -> Vec<u32> {
        let of_use = self.segments.iter().filter(|(number, s)| s.live_sectors > 0 && self.tail != Some(**number));
        let slack = (4 * self.options.segment_bytes) / SECTOR_BYTES as u64;
        let (mut all, mut live, mut wasteful) = (0, 0, Vec::new());
        for (number, segment) in of_use {
            all += u64::from(segment.sectors);
            live += segment.live_sectors;
            if 2 * segment.live_sectors < u64::from(segment.sectors) {
                wasteful.push(*number);
            }
        }
        if all > 2 * live + slack { wasteful } else { Vec::new() }
    }

    /// Blocks until the device has done something, or for so long.
    pub(crate) fn wait(&mut self, timeout: Duration) {
        self.device.wait(timeout);
    }

    /// Whether anything is on its way.
    pub(crate) fn is_busy(&self) -> bool {
        self.writing.is_some() || self.side.is_some() || !self.reads.is_empty() || !self.removals.is_empty()
    }

    fn still_silent(&mut self, since: Instant) -> Result<(), StoreError> {
        if since.elapsed() > SILENCE_MAX {
            let error = StoreError::Silent { seconds: SILENCE_MAX.as_secs() };
            self.fail(error.clone());
            return Err(error);
        }
        Ok(())
    }

    // === pages from the device

    /// Asks for a page; `None` when as many are on their way as may be.
    pub(crate) fn start_read(&mut self, table: crate::shard::TableId, page: u64, place: FramePlace) -> Option<ReadTicket> {
        if self.reads.len() >= READS_MAX {
            return None;
        }
        Some(self.submit_read(table, page, place))
    }

    fn submit_read(&mut self, table: crate::shard::TableId, page: u64, place: FramePlace) -> ReadTicket {
        let file = segment_name(place.segment);
        let token = self.device.submit(DeviceOp::Read { file, offset: place.offset(), len: place.bytes() });
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.reads += 1;
        }
        self.reads.insert(token, (place, FrameLabel { shard: self.options.shard, table, page }));
        self.counts.pages_read += 1;
        self.settle();
        ReadTicket(token)
    }

    /// The page that was asked for, once it is there.
    pub(crate) fn take_read(&mut self, ticket: ReadTicket) -> Option<Result<Vec<u8>, StoreError>> {
        let page = self.arrived.remove(&ticket.0)?;
        self.arrived_bytes -= page.as_ref().map_or(0, Vec::len);
        self.settle();
        Some(page)
    }

    /// Reads a page and waits for it.
    pub(crate) fn read_now(&mut self, table: crate::shard::TableId, page: u64, place: FramePlace) -> Result<Vec<u8>, StoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let ticket = self.submit_read(table, page, place);
        self.counts.pages_waited_for += 1;
        let since = Instant::now();
        loop {
            // A failed write elsewhere doesn't keep this page from being read.
            let _ = self.step(false);
            if let Some(page) = self.take_read(ticket) {
                return page;
            }
            self.still_silent(since)?;
            self.device.wait(Duration::from_millis(10));
        }
    }
}

fn damaged(place: &FramePlace, because: String) -> StoreError {
    StoreError::Damaged { file: segment_name(place.segment), offset: place.offset(), because }
}
