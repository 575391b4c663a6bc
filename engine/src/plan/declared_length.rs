//! `VARCHAR(n)`, `CHAR(n)`, `VARBINARY(n)`, `BINARY(n)` of tables: what becomes of a value that has another length.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder, StringViewBuilder};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::diagnose::external;
use super::settings::LengthPolicy;
use crate::error::{Code, Diagnostic};
use crate::sql::types::DeclaredLength;

/// The column `name` of a source under the policy. Sources are not cut: what is not an error is left as it is.
pub(super) fn of_source(expr: Expr, length: DeclaredLength, policy: LengthPolicy, name: &str) -> Expr {
    if policy == LengthPolicy::Error { call(expr, length, true, name) } else { expr }
}

/// The column `name` of a sink under the policy.
pub(super) fn of_sink(expr: Expr, length: DeclaredLength, policy: LengthPolicy, name: &str) -> Expr {
    match policy {
        LengthPolicy::Error => call(expr, length, true, name),
        LengthPolicy::TrimPad => call(expr, length, false, name),
        LengthPolicy::Ignore => expr,
    }
}

fn call(expr: Expr, length: DeclaredLength, checks: bool, name: &str) -> Expr {
    let signature = Signature::any(1, Volatility::Immutable);
    ScalarUDF::from(Fit { column: name.to_owned(), length, checks, signature }).call(vec![expr])
}

/// Passes values that fit. Others: an error, or cut and filled up.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Fit {
    column: String,
    length: DeclaredLength,
    checks: bool,
    signature: Signature,
}

impl Fit {
    /// The value as long as declared; an error when it is longer and may not be cut.
    fn text<'v>(&self, value: &'v str, filled: &'v mut String) -> Result<&'v str> {
        let max = self.length.max as usize;
        if value.len() > max
            && let Some((end, _)) = value.char_indices().nth(max)
        {
            return if self.checks { Err(self.too_long(value.chars().count())) } else { Ok(&value[..end]) };
        }
        let missing = max - value.chars().count();
        if self.checks || !self.length.is_fixed || missing == 0 {
            return Ok(value);
        }
        filled.clear();
        filled.push_str(value);
        filled.extend(std::iter::repeat_n(' ', missing));
        Ok(filled)
    }

    fn bytes<'v>(&self, value: &'v [u8], filled: &'v mut Vec<u8>) -> Result<&'v [u8]> {
        let max = self.length.max as usize;
        if value.len() > max {
            return if self.checks { Err(self.too_long(value.len())) } else { Ok(&value[..max]) };
        }
        if self.checks || !self.length.is_fixed || value.len() == max {
            return Ok(value);
        }
        filled.clear();
        filled.extend_from_slice(value);
        filled.resize(max, 0);
        Ok(filled)
    }

    fn too_long(&self, found: usize) -> DataFusionError {
        let unit = if self.length.is_bytes { "bytes" } else { "characters" };
        external(
            Diagnostic::new(
                Code::ValueTooLong,
                format!("a value of {found} {unit} does not fit {}, {}", self.column, self.length),
            )
            .hint("declare the column longer, or SET 'table.exec.sink.type-length-enforcer' = 'trim_pad'"),
        )
    }
}

impl ScalarUDFImpl for Fit {
    fn name(&self) -> &str {
        "fit_declared_length"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        types.first().cloned().ok_or_else(|| DataFusionError::Internal("it takes one argument".into()))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        args.arg_fields.first().cloned().ok_or_else(|| DataFusionError::Internal("it takes one argument".into()))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_scalar = matches!(args.args.first(), Some(ColumnarValue::Scalar(_)));
        let rows = if is_scalar { 1 } else { args.number_rows };
        let value = args.args.into_iter().next().ok_or_else(|| DataFusionError::Internal("it takes one argument".into()))?;
        let array = value.into_array(rows)?;
        let wanted = array.data_type().clone();
        let fitted: ArrayRef = if self.length.is_bytes {
            let values = cast(&array, &DataType::Binary)?;
            let values = values.as_binary::<i32>();
            let (mut out, mut filled) = (BinaryBuilder::with_capacity(rows, values.value_data().len()), Vec::new());
            for value in values {
                match value {
                    Some(value) => out.append_value(self.bytes(value, &mut filled)?),
                    None => out.append_null(),
                }
            }
            Arc::new(out.finish())
        } else {
            let values = cast(&array, &DataType::Utf8View)?;
            let mut filled = String::new();
            if self.checks {
                for value in values.as_string_view().iter().flatten() {
                    self.text(value, &mut filled)?;
                }
                // All fit: the column itself goes on.
                return as_it_came(array, is_scalar);
            }
            let mut out = StringViewBuilder::with_capacity(rows);
            for value in values.as_string_view() {
                match value {
                    Some(value) => out.try_append_value(self.text(value, &mut filled)?)?,
                    None => out.append_null(),
                }
            }
            Arc::new(out.finish())
        };
        as_it_came(cast(&fitted, &wanted)?, is_scalar)
    }
}

fn as_it_came(array: ArrayRef, is_scalar: bool) -> Result<ColumnarValue> {
    if is_scalar {
        return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?));
    }
    Ok(ColumnarValue::Array(array))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn fit(max: u32, is_fixed: bool, checks: bool) -> Fit {
        let length = DeclaredLength { max, is_fixed, is_bytes: false };
        Fit { column: "t.c".into(), length, checks, signature: Signature::any(1, Volatility::Immutable) }
    }

    #[test]
    fn characters_are_counted_and_not_bytes() {
        let mut filled = String::new();
        assert_eq!(fit(3, false, true).text("äöü", &mut filled).unwrap(), "äöü");
        let error = fit(2, false, true).text("äöü", &mut filled).unwrap_err();
        assert!(error.to_string().contains("3 characters does not fit t.c, VARCHAR(2)"), "{error}");
        assert_eq!(fit(2, false, false).text("äöü", &mut filled).unwrap(), "äö");
    }

    #[test]
    fn only_fixed_lengths_are_filled_up_and_only_when_asked() {
        let mut filled = String::new();
        assert_eq!(fit(4, true, false).text("ä", &mut filled).unwrap(), "ä   ");
        assert_eq!(fit(4, false, false).text("ä", &mut filled).unwrap(), "ä");
        assert_eq!(fit(4, true, true).text("ä", &mut filled).unwrap(), "ä");
        let bytes = Fit { length: DeclaredLength { max: 3, is_fixed: true, is_bytes: true }, ..fit(3, true, false) };
        assert_eq!(bytes.bytes(&[1, 2, 3, 4], &mut Vec::new()).unwrap(), [1, 2, 3]);
        assert_eq!(bytes.bytes(&[1], &mut Vec::new()).unwrap(), [1, 0, 0]);
    }
}
