//! The command line: names, defaults and help.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use tiderace_crds::{MemorySize, admin};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const EXAMPLES: &str = "\
Examples:
  tiderace run job.sql                          run the statements of a file
  tiderace run job.yaml --cores 2               run a StreamingJob manifest on two cores
  echo \"SELECT 1 + 1\" | tiderace run -          run what a pipe says
  tiderace check job.yaml                       plan only: are there errors?
  tiderace explain job.sql                      what runs, and what is kept as state
  tiderace connectors filesystem                the options of a connector

Exit codes: 0 done, 1 the job is wrong, 2 the command line is wrong, 3 the job failed while it ran.";

/// Streaming SQL on pinned cores: runs a job from a file, to the end of its input or until Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "tiderace", version, after_help = EXAMPLES, styles = STYLES, arg_required_else_help = true, max_term_width = 120)]
pub struct Cli {
    /// How errors, progress and the summary are written to stderr
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true, env = "TIDERACE_LOG_FORMAT", hide_env = true)]
    pub log: LogFormat,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line, for machines
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a job: bounded input to its end, unbounded input until Ctrl-C
    #[command(after_help = RUN_HELP)]
    Run(RunArgs),

    /// Plan a job without running it, and say all that is wrong with it
    #[command(after_help = CHECK_HELP)]
    Check(CheckArgs),

    /// Show what a job would run: nodes, keys, time, state and whether it is bounded
    #[command(after_help = EXPLAIN_HELP)]
    Explain(ExplainArgs),

    /// Be a worker's pod: run a job from mounted files, answer the operator, probes and Prometheus
    #[command(after_help = SERVE_HELP)]
    Serve(ServeArgs),

    /// List the functions that SQL may use
    Functions(ListArgs),

    /// List the connectors, or one with its options
    #[command(after_help = CONNECTORS_HELP)]
    Connectors(ConnectorArgs),

    /// Show the page of an error code: what it means, an example, what to do
    #[command(after_help = "Example:\n  tiderace error TR-1001")]
    Error(ErrorArgs),

    /// Show what the files of a log or a checkpoint say, without changing them
    #[command(after_help = INSPECT_HELP)]
    Inspect(InspectArgs),

    /// Print a script that completes commands and options in your shell
    #[command(after_help = COMPLETIONS_HELP)]
    Completions(CompletionArgs),
}

const RUN_HELP: &str = "\
Examples:
  tiderace run job.sql
  tiderace run job.yaml -D input=/data/bids --cores 4 --memory 8Gi
  tiderace run job.sql --query 'SELECT * FROM totals ORDER BY n DESC LIMIT 10'
  tiderace run job.sql --log json 2>log.jsonl >rows.txt

Rows of `print` sinks and of a bare SELECT go to stdout, all else to stderr.
Ctrl-C or SIGTERM stops the sources and drains: every row taken in reaches the sinks before exit 0. A second one aborts at once:
rows may be missing at the sinks, and the exit code is 128 + the signal's number. When the reader of a pipe goes away (`| head`), a job without other sinks ends.";

const CHECK_HELP: &str = "\
Examples:
  tiderace check job.yaml
  tiderace check job.sql -D input=/data/bids --log json
  tiderace check job.yaml --format json | jq .errors";

const SERVE_HELP: &str = "\
Examples:
  tiderace serve                                the process of a pod: everything is where the operator mounts it
  tiderace serve --planner                      plan only: answers /v1/plan:check and runs no job
  tiderace serve --job-directory job --tls-directory tls --work-directory work --secrets-directory secrets

SIGTERM stops the sources and drains inside --drain-seconds, then exit 0. A job that ends by itself leaves the process up, so that its
end can be read. A job that fails leaves its cause in the termination log: exit 3.";

const EXPLAIN_HELP: &str = "\
Examples:
  tiderace explain job.sql
  tiderace explain job.yaml --format json | jq .
  tiderace explain job.sql --format dot | dot -Tsvg > plan.svg";

const CONNECTORS_HELP: &str = "\
Examples:
  tiderace connectors
  tiderace connectors filesystem";

const INSPECT_HELP: &str = "\
Examples:
  tiderace inspect wal /data/wal --verify
  tiderace inspect log /data/audit --entries 20
  tiderace inspect checkpoint /data/core-0 --verify --json | jq .
  tiderace inspect shard /data/core-0/manifest-00000000000000000007
  tiderace inspect pages /data/core-0 --verify
  tiderace inspect wal /data/wal --repair truncate     changes files, keeps copies
  tiderace inspect pages /data/core-0 --repair set-aside

Looking needs no lock, and may be done while a job runs; repairing is refused then. Exit code 3: --verify found damage.";

const COMPLETIONS_HELP: &str = "\
Examples:
  tiderace completions bash > /etc/bash_completion.d/tiderace
  tiderace completions zsh > ~/.zfunc/_tiderace
  tiderace completions fish > ~/.config/fish/completions/tiderace.fish";

/// Which job, and what its text refers to.
#[derive(Args, Clone, Debug)]
pub struct JobArgs {
    /// A StreamingJob manifest (.yaml, .yml), SQL statements (.sql), a folder with job.yaml and job.sql, or '-' for stdin
    pub job: PathBuf,

    /// Set the value of ${NAME} in the SQL (may be repeated)
    #[arg(short = 'D', long = "define", value_name = "NAME=VALUE", value_parser = variable)]
    pub variables: Vec<(String, String)>,

    /// Set a configuration key, as SET does in SQL and `config` in a manifest; wins over the manifest (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    pub settings: Vec<(String, String)>,

    /// A folder with one file for each SECRET 'name' in the SQL
    #[arg(long, value_name = "FOLDER")]
    pub secrets: Option<PathBuf>,

    /// Cores to run on, each with a pinned thread [default: the manifest's, else all that affinity and cgroup allow]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub cores: Option<u16>,
}

/// Arguments of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Which job.
    #[command(flatten)]
    pub job: JobArgs,

    /// Bound on the state in memory: 8Gi, 512Mi [default: the manifest's, else half of what the machine or cgroup has]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<MemorySize>,

    /// Where state goes that doesn't fit in memory: scratch, emptied at the start and the end [default: such a job fails]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Where checkpoints go: started again with it, after whatever end, the job goes on from the last one [default: it begins anew]
    #[arg(long, value_name = "DIR")]
    pub checkpoint_dir: Option<PathBuf>,

    /// When the input has ended, print what this SELECT over materialized views says (may be repeated)
    #[arg(long, value_name = "SELECT")]
    pub query: Vec<String>,

    /// Print each change of a bare SELECT as it comes, and not the final rows as a table when the input has ended
    #[arg(long)]
    pub changes: bool,
}

/// Arguments of `check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Which job.
    #[command(flatten)]
    pub job: JobArgs,

    /// The form of the answer: text on stderr, or on stdout what the admin API's plan:check answers
    #[arg(long, value_enum, default_value_t = CheckFormat::Text)]
    pub format: CheckFormat,

    /// With --format json: also write the answer here, cut to the 4 KiB that a container may leave behind
    #[arg(long, value_name = "FILE")]
    pub termination_log: Option<PathBuf>,
}

/// The form of a check's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CheckFormat {
    /// For people
    Text,
    /// For machines
    Json,
}

/// Arguments of `serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Plan only: answer /v1/plan:check, and run no job
    #[arg(long)]
    pub planner: bool,

    /// The folder with job.yaml, and job.sql where the manifest takes the statements from a ConfigMap
    #[arg(long, value_name = "FOLDER", default_value = admin::JOB_DIRECTORY, env = "TIDERACE_JOB_DIRECTORY", hide_env = true)]
    pub job_directory: PathBuf,

    /// The folder with ca.crt, tls.crt and tls.key; read anew when they change
    #[arg(long, value_name = "FOLDER", default_value = admin::TLS_DIRECTORY, env = "TIDERACE_TLS_DIRECTORY", hide_env = true)]
    pub tls_directory: PathBuf,

    /// The folder with one file for each SECRET 'name' in the SQL; there need be none
    #[arg(long, value_name = "FOLDER", default_value = admin::SECRETS_DIRECTORY, env = "TIDERACE_SECRETS_DIRECTORY", hide_env = true)]
    pub secrets_directory: PathBuf,

    /// The folder for what outlives the process; it has one user
    #[arg(long, value_name = "FOLDER", default_value = admin::WORK_DIRECTORY, env = "TIDERACE_WORK_DIRECTORY", hide_env = true)]
    pub work_directory: PathBuf,

    /// The address to listen on [default: all, IPv6 and IPv4]
    #[arg(long, value_name = "ADDRESS", env = "TIDERACE_LISTEN_ADDRESS", hide_env = true)]
    pub listen_address: Option<IpAddr>,

    /// The port of the admin API, mTLS; 0 takes any
    #[arg(long, value_name = "PORT", default_value_t = admin::ADMIN_PORT, env = "TIDERACE_ADMIN_PORT", hide_env = true)]
    pub admin_port: u16,

    /// The port of /livez, /readyz, /startupz and /metrics, plain HTTP; 0 takes any
    #[arg(long, value_name = "PORT", default_value_t = admin::HEALTH_PORT, env = "TIDERACE_HEALTH_PORT", hide_env = true)]
    pub health_port: u16,

    /// The number of this start of the job; calls that mean another are refused
    #[arg(long, value_name = "N", default_value_t = 0, env = admin::EPOCH_VARIABLE, hide_env = true)]
    pub deploy_epoch: u64,

    /// How long SIGTERM may drain before the rest is given up; shorter than the pod's grace period
    #[arg(long, value_name = "SECONDS", default_value_t = 25, env = "TIDERACE_DRAIN_SECONDS", hide_env = true, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub drain_seconds: u64,

    /// Where the cause of a failure is left for the kubelet
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log", env = "TIDERACE_TERMINATION_LOG", hide_env = true)]
    pub termination_log: PathBuf,

    /// Which messages are logged: error, warn, info, debug, or tracing's directives
    #[arg(long, value_name = "FILTER", default_value = "info", env = "TIDERACE_LOG", hide_env = true)]
    pub log_filter: String,

    /// A collector that gets the spans, OTLP over HTTP: http://HOST:PORT
    #[arg(long, value_name = "URL", env = admin::OTLP_VARIABLE, hide_env = true)]
    pub otlp_endpoint: Option<tiderace_telemetry::Endpoint>,

    /// What the spans' resource is called besides
    #[arg(long, value_name = "KEY=VALUE,…", default_value = "", env = admin::OTLP_ATTRIBUTES_VARIABLE, hide_env = true, hide_default_value = true)]
    pub otlp_attributes: String,
}

/// Arguments of `explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// Which job.
    #[command(flatten)]
    pub job: JobArgs,

    /// The form of the plan
    #[arg(long, value_enum, default_value_t = PlanFormat::Text)]
    pub format: PlanFormat,
}

/// The form of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlanFormat {
    /// A tree for people
    Text,
    /// For machines
    Json,
    /// For Graphviz
    Dot,
}

/// Arguments of `functions`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// The form of the list
    #[arg(long, value_enum, default_value_t = ListFormat::Text)]
    pub format: ListFormat,
}

/// The form of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// An aligned table
    Text,
    /// For machines
    Json,
    /// For the reference
    Markdown,
}

/// Arguments of `connectors`.
#[derive(Args, Clone, Debug)]
pub struct ConnectorArgs {
    /// The connector or format to show in full
    pub name: Option<String>,

    /// The form of the list.
    #[command(flatten)]
    pub list: ListArgs,
}

/// Arguments of `error`.
#[derive(Args, Clone, Debug)]
pub struct ErrorArgs {
    /// The code: TR-1001, or 1001
    pub code: String,
}

/// Arguments of `inspect`.
#[derive(Args, Clone, Debug)]
pub struct InspectArgs {
    /// What is there
    #[arg(value_enum)]
    pub kind: InspectKind,

    /// Its directory, or one of its files
    pub path: PathBuf,

    /// Write JSON
    #[arg(long)]
    pub json: bool,

    /// Read all data and compare it with its checksums; damage is a failure
    #[arg(long)]
    pub verify: bool,

    /// Show so many entries of a log, from its beginning
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub entries: usize,

    /// The version of the checkpoint [default: the newest]
    #[arg(long, value_name = "VERSION")]
    pub version: Option<u64>,

    /// Make a damaged log, or a directory of checkpoints, one that opens: CHANGES FILES, keeps copies of them, and says what is lost
    #[arg(long, value_enum, value_name = "POLICY")]
    pub repair: Option<RepairKind>,
}

/// What is inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InspectKind {
    /// A write-ahead log
    Wal,
    /// A log
    Log,
    /// The tables of one checkpoint, by reading its data
    Shard,
    /// All checkpoints of a directory
    Checkpoint,
    /// One checkpoint's manifest
    Manifest,
    /// Checkpoints that a shard's own pages make up, and their segments
    Pages,
    /// A checkpoint of a key-value store, with its sessions
    Kv,
    /// What went wrong in a job, from its worker's working directory
    Exceptions,
    /// How files of a directory are reached: io_uring or threads, found out by writing one there
    Device,
}

/// What a repair keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RepairKind {
    /// All before the first damage
    Truncate,
    /// All that is whole, around the damage
    Skip,
    /// Of checkpoints: the newest that is whole; damaged ones above it get other names
    SetAside,
}

/// Arguments of `completions`.
#[derive(Args, Clone, Debug)]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("there must be a '=' between name and value")?;
    if key.trim().is_empty() {
        return Err("the name before '=' is empty".to_owned());
    }
    Ok((key.trim().to_owned(), value.to_owned()))
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = pair(text)?;
    let is_word = name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if is_word { Ok((name, value)) } else { Err(format!("'{name}' is not a name: use letters, digits, '_', '-' and '.'")) }
}

fn setting(text: &str) -> Result<(String, String), String> {
    pair(text)
}

fn memory(text: &str) -> Result<MemorySize, String> {
    // `GiB` is `Gi` to Kubernetes; people write both.
    MemorySize::parse(text.strip_suffix('B').unwrap_or(text))
        .ok_or_else(|| "must be an amount of memory such as 8Gi or 512Mi".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_all_its_options() {
        let cli = Cli::try_parse_from([
            "tiderace",
            "run",
            "job.sql",
            "-D",
            "a=1=2",
            "-Db=",
            "--set",
            "engine.tick=50ms",
            "--cores",
            "2",
            "--memory",
            "8Gi",
            "--query",
            "SELECT 1",
            "--log",
            "json",
        ])
        .unwrap();
        assert_eq!(cli.log, LogFormat::Json);
        let Command::Run(run) = cli.command else { panic!("{:?}", cli.command) };
        assert_eq!(run.job.variables, [("a".to_owned(), "1=2".to_owned()), ("b".to_owned(), String::new())]);
        assert_eq!(run.job.settings, [("engine.tick".to_owned(), "50ms".to_owned())]);
        assert_eq!((run.job.cores, run.memory.unwrap().bytes()), (Some(2), 8 << 30));
        assert_eq!(run.query, ["SELECT 1"]);
    }

    #[test]
    fn wrong_usage_is_told_as_such() {
        for arguments in [
            &["tiderace", "run"][..],
            &["tiderace", "run", "a.sql", "-D", "novalue"],
            &["tiderace", "run", "a.sql", "-D", "=x"],
            &["tiderace", "run", "a.sql", "-D", "a b=x"],
            &["tiderace", "run", "a.sql", "--cores", "0"],
            &["tiderace", "run", "a.sql", "--memory", "much"],
            &["tiderace", "dance"],
            &["tiderace", "explain", "a.sql", "--format", "png"],
        ] {
            let error = Cli::try_parse_from(arguments).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
        }
    }
}
