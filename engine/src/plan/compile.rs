//! From logical filters and projections to a fused chain: only the columns that later steps need are carried along.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, DFSchemaRef, DataFusionError, Result, ScalarValue, TableReference};
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, Operator};
use datafusion::physical_expr::create_physical_expr;
use datafusion::physical_expr::expressions::{BinaryExpr, NegativeExpr};
use datafusion::physical_plan::PhysicalExpr;

use super::checked_negative::CheckedNegative;
use super::concat_limit::ConcatLimit;
use super::decimal_range::DecimalRange;
use super::diagnose::external;
use super::sharing::share;
use crate::error::{Code, Diagnostic};
use crate::functions::CheckedCall;
use crate::operators::chain::{EPOCH_TIME_COLUMN, FusedChain, Step, WATERMARK_COLUMN, time_fields};

/// A stateless step over a stream, still in logical form.
#[derive(Clone, Debug)]
pub(super) enum LogicalStep {
    /// Keeps rows.
    Filter(Expr),
    /// Computes columns; the schema names them, in order.
    Project(Vec<Expr>, DFSchemaRef),
    /// The same columns under other names.
    Rename(DFSchemaRef),
}

/// Names of functions whose value is epoch time: the time of the last mark, the same on every core, replayed alike.
const EPOCH_TIME_FUNCTIONS: &[&str] = &[
    "now",
    "current_timestamp",
    "localtimestamp",
    "proctime",
    "current_date",
    "today",
    "current_time",
    "localtime",
    "current_row_timestamp",
];

/// Whether `expr` is, as a whole, `PROCTIME()`.
pub(super) fn is_proctime(expr: &Expr) -> bool {
    match expr {
        Expr::Alias(alias) => is_proctime(&alias.expr),
        Expr::ScalarFunction(call) => call.name().eq_ignore_ascii_case("proctime"),
        _ => false,
    }
}

/// Whether any part of `expr` asks for epoch time or the watermark.
pub(super) fn needs_time(expr: &Expr) -> bool {
    expr.exists(|e| Ok(time_function(e).is_some())).unwrap_or(false)
}

fn time_function(expr: &Expr) -> Option<&'static str> {
    let Expr::ScalarFunction(call) = expr else { return None };
    let name = call.name().to_ascii_lowercase();
    if name == "current_watermark" {
        return Some(WATERMARK_COLUMN);
    }
    EPOCH_TIME_FUNCTIONS.contains(&name.as_str()).then_some(EPOCH_TIME_COLUMN)
}

/// Puts the hidden columns in place of `now()` and the like.
fn bind_time(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    expr.transform_up(|e| match time_function(&e) {
        Some(column) => {
            let wanted = e.get_type(schema)?;
            let hidden = Expr::Column(Column::new_unqualified(column));
            Ok(Transformed::yes(match &wanted {
                DataType::Date32 | DataType::Time64(_) => Expr::Cast(Cast::new(Box::new(hidden), wanted)),
                other if *other == time_fields()[0].data_type().clone() => hidden,
                other => Expr::Cast(Cast::new(Box::new(hidden), other.clone())),
            }))
        }
        None => Ok(Transformed::no(e)),
    })
    .map(|t| t.data)
}

/// Compiles one expression over columns. Sums, differences, products and negatives of integers and decimals that don't fit their type are
/// errors; so is what a function of DataFusion can't take, or would make too long.
pub(super) fn physical(expr: &Expr, schema: &DFSchema) -> Result<Arc<dyn PhysicalExpr>> {
    let compiled = create_physical_expr(expr, schema, &ExecutionProps::new(), &PhysicalPlanningContext::default())?;
    // DataFusion's own arithmetic wraps, unless it is told not to.
    let checked = compiled.transform_up(|part| {
        if let Some(negative) = part.downcast_ref::<NegativeExpr>() {
            if matches!(part.data_type(schema.as_arrow())?, DataType::Timestamp(..)) {
                return Err(external(
                    Diagnostic::new(Code::TypeMismatch, "a time has no negative")
                        .hint("subtract it from another time, or take its number: EXTRACT(EPOCH FROM …)"),
                ));
            }
            return Ok(Transformed::yes(CheckedNegative::instead_of(negative)));
        }
        if let Some(checked) = CheckedCall::around(&part) {
            return Ok(Transformed::yes(checked));
        }
        let Some(binary) = part.downcast_ref::<BinaryExpr>() else { return Ok(Transformed::no(part)) };
        if *binary.op() == Operator::StringConcat {
            return Ok(Transformed::yes(ConcatLimit::around(part)));
        }
        let is_arithmetic = matches!(binary.op(), Operator::Plus | Operator::Minus | Operator::Multiply);
        if !is_arithmetic && *binary.op() != Operator::Divide {
            return Ok(Transformed::no(part));
        }
        let kind = part.data_type(schema.as_arrow())?;
        if matches!(kind, DataType::Decimal128(..)) {
            // Not gone into again: what stands below has been looked at.
            return Ok(Transformed::yes(DecimalRange::around(part, schema.as_arrow())?));
        }
        if !is_arithmetic || !kind.is_integer() {
            return Ok(Transformed::no(part));
        }
        Ok(Transformed::yes(Arc::new(binary.clone().with_fail_on_overflow(true)) as Arc<dyn PhysicalExpr>))
    })?;
    Ok(checked.data)
}

/// Compiles `steps` over `input` into a chain whose output has exactly the columns of the last step.
///
/// The chain's output schema is what the expressions really give (names of the logical schema, types and nullability of the physical one).
pub(super) fn compile(input: &DFSchemaRef, steps: &[LogicalStep]) -> Result<FusedChain> {
    let shared = share(input, steps)?;
    let steps = shared.as_deref().unwrap_or(steps);
    let input_arrow: SchemaRef = Arc::new(input.as_arrow().clone());
    let uses_time = steps.iter().any(|step| match step {
        LogicalStep::Filter(expr) => needs_time(expr),
        LogicalStep::Project(exprs, _) => exprs.iter().any(needs_time),
        LogicalStep::Rename(_) => false,
    });
    let mut schema: DFSchema = input.as_ref().clone();
    if uses_time {
        schema = with_hidden(&schema)?;
    }
    // Backwards: which columns of each step's output do the steps behind it need?
    let mut needed: Vec<Option<BTreeSet<usize>>> = vec![None; steps.len()]; // None: all
    for i in (0..steps.len()).rev() {
        let Some(next) = steps.get(i + 1) else { continue };
        let out_schema = logical_output(input, &steps[..=i]);
        needed[i] = match next {
            LogicalStep::Project(exprs, _) => Some(references(exprs.iter(), &out_schema)?),
            LogicalStep::Filter(expr) => match &needed[i + 1] {
                Some(later) => {
                    let mut all = references(std::iter::once(expr), &out_schema)?;
                    all.extend(later.iter().copied());
                    Some(all)
                }
                None => None,
            },
            LogicalStep::Rename(_) => needed[i + 1].clone(),
        };
    }
    let time_later = |i: usize| {
        steps[i + 1..].iter().any(|step| match step {
            LogicalStep::Filter(expr) => needs_time(expr),
            LogicalStep::Project(exprs, _) => exprs.iter().any(needs_time),
            LogicalStep::Rename(_) => false,
        })
    };
    let mut done = Vec::with_capacity(steps.len());
    // `kept[k]` is the logical column that the k-th physical column of `schema` is; hidden columns are not in it.
    let mut kept: Vec<usize> = (0..input.fields().len()).collect();
    for (i, step) in steps.iter().enumerate() {
        match step {
            LogicalStep::Rename(renamed) => {
                let fields = kept.iter().map(|k| {
                    let (relation, field) = renamed.qualified_field(*k);
                    (relation.cloned(), field.clone())
                });
                let hidden = schema.iter().skip(kept.len()).map(|(q, f)| (q.cloned(), f.clone())).collect::<Vec<_>>();
                let physical = schema.as_arrow().fields().clone();
                let fields =
                    fields.chain(hidden).enumerate().map(|(at, (q, f))| (q, retyped(&f, &physical[at]))).collect::<Vec<_>>();
                schema = DFSchema::new_with_metadata(fields, Default::default())?;
            }
            LogicalStep::Filter(expr) => {
                let predicate = physical(&bind_time(expr.clone(), &schema)?, &schema)?;
                let hidden = schema.fields().len() - kept.len();
                let mut keep: Vec<usize> =
                    (0..kept.len()).filter(|at| needed[i].as_ref().is_none_or(|n| n.contains(&kept[*at]))).collect();
                let kept_after: Vec<usize> = keep.iter().map(|at| kept[*at]).collect();
                if hidden > 0 && time_later(i) {
                    keep.extend(kept.len()..schema.fields().len());
                }
                schema = project_schema(&schema, &keep)?;
                kept = kept_after;
                done.push(Step::Filter { predicate, keep, schema: Arc::new(schema.as_arrow().clone()) });
            }
            LogicalStep::Project(exprs, named) => {
                let mut physicals = Vec::with_capacity(exprs.len());
                let mut fields: Vec<(Option<TableReference>, FieldRef)> = Vec::with_capacity(exprs.len());
                let mut kept_after = Vec::new();
                for (at, expr) in exprs.iter().enumerate() {
                    if needed[i].as_ref().is_some_and(|n| !n.contains(&at)) {
                        continue;
                    }
                    let bound = bind_time(expr.clone(), &schema)?;
                    let compiled = physical(bound.clone().unalias_nested().data_ref(), &schema)?;
                    let (relation, field) = named.qualified_field(at);
                    let arrow = schema.as_arrow();
                    let real = Field::new(field.name(), compiled.data_type(arrow)?, compiled.nullable(arrow)?)
                        .with_metadata(field.metadata().clone());
                    fields.push((relation.cloned(), Arc::new(real)));
                    physicals.push(compiled);
                    kept_after.push(at);
                }
                if time_later(i) {
                    for field in time_fields() {
                        physicals.push(physical(&Expr::Column(Column::new_unqualified(field.name())), &schema)?);
                        fields.push((None, Arc::new(field)));
                    }
                }
                schema = DFSchema::new_with_metadata(fields, Default::default())?;
                kept = kept_after;
                done.push(Step::Project { exprs: physicals, schema: Arc::new(schema.as_arrow().clone()) });
            }
        }
    }
    // A trailing rename leaves the batches' own schema as it is: operators go by position.
    if uses_time && schema.fields().len() != kept.len() {
        let keep: Vec<usize> = (0..kept.len()).collect();
        let shown = project_schema(&schema, &keep)?;
        let exprs = (0..kept.len()).map(|at| physical(&column_at(&schema, at), &schema)).collect::<Result<Vec<_>>>()?;
        done.push(Step::Project { exprs, schema: Arc::new(shown.as_arrow().clone()) });
    }
    Ok(FusedChain::new(&input_arrow, done, uses_time))
}

/// Borrowing the data of what `unalias_nested` gives back, whichever DataFusion type wraps it.
trait DataRef {
    fn data_ref(&self) -> &Expr;
}

impl DataRef for Transformed<Expr> {
    fn data_ref(&self) -> &Expr {
        &self.data
    }
}

fn retyped(named: &FieldRef, real: &FieldRef) -> FieldRef {
    Arc::new(Field::new(named.name(), real.data_type().clone(), real.is_nullable()).with_metadata(named.metadata().clone()))
}

fn with_hidden(schema: &DFSchema) -> Result<DFSchema> {
    let mut fields: Vec<(Option<TableReference>, FieldRef)> = schema.iter().map(|(q, f)| (q.cloned(), f.clone())).collect();
    fields.extend(time_fields().map(|f| (None, Arc::new(f))));
    DFSchema::new_with_metadata(fields, Default::default())
}

fn project_schema(schema: &DFSchema, keep: &[usize]) -> Result<DFSchema> {
    let fields = keep
        .iter()
        .map(|at| {
            let (q, f) = schema.qualified_field(*at);
            (q.cloned(), f.clone())
        })
        .collect();
    DFSchema::new_with_metadata(fields, Default::default())
}

/// Column `at` of a schema, as an expression.
pub(super) fn column_at(schema: &DFSchema, at: usize) -> Expr {
    Expr::Column(Column::from(schema.qualified_field(at)))
}

/// The columns behind `steps`.
pub(super) fn logical_output(input: &DFSchemaRef, steps: &[LogicalStep]) -> DFSchemaRef {
    steps
        .iter()
        .rev()
        .find_map(|step| match step {
            LogicalStep::Project(_, schema) | LogicalStep::Rename(schema) => Some(schema.clone()),
            LogicalStep::Filter(_) => None,
        })
        .unwrap_or_else(|| input.clone())
}

/// Indexes in `schema` of the columns that `exprs` read.
pub(super) fn references<'e>(exprs: impl Iterator<Item = &'e Expr>, schema: &DFSchema) -> Result<BTreeSet<usize>> {
    let mut found = BTreeSet::new();
    for expr in exprs {
        for column in expr.column_refs() {
            let at = schema
                .maybe_index_of_column(column)
                .ok_or_else(|| DataFusionError::Internal(format!("column {column} is not in the step before it")))?;
            found.insert(at);
        }
    }
    Ok(found)
}

/// The literal behind an expression that is one, through casts and aliases.
pub(super) fn literal(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Literal(value, _) => Some(value),
        Expr::Alias(alias) => literal(&alias.expr),
        Expr::Cast(cast) => literal(&cast.expr),
        _ => None,
    }
}

/// A schema without qualifiers, from arrow.
pub(super) fn unqualified(schema: &Schema) -> Result<DFSchemaRef> {
    Ok(Arc::new(DFSchema::try_from(schema.clone())?))
}
