//! The present: functions whose value is epoch time or the watermark. The planner puts a column in place of each; they are never called.

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::Result;
use datafusion::logical_expr::Volatility;

use super::call::{Call, Function, error};
use crate::error::Code;
use crate::sql::types::{timestamp, timestamp_ltz};

macro_rules! clock {
    ($name:literal, $aliases:expr, $signature:literal, $types:expr, $doc:literal) => {
        Function {
            name: $name,
            aliases: $aliases,
            family: "time",
            signature: $signature,
            doc: $doc,
            volatility: Volatility::Volatile,
            types: $types,
            eval: bound_by_the_planner,
        }
    };
}

pub(super) const FUNCTIONS: &[Function] = &[
    clock!(
        "now",
        &["current_timestamp", "current_row_timestamp"],
        "now()",
        |types| types.is_empty().then(|| (vec![], timestamp_ltz())),
        "Epoch time: when the rows of this tick were taken in, the same for all of them and again after a restart."
    ),
    clock!(
        "localtimestamp",
        &[],
        "localtimestamp",
        |types| types.is_empty().then(|| (vec![], timestamp())),
        "Epoch time as a TIMESTAMP, in UTC."
    ),
    clock!(
        "proctime",
        &[],
        "proctime()",
        |types| types.is_empty().then(|| (vec![], timestamp_ltz())),
        "Epoch time as a time attribute: windows over it close as time goes by."
    ),
    clock!(
        "current_date",
        &["today"],
        "current_date",
        |types| types.is_empty().then(|| (vec![], DataType::Date32)),
        "The date of epoch time, in UTC."
    ),
    clock!(
        "current_time",
        &["localtime"],
        "current_time",
        |types| types.is_empty().then(|| (vec![], DataType::Time64(TimeUnit::Microsecond))),
        "The time of day of epoch time, in UTC."
    ),
    clock!(
        "current_watermark",
        &[],
        "current_watermark(time)",
        |types| match types {
            [one @ DataType::Timestamp(..)] => Some((vec![one.clone()], one.clone())),
            _ => None,
        },
        "The watermark that rows are judged by; NULL before the first."
    ),
];

fn bound_by_the_planner(_call: &Call<'_>) -> Result<ArrayRef> {
    Err(error(Code::Internal, "a function of the present time was called instead of planned"))
}
