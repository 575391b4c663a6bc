//! What `SET` and the manifest's `config` can say. The one table of keys: checked here, listed by the reference.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::connect::{OptionSpec, OptionType, parse_bytes, parse_duration};
use crate::error::{Code, Diagnostic, Result, Span};
use crate::operators::RowPolicy;
use crate::time::Zone;

/// Every key, with its meaning.
pub const SETTINGS: &[OptionSpec] = &[
    OptionSpec {
        key: "on_error",
        kind: OptionType::Text,
        default: Some("fail"),
        required: false,
        doc: "What becomes of rows that can't be decoded or computed: fail, skip, or dead_letter(sink). A table's own 'on_error' wins.",
    },
    OptionSpec {
        key: "engine.mode",
        kind: OptionType::Choice(&["throughput", "latency"]),
        default: Some("throughput"),
        required: false,
        doc: "throughput: ticks of 100 ms; latency: ticks of 5 ms.",
    },
    OptionSpec {
        key: "engine.tick",
        kind: OptionType::Duration,
        default: None,
        required: false,
        doc: "The time between epochs: how often updates come out and windows may close. 1 ms to 10 s.",
    },
    OptionSpec {
        key: "engine.memory",
        kind: OptionType::Bytes,
        default: None,
        required: false,
        doc: "The bound on state in memory, over all cores. A job whose state is larger fails, unless there is a state.directory.",
    },
    OptionSpec {
        key: "engine.aggregate-phases",
        kind: OptionType::Choice(&["auto", "one", "two"]),
        default: Some("auto"),
        required: false,
        doc: "Whether rows of a GROUP BY are summed up on the core where they arrive first: auto does so on several cores where it pays.",
    },
    OptionSpec {
        key: "source.project",
        kind: OptionType::Bool,
        default: Some("true"),
        required: false,
        doc: "Sources build only the columns and rows that the job reads. false: all of them, to measure what that saves.",
    },
    OptionSpec {
        key: "state.directory",
        kind: OptionType::Text,
        default: None,
        required: false,
        doc: "A directory for state that doesn't fit in memory: pages of it are written there and read back when their keys come. Scratch of the running job, emptied at its start and end. In a cluster it is below the pod's volume unless it begins with a slash.",
    },
    OptionSpec {
        key: "state.io_uring",
        kind: OptionType::Bool,
        default: Some("true"),
        required: false,
        doc: "Whether io_uring is tried for state.directory; false, and where the system refuses it: threads read and write.",
    },
    OptionSpec {
        key: "checkpoint.directory",
        kind: OptionType::Text,
        default: None,
        required: false,
        doc: "A directory for checkpoints: after a crash, or when it is started again, the job goes on from the last one. In a cluster it is below the pod's volume unless it begins with a slash. Left out: the job begins anew at each start.",
    },
    OptionSpec {
        key: "checkpoint.interval",
        kind: OptionType::Duration,
        default: Some("10 s"),
        required: false,
        doc: "How long from one checkpoint to the next, which is how much is computed again after a crash at most. 10 ms to 1 d. Sinks that show rows once show them at checkpoints.",
    },
    OptionSpec {
        key: "state.require_bound",
        kind: OptionType::Bool,
        default: Some("false"),
        required: false,
        doc: "Refuse a plan with a node whose state nothing bounds.",
    },
    OptionSpec {
        key: "table.exec.sink.type-length-enforcer",
        kind: OptionType::Choice(&["error", "trim_pad", "ignore"]),
        default: Some("error"),
        required: false,
        doc: "What becomes of a value that is longer than its column's VARCHAR(n), CHAR(n), VARBINARY(n) or BINARY(n). error: it is a bad row, of sources as of sinks; trim_pad: sinks cut it, and fill CHAR and BINARY up; ignore: it stays as it is, Flink's default.",
    },
    OptionSpec {
        key: "table.local-time-zone",
        kind: OptionType::Text,
        default: Some("UTC"),
        required: false,
        doc: "The zone on whose clock a TIMESTAMP_LTZ is read and written: by HOUR, EXTRACT, DATE_FORMAT, FLOOR … TO, casts, windows over it. A name as 'Europe/Berlin', or a difference as '+02:00'.",
    },
    OptionSpec {
        key: "time.max_future",
        kind: OptionType::Duration,
        default: None,
        required: false,
        doc: "Refuse rows whose event time is further ahead of the present than this: one wrong row could close all windows.",
    },
];

/// The settings of a job, parsed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `on_error`.
    pub on_error: OnError,
    /// The time between epochs.
    pub tick: Duration,
    /// The bound on state over all cores, bytes.
    pub memory_bytes: Option<usize>,
    /// `state.directory`.
    pub state_directory: Option<PathBuf>,
    /// `state.io_uring`.
    pub io_uring: bool,
    /// `checkpoint.directory`.
    pub checkpoint_directory: Option<PathBuf>,
    /// `checkpoint.interval`.
    pub checkpoint_interval: Duration,
    /// `engine.aggregate-phases`.
    pub phases: AggregatePhases,
    /// `source.project`.
    pub projects_sources: bool,
    /// `state.require_bound`.
    pub require_bound: bool,
    /// `time.max_future`, µs.
    pub max_future_us: Option<i64>,
    /// `table.exec.sink.type-length-enforcer`.
    pub lengths: LengthPolicy,
    /// `table.local-time-zone`.
    pub zone: Zone,
}

/// What becomes of a value that is longer than its column's declared length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LengthPolicy {
    /// It is a bad row.
    #[default]
    Error,
    /// Sinks cut it, and fill fixed lengths up.
    TrimPad,
    /// It stays as it is.
    Ignore,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            on_error: OnError::Fail,
            tick: Duration::from_millis(100),
            memory_bytes: None,
            state_directory: None,
            io_uring: true,
            checkpoint_directory: None,
            checkpoint_interval: Duration::from_secs(10),
            phases: AggregatePhases::Auto,
            projects_sources: true,
            require_bound: false,
            max_future_us: None,
            lengths: LengthPolicy::Error,
            zone: Zone::UTC,
        }
    }
}

/// Whether a GROUP BY is done in two phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AggregatePhases {
    /// As it pays: by the number of cores and the keys.
    #[default]
    Auto,
    /// Never.
    One,
    /// Wherever it can be.
    Two,
}

/// `fail`, `skip` or `dead_letter(sink)`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum OnError {
    /// The job fails.
    #[default]
    Fail,
    /// Counted and left out.
    Skip,
    /// Counted and sent to a sink.
    DeadLetter(String),
}

impl std::fmt::Display for OnError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fail => f.write_str("fail"),
            Self::Skip => f.write_str("skip"),
            Self::DeadLetter(sink) => write!(f, "dead_letter({sink})"),
        }
    }
}

impl OnError {
    /// From the text of an option.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("fail") {
            return Some(Self::Fail);
        }
        if text.eq_ignore_ascii_case("skip") {
            return Some(Self::Skip);
        }
        let (head, rest) = text.split_once('(')?;
        let sink = rest.strip_suffix(')')?.trim().trim_matches(|c| c == '`' || c == '"');
        (head.trim().eq_ignore_ascii_case("dead_letter") && !sink.is_empty()).then(|| Self::DeadLetter(sink.to_owned()))
    }

    /// What the runtime does.
    #[must_use]
    pub fn policy(&self) -> RowPolicy {
        match self {
            Self::Fail => RowPolicy::Fail,
            Self::Skip => RowPolicy::Skip,
            Self::DeadLetter(_) => RowPolicy::DeadLetter,
        }
    }
}

impl Settings {
    /// From the manifest's `config`.
    pub fn from_config(config: &BTreeMap<String, String>) -> Result<Self, Vec<Diagnostic>> {
        let mut settings = Self::default();
        let errors: Vec<Diagnostic> = config.iter().filter_map(|(k, v)| settings.set(k, v, None).err()).collect();
        if errors.is_empty() { Ok(settings) } else { Err(errors) }
    }

    /// Takes one key and value.
    pub fn set(&mut self, key: &str, value: &str, span: Option<Span>) -> Result<()> {
        let code = if span.is_some() { Code::UnsupportedSetting } else { Code::UnknownConfig };
        let Some(spec) = SETTINGS.iter().find(|s| s.key.eq_ignore_ascii_case(key)) else {
            let keys: Vec<&str> = SETTINGS.iter().map(|s| s.key).collect();
            return Err(Diagnostic::new(code, format!("there is no setting '{key}'"))
                .at(span)
                .hint(format!("there are: {}", keys.join(", "))));
        };
        let wrong = |expected: &str| {
            Diagnostic::new(Code::InvalidConfig, format!("the setting '{}' must be {expected}, not '{value}'", spec.key)).at(span)
        };
        match spec.key {
            "on_error" => self.on_error = OnError::parse(value).ok_or_else(|| wrong("fail, skip or dead_letter(sink)"))?,
            "engine.mode" => {
                self.tick = match value.to_ascii_lowercase().as_str() {
                    "throughput" => Duration::from_millis(100),
                    "latency" => Duration::from_millis(5),
                    _ => return Err(wrong("throughput or latency")),
                }
            }
            "engine.tick" => {
                let tick = parse_duration(value).ok_or_else(|| wrong("a duration such as '100 ms'"))?;
                if tick < Duration::from_millis(1) || tick > Duration::from_secs(10) {
                    return Err(wrong("from 1 ms to 10 s"));
                }
                self.tick = tick;
            }
            "engine.memory" => {
                let bytes = parse_bytes(value).filter(|b| *b >= 1 << 20).ok_or_else(|| wrong("a size of at least 1 MiB"))?;
                self.memory_bytes = Some(bytes as usize);
            }
            "engine.aggregate-phases" => {
                self.phases = match value.to_ascii_lowercase().as_str() {
                    "auto" => AggregatePhases::Auto,
                    "one" => AggregatePhases::One,
                    "two" => AggregatePhases::Two,
                    _ => return Err(wrong("auto, one or two")),
                }
            }
            "table.exec.sink.type-length-enforcer" => {
                self.lengths = match value.to_ascii_lowercase().as_str() {
                    "error" => LengthPolicy::Error,
                    "trim_pad" => LengthPolicy::TrimPad,
                    "ignore" => LengthPolicy::Ignore,
                    _ => return Err(wrong("error, trim_pad or ignore")),
                }
            }
            "table.local-time-zone" => {
                self.zone = Zone::parse(value).ok_or_else(|| wrong("a time zone such as 'Europe/Berlin' or '+02:00'"))?;
            }
            "state.directory" | "checkpoint.directory" => {
                let is_path = !value.trim().is_empty() && !value.contains('\0');
                let path = is_path.then(|| PathBuf::from(value)).ok_or_else(|| wrong("the path of a directory"))?;
                let directory =
                    if spec.key == "state.directory" { &mut self.state_directory } else { &mut self.checkpoint_directory };
                *directory = Some(path);
            }
            "checkpoint.interval" => {
                let interval = parse_duration(value).ok_or_else(|| wrong("a duration such as '10 s'"))?;
                if interval < Duration::from_millis(10) || interval > Duration::from_secs(86_400) {
                    return Err(wrong("from 10 ms to 1 d"));
                }
                self.checkpoint_interval = interval;
            }
            "source.project" | "state.require_bound" | "state.io_uring" => {
                let on = match value.to_ascii_lowercase().as_str() {
                    "true" => true,
                    "false" => false,
                    _ => return Err(wrong("true or false")),
                };
                match spec.key {
                    "source.project" => self.projects_sources = on,
                    "state.io_uring" => self.io_uring = on,
                    _ => self.require_bound = on,
                }
            }
            _ => {
                let ahead = parse_duration(value).ok_or_else(|| wrong("a duration such as '1 day'"))?;
                self.max_future_us = Some(i64::try_from(ahead.as_micros()).map_err(|_| wrong("a shorter duration"))?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn each_listed_key_is_taken_and_no_other() {
        for (spec, value) in SETTINGS.iter().zip([
            "skip",
            "latency",
            "20 ms",
            "64 MiB",
            "two",
            "false",
            "/tmp/state",
            "false",
            "/tmp/checkpoints",
            "5 s",
            "true",
            "trim_pad",
            "Asia/Tokyo",
            "1 d",
        ]) {
            Settings::default().set(spec.key, value, None).unwrap();
            let error = Settings::default().set(spec.key, "nonsense(\0", None).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig, "{}", spec.key);
        }
        assert_eq!(Settings::default().set("parallelism.default", "1", None).unwrap_err().code, Code::UnknownConfig);
    }

    #[test]
    fn dead_letter_names_its_sink() {
        assert_eq!(OnError::parse("dead_letter(bad_rows)"), Some(OnError::DeadLetter("bad_rows".into())));
        assert_eq!(OnError::parse("dead_letter()"), None);
    }
}
