//! What the threads of a job share: whether to go on, what went wrong first, where each core is.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::progress::CoreSnapshot;
use super::wake::Wake;
use crate::error::{Code, Diagnostic, Result};
use crate::ids::CoreId;

/// How long an aborted job waits for I/O threads that are inside a blocking call before it leaves them behind.
const ABORT_PATIENCE: Duration = Duration::from_secs(5);

/// Which thread does I/O for which node.
#[derive(Clone, Debug)]
pub struct IoThread {
    /// The node's name.
    pub node: String,
    /// `source` or `sink`.
    pub kind: &'static str,
    /// The core that it works for.
    pub core: CoreId,
}

/// Shared by all threads of a job. Ring 0 touches only the flags, and the rest when it ends.
#[derive(Debug)]
pub struct Control {
    name: String,
    stopped: AtomicBool,
    aborted: AtomicBool,
    failure: Mutex<Option<Diagnostic>>,
    wakes: Arc<[Wake]>,
    io_threads: Mutex<Vec<(IoThread, JoinHandle<()>)>>,
    snapshots: Vec<Mutex<CoreSnapshot>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is replaced as a whole; a panic elsewhere leaves it usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    /// For a job with as many cores as `wakes`.
    #[must_use]
    pub fn new(name: &str, wakes: Arc<[Wake]>) -> Self {
        Self {
            name: name.to_owned(),
            stopped: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            failure: Mutex::new(None),
            snapshots: wakes.iter().map(|_| Mutex::new(CoreSnapshot::default())).collect(),
            wakes,
            io_threads: Mutex::new(Vec::new()),
        }
    }

    /// Whether sources shall take in nothing more.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Sources take in nothing more; what they took in drains.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake_all();
    }

    /// Whether all threads shall end at once.
    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    /// All threads end at once, whatever they have in hand.
    pub fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.wake_all();
    }

    /// Keeps the first failure and ends all threads.
    pub fn fail(&self, failure: Diagnostic) {
        lock(&self.failure).get_or_insert(failure);
        self.abort();
    }

    /// The first failure.
    pub fn failure(&self) -> Option<Diagnostic> {
        lock(&self.failure).clone()
    }

    /// Wakes one core.
    pub fn wake_core(&self, core: CoreId) {
        self.wakes[core.0 as usize].notify();
    }

    fn wake_all(&self) {
        self.wakes.iter().for_each(Wake::notify);
        for (_, thread) in &*lock(&self.io_threads) {
            thread.thread().unpark();
        }
    }

    /// Where a core sleeps.
    pub fn wake(&self, core: CoreId) -> &Wake {
        &self.wakes[core.0 as usize]
    }

    /// Publishes where a core is; skipped when someone is reading just now, so that the core never waits.
    pub fn publish(&self, core: CoreId, fill: impl FnOnce(&mut CoreSnapshot)) {
        if let Ok(mut snapshot) = self.snapshots[core.0 as usize].try_lock() {
            fill(&mut snapshot);
        }
    }

    /// Publishes where a core ended.
    pub fn publish_last(&self, core: CoreId, fill: impl FnOnce(&mut CoreSnapshot)) {
        fill(&mut lock(&self.snapshots[core.0 as usize]));
    }

    /// Where all cores are.
    pub fn snapshots(&self) -> Vec<CoreSnapshot> {
        self.snapshots.iter().map(|snapshot| lock(snapshot).clone()).collect()
    }

    /// Runs `body` on a thread of its own. Its error or panic fails the job and names the node.
    pub fn spawn_io(self: Arc<Self>, io: IoThread, body: impl FnOnce(&Self) -> Result<()> + Send + 'static) -> Result<()> {
        let control = self.clone();
        let whose = io.clone();
        let thread = thread::Builder::new()
            .name(format!("{}-{}{}", self.name, &io.kind[..2], io.core))
            .spawn(move || {
                let done = catch_unwind(AssertUnwindSafe(|| body(&control)));
                if let Err(failure) = done.unwrap_or_else(|panic| Err(panicked(&*panic))) {
                    control.fail(at_node(failure, whose.kind, &whose.node));
                }
                control.wake_core(whose.core);
            })
            .map_err(|e| {
                Diagnostic::new(Code::Internal, format!("no thread can be started for {} `{}`: {e}", io.kind, io.node))
            })?;
        lock(&self.io_threads).push((io, thread));
        Ok(())
    }

    /// Waits for the I/O threads to end. One that is stuck in a blocking call after the job was aborted is left behind, with a warning.
    pub fn join_io(&self) {
        let threads = std::mem::take(&mut *lock(&self.io_threads));
        let mut patience: Option<Instant> = None;
        for (io, thread) in threads {
            while !thread.is_finished() {
                if self.is_aborted() {
                    thread.thread().unpark();
                    if Instant::now() > *patience.get_or_insert_with(|| Instant::now() + ABORT_PATIENCE) {
                        break;
                    }
                }
                thread::park_timeout(Duration::from_millis(2));
            }
            if thread.is_finished() {
                // The body's panics are caught inside.
                drop(thread.join());
            } else {
                tracing::warn!(job = %self.name, node = %io.node, core = %io.core, "a {} is stuck in a blocking call and was left behind", io.kind);
            }
        }
    }
}

/// A panic as an error of ours.
pub fn panicked(panic: &(dyn Any + Send)) -> Diagnostic {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Diagnostic::new(Code::Internal, format!("panicked: {}", text.unwrap_or("without a message")))
        .hint("this is a bug of Tiderace: please report it with the SQL of the job")
}

/// The same problem with the node's name, unless it is named already.
pub fn at_node(mut failure: Diagnostic, kind: &str, node: &str) -> Diagnostic {
    if !failure.message.contains(&format!("`{node}`")) {
        failure.message = format!("{kind} `{node}`: {}", failure.message);
    }
    failure
}
