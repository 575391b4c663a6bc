//! Operations on keys whose records may be on the device: each key's in the order of their arrival, none waits for another key's.
//!
//! ```text
//! submit ──▶ in memory, or nowhere: done
//!        └─▶ on the device: queue of the key ─▶ read its page ─▶ look again, from the index ─▶ done, next of the queue
//! ```
//! An operation on the device's record reads it, then writes at the tail. What arrives for a key that has a queue joins it.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::memory::{BudgetShortfall, NoRoom, Room};
use super::{Shard, TableId};
use crate::bugs::{self, Bug};
use crate::memory::Account;
use crate::point::{KeyBatch, Located, PageRead, STAMP_BYTES};
use crate::store::{ReadTicket, StoreError};

/// Operations that may wait at once; more are refused as [`NoRoom::Busy`].
const WAITING_MAX: usize = 1 << 16;
/// The device is waited for in pieces of this length.
const WAIT: Duration = Duration::from_millis(5);

/// What is to be done with one key.
pub enum Operation {
    /// Tells the value.
    Read,
    /// Sets the value.
    Upsert(Vec<u8>),
    /// Makes a new value of the old one, if there is one.
    Rmw(Box<dyn FnOnce(Option<&[u8]>) -> Vec<u8> + Send>),
    /// Forgets the key.
    Delete,
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "Read",
            Self::Upsert(_) => "Upsert",
            Self::Rmw(_) => "Rmw",
            Self::Delete => "Delete",
        })
    }
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Of a read: the value.
    Value(Option<Vec<u8>>),
    /// Of a change: whether the key was there before.
    Done {
        /// Whether it was.
        existed: bool,
    },
}

/// Names an operation that waits; see [`Shard::take_completed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What [`Shard::submit`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// All.
    Done(Answer),
    /// The answer comes later, under this name.
    Pending(Ticket),
}

/// Where the records of some keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// In memory, as far as there are any, and there is room for what aren't: no call on these keys will ask the device or pass the budget,
    /// until the next call of the [`Shard`]'s own.
    Resident,
    /// So many keys' records are being fetched.
    Pending(usize),
}

enum Task {
    Answer(Ticket, Operation),
    /// All records that may be of the hash are wanted in memory.
    Fetch,
}

struct Waiting {
    key: Vec<u8>,
    value_width: usize,
    task: Task,
    bytes: usize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Addresses, with their pages' numbers, that aren't the first one's key.
    refused: Vec<(u64, u64)>,
    /// For want of so much memory the first one waits: before there is that, nothing is read for it.
    room: Room,
}

/// Why an operation can't be done yet.
enum Lacks {
    /// The record at this address, which has to be read.
    Record(u64),
    /// Memory: so much.
    Room(Room),
    /// Memory that there will never be.
    Budget(Box<BudgetShortfall>),
}

type QueueId = (TableId, u64);

struct Read {
    page: (TableId, u64),
    waiters: Vec<QueueId>,
}

/// Operations that wait.
pub(super) struct Pending {
    queues: HashMap<QueueId, Queue>,
    reads: HashMap<ReadTicket, Read>,
    by_page: HashMap<(TableId, u64), ReadTicket>,
    /// Queues that wait for room: in memory, or at the device.
    stalled: VecDeque<QueueId>,
    completed: Vec<(Ticket, Result<Answer, StoreError>)>,
    /// Why a record that was to be fetched never will be, until somebody was told.
    unfetched: Option<BudgetShortfall>,
    waiting: usize,
    waiting_bytes: usize,
    next_ticket: u64,
    account: Account,
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pending({} operations on {} keys, {} reads)", self.waiting, self.queues.len(), self.reads.len())
    }
}

impl Lacks {
    fn room(room: Room, none: NoRoom) -> Self {
        match none {
            NoRoom::Busy { .. } => Self::Room(room),
            NoRoom::BudgetTooSmall(shortfall) => Self::Budget(Box::new(shortfall)),
        }
    }
}

impl Pending {
    pub(super) fn new(account: Account) -> Self {
        Self {
            queues: HashMap::new(),
            reads: HashMap::new(),
            by_page: HashMap::new(),
            stalled: VecDeque::new(),
            completed: Vec::new(),
            unfetched: None,
            waiting: 0,
            waiting_bytes: 0,
            next_ticket: 0,
            account,
        }
    }

    fn push(&mut self, id: QueueId, waiting: Waiting) {
        self.waiting += 1;
        self.waiting_bytes += waiting.bytes;
        self.queues.entry(id).or_default().waiting.push_back(waiting);
        self.account.settle(self.waiting_bytes);
    }
}

impl Shard {
    /// Does one operation on one key, at once or, when that needs the device, later: then its answer comes by
    /// [`take_completed`](Self::take_completed), after [`complete_pending`](Self::complete_pending) has done it. Operations on one key take
    /// effect in the order of their submission. Calls on the table itself don't wait for what is pending.
    ///
    /// `value_width` as in [`point`](Self::point).
    pub fn submit(
        &mut self,
        table: TableId,
        value_width: usize,
        hash: u64,
        key: &[u8],
        operation: Operation,
    ) -> Result<Submitted, NoRoom> {
        let id = (table, hash);
        let located = if self.pending.queues.contains_key(&id) {
            None
        } else {
            match self.point(table, value_width).locate_now(hash, key, None, &[]) {
                Located::OnDevice(_) => None,
                located => Some(located),
            }
        };
        if let Some(located) = located {
            self.reserve_for(table, value_width, key, &operation, located, None)?;
            let (operation, existed) = self.make_value(table, value_width, operation, located, None);
            if existed.is_none() || self.reserve_for(table, value_width, key, &operation, located, None).is_ok() {
                return Ok(Submitted::Done(self.perform(table, value_width, hash, key, operation, located, None)));
            }
            // The value that was made is longer than one could know, so it waits for room.
            let Operation::Upsert(value) = &operation else { unreachable!("what was made is to be set") };
            let bytes = key.len() + value.len() + 2 * size_of::<Waiting>();
            self.pending.next_ticket += 1;
            let ticket = Ticket(self.pending.next_ticket);
            self.pending.push(id, Waiting { key: key.to_vec(), value_width, task: Task::Answer(ticket, operation), bytes });
            self.pending.stalled.push_back(id);
            return Ok(Submitted::Pending(ticket));
        }
        let upsert = if let Operation::Upsert(value) = &operation { value.len() } else { 0 };
        let bytes = key.len() + upsert + 2 * size_of::<Waiting>();
        if self.pending.waiting >= WAITING_MAX {
            return Err(NoRoom::Busy { bytes_needed: bytes });
        }
        // Those that wait leave room for what they wait to do, beside the first.
        let is_alone = self.pending.waiting == 0;
        let mut limit_bytes = self.admitted_bytes();
        let removal_limit_bytes = self.removal_limit_bytes();
        let point = self.point(table, value_width);
        let room = match &operation {
            Operation::Read => 0,
            Operation::Upsert(value) => point.room_for_later(key.len() + value.len() + STAMP_BYTES),
            Operation::Rmw(_) => point.room_for_later(key.len() + value_width + 16 + STAMP_BYTES),
            Operation::Delete => {
                limit_bytes = removal_limit_bytes;
                point.room_for_later_copy(key.len() + 8)
            }
        };
        self.reserve_room(Room { bytes: bytes + if is_alone { 0 } else { room }, limit_bytes })?;
        self.pending.next_ticket += 1;
        let ticket = Ticket(self.pending.next_ticket);
        let is_first = !self.pending.queues.contains_key(&id);
        self.pending.push(id, Waiting { key: key.to_vec(), value_width, task: Task::Answer(ticket, operation), bytes });
        if is_first {
            self.advance(id, None);
        }
        Ok(Submitted::Pending(ticket))
    }

    /// Brings the records of these keys into memory, and makes room for [`entries`](crate::PointTable::entries) of them. An
    /// error when there isn't room: let the device work, make the batch smaller, or let others go.
    pub fn fetch(&mut self, table: TableId, value_width: usize, keys: &KeyBatch<'_>) -> Result<Residency, NoRoom> {
        if let Some(shortfall) = self.pending.unfetched.take() {
            return Err(shortfall.into());
        }
        // First: making room may evict.
        let room = self.point(table, value_width).room_for_entries(keys);
        self.reserve(room)?;
        if !self.point(table, value_width).is_partly_away() && self.pending.queues.is_empty() {
            return Ok(Residency::Resident);
        }
        let mut pending = 0;
        for (i, hash) in keys.hashes.iter().enumerate() {
            let id = (table, *hash);
            if self.pending.queues.contains_key(&id) {
                pending += 1;
                continue;
            }
            if self.point(table, value_width).first_away(*hash).is_none() {
                continue;
            }
            let key = keys.key(i).to_vec();
            let bytes = key.len() + 2 * size_of::<Waiting>();
            let is_alone = self.pending.waiting == 0;
            let room = if is_alone { 0 } else { self.point(table, value_width).room_for_later_copy(key.len() + value_width) };
            self.reserve(bytes + room)?;
            pending += 1;
            self.pending.push(id, Waiting { key, value_width, task: Task::Fetch, bytes });
            self.advance(id, None);
        }
        Ok(if pending == 0 { Residency::Resident } else { Residency::Pending(pending) })
    }

    /// Whether operations wait.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.waiting
    }

    /// Appends the answers of pending operations that are done.
    pub fn take_completed(&mut self, out: &mut Vec<(Ticket, Result<Answer, StoreError>)>) {
        out.append(&mut self.pending.completed);
    }

    /// Lets the device work, for at most about `budget`, and does what waits for it; how many operations are done by it. Returns early when
    /// there is nothing to wait for. With a budget of zero it never blocks.
    pub fn complete_pending(&mut self, budget: Duration) -> usize {
        let Some(store) = self.store.clone() else { return 0 };
        let start = Instant::now();
        let before = self.pending.waiting;
        loop {
            // An error stays in the store; reads of what is durable go on.
            let _ = store.lock().step(true);
            let arrived: Vec<_> = self
                .pending
                .reads
                .keys()
                .filter_map(|ticket| store.lock().take_read(*ticket).map(|page| (*ticket, page)))
                .collect();
            let mut progress = !arrived.is_empty() | self.take_block_reads();
            for (ticket, page) in arrived {
                self.page_arrived(ticket, page);
            }
            progress |= self.advance_stalled();
            if self.pending.waiting == 0 && !store.lock().is_busy() {
                break;
            }
            if start.elapsed() >= budget {
                break;
            }
            if !progress {
                if self.pending.reads.is_empty() && !store.lock().is_busy() {
                    // Stalled for memory alone, and the device can't help.
                    self.relieve_stalled();
                    if !store.lock().is_busy() {
                        break;
                    }
                }
                let left = budget.saturating_sub(start.elapsed());
                store.lock().wait(left.min(WAIT));
            }
        }
        before.saturating_sub(self.pending.waiting)
    }

    /// Does what waits for memory, or for the device to take another read, if there is that now; whether any came further.
    fn advance_stalled(&mut self) -> bool {
        // What others are about to take is no room any more; and who waits for more than was missing just now waits on.
        let (mut progress, mut granted, mut missing) = (false, 0, usize::MAX);
        for _ in 0..self.pending.stalled.len() {
            let Some(id) = self.pending.stalled.pop_front() else { break };
            let room = self.room_before_reading(id);
            if room.bytes > 0 {
                let beside_others = Room { bytes: granted + room.bytes, ..room };
                let is_missing = room.bytes >= missing
                    || self.reserve_room(beside_others).is_err()
                        && matches!(self.reserve_room(room), Ok(()) | Err(NoRoom::Busy { .. }));
                if is_missing {
                    missing = missing.min(room.bytes);
                    self.pending.stalled.push_back(id);
                    continue;
                }
                granted += room.bytes;
            }
            self.advance(id, None);
            progress |= self.pending.stalled.back() != Some(&id);
        }
        progress
    }

    /// The memory without which a page would be read in vain for the first operation of a queue; nothing if none has to be read, or what is
    /// to be written fits on the page that is being filled by now.
    fn room_before_reading(&mut self, id: QueueId) -> Room {
        let Some(queue) = self.pending.queues.get(&id).filter(|queue| queue.room.bytes > 0) else { return Room::default() };
        let (Some(first), Some(table)) = (queue.waiting.front(), self.point.get(&id.0)) else { return Room::default() };
        let has_to_read = match first.task {
            Task::Fetch => table.first_away(id.1).is_some(),
            Task::Answer(..) => matches!(table.locate_now(id.1, &first.key, None, &queue.refused), Located::OnDevice(_)),
        };
        if has_to_read && !table.has_room_at_tail() { queue.room } else { Room::default() }
    }

    fn relieve_stalled(&mut self) {
        let wanted = self.options.budget_bytes / 16;
        self.evict(wanted);
        self.write_out(wanted, 0);
        if let Some(store) = self.store.clone() {
            let _ = store.lock().step(true);
        }
    }

    fn page_arrived(&mut self, ticket: ReadTicket, page: Result<Vec<u8>, StoreError>) {
        let Some(read) = self.pending.reads.remove(&ticket) else { return };
        self.pending.by_page.remove(&read.page);
        match page {
            Ok(bytes) => {
                for id in read.waiters {
                    self.advance(id, Some(PageRead { number: read.page.1, bytes: &bytes }));
                }
            }
            Err(error) => {
                if let Some(store) = &self.store {
                    store.lock().fail(error.clone());
                }
                for id in read.waiters {
                    self.fail_queue(id, &error);
                }
            }
        }
    }

    fn fail_queue(&mut self, id: QueueId, error: &StoreError) {
        let Some(queue) = self.pending.queues.remove(&id) else { return };
        for waiting in queue.waiting {
            if let Task::Answer(ticket, _) = waiting.task {
                self.pending.completed.push((ticket, Err(error.clone())));
            }
            self.finish(waiting.bytes);
        }
    }

    /// Does what can be done of a queue, with the page that was read for it, if one was.
    fn advance(&mut self, id: QueueId, read: Option<PageRead<'_>>) {
        let (table, hash) = id;
        loop {
            let Some(queue) = self.pending.queues.get_mut(&id) else { return };
            if bugs::is_on(Bug::PendingOutOfOrder) {
                queue.waiting.rotate_left(1);
            }
            let Some(first) = queue.waiting.pop_front() else {
                self.pending.queues.remove(&id);
                return;
            };
            let refused = std::mem::take(&mut queue.refused);
            match self.attempt(table, hash, first, read, &refused) {
                Ok(()) => {}
                Err((first, Lacks::Budget(shortfall))) => {
                    match first.task {
                        Task::Answer(ticket, _) => self.pending.completed.push((ticket, Err((*shortfall).into()))),
                        Task::Fetch => self.pending.unfetched = Some(*shortfall),
                    }
                    self.finish(first.bytes);
                }
                Err((first, lacks)) => {
                    let mut refused = refused;
                    let width = first.value_width;
                    // The page that was read has the record, or else what of it may be is none of this key's.
                    let is_there = |shard: &mut Self| {
                        matches!(shard.point(table, width).locate_now(hash, &first.key, read, &refused), Located::Read(_))
                    };
                    if let Some(read) = read
                        && (matches!(lacks, Lacks::Record(_)) || !is_there(self))
                    {
                        self.point(table, width).candidates_on(hash, read.number, &mut refused);
                    }
                    if let Some(queue) = self.pending.queues.get_mut(&id) {
                        queue.waiting.push_front(first);
                        queue.refused = refused;
                        queue.room = if let Lacks::Room(room) = lacks { room } else { Room::default() };
                    }
                    let reads = matches!(lacks, Lacks::Record(at) if self.read_for(id, width, at));
                    if !reads {
                        self.pending.stalled.push_back(id);
                    }
                    return;
                }
            }
        }
    }

    /// Does one operation, or gives it back with what it lacks.
    fn attempt(
        &mut self,
        table: TableId,
        hash: u64,
        first: Waiting,
        read: Option<PageRead<'_>>,
        refused: &[(u64, u64)],
    ) -> Result<(), (Waiting, Lacks)> {
        let width = first.value_width;
        if let Task::Fetch = first.task {
            if let Some(read) = read {
                let bytes = self.point(table, width).room_for_fetch(hash, read);
                let room = Room { bytes, limit_bytes: self.admitted_bytes() };
                if let Err(none) = self.reserve_room(room) {
                    return Err((first, Lacks::room(room, none)));
                }
                self.point(table, width).fetch_from(hash, read);
            }
            if let Some(at) = self.point(table, width).first_away(hash) {
                return Err((first, Lacks::Record(at)));
            }
            self.finish(first.bytes);
            return Ok(());
        }
        let located = self.point(table, width).locate_now(hash, &first.key, read, refused);
        if let Located::OnDevice(at) = located {
            return Err((first, Lacks::Record(at)));
        }
        let Waiting { key, value_width, task, bytes } = first;
        let Task::Answer(ticket, operation) = task else { return Ok(()) };
        let (operation, _) = self.make_value(table, width, operation, located, read);
        let room = self.room_for(table, width, &key, &operation, located, read);
        if let Err(none) = self.reserve_some(room) {
            return Err((Waiting { key, value_width, task: Task::Answer(ticket, operation), bytes }, Lacks::room(room, none)));
        }
        let answer = self.perform(table, width, hash, &key, operation, located, read);
        self.pending.completed.push((ticket, Ok(answer)));
        self.finish(bytes);
        Ok(())
    }

    fn finish(&mut self, bytes: usize) {
        self.pending.waiting -= 1;
        self.pending.waiting_bytes -= bytes;
        self.pending.account.settle(self.pending.waiting_bytes);
    }

    /// Asks for the page of a record; whether that could be done.
    fn read_for(&mut self, id: QueueId, width: usize, at: u64) -> bool {
        let (page, bytes) = self.point(id.0, width).page_of(at);
        if let Some(ticket) = self.pending.by_page.get(&(id.0, page)) {
            if let Some(read) = self.pending.reads.get_mut(ticket) {
                read.waiters.push(id);
            }
            return true;
        }
        // A sixteenth of the budget is kept free for pages from the device; one may always be read, if it fits at all.
        let limit = self.options.budget_bytes;
        if self.used_bytes() + 2 * bytes > limit {
            self.evict(2 * bytes);
            if self.used_bytes() + 2 * bytes > limit {
                return false;
            }
        }
        let Some((ticket, number)) = self.point(id.0, width).start_read(at) else { return false };
        self.pending.by_page.insert((id.0, number), ticket);
        self.pending.reads.insert(ticket, Read { page: (id.0, number), waiters: vec![id] });
        true
    }

    /// Makes room for what an operation may write.
    fn reserve_for(
        &mut self,
        table: TableId,
        width: usize,
        key: &[u8],
        operation: &Operation,
        located: Located,
        read: Option<PageRead<'_>>,
    ) -> Result<(), NoRoom> {
        let room = self.room_for(table, width, key, operation, located, read);
        self.reserve_some(room)
    }

    /// As [`reserve_room`](Self::reserve_room), but nothing is always there.
    fn reserve_some(&mut self, room: Room) -> Result<(), NoRoom> {
        if room.bytes == 0 { Ok(()) } else { self.reserve_room(room) }
    }

    /// An upper bound of the memory that an operation takes.
    fn room_for(
        &mut self,
        table: TableId,
        width: usize,
        key: &[u8],
        operation: &Operation,
        located: Located,
        read: Option<PageRead<'_>>,
    ) -> Room {
        let (limit_bytes, removal_limit_bytes) = (self.admitted_bytes(), self.removal_limit_bytes());
        let table = self.point(table, width);
        let value = match operation {
            Operation::Read => return Room::default(),
            Operation::Upsert(value) => value.len() + STAMP_BYTES,
            // What it makes isn't known yet; see `make_value`.
            Operation::Rmw(_) => 16 + STAMP_BYTES + table.value_located(located, read).map_or(width, <[u8]>::len),
            // What is removed needs no place in the index: who has no room for that can still make some.
            Operation::Delete => {
                return Room { bytes: table.room_for_removal(key.len()), limit_bytes: removal_limit_bytes };
            }
        };
        Room { bytes: table.room_for(1, key.len() + value), limit_bytes }
    }

    /// Makes the new value of a read-modify-write, which is to be set then, and tells whether there was an old one.
    fn make_value(
        &mut self,
        table: TableId,
        width: usize,
        operation: Operation,
        located: Located,
        read: Option<PageRead<'_>>,
    ) -> (Operation, Option<bool>) {
        let Operation::Rmw(make) = operation else { return (operation, None) };
        let forgets = bugs::is_on(Bug::RmwMissesCold) && matches!(located, Located::Read(_));
        let old = self.point(table, width).value_located(located, read).filter(|_| !forgets);
        (Operation::Upsert(make(old)), Some(old.is_some()))
    }

    #[expect(clippy::too_many_arguments, reason = "one key of one table, and where it is")]
    fn perform(
        &mut self,
        table: TableId,
        width: usize,
        hash: u64,
        key: &[u8],
        operation: Operation,
        located: Located,
        read: Option<PageRead<'_>>,
    ) -> Answer {
        let table = self.point(table, width);
        let existed = table.exists(located, read);
        match operation {
            Operation::Read => return Answer::Value(table.value_located(located, read).map(<[u8]>::to_vec)),
            Operation::Upsert(value) => table.put_located(hash, key, &value, located, read),
            Operation::Rmw(make) => {
                let value = make(table.value_located(located, read));
                table.put_located(hash, key, &value, located, read);
            }
            Operation::Delete => {
                table.remove_located(hash, key, located, read);
            }
        }
        Answer::Done { existed }
    }
}
