//! The statement loop: splits a script into statements, parses each by itself, collects all errors.
//!
//! Each statement gets a parser of its own over its own tokens. An open parenthesis can't swallow the statements behind it, and "the
//! statement ends here" is said at its end.

use std::collections::BTreeMap;

use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Token, TokenWithSpan};

use super::ast::{Insert, Script, Statement, StatementKind};
use super::dialect::{TideraceDialect, is_end};
use super::keyword::is_word;
use super::tokens::{StatementTokens, span_of, split};
use super::{SCRIPT_BYTES_MAX, rewrite, statement, syntax_error, text};
use crate::error::{Code, Diagnostic, Diagnostics, Result, Span};

/// What stops the parsing of a statement: sqlparser's error, or one of ours.
#[derive(Debug)]
pub(super) enum Stop {
    /// From sqlparser.
    Syntax(ParserError),
    /// Ours, with its place.
    Known(Box<Diagnostic>),
}

impl From<ParserError> for Stop {
    fn from(error: ParserError) -> Self {
        Self::Syntax(error)
    }
}

impl From<Diagnostic> for Stop {
    fn from(error: Diagnostic) -> Self {
        Self::Known(Box::new(error))
    }
}

/// The result of our own rules.
pub(super) type Parsed<T> = std::result::Result<T, Stop>;

/// See [`super::parse`].
pub(super) fn parse_script(source: &str, variables: &BTreeMap<String, String>) -> Result<Script, Diagnostics> {
    let parsed = parse_what_can_be(source, variables);
    if parsed.errors.is_empty() { Ok(parsed.script) } else { Err(Diagnostics(parsed.errors)) }
}

/// The right statements of a text, and what is wrong with the others.
#[derive(Debug)]
pub struct Partial {
    /// The statements that are right.
    pub script: Script,
    /// What is wrong with the others, by place.
    pub errors: Vec<Diagnostic>,
    /// The names that broken CREATE statements would have defined.
    pub broken: Vec<String>,
    /// Whether the right statements mean what the user meant: not when a `${variable}` has no value, or a quote is left open.
    pub is_whole: bool,
}

/// See [`super::parse_partial`].
pub(super) fn parse_what_can_be(source: &str, variables: &BTreeMap<String, String>) -> Partial {
    let (substituted, mut errors) = text::substitute(source, variables);
    if substituted.text.len() > SCRIPT_BYTES_MAX {
        let message = format!("the job's text is {} bytes long, more than {SCRIPT_BYTES_MAX}", substituted.text.len());
        let errors = vec![Diagnostic::new(Code::Syntax, message)];
        return Partial { script: Script { statements: Vec::new() }, errors, broken: Vec::new(), is_whole: false };
    }
    let (parts, more) = split(&substituted);
    errors.extend(more);
    let is_whole = errors.iter().all(|error| error.code == Code::UnknownHint);
    let mut script = Loop { statements: Vec::new(), errors, broken: Vec::new(), set: None };
    for part in parts {
        script.take(part);
    }
    script.finish(is_whole)
}

/// The name that a CREATE statement would define: behind its kind and IF NOT EXISTS.
fn created_name(tokens: &[TokenWithSpan]) -> Option<String> {
    const BEFORE: &[&str] = &[
        "CREATE",
        "OR",
        "REPLACE",
        "TEMPORARY",
        "TEMP",
        "SYSTEM",
        "TABLE",
        "SOURCE",
        "SINK",
        "VIEW",
        "STREAM",
        "MATERIALIZED",
        "FUNCTION",
        "IF",
        "NOT",
        "EXISTS",
    ];
    let mut words = tokens.iter().map(|token| &token.token).filter(|token| !matches!(token, Token::Whitespace(_)));
    if !words.next().is_some_and(|first| is_word(first, "CREATE")) {
        return None;
    }
    let name = words.find(|token| !BEFORE.iter().any(|word| is_word(token, word)))?;
    match name {
        Token::Word(word) => Some(word.value.clone()),
        _ => None,
    }
}

/// A statement set whose `END` has not come yet.
struct OpenSet {
    inserts: Vec<Insert>,
    explain: Option<statement::ExplainOptions>,
    begin: Span,
}

struct Loop {
    statements: Vec<Statement>,
    errors: Vec<Diagnostic>,
    broken: Vec<String>,
    set: Option<OpenSet>,
}

impl Loop {
    fn take(&mut self, part: StatementTokens) {
        let StatementTokens { tokens, span } = part;
        let mut parser = Parser::new(&TideraceDialect).with_tokens_with_locations(tokens.clone());
        let errors_before = self.errors.len();
        let parsed = self.statement(&mut parser, span);
        self.keep(parsed, &tokens, span);
        if self.errors.len() > errors_before {
            self.broken.extend(created_name(&tokens));
        }
    }

    fn keep(&mut self, parsed: Parsed<Option<Statement>>, tokens: &[TokenWithSpan], span: Span) {
        match parsed {
            Ok(Some(mut parsed)) => {
                let errors = rewrite::statement(&mut parsed);
                if !errors.is_empty() {
                    self.errors.extend(errors);
                    return;
                }
                let parsed_span = parsed.span;
                match (&mut self.set, parsed.kind) {
                    (Some(set), StatementKind::Insert(insert)) => set.inserts.push(insert),
                    (Some(_), _) => self.errors.push(
                        Diagnostic::new(Code::Syntax, "a statement set holds nothing but INSERT statements")
                            .at(parsed_span)
                            .hint("write it before EXECUTE STATEMENT SET"),
                    ),
                    (None, kind) => self.statements.push(Statement { kind, span: parsed_span }),
                }
            }
            Ok(None) => {}
            Err(Stop::Syntax(error)) => self.errors.push(syntax_error::diagnose(&error, tokens, span)),
            Err(Stop::Known(error)) => {
                let place = error.span.unwrap_or(span);
                self.errors.push(error.at(place));
            }
        }
    }

    /// One statement; `None` when it was only the beginning or the end of a set.
    fn statement(&mut self, parser: &mut Parser<'_>, span: Span) -> Parsed<Option<Statement>> {
        if let Some(explain) = statement::explain_set(parser)? {
            self.open_set(span, Some(explain))?;
        } else if statement::begin_set(parser)? {
            self.open_set(span, None)?;
        } else if self.set.is_some() && is_word(&parser.peek_token_ref().token, "END") {
            parser.advance_token();
            expect_end(parser)?;
            self.close_set(span);
            return Ok(None);
        }
        if is_end(&parser.peek_token_ref().token) {
            return Ok(None);
        }
        let start = span_of(parser.peek_token_ref().span).map_or(span.start, |s| s.start);
        let kind = statement::parse(parser, Span { start, end: span.end })?;
        expect_end(parser)?;
        Ok(Some(Statement { kind, span: Span { start, end: span.end } }))
    }

    fn open_set(&mut self, begin: Span, explain: Option<statement::ExplainOptions>) -> Result<()> {
        if self.set.is_some() {
            return Err(Diagnostic::new(Code::Syntax, "a statement set begins inside another")
                .at(begin)
                .hint("end the first with END;"));
        }
        self.set = Some(OpenSet { inserts: Vec::new(), explain, begin });
        Ok(())
    }

    fn close_set(&mut self, end: Span) {
        let Some(set) = self.set.take() else { return };
        let span = set.begin.to(end);
        if set.inserts.is_empty() {
            if self.errors.is_empty() {
                self.errors.push(Diagnostic::new(Code::NothingToRun, "the statement set is empty").at(span));
            }
            return;
        }
        let statement = Statement { kind: StatementKind::StatementSet(set.inserts), span };
        self.statements.push(match set.explain {
            Some(explain) => Statement { kind: StatementKind::Explain(explain.of(statement)), span },
            None => statement,
        });
    }

    fn finish(mut self, is_whole: bool) -> Partial {
        if let Some(set) = &self.set {
            self.errors.push(
                Diagnostic::new(Code::Syntax, "a statement set is never ended")
                    .at(set.begin)
                    .hint("write END; behind its last INSERT"),
            );
        }
        self.errors.sort_by_key(|error| error.span.map_or(usize::MAX, |span| span.start));
        self.errors.dedup();
        Partial { script: Script { statements: self.statements }, errors: self.errors, broken: self.broken, is_whole }
    }
}

/// Nothing may be left of the statement.
pub(super) fn expect_end(parser: &Parser<'_>) -> Result<(), ParserError> {
    let next = parser.peek_token_ref();
    if is_end(&next.token) { Ok(()) } else { parser.expected_ref("end of statement", next) }
}

/// Takes the next token when it is that word.
pub(super) fn take_word(parser: &mut Parser<'_>, word: &str) -> bool {
    let found = is_word(&parser.peek_token_ref().token, word);
    if found {
        parser.advance_token();
    }
    found
}

/// Takes the next tokens when they are those words; none when not all are.
pub(super) fn take_words(parser: &mut Parser<'_>, words: &[&str]) -> bool {
    let found = words.iter().enumerate().all(|(n, word)| is_word(&parser.peek_nth_token_ref(n).token, word));
    if found {
        for _ in words {
            parser.advance_token();
        }
    }
    found
}

/// Takes that word, or says that it should stand here.
pub(super) fn expect_word(parser: &mut Parser<'_>, word: &str) -> Result<(), ParserError> {
    if take_word(parser, word) { Ok(()) } else { parser.expected_ref(word, parser.peek_token_ref()) }
}

/// The place of the next token; at the end, the place behind the last.
pub(super) fn next_span(parser: &Parser<'_>) -> Option<Span> {
    span_of(parser.peek_token_ref().span)
}

/// The place of the token that was taken last.
pub(super) fn last_span(parser: &Parser<'_>) -> Option<Span> {
    let mut index = parser.index();
    while index > 0 {
        index -= 1;
        let token = parser.token_at(index);
        if !matches!(token.token, Token::Whitespace(_) | Token::EOF) {
            return span_of(token.span);
        }
    }
    None
}

/// From `start` to the token that was taken last.
pub(super) fn span_since(parser: &Parser<'_>, start: Option<Span>) -> Option<Span> {
    let start = start?;
    Some(last_span(parser).map_or(start, |last| start.to(last)))
}
