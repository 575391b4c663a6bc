//! The paths of `JSON_VALUE` and its like: `$.a.b[0]`, `$['a b']`, with `lax` or `strict` before.

use serde_json::Value;

use datafusion::common::Result;

use super::call::error_with_hint;
use crate::error::Code;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(usize),
}

/// A path, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path(Vec<Step>);

impl Path {
    /// Reads a path. Wildcards and filters are refused.
    pub(super) fn parse(text: &str) -> Result<Self> {
        Self::steps(text).map(Self).ok_or_else(|| {
            error_with_hint(
                Code::InvalidArgument,
                format!("'{text}' is no JSON path that is known here"),
                "write $.field, $.field.field, $.field[0] or $['field']",
            )
        })
    }

    fn steps(text: &str) -> Option<Vec<Step>> {
        let text = text.trim();
        let text = text.strip_prefix("lax ").or_else(|| text.strip_prefix("strict ")).unwrap_or(text).trim_start();
        let mut rest = text.strip_prefix('$')?;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(more) = rest.strip_prefix('.') {
                let end = more.find(['.', '[']).unwrap_or(more.len());
                let name = more[..end].trim_matches('"');
                if name.is_empty() || name == "*" || name.contains(['(', '?', '@']) {
                    return None;
                }
                steps.push(Step::Field(name.to_owned()));
                rest = &more[end..];
            } else {
                let more = rest.strip_prefix('[')?;
                let (inner, behind) = more.split_once(']')?;
                let quoted = inner
                    .strip_prefix('\'')
                    .and_then(|i| i.strip_suffix('\''))
                    .or_else(|| inner.strip_prefix('"').and_then(|i| i.strip_suffix('"')));
                steps.push(match quoted {
                    Some(name) => Step::Field(name.to_owned()),
                    None => Step::Index(inner.trim().parse().ok()?),
                });
                rest = behind;
            }
        }
        Some(steps)
    }

    /// What it leads to.
    pub(super) fn follow<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        self.0.iter().try_fold(value, |value, step| match step {
            Step::Field(name) => value.get(name),
            Step::Index(index) => value.get(index),
        })
    }
}
