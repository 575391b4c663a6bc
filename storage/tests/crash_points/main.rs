//! Switches the disk off at every operation of many workloads, keeps any part of what wasn't synced, recovers, and compares with a model:
//! everything acknowledged is there, nothing that wasn't written is, damage is an error.
//!
//! `cargo test -p tiderace-storage --test crash_points -- --nocapture` prints what was checked. `TIDERACE_CRASH_SEED` and
//! `TIDERACE_CRASH_ROUNDS` choose other and more workloads; a violation names the seeds that show it again.
#![allow(clippy::unwrap_used, reason = "tests")]

mod captures;
mod checkpoint;
mod compaction;
mod kv;
mod larger;
mod log;
#[cfg(feature = "bugs")]
mod mistakes;
mod ordered;
mod shard;
// The store's own tests once more: some mistakes show between threads only.
#[cfg(feature = "bugs")]
#[path = "../kv.rs"]
mod threads;
mod wal;

use std::sync::atomic::{AtomicU64, Ordering};

/// What was checked in all parts that have ended.
static ALL: (AtomicU64, AtomicU64) = (AtomicU64::new(0), AtomicU64::new(0));

/// What was checked in one part.
#[derive(Debug, Default)]
pub struct Tally {
    points: AtomicU64,
    violations: AtomicU64,
}

impl Tally {
    /// Counts a check, and says what a violation was.
    pub fn check(&self, result: Result<(), String>) {
        self.points.fetch_add(1, Ordering::Relaxed);
        if let Err(what) = result
            && self.violations.fetch_add(1, Ordering::Relaxed) < 5
        {
            println!("violation: {what}");
        }
    }

    /// Prints the sums and fails if anything was violated, or less was checked than was meant to be.
    pub fn finish(&self, part: &str, least: u64) {
        let (points, violations) = (self.points.load(Ordering::Relaxed), self.violations.load(Ordering::Relaxed));
        println!("{part}: crash points checked: {points}, violations: {violations}");
        // Parts end one after the other; the last line that a run prints is the sum of all.
        let all = ALL.0.fetch_add(points, Ordering::SeqCst) + points;
        let all_violations = ALL.1.fetch_add(violations, Ordering::SeqCst) + violations;
        println!("crash points checked: {all}, violations: {all_violations}");
        assert_eq!(violations, 0, "{part}: violations");
        // Who asks for fewer workloads gets fewer crash points.
        let asked_for_fewer = std::env::var_os("TIDERACE_CRASH_ROUNDS").is_some();
        assert!(points >= least || asked_for_fewer, "{part}: only {points} of {least} crash points");
    }
}

/// A number from the environment.
pub fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(usual)
}

/// A small generator of numbers: the same for the same seed, everywhere.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "endless, and not used as an iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// One below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
