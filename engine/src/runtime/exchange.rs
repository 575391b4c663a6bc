//! How rows and marks get from a node to the nodes that read it, on this core and on others.
//!
//! ```text
//!            ┌ Local ───────────────────────────────────────────▶ the reader's inbox on this core
//! node ─ edge┤
//!            └ Hash, Single ─ scatter ─ gather ≥ 4096 rows ──┬──▶ the reader's inbox on this core
//!                                                            └──▶ SPSC ring ─▶ the other core ─▶ its reader's inbox
//! ```
//! Rows that wait in an inbox are charged to their lane (edge and sending core), up to a limit: a node runs, and a source is polled, only
//! while all lanes that it writes to are below theirs. Marks are never held back and go out on all edges of a node at once. Therefore no
//! two nodes can wait for each other: a full lane waits for the marks of an earlier epoch on another lane of its node, and of all epochs in
//! flight the earliest finds nobody before it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::compute::concat_batches;
use arrow::error::ArrowError;
use crossbeam_utils::CachePadded;
use rtrb::{Consumer, Producer, RingBuffer};

use super::graph::{Graph, Route};
use super::inbox::{Frame, Inbox, LaneMark};
use super::scatter::{Scatter, Scattered, VnodeMap, gather};
use super::wake::Wake;
use crate::batch::{DeltaBatch, Weights};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::CoreId;
use crate::key::{KeyCodec, Keys};
use crate::operators::{PORT_MAIN, Port};

/// How many frames a ring between two cores holds. What does not fit waits with the sender, within the limit of its lanes.
const RING_FRAMES: usize = 1024;
/// A piece of this size crosses to its core without waiting for more.
const PIECE_BYTES: usize = 256 << 10;

/// A frame on its way to another core; its lane there follows from the edge and the ring that it comes by.
#[derive(Debug)]
pub struct Packet {
    edge: u32,
    frame: Frame,
}

/// Bytes taken out of each lane so far, by edge, sender and receiver: written by the receiver, read by the sender.
#[derive(Debug)]
struct Credits {
    taken: Vec<CachePadded<AtomicU64>>,
    cores: usize,
}

impl Credits {
    fn at(&self, edge: usize, from: usize, to: usize) -> &AtomicU64 {
        &self.taken[(edge * self.cores + from) * self.cores + to]
    }
}

/// One core's ends of the rings to and from the others.
#[derive(Debug)]
pub struct Links {
    core: usize,
    outbound: Vec<Option<Producer<Packet>>>,
    inbound: Vec<Option<Consumer<Packet>>>,
    credits: Arc<Credits>,
    wakes: Arc<[Wake]>,
}

impl Links {
    /// The links of `wakes.len()` cores, in their order, for a graph.
    #[must_use]
    pub fn mesh(graph: &Graph, wakes: &Arc<[Wake]>) -> Vec<Self> {
        let cores = wakes.len();
        let edges: usize = graph.nodes.iter().map(|node| node.inputs.len()).sum();
        let taken = (0..edges * cores * cores).map(|_| CachePadded::new(AtomicU64::new(0))).collect();
        let credits = Arc::new(Credits { taken, cores });
        let mut links: Vec<Self> = (0..cores)
            .map(|core| Self {
                core,
                outbound: (0..cores).map(|_| None).collect(),
                inbound: (0..cores).map(|_| None).collect(),
                credits: credits.clone(),
                wakes: wakes.clone(),
            })
            .collect();
        for from in 0..cores {
            for to in (0..cores).filter(|to| *to != from) {
                let (producer, consumer) = RingBuffer::new(RING_FRAMES);
                links[from].outbound[to] = Some(producer);
                links[to].inbound[from] = Some(consumer);
            }
        }
        links
    }

    /// This core.
    #[must_use]
    pub fn core(&self) -> CoreId {
        CoreId(self.core as u16)
    }

    fn cores(&self) -> usize {
        self.outbound.len()
    }
}

#[derive(Debug)]
enum EdgeRoute {
    Local,
    Hash { columns: Vec<usize>, codec: Option<KeyCodec> },
    Single,
}

/// Pieces for one core that wait until they are worth a frame.
#[derive(Debug, Default)]
struct Gathered {
    pieces: Vec<DeltaBatch>,
    rows: usize,
    bytes: usize,
    /// Bytes sent to that core over this edge so far.
    sent_bytes: u64,
}

#[derive(Debug)]
struct Edge {
    port: Port,
    to: usize,
    /// The reader's first lane of this edge: the only one when local, else that of core 0.
    lane: usize,
    route: EdgeRoute,
    gathered: Vec<Gathered>,
}

/// The edges of a graph as one core uses them.
#[derive(Debug)]
pub struct Exchange {
    links: Links,
    waiting: Vec<VecDeque<Packet>>,
    edges: Vec<Edge>,
    /// Edges by writer.
    outputs: Vec<Vec<usize>>,
    /// For each node, its lanes: the edge, and the core that writes (`None`: this core, over a local edge).
    lanes: Vec<Vec<(usize, Option<usize>)>>,
    map: VnodeMap,
    piece_rows: usize,
    keys: Keys,
    scatter: Scatter,
    /// Lanes to other cores that were found full since the last look, with what had been taken from them then.
    full: Vec<(usize, usize, u64)>,
}

impl Exchange {
    /// The edges of `graph`, and an empty inbox for each node.
    pub fn new(graph: &Graph, links: Links, vnodes: u32, piece_rows: usize, start_us: i64) -> Result<(Self, Vec<Inbox>)> {
        let cores = links.cores();
        let mut edges = Vec::new();
        let mut outputs = vec![Vec::new(); graph.nodes.len()];
        let mut inboxes = Vec::with_capacity(graph.nodes.len());
        let mut node_lanes = Vec::with_capacity(graph.nodes.len());
        for (to, node) in graph.nodes.iter().enumerate() {
            let mut ports = Vec::new();
            let mut lanes = Vec::new();
            for (port, input) in node.inputs.iter().enumerate() {
                let from = input.from.0 as usize;
                if from >= to || node.id.0 as usize != to {
                    return Err(Diagnostic::new(Code::Internal, format!("node `{}` stands before what it reads", node.name)));
                }
                let lane = ports.len();
                let route = match &input.route {
                    Route::Local => EdgeRoute::Local,
                    Route::Single => EdgeRoute::Single,
                    Route::Hash(columns) => {
                        let schema = (input.port == PORT_MAIN).then_some(&graph.nodes[from].schema);
                        let codec = schema.map(|schema| KeyCodec::new(schema, columns)).transpose()?;
                        EdgeRoute::Hash { columns: columns.clone(), codec }
                    }
                };
                match route {
                    EdgeRoute::Local => lanes.push((edges.len(), None)),
                    EdgeRoute::Hash { .. } | EdgeRoute::Single => lanes.extend((0..cores).map(|core| (edges.len(), Some(core)))),
                }
                ports.resize(lanes.len(), port);
                outputs[from].push(edges.len());
                let gathered = (0..cores).map(|_| Gathered::default()).collect();
                edges.push(Edge { port: input.port, to, lane, route, gathered });
            }
            inboxes.push(Inbox::new(ports, start_us));
            node_lanes.push(lanes);
        }
        let exchange = Self {
            waiting: (0..cores).map(|_| VecDeque::new()).collect(),
            map: VnodeMap::even(vnodes, cores),
            links,
            edges,
            outputs,
            lanes: node_lanes,
            piece_rows,
            keys: Keys::default(),
            scatter: Scatter::default(),
            full: Vec::new(),
        };
        Ok((exchange, inboxes))
    }

    /// The greatest number of a node on this core that reads `node`.
    pub fn last_reader(&self, node: usize) -> Option<usize> {
        self.outputs[node].iter().map(|edge| self.edges[*edge].to).max()
    }

    /// Whether every lane that `node` writes to holds less than `bytes_max`.
    pub fn has_room(&mut self, node: usize, inboxes: &[Inbox], bytes_max: usize) -> bool {
        for edge in &self.outputs[node] {
            let spec = &self.edges[*edge];
            let reachable = match spec.route {
                EdgeRoute::Local => {
                    if inboxes[spec.to].lane_bytes(spec.lane) >= bytes_max {
                        return false;
                    }
                    continue;
                }
                EdgeRoute::Single => 1,
                EdgeRoute::Hash { .. } => self.links.cores(),
            };
            for (to, gathered) in spec.gathered.iter().enumerate().take(reachable) {
                if to == self.links.core {
                    if inboxes[spec.to].lane_bytes(spec.lane + to) >= bytes_max {
                        return false;
                    }
                    continue;
                }
                let taken = self.links.credits.at(*edge, self.links.core, to).load(Ordering::Acquire);
                if gathered.sent_bytes - taken >= bytes_max as u64 {
                    self.full.push((*edge, to, taken));
                    return false;
                }
            }
        }
        true
    }

    /// Rows of `node` for all who read `port`; nothing is copied where all rows stay together.
    pub fn send(&mut self, node: usize, port: Port, batch: DeltaBatch, inboxes: &mut [Inbox]) -> Result<()> {
        let mut readers = self.outputs[node]
            .iter()
            .copied()
            .filter(|edge| self.edges[*edge].port == port)
            .collect::<smallvec::SmallVec<[_; 4]>>();
        let last = readers.pop();
        for edge in readers {
            self.send_over(edge, batch.clone(), inboxes)?;
        }
        match last {
            Some(edge) => self.send_over(edge, batch, inboxes),
            None => Ok(()),
        }
    }

    fn send_over(&mut self, edge: usize, batch: DeltaBatch, inboxes: &mut [Inbox]) -> Result<()> {
        let spec = &mut self.edges[edge];
        let cores = self.links.cores();
        match &mut spec.route {
            EdgeRoute::Local => {
                let bytes = batch.charged_bytes();
                inboxes[spec.to].push(spec.lane, Frame::Delta(batch, bytes));
                Ok(())
            }
            EdgeRoute::Single => self.gather_for(edge, 0, batch, inboxes),
            EdgeRoute::Hash { .. } if cores == 1 => self.gather_for(edge, 0, batch, inboxes),
            EdgeRoute::Hash { columns, codec } => {
                let codec = match codec {
                    Some(codec) => codec,
                    None => codec.insert(KeyCodec::new(&batch.rows.schema(), columns)?),
                };
                codec.encode(&batch.rows, &mut self.keys)?;
                match self.scatter.group(&self.keys.hashes, &self.map) {
                    Scattered::Whole(to) => self.gather_for(edge, to, batch, inboxes),
                    Scattered::Parts(rows, starts) => {
                        for to in 0..cores {
                            if starts[to] < starts[to + 1] {
                                let part = gather(&batch, &rows, starts[to], starts[to + 1]).map_err(|e| kernel_failed(&e))?;
                                self.gather_for(edge, to, part, inboxes)?;
                            }
                        }
                        Ok(())
                    }
                }
            }
        }
    }

    /// Keeps a piece until there are enough rows for core `to`.
    fn gather_for(&mut self, edge: usize, to: usize, piece: DeltaBatch, inboxes: &mut [Inbox]) -> Result<()> {
        let bytes = piece.charged_bytes();
        let large = piece.num_rows() >= self.piece_rows || bytes >= PIECE_BYTES;
        if large {
            self.release(edge, to, inboxes)?; // so that the large piece goes as it is, without a copy
        }
        let gathered = &mut self.edges[edge].gathered[to];
        gathered.rows += piece.num_rows();
        gathered.bytes += bytes;
        gathered.pieces.push(piece);
        if gathered.rows >= self.piece_rows || gathered.bytes >= PIECE_BYTES { self.release(edge, to, inboxes) } else { Ok(()) }
    }

    /// Sends what was gathered for core `to`; whether there was anything.
    fn release(&mut self, edge: usize, to: usize, inboxes: &mut [Inbox]) -> Result<()> {
        let spec = &mut self.edges[edge];
        let gathered = &mut spec.gathered[to];
        let Some(batch) = join(&mut gathered.pieces).map_err(|e| kernel_failed(&e))? else { return Ok(()) };
        (gathered.rows, gathered.bytes) = (0, 0);
        let bytes = batch.charged_bytes();
        let frame = Frame::Delta(batch, bytes);
        if to == self.links.core {
            inboxes[spec.to].push(spec.lane + to, frame);
        } else {
            gathered.sent_bytes += bytes as u64;
            self.push(to, Packet { edge: edge as u32, frame });
        }
        Ok(())
    }

    fn push(&mut self, to: usize, packet: Packet) {
        self.waiting[to].push_back(packet);
        self.push_waiting(to);
    }

    fn push_waiting(&mut self, to: usize) -> bool {
        let Some(ring) = &mut self.links.outbound[to] else { return false };
        let mut any = false;
        while let Some(packet) = self.waiting[to].pop_front() {
            if let Err(rtrb::PushError::Full(packet)) = ring.push(packet) {
                self.waiting[to].push_front(packet);
                break;
            }
            any = true;
        }
        if any {
            self.links.wakes[to].notify();
        }
        any
    }

    /// The end of an epoch on all outputs of `node`, behind all its rows.
    pub fn mark(&mut self, node: usize, mark: LaneMark, inboxes: &mut [Inbox]) -> Result<()> {
        for at in 0..self.outputs[node].len() {
            let edge = self.outputs[node][at];
            if matches!(self.edges[edge].route, EdgeRoute::Local) {
                let spec = &self.edges[edge];
                inboxes[spec.to].push(spec.lane, Frame::Mark(mark));
                continue;
            }
            for to in 0..self.links.cores() {
                self.release(edge, to, inboxes)?;
                if to == self.links.core {
                    let spec = &self.edges[edge];
                    inboxes[spec.to].push(spec.lane + to, Frame::Mark(mark));
                } else {
                    self.push(to, Packet { edge: edge as u32, frame: Frame::Mark(mark) });
                }
            }
        }
        Ok(())
    }

    /// Moves frames from the rings into the inboxes, and into the rings what did not fit before; whether anything moved.
    pub fn pump(&mut self, inboxes: &mut [Inbox]) -> bool {
        self.full.clear();
        let mut any = false;
        for from in 0..self.links.cores() {
            any |= !self.waiting[from].is_empty() && self.push_waiting(from);
            let Some(ring) = &mut self.links.inbound[from] else { continue };
            let mut popped = false;
            while let Ok(Packet { edge, frame }) = ring.pop() {
                let spec = &self.edges[edge as usize];
                inboxes[spec.to].push(spec.lane + from, frame);
                popped = true;
            }
            if popped {
                // It may wait for room in the ring.
                self.links.wakes[from].notify();
                any = true;
            }
        }
        any
    }

    /// Sends what was gathered for readers that have nothing else to do; whether there was anything.
    pub fn release_idle(&mut self, inboxes: &mut [Inbox]) -> Result<bool> {
        let mut any = false;
        for edge in 0..self.edges.len() {
            for to in 0..self.links.cores() {
                if self.is_awaited(edge, to, inboxes) {
                    self.release(edge, to, inboxes)?;
                    any = true;
                }
            }
        }
        Ok(any)
    }

    /// Whether something was gathered for a reader that has nothing else to do.
    fn is_awaited(&self, edge: usize, to: usize, inboxes: &[Inbox]) -> bool {
        let spec = &self.edges[edge];
        let gathered = &spec.gathered[to];
        gathered.rows > 0
            && if to == self.links.core {
                inboxes[spec.to].lane_bytes(spec.lane + to) == 0
            } else {
                gathered.sent_bytes == self.links.credits.at(edge, self.links.core, to).load(Ordering::Acquire)
            }
    }

    /// Rows were taken out of a lane of `node`: their sender may send as much again.
    pub fn took(&self, node: usize, lane: usize, bytes: usize) {
        if let (edge, Some(from)) = self.lanes[node][lane]
            && from != self.links.core
        {
            // Only this core writes this counter.
            let taken = self.links.credits.at(edge, from, self.links.core);
            taken.store(taken.load(Ordering::Relaxed) + bytes as u64, Ordering::Release);
            self.links.wakes[from].notify();
        }
    }

    /// Whether another core sent something, made room in its ring, took something from a lane that was found full, or ran out of work.
    pub fn has_news(&self, inboxes: &[Inbox]) -> bool {
        let credits = &self.links.credits;
        self.links.inbound.iter().flatten().any(|ring| !ring.is_empty())
            || self.full.iter().any(|(edge, to, taken)| credits.at(*edge, self.links.core, *to).load(Ordering::Acquire) != *taken)
            || self
                .links
                .outbound
                .iter()
                .zip(&self.waiting)
                .any(|(ring, waiting)| !waiting.is_empty() && ring.as_ref().is_some_and(|ring| !ring.is_full()))
            || (0..self.edges.len()).any(|edge| (0..self.links.cores()).any(|to| self.is_awaited(edge, to, inboxes)))
    }

    /// Whether everything that was sent has left this core.
    pub fn is_flushed(&self) -> bool {
        self.waiting.iter().all(VecDeque::is_empty)
    }

    /// Bytes of `node`'s rows on their way to other cores, gathered pieces included.
    pub fn outbound_bytes(&self, node: usize) -> u64 {
        let edges = self.outputs[node].iter().map(|edge| (*edge, &self.edges[*edge]));
        let pending = |edge: usize, to: usize, gathered: &Gathered| {
            let taken = self.links.credits.at(edge, self.links.core, to).load(Ordering::Relaxed);
            gathered.sent_bytes - taken + gathered.bytes as u64
        };
        edges
            .flat_map(|(edge, spec)| spec.gathered.iter().enumerate().map(move |(to, gathered)| pending(edge, to, gathered)))
            .sum()
    }
}

/// All pieces as one batch; `None` when there is none.
fn join(pieces: &mut Vec<DeltaBatch>) -> Result<Option<DeltaBatch>, ArrowError> {
    if pieces.len() <= 1 {
        return Ok(pieces.pop());
    }
    let rows = concat_batches(&pieces[0].rows.schema(), pieces.iter().map(|piece| &piece.rows))?;
    let weights = if pieces.iter().all(|piece| matches!(piece.weights, Weights::Ones(_))) {
        Weights::Ones(rows.num_rows())
    } else {
        let mut all = Vec::with_capacity(rows.num_rows());
        for piece in pieces.iter() {
            match &piece.weights {
                Weights::Ones(n) => all.resize(all.len() + n, 1),
                Weights::Signed(weights) => all.extend_from_slice(weights),
            }
        }
        Weights::Signed(all.into())
    };
    pieces.clear();
    Ok(Some(DeltaBatch::new(rows, weights)))
}

fn kernel_failed(error: &ArrowError) -> Diagnostic {
    Diagnostic::new(Code::Internal, format!("rows can't be moved between cores: {error}"))
}
