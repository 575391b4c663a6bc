//! From an optimized logical plan to the nodes of a graph. One arm a logical node; a node that can't be run is refused here, with a code.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{Column, DFSchema, DFSchemaRef, DataFusionError, ScalarValue};
use datafusion::logical_expr::expr::{AggregateFunction as AggregateExpr, AggregateFunctionParams};
use datafusion::logical_expr::{Aggregate, Expr, ExprSchemable, GroupingSet, LogicalPlan};

use super::compile::{self, LogicalStep, column_at, compile, literal};
use super::diagnose::diagnose;
use super::emission::Emission;
use super::explain::NodeInfo;
use super::session::{Leaf, LeafKind};
use super::settings::{AggregatePhases, LengthPolicy};
use super::source::Tables;
use super::spelling::spell;
use super::stream::{ChangeKind, PendingWindow, StateBound, Stream, TimeRole, WindowId, plain_column};
use super::time_rules::TimeRules;
use super::window_node::WindowTvf;
use crate::connect::values::ValuesSource;
use crate::error::{Code, Diagnostic, Result, Span};
use crate::ids::NodeId;
use crate::operators::aggregate::{AggregateCall, AggregateFunction};
use crate::operators::chain::{ChainOperator, FusedChain, Step};
use crate::operators::unnest::Unnest;
use crate::operators::{Operator, PORT_MAIN, PORT_REJECTED, RowPolicy};
use crate::runtime::graph::{Graph, Input, NodeSpec, OperatorFactory, Role, Route, SourceSpec};
use crate::time::Zone;

/// Builds the graph of one job.
pub(super) struct Builder<'t> {
    pub graph: Graph,
    pub infos: Vec<NodeInfo>,
    pub tables: Tables<'t>,
    /// Streams and materialized views, by name.
    pub shared: HashMap<String, Stream>,
    memo: HashMap<(LogicalPlan, Emission), Stream>,
    pub policy: RowPolicy,
    /// Nodes that are under a table's own `on_error` beside its source: the table's name.
    pub judged_as: HashMap<NodeId, String>,
    pub cores: usize,
    pub allowed_future_us: Option<i64>,
    pub phases: AggregatePhases,
    pub lengths: LengthPolicy,
    /// What zones and digits do to times that a sink takes as another type.
    pub times: TimeRules,
    next_window: u32,
    /// Where late rows of the statement at hand go: filled by window aggregations, read by the statement's planner.
    pub late_outputs: Vec<(NodeId, SchemaRef)>,
    /// The statement at hand, for errors without a place of their own.
    pub statement: Span,
}

impl<'t> Builder<'t> {
    pub(super) fn new(tables: Tables<'t>, policy: RowPolicy, cores: usize) -> Self {
        Self {
            graph: Graph::default(),
            infos: Vec::new(),
            tables,
            shared: HashMap::new(),
            memo: HashMap::new(),
            policy,
            judged_as: HashMap::new(),
            cores,
            allowed_future_us: None,
            phases: AggregatePhases::Auto,
            lengths: LengthPolicy::default(),
            times: TimeRules { zone: Zone::UTC },
            next_window: 0,
            late_outputs: Vec::new(),
            statement: Span { start: 0, end: 0 },
        }
    }

    /// Adds a node; its id is its place.
    pub(super) fn add(&mut self, kind: &str, role: Role, inputs: Vec<Input>, schema: SchemaRef, info: NodeInfo) -> NodeId {
        let id = NodeId(self.graph.nodes.len() as u32);
        let name = format!("{kind}#{id}");
        let mut policy = self.policy;
        if !matches!(role, Role::Source(_) | Role::Sink(_))
            && let Some(table) = self.judging_table(&inputs)
        {
            policy = self.graph.nodes[inputs[0].from.0 as usize].policy;
            self.judged_as.insert(id, table);
        }
        self.graph.nodes.push(NodeSpec { id, name: name.clone(), role, inputs, policy, schema });
        self.infos.push(NodeInfo { name, ..info });
        id
    }

    pub(super) fn operator(
        &mut self,
        kind: &str,
        factory: OperatorFactory,
        inputs: Vec<Input>,
        schema: SchemaRef,
        info: NodeInfo,
    ) -> NodeId {
        self.add(kind, Role::Operator(factory), inputs, schema, info)
    }

    pub(super) fn refuse(&self, error: &DataFusionError) -> Diagnostic {
        diagnose(error, self.statement)
    }

    fn unsupported(&self, code: Code, what: &str, hint: &str) -> Diagnostic {
        Diagnostic::new(code, what).at(self.statement).hint(hint)
    }

    /// Plans `plan`. `emission` is for the first stateful node from above.
    pub(super) fn build(&mut self, plan: &LogicalPlan, emission: &Emission) -> Result<Stream> {
        let key = (plan.clone(), emission.clone());
        let shareable = !matches!(
            plan,
            LogicalPlan::TableScan(_) | LogicalPlan::SubqueryAlias(_) | LogicalPlan::Projection(_) | LogicalPlan::Filter(_)
        );
        if shareable && let Some(stream) = self.memo.get(&key) {
            return Ok(stream.clone());
        }
        let stream = self.build_node(plan, emission)?;
        if shareable {
            self.memo.insert(key, stream.clone());
        }
        Ok(stream)
    }

    fn build_node(&mut self, plan: &LogicalPlan, emission: &Emission) -> Result<Stream> {
        match plan {
            LogicalPlan::TableScan(scan) => {
                let leaf = scan
                    .source
                    .downcast_ref::<Leaf>()
                    .ok_or_else(|| Diagnostic::new(Code::Internal, format!("`{}` is no table of the job", scan.table_name)))?
                    .clone();
                let stream = match leaf.kind {
                    LeafKind::Table => self.source(&leaf.name)?,
                    LeafKind::Shared => self
                        .shared
                        .get(&leaf.name)
                        .cloned()
                        .ok_or_else(|| Diagnostic::new(Code::Internal, format!("`{}` is not planned", leaf.name)))?,
                };
                let exprs: Vec<Expr> = scan
                    .projected_schema
                    .fields()
                    .iter()
                    .map(|field| Expr::Column(Column::new_unqualified(field.name())))
                    .collect();
                let unqualified = compile::unqualified(stream.schema.as_arrow()).map_err(|e| self.refuse(&e))?;
                stream.rename(&unqualified).project(&exprs, &scan.projected_schema).map_err(|e| self.refuse(&e))
            }
            LogicalPlan::Projection(projection) => {
                if projection.expr.iter().any(|e| e.exists(|x| Ok(matches!(x, Expr::WindowFunction(_)))).unwrap_or(false)) {
                    return Err(self.over());
                }
                let input = self.build(&projection.input, emission)?;
                self.check_deterministic(&input, projection.expr.iter())?;
                input.project(&projection.expr, &projection.schema).map_err(|e| self.refuse(&e))
            }
            LogicalPlan::Filter(filter) => {
                let input = self.build(&filter.input, emission)?;
                self.check_deterministic(&input, std::iter::once(&filter.predicate))?;
                if compile::needs_time(&filter.predicate) {
                    return Err(self.unsupported(
                        Code::Unsupported,
                        "a filter over the present time (a temporal filter) can't be run yet",
                        "compare with a window's bounds, or filter by a column",
                    ));
                }
                Ok(input.filter(&filter.predicate))
            }
            LogicalPlan::SubqueryAlias(alias) => Ok(self.build(&alias.input, emission)?.rename(&alias.schema)),
            LogicalPlan::Union(union) => {
                let mut inputs = Vec::new();
                for input in &union.inputs {
                    inputs.push(self.build(input, emission)?);
                }
                self.union(inputs, &union.schema)
            }
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate, emission),
            LogicalPlan::Extension(extension) => match extension.node.as_any().downcast_ref::<WindowTvf>() {
                Some(window) => self.window(window),
                None => Err(Diagnostic::new(Code::Internal, format!("unknown plan node {}", extension.node.name()))),
            },
            LogicalPlan::Unnest(unnest) => self.unnest(unnest),
            LogicalPlan::Values(values) => {
                let rows: Vec<&[Expr]> = values.values.iter().map(Vec::as_slice).collect();
                self.values(&rows, &values.schema)
            }
            LogicalPlan::EmptyRelation(empty) => {
                let one: &[Expr] = &[];
                let rows: Vec<&[Expr]> = if empty.produce_one_row { vec![one] } else { Vec::new() };
                self.values(&rows, &empty.schema)
            }
            LogicalPlan::Join(_) => Err(self.unsupported(
                Code::UnsupportedJoin,
                "joins, and subqueries that become joins (IN, EXISTS, scalar), can't be run yet",
                "write what can be said without a join; joins come next",
            )),
            LogicalPlan::Window(_) => Err(self.over()),
            LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => Err(self.unsupported(
                Code::UnsupportedOrder,
                "ORDER BY and LIMIT over a stream can't be run yet",
                "leave them out: a stream has no last row; sort what comes out",
            )),
            LogicalPlan::Distinct(_) => {
                Err(self.unsupported(Code::Unsupported, "DISTINCT ON can't be run yet", "use GROUP BY with first_value"))
            }
            LogicalPlan::RecursiveQuery(_) => {
                Err(self.unsupported(Code::Unsupported, "WITH RECURSIVE can't be run", "there is no other way yet"))
            }
            LogicalPlan::Subquery(_) => {
                Err(self.unsupported(Code::UnsupportedJoin, "subqueries can't be run yet", "joins come next"))
            }
            _ => Err(self.unsupported(
                Code::Unsupported,
                "a part of this statement can't be run",
                "docs/guide/sql.md says what a query may be made of",
            )),
        }
    }

    fn over(&self) -> Diagnostic {
        self.unsupported(
            Code::UnsupportedOver,
            "OVER windows and ROW_NUMBER can't be run yet",
            "use GROUP BY with a window, max/min, or arg_max for the last row of a key",
        )
    }

    /// A function whose value differs at each call may not be computed over rows that may be taken back: the retraction would differ.
    fn check_deterministic<'e>(&self, input: &Stream, exprs: impl Iterator<Item = &'e Expr>) -> Result<()> {
        if input.kind == ChangeKind::Append {
            return Ok(());
        }
        for expr in exprs {
            let volatile = expr
                .exists(|e| {
                    Ok(matches!(e, Expr::ScalarFunction(call)
                        if call.func.signature().volatility == datafusion::logical_expr::Volatility::Volatile))
                })
                .unwrap_or(false);
            if volatile {
                return Err(self.unsupported(
                    Code::NonDeterministic,
                    "a function that is not deterministic (now(), random(), uuid()) is computed over rows that may be taken back",
                    "compute it before the aggregation, over the rows as they arrive",
                ));
            }
        }
        Ok(())
    }

    fn source(&mut self, name: &str) -> Result<Stream> {
        if let Some(stream) = self.tables.built.get(name) {
            return Ok(stream.clone());
        }
        let stream = super::source::build(self, name)?;
        self.tables.built.insert(name.to_owned(), stream.clone());
        Ok(stream)
    }

    fn values(&mut self, rows: &[&[Expr]], schema: &DFSchemaRef) -> Result<Stream> {
        let arrow: SchemaRef = Arc::new(schema.as_arrow().clone());
        let empty = DFSchema::empty();
        let one_row = arrow::array::RecordBatch::try_new_with_options(
            Arc::new(Schema::empty()),
            Vec::new(),
            &arrow::array::RecordBatchOptions::new().with_row_count(Some(1)),
        )
        .map_err(|e| Diagnostic::new(Code::Internal, e.to_string()))?;
        let mut columns: Vec<Vec<ScalarValue>> = vec![Vec::with_capacity(rows.len()); arrow.fields().len()];
        for row in rows {
            for (at, expr) in row.iter().enumerate() {
                let value = compile::physical(expr, &empty)
                    .and_then(|p| p.evaluate(&one_row)?.into_array(1))
                    .and_then(|array| ScalarValue::try_from_array(&array, 0))
                    .and_then(|value| value.cast_to(arrow.field(at).data_type()))
                    .map_err(|e| self.refuse(&e))?;
                columns[at].push(value);
            }
        }
        let arrays = columns
            .into_iter()
            .zip(arrow.fields())
            .map(|(values, field)| {
                if values.is_empty() {
                    Ok(arrow::array::new_empty_array(field.data_type()))
                } else {
                    ScalarValue::iter_to_array(values)
                }
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| self.refuse(&e))?;
        let nullable: SchemaRef =
            Arc::new(Schema::new(arrow.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect::<Vec<_>>()));
        let batch = arrow::array::RecordBatch::try_new_with_options(
            nullable.clone(),
            arrays,
            &arrow::array::RecordBatchOptions::new().with_row_count(Some(rows.len())),
        )
        .map_err(|e| Diagnostic::new(Code::Internal, e.to_string()))?;
        let spec = SourceSpec { source: ValuesSource::new(batch), chain: None, watermark: None };
        let info = NodeInfo::new("Values").detail(format!("{} rows", rows.len()));
        let node = self.add("Values", Role::Source(spec), Vec::new(), nullable.clone(), info);
        let base = compile::unqualified(&nullable).map_err(|e| self.refuse(&e))?;
        let roles = vec![TimeRole::None; base.fields().len()];
        Ok(Stream::behind(node, base, roles, ChangeKind::Append, false).rename(schema))
    }

    /// Places a stream's window and steps: afterwards it has neither.
    pub(super) fn materialize(&mut self, stream: Stream) -> Result<Stream> {
        let mut stream = stream;
        if let Some(window) = stream.window.take() {
            let before = Stream {
                steps: window.before.clone(),
                notes: window.notes.clone(),
                shown: window.shown.clone(),
                schema: window.input.clone(),
                window: None,
                roles: vec![TimeRole::None; window.input.fields().len()],
                unique_keys: Vec::new(),
                ..stream.clone()
            };
            let placed = self.materialize(before)?;
            let (node, schema) = super::window::assign(self, &placed, &window)?;
            stream.node = node;
            stream.port = PORT_MAIN;
            stream.base = with_types(&window.output, &schema).map_err(|e| self.refuse(&e))?;
        }
        if !stream.steps.iter().all(|step| matches!(step, LogicalStep::Rename(_))) {
            let chain = compile(&stream.base, &stream.steps).map_err(|e| self.refuse(&e))?;
            let info = NodeInfo::new("Chain").notes(&stream.notes).shown(&stream.shown);
            let schema = chain.output().clone();
            let factory: OperatorFactory =
                Arc::new(move |_| Ok(Box::new(ChainOperator::new(chain.clone())) as Box<dyn Operator>));
            let input = Input { from: stream.node, port: stream.port, route: Route::Local };
            stream.node = self.operator("Chain", factory, vec![input], schema.clone(), info.kind(stream.kind));
            stream.port = PORT_MAIN;
            stream.base = with_types(&stream.schema, &schema).map_err(|e| self.refuse(&e))?;
        } else {
            stream.base = with_types(&stream.schema, stream.base.as_arrow()).map_err(|e| self.refuse(&e))?;
        }
        stream.schema = stream.base.clone();
        stream.steps.clear();
        stream.notes.clear();
        Ok(stream)
    }

    /// A stream's rows as columns `exprs`, called by name, right behind a node.
    pub(super) fn columns(&mut self, stream: Stream, exprs: Vec<Expr>, names: &[String]) -> Result<Stream> {
        let exprs: Vec<Expr> = exprs.into_iter().zip(names).map(|(e, n)| e.unalias_nested().data.alias(n)).collect();
        let fields = exprs
            .iter()
            .map(|e| e.to_field(stream.schema.as_ref()).map(|(_, f)| (None, f)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| self.refuse(&e))?;
        let schema = DFSchema::new_with_metadata(fields, HashMap::new()).map_err(|e| self.refuse(&e))?;
        let stream = stream.project(&exprs, &Arc::new(schema)).map_err(|e| self.refuse(&e))?;
        self.materialize(stream)
    }

    fn union(&mut self, inputs: Vec<Stream>, schema: &DFSchemaRef) -> Result<Stream> {
        let mut kind = ChangeKind::Append;
        let mut has_watermark = true;
        let mut roles: Option<Vec<TimeRole>> = None;
        let mut nullable = vec![false; schema.fields().len()];
        let mut branches = Vec::new();
        let mut shown: Option<Vec<String>> = None;
        for input in inputs {
            let placed = self.materialize(input)?;
            shown.get_or_insert_with(|| placed.shown.clone());
            kind = kind.and(placed.kind);
            has_watermark &= placed.has_watermark;
            for (at, field) in placed.base.fields().iter().enumerate() {
                nullable[at] |= field.is_nullable();
            }
            roles = Some(match roles {
                None => placed.roles.clone(),
                Some(all) => all.iter().zip(&placed.roles).map(|(a, b)| if a == b { *a } else { TimeRole::None }).collect(),
            });
            branches.push(placed);
        }
        let fields: Vec<Field> =
            schema.fields().iter().zip(nullable).map(|(f, n)| f.as_ref().clone().with_nullable(n || f.is_nullable())).collect();
        let arrow: SchemaRef = Arc::new(Schema::new(fields));
        let mut edges = Vec::new();
        for branch in branches {
            let from = self.relabelled(branch, &arrow)?;
            edges.push(Input { from: from.node, port: from.port, route: Route::Local });
        }
        let shown = shown.unwrap_or_default();
        let info = NodeInfo::new("Union").kind(kind).detail(format!("{} inputs", edges.len())).shown(&shown);
        let node = self.add("Union", Role::Union, edges, arrow.clone(), info);
        let base = with_types(schema, &arrow).map_err(|e| self.refuse(&e))?;
        Ok(Stream { shown, ..Stream::behind(node, base, roles.unwrap_or_default(), kind, has_watermark) })
    }

    /// The same columns as batches of exactly this schema: a branch without NULLs must not look NOT NULL beside one with them.
    fn relabelled(&mut self, branch: Stream, schema: &SchemaRef) -> Result<Stream> {
        if self.graph.nodes[branch.node.0 as usize].schema == *schema {
            return Ok(branch);
        }
        let exprs = (0..schema.fields().len())
            .map(|at| compile::physical(&column_at(&branch.base, at), &branch.base))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| self.refuse(&e))?;
        let input: SchemaRef = Arc::new(branch.base.as_arrow().clone());
        let chain = FusedChain::new(&input, vec![Step::Project { exprs, schema: schema.clone() }], false);
        let factory: OperatorFactory = Arc::new(move |_| Ok(Box::new(ChainOperator::new(chain.clone())) as Box<dyn Operator>));
        let edge = Input { from: branch.node, port: branch.port, route: Route::Local };
        let info = NodeInfo::new("Chain").kind(branch.kind).detail("the columns of the union").shown(&branch.shown);
        let node = self.operator("Chain", factory, vec![edge], schema.clone(), info);
        Ok(Stream { node, port: PORT_MAIN, ..branch })
    }

    fn window(&mut self, node: &WindowTvf) -> Result<Stream> {
        let input = self.build(&node.input, &Emission::default())?;
        let mut input = if input.window.is_some() { self.materialize(input)? } else { input };
        let Some(time) = plain_column(&node.time).and_then(|c| input.schema.maybe_index_of_column(c)) else {
            return Err(Diagnostic::new(Code::Internal, "a window's time column is gone").at(node.span));
        };
        let role = input.roles[time];
        let is_processing = match role {
            TimeRole::Processing => true,
            TimeRole::Event => false,
            TimeRole::WindowTime(id) => id.is_processing,
            TimeRole::None | TimeRole::WindowStart(_) | TimeRole::WindowEnd(_) => {
                let name = input.schema.field(time).name();
                let hint = if matches!(role, TimeRole::None) {
                    format!("declare WATERMARK FOR {name} AS {name} - INTERVAL '5' SECOND in its CREATE TABLE, or use PROCTIME()")
                } else {
                    "use the inner window's window_time".into()
                };
                return Err(Diagnostic::new(
                    Code::NoTimeAttribute,
                    format!("`{name}` is no time column: nothing says when a window is complete"),
                )
                .at(node.span)
                .hint(hint));
            }
        };
        let number = self.next_window;
        self.next_window += 1;
        let is_cumulative = matches!(node.spec.kind(), crate::operators::window::WindowKind::Cumulate { .. });
        let id = WindowId { number, is_processing, is_cumulative };
        let mut roles = input.roles.clone();
        for r in &mut roles {
            // Only the time column that the window went by stays meaningful beside the window's own.
            if matches!(r, TimeRole::WindowStart(_) | TimeRole::WindowEnd(_) | TimeRole::WindowTime(_)) {
                *r = TimeRole::None;
            }
        }
        roles.extend([TimeRole::WindowStart(id), TimeRole::WindowEnd(id), TimeRole::WindowTime(id)]);
        let output = datafusion::logical_expr::UserDefinedLogicalNodeCore::schema(node).clone();
        input.window = Some(PendingWindow {
            id,
            spec: node.spec,
            before: std::mem::take(&mut input.steps),
            notes: std::mem::take(&mut input.notes),
            shown: input.shown.clone(),
            input: input.schema.clone(),
            time,
            output: output.clone(),
        });
        input.shown.extend(["window_start", "window_end", "window_time"].map(str::to_owned));
        input.unique_keys.clear();
        input.schema = output;
        input.roles = roles;
        Ok(input)
    }

    fn aggregate(&mut self, aggregate: &Aggregate, emission: &Emission) -> Result<Stream> {
        let input = self.build(&aggregate.input, &Emission::default())?;
        if let [Expr::GroupingSet(sets)] = aggregate.group_expr.as_slice() {
            return self.grouping_sets(aggregate, sets, input, emission);
        }
        let keys = aggregate.group_expr.clone();
        self.aggregate_over(input, &keys, &aggregate.aggr_expr, &aggregate.schema, emission)
    }

    /// GROUPING SETS: each row once for each set, with NULL where a key is not in the set, and the set's number as one more key.
    fn grouping_sets(&mut self, aggregate: &Aggregate, sets: &GroupingSet, input: Stream, emission: &Emission) -> Result<Stream> {
        let all: Vec<Expr> = sets.distinct_expr().into_iter().cloned().collect();
        let lists: Vec<Vec<Expr>> = match sets {
            GroupingSet::GroupingSets(lists) => lists.clone(),
            GroupingSet::Rollup(exprs) => (0..=exprs.len()).rev().map(|n| exprs[..n].to_vec()).collect(),
            GroupingSet::Cube(exprs) => (0..1u32 << exprs.len().min(16))
                .rev()
                .map(|bits| {
                    (0..exprs.len()).filter(|i| bits >> (exprs.len() - 1 - i) & 1 == 1).map(|i| exprs[i].clone()).collect()
                })
                .collect(),
        };
        // Each set is a grouping of its own: over a window function it needs the window's bounds.
        for list in &lists {
            super::window::group_window(self, &input, list)?;
        }
        let width = all.len();
        let id_type = aggregate.schema.field(width).data_type().clone();
        // Keys that every set has keep their role (window bounds must be among them).
        let mut branches = Vec::new();
        let mut names: Vec<String> = (0..width).map(|i| format!("__key{i}")).collect();
        names.push(Aggregate::INTERNAL_GROUPING_ID.into());
        let others: Vec<Expr> = (0..input.schema.fields().len()).map(|at| column_at(&input.schema, at)).collect();
        for i in 0..others.len() {
            names.push(format!("__in{i}"));
        }
        let mut branch_schema = None;
        for list in &lists {
            let mut id = 0u64;
            let mut exprs = Vec::new();
            for (i, key) in all.iter().enumerate() {
                if list.contains(key) {
                    exprs.push(key.clone());
                } else {
                    id |= 1 << (width - 1 - i);
                    let kind = key.get_type(input.schema.as_ref()).map_err(|e| self.refuse(&e))?;
                    let null = ScalarValue::try_from(&kind).map_err(|e| self.refuse(&e))?;
                    exprs.push(Expr::Literal(null, None));
                }
            }
            let id = ScalarValue::UInt64(Some(id)).cast_to(&id_type).map_err(|e| self.refuse(&e))?;
            exprs.push(Expr::Literal(id, None));
            exprs.extend(others.iter().cloned());
            let branch = self.columns(input.clone(), exprs, &names)?;
            branch_schema.get_or_insert_with(|| branch.schema.clone());
            branches.push(branch);
        }
        let Some(schema) = branch_schema else {
            return Err(self.unsupported(Code::InvalidArgument, "GROUPING SETS without a set", "name at least one"));
        };
        let mut united = self.union(branches, &schema)?;
        united.shown = all.iter().map(|key| spell(key, input.names())).collect();
        united.shown.push("grouping set".into());
        united.shown.extend(input.shown.iter().cloned());
        self.infos[united.node.0 as usize].shown.clone_from(&united.shown);
        let keys: Vec<Expr> = (0..=width).map(|at| column_at(&united.schema, at)).collect();
        let renames: HashMap<String, String> =
            (0..others.len()).map(|i| (others[i].to_string(), names[width + 1 + i].clone())).collect();
        let rebind = |expr: &Expr| -> Result<Expr, DataFusionError> {
            use datafusion::common::tree_node::Transformed;
            expr.clone()
                .transform_up(|e| {
                    Ok(match &e {
                        Expr::Column(c) => match renames.get(&Expr::Column(c.clone()).to_string()) {
                            Some(name) => Transformed::yes(Expr::Column(Column::new_unqualified(name))),
                            None => Transformed::no(e),
                        },
                        _ => Transformed::no(e),
                    })
                })
                .map(|t| t.data)
        };
        let calls = aggregate.aggr_expr.iter().map(rebind).collect::<Result<Vec<_>, _>>().map_err(|e| self.refuse(&e))?;
        self.aggregate_over(united, &keys, &calls, &aggregate.schema, emission)
    }

    fn aggregate_over(
        &mut self,
        input: Stream,
        keys: &[Expr],
        aggregates: &[Expr],
        schema: &DFSchemaRef,
        emission: &Emission,
    ) -> Result<Stream> {
        self.check_deterministic(&input, keys.iter().chain(aggregates))?;
        let calls = Calls::collect(self, &input, aggregates)?;
        let window = super::window::group_window(self, &input, keys)?;
        match window {
            Some(window) => super::window::aggregate(self, input, keys, &window, calls, schema, emission),
            None => super::group::aggregate(self, input, keys, calls, schema, emission),
        }
    }

    fn unnest(&mut self, unnest: &datafusion::logical_expr::Unnest) -> Result<Stream> {
        let input = self.build(&unnest.input, &Emission::default())?;
        let placed = self.materialize(input)?;
        let arrow: SchemaRef = Arc::new(placed.base.as_arrow().clone());
        let lists: Vec<(usize, usize)> = unnest.list_type_columns.iter().map(|(column, list)| (*column, list.depth)).collect();
        let structs = unnest.struct_type_columns.clone();
        let options = unnest.options.clone();
        let names: Vec<String> = unnest.schema.fields().iter().map(|f| f.name().clone()).collect();
        let make = move || Unnest::new(&arrow, &lists, &structs, &options, &names);
        let output = make().map_err(|e| e.at(self.statement))?.schema().clone();
        let kind = placed.kind;
        let factory: OperatorFactory = Arc::new(move |_| Ok(Box::new(make()?) as Box<dyn Operator>));
        let is_spread = |at: usize| {
            unnest.list_type_columns.iter().any(|(column, _)| *column == at) || unnest.struct_type_columns.contains(&at)
        };
        let spread = (0..placed.shown.len()).filter(|at| is_spread(*at)).map(|at| placed.shown[at].as_str()).collect::<Vec<_>>();
        let shown: Vec<String> = unnest
            .dependency_indices
            .iter()
            .map(|at| if is_spread(*at) { format!("UNNEST({})", placed.shown[*at]) } else { placed.shown[*at].clone() })
            .collect();
        let info = NodeInfo::new("Unnest").kind(kind).shown(&shown).detail(format!("UNNEST({})", spread.join(", ")));
        let edge = Input { from: placed.node, port: placed.port, route: Route::Local };
        let node = self.operator("Unnest", factory, vec![edge], output.clone(), info);
        let base = with_types(&unnest.schema, &output).map_err(|e| self.refuse(&e))?;
        let roles =
            unnest.dependency_indices.iter().map(|at| if is_spread(*at) { TimeRole::None } else { placed.roles[*at] }).collect();
        Ok(Stream { shown, ..Stream::behind(node, base, roles, kind, placed.has_watermark) })
    }

    /// The table whose `on_error` a node is under that reads these inputs: the rows of a table with an `on_error` of its own are under it until
    /// they meet those of another table.
    fn judging_table(&self, inputs: &[Input]) -> Option<String> {
        let table_of = |input: &Input| {
            let spec = &self.graph.nodes[input.from.0 as usize];
            let has_own = |name: &String| self.tables.planned.get(name).is_some_and(|table| table.on_error.is_some());
            match spec.role {
                // What was refused is judged no more: that would be without end.
                _ if input.port == PORT_REJECTED => None,
                Role::Source(_) => Some(&spec.name).filter(|name| has_own(name)),
                _ => self.judged_as.get(&input.from),
            }
        };
        let first = table_of(inputs.first()?)?;
        inputs.iter().all(|input| table_of(input) == Some(first)).then(|| first.clone())
    }

    /// Edges for the rejected rows of every node under `dead_letter`.
    pub(super) fn rejecting_nodes(&self) -> Vec<NodeId> {
        self.graph
            .nodes
            .iter()
            .filter(|n| n.policy == RowPolicy::DeadLetter && !matches!(n.role, Role::Sink(_) | Role::Union))
            .map(|n| n.id)
            .collect()
    }

    /// The port of rejected rows.
    pub(super) const REJECTED: usize = PORT_REJECTED;
}

/// Calls of aggregate functions, with the columns that they need beside the keys.
pub(super) struct Calls {
    /// Arguments, filters and order columns; columns of the aggregation's input behind the keys.
    pub exprs: Vec<Expr>,
    /// The calls; columns are indexes into `exprs`.
    pub calls: Vec<AggregateCall>,
    /// The calls as the user writes them.
    pub shown: Vec<String>,
}

impl Calls {
    fn collect(builder: &Builder<'_>, input: &Stream, aggregates: &[Expr]) -> Result<Self> {
        let mut exprs: Vec<Expr> = Vec::new();
        let mut calls = Vec::new();
        for aggregate in aggregates {
            let plain = aggregate.clone().unalias_nested().data;
            let Expr::AggregateFunction(AggregateExpr { func, params }) = &plain else {
                return Err(Diagnostic::new(Code::Internal, format!("{plain} is no aggregate")));
            };
            let AggregateFunctionParams { args, distinct, filter, order_by, null_treatment } = params;
            let Some(function) = AggregateFunction::from_name(func.name()) else {
                let known: Vec<&str> = AggregateFunction::NAMES.iter().map(|(_, names)| names[0]).collect();
                return Err(builder.unsupported(
                    Code::UnknownFunction,
                    &format!("the aggregate function `{}` can't be run over a stream", func.name()),
                    &format!("there are: {}", known.join(", ")),
                ));
            };
            let mut column = |expr: &Expr| {
                exprs.iter().position(|e| e == expr).unwrap_or_else(|| {
                    exprs.push(expr.clone());
                    exprs.len() - 1
                })
            };
            let mut constants = Vec::new();
            let mut columns = Vec::new();
            for (at, arg) in args.iter().enumerate() {
                match (function, literal(arg)) {
                    // count(*) is count(1): a constant that is not NULL counts rows.
                    (AggregateFunction::Count, Some(value)) if !value.is_null() && !distinct => {}
                    (AggregateFunction::StringAgg, Some(value)) if at == 1 => constants.push(value.clone()),
                    (AggregateFunction::StringAgg, None) if at == 1 => {
                        return Err(builder.unsupported(
                            Code::InvalidArgument,
                            "the separator of string_agg must be a constant",
                            "write it as 'text'",
                        ));
                    }
                    _ => columns.push(column(arg)),
                }
            }
            let filter = filter.as_ref().map(|f| column(f));
            let order_by = order_by
                .iter()
                .map(|s| (column(&s.expr), arrow::compute::SortOptions { descending: !s.asc, nulls_first: s.nulls_first }))
                .collect();
            let ignore_nulls = matches!(null_treatment, Some(datafusion::logical_expr::expr::NullTreatment::IgnoreNulls));
            // The output's type is settled when the input's columns are known.
            // It is named for messages: nothing finds it by its name.
            let output = Arc::new(Field::new(spell(aggregate, input.names()), DataType::Null, true));
            calls.push(AggregateCall {
                function,
                args: columns,
                filter,
                distinct: *distinct,
                order_by,
                ignore_nulls,
                constants,
                output,
            });
        }
        let shown = aggregates.iter().map(|aggregate| spell(aggregate, input.names())).collect();
        Ok(Self { exprs, calls, shown })
    }

    /// Whether each call keeps no more than a fixed number of values of a group: not each different value.
    pub(super) fn are_of_fixed_size(&self, append_only: bool) -> bool {
        use AggregateFunction as F;
        self.calls.iter().all(|call| match call.function {
            F::ArrayAgg | F::StringAgg => false,
            F::Min | F::Max | F::FirstValue | F::LastValue | F::ArgMin | F::ArgMax => append_only,
            _ => !call.distinct,
        })
    }

    /// The calls over an input whose columns `offset..` are `exprs`, with their result types.
    pub(super) fn over(self, input: &SchemaRef, offset: usize) -> Result<Vec<AggregateCall>> {
        self.calls
            .into_iter()
            .map(|mut call| {
                for at in &mut call.args {
                    *at += offset;
                }
                call.filter = call.filter.map(|f| f + offset);
                for (at, _) in &mut call.order_by {
                    *at += offset;
                }
                let types: Vec<DataType> = call.args.iter().map(|at| input.field(*at).data_type().clone()).collect();
                let kind = call.function.return_type(&types)?;
                call.output = Arc::new(Field::new(call.output.name(), kind, call.function != AggregateFunction::Count));
                Ok(call)
            })
            .collect()
    }
}

/// The same columns, the first called `names`: for messages about a group.
pub(super) fn with_names(columns: &Schema, names: &[String]) -> SchemaRef {
    let fields = columns.fields().iter().enumerate().map(|(at, field)| match names.get(at) {
        Some(name) => Arc::new(field.as_ref().clone().with_name(name)),
        None => field.clone(),
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The names of `schema` with the types that an arrow schema really has.
pub(super) fn with_types(schema: &DFSchemaRef, real: &Schema) -> Result<DFSchemaRef, DataFusionError> {
    let fields = schema
        .iter()
        .zip(real.fields())
        .map(|((q, f), r)| {
            let field = Field::new(f.name(), r.data_type().clone(), r.is_nullable()).with_metadata(f.metadata().clone());
            (q.cloned(), Arc::new(field))
        })
        .collect();
    Ok(Arc::new(DFSchema::new_with_metadata(fields, HashMap::new())?))
}

/// What an aggregation forgets, in words.
pub(super) fn keys_bound(names: &[String], is_of_fixed_size: bool) -> StateBound {
    match (names, is_of_fixed_size) {
        ([], true) => StateBound::Fixed("one row".into()),
        ([], false) => StateBound::Keys("every different value of its arguments".into()),
        (_, true) => StateBound::Keys(format!("one entry for each ({})", names.join(", "))),
        (_, false) => StateBound::Keys(format!("every different value for each ({})", names.join(", "))),
    }
}
