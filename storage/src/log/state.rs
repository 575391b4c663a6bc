//! What a log knows beside its records: where it begins, and its named iterators.
//!
//! Payload of a control record, little endian: kind 3 (1 byte), version 1 (1), zero (2), number of iterators (4), begin (8), then for each
//! iterator, by name: position (8), name bytes (4), name in UTF-8. The newest one in the log counts; every segment begins with one.

use std::collections::BTreeMap;

use crate::segment::{LogError, Lsn};

/// Most iterators of a log.
pub const ITERATORS_MAX: usize = 64;
/// Longest name of an iterator, in bytes.
pub const ITERATOR_NAME_BYTES_MAX: usize = 128;

const KIND: u8 = 3;
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 16;
const ITERATOR_BYTES: usize = 12;

/// Begin and iterators.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct LogState {
    pub(crate) begin: u64,
    pub(crate) iterators: BTreeMap<String, u64>,
}

impl LogState {
    /// The same with an iterator set.
    pub(super) fn with_iterator(&self, name: &str, position: Lsn) -> Result<Self, LogError> {
        let refused = |because: String| Err(LogError::Iterator { name: name.to_owned(), because });
        if name.is_empty() || name.len() > ITERATOR_NAME_BYTES_MAX {
            return refused(format!("a name has 1 to {ITERATOR_NAME_BYTES_MAX} bytes"));
        }
        let mut state = self.clone();
        state.iterators.insert(name.to_owned(), position.0);
        if state.iterators.len() > ITERATORS_MAX {
            return refused(format!("a log has {ITERATORS_MAX} iterators at most: remove one first"));
        }
        Ok(state)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![KIND, VERSION, 0, 0];
        bytes.extend_from_slice(&(self.iterators.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.begin.to_le_bytes());
        for (name, position) in &self.iterators {
            bytes.extend_from_slice(&position.to_le_bytes());
            bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
            bytes.extend_from_slice(name.as_bytes());
        }
        bytes
    }

    /// `None` when it is none.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let (header, mut rest) = payload.split_at_checked(HEADER_BYTES)?;
        let count = u32::from_le_bytes(header[4..8].try_into().ok()?) as usize;
        if header[..4] != [KIND, VERSION, 0, 0] || count > ITERATORS_MAX {
            return None;
        }
        let mut iterators = BTreeMap::new();
        for _ in 0..count {
            let (fields, behind) = rest.split_at_checked(ITERATOR_BYTES)?;
            let position = u64::from_le_bytes(fields[..8].try_into().ok()?);
            let bytes = u32::from_le_bytes(fields[8..].try_into().ok()?) as usize;
            if bytes > ITERATOR_NAME_BYTES_MAX {
                return None;
            }
            let (name, behind) = behind.split_at_checked(bytes)?;
            iterators.insert(std::str::from_utf8(name).ok()?.to_owned(), position);
            rest = behind;
        }
        let begin = u64::from_le_bytes(header[8..].try_into().ok()?);
        (rest.is_empty() && iterators.len() == count).then_some(Self { begin, iterators })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn anything_decodes_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), known in any::<bool>()) {
            if known && bytes.len() > 8 {
                bytes[..8].copy_from_slice(&[3, 1, 0, 0, 2, 0, 0, 0]);
            }
            let _ = LogState::decode(&bytes);
        }

        #[test]
        fn states_come_back(begin in any::<u64>(), iterators in prop::collection::btree_map("[a-zä]{1,9}", any::<u64>(), 0..5)) {
            let state = LogState { begin, iterators };
            let bytes = state.encode();
            prop_assert_eq!(LogState::decode(&bytes), Some(state));
            prop_assert_eq!(LogState::decode(&bytes[..bytes.len() - 1]), None);
        }
    }

    #[test]
    fn names_and_their_number_are_bounded() {
        let mut state = LogState::default();
        assert!(state.with_iterator("", Lsn(0)).is_err());
        assert!(state.with_iterator(&"x".repeat(ITERATOR_NAME_BYTES_MAX + 1), Lsn(0)).is_err());
        for i in 0..ITERATORS_MAX {
            state = state.with_iterator(&format!("{i}"), Lsn(i as u64)).unwrap();
        }
        assert!(matches!(state.with_iterator("one more", Lsn(0)), Err(LogError::Iterator { .. })));
        assert!(state.with_iterator("7", Lsn(99)).is_ok());
    }
}
