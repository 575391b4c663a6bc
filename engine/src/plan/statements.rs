//! Statement after statement: definitions into the catalog, queries into logical plans, and in the end one graph for all of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::planner::SqlToRel;
use sqlparser::ast::Query;

use super::build::Builder;
use super::diagnose::{diagnose, external, has_place};
use super::emission::Emission;
use super::explain::{NodeInfo, render};
use super::field_names::{name_expressions, name_fields};
use super::names::with_spelling;
use super::optimizer::{analyze, optimize};
use super::session::{Leaf, LeafKind, Relation, Session};
use super::settings::{LengthPolicy, OnError, Settings};
use super::sink::{self, Target};
use super::source::{PlannedTable, Tables};
use super::stream::{ChangeKind, StateBound};
use super::table_check::check_clauses;
use super::time_rules::TimeRules;
use super::usage;
use super::{ExplainFormat, JobPlan, PlanOptions, QueryResult};
use crate::catalog::Catalog;
use crate::connect::memory::MemoryOutput;
use crate::connect::{Options, Secrets, SinkRef, TableSpec, connector, table_options};
use crate::error::{Code, Diagnostic, Diagnostics, Result, Span};
use crate::operators::Operator;
use crate::operators::aggregate::TableIds;
use crate::operators::materialize::{Materialize, ViewHandle};
use crate::runtime::graph::{Input, OperatorFactory, Route};
use crate::sql::ast::{CreateSink, CreateView, DropKind, Emit, Explain, Insert, Statement, StatementKind, StreamQuery, ViewKind};
use crate::sql::{self};
use crate::time::Zone;

/// What becomes of a query's rows.
#[derive(Clone)]
enum Destination {
    /// A table of the catalog; the indexes of its sink columns in the order of the query's.
    Table { name: String, columns: Vec<usize> },
    /// A table that takes the query's own columns (`CREATE SINK … AS`).
    OwnColumns { name: String },
    /// A bare query.
    Result,
    /// A materialized view or a stream.
    Shared { name: String, is_materialized: bool },
}

/// A query that runs, planned as far as it can be alone.
#[derive(Clone)]
struct Output {
    plan: LogicalPlan,
    emit: Emit,
    destination: Destination,
    /// The session's zone when the statement was read.
    zone: Zone,
    span: Span,
}

/// A query that has been understood.
struct PlannedQuery {
    /// As it was written: what a view stands for, whose times are brought under the rule of the session that reads it.
    plan: LogicalPlan,
    /// With types and times brought in order.
    analyzed: LogicalPlan,
}

struct Planner<'o> {
    /// The job's text, as the user wrote it.
    text: &'o str,
    options: &'o PlanOptions,
    session: Session,
    catalog: Catalog,
    settings: Settings,
    tables: HashMap<String, PlannedTable>,
    sinks_of_own_columns: HashMap<String, (Options, Vec<usize>, Span)>,
    outputs: Vec<Output>,
    explains: Vec<(Vec<Output>, ExplainFormat)>,
    texts: Vec<String>,
    errors: Vec<Diagnostic>,
    /// Names whose definitions were refused: that they are missing elsewhere is no second error.
    broken: Vec<String>,
}

pub(super) fn plan(text: &str, options: &PlanOptions) -> Result<JobPlan, Diagnostics> {
    let mut parsed = sql::parse_partial(text, &options.variables);
    if !parsed.is_whole {
        return Err(Diagnostics(parsed.errors));
    }
    let unknown: Vec<_> =
        parsed.script.statements.iter_mut().flat_map(|statement| resolve_secrets(statement, &options.secrets)).collect();
    if !unknown.is_empty() {
        parsed.errors.extend(unknown);
        return Err(Diagnostics(parsed.errors));
    }
    let settings = Settings::from_config(&options.config).map_err(Diagnostics)?;
    let whole = Span { start: 0, end: text.len() };
    let mut session = Session::new().map_err(|e| diagnose(&e, whole))?;
    session.set_zone(settings.zone);
    let mut planner = Planner {
        text,
        options,
        session,
        catalog: Catalog::default(),
        settings,
        tables: HashMap::new(),
        sinks_of_own_columns: HashMap::new(),
        outputs: Vec::new(),
        explains: Vec::new(),
        texts: Vec::new(),
        errors: parsed.errors,
        broken: parsed.broken,
    };
    for statement in &parsed.script.statements {
        if let Err(error) = planner.statement(statement) {
            let place = error.span.unwrap_or(statement.span);
            planner.reject(error.at(place));
            planner.broken.extend(defined_name(&statement.kind));
        }
    }
    planner.finish(whole)
}

/// Puts the values of secrets into the options of a statement; gives an error for each that is not there.
fn resolve_secrets(statement: &mut Statement, secrets: &Secrets) -> Vec<Diagnostic> {
    match &mut statement.kind {
        StatementKind::CreateTable(create) => create.options.resolve(secrets),
        StatementKind::CreateSink(create) => create.options.resolve(secrets),
        StatementKind::Explain(explain) => resolve_secrets(&mut explain.statement, secrets),
        _ => Vec::new(),
    }
}

/// The name that a statement would define.
fn defined_name(kind: &StatementKind) -> Option<String> {
    let name = match kind {
        StatementKind::CreateTable(create) => &create.name,
        StatementKind::CreateView(create) => &create.name,
        StatementKind::CreateSink(create) => &create.name,
        StatementKind::CreateFunction(create) => &create.name,
        _ => return None,
    };
    Some(sql::names::last(name))
}

impl Planner<'_> {
    /// Keeps an error, unless it only follows from another.
    fn reject(&mut self, error: Diagnostic) {
        let message = error.message.to_lowercase().replace('\'', "`");
        let follows = matches!(error.code, Code::UnknownTable | Code::UnknownFunction)
            && self.broken.iter().any(|name| message.contains(&format!("`{}`", name.to_lowercase())));
        if !follows {
            self.errors.push(error);
        }
    }

    fn statement(&mut self, statement: &Statement) -> Result<()> {
        match &statement.kind {
            StatementKind::CreateTable(create) => {
                self.make_way(&create.name, create.or_replace)?;
                let Some(def) = self.catalog.create_table(create)? else { return Ok(()) };
                if self.settings.lengths != LengthPolicy::Ignore
                    && let Some(column) = def.columns.iter().find(|column| column.has_length_inside)
                {
                    return Err(Diagnostic::new(
                        Code::Unsupported,
                        format!(
                            "column `{}` of `{}`: a length inside a ROW, ARRAY or MAP can't be kept",
                            column.field.name(),
                            def.name
                        ),
                    )
                    .at(column.span)
                    .hint("write STRING or BYTES there, or SET 'table.exec.sink.type-length-enforcer' = 'ignore' before"));
                }
                let planned = PlannedTable::new(&self.session, def.clone())?;
                if planned.def.options.text("connector").is_some() {
                    let connector = super::source::connector_of(&planned.def)?;
                    check_clauses(create, &planned.def, connector)?;
                }
                let leaf = Leaf { name: planned.def.name.clone(), kind: LeafKind::Table, schema: planned.schema.clone() };
                self.session.define(&planned.def.name, Relation::Leaf(Arc::new(leaf)));
                self.catalog.learn_types(&planned.def.name, &planned.schema);
                self.tables.insert(planned.def.name.clone(), planned);
                Ok(())
            }
            StatementKind::CreateSink(create) => self.create_sink(create, statement.span),
            StatementKind::CreateView(create) => self.create_view(create, statement.span),
            StatementKind::CreateFunction(create) => {
                let name = sql::names::last(&create.name);
                if self.session.has_named_function(&name) {
                    if create.if_not_exists {
                        return Ok(());
                    }
                    if !create.or_replace {
                        return Err(Diagnostic::new(Code::DuplicateName, format!("there is a function `{name}` already"))
                            .at(sql::names::span(&create.name))
                            .hint("choose another name, or write CREATE OR REPLACE FUNCTION"));
                    }
                }
                self.session.name_function(&name, create.builtin);
                Ok(())
            }
            StatementKind::Insert(insert) => {
                let output = self.insert(insert)?;
                self.outputs.push(output);
                Ok(())
            }
            StatementKind::StatementSet(inserts) => {
                for insert in inserts {
                    match self.insert(insert) {
                        Ok(output) => self.outputs.push(output),
                        Err(error) => {
                            let place = error.span.unwrap_or(insert.span);
                            self.reject(error.at(place));
                        }
                    }
                }
                Ok(())
            }
            StatementKind::Query(query) => {
                let output = self.query(query, Destination::Result)?;
                self.outputs.push(output);
                Ok(())
            }
            StatementKind::Set(set) => {
                self.settings.set(&set.key, &set.value, Some(set.key_span))?;
                self.session.set_zone(self.settings.zone);
                Ok(())
            }
            StatementKind::Reset(key) => self.reset(key.as_ref()),
            StatementKind::Drop(drop) if drop.kind == DropKind::Function => {
                let name = sql::names::last(&drop.name);
                if !self.session.unname_function(&name) && !drop.if_exists {
                    return Err(Diagnostic::new(
                        Code::UnknownFunction,
                        format!("CREATE FUNCTION has not made a function `{name}`"),
                    )
                    .at(sql::names::span(&drop.name))
                    .hint("built-in functions can't be dropped; DROP FUNCTION IF EXISTS passes over a name that is not there"));
                }
                Ok(())
            }
            StatementKind::Drop(drop) => {
                if let Some(name) = self.catalog.key(&drop.name)?
                    && let Some(reader) = self.user_of(&name)
                {
                    let message = format!("`{name}` can't be dropped: {reader} needs it");
                    return Err(Diagnostic::new(Code::StillInUse, message).at(sql::names::span(&drop.name)).hint(
                        "all statements of a script are one job, which starts when all of them are read: drop first what needs it, or leave the DROP out",
                    ));
                }
                if let Some(name) = self.catalog.drop(drop)? {
                    self.retire(&name);
                    self.session.forget(&name);
                    self.tables.remove(&name);
                }
                Ok(())
            }
            StatementKind::Show(show) => {
                let text = self.catalog.show(show)?;
                self.texts.push(text);
                Ok(())
            }
            StatementKind::Describe(name) => {
                let text = self.catalog.describe(name)?;
                self.texts.push(text);
                Ok(())
            }
            StatementKind::Explain(explain) => self.explain(explain),
        }
    }

    /// Before a definition with OR REPLACE: what goes by the name so far must not be in use, and does not run.
    fn make_way(&mut self, name: &sqlparser::ast::ObjectName, or_replace: bool) -> Result<()> {
        if !or_replace {
            return Ok(());
        }
        let Some(old) = self.catalog.key(name)? else { return Ok(()) };
        if let Some(reader) = self.user_of(&old) {
            let message = format!("`{old}` can't be replaced: {reader} needs it as it is");
            return Err(Diagnostic::new(Code::StillInUse, message)
                .at(sql::names::span(name))
                .hint("define it once, before what needs it, or give the new one another name"));
        }
        self.retire(&old);
        Ok(())
    }

    /// A statement or view that reads or writes the relation `name`, in words.
    fn user_of(&self, name: &str) -> Option<String> {
        if let Some((view, _)) = self.session.views().filter(|(_, plan)| usage::reads(plan, name)).min_by_key(|(view, _)| *view) {
            return Some(format!("the view `{view}`"));
        }
        let explained = self.explains.iter().flat_map(|(outputs, _)| outputs);
        self.outputs.iter().chain(explained).find_map(|output| {
            let late = output.emit.late_data_to.as_ref().and_then(|late| self.catalog.key(&late.value).ok().flatten());
            let is_written = match &output.destination {
                Destination::Table { name: table, .. } => table == name,
                Destination::OwnColumns { .. } | Destination::Result | Destination::Shared { .. } => false,
            };
            if !is_written && late.as_deref() != Some(name) && !usage::reads(&output.plan, name) {
                return None;
            }
            Some(match &output.destination {
                Destination::Table { name, .. } => format!("an INSERT INTO `{name}`"),
                Destination::OwnColumns { name } => format!("the sink `{name}`"),
                Destination::Result => "a SELECT".to_owned(),
                Destination::Shared { name, is_materialized: true } => format!("the materialized view `{name}`"),
                Destination::Shared { name, is_materialized: false } => format!("the stream `{name}`"),
            })
        })
    }

    /// A relation that is no more: a stream, materialized view or sink with a query of its own does not run.
    fn retire(&mut self, name: &str) {
        self.outputs.retain(|output| match &output.destination {
            Destination::OwnColumns { name: own } | Destination::Shared { name: own, .. } => own != name,
            Destination::Table { .. } | Destination::Result => true,
        });
        self.sinks_of_own_columns.remove(name);
    }

    fn reset(&mut self, key: Option<&crate::sql::ast::Set>) -> Result<()> {
        let fresh = Settings::from_config(&self.options.config).map_err(|mut e| e.remove(0))?;
        match key {
            None => {
                self.settings = fresh;
                self.session.set_zone(self.settings.zone);
            }
            Some(set) => {
                return Err(Diagnostic::new(Code::Unsupported, "RESET of one key can't be done")
                    .at(set.key_span)
                    .hint("SET it to its default"));
            }
        }
        Ok(())
    }

    fn optimize(&self, analyzed: LogicalPlan, keeps_columns: bool) -> Result<LogicalPlan, DataFusionError> {
        optimize(analyzed, self.session.options(), keeps_columns)
    }

    /// A query as a plan, as written and analyzed.
    fn plan_query(&self, query: &Query, span: Span) -> Result<PlannedQuery> {
        let mut ast = query.clone();
        name_fields(&mut ast);
        let attempt = |ast: &Query| -> Result<PlannedQuery, DataFusionError> {
            let statement = sqlparser::ast::Statement::Query(Box::new(ast.clone()));
            let plan = SqlToRel::new(&self.session).sql_statement_to_plan(statement)?;
            super::conditions::check(&plan)?;
            let analyzed = analyze(plan.clone(), self.session.options(), self.session.zone())?;
            super::constants::check(&analyzed, ast)?;
            Ok(PlannedQuery { plan, analyzed })
        };
        with_spelling(&mut ast, attempt).map_err(|error| {
            let found = if has_place(&error) {
                None
            } else {
                super::culprit::find(&ast, self.text, &error, |ast| attempt(ast).map(|_| ()))
            };
            diagnose(&error, found.unwrap_or(span))
        })
    }

    fn query(&self, query: &StreamQuery, destination: Destination) -> Result<Output> {
        let planned = self.plan_query(&query.query, query.span)?;
        let plan = self.optimize(planned.analyzed, query.emit.late_data_to.is_some()).map_err(|e| diagnose(&e, query.span))?;
        Emission::from_clause(&query.emit)?;
        Ok(Output { plan, emit: query.emit.clone(), destination, zone: self.session.zone(), span: query.span })
    }

    fn insert(&self, insert: &Insert) -> Result<Output> {
        let def = self.catalog.sink(&insert.table)?;
        let planned = self.tables.get(&def.name).ok_or_else(|| {
            Diagnostic::new(Code::UnknownTable, format!("`{}` is no table that can be written", def.name)).at(insert.span)
        })?;
        let target = Target::table(planned)?;
        let columns = if insert.columns.is_empty() {
            (0..target.schema.fields().len()).collect()
        } else {
            let mut columns = Vec::new();
            for ident in &insert.columns {
                let at =
                    sql::names::position(ident, target.schema.fields().iter().map(|f| f.name().as_str())).ok_or_else(|| {
                        let message = format!("`{}` has no column `{}` that can be written", def.name, ident.value);
                        Diagnostic::new(Code::UnknownColumn, message).at(sql::span_of(ident.span))
                    })?;
                if columns.contains(&at) {
                    let message = format!("the column `{}` is named twice", ident.value);
                    return Err(Diagnostic::new(Code::DuplicateName, message).at(sql::span_of(ident.span)));
                }
                columns.push(at);
            }
            columns
        };
        self.query(&insert.query, Destination::Table { name: def.name.clone(), columns })
    }

    fn create_sink(&mut self, create: &CreateSink, span: Span) -> Result<()> {
        let name = sql::names::last(&create.name);
        let output = self.query(&create.query, Destination::OwnColumns { name: name.clone() })?;
        let schema = Arc::new(output.plan.schema().as_arrow().clone());
        let place = |ident: &sqlparser::ast::Ident| {
            sql::names::position(ident, schema.fields().iter().map(|f: &arrow::datatypes::FieldRef| f.name().as_str()))
                .ok_or_else(|| {
                    Diagnostic::new(Code::UnknownColumn, format!("the query has no column `{}`", ident.value))
                        .at(sql::span_of(ident.span))
                })
        };
        let key = create.primary_key.iter().map(place).collect::<Result<Vec<_>>>()?;
        if !create.partitioned_by.is_empty() {
            return Err(Diagnostic::new(Code::Unsupported, "CREATE SINK … AS with PARTITIONED BY can't be run yet")
                .at(span)
                .hint("CREATE TABLE with columns and PARTITIONED BY, then INSERT INTO it"));
        }
        self.catalog.reserve(&create.name, create.span)?;
        self.sinks_of_own_columns.insert(name, (create.options.clone(), key, create.span));
        self.outputs.push(output);
        Ok(())
    }

    fn create_view(&mut self, create: &CreateView, span: Span) -> Result<()> {
        self.make_way(&create.name, create.or_replace)?;
        let mut query = create.query.query.clone();
        name_expressions(&mut query);
        let planned = self.plan_query(&query, create.query.span)?;
        let renamed = |plan| rename(plan, create).map_err(|e| diagnose(&e, span));
        let (plan, analyzed) = (renamed(planned.plan)?, renamed(planned.analyzed)?);
        // Analysis tells the digits of times, which the columns' types are shown with.
        let schema: SchemaRef = Arc::new(Schema::new(analyzed.schema().fields().iter().cloned().collect::<Vec<_>>()));
        let Some(name) = self.catalog.create_view(create, schema.clone())? else { return Ok(()) };
        match create.kind {
            ViewKind::View => {
                // Refused here if it can't be run, not where it is first used.
                self.optimize(analyzed, false).map_err(|e| diagnose(&e, span))?;
                self.session.define(&name, Relation::View(Arc::new(plan)));
            }
            ViewKind::Stream | ViewKind::Materialized => {
                let plan = self.optimize(analyzed, create.query.emit.late_data_to.is_some()).map_err(|e| diagnose(&e, span))?;
                Emission::from_clause(&create.query.emit)?;
                let leaf = Leaf { name: name.clone(), kind: LeafKind::Shared, schema };
                self.session.define(&name, Relation::Leaf(Arc::new(leaf)));
                let is_materialized = create.kind == ViewKind::Materialized;
                let destination = Destination::Shared { name, is_materialized };
                let zone = self.session.zone();
                self.outputs.push(Output { plan, emit: create.query.emit.clone(), destination, zone, span });
            }
        }
        Ok(())
    }

    fn explain(&mut self, explain: &Explain) -> Result<()> {
        let format = match explain.format {
            crate::sql::ast::ExplainFormat::Text => ExplainFormat::Text,
            crate::sql::ast::ExplainFormat::Json => ExplainFormat::Json,
            crate::sql::ast::ExplainFormat::Dot => ExplainFormat::Dot,
        };
        // The statement is planned like any other, then its outputs are taken away again: they are shown, not run.
        let before = self.outputs.len();
        self.statement(&explain.statement)?;
        let shown = self.outputs.split_off(before);
        self.explains.push((shown, format));
        Ok(())
    }

    fn finish(mut self, whole: Span) -> Result<JobPlan, Diagnostics> {
        let explains = std::mem::take(&mut self.explains);
        for (outputs, format) in explains {
            // What an explained statement reads of streams and views is planned with it.
            let mut all: Vec<Output> =
                self.outputs.iter().filter(|o| matches!(o.destination, Destination::Shared { .. })).cloned().collect();
            all.extend(outputs);
            match self.assemble(&all, whole) {
                Ok(done) => self.texts.push(render(&done.graph, &done.infos, format)),
                Err(errors) => errors.into_iter().for_each(|error| self.reject(error)),
            }
        }
        let outputs = std::mem::take(&mut self.outputs);
        let done = match self.assemble(&outputs, whole) {
            Ok(done) => Some(done),
            Err(errors) => {
                errors.into_iter().for_each(|error| self.reject(error));
                None
            }
        };
        if outputs.is_empty() && self.texts.is_empty() && self.errors.is_empty() {
            self.errors.push(
                Diagnostic::new(Code::NothingToRun, "the job has no statement that produces rows")
                    .hint("add INSERT INTO sink SELECT …, or a bare SELECT"),
            );
        }
        match done {
            Some(done) if self.errors.is_empty() => Ok(JobPlan {
                graph: done.graph,
                settings: self.settings,
                views: done.views,
                results: done.results,
                texts: self.texts,
                infos: done.infos,
            }),
            _ => {
                let mut errors = self.errors;
                if errors.is_empty() {
                    // Every error only followed from another, which then is not there: never silent.
                    errors.push(Diagnostic::new(Code::Internal, "the job can't be planned").at(whole));
                }
                errors.sort_by_key(|error| error.span.map_or(usize::MAX, |span| span.start));
                errors.dedup();
                Err(Diagnostics(errors))
            }
        }
    }

    fn assemble(&self, outputs: &[Output], whole: Span) -> Result<Assembled, Vec<Diagnostic>> {
        let mut usages = BTreeMap::new();
        for output in outputs {
            usage::collect(&output.plan, &mut usages).map_err(|e| vec![diagnose(&e, output.span)])?;
        }
        if !self.settings.projects_sources {
            for (name, used) in &mut usages {
                if let Some(table) = self.tables.get(name) {
                    used.want_all(table.schema.fields().len());
                }
            }
        }
        let tables = Tables { planned: &self.tables, usages, built: HashMap::new() };
        let mut builder = Builder::new(tables, self.settings.on_error.policy(), self.options.cores.max(1));
        builder.allowed_future_us = self.settings.max_future_us;
        builder.phases = self.settings.phases;
        builder.lengths = self.settings.lengths;
        let mut done = Assembled::default();
        let mut errors = Vec::new();
        let mut sinks: HashMap<String, Target> = HashMap::new();
        for output in outputs {
            builder.statement = output.span;
            builder.times = TimeRules { zone: output.zone };
            if let Err(error) = self.output(&mut builder, output, &mut done, &mut sinks) {
                let place = error.span.unwrap_or(output.span);
                errors.push(error.at(place));
            }
        }
        if errors.is_empty()
            && let Err(error) = self.dead_letters(&mut builder, &mut sinks, whole)
        {
            errors.push(error);
        }
        if self.settings.require_bound {
            for info in &builder.infos {
                if let StateBound::Keys(how) = &info.bound {
                    errors.push(
                        Diagnostic::new(Code::UnboundedState, format!("the state of {} has no bound: {how}", info.name))
                            .at(whole)
                            .hint("group by a window, or SET 'state.require_bound' = 'false'"),
                    );
                }
            }
        }
        // Every option must have been asked for by now; of tables that nobody reads or writes, too.
        for (name, planned) in &self.tables {
            if self.is_used(name, outputs, &builder) || sinks.contains_key(name) {
                if let Err(unknown) = planned.def.options.finish(&table_options::options_of(&planned.def.options)) {
                    errors.extend(unknown.into_iter().map(|e| super::source::in_table(e, name, planned.def.span)));
                }
            } else {
                // Nobody has planned it: what no table of this kind can have is refused all the same.
                let unknown = table_options::unknown_options(&planned.def.options);
                errors.extend(unknown.into_iter().map(|e| super::source::in_table(e, name, planned.def.span)));
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        done.graph = builder.graph;
        done.infos = builder.infos;
        Ok(done)
    }

    fn is_used(&self, name: &str, outputs: &[Output], builder: &Builder<'_>) -> bool {
        builder.tables.built.contains_key(name)
            || outputs.iter().any(|o| matches!(&o.destination, Destination::Table { name: n, .. } if n == name))
    }

    fn output(
        &self,
        builder: &mut Builder<'_>,
        output: &Output,
        done: &mut Assembled,
        sinks: &mut HashMap<String, Target>,
    ) -> Result<()> {
        let emission = Emission::from_clause(&output.emit)?;
        builder.late_outputs.clear();
        let stream = builder.build(&output.plan, &emission)?;
        let windowed = builder.infos.iter().any(|i| i.kind == "WindowAggregate");
        let needs_window = matches!(emission.mode, super::emission::EmissionMode::OnWindowClose)
            || emission.lateness_us > 0
            || emission.wants_late;
        if needs_window && !reaches_window(&output.plan) {
            return Err(Diagnostic::new(
                Code::EmitNotPossible,
                "this EMIT clause needs an aggregation over a window, and the query has none",
            )
            .at(output.emit.mode.as_ref().map_or(output.span, |m| m.span))
            .hint("group by the window_start and window_end of TUMBLE, HOP or CUMULATE"));
        }
        let stream = sink::emit(builder, stream, &emission, windowed && reaches_window(&output.plan))?;
        if emission.wants_late {
            self.late_rows(builder, output, sinks)?;
        }
        match &output.destination {
            Destination::Table { name, columns } => {
                let target = self.target(name, sinks)?;
                let stream = sink::fit(builder, stream, target, columns, output.span)?;
                sink::write(builder, stream, target, &emission, output.span)?;
            }
            Destination::OwnColumns { name } => {
                let (options, key, span) = &self.sinks_of_own_columns[name];
                let target = own_columns(name, options, key, *span, &stream)?;
                let columns: Vec<usize> = (0..target.schema.fields().len()).collect();
                let stream = sink::fit(builder, stream, &target, &columns, output.span)?;
                sink::write(builder, stream, &target, &emission, output.span)?;
            }
            Destination::Result => {
                let schema = named_as_shown(&stream);
                let (sink, connector): (SinkRef, &str) = if self.options.collect_results {
                    let memory = MemoryOutput::default();
                    let (schema, output, zone) = (schema.clone(), memory.clone(), output.zone);
                    done.results.push(QueryResult { schema, output, upsert_key: None, zone });
                    (memory.sink(), "result")
                } else {
                    (print_sink(&schema, output.span)?, "print")
                };
                let number = done.results.len().max(1);
                let target = Target {
                    name: format!("result{number}"),
                    schema,
                    primary_key: Vec::new(),
                    lengths: Vec::new(),
                    sink,
                    connector: connector.to_owned(),
                };
                let node = sink::write(builder, stream, &target, &emission, output.span)?;
                if let (Some(result), crate::runtime::graph::Role::Sink(spec)) =
                    (done.results.last_mut(), &builder.graph.nodes[node.0 as usize].role)
                    && spec.mode == crate::connect::ChangelogMode::Upsert
                {
                    result.upsert_key = Some(spec.key.clone());
                }
            }
            Destination::Shared { name, is_materialized } => {
                let placed = builder.materialize(stream)?;
                builder.shared.insert(name.clone(), placed.clone());
                if *is_materialized {
                    let schema: SchemaRef = Arc::new(placed.base.as_arrow().clone());
                    let handle = ViewHandle::new(name.clone(), schema.clone());
                    handle.start(builder.cores);
                    done.views.insert(name.clone(), handle.clone());
                    let node = crate::ids::NodeId(builder.graph.nodes.len() as u32);
                    let factory: OperatorFactory = Arc::new(move |core| {
                        let state = TableIds::of(node, core).next();
                        Ok(Box::new(Materialize::new(&handle, core, &[], state)?) as Box<dyn Operator>)
                    });
                    let bound = if placed.kind == ChangeKind::Append { "every row" } else { "the query's current rows" };
                    let info = NodeInfo::new("Materialize")
                        .kind(placed.kind)
                        .detail(format!("view {name}"))
                        .shown(&placed.shown)
                        .state("the view's rows", StateBound::Keys(bound.into()));
                    let edge = Input { from: placed.node, port: placed.port, route: Route::Local };
                    builder.operator("Materialize", factory, vec![edge], schema, info);
                }
            }
        }
        Ok(())
    }

    fn late_rows(&self, builder: &mut Builder<'_>, output: &Output, sinks: &mut HashMap<String, Target>) -> Result<()> {
        let Some(late) = &output.emit.late_data_to else { return Ok(()) };
        let name = self.catalog.sink(&late.value).map_err(|e| e.at(late.span))?.name.clone();
        let outputs = std::mem::take(&mut builder.late_outputs);
        let target = self.target(&name, sinks)?;
        for (node, schema) in outputs {
            sink::late(builder, node, &schema, target, late.span)?;
        }
        Ok(())
    }

    fn dead_letters(&self, builder: &mut Builder<'_>, sinks: &mut HashMap<String, Target>, whole: Span) -> Result<()> {
        let mut by_sink: BTreeMap<String, Vec<crate::ids::NodeId>> = BTreeMap::new();
        for node in builder.rejecting_nodes() {
            let spec = &builder.graph.nodes[node.0 as usize];
            let table = builder.judged_as.get(&node).unwrap_or(&spec.name);
            let own = self.tables.get(table).and_then(|t| t.on_error.clone());
            if let OnError::DeadLetter(sink) = own.unwrap_or_else(|| self.settings.on_error.clone()) {
                by_sink.entry(sink).or_default().push(node);
            }
        }
        for (name, nodes) in by_sink {
            let found =
                self.tables.keys().find(|k| **k == name).or_else(|| self.tables.keys().find(|k| k.eq_ignore_ascii_case(&name)));
            let Some(found) = found.cloned() else {
                return Err(Diagnostic::new(
                    Code::UnknownTable,
                    format!("on_error = dead_letter({name}): there is no table `{name}`"),
                )
                .at(whole)
                .hint("create it with columns among: origin STRING, position BIGINT, code STRING, message STRING, raw STRING"));
            };
            let target = self.target(&found, sinks)?;
            let span = self.tables.get(&found).map_or(whole, |t| t.def.span);
            // The dead-letter sink's own path must not reject into itself.
            let before = builder.policy;
            builder.policy = crate::operators::RowPolicy::Fail;
            let done = sink::rejected(builder, &nodes, target, span);
            builder.policy = before;
            done?;
        }
        Ok(())
    }

    fn target<'s>(&self, name: &str, sinks: &'s mut HashMap<String, Target>) -> Result<&'s Target> {
        if !sinks.contains_key(name) {
            let planned = self
                .tables
                .get(name)
                .ok_or_else(|| Diagnostic::new(Code::UnknownTable, format!("`{name}` is no table that can be written")))?;
            sinks.insert(name.to_owned(), Target::table(planned)?);
        }
        Ok(&sinks[name])
    }
}

/// A bare query's columns: those without a name of the user's are called by their expression as he would write it, not as DataFusion does.
fn named_as_shown(stream: &super::stream::Stream) -> SchemaRef {
    let fields = stream.schema.fields();
    let is_alone = |name: &String| {
        stream.shown.iter().filter(|other| *other == name).count() == 1 && fields.iter().filter(|f| f.name() == name).count() <= 1
    };
    let named = fields
        .iter()
        .zip(&stream.shown)
        .map(|(field, shown)| if is_alone(shown) { Arc::new(field.as_ref().clone().with_name(shown)) } else { field.clone() });
    Arc::new(Schema::new(named.collect::<Vec<_>>()))
}

#[derive(Default)]
struct Assembled {
    graph: crate::runtime::graph::Graph,
    infos: Vec<NodeInfo>,
    views: BTreeMap<String, ViewHandle>,
    results: Vec<QueryResult>,
}

/// Whether the first stateful node from above is an aggregation over a window.
fn reaches_window(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Aggregate(_) => has_window(plan),
        LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) | LogicalPlan::Union(_) => {
            plan.inputs().into_iter().any(reaches_window)
        }
        _ => false,
    }
}

fn has_window(plan: &LogicalPlan) -> bool {
    matches!(plan, LogicalPlan::Extension(_)) || plan.inputs().into_iter().any(has_window)
}

fn rename(plan: LogicalPlan, create: &CreateView) -> Result<LogicalPlan, datafusion::common::DataFusionError> {
    use datafusion::logical_expr::{Expr, LogicalPlanBuilder};
    if create.columns.is_empty() {
        return Ok(plan);
    }
    let width = plan.schema().fields().len();
    if width != create.columns.len() {
        return Err(external(
            Diagnostic::new(Code::ColumnCount, format!("the query has {width} columns, the view names {}", create.columns.len()))
                .at(create.span),
        ));
    }
    let exprs: Vec<Expr> = create
        .columns
        .iter()
        .enumerate()
        .map(|(at, name)| super::compile::column_at(plan.schema(), at).alias(&name.value))
        .collect();
    LogicalPlanBuilder::from(plan).project(exprs)?.build()
}

fn own_columns(name: &str, options: &Options, key: &[usize], span: Span, stream: &super::stream::Stream) -> Result<Target> {
    let schema = named_as_shown(stream);
    let connector_name = options.required("connector").map_err(|e| super::source::in_table(e, name, span))?;
    let spec = connector(connector_name).ok_or_else(|| {
        Diagnostic::new(Code::UnknownConnector, format!("there is no connector '{connector_name}'")).at(options.span("connector"))
    })?;
    let make = spec.sink.ok_or_else(|| {
        Diagnostic::new(Code::InvalidOption, format!("`{name}` can't be written: the connector '{}' is only a source", spec.name))
            .at(span)
    })?;
    let table = TableSpec {
        name,
        schema: schema.clone(),
        physical: schema.clone(),
        metadata: Vec::new(),
        primary_key: key.to_vec(),
        partitioned_by: Vec::new(),
        options,
    };
    let sink = make(&table).map_err(|e| super::source::in_table(e, name, span))?;
    if let Err(mut unknown) = options.finish(&table_options::options_of(options)) {
        return Err(super::source::in_table(unknown.remove(0), name, span));
    }
    Ok(Target {
        name: name.to_owned(),
        schema,
        primary_key: key.to_vec(),
        lengths: Vec::new(),
        sink,
        connector: spec.name.to_owned(),
    })
}

fn print_sink(schema: &SchemaRef, span: Span) -> Result<SinkRef> {
    let options = Options::default();
    let table = TableSpec {
        name: "result",
        schema: schema.clone(),
        physical: schema.clone(),
        metadata: Vec::new(),
        primary_key: Vec::new(),
        partitioned_by: Vec::new(),
        options: &options,
    };
    let print = connector("print")
        .and_then(|spec| spec.sink)
        .ok_or_else(|| Diagnostic::new(Code::Internal, "there is no connector 'print'").at(span))?;
    print(&table)
}
