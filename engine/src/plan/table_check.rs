//! What a table may not say, found when it is created and not when it is first read: clauses that its connector would pass over, and
//! expressions over more than the row.

use datafusion::common::DataFusionError;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::Expr;

use super::diagnose::external;
use crate::catalog::{ColumnSource, TableDef};
use crate::connect::ConnectorSpec;
use crate::error::{Code, Diagnostic, Result};
use crate::sql::ast::CreateTable;
use crate::sql::{closest_name, span_of};

/// Refuses metadata that the connector has not, and `PARTITIONED BY` where it means nothing.
pub(super) fn check_clauses(create: &CreateTable, def: &TableDef, connector: &ConnectorSpec) -> Result<()> {
    for column in &def.columns {
        let ColumnSource::Metadata { key, .. } = &column.source else { continue };
        let keys: Vec<&str> = connector.metadata.iter().map(|(key, _)| *key).collect();
        if keys.contains(&key.as_str()) {
            continue;
        }
        let message = format!(
            "column `{}` of `{}`: the connector '{}' has no metadata '{key}'",
            column.field.name(),
            def.name,
            connector.name
        );
        let hint = match closest_name(key, keys.iter().copied()) {
            Some(near) => format!("did you mean '{near}'?"),
            None if keys.is_empty() => "it has none at all: make the column a physical one, or leave it out".to_owned(),
            None => format!("there are: {}", keys.join(", ")),
        };
        return Err(Diagnostic::new(Code::UnsupportedSchema, message).at(column.span).hint(hint));
    }
    for (at, ident) in def.partitioned_by.iter().zip(&create.partitioned_by) {
        let refused = |message| Diagnostic::new(Code::UnsupportedSchema, message).at(span_of(ident.span));
        if !connector.takes_partitions {
            let message = format!("`{}` can't be PARTITIONED BY: the connector '{}' has no partitions", def.name, connector.name);
            return Err(
                refused(message).hint("leave PARTITIONED BY out; the connector 'filesystem' writes a folder for each value")
            );
        }
        if !matches!(def.columns[*at].source, ColumnSource::Physical) {
            let message = format!("`{}` is PARTITIONED BY `{}`, which is not a physical column", def.name, ident.value);
            return Err(refused(message).hint("a partition's value stands in the path of its files: name a column with a type"));
        }
    }
    Ok(())
}

/// Refuses what is not a value of one row: aggregates, OVER windows, subqueries. `what` names the place, as in "the computed column `a`".
pub(super) fn of_one_row(expr: &Expr, what: &str) -> Result<(), DataFusionError> {
    expr.apply(|part| {
        let (code, found) = match part {
            Expr::AggregateFunction(call) => (Code::NotGrouped, format!("the aggregate function {}", call.func.name())),
            Expr::WindowFunction(_) => (Code::UnsupportedOver, "an OVER window".to_owned()),
            Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_) => {
                (Code::UnsupportedJoin, "a subquery".to_owned())
            }
            Expr::Unnest(_) => (Code::InvalidArgument, "UNNEST".to_owned()),
            Expr::GroupingSet(_) => (Code::NotGrouped, "GROUPING SETS".to_owned()),
            _ => return Ok(TreeNodeRecursion::Continue),
        };
        let message = format!("{found} in {what}, which is made of one row alone");
        Err(external(
            Diagnostic::new(code, message).hint("write it in a query over the table: a VIEW, or the SELECT of the INSERT"),
        ))
    })?;
    Ok(())
}
