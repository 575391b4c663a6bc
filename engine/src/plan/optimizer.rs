//! The chosen rules of DataFusion: those that keep a stream's meaning.
//!
//! Left out, and why: `SingleDistinctToGroupBy` (we keep distinct state ourselves), `PushDownLimit` and `EliminateLimit` (LIMIT over a stream
//! is state), `PropagateEmptyRelation` (a source is never empty), `UnionsToFilter`, `FilterNullJoinKeys`. `now()` and the like are our own
//! volatile functions, so `SimplifyExpressions` has nothing to fold.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
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
use datafusion::optimizer::{Analyzer, ApplyOrder, Optimizer, OptimizerConfig, OptimizerContext, OptimizerRule};

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
        Arc::new(PushDownColumnFilter(PushDownFilter::new())),
        Arc::new(EliminateGroupByConstant::new()),
        Arc::new(CommonSubexprEliminate::new()),
    ];
    if !keeps_columns {
        rules.push(Arc::new(OptimizeProjections::new()));
    }
    let context = OptimizerContext::new_with_config_options(config.clone()).without_query_execution_start_time();
    Optimizer::with_rules(rules).optimize(plan, &context, |_, _| {})
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
