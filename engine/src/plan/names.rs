//! Unquoted names match without regard to case where that is unambiguous; the spelling of the definition wins.
//!
//! DataFusion compares names exactly and says, when it finds none, which there are in that scope. So a query is planned as written; a
//! name that was not found but has exactly one twin in its scope that differs only in case is given that spelling, and it is planned
//! again. Quoted names are never touched.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use datafusion::common::{Column, DataFusionError, SchemaError};
use sqlparser::ast::{AccessExpr, Expr, Ident, Visit, VisitMut, visit_expressions, visit_expressions_mut};

use super::diagnose::{external, schema};
use crate::error::{Code, Diagnostic};
use crate::sql;

/// The most spellings that are mended in one query.
const MENDED_MAX: usize = 500;

/// Plans `ast` with `attempt`, mending the spelling of unquoted names until it plans or fails for another reason.
pub(super) fn with_spelling<A: Visit + VisitMut, T>(
    ast: &mut A,
    mut attempt: impl FnMut(&A) -> Result<T, DataFusionError>,
) -> Result<T, DataFusionError> {
    for _ in 0..MENDED_MAX {
        let error = match attempt(ast) {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let Some((wrong, right)) = correction(&error)? else { return Err(located(ast, error)) };
        if !respell(ast, &wrong, &right) {
            return Err(located(ast, error));
        }
    }
    attempt(ast)
}

/// An error about a name that was not found, with the place where it stands.
fn located<A: Visit>(ast: &A, error: DataFusionError) -> DataFusionError {
    let Some(found @ SchemaError::FieldNotFound { field, .. }) = schema_error(&error) else { return error };
    let mut place = None;
    let _: ControlFlow<()> = visit_expressions(ast, |expr: &Expr| {
        let ident = match expr {
            Expr::Identifier(ident) => Some(ident),
            Expr::CompoundIdentifier(idents) => idents.last(),
            Expr::CompoundFieldAccess { access_chain, .. } => {
                let last = access_chain.last().and_then(|access| match access {
                    AccessExpr::Dot(Expr::Value(name)) => Some(name),
                    _ => None,
                });
                if let Some(name) = last.filter(|name| name.value.clone().into_string().as_deref() == Some(&field.name)) {
                    place = sql::span_of(name.span);
                    return ControlFlow::Break(());
                }
                None
            }
            _ => None,
        };
        match ident.filter(|ident| ident.value == field.name) {
            Some(ident) => {
                place = sql::span_of(ident.span);
                ControlFlow::Break(())
            }
            None => ControlFlow::Continue(()),
        }
    });
    match place {
        Some(place) => external(schema(found).at(place)),
        None => error,
    }
}

/// Which name was not found, as its parts, and the parts that it should have.
fn correction(error: &DataFusionError) -> Result<Option<(Vec<String>, Vec<String>)>, DataFusionError> {
    let Some(SchemaError::FieldNotFound { field, valid_fields }) = schema_error(error) else { return Ok(None) };
    let parts = |column: &Column| -> Vec<String> {
        column.relation.iter().map(|r| r.table().to_owned()).chain([column.name.clone()]).collect()
    };
    let wrong = parts(field);
    let mut found = BTreeSet::new();
    for valid in valid_fields {
        let mut right = parts(valid);
        if wrong.len() == 1 {
            right.drain(..right.len() - 1);
        }
        if same(&wrong, &right) {
            found.insert(right);
        } else if wrong.len() == 2 && valid.name.eq_ignore_ascii_case(&wrong[0]) && valid.name != wrong[0] {
            // column.field of a ROW
            found.insert(vec![valid.name.clone(), wrong[1].clone()]);
        }
    }
    match found.len() {
        0 => Ok(None),
        1 => Ok(found.into_iter().next().map(|right| (wrong, right))),
        _ => {
            let names: Vec<String> = found.iter().map(|n| format!("`{}`", n.join("."))).collect();
            let message = format!("`{}` may be {}", wrong.join("."), names.join(" or "));
            Err(external(Diagnostic::new(Code::AmbiguousName, message).hint("write it in double quotes, as it was defined")))
        }
    }
}

fn same(a: &[String], b: &[String]) -> bool {
    a.len() == b.len() && a != b && a.iter().zip(b).all(|(x, y)| x.eq_ignore_ascii_case(y))
}

fn schema_error(error: &DataFusionError) -> Option<&SchemaError> {
    match error {
        DataFusionError::SchemaError(inner, _) => Some(inner),
        DataFusionError::Diagnostic(_, inner) | DataFusionError::Context(_, inner) => schema_error(inner),
        DataFusionError::Shared(inner) => schema_error(inner),
        DataFusionError::Collection(all) => all.first().and_then(schema_error),
        _ => None,
    }
}

/// Gives unquoted occurrences of a name its right spelling; whether there was one.
fn respell<A: VisitMut>(ast: &mut A, wrong: &[String], right: &[String]) -> bool {
    let mut changed = false;
    let mut mend = |idents: &mut [Ident]| {
        let is_it = |idents: &[Ident]| {
            idents.iter().zip(wrong).all(|(ident, part)| ident.value == *part)
                && idents.iter().zip(wrong.iter().zip(right)).all(|(ident, (w, r))| w == r || ident.quote_style.is_none())
        };
        // A column and its field may stand behind a table's name; a name alone stands first.
        let last = if wrong.len() == 1 { 0 } else { idents.len().saturating_sub(wrong.len()) };
        for start in 0..=last {
            let Some(here) = idents.get_mut(start..start + wrong.len()).filter(|here| is_it(here)) else { continue };
            for (ident, part) in here.iter_mut().zip(right) {
                ident.value.clone_from(part);
            }
            changed = true;
        }
    };
    let _: ControlFlow<()> = visit_expressions_mut(ast, |expr: &mut Expr| {
        match expr {
            Expr::Identifier(ident) => mend(std::slice::from_mut(ident)),
            Expr::CompoundIdentifier(idents) => mend(idents),
            Expr::CompoundFieldAccess { .. } => {}
            _ => {}
        }
        ControlFlow::Continue(())
    });
    changed
}
