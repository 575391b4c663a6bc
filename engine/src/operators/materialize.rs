//! A materialized view: kept on every core, read from outside at one epoch.
//!
//! ```text
//! ViewHandle::snapshot ── request(epoch e) ──▶ core 0: Materialize ─┐  at its mark of epoch e, in slices
//!        ▲                       └───────────▶ core 1: Materialize ─┤
//!        └──────────────── each core's rows as of e ◀───────────────┘
//! ```
//! A reader names an epoch that no core has ended yet; each core answers when it ends that epoch; one that was already past it says so, and
//! the reader asks again for a later one. Cost: Ring 0 looks at an empty channel once a mark. A request costs one pass over the core's part
//! of the view, decoded in slices of [`SLICE_ROWS`] rows, and holds the mark of that one epoch up for as long; requests for one epoch
//! share it. The answer is a copy: it is charged to the reader, not to the shard. At the last mark the content is copied once more and
//! stays readable as long as a handle lives.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::SchemaRef;
use foldhash::HashMap;
use tiderace_storage::{Shard, TableId};

use super::chain::render_row;
use super::row_weights::{RowCodec, RowWeights};
use super::{EpochMark, OpCx, Operator, Output, PORT_MAIN, Port, Progress, RowAccounts, SLICE_ROWS};
use crate::batch::{DeltaBatch, Weights};
use crate::connect::Rejected;
use crate::error::{Code, Diagnostic, Result};
use crate::ids::{CoreId, Epoch};
use crate::key::{KeyCodec, Keys};

/// How many readers may wait on one core.
const READERS_MAX: usize = 64;
/// The most rows that a snapshot may have; rows of weight n count n times.
const SNAPSHOT_ROWS_MAX: usize = 100_000_000;
/// How many epochs ahead a reader asks at most. It doubles when a core was already past the epoch asked for.
const MARGIN_MAX: u64 = 4096;
/// How long a reader waits before it looks whether the job ended meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A reader's side of a materialized view; cheap to clone, usable from any thread but a pinned core's (it waits).
#[derive(Clone, Debug)]
pub struct ViewHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    schema: SchemaRef,
    cores: OnceLock<usize>,
    parts: Mutex<BTreeMap<CoreId, Part>>,
}

#[derive(Debug)]
struct Part {
    requests: SyncSender<Request>,
    /// The content at the last mark.
    ended: Option<(Epoch, Vec<DeltaBatch>)>,
}

#[derive(Debug)]
struct Request {
    epoch: Epoch,
    answer: SyncSender<Answer>,
}

#[derive(Debug)]
enum Answer {
    Rows(Vec<DeltaBatch>),
    /// The core had ended this epoch already.
    Missed(Epoch),
}

impl ViewHandle {
    /// A view of that name and schema, without content yet.
    #[must_use]
    pub fn new(name: impl Into<String>, schema: SchemaRef) -> Self {
        let parts = Mutex::new(BTreeMap::new());
        Self { shared: Arc::new(Shared { name: name.into(), schema, cores: OnceLock::new(), parts }) }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its columns.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.shared.schema
    }

    /// Tells how many cores keep a part; whoever starts the job says so before it starts the cores. Only the first call counts.
    pub fn start(&self, cores: usize) {
        self.shared.cores.get_or_init(|| cores);
    }

    /// The content at one epoch: the same on all cores, none that was ended before the call (but the last one, after the job's end). A row
    /// of weight n stands n times; order has no meaning. Waits for at most `patience`: a job cuts an epoch each tick, and marks may queue up.
    pub fn snapshot(&self, patience: Duration) -> Result<(Epoch, Vec<RecordBatch>)> {
        let deadline = Instant::now() + patience;
        let mut epoch = Epoch(1);
        let mut margin = 1;
        loop {
            if let Some((epoch, parts)) = self.ended() {
                return Ok((epoch, self.show(parts)?));
            }
            match self.ask(epoch, deadline)? {
                Asked::Answered(parts) => return Ok((epoch, self.show(parts)?)),
                Asked::Missed(latest) => {
                    epoch = Epoch(latest.0 + margin);
                    margin = (margin * 2).min(MARGIN_MAX);
                }
                Asked::Waiting => std::thread::sleep(LOOK_AGAIN.min(deadline.saturating_duration_since(Instant::now()))),
            }
            if Instant::now() >= deadline {
                let message = format!("materialized view `{}` gave no answer within {} ms", self.name(), patience.as_millis());
                return Err(Diagnostic::new(Code::SourceUnavailable, message)
                    .hint("the job may be starting, stalled or stopped; try again"));
            }
        }
    }

    fn parts(&self) -> std::sync::MutexGuard<'_, BTreeMap<CoreId, Part>> {
        // A part is inserted or replaced whole: nothing is half-done after a panic elsewhere.
        self.shared.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The content at the end of the job, when all cores have come to it.
    fn ended(&self) -> Option<(Epoch, Vec<DeltaBatch>)> {
        let parts = self.parts();
        if self.shared.cores.get() != Some(&parts.len()) {
            return None;
        }
        let mut all = Vec::new();
        let mut last = Epoch(0);
        for part in parts.values() {
            let (epoch, batches) = part.ended.as_ref()?;
            last = last.max(*epoch);
            all.extend_from_slice(batches);
        }
        Some((last, all))
    }

    /// The rows of all cores' parts, each as often as its weight says.
    fn show(&self, parts: Vec<DeltaBatch>) -> Result<Vec<RecordBatch>> {
        let internal = |e: arrow::error::ArrowError| Diagnostic::new(Code::Internal, e.to_string());
        let is_negative = |part: &DeltaBatch| matches!(&part.weights, Weights::Signed(w) if w.iter().any(|w| *w < 0));
        let parts = if parts.iter().any(is_negative) { vec![self.net(&parts)?] } else { parts };
        let mut shown = Vec::with_capacity(parts.len());
        let mut rows_all = 0_usize;
        for DeltaBatch { rows, weights } in parts {
            let Weights::Signed(weights) = weights else {
                rows_all += rows.num_rows();
                shown.push(rows);
                continue;
            };
            let mut indices: Vec<u32> = Vec::with_capacity(weights.len());
            for (row, weight) in weights.iter().enumerate() {
                let Ok(times) = usize::try_from(*weight) else {
                    let message =
                        format!("materialized view `{}` has a row {weight} times: {}", self.name(), render_row(&rows, row));
                    return Err(
                        Diagnostic::new(Code::NegativeWeight, message).hint("the input took back a row that was never there")
                    );
                };
                rows_all = rows_all.saturating_add(times);
                if rows_all > SNAPSHOT_ROWS_MAX {
                    let message = format!("materialized view `{}` has more than {SNAPSHOT_ROWS_MAX} rows", self.name());
                    return Err(Diagnostic::new(Code::MemoryExceeded, message).hint("aggregate or filter the view"));
                }
                indices.resize(indices.len() + times, row as u32);
            }
            shown.push(take_record_batch(&rows, &UInt32Array::from(indices)).map_err(internal)?);
        }
        Ok(shown)
    }

    /// One batch with the net weight of each row: a row may be taken back on another core than it was brought to.
    fn net(&self, parts: &[DeltaBatch]) -> Result<DeltaBatch> {
        let mut codec = RowCodec::new(self.schema())?;
        let mut net: HashMap<Vec<u8>, i64> = HashMap::default();
        let mut keys = Keys::default();
        for part in parts {
            codec.encode(&part.rows, &mut keys)?;
            for row in 0..part.num_rows() {
                let weight = net.entry(keys.as_batch().key(row).to_vec()).or_default();
                *weight = weight.saturating_add(part.weights.get(row));
            }
        }
        net.retain(|_, weight| *weight != 0);
        let rows: Vec<(&[u8], i64)> = net.iter().map(|(row, weight)| (row.as_slice(), *weight)).collect();
        let batch = codec.decode(rows.iter().map(|(row, _)| *row))?;
        Ok(DeltaBatch::new(batch, Weights::from_vec(rows.iter().map(|(_, weight)| *weight).collect())))
    }

    fn ask(&self, epoch: Epoch, deadline: Instant) -> Result<Asked> {
        let (cores, answers) = {
            let parts = self.parts();
            if self.shared.cores.get() != Some(&parts.len()) {
                return Ok(Asked::Waiting);
            }
            // One answer a core: sending never waits.
            let (answer, answers) = sync_channel(parts.len());
            for part in parts.values() {
                match part.requests.try_send(Request { epoch, answer: answer.clone() }) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_)) => {
                        let message = format!("materialized view `{}` has more than {READERS_MAX} readers waiting", self.name());
                        return Err(Diagnostic::new(Code::SourceUnavailable, message).hint("try again"));
                    }
                    // This core is through: its last content is there, or soon will be.
                    Err(TrySendError::Disconnected(_)) => return Ok(Asked::Waiting),
                }
            }
            (parts.len(), answers)
        };
        let mut batches = Vec::new();
        let mut missed = None;
        for _ in 0..cores {
            loop {
                match answers.recv_timeout(LOOK_AGAIN) {
                    Ok(Answer::Rows(rows)) => {
                        batches.extend(rows);
                        break;
                    }
                    Ok(Answer::Missed(latest)) => {
                        missed = missed.max(Some(latest));
                        break;
                    }
                    Err(RecvTimeoutError::Timeout) if Instant::now() < deadline && self.ended().is_none() => {}
                    Err(_) => return Ok(Asked::Waiting),
                }
            }
        }
        Ok(missed.map_or(Asked::Answered(batches), Asked::Missed))
    }
}

enum Asked {
    Answered(Vec<DeltaBatch>),
    /// Some core had ended this epoch already.
    Missed(Epoch),
    /// Not all cores are there, or one ended.
    Waiting,
}

/// Keeps a view as it changes, and answers its readers at marks. All rows go on as they came.
///
/// Without a key the state is each different row with its weight. With one it is the row of each key: an epoch's changes are netted and
/// applied at its mark, a second row of a key is rejected as [`Code::DuplicateKey`], and taking back a row that is not there as
/// [`Code::NegativeWeight`], both under the row policy.
#[derive(Debug)]
pub struct Materialize {
    handle: ViewHandle,
    core: CoreId,
    requests: Receiver<Request>,
    /// The whole content without a key; with one, the changes of this epoch.
    rows: RowWeights,
    keyed: Option<Keyed>,
    waiting: Vec<Request>,
    phase: Phase,
    collected: Vec<DeltaBatch>,
}

#[derive(Debug)]
struct Keyed {
    table: TableId,
    key: KeyCodec,
    row: RowCodec,
    keys: Keys,
    images: Keys,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No mark is being worked on.
    Idle,
    /// Applying what the epoch takes away, from a cursor on.
    Deletes(u64),
    /// Applying what it adds.
    Inserts(u64),
    /// Copying the content for readers.
    Copy(u64),
}

impl Materialize {
    /// One core's part of the view behind `handle`, with state in table `state` and the one after it. `key`: the columns of a declared
    /// primary key; none: any row may stand any number of times.
    pub fn new(handle: &ViewHandle, core: CoreId, key: &[usize], state: TableId) -> Result<Self> {
        let schema = handle.schema();
        let (sender, requests) = sync_channel(READERS_MAX);
        handle.parts().insert(core, Part { requests: sender, ended: None });
        let keyed = if key.is_empty() {
            None
        } else {
            let (keys, images) = (Keys::default(), Keys::default());
            let table = TableId(state.0 + 1);
            Some(Keyed { table, key: KeyCodec::new(schema, key)?, row: RowCodec::new(schema)?, keys, images })
        };
        Ok(Self {
            handle: handle.clone(),
            core,
            requests,
            rows: RowWeights::new(schema, state)?,
            keyed,
            waiting: Vec::new(),
            phase: Phase::Idle,
            collected: Vec::new(),
        })
    }

    /// Takes up new requests and sends those away that come too late.
    fn sort_requests(&mut self, now: Epoch) {
        self.waiting.extend(self.requests.try_iter());
        self.waiting.retain(|request| {
            if request.epoch < now {
                // A reader that gave up doesn't listen any more.
                let _gone = request.answer.try_send(Answer::Missed(now));
            }
            request.epoch >= now
        });
    }

    fn copy(&mut self, cursor: u64, shard: &mut Shard) -> Result<Option<u64>> {
        let (batch, next) = match &self.keyed {
            None => self.rows.scan(shard, cursor, SLICE_ROWS)?,
            Some(keyed) => keyed.scan(shard, cursor, SLICE_ROWS)?,
        };
        if batch.num_rows() > 0 {
            self.collected.push(batch);
        }
        Ok(next)
    }

    fn answer(&mut self, mark: &EpochMark) {
        let content = std::mem::take(&mut self.collected);
        self.waiting.retain(|request| {
            if request.epoch == mark.epoch {
                // A reader that gave up doesn't listen any more.
                let _gone = request.answer.try_send(Answer::Rows(content.clone()));
            }
            request.epoch > mark.epoch
        });
        if mark.last {
            self.waiting.clear();
            if let Some(part) = self.handle.parts().get_mut(&self.core) {
                part.ended = Some((mark.epoch, content));
            }
        }
    }
}

impl Operator for Materialize {
    fn on_delta(&mut self, _port: Port, batch: DeltaBatch, cx: &mut OpCx<'_>, out: &mut Output) -> Result<()> {
        self.rows.add(cx.shard, &batch)?;
        out.emit(PORT_MAIN, batch);
        Ok(())
    }

    fn on_mark(&mut self, mark: &EpochMark, cx: &mut OpCx<'_>, _out: &mut Output) -> Result<Progress> {
        match self.phase {
            Phase::Idle => {
                self.sort_requests(mark.epoch);
                self.phase = if self.keyed.is_some() { Phase::Deletes(0) } else { Phase::Copy(0) };
            }
            Phase::Deletes(cursor) | Phase::Inserts(cursor) => {
                let (changes, next) = self.rows.scan(cx.shard, cursor, SLICE_ROWS)?;
                let deletes = matches!(self.phase, Phase::Deletes(_));
                if let Some(keyed) = &mut self.keyed {
                    keyed.apply(cx.shard, &changes, deletes, cx.rows)?;
                }
                self.phase = match next {
                    Some(next) if deletes => Phase::Deletes(next),
                    Some(next) => Phase::Inserts(next),
                    None if deletes => Phase::Inserts(0),
                    None => {
                        self.rows.clear(cx.shard);
                        Phase::Copy(0)
                    }
                };
                return Ok(Progress::More);
            }
            Phase::Copy(cursor) => {
                if let Some(next) = self.copy(cursor, cx.shard)? {
                    self.phase = Phase::Copy(next);
                    return Ok(Progress::More);
                }
                self.answer(mark);
                self.phase = Phase::Idle;
                return Ok(Progress::Done);
            }
        }
        let wanted = mark.last || self.waiting.iter().any(|request| request.epoch == mark.epoch);
        if self.phase == Phase::Copy(0) && !wanted {
            self.phase = Phase::Idle;
            return Ok(Progress::Done);
        }
        Ok(Progress::More)
    }
}

impl Keyed {
    fn apply(&mut self, shard: &mut Shard, changes: &DeltaBatch, deletes: bool, accounts: &mut RowAccounts) -> Result<()> {
        self.key.encode(&changes.rows, &mut self.keys)?;
        self.row.encode(&changes.rows, &mut self.images)?;
        let table = shard.point(self.table, 0);
        for i in 0..changes.num_rows() {
            let weight = changes.weights.get(i);
            if (weight < 0) != deletes {
                continue;
            }
            let (hash, key, row) = (self.keys.hashes[i], self.keys.as_batch().key(i), self.images.as_batch().key(i));
            let present = table.get(hash, key);
            let (code, message) = if deletes {
                if weight == -1 && present == Some(row) {
                    table.remove(hash, key);
                    continue;
                }
                (Code::NegativeWeight, "a row was taken back that the view does not have")
            } else {
                if weight == 1 && present.is_none() {
                    table.put(hash, key, row);
                    continue;
                }
                (Code::DuplicateKey, "the view has another row of the same primary key")
            };
            let raw = render_row(&changes.rows, i);
            accounts.reject(Rejected { code, message: message.into(), origin: accounts.node.clone(), position: None, raw })?;
        }
        Ok(())
    }

    fn scan(&self, shard: &mut Shard, cursor: u64, rows_max: usize) -> Result<(DeltaBatch, Option<u64>)> {
        let table = shard.point(self.table, 0);
        let mut found = Vec::new();
        let next = table.scan(cursor, rows_max, &mut found);
        Ok((DeltaBatch::append(self.row.decode(found.iter().map(|record| table.value(*record)))?), next))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::atomic::AtomicU64;

    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use tiderace_storage::ShardOptions;

    use super::*;
    use crate::operators::{RowPolicy, Watermark};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, false), Field::new("v", DataType::Int64, true)]))
    }

    fn batch(rows: &[(i64, i64, i64)]) -> DeltaBatch {
        let k = Int64Array::from_iter_values(rows.iter().map(|r| r.0));
        let v = Int64Array::from_iter_values(rows.iter().map(|r| r.1));
        let weights = Weights::from_vec(rows.iter().map(|r| r.2).collect());
        DeltaBatch::new(RecordBatch::try_new(schema(), vec![Arc::new(k), Arc::new(v)]).unwrap(), weights)
    }

    fn content(batches: &[RecordBatch]) -> Vec<(i64, i64)> {
        let mut rows = Vec::new();
        for b in batches {
            let (k, v) = (b.column(0).as_primitive::<Int64Type>(), b.column(1).as_primitive::<Int64Type>());
            rows.extend((0..b.num_rows()).map(|i| (k.value(i), v.value(i))));
        }
        rows.sort_unstable();
        rows
    }

    struct Core {
        operator: Materialize,
        shard: Shard,
        accounts: RowAccounts,
        epoch: Epoch,
        slice_rows: usize,
    }

    impl Core {
        fn new(handle: &ViewHandle, core: u16, key: &[usize]) -> Self {
            let operator = Materialize::new(handle, CoreId(core), key, TableId(10)).unwrap();
            let accounts = RowAccounts { policy: RowPolicy::Skip, ..RowAccounts::default() };
            Self { operator, shard: Shard::new(ShardOptions { budget_bytes: 1 << 30 }), accounts, epoch: Epoch(0), slice_rows: 0 }
        }

        fn epoch(&mut self, rows: &[(i64, i64, i64)], last: bool) {
            self.epoch = self.epoch.next();
            let mark = EpochMark { epoch: self.epoch, time_us: 0, watermark: Watermark::MIN, last };
            let rows_account = &mut self.accounts;
            let watermark = Watermark::MIN;
            let mut cx = OpCx {
                shard: &mut self.shard,
                core: CoreId(0),
                epoch: self.epoch,
                watermark,
                time_us: 0,
                may_wait: true,
                rows: rows_account,
            };
            let mut out = Output::default();
            if !rows.is_empty() {
                self.operator.on_delta(0, batch(rows), &mut cx, &mut out).unwrap();
                assert_eq!(out.batches.len(), 1, "rows go on");
            }
            while self.operator.on_mark(&mark, &mut cx, &mut out).unwrap() == Progress::More {
                self.slice_rows = self.slice_rows.max(self.operator.collected.last().map_or(0, DeltaBatch::num_rows));
            }
        }
    }

    #[test]
    fn all_cores_answer_for_the_same_epoch_while_they_run_apart() {
        // Both cores insert (e, core) in epoch e: a consistent snapshot has 1..=e of both.
        let handle = ViewHandle::new("v", schema());
        handle.start(2);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        // As the exchange does: no core is more than a few epochs ahead of another.
        let ended = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let cores: Vec<_> = (0..2_u16)
            .map(|id| {
                let mut core = Core::new(&handle, id, &[]);
                let (stop, ended) = (stop.clone(), ended.clone());
                std::thread::spawn(move || {
                    let mut e = 0;
                    loop {
                        e += 1;
                        let last = stop.load(std::sync::atomic::Ordering::SeqCst);
                        core.epoch(&[(e, id.into(), 1)], last);
                        ended[usize::from(id)].store(if last { u64::MAX } else { e as u64 }, std::sync::atomic::Ordering::SeqCst);
                        if last {
                            return e;
                        }
                        while ended[usize::from(1 - id)].load(std::sync::atomic::Ordering::SeqCst).saturating_add(3) < e as u64 {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        for _ in 0..20 {
            let (epoch, batches) = handle.snapshot(PATIENCE).unwrap();
            let expected: Vec<_> = (1..=epoch.0 as i64).flat_map(|e| [(e, 0), (e, 1)]).collect();
            assert_eq!(content(&batches), expected, "epoch {epoch}");
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        let ends: Vec<i64> = cores.into_iter().map(|core| core.join().unwrap()).collect();
        let (_, batches) = handle.snapshot(PATIENCE).unwrap();
        assert_eq!(content(&batches).len() as i64, ends[0] + ends[1], "readable after the end");
    }

    #[test]
    fn a_row_of_weight_n_stands_n_times_and_cancelled_rows_not_at_all() {
        let handle = ViewHandle::new("v", schema());
        handle.start(1);
        let mut core = Core::new(&handle, 0, &[]);
        core.epoch(&[(1, 1, 3), (2, 2, 1)], false);
        core.epoch(&[(1, 1, -1), (2, 2, -1), (3, 3, 1)], true);
        let (epoch, batches) = handle.snapshot(PATIENCE).unwrap();
        assert_eq!((epoch, content(&batches)), (Epoch(2), vec![(1, 1), (1, 1), (3, 3)]));
    }

    #[test]
    fn a_row_that_was_never_there_makes_the_snapshot_fail() {
        let handle = ViewHandle::new("v", schema());
        handle.start(1);
        Core::new(&handle, 0, &[]).epoch(&[(1, 1, -1)], true);
        assert_eq!(handle.snapshot(PATIENCE).unwrap_err().code, Code::NegativeWeight);
    }

    #[test]
    fn a_row_taken_back_on_another_core_is_gone() {
        let handle = ViewHandle::new("v", schema());
        handle.start(2);
        Core::new(&handle, 0, &[]).epoch(&[(1, 1, 1), (2, 2, 1)], true);
        Core::new(&handle, 1, &[]).epoch(&[(1, 1, -1), (3, 3, 2)], true);
        assert_eq!(content(&handle.snapshot(PATIENCE).unwrap().1), [(2, 2), (3, 3), (3, 3)]);
    }

    #[test]
    fn a_key_has_one_row_whatever_the_order_of_changes_in_an_epoch() {
        let handle = ViewHandle::new("v", schema());
        handle.start(1);
        let mut core = Core::new(&handle, 0, &[0]);
        core.epoch(&[(1, 10, 1), (2, 20, 1)], false);
        // the new image comes before the old one is taken back
        core.epoch(&[(1, 11, 1), (1, 10, -1), (2, 20, -1)], false);
        core.epoch(&[(1, 12, 1), (9, 90, -1)], true);
        assert_eq!(content(&handle.snapshot(PATIENCE).unwrap().1), [(1, 11)]);
        let mut rejected = core.accounts.rejected.clone();
        rejected.sort_unstable();
        assert_eq!(rejected, [(Code::NegativeWeight, 1), (Code::DuplicateKey, 1)]);
    }

    #[test]
    fn a_large_view_is_copied_in_slices() {
        let handle = ViewHandle::new("v", schema());
        handle.start(1);
        let rows: Vec<_> = (0..SLICE_ROWS as i64 * 4).map(|k| (k, k, 1)).collect();
        for key in [&[][..], &[0]] {
            let mut core = Core::new(&handle, 0, key);
            core.epoch(&rows, true);
            assert_eq!(content(&handle.snapshot(PATIENCE).unwrap().1).len(), rows.len());
            assert!(core.slice_rows <= SLICE_ROWS, "{}", core.slice_rows);
        }
    }

    #[test]
    fn a_reader_of_a_job_that_does_not_run_is_told_so() {
        let handle = ViewHandle::new("v", schema());
        assert_eq!(handle.snapshot(Duration::from_millis(1)).unwrap_err().code, Code::SourceUnavailable);
    }
}
