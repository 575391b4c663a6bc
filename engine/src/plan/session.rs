//! What DataFusion's planner may ask of us: tables, functions, types, window table functions.

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{DataFusionError, Result, TableReference};
use datafusion::execution::{FunctionRegistry, SessionState, SessionStateBuilder};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner, RelationPlanner, TypePlanner};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, HigherOrderUDF, LogicalPlan, ScalarUDF, Signature, TableSource, Volatility,
    WindowUDF,
};
use datafusion::prelude::SessionConfig;

use super::date_interval::DateInterval;
use super::diagnose::external;
use super::field_access::FieldAccess;
use super::window_node::WindowTvfPlanner;
use crate::error::{Code, Diagnostic};
use crate::operators::aggregate::AggregateFunction;
use crate::sql::types::{time_digits, with_time_digits};
use crate::time::Zone;

/// A relation that a query may read.
#[derive(Clone)]
pub(super) enum Relation {
    /// A leaf of logical plans: a table of the catalog, or a stream or materialized view that is run once.
    Leaf(Arc<Leaf>),
    /// A view: its plan stands in for its name.
    View(Arc<LogicalPlan>),
}

/// What a leaf is; `name` is the key into the builder's tables or shared streams.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum LeafKind {
    /// `CREATE TABLE` and `CREATE SOURCE`.
    Table,
    /// `CREATE STREAM` and `CREATE MATERIALIZED VIEW`.
    Shared,
}

/// A table source without data: only planning sees it.
#[derive(Debug, Clone)]
pub(super) struct Leaf {
    /// The relation's name as created.
    pub name: String,
    /// What it is.
    pub kind: LeafKind,
    /// Its columns.
    pub schema: SchemaRef,
}

impl TableSource for Leaf {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

struct ViewSource {
    plan: Arc<LogicalPlan>,
    schema: SchemaRef,
}

impl TableSource for ViewSource {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn get_logical_plan(&self) -> Option<std::borrow::Cow<'_, LogicalPlan>> {
        Some(std::borrow::Cow::Borrowed(&self.plan))
    }
}

/// Names and functions of one job while it is planned.
pub(super) struct Session {
    state: SessionState,
    relations: HashMap<String, Relation>,
    expr_planners: Vec<Arc<dyn ExprPlanner>>,
    relation_planners: Vec<Arc<dyn RelationPlanner>>,
    type_planner: Arc<dyn TypePlanner>,
    function_names: HashMap<String, String>,
    zone: Zone,
}

impl Session {
    pub(super) fn new() -> Result<Self> {
        let mut config = SessionConfig::new();
        read_as_ours(config.options_mut());
        let mut state = SessionStateBuilder::new().with_config(config).with_default_features().build();
        crate::functions::register(&mut state)?;
        for (function, names) in AggregateFunction::NAMES {
            if *function != AggregateFunction::Count {
                state.register_udaf(Arc::new(AggregateUDF::from(PlannedAggregate::new(*function, names))))?;
            }
        }
        Ok(Self {
            // Ours before all others: the one that plans decides.
            expr_planners: own_planners().into_iter().chain(state.expr_planners().iter().cloned()).collect(),
            state,
            relations: HashMap::new(),
            relation_planners: vec![Arc::new(WindowTvfPlanner { zone: Zone::UTC })],
            type_planner: Arc::new(crate::sql::types::TideraceTypes),
            function_names: HashMap::new(),
            zone: Zone::UTC,
        })
    }

    /// The zone of what is planned from now on.
    pub(super) fn set_zone(&mut self, zone: Zone) {
        self.zone = zone;
        self.relation_planners = vec![Arc::new(WindowTvfPlanner { zone })];
    }

    /// `table.local-time-zone`.
    pub(super) fn zone(&self) -> Zone {
        self.zone
    }

    pub(super) fn options(&self) -> &Arc<ConfigOptions> {
        self.state.config_options()
    }

    pub(super) fn define(&mut self, name: &str, relation: Relation) {
        self.relations.insert(name.to_owned(), relation);
    }

    /// The plans of the plain views, by name.
    pub(super) fn views(&self) -> impl Iterator<Item = (&str, &LogicalPlan)> {
        self.relations.iter().filter_map(|(name, relation)| match relation {
            Relation::View(plan) => Some((name.as_str(), plan.as_ref())),
            Relation::Leaf(_) => None,
        })
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.relations.remove(name);
    }

    /// `CREATE FUNCTION name AS …`: another name for a built-in. Gives what the name meant, if it was given before.
    pub(super) fn name_function(&mut self, name: &str, builtin: &str) -> Option<String> {
        self.function_names.insert(name.to_ascii_lowercase(), builtin.to_owned())
    }

    /// `DROP FUNCTION name`: whether the name was given by CREATE FUNCTION.
    pub(super) fn unname_function(&mut self, name: &str) -> bool {
        self.function_names.remove(&name.to_ascii_lowercase()).is_some()
    }

    /// Whether CREATE FUNCTION has given the name.
    pub(super) fn has_named_function(&self, name: &str) -> bool {
        self.function_names.contains_key(&name.to_ascii_lowercase())
    }

    fn relation(&self, name: &TableReference) -> Result<&Relation> {
        let wanted = name.table();
        if let Some(found) = self.relations.get(wanted) {
            return Ok(found);
        }
        let mut near = self.relations.iter().filter(|(key, _)| key.eq_ignore_ascii_case(wanted));
        match (near.next(), near.next()) {
            (Some((_, found)), None) => Ok(found),
            (Some((a, _)), Some((b, _))) => Err(external(
                Diagnostic::new(Code::AmbiguousName, format!("`{wanted}` may be `{a}` or `{b}`"))
                    .hint("write it in double quotes"),
            )),
            _ => {
                let mut names: Vec<&str> = self.relations.keys().map(String::as_str).collect();
                names.sort_unstable();
                let diagnostic = Diagnostic::new(Code::UnknownTable, format!("there is no table or view `{wanted}`"));
                Err(external(if names.is_empty() {
                    diagnostic.hint("create it before this statement")
                } else {
                    diagnostic.hint(format!("there are: {}", names.join(", ")))
                }))
            }
        }
    }

    fn function_name(&self, name: &str) -> String {
        let lower = name.to_ascii_lowercase();
        self.function_names.get(&lower).cloned().unwrap_or(lower)
    }
}

/// Settings of DataFusion's planner under which names, numbers and times mean what they mean here.
pub(super) fn read_as_ours(options: &mut ConfigOptions) {
    options.sql_parser.parse_float_as_decimal = true;
    options.sql_parser.enable_ident_normalization = false;
    options.sql_parser.collect_spans = true;
    options.sql_parser.map_string_types_to_utf8view = true;
    options.execution.time_zone = Some("UTC".into());
}

/// What plans expressions of ours that DataFusion has no rule for, or another.
pub(super) fn own_planners() -> [Arc<dyn ExprPlanner>; 2] {
    [Arc::new(DateInterval), Arc::new(FieldAccess)]
}

impl ContextProvider for Session {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        Ok(match self.relation(&name)? {
            Relation::Leaf(leaf) => leaf.clone(),
            Relation::View(plan) => {
                let schema = Arc::new(plan.schema().as_arrow().clone());
                Arc::new(ViewSource { plan: plan.clone(), schema })
            }
        })
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.expr_planners
    }

    fn get_relation_planners(&self) -> &[Arc<dyn RelationPlanner>] {
        &self.relation_planners
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(self.type_planner.clone())
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.state.scalar_functions().get(&self.function_name(name)).cloned()
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.state.higher_order_functions().get(&name.to_ascii_lowercase()).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.state.aggregate_functions().get(&self.function_name(name)).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.state.window_functions().get(&name.to_ascii_lowercase()).cloned()
    }

    fn get_variable_type(&self, _names: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.state.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        self.state.scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.state.higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.state.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.state.window_functions().keys().cloned().collect()
    }
}

/// An aggregate function as the planner sees it: types only. It runs in `operators::aggregate`, never by DataFusion.
struct PlannedAggregate {
    function: AggregateFunction,
    aliases: Vec<String>,
    signature: Signature,
}

impl PlannedAggregate {
    fn new(function: AggregateFunction, names: &[&str]) -> Self {
        let aliases = names.iter().skip(1).map(|n| (*n).to_owned()).collect();
        Self { function, aliases, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl fmt::Debug for PlannedAggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.function.name())
    }
}

impl PartialEq for PlannedAggregate {
    fn eq(&self, other: &Self) -> bool {
        self.function == other.function
    }
}

impl Eq for PlannedAggregate {}

impl Hash for PlannedAggregate {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.hash(state);
    }
}

impl AggregateUDFImpl for PlannedAggregate {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(types.iter().map(|t| if *t == DataType::Null { DataType::Int64 } else { t.clone() }).collect())
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        // The separator of string_agg is a constant, not an argument of the accumulator.
        let types = if self.function == AggregateFunction::StringAgg { &types[..types.len().min(1)] } else { types };
        self.function.return_type(types).map_err(external)
    }

    fn return_field(&self, fields: &[FieldRef]) -> Result<FieldRef> {
        let types: Vec<DataType> = fields.iter().map(|field| field.data_type().clone()).collect();
        let field = Field::new(self.name(), self.return_type(&types)?, self.is_nullable());
        // A value that was there before has the digits that it had.
        let digits = fields.first().filter(|of| of.data_type() == field.data_type()).and_then(|of| time_digits(of));
        Ok(Arc::new(match digits {
            Some(digits) => with_time_digits(field, digits),
            None => field,
        }))
    }

    fn accumulator(&self, _args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Err(DataFusionError::Internal(format!("{} is not run by DataFusion", self.function.name())))
    }

    fn state_fields(&self, _args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        Ok(Vec::new())
    }

    fn supports_null_handling_clause(&self) -> bool {
        matches!(self.function, AggregateFunction::FirstValue | AggregateFunction::LastValue | AggregateFunction::ArrayAgg)
    }
}
