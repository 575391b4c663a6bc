//! What went wrong in a job: by cause, with the last times that each came up. Kept in the working directory, so that the process that was started
//! after a failure still tells of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tiderace_crds::admin::{
    EXCEPTIONS_MAX, Exception, ExceptionsReply, OCCURRENCE_SPAN_MS, OCCURRENCES_MAX, Occurrence, Problem,
};
use tiderace_engine::error::Code;
use tiderace_engine::runtime::JobProgress;

use super::work_directory::replace_file;

/// The file in the working directory.
const FILE: &str = "exceptions.json";
const FILE_VERSION: u32 = 1;
/// A larger file is none of ours.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// How often refused rows alone make the file be written anew, milliseconds. A failure of the job is written at once.
const WRITE_INTERVAL_MS: i64 = 10_000;
/// Bytes of the message of a cause, and of an occurrence.
const MESSAGE_BYTES_MAX: usize = 4096;
const OCCURRENCE_MESSAGE_BYTES_MAX: usize = 256;

/// At most [`EXCEPTIONS_MAX`] causes, the one that came last at the end. The same thing at the same node is one cause, which remembers its last
/// [`OCCURRENCES_MAX`] occurrences: what comes all the time pushes out nothing else.
#[derive(Debug, Default)]
pub(crate) struct Exceptions {
    /// The deploy epoch of this process.
    epoch: u64,
    entries: VecDeque<Exception>,
    /// Whether a cause had to make room.
    truncated: bool,
    /// Causes whose last occurrence is this process's own, by operator and code: one of a process before goes on no more.
    own: BTreeSet<(Option<String>, String)>,
    /// Rows refused so far, by node and code.
    seen: BTreeMap<(String, Code), u64>,
    /// Since this process was started.
    total: u64,
    keeper: Option<Keeper>,
}

/// Where they are kept.
#[derive(Debug)]
struct Keeper {
    folder: PathBuf,
    job: String,
    /// What is not in the file yet.
    is_changed: bool,
    written_ms: i64,
}

/// `exceptions.json`.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
struct Kept {
    version: u32,
    job: String,
    #[serde(flatten)]
    exceptions: ExceptionsReply,
}

/// A new content of the file.
#[derive(Debug)]
pub(crate) struct ToWrite {
    folder: PathBuf,
    kept: Kept,
}

impl ToWrite {
    /// Writes it; durable when it returns. One thread at a time.
    pub fn write(&self) -> io::Result<()> {
        replace_file(&self.folder, FILE, &serde_json::to_vec(&self.kept).map_err(io::Error::other)?)
    }
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

fn short(text: &str, bytes_max: usize) -> String {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or_default().to_owned()
}

impl Exceptions {
    /// None yet, in a process of that deploy epoch.
    pub fn new(epoch: u64) -> Self {
        Self { epoch, ..Self::default() }
    }

    /// From now on they are kept in `folder`; what a process of `job` left there before comes first. A file that can't be read is told in the log
    /// and written over.
    pub fn keep_in(&mut self, folder: &Path, job: &str) {
        self.keeper = Some(Keeper { folder: folder.to_owned(), job: job.to_owned(), is_changed: true, written_ms: i64::MIN });
        let before = match read(folder) {
            Ok(Some(kept)) if kept.job == job => kept.exceptions,
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(%error, "{FILE} can't be read: what went wrong in earlier processes of the job is not told");
                return;
            }
        };
        let now = std::mem::take(&mut self.entries);
        self.own.clear();
        self.truncated |= before.truncated;
        self.entries.extend(before.exceptions);
        while self.entries.len() > EXCEPTIONS_MAX {
            self.entries.pop_front();
            self.truncated = true;
        }
        // What this process met before it had its folder.
        for one in now {
            for occurrence in one.occurrences {
                let problem = Problem { message: occurrence.message, ..one.problem.clone() };
                self.put(one.operator.clone(), problem, occurrence.count, occurrence.at_ms);
            }
        }
    }

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

    /// Takes in an error; `node` is empty where it is the whole job's.
    pub fn add(&mut self, node: String, problem: Problem, count: u64, now_ms: i64) {
        self.total += count;
        self.put((!node.is_empty()).then_some(node), problem, count, now_ms);
    }

    fn put(&mut self, operator: Option<String>, mut problem: Problem, count: u64, now_ms: i64) {
        problem.message = short(&problem.message, MESSAGE_BYTES_MAX);
        let message = short(&problem.message, OCCURRENCE_MESSAGE_BYTES_MAX);
        let is_same = |e: &Exception| e.operator == operator && e.problem.code == problem.code;
        let before = self.entries.iter().position(is_same).and_then(|at| self.entries.remove(at));
        let mut entry = before.unwrap_or_else(|| Exception {
            first_ms: now_ms,
            at_ms: now_ms,
            operator: operator.clone(),
            problem: problem.clone(),
            count: 0,
            occurrences: Vec::new(),
        });
        entry.at_ms = now_ms;
        entry.problem = problem;
        entry.count = entry.count.saturating_add(count);
        let epoch = self.epoch;
        let is_own = !self.own.insert((operator.clone(), entry.problem.code.clone()));
        // Rows come in crowds; each failure of the job is one to look at.
        let goes_on =
            |last: &&mut Occurrence| operator.is_some() && is_own && now_ms.saturating_sub(last.first_ms) < OCCURRENCE_SPAN_MS;
        match entry.occurrences.last_mut().filter(goes_on) {
            Some(last) => {
                last.at_ms = now_ms;
                last.count = last.count.saturating_add(count);
                last.message = message;
            }
            None => {
                if entry.occurrences.len() >= OCCURRENCES_MAX {
                    entry.occurrences.remove(0);
                }
                entry.occurrences.push(Occurrence { first_ms: now_ms, at_ms: now_ms, epoch, count, message });
            }
        }
        self.entries.push_back(entry);
        if self.entries.len() > EXCEPTIONS_MAX {
            self.entries.pop_front();
            self.truncated = true;
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.is_changed = true;
        }
    }

    /// All that came up at `since_ms` or later, without what `redact` takes out of a text.
    pub fn reply(&self, since_ms: i64, redact: impl Fn(&str) -> String) -> ExceptionsReply {
        let mut reply = ExceptionsReply { exceptions: Vec::new(), truncated: self.truncated };
        for entry in self.entries.iter().filter(|entry| entry.at_ms >= since_ms) {
            let mut entry = entry.clone();
            entry.problem.message = redact(&entry.problem.message);
            entry.problem.hint = entry.problem.hint.map(|hint| redact(&hint));
            entry.occurrences.retain(|one| one.at_ms >= since_ms);
            for one in &mut entry.occurrences {
                one.message = redact(&one.message);
            }
            reply.exceptions.push(entry);
        }
        reply
    }

    /// What is to be written now, if anything: `at_once`, or when the last time is long enough ago. It counts as written; the caller says by
    /// [`Self::not_written`] when it wasn't. Apart from the writing, so that nobody waits for a disk to read them.
    pub fn take_write(&mut self, at_once: bool, now_ms: i64, redact: impl Fn(&str) -> String) -> Option<ToWrite> {
        let due = |keeper: &Keeper| at_once || now_ms.saturating_sub(keeper.written_ms) >= WRITE_INTERVAL_MS;
        let keeper = self.keeper.as_ref().filter(|keeper| keeper.is_changed && due(keeper))?;
        let kept = Kept { version: FILE_VERSION, job: keeper.job.clone(), exceptions: self.reply(i64::MIN, redact) };
        let keeper = self.keeper.as_mut()?;
        // A disk that is full is not asked ten times a second.
        keeper.written_ms = now_ms;
        keeper.is_changed = false;
        Some(ToWrite { folder: keeper.folder.clone(), kept })
    }

    /// The last [`Self::to_write`] failed: the next one gives it again.
    pub fn not_written(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            keeper.is_changed = true;
        }
    }

    /// How many there were since the start of the process.
    pub fn total(&self) -> u64 {
        self.total
    }
}

/// What the workers of a working directory met, as far as it is written; `None` where none wrote.
pub(crate) fn of_directory(folder: &Path) -> io::Result<Option<ExceptionsReply>> {
    Ok(read(folder)?.map(|kept| kept.exceptions))
}

/// What a process before this one left; `None` where there was none.
fn read(folder: &Path) -> io::Result<Option<Kept>> {
    let file = match File::open(folder.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    let mut kept: Kept = serde_json::from_slice(&text).map_err(io::Error::other)?;
    if kept.version != FILE_VERSION {
        return Err(io::Error::other(format!("it is of version {}", kept.version)));
    }
    for one in &mut kept.exceptions.exceptions {
        let surplus = one.occurrences.len().saturating_sub(OCCURRENCES_MAX);
        one.occurrences.drain(..surplus);
    }
    Ok(Some(kept))
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

    fn problem(code: &str, message: &str) -> Problem {
        Problem { code: code.into(), message: message.into(), hint: None, line: None, column: None }
    }

    fn list(all: &Exceptions) -> Vec<Exception> {
        all.reply(i64::MIN, str::to_owned).exceptions
    }

    #[test]
    fn only_what_is_new_is_told_and_equal_things_count_on() {
        let mut all = Exceptions::new(1);
        assert_eq!(all.observe(&progress(0, 0), 1), []);
        assert_eq!(all.observe(&progress(0, 3), 2), [Refused { node: "orders".into(), code: Code::FieldType, rows: 3 }]);
        assert_eq!(all.observe(&progress(0, 3), 3), []);
        assert_eq!(all.observe(&progress(2, 4), 4).len(), 2);
        let list = list(&all);
        assert_eq!(
            list.iter().map(|e| (e.problem.code.as_str(), e.count, e.first_ms, e.at_ms)).collect::<Vec<_>>(),
            [("TR-3105", 4, 2, 4), ("TR-2007", 2, 4, 4)]
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
    fn each_failure_is_an_occurrence_and_so_is_each_minute_of_refused_rows() {
        let mut all = Exceptions::new(5);
        for (at, message) in [(10, "first"), (20, "second"), (30, "third")] {
            all.add(String::new(), problem("TR-3008", message), 1, at);
        }
        for at in [0, 59_999, 60_000, 200_000] {
            all.add("orders".into(), problem("TR-3105", &format!("row at {at}")), 2, at);
        }
        let list = list(&all);
        let times = |e: &Exception| e.occurrences.iter().map(|o| (o.first_ms, o.at_ms, o.count)).collect::<Vec<_>>();
        assert_eq!(times(&list[0]), [(10, 10, 1), (20, 20, 1), (30, 30, 1)]);
        assert_eq!((list[0].count, list[0].problem.message.as_str()), (3, "third"));
        assert_eq!(list[0].occurrences[1].message, "second");
        assert!(list[0].occurrences.iter().all(|o| o.epoch == 5));
        assert_eq!(times(&list[1]), [(0, 59_999, 4), (60_000, 60_000, 2), (200_000, 200_000, 2)]);
        assert_eq!(list[1].occurrences[0].message, "row at 59999");
        assert_eq!(list[1].count, list[1].occurrences.iter().map(|o| o.count).sum::<u64>());
    }

    #[test]
    fn what_comes_all_the_time_pushes_out_nothing_else() {
        let mut all = Exceptions::new(1);
        all.add(String::new(), problem("TR-3008", "the folder is away"), 1, 0);
        for n in 0..10_000 {
            all.add("orders".into(), problem("TR-3105", "bad"), 1, n * 1000);
        }
        let list = list(&all);
        assert_eq!(list.iter().map(|e| (e.count, e.occurrences.len())).collect::<Vec<_>>(), [(1, 1), (10_000, OCCURRENCES_MAX)]);
        assert_eq!(list[1].occurrences.last().unwrap().at_ms, 9_999_000, "the newest are kept");
        assert_eq!(list[1].first_ms, 0);
        assert!(!all.reply(0, str::to_owned).truncated);
    }

    #[test]
    fn the_oldest_makes_room_and_that_is_told() {
        let mut all = Exceptions::new(1);
        for n in 0..EXCEPTIONS_MAX + 5 {
            all.add(format!("node{n}"), problem("TR-9000", &n.to_string()), 1, 0);
        }
        let reply = all.reply(i64::MIN, str::to_owned);
        assert_eq!((reply.exceptions.len(), reply.truncated), (EXCEPTIONS_MAX, true));
        assert_eq!(reply.exceptions[0].problem.message, "5");
        all.add("node5".into(), problem("TR-9000", &"ä".repeat(5000)), 1, 1);
        let newest = list(&all).pop().unwrap();
        assert_eq!((newest.operator.as_deref(), newest.count), (Some("node5"), 2), "what comes again is the newest");
        assert!(newest.problem.message.len() <= MESSAGE_BYTES_MAX, "a long message is cut");
        assert!(newest.occurrences[0].message.len() <= OCCURRENCE_MESSAGE_BYTES_MAX);
    }

    #[test]
    fn since_leaves_out_what_came_before() {
        let mut all = Exceptions::new(1);
        all.add(String::new(), problem("TR-3008", "early"), 1, 100);
        all.add(String::new(), problem("TR-3008", "late"), 1, 200);
        all.add("orders".into(), problem("TR-3105", "bad"), 1, 150);
        let since = |at: i64| {
            let reply = all.reply(at, str::to_owned);
            reply.exceptions.iter().map(|e| (e.problem.code.clone(), e.occurrences.len())).collect::<Vec<_>>()
        };
        let two = |a: usize, b: usize| vec![("TR-3008".to_owned(), a), ("TR-3105".to_owned(), b)];
        assert_eq!(since(100), two(2, 1));
        assert_eq!(since(101), two(1, 1));
        assert_eq!(since(151), [("TR-3008".to_owned(), 1)]);
        assert_eq!(since(201), []);
    }

    #[test]
    fn the_next_process_tells_what_this_one_met() {
        let folder = tempfile::tempdir().unwrap();
        let redact = |text: &str| text.replace("hunter2", "***");
        let mut all = Exceptions::new(3);
        all.keep_in(folder.path(), "orders");
        all.add(String::new(), problem("TR-3008", "no login with hunter2"), 1, 10);
        all.add("t".into(), problem("TR-3105", "bad"), 4, 20);
        all.take_write(true, 20, redact).unwrap().write().unwrap();
        let text = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert!(!text.contains("hunter2"), "{text}");

        let mut same_epoch = Exceptions::new(3);
        same_epoch.keep_in(folder.path(), "orders");
        same_epoch.add("t".into(), problem("TR-3105", "bad"), 1, 21);
        same_epoch.add("t".into(), problem("TR-3105", "bad"), 1, 22);
        let counts: Vec<_> = list(&same_epoch)[1].occurrences.iter().map(|o| o.count).collect();
        assert_eq!(counts, [4, 2], "a process that was started anew in the same minute");

        let mut next = Exceptions::new(4);
        next.add(String::new(), problem("TR-3008", "again"), 1, 30);
        next.keep_in(folder.path(), "orders");
        next.add("t".into(), problem("TR-3105", "worse"), 1, 40);
        let list = list(&next);
        assert_eq!(
            list.iter().map(|e| (e.problem.code.as_str(), e.first_ms, e.at_ms, e.count)).collect::<Vec<_>>(),
            [("TR-3008", 10, 30, 2), ("TR-3105", 20, 40, 5)]
        );
        let epochs = |e: &Exception| e.occurrences.iter().map(|o| o.epoch).collect::<Vec<_>>();
        assert_eq!((epochs(&list[0]), epochs(&list[1])), (vec![3, 4], vec![3, 4]), "rows of two processes are two occurrences");
        assert_eq!(next.total(), 2, "the counter is the process's own");

        let mut other = Exceptions::new(1);
        other.keep_in(folder.path(), "payments");
        assert_eq!(other.reply(0, redact).exceptions, [], "a volume that another job had");
        for damaged in ["{", "{\"version\": 9, \"job\": \"orders\", \"exceptions\": []}"] {
            std::fs::write(folder.path().join(FILE), damaged).unwrap();
            let mut after = Exceptions::new(5);
            after.keep_in(folder.path(), "orders");
            after.add(String::new(), problem("TR-3008", "x"), 1, 50);
            after.take_write(true, 50, redact).unwrap().write().unwrap();
            assert!(std::fs::read_to_string(folder.path().join(FILE)).unwrap().contains("\"atMs\":50"), "it is written over");
        }
    }

    #[test]
    fn the_file_is_written_when_something_is_new_and_not_with_each_row() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        let mut all = Exceptions::new(1);
        all.keep_in(folder.path(), "orders");
        let written = |all: &mut Exceptions, at_once, now_ms| {
            let _gone = std::fs::remove_file(&file);
            if let Some(text) = all.take_write(at_once, now_ms, str::to_owned) {
                text.write().unwrap();
            }
            file.exists()
        };
        assert!(written(&mut all, false, 0), "the first time");
        assert!(!written(&mut all, true, 100_000), "nothing is new");
        all.add("t".into(), problem("TR-3105", "bad"), 1, 100_000);
        assert!(written(&mut all, false, 100_000));
        all.add("t".into(), problem("TR-3105", "bad"), 1, 100_001);
        assert!(!written(&mut all, false, 100_001));
        assert!(written(&mut all, true, 100_002));
        all.add("t".into(), problem("TR-3105", "bad"), 1, 100_003);
        assert!(written(&mut all, false, 100_002 + WRITE_INTERVAL_MS));
        all.not_written();
        assert!(written(&mut all, true, 200_000), "what failed is written the next time");
    }
}
