//! Epochs and watermarks as operators see them.

use std::sync::{Arc, Mutex};

use datafusion::physical_plan::expressions::col;
use tiderace_engine::batch::DeltaBatch;
use tiderace_engine::connect::{ChangelogMode, Ring};
use tiderace_engine::error::Code;
use tiderace_engine::ids::NodeId;
use tiderace_engine::operators::{RowPolicy, Watermark};
use tiderace_engine::runtime::Job;
use tiderace_engine::time::WatermarkSpec;

use super::support::{
    Build, Collect, Script, Seen, Witness, ended, eventually, hashed, local, options, seeded, timed, timed_schema,
};

fn watermark() -> WatermarkSpec {
    WatermarkSpec {
        column: 1,
        expr: col("t", &timed_schema()).unwrap(),
        idle_timeout_us: None,
        max_future_us: None,
        max_drift: None,
    }
}

fn script(splits: Vec<Vec<DeltaBatch>>) -> Script {
    Script { schema: timed_schema(), ..Script::new(splits) }
}

fn witness(build: &mut Build, inputs: Vec<NodeId>, is_hashed: bool) -> Arc<Mutex<Vec<Seen>>> {
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let inputs = inputs.into_iter().map(if is_hashed { hashed } else { local }).collect();
    let writes = seen.clone();
    let node = build.operator("witness", inputs, move |_| Witness { seen: writes.clone() });
    build.sink("none", node, &Collect::new(Ring::Core), ChangelogMode::Append, vec![]);
    seen
}

/// Marks ascend by one, carry the schedule's time and a watermark that never goes back, and judge the rows of the next epoch.
fn check_order(seen: &[Seen], interval_us: i64) {
    let (mut epoch, mut judged, mut ended) = (1, Watermark::MIN.0, false);
    for one in seen {
        assert!(!ended, "nothing follows the last mark");
        match one {
            Seen::Rows { epoch: of, watermark, .. } => assert_eq!((*of, *watermark), (epoch, judged)),
            Seen::Mark { epoch: of, watermark, time_us, last } => {
                assert_eq!((*of, *time_us), (epoch, epoch as i64 * interval_us));
                assert!(*watermark >= judged);
                (epoch, judged, ended) = (epoch + 1, *watermark, *last);
            }
        }
    }
    assert!(ended);
}

#[test]
fn rows_are_judged_by_the_mark_before_their_epoch() {
    for seed in 0..30 {
        let mut build = Build::default();
        let splits = (0..2)
            .map(|s| (0..40i64).map(|i| timed(&[(s, Some(i * 10)), (s, Some(i * 10 - 15)), (s, None)])).collect())
            .collect();
        let a = build.source("a", script(splits), Some(watermark()));
        let b = build.source("b", script(vec![(0..60i64).map(|i| timed(&[(9, Some(i * 4))])).collect()]), Some(watermark()));
        let seen = witness(&mut build, vec![a, b], false);
        let report = ended(&Job::start(build.graph, seeded(1, seed))).unwrap();
        let seen = seen.lock().unwrap();
        check_order(&seen, 5_000);
        assert_eq!(
            seen.last(),
            Some(&Seen::Mark {
                epoch: report.progress.epoch.0,
                watermark: i64::MAX,
                time_us: report.progress.epoch.0 as i64 * 5_000,
                last: true
            })
        );
        // An oracle that knows only rows and epochs: the watermark of a mark is the least, over the sources that have not ended, of what each
        // had shown before that mark.
        let mut shown = std::collections::BTreeMap::from([(0, i64::MIN), (1, i64::MIN), (9, i64::MIN)]);
        let (mut in_force, mut late) = (i64::MIN, 0);
        for one in seen.iter() {
            match one {
                Seen::Rows { rows, .. } => {
                    for (split, time) in rows {
                        let time = time.unwrap_or(i64::MIN);
                        late += u64::from(time < in_force && time > i64::MIN);
                        shown.entry(*split).and_modify(|most| *most = (*most).max(time));
                    }
                }
                Seen::Mark { watermark, .. } => {
                    // A split that is read to its end may no longer hold back; all others do.
                    let ends = [(0, 390), (1, 390), (9, 236)];
                    let open =
                        shown.iter().filter(|(split, most)| !ends.contains(&(**split, **most))).map(|(_, most)| *most).min();
                    assert!(open.is_none_or(|open| *watermark <= open), "seed {seed}");
                    let least_of_all = *shown.values().min().unwrap();
                    assert!(*watermark >= least_of_all, "seed {seed}");
                    assert!(*watermark == i64::MAX || *watermark <= *shown.values().max().unwrap(), "seed {seed}");
                    if least_of_all == i64::MIN {
                        assert_eq!(*watermark, i64::MIN, "seed {seed}: an unread split holds the watermark");
                    }
                    in_force = *watermark;
                }
            }
        }
        assert_eq!(report.progress.node("witness").unwrap().late_rows, late, "seed {seed}");
    }
}

#[test]
fn marks_align_over_cores() {
    for seed in 0..30 {
        let mut build = Build::default();
        let splits = (0..6).map(|s| (0..20i64).map(|i| timed(&[(s, Some(i * 10)), (s + 1, Some(i))])).collect()).collect();
        let a = build.source("a", script(splits), Some(watermark()));
        let seen: Arc<Mutex<std::collections::BTreeMap<u16, Arc<Mutex<Vec<Seen>>>>>> = Arc::default();
        let by_core = seen.clone();
        let node = build.operator("witness", vec![hashed(a)], move |core| Witness {
            seen: by_core.lock().unwrap().entry(core.0).or_default().clone(),
        });
        build.sink("none", node, &Collect::new(Ring::Io), ChangelogMode::Append, vec![]);
        ended(&Job::start(build.graph, seeded(3, seed))).unwrap();
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 3);
        let marks = |core: u16| -> Vec<Seen> {
            seen[&core].lock().unwrap().iter().filter(|one| matches!(one, Seen::Mark { .. })).cloned().collect()
        };
        for core in 0..3 {
            check_order(&seen[&core].lock().unwrap(), 5_000);
            assert_eq!(marks(core), marks(0), "seed {seed}: all cores see the same marks");
        }
    }
}

#[test]
fn an_idle_source_stops_holding_others_back() {
    let mut build = Build::default();
    let idle = WatermarkSpec { idle_timeout_us: Some(20_000), ..watermark() };
    let a = build.source("a", Script { stays: true, ..script(vec![vec![timed(&[(1, Some(5))])]]) }, Some(idle.clone()));
    let b = build.source(
        "b",
        Script { stays: true, ring: Ring::Io, ..script(vec![vec![timed(&[(2, Some(700))])]]) },
        Some(watermark()),
    );
    let seen = witness(&mut build, vec![a, b], true);
    let job = Job::start(build.graph, options(2));
    // Source b has no split on core 1, and no timeout: it holds everything back, as documented.
    eventually("some epochs pass", || job.progress().epoch.0 > 20);
    assert_eq!(job.progress().node("witness").unwrap().watermark, Watermark::MIN);
    job.stop();
    ended(&job).unwrap();
    drop(seen);

    let mut build = Build::default();
    let a = build.source("a", Script { stays: true, ..script(vec![vec![timed(&[(1, Some(5))])]]) }, Some(idle));
    let b = build.source(
        "b",
        Script { stays: true, ring: Ring::Io, ..script(vec![vec![timed(&[(2, Some(700))])]]) },
        Some(watermark()),
    );
    let seen = witness(&mut build, vec![a, b], true);
    let job = Job::start(build.graph, options(1));
    eventually("source a is idle", || job.progress().node("witness").unwrap().watermark == Watermark(700));
    job.stop();
    let report = ended(&job).unwrap();
    assert_eq!(report.progress.node("witness").unwrap().watermark, Watermark(700), "stopped, not ended");
    assert!(seen.lock().unwrap().iter().any(|one| matches!(one, Seen::Mark { watermark: 5, .. })), "a counted at first");
}

#[test]
fn a_row_of_the_far_future_is_refused_and_others_pass() {
    let mut build = Build::default();
    let guarded = WatermarkSpec { max_future_us: Some(1_000_000), ..watermark() };
    let far = 250_000_000_000_000_000; // the year 9892
    let a = build.source("a", script(vec![vec![timed(&[(1, Some(5)), (2, Some(far)), (3, None), (4, Some(6))])]]), Some(guarded));
    build.policy(a, RowPolicy::Skip);
    let seen = witness(&mut build, vec![a], false);
    let report = ended(&Job::start(build.graph, seeded(1, 1))).unwrap();
    assert_eq!(report.progress.node("a").unwrap().rejected, vec![(Code::FutureEventTime, 1)]);
    let rows: Vec<_> = seen
        .lock()
        .unwrap()
        .iter()
        .filter_map(|one| match one {
            Seen::Rows { rows, .. } => Some(rows.clone()),
            Seen::Mark { .. } => None,
        })
        .collect();
    assert_eq!(rows.concat(), vec![(1, Some(5)), (3, None), (4, Some(6))]);
}

#[test]
fn sources_of_a_drift_group_wait_for_each_other() {
    for cores in [1, 2] {
        let mut build = Build::default();
        let spec = WatermarkSpec { max_drift: Some(("g".to_owned(), 50)), ..watermark() };
        let steps = |step: i64| (0..100i64).map(|i| timed(&[(step, Some(i * step))])).collect::<Vec<_>>();
        let fast = build.source("fast", script(vec![steps(10), steps(10)]), Some(spec.clone()));
        let slow = build.source("slow", script(vec![steps(1), steps(1)]), Some(spec));
        let seen = witness(&mut build, vec![fast, slow], false);
        ended(&Job::start(build.graph, seeded(cores, 7))).unwrap();
        if cores > 1 {
            continue; // the order over cores can't be seen from one place; that it ends is the point
        }
        let (mut at_fast, mut at_slow) = (0, 0);
        for one in seen.lock().unwrap().iter() {
            let Seen::Rows { rows, .. } = one else { continue };
            for (step, time) in rows {
                let at = if *step == 10 { &mut at_fast } else { &mut at_slow };
                *at = time.unwrap().max(*at);
            }
            assert!(at_slow >= 99 || at_fast <= at_slow + 50 + 20, "fast at {at_fast}, slow at {at_slow}");
        }
        assert_eq!((at_fast, at_slow), (990, 99));
    }
}

#[test]
fn a_split_that_runs_ahead_of_the_slowest_is_paused_and_the_others_go_on() {
    for ring in [Ring::Core, Ring::Io] {
        for is_aligned in [true, false] {
            let mut build = Build::default();
            let max_drift = is_aligned.then(|| ("g".to_owned(), 50));
            let spec = WatermarkSpec { max_drift, ..watermark() };
            let steps = |step: i64| (0..100i64).map(|i| timed(&[(step, Some(i * step))])).collect::<Vec<_>>();
            let splits = Script { ring, ..script(vec![steps(10), steps(1)]) };
            let source = build.source("both", splits, Some(spec));
            let seen = witness(&mut build, vec![source], false);
            ended(&Job::start(build.graph, options(1))).unwrap();
            let (mut at_fast, mut at_slow, mut lead) = (0, 0, 0);
            for one in seen.lock().unwrap().iter() {
                let Seen::Rows { rows, .. } = one else { continue };
                for (step, time) in rows {
                    let at = if *step == 10 { &mut at_fast } else { &mut at_slow };
                    *at = time.unwrap().max(*at);
                    if at_slow < 99 {
                        lead = lead.max(at_fast - at_slow);
                    }
                }
            }
            assert_eq!((at_fast, at_slow), (990, 99));
            // A row is on its way when the split is held: one poll on the core, a few from a thread.
            let on_the_way = if ring == Ring::Core { 20 } else { 60 };
            assert_eq!(is_aligned, lead <= 50 + on_the_way, "{ring:?}: {lead} ahead");
        }
    }
}

#[test]
fn a_time_column_of_another_type_is_our_bug_not_a_panic() {
    let mut build = Build::default();
    let a = build.source(
        "a",
        Script { schema: timed_schema(), ..script(vec![vec![timed(&[(1, Some(1))])]]) },
        Some(WatermarkSpec { column: 0, ..watermark() }),
    );
    witness(&mut build, vec![a], false);
    let failure = ended(&Job::start(build.graph, options(1))).unwrap_err();
    assert_eq!(failure.code, Code::Internal);
    assert!(failure.message.contains("`a`"), "{failure}");
}
