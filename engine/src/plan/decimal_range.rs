//! Sums, differences and products of DECIMAL that have more than 38 digits: Arrow's arithmetic gives 39 of them, as long as 128 bits hold them.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Decimal128Type, Schema};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_plan::PhysicalExpr;

use super::diagnose::external;
use crate::error::{Code, Diagnostic};

/// The most digits of a DECIMAL.
const DIGITS_MAX: u8 = 38;
/// The first number with more.
const LIMIT: i128 = 10i128.pow(DIGITS_MAX as u32);

/// An arithmetic expression whose result is checked against the digits of its type.
#[derive(Debug, Clone)]
pub(super) struct DecimalRange {
    inner: Arc<dyn PhysicalExpr>,
}

impl DecimalRange {
    /// `inner`, checked if its type is a DECIMAL that may be too short for it: a shorter one was made long enough when its type was found.
    pub(super) fn around(inner: Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<Arc<dyn PhysicalExpr>> {
        Ok(match inner.data_type(schema)? {
            DataType::Decimal128(DIGITS_MAX, _) => Arc::new(Self { inner }),
            _ => inner,
        })
    }
}

fn fits(value: i128) -> bool {
    -LIMIT < value && value < LIMIT
}

fn too_long() -> datafusion::common::DataFusionError {
    external(
        Diagnostic::new(Code::Overflow, format!("a DECIMAL has more than {DIGITS_MAX} digits"))
            .hint("cast to a DECIMAL with fewer digits before, or to DOUBLE"),
    )
}

impl PartialEq for DecimalRange {
    fn eq(&self, other: &Self) -> bool {
        self.inner.eq(&other.inner)
    }
}

impl Eq for DecimalRange {}

impl Hash for DecimalRange {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl fmt::Display for DecimalRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl PhysicalExpr for DecimalRange {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        self.inner.data_type(schema)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.inner.nullable(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let value = self.inner.evaluate(batch)?;
        let is_right = match &value {
            ColumnarValue::Scalar(ScalarValue::Decimal128(Some(value), ..)) => fits(*value),
            ColumnarValue::Scalar(_) => true,
            ColumnarValue::Array(array) => match array.as_primitive_opt::<Decimal128Type>() {
                // What lies under a NULL says nothing.
                Some(values) if values.null_count() > 0 => values.iter().flatten().all(fits),
                Some(values) => values.values().iter().copied().all(fits),
                None => true,
            },
        };
        if is_right { Ok(value) } else { Err(too_long()) }
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.inner]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        match <[Arc<dyn PhysicalExpr>; 1]>::try_from(children) {
            Ok([inner]) => Ok(Arc::new(Self { inner })),
            Err(_) => Err(external(Diagnostic::new(Code::Internal, "a check of digits has one child"))),
        }
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_sql(f)
    }
}
