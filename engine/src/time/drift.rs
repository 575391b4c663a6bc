//! `max_drift`: the splits of the sources of a group must not run away from each other. A split that is ahead of the group's least watermark
//! by more than the drift is not read until the others have come near.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crossbeam_utils::CachePadded;

use crate::operators::Watermark;

type Members = Arc<Vec<CachePadded<AtomicI64>>>;

/// The groups of a job. Each member, a source on a core, publishes its watermark and reads the others'; nobody waits.
#[derive(Debug, Default)]
pub struct DriftGroups {
    groups: BTreeMap<String, Members>,
}

impl DriftGroups {
    /// Groups by name, with the number of members of each.
    #[must_use]
    pub fn new(sizes: &BTreeMap<String, usize>) -> Self {
        let member = || CachePadded::new(AtomicI64::new(Watermark::MIN.0));
        let groups = sizes.iter().map(|(name, n)| (name.clone(), Arc::new((0..*n).map(|_| member()).collect::<Vec<_>>())));
        Self { groups: groups.collect() }
    }

    /// Member `index` of group `name`, whose splits may be `drift_us` ahead of the last; `None` when there is no such member.
    #[must_use]
    pub fn slot(&self, name: &str, index: usize, drift_us: i64) -> Option<DriftSlot> {
        let members = self.groups.get(name)?;
        (index < members.len()).then(|| DriftSlot { members: members.clone(), index, drift_us })
    }
}

/// One member.
#[derive(Debug)]
pub struct DriftSlot {
    members: Members,
    index: usize,
    drift_us: i64,
}

impl DriftSlot {
    /// Tells the others where this source is; `None` while it holds nobody back (idle or finished).
    pub fn publish(&self, watermark: Option<Watermark>) {
        self.members[self.index].store(watermark.unwrap_or(Watermark::MAX).0, Ordering::Relaxed);
    }

    /// How far a split may have come: the group's least watermark and the drift on top. `i64::MAX`: nobody is waited for.
    #[must_use]
    pub fn limit_us(&self) -> i64 {
        let least = self.members.iter().map(|member| member.load(Ordering::Relaxed)).min();
        match least {
            None | Some(i64::MAX) => i64::MAX,
            Some(least) => least.saturating_add(self.drift_us),
        }
    }
}

const _: () = assert!(Watermark::MAX.0 == i64::MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_follows_the_last_member_that_counts() {
        let groups = DriftGroups::new(&BTreeMap::from([("g".to_owned(), 2)]));
        let slot = |i| groups.slot("g", i, 10).expect("two members");
        let (a, b) = (slot(0), slot(1));
        assert!(groups.slot("g", 2, 10).is_none() && groups.slot("h", 0, 10).is_none());
        assert_eq!(a.limit_us(), Watermark::MIN.0.saturating_add(10), "nobody has a row yet");
        a.publish(Some(Watermark(100)));
        assert_eq!(b.limit_us(), Watermark::MIN.0.saturating_add(10), "b has no row yet");
        b.publish(Some(Watermark(90)));
        assert_eq!((a.limit_us(), b.limit_us()), (100, 100));
        b.publish(None);
        assert_eq!(a.limit_us(), 110, "b no longer counts");
        a.publish(None);
        assert_eq!(a.limit_us(), i64::MAX);
    }
}
