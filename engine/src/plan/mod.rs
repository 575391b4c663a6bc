//! From a job's SQL to a [`JobPlan`]: a graph to run, views to read, texts to print. The engine's front door.
//!
//! ```text
//! text ─ sql::parse ─▶ Statement… ─▶ catalog, LogicalPlan (DataFusion: names, types, chosen rules)
//!      ─ usage ─▶ what each source must build ─ build ─▶ Graph: sources, chains, aggregations, sinks
//! ```
//! Everything is planned before anything is opened: a job that can't be run as written is refused here, with all its errors.
//! A new operator is one file beside these (`group.rs`, `window.rs`, …) and one arm in [`build`]'s table.

mod build;
mod checked_negative;
mod compile;
mod concat_limit;
mod conditions;
mod constants;
mod culprit;
mod date_interval;
mod decimal_range;
mod declared_length;
mod definition;
mod diagnose;
mod emission;
mod explain;
#[cfg(test)]
mod extremes;
mod field_access;
mod field_names;
mod group;
mod names;
mod not_null;
mod optimizer;
mod planner_words;
mod session;
mod settings;
mod sharing;
mod sink;
mod source;
mod spelling;
mod statements;
mod stream;
mod table_check;
mod time_rules;
mod usage;
mod view_expressions;
mod view_query;
mod view_sum;
mod window;
mod window_node;

use std::collections::BTreeMap;

use arrow::datatypes::SchemaRef;

use crate::batch::DeltaBatch;
use crate::connect::Secrets;
use crate::connect::memory::MemoryOutput;
use crate::error::{Code, Diagnostic, Diagnostics, Result};
use crate::operators::materialize::ViewHandle;
use crate::runtime::graph::Graph;
use crate::runtime::panicked;
use crate::time::Zone;

pub use definition::definition;
pub use explain::ExplainFormat;
pub use settings::{AggregatePhases, LengthPolicy, OnError, SETTINGS, Settings};
pub use view_query::ViewQuery;

/// What a job is planned with, beside its SQL.
#[derive(Clone, Debug, Default)]
pub struct PlanOptions {
    /// Values for `${name}` in the SQL.
    pub variables: BTreeMap<String, String>,
    /// Values for `SECRET 'name'` in WITH clauses.
    pub secrets: Secrets,
    /// Settings as [`SETTINGS`] lists them; `SET` in the SQL wins.
    pub config: BTreeMap<String, String>,
    /// How many cores the job will have; 0 counts as 1.
    pub cores: usize,
    /// Bare queries collect their rows in [`JobPlan::results`] and do not print them.
    pub collect_results: bool,
}

/// A planned job.
#[derive(Debug)]
pub struct JobPlan {
    /// What runs. Without nodes when the job only shows things.
    pub graph: Graph,
    /// Its settings.
    pub settings: Settings,
    /// Its materialized views, by name.
    pub views: BTreeMap<String, ViewHandle>,
    /// The results of bare queries, in order, with [`PlanOptions::collect_results`].
    pub results: Vec<QueryResult>,
    /// What SHOW, DESCRIBE and EXPLAIN say, in order.
    pub texts: Vec<String>,
    infos: Vec<explain::NodeInfo>,
}

/// Where the rows of a bare query are collected.
#[derive(Clone, Debug)]
pub struct QueryResult {
    /// Its columns.
    pub schema: SchemaRef,
    /// What came out, change by change.
    pub output: MemoryOutput,
    /// The key, when changes are upserts (EMIT ON UPDATE, EMIT EVERY).
    pub upsert_key: Option<Vec<usize>>,
    /// The session's zone, on whose clock instants are shown.
    pub zone: Zone,
}

impl QueryResult {
    /// The final rows with their multiplicity.
    pub fn rows(&self) -> Result<DeltaBatch> {
        match &self.upsert_key {
            Some(key) => self.output.latest(key).map(DeltaBatch::append),
            None => self.output.net(),
        }
    }
}

impl JobPlan {
    /// The plan, to be read.
    #[must_use]
    pub fn explain(&self, format: ExplainFormat) -> String {
        explain::render(&self.graph, &self.infos, format)
    }

    /// Takes what was given as a secret out of all that is shown.
    fn hide(&mut self, secrets: &Secrets) {
        for text in self.texts.iter_mut().chain(self.infos.iter_mut().flat_map(explain::NodeInfo::texts)) {
            *text = secrets.redact(text);
        }
    }
}

/// Plans a job. `Err` has all errors that could be found, each with its place in `sql`.
pub fn plan(sql: &str, options: &PlanOptions) -> Result<JobPlan, Diagnostics> {
    let mut plan = on_a_deep_stack(|| statements::plan(sql, options))
        .map_err(|errors| Diagnostics(errors.0.into_iter().map(|one| options.secrets.redact_diagnostic(one)).collect()))?;
    plan.hide(&options.secrets);
    Ok(plan)
}

/// Stack of the thread that plans; only what is used of it takes memory. A long `a OR b OR c …` is a deep tree, and trees are walked by recursion.
const PLANNING_STACK_BYTES: usize = 512 << 20;

/// Runs `work` on a thread with a deep stack. A panic in the planner of a library is an error of that job, not the end of the process.
fn on_a_deep_stack(work: impl FnOnce() -> Result<JobPlan, Diagnostics> + Send) -> Result<JobPlan, Diagnostics> {
    std::thread::scope(|scope| {
        let planning =
            std::thread::Builder::new().name("planning".into()).stack_size(PLANNING_STACK_BYTES).spawn_scoped(scope, work);
        match planning {
            Err(error) => {
                let what = format!("a thread to plan on can't be started: {error}");
                Err(Diagnostics(vec![Diagnostic::new(Code::Internal, what)]))
            }
            Ok(planning) => planning.join().unwrap_or_else(|panic| Err(Diagnostics(vec![panicked(&*panic)]))),
        }
    })
}
