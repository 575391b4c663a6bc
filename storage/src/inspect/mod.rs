//! What files say, without changing them: statistics, entries, damage. Needs neither their owner nor its lock.
//!
//! Reports are plain values that serialize to JSON; field names and meanings stay.

mod checkpoints;
mod segments;

use serde::Serialize;

use crate::device::DeviceError;

pub use checkpoints::{CheckpointReport, TableReport, inspect_checkpoint, inspect_checkpoints};
pub use segments::{CommitReport, EntryReport, SegmentReport, SegmentsReport, inspect_log, inspect_wal};

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// Where in it, if at one place.
    pub offset: Option<u64>,
    /// What.
    pub what: String,
}

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// There is none of what was asked for.
    #[error("there is no {what} here")]
    Nothing {
        /// What was looked for.
        what: String,
    },
    /// The directory can't be read.
    #[error(transparent)]
    Device(#[from] DeviceError),
}
