//! From bytes to rows and back.
//!
//! ```text
//! blocks of bytes ─▶ Decoder::push ─▶ lines / records ─▶ typed column builders ─▶ RecordBatch + weights
//!                                          └─ what can't be decoded ─▶ Rejected (file, line, excerpt)
//! ```
//! A bad record never takes its neighbours with it. A format knows no files: who frames, names and counts bytes is the connector.

pub(crate) mod cells;
mod changelog;
pub(crate) mod columns;
mod csv;
pub(crate) mod json;
pub(crate) mod lines;
mod names;
mod parquet;
mod raw;
pub(crate) mod scalar;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::batch::Weights;
use crate::connect::{OptionSpec, OptionType, Options, Rejected, RowKind};
use crate::error::{Code, Diagnostic, Result};
use lines::LineFramer;

pub use changelog::DebeziumOptions;
pub use csv::CsvOptions;
pub use json::JsonOptions;
pub use parquet::ParquetOptions;

/// One format: its options and what it can do.
#[derive(Clone, Copy, Debug)]
pub struct FormatSpec {
    /// The value of `'format' = …`.
    pub name: &'static str,
    /// One sentence.
    pub doc: &'static str,
    /// Its options, besides those of the connector and [`COMMON_OPTIONS`].
    pub options: &'static [OptionSpec],
    /// Whether its records only ever insert rows.
    pub is_append_only: bool,
}

/// Options that all formats of text share.
pub const COMMON_OPTIONS: &[OptionSpec] = &[OptionSpec {
    key: "max-record-size",
    kind: OptionType::Bytes,
    default: Some("1 MiB"),
    required: false,
    doc: "The longest record that a source reads; a longer one is bad.",
}];

/// All formats, by name.
#[must_use]
pub fn formats() -> &'static [FormatSpec] {
    &[
        FormatSpec {
            name: "changelog-json",
            doc: "One change a line: {\"data\": {…}, \"op\": \"+I\"}, also -U, +U, -D.",
            options: changelog::CHANGELOG_OPTIONS,
            is_append_only: false,
        },
        FormatSpec {
            name: "csv",
            doc: "One record of cells a line, as in RFC 4180.",
            options: csv::OPTIONS,
            is_append_only: true,
        },
        FormatSpec {
            name: "debezium-json",
            doc: "One change a line: {\"before\": {…}, \"after\": {…}, \"op\": \"u\"}, also c, r, d.",
            options: changelog::DEBEZIUM_OPTIONS,
            is_append_only: false,
        },
        FormatSpec { name: "json", doc: "One JSON object a line.", options: json::OPTIONS, is_append_only: true },
        FormatSpec {
            name: "parquet",
            doc: "Parquet files; columns are found by name.",
            options: parquet::OPTIONS,
            is_append_only: true,
        },
        FormatSpec {
            name: "raw",
            doc: "A line is the value of the only column, STRING or BYTES.",
            options: &[],
            is_append_only: true,
        },
    ]
}

/// The format of that name, compared without case.
#[must_use]
pub fn format(name: &str) -> Option<&'static FormatSpec> {
    formats().iter().find(|spec| spec.name.eq_ignore_ascii_case(name))
}

/// A format with its options read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Format {
    /// Which, and how.
    pub kind: FormatKind,
    /// The longest record that is read, in bytes.
    pub record_bytes_max: usize,
}

/// Which format, with its own options.
#[derive(Clone, Debug, PartialEq)]
pub enum FormatKind {
    /// `changelog-json`
    ChangelogJson(JsonOptions),
    /// `csv`
    Csv(CsvOptions),
    /// `debezium-json`
    DebeziumJson(DebeziumOptions),
    /// `json`
    Json(JsonOptions),
    /// `parquet`
    Parquet(ParquetOptions),
    /// `raw`
    Raw,
}

/// The least and the greatest `max-record-size`.
const RECORD_BYTES_RANGE: std::ops::RangeInclusive<u64> = 16..=256 << 20;

impl Format {
    /// Reads `'format'` and its options.
    pub fn read(options: &Options) -> Result<Self> {
        let name = options.required("format").map_err(|e| e.hint(format!("the formats are: {}", names())))?;
        let Some(spec) = format(name) else {
            return Err(Diagnostic::new(Code::UnknownFormat, format!("there is no format '{name}'"))
                .at(options.span("format"))
                .hint(format!("the formats are: {}", names())));
        };
        let kind = match spec.name {
            "changelog-json" => FormatKind::ChangelogJson(JsonOptions::read(options, "changelog-json")?),
            "csv" => FormatKind::Csv(CsvOptions::read(options)?),
            "debezium-json" => FormatKind::DebeziumJson(DebeziumOptions::read(options)?),
            "json" => FormatKind::Json(JsonOptions::read(options, "json")?),
            "parquet" => FormatKind::Parquet(ParquetOptions::read(options)?),
            "raw" => FormatKind::Raw,
            other => return Err(Diagnostic::new(Code::Internal, format!("format '{other}' has no reader"))),
        };
        let record_bytes_max = options.bytes("max-record-size")?.unwrap_or(1 << 20);
        if !RECORD_BYTES_RANGE.contains(&record_bytes_max) {
            return Err(options.invalid("max-record-size", "must lie between 16 B and 256 MiB"));
        }
        Ok(Self { kind, record_bytes_max: record_bytes_max as usize })
    }

    /// Whether its records only ever insert rows.
    #[must_use]
    pub fn is_append_only(&self) -> bool {
        match self.kind {
            FormatKind::ChangelogJson(_) | FormatKind::DebeziumJson(_) => false,
            FormatKind::Csv(_) | FormatKind::Json(_) | FormatKind::Parquet(_) | FormatKind::Raw => true,
        }
    }

    /// A decoder to the columns `schema` of a table that has the physical columns `declared`; not for Parquet, which is no stream of records.
    pub fn decoder(&self, schema: &SchemaRef, declared: &SchemaRef) -> Result<Box<dyn Decoder>> {
        let max = self.record_bytes_max;
        Ok(match &self.kind {
            FormatKind::ChangelogJson(options) => {
                Box::new(LineFramer::new(changelog::ChangelogLines::new(schema, declared, *options)?, max))
            }
            FormatKind::Csv(options) => Box::new(csv::CsvDecoder::new(schema, declared, options.clone(), max)?),
            FormatKind::DebeziumJson(options) => {
                Box::new(LineFramer::new(changelog::DebeziumLines::new(schema, declared, *options)?, max))
            }
            FormatKind::Json(options) => Box::new(LineFramer::new(json::JsonLines::new(schema, declared, *options)?, max)),
            FormatKind::Raw => Box::new(LineFramer::new(raw::RawLines::new(schema, declared)?, max)),
            FormatKind::Parquet(_) => return Err(Diagnostic::new(Code::Internal, "Parquet was taken for a stream of records")),
        })
    }

    /// An encoder of rows of `schema`; not for Parquet.
    pub fn encoder(&self, schema: &SchemaRef) -> Result<Box<dyn Encoder>> {
        Ok(match &self.kind {
            FormatKind::ChangelogJson(options) => Box::new(changelog::ChangelogEncoder::new(schema, *options)?),
            FormatKind::Csv(options) => Box::new(csv::CsvEncoder::new(schema, options.clone())?),
            FormatKind::DebeziumJson(options) => Box::new(changelog::DebeziumEncoder::new(schema, options.json)?),
            FormatKind::Json(options) => Box::new(json::JsonEncoder::new(schema, *options)?),
            FormatKind::Raw => Box::new(raw::RawEncoder::new(schema)?),
            FormatKind::Parquet(_) => return Err(Diagnostic::new(Code::Internal, "Parquet was taken for a stream of records")),
        })
    }

    /// Refuses what a sink of this format can't do.
    pub fn check_sink(&self, schema: &SchemaRef, options: &Options) -> Result<()> {
        match &self.kind {
            FormatKind::Parquet(_) => parquet::check(schema),
            FormatKind::DebeziumJson(DebeziumOptions { schema_include: Some(true), .. }) => {
                Err(options.invalid("debezium-json.schema-include", "can't be true for a sink, which writes no schema"))
            }
            _ => self.encoder(schema).map(|_| ()),
        }
    }
}

fn names() -> String {
    formats().iter().map(|spec| spec.name).collect::<Vec<_>>().join(", ")
}

/// What a decoder made of the bytes since the last call.
#[derive(Debug)]
pub struct Decoded {
    /// The rows, in the order of the input.
    pub rows: RecordBatch,
    /// A weight for each.
    pub weights: Weights,
    /// The line on which each row's record starts, from 1.
    pub lines: Vec<i64>,
    /// Records that are no rows, in the order of the input.
    pub rejected: Vec<Rejected>,
}

/// Makes rows of bytes: `begin`, any number of `push`, `end` or `break_off` for each file, and `finish` whenever the caller wants a batch.
pub trait Decoder: Send {
    /// A file starts. `origin` is its name in messages.
    fn begin(&mut self, origin: &str);
    /// Takes the next bytes of the file; records may be cut anywhere.
    fn push(&mut self, block: &[u8]);
    /// The file ends here, and with it its last record.
    fn end(&mut self);
    /// The file breaks off here, damaged: the record that was begun is dropped, and `code` and `message` say why, at its line.
    fn break_off(&mut self, code: Code, message: String);
    /// How many rows wait, about.
    fn rows(&self) -> usize;
    /// How many bad records wait.
    fn rejections(&self) -> usize;
    /// Takes all that waits.
    fn finish(&mut self) -> Result<Decoded>;
}

/// Makes bytes of rows.
pub trait Encoder: Send {
    /// Appends what stands at the start of a file.
    fn start(&mut self, _out: &mut Vec<u8>) {}
    /// Appends rows; `kinds` says what happened to each, `None`: all were inserted.
    fn encode(&mut self, rows: &RecordBatch, kinds: Option<&[RowKind]>, out: &mut Vec<u8>) -> Result<()>;
}
