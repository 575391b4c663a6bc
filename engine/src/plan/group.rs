//! GROUP BY without a window.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::DFSchemaRef;
use datafusion::logical_expr::Expr;

use super::build::{Builder, Calls, keys_bound, with_types};
use super::emission::{Emission, EmissionMode};
use super::explain::NodeInfo;
use super::stream::{ChangeKind, Stream, TimeRole};
use crate::error::{Code, Diagnostic, Result};
use crate::operators::Operator;
use crate::operators::aggregate::{GroupAggregate, GroupPlan};
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
    let descriptions: Vec<String> = calls.calls.iter().map(|c| c.output.name().clone()).collect();
    let placed = builder.columns(input, exprs, &names)?;
    let columns: SchemaRef = Arc::new(placed.base.as_arrow().clone());
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
    let key_names: Vec<String> = keys.iter().map(ToString::to_string).collect();
    let route = if keys.is_empty() { Route::Single } else { Route::Hash((0..keys.len()).collect()) };
    let node = crate::ids::NodeId(builder.graph.nodes.len() as u32);
    let factory: OperatorFactory = {
        let plan = plan.clone();
        Arc::new(move |core| Ok(Box::new(GroupAggregate::new(&plan, node, core)?) as Box<dyn Operator>))
    };
    let label = if descriptions.is_empty() { "Distinct" } else { "GroupAggregate" };
    let mut info = NodeInfo::new(label).kind(changes).keys(key_names.clone()).state(
        if descriptions.is_empty() { "the keys seen".to_owned() } else { "a group's accumulators".to_owned() },
        keys_bound(&key_names),
    );
    if !descriptions.is_empty() {
        info = info.detail(descriptions.join(", "));
    }
    let edge = Input { from: placed.node, port: placed.port, route };
    let node = builder.operator(label, factory, vec![edge], output.clone(), info);
    let base = with_types(schema, &output).map_err(|e| builder.refuse(&e))?;
    // Event time does not survive a grouping that may take rows back; processing time is a value like others behind it.
    let mut all_roles: Vec<TimeRole> =
        roles.into_iter().map(|r| if changes == ChangeKind::Append { r } else { TimeRole::None }).collect();
    all_roles.resize(base.fields().len(), TimeRole::None);
    let mut stream = Stream::behind(node, base, all_roles, changes, has_watermark);
    stream.unique_keys = vec![(0..keys.len()).collect()];
    Ok(stream)
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
