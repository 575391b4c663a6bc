//! Mistakes of other stores, to be made on purpose: what finds them not is no test. Without the feature `bugs` nothing of it is compiled.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Pages leave memory before they are durable.
    EvictsUndurable,
    /// A removal leaves no trace in the log (R6).
    ForgetsTombstones,
    /// Compaction takes every record of a page on the device for dead (R3).
    CompactionLosesCold,
    /// A change to a record on the device finds nothing (R2).
    RmwMissesCold,
    /// A checkpoint writes what records are when they are written, not what they were at the cut (R5).
    CaptureIsLate,
    /// Operations that wait for one key end in any order.
    PendingOutOfOrder,
    /// A segment is removed while a manifest names it.
    RemovesPinnedSegments,
    /// Growth of the index sends entries to the wrong half (R4).
    SplitsWrong,
    /// The checksum of a page isn't compared (R14).
    TrustsPages,
    /// A changed block of an ordered table is taken for what was written of it (R5).
    StaleBlocks,
    /// The manifest is made durable before what it names.
    ManifestFirst,
    /// Records that change while they are captured aren't saved as they were (R5).
    CaptureSavesNothing,
    /// A checkpoint of changes doesn't say what was removed.
    ChangesForgetRemovals,
    /// A checkpoint of changes is read without those before it (R7).
    ForgetsBase,
    /// A concurrent store's shards are cut when they are written, not at their sessions' cut (R5).
    ShardsCutLate,
    /// Read, then lock again to write (R1).
    RmwBetweenLocks,
    /// A checkpoint waits for sessions that do nothing (R13).
    WaitsForIdle,
    /// A log calls durable what was appended (R8, R10, R11).
    AcknowledgesEarly,
    /// A segment's name isn't made durable (R9).
    ForgetsDirectory,
    /// The checksum of a log's record isn't compared (R14).
    TrustsRecords,
}

/// Whether the mistake is to be made: `TIDERACE_BUG` names it.
#[cfg(feature = "bugs")]
pub(crate) fn is_on(bug: Bug) -> bool {
    static NAME: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let name = NAME.get_or_init(|| std::env::var("TIDERACE_BUG").unwrap_or_default());
    !name.is_empty() && *name == format!("{bug:?}")
}

/// Never.
#[cfg(not(feature = "bugs"))]
#[inline(always)]
pub(crate) const fn is_on(_: Bug) -> bool {
    false
}
