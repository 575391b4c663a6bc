//! Aggregates that can take rows back.
//!
//! ```text
//! AggregateCall… ─ Aggregates::new ─▶ Aggregates: layout of a slot, loops
//! batch ─ keys ─▶ records of a PointTable ─ update ─▶ slots ─ settle, evaluate ─▶ columns
//! ```

pub mod aggregates;
pub mod call;
mod compile;
pub mod evaluate;
pub mod group;
pub mod local_distinct;
pub(crate) mod numeric;
pub mod phases;
mod recent;
mod sets;
mod sketch;
mod state;
mod value;

pub use aggregates::{Aggregates, TableIds};
pub use call::{AggregateCall, AggregateFunction};
pub use evaluate::{Evaluated, Failure};
pub use group::{GroupAggregate, GroupPlan};
pub use phases::{DistinctCount, FirstPhase, LocalAggregate};

#[cfg(test)]
mod tests;
