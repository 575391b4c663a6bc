//! The only module with `unsafe` code: memory of tables, and the kernel's I/O ring.
#![allow(unsafe_code, reason = "mapping, alignment, prefetch, buffers lent to the kernel; each block argues its safety")]

mod lanes;
mod memory;
mod ring;

pub(crate) use lanes::matching_tags;
pub(crate) use memory::Buffer;
pub(crate) use ring::{Ended, Ring, RingFile, RingOp};
