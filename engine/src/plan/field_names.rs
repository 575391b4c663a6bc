//! `SELECT bid.auction FROM events`, where `bid` is a ROW column: the result's column is called `auction`, as in Flink and PostgreSQL.
//! DataFusion would call it `events.bid[auction]`.

use std::ops::ControlFlow;

use sqlparser::ast::{Expr, Ident, Query, Select, SelectItem, SetExpr, TableFactor, TableWithJoins, VisitMut, VisitorMut};

/// Gives a name to each select item that is a field of a ROW column and has none.
pub(super) fn name_fields(query: &mut Query) {
    let _: ControlFlow<()> = query.visit(&mut Namer);
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
