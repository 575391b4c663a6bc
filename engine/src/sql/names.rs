//! How names are compared: unquoted ones without regard to case, quoted ones exactly. The spelling of a definition is always kept.

use sqlparser::ast::{Ident, ObjectName, ObjectNamePart};

use super::tokens::span_of;
use crate::error::{Code, Diagnostic, Result, Span};

/// The last part of a name, as spelled: `t` of `catalog.db.t`.
#[must_use]
pub fn last(name: &ObjectName) -> String {
    last_ident(name).map_or_else(|| name.to_string(), |ident| ident.value.clone())
}

/// The last part of a name.
#[must_use]
pub fn last_ident(name: &ObjectName) -> Option<&Ident> {
    name.0.iter().rev().find_map(ObjectNamePart::as_ident)
}

/// Where a name stands.
#[must_use]
pub fn span(name: &ObjectName) -> Option<Span> {
    let mut spans = name.0.iter().filter_map(ObjectNamePart::as_ident).filter_map(|ident| span_of(ident.span));
    let first = spans.next()?;
    Some(spans.fold(first, Span::to))
}

/// Whether `ident` may mean `name`.
#[must_use]
pub fn matches(ident: &Ident, name: &str) -> bool {
    ident.value == name || (ident.quote_style.is_none() && ident.value.to_lowercase() == name.to_lowercase())
}

/// Which of `names` an identifier means: the one spelled exactly so, else the only one that differs in case alone. `None` when there is
/// none, or more than one.
pub fn position<'n>(ident: &Ident, names: impl IntoIterator<Item = &'n str>) -> Option<usize> {
    resolve(ident, names).ok().flatten()
}

/// As [`position`], but several candidates are an error that names them.
pub fn resolve<'n>(ident: &Ident, names: impl IntoIterator<Item = &'n str>) -> Result<Option<usize>> {
    let mut near: Option<(usize, &str)> = None;
    let mut other: Option<&str> = None;
    for (index, name) in names.into_iter().enumerate() {
        if ident.value == name {
            return Ok(Some(index));
        }
        if matches(ident, name) {
            match near {
                None => near = Some((index, name)),
                Some(_) => other = Some(name),
            }
        }
    }
    match (near, other) {
        (Some((_, first)), Some(second)) => {
            Err(Diagnostic::new(Code::AmbiguousName, format!("`{}` may mean `{first}` or `{second}`", ident.value))
                .at(span_of(ident.span))
                .hint("write it as it was created, in double quotes"))
        }
        (near, _) => Ok(near.map(|(index, _)| index)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn unquoted_names_match_without_case_and_quoted_ones_exactly() {
        let names = ["dateTime", "Id", "id"];
        assert_eq!(position(&Ident::new("DATETIME"), names), Some(0));
        assert_eq!(position(&Ident::with_quote('`', "datetime"), names), None);
        assert_eq!(position(&Ident::with_quote('"', "dateTime"), names), Some(0));
        assert_eq!(position(&Ident::new("id"), names), Some(2));
        assert_eq!(resolve(&Ident::new("ID"), names).unwrap_err().code, Code::AmbiguousName);
    }
}
