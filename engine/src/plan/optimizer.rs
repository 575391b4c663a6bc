//! The chosen rules of DataFusion: those that keep a stream's meaning.
//!
//! Left out, and why: `SingleDistinctToGroupBy` (we keep distinct state ourselves), `PushDownLimit` and `EliminateLimit` (LIMIT over a stream
//! is state), `PropagateEmptyRelation` (a source is never empty), `UnionsToFilter`, `FilterNullJoinKeys`. `now()` and the like are our own
//! volatile functions, so `SimplifyExpressions` has nothing to fold.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::{Expr, LogicalPlan, Operator};
use datafusion::optimizer::common_subexpr_eliminate::CommonSubexprEliminate;
use datafusion::optimizer::decorrelate_predicate_subquery::DecorrelatePredicateSubquery;
use datafusion::optimizer::eliminate_cross_join::EliminateCrossJoin;
use datafusion::optimizer::eliminate_duplicated_expr::EliminateDuplicatedExpr;
use datafusion::optimizer::eliminate_filter::EliminateFilter;
use datafusion::optimizer::eliminate_group_by_constant::EliminateGroupByConstant;
use datafusion::optimizer::eliminate_join::EliminateJoin;
use datafusion::optimizer::eliminate_outer_join::EliminateOuterJoin;
use datafusion::optimizer::extract_equijoin_predicate::ExtractEquijoinPredicate;
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::optimize_unions::OptimizeUnions;
use datafusion::optimizer::push_down_filter::PushDownFilter;
use datafusion::optimizer::replace_distinct_aggregate::ReplaceDistinctWithAggregate;
use datafusion::optimizer::rewrite_set_comparison::RewriteSetComparison;
use datafusion::optimizer::scalar_subquery_to_join::ScalarSubqueryToJoin;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::optimizer::{Analyzer, ApplyOrder, Optimizer, OptimizerConfig, OptimizerContext, OptimizerRule};

use super::diagnose::external;
use super::not_null;
use super::time_rules::TimeRules;
use crate::error::{Code, Diagnostic};
use crate::sql::types::data_type_name;
use crate::time::Zone;

/// Coerces types and resolves what only the analyzer may; times are brought under the rule of the session's zone.
pub(super) fn analyze(plan: LogicalPlan, config: &ConfigOptions, zone: Zone) -> Result<LogicalPlan> {
    let mut rules = Analyzer::new().rules;
    rules.push(Arc::new(TimeRules { zone }));
    Analyzer::with_rules(rules).execute_and_check(plan, config, |_, _| {})
}

/// Optimizes an analyzed plan with the chosen rules.
///
/// `keeps_columns`: columns that the query does not use stay, for late rows are shown with all of them.
pub(super) fn optimize(plan: LogicalPlan, config: &Arc<ConfigOptions>, keeps_columns: bool) -> Result<LogicalPlan> {
    let mut rules: Vec<Arc<dyn OptimizerRule + Send + Sync>> = vec![
        Arc::new(RewriteSetComparison::new()),
        Arc::new(OptimizeUnions::new()),
        Arc::new(CheckConstants),
        Arc::new(SimplifyExpressions::new()),
        Arc::new(ReplaceDistinctWithAggregate::new()),
        Arc::new(EliminateJoin::new()),
        Arc::new(DecorrelatePredicateSubquery::new()),
        Arc::new(ScalarSubqueryToJoin::new()),
        Arc::new(ExtractEquijoinPredicate::new()),
        Arc::new(EliminateDuplicatedExpr::new()),
        Arc::new(EliminateFilter::new()),
        Arc::new(EliminateCrossJoin::new()),
        Arc::new(EliminateOuterJoin::new()),
        Arc::new(PushDownColumnFilter(PushDownFilter::new())),
        Arc::new(EliminateGroupByConstant::new()),
        Arc::new(CommonSubexprEliminate::new()),
    ];
    if !keeps_columns {
        rules.push(Arc::new(OptimizeProjections::new()));
    }
    let context = OptimizerContext::new_with_config_options(config.clone()).without_query_execution_start_time();
    not_null::answer(Optimizer::with_rules(rules).optimize(not_null::ask(plan)?, &context, |_, _| {})?)
}

/// Refuses arithmetic between integer constants whose result its type can't hold, before `SimplifyExpressions` folds it with wrapped digits.
///
/// Constants that a query itself puts together are told earlier and with their place (`constants`). This one sees those that only come together
/// when a view's or subquery's expressions are put in: `SELECT x + 1 FROM (SELECT 9223372036854775807 AS x)`.
#[derive(Debug)]
struct CheckConstants;

impl OptimizerRule for CheckConstants {
    fn name(&self) -> &str {
        "check_constants"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        None
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, _config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        check_constants(&plan)?;
        Ok(Transformed::no(plan))
    }
}

fn check_constants(plan: &LogicalPlan) -> Result<()> {
    plan.apply(|node| {
        node.apply_expressions(|expr| {
            constant(expr)?;
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(())
}

/// The value of an integer expression over constants, each operator checked; `None` for every other one, whose parts are checked all the same.
fn constant(expr: &Expr) -> Result<Option<(i128, DataType)>> {
    match expr {
        Expr::Literal(value, _) => {
            let kind = value.data_type();
            let wide =
                if kind.is_integer() && !value.is_null() { value.cast_to(&DataType::Decimal128(38, 0)).ok() } else { None };
            Ok(match wide {
                Some(ScalarValue::Decimal128(Some(value), ..)) => Some((value, kind)),
                _ => None,
            })
        }
        Expr::Cast(cast) => {
            let to = cast.field.data_type();
            Ok(constant(&cast.expr)?.filter(|(value, _)| fits(*value, to)).map(|(value, _)| (value, to.clone())))
        }
        Expr::Negative(inner) => {
            let Some((value, kind)) = constant(inner)? else { return Ok(None) };
            match value.checked_neg().filter(|value| fits(*value, &kind)) {
                Some(value) => Ok(Some((value, kind))),
                None => Err(overflow(format!("-({value})"), &kind)),
            }
        }
        Expr::BinaryExpr(binary) => {
            let (left, right) = (constant(&binary.left)?, constant(&binary.right)?);
            let (Some((left, kind)), Some((right, _))) = (left, right) else { return Ok(None) };
            let value = match binary.op {
                Operator::Plus => left.checked_add(right),
                Operator::Minus => left.checked_sub(right),
                Operator::Multiply => left.checked_mul(right),
                _ => return Ok(None),
            };
            match value.filter(|value| fits(*value, &kind)) {
                Some(value) => Ok(Some((value, kind))),
                None => Err(overflow(format!("{left} {} {right}", binary.op), &kind)),
            }
        }
        other => {
            other.apply_children(|child| {
                constant(child)?;
                Ok(TreeNodeRecursion::Continue)
            })?;
            Ok(None)
        }
    }
}

fn overflow(what: String, kind: &DataType) -> DataFusionError {
    let what = format!("{what} is out of the range of {}", data_type_name(kind));
    external(Diagnostic::new(Code::Overflow, what).hint("cast one side to a wider type, such as DECIMAL(38, 0)"))
}

fn fits(value: i128, kind: &DataType) -> bool {
    let within = |min: i128, max: i128| (min..=max).contains(&value);
    match kind {
        DataType::Int8 => within(i8::MIN.into(), i8::MAX.into()),
        DataType::Int16 => within(i16::MIN.into(), i16::MAX.into()),
        DataType::Int32 => within(i32::MIN.into(), i32::MAX.into()),
        DataType::Int64 => within(i64::MIN.into(), i64::MAX.into()),
        DataType::UInt8 => within(0, u8::MAX.into()),
        DataType::UInt16 => within(0, u16::MAX.into()),
        DataType::UInt32 => within(0, u32::MAX.into()),
        DataType::UInt64 => within(0, u64::MAX.into()),
        _ => false,
    }
}

/// Pushes filters down, but none without columns below an aggregation without keys: that has a row even without input, so `WHERE 1 = 0` above it
/// is not the same below.
#[derive(Debug)]
struct PushDownColumnFilter(PushDownFilter);

impl OptimizerRule for PushDownColumnFilter {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.0.apply_order()
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if let LogicalPlan::Filter(filter) = &plan
            && let LogicalPlan::Aggregate(aggregate) = filter.input.as_ref()
            && aggregate.group_expr.is_empty()
        {
            return Ok(Transformed::no(plan));
        }
        self.0.rewrite(plan, config)
    }
}
