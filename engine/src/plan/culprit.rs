//! Which part of a query a planning error is about, where the error itself doesn't tell: found by trying.
//!
//! The query is planned again with one expression after the other taken out (NULL in its place). Where the error goes away, there it was.
//! Then each part of that expression is tried alone in its place, as long as the error stays the same: `a + upper(b, c)` comes down to
//! `upper(b, c)`. This is done for errors only, and for no more than [`ATTEMPTS_MAX`] plans.

use std::ops::ControlFlow;

use datafusion::common::DataFusionError;
use sqlparser::ast::{CastKind, Expr, Value, Visit, VisitMut, Visitor, VisitorMut};

use crate::error::Span;
use crate::error::library_words::closing;
use crate::sql::span_of_node;

/// The most plans that are made to find a place.
const ATTEMPTS_MAX: usize = 60;
/// The most expressions, with their parts, of a query in which a place is looked for: longer ones take long to plan.
const EXPRESSIONS_MAX: usize = 300;

/// The place in `text` of the expression of `ast` that `error` is about; `None` when it is about none alone.
pub(super) fn find<A: Clone + Visit + VisitMut>(
    ast: &A,
    text: &str,
    error: &DataFusionError,
    attempt: impl Fn(&A) -> Result<(), DataFusionError>,
) -> Option<Span> {
    let mut count = Count(0);
    let _: ControlFlow<()> = Visit::visit(ast, &mut count);
    if count.0 > EXPRESSIONS_MAX {
        return None;
    }
    let wanted = error.strip_backtrace();
    let mut left = ATTEMPTS_MAX;
    // Whether the query has the same error with `expr` in place of the outermost expression number `at`.
    let mut stays = |at: usize, expr: &Expr| -> Option<bool> {
        left = left.checked_sub(1)?;
        let mut changed = ast.clone();
        let _: ControlFlow<()> =
            VisitMut::visit(&mut changed, &mut Outermost { depth: 0, count: 0, replace: Some((at, expr)), found: Vec::new() });
        Some(attempt(&changed).is_err_and(|error| error.strip_backtrace() == wanted))
    };
    let mut outermost = Outermost { depth: 0, count: 0, replace: None, found: Vec::new() };
    let _: ControlFlow<()> = VisitMut::visit(&mut ast.clone(), &mut outermost);
    let null = Expr::Value(Value::Null.with_empty_span());
    let mut culprits = Vec::new();
    for at in 0..outermost.found.len() {
        if !stays(at, &null)? {
            culprits.push(at);
        }
    }
    if let [at] = culprits.as_slice() {
        let mut expr = &outermost.found[*at];
        let mut parts = children(expr);
        // Each part is smaller than what it is a part of.
        loop {
            let mut same = None;
            for part in parts {
                if stays(*at, &part)? {
                    same = Some(part);
                    break;
                }
            }
            let Some(part) = same else { break };
            parts = children(&part);
            outermost.found[*at] = part;
            expr = &outermost.found[*at];
        }
        return extent(expr, text);
    }
    culprits.into_iter().filter_map(|at| extent(&outermost.found[at], text)).reduce(Span::to)
}

struct Count(usize);

impl Visitor for Count {
    type Break = ();

    fn pre_visit_expr(&mut self, _expr: &Expr) -> ControlFlow<()> {
        self.0 += 1;
        ControlFlow::Continue(())
    }
}

/// The expressions that stand in no other, in the order in which they are visited; one of them can be replaced.
struct Outermost<'e> {
    depth: usize,
    count: usize,
    replace: Option<(usize, &'e Expr)>,
    found: Vec<Expr>,
}

impl VisitorMut for Outermost<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if self.depth == 0 {
            match self.replace {
                Some((at, other)) if at == self.count => *expr = other.clone(),
                Some(_) => {}
                None => self.found.push(expr.clone()),
            }
            self.count += 1;
        }
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, _expr: &mut Expr) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}

/// The parts of an expression, not the parts of those.
fn children(expr: &Expr) -> Vec<Expr> {
    struct Parts {
        depth: usize,
        found: Vec<Expr>,
    }
    impl Visitor for Parts {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            if self.depth == 1 {
                self.found.push(expr.clone());
            }
            self.depth += 1;
            ControlFlow::Continue(())
        }

        fn post_visit_expr(&mut self, _expr: &Expr) -> ControlFlow<()> {
            self.depth -= 1;
            ControlFlow::Continue(())
        }
    }
    let mut parts = Parts { depth: 0, found: Vec::new() };
    let _: ControlFlow<()> = Visit::visit(expr, &mut parts);
    parts.found
}

/// Where an expression stands, from its first word to its last parenthesis: the syntax tree knows the places of its leaves alone.
fn extent(expr: &Expr, text: &str) -> Option<Span> {
    let leaves = span_of_node(expr)?;
    let (mut start, mut end) = (leaves.start, leaves.end);
    let before = text.get(..start)?.trim_end();
    let begins = |word: &str| {
        let at = before.len().checked_sub(word.len())?;
        before.get(at..).filter(|found| found.eq_ignore_ascii_case(word)).map(|_| at)
    };
    match expr {
        Expr::UnaryOp { op, .. } => start = begins(&op.to_string()).unwrap_or(start),
        Expr::Cast { kind: CastKind::Cast | CastKind::TryCast | CastKind::SafeCast, .. }
        | Expr::Extract { .. }
        | Expr::Ceil { .. }
        | Expr::Floor { .. }
        | Expr::Substring { .. }
        | Expr::Trim { .. }
        | Expr::Position { .. }
        | Expr::Overlay { .. } => {
            // EXTRACT(part FROM …: the call's parenthesis is the last that stands open.
            if let Some(open) = before.rfind('(') {
                let name = text.get(..open)?.trim_end();
                let word = name.trim_end_matches(|ch: char| ch.is_alphanumeric() || ch == '_');
                start = if word.len() < name.len() { word.len() } else { start };
            }
        }
        Expr::Function(_) if !text.get(start..end)?.contains('(') => {
            let behind = text.get(end..)?;
            if let Some(inner) = behind.trim_start().strip_prefix('(') {
                end = text.len() - inner.len();
            }
        }
        Expr::CompoundFieldAccess { .. } => {
            let behind = text.get(end..)?;
            if let Some(rest) = behind.trim_start().strip_prefix(']') {
                end = text.len() - rest.len();
            }
        }
        _ => {}
    }
    for _ in 0..open_at_end(text.get(start..end)?) {
        end += closing(text.get(end..)?)? + 1;
    }
    Some(Span { start, end })
}

/// How many parentheses of `text` are not closed in it.
fn open_at_end(text: &str) -> usize {
    let (mut open, mut quote) = (0usize, None);
    for ch in text.chars() {
        match (quote, ch) {
            (Some(begun), _) if begun == ch => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"' | '`') => quote = Some(ch),
            (None, '(') => open += 1,
            (None, ')') => open = open.saturating_sub(1),
            _ => {}
        }
    }
    open
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use crate::plan::{PlanOptions, plan};

    /// What of `sql` the first error points at.
    fn pointed(sql: &str) -> String {
        let tables = "CREATE TABLE t (id INT, k STRING, l ARRAY<INT>, r ROW<a INT, b STRING>, ts TIMESTAMP(3))
            WITH ('connector' = 'datagen');\n";
        let all = format!("{tables}{sql};");
        let errors = plan(&all, &PlanOptions::default()).unwrap_err();
        let span = errors.0[0].span.unwrap();
        all[span.start..span.end].to_owned()
    }

    #[test]
    fn errors_point_at_the_expression_that_they_are_about() {
        for (sql, place) in [
            ("SELECT k, upper(id, k) FROM t", "upper(id, k)"),
            ("SELECT k, id + length(upper(k, id)) AS n FROM t WHERE id > 1", "upper(k, id)"),
            ("SELECT id FROM t WHERE upper(k, id) = 'x'", "upper(k, id)"),
            ("SELECT upper() FROM t", "upper()"),
            ("SELECT id FROM t WHERE k", "k"),
            ("SELECT max(count(*)) FROM t", "max(count(*))"),
            ("SELECT id FROM t WHERE id > 1 AND count(*) > 1", "count(*)"),
            ("SELECT id, - k FROM t", "k"),
            ("SELECT id, @id FROM t", "@id"),
            ("SELECT id FROM (SELECT id, sum(k) AS s FROM t GROUP BY id) x", "sum(k)"),
            ("SELECT id, l['a'] FROM t", "l['a']"),
            ("SELECT id.x FROM t", "id.x"),
            ("SELECT id, r.c FROM t", "c"),
            ("SELECT id, CAST(k AS FOO) FROM t", "CAST(k AS FOO)"),
            ("SELECT id, 1 / 0 FROM t", "1 / 0"),
            ("SELECT count(*) FROM t GROUP BY count(*)", "count(*)"),
            ("SELECT id FROM t UNION ALL SELECT id, k FROM t", "SELECT id FROM t UNION ALL SELECT id, k FROM t"),
        ] {
            assert_eq!(pointed(sql), place, "{sql}");
        }
    }
}
