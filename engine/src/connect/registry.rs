//! The table of connectors: the one place that says which there are. `CREATE TABLE`, `tiderace connectors` and the reference read it.

use arrow::datatypes::SchemaRef;

use super::{OptionSpec, Options, SinkRef, SourceRef, blackhole, datagen, filesystem, memory, nexmark, print};
use crate::error::Result;

/// What a connector is told about its table.
#[derive(Debug)]
pub struct TableSpec<'a> {
    /// The table's name, for messages.
    pub name: &'a str,
    /// For a source: the physical and metadata columns that the plan needs (a subset when the plan needs fewer). For a sink: all columns.
    pub schema: SchemaRef,
    /// All physical columns of the table as declared, whatever the plan needs: formats without names (`csv`) count them, and a field that
    /// is not among them is an extra one. For a sink the same as `schema`.
    pub physical: SchemaRef,
    /// For columns that are `METADATA FROM 'key'`: index in `schema` and key.
    pub metadata: Vec<(usize, String)>,
    /// Indexes of the primary key in `schema`; empty without one.
    pub primary_key: Vec<usize>,
    /// `PARTITIONED BY`: indexes in `physical`.
    pub partitioned_by: Vec<usize>,
    /// The `WITH` options.
    pub options: &'a Options,
}

/// One connector: its options and how to build it.
#[derive(Clone, Copy)]
pub struct ConnectorSpec {
    /// The value of `'connector' = …`.
    pub name: &'static str,
    /// One sentence.
    pub doc: &'static str,
    /// Its options; those of formats (`format::formats()`) come on top when `takes_format`.
    pub options: &'static [OptionSpec],
    /// Whether it wants a `'format'`.
    pub takes_format: bool,
    /// Whether its tables may be PARTITIONED BY columns.
    pub takes_partitions: bool,
    /// Plans a source; `None`: it is no source.
    pub source: Option<fn(&TableSpec<'_>) -> Result<SourceRef>>,
    /// Plans a sink; `None`: it is no sink.
    pub sink: Option<fn(&TableSpec<'_>) -> Result<SinkRef>>,
    /// The metadata keys it offers, with their SQL types.
    pub metadata: &'static [(&'static str, &'static str)],
}

/// All connectors, by name.
#[must_use]
pub fn connectors() -> &'static [ConnectorSpec] {
    &[blackhole::SPEC, datagen::SPEC, filesystem::SPEC, memory::SPEC, nexmark::SPEC, print::SPEC]
}

/// The connector of that name, compared without case.
#[must_use]
pub fn connector(name: &str) -> Option<&'static ConnectorSpec> {
    connectors().iter().find(|spec| spec.name.eq_ignore_ascii_case(name))
}
