//! A directory by io_uring: reads, writes and syncs go through a ring of the device's own, everything else by plain calls.

use std::io;
use std::path::Path;
use std::time::Duration;

use hashbrown::HashMap;

use super::files::{FileDevice, error};
use super::{Completion, Device, DeviceError, DeviceOp, Done, Token};
use crate::raw::{Ended, Ring, RingOp};

/// Operations that may be on their way at once; more are done by plain calls.
const ENTRIES: u32 = 256;

/// How a device reaches the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// By io_uring.
    IoUring,
    /// By `pread`, `pwrite` and `fdatasync`.
    Positioned {
        /// Why not by io_uring.
        because: String,
    },
}

/// Opens a directory by io_uring where the system allows it, else by plain calls, and says which. `allow_io_uring = false` asks for the latter.
pub fn open_device(directory: &Path, allow_io_uring: bool) -> Result<(Box<dyn Device + Send>, Backend), DeviceError> {
    let files = FileDevice::open(directory)?;
    if !allow_io_uring {
        return Ok((Box::new(files), Backend::Positioned { because: "io_uring is switched off".to_owned() }));
    }
    match Ring::new(ENTRIES) {
        Ok(ring) => Ok((Box::new(UringDevice::new(files, ring)), Backend::IoUring)),
        // EPERM (seccomp, sysctl), ENOSYS (old kernel), a missing feature: the plain calls do the same, slower.
        Err(e) => Ok((Box::new(files), Backend::Positioned { because: e.to_string() })),
    }
}

/// A directory by io_uring; [`open_device`] makes one.
#[derive(Debug)]
pub struct UringDevice {
    files: FileDevice,
    ring: Ring,
    ops: HashMap<u64, DeviceOp>,
    ended: Vec<Ended>,
}

impl UringDevice {
    fn new(files: FileDevice, ring: Ring) -> Self {
        Self { files, ring, ops: HashMap::new(), ended: Vec::new() }
    }

    /// The operation for the ring, and the operation without its data; or the whole back, when the ring isn't for it.
    fn for_ring(files: &mut FileDevice, op: DeviceOp) -> Result<(RingOp, DeviceOp), DeviceOp> {
        match op {
            DeviceOp::Write { file, offset, data } if fits(data.len()) => {
                let write = RingOp::Write { data, offset, sync: false };
                Ok((write, DeviceOp::Write { file, offset, data: Vec::new() }))
            }
            DeviceOp::WriteSync { file, offset, data } if fits(data.len()) => {
                let write = RingOp::Write { data, offset, sync: true };
                Ok((write, DeviceOp::WriteSync { file, offset, data: Vec::new() }))
            }
            DeviceOp::Sync { file } => Ok((RingOp::Sync, DeviceOp::Sync { file })),
            DeviceOp::Read { file, offset, len } => {
                // Never more memory than the file has bytes, whatever length was asked for.
                let rest = files.file(&file).and_then(|f| f.metadata()).map_or(0, |m| m.len().saturating_sub(offset));
                let len_now = usize::try_from(rest).unwrap_or(usize::MAX).min(len);
                let op = DeviceOp::Read { file, offset, len };
                if fits(len_now) { Ok((RingOp::Read { data: vec![0; len_now], offset }, op)) } else { Err(op) }
            }
            other => Err(other),
        }
    }

    /// What came of an operation; what the ring left undone is done by plain calls.
    fn result(&mut self, op: &DeviceOp, ended: Ended) -> Result<Done, DeviceError> {
        let failed = |e: &io::Error| error(op, e);
        match (ended.op, op) {
            (RingOp::Write { data, offset, sync }, _) => {
                let written = ended.result.map_err(|e| failed(&e))?;
                if written < data.len() {
                    // A short write breaks the link too.
                    use std::os::unix::fs::FileExt;
                    ended.file.write_all_at(&data[written..], offset + written as u64).map_err(|e| failed(&e))?;
                    if sync {
                        ended.file.sync_data().map_err(|e| failed(&e))?;
                    }
                } else if sync {
                    ended.sync_result.map_err(|e| failed(&e))?;
                }
                Ok(Done::Nothing)
            }
            (RingOp::Read { data, .. }, _) => match ended.result.map_err(|e| failed(&e))? {
                read if read == data.len() => Ok(Done::Data(data)),
                // A short read: the file ends earlier by now, or the kernel felt like it. The plain call goes on to the end.
                _ => self.files.perform(op),
            },
            (RingOp::Sync, _) => ended.result.map(|_| Done::Nothing).map_err(|e| failed(&e)),
        }
    }
}

/// Whether the ring takes so much at once.
fn fits(bytes: usize) -> bool {
    bytes > 0 && bytes <= 1 << 30
}

impl Device for UringDevice {
    fn submit(&mut self, op: DeviceOp) -> Token {
        let token = self.files.token();
        let (ring_op, rest) = match Self::for_ring(&mut self.files, op) {
            Ok(both) => both,
            Err(op) => {
                let result = self.files.perform(&op);
                self.files.complete(token, result);
                return token;
            }
        };
        let file = match rest.file().map(|f| self.files.file(f)) {
            Some(Ok(file)) => file,
            Some(Err(e)) => {
                self.files.complete(token, Err(error(&rest, &e)));
                return token;
            }
            None => unreachable!("for_ring takes operations on files alone"),
        };
        if let Err(back) = self.ring.submit(token.0, file, ring_op) {
            let op = match (back, rest) {
                (RingOp::Write { data, .. }, DeviceOp::Write { file, offset, .. }) => DeviceOp::Write { file, offset, data },
                (RingOp::Write { data, .. }, DeviceOp::WriteSync { file, offset, .. }) => {
                    DeviceOp::WriteSync { file, offset, data }
                }
                (_, rest) => rest,
            };
            let result = self.files.perform(&op);
            self.files.complete(token, result);
            return token;
        }
        self.ops.insert(token.0, rest);
        token
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        self.files.poll(done);
        let mut ended = std::mem::take(&mut self.ended);
        self.ring.reap(&mut ended);
        for ended in ended.drain(..) {
            if let Some(op) = self.ops.remove(&ended.id) {
                let token = Token(ended.id);
                let result = self.result(&op, ended);
                done.push(Completion { token, result });
            }
        }
        self.ended = ended;
    }

    fn wait(&mut self, timeout: Duration) {
        if self.ring.in_flight() > 0 && self.files.is_idle() {
            self.ring.wait(timeout);
        }
    }
}
