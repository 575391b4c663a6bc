//! From `CREATE TABLE` to a source node: the columns that the job reads, computed columns, the watermark, `on_error`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DFSchemaRef, DataFusionError, ScalarValue};
use datafusion::logical_expr::{
    BinaryExpr, Cast, EmptyRelation, Expr, ExprSchemable, LogicalPlan, Operator, Projection, Volatility,
};
use datafusion::sql::planner::{PlannerContext, SqlToRel};

use super::build::Builder;
use super::compile::{LogicalStep, compile, physical, references, unqualified};
use super::declared_length::of_source;
use super::diagnose::diagnose;
use super::explain::NodeInfo;
use super::names::with_spelling;
use super::optimizer::analyze;
use super::session::Session;
use super::settings::{LengthPolicy, OnError};
use super::spelling::{Names, own_names, spell};
use super::stream::{ChangeKind, Stream, TimeRole};
use super::time_rules::{TimeRules, digits};
use super::usage::{ColumnUsage, TableUsage};
use crate::catalog::{ColumnSource, TableDef};
use crate::connect::{Options, TableSpec, connector, connectors, table_options};
use crate::error::{Code, Diagnostic, Result};
use crate::functions::{cuts_times, least_digits, time_cut};
use crate::runtime::graph::{Role, SourceSpec};
use crate::sql::types::data_type_name;
use crate::sql::types::with_time_digits;
use crate::time::WatermarkSpec;

/// A table of the catalog with its expressions planned.
#[derive(Debug)]
pub(super) struct PlannedTable {
    pub def: TableDef,
    /// All columns, computed ones with the type of their expression.
    pub schema: SchemaRef,
    /// For each column that is computed: its expression over physical and metadata columns.
    pub computed: Vec<Option<Expr>>,
    /// The time column and the watermark over all columns.
    pub watermark: Option<(usize, Expr)>,
    pub on_error: Option<OnError>,
    /// `scan.watermark.*`; of a table without a watermark nothing is read.
    pub alignment: Alignment,
}

/// What `scan.watermark.*` says.
#[derive(Debug, Default)]
pub(super) struct Alignment {
    /// How long a silent split counts, µs.
    pub idle_timeout_us: Option<i64>,
    /// The group of tables that wait for each other, and how far one may be ahead, µs.
    pub max_drift: Option<(String, i64)>,
}

impl Alignment {
    fn read(options: &Options) -> Result<Self> {
        let micros = |key| match options.duration(key)? {
            Some(duration) if duration.is_zero() => Err(options.invalid(key, "must be longer than 0")),
            duration => Ok(duration.map(|d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))),
        };
        let group = options.text(table_options::ALIGNMENT_GROUP).map(str::to_owned);
        let max_drift = match (group, micros(table_options::ALIGNMENT_DRIFT)?) {
            (group, Some(drift)) => Some((group.unwrap_or_else(|| String::from("default")), drift)),
            (Some(_), None) => {
                let message = format!("option '{}' is missing", table_options::ALIGNMENT_DRIFT);
                return Err(Diagnostic::new(Code::MissingOption, message)
                    .at(options.span(table_options::ALIGNMENT_GROUP))
                    .hint("it says how far a split may run ahead of the slowest one of the group, such as '5 min'"));
            }
            (None, None) => None,
        };
        Ok(Self { idle_timeout_us: micros(table_options::IDLE_TIMEOUT)?, max_drift })
    }
}

/// The tables of a job, what is read of them, and the sources built so far.
pub(super) struct Tables<'t> {
    pub planned: &'t HashMap<String, PlannedTable>,
    pub usages: BTreeMap<String, TableUsage>,
    pub built: HashMap<String, Stream>,
}

impl PlannedTable {
    /// Plans a table's expressions. The name of a column means a physical column or one computed before it.
    pub(super) fn new(session: &Session, def: TableDef) -> Result<Self> {
        let span = def.span;
        let mut fields: Vec<FieldRef> = Vec::new();
        let mut computed: Vec<Option<Expr>> = Vec::new();
        // Physical columns may stand behind computed ones that read them.
        let physical_fields: Vec<FieldRef> =
            def.columns.iter().filter(|c| !matches!(c.source, ColumnSource::Computed(_))).map(|c| c.field.clone()).collect();
        let mut known = physical_fields.clone();
        let mut expressions: HashMap<String, Expr> = HashMap::new();
        for column in &def.columns {
            match &column.source {
                ColumnSource::Computed(ast) => {
                    let schema = dfschema(&known).map_err(|e| diagnose(&e, span))?;
                    let what = format!("the computed column `{}`", column.field.name());
                    let expr = plan_expr(session, ast, &schema, &what).map_err(|e| diagnose(&e, column.span))?;
                    let expr = substitute(expr, &expressions).map_err(|e| diagnose(&e, column.span))?;
                    let physical_schema = dfschema(&physical_fields).map_err(|e| diagnose(&e, span))?;
                    let (_, field) = expr.to_field(physical_schema.as_ref()).map_err(|e| diagnose(&e, column.span))?;
                    let own = Field::new(column.field.name(), field.data_type().clone(), field.is_nullable());
                    let field = Arc::new(match digits(&expr, physical_schema.as_ref()) {
                        Some(digits) => with_time_digits(own, digits),
                        None => own,
                    });
                    known.push(field.clone());
                    expressions.insert(field.name().clone(), expr.clone());
                    fields.push(field);
                    computed.push(Some(expr));
                }
                ColumnSource::Physical | ColumnSource::Metadata { .. } => {
                    fields.push(column.field.clone());
                    computed.push(None);
                }
            }
        }
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let watermark = match &def.watermark {
            None => None,
            Some(mark) => {
                let all = unqualified(&schema).map_err(|e| diagnose(&e, span))?;
                let expr = plan_expr(session, &mark.expr, &all, "the watermark").map_err(|e| diagnose(&e, mark.span))?;
                let time = schema.field(mark.column);
                if !matches!(time.data_type(), DataType::Timestamp(TimeUnit::Microsecond, _)) {
                    let message = format!(
                        "the watermark's column `{}` is {}, not a TIMESTAMP",
                        time.name(),
                        data_type_name(time.data_type())
                    );
                    return Err(Diagnostic::new(Code::TypeMismatch, message)
                        .at(mark.span)
                        .hint("make a TIMESTAMP column of it: ts AS TO_TIMESTAMP_LTZ(millis, 3)"));
                }
                if let Some(reason) = not_of_the_row(&expr) {
                    let message = format!("the watermark of `{}` is made of {reason}, not of the row's time", time.name());
                    return Err(Diagnostic::new(Code::InvalidArgument, message).at(mark.span).hint(format!(
                        "write WATERMARK FOR {0} AS {0} - INTERVAL '5' SECOND; for the machine's clock use a column AS PROCTIME()",
                        time.name()
                    )));
                }
                let kind = expr.get_type(all.as_ref()).map_err(|e| diagnose(&e, mark.span))?;
                if !matches!(kind, DataType::Timestamp(_, _)) {
                    let message = format!("a watermark is a TIMESTAMP, not {}", data_type_name(&kind));
                    return Err(Diagnostic::new(Code::TypeMismatch, message).at(mark.span));
                }
                let same = Arc::new(Field::new("", time.data_type().clone(), true));
                let rules = TimeRules { zone: session.zone() };
                let expr = rules.convert(expr, &same, all.as_ref()).map_err(|e| diagnose(&e, mark.span))?;
                Some((mark.column, expr))
            }
        };
        let on_error = def
            .options
            .parsed(table_options::ON_ERROR, "fail, skip or dead_letter(sink)", OnError::parse)
            .map_err(|e| e.at(span))?;
        let alignment = match &watermark {
            Some(_) => Alignment::read(&def.options).map_err(|e| in_table(e, &def.name, span))?,
            None => Alignment::default(),
        };
        Ok(Self { def, schema, computed, watermark, on_error, alignment })
    }
}

/// Why a watermark expression says nothing about its row: it reads no column, or what changes from call to call.
fn not_of_the_row(expr: &Expr) -> Option<String> {
    let mut volatile = None;
    let mut reads_column = false;
    let _always_walks = expr.apply(|part| {
        match part {
            Expr::Column(_) => reads_column = true,
            Expr::ScalarFunction(call) if call.func.signature().volatility == Volatility::Volatile => {
                volatile = Some(format!("{}()", call.func.name()));
            }
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    });
    volatile.or_else(|| (!reads_column).then(|| "constants alone".to_owned()))
}

fn dfschema(fields: &[FieldRef]) -> Result<DFSchemaRef, DataFusionError> {
    unqualified(&Schema::new(fields.to_vec()))
}

/// Plans one expression over columns, with types coerced.
/// `what` names the place in errors.
pub(super) fn plan_expr(
    session: &Session,
    ast: &sqlparser::ast::Expr,
    schema: &DFSchemaRef,
    what: &str,
) -> Result<Expr, DataFusionError> {
    let mut ast = ast.clone();
    with_spelling(&mut ast, |ast| {
        let expr = SqlToRel::new(session).sql_to_expr(ast.clone(), schema, &mut PlannerContext::new())?;
        super::table_check::of_one_row(&expr, what)?;
        let input = LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema: schema.clone() });
        let plan = LogicalPlan::Projection(Projection::try_new(vec![expr.alias("__expr")], Arc::new(input))?);
        match analyze(plan, session.options(), session.zone())? {
            LogicalPlan::Projection(done) => {
                let expr = done.expr.into_iter().next().ok_or_else(|| DataFusionError::Internal("no expression".into()))?;
                super::constants::check_expr(&expr, schema, ast)?;
                Ok(expr.unalias())
            }
            other => Err(DataFusionError::Internal(format!("analysis gave {}", other.display()))),
        }
    })
}

fn substitute(expr: Expr, computed: &HashMap<String, Expr>) -> Result<Expr, DataFusionError> {
    expr.transform_up(|e| {
        Ok(match &e {
            Expr::Column(column) => match computed.get(&column.name) {
                Some(with) => Transformed::yes(with.clone()),
                None => Transformed::no(e),
            },
            _ => Transformed::no(e),
        })
    })
    .map(|t| t.data)
}

/// Adds the source node of a table that some query reads.
pub(super) fn build(builder: &mut Builder<'_>, name: &str) -> Result<Stream> {
    let planned = builder
        .tables
        .planned
        .get(name)
        .ok_or_else(|| Diagnostic::new(Code::Internal, format!("the table `{name}` is not planned")))?;
    let span = planned.def.span;
    let mut usage = builder.tables.usages.get(name).cloned().unwrap_or_default();
    // The columns that come out of the source node: those read, and the time column.
    let mut wanted: Vec<usize> = usage.columns.keys().copied().collect();
    if let Some((time, expr)) = &planned.watermark {
        wanted.push(*time);
        usage.add_column(*time, ColumnUsage::Whole);
        let all = unqualified(&planned.schema).map_err(|e| diagnose(&e, span))?;
        wanted.extend(references(std::iter::once(expr), &all).map_err(|e| diagnose(&e, span))?);
    }
    wanted.sort_unstable();
    wanted.dedup();
    // What the connector has to build for that.
    let mut read: BTreeMap<usize, ColumnUsage> = BTreeMap::new();
    let mut add = |column: usize, usage: ColumnUsage| match read.get_mut(&column) {
        Some(all) => all.add(usage),
        None => {
            read.insert(column, usage);
        }
    };
    for column in &wanted {
        match &planned.computed[*column] {
            Some(expr) => {
                for (column, usage) in fields_read(expr, &planned.schema).map_err(|e| diagnose(&e, span))? {
                    add(column, usage);
                }
            }
            None => add(*column, usage.columns.get(column).cloned().unwrap_or(ColumnUsage::Whole)),
        }
    }
    let spec = connector_of(&planned.def)?;
    let make = spec.source.ok_or_else(|| {
        Diagnostic::new(Code::InvalidOption, format!("`{name}` can't be read: the connector '{}' is only a sink", spec.name))
            .at(span)
    })?;
    let read: Vec<(usize, ColumnUsage)> = read.into_iter().collect();
    let source_schema: SchemaRef = Arc::new(Schema::new(
        read.iter().map(|(at, usage)| narrowed(&planned.schema.fields()[*at], usage)).collect::<Vec<FieldRef>>(),
    ));
    let metadata = read
        .iter()
        .enumerate()
        .filter_map(|(at, (column, _))| match &planned.def.columns[*column].source {
            ColumnSource::Metadata { key, .. } => Some((at, key.clone())),
            ColumnSource::Physical | ColumnSource::Computed(_) => None,
        })
        .collect();
    let place = |column: usize| read.iter().position(|(c, _)| *c == column);
    let primary_key: Option<Vec<usize>> = planned.def.primary_key.iter().map(|c| place(*c)).collect();
    let only = usage.only.as_ref().and_then(|readers| {
        let (first, _) = readers.first()?;
        let at = place(*first)?;
        if readers.iter().any(|(column, _)| column != first) || planned.computed[*first].is_some() {
            return None;
        }
        Some((at, readers.iter().flat_map(|(_, values)| values.clone()).collect::<Vec<_>>()))
    });
    let declared: Vec<usize> =
        (0..planned.def.columns.len()).filter(|at| matches!(planned.def.columns[*at].source, ColumnSource::Physical)).collect();
    let table = TableSpec {
        name,
        schema: source_schema.clone(),
        physical: Arc::new(Schema::new(declared.iter().map(|at| planned.schema.fields()[*at].clone()).collect::<Vec<_>>())),
        metadata,
        primary_key: primary_key.unwrap_or_default(),
        partitioned_by: planned.def.partitioned_by.iter().filter_map(|c| declared.iter().position(|p| p == c)).collect(),
        options: &planned.def.options,
    };
    let mut source = make(&table).map_err(|e| in_table(e, name, span))?;
    if let Some((at, values)) = only
        && let Some(restricted) = source.restrict(at, &values)
    {
        source = restricted;
    }
    let base = unqualified(&source.schema()).map_err(|e| diagnose(&e, span))?;
    // Values come with the digits of a second that their column declares; connectors that have no more say so.
    let finest = source.time_digits();
    let cut = |name: &str| {
        let column = Expr::Column(Column::new_unqualified(name));
        match base.field_with_unqualified_name(name) {
            Ok(field) if cuts_times(field) && finest.is_none_or(|finest| finest > least_digits(field)) => time_cut(column, field),
            _ => column,
        }
    };
    let is_cut = |name: &str| !matches!(cut(name), Expr::Column(_));
    let with_cuts = |expr: Expr| {
        expr.transform_up(|part| match &part {
            Expr::Column(column) if is_cut(&column.name) => {
                Ok(Transformed::new(cut(&column.name), true, TreeNodeRecursion::Jump))
            }
            _ => Ok(Transformed::no(part)),
        })
        .map(|done| done.data)
        .map_err(|e| diagnose(&e, span))
    };
    // Computed columns, then only what is wanted.
    let exprs: Vec<Expr> = wanted
        .iter()
        .map(|at| {
            let name = planned.schema.field(*at).name();
            Ok(match (&planned.computed[*at], planned.def.columns[*at].length) {
                (Some(expr), _) => with_cuts(expr.clone())?.alias(name),
                (None, Some(length)) if builder.lengths == LengthPolicy::Error => {
                    of_source(cut(name), length, builder.lengths, &format!("{}.{name}", planned.def.name)).alias(name)
                }
                (None, _) if is_cut(name) => cut(name).alias(name),
                (None, _) => cut(name),
            })
        })
        .collect::<Result<_>>()?;
    let has_lengths = builder.lengths == LengthPolicy::Error && wanted.iter().any(|at| planned.def.columns[*at].length.is_some());
    let has_cuts = wanted.iter().any(|at| planned.computed[*at].is_none() && is_cut(planned.schema.field(*at).name()));
    let is_identity = !has_lengths
        && !has_cuts
        && wanted.len() == source_schema.fields().len()
        && wanted.iter().zip(&read).all(|(w, (r, _))| w == r);
    let (chain, schema) = if is_identity {
        (None, source.schema())
    } else {
        let fields = exprs
            .iter()
            .map(|e| e.to_field(base.as_ref()).map(|(_, f)| (None, f)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| diagnose(&e, span))?;
        let named = DFSchema::new_with_metadata(fields, HashMap::new()).map_err(|e| diagnose(&e, span))?;
        let chain = compile(&base, &[LogicalStep::Project(exprs, Arc::new(named))]).map_err(|e| diagnose(&e, span))?;
        let schema = chain.output().clone();
        (Some(chain), schema)
    };
    let out = unqualified(&schema).map_err(|e| diagnose(&e, span))?;
    let mut roles = vec![TimeRole::None; wanted.len()];
    let mut info = NodeInfo::new("Source").detail(format!("connector {}", spec.name));
    for (at, column) in wanted.iter().enumerate() {
        if planned.computed[*column].as_ref().is_some_and(super::compile::is_proctime) {
            roles[at] = TimeRole::Processing;
        }
    }
    let watermark = match &planned.watermark {
        None => None,
        Some((time, expr)) => {
            let at = wanted.iter().position(|w| w == time).unwrap_or_default();
            roles[at] = TimeRole::Event;
            let all = unqualified(&planned.schema).map_err(|e| diagnose(&e, span))?;
            let own = own_names(&all);
            let spelled = spell(expr, Names { schema: &all, shown: &own });
            info = info.time(format!("{} (watermark {spelled})", planned.schema.field(*time).name()));
            Some(WatermarkSpec {
                column: at,
                expr: physical(&without_calendar(expr.clone()), out.as_ref()).map_err(|e| diagnose(&e, span))?,
                idle_timeout_us: planned.alignment.idle_timeout_us,
                max_future_us: builder.allowed_future_us,
                max_drift: planned.alignment.max_drift.clone(),
            })
        }
    };
    let has_watermark = watermark.is_some();
    let changes = if source.is_append_only() { ChangeKind::Append } else { ChangeKind::Retract };
    info = info
        .kind(changes)
        .detail(format!("columns {}", source_schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ")));
    if chain.is_some() {
        for (at, column) in wanted.iter().enumerate() {
            if let Some(expr) = &planned.computed[*column] {
                let own = own_names(&base);
                info = info.detail(format!("{} AS {}", out.field(at).name(), spell(expr, Names { schema: &base, shown: &own })));
            }
        }
    }
    if let Some(on_error) = &planned.on_error {
        info = info.detail(format!("on_error {on_error}"));
    }
    let policy = planned.on_error.as_ref().map(OnError::policy);
    let node = builder.add(name, Role::Source(SourceSpec { source, chain, watermark }), Vec::new(), schema, info);
    let place = node.0 as usize;
    name.clone_into(&mut builder.graph.nodes[place].name);
    name.clone_into(&mut builder.infos[place].name);
    if let Some(policy) = policy {
        builder.graph.nodes[place].policy = policy;
    }
    // As all columns of the table, so that scans find theirs by name.
    Ok(Stream::behind(node, out, roles, changes, has_watermark))
}

/// `ts - INTERVAL '4' SECOND` as arithmetic on microseconds. Arrow subtracts an interval by way of calendar dates, which took half of the
/// time of a pass-through query; a span without months is the same number of microseconds for an instant. Other expressions stay.
fn without_calendar(expr: Expr) -> Expr {
    let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Minus, right }) = &expr else { return expr };
    let (Expr::Column(_), Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(span)), _)) = (&**left, &**right) else {
        return expr;
    };
    let day_us = i64::from(span.days).checked_mul(86_400_000_000);
    let Some(delay_us) = day_us.and_then(|days| days.checked_add(span.nanoseconds / 1000)) else { return expr };
    if span.months != 0 || span.nanoseconds % 1000 != 0 {
        return expr;
    }
    let micros = Expr::Cast(Cast::new(left.clone(), DataType::Int64));
    let earlier = Expr::BinaryExpr(BinaryExpr {
        left: Box::new(micros),
        op: Operator::Minus,
        right: Box::new(Expr::Literal(ScalarValue::Int64(Some(delay_us)), None)),
    });
    Expr::Cast(Cast::new(Box::new(earlier), DataType::Timestamp(TimeUnit::Microsecond, None)))
}

/// The connector of a table.
pub(super) fn connector_of(def: &TableDef) -> Result<&'static crate::connect::ConnectorSpec> {
    let Some(name) = def.options.text("connector") else {
        let error =
            Diagnostic::new(Code::MissingOption, format!("the table `{}` has no option 'connector'", def.name)).at(def.span);
        return Err(match def.options.text("connector.type") {
            Some(old) => error.hint(format!(
                "'connector.type' is the form of Flink before 1.11: write 'connector' = '{old}', 'format' for 'format.type', 'path' for 'connector.path'"
            )),
            None => error.hint(format!("write WITH ('connector' = '…'); there are: {}", connector_names())),
        });
    };
    connector(name).ok_or_else(|| {
        Diagnostic::new(Code::UnknownConnector, format!("there is no connector '{name}'"))
            .at(def.options.span("connector").unwrap_or(def.span))
            .hint(format!("there are: {}", connector_names()))
    })
}

fn connector_names() -> String {
    connectors().iter().map(|c| c.name).collect::<Vec<_>>().join(", ")
}

/// An error of a connector, with the table's name and place.
pub(super) fn in_table(error: Diagnostic, name: &str, span: crate::error::Span) -> Diagnostic {
    let place = error.span.unwrap_or(span);
    let known = format!("table `{name}`: ");
    let message = if error.message.starts_with(&known) { error.message } else { known + &error.message };
    Diagnostic { message, ..error }.at(place)
}

/// Which columns, and which fields of them, an expression reads.
fn fields_read(expr: &Expr, schema: &SchemaRef) -> Result<Vec<(usize, ColumnUsage)>, DataFusionError> {
    let mut found = Vec::new();
    expr.apply(|e| {
        if let Some((column, field)) = super::usage::field_access(e) {
            if let Ok(at) = schema.index_of(&column.name) {
                found.push((at, ColumnUsage::Fields([field.to_owned()].into())));
            }
            return Ok(TreeNodeRecursion::Jump);
        }
        if let Expr::Column(column) = e
            && let Ok(at) = schema.index_of(&column.name)
        {
            found.push((at, ColumnUsage::Whole));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

/// A ROW column with only the fields that are read, in their order.
fn narrowed(field: &FieldRef, usage: &ColumnUsage) -> FieldRef {
    let (ColumnUsage::Fields(names), DataType::Struct(all)) = (usage, field.data_type()) else { return field.clone() };
    let kept: Fields = all.iter().filter(|f| names.contains(f.name())).cloned().collect();
    Arc::new(Field::new(field.name(), DataType::Struct(kept), field.is_nullable()).with_metadata(field.metadata().clone()))
}
