//! Integration tests of the engine: one binary.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod data;
mod explain;
mod golden;
mod larger_than_memory;
mod late;
mod memory;
mod random;
mod recovery;
mod refused;
mod runtime;
mod slt;
