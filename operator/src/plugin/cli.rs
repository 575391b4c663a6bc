//! The command line of the plugin.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  kubectl tiderace status                       all jobs of the namespace, a line each
  kubectl tiderace status orders                one job: conditions, rates, lag, restarts, pods, events
  kubectl tiderace status orders --watch        the same, again and again
  kubectl tiderace check -f job.yaml            would it run? errors with line and column, nothing is changed
  kubectl tiderace logs orders -f               what its worker says
  kubectl tiderace restart orders               start it anew, as it is
  kubectl tiderace report orders                a tarball for a bug report, without secrets

A job is made, changed and deleted with kubectl apply and kubectl delete. Exit codes: 0 done, 1 the job is not well, 2 an error.";

/// Looks after StreamingJobs: where they are, what they do, what is wrong with them.
#[derive(Debug, Parser)]
#[command(name = "kubectl-tiderace", bin_name = "kubectl tiderace", version, after_help = EXAMPLES, arg_required_else_help = true, max_term_width = 120)]
pub struct Cli {
    /// How the cluster is reached.
    #[command(flatten)]
    pub(crate) connection: Connection,

    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How the cluster is reached.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Connection {
    /// The kubeconfig [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE", global = true)]
    pub kubeconfig: Option<PathBuf>,

    /// The context in it [default: the current one]
    #[arg(long, value_name = "NAME", global = true)]
    pub context: Option<String>,

    /// The namespace [default: the context's]
    #[arg(short, long, value_name = "NAME", global = true)]
    pub namespace: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show jobs: what was asked, what is, and why they differ
    #[command(after_help = STATUS_HELP)]
    Status(StatusArgs),

    /// Show what jobs use and do right now: rows a second, cores, state, lag
    #[command(
        after_help = "Examples:\n  kubectl tiderace top\n  kubectl tiderace top orders --watch\n  kubectl tiderace top --all-namespaces"
    )]
    Top(TopArgs),

    /// Plan a manifest with the image that would run it, in the cluster, and say all that is wrong; nothing is changed
    #[command(after_help = CHECK_HELP)]
    Check(CheckArgs),

    /// Show what a job runs: nodes, keys, time, state and whether it is bounded
    #[command(
        after_help = "Examples:\n  kubectl tiderace explain orders\n  kubectl tiderace explain -f job.yaml --format dot | dot -Tsvg > plan.svg"
    )]
    Explain(ExplainArgs),

    /// Stop a job after it drained; its objects and volumes stay
    #[command(
        after_help = "The same as setting spec.state: Suspended. A job that Argo CD or Flux applies is set back by them: change it in Git."
    )]
    Suspend(ChangeArgs),

    /// Start a suspended job
    #[command(after_help = "The same as setting spec.state: Running.")]
    Resume(ChangeArgs),

    /// Stop a job after it drained, and start it anew as it is
    #[command(
        after_help = "Writes the annotation tiderace.dev/restart, which the operator acts on. A job of upgrade mode Stateless begins without its state."
    )]
    Restart(ChangeArgs),

    /// Show what a job's workers say
    #[command(
        after_help = "Examples:\n  kubectl tiderace logs orders -f\n  kubectl tiderace logs orders --previous      the process before the last restart\n  kubectl tiderace logs orders --raw | jq ."
    )]
    Logs(LogsArgs),

    /// Gather what a bug report needs into a tarball; values of secrets are left out
    #[command(after_help = REPORT_HELP)]
    Report(ReportArgs),
}

const STATUS_HELP: &str = "\
Examples:
  kubectl tiderace status
  kubectl tiderace status orders
  kubectl tiderace status orders --watch

Ready is True when the job is as asked: running, or suspended as asked, or finished. Stalled means that it waits for a person.";

const CHECK_HELP: &str = "\
Examples:
  kubectl tiderace check -f job.yaml
  kubectl tiderace check -f job.yaml --image example.com/tiderace:1.4.2
  cat job.yaml | kubectl tiderace check -f -

The manifest's schema and rules are checked at once. Its SQL is planned by a pod of the job's image, which is deleted afterwards.
Exit code 1 when the job can't be run.";

const REPORT_HELP: &str = "\
Examples:
  kubectl tiderace report orders
  kubectl tiderace report orders -o /tmp/orders.tar.gz

In it: the job, the objects that belong to it, events, logs of its workers (this and the last process) and of the operator, metrics.
Secrets are not read. Texts that look like credentials are replaced; look through it before you send it: SQL and rows in logs are yours.";

/// Arguments of `status`.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct StatusArgs {
    /// The job; all of the namespace when left out
    pub job: Option<String>,

    /// Jobs of all namespaces
    #[arg(short = 'A', long, conflicts_with = "job")]
    pub all_namespaces: bool,

    /// Show it again every two seconds, until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
}

/// Arguments of `top`.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct TopArgs {
    /// The job; all of the namespace when left out
    pub job: Option<String>,

    /// Jobs of all namespaces
    #[arg(short = 'A', long, conflicts_with = "job")]
    pub all_namespaces: bool,

    /// Show it again and again, until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,

    /// Over how many seconds rates are measured
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub interval: u64,
}

/// How a plan is made.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PlanningArgs {
    /// The image that plans [default: the manifest's, else the one that the job or another of the namespace runs with]
    #[arg(long)]
    pub image: Option<String>,

    /// How long to wait for the plan, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
}

/// Arguments of `check`.
#[derive(Args, Clone, Debug)]
pub(crate) struct CheckArgs {
    /// The manifest; '-' is stdin
    #[arg(short, long, value_name = "FILE")]
    pub filename: PathBuf,

    /// How it is planned.
    #[command(flatten)]
    pub planning: PlanningArgs,
}

/// Arguments of `explain`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ExplainArgs {
    /// The job in the cluster
    #[arg(required_unless_present = "filename", conflicts_with = "filename")]
    pub job: Option<String>,

    /// A manifest instead; '-' is stdin
    #[arg(short, long, value_name = "FILE")]
    pub filename: Option<PathBuf>,

    /// The form of the plan
    #[arg(long, value_enum, default_value_t = PlanFormat::Text)]
    pub format: PlanFormat,

    /// How it is planned.
    #[command(flatten)]
    pub planning: PlanningArgs,
}

/// The form of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlanFormat {
    /// A tree for people
    Text,
    /// For machines
    Json,
    /// For Graphviz
    Dot,
}

impl PlanFormat {
    /// As `tiderace explain` takes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Dot => "dot",
        }
    }
}

/// Arguments of `suspend`, `resume` and `restart`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ChangeArgs {
    /// The job
    pub job: String,

    /// Don't wait until it is done
    #[arg(long)]
    pub no_wait: bool,

    /// How long to wait, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub timeout: u64,
}

/// Arguments of `logs`.
#[derive(Args, Clone, Debug)]
pub(crate) struct LogsArgs {
    /// The job
    pub job: String,

    /// Go on as more comes
    #[arg(short, long)]
    pub follow: bool,

    /// Of the process before the last restart
    #[arg(short, long)]
    pub previous: bool,

    /// The last so many lines alone
    #[arg(long, value_name = "LINES", default_value_t = 200, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    pub tail: i64,

    /// JSON as the worker writes it
    #[arg(long)]
    pub raw: bool,
}

/// Arguments of `report`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ReportArgs {
    /// The job
    pub job: String,

    /// Where it is written [default: tiderace-report-NAMESPACE-JOB.tar.gz here]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// The namespace of the operator
    #[arg(long, value_name = "NAME", default_value = "tiderace-system")]
    pub operator_namespace: String,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some() && command.get_after_help().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
        }
    }
}
