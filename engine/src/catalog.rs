//! The names of a job: tables, views, streams, sinks. What each is made of, as far as it can be said without planning its expressions.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use sqlparser::ast::{Expr, Ident, ObjectName};

use crate::connect::Options;
use crate::error::{Code, Diagnostic, Result, Span};
use crate::functions;
use crate::sql::ast::{ColumnKind, CreateTable, CreateView, DropKind, DropObject, Show, TableRole, ViewKind};
use crate::sql::{closest_name, names, span_of, types};

/// The most relations that a job may define.
pub const RELATIONS_MAX: usize = 10_000;

/// A table of `CREATE TABLE`, `CREATE SOURCE` or `CREATE SINK` with columns.
#[derive(Clone, Debug)]
pub struct TableDef {
    /// Its name, as spelled when it was created.
    pub name: String,
    /// What may be done with it.
    pub role: TableRole,
    /// Its columns, in order.
    pub columns: Vec<TableColumn>,
    /// The columns of the primary key, as indexes; empty without one.
    pub primary_key: Vec<usize>,
    /// The watermark.
    pub watermark: Option<WatermarkDef>,
    /// `PARTITIONED BY`, as indexes of columns.
    pub partitioned_by: Vec<usize>,
    /// `COMMENT`.
    pub comment: Option<String>,
    /// `WITH`.
    pub options: Options,
    /// The statement that created it.
    pub span: Span,
}

/// A column of a table.
#[derive(Clone, Debug)]
pub struct TableColumn {
    /// Name, type, nullability. A computed column has the type `Null` here: its type is that of its expression, which the planner knows.
    pub field: FieldRef,
    /// Where its values come from.
    pub source: ColumnSource,
    /// The length that its type declares.
    pub length: Option<types::DeclaredLength>,
    /// Whether a type inside of its type declares one.
    pub has_length_inside: bool,
    /// `COMMENT`.
    pub comment: Option<String>,
    /// Its definition.
    pub span: Span,
}

/// Where a column's values come from.
#[derive(Clone, Debug)]
pub enum ColumnSource {
    /// The record.
    Physical,
    /// This expression over other columns.
    Computed(Expr),
    /// What stands beside the record under that key.
    Metadata {
        /// The connector's name for it.
        key: String,
        /// Not a column of the sink.
        is_virtual: bool,
    },
}

/// `WATERMARK FOR`.
#[derive(Clone, Debug)]
pub struct WatermarkDef {
    /// The time column, as an index.
    pub column: usize,
    /// The watermark of a row.
    pub expr: Expr,
    /// The clause.
    pub span: Span,
}

/// A view, stream or materialized view.
#[derive(Clone, Debug)]
pub struct ViewDef {
    /// Its name, as spelled when it was created.
    pub name: String,
    /// Which.
    pub kind: ViewKind,
    /// Its columns.
    pub schema: SchemaRef,
    /// Its query, as SQL.
    pub query: String,
    /// `COMMENT`.
    pub comment: Option<String>,
    /// The statement that created it.
    pub span: Span,
}

/// What a name stands for.
#[derive(Clone, Debug)]
enum Relation {
    Table(TableDef),
    View(ViewDef),
    /// A sink of `CREATE SINK … AS`, whose columns are its query's.
    Sink(Span),
}

impl Relation {
    fn span(&self) -> Span {
        match self {
            Self::Table(table) => table.span,
            Self::View(view) => view.span,
            Self::Sink(span) => *span,
        }
    }

    fn what(&self) -> &'static str {
        match self {
            Self::Table(TableDef { role: TableRole::Table, .. }) => "table",
            Self::Table(TableDef { role: TableRole::Source, .. }) => "source",
            Self::Table(TableDef { role: TableRole::Sink, .. }) | Self::Sink(_) => "sink",
            Self::View(ViewDef { kind: ViewKind::View, .. }) => "view",
            Self::View(ViewDef { kind: ViewKind::Stream, .. }) => "stream",
            Self::View(ViewDef { kind: ViewKind::Materialized, .. }) => "materialized view",
        }
    }
}

/// All relations of a job, by name.
#[derive(Debug, Default)]
pub struct Catalog {
    relations: BTreeMap<String, Relation>,
}

impl Catalog {
    /// Adds a table. `None`: it was there already and the statement says IF NOT EXISTS.
    pub fn create_table(&mut self, create: &CreateTable) -> Result<Option<&TableDef>> {
        if !self.make_room(&create.name, create.if_not_exists, create.or_replace)? {
            return Ok(None);
        }
        let def = table_def(create)?;
        let name = def.name.clone();
        self.relations.insert(name.clone(), Relation::Table(def));
        Ok(match self.relations.get(&name) {
            Some(Relation::Table(def)) => Some(def),
            _ => None,
        })
    }

    /// Adds a view with the columns of its planned query; gives its name. `None`: it was there already and the statement says IF NOT EXISTS.
    pub fn create_view(&mut self, create: &CreateView, schema: SchemaRef) -> Result<Option<String>> {
        if !self.make_room(&create.name, create.if_not_exists, create.or_replace)? {
            return Ok(None);
        }
        for (index, field) in schema.fields().iter().enumerate() {
            if schema.fields()[..index].iter().any(|other| other.name() == field.name()) {
                return Err(Diagnostic::new(
                    Code::DuplicateName,
                    format!("`{}` has the column `{}` twice", create.name, field.name()),
                )
                .at(create.query.span)
                .hint("give one of them another name with AS"));
            }
        }
        let name = names::last(&create.name);
        let def = ViewDef {
            name: name.clone(),
            kind: create.kind,
            schema,
            query: create.query.query.to_string(),
            comment: create.comment.clone(),
            span: create.span,
        };
        self.relations.insert(name.clone(), Relation::View(def));
        Ok(Some(name))
    }

    /// Takes a name for a sink whose columns are its query's.
    pub fn reserve(&mut self, name: &ObjectName, span: Span) -> Result<()> {
        self.make_room(name, false, false)?;
        self.relations.insert(names::last(name), Relation::Sink(span));
        Ok(())
    }

    /// The table that an INSERT or LATE DATA writes to.
    pub fn sink(&self, name: &ObjectName) -> Result<&TableDef> {
        match self.find(name)? {
            Relation::Table(table) if table.role != TableRole::Source => Ok(table),
            Relation::Sink(_) => {
                Err(Diagnostic::new(Code::InvalidArgument, format!("the sink `{name}` is filled by its own query"))
                    .at(names::span(name))
                    .hint("create it with columns, and INSERT INTO it from several queries"))
            }
            other => {
                Err(Diagnostic::new(Code::InvalidArgument, format!("`{name}` is a {}, which can't be written", other.what()))
                    .at(names::span(name))
                    .hint("only a table or a sink can be written"))
            }
        }
    }

    /// The table of that name; views are none.
    pub fn table(&self, name: &ObjectName) -> Result<&TableDef> {
        match self.find(name)? {
            Relation::Table(table) => Ok(table),
            other => Err(Diagnostic::new(Code::InvalidArgument, format!("`{name}` is a {}, not a table", other.what()))
                .at(names::span(name))),
        }
    }

    /// The view, stream or materialized view of that name.
    pub fn view(&self, name: &ObjectName) -> Result<&ViewDef> {
        match self.find(name)? {
            Relation::View(view) => Ok(view),
            other => Err(Diagnostic::new(Code::InvalidArgument, format!("`{name}` is a {}, not a view", other.what()))
                .at(names::span(name))),
        }
    }

    /// All tables, by name.
    pub fn tables(&self) -> impl Iterator<Item = &TableDef> {
        self.relations.values().filter_map(|relation| match relation {
            Relation::Table(table) => Some(table),
            _ => None,
        })
    }

    /// All views, streams and materialized views, by name.
    pub fn views(&self) -> impl Iterator<Item = &ViewDef> {
        self.relations.values().filter_map(|relation| match relation {
            Relation::View(view) => Some(view),
            _ => None,
        })
    }

    /// Takes a relation away and gives its name. `None`: there was none and the statement says IF EXISTS, or it names a function.
    pub fn drop(&mut self, drop: &DropObject) -> Result<Option<String>> {
        let right = match drop.kind {
            // Functions are no relations: the planner keeps their names.
            DropKind::Function => return Ok(None),
            DropKind::Table(TableRole::Table) => "table",
            DropKind::Table(TableRole::Source) => "source",
            DropKind::Table(TableRole::Sink) => "sink",
            DropKind::View(ViewKind::View) => "view",
            DropKind::View(ViewKind::Stream) => "stream",
            DropKind::View(ViewKind::Materialized) => "materialized view",
        };
        let Some(name) = self.key(&drop.name)? else {
            return if drop.if_exists { Ok(None) } else { Err(self.unknown(&drop.name)) };
        };
        let what = self.relations.get(&name).map_or("", Relation::what);
        // Sources and sinks are tables, too.
        let fits = what == right
            || (right == "table" && matches!(what, "source" | "sink"))
            || (what == "table" && matches!(right, "source" | "sink"));
        if !fits {
            return Err(Diagnostic::new(Code::InvalidArgument, format!("`{name}` is a {what}, not a {right}"))
                .at(names::span(&drop.name))
                .hint(format!("write DROP {} {name}", what.to_ascii_uppercase())));
        }
        self.relations.remove(&name);
        Ok(Some(name))
    }

    /// The answer to a SHOW statement, one row a line.
    pub fn show(&self, show: &Show) -> Result<String> {
        let list = |wanted: &dyn Fn(&Relation) -> bool| {
            let names: Vec<&str> =
                self.relations.iter().filter(|(_, relation)| wanted(relation)).map(|(name, _)| name.as_str()).collect();
            names.join("\n")
        };
        Ok(match show {
            Show::Tables => list(&|r| matches!(r, Relation::Table(_) | Relation::Sink(_))),
            Show::Sources => list(&|r| r.what() == "source"),
            Show::Sinks => list(&|r| r.what() == "sink"),
            Show::Views => list(&|r| r.what() == "view"),
            Show::Streams => list(&|r| r.what() == "stream"),
            Show::MaterializedViews => list(&|r| r.what() == "materialized view"),
            Show::Functions => functions::list().into_iter().map(|function| function.name).collect::<Vec<_>>().join("\n"),
            Show::Columns(name) => self.describe(name)?,
            Show::Create(name) => match self.find(name)? {
                Relation::Table(table) => show_create(table),
                Relation::View(view) => {
                    format!(
                        "CREATE {} {} AS\n{}",
                        Relation::View(view.clone()).what().to_ascii_uppercase(),
                        quoted(&view.name),
                        view.query
                    )
                }
                Relation::Sink(_) => {
                    return Err(Diagnostic::new(
                        Code::Unsupported,
                        format!("the sink `{name}` has a query of its own, which can't be shown"),
                    )
                    .at(names::span(name)));
                }
            },
        })
    }

    /// The types of a table's computed columns, which only planning tells.
    pub fn learn_types(&mut self, table: &str, planned: &SchemaRef) {
        let Some(Relation::Table(def)) = self.relations.get_mut(table) else { return };
        for column in def.columns.iter_mut().filter(|column| matches!(column.source, ColumnSource::Computed(_))) {
            if let Ok(field) = planned.field_with_name(column.field.name()) {
                column.field = Arc::new(field.clone());
            }
        }
    }

    /// The columns of a relation: name, type, what it is, separated by tabs, one a line.
    pub fn describe(&self, name: &ObjectName) -> Result<String> {
        let mut out = String::new();
        match self.find(name)? {
            Relation::Table(table) => {
                for (index, column) in table.columns.iter().enumerate() {
                    let mut notes = Vec::new();
                    if table.primary_key.contains(&index) {
                        notes.push("PRIMARY KEY".to_owned());
                    }
                    if !column.field.is_nullable() && !matches!(column.source, ColumnSource::Computed(_)) {
                        notes.push("NOT NULL".to_owned());
                    }
                    match &column.source {
                        ColumnSource::Physical => {}
                        ColumnSource::Computed(expr) => notes.push(format!("AS {expr}")),
                        ColumnSource::Metadata { key, is_virtual } => {
                            notes.push(format!("METADATA FROM '{key}'{}", if *is_virtual { " VIRTUAL" } else { "" }));
                        }
                    }
                    if let Some(mark) = table.watermark.as_ref().filter(|mark| mark.column == index) {
                        notes.push(format!("WATERMARK AS {}", mark.expr));
                    }
                    let shown = match column.source {
                        ColumnSource::Computed(_) if *column.field.data_type() == DataType::Null => String::new(),
                        _ => type_name(column),
                    };
                    line(&mut out, column.field.name(), &shown, &notes.join(", "));
                }
            }
            Relation::View(view) => {
                for field in view.schema.fields() {
                    line(&mut out, field.name(), &types::sql_name(field), if field.is_nullable() { "" } else { "NOT NULL" });
                }
            }
            Relation::Sink(_) => {
                return Err(Diagnostic::new(Code::Unsupported, format!("the sink `{name}` has the columns of its query"))
                    .at(names::span(name)));
            }
        }
        out.truncate(out.trim_end_matches('\n').len());
        Ok(out)
    }

    /// Whether a definition of `name` may be added now.
    fn make_room(&mut self, name: &ObjectName, if_not_exists: bool, or_replace: bool) -> Result<bool> {
        let [one] = name.0.as_slice() else {
            return Err(Diagnostic::new(
                Code::Unsupported,
                format!("`{name}` has a catalog or database, of which there is only one"),
            )
            .at(names::span(name))
            .hint(format!("write {}", names::last(name))));
        };
        let Some(ident) = one.as_ident() else {
            return Err(Diagnostic::new(Code::Syntax, format!("`{name}` is no name")));
        };
        if self.relations.len() >= RELATIONS_MAX {
            return Err(Diagnostic::new(Code::InvalidArgument, format!("the job defines more than {RELATIONS_MAX} relations"))
                .at(names::span(name)));
        }
        // Unquoted `T` is the same name as `t`: one of them could not be reached any more. A quoted one always can.
        let taken = self
            .relations
            .iter()
            .find(|(other, _)| {
                ident.value == **other || (ident.quote_style.is_none() && ident.value.to_lowercase() == other.to_lowercase())
            })
            .map(|(name, relation)| (name.clone(), relation.what(), relation.span()));
        let Some((taken, what, _)) = taken else { return Ok(true) };
        if if_not_exists {
            return Ok(false);
        }
        if or_replace {
            self.relations.remove(&taken);
            return Ok(true);
        }
        Err(Diagnostic::new(Code::DuplicateName, format!("there is a {what} `{taken}` already"))
            .at(names::span(name))
            .hint("choose another name, or write CREATE OR REPLACE"))
    }

    /// The relation that `name` means, as it is spelled; `None` when there is none.
    pub fn key(&self, name: &ObjectName) -> Result<Option<String>> {
        let Some(ident) = names::last_ident(name) else { return Ok(None) };
        if name.0.len() > 1 {
            return Ok(None);
        }
        Ok(names::resolve(ident, self.relations.keys().map(String::as_str))?
            .and_then(|index| self.relations.keys().nth(index).cloned()))
    }

    fn find(&self, name: &ObjectName) -> Result<&Relation> {
        self.key(name)?.and_then(|key| self.relations.get(&key)).ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &ObjectName) -> Diagnostic {
        let error = Diagnostic::new(Code::UnknownTable, format!("there is no table or view `{}`", names::last(name)))
            .at(names::span(name));
        match closest_name(&names::last(name), self.relations.keys().map(String::as_str)) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None if self.relations.is_empty() => error.hint("create it before this statement"),
            None => error.hint(format!("there are: {}", self.relations.keys().cloned().collect::<Vec<_>>().join(", "))),
        }
    }
}

/// A column's type as it was declared, with its length.
fn type_name(column: &TableColumn) -> String {
    column.length.map_or_else(|| types::sql_name(&column.field), |length| length.to_string())
}

fn line(out: &mut String, name: &str, data_type: &str, notes: &str) {
    // Writing to a String can't fail.
    let _infallible = writeln!(out, "{}", format!("{name}\t{data_type}\t{notes}").trim_end());
}

/// A table from its statement: types mapped, names of columns looked up.
fn table_def(create: &CreateTable) -> Result<TableDef> {
    let mut columns: Vec<TableColumn> = Vec::with_capacity(create.columns.len());
    for column in &create.columns {
        let name = &column.name.value;
        if columns.iter().any(|other| other.field.name() == name) {
            return Err(Diagnostic::new(
                Code::DuplicateName,
                format!("the table `{}` has the column `{name}` twice", create.name),
            )
            .at(span_of(column.name.span)));
        }
        let (field, source) = match &column.kind {
            ColumnKind::Physical { data_type, not_null } => (types::field(name, data_type, *not_null), ColumnSource::Physical),
            ColumnKind::Metadata { data_type, not_null, key, is_virtual } => {
                (types::field(name, data_type, *not_null), ColumnSource::Metadata { key: key.clone(), is_virtual: *is_virtual })
            }
            ColumnKind::Computed(expr) => (Ok(Field::new(name, DataType::Null, true)), ColumnSource::Computed(expr.clone())),
        };
        let field = field.map_err(|error| {
            Diagnostic { message: format!("column `{name}` of `{}`: {}", create.name, error.message), ..error }.at(column.span)
        })?;
        let (length, has_length_inside) = match &column.kind {
            ColumnKind::Physical { data_type, .. } | ColumnKind::Metadata { data_type, .. } => {
                (types::declared_length(data_type), types::has_length_inside(data_type))
            }
            ColumnKind::Computed(_) => (None, false),
        };
        columns.push(TableColumn {
            field: Arc::new(field),
            source,
            length,
            has_length_inside,
            comment: column.comment.clone(),
            span: column.span,
        });
    }
    let place = |ident: &Ident, what: &str| {
        names::resolve(ident, columns.iter().map(|column| column.field.name().as_str()))?.ok_or_else(|| {
            let error = Diagnostic::new(
                Code::UnknownColumn,
                format!("{what} of `{}`: there is no column `{}`", create.name, ident.value),
            )
            .at(span_of(ident.span));
            match closest_name(&ident.value, columns.iter().map(|column| column.field.name().as_str())) {
                Some(near) => error.hint(format!("did you mean `{near}`?")),
                None => error,
            }
        })
    };
    let primary_key = create.primary_key.iter().map(|ident| place(ident, "PRIMARY KEY")).collect::<Result<Vec<_>>>()?;
    let partitioned_by = create.partitioned_by.iter().map(|ident| place(ident, "PARTITIONED BY")).collect::<Result<Vec<_>>>()?;
    for (list, idents, what) in
        [(&primary_key, &create.primary_key, "PRIMARY KEY"), (&partitioned_by, &create.partitioned_by, "PARTITIONED BY")]
    {
        for (index, column) in list.iter().enumerate() {
            if list[..index].contains(column) {
                return Err(Diagnostic::new(
                    Code::DuplicateName,
                    format!("{what} of `{}` names `{}` twice", create.name, idents[index].value),
                )
                .at(span_of(idents[index].span)));
            }
        }
    }
    let watermark = match &create.watermark {
        None => None,
        Some(mark) if create.role == TableRole::Sink => {
            return Err(Diagnostic::new(
                Code::Syntax,
                format!("the sink `{}` has a watermark, which only a source can have", create.name),
            )
            .at(mark.span));
        }
        Some(mark) => Some(WatermarkDef { column: place(&mark.column, "WATERMARK")?, expr: mark.expr.clone(), span: mark.span }),
    };
    for index in &primary_key {
        if matches!(columns[*index].source, ColumnSource::Computed(_)) {
            return Err(Diagnostic::new(
                Code::Unsupported,
                format!("PRIMARY KEY of `{}` names the computed column `{}`", create.name, columns[*index].field.name()),
            )
            .at(columns[*index].span)
            .hint("a key is made of columns that are stored"));
        }
        // A key is never NULL, said or not.
        let field = columns[*index].field.as_ref().clone().with_nullable(false);
        columns[*index].field = Arc::new(field);
    }
    Ok(TableDef {
        name: names::last(&create.name),
        role: create.role,
        columns,
        primary_key,
        watermark,
        partitioned_by,
        comment: create.comment.clone(),
        options: create.options.clone(),
        span: create.span,
    })
}

/// A name as it must be written: in quotes unless it is plain.
fn quoted(name: &str) -> String {
    let mut chars = name.chars();
    let is_plain =
        chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_') && chars.all(|c| c.is_ascii_alphanumeric() || c == '_');
    if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// Options whose values are not shown.
fn is_secret(key: &str) -> bool {
    ["password", "secret", "token", "credential", "access.key", "access-key", "sasl.jaas"]
        .iter()
        .any(|part| key.to_ascii_lowercase().contains(part))
}

fn show_create(table: &TableDef) -> String {
    let mut parts: Vec<String> = Vec::new();
    for column in &table.columns {
        let name = quoted(column.field.name());
        let comment = column.comment.as_ref().map(|comment| format!(" COMMENT {}", text(comment))).unwrap_or_default();
        let not_null = if column.field.is_nullable() { "" } else { " NOT NULL" };
        parts.push(match &column.source {
            ColumnSource::Physical => format!("{name} {}{not_null}{comment}", type_name(column)),
            ColumnSource::Computed(expr) => format!("{name} AS {expr}{comment}"),
            ColumnSource::Metadata { key, is_virtual } => {
                let virtual_ = if *is_virtual { " VIRTUAL" } else { "" };
                format!("{name} {}{not_null} METADATA FROM {}{virtual_}{comment}", type_name(column), text(key))
            }
        });
    }
    let list =
        |indexes: &[usize]| indexes.iter().map(|index| quoted(table.columns[*index].field.name())).collect::<Vec<_>>().join(", ");
    if let Some(mark) = &table.watermark {
        parts.push(format!("WATERMARK FOR {} AS {}", list(&[mark.column]), mark.expr));
    }
    if !table.primary_key.is_empty() {
        parts.push(format!("PRIMARY KEY ({}) NOT ENFORCED", list(&table.primary_key)));
    }
    let word = Relation::Table(table.clone()).what().to_ascii_uppercase();
    let mut out = format!("CREATE {word} {} (\n  {}\n)", quoted(&table.name), parts.join(",\n  "));
    if let Some(comment) = &table.comment {
        out.push_str(&format!(" COMMENT {}", text(comment)));
    }
    if !table.partitioned_by.is_empty() {
        out.push_str(&format!(" PARTITIONED BY ({})", list(&table.partitioned_by)));
    }
    let options: Vec<String> = table
        .options
        .iter()
        .map(|(key, value)| {
            let shown = match table.options.secret_name(key) {
                Some(_) => value.into_owned(),
                None if is_secret(key) => "'******'".to_owned(),
                None => text(&value),
            };
            format!("{} = {shown}", text(key))
        })
        .collect();
    if !options.is_empty() {
        out.push_str(&format!(" WITH (\n  {}\n)", options.join(",\n  ")));
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;
    use crate::sql::{StatementKind, parse};

    /// Runs CREATE TABLE and DROP statements; the texts of SHOW and DESCRIBE, or the first error.
    fn run(sql: &str) -> Result<Vec<String>> {
        let mut catalog = Catalog::default();
        let mut out = Vec::new();
        for statement in parse(sql, &BTreeMap::new()).unwrap_or_else(|e| panic!("{e}")).statements {
            match &statement.kind {
                StatementKind::CreateTable(create) => {
                    catalog.create_table(create)?;
                }
                StatementKind::Drop(drop) => {
                    catalog.drop(drop)?;
                }
                StatementKind::Show(show) => out.push(catalog.show(show)?),
                StatementKind::Describe(name) => out.push(catalog.describe(name)?),
                StatementKind::Insert(insert) => {
                    catalog.sink(&insert.table)?;
                }
                other => panic!("{other:?}"),
            }
        }
        Ok(out)
    }

    const ORDERS: &str = "CREATE TABLE Orders (id BIGINT, `when` TIMESTAMP(3) NOT NULL, cost AS price * 2, price DECIMAL(10,2), p INT METADATA FROM 'partition' VIRTUAL, \
        WATERMARK FOR `when` AS `when` - INTERVAL '5' SECOND, PRIMARY KEY (ID) NOT ENFORCED) PARTITIONED BY (price) WITH ('connector' = 'x', 'db.password' = 'p');";

    #[test]
    fn show_create_gives_sql_that_creates_the_same() {
        let shown = run(&format!("{ORDERS} SHOW CREATE TABLE orders")).unwrap().remove(0);
        assert_eq!(
            shown,
            "CREATE TABLE Orders (\n  id BIGINT NOT NULL,\n  when TIMESTAMP(3) NOT NULL,\n  cost AS price * 2,\n  price DECIMAL(10, 2),\n  \
             p INT METADATA FROM 'partition' VIRTUAL,\n  WATERMARK FOR when AS `when` - INTERVAL '5 seconds',\n  PRIMARY KEY (id) NOT ENFORCED\n) \
             PARTITIONED BY (price) WITH (\n  'connector' = 'x',\n  'db.password' = '******'\n)"
        );
        let again = run(&format!("{shown}; SHOW CREATE TABLE ORDERS")).unwrap().remove(0);
        assert_eq!(again, shown);
    }

    #[test]
    fn describe_tells_each_column() {
        let told = run(&format!("{ORDERS} DESCRIBE orders")).unwrap().remove(0);
        assert_eq!(
            told,
            "id\tBIGINT\tPRIMARY KEY, NOT NULL\nwhen\tTIMESTAMP(3)\tNOT NULL, WATERMARK AS `when` - INTERVAL '5 seconds'\ncost\t\tAS price * 2\n\
             price\tDECIMAL(10, 2)\np\tINT\tMETADATA FROM 'partition' VIRTUAL"
        );
    }

    #[test]
    fn names_are_found_without_case_unless_quoted_and_doubles_are_refused() {
        assert!(run(&format!("{ORDERS} DESCRIBE \"Orders\"")).is_ok());
        let code = |sql: &str| run(&format!("{ORDERS} {sql}")).unwrap_err().code;
        assert_eq!(code("DESCRIBE \"orders\""), Code::UnknownTable);
        assert_eq!(code("CREATE TABLE ORDERS (a INT)"), Code::DuplicateName);
        assert_eq!(code("CREATE TABLE `orders` (a INT); DESCRIBE oRDERS"), Code::AmbiguousName);
        assert_eq!(code("DROP VIEW orders"), Code::InvalidArgument);
        assert_eq!(code("DROP TABLE orders; DESCRIBE orders"), Code::UnknownTable);
        assert_eq!(code("CREATE TABLE b (a INT, a INT)"), Code::DuplicateName);
        assert_eq!(code("CREATE TABLE b (a INT, WATERMARK FOR x AS a)"), Code::UnknownColumn);
        assert_eq!(code("CREATE TABLE b (a INT, PRIMARY KEY (a, A) NOT ENFORCED)"), Code::DuplicateName);
        assert_eq!(code("CREATE TABLE b (a FOO)"), Code::UnknownType);
        assert_eq!(code("CREATE SOURCE b (a INT); INSERT INTO b SELECT 1"), Code::InvalidArgument);
        assert_eq!(code("CREATE TABLE a.b (a INT)"), Code::Unsupported);
        assert!(run(&format!("{ORDERS} CREATE TABLE IF NOT EXISTS orders (a INT); DROP TABLE IF EXISTS nothing; CREATE OR REPLACE TABLE orders (b INT)")).is_ok());
        let error = run(&format!("{ORDERS} DESCRIBE ordres")).unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("did you mean `Orders`?"));
    }
}
