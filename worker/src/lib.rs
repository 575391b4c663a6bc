//! One pod of Tiderace, and the command line `tiderace`.
//!
//! ```text
//! arguments ─ command ─▶ job file ─ crds ─▶ SQL, options ─ engine::plan ─▶ graph ─ engine::runtime ─▶ rows on stdout
//!                           │                   │                            │
//!                           └── places ─────────┴─▶ report (stderr): errors, progress, summary
//! ```
//! Rows and listings go to stdout, everything else to stderr, so that a pipe gets rows alone. The library has no global state: the binary
//! reads arguments, environment and signals once and hands on values.
#![forbid(unsafe_code)]

mod app;
pub mod book;
pub mod command;
mod device_probe;
pub mod error_pages;
pub mod exit;
mod inspect;
pub mod job_file;
pub mod listing;
pub mod machine;
mod plan_check;
mod planning;
pub mod progress;
pub mod report;
pub mod result_table;
mod run;
mod secret_files;
pub mod serve;
pub mod summary;
mod termination;
pub mod text_table;

pub use app::main_with_arguments;
