//! `/metrics`: the one table of what a worker measures, and the page that Prometheus reads.
//!
//! Everything is taken at the scrape from counts that the engine publishes at its marks anyway; nothing is counted for Prometheus alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use prometheus::{CounterVec, Encoder, GaugeVec, Opts, Registry, TextEncoder};
use tiderace_crds::admin::WorkerState;
use tiderace_engine::error::Code;
use tiderace_engine::runtime::{JobProgress, NodeKind};

use super::host::{Host, Kept, Moment, Planned, watermark_us};
use super::tls::CertificateCounts;
use crate::machine;

/// Whether a value only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Grows from 0 at each start of the process.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct MetricSpec {
    /// Its name; the unit stands last.
    pub name: &'static str,
    /// Whether it only grows.
    pub kind: MetricKind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(const $constant: &str = $name;)*
        /// Every metric of a worker, in the order of the reference.
        pub const METRICS: &[MetricSpec] = &[$(
            MetricSpec { name: $name, kind: MetricKind::$kind, labels: &[$($label),*], help: $help }
        ),*];
    };
}

metrics! {
    BUILD_INFO = Gauge "tiderace_build_info" ["version", "commit"] "Always 1; what the process was built from.";
    JOB_INFO = Gauge "tiderace_job_info" ["job_name", "deploy_epoch", "plan_hash"] "Always 1; which job the worker runs, in which start of it, by which plan (empty until it is planned).";
    JOB_STATE = Gauge "tiderace_job_state" ["state"] "1 for the state that the job is in, 0 for the others: Starting, Running, Draining, Stopped, Finished, Failed.";
    START_TIME = Gauge "tiderace_start_time_seconds" [] "Unix time of the start of the process.";
    JOB_UPTIME = Gauge "tiderace_job_uptime_seconds" [] "Time since the job began to run; stays when it has ended.";
    ROWS_IN = Counter "tiderace_rows_in_total" ["source"] "Rows that a source read, those that were refused included.";
    ROWS_OUT = Counter "tiderace_rows_out_total" ["sink"] "Changes that a sink was given.";
    BYTES_IN = Counter "tiderace_bytes_in_total" ["source"] "Bytes that a source read, as decoded rows.";
    BYTES_OUT = Counter "tiderace_bytes_out_total" ["sink"] "Bytes that a sink was given, as rows.";
    ROWS_DROPPED = Counter "tiderace_rows_dropped_total" ["node", "cause"] "Rows that took no further part and are kept nowhere, by node and cause: `late`, or the error code of bad rows that the policy skips.";
    ROWS_KEPT_ASIDE = Counter "tiderace_rows_kept_aside_total" ["node", "cause"] "Rows that took no further part and went to `LATE DATA TO` or to a dead-letter table, by node and cause.";
    SPLITS_OPENED = Counter "tiderace_source_splits_opened_total" ["source"] "Splits (files, partitions) that a source opened.";
    SPLITS_FINISHED = Counter "tiderace_source_splits_finished_total" ["source"] "Splits that a source read to their end.";
    SOURCE_ENDED = Gauge "tiderace_source_ended" ["source"] "1 when a source has ended, by itself or because the job was stopped.";
    WATERMARK = Gauge "tiderace_watermark_timestamp_seconds" ["node", "kind"] "Watermark of a node as Unix time: no row before it is expected. Absent where there is none, and at the end of the input.";
    LAG = Gauge "tiderace_lag_seconds" ["node", "kind"] "How far a node's watermark is behind the wall clock. Absent without a watermark.";
    NODE_ROWS_IN = Counter "tiderace_node_rows_in_total" ["node", "kind"] "Rows that came into a node of the plan.";
    NODE_ROWS_OUT = Counter "tiderace_node_rows_out_total" ["node", "kind"] "Rows that went out of a node of the plan on its main output.";
    NODE_STATE = Gauge "tiderace_node_state_bytes" ["node", "kind"] "State that a node keeps; for a sink, what it holds back for the running epoch.";
    NODE_QUEUED = Gauge "tiderace_node_queued_bytes" ["node", "kind"] "What waits in front of a node.";
    NODE_OUTBOUND = Gauge "tiderace_node_outbound_bytes" ["node", "kind"] "What waits behind a node to cross to other cores.";
    EPOCHS = Counter "tiderace_epochs_total" [] "Epochs that every node has completed on every core.";
    CORES = Gauge "tiderace_cores" [] "Pinned cores of the job.";
    CORE_BUSY = Counter "tiderace_core_busy_seconds_total" ["core"] "Time that a core worked.";
    CORE_IDLE = Counter "tiderace_core_idle_seconds_total" ["core"] "Time that a core had nothing to do.";
    CORE_TURN = Gauge "tiderace_core_longest_turn_seconds" ["core"] "The longest time since the start that a core worked without looking at its queues and clock.";
    STATE = Gauge "tiderace_state_bytes" ["core"] "State in memory of a core.";
    STATE_BUDGET = Gauge "tiderace_state_budget_bytes" ["core"] "What the state of a core may hold in memory; a job that needs more fails with TR-2009, unless it has a `state.directory`.";
    IO_BACKEND = Gauge "tiderace_io_backend" ["core", "backend"] "1 for how a core's `state.directory` is reached: io_uring or threads.";
    STATE_RELIEF = Gauge "tiderace_state_memory_relief_ratio" ["core"] "The share of its memory that a core's state gives up because the process is short of memory.";
    STATE_WRITTEN = Counter "tiderace_state_written_bytes_total" ["core"] "Bytes of pages that a core wrote to its `state.directory`.";
    STATE_PAGES_WRITTEN = Counter "tiderace_state_pages_written_total" ["core"] "Pages that a core wrote to its `state.directory`.";
    STATE_PAGES_READ = Counter "tiderace_state_pages_read_total" ["core"] "Pages that a core read back from its `state.directory`.";
    STATE_PAGES_AWAITED = Counter "tiderace_state_pages_waited_for_total" ["core"] "Those of them for which the core stood and waited.";
    MEMORY_PEAK = Gauge "tiderace_memory_peak_bytes" [] "The most memory that the process held.";
    MEMORY_LIMIT = Gauge "tiderace_memory_limit_bytes" [] "Memory that cgroup and machine leave to the process.";
    EXCEPTIONS = Counter "tiderace_exceptions_total" [] "Errors and refused rows, as `/v1/exceptions` counts them.";
    REQUESTS = Counter "tiderace_http_requests_total" ["path", "code"] "Requests to the admin API, probes and this page, by path and status.";
    CERTIFICATES = Gauge "tiderace_certificates_loaded_timestamp_seconds" [] "Unix time at which the certificates in use were read.";
    CERTIFICATE_FAILURES = Counter "tiderace_certificate_reload_failures_total" [] "How often changed certificates could not be used.";
}

/// What a page is made of.
pub(crate) struct Facts<'a> {
    /// The job, if there is one.
    pub host: Option<&'a Host>,
    /// Requests by path and status.
    pub requests: BTreeMap<(String, u16), u64>,
    /// Certificates, if the admin API has some.
    pub certificates: Option<CertificateCounts>,
    /// Unix milliseconds of the process's start.
    pub started_ms: i64,
}

enum Family {
    Counter(CounterVec),
    Gauge(GaugeVec),
}

/// Values of one scrape.
struct Page {
    registry: Registry,
    families: BTreeMap<&'static str, Family>,
}

impl Page {
    fn new() -> prometheus::Result<Self> {
        let (registry, mut families) = (Registry::new(), BTreeMap::new());
        for spec in METRICS {
            let opts = Opts::new(spec.name, spec.help);
            let family = match spec.kind {
                MetricKind::Counter => {
                    let family = CounterVec::new(opts, spec.labels)?;
                    registry.register(Box::new(family.clone()))?;
                    Family::Counter(family)
                }
                MetricKind::Gauge => {
                    let family = GaugeVec::new(opts, spec.labels)?;
                    registry.register(Box::new(family.clone()))?;
                    Family::Gauge(family)
                }
            };
            families.insert(spec.name, family);
        }
        Ok(Self { registry, families })
    }

    fn set(&self, name: &'static str, labels: &[&str], value: f64) -> prometheus::Result<()> {
        match self.families.get(name) {
            Some(Family::Counter(family)) => family.get_metric_with_label_values(labels)?.inc_by(value.max(0.0)),
            Some(Family::Gauge(family)) => family.get_metric_with_label_values(labels)?.set(value),
            None => {}
        }
        Ok(())
    }

    fn text(&self) -> prometheus::Result<String> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

/// The page.
pub(crate) fn render(facts: &Facts<'_>) -> prometheus::Result<String> {
    let page = Page::new()?;
    let version = super::admin::version_reply();
    page.set(BUILD_INFO, &[&version.version, version.commit.as_deref().unwrap_or_default()], 1.0)?;
    page.set(START_TIME, &[], facts.started_ms as f64 / 1e3)?;
    if let Some(bytes) = machine::memory_peak_bytes() {
        page.set(MEMORY_PEAK, &[], bytes as f64)?;
    }
    if let Some(bytes) = machine::memory_available_bytes() {
        page.set(MEMORY_LIMIT, &[], bytes as f64)?;
    }
    for ((path, code), count) in &facts.requests {
        page.set(REQUESTS, &[path, &code.to_string()], *count as f64)?;
    }
    if let Some(certificates) = facts.certificates {
        page.set(CERTIFICATES, &[], certificates.loaded_ms as f64 / 1e3)?;
        page.set(CERTIFICATE_FAILURES, &[], certificates.failures as f64)?;
    }
    if let Some(host) = facts.host {
        job(&page, host)?;
    }
    page.text()
}

const STATES: [WorkerState; 6] = [
    WorkerState::Starting,
    WorkerState::Running,
    WorkerState::Draining,
    WorkerState::Stopped,
    WorkerState::Finished,
    WorkerState::Failed,
];

fn job(page: &Page, host: &Host) -> prometheus::Result<()> {
    let moment: Moment = host.moment();
    for state in STATES {
        page.set(JOB_STATE, &[&format!("{state:?}")], if state == moment.state { 1.0 } else { 0.0 })?;
    }
    let plan_hash = moment.planned.as_ref().map_or("", |planned| planned.plan_hash.as_str());
    page.set(JOB_INFO, &[host.job(), &host.epoch().to_string(), plan_hash], 1.0)?;
    page.set(EXCEPTIONS, &[], moment.exceptions_total as f64)?;
    if let Some(planned) = &moment.planned {
        page.set(CORES, &[], planned.cores as f64)?;
    }
    if let Some(progress) = &moment.progress {
        nodes(page, progress, moment.planned.as_ref())?;
        cores(page, progress)?;
    }
    Ok(())
}

fn nodes(page: &Page, progress: &JobProgress, planned: Option<&Planned>) -> prometheus::Result<()> {
    page.set(JOB_UPTIME, &[], progress.elapsed.as_secs_f64())?;
    page.set(EPOCHS, &[], progress.epoch.0 as f64)?;
    let is_kept = |node: &str, kept| planned.is_some_and(|p| p.kept.contains(&(node.to_owned(), kept)));
    for node in &progress.nodes {
        let name = node.name.as_str();
        let kind = match node.kind {
            NodeKind::Source => "source",
            NodeKind::Operator => "operator",
            NodeKind::Sink => "sink",
        };
        let labels = [name, kind];
        match node.kind {
            NodeKind::Source => {
                page.set(ROWS_IN, &[name], node.rows_in as f64)?;
                page.set(BYTES_IN, &[name], node.bytes_in as f64)?;
                page.set(SPLITS_OPENED, &[name], node.splits_opened as f64)?;
                page.set(SPLITS_FINISHED, &[name], node.splits_finished as f64)?;
                page.set(SOURCE_ENDED, &[name], f64::from(u8::from(node.ended)))?;
            }
            NodeKind::Sink => {
                page.set(ROWS_OUT, &[name], node.rows_out as f64)?;
                page.set(BYTES_OUT, &[name], node.bytes_out as f64)?;
            }
            NodeKind::Operator => {}
        }
        page.set(NODE_ROWS_IN, &labels, node.rows_in as f64)?;
        page.set(NODE_ROWS_OUT, &labels, node.rows_out as f64)?;
        page.set(NODE_STATE, &labels, node.state_bytes as f64)?;
        page.set(NODE_QUEUED, &labels, node.queued_bytes as f64)?;
        page.set(NODE_OUTBOUND, &labels, node.outbound_bytes as f64)?;
        if let Some(us) = watermark_us(node.watermark.0) {
            page.set(WATERMARK, &labels, us as f64 / 1e6)?;
        }
        if let Some(us) = node.lag_us {
            page.set(LAG, &labels, us as f64 / 1e6)?;
        }
        // From the first scrape on, so that a rate over it is a number and not nothing.
        if node.kind == NodeKind::Operator || node.late_rows > 0 {
            let name_of = if is_kept(name, Kept::Late) { ROWS_KEPT_ASIDE } else { ROWS_DROPPED };
            page.set(name_of, &[name, "late"], node.late_rows as f64)?;
        }
        for (code, rows) in node.rejected.iter().filter(|(code, rows)| *code != Code::LateRow && *rows > 0) {
            let name_of = if is_kept(name, Kept::Rejected) { ROWS_KEPT_ASIDE } else { ROWS_DROPPED };
            page.set(name_of, &[name, &code.to_string()], *rows as f64)?;
        }
    }
    Ok(())
}

fn cores(page: &Page, progress: &JobProgress) -> prometheus::Result<()> {
    for (number, core) in progress.cores.iter().enumerate() {
        let number = number.to_string();
        let label = [number.as_str()];
        page.set(CORE_BUSY, &label, core.busy.as_secs_f64())?;
        page.set(CORE_IDLE, &label, core.idle.as_secs_f64())?;
        page.set(CORE_TURN, &label, core.longest_turn.as_secs_f64())?;
        page.set(STATE, &label, core.state_bytes as f64)?;
        page.set(STATE_BUDGET, &label, core.budget_bytes as f64)?;
        if let Some(io) = &core.state_io {
            page.set(IO_BACKEND, &[number.as_str(), io.backend.name()], 1.0)?;
            page.set(STATE_RELIEF, &label, f64::from(io.relief_permille) / 1000.0)?;
            page.set(STATE_WRITTEN, &label, io.bytes_written as f64)?;
            page.set(STATE_PAGES_WRITTEN, &label, io.pages_written as f64)?;
            page.set(STATE_PAGES_READ, &label, io.pages_read as f64)?;
            page.set(STATE_PAGES_AWAITED, &label, io.pages_waited_for as f64)?;
        }
    }
    Ok(())
}

/// The reference page's table.
#[must_use]
pub fn metrics_markdown() -> String {
    let mut text = String::from("| metric | type | labels | |\n|---|---|---|---|\n");
    for spec in METRICS {
        let kind = match spec.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        };
        let labels: Vec<_> = spec.labels.iter().map(|label| format!("`{label}`")).collect();
        let _infallible = writeln!(text, "| `{}` | {kind} | {} | {} |", spec.name, labels.join(", "), spec.help);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        let mut names: Vec<_> = METRICS.iter().map(|spec| spec.name).collect();
        for spec in METRICS {
            assert!(spec.name.starts_with("tiderace_"), "{}", spec.name);
            assert!(!spec.name.starts_with("tiderace_operator_"), "{}: the operator's", spec.name);
            assert_eq!(spec.name.ends_with("_total"), spec.kind == MetricKind::Counter, "{}", spec.name);
            assert!(spec.help.ends_with('.'), "{}", spec.name);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METRICS.len());
    }

    #[test]
    fn a_process_without_a_job_still_tells_what_it_is() {
        let requests = BTreeMap::from([(("/v1/plan:check".to_owned(), 200), 3)]);
        let facts = Facts { host: None, requests, certificates: None, started_ms: 1500 };
        let text = render(&facts).unwrap();
        assert!(text.contains("tiderace_http_requests_total{code=\"200\",path=\"/v1/plan:check\"} 3\n"), "{text}");
        assert!(text.contains("tiderace_start_time_seconds 1.5\n") && text.contains("tiderace_build_info{"), "{text}");
        assert!(!text.contains("tiderace_job_state"), "{text}");
    }
}
