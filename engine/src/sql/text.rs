//! `${name}` in a job's text, and where each byte of the result stood before.

use std::collections::BTreeMap;

use super::keyword::closest;
use crate::error::{Code, Diagnostic, Span};

/// A text with its variables put in, and the way back.
#[derive(Debug)]
pub(super) struct Substituted {
    /// The text that is parsed.
    pub text: String,
    pieces: Vec<Piece>,
    original_len: usize,
}

/// A run of bytes of [`Substituted::text`].
#[derive(Debug)]
struct Piece {
    start: usize,
    original: Span,
    is_variable: bool,
}

impl Substituted {
    /// Where the bytes from `start` to `end` stood in the user's text. A place inside a value is the place of its whole `${name}`.
    pub(super) fn original(&self, start: usize, end: usize) -> Span {
        let first = self.place(start);
        let last = self.place(end.max(start + 1) - 1);
        let end = if last.1 { last.0.end } else { last.0.start + usize::from(end > start) };
        Span { start: first.0.start, end: end.max(first.0.start).min(self.original_len) }
    }

    fn place(&self, at: usize) -> (Span, bool) {
        let index = self.pieces.partition_point(|piece| piece.start <= at);
        let Some(piece) = index.checked_sub(1).and_then(|index| self.pieces.get(index)) else {
            return (Span { start: at, end: at }, false);
        };
        if piece.is_variable {
            return (piece.original, true);
        }
        let start = piece.original.start + (at - piece.start);
        (Span { start, end: start }, false)
    }
}

/// What surrounds the byte that is looked at.
#[derive(Clone, Copy, PartialEq)]
enum Within {
    Code,
    Quotes(char),
    LineComment,
    BlockComment(u32),
}

/// Replaces each `${name}`, but not in comments. A name is made of letters, digits, `_`, `.` and `-`. A name without a value is an error
/// (and is replaced by `_`, which may stand nearly anywhere, so that the parser finds the other errors and no more).
pub(super) fn substitute(text: &str, variables: &BTreeMap<String, String>) -> (Substituted, Vec<Diagnostic>) {
    let mut out = String::with_capacity(text.len());
    let mut pieces = Vec::new();
    let mut errors = Vec::new();
    let mut within = Within::Code;
    let mut copied = 0;
    let mut at = 0;
    let copy = |out: &mut String, pieces: &mut Vec<Piece>, from: usize, to: usize| {
        if from < to {
            pieces.push(Piece { start: out.len(), original: Span { start: from, end: to }, is_variable: false });
            out.push_str(&text[from..to]);
        }
    };
    while let Some(ch) = text[at..].chars().next() {
        let rest = &text[at..];
        let mut step = ch.len_utf8();
        let is_comment = matches!(within, Within::LineComment | Within::BlockComment(_));
        if !is_comment
            && rest.starts_with("${")
            && let Some(name) = variable_name(rest)
        {
            let end = at + name.len() + 3;
            let span = Span { start: at, end };
            copy(&mut out, &mut pieces, copied, at);
            pieces.push(Piece { start: out.len(), original: span, is_variable: true });
            match variables.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push('_');
                    errors.push(unbound(name, variables).at(span));
                }
            }
            copied = end;
            at = end;
            continue;
        }
        within = match within {
            Within::Code if rest.starts_with("--") => Within::LineComment,
            Within::Code if rest.starts_with("/*+") => Within::Code,
            Within::Code if rest.starts_with("/*") => {
                step = 2;
                Within::BlockComment(1)
            }
            Within::Code if matches!(ch, '\'' | '"' | '`') => Within::Quotes(ch),
            Within::Quotes(quote) if ch == quote => Within::Code,
            Within::LineComment if ch == '\n' => Within::Code,
            Within::BlockComment(depth) if rest.starts_with("*/") => {
                step = 2;
                if depth == 1 { Within::Code } else { Within::BlockComment(depth - 1) }
            }
            Within::BlockComment(depth) if rest.starts_with("/*") => {
                step = 2;
                Within::BlockComment(depth + 1)
            }
            other => other,
        };
        at += step;
    }
    copy(&mut out, &mut pieces, copied, text.len());
    (Substituted { text: out, pieces, original_len: text.len() }, errors)
}

fn variable_name(rest: &str) -> Option<&str> {
    let name = rest.strip_prefix("${")?.split_once('}')?.0;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    is_name.then_some(name)
}

fn unbound(name: &str, variables: &BTreeMap<String, String>) -> Diagnostic {
    let error = Diagnostic::new(Code::UnboundVariable, format!("the variable ${{{name}}} has no value"));
    match closest(name, variables.keys().map(String::as_str)) {
        Some(near) => error.hint(format!("did you mean ${{{near}}}?")),
        None => error.hint(format!("give it one with -D {name}=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn places_behind_a_value_are_those_of_the_users_text() {
        let text = "a '${TPS}' ß ${x} end";
        let (out, errors) = substitute(text, &values(&[("TPS", "10000000"), ("x", "")]));
        assert!(errors.is_empty());
        assert_eq!(out.text, "a '10000000' ß  end");
        let at = out.text.find("end").unwrap();
        let span = out.original(at, at + 3);
        assert_eq!(&text[span.start..span.end], "end");
        let at = out.text.find("'1").unwrap();
        let span = out.original(at, at + 10);
        assert_eq!(&text[span.start..span.end], "'${TPS}'");
        let at = out.text.find("00").unwrap();
        let span = out.original(at, at + 2);
        assert_eq!(&text[span.start..span.end], "${TPS}");
    }

    #[test]
    fn a_name_without_value_is_reported_with_its_place_and_comments_are_left_alone() {
        let text = "-- ${nothing}\n/* ${no /* ${deep} */ ${pe} */ SELECT '${TSP}', '--${TPS}'";
        let (out, errors) = substitute(text, &values(&[("TPS", "1")]));
        assert_eq!(out.text, "-- ${nothing}\n/* ${no /* ${deep} */ ${pe} */ SELECT '_', '--1'");
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].code, Code::UnboundVariable);
        let span = errors[0].span.unwrap();
        assert_eq!(&text[span.start..span.end], "${TSP}");
        assert_eq!(errors[0].hint.as_deref(), Some("did you mean ${TPS}?"));
    }
}
