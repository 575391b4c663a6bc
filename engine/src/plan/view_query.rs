//! `SELECT … FROM v`: a batch query over what materialized views hold at one epoch each.
//!
//! The whole of DataFusion's SQL is at hand here, ORDER BY, LIMIT and joins too: the rows are all there.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use datafusion::datasource::MemTable;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::SessionStateBuilder;
use datafusion::logical_expr::{AggregateUDF, LogicalPlan};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement as PlannerStatement;
use sqlparser::ast::{Ident, ObjectName, ObjectNamePart, Query, Statement, visit_relations_mut};

use super::diagnose::diagnose;
use super::field_names::name_fields;
use super::names::with_spelling;
use super::session::{own_planners, read_as_ours};
use super::time_rules::TimeRules;
use super::view_expressions::CheckedExpressions;
use super::view_sum::ExactSum;
use crate::error::{Code, Diagnostic, Result, Span};
use crate::operators::materialize::ViewHandle;
use crate::sql::ast::{Emit, StreamQuery};
use crate::sql::types::TideraceTypes;
use crate::sql::{self, StatementKind};
use crate::time::Zone;

/// The longest query that is read.
const QUERY_BYTES_MAX: usize = 1 << 20;

/// A checked query over materialized views; it can be asked again and again.
#[derive(Clone, Debug)]
pub struct ViewQuery {
    statement: Statement,
    views: BTreeMap<String, ViewHandle>,
    zone: Zone,
}

impl ViewQuery {
    /// Checks that `sql` is one query, over `views` alone, and can be planned. Instants are read on the clock of `zone`.
    pub fn plan(views: &BTreeMap<String, ViewHandle>, zone: Zone, sql: &str) -> Result<Self> {
        if sql.len() > QUERY_BYTES_MAX {
            return Err(Diagnostic::new(Code::InvalidArgument, format!("the query is longer than {QUERY_BYTES_MAX} bytes")));
        }
        let mut statement = Statement::Query(parse(sql)?);
        let read = spell_views(&mut statement, views)?;
        let views = views.iter().filter(|(name, _)| read.contains(*name)).map(|(n, v)| (n.clone(), v.clone())).collect();
        let mut query = Self { statement, views, zone };
        let runtime = runtime()?;
        let context = query.context(|view| Ok(vec![RecordBatch::new_empty(view.schema().clone())]))?;
        let mut statement = query.statement.clone();
        with_spelling(&mut statement, |statement| logical(&runtime, &context, statement)).map_err(|error| tell(&error, sql))?;
        query.statement = statement;
        Ok(query)
    }

    /// The zone on whose clock instants are read.
    #[must_use]
    pub fn zone(&self) -> Zone {
        self.zone
    }

    /// Asks: the rows of the answer, in its order. Each view is taken at one epoch, for which it is waited at most `patience`.
    pub fn run(&self, patience: Duration) -> Result<RecordBatch> {
        let runtime = runtime()?;
        let context = self.context(|view| view.snapshot(patience).map(|(_, batches)| batches))?;
        let text = self.statement.to_string();
        let answer = logical(&runtime, &context, &self.statement).and_then(|plan| {
            let schema: SchemaRef = Arc::new(plan.schema().as_arrow().clone());
            let batches = runtime.block_on(async { context.execute_logical_plan(plan).await?.collect().await })?;
            let schema = batches.first().map_or(schema, RecordBatch::schema);
            Ok(concat_batches(&schema, &batches)?)
        });
        answer.map_err(|error| tell(&error, &text))
    }

    fn context(&self, rows: impl Fn(&ViewHandle) -> Result<Vec<RecordBatch>>) -> Result<SessionContext> {
        let internal = |error: DataFusionError| Diagnostic::new(Code::Internal, format!("a view can't be asked: {error}"));
        let mut config = SessionConfig::new().with_target_partitions(1);
        read_as_ours(config.options_mut());
        let mut state = SessionStateBuilder::new()
            .with_config(config)
            // Ours before all others: the one that plans decides.
            .with_expr_planners(own_planners().to_vec())
            .with_type_planner(Arc::new(TideraceTypes))
            .with_default_features()
            .with_analyzer_rule(Arc::new(TimeRules { zone: self.zone }))
            .with_analyzer_rule(Arc::new(CheckedExpressions))
            .build();
        crate::functions::register(&mut state).map_err(internal)?;
        state.register_udaf(Arc::new(AggregateUDF::new_from_impl(ExactSum::default()))).map_err(internal)?;
        let context = SessionContext::new_with_state(state);
        for (name, view) in &self.views {
            let table = MemTable::try_new(view.schema().clone(), vec![rows(view)?]).map_err(internal)?;
            context.register_table(datafusion::common::TableReference::bare(name.as_str()), Arc::new(table)).map_err(internal)?;
        }
        Ok(context)
    }
}

/// The one query of `sql`, read and rewritten as those of a job are.
fn parse(sql: &str) -> Result<Box<Query>> {
    let script = sql::parse(sql, &BTreeMap::new()).map_err(|errors| {
        let first = errors.0.into_iter().next().unwrap_or_else(|| Diagnostic::new(Code::Syntax, "it can't be read"));
        Diagnostic { span: None, message: format!("the query '{sql}': {}", first.message), ..first }
    })?;
    let no_query = || {
        Diagnostic::new(Code::Unsupported, format!("'{sql}' is not one query"))
            .hint("give one SELECT over materialized views; several queries are several options")
    };
    let [statement] = <[_; 1]>::try_from(script.statements).map_err(|_| no_query())?;
    let StatementKind::Query(StreamQuery { mut query, emit, .. }) = statement.kind else { return Err(no_query()) };
    if emit != Emit::default() {
        return Err(Diagnostic::new(Code::EmitMisplaced, format!("the query '{sql}': EMIT has no meaning here"))
            .hint("the answer is what the views hold at one epoch: leave EMIT out"));
    }
    name_fields(&mut query);
    Ok(query)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| Diagnostic::new(Code::Internal, format!("no thread can be had for a query: {error}")))
}

fn logical(
    runtime: &tokio::runtime::Runtime,
    context: &SessionContext,
    statement: &Statement,
) -> std::result::Result<LogicalPlan, DataFusionError> {
    let statement = PlannerStatement::Statement(Box::new(statement.clone()));
    runtime.block_on(async { context.state().statement_to_plan(statement).await })
}

fn tell(error: &DataFusionError, sql: &str) -> Diagnostic {
    let told = diagnose(error, Span { start: 0, end: 0 });
    Diagnostic { span: None, message: format!("the query '{sql}': {}", told.message), ..told }
}

/// Gives the names of views the spelling they were created with; those that are read.
fn spell_views(statement: &mut Statement, views: &BTreeMap<String, ViewHandle>) -> Result<Vec<String>> {
    let mut named_here: Vec<String> = Vec::new();
    if let Statement::Query(query) = &*statement {
        named_here.extend(query.with.iter().flat_map(|with| &with.cte_tables).map(|cte| cte.alias.name.value.clone()));
    }
    let mut read = Vec::new();
    let outcome = visit_relations_mut(statement, |name| match spell(name, views, &named_here) {
        Ok(found) => {
            read.extend(found);
            ControlFlow::Continue(())
        }
        Err(error) => ControlFlow::Break(error),
    });
    match outcome {
        ControlFlow::Continue(()) => Ok(read),
        ControlFlow::Break(error) => Err(error),
    }
}

fn spell(name: &mut ObjectName, views: &BTreeMap<String, ViewHandle>, named_here: &[String]) -> Result<Option<String>> {
    let unknown = |name: &str| {
        let hint = if views.is_empty() {
            "the job has none: CREATE MATERIALIZED VIEW keeps what a query says".to_owned()
        } else {
            format!("there are: {}", views.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
        };
        Diagnostic::new(Code::UnknownView, format!("there is no materialized view '{name}'")).hint(hint)
    };
    let [ObjectNamePart::Identifier(ident)] = name.0.as_mut_slice() else { return Err(unknown(&name.to_string())) };
    if named_here.contains(&ident.value) {
        return Ok(None);
    }
    let same = |view: &&String| **view == ident.value || (ident.quote_style.is_none() && view.eq_ignore_ascii_case(&ident.value));
    let exact = views.keys().find(|view| **view == ident.value);
    let Some(found) = exact.or_else(|| views.keys().find(same)) else { return Err(unknown(&ident.value)) };
    *ident = Ident { value: found.clone(), ..ident.clone() };
    Ok(Some(found.clone()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::connect::memory::MemoryInput;
    use crate::plan::{PlanOptions, plan};
    use crate::runtime::{Job, JobOptions};
    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};

    /// `name`: names are given out once in a process, and tests run side by side.
    fn finished(name: &str) -> BTreeMap<String, ViewHandle> {
        let schema = Arc::new(Schema::new(vec![Field::new("k", DataType::Utf8, true), Field::new("v", DataType::Int64, true)]));
        let keys = StringArray::from(vec!["a", "b", "a", "c", "b", "a"]);
        let values = Int64Array::from(vec![1, 2, 3, 4, 5, 6]);
        let rows = RecordBatch::try_new(schema.clone(), vec![Arc::new(keys), Arc::new(values)]).unwrap();
        let input = MemoryInput::with_splits(schema, vec![vec![crate::batch::DeltaBatch::append(rows)]]).unwrap();
        let _name = input.register(name).unwrap();
        let sql = format!(
            "CREATE TABLE t (k STRING, v BIGINT) WITH (connector = 'memory', 'name' = '{name}');
             CREATE MATERIALIZED VIEW Totals AS SELECT k, sum(v) AS Total FROM t GROUP BY k;"
        );
        let job = plan(&sql, &PlanOptions { cores: 2, ..PlanOptions::default() }).unwrap();
        for view in job.views.values() {
            view.start(2);
        }
        Job::start(job.graph, JobOptions { cores: 2, pin: false, ..JobOptions::default() }).wait().unwrap();
        job.views
    }

    #[test]
    fn a_view_answers_any_batch_query_in_any_spelling() {
        let views = finished("view-query-answers");
        let ask = |sql: &str| {
            let batch = ViewQuery::plan(&views, Zone::UTC, sql).unwrap().run(Duration::from_secs(5)).unwrap();
            let column = batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
            column.values().to_vec()
        };
        assert_eq!(ask("SELECT total FROM totals ORDER BY Total DESC LIMIT 2"), [10, 7]);
        assert_eq!(ask("SELECT sum(\"Total\") FROM \"Totals\""), [21]);
        assert_eq!(ask("WITH x AS (SELECT * FROM totals) SELECT count(*) FROM x WHERE k <> 'a'"), [2]);
    }

    /// What a job says of the same expressions, a query says too; no value wraps, none is made without a limit, nothing panics.
    #[test]
    fn numbers_that_have_no_room_are_errors_as_in_a_job() {
        let views = finished("view-query-overflow");
        let large = "9223372036854775807";
        for sql in [
            format!("SELECT total + {large} FROM totals"),
            format!("SELECT -total - {large} - 1 FROM totals"),
            format!("SELECT k FROM totals WHERE total * {large} < 0"),
            format!("SELECT k FROM totals ORDER BY total * {large}"),
            format!("SELECT sum(total * {large}) FROM totals"),
            format!("SELECT sum(x) FROM (SELECT CAST({large} AS BIGINT) AS x, k FROM totals)"),
            format!("SELECT sum(DISTINCT x) FROM (SELECT {large} - total AS x FROM totals)"),
            format!("SELECT k, sum({large} - total) OVER (ORDER BY k) FROM totals"),
            "SELECT sum(x) FROM (SELECT CAST('99999999999999999999999999999999999999' AS DECIMAL(38, 0)) AS x FROM totals)"
                .to_owned(),
            format!("SELECT a.total + {large} FROM totals AS a JOIN totals AS b ON a.total + 1 = b.total + 1"),
        ] {
            let asked = ViewQuery::plan(&views, Zone::UTC, &sql).and_then(|query| query.run(Duration::from_secs(5)));
            assert_eq!(asked.unwrap_err().code, Code::Overflow, "{sql}");
        }
        let asked = ViewQuery::plan(&views, Zone::UTC, "SELECT lpad(k, 2000000000, 'x') FROM totals");
        let asked = asked.and_then(|query| query.run(Duration::from_secs(5))).unwrap_err();
        assert!(asked.message.contains("16 MiB") || asked.message.contains("16777216"), "{asked:?}");
    }

    #[test]
    fn checked_expressions_mean_what_the_plain_ones_do() {
        let views = finished("view-query-checked");
        let ask = |sql: &str| {
            let batch = ViewQuery::plan(&views, Zone::UTC, sql).unwrap().run(Duration::from_secs(5)).unwrap();
            let lines = arrow::util::pretty::pretty_format_batches(&[batch]).unwrap().to_string();
            lines
                .lines()
                .skip(3)
                .filter(|line| !line.starts_with('+'))
                .map(str::to_owned)
                .collect::<Vec<_>>()
                .join(";")
                .replace(' ', "")
        };
        // a 10, b 7, c 4
        assert_eq!(
            ask("SELECT k || '-' || upper(k), total * 2 + 1, -total FROM totals ORDER BY k"),
            "|a-A|21|-10|;|b-B|15|-7|;|c-C|9|-4|"
        );
        assert_eq!(
            ask("SELECT total % 2 AS odd, sum(total), sum(DISTINCT total % 3) FROM totals GROUP BY total % 2 ORDER BY odd"),
            "|0|14|1|;|1|7|1|"
        );
        assert_eq!(
            ask("SELECT k, sum(total) OVER (ORDER BY k ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM totals ORDER BY k"),
            "|a|10|;|b|17|;|c|11|"
        );
        assert_eq!(
            ask("SELECT a.k FROM totals a LEFT JOIN totals b ON a.total = b.total + 3 WHERE b.k IS NOT NULL ORDER BY a.k"),
            "|a|;|b|"
        );
        assert_eq!(
            ask("SELECT a.k FROM totals a LEFT JOIN totals b ON a.total = b.total + 3 WHERE b.total + 1 > 0 ORDER BY a.k"),
            "|a|;|b|"
        );
        assert_eq!(ask("SELECT k FROM totals WHERE total > (SELECT sum(total) / 3 - 1 FROM totals) ORDER BY k"), "|a|;|b|");
        assert_eq!(
            ask("SELECT k FROM totals a WHERE EXISTS (SELECT 1 FROM totals b WHERE b.\"Total\" = a.\"Total\" + 3) ORDER BY k"),
            "|b|;|c|"
        );
        assert_eq!(ask("SELECT sum(total) FROM totals WHERE k = 'none'"), "||");
        assert_eq!(
            ask("SELECT CASE WHEN total > 100 THEN total * 9223372036854775807 ELSE total END FROM totals ORDER BY 1"),
            "|4|;|7|;|10|"
        );
        assert_eq!(ask("SELECT length(concat('a', 'b')), 1 + 1 FROM totals LIMIT 1"), "|2|2|");
    }

    #[test]
    fn what_is_no_query_over_views_is_refused() {
        let views = finished("view-query-refused");
        for (sql, code) in [
            ("SELECT * FROM totalz", Code::UnknownView),
            ("SELECT * FROM \"totals\"", Code::UnknownView),
            ("SELECT * FROM a.b", Code::UnknownView),
            ("SELECT FROM", Code::Syntax),
            ("SELECT 1; SELECT 2", Code::Unsupported),
            ("DROP TABLE totals", Code::Unsupported),
            ("SELECT nothing FROM totals", Code::UnknownColumn),
        ] {
            assert_eq!(ViewQuery::plan(&views, Zone::UTC, sql).unwrap_err().code, code, "{sql}");
        }
    }
}
