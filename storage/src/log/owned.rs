//! A log with one owner, who drives it: no lock and no thread.

use std::time::{Duration, Instant};

use crate::device::Device;
use crate::segment::{LogError, LogOptions, Lsn, Pump};

use super::core::LogCore;

/// A log for one owner, who says when time has passed. Its files are those of a [`Log`](super::Log); it is read by a
/// [`ReadOnlyLog`](super::ReadOnlyLog).
#[derive(Debug)]
pub struct OwnedLog<D> {
    pump: Pump<D>,
    core: LogCore,
}

impl<D: Device> OwnedLog<D> {
    /// Opens the log in the device's directory, or begins one.
    pub fn open(mut device: D, options: LogOptions) -> Result<Self, LogError> {
        let core = LogCore::open(&mut device, options)?;
        Ok(Self { pump: Pump::new(device), core })
    }

    /// Appends records of which a crash keeps all or none. The position of the first. Never blocks.
    pub fn append_batch(&mut self, payloads: &[&[u8]]) -> Result<Lsn, LogError> {
        self.core.append(payloads)
    }

    /// Asks for all that was appended to be made durable; the position to wait for.
    pub fn commit(&mut self) -> Result<Lsn, LogError> {
        let until = self.core.commit()?;
        self.advance()?;
        Ok(until)
    }

    /// Takes completions and begins what is due at `now_us`, a clock of the caller's that never goes back.
    pub fn poll(&mut self, now_us: u64) -> Result<(), LogError> {
        self.core.set_now(now_us);
        self.advance()
    }

    fn advance(&mut self) -> Result<(), LogError> {
        if let Some(result) = self.pump.finished() {
            self.core.finished(result);
        }
        self.core.writer().check()?;
        if self.pump.is_free()
            && let Some(task) = self.core.next_task()
        {
            self.pump.submit(task);
        }
        Ok(())
    }

    /// Waits until all below `until` is durable, for `timeout` at most. Does not ask for it.
    pub fn wait_for_commit(&mut self, until: Lsn, timeout: Duration) -> Result<(), LogError> {
        let start = Instant::now();
        loop {
            self.advance()?;
            if self.durable() >= until {
                return Ok(());
            }
            if until > self.tail() {
                return Err(LogError::BeyondEnd { lsn: until, end: self.tail() });
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(LogError::Timeout { lsn: until, waited_ms: timeout.as_millis() as u64 });
            }
            self.pump.wait(left);
        }
    }

    /// As [`Log::truncate_before`](super::Log::truncate_before).
    pub fn truncate_before(&mut self, lsn: Lsn) -> Result<Lsn, LogError> {
        let until = self.core.truncate_before(lsn)?;
        self.advance()?;
        Ok(until)
    }

    /// As [`Log::set_iterator`](super::Log::set_iterator).
    pub fn set_iterator(&mut self, name: &str, position: Lsn) -> Result<Lsn, LogError> {
        self.core.set_iterator(name, position)
    }

    /// As [`Log::remove_iterator`](super::Log::remove_iterator).
    pub fn remove_iterator(&mut self, name: &str) -> Result<Lsn, LogError> {
        self.core.remove_iterator(name)
    }

    /// Where a named iterator stands.
    #[must_use]
    pub fn iterator(&self, name: &str) -> Option<Lsn> {
        self.core.state().iterators.get(name).copied().map(Lsn)
    }

    /// The first position that is kept.
    #[must_use]
    pub fn begin(&self) -> Lsn {
        self.core.begin()
    }

    /// All below is durable.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.core.writer().durable()
    }

    /// Where the next record goes.
    #[must_use]
    pub fn tail(&self) -> Lsn {
        self.core.writer().tail()
    }

    /// Whether nothing is on its way and nothing waits to be.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pump.is_free() && self.core.writer().is_idle()
    }

    /// The device; a log that is dropped leaves what is on its way to it.
    pub fn into_device(self) -> D {
        self.pump.into_device()
    }

    /// The device.
    pub fn device_mut(&mut self) -> &mut D {
        self.pump.device_mut()
    }
}
