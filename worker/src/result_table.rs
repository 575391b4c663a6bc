//! The final rows of a query as a table.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef, Schema};
use arrow::row::{RowConverter, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use tiderace_engine::error::{Code, Diagnostic, Result};
use tiderace_engine::plan::{QueryResult, ViewQuery};
use tiderace_engine::time::Zone;

use crate::progress::grouped;
use crate::text_table::TextTable;

/// How long a view may take to answer when its job has ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// Rows with their multiplicity, in the order in which they are shown.
#[derive(Debug)]
pub struct ResultTable {
    rows: RecordBatch,
    /// Indexes in `rows`; one that stands several times is shown as often.
    order: Vec<usize>,
}

impl ResultTable {
    /// What a bare query says in the end, sorted by its columns.
    pub fn of_sink(result: &QueryResult) -> Result<Self> {
        let net = result.rows()?;
        let mut order = Vec::new();
        for index in sorted(&net.rows) {
            let weight = usize::try_from(net.weights.get(index))
                .map_err(|_| Diagnostic::new(Code::NegativeWeight, "the result takes back a row that was never there"))?;
            order.extend(std::iter::repeat_n(index, weight));
        }
        Ok(Self { rows: on_clock(&net.rows, result.zone)?, order })
    }

    /// What a query over materialized views says, in its own order.
    pub fn of_query(query: &ViewQuery) -> Result<Self> {
        let rows = on_clock(&query.run(PATIENCE)?, query.zone())?;
        Ok(Self { order: (0..rows.num_rows()).collect(), rows })
    }

    /// The table and the number of its rows. On a terminal, long cells are cut.
    pub fn render(&self, is_terminal: bool) -> Result<String> {
        let failed = |error| Diagnostic::new(Code::Internal, format!("a value can't be shown: {error}"));
        let options = FormatOptions::new()
            .with_null("NULL")
            .with_display_error(true)
            .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
            .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.f%:z"));
        let schema = self.rows.schema();
        let formatters: Vec<_> = self
            .rows
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options))
            .collect::<std::result::Result<_, _>>()
            .map_err(failed)?;
        let numeric = schema.fields().iter().enumerate().filter(|(_, f)| is_numeric(f.data_type())).map(|(i, _)| i);
        let mut table = TextTable::new(schema.fields().iter().map(|f| f.name().as_str())).numeric(numeric);
        if is_terminal {
            table = table.for_terminal();
        }
        for index in &self.order {
            table.row(formatters.iter().map(|formatter| formatter.value(*index).to_string()));
        }
        let count = if self.order.len() == 1 { "1 row".to_owned() } else { format!("{} rows", grouped(self.order.len() as u64)) };
        Ok(format!("{}({count})\n\n", table.with_rule()))
    }
}

/// The same rows, with instants as the clock of `zone` shows them.
fn on_clock(rows: &RecordBatch, zone: Zone) -> Result<RecordBatch> {
    if zone.is_utc() {
        return Ok(rows.clone());
    }
    let failed = |error| Diagnostic::new(Code::Internal, format!("the zone {zone} can't be shown: {error}"));
    let zone: Arc<str> = zone.to_string().into();
    let fields = rows.schema().fields().iter().map(|field| in_zone(field, &zone)).collect::<Vec<_>>();
    let columns = rows.columns().iter().zip(&fields).map(|(column, field)| cast(column, field.data_type()));
    let columns = columns.collect::<std::result::Result<Vec<_>, _>>().map_err(failed)?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options).map_err(failed)
}

/// A column whose instants, also those inside of it, are of `zone`.
fn in_zone(field: &FieldRef, zone: &Arc<str>) -> FieldRef {
    let moved = match field.data_type() {
        DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, Some(zone.clone())),
        DataType::List(inner) => DataType::List(in_zone(inner, zone)),
        DataType::LargeList(inner) => DataType::LargeList(in_zone(inner, zone)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|inner| in_zone(inner, zone)).collect()),
        DataType::Map(entries, sorted) => DataType::Map(in_zone(entries, zone), *sorted),
        _ => return field.clone(),
    };
    Arc::new(field.as_ref().clone().with_data_type(moved))
}

fn is_numeric(data_type: &DataType) -> bool {
    data_type.is_numeric()
}

/// The indexes of the rows in ascending order of the columns, NULLs last; as they stand when a type has no order.
fn sorted(rows: &RecordBatch) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows.num_rows()).collect();
    let options = arrow::compute::SortOptions { descending: false, nulls_first: false };
    let fields: Vec<_> =
        rows.columns().iter().map(|c: &ArrayRef| SortField::new_with_options(c.data_type().clone(), options)).collect();
    if fields.is_empty() || !RowConverter::supports_fields(&fields) {
        return order;
    }
    let encoded = RowConverter::new(fields).and_then(|converter| converter.convert_columns(rows.columns()));
    if let Ok(encoded) = encoded {
        order.sort_by(|a, b| encoded.row(*a).cmp(&encoded.row(*b)));
    }
    order
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use arrow::array::{Int64Array, StringArray, TimestampMicrosecondArray};

    use super::*;

    #[test]
    fn rows_are_sorted_repeated_and_aligned() {
        let rows = RecordBatch::try_from_iter_with_nullable([
            ("at", Arc::new(TimestampMicrosecondArray::from(vec![1_500_000, 0, 0])) as ArrayRef, true),
            ("k", Arc::new(StringArray::from(vec![Some("b"), None, Some("a")])) as ArrayRef, true),
            ("n", Arc::new(Int64Array::from(vec![10, 5, 7])) as ArrayRef, true),
        ])
        .unwrap();
        let order = sorted(&rows);
        assert_eq!(order, [2, 1, 0], "NULL behind every text");
        let table = ResultTable { rows, order: vec![2, 1, 0, 0] };
        insta::assert_snapshot!(table.render(false).unwrap(), @r"
         at                      | k    |  n
        -------------------------+------+----
         1970-01-01 00:00:00     | a    |  7
         1970-01-01 00:00:00     | NULL |  5
         1970-01-01 00:00:01.500 | b    | 10
         1970-01-01 00:00:01.500 | b    | 10
        (4 rows)
        ");
    }
}
