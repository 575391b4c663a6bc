//! Parquet files: a row group is a split. Columns are found by name and converted where nothing is lost; a row that does not fit is bad, its
//! neighbours are not.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::buffer::NullBuffer;
use arrow::compute::{CastOptions, cast_with_options, filter};
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::source::{Damage, Failure};
use crate::batch::Weights;
use crate::connect::Rejected;
use crate::error::{Code, Diagnostic};
use crate::format::Decoded;
use crate::format::columns::sql_type;

/// Rows that are read at once.
const BATCH_ROWS: usize = 8192;

/// The compressed bytes of each row group of a file.
pub fn row_groups(path: &Path) -> Result<Vec<u64>, Failure> {
    let builder = open(path)?;
    Ok(builder.metadata().row_groups().iter().map(|group| group.compressed_size().max(0) as u64).collect())
}

fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, Failure> {
    let file = File::open(path).map_err(|e| {
        Failure::Other(match e.kind() {
            std::io::ErrorKind::NotFound => {
                Diagnostic::new(Code::PathNotFound, format!("file '{}' is no longer there", path.display()))
            }
            _ => Diagnostic::new(Code::SourceUnavailable, format!("file '{}' can't be read: {e}", path.display())),
        })
    })?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| corrupt(&e))
}

fn corrupt(error: &dyn std::fmt::Display) -> Failure {
    Failure::Damaged(Damage { message: format!("the file is no valid Parquet, and what is left of it is not read: {error}") })
}

/// Reads one row group.
pub struct GroupReader {
    reader: ParquetRecordBatchReader,
    /// For each column of the schema: its place in the batches that the reader gives.
    places: Vec<Option<usize>>,
    schema: SchemaRef,
    origin: String,
    /// The number in the file of the next row, from 1.
    row: u64,
}

impl GroupReader {
    /// Opens row group `group` of a file for the columns of `schema`.
    pub fn open(path: &Path, group: usize, schema: &SchemaRef) -> Result<Self, Failure> {
        let builder = open(path)?;
        let origin = path.display().to_string();
        let in_file = Arc::clone(builder.schema());
        let mut roots = Vec::new();
        for field in schema.fields() {
            let exact = in_file.fields().iter().position(|f| f.name() == field.name());
            let folded = || in_file.fields().iter().position(|f| f.name().to_lowercase() == field.name().to_lowercase());
            let root = exact.or_else(folded);
            match root.map(|i| in_file.field(i)) {
                Some(found) if !fits(found.data_type(), field.data_type()) => {
                    let (wanted, given) = (sql_type(field), sql_type(found));
                    return Err(Failure::Other(
                        Diagnostic::new(
                            Code::FieldType,
                            format!("file '{origin}': column '{}' is {given}, and the table says {wanted}", field.name()),
                        )
                        .hint(format!("declare the column as {given} and CAST it in the query")),
                    ));
                }
                None if !field.is_nullable() => {
                    return Err(Failure::Other(Diagnostic::new(
                        Code::MissingField,
                        format!("file '{origin}' has no column '{}', which is NOT NULL", field.name()),
                    )));
                }
                _ => roots.push(root),
            }
        }
        let mut read: Vec<usize> = roots.iter().flatten().copied().collect();
        read.sort_unstable();
        read.dedup();
        let places = roots.iter().map(|root| root.and_then(|root| read.binary_search(&root).ok())).collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), read);
        let groups = builder.metadata().row_groups();
        let row = 1 + groups.iter().take(group).map(|g| g.num_rows().max(0) as u64).sum::<u64>();
        if group >= groups.len() {
            return Err(corrupt(&"it has fewer row groups than when it was found"));
        }
        let reader = builder.with_projection(mask).with_row_groups(vec![group]).with_batch_size(BATCH_ROWS).build();
        Ok(Self { reader: reader.map_err(|e| corrupt(&e))?, places, schema: Arc::clone(schema), origin, row })
    }

    /// The number in the file of the row that is read next, from 1.
    pub fn row(&self) -> u64 {
        self.row
    }

    /// The next rows; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Decoded>, Failure> {
        let Some(batch) = self.reader.next() else { return Ok(None) };
        let batch = batch.map_err(|e| corrupt(&e))?;
        self.decoded(&batch).map(Some).map_err(Failure::Other)
    }

    fn decoded(&mut self, batch: &RecordBatch) -> Result<Decoded, Diagnostic> {
        let rows = batch.num_rows();
        let mut bad: Vec<Option<(Code, String)>> = Vec::new();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.places.len());
        for (field, place) in self.schema.fields().iter().zip(&self.places) {
            let Some(place) = place else {
                columns.push(new_null_array(field.data_type(), rows));
                continue;
            };
            let given = batch.column(*place);
            let options = CastOptions { safe: true, format_options: FormatOptions::default() };
            let column = cast_with_options(given, field.data_type(), &options).map_err(|e| {
                Diagnostic::new(Code::Internal, format!("file '{}', column '{}': {e}", self.origin, field.name()))
            })?;
            find_bad(field, given, &column, &mut bad);
            columns.push(column);
        }
        let first = self.row;
        self.row += rows as u64;
        let lines: Vec<i64> = (0..rows as i64).map(|i| first as i64 + i).collect();
        let (columns, lines, rejected, rows) = if bad.is_empty() {
            (columns, lines, Vec::new(), rows)
        } else {
            let alive: BooleanArray = bad.iter().map(Option::is_none).collect::<Vec<_>>().into();
            let raw = RowText::new(batch);
            let rejected = bad.iter().enumerate().filter_map(|(row, bad)| {
                let (code, message) = bad.clone()?;
                let position = Some(first + row as u64);
                Some(Rejected { code, message, origin: self.origin.clone(), position, raw: raw.of(row) })
            });
            let rejected: Vec<_> = rejected.collect();
            let kept = columns.iter().map(|c| filter(c, &alive)).collect::<std::result::Result<Vec<_>, _>>();
            let kept = kept.map_err(|e| Diagnostic::new(Code::Internal, format!("file '{}': {e}", self.origin)))?;
            let lines = lines.into_iter().zip(&bad).filter(|(_, bad)| bad.is_none()).map(|(line, _)| line).collect();
            let rows = rows - rejected.len();
            (kept, lines, rejected, rows)
        };
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|e| Diagnostic::new(Code::Internal, format!("file '{}': {e}", self.origin)))?;
        Ok(Decoded { weights: Weights::Ones(rows.num_rows()), rows, lines, rejected })
    }
}

/// Whether a conversion keeps each value that is in the range of the target.
fn fits(from: &DataType, to: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, Date32, Decimal128, Dictionary, Float16, Float32, Float64, LargeBinary, LargeList, LargeUtf8, List,
        Map, Struct, Time32, Time64, Timestamp, Utf8, Utf8View,
    };
    match (from, to) {
        (a, b) if a == b => true,
        (Dictionary(_, value), to) => fits(value, to),
        (a, b) if a.is_integer() && b.is_integer() => true,
        (a, Decimal128(..)) if a.is_integer() => true,
        (Float16 | Float32, Float32 | Float64) => true,
        (Decimal128(_, s1), Decimal128(_, s2)) => s1 <= s2,
        (Utf8 | LargeUtf8 | Utf8View, Utf8 | LargeUtf8 | Utf8View) => true,
        (Binary | LargeBinary | BinaryView | DataType::FixedSizeBinary(_), Binary | LargeBinary | BinaryView) => true,
        (Date32, Date32) | (Time32(_) | Time64(_), Time32(_) | Time64(_)) => true,
        (Timestamp(_, a), Timestamp(_, b)) => a.is_some() == b.is_some(),
        (List(a) | LargeList(a), List(b)) => fits(a.data_type(), b.data_type()),
        (Struct(a), Struct(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.name() == b.name() && fits(a.data_type(), b.data_type()))
        }
        (Map(a, _), Map(b, _)) => fits(a.data_type(), b.data_type()),
        _ => false,
    }
}

/// Marks rows that became NULL by conversion, or are NULL where they may not be.
fn find_bad(field: &Field, given: &ArrayRef, column: &ArrayRef, bad: &mut Vec<Option<(Code, String)>>) {
    if column.null_count() == 0 || (field.is_nullable() && column.null_count() == given.logical_null_count()) {
        return;
    }
    bad.resize(column.len(), None);
    let given_nulls = given.logical_nulls();
    let was_null = |row: usize| given_nulls.as_ref().is_some_and(|nulls: &NullBuffer| nulls.is_null(row));
    for (row, bad) in bad.iter_mut().enumerate().filter(|(row, bad)| column.is_null(*row) && bad.is_none()) {
        if !was_null(row) {
            *bad = Some((Code::FieldRange, format!("column '{}' is out of the range of {}", field.name(), sql_type(field))));
        } else if !field.is_nullable() {
            *bad = Some((Code::MissingField, format!("column '{}' is NULL, but declared NOT NULL", field.name())));
        }
    }
}

/// Rows as text, for bad ones.
struct RowText<'a> {
    cells: Vec<(String, Option<ArrayFormatter<'a>>)>,
}

impl<'a> RowText<'a> {
    fn new(batch: &'a RecordBatch) -> Self {
        const OPTIONS: FormatOptions<'_> = FormatOptions::new().with_null("NULL");
        let names = batch.schema();
        let cells = batch.columns().iter().zip(names.fields());
        Self {
            cells: cells
                .map(|(array, field)| (field.name().clone(), ArrayFormatter::try_new(array.as_ref(), &OPTIONS).ok()))
                .collect(),
        }
    }

    fn of(&self, row: usize) -> String {
        let cells = self.cells.iter().map(|(name, cell)| match cell {
            Some(cell) => format!("{name}={}", cell.value(row)),
            None => format!("{name}=?"),
        });
        let mut text = cells.collect::<Vec<_>>().join(", ");
        if text.len() > Rejected::RAW_BYTES_MAX {
            let cut = (0..=Rejected::RAW_BYTES_MAX).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
            text.truncate(cut);
        }
        text
    }
}
