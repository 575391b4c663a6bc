//! What DataFusion's planner takes, and has no meaning: aggregate functions among the keys of a group, and conditions that are not BOOLEAN,
//! which it would cast (`CASE WHEN id`, `FILTER (WHERE id)`), though it refuses them in WHERE.

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan};

use super::diagnose::external;
use crate::error::{Code, Diagnostic};
use crate::sql::types::data_type_name;

/// Checks every expression of a plan that is not analyzed yet: analysis puts the casts in.
pub(super) fn check(plan: &LogicalPlan) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Aggregate(aggregate) = node {
            for key in &aggregate.group_expr {
                if key.exists(|part| Ok(matches!(part, Expr::AggregateFunction(_))))? {
                    return Err(external(
                        Diagnostic::new(Code::NotGrouped, "an aggregate function can't stand in GROUP BY")
                            .hint("aggregate in a subquery first, and group what it gives"),
                    ));
                }
            }
        }
        let schema = merge_schema(&node.inputs());
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                match part {
                    Expr::Case(case) if case.expr.is_none() => {
                        for (when, _) in &case.when_then_expr {
                            condition(when, &schema)?;
                        }
                    }
                    Expr::AggregateFunction(call) => {
                        if let Some(filter) = &call.params.filter {
                            condition(filter, &schema)?;
                        }
                    }
                    _ => {}
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(())
}

fn condition(expr: &Expr, schema: &DFSchema) -> Result<()> {
    // What has no type is refused for that.
    match expr.get_type(schema) {
        Ok(DataType::Boolean | DataType::Null) | Err(_) => Ok(()),
        Ok(kind) => {
            let message = format!("a condition must be BOOLEAN, not {}", data_type_name(&kind));
            Err(external(Diagnostic::new(Code::TypeMismatch, message).hint("compare it with something: column = value")))
        }
    }
}
