//! The one rule for zones and digits of times, put into plans once their types are known.
//!
//! A TIMESTAMP is what a clock shows, a TIMESTAMP_LTZ an instant. Whatever looks at the parts of an instant (`HOUR`, `EXTRACT`,
//! `DATE_FORMAT`, `FLOOR … TO`, casts to STRING, DATE, TIME and TIMESTAMP, and back) does so on the clock of the session's zone,
//! `table.local-time-zone`: the argument becomes `x AT TIME ZONE 'zone'`. In UTC both are the same number, and nothing is put in.
//!
//! Times carry the digits of a second that they were declared with (`sql::types::time_digits`): casts to fewer digits cut, and
//! `CAST(time AS STRING)` writes as many. Expressions over times keep digits as in Flink; what is known of no digits is written as short
//! as it can be.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::metadata::FieldMetadata;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, ExprSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{Alias, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, LogicalPlan, Operator, TryCast};
use datafusion::optimizer::AnalyzerRule;

use super::compile::literal;
use super::diagnose::external;
use crate::error::{Code, Diagnostic};
use crate::functions::{AT_TIME_ZONE, builtin, cuts_times, list_text, pattern_says_zone, read_instant, time_cut, time_text};
use crate::sql::types::{PRECISION_METADATA, TIME_DIGITS_MAX, UTC, time_digits, timestamp, timestamp_ltz};
use crate::time::Zone;

/// Functions that look at the parts of a time and give something else.
const LOOK_AT_PARTS: &[&str] = &[
    "year",
    "quarter",
    "month",
    "week",
    "dayofyear",
    "dayofmonth",
    "dayofweek",
    "hour",
    "minute",
    "second",
    "date_format",
    "to_char",
    "date_part",
    "timestampdiff",
];
/// Functions that round a time by its parts and give one of the same kind.
const ROUND_BY_PARTS: &[&str] = &["date_trunc", "date_bin", "floor_time", "ceil_time"];
/// Functions that read or write a time and take the zone as their last argument, behind a pattern.
const TAKE_ZONE: &[&str] = &["from_unixtime", "unix_timestamp", "to_timestamp_ltz"];
/// Functions whose value is one of their arguments.
const CHOOSE: &[&str] = &["coalesce", "nvl", "ifnull", "nvl2", "greatest", "least", "nullif"];
/// Functions whose value is epoch time, which has milliseconds.
const PRESENT: &[&str] = &["now", "proctime", "localtimestamp", "current_timestamp", "current_row_timestamp"];

/// The rule, for a session in `zone`.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeRules {
    pub zone: Zone,
}

impl AnalyzerRule for TimeRules {
    fn name(&self) -> &str {
        "time_rules"
    }

    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| self.node(plan)).map(|done| done.data)
    }
}

impl TimeRules {
    fn node(self, plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        let mut schema = merge_schema(&plan.inputs());
        if let LogicalPlan::TableScan(scan) = &plan {
            schema.merge(&DFSchema::try_from_qualified_schema(scan.table_name.clone(), &scan.source.schema())?);
        }
        let names = NamePreserver::new(&plan);
        let is_projection = matches!(plan, LogicalPlan::Projection(_));
        let done = plan.map_expressions(|expr| {
            let name = names.save(&expr);
            let mut done = expr.transform_up(|expr| self.expr(expr, &schema))?;
            if is_projection {
                done = done.transform_data(|expr| declare_digits(expr, &schema))?;
            }
            Ok(done.update_data(|expr| name.restore(expr)))
        })?;
        // Digits of the columns below may have become known, too.
        done.map_data(LogicalPlan::recompute_schema)
    }

    fn expr(self, expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
        match expr {
            Expr::Cast(Cast { expr: inner, field }) => self.cast(*inner, field, false, schema),
            Expr::TryCast(TryCast { expr: inner, field }) => self.cast(*inner, field, true, schema),
            Expr::ScalarFunction(call) => self.call(call, schema),
            other => Ok(Transformed::no(other)),
        }
    }

    fn cast(self, inner: Expr, field: FieldRef, is_try: bool, schema: &DFSchema) -> Result<Transformed<Expr>> {
        let from = inner.to_field(schema)?.1;
        let (source, target) = (from.data_type(), field.data_type());
        let cast = |inner: Expr, field: FieldRef| match is_try {
            true => Expr::TryCast(TryCast { expr: Box::new(inner), field }),
            false => Expr::Cast(Cast { expr: Box::new(inner), field }),
        };
        if matches!(source, DataType::Timestamp(..) | DataType::Time64(_)) && is_text(target) {
            let digits = digits(&inner, schema);
            return Ok(Transformed::yes(time_text(self.on_clock(inner, source)?, digits, target.clone())));
        }
        if let (text, DataType::Timestamp(_, Some(_)), false) = (source, target, self.zone.is_utc())
            && is_text(text)
        {
            return Ok(Transformed::yes(cut_to(read_instant(inner, self.zone, is_try), None, &field)));
        }
        let is_clock = |kind: &DataType| matches!(kind, DataType::Timestamp(_, None) | DataType::Date32 | DataType::Date64);
        let have = digits(&inner, schema);
        let is_moved = !self.zone.is_utc() || zone_of(source).is_some_and(|zone| zone != UTC);
        let leaves_instant = matches!(source, DataType::Timestamp(_, Some(_)))
            && (is_clock(target) || matches!(target, DataType::Time64(_) | DataType::Time32(_)));
        if is_moved && leaves_instant {
            let on_clock = self.on_clock(inner, source)?;
            let same = matches!(target, DataType::Timestamp(..));
            let moved = if same { on_clock } else { cast(on_clock, plain(&field)) };
            return Ok(Transformed::yes(cut_to(moved, have, &field)));
        }
        if is_moved && is_clock(source) && matches!(target, DataType::Timestamp(_, Some(_))) {
            let reading = if matches!(source, DataType::Timestamp(..)) {
                inner
            } else {
                Expr::Cast(Cast::new(Box::new(inner), timestamp()))
            };
            let moved = self.at_zone(reading, &self.zone.to_string())?;
            return Ok(Transformed::yes(cut_to(moved, have, &field)));
        }
        // Digits that the target has not are cut; behind the cut nothing is left to be told.
        let is_cut = cuts_times(&field) && !(time_digits(&field).is_some() && have <= time_digits(&field) && have.is_some());
        if is_cut && source != &DataType::Null {
            return Ok(Transformed::yes(time_cut(cast(inner, plain(&field)), &field)));
        }
        Ok(Transformed::no(cast(inner, field)))
    }

    fn call(self, call: ScalarFunction, schema: &DFSchema) -> Result<Transformed<Expr>> {
        let name = call.func.name().to_ascii_lowercase();
        let name = name.as_str();
        if name == "to_local_time" && call.args.len() == 1 {
            let kind = call.args[0].get_type(schema)?;
            // It knows zones of types; the session's it does not.
            if zone_of(&kind) == Some(UTC) && !self.zone.is_utc() {
                let [time] = <[Expr; 1]>::try_from(call.args)
                    .map_err(|_| external(Diagnostic::new(Code::Internal, "to_local_time lost its argument")))?;
                return Ok(Transformed::yes(self.on_clock(time, &kind)?));
            }
            return Ok(Transformed::no(Expr::ScalarFunction(call)));
        }
        if name == "array_to_string"
            && let Some(list) = call.args.first()
            && let DataType::List(element) = list.get_type(schema)?
            && matches!(element.data_type(), DataType::Timestamp(..))
        {
            let mut args = call.args;
            args[0] = list_text(args[0].clone(), self.zone);
            return Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(call.func, args))));
        }
        let rounds = ROUND_BY_PARTS.contains(&name);
        if rounds || LOOK_AT_PARTS.contains(&name) {
            return self.look(call, rounds, schema);
        }
        if self.zone.is_utc() {
            return Ok(Transformed::no(Expr::ScalarFunction(call)));
        }
        let zone = || Expr::Literal(ScalarValue::Utf8View(Some(self.zone.to_string())), None);
        match (name, call.args.as_slice()) {
            ("localtimestamp", []) => Ok(Transformed::yes(self.present()?)),
            ("current_date" | "today", []) => {
                Ok(Transformed::yes(Expr::Cast(Cast::new(Box::new(self.present()?), DataType::Date32))))
            }
            ("current_time" | "localtime", []) => {
                let kind = DataType::Time64(arrow::datatypes::TimeUnit::Microsecond);
                Ok(Transformed::yes(Expr::Cast(Cast::new(Box::new(self.present()?), kind))))
            }
            (_, [value] | [value, _]) if TAKE_ZONE.contains(&name) => {
                let is_read = name == "from_unixtime" || is_text(&value.get_type(schema)?);
                if !is_read {
                    return Ok(Transformed::no(Expr::ScalarFunction(call)));
                }
                if name == "from_unixtime" {
                    refuse_zone_pattern(name, call.args.get(1))?;
                }
                let pattern = |args: &[Expr]| args.get(1).cloned();
                let default = if name == "from_unixtime" { "yyyy-MM-dd HH:mm:ss" } else { "" };
                let pattern =
                    pattern(&call.args).unwrap_or_else(|| Expr::Literal(ScalarValue::Utf8View(Some(default.to_owned())), None));
                let args = vec![value.clone(), pattern, zone()];
                Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(call.func, args))))
            }
            _ => Ok(Transformed::no(Expr::ScalarFunction(call))),
        }
    }

    /// A function that looks at the parts of a time: instants become what the clock shows.
    fn look(self, call: ScalarFunction, rounds: bool, schema: &DFSchema) -> Result<Transformed<Expr>> {
        // Seconds since 1970 are the same on every clock.
        let unit = call.args.first().and_then(literal).and_then(|unit| unit.try_as_str().flatten());
        if call.func.name() == "date_part" && unit.is_some_and(|unit| unit.eq_ignore_ascii_case("epoch")) {
            return Ok(Transformed::no(Expr::ScalarFunction(call)));
        }
        let mut found = None;
        let mut args = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            let kind = arg.get_type(schema)?;
            let is_moved = match zone_of(&kind) {
                Some(zone) => !self.zone.is_utc() || zone != UTC,
                None => false,
            };
            if is_moved {
                args.push(self.on_clock(arg.clone(), &kind)?);
                found = Some(kind);
            } else {
                args.push(arg.clone());
            }
        }
        let Some(kind) = found else { return Ok(Transformed::no(Expr::ScalarFunction(call))) };
        if matches!(call.func.name(), "date_format" | "to_char") {
            refuse_zone_pattern(call.func.name(), call.args.get(1))?;
        }
        let looked = Expr::ScalarFunction(ScalarFunction::new_udf(call.func, args));
        if !rounds {
            return Ok(Transformed::yes(looked));
        }
        let zone = zone_of(&kind).filter(|zone| *zone != UTC).map_or_else(|| self.zone.to_string(), str::to_owned);
        Ok(Transformed::yes(self.at_zone(looked, &zone)?))
    }

    /// What the clock shows now.
    fn present(self) -> Result<Expr> {
        let now = builtin("now")?.call(Vec::new());
        self.at_zone(now, &self.zone.to_string())
    }

    /// What the clock shows at an instant, as TIMESTAMP. Of a zone of its own, if the type has another than UTC; of the session's otherwise.
    fn on_clock(self, time: Expr, kind: &DataType) -> Result<Expr> {
        match zone_of(kind) {
            None => Ok(time),
            Some(UTC) if self.zone.is_utc() => Ok(time),
            // DataFusion brings the arguments of some functions to another unit.
            Some(UTC) if *kind != timestamp_ltz() => {
                let micros = Expr::Cast(Cast::new(Box::new(time), timestamp_ltz()));
                self.at_zone(micros, &self.zone.to_string())
            }
            Some(UTC) => self.at_zone(time, &self.zone.to_string()),
            Some(own) => {
                let instant = Expr::Cast(Cast::new(Box::new(time), timestamp_ltz()));
                self.at_zone(instant, own)
            }
        }
    }

    fn at_zone(self, time: Expr, zone: &str) -> Result<Expr> {
        let zone = Expr::Literal(ScalarValue::Utf8View(Some(zone.to_owned())), None);
        Ok(builtin(AT_TIME_ZONE)?.call(vec![time, zone]))
    }

    /// `value`, a column of `from`, as a column of `to`: a cast under the rule, with the digits that `to` declares.
    pub(super) fn convert(self, value: Expr, to: &FieldRef, schema: &DFSchema) -> Result<Expr> {
        let from = value.to_field(schema)?.1;
        if from.data_type() == to.data_type() && !cuts_times(to) {
            return Ok(value);
        }
        let field = Arc::new(Field::new("", to.data_type().clone(), true).with_metadata(to.metadata().clone()));
        if from.data_type() == to.data_type() {
            let have = digits(&value, schema);
            let fits = time_digits(to).is_some_and(|digits| have.is_some_and(|have| have <= digits));
            // A ROW whose type is the same has the same digits inside.
            let is_nested = time_digits(to).is_none();
            return Ok(if fits || is_nested { value } else { time_cut(value, &field) });
        }
        let cast = Expr::Cast(Cast { expr: Box::new(value), field });
        cast.transform_up(|expr| self.expr(expr, schema)).map(|done| done.data)
    }
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn zone_of(kind: &DataType) -> Option<&str> {
    match kind {
        DataType::Timestamp(_, Some(zone)) => Some(zone),
        _ => None,
    }
}

/// The field of a cast that says the type alone.
fn plain(field: &FieldRef) -> FieldRef {
    Arc::new(Field::new("", field.data_type().clone(), true))
}

fn cut_to(value: Expr, have: Option<u8>, field: &FieldRef) -> Expr {
    match time_digits(field) {
        Some(digits) if digits < TIME_DIGITS_MAX && have.is_none_or(|have| have > digits) => time_cut(value, field),
        _ => value,
    }
}

fn refuse_zone_pattern(function: &str, pattern: Option<&Expr>) -> Result<()> {
    let Some(ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)) | ScalarValue::LargeUtf8(Some(text))) =
        pattern.and_then(literal)
    else {
        return Ok(());
    };
    if !pattern_says_zone(text) {
        return Ok(());
    }
    let message = format!("{function}: the pattern '{text}' writes a time zone, which can only be UTC");
    Err(external(
        Diagnostic::new(Code::Unsupported, message)
            .hint("leave the zone out of the pattern, or SET 'table.local-time-zone' = 'UTC'"),
    ))
}

/// How many digits of a second the times of an expression have; `None` when nothing tells.
pub(super) fn digits(expr: &Expr, schema: &dyn ExprSchema) -> Option<u8> {
    let field = expr.to_field(schema).ok()?.1;
    if !matches!(field.data_type(), DataType::Timestamp(..) | DataType::Time64(_)) {
        return None;
    }
    if let Some(digits) = time_digits(&field) {
        return Some(digits);
    }
    let most = |exprs: &mut dyn Iterator<Item = &Expr>| -> Option<u8> {
        let mut found = None;
        for expr in exprs {
            if !literal(expr).is_some_and(ScalarValue::is_null) {
                found = found.max(Some(digits(expr, schema)?));
            }
        }
        found
    };
    match expr {
        Expr::Alias(alias) => digits(&alias.expr, schema),
        Expr::Cast(cast) if matches!(cast.expr.get_type(schema), Ok(DataType::Date32)) => Some(0),
        Expr::Cast(cast) if matches!(cast.expr.get_type(schema), Ok(DataType::Timestamp(..) | DataType::Time64(_))) => {
            digits(&cast.expr, schema)
        }
        Expr::Case(case) => most(&mut case.when_then_expr.iter().map(|(_, then)| then.as_ref()).chain(case.else_expr.as_deref())),
        Expr::BinaryExpr(binary) if matches!(binary.op, Operator::Plus | Operator::Minus) => {
            let (time, moved) = match binary.left.get_type(schema) {
                Ok(DataType::Timestamp(..) | DataType::Time64(_)) => (&binary.left, &binary.right),
                _ => (&binary.right, &binary.left),
            };
            Some(digits(time, schema)?.max(interval_digits(moved)?))
        }
        Expr::ScalarFunction(call) => {
            let name = call.func.name().to_ascii_lowercase();
            match name.as_str() {
                AT_TIME_ZONE | "to_local_time" => digits(call.args.first()?, schema),
                "date_trunc" | "floor_time" | "ceil_time" => {
                    let time = call.args.iter().find(|arg| matches!(arg.get_type(schema), Ok(DataType::Timestamp(..))))?;
                    digits(time, schema)
                }
                "nullif" => digits(call.args.first()?, schema),
                "to_timestamp_ltz" if !is_text(&call.args.first()?.get_type(schema).ok()?) => {
                    match call.args.get(1).map(literal) {
                        None => Some(3),
                        Some(Some(ScalarValue::Int64(Some(6)))) => Some(6),
                        Some(Some(_)) => Some(3),
                        Some(None) => None,
                    }
                }
                "array_element" | "element" => match call.args.first()?.to_field(schema).ok()?.1.data_type() {
                    DataType::List(inner) => time_digits(inner),
                    _ => None,
                },
                name if CHOOSE.contains(&name) => most(&mut call.args.iter()),
                name if PRESENT.contains(&name) => Some(3),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The digits of a second of an interval that is written out.
fn interval_digits(expr: &Expr) -> Option<u8> {
    let nanos = match literal(expr)? {
        ScalarValue::IntervalMonthDayNano(Some(span)) => span.nanoseconds,
        ScalarValue::IntervalDayTime(Some(span)) => i64::from(span.milliseconds) * 1_000_000,
        ScalarValue::IntervalYearMonth(Some(_)) => 0,
        _ => return None,
    };
    (0..=TIME_DIGITS_MAX).find(|digits| nanos % 10i64.pow(9 - u32::from(*digits)) == 0)
}

/// A projected time whose digits only its expression tells has them told by its name, for what is above.
fn declare_digits(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    if matches!(expr, Expr::Column(_)) {
        return Ok(Transformed::no(expr));
    }
    let field = expr.to_field(schema)?.1;
    let known = if time_digits(&field).is_some() { None } else { digits(&expr, schema) };
    let Some(known) = known else { return Ok(Transformed::no(expr)) };
    let metadata = [(PRECISION_METADATA.to_owned(), known.to_string())].into_iter().collect::<std::collections::HashMap<_, _>>();
    let (relation, name) = expr.qualified_name();
    let alias = match expr {
        Expr::Alias(alias) => alias,
        other => Alias::new(other, relation, name),
    };
    let mut told = alias.metadata.clone().unwrap_or_default();
    told.extend(FieldMetadata::from(metadata));
    Ok(Transformed::yes(Expr::Alias(alias.with_metadata(Some(told)))))
}
