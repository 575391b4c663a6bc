//! Which values of which group came lately: rows that bring nothing new are told apart without a look at the table.
//!
//! A stream's values repeat: half of all bids are for the few auctions that are hot now. For growing input a value that was counted once
//! need never be looked at again, so a small cache in front of the table of different values spares most rows their key, its hash and the
//! table's cache misses. It only ever forgets; whatever it doesn't know goes to the table, which is the truth.

/// Slots of the cache: 24 bytes each, so that a query's caches stay in a core's second-level cache.
const SLOTS: usize = 1 << 13;
/// Rows after which it is judged.
const JUDGED_ROWS: usize = 1 << 16;
/// Batches that pass before a cache that helped little is tried again.
const BATCHES_OFF: u32 = 256;

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    group: u64,
    value: i64,
    /// The lanes for which the value was counted; 0 in an empty slot.
    seen: u64,
}

/// A direct-mapped cache from group and value to the lanes that have counted it. Switches itself off where fewer than a quarter of the
/// rows are found in it, and tries again from time to time.
#[derive(Debug, Default)]
pub(crate) struct RecentValues {
    /// Empty before the first use.
    slots: Vec<Slot>,
    rows: usize,
    hits: usize,
    off_for: u32,
}

impl RecentValues {
    /// Whether the next batch is to be passed through [`Self::is_known`]. Called once a batch.
    pub(crate) fn is_on(&mut self) -> bool {
        if self.off_for > 0 {
            self.off_for -= 1;
            return false;
        }
        if self.slots.is_empty() {
            self.slots = vec![Slot::default(); SLOTS];
        }
        if self.rows >= JUDGED_ROWS {
            if self.hits * 4 < self.rows {
                self.off_for = BATCHES_OFF;
            }
            (self.rows, self.hits) = (0, 0);
        }
        self.off_for == 0
    }

    /// Whether `value` was counted in `group`, by its number, for all of `lanes`, which are not none; from now on it is known to be, so the
    /// caller counts it at once when it was not. A group's number is never given to another group.
    #[inline]
    pub(crate) fn is_known(&mut self, group: u64, value: i64, lanes: u64) -> bool {
        let mixed = (group.rotate_left(32) ^ value as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let slot = &mut self.slots[(mixed >> (64 - SLOTS.trailing_zeros())) as usize];
        self.rows += 1;
        if slot.group == group && slot.value == value && slot.seen != 0 {
            let known = lanes & !slot.seen == 0;
            slot.seen |= lanes;
            self.hits += usize::from(known);
            return known;
        }
        *slot = Slot { group, value, seen: lanes };
        false
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::connect::random::RandomStream;

    #[test]
    fn what_it_knows_was_counted_before() {
        let random = RandomStream::new(5, 0);
        let mut recent = RecentValues::default();
        assert!(recent.is_on());
        let mut counted: HashMap<(u64, i64), u64> = HashMap::new();
        let mut known = 0;
        for i in 0..200_000 {
            let word = random.word(i);
            // Far more pairs than slots, some of them common.
            let (group, value) = (1 + word % 3, ((word >> 8) % if word & 0x40 == 0 { 100 } else { 1 << 20 }) as i64 - 50);
            let lanes = 1 << ((word >> 40) % 3) | 1;
            let before = counted.entry((group, value)).or_default();
            if recent.is_known(group, value, lanes) {
                assert_eq!(lanes & !*before, 0, "row {i}");
                known += 1;
            }
            *before |= lanes;
        }
        assert!(known > 50_000, "{known}");
    }

    #[test]
    fn it_is_off_for_a_while_where_nothing_repeats() {
        let mut recent = RecentValues::default();
        let mut value = 0;
        let on: Vec<bool> = (0..400)
            .map(|_| {
                let on = recent.is_on();
                for _ in 0..if on { 4096 } else { 0 } {
                    value += 1;
                    assert!(!recent.is_known(1, value, 1));
                }
                on
            })
            .collect();
        assert_eq!(on.iter().position(|on| !on), Some(16), "after 2^16 rows");
        assert!(on[16 + 256..].iter().any(|on| *on), "and is tried again");
    }
}
