//! Figures of the operator and of the jobs it sees, for Prometheus.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{
    Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use tiderace_crds::{Phase, StreamingJobStatus};

use crate::decide::Job;

/// Every phase, so that a job has a series of 0 or 1 for each.
const PHASES: [Phase; 10] = [
    Phase::Pending,
    Phase::Starting,
    Phase::Running,
    Phase::Upgrading,
    Phase::Recovering,
    Phase::Suspending,
    Phase::Suspended,
    Phase::Finished,
    Phase::Failed,
    Phase::Deleting,
];
const CONDITIONS: [&str; 5] = ["Ready", "Reconciling", "Stalled", "Running", "PlanValid"];

/// All figures; a cheap handle.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    reconciles: IntCounterVec,
    reconcile_seconds: HistogramVec,
    errors: IntCounterVec,
    leader: IntGauge,
    queue_depth: Gauge,
    crd_missing: IntGaugeVec,
    api_requests: IntCounterVec,
    job_phase: IntGaugeVec,
    job_condition: IntGaugeVec,
    job_replicas: IntGaugeVec,
    job_restarts: IntCounterVec,
    job_lag: GaugeVec,
    operation_seconds: HistogramVec,
    webhook_requests: IntCounterVec,
    /// By uid: namespace, name, restarts that are counted, the operation's kind and step with the second it began.
    jobs: Mutex<HashMap<String, Seen>>,
}

struct Seen {
    namespace: String,
    name: String,
    restarts: u64,
    step: Option<(String, String, i64)>,
}

impl Metrics {
    /// All at zero.
    ///
    /// # Panics
    /// Never: the names below are valid and differ.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let full = |name: &str| format!("tiderace_operator_{name}");
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(full(name), help), labels).expect("a valid name");
            registry.register(Box::new(metric.clone())).expect("names differ");
            metric
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntGaugeVec::new(Opts::new(full(name), help), labels).expect("a valid name");
            registry.register(Box::new(metric.clone())).expect("names differ");
            metric
        };
        let histograms = |name: &str, help: &str, labels: &[&str], buckets: Vec<f64>| {
            let metric = HistogramVec::new(HistogramOpts::new(full(name), help).buckets(buckets), labels).expect("a valid name");
            registry.register(Box::new(metric.clone())).expect("names differ");
            metric
        };
        let leader = IntGauge::new(full("leader"), "Whether this process leads").expect("a valid name");
        registry.register(Box::new(leader.clone())).expect("names differ");
        let queue_depth = Gauge::new(full("queue_depth"), "Reconciliations under way").expect("a valid name");
        registry.register(Box::new(queue_depth.clone())).expect("names differ");
        let job_lag = GaugeVec::new(
            Opts::new(full("job_lag_seconds"), "How far a job is behind its input"),
            &["job_namespace", "job_name"],
        )
        .expect("a valid name");
        registry.register(Box::new(job_lag.clone())).expect("names differ");
        let inner = Inner {
            reconciles: counters("reconcile_total", "Reconciliations", &["kind", "result"]),
            reconcile_seconds: histograms(
                "reconcile_duration_seconds",
                "How long a reconciliation took",
                &["kind"],
                vec![0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0],
            ),
            errors: counters("reconcile_errors_total", "Reconciliations that failed", &["kind", "reason"]),
            leader,
            queue_depth,
            crd_missing: gauges("crd_missing", "Whether a definition isn't in the cluster", &["crd"]),
            api_requests: counters("api_requests_total", "Requests to the API server", &["verb", "resource", "code"]),
            job_phase: gauges("job_phase", "1 for the phase that a job is in", &["job_namespace", "job_name", "phase"]),
            job_condition: gauges("job_condition", "1 where a job's condition is True", &["job_namespace", "job_name", "type"]),
            job_replicas: gauges("job_replicas", "Workers of a job", &["job_namespace", "job_name", "kind"]),
            job_restarts: counters(
                "job_restarts_total",
                "Failures and losses of a job's workers",
                &["job_namespace", "job_name"],
            ),
            job_lag,
            operation_seconds: histograms(
                "operation_duration_seconds",
                "How long a step of an operation took",
                &["type", "step"],
                vec![0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0],
            ),
            webhook_requests: counters("webhook_requests_total", "Manifests that the webhook judged", &["verdict"]),
            jobs: Mutex::default(),
            registry: registry.clone(),
        };
        Self(Arc::new(inner))
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        let mut buffer = Vec::new();
        TextEncoder::new().encode(&self.0.registry.gather(), &mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer).into_owned())
    }

    /// A reconciliation begins.
    pub fn begin(&self) {
        self.0.queue_depth.inc();
    }

    /// A reconciliation ended.
    pub fn end(&self, kind: &str, seconds: f64, error: Option<&str>) {
        self.0.queue_depth.dec();
        self.0.reconciles.with_label_values(&[kind, if error.is_some() { "error" } else { "ok" }]).inc();
        self.0.reconcile_seconds.with_label_values(&[kind]).observe(seconds);
        if let Some(reason) = error {
            self.0.errors.with_label_values(&[kind, reason]).inc();
        }
    }

    /// Whether this process leads.
    pub fn set_leader(&self, leads: bool) {
        self.0.leader.set(i64::from(leads));
    }

    /// Whether a definition is missing.
    pub fn set_crd_missing(&self, crd: &str, is_missing: bool) {
        self.0.crd_missing.with_label_values(&[crd]).set(i64::from(is_missing));
    }

    /// A request to the API server was answered; code 0 where it wasn't.
    pub fn count_request(&self, verb: &str, resource: &str, code: u16) {
        self.0.api_requests.with_label_values(&[verb, resource, &code.to_string()]).inc();
    }

    /// The webhook judged a manifest.
    pub fn count_verdict(&self, verdict: &str) {
        self.0.webhook_requests.with_label_values(&[verdict]).inc();
    }

    /// A job's figures, by its newest status.
    pub fn show(&self, job: &Job, status: &StreamingJobStatus) {
        let labels = [job.namespace.as_str(), job.name.as_str()];
        for phase in PHASES {
            let name = format!("{phase:?}");
            self.0.job_phase.with_label_values(&[labels[0], labels[1], &name]).set(i64::from(status.phase == Some(phase)));
        }
        for kind in CONDITIONS {
            let is_true = crate::decide::is_true(&status.conditions, kind);
            self.0.job_condition.with_label_values(&[labels[0], labels[1], kind]).set(i64::from(is_true));
        }
        for (kind, count) in [
            ("desired", i64::from(job.spec.replicas)),
            ("current", status.replicas.into()),
            ("ready", status.ready_replicas.into()),
        ] {
            self.0.job_replicas.with_label_values(&[labels[0], labels[1], kind]).set(count);
        }
        if let Some(lag) = status.lag {
            #[expect(clippy::cast_precision_loss, reason = "a figure on a graph")]
            self.0.job_lag.with_label_values(&labels).set(lag.seconds as f64);
        }
        let mut jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let count = status.restarts.as_ref().map_or(0, |r| r.count);
        let seen = jobs.entry(job.uid.clone()).or_insert_with(|| Seen {
            namespace: job.namespace.clone(),
            name: job.name.clone(),
            restarts: count,
            step: None,
        });
        self.0.job_restarts.with_label_values(&labels).inc_by(count.saturating_sub(seen.restarts));
        seen.restarts = count;
        let step =
            status.operation.as_ref().map(|o| (format!("{:?}", o.kind), format!("{:?}", o.step), o.step_at.0.as_millisecond()));
        if step != seen.step {
            if let Some((kind, name, since)) = seen.step.take() {
                #[expect(clippy::cast_precision_loss, reason = "a figure on a graph")]
                let seconds = (jiff::Timestamp::now().as_millisecond() - since).max(0) as f64 / 1000.0;
                self.0.operation_seconds.with_label_values(&[kind.as_str(), name.as_str()]).observe(seconds);
            }
            seen.step = step;
        }
    }

    /// A job is gone, and its series with it.
    pub fn forget(&self, uid: &str) {
        let Some(seen) = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(uid) else { return };
        let labels = [seen.namespace.as_str(), seen.name.as_str()];
        // A series that was never made can't be removed, which is as good.
        for phase in PHASES {
            let _absent = self.0.job_phase.remove_label_values(&[labels[0], labels[1], &format!("{phase:?}")]);
        }
        for kind in CONDITIONS {
            let _absent = self.0.job_condition.remove_label_values(&[labels[0], labels[1], kind]);
        }
        for kind in ["desired", "current", "ready"] {
            let _absent = self.0.job_replicas.remove_label_values(&[labels[0], labels[1], kind]);
        }
        let _absent = self.0.job_restarts.remove_label_values(&labels);
        let _absent = self.0.job_lag.remove_label_values(&labels);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
