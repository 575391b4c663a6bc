//! The chosen rules of DataFusion: those that keep a stream's meaning.
//!
//! Left out, and why: `SingleDistinctToGroupBy` (we keep distinct state ourselves), `PushDownLimit` and `EliminateLimit` (LIMIT over a stream
//! is state), `PropagateEmptyRelation` (a source is never empty), `UnionsToFilter`, `FilterNullJoinKeys`. `now()` and the like are our own
//! volatile functions, so `SimplifyExpressions` has nothing to fold.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::logical_expr::LogicalPlan;
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
use datafusion::optimizer::{Analyzer, Optimizer, OptimizerContext, OptimizerRule};

/// Coerces types and resolves what only the analyzer may.
pub(super) fn analyze(plan: LogicalPlan, config: &ConfigOptions) -> Result<LogicalPlan> {
    Analyzer::new().execute_and_check(plan, config, |_, _| {})
}

/// Analyzes and optimizes with the chosen rules.
///
/// `keeps_columns`: columns that the query does not use stay, for late rows are shown with all of them.
pub(super) fn optimize(plan: LogicalPlan, config: &Arc<ConfigOptions>, keeps_columns: bool) -> Result<LogicalPlan> {
    let plan = analyze(plan, config)?;
    let mut rules: Vec<Arc<dyn OptimizerRule + Send + Sync>> = vec![
        Arc::new(RewriteSetComparison::new()),
        Arc::new(OptimizeUnions::new()),
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
        Arc::new(PushDownFilter::new()),
        Arc::new(EliminateGroupByConstant::new()),
        Arc::new(CommonSubexprEliminate::new()),
    ];
    if !keeps_columns {
        rules.push(Arc::new(OptimizeProjections::new()));
    }
    let context = OptimizerContext::new_with_config_options(config.clone()).without_query_execution_start_time();
    Optimizer::with_rules(rules).optimize(plan, &context, |_, _| {})
}
