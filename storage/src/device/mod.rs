//! Files of one directory, by submitted operations: all that logs and checkpoints know of disks.
//!
//! What is promised, on every device:
//! - Operations may take effect and complete in any order; who needs an order waits for a completion before it submits the next.
//! - What a completed `Write`, `Allocate` or `Truncate` changed is durable once a `Sync` (or `WriteSync`) of that file that was submitted
//!   afterwards has completed well. Before that a crash may keep any sectors of it.
//! - What a completed `Create`, `Rename` or `Remove` changed is durable once a `SyncDir` that was submitted afterwards has completed well.
//! - After a failed `Sync` nothing is known of what was written before; trying again proves nothing (see "Can Applications Recover from fsync
//!   Failures?", ATC 2020). Whoever uses the file must stop and recover.

mod direct;
mod files;
mod open;
mod read_only;
mod sim;
mod threads;
mod uring;

use std::fmt;
use std::time::Duration;

pub use files::FileDevice;
pub use open::{Backend, DeviceOptions, DirectIo, Opened, open_device, open_device_with};
pub use read_only::ReadOnlyDevice;
pub use sim::{Fault, SimDevice};
pub use threads::ThreadsDevice;
pub use uring::UringDevice;

/// A file's name inside the device's directory: letters, digits, `-`, `_`, `.`; not beginning with a dot; at most 128 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileName(std::sync::Arc<str>);

impl FileName {
    /// The name, if it is one.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        (!name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.chars().all(fits)).then(|| Self(name.into()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names a submitted operation until it completes; never given out twice by one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// Something to do. Offsets and lengths are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceOp {
    /// Makes an empty file; fails where there is one.
    Create {
        /// The file.
        file: FileName,
    },
    /// Writes all of `data`, lengthening the file where needed.
    Write {
        /// The file.
        file: FileName,
        /// Where.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// `Write`, and when that is done `Sync`: one trip.
    WriteSync {
        /// The file.
        file: FileName,
        /// Where.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// Reads up to `len` bytes; fewer only at the end of the file.
    Read {
        /// The file.
        file: FileName,
        /// From where.
        offset: u64,
        /// How much.
        len: usize,
    },
    /// Makes the file's content and length durable.
    Sync {
        /// The file.
        file: FileName,
    },
    /// Makes the directory durable: which names there are, and what they name.
    SyncDir,
    /// Lengthens the file to `len` with zeros that take up space, so that later writes inside need no more of it.
    Allocate {
        /// The file.
        file: FileName,
        /// The new length; nothing happens when it is not above the old.
        len: u64,
    },
    /// Sets the file's length.
    Truncate {
        /// The file.
        file: FileName,
        /// The new length.
        len: u64,
    },
    /// Gives a file another name, replacing what had it.
    Rename {
        /// The old name.
        from: FileName,
        /// The new name.
        to: FileName,
    },
    /// Removes a file.
    Remove {
        /// The file.
        file: FileName,
    },
    /// Names all files and tells how long they are; a link is what it leads to. What has a file's name and is none (a directory, a link that
    /// leads nowhere) is named too, with length 0: reading it is an error.
    List,
}

/// What an operation gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// It is done.
    Nothing,
    /// What was read.
    Data(Vec<u8>),
    /// All files, sorted by name.
    Files(Vec<(FileName, u64)>),
}

/// An operation's end.
#[derive(Debug)]
pub struct Completion {
    /// Of which operation.
    pub token: Token,
    /// What came of it.
    pub result: Result<Done, DeviceError>,
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No such file.
    #[error("{file}: there is no such file")]
    NotFound {
        /// The file.
        file: FileName,
    },
    /// `Create` of a file that is there.
    #[error("{file}: the file exists")]
    Exists {
        /// The file.
        file: FileName,
    },
    /// No space is left.
    #[error("{file}: no space left on the device")]
    NoSpace {
        /// The file.
        file: FileName,
    },
    /// Another process has the directory.
    #[error("{directory}: in use by another process")]
    Locked {
        /// The directory.
        directory: String,
    },
    /// Whatever else the system says.
    #[error("{what}: {message}")]
    Io {
        /// Which operation, on which file.
        what: String,
        /// The system's words.
        message: String,
    },
    /// A simulated machine is off.
    #[error("the device is gone")]
    Gone,
}

/// Files of one directory.
pub trait Device: fmt::Debug {
    /// Begins an operation; it is never refused, its completion tells.
    fn submit(&mut self, op: DeviceOp) -> Token;

    /// Appends what has completed since to `done`; doesn't block.
    fn poll(&mut self, done: &mut Vec<Completion>);

    /// Blocks until [`poll`](Self::poll) has something, nothing is on its way, or the time is over.
    fn wait(&mut self, timeout: Duration);

    /// Does one operation and waits for it. For recovery and other places where nothing else is on its way.
    fn execute(&mut self, op: DeviceOp) -> Result<Done, DeviceError> {
        let token = self.submit(op);
        let mut done = Vec::new();
        loop {
            self.poll(&mut done);
            if let Some(at) = done.iter().position(|c| c.token == token) {
                assert_eq!(done.len(), 1, "execute is for devices with nothing else on its way");
                return done.swap_remove(at).result;
            }
            self.wait(Duration::from_millis(100));
        }
    }

    /// Does one [`DeviceOp::WriteSync`] as [`execute`](Self::execute) does, and gives its memory back where it can, to be filled again.
    fn write_sync(&mut self, file: FileName, offset: u64, data: Vec<u8>) -> (Result<(), DeviceError>, Vec<u8>) {
        (self.execute(DeviceOp::WriteSync { file, offset, data }).map(|_| ()), Vec::new())
    }
}

impl<D: Device + ?Sized> Device for Box<D> {
    fn submit(&mut self, op: DeviceOp) -> Token {
        (**self).submit(op)
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        (**self).poll(done);
    }

    fn wait(&mut self, timeout: Duration) {
        (**self).wait(timeout);
    }

    fn execute(&mut self, op: DeviceOp) -> Result<Done, DeviceError> {
        (**self).execute(op)
    }

    fn write_sync(&mut self, file: FileName, offset: u64, data: Vec<u8>) -> (Result<(), DeviceError>, Vec<u8>) {
        (**self).write_sync(file, offset, data)
    }
}

impl<D: Device + ?Sized> Device for &mut D {
    fn submit(&mut self, op: DeviceOp) -> Token {
        (**self).submit(op)
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        (**self).poll(done);
    }

    fn wait(&mut self, timeout: Duration) {
        (**self).wait(timeout);
    }

    fn execute(&mut self, op: DeviceOp) -> Result<Done, DeviceError> {
        (**self).execute(op)
    }

    fn write_sync(&mut self, file: FileName, offset: u64, data: Vec<u8>) -> (Result<(), DeviceError>, Vec<u8>) {
        (**self).write_sync(file, offset, data)
    }
}

impl DeviceOp {
    /// The operation and its file, for messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Create { file } => format!("create {file}"),
            Self::Write { file, offset, data } | Self::WriteSync { file, offset, data } => {
                format!("write {file} at {offset}, {} B", data.len())
            }
            Self::Read { file, offset, len } => format!("read {file} at {offset}, {len} B"),
            Self::Sync { file } => format!("sync {file}"),
            Self::SyncDir => "sync the directory".to_owned(),
            Self::Allocate { file, len } => format!("allocate {file} to {len}"),
            Self::Truncate { file, len } => format!("truncate {file} to {len}"),
            Self::Rename { from, to } => format!("rename {from} to {to}"),
            Self::Remove { file } => format!("remove {file}"),
            Self::List => "list the directory".to_owned(),
        }
    }

    /// The file it is about.
    pub(crate) fn file(&self) -> Option<&FileName> {
        match self {
            Self::Create { file }
            | Self::Write { file, .. }
            | Self::WriteSync { file, .. }
            | Self::Read { file, .. }
            | Self::Sync { file }
            | Self::Allocate { file, .. }
            | Self::Truncate { file, .. }
            | Self::Rename { from: file, .. }
            | Self::Remove { file } => Some(file),
            Self::SyncDir | Self::List => None,
        }
    }
}
