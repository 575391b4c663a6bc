//! sqlparser's errors, told to a person: one sentence, the place, a hint where there is one.

use sqlparser::keywords::Keyword;
use sqlparser::parser::ParserError;
use sqlparser::tokenizer::{Token, TokenWithSpan};

use super::keyword::{closest, is_word};
use super::tokens::span_of;
use crate::error::{Code, Diagnostic, Span};

/// Words that begin a statement, and the words that may follow `CREATE`; for hints.
pub(super) const STATEMENT_WORDS: &[&str] =
    &["CREATE", "INSERT", "SELECT", "WITH", "SET", "RESET", "DROP", "SHOW", "DESCRIBE", "EXPLAIN", "EXECUTE", "VALUES"];

/// Words of clauses inside a statement; for hints.
const CLAUSE_WORDS: &[&str] = &[
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP",
    "BY",
    "HAVING",
    "UNION",
    "ORDER",
    "LIMIT",
    "AS",
    "INTO",
    "TABLE",
    "VIEW",
    "WITH",
    "WATERMARK",
    "FOR",
    "PRIMARY",
    "KEY",
    "NOT",
    "ENFORCED",
    "METADATA",
    "INTERVAL",
    "VALUES",
    "PARTITIONED",
    "BETWEEN",
    "DISTINCT",
    "JOIN",
    "EMIT",
    "WINDOW",
    "CLOSE",
    "UPDATE",
    "CHANGES",
    "EVERY",
    "AFTER",
    "LATENESS",
    "DATA",
];

/// The error of one statement whose words are `tokens` and whose place is `span`.
pub(super) fn diagnose(error: &ParserError, tokens: &[TokenWithSpan], span: Span) -> Diagnostic {
    if let Some(misplaced) = misplaced_emit(tokens) {
        return misplaced;
    }
    let message = match error {
        ParserError::RecursionLimitExceeded => {
            return Diagnostic::new(Code::Syntax, "the statement is nested too deeply")
                .at(span)
                .hint("give inner parts a name with WITH or CREATE VIEW");
        }
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message,
    };
    let (message, offset) = split_place(message);
    let found = offset.and_then(|offset| {
        tokens
            .iter()
            .position(|t| !is_space(t) && span_of(t.span).is_some_and(|s| s.start <= offset && offset < s.end.max(s.start + 1)))
    });
    let place = match found {
        Some(index) => span_of(tokens[index].span).unwrap_or(span),
        None => offset.map_or(Span { start: span.end, end: span.end }, |offset| Span { start: offset, end: offset + 1 }),
    };
    let expected = message
        .strip_prefix("Expected: ")
        .or_else(|| message.strip_prefix("Expected "))
        .and_then(|rest| rest.rsplit_once(", found: "));
    let sentence = match expected {
        Some((expected, "EOF")) => format!("the statement ends where {} should follow", expected_words(expected)),
        Some((expected, found)) => format!("{} should stand here, not {}", expected_words(expected), quoted(found)),
        None => format!("this can't be parsed: {}", lower_first(message)),
    };
    let diagnostic = Diagnostic::new(Code::Syntax, sentence).at(place);
    match found.and_then(|index| misspelled(tokens, index)) {
        Some((word, near, place)) => diagnostic.hint(format!("did you mean {near} instead of {word}?")).at(place),
        None => match expected {
            Some((_, found)) if found == "user" || found == "order" || found == "group" => {
                diagnostic.hint(format!("a name that is an SQL word is written in quotes: \"{found}\""))
            }
            _ => diagnostic,
        },
    }
}

/// EMIT inside parentheses: where only the outermost query may have it.
fn misplaced_emit(tokens: &[TokenWithSpan]) -> Option<Diagnostic> {
    let code: Vec<&TokenWithSpan> = tokens.iter().filter(|t| !is_space(t)).collect();
    let mut depth = 0i32;
    for pair in code.windows(2) {
        match pair[0].token {
            Token::LParen => depth += 1,
            Token::RParen => depth -= 1,
            _ => {}
        }
        let clause = is_word(&pair[0].token, "EMIT")
            && ["ON", "AFTER", "CHANGES", "EVERY"].iter().any(|word| is_word(&pair[1].token, word));
        if depth > 0 && clause {
            return Some(
                Diagnostic::new(Code::EmitMisplaced, "EMIT stands inside a subquery")
                    .at(span_of(pair[0].span))
                    .hint("EMIT says how the whole statement's result comes out: write it at the end of the outermost query"),
            );
        }
    }
    None
}

/// The word at `index`, or the one before it, when it is a keyword with a slip.
fn misspelled(tokens: &[TokenWithSpan], index: usize) -> Option<(String, &'static str, Option<Span>)> {
    let before = (0..index).rev().find(|i| !is_space(&tokens[*i]));
    [Some(index), before].into_iter().flatten().find_map(|index| {
        let Token::Word(word) = &tokens[index].token else { return None };
        if word.quote_style.is_some() || word.keyword != Keyword::NoKeyword || word.value.len() < 3 {
            return None;
        }
        closest(&word.value, CLAUSE_WORDS.iter().copied()).map(|near| (word.value.clone(), near, span_of(tokens[index].span)))
    })
}

fn is_space(token: &TokenWithSpan) -> bool {
    matches!(token.token, Token::Whitespace(_))
}

/// Cuts ` at Line: 1, Column: n` off: n − 1 is the offset.
fn split_place(message: &str) -> (&str, Option<usize>) {
    if let Some((text, place)) = message.rsplit_once(" at Line: ") {
        let column = place.rsplit_once("Column: ").and_then(|(_, column)| column.trim().parse::<usize>().ok());
        return (text, column.and_then(|column| column.checked_sub(1)));
    }
    (message, None)
}

fn quoted(found: &str) -> String {
    if found.starts_with('\'') || found.starts_with('"') || found.starts_with('`') {
        found.to_owned()
    } else {
        format!("`{found}`")
    }
}

fn expected_words(expected: &str) -> String {
    match expected {
        "an SQL statement" => "a statement".to_owned(),
        "an expression" => "an expression".to_owned(),
        "identifier" => "a name".to_owned(),
        "end of statement" => "the statement's end".to_owned(),
        "SELECT, VALUES, or a subquery in the query body" => "a query (SELECT, VALUES or WITH)".to_owned(),
        "a data type name" => "a type".to_owned(),
        other if other.len() <= 2 && !other.chars().any(char::is_alphanumeric) => format!("`{other}`"),
        other => other.to_owned(),
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}
