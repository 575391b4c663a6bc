//! Options that a table may have whatever its connector is, and all options of one table together: what is listed is what is checked.

use super::{ConnectorSpec, OptionSpec, OptionType, Options, connector};
use crate::error::{Code, Diagnostic};
use crate::format::{self, FormatSpec};
use crate::sql::closest_name;

/// What to do with rows that can't be used.
pub const ON_ERROR: &str = "on_error";
/// How long a silent split holds the watermark back.
pub const IDLE_TIMEOUT: &str = "scan.watermark.idle-timeout";
/// The tables that wait for each other.
pub const ALIGNMENT_GROUP: &str = "scan.watermark.alignment.group";
/// How far a split may run ahead of the slowest of its group.
pub const ALIGNMENT_DRIFT: &str = "scan.watermark.alignment.max-drift";

/// The options of every table, besides those of its connector and format.
pub const TABLE_OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        key: "connector",
        kind: OptionType::Text,
        default: None,
        required: true,
        doc: "Which connector reads or writes the table.",
    },
    OptionSpec {
        key: ON_ERROR,
        kind: OptionType::Text,
        default: None,
        required: false,
        doc: "What becomes of bad rows of this table: `fail`, `skip` or `dead_letter(table)`; the job's setting when left out.",
    },
];

/// The option of a table whose connector takes a format.
pub const FORMAT_OPTION: OptionSpec = OptionSpec {
    key: "format",
    kind: OptionType::Text,
    default: None,
    required: true,
    doc: "How bytes become rows; the options of that format come on top.",
};

/// The options of every table that has a WATERMARK.
pub const WATERMARK_OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        key: IDLE_TIMEOUT,
        kind: OptionType::Duration,
        default: None,
        required: false,
        doc: "How long a split may be without rows before it no longer holds the watermark back; never, when left out.",
    },
    OptionSpec {
        key: ALIGNMENT_DRIFT,
        kind: OptionType::Duration,
        default: None,
        required: false,
        doc: "How far a split may run ahead of the slowest one of its group; then it is not read until the others have caught up.",
    },
    OptionSpec {
        key: ALIGNMENT_GROUP,
        kind: OptionType::Text,
        default: Some("default"),
        required: false,
        doc: "The tables that wait for each other; counts only together with `scan.watermark.alignment.max-drift`.",
    },
];

/// All options that a table with this connector and format may have, in the order in which they are listed.
pub fn all_options(connector: &ConnectorSpec, format: Option<&FormatSpec>) -> impl Iterator<Item = OptionSpec> {
    let takes_format = connector.takes_format;
    let of_format = format.filter(|_| takes_format).map_or(&[] as &[_], |format| format.options);
    let common = if format.is_some_and(|_| takes_format) { format::COMMON_OPTIONS } else { &[] };
    let of_time = if connector.source.is_some() { WATERMARK_OPTIONS } else { &[] };
    TABLE_OPTIONS
        .iter()
        .chain(connector.options)
        .chain(takes_format.then_some(&FORMAT_OPTION))
        .chain(of_format)
        .chain(common)
        .chain(of_time)
        .copied()
}

/// The options that the table of these options may have; of connector or format only what is known by name.
#[must_use]
pub fn options_of(options: &Options) -> Vec<OptionSpec> {
    let get = |key: &str| options.iter().find(|(k, _)| *k == key).map(|(_, value)| value.into_owned());
    match get("connector").and_then(|name| connector(&name)) {
        Some(spec) => all_options(spec, get("format").and_then(|name| format::format(&name))).collect(),
        None => TABLE_OPTIONS.to_vec(),
    }
}

/// An error for each key that no table with this connector and format can have. What is read of the others shows [`Options::finish`].
#[must_use]
pub fn unknown_options(options: &Options) -> Vec<Diagnostic> {
    let known = options_of(options);
    let unknown = |key: &str| !known.iter().any(|spec| spec.covers(key));
    options.iter().filter(|(key, _)| unknown(key)).map(|(key, _)| unknown_option(options, key, &known)).collect()
}

/// The error about a key that is none of `known`.
pub(super) fn unknown_option(options: &Options, key: &str, known: &[OptionSpec]) -> Diagnostic {
    let error = Diagnostic::new(Code::UnknownOption, format!("there is no option '{key}'")).at(options.span(key));
    let candidates: Vec<String> = known.iter().map(|spec| spec.with_name_of(key)).collect();
    let is_free = |candidate: &&str| options.iter().all(|(other, _)| other != *candidate);
    match closest_name(key, candidates.iter().map(String::as_str).filter(is_free)) {
        Some(near) => error.hint(format!("did you mean '{near}'?")),
        None => {
            let keys: Vec<_> = known.iter().map(|spec| spec.key).collect();
            error.hint(format!("the options are: {}", keys.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

    use super::*;
    use crate::connect::{TableSpec, connectors};
    use crate::format::formats;

    fn schema(connector: &str, format: Option<&FormatSpec>) -> SchemaRef {
        let field = |name: &str, kind| Field::new(name, kind, true);
        let text = || field("s", DataType::Utf8View);
        Arc::new(Schema::new(match (connector, format.map(|f| f.name)) {
            ("nexmark", _) => vec![field("event_type", DataType::Int32)],
            (_, Some("raw")) => vec![text()],
            _ => vec![field("n", DataType::Int64), text(), field("ts", DataType::Timestamp(TimeUnit::Microsecond, None))],
        }))
    }

    /// The keys that planning a source and a sink asks for.
    fn keys_read(connector: &ConnectorSpec, format: Option<&FormatSpec>, more: &[(&str, &str)]) -> BTreeSet<String> {
        let schema = schema(connector.name, format);
        let mut read = BTreeSet::new();
        let mut given = vec![("connector", connector.name), ("path", "nowhere")];
        given.extend(format.map(|format| ("format", format.name)));
        given.extend(more);
        for is_source in [true, false] {
            let options = Options::new(given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned(), None)));
            let table = TableSpec {
                name: "t",
                schema: schema.clone(),
                physical: schema.clone(),
                metadata: vec![],
                primary_key: vec![],
                partitioned_by: vec![],
                options: &options,
            };
            let error = match (is_source, connector.source, connector.sink) {
                (true, Some(plan), _) => plan(&table).err(),
                (false, _, Some(plan)) => plan(&table).err(),
                _ => None,
            };
            // Nothing is registered in memory under any name.
            assert!(error.is_none() || connector.name == "memory", "{}: {error:?}", connector.name);
            read.extend(options.keys_read());
        }
        read
    }

    #[test]
    fn every_listed_option_is_read_and_every_option_that_is_read_is_listed() {
        for connector in connectors() {
            let with: Vec<Option<&FormatSpec>> =
                if connector.takes_format { formats().iter().map(Some).collect() } else { vec![None] };
            for format in with {
                let mut read = keys_read(connector, format, &[]);
                if connector.name == "datagen" {
                    let sequence = [("fields.n.kind", "sequence"), ("fields.n.start", "1"), ("fields.n.end", "9")];
                    read.extend(keys_read(connector, format, &sequence));
                }
                let of_all: Vec<&str> = TABLE_OPTIONS.iter().chain(WATERMARK_OPTIONS).map(|option| option.key).collect();
                let listed: Vec<OptionSpec> = all_options(connector, format).collect();
                let what = format!("{} {}", connector.name, format.map_or("", |f| f.name));
                for option in listed.iter().filter(|option| !of_all.contains(&option.key)) {
                    assert!(read.iter().any(|key| option.covers(key)), "{what}: nobody reads '{}'", option.key);
                }
                for key in &read {
                    // Refused with a hint of its own, so it is read and stands in no list.
                    let is_refused = key.ends_with(".ignore-parse-errors");
                    assert!(is_refused || listed.iter().any(|option| option.covers(key)), "{what}: '{key}' is in no list");
                }
            }
        }
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let options = Options::new([
            ("connector".to_owned(), "datagen".to_owned(), None),
            ("fields.a.mni".to_owned(), "1".to_owned(), None),
            ("fields.a.max".to_owned(), "1".to_owned(), None),
        ]);
        let [unknown] = unknown_options(&options).try_into().unwrap();
        assert_eq!((unknown.code, unknown.hint.as_deref()), (Code::UnknownOption, Some("did you mean 'fields.a.min'?")));
    }
}
