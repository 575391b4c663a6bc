//! A key-value store for many threads, over single-writer shards.
//!
//! ```text
//! Session ──batch──▶ Gate: which version? ──▶ shard by the key's hash, each behind its own lock
//! checkpoint ──▶ raise the version ──▶ older batches end ──▶ cut each shard, divide each session
//!   ──▶ slices of each shard in turn, sessions in between ──▶ CheckpointWriter ──▶ manifest
//! ```
//! Sessions number their changes: serial 1, 2, 3, … A checkpoint holds, of each session, exactly the changes up to one serial, and says
//! which; a batch is in it as a whole or not at all. Whoever recovers it goes on behind that serial.

mod batch;
mod gate;
mod session;
mod table;

use std::time::Duration;

use crossbeam_utils::CachePadded;
use hashbrown::HashSet;

use crate::bugs::{self, Bug};
use crate::checkpoint::{Checkpoint, CheckpointError, Checkpoints, Part, vnode_of};
use crate::device::Device;
use crate::shard::{CaptureKind, Shard, ShardOptions, TableId};
use crate::sync::{Arc, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, PoisonError, TryLockError};

use gate::{Gate, Slot};
pub(crate) use table::SessionTable;

pub use batch::{KvKeys, KvSlot};
pub use session::Session;

const TABLE: TableId = TableId(0);
/// Most sessions that a store knows: those that live and those whose serials it keeps.
const SESSIONS_MAX: usize = 65_536;
/// A shard is locked by a checkpoint for so many bytes of records at once: some microseconds.
const SLICE_BYTES: usize = 8 << 10;
/// Longest that a batch waits for batches of an older version.
const BATCH_WAIT_MAX: Duration = Duration::from_secs(30);

/// Longest key.
const KEY_BYTES_MAX: usize = (1 << 26) - 1;
/// Longest value.
const VALUE_BYTES_MAX: usize = 1 << 30;

fn check_key(size_bytes: usize) -> Result<(), KvError> {
    let limit_bytes = KEY_BYTES_MAX;
    if size_bytes > limit_bytes { Err(KvError::TooLarge { what: "key", size_bytes, limit_bytes }) } else { Ok(()) }
}

fn check_value(size_bytes: usize) -> Result<(), KvError> {
    let limit_bytes = VALUE_BYTES_MAX;
    if size_bytes > limit_bytes { Err(KvError::TooLarge { what: "value", size_bytes, limit_bytes }) } else { Ok(()) }
}

/// How a store is made.
#[derive(Clone, Debug)]
pub struct KvOptions {
    /// Shards, 1 to 65 535: 4 to 8 for each core. A recovered store has as many as it was made with.
    pub shards: u32,
    /// Bytes of the values that [`Session::rmw_batch`] makes, and which are changed in place.
    pub value_bytes: usize,
    /// Most memory of all shards; batches that would add beyond are refused.
    pub budget_bytes: usize,
    /// Committed checkpoints that are kept, at least 2.
    pub keep: usize,
}

impl KvOptions {
    /// Shards for so many cores, values of 8 bytes, no bound to memory.
    #[must_use]
    pub fn new(cores: usize) -> Self {
        let shards = (cores * 8).next_power_of_two().clamp(1, 1024) as u32;
        Self { shards, value_bytes: 8, budget_bytes: usize::MAX, keep: 2 }
    }
}

/// What a store refuses or suffers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// The memory it may take is taken.
    #[error("the store holds {used_bytes} B, its budget is {budget_bytes} B")]
    Full {
        /// What it holds.
        used_bytes: usize,
        /// What it may.
        budget_bytes: usize,
    },
    /// A key or a value that is longer than any may be. Nothing was changed.
    #[error("a {what} of {size_bytes} B is longer than {limit_bytes} B")]
    TooLarge {
        /// Of the two which.
        what: &'static str,
        /// Its length.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// A thread panicked while it changed a shard. Open the last checkpoint.
    #[error("a thread panicked while it changed the store")]
    Poisoned,
    /// Another checkpoint is being taken.
    #[error("a checkpoint is being taken")]
    Busy,
    /// Batches that began before didn't end in time; the version stays raised, the next checkpoint holds all.
    #[error("batches that began before have not ended after {waited_ms} ms")]
    Timeout {
        /// How long was waited.
        waited_ms: u64,
    },
    /// No such session, or it is forgotten.
    #[error("session {session} is not known")]
    UnknownSession {
        /// Its number.
        session: u64,
    },
    /// A session has one holder.
    #[error("session {session} is in use")]
    SessionInUse {
        /// Its number.
        session: u64,
    },
    /// The session would leave out changes, or make them twice.
    #[error("session {session} goes on with serial {expected}, not {got}")]
    SerialGap {
        /// Its number.
        session: u64,
        /// The serial of its next change.
        expected: u64,
        /// What was asked for.
        got: u64,
    },
    /// Too many sessions: forget some.
    #[error("{limit} sessions are known, no more can be")]
    TooManySessions {
        /// The limit.
        limit: usize,
    },
    /// The store on the device is of another kind.
    #[error("checkpoint {version}: {because}")]
    Foreign {
        /// Of the checkpoint.
        version: u64,
        /// What is different.
        because: String,
    },
    /// The checkpoint can't be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// A committed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvCheckpoint {
    /// Its version.
    pub version: u64,
    /// Records in it.
    pub records: u64,
    /// Session and its last serial in it, by session.
    pub serials: Vec<(u64, u64)>,
}

struct Locked {
    shard: Shard,
    /// The version of changes that are made now.
    version: u64,
    /// What was cut last, until the checkpoint takes it over.
    cut: Option<Cut>,
}

/// A shard's part of a checkpoint.
#[derive(Clone, Copy)]
struct Cut {
    version: u64,
    kind: CaptureKind,
    records: u64,
}

struct Inner {
    options: KvOptions,
    gate: Gate,
    shards: Vec<CachePadded<Mutex<Locked>>>,
    /// The version that is being captured; 0 for none.
    capturing: AtomicU64,
    /// The version that the capture's changes are relative to; 0 for none.
    base: AtomicU64,
    /// Parts that the capture is to hold whole.
    rewrites: Mutex<HashSet<Part>>,
    used_bytes: AtomicUsize,
    sessions: Mutex<Sessions>,
}

#[derive(Default)]
struct Sessions {
    next: u64,
    live: HashSet<u64>,
}

impl Inner {
    fn shard_of(&self, hash: u64) -> usize {
        vnode_of(hash, self.options.shards) as usize
    }

    /// A shard, for changes and reads of version `version`: cut before, if it isn't yet.
    fn lock(&self, shard: usize, version: u64) -> Result<MutexGuard<'_, Locked>, KvError> {
        let mut locked = self.shards[shard].lock().map_err(|_| KvError::Poisoned)?;
        if locked.version < version {
            if self.capturing.load(Ordering::SeqCst) == version && !bugs::is_on(Bug::ShardsCutLate) {
                self.cut(shard, &mut locked, version)?;
            }
            locked.version = version;
        }
        Ok(locked)
    }

    /// Cuts a shard for a version: takes some stores, whatever the shard holds.
    fn cut(&self, shard: usize, locked: &mut Locked, version: u64) -> Result<(), KvError> {
        let before = locked.shard.used_bytes();
        // Left by a checkpoint that failed while somebody held this shard.
        while locked.shard.is_capturing() && locked.shard.abandon_capture(usize::MAX) {}
        let is_rewritten = {
            let rewrites = self.rewrites.lock().unwrap_or_else(PoisonError::into_inner);
            rewrites.contains(&Part::Vnode(shard as u32))
        };
        let base = Some(self.base.load(Ordering::SeqCst)).filter(|base| *base > 0 && !is_rewritten);
        let records = locked.shard.point(TABLE, self.options.value_bytes).len() as u64;
        let kind = locked.shard.begin_capture(version, base)?;
        locked.cut = Some(Cut { version, kind, records });
        self.account(before, locked.shard.used_bytes());
        Ok(())
    }

    /// Gives up what is captured of all shards, in slices; what a batch holds at this moment is left to the next cut.
    fn abandon_captures(&self) {
        for shard in &self.shards {
            while let Ok(mut locked) = shard.try_lock() {
                locked.cut = None;
                let before = locked.shard.used_bytes();
                let more = locked.shard.is_capturing() && locked.shard.abandon_capture(SLICE_BYTES);
                self.account(before, locked.shard.used_bytes());
                if !more {
                    break;
                }
            }
        }
    }

    /// Notes what a shard's memory has become.
    fn account(&self, before: usize, after: usize) {
        if after > before {
            self.used_bytes.fetch_add(after - before, Ordering::Relaxed);
        } else if after < before {
            self.used_bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    fn has_room(&self) -> Result<(), KvError> {
        let (used_bytes, budget_bytes) = (self.used_bytes.load(Ordering::Relaxed), self.options.budget_bytes);
        if used_bytes > budget_bytes { Err(KvError::Full { used_bytes, budget_bytes }) } else { Ok(()) }
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key-value store for many threads. Cheap to share by reference; sessions hold what they need.
pub struct ShardedKv<D> {
    inner: Arc<Inner>,
    checkpoints: Mutex<Checkpoints<D>>,
}

impl<D> std::fmt::Debug for ShardedKv<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardedKv").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

impl<D: Device> ShardedKv<D> {
    /// Opens the newest checkpoint in the device's directory, or an empty store when there is none. An unreadable newest checkpoint is an
    /// error.
    pub fn open(device: D, mut options: KvOptions) -> Result<Self, KvError> {
        let mut checkpoints = Checkpoints::open(device, options.keep.max(2))?;
        let newest = checkpoints.newest()?;
        let (mut version, mut table) = (1, None);
        if let Some(checkpoint) = &newest {
            version = checkpoint.version();
            let foreign = |because: String| KvError::Foreign { version, because };
            let found = SessionTable::decode(checkpoint.note()).map_err(|e| foreign(format!("its table of sessions: {e}")))?;
            if found.value_bytes as usize != options.value_bytes {
                let because = format!("its values have {} B, {} were asked for", found.value_bytes, options.value_bytes);
                return Err(foreign(because));
            }
            options.shards = checkpoint.vnode_count();
            table = Some(found);
        }
        let mut shards = Vec::new();
        let mut used = 0;
        for number in 0..options.shards {
            let mut shard = Shard::new(ShardOptions { budget_bytes: options.budget_bytes });
            shard.point(TABLE, options.value_bytes);
            if let Some(checkpoint) = &newest {
                checkpoints.restore(checkpoint, &mut shard, number..number + 1, |_, _| true)?;
            }
            used += shard.used_bytes();
            shards.push(CachePadded::new(Mutex::new(Locked { shard, version, cut: None })));
        }
        let (gate, mut sessions) = (Gate::new(version), Sessions::default());
        if let Some(table) = table {
            sessions.next = table.next_session;
            gate.slots().extend(table.serials.iter().map(|(id, serial)| Arc::new(Slot::new(*id, *serial, version))));
        }
        let inner = Inner {
            options,
            gate,
            shards,
            capturing: AtomicU64::new(0),
            base: AtomicU64::new(0),
            rewrites: Mutex::new(HashSet::new()),
            used_bytes: AtomicUsize::new(used),
            sessions: Mutex::new(sessions),
        };
        Ok(Self { inner: Arc::new(inner), checkpoints: Mutex::new(checkpoints) })
    }

    /// A session with a number that was never given out before.
    pub fn start_session(&self) -> Result<Session, KvError> {
        let mut sessions = self.inner.sessions();
        let mut slots = self.inner.gate.slots();
        if slots.len() >= SESSIONS_MAX {
            return Err(KvError::TooManySessions { limit: SESSIONS_MAX });
        }
        let id = sessions.next;
        sessions.next += 1;
        sessions.live.insert(id);
        let slot = Arc::new(Slot::new(id, 0, self.inner.gate.version()));
        slots.push(Arc::clone(&slot));
        drop((slots, sessions));
        Ok(Session::new(Arc::clone(&self.inner), slot))
    }

    /// The session of a number, which nobody holds, to go on with serial `next_serial`: that behind the last one that the store has.
    pub fn resume_session(&self, id: u64, next_serial: u64) -> Result<Session, KvError> {
        let mut sessions = self.inner.sessions();
        let slot = self.inner.gate.slots().iter().find(|slot| slot.id == id).cloned();
        let Some(slot) = slot else { return Err(KvError::UnknownSession { session: id }) };
        if sessions.live.contains(&id) {
            return Err(KvError::SessionInUse { session: id });
        }
        let expected = slot.serial() + 1;
        if next_serial != expected {
            return Err(KvError::SerialGap { session: id, expected, got: next_serial });
        }
        sessions.live.insert(id);
        drop(sessions);
        Ok(Session::new(Arc::clone(&self.inner), slot))
    }

    /// All sessions that are known, with their last serials: after recovery those of the checkpoint.
    #[must_use]
    pub fn sessions(&self) -> Vec<(u64, u64)> {
        let mut serials: Vec<_> = self.inner.gate.slots().iter().map(|slot| (slot.id, slot.serial())).collect();
        serials.sort_unstable();
        serials
    }

    /// Forgets the serial of a session that nobody holds. Its changes stay.
    pub fn forget_session(&self, id: u64) -> Result<(), KvError> {
        let sessions = self.inner.sessions();
        if sessions.live.contains(&id) {
            return Err(KvError::SessionInUse { session: id });
        }
        let mut slots = self.inner.gate.slots();
        let before = slots.len();
        slots.retain(|slot| slot.id != id);
        if slots.len() == before { Err(KvError::UnknownSession { session: id }) } else { Ok(()) }
    }

    /// Takes a checkpoint while sessions go on, and makes it durable. `timeout` bounds the wait for batches that run when it begins:
    /// sessions that are idle or dropped aren't waited for.
    pub fn checkpoint(&self, timeout: Duration) -> Result<KvCheckpoint, KvError> {
        let mut checkpoints = match self.checkpoints.try_lock() {
            Ok(checkpoints) => checkpoints,
            Err(TryLockError::WouldBlock) => return Err(KvError::Busy),
            Err(TryLockError::Poisoned(_)) => return Err(KvError::Poisoned),
        };
        let inner = &*self.inner;
        let result = Self::cut_and_write(inner, &mut checkpoints, timeout);
        inner.capturing.store(0, Ordering::SeqCst);
        if result.is_err() {
            inner.abandon_captures();
        }
        let (checkpoint, serials) = result?;
        for slot in inner.gate.slots().iter() {
            if let Ok(at) = serials.binary_search_by_key(&slot.id, |(id, _)| *id) {
                slot.durable.fetch_max(serials[at].1, Ordering::Release);
            }
        }
        Ok(KvCheckpoint { version: checkpoint.version(), records: checkpoint.records(), serials })
    }

    /// The checkpoint, and the serials in it. After an error captures may be left.
    fn cut_and_write(
        inner: &Inner,
        checkpoints: &mut Checkpoints<D>,
        timeout: Duration,
    ) -> Result<(Checkpoint, Vec<(u64, u64)>), KvError> {
        let count = inner.options.shards;
        inner.base.store(checkpoints.base(count).unwrap_or(0), Ordering::SeqCst);
        *inner.rewrites.lock().unwrap_or_else(PoisonError::into_inner) = checkpoints.parts_to_rewrite();
        // From here on a batch of the new version that comes to a shard cuts it first.
        let next = inner.gate.version() + 1;
        inner.capturing.store(next, Ordering::SeqCst);
        let version = inner.gate.raise();
        debug_assert_eq!(version, next, "versions are raised by checkpoints alone, one at a time");
        if !inner.gate.wait_drained(version, timeout) {
            return Err(KvError::Timeout { waited_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) });
        }
        let mut cuts = Vec::with_capacity(inner.shards.len());
        for shard in 0..inner.shards.len() {
            let mut locked = inner.lock(shard, version)?;
            if bugs::is_on(Bug::ShardsCutLate) {
                inner.cut(shard, &mut locked, version)?;
            }
            let Some(cut) = locked.cut.take().filter(|cut| cut.version == version) else {
                unreachable!("each shard is cut for a version once, while that is captured")
            };
            cuts.push(cut);
        }
        inner.capturing.store(0, Ordering::SeqCst);
        let serials = inner.gate.divide_all(version);
        let next_session = inner.sessions().next;
        let table = SessionTable { value_bytes: inner.options.value_bytes as u32, next_session, serials };
        let mut writer = checkpoints.begin(version, count)?;
        for (cut, part) in cuts.iter().zip((0..count).map(Part::Vnode)) {
            writer.begin_part(part, cut.kind);
        }
        writer.begin_part(Part::Ordered, CaptureKind::Whole);
        // A slice of each shard in turn: nobody who waits for one shard waits for more than a slice.
        let mut left: Vec<usize> = (0..inner.shards.len()).collect();
        let mut blocks = Vec::new();
        while !left.is_empty() {
            let mut at = 0;
            while at < left.len() {
                let mut locked = inner.shards[left[at]].lock().map_err(|_| KvError::Poisoned)?;
                let before = locked.shard.used_bytes();
                let more = locked.shard.capture_slice(SLICE_BYTES, &mut blocks);
                inner.account(before, locked.shard.used_bytes());
                drop(locked);
                blocks.drain(..).try_for_each(|block| writer.push(&block))?;
                if more {
                    at += 1;
                } else {
                    writer.end_vnode(left.swap_remove(at) as u32)?;
                }
            }
        }
        let records = cuts.iter().map(|cut| cut.records).sum();
        let checkpoint = writer.commit(records, &table.encode())?;
        Ok((checkpoint, table.serials))
    }

    /// Calls `f` for each key and value, shard by shard: each shard stands meanwhile, and others change.
    pub fn for_each(&self, mut f: impl FnMut(&[u8], &[u8])) -> Result<(), KvError> {
        for shard in 0..self.inner.shards.len() {
            let mut locked = self.inner.shards[shard].lock().map_err(|_| KvError::Poisoned)?;
            let table = locked.shard.point(TABLE, self.inner.options.value_bytes);
            let (mut cursor, mut found) = (Some(0), Vec::new());
            while let Some(at) = cursor {
                found.clear();
                cursor = table.scan(at, 1024, &mut found);
                found.iter().for_each(|record| f(table.key(*record), table.value(*record)));
            }
        }
        Ok(())
    }

    /// How many keys there are, by a look at each shard.
    pub fn len(&self) -> Result<usize, KvError> {
        let mut sum = 0;
        for shard in &self.inner.shards {
            sum += shard.lock().map_err(|_| KvError::Poisoned)?.shard.point(TABLE, self.inner.options.value_bytes).len();
        }
        Ok(sum)
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> Result<bool, KvError> {
        self.len().map(|keys| keys == 0)
    }

    /// The memory that all shards hold.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.inner.used_bytes.load(Ordering::Relaxed)
    }

    /// How many shards.
    #[must_use]
    pub fn shards(&self) -> u32 {
        self.inner.options.shards
    }

    /// The device; sessions that live on work in memory alone.
    pub fn into_device(self) -> Result<D, KvError> {
        Ok(self.checkpoints.into_inner().map_err(|_| KvError::Poisoned)?.into_device())
    }
}
