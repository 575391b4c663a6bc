//! Time in a dataflow: the schedule that epochs are cut by, and event time with its watermarks.
//!
//! A watermark is made per split of a source ([`SplitWatermarks`]), travels on marks, and is the least of all lanes at each node. Sources of
//! one `max_drift` group hold each other back through [`DriftGroups`].

mod drift;
mod schedule;
mod splits;
mod zone;

use std::sync::Arc;

use datafusion::physical_plan::PhysicalExpr;

pub use drift::{DriftGroups, DriftSlot};
pub use schedule::TickSchedule;
pub use splits::SplitWatermarks;
pub use zone::{Zone, ZoneClock};

/// How a source makes its watermark. Event time is µs since 1970.
#[derive(Clone, Debug)]
pub struct WatermarkSpec {
    /// The time column, in the source node's output.
    pub column: usize,
    /// The `WATERMARK FOR … AS` expression over the source node's output, of type TIMESTAMP (µs). Its running maximum per split is the
    /// split's watermark; the source's is the least over its splits that are not idle.
    pub expr: Arc<dyn PhysicalExpr>,
    /// A split without rows for so long, in epoch time, while it was asked for some, no longer holds the watermark back.
    pub idle_timeout_us: Option<i64>,
    /// A row whose event time is further than this ahead of epoch time is refused (`FutureEventTime`). `None`: no guard.
    pub max_future_us: Option<i64>,
    /// The sources of one group wait for each other: a split more than so many µs ahead of the group's least watermark is not read.
    pub max_drift: Option<(String, i64)>,
}
