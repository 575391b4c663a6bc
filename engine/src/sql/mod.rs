//! The SQL language: text in, typed statements out. Knows the syntax, not the catalog: names are not looked up here.
//!
//! ```text
//! text ─ text: ${name} ─▶ text + offset map ─ tokens ─▶ statements' tokens ─ parser ─▶ Statement
//!                                             places are offsets                │ own rules: CREATE TABLE, EMIT, SET, …
//!                                             in the user's text                │ sqlparser: queries, expressions, types
//!                                                                               ▼
//!                                        rewrite: group windows ─▶ window table functions, INTERVAL literals ─▶ one form
//! ```
//! Every place in the syntax tree, sqlparser's own nodes included, is an offset in the text that the user wrote: [`span_of`] turns the
//! one into the other, with no table beside it. So an error of the planner, too, points at the right character, whatever `${…}` stood before it.

pub mod ast;
mod dialect;
mod emit;
mod group_window;
mod hints;
mod ignored;
pub mod interval;
mod keyword;
pub mod names;
mod options;
mod parser;
mod query;
mod rewrite;
mod spelling;
mod statement;
mod syntax_error;
mod table;
mod text;
mod tokens;
pub mod types;
mod unique_names;
mod unnest;
pub mod window;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use ast::{Script, Statement, StatementKind};
pub use dialect::TideraceDialect;
pub use keyword::closest as closest_name;
pub use parser::Partial;
pub use tokens::{span_of, span_of_node};

use crate::error::Diagnostics;

/// The longest job text that is read, after substitution.
pub const SCRIPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// As [`parse`], for who can go on with the right statements to find what is wrong with those, too.
pub fn parse_partial(text: &str, variables: &BTreeMap<String, String>) -> Partial {
    parser::parse_what_can_be(text, variables)
}

/// Parses all statements of a job. `${name}` is replaced by `variables[name]` first.
///
/// Either every statement is right, or all errors that could be found come back: after a broken statement it goes on behind the next `;`.
pub fn parse(text: &str, variables: &BTreeMap<String, String>) -> Result<Script, Diagnostics> {
    parser::parse_script(text, variables)
}
