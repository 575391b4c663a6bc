//! What a job says, statement by statement. Queries and expressions are sqlparser's; everything around them is ours.

use std::fmt;

use sqlparser::ast::{DataType, Expr, Ident, ObjectName, Query};

use super::interval::Interval;
use crate::connect::Options;
use crate::error::Span;

/// A whole job.
#[derive(Clone, Debug)]
pub struct Script {
    /// Its statements, in order.
    pub statements: Vec<Statement>,
}

/// One statement.
#[derive(Clone, Debug)]
pub struct Statement {
    /// What it says.
    pub kind: StatementKind,
    /// From its first to its last word, without the `;`.
    pub span: Span,
}

/// What a statement says.
#[derive(Clone, Debug)]
pub enum StatementKind {
    /// `CREATE TABLE`, `CREATE SOURCE`, or `CREATE SINK` with columns.
    CreateTable(CreateTable),
    /// `CREATE SINK … AS SELECT` or `… FROM name`.
    CreateSink(CreateSink),
    /// `CREATE VIEW`, `CREATE STREAM`, `CREATE MATERIALIZED VIEW`.
    CreateView(CreateView),
    /// `CREATE FUNCTION … AS 'class'`: another name for a built-in function.
    CreateFunction(CreateFunction),
    /// `INSERT INTO`.
    Insert(Insert),
    /// `EXECUTE STATEMENT SET BEGIN … END`: several `INSERT`s that are one job. (So are all `INSERT`s of a script.)
    StatementSet(Vec<Insert>),
    /// A bare query: prints.
    Query(StreamQuery),
    /// `SET`.
    Set(Set),
    /// `RESET key`; `None`: all.
    Reset(Option<Set>),
    /// `DROP`.
    Drop(DropObject),
    /// `SHOW`.
    Show(Show),
    /// `DESCRIBE name`.
    Describe(ObjectName),
    /// `EXPLAIN`.
    Explain(Explain),
}

/// Which words created a table, and so what may be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableRole {
    /// `CREATE TABLE`: source or sink, as it is used.
    Table,
    /// `CREATE SOURCE`: only read.
    Source,
    /// `CREATE SINK`: only written.
    Sink,
}

/// `CREATE [OR REPLACE] [TEMPORARY] TABLE|SOURCE|SINK [IF NOT EXISTS] name (columns) [PARTITIONED BY (…)] WITH (…)`.
#[derive(Clone, Debug)]
pub struct CreateTable {
    /// Its name.
    pub name: ObjectName,
    /// Which word created it.
    pub role: TableRole,
    /// `IF NOT EXISTS`.
    pub if_not_exists: bool,
    /// `OR REPLACE`.
    pub or_replace: bool,
    /// Its columns, in order.
    pub columns: Vec<ColumnDef>,
    /// The columns of `PRIMARY KEY (…) NOT ENFORCED`, also when written at a column. Empty without one.
    pub primary_key: Vec<Ident>,
    /// `WATERMARK FOR`.
    pub watermark: Option<Watermark>,
    /// `PARTITIONED BY (…)`.
    pub partitioned_by: Vec<Ident>,
    /// `COMMENT '…'`.
    pub comment: Option<String>,
    /// `WITH (…)`.
    pub options: Options,
    /// The whole statement.
    pub span: Span,
}

/// One column of a table.
#[derive(Clone, Debug)]
pub struct ColumnDef {
    /// Its name.
    pub name: Ident,
    /// Where its values come from.
    pub kind: ColumnKind,
    /// `COMMENT '…'`.
    pub comment: Option<String>,
    /// Name to last word.
    pub span: Span,
}

/// Where a column's values come from.
#[derive(Clone, Debug)]
pub enum ColumnKind {
    /// The record.
    Physical {
        /// The declared type.
        data_type: DataType,
        /// `NOT NULL`, or part of the primary key.
        not_null: bool,
    },
    /// `name AS expr`: computed from other columns.
    Computed(Expr),
    /// `name type METADATA [FROM 'key'] [VIRTUAL]`: from beside the record.
    Metadata {
        /// The declared type.
        data_type: DataType,
        /// `NOT NULL`.
        not_null: bool,
        /// The connector's name for it; the column's own name when `FROM` is left out.
        key: String,
        /// `VIRTUAL`: read only, no column of the sink.
        is_virtual: bool,
    },
}

/// `WATERMARK FOR column AS expr`.
#[derive(Clone, Debug)]
pub struct Watermark {
    /// The time column.
    pub column: Ident,
    /// What the watermark is, row by row.
    pub expr: Expr,
    /// From `WATERMARK` to the expression's end.
    pub span: Span,
}

/// `CREATE SINK name [WITH (…)] AS query` or `CREATE SINK name FROM relation [WITH (…)]`: a table and the statement that fills it.
#[derive(Clone, Debug)]
pub struct CreateSink {
    /// Its name.
    pub name: ObjectName,
    /// `IF NOT EXISTS`.
    pub if_not_exists: bool,
    /// `OR REPLACE`.
    pub or_replace: bool,
    /// `PRIMARY KEY (…) NOT ENFORCED`, when given in parentheses behind the name.
    pub primary_key: Vec<Ident>,
    /// `PARTITIONED BY (…)`.
    pub partitioned_by: Vec<Ident>,
    /// `WITH (…)`.
    pub options: Options,
    /// What is written into it; for `FROM name`, `SELECT * FROM name`.
    pub query: StreamQuery,
    /// The whole statement.
    pub span: Span,
}

/// What a view is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ViewKind {
    /// `CREATE VIEW`: a name for a query.
    View,
    /// `CREATE STREAM`: a name for a query that is run once for all its readers.
    Stream,
    /// `CREATE MATERIALIZED VIEW`: run once, its rows are kept and can be asked for.
    Materialized,
}

/// `CREATE [OR REPLACE] [TEMPORARY] VIEW|STREAM|MATERIALIZED VIEW [IF NOT EXISTS] name [(columns)] AS query`.
#[derive(Clone, Debug)]
pub struct CreateView {
    /// Its name.
    pub name: ObjectName,
    /// What it is.
    pub kind: ViewKind,
    /// `IF NOT EXISTS`.
    pub if_not_exists: bool,
    /// `OR REPLACE`.
    pub or_replace: bool,
    /// New names for the query's columns; empty: the query's own.
    pub columns: Vec<Ident>,
    /// `COMMENT '…'`.
    pub comment: Option<String>,
    /// The query; a plain view has no EMIT.
    pub query: StreamQuery,
    /// The whole statement.
    pub span: Span,
}

/// `CREATE FUNCTION name AS 'class'` with a class that stands for a built-in function.
#[derive(Clone, Debug)]
pub struct CreateFunction {
    /// The new name.
    pub name: ObjectName,
    /// `IF NOT EXISTS`.
    pub if_not_exists: bool,
    /// `OR REPLACE`.
    pub or_replace: bool,
    /// The built-in function that it means.
    pub builtin: &'static str,
    /// The whole statement.
    pub span: Span,
}

/// `INSERT INTO table [(columns)] query`.
#[derive(Clone, Debug)]
pub struct Insert {
    /// The target.
    pub table: ObjectName,
    /// The target's columns in the order of the query's; empty: all, in their order.
    pub columns: Vec<Ident>,
    /// What is inserted.
    pub query: StreamQuery,
    /// The whole statement.
    pub span: Span,
}

/// A query and how its result comes out.
#[derive(Clone, Debug)]
pub struct StreamQuery {
    /// The query. Old window forms are rewritten to table functions ([`super::window::as_window_call`]).
    pub query: Box<Query>,
    /// What is said about the output; [`Emit::default`] when nothing is.
    pub emit: Emit,
    /// The query's words, without the EMIT clause.
    pub span: Span,
}

/// `EMIT … ALLOW LATENESS … LATE DATA TO …`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Emit {
    /// `EMIT …`; `None`: the default of the query.
    pub mode: Option<Spanned<EmitMode>>,
    /// `ALLOW LATENESS interval`.
    pub lateness: Option<Spanned<Interval>>,
    /// `LATE DATA TO sink`.
    pub late_data_to: Option<Spanned<ObjectName>>,
}

/// When rows come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmitMode {
    /// `EMIT ON WINDOW CLOSE`
    OnWindowClose,
    /// `EMIT ON UPDATE`
    OnUpdate,
    /// `EMIT AFTER WATERMARK`
    AfterWatermark,
    /// `EMIT CHANGES`
    Changes,
    /// `EMIT EVERY interval`
    Every(Interval),
}

impl fmt::Display for EmitMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnWindowClose => f.write_str("EMIT ON WINDOW CLOSE"),
            Self::OnUpdate => f.write_str("EMIT ON UPDATE"),
            Self::AfterWatermark => f.write_str("EMIT AFTER WATERMARK"),
            Self::Changes => f.write_str("EMIT CHANGES"),
            Self::Every(interval) => write!(f, "EMIT EVERY {interval}"),
        }
    }
}

/// A value and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub span: Span,
}

/// `SET key = value`, quoted or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// The key, as written, without quotes.
    pub key: String,
    /// The value, as written, without quotes; empty for RESET.
    pub value: String,
    /// Where the key stands.
    pub key_span: Span,
    /// Where the value stands.
    pub value_span: Span,
}

/// What a `DROP` takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropKind {
    /// A table, source or sink.
    Table(TableRole),
    /// A view of that kind.
    View(ViewKind),
    /// A name from `CREATE FUNCTION`.
    Function,
}

/// `DROP kind [IF EXISTS] name`.
#[derive(Clone, Debug)]
pub struct DropObject {
    /// What.
    pub kind: DropKind,
    /// `IF EXISTS`.
    pub if_exists: bool,
    /// Its name.
    pub name: ObjectName,
}

/// `SHOW …`.
#[derive(Clone, Debug)]
pub enum Show {
    /// `SHOW TABLES`
    Tables,
    /// `SHOW SOURCES`
    Sources,
    /// `SHOW SINKS`
    Sinks,
    /// `SHOW VIEWS`
    Views,
    /// `SHOW STREAMS`
    Streams,
    /// `SHOW MATERIALIZED VIEWS`
    MaterializedViews,
    /// `SHOW FUNCTIONS`
    Functions,
    /// `SHOW CREATE TABLE name`, and the like for each kind.
    Create(ObjectName),
    /// `SHOW COLUMNS FROM name`
    Columns(ObjectName),
}

/// In which form a plan is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExplainFormat {
    /// A tree, for people.
    #[default]
    Text,
    /// For programs.
    Json,
    /// For Graphviz.
    Dot,
}

/// `EXPLAIN [CHANGELOG] [STATE] [JSON | DOT] [PLAN FOR] statement`; also `EXPLAIN (FORMAT JSON, STATE) …`.
#[derive(Clone, Debug)]
pub struct Explain {
    /// The form.
    pub format: ExplainFormat,
    /// Show the kinds of change (they are always part of the JSON form).
    pub changelog: bool,
    /// Show what each node keeps.
    pub state: bool,
    /// What is explained: a query, an INSERT, a statement set, a CREATE of a view or sink.
    pub statement: Box<Statement>,
}
