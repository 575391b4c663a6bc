//! What a job holds when it no longer needs it.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use tiderace_engine::batch::DeltaBatch;
use tiderace_engine::connect::memory::{MemoryInput, MemoryOutput};
use tiderace_engine::plan::{PlanOptions, plan};
use tiderace_engine::runtime::{Job, JobOptions};

#[test]
fn the_memory_of_a_window_that_is_through_is_given_back() {
    let keys = 60_000;
    let key: ArrayRef = Arc::new(Int64Array::from_iter_values(0..keys));
    let ts: ArrayRef = Arc::new(TimestampMicrosecondArray::from_iter_values(0..keys));
    let rows = DeltaBatch::append(RecordBatch::try_from_iter([("k", key), ("ts", ts)]).unwrap());
    let input = MemoryInput::new(rows.rows.schema(), vec![rows]).unwrap();
    let output = MemoryOutput::default();
    let names = [input.register("given-back-in").unwrap(), output.register("given-back-out").unwrap()];
    let sql = "CREATE TABLE t (k BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts) WITH ('connector' = 'memory', 'name' = 'given-back-in');
        CREATE TABLE o (k BIGINT, n BIGINT) WITH ('connector' = 'memory', 'name' = 'given-back-out');
        INSERT INTO o SELECT k, count(*) FROM TUMBLE(t, ts, INTERVAL '1' MINUTE) GROUP BY k, window_start, window_end;";
    let job = plan(sql, &PlanOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let report = Job::start(job.graph, JobOptions { pin: false, ..JobOptions::default() }).wait().unwrap();
    drop(names);
    let rows: u64 = report.progress.nodes.iter().map(|node| node.rows_out).max().unwrap();
    assert_eq!(rows, keys as u64);
    // The window's table had more than 60 000 records of 40 bytes: a megabyte twice over.
    let held: u64 = report.progress.cores.iter().map(|core| core.state_bytes).sum();
    assert!(held < 1 << 20, "{held} bytes are still held");
}
