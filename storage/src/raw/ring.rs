//! io_uring, made safe: the ring owns every buffer and file that the kernel may still use.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};

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
    /// Reads up to the buffer's length.
    Read {
        /// To where; its length is how much.
        data: Vec<u8>,
        /// From where.
        offset: u64,
    },
    /// Makes the file's data durable.
    Sync,
}

/// An operation that is over.
#[derive(Debug)]
pub(crate) struct Ended {
    /// As given.
    pub(crate) id: u64,
    /// As given, with the buffer.
    pub(crate) op: RingOp,
    /// The file it was on.
    pub(crate) file: Arc<File>,
    /// The result of the read, write or sync: bytes, or an error.
    pub(crate) result: io::Result<usize>,
    /// The result of the linked sync; an error of kind `Other` where the link broke.
    pub(crate) sync_result: io::Result<()>,
}

struct InFlight {
    op: RingOp,
    file: Arc<File>,
    /// Completions still to come.
    waiting: u32,
    result: io::Result<usize>,
    sync_result: io::Result<()>,
}

/// A ring of one thread.
pub(crate) struct Ring {
    ring: IoUring,
    in_flight: HashMap<u64, InFlight>,
}

/// Marks the completion of a linked sync.
const SYNC_BIT: u64 = 1 << 63;

impl Ring {
    /// A ring with this many entries, if the kernel has one for us with all that is needed.
    pub(crate) fn new(entries: u32) -> io::Result<Self> {
        let ring = IoUring::new(entries)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        for code in [opcode::Write::CODE, opcode::Read::CODE, opcode::Fsync::CODE] {
            if !probe.is_supported(code) {
                return Err(io::Error::new(io::ErrorKind::Unsupported, format!("the kernel's io_uring lacks operation {code}")));
            }
        }
        if !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring may drop completions"));
        }
        Ok(Self { ring, in_flight: HashMap::new() })
    }

    /// How many operations are on their way.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Begins an operation; `id` is below 2^63 and not in use. Gives it back when the ring is full.
    pub(crate) fn submit(&mut self, id: u64, file: Arc<File>, op: RingOp) -> Result<(), RingOp> {
        assert!(id < SYNC_BIT && !self.in_flight.contains_key(&id), "an id is used once");
        let mut queue = self.ring.submission();
        if queue.capacity() - queue.len() < 2 || self.in_flight.len() >= queue.capacity() / 2 {
            return Err(op);
        }
        let mut flight = InFlight { op, file, waiting: 1, result: Ok(0), sync_result: Ok(()) };
        let fd = types::Fd(flight.file.as_raw_fd());
        let length = |data: &[u8]| u32::try_from(data.len()).unwrap_or(u32::MAX);
        let fsync = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build();
        let mut entries = [fsync.clone().user_data(id), fsync.user_data(id | SYNC_BIT)];
        let count = match &mut flight.op {
            RingOp::Write { data, offset, sync } => {
                let write = opcode::Write::new(fd, data.as_ptr(), length(data)).offset(*offset).build().user_data(id);
                entries[0] = if *sync { write.flags(squeue::Flags::IO_LINK) } else { write };
                if *sync { 2 } else { 1 }
            }
            RingOp::Read { data, offset } => {
                entries[0] = opcode::Read::new(fd, data.as_mut_ptr(), length(data)).offset(*offset).build().user_data(id);
                1
            }
            RingOp::Sync => 1,
        };
        flight.waiting = count;
        // SAFETY: the kernel uses the file and the heap buffer that the entries point at until their completions come. `in_flight` owns both
        // until then (moving the Vec doesn't move its heap), nobody can reach them there, and Drop waits for all completions.
        let pushed = unsafe { queue.push_multiple(&entries[..count as usize]) };
        drop(queue);
        if pushed.is_err() {
            return Err(flight.op);
        }
        self.in_flight.insert(id, flight);
        // An error here (EAGAIN, EBUSY) leaves the entries queued; the next call submits them.
        let _ = self.ring.submit();
        Ok(())
    }

    /// Takes what has ended; doesn't block.
    pub(crate) fn reap(&mut self, ended: &mut Vec<Ended>) {
        let Self { ring, in_flight } = self;
        for completion in ring.completion() {
            Self::settle(in_flight, &completion, ended);
        }
    }

    fn settle(in_flight: &mut HashMap<u64, InFlight>, completion: &cqueue::Entry, ended: &mut Vec<Ended>) {
        let id = completion.user_data() & !SYNC_BIT;
        let result = match completion.result() {
            n if n >= 0 => Ok(n as usize),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        };
        let Some(flight) = in_flight.get_mut(&id) else { return };
        if completion.user_data() & SYNC_BIT == 0 {
            flight.result = result;
        } else {
            flight.sync_result = result.map(|_| ());
        }
        flight.waiting -= 1;
        if flight.waiting == 0
            && let Some(InFlight { op, file, result, sync_result, .. }) = in_flight.remove(&id)
        {
            ended.push(Ended { id, op, file, result, sync_result });
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
