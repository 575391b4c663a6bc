//! Sources, operators and sinks for tests of the runtime, and a naive model of what they compute.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use tiderace_engine::batch::{DeltaBatch, Weights};
use tiderace_engine::connect::{
    ChangelogMode, Changes, CoreInit, Rejected, Ring, RowKind, Sink, SinkWriter, Source, SourceBatch, SourceEvent, SourcePoll,
    SourceReader,
};
use tiderace_engine::error::{Code, Diagnostic, Result};
use tiderace_engine::ids::{CoreId, Epoch, NodeId, SplitId};
use tiderace_engine::operators::{EpochMark, OpCx, Operator, Output, PORT_MAIN, Port, Progress, RowPolicy};
use tiderace_engine::runtime::env::VirtualEnv;
use tiderace_engine::runtime::graph::{Graph, Input, NodeSpec, Role, Route, SinkSpec, SourceSpec};
use tiderace_engine::runtime::{Job, JobOptions};
use tiderace_engine::time::WatermarkSpec;
use tiderace_storage::Shard;

/// A row of two numbers.
pub type Pair = (i64, i64);
/// Rows with multiplicities.
pub type ZSet = BTreeMap<Pair, i64>;

pub fn pair_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, false), Field::new("v", DataType::Int64, false)]))
}

/// `k` and an event time.
pub fn timed_schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Microsecond, None);
    Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, false), Field::new("t", time, true)]))
}

pub fn pairs(rows: &[(Pair, i64)]) -> DeltaBatch {
    let column = |f: fn(&Pair) -> i64| Arc::new(rows.iter().map(|(pair, _)| f(pair)).collect::<Int64Array>()) as ArrayRef;
    let batch = RecordBatch::try_new(pair_schema(), vec![column(|p| p.0), column(|p| p.1)]).unwrap();
    DeltaBatch::new(batch, Weights::from_vec(rows.iter().map(|(_, w)| *w).collect()))
}

pub fn timed(rows: &[(i64, Option<i64>)]) -> DeltaBatch {
    let keys: ArrayRef = Arc::new(rows.iter().map(|(k, _)| *k).collect::<Int64Array>());
    let times: ArrayRef = Arc::new(rows.iter().map(|(_, t)| *t).collect::<TimestampMicrosecondArray>());
    DeltaBatch::append(RecordBatch::try_new(timed_schema(), vec![keys, times]).unwrap())
}

pub fn to_pairs(batch: &RecordBatch) -> Vec<Pair> {
    let column = |i: usize| batch.column(i).as_primitive::<Int64Type>().values().to_vec();
    column(0).into_iter().zip(column(1)).collect()
}

pub fn add(set: &mut ZSet, pair: Pair, weight: i64) {
    let sum = set.entry(pair).or_default();
    *sum += weight;
    if *sum == 0 {
        set.remove(&pair);
    }
}

/// One thing that a scripted split does.
#[derive(Clone, Debug)]
pub enum Act {
    Rows(DeltaBatch),
    Reject(Rejected),
    Fail,
    Panic,
}

/// A source whose splits follow a script; split i is read by core i % cores.
#[derive(Clone)]
pub struct Script {
    pub schema: SchemaRef,
    pub splits: Vec<Vec<Act>>,
    pub ring: Ring,
    /// Whether it stays open, idle, behind its script.
    pub stays: bool,
    /// Rows handed out so far.
    pub taken: Arc<AtomicUsize>,
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Script")
    }
}

impl Script {
    pub fn new(splits: Vec<Vec<DeltaBatch>>) -> Self {
        let schema = splits.iter().flatten().next().map_or_else(pair_schema, |batch| batch.rows.schema());
        let splits = splits.into_iter().map(|split| split.into_iter().map(Act::Rows).collect()).collect();
        Self { schema, splits, ring: Ring::Core, stays: false, taken: Arc::default() }
    }

    pub fn acts(splits: Vec<Vec<Act>>) -> Self {
        Self { splits, ..Self::new(Vec::new()) }
    }
}

impl Source for Script {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
    fn is_bounded(&self) -> bool {
        !self.stays
    }
    fn is_append_only(&self) -> bool {
        false
    }
    fn ring(&self) -> Ring {
        self.ring
    }
    fn open(&self, init: CoreInit) -> Result<Box<dyn SourceReader>> {
        let mine = self.splits.iter().enumerate().filter(|(i, _)| i % init.cores == init.core.0 as usize);
        let splits: Vec<(SplitId, VecDeque<Act>)> =
            mine.map(|(i, acts)| (SplitId(i as u32), acts.iter().cloned().collect())).collect();
        let (stays, taken) = (self.stays, self.taken.clone());
        Ok(Box::new(ScriptReader { splits, opened: false, next: 0, stays, taken, held: Vec::new() }))
    }
}

struct ScriptReader {
    splits: Vec<(SplitId, VecDeque<Act>)>,
    opened: bool,
    next: usize,
    stays: bool,
    taken: Arc<AtomicUsize>,
    held: Vec<SplitId>,
}

impl SourceReader for ScriptReader {
    fn hold(&mut self, splits: &[SplitId]) {
        self.held = splits.to_vec();
    }

    fn poll(&mut self, _rows_max: usize, out: &mut Vec<SourceEvent>) -> Result<SourcePoll> {
        if !std::mem::replace(&mut self.opened, true) {
            out.extend(self.splits.iter().map(|(split, _)| SourceEvent::SplitOpened(*split)));
        }
        if self.splits.is_empty() {
            return Ok(if self.stays { SourcePoll::Idle } else { SourcePoll::Finished });
        }
        let count = self.splits.len();
        let places = (1..=count).map(|step| (self.next + step) % count);
        let Some(next) = places.into_iter().find(|at| !self.held.contains(&self.splits[*at].0)) else {
            return Ok(SourcePoll::Idle);
        };
        self.next = next;
        let (split, acts) = &mut self.splits[self.next];
        let split = *split;
        let mut batch =
            SourceBatch { split, rows: RecordBatch::new_empty(pair_schema()), weights: Weights::Ones(0), rejected: Vec::new() };
        match acts.pop_front() {
            Some(Act::Rows(rows)) => (batch.rows, batch.weights) = (rows.rows, rows.weights),
            Some(Act::Reject(bad)) => batch.rejected.push(bad),
            Some(Act::Fail) => return Err(Diagnostic::new(Code::SourceUnavailable, "the reader failed")),
            Some(Act::Panic) => panic!("the reader panicked"),
            None if self.stays => return Ok(SourcePoll::Idle),
            None => {
                self.splits.remove(self.next);
                out.push(SourceEvent::SplitFinished(split));
                return Ok(if self.splits.is_empty() { SourcePoll::Finished } else { SourcePoll::More });
            }
        }
        self.taken.fetch_add(batch.rows.num_rows(), Ordering::SeqCst);
        out.push(SourceEvent::Rows(batch));
        Ok(SourcePoll::More)
    }
}

/// A source that never ends: pairs (n % 1000, 1), in batches of 1024.
#[derive(Debug, Clone)]
pub struct Endless {
    pub ring: Ring,
    pub taken: Arc<AtomicUsize>,
}

impl Endless {
    pub fn new(ring: Ring) -> Self {
        Self { ring, taken: Arc::default() }
    }
}

impl Source for Endless {
    fn schema(&self) -> SchemaRef {
        pair_schema()
    }
    fn is_bounded(&self) -> bool {
        false
    }
    fn is_append_only(&self) -> bool {
        true
    }
    fn ring(&self) -> Ring {
        self.ring
    }
    fn open(&self, init: CoreInit) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(EndlessReader { split: SplitId(u32::from(init.core.0)), opened: false, taken: self.taken.clone() }))
    }
}

struct EndlessReader {
    split: SplitId,
    opened: bool,
    taken: Arc<AtomicUsize>,
}

impl SourceReader for EndlessReader {
    fn poll(&mut self, _rows_max: usize, out: &mut Vec<SourceEvent>) -> Result<SourcePoll> {
        if !std::mem::replace(&mut self.opened, true) {
            out.push(SourceEvent::SplitOpened(self.split));
        }
        let rows: Vec<(Pair, i64)> = (0..1024).map(|n| ((n % 1000, 1), 1)).collect();
        let batch = pairs(&rows);
        self.taken.fetch_add(batch.num_rows(), Ordering::SeqCst);
        out.push(SourceEvent::Rows(SourceBatch {
            split: self.split,
            rows: batch.rows,
            weights: batch.weights,
            rejected: Vec::new(),
        }));
        Ok(SourcePoll::More)
    }
}

/// What came to a sink.
#[derive(Debug, Default)]
pub struct Written {
    pub changes: Vec<(CoreId, Epoch, Changes)>,
    pub finished: usize,
}

/// Shut, it blocks its writers.
#[derive(Debug, Default)]
pub struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub fn shut(&self) {
        *self.shut.lock().unwrap() = true;
    }
    pub fn open(&self) {
        *self.shut.lock().unwrap() = false;
        self.opened.notify_all();
    }
    fn pass(&self) {
        let mut shut = self.shut.lock().unwrap();
        while *shut {
            shut = self.opened.wait(shut).unwrap();
        }
    }
}

/// A sink that keeps what it gets.
#[derive(Debug, Clone)]
pub struct Collect {
    pub ring: Ring,
    pub written: Arc<Mutex<Written>>,
    pub gate: Arc<Gate>,
    /// Fails, or panics, at the first row.
    pub fails: Option<&'static str>,
    /// Keeps only counts.
    pub counts_only: bool,
    pub rows: Arc<AtomicUsize>,
}

impl Collect {
    pub fn new(ring: Ring) -> Self {
        Self { ring, written: Arc::default(), gate: Arc::default(), fails: None, counts_only: false, rows: Arc::default() }
    }

    /// The sum of all changes.
    pub fn state(&self) -> ZSet {
        let mut set = ZSet::new();
        for (_, _, changes) in &self.written.lock().unwrap().changes {
            for (row, pair) in to_pairs(&changes.rows).into_iter().enumerate() {
                let kind = changes.kinds.as_ref().map_or(RowKind::Insert, |kinds| kinds[row]);
                let weight = if matches!(kind, RowKind::Insert | RowKind::UpdateAfter) { 1 } else { -1 };
                add(&mut set, pair, weight);
            }
        }
        set
    }

    pub fn finished(&self) -> usize {
        self.written.lock().unwrap().finished
    }
}

impl Sink for Collect {
    fn accepts(&self, _mode: ChangelogMode) -> bool {
        true
    }
    fn ring(&self) -> Ring {
        self.ring
    }
    fn open(&self, init: CoreInit, _schema: SchemaRef, _mode: ChangelogMode) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(CollectWriter { core: init.core, sink: self.clone(), epoch: Epoch(1) }))
    }
}

struct CollectWriter {
    core: CoreId,
    sink: Collect,
    epoch: Epoch,
}

impl SinkWriter for CollectWriter {
    fn write(&mut self, epoch: Epoch, changes: &Changes) -> Result<()> {
        assert_eq!(epoch, self.epoch, "changes come in the order of epochs");
        self.sink.gate.pass();
        match self.sink.fails {
            Some("panic") => panic!("the writer panicked"),
            Some(_) => return Err(Diagnostic::new(Code::SinkUnavailable, "the writer failed")),
            None => {}
        }
        self.sink.rows.fetch_add(changes.rows.num_rows(), Ordering::SeqCst);
        if !self.sink.counts_only {
            self.sink.written.lock().unwrap().changes.push((self.core, epoch, changes.clone()));
        }
        Ok(())
    }
    fn end_epoch(&mut self, epoch: Epoch) -> Result<()> {
        assert_eq!(epoch, self.epoch, "each epoch ends once");
        self.epoch = epoch.next();
        Ok(())
    }
    fn finish(&mut self) -> Result<()> {
        self.sink.written.lock().unwrap().finished += 1;
        Ok(())
    }
}

/// Builds graphs.
#[derive(Default)]
pub struct Build {
    pub graph: Graph,
}

impl Build {
    pub fn node(&mut self, name: &str, role: Role, inputs: Vec<Input>, schema: SchemaRef) -> NodeId {
        let id = NodeId(self.graph.nodes.len() as u32);
        self.graph.nodes.push(NodeSpec { id, name: name.to_owned(), role, inputs, policy: RowPolicy::Fail, schema });
        id
    }

    pub fn source(&mut self, name: &str, source: impl Source + 'static, watermark: Option<WatermarkSpec>) -> NodeId {
        let schema = source.schema();
        self.node(name, Role::Source(SourceSpec { source: Arc::new(source), chain: None, watermark }), Vec::new(), schema)
    }

    pub fn operator<O: Operator + 'static>(
        &mut self,
        name: &str,
        inputs: Vec<Input>,
        make: impl Fn(CoreId) -> O + Send + Sync + 'static,
    ) -> NodeId {
        self.node(name, Role::Operator(Arc::new(move |core| Ok(Box::new(make(core))))), inputs, pair_schema())
    }

    pub fn sink(&mut self, name: &str, from: NodeId, sink: &Collect, mode: ChangelogMode, key: Vec<usize>) -> NodeId {
        let schema = self.graph.nodes[from.0 as usize].schema.clone();
        self.node(name, Role::Sink(SinkSpec { sink: Arc::new(sink.clone()), mode, key }), vec![local(from)], schema)
    }

    pub fn policy(&mut self, node: NodeId, policy: RowPolicy) {
        self.graph.nodes[node.0 as usize].policy = policy;
    }
}

pub fn local(from: NodeId) -> Input {
    Input { from, port: PORT_MAIN, route: Route::Local }
}

pub fn hashed(from: NodeId) -> Input {
    Input { from, port: PORT_MAIN, route: Route::Hash(vec![0]) }
}

/// Sums `v` by `k` over rows with weights, and emits changes at marks, in slices.
#[derive(Default)]
pub struct SumByKey {
    groups: BTreeMap<i64, (i64, i64)>,
    emitted: BTreeMap<i64, i64>,
    dirty: std::collections::BTreeSet<i64>,
}

impl Operator for SumByKey {
    fn on_delta(&mut self, _port: Port, batch: DeltaBatch, _cx: &mut OpCx<'_>, _out: &mut Output) -> Result<()> {
        for (row, (k, v)) in to_pairs(&batch.rows).into_iter().enumerate() {
            let weight = batch.weights.get(row);
            let group = self.groups.entry(k).or_default();
            *group = (group.0 + weight, group.1 + v * weight);
            self.dirty.insert(k);
        }
        Ok(())
    }

    fn on_mark(&mut self, _mark: &EpochMark, _cx: &mut OpCx<'_>, out: &mut Output) -> Result<Progress> {
        let mut rows = Vec::new();
        for _ in 0..3 {
            let Some(k) = self.dirty.pop_first() else { break };
            let (n, sum) = self.groups[&k];
            let new = (n != 0).then_some(sum);
            let old = match new {
                Some(new) => self.emitted.insert(k, new),
                None => self.emitted.remove(&k),
            };
            if old != new {
                rows.extend(old.map(|v| ((k, v), -1)));
                rows.extend(new.map(|v| ((k, v), 1)));
            }
        }
        out.emit(PORT_MAIN, pairs(&rows));
        Ok(if self.dirty.is_empty() { Progress::Done } else { Progress::More })
    }
}

/// Maps each row.
pub struct Map(pub fn(Pair) -> Option<Pair>);

impl Operator for Map {
    fn on_delta(&mut self, _port: Port, batch: DeltaBatch, _cx: &mut OpCx<'_>, out: &mut Output) -> Result<()> {
        let rows: Vec<(Pair, i64)> = to_pairs(&batch.rows)
            .into_iter()
            .enumerate()
            .filter_map(|(row, pair)| Some(((self.0)(pair)?, batch.weights.get(row))))
            .collect();
        out.emit(PORT_MAIN, pairs(&rows));
        Ok(())
    }

    fn on_mark(&mut self, _mark: &EpochMark, _cx: &mut OpCx<'_>, _out: &mut Output) -> Result<Progress> {
        Ok(Progress::Done)
    }
}

/// What an operator saw of marks and rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Rows { epoch: u64, watermark: i64, port: Port, rows: Vec<(i64, Option<i64>)> },
    Mark { epoch: u64, watermark: i64, time_us: i64, last: bool },
}

/// Writes down what it sees, and counts rows below the watermark as late.
pub struct Witness {
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

impl Operator for Witness {
    fn on_delta(&mut self, port: Port, batch: DeltaBatch, cx: &mut OpCx<'_>, _out: &mut Output) -> Result<()> {
        let keys = batch.rows.column(0).as_primitive::<Int64Type>().values().to_vec();
        let times = batch.rows.column(1).as_primitive_opt::<arrow::datatypes::TimestampMicrosecondType>();
        let times = (0..keys.len()).map(|row| times.and_then(|times| times.iter().nth(row).flatten()));
        let rows: Vec<(i64, Option<i64>)> = keys.iter().copied().zip(times).collect();
        cx.rows.late += rows.iter().filter(|(_, t)| t.is_some_and(|t| t < cx.watermark.0)).count() as u64;
        self.seen.lock().unwrap().push(Seen::Rows { epoch: cx.epoch.0, watermark: cx.watermark.0, port, rows });
        Ok(())
    }

    fn on_mark(&mut self, mark: &EpochMark, _cx: &mut OpCx<'_>, _out: &mut Output) -> Result<Progress> {
        let EpochMark { epoch, time_us, watermark, last } = *mark;
        self.seen.lock().unwrap().push(Seen::Mark { epoch: epoch.0, watermark: watermark.0, time_us, last });
        Ok(Progress::Done)
    }
}

/// Keeps every row's bytes in the shard.
#[derive(Default)]
pub struct Hoard {
    rows: u64,
}

impl Operator for Hoard {
    fn open(&mut self, shard: &mut Shard) -> Result<()> {
        shard.point(tiderace_storage::TableId(7), 64);
        Ok(())
    }

    fn on_delta(&mut self, _port: Port, batch: DeltaBatch, cx: &mut OpCx<'_>, _out: &mut Output) -> Result<()> {
        let table = cx.shard.point(tiderace_storage::TableId(7), 64);
        for _ in 0..batch.num_rows() {
            self.rows += 1;
            table.put(self.rows.wrapping_mul(0x9E37_79B9_7F4A_7C15), &self.rows.to_le_bytes(), &[0; 64]);
        }
        Ok(())
    }

    fn on_mark(&mut self, _mark: &EpochMark, _cx: &mut OpCx<'_>, _out: &mut Output) -> Result<Progress> {
        Ok(Progress::Done)
    }
}

/// Fails or panics at the first row.
pub struct Faulty(pub bool);

impl Operator for Faulty {
    fn on_delta(&mut self, _port: Port, _batch: DeltaBatch, _cx: &mut OpCx<'_>, _out: &mut Output) -> Result<()> {
        assert!(!self.0, "the operator panicked");
        Err(Diagnostic::new(Code::RowExpression, "the operator failed"))
    }

    fn on_mark(&mut self, _mark: &EpochMark, _cx: &mut OpCx<'_>, _out: &mut Output) -> Result<Progress> {
        Ok(Progress::Done)
    }
}

/// Options for tests: not pinned, short epochs.
pub fn options(cores: usize) -> JobOptions {
    JobOptions { name: "test".to_owned(), cores, pin: false, interval_ms: 5, ..JobOptions::default() }
}

/// The same in virtual time, where epochs end after random numbers of turns.
pub fn seeded(cores: usize, seed: u64) -> JobOptions {
    let env = move |core| Box::new(VirtualEnv::new(0, 20_000, seed, core)) as Box<_>;
    JobOptions { start_us: Some(0), env: Some(Arc::new(env)), poll_rows: 16, exchange_rows: 4, ..options(cores) }
}

/// Waits for `condition`, at most 20 s.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < until, "{what}: not within 20 s");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Waits for the job to end, at most 60 s.
pub fn ended(job: &Job) -> Result<tiderace_engine::runtime::JobReport> {
    let until = Instant::now() + Duration::from_secs(60);
    while !job.is_finished() {
        assert!(Instant::now() < until, "the job hangs: {:#?}", job.progress());
        std::thread::park_timeout(Duration::from_millis(1));
    }
    job.wait()
}
