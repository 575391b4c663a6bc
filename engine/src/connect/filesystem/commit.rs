//! When a partition is complete: `sink.partition-commit.*`. A complete partition gets a file `_SUCCESS`.
//!
//! All cores write to the same partitions, so that one is complete only when every core's clock has passed its time and every core has closed
//! its files: a core first closes them, then says how far it is, and who is last writes the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::part::{poisoned, sync_folders};
use crate::connect::{OptionSpec, OptionType, Options};
use crate::error::{Code, Diagnostic, Result};
use crate::format::scalar;

/// Which clock decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The wall clock, from the partition's first row.
    ProcessTime,
    /// The watermark, from the time that the partition's values stand for by this pattern (`$column`).
    PartitionTime { pattern: String },
}

/// The options, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitRule {
    /// Which clock decides.
    pub trigger: Trigger,
    /// How long after a partition's time it is complete, µs.
    pub delay_us: i64,
    /// The name of the file that says so.
    pub success_file: String,
}

const KIND: &str = "sink.partition-commit.policy.kind";
const TRIGGER: &str = "sink.partition-commit.trigger";
const TRIGGERS: &[&str] = &["process-time", "partition-time"];
const DELAY: &str = "sink.partition-commit.delay";
const ZONE: &str = "sink.partition-commit.watermark-time-zone";
const SUCCESS_FILE: &str = "sink.partition-commit.success-file.name";
const PATTERN: &str = "partition.time-extractor.timestamp-pattern";
const EXTRACTOR: &str = "partition.time-extractor.kind";

/// Its options.
pub const OPTIONS: [OptionSpec; 7] = [
    OptionSpec {
        key: KIND,
        kind: OptionType::Choice(&["success-file"]),
        default: None,
        required: false,
        doc: "What is done with a complete partition: an empty file is written into it. Left out: nothing.",
    },
    OptionSpec {
        key: TRIGGER,
        kind: OptionType::Choice(TRIGGERS),
        default: Some("process-time"),
        required: false,
        doc: "Which clock says that a partition is complete: the wall clock since its first row, or the watermark.",
    },
    OptionSpec {
        key: DELAY,
        kind: OptionType::Duration,
        default: Some("0 s"),
        required: false,
        doc: "How long after a partition's time (or first row) it is complete.",
    },
    OptionSpec {
        key: ZONE,
        kind: OptionType::Choice(&["UTC"]),
        default: Some("UTC"),
        required: false,
        doc: "The zone of the times in partition values.",
    },
    OptionSpec {
        key: SUCCESS_FILE,
        kind: OptionType::Text,
        default: Some("_SUCCESS"),
        required: false,
        doc: "The name of the file in a complete partition.",
    },
    OptionSpec {
        key: PATTERN,
        kind: OptionType::Text,
        default: None,
        required: false,
        doc: "How partition values make a time, as in '$dt $hour:00:00'. Left out: the first partition column's value is the time.",
    },
    OptionSpec {
        key: EXTRACTOR,
        kind: OptionType::Choice(&["default"]),
        default: Some("default"),
        required: false,
        doc: "How the time is found: by the pattern.",
    },
];

impl CommitRule {
    /// Reads the options of a table partitioned by `columns`.
    pub fn read(options: &Options, columns: &[String]) -> Result<Option<Self>> {
        let kind = options.parsed(KIND, "success-file (a metastore and own classes are not supported)", |v| {
            v.eq_ignore_ascii_case("success-file").then_some(())
        })?;
        let trigger = options.choice(TRIGGER, TRIGGERS)?;
        let delay = options.duration(DELAY)?;
        options.choice(ZONE, &["UTC"])?;
        options.choice(EXTRACTOR, &["default"])?;
        let success_file = options.text(SUCCESS_FILE);
        let pattern = options.text(PATTERN);
        if kind.is_none() {
            for key in [TRIGGER, DELAY, SUCCESS_FILE, PATTERN, ZONE, EXTRACTOR] {
                if options.text(key).is_some() {
                    return Err(Diagnostic::new(Code::MissingOption, format!("option '{key}' needs option '{KIND}'"))
                        .at(options.span(key))
                        .hint(format!("set '{KIND}' = 'success-file'")));
                }
            }
            return Ok(None);
        }
        let Some(first) = columns.first() else {
            return Err(options.invalid(KIND, "needs a table that is PARTITIONED BY columns"));
        };
        let trigger = match trigger {
            Some("partition-time") => {
                let pattern = pattern.map_or_else(|| format!("${first}"), str::to_owned);
                // With any value in place of each column, nothing that looks like a column may be left.
                if fill(&pattern, columns.iter().map(|c| (c.as_str(), "0"))).contains('$') {
                    return Err(options
                        .invalid(PATTERN, format!("names something other than the partition columns {}", columns.join(", "))));
                }
                Trigger::PartitionTime { pattern }
            }
            _ if pattern.is_some() => return Err(options.invalid(PATTERN, format!("needs '{TRIGGER}' = 'partition-time'"))),
            _ => Trigger::ProcessTime,
        };
        let success_file = success_file.unwrap_or("_SUCCESS").to_owned();
        if success_file.is_empty() || success_file.contains('/') {
            return Err(options.invalid(SUCCESS_FILE, "must be the name of a file"));
        }
        let delay_us = delay.map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX));
        Ok(Some(Self { trigger, delay_us, success_file }))
    }

    /// When a partition is complete. `now_us`: the wall clock, for [`Trigger::ProcessTime`]. `None` among `values` is NULL: such a
    /// partition has no time, and is complete at the end of the input.
    pub fn due_us(&self, columns: &[String], values: &[Option<String>], now_us: i64) -> Result<i64> {
        let Trigger::PartitionTime { pattern } = &self.trigger else { return Ok(now_us.saturating_add(self.delay_us)) };
        if values.iter().any(Option::is_none) {
            return Ok(i64::MAX);
        }
        let pairs = columns.iter().zip(values).map(|(c, v)| (c.as_str(), v.as_deref().unwrap_or_default()));
        let text = fill(pattern, pairs);
        let time = match text.len() {
            10 => scalar::parse_date(&text).map(|days| i64::from(days) * scalar::DAY_US),
            16 => scalar::parse_timestamp(&format!("{text}:00"), false, None),
            _ => scalar::parse_timestamp(&text, false, None),
        };
        let time = time.map_err(|_| {
            Diagnostic::new(
                Code::InvalidOption,
                format!("option '{PATTERN}' = '{pattern}' makes '{text}' of a partition, which is no time"),
            )
            .hint("it must make 'yyyy-MM-dd HH:mm:ss' or 'yyyy-MM-dd'")
        })?;
        Ok(time.saturating_add(self.delay_us))
    }
}

/// Puts values in place of `$column`; longer names first, so that `$day` is not taken for `$d`.
fn fill<'a>(pattern: &str, pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut pairs: Vec<_> = pairs.collect();
    pairs.sort_by_key(|(column, _)| std::cmp::Reverse(column.len()));
    pairs.iter().fold(pattern.to_owned(), |text, (column, value)| text.replace(&format!("${column}"), value))
}

/// What all writers of a sink know together.
#[derive(Debug, Default)]
pub struct Commits {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How far each core's clock is.
    passed_us: Vec<i64>,
    /// Partitions that have no success file since their last row, and when they are due.
    pending: BTreeMap<PathBuf, i64>,
}

impl Commits {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements that change it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A core joins; nothing is complete before its clock says so.
    pub fn join(&self, core: usize, cores: usize) {
        let mut state = self.lock();
        state.passed_us.resize(cores, i64::MIN);
        state.passed_us[core] = i64::MIN;
    }

    /// A partition gets rows. It keeps its due time if it has one.
    pub fn expect(&self, folder: &Path, due_us: i64) -> i64 {
        *self.lock().pending.entry(folder.to_owned()).or_insert(due_us)
    }

    /// A core has closed its files of all partitions that are due by `clock_us`. Writes the success files of those that are now complete.
    pub fn pass(&self, core: usize, clock_us: i64, rule: &CommitRule, root: &Path) -> Result<()> {
        let mut state = self.lock();
        state.passed_us[core] = clock_us.max(state.passed_us[core]);
        let least = state.passed_us.iter().copied().min().unwrap_or(i64::MIN);
        let complete: Vec<PathBuf> =
            state.pending.iter().filter(|(_, due)| **due <= least).map(|(folder, _)| folder.clone()).collect();
        for folder in complete {
            let file = folder.join(&rule.success_file);
            let write = || -> std::io::Result<()> {
                File::create(&file)?.sync_all()?;
                sync_folders(&file, root)
            };
            write().map_err(|e| poisoned(&file, &e))?;
            state.pending.remove(&folder);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> Options {
        Options::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned(), None)))
    }

    #[test]
    fn the_options_of_nexmark_q10_make_a_time() {
        let columns = ["dt".to_owned(), "hm".to_owned()];
        let options = options(&[(TRIGGER, "partition-time"), (DELAY, "1 min"), (KIND, "success-file"), (PATTERN, "$dt $hm:00")]);
        let rule = CommitRule::read(&options, &columns).unwrap().unwrap();
        let due = rule.due_us(&columns, &[Some("2023-11-14".into()), Some("22:13".into())], 0).unwrap();
        assert_eq!(due, 1_699_999_980_000_000 + 60_000_000);
        assert_eq!(rule.due_us(&columns, &[None, Some("22:13".into())], 0).unwrap(), i64::MAX);
        assert_eq!(rule.due_us(&columns, &[Some("x".into()), Some("y".into())], 0).unwrap_err().code, Code::InvalidOption);
    }

    #[test]
    fn what_is_not_done_is_refused() {
        let columns = ["dt".to_owned()];
        for (pairs, code) in [
            (vec![(KIND, "metastore,success-file")], Code::InvalidOption),
            (vec![(TRIGGER, "partition-time")], Code::MissingOption),
            (vec![(KIND, "success-file"), (ZONE, "Asia/Shanghai")], Code::InvalidOption),
            (vec![(KIND, "success-file"), (PATTERN, "$dt")], Code::InvalidOption),
            (vec![(KIND, "success-file"), (TRIGGER, "partition-time"), (PATTERN, "$other")], Code::InvalidOption),
            (vec![(KIND, "success-file"), (SUCCESS_FILE, "../x")], Code::InvalidOption),
        ] {
            assert_eq!(CommitRule::read(&options(&pairs), &columns).unwrap_err().code, code, "{pairs:?}");
        }
        assert_eq!(CommitRule::read(&options(&[(KIND, "success-file")]), &[]).unwrap_err().code, Code::InvalidOption);
        assert_eq!(CommitRule::read(&options(&[]), &columns).unwrap(), None);
    }

    #[test]
    fn a_partition_is_complete_when_the_last_core_has_passed_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("dt=1");
        std::fs::create_dir(&folder).unwrap();
        let rule = CommitRule { trigger: Trigger::ProcessTime, delay_us: 0, success_file: "_SUCCESS".into() };
        let commits = Commits::default();
        commits.join(0, 2);
        commits.join(1, 2);
        commits.expect(&folder, 10);
        commits.pass(0, 100, &rule, dir.path()).unwrap();
        commits.pass(1, 9, &rule, dir.path()).unwrap();
        assert!(!folder.join("_SUCCESS").exists());
        commits.pass(1, 10, &rule, dir.path()).unwrap();
        assert!(folder.join("_SUCCESS").exists());
    }
}
