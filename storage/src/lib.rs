//! State of a stream processor: devices, logs, tables, checkpoints. Knows no SQL and no Arrow.
//!
//! ```text
//! operator ──▶ Shard (one a core, !Sync) ──▶ PointTable   key → fixed or variable value, batch calls first
//!                                       └──▶ OrderedTable  key → value in key order
//! ```

mod shard;

pub use shard::{Entry, KeyBatch, OrderedTable, PointTable, RecordRef, Shard, ShardOptions, TableId};
