//! Formats whose records say what happened to a row: `debezium-json` and `changelog-json`.
//!
//! As sources they give weights: an insert or new image +1, a delete or old image −1. As sinks they write what net changes they get.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::Encoder;
use super::columns::{Decode, FieldSet, flaw};
use super::json::{JsonOptions, RecordReader, RecordWriter, Scanner};
use super::lines::LineDecoder;
use crate::connect::{OptionSpec, OptionType, Options, RowKind};
use crate::error::{Code, Result};

/// How Debezium's envelope is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DebeziumOptions {
    /// How `before` and `after` are read.
    pub json: JsonOptions,
    /// Whether the envelope must (not) stand in a field `payload`; `None`: as it comes.
    pub schema_include: Option<bool>,
}

impl DebeziumOptions {
    /// Reads the options of `debezium-json`.
    pub fn read(options: &Options) -> Result<Self> {
        Ok(Self {
            json: JsonOptions::read(options, "debezium-json")?,
            schema_include: options.bool("debezium-json.schema-include")?,
        })
    }
}

/// The options of `debezium-json`.
pub const DEBEZIUM_OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        key: "debezium-json.schema-include",
        kind: OptionType::Bool,
        default: None,
        required: false,
        doc: "Whether each record stands in a field 'payload', beside its 'schema'. Left out: a source takes both; a sink writes no schema.",
    },
    OptionSpec {
        key: "debezium-json.timestamp-format.standard",
        kind: OptionType::Choice(&["SQL", "ISO-8601"]),
        default: None,
        required: false,
        doc: "As json.timestamp-format.standard.",
    },
    OptionSpec {
        key: "debezium-json.fail-on-missing-field",
        kind: OptionType::Bool,
        default: Some("false"),
        required: false,
        doc: "As json.fail-on-missing-field.",
    },
    OptionSpec {
        key: "debezium-json.fail-on-unknown-field",
        kind: OptionType::Bool,
        default: Some("false"),
        required: false,
        doc: "As json.fail-on-unknown-field, inside 'before' and 'after'.",
    },
    OptionSpec {
        key: "debezium-json.encode.ignore-null-fields",
        kind: OptionType::Bool,
        default: Some("false"),
        required: false,
        doc: "As json.encode.ignore-null-fields.",
    },
];

/// The options of `changelog-json`.
pub const CHANGELOG_OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        key: "changelog-json.timestamp-format.standard",
        kind: OptionType::Choice(&["SQL", "ISO-8601"]),
        default: None,
        required: false,
        doc: "As json.timestamp-format.standard.",
    },
    OptionSpec {
        key: "changelog-json.fail-on-missing-field",
        kind: OptionType::Bool,
        default: Some("false"),
        required: false,
        doc: "As json.fail-on-missing-field.",
    },
    OptionSpec {
        key: "changelog-json.fail-on-unknown-field",
        kind: OptionType::Bool,
        default: Some("false"),
        required: false,
        doc: "As json.fail-on-unknown-field, inside 'data'.",
    },
    OptionSpec {
        key: "changelog-json.encode.ignore-null-fields",
        kind: OptionType::Bool,
        default: Some("false"),
        required: false,
        doc: "As json.encode.ignore-null-fields.",
    },
];

/// The texts of the members `wanted` of the object `text`; the whole of it is checked to be JSON.
fn members<'a, const N: usize>(text: &'a str, wanted: [&str; N], scratch: &mut String) -> Decode<[Option<&'a str>; N]> {
    let mut found = [None; N];
    let mut scanner = Scanner::new(text);
    if scanner.peek() != Some(b'{') {
        scanner.skip(0, scratch)?;
        return flaw(Code::BadRecord, "the record is no JSON object");
    }
    let mut is_first = scanner.open(b'{', 0)?;
    while scanner.next_item(b'}', &mut is_first)? {
        let name = scanner.name(scratch)?;
        let index = wanted.iter().position(|w| *w == name);
        let value = scanner.skip(1, scratch)?;
        if let Some(slot) = index.map(|i| &mut found[i])
            && slot.replace(value).is_some()
        {
            return flaw(Code::BadRecord, "a field of the envelope stands twice");
        }
    }
    scanner.end()?;
    // `null` and absent mean the same in these envelopes.
    Ok(found.map(|value| value.filter(|v| *v != "null")))
}

/// `{"before": …, "after": …, "op": "c"}`, with or without `{"schema": …, "payload": …}` around it.
pub struct DebeziumLines {
    reader: RecordReader,
    schema_include: Option<bool>,
    scratch: String,
}

impl DebeziumLines {
    /// See [`RecordReader::new`].
    pub fn new(schema: &SchemaRef, declared: &SchemaRef, options: DebeziumOptions) -> Result<Self> {
        let reader = RecordReader::new(schema, declared, options.json)?;
        Ok(Self { reader, schema_include: options.schema_include, scratch: String::new() })
    }

    fn image(&mut self, image: Option<&str>, name: &str, op: &str, weight: i64, weights: &mut Vec<i64>) -> Decode<()> {
        let Some(image) = image else {
            let why = if name == "before" && op == "\"u\"" { " (PostgreSQL sends it with REPLICA IDENTITY FULL)" } else { "" };
            return flaw(Code::BadRecord, format!("an envelope of op {op} needs '{name}', which is missing or null{why}"));
        };
        self.reader.record(image)?;
        weights.push(weight);
        Ok(())
    }
}

impl LineDecoder for DebeziumLines {
    fn line(&mut self, text: &str, weights: &mut Vec<i64>) -> Decode<()> {
        const NAMES: [&str; 4] = ["before", "after", "op", "payload"];
        let [mut before, mut after, mut op, payload] = members(text, NAMES, &mut self.scratch)?;
        match (self.schema_include, payload, op) {
            (Some(true), None, _) => {
                return flaw(Code::BadRecord, "the envelope has no 'payload', though 'debezium-json.schema-include' is true");
            }
            (Some(true), Some(payload), _) | (None, Some(payload), None) => {
                [before, after, op, _] = members(payload, NAMES, &mut self.scratch)?;
            }
            _ => {}
        }
        match op {
            Some(op @ ("\"c\"" | "\"r\"")) => self.image(after, "after", op, 1, weights),
            Some(op @ "\"u\"") => {
                self.image(before, "before", op, -1, weights)?;
                self.image(after, "after", op, 1, weights)
            }
            Some(op @ "\"d\"") => self.image(before, "before", op, -1, weights),
            Some(op) => {
                let op: String = op.chars().take(20).collect();
                flaw(Code::BadRecord, format!("the envelope's op is {op}; known are \"c\", \"r\", \"u\", \"d\""))
            }
            None => flaw(Code::BadRecord, "the envelope has no 'op'"),
        }
    }

    fn fields(&mut self) -> &mut FieldSet {
        self.reader.fields()
    }
}

/// `{"data": {…}, "op": "+I"}`
pub struct ChangelogLines {
    reader: RecordReader,
    scratch: String,
}

impl ChangelogLines {
    /// See [`RecordReader::new`].
    pub fn new(schema: &SchemaRef, declared: &SchemaRef, options: JsonOptions) -> Result<Self> {
        Ok(Self { reader: RecordReader::new(schema, declared, options)?, scratch: String::new() })
    }
}

impl LineDecoder for ChangelogLines {
    fn line(&mut self, text: &str, weights: &mut Vec<i64>) -> Decode<()> {
        let [data, op] = members(text, ["data", "op"], &mut self.scratch)?;
        let weight = match op {
            Some("\"+I\"" | "\"+U\"") => 1,
            Some("\"-U\"" | "\"-D\"") => -1,
            Some(op) => {
                let op: String = op.chars().take(20).collect();
                return flaw(Code::BadRecord, format!("the record's op is {op}; known are \"+I\", \"-U\", \"+U\", \"-D\""));
            }
            None => return flaw(Code::BadRecord, "the record has no 'op'"),
        };
        let Some(data) = data else { return flaw(Code::BadRecord, "the record has no 'data'") };
        self.reader.record(data)?;
        weights.push(weight);
        Ok(())
    }

    fn fields(&mut self) -> &mut FieldSet {
        self.reader.fields()
    }
}

/// Writes `{"before":…,"after":…,"op":…}`. A `-U` with the `+U` behind it become one `u`.
pub struct DebeziumEncoder(RecordWriter);

impl DebeziumEncoder {
    /// For rows of `schema`.
    pub fn new(schema: &SchemaRef, options: JsonOptions) -> Result<Self> {
        Ok(Self(RecordWriter::new(schema, options)?))
    }
}

impl Encoder for DebeziumEncoder {
    fn encode(&mut self, rows: &RecordBatch, kinds: Option<&[RowKind]>, out: &mut Vec<u8>) -> Result<()> {
        let cells = self.0.cells(rows)?;
        let kind = |row: usize| kinds.map_or(RowKind::Insert, |kinds| kinds[row]);
        let mut line = String::new();
        let mut row = 0;
        while row < rows.num_rows() {
            // An old image alone (its new one is elsewhere) is a delete, a new image alone an insert: their sum is the same.
            let (before, after, op) = match kind(row) {
                RowKind::UpdateBefore if row + 1 < rows.num_rows() && kind(row + 1) == RowKind::UpdateAfter => {
                    (Some(row), Some(row + 1), "u")
                }
                RowKind::UpdateBefore | RowKind::Delete => (Some(row), None, "d"),
                RowKind::Insert | RowKind::UpdateAfter => (None, Some(row), "c"),
            };
            line.clear();
            for (name, image) in [("{\"before\":", before), (",\"after\":", after)] {
                line.push_str(name);
                match image {
                    Some(row) => self.0.write(&cells, row, &mut line),
                    None => line.push_str("null"),
                }
            }
            line.push_str(",\"op\":\"");
            line.push_str(op);
            line.push_str("\"}\n");
            out.extend_from_slice(line.as_bytes());
            row += if op == "u" { 2 } else { 1 };
        }
        Ok(())
    }
}

/// Writes `{"data":{…},"op":"+I"}`.
pub struct ChangelogEncoder(RecordWriter);

impl ChangelogEncoder {
    /// For rows of `schema`.
    pub fn new(schema: &SchemaRef, options: JsonOptions) -> Result<Self> {
        Ok(Self(RecordWriter::new(schema, options)?))
    }
}

impl Encoder for ChangelogEncoder {
    fn encode(&mut self, rows: &RecordBatch, kinds: Option<&[RowKind]>, out: &mut Vec<u8>) -> Result<()> {
        let cells = self.0.cells(rows)?;
        let mut line = String::new();
        for row in 0..rows.num_rows() {
            line.clear();
            line.push_str("{\"data\":");
            self.0.write(&cells, row, &mut line);
            line.push_str(",\"op\":\"");
            line.push_str(kinds.map_or(RowKind::Insert, |kinds| kinds[row]).short());
            line.push_str("\"}\n");
            out.extend_from_slice(line.as_bytes());
        }
        Ok(())
    }
}
