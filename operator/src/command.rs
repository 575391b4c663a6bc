//! The command line of `tiderace-operator`.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use axum::http::Uri;
use clap::{Parser, Subcommand, ValueEnum};
use tiderace_telemetry::Endpoint;

const EXAMPLES: &str = "\
Examples:
  tiderace-operator run --default-image ghcr.io/tiderace/tiderace:0.1.0
  tiderace-operator run --watch-namespace shop --watch-namespace billing
  tiderace-operator render job.yaml          what the operator would write for a job; needs no cluster
  tiderace-operator crds | kubectl apply --server-side -f -
  tiderace-operator rbac                     the rights that `run` needs, as rules of roles

`run` finds the cluster as kubectl does: in a pod by its service account, elsewhere by KUBECONFIG.";

/// Runs StreamingJobs on Kubernetes: watches the manifests, and keeps workers as they ask.
#[derive(Debug, Parser)]
#[command(name = "tiderace-operator", version, after_help = EXAMPLES, arg_required_else_help = true, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look after the cluster's jobs
    Run(Box<RunArgs>),
    /// Check that definitions, rights and a leading operator are there; says what is missing
    Check(CheckArgs),
    /// Print what the operator would write for a job
    Render(RenderArgs),
    /// Print the rules of roles that `run` needs: `own` (its namespace), `jobs` (each namespace with jobs), `cluster`
    Rbac,
    /// Print the custom resource definitions
    Crds,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Arguments of `run`.
#[derive(clap::Args, Debug)]
pub struct RunArgs {
    /// The image of jobs that name none
    #[arg(long, value_name = "IMAGE", env = "TIDERACE_DEFAULT_IMAGE", default_value = concat!("ghcr.io/tiderace/tiderace:", env!("CARGO_PKG_VERSION")))]
    pub default_image: String,

    /// When the kubelet pulls images of workers and checks [default: Kubernetes' own rule]
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub image_pull_policy: Option<String>,

    /// A namespace to look after (may be repeated) [default: all]
    #[arg(long = "watch-namespace", value_name = "NAMESPACE")]
    pub watch_namespaces: Vec<String>,

    /// Name of the Lease that decides which of several operators acts
    #[arg(long, value_name = "NAME", default_value = "tiderace-operator")]
    pub lease_name: String,

    /// Namespace of that Lease, and of the operator's pods
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,

    /// A name that no other operator has [default: the host's name and a number]
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: Option<String>,

    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    pub listen_address: IpAddr,

    /// Port of /livez, /readyz and /metrics
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub health_port: u16,

    /// How log lines are written; RUST_LOG says which
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// A collector that gets the operator's spans, OTLP over HTTP: http://HOST:PORT
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<Endpoint>,

    /// A collector for the spans of workers, given to them when they are started
    #[arg(long, value_name = "URL")]
    pub worker_otlp_endpoint: Option<Endpoint>,

    /// Jobs that are looked at at the same time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,

    /// A planner to ask for plans of the default image: http://HOST:PORT. A Job plans where it doesn't answer
    #[arg(long, value_name = "URL", value_parser = plain_url)]
    pub planner_url: Option<Uri>,

    /// Days that a job's certificates live; they are renewed after two thirds of it, and their authority lives four times as long
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..=3650))]
    pub certificate_days: u16,

    /// Serve the validating webhook
    #[arg(long)]
    pub webhook: bool,

    /// Port of the webhook
    #[arg(long, value_name = "PORT", default_value_t = 9443)]
    pub webhook_port: u16,

    /// The Service by which the API server reaches the webhook, in the operator's namespace
    #[arg(long, value_name = "NAME", default_value = "tiderace-webhook")]
    pub webhook_service: String,

    /// The ValidatingWebhookConfiguration into which the operator writes its own authority
    #[arg(long, value_name = "NAME")]
    pub webhook_configuration: Option<String>,

    /// A folder with tls.crt and tls.key that somebody else looks after (cert-manager), instead of an authority of the operator's own
    #[arg(long, value_name = "FOLDER", conflicts_with = "webhook_configuration")]
    pub webhook_certificate_directory: Option<PathBuf>,
}

/// Arguments of `check`.
#[derive(clap::Args, Debug)]
pub struct CheckArgs {
    /// A namespace that the operator looks after (may be repeated) [default: all]
    #[arg(long = "watch-namespace", value_name = "NAMESPACE")]
    pub watch_namespaces: Vec<String>,

    /// Name of the operators' Lease
    #[arg(long, value_name = "NAME", default_value = "tiderace-operator")]
    pub lease_name: String,

    /// Namespace of that Lease
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,
}

/// Arguments of `render`.
#[derive(clap::Args, Debug)]
pub struct RenderArgs {
    /// The manifest; '-' is stdin
    pub job: PathBuf,

    /// The image of a job that names none
    #[arg(long, value_name = "IMAGE", default_value = concat!("ghcr.io/tiderace/tiderace:", env!("CARGO_PKG_VERSION")))]
    pub default_image: String,

    /// The statements of a job that takes them from a ConfigMap
    #[arg(long, value_name = "FILE")]
    pub sql: Option<PathBuf>,

    /// Namespace of the operator, for the NetworkPolicy
    #[arg(long, value_name = "NAMESPACE", default_value = "tiderace-system")]
    pub operator_namespace: String,
}

fn plain_url(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
    if uri.scheme_str() == Some("http") && uri.authority().is_some() {
        Ok(uri)
    } else {
        Err("must be http://HOST:PORT".to_owned())
    }
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
    fn run_takes_what_the_chart_gives_it() {
        let cli = Cli::try_parse_from([
            "tiderace-operator",
            "run",
            "--default-image=a:1",
            "--image-pull-policy=Never",
            "--lease-name=l",
            "--lease-namespace=n",
            "--identity=i",
            "--health-port=8080",
            "--log-format=json",
            "--watch-namespace=x",
            "--watch-namespace=y",
            "--webhook",
            "--webhook-port=9443",
            "--webhook-service=w",
            "--webhook-configuration=w",
            "--planner-url=http://planner.tiderace.svc:8080",
            "--otlp-endpoint=http://collector:4318",
            "--worker-otlp-endpoint=http://collector:4318",
        ])
        .unwrap();
        let Command::Run(run) = cli.command else { panic!("{:?}", cli.command) };
        assert_eq!(run.watch_namespaces, ["x", "y"]);
        assert!(Cli::try_parse_from(["tiderace-operator", "run", "--planner-url=https://x"]).is_err());
        assert!(Cli::try_parse_from(["tiderace-operator", "run", "--otlp-endpoint=https://x"]).is_err());
    }
}
