//! `DATE + INTERVAL '1' HOUR` is a TIMESTAMP, as in Flink and PostgreSQL: a DATE has no hours to add to.

use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{BinaryExpr, Cast, Expr, ExprSchemable, Operator};
use sqlparser::ast::BinaryOperator;

use super::compile::literal;
use crate::sql::types::timestamp;

/// Plans sums and differences of DATE and INTERVAL, unless the interval is written out and has whole days only.
#[derive(Debug)]
pub(super) struct DateInterval;

impl ExprPlanner for DateInterval {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let op = match &expr.op {
            BinaryOperator::Plus => Operator::Plus,
            BinaryOperator::Minus => Operator::Minus,
            _ => return Ok(PlannerResult::Original(expr)),
        };
        // The type of a long sum is dear to find: the side that is none is asked first.
        let short = if matches!(expr.right, Expr::BinaryExpr(_)) { &expr.left } else { &expr.right };
        if !matches!(short.get_type(schema), Ok(DataType::Date32 | DataType::Interval(_))) {
            return Ok(PlannerResult::Original(expr));
        }
        let kinds = (expr.left.get_type(schema), expr.right.get_type(schema));
        let is_interval = |kind: &DataType| matches!(kind, DataType::Interval(_));
        let (date_is_left, interval) = match &kinds {
            (Ok(DataType::Date32), Ok(right)) if is_interval(right) => (true, &expr.right),
            (Ok(left), Ok(DataType::Date32)) if is_interval(left) && op == Operator::Plus => (false, &expr.left),
            _ => return Ok(PlannerResult::Original(expr)),
        };
        if is_whole_days(interval) {
            return Ok(PlannerResult::Original(expr));
        }
        let start = |date: Expr| Box::new(Expr::Cast(Cast::new(Box::new(date), timestamp())));
        let (left, right) =
            if date_is_left { (start(expr.left), Box::new(expr.right)) } else { (Box::new(expr.left), start(expr.right)) };
        Ok(PlannerResult::Planned(Expr::BinaryExpr(BinaryExpr { left, op, right })))
    }
}

fn is_whole_days(interval: &Expr) -> bool {
    match literal(interval) {
        Some(ScalarValue::IntervalMonthDayNano(Some(span))) => span.nanoseconds == 0,
        Some(ScalarValue::IntervalDayTime(Some(span))) => span.milliseconds == 0,
        Some(ScalarValue::IntervalYearMonth(_)) => true,
        _ => false,
    }
}
