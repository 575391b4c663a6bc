//! State of a stream processor: devices, logs, tables, checkpoints. Knows no SQL and no Arrow.
//!
//! ```text
//! operator ──▶ Shard (one a core, !Sync) ──▶ PointTable   key → fixed or variable value, batch calls first
//!                                       └──▶ OrderedTable  key → value in key order
//!                              └── Image ──▶ Checkpoints (data file, then manifest) ──┐
//! journal  ──▶ Wal ──▶ Device (FileDevice: pread/pwrite, UringDevice: io_uring, SimDevice: a disk in memory that can be switched off)
//! ```
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

mod bugs;
mod checkpoint;
mod checkpoint_store;
mod device;
mod directory_kind;
pub mod inspect;
mod kv;
mod log;
mod memory;
mod ordered;
mod point;
mod pressure;
mod raw;
mod sealed;
mod segment;
mod shard;
mod store;
mod sync;
mod wal;

pub use checkpoint::{Checkpoint, CheckpointError, CheckpointWriter, Checkpoints, Image, Part, vnode_of};
pub use checkpoint_store::{
    CheckpointStore, CheckpointStoreError, Created, DirectoryStore, ObjectCheckpointStore, STORED_FILE_BYTES_MAX, publish,
};
pub use device::{
    Backend, Completion, Device, DeviceError, DeviceOp, DeviceOptions, DirectIo, Done, Fault, FileDevice, FileName, Opened,
    ReadOnlyDevice, SimDevice, ThreadsDevice, Token, UringDevice, open_device, open_device_with,
};
pub use kv::{KvCheckpoint, KvError, KvKeys, KvOptions, KvSlot, Session, ShardedKv};
pub use log::{ITERATOR_NAME_BYTES_MAX, ITERATORS_MAX, Log, LogRecord, LogScan, OpenForReading, OwnedLog, ReadOnlyLog};
pub use ordered::{OrderedRange, OrderedTable};
pub use point::{Entry, ExpiringTable, KeyBatch, PointTable, RecordRef, TableLayout, TimeToLive};
pub use pressure::{
    MemoryReading, PressureGauge, PressureMetric, PressureOptions, PressureWorker, RELIEF_PERMILLE_MAX, read_memory,
    relief_permille,
};
pub use segment::{Finding, LogError, LogOptions, Lsn, RepairPolicy, RepairReport};
pub use shard::{
    Answer, BudgetShortfall, CaptureKind, CapturedBlock, NoRoom, OpenAt, Operation, Recovered, Residency, Shard, ShardOptions,
    Submitted, TableId, Ticket,
};
pub use store::{StoreCounts, StoreError, StoreOptions};
pub use wal::{Commit, SourceOffset, Wal, WalEntry, WalError, WalOptions};
