//! Text columns that are made row by row: parts of other texts share those texts' buffers, new texts go into a buffer of the column's own.
//!
//! This module is meant for `unsafe`: Arrow's builder checks each view again (bounds, UTF-8 borders) although Rust's own slices have just done
//! so, which costs more than finding the part. Debug builds make every check in full.
#![expect(unsafe_code, reason = "see the module's text; one block, in `finish`")]

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, NullBufferBuilder, StringViewArray, make_view};
use arrow::buffer::{Buffer, ScalarBuffer};

use super::call::Text;

/// Texts up to this length are kept in the view itself.
pub(super) const INLINE_BYTES_MAX: usize = 12;
/// A buffer of new texts is closed before it gets longer than this, unless one text alone is. Offsets have 32 bits.
const BUFFER_BYTES_MAX: usize = 1 << 30;

/// Builds a column beside the column `source`.
pub(super) struct Substrings<'a> {
    source: Text<'a>,
    views: Vec<u128>,
    nulls: NullBufferBuilder,
    /// The source's buffers, then full ones of new texts.
    buffers: Vec<Buffer>,
    fresh: Vec<u8>,
    last_is_null: bool,
}

impl<'a> Substrings<'a> {
    /// A column of about `rows` values.
    pub(super) fn new(source: Text<'a>, rows: usize) -> Self {
        let buffers = match source {
            Text::Column(column) => column.data_buffers().to_vec(),
            Text::Constant(_) => Vec::new(),
        };
        Self {
            source,
            views: Vec::with_capacity(rows),
            nulls: NullBufferBuilder::new(rows),
            buffers,
            fresh: Vec::new(),
            last_is_null: true,
        }
    }

    /// Adds the part `range` of the source's text of that row, which is not NULL; panics when it is out of bounds or cuts a character.
    #[inline]
    pub(super) fn push(&mut self, row: usize, range: Range<usize>) {
        match self.source {
            Text::Column(column) => {
                let start = range.start;
                let part = &column.value(row)[range];
                if part.len() > INLINE_BYTES_MAX {
                    let (block, offset) = place(column.views()[row]);
                    self.add(make_view(part.as_bytes(), block, offset + start as u32));
                } else {
                    self.add(make_view(part.as_bytes(), 0, 0));
                }
            }
            Text::Constant(text) => self.push_new(&text.unwrap_or_default()[range]),
        }
    }

    /// Adds a text that stands nowhere yet.
    #[inline]
    pub(super) fn push_new(&mut self, text: &str) {
        if text.len() > INLINE_BYTES_MAX {
            if self.fresh.len() + text.len() > BUFFER_BYTES_MAX && !self.fresh.is_empty() {
                self.buffers.push(Buffer::from_vec(std::mem::take(&mut self.fresh)));
            }
            let offset = self.fresh.len();
            self.fresh.extend_from_slice(text.as_bytes());
            self.add(make_view(text.as_bytes(), self.buffers.len() as u32, offset as u32));
        } else {
            self.add(make_view(text.as_bytes(), 0, 0));
        }
    }

    /// Adds the last text again; NULL when there is none, or it was NULL.
    #[inline]
    pub(super) fn push_again(&mut self) {
        match self.views.last().copied() {
            Some(view) if !self.last_is_null => self.add(view),
            _ => self.push_null(),
        }
    }

    #[inline]
    fn add(&mut self, view: u128) {
        self.views.push(view);
        self.nulls.append_non_null();
        self.last_is_null = false;
    }

    /// Adds a NULL.
    #[inline]
    pub(super) fn push_null(&mut self) {
        self.views.push(0);
        self.nulls.append_null();
        self.last_is_null = true;
    }

    /// The column.
    pub(super) fn finish(mut self) -> ArrayRef {
        if !self.fresh.is_empty() {
            self.buffers.push(Buffer::from_vec(self.fresh));
        }
        let (views, nulls) = (ScalarBuffer::from(self.views), self.nulls.finish());
        if cfg!(debug_assertions) {
            let checked = StringViewArray::try_new(views, self.buffers, nulls);
            return Arc::new(checked.expect("views lie inside their buffers and cut UTF-8 at its borders"));
        }
        // SAFETY: every view was made above by `make_view` from a `&str`, so it is UTF-8 with the right length and prefix. One of more than 12
        // bytes points either into `fresh`, where those bytes were just copied (its block is the number of buffers before it, and a full `fresh`
        // is pushed before the next one is begun), or into the source's buffers at the place of the row's own view plus the part's start, which
        // is inside it because the part is a slice of that row's text. The source's buffers come first, with their own numbers.
        Arc::new(unsafe { StringViewArray::new_unchecked(views, self.buffers, nulls) })
    }
}

/// Buffer and offset of a text of more than [`INLINE_BYTES_MAX`] bytes: the upper half of its view.
fn place(view: u128) -> (u32, u32) {
    ((view >> 64) as u32, (view >> 96) as u32)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};

    use super::*;

    #[test]
    fn parts_and_new_texts_of_every_length_pass_the_full_check() {
        let texts: Vec<String> = (0..40).map(|len| "aé-0123456789".chars().cycle().take(len).collect()).collect();
        let source = StringViewArray::from_iter_values(&texts);
        let mut out = Substrings::new(Text::Column(&source), 0);
        let mut expected = Vec::new();
        for (row, text) in texts.iter().enumerate() {
            let borders: Vec<usize> = (0..=text.len()).filter(|at| text.is_char_boundary(*at)).collect();
            for start in &borders {
                for end in borders.iter().filter(|end| *end >= start) {
                    out.push(row, *start..*end);
                    expected.push(Some(&text[*start..*end]));
                }
            }
            out.push_new(text);
            expected.push(Some(text));
            out.push_again();
            expected.push(Some(text));
            out.push_null();
            expected.push(None);
            out.push_again();
            expected.push(None);
        }
        let column = out.finish();
        let column = column.as_string_view();
        let nulls = column.nulls().cloned();
        let checked = StringViewArray::try_new(column.views().clone(), column.data_buffers().to_vec(), nulls);
        assert!(checked.expect("every view is valid").iter().eq(expected));
    }
}
