//! `row.field`, `map[key]` and `list[n]`: what is asked of a value that has no such thing is refused in the user's words, and a MAP's element is
//! found by a key of the map's own type. DataFusion's own way takes a key that is written out for the name of a field, and can't compare it
//! with keys that are kept as views.

use std::hash::{Hash, Hasher};

use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use datafusion::common::{Column, DFSchema, DataFusionError, Result, SchemaError, TableReference};
use datafusion::functions_nested::extract::array_element_udf;
use datafusion::functions_nested::map_extract::map_extract_udf;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawFieldAccessExpr};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, GetFieldAccess, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility, lit,
};

use super::diagnose::{FIELDS_OF, external};
use super::planner_words::no_fields;
use crate::sql::types::data_type_name;

/// Plans what stands behind a value: `.field`, `[key]`, `[n]`.
#[derive(Debug)]
pub(super) struct FieldAccess;

impl ExprPlanner for FieldAccess {
    fn plan_field_access(&self, expr: RawFieldAccessExpr, schema: &DFSchema) -> Result<PlannerResult<RawFieldAccessExpr>> {
        let Ok(kind) = expr.expr.get_type(schema) else { return Ok(PlannerResult::Original(expr)) };
        if let (GetFieldAccess::NamedStructField { name }, false) = (&expr.field_access, matches!(kind, DataType::Map(..)))
            && let Some(name) = name.try_as_str().flatten()
        {
            let of = match &expr.expr {
                Expr::Column(column) => column.name.clone(),
                _ => "this".to_owned(),
            };
            if let Some(wrong) = Wrong::find(&of, &kind, name) {
                return Err(wrong.error());
            }
        }
        if !matches!(kind, DataType::Map(..)) {
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

    fn plan_compound_identifier(
        &self,
        field: &Field,
        _qualifier: Option<&TableReference>,
        nested_names: &[String],
    ) -> Result<PlannerResult<Vec<Expr>>> {
        let (mut of, mut kind) = (field.name(), field.data_type());
        for name in nested_names {
            if let Some(wrong) = Wrong::find(of, kind, name) {
                // An error would only be taken for "not me": it comes when the expression's type is asked for.
                return Ok(PlannerResult::Planned(ScalarUDF::new_from_impl(Refusal::new(wrong)).call(Vec::new())));
            }
            let DataType::Struct(fields) = kind else { break };
            let Some(inner) = fields.iter().find(|field| field.name() == name) else { break };
            (of, kind) = (inner.name(), inner.data_type());
        }
        Ok(PlannerResult::Original(Vec::new()))
    }
}

/// A field that is asked for and is not there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Wrong {
    /// The ROW has others.
    Unknown { of: String, name: String, fields: Fields },
    /// The value is no ROW.
    NoRow { of: String, kind: DataType },
}

impl Wrong {
    /// What is wrong with `of.name`, where `of` has the type `kind`.
    fn find(of: &str, kind: &DataType, name: &str) -> Option<Self> {
        match kind {
            DataType::Struct(fields) if fields.iter().any(|field| field.name() == name) => None,
            DataType::Struct(fields) => Some(Self::Unknown { of: of.to_owned(), name: name.to_owned(), fields: fields.clone() }),
            DataType::Map(..) | DataType::Null | DataType::Union(..) | DataType::Dictionary(..) => None,
            _ => Some(Self::NoRow { of: of.to_owned(), kind: kind.clone() }),
        }
    }

    /// An unknown field is told as a name that was not found, so that its spelling is mended where it only differs in case.
    fn error(&self) -> DataFusionError {
        match self {
            Self::Unknown { of, name, fields } => {
                let column = |name: &str| Column::new(Some(TableReference::partial(FIELDS_OF, of.as_str())), name);
                let valid_fields = fields.iter().map(|field| column(field.name())).collect();
                DataFusionError::SchemaError(
                    Box::new(SchemaError::FieldNotFound { field: Box::new(column(name)), valid_fields }),
                    Box::new(None),
                )
            }
            Self::NoRow { of, kind } => {
                let what = if of == "this" { of.clone() } else { format!("`{of}`") };
                external(no_fields(&what, &data_type_name(kind)))
            }
        }
    }
}

/// Stands for a field that is not there: the query that has it is refused as soon as its type is asked for.
#[derive(Debug, Clone)]
struct Refusal {
    wrong: Wrong,
    signature: Signature,
}

impl Refusal {
    fn new(wrong: Wrong) -> Self {
        Self { wrong, signature: Signature::nullary(Volatility::Immutable) }
    }
}

impl PartialEq for Refusal {
    fn eq(&self, other: &Self) -> bool {
        self.wrong == other.wrong
    }
}

impl Eq for Refusal {}

impl Hash for Refusal {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.wrong.hash(state);
    }
}

impl ScalarUDFImpl for Refusal {
    fn name(&self) -> &str {
        "field"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Err(self.wrong.error())
    }

    fn return_field_from_args(&self, _args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Err(self.wrong.error())
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(self.wrong.error())
    }
}
