//! What files say, without changing them: statistics, entries, damage. Needs neither their owner nor its lock.
//!
//! Reports are plain values that serialize to JSON; field names and meanings stay.

mod checkpoints;
mod pages;
mod repair;
mod segments;
mod store;

use serde::Serialize;

use crate::device::DeviceError;

pub use checkpoints::{CheckpointReport, TableReport, inspect_checkpoint, inspect_checkpoints};
pub use pages::{PagesManifestReport, PagesReport, PagesSegmentReport, PagesTableReport, inspect_pages};
pub use repair::{SetAsideReport, set_damaged_checkpoints_aside, set_damaged_pages_aside};
pub use segments::{CommitReport, EntryReport, SegmentReport, SegmentsReport, inspect_log, inspect_wal};
pub use store::{KvReport, SessionReport, inspect_kv};

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
    /// A newer version of this software has written the file.
    #[error("{file}: {because}; repair it with the version that wrote it, or a newer one")]
    Unsupported {
        /// The file.
        file: String,
        /// What isn't known.
        because: String,
    },
    /// The directory can't be read.
    #[error(transparent)]
    Device(#[from] DeviceError),
}
