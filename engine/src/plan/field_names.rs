//! `SELECT bid.auction FROM events`, where `bid` is a ROW column: the result's column is called `auction`, as in Flink and PostgreSQL.
//! DataFusion would call it `events.bid[auction]`.

use std::ops::ControlFlow;

use sqlparser::ast::{
    AccessExpr, Expr, Ident, Query, Select, SelectItem, SetExpr, TableFactor, TableWithJoins, VisitMut, VisitorMut,
};

/// Gives a name to each select item that is a field of a ROW column and has none.
pub(super) fn name_fields(query: &mut Query) {
    let _: ControlFlow<()> = query.visit(&mut Namer);
}

/// Gives a name, its own text, to each computed column of a view that has none: the planner's would be `t.id + Int64(1)`.
pub(super) fn name_expressions(query: &mut Query) {
    fn in_body(body: &mut SetExpr) {
        match body {
            SetExpr::Select(select) => select.projection.iter_mut().for_each(name_expression),
            SetExpr::SetOperation { left, right, .. } => {
                in_body(left);
                in_body(right);
            }
            _ => {}
        }
    }
    in_body(&mut query.body);
}

fn name_expression(item: &mut SelectItem) {
    let SelectItem::UnnamedExpr(expr) = item else { return };
    let mut text = expr.to_string();
    let lower = text.to_ascii_lowercase();
    // A field is called by its own name, whatever it is a field of.
    if let Expr::CompoundFieldAccess { access_chain, .. } = expr
        && let Some(AccessExpr::Dot(Expr::Value(field))) = access_chain.last()
        && let Some(name) = field.value.clone().into_string()
    {
        text = name;
    }
    let has_name = match expr {
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Wildcard(_) | Expr::QualifiedWildcard(..) => true,
        // `x::INT` and `CAST(x AS INT)` are called `x`; UNNEST of a ROW gives several columns.
        Expr::Cast { expr, .. } => matches!(**expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_)),
        Expr::Function(_) => lower == "count(*)" || lower.starts_with("unnest("),
        _ => false,
    };
    if !has_name {
        *item = SelectItem::ExprWithAlias { alias: Ident::with_quote('"', text), expr: expr.clone() };
    }
}

struct Namer;

impl VisitorMut for Namer {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        name_in(&mut query.body);
        ControlFlow::Continue(())
    }
}

fn name_in(body: &mut SetExpr) {
    match body {
        SetExpr::Select(select) => name_items(select),
        SetExpr::SetOperation { left, right, .. } => {
            name_in(left);
            name_in(right);
        }
        _ => {}
    }
}

fn name_items(select: &mut Select) {
    let relations: Vec<Ident> = select.from.iter().flat_map(relations).collect();
    for item in &mut select.projection {
        let SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) = item else { continue };
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { continue };
        let is_qualified = relations.iter().any(|r| r.value.eq_ignore_ascii_case(&first.value));
        if parts.len() > 2 || !is_qualified {
            *item = SelectItem::ExprWithAlias { alias: last.clone(), expr: Expr::CompoundIdentifier(parts.clone()) };
        }
    }
}

/// The names under which a FROM item's columns can be qualified.
fn relations(from: &TableWithJoins) -> Vec<Ident> {
    std::iter::once(&from.relation).chain(from.joins.iter().map(|j| &j.relation)).filter_map(relation).collect()
}

fn relation(factor: &TableFactor) -> Option<Ident> {
    match factor {
        TableFactor::Table { name, alias, .. } => match alias {
            Some(alias) => Some(alias.name.clone()),
            None => name.0.last().and_then(|part| part.as_ident()).cloned(),
        },
        TableFactor::Derived { alias, .. }
        | TableFactor::TableFunction { alias, .. }
        | TableFactor::Function { alias, .. }
        | TableFactor::UNNEST { alias, .. } => alias.as_ref().map(|a| a.name.clone()),
        _ => None,
    }
}
