//! UNNEST: a row for each element of a list, a column for each field of a struct.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array, UInt64Array};
use arrow::buffer::NullBuffer;
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{NullHandling, UnnestOptions};

use super::{EpochMark, OpCx, Operator, Output, PORT_MAIN, Port, Progress};
use crate::batch::{DeltaBatch, Weights};
use crate::error::{Code, Diagnostic, Result};

/// About how many rows a batch of output has; one input row is never cut.
const BATCH_ROWS: usize = 16 * 1024;

/// The meaning of DataFusion's logical `Unnest`: each input row becomes as many rows as its longest list has elements, shorter lists are
/// filled up with NULL, other columns are repeated, and structs (after lists) become their fields. A row of weight w gives rows of weight w,
/// so a deletion takes back exactly what the insertion gave. Lists, large lists, fixed-size lists and maps (as entries) can be unnested.
/// Stateless.
///
/// What an empty or NULL list gives: nothing (`Drop`, the INNER form), a row with NULL for a NULL list (`Preserve`), or a row with NULL for
/// both (`PreserveAndExpandEmpty`, the LEFT form).
#[derive(Debug)]
pub struct Unnest {
    /// Input column and depth of each list that is unnested.
    lists: Vec<(usize, usize)>,
    structs: Vec<usize>,
    null_handling: NullHandling,
    schema: SchemaRef,
}

impl Unnest {
    /// From the fields of `datafusion::logical_expr::Unnest`: `lists` are its `list_type_columns` as (input column, depth), `structs` its
    /// `struct_type_columns`, `names` the names of its output columns. Refuses what can't be unnested.
    pub fn new(
        input: &SchemaRef,
        lists: &[(usize, usize)],
        structs: &[usize],
        options: &UnnestOptions,
        names: &[String],
    ) -> Result<Self> {
        let mut fields: Vec<Field> = Vec::new();
        for (column, field) in input.fields().iter().enumerate() {
            let depths: Vec<usize> = lists.iter().filter(|(c, _)| *c == column).map(|(_, depth)| *depth).collect();
            if structs.contains(&column) {
                let DataType::Struct(members) = field.data_type() else {
                    return Err(not_nested(field.name(), field.data_type(), "a row"));
                };
                fields.extend(members.iter().map(|member| Field::new(member.name(), member.data_type().clone(), true)));
            } else if depths.is_empty() {
                fields.push(field.as_ref().clone());
            }
            for depth in depths {
                let mut element = field.data_type();
                for _ in 0..depth {
                    element = element_type(element).ok_or_else(|| not_nested(field.name(), element, "an array"))?;
                }
                fields.push(Field::new(field.name(), element.clone(), true));
            }
        }
        if fields.len() != names.len() {
            let message = format!("unnest gives {} columns, but {} are named", fields.len(), names.len());
            return Err(Diagnostic::new(Code::Internal, message));
        }
        let named = fields.into_iter().zip(names).map(|(field, name)| field.with_name(name)).collect::<Vec<_>>();
        let schema = Arc::new(Schema::new(named));
        Ok(Self { lists: lists.to_vec(), structs: structs.to_vec(), null_handling: options.null_handling, schema })
    }

    /// The columns that come out, in the order of the input's; those of lists and structs may be NULL.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Unnests some rows; the result and, for each of its rows, the row it comes from.
    fn expand(&self, rows: &RecordBatch) -> Result<(RecordBatch, Option<Vec<u32>>)> {
        let deepest = self.lists.iter().map(|(_, depth)| *depth).max().unwrap_or(0);
        let mut columns = rows.columns().to_vec();
        let mut origin: Option<Vec<u32>> = None;
        let mut elements: Vec<Option<ArrayRef>> = vec![None; self.lists.len()];
        for level in (1..=deepest).rev() {
            let open: Vec<usize> = (0..self.lists.len()).filter(|i| self.lists[*i].1 >= level).collect();
            let lists = open.iter().map(|i| Spans::of(elements[*i].as_ref().unwrap_or(&columns[self.lists[*i].0])));
            let lists = lists.collect::<Result<Vec<_>>>()?;
            let count = lists.first().map_or(0, |l| l.spans.len());
            let lengths: Vec<usize> =
                (0..count).map(|row| lists.iter().map(|l| self.rows_of(l.spans[row])).max().unwrap_or(0)).collect();
            let mut repeat: Vec<u32> = Vec::with_capacity(lengths.iter().sum());
            for (row, length) in lengths.iter().enumerate() {
                repeat.resize(repeat.len() + length, row as u32);
            }
            for (i, list) in open.iter().zip(&lists) {
                elements[*i] = Some(list.elements(&lengths)?);
            }
            let indices = UInt32Array::from(repeat);
            // A list that is wholly taken apart at this level is not needed any more, but keeping it costs one `take` only at depth > 1.
            for column in &mut columns {
                *column = take(column, &indices, None).map_err(internal)?;
            }
            origin = Some(match origin {
                None => indices.values().to_vec(),
                Some(before) => indices.values().iter().map(|i| before[*i as usize]).collect(),
            });
        }
        let count = origin.as_ref().map_or(rows.num_rows(), Vec::len);
        let mut output: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        for (index, column) in columns.iter().enumerate() {
            if self.structs.contains(&index) {
                let members = column.as_struct();
                for member in members.columns() {
                    output.push(with_nulls(member, members.nulls())?);
                }
                continue;
            }
            let before = output.len();
            output.extend(self.lists.iter().zip(&elements).filter(|((c, _), _)| *c == index).filter_map(|(_, e)| e.clone()));
            if output.len() == before {
                output.push(column.clone());
            }
        }
        for (column, field) in output.iter_mut().zip(self.schema.fields()) {
            if column.data_type() != field.data_type() {
                *column = cast(column, field.data_type()).map_err(internal)?;
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        Ok((RecordBatch::try_new_with_options(self.schema.clone(), output, &options).map_err(internal)?, origin))
    }

    /// How many rows a list asks for.
    fn rows_of(&self, span: Option<(usize, usize)>) -> usize {
        match (span, self.null_handling) {
            (None, NullHandling::Drop) => 0,
            (None, NullHandling::Preserve | NullHandling::PreserveAndExpandEmpty) => 1,
            (Some((_, 0)), NullHandling::PreserveAndExpandEmpty) => 1,
            (Some((_, length)), _) => length,
        }
    }

    /// How many of the rows from `start` on to take, so that a batch of output stays near [`BATCH_ROWS`].
    fn portion(&self, rows: &RecordBatch, lists: &[Spans], start: usize) -> usize {
        let mut output_rows = 0;
        for row in start..rows.num_rows() {
            output_rows += lists.iter().map(|l| self.rows_of(l.spans[row])).max().unwrap_or(1).max(1);
            if output_rows > BATCH_ROWS && row > start {
                return row - start;
            }
        }
        rows.num_rows() - start
    }
}

impl Operator for Unnest {
    fn on_delta(&mut self, _port: Port, batch: DeltaBatch, _cx: &mut OpCx<'_>, out: &mut Output) -> Result<()> {
        let lists = self.lists.iter().map(|(column, _)| Spans::of(batch.rows.column(*column))).collect::<Result<Vec<_>>>()?;
        let mut start = 0;
        while start < batch.num_rows() {
            let count = self.portion(&batch.rows, &lists, start);
            let (rows, origin) = self.expand(&batch.rows.slice(start, count))?;
            let weights = batch.weights.slice(start, count);
            let weights = match (origin, weights) {
                (None, weights) => weights,
                (Some(origin), Weights::Ones(_)) => Weights::Ones(origin.len()),
                (Some(origin), signed @ Weights::Signed(_)) => signed.take(&origin),
            };
            out.emit(PORT_MAIN, DeltaBatch::new(rows, weights));
            start += count;
        }
        Ok(())
    }

    fn on_mark(&mut self, _mark: &EpochMark, _cx: &mut OpCx<'_>, _out: &mut Output) -> Result<Progress> {
        Ok(Progress::Done)
    }
}

fn element_type(list: &DataType) -> Option<&DataType> {
    match list {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) | DataType::Map(item, _) => {
            Some(item.data_type())
        }
        _ => None,
    }
}

/// The lists of a column: all their elements, and where each row's are.
struct Spans {
    values: ArrayRef,
    /// Start and length; `None` for a NULL list.
    spans: Vec<Option<(usize, usize)>>,
}

impl Spans {
    fn of(lists: &ArrayRef) -> Result<Self> {
        fn by_offsets<T: Copy + TryInto<usize>>(offsets: &[T]) -> impl Iterator<Item = (usize, usize)> {
            // Offsets of a valid array are never negative.
            let at = |offset: T| offset.try_into().unwrap_or(0);
            offsets.windows(2).map(move |pair| (at(pair[0]), at(pair[1]) - at(pair[0])))
        }
        let (values, spans): (ArrayRef, Vec<(usize, usize)>) = match lists.data_type() {
            DataType::List(_) => {
                (lists.as_list::<i32>().values().clone(), by_offsets(lists.as_list::<i32>().value_offsets()).collect())
            }
            DataType::LargeList(_) => {
                (lists.as_list::<i64>().values().clone(), by_offsets(lists.as_list::<i64>().value_offsets()).collect())
            }
            DataType::Map(_, _) => {
                (Arc::new(lists.as_map().entries().clone()), by_offsets(lists.as_map().value_offsets()).collect())
            }
            DataType::FixedSizeList(_, _) => {
                let array = lists.as_fixed_size_list();
                let length = array.value_length() as usize;
                (array.values().clone(), (0..array.len()).map(|row| (array.value_offset(row) as usize, length)).collect())
            }
            other => return Err(not_nested("unnest", other, "an array")),
        };
        let spans = spans.into_iter().enumerate().map(|(row, span)| (!lists.is_null(row)).then_some(span)).collect();
        Ok(Self { values, spans })
    }

    /// All elements one behind the other, each list filled up with NULL to its row's length.
    fn elements(&self, lengths: &[usize]) -> Result<ArrayRef> {
        let mut indices: Vec<Option<u64>> = Vec::with_capacity(lengths.iter().sum());
        for (span, length) in self.spans.iter().zip(lengths) {
            let (start, count) = span.unwrap_or((0, 0));
            indices.extend((0..*length).map(|i| (i < count).then_some((start + i) as u64)));
        }
        take(&self.values, &UInt64Array::from(indices), None).map_err(internal)
    }
}

/// The same values, NULL also where the struct around them is.
fn with_nulls(member: &ArrayRef, outer: Option<&NullBuffer>) -> Result<ArrayRef> {
    if outer.is_none_or(|nulls| nulls.null_count() == 0) || member.data_type() == &DataType::Null {
        return Ok(member.clone());
    }
    let nulls = NullBuffer::union(member.nulls(), outer);
    let data = member.to_data().into_builder().nulls(nulls).build().map_err(internal)?;
    Ok(arrow::array::make_array(data))
}

fn not_nested(column: &str, data_type: &DataType, what: &str) -> Diagnostic {
    Diagnostic::new(Code::TypeMismatch, format!("UNNEST: column {column} is {data_type}, not {what}"))
        .hint("UNNEST takes arrays, rows and maps")
}

fn internal(error: impl std::fmt::Display) -> Diagnostic {
    Diagnostic::new(Code::Internal, error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeMap;

    use arrow::array::{Int64Array, Int64Builder, ListArray, MapBuilder, StringArray, StringBuilder, StructArray};
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::Int64Type;
    use datafusion::common::{Column, RecursionUnnestOption};
    use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
    use datafusion::prelude::SessionContext;
    use proptest::prelude::*;
    use tiderace_storage::{Shard, ShardOptions};

    use super::*;
    use crate::ids::{CoreId, Epoch};
    use crate::operators::chain::render_row;
    use crate::operators::{RowAccounts, Watermark};

    type List = Option<Vec<Option<i64>>>;

    fn run(operator: &mut Unnest, batch: DeltaBatch) -> Vec<DeltaBatch> {
        let mut shard = Shard::new(ShardOptions { budget_bytes: 1 << 20 });
        let mut accounts = RowAccounts::default();
        let (watermark, rows) = (Watermark::MIN, &mut accounts);
        let mut cx = OpCx { shard: &mut shard, core: CoreId(0), epoch: Epoch(1), watermark, time_us: 0, may_wait: true, rows };
        let mut out = Output::default();
        operator.on_delta(0, batch, &mut cx, &mut out).unwrap();
        out.batches.into_iter().map(|(_, b)| b).collect()
    }

    fn counted<'a>(batches: impl IntoIterator<Item = (&'a RecordBatch, Weights)>) -> BTreeMap<String, i64> {
        let mut rows = BTreeMap::new();
        for (batch, weights) in batches {
            for i in 0..batch.num_rows() {
                *rows.entry(render_row(batch, i)).or_default() += weights.get(i);
            }
        }
        rows.retain(|_, w| *w != 0);
        rows
    }

    /// What DataFusion makes of the same rows, each times its weight.
    fn oracle(
        rows: &RecordBatch,
        weights: &[i64],
        columns: Vec<Column>,
        options: UnnestOptions,
    ) -> (Unnest, BTreeMap<String, i64>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let context = SessionContext::new();
        let mut counts = BTreeMap::new();
        let mut operator = None;
        for (row, weight) in weights.iter().enumerate() {
            let frame = context.read_batch(rows.slice(row, 1)).unwrap();
            let plan = LogicalPlanBuilder::from(frame.logical_plan().clone())
                .unnest_columns_with_options(columns.clone(), options.clone())
                .unwrap()
                .build()
                .unwrap();
            let LogicalPlan::Unnest(node) = &plan else { panic!("{plan}") };
            let lists: Vec<_> = node.list_type_columns.iter().map(|(i, list)| (*i, list.depth)).collect();
            let names: Vec<_> = node.schema.fields().iter().map(|f| f.name().clone()).collect();
            operator = Some(Unnest::new(&rows.schema(), &lists, &node.struct_type_columns, &node.options, &names).unwrap());
            let frame = datafusion::dataframe::DataFrame::new(context.state(), plan);
            for batch in runtime.block_on(frame.collect()).unwrap() {
                for (row, w) in counted([(&batch, Weights::Ones(batch.num_rows()))]) {
                    *counts.entry(row).or_default() += w * weight;
                }
            }
        }
        counts.retain(|_, w| *w != 0);
        (operator.unwrap(), counts)
    }

    fn lists(values: &[List]) -> ArrayRef {
        Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(values.iter().cloned()))
    }

    fn list() -> impl Strategy<Value = List> {
        proptest::option::weighted(0.8, proptest::collection::vec(proptest::option::weighted(0.8, 0_i64..5), 0..4))
    }

    fn batch_of(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap()
    }

    fn same(rows: &RecordBatch, weights: &[i64], columns: &[&str], options: UnnestOptions) {
        let columns: Vec<Column> = columns.iter().map(|c| Column::from_name(*c)).collect();
        let (mut operator, expected) = oracle(rows, weights, columns, options);
        let out = run(&mut operator, DeltaBatch::new(rows.clone(), Weights::from_vec(weights.to_vec())));
        assert_eq!(counted(out.iter().map(|b| (&b.rows, b.weights.clone()))), expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn lists_are_unnested_as_datafusion_does(
            rows in proptest::collection::vec((list(), list(), 0_i64..3, prop_oneof![Just(1_i64), Just(-1), Just(3)]), 1..8),
            handling in prop_oneof![Just(NullHandling::Drop), Just(NullHandling::Preserve), Just(NullHandling::PreserveAndExpandEmpty)],
            both in any::<bool>(),
        ) {
            let batch = batch_of(vec![
                ("a", lists(&rows.iter().map(|r| r.0.clone()).collect::<Vec<_>>())),
                ("k", Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.2)))),
                ("b", lists(&rows.iter().map(|r| r.1.clone()).collect::<Vec<_>>())),
            ]);
            let weights: Vec<i64> = rows.iter().map(|r| r.3).collect();
            let columns: &[&str] = if both { &["a", "b"] } else { &["b"] };
            same(&batch, &weights, columns, UnnestOptions::new().with_null_handling(handling));
        }

        #[test]
        fn lists_of_lists_are_unnested_to_two_depths(rows in proptest::collection::vec(proptest::option::weighted(0.8, proptest::collection::vec(list(), 0..3)), 1..6)) {
            let inner: Vec<List> = rows.iter().flatten().flatten().cloned().collect();
            let offsets = OffsetBuffer::from_lengths(rows.iter().map(|r| r.as_ref().map_or(0, Vec::len)));
            let nulls = rows.iter().map(Option::is_some).collect::<Vec<_>>().into();
            let values = lists(&inner);
            let outer = ListArray::new(Arc::new(Field::new("item", values.data_type().clone(), true)), offsets, values, Some(nulls));
            let batch = batch_of(vec![("a", Arc::new(outer)), ("k", Arc::new(Int64Array::from_iter_values(0..rows.len() as i64)))]);
            let recursion = |name: &str, depth| RecursionUnnestOption { input_column: Column::from_name("a"), output_column: Column::from_name(name), depth };
            let options = UnnestOptions::new().with_recursions(recursion("deep", 2)).with_recursions(recursion("flat", 1));
            same(&batch, &vec![1; rows.len()], &["a"], options);
        }
    }

    #[test]
    fn structs_become_their_fields_and_null_structs_null_fields() {
        let fields = vec![Field::new("x", DataType::Int64, true), Field::new("y", DataType::Utf8, true)];
        let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![1, 2])), Arc::new(StringArray::from(vec!["p", "q"]))];
        let structs = StructArray::new(fields.into(), columns, Some(vec![true, false].into()));
        let batch = batch_of(vec![("s", Arc::new(structs)), ("a", lists(&[Some(vec![Some(1), Some(2)]), Some(vec![Some(3)])]))]);
        let names: Vec<String> = ["x", "y", "a"].map(String::from).to_vec();
        let mut operator = Unnest::new(&batch.schema(), &[(1, 1)], &[0], &UnnestOptions::new(), &names).unwrap();
        let out = run(&mut operator, DeltaBatch::append(batch));
        let expected = ["{x: 1, y: p, a: 1}", "{x: 1, y: p, a: 2}", "{x: NULL, y: NULL, a: 3}"];
        assert_eq!((0..3).map(|i| render_row(&out[0].rows, i)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_map_gives_its_entries() {
        let mut builder = MapBuilder::new(None, StringBuilder::new(), Int64Builder::new());
        for (key, value) in [("a", 1), ("b", 2)] {
            builder.keys().append_value(key);
            builder.values().append_value(value);
        }
        builder.append(true).unwrap();
        let batch = batch_of(vec![("m", Arc::new(builder.finish()))]);
        let mut operator = Unnest::new(&batch.schema(), &[(0, 1)], &[], &UnnestOptions::new(), &["m".to_owned()]).unwrap();
        let out = run(&mut operator, DeltaBatch::append(batch));
        assert_eq!(out[0].num_rows(), 2);
        assert!(matches!(out[0].rows.column(0).data_type(), DataType::Struct(_)));
    }

    #[test]
    fn long_output_is_cut_into_batches() {
        let long: List = Some(vec![Some(1); BATCH_ROWS / 4]);
        let batch = batch_of(vec![("a", lists(&vec![long; 10]))]);
        let mut operator = Unnest::new(&batch.schema(), &[(0, 1)], &[], &UnnestOptions::new(), &["a".to_owned()]).unwrap();
        let out = run(&mut operator, DeltaBatch::append(batch));
        assert!(out.iter().all(|b| b.num_rows() <= BATCH_ROWS));
        assert_eq!(out.iter().map(DeltaBatch::num_rows).sum::<usize>(), 10 * (BATCH_ROWS / 4));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let batch = batch_of(vec![("k", Arc::new(Int64Array::from(vec![1])))]);
        let refused = Unnest::new(&batch.schema(), &[(0, 1)], &[], &UnnestOptions::new(), &["k".to_owned()]).unwrap_err();
        assert_eq!(refused.code, Code::TypeMismatch);
    }
}
