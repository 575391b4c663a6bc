//! Unary minus that doesn't wrap: DataFusion's gives the least number of a type back as it is, where `0 - x` is an error.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::compute::kernels::numeric::neg;
use arrow::datatypes::{DataType, Schema};
use datafusion::common::Result;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::expressions::NegativeExpr;
use datafusion::physical_plan::PhysicalExpr;

use super::diagnose::external;
use crate::error::{Code, Diagnostic};

/// `-x`; an error where the result is out of the range of the type of `x`: an integer, a DECIMAL, a part of an INTERVAL.
#[derive(Debug, Clone)]
pub(super) struct CheckedNegative {
    arg: Arc<dyn PhysicalExpr>,
}

impl CheckedNegative {
    /// In place of DataFusion's.
    pub(super) fn instead_of(negative: &NegativeExpr) -> Arc<dyn PhysicalExpr> {
        Arc::new(Self { arg: negative.arg().clone() })
    }
}

impl PartialEq for CheckedNegative {
    fn eq(&self, other: &Self) -> bool {
        self.arg.eq(&other.arg)
    }
}

impl Eq for CheckedNegative {}

impl Hash for CheckedNegative {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.arg.hash(state);
    }
}

impl fmt::Display for CheckedNegative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(- {})", self.arg)
    }
}

impl PhysicalExpr for CheckedNegative {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        self.arg.data_type(schema)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.arg.nullable(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let value = self.arg.evaluate(batch)?;
        // A constant is negated as a column of one value, so that there is one meaning.
        let is_constant = matches!(value, ColumnarValue::Scalar(_));
        let array = value.into_array(if is_constant { 1 } else { batch.num_rows() })?;
        if array.data_type().is_null() {
            return Ok(ColumnarValue::Array(arrow::array::new_null_array(&DataType::Null, batch.num_rows())));
        }
        let negated = neg(array.as_ref())?;
        if is_constant {
            return Ok(ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(&negated, 0)?));
        }
        Ok(ColumnarValue::Array(negated))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.arg]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        match <[Arc<dyn PhysicalExpr>; 1]>::try_from(children) {
            Ok([arg]) => Ok(Arc::new(Self { arg })),
            Err(_) => Err(external(Diagnostic::new(Code::Internal, "unary minus has one child"))),
        }
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-(")?;
        self.arg.fmt_sql(f)?;
        write!(f, ")")
    }
}
