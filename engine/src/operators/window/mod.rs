//! Windows over time: the arithmetic ([`WindowSpec`]), the table function ([`WindowAssign`]) and the aggregation ([`WindowAggregate`]).
//!
//! ```text
//! TUMBLE/HOP/CUMULATE(t, ts, …)              ─▶ WindowAssign     rows × windows, stateless
//! … GROUP BY window_start, window_end, keys  ─▶ WindowAggregate  one state table a pane, fired at marks when the watermark passes
//! ```

mod aggregate;
mod assign;
mod fire;
mod grid;
#[cfg(test)]
mod oracle;
mod panes;
mod spec;

pub use aggregate::{WindowAggregate, WindowEmission, WindowPlan, WindowSource};
pub use assign::{WINDOW_TIME_BEFORE_END_US, WindowAssign, WindowTime, window_fields};
pub(super) use assign::{refuse_null_time, timestamp_type, timestamps};
pub use spec::{Assignment, Interval, Refusal, Window, WindowCursor, WindowKind, WindowSpec};
