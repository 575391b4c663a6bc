//! From the rows that there are to the columns that a table wants: by name, into structs too, cast where only the layout differs.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StructArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, SchemaRef};

use crate::error::{Code, Diagnostic, Result};

/// Whether values of one type can be given as the other without changing them.
fn fits(from: &DataType, to: &DataType) -> bool {
    let is_text = |t: &DataType| matches!(t, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let is_bytes = |t: &DataType| matches!(t, DataType::Binary | DataType::LargeBinary | DataType::BinaryView);
    match (from, to) {
        (DataType::Struct(from), DataType::Struct(to)) => {
            to.iter().all(|to| from.iter().any(|from| same_name(from, to) && fits(from.data_type(), to.data_type())))
        }
        (DataType::List(from) | DataType::LargeList(from), DataType::List(to) | DataType::LargeList(to)) => {
            fits(from.data_type(), to.data_type()) && !matches!(to.data_type(), DataType::Struct(_))
        }
        (DataType::Timestamp(_, None), DataType::Timestamp(_, None)) => true,
        _ => from.equals_datatype(to) || is_text(from) && is_text(to) || is_bytes(from) && is_bytes(to),
    }
}

fn same_name(a: &Field, b: &Field) -> bool {
    a.name() == b.name()
}

/// Refuses a table that wants a column which is not there or has another type.
pub fn check(table: &str, from: &SchemaRef, to: &SchemaRef) -> Result<()> {
    for field in to.fields() {
        let message = match from.fields().iter().find(|f| same_name(f, field)) {
            None => format!("table `{table}`: the rows in memory have no column `{}`", field.name()),
            Some(found) if !fits(found.data_type(), field.data_type()) => format!(
                "table `{table}`: column `{}` is {} in memory, which is not {}",
                field.name(),
                found.data_type(),
                field.data_type()
            ),
            Some(_) => continue,
        };
        return Err(Diagnostic::new(Code::UnsupportedSchema, message));
    }
    Ok(())
}

/// The columns of `to` from `rows`, which [`check`] has let pass.
pub fn project(rows: &RecordBatch, to: &SchemaRef) -> Result<RecordBatch> {
    if rows.schema_ref() == to {
        return Ok(rows.clone());
    }
    let columns = to.fields().iter().map(|field| {
        let column = rows.column_by_name(field.name()).ok_or_else(|| internal(format!("no column {}", field.name())))?;
        convert(column, field.data_type())
    });
    let columns = columns.collect::<Result<_>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(to.clone(), columns, &options)
        .map_err(|e| Diagnostic::new(Code::UnsupportedSchema, e.to_string()))
}

fn convert(column: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    match to {
        _ if column.data_type() == to => Ok(column.clone()),
        DataType::Struct(fields) => {
            let from = column.as_struct();
            let children = fields.iter().map(|field| {
                let child = from.column_by_name(field.name()).ok_or_else(|| internal(format!("no field {}", field.name())))?;
                convert(child, field.data_type())
            });
            let children = children.collect::<Result<_>>()?;
            StructArray::try_new_with_length(fields.clone(), children, from.nulls().cloned(), from.len())
                .map(|array| Arc::new(array) as ArrayRef)
                .map_err(|e| Diagnostic::new(Code::UnsupportedSchema, e.to_string()))
        }
        _ => cast(column, to).map_err(|e| internal(e.to_string())),
    }
}

fn internal(message: String) -> Diagnostic {
    Diagnostic::new(Code::Internal, message)
}
