//! Columns of parts of texts, which share the buffers of the texts that they are parts of.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringViewArray, StringViewBuilder};
use datafusion::common::Result;

use super::call::Text;

/// Texts up to this length are kept in the view itself.
const INLINE_BYTES_MAX: usize = 12;

/// Builds a column of parts of `source`.
pub(super) struct Substrings<'a> {
    source: Text<'a>,
    builder: StringViewBuilder,
}

impl<'a> Substrings<'a> {
    /// A column of about `rows` values.
    pub(super) fn new(source: Text<'a>, rows: usize) -> Self {
        let mut builder = StringViewBuilder::with_capacity(rows);
        if let Text::Column(column) = source {
            for (index, buffer) in column.data_buffers().iter().enumerate() {
                let block = builder.append_block(buffer.clone());
                debug_assert_eq!(block as usize, index, "blocks have the numbers of the source's buffers");
            }
        }
        Self { source, builder }
    }

    /// Adds `part`, which is `text[start..start + part.len()]` of the text of that row.
    pub(super) fn push(&mut self, row: usize, start: usize, part: &str) -> Result<()> {
        match self.source {
            Text::Column(column) if part.len() > INLINE_BYTES_MAX => {
                let (block, offset) = place(column, row);
                self.builder.try_append_view(block, offset + start as u32, part.len() as u32)?;
            }
            _ => self.builder.try_append_value(part)?,
        }
        Ok(())
    }

    /// Adds a NULL.
    pub(super) fn push_null(&mut self) {
        self.builder.append_null();
    }

    /// The column.
    pub(super) fn finish(mut self) -> ArrayRef {
        Arc::new(self.builder.finish())
    }
}

/// Buffer and offset of a text of more than [`INLINE_BYTES_MAX`] bytes: the upper half of its view.
fn place(column: &StringViewArray, row: usize) -> (u32, u32) {
    let view = column.views()[row];
    ((view >> 64) as u32, (view >> 96) as u32)
}
