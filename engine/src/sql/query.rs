//! A statement's outermost query, and its EMIT clause.

use sqlparser::ast::helpers::attached_token::AttachedToken;
use sqlparser::ast::{
    GroupByExpr, ObjectName, Query, Select, SelectFlavor, SelectItem, SetExpr, TableFactor, TableWithJoins,
    WildcardAdditionalOptions,
};
use sqlparser::parser::Parser;

use super::ast::{Emit, StreamQuery};
use super::parser::{Parsed, next_span, span_since};
use super::tokens::span_of_node;
use super::{emit, keyword};
use crate::error::{Code, Diagnostic, Span};

/// The words that begin a query.
const QUERY_WORDS: &[&str] = &["SELECT", "WITH", "VALUES"];

/// Whether a query begins at the next token.
pub(super) fn begins(parser: &Parser<'_>) -> bool {
    let next = &parser.peek_token_ref().token;
    QUERY_WORDS.iter().any(|word| keyword::is_word(next, word)) || *next == sqlparser::tokenizer::Token::LParen
}

/// A query and its EMIT clause.
pub(super) fn parse(parser: &mut Parser<'_>) -> Parsed<StreamQuery> {
    let start = next_span(parser);
    let query = parser.parse_query()?;
    let span = span_since(parser, start).unwrap_or(Span { start: 0, end: 0 });
    let emit = emit::parse(parser)?;
    Ok(StreamQuery { query, emit, span })
}

/// A query that may not say how it is emitted: `what` is the thing that holds it.
pub(super) fn parse_without_emit(parser: &mut Parser<'_>, what: &str) -> Parsed<StreamQuery> {
    let query = parse(parser)?;
    let clause = query.emit.mode.as_ref().map(|m| m.span).or(query.emit.lateness.map(|l| l.span));
    if let Some(span) = clause.or(query.emit.late_data_to.as_ref().map(|l| l.span)) {
        return Err(Diagnostic::new(Code::EmitMisplaced, format!("{what} can't say how it is emitted"))
            .at(span)
            .hint("write EMIT at the INSERT, SINK, STREAM or MATERIALIZED VIEW that reads it")
            .into());
    }
    Ok(query)
}

/// `SELECT * FROM name`.
pub(super) fn select_all(name: ObjectName) -> StreamQuery {
    let span = span_of_node(&name).unwrap_or(Span { start: 0, end: 0 });
    let from = TableWithJoins { relation: table(name), joins: Vec::new() };
    let select = Select {
        select_token: AttachedToken::empty(),
        optimizer_hints: Vec::new(),
        distinct: None,
        select_modifiers: None,
        top: None,
        top_before_distinct: false,
        projection: vec![SelectItem::Wildcard(WildcardAdditionalOptions::default())],
        exclude: None,
        into: None,
        from: vec![from],
        lateral_views: Vec::new(),
        prewhere: None,
        selection: None,
        connect_by: Vec::new(),
        group_by: GroupByExpr::Expressions(Vec::new(), Vec::new()),
        cluster_by: Vec::new(),
        distribute_by: Vec::new(),
        sort_by: Vec::new(),
        having: None,
        named_window: Vec::new(),
        qualify: None,
        window_before_qualify: false,
        value_table_mode: None,
        flavor: SelectFlavor::Standard,
    };
    let query = Query {
        with: None,
        body: Box::new(SetExpr::Select(Box::new(select))),
        order_by: None,
        limit_clause: None,
        fetch: None,
        locks: Vec::new(),
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators: Vec::new(),
    };
    StreamQuery { query: Box::new(query), emit: Emit::default(), span }
}

/// A relation by its name, without alias or arguments.
pub(super) fn table(name: ObjectName) -> TableFactor {
    TableFactor::Table {
        name,
        alias: None,
        args: None,
        with_hints: Vec::new(),
        version: None,
        with_ordinality: false,
        partitions: Vec::new(),
        json_path: None,
        sample: None,
        index_hints: Vec::new(),
    }
}
