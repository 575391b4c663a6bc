//! Functions and casts that are another way to write an expression: `IF`, `MOD`, `LOCATE`, `TIMESTAMPADD`, `FLOOR(ts TO DAY)`,
//! `ts AT TIME ZONE zone`, `MAP['a', 1]`, `CAST(x AS VARCHAR(n))`, `UNIX_TIMESTAMP()`.

use sqlparser::ast::helpers::attached_token::AttachedToken;
use sqlparser::ast::{
    AccessExpr, BinaryOperator, CaseWhen, CastKind, CeilFloorKind, CharacterLength, DataType, DateTimeField, Expr, Function,
    FunctionArg, FunctionArgExpr, FunctionArgumentClause, FunctionArguments, Ident, Interval, JsonNullClause, ObjectNamePart,
    Value,
};
use sqlparser::tokenizer::Span as TokenSpan;

use super::group_window::call;
use super::tokens::span_of;
use crate::error::{Code, Diagnostic, Result};

/// Brings `expr` into the spelling that is planned; leaves all others alone.
pub(super) fn rewrite(expr: &mut Expr) -> Result<()> {
    match expr {
        Expr::Function(function) => {
            separate(function);
            if let Some(new) = json(function)? {
                *expr = new;
                return Ok(());
            }
            let Some((name, args)) = plain(function) else { return Ok(()) };
            if let Some(new) = function_as_expr(&name, args)? {
                *expr = new;
            }
        }
        Expr::Floor { expr: inner, field: CeilFloorKind::DateTimeField(field) } if *field != DateTimeField::NoDateTime => {
            *expr = rounded("floor_time", field, inner);
        }
        Expr::Ceil { expr: inner, field: CeilFloorKind::DateTimeField(field) } if *field != DateTimeField::NoDateTime => {
            *expr = rounded("ceil_time", field, inner);
        }
        Expr::AtTimeZone { timestamp, time_zone } => {
            let args = vec![timestamp.as_ref().clone(), time_zone.as_ref().clone()];
            *expr = call(crate::functions::AT_TIME_ZONE, TokenSpan::empty(), args);
        }
        // A time that is written out has the digits that are written.
        Expr::TypedString(literal) => {
            if let (DataType::Timestamp(precision @ None, _), Value::SingleQuotedString(text)) =
                (&mut literal.data_type, &literal.value.value)
            {
                let written = text.rsplit_once('.').map_or(0, |(_, rest)| rest.bytes().take_while(u8::is_ascii_digit).count());
                *precision = Some(written.min(6) as u64);
            }
        }
        // The planner takes the name of a field as a text, unless it may belong to the name before.
        Expr::CompoundFieldAccess { root, access_chain } => {
            let mut is_name = matches!(root.as_ref(), Expr::Identifier(_));
            for access in access_chain {
                match access {
                    AccessExpr::Dot(Expr::Identifier(_)) if is_name => {}
                    AccessExpr::Dot(Expr::Identifier(name)) => {
                        let (name, span) = (name.value.clone(), name.span);
                        *access = AccessExpr::Dot(text(&name, span));
                    }
                    _ => is_name = false,
                }
            }
        }
        // The standard cuts what is too long, and so says the length something.
        Expr::Cast { kind: CastKind::Cast | CastKind::DoubleColon | CastKind::TryCast, data_type, .. } => {
            let (DataType::Varchar(length)
            | DataType::CharacterVarying(length)
            | DataType::CharVarying(length)
            | DataType::Char(length)
            | DataType::Character(length)) = data_type
            else {
                return Ok(());
            };
            let Some(CharacterLength::IntegerLength { length: characters, .. }) = *length else { return Ok(()) };
            *length = None;
            // Longer than any text can be.
            if characters < i32::MAX as u64 {
                let number = Expr::Value(Value::Number(characters.to_string(), false).with_empty_span());
                let cast = std::mem::replace(expr, Expr::Value(Value::Null.with_empty_span()));
                *expr = call("left", TokenSpan::empty(), vec![cast, number]);
            }
        }
        _ => {}
    }
    Ok(())
}

/// An unquoted name and the arguments of a call without further clauses.
fn plain(function: &Function) -> Option<(Ident, &[FunctionArg])> {
    let [ObjectNamePart::Identifier(name)] = function.name.0.as_slice() else { return None };
    let FunctionArguments::List(list) = &function.args else { return None };
    let is_plain =
        name.quote_style.is_none() && list.clauses.is_empty() && list.duplicate_treatment.is_none() && function.over.is_none();
    is_plain.then(|| (name.clone(), list.args.as_slice()))
}

/// What a function that makes JSON gives goes into another as it is; a text becomes a JSON string.
fn embedded(expr: &Expr) -> Expr {
    let Expr::Function(function) = expr else { return expr.clone() };
    const MAKE_JSON: &[&str] =
        &["json_object", "json_object_absent", "json_array", "json_array_null", "json_query", "parse_json", "try_parse_json"];
    match function.name.0.as_slice() {
        [ObjectNamePart::Identifier(name)] if MAKE_JSON.iter().any(|known| name.value.eq_ignore_ascii_case(known)) => {
            let field = text(crate::functions::EMBEDDED_JSON, TokenSpan::empty());
            call("named_struct", name.span, vec![field, expr.clone()])
        }
        _ => expr.clone(),
    }
}

/// `JSON_VALUE(… RETURNING type)`, and JSON_OBJECT and JSON_ARRAY with their clauses, as plain calls.
fn json(function: &Function) -> Result<Option<Expr>> {
    let [ObjectNamePart::Identifier(name)] = function.name.0.as_slice() else { return Ok(None) };
    let FunctionArguments::List(list) = &function.args else { return Ok(None) };
    if name.quote_style.is_some() || list.duplicate_treatment.is_some() || function.over.is_some() {
        return Ok(None);
    }
    let lower = name.value.to_ascii_lowercase();
    if !["json_value", "json_object", "json_array"].contains(&lower.as_str()) {
        return Ok(None);
    }
    let (mut absent, mut returning) = (None, None);
    for clause in &list.clauses {
        match clause {
            FunctionArgumentClause::JsonNullClause(JsonNullClause::AbsentOnNull) if lower != "json_value" => absent = Some(true),
            FunctionArgumentClause::JsonNullClause(JsonNullClause::NullOnNull) if lower != "json_value" => absent = Some(false),
            FunctionArgumentClause::JsonReturningClause(clause) => returning = Some(clause.data_type.clone()),
            other => {
                return Err(Diagnostic::new(Code::Unsupported, format!("{}: `{other}` can't be run", name.value))
                    .at(span_of(name.span))
                    .hint("leave it out"));
            }
        }
    }
    let mut args = Vec::with_capacity(list.args.len());
    for (at, arg) in list.args.iter().enumerate() {
        let FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) = arg else { return Ok(None) };
        let is_value = lower == "json_array" || (lower == "json_object" && at % 2 == 1);
        args.push(if is_value { embedded(expr) } else { expr.clone() });
    }
    let target = match (lower.as_str(), absent) {
        ("json_object", Some(true)) => "json_object_absent",
        ("json_array", Some(false)) => "json_array_null",
        _ => lower.as_str(),
    };
    let made = call(target, name.span, args);
    // As the standard's NULL ON ERROR: what is no such value is NULL.
    Ok(Some(match returning {
        None => made,
        Some(data_type) => {
            let mut cast = Expr::Cast { kind: CastKind::TryCast, expr: Box::new(made), data_type, array: false, format: None };
            rewrite(&mut cast)?;
            cast
        }
    }))
}

/// `FLOOR(time TO unit)` as a call.
fn rounded(function: &str, unit: &DateTimeField, time: &Expr) -> Expr {
    let unit = text(&unit.to_string().to_ascii_lowercase(), TokenSpan::empty());
    call(function, TokenSpan::empty(), vec![unit, time.clone()])
}

fn text(value: &str, span: TokenSpan) -> Expr {
    Expr::Value(Value::SingleQuotedString(value.to_owned()).with_span(span))
}

/// LISTAGG's values are separated by commas when nothing else is said, as in Flink; string_agg has no default.
fn separate(function: &mut Function) {
    let is_listagg =
        matches!(function.name.0.as_slice(), [ObjectNamePart::Identifier(name)] if name.value.eq_ignore_ascii_case("listagg"));
    if let (true, FunctionArguments::List(list)) = (is_listagg, &mut function.args)
        && list.args.len() == 1
    {
        list.args.push(FunctionArg::Unnamed(FunctionArgExpr::Expr(text(",", TokenSpan::empty()))));
    }
}

fn function_as_expr(name: &Ident, args: &[FunctionArg]) -> Result<Option<Expr>> {
    let span = name.span;
    let args: Option<Vec<&Expr>> = args
        .iter()
        .map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
            _ => None,
        })
        .collect();
    let Some(args) = args else { return Ok(None) };
    Ok(match (name.value.to_ascii_uppercase().as_str(), args.as_slice()) {
        ("IF", [condition, then, otherwise]) => Some(Expr::Case {
            case_token: AttachedToken::empty(),
            end_token: AttachedToken::empty(),
            operand: None,
            conditions: vec![CaseWhen { condition: (*condition).clone(), result: (*then).clone() }],
            else_result: Some(Box::new((*otherwise).clone())),
        }),
        ("MOD", [a, b]) => {
            let nested = |expr: &Expr| Box::new(Expr::Nested(Box::new(expr.clone())));
            let modulo = Expr::BinaryOp { left: nested(a), op: BinaryOperator::Modulo, right: nested(b) };
            Some(Expr::Nested(Box::new(modulo)))
        }
        ("MAP_OF", members) => {
            if members.len() % 2 != 0 {
                return Err(Diagnostic::new(Code::InvalidArgument, "MAP[…] has a key without a value")
                    .at(span_of(span))
                    .hint("write MAP[key, value, key, value, …]"));
            }
            let list = |skip: usize| {
                call("make_array", span, members.iter().skip(skip).step_by(2).map(|member| (*member).clone()).collect())
            };
            Some(call("map", span, vec![list(0), list(1)]))
        }
        ("LOCATE", [part, whole]) => Some(call("strpos", span, vec![(*whole).clone(), (*part).clone()])),
        ("UNIX_TIMESTAMP", []) => Some(call("unix_timestamp", span, vec![call("now", span, Vec::new())])),
        ("TIMESTAMPDIFF", [Expr::Identifier(unit), from, to]) => {
            Some(call("timestampdiff", span, vec![text(&unit.value, unit.span), (*from).clone(), (*to).clone()]))
        }
        ("TIMESTAMPADD", [Expr::Identifier(unit), count, time]) => {
            let upper = unit.value.to_ascii_uppercase();
            let singular = upper.strip_suffix('S').unwrap_or(&upper);
            let one = match singular {
                "MICROSECOND" | "MILLISECOND" | "SECOND" | "MINUTE" | "HOUR" | "DAY" | "MONTH" | "YEAR" => {
                    format!("1 {}", singular.to_ascii_lowercase())
                }
                "WEEK" => "7 days".to_owned(),
                "QUARTER" => "3 months".to_owned(),
                _ => {
                    return Err(Diagnostic::new(Code::InvalidArgument, format!("TIMESTAMPADD: {} is no unit", unit.value))
                        .at(span_of(unit.span))
                        .hint("the units are SECOND, MINUTE, HOUR, DAY, WEEK, MONTH, QUARTER and YEAR"));
                }
            };
            Some(Expr::Nested(Box::new(timestamp_add(count, &one, time)?)))
        }
        _ => None,
    })
}

/// `time + INTERVAL '…'`: the count must be a literal, for an interval can't be multiplied.
fn timestamp_add(count: &Expr, one: &str, time: &Expr) -> Result<Expr> {
    let (sign, literal) = match count {
        Expr::UnaryOp { op: sqlparser::ast::UnaryOperator::Minus, expr } => (-1, expr.as_ref()),
        other => (1, other),
    };
    let number = match literal {
        Expr::Value(value) => match &value.value {
            Value::Number(number, _) => number.parse::<i64>().ok(),
            _ => None,
        },
        _ => None,
    };
    let Some(number) = number else {
        return Err(Diagnostic::new(Code::Unsupported, format!("TIMESTAMPADD: `{count}` is no whole number written out"))
            .at(super::tokens::span_of_node(count))
            .hint("add an interval instead: time + INTERVAL '1' DAY"));
    };
    let (unit_count, unit) = one.split_once(' ').unwrap_or(("1", one));
    let total = unit_count.parse::<i64>().unwrap_or(1).checked_mul(number * sign);
    let Some(total) = total else {
        return Err(Diagnostic::new(Code::InvalidArgument, format!("TIMESTAMPADD: {number} is too many")));
    };
    let interval = Expr::Interval(Interval {
        value: Box::new(text(&format!("{total} {unit}"), TokenSpan::empty())),
        leading_field: None,
        leading_precision: None,
        last_field: None,
        fractional_seconds_precision: None,
    });
    Ok(Expr::BinaryOp {
        left: Box::new(Expr::Nested(Box::new(time.clone()))),
        op: BinaryOperator::Plus,
        right: Box::new(interval),
    })
}
