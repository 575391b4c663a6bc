//! `sum` of a query over materialized views: a total that its type has no room for is an error, as it is in a job. DataFusion's wraps.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{DECIMAL256_MAX_PRECISION, DataType, Decimal256Type, Field, FieldRef, i256};
use datafusion::common::{Result, ScalarValue};
use datafusion::functions_aggregate::sum::Sum;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, GroupsAccumulator, Signature};

use super::diagnose::external;
use crate::error::{Code, Diagnostic};

/// `sum`: whole numbers and DECIMALs are added up in 256 bits and brought back at the end; all others are left to DataFusion's.
#[derive(Debug, Default)]
pub(super) struct ExactSum {
    inner: Sum,
}

/// Whether totals of `kind` are added up here.
fn is_exact(kind: &DataType) -> bool {
    matches!(kind, DataType::Int64 | DataType::UInt64 | DataType::Decimal128(..))
}

/// The digits behind the point of a total of type `kind`.
fn scale(kind: &DataType) -> i8 {
    if let DataType::Decimal128(_, scale) = kind { *scale } else { 0 }
}

/// The type in which totals of type `kind` are added up. No number of rows that a machine holds fills it.
fn wide(kind: &DataType) -> DataType {
    DataType::Decimal256(DECIMAL256_MAX_PRECISION, scale(kind))
}

impl PartialEq for ExactSum {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl Eq for ExactSum {}

impl Hash for ExactSum {
    fn hash<H: Hasher>(&self, state: &mut H) {
        "exact".hash(state);
        self.inner.hash(state);
    }
}

impl AggregateUDFImpl for ExactSum {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let kind = args.return_type();
        if !is_exact(kind) {
            return self.inner.accumulator(args);
        }
        Ok(Box::new(Total { kind: kind.clone(), sum: i256::ZERO, count: 0, distinct: args.is_distinct.then(HashMap::new) }))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let kind = args.return_field.data_type();
        if !is_exact(kind) {
            return self.inner.state_fields(args);
        }
        let values = Field::new_list_field(wide(kind), true);
        Ok(vec![Arc::new(Field::new_list(format_state_name(args.name, "exact sum"), values, false))])
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        !is_exact(args.return_type()) && self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        self.inner.create_groups_accumulator(args)
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        if is_exact(args.return_type()) { self.accumulator(args) } else { self.inner.create_sliding_accumulator(args) }
    }
}

/// The total of one group.
#[derive(Debug)]
struct Total {
    kind: DataType,
    sum: i256,
    /// How many values are in it: of none the sum is NULL.
    count: u64,
    /// Each different value and how often it came, if only different ones count.
    distinct: Option<HashMap<i256, u64>>,
}

impl Total {
    fn values(&self, values: &ArrayRef) -> Result<ArrayRef> {
        Ok(arrow::compute::cast(values, &wide(&self.kind))?)
    }

    fn add(&mut self, value: i256) {
        if let Some(distinct) = &mut self.distinct {
            let times = distinct.entry(value).or_insert(0);
            *times += 1;
            if *times > 1 {
                return;
            }
        }
        self.sum = self.sum.wrapping_add(value);
        self.count += 1;
    }

    fn take_back(&mut self, value: i256) {
        if let Some(distinct) = &mut self.distinct {
            match distinct.get_mut(&value) {
                Some(times) if *times > 1 => {
                    *times -= 1;
                    return;
                }
                _ => drop(distinct.remove(&value)),
            }
        }
        self.sum = self.sum.wrapping_sub(value);
        self.count = self.count.saturating_sub(1);
    }
}

impl Accumulator for Total {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let values = self.values(&values[0])?;
        values.as_primitive::<Decimal256Type>().iter().flatten().for_each(|value| self.add(value));
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let values = self.values(&values[0])?;
        values.as_primitive::<Decimal256Type>().iter().flatten().for_each(|value| self.take_back(value));
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    /// Of different values all of them, else their sum: a list in both cases, empty if there is none.
    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let wide = wide(&self.kind);
        let scalar = |value: i256| ScalarValue::Decimal256(Some(value), DECIMAL256_MAX_PRECISION, scale(&self.kind));
        let values: Vec<ScalarValue> = match &self.distinct {
            Some(distinct) => distinct.keys().map(|value| scalar(*value)).collect(),
            None if self.count == 0 => Vec::new(),
            None => vec![scalar(self.sum)],
        };
        Ok(vec![ScalarValue::List(ScalarValue::new_list_nullable(&values, &wide))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for state in states[0].as_list::<i32>().iter().flatten() {
            state.as_primitive::<Decimal256Type>().iter().flatten().for_each(|value| self.add(value));
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        if self.count == 0 {
            return ScalarValue::try_from(&self.kind);
        }
        let too_large = || {
            external(
                Diagnostic::new(Code::Overflow, format!("a sum has no room in its type, {}", self.kind))
                    .hint("add up a DECIMAL(38, 0) or a DOUBLE: sum(CAST(x AS …))"),
            )
        };
        let value = self.sum.to_i128().ok_or_else(too_large)?;
        Ok(match self.kind {
            DataType::Int64 => ScalarValue::Int64(Some(i64::try_from(value).map_err(|_| too_large())?)),
            DataType::UInt64 => ScalarValue::UInt64(Some(u64::try_from(value).map_err(|_| too_large())?)),
            DataType::Decimal128(precision, scale) if value.unsigned_abs() < 10u128.pow(u32::from(precision)) => {
                ScalarValue::Decimal128(Some(value), precision, scale)
            }
            _ => return Err(too_large()),
        })
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.distinct.as_ref().map_or(0, |distinct| distinct.capacity() * size_of::<(i256, u64)>())
    }
}
