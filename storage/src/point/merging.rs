//! When small pages are merged, and when that rests.
//!
//! Copying what lives on a small page to the tail gains a page's place, if the tail isn't sealed before it is full. In a shard whose memory is
//! used up it is: each page that is read, copied and dropped leaves another as small, and that would go on without end. So merging lives on
//! credit: a page that is gone gives one, a page that was begun for it takes two. As long as it goes on while nobody else writes there are
//! fewer and fewer pages; when the credit is gone it rests until something has changed that may make it worth its while.

/// Most credit: what it begins with, and has again when others have written.
const CREDIT_MAX: i64 = 512;

/// What the shard holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryUse {
    pub(crate) used_bytes: usize,
    pub(crate) budget_bytes: usize,
}

/// What compaction has just done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compacted {
    /// Whether the page was compacted for being small.
    pub(super) is_small: bool,
    /// Records written.
    pub(super) records: u64,
    /// Pages begun for them.
    pub(super) pages: u64,
    /// When it is through with the page: whether that is gone.
    pub(super) ended: Option<bool>,
}

#[derive(Debug)]
pub(super) struct Merging {
    credit: i64,
    /// Records that compaction has written, and that others had when it was asked last.
    own_records: u64,
    others_records: u64,
    /// While it rests: how large pages were, and how much memory was used, when it began to.
    rest: Option<(usize, usize)>,
}

impl Default for Merging {
    fn default() -> Self {
        Self { credit: CREDIT_MAX, own_records: 0, others_records: 0, rest: None }
    }
}

impl Merging {
    pub(super) fn note(&mut self, done: Compacted) {
        self.own_records += done.records;
        if done.is_small {
            let gained = done.ended.map_or(0, |is_gone| if is_gone { 1 } else { -1 });
            let begun = i64::try_from(done.pages).unwrap_or(CREDIT_MAX);
            self.credit = (self.credit + gained - 2 * begun).min(CREDIT_MAX);
        }
    }

    /// Whether it rests. `records`: all that were ever written; pages are of `page_bytes` if filled.
    pub(super) fn rests(&mut self, records: u64, page_bytes: usize, memory: MemoryUse) -> bool {
        let others_records = records.saturating_sub(self.own_records);
        let has_changed = others_records != self.others_records
            || self.rest.is_some_and(|(before_page_bytes, before_used_bytes)| {
                page_bytes != before_page_bytes || memory.used_bytes + memory.budget_bytes / 16 <= before_used_bytes
            });
        if has_changed {
            (self.others_records, self.credit, self.rest) = (others_records, CREDIT_MAX, None);
        } else if self.credit <= 0 && self.rest.is_none() {
            self.rest = Some((page_bytes, memory.used_bytes));
        }
        self.rest.is_some()
    }

    /// Whether it rested when it was asked last.
    pub(super) fn is_resting(&self) -> bool {
        self.rest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: MemoryUse = MemoryUse { used_bytes: 1 << 20, budget_bytes: 1 << 20 };

    /// Merges `pages` pages of a record, of which so many fill one; how many there are when it rests, and how many were looked at.
    fn merge(mut pages: usize, fill_one: usize) -> (usize, usize, Merging, u64) {
        let (mut merging, mut records, mut looked_at, mut filled) = (Merging::default(), pages as u64, 0, 0);
        while pages > 1 && !merging.rests(records, 4096, MEMORY) {
            let begun = u64::from(filled == 0);
            filled = (filled + 1) % fill_one;
            pages = pages - 1 + begun as usize;
            looked_at += 1;
            records += 1;
            merging.note(Compacted { is_small: true, records: 1, pages: begun, ended: Some(true) });
        }
        (pages, looked_at, merging, records)
    }

    #[test]
    fn pages_of_which_some_fill_one_are_all_merged() {
        for fill_one in 2..9 {
            let (left, ..) = merge(1000, fill_one);
            assert_eq!(left, 1, "{fill_one} fill one");
        }
    }

    #[test]
    fn what_gains_nothing_ends_soon_and_is_tried_again_when_others_have_written_or_memory_was_given_back() {
        let (left, looked_at, mut merging, records) = merge(100, 1);
        assert_eq!((left, looked_at, merging.is_resting()), (100, CREDIT_MAX as usize, true));
        assert!((0..1000).all(|_| merging.rests(records, 4096, MEMORY)));
        // What compaction itself writes changes nothing.
        merging.note(Compacted { is_small: false, records: 50, pages: 1, ended: Some(true) });
        assert!(merging.rests(records + 50, 4096, MEMORY));
        assert!(!merging.rests(records + 51, 4096, MEMORY) && !merging.is_resting());
        let (_, _, mut merging, records) = merge(100, 1);
        let freed = |bytes: usize| MemoryUse { used_bytes: MEMORY.used_bytes - bytes, ..MEMORY };
        assert!(merging.rests(records, 4096, freed((1 << 16) - 1)));
        assert!(!merging.rests(records, 4096, freed(1 << 16)));
        let (_, _, mut merging, records) = merge(100, 1);
        assert!(!merging.rests(records, 8192, MEMORY));
    }
}
