//! What follows from an event's number alone: its kind, its time, and which ids exist by then.
//!
//! Events come in rounds of `person + auction + bid` proportions, in that order: with the official 1 : 3 : 46, event 0 is a person,
//! 1 to 3 are auctions, 4 to 49 bids, and so on for every 50.

use std::ops::Range;

/// The kind of an event: `event_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// 0: somebody registers.
    Person,
    /// 1: somebody offers something.
    Auction,
    /// 2: somebody bids.
    Bid,
}

impl Kind {
    /// All kinds; `ALL[kind as usize] == kind`, and `kind as i32` is its `event_type`.
    pub const ALL: [Self; 3] = [Self::Person, Self::Auction, Self::Bid];
}

/// Events of one kind that follow each other in one round.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The round's number.
    pub round: u64,
    /// The events' numbers; not empty.
    pub events: Range<u64>,
}

/// The clock and the proportions of a stream.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// When event 0 happens, in ms since 1970.
    pub start_ms: i64,
    /// Events a second of event time.
    pub rate: u64,
    /// How many events of each kind a round has.
    pub proportions: [u64; 3],
}

impl Timeline {
    /// Events in a round.
    pub fn round_events(&self) -> u64 {
        self.proportions.iter().sum()
    }

    /// When event `number` happens, in ms since 1970.
    #[inline]
    pub fn time_ms(&self, number: u64) -> i64 {
        self.start_ms + (number * 1000 / self.rate) as i64
    }

    /// The first event number whose time no longer fits, in µs, into an `i64`, or whose number no longer fits into this arithmetic.
    pub fn events_max(&self) -> u64 {
        let seconds = (i64::MAX / 1_000_000 - self.start_ms / 1000).max(0) as u64;
        seconds.saturating_mul(self.rate).min(u64::MAX / 1000 / 2)
    }

    /// Where in each round the events of `kind` stand.
    fn offsets(&self, kind: Kind) -> Range<u64> {
        let start = self.proportions[..kind as usize].iter().sum();
        start..start + self.proportions[kind as usize]
    }

    /// Appends to `runs` the events of `kind` among `numbers`, in ascending order. Returns their count.
    pub fn runs(&self, kind: Kind, numbers: &Range<u64>, runs: &mut Vec<Run>) -> usize {
        let (total, offsets) = (self.round_events(), self.offsets(kind));
        let mut count = 0;
        let mut round = numbers.start / total;
        while round * total < numbers.end {
            let start = (round * total + offsets.start).max(numbers.start);
            let end = (round * total + offsets.end).min(numbers.end);
            if start < end {
                count += (end - start) as usize;
                runs.push(Run { round, events: start..end });
            }
            round += 1;
        }
        count
    }

    /// The newest auction (counted from 0, −1: none yet) when the events of `run` happen, for a run of auctions its first.
    pub fn last_auction(&self, kind: Kind, run: &Run) -> i64 {
        let [persons, auctions, _] = self.proportions;
        let before = (run.round * auctions) as i64;
        match kind {
            Kind::Person => before - 1,
            Kind::Auction => before + (run.events.start - run.round * self.round_events() - persons) as i64,
            Kind::Bid => before + auctions as i64 - 1,
        }
    }

    /// The newest person (counted from 0, −1: none yet) when the events of `run` happen, for a run of persons its first.
    pub fn last_person(&self, kind: Kind, run: &Run) -> i64 {
        let before = (run.round * self.proportions[0]) as i64;
        match kind {
            Kind::Person => before + (run.events.start - run.round * self.round_events()) as i64,
            Kind::Auction | Kind::Bid => before + self.proportions[0] as i64 - 1,
        }
    }

    /// Calls `each` with the time of every event of `runs`, in ms. One division a run, not one an event.
    #[inline]
    pub fn for_each_time_ms(&self, runs: &[Run], mut each: impl FnMut(i64)) {
        let (step, step_rest) = ((1000 / self.rate) as i64, 1000 % self.rate);
        for run in runs {
            let scaled = run.events.start * 1000;
            let mut time = self.start_ms + (scaled / self.rate) as i64;
            let mut rest = scaled % self.rate;
            for _ in run.events.clone() {
                each(time);
                rest += step_rest;
                let carry = rest >= self.rate;
                rest -= if carry { self.rate } else { 0 };
                time += step + i64::from(carry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(rate: u64, proportions: [u64; 3]) -> Timeline {
        Timeline { start_ms: 1_700_000_000_000, rate, proportions }
    }

    #[test]
    fn every_event_is_of_one_kind_and_the_kinds_stand_in_order() {
        for proportions in [[1, 3, 46], [2, 0, 3], [0, 0, 1], [1, 1, 1]] {
            let timeline = timeline(10_000, proportions);
            let total = timeline.round_events();
            for numbers in [0..1, 0..200, 3..4, 49..51, 77..1234] {
                let mut seen = vec![None; (numbers.end - numbers.start) as usize];
                for kind in Kind::ALL {
                    let mut runs = Vec::new();
                    let count = timeline.runs(kind, &numbers, &mut runs);
                    assert_eq!(count as u64, runs.iter().map(|r| r.events.end - r.events.start).sum::<u64>());
                    for number in runs.iter().flat_map(|r| r.events.clone()) {
                        assert_eq!(seen[(number - numbers.start) as usize].replace(kind), None);
                    }
                }
                for (i, kind) in seen.into_iter().enumerate() {
                    let offset = (numbers.start + i as u64) % total;
                    let expected = if offset < proportions[0] {
                        Kind::Person
                    } else if offset < proportions[0] + proportions[1] {
                        Kind::Auction
                    } else {
                        Kind::Bid
                    };
                    assert_eq!(kind, Some(expected));
                }
            }
        }
    }

    #[test]
    fn stepping_through_a_run_gives_the_times_of_its_events() {
        for rate in [1, 3, 7, 999, 1000, 1001, 10_000, 123_457, 1_000_000, 50_000_000] {
            let timeline = timeline(rate, [1, 3, 46]);
            let mut runs = Vec::new();
            timeline.runs(Kind::Bid, &(1_000_003..1_001_000), &mut runs);
            let mut stepped = Vec::new();
            timeline.for_each_time_ms(&runs, |time| stepped.push(time));
            let direct: Vec<_> = runs.iter().flat_map(|r| r.events.clone()).map(|n| timeline.time_ms(n)).collect();
            assert_eq!(stepped, direct, "rate {rate}");
        }
    }

    #[test]
    fn the_last_event_has_a_time_in_microseconds() {
        for rate in [1, 10_000, u64::from(u32::MAX)] {
            let timeline = timeline(rate, [1, 3, 46]);
            assert!(timeline.time_ms(timeline.events_max()).checked_mul(1000).is_some(), "rate {rate}");
        }
    }
}
