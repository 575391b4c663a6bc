//! The few bytes that a container may leave behind for the kubelet, which shows them in the pod's status.

use std::fmt::Write as _;
use std::path::Path;

use tiderace_crds::admin::{PlanCheckReply, Problem};

use crate::plan_check;

/// The kubelet reads so many bytes of the file, and no more.
pub(crate) const TERMINATION_BYTES_MAX: usize = 4096;

/// Leaves `problems` behind, a line each, the code first. Without the file (outside of a pod) nothing is left.
pub(crate) fn write_problems(path: &Path, problems: &[Problem]) {
    write(path, &problems_text(problems));
}

/// Leaves the answer of a plan check behind: all of it, or as many of its errors as there is room for.
pub(crate) fn write_plan_check(path: &Path, reply: &PlanCheckReply) {
    write(path, &plan_check_text(reply));
}

fn write(path: &Path, text: &str) {
    if let Err(error) = std::fs::write(path, text) {
        tracing::debug!(path = %path.display(), %error, "no termination log");
    }
}

fn problems_text(problems: &[Problem]) -> String {
    let mut text = String::new();
    for problem in problems {
        let _infallible = write!(text, "{}", problem.code);
        if let (Some(line), Some(column)) = (problem.line, problem.column) {
            let _infallible = write!(text, " line {line}, column {column}");
        }
        let _infallible = write!(text, ": {}", problem.message);
        if let Some(hint) = &problem.hint {
            let _infallible = write!(text, " ({hint})");
        }
        text.push('\n');
    }
    text.truncate(text.floor_char_boundary(TERMINATION_BYTES_MAX));
    text
}

fn plan_check_text(reply: &PlanCheckReply) -> String {
    let mut reply = reply.clone();
    loop {
        let text = plan_check::to_json(&reply);
        if text.len() <= TERMINATION_BYTES_MAX {
            return text;
        }
        if reply.warnings.pop().is_some() {
            continue;
        }
        if reply.errors.len() > 1 {
            reply.errors.pop();
        } else if let Some(error) = reply.errors.first_mut() {
            error.hint = None;
            error.message.truncate(error.message.floor_char_boundary(error.message.len() / 2));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn problem(message: &str) -> Problem {
        Problem { code: "TR-1001".into(), message: message.into(), hint: Some("look".into()), line: Some(3), column: Some(7) }
    }

    #[test]
    fn the_code_comes_first() {
        assert_eq!(problems_text(&[problem("no table `x`")]), "TR-1001 line 3, column 7: no table `x` (look)\n");
    }

    #[test]
    fn nothing_is_longer_than_the_kubelet_reads() {
        for length in [10, 3000, 5000, 100_000] {
            let problems = vec![problem(&"ä\"".repeat(length)); 20];
            let text = problems_text(&problems);
            assert!(text.len() <= TERMINATION_BYTES_MAX && text.starts_with("TR-1001"));
            let warnings = problems.clone();
            let reply = PlanCheckReply { valid: false, plan_hash: None, engine_version: "1".into(), errors: problems, warnings };
            let text = plan_check_text(&reply);
            assert!(text.len() <= TERMINATION_BYTES_MAX);
            let back: PlanCheckReply = serde_json::from_str(&text).unwrap();
            assert!(!back.errors.is_empty() && !back.valid);
        }
    }
}
