//! `'connector' = 'memory'`: rows from and to this process, for users of the library and for tests.
//!
//! ```text
//! MemoryInput (given beforehand, read anew by every job) ─┐                      ┌─▶ MemoryOutput (kept until taken)
//! MemoryFeed  (pushed while the job runs, once) ──────────┴─ 'name' = … ─ job ───┘
//! ```
//! They are registered under a name, which the table names with the option `name` (the table's own name when it is left out), and are
//! gone when their [`Registration`] is dropped. A job that is already planned keeps what it has found.

mod feed;
mod input;
mod output;
mod project;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{ConnectorSpec, OptionSpec, OptionType, SinkRef, SourceRef, TableSpec};
use crate::error::{Code, Diagnostic, Result};

pub use feed::{MemoryFeed, PushError};
pub use input::{MemoryInput, Scatter, Shuffle};
pub use output::{Collected, MemoryOutput};

/// See [`super::registry`].
pub const SPEC: ConnectorSpec = ConnectorSpec {
    name: "memory",
    doc: "Rows from and to the process that runs the job, through the library",
    options: &[OptionSpec {
        key: "name",
        kind: OptionType::Text,
        default: None,
        required: false,
        doc: "The name under which the rows are registered; the table's name when left out.",
    }],
    takes_format: false,
    takes_partitions: false,
    source: Some(plan_source),
    sink: Some(plan_sink),
    metadata: &[],
};

/// What a name may stand for as a source.
#[derive(Clone, Debug)]
enum Rows {
    Input(MemoryInput),
    Feed(MemoryFeed),
}

static SOURCES: Mutex<BTreeMap<String, Rows>> = Mutex::new(BTreeMap::new());
static SINKS: Mutex<BTreeMap<String, MemoryOutput>> = Mutex::new(BTreeMap::new());

/// A panic of another thread leaves maps and queues whole: each change to them is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a name; dropping it gives the name back.
#[derive(Debug)]
#[must_use = "the name is given back when this is dropped"]
pub struct Registration {
    name: String,
    is_source: bool,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.is_source {
            lock(&SOURCES).remove(&self.name);
        } else {
            lock(&SINKS).remove(&self.name);
        }
    }
}

fn register<T>(map: &Mutex<BTreeMap<String, T>>, name: &str, value: T, is_source: bool) -> Result<Registration> {
    let mut map = lock(map);
    if map.contains_key(name) {
        let message = format!("'{name}' is already registered as a {} in memory", if is_source { "source" } else { "sink" });
        return Err(Diagnostic::new(Code::DuplicateName, message));
    }
    map.insert(name.to_owned(), value);
    Ok(Registration { name: name.to_owned(), is_source })
}

fn not_registered(table: &TableSpec<'_>, name: &str, names: &[&str]) -> Diagnostic {
    Diagnostic::new(Code::InvalidOption, format!("table `{}`: nothing is registered in memory as '{name}'", table.name))
        .at(table.options.span("name"))
        .hint(if names.is_empty() {
            "nothing is registered at all".to_owned()
        } else {
            format!("there is: {}", names.join(", "))
        })
}

fn plan_source(table: &TableSpec<'_>) -> Result<SourceRef> {
    let name = table.options.text("name").unwrap_or(table.name);
    let sources = lock(&SOURCES);
    match sources.get(name) {
        Some(Rows::Input(input)) => input.source(table.name, &table.schema),
        Some(Rows::Feed(feed)) => feed.source(table.name, &table.schema),
        None => Err(not_registered(table, name, &sources.keys().map(String::as_str).collect::<Vec<_>>())),
    }
}

fn plan_sink(table: &TableSpec<'_>) -> Result<SinkRef> {
    let name = table.options.text("name").unwrap_or(table.name);
    let sinks = lock(&SINKS);
    match sinks.get(name) {
        Some(output) => Ok(output.sink()),
        None => Err(not_registered(table, name, &sinks.keys().map(String::as_str).collect::<Vec<_>>())),
    }
}

#[cfg(test)]
mod tests;
