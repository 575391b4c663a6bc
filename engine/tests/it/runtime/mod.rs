//! The runtime: marks and watermarks, back-pressure, endings, and results that don't depend on cores or epochs.

mod ending;
mod flow;
mod marks;
mod random;
mod support;
