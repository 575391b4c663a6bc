//! What is known of a stream at a place in the plan: its changes, its time columns, its keys, and the stateless steps not yet placed.

use datafusion::common::{DFSchemaRef, Result};
use datafusion::logical_expr::Expr;

use super::compile::{self, LogicalStep};
use crate::ids::NodeId;
use crate::operators::Port;
use crate::operators::window::WindowSpec;

/// What a column says about time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum TimeRole {
    /// Nothing.
    None,
    /// Event time: a watermark runs with it.
    Event,
    /// `PROCTIME()`.
    Processing,
    /// The start of window number n of the job.
    WindowStart(WindowId),
    /// Its end.
    WindowEnd(WindowId),
    /// Its last millisecond: again a time attribute.
    WindowTime(WindowId),
}

/// A window function's place in the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct WindowId {
    /// Counts the window functions of a job.
    pub number: u32,
    /// Whether it goes by `PROCTIME()`.
    pub is_processing: bool,
    /// Whether several windows begin at one instant, so that the start alone doesn't name a window.
    pub is_cumulative: bool,
}

/// How rows of a stream change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangeKind {
    /// Rows are only added.
    Append,
    /// Rows are added and taken back.
    Retract,
}

impl ChangeKind {
    pub(super) fn and(self, other: Self) -> Self {
        if self == Self::Append && other == Self::Append { Self::Append } else { Self::Retract }
    }
}

/// What bounds the state of a node, for EXPLAIN and `state.require_bound`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StateBound {
    /// It keeps nothing.
    None,
    /// The watermark lets it forget.
    Watermark(String),
    /// One entry for each group: bounded only if the keys are.
    Keys(String),
}

/// A window function that is not placed yet: the aggregation above may take it in.
#[derive(Clone, Debug)]
pub(super) struct PendingWindow {
    pub id: WindowId,
    pub spec: WindowSpec,
    /// The steps before the window; after them stand `input`'s columns.
    pub before: Vec<LogicalStep>,
    /// The columns before the window.
    pub input: DFSchemaRef,
    /// The time column in `input`.
    pub time: usize,
    /// The columns behind the window: `input`'s, then start, end and time.
    pub output: DFSchemaRef,
}

/// A place in the plan that further nodes read.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    /// The node whose output it is, before `steps`.
    pub node: NodeId,
    /// Which of its outputs.
    pub port: Port,
    /// That output's columns.
    pub base: DFSchemaRef,
    /// A window function between the node and `steps`.
    pub window: Option<PendingWindow>,
    /// Stateless steps to be fused into the next chain.
    pub steps: Vec<LogicalStep>,
    /// The columns behind `steps`.
    pub schema: DFSchemaRef,
    /// One for each column of `schema`.
    pub roles: Vec<TimeRole>,
    pub kind: ChangeKind,
    /// Whether a watermark runs through it.
    pub has_watermark: bool,
    /// Sets of columns of `schema` that name a row.
    pub unique_keys: Vec<Vec<usize>>,
}

impl Stream {
    /// A stream right behind a node.
    pub(super) fn behind(node: NodeId, schema: DFSchemaRef, roles: Vec<TimeRole>, kind: ChangeKind, has_watermark: bool) -> Self {
        debug_assert_eq!(schema.fields().len(), roles.len());
        Self {
            node,
            port: crate::operators::PORT_MAIN,
            base: schema.clone(),
            window: None,
            steps: Vec::new(),
            schema,
            roles,
            kind,
            has_watermark,
            unique_keys: Vec::new(),
        }
    }

    /// The same rows through a filter.
    pub(super) fn filter(mut self, predicate: &Expr) -> Self {
        self.steps.push(LogicalStep::Filter(predicate.clone()));
        self
    }

    /// The same rows with computed columns; time roles follow plain columns.
    pub(super) fn project(mut self, exprs: &[Expr], schema: &DFSchemaRef) -> Result<Self> {
        let mut roles = Vec::with_capacity(exprs.len());
        let mut origin = Vec::with_capacity(exprs.len());
        for expr in exprs {
            let source = plain_column(expr).and_then(|column| self.schema.maybe_index_of_column(column));
            origin.push(source);
            roles.push(match source {
                Some(at) => self.roles[at],
                None if compile::is_proctime(expr) => TimeRole::Processing,
                None => TimeRole::None,
            });
        }
        self.unique_keys = self
            .unique_keys
            .iter()
            .filter_map(|key| key.iter().map(|k| origin.iter().position(|o| *o == Some(*k))).collect())
            .collect();
        self.roles = roles;
        self.schema = schema.clone();
        self.steps.push(LogicalStep::Project(exprs.to_vec(), schema.clone()));
        Ok(self)
    }

    /// The same columns under other names.
    pub(super) fn rename(mut self, schema: &DFSchemaRef) -> Self {
        self.schema = schema.clone();
        self.steps.push(LogicalStep::Rename(schema.clone()));
        self
    }
}

/// The column that an expression is, through aliases.
pub(super) fn plain_column(expr: &Expr) -> Option<&datafusion::common::Column> {
    match expr {
        Expr::Column(column) => Some(column),
        Expr::Alias(alias) => plain_column(&alias.expr),
        _ => None,
    }
}
