//! `EMIT …`, `ALLOW LATENESS …`, `LATE DATA TO …` behind a query, in any order, each once.

use sqlparser::parser::Parser;

use super::ast::{Emit, EmitMode, Spanned};
use super::interval::{self, Interval};
use super::keyword::closest;
use super::parser::{Parsed, expect_word, next_span, span_since, take_word, take_words};
use crate::error::{Code, Diagnostic, Span};

/// The clauses that stand here, if any do.
pub(super) fn parse(parser: &mut Parser<'_>) -> Parsed<Emit> {
    let mut emit = Emit::default();
    loop {
        let start = next_span(parser);
        if take_word(parser, "EMIT") {
            let value = mode(parser)?;
            put(&mut emit.mode, value, span_since(parser, start), "EMIT")?;
        } else if take_words(parser, &["ALLOW", "LATENESS"]) {
            let value = length(parser)?;
            put(&mut emit.lateness, value, span_since(parser, start), "ALLOW LATENESS")?;
        } else if take_words(parser, &["LATE", "DATA"]) {
            expect_word(parser, "TO")?;
            let value = parser.parse_object_name(false)?;
            put(&mut emit.late_data_to, value, span_since(parser, start), "LATE DATA TO")?;
        } else {
            return Ok(emit);
        }
    }
}

fn put<T>(slot: &mut Option<Spanned<T>>, value: T, span: Option<Span>, clause: &str) -> Parsed<()> {
    let span = span.unwrap_or(Span { start: 0, end: 0 });
    if slot.is_some() {
        return Err(Diagnostic::new(Code::Syntax, format!("{clause} stands twice")).at(span).into());
    }
    *slot = Some(Spanned { value, span });
    Ok(())
}

fn mode(parser: &mut Parser<'_>) -> Parsed<EmitMode> {
    if take_word(parser, "CHANGES") {
        return Ok(EmitMode::Changes);
    }
    if take_words(parser, &["ON", "WINDOW", "CLOSE"]) {
        return Ok(EmitMode::OnWindowClose);
    }
    if take_words(parser, &["ON", "UPDATE"]) {
        return Ok(EmitMode::OnUpdate);
    }
    if take_words(parser, &["AFTER", "WATERMARK"]) {
        return Ok(EmitMode::AfterWatermark);
    }
    if take_word(parser, "EVERY") {
        return Ok(EmitMode::Every(length(parser)?));
    }
    let first = parser.peek_token();
    let error = Diagnostic::new(
        Code::Syntax,
        format!("`{}` says no way to emit", format!("EMIT {first}").trim_end_matches("EOF").trim_end()),
    )
    .at(next_span(parser));
    let hint = "the ways are EMIT ON WINDOW CLOSE, EMIT ON UPDATE, EMIT AFTER WATERMARK, EMIT CHANGES and EMIT EVERY interval";
    Err(match closest(&first.to_string(), ["CHANGES", "AFTER", "EVERY"]) {
        Some(near) => error.hint(format!("did you mean EMIT {near}? {hint}")),
        None => error.hint(hint),
    }
    .into())
}

/// A constant interval, longer than nothing and without months.
fn length(parser: &mut Parser<'_>) -> Parsed<Interval> {
    let span = next_span(parser);
    let expr = parser.parse_expr()?;
    let length = interval::constant(&expr).map_err(|error| error.at(span_since(parser, span)))?;
    if !length.is_positive() || length.months != 0 {
        return Err(Diagnostic::new(
            Code::InvalidArgument,
            format!("`{expr}` must be longer than nothing, and counted in days or less"),
        )
        .at(span_since(parser, span))
        .into());
    }
    Ok(length)
}
