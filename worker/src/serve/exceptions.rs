//! The last errors and bad rows of a job, counted by what and where.

use std::collections::{BTreeMap, VecDeque};

use tiderace_crds::admin::{EXCEPTIONS_MAX, Exception, Problem};
use tiderace_engine::error::Code;
use tiderace_engine::runtime::JobProgress;

/// At most [`EXCEPTIONS_MAX`] entries, the newest last. The same thing at the same node is one entry that counts on.
#[derive(Debug, Default)]
pub(crate) struct Exceptions {
    entries: VecDeque<((String, String), Exception)>,
    /// Rows refused so far, by node and code.
    seen: BTreeMap<(String, Code), u64>,
    total: u64,
}

/// Rows that were refused since the last look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The node.
    pub node: String,
    /// Why.
    pub code: Code,
    /// How many.
    pub rows: u64,
}

impl Exceptions {
    /// Takes in what `progress` counts beyond the last call, and gives that back for the log.
    pub fn observe(&mut self, progress: &JobProgress, now_ms: i64) -> Vec<Refused> {
        let mut news = Vec::new();
        for node in &progress.nodes {
            let late = (node.late_rows > 0).then_some((Code::LateRow, node.late_rows));
            for (code, rows) in node.rejected.iter().copied().chain(late) {
                let seen = self.seen.entry((node.name.clone(), code)).or_default();
                if rows > *seen {
                    news.push(Refused { node: node.name.clone(), code, rows: rows - *seen });
                    *seen = rows;
                }
            }
        }
        for one in &news {
            let node = progress.nodes.iter().find(|node| node.name == one.node);
            let message = match node.and_then(|node| node.last_rejected.iter().find(|last| last.code == one.code)) {
                Some(last) => {
                    let place = last.position.map(|line| format!(", line {line}")).unwrap_or_default();
                    format!("`{}`: {}: {} ({}{place})", one.node, one.code.title(), last.message, last.origin)
                }
                None => format!("`{}`: {}", one.node, one.code.title()),
            };
            let problem = Problem { code: one.code.to_string(), message, hint: None, line: None, column: None };
            self.add(one.node.clone(), problem, one.rows, now_ms);
        }
        news
    }

    /// Takes in an error.
    pub fn add(&mut self, node: String, problem: Problem, count: u64, now_ms: i64) {
        self.total += count;
        let operator = (!node.is_empty()).then(|| node.clone());
        let key = (node, problem.code.clone());
        let before = self.entries.iter().position(|(k, _)| *k == key).and_then(|at| self.entries.remove(at));
        let count = count + before.map_or(0, |(_, entry)| entry.count);
        self.entries.push_back((key, Exception { at_ms: now_ms, operator, problem, count }));
        if self.entries.len() > EXCEPTIONS_MAX {
            self.entries.pop_front();
        }
    }

    /// All that is kept, the newest last.
    pub fn list(&self) -> Vec<Exception> {
        self.entries.iter().map(|(_, entry)| entry.clone()).collect()
    }

    /// How many there were since the start.
    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use tiderace_engine::ids::{Epoch, NodeId};
    use tiderace_engine::operators::LastRejected;
    use tiderace_engine::runtime::{NodeKind, NodeProgress};

    use super::*;

    fn progress(late: u64, bad: u64) -> JobProgress {
        let mut node = NodeProgress::new(NodeId(0), "orders", NodeKind::Source);
        node.late_rows = late;
        node.rejected = vec![(Code::FieldType, bad)];
        let message = format!("the text 'x{bad}' is no BIGINT");
        node.last_rejected =
            vec![LastRejected { code: Code::FieldType, message, origin: "orders.csv".into(), position: Some(bad) }];
        JobProgress { nodes: vec![node], cores: Vec::new(), epoch: Epoch(1), elapsed: Duration::ZERO, finished: false }
    }

    #[test]
    fn only_what_is_new_is_told_and_equal_things_count_on() {
        let mut all = Exceptions::default();
        assert_eq!(all.observe(&progress(0, 0), 1), []);
        assert_eq!(all.observe(&progress(0, 3), 2), [Refused { node: "orders".into(), code: Code::FieldType, rows: 3 }]);
        assert_eq!(all.observe(&progress(0, 3), 3), []);
        assert_eq!(all.observe(&progress(2, 4), 4).len(), 2);
        let list = all.list();
        assert_eq!(
            list.iter().map(|e| (e.problem.code.as_str(), e.count, e.at_ms)).collect::<Vec<_>>(),
            [("TR-3105", 4, 4), ("TR-2007", 2, 4)]
        );
        assert_eq!(all.total(), 6);
        assert_eq!(list[0].operator.as_deref(), Some("orders"));
        assert!(
            list[0].problem.message.ends_with("the text 'x4' is no BIGINT (orders.csv, line 4)"),
            "{}",
            list[0].problem.message
        );
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut all = Exceptions::default();
        for n in 0..EXCEPTIONS_MAX + 5 {
            let problem = Problem { code: "TR-9000".into(), message: n.to_string(), hint: None, line: None, column: None };
            all.add(format!("node{n}"), problem, 1, 0);
        }
        assert_eq!(all.list().len(), EXCEPTIONS_MAX);
        assert_eq!(all.list()[0].problem.message, "5");
    }
}
