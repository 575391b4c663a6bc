//! A window table function in a logical plan: the one node that all spellings of a window become.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{Column, DFSchema, DFSchemaRef, DataFusionError, ExprSchema, Result};
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore};
use sqlparser::ast::TableFactor;

use super::diagnose::external;
use crate::error::{Code, Diagnostic, Span};
use crate::operators::window::{Interval, WindowKind, WindowSpec, window_fields};
use crate::sql::types::{TIME_DIGITS_MAX, with_time_digits};
use crate::sql::window::{WindowCall, WindowKind as CallKind, as_window_call};
use crate::time::Zone;

/// `TUMBLE(TABLE t, DESCRIPTOR(ts), …)`: the input's columns, then `window_start`, `window_end`, `window_time`.
#[derive(Clone, Debug)]
pub(super) struct WindowTvf {
    pub input: LogicalPlan,
    /// The time column of `input`.
    pub time: Expr,
    pub spec: WindowSpec,
    /// Where the call stands.
    pub span: Option<Span>,
    schema: DFSchemaRef,
}

impl WindowTvf {
    fn new(input: LogicalPlan, time: Expr, spec: WindowSpec, span: Option<Span>) -> Result<Self> {
        let Expr::Column(column) = &time else {
            return Err(DataFusionError::Internal("the time of a window is no column".into()));
        };
        let kind = input.schema().field_from_column(column)?.data_type().clone();
        let mut fields: Vec<_> = input.schema().iter().map(|(q, f)| (q.cloned(), f.clone())).collect();
        // As in Flink; finer bounds only where the window's own lengths are.
        let digits = if spec.is_whole_milliseconds() { 3 } else { TIME_DIGITS_MAX };
        for field in window_fields(&kind) {
            fields.push((None, Arc::new(with_time_digits(field, digits))));
        }
        let schema = Arc::new(DFSchema::new_with_metadata(fields, Default::default())?);
        Ok(Self { input, time, spec, span, schema })
    }
}

impl PartialEq for WindowTvf {
    fn eq(&self, other: &Self) -> bool {
        self.input == other.input && self.time == other.time && self.spec == other.spec
    }
}

impl Eq for WindowTvf {}

impl PartialOrd for WindowTvf {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl Hash for WindowTvf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.input.hash(state);
        self.time.hash(state);
        self.spec.hash(state);
    }
}

impl UserDefinedLogicalNodeCore for WindowTvf {
    fn name(&self) -> &str {
        "Window"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![self.time.clone()]
    }

    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        ["window_start", "window_end", "window_time"].map(str::to_owned).into()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window: {} {}", self.spec, self.time)
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let (Some(time), Some(input)) = (exprs.into_iter().next(), inputs.into_iter().next()) else {
            return Err(DataFusionError::Internal("a window has one time and one input".into()));
        };
        Self::new(input, time, self.spec, self.span)
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let Expr::Column(time) = &self.time else { return None };
        let width = self.input.schema().fields().len();
        let mut needed: Vec<usize> = output_columns.iter().copied().filter(|c| *c < width).collect();
        needed.push(self.input.schema().maybe_index_of_column(time)?);
        needed.sort_unstable();
        needed.dedup();
        Some(vec![needed])
    }
}

/// Plans the table functions TUMBLE, HOP and CUMULATE.
#[derive(Debug)]
pub(super) struct WindowTvfPlanner {
    /// On whose clock windows over a TIMESTAMP_LTZ begin.
    pub zone: Zone,
}

impl RelationPlanner for WindowTvfPlanner {
    fn plan_relation(&self, relation: TableFactor, context: &mut dyn RelationPlannerContext) -> Result<RelationPlanning> {
        let call = match as_window_call(&relation) {
            None => return Ok(RelationPlanning::Original(Box::new(relation))),
            Some(call) => call.map_err(external)?,
        };
        let input = context.plan(call.input.clone())?;
        let time = time_column(&input, &call).map_err(external)?;
        let kind = input.schema().field_from_column(&time)?.data_type().clone();
        // A TIMESTAMP is on a clock already.
        let zone = if matches!(kind, DataType::Timestamp(_, Some(_))) { self.zone } else { Zone::UTC };
        let spec = window_spec(&call, zone).map_err(external)?;
        let node = WindowTvf::new(input, Expr::Column(time), spec, call.span)?;
        let plan = LogicalPlan::Extension(Extension { node: Arc::new(node) });
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, call.alias.clone()))))
    }
}

fn time_column(input: &LogicalPlan, call: &WindowCall) -> crate::error::Result<Column> {
    let schema = input.schema();
    let Some(ident) = &call.time_column else {
        let mut times =
            schema.iter().filter(|(_, f)| matches!(f.data_type(), arrow::datatypes::DataType::Timestamp(..))).map(Column::from);
        return match (times.next(), times.next()) {
            (Some(only), None) => Ok(only),
            _ => Err(Diagnostic::new(Code::NoTimeAttribute, "the window names no time column, and its input has not just one")
                .at(call.span)
                .hint("name it: TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' MINUTE)")),
        };
    };
    let (wanted, exact) = (ident.value.as_str(), ident.quote_style.is_some());
    let matches = |same: &dyn Fn(&str) -> bool| -> Vec<Column> {
        schema.iter().filter(|(_, f)| same(f.name())).map(Column::from).collect()
    };
    let mut found = matches(&|name| name == wanted);
    if found.is_empty() && !exact {
        found = matches(&|name| name.eq_ignore_ascii_case(wanted));
    }
    let column = match found.as_slice() {
        [one] => one.clone(),
        [] => {
            return Err(
                Diagnostic::new(Code::UnknownColumn, format!("the window's input has no column `{wanted}`")).at(call.span)
            );
        }
        _ => {
            let message = format!("the window's input has several columns `{wanted}`");
            return Err(Diagnostic::new(Code::AmbiguousName, message).at(call.span));
        }
    };
    let kind = schema.field_from_column(&column).map_err(|e| Diagnostic::new(Code::Internal, e.to_string()))?.data_type().clone();
    if !matches!(kind, arrow::datatypes::DataType::Timestamp(_, _)) {
        return Err(Diagnostic::new(
            Code::NoTimeAttribute,
            format!("the column `{wanted}` is {}, not a TIMESTAMP", crate::sql::types::data_type_name(&kind)),
        )
        .at(call.span)
        .hint("windows are over a column with a watermark, or over PROCTIME()"));
    }
    Ok(column)
}

/// The window of a call, on the clock of `zone`.
fn window_spec(call: &WindowCall, zone: Zone) -> crate::error::Result<WindowSpec> {
    let lengths = match call.kind {
        CallKind::Tumble { size } => vec![size],
        CallKind::Hop { slide: fine, size } | CallKind::Cumulate { step: fine, size } => vec![fine, size],
        CallKind::Session { .. } => Vec::new(),
    };
    // Whole days are days of the zone, which need not have 24 hours.
    const DAY_US: i64 = 86_400_000_000;
    let days = |micros: i64| i32::try_from(micros / DAY_US).ok().filter(|_| micros % DAY_US == 0);
    let in_days = matches!(zone, Zone::Named(_))
        && !lengths.is_empty()
        && lengths.iter().all(|length| length.months == 0 && length.micros > 0 && days(length.micros).is_some());
    let interval = |i: crate::sql::interval::Interval| match days(i.micros).filter(|_| in_days) {
        Some(days) => Interval { months: i.months, days, micros: 0 },
        None => Interval { months: i.months, days: 0, micros: i.micros },
    };
    let kind = match call.kind {
        CallKind::Tumble { size } => WindowKind::Tumble { size: interval(size) },
        CallKind::Hop { slide, size } => WindowKind::Hop { slide: interval(slide), size: interval(size) },
        CallKind::Cumulate { step, size } => WindowKind::Cumulate { step: interval(step), size: interval(size) },
        CallKind::Session { .. } => {
            return Err(Diagnostic::new(Code::UnsupportedSession, "session windows can't be run yet")
                .at(call.span)
                .hint("TUMBLE, HOP and CUMULATE can"));
        }
    };
    let mut offset = interval(call.offset);
    let clock = match zone {
        Zone::Named(zone) if in_days => zone,
        _ => {
            // From one boundary to the next but one; what the clock is ahead by, beyond that, makes no difference.
            let period_us = match call.kind {
                CallKind::Cumulate { size, .. } => size.micros,
                CallKind::Hop { slide, .. } => slide.micros,
                CallKind::Tumble { size } => size.micros,
                CallKind::Session { .. } => 0,
            };
            let Some(ahead_us) = zone.steady_ahead_us(period_us.max(1)) else {
                let message = format!("windows of this length begin at changing times of the day in {zone}");
                return Err(Diagnostic::new(Code::InvalidWindow, message).at(call.span).hint(
                    "choose a length that divides an hour or is whole days; or window a TIMESTAMP column, as ts AS at AT TIME ZONE '…'",
                ));
            };
            offset.micros = offset.micros.saturating_sub(ahead_us);
            chrono_tz::UTC
        }
    };
    WindowSpec::new(kind, offset, clock).map_err(|e| e.at(call.span))
}
