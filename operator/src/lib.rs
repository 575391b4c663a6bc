//! The controller of StreamingJobs.
//!
//! ```text
//! StreamingJob, pods, … ──observe──▶ facts ──decide (pure)──▶ Decision ──execute──▶ status, then children, worker calls
//! ```
//! It links no planner and no engine: a plan is checked by the job's own image. `kubectl tiderace`, the plugin, is here too.
#![forbid(unsafe_code)]

mod cannot_run;
pub mod certificates;
pub mod check;
pub mod command;
pub mod context;
pub mod count_requests;
pub mod decide;
pub mod election;
pub mod events;
pub mod execute;
pub mod health;
pub mod metrics;
pub mod names;
pub mod observe;
pub mod ownership;
pub mod plugin;
pub mod pod_facts;
pub mod quantity;
pub mod rbac;
pub mod reconcile;
pub mod render;
pub mod run;
pub mod webhook;
pub mod worker_client;
