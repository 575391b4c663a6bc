//! A directory by `pread` and `pwrite` on a few threads: what io_uring does, where the system doesn't allow that.
//!
//! ```text
//! submit ─▶ queue (bounded; what doesn't fit is done at once) ─▶ thread ─▶ done ─▶ poll
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::files::{FileDevice, OpenFile, error, perform_on};
use super::{Completion, Device, DeviceError, DeviceOp, Done, FileName, Token};

/// Operations that may be on their way at once; more are done within `submit`.
const IN_FLIGHT_MAX: usize = 256;

/// An operation on an open file.
type Task = (Token, OpenFile, DeviceOp);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to do, or the device is going.
    work: Condvar,
    /// Something was done.
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Task>,
    /// Taken from the queue and not done yet.
    running: usize,
    done: Vec<Completion>,
    is_closing: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Pushes and pops of whole tasks: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some((token, file, op)) = state.queue.pop_front() {
                state.running += 1;
                drop(state);
                let result = perform_on(&file, &op).map_err(|e| error(&op, &e));
                drop((file, op));
                state = self.lock();
                state.running -= 1;
                state.done.push(Completion { token, result });
                self.done.notify_all();
            } else if state.is_closing {
                return;
            } else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// A directory by threads; [`open_device`](super::open_device) makes one. Dropping it waits for what is on its way.
#[derive(Debug)]
pub struct ThreadsDevice {
    files: FileDevice,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl ThreadsDevice {
    /// A device with so many threads, at least one; fewer where the system gives fewer, an error where it gives none.
    pub(super) fn new(files: FileDevice, threads: usize) -> Result<Self, DeviceError> {
        let shared = Arc::new(Shared::default());
        let mut started = Vec::new();
        for _ in 0..threads.max(1) {
            let own = Arc::clone(&shared);
            match std::thread::Builder::new().name("storage-io".to_owned()).spawn(move || own.work()) {
                Ok(thread) => started.push(thread),
                Err(e) if started.is_empty() => {
                    return Err(DeviceError::Io { what: "start a thread for I/O".to_owned(), message: e.to_string() });
                }
                Err(_) => break,
            }
        }
        Ok(Self { files, shared, threads: started })
    }

    /// How many threads it has.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.len()
    }
}

impl Device for ThreadsDevice {
    fn submit(&mut self, op: DeviceOp) -> Token {
        let token = self.files.token();
        let file = match &op {
            // What may take long: of a removal it is giving back the file's space, and its pages of the system's cache.
            DeviceOp::Write { .. }
            | DeviceOp::WriteSync { .. }
            | DeviceOp::Read { .. }
            | DeviceOp::Sync { .. }
            | DeviceOp::SyncDir
            | DeviceOp::Remove { .. } => Some(self.files.open_for(&op)),
            _ => None,
        };
        let result = match file {
            None => self.files.perform(&op),
            Some(Err(e)) => Err(error(&op, &e)),
            Some(Ok(file)) => {
                let mut state = self.shared.lock();
                if state.queue.len() + state.running < IN_FLIGHT_MAX {
                    state.queue.push_back((token, file, op));
                    drop(state);
                    self.shared.work.notify_one();
                    return token;
                }
                drop(state);
                perform_on(&file, &op).map_err(|e| error(&op, &e))
            }
        };
        self.files.complete(token, result);
        token
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        self.files.poll(done);
        done.append(&mut self.shared.lock().done);
    }

    fn wait(&mut self, timeout: Duration) {
        if !self.files.is_idle() {
            return;
        }
        let until = Instant::now() + timeout;
        let mut state = self.shared.lock();
        while state.done.is_empty() && state.queue.len() + state.running > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            (state, _) = self.shared.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn execute(&mut self, op: DeviceOp) -> Result<Done, DeviceError> {
        // Nothing else is on its way: a hand-over to a thread would gain nothing.
        self.files.execute(op)
    }

    fn write_sync(&mut self, file: FileName, offset: u64, data: Vec<u8>) -> (Result<(), DeviceError>, Vec<u8>) {
        self.files.write_sync(file, offset, data)
    }
}

impl Drop for ThreadsDevice {
    fn drop(&mut self) {
        self.shared.lock().is_closing = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing more on its way.
            let _ = thread.join();
        }
    }
}
