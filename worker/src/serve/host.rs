//! A job inside its pod: what it is doing, how to stop it, what became of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tiderace_crds::admin::{ExceptionsReply, Problem, StatusReply, StopMode, WorkerState};
use tiderace_engine::connect::Secrets;
use tiderace_engine::error::Code;
use tiderace_engine::operators::{PORT_LATE, PORT_REJECTED};
use tiderace_engine::runtime::graph::Graph;
use tiderace_engine::runtime::{Job, JobProgress};
use tokio::sync::watch;
use tracing::field::Empty;

use super::exceptions::{Exceptions, Refused};
use super::fence::{Fence, Stale};

/// How often a job is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// A job whose first epoch takes longer is taken to run all the same: its sources are open, and its tick may be long.
const OPENING_PATIENCE: Duration = Duration::from_secs(1);
/// How often rows refused at one node for one cause are logged at most.
const REFUSED_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What a job was planned to be.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    /// SHA-256 of the plan.
    pub plan_hash: String,
    /// Pinned cores.
    pub cores: usize,
    /// Bound of the state in memory.
    pub budget_bytes: usize,
    /// Nodes whose late rows go to a sink, and those whose refused rows do.
    pub kept: BTreeSet<(String, Kept)>,
}

/// Rows that a job was told to keep, though they couldn't take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kept {
    /// `LATE DATA TO`.
    Late,
    /// `dead_letter(…)`.
    Rejected,
}

impl Planned {
    /// Which rows of `graph` are kept: those that some node reads.
    pub fn kept(graph: &Graph) -> BTreeSet<(String, Kept)> {
        let inputs = graph.nodes.iter().flat_map(|node| &node.inputs);
        inputs
            .filter_map(|input| {
                let kept = match input.port {
                    PORT_LATE => Kept::Late,
                    PORT_REJECTED => Kept::Rejected,
                    _ => return None,
                };
                Some((graph.nodes.get(input.from.0 as usize)?.name.clone(), kept))
            })
            .collect()
    }
}

/// Where a job is at a moment, for status and metrics.
#[derive(Clone, Debug)]
pub(crate) struct Moment {
    pub state: WorkerState,
    pub planned: Option<Planned>,
    pub progress: Option<JobProgress>,
    pub exceptions_total: u64,
}

/// Shared by the threads of the process. A job runs in it at most once.
#[derive(Debug)]
pub(crate) struct Host {
    job: String,
    epoch: u64,
    started_ms: i64,
    facts: Mutex<Facts>,
    exceptions: Mutex<Exceptions>,
    running: OnceLock<Arc<Job>>,
    state: watch::Sender<WorkerState>,
    /// When the job was last looked at.
    looked: Mutex<Instant>,
    /// What no message may show.
    hidden: OnceLock<Secrets>,
    /// Whose orders are taken.
    fence: Mutex<Fence>,
}

#[derive(Debug, Default)]
struct Facts {
    planned: Option<Planned>,
    error: Option<Problem>,
    /// Counts at the end.
    last: Option<JobProgress>,
    /// The status of an end in a process before this one.
    before: Option<StatusReply>,
    operation_id: Option<String>,
    /// How the job was asked to stop, if it was.
    asked: Option<StopMode>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is replaced field by field; a panic elsewhere leaves it usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Unix milliseconds.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Host {
    /// Of a process that was started just now.
    pub fn new(job: &str, epoch: u64) -> Self {
        Self {
            job: job.to_owned(),
            epoch,
            started_ms: now_ms(),
            facts: Mutex::default(),
            exceptions: Mutex::new(Exceptions::new(epoch)),
            running: OnceLock::new(),
            state: watch::Sender::new(WorkerState::Starting),
            looked: Mutex::new(Instant::now()),
            hidden: OnceLock::new(),
            fence: Mutex::default(),
        }
    }

    /// From now on the operator's token is kept in the working directory.
    pub fn keep_token_in(&self, folder: &std::path::Path) -> std::io::Result<()> {
        lock(&self.fence).keep_in(folder.to_owned())
    }

    /// From now on what goes wrong is kept in the working directory, and what went wrong before this process is told too.
    pub fn keep_exceptions_in(&self, folder: &std::path::Path) {
        lock(&self.exceptions).keep_in(folder, &self.job);
    }

    /// Whether a token is higher than all before: [`Self::hear_token`] will write to the disk.
    pub fn is_news(&self, token: u64) -> bool {
        lock(&self.fence).is_news(token)
    }

    /// Hears the token of an operator that calls.
    pub fn hear_token(&self, token: u64) -> Result<(), Stale> {
        lock(&self.fence).hear(token)
    }

    /// From now on no message shows these.
    pub fn hide(&self, secrets: Secrets) {
        // Set once: a process has one job.
        let _set: Result<(), Secrets> = self.hidden.set(secrets);
    }

    /// The job's name.
    pub fn job(&self) -> &str {
        &self.job
    }

    /// The deploy epoch of the process.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What the job is doing.
    pub fn state(&self) -> WorkerState {
        *self.state.borrow()
    }

    /// Follows what the job is doing.
    pub fn follow(&self) -> watch::Receiver<WorkerState> {
        self.state.subscribe()
    }

    /// How long ago the job was last looked at: a process whose threads are stuck doesn't.
    pub fn unattended(&self) -> Duration {
        lock(&self.looked).elapsed()
    }

    fn set_state(&self, state: WorkerState) {
        let changed = self.state.send_replace(state) != state;
        if changed {
            tracing::info!(job = %self.job, epoch = self.epoch, state = ?state, "state");
        }
    }

    /// The job ended in an earlier process of the same epoch.
    pub fn set_ended_before(&self, status: StatusReply) {
        let state = status.state;
        lock(&self.facts).before = Some(status);
        self.set_state(state);
    }

    /// The job can't start, or failed.
    pub fn fail(&self, problem: Problem) {
        tracing::error!(
            code = problem.code,
            hint = problem.hint,
            line = problem.line,
            column = problem.column,
            "{}",
            problem.message
        );
        lock(&self.exceptions).add(String::new(), problem.clone(), 1, now_ms());
        self.write_exceptions(true);
        lock(&self.facts).error.get_or_insert(problem);
        self.set_state(WorkerState::Failed);
    }

    /// The first failure.
    pub fn error(&self) -> Option<Problem> {
        lock(&self.facts).error.clone()
    }

    /// Takes an order to stop. Idempotent; gives whether it is the same order as the last one.
    pub fn stop(&self, operation_id: Option<&str>, mode: StopMode) -> bool {
        let mut facts = lock(&self.facts);
        if operation_id.is_some() && facts.operation_id.as_deref() == operation_id {
            return true;
        }
        if let Some(id) = operation_id {
            facts.operation_id = Some(id.to_owned());
        }
        // Cancel after Drain hurries; Drain after Cancel comes too late.
        if facts.asked != Some(StopMode::Cancel) {
            facts.asked = Some(mode);
        }
        drop(facts);
        tracing::info!(job = %self.job, operation = operation_id, mode = ?mode, "asked to stop");
        self.carry_out();
        false
    }

    /// Does what was asked, as far as there is a job.
    fn carry_out(&self) {
        let asked = lock(&self.facts).asked;
        let (Some(asked), Some(job)) = (asked, self.running.get()) else { return };
        match asked {
            StopMode::Drain => job.stop(),
            StopMode::Cancel => job.abort(),
        }
        if matches!(self.state(), WorkerState::Starting | WorkerState::Running) {
            self.set_state(WorkerState::Draining);
        }
    }

    /// Runs a job to its end; blocks. `start` isn't called when it was asked to stop before. `ended` gets the last status of a job that
    /// finished or stopped, before anybody else sees that it did.
    pub fn run(&self, planned: Planned, start: impl FnOnce() -> Job, ended: impl FnOnce(&StatusReply)) {
        let end = |state| {
            ended(&StatusReply { state, ..self.status() });
            self.set_state(state);
        };
        {
            let mut facts = lock(&self.facts);
            facts.planned = Some(planned);
            if facts.asked.is_some() {
                drop(facts);
                return end(WorkerState::Stopped);
            }
        }
        let job = self.running.get_or_init(|| Arc::new(start())).clone();
        // An order that came meanwhile found no job.
        self.carry_out();
        let span = tracing::info_span!(
            "run",
            job = %self.job,
            epoch = self.epoch,
            rows_in = Empty,
            rows_out = Empty,
            operation_id = Empty,
            outcome = Empty,
        )
        .entered();
        let mut opening = Some(tracing::info_span!("open", job = %self.job, epoch = self.epoch));
        let started = Instant::now();
        let mut logged: Vec<(Refused, Instant)> = Vec::new();
        while !job.is_finished() {
            let progress = job.progress();
            if self.state() == WorkerState::Starting && (progress.epoch.0 >= 1 || started.elapsed() > OPENING_PATIENCE) {
                drop(opening.take());
                self.set_state(WorkerState::Running);
            }
            self.observe(&progress, &mut logged);
            std::thread::sleep(LOOK);
        }
        let outcome = job.wait();
        let progress = job.progress();
        self.observe(&progress, &mut logged);
        self.write_exceptions(true);
        drop(opening);
        let (asked, operation_id) = {
            let mut facts = lock(&self.facts);
            facts.last = Some(progress.clone());
            (facts.asked, facts.operation_id.clone())
        };
        let rows_in = progress.sources().map(|node| node.rows_in).sum::<u64>();
        let rows_out = progress.sinks().map(|node| node.rows_out).sum::<u64>();
        let elapsed_ms = progress.elapsed.as_millis() as u64;
        tracing::info!(job = %self.job, rows_in, rows_out, elapsed_ms, "the job has ended");
        span.record("rows_in", rows_in);
        span.record("rows_out", rows_out);
        if let Some(operation_id) = &operation_id {
            span.record("operation_id", operation_id);
        }
        let state = match (outcome, asked) {
            (Err(error), _) => {
                span.record("outcome", "Failed");
                let error = match self.hidden.get() {
                    Some(secrets) => secrets.redact_diagnostic(error),
                    None => error,
                };
                return self.fail(crate::plan_check::problem(&error, None));
            }
            (Ok(_), Some(_)) => WorkerState::Stopped,
            (Ok(_), None) => WorkerState::Finished,
        };
        span.record("outcome", tracing::field::debug(state));
        // Over before anybody hears of the end: the process may end then, and its last spans with it.
        drop(span);
        end(state);
    }

    fn observe(&self, progress: &JobProgress, logged: &mut Vec<(Refused, Instant)>) {
        *lock(&self.looked) = Instant::now();
        let news = lock(&self.exceptions).observe(progress, now_ms());
        logged.retain(|(_, at)| at.elapsed() < REFUSED_LOG_INTERVAL);
        for one in news {
            if !logged.iter().any(|(before, _)| before.node == one.node && before.code == one.code) {
                tracing::warn!(node = one.node, code = %one.code, rows = one.rows, "rows refused: {}", one.code.title());
                logged.push((one, Instant::now()));
            }
        }
        self.write_exceptions(false);
    }

    fn write_exceptions(&self, at_once: bool) {
        let text = lock(&self.exceptions).take_write(at_once, now_ms(), |text| self.redact(text));
        let Some(text) = text else { return };
        if let Err(error) = text.write() {
            lock(&self.exceptions).not_written();
            tracing::warn!(%error, "the working directory doesn't keep what went wrong: the next process of the job won't tell of it");
        }
    }

    fn redact(&self, text: &str) -> String {
        self.hidden.get().map_or_else(|| text.to_owned(), |secrets| secrets.redact(text))
    }

    /// Where the job is now.
    pub fn moment(&self) -> Moment {
        let (planned, last) = {
            let facts = lock(&self.facts);
            (facts.planned.clone(), facts.last.clone())
        };
        let progress = last.or_else(|| self.running.get().map(|job| job.progress()));
        Moment { state: self.state(), planned, progress, exceptions_total: lock(&self.exceptions).total() }
    }

    /// The answer of `/v1/status`.
    pub fn status(&self) -> StatusReply {
        let moment = self.moment();
        let facts = lock(&self.facts);
        if let Some(before) = &facts.before {
            return StatusReply { operation_id: facts.operation_id.clone(), started_ms: self.started_ms, ..before.clone() };
        }
        let progress = moment.progress.as_ref();
        let sum = |count: fn(&JobProgress) -> u64| progress.map_or(0, count);
        StatusReply {
            job: self.job.clone(),
            epoch: self.epoch,
            state: moment.state,
            plan_hash: moment.planned.as_ref().map(|planned| planned.plan_hash.clone()),
            cores: moment.planned.as_ref().map_or(0, |planned| u32::try_from(planned.cores).unwrap_or(u32::MAX)),
            rows_in: sum(|p| p.sources().map(|node| node.rows_in).sum()),
            rows_out: sum(|p| p.sinks().map(|node| node.rows_out).sum()),
            rows_dropped: progress.map_or(0, |p| dropped(p, moment.planned.as_ref())),
            state_bytes: sum(|p| p.cores.iter().map(|core| core.state_bytes).sum()),
            state_budget_bytes: moment.planned.as_ref().map_or(0, |planned| planned.budget_bytes as u64),
            lag_ms: progress.and_then(|p| p.sources().filter_map(|node| node.lag_us).max()).map(|us| us / 1000),
            watermark_us: progress.and_then(|p| p.sources().filter_map(|node| watermark_us(node.watermark.0)).min()),
            started_ms: self.started_ms,
            error: facts.error.clone(),
            operation_id: facts.operation_id.clone(),
        }
    }

    /// The answer of `/v1/exceptions`: no message shows a secret.
    pub fn exceptions(&self, since_ms: i64) -> ExceptionsReply {
        lock(&self.exceptions).reply(since_ms, |text| self.redact(text))
    }
}

/// A watermark that says something: neither before the first nor behind the last row.
pub(crate) fn watermark_us(watermark: i64) -> Option<i64> {
    Some(watermark).filter(|us| *us != i64::MIN && *us != i64::MAX)
}

/// Rows that are nowhere: late or refused, and not kept.
fn dropped(progress: &JobProgress, planned: Option<&Planned>) -> u64 {
    let is_kept = |node: &str, kept| planned.is_some_and(|p| p.kept.contains(&(node.to_owned(), kept)));
    let nodes = progress.nodes.iter().map(|node| {
        let late = if is_kept(&node.name, Kept::Late) { 0 } else { node.late_rows };
        let rejected = node.rejected.iter().filter(|(code, _)| *code != Code::LateRow).map(|(_, rows)| rows).sum();
        late + if is_kept(&node.name, Kept::Rejected) { 0 } else { rejected }
    });
    nodes.sum()
}
