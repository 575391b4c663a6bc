//! The adapter to the engine's planner: what the command line and the file say, as plan options.

use std::collections::BTreeMap;

use tiderace_engine::connect::Secrets;
use tiderace_engine::error::{Code, Diagnostic, Diagnostics};
use tiderace_engine::plan::{self, JobPlan, PlanOptions};
use tiderace_engine::runtime::JobOptions;
use tiderace_engine::runtime::graph::{Graph, Role};

use crate::command::JobArgs;
use crate::job_file::JobFile;
use crate::secret_files;

/// With how many cores a job runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Pinned threads.
    pub cores: usize,
    /// What the user should know about it.
    pub note: Option<String>,
}

impl Demand {
    /// `--cores` is an order; the manifest's number is what a cluster would give, and a laptop may have less.
    pub fn decide(file: &JobFile, asked: Option<u16>, available: usize) -> Result<Self, Diagnostic> {
        let most = available.min(JobOptions::CORES_MAX).min(file.max_parallelism as usize).max(1);
        if let Some(asked) = asked.map(usize::from) {
            if asked > most {
                let message = format!("--cores {asked} was asked for, and there are {most}");
                return Err(Diagnostic::new(Code::NotEnoughCores, message).hint(format!("ask for {most} or fewer")));
            }
            return Ok(Self { cores: asked, note: None });
        }
        let wanted = file.cores.map(tiderace_crds::Cores::count);
        let note = wanted
            .filter(|wanted| *wanted > most)
            .map(|wanted| format!("the manifest asks for {wanted} cores, and there are {most}: the job runs on {most}"));
        Ok(Self { cores: wanted.unwrap_or(most).min(most), note })
    }
}

/// What a job's text refers to, and what is given beside it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    /// Values of `${NAME}`.
    pub variables: BTreeMap<String, String>,
    /// Settings that win over the manifest's.
    pub settings: BTreeMap<String, String>,
    /// Values of `SECRET 'name'`.
    pub secrets: Secrets,
}

impl Given {
    /// What the command line gives.
    pub fn by(arguments: &JobArgs) -> Result<Self, Diagnostic> {
        let secrets = arguments.secrets.as_deref().map(secret_files::read).transpose()?.unwrap_or_default();
        let variables = arguments.variables.iter().cloned().collect();
        Ok(Self { variables, settings: arguments.settings.iter().cloned().collect(), secrets })
    }

    /// The same for a job that is not run: without a folder of secrets, those that the manifest names count as given.
    pub fn to_plan(arguments: &JobArgs, file: &JobFile) -> Result<Self, Diagnostic> {
        let mut given = Self::by(arguments)?;
        if arguments.secrets.is_none() {
            given.secrets = Secrets::named(file.secret_names.iter().cloned());
        }
        Ok(given)
    }
}

/// Plans the job as it stands.
pub(crate) fn plan(file: &JobFile, given: &Given, cores: usize, collect_results: bool) -> Result<JobPlan, Diagnostics> {
    let mut config = file.config.clone();
    config.extend(given.settings.iter().map(|(key, value)| (key.clone(), value.clone())));
    let (variables, secrets) = (given.variables.clone(), given.secrets.clone());
    plan::plan(&file.sql, &PlanOptions { variables, secrets, config, cores, collect_results })
}

/// What a job computes, for the checkpoints that it may go on from: its statements, and what is given beside them and changes their meaning.
pub(crate) fn definition(file: &JobFile, given: &Given) -> String {
    let mut config = file.config.clone();
    config.extend(given.settings.iter().map(|(key, value)| (key.clone(), value.clone())));
    plan::definition(&file.sql, &given.variables, &config)
}

/// Plans the job to run it. Bare queries are collected for a table at the end when the input ends by itself, and printed as they change
/// otherwise, or when `changes` asks for it.
pub(crate) fn plan_to_run(file: &JobFile, given: &Given, demand: &Demand, changes: bool) -> Result<JobPlan, Diagnostics> {
    let printing = plan(file, given, demand.cores, false)?;
    if changes || !is_bounded(&printing.graph) {
        return Ok(printing);
    }
    plan(file, given, demand.cores, true)
}

fn is_bounded(graph: &Graph) -> bool {
    graph.nodes.iter().all(|node| match &node.role {
        Role::Source(spec) => spec.source.is_bounded(),
        Role::Operator(_) | Role::Union | Role::Sink(_) => true,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::job_file::SourceText;

    fn manifest(cores: u16, max_parallelism: u32) -> JobFile {
        let text = format!(
            "apiVersion: tiderace.dev/v1alpha1\nkind: StreamingJob\nmetadata: {{name: a}}\nspec:\n  sql: {{inline: SELECT 1}}\n  \
             resources: {{cpu: {cores}}}\n  maxParallelism: {max_parallelism}\n"
        );
        JobFile::from_manifest(SourceText { name: "a.yaml".to_owned(), text }).unwrap()
    }

    #[test]
    fn the_command_line_is_an_order_and_the_manifest_a_wish() {
        let file = manifest(4, 256);
        assert_eq!(Demand::decide(&file, None, 8).unwrap(), Demand { cores: 4, note: None });
        assert_eq!(Demand::decide(&file, Some(2), 8).unwrap().cores, 2);
        let less = Demand::decide(&file, None, 2).unwrap();
        assert!(less.cores == 2 && less.note.unwrap().contains("asks for 4 cores, and there are 2"));
        assert_eq!(Demand::decide(&file, Some(9), 8).unwrap_err().code, Code::NotEnoughCores);
    }

    #[test]
    fn no_core_is_without_a_partition() {
        assert_eq!(Demand::decide(&manifest(2, 3), None, 8).unwrap().cores, 2);
        assert_eq!(Demand::decide(&manifest(2, 3), Some(4), 8).unwrap_err().code, Code::NotEnoughCores);
    }
}
