//! A block of an ordered table: some keys with values, sorted, in memory or on the device alone.
//!
//! ```text
//! unwritten ─▶ written: has a frame ─▶ durable, so its body may go: the first key stays ─▶ read again by who needs it
//!     ▲─────────── changed ◀──────────────────────────────────────────────────────────────────────┘
//! ```

use std::cmp::Ordering;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering as Atomic};
use std::sync::{Arc, OnceLock};

use super::body::{Body, entry_bytes};
use super::held::Held;
use crate::bugs::{self, Bug};
use crate::store::FramePlace;

/// Where a block was written to, as it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockFrame {
    pub(super) place: FramePlace,
    pub(super) number: u64,
    /// It is durable once this batch is.
    pub(super) batch: u64,
}

#[derive(Debug)]
pub(super) struct Block {
    /// The first eight bytes of the first key, zero behind a shorter one's end, most significant first.
    fence: u64,
    /// The first key, since the body has been away; the body tells it otherwise.
    first: Option<Box<[u8]>>,
    /// Entries in it.
    len: usize,
    /// Bytes of entries that are in use.
    live_bytes: usize,
    /// Nothing while it is on the device alone.
    body: OnceLock<Box<Body>>,
    frame: OnceLock<BlockFrame>,
    /// How often whoever looks for blocks to evict passes by before this one is taken; [`USED`] after each use.
    passes_left: AtomicU8,
    /// What is counted for it.
    charged: AtomicUsize,
    held: Arc<Held>,
}

/// A block that was used stays for two turns that look for memory, so that what was fetched can be used after them.
const USED: u8 = 3;

/// What an `Arc` needs beside what is in it.
const ARC_BYTES: usize = 16;

/// The first eight bytes of a key as a number that orders as they do.
#[inline(always)]
pub(super) fn key_prefix(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(eight) => u64::from_be_bytes(*eight),
        None => key.iter().enumerate().fold(0, |prefix, (i, byte)| prefix | u64::from(*byte) << (56 - 8 * i)),
    }
}

impl Clone for Block {
    /// The copy is to be changed, so it isn't written anywhere.
    fn clone(&self) -> Self {
        Self::of_body(&self.held, self.body().clone())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.held.recharge(*self.charged.get_mut(), 0);
        if self.body.get().is_none() {
            self.held.came_back();
        }
        match self.frame.take() {
            Some(frame) => self.release(&frame),
            None => self.held.count_unwritten(false),
        }
    }
}

impl Block {
    /// A block of entries that no frame holds; there is at least one, or there will be at once.
    pub(super) fn of_body(held: &Arc<Held>, body: Body) -> Self {
        held.count_unwritten(true);
        let mut block = Self {
            fence: 0,
            first: None,
            len: 0,
            live_bytes: body.encoded_bytes(),
            body: OnceLock::from(Box::new(body)),
            frame: OnceLock::new(),
            passes_left: AtomicU8::new(USED),
            charged: AtomicUsize::new(0),
            held: Arc::clone(held),
        };
        block.settle();
        block
    }

    /// A block that recovery has found. The frame is the block's own from now on.
    pub(super) fn adopted(held: &Arc<Held>, body: Body, frame: BlockFrame) -> Self {
        let block = Self::of_body(held, body);
        block.written(frame);
        block.passes_left.store(0, Atomic::Relaxed);
        block
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        let body = self.body.get().map_or(0, |body| body.allocated_bytes());
        ARC_BYTES + size_of::<Self>() + body + self.first.as_ref().map_or(0, |first| first.len())
    }

    /// The length, the fence and what is counted follow the body.
    fn settle(&mut self) {
        if let Some(body) = self.body.get() {
            self.len = body.len();
            if self.len > 0 {
                self.fence = key_prefix(body.key(0));
            }
        }
        self.recharge();
    }

    /// Relaxed: there is one writer, and entries that are read again are put in through a shared reference.
    fn recharge(&self) {
        let (before, now) = (self.charged.load(Atomic::Relaxed), self.allocated_bytes());
        if now != before {
            self.held.recharge(before, now);
            self.charged.store(now, Atomic::Relaxed);
        }
    }

    // === in memory and away

    pub(super) fn is_resident(&self) -> bool {
        self.body.get().is_some()
    }

    /// The entries; of a block that is on the device alone they are read and waited for. There are none when that fails: the store knows why.
    #[inline(always)]
    pub(super) fn body(&self) -> &Body {
        match self.body.get() {
            Some(body) => {
                if self.passes_left.load(Atomic::Relaxed) != USED {
                    self.touch();
                }
                body
            }
            None => self.load(),
        }
    }

    /// The entries, if they are in memory; not as a use of them.
    pub(super) fn body_at_hand(&self) -> Option<&Body> {
        self.body.get().map(|body| &**body)
    }

    #[cold]
    fn load(&self) -> &Body {
        let read = self.frame.get().and_then(|frame| self.held.read_now(frame.number, frame.place));
        self.install(read.unwrap_or_default())
    }

    /// Puts back the entries that were read.
    pub(super) fn install(&self, body: Body) -> &Body {
        self.touch();
        let body = self.body.get_or_init(|| {
            self.held.came_back();
            Box::new(body)
        });
        self.recharge();
        body
    }

    /// Frees the entries of a block that is durable and isn't used just now; what that came to.
    pub(super) fn evict(&mut self) -> usize {
        let Some(body) = self.body.take() else { return 0 };
        if self.first.is_none() && body.len() > 0 {
            self.first = Some(body.key(0).into());
        }
        let freed = body.allocated_bytes();
        drop(body);
        self.held.went_away();
        self.recharge();
        freed
    }

    /// It is used, or will be.
    pub(super) fn touch(&self) {
        self.passes_left.store(USED, Atomic::Relaxed);
    }

    /// Whether it was used lately.
    pub(super) fn is_in_use(&self) -> bool {
        self.passes_left.load(Atomic::Relaxed) > 0
    }

    /// Somebody who looks for memory passes by.
    pub(super) fn pass(&self) {
        let left = self.passes_left.load(Atomic::Relaxed);
        self.passes_left.store(left.saturating_sub(1), Atomic::Relaxed);
    }

    pub(super) fn frame(&self) -> Option<&BlockFrame> {
        self.frame.get()
    }

    /// Tells where it was written to, unless that is known.
    pub(super) fn written(&self, frame: BlockFrame) {
        if self.frame.set(frame).is_ok() {
            self.held.count_unwritten(false);
        } else {
            self.release(&frame);
        }
    }

    fn release(&self, frame: &BlockFrame) {
        if let Some((store, _)) = self.held.store() {
            store.lock().release(&frame.place);
        }
    }

    /// What was written of it isn't it any more, or is to be written anew.
    #[inline(always)]
    pub(super) fn forget_frame(&mut self) {
        if self.frame.get().is_some()
            && let Some(frame) = self.frame.take()
        {
            self.release(&frame);
            self.held.count_unwritten(true);
        }
    }

    // === contents

    /// How the block's first key compares with `key`. The block isn't empty.
    #[inline(always)]
    pub(super) fn first_cmp(&self, key: &[u8], prefix: u64) -> Ordering {
        self.fence.cmp(&prefix).then_with(|| self.first_key().cmp(key))
    }

    /// The first key; of a block that couldn't be read and was evicted never, nothing.
    pub(super) fn first_key(&self) -> &[u8] {
        match (&self.first, self.body.get()) {
            (Some(first), _) => first,
            (None, Some(body)) if body.len() > 0 => body.key(0),
            (None, _) => &[],
        }
    }

    /// Changes the entries.
    pub(super) fn change<R>(&mut self, f: impl FnOnce(&mut Body, &mut usize) -> R) -> R {
        self.body();
        if !bugs::is_on(Bug::StaleBlocks) {
            self.forget_frame();
        }
        self.first = None;
        // `body` has seen to it that there is one.
        let body = self.body.get_mut().expect("a block whose entries were asked for has some, or an empty list of them");
        let result = f(body, &mut self.live_bytes);
        self.settle();
        result
    }

    pub(super) fn insert(&mut self, slot: usize, key: &[u8], value: &[u8]) {
        self.change(|body, live| {
            body.insert(slot, key, value);
            *live += entry_bytes(key, value);
        });
    }

    pub(super) fn remove(&mut self, slot: usize) {
        self.change(|body, live| {
            *live -= body.entry_len(slot);
            body.remove(slot);
        });
    }

    /// Forgets the first `count` entries.
    pub(super) fn remove_first(&mut self, count: usize) {
        self.change(|body, live| {
            *live -= (0..count).map(|slot| body.entry_len(slot)).sum::<usize>();
            body.remove_first(count);
        });
    }

    /// Packs the entries, with room for `spare_bytes` more.
    pub(super) fn pack(&mut self, spare_bytes: usize) {
        self.change(|body, _| *body = body.part(0, body.len(), spare_bytes));
    }

    /// Keeps the entries below `slot`; a block of the others.
    pub(super) fn split_off(&mut self, slot: usize) -> Self {
        let upper = self.body().part(slot, self.body().len(), 0);
        let upper = Self::of_body(&self.held, upper);
        self.change(|body, live| {
            *body = body.part(0, slot, 0);
            *live = body.encoded_bytes();
        });
        upper
    }

    /// Adds all entries of another block, whose keys are above all of this one's.
    pub(super) fn append(&mut self, other: &Self) {
        let other = other.body();
        self.change(|body, live| {
            let added = other.encoded_bytes();
            *body = body.part(0, body.len(), added);
            body.append(other, 0, other.len());
            *live += added;
        });
    }

    /// The slot at which about half of the bytes are before it; never 0 with two entries or more.
    pub(super) fn middle(&self) -> usize {
        let (body, mut bytes) = (self.body(), 0);
        for slot in 0..body.len() {
            bytes += body.entry_len(slot);
            if bytes * 2 >= self.live_bytes {
                return (slot + 1).clamp(1, (body.len() - 1).max(1));
            }
        }
        body.len()
    }
}
