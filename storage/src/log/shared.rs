//! A log that many threads append to: the core behind a lock, and a thread that owns the device.
//!
//! Copying a record under the lock costs less than reserving space and marking it complete would, and leaves nothing to race: what is in
//! the core is whole. Checksums and I/O happen outside of the lock, on the log's own thread.

use std::time::{Duration, Instant};

use crate::device::Device;
use crate::segment::{LogError, Lsn};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, thread};

use super::core::LogCore;
use super::state::LogState;

struct Inner {
    core: LogCore,
    /// The thread sleeps, until told or until the time that was due then.
    sleeps: bool,
    stops: bool,
    ended: bool,
}

/// What appenders, waiters, readers and the log's thread share.
pub(super) struct Shared {
    inner: Mutex<Inner>,
    /// There is something to do for the log's thread.
    work: Condvar,
    /// Something became durable, or the log is poisoned.
    progress: Condvar,
    started: Instant,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    pub(super) fn new(core: LogCore) -> Self {
        let inner = Inner { core, sleeps: false, stops: false, ended: false };
        Self { inner: Mutex::new(inner), work: Condvar::new(), progress: Condvar::new(), started: Instant::now() }
    }

    fn lock(&self) -> Result<MutexGuard<'_, Inner>, LogError> {
        self.inner.lock().map_err(|_| LogError::Poisoned { because: "a thread panicked while it changed the log".to_owned() })
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Lets the thread know, if it sleeps, that there may be something to do.
    fn wake(&self, inner: &mut Inner) {
        if inner.sleeps {
            inner.sleeps = false;
            self.work.notify_one();
        }
    }

    pub(super) fn append(&self, payloads: &[&[u8]]) -> Result<Lsn, LogError> {
        self.append_or_durable(payloads).map_err(|(error, _)| error)
    }

    /// With an error, what was durable at that very moment.
    fn append_or_durable(&self, payloads: &[&[u8]]) -> Result<Lsn, (LogError, Lsn)> {
        let mut inner = self.lock().map_err(|e| (e, Lsn(0)))?;
        let is_first = inner.core.writer().due_us().is_none();
        if is_first {
            // From now on counts how long it may wait.
            inner.core.set_now(self.now_us());
        }
        let lsn = match inner.core.append(payloads) {
            Ok(lsn) => lsn,
            Err(error) => return Err((error, inner.core.writer().durable())),
        };
        if is_first || inner.core.writer().pending_bytes() >= inner.core.writer().commit_bytes() {
            self.wake(&mut inner);
        }
        Ok(lsn)
    }

    /// Waits until there is room for the records, for `timeout` at most.
    pub(super) fn append_or_wait(&self, payloads: &[&[u8]], timeout: Duration) -> Result<Lsn, LogError> {
        // Asked for only when there is something to wait for.
        let mut start = None;
        loop {
            match self.append_or_durable(payloads) {
                Err((full @ LogError::Full { .. }, durable)) => {
                    self.commit()?;
                    let start = *start.get_or_insert_with(Instant::now);
                    let left = timeout.saturating_sub(start.elapsed());
                    if left.is_zero() {
                        return Err(full);
                    }
                    self.wait_progress(durable, left)?;
                }
                other => return other.map_err(|(error, _)| error),
            }
        }
    }

    pub(super) fn commit(&self) -> Result<Lsn, LogError> {
        let mut inner = self.lock()?;
        let lsn = inner.core.commit()?;
        self.wake(&mut inner);
        Ok(lsn)
    }

    /// Changes begin or iterators; the position to wait for.
    pub(super) fn change(&self, change: impl FnOnce(&mut LogCore) -> Result<Lsn, LogError>) -> Result<Lsn, LogError> {
        let mut inner = self.lock()?;
        let until = change(&mut inner.core)?;
        self.wake(&mut inner);
        Ok(until)
    }

    /// Waits until all below `lsn` is durable.
    pub(super) fn wait(&self, lsn: Lsn, timeout: Duration) -> Result<(), LogError> {
        let start = Instant::now();
        let mut inner = self.lock()?;
        loop {
            if inner.core.writer().durable() >= lsn {
                return Ok(());
            }
            inner.core.writer().check()?;
            if lsn > inner.core.writer().tail() {
                return Err(LogError::BeyondEnd { lsn, end: inner.core.writer().tail() });
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(LogError::Timeout { lsn, waited_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) });
            }
            let because = || LogError::Poisoned { because: "a thread panicked while it changed the log".to_owned() };
            inner = self.progress.wait_timeout(inner, left).map_err(|_| because())?.0;
        }
    }

    /// Waits until more than `durable` is durable, or the time is over; what is durable then.
    pub(super) fn wait_progress(&self, durable: Lsn, timeout: Duration) -> Result<Lsn, LogError> {
        let start = Instant::now();
        let mut inner = self.lock()?;
        loop {
            let now = inner.core.writer().durable();
            let left = timeout.saturating_sub(start.elapsed());
            if now > durable || left.is_zero() {
                return Ok(now);
            }
            inner.core.writer().check()?;
            let because = || LogError::Poisoned { because: "a thread panicked while it changed the log".to_owned() };
            inner = self.progress.wait_timeout(inner, left).map_err(|_| because())?.0;
        }
    }

    /// Begin, durable, tail.
    pub(super) fn bounds(&self) -> Result<(Lsn, Lsn, Lsn), LogError> {
        let inner = self.lock()?;
        Ok((inner.core.begin(), inner.core.writer().durable(), inner.core.writer().tail()))
    }

    pub(super) fn state(&self) -> Result<LogState, LogError> {
        Ok(self.lock()?.core.state().clone())
    }

    /// Asks the thread to commit what is there, and to end.
    pub(super) fn stop(&self) {
        if let Ok(mut inner) = self.inner.lock() {
            inner.stops = true;
            self.wake(&mut inner);
        }
    }

    /// Waits until the thread has ended; whether it has.
    pub(super) fn wait_ended(&self, timeout: Duration) -> bool {
        let start = Instant::now();
        let Ok(mut inner) = self.inner.lock() else { return true };
        while !inner.ended {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return false;
            }
            match self.progress.wait_timeout(inner, left) {
                Ok((again, _)) => inner = again,
                Err(_) => return true,
            }
        }
        true
    }

    /// What the log's thread does until it is stopped or the log is poisoned.
    pub(super) fn run(self: &Arc<Self>, device: &mut impl Device) -> Result<(), LogError> {
        let _guard = Ending(self);
        loop {
            let mut inner = self.lock()?;
            inner.core.set_now(self.now_us());
            if inner.stops {
                inner.core.commit()?;
            }
            if let Some(task) = inner.core.next_task() {
                drop(inner);
                let (result, memory) = task.perform(device);
                let mut inner = self.lock()?;
                inner.core.finished(result);
                inner.core.give_back(memory);
                self.progress.notify_all();
                inner.core.writer().check()?;
                continue;
            }
            if inner.stops {
                return Ok(());
            }
            inner.sleeps = true;
            let due_us = inner.core.writer().due_us().map(|due| due.saturating_sub(self.now_us()).max(1));
            let because = || LogError::Poisoned { because: "a thread panicked while it changed the log".to_owned() };
            let mut inner = match due_us {
                Some(due_us) => self.work.wait_timeout(inner, Duration::from_micros(due_us)).map_err(|_| because())?.0,
                None => self.work.wait(inner).map_err(|_| because())?,
            };
            inner.sleeps = false;
        }
    }
}

/// Whoever waits must not wait for a thread that is gone.
struct Ending<'a>(&'a Shared);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if let Ok(mut inner) = self.0.inner.lock() {
            if thread::panicking() {
                inner.core.poison("the log's thread panicked");
            }
            inner.core.poison("the log has been closed");
            inner.ended = true;
        }
        self.0.progress.notify_all();
    }
}
