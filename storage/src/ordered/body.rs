//! The entries of a block.
//!
//! They lie in the order of their arrival, `key length u32 | value length u32 | key | value`; `slots` holds where each begins, in the order of
//! the keys. So an insertion moves four bytes a neighbour, not the entries. Written to the device they lie in the order of their keys.

const ENTRY_HEADER_BYTES: usize = 8;

#[derive(Clone, Debug, Default)]
pub(super) struct Body {
    entries: Vec<u8>,
    slots: Vec<u32>,
}

pub(super) fn entry_bytes(key: &[u8], value: &[u8]) -> usize {
    ENTRY_HEADER_BYTES + key.len() + value.len()
}

/// The first entry of encoded ones: key, value, and what is behind them. `None` when it is none.
pub(super) fn split_entry(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (lengths, rest) = bytes.split_first_chunk::<ENTRY_HEADER_BYTES>()?;
    let length = |at: usize| Some(u32::from_le_bytes(lengths[at..at + 4].try_into().ok()?) as usize);
    let (key, rest) = rest.split_at_checked(length(0)?)?;
    let (value, rest) = rest.split_at_checked(length(4)?)?;
    Some((key, value, rest))
}

/// How many entries a block has that was written; `None` when it is none.
pub(crate) fn count_entries(bytes: Vec<u8>) -> Option<usize> {
    Body::decode(bytes).map(|body| body.len())
}

impl Body {
    /// An empty one with room for `bytes`. Powers of two, so that growth by doubling ends at the block's limit, which is one.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { entries: Vec::with_capacity(bytes.next_power_of_two()), slots: Vec::new() }
    }

    /// The entries of a block that was written; `None` when they are none, or don't ascend. A block has an entry.
    pub(super) fn decode(bytes: Vec<u8>) -> Option<Self> {
        let total = u32::try_from(bytes.len()).ok()?;
        let mut slots = Vec::new();
        let mut rest = bytes.as_slice();
        let mut previous: Option<&[u8]> = None;
        while !rest.is_empty() {
            // Both fit: the rest is no longer than all.
            slots.push(total - rest.len() as u32);
            let (key, _, behind) = split_entry(rest)?;
            if previous.is_some_and(|previous| previous >= key) {
                return None;
            }
            (previous, rest) = (Some(key), behind);
        }
        slots.shrink_to_fit();
        (!slots.is_empty()).then_some(Self { entries: bytes, slots })
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn filled_bytes(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        size_of::<Self>() + self.entries.capacity() + self.slots.capacity() * size_of::<u32>()
    }

    /// All entries in order: key length 4 · value length 4 · key · value.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.encoded_bytes());
        for slot in 0..self.slots.len() {
            let at = self.slots[slot] as usize;
            bytes.extend_from_slice(&self.entries[at..at + self.entry_len(slot)]);
        }
        bytes
    }

    pub(super) fn encoded_bytes(&self) -> usize {
        (0..self.slots.len()).map(|slot| self.entry_len(slot)).sum()
    }

    fn length(&self, at: usize) -> usize {
        u32::from_le_bytes(self.entries[at..at + 4].try_into().expect("four bytes")) as usize
    }

    #[inline(always)]
    pub(super) fn key(&self, slot: usize) -> &[u8] {
        let at = self.slots[slot] as usize;
        let start = at + ENTRY_HEADER_BYTES;
        &self.entries[start..start + self.length(at)]
    }

    #[inline(always)]
    pub(super) fn entry(&self, slot: usize) -> (&[u8], &[u8]) {
        let at = self.slots[slot] as usize;
        let (key, value) = (self.length(at), self.length(at + 4));
        self.entries[at + ENTRY_HEADER_BYTES..at + ENTRY_HEADER_BYTES + key + value].split_at(key)
    }

    pub(super) fn value_mut(&mut self, slot: usize) -> &mut [u8] {
        let at = self.slots[slot] as usize;
        let (key, value) = (self.length(at), self.length(at + 4));
        let start = at + ENTRY_HEADER_BYTES + key;
        &mut self.entries[start..start + value]
    }

    /// Where `key` is, or where it belongs.
    #[inline(always)]
    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.slots.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.key(middle).cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    pub(super) fn insert(&mut self, slot: usize, key: &[u8], value: &[u8]) {
        if self.slots.is_empty() {
            self.entries.clear();
        }
        let at = u32::try_from(self.entries.len()).expect("a block is shorter than 4 GiB: only its first entry can be large");
        let length = |bytes: &[u8]| {
            u32::try_from(bytes.len()).expect("keys and values were checked to be shorter than 4 GiB").to_le_bytes()
        };
        self.entries.extend_from_slice(&length(key));
        self.entries.extend_from_slice(&length(value));
        self.entries.extend_from_slice(key);
        self.entries.extend_from_slice(value);
        self.slots.insert(slot, at);
    }

    pub(super) fn remove(&mut self, slot: usize) {
        self.slots.remove(slot);
    }

    /// Forgets the first `count` entries.
    pub(super) fn remove_first(&mut self, count: usize) {
        self.slots.drain(..count);
    }

    /// The entries from `from` to `to`, packed, with room for `spare_bytes` more.
    pub(super) fn part(&self, from: usize, to: usize, spare_bytes: usize) -> Self {
        let bytes = (from..to).map(|slot| self.entry_len(slot)).sum::<usize>();
        let mut part = Self::with_capacity(bytes + spare_bytes);
        part.slots.reserve(to - from);
        part.append(self, from, to);
        part
    }

    /// Adds the entries from `from` to `to` of another one; its keys are above all of this one's.
    pub(super) fn append(&mut self, other: &Self, from: usize, to: usize) {
        for slot in from..to {
            let at = other.slots[slot] as usize;
            let new_at = self.entries.len() as u32;
            self.entries.extend_from_slice(&other.entries[at..at + other.entry_len(slot)]);
            self.slots.push(new_at);
        }
    }

    pub(super) fn entry_len(&self, slot: usize) -> usize {
        let at = self.slots[slot] as usize;
        ENTRY_HEADER_BYTES + self.length(at) + self.length(at + 4)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Bytes that may be entries in part: lengths that fit about, so that walking gets somewhere.
    fn nearly_entries() -> impl Strategy<Value = Vec<u8>> {
        let entry = (0_u32..12, 0_u32..12, prop::collection::vec(any::<u8>(), 0..24));
        prop::collection::vec(entry, 0..12).prop_map(|entries| {
            let of = |(key, value, rest): (u32, u32, Vec<u8>)| [&key.to_le_bytes()[..], &value.to_le_bytes(), &rest].concat();
            entries.into_iter().flat_map(of).collect()
        })
    }

    proptest! {
        #[test]
        fn anything_decodes_without_a_panic_and_only_ascending_entries_do(
            bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..200), nearly_entries()],
        ) {
            // The reference: entries one behind the other, each key above the one before.
            let (mut rest, mut keys, mut whole) = (bytes.as_slice(), Vec::new(), true);
            while whole && !rest.is_empty() {
                let length = |at: usize| rest.get(at..at + 4).map(|b| u32::from_le_bytes(b.try_into().unwrap()) as u64);
                match (length(0), length(4)) {
                    (Some(key), Some(value)) if 8 + key + value <= rest.len() as u64 => {
                        keys.push(rest[8..8 + key as usize].to_vec());
                        rest = &rest[8 + key as usize + value as usize..];
                    }
                    _ => whole = false,
                }
            }
            let right = whole && !keys.is_empty() && keys.windows(2).all(|two| two[0] < two[1]);
            match Body::decode(bytes.clone()) {
                Some(body) => {
                    prop_assert!(right);
                    prop_assert_eq!(body.len(), keys.len());
                    prop_assert_eq!(body.encode(), bytes);
                }
                None => prop_assert!(!right),
            }
        }

        #[test]
        fn what_is_encoded_comes_back(
            entries in prop::collection::btree_map(prop::collection::vec(any::<u8>(), 0..20), prop::collection::vec(any::<u8>(), 0..20), 1..30),
            order in any::<prop::sample::Index>(),
        ) {
            let mut body = Body::default();
            let mut keys: Vec<_> = entries.keys().collect();
            let turned = order.index(keys.len());
            keys.rotate_left(turned);
            for key in keys {
                let slot = body.search(key).unwrap_err();
                body.insert(slot, key, &entries[key]);
            }
            let back = Body::decode(body.encode()).unwrap();
            let held: BTreeMap<_, _> = (0..back.len()).map(|slot| back.entry(slot)).map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
            prop_assert_eq!(held, entries);
        }
    }
}
