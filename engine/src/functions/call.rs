//! What a function of ours is made of, how DataFusion sees it, and how it reads its arguments.

use std::hash::{Hash, Hasher};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringViewArray};
use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

use crate::error::{Code, Diagnostic};

/// The types that arguments are brought to, and the type that comes out. `None`: the function can't be called so.
pub(super) type Typing = fn(&[DataType]) -> Option<(Vec<DataType>, DataType)>;

/// A function of ours.
#[derive(Debug)]
pub(super) struct Function {
    /// In lower case.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// What it is about.
    pub family: &'static str,
    /// How it is called.
    pub signature: &'static str,
    /// One sentence.
    pub doc: &'static str,
    /// Whether it may be computed while planning.
    pub volatility: Volatility,
    /// Argument and result types.
    pub types: Typing,
    /// Its values for a batch; as many as the call has rows.
    pub eval: fn(&Call<'_>) -> Result<ArrayRef>,
}

/// One evaluation.
pub(super) struct Call<'a> {
    args: &'a [ColumnarValue],
    /// How many values are wanted.
    pub rows: usize,
    /// Their type.
    pub return_type: &'a DataType,
}

impl Call<'_> {
    /// How many arguments there are.
    pub fn arity(&self) -> usize {
        self.args.len()
    }

    /// Argument `index` as text.
    pub fn text(&self, index: usize) -> Result<Text<'_>> {
        match &self.args[index] {
            ColumnarValue::Scalar(ScalarValue::Utf8View(value) | ScalarValue::Utf8(value) | ScalarValue::LargeUtf8(value)) => {
                Ok(Text::Constant(value.as_deref()))
            }
            ColumnarValue::Scalar(ScalarValue::Null) => Ok(Text::Constant(None)),
            ColumnarValue::Array(array) => array.as_string_view_opt().map(Text::Column).ok_or_else(|| self.internal(index)),
            ColumnarValue::Scalar(_) => Err(self.internal(index)),
        }
    }

    /// Argument `index` as whole numbers.
    pub fn integer(&self, index: usize) -> Result<Integer<'_>> {
        match &self.args[index] {
            ColumnarValue::Scalar(ScalarValue::Int64(value)) => Ok(Integer::Constant(*value)),
            ColumnarValue::Scalar(ScalarValue::Null) => Ok(Integer::Constant(None)),
            ColumnarValue::Array(array) => array.as_primitive_opt().map(Integer::Column).ok_or_else(|| self.internal(index)),
            ColumnarValue::Scalar(_) => Err(self.internal(index)),
        }
    }

    /// Argument `index` as a column of `rows` values.
    pub fn column(&self, index: usize) -> Result<ArrayRef> {
        self.args[index].to_array(self.rows)
    }

    fn internal(&self, index: usize) -> DataFusionError {
        error(Code::Internal, format!("argument {index} has the type {}", self.args[index].data_type()))
    }
}

/// A text argument.
#[derive(Clone, Copy)]
pub(super) enum Text<'a> {
    /// The same for all rows.
    Constant(Option<&'a str>),
    /// One a row.
    Column(&'a StringViewArray),
}

impl<'a> Text<'a> {
    /// Of that row.
    pub fn get(self, row: usize) -> Option<&'a str> {
        match self {
            Self::Constant(value) => value,
            Self::Column(column) => column.is_valid(row).then(|| column.value(row)),
        }
    }
}

/// A whole number argument.
#[derive(Clone, Copy)]
pub(super) enum Integer<'a> {
    /// The same for all rows.
    Constant(Option<i64>),
    /// One a row.
    Column(&'a Int64Array),
}

impl Integer<'_> {
    /// Of that row.
    pub fn get(self, row: usize) -> Option<i64> {
        match self {
            Self::Constant(value) => value,
            Self::Column(column) => column.is_valid(row).then(|| column.value(row)),
        }
    }
}

/// An error about a row's values or a constant argument.
pub(super) fn error(code: Code, message: impl Into<String>) -> DataFusionError {
    DataFusionError::External(Box::new(Diagnostic::new(code, message)))
}

/// As [`error`], with advice.
pub(super) fn error_with_hint(code: Code, message: impl Into<String>, hint: &str) -> DataFusionError {
    DataFusionError::External(Box::new(Diagnostic::new(code, message).hint(hint)))
}

/// A text, or NULL.
pub(super) fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null)
}

/// A whole number, or NULL.
pub(super) fn is_integer(data_type: &DataType) -> bool {
    data_type.is_integer() || *data_type == DataType::Null
}

/// What a time argument is brought to: µs, with its zone when that is UTC. Texts and dates become times.
pub(super) fn as_time(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Timestamp(_, Some(zone)) if matches!(zone.as_ref(), "UTC" | "+00:00" | "Z") => {
            DataType::Timestamp(TimeUnit::Microsecond, Some(zone.clone()))
        }
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 | DataType::Null => {
            DataType::Timestamp(TimeUnit::Microsecond, None)
        }
        text if is_text(text) => DataType::Timestamp(TimeUnit::Microsecond, None),
        _ => return None,
    })
}

/// A function of ours as DataFusion sees it.
#[derive(Debug)]
pub(super) struct Builtin {
    function: &'static Function,
    aliases: Vec<String>,
    signature: Signature,
}

impl Builtin {
    pub(super) fn new(function: &'static Function) -> Self {
        Self {
            function,
            aliases: function.aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            signature: Signature::user_defined(function.volatility),
        }
    }

    fn typed(&self, types: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
        (self.function.types)(types).ok_or_else(|| {
            let types: Vec<String> = types.iter().map(crate::sql::types::data_type_name).collect();
            let message = format!("{}({}) can't be called so", self.function.name, types.join(", "));
            error_with_hint(Code::UnknownFunction, message, &format!("write {}", self.function.signature))
        })
    }
}

impl PartialEq for Builtin {
    fn eq(&self, other: &Self) -> bool {
        self.function.name == other.function.name
    }
}

impl Eq for Builtin {}

impl Hash for Builtin {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.name.hash(state);
    }
}

impl ScalarUDFImpl for Builtin {
    fn name(&self) -> &str {
        self.function.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(self.typed(types)?.0)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(self.typed(types)?.1)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_constant = !args.args.is_empty() && args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if is_constant { 1 } else { args.number_rows };
        let call = Call { args: &args.args, rows, return_type: args.return_type() };
        let values = (self.function.eval)(&call)?;
        debug_assert_eq!(values.len(), rows, "{} gave another number of rows", self.function.name);
        if is_constant {
            Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&values, 0)?))
        } else {
            Ok(ColumnarValue::Array(values))
        }
    }
}
