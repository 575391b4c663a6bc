//! Cutting a batch by destination core.

use arrow::array::UInt32Array;
use arrow::buffer::ScalarBuffer;
use arrow::compute::take_record_batch;
use arrow::error::ArrowError;

use crate::batch::DeltaBatch;
use crate::key;

/// Which core owns each vnode.
#[derive(Clone, Debug)]
pub struct VnodeMap {
    owners: Vec<u16>,
    cores: usize,
}

impl VnodeMap {
    /// `vnodes` spread evenly over `cores`.
    #[must_use]
    pub fn even(vnodes: u32, cores: usize) -> Self {
        let owner = |vnode| key::owner(crate::ids::VnodeId(vnode as u16), vnodes, cores).0;
        Self { owners: (0..vnodes).map(owner).collect(), cores }
    }

    /// How many cores there are.
    #[must_use]
    pub fn cores(&self) -> usize {
        self.cores
    }
}

/// The rows of a batch, grouped by the core they go to. Its buffers are used again for the next batch.
#[derive(Debug, Default)]
pub struct Scatter {
    destinations: Vec<u16>,
    counts: Vec<u32>,
    next: Vec<u32>,
}

/// Where the rows of a batch go.
#[derive(Debug)]
pub enum Scattered {
    /// All to one core.
    Whole(usize),
    /// To several: row numbers grouped by core, and where each core's group begins (one more at the end).
    Parts(ScalarBuffer<u32>, Vec<u32>),
}

impl Scatter {
    /// Groups rows by the owner of their hash's vnode: count, prefix sum, place. O(rows + cores); the order within a group is kept.
    pub fn group(&mut self, hashes: &[u64], map: &VnodeMap) -> Scattered {
        let vnodes = map.owners.len() as u32;
        self.counts.clear();
        self.counts.resize(map.cores, 0);
        self.destinations.clear();
        self.destinations.extend(hashes.iter().map(|hash| map.owners[key::vnode(*hash, vnodes).0 as usize]));
        for to in &self.destinations {
            self.counts[*to as usize] += 1;
        }
        if let Some(only) = self.counts.iter().position(|n| *n as usize == hashes.len()) {
            return Scattered::Whole(only);
        }
        let mut starts = Vec::with_capacity(map.cores + 1);
        let mut sum = 0;
        for n in &self.counts {
            starts.push(sum);
            sum += n;
        }
        self.next.clear();
        self.next.extend_from_slice(&starts);
        starts.push(sum);
        let mut rows = vec![0u32; hashes.len()];
        for (row, to) in self.destinations.iter().enumerate() {
            let at = &mut self.next[*to as usize];
            rows[*at as usize] = row as u32;
            *at += 1;
        }
        Scattered::Parts(rows.into(), starts)
    }
}

/// The rows of `batch` at `rows[from..to]`, copied, so that they don't hold on to the batch that they come from.
pub fn gather(batch: &DeltaBatch, rows: &ScalarBuffer<u32>, from: u32, to: u32) -> Result<DeltaBatch, ArrowError> {
    let rows = rows.slice(from as usize, (to - from) as usize);
    let weights = batch.weights.take(&rows);
    let taken = take_record_batch(&batch.rows, &UInt32Array::new(rows, None))?;
    Ok(DeltaBatch::new(taken, weights))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_vnode_has_an_owner_and_none_has_more_than_its_share() {
        for cores in [1, 2, 7, 256] {
            let map = VnodeMap::even(256, cores);
            for core in 0..cores {
                let owned = map.owners.iter().filter(|owner| **owner as usize == core).count();
                assert!(owned == 256 / cores || owned == 256 / cores + 1, "core {core} of {cores} owns {owned}");
            }
        }
    }

    proptest! {
        #[test]
        fn groups_are_a_permutation_in_stable_order(hashes in prop::collection::vec(any::<u64>(), 0..300), cores in 1usize..9) {
            let map = VnodeMap::even(256, cores);
            let owner = |row: usize| key::owner(key::vnode(hashes[row], 256), 256, cores).0 as usize;
            match Scatter::default().group(&hashes, &map) {
                Scattered::Whole(core) => prop_assert!((0..hashes.len()).all(|row| owner(row) == core)),
                Scattered::Parts(rows, starts) => {
                    prop_assert_eq!(starts.len(), cores + 1);
                    prop_assert_eq!(rows.len(), hashes.len());
                    for core in 0..cores {
                        let group = &rows[starts[core] as usize..starts[core + 1] as usize];
                        prop_assert!(group.windows(2).all(|pair| pair[0] < pair[1]));
                        prop_assert!(group.iter().all(|row| owner(*row as usize) == core));
                    }
                }
            }
        }
    }
}
