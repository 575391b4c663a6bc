//! What is done to a statement's syntax tree right after parsing, so that the planner sees one form of each thing:
//! `INTERVAL` literals become texts with units; old group windows become window table functions; functions that are only another
//! spelling of an expression become that expression.

use std::ops::ControlFlow;

use sqlparser::ast::{Expr, Query, Visit, VisitMut, VisitorMut};

use super::ast::{ColumnKind, Statement, StatementKind};
use super::{group_window, hints, ignored, interval, spelling, unique_names, unnest};
use crate::error::Diagnostic;

/// Rewrites every query and expression of `statement`. All errors found come back; the statement is only good without.
pub(super) fn statement(statement: &mut Statement) -> Vec<Diagnostic> {
    let mut errors = Vec::new();
    match &mut statement.kind {
        StatementKind::CreateTable(table) => {
            for column in &mut table.columns {
                if let ColumnKind::Computed(expr) = &mut column.kind {
                    node(expr, &mut errors);
                }
            }
            if let Some(watermark) = &mut table.watermark {
                node(&mut watermark.expr, &mut errors);
            }
        }
        StatementKind::CreateSink(sink) => query(&mut sink.query.query, &mut errors),
        StatementKind::CreateView(view) => query(&mut view.query.query, &mut errors),
        StatementKind::Insert(insert) => query(&mut insert.query.query, &mut errors),
        StatementKind::StatementSet(inserts) => {
            for insert in inserts {
                query(&mut insert.query.query, &mut errors);
            }
        }
        StatementKind::Query(one) => query(&mut one.query, &mut errors),
        StatementKind::Explain(explain) => errors.extend(self::statement(&mut explain.statement)),
        StatementKind::CreateFunction(_)
        | StatementKind::Set(_)
        | StatementKind::Reset(_)
        | StatementKind::Drop(_)
        | StatementKind::Show(_)
        | StatementKind::Describe(_) => {}
    }
    // Some nodes of the tree know no place.
    errors.into_iter().map(|error| if error.span.is_some() { error } else { error.at(statement.span) }).collect()
}

/// Rewrites a query by itself; for queries that are not part of a script.
pub(super) fn query(query: &mut Query, errors: &mut Vec<Diagnostic>) {
    node(query, errors);
}

fn node(node: &mut (impl Visit + VisitMut), errors: &mut Vec<Diagnostic>) {
    let mut rewriter = Rewriter { errors };
    let flow = node.visit(&mut rewriter);
    debug_assert!(flow.is_continue(), "the rewriter never stops early");
}

struct Rewriter<'e> {
    errors: &'e mut Vec<Diagnostic>,
}

impl VisitorMut for Rewriter<'_> {
    type Break = ();

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        hints::check(query, self.errors);
        ignored::check(query, self.errors);
        unique_names::make(query);
        if let Err(error) = unnest::rewrite(query) {
            self.errors.push(error);
        }
        if let Err(error) = group_window::rewrite(query) {
            self.errors.push(error);
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        ignored::check_expr(expr, self.errors);
        if let Expr::Interval(literal) = expr {
            if let Err(error) = interval::normalize(literal) {
                self.errors.push(error);
            }
        } else if let Err(error) = spelling::rewrite(expr) {
            self.errors.push(error);
        }
        ControlFlow::Continue(())
    }
}
