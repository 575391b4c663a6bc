//! Hints, `/*+ NAME(…) */` behind SELECT: each that is known elsewhere is refused by its name as long as nothing here heeds it, others as unknown.
//! None is passed over: a hint that is ignored is a promise that is not kept.

use sqlparser::ast::{OptimizerHint, Query, SetExpr};

use super::keyword::closest;
use super::tokens::span_of_node;
use crate::error::{Code, Diagnostic};

/// Hints of this language and of Flink, and why there is nothing for them to do.
const KNOWN: &[(&str, &str)] = &[
    ("BROADCAST", "it is about joins, which can't be run yet"),
    ("LOOKUP", "it is about lookup joins, which can't be run yet"),
    ("MULTI_JOIN", "it is about joins, which can't be run yet"),
    ("NEST_LOOP", "it is about joins, which can't be run yet"),
    ("SHUFFLE_HASH", "it is about joins, which can't be run yet"),
    ("SHUFFLE_MERGE", "it is about joins, which can't be run yet"),
    ("STATE_TTL", "state has no time to live yet; group by a window, whose state ends with it"),
    ("OPTIONS", "options of a table belong into its WITH (…)"),
    ("PARALLELISM", "the whole job runs on as many cores as --cores or the manifest says"),
    ("UID", "state is kept by what an operator does"),
];

/// What is wrong with the hints of `query`, of itself and not of its subqueries.
pub(super) fn check(query: &Query, errors: &mut Vec<Diagnostic>) {
    body(&query.body, errors);
}

fn body(set: &SetExpr, errors: &mut Vec<Diagnostic>) {
    match set {
        SetExpr::Select(select) => {
            for hint in &select.optimizer_hints {
                for name in names(hint) {
                    errors.push(refuse(&name).at(span_of_node(select.as_ref())));
                }
            }
        }
        SetExpr::SetOperation { left, right, .. } => {
            body(left, errors);
            body(right, errors);
        }
        _ => {}
    }
}

/// The words that begin each hint of `A(…), B(…) C`.
fn names(hint: &OptimizerHint) -> Vec<String> {
    let (mut found, mut depth) = (Vec::new(), 0usize);
    let mut word = String::new();
    for ch in hint.text.chars().chain([' ']) {
        if depth == 0 && (ch.is_alphanumeric() || ch == '_') {
            word.push(ch);
            continue;
        }
        if !word.is_empty() {
            found.push(std::mem::take(&mut word));
        }
        match ch {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    found
}

fn refuse(name: &str) -> Diagnostic {
    match KNOWN.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
        Some((known, why)) => {
            Diagnostic::new(Code::Unsupported, format!("the hint {known} has no effect here: {why}")).hint("leave the hint out")
        }
        None => {
            let error = Diagnostic::new(Code::UnknownHint, format!("there is no hint {name}"));
            match closest(name, KNOWN.iter().map(|(known, _)| *known)) {
                Some(near) => error.hint(format!("did you mean {near}?")),
                None => error.hint("leave the hint out"),
            }
        }
    }
}
