//! Which version an operation belongs to: the part of a checkpoint that threads share.
//!
//! A batch of a session belongs to one version as a whole. It says so before it begins, and nobody cuts a shard for version `v` before every
//! batch of an older version has ended. So each shard's cut divides each session's batches at the same place: those before the session
//! turned to `v`, and those after. Neither idle nor dropped sessions are waited for: who is outside of a batch is divided by others.

use std::time::{Duration, Instant};

use crate::bugs::{self, Bug};
use crate::sync::{Arc, AtomicU64, Mutex, MutexGuard, Ordering, PoisonError, thread};

/// Outside of batches.
const OUTSIDE: u64 = 0;

/// What is known of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    /// The newest version that it was divided for.
    pub(super) version: u64,
    /// Its last serial before that version.
    pub(super) before: u64,
}

/// A session as others see it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: u64,
    /// The version of the batch that runs, or [`OUTSIDE`].
    active: AtomicU64,
    /// The serial of the last operation of the last batch that has ended. Written by the session alone, inside of its batch.
    serial: AtomicU64,
    /// The last serial that is in a committed checkpoint.
    pub(super) durable: AtomicU64,
    numbers: Mutex<Numbers>,
}

impl Slot {
    pub(super) fn new(id: u64, serial: u64, version: u64) -> Self {
        Self {
            id,
            active: AtomicU64::new(OUTSIDE),
            serial: AtomicU64::new(serial),
            durable: AtomicU64::new(serial),
            numbers: Mutex::new(Numbers { version, before: serial }),
        }
    }

    pub(super) fn serial(&self) -> u64 {
        self.serial.load(Ordering::Acquire)
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        // Two numbers that are written one after the other by code that doesn't panic.
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Divides the session's operations for `version`, unless that is done. Called by the session in its first batch of the version, or by
    /// a checkpoint after all batches of older versions have ended.
    fn divide(&self, version: u64) -> Numbers {
        let mut numbers = self.numbers();
        if numbers.version < version {
            *numbers = Numbers { version, before: self.serial() };
        }
        *numbers
    }
}

/// The versions of a store, and its sessions.
#[derive(Debug)]
pub(super) struct Gate {
    /// The version of batches that begin now; from 1 on.
    version: AtomicU64,
    /// No batch of a version below this one runs.
    drained: AtomicU64,
    slots: Mutex<Vec<Arc<Slot>>>,
}

/// A batch that runs. Ends when it is dropped; counts when [`complete`](Batch::complete) has been called.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    slot: &'a Slot,
    pub(super) version: u64,
}

impl Batch<'_> {
    /// The batch has done so many operations.
    pub(super) fn complete(self, operations: u64) {
        self.slot.serial.store(self.slot.serial.load(Ordering::Relaxed) + operations, Ordering::Release);
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.slot.active.store(OUTSIDE, Ordering::Release);
    }
}

impl Gate {
    pub(super) fn new(version: u64) -> Self {
        Self { version: AtomicU64::new(version), drained: AtomicU64::new(version), slots: Mutex::new(Vec::new()) }
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// All sessions, live ones and dropped ones alike, until they are forgotten.
    pub(super) fn slots(&self) -> MutexGuard<'_, Vec<Arc<Slot>>> {
        // A list that is changed by single pushes and removals.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a batch. `known`: the version for which the session knows itself divided. `None` when batches of an older version don't end
    /// in time.
    pub(super) fn enter<'a>(&self, slot: &'a Slot, known: &mut u64, timeout: Duration) -> Option<Batch<'a>> {
        let mut version = self.version.load(Ordering::Relaxed);
        loop {
            slot.active.store(version, Ordering::SeqCst);
            // Whoever raised the version before this load sees the store above, or this load sees the version raised.
            let now = self.version.load(Ordering::SeqCst);
            if now == version {
                break;
            }
            version = now;
        }
        let batch = Batch { slot, version };
        if *known < version {
            *known = slot.divide(version).version;
        }
        if self.drained.load(Ordering::Acquire) < version && !self.wait_drained(version, timeout) {
            return None;
        }
        Some(batch)
    }

    /// Raises the version; batches that begin from now on are of the new one.
    pub(super) fn raise(&self) -> u64 {
        self.version.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Waits until no batch of a version below `version` runs; whether that came in time.
    pub(super) fn wait_drained(&self, version: u64, timeout: Duration) -> bool {
        let start = Instant::now();
        loop {
            let idles = |slot: &Arc<Slot>| bugs::is_on(Bug::WaitsForIdle) && slot.numbers().version < version;
            let runs = |slot: &Arc<Slot>| (OUTSIDE + 1..version).contains(&slot.active.load(Ordering::SeqCst)) || idles(slot);
            if !self.slots().iter().any(runs) {
                self.drained.fetch_max(version, Ordering::Release);
                return true;
            }
            if start.elapsed() >= timeout {
                return false;
            }
            thread::yield_now();
        }
    }

    /// The last serial of each session before `version`, by session. All batches of older versions have ended.
    pub(super) fn divide_all(&self, version: u64) -> Vec<(u64, u64)> {
        let mut serials: Vec<_> = self.slots().iter().map(|slot| (slot.id, slot.divide(version).before)).collect();
        serials.sort_unstable();
        serials
    }
}
