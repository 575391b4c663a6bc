//! Expressions that a chain needs more than once are computed once: `lower(channel)` of a filter, and of five branches of a CASE.
//!
//! DataFusion's own elimination of common subexpressions works inside one plan node and leaves what is evaluated conditionally alone. In a
//! fused chain a filter and the projection behind it are one thing, and most of the functions that are dear (texts, regular expressions) can't
//! fail, so that computing them for a row whose branch would not have asked changes nothing. What could fail is computed early only where
//! the first step computes it for every row anyway.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::datatypes::FieldRef;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DFSchemaRef, Result, TableReference};
use datafusion::logical_expr::{Expr, ExprSchemable, Operator, Volatility};

use super::compile::{LogicalStep, column_at, literal, logical_output, needs_time};

/// Functions that give a value or NULL for all arguments of their types, and cost more than a few ns.
const INFALLIBLE: &[&str] = &[
    "lower",
    "upper",
    "btrim",
    "ltrim",
    "rtrim",
    "trim",
    "character_length",
    "octet_length",
    "split_index",
    "count_char",
    "date_part",
    "regexp_extract",
];

/// The most expressions of one group of steps that are shared.
const SHARED_MAX: usize = 16;

/// `steps` with the shared expressions computed before the steps that read them; `None` when there is nothing to share.
pub(super) fn share(input: &DFSchemaRef, steps: &[LogicalStep]) -> Result<Option<Vec<LogicalStep>>> {
    let steps = &flattened(input, steps)?;
    let mut out: Vec<LogicalStep> = Vec::with_capacity(steps.len() + 1);
    let mut changed = false;
    let mut at = 0;
    while at < steps.len() {
        if matches!(steps[at], LogicalStep::Rename(_)) {
            out.push(steps[at].clone());
            at += 1;
            continue;
        }
        // Filters and the projection behind them read the same columns by the same names.
        let filters = steps[at..].iter().take_while(|step| matches!(step, LogicalStep::Filter(_))).count();
        let end = at + filters + usize::from(matches!(steps.get(at + filters), Some(LogicalStep::Project(..))));
        let group = &steps[at..end];
        match shared_of(group) {
            found if found.is_empty() || !matches!(group.last(), Some(LogicalStep::Project(..))) => out.extend_from_slice(group),
            found => {
                let schema = logical_output(input, &out);
                let (first, names) = compute_first(&schema, &found)?;
                out.push(first);
                for step in group {
                    out.push(replaced(step, &names)?);
                }
                changed = true;
            }
        }
        at = end;
    }
    Ok(changed.then_some(out))
}

/// The same steps with as few projections and names as can be, so that an expression looks the same wherever it stands: `url` of a filter
/// that was pushed into a view, and `bid.url` of what reads the view, are one column; and what DataFusion computes first in a projection of
/// its own, for one node, is put back, to be shared by all. A rename may be left at the end.
fn flattened(input: &DFSchemaRef, steps: &[LogicalStep]) -> Result<Vec<LogicalStep>> {
    let mut out: Vec<LogicalStep> = Vec::with_capacity(steps.len());
    let mut renamed: Option<DFSchemaRef> = None;
    for step in steps {
        let before = logical_output(input, &out);
        let names = renamed.clone().unwrap_or_else(|| before.clone());
        let transparent = match out.last() {
            Some(LogicalStep::Project(exprs, _)) if exprs.iter().all(is_transparent) => Some(exprs.clone()),
            _ => None,
        };
        let placed = |expr: &Expr| match &transparent {
            Some(exprs) => substituted(expr, &names, |at| exprs[at].clone().unalias()),
            None if renamed.is_some() => substituted(expr, &names, |at| column_at(&before, at)),
            None => Ok(expr.clone()),
        };
        match step {
            LogicalStep::Rename(schema) => renamed = Some(schema.clone()),
            LogicalStep::Filter(expr) => {
                let filter = LogicalStep::Filter(placed(expr)?);
                out.insert(out.len() - usize::from(transparent.is_some()), filter);
            }
            LogicalStep::Project(exprs, schema) => {
                let exprs = exprs.iter().map(placed).collect::<Result<_>>()?;
                if transparent.is_some() {
                    out.pop();
                }
                out.push(LogicalStep::Project(exprs, schema.clone()));
                renamed = None;
            }
        }
    }
    out.extend(renamed.map(LogicalStep::Rename));
    Ok(out)
}

/// Whether a projected expression may be put in place of its name: a column, or what elimination of common subexpressions has taken out and
/// sharing will take out again.
fn is_transparent(expr: &Expr) -> bool {
    match expr {
        Expr::Column(_) => true,
        Expr::Alias(alias) if matches!(*alias.expr, Expr::Column(_)) => true,
        Expr::Alias(alias) => alias.name.starts_with("__common_expr") && is_dear(&alias.expr) && is_infallible(&alias.expr),
        _ => false,
    }
}

/// `expr` with `at(i)` in place of column `i` of `names`.
fn substituted(expr: &Expr, names: &DFSchema, at: impl Fn(usize) -> Expr) -> Result<Expr> {
    let replaced = expr.clone().transform_down(|e| match &e {
        Expr::Column(column) => Ok(Transformed::new(at(names.index_of_column(column)?), true, TreeNodeRecursion::Jump)),
        _ => Ok(Transformed::no(e)),
    })?;
    Ok(replaced.data)
}

fn exprs_of(step: &LogicalStep) -> &[Expr] {
    match step {
        LogicalStep::Filter(expr) => std::slice::from_ref(expr),
        LogicalStep::Project(exprs, _) => exprs,
        LogicalStep::Rename(_) => &[],
    }
}

/// The largest expressions that a group of steps computes more than once and that may be computed first, in the order of their first use.
fn shared_of(group: &[LogicalStep]) -> Vec<Expr> {
    let mut counts: HashMap<Expr, usize> = HashMap::new();
    let mut order = Vec::new();
    for expr in group.iter().flat_map(exprs_of) {
        let _ = expr.apply(|e| {
            if is_dear(e) {
                let count = counts.entry(e.clone()).or_default();
                *count += 1;
                if *count == 1 {
                    order.push(e.clone());
                }
            }
            Ok(TreeNodeRecursion::Continue)
        });
    }
    let mut always = HashSet::new();
    for expr in group.first().into_iter().flat_map(exprs_of) {
        collect_unconditional(expr, &mut always);
    }
    let mut chosen: Vec<Expr> = Vec::new();
    for expr in order {
        if chosen.len() == SHARED_MAX || counts[&expr] < 2 || !(always.contains(&expr) || is_infallible(&expr)) {
            continue;
        }
        // A part of a chosen one is of no use unless it stands elsewhere too.
        let inside: usize = chosen.iter().map(|whole| counts[whole] * occurrences(whole, &expr)).sum();
        if counts[&expr] > inside {
            chosen.push(expr);
        }
    }
    chosen
}

fn occurrences(whole: &Expr, part: &Expr) -> usize {
    let mut count = 0;
    let _ = whole.apply(|e| {
        count += usize::from(e == part);
        Ok(TreeNodeRecursion::Continue)
    });
    count
}

/// Worth a column: a function, or arithmetic with a column in it.
fn is_dear(expr: &Expr) -> bool {
    let reads = || !expr.column_refs().is_empty();
    match expr {
        Expr::ScalarFunction(call) => {
            let is_field_access = matches!(call.name(), "get_field" | "named_struct" | "make_array");
            call.func.signature().volatility == Volatility::Immutable && !is_field_access && reads() && !needs_time(expr)
        }
        Expr::BinaryExpr(binary) => {
            matches!(binary.op, Operator::Multiply | Operator::Divide | Operator::Modulo) && reads() && !needs_time(expr)
        }
        _ => false,
    }
}

/// Whether no row can make `expr` fail: columns, literals, casts of a column to text, and functions of the list over such.
fn is_infallible(expr: &Expr) -> bool {
    match expr {
        Expr::Column(_) | Expr::Literal(..) => true,
        Expr::Alias(alias) => is_infallible(&alias.expr),
        Expr::Cast(_) => literal(expr).is_some(),
        Expr::ScalarFunction(call) => {
            let name = call.name();
            // A bad pattern fails whatever the row; only a constant one is known to be the same for all.
            let constant = name != "regexp_extract" || call.args.iter().skip(1).all(|arg| literal(arg).is_some());
            INFALLIBLE.contains(&name) && constant && call.args.iter().all(is_infallible)
        }
        _ => false,
    }
}

/// Adds the parts of `expr` that are evaluated for every row.
fn collect_unconditional(expr: &Expr, out: &mut HashSet<Expr>) {
    if is_dear(expr) {
        out.insert(expr.clone());
    }
    match expr {
        Expr::Alias(alias) => collect_unconditional(&alias.expr, out),
        Expr::Cast(cast) => collect_unconditional(&cast.expr, out),
        Expr::Not(inner) | Expr::IsNull(inner) | Expr::IsNotNull(inner) | Expr::Negative(inner) => {
            collect_unconditional(inner, out)
        }
        Expr::BinaryExpr(binary) => {
            collect_unconditional(&binary.left, out);
            if !matches!(binary.op, Operator::And | Operator::Or) {
                collect_unconditional(&binary.right, out);
            }
        }
        Expr::Case(case) => match (&case.expr, case.when_then_expr.first()) {
            (Some(operand), _) => collect_unconditional(operand, out),
            (None, Some((when, _))) => collect_unconditional(when, out),
            (None, None) => {}
        },
        Expr::Between(between) => collect_unconditional(&between.expr, out),
        Expr::InList(list) => collect_unconditional(&list.expr, out),
        _ => {}
    }
}

/// The step that computes `shared` beside all columns of `schema`, and the column of each.
fn compute_first(schema: &DFSchemaRef, shared: &[Expr]) -> Result<(LogicalStep, HashMap<Expr, Expr>)> {
    let mut fields: Vec<(Option<TableReference>, FieldRef)> = schema.iter().map(|(q, f)| (q.cloned(), f.clone())).collect();
    let mut exprs: Vec<Expr> = (0..fields.len()).map(|at| column_at(schema, at)).collect();
    let mut names = HashMap::new();
    for (number, expr) in shared.iter().enumerate() {
        let name = format!("__shared{number}");
        let (_, field) = expr.to_field(schema.as_ref())?;
        fields.push((None, Arc::new(field.as_ref().clone().with_name(&name))));
        exprs.push(expr.clone());
        names.insert(expr.clone(), Expr::Column(Column::new_unqualified(name)));
    }
    let schema = DFSchema::new_with_metadata(fields, HashMap::new())?;
    Ok((LogicalStep::Project(exprs, Arc::new(schema)), names))
}

fn replaced(step: &LogicalStep, names: &HashMap<Expr, Expr>) -> Result<LogicalStep> {
    let replace = |expr: &Expr| -> Result<Expr> {
        let replaced = expr.clone().transform_down(|e| {
            Ok(match names.get(&e) {
                Some(column) => Transformed::new(column.clone(), true, TreeNodeRecursion::Jump),
                None => Transformed::no(e),
            })
        });
        replaced.map(|t| t.data)
    };
    Ok(match step {
        LogicalStep::Filter(expr) => LogicalStep::Filter(replace(expr)?),
        LogicalStep::Project(exprs, schema) => {
            LogicalStep::Project(exprs.iter().map(replace).collect::<Result<_>>()?, schema.clone())
        }
        LogicalStep::Rename(schema) => LogicalStep::Rename(schema.clone()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::functions::expr_fn::{lower, upper};
    use datafusion::logical_expr::{binary_expr, col, lit, when};

    use super::*;

    fn input() -> DFSchemaRef {
        let fields = vec![Field::new("a", DataType::Int64, true), Field::new("t", DataType::Utf8View, true)];
        Arc::new(DFSchema::try_from(Schema::new(fields)).unwrap())
    }

    fn project(expr: Expr) -> LogicalStep {
        let schema =
            DFSchema::new_with_metadata(vec![(None, Arc::new(Field::new("out", DataType::Utf8View, true)))], HashMap::new())
                .unwrap();
        LogicalStep::Project(vec![expr], Arc::new(schema))
    }

    fn shared(steps: &[LogicalStep]) -> Vec<String> {
        let Some(steps) = share(&input(), steps).unwrap() else { return Vec::new() };
        let LogicalStep::Project(exprs, _) = &steps[0] else { panic!("{steps:?}") };
        exprs[2..].iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_function_of_a_filter_and_of_branches_is_computed_once() {
        let case = when(lower(col("t")).eq(lit("x")), lit(1)).when(lower(col("t")).eq(lit("y")), lit(2)).end().unwrap();
        assert_eq!(shared(&[project(case.clone())]), ["lower(t)"]);
        let filter = LogicalStep::Filter(col("a").gt(lit(1i64)).or(upper(lower(col("t"))).is_not_null()));
        assert_eq!(shared(&[filter.clone(), project(case)]), ["lower(t)"]);
        assert_eq!(
            shared(&[filter.clone(), project(upper(lower(col("t"))))]),
            ["upper(lower(t))"],
            "the part stands in it alone"
        );
        assert_eq!(shared(&[filter, project(col("t"))]), [""; 0]);
    }

    #[test]
    fn a_view_between_a_filter_and_a_projection_hides_nothing() {
        let renamed: Vec<_> = input().iter().map(|(_, field)| (Some(TableReference::bare("bid")), field.clone())).collect();
        let rename = LogicalStep::Rename(Arc::new(DFSchema::new_with_metadata(renamed, HashMap::new()).unwrap()));
        let filter = LogicalStep::Filter(lower(col("t")).is_not_null());
        let steps = [filter.clone(), rename.clone(), project(lower(col("bid.t")))];
        assert_eq!(shared(&steps), ["lower(t)"]);
        let twice = LogicalStep::Filter(lower(col("bid.t")).eq(lit("x")));
        let kept = flattened(&input(), &[filter, rename, twice]).unwrap();
        assert!(
            matches!(&kept[..], [LogicalStep::Filter(_), LogicalStep::Filter(e), LogicalStep::Rename(_)] if e.to_string() == "lower(t) = Utf8(\"x\")"),
            "{kept:?}"
        );
    }

    #[test]
    fn what_was_taken_out_for_one_node_is_shared_by_all() {
        let upper_of_lower = upper(lower(col("t")));
        let named = |expr: &Expr| (None, Arc::new(expr.to_field(input().as_ref()).unwrap().1.as_ref().clone()));
        let taken_out = vec![lower(col("t")).alias("__common_expr_1"), col("t")];
        let schema = DFSchema::new_with_metadata(taken_out.iter().map(named).collect(), HashMap::new()).unwrap();
        let first = LogicalStep::Project(taken_out, Arc::new(schema));
        let filter = LogicalStep::Filter(upper_of_lower.clone().is_not_null());
        let last = project(upper(col("__common_expr_1")).eq(col("__common_expr_1")));
        let flat = flattened(&input(), &[filter.clone(), first.clone(), last.clone()]).unwrap();
        assert!(
            matches!(&flat[..], [LogicalStep::Filter(_), LogicalStep::Project(e, _)] if e[0].to_string() == "upper(lower(t)) = lower(t)"),
            "{flat:?}"
        );
        assert_eq!(shared(&[filter, first.clone(), last]), ["upper(lower(t))", "lower(t)"]);
        let behind = LogicalStep::Filter(col("__common_expr_1").eq(lit("x")));
        let flat = flattened(&input(), &[first, behind]).unwrap();
        assert!(
            matches!(&flat[..], [LogicalStep::Filter(e), LogicalStep::Project(..)] if e.to_string() == "lower(t) = Utf8(\"x\")"),
            "{flat:?}"
        );
    }

    #[test]
    fn what_may_fail_is_shared_only_where_every_row_computes_it_first() {
        let quotient = || binary_expr(lit(10i64), Operator::Divide, col("a"));
        let guarded = LogicalStep::Filter(col("a").gt(lit(0i64)).and(quotient().gt(lit(1i64))));
        assert_eq!(shared(&[guarded, project(quotient())]), [""; 0], "10 / a is behind a > 0");
        let open = LogicalStep::Filter(quotient().gt(lit(1i64)).and(col("a").gt(lit(0i64))));
        assert_eq!(shared(&[open, project(quotient())]), ["Int64(10) / a"]);
    }
}
