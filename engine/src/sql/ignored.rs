//! Clauses that the parser knows and nothing here heeds. Each is refused by its name: what is passed over in silence is a promise that is not kept.

use std::ops::ControlFlow;

use sqlparser::ast::{
    Distinct, Expr, GroupByExpr, Query, Select, SelectFlavor, SelectItem, SetExpr, TableFactor, visit_expressions,
};

use super::tokens::span_of_node;
use crate::error::{Code, Diagnostic, Span};

/// What of `query` itself, not of its subqueries, would have no effect.
pub(super) fn check(query: &Query, errors: &mut Vec<Diagnostic>) {
    let place = span_of_node(query);
    if query.fetch.is_some() {
        let refusal = Diagnostic::new(Code::UnsupportedOrder, "FETCH FIRST over a stream can't be run yet");
        errors.push(refusal.at(place).hint("leave it out: a stream has no last row; sort what comes out"));
    }
    let mut refuse = |what: &str, hint: &str| errors.push(refusal(what, hint, place));
    if !query.locks.is_empty() {
        refuse("FOR UPDATE and FOR SHARE lock nothing: a stream's rows are not changed in place", "leave the clause out");
    }
    if query.for_clause.is_some() {
        refuse("FOR XML, FOR JSON and FOR BROWSE can't be run", "say in the sink's 'format' how rows are written");
    }
    if query.settings.is_some() || query.format_clause.is_some() {
        refuse("SETTINGS and FORMAT of a query can't be run", "use SET, and the sink's option 'format'");
    }
    if !query.pipe_operators.is_empty() {
        refuse("the pipe operator |> can't be run", "write the clauses of a SELECT, with subqueries or WITH for the steps");
    }
    if query.with.as_ref().is_some_and(|with| with.recursive) {
        refuse("WITH RECURSIVE can't be run yet", "there is no other way to say it yet");
    }
    body(&query.body, place, errors);
}

fn body(set: &SetExpr, place: Option<Span>, errors: &mut Vec<Diagnostic>) {
    match set {
        SetExpr::Select(one) => select(one, errors),
        SetExpr::SetOperation { left, right, .. } => {
            body(left, place, errors);
            body(right, place, errors);
        }
        SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
            let hint = "write a query here, and INSERT INTO as a statement of its own";
            errors.push(refusal("a statement that changes rows can't stand inside a query", hint, place));
        }
        SetExpr::Table(_) => errors.push(refusal("TABLE name can't be run as a query", "write SELECT * FROM name", place)),
        // A query in parentheses is visited by itself.
        SetExpr::Query(_) | SetExpr::Values(_) => {}
    }
}

fn select(select: &Select, errors: &mut Vec<Diagnostic>) {
    let place = span_of_node(select);
    let clauses: &[(bool, &str, &str)] = &[
        (
            matches!(select.distinct, Some(Distinct::On(_))),
            "DISTINCT ON can't be run yet",
            "use GROUP BY with arg_min or arg_max for the other columns",
        ),
        (!select.connect_by.is_empty(), "CONNECT BY can't be run", "there is no other way yet"),
        (
            select.into.is_some(),
            "SELECT … INTO can't be run",
            "write INSERT INTO table SELECT …, or CREATE SINK name WITH (…) AS SELECT …",
        ),
        (
            !select.distribute_by.is_empty() || !select.cluster_by.is_empty(),
            "DISTRIBUTE BY and CLUSTER BY can't be run: rows are spread over the cores by the keys that the query needs",
            "leave the clause out",
        ),
        (!select.sort_by.is_empty(), "SORT BY can't be run: a stream has no order of its own", "leave the clause out"),
        (!select.lateral_views.is_empty(), "LATERAL VIEW can't be run", "write CROSS JOIN UNNEST(t.list) AS u (element)"),
        (select.prewhere.is_some(), "PREWHERE can't be run", "write WHERE: filters are brought to the source all the same"),
        (
            select.top.is_some(),
            "TOP can't be run yet",
            "rows of a stream have no first ones; group by a window with max or arg_max",
        ),
        (select.select_modifiers.is_some(), "words of MySQL behind SELECT have no effect", "leave them out"),
        (select.value_table_mode.is_some(), "SELECT AS VALUE and AS STRUCT can't be run", "write ROW(…) AS name"),
        (
            select.exclude.is_some(),
            "EXCLUDE behind the columns can't be run",
            "write SELECT * EXCEPT (…), or the columns you want",
        ),
        (select.flavor != SelectFlavor::Standard, "a query that begins with FROM can't be run", "write SELECT * FROM …"),
        (
            has_modifiers(&select.group_by),
            "WITH ROLLUP, WITH CUBE and WITH TOTALS can't be run",
            "write GROUP BY GROUPING SETS (…), ROLLUP (…) or CUBE (…)",
        ),
        (
            !select.named_window.is_empty() && select.qualify.is_none() && !has_over(select),
            "WINDOW names a window that no function uses",
            "leave the clause out",
        ),
    ];
    errors.extend(clauses.iter().filter(|(stands, ..)| *stands).map(|(_, what, hint)| refusal(what, hint, place)));
    for item in &select.projection {
        let (SelectItem::Wildcard(more) | SelectItem::QualifiedWildcard(_, more)) = item else { continue };
        if more.opt_rename.is_some() || more.opt_alias.is_some() || more.opt_ilike.is_some() {
            let hint = "write the columns, each with its name: a AS b";
            errors.push(refusal("* with RENAME, ILIKE or AS can't be run", hint, span_of_node(item)));
        }
    }
    for from in &select.from {
        relation(&from.relation, errors);
        for join in &from.joins {
            relation(&join.relation, errors);
        }
    }
}

fn has_modifiers(group_by: &GroupByExpr) -> bool {
    match group_by {
        GroupByExpr::All(modifiers) | GroupByExpr::Expressions(_, modifiers) => !modifiers.is_empty(),
    }
}

/// Whether some function of the SELECT list has OVER: that is refused for itself.
fn has_over(select: &Select) -> bool {
    let mut found = false;
    let _: ControlFlow<()> = visit_expressions(&select.projection, |expr: &Expr| {
        found |= matches!(expr, Expr::Function(function) if function.over.is_some());
        ControlFlow::Continue(())
    });
    found
}

fn relation(relation: &TableFactor, errors: &mut Vec<Diagnostic>) {
    let place = span_of_node(relation);
    let mut refuse = |what: &str, hint: &str| errors.push(refusal(what, hint, place));
    match relation {
        TableFactor::Table { with_hints, version, sample, index_hints, partitions, json_path, .. } => {
            if !with_hints.is_empty() {
                refuse(
                    "WITH (…) behind a table that is read has no effect",
                    "options belong into CREATE TABLE … WITH (…); those of a CREATE SINK stand before AS",
                );
            }
            if version.is_some() {
                refuse("FOR SYSTEM_TIME AS OF can't be run yet", "temporal joins come later; leave the clause out");
            }
            if sample.is_some() {
                refuse("TABLESAMPLE can't be run", "write WHERE random() < 0.1");
            }
            if !index_hints.is_empty() || !partitions.is_empty() || json_path.is_some() {
                refuse("index hints, PARTITION and JSON paths behind a table have no effect", "leave them out");
            }
        }
        TableFactor::Derived { sample, .. } if sample.is_some() => {
            refuse("TABLESAMPLE can't be run", "write WHERE random() < 0.1");
        }
        TableFactor::Pivot { .. } => {
            refuse("PIVOT can't be run yet", "write an aggregate with FILTER for each value: sum(x) FILTER (WHERE k = 'a') AS a");
        }
        TableFactor::Unpivot { .. } => {
            refuse("UNPIVOT can't be run yet", "write SELECT 'a' AS k, a AS v FROM t UNION ALL SELECT 'b', b FROM t");
        }
        TableFactor::MatchRecognize { .. } => refuse("MATCH_RECOGNIZE can't be run yet", "there is no other way to say it yet"),
        TableFactor::JsonTable { .. } | TableFactor::OpenJsonTable { .. } | TableFactor::XmlTable { .. } => {
            refuse("JSON_TABLE, OPENJSON and XMLTABLE can't be run yet", "use JSON_VALUE and JSON_QUERY on the column");
        }
        TableFactor::SemanticView { .. } => refuse("SEMANTIC_VIEW can't be run", "read a table or view"),
        TableFactor::UNNEST { with_offset, with_ordinality, .. } if *with_offset || *with_ordinality => {
            refuse("UNNEST WITH ORDINALITY and WITH OFFSET can't be run yet", "leave the number of the element out");
        }
        TableFactor::Derived { .. }
        | TableFactor::TableFunction { .. }
        | TableFactor::Function { .. }
        | TableFactor::UNNEST { .. }
        | TableFactor::NestedJoin { .. } => {}
    }
}

/// What of one expression, not of the parts of it, has no meaning here.
pub(super) fn check_expr(expr: &Expr, errors: &mut Vec<Diagnostic>) {
    let found = match expr {
        Expr::Collate { .. } => ("COLLATE can't be run: strings compare as bytes", "compare lower(…) or upper(…) instead"),
        Expr::OuterJoin(_) => ("(+) of Oracle can't be run", "joins come next"),
        Expr::Prior(_) => ("PRIOR can't be run", "there is no CONNECT BY"),
        Expr::MatchAgainst { .. } => ("MATCH … AGAINST can't be run", "use LIKE, or regexp_like(text, pattern)"),
        Expr::MemberOf(_) => ("MEMBER OF can't be run", "write value = ANY(list), or array_has(list, value)"),
        Expr::IsNormalized { .. } => ("IS NORMALIZED can't be run", "there is no other way yet"),
        Expr::Convert { .. } => ("CONVERT can't be run", "write CAST(value AS type)"),
        Expr::InUnnest { .. } => ("IN UNNEST can't be run", "write array_has(list, value)"),
        Expr::RLike { .. } => ("RLIKE and REGEXP can't be run", "write regexp_like(text, pattern), or text ~ pattern"),
        Expr::Prefixed { .. } => {
            ("a text with the name of a character set before it can't be run", "write 'text' alone: it is UTF-8")
        }
        Expr::Lambda(_) => ("a function of the query's own (x -> …) can't be run yet", "there is no other way yet"),
        Expr::Cast { format: Some(_), .. } => {
            ("CAST … FORMAT can't be run", "use to_timestamp, to_date or to_char with a pattern")
        }
        Expr::Cast { array: true, .. } => ("CAST … AS type ARRAY can't be run", "write CAST(value AS ARRAY<type>)"),
        _ => return,
    };
    errors.push(refusal(found.0, found.1, span_of_node(expr)));
}

fn refusal(what: &str, hint: &str, place: Option<Span>) -> Diagnostic {
    let refusal = Diagnostic::new(Code::Unsupported, what).hint(hint);
    match place {
        Some(place) => refusal.at(place),
        None => refusal,
    }
}
