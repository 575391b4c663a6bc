//! `tiderace-e2e`: brings up the cluster, installs the product, runs scenarios. `make e2e` is the usual way to call it.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tiderace_e2e::cluster::{self, Cluster};
use tiderace_e2e::{bench, charts, install, runner, scenarios, storm};

/// Tests of the whole product on a real Kubernetes.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Order,
}

#[derive(Subcommand)]
enum Order {
    /// Run scenarios on a cluster of this machine.
    Run {
        /// Parts of names of scenarios; none: all.
        filters: Vec<String>,
        /// Nodes of the cluster.
        #[arg(long, default_value_t = 5)]
        nodes: usize,
        /// How many scenarios at the same time.
        #[arg(long, default_value_t = 4)]
        parallel: usize,
        /// Keep the cluster, and the namespaces of failed scenarios.
        #[arg(long)]
        keep: bool,
    },
    /// Name the scenarios.
    List,
    /// Bring up the cluster with the product in it, and leave it.
    Up {
        /// Nodes of the cluster.
        #[arg(long, default_value_t = 5)]
        nodes: usize,
    },
    /// Remove the cluster.
    Down,
    /// Measure one operator with many jobs, on an API server without nodes.
    Bench {
        /// How many jobs.
        #[arg(long, default_value_t = 1000)]
        jobs: usize,
    },
    /// Break things by chance while jobs are changed, and see that none has two workers and each ends as it should.
    Chaos {
        /// How long.
        #[arg(long, default_value_t = 5)]
        minutes: u64,
        /// Gives the order of events; a failed run names its own.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Nodes of the cluster.
        #[arg(long, default_value_t = 4)]
        nodes: usize,
        /// Keep the cluster.
        #[arg(long)]
        keep: bool,
    },
    /// Compare deploy/tiderace.yaml with the charts; with UPDATE=1, write it anew.
    Render,
}

#[tokio::main]
async fn main() -> ExitCode {
    // Only fails where one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Scenarios are tasks of this thread: they wait most of the time.
    match tokio::task::LocalSet::new().run_until(run(Arguments::parse().command)).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(order: Order) -> Result<ExitCode> {
    match order {
        Order::List => {
            for scenario in scenarios::ALL {
                println!("{}{}", scenario.name, if scenario.alone { "  (alone)" } else { "" });
            }
        }
        Order::Down => Cluster::down()?,
        Order::Bench { jobs } => {
            if let Some(code) = skipped() {
                return Ok(code);
            }
            bench::run(jobs).await?;
        }
        Order::Chaos { minutes, seed, nodes, keep } => {
            if let Some(code) = skipped() {
                return Ok(code);
            }
            let outcome = async { storm::run(&up(nodes).await?, minutes, seed).await }.await;
            if !keep {
                Cluster::down()?;
            }
            outcome?;
        }
        Order::Render => charts::check_rendered(&cluster::checkout(), std::env::var_os("UPDATE").is_some())?,
        Order::Up { nodes } => {
            if let Some(code) = skipped() {
                return Ok(code);
            }
            up(nodes).await?;
        }
        Order::Run { filters, nodes, parallel, keep } => {
            if let Some(code) = skipped() {
                return Ok(code);
            }
            charts::check_rendered(&cluster::checkout(), false)?;
            let outcome = async {
                let cluster = up(nodes).await?;
                runner::run(&cluster, scenarios::ALL, &runner::Plan { filters, parallel, keep }).await
            }
            .await;
            if !keep {
                Cluster::down()?;
            }
            outcome?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn up(nodes: usize) -> Result<Cluster> {
    let cluster = Cluster::up(nodes).await?;
    install::load_images(&cluster).await?;
    install::charts(&cluster, install::TAG, &install::usual_values()).await?;
    Ok(cluster)
}

/// Says why nothing can run here, and whether that is a failure: in CI it is.
fn skipped() -> Option<ExitCode> {
    let why = cluster::obstacle()?;
    let ci = std::env::var_os("CI").is_some_and(|ci| !ci.is_empty());
    eprintln!("e2e: SKIPPED{}: {why}", if ci { " where it must not be (CI is set)" } else { "" });
    Some(if ci { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
