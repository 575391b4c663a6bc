//! Which device a directory gets: what the system allows, and what is said when it doesn't.

use std::path::Path;

use super::files::FileDevice;
use super::threads::ThreadsDevice;
use super::uring::UringDevice;
use super::{Device, DeviceError};

/// Threads of a device without io_uring, unless told otherwise.
const THREADS: usize = 4;
/// Most threads of one device.
const THREADS_MAX: usize = 64;

/// How a directory is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Whether io_uring is tried. Default: true.
    pub io_uring: bool,
    /// Whether large aligned reads and writes go around the system's cache where the file system lets them. For tables larger than memory,
    /// which have a cache of their own; logs gain nothing by it. Default: false.
    pub direct_io: bool,
    /// Threads that read and write where io_uring isn't used, 1 to 64. Default: 4.
    pub threads: usize,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self { io_uring: true, direct_io: false, threads: THREADS }
    }
}

/// How a device reaches the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// By io_uring.
    IoUring {
        /// What the kernel's io_uring wouldn't do, and is done without.
        without: Vec<String>,
    },
    /// By `pread`, `pwrite` and `fdatasync` on threads.
    Threads {
        /// How many.
        threads: usize,
        /// Why not by io_uring.
        because: String,
    },
}

/// Whether a device goes around the system's cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirectIo {
    /// Nobody asked for it.
    Off,
    /// Large reads and writes at multiples of this do.
    On {
        /// What offsets and lengths are multiples of.
        alignment_bytes: usize,
    },
    /// It was asked for, and everything goes through the cache.
    Refused {
        /// Why.
        because: String,
    },
}

/// An open directory, and how it is reached.
#[derive(Debug)]
pub struct Opened {
    /// The device.
    pub device: Box<dyn Device + Send>,
    /// How it reaches the disk.
    pub backend: Backend,
    /// Whether it goes around the system's cache.
    pub direct_io: DirectIo,
}

/// Opens a directory, makes it where there is none, and locks it. What was asked for and isn't possible is done in the next best way; it is
/// told in the answer, and in the log.
pub fn open_device_with(directory: &Path, options: &DeviceOptions) -> Result<Opened, DeviceError> {
    let mut files = FileDevice::open(directory)?;
    let shown = directory.display();
    let direct_io = if options.direct_io {
        match files.allow_direct() {
            Ok(alignment_bytes) => DirectIo::On { alignment_bytes },
            Err(because) => {
                tracing::warn!(directory = %shown, because, "reads and writes go through the system's cache");
                DirectIo::Refused { because }
            }
        }
    } else {
        DirectIo::Off
    };
    let because = if options.io_uring {
        match UringDevice::ring() {
            Ok(ring) => {
                let device = UringDevice::new(files, ring);
                let without = device.refused().to_vec();
                if !without.is_empty() {
                    tracing::info!(directory = %shown, ?without, "io_uring is used without some of its parts");
                }
                return Ok(Opened { device: Box::new(device), backend: Backend::IoUring { without }, direct_io });
            }
            Err(e) => {
                tracing::warn!(directory = %shown, because = %e, "io_uring isn't available: threads read and write instead");
                e.to_string()
            }
        }
    } else {
        "io_uring is switched off".to_owned()
    };
    let device = ThreadsDevice::new(files, options.threads.min(THREADS_MAX))?;
    let backend = Backend::Threads { threads: device.threads(), because };
    Ok(Opened { device: Box::new(device), backend, direct_io })
}

/// Opens a directory by io_uring where the system allows it, else by threads, and says which. `allow_io_uring = false` asks for the latter.
pub fn open_device(directory: &Path, allow_io_uring: bool) -> Result<(Box<dyn Device + Send>, Backend), DeviceError> {
    let opened = open_device_with(directory, &DeviceOptions { io_uring: allow_io_uring, ..DeviceOptions::default() })?;
    Ok((opened.device, opened.backend))
}
