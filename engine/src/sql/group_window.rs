//! Old group windows.
use crate::error::Result;
use sqlparser::ast::Query;
/// Stub for compile.
pub(super) fn rewrite(_query: &mut Query) -> Result<()> {
    Ok(())
}
