//! State of a stream processor: devices, logs, tables, checkpoints. Knows no SQL and no Arrow.
//!
//! ```text
//! operator ──▶ Shard (one a core, !Sync) ──▶ PointTable   key → fixed or variable value, batch calls first
//!                                       └──▶ OrderedTable  key → value in key order
//!                              └── Image ──▶ Checkpoints (data file, then manifest) ──┐
//! journal  ──▶ Wal ──▶ Device (FileDevice: pread/pwrite, UringDevice: io_uring, SimDevice: a disk in memory that can be switched off)
//! ```
#![deny(unsafe_op_in_unsafe_fn)]

mod checkpoint;
mod device;
mod memory;
mod ordered;
mod point;
mod raw;
mod shard;
mod wal;

pub use checkpoint::{Checkpoint, CheckpointError, Checkpoints, Image, Part, vnode_of};
pub use device::{
    Backend, Completion, Device, DeviceError, DeviceOp, Done, Fault, FileDevice, FileName, SimDevice, Token, UringDevice,
    open_device,
};
pub use ordered::{OrderedRange, OrderedTable};
pub use point::{Entry, KeyBatch, PointTable, RecordRef, TableLayout};
pub use shard::{Shard, ShardOptions, TableId};
pub use wal::{Lsn, Wal, WalError, WalOptions};
