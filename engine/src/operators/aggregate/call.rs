//! What is to be computed: a call of an aggregate function over columns of a batch, and the type it gives.

use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::ScalarValue;

use crate::error::{Code, Diagnostic, Result};
use crate::sql::types::data_type_name;

/// An aggregate function. All ignore NULL arguments but `count(*)`, `array_agg`, `first_value`, `last_value` (which can be told to).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AggregateFunction {
    /// `count(*)` without arguments, `count(x)`: rows where `x` is not NULL. BIGINT, 0 over nothing.
    Count,
    /// Integers give BIGINT, DECIMAL(p,s) gives DECIMAL(38,s), both checked; floats give DOUBLE. NULL over nothing.
    Sum,
    /// Integers and decimals give DECIMAL(38, s) with s of at least 16 where the integer digits leave room, rounded half away from zero; floats DOUBLE.
    Avg,
    /// The least value; strings and binaries by bytes, NaN above all numbers.
    Min,
    /// The greatest value.
    Max,
    /// Population variance, DOUBLE.
    VarPop,
    /// Sample variance, DOUBLE; NULL below two values.
    VarSamp,
    /// Population standard deviation, DOUBLE.
    StddevPop,
    /// Sample standard deviation, DOUBLE; NULL below two values.
    StddevSamp,
    /// Whether all are true.
    BoolAnd,
    /// Whether any is true.
    BoolOr,
    /// The value of the first row by `order_by`, rows of equal rank by the value itself; without `order_by` the least value. NULL sorts first.
    FirstValue,
    /// The value of the last row by `order_by`, as for `FirstValue`.
    LastValue,
    /// All values by `order_by`, then by the value itself (NULL first), so that the result does not depend on arrival. NULL over nothing.
    ArrayAgg,
    /// All values that are not NULL, joined by `constants[0]`, in the order of `ArrayAgg`.
    StringAgg,
    /// About how many different values, BIGINT: HyperLogLog with 4096 registers, standard error 1.6 %. Append-only.
    ApproxDistinct,
    /// `arg_min(x, y)`: `x` where `y` is least, the least `x` among equals. Rows with NULL `y` don't count.
    ArgMin,
    /// `arg_max(x, y)`: `x` where `y` is greatest, the greatest `x` among equals. Rows with NULL `y` don't count.
    ArgMax,
}

impl AggregateFunction {
    /// Every function with its SQL names, the usual one first.
    pub const NAMES: &'static [(Self, &'static [&'static str])] = &[
        (Self::Count, &["count"]),
        (Self::Sum, &["sum"]),
        (Self::Avg, &["avg", "mean"]),
        (Self::Min, &["min"]),
        (Self::Max, &["max"]),
        (Self::VarPop, &["var_pop", "var_population"]),
        (Self::VarSamp, &["var_samp", "var", "variance", "var_sample"]),
        (Self::StddevPop, &["stddev_pop"]),
        (Self::StddevSamp, &["stddev_samp", "stddev"]),
        (Self::BoolAnd, &["bool_and", "every"]),
        (Self::BoolOr, &["bool_or"]),
        (Self::FirstValue, &["first_value"]),
        (Self::LastValue, &["last_value"]),
        (Self::ArrayAgg, &["array_agg", "collect"]),
        (Self::StringAgg, &["string_agg", "listagg"]),
        (Self::ApproxDistinct, &["approx_distinct", "approx_count_distinct"]),
        (Self::ArgMin, &["arg_min", "min_by"]),
        (Self::ArgMax, &["arg_max", "max_by"]),
    ];

    /// The function of that SQL name, in any case of letters.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, names)| names.iter().any(|n| n.eq_ignore_ascii_case(name))).map(|(f, _)| *f)
    }

    /// Its usual SQL name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(f, _)| *f == self).map_or("?", |(_, names)| names[0])
    }

    /// How it is called, and what it gives: for the list of functions.
    #[must_use]
    pub fn usage(self) -> (&'static str, &'static str) {
        match self {
            Self::Count => (
                "count(*), count(x)",
                "How many rows, or rows where `x` is not NULL: `count(DISTINCT user_id) FILTER (WHERE price > 100)`.",
            ),
            Self::Sum => (
                "sum(x)",
                "The sum. Whole numbers give BIGINT, DECIMAL(p, s) gives DECIMAL(38, s), both checked: what does not fit is an error. NULL over nothing.",
            ),
            Self::Avg => {
                ("avg(x)", "The average; over whole numbers and decimals a DECIMAL, over floats a DOUBLE. NULL over nothing.")
            }
            Self::Min => ("min(x)", "The least value; strings compare as bytes."),
            Self::Max => ("max(x)", "The greatest value."),
            Self::VarPop => ("var_pop(x)", "The variance of a whole population, as DOUBLE."),
            Self::VarSamp => ("var_samp(x)", "The variance of a sample, as DOUBLE; NULL below two values."),
            Self::StddevPop => ("stddev_pop(x)", "The standard deviation of a whole population, as DOUBLE."),
            Self::StddevSamp => ("stddev_samp(x)", "The standard deviation of a sample, as DOUBLE; NULL below two values."),
            Self::BoolAnd => ("bool_and(condition)", "Whether all are true."),
            Self::BoolOr => ("bool_or(condition)", "Whether any is true."),
            Self::FirstValue => (
                "first_value(x ORDER BY y)",
                "`x` of the first row by `y`; without ORDER BY the least `x`, as rows have no order of arrival. IGNORE NULLS may follow.",
            ),
            Self::LastValue => ("last_value(x ORDER BY y)", "`x` of the last row by `y`; without ORDER BY the greatest `x`."),
            Self::ArrayAgg => (
                "array_agg(x ORDER BY y)",
                "All values as an ARRAY, by `y`, then by `x` itself. The state of a group is as large as its values.",
            ),
            Self::StringAgg => (
                "string_agg(x, ', ' ORDER BY y)",
                "All values that are not NULL as one text, with the separator between; `listagg(x)` separates by commas.",
            ),
            Self::ApproxDistinct => (
                "approx_distinct(x)",
                "About how many different values, with a standard error of 1.6 %, in 4 KiB a group. Only over rows that are added, never taken back.",
            ),
            Self::ArgMin => {
                ("arg_min(x, y)", "`x` where `y` is least: `arg_min(bidder, price)`. Rows where `y` is NULL do not count.")
            }
            Self::ArgMax => {
                ("arg_max(x, y)", "`x` where `y` is greatest: `arg_max(status, changed_at)` is the last status of a key.")
            }
        }
    }

    /// Whether it can take rows back.
    #[must_use]
    pub fn retracts(self) -> bool {
        self != Self::ApproxDistinct
    }

    /// The type of its result for arguments of these types; refuses arguments it has no meaning for. A dictionary counts as its values.
    pub fn return_type(self, arguments: &[DataType]) -> Result<DataType> {
        let arguments: Vec<&DataType> = arguments.iter().map(plain).collect();
        let refuse = || {
            let types: Vec<String> = arguments.iter().map(|argument| data_type_name(argument)).collect();
            Diagnostic::new(Code::TypeMismatch, format!("`{}({})` does not exist", self.name(), types.join(", ")))
                .hint("cast the arguments to types that the function takes")
        };
        let only = || if let [one] = arguments.as_slice() { Ok(*one) } else { Err(refuse()) };
        match self {
            Self::Count if arguments.len() <= 1 => Ok(DataType::Int64),
            Self::Count => Err(refuse()),
            Self::Sum => match only()? {
                t if t.is_integer() => Ok(DataType::Int64),
                DataType::Decimal128(_, scale) => Ok(DataType::Decimal128(38, *scale)),
                t if t.is_floating() => Ok(DataType::Float64),
                _ => Err(refuse()),
            },
            Self::Avg => match only()? {
                t if t.is_integer() => Ok(DataType::Decimal128(38, AVG_SCALE)),
                DataType::Decimal128(precision, scale) => {
                    let integer_digits = i16::from(*precision) - i16::from(*scale);
                    Ok(DataType::Decimal128(38, AVG_SCALE.max(*scale).min((38 - integer_digits) as i8)))
                }
                t if t.is_floating() => Ok(DataType::Float64),
                _ => Err(refuse()),
            },
            Self::Min | Self::Max => Ok(only()?.clone()),
            Self::VarPop | Self::VarSamp | Self::StddevPop | Self::StddevSamp => match only()? {
                t if t.is_integer() || t.is_floating() || matches!(t, DataType::Decimal128(..)) => Ok(DataType::Float64),
                _ => Err(refuse()),
            },
            Self::BoolAnd | Self::BoolOr if *only()? == DataType::Boolean => Ok(DataType::Boolean),
            Self::BoolAnd | Self::BoolOr => Err(refuse()),
            Self::FirstValue | Self::LastValue => Ok(only()?.clone()),
            Self::ArrayAgg => Ok(DataType::new_list(only()?.clone(), true)),
            Self::StringAgg => match only()? {
                t @ (DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => Ok(t.clone()),
                _ => Err(refuse()),
            },
            Self::ApproxDistinct => only().map(|_| DataType::Int64),
            Self::ArgMin | Self::ArgMax => {
                if let [value, _] = arguments.as_slice() {
                    Ok((*value).clone())
                } else {
                    Err(refuse())
                }
            }
        }
    }
}

/// The scale of an average of integers: what PostgreSQL prints for averages of usual size.
pub const AVG_SCALE: i8 = 16;

/// The type of a dictionary's values; any other type itself.
pub(crate) fn plain(data_type: &DataType) -> &DataType {
    if let DataType::Dictionary(_, values) = data_type { values } else { data_type }
}

/// One call of an aggregate function over the columns of an input batch.
#[derive(Clone, Debug)]
pub struct AggregateCall {
    /// The function.
    pub function: AggregateFunction,
    /// Its arguments: columns of the input. `count(*)` has none.
    pub args: Vec<usize>,
    /// Only rows where this BOOLEAN column is true count.
    pub filter: Option<usize>,
    /// Each different value counts once. Without effect on functions that don't care for multiplicity.
    pub distinct: bool,
    /// The order of `first_value`, `last_value`, `array_agg` and `string_agg`.
    pub order_by: Vec<(usize, SortOptions)>,
    /// NULL arguments don't count for `first_value`, `last_value`, `array_agg` either.
    pub ignore_nulls: bool,
    /// Constant arguments: the separator of `string_agg`.
    pub constants: Vec<ScalarValue>,
    /// The result's name and type: what [`AggregateFunction::return_type`] says.
    pub output: FieldRef,
}

impl AggregateCall {
    /// A call without filter, order or constants.
    #[must_use]
    pub fn new(function: AggregateFunction, args: Vec<usize>, output: FieldRef) -> Self {
        Self {
            function,
            args,
            filter: None,
            distinct: false,
            order_by: Vec::new(),
            ignore_nulls: false,
            constants: Vec::new(),
            output,
        }
    }
}
