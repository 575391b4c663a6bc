//! `tiderace serve`: the process of a worker's pod.
//!
//! ```text
//! job.yaml, job.sql, secrets ─▶ plan ─▶ Host ── Job (pinned cores)
//!            volume ─ WorkDirectory ─────┤  ▲
//!                                        │  └ SIGTERM, /v1/stop
//!   operator ── mTLS ── admin ───────────┤
//!   kubelet, Prometheus ── health, metrics
//! ```
//! The pod's process runs its job once. A job that came to its end leaves the process up, so that its end can be read and nothing starts it
//! again; one that failed ends the process, and the kubelet starts it anew.

mod admin;
mod answer;
pub(crate) mod exceptions;
mod fence;
mod health;
mod host;
mod listener;
mod log;
mod metrics;
mod openapi;
mod tls;
mod work_directory;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tiderace_crds::admin::{Problem, StatusReply, StopMode, WorkerState};
use tiderace_engine::connect::Secrets;
use tiderace_engine::error::{Code, Diagnostic};
use tiderace_engine::runtime::{CheckpointOptions, Job, JobOptions};
use tiderace_storage::{PressureOptions, PressureWorker};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use metrics::{METRICS, MetricKind, MetricSpec, metrics_markdown};
pub use openapi::{document_text as openapi_text, markdown as openapi_markdown};

use crate::app::Console;
use crate::command::ServeArgs;
use crate::exit::Exit;
use crate::job_file::JobFile;
use crate::planning::{self, Demand, Given};
use crate::{machine, plan_check, secret_files, termination};

use self::health::Health;
use self::host::{Host, Planned};
use self::listener::Limits;
use self::tls::Certificates;
use self::work_directory::WorkDirectory;

/// How long a failed process stays, so that who looks at its status sees why.
const FAILED_LINGER: Duration = Duration::from_secs(2);
/// How long a job may take to end after it was told to drop what it has in hand.
const ABORT_PATIENCE: Duration = Duration::from_secs(2);
/// How long the end of the process waits for its last spans to be sent.
const SPANS_PATIENCE: Duration = Duration::from_secs(2);
/// The part of the memory that the state may have, in hundredths; the rest is for rows under way, sources and sinks.
const STATE_MEMORY_PERCENT: u64 = 60;
/// Threads for the admin API and probes.
const SERVICE_THREADS: usize = 2;
/// Plans of deeply nested SQL take much stack.
const STACK_BYTES: usize = 16 << 20;

/// Requests that were answered, by path and status. Paths are those of the routes, so their number is bounded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests(Arc<Mutex<BTreeMap<(String, u16), u64>>>);

impl Requests {
    fn count(&self, path: &str, status: u16) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry((path.to_owned(), status)).or_default() += 1;
    }

    fn counts(&self) -> BTreeMap<(String, u16), u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves until a signal ends it, or its job failed.
pub(crate) fn run(console: &Console, arguments: ServeArgs) -> Exit {
    let hidden = log::Hidden::default();
    let exporter = match log::start(&arguments, hidden.clone()) {
        Ok(exporter) => exporter,
        Err(reason) => {
            let error = Diagnostic::new(Code::InvalidConfig, reason).hint("for example: info,tiderace_engine=debug");
            return console.refuse_alone(error);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(SERVICE_THREADS)
        .thread_stack_size(STACK_BYTES)
        .thread_name("service")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return console.refuse_alone(Diagnostic::new(Code::Internal, format!("no thread can be started: {error}"))),
    };
    let exit = runtime.block_on(async {
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let spans = exporter.map(|exporter| {
            tokio::spawn(exporter.run(async {
                // Dropped or sent: the process ends.
                let _over = ended.await;
            }))
        });
        let exit = serve(Arc::new(arguments), hidden).await;
        drop(end);
        if let Some(spans) = spans {
            // What is left of them; a collector that is away holds up nobody.
            let _sent = tokio::time::timeout(SPANS_PATIENCE, spans).await;
        }
        exit
    });
    // A plan that nobody waits for may still be made.
    runtime.shutdown_timeout(Duration::from_secs(1));
    exit
}

async fn serve(arguments: Arc<ServeArgs>, hidden: log::Hidden) -> Exit {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return refuse(&arguments, &Diagnostic::new(Code::Internal, format!("no signal can be heard: {error}"))),
    };
    // A planner has nothing to hide and changes nothing: it is asked in plain HTTP where nobody gave it certificates.
    let is_plain = arguments.planner && !arguments.tls_directory.exists();
    let certificates = match (!is_plain).then(|| Certificates::load(&arguments.tls_directory)).transpose() {
        Ok(certificates) => certificates,
        Err(error) => return refuse(&arguments, &error),
    };
    let address = arguments.listen_address;
    let bound = async {
        let health = listener::bind(address, arguments.health_port).await?;
        let admin = match certificates {
            Some(_) => Some(listener::bind(address, arguments.admin_port).await?),
            None => None,
        };
        Ok::<_, Diagnostic>((health, admin))
    };
    let (health_listener, admin_listener) = match bound.await {
        Ok(listeners) => listeners,
        Err(error) => return refuse(&arguments, &error),
    };
    let started_ms = host::now_ms();
    // The name comes from the manifest; what can't be read has none.
    let (file, host) = if arguments.planner {
        (None, None)
    } else {
        let file = JobFile::read(&arguments.job_directory);
        let host = Host::new(file.as_ref().map_or("", |file| file.name.as_str()), arguments.deploy_epoch);
        (Some(file), Some(Arc::new(host)))
    };
    tracing::info!(
        admin = admin_listener.as_ref().map(local),
        health = local(&health_listener),
        planner = arguments.planner,
        version = env!("CARGO_PKG_VERSION"),
        "listening"
    );
    let requests = Requests::default();
    let (over, shutdown) = watch::channel(false);
    let health = Health { host: host.clone(), requests: requests.clone(), certificates: certificates.clone(), started_ms };
    let mut plain = health::routes(health);
    if arguments.planner {
        plain = plain.merge(admin::routes(None, admin::REQUEST_TIME_MAX));
    }
    let plain = answer::finished(plain, requests.clone());
    let mut services = vec![tokio::spawn(listener::serve(health_listener, None, plain, Limits::default(), shutdown.clone()))];
    let mut follow = None;
    if let (Some(listener), Some(certificates)) = (admin_listener, certificates) {
        let router = admin::router(host.clone(), requests, admin::REQUEST_TIME_MAX);
        let limits = Limits::default();
        services.push(tokio::spawn(listener::serve(listener, Some(certificates.clone()), router, limits, shutdown)));
        follow = Some(tokio::spawn(certificates.follow()));
    }
    let exit = match (host, file) {
        (Some(host), Some(file)) => {
            let (thread_host, thread_arguments) = (host.clone(), arguments.clone());
            let thread = std::thread::Builder::new().name("job".to_owned()).stack_size(STACK_BYTES).spawn(move || {
                let file = match file {
                    Ok(file) => file,
                    Err(unusable) => {
                        return fail_all(&thread_host, &plan_check::problems_of(&unusable.diagnostics), &thread_arguments);
                    }
                };
                host_job(&thread_host, &file, &thread_arguments, &hidden);
            });
            match thread {
                Ok(_) => wait(&host, &mut signals, &arguments).await,
                Err(error) => refuse(&arguments, &Diagnostic::new(Code::Internal, format!("no thread can be started: {error}"))),
            }
        }
        _ => {
            signals.next().await;
            Exit::Success
        }
    };
    if let Some(follow) = follow {
        follow.abort();
    }
    over.send_replace(true);
    for service in services {
        let _panicked = service.await;
    }
    tracing::info!(exit = exit.code(), "over");
    exit
}

fn local(listener: &TcpListener) -> String {
    listener.local_addr().as_ref().map_or_else(ToString::to_string, SocketAddr::to_string)
}

/// Tells why the process can't serve at all.
fn refuse(arguments: &ServeArgs, error: &Diagnostic) -> Exit {
    let problem = plan_check::problem(error, None);
    tracing::error!(code = problem.code, hint = problem.hint, "{}", problem.message);
    termination::write_problems(&arguments.termination_log, &[problem]);
    Exit::Failed
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Follows the job until the process has to end.
async fn wait(host: &Arc<Host>, signals: &mut Signals, arguments: &ServeArgs) -> Exit {
    let mut state = host.follow();
    let is_over = |state: &WorkerState| matches!(state, WorkerState::Stopped | WorkerState::Finished | WorkerState::Failed);
    tokio::select! {
        () = signals.next() => {}
        failed = state.wait_for(|state| *state == WorkerState::Failed) => {
            drop(failed);
            tokio::select! {
                () = tokio::time::sleep(FAILED_LINGER) => {}
                () = signals.next() => {}
            }
            return Exit::Failed;
        }
    }
    let grace = Duration::from_secs(arguments.drain_seconds);
    let span = tracing::info_span!("drain", job = host.job(), epoch = host.epoch(), outcome = tracing::field::Empty);
    tracing::info!(parent: &span, seconds = grace.as_secs(), "told to end");
    if !is_over(&host.state()) {
        host.stop(None, StopMode::Drain);
    }
    let drained = tokio::select! {
        over = tokio::time::timeout(grace, state.wait_for(is_over)) => over.is_ok(),
        () = signals.next() => false,
    };
    span.record("outcome", if drained { "drained" } else { "given up" });
    if !drained {
        tracing::warn!(parent: &span, "not everything that was taken in has reached the sinks: the rest is given up");
        host.stop(None, StopMode::Cancel);
        let _stuck = tokio::time::timeout(ABORT_PATIENCE, state.wait_for(is_over)).await;
        return Exit::Failed;
    }
    if host.state() == WorkerState::Failed { Exit::Failed } else { Exit::Success }
}

fn fail_all(host: &Host, problems: &[Problem], arguments: &ServeArgs) {
    termination::write_problems(&arguments.termination_log, problems);
    if let Some(first) = problems.first() {
        host.fail(first.clone());
    }
}

/// Plans the job and runs it to its end, unless it has ended before.
fn host_job(host: &Host, file: &JobFile, arguments: &ServeArgs, hidden: &OnceLock<Secrets>) {
    if let Err(problems) = plan_and_run(host, file, arguments, hidden) {
        fail_all(host, &problems, arguments);
    } else if let Some(problem) = host.error() {
        termination::write_problems(&arguments.termination_log, &[problem]);
    }
}

fn plan_and_run(host: &Host, file: &JobFile, arguments: &ServeArgs, hidden: &OnceLock<Secrets>) -> Result<(), Vec<Problem>> {
    let one = |error: Diagnostic| vec![plan_check::problem(&error, None)];
    let work = WorkDirectory::open(&arguments.work_directory).map_err(one)?;
    if let Err(error) = host.keep_token_in(work.path()) {
        tracing::warn!(%error, "the working directory doesn't keep the operator's token");
    }
    host.keep_exceptions_in(work.path());
    if let Some(status) = work.ended(&file.name, arguments.deploy_epoch) {
        tracing::info!(state = ?status.state, "the job has ended in this deploy epoch before: it is not run again");
        host.set_ended_before(status);
        return Ok(());
    }
    let secrets = secret_files::read_if_any(&arguments.secrets_directory).map_err(one)?;
    // Set once: this is the only place.
    let _set: Result<(), Secrets> = hidden.set(secrets.clone());
    host.hide(secrets.clone());
    let given = Given { secrets, ..Given::default() };
    let demand = Demand::decide(file, None, machine::cores_available()).map_err(one)?;
    if let Some(note) = &demand.note {
        tracing::warn!("{note}");
    }
    let errors = |errors| plan_check::problems_in(&errors, file);
    let span = tracing::info_span!("plan", job = file.name, epoch = arguments.deploy_epoch, cores = demand.cores).entered();
    let plan = planning::plan(file, &given, demand.cores, false).map_err(errors)?;
    let plan_hash = if demand.cores == plan_check::planned_cores(file) {
        plan_check::plan_hash(&plan, file)
    } else {
        let wished = planning::plan(file, &given, plan_check::planned_cores(file), false).map_err(errors)?;
        plan_check::plan_hash(&wished, file)
    };
    let budget_bytes = plan.settings.memory_bytes.unwrap_or_else(|| state_budget_bytes(file));
    let planned = Planned { plan_hash, cores: demand.cores, budget_bytes, kept: Planned::kept(&plan.graph) };
    tracing::info!(job = file.name, plan_hash = planned.plan_hash, cores = demand.cores, budget_bytes, "planned");
    drop(span);
    let checkpoints = plan.settings.checkpoint_directory.as_ref().map(|directory| {
        let interval_ms = u64::try_from(plan.settings.checkpoint_interval.as_millis()).unwrap_or(u64::MAX);
        let directory = arguments.work_directory.join(directory);
        let options =
            CheckpointOptions { directory, interval_ms, definition: planning::definition(file, &given), reopens_finished: false };
        // A job that has changed begins without state.
        options.for_revision(demand.cores, file.max_parallelism).map_err(|e| {
            one(Diagnostic::new(Code::CheckpointFailed, format!("checkpoints below {}: {e}", arguments.work_directory.display())))
        })
    });
    let mut options = JobOptions {
        checkpoints: checkpoints.transpose()?,
        name: file.name.clone(),
        cores: demand.cores,
        memory_bytes: budget_bytes,
        state_directory: plan.settings.state_directory.as_ref().map(|directory| arguments.work_directory.join(directory)),
        io_uring: plan.settings.io_uring,
        interval_ms: u64::try_from(plan.settings.tick.as_millis()).unwrap_or(u64::MAX),
        max_parallelism: file.max_parallelism,
        ..JobOptions::default()
    };
    // Lives as long as the job; only state with a directory can give memory back.
    let pressure = options.state_directory.is_some().then(|| PressureWorker::start(PressureOptions::default()));
    if let Some(pressure) = &pressure {
        options.pressure = pressure.gauge();
    }
    for view in plan.views.values() {
        view.start(demand.cores);
    }
    let write_end = |status: &StatusReply| {
        // An end by a signal is the pod's, not the job's: the next pod runs it.
        let is_end = status.state == WorkerState::Finished || status.operation_id.is_some();
        if is_end && let Err(error) = work.set_ended(status) {
            let folder = arguments.work_directory.display();
            tracing::error!("the job's end can't be written to {folder}: {error}; a restart would run it again");
        }
    };
    host.run(planned, || Job::start(plan.graph.clone(), options), write_end);
    // The lock is held as long as the process lives: the next one must not start while sinks of this one may still write.
    std::mem::forget(work);
    Ok(())
}

/// What the state may hold when no setting says it: a part of what the container has.
fn state_budget_bytes(file: &JobFile) -> usize {
    let wished = file.memory.as_ref().map(tiderace_crds::MemorySize::bytes);
    let available = machine::memory_available_bytes();
    let least = match (wished, available) {
        (Some(wished), Some(available)) => wished.min(available),
        (one, other) => one.or(other).unwrap_or(JobOptions::default().memory_bytes as u64),
    };
    usize::try_from(least / 100 * STATE_MEMORY_PERCENT).unwrap_or(usize::MAX)
}
