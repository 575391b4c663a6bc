//! A running job: its threads, and how to wait for it, stop it and look at it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::checkpoint::{Coordinator, Directory};
use super::control::{Control, at_node, panicked};
use super::core::{Core, CorePlan};
use super::env::{Env, SystemEnv};
use super::exchange::Links;
use super::graph::{Graph, Role};
use super::options::JobOptions;
use super::progress::{JobProgress, JobReport, NodeKind, NodeProgress};
use super::state::BUDGET_BYTES_MIN;
use super::wake::Wake;
use crate::error::{Code, Diagnostic, Result};
use crate::ids::{CoreId, Epoch};
use crate::time::{DriftGroups, TickSchedule};

/// A running job. All methods may be called from any thread. Dropping it aborts what still runs.
#[derive(Debug)]
pub struct Job {
    control: Arc<Control>,
    graph: Arc<Graph>,
    cores: Mutex<Vec<JoinHandle<()>>>,
    running: Arc<AtomicUsize>,
    started: Instant,
    /// Set when all threads are joined.
    ended: Mutex<Option<Duration>>,
}

/// Stack of a core's thread, of which only what is used takes memory: expressions are trees, and evaluated by recursion.
const CORE_STACK_BYTES: usize = 64 << 20;

impl Job {
    /// Starts the threads of a job. What goes wrong, even at once, is the result of [`Self::wait`].
    #[must_use]
    pub fn start(graph: Graph, options: JobOptions) -> Self {
        let cores = options.cores.clamp(1, JobOptions::CORES_MAX);
        let wakes: Arc<[Wake]> = (0..cores).map(|_| Wake::default()).collect();
        let control = Arc::new(Control::new(&options.name, wakes.clone()));
        let job = Self {
            control: control.clone(),
            graph: Arc::new(graph),
            cores: Mutex::new(Vec::new()),
            running: Arc::new(AtomicUsize::new(0)),
            started: Instant::now(),
            ended: Mutex::new(None),
        };
        match job.spawn(options, wakes) {
            Ok(threads) => *job.cores.lock().unwrap_or_else(PoisonError::into_inner) = threads,
            Err(failure) => control.fail(failure),
        }
        job
    }

    fn spawn(&self, options: JobOptions, wakes: Arc<[Wake]>) -> Result<Vec<JoinHandle<()>>> {
        check(&options)?;
        let checkpoints = self.open_checkpoints(&options)?;
        let reopens = options.checkpoints.as_ref().is_some_and(|of| of.reopens_finished);
        if !reopens && checkpoints.as_ref().is_some_and(|(coordinator, _)| coordinator.has_finished()) {
            // All there was to do is done, and shown.
            return Ok(Vec::new());
        }
        let base = SystemEnv::new(i64::try_from(options.spin_us).unwrap_or(0));
        let env = |core| match &options.env {
            Some(factory) => factory(core),
            None => Box::new(base.clone()),
        };
        let start_us = match options.start_us {
            Some(us) => us,
            None if options.env.is_some() => env(CoreId(0)).now_us(),
            None => base.clone().now_us(),
        };
        let found_us = checkpoints.as_ref().and_then(|(coordinator, _)| coordinator.found_time_us());
        let start_us = start_us.max(found_us.unwrap_or(i64::MIN));
        let interval_us = i64::try_from(options.interval_ms.saturating_mul(1_000)).unwrap_or(i64::MAX);
        let cpus = if options.pin { cpus_for(options.cores) } else { None };
        let links = Links::mesh(&self.graph, &wakes);
        let opened = Arc::new(AtomicUsize::new(0));
        let plan = Arc::new(CorePlan {
            graph: self.graph.clone(),
            schedule: TickSchedule::new(start_us, interval_us),
            drift: Arc::new(DriftGroups::new(&drift_members(&self.graph, options.cores))),
            control: self.control.clone(),
            options: options.clone(),
            checkpoints,
        });
        let mut threads = Vec::with_capacity(options.cores);
        for links in links {
            let core = links.core();
            let (plan, opened, running) = (plan.clone(), opened.clone(), self.running.clone());
            let (env, cpu) = (env(core), cpus.as_ref().map(|cpus| cpus[core.0 as usize]));
            running.fetch_add(1, Ordering::Relaxed);
            let thread = thread::Builder::new().name(format!("{}-core{core}", options.name)).stack_size(CORE_STACK_BYTES).spawn(
                move || {
                    plan.control.wake(core).attach();
                    run_core(&plan, links, env, cpu, &opened);
                    running.fetch_sub(1, Ordering::Release);
                },
            );
            match thread {
                Ok(thread) => threads.push(thread),
                Err(e) => {
                    self.running.fetch_sub(1, Ordering::Relaxed);
                    self.control.fail(Diagnostic::new(Code::Internal, format!("no thread can be started for core {core}: {e}")));
                }
            }
        }
        Ok(threads)
    }

    /// The job's checkpoints, when it keeps any, and how many epochs there are from one to the next.
    fn open_checkpoints(&self, options: &JobOptions) -> Result<Option<(Arc<Coordinator>, u64)>> {
        let Some(of) = &options.checkpoints else { return Ok(None) };
        let unsupported = |what: String| Err(Diagnostic::new(Code::CheckpointUnsupported, what));
        if options.state_directory.is_some() {
            return unsupported("a job with a state directory can't keep checkpoints yet".to_owned()).map_err(|e: Diagnostic| {
                e.hint("leave out the one or the other; give a job with checkpoints the memory for all of its state")
            });
        }
        let mut sinks = Vec::new();
        for node in &self.graph.nodes {
            match &node.role {
                Role::Source(spec) if !spec.source.is_resumable() => {
                    let message =
                        format!("source `{}` can't go on from where it was, so the job can't keep checkpoints", node.name);
                    return unsupported(message);
                }
                Role::Sink(spec) => sinks.push((node.name.clone(), spec.sink.clone())),
                Role::Source(_) | Role::Operator(_) | Role::Union => {}
            }
        }
        let directory = Directory::open(of, options.cores, options.max_parallelism)?;
        let coordinator = Coordinator::start(directory, options.cores, options.max_parallelism, sinks)?;
        let every = of.interval_ms.div_ceil(options.interval_ms).max(1);
        Ok(Some((Arc::new(coordinator), every)))
    }

    /// Waits until the job has ended: bounded input is through, a stop has drained, or something failed.
    ///
    /// # Errors
    /// The first failure of any core or I/O thread; it names the node.
    pub fn wait(&self) -> Result<JobReport> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let threads = std::mem::take(&mut *self.cores.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // Panics are caught inside.
            drop(thread.join());
        }
        self.control.join_io();
        ended.get_or_insert_with(|| self.started.elapsed());
        drop(ended);
        match self.control.failure() {
            Some(failure) => Err(failure),
            None => Ok(JobReport { progress: self.progress() }),
        }
    }

    /// Takes in nothing more; every row that was taken in reaches the sinks, and they finish. Returns at once; see [`Self::wait`].
    pub fn stop(&self) {
        self.control.stop();
    }

    /// Ends at once, whatever is in hand. [`Self::wait`] gives the first failure, or the counts so far.
    pub fn abort(&self) {
        self.control.abort();
    }

    /// Ends at once like [`Self::abort`], without waiting for threads that are inside a blocking call: for a process that is about to end.
    pub fn abandon(self) {
        self.abort();
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| self.started.elapsed());
    }

    /// Whether all cores have ended, so that [`Self::wait`] returns soon.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.running.load(Ordering::Acquire) == 0
    }

    /// Where the job is, as of each core's last mark.
    #[must_use]
    pub fn progress(&self) -> JobProgress {
        let snapshots = self.control.snapshots();
        let mut nodes = Vec::with_capacity(self.graph.nodes.len());
        for (at, node) in self.graph.nodes.iter().enumerate() {
            let kind = match node.role {
                Role::Source(_) => NodeKind::Source,
                Role::Operator(_) | Role::Union => NodeKind::Operator,
                Role::Sink(_) => NodeKind::Sink,
            };
            let unpublished = NodeProgress::new(node.id, &node.name, kind);
            let mut per_core = snapshots.iter().map(|snapshot| snapshot.nodes.get(at).unwrap_or(&unpublished));
            let mut sum = per_core.next().unwrap_or(&unpublished).clone();
            per_core.for_each(|other| sum.merge(other));
            nodes.push(sum);
        }
        let ended = self.ended.try_lock().ok().and_then(|ended| *ended);
        JobProgress {
            epoch: nodes.iter().filter(|node| node.kind != NodeKind::Source).map(|node| node.epoch).min().unwrap_or(Epoch(0)),
            nodes,
            cores: snapshots.into_iter().map(|snapshot| snapshot.core).collect(),
            elapsed: ended.unwrap_or_else(|| self.started.elapsed()),
            finished: self.is_finished(),
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.ended.get_mut().unwrap_or_else(PoisonError::into_inner).is_none() {
            self.abort();
            drop(self.wait());
        }
    }
}

fn check(options: &JobOptions) -> Result<()> {
    let limits = [
        ("cores", options.cores as u64, 1, JobOptions::CORES_MAX as u64),
        ("max_parallelism", u64::from(options.max_parallelism), 1, 1 << 16),
        ("interval_ms", options.interval_ms, 1, 3_600_000),
        ("poll_rows", options.poll_rows as u64, 1, 1 << 24),
    ];
    if let Some((name, value, least, most)) = limits.iter().find(|(_, value, least, most)| value < least || value > most) {
        return Err(Diagnostic::new(Code::InvalidConfig, format!("{name} is {value}, but must be between {least} and {most}")));
    }
    let budget_bytes = options.memory_bytes / options.cores;
    if options.state_directory.is_some() && budget_bytes < BUDGET_BYTES_MIN {
        let message = format!(
            "memory is {budget_bytes} bytes a core, but with a state directory a core needs {BUDGET_BYTES_MIN} bytes at least"
        );
        return Err(Diagnostic::new(Code::InvalidConfig, message).hint("give the job more memory (`--memory`), or fewer cores"));
    }
    Ok(())
}

/// How many members each `max_drift` group has: its sources on all cores. Sources are numbered over all groups together.
fn drift_members(graph: &Graph, cores: usize) -> BTreeMap<String, usize> {
    let mut groups = BTreeMap::new();
    let mut sources = 0;
    for node in &graph.nodes {
        if let Role::Source(spec) = &node.role
            && let Some((group, _)) = spec.watermark.as_ref().and_then(|watermark| watermark.max_drift.as_ref())
        {
            sources += 1;
            groups.insert(group.clone(), sources * cores);
        }
    }
    groups
}

/// A CPU for each core, out of those that this thread may use; `None` when there are fewer. Jobs of one process begin behind each other.
fn cpus_for(cores: usize) -> Option<Vec<usize>> {
    static GIVEN_OUT: AtomicUsize = AtomicUsize::new(0);
    let cpus = core_affinity::get_core_ids().filter(|cpus| cpus.len() >= cores)?;
    let first = GIVEN_OUT.fetch_add(cores, Ordering::Relaxed);
    Some((0..cores).map(|core| cpus[(first + core) % cpus.len()].id).collect())
}

/// The body of a core's thread.
fn run_core(plan: &CorePlan, links: Links, env: Box<dyn Env>, cpu: Option<usize>, opened: &AtomicUsize) {
    let (id, control) = (links.core(), &plan.control);
    let open = catch_unwind(AssertUnwindSafe(|| Core::open(plan, links, env)));
    let mut core = match open.unwrap_or_else(|panic| Err(panicked(&*panic))) {
        Ok(core) => core,
        Err(failure) => return control.fail(failure),
    };
    // Not before I/O threads were started: they would inherit it and compete for this CPU.
    if let Some(cpu) = cpu
        && core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
    {
        core.pinned(cpu);
    }
    // Nothing is read or written before every node is open on every core.
    opened.fetch_add(1, Ordering::AcqRel);
    for other in 0..plan.options.cores {
        control.wake_core(CoreId(other as u16));
    }
    while opened.load(Ordering::Acquire) < plan.options.cores {
        if control.is_aborted() {
            return;
        }
        let ready = || opened.load(Ordering::Acquire) == plan.options.cores || control.is_aborted();
        control.wake(id).sleep(Duration::from_millis(100), ready);
    }
    let ran = catch_unwind(AssertUnwindSafe(|| core.run())).unwrap_or_else(|panic| {
        let (kind, node) = core.current();
        Err(at_node(panicked(&*panic), kind, node))
    });
    if let Err(failure) = ran {
        control.fail(failure);
    }
}
