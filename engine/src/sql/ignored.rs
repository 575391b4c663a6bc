//! Clauses that the parser knows and nothing here heeds. Each is refused by its name: what is passed over in silence is a promise that is not kept.

use sqlparser::ast::{Distinct, Query, Select, SetExpr, TableFactor};

use super::tokens::span_of_node;
use crate::error::{Code, Diagnostic, Span};

/// What of `query` itself, not of its subqueries, would have no effect.
pub(super) fn check(query: &Query, errors: &mut Vec<Diagnostic>) {
    let place = span_of_node(query);
    let mut refuse = |what: &str, hint: &str| errors.push(refusal(what, hint, place));
    if !query.locks.is_empty() {
        refuse("FOR UPDATE and FOR SHARE lock nothing: a stream's rows are not changed in place", "leave the clause out");
    }
    if query.for_clause.is_some() {
        refuse("FOR XML, FOR JSON and FOR BROWSE can't be run", "say in the sink's 'format' how rows are written");
    }
    if query.settings.is_some() || query.format_clause.is_some() {
        refuse("SETTINGS and FORMAT of a query can't be run", "use SET, and the sink's option 'format'");
    }
    body(&query.body, errors);
}

fn body(set: &SetExpr, errors: &mut Vec<Diagnostic>) {
    match set {
        SetExpr::Select(one) => select(one, errors),
        SetExpr::SetOperation { left, right, .. } => {
            body(left, errors);
            body(right, errors);
        }
        _ => {}
    }
}

fn select(select: &Select, errors: &mut Vec<Diagnostic>) {
    let place = span_of_node(select);
    if matches!(select.distinct, Some(Distinct::On(_))) {
        errors.push(refusal("DISTINCT ON can't be run yet", "use GROUP BY with arg_min or arg_max for the other columns", place));
    }
    if !select.connect_by.is_empty() {
        errors.push(refusal("CONNECT BY can't be run", "there is no other way yet", place));
    }
    for from in &select.from {
        relation(&from.relation, errors);
        for join in &from.joins {
            relation(&join.relation, errors);
        }
    }
}

fn relation(relation: &TableFactor, errors: &mut Vec<Diagnostic>) {
    let place = span_of_node(relation);
    let TableFactor::Table { with_hints, version, sample, index_hints, partitions, json_path, .. } = relation else { return };
    if !with_hints.is_empty() {
        errors.push(refusal(
            "WITH (…) behind a table that is read has no effect",
            "options belong into CREATE TABLE … WITH (…); those of a CREATE SINK stand before AS",
            place,
        ));
    }
    if version.is_some() {
        errors.push(refusal("FOR SYSTEM_TIME AS OF can't be run yet", "temporal joins come later; leave the clause out", place));
    }
    if sample.is_some() {
        errors.push(refusal("TABLESAMPLE can't be run", "write WHERE random() < 0.1", place));
    }
    if !index_hints.is_empty() || !partitions.is_empty() || json_path.is_some() {
        errors.push(refusal("index hints, PARTITION and JSON paths behind a table have no effect", "leave them out", place));
    }
}

fn refusal(what: &str, hint: &str, place: Option<Span>) -> Diagnostic {
    let refusal = Diagnostic::new(Code::Unsupported, what).hint(hint);
    match place {
        Some(place) => refusal.at(place),
        None => refusal,
    }
}
