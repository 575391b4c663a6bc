//! What can go wrong, as a value: a code (`TR-nnnn`), one sentence, the object, the place in the SQL, what to do.
//!
//! One shape serves the planner, the rows at run time and the connectors, because a user reads all of them the same way: in the
//! terminal, in a condition of the custom resource, in a dead-letter row. What a *caller* can do differently is the [`Code`]'s
//! [`Class`]; nobody matches on message text.

mod code;
pub(crate) mod library_words;

use std::fmt;

pub use code::{Class, Code};

/// A place in the SQL text of a job: byte offsets, `start <= end`, both on character boundaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset behind the last byte.
    pub end: usize,
}

impl Span {
    /// The smallest span that covers both.
    #[must_use]
    pub fn to(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

/// One problem, told to a person.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostic {
    /// What kind of problem; has a page `docs/errors/TR-nnnn.md`.
    pub code: Code,
    /// One sentence that names the object ("table `orders`", "operator `GroupAggregate#3`", "file a.json, line 7").
    pub message: String,
    /// What to write or do instead.
    pub hint: Option<String>,
    /// Where in the SQL, if it comes from there.
    pub span: Option<Span>,
}

impl Diagnostic {
    /// A problem without place or hint.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, span: None }
    }

    /// The same with a place in the SQL.
    #[must_use]
    pub fn at(mut self, span: impl Into<Option<Span>>) -> Self {
        self.span = span.into().or(self.span);
        self
    }

    /// The same with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Who has to act.
    #[must_use]
    pub fn class(&self) -> Class {
        self.code.class()
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// All that is wrong with a job; never empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl From<Diagnostic> for Diagnostics {
    fn from(one: Diagnostic) -> Self {
        Self(vec![one])
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, one) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            one.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// The result of most functions of the engine.
pub type Result<T, E = Diagnostic> = std::result::Result<T, E>;
