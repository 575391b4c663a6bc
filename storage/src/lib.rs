//! State of a stream processor: devices, logs, tables, checkpoints. Knows no SQL and no Arrow.
//!
//! ```text
//! operator ──▶ Shard (one a core, !Sync) ──▶ PointTable   key → fixed or variable value, batch calls first
//!                                       └──▶ OrderedTable  key → value in key order
//! ```
#![deny(unsafe_op_in_unsafe_fn)]

mod memory;
mod ordered;
mod point;
mod raw;
mod shard;

pub use ordered::{OrderedRange, OrderedTable};
pub use point::{Entry, KeyBatch, PointTable, RecordRef, TableLayout};
pub use shard::{Shard, ShardOptions, TableId};
