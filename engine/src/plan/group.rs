//! GROUP BY without a window.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::DFSchemaRef;
use datafusion::logical_expr::Expr;

use super::build::{Builder, Calls, keys_bound, with_names, with_types};
use super::emission::{Emission, EmissionMode};
use super::explain::NodeInfo;
use super::settings::AggregatePhases;
use super::spelling::spell;
use super::stream::{ChangeKind, Stream, TimeRole, plain_column};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::NodeId;
use crate::operators::aggregate::{GroupAggregate, GroupPlan};
use crate::operators::{Operator, PORT_MAIN};
use crate::runtime::graph::{Input, OperatorFactory, Route};

pub(super) fn aggregate(
    builder: &mut Builder<'_>,
    input: Stream,
    keys: &[Expr],
    calls: Calls,
    schema: &DFSchemaRef,
    emission: &Emission,
) -> Result<Stream> {
    check(builder, emission)?;
    let (kind, has_watermark) = (input.kind, input.has_watermark);
    let exprs: Vec<Expr> = keys.iter().chain(&calls.exprs).cloned().collect();
    let names: Vec<String> =
        (0..keys.len()).map(|i| format!("__key{i}")).chain((0..calls.exprs.len()).map(|i| format!("__arg{i}"))).collect();
    let descriptions = calls.shown.clone();
    let key_names: Vec<String> = keys.iter().map(|key| spell(key, input.names())).collect();
    let is_of_fixed_size = calls.are_of_fixed_size(kind == ChangeKind::Append);
    let placed = builder.columns(input, exprs, &names)?;
    let columns = with_names(placed.base.as_arrow(), &key_names);
    let roles: Vec<TimeRole> = placed.roles[..keys.len()].to_vec();
    let plan = GroupPlan {
        input: columns.clone(),
        keys: (0..keys.len()).collect(),
        calls: calls.over(&columns, keys.len())?,
        append_only: kind == ChangeKind::Append,
    };
    plan.check().map_err(|e| e.at(builder.statement))?;
    let changes = if plan.emits_append_only() { ChangeKind::Append } else { ChangeKind::Retract };
    let output = plan.output_schema();
    let route = if keys.is_empty() { Route::Single } else { Route::Hash((0..keys.len()).collect()) };
    let label = if descriptions.is_empty() { "Distinct" } else { "GroupAggregate" };
    let mut info = NodeInfo::new(label).kind(changes).keys(key_names.clone()).state(
        if descriptions.is_empty() { "the keys seen".to_owned() } else { "a group's accumulators".to_owned() },
        keys_bound(&key_names, is_of_fixed_size),
    );
    let shown: Vec<String> = key_names.iter().chain(&descriptions).cloned().collect();
    info = info.shown(&shown);
    if !descriptions.is_empty() {
        info = info.detail(descriptions.join(", "));
    }
    let node = if splits(builder, &plan, keys)? {
        two_phases(builder, &placed, &plan, &output, info, &key_names)?
    } else {
        let node = NodeId(builder.graph.nodes.len() as u32);
        let factory: OperatorFactory =
            Arc::new(move |core| Ok(Box::new(GroupAggregate::new(&plan, node, core)?) as Box<dyn Operator>));
        let edge = Input { from: placed.node, port: placed.port, route };
        builder.operator(label, factory, vec![edge], output.clone(), info)
    };
    let base = with_types(schema, &output).map_err(|e| builder.refuse(&e))?;
    // Event time does not survive a grouping that may take rows back; processing time is a value like others behind it.
    let mut all_roles: Vec<TimeRole> =
        roles.into_iter().map(|r| if changes == ChangeKind::Append { r } else { TimeRole::None }).collect();
    all_roles.resize(base.fields().len(), TimeRole::None);
    let mut stream = Stream::behind(node, base, all_roles, changes, has_watermark);
    stream.unique_keys = vec![(0..keys.len()).collect()];
    stream.shown = shown;
    Ok(stream)
}

/// Whether rows are summed up where they arrive before they cross to the core of their group. With different values (DISTINCT) each of
/// their columns costs an exchange more, which pays when there are few groups: no key, or only computed ones such as a day.
fn splits(builder: &Builder<'_>, plan: &GroupPlan, keys: &[Expr]) -> Result<bool> {
    match builder.phases {
        AggregatePhases::One => Ok(false),
        AggregatePhases::Two => plan.splits(),
        AggregatePhases::Auto => {
            let few_groups = !keys.iter().any(|key| plain_column(key).is_some());
            Ok(builder.cores > 1 && plan.splits()? && (few_groups || plan.distinct_columns()?.is_empty()))
        }
    }
}

fn two_phases(
    builder: &mut Builder<'_>,
    placed: &Stream,
    plan: &GroupPlan,
    output: &SchemaRef,
    info: NodeInfo,
    key_names: &[String],
) -> Result<NodeId> {
    let partial = plan.partial_schema()?;
    let mut edges = Vec::new();
    for phase in plan.first_phases()? {
        let mut from = Input { from: placed.node, port: placed.port, route: phase.route };
        if let Some((kind, make)) = phase.before {
            let node = NodeId(builder.graph.nodes.len() as u32);
            let factory: OperatorFactory = Arc::new(move |core| make(node, core));
            let info = NodeInfo::new(kind)
                .kind(ChangeKind::Append)
                .detail("passes values on that are new to this core")
                .shown(&placed.shown);
            let edge = Input { from: placed.node, port: placed.port, route: Route::Local };
            let schema: SchemaRef = Arc::new(placed.base.as_arrow().clone());
            (from.from, from.port) = (builder.operator(kind, factory, vec![edge], schema, info), PORT_MAIN);
        }
        let node = NodeId(builder.graph.nodes.len() as u32);
        let make = phase.factory;
        let factory: OperatorFactory = Arc::new(move |core| make(node, core));
        let mut info = NodeInfo::new(phase.kind).kind(info.changes).detail("first phase").shown(key_names);
        if phase.kind == "DistinctCount" {
            info = info.state("the different values of each group", keys_bound(key_names, false));
        }
        let node = builder.operator(phase.kind, factory, vec![from], partial.clone(), info);
        edges.push(Input { from: node, port: PORT_MAIN, route: plan.merging_route() });
    }
    let node = NodeId(builder.graph.nodes.len() as u32);
    let plan = plan.clone();
    let factory: OperatorFactory =
        Arc::new(move |core| Ok(Box::new(GroupAggregate::merging(&plan, node, core)?) as Box<dyn Operator>));
    Ok(builder.operator("GroupAggregate", factory, edges, output.clone(), info.detail("second phase: merges partial results")))
}

fn check(builder: &Builder<'_>, emission: &Emission) -> Result<()> {
    let refuse = |what: String, hint: &str| Err(Diagnostic::new(Code::EmitNotPossible, what).at(builder.statement).hint(hint));
    if emission.mode == EmissionMode::OnWindowClose {
        return refuse(
            "EMIT ON WINDOW CLOSE needs a window: a group of this query is never complete".into(),
            "group by the window_start and window_end of TUMBLE, HOP or CUMULATE, or leave EMIT out",
        );
    }
    if emission.lateness_us > 0 || emission.wants_late {
        return refuse(
            "ALLOW LATENESS and LATE DATA TO need a window: no row is late for a group without one".into(),
            "group by a window, or leave the clause out",
        );
    }
    Ok(())
}
