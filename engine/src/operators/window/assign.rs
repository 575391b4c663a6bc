//! The window table functions as an operator: each row once for each of its windows.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use super::spec::{Assignment, Refusal, Window, WindowCursor, WindowSpec};
use crate::batch::DeltaBatch;
use crate::connect::Rejected;
use crate::error::{Code, Diagnostic, Result};
use crate::operators::chain::render_row;
use crate::operators::{EpochMark, OpCx, Operator, Output, Port, Progress, RowAccounts};

/// What a window function takes a row's time from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WindowTime {
    /// Event time: this column, of type TIMESTAMP (µs, with or without zone).
    Column(usize),
    /// Processing time: the epoch time at which the operator gets the row ([`OpCx::time_us`]).
    Processing,
}

impl WindowTime {
    /// The type of `window_start`, `window_end` and `window_time`: that of the time column; that of `PROCTIME()`, a timestamp in µs with
    /// zone UTC, for processing time.
    pub(super) fn window_type(self, input: &SchemaRef) -> Result<DataType> {
        let Self::Column(column) = self else { return Ok(DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))) };
        timestamp_type(input, column)
    }
}

/// The type of a timestamp column in µs; refuses others.
pub(in crate::operators) fn timestamp_type(input: &SchemaRef, column: usize) -> Result<DataType> {
    let field = input.field(column);
    match field.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, _) => Ok(field.data_type().clone()),
        other => {
            Err(Diagnostic::new(Code::TypeMismatch, format!("window: column {} is {other}, not a timestamp in µs", field.name()))
                .hint("cast it to TIMESTAMP(6) or TIMESTAMP_LTZ(6)"))
        }
    }
}

/// How far `window_time` is before `window_end`, µs: the last millisecond that belongs to the window, as in Flink.
pub const WINDOW_TIME_BEFORE_END_US: i64 = 1000;

/// The fields `window_start`, `window_end`, `window_time`; never NULL.
#[must_use]
pub fn window_fields(window_type: &DataType) -> [Field; 3] {
    ["window_start", "window_end", "window_time"].map(|name| Field::new(name, window_type.clone(), false))
}

/// The columns of [`window_fields`] for windows.
pub(super) fn window_columns(window_type: &DataType, windows: &[Window]) -> [ArrayRef; 3] {
    let zone = match window_type {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    let column = |value: fn(&Window) -> i64| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from_iter_values(windows.iter().map(value)).with_timezone_opt(zone.clone()))
    };
    // An end is above the start by 1 ms at least, so this can't wrap.
    [column(|w| w.start_us), column(|w| w.end_us), column(|w| w.end_us - WINDOW_TIME_BEFORE_END_US)]
}

/// Accounts for a row that has no window.
pub(super) fn refuse(rows: &RecordBatch, row: u32, refusal: Refusal, accounts: &mut RowAccounts) -> Result<()> {
    let (code, message) = match refusal {
        Refusal::NullTime => (Code::NullEventTime, "the time of the row is NULL"),
        Refusal::OutOfRange => {
            (Code::Overflow, "a window of the row's time would begin or end outside of the range of timestamps")
        }
    };
    let raw = render_row(rows, row as usize);
    accounts.reject(Rejected { code, message: message.to_owned(), origin: accounts.node.clone(), position: None, raw })
}

/// Accounts for a row whose time is NULL.
pub(in crate::operators) fn refuse_null_time(rows: &RecordBatch, row: usize, accounts: &mut RowAccounts) -> Result<()> {
    refuse(rows, row as u32, Refusal::NullTime, accounts)
}

pub(super) fn internal(error: impl std::fmt::Display) -> Diagnostic {
    Diagnostic::new(Code::Internal, error.to_string())
}

/// `TUMBLE`, `HOP` and `CUMULATE` without an aggregation above them: appends `window_start`, `window_end` and `window_time` (the end less
/// 1 ms), of the time column's type, to each row. A row of weight w stands in each of its windows with weight w. Stateless; a row whose
/// time is NULL or out of range is rejected under the row policy ([`Code::NullEventTime`], [`Code::Overflow`]).
#[derive(Debug)]
pub struct WindowAssign {
    time: WindowTime,
    spec: WindowSpec,
    window_type: DataType,
    schema: SchemaRef,
    assignment: Assignment,
}

impl WindowAssign {
    /// Windows over `input`. Refuses a time column that is no timestamp in µs.
    pub fn new(input: &SchemaRef, time: WindowTime, spec: WindowSpec) -> Result<Self> {
        let window_type = time.window_type(input)?;
        let fields = input.fields().iter().map(|f| f.as_ref().clone()).chain(window_fields(&window_type));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        Ok(Self { time, spec, window_type, schema, assignment: Assignment::default() })
    }

    /// The input's columns, then [`window_fields`].
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }
}

impl Operator for WindowAssign {
    fn on_delta(&mut self, _port: Port, batch: DeltaBatch, cx: &mut OpCx<'_>, out: &mut Output) -> Result<()> {
        let assignment = &mut self.assignment;
        match self.time {
            WindowTime::Column(column) => {
                self.spec.assign_column(timestamps(&batch.rows, column)?, assignment);
                for (row, refusal) in &assignment.refused {
                    refuse(&batch.rows, *row, *refusal, cx.rows)?;
                }
            }
            WindowTime::Processing => {
                let mut cursor = WindowCursor::new(self.spec);
                let windows = cursor.seek(cx.time_us).map_err(|_| epoch_time_out_of_range(cx.time_us))?;
                assignment.rows.clear();
                assignment.windows.clear();
                for row in 0..batch.num_rows() as u32 {
                    assignment.windows.extend_from_slice(windows);
                    assignment.rows.resize(assignment.windows.len(), row);
                }
            }
        }
        let all_once =
            assignment.rows.len() == batch.num_rows() && assignment.refused.is_empty() && self.spec.windows_per_row() == 1;
        let (rows, weights) = if all_once {
            (batch.rows, batch.weights)
        } else {
            let indices = UInt32Array::from(assignment.rows.clone());
            (take_record_batch(&batch.rows, &indices).map_err(internal)?, batch.weights.take(&assignment.rows))
        };
        let columns = rows.columns().iter().cloned().chain(window_columns(&self.window_type, &assignment.windows)).collect();
        out.emit(
            crate::operators::PORT_MAIN,
            DeltaBatch::new(RecordBatch::try_new(self.schema.clone(), columns).map_err(internal)?, weights),
        );
        Ok(())
    }

    fn on_mark(&mut self, _mark: &EpochMark, _cx: &mut OpCx<'_>, _out: &mut Output) -> Result<Progress> {
        Ok(Progress::Done)
    }
}

/// A column of timestamps; its type was checked when the operator was made.
pub(in crate::operators) fn timestamps(rows: &RecordBatch, column: usize) -> Result<&TimestampMicrosecondArray> {
    rows.column(column).as_any().downcast_ref().ok_or_else(|| internal(format!("column {column} is not a timestamp in µs")))
}

pub(super) fn epoch_time_out_of_range(time_us: i64) -> Diagnostic {
    internal(format!("epoch time {time_us} has no window"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
    use tiderace_storage::{Shard, ShardOptions};

    use super::*;
    use crate::batch::Weights;
    use crate::ids::{CoreId, Epoch};
    use crate::operators::{RowPolicy, Watermark};

    fn input() -> SchemaRef {
        let zone = Some("UTC".into());
        Arc::new(Schema::new(vec![
            Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, zone), true),
            Field::new("k", DataType::Int64, true),
        ]))
    }

    fn batch(rows: &[(Option<i64>, i64, i64)]) -> DeltaBatch {
        let ts = TimestampMicrosecondArray::from_iter(rows.iter().map(|r| r.0)).with_timezone("UTC");
        let k = Int64Array::from_iter_values(rows.iter().map(|r| r.1));
        let weights = Weights::from_vec(rows.iter().map(|r| r.2).collect());
        DeltaBatch::new(RecordBatch::try_new(input(), vec![Arc::new(ts), Arc::new(k)]).unwrap(), weights)
    }

    fn run(
        time: WindowTime,
        spec: WindowSpec,
        policy: RowPolicy,
        input_batch: DeltaBatch,
    ) -> (Result<()>, Vec<DeltaBatch>, RowAccounts) {
        let mut shard = Shard::new(ShardOptions { budget_bytes: 1 << 20 });
        let mut accounts = RowAccounts { policy, node: "WindowAssign#1".into(), ..RowAccounts::default() };
        let mut out = Output::default();
        let mut operator = WindowAssign::new(&input(), time, spec).unwrap();
        let result = {
            let rows = &mut accounts;
            let mut cx = OpCx {
                shard: &mut shard,
                core: CoreId(0),
                epoch: Epoch(1),
                watermark: Watermark::MIN,
                time_us: 12_345,
                may_wait: true,
                rows,
            };
            operator.on_delta(0, input_batch, &mut cx, &mut out)
        };
        (result, out.batches.into_iter().map(|(_, b)| b).collect(), accounts)
    }

    #[test]
    fn rows_multiply_with_their_weights_and_get_three_columns() {
        let spec = WindowSpec::hop_us(5000, 10_000).unwrap();
        let (result, out, accounts) =
            run(WindowTime::Column(0), spec, RowPolicy::Skip, batch(&[(Some(12_000), 1, 1), (None, 2, 1), (Some(-1), 3, -2)]));
        result.unwrap();
        assert_eq!(accounts.rejected, [(Code::NullEventTime, 1)]);
        let rows = &out[0].rows;
        assert_eq!(rows.column(1).as_primitive::<Int64Type>().values(), &[1, 1, 3, 3]);
        assert_eq!(out[0].weights, Weights::from_vec(vec![1, 1, -2, -2]));
        let times = |i: usize| rows.column(i).as_primitive::<TimestampMicrosecondType>().values().to_vec();
        assert_eq!(times(2), [5000, 10_000, -10_000, -5000]);
        assert_eq!(times(3), [15_000, 20_000, 0, 5000]);
        assert_eq!(times(4), [14_000, 19_000, -1000, 4000]);
        assert_eq!(rows.schema().field(4).data_type(), input().field(0).data_type());
    }

    #[test]
    fn rows_without_time_fail_the_job_or_become_dead_letters() {
        let spec = WindowSpec::tumble_us(1000).unwrap();
        let (result, _, _) = run(WindowTime::Column(0), spec, RowPolicy::Fail, batch(&[(None, 2, 1)]));
        assert_eq!(result.unwrap_err().code, Code::NullEventTime);
        let (result, out, accounts) =
            run(WindowTime::Column(0), spec, RowPolicy::DeadLetter, batch(&[(Some(i64::MAX), 7, 1), (Some(5), 8, 1)]));
        result.unwrap();
        assert_eq!(out[0].num_rows(), 1);
        assert_eq!((accounts.dead_letters[0].code, accounts.rejected[0]), (Code::Overflow, (Code::Overflow, 1)));
        assert!(accounts.dead_letters[0].raw.contains('7'), "{:?}", accounts.dead_letters[0].raw);
    }

    #[test]
    fn processing_time_is_that_of_the_epoch() {
        let spec = WindowSpec::tumble_us(10_000).unwrap();
        let (result, out, _) = run(WindowTime::Processing, spec, RowPolicy::Fail, batch(&[(None, 2, 1), (None, 3, 1)]));
        result.unwrap();
        assert_eq!(out[0].rows.column(2).as_primitive::<TimestampMicrosecondType>().values(), &[10_000, 10_000]);
    }

    #[test]
    fn a_time_column_of_another_type_is_refused() {
        let refused = WindowAssign::new(&input(), WindowTime::Column(1), WindowSpec::tumble_us(1000).unwrap()).unwrap_err();
        assert_eq!(refused.code, Code::TypeMismatch);
    }
}
