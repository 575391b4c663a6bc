//! The primitives that threads share. Tests of the shared pieces put a scheduler's own in this module's place (`tests/interleavings`).

pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
pub(crate) use std::thread;
