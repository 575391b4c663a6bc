//! An operator over the API server in memory: passes one after the other, by a clock that the test moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::Uri;
use kube::api::DynamicObject;
use serde_json::{Value, json};
use tiderace_crds::admin::{PlanCheckReply, PlanCheckRequest, StatusReply, StopRequest};
use tiderace_operator::certificates::Lifetimes;
use tiderace_operator::context::{Clock, Context, Options};
use tiderace_operator::election::Leadership;
use tiderace_operator::metrics::Metrics;
use tiderace_operator::reconcile::{ReconcileError, reconcile_job};
use tiderace_operator::worker_client::{Call, CallError, Target, Workers};

use crate::api_server::ApiServer;

/// 2026-11-21T12:00:00Z.
pub const START_MS: u64 = 1_795_262_400_000;

/// Answers for the workers of the API server's pods.
struct Fake(ApiServer);

impl Workers for Fake {
    fn status<'a>(&'a self, _: &'a Target) -> Call<'a, StatusReply> {
        let state = self.0.state();
        assert!(state.worker != "Panics", "a mistake made on purpose");
        let pod =
            state.objects.values().find(|o| o["kind"] == "Pod" && o["metadata"]["labels"]["tiderace.dev/epoch"].is_string());
        let epoch: Option<u64> = pod.and_then(|p| p["metadata"]["labels"]["tiderace.dev/epoch"].as_str()?.parse().ok());
        let reply = epoch.map(|epoch| {
            serde_json::from_value(json!({
                "job": "orders", "epoch": epoch, "state": state.worker, "planHash": "sha256:1", "cores": 1, "rowsIn": 3, "rowsOut": 2,
                "rowsDropped": 0, "stateBytes": 0, "stateBudgetBytes": 0, "startedMs": 0,
            }))
            .unwrap()
        });
        Box::pin(async move { reply.ok_or_else(|| CallError::Unreachable("nobody".to_owned())) })
    }

    fn is_running(&self, _: std::net::IpAddr) -> Call<'_, bool> {
        let running = self.0.state().worker == "Running";
        Box::pin(async move { Ok(running) })
    }

    fn stop<'a>(&'a self, _: &'a Target, _: &'a StopRequest) -> Call<'a, ()> {
        self.0.state().worker = "Stopped";
        Box::pin(async { Ok(()) })
    }

    fn check_plan<'a>(&'a self, _: &'a Target, _: &'a PlanCheckRequest) -> Call<'a, PlanCheckReply> {
        Box::pin(async { Err(CallError::Unreachable("it doesn't plan".to_owned())) })
    }

    fn check_plan_by<'a>(&'a self, _: &'a Uri, _: &'a PlanCheckRequest) -> Call<'a, PlanCheckReply> {
        Box::pin(async { Err(CallError::Unreachable("it doesn't plan".to_owned())) })
    }
}

pub struct World {
    pub server: ApiServer,
    pub clock: Arc<AtomicU64>,
    context: Arc<Context>,
}

impl World {
    pub fn new() -> Self {
        let server = ApiServer::new();
        let clock = Arc::new(AtomicU64::new(START_MS));
        let context = context(&server, &clock);
        Self { server, clock, context }
    }

    /// Another process takes over, with nothing in its memory.
    pub fn restart(&mut self) {
        self.context = context(&self.server, &self.clock);
    }

    /// A watch reports a change.
    pub fn mark_changed(&self) {
        self.context.mark_changed(("shop".to_owned(), "orders".to_owned()));
    }

    /// Another process takes over, which looks at quiet jobs only so often.
    pub fn restart_with_interval(&mut self, interval: Duration) {
        self.context = context_with(&self.server, &self.clock, interval);
    }

    pub async fn pass(&self) -> Result<Duration, ReconcileError> {
        let trigger: DynamicObject =
            serde_json::from_value(json!({"metadata": {"name": "orders", "namespace": "shop", "uid": "uid-0"}})).unwrap();
        let result = reconcile_job(Arc::new(trigger), Arc::clone(&self.context)).await;
        self.clock.fetch_add(1000, Ordering::SeqCst);
        result.map(|_| Duration::ZERO)
    }

    /// Passes, with the cluster living on in between, until `done`; a pass that fails is made again. The number of passes.
    pub async fn until(&mut self, what: &str, mut done: impl FnMut(&ApiServer) -> bool) -> usize {
        for pass in 0..400 {
            if done(&self.server) {
                return pass;
            }
            let result = self.pass().await;
            if result.is_err() && self.server.state().fault.is_death() {
                // The process is gone; another begins.
                self.server.state().fault = crate::api_server::Fault::None;
                self.restart();
            }
            self.server.live();
        }
        panic!(
            "not within 400 passes: {what}; the job is {:#}",
            self.server.get("streamingjobs.tiderace", "orders").unwrap_or_default()
        );
    }

    pub async fn until_ready(&mut self, reason: &str) -> usize {
        let what = format!("Ready for {reason}");
        self.until(&what, |server| {
            let Some(job) = server.get("streamingjobs.tiderace", "orders") else { return false };
            let ready = condition(&job, "Ready");
            ready["status"] == "True" && ready["reason"] == reason && ready["observedGeneration"] == job["metadata"]["generation"]
        })
        .await
    }

    pub fn change(&self, change: Value) {
        let mut job = self.server.get("streamingjobs.tiderace", "orders").unwrap_or_else(|| {
            json!({"apiVersion": "tiderace.dev/v1alpha1", "kind": "StreamingJob", "metadata": {"name": "orders"},
                   "spec": {"sql": {"inline": "SELECT 1"}, "state": "Running", "replicas": 1, "maxParallelism": 256}})
        });
        for (key, value) in change.as_object().unwrap() {
            job["spec"][key] = value.clone();
        }
        self.server.apply("streamingjobs.tiderace", job);
    }
}

pub fn condition(job: &Value, kind: &str) -> Value {
    job["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind).cloned().unwrap_or_default()
}

fn context(server: &ApiServer, clock: &Arc<AtomicU64>) -> Arc<Context> {
    context_with(server, clock, Duration::ZERO)
}

fn context_with(server: &ApiServer, clock: &Arc<AtomicU64>, whole_pass_interval: Duration) -> Arc<Context> {
    let options = Options {
        default_image: "tiderace:1".to_owned(),
        image_pull_policy: None,
        operator_namespace: "tiderace-system".to_owned(),
        planner_url: None,
        whole_pass_interval,
        worker_otlp_endpoint: None,
        lifetimes: Lifetimes::default(),
    };
    let workers = Arc::new(Fake(server.clone()));
    let context = Context::new(server.client(), options, workers, Metrics::new(), Leadership::alone(), "test");
    Arc::new(context.with_clock(Clock::Test(Arc::clone(clock))))
}
