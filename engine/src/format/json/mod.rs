//! The `json` format: one JSON object a line.

mod decode;
mod encode;
mod scan;

pub use decode::{JsonLines, RecordReader};
pub use encode::{JsonEncoder, RecordWriter};
pub use scan::Scanner;

use super::scalar::TimestampStandard;
use crate::connect::{OptionSpec, OptionType, Options};
use crate::error::Result;

/// How JSON is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct JsonOptions {
    /// A field that the table has not makes the record bad.
    pub fail_on_unknown_field: bool,
    /// A missing field makes the record bad, also where the column is nullable.
    pub fail_on_missing_field: bool,
    /// The only form of timestamps that is read, and the one that is written; `None`: both are read, SQL's is written.
    pub timestamps: Option<TimestampStandard>,
    /// Fields that are NULL are left out when writing.
    pub ignore_null_fields: bool,
}

/// The words of `timestamp-format.standard`.
const STANDARDS: &[&str] = &["SQL", "ISO-8601"];

/// The options of `json`.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        key: "json.fail-on-missing-field",
        kind: OptionType::Bool,
        default: Some("false"),
        required: false,
        doc: "Whether a record that lacks a field is bad. If not, the column is NULL; a missing field of a NOT NULL column is always bad.",
    },
    OptionSpec {
        key: "json.fail-on-unknown-field",
        kind: OptionType::Bool,
        default: Some("false"),
        required: false,
        doc: "Whether a record with a field that is no column of the table is bad. If not, such fields are passed over.",
    },
    OptionSpec {
        key: "json.timestamp-format.standard",
        kind: OptionType::Choice(STANDARDS),
        default: None,
        required: false,
        doc: "SQL: 'yyyy-MM-dd HH:mm:ss.SSS'; ISO-8601: 'yyyy-MM-ddTHH:mm:ss.SSS'; TIMESTAMP_LTZ with 'Z' behind. Left out: reads both, writes SQL.",
    },
    OptionSpec {
        key: "json.encode.ignore-null-fields",
        kind: OptionType::Bool,
        default: Some("false"),
        required: false,
        doc: "Whether a sink leaves out fields that are NULL instead of writing null.",
    },
];

impl JsonOptions {
    /// Reads the options with the given prefix: `json`, `debezium-json` or `changelog-json`.
    pub fn read(options: &Options, prefix: &str) -> Result<Self> {
        let key = |name: &str| format!("{prefix}.{name}");
        if options.text(&key("ignore-parse-errors")).is_some() {
            return Err(options
                .invalid(&key("ignore-parse-errors"), "is not used here, since it loses records without a count")
                .hint("set 'on_error' = 'skip' or 'dead_letter(<sink>)' on the table"));
        }
        Ok(Self {
            fail_on_unknown_field: options.bool(&key("fail-on-unknown-field"))?.unwrap_or(false),
            fail_on_missing_field: options.bool(&key("fail-on-missing-field"))?.unwrap_or(false),
            timestamps: options.choice(&key("timestamp-format.standard"), STANDARDS)?.map(|word| match word {
                "SQL" => TimestampStandard::Sql,
                _ => TimestampStandard::Iso8601,
            }),
            ignore_null_fields: options.bool(&key("encode.ignore-null-fields"))?.unwrap_or(false),
        })
    }
}
