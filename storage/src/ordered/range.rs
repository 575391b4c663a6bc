//! Walking an ordered table from either end.

use super::{OrderedTable, Place};

/// Entries of an [`OrderedTable`] in order; see [`OrderedTable::range`]. Blocks that are on the device alone are read, one at a time.
#[derive(Clone, Debug)]
pub struct OrderedRange<'s> {
    table: &'s OrderedTable,
    front: Place,
    /// Behind the last.
    back: Place,
}

impl<'s> OrderedRange<'s> {
    pub(super) fn new(table: &'s OrderedTable, front: Place, back: Place) -> Self {
        Self { table, front, back }
    }
}

impl<'s> Iterator for OrderedRange<'s> {
    type Item = (&'s [u8], &'s [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while self.front < self.back {
            let (chunk, block, slot) = self.front;
            let body = self.table.body(chunk, block);
            if slot < body.len() {
                self.front = (chunk, block, slot + 1);
                return Some(body.entry(slot));
            }
            self.front = if block + 1 < self.table.chunks[chunk].list.len() { (chunk, block + 1, 0) } else { (chunk + 1, 0, 0) };
        }
        None
    }
}

impl DoubleEndedIterator for OrderedRange<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        while self.front < self.back {
            let (chunk, block, slot) = self.back;
            if slot > 0 {
                // Unless it couldn't be read.
                let body = self.table.body(chunk, block);
                let slot = (slot - 1).min(body.len());
                self.back = (chunk, block, slot);
                if slot < body.len() {
                    return (self.front <= self.back).then(|| body.entry(slot));
                }
                self.back = (chunk, block, 0);
                continue;
            }
            let (chunk, block) =
                if block > 0 { (chunk, block - 1) } else { (chunk - 1, self.table.chunks[chunk - 1].list.len() - 1) };
            self.back = (chunk, block, self.table.body(chunk, block).len());
        }
        None
    }
}
