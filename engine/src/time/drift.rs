//! `max_drift`: sources of a group that must not run away from each other.

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

    /// Member `index` of group `name`, which may be `drift_us` ahead of the last; `None` when there is no such member.
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

    /// Whether this source is further ahead of the group's least watermark than it may be.
    #[must_use]
    pub fn is_ahead(&self) -> bool {
        let own = self.members[self.index].load(Ordering::Relaxed);
        let least = self.members.iter().map(|member| member.load(Ordering::Relaxed)).min().unwrap_or(own);
        own != Watermark::MAX.0 && own > least.saturating_add(self.drift_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_waits_until_the_last_has_come_near_or_stops_counting() {
        let groups = DriftGroups::new(&BTreeMap::from([("g".to_owned(), 2)]));
        let slot = |i| groups.slot("g", i, 10).expect("two members");
        let (a, b) = (slot(0), slot(1));
        assert!(groups.slot("g", 2, 10).is_none() && groups.slot("h", 0, 10).is_none());
        assert!(!a.is_ahead(), "both are at the start");
        a.publish(Some(Watermark(100)));
        assert!(a.is_ahead() && !b.is_ahead(), "b has no row yet");
        b.publish(Some(Watermark(90)));
        assert!(!a.is_ahead());
        a.publish(Some(Watermark(101)));
        assert!(a.is_ahead());
        b.publish(None);
        assert!(!a.is_ahead(), "b no longer counts");
    }
}
