//! Ring 0: what one core does, over and over, without a lock, a wait or a call that may block.
//!
//! ```text
//! rings ─▶ inboxes ─▶ nodes, the last ones first ─▶ poll sources that have room before them ─▶ end epochs that are due ─▶ (sleep)
//! ```
//! Nodes that are nearer to the sinks run first, one batch at a time, so that what is in hand leaves before more is taken in. A node that
//! answers a mark with [`Progress::More`] gets its next slice in the next turn: rows, marks and sources go on in between.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};

use super::checkpoint::{Coordinator, CoreCheckpoints, CoreNote, NodeNote};
use super::control::{Control, at_node};
use super::env::Env;
use super::exchange::{Exchange, Links};
use super::graph::{Graph, Role};
use super::inbox::{Inbox, LaneMark};
use super::options::JobOptions;
use super::progress::{CoreProgress, CoreSnapshot, NodeKind, NodeProgress};
use super::sink::SinkStage;
use super::source::{Polled, Reading, Resume, SourceStage};
use super::state::CoreState;
use crate::batch::DeltaBatch;
use crate::connect::{CoreInit, Position, Rejected};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::{CoreId, Epoch, NodeId};
use crate::operators::{
    OpCx, Operator, Output, PORT_MAIN, PORT_REJECTED, Port, Progress, RowAccounts, Watermark, rejected_schema,
};
use crate::time::{DriftGroups, TickSchedule};

/// How many batches and slices a turn handles before rings, sources and the clock are looked at again.
const STEPS_MAX: usize = 32;
/// How many epochs may be in flight on a core; a core that waits for others cuts no more of them ahead.
const EPOCHS_MAX: u64 = 32;
/// For how long a node waits for its state before it goes on and stands at the device: a bound, should memory be too small for what it asked for.
const PATIENCE_US: i64 = 200_000;
/// The longest sleep, µs.
const SLEEP_US_MAX: i64 = 100_000;
/// Beyond this share of the budget sources get a quarter of their room.
const PRESSURE_PERCENT: usize = 80;

enum Stage {
    Source(SourceStage),
    Operator(Box<dyn Operator>),
    Union,
    Sink(SinkStage),
}

impl Stage {
    /// What a sink holds of the running epoch; nothing elsewhere.
    fn netted_bytes(&self) -> usize {
        match self {
            Self::Sink(sink) => sink.netted_bytes(),
            Self::Source(_) | Self::Operator(_) | Self::Union => 0,
        }
    }

    fn kind(&self) -> NodeKind {
        match self {
            Self::Source(_) => NodeKind::Source,
            Self::Operator(_) | Self::Union => NodeKind::Operator,
            Self::Sink(_) => NodeKind::Sink,
        }
    }
}

/// A node on this core.
struct Node {
    name: String,
    stage: Stage,
    accounts: RowAccounts,
    /// The mark that it is working on.
    firing: Option<LaneMark>,
    /// The turn of its last slice.
    sliced: u64,
    /// Rows whose state is on its way from the device.
    held: Option<(Port, DeltaBatch)>,
    /// Since when it waits for state, µs.
    waits_since_us: Option<i64>,
    /// It has completed the last mark.
    done: bool,
    rows_in: u64,
    rows_out: u64,
    bytes_in: u64,
    /// How much the shard grew during its calls.
    state_bytes: i64,
}

/// What a node did in one step.
#[derive(PartialEq, Eq)]
enum Stepped {
    Nothing,
    Worked,
}

/// What a core needs to begin.
pub struct CorePlan {
    /// The dataflow.
    pub graph: Arc<Graph>,
    /// How the job runs.
    pub options: JobOptions,
    /// When epochs end.
    pub schedule: TickSchedule,
    /// Sources that wait for each other.
    pub drift: Arc<DriftGroups>,
    /// Shared with the other threads.
    pub control: Arc<Control>,
    /// The job's checkpoints, and how many epochs there are from one to the next.
    pub checkpoints: Option<(Arc<Coordinator>, u64)>,
}

/// One core of a job.
pub struct Core {
    id: CoreId,
    control: Arc<Control>,
    env: Box<dyn Env>,
    nodes: Vec<Node>,
    inboxes: Vec<Inbox>,
    exchange: Exchange,
    state: CoreState,
    checkpoints: Option<CoreCheckpoints>,
    out: Output,
    /// The node that is being called, for the message when it panics.
    current: usize,
    turn: u64,
    /// What all sinks hold of the running epoch.
    netted_bytes: usize,
    edge_bytes_max: usize,
    poll_rows: usize,
    progress: CoreProgress,
    idle_us: i64,
    started_us: i64,
    /// Sources that could not be polled or cut, for the length of the sleep.
    marks_completed: bool,
}

impl Core {
    /// Opens this core's instance of every node.
    pub fn open(plan: &CorePlan, links: Links, mut env: Box<dyn Env>) -> Result<Self> {
        let id = links.core();
        let (graph, options) = (&plan.graph, &plan.options);
        let init = CoreInit { core: id, cores: options.cores };
        let mut state = CoreState::open(options, id)?;
        let (mut checkpoints, mut found) = (None, None);
        if let Some((coordinator, every)) = &plan.checkpoints {
            let (opened, states) = CoreCheckpoints::open(coordinator, &plan.control, id, &mut state.shard, *every)?;
            (checkpoints, found) = (Some(opened), states);
        }
        let states = found.as_deref();
        if let Some(states) = states
            && !states.iter().map(|state| &state.name).eq(graph.nodes.iter().map(|node| &node.name))
        {
            return Err(Diagnostic::new(Code::CheckpointMismatch, "the checkpoint is of a job with another plan")
                .hint("another build of Tiderace may have made it: go on with that one, or begin anew with another directory"));
        }
        let start_us = plan.schedule.time_us(Epoch(0));
        let mut nodes = Vec::with_capacity(graph.nodes.len());
        let mut drift_index = 0;
        for (at, node) in graph.nodes.iter().enumerate() {
            let saved = states.map(|states| &states[at]);
            let used = state.shard.used_bytes();
            let opened = match &node.role {
                Role::Source(spec) => {
                    let drift =
                        spec.watermark.as_ref().and_then(|watermark| watermark.max_drift.as_ref()).and_then(|(group, us)| {
                            let slot = plan.drift.slot(group, drift_index * options.cores + id.0 as usize, *us);
                            drift_index += 1;
                            slot
                        });
                    let resume = match (&checkpoints, saved) {
                        (None, _) => Resume::Never,
                        (Some(_), None) => Resume::Start,
                        (Some(_), Some(saved)) => Resume::From(saved),
                    };
                    let reading = Reading { poll_rows: options.poll_rows, resume };
                    SourceStage::open(node, spec, init, drift, plan.schedule, &plan.control, reading).map(Stage::Source)
                }
                Role::Operator(factory) => factory(id).and_then(|mut operator| {
                    if let Some(saved) = saved.filter(|saved| !saved.numbers.is_empty()) {
                        operator.restore(&saved.numbers)?;
                    }
                    operator.open(&mut state.shard)?;
                    Ok(Stage::Operator(operator))
                }),
                Role::Union => Ok(Stage::Union),
                Role::Sink(spec) => {
                    let share = plan.checkpoints.as_ref().and_then(|(coordinator, _)| coordinator.share(id, &node.name));
                    SinkStage::open(node, spec, &node.schema, init, &plan.control, share).map(Stage::Sink)
                }
            };
            let stage = opened.map_err(|failure| at_node(failure, role_name(&node.role), &node.name))?;
            nodes.push(Node {
                name: node.name.clone(),
                stage,
                accounts: RowAccounts { policy: node.policy, node: node.name.clone(), ..RowAccounts::default() },
                firing: None,
                sliced: 0,
                held: None,
                waits_since_us: None,
                done: false,
                rows_in: 0,
                rows_out: 0,
                bytes_in: 0,
                state_bytes: state.shard.used_bytes() as i64 - used as i64,
            });
        }
        let (exchange, mut inboxes) = Exchange::new(graph, links, options.max_parallelism, options.exchange_rows, start_us)?;
        for (inbox, saved) in inboxes.iter_mut().zip(states.unwrap_or_default()) {
            if let Some(us) = saved.watermark_us {
                inbox.resume(Watermark(us));
            }
        }
        let started_us = env.now_us();
        Ok(Self {
            id,
            control: plan.control.clone(),
            env,
            nodes,
            inboxes,
            exchange,
            state,
            checkpoints,
            out: Output::default(),
            current: 0,
            netted_bytes: 0,
            turn: 0,
            edge_bytes_max: options.edge_bytes_max,
            poll_rows: options.poll_rows,
            progress: CoreProgress::default(),
            idle_us: 0,
            started_us,
            marks_completed: false,
        })
    }

    /// Notes the CPU that this core was pinned to.
    pub fn pinned(&mut self, cpu: usize) {
        self.progress.cpu = Some(cpu);
    }

    /// The node that was called last: its kind and name.
    pub fn current(&self) -> (&'static str, &str) {
        self.nodes.get(self.current).map_or(("core", ""), |node| (stage_name(&node.stage), &node.name))
    }

    /// Runs until everything is through, or the job is aborted. How far it came is published, however it ends.
    pub fn run(&mut self) -> Result<()> {
        let ran = self.run_turns();
        self.control.clone().publish_last(self.id, |snapshot| self.fill(snapshot));
        ran
    }

    fn run_turns(&mut self) -> Result<()> {
        let mut turn_us = self.env.now_us();
        while !self.control.is_aborted() {
            self.turn += 1;
            let idle_before = self.idle_us;
            let mut worked = self.exchange.pump(&mut self.inboxes);
            worked |= self.run_nodes()?;
            worked |= self.poll_sources(turn_us)?;
            worked |= self.cut_marks(turn_us)?;
            worked |= self.state.turn()?;
            worked |= self.exchange.release_idle(&mut self.inboxes)?;
            worked |= self.go_on_with_checkpoint()?;
            if self.marks_completed {
                self.marks_completed = false;
                self.control.clone().publish(self.id, |snapshot| self.fill(snapshot));
            }
            if self.nodes.iter().any(|node| node.waits_since_us.is_some()) {
                self.state.bring(!worked);
            } else if !worked {
                if self.is_done() && self.checkpoints.as_ref().is_none_or(CoreCheckpoints::is_over) {
                    break;
                }
                self.sleep();
            }
            let now_us = self.env.now_us();
            let busy_us = now_us - turn_us - (self.idle_us - idle_before);
            self.progress.longest_turn = self.progress.longest_turn.max(micros(busy_us));
            turn_us = now_us;
        }
        Ok(())
    }

    fn run_nodes(&mut self) -> Result<bool> {
        let mut steps = 0;
        let mut at = self.nodes.len();
        while at > 0 && steps < STEPS_MAX {
            at -= 1;
            if self.step(at)? == Stepped::Worked {
                steps += 1;
                at = self.exchange.last_reader(at).unwrap_or(at) + 1;
            }
        }
        Ok(steps > 0)
    }

    fn has_room(&mut self, at: usize) -> bool {
        match &mut self.nodes[at].stage {
            Stage::Sink(sink) => sink.has_room(),
            Stage::Source(_) | Stage::Operator(_) | Stage::Union => {
                self.exchange.has_room(at, &self.inboxes, self.edge_bytes_max)
            }
        }
    }

    /// Cuts when all nodes have come to the end of the epoch that is a checkpoint's, and goes on with what was cut. Whether there is more to do.
    fn go_on_with_checkpoint(&mut self) -> Result<bool> {
        let Some(mut checkpoints) = self.checkpoints.take() else { return Ok(false) };
        let worked = self.cut_when_due(&mut checkpoints);
        let more = checkpoints.turn(&mut self.state.shard);
        self.checkpoints = Some(checkpoints);
        Ok(worked? | more)
    }

    fn cut_when_due(&mut self, checkpoints: &mut CoreCheckpoints) -> Result<bool> {
        if checkpoints.has_cut_last() || !checkpoints.may_cut() {
            return Ok(false);
        }
        let mut nodes = self.nodes.iter().zip(&self.inboxes);
        let has_come = nodes.all(|(node, inbox)| {
            let epoch = match &node.stage {
                Stage::Source(source) => source.epoch(),
                Stage::Operator(_) | Stage::Union | Stage::Sink(_) => inbox.epoch(),
            };
            node.done || !checkpoints.allows(epoch)
        });
        if !has_come {
            return Ok(false);
        }
        let is_last = self.nodes.iter().all(|node| node.done);
        if is_last && !self.is_done() {
            return Ok(false);
        }
        let has_finished = || {
            self.nodes.iter().all(|node| match &node.stage {
                Stage::Source(source) => source.has_finished(),
                Stage::Operator(_) | Stage::Union | Stage::Sink(_) => true,
            })
        };
        let last = is_last.then(has_finished);
        let notes = self.nodes.iter().zip(&self.inboxes).map(|(node, inbox)| {
            let (watermark, numbers, position) = match &node.stage {
                Stage::Source(source) => (source.watermark(), Vec::new(), source.position()),
                Stage::Operator(operator) => (inbox.watermark(), operator.save(), Position::new()),
                Stage::Union | Stage::Sink(_) => (inbox.watermark(), Vec::new(), Position::new()),
            };
            NodeNote { name: node.name.clone(), watermark_us: watermark.0, numbers, position }
        });
        let note = CoreNote { records: self.state.shard.records(), nodes: notes.collect() };
        let times = self.nodes.iter().zip(&self.inboxes).map(|(node, inbox)| match &node.stage {
            Stage::Source(source) => source.time_us(),
            Stage::Operator(_) | Stage::Union | Stage::Sink(_) => inbox.time_us(),
        });
        let time_us = times.max().unwrap_or(i64::MIN);
        let version = checkpoints.version();
        checkpoints.cut(&mut self.state.shard, note, time_us, last)?;
        for node in &mut self.nodes {
            if let Stage::Sink(sink) = &mut node.stage {
                sink.prepare(version, is_last, &self.control).map_err(|failure| at_node(failure, "sink", &node.name))?;
            }
        }
        Ok(true)
    }

    /// Whether an epoch is not one of after the next checkpoint.
    fn allows(&self, epoch: Epoch) -> bool {
        self.checkpoints.as_ref().is_none_or(|checkpoints| checkpoints.allows(epoch))
    }

    /// One batch, or one slice of a mark.
    fn step(&mut self, at: usize) -> Result<Stepped> {
        if !self.allows(self.inboxes[at].epoch()) {
            return Ok(Stepped::Nothing);
        }
        let node = &mut self.nodes[at];
        if node.done || node.firing.is_none() && node.held.is_none() && self.inboxes[at].is_empty() {
            return Ok(Stepped::Nothing);
        }
        if let Some((port, batch)) = node.held.take() {
            return self.take_in(at, port, batch);
        }
        let mut stepped = Stepped::Nothing;
        if node.firing.is_none() {
            if self.inboxes[at].take_marks() {
                stepped = Stepped::Worked;
            }
            node.firing = self.inboxes[at].aligned();
        }
        if let Some(mark) = node.firing {
            if node.sliced == self.turn || !self.has_room(at) {
                return Ok(stepped);
            }
            self.fire(at, &mark)?;
            return Ok(if self.nodes[at].waits_since_us.is_some() { stepped } else { Stepped::Worked });
        }
        if !self.inboxes[at].has_rows() || !self.has_room(at) {
            return Ok(stepped);
        }
        let lanes = self.inboxes[at].lanes();
        let start = if lanes > 1 { self.env.choose(lanes) } else { 0 };
        let Some((lane, port, batch, bytes)) = self.inboxes[at].pop(start) else { return Ok(stepped) };
        self.exchange.took(at, lane, bytes);
        let node = &mut self.nodes[at];
        node.rows_in += batch.num_rows() as u64;
        node.bytes_in += bytes as u64;
        self.take_in(at, port, batch)
    }

    /// Gives a node rows, or keeps them until the state that they need has come from the device.
    fn take_in(&mut self, at: usize, port: Port, batch: DeltaBatch) -> Result<Stepped> {
        if self.state.shard.has_device() && matches!(self.nodes[at].stage, Stage::Operator(_)) {
            let prepared = self.call(at, |stage, cx, _| {
                let Stage::Operator(operator) = stage else { return Ok(Progress::Done) };
                Ok(if operator.prepare(port, &batch, cx)? { Progress::Done } else { Progress::Waiting })
            })?;
            if prepared == Progress::Waiting {
                self.nodes[at].held = Some((port, batch));
                return Ok(Stepped::Nothing);
            }
        }
        self.call(at, |stage, cx, out| {
            match stage {
                Stage::Operator(operator) => operator.on_delta(port, batch, cx, out)?,
                Stage::Union => out.emit(PORT_MAIN, batch),
                Stage::Sink(sink) => sink.on_delta(cx.epoch, batch, &cx.rows.node)?,
                Stage::Source(_) => {}
            }
            Ok(Progress::Done)
        })?;
        Ok(Stepped::Worked)
    }

    /// One slice of a mark; when the node is through with it, it goes on.
    fn fire(&mut self, at: usize, mark: &LaneMark) -> Result<()> {
        let progress = self.call(at, |stage, cx, out| match stage {
            Stage::Operator(operator) => operator.on_mark(&mark.mark, cx, out),
            Stage::Sink(sink) => sink.on_mark(&mark.mark, cx.rows),
            Stage::Union | Stage::Source(_) => Ok(Progress::Done),
        })?;
        let node = &mut self.nodes[at];
        match progress {
            Progress::More | Progress::Waiting => node.sliced = self.turn,
            Progress::Done => {
                node.firing = None;
                node.done = mark.mark.last;
                self.inboxes[at].complete(mark);
                self.exchange.mark(at, *mark, &mut self.inboxes)?;
                self.marks_completed = true;
            }
        }
        Ok(())
    }

    /// Calls a node with its context, delivers what it emits, and keeps its accounts.
    fn call(
        &mut self,
        at: usize,
        work: impl FnOnce(&mut Stage, &mut OpCx<'_>, &mut Output) -> Result<Progress>,
    ) -> Result<Progress> {
        self.current = at;
        let (node, inbox) = (&mut self.nodes[at], &self.inboxes[at]);
        let used = self.state.shard.used_bytes() + node.stage.netted_bytes();
        let may_wait = node.waits_since_us.is_none_or(|since_us| self.env.now_us() - since_us < PATIENCE_US);
        let mut cx = OpCx {
            shard: &mut self.state.shard,
            core: self.id,
            epoch: inbox.epoch(),
            watermark: inbox.watermark(),
            time_us: inbox.time_us(),
            may_wait,
            rows: &mut node.accounts,
        };
        let progress = work(&mut node.stage, &mut cx, &mut self.out)
            .map_err(|failure| at_node(failure, stage_name(&node.stage), &node.name))?;
        let change = (self.state.shard.used_bytes() + node.stage.netted_bytes()) as i64 - used as i64;
        node.state_bytes += change;
        if matches!(node.stage, Stage::Sink(_)) {
            self.netted_bytes = self.netted_bytes.saturating_add_signed(change as isize);
        }
        node.waits_since_us = match progress {
            Progress::Waiting => Some(node.waits_since_us.unwrap_or_else(|| self.env.now_us())),
            Progress::Done | Progress::More => None,
        };
        if !self.state.settle(self.netted_bytes)? {
            return Err(self.memory_exceeded());
        }
        self.deliver(at)?;
        Ok(progress)
    }

    fn deliver(&mut self, at: usize) -> Result<()> {
        let mut batches = std::mem::take(&mut self.out.batches);
        for (port, batch) in batches.drain(..) {
            if port == PORT_MAIN {
                self.nodes[at].rows_out += batch.num_rows() as u64;
            }
            self.send(at, port, batch)?;
        }
        self.out.batches = batches;
        if !self.nodes[at].accounts.dead_letters.is_empty() {
            let letters = std::mem::take(&mut self.nodes[at].accounts.dead_letters);
            self.send(at, PORT_REJECTED, rejected_batch(&letters)?)?;
        }
        Ok(())
    }

    fn send(&mut self, at: usize, port: Port, batch: DeltaBatch) -> Result<()> {
        debug_assert!((0..batch.num_rows()).all(|row| batch.weights.get(row) != 0), "no zero weight leaves a node");
        self.exchange.send(at, port, batch, &mut self.inboxes).map_err(|failure| {
            let node = &self.nodes[at];
            at_node(failure, stage_name(&node.stage), &node.name)
        })
    }

    fn memory_exceeded(&mut self) -> Diagnostic {
        self.count_state();
        let (used, budget) = (self.used_bytes(), self.state.shard.budget_bytes());
        let most = self.nodes.iter().max_by_key(|node| node.state_bytes);
        let (name, bytes) = most.map_or(("?", 0), |node| (node.name.as_str(), node.state_bytes));
        Diagnostic::new(
            Code::MemoryExceeded,
            format!("operator `{name}` holds {bytes} of the {used} bytes of state on core {}, which may hold {budget}", self.id),
        )
        .hint(if self.state.shard.has_device() {
            "give the job more memory (`--memory`): the index of its keys, about 13 bytes each, stays there, and so do a batch and its groups"
        } else {
            "give the job more memory (`--memory`) or a directory for what doesn't fit (`--state-dir`), or bound the state by a window or a shorter key"
        })
    }

    /// Where state comes and goes between calls, what a node's calls added up to says nothing of what it holds.
    fn count_state(&mut self) {
        if let Some(bytes) = self.state.bytes_by_node(self.nodes.len()) {
            let operators = self.nodes.iter_mut().zip(bytes).filter(|(node, _)| !matches!(node.stage, Stage::Sink(_)));
            operators.for_each(|(node, bytes)| node.state_bytes = bytes);
        }
    }

    /// What counts against the budget: state, and what sinks hold of the running epoch.
    fn used_bytes(&self) -> usize {
        self.state.shard.used_bytes() + self.netted_bytes
    }

    fn is_under_pressure(&self) -> bool {
        self.used_bytes() / 100 * 100 > self.state.shard.budget_bytes() / 100 * PRESSURE_PERCENT
    }

    fn poll_sources(&mut self, now_us: i64) -> Result<bool> {
        let mut worked = false;
        let stopped = self.control.is_stopped();
        let share = if self.is_under_pressure() { 4 } else { 1 };
        for at in 0..self.nodes.len() {
            let Node { stage: Stage::Source(source), .. } = &mut self.nodes[at] else { continue };
            if source.is_closed() {
                continue;
            }
            if self.checkpoints.as_ref().is_some_and(|checkpoints| !checkpoints.allows(source.epoch())) {
                source.hold_back();
                continue;
            }
            if stopped {
                source.stop();
            }
            if !self.exchange.has_room(at, &self.inboxes, self.edge_bytes_max / share) {
                source.hold_back();
                continue;
            }
            self.current = at;
            let node = &mut self.nodes[at];
            let Stage::Source(source) = &mut node.stage else { continue };
            let polled = source
                .poll(now_us, (self.poll_rows / share).max(1), &mut node.accounts, &mut self.out)
                .map_err(|failure| at_node(failure, "source", &node.name))?;
            if polled == Polled::Some {
                worked = true;
                (node.rows_in, node.bytes_in) = source.read();
                self.deliver(at)?;
            }
        }
        Ok(worked)
    }

    /// The epoch up to which marks may be cut here.
    fn epoch_limit(&self) -> u64 {
        let open = self.nodes.iter().zip(&self.inboxes).filter(|(node, _)| !node.done && !matches!(node.stage, Stage::Source(_)));
        let limit = open.map(|(_, inbox)| inbox.epoch().0).min().map_or(u64::MAX, |running| running + EPOCHS_MAX);
        // The mark of a checkpoint's epoch, and no other before the cut.
        self.checkpoints.as_ref().map_or(limit, |checkpoints| limit.min(checkpoints.at().0 + 1))
    }

    fn cut_marks(&mut self, now_us: i64) -> Result<bool> {
        let mut worked = false;
        for at in 0..self.nodes.len() {
            let Stage::Source(source) = &mut self.nodes[at].stage else { continue };
            if !source.is_due(now_us) {
                continue;
            }
            let limit = self.epoch_limit();
            while let Stage::Source(source) = &mut self.nodes[at].stage
                && source.is_due(now_us)
                && source.epoch().0 < limit
            {
                let mark = source.cut();
                self.nodes[at].done = mark.mark.last;
                self.exchange.mark(at, mark, &mut self.inboxes)?;
                self.marks_completed = true;
                worked = true;
            }
        }
        Ok(worked)
    }

    fn is_done(&mut self) -> bool {
        self.nodes.iter().all(|node| node.done)
            && self.exchange.is_flushed()
            && self.nodes.iter_mut().all(|node| match &mut node.stage {
                Stage::Sink(sink) => sink.flush(),
                Stage::Source(_) | Stage::Operator(_) | Stage::Union => true,
            })
    }

    fn sleep(&mut self) {
        let before_us = self.env.now_us();
        let mut until_us = before_us.saturating_add(SLEEP_US_MAX);
        let limit = self.epoch_limit();
        for node in &self.nodes {
            if let Stage::Source(source) = &node.stage
                && !source.is_closed()
            {
                if source.epoch().0 < limit {
                    until_us = until_us.min(source.due_us());
                }
                until_us = until_us.min(source.retry_at_us().unwrap_or(i64::MAX));
            }
        }
        let Self { env, control, exchange, nodes, inboxes, id, checkpoints, .. } = self;
        let stopped = control.is_stopped();
        let waits = checkpoints.as_ref().is_some_and(CoreCheckpoints::waits);
        let mut ready = || {
            control.is_aborted()
                || waits && checkpoints.as_ref().is_some_and(|checkpoints| !checkpoints.waits())
                || control.is_stopped() != stopped
                || exchange.has_news(inboxes)
                || nodes.iter().any(|node| match &node.stage {
                    Stage::Source(source) => source.has_news(),
                    Stage::Sink(sink) => sink.has_news(),
                    Stage::Operator(_) | Stage::Union => false,
                })
        };
        if until_us > before_us {
            env.park(control.wake(*id), until_us - before_us, &mut ready);
        }
        self.idle_us += self.env.now_us() - before_us;
    }

    fn fill(&mut self, snapshot: &mut CoreSnapshot) {
        let elapsed_us = self.env.now_us() - self.started_us;
        self.progress.idle = micros(self.idle_us);
        self.progress.busy = micros(elapsed_us - self.idle_us);
        self.progress.state_bytes = self.state.shard.used_bytes() as u64;
        self.progress.budget_bytes = self.state.shard.budget_bytes() as u64;
        self.progress.state_io = self.state.io();
        self.count_state();
        snapshot.core.clone_from(&self.progress);
        if snapshot.nodes.is_empty() {
            let names = self.nodes.iter().enumerate();
            snapshot.nodes =
                names.map(|(at, node)| NodeProgress::new(NodeId(at as u32), &node.name, node.stage.kind())).collect();
        }
        for (at, (node, to)) in self.nodes.iter().zip(&mut snapshot.nodes).enumerate() {
            let inbox = &self.inboxes[at];
            (to.rows_in, to.rows_out, to.bytes_in) = (node.rows_in, node.rows_out, node.bytes_in);
            to.late_rows = node.accounts.late;
            if to.rejected != node.accounts.rejected {
                to.rejected.clone_from(&node.accounts.rejected);
                to.last_rejected.clone_from(&node.accounts.last_rejected);
            }
            to.queued_bytes = inbox.queued_bytes() as u64;
            to.outbound_bytes = self.exchange.outbound_bytes(at);
            to.state_bytes = u64::try_from(node.state_bytes).unwrap_or(0);
            let time_us = match &node.stage {
                Stage::Source(source) => {
                    (to.splits_opened, to.splits_finished) = source.split_counts();
                    to.bytes_read = source.bytes_read();
                    (to.epoch, to.watermark, to.ended) = (Epoch(source.epoch().0 - 1), source.watermark(), source.is_closed());
                    source.time_us()
                }
                Stage::Operator(_) | Stage::Union | Stage::Sink(_) => {
                    (to.epoch, to.watermark) = (Epoch(inbox.epoch().0 - 1), inbox.watermark());
                    inbox.time_us()
                }
            };
            if let Stage::Sink(sink) = &node.stage {
                (to.rows_out, to.bytes_out) = sink.written();
                to.state_bytes = sink.held_bytes() as u64;
            }
            let known = to.watermark > crate::operators::Watermark::MIN && to.watermark < crate::operators::Watermark::MAX;
            to.lag_us = known.then(|| time_us.saturating_sub(to.watermark.0));
        }
    }
}

fn micros(us: i64) -> std::time::Duration {
    std::time::Duration::from_micros(u64::try_from(us).unwrap_or(0))
}

fn stage_name(stage: &Stage) -> &'static str {
    match stage {
        Stage::Source(_) => "source",
        Stage::Operator(_) | Stage::Union => "operator",
        Stage::Sink(_) => "sink",
    }
}

fn role_name(role: &Role) -> &'static str {
    match role {
        Role::Source(_) => "source",
        Role::Operator(_) | Role::Union => "operator",
        Role::Sink(_) => "sink",
    }
}

/// Rejected rows as rows of [`rejected_schema`].
fn rejected_batch(letters: &[Rejected]) -> Result<DeltaBatch> {
    let position = |bad: &Rejected| bad.position.map(|at| i64::try_from(at).unwrap_or(i64::MAX));
    let rows = RecordBatch::try_new(
        rejected_schema(),
        vec![
            Arc::new(letters.iter().map(|bad| Some(bad.origin.as_str())).collect::<StringArray>()),
            Arc::new(letters.iter().map(position).collect::<Int64Array>()),
            Arc::new(letters.iter().map(|bad| Some(bad.code.to_string())).collect::<StringArray>()),
            Arc::new(letters.iter().map(|bad| Some(bad.message.as_str())).collect::<StringArray>()),
            Arc::new(letters.iter().map(|bad| Some(bad.raw.as_str())).collect::<StringArray>()),
        ],
    );
    rows.map(DeltaBatch::append).map_err(|e| Diagnostic::new(Code::Internal, format!("rejected rows can't be put together: {e}")))
}
