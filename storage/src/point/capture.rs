//! What a table in memory held at a cut, taken piece by piece while the table goes on: whole, or what has changed since the cut before.
//!
//! ```text
//! cut: the interval's bit flips, two lists are swapped: nothing is walked
//! first change of a record after the cut ─▶ if the cut still wants it: its bytes are saved as they are ─▶ bit set, address noted
//! slice ─▶ removals, saved records, then records where they lie (by a cursor over the old pages, or from the list of changed ones)
//! ```
//! Records are told as they lie, in runs: whoever writes them takes them apart, on another thread.
//!
//! Two bits of a record's header say in which interval it was changed or made: one for the interval that runs, the other for the one that ended
//! at the cut. Which of them is which flips at each cut. While nothing is captured no record has the older bit. A capture of all walks the
//! pages that are older than the cut: what lies before its cursor, or has the newer bit, is none of its business any more. A capture of
//! changes takes the listed records that still have the older bit. Removals aren't in any record, so they are listed with their keys.
//!
//! Tables with a store have none of this: their pages are their checkpoints.

use super::log::{LIVE, Lengths, Log, RECORD_BYTES_MIN};
use super::pieces::{Queue, Stack};
use crate::bugs::{self, Bug};

/// The bits of the two intervals.
const CHANGED_EVEN: u64 = 16;
const CHANGED_ODD: u64 = 32;
/// Both.
pub(super) const CHANGED: u64 = CHANGED_EVEN | CHANGED_ODD;
/// Changes are listed up to this many, and one for so many bytes of records: beyond, a capture of all is the better one.
const LISTED_MIN: usize = 4096;
const BYTES_A_LISTED: usize = 64;
/// A record that is only looked at counts as this much of a slice.
const LOOK_BYTES: usize = 16;
/// Records are told in runs of at most about this.
const RUN_BYTES: usize = 16 << 10;

/// A record's place: address (40 bits) and the number of its page (56 bits), as slots are used again.
#[derive(Clone, Copy, Debug)]
struct Noted([u32; 3]);

impl Noted {
    fn new(address: u64, number: u64) -> Self {
        Self([address as u32, ((address >> 32) as u32 & 0xFF) | (number as u32) << 8, (number >> 24) as u32])
    }

    fn parts(self) -> (u64, u64) {
        let [low, middle, high] = self.0;
        (u64::from(low) | u64::from(middle & 0xFF) << 32, u64::from(middle >> 8) | u64::from(high) << 24)
    }
}

/// Bytes before a removed key.
const REMOVAL_BYTES: usize = 12;

/// Keys that were removed: hash (8), key bytes (4), key.
#[derive(Debug, Default)]
struct Removals(Queue);

impl Removals {
    fn push(&mut self, hash: u64, key: &[u8]) {
        let len = u32::try_from(key.len()).expect("a key is shorter than 64 MiB");
        self.0.push(&[&hash.to_ne_bytes(), &len.to_ne_bytes(), key]);
    }

    /// Some of them, one behind the other, until that has come to `bytes`; nothing when there are none.
    fn run(&self, bytes: usize) -> &[u8] {
        let front = self.0.front();
        let mut end = 0;
        while end < bytes
            && let Some((_, key)) = removal_at(&front[end..])
        {
            end += REMOVAL_BYTES + key.len();
        }
        &front[..end]
    }
}

/// Hash and key of the first of removed keys.
fn removal_at(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<REMOVAL_BYTES>()?;
    let hash = u64::from_ne_bytes(header[..8].try_into().ok()?);
    let len = u32::from_ne_bytes(header[8..].try_into().ok()?) as usize;
    Some((hash, rest.get(..len)?))
}

/// Calls `f` with hash and key of each of the removed keys that a capture told.
pub(crate) fn read_removals(mut bytes: &[u8], mut f: impl FnMut(u64, &[u8])) {
    while let Some((hash, key)) = removal_at(bytes) {
        f(hash, key);
        bytes = &bytes[REMOVAL_BYTES + key.len()..];
    }
    assert!(bytes.is_empty(), "what a capture gave is whole keys");
}

/// Records at the front of `bytes`, until they have come to `limit`.
fn run_of_records(bytes: &[u8], limit: usize) -> &[u8] {
    let mut end = 0;
    while end < limit
        && let Some(lengths) = Lengths::at(bytes, end)
    {
        end += lengths.size();
    }
    &bytes[..end]
}

/// Records that were changed since a table's last cut, and the capture that runs.
#[derive(Debug)]
pub(super) struct Track {
    /// Of the interval that runs.
    changed: Stack<Noted>,
    removed: Removals,
    /// Lists that are of no use any more; they are freed piece by piece.
    stale: Stale,
    /// The table was cleared since the last cut.
    is_cleared: bool,
    /// More was changed than is listed.
    is_overflowed: bool,
    capture: Option<Box<Capture>>,
}

#[derive(Debug, Default)]
struct Stale {
    changed: Stack<Noted>,
    removed: Removals,
}

impl Stale {
    /// Frees one piece.
    #[inline(always)]
    fn free_piece(&mut self) {
        let _ = self.changed.free_piece() || self.removed.0.free_piece();
    }
}

impl Track {
    fn new(capture: Option<Box<Capture>>, stale: Stale) -> Self {
        Self { changed: Stack::default(), removed: Removals::default(), stale, is_cleared: false, is_overflowed: false, capture }
    }

    /// Notes a change in the interval that runs; `live_bytes`: of the table.
    #[inline(always)]
    fn list_change(&mut self, address: u64, number: u64, live_bytes: usize) {
        self.stale.free_piece();
        if self.is_overflowed {
            return;
        }
        self.changed.push(Noted::new(address, number));
        if self.changed.len() > LISTED_MIN + live_bytes / BYTES_A_LISTED || number >> 56 != 0 {
            self.is_overflowed = true;
            self.forget_lists();
        }
    }

    /// A record, with which `record` begins, is about to be changed, moved or freed for the first time since the cut: saves what the cut wants
    /// of it. Its flags then.
    #[inline(always)]
    fn save_if_wanted(&mut self, record: &mut [u8], touch: u64, place: (usize, usize), number: u64) -> u64 {
        let word = Log::word(record, 0);
        if let Some(capture) = &mut self.capture
            && capture.wants(word, touch, place, number)
        {
            let record = &mut record[..Lengths::of(word).size()];
            // What is saved is of the cut; which bits it had says nothing any more.
            Log::set_word(record, 0, word & !CHANGED);
            capture.saved.push_one(record);
            let now = word & !(CHANGED ^ touch);
            Log::set_word(record, 0, now);
            return now;
        }
        word
    }

    /// Gives the lists of the interval up.
    fn forget_lists(&mut self) {
        // What was stale before is the lists of an earlier interval, or of one that was cleared: there is seldom anything.
        self.stale = Stale { changed: std::mem::take(&mut self.changed), removed: std::mem::take(&mut self.removed) };
    }
}

#[derive(Debug)]
struct Capture {
    is_whole: bool,
    /// Pages numbered so or higher were made after the cut.
    below: u64,
    /// Where the walk over pages is: slot and offset.
    cursor: (usize, usize),
    changed: Stack<Noted>,
    removed: Removals,
    is_cleared: bool,
    /// Old images of records that were changed after the cut: whole records.
    saved: Queue,
    /// The pages, when the table was cleared after the cut.
    cleared: Option<Box<Log>>,
}

/// Something that a capture tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Captured<'a> {
    /// Whatever the table held before is gone.
    Cleared,
    /// These keys are gone, for [`read_removals`]. Comes before records.
    Removed(&'a [u8]),
    /// Whole records as on a page, for [`read_page`](super::read_page): their keys have these values. Flags that captures use mean nothing.
    Records(&'a [u8]),
}

impl Capture {
    /// Whether a record, whose header and place these are, is still to be taken as it is.
    fn wants(&self, word: u64, touch: u64, place: (usize, usize), number: u64) -> bool {
        if bugs::is_on(Bug::CaptureSavesNothing) {
            return false;
        }
        let of_cut = number < self.below && self.cleared.is_none();
        of_cut && if self.is_whole { place >= self.cursor && word & touch == 0 } else { word & (CHANGED ^ touch) != 0 }
    }
}

impl Log {
    /// Begins an interval and captures the one before: all that there was, or its changes. Whether it is all: changes are known only from one
    /// cut to the next, and only while they are few. Nothing is being captured.
    pub(super) fn begin_capture_of_records(&mut self, wants_whole: bool) -> bool {
        debug_assert!(self.cold.is_none(), "pages are the checkpoints of a table with a store");
        let before = self.track.take();
        debug_assert!(before.as_ref().is_none_or(|t| t.capture.is_none()), "one capture at a time");
        let mut capture = Capture {
            is_whole: wants_whole || before.as_ref().is_none_or(|t| t.is_overflowed),
            below: self.next_number,
            cursor: (0, 0),
            changed: Stack::default(),
            removed: Removals::default(),
            is_cleared: false,
            saved: Queue::default(),
            cleared: None,
        };
        let mut stale = Stale::default();
        if let Some(mut before) = before {
            stale = std::mem::take(&mut before.stale);
            if !capture.is_whole {
                (capture.changed, capture.removed, capture.is_cleared) = (before.changed, before.removed, before.is_cleared);
            } else if !before.is_overflowed {
                stale = Stale { changed: before.changed, removed: before.removed };
            }
        }
        let is_whole = capture.is_whole;
        self.touch = if self.touch == CHANGED_EVEN { CHANGED_ODD } else { CHANGED_EVEN };
        self.track = Some(Box::new(Track::new(Some(Box::new(capture)), stale)));
        is_whole
    }

    /// Whether the next capture can be one of changes.
    pub(super) fn knows_changes(&self) -> bool {
        self.track.as_ref().is_some_and(|t| !t.is_overflowed)
    }

    /// Notes changes from now on, as after a cut of an empty table.
    pub(super) fn track_changes(&mut self) {
        debug_assert!(self.pages.is_empty() && self.track.is_none());
        self.touch = CHANGED_EVEN;
        self.track = Some(Box::new(Track::new(None, Stale::default())));
    }

    /// Memory of lists and of old images.
    pub(super) fn track_bytes(&self) -> usize {
        let lists = |changed: &Stack<Noted>, removed: &Removals| changed.allocated_bytes() + removed.0.allocated_bytes();
        let of = |t: &Track| {
            let capture = t.capture.as_ref().map_or(0, |c| {
                let cleared = c.cleared.as_ref().map_or(0, |l| l.allocated_bytes());
                size_of::<Capture>() + lists(&c.changed, &c.removed) + c.saved.allocated_bytes() + cleared
            });
            size_of::<Track>() + lists(&t.changed, &t.removed) + lists(&t.stale.changed, &t.stale.removed) + capture
        };
        self.track.as_deref().map_or(0, of)
    }

    // === what the log tells

    /// Saves what the cut wants of a record that is about to be moved or freed; its flags then.
    fn save_if_wanted(&mut self, track: &mut Track, address: u64) -> u64 {
        let (slot, offset) = self.split(address);
        let touch = self.touch;
        let page = &mut self.pages[slot];
        let Some(buffer) = page.buffer.get_mut() else { unreachable!("pages of a table without a store are in memory") };
        track.save_if_wanted(&mut buffer.bytes_mut()[offset..], touch, (slot, offset), page.number)
    }

    fn list_change(&self, track: &mut Track, address: u64) {
        let number = self.pages[self.split(address).0].number;
        track.list_change(address, number, self.live_bytes);
    }

    /// The record will be changed where it is, for the first time in this interval.
    #[cold]
    pub(super) fn note_change(&mut self, address: u64) {
        let (slot, offset) = self.split(address);
        let (touch, live_bytes) = (self.touch, self.live_bytes);
        let (Some(track), page) = (self.track.as_deref_mut(), &mut self.pages[slot]) else { return };
        let Some(buffer) = page.buffer.get_mut() else { unreachable!("pages of a table without a store are in memory") };
        let record = &mut buffer.bytes_mut()[offset..];
        let word = track.save_if_wanted(record, touch, (slot, offset), page.number);
        Self::set_word(record, 0, word | touch);
        track.list_change(address, page.number, live_bytes);
    }

    /// The record was made; its header has the interval's bit.
    pub(super) fn note_new(&mut self, address: u64) {
        let Some(mut track) = self.track.take() else { return };
        self.list_change(&mut track, address);
        self.track = Some(track);
    }

    /// The record will be freed.
    pub(super) fn note_removal(&mut self, address: u64) {
        let Some(mut track) = self.track.take() else { return };
        self.save_if_wanted(&mut track, address);
        if !track.is_overflowed && !bugs::is_on(Bug::ChangesForgetRemovals) {
            track.removed.push(self.hash(address), self.key(address));
            // As many bytes as the records may take are a reason to write all of these instead.
            if track.removed.0.len_bytes() > LISTED_MIN * BYTES_A_LISTED + self.live_bytes {
                track.is_overflowed = true;
                track.forget_lists();
            }
        }
        self.track = Some(track);
    }

    /// The record will be moved, with its header.
    pub(super) fn note_move(&mut self, from: u64) {
        let Some(mut track) = self.track.take() else { return };
        let place = self.split(from);
        let (word, number) = (self.lengths(from).word(), self.pages[place.0].number);
        if track.capture.as_ref().is_some_and(|c| c.wants(word, self.touch, place, number)) {
            self.save_if_wanted(&mut track, from);
            // Where it comes to lie the walk may not have been yet.
            self.set_flags(from, self.lengths(from).word() | self.touch);
        }
        self.track = Some(track);
    }

    /// The record was moved here.
    pub(super) fn note_moved(&mut self, to: u64) {
        if self.lengths(to).is(self.touch)
            && let Some(mut track) = self.track.take()
        {
            self.list_change(&mut track, to);
            self.track = Some(track);
        }
    }

    /// All pages are gone: `before` is the log that had them, this one is new.
    pub(super) fn note_clear(&mut self, mut before: Self) {
        let Some(mut track) = before.track.take() else { return };
        (self.touch, self.next_number) = (before.touch, before.next_number);
        if !track.is_overflowed {
            track.forget_lists();
        }
        (track.is_cleared, track.is_overflowed) = (true, false);
        if let Some(capture) = &mut track.capture
            && capture.cleared.is_none()
        {
            capture.cleared = Some(Box::new(before));
        }
        self.track = Some(track);
    }

    // === slices

    /// Tells `f` some more of what is captured, until that has come to about `bytes`, which it counts down. Whether there is more.
    pub(super) fn capture_slice(&mut self, bytes: &mut usize, mut f: impl FnMut(Captured<'_>)) -> bool {
        let Some(mut track) = self.track.take() else { return false };
        track.stale.free_piece();
        let more = match &mut track.capture {
            Some(capture) => self.slice(capture, bytes, &mut f),
            None => false,
        };
        if !more {
            track.capture = None;
        }
        self.track = Some(track);
        more
    }

    fn slice(&mut self, capture: &mut Capture, bytes: &mut usize, f: &mut impl FnMut(Captured<'_>)) -> bool {
        if capture.is_whole || capture.is_cleared {
            if !capture.is_whole {
                f(Captured::Cleared);
            }
            capture.is_cleared = false;
        }
        loop {
            let run = capture.removed.run((*bytes).min(RUN_BYTES));
            if run.is_empty() {
                break;
            }
            f(Captured::Removed(run));
            let run_bytes = run.len();
            capture.removed.0.take(run_bytes);
            *bytes = bytes.saturating_sub(run_bytes);
            if *bytes == 0 {
                return true;
            }
        }
        loop {
            let run = run_of_records(capture.saved.front(), (*bytes).min(RUN_BYTES));
            if run.is_empty() {
                break;
            }
            f(Captured::Records(run));
            let run_bytes = run.len();
            capture.saved.take(run_bytes);
            *bytes = bytes.saturating_sub(run_bytes);
            if *bytes == 0 {
                return true;
            }
        }
        let mut cleared = capture.cleared.take();
        let pages: &mut Self = cleared.as_deref_mut().unwrap_or(self);
        let more = if capture.is_whole { pages.walk(capture, bytes, f) } else { pages.take_listed(capture, bytes, f) };
        if more {
            capture.cleared = cleared;
        }
        more
    }

    /// Goes on over the pages of before the cut.
    fn walk(&mut self, capture: &mut Capture, bytes: &mut usize, f: &mut impl FnMut(Captured<'_>)) -> bool {
        let touch = self.touch;
        let (mut slot, mut offset) = capture.cursor;
        while let Some(page) = self.pages.get_mut(slot) {
            let (used, of_cut) = (page.used, page.in_use && page.number < capture.below);
            if of_cut && let Some(buffer) = page.buffer.get_mut() {
                let records = buffer.bytes_mut();
                while offset + RECORD_BYTES_MIN <= used {
                    if *bytes == 0 {
                        capture.cursor = (slot, offset);
                        return true;
                    }
                    // A run of records that are wanted, at least one unless the first isn't.
                    let (start, limit) = (offset, (*bytes).min(RUN_BYTES));
                    while offset - start < limit && offset + RECORD_BYTES_MIN <= used {
                        let word = Self::word(records, offset);
                        if word & (LIVE | touch) != LIVE {
                            break;
                        }
                        if word & CHANGED != 0 {
                            Self::set_word(&mut records[offset..], 0, word & !CHANGED);
                        }
                        offset += Lengths::of(word).size();
                    }
                    if offset > start {
                        f(Captured::Records(&records[start..offset]));
                        *bytes = bytes.saturating_sub(offset - start);
                    } else {
                        offset += Lengths::of(Self::word(records, offset)).size();
                        *bytes = bytes.saturating_sub(LOOK_BYTES);
                    }
                }
            }
            (slot, offset) = (slot + 1, 0);
            capture.cursor = (slot, 0);
        }
        false
    }

    /// Goes on with the records that were changed before the cut and not since.
    fn take_listed(&mut self, capture: &mut Capture, bytes: &mut usize, f: &mut impl FnMut(Captured<'_>)) -> bool {
        let older = CHANGED ^ self.touch;
        while let Some(noted) = capture.changed.pop() {
            // Ask for the record that comes some time later.
            if let Some(ahead) = capture.changed.ahead(11) {
                self.prefetch(ahead.parts().0);
            }
            let (address, number) = noted.parts();
            let (slot, offset) = self.split(address);
            let mut size = LOOK_BYTES;
            if let Some(page) = self.pages.get_mut(slot)
                && page.in_use
                && page.number == number
                && let Some(buffer) = page.buffer.get_mut()
            {
                let record = &mut buffer.bytes_mut()[offset..];
                let word = Self::word(record, 0);
                if word & (LIVE | older) == LIVE | older {
                    size = Lengths::of(word).size();
                    Self::set_word(record, 0, word & !older);
                    f(Captured::Records(&record[..size]));
                }
            }
            *bytes = bytes.saturating_sub(size);
            if *bytes == 0 && !capture.changed.is_empty() {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_records_come_back() {
        for (address, number) in [(0, 0), (1, 1), ((1 << 40) - 1, (1 << 56) - 1), (0x12_3456_789A, 0x00AB_CDEF_0123_4567)] {
            assert_eq!(Noted::new(address, number).parts(), (address, number));
        }
    }
}
