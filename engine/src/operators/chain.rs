//! A fused chain of filters and projections: one pass over one batch, no operator call between them.
//!
//! A batch on which an expression fails (`1/0`, a bad cast, an overflow) is cut in halves until the rows that fail are alone; each of
//! those goes to the node's row policy, the others go on. DataFusion fails such a batch as a whole, which would lose its good rows.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray};
use arrow::compute::{FilterBuilder, prep_null_mask_filter};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::DataFusionError;
use datafusion::physical_plan::PhysicalExpr;

use super::{EpochMark, OpCx, Operator, Output, PORT_MAIN, Port, Progress, RowAccounts, Watermark};
use crate::batch::{DeltaBatch, Weights, rows_bytes};
use crate::connect::Rejected;
use crate::error::library_words::{about_a_value, in_sql_types, without_layers};
use crate::error::{Code, Diagnostic, Result};

/// The hidden column that holds epoch time, behind a chain's input columns when [`FusedChain::uses_time`].
pub const EPOCH_TIME_COLUMN: &str = "__epoch_time";
/// The hidden column that holds the watermark (NULL before the first), behind [`EPOCH_TIME_COLUMN`].
pub const WATERMARK_COLUMN: &str = "__watermark";

/// One step of a chain. Expressions are over the columns that the step before leaves.
#[derive(Clone, Debug)]
pub enum Step {
    /// Keeps rows for which `predicate` is true, and of them only the columns `keep`.
    Filter {
        /// A boolean; NULL is as false.
        predicate: Arc<dyn PhysicalExpr>,
        /// Indexes of the columns that later steps need, ascending.
        keep: Vec<usize>,
        /// The columns that remain.
        schema: SchemaRef,
    },
    /// Computes new columns.
    Project {
        /// One expression a column.
        exprs: Vec<Arc<dyn PhysicalExpr>>,
        /// Their names and types.
        schema: SchemaRef,
    },
}

/// Filters and projections, planned once, applied to each batch. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FusedChain {
    steps: Arc<[Step]>,
    uses_time: bool,
    output: SchemaRef,
}

/// What a chain may use while it runs.
pub struct ChainCx<'a> {
    /// The time of the last mark, µs since 1970: the value of `now()` and `PROCTIME()`.
    pub time_us: i64,
    /// The watermark in force: the value of `CURRENT_WATERMARK`.
    pub watermark: Watermark,
    /// Where rows that fail are accounted for.
    pub rows: &'a mut RowAccounts,
}

impl FusedChain {
    /// A chain of `steps` over `input`. With `uses_time` the first step sees two more columns behind `input`'s: [`EPOCH_TIME_COLUMN`]
    /// and [`WATERMARK_COLUMN`].
    #[must_use]
    pub fn new(input: &SchemaRef, steps: Vec<Step>, uses_time: bool) -> Self {
        let output = steps.last().map_or_else(
            || input.clone(),
            |step| match step {
                Step::Filter { schema, .. } | Step::Project { schema, .. } => schema.clone(),
            },
        );
        Self { steps: steps.into(), uses_time, output }
    }

    /// The columns that come out.
    #[must_use]
    pub fn output(&self) -> &SchemaRef {
        &self.output
    }

    /// Whether the first step sees the hidden time columns.
    #[must_use]
    pub fn uses_time(&self) -> bool {
        self.uses_time
    }

    /// The steps, for EXPLAIN.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Filters and computes; rows that fail go to `cx.rows`. Weights stay with their rows, and rows in their order. One batch comes out, or
    /// several of about [`Self::JOINED_BYTES_MAX`] bytes where one would be too large.
    pub fn apply(&self, batch: DeltaBatch, cx: &mut ChainCx<'_>) -> Result<Vec<DeltaBatch>> {
        let batch = if self.uses_time { append_time(batch, cx)? } else { batch };
        match self.run(&batch) {
            Ok(done) => Ok(vec![done]),
            Err(error) => {
                let mut parts = Vec::new();
                self.bisect(&batch, &error, cx, &mut parts)?;
                self.joined(parts)
            }
        }
    }

    fn run(&self, batch: &DeltaBatch) -> Result<DeltaBatch, DataFusionError> {
        let mut rows = batch.rows.clone();
        let mut weights = batch.weights.clone();
        for step in &*self.steps {
            match step {
                Step::Filter { predicate, keep, schema } => {
                    let mask = predicate.evaluate(&rows)?.into_array(rows.num_rows())?;
                    let mask = mask
                        .as_any()
                        .downcast_ref::<BooleanArray>()
                        .ok_or_else(|| DataFusionError::Internal("a filter is not boolean".into()))?;
                    (rows, weights) = filter(&rows, &weights, mask, keep, schema)?;
                }
                Step::Project { exprs, schema } => {
                    let columns = exprs.iter().map(|expr| expr.evaluate(&rows)?.into_array(rows.num_rows())).collect::<Result<
                        Vec<ArrayRef>,
                        _,
                    >>(
                    )?;
                    rows = assemble(schema, columns, rows.num_rows())?;
                }
            }
            if rows.num_rows() == 0 {
                return Ok(DeltaBatch::append(RecordBatch::new_empty(self.output.clone())));
            }
        }
        Ok(DeltaBatch::new(rows, weights))
    }

    /// Halves a failing batch until the bad rows are alone. O(bad · log rows) evaluations.
    fn bisect(
        &self,
        batch: &DeltaBatch,
        error: &DataFusionError,
        cx: &mut ChainCx<'_>,
        parts: &mut Vec<DeltaBatch>,
    ) -> Result<()> {
        if batch.num_rows() <= 1 {
            return cx.rows.reject(rejection(error, &batch.rows, &cx.rows.node));
        }
        let half = batch.num_rows() / 2;
        for (offset, len) in [(0, half), (half, batch.num_rows() - half)] {
            let part = DeltaBatch::new(batch.rows.slice(offset, len), batch.weights.slice(offset, len));
            match self.run(&part) {
                Ok(done) => parts.push(done),
                Err(error) => self.bisect(&part, &error, cx, parts)?,
            }
        }
        Ok(())
    }

    /// What a batch that was cut up is put together to again, as long as it is more than this.
    const JOINED_BYTES_MAX: usize = 256 << 20;

    /// Puts parts together, in their order.
    fn joined(&self, parts: Vec<DeltaBatch>) -> Result<Vec<DeltaBatch>> {
        let join = |parts: &[DeltaBatch]| -> Result<DeltaBatch> {
            let weights = Weights::from_vec(parts.iter().flat_map(|h| (0..h.num_rows()).map(|i| h.weights.get(i))).collect());
            let rows = arrow::compute::concat_batches(&self.output, parts.iter().map(|h| &h.rows)).map_err(internal)?;
            Ok(DeltaBatch::new(rows, weights))
        };
        let (mut joined, mut start, mut bytes) = (Vec::new(), 0, 0usize);
        for (at, part) in parts.iter().enumerate() {
            let more = rows_bytes(&part.rows);
            if at > start && bytes + more > Self::JOINED_BYTES_MAX {
                joined.push(join(&parts[start..at])?);
                (start, bytes) = (at, 0);
            }
            bytes += more;
        }
        joined.push(join(&parts[start..])?);
        Ok(joined)
    }
}

fn assemble(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_new_with_options(schema.clone(), columns, &RecordBatchOptions::new().with_row_count(Some(rows)))
}

fn filter(
    rows: &RecordBatch,
    weights: &Weights,
    mask: &BooleanArray,
    keep: &[usize],
    schema: &SchemaRef,
) -> Result<(RecordBatch, Weights), ArrowError> {
    let cleaned;
    let mask = if mask.null_count() > 0 {
        cleaned = prep_null_mask_filter(mask);
        &cleaned
    } else {
        mask
    };
    let count = mask.true_count();
    if count == rows.num_rows() {
        let columns = keep.iter().map(|c| rows.column(*c).clone()).collect();
        return Ok((assemble(schema, columns, count)?, weights.clone()));
    }
    if count == 0 {
        return Ok((RecordBatch::new_empty(schema.clone()), Weights::Ones(0)));
    }
    let mut builder = FilterBuilder::new(mask);
    if keep.len() > 1 {
        builder = builder.optimize();
    }
    let predicate = builder.build();
    let columns = keep.iter().map(|c| predicate.filter(rows.column(*c))).collect::<Result<Vec<_>, _>>()?;
    let weights = match weights {
        Weights::Ones(_) => Weights::Ones(count),
        Weights::Signed(w) => Weights::Signed(mask.values().set_indices().map(|i| w[i]).collect()),
    };
    Ok((assemble(schema, columns, count)?, weights))
}

fn append_time(batch: DeltaBatch, cx: &ChainCx<'_>) -> Result<DeltaBatch> {
    let n = batch.num_rows();
    let time: ArrayRef = Arc::new(TimestampMicrosecondArray::from_value(cx.time_us, n).with_timezone("UTC"));
    let watermark: ArrayRef = if cx.watermark == Watermark::MIN {
        Arc::new(TimestampMicrosecondArray::new_null(n).with_timezone("UTC"))
    } else {
        Arc::new(TimestampMicrosecondArray::from_value(cx.watermark.0, n).with_timezone("UTC"))
    };
    let mut fields = batch.rows.schema().fields().to_vec();
    fields.extend(time_fields().map(Arc::new));
    let mut columns = batch.rows.columns().to_vec();
    columns.extend([time, watermark]);
    let rows = assemble(&Arc::new(Schema::new(fields)), columns, n).map_err(internal)?;
    Ok(DeltaBatch::new(rows, batch.weights))
}

/// The hidden columns that a chain with `uses_time` sees.
#[must_use]
pub fn time_fields() -> [Field; 2] {
    let kind = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    [Field::new(EPOCH_TIME_COLUMN, kind.clone(), false), Field::new(WATERMARK_COLUMN, kind, true)]
}

fn internal(error: impl std::fmt::Display) -> Diagnostic {
    Diagnostic::new(Code::Internal, error.to_string())
}

/// Names an evaluation error for a person, and shows the row as far as allowed.
fn rejection(error: &DataFusionError, row: &RecordBatch, node: &str) -> Rejected {
    let (code, message) = classify(error);
    Rejected { code, message, origin: node.to_owned(), position: None, raw: render_row(row, 0) }
}

/// The code and one sentence for an error of an expression.
#[must_use]
pub fn classify(error: &DataFusionError) -> (Code, String) {
    let root = error.find_root();
    let text = match root {
        DataFusionError::ArrowError(arrow, _) => match &**arrow {
            ArrowError::DivideByZero => return (Code::DivisionByZero, "division by zero".into()),
            other => other.to_string(),
        },
        // Our own functions say themselves what is wrong.
        DataFusionError::External(inner) => match inner.downcast_ref::<Diagnostic>() {
            Some(ours) => return (ours.code, ours.message.clone()),
            None => inner.to_string(),
        },
        other => other.strip_backtrace(),
    };
    if let Some(known) = about_a_value(&text) {
        return known;
    }
    let line = in_sql_types(without_layers(&text).lines().next().unwrap_or_default());
    let lower = line.to_ascii_lowercase();
    let arrow = match root {
        DataFusionError::ArrowError(arrow, _) => Some(&**arrow),
        _ => None,
    };
    let code = match arrow {
        Some(ArrowError::ArithmeticOverflow(_)) => Code::Overflow,
        Some(ArrowError::CastError(_) | ArrowError::ParseError(_)) => Code::InvalidCast,
        _ if lower.contains("divide by zero") || lower.contains("division by zero") => {
            return (Code::DivisionByZero, "division by zero".into());
        }
        _ if lower.contains("overflow") || lower.contains("out of range") || lower.contains("too large to store") => {
            Code::Overflow
        }
        _ if lower.contains("cast") || lower.contains("parse") => Code::InvalidCast,
        _ => Code::RowExpression,
    };
    (code, line)
}

/// A row as `{a: 1, b: x}`, at most [`Rejected::RAW_BYTES_MAX`] bytes.
#[must_use]
pub fn render_row(rows: &RecordBatch, row: usize) -> String {
    let mut text = String::from("{");
    let options = FormatOptions::default().with_null("NULL");
    for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
        if field.name().starts_with("__") {
            continue;
        }
        if text.len() > 1 {
            text.push_str(", ");
        }
        text.push_str(field.name());
        text.push_str(": ");
        match ArrayFormatter::try_new(column, &options) {
            Ok(format) => text.push_str(&format.value(row).to_string()),
            Err(_) => text.push('?'),
        }
        if text.len() > Rejected::RAW_BYTES_MAX {
            let mut end = Rejected::RAW_BYTES_MAX - 4;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push_str("...");
            break;
        }
    }
    text.push('}');
    text
}

/// A chain as a node of its own.
#[derive(Debug)]
pub struct ChainOperator {
    chain: FusedChain,
}

impl ChainOperator {
    /// A node that applies `chain`.
    #[must_use]
    pub fn new(chain: FusedChain) -> Self {
        Self { chain }
    }
}

impl Operator for ChainOperator {
    fn on_delta(&mut self, _port: Port, batch: DeltaBatch, cx: &mut OpCx<'_>, out: &mut Output) -> Result<()> {
        let mut chain_cx = ChainCx { time_us: cx.time_us, watermark: cx.watermark, rows: cx.rows };
        for part in self.chain.apply(batch, &mut chain_cx)? {
            out.emit(PORT_MAIN, part);
        }
        Ok(())
    }

    fn on_mark(&mut self, _mark: &EpochMark, _cx: &mut OpCx<'_>, _out: &mut Output) -> Result<Progress> {
        Ok(Progress::Done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::operators::RowPolicy;
    use arrow::array::Int64Array;
    use datafusion::logical_expr::Operator as Op;
    use datafusion::physical_expr::expressions::{binary, col, lit};

    fn division() -> (FusedChain, DeltaBatch) {
        let a: ArrayRef = Arc::new(Int64Array::from(vec![10, 20, 30, 40, 50]));
        let b: ArrayRef = Arc::new(Int64Array::from(vec![1, 0, 3, 0, 5]));
        let rows = RecordBatch::try_from_iter([("a", a), ("b", b)]).unwrap();
        let schema = rows.schema();
        let quotient = binary(col("a", &schema).unwrap(), Op::Divide, col("b", &schema).unwrap(), &schema).unwrap();
        let big = binary(col("a", &schema).unwrap(), Op::Gt, lit(10i64), &schema).unwrap();
        let out = Arc::new(Schema::new(vec![Field::new("q", DataType::Int64, true)]));
        let steps = vec![
            Step::Filter { predicate: big, keep: vec![0, 1], schema: schema.clone() },
            Step::Project { exprs: vec![quotient], schema: out },
        ];
        let weights = Weights::Signed(vec![1, 1, 2, 1, -1].into());
        (FusedChain::new(&schema, steps, false), DeltaBatch::new(rows, weights))
    }

    #[test]
    fn rows_that_fail_are_left_out_and_the_others_keep_their_weights() {
        let (chain, batch) = division();
        let mut rows = RowAccounts { policy: RowPolicy::Skip, node: "node".into(), ..Default::default() };
        let parts = chain.apply(batch, &mut ChainCx { time_us: 0, watermark: Watermark::MIN, rows: &mut rows }).unwrap();
        let [out] = parts.as_slice() else { panic!("{} parts", parts.len()) };
        assert_eq!(out.rows.column(0).as_ref(), &Int64Array::from(vec![10, 10]) as &dyn Array);
        assert_eq!((out.weights.get(0), out.weights.get(1)), (2, -1));
        assert_eq!(rows.rejected, vec![(Code::DivisionByZero, 2)]);
    }

    #[test]
    fn under_the_fail_policy_the_error_names_the_row() {
        let (chain, batch) = division();
        let mut rows = RowAccounts { node: "node".into(), ..Default::default() };
        let error = chain.apply(batch, &mut ChainCx { time_us: 0, watermark: Watermark::MIN, rows: &mut rows }).unwrap_err();
        assert_eq!(error.code, Code::DivisionByZero);
        assert!(error.message.contains("a: 20"), "{error}");
    }
}
