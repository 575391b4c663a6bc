//! From where a job is to what its conditions say.
//!
//! Ready, Running and PlanValid are always there. Reconciling and Stalled are there only while they are True, and never both: a tool that sees
//! Reconciling waits on, and a job that needs a person must not look as if waiting helped.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The longest message: an API server takes 32 KiB, and people read less.
const MESSAGE_BYTES_MAX: usize = 4096;

/// One condition as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its type.
    pub kind: &'static str,
    /// `True`, `False`, `Unknown`.
    pub status: &'static str,
    /// One word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// `old` made into `wanted`. A transition's time stays while the status does.
#[must_use]
pub fn transition(old: &[Condition], wanted: Vec<Wanted>, generation: i64, now: Timestamp) -> Vec<Condition> {
    wanted
        .into_iter()
        .map(|w| {
            let before = old.iter().find(|c| c.type_ == w.kind && c.status == w.status);
            let mut message = w.message;
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
            Condition {
                type_: w.kind.to_owned(),
                status: w.status.to_owned(),
                reason: w.reason.to_owned(),
                message,
                observed_generation: Some(generation),
                last_transition_time: before.map_or(Time(now), |c| c.last_transition_time.clone()),
            }
        })
        .collect()
}

/// The condition of that type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == kind)
}

/// Whether the condition of that type is True.
#[must_use]
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|c| c.status == "True")
}
