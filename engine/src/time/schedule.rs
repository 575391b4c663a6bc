//! When epochs end.

use crate::ids::Epoch;

/// Epoch n ends at `start_us + n · interval_us`, on every core and in every process: no message is needed to agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TickSchedule {
    start_us: i64,
    interval_us: i64,
}

impl TickSchedule {
    /// Epochs of `interval_us` (at least 1) from `start_us`, µs since 1970.
    #[must_use]
    pub fn new(start_us: i64, interval_us: i64) -> Self {
        Self { start_us, interval_us: interval_us.max(1) }
    }

    /// When `epoch` ends, µs since 1970; for epoch 0 the start.
    #[must_use]
    pub fn time_us(&self, epoch: Epoch) -> i64 {
        let passed = i64::try_from(epoch.0).unwrap_or(i64::MAX).saturating_mul(self.interval_us);
        self.start_us.saturating_add(passed)
    }

    /// The length of an epoch, µs.
    #[must_use]
    pub fn interval_us(&self) -> i64 {
        self.interval_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_evenly_spaced_and_never_overflow() {
        let schedule = TickSchedule::new(1_000, 100);
        assert_eq!(schedule.time_us(Epoch(0)), 1_000);
        assert_eq!(schedule.time_us(Epoch(7)), 1_700);
        assert_eq!(schedule.time_us(Epoch(u64::MAX)), i64::MAX);
        assert_eq!(TickSchedule::new(5, 0).interval_us(), 1);
    }
}
