//! JSON_OBJECT and JSON_ARRAY: JSON texts out of values. The parser brings the standard's spellings (`KEY 'a' VALUE x`, `ABSENT ON NULL`)
//! into plain calls, and puts a value that is JSON already into a structure of one field, [`EMBEDDED`].

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, StringViewBuilder};
use arrow::datatypes::{DataType, Field};
use datafusion::common::Result;
use datafusion::logical_expr::Volatility;

use super::call::{Call, Function, error, is_text};
use crate::error::Code;
use crate::format::cells::{Cells, check_type, write_json_string};
use crate::format::scalar::TimestampStandard;

/// The name of the field around a value that goes into the result as it is.
pub(crate) const EMBEDDED: &str = "$json";

pub(super) const FUNCTIONS: &[Function] = &[
    Function {
        name: "json_object",
        aliases: &[],
        family: "json",
        signature: "json_object(key VALUE value, … [NULL|ABSENT ON NULL])",
        doc: "A JSON object of keys and values; also json_object('key', value, …). A NULL value becomes null, or with ABSENT ON NULL is left out.",
        volatility: Volatility::Immutable,
        types: |types| pairs(types),
        eval: |call| object(call, false),
    },
    Function {
        name: "json_object_absent",
        aliases: &[],
        family: "json",
        signature: "json_object_absent(key, value, …)",
        doc: "As json_object(… ABSENT ON NULL).",
        volatility: Volatility::Immutable,
        types: |types| pairs(types),
        eval: |call| object(call, true),
    },
    Function {
        name: "json_array",
        aliases: &[],
        family: "json",
        signature: "json_array(value, … [NULL|ABSENT ON NULL])",
        doc: "A JSON array of values. A NULL is left out, or with NULL ON NULL becomes null.",
        volatility: Volatility::Immutable,
        types: |types| types.iter().all(is_writable).then(|| (types.iter().map(plain).collect(), DataType::Utf8View)),
        eval: |call| array(call, true),
    },
    Function {
        name: "json_array_null",
        aliases: &[],
        family: "json",
        signature: "json_array_null(value, …)",
        doc: "As json_array(… NULL ON NULL).",
        volatility: Volatility::Immutable,
        types: |types| types.iter().all(is_writable).then(|| (types.iter().map(plain).collect(), DataType::Utf8View)),
        eval: |call| array(call, false),
    },
];

/// The type that a value is brought to before it is written.
fn plain(data_type: &DataType) -> DataType {
    if is_text(data_type) { DataType::Utf8View } else { data_type.clone() }
}

/// Whether JSON has a form for values of a type.
fn is_writable(data_type: &DataType) -> bool {
    data_type.is_null() || check_type(&Field::new("value", plain(data_type), true), true).is_ok()
}

fn pairs(types: &[DataType]) -> Option<(Vec<DataType>, DataType)> {
    let is_right =
        types.len().is_multiple_of(2) && types.iter().step_by(2).all(is_text) && types.iter().skip(1).step_by(2).all(is_writable);
    is_right.then(|| (types.iter().map(plain).collect(), DataType::Utf8View))
}

/// A value argument, ready to be written.
enum Value {
    Cells(Cells),
    /// JSON already.
    Embedded(ArrayRef),
}

impl Value {
    fn new(call: &Call<'_>, index: usize) -> Result<Self> {
        let column = call.column(index)?;
        if let DataType::Struct(fields) = column.data_type()
            && let [only] = fields.as_ref()
            && only.name() == EMBEDDED
        {
            let inner = column.as_struct().column(0).clone();
            return Ok(Self::Embedded(arrow::compute::cast(&inner, &DataType::Utf8View)?));
        }
        let field = Field::new(format!("value {}", index + 1), column.data_type().clone(), true);
        let cells = Cells::new(&field, &column).map_err(|e| error(e.code, e.message))?;
        Ok(Self::Cells(cells))
    }

    /// Appends the value of a row; false: it is NULL, and nothing was appended.
    fn write(&self, row: usize, out: &mut String) -> bool {
        match self {
            Self::Cells(cells) if cells.is_null(row) => false,
            Self::Cells(cells) => {
                cells.write_json(row, TimestampStandard::Sql, false, out);
                true
            }
            Self::Embedded(texts) => {
                use arrow::array::Array as _;
                let texts = texts.as_string_view();
                if texts.is_null(row) {
                    return false;
                }
                out.push_str(texts.value(row));
                true
            }
        }
    }
}

fn object(call: &Call<'_>, leaves_null_out: bool) -> Result<ArrayRef> {
    let values = (1..call.arity()).step_by(2).map(|index| Value::new(call, index)).collect::<Result<Vec<_>>>()?;
    let mut out = StringViewBuilder::with_capacity(call.rows);
    let mut text = String::new();
    for row in 0..call.rows {
        text.clear();
        text.push('{');
        for (at, value) in values.iter().enumerate() {
            let Some(key) = call.text(at * 2)?.get(row) else {
                return Err(error(Code::RowExpression, "json_object: a key is NULL"));
            };
            let start = text.len();
            if start > 1 {
                text.push(',');
            }
            write_json_string(key, &mut text);
            text.push(':');
            if !value.write(row, &mut text) {
                if leaves_null_out {
                    text.truncate(start);
                } else {
                    text.push_str("null");
                }
            }
        }
        text.push('}');
        out.try_append_value(&text)?;
    }
    Ok(Arc::new(out.finish()))
}

fn array(call: &Call<'_>, leaves_null_out: bool) -> Result<ArrayRef> {
    let values = (0..call.arity()).map(|index| Value::new(call, index)).collect::<Result<Vec<_>>>()?;
    let mut out = StringViewBuilder::with_capacity(call.rows);
    let mut text = String::new();
    for row in 0..call.rows {
        text.clear();
        text.push('[');
        for value in &values {
            let start = text.len();
            if start > 1 {
                text.push(',');
            }
            if !value.write(row, &mut text) {
                if leaves_null_out {
                    text.truncate(start);
                } else {
                    text.push_str("null");
                }
            }
        }
        text.push(']');
        out.try_append_value(&text)?;
    }
    Ok(Arc::new(out.finish()))
}
