//! The primitives that threads share. Tests of the shared pieces put a scheduler's own in this module's place (`tests/interleavings`).

pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
pub(crate) use std::thread;
