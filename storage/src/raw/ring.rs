//! io_uring, made safe: the ring owns every buffer and file that the kernel may still use.
//!
//! Buffers are registered with the kernel where it allows that, so that it needn't pin them for each operation: [`SLOTS`] pieces of
//! [`SLOT_BYTES`], used by reads and by writes around the cache that fit. What doesn't fit, and all where the kernel refuses, goes by ordinary
//! buffers. Files aren't registered: the kernel lets go of a registered one some time after it was told to, and a removed file's space, or a
//! directory that is to become read-only, isn't free until then.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};

use super::memory::Buffer;

/// Registered pieces of memory.
pub(crate) const SLOTS: usize = 32;
/// How long each is: a page of a table's log with its trailer fits.
pub(crate) const SLOT_BYTES: usize = 128 << 10;

/// What the ring can do with a file. The buffer comes back at the end.
#[derive(Debug)]
pub(crate) enum RingOp {
    /// Writes all of it at an offset; with `sync`, then makes the file's data durable.
    Write {
        /// What.
        data: Vec<u8>,
        /// Where.
        offset: u64,
        /// Whether a data sync follows, linked.
        sync: bool,
    },
    /// Reads up to so many bytes.
    Read {
        /// What was read; empty when it is submitted.
        data: Vec<u8>,
        /// How much is wanted.
        len: usize,
        /// From where.
        offset: u64,
    },
    /// Makes the file's data durable.
    Sync {
        /// And all that is known of it, or of the names in a directory.
        with_metadata: bool,
    },
    /// Removes a file of the directory that the operation's file is.
    Remove {
        /// Its name there.
        name: CString,
    },
}

/// The file of an operation.
#[derive(Clone, Debug)]
pub(crate) struct RingFile {
    /// It.
    pub(crate) file: Arc<File>,
    /// Whether it was opened to go around the system's cache: memory is aligned for it.
    pub(crate) direct: bool,
}

/// An operation that is over.
#[derive(Debug)]
pub(crate) struct Ended {
    /// As given.
    pub(crate) id: u64,
    /// As given, with the buffer.
    pub(crate) op: RingOp,
    /// Bytes that were to be written or read.
    pub(crate) len: usize,
    /// The result of the read, write or sync: bytes, or an error.
    pub(crate) result: io::Result<usize>,
    /// The result of the linked sync; an error of kind `Other` where the link broke.
    pub(crate) sync_result: io::Result<()>,
}

/// Memory that the kernel works on.
#[derive(Debug)]
enum Lent {
    /// The operation's own `data`.
    Data,
    /// Aligned memory, with its number if it is registered.
    Own(Buffer, Option<u16>),
}

struct InFlight {
    op: RingOp,
    lent: Lent,
    len: usize,
    file: RingFile,
    /// Completions still to come.
    waiting: u32,
    result: io::Result<usize>,
    sync_result: io::Result<()>,
}

/// A ring of one thread.
pub(crate) struct Ring {
    ring: IoUring,
    in_flight: HashMap<u64, InFlight>,
    /// Registered pieces of memory that no operation has.
    free_slots: Vec<(u16, Buffer)>,
    /// Whether the kernel removes files by the ring.
    can_remove: bool,
    refused: Vec<String>,
}

/// Marks the completion of a linked sync.
const SYNC_BIT: u64 = 1 << 63;

impl Ring {
    /// A ring with this many entries, if the kernel has one for us with all that is needed.
    pub(crate) fn new(entries: u32) -> io::Result<Self> {
        let ring = IoUring::new(entries)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [opcode::Write::CODE, opcode::Read::CODE, opcode::Fsync::CODE];
        for code in needed.into_iter().chain([opcode::ReadFixed::CODE, opcode::WriteFixed::CODE]) {
            if !probe.is_supported(code) {
                return Err(io::Error::new(io::ErrorKind::Unsupported, format!("the kernel's io_uring lacks operation {code}")));
            }
        }
        if !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring may drop completions"));
        }
        let can_remove = probe.is_supported(opcode::UnlinkAt::CODE);
        let mut made = Self { ring, in_flight: HashMap::new(), free_slots: Vec::new(), can_remove, refused: Vec::new() };
        made.register();
        Ok(made)
    }

    fn register(&mut self) {
        let mut slots: Vec<_> = (0..SLOTS as u16).map(|number| (number, Buffer::for_direct_io(SLOT_BYTES))).collect();
        let pieces: Vec<libc::iovec> = slots
            .iter_mut()
            .map(|(_, slot)| libc::iovec { iov_base: slot.bytes_mut().as_mut_ptr().cast(), iov_len: slot.len() })
            .collect();
        // SAFETY: the kernel pins these pages and touches them only for operations that name them, each of which owns its piece while it
        // runs (`Lent::Own`); the pieces are freed with the ring, after the last of them.
        match unsafe { self.ring.submitter().register_buffers(&pieces) } {
            Ok(()) => self.free_slots = slots,
            // ENOMEM: RLIMIT_MEMLOCK of the user is used up.
            Err(e) => self.refused.push(format!("registered buffers: {e}")),
        }
    }

    /// What the kernel wouldn't do, and is done without.
    pub(crate) fn refused(&self) -> &[String] {
        &self.refused
    }

    /// How many operations are on their way.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Memory for an operation, with what is to be written in it.
    fn lend(&mut self, op: &RingOp, len: usize, direct: bool) -> Lent {
        let (data, wants_slot) = match op {
            // Copying what can be written from where it is would gain nothing.
            RingOp::Write { data, .. } => (data.as_slice(), direct),
            RingOp::Read { .. } => (&[][..], true),
            RingOp::Sync { .. } | RingOp::Remove { .. } => return Lent::Data,
        };
        let slot = if wants_slot && len <= SLOT_BYTES { self.free_slots.pop() } else { None };
        let (number, mut buffer) = match slot {
            Some((number, buffer)) => (Some(number), buffer),
            None if direct => (None, Buffer::for_direct_io(len)),
            None => return Lent::Data,
        };
        buffer.bytes_mut()[..data.len()].copy_from_slice(data);
        Lent::Own(buffer, number)
    }

    /// Begins an operation; `id` is below 2^63 and not in use. Gives it back when the ring is full, or the kernel doesn't know it.
    pub(crate) fn submit(&mut self, id: u64, file: RingFile, mut op: RingOp) -> Result<(), RingOp> {
        assert!(id < SYNC_BIT && !self.in_flight.contains_key(&id), "an id is used once");
        let queue = self.ring.submission();
        let is_full = queue.capacity() - queue.len() < 2 || self.in_flight.len() >= queue.capacity() / 2;
        drop(queue);
        if is_full || matches!(op, RingOp::Remove { .. }) && !self.can_remove {
            return Err(op);
        }
        let len = match &op {
            RingOp::Write { data, .. } => data.len(),
            RingOp::Read { len, .. } => *len,
            RingOp::Sync { .. } | RingOp::Remove { .. } => 0,
        };
        let mut lent = self.lend(&op, len, file.direct);
        if let (Lent::Data, RingOp::Read { data, len, .. }) = (&lent, &mut op) {
            data.resize(*len, 0);
        }
        let mut flight = InFlight { op, lent: Lent::Data, len, file, waiting: 1, result: Ok(0), sync_result: Ok(()) };
        let memory = match (&mut lent, &mut flight.op) {
            (Lent::Own(buffer, _), _) => buffer.bytes_mut().as_mut_ptr(),
            (Lent::Data, RingOp::Write { data, .. } | RingOp::Read { data, .. }) => data.as_mut_ptr(),
            (Lent::Data, RingOp::Sync { .. } | RingOp::Remove { .. }) => std::ptr::null_mut(),
        };
        let entries = entries(id, &flight.file, &flight.op, &lent, memory, len);
        flight.waiting = if matches!(flight.op, RingOp::Write { sync: true, .. }) { 2 } else { 1 };
        flight.lent = lent;
        // SAFETY: the kernel uses the file and the memory that the entries point at until their completions come. `in_flight` owns both until
        // then (moving a Vec, Buffer or CString doesn't move its heap), nobody can reach them there, and Drop waits for all completions.
        let pushed = unsafe { self.ring.submission().push_multiple(&entries[..flight.waiting as usize]) };
        if pushed.is_err() {
            self.take_back(&mut flight);
            return Err(flight.op);
        }
        self.in_flight.insert(id, flight);
        // An error here (EAGAIN, EBUSY) leaves the entries queued; the next call submits them.
        let _ = self.ring.submit();
        Ok(())
    }

    /// Gives lent memory back, and what was read to its operation.
    fn take_back(&mut self, flight: &mut InFlight) {
        let read = flight.result.as_ref().map_or(0, |n| (*n).min(flight.len));
        let lent = std::mem::replace(&mut flight.lent, Lent::Data);
        if let RingOp::Read { data, .. } = &mut flight.op {
            match &lent {
                Lent::Own(buffer, _) => buffer.bytes()[..read].clone_into(data),
                Lent::Data => data.truncate(read),
            }
        }
        if let Lent::Own(buffer, Some(number)) = lent {
            self.free_slots.push((number, buffer));
        }
    }

    /// Takes what has ended; doesn't block.
    pub(crate) fn reap(&mut self, ended: &mut Vec<Ended>) {
        loop {
            // The queue is let go before the next is taken: what has ended gives memory back to the ring.
            let completion = self.ring.completion().next();
            let Some(completion) = completion else { return };
            self.settle(&completion, ended);
        }
    }

    fn settle(&mut self, completion: &cqueue::Entry, ended: &mut Vec<Ended>) {
        let id = completion.user_data() & !SYNC_BIT;
        let result = match completion.result() {
            n if n >= 0 => Ok(n as usize),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        };
        let Some(flight) = self.in_flight.get_mut(&id) else { return };
        if completion.user_data() & SYNC_BIT == 0 {
            flight.result = result;
        } else {
            flight.sync_result = result.map(|_| ());
        }
        flight.waiting -= 1;
        if flight.waiting == 0
            && let Some(mut flight) = self.in_flight.remove(&id)
        {
            self.take_back(&mut flight);
            let InFlight { op, len, result, sync_result, .. } = flight;
            ended.push(Ended { id, op, len, result, sync_result });
        }
    }

    /// Blocks until something has ended or the time is over.
    pub(crate) fn wait(&mut self, timeout: Duration) {
        if self.in_flight.is_empty() {
            return;
        }
        let time = types::Timespec::from(timeout);
        let arguments = types::SubmitArgs::new().timespec(&time);
        // ETIME, EINTR and the like mean only that nothing has ended yet; the caller looks and comes again.
        let _ = self.ring.submitter().submit_with_args(1, &arguments);
    }
}

/// The entries of an operation: itself, and a data sync that is used where it is linked to one.
fn entries(id: u64, file: &RingFile, op: &RingOp, lent: &Lent, memory: *mut u8, len: usize) -> [squeue::Entry; 2] {
    let length = u32::try_from(len).unwrap_or(u32::MAX);
    let fd = types::Fd(file.file.as_raw_fd());
    let fsync = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build();
    let first = match (op, lent) {
        (RingOp::Sync { with_metadata: false }, _) => fsync.clone(),
        (RingOp::Sync { with_metadata: true }, _) => opcode::Fsync::new(fd).build(),
        (RingOp::Remove { name }, _) => opcode::UnlinkAt::new(fd, name.as_ptr()).build(),
        (RingOp::Read { offset, .. }, Lent::Own(_, Some(slot))) => {
            opcode::ReadFixed::new(fd, memory, length, *slot).offset(*offset).build()
        }
        (RingOp::Read { offset, .. }, _) => opcode::Read::new(fd, memory, length).offset(*offset).build(),
        (RingOp::Write { offset, .. }, Lent::Own(_, Some(slot))) => {
            opcode::WriteFixed::new(fd, memory.cast_const(), length, *slot).offset(*offset).build()
        }
        (RingOp::Write { offset, .. }, _) => opcode::Write::new(fd, memory.cast_const(), length).offset(*offset).build(),
    };
    let first = if matches!(op, RingOp::Write { sync: true, .. }) { first.flags(squeue::Flags::IO_LINK) } else { first };
    [first.user_data(id), fsync.user_data(id | SYNC_BIT)]
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut ended = Vec::new();
        while !self.in_flight.is_empty() {
            if self.ring.submit_and_wait(1).is_err_and(|e| e.kind() != io::ErrorKind::Interrupted) {
                // The kernel may still write into the buffers: they must outlive it, so they are never freed.
                std::mem::take(&mut self.in_flight).into_values().for_each(std::mem::forget);
                return;
            }
            self.reap(&mut ended);
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring({} in flight)", self.in_flight.len())
    }
}
