//! Expressions as a user writes them: for EXPLAIN and for names in messages. DataFusion's own form shows `Int64(2)`,
//! `IntervalMonthDayNano(…)` and the names that only the planner knows.

use arrow::array::Array as _;
use arrow::datatypes::{DataType, DecimalType as _, TimeUnit};
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::logical_expr::expr::{AggregateFunction, AggregateFunctionParams, NullTreatment, Sort};
use datafusion::logical_expr::{BinaryExpr, Case, Expr, ExprSchemable, Like, Operator};

use crate::functions::{AT_TIME_ZONE, TIME_CUT, TIME_TEXT};
use crate::sql::interval;
use crate::sql::types::{data_type_name, sql_name};

/// What the columns of a schema are called by the user: one text a column. A column of a computed value that has no name of its own
/// is called by its expression.
#[derive(Clone, Copy)]
pub(super) struct Names<'a> {
    pub schema: &'a DFSchema,
    pub shown: &'a [String],
}

impl Names<'_> {
    fn column(&self, column: &Column) -> (String, u8) {
        let shown = self.schema.maybe_index_of_column(column).and_then(|at| self.shown.get(at));
        match shown {
            // A computed value may stand inside another expression: it keeps together.
            Some(text) if is_compound(text) => (text.clone(), LOWEST),
            Some(text) => (text.clone(), ATOM),
            None => (column.name.clone(), ATOM),
        }
    }
}

/// Whether `text` has an operator outside of parentheses and quotes.
fn is_compound(text: &str) -> bool {
    let (mut depth, mut quote) = (0usize, None);
    for ch in text.chars() {
        match (quote, ch) {
            (Some(open), _) if ch == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"' | '`') => quote = Some(ch),
            (None, '(' | '[') => depth += 1,
            (None, ')' | ']') => depth = depth.saturating_sub(1),
            (None, ' ') if depth == 0 => return true,
            _ => {}
        }
    }
    false
}

/// The names of a schema's columns, where they are the user's.
pub(super) fn own_names(schema: &DFSchema) -> Vec<String> {
    schema.fields().iter().map(|field| field.name().clone()).collect()
}

const LOWEST: u8 = 0;
const ATOM: u8 = 20;
const NOT: u8 = 3;
const COMPARISON: u8 = 4;
const UNARY: u8 = 12;

fn precedence(op: Operator) -> u8 {
    use Operator as O;
    match op {
        O::Or => 1,
        O::And => 2,
        O::Eq
        | O::NotEq
        | O::Lt
        | O::LtEq
        | O::Gt
        | O::GtEq
        | O::IsDistinctFrom
        | O::IsNotDistinctFrom
        | O::LikeMatch
        | O::ILikeMatch
        | O::NotLikeMatch
        | O::NotILikeMatch
        | O::RegexMatch
        | O::RegexIMatch
        | O::RegexNotMatch
        | O::RegexNotIMatch => COMPARISON,
        O::Plus | O::Minus => 8,
        O::Multiply | O::Divide | O::Modulo => 9,
        _ => 6,
    }
}

/// An expression over the columns of `names`.
pub(super) fn spell(expr: &Expr, names: Names<'_>) -> String {
    text(expr, names).0
}

/// Several, with commas.
pub(super) fn spell_all<'e>(exprs: impl IntoIterator<Item = &'e Expr>, names: Names<'_>) -> String {
    exprs.into_iter().map(|expr| spell(expr, names)).collect::<Vec<_>>().join(", ")
}

fn within(expr: &Expr, names: Names<'_>, least: u8) -> String {
    let (text, precedence) = text(expr, names);
    if precedence < least { format!("({text})") } else { text }
}

fn text(expr: &Expr, names: Names<'_>) -> (String, u8) {
    let is = |inner: &Expr, what: &str| (format!("{} IS {what}", within(inner, names, COMPARISON + 1)), COMPARISON);
    let call = |name: &str, args: String| (format!("{name}({args})"), ATOM);
    match expr {
        Expr::Column(column) => names.column(column),
        Expr::Literal(value, _) => literal(value),
        Expr::Alias(alias) => text(&alias.expr, names),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let own = precedence(*op);
            // Comparisons don't chain; others group to the left.
            let left_least = if own == COMPARISON { own + 1 } else { own };
            (format!("{} {op} {}", within(left, names, left_least), within(right, names, own + 1)), own)
        }
        Expr::Like(like) => pattern(like, if like.case_insensitive { "ILIKE" } else { "LIKE" }, names),
        Expr::SimilarTo(like) => pattern(like, "SIMILAR TO", names),
        Expr::Not(inner) => (format!("NOT {}", within(inner, names, NOT)), NOT),
        Expr::IsNull(inner) => is(inner, "NULL"),
        Expr::IsNotNull(inner) => is(inner, "NOT NULL"),
        Expr::IsTrue(inner) => is(inner, "TRUE"),
        Expr::IsFalse(inner) => is(inner, "FALSE"),
        Expr::IsUnknown(inner) => is(inner, "UNKNOWN"),
        Expr::IsNotTrue(inner) => is(inner, "NOT TRUE"),
        Expr::IsNotFalse(inner) => is(inner, "NOT FALSE"),
        Expr::IsNotUnknown(inner) => is(inner, "NOT UNKNOWN"),
        Expr::Negative(inner) => (format!("-{}", within(inner, names, UNARY)), UNARY),
        Expr::Between(between) => {
            let not = if between.negated { "NOT " } else { "" };
            let part = |e: &Expr| within(e, names, COMPARISON + 1);
            (format!("{} {not}BETWEEN {} AND {}", part(&between.expr), part(&between.low), part(&between.high)), COMPARISON)
        }
        Expr::InList(list) => {
            let not = if list.negated { "NOT " } else { "" };
            (format!("{} {not}IN ({})", within(&list.expr, names, COMPARISON + 1), spell_all(&list.list, names)), COMPARISON)
        }
        Expr::Case(case) => (case_text(case, names), ATOM),
        Expr::Cast(cast) => converted("CAST", &cast.expr, cast.field.as_ref(), names),
        Expr::TryCast(cast) => converted("TRY_CAST", &cast.expr, cast.field.as_ref(), names),
        Expr::ScalarFunction(function) => match (function.name(), function.args.as_slice()) {
            ("get_field", [of, path @ ..]) => {
                let step = |part: &Expr| match part {
                    Expr::Literal(ScalarValue::Utf8(Some(field)) | ScalarValue::Utf8View(Some(field)), _) => format!(".{field}"),
                    other => format!("[{}]", spell(other, names)),
                };
                (format!("{}{}", within(of, names, ATOM), path.iter().map(step).collect::<String>()), ATOM)
            }
            ("array_element", [Expr::ScalarFunction(found), _]) if found.name() == "map_extract" && found.args.len() == 2 => {
                (format!("{}[{}]", within(&found.args[0], names, ATOM), spell(&found.args[1], names)), ATOM)
            }
            ("array_element", [of, index]) => (format!("{}[{}]", within(of, names, ATOM), spell(index, names)), ATOM),
            ("make_array", elements) => (format!("ARRAY[{}]", spell_all(elements, names)), ATOM),
            (TIME_TEXT, [inner]) => (format!("CAST({} AS STRING)", spell(inner, names)), ATOM),
            (TIME_CUT, [inner]) => {
                let wanted = expr.to_field(names.schema).map(|(_, field)| sql_name(&field)).unwrap_or_default();
                let inner = if let Expr::Cast(cast) = inner { &cast.expr } else { inner };
                (format!("CAST({} AS {wanted})", spell(inner, names)), ATOM)
            }
            (AT_TIME_ZONE, [time, zone]) => {
                let least = COMPARISON + 4;
                (format!("{} AT TIME ZONE {}", within(time, names, least), within(zone, names, least)), COMPARISON + 3)
            }
            ("floor_time" | "ceil_time", [Expr::Literal(unit, _), time]) => {
                let word = if function.name() == "floor_time" { "FLOOR" } else { "CEIL" };
                let unit = unit.try_as_str().flatten().unwrap_or_default().to_ascii_uppercase();
                (format!("{word}({} TO {unit})", spell(time, names)), ATOM)
            }
            // The check of a NOT NULL column of the sink: nobody wrote it.
            ("not_null", [inner]) => text(inner, names),
            ("current_date" | "current_timestamp" | "localtimestamp", []) => (function.name().to_ascii_uppercase(), ATOM),
            (name, args) => call(name, spell_all(args, names)),
        },
        Expr::AggregateFunction(AggregateFunction { func, params }) => (aggregate(func.name(), params, names), ATOM),
        Expr::Unnest(unnest) => call("UNNEST", spell(&unnest.expr, names)),
        other => (other.to_string(), LOWEST),
    }
}

fn pattern(like: &Like, word: &str, names: Names<'_>) -> (String, u8) {
    let not = if like.negated { "NOT " } else { "" };
    let part = |e: &Expr| within(e, names, COMPARISON + 1);
    let escape = like.escape_char.map(|ch| format!(" ESCAPE '{ch}'")).unwrap_or_default();
    (format!("{} {not}{word} {}{escape}", part(&like.expr), part(&like.pattern)), COMPARISON)
}

fn case_text(case: &Case, names: Names<'_>) -> String {
    let mut out = String::from("CASE");
    if let Some(operand) = &case.expr {
        out += &format!(" {}", spell(operand, names));
    }
    for (when, then) in &case.when_then_expr {
        out += &format!(" WHEN {} THEN {}", spell(when, names), spell(then, names));
    }
    if let Some(otherwise) = &case.else_expr {
        out += &format!(" ELSE {}", spell(otherwise, names));
    }
    out + " END"
}

/// A conversion; one between types that SQL has one name for is none.
fn converted(word: &str, inner: &Expr, field: &arrow::datatypes::Field, names: Names<'_>) -> (String, u8) {
    let wanted = sql_name(field);
    let keeps_value = inner.get_type(names.schema).is_ok_and(|from| {
        data_type_name(&from) == wanted || is_wider(&from, field.data_type())
            // A number that is written out is what it is, whatever it is computed with.
            || (matches!(inner, Expr::Literal(..)) && from.is_numeric() && field.data_type().is_numeric())
    });
    if keeps_value {
        return text(inner, names);
    }
    (format!("{word}({} AS {wanted})", spell(inner, names)), ATOM)
}

/// Whether the planner may bring one number to the other's type unasked, and each value stays what it is.
fn is_wider(from: &DataType, to: &DataType) -> bool {
    let digits = |t: &DataType| match t {
        DataType::Int8 | DataType::UInt8 => Some(3),
        DataType::Int16 | DataType::UInt16 => Some(5),
        DataType::Int32 | DataType::UInt32 => Some(10),
        DataType::Int64 => Some(19),
        DataType::UInt64 => Some(20),
        _ => None,
    };
    match (digits(from), to) {
        (Some(have), DataType::Decimal128(precision, scale)) => i16::from(*precision) - i16::from(*scale) >= have,
        (Some(have), wider) => digits(wider).is_some_and(|room| room > have),
        (None, _) => matches!((from, to), (DataType::Float32, DataType::Float64)),
    }
}

fn aggregate(name: &str, params: &AggregateFunctionParams, names: Names<'_>) -> String {
    let AggregateFunctionParams { args, distinct, filter, order_by, null_treatment } = params;
    let is_row_count = name.eq_ignore_ascii_case("count")
        && !distinct
        && matches!(args.as_slice(), [Expr::Literal(value, _)] if !value.is_null());
    let mut out = format!("{name}(");
    if *distinct {
        out += "DISTINCT ";
    }
    out += &if is_row_count { "*".to_owned() } else { spell_all(args, names) };
    if !order_by.is_empty() {
        out += " ORDER BY ";
        out += &order_by.iter().map(|sort| sorted(sort, names)).collect::<Vec<_>>().join(", ");
    }
    out.push(')');
    if matches!(null_treatment, Some(NullTreatment::IgnoreNulls)) {
        out += " IGNORE NULLS";
    }
    if let Some(filter) = filter {
        out += &format!(" FILTER (WHERE {})", spell(filter, names));
    }
    out
}

fn sorted(sort: &Sort, names: Names<'_>) -> String {
    let mut out = spell(&sort.expr, names);
    if !sort.asc {
        out += " DESC";
    }
    // PostgreSQL's default: NULL is larger than all.
    if sort.nulls_first == sort.asc {
        out += if sort.nulls_first { " NULLS FIRST" } else { " NULLS LAST" };
    }
    out
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

fn literal(value: &ScalarValue) -> (String, u8) {
    if value.is_null() {
        return ("NULL".to_owned(), ATOM);
    }
    let text = match value {
        ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)) | ScalarValue::LargeUtf8(Some(text)) => quoted(text),
        ScalarValue::Boolean(Some(value)) => if *value { "TRUE" } else { "FALSE" }.to_owned(),
        ScalarValue::IntervalMonthDayNano(Some(span)) => interval::literal(span.months, span.days, span.nanoseconds / 1000),
        ScalarValue::IntervalDayTime(Some(span)) => interval::literal(0, span.days, i64::from(span.milliseconds) * 1000),
        ScalarValue::IntervalYearMonth(Some(months)) => interval::literal(*months, 0, 0),
        ScalarValue::Binary(Some(bytes)) | ScalarValue::LargeBinary(Some(bytes)) | ScalarValue::BinaryView(Some(bytes)) => {
            format!("X'{}'", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        }
        ScalarValue::Decimal128(Some(unscaled), precision, scale) => {
            let digits = arrow::datatypes::Decimal128Type::format_decimal(*unscaled, *precision, *scale);
            // Comparing with a DECIMAL(10, 2) makes 10.00 of a 10.
            if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.').to_owned() } else { digits }
        }
        ScalarValue::List(list) => match list.values().len() {
            0 => "ARRAY[]".to_owned(),
            count => {
                let element =
                    |at| ScalarValue::try_from_array(list.values(), at).map_or_else(|_| "?".to_owned(), |v| literal(&v).0);
                format!("ARRAY[{}]", (0..count).map(element).collect::<Vec<_>>().join(", "))
            }
        },
        time if matches!(time.data_type(), DataType::Timestamp(..) | DataType::Date32 | DataType::Time64(_)) => {
            let word = match time.data_type() {
                DataType::Date32 => "DATE",
                DataType::Time64(TimeUnit::Microsecond | TimeUnit::Nanosecond) => "TIME",
                DataType::Timestamp(_, Some(_)) => "TIMESTAMP_LTZ",
                _ => "TIMESTAMP",
            };
            let shown = time.to_array().ok().and_then(|array| {
                let format = arrow::util::display::FormatOptions::new()
                    .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
                    .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.f"));
                arrow::util::display::ArrayFormatter::try_new(&array, &format).ok().map(|f| f.value(0).to_string())
            });
            format!("{word} {}", quoted(&shown.unwrap_or_else(|| time.to_string())))
        }
        other => other.to_string(),
    };
    // A negative number binds like a minus before it.
    let precedence = if text.starts_with('-') { UNARY } else { ATOM };
    (text, precedence)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::plan::{ExplainFormat, PlanOptions, plan};

    /// The projection of `SELECT expr` as EXPLAIN shows it.
    fn shown(expr: &str) -> String {
        let sql = format!(
            "CREATE TABLE t (a BIGINT, b INT, s STRING, ts TIMESTAMP(3), r ROW<x BIGINT, y ROW<z STRING>>, l ARRAY<INT>)
             WITH ('connector' = 'datagen');
             CREATE TABLE o (v STRING) WITH ('connector' = 'print');
             INSERT INTO o SELECT CAST({expr} AS STRING) AS v FROM t;"
        );
        let plan = plan(&sql, &PlanOptions::default()).unwrap_or_else(|e| panic!("{expr}: {e}"));
        let text = plan.explain(ExplainFormat::Text);
        let line = text.lines().find_map(|l| l.trim().strip_prefix("· project ")).unwrap_or_else(|| panic!("{text}")).to_owned();
        let inner = line.strip_suffix(" AS v").unwrap_or(&line);
        inner.strip_prefix("CAST(").and_then(|l| l.strip_suffix(" AS STRING)")).unwrap_or(inner).to_owned()
    }

    #[test]
    fn expressions_come_back_as_they_were_written() {
        for sql in [
            "a + b * 2",
            "(a + b) * 2",
            "a - (b - 1)",
            "0.908 * a",
            "-a",
            "ts - INTERVAL '10' SECOND",
            "ts + INTERVAL '2' HOUR",
            "ts + INTERVAL '3' MONTH",
            "s LIKE 'it''s%'",
            "a IN (1, 2, 3, 4) OR s != 'x' AND b IS NULL",
            "CASE WHEN a > 1 THEN 'big' ELSE s END",
            "upper(s) || 'x'",
            "r.x",
            "r.y.z",
            "l[1]",
            "date_format(ts, 'yyyy-MM-dd')",
            "ts > TIMESTAMP '2024-01-02 03:04:05'",
        ] {
            // Simplification may turn an expression round; these it leaves alone.
            assert_eq!(shown(sql), sql);
        }
    }

    #[test]
    fn a_name_for_a_computed_value_keeps_together() {
        assert!(is_compound("a + b") && is_compound("CASE x END"));
        assert!(!is_compound("f(a + b)") && !is_compound("'a b'") && !is_compound("r.x"));
    }
}
