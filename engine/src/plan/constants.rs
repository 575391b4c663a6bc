//! Constants that can't be right, told when the job is planned and not when its first row comes: `CAST('2020-13-01' AS DATE)`, the name of a
//! time zone that there is not, a pattern that can't be read.
//!
//! An expression without columns is computed. A call of which only some arguments are constants is computed with a harmless value for each
//! of the others; what is told then is only what is wrong with an argument whatever the row ([`Code::InvalidArgument`]).

use std::ops::ControlFlow;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Schema, TimeUnit};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DataFusionError, ExprSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, LogicalPlan, Operator, Volatility};
use sqlparser::ast::{self, Spanned, Visit, Visitor};

use super::compile::physical;
use super::diagnose::external;
use crate::error::{Code, Diagnostic, Span};
use crate::operators::chain::classify;
use crate::sql::span_of;

/// Functions of DataFusion that are computed with harmless values, too. Any error of theirs is one of the constants.
const FOREIGN: &[&str] = &[
    "array_slice",
    "date_bin",
    "date_part",
    "date_trunc",
    "digest",
    "encode",
    "lpad",
    "make_date",
    "overlay",
    "regexp_count",
    "regexp_instr",
    "regexp_like",
    "regexp_match",
    "regexp_replace",
    "rpad",
    "split_part",
    "substr",
];

/// Functions that DataFusion turns into other expressions before anything is computed: they can't be computed as they are.
const SIMPLIFIED_AWAY: &[&str] = &["coalesce", "nvl", "nvl2", "ifnull"];

/// What is wrong, and the constants to look for in the SQL.
struct Fault {
    error: Box<Diagnostic>,
    texts: Vec<String>,
    function: Option<String>,
}

/// Checks every expression of an analyzed plan; `ast` is where the places are looked up.
pub(super) fn check(plan: &LogicalPlan, ast: &impl Visit) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        let schema = merge_schema(&node.inputs());
        node.apply_expressions(|expr| {
            check_expr(expr, &schema, ast)?;
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(())
}

/// Checks one expression over the columns of `schema`.
pub(super) fn check_expr(expr: &Expr, schema: &DFSchema, ast: &impl Visit) -> Result<()> {
    expr.apply(|part| {
        if is_constant(part) {
            if !matches!(part, Expr::Literal(..)) {
                compute(part, part).map_err(|fault| placed(fault, ast))?;
            }
            return Ok(TreeNodeRecursion::Jump);
        }
        if let Some(sample) = with_samples(part, schema)
            && let Err(fault) = compute(&sample, part)
            && is_argument(&sample, &fault)
        {
            return Err(placed(fault, ast));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// Whether a value is the same for all rows and always.
fn is_constant(expr: &Expr) -> bool {
    let mut is_constant = true;
    let walked = expr.apply(|part| {
        is_constant &= match part {
            Expr::Literal(..)
            | Expr::Alias(_)
            | Expr::BinaryExpr(_)
            | Expr::Like(_)
            | Expr::SimilarTo(_)
            | Expr::Not(_)
            | Expr::IsNull(_)
            | Expr::IsNotNull(_)
            | Expr::Negative(_)
            | Expr::Between(_)
            | Expr::Case(_)
            | Expr::Cast(_)
            | Expr::TryCast(_)
            | Expr::InList(_) => true,
            Expr::ScalarFunction(call) => {
                call.func.signature().volatility == Volatility::Immutable && !SIMPLIFIED_AWAY.contains(&call.func.name())
            }
            _ => false,
        };
        Ok(if is_constant { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    walked.is_ok() && is_constant
}

/// The call with a harmless value for each argument that is no constant; `None` when there is nothing to find out.
fn with_samples(expr: &Expr, schema: &dyn ExprSchema) -> Option<Expr> {
    let sampled = |arg: &Expr| -> Option<Expr> {
        if is_constant(arg) {
            return Some(arg.clone());
        }
        sample(&arg.get_type(schema).ok()?).map(|value| Expr::Literal(value, None))
    };
    let says_something = |args: &[&Expr]| args.iter().any(|arg| is_constant(arg));
    match expr {
        Expr::ScalarFunction(call) => {
            let is_checked = crate::functions::builtin(call.func.name()).is_ok() || FOREIGN.contains(&call.func.name());
            let args: Vec<&Expr> = call.args.iter().collect();
            if !is_checked || call.func.signature().volatility != Volatility::Immutable || !says_something(&args) {
                return None;
            }
            let args = args.into_iter().map(sampled).collect::<Option<Vec<_>>>()?;
            Some(Expr::ScalarFunction(ScalarFunction::new_udf(call.func.clone(), args)))
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right })
            if matches!(
                op,
                Operator::RegexMatch | Operator::RegexIMatch | Operator::RegexNotMatch | Operator::RegexNotIMatch
            ) && is_constant(right) =>
        {
            let left = Box::new(sampled(left)?);
            Some(Expr::BinaryExpr(BinaryExpr { left, op: *op, right: right.clone() }))
        }
        _ => None,
    }
}

/// A value that no function finds fault with.
fn sample(kind: &DataType) -> Option<ScalarValue> {
    Some(match kind {
        DataType::Utf8 => ScalarValue::Utf8(Some("a".into())),
        DataType::LargeUtf8 => ScalarValue::LargeUtf8(Some("a".into())),
        DataType::Utf8View => ScalarValue::Utf8View(Some("a".into())),
        DataType::Binary => ScalarValue::Binary(Some(b"a".to_vec())),
        DataType::Boolean => ScalarValue::Boolean(Some(true)),
        DataType::Date32 => ScalarValue::Date32(Some(0)),
        DataType::Timestamp(TimeUnit::Microsecond, zone) => ScalarValue::TimestampMicrosecond(Some(0), zone.clone()),
        number if number.is_numeric() => ScalarValue::new_one(number).ok()?,
        _ => return None,
    })
}

/// Whether the fault is one of the constants and not of the harmless values.
fn is_argument(sample: &Expr, fault: &Fault) -> bool {
    let is_foreign = match sample {
        Expr::ScalarFunction(call) => FOREIGN.contains(&call.func.name()),
        _ => true,
    };
    is_foreign || fault.error.code == Code::InvalidArgument
}

/// Computes `expr`, which has no columns; a fault is told about `told`.
fn compute(expr: &Expr, told: &Expr) -> Result<(), Fault> {
    let one_row = RecordBatch::try_new_with_options(
        std::sync::Arc::new(Schema::empty()),
        Vec::new(),
        &RecordBatchOptions::new().with_row_count(Some(1)),
    );
    let computed = one_row.map_err(DataFusionError::from).and_then(|row| physical(expr, &DFSchema::empty())?.evaluate(&row));
    let Err(error) = computed else { return Ok(()) };
    let (code, message) = classify(&error);
    // What a function says about an argument comes with its advice.
    let hint = match error.find_root() {
        DataFusionError::External(inner) => inner.downcast_ref::<Diagnostic>().and_then(|own| own.hint.clone()),
        _ => None,
    };
    // What a row would be told at run time has a code of its own when it is so for all of them.
    let code = match code {
        Code::RowExpression => Code::InvalidArgument,
        Code::InvalidCast => Code::TypeMismatch,
        other => other,
    };
    let mut texts = Vec::new();
    let _always_walks = told.apply(|part| {
        if let Expr::Literal(value, _) = part
            && let Some(text) = value.try_as_str().flatten()
        {
            texts.extend((!text.is_empty()).then(|| text.to_owned()));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    // The text that the message shows is the one that is wrong.
    texts.sort_by_key(|text| !message.contains(text.as_str()));
    let (code, message) = match texts.last() {
        // DataFusion's message has the pattern drawn in several lines.
        Some(pattern) if message.contains("Regular expression did not compile") => {
            (Code::InvalidArgument, format!("'{pattern}' is no regular expression"))
        }
        _ => (code, message),
    };
    let function = match told {
        Expr::ScalarFunction(call) => Some(call.func.name().to_owned()),
        _ => None,
    };
    let error = Diagnostic::new(code, message).hint(hint.unwrap_or_else(|| "this constant is wrong for every row".to_owned()));
    Err(Fault { error: Box::new(error), texts, function })
}

fn placed(fault: Fault, ast: &impl Visit) -> DataFusionError {
    let mut search = Search { fault: &fault, best: None };
    let _ = ast.visit(&mut search);
    let span = search.best.map(|(_, span)| span);
    external(fault.error.at(span))
}

/// Looks for the constant, or else for the call, that a fault is about.
struct Search<'f> {
    fault: &'f Fault,
    /// The rank of what was found, 0 the best, and where it stands.
    best: Option<(usize, Span)>,
}

impl Visitor for Search<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<()> {
        let (text, span) = match expr {
            ast::Expr::Value(value) => (value.value.clone().into_string(), value.span),
            ast::Expr::TypedString(typed) => (typed.value.value.clone().into_string(), typed.value.span),
            ast::Expr::Function(call) => {
                let is_it = self.fault.function.as_ref().is_some_and(|name| call.name.to_string().eq_ignore_ascii_case(name));
                if is_it {
                    self.keep(usize::MAX, span_of(call.name.span()));
                }
                return ControlFlow::Continue(());
            }
            _ => return ControlFlow::Continue(()),
        };
        let rank = text.and_then(|text| self.fault.texts.iter().position(|wanted| *wanted == text));
        if let Some(rank) = rank {
            self.keep(rank, span_of(span));
        }
        ControlFlow::Continue(())
    }
}

impl Search<'_> {
    fn keep(&mut self, rank: usize, span: Option<Span>) {
        if let Some(span) = span
            && self.best.is_none_or(|(best, _)| rank < best)
        {
            self.best = Some((rank, span));
        }
    }
}
