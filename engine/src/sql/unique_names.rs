//! `SELECT id, CAST(id AS STRING)`: two columns that would both be called `id`. The second gets `id_1`, as in DuckDB, because the planner
//! tells columns apart by their names; in an INSERT, where columns go by their place, nobody sees it.

use std::collections::HashSet;

use sqlparser::ast::{Expr, Ident, Query, Select, SelectItem, SetExpr};

/// Renames what would be called like a column before it, in `query` itself, not in its subqueries.
pub(super) fn make(query: &mut Query) {
    body(&mut query.body);
}

fn body(set: &mut SetExpr) {
    match set {
        SetExpr::Select(one) => select(one),
        SetExpr::SetOperation { left, right, .. } => {
            body(left);
            body(right);
        }
        _ => {}
    }
}

fn select(select: &mut Select) {
    let names: Vec<Option<String>> = select.projection.iter().map(name).collect();
    let mut taken: HashSet<String> = HashSet::new();
    let all: HashSet<String> = names.iter().flatten().cloned().collect();
    for (item, name) in select.projection.iter_mut().zip(names) {
        let Some(name) = name else { continue };
        if taken.insert(name.clone()) {
            continue;
        }
        let mut number = 1;
        let mut fresh = format!("{name}_{number}");
        while all.contains(&fresh) || !taken.insert(fresh.clone()) {
            number += 1;
            fresh = format!("{name}_{number}");
        }
        let expr = match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => expr.clone(),
            _ => continue,
        };
        *item = SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', fresh) };
    }
}

/// What an item of a SELECT is called, where that is known without planning; an expression without a name of its own by its text.
fn name(item: &SelectItem) -> Option<String> {
    match item {
        SelectItem::ExprWithAlias { alias, .. } => Some(alias.value.clone()),
        SelectItem::UnnamedExpr(expr) => Some(of_expr(expr)),
        _ => None,
    }
}

fn of_expr(expr: &Expr) -> String {
    match expr {
        Expr::Identifier(name) => name.value.clone(),
        Expr::CompoundIdentifier(path) => path.last().map_or_else(|| expr.to_string(), |name| name.value.clone()),
        Expr::Cast { expr, .. } | Expr::Nested(expr) => of_expr(expr),
        other => other.to_string(),
    }
}
