//! `tiderace run`: starts a planned job, shows where it is, stops it on a signal, says how it ended.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tiderace_engine::error::{Diagnostic, Diagnostics};
use tiderace_engine::plan::{JobPlan, ViewQuery};
use tiderace_engine::runtime::graph::{Graph, Role};
use tiderace_engine::runtime::{CheckpointOptions, Job, JobOptions, JobProgress, look};
use tiderace_storage::{PressureOptions, PressureWorker};

use crate::app::Console;
use crate::command::{LogFormat, RunArgs};
use crate::exit::Exit;
use crate::job_file::JobFile;
use crate::machine;
use crate::planning::{self, Demand, Given};
use crate::progress::{self, Live, Meter, Observation, SinkObservation, SourceObservation};
use crate::report::Located;
use crate::result_table::ResultTable;
use crate::summary::{Ending, Summary};

/// How often a job is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How often `--log json` gets a line.
const JSON_INTERVAL: Duration = Duration::from_secs(1);
/// How often a log that is no terminal gets a line.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How long an aborted job may take to end before the process ends without it: a thread may be stuck in a write.
const ABORT_PATIENCE: Duration = Duration::from_millis(300);

/// Runs the job of `arguments` to its end.
pub(crate) fn run(console: &Console, arguments: &RunArgs) -> Exit {
    let file = match console.read(&arguments.job) {
        Ok(file) => file,
        Err(exit) => return exit,
    };
    let demand = match Demand::decide(&file, arguments.job.cores, machine::cores_available()) {
        Ok(demand) => demand,
        Err(error) => return console.refuse_alone(error),
    };
    if let Some(note) = &demand.note {
        console.info(note);
    }
    let given = match Given::by(&arguments.job) {
        Ok(given) => given,
        Err(error) => return console.refuse_alone(error),
    };
    let plan = match planning::plan_to_run(&file, &given, &demand, arguments.changes) {
        Ok(plan) => plan,
        Err(errors) => return console.refuse(&Located::in_sql(&errors, &file), &errors),
    };
    let checkpoints = checkpoints(arguments, &plan, &file, &given);
    let plan = match &checkpoints {
        // Rows that were collected before a crash would be missing in the table.
        Some(_) if !arguments.changes && !plan.results.is_empty() => match planning::plan_to_run(&file, &given, &demand, true) {
            Ok(plan) => plan,
            Err(errors) => return console.refuse(&Located::in_sql(&errors, &file), &errors),
        },
        _ => plan,
    };
    let queries: Result<Vec<_>, _> =
        arguments.query.iter().map(|sql| ViewQuery::plan(&plan.views, plan.settings.zone, sql)).collect();
    let queries = match queries {
        Ok(queries) => queries,
        Err(error) => return console.refuse_alone(Diagnostic { span: None, ..error }),
    };
    for text in &plan.texts {
        let exit = console.rows(&format!("{}\n", text.trim_end()));
        if exit != Exit::Success {
            return exit;
        }
    }
    if plan.graph.nodes.is_empty() {
        return Exit::Success;
    }
    if let Some(checkpoints) = &checkpoints {
        match look(checkpoints, demand.cores, file.max_parallelism) {
            Ok(None) => {}
            Ok(Some(found)) if found.finished => {
                let directory = checkpoints.directory.display();
                let what = if queries.is_empty() { "there is nothing to do" } else { "its views are asked, nothing is read" };
                console.info(&format!(
                    "the job had come to its end before, by the checkpoint in {directory}: {what} (remove the directory to run it anew)"
                ));
            }
            Ok(Some(found)) => {
                let age = Duration::from_micros(u64::try_from(now_us().saturating_sub(found.time_us)).unwrap_or(0));
                console.info(&format!("going on from checkpoint {}, {} s old", found.version, age.as_secs()));
            }
            Err(error) => return console.refuse_alone(error),
        }
    }
    let (summary, outcome) = drive(console, &file, arguments, &demand, &plan, checkpoints);
    let exit = match outcome {
        Outcome::Drained => show_results(console, &plan, &queries),
        Outcome::Aborted(signal) => Exit::Interrupted(signal),
        Outcome::Failed(error) => {
            let errors = Diagnostics::from(given.secrets.redact_diagnostic(error));
            console.refuse(&Located::in_sql(&errors, &file), &errors);
            Exit::Failed
        }
    };
    console.note(&summary.render(console.style.format));
    exit
}

/// How a job came to its end.
enum Outcome {
    /// Every row that was taken in is at the sinks.
    Drained,
    /// The signal of that number ended it while it drained.
    Aborted(u8),
    Failed(Diagnostic),
}

fn show_results(console: &Console, plan: &JobPlan, queries: &[ViewQuery]) -> Exit {
    let render = |table: ResultTable| table.render(console.is_stdout_terminal);
    let mut tables: Vec<_> = plan.results.iter().map(|result| ResultTable::of_sink(result).and_then(render)).collect();
    tables.extend(queries.iter().map(|query| ResultTable::of_query(query).and_then(render)));
    for table in tables {
        let exit = match table {
            Ok(text) => console.rows(&text),
            Err(error) => {
                console.refuse_alone(error);
                Exit::Failed
            }
        };
        if exit != Exit::Success {
            return exit;
        }
    }
    Exit::Success
}

/// Runs `plan` and shows where it is. Gives the counts up to the end, and how that came.
fn drive(
    console: &Console,
    file: &JobFile,
    arguments: &RunArgs,
    demand: &Demand,
    plan: &JobPlan,
    checkpoints: Option<CheckpointOptions>,
) -> (Summary, Outcome) {
    let mut options = JobOptions {
        name: file.name.clone(),
        cores: demand.cores,
        memory_bytes: memory_bytes(arguments, plan, file),
        state_directory: arguments.state_dir.clone().or_else(|| plan.settings.state_directory.clone()),
        checkpoints,
        io_uring: plan.settings.io_uring,
        interval_ms: plan.settings.tick.as_millis() as u64,
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
    let totals = Totals::of(&plan.graph);
    let signals = listen();
    let job = Job::start(plan.graph.clone(), options);
    let mut screen = Screen::new(console, &plan.graph, &totals.observe(&job.progress()));
    let mut is_stopping = false;
    while !job.is_finished() {
        match signals.as_ref().map_or(Err(RecvTimeoutError::Disconnected), |s| s.recv_timeout(LOOK)) {
            Ok(_) if !is_stopping => {
                is_stopping = true;
                screen.say(console, "stopping: rows taken in go on to the sinks (again to abort)");
                job.stop();
            }
            Ok(signal) => {
                drop(screen);
                console.info("aborting: rows taken in may be missing at the sinks");
                job.abort();
                let deadline = Instant::now() + ABORT_PATIENCE;
                while !job.is_finished() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let summary = summary(file, demand, &job.progress(), Ending::Aborted);
                job.abandon();
                return (summary, Outcome::Aborted(signal));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
        }
        if !is_stopping && plan.graph.is_abandoned() {
            is_stopping = true;
            screen.say(console, "stopping: nobody reads what the job prints any more");
            job.stop();
        }
        screen.show(console, &totals.observe(&job.progress()));
    }
    drop(screen);
    match job.wait() {
        Ok(report) => {
            let ending = if is_stopping { Ending::Stopped } else { Ending::Finished };
            (summary(file, demand, &report.progress, ending), Outcome::Drained)
        }
        Err(error) => (summary(file, demand, &job.progress(), Ending::Failed), Outcome::Failed(error)),
    }
}

/// Where checkpoints go, if anywhere: the command line wins over SET and `config`.
fn checkpoints(arguments: &RunArgs, plan: &JobPlan, file: &JobFile, given: &Given) -> Option<CheckpointOptions> {
    let directory = arguments.checkpoint_dir.clone().or_else(|| plan.settings.checkpoint_directory.clone())?;
    let interval_ms = u64::try_from(plan.settings.checkpoint_interval.as_millis()).unwrap_or(u64::MAX);
    Some(CheckpointOptions {
        directory,
        interval_ms,
        definition: planning::definition(file, given),
        reopens_finished: !arguments.query.is_empty(),
    })
}

/// The command line wins over SET and `config`, those over the manifest's resources, those over half of what there is.
fn memory_bytes(arguments: &RunArgs, plan: &JobPlan, file: &JobFile) -> usize {
    let to_usize = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let asked = arguments.memory.as_ref().map(|m| to_usize(m.bytes()));
    asked
        .or(plan.settings.memory_bytes)
        .or_else(|| file.memory.as_ref().map(|m| to_usize(m.bytes())))
        .or_else(|| machine::memory_available_bytes().map(|bytes| to_usize(bytes / 2)))
        .unwrap_or(JobOptions::default().memory_bytes)
}

/// How much each source has to read in all, where it knows.
struct Totals(Vec<SourceTotal>);

struct SourceTotal {
    name: String,
    rows: Option<u64>,
    bytes: Option<u64>,
}

impl Totals {
    fn of(graph: &Graph) -> Self {
        let sources = graph.nodes.iter().filter_map(|node| match &node.role {
            Role::Source(spec) => {
                let rows = spec.source.rows_hint();
                // Files may be listed for it: not when nobody asks, nor where more comes later.
                let bytes = if rows.is_none() && spec.source.is_bounded() { spec.source.bytes_hint() } else { None };
                Some(SourceTotal { name: node.name.clone(), rows, bytes })
            }
            Role::Operator(_) | Role::Union | Role::Sink(_) => None,
        });
        Self(sources.collect())
    }

    fn observe(&self, now: &JobProgress) -> Observation {
        let total = |name: &str| self.0.iter().find(|total| total.name == name);
        let sources = now.sources().map(|node| SourceObservation {
            name: node.name.clone(),
            rows: node.rows_in,
            rows_total: total(&node.name).and_then(|total| total.rows),
            bytes: node.bytes_read,
            bytes_total: total(&node.name).and_then(|total| total.bytes),
            watermark_us: Some(node.watermark.0).filter(|us| *us != i64::MIN && *us != i64::MAX),
            lag_rows: None,
        });
        Observation {
            elapsed: now.elapsed,
            sources: sources.collect(),
            sinks: now.sinks().map(|node| SinkObservation { name: node.name.clone(), rows: node.rows_out }).collect(),
            state_bytes: now.cores.iter().map(|core| core.state_bytes).sum(),
        }
    }
}

fn summary(file: &JobFile, demand: &Demand, end: &JobProgress, ending: Ending) -> Summary {
    let rejected = end.nodes.iter().flat_map(|node| node.rejected.iter().map(|(code, n)| (node.name.clone(), *code, *n)));
    Summary {
        job: file.name.clone(),
        elapsed: end.elapsed,
        cores: demand.cores,
        rows_in: end.sources().map(|node| (node.name.clone(), node.rows_in)).collect(),
        rows_out: end.sinks().map(|node| (node.name.clone(), node.rows_out)).collect(),
        late: end.nodes.iter().filter(|node| node.late_rows > 0).map(|node| (node.name.clone(), node.late_rows)).collect(),
        rejected: rejected.collect(),
        memory_peak_bytes: machine::memory_peak_bytes(),
        ending,
    }
}

/// Progress in the form that the console takes.
struct Screen {
    live: Option<Live>,
    meter: Meter,
    interval: Option<Duration>,
    shown: Instant,
    is_json: bool,
}

impl Screen {
    fn new(console: &Console, graph: &Graph, first: &Observation) -> Self {
        let is_json = console.style.format == LogFormat::Json;
        // Rows on the same terminal would run through lines that are redrawn.
        let prints = console.is_stdout_terminal
            && graph.nodes.iter().any(|node| matches!(&node.role, Role::Sink(spec) if spec.sink.writes_stdout()));
        let live = (console.style.is_terminal && !is_json && !prints).then(|| Live::new(&first.sources));
        let interval = if is_json { Some(JSON_INTERVAL) } else { (!console.style.is_terminal).then_some(LOG_INTERVAL) };
        Self { live, meter: Meter::default(), interval, shown: Instant::now(), is_json }
    }

    fn show(&mut self, console: &Console, now: &Observation) {
        if let Some(live) = &self.live {
            live.show(now, &self.meter.rates(now), now_us());
        } else if self.interval.is_some_and(|interval| self.shown.elapsed() >= interval) {
            self.shown = Instant::now();
            let rates = self.meter.rates(now);
            if self.is_json {
                console.note(&format!("{}\n", progress::json_line(now, &rates)));
            } else {
                for (source, rate) in now.sources.iter().zip(&rates.sources) {
                    console.note(&format!("{}  {}\n", source.name, progress::source_line(source, *rate, now_us())));
                }
                console.note(&format!("out  {}\n", progress::sinks_line(now, rates.out)));
            }
        }
    }

    fn say(&self, console: &Console, text: &str) {
        match &self.live {
            Some(live) => live.print(&format!("{text}\n")),
            None => console.info(text),
        }
    }
}

/// Wall clock, for the lag that people see.
fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|t| i64::try_from(t.as_micros()).ok()).unwrap_or(0)
}

/// The number of each SIGINT or SIGTERM that comes. `None` when signals can't be had: they then end the process, as they do by default.
fn listen() -> Option<Receiver<u8>> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt()).ok()?, signal(SignalKind::terminate()).ok()?)
    };
    let (sender, receiver) = channel();
    let wait = move || {
        runtime.block_on(async move {
            loop {
                let kind = tokio::select! {
                    _ = interrupt.recv() => SignalKind::interrupt(),
                    _ = terminate.recv() => SignalKind::terminate(),
                };
                // Signal numbers are below 65.
                if sender.send(u8::try_from(kind.as_raw_value()).unwrap_or(0)).is_err() {
                    return;
                }
            }
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).ok()?;
    Some(receiver)
}
