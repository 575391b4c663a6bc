//! DataFusion's planning errors in the user's words: a code, a place, a hint. Errors that are values are told here, those that are only a
//! sentence in [`super::planner_words`]. What has no code of its own is TR-9001, a gap of ours.

use datafusion::common::{DataFusionError, SchemaError};
use sqlparser::tokenizer::{Location, Span as ParserSpan};

use super::planner_words::{no_relation, not_done, told};
use crate::error::library_words::in_sql_types;
use crate::error::{Code, Diagnostic, Span};
use crate::sql;

/// What a planning error means for the user; `statement` is the place when the error has none of its own.
pub(super) fn diagnose(error: &DataFusionError, statement: Span) -> Diagnostic {
    let span = place(error).unwrap_or(statement);
    if let Some(ours) = own(error) {
        let place = ours.span.unwrap_or(span);
        return ours.at(place);
    }
    match error.find_root() {
        DataFusionError::SchemaError(schema_error, _) => schema(schema_error).at(span),
        DataFusionError::External(inner) => match inner.downcast_ref::<Diagnostic>() {
            Some(ours) => ours.clone().at(ours.span.unwrap_or(span)),
            None => Diagnostic::new(Code::Datafusion, inner.to_string()).at(span),
        },
        DataFusionError::Diagnostic(_, inner) => diagnose(inner, span),
        DataFusionError::Context(_, inner) => diagnose(inner, span),
        DataFusionError::NotImplemented(text) => not_done(text).at(span),
        DataFusionError::Plan(text) | DataFusionError::Execution(text) => users(told(text)).at(span),
        DataFusionError::SQL(parser, _) => Diagnostic::new(Code::Syntax, first_line(&parser.to_string())).at(span),
        other => told(&other.strip_backtrace()).at(span),
    }
}

/// Whether the error itself tells a place in the SQL.
pub(super) fn has_place(error: &DataFusionError) -> bool {
    own(error).is_some_and(|ours| ours.span.is_some()) || place(error).is_some()
}

/// The schema of a column's relation, when that is no relation but a ROW, and the column one of its fields.
pub(super) const FIELDS_OF: &str = "fields of";

/// What the planner refuses on purpose is a mistake of the user's, also where its sentence is not known here.
fn users(told: Diagnostic) -> Diagnostic {
    if told.code != Code::Datafusion {
        return told;
    }
    Diagnostic { code: Code::InvalidArgument, message: format!("this can't be planned: {}", told.message), ..told }
}

/// A [`Diagnostic`] of ours as a DataFusion error, to be found again by [`diagnose`].
pub(super) fn external(diagnostic: Diagnostic) -> DataFusionError {
    DataFusionError::External(Box::new(diagnostic))
}

fn own(error: &DataFusionError) -> Option<Diagnostic> {
    let mut at = error;
    loop {
        match at {
            DataFusionError::External(inner) => return inner.downcast_ref::<Diagnostic>().cloned(),
            DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => at = inner,
            DataFusionError::Shared(inner) => at = inner,
            _ => return None,
        }
    }
}

fn place(error: &DataFusionError) -> Option<Span> {
    let span = error.diagnostic()?.span?;
    let location = |l: datafusion::common::Location| Location { line: l.line, column: l.column };
    sql::span_of(ParserSpan { start: location(span.start), end: location(span.end) })
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().trim_end_matches('.').to_owned()
}

/// A name that means nothing, or too much, in the user's words.
pub(super) fn schema(error: &SchemaError) -> Diagnostic {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let names: Vec<&str> = valid_fields.iter().map(|c| c.name.as_str()).collect();
            if let Some(row) = field.relation.as_ref().filter(|relation| relation.schema() == Some(FIELDS_OF)) {
                let message = format!("the ROW `{}` has no field `{}`", row.table(), field.name);
                let hint = match nearest(&field.name, &names) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("its fields are: {}", listed(&names)),
                };
                return Diagnostic::new(Code::UnknownColumn, message).hint(hint);
            }
            if let Some(relation) = &field.relation
                && !valid_fields.iter().any(|c| c.relation.as_ref().is_some_and(|r| r.table() == relation.table()))
            {
                return match valid_fields.iter().find(|c| c.name == relation.table()) {
                    Some(row) => {
                        let message = format!("the column `{}` has no field `{}`", row.name, field.name);
                        Diagnostic::new(Code::UnknownColumn, message)
                    }
                    None => no_relation(relation.table()),
                };
            }
            let message = match &field.relation {
                Some(relation) => format!("there is no column `{}` in `{}`", field.name, relation.table()),
                None => format!("there is no column `{}`", field.name),
            };
            let diagnostic = Diagnostic::new(Code::UnknownColumn, message);
            match nearest(&field.name, &names) {
                Some(near) => diagnostic.hint(format!("did you mean `{near}`?")),
                None if names.is_empty() => diagnostic.hint("the query has no FROM"),
                None => diagnostic.hint(format!("the columns are: {}", listed(&names))),
            }
        }
        SchemaError::AmbiguousReference { field } => {
            Diagnostic::new(Code::AmbiguousName, format!("the column `{}` may be one of several", field.name))
                .hint("write the table's name or alias before it: t.column")
        }
        SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
            Diagnostic::new(Code::DuplicateName, format!("two columns are called `{name}`")).hint("rename one of them with AS")
        }
    }
}

/// The first of `names`, with commas; those that have no name of the user's by what they are.
fn listed(names: &[&str]) -> String {
    const SHOWN_MAX: usize = 20;
    let mut shown: Vec<String> = names.iter().map(|name| in_sql_types(name)).collect();
    shown.dedup();
    if shown.len() > SHOWN_MAX {
        shown.truncate(SHOWN_MAX);
        shown.push("…".to_owned());
    }
    shown.join(", ")
}

/// The name that differs least from `name`, if few letters differ.
fn nearest<'n>(name: &str, names: &[&'n str]) -> Option<&'n str> {
    let lower = name.to_lowercase();
    names
        .iter()
        .map(|n| (datafusion::common::utils::datafusion_strsim::levenshtein(&lower, &n.to_lowercase()), *n))
        .filter(|(distance, n)| *distance <= 1 + n.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, n)| n)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_has_no_code_of_its_own_is_a_gap_of_ours() {
        let statement = Span { start: 3, end: 9 };
        let told = diagnose(&DataFusionError::Internal("something that nobody has seen before".into()), statement);
        assert_eq!((told.code, told.span), (Code::Datafusion, Some(statement)));
        let refused = diagnose(&DataFusionError::Plan("something that nobody has seen before".into()), statement);
        assert_eq!((refused.code, refused.span), (Code::InvalidArgument, Some(statement)));
        let known = diagnose(&DataFusionError::Plan("Invalid function 'frob'.\nDid you mean 'floor'?".into()), statement);
        assert_eq!(known.code, Code::UnknownFunction);
        assert_eq!(known.message, "there is no function `frob`");
        let types = diagnose(
            &DataFusionError::Plan("Cannot coerce arithmetic expression Int64 + Utf8View to valid types".into()),
            statement,
        );
        assert_eq!((types.code, types.message.as_str()), (Code::TypeMismatch, "BIGINT + STRING has no meaning"));
    }
}
