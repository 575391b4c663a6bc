//! NOT NULL columns. Of a sink: a NULL there is a bad row, under the row policy. Of a source: whoever decodes a row refuses it when a NOT NULL
//! column that is read has no value. `IS NULL` reads a column, too: DataFusion would answer it from the declaration alone, and the column
//! would not be decoded, so it is hidden from its simplification ([`ask`]) and put back behind it ([`answer`]).

use std::sync::Arc;

use arrow::array::Array;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, DFSchemaRef, DataFusionError, Result};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};

/// Hides the operands of `IS NULL` and `IS NOT NULL` that can't be NULL by their declaration.
pub(super) fn ask(plan: LogicalPlan) -> Result<LogicalPlan> {
    let mut error = None;
    let done = rewrite(plan, &mut |expr, inputs| {
        Ok(match expr {
            Expr::IsNull(inner) if !hides(&inner, inputs, &mut error) => Transformed::no(Expr::IsNull(inner)),
            Expr::IsNotNull(inner) if !hides(&inner, inputs, &mut error) => Transformed::no(Expr::IsNotNull(inner)),
            Expr::IsNull(inner) => Transformed::yes(Expr::IsNull(Box::new(asked().call(vec![*inner])))),
            Expr::IsNotNull(inner) => Transformed::yes(Expr::IsNotNull(Box::new(asked().call(vec![*inner])))),
            other => Transformed::no(other),
        })
    })?;
    match error {
        Some(error) => Err(error),
        None => Ok(done),
    }
}

/// Whether the operand is a column or a field that is declared NOT NULL.
fn hides(inner: &Expr, inputs: &[DFSchemaRef], error: &mut Option<DataFusionError>) -> bool {
    let is_plain = inner.try_as_col().is_some() || super::usage::field_access(inner).is_some();
    if !is_plain {
        return false;
    }
    let mut all = DFSchema::empty();
    inputs.iter().for_each(|input| all.merge(input));
    match inner.nullable(&all) {
        Ok(nullable) => !nullable,
        Err(e) => {
            error.get_or_insert(e);
            false
        }
    }
}

/// Puts back what [`ask`] has hidden.
pub(super) fn answer(plan: LogicalPlan) -> Result<LogicalPlan> {
    rewrite(plan, &mut |expr, _| {
        Ok(match expr {
            Expr::ScalarFunction(call) if call.func.inner().as_ref().is::<Asked>() => match call.args.into_iter().next() {
                Some(inner) => Transformed::yes(inner),
                None => return Err(DataFusionError::Internal("a question without an operand".into())),
            },
            other => Transformed::no(other),
        })
    })
}

/// Changes the expressions of all nodes from the leaves up, and keeps the names of their columns.
fn rewrite(plan: LogicalPlan, change: &mut dyn FnMut(Expr, &[DFSchemaRef]) -> Result<Transformed<Expr>>) -> Result<LogicalPlan> {
    let done = plan.transform_up_with_subqueries(|node| {
        let names = NamePreserver::new(&node);
        let inputs: Vec<DFSchemaRef> = node.inputs().iter().map(|input| input.schema().clone()).collect();
        let node = node.map_expressions(|expr| {
            let name = names.save(&expr);
            Ok(expr.transform_up(|part| change(part, &inputs))?.update_data(|expr| name.restore(expr)))
        })?;
        if node.transformed { node.map_data(LogicalPlan::recompute_schema) } else { Ok(node) }
    })?;
    Ok(done.data)
}

fn asked() -> ScalarUDF {
    ScalarUDF::from(Asked { signature: Signature::any(1, Volatility::Immutable) })
}

/// The value itself, of which nothing is said about NULL.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Asked {
    signature: Signature,
}

impl ScalarUDFImpl for Asked {
    fn name(&self) -> &str {
        "asked"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        types.first().cloned().ok_or_else(|| DataFusionError::Internal("asked takes one argument".into()))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        args.args.into_iter().next().ok_or_else(|| DataFusionError::Internal("asked takes one argument".into()))
    }
}

/// `expr`, or an error that names `column` when it is NULL.
pub(super) fn guard(expr: Expr, column: &str) -> Expr {
    ScalarUDF::from(NotNull { column: column.to_owned(), signature: Signature::any(1, Volatility::Immutable) }).call(vec![expr])
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct NotNull {
    column: String,
    signature: Signature,
}

impl ScalarUDFImpl for NotNull {
    fn name(&self) -> &str {
        "not_null"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        types.first().cloned().ok_or_else(|| DataFusionError::Internal("not_null takes one argument".into()))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let types: Vec<DataType> = args.arg_fields.iter().map(|f| f.data_type().clone()).collect();
        Ok(Arc::new(Field::new(self.name(), self.return_type(&types)?, false)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let value =
            args.args.into_iter().next().ok_or_else(|| DataFusionError::Internal("not_null takes one argument".into()))?;
        let has_null = match &value {
            ColumnarValue::Array(array) => array.null_count() > 0,
            ColumnarValue::Scalar(scalar) => scalar.is_null(),
        };
        if has_null {
            return Err(DataFusionError::Execution(format!("NULL in the column {}, which is NOT NULL", self.column)));
        }
        Ok(value)
    }
}
