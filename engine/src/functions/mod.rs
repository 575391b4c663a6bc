//! Scalar functions: all of DataFusion's, and beside them the spellings of Flink and PostgreSQL that it lacks or means otherwise.
//!
//! One file per family; each lists its [`Function`]s in a table, which is what [`register`] registers and [`list`] prints. They take
//! whole columns: text as `Utf8View`, times in µs. A part of a text shares its buffer. An error is about one row, and is a
//! [`Diagnostic`](crate::error::Diagnostic) inside [`DataFusionError::External`](datafusion::common::DataFusionError::External).
//!
//! Some functions are only another way to write an expression (`IF`, `MOD`, `FLOOR(ts TO DAY)`, …): the parser rewrites those
//! ([`crate::sql`]), and they are listed in [`REWRITTEN`].

mod call;
mod checked_call;
mod clock;
mod element;
mod hash;
mod json;
mod json_make;
mod json_path;
mod number_format;
mod regex;
mod sign;
mod substrings;
mod text;
mod time;
mod time_cut;
mod time_format;
mod time_round;
mod time_text;
mod url;
mod value_limit;
mod zone;

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::ScalarUDF;

use call::{Builtin, Function};
pub(crate) use checked_call::CheckedCall;
pub(crate) use json_make::EMBEDDED as EMBEDDED_JSON;
pub(crate) use time_cut::{TIME_CUT, cuts_times, least_digits, time_cut};
pub(crate) use time_text::{TIME_TEXT, list_text, read_instant, time_text};
pub(crate) use value_limit::{VALUE_BYTES_MAX, longest_value};
pub(crate) use zone::AT_TIME_ZONE;

/// What `tiderace functions` tells of a function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FunctionDoc {
    /// Its name, in lower case.
    pub name: String,
    /// Other names of the same.
    pub aliases: Vec<String>,
    /// What it is about: `text`, `time`, `json`, …
    pub family: String,
    /// How it is called: `split_index(text, separator, index)`.
    pub signature: String,
    /// One sentence.
    pub doc: String,
}

/// Our own functions, family by family.
fn own() -> impl Iterator<Item = &'static Function> {
    [
        clock::FUNCTIONS,
        element::FUNCTIONS,
        hash::FUNCTIONS,
        json::FUNCTIONS,
        json_make::FUNCTIONS,
        regex::FUNCTIONS,
        sign::FUNCTIONS,
        text::FUNCTIONS,
        time::FUNCTIONS,
        time_round::FUNCTIONS,
        url::FUNCTIONS,
        zone::FUNCTIONS,
    ]
    .into_iter()
    .flatten()
}

/// Other names for functions of DataFusion.
const ALIASES: &[(&str, &[&str])] = &[
    ("ceil", &["ceiling"]),
    ("character_length", &["len"]),
    ("lower", &["lcase"]),
    ("upper", &["ucase"]),
    ("random", &["rand"]),
    ("regexp_like", &["regexp"]),
    ("trunc", &["truncate"]),
    ("uuid", &["gen_random_uuid"]),
];

/// Functions of DataFusion that are left out: they would be folded to a constant, or mean something else here.
const REPLACED: &[&str] = &["now", "current_date", "current_time", "to_char", "to_date", "to_timestamp", "from_unixtime"];

/// What the parser turns into other expressions: name, signature, meaning.
const REWRITTEN: &[(&str, &str, &str)] = &[
    (
        "if",
        "if(condition, then, else)",
        "`then` where the condition holds, else `else`: CASE WHEN condition THEN then ELSE else END.",
    ),
    ("mod", "mod(a, b)", "The remainder of a / b, with the sign of a: a % b."),
    ("locate", "locate(part, text)", "Where `part` first stands in `text`, from 1; 0: nowhere. The same as strpos(text, part)."),
    ("map_of", "MAP[key, value, …]", "A MAP of these keys and values; also map_of(key, value, …)."),
    (
        "timestampadd",
        "timestampadd(unit, count, time)",
        "`time` moved on by so many units: SECOND, MINUTE, HOUR, DAY, WEEK, MONTH, QUARTER or YEAR.",
    ),
];

/// Registers every scalar function, of DataFusion and ours. Ours win where a name is both's.
pub fn register(registry: &mut dyn FunctionRegistry) -> Result<()> {
    for function in datafusion::functions::all_default_functions()
        .into_iter()
        .chain(datafusion::functions_nested::all_default_nested_functions())
    {
        if REPLACED.contains(&function.name()) {
            continue;
        }
        let more = ALIASES.iter().find(|(name, _)| *name == function.name()).map(|(_, aliases)| *aliases);
        match more {
            Some(aliases) => registry.register_udf(Arc::new(function.as_ref().clone().with_aliases(aliases.iter().copied())))?,
            None => registry.register_udf(function)?,
        };
    }
    datafusion_functions_json::register_all(registry)?;
    for name in REPLACED {
        registry.deregister_udf(name)?;
    }
    for function in own() {
        registry.register_udf(Arc::new(ScalarUDF::new_from_impl(Builtin::new(function))))?;
    }
    Ok(())
}

/// A function of ours, for the planner to put into an expression.
pub(crate) fn builtin(name: &str) -> Result<ScalarUDF> {
    let function = own().find(|function| function.name == name);
    let function =
        function.ok_or_else(|| call::error(crate::error::Code::Internal, format!("there is no built-in function {name}")))?;
    Ok(ScalarUDF::new_from_impl(Builtin::new(function)))
}

/// Whether a pattern of Java or PostgreSQL writes a time zone. One that can't be read is told about where it is used.
pub(crate) fn pattern_says_zone(text: &str) -> bool {
    time_format::Pattern::either(text).is_ok_and(|pattern| pattern.has_zone())
}

/// Every scalar function, by name.
#[must_use]
pub fn list() -> Vec<FunctionDoc> {
    let mut found: BTreeMap<String, FunctionDoc> = BTreeMap::new();
    for function in datafusion::functions::all_default_functions()
        .into_iter()
        .chain(datafusion::functions_nested::all_default_nested_functions())
    {
        if REPLACED.contains(&function.name()) {
            continue;
        }
        let doc = function.documentation();
        let mut aliases = function.aliases().to_vec();
        aliases.extend(
            ALIASES
                .iter()
                .filter(|(name, _)| *name == function.name())
                .flat_map(|(_, more)| more.iter().map(|alias| (*alias).to_owned())),
        );
        let family = doc.map_or("other", |doc| doc.doc_section.label).trim_end_matches(" Functions").to_ascii_lowercase();
        let first = |text: &str| text.split("\n\n").next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        found.insert(
            function.name().to_owned(),
            FunctionDoc {
                name: function.name().to_owned(),
                aliases,
                family,
                signature: doc.map_or_else(|| format!("{}(…)", function.name()), |doc| first(&doc.syntax_example)),
                doc: doc.map_or_else(String::new, |doc| first(&doc.description)),
            },
        );
    }
    for (name, signature, doc) in json::FOREIGN {
        found.insert((*name).to_owned(), entry(name, &[], "json", signature, doc));
    }
    for (name, signature, doc) in REWRITTEN {
        found.insert((*name).to_owned(), entry(name, &[], "other", signature, doc));
    }
    for function in own() {
        found.insert(
            function.name.to_owned(),
            entry(function.name, function.aliases, function.family, function.signature, function.doc),
        );
    }
    found.into_values().collect()
}

fn entry(name: &str, aliases: &[&str], family: &str, signature: &str, doc: &str) -> FunctionDoc {
    FunctionDoc {
        name: name.to_owned(),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        family: family.to_owned(),
        signature: signature.to_owned(),
        doc: doc.to_owned(),
    }
}

#[cfg(test)]
mod tests;
