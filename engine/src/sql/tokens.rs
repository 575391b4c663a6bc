//! From text to the tokens of each statement; places become offsets in the user's text; words that sqlparser doesn't know become ones it does.

use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Location, Span as TokenSpan, Token, TokenWithSpan, Tokenizer, Whitespace, Word};

use super::dialect::TideraceDialect;
use super::keyword::is_word;
use super::text::Substituted;
use crate::error::{Code, Diagnostic, Span};

/// The tokens of one statement, without its `;`.
#[derive(Debug)]
pub(super) struct StatementTokens {
    /// With white space; places are written as line 1, column offset + 1.
    pub tokens: Vec<TokenWithSpan>,
    /// First to last word.
    pub span: Span,
}

/// Where a node of the syntax tree stands. `None` for nodes that no text stands for.
#[must_use]
pub fn span_of(span: TokenSpan) -> Option<Span> {
    if span.start.line == 0 || span.end.line == 0 {
        return None;
    }
    let start = usize::try_from(span.start.column).ok()?.checked_sub(1)?;
    let end = usize::try_from(span.end.column).ok()?.checked_sub(1)?;
    Some(Span { start, end: end.max(start) })
}

/// Where a node of the syntax tree stands.
pub fn span_of_node(node: &impl sqlparser::ast::Spanned) -> Option<Span> {
    span_of(node.span())
}

/// The inverse of [`span_of`].
pub(super) fn token_span(span: Span) -> TokenSpan {
    TokenSpan::new(location(span.start), location(span.end))
}

fn location(offset: usize) -> Location {
    Location { line: 1, column: offset as u64 + 1 }
}

/// Turns lines and columns, which only ever go forward, into offsets.
struct Cursor<'t> {
    text: &'t str,
    at: usize,
    line: u64,
    column: u64,
}

impl Cursor<'_> {
    fn offset(&mut self, to: Location) -> usize {
        while (self.line, self.column) < (to.line, to.column) {
            let Some(ch) = self.text[self.at..].chars().next() else { break };
            self.at += ch.len_utf8();
            if ch == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
        self.at
    }
}

/// The statements of a text. With an error when a quote or comment is left open: the statements before it are still there.
pub(super) fn split(source: &Substituted) -> (Vec<StatementTokens>, Vec<Diagnostic>) {
    let mut raw = Vec::new();
    let mut errors = Vec::new();
    let result = Tokenizer::new(&TideraceDialect, &source.text).tokenize_with_location_into_buf(&mut raw);
    let mut cursor = Cursor { text: &source.text, at: 0, line: 1, column: 1 };
    let mut statements = Vec::new();
    let mut tokens: Vec<TokenWithSpan> = Vec::new();
    for mut token in raw {
        let start = cursor.offset(token.span.start);
        let end = cursor.offset(token.span.end);
        token.span = token_span(source.original(start, end));
        if token.token == Token::SemiColon {
            finish(&mut tokens, &mut statements, &mut errors);
        } else if token.token != Token::EOF {
            tokens.push(token);
        }
    }
    if let Err(error) = result {
        let at = cursor.offset(error.location);
        errors.push(open_quote(&error.message).at(source.original(at, (at + 1).min(source.text.len()))));
        // What was read of the broken statement would only give a second error about the same place.
    } else {
        finish(&mut tokens, &mut statements, &mut errors);
    }
    (statements, errors)
}

fn open_quote(message: &str) -> Diagnostic {
    let message = message.to_ascii_lowercase();
    let (what, hint) = if message.contains("comment") {
        ("a comment is never closed", "write */ at its end")
    } else if message.contains("identifier") || message.contains("delimiter") {
        ("a quoted name is never closed", "write the closing quote; a quote inside a name is written twice")
    } else if message.contains("string") {
        ("a text in quotes is never closed", "write the closing ' ; a ' inside a text is written twice")
    } else {
        return Diagnostic::new(Code::Syntax, format!("this can't be read as SQL: {message}"));
    };
    Diagnostic::new(Code::Syntax, what).hint(hint)
}

fn finish(tokens: &mut Vec<TokenWithSpan>, statements: &mut Vec<StatementTokens>, errors: &mut Vec<Diagnostic>) {
    let tokens = std::mem::take(tokens);
    let mut words = tokens.iter().filter(|t| !matches!(t.token, Token::Whitespace(_))).filter_map(|t| span_of(t.span));
    let Some(first) = words.next() else { return };
    let span = words.fold(first, Span::to);
    check_hints(&tokens, errors);
    statements.push(StatementTokens { tokens: adapt(tokens), span });
}

/// Hints are kept behind SELECT only; anywhere else the parser would skip them as comments.
fn check_hints(tokens: &[TokenWithSpan], errors: &mut Vec<Diagnostic>) {
    let mut after_select = false;
    for token in tokens {
        match &token.token {
            Token::Whitespace(Whitespace::MultiLineComment(comment)) if comment.starts_with('+') => {
                if !after_select {
                    errors.push(
                        Diagnostic::new(Code::UnknownHint, "a hint has its place right behind SELECT")
                            .at(span_of(token.span))
                            .hint("write SELECT /*+ … */ …; options of a table belong into its WITH (…)"),
                    );
                }
            }
            Token::Whitespace(_) => {}
            other => after_select = is_word(other, "SELECT"),
        }
    }
}

fn word(value: &str, keyword: Keyword) -> Token {
    Token::Word(Word { value: value.to_owned(), quote_style: None, keyword })
}

/// Turns what sqlparser can't parse into what it can, token by token:
/// - `TABLE t` as an argument → `t`; `TABLE t PARTITION BY a, b, next` → `t, PARTITION_KEYS => (a, b), next`;
/// - `JSON_OBJECT(KEY 'a' VALUE x, 'b': y)` → `JSON_OBJECT('a', x, 'b', y)`;
/// - `MAP['a', 1]` → `map_of('a', 1)`; with one value in the brackets it is an element of a column called map;
/// - `ROW<…>` → `STRUCT<…>`, and `NOT NULL` inside it → `OPTIONS(not_null = true)`;
/// - `TIMESTAMP(p) WITH LOCAL TIME ZONE` → `TIMESTAMPTZ(p)`, `TIMESTAMP_LTZ '…'` → `TIMESTAMPTZ '…'`.
fn adapt(tokens: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
    let code: Vec<usize> = (0..tokens.len()).filter(|i| !matches!(tokens[*i].token, Token::Whitespace(_))).collect();
    let at = |position: usize| code.get(position).map_or(&Token::EOF, |index| &tokens[*index].token);
    // What stands instead of the token at an index.
    let mut replaced: Vec<(usize, Vec<Token>)> = Vec::new();
    let mut angle_depth = 0usize;
    let mut skip_to = 0;
    for (position, index) in code.iter().copied().enumerate() {
        if position < skip_to {
            continue;
        }
        let token = &tokens[index].token;
        let previous = if position == 0 { &Token::EOF } else { at(position - 1) };
        if angle_depth > 0 {
            match token {
                Token::Lt => angle_depth += 1,
                Token::Gt => angle_depth -= 1,
                Token::ShiftRight => angle_depth = angle_depth.saturating_sub(2),
                _ => {}
            }
        }
        if is_word(token, "ROW") && *at(position + 1) == Token::Lt {
            replaced.push((index, vec![word("STRUCT", Keyword::STRUCT)]));
            if angle_depth == 0 {
                // The `<` itself is counted when it is met.
                angle_depth = 1;
                skip_to = position + 2;
            }
        } else if angle_depth > 0 && is_word(token, "NOT") && is_word(at(position + 1), "NULL") {
            let options = [word("OPTIONS", Keyword::OPTIONS), Token::LParen, word("not_null", Keyword::NoKeyword), Token::Eq];
            replaced.push((index, options.into_iter().chain([word("true", Keyword::TRUE), Token::RParen]).collect()));
            replaced.push((code[position + 1], vec![]));
            skip_to = position + 2;
        } else if is_word(token, "TABLE")
            && matches!(previous, Token::LParen | Token::Comma | Token::RArrow)
            && (matches!(at(position + 1), Token::Word(_))
                || (*at(position + 1) == Token::LParen
                    && (is_word(at(position + 2), "SELECT") || is_word(at(position + 2), "WITH"))))
        {
            replaced.push((index, vec![]));
            partition_keys(&code, &tokens, position, &mut replaced);
        } else if is_word(token, "MAP") && *at(position + 1) == Token::LBracket {
            if let Some(end) = list_end(&code, &tokens, position + 1) {
                replaced.push((index, vec![word("map_of", Keyword::NoKeyword)]));
                replaced.push((code[position + 1], vec![Token::LParen]));
                replaced.push((code[end], vec![Token::RParen]));
            }
        } else if is_word(token, "JSON_OBJECT") && *at(position + 1) == Token::LParen {
            json_members(&code, &tokens, position + 1, &mut replaced);
        } else if is_word(token, "TIMESTAMP") {
            let length = if *at(position + 1) == Token::LParen { 3 } else { 0 };
            let zone = (position + 1 + length..).take(4);
            if zone.zip(["WITH", "LOCAL", "TIME", "ZONE"]).all(|(position, name)| is_word(at(position), name)) {
                replaced.push((index, vec![word("TIMESTAMPTZ", Keyword::TIMESTAMPTZ)]));
                replaced.extend(code[position + 1 + length..position + 5 + length].iter().map(|word| (*word, vec![])));
                skip_to = position + 1;
            }
        } else if is_word(token, "TIMESTAMP_LTZ") && matches!(at(position + 1), Token::SingleQuotedString(_)) {
            replaced.push((index, vec![word("TIMESTAMPTZ", Keyword::TIMESTAMPTZ)]));
        }
    }
    if replaced.is_empty() {
        return tokens;
    }
    replaced.sort_by_key(|(index, _)| *index);
    let mut replaced = replaced.into_iter().peekable();
    let mut out = Vec::with_capacity(tokens.len() + 8);
    for (index, token) in tokens.into_iter().enumerate() {
        match replaced.next_if(|(at, _)| *at == index) {
            Some((_, instead)) => out.extend(instead.into_iter().map(|one| TokenWithSpan::new(one, token.span))),
            None => out.push(token),
        }
    }
    out
}

/// Where the bracket that opens at `position` closes, if there is a comma between its own values.
fn list_end(code: &[usize], tokens: &[TokenWithSpan], position: usize) -> Option<usize> {
    let mut depth = 0usize;
    let mut is_list = false;
    for (here, index) in code.iter().copied().enumerate().skip(position) {
        match tokens[index].token {
            Token::LBracket | Token::LParen | Token::LBrace => depth += 1,
            Token::RBracket | Token::RParen | Token::RBrace => depth = depth.checked_sub(1)?,
            Token::Comma => is_list |= depth == 1,
            _ => {}
        }
        if depth == 0 {
            return is_list.then_some(here);
        }
    }
    None
}

/// `TABLE t PARTITION BY a, b, DESCRIPTOR(ts)` at `position`: the keys reach up to the argument that is a call or has a name.
fn partition_keys(code: &[usize], tokens: &[TokenWithSpan], position: usize, replaced: &mut Vec<(usize, Vec<Token>)>) {
    let at = |position: usize| code.get(position).map_or(&Token::EOF, |index| &tokens[*index].token);
    let mut by = position + 1;
    while matches!(at(by), Token::Word(_) | Token::Period) && !is_word(at(by), "PARTITION") {
        by += 1;
    }
    if !(is_word(at(by), "PARTITION") && is_word(at(by + 1), "BY")) {
        return;
    }
    let mut end = by + 2;
    loop {
        while matches!(at(end), Token::Word(_) | Token::Period) {
            end += 1;
        }
        let next_is_key = *at(end) == Token::Comma
            && matches!(at(end + 1), Token::Word(_))
            && matches!(at(end + 2), Token::Comma | Token::RParen | Token::Period);
        if !next_is_key {
            break;
        }
        end += 1;
    }
    replaced.push((code[by], vec![Token::Comma, word("PARTITION_KEYS", Keyword::NoKeyword), Token::RArrow, Token::LParen]));
    replaced.push((code[by + 1], vec![]));
    if let Some(last) = end.checked_sub(1).filter(|last| *last > by + 1) {
        let token = tokens[code[last]].token.clone();
        replaced.push((code[last], vec![token, Token::RParen]));
    }
}

/// The members of `JSON_OBJECT(` whose parenthesis stands at `position`: what separates a key from its value becomes a comma.
fn json_members(code: &[usize], tokens: &[TokenWithSpan], position: usize, replaced: &mut Vec<(usize, Vec<Token>)>) {
    let at = |position: usize| code.get(position).map_or(&Token::EOF, |index| &tokens[*index].token);
    let mut depth = 0usize;
    // Where the member at hand begins; `None` behind its key.
    let mut member = None;
    for (here, index) in code.iter().copied().enumerate().skip(position) {
        let token = &tokens[index].token;
        match token {
            Token::LParen | Token::LBracket => {
                depth += 1;
                if depth == 1 {
                    member = Some(here + 1);
                }
            }
            Token::RParen | Token::RBracket => depth = depth.saturating_sub(1),
            Token::Comma if depth == 1 => member = Some(here + 1),
            _ if depth == 1 => {
                let Some(start) = member else { continue };
                let has_value = !matches!(at(here + 1), Token::Comma | Token::RParen | Token::EOF);
                if here == start && is_word(token, "KEY") && has_value {
                    replaced.push((index, vec![]));
                } else if here > start && (is_word(token, "VALUE") || *token == Token::Colon) && has_value {
                    replaced.push((index, vec![Token::Comma]));
                    member = None;
                }
            }
            _ => {}
        }
        if depth == 0 {
            return;
        }
    }
}
