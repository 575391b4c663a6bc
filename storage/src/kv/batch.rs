//! Keys of a batch, and their grouping by shard.

use twox_hash::XxHash3_64;

use crate::point::KeyBatch;

/// Keys, with their hashes (xxh3-64, seed 0).
#[derive(Clone, Debug)]
pub struct KvKeys {
    bytes: Vec<u8>,
    offsets: Vec<u32>,
    hashes: Vec<u64>,
    longest_bytes: usize,
}

impl Default for KvKeys {
    fn default() -> Self {
        Self { bytes: Vec::new(), offsets: vec![0], hashes: Vec::new(), longest_bytes: 0 }
    }
}

/// The hash of a key.
#[inline]
pub(super) fn hash(key: &[u8]) -> u64 {
    XxHash3_64::oneshot(key)
}

impl KvKeys {
    /// Adds a key. All keys of a batch together have less than 4 GiB; whether there was room.
    #[inline]
    pub fn push(&mut self, key: &[u8]) -> bool {
        self.push_hashed(hash(key), key)
    }

    #[inline]
    pub(super) fn push_hashed(&mut self, hash: u64, key: &[u8]) -> bool {
        let Ok(end) = u32::try_from(self.bytes.len() + key.len()) else { return false };
        self.bytes.extend_from_slice(key);
        self.offsets.push(end);
        self.hashes.push(hash);
        self.longest_bytes = self.longest_bytes.max(key.len());
        true
    }

    /// Forgets all keys, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.offsets.truncate(1);
        self.hashes.clear();
        self.longest_bytes = 0;
    }

    /// The length of the longest key.
    pub(super) fn longest_bytes(&self) -> usize {
        self.longest_bytes
    }

    /// How many keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Key `i`.
    #[must_use]
    pub fn key(&self, i: usize) -> &[u8] {
        &self.bytes[self.offsets[i] as usize..self.offsets[i + 1] as usize]
    }

    pub(super) fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    pub(super) fn as_batch(&self) -> KeyBatch<'_> {
        KeyBatch { bytes: &self.bytes, offsets: &self.offsets, hashes: &self.hashes }
    }
}

impl<K: AsRef<[u8]>> FromIterator<K> for KvKeys {
    fn from_iter<I: IntoIterator<Item = K>>(keys: I) -> Self {
        let mut batch = Self::default();
        for key in keys {
            assert!(batch.push(key.as_ref()), "the keys of a batch have less than 4 GiB together");
        }
        batch
    }
}

/// The place of a value that a read-modify-write changes.
#[derive(Debug, PartialEq, Eq)]
pub enum KvSlot<'a> {
    /// The key is new, its value zeros.
    Initial(&'a mut [u8]),
    /// The value as it is.
    InPlace(&'a mut [u8]),
}

/// Which keys of a batch go to which shard.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// Where each shard's keys begin in `order`; one more at the end.
    starts: Vec<u32>,
    order: Vec<u32>,
    shards: Vec<u16>,
}

impl Groups {
    /// Groups keys by shard, in their order within each.
    pub(super) fn of(&mut self, hashes: &[u64], shards: u32) {
        self.starts.clear();
        self.starts.resize(shards as usize + 1, 0);
        self.shards.clear();
        self.shards.extend(hashes.iter().map(|hash| crate::checkpoint::vnode_of(*hash, shards) as u16));
        for shard in &self.shards {
            self.starts[usize::from(*shard) + 1] += 1;
        }
        for i in 1..self.starts.len() {
            self.starts[i] += self.starts[i - 1];
        }
        self.order.clear();
        self.order.resize(hashes.len(), 0);
        // Each start is moved to its group's end on the way; it is the next group's start then.
        for (i, shard) in self.shards.iter().enumerate() {
            let at = &mut self.starts[usize::from(*shard)];
            self.order[*at as usize] = i as u32;
            *at += 1;
        }
    }

    /// Each shard that has keys, with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &[u32])> {
        let ends = &self.starts[..self.starts.len().saturating_sub(1)];
        ends.iter().enumerate().filter_map(|(shard, end)| {
            let start = if shard == 0 { 0 } else { ends[shard - 1] };
            (start < *end).then(|| (shard, &self.order[start as usize..*end as usize]))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn groups_hold_each_key_once_in_order_in_its_shard(hashes in prop::collection::vec(any::<u64>(), 0..200), shards in 1_u32..40) {
            let mut groups = Groups::default();
            groups.of(&[1, 2, 3], 7);
            groups.of(&hashes, shards);
            let mut seen = vec![false; hashes.len()];
            for (shard, keys) in groups.iter() {
                prop_assert!(!keys.is_empty() && keys.windows(2).all(|w| w[0] < w[1]));
                for i in keys {
                    prop_assert_eq!(crate::checkpoint::vnode_of(hashes[*i as usize], shards) as usize, shard);
                    prop_assert!(!std::mem::replace(&mut seen[*i as usize], true));
                }
            }
            prop_assert!(seen.iter().all(|s| *s));
        }
    }
}
