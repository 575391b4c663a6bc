//! Tiderace's engine: SQL in, a dataflow on pinned cores out.
//!
//! ```text
//! SQL ─ sql ─▶ Statement ─ catalog, plan ─▶ LogicalPlan (DataFusion) ─ plan ─▶ Graph ─ runtime ─▶ rows
//!                                                                     nodes: operators, connect
//! ```
//! Ring 0 (`runtime::core`) is one pinned thread a core: synchronous, no lock, no await, no allocation per row. Sources and sinks that block
//! live on Ring 1 threads behind bounded rings. It knows no Kubernetes and no client of a foreign system.

#[cfg(test)]
mod allocation_watch;
pub mod batch;
pub mod catalog;
pub mod connect;
pub mod error;
pub mod format;
pub mod functions;
pub mod ids;
pub mod key;
pub mod operators;
pub mod plan;
pub mod runtime;
pub mod sql;
pub mod time;

/// The SQL parser's version must be DataFusion's own: their syntax trees are one type.
const _: fn(sqlparser::ast::Expr) -> datafusion::sql::sqlparser::ast::Expr = |expr| expr;
