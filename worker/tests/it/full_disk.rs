//! A sink whose disk has no more room: a coded error, and no file that looks complete and is not.

use std::process::Command;

#[test]
fn a_full_disk_fails_the_job_and_leaves_no_half_file() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let job = folder.path().join("job.sql");
    let sql = format!(
        "CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'datagen', 'rows-per-second' = '0', 'number-of-rows' = '200000');
         CREATE TABLE out (n BIGINT) WITH ('connector' = 'filesystem', 'path' = '{}', 'format' = 'csv');
         INSERT INTO out SELECT n FROM numbers;",
        out.display()
    );
    std::fs::write(&job, sql).unwrap();
    // Files may not grow beyond a few blocks. The signal that tells so is ignored: writes fail then, as they do on a full disk.
    let run = format!("trap '' XFSZ; ulimit -f 64; exec '{}' run --log json '{}'", env!("CARGO_BIN_EXE_tiderace"), job.display());
    let output = Command::new("sh").args(["-c", &run]).output().unwrap();
    let notes = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{notes}");
    let lines: Vec<serde_json::Value> = notes.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let error = lines.iter().find(|line| line["level"] == "error").unwrap();
    assert_eq!(error["code"], "TR-3009");
    assert!(error["message"].as_str().unwrap().contains("`out`"), "{notes}");
    assert_eq!(lines.last().unwrap()["event"], "failed");
    let left: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}
