//! Values of any length beside the slots: a slot holds a handle of 16 bytes.
//!
//! A value never changes: another one gets another handle, and the old one stays until the epoch is over. So a copy of a slot can be evaluated
//! as long as its operator needs it.
//!
//! ```text
//! handle: length u32 ‖ the value itself, at most 12 bytes      or      length u32 ‖ 0 u32 ‖ number u64, the value's key in the table
//! ```

use tiderace_storage::{PointTable, TableId};

use super::numeric::array;
use super::state::HANDLE_BYTES;
use crate::ids::CoreId;
use crate::key::hash;

/// A handle; zeros mean "no value".
pub(crate) type Handle = [u8; HANDLE_BYTES];

const INLINE_MAX: usize = 12;

/// Gives out the numbers of values, and forgets them in time.
#[derive(Debug)]
pub(crate) struct Values {
    pub(crate) table: TableId,
    next: u64,
    epoch_begin: u64,
    retired: Vec<u64>,
}

impl Values {
    /// Numbers are never given out twice in a job: the core is in their top bits.
    pub(crate) fn new(table: TableId, core: CoreId) -> Self {
        let next = u64::from(core.0) << 48 | 1;
        Self { table, next, epoch_begin: next, retired: Vec::new() }
    }

    /// The number that is given out next, between two epochs.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Goes on behind another run's numbers.
    pub(crate) fn resume(&mut self, next: u64) {
        (self.next, self.epoch_begin) = (next, next);
    }

    pub(crate) fn bytes<'v>(table: &'v PointTable, handle: &'v [u8]) -> &'v [u8] {
        let length = u32::from_le_bytes(array(handle, 0)) as usize;
        if length <= INLINE_MAX {
            return &handle[4..4 + length];
        }
        let number: [u8; 8] = array(handle, 8);
        // A handle in a slot always has its value: it is put first and retired last.
        table.get(hash(&number), &number).unwrap_or(&[])
    }

    pub(crate) fn store(&mut self, table: &mut PointTable, value: &[u8]) -> Handle {
        let mut handle = [0; HANDLE_BYTES];
        handle[..4].copy_from_slice(&(value.len() as u32).to_le_bytes());
        if value.len() <= INLINE_MAX {
            handle[4..4 + value.len()].copy_from_slice(value);
            return handle;
        }
        let number = self.next.to_le_bytes();
        self.next += 1;
        handle[8..].copy_from_slice(&number);
        table.put(hash(&number), &number, value);
        handle
    }

    /// Forgets a value that no slot shows any more: at once if it was made in this epoch, at [`release`](Self::release) else.
    pub(crate) fn retire(&mut self, table: &mut PointTable, handle: &[u8]) {
        if u32::from_le_bytes(array(handle, 0)) as usize <= INLINE_MAX {
            return;
        }
        let number: [u8; 8] = array(handle, 8);
        let value = u64::from_le_bytes(number);
        if value >= self.epoch_begin && value < self.next {
            table.remove(hash(&number), &number);
        } else {
            self.retired.push(value);
        }
    }

    /// Forgets a value that neither a slot nor a copy of one shows.
    pub(crate) fn forget(table: &mut PointTable, handle: &[u8]) {
        if u32::from_le_bytes(array(handle, 0)) as usize > INLINE_MAX {
            let number: [u8; 8] = array(handle, 8);
            table.remove(hash(&number), &number);
        }
    }

    /// The epoch is over.
    pub(crate) fn release(&mut self, table: &mut PointTable) {
        for number in self.retired.drain(..) {
            let number = number.to_le_bytes();
            table.remove(hash(&number), &number);
        }
        self.epoch_begin = self.next;
    }
}
