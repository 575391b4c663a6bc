//! Files in folders: `'connector' = 'filesystem'`.

mod commit;
mod compression;
mod listing;
mod parquet;
mod part;
mod partition;
mod place;
mod sink;
mod source;

use super::{ConnectorSpec, OptionSpec, OptionType, Options};

/// See [`super::registry`].
pub const SPEC: ConnectorSpec = ConnectorSpec {
    name: "filesystem",
    doc: "Reads files of a folder or glob, once or as they appear; writes part files into a folder.",
    options: &[
        OptionSpec {
            key: "path",
            kind: OptionType::Text,
            default: None,
            required: true,
            doc: "A source: a file, a folder or a glob (`*`, `?`, `[a-z]`, `{a,b}`, `**`). A sink: a folder. With or without `file://`.",
        },
        OptionSpec {
            key: "compression",
            kind: OptionType::Choice(compression::WORDS),
            default: Some("auto"),
            required: false,
            doc: "How files are compressed; `auto`: a source goes by their names (.gz, .gzip, .zst, .zstd), a sink does not compress.",
        },
        OptionSpec {
            key: "source.recursive",
            kind: OptionType::Bool,
            default: Some("true"),
            required: false,
            doc: "Whether folders inside a folder are read too.",
        },
        OptionSpec {
            key: "source.monitor-interval",
            kind: OptionType::Duration,
            default: None,
            required: false,
            doc: "How often to look for files that came later. Left out: the files that are there at the start are the whole input.",
        },
        OptionSpec {
            key: "partition.default-name",
            kind: OptionType::Text,
            default: Some(partition::DEFAULT_NAME),
            required: false,
            doc: "In the names of partition folders: the value for NULL.",
        },
        OptionSpec {
            key: "sink.rolling-policy.file-size",
            kind: OptionType::Bytes,
            default: Some("128 MiB"),
            required: false,
            doc: "A part file of this size is completed and a new one begun.",
        },
        OptionSpec {
            key: "sink.rolling-policy.rollover-interval",
            kind: OptionType::Duration,
            default: Some("30 min"),
            required: false,
            doc: "A part file of this age is completed.",
        },
        OptionSpec {
            key: "sink.rolling-policy.check-interval",
            kind: OptionType::Duration,
            default: Some("1 min"),
            required: false,
            doc: "How often the ages of part files are looked at.",
        },
        OptionSpec {
            key: "sink.open-partitions-max",
            kind: OptionType::Integer,
            default: Some("64"),
            required: false,
            doc: "How many partitions a core writes at the same time; the one that was idle longest is completed to make room.",
        },
        commit::OPTIONS[0],
        commit::OPTIONS[1],
        commit::OPTIONS[2],
        commit::OPTIONS[3],
        commit::OPTIONS[4],
        commit::OPTIONS[5],
        commit::OPTIONS[6],
    ],
    takes_format: true,
    takes_partitions: true,
    source: Some(source::FileSource::plan),
    sink: Some(sink::FileSink::plan),
    metadata: &[
        ("file.path", "STRING"),
        ("file.name", "STRING"),
        ("file.size", "BIGINT"),
        ("file.modification-time", "TIMESTAMP_LTZ(3)"),
        ("file.line", "BIGINT"),
    ],
};

/// Passes over this connector's options that start so.
fn pass_over(options: &Options, prefixes: &[&str]) {
    for spec in SPEC.options.iter().filter(|spec| prefixes.iter().any(|prefix| spec.key.starts_with(prefix))) {
        options.pass_over(spec.key);
    }
}

#[cfg(test)]
mod tests;
