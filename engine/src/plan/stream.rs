//! What is known of a stream at a place in the plan: its changes, its time columns, its keys, and the stateless steps not yet placed.

use datafusion::common::{DFSchemaRef, Result};
use datafusion::logical_expr::Expr;

use super::compile::{self, LogicalStep};
use super::spelling::{Names, own_names, spell};
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
    /// So much, whatever comes.
    Fixed(String),
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
    /// What `before` does, in words, and what the columns of `input` are called.
    pub notes: Vec<String>,
    pub shown: Vec<String>,
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
    /// What the columns of `schema` are called in EXPLAIN: their names, or the expressions of those that the user gave none.
    pub shown: Vec<String>,
    /// What `steps` do, in words for EXPLAIN.
    pub notes: Vec<String>,
}

impl Stream {
    /// A stream right behind a node.
    pub(super) fn behind(node: NodeId, schema: DFSchemaRef, roles: Vec<TimeRole>, kind: ChangeKind, has_watermark: bool) -> Self {
        debug_assert_eq!(schema.fields().len(), roles.len());
        let shown = own_names(&schema);
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
            shown,
            notes: Vec::new(),
        }
    }

    /// How expressions over its columns are shown.
    pub(super) fn names(&self) -> Names<'_> {
        Names { schema: &self.schema, shown: &self.shown }
    }

    /// The same rows through a filter.
    pub(super) fn filter(mut self, predicate: &Expr) -> Self {
        self.notes.push(format!("filter {}", spell(predicate, self.names())));
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
        let (mut shown, mut items, mut computes) = (Vec::new(), Vec::new(), false);
        for (at, expr) in exprs.iter().enumerate() {
            let spelled = spell(expr, self.names());
            let name = schema.field(at).name();
            let is_made = is_made(expr, name);
            match origin[at] {
                Some(_) if is_made || *name == spelled => {
                    items.push(spelled.clone());
                    shown.push(spelled);
                }
                None if is_made => {
                    computes = true;
                    items.push(spelled.clone());
                    shown.push(spelled);
                }
                _ => {
                    computes |= origin[at].is_none() && *name != spelled;
                    items.push(if *name == spelled { spelled } else { format!("{spelled} AS {name}") });
                    shown.push(name.clone());
                }
            }
        }
        // What the optimizer computes ahead stands inside what reads it.
        let is_ahead = |at: &usize| {
            let name = schema.field(*at).name();
            origin[*at].is_some() || name.starts_with("__common_expr") || name.starts_with("__datafusion")
        };
        if computes && !(0..exprs.len()).all(|at| is_ahead(&at)) {
            self.notes.push(format!("project {}", items.join(", ")));
        }
        self.shown = shown;
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

/// Whether the name of a computed column is the planner's, or one that DataFusion made of the expression, and not the user's.
fn is_made(expr: &Expr, name: &str) -> bool {
    let unnamed = match expr {
        Expr::Alias(alias) => alias.expr.as_ref(),
        other => other,
    };
    // An optimizer rule that changes an expression keeps its old name: `count(Int64(1))`, `Boolean(NULL)`.
    name.starts_with("__") || *name == unnamed.schema_name().to_string() || name.contains(['(', '[']) || name.contains(" AS ")
}
