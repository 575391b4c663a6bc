//! String columns whose bytes already exist: only the 16-byte views are made, the bytes are shared by all batches.
//!
//! This module is meant for `unsafe`: Arrow's checked constructor reads every byte of every string again (is it UTF-8, does the prefix
//! match), which costs more than making the whole event. Views are made here only, from text that was checked once, so that the check
//! can be left to debug builds, which do it in full.
#![expect(unsafe_code, reason = "see the module's text; one block, in `assemble`")]

use std::sync::Arc;

use arrow::array::{StringViewArray, make_view};
use arrow::buffer::{Buffer, ScalarBuffer};

use super::timeline::Run;

/// Strings up to this length stand inside their view.
const INLINE_BYTES_MAX: usize = 12;

/// Random ASCII text that strings are cut from.
#[derive(Clone, Debug)]
pub struct TextPool {
    buffers: Arc<[Buffer]>,
}

impl TextPool {
    /// A pool over `bytes`; panics when they are not ASCII or more than a view can address.
    pub fn new(bytes: Vec<u8>) -> Self {
        assert!(bytes.is_ascii(), "any cut through ASCII text is UTF-8");
        assert!(u32::try_from(bytes.len()).is_ok(), "views address 4 GiB");
        Self { buffers: Arc::new([Buffer::from_vec(bytes)]) }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffers[0]
    }
}

/// A column of cuts from a [`TextPool`], in the making.
#[derive(Debug)]
pub struct PoolViews<'p> {
    pool: &'p TextPool,
    views: Vec<u128>,
}

impl<'p> PoolViews<'p> {
    /// An empty column with room for `rows`.
    pub fn new(pool: &'p TextPool, rows: usize) -> Self {
        Self { pool, views: Vec::with_capacity(rows) }
    }

    /// Appends the `len` bytes from `offset`; panics when the pool is shorter.
    #[inline]
    pub fn push(&mut self, offset: usize, len: usize) {
        let text = &self.pool.bytes()[offset..offset + len];
        if len > INLINE_BYTES_MAX {
            let prefix = u32::from_le_bytes([text[0], text[1], text[2], text[3]]);
            self.views.push(len as u128 | u128::from(prefix) << 32 | (offset as u128) << 96);
        } else {
            self.views.push(make_view(text, 0, offset as u32));
        }
    }

    /// Appends the `len` bytes from `offset` without the spaces at both ends; says how many bytes are left.
    pub fn push_trimmed(&mut self, offset: usize, len: usize) -> usize {
        let text = &self.pool.bytes()[offset..offset + len];
        let trimmed = text.trim_ascii();
        let lead = len - text.trim_ascii_start().len();
        self.push(offset + if trimmed.is_empty() { 0 } else { lead }, trimmed.len());
        trimmed.len()
    }

    /// The column.
    pub fn finish(self) -> StringViewArray {
        assemble(self.views, self.pool.buffers.clone())
    }
}

/// A fixed list of strings that columns take from by index.
#[derive(Clone, Debug)]
pub struct TextTable {
    views: ScalarBuffer<u128>,
    buffers: Arc<[Buffer]>,
}

impl TextTable {
    /// A table of `texts`.
    pub fn new<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Self {
        let array: StringViewArray = texts.into_iter().map(|text| Some(text.as_ref().to_owned())).collect();
        let (views, buffers, _) = array.into_parts();
        Self { views, buffers }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.views.len()
    }

    /// The column of the texts at the indices that `choose` gives for the events of `runs`, `rows` in all; panics when one is out of range.
    pub fn take(&self, runs: &[Run], rows: usize, choose: impl Fn(u64) -> usize) -> StringViewArray {
        let mut views = Vec::with_capacity(rows);
        for run in runs {
            views.extend(run.events.clone().map(|number| self.views[choose(number)]));
        }
        assemble(views, self.buffers.clone())
    }
}

/// `views` must have been made over `buffers`, all UTF-8: everything above does, and nothing else calls it.
fn assemble(views: Vec<u128>, buffers: Arc<[Buffer]>) -> StringViewArray {
    let views = ScalarBuffer::from(views);
    if cfg!(debug_assertions) {
        return StringViewArray::try_new(views, buffers, None)
            .expect("views lie inside their buffers and cut UTF-8 at its borders");
    }
    // SAFETY: each view was copied from a validated array over the same buffers (`TextTable`), or was made by `PoolViews::push` from a
    // slice of the pool that Rust has bounds-checked, with that slice's own length, prefix and offset, in buffer 0; the pool is ASCII.
    // Upheld by this module's privacy; `views_pass_the_full_check` repeats Arrow's validation over both kinds.
    unsafe { StringViewArray::new_unchecked(views, buffers, None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::unwrap_used, reason = "tests")]
    fn views_pass_the_full_check() {
        let pool = TextPool::new(b"  abc defghijklmnopqrstuvwxyz 0123456789   ".to_vec());
        let total = pool.bytes().len();
        let mut column = PoolViews::new(&pool, 0);
        let mut expected = Vec::new();
        for offset in 0..total {
            for len in 0..=(total - offset) {
                let text = std::str::from_utf8(&pool.bytes()[offset..offset + len]).unwrap();
                column.push(offset, len);
                expected.push(text);
                assert_eq!(column.push_trimmed(offset, len), text.trim().len());
                expected.push(text.trim());
            }
        }
        let column = column.finish();
        let checked = StringViewArray::try_new(column.views().clone(), column.data_buffers().to_vec(), None).unwrap();
        assert!(checked.iter().eq(expected.into_iter().map(Some)));

        let table = TextTable::new(["short", "a text that does not fit into its view", "", "zwölf Boxkämpfer jagen Viktor"]);
        assert_eq!(table.len(), 4);
        let run = |events| Run { round: 0, events };
        let taken = table.take(&[run(0..2), run(7..10)], 5, |number| [3, 0, 9, 9, 9, 9, 9, 1, 1, 2][number as usize]);
        let checked = StringViewArray::try_new(taken.views().clone(), taken.data_buffers().to_vec(), None).unwrap();
        let texts: Vec<_> = checked.iter().flatten().collect();
        assert_eq!(texts[0], "zwölf Boxkämpfer jagen Viktor");
        assert_eq!(texts[1..], ["short", "a text that does not fit into its view", "a text that does not fit into its view", ""]);
    }
}
