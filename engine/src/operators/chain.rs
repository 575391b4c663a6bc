//! A fused chain of filters and projections: one pass over one batch.

use arrow::datatypes::SchemaRef;

/// Filters and projections, planned once, applied to each batch.
#[derive(Clone, Debug)]
pub struct FusedChain {
    /// The columns that come out.
    pub output: SchemaRef,
}
