//! GROUP BY over the bounds of a window.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::{DFSchema, DFSchemaRef, DataFusionError};
use datafusion::logical_expr::{Expr, ExprSchemable};

use super::build::{Builder, Calls, with_names, with_types};
use super::compile::{LogicalStep, column_at, compile, references};
use super::emission::{Emission, EmissionMode};
use super::explain::NodeInfo;
use super::spelling::spell;
use super::stream::{ChangeKind, PendingWindow, StateBound, Stream, TimeRole, WindowId, plain_column};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::NodeId;
use crate::operators::chain::ChainOperator;
use crate::operators::window::{WindowAggregate, WindowAssign, WindowEmission, WindowPlan, WindowSource, WindowTime};
use crate::operators::{Operator, PORT_MAIN};
use crate::runtime::graph::{Input, OperatorFactory, Route};

/// Which window a GROUP BY is over, and what each of its expressions is.
#[derive(Clone, Debug)]
pub(super) struct GroupWindow {
    pub id: WindowId,
    /// For each group expression: a bound of the window, or `None` for a key.
    pub bounds: Vec<Option<Bound>>,
}

/// A bound of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    Start,
    End,
    Time,
}

fn bound_of(input: &Stream, expr: &Expr) -> Option<(WindowId, Bound)> {
    let at = plain_column(expr).and_then(|column| input.schema.maybe_index_of_column(column))?;
    match input.roles[at] {
        TimeRole::WindowStart(id) => Some((id, Bound::Start)),
        TimeRole::WindowEnd(id) => Some((id, Bound::End)),
        TimeRole::WindowTime(id) => Some((id, Bound::Time)),
        TimeRole::None | TimeRole::Event | TimeRole::Processing => None,
    }
}

/// The window that `keys` group by, if they do.
pub(super) fn group_window(builder: &Builder<'_>, input: &Stream, keys: &[Expr]) -> Result<Option<GroupWindow>> {
    let found: Vec<Option<(WindowId, Bound)>> = keys.iter().map(|key| bound_of(input, key)).collect();
    let Some((id, _)) = found.iter().flatten().next().copied() else {
        if input.window.is_some() {
            return Err(Diagnostic::new(
                Code::InvalidWindow,
                "the query reads a window function but does not group by its window",
            )
            .at(builder.statement)
            .hint("add window_start, window_end to GROUP BY"));
        }
        return Ok(None);
    };
    if found.iter().flatten().any(|(other, _)| *other != id) {
        return Err(Diagnostic::new(Code::InvalidWindow, "GROUP BY names bounds of two windows").at(builder.statement));
    }
    let bounds: Vec<Option<Bound>> = found.into_iter().map(|f| f.map(|(_, b)| b)).collect();
    let has = |b| bounds.contains(&Some(b));
    if id.is_cumulative && has(Bound::Start) && !has(Bound::End) && !has(Bound::Time) {
        return Err(Diagnostic::new(Code::InvalidWindow, "several CUMULATE windows have the same start")
            .at(builder.statement)
            .hint("group by window_start and window_end"));
    }
    Ok(Some(GroupWindow { id, bounds }))
}

/// Places a pending window as an operator of its own. The columns are `window.output`'s.
pub(super) fn assign(builder: &mut Builder<'_>, placed: &Stream, window: &PendingWindow) -> Result<(NodeId, SchemaRef)> {
    let input: SchemaRef = Arc::new(placed.base.as_arrow().clone());
    let time = if window.id.is_processing { WindowTime::Processing } else { WindowTime::Column(window.time) };
    let operator = WindowAssign::new(&input, time, window.spec).map_err(|e| e.at(builder.statement))?;
    let schema = operator.schema().clone();
    let spec = window.spec;
    let factory: OperatorFactory = Arc::new(move |_| Ok(Box::new(WindowAssign::new(&input, time, spec)?) as Box<dyn Operator>));
    let info = NodeInfo::new("WindowAssign").kind(placed.kind).detail(spec.to_string()).time(window.shown[window.time].clone());
    let edge = Input { from: placed.node, port: placed.port, route: Route::Local };
    let node = builder.operator("WindowAssign", factory, vec![edge], schema.clone(), info);
    Ok((node, schema))
}

/// The name of the time column that a fused aggregation carries along.
const TIME_SOURCE: &str = "__window_source_time";

/// The steps behind a pending window without its columns, if they only pass those on; the time column comes along instead, called
/// [`TIME_SOURCE`]. `None`: some step computes with the window's columns.
fn without_window(window: &PendingWindow, steps: &[LogicalStep]) -> Result<Option<Vec<LogicalStep>>, DataFusionError> {
    let width = window.input.fields().len();
    let mut bounds: BTreeSet<usize> = (width..width + 3).collect();
    let mut schema = window.output.clone();
    let mut done = Vec::new();
    // First: the input's columns, and the time column once more.
    let mut exprs: Vec<Expr> = (0..width).map(|at| column_at(&window.input, at)).collect();
    exprs.push(column_at(&window.input, window.time).alias(TIME_SOURCE));
    done.push(LogicalStep::Project(exprs, with_time(&schema, &bounds, window)?));
    for step in steps {
        match step {
            LogicalStep::Filter(predicate) => {
                if references(std::iter::once(predicate), &schema)?.iter().any(|at| bounds.contains(at)) {
                    return Ok(None);
                }
                done.push(step.clone());
            }
            LogicalStep::Rename(renamed) => {
                schema = renamed.clone();
                done.push(LogicalStep::Rename(with_time(&schema, &bounds, window)?));
            }
            LogicalStep::Project(exprs, projected) => {
                let mut after = BTreeSet::new();
                let mut kept = Vec::new();
                for (at, expr) in exprs.iter().enumerate() {
                    let is_bound = plain_column(expr)
                        .and_then(|c| schema.maybe_index_of_column(c))
                        .is_some_and(|from| bounds.contains(&from));
                    if is_bound {
                        after.insert(at);
                    } else if references(std::iter::once(expr), &schema)?.iter().any(|from| bounds.contains(from)) {
                        return Ok(None);
                    } else {
                        kept.push(expr.clone());
                    }
                }
                kept.push(Expr::Column(datafusion::common::Column::new_unqualified(TIME_SOURCE)));
                schema = projected.clone();
                bounds = after;
                done.push(LogicalStep::Project(kept, with_time(&schema, &bounds, window)?));
            }
        }
    }
    Ok(Some(done))
}

fn with_time(schema: &DFSchemaRef, bounds: &BTreeSet<usize>, window: &PendingWindow) -> Result<DFSchemaRef, DataFusionError> {
    let mut fields: Vec<_> =
        schema.iter().enumerate().filter(|(at, _)| !bounds.contains(at)).map(|(_, (q, f))| (q.cloned(), f.clone())).collect();
    let time = window.input.field(window.time).clone();
    fields.push((None, Arc::new(time.as_ref().clone().with_name(TIME_SOURCE))));
    Ok(Arc::new(DFSchema::new_with_metadata(fields, HashMap::new())?))
}

/// Plans the aggregation: fused with the window function below when the steps between allow it, else over attached bounds.
pub(super) fn aggregate(
    builder: &mut Builder<'_>,
    input: Stream,
    keys: &[Expr],
    window: &GroupWindow,
    calls: Calls,
    schema: &DFSchemaRef,
    emission: &Emission,
) -> Result<Stream> {
    let (kind, has_watermark) = (input.kind, input.has_watermark);
    let plain: Vec<&Expr> = keys.iter().zip(&window.bounds).filter(|(_, b)| b.is_none()).map(|(k, _)| k).collect();
    let mut exprs: Vec<Expr> = plain.iter().map(|k| (*k).clone()).chain(calls.exprs.iter().cloned()).collect();
    let key_count = plain.len();
    let mut names: Vec<String> =
        (0..key_count).map(|i| format!("__key{i}")).chain((0..calls.exprs.len()).map(|i| format!("__arg{i}"))).collect();
    let arg_count = calls.exprs.len();
    let described = calls.shown.clone();
    let key_names: Vec<String> = plain.iter().map(|key| spell(key, input.names())).collect();
    let arg_names: Vec<String> = calls.exprs.iter().map(|arg| spell(arg, input.names())).collect();

    let fused = match &input.window {
        Some(pending) if pending.id == window.id => {
            let uses_bounds = references(exprs.iter(), &input.schema).map_err(|e| builder.refuse(&e))?.iter().any(|at| {
                matches!(input.roles[*at], TimeRole::WindowStart(_) | TimeRole::WindowEnd(_) | TimeRole::WindowTime(_))
            });
            if uses_bounds {
                None
            } else {
                without_window(pending, &input.steps).map_err(|e| builder.refuse(&e))?.map(|s| (pending.clone(), s))
            }
        }
        _ => None,
    };
    let (placed, source, label, zone) = match fused {
        Some((pending, steps)) => {
            names.push(TIME_SOURCE.into());
            exprs.push(Expr::Column(datafusion::common::Column::new_unqualified(TIME_SOURCE)));
            if emission.wants_late {
                late_columns(&input, &mut exprs, &mut names);
            }
            let all: Vec<LogicalStep> = pending.before.iter().cloned().chain(steps).collect();
            let last = super::compile::logical_output(&input.base, &all);
            let exprs: Vec<Expr> = exprs.into_iter().zip(&names).map(|(e, n)| e.unalias_nested().data.alias(n)).collect();
            let fields = exprs
                .iter()
                .map(|e| e.to_field(last.as_ref()).map(|(_, f)| (None, f)))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| builder.refuse(&e))?;
            let named = Arc::new(DFSchema::new_with_metadata(fields, HashMap::new()).map_err(|e| builder.refuse(&e))?);
            let mut steps = all;
            steps.push(LogicalStep::Project(exprs, named.clone()));
            let chain = compile(&input.base, &steps).map_err(|e| builder.refuse(&e))?;
            let out = chain.output().clone();
            let factory: OperatorFactory =
                Arc::new(move |_| Ok(Box::new(ChainOperator::new(chain.clone())) as Box<dyn Operator>));
            let edge = Input { from: input.node, port: input.port, route: Route::Local };
            let computed = exprs_computed(&key_names, &arg_names, &plain, &calls.exprs);
            let mut notes: Vec<String> = pending.notes.iter().chain(&input.notes).cloned().collect();
            notes.extend((!computed.is_empty()).then(|| format!("project {}", computed.join(", "))));
            let shown: Vec<String> =
                key_names.iter().chain(&arg_names).cloned().chain([pending.shown[pending.time].clone()]).collect();
            let info = NodeInfo::new("Chain").notes(&notes).shown(&shown).kind(kind);
            let node = builder.operator("Chain", factory, vec![edge], out.clone(), info);
            let time = key_count + arg_count;
            let source_time = if pending.id.is_processing { WindowTime::Processing } else { WindowTime::Column(time) };
            let time_name = pending.shown[pending.time].clone();
            let base = with_types(&named, &out).map_err(|e| builder.refuse(&e))?;
            let roles = vec![TimeRole::None; names.len()];
            (
                Stream::behind(node, base, roles, kind, has_watermark),
                WindowSource::Assign { time: source_time, spec: pending.spec },
                pending.spec.to_string(),
                time_name,
            )
        }
        None => {
            let mut start = None;
            let mut end = None;
            for (at, role) in input.roles.iter().enumerate() {
                match role {
                    TimeRole::WindowStart(id) if *id == window.id => start = Some(at),
                    TimeRole::WindowEnd(id) if *id == window.id => end = Some(at),
                    _ => {}
                }
            }
            let (Some(start), Some(end)) = (start, end) else {
                return Err(Diagnostic::new(Code::InvalidWindow, "the input of GROUP BY has only one bound of its window")
                    .at(builder.statement)
                    .hint("select both window_start and window_end in the subquery"));
            };
            exprs.push(column_at(&input.schema, start));
            exprs.push(column_at(&input.schema, end));
            let bounds_at = names.len();
            names.push("__window_start".into());
            names.push("__window_end".into());
            if emission.wants_late {
                late_columns(&input, &mut exprs, &mut names);
            }
            let placed = builder.columns(input, exprs, &names)?;
            (
                placed,
                WindowSource::Attached {
                    window_start: bounds_at,
                    window_end: bounds_at + 1,
                    processing: window.id.is_processing,
                },
                "the window of its input".to_owned(),
                "window_end".to_owned(),
            )
        }
    };

    // Late rows keep the names of the input's columns, which would stand there twice.
    let names: &[String] = if emission.wants_late { &[] } else { &key_names };
    let columns = with_names(placed.base.as_arrow(), names);
    let shows_open = emission.mode.shows_open_windows();
    let plan = WindowPlan {
        input: columns.clone(),
        windows: source,
        keys: (0..key_count).collect(),
        calls: calls.over(&columns, key_count)?,
        append_only: kind == ChangeKind::Append,
        emission: if shows_open { WindowEmission::Changes } else { WindowEmission::OnClose },
        lateness_us: emission.lateness_us,
        late_rows: emission.wants_late,
    };
    plan.check().map_err(|e| e.at(builder.statement))?;
    let changes = if plan.emits_append_only() { ChangeKind::Append } else { ChangeKind::Retract };
    let output = plan.output_schema().map_err(|e| e.at(builder.statement))?;
    // A row goes where its key is; without keys, where its window is: core 0 holds them all.
    let route = if key_count == 0 { Route::Single } else { Route::Hash((0..key_count).collect()) };
    let node = NodeId(builder.graph.nodes.len() as u32);
    let factory: OperatorFactory = {
        let plan = plan.clone();
        Arc::new(move |core| Ok(Box::new(WindowAggregate::new(&plan, node, core)?) as Box<dyn Operator>))
    };
    let kept = if emission.lateness_us > 0 {
        let lateness = crate::sql::interval::literal(0, 0, emission.lateness_us);
        format!("a window is forgotten {lateness} after the watermark has passed its end")
    } else {
        "a window is forgotten when the watermark passes its end".into()
    };
    let mode = match emission.mode {
        EmissionMode::Default | EmissionMode::OnWindowClose | EmissionMode::AfterWatermark => "on window close",
        EmissionMode::OnUpdate | EmissionMode::Changes | EmissionMode::Every(_) => "changed open windows at each tick",
    };
    let bounds = ["window_start", "window_end", "window_time"].map(str::to_owned);
    let shown: Vec<String> = key_names.iter().cloned().chain(bounds).chain(described.iter().cloned()).collect();
    let info = NodeInfo::new("WindowAggregate")
        .kind(changes)
        .detail(label)
        .notes(&if described.is_empty() { Vec::new() } else { vec![described.join(", ")] })
        .detail(format!("emits {mode}"))
        .shown(&shown)
        .keys(key_names)
        .time(format!("{zone}{}", if window.id.is_processing { " (processing time)" } else { "" }))
        .state("a group's accumulators for each open window", StateBound::Watermark(kept));
    let edge = Input { from: placed.node, port: placed.port, route };
    let node = builder.operator("WindowAggregate", factory, vec![edge], output.clone(), info);
    if emission.wants_late {
        let schema = plan.late_schema().map_err(|e| e.at(builder.statement))?;
        builder.late_outputs.push((node, schema));
    }
    // keys, start, end, time, results → the aggregate's own order, with all three bounds kept for what is above.
    let base = super::compile::unqualified(&Schema::new(unique_names(&output))).map_err(|e| builder.refuse(&e))?;
    let base = with_types(&base, &output).map_err(|e| builder.refuse(&e))?;
    let mut roles = vec![TimeRole::None; base.fields().len()];
    roles[key_count] = TimeRole::WindowStart(window.id);
    roles[key_count + 1] = TimeRole::WindowEnd(window.id);
    roles[key_count + 2] = TimeRole::WindowTime(window.id);
    let mut stream = Stream::behind(node, base.clone(), roles, changes, has_watermark);
    stream.port = PORT_MAIN;
    stream.shown = shown;
    stream.unique_keys = vec![(0..=key_count).collect()];
    let mut next_key = 0;
    let mut order: Vec<Expr> = window
        .bounds
        .iter()
        .map(|bound| {
            let at = match bound {
                None => {
                    next_key += 1;
                    next_key - 1
                }
                Some(Bound::Start) => key_count,
                Some(Bound::End) => key_count + 1,
                Some(Bound::Time) => key_count + 2,
            };
            column_at(&base, at)
        })
        .collect();
    order.extend((key_count + 3..base.fields().len()).map(|at| column_at(&base, at)));
    if key_count > 0 && !window.bounds.contains(&Some(Bound::Start)) {
        // The end names the window as well as the start does.
        stream.unique_keys.push((0..key_count).chain([key_count + 1]).collect());
    }
    stream.project(&order, schema).map_err(|e| builder.refuse(&e))
}

/// The keys and arguments that are no plain columns, as the chain computes them.
fn exprs_computed(key_names: &[String], arg_names: &[String], keys: &[&Expr], args: &[Expr]) -> Vec<String> {
    let exprs = keys.iter().copied().chain(args);
    exprs
        .zip(key_names.iter().chain(arg_names))
        .filter(|(e, _)| plain_column(e).is_none())
        .map(|(_, name)| name.clone())
        .collect()
}

/// Late rows are shown with the columns that the query's input has, under their own names.
fn late_columns(input: &Stream, exprs: &mut Vec<Expr>, names: &mut Vec<String>) {
    for (at, field) in input.schema.fields().iter().enumerate() {
        let is_bound = matches!(input.roles[at], TimeRole::WindowStart(_) | TimeRole::WindowEnd(_) | TimeRole::WindowTime(_));
        if !is_bound && !names.contains(field.name()) {
            exprs.push(column_at(&input.schema, at));
            names.push(field.name().clone());
        }
    }
}

/// Fields whose names differ, for a schema that only goes by position.
fn unique_names(schema: &SchemaRef) -> Vec<arrow::datatypes::Field> {
    schema.fields().iter().enumerate().map(|(at, f)| f.as_ref().clone().with_name(format!("__w{at}"))).collect()
}
