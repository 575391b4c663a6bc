//! Brings a writer's tasks to a device, one at a time.

use std::time::Duration;

use super::Task;
use crate::device::{Completion, Device, DeviceError, Token};

/// Longest that is waited at once: completions of a device are looked at again then.
const WAIT_MAX: Duration = Duration::from_millis(50);

/// A device with at most one task on its way.
#[derive(Debug)]
pub(crate) struct Pump<D> {
    device: D,
    on_its_way: Option<Token>,
    done: Vec<Completion>,
}

impl<D: Device> Pump<D> {
    pub(crate) fn new(device: D) -> Self {
        Self { device, on_its_way: None, done: Vec::new() }
    }

    /// What came of the task, if it has ended.
    pub(crate) fn finished(&mut self) -> Option<Result<(), DeviceError>> {
        self.device.poll(&mut self.done);
        let token = self.on_its_way?;
        let ended = self.done.drain(..).find(|c| c.token == token)?;
        self.on_its_way = None;
        Some(ended.result.map(|_| ()))
    }

    pub(crate) fn is_free(&self) -> bool {
        self.on_its_way.is_none()
    }

    pub(crate) fn submit(&mut self, task: Task) {
        self.on_its_way = Some(self.device.submit(task.into_op()));
    }

    /// Waits until something has ended, for `timeout` at most.
    pub(crate) fn wait(&mut self, timeout: Duration) {
        self.device.wait(timeout.min(WAIT_MAX));
    }

    pub(crate) fn into_device(self) -> D {
        self.device
    }

    pub(crate) fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }
}
