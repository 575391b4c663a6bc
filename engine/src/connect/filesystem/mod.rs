//! Files in folders: `'connector' = 'filesystem'`.

mod compression;
mod listing;
mod partition;
mod source;

use super::{ConnectorSpec, OptionSpec, OptionType};

/// See [`super::registry`].
pub const SPEC: ConnectorSpec = ConnectorSpec {
    name: "filesystem",
    doc: "Reads files of a folder or glob, once or as they appear.",
    options: &[
        OptionSpec {
            key: "path",
            kind: OptionType::Text,
            default: None,
            required: true,
            doc: "A file, a folder or a glob (`*`, `?`, `[a-z]`, `{a,b}`, `**`), with or without `file://`.",
        },
        OptionSpec {
            key: "compression",
            kind: OptionType::Choice(compression::WORDS),
            default: Some("auto"),
            required: false,
            doc: "How files are compressed; `auto` goes by their names: .gz, .gzip, .zst, .zstd.",
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
    ],
    takes_format: true,
    source: Some(source::FileSource::plan),
    sink: None,
    metadata: &[
        ("file.path", "STRING"),
        ("file.name", "STRING"),
        ("file.size", "BIGINT"),
        ("file.modification-time", "TIMESTAMP_LTZ(3)"),
        ("file.line", "BIGINT"),
    ],
};
