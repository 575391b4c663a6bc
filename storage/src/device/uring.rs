//! A directory by io_uring: reads, writes, syncs and removals go through a ring of the device's own, everything else by plain calls.

use std::ffi::CString;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

use super::files::{FileDevice, OpenFile, error, perform_on};
use super::{Completion, Device, DeviceError, DeviceOp, Done, FileName, Token};
use crate::raw::{Ended, Ring, RingFile, RingOp};

/// Operations that may be on their way at once; more are done by plain calls.
const ENTRIES: u32 = 256;

/// A directory by io_uring; [`open_device`](super::open_device) makes one.
#[derive(Debug)]
pub struct UringDevice {
    files: FileDevice,
    ring: Ring,
    /// Operations on their way, without their data, and their files.
    ops: HashMap<u64, (DeviceOp, OpenFile)>,
    ended: Vec<Ended>,
    /// Memory of the write that ended last, while somebody waits to have it back.
    returned: Option<Vec<u8>>,
}

impl UringDevice {
    /// A ring for a device, or why there is none: EPERM (seccomp, sysctl), ENOSYS (old kernel), a missing feature.
    pub(super) fn ring() -> io::Result<Ring> {
        Ring::new(ENTRIES)
    }

    pub(super) fn new(files: FileDevice, ring: Ring) -> Self {
        Self { files, ring, ops: HashMap::new(), ended: Vec::new(), returned: None }
    }

    /// What the kernel's io_uring wouldn't do, and is done without.
    #[must_use]
    pub fn refused(&self) -> &[String] {
        self.ring.refused()
    }

    /// The operation for the ring, and the operation without its data; or the whole back, when the ring isn't for it.
    fn for_ring(op: DeviceOp, open: &OpenFile) -> Result<(RingOp, DeviceOp), DeviceOp> {
        match op {
            DeviceOp::Write { file, offset, data } if fits(data.len()) => {
                let write = RingOp::Write { data, offset, sync: false };
                Ok((write, DeviceOp::Write { file, offset, data: Vec::new() }))
            }
            DeviceOp::WriteSync { file, offset, data } if fits(data.len()) => {
                let write = RingOp::Write { data, offset, sync: true };
                Ok((write, DeviceOp::WriteSync { file, offset, data: Vec::new() }))
            }
            DeviceOp::Sync { file } => Ok((RingOp::Sync { with_metadata: false }, DeviceOp::Sync { file })),
            DeviceOp::SyncDir => Ok((RingOp::Sync { with_metadata: true }, DeviceOp::SyncDir)),
            DeviceOp::Remove { file } => match CString::new(file.as_str()) {
                Ok(name) => Ok((RingOp::Remove { name }, DeviceOp::Remove { file })),
                // No file has such a name, as the plain call will say.
                Err(_) => Err(DeviceOp::Remove { file }),
            },
            DeviceOp::Read { file, offset, len } => {
                // Never more memory than the file has bytes, whatever length was asked for.
                let rest = open.file.metadata().map_or(0, |m| m.len().saturating_sub(offset));
                let len_now = usize::try_from(rest).unwrap_or(usize::MAX).min(len);
                let op = DeviceOp::Read { file, offset, len };
                if fits(len_now) { Ok((RingOp::Read { data: Vec::new(), len: len_now, offset }, op)) } else { Err(op) }
            }
            other => Err(other),
        }
    }

    /// The file as the ring takes it.
    fn ring_file(open: &OpenFile) -> RingFile {
        let file = Arc::clone(open.direct.as_ref().unwrap_or(&open.file));
        RingFile { file, direct: open.direct.is_some() }
    }

    /// What came of an operation; what the ring left undone is done by plain calls.
    fn result(op: &DeviceOp, open: &OpenFile, ended: Ended, returned: Option<&mut Vec<u8>>) -> Result<Done, DeviceError> {
        let failed = |e: &io::Error| error(op, e);
        let refused = |e: &io::Error| open.direct.is_some() && e.kind() == io::ErrorKind::InvalidInput;
        let through_cache = OpenFile { direct: None, ..open.clone() };
        match ended.op {
            RingOp::Write { data, offset, sync } => {
                let written = match ended.result {
                    Err(e) if refused(&e) => 0,
                    result => result.map_err(|e| failed(&e))?,
                };
                if written < data.len() {
                    // A short write breaks the link too.
                    open.file.write_all_at(&data[written..], offset + written as u64).map_err(|e| failed(&e))?;
                    if sync {
                        open.file.sync_data().map_err(|e| failed(&e))?;
                    }
                } else if sync {
                    ended.sync_result.map_err(|e| failed(&e))?;
                }
                if let Some(returned) = returned {
                    *returned = data;
                }
                Ok(Done::Nothing)
            }
            RingOp::Read { data, .. } => match ended.result {
                Ok(read) if read == ended.len => Ok(Done::Data(data)),
                Err(e) if !refused(&e) => Err(failed(&e)),
                // A short read: the file ends earlier by now, or the kernel felt like it. The plain call goes on to the end.
                _ => perform_on(&through_cache, op).map_err(|e| failed(&e)),
            },
            RingOp::Sync { .. } | RingOp::Remove { .. } => ended.result.map(|_| Done::Nothing).map_err(|e| failed(&e)),
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
        let on_open_file = matches!(
            op,
            DeviceOp::Write { .. }
                | DeviceOp::WriteSync { .. }
                | DeviceOp::Read { .. }
                | DeviceOp::Sync { .. }
                | DeviceOp::SyncDir
                | DeviceOp::Remove { .. }
        );
        if !on_open_file {
            let result = self.files.perform(&op);
            self.files.complete(token, result);
            return token;
        }
        let open = match self.files.open_for(&op) {
            Ok(open) => open,
            Err(e) => {
                self.files.complete(token, Err(error(&op, &e)));
                return token;
            }
        };
        let op = match Self::for_ring(op, &open) {
            Err(op) => op,
            Ok((ring_op, rest)) => {
                match self.ring.submit(token.0, Self::ring_file(&open), ring_op) {
                    Ok(()) => {
                        self.ops.insert(token.0, (rest, open));
                        return token;
                    }
                    // The ring is full, or can't do that.
                    Err(back) => match (back, rest) {
                        (RingOp::Write { data, .. }, DeviceOp::Write { file, offset, .. }) => {
                            DeviceOp::Write { file, offset, data }
                        }
                        (RingOp::Write { data, .. }, DeviceOp::WriteSync { file, offset, .. }) => {
                            DeviceOp::WriteSync { file, offset, data }
                        }
                        (_, rest) => rest,
                    },
                }
            }
        };
        let result = perform_on(&open, &op).map_err(|e| error(&op, &e));
        self.files.complete(token, result);
        token
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        self.files.poll(done);
        let mut ended = std::mem::take(&mut self.ended);
        self.ring.reap(&mut ended);
        for ended in ended.drain(..) {
            if let Some((op, open)) = self.ops.remove(&ended.id) {
                let token = Token(ended.id);
                let result = Self::result(&op, &open, ended, self.returned.as_mut());
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

    fn write_sync(&mut self, file: FileName, offset: u64, data: Vec<u8>) -> (Result<(), DeviceError>, Vec<u8>) {
        self.returned = Some(Vec::new());
        let result = self.execute(DeviceOp::WriteSync { file, offset, data }).map(|_| ());
        (result, self.returned.take().unwrap_or_default())
    }
}
