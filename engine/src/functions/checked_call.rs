//! A call of a function that is not ours, made safe: its values are limited before they are made ([`super::value_limit`]), and a panic is an
//! error of the row.
//!
//! DataFusion's functions are many, and some of them index, multiply or reserve by what a row says. A panic inside of one is caught here, so
//! that it costs the row and not the job: the batch is cut in halves until the row is alone, as for every other error of an expression.

use std::cell::Cell;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, Volatility};
use datafusion::physical_expr::ScalarFunctionExpr;
use datafusion::physical_plan::PhysicalExpr;

use super::call::error;
use super::value_limit::{self, Demand};
use crate::error::Code;

thread_local! {
    /// Whether this thread is inside of a call whose panic is caught and told about as an error.
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A call whose panics and whose too long values are errors of its row.
#[derive(Debug)]
pub(crate) struct CheckedCall {
    call: Arc<ScalarFunctionExpr>,
    /// The call's own, which it lends only: a copy is large.
    options: Arc<ConfigOptions>,
    is_limited: bool,
}

impl CheckedCall {
    /// Around a call; one of a function of ours stays as it is.
    pub(crate) fn around(call: &Arc<dyn PhysicalExpr>) -> Option<Arc<dyn PhysicalExpr>> {
        let call = call.downcast_ref::<ScalarFunctionExpr>()?;
        if call.fun().inner().downcast_ref::<super::call::Builtin>().is_some() {
            return None;
        }
        let options = Arc::new(call.config_options().clone());
        let copy = ScalarFunctionExpr::new(
            call.name(),
            Arc::new(call.fun().clone()),
            call.args().to_vec(),
            call.return_field(&Schema::empty()).ok()?,
            options.clone(),
        );
        keep_quiet_inside();
        Some(Arc::new(Self { is_limited: value_limit::is_limited(call.fun().name()), call: Arc::new(copy), options }))
    }
}

/// Lets the hook that writes a panic to the terminal pass over those that are caught here. Once for the process.
fn keep_quiet_inside() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IS_INSIDE.get() {
                before(info);
            }
        }));
    });
}

/// What `body` gives; a panic is an error that names the function.
fn caught<T>(function: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    // Calls don't nest: the arguments are computed before.
    IS_INSIDE.set(true);
    let done = catch_unwind(AssertUnwindSafe(body));
    IS_INSIDE.set(false);
    done.unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .and_then(|said| said.lines().next())
            .unwrap_or("no reason given");
        let said: String = said.chars().take(200).collect();
        Err(error(Code::RowExpression, format!("{function} can't take these values: {said}")))
    })
}

impl PartialEq for CheckedCall {
    fn eq(&self, other: &Self) -> bool {
        self.call.eq(&other.call)
    }
}

impl Eq for CheckedCall {}

impl Hash for CheckedCall {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.call.hash(state);
    }
}

impl fmt::Display for CheckedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.call.fmt(f)
    }
}

impl PhysicalExpr for CheckedCall {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        self.call.data_type(schema)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        PhysicalExpr::nullable(self.call.as_ref(), schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let call = &self.call;
        let rows = batch.num_rows();
        let mut args = call.args().iter().map(|arg| arg.evaluate(batch)).collect::<Result<Vec<_>>>()?;
        let fields = call.args().iter().map(|arg| arg.return_field(batch.schema_ref())).collect::<Result<Vec<_>>>()?;
        let function = call.fun().name();
        if self.is_limited && value_limit::check(function, &mut args, rows)? == Demand::TooMuchTogether {
            return Err(error(Code::RowExpression, format!("{function}: the values of {rows} rows are too long for one call")));
        }
        let all_constant = !args.is_empty() && args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let output = caught(function, || {
            call.fun().invoke_with_args(ScalarFunctionArgs {
                args,
                arg_fields: fields,
                number_rows: rows,
                return_field: call.return_field(batch.schema_ref())?,
                config_options: self.options.clone(),
            })
        })?;
        match output {
            ColumnarValue::Array(array) if array.len() != rows => {
                if array.len() == 1 && all_constant {
                    return Ok(ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(&array, 0)?));
                }
                Err(error(Code::Internal, format!("{function} gave {} values for {rows} rows", array.len())))
            }
            fine => Ok(fine),
        }
    }

    fn return_field(&self, schema: &Schema) -> Result<FieldRef> {
        self.call.return_field(schema)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        self.call.children()
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let call = self.call.clone().with_new_children(children)?;
        Ok(Self::around(&call).unwrap_or(call))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.call.fmt_sql(f)
    }

    fn is_volatile_node(&self) -> bool {
        self.call.fun().signature().volatility == Volatility::Volatile
    }
}
