//! Runs a graph: one thread a core, rings between them, epochs, back-pressure, counts.
//!
//! ```text
//! Job ── Control (stop, abort, first failure, counts)
//!  ├─ core 0: Core ── SourceStage ─▶ Exchange ─▶ Inbox ─▶ Operator ─▶ … ─▶ SinkStage      (Ring 0: pinned, never blocks)
//!  ├─ core 1: …            ▲  SPSC rings between all cores                      │
//!  └─ I/O threads: SourceReader                                          SinkWriter       (Ring 1: may block)
//! ```
//! Lanes, marks and epochs are counted by edge and sending core of the whole job; that all cores are in one process is known to
//! [`exchange`] alone. It does not place or restart anything; what outlives it is in [`checkpoint`].

mod checkpoint;
mod control;
mod core;
pub mod env;
mod exchange;
pub mod graph;
mod inbox;
mod job;
mod net;
mod options;
mod progress;
pub mod scatter;
mod sink;
mod source;
mod state;
mod wake;

pub use checkpoint::{CheckpointOptions, Found, look};
pub(crate) use control::panicked;
pub use job::Job;
pub use options::JobOptions;
pub use progress::{CoreProgress, IoBackend, JobProgress, JobReport, NodeKind, NodeProgress, StateIo};
