//! `GROUP BY TUMBLE(ts, size)` of older Flink and `GROUP BY tumble(size)` of Arroyo, turned into the window table function.
//!
//! ```text
//! SELECT k, TUMBLE_START(ts, i), count(*) FROM t GROUP BY k, TUMBLE(ts, i)
//! SELECT k, window_start, count(*) FROM TUMBLE(t, DESCRIPTOR(ts), i) AS t GROUP BY k, window_start, window_end
//! ```
//! The planner sees the second form only. The call itself, as a value, is `named_struct('start', window_start, 'end', window_end)`.

use std::ops::ControlFlow;

use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, GroupByExpr, Ident, ObjectName,
    ObjectNamePart, OrderByKind, Query, Select, SelectItem, SetExpr, TableAlias, TableFactor, TableFunctionArgs, Value, VisitMut,
    VisitorMut,
};

use super::tokens::{span_of, span_of_node};
use super::{query, window};
use crate::error::{Code, Diagnostic, Result};

/// Rewrites the SELECTs of `query` itself; its subqueries are done by then.
pub(super) fn rewrite(query: &mut Query) -> Result<()> {
    let found = set_expr(&mut query.body)?;
    if let (Some(call), Some(order_by)) = (found, &mut query.order_by)
        && let OrderByKind::Expressions(exprs) = &mut order_by.kind
    {
        for one in exprs {
            replace(&mut one.expr, Some(&call))?;
        }
    }
    Ok(())
}

fn set_expr(body: &mut SetExpr) -> Result<Option<GroupWindow>> {
    match body {
        SetExpr::Select(one) => select(one),
        SetExpr::SetOperation { left, right, .. } => {
            set_expr(left)?;
            set_expr(right)?;
            Ok(None)
        }
        _ => Ok(None),
    }
}

/// A window function among the group keys.
#[derive(Clone)]
struct GroupWindow {
    /// In capitals.
    name: &'static str,
    /// As written.
    ident: Ident,
    args: Vec<Expr>,
}

impl GroupWindow {
    fn is_same(&self, other: &Self) -> bool {
        self.name == other.name && self.same_args(&other.args)
    }

    /// Compared as text: `ts` and `T.ts` are not the same, as in Flink.
    fn same_args(&self, args: &[Expr]) -> bool {
        self.args.len() == args.len()
            && self.args.iter().zip(args).all(|(a, b)| a.to_string().eq_ignore_ascii_case(&b.to_string()))
    }

    fn column(&self, name: &str) -> Expr {
        Expr::Identifier(Ident { value: name.to_owned(), quote_style: None, span: self.ident.span })
    }

    /// `window_start, window_end`.
    fn keys(&self) -> [Expr; 2] {
        [self.column("window_start"), self.column("window_end")]
    }

    fn as_struct(&self) -> Expr {
        let text = |text: &str| Expr::Value(Value::SingleQuotedString(text.to_owned()).with_span(self.ident.span));
        let [start, end] = self.keys();
        call("named_struct", self.ident.span, vec![text("start"), start, text("end"), end])
    }
}

/// A call of a function by a plain name.
pub(super) fn call(name: &str, span: sqlparser::tokenizer::Span, args: Vec<Expr>) -> Expr {
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident { value: name.to_owned(), quote_style: None, span }]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: args.into_iter().map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg))).collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// An unquoted name and plain arguments, if the expression is a call of that shape.
fn plain_call(expr: &Expr) -> Option<(&Ident, Vec<&Expr>)> {
    let Expr::Function(Function { name, args: FunctionArguments::List(list), over: None, filter: None, .. }) = expr else {
        return None;
    };
    let [ObjectNamePart::Identifier(ident)] = name.0.as_slice() else { return None };
    let args = list.args.iter().map(|arg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
        _ => None,
    });
    (ident.quote_style.is_none()).then_some(())?;
    Some((ident, args.collect::<Option<_>>()?))
}

/// `expr` as a window function, if it is one.
fn as_group_window(expr: &Expr) -> Option<GroupWindow> {
    let (ident, args) = plain_call(expr)?;
    let name = ["TUMBLE", "HOP", "CUMULATE", "SESSION"].into_iter().find(|name| ident.value.eq_ignore_ascii_case(name))?;
    Some(GroupWindow { name, ident: ident.clone(), args: args.into_iter().cloned().collect() })
}

/// What a helper such as `TUMBLE_START` stands for.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Start,
    End,
    EventTime,
    ProcessingTime,
}

fn as_part(expr: &Expr) -> Option<(GroupWindow, Part)> {
    let (ident, args) = plain_call(expr)?;
    let upper = ident.value.to_ascii_uppercase();
    let (window, part) = upper.split_once('_')?;
    let name = ["TUMBLE", "HOP", "CUMULATE", "SESSION"].into_iter().find(|name| *name == window)?;
    let part = match part {
        "START" => Part::Start,
        "END" => Part::End,
        "ROWTIME" => Part::EventTime,
        "PROCTIME" => Part::ProcessingTime,
        _ => return None,
    };
    Some((GroupWindow { name, ident: ident.clone(), args: args.into_iter().cloned().collect() }, part))
}

fn select(select: &mut Select) -> Result<Option<GroupWindow>> {
    let Select { projection, group_by, .. } = select;
    let mut found: Option<GroupWindow> = None;
    if let GroupByExpr::Expressions(exprs, _) = group_by {
        *exprs = keys(std::mem::take(exprs), projection, &mut found)?;
        for expr in exprs.iter_mut() {
            let (Expr::GroupingSets(sets) | Expr::Rollup(sets) | Expr::Cube(sets)) = expr else { continue };
            for set in sets {
                *set = keys(std::mem::take(set), projection, &mut found)?;
            }
        }
    }
    let call = found.as_ref();
    let mut takes_time = false;
    for item in projection.iter_mut() {
        match item {
            SelectItem::ExprWithAlias { expr, .. } => takes_time |= replace(expr, call)?,
            SelectItem::UnnamedExpr(expr) => {
                // A name for what has none of its own.
                let alias = as_group_window(expr).map(|call| Ident { value: call.name.to_ascii_lowercase(), ..call.ident });
                takes_time |= replace(expr, call)?;
                if let Some(alias) = alias {
                    *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
                }
            }
            _ => {}
        }
    }
    for expr in [&mut select.having, &mut select.qualify].into_iter().flatten() {
        takes_time |= replace(expr, call)?;
    }
    if let (true, Some(call), GroupByExpr::Expressions(exprs, _)) = (takes_time, call, &mut select.group_by) {
        group_by_time(exprs, call);
    }
    if let Some(expr) = &mut select.selection {
        replace(expr, None)?;
    }
    if let Some(call) = call {
        into_from(select, call)?;
    }
    Ok(found)
}

/// The window's time is a key beside its end, which it follows from.
fn group_by_time(exprs: &mut Vec<Expr>, window: &GroupWindow) {
    let [_, end] = window.keys();
    if let Some(at) = exprs.iter().position(|expr| *expr == end) {
        exprs.insert(at + 1, window.column("window_time"));
    }
    for expr in exprs {
        let (Expr::GroupingSets(sets) | Expr::Rollup(sets) | Expr::Cube(sets)) = expr else { continue };
        for set in sets {
            if set.contains(&end) {
                set.push(window.column("window_time"));
            }
        }
    }
}

/// Group keys, with the window's two columns instead of the window function, its alias, or its number in the SELECT list.
fn keys(exprs: Vec<Expr>, projection: &[SelectItem], found: &mut Option<GroupWindow>) -> Result<Vec<Expr>> {
    let mut out = Vec::with_capacity(exprs.len() + 1);
    for expr in exprs {
        let named = match &expr {
            Expr::Identifier(name) => projection.iter().find_map(|item| match item {
                SelectItem::ExprWithAlias { expr, alias } if alias.value.eq_ignore_ascii_case(&name.value) => Some(expr),
                _ => None,
            }),
            Expr::Value(value) => match &value.value {
                Value::Number(number, _) => {
                    let index = number.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
                    index.and_then(|index| projection.get(index)).and_then(|item| match item {
                        SelectItem::ExprWithAlias { expr, .. } | SelectItem::UnnamedExpr(expr) => Some(expr),
                        _ => None,
                    })
                }
                _ => None,
            },
            _ => None,
        };
        let Some(call) = as_group_window(named.unwrap_or(&expr)) else {
            out.push(expr);
            continue;
        };
        if let Some(other) = found.as_ref().filter(|other| !other.is_same(&call)) {
            let message = format!("GROUP BY has two windows, {} and {}", other.ident.value, call.ident.value);
            return Err(Diagnostic::new(Code::InvalidWindow, message)
                .at(span_of(call.ident.span))
                .hint("a query groups by one window; put one of them in a subquery"));
        }
        out.extend(call.keys());
        *found = Some(call);
    }
    Ok(out)
}

/// Puts the window's columns where `expr` says TUMBLE_START, TUMBLE and so on; says whether the window's time is among them.
fn replace(expr: &mut Expr, window: Option<&GroupWindow>) -> Result<bool> {
    let mut replacer = Replacer { window, error: None, depth: 0, takes_time: false };
    let _ = expr.visit(&mut replacer);
    replacer.error.map_or(Ok(replacer.takes_time), Err)
}

struct Replacer<'w> {
    window: Option<&'w GroupWindow>,
    error: Option<Diagnostic>,
    /// How many subqueries deep; they have windows of their own.
    depth: usize,
    /// Whether TUMBLE_ROWTIME was met.
    takes_time: bool,
}

impl Replacer<'_> {
    fn expr(&mut self, expr: &mut Expr) -> Result<()> {
        let (found, part) = match (as_part(expr), as_group_window(expr)) {
            (Some((found, part)), _) => (found, Some(part)),
            (None, Some(found)) => (found, None),
            (None, None) => return Ok(()),
        };
        let Some(window) = self.window.filter(|window| window.is_same(&found)) else {
            let error =
                Diagnostic::new(Code::InvalidWindow, format!("{} has no window of its own in GROUP BY", found.ident.value));
            return Err(error.at(span_of(found.ident.span)).hint(match self.window {
                Some(window) => format!("its arguments must be those of GROUP BY {}({})", window.name, join(&window.args)),
                None => format!("write GROUP BY {}({}), or read FROM {}(…)", found.name, join(&found.args), found.name),
            }));
        };
        *expr = match part {
            Some(Part::Start) => window.column("window_start"),
            Some(Part::End) => window.column("window_end"),
            Some(Part::EventTime) => {
                self.takes_time = true;
                window.column("window_time")
            }
            Some(Part::ProcessingTime) => call("PROCTIME", window.ident.span, Vec::new()),
            None => window.as_struct(),
        };
        Ok(())
    }
}

fn join(args: &[Expr]) -> String {
    args.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl VisitorMut for Replacer<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, _query: &mut Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &mut Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if self.depth == 0
            && let Err(error) = self.expr(expr)
        {
            self.error = Some(error);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

/// Puts the window around the SELECT's only relation.
fn into_from(select: &mut Select, window: &GroupWindow) -> Result<()> {
    let place = span_of(window.ident.span);
    let [from] = select.from.as_mut_slice() else {
        return Err(several_relations(window));
    };
    if !from.joins.is_empty() {
        return Err(several_relations(window));
    }
    let span = window.ident.span;
    let nothing = || query::table(ObjectName::from(vec![Ident::new("")]));
    let (data, alias) = match std::mem::replace(&mut from.relation, nothing()) {
        TableFactor::Table { name, alias, args: None, version: None, sample: None, .. } => {
            let parts: Vec<Ident> = name.0.iter().filter_map(|part| part.as_ident().cloned()).collect();
            let own_name = parts.last().cloned();
            let alias = alias.or_else(|| own_name.map(|name| TableAlias { explicit: true, name, columns: Vec::new(), at: None }));
            (if let [only] = parts.as_slice() { Expr::Identifier(only.clone()) } else { Expr::CompoundIdentifier(parts) }, alias)
        }
        TableFactor::Derived { subquery, alias, lateral: false, .. } => (Expr::Subquery(subquery), alias),
        other => {
            return Err(Diagnostic::new(
                Code::InvalidWindow,
                format!("{} can't group the rows of `{other}`", window.ident.value),
            )
            .at(place)
            .hint("give that relation a name with CREATE VIEW or WITH, and group the rows of it"));
        }
    };
    let is_implied = window.args.first().is_some_and(is_interval);
    let (time, lengths) = match window.args.split_first() {
        Some((time, lengths)) if !is_implied => (vec![time.clone()], lengths),
        _ => (Vec::new(), window.args.as_slice()),
    };
    if let Some(time) = time.first().filter(|time| !matches!(time, Expr::Identifier(_) | Expr::CompoundIdentifier(_))) {
        return Err(Diagnostic::new(Code::InvalidWindow, format!("{}: `{time}` is no time column", window.ident.value))
            .at(span_of_node(time).or(place))
            .hint("compute the time as a column of the table (name AS expression) and declare WATERMARK FOR it"));
    }
    let args = [data, call("DESCRIPTOR", span, time)].into_iter().chain(lengths.iter().cloned());
    from.relation = TableFactor::Table {
        name: ObjectName::from(vec![window.ident.clone()]),
        alias,
        args: Some(TableFunctionArgs {
            args: args.map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg))).collect(),
            settings: None,
        }),
        with_hints: Vec::new(),
        version: None,
        with_ordinality: false,
        partitions: Vec::new(),
        json_path: None,
        sample: None,
        index_hints: Vec::new(),
    };
    // Wrong lengths are told here, where the user wrote them.
    match window::as_window_call(&from.relation) {
        Some(Err(error)) => Err(error.at(place)),
        _ => Ok(()),
    }
}

fn is_interval(expr: &Expr) -> bool {
    match expr {
        Expr::Interval(_) => true,
        Expr::Nested(inner) => is_interval(inner),
        _ => false,
    }
}

fn several_relations(window: &GroupWindow) -> Diagnostic {
    Diagnostic::new(Code::Unsupported, format!("GROUP BY {} needs exactly one relation in FROM", window.ident.value))
        .at(span_of(window.ident.span))
        .hint(format!("window the one relation that has the time column: FROM {}(t, ts, …) JOIN …", window.name))
}
