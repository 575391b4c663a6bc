//! Segment files: what the write-ahead log and the log have in common.
//!
//! ```text
//! append ──▶ chunk being filled ──commit──▶ one write + fdatasync on its way ──▶ durable
//! ```
//! One write is on its way at a time and every record says where its write began. That is how recovery tells damage from a torn end: behind
//! a torn write there can be nothing but records of that same write, so a valid record of a later write proves that what is broken before it
//! had been durable. Nothing is tried again: after any failed write or sync a log is poisoned, and what wasn't durable then is decided by
//! recovery.

pub(crate) mod format;
mod pump;
pub(crate) mod recovery;
pub(crate) mod repair;
mod writer;

use crate::device::{DeviceError, FileName};
use crate::directory_kind::DirectoryKind;

pub(crate) use pump::Pump;
pub use repair::{Finding, RepairPolicy, RepairReport};
pub(crate) use writer::{Task, Writer};

/// A position in a log: bytes since its beginning, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// Whose segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SegmentKind {
    Wal,
    Log,
}

impl SegmentKind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Wal => b"TRWALSEG",
            Self::Log => b"TRLOGSEG",
        }
    }

    fn directory_kind(self) -> DirectoryKind {
        match self {
            Self::Wal => DirectoryKind::WriteAheadLog,
            Self::Log => DirectoryKind::Log,
        }
    }

    pub(crate) fn name(self, base: u64) -> FileName {
        let prefix = match self {
            Self::Wal => "wal",
            Self::Log => "log",
        };
        FileName::new(&format!("{prefix}-{base:020}.seg")).expect("letters, digits, a dash and a dot")
    }

    /// The base position in a segment's name; `None` for other files.
    pub(crate) fn base(self, name: &FileName) -> Option<u64> {
        let prefix = match self {
            Self::Wal => "wal-",
            Self::Log => "log-",
        };
        let digits = name.as_str().strip_prefix(prefix)?.strip_suffix(".seg")?;
        (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
    }
}

/// Bounds of a log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Length of a segment file, 8 KiB to 1 GiB. Segments are filled with zeros when they are made.
    pub segment_bytes: u64,
    /// Most that may wait to become durable; what is beyond is refused.
    pub pending_bytes_max: usize,
    /// So much waiting is committed without being asked.
    pub commit_bytes: usize,
    /// So long after the first waiting record all are committed without being asked, when the log is told the time.
    pub commit_interval_us: u64,
    /// Distinguishes this log's records from stale bytes; random, another one each time a log is opened.
    pub salt: u64,
}

impl LogOptions {
    /// The usual bounds.
    #[must_use]
    pub fn new(salt: u64) -> Self {
        Self { segment_bytes: 16 << 20, pending_bytes_max: 8 << 20, commit_bytes: 256 << 10, commit_interval_us: 2000, salt }
    }
}

/// What a log refuses or suffers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Too much waits to become durable: let it be committed, then try again.
    #[error("the log has {pending_bytes} B waiting to become durable, its limit is {limit_bytes} B")]
    Full {
        /// What waits.
        pending_bytes: usize,
        /// What may.
        limit_bytes: usize,
    },
    /// A record, or the records of one group, that no segment has room for.
    #[error("{size_bytes} B can't be appended at once, the limit is {limit_bytes} B")]
    TooLarge {
        /// With headers.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// A write or a sync has failed before. Nothing more is accepted; open the log anew.
    #[error("the log is stopped: {because}")]
    Poisoned {
        /// What failed.
        because: String,
    },
    /// Something that had been durable is broken or missing. `repair` can give back what is left.
    #[error("{file} is damaged at offset {offset}: {because}")]
    Damaged {
        /// The segment.
        file: FileName,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        because: String,
    },
    /// A newer version of this software has written the file.
    #[error("{file}: {because}; open it with the version that wrote it, or a newer one")]
    Unsupported {
        /// The segment.
        file: FileName,
        /// What isn't known.
        because: String,
    },
    /// The directory is of another kind.
    #[error("{file}: the directory holds {holds}: open it as that, or name another")]
    Foreign {
        /// What tells.
        file: FileName,
        /// What is in it.
        holds: &'static str,
    },
    /// Waiting has taken too long.
    #[error("position {} isn't durable after {waited_ms} ms", .lsn.0)]
    Timeout {
        /// Waited for.
        lsn: Lsn,
        /// How long.
        waited_ms: u64,
    },
    /// A position that is not in the log yet.
    #[error("position {} is behind the log's end {}", .lsn.0, .end.0)]
    BeyondEnd {
        /// Asked for.
        lsn: Lsn,
        /// The end.
        end: Lsn,
    },
    /// A position that has been given up by `truncate_before`.
    #[error("position {} has been truncated, the log begins at {}", .lsn.0, .begin.0)]
    Truncated {
        /// Asked for.
        lsn: Lsn,
        /// The first that is kept.
        begin: Lsn,
    },
    /// No record begins at this position.
    #[error("no record begins at position {}", .lsn.0)]
    NoRecord {
        /// Asked for.
        lsn: Lsn,
    },
    /// A name, or a number of names, that is beyond the limits of iterators.
    #[error("iterator {name:?}: {because}")]
    Iterator {
        /// Its name.
        name: String,
        /// What is wrong with it.
        because: String,
    },
    /// The device failed outside of writing.
    #[error(transparent)]
    Device(#[from] DeviceError),
}
