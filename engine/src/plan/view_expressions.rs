//! Expressions of a query over materialized views, computed as those of a job are.
//!
//! DataFusion's own arithmetic wraps, and some of its functions panic or make values without a limit. A job's expressions are compiled with
//! checks ([`super::compile::physical`]); a query runs on DataFusion's plans, where there is no place to put them in. So each call and each
//! arithmetic expression becomes a function of the columns that it reads, which evaluates what was compiled. What reads columns of the query
//! around it (a correlated subquery) is left to DataFusion until its planner has taken the subquery apart, and so not checked.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, LogicalPlan, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::physical_plan::PhysicalExpr;

use super::compile::{needs_time, physical};
use super::diagnose::external;
use crate::error::{Code, Diagnostic};

/// The rule that puts compiled expressions into a query's plan. It goes behind all others: types are known, and times are on their clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct CheckedExpressions;

impl AnalyzerRule for CheckedExpressions {
    fn name(&self) -> &str {
        "checked_expressions"
    }

    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| {
            let mut schema = merge_schema(&plan.inputs());
            if let LogicalPlan::TableScan(scan) = &plan {
                schema.merge(&DFSchema::try_from_qualified_schema(scan.table_name.clone(), &scan.source.schema())?);
            }
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expr| {
                let name = names.save(&expr);
                let done = expr.transform_down(|expr| {
                    if !computes(&expr) || !is_of_columns(&expr)? {
                        return Ok(Transformed::no(expr));
                    }
                    let call = CompiledExpression::instead_of(&expr, &schema)?;
                    Ok(Transformed::new(call, true, TreeNodeRecursion::Jump))
                })?;
                Ok(done.update_data(|expr| name.restore(expr)))
            })
        })
        .map(|done| done.data)
    }
}

/// Whether `expr` itself is one that is compiled with a check.
fn computes(expr: &Expr) -> bool {
    match expr {
        Expr::BinaryExpr(binary) => matches!(
            binary.op,
            Operator::Plus | Operator::Minus | Operator::Multiply | Operator::Divide | Operator::Modulo | Operator::StringConcat
        ),
        Expr::Negative(_) => true,
        Expr::ScalarFunction(call) => call.func.signature().volatility != Volatility::Volatile,
        _ => false,
    }
}

/// Whether the value of `expr` follows from columns of its input alone.
fn is_of_columns(expr: &Expr) -> Result<bool> {
    let is_other = expr.exists(|part| {
        Ok(match part {
            Expr::ScalarFunction(call) => call.func.signature().volatility == Volatility::Volatile,
            Expr::AggregateFunction(_)
            | Expr::WindowFunction(_)
            | Expr::ScalarSubquery(_)
            | Expr::InSubquery(_)
            | Expr::Exists(_)
            | Expr::SetComparison(_)
            | Expr::OuterReferenceColumn(..)
            | Expr::Placeholder(_)
            | Expr::GroupingSet(_)
            | Expr::Unnest(_) => true,
            _ => false,
        })
    })?;
    Ok(!is_other && !needs_time(expr))
}

/// A function of the columns that an expression reads, whose value is the expression's.
#[derive(Debug)]
struct CompiledExpression {
    expr: Expr,
    compiled: Arc<dyn PhysicalExpr>,
    /// The columns, in the order of the arguments.
    columns: Arc<Schema>,
    field: FieldRef,
    signature: Signature,
}

impl CompiledExpression {
    fn instead_of(expr: &Expr, schema: &DFSchema) -> Result<Expr> {
        let mut columns: Vec<Column> = expr.column_refs().into_iter().cloned().collect();
        columns.sort_by_cached_key(Column::flat_name);
        let mut fields = Vec::with_capacity(columns.len());
        for column in &columns {
            let (qualifier, field) = schema.qualified_field_from_column(column)?;
            fields.push((qualifier.cloned(), field.clone()));
        }
        let read = DFSchema::new_with_metadata(fields, std::collections::HashMap::new())?;
        let function = Self {
            compiled: physical(expr, &read)?,
            // A planner that asks what comes of a NULL gives one for any column.
            columns: Arc::new(Schema::new(
                read.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect::<Vec<_>>(),
            )),
            field: expr.to_field(&read)?.1,
            signature: Signature::any(columns.len(), Volatility::Immutable),
            expr: expr.clone(),
        };
        let function =
            if columns.is_empty() { Self { signature: Signature::nullary(Volatility::Immutable), ..function } } else { function };
        let args = columns.into_iter().map(Expr::Column).collect();
        Ok(Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(ScalarUDF::new_from_impl(function)), args)))
    }
}

impl PartialEq for CompiledExpression {
    fn eq(&self, other: &Self) -> bool {
        self.expr == other.expr && self.columns == other.columns
    }
}

impl Eq for CompiledExpression {}

impl Hash for CompiledExpression {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.expr.hash(state);
    }
}

impl ScalarUDFImpl for CompiledExpression {
    fn name(&self) -> &str {
        "compiled"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(self.field.data_type().clone())
    }

    fn return_field_from_args(&self, _args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(self.field.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        // A call whose arguments are all constants has one value for all rows.
        let is_constant = !args.args.is_empty() && args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if is_constant || args.args.is_empty() { 1 } else { args.number_rows };
        let columns = args.args.iter().zip(self.columns.fields()).map(|(arg, field)| {
            let column = arg.to_array(rows)?;
            Ok(if column.data_type() == field.data_type() { column } else { cast(&column, field.data_type())? })
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(self.columns.clone(), columns, &options)?;
        let value = self.compiled.evaluate(&batch)?;
        if value.data_type() != *self.field.data_type() {
            return Err(external(Diagnostic::new(
                Code::Internal,
                format!("{} was planned as {} and gave {}", self.expr, self.field.data_type(), value.data_type()),
            )));
        }
        match value {
            ColumnarValue::Array(array) if rows == 1 => {
                Ok(ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(&array, 0)?))
            }
            value => Ok(value),
        }
    }
}
