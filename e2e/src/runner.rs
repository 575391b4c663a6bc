//! Runs scenarios: those that share the cluster side by side, the others one at a time, and says what came of each.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use futures::future::LocalBoxFuture;
use futures::stream::{self, StreamExt as _};

use crate::cluster::Cluster;
use crate::dump;
use crate::space::Space;
use crate::wait::secs;

/// A scenario that takes longer has failed.
const SCENARIO_MAX: Duration = secs(420);

/// One test.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name, and after `e2e-` that of its namespace.
    pub name: &'static str,
    /// Whether it breaks what others need: the operator, a node, the API server.
    pub alone: bool,
    /// What it does.
    pub run: fn(Space) -> LocalBoxFuture<'static, Result<()>>,
}

/// What to run, and how.
pub struct Plan {
    /// Parts of names; none: all.
    pub filters: Vec<String>,
    /// How many at the same time.
    pub parallel: usize,
    /// Whether namespaces of failed scenarios stay.
    pub keep: bool,
}

/// A scenario's name, and what went wrong.
struct Outcome {
    name: &'static str,
    error: Option<String>,
}

/// The scenarios that the filters choose.
pub fn chosen<'a>(scenarios: &'a [Scenario], filters: &'a [String]) -> impl Iterator<Item = Scenario> + 'a {
    scenarios.iter().copied().filter(move |s| filters.is_empty() || filters.iter().any(|f| s.name.contains(f.as_str())))
}

/// Runs them all; an error when one failed.
pub async fn run(cluster: &Cluster, scenarios: &[Scenario], plan: &Plan) -> Result<()> {
    let start = Instant::now();
    let (alone, shared): (Vec<_>, Vec<_>) = chosen(scenarios, &plan.filters).partition(|s| s.alone);
    let mut outcomes: Vec<_> =
        stream::iter(shared).map(|s| run_one(cluster, s, plan.keep)).buffer_unordered(plan.parallel.max(1)).collect().await;
    for scenario in alone {
        outcomes.push(run_one(cluster, scenario, plan.keep).await);
    }
    let failed: Vec<_> = outcomes.iter().filter(|o| o.error.is_some()).collect();
    println!("\ne2e: {} passed, {} failed, {} s", outcomes.len() - failed.len(), failed.len(), start.elapsed().as_secs());
    for outcome in &failed {
        println!("  FAILED {}: {}", outcome.name, first_words(outcome.error.as_deref().unwrap_or_default()));
    }
    if outcomes.is_empty() {
        return Err(anyhow!("no scenario has such a name"));
    }
    if failed.is_empty() { Ok(()) } else { Err(anyhow!("{} scenarios failed", failed.len())) }
}

/// The beginning of an error, for a list; all of it stands above.
fn first_words(error: &str) -> String {
    const CHARACTERS_MAX: usize = 160;
    error.lines().next().unwrap_or_default().chars().take(CHARACTERS_MAX).collect()
}

async fn run_one(cluster: &Cluster, scenario: Scenario, keep: bool) -> Outcome {
    let start = Instant::now();
    let error = attempt(cluster, scenario, keep).await.err().map(|e| format!("{e:#}"));
    let took = start.elapsed();
    match &error {
        None => println!("ok      {:<40} {:5.1} s", scenario.name, took.as_secs_f64()),
        Some(error) => println!("FAILED  {:<40} {:5.1} s\n    {error}", scenario.name, took.as_secs_f64()),
    }
    Outcome { name: scenario.name, error }
}

async fn attempt(cluster: &Cluster, scenario: Scenario, keep: bool) -> Result<()> {
    let space = Space::create(cluster, scenario.name).await?;
    // A task of its own: a panic fails the scenario and not the run.
    let task = tokio::task::spawn_local((scenario.run)(space.clone()));
    let abort = task.abort_handle();
    let outcome = match tokio::time::timeout(SCENARIO_MAX, task).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => Err(anyhow!("it panicked: {error}")),
        Err(_) => {
            abort.abort();
            Err(anyhow!("it took longer than {SCENARIO_MAX:?}"))
        }
    };
    match outcome {
        Ok(()) => space.delete().await,
        Err(error) => {
            println!("--- {}:\n{}", scenario.name, dump::summary(&space).await);
            match dump::write(&space).await {
                Ok(folder) => println!("--- {}: more in {}", scenario.name, folder.display()),
                Err(error) => println!("--- {}: the dump failed: {error:#}", scenario.name),
            }
            if !keep {
                // The scenario's own error is the one to tell.
                let _ = space.delete().await;
            }
            Err(error)
        }
    }
}
