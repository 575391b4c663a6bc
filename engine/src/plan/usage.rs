//! Which columns, fields and rows of a table a job reads: what a source need not build.

use std::collections::{BTreeMap, BTreeSet};

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator, TableScan};

use super::session::Leaf;

/// What is read of one table, over all its readers.
#[derive(Clone, Debug, Default)]
pub(super) struct TableUsage {
    /// The columns, by index in the table's schema, with what is read of each.
    pub columns: BTreeMap<usize, ColumnUsage>,
    /// For each reader that has one: the column and the values that it keeps (`event_type = 2`); `None` once a reader wants all rows.
    pub only: Option<Vec<(usize, Vec<ScalarValue>)>>,
    readers: usize,
}

/// What is read of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ColumnUsage {
    /// All of it.
    Whole,
    /// These fields of a ROW.
    Fields(BTreeSet<String>),
}

impl ColumnUsage {
    pub(super) fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Whole, _) => {}
            (_, Self::Whole) => *self = Self::Whole,
            (Self::Fields(all), Self::Fields(more)) => all.extend(more),
        }
    }
}

impl TableUsage {
    /// All of a table with so many columns, and all rows.
    pub(super) fn want_all(&mut self, columns: usize) {
        self.columns = (0..columns).map(|column| (column, ColumnUsage::Whole)).collect();
        self.only = None;
    }

    pub(super) fn add_column(&mut self, column: usize, usage: ColumnUsage) {
        match self.columns.entry(column) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(usage);
            }
            std::collections::btree_map::Entry::Occupied(mut place) => place.get_mut().add(usage),
        }
    }
}

/// Adds what `plan` reads of each table, by the leaf's name.
pub(super) fn collect(plan: &LogicalPlan, usages: &mut BTreeMap<String, TableUsage>) -> Result<()> {
    // The stateless nodes between a scan and the first projection above it decide; walk down with them in hand.
    walk(plan, &mut Vec::new(), usages)
}

/// Whether `plan` reads the leaf of that name.
pub(super) fn reads(plan: &LogicalPlan, name: &str) -> bool {
    let mut found = false;
    let walked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && scan.source.downcast_ref::<Leaf>().is_some_and(|leaf| leaf.name == name)
        {
            found = true;
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    // A walk that can't be done tells nothing: better to say that it is read.
    found || walked.is_err()
}

fn walk<'p>(plan: &'p LogicalPlan, above: &mut Vec<&'p LogicalPlan>, usages: &mut BTreeMap<String, TableUsage>) -> Result<()> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            add_scan(scan, above, usages)?;
        }
        LogicalPlan::Filter(_) | LogicalPlan::Projection(_) => {
            above.push(plan);
            for input in plan.inputs() {
                walk(input, above, usages)?;
            }
            above.pop();
        }
        LogicalPlan::SubqueryAlias(_) => {
            // Columns change their qualifier: what stands above can't be read against the scan. Projections below still can.
            for input in plan.inputs() {
                walk(input, &mut Vec::new(), usages)?;
            }
        }
        _ => {
            for input in plan.inputs() {
                walk(input, &mut Vec::new(), usages)?;
            }
        }
    }
    Ok(())
}

fn add_scan(scan: &TableScan, above: &[&LogicalPlan], usages: &mut BTreeMap<String, TableUsage>) -> Result<()> {
    let Some(leaf) = scan.source.downcast_ref::<Leaf>() else { return Ok(()) };
    let usage = usages.entry(leaf.name.clone()).or_default();
    let schema = scan.source.schema();
    let columns: Vec<usize> = scan.projection.clone().unwrap_or_else(|| (0..schema.fields().len()).collect());
    // From the scan upwards to the first projection.
    let mut filters = Vec::new();
    let mut exprs: Option<Vec<&Expr>> = None;
    for node in above.iter().rev() {
        match node {
            LogicalPlan::Filter(filter) => filters.push(&filter.predicate),
            LogicalPlan::Projection(projection) => {
                exprs = Some(projection.expr.iter().collect());
                break;
            }
            _ => break,
        }
    }
    match exprs {
        Some(projected) => {
            for expr in projected.iter().copied().chain(filters.iter().copied()) {
                add_expr(expr, scan, &columns, usage)?;
            }
        }
        None => {
            for column in &columns {
                usage.add_column(*column, ColumnUsage::Whole);
            }
        }
    }
    let kept = filters.iter().find_map(|predicate| kept_values(predicate, scan, &columns));
    usage.only = match (usage.readers, usage.only.take(), kept) {
        (0, _, Some(kept)) => Some(vec![kept]),
        (_, Some(mut all), Some(kept)) => {
            all.push(kept);
            Some(all)
        }
        _ => None,
    };
    usage.readers += 1;
    Ok(())
}

fn add_expr(expr: &Expr, scan: &TableScan, columns: &[usize], usage: &mut TableUsage) -> Result<()> {
    expr.apply(|e| {
        if let Some((column, field)) = field_access(e)
            && let Some(at) = scan.projected_schema.maybe_index_of_column(column)
        {
            usage.add_column(columns[at], ColumnUsage::Fields([field.to_owned()].into()));
            return Ok(TreeNodeRecursion::Jump);
        }
        if let Expr::Column(column) = e
            && let Some(at) = scan.projected_schema.maybe_index_of_column(column)
        {
            usage.add_column(columns[at], ColumnUsage::Whole);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// `column['field']`, as `get_field(column, 'field', …)`.
pub(super) fn field_access(expr: &Expr) -> Option<(&datafusion::common::Column, &str)> {
    let Expr::ScalarFunction(call) = expr else { return None };
    if call.name() != "get_field" {
        return None;
    }
    let [Expr::Column(column), Expr::Literal(name, _), ..] = call.args.as_slice() else { return None };
    name.try_as_str().flatten().map(|field| (column, field))
}

/// The column and constants of the first conjunct `column = constant` or `column = a OR column = b`.
fn kept_values(predicate: &Expr, scan: &TableScan, columns: &[usize]) -> Option<(usize, Vec<ScalarValue>)> {
    match predicate {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            kept_values(left, scan, columns).or_else(|| kept_values(right, scan, columns))
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let (a, mut values) = kept_values(left, scan, columns)?;
            let (b, more) = kept_values(right, scan, columns)?;
            values.extend(more);
            (a == b).then_some((a, values))
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => match (&**left, &**right) {
            (Expr::Column(column), Expr::Literal(value, _)) | (Expr::Literal(value, _), Expr::Column(column)) => {
                let at = scan.projected_schema.maybe_index_of_column(column)?;
                Some((columns[at], vec![value.clone()]))
            }
            _ => None,
        },
        _ => None,
    }
}
