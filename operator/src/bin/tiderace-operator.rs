//! The binary `tiderace-operator`.

use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tiderace_crds::Manifest;
use tiderace_operator::command::{Cli, Command, RenderArgs};
use tiderace_operator::render::{Plan, RENDERER_VERSION, Scale};
use tiderace_operator::{check, names, rbac, run};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .worker_threads(2)
            .build()
            .context("no threads")
            .and_then(|runtime| runtime.block_on(run::run(*args))),
        Command::Check(args) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("no threads")
            .and_then(|runtime| runtime.block_on(check::check(&args)))
            .map(|wrong| {
                for sentence in &wrong {
                    eprintln!("{sentence}");
                }
                wrong.is_empty()
            }),
        Command::Render(args) => render(&args).map(|()| true),
        Command::Rbac => print_yaml([&rbac::all()]).map(|()| true),
        Command::Crds => print_yaml(tiderace_crds::definitions().iter()).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print_yaml<'a, T: serde::Serialize + 'a>(documents: impl IntoIterator<Item = &'a T>) -> Result<()> {
    let mut text = String::new();
    for document in documents {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(document)?);
    }
    std::io::stdout().write_all(text.as_bytes()).context("stdout")
}

fn render(args: &RenderArgs) -> Result<()> {
    let mut text = String::new();
    if args.job.as_os_str() == "-" {
        std::io::stdin().lock().take(tiderace_crds::MANIFEST_BYTES_MAX as u64 + 1).read_to_string(&mut text).context("stdin")?;
    } else {
        text = std::fs::read_to_string(&args.job).with_context(|| args.job.display().to_string())?;
    }
    let manifest = Manifest::parse(&text)?;
    let spec = &manifest.job.spec;
    let statements = match (&spec.sql.inline, &args.sql) {
        (Some(inline), _) => inline.clone(),
        (None, Some(path)) => std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
        (None, None) => bail!("the job takes its statements from a ConfigMap: give them by --sql FILE"),
    };
    let job = manifest.job.metadata.name.clone().unwrap_or_default();
    let namespace = manifest.job.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let revision = names::revision(&job, spec, &statements);
    let image = spec.image.clone().unwrap_or_else(|| args.default_image.clone());
    let plan = Plan {
        job: &job,
        namespace: &namespace,
        uid: "00000000-0000-0000-0000-000000000000",
        spec,
        statements: &statements,
        revision: &revision,
        image: &image,
        image_pull_policy: None,
        operator_namespace: &args.operator_namespace,
        otlp_endpoint: None,
    };
    let mut all = plan.settings(spec);
    all.push(plan.config_map()?);
    all.push(plan.check_job());
    all.push(plan.stateful_set(Scale { epoch: 1, replicas: 1, claim_size: None, renderer_version: RENDERER_VERSION }));
    print_yaml(&all)
}
