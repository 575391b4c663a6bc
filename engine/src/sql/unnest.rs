//! `FROM t CROSS JOIN UNNEST(t.list) AS u (element)`, and the same with a comma: a row for each element beside its row's columns. It becomes
//! `FROM (SELECT *, UNNEST(t.list) AS element FROM t) AS t`, and `u.element` becomes `element`.

use std::ops::ControlFlow;

use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident, Join, JoinOperator, ObjectName,
    Query, Select, SelectItem, SetExpr, TableAlias, TableFactor, TableWithJoins, VisitMut, VisitorMut,
};

use super::query::select_all;
use super::tokens::span_of;
use crate::error::{Code, Diagnostic, Result};

/// Rewrites each SELECT of `query`, not those of its subqueries.
pub(super) fn rewrite(query: &mut Query) -> Result<()> {
    body(&mut query.body)
}

fn body(set: &mut SetExpr) -> Result<()> {
    match set {
        SetExpr::Select(select) => in_select(select),
        SetExpr::SetOperation { left, right, .. } => {
            body(left)?;
            body(right)
        }
        _ => Ok(()),
    }
}

fn in_select(select: &mut Select) -> Result<()> {
    // A comma is a CROSS JOIN; only such as have an UNNEST behind one relation concern us.
    let is_unnest = |factor: &TableFactor| matches!(factor, TableFactor::UNNEST { .. });
    let is_crossed = |join: &Join| matches!(join.join_operator, JoinOperator::CrossJoin(_)) && is_unnest(&join.relation);
    let commas = select.from.get(1..).unwrap_or_default();
    let is_ours = select.from.first().is_some_and(|first| !is_unnest(&first.relation) && first.joins.iter().all(is_crossed))
        && commas.iter().all(|item| is_unnest(&item.relation) && item.joins.iter().all(is_crossed))
        && (!commas.is_empty() || select.from.first().is_some_and(|first| !first.joins.is_empty()));
    if !is_ours {
        return Ok(());
    }
    let mut items = std::mem::take(&mut select.from).into_iter();
    let Some(first) = items.next() else { return Ok(()) };
    let mut relation = first.relation;
    let crossed = first.joins.into_iter().map(|join| join.relation);
    let more = items.flat_map(|item| std::iter::once(item.relation).chain(item.joins.into_iter().map(|join| join.relation)));
    let mut renamed = Vec::new();
    for factor in crossed.chain(more) {
        let element = element(&factor)?;
        if let Some(table) = element.table {
            renamed.push((table, element.column.clone()));
        }
        relation = beside(relation, element.list, element.column);
    }
    select.from = vec![TableWithJoins { relation, joins: Vec::new() }];
    let _: ControlFlow<()> = select.visit(&mut Unqualify { renamed });
    Ok(())
}

/// What an UNNEST in FROM says.
struct Element {
    list: Expr,
    column: Ident,
    /// The name before the column's, `u` in `u.element`.
    table: Option<Ident>,
}

fn element(factor: &TableFactor) -> Result<Element> {
    let TableFactor::UNNEST { alias, array_exprs, with_offset, with_ordinality, .. } = factor else {
        return Err(Diagnostic::new(Code::Internal, "no UNNEST"));
    };
    let place = array_exprs.first().and_then(super::tokens::span_of_node);
    let refuse = |what: &str, hint: &str| Err(Diagnostic::new(Code::Unsupported, what).at(place).hint(hint));
    if *with_offset || *with_ordinality {
        return refuse("UNNEST with the elements' numbers (WITH ORDINALITY) can't be run yet", "leave WITH ORDINALITY out");
    }
    let [list] = array_exprs.as_slice() else {
        return refuse("UNNEST of several lists at once can't be run yet", "write one UNNEST for each");
    };
    let (table, column) = match alias {
        None => (None, Ident::new("unnest")),
        Some(alias) => match alias.columns.as_slice() {
            // PostgreSQL: the one name is the column's, too.
            [] => (Some(alias.name.clone()), alias.name.clone()),
            [column] => (Some(alias.name.clone()), column.name.clone()),
            [_, second, ..] => {
                return Err(Diagnostic::new(Code::Unsupported, "UNNEST of a list of ROWs into several columns can't be run yet")
                    .at(span_of(second.name.span))
                    .hint("give the row one name, and write name.field"));
            }
        },
    };
    Ok(Element { list: list.clone(), column, table })
}

/// `(SELECT *, UNNEST(list) AS column FROM relation) AS relation`.
fn beside(relation: TableFactor, list: Expr, column: Ident) -> TableFactor {
    let name = match &relation {
        TableFactor::Table { name, alias: None, .. } => name.0.last().and_then(|part| part.as_ident()).cloned(),
        TableFactor::Table { alias, .. } | TableFactor::Derived { alias, .. } | TableFactor::TableFunction { alias, .. } => {
            alias.as_ref().map(|alias| alias.name.clone())
        }
        _ => None,
    };
    let unnest = Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new("unnest")]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: vec![FunctionArg::Unnamed(FunctionArgExpr::Expr(list))],
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    });
    let mut inner = select_all(ObjectName::from(vec![Ident::new("unnest")])).query;
    if let SetExpr::Select(select) = inner.body.as_mut() {
        select.projection.push(SelectItem::ExprWithAlias { expr: unnest, alias: column });
        select.from = vec![TableWithJoins { relation, joins: Vec::new() }];
    }
    let alias = name.map(|name| TableAlias { explicit: true, name, columns: Vec::new(), at: None });
    TableFactor::Derived { lateral: false, subquery: inner, alias, sample: None }
}

/// `u.element` → `element`, `u.*` is left to the planner to refuse.
struct Unqualify {
    renamed: Vec<(Ident, Ident)>,
}

impl VisitorMut for Unqualify {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::CompoundIdentifier(parts) = expr
            && let [table, column, rest @ ..] = parts.as_slice()
            && self
                .renamed
                .iter()
                .any(|(t, c)| t.value.eq_ignore_ascii_case(&table.value) && c.value.eq_ignore_ascii_case(&column.value))
        {
            *expr =
                if rest.is_empty() { Expr::Identifier(column.clone()) } else { Expr::CompoundIdentifier(parts[1..].to_vec()) };
        }
        ControlFlow::Continue(())
    }
}
