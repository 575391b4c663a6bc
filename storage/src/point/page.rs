//! What a page of a point table says, to who has no table for it.

use super::log::{LIVE, Lengths, RECORD_BYTES_MIN, TOMBSTONE};
use super::pending::parts;

/// A record of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageRecord<'a> {
    /// The key had this value.
    Live {
        /// Of the key.
        hash: u64,
        /// Its bytes.
        key: &'a [u8],
        /// What it had.
        value: &'a [u8],
    },
    /// The key was removed: what pages with lower numbers than `below` have of it is dead.
    Removed {
        /// Its bytes.
        key: &'a [u8],
        /// A page number.
        below: u64,
    },
}

/// Calls `f` for each record of a page, in their order; `None` when it isn't one.
#[inline]
pub(crate) fn read_page(page: &[u8], mut f: impl FnMut(PageRecord<'_>)) -> Option<()> {
    let mut offset = 0;
    while offset + RECORD_BYTES_MIN <= page.len() {
        let lengths = Lengths::at(page, offset)?;
        let record = page.get(offset..offset.checked_add(lengths.size())?)?;
        offset += record.len();
        if !lengths.is(LIVE | TOMBSTONE) {
            continue;
        }
        let (hash, key, value) = parts(record)?;
        f(if lengths.is(LIVE) {
            PageRecord::Live { hash, key, value }
        } else {
            PageRecord::Removed { key, below: u64::from_le_bytes(value.try_into().ok()?) }
        });
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn anything_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_page(&bytes, |_| {});
        }
    }
}
