//! Which statement it is, by its first words; everything but the insides of `CREATE TABLE` and of queries.

use sqlparser::ast::{Ident, ObjectName, SetExpr};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{IsOptional, Parser};
use sqlparser::tokenizer::Token;

use super::ast::{
    CreateFunction, CreateView, DropKind, DropObject, Explain, ExplainFormat, Insert, Set, Show, Statement, StatementKind,
    TableRole, ViewKind,
};
use super::dialect::is_end;
use super::keyword::{closest, is_word};
use super::parser::{Parsed, expect_word, last_span, next_span, span_since, take_word, take_words};
use super::syntax_error::STATEMENT_WORDS;
use super::{options, query, table};
use crate::error::{Code, Diagnostic, Span};

/// Java classes of Nexmark's own user-defined functions, and the built-in function that does the same.
const JAVA_CLASSES: &[(&str, &str)] = &[("com.github.nexmark.flink.udf.CountChar", "count_char")];

/// Words of statements that are known elsewhere and refused here, with what to do instead.
const REFUSED: &[(&str, &str)] = &[
    ("ALTER", "write the CREATE statement as it shall be"),
    ("UPDATE", "the rows of a stream change by what its source says; write a query that gives the new rows"),
    ("DELETE", "filter with WHERE in a query"),
    ("MERGE", "write a query that gives the new rows"),
    ("TRUNCATE", "remove the sink's data by its own means"),
    ("COPY", "use the filesystem connector"),
    ("USE", "there is one catalog; leave USE out"),
    ("ADD", "JARs can't be loaded; leave ADD JAR out"),
    ("GRANT", "rights are not kept here"),
    ("ANALYZE", "statistics are not kept here"),
    ("CALL", "there are no procedures"),
    ("LOAD", "modules can't be loaded"),
    ("BEGIN", "there are no transactions; several INSERTs: EXECUTE STATEMENT SET BEGIN … END"),
    ("COMMIT", "there are no transactions"),
];

/// One statement whose place is `span`; its end is not looked at.
pub(super) fn parse(parser: &mut Parser<'_>, span: Span) -> Parsed<StatementKind> {
    let first = next_span(parser);
    if query::begins(parser) {
        return Ok(StatementKind::Query(query::parse(parser)?));
    }
    if take_word(parser, "CREATE") {
        return create(parser, span);
    }
    if take_word(parser, "INSERT") {
        return insert(parser, span).map(StatementKind::Insert);
    }
    if take_word(parser, "SET") {
        return Ok(StatementKind::Set(set(parser, true)?));
    }
    if take_word(parser, "RESET") {
        let key = if is_end(&parser.peek_token_ref().token) { None } else { Some(set(parser, false)?) };
        return Ok(StatementKind::Reset(key));
    }
    if take_word(parser, "DROP") {
        return drop(parser);
    }
    if take_word(parser, "SHOW") {
        return show(parser);
    }
    if take_word(parser, "DESCRIBE") || take_word(parser, "DESC") {
        take_word(parser, "TABLE");
        return Ok(StatementKind::Describe(parser.parse_object_name(false)?));
    }
    if take_word(parser, "EXPLAIN") {
        let options = explain_options(parser)?;
        let start = next_span(parser).map_or(span.start, |s| s.start);
        let inner = Span { start, end: span.end };
        let statement = Statement { kind: parse(parser, inner)?, span: inner };
        let explainable = matches!(
            statement.kind,
            StatementKind::Query(_) | StatementKind::Insert(_) | StatementKind::CreateView(_) | StatementKind::CreateSink(_)
        );
        if !explainable {
            return Err(Diagnostic::new(Code::Unsupported, "only queries and what runs them can be explained")
                .at(statement.span)
                .hint("EXPLAIN takes SELECT, INSERT, a statement set, CREATE VIEW, CREATE MATERIALIZED VIEW or CREATE SINK … AS")
                .into());
        }
        return Ok(StatementKind::Explain(options.of(statement)));
    }
    let token = parser.peek_token();
    let word = token.to_string();
    if let Some((name, hint)) = REFUSED.iter().find(|(name, _)| is_word(&token.token, name)) {
        return Err(Diagnostic::new(Code::Unsupported, format!("{name} can't be run")).at(first).hint(*hint).into());
    }
    let error = Diagnostic::new(Code::Syntax, format!("no statement begins with `{word}`")).at(first);
    Err(match closest(&word, STATEMENT_WORDS.iter().copied()) {
        Some(near) => error.hint(format!("did you mean {near}?")),
        None => error.hint(format!("statements begin with {}", STATEMENT_WORDS.join(", "))),
    }
    .into())
}

/// `EXECUTE STATEMENT SET BEGIN`, `BEGIN STATEMENT SET`: takes the words, and whether they stood here.
pub(super) fn begin_set(parser: &mut Parser<'_>) -> Parsed<bool> {
    if take_words(parser, &["EXECUTE", "STATEMENT", "SET"]) {
        take_word(parser, "AS");
        expect_word(parser, "BEGIN")?;
        return Ok(true);
    }
    Ok(take_words(parser, &["BEGIN", "STATEMENT", "SET"]) || take_words(parser, &["STATEMENT", "SET", "BEGIN"]))
}

/// What is asked of an EXPLAIN, before its statement is known.
#[derive(Clone, Copy, Default)]
pub(super) struct ExplainOptions {
    format: ExplainFormat,
    changelog: bool,
    state: bool,
}

impl ExplainOptions {
    /// The EXPLAIN of that statement.
    pub(super) fn of(self, statement: Statement) -> Explain {
        Explain { format: self.format, changelog: self.changelog, state: self.state, statement: Box::new(statement) }
    }
}

/// `EXPLAIN … EXECUTE STATEMENT SET BEGIN`: takes the words when all stand here, and none otherwise.
pub(super) fn explain_set(parser: &mut Parser<'_>) -> Parsed<Option<ExplainOptions>> {
    if !is_word(&parser.peek_token_ref().token, "EXPLAIN") {
        return Ok(None);
    }
    let tokens = (1..24).map(|n| parser.peek_nth_token(n).token);
    let has_set =
        tokens.take_while(|t| !is_end(t) && !is_word(t, "SELECT") && !is_word(t, "INSERT")).any(|t| is_word(&t, "STATEMENT"));
    if !has_set {
        return Ok(None);
    }
    parser.advance_token();
    let options = explain_options(parser)?;
    if begin_set(parser)? {
        return Ok(Some(options));
    }
    parser.expected_ref("STATEMENT SET BEGIN", parser.peek_token_ref())?;
    Ok(None)
}

fn explain_options(parser: &mut Parser<'_>) -> Parsed<ExplainOptions> {
    let mut options = ExplainOptions::default();
    if parser.peek_token_ref().token == Token::LParen && !is_query_behind_parenthesis(parser) {
        parser.advance_token();
        loop {
            explain_option(parser, &mut options, true)?;
            if !parser.consume_token(&Token::Comma) {
                break;
            }
        }
        parser.expect_token(&Token::RParen)?;
    } else {
        while !query::begins(parser)
            && !["INSERT", "CREATE", "PLAN", "EXECUTE", "BEGIN", "STATEMENT"]
                .iter()
                .any(|word| is_word(&parser.peek_token_ref().token, word))
        {
            explain_option(parser, &mut options, false)?;
            let _optional = parser.consume_token(&Token::Comma);
        }
    }
    take_words(parser, &["PLAN", "FOR"]);
    Ok(options)
}

fn is_query_behind_parenthesis(parser: &Parser<'_>) -> bool {
    let next = &parser.peek_nth_token_ref(1).token;
    *next == Token::LParen || ["SELECT", "WITH", "VALUES"].iter().any(|word| is_word(next, word))
}

fn explain_option(parser: &mut Parser<'_>, options: &mut ExplainOptions, in_parentheses: bool) -> Parsed<()> {
    let span = next_span(parser);
    let token = parser.next_token();
    let word = token.to_string().to_ascii_uppercase();
    match word.as_str() {
        "CHANGELOG" | "CHANGELOG_MODE" => options.changelog = true,
        "STATE" => options.state = true,
        "JSON" | "JSON_EXECUTION_PLAN" => options.format = ExplainFormat::Json,
        "DOT" => options.format = ExplainFormat::Dot,
        "TEXT" => options.format = ExplainFormat::Text,
        "FORMAT" => {
            let token = parser.next_token();
            options.format = match token.to_string().trim_matches('\'').to_ascii_uppercase().as_str() {
                "TEXT" => ExplainFormat::Text,
                "JSON" => ExplainFormat::Json,
                "DOT" | "GRAPHVIZ" => ExplainFormat::Dot,
                _ => parser.expected("TEXT, JSON or DOT", token)?,
            };
        }
        "ANALYZE" => {
            return Err(Diagnostic::new(Code::Unsupported, "EXPLAIN ANALYZE can't be run yet")
                .at(span)
                .hint("run the job: it shows rates and lag; EXPLAIN without ANALYZE shows the plan")
                .into());
        }
        "ESTIMATED_COST" | "PLAN_ADVICE" => {
            return Err(Diagnostic::new(Code::Unsupported, format!("EXPLAIN {word} has no meaning here"))
                .at(span)
                .hint("leave it out")
                .into());
        }
        _ => parser.expected(
            if in_parentheses { "FORMAT, CHANGELOG, STATE, JSON or DOT" } else { "CHANGELOG, STATE, JSON, DOT or a statement" },
            token,
        )?,
    }
    Ok(())
}

fn create(parser: &mut Parser<'_>, span: Span) -> Parsed<StatementKind> {
    let or_replace = parser.parse_keywords(&[Keyword::OR, Keyword::REPLACE]);
    // A job's tables and views live as long as the job: TEMPORARY says what is so anyway.
    let _temporary = take_word(parser, "TEMPORARY") || take_word(parser, "TEMP");
    take_word(parser, "SYSTEM");
    let role = if take_word(parser, "TABLE") {
        Some(TableRole::Table)
    } else if take_word(parser, "SOURCE") {
        take_word(parser, "TABLE");
        Some(TableRole::Source)
    } else if take_word(parser, "SINK") {
        take_word(parser, "TABLE");
        Some(TableRole::Sink)
    } else {
        None
    };
    if let Some(role) = role {
        return table::parse(parser, &table::Head { role, or_replace, span });
    }
    let kind = if take_words(parser, &["MATERIALIZED", "VIEW"]) || take_words(parser, &["MATERIALIZED", "TABLE"]) {
        Some(ViewKind::Materialized)
    } else if take_word(parser, "VIEW") {
        Some(ViewKind::View)
    } else if take_word(parser, "STREAM") {
        Some(ViewKind::Stream)
    } else {
        None
    };
    if let Some(kind) = kind {
        return view(parser, kind, or_replace, span);
    }
    if take_word(parser, "FUNCTION") {
        return function(parser, or_replace, span);
    }
    let token = parser.peek_token();
    const KINDS: [&str; 7] = ["TABLE", "SOURCE", "SINK", "VIEW", "STREAM", "MATERIALIZED VIEW", "FUNCTION"];
    let place = next_span(parser);
    if ["CATALOG", "DATABASE", "SCHEMA", "INDEX", "CONNECTION", "SECRET", "TYPE", "ROLE", "MODEL"]
        .iter()
        .any(|word| is_word(&token.token, word))
    {
        return Err(Diagnostic::new(Code::Unsupported, format!("CREATE {token} can't be run yet"))
            .at(place)
            .hint(format!("there are CREATE {}", KINDS.join(", ")))
            .into());
    }
    let error = Diagnostic::new(Code::Syntax, format!("CREATE {token} is not known")).at(place);
    Err(match closest(&token.to_string(), KINDS) {
        Some(near) => error.hint(format!("did you mean CREATE {near}?")),
        None => error.hint(format!("there are CREATE {}", KINDS.join(", "))),
    }
    .into())
}

fn view(parser: &mut Parser<'_>, kind: ViewKind, or_replace: bool, span: Span) -> Parsed<StatementKind> {
    let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let name = parser.parse_object_name(false)?;
    let columns: Vec<Ident> = parser.parse_parenthesized_column_list(IsOptional::Optional, false)?;
    let comment = if take_word(parser, "COMMENT") { Some(parser.parse_literal_string()?) } else { None };
    if is_word(&parser.peek_token_ref().token, "WITH") || is_word(&parser.peek_token_ref().token, "PRIMARY") {
        return Err(Diagnostic::new(Code::Unsupported, format!("{name} has properties, which a view can't have"))
            .at(next_span(parser))
            .hint("write AS and the query; options belong to tables and sinks")
            .into());
    }
    expect_word(parser, "AS")?;
    let query = match kind {
        ViewKind::View => query::parse_without_emit(parser, "a view")?,
        ViewKind::Stream | ViewKind::Materialized => query::parse(parser)?,
    };
    Ok(StatementKind::CreateView(CreateView { name, kind, if_not_exists, or_replace, columns, comment, query, span }))
}

fn function(parser: &mut Parser<'_>, or_replace: bool, span: Span) -> Parsed<StatementKind> {
    let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let name = parser.parse_object_name(false)?;
    let start = next_span(parser);
    if !take_word(parser, "AS") {
        let is_wasm = take_word(parser, "LANGUAGE") || parser.peek_token_ref().token == Token::LParen;
        if !is_wasm {
            parser.expected_ref::<()>("AS 'class' or LANGUAGE", parser.peek_token_ref())?;
        }
        return Err(no_own_functions(&name).at(start).into());
    }
    let place = next_span(parser);
    let class = parser.parse_literal_string()?;
    if take_word(parser, "LANGUAGE") {
        let language = parser.next_token();
        if !["JAVA", "SCALA"].iter().any(|word| is_word(&language.token, word)) {
            return Err(no_own_functions(&name).at(last_span(parser)).into());
        }
    }
    if take_words(parser, &["USING", "JAR"]) {
        loop {
            parser.parse_literal_string()?;
            if !(parser.consume_token(&Token::Comma) && take_word(parser, "JAR")) {
                break;
            }
        }
    }
    match JAVA_CLASSES.iter().find(|(java, _)| *java == class) {
        Some((_, builtin)) => {
            Ok(StatementKind::CreateFunction(CreateFunction { name, if_not_exists, or_replace, builtin, span }))
        }
        None => Err(Diagnostic::new(
            Code::UnsupportedJavaClass,
            format!("function {name} is the Java class {class}, which can't run here"),
        )
        .at(place)
        .hint("use a built-in function (tiderace functions lists them); functions of your own will be LANGUAGE wasm")
        .into()),
    }
}

fn no_own_functions(name: &ObjectName) -> Diagnostic {
    Diagnostic::new(Code::Unsupported, format!("function {name}: functions of your own can't be run yet"))
        .hint("use a built-in function; tiderace functions lists them")
}

fn insert(parser: &mut Parser<'_>, span: Span) -> Parsed<Insert> {
    if is_word(&parser.peek_token_ref().token, "OVERWRITE") {
        return Err(Diagnostic::new(Code::Unsupported, "INSERT OVERWRITE can't be run on a stream")
            .at(next_span(parser))
            .hint("write INSERT INTO")
            .into());
    }
    expect_word(parser, "INTO")?;
    take_word(parser, "TABLE");
    let table = parser.parse_object_name(false)?;
    if is_word(&parser.peek_token_ref().token, "PARTITION") {
        return Err(Diagnostic::new(Code::Unsupported, "INSERT INTO … PARTITION (…) can't be run yet")
            .at(next_span(parser))
            .hint("give the partition's columns in the query")
            .into());
    }
    let is_list = parser.peek_token_ref().token == Token::LParen && !is_query_behind_parenthesis(parser);
    let columns = if is_list { parser.parse_parenthesized_column_list(IsOptional::Mandatory, false)? } else { Vec::new() };
    let start = next_span(parser);
    if !query::begins(parser) {
        parser.expected_ref::<()>("SELECT, VALUES, or a subquery in the query body", parser.peek_token_ref())?;
    }
    let query = query::parse(parser)?;
    if matches!(query.query.body.as_ref(), SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_)) {
        return Err(Diagnostic::new(Code::Syntax, "a query should stand here").at(start).into());
    }
    Ok(Insert { table, columns, query, span })
}

fn set(parser: &mut Parser<'_>, has_value: bool) -> Parsed<Set> {
    let none = Span { start: 0, end: 0 };
    let start = next_span(parser);
    if is_end(&parser.peek_token_ref().token) {
        return Err(Diagnostic::new(Code::Syntax, "SET needs a key and a value")
            .at(last_span(parser))
            .hint("write SET 'key' = 'value'")
            .into());
    }
    let key = options::key(parser)?;
    let key_span = span_since(parser, start).unwrap_or(none);
    if !has_value {
        return Ok(Set { key, value: String::new(), key_span, value_span: key_span });
    }
    if !take_word(parser, "TO") {
        parser.expect_token(&Token::Eq)?;
    }
    let start = next_span(parser);
    let value = options::set_value(parser)?;
    Ok(Set { key, value, key_span, value_span: span_since(parser, start).unwrap_or(none) })
}

fn drop(parser: &mut Parser<'_>) -> Parsed<StatementKind> {
    take_word(parser, "TEMPORARY");
    let kind = if take_words(parser, &["MATERIALIZED", "VIEW"]) {
        DropKind::View(ViewKind::Materialized)
    } else if take_word(parser, "VIEW") {
        DropKind::View(ViewKind::View)
    } else if take_word(parser, "STREAM") {
        DropKind::View(ViewKind::Stream)
    } else if take_word(parser, "TABLE") {
        DropKind::Table(TableRole::Table)
    } else if take_word(parser, "SOURCE") {
        DropKind::Table(TableRole::Source)
    } else if take_word(parser, "SINK") {
        DropKind::Table(TableRole::Sink)
    } else if take_word(parser, "FUNCTION") {
        DropKind::Function
    } else {
        parser.expected_ref("TABLE, SOURCE, SINK, VIEW, STREAM, MATERIALIZED VIEW or FUNCTION", parser.peek_token_ref())?
    };
    let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
    let name = parser.parse_object_name(false)?;
    Ok(StatementKind::Drop(DropObject { kind, if_exists, name }))
}

fn show(parser: &mut Parser<'_>) -> Parsed<StatementKind> {
    let start = next_span(parser);
    let show = if take_word(parser, "TABLES") {
        Show::Tables
    } else if take_word(parser, "SOURCES") {
        Show::Sources
    } else if take_word(parser, "SINKS") {
        Show::Sinks
    } else if take_words(parser, &["MATERIALIZED", "VIEWS"]) {
        Show::MaterializedViews
    } else if take_word(parser, "VIEWS") {
        Show::Views
    } else if take_word(parser, "STREAMS") {
        Show::Streams
    } else if take_word(parser, "FUNCTIONS") {
        Show::Functions
    } else if take_word(parser, "CREATE") {
        if !take_words(parser, &["MATERIALIZED", "VIEW"])
            && !["TABLE", "SOURCE", "SINK", "VIEW", "STREAM"].iter().any(|word| take_word(parser, word))
        {
            parser.expected_ref::<()>("TABLE, SOURCE, SINK, VIEW, STREAM or MATERIALIZED VIEW", parser.peek_token_ref())?;
        }
        Show::Create(parser.parse_object_name(false)?)
    } else if take_word(parser, "COLUMNS") {
        if !take_word(parser, "IN") {
            expect_word(parser, "FROM")?;
        }
        Show::Columns(parser.parse_object_name(false)?)
    } else if ["JOBS", "CHECKPOINTS", "SPLITS", "ASSIGNMENT", "CATALOGS", "DATABASES"]
        .iter()
        .any(|word| is_word(&parser.peek_token_ref().token, word))
    {
        let word = parser.peek_token();
        return Err(Diagnostic::new(Code::Unsupported, format!("SHOW {word} can't be run yet")).at(start).into());
    } else {
        parser.expected_ref("TABLES, VIEWS, FUNCTIONS, CREATE TABLE or COLUMNS FROM", parser.peek_token_ref())?
    };
    Ok(StatementKind::Show(show))
}
