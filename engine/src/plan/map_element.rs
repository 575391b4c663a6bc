//! `map[key]`, with a key of the map's own type. DataFusion's own way takes a key that is written out for the name of a field, and can't
//! compare it with keys that are kept as views.

use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, Result};
use datafusion::functions_nested::extract::array_element_udf;
use datafusion::functions_nested::map_extract::map_extract_udf;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawFieldAccessExpr};
use datafusion::logical_expr::{Expr, ExprSchemable, GetFieldAccess, lit};

/// Plans `map[key]`: NULL when there is no such key.
#[derive(Debug)]
pub(super) struct MapElement;

impl ExprPlanner for MapElement {
    fn plan_field_access(&self, expr: RawFieldAccessExpr, schema: &DFSchema) -> Result<PlannerResult<RawFieldAccessExpr>> {
        if !matches!(expr.expr.get_type(schema), Ok(DataType::Map(..))) {
            return Ok(PlannerResult::Original(expr));
        }
        let key = match &expr.field_access {
            GetFieldAccess::NamedStructField { name } => Expr::Literal(name.clone(), None),
            GetFieldAccess::ListIndex { key } => key.as_ref().clone(),
            GetFieldAccess::ListRange { .. } => return Ok(PlannerResult::Original(expr)),
        };
        let found = map_extract_udf().call(vec![expr.expr, key]);
        Ok(PlannerResult::Planned(array_element_udf().call(vec![found, lit(1i64)])))
    }
}
