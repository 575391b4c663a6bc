//! A log without I/O and without threads: a [`Writer`] that also keeps where the log begins and its named iterators.

use crate::device::{Device, DeviceError};
use crate::segment::format::CONTROL;
use crate::segment::{LogError, LogOptions, Lsn, SegmentKind, Task, Writer, recovery};

use super::state::LogState;

/// A log's state machine: asked for tasks, told their results.
#[derive(Debug)]
pub(crate) struct LogCore {
    writer: Writer,
    state: LogState,
    /// Segments before the second position go when all before the first is durable.
    removal: Option<(Lsn, Lsn)>,
}

impl LogCore {
    /// Recovers the log in the device's directory, or begins one.
    pub(crate) fn open(device: &mut (impl Device + ?Sized), options: LogOptions) -> Result<Self, LogError> {
        let (mut state, mut unknown) = (None, None);
        let recovered = recovery::recover(device, SegmentKind::Log, &mut |lsn, entry| {
            if entry.is_control {
                match LogState::decode(entry.payload) {
                    Some(found) => state = Some(found),
                    None => unknown = unknown.or(Some(lsn)),
                }
            }
        })?;
        let first = recovered.segments.first().map_or(0, |s| s.header.base);
        if let Some(lsn) = unknown {
            let base = recovered.segments.iter().rev().find(|s| s.header.base <= lsn.0).map_or(0, |s| s.header.base);
            let because = format!("the control record at position {} is of a kind that is not known", lsn.0);
            return Err(LogError::Unsupported { file: SegmentKind::Log.name(base), because });
        }
        let mut state = state.unwrap_or_default();
        state.begin = state.begin.max(first);
        let preamble_max = state_bytes_max(&options);
        let preamble = state.encode();
        if preamble.len() > preamble_max {
            return Err(LogError::TooLarge { size_bytes: preamble.len(), limit_bytes: preamble_max });
        }
        let mut writer = Writer::new(SegmentKind::Log, options, &recovered, preamble, preamble_max);
        writer.begin_first_segment();
        // What a crash kept of a truncation is finished now.
        writer.remove_segments_before(Lsn(state.begin));
        let mut core = Self { writer, state, removal: None };
        while let Some(task) = core.next_task() {
            core.finished(device.execute(task.into_op()).map(|_| ()));
        }
        core.writer.check()?;
        Ok(core)
    }

    pub(crate) fn append(&mut self, payloads: &[&[u8]]) -> Result<Lsn, LogError> {
        self.writer.append(payloads, 0)
    }

    pub(crate) fn commit(&mut self) -> Result<Lsn, LogError> {
        self.writer.check()?;
        Ok(self.writer.commit())
    }

    fn change_state(&mut self, state: LogState) -> Result<Lsn, LogError> {
        let payload = state.encode();
        self.writer.preamble_fits(&payload)?;
        self.writer.append(&[&payload], CONTROL)?;
        self.writer.set_preamble(payload)?;
        self.state = state;
        Ok(self.writer.tail())
    }

    /// The position to wait for.
    pub(crate) fn set_iterator(&mut self, name: &str, position: Lsn) -> Result<Lsn, LogError> {
        if position > self.writer.tail() {
            return Err(LogError::BeyondEnd { lsn: position, end: self.writer.tail() });
        }
        let state = self.state.with_iterator(name, position)?;
        self.change_state(state)
    }

    /// The position to wait for.
    pub(crate) fn remove_iterator(&mut self, name: &str) -> Result<Lsn, LogError> {
        self.writer.check()?;
        let mut state = self.state.clone();
        if state.iterators.remove(name).is_none() {
            return Ok(self.writer.tail());
        }
        self.change_state(state)
    }

    /// The position to wait for until the truncation is durable; files go afterwards.
    pub(crate) fn truncate_before(&mut self, lsn: Lsn) -> Result<Lsn, LogError> {
        self.writer.check()?;
        if lsn > self.writer.durable() {
            return Err(LogError::BeyondEnd { lsn, end: self.writer.durable() });
        }
        if lsn.0 <= self.state.begin {
            return Ok(self.writer.durable());
        }
        let until = self.change_state(LogState { begin: lsn.0, ..self.state.clone() })?;
        self.removal = Some((until, lsn));
        self.writer.commit();
        Ok(until)
    }

    pub(crate) fn next_task(&mut self) -> Option<Task> {
        self.writer.next_task()
    }

    pub(crate) fn finished(&mut self, result: Result<(), DeviceError>) {
        self.writer.finished(result);
        if let Some((until, before)) = self.removal
            && self.writer.durable() >= until
        {
            self.removal = None;
            self.writer.remove_segments_before(before);
        }
    }

    /// Memory to be filled again.
    pub(crate) fn give_back(&mut self, memory: Vec<u8>) {
        self.writer.give_back(memory);
    }

    pub(crate) fn state(&self) -> &LogState {
        &self.state
    }

    pub(crate) fn begin(&self) -> Lsn {
        Lsn(self.state.begin)
    }

    pub(crate) fn writer(&self) -> &Writer {
        &self.writer
    }

    pub(crate) fn set_now(&mut self, now_us: u64) {
        self.writer.set_now(now_us);
    }

    pub(crate) fn poison(&mut self, because: &str) {
        self.writer.poison(because);
    }
}

/// Begin and iterators stand in each segment, so they may take a quarter of one at most.
fn state_bytes_max(options: &LogOptions) -> usize {
    (options.segment_bytes as usize / 4).min(options.pending_bytes_max / 4).min(1 << 20)
}
