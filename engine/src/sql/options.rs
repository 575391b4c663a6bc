//! `WITH ('key' = 'value', 'other' = SECRET 'name', …)`.

use std::collections::BTreeSet;

use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::Token;

use super::keyword::is_word;
use super::parser::{Parsed, last_span, next_span, span_since};
use crate::connect::Options;
use crate::error::{Code, Diagnostic};

/// The options in parentheses, from the `(`. Keys are texts or words with dots and dashes between; values are texts, numbers, words.
pub(super) fn parse(parser: &mut Parser<'_>) -> Parsed<Options> {
    parser.expect_token(&Token::LParen)?;
    let mut seen = BTreeSet::new();
    let mut values = Vec::new();
    let mut secrets = Vec::new();
    if !parser.consume_token(&Token::RParen) {
        loop {
            let start = next_span(parser);
            let name = key(parser)?;
            parser.expect_token(&Token::Eq)?;
            let secret = is_word(&parser.peek_token_ref().token, "SECRET")
                && matches!(parser.peek_nth_token_ref(1).token, Token::SingleQuotedString(_));
            if secret {
                parser.advance_token();
            }
            let value = value(parser)?;
            if !seen.insert(name.clone()) {
                return Err(Diagnostic::new(Code::DuplicateName, format!("option '{name}' is given twice")).at(start).into());
            }
            if secret {
                secrets.push((name, value, span_since(parser, start)));
            } else {
                values.push((name, value, span_since(parser, start)));
            }
            if !parser.consume_token(&Token::Comma) {
                break;
            }
        }
        parser.expect_token(&Token::RParen)?;
    }
    Ok(secrets.into_iter().fold(Options::new(values), |all, (key, name, span)| all.with_secret(key, name, span)))
}

/// `'a.b-c'`, or the same without quotes. Ends before `=`.
pub(super) fn key(parser: &mut Parser<'_>) -> Result<String, ParserError> {
    let mut text = String::new();
    loop {
        let token = parser.next_token();
        match token.token {
            Token::SingleQuotedString(part) | Token::DoubleQuotedString(part) => text.push_str(&part),
            Token::Word(word) => text.push_str(&word.value),
            Token::Number(part, _) if !text.is_empty() => text.push_str(&part),
            _ => return parser.expected("an option's name", token),
        }
        match parser.peek_token_ref().token {
            Token::Period => text.push('.'),
            Token::Minus => text.push('-'),
            _ => return Ok(text),
        }
        parser.advance_token();
    }
}

/// A text, a number with a sign, `true`, `false`, or a word.
fn value(parser: &mut Parser<'_>) -> Result<String, ParserError> {
    let token = parser.next_token();
    match token.token {
        Token::SingleQuotedString(text) | Token::DoubleQuotedString(text) | Token::EscapedStringLiteral(text) => Ok(text),
        Token::Word(word) => Ok(word.value),
        Token::Number(text, _) => Ok(text),
        Token::Minus => match parser.next_token() {
            token if matches!(token.token, Token::Number(..)) => Ok(format!("-{token}")),
            token => parser.expected("a number", token),
        },
        _ => parser.expected("a value: a text in single quotes, a number, true or false", token),
    }
}

/// The rest of a statement as the value of SET: one text, or words and numbers up to the end.
pub(super) fn set_value(parser: &mut Parser<'_>) -> Result<String, ParserError> {
    let mut text = value(parser)?;
    let mut end = last_span(parser).map(|span| span.end);
    loop {
        let token = parser.peek_token();
        let part = match &token.token {
            Token::Word(word) => word.value.clone(),
            Token::Number(number, _) => number.clone(),
            Token::Period | Token::Minus | Token::Colon | Token::Div | Token::Plus | Token::Comma => token.token.to_string(),
            _ => return Ok(text),
        };
        let span = next_span(parser);
        if span.map(|span| span.start) != end {
            text.push(' ');
        }
        text.push_str(&part);
        end = span.map(|span| span.end);
        parser.advance_token();
    }
}
