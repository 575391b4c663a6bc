//! Tests of the whole product on a real Kubernetes: real pods with the real images, nodes that are killed, drained and cut off.
//!
//! ```text
//! make e2e ─▶ tiderace-e2e run ─▶ cluster   e2e/cluster/tidecluster: up, images, node kill …
//!                                 install   Helm charts of the checkout
//!                                 runner    scenarios: first those that share the cluster, side by side; then, one at a time,
//!                                           those that break something others need
//!                                 scenario  a namespace of its own ─▶ job ─▶ wait for what must become true ─▶ delete
//!                                              └ failed: dump of objects, events and logs
//! ```
//!
//! What a scenario waits for is a condition with a deadline ([`wait::until`]), never a time. Jobs are read as plain JSON, as users and GitOps tools see them.
//! It does not test SQL: that is done without a cluster.

pub mod bench;
pub mod charts;
pub mod cluster;
pub mod collector;
pub mod dump;
pub mod images;
pub mod install;
pub mod job;
pub mod runner;
pub mod scenarios;
pub mod space;
pub mod storm;
pub mod wait;
