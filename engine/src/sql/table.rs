//! `CREATE TABLE`, `CREATE SOURCE`, `CREATE SINK`: columns, computed columns, metadata, key, watermark, options.

use sqlparser::ast::{Ident, ObjectName};
use sqlparser::keywords::Keyword;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

use super::ast::{ColumnDef, ColumnKind, CreateSink, CreateTable, StatementKind, TableRole, Watermark};
use super::keyword::is_word;
use super::parser::{Parsed, expect_word, next_span, span_since, take_word, take_words};
use super::{options, query};
use crate::connect::Options;
use crate::error::{Code, Diagnostic, Span};

/// The most columns that a table may have.
pub const COLUMNS_MAX: usize = 4096;

/// What stood between CREATE and the table's name.
pub(super) struct Head {
    pub role: TableRole,
    pub or_replace: bool,
    pub span: Span,
}

/// What stands between the parentheses of a table.
#[derive(Default)]
struct Body {
    columns: Vec<ColumnDef>,
    primary_key: Vec<Ident>,
    watermark: Option<Watermark>,
}

/// From the name on.
pub(super) fn parse(parser: &mut Parser<'_>, head: &Head) -> Parsed<StatementKind> {
    let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let name = parser.parse_object_name(false)?;
    let mut body = Body::default();
    let mut has_body = false;
    if parser.consume_token(&Token::LParen) {
        has_body = true;
        elements(parser, &mut body, &name)?;
    }
    let mut comment = None;
    let mut partitioned_by = Vec::new();
    let mut with: Option<Options> = None;
    let mut from = None;
    loop {
        let start = next_span(parser);
        if take_word(parser, "COMMENT") {
            comment = Some(parser.parse_literal_string()?);
        } else if take_words(parser, &["PARTITIONED", "BY"]) {
            partitioned_by = parser.parse_parenthesized_column_list(sqlparser::parser::IsOptional::Mandatory, false)?;
        } else if with.is_none()
            && is_word(&parser.peek_token_ref().token, "WITH")
            && parser.peek_nth_token_ref(1).token == Token::LParen
        {
            parser.advance_token();
            with = Some(options::parse(parser)?);
        } else if head.role == TableRole::Sink && from.is_none() && take_word(parser, "FROM") {
            from = Some(query::select_all(parser.parse_object_name(false)?));
        } else if head.role == TableRole::Sink && from.is_none() && take_word(parser, "AS") {
            from = Some(query::parse(parser)?);
            break;
        } else if take_word(parser, "AS") {
            return Err(Diagnostic::new(Code::Unsupported, format!("CREATE TABLE {name} AS SELECT can't be run yet"))
                .at(start)
                .hint("create the table with its columns, then INSERT INTO it; or CREATE SINK … AS SELECT")
                .into());
        } else if take_word(parser, "LIKE") {
            return Err(Diagnostic::new(Code::Unsupported, format!("CREATE TABLE {name} LIKE can't be run yet"))
                .at(start)
                .hint("write the columns out")
                .into());
        } else if take_word(parser, "DISTRIBUTED") {
            return Err(Diagnostic::new(Code::Unsupported, "DISTRIBUTED BY can't be run yet").at(start).into());
        } else {
            break;
        }
    }
    let options = with.unwrap_or_default();
    let span = head.span;
    if let Some(query) = from {
        if let Some(column) = body.columns.first() {
            return Err(Diagnostic::new(Code::Syntax, format!("the sink {name} has both columns and a query"))
                .at(column.span)
                .hint("leave the columns out: the query has them; rename them with AS in its SELECT list")
                .into());
        }
        if let Some(watermark) = body.watermark {
            return Err(Diagnostic::new(Code::Syntax, "a sink has no watermark").at(watermark.span).into());
        }
        let Head { or_replace, .. } = *head;
        return Ok(StatementKind::CreateSink(CreateSink {
            name,
            if_not_exists,
            or_replace,
            primary_key: body.primary_key,
            partitioned_by,
            options,
            query,
            span,
        }));
    }
    if !has_body || body.columns.is_empty() {
        let hint = match head.role {
            TableRole::Sink => "write its columns in parentheses, or FROM name, or AS SELECT …",
            _ => "write its columns in parentheses: name type, …",
        };
        return Err(Diagnostic::new(Code::Syntax, format!("{name} has no columns")).at(next_span(parser)).hint(hint).into());
    }
    Ok(StatementKind::CreateTable(CreateTable {
        name,
        role: head.role,
        if_not_exists,
        or_replace: head.or_replace,
        columns: body.columns,
        primary_key: body.primary_key,
        watermark: body.watermark,
        partitioned_by,
        comment,
        options,
        span,
    }))
}

/// Everything up to the closing parenthesis.
fn elements(parser: &mut Parser<'_>, body: &mut Body, table: &ObjectName) -> Parsed<()> {
    loop {
        let start = next_span(parser);
        let is_watermark =
            is_word(&parser.peek_token_ref().token, "WATERMARK") && is_word(&parser.peek_nth_token_ref(1).token, "FOR");
        let is_constraint =
            is_word(&parser.peek_token_ref().token, "CONSTRAINT") && matches!(parser.peek_nth_token_ref(1).token, Token::Word(_));
        let is_key = is_word(&parser.peek_token_ref().token, "PRIMARY") && is_word(&parser.peek_nth_token_ref(1).token, "KEY");
        if is_watermark {
            take_words(parser, &["WATERMARK", "FOR"]);
            let column = parser.parse_identifier()?;
            expect_word(parser, "AS")?;
            let expr = parser.parse_expr()?;
            let span = span_since(parser, start).unwrap_or(Span { start: 0, end: 0 });
            if body.watermark.is_some() {
                return Err(Diagnostic::new(Code::Syntax, format!("the table {table} has two watermarks"))
                    .at(span)
                    .hint("a table has one time column; compute it from several with LEAST(…)")
                    .into());
            }
            body.watermark = Some(Watermark { column, expr, span });
        } else if is_constraint || is_key {
            if is_constraint {
                parser.advance_token();
                parser.parse_identifier()?;
            }
            constraint(parser, body, table, start)?;
        } else {
            let column = column(parser, body, table)?;
            body.columns.push(column);
            if body.columns.len() > COLUMNS_MAX {
                return Err(Diagnostic::new(Code::Syntax, format!("the table {table} has more than {COLUMNS_MAX} columns"))
                    .at(start)
                    .into());
            }
        }
        if parser.consume_token(&Token::RParen) {
            return Ok(());
        }
        if !parser.consume_token(&Token::Comma) {
            parser.expected_ref::<()>("`,` or `)`", parser.peek_token_ref())?;
        }
        // A comma before the closing parenthesis is let pass, as PostgreSQL's users leave one and nothing else can be meant.
        if parser.consume_token(&Token::RParen) {
            return Ok(());
        }
    }
}

fn constraint(parser: &mut Parser<'_>, body: &mut Body, table: &ObjectName, start: Option<Span>) -> Parsed<()> {
    if !take_words(parser, &["PRIMARY", "KEY"]) {
        return Err(Diagnostic::new(Code::Unsupported, format!("the table {table} has a constraint other than PRIMARY KEY"))
            .at(next_span(parser))
            .hint("only PRIMARY KEY (…) NOT ENFORCED is known")
            .into());
    }
    let key = parser.parse_parenthesized_column_list(sqlparser::parser::IsOptional::Mandatory, false)?;
    enforcement(parser)?;
    set_key(body, key, table, span_since(parser, start))
}

/// `NOT ENFORCED`; PostgreSQL's bare PRIMARY KEY means the same here, where no key can be enforced on a stream.
fn enforcement(parser: &mut Parser<'_>) -> Parsed<()> {
    let start = next_span(parser);
    if take_words(parser, &["NOT", "ENFORCED"]) {
        return Ok(());
    }
    if take_word(parser, "ENFORCED") {
        return Err(Diagnostic::new(Code::Unsupported, "a primary key can't be ENFORCED on a stream")
            .at(start)
            .hint("write NOT ENFORCED")
            .into());
    }
    Ok(())
}

fn set_key(body: &mut Body, key: Vec<Ident>, table: &ObjectName, span: Option<Span>) -> Parsed<()> {
    if !body.primary_key.is_empty() {
        return Err(Diagnostic::new(Code::Syntax, format!("the table {table} has two primary keys"))
            .at(span)
            .hint("a key of several columns is written PRIMARY KEY (a, b) NOT ENFORCED")
            .into());
    }
    body.primary_key = key;
    Ok(())
}

fn column(parser: &mut Parser<'_>, body: &mut Body, table: &ObjectName) -> Parsed<ColumnDef> {
    let start = next_span(parser);
    let name = parser.parse_identifier()?;
    let mut comment = None;
    let kind = if take_word(parser, "AS") {
        let expr = parser.parse_expr()?;
        if take_word(parser, "COMMENT") {
            comment = Some(parser.parse_literal_string()?);
        }
        ColumnKind::Computed(expr)
    } else {
        let data_type = parser.parse_data_type()?;
        let mut not_null = false;
        let mut metadata: Option<(String, bool)> = None;
        let mut computed = None;
        loop {
            let at = next_span(parser);
            if take_words(parser, &["NOT", "NULL"]) {
                not_null = true;
            } else if take_word(parser, "NULL") {
                not_null = false;
            } else if take_words(parser, &["PRIMARY", "KEY"]) {
                enforcement(parser)?;
                set_key(body, vec![name.clone()], table, span_since(parser, at))?;
            } else if take_word(parser, "METADATA") {
                let key = if take_word(parser, "FROM") { parser.parse_literal_string()? } else { name.value.clone() };
                metadata = Some((key, take_word(parser, "VIRTUAL")));
            } else if take_word(parser, "COMMENT") {
                comment = Some(parser.parse_literal_string()?);
            } else if take_words(parser, &["GENERATED", "ALWAYS", "AS"]) {
                parser.expect_token(&Token::LParen)?;
                computed = Some(sqlparser::ast::Expr::Cast {
                    kind: sqlparser::ast::CastKind::Cast,
                    expr: Box::new(parser.parse_expr()?),
                    data_type: data_type.clone(),
                    array: false,
                    format: None,
                });
                parser.expect_token(&Token::RParen)?;
                if !take_word(parser, "STORED") {
                    take_word(parser, "VIRTUAL");
                }
            } else if matches!(parser.peek_token_ref().token, Token::Comma | Token::RParen | Token::EOF) {
                break;
            } else if ["DEFAULT", "UNIQUE", "CHECK", "REFERENCES", "COLLATE", "CONSTRAINT"]
                .iter()
                .any(|word| is_word(&parser.peek_token_ref().token, word))
            {
                let word = parser.peek_token();
                return Err(Diagnostic::new(
                    Code::Unsupported,
                    format!("column {name} of {table} has {word}, which is not known here"),
                )
                .at(at)
                .hint("known are NOT NULL, PRIMARY KEY NOT ENFORCED, METADATA FROM '…', COMMENT '…', and name AS expression")
                .into());
            } else {
                parser.expected_ref::<()>("a column's next property, `,` or `)`", parser.peek_token_ref())?;
            }
        }
        match (computed, metadata) {
            (Some(_), Some(_)) => {
                return Err(Diagnostic::new(Code::Syntax, format!("column {name} of {table} is both computed and metadata"))
                    .at(start)
                    .into());
            }
            (Some(expr), None) => ColumnKind::Computed(expr),
            (None, Some((key, is_virtual))) => ColumnKind::Metadata { data_type, not_null, key, is_virtual },
            (None, None) => ColumnKind::Physical { data_type, not_null },
        }
    };
    let span = span_since(parser, start).unwrap_or(Span { start: 0, end: 0 });
    Ok(ColumnDef { name, kind, comment, span })
}
