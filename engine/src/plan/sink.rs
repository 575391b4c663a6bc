//! From a statement's query to a sink node: the EMIT clause, the sink's columns and kinds of change, late and rejected rows.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::Expr;

use super::build::Builder;
use super::compile::{column_at, unqualified};
use super::diagnose::diagnose;
use super::emission::{Emission, EmissionMode};
use super::explain::NodeInfo;
use super::source::{PlannedTable, connector_of, in_table};
use super::stream::{ChangeKind, StateBound, Stream, TimeRole};
use crate::catalog::ColumnSource;
use crate::connect::{ChangelogMode, SinkRef, TableSpec};
use crate::error::{Code, Diagnostic, Result, Span};
use crate::ids::NodeId;
use crate::operators::aggregate::TableIds;
use crate::operators::emit::{EmitAfterWatermark, EmitEvery};
use crate::operators::{Operator, PORT_LATE, PORT_MAIN};
use crate::runtime::graph::{Input, OperatorFactory, Role, Route, SinkSpec};
use crate::sql::types::{DeclaredLength, data_type_name};

/// What a sink takes.
pub(super) struct Target {
    /// Its name, for messages and the node.
    pub name: String,
    /// Its columns.
    pub schema: SchemaRef,
    /// Its declared key, by index; empty without one.
    pub primary_key: Vec<usize>,
    /// The lengths that its columns declare, one for each; empty when none does.
    pub lengths: Vec<Option<DeclaredLength>>,
    /// The connector's sink.
    pub sink: SinkRef,
    /// What is told of it.
    pub connector: String,
}

impl Target {
    /// The sink of a table of the catalog.
    pub(super) fn table(planned: &PlannedTable) -> Result<Self> {
        let def = &planned.def;
        let kept: Vec<usize> = def
            .columns
            .iter()
            .enumerate()
            .filter(|(_, c)| match &c.source {
                ColumnSource::Physical => true,
                ColumnSource::Metadata { is_virtual, .. } => !is_virtual,
                ColumnSource::Computed(_) => false,
            })
            .map(|(at, _)| at)
            .collect();
        let schema: SchemaRef =
            Arc::new(Schema::new(kept.iter().map(|at| planned.schema.fields()[*at].clone()).collect::<Vec<_>>()));
        let place = |column: &usize| kept.iter().position(|k| k == column);
        let primary_key: Vec<usize> = def.primary_key.iter().filter_map(place).collect();
        let spec = connector_of(def)?;
        let make = spec.sink.ok_or_else(|| {
            Diagnostic::new(
                Code::InvalidOption,
                format!("`{}` can't be written: the connector '{}' is only a source", def.name, spec.name),
            )
            .at(def.span)
        })?;
        let metadata = kept
            .iter()
            .enumerate()
            .filter_map(|(at, column)| match &def.columns[*column].source {
                ColumnSource::Metadata { key, .. } => Some((at, key.clone())),
                ColumnSource::Physical | ColumnSource::Computed(_) => None,
            })
            .collect();
        let table = TableSpec {
            name: &def.name,
            schema: schema.clone(),
            physical: schema.clone(),
            metadata,
            primary_key: primary_key.clone(),
            partitioned_by: def.partitioned_by.iter().filter_map(place).collect(),
            options: &def.options,
        };
        let sink = make(&table).map_err(|e| in_table(e, &def.name, def.span))?;
        let lengths = kept.iter().map(|at| def.columns[*at].length).collect();
        Ok(Self { name: def.name.clone(), schema, primary_key, lengths, sink, connector: spec.name.to_owned() })
    }
}

/// Applies the parts of EMIT that stand behind the whole query: EVERY and AFTER WATERMARK.
pub(super) fn emit(builder: &mut Builder<'_>, stream: Stream, emission: &Emission, windowed: bool) -> Result<Stream> {
    match emission.mode {
        EmissionMode::Every(interval_us) => {
            let placed = builder.materialize(stream)?;
            let schema: SchemaRef = Arc::new(placed.base.as_arrow().clone());
            let node = NodeId(builder.graph.nodes.len() as u32);
            let columns = schema.clone();
            let factory: OperatorFactory = Arc::new(move |core| {
                Ok(Box::new(EmitEvery::new(&columns, interval_us, TableIds::of(node, core).next())?) as Box<dyn Operator>)
            });
            let info = NodeInfo::new("EmitEvery")
                .kind(placed.kind)
                .detail(format!("every {} of epoch time", crate::sql::interval::literal(0, 0, interval_us)))
                .shown(&placed.shown)
                .state("net changes since the last emission", StateBound::Watermark("emptied at each emission".into()));
            behind(builder, "EmitEvery", factory, placed, &schema, info)
        }
        EmissionMode::AfterWatermark if !windowed => {
            let placed = builder.materialize(stream)?;
            let Some(time) =
                placed.roles.iter().position(|r| matches!(r, TimeRole::Event | TimeRole::WindowTime(_) | TimeRole::WindowEnd(_)))
            else {
                return Err(Diagnostic::new(
                    Code::EmitNotPossible,
                    "EMIT AFTER WATERMARK needs a column in the query's result that is still event time",
                )
                .at(builder.statement)
                .hint("select the column that WATERMARK FOR names, as it is; behind a GROUP BY only a window's bounds are event time"));
            };
            let schema: SchemaRef = Arc::new(placed.base.as_arrow().clone());
            let node = NodeId(builder.graph.nodes.len() as u32);
            let columns = schema.clone();
            let factory: OperatorFactory = Arc::new(move |core| {
                Ok(Box::new(EmitAfterWatermark::new(&columns, time, TableIds::of(node, core).next())?) as Box<dyn Operator>)
            });
            let info = NodeInfo::new("EmitAfterWatermark")
                .kind(placed.kind)
                .shown(&placed.shown)
                .time(placed.shown[time].clone())
                .state(
                    "rows that the watermark has not passed",
                    StateBound::Watermark("released as the watermark passes".into()),
                );
            behind(builder, "EmitAfterWatermark", factory, placed, &schema, info)
        }
        _ => Ok(stream),
    }
}

fn behind(
    builder: &mut Builder<'_>,
    kind: &str,
    factory: OperatorFactory,
    placed: Stream,
    schema: &SchemaRef,
    info: NodeInfo,
) -> Result<Stream> {
    let edge = Input { from: placed.node, port: placed.port, route: Route::Local };
    let node = builder.operator(kind, factory, vec![edge], schema.clone(), info);
    Ok(Stream { node, port: PORT_MAIN, ..placed })
}

/// The query's columns as the sink's: by position, cast where that loses nothing unsaid, NULL for columns that the INSERT leaves out.
pub(super) fn fit(builder: &mut Builder<'_>, stream: Stream, target: &Target, columns: &[usize], span: Span) -> Result<Stream> {
    let given = stream.schema.fields().len();
    let names: Vec<&str> = columns.iter().map(|c| target.schema.field(*c).name().as_str()).collect();
    if given != columns.len() {
        return Err(Diagnostic::new(
            Code::ColumnCount,
            format!("the query has {given} columns, `{}` takes {} ({})", target.name, columns.len(), names.join(", ")),
        )
        .at(span)
        .hint("select as many columns, in this order, or name the columns: INSERT INTO t (a, b)"));
    }
    let mut exprs = Vec::new();
    let mut is_identity = true;
    for (at, field) in target.schema.fields().iter().enumerate() {
        let Some(from) = columns.iter().position(|c| *c == at) else {
            if !field.is_nullable() {
                let message = format!("`{}`.`{}` is NOT NULL and gets no value", target.name, field.name());
                return Err(Diagnostic::new(Code::ColumnCount, message).at(span));
            }
            let null = ScalarValue::try_from(field.data_type()).map_err(|e| diagnose(&e, span))?;
            exprs.push(Expr::Literal(null, None));
            is_identity = false;
            continue;
        };
        let column = column_at(&stream.schema, from);
        let have = stream.schema.field(from);
        let mut expr = if have.data_type() == field.data_type() {
            let cut = builder.times.convert(column.clone(), field, &stream.schema).map_err(|e| diagnose(&e, span))?;
            is_identity &= from == at && cut == column;
            cut
        } else {
            if !fits(have.data_type(), field.data_type()) {
                return Err(Diagnostic::new(
                    Code::TypeMismatch,
                    format!(
                        "column {} of the query (`{}`, {}) does not fit `{}`.`{}`, {}",
                        from + 1,
                        have.name(),
                        data_type_name(have.data_type()),
                        target.name,
                        field.name(),
                        data_type_name(field.data_type())
                    ),
                )
                .at(span)
                .hint("write CAST(… AS …) if that is what you mean"));
            }
            is_identity = false;
            builder.times.convert(column, field, &stream.schema).map_err(|e| diagnose(&e, span))?
        };
        if let Some(length) = target.lengths.get(at).copied().flatten() {
            let name = format!("{}.{}", target.name, field.name());
            let fitted = super::declared_length::of_sink(expr.clone(), length, builder.lengths, &name);
            is_identity &= fitted == expr;
            expr = fitted;
        }
        if !field.is_nullable() && have.is_nullable() {
            expr = super::not_null::guard(expr, &format!("{}.{}", target.name, field.name()));
            is_identity = false;
        }
        exprs.push(expr);
    }
    if is_identity {
        return Ok(stream);
    }
    let exprs: Vec<Expr> = exprs.into_iter().zip(target.schema.fields()).map(|(e, f)| e.alias(f.name())).collect();
    let fields = target.schema.fields().iter().map(|f| (None, f.clone())).collect();
    let schema = DFSchema::new_with_metadata(fields, HashMap::new()).map_err(|e| diagnose(&e, span))?;
    stream.project(&exprs, &Arc::new(schema)).map_err(|e| builder.refuse(&e))
}

/// Whether a column may be written into another type without being asked: numbers into numbers (checked at run time), text into text,
/// times into times.
fn fits(from: &DataType, to: &DataType) -> bool {
    use DataType as T;
    let text = |t: &DataType| matches!(t, T::Utf8 | T::Utf8View | T::LargeUtf8);
    let bytes = |t: &DataType| matches!(t, T::Binary | T::BinaryView | T::LargeBinary | T::FixedSizeBinary(_));
    let time = |t: &DataType| matches!(t, T::Timestamp(..) | T::Date32);
    match (from, to) {
        (T::Null, _) => true,
        (a, b) if a.is_numeric() && b.is_numeric() => true,
        (a, b) if text(a) && text(b) => true,
        (a, b) if bytes(a) && bytes(b) => true,
        (a, b) if time(a) && time(b) => true,
        (T::Time64(_) | T::Time32(_), T::Time64(_) | T::Time32(_)) => true,
        (T::Struct(a), T::Struct(b)) => {
            a.len() == b.len()
                && a.iter().zip(b).all(|(x, y)| x.data_type() == y.data_type() || fits(x.data_type(), y.data_type()))
        }
        (T::List(a), T::List(b)) => a.data_type() == b.data_type() || fits(a.data_type(), b.data_type()),
        (T::Map(a, _), T::Map(b, _)) => a.data_type() == b.data_type() || fits(a.data_type(), b.data_type()),
        _ => false,
    }
}

/// Adds a sink node for `stream`, whose columns are the sink's.
pub(super) fn write(
    builder: &mut Builder<'_>,
    stream: Stream,
    target: &Target,
    emission: &Emission,
    span: Span,
) -> Result<NodeId> {
    let (mode, key) = changelog(&stream, target, emission, span)?;
    let placed = builder.materialize(stream)?;
    let schema: SchemaRef = target.schema.clone();
    let route = if mode == ChangelogMode::Append || key.is_empty() { Route::Local } else { Route::Hash(key.clone()) };
    let info = NodeInfo::new("Sink")
        .kind(placed.kind)
        .keys(key.iter().map(|c| schema.field(*c).name().clone()).collect())
        .detail(format!("connector {}", target.connector))
        .detail(format!(
            "takes {}",
            match mode {
                ChangelogMode::Append => "inserts",
                ChangelogMode::Upsert => "inserts, updates after, deletes by key",
                ChangelogMode::Retract => "inserts, updates before and after, deletes",
            }
        ))
        .detail(match (emission.mode, placed.kind) {
            (EmissionMode::Default, ChangeKind::Append) => "each row once (default)".to_owned(),
            (EmissionMode::Default, ChangeKind::Retract) => "EMIT CHANGES (default)".to_owned(),
            (EmissionMode::Every(us), _) => format!("EMIT EVERY {}", crate::sql::interval::literal(0, 0, us)),
            (mode, _) => mode.sql().to_owned(),
        });
    let edge = Input { from: placed.node, port: placed.port, route };
    let role = Role::Sink(SinkSpec { sink: target.sink.clone(), mode, key });
    let base = placed.base.as_arrow().clone();
    let node = builder.add(&target.name, role, vec![edge], sink_schema(&schema, &base), info);
    let taken = builder.graph.nodes.iter().filter(|n| n.name == target.name).count();
    if taken == 0 {
        let at = node.0 as usize;
        builder.graph.nodes[at].name.clone_from(&target.name);
        builder.infos[at].name.clone_from(&target.name);
    }
    Ok(node)
}

/// The names of the sink with the nullability of what really comes.
fn sink_schema(sink: &SchemaRef, stream: &Schema) -> SchemaRef {
    let fields: Vec<Field> = sink
        .fields()
        .iter()
        .zip(stream.fields())
        .map(|(s, r)| Field::new(s.name(), r.data_type().clone(), r.is_nullable()).with_metadata(s.metadata().clone()))
        .collect();
    Arc::new(Schema::new(fields))
}

/// Which changes the sink gets, and by which key.
fn changelog(stream: &Stream, target: &Target, emission: &Emission, span: Span) -> Result<(ChangelogMode, Vec<usize>)> {
    let key = if target.primary_key.is_empty() {
        stream.unique_keys.first().cloned().unwrap_or_default()
    } else {
        target.primary_key.clone()
    };
    if stream.kind == ChangeKind::Append {
        // A declared key of an append-only stream is still a key: the last row of an epoch is not chosen, so all rows go out.
        return Ok((ChangelogMode::Append, key));
    }
    let refuse = |what: String, hint: &str| Err(Diagnostic::new(Code::SinkKind, what).at(span).hint(hint));
    let can = |mode| target.sink.accepts(mode);
    match emission.mode {
        EmissionMode::OnUpdate | EmissionMode::Every(_) => {
            if key.is_empty() {
                return refuse(
                    format!(
                        "{} gives rows by key, and neither `{}` nor the query's result has one",
                        emission.mode.sql(),
                        target.name
                    ),
                    "select the grouping columns, or declare PRIMARY KEY (…) NOT ENFORCED on the sink",
                );
            }
            if can(ChangelogMode::Upsert) {
                return Ok((ChangelogMode::Upsert, key));
            }
            refuse(
                format!("`{}` ({}) can't take updates by key", target.name, target.connector),
                "use a sink with a format for changes, such as 'format' = 'debezium-json', or EMIT ON WINDOW CLOSE",
            )
        }
        _ if can(ChangelogMode::Retract) => Ok((ChangelogMode::Retract, key)),
        EmissionMode::Changes => refuse(
            format!("`{}` ({}) can't take EMIT CHANGES, which takes rows back", target.name, target.connector),
            "use a format for changes, such as 'format' = 'debezium-json', or EMIT ON WINDOW CLOSE",
        ),
        _ if can(ChangelogMode::Upsert) && !key.is_empty() => Ok((ChangelogMode::Upsert, key)),
        _ => refuse(
            format!("the query's result changes, and `{}` ({}) only takes new rows", target.name, target.connector),
            "use a format for changes, such as 'format' = 'debezium-json'; or group by a window, whose rows are final (EMIT ON WINDOW CLOSE)",
        ),
    }
}

/// Late rows of the statement's window aggregation go to a sink of their own.
pub(super) fn late(builder: &mut Builder<'_>, from: NodeId, late_schema: &SchemaRef, target: &Target, span: Span) -> Result<()> {
    let base = unqualified(late_schema).map_err(|e| diagnose(&e, span))?;
    let roles = vec![TimeRole::None; base.fields().len()];
    let mut stream = Stream::behind(from, base, roles, ChangeKind::Append, true);
    stream.port = PORT_LATE;
    side(builder, stream, target, span, "LATE DATA TO")
}

/// Rejected rows of nodes under `dead_letter` go to a sink.
pub(super) fn rejected(builder: &mut Builder<'_>, nodes: &[NodeId], target: &Target, span: Span) -> Result<()> {
    for node in nodes {
        let base = unqualified(&crate::operators::rejected_schema()).map_err(|e| diagnose(&e, span))?;
        let roles = vec![TimeRole::None; base.fields().len()];
        let mut stream = Stream::behind(*node, base, roles, ChangeKind::Append, true);
        stream.port = Builder::REJECTED;
        side(builder, stream, target, span, "dead_letter")?;
    }
    Ok(())
}

/// Columns go to the sink's columns of the same name; the sink may have fewer, none that the stream has not.
fn side(builder: &mut Builder<'_>, stream: Stream, target: &Target, span: Span, what: &str) -> Result<()> {
    let mut exprs = Vec::new();
    for field in target.schema.fields() {
        let found = stream
            .schema
            .fields()
            .iter()
            .position(|f| f.name() == field.name())
            .or_else(|| stream.schema.fields().iter().position(|f| f.name().eq_ignore_ascii_case(field.name())));
        let Some(at) = found else {
            let names = stream.schema.fields().iter().map(|f| f.name().as_str());
            let names: Vec<&str> = names.filter(|name| !name.starts_with("__")).collect();
            return Err(Diagnostic::new(
                Code::ColumnCount,
                format!("{what}: the column `{}` of `{}` is none of the rows' columns", field.name(), target.name),
            )
            .at(span)
            .hint(format!("they have: {}", names.join(", "))));
        };
        let have = stream.schema.field(at).data_type();
        let column = column_at(&stream.schema, at);
        exprs.push(if have == field.data_type() {
            column
        } else if fits(have, field.data_type()) || matches!(field.data_type(), DataType::Utf8View | DataType::Utf8) {
            builder.times.convert(column, field, &stream.schema).map_err(|e| builder.refuse(&e))?
        } else {
            return Err(Diagnostic::new(
                Code::TypeMismatch,
                format!(
                    "{what}: `{}` is {}, `{}`.`{}` is {}",
                    stream.schema.field(at).name(),
                    data_type_name(have),
                    target.name,
                    field.name(),
                    data_type_name(field.data_type())
                ),
            )
            .at(span));
        });
    }
    let exprs: Vec<Expr> = exprs.into_iter().zip(target.schema.fields()).map(|(e, f)| e.alias(f.name())).collect();
    let fields = target.schema.fields().iter().map(|f| (None, f.clone())).collect();
    let schema = DFSchema::new_with_metadata(fields, HashMap::new()).map_err(|e| diagnose(&e, span))?;
    let stream = stream.project(&exprs, &Arc::new(schema)).map_err(|e| builder.refuse(&e))?;
    write(builder, stream, target, &Emission::default(), span)?;
    Ok(())
}
