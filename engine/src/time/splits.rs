//! The watermark of a source on one core, from those of its splits.

use hashbrown::HashMap;

use crate::ids::SplitId;
use crate::operators::Watermark;

#[derive(Debug)]
struct Split {
    /// Running maximum; `Watermark::MIN` until the first row.
    watermark: i64,
    /// Epoch time that passed without a row while the reader had nothing to give, µs.
    silent_us: i64,
    /// Whether a row came in this epoch.
    active: bool,
    /// Whether it no longer holds the source back.
    idle: bool,
    /// Whether it is not read because it is too far ahead of others.
    held: bool,
}

/// The least watermark over the splits of a source that are neither finished nor idle. Never goes back.
///
/// A split that is open and unread counts as [`Watermark::MIN`], and so does a source that has announced no split yet; a split that joins
/// later starts where the source is. Silence makes a split idle after the timeout, and a source that has no open split too.
#[derive(Debug)]
pub struct SplitWatermarks {
    splits: HashMap<SplitId, Split>,
    opened: u64,
    closed: u64,
    reached: i64,
    finished: bool,
    /// As [`Split::silent_us`], while there is no open split.
    vacant_us: i64,
    /// Whether a split was open in this epoch, even if it has ended since.
    occupied: bool,
    idle_timeout_us: Option<i64>,
}

impl SplitWatermarks {
    /// A source without splits. `idle_timeout_us`: how long, in epoch time, a split may be silent; `None`: for ever.
    #[must_use]
    pub fn new(idle_timeout_us: Option<i64>) -> Self {
        let reached = Watermark::MIN.0;
        Self {
            splits: HashMap::new(),
            opened: 0,
            closed: 0,
            reached,
            finished: false,
            vacant_us: 0,
            occupied: false,
            idle_timeout_us,
        }
    }

    /// Takes up how far another run had come.
    pub fn resume(&mut self, watermark: Watermark) {
        self.reached = self.reached.max(watermark.0);
    }

    /// A split joins. Announcing it again changes nothing.
    pub fn open(&mut self, split: SplitId) {
        self.occupied = true;
        let opened = &mut self.opened;
        self.splits.entry(split).or_insert_with(|| {
            *opened += 1;
            Split { watermark: Watermark::MIN.0, silent_us: 0, active: true, idle: false, held: false }
        });
    }

    /// Rows of `split` came; `watermark_us` is the greatest value of the watermark expression over them (`None`: all NULL).
    pub fn advance(&mut self, split: SplitId, watermark_us: Option<i64>) {
        if !self.splits.contains_key(&split) {
            self.open(split);
        }
        if let Some(state) = self.splits.get_mut(&split) {
            state.active = true;
            state.idle = false;
            if let Some(us) = watermark_us {
                state.watermark = state.watermark.max(us);
            }
        }
    }

    /// A split ended and no longer counts; how far it and the others had come stays, also when nobody looked since its rows came.
    pub fn finish(&mut self, split: SplitId) {
        self.current();
        if self.splits.remove(&split).is_some() {
            self.closed += 1;
        }
    }

    /// All splits ended and none will come: the watermark is [`Watermark::MAX`].
    pub fn finish_all(&mut self) {
        self.closed += self.splits.len() as u64;
        self.splits.clear();
        self.finished = true;
    }

    /// The watermark now, and whether it is held by nobody (all splits are idle), so that others need not wait for it.
    pub fn current(&mut self) -> (Watermark, bool) {
        if self.finished {
            self.reached = Watermark::MAX.0;
            return (Watermark::MAX, false);
        }
        let least = self.splits.values().filter(|split| !split.idle).map(|split| split.watermark).min();
        if let Some(least) = least {
            self.reached = self.reached.max(least);
        }
        let vacant = self.splits.is_empty() && self.idle_timeout_us.is_none_or(|timeout_us| self.vacant_us < timeout_us);
        let idle = least.is_none() && !vacant;
        (Watermark(self.reached), idle)
    }

    /// An epoch of `elapsed_us` ends. `starved`: the source was asked for rows and had none at some time in it, and was never held back.
    /// The watermark and idleness as by [`Self::current`].
    pub fn cut(&mut self, elapsed_us: i64, starved: bool) -> (Watermark, bool) {
        if let Some(timeout_us) = self.idle_timeout_us {
            // A small file may be opened, read and finished within one epoch: what it brought counts.
            if self.occupied || !self.splits.is_empty() {
                self.vacant_us = 0;
            } else if starved {
                self.vacant_us = self.vacant_us.saturating_add(elapsed_us);
            }
            self.occupied = false;
            for split in self.splits.values_mut() {
                if split.active {
                    split.silent_us = 0;
                } else if starved && !split.held {
                    split.silent_us = split.silent_us.saturating_add(elapsed_us);
                    split.idle |= split.silent_us >= timeout_us;
                }
                split.active = false;
            }
        }
        self.current()
    }

    /// Holds the splits that are beyond `limit_us` and lets go of the others; whether that changed anything.
    pub fn hold_beyond(&mut self, limit_us: i64) -> bool {
        let mut changed = false;
        for split in self.splits.values_mut() {
            let held = split.watermark > limit_us && !split.idle;
            changed |= std::mem::replace(&mut split.held, held) != held;
        }
        changed
    }

    /// The splits that are held, in ascending order.
    #[must_use]
    pub fn held(&self) -> Vec<SplitId> {
        let mut held: Vec<SplitId> = self.splits.iter().filter(|(_, split)| split.held).map(|(id, _)| *id).collect();
        held.sort_unstable_by_key(|split| split.0);
        held
    }

    /// Whether there are splits and all are held.
    #[must_use]
    pub fn is_held(&self) -> bool {
        !self.splits.is_empty() && self.splits.values().all(|split| split.held)
    }

    /// How many splits were opened, and how many of them have ended.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.opened, self.closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SplitId = SplitId(1);
    const B: SplitId = SplitId(2);

    #[test]
    fn splits_that_come_and_go_between_two_looks_move_the_watermark() {
        let mut source = SplitWatermarks::new(None);
        for (split, us) in [(A, 100), (B, 250)] {
            source.open(split);
            source.advance(split, Some(us));
            source.finish(split);
            assert_eq!(source.cut(1000, false).0, Watermark(us));
        }
        source.open(A);
        source.open(B);
        source.advance(A, Some(900));
        source.finish(A);
        assert_eq!(source.current().0, Watermark(250), "B is unread");
    }

    #[test]
    fn a_split_that_ends_in_the_epoch_in_which_it_came_ends_idleness_too() {
        let mut source = SplitWatermarks::new(Some(250));
        for (at, split) in [A, B, SplitId(3)].into_iter().enumerate() {
            let us = 1000 * at as i64;
            source.open(split);
            source.advance(split, Some(us));
            source.finish(split);
            assert_eq!(source.cut(1000, true), (Watermark(us), false), "also in an epoch longer than the timeout");
            assert_eq!(source.cut(200, true), (Watermark(us), false));
            assert_eq!(source.cut(200, true), (Watermark(us), true), "nothing came for as long as the timeout");
        }
    }

    #[test]
    fn the_slowest_split_holds_the_watermark_and_unread_ones_hold_it_at_the_start() {
        let mut source = SplitWatermarks::new(None);
        assert_eq!(source.current(), (Watermark::MIN, false), "no split is known yet");
        source.open(A);
        source.open(B);
        source.advance(A, Some(100));
        assert_eq!(source.current(), (Watermark::MIN, false), "B is unread");
        source.advance(B, Some(40));
        source.advance(A, Some(90));
        source.advance(A, None);
        assert_eq!(source.current(), (Watermark(40), false));
        source.finish(B);
        assert_eq!(source.current(), (Watermark(100), false), "a running maximum, of A alone");
        source.open(B);
        assert_eq!(source.current(), (Watermark(100), false), "never back for a split that joins later");
        source.advance(B, Some(50));
        source.advance(A, Some(200));
        assert_eq!(source.current(), (Watermark(100), false));
        source.finish_all();
        assert_eq!(source.current(), (Watermark::MAX, false));
        assert_eq!(source.counts(), (3, 3));
    }

    #[test]
    fn splits_beyond_the_limit_are_held_and_their_silence_does_not_count() {
        let mut source = SplitWatermarks::new(Some(100));
        assert!(!source.hold_beyond(0) && !source.is_held(), "there is no split");
        source.advance(A, Some(60));
        source.advance(B, Some(40));
        assert!(source.hold_beyond(50) && !source.hold_beyond(50), "told once");
        assert_eq!((source.held(), source.is_held()), (vec![A], false));
        source.cut(100, true);
        for _ in 0..3 {
            source.advance(B, Some(45));
            source.cut(100, true);
        }
        assert!(source.hold_beyond(30) && source.is_held());
        assert!(source.hold_beyond(i64::MAX) && source.held().is_empty());
        assert_eq!(source.cut(50, true), (Watermark(45), false), "A was held, not idle");
    }

    #[test]
    fn a_silent_split_stops_counting_after_the_timeout_and_counts_again_with_its_next_row() {
        let mut source = SplitWatermarks::new(Some(250));
        source.advance(A, Some(10));
        source.advance(B, Some(20));
        for _ in 0..3 {
            source.advance(B, Some(300));
            assert_eq!(source.cut(100, true).0, Watermark(10));
        }
        source.advance(B, Some(400));
        assert_eq!(source.cut(100, false), (Watermark(10), false), "held back: that time does not count");
        source.advance(B, Some(500));
        assert_eq!(source.cut(100, true), (Watermark(500), false), "A was silent for 300 µs");
        for _ in 0..2 {
            assert!(!source.cut(100, true).1);
        }
        assert_eq!(source.cut(100, true), (Watermark(500), true), "all are idle: the last value is kept");
        source.advance(A, Some(30));
        assert_eq!(source.cut(100, true), (Watermark(500), false), "A counts again, and the watermark does not go back");
        source.finish(A);
        source.finish(B);
        assert_eq!(source.cut(200, true), (Watermark(500), false), "others may join");
        assert_eq!(source.cut(200, true), (Watermark(500), true));
        source.open(A);
        assert_eq!(source.cut(200, true), (Watermark(500), false));
    }
}
