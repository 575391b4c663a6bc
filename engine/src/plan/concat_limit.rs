//! `a || b` that makes too long a text: as every function it makes values up to a limit.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema};
use datafusion::common::Result;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_plan::PhysicalExpr;

use super::diagnose::external;
use crate::error::{Code, Diagnostic};
use crate::functions::{VALUE_BYTES_MAX, longest_value};

/// A concatenation whose results are checked against the limit. They are checked when they are there: each is as long as two values that
/// were within it.
#[derive(Debug, Clone)]
pub(super) struct ConcatLimit {
    inner: Arc<dyn PhysicalExpr>,
}

impl ConcatLimit {
    /// `inner`, checked.
    pub(super) fn around(inner: Arc<dyn PhysicalExpr>) -> Arc<dyn PhysicalExpr> {
        Arc::new(Self { inner })
    }
}

impl PartialEq for ConcatLimit {
    fn eq(&self, other: &Self) -> bool {
        self.inner.eq(&other.inner)
    }
}

impl Eq for ConcatLimit {}

impl Hash for ConcatLimit {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl fmt::Display for ConcatLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl PhysicalExpr for ConcatLimit {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        self.inner.data_type(schema)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.inner.nullable(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let value = self.inner.evaluate(batch)?;
        let longest = longest_value(&value)?;
        if longest > VALUE_BYTES_MAX {
            return Err(external(Diagnostic::new(
                Code::RowExpression,
                format!("||: the text would be {longest} bytes long, and may have {VALUE_BYTES_MAX}"),
            )));
        }
        Ok(value)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.inner]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        match <[Arc<dyn PhysicalExpr>; 1]>::try_from(children) {
            Ok([inner]) => Ok(Arc::new(Self { inner })),
            Err(_) => Err(external(Diagnostic::new(Code::Internal, "a check of lengths has one child"))),
        }
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_sql(f)
    }
}
