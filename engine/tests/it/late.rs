//! What batch SQL can't say: late rows, and what each EMIT form lets out when.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use tiderace_engine::batch::DeltaBatch;
use tiderace_engine::connect::RowKind;
use tiderace_engine::connect::memory::{MemoryInput, MemoryOutput};
use tiderace_engine::ids::CoreId;
use tiderace_engine::plan::{PlanOptions, plan};
use tiderace_engine::runtime::env::{EnvFactory, VirtualEnv};
use tiderace_engine::runtime::{Job, JobOptions, JobReport};

const SECOND: i64 = 1_000_000;

fn rows(seconds: &[i64]) -> DeltaBatch {
    let keys: ArrayRef = Arc::new(Int64Array::from(vec![1; seconds.len()]));
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from_iter_values(seconds.iter().map(|s| s * SECOND)));
    DeltaBatch::append(RecordBatch::try_from_iter([("k", keys), ("ts", times)]).unwrap())
}

/// Runs `insert` into `out` (and `late`) over batches that each are an epoch of their own, or nearly: the clock jumps by more than a tick
/// between two of them.
fn run(test: &str, batches: &[&[i64]], insert: &str) -> (Vec<(RowKind, String)>, Vec<String>, JobReport) {
    let batches: Vec<DeltaBatch> = batches.iter().map(|b| rows(b)).collect();
    let input = MemoryInput::new(batches[0].rows.schema(), batches).unwrap();
    let (out, late) = (MemoryOutput::default(), MemoryOutput::default());
    let names = [
        input.register(&format!("{test}-in")).unwrap(),
        out.register(&format!("{test}-out")).unwrap(),
        late.register(&format!("{test}-late")).unwrap(),
    ];
    let sql = format!(
        "CREATE TABLE t (k BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '2' SECOND)
           WITH ('connector' = 'memory', 'name' = '{test}-in');
         CREATE TABLE out (w TIMESTAMP(3), n BIGINT, PRIMARY KEY (w) NOT ENFORCED) WITH ('connector' = 'memory', 'name' = '{test}-out');
         CREATE TABLE late (k BIGINT, ts TIMESTAMP(3), watermark TIMESTAMP(3)) WITH ('connector' = 'memory', 'name' = '{test}-late');
         {insert}"
    );
    let job = plan(&sql, &PlanOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let env: EnvFactory = Arc::new(|core: CoreId| Box::new(VirtualEnv::new(0, 2 * SECOND, 5, core)) as _);
    let report = Job::start(
        job.graph,
        JobOptions { pin: false, start_us: Some(0), env: Some(env), interval_ms: 1, poll_rows: 1, ..JobOptions::default() },
    )
    .wait()
    .unwrap();
    drop(names);
    let text = |batch: &RecordBatch, row: usize| {
        batch
            .columns()
            .iter()
            .map(|c| {
                let c = c.as_any();
                c.downcast_ref::<TimestampMicrosecondArray>().map_or_else(
                    || c.downcast_ref::<Int64Array>().unwrap().value(row).to_string(),
                    |t| format!("{}s", t.value(row) / SECOND),
                )
            })
            .collect::<Vec<_>>()
            .join(" ")
    };
    let mut changes = Vec::new();
    for part in out.changes() {
        for row in 0..part.changes.rows.num_rows() {
            let kind = part.changes.kinds.as_ref().map_or(RowKind::Insert, |k| k[row]);
            changes.push((kind, text(&part.changes.rows, row)));
        }
    }
    let mut late_rows = Vec::new();
    for part in late.changes() {
        for row in 0..part.changes.rows.num_rows() {
            late_rows.push(text(&part.changes.rows, row));
        }
    }
    (changes, late_rows, report)
}

const QUERY: &str =
    "INSERT INTO out SELECT window_start, count(*) FROM TUMBLE(t, ts, INTERVAL '10' SECOND) GROUP BY window_start, window_end";
/// The row of second 3 comes after the watermark (20 − 2) has closed its window.
const LATE: &[&[i64]] = &[&[1, 2], &[20], &[3], &[21]];

fn late_total(report: &JobReport) -> u64 {
    report.progress.nodes.iter().map(|n| n.late_rows).sum()
}

#[test]
fn a_late_row_is_left_out_and_counted() {
    let (changes, _, report) = run("late-dropped", LATE, &format!("{QUERY};"));
    assert_eq!(changes, [(RowKind::Insert, "0s 2".to_owned()), (RowKind::Insert, "20s 2".to_owned())]);
    assert_eq!(late_total(&report), 1);
}

#[test]
fn late_data_to_keeps_the_row_with_the_watermark_that_made_it_late() {
    let (changes, late, report) = run("late-kept", LATE, &format!("{QUERY} LATE DATA TO late;"));
    assert_eq!(changes.len(), 2);
    assert_eq!(late, ["1 3s 18s"]);
    assert_eq!(late_total(&report), 1);
}

#[test]
fn allowed_lateness_mends_the_result_that_was_out() {
    let (changes, late, report) =
        run("late-mended", LATE, &format!("{QUERY} ALLOW LATENESS INTERVAL '1' MINUTE LATE DATA TO late;"));
    let first: Vec<_> = changes.iter().filter(|(_, row)| row.starts_with("0s")).cloned().collect();
    assert_eq!(
        first,
        [
            (RowKind::Insert, "0s 2".to_owned()),
            (RowKind::UpdateBefore, "0s 2".to_owned()),
            (RowKind::UpdateAfter, "0s 3".to_owned())
        ]
    );
    assert!(late.is_empty());
    assert_eq!(late_total(&report), 0);
}

const EARLY: &[&[i64]] = &[&[1], &[2], &[3], &[4], &[30]];

#[test]
fn on_window_close_says_each_window_once() {
    let (changes, _, _) = run("emit-close", EARLY, &format!("{QUERY} EMIT ON WINDOW CLOSE;"));
    assert_eq!(changes, [(RowKind::Insert, "0s 4".to_owned()), (RowKind::Insert, "30s 1".to_owned())]);
}

#[test]
fn changes_show_open_windows_with_their_old_images() {
    let (changes, _, _) = run("emit-changes", EARLY, &format!("{QUERY} EMIT CHANGES;"));
    assert_eq!(changes[0].0, RowKind::Insert);
    assert!(changes.iter().any(|(kind, _)| *kind == RowKind::UpdateBefore), "{changes:?}");
    assert!(changes.contains(&(RowKind::UpdateAfter, "0s 4".to_owned())), "{changes:?}");
}

#[test]
fn on_update_shows_open_windows_without_old_images() {
    let (changes, _, _) = run("emit-update", EARLY, &format!("{QUERY} EMIT ON UPDATE;"));
    assert!(changes.iter().all(|(kind, _)| *kind != RowKind::UpdateBefore), "{changes:?}");
    assert!(changes.iter().filter(|(_, row)| row.starts_with("0s")).count() > 1, "{changes:?}");
    assert_eq!(changes.iter().rfind(|(_, row)| row.starts_with("0s")).unwrap().1, "0s 4");
}

#[test]
fn every_interval_says_less_often_than_each_update() {
    let (each, _, _) = run("emit-each", EARLY, &format!("{QUERY} EMIT ON UPDATE;"));
    let (every, _, _) = run("emit-every", EARLY, &format!("{QUERY} EMIT EVERY INTERVAL '1' HOUR;"));
    assert!(every.len() < each.len(), "{every:?} {each:?}");
    assert_eq!(every.iter().rfind(|(_, row)| row.starts_with("0s")).unwrap().1, "0s 4");
}

#[test]
fn after_watermark_holds_rows_until_they_are_passed() {
    let insert = "INSERT INTO out SELECT ts, k FROM t EMIT AFTER WATERMARK;";
    let (held, _, _) = run("emit-after", &[&[5, 1], &[3], &[30]], insert);
    let (through, _, _) = run("emit-through", &[&[5, 1], &[3], &[30]], "INSERT INTO out SELECT ts, k FROM t;");
    assert_eq!(held.len(), through.len());
    // In order of release: 30 is passed by the end of the input only.
    assert_eq!(held.last().unwrap().1, "30s 1");
}

#[test]
fn an_option_of_the_late_sink_that_does_not_exist_is_refused() {
    let sql = "CREATE TABLE t (k BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts) WITH ('connector' = 'datagen', 'number-of-rows' = '1');
               CREATE TABLE out (w TIMESTAMP(3), n BIGINT) WITH ('connector' = 'blackhole');
               CREATE TABLE late (k BIGINT) WITH ('connector' = 'blackhole', 'digset' = 'true');
               INSERT INTO out SELECT window_start, count(*) FROM TUMBLE(t, ts, INTERVAL '10' SECOND) GROUP BY window_start, window_end
                 LATE DATA TO late;";
    let errors = plan(sql, &PlanOptions::default()).unwrap_err();
    assert_eq!(errors.0.iter().map(|e| e.code.to_string()).collect::<Vec<_>>(), ["TR-3002"], "{errors}");
}
