//! `kubectl tiderace`: looks at jobs, changes what people change, and gathers what a bug report needs.
//!
//! ```text
//! arguments ─ cli ─▶ command ─ user's kubeconfig ─▶ API server ─┬─ objects, events, logs
//!                                                               └─ proxy to a worker's plain port: /metrics
//! ```
//! It has the rights of the person who calls it and no others: it reads no Secret, and asks a worker nothing that Prometheus couldn't.

mod archive;
mod change;
mod cli;
mod format;
mod logs;
mod plan;
mod redact;
mod report;
mod scrape;
mod status;
mod top;

#[cfg(test)]
mod mock;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use jiff::Timestamp;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

pub use cli::Cli;
use cli::{Command, Connection};

/// What a command works with.
pub(crate) struct Session {
    /// With the user's rights.
    pub client: Client,
    /// Where jobs are looked for.
    pub namespace: String,
    /// The clock.
    pub now: fn() -> Timestamp,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As asked.
    Done,
    /// What was looked at is not well: the job can't be planned, or didn't become ready in time.
    NotWell,
}

/// Runs what the process's arguments say: exit code 0 done, 1 not well, 2 the command line or the cluster is wrong.
#[must_use]
pub fn main_with_arguments() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return told(&error.into()),
    };
    let done = runtime.block_on(async {
        let session = connect(&cli.connection).await?;
        run(&session, cli.command, &mut io::stdout()).await
    });
    match done {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::NotWell) => ExitCode::from(1),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => told(&error),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn told(error: &anyhow::Error) -> ExitCode {
    // If stderr can't be written there is nobody left to tell.
    let _nobody_left: io::Result<()> = writeln!(io::stderr(), "error: {error:#}");
    ExitCode::from(2)
}

async fn connect(connection: &Connection) -> anyhow::Result<Session> {
    let options = KubeConfigOptions { context: connection.context.clone(), ..KubeConfigOptions::default() };
    let config = match &connection.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("{} can't be read", path.display()))?;
            Config::from_custom_kubeconfig(file, &options).await
        }
        None => Config::from_kubeconfig(&options).await,
    };
    let config = config.context("there is no usable kubeconfig: set KUBECONFIG or give --kubeconfig")?;
    let namespace = connection.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    // Several crates bring a provider; the process needs one answer.
    let _already_set = rustls::crypto::ring::default_provider().install_default();
    Ok(Session { client: Client::try_from(config)?, namespace, now: Timestamp::now })
}

async fn run(session: &Session, command: Command, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    match command {
        Command::Status(arguments) => status::run(session, &arguments, out).await,
        Command::Top(arguments) => top::run(session, &arguments, out).await,
        Command::Check(arguments) => plan::check(session, &arguments, out).await,
        Command::Explain(arguments) => plan::explain(session, &arguments, out).await,
        Command::Suspend(arguments) => change::suspend(session, &arguments, out).await,
        Command::Resume(arguments) => change::resume(session, &arguments, out).await,
        Command::Restart(arguments) => change::restart(session, &arguments, out).await,
        Command::Logs(arguments) => logs::run(session, &arguments, out).await,
        Command::Report(arguments) => report::run(session, &arguments, out).await,
    }
}

/// What a failed call to the API server means, in the user's words.
pub(crate) fn explain_error(error: kube::Error, what: &str) -> anyhow::Error {
    let text = match &error {
        kube::Error::Api(status) if status.code == 404 => format!("{what} is not there"),
        kube::Error::Api(status) if status.code == 403 => format!("you may not see or change {what}: {}", status.message),
        _ => format!("{what}: the API server didn't answer as it should"),
    };
    match error {
        kube::Error::Api(status) if matches!(status.code, 403 | 404) => anyhow::anyhow!(text),
        other => anyhow::Error::new(other).context(text),
    }
}
