//! How jobs end: by themselves, by stop, by failure.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tiderace_engine::connect::{ChangelogMode, Ring};
use tiderace_engine::error::{Code, Diagnostic};
use tiderace_engine::ids::Epoch;
use tiderace_engine::operators::{RowPolicy, Watermark};
use tiderace_engine::runtime::graph::Graph;
use tiderace_engine::runtime::{Job, JobOptions};

use super::support::{
    Act, Build, Collect, Endless, Faulty, Hoard, Map, Script, SumByKey, add, ended, eventually, hashed, local, options, pairs,
};

fn rows(n: i64) -> Vec<Vec<tiderace_engine::batch::DeltaBatch>> {
    (0..5).map(|split| (0..n).map(|i| pairs(&[((i % 7, split), 1), ((i % 3, 1), 1)])).collect()).collect()
}

#[test]
fn bounded_input_runs_to_its_end_on_any_ring() {
    for cores in [1, 2, 3] {
        for (from, to) in [(Ring::Core, Ring::Core), (Ring::Io, Ring::Io), (Ring::Io, Ring::Core), (Ring::Core, Ring::Io)] {
            let mut build = Build::default();
            let source = build.source("in", Script { ring: from, ..Script::new(rows(50)) }, None);
            let sum = build.operator("sum", vec![hashed(source)], |_| SumByKey::default());
            let sink = Collect::new(to);
            build.sink("out", sum, &sink, ChangelogMode::Retract, vec![0]);
            let report = ended(&Job::start(build.graph, options(cores))).unwrap();
            let mut expected = std::collections::BTreeMap::new();
            for split in 0..5 {
                for i in 0..50 {
                    *expected.entry(i % 7).or_insert(0) += split;
                    *expected.entry(i % 3).or_insert(0) += 1;
                }
            }
            assert_eq!(sink.state(), expected.into_iter().map(|pair| (pair, 1)).collect(), "{cores} cores, {from:?}, {to:?}");
            assert_eq!(sink.finished(), cores);
            let progress = &report.progress;
            assert!(progress.finished && progress.sources().all(|source| source.ended));
            let (source, sum) = (progress.node("in").unwrap(), progress.node("sum").unwrap());
            assert_eq!((source.rows_in, source.rows_out, sum.rows_in), (500, 500, 500));
            assert_eq!((source.splits_opened, source.splits_finished), (5, 5));
            assert_eq!(sum.watermark, Watermark::MAX);
            assert_eq!(progress.nodes.iter().map(|node| node.queued_bytes).sum::<u64>(), 0);
        }
    }
}

#[test]
fn a_source_without_splits_ends_at_once() {
    let mut build = Build::default();
    let source = build.source("in", Script::new(Vec::new()), None);
    let sink = Collect::new(Ring::Core);
    build.sink("out", source, &sink, ChangelogMode::Append, vec![]);
    ended(&Job::start(build.graph, options(2))).unwrap();
    assert_eq!((sink.state().len(), sink.finished()), (0, 2));
}

#[test]
fn stop_drains_every_row_that_was_taken_in() {
    for ring in [Ring::Core, Ring::Io] {
        for cores in [1, 2] {
            let mut build = Build::default();
            let source = Endless::new(ring);
            let taken = source.taken.clone();
            let node = build.source("in", source, None);
            let sum = build.operator("sum", vec![hashed(node)], |_| SumByKey::default());
            let sink = Collect::new(ring);
            build.sink("out", sum, &sink, ChangelogMode::Upsert, vec![0]);
            let job = Job::start(build.graph, options(cores));
            eventually("some rows are taken in", || taken.load(Ordering::SeqCst) > 50_000);
            eventually("some epochs are through", || job.progress().epoch > Epoch(2));
            assert!(!job.is_finished());
            job.stop();
            let report = ended(&job).unwrap();
            assert_eq!(report.progress.node("sum").unwrap().watermark, Watermark::MIN, "the input did not end");
            assert_eq!(report.progress.node("in").unwrap().rows_in, taken.load(Ordering::SeqCst) as u64);
            // The last value of each key: upserts, so deletes come without their old image.
            let mut last = std::collections::BTreeMap::new();
            for (_, _, changes) in &sink.written.lock().unwrap().changes {
                last.extend(super::support::to_pairs(&changes.rows));
            }
            assert_eq!(last.values().sum::<i64>(), taken.load(Ordering::SeqCst) as i64, "{ring:?}, {cores} cores");
            assert_eq!(sink.finished(), cores);
        }
    }
}

#[test]
fn a_bounded_source_that_is_stopped_early_keeps_its_watermark() {
    let mut build = Build::default();
    let source = Script { stays: true, ..Script::new(rows(3)) };
    let taken = source.taken.clone();
    let node = build.source("in", source, None);
    let sink = Collect::new(Ring::Io);
    build.sink("out", node, &sink, ChangelogMode::Append, vec![]);
    let job = Job::start(build.graph, options(2));
    eventually("all rows are taken in", || taken.load(Ordering::SeqCst) == 30);
    job.stop();
    let report = ended(&job).unwrap();
    assert_eq!(report.progress.node("out").unwrap().watermark, Watermark::MIN);
    assert_eq!(sink.state().values().sum::<i64>(), 30);
}

fn failing(case: &str, cores: usize) -> Diagnostic {
    let mut build = Build::default();
    let split = |act: Act| Script::acts(vec![vec![Act::Rows(pairs(&[((1, 1), 1)])), act]]);
    let (io, source_fails) = (case.ends_with("io"), case.starts_with("source"));
    let ring = if io { Ring::Io } else { Ring::Core };
    let endless = build.source("endless", Endless::new(Ring::Core), None);
    let script = if source_fails {
        split(if case.contains("panic") { Act::Panic } else { Act::Fail })
    } else {
        split(Act::Rows(pairs(&[((2, 2), 1)])))
    };
    let script = build.source("script", Script { ring, ..script }, None);
    let middle = match case {
        "operator" => build.operator("faulty", vec![hashed(script)], |_| Faulty(false)),
        "operator panic" => build.operator("faulty", vec![hashed(script)], |_| Faulty(true)),
        _ => build.operator("sound", vec![hashed(script)], |_| Map(Some)),
    };
    let mut bad = Collect::new(ring);
    bad.fails = case.starts_with("sink").then_some(if case.contains("panic") { "panic" } else { "error" });
    build.sink("bad", middle, &bad, ChangelogMode::Append, vec![]);
    let mut good = Collect::new(Ring::Io);
    good.counts_only = true;
    build.sink("good", endless, &good, ChangelogMode::Append, vec![]);
    let began = Instant::now();
    let failure = ended(&Job::start(build.graph, options(cores))).expect_err(case);
    assert!(began.elapsed() < Duration::from_secs(10), "{case}: {:?}", began.elapsed());
    failure
}

#[test]
fn the_first_failure_of_any_thread_ends_all_and_names_the_node() {
    for cores in [1, 3] {
        for (case, node, code) in [
            ("operator", "faulty", Code::RowExpression),
            ("operator panic", "faulty", Code::Internal),
            ("source", "script", Code::SourceUnavailable),
            ("source panic", "script", Code::Internal),
            ("source io", "script", Code::SourceUnavailable),
            ("source panic io", "script", Code::Internal),
            ("sink", "bad", Code::SinkUnavailable),
            ("sink panic", "bad", Code::Internal),
            ("sink io", "bad", Code::SinkUnavailable),
            ("sink panic io", "bad", Code::Internal),
        ] {
            let failure = failing(case, cores);
            assert_eq!(failure.code, code, "{case}: {failure}");
            assert!(failure.message.contains(&format!("`{node}`")), "{case}: {failure}");
            if case.contains("panic") {
                assert!(failure.message.contains("panicked"), "{case}: {failure}");
            }
        }
    }
}

#[test]
fn a_factory_that_fails_is_the_result() {
    let mut build = Build::default();
    let source = build.source("in", Endless::new(Ring::Io), None);
    build.node(
        "broken",
        tiderace_engine::runtime::graph::Role::Operator(std::sync::Arc::new(|core| {
            if core.0 == 1 { Err(Diagnostic::new(Code::Overflow, "no")) } else { Ok(Box::new(Map(Some))) }
        })),
        vec![local(source)],
        super::support::pair_schema(),
    );
    let failure = ended(&Job::start(build.graph, options(2))).unwrap_err();
    assert_eq!((failure.code, failure.message.as_str()), (Code::Overflow, "operator `broken`: no"));
}

#[test]
fn options_out_of_range_are_refused() {
    for (options, name) in [
        (JobOptions { cores: 0, ..options(1) }, "cores"),
        (JobOptions { cores: 1000, ..options(1) }, "cores"),
        (JobOptions { max_parallelism: 0, ..options(1) }, "max_parallelism"),
        (JobOptions { interval_ms: 0, ..options(1) }, "interval_ms"),
        (JobOptions { poll_rows: 0, ..options(1) }, "poll_rows"),
    ] {
        let failure = ended(&Job::start(Graph::default(), options)).unwrap_err();
        assert_eq!(failure.code, Code::InvalidConfig);
        assert!(failure.message.contains(name), "{failure}");
    }
}

#[test]
fn an_insert_only_sink_refuses_a_row_that_is_taken_back() {
    let mut build = Build::default();
    let source =
        build.source("in", Script::new(vec![vec![pairs(&[((1, 1), 3), ((2, 2), 1)])], vec![pairs(&[((1, 1), -1)])]]), None);
    build.sink("out", source, &Collect::new(Ring::Core), ChangelogMode::Append, vec![]);
    let failure = ended(&Job::start(build.graph, options(1))).unwrap_err();
    assert_eq!(failure.code, Code::NegativeWeight);
    assert!(failure.message.contains("`out`"), "{failure}");
}

#[test]
fn rows_of_a_weight_above_one_are_written_that_often() {
    let mut build = Build::default();
    let source = build.source("in", Script::new(vec![vec![pairs(&[((1, 1), 3), ((2, 2), 1)])]]), None);
    let sink = Collect::new(Ring::Core);
    build.sink("out", source, &sink, ChangelogMode::Append, vec![]);
    ended(&Job::start(build.graph, options(1))).unwrap();
    let mut expected = super::support::ZSet::new();
    add(&mut expected, (1, 1), 3);
    add(&mut expected, (2, 2), 1);
    assert_eq!(sink.state(), expected);
}

#[test]
fn state_beyond_the_budget_fails_and_names_the_operator() {
    let mut build = Build::default();
    let source = build.source("in", Endless::new(Ring::Core), None);
    let small = build.operator("small", vec![local(source)], |_| Map(Some));
    let hoard = build.operator("hoard", vec![hashed(small)], |_| Hoard::default());
    build.sink("out", hoard, &Collect::new(Ring::Core), ChangelogMode::Append, vec![]);
    let failure = ended(&Job::start(build.graph, JobOptions { memory_bytes: 4 << 20, ..options(2) })).unwrap_err();
    assert_eq!(failure.code, Code::MemoryExceeded);
    assert!(failure.message.contains("`hoard`"), "{failure}");
}

#[test]
fn rejected_rows_follow_the_policy() {
    use tiderace_engine::connect::Rejected;
    use tiderace_engine::operators::{PORT_REJECTED, rejected_schema};
    use tiderace_engine::runtime::graph::{Input, Route};
    let bad = |line| Rejected {
        code: Code::BadRecord,
        message: "no JSON".to_owned(),
        origin: "a.json".to_owned(),
        position: Some(line),
        raw: "{".to_owned(),
    };
    for policy in [RowPolicy::Fail, RowPolicy::Skip, RowPolicy::DeadLetter] {
        let mut build = Build::default();
        let acts = vec![Act::Reject(bad(3)), Act::Rows(pairs(&[((1, 1), 1)])), Act::Reject(bad(9))];
        let source = build.source("in", Script::acts(vec![acts]), None);
        build.policy(source, policy);
        let sink = Collect::new(Ring::Core);
        build.sink("out", source, &sink, ChangelogMode::Append, vec![]);
        let letters = Collect::new(Ring::Core);
        let input = Input { from: source, port: PORT_REJECTED, route: Route::Single };
        let spec = tiderace_engine::runtime::graph::SinkSpec {
            sink: std::sync::Arc::new(Rejections(letters.clone())),
            mode: ChangelogMode::Append,
            key: vec![],
        };
        build.node("letters", tiderace_engine::runtime::graph::Role::Sink(spec), vec![input], rejected_schema());
        let result = ended(&Job::start(build.graph, options(2)));
        match policy {
            RowPolicy::Fail => {
                let failure = result.unwrap_err();
                assert_eq!(failure.code, Code::BadRecord);
                assert!(failure.message.contains("a.json, line 3"), "{failure}");
                continue;
            }
            RowPolicy::Skip => assert_eq!(letters.rows.load(Ordering::SeqCst), 0),
            RowPolicy::DeadLetter => assert_eq!(letters.rows.load(Ordering::SeqCst), 2),
        }
        let progress = result.unwrap().progress;
        let source = progress.node("in").unwrap();
        assert_eq!((source.rows_in, source.rows_out), (3, 1));
        assert_eq!(source.rejected, vec![(Code::BadRecord, 2)]);
        assert_eq!(sink.state().len(), 1);
    }
}

/// Counts rows of another schema than pairs.
#[derive(Debug)]
struct Rejections(Collect);

impl tiderace_engine::connect::Sink for Rejections {
    fn accepts(&self, _mode: ChangelogMode) -> bool {
        true
    }
    fn ring(&self) -> Ring {
        Ring::Core
    }
    fn open(
        &self,
        init: tiderace_engine::connect::CoreInit,
        schema: arrow::datatypes::SchemaRef,
        mode: ChangelogMode,
    ) -> tiderace_engine::error::Result<Box<dyn tiderace_engine::connect::SinkWriter>> {
        assert_eq!(schema, tiderace_engine::operators::rejected_schema());
        let mut counting = self.0.clone();
        counting.counts_only = true;
        counting.open(init, schema, mode)
    }
}

#[test]
fn no_thread_is_left_when_a_job_has_ended_or_is_dropped() {
    let threads = |name: &str| {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let comm = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        comm.filter(|comm| comm.starts_with(name)).count()
    };
    for (name, how) in [("leakA", "stop"), ("leakB", "drop"), ("leakC", "fail")] {
        let mut build = Build::default();
        let source = build.source("in", Endless::new(Ring::Io), None);
        let middle = if how == "fail" {
            build.operator("faulty", vec![hashed(source)], |_| Faulty(false))
        } else {
            build.operator("sum", vec![hashed(source)], |_| SumByKey::default())
        };
        let mut sink = Collect::new(Ring::Io);
        sink.counts_only = true;
        build.sink("out", middle, &sink, ChangelogMode::Retract, vec![0]);
        let job = Job::start(build.graph, JobOptions { name: name.to_owned(), ..options(2) });
        match how {
            "stop" => {
                eventually("rows are written", || sink.rows.load(Ordering::SeqCst) > 0);
                assert_eq!(threads(name), 6);
                job.stop();
                ended(&job).unwrap();
            }
            "drop" => {
                eventually("rows are written", || sink.rows.load(Ordering::SeqCst) > 0);
                drop(job);
            }
            _ => drop(job.wait().unwrap_err()),
        }
        assert_eq!(threads(name), 0, "{how}");
    }
}
