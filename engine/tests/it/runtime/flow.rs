//! Back-pressure: nothing grows without bound, nothing waits for ever.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tiderace_engine::batch::DeltaBatch;
use tiderace_engine::connect::{ChangelogMode, Ring};
use tiderace_engine::error::Result;
use tiderace_engine::ids::CoreId;
use tiderace_engine::operators::{EpochMark, OpCx, Operator, Output, PORT_MAIN, Port, Progress};
use tiderace_engine::runtime::graph::{Input, Role, Route};
use tiderace_engine::runtime::{Job, JobOptions};

use super::support::{
    Build, Collect, Endless, Map, Script, ended, eventually, hashed, local, options, pair_schema, pairs, seeded,
};

/// Waits until `value` has stood still for 60 looks.
fn settled(what: &str, value: impl Fn() -> u64) -> u64 {
    let (mut last, mut still) = (value(), 0);
    eventually(what, || {
        std::thread::park_timeout(Duration::from_millis(10));
        let now = value();
        still = if now == last && now > 0 { still + 1 } else { 0 };
        last = now;
        still == 60
    });
    last
}

#[test]
fn a_blocked_sink_stops_the_source_while_queues_stay_bounded() {
    const EDGE_BYTES: usize = 256 << 10;
    for (cores, ring) in [(1, Ring::Core), (2, Ring::Io)] {
        let mut build = Build::default();
        let source = Endless::new(ring);
        let taken = source.taken.clone();
        let node = build.source("in", source, None);
        let map = build.operator("map", vec![hashed(node)], |_| Map(Some));
        let mut sink = Collect::new(Ring::Io);
        sink.counts_only = true;
        sink.gate.shut();
        build.sink("out", map, &sink, ChangelogMode::Append, vec![]);
        let job = Job::start(build.graph, JobOptions { edge_bytes_max: EDGE_BYTES, ..options(cores) });
        let stopped_at = settled("the source stops", || taken.load(Ordering::SeqCst) as u64);
        for node in &job.progress().nodes {
            // Per edge and sending core the limit, and what one call may add to it.
            assert!(node.queued_bytes <= (cores * cores * (EDGE_BYTES + (256 << 10))) as u64, "{node:#?}");
        }
        assert_eq!(taken.load(Ordering::SeqCst) as u64, stopped_at);
        sink.gate.open();
        eventually("the source goes on", || taken.load(Ordering::SeqCst) as u64 > 2 * stopped_at);
        job.stop();
        ended(&job).unwrap();
        assert_eq!(sink.rows.load(Ordering::SeqCst), taken.load(Ordering::SeqCst));
    }
}

#[test]
fn an_idle_job_uses_no_cpu_to_speak_of() {
    let mut build = Build::default();
    let source = build.source("in", Script { stays: true, ..Script::new(vec![vec![pairs(&[((1, 1), 1)])]]) }, None);
    let io = build.source("io", Script { stays: true, ring: Ring::Io, ..Script::new(vec![vec![pairs(&[((1, 1), 1)])]]) }, None);
    let sink = Collect::new(Ring::Io);
    let union = build.node("union", Role::Union, vec![local(source), hashed(io)], pair_schema());
    build.sink("out", union, &sink, ChangelogMode::Append, vec![]);
    let job = Job::start(build.graph, JobOptions { name: "idlejob".to_owned(), interval_ms: 100, ..options(2) });
    eventually("the rows are through", || sink.rows.load(Ordering::SeqCst) == 2);
    let before = cpu_ticks("idlejob");
    let epoch = job.progress().epoch.0;
    eventually("ten epochs pass", || job.progress().epoch.0 >= epoch + 10);
    let spent = cpu_ticks("idlejob") - before;
    assert!(spent <= 10, "{spent} ticks of 10 ms in a second, over two cores and three I/O threads");
    job.stop();
    ended(&job).unwrap();
}

/// The CPU time of all threads whose name begins with `name`, in ticks of 10 ms.
fn cpu_ticks(name: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    stats
        .filter_map(|stat| {
            let (head, rest) = stat.rsplit_once(')')?;
            let fields: Vec<&str> = rest.split_whitespace().collect();
            let used: u64 = fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?;
            head.split_once('(')?.1.starts_with(name).then_some(used)
        })
        .sum()
}

/// Spreads each row to `n` rows, so that one call can overfill a lane.
struct Amplify(i64);

impl Operator for Amplify {
    fn on_delta(&mut self, _port: Port, batch: DeltaBatch, _cx: &mut OpCx<'_>, out: &mut Output) -> Result<()> {
        for (k, v) in super::support::to_pairs(&batch.rows) {
            let rows: Vec<_> = (0..self.0).map(|i| ((k + i, v), 1)).collect();
            out.emit(PORT_MAIN, pairs(&rows));
        }
        Ok(())
    }
    fn on_mark(&mut self, _mark: &EpochMark, _cx: &mut OpCx<'_>, _out: &mut Output) -> Result<Progress> {
        Ok(Progress::Done)
    }
}

#[test]
fn tiny_lanes_and_crossing_paths_never_deadlock() {
    // Two writers, two readers that each read both: the pattern in which credit per writer alone would deadlock.
    for seed in 0..20 {
        for cores in [1, 2, 5] {
            let mut build = Build::default();
            let splits: Vec<_> =
                (0..cores as i64 * 2).map(|s| (0..30).map(|i| pairs(&[((i * 7 + s, 1), 1)])).collect()).collect();
            let a = build.source("a", Script::new(splits.clone()), None);
            let b = build.source("b", Script { ring: Ring::Io, ..Script::new(splits) }, None);
            let a = build.operator("wide a", vec![local(a)], |_| Amplify(20));
            let b = build.operator("wide b", vec![hashed(b)], |_| Amplify(3));
            let one = build.node("one", Role::Union, vec![hashed(a), local(b)], pair_schema());
            let single = Input { from: b, port: PORT_MAIN, route: Route::Single };
            let two = build.node("two", Role::Union, vec![single, hashed(a), hashed(one)], pair_schema());
            let sinks = [Collect::new(Ring::Io), Collect::new(Ring::Core)];
            build.sink("sink one", one, &sinks[0], ChangelogMode::Append, vec![]);
            build.sink("sink two", two, &sinks[1], ChangelogMode::Retract, vec![]);
            let job = Job::start(build.graph, JobOptions { edge_bytes_max: 1, ..seeded(cores, seed) });
            ended(&job).unwrap_or_else(|e| panic!("seed {seed}, {cores} cores: {e}"));
            let n = cores as i64 * 2 * 30;
            assert_eq!(sinks[0].state().values().sum::<i64>(), n * 23, "seed {seed}, {cores} cores");
            assert_eq!(sinks[1].state().values().sum::<i64>(), n * 46, "seed {seed}, {cores} cores");
        }
    }
}

/// Takes many slices for each mark.
struct Slow {
    left: u32,
    others: Arc<AtomicUsize>,
    met: Arc<Mutex<usize>>,
}

impl Operator for Slow {
    fn on_delta(&mut self, _port: Port, _batch: DeltaBatch, _cx: &mut OpCx<'_>, _out: &mut Output) -> Result<()> {
        Ok(())
    }
    fn on_mark(&mut self, mark: &EpochMark, _cx: &mut OpCx<'_>, _out: &mut Output) -> Result<Progress> {
        if mark.epoch.0 == 2 && self.left > 0 {
            if self.left == 1_000 {
                *self.met.lock().unwrap() = self.others.load(Ordering::SeqCst);
            }
            self.left -= 1;
            if self.left == 0 {
                let before = *self.met.lock().unwrap();
                assert!(self.others.load(Ordering::SeqCst) > before + 10_000, "the other path went on between the slices");
            }
            return Ok(Progress::More);
        }
        Ok(Progress::Done)
    }
}

#[test]
fn a_mark_in_many_slices_does_not_stop_the_core() {
    let mut build = Build::default();
    let source = build.source("in", Endless::new(Ring::Core), None);
    let mut sink = Collect::new(Ring::Core);
    sink.counts_only = true;
    let others = sink.rows.clone();
    let slow = build.operator("slow", vec![local(source)], move |_: CoreId| Slow {
        left: 1_000,
        others: others.clone(),
        met: Arc::default(),
    });
    build.sink("out", slow, &Collect::new(Ring::Core), ChangelogMode::Append, vec![]);
    let other = build.source("other", Endless::new(Ring::Core), None);
    build.sink("out other", other, &sink, ChangelogMode::Append, vec![]);
    let job = Job::start(build.graph, options(1));
    eventually("the slow mark is through", || job.progress().node("slow").unwrap().epoch.0 >= 2 || job.is_finished());
    job.stop();
    ended(&job).unwrap();
}
