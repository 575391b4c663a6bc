//! The dataflow as the runtime sees it: nodes and edges, the same on every core. Made by the planner; knows no SQL.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use crate::connect::{ChangelogMode, SinkRef, SourceRef};
use crate::error::Result;
use crate::ids::{CoreId, NodeId};
use crate::operators::chain::FusedChain;
use crate::operators::{Operator, Port, RowPolicy};
use crate::time::WatermarkSpec;

/// A planned dataflow. `nodes[i].id == NodeId(i)`; inputs come before the nodes that read them.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// The nodes.
    pub nodes: Vec<NodeSpec>,
}

impl Graph {
    /// Whether nobody takes what comes out any more ([`crate::connect::Sink::is_abandoned`]): going on would be work for nothing.
    /// A node that keeps its rows to be asked for, such as a materialized view, is always of use.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        let mut is_read = vec![false; self.nodes.len()];
        for input in self.nodes.iter().flat_map(|node| &node.inputs) {
            is_read[input.from.0 as usize] = true;
        }
        let mut ends = self.nodes.iter().zip(is_read).filter(|(_, is_read)| !is_read).map(|(node, _)| node).peekable();
        ends.peek().is_some() && ends.all(|node| matches!(&node.role, Role::Sink(spec) if spec.sink.is_abandoned()))
    }
}

/// One node.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Its place in [`Graph::nodes`].
    pub id: NodeId,
    /// Unique, readable: `orders`, `GroupAggregate#3`. In metrics and messages.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// What it reads; input `i` is port `i` of `Operator::on_delta`. Sources have none.
    pub inputs: Vec<Input>,
    /// What is done with rows that fail here.
    pub policy: RowPolicy,
    /// The columns of its main output.
    pub schema: SchemaRef,
}

/// An edge, seen from its reader.
#[derive(Debug, Clone)]
pub struct Input {
    /// The node that writes.
    pub from: NodeId,
    /// Which of its outputs.
    pub port: Port,
    /// Which core gets a row.
    pub route: Route,
}

/// Which core gets a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// The core that has it.
    Local,
    /// The owner of the vnode of these columns' canonical key ([`crate::key`]).
    Hash(Vec<usize>),
    /// Core 0.
    Single,
}

/// Makes a core's instance of an operator.
pub type OperatorFactory = Arc<dyn Fn(CoreId) -> Result<Box<dyn Operator>> + Send + Sync>;

/// What a node does.
#[derive(Clone)]
pub enum Role {
    /// Reads from outside; computed columns, watermark and `on_error` belong to it.
    Source(SourceSpec),
    /// An operator between.
    Operator(OperatorFactory),
    /// Passes all inputs on: UNION ALL.
    Union,
    /// Writes to outside.
    Sink(SinkSpec),
}

/// A source node.
#[derive(Clone, Debug)]
pub struct SourceSpec {
    /// The connector.
    pub source: SourceRef,
    /// Computed columns: from the source's schema to the table's. `None`: the same columns.
    pub chain: Option<FusedChain>,
    /// The watermark, over the chain's output; `None`: there is none, and it stays at [`crate::operators::Watermark::MIN`] until the end.
    pub watermark: Option<WatermarkSpec>,
}

/// A sink node.
#[derive(Clone, Debug)]
pub struct SinkSpec {
    /// The connector.
    pub sink: SinkRef,
    /// Which kinds of change it gets; the sink stage nets each epoch accordingly.
    pub mode: ChangelogMode,
    /// The columns by which changes of an epoch are paired into updates; empty: by the whole row.
    pub key: Vec<usize>,
}

impl fmt::Debug for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(spec) => spec.fmt(f),
            Self::Operator(_) => f.write_str("Operator"),
            Self::Union => f.write_str("Union"),
            Self::Sink(spec) => spec.fmt(f),
        }
    }
}
