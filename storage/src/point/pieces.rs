//! Lists that grow and go in pieces, so that no change of a record pays for the length of a list: nothing that is in one is ever copied, and
//! nothing large is freed at once.

use std::collections::VecDeque;

/// A piece is at most this long, unless one item is longer. Below what allocators map for its own.
const PIECE_BYTES: usize = 48 << 10;

/// Room in a piece for `more` items: a piece that grows from nothing doubles, and stops at `most`, unless it needs more.
fn make_room<T>(piece: &mut Vec<T>, more: usize, most: usize) {
    let needed = piece.len() + more;
    if needed > piece.capacity() {
        let room = (2 * piece.capacity()).min(most).max(needed);
        piece.reserve_exact(room - piece.len());
    }
}

/// A stack of small items.
#[derive(Debug)]
pub(super) struct Stack<T> {
    /// None is empty; all but the last are full.
    pieces: Vec<Vec<T>>,
    len: usize,
    allocated_bytes: usize,
}

impl<T> Default for Stack<T> {
    fn default() -> Self {
        Self { pieces: Vec::new(), len: 0, allocated_bytes: 0 }
    }
}

impl<T> Stack<T> {
    /// Items of a piece.
    const ITEMS: usize = PIECE_BYTES / size_of::<T>();

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Memory of the pieces.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.allocated_bytes
    }

    pub(super) fn push(&mut self, item: T) {
        if self.pieces.last().is_none_or(|piece| piece.len() >= Self::ITEMS) {
            // The first grows from nothing: most lists are short.
            self.pieces.push(if self.pieces.is_empty() { Vec::new() } else { Vec::with_capacity(Self::ITEMS) });
            self.allocated_bytes += self.pieces.last().map_or(0, |p| p.capacity() * size_of::<T>());
        }
        if let Some(piece) = self.pieces.last_mut() {
            let before = piece.capacity();
            make_room(piece, 1, Self::ITEMS);
            piece.push(item);
            self.allocated_bytes += (piece.capacity() - before) * size_of::<T>();
            self.len += 1;
        }
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let piece = self.pieces.last_mut()?;
        let item = piece.pop();
        self.len -= usize::from(item.is_some());
        if piece.is_empty() {
            self.free_piece();
        }
        item
    }

    /// The item that comes `distance` after the next one, if it is in the same piece.
    pub(super) fn ahead(&self, distance: usize) -> Option<&T> {
        let piece = self.pieces.last()?;
        piece.get(piece.len().checked_sub(1 + distance)?)
    }

    /// Forgets the items of one piece; whether there was one.
    pub(super) fn free_piece(&mut self) -> bool {
        let Some(piece) = self.pieces.pop() else { return false };
        self.len -= piece.len();
        self.allocated_bytes -= piece.capacity() * size_of::<T>();
        true
    }
}

/// A queue of byte strings that know their own lengths.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// None is empty, unless it is the only one: that is kept for what comes. A byte string is in one of them alone.
    pieces: VecDeque<Vec<u8>>,
    /// Bytes of the first that were taken.
    taken: usize,
    len_bytes: usize,
    allocated_bytes: usize,
}

impl Queue {
    /// Bytes that aren't taken.
    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Memory of the pieces.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.allocated_bytes
    }

    /// Appends a byte string made of these parts.
    pub(super) fn push(&mut self, parts: &[&[u8]]) {
        let bytes = parts.iter().map(|part| part.len()).sum();
        let piece = self.piece_for(bytes);
        parts.iter().for_each(|part| piece.extend_from_slice(part));
    }

    /// Appends a byte string.
    #[inline(always)]
    pub(super) fn push_one(&mut self, bytes: &[u8]) {
        if let Some(piece) = self.pieces.back_mut()
            && piece.capacity() - piece.len() >= bytes.len()
        {
            self.len_bytes += bytes.len();
            piece.extend_from_slice(bytes);
            return;
        }
        self.piece_for(bytes.len()).extend_from_slice(bytes);
    }

    /// A piece with room for a byte string, which is counted in.
    #[cold]
    fn piece_for(&mut self, bytes: usize) -> &mut Vec<u8> {
        self.len_bytes += bytes;
        if self.pieces.back().is_some_and(|piece| piece.is_empty() && bytes > PIECE_BYTES) {
            self.free_piece();
        }
        if self.pieces.back().is_none_or(|piece| piece.len() + bytes > PIECE_BYTES) {
            let room = if self.pieces.is_empty() { bytes } else { PIECE_BYTES.max(bytes) };
            self.pieces.push_back(Vec::with_capacity(room));
            self.allocated_bytes += self.pieces.back().map_or(0, Vec::capacity);
        }
        let Some(piece) = self.pieces.back_mut() else { unreachable!("there is one: the last that was pushed") };
        let before = piece.capacity();
        make_room(piece, bytes, PIECE_BYTES);
        self.allocated_bytes += piece.capacity() - before;
        piece
    }

    /// The rest of the first piece, which begins with the next byte string; nothing when there is none.
    pub(super) fn front(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| &piece[self.taken..])
    }

    /// The next byte string was so long, and is taken.
    pub(super) fn take(&mut self, bytes: usize) {
        self.taken += bytes;
        self.len_bytes -= bytes;
        let is_only = self.pieces.len() == 1;
        match self.pieces.front_mut() {
            Some(piece) if self.taken < piece.len() => {}
            // Used again: a list that comes and goes all the time isn't made anew each time.
            Some(piece) if is_only && piece.capacity() <= PIECE_BYTES => {
                piece.clear();
                self.taken = 0;
            }
            Some(_) => drop(self.free_piece()),
            None => {}
        }
    }

    /// Forgets what is left of the first piece; whether there was one.
    pub(super) fn free_piece(&mut self) -> bool {
        let Some(piece) = self.pieces.pop_front() else { return false };
        self.len_bytes -= piece.len().saturating_sub(self.taken);
        self.allocated_bytes -= piece.capacity();
        self.taken = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn a_stack_gives_back_what_was_pushed_last(steps in prop::collection::vec((0_usize..9000, 0_usize..9000), 1..6)) {
            let (mut stack, mut model, mut next) = (Stack::default(), Vec::new(), 0_u64);
            for (pushes, pops) in steps {
                for _ in 0..pushes {
                    stack.push(next);
                    model.push(next);
                    next += 1;
                }
                for _ in 0..pops {
                    let ahead = stack.ahead(3).copied();
                    prop_assert!(ahead.is_none() || ahead == model.len().checked_sub(4).map(|at| model[at]));
                    prop_assert_eq!(stack.pop(), model.pop());
                }
                prop_assert_eq!((stack.len(), stack.is_empty()), (model.len(), model.is_empty()));
                prop_assert!(stack.allocated_bytes() >= stack.len() * 8 && stack.allocated_bytes() <= stack.len() * 16 + PIECE_BYTES);
            }
            while stack.free_piece() {}
            prop_assert_eq!((stack.len(), stack.allocated_bytes(), stack.pop()), (0, 0, None));
        }

        #[test]
        fn a_queue_gives_back_what_was_pushed_first(steps in prop::collection::vec((0_usize..4000, 0_usize..4000), 1..6), long in 0_usize..100_000) {
            let (mut queue, mut model, mut next) = (Queue::default(), VecDeque::new(), 0_usize);
            queue.push(&[&long.to_le_bytes(), &[]]);
            // One that is longer than a piece.
            queue.push(&[&vec![7; long + 1]]);
            queue.take(8);
            queue.take(long + 1);
            prop_assert!(queue.len_bytes() == 0 && queue.front().is_empty());
            prop_assert!(queue.allocated_bytes() <= PIECE_BYTES, "one piece is kept");
            for (pushes, pops) in steps {
                for _ in 0..pushes {
                    let (len, bytes) = ((next % 40).to_le_bytes(), vec![next as u8; next % 40]);
                    if next.is_multiple_of(2) {
                        queue.push(&[&len, &bytes]);
                    } else {
                        queue.push_one(&[len.as_slice(), &bytes].concat());
                    }
                    model.push_back(next);
                    next += 1;
                }
                for _ in 0..pops {
                    let Some(expected) = model.pop_front() else {
                        prop_assert!(queue.front().is_empty());
                        continue;
                    };
                    let front = queue.front();
                    let len = usize::from_le_bytes(front[..8].try_into().unwrap());
                    prop_assert_eq!(len, expected % 40);
                    prop_assert!(front[8..8 + len].iter().all(|b| *b == expected as u8));
                    queue.take(8 + len);
                }
                prop_assert_eq!(queue.len_bytes(), model.iter().map(|n| 8 + n % 40).sum::<usize>());
                prop_assert!(queue.allocated_bytes() <= 2 * queue.len_bytes() + 2 * PIECE_BYTES);
            }
            while queue.free_piece() {}
            prop_assert_eq!((queue.len_bytes(), queue.allocated_bytes()), (0, 0));
        }
    }
}
