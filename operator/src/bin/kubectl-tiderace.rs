//! `kubectl tiderace`: what a person does with StreamingJobs.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    tiderace_operator::plugin::main_with_arguments()
}
