//! The options of the `parquet` format. Its files are read and written by `connect::filesystem`, since they are no streams of records.

use ::parquet::arrow::ArrowSchemaConverter;
use ::parquet::basic::{Compression, ZstdLevel};
use arrow::datatypes::SchemaRef;

use crate::connect::{OptionSpec, OptionType, Options};
use crate::error::{Code, Diagnostic, Result};

/// How Parquet is written.
#[derive(Clone, Debug, PartialEq)]
pub struct ParquetOptions {
    /// The codec of its pages.
    pub codec: Compression,
}

const CODECS: &[&str] = &["uncompressed", "snappy", "gzip", "zstd", "lz4"];

/// The options of `parquet`.
pub const OPTIONS: &[OptionSpec] = &[OptionSpec {
    key: "parquet.compression",
    kind: OptionType::Choice(CODECS),
    default: Some("snappy"),
    required: false,
    doc: "How a sink compresses pages.",
}];

impl ParquetOptions {
    /// Reads the options of `parquet`.
    pub fn read(options: &Options) -> Result<Self> {
        let codec = match options.choice("parquet.compression", CODECS)? {
            Some("uncompressed") => Compression::UNCOMPRESSED,
            Some("gzip") => Compression::GZIP(::parquet::basic::GzipLevel::default()),
            Some("zstd") => Compression::ZSTD(ZstdLevel::default()),
            Some("lz4") => Compression::LZ4_RAW,
            _ => Compression::SNAPPY,
        };
        Ok(Self { codec })
    }
}

/// Refuses columns that Parquet can't hold.
pub fn check(schema: &SchemaRef) -> Result<()> {
    ArrowSchemaConverter::new()
        .convert(schema)
        .map(|_| ())
        .map_err(|e| Diagnostic::new(Code::UnsupportedSchema, format!("format 'parquet' can't hold these columns: {e}")))
}
