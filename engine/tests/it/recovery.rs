//! Jobs that are killed again and again, and go on from their last checkpoint: what they have shown in the end is what a job shows that was
//! never killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tiderace_engine::error::Code;
use tiderace_engine::plan::{PlanOptions, plan};
use tiderace_engine::runtime::{CheckpointOptions, Job, JobOptions, look};

use crate::data::{Rng, cut, run_by};
use crate::random::{query, table};
use crate::slt::batch_rows;

const FILES: u64 = 3;
const KEYS: u64 = 500;

/// A row of the input.
struct Row {
    id: u64,
    k: String,
    v: i64,
    name: String,
    second: u64,
}

fn rows(count: u64, seed: u64) -> Vec<Row> {
    let mut random = Rng::new(seed);
    let row = |id| {
        let v = random.below(40) as i64 - 10;
        let k = format!("key-{}", random.below(KEYS));
        Row { id, k, v, name: format!("a name that is longer than a slot {}", random.below(1000)), second: id * 600 / count }
    };
    (0..count).map(row).collect()
}

fn time(second: u64) -> String {
    format!("2026-03-01 10:{:02}:{:02}", second / 60, second % 60)
}

/// Row `i` in file `i % FILES`, with a line now and then that can't be read.
fn write(rows: &[Row], folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for file in 0..FILES {
        let mut text = String::new();
        for row in rows.iter().filter(|row| row.id % FILES == file) {
            let Row { id, k, v, name, second } = row;
            writeln!(text, r#"{{"id":{id},"k":"{k}","v":{v},"name":"{name}","ts":"{}"}}"#, time(*second)).unwrap();
            if id % 1000 == 7 {
                text.push_str("this is no row\n");
            }
        }
        fs::write(folder.join(format!("in-{file}.json")), text).unwrap();
    }
}

fn sql(folder: &Path) -> String {
    let path = |name: &str| format!("'connector' = 'filesystem', 'path' = '{}/{name}'", folder.display());
    format!(
        "CREATE TABLE t (id BIGINT, k STRING, v BIGINT, name STRING, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND)
           WITH ({}, 'format' = 'json', 'on_error' = 'dead_letter(bad)');
         CREATE TABLE bad (origin STRING, `position` BIGINT, code STRING, message STRING, raw STRING) WITH ({}, 'format' = 'json');
         CREATE TABLE copied (id BIGINT, v BIGINT) WITH ({}, 'format' = 'json');
         CREATE TABLE per_key (k STRING, n BIGINT, s BIGINT, d BIGINT, longest STRING) WITH ({}, 'format' = 'changelog-json');
         CREATE TABLE per_window (ws TIMESTAMP(3), k STRING, n BIGINT, d BIGINT) WITH ({}, 'format' = 'json');
         INSERT INTO copied SELECT id, v FROM t WHERE v % 3 = 0;
         INSERT INTO copied SELECT id, v FROM t WHERE v % 3 = 1;
         INSERT INTO per_key SELECT k, count(*), sum(v), count(DISTINCT v), max(name) FROM t GROUP BY k;
         INSERT INTO per_window SELECT window_start, k, count(*), count(DISTINCT v)
           FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND)) GROUP BY window_start, window_end, k;",
        path("in"),
        path("bad"),
        path("copied"),
        path("per_key"),
        path("per_window"),
    )
}

fn start(sql: &str, cores: usize, checkpoints: Option<CheckpointOptions>) -> Job {
    let planned = plan(sql, &PlanOptions { cores, ..PlanOptions::default() }).unwrap_or_else(|e| panic!("{e}"));
    let options = JobOptions { cores, checkpoints, pin: false, interval_ms: 5, poll_rows: 256, ..JobOptions::default() };
    Job::start(planned.graph, options)
}

fn checkpoints(folder: &Path, sql: &str) -> CheckpointOptions {
    CheckpointOptions {
        directory: folder.join("checkpoints"),
        interval_ms: 10,
        definition: sql.to_owned(),
        reopens_finished: false,
    }
}

/// All lines of a table's files that can be seen.
fn lines(folder: &Path) -> Vec<Value> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names =
        entries.map(|entry| entry.unwrap().path()).filter(|path| !path.file_name().unwrap().to_str().unwrap().starts_with('.'));
    let text: String = names.map(|path| fs::read_to_string(path).unwrap()).collect();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Rows and how often they stand there.
fn count(rows: impl Iterator<Item = (String, i64)>) -> BTreeMap<String, i64> {
    let mut counts = BTreeMap::new();
    rows.for_each(|(row, n)| *counts.entry(row).or_default() += n);
    counts.retain(|_, n| *n != 0);
    counts
}

fn text(row: &Value, columns: &[&str]) -> String {
    columns.iter().map(|column| format!("{}|", row[*column]).replace('"', "")).collect()
}

/// What must be there, by hand.
fn check(rows: &[Row], folder: &Path) {
    let seen = |table: &str, columns: &[&str]| count(lines(&folder.join(table)).iter().map(|row| (text(row, columns), 1)));
    let copied = rows.iter().filter(|row| row.v % 3 == 0 || row.v % 3 == 1).map(|row| (format!("{}|{}|", row.id, row.v), 1));
    assert_eq!(seen("copied", &["id", "v"]), count(copied), "each row once");
    let bad = rows.iter().filter(|row| row.id % 1000 == 7).map(|_| ("this is no row|".to_owned(), 1));
    assert_eq!(seen("bad", &["raw"]), count(bad), "each bad line once");

    let mut keys: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    let mut windows: BTreeMap<(u64, &str), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        keys.entry(&row.k).or_default().push(row);
        windows.entry((row.second / 10, &row.k)).or_default().push(row);
    }
    let distinct = |rows: &[&Row]| rows.iter().map(|row| row.v).collect::<BTreeSet<_>>().len();
    let expected = keys.iter().map(|(k, rows)| {
        let (sum, longest) = (rows.iter().map(|row| row.v).sum::<i64>(), rows.iter().map(|row| &row.name).max().unwrap());
        (format!("{k}|{}|{sum}|{}|{longest}|", rows.len(), distinct(rows)), 1)
    });
    let changes = lines(&folder.join("per_key"));
    let net = changes.iter().map(|line| {
        let weight = if line["op"] == "+I" || line["op"] == "+U" { 1 } else { -1 };
        (text(&line["data"], &["k", "n", "s", "d", "longest"]), weight)
    });
    assert_eq!(count(net), count(expected), "groups");
    let expected =
        windows.iter().map(|((window, k), rows)| (format!("{}|{k}|{}|{}|", time(window * 10), rows.len(), distinct(rows)), 1));
    assert_eq!(seen("per_window", &["ws", "k", "n", "d"]), count(expected), "windows");
}

/// Kills a job at random moments until it comes to its end; how often, and how many of these runs went on from a checkpoint.
fn run_to_the_end(sql: &str, folder: &Path, cores: usize, random: &mut Rng) -> (usize, usize) {
    let (mut kills, mut resumed) = (0, 0);
    let options = checkpoints(folder, sql);
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        assert!(Instant::now() < deadline, "it comes to no end: {kills} kills, {resumed} runs went on");
        let found = look(&options, cores, 256).unwrap();
        resumed += usize::from(found.is_some());
        let job = start(sql, cores, Some(options.clone()));
        // Later kills leave more time, so that there is an end.
        let until = Instant::now() + Duration::from_millis(100 + random.below(500 + kills as u64 * 100));
        while Instant::now() < until && !job.is_finished() {
            std::thread::yield_now();
        }
        if job.is_finished() {
            job.wait().unwrap_or_else(|e| panic!("{e}"));
            return (kills, resumed);
        }
        job.abort();
        let ended = job.wait();
        assert!(ended.is_ok(), "{ended:?}");
        kills += 1;
        if random.below(2) == 0 {
            hide_again(folder, &options.directory);
        }
    }
}

/// As if the job had been killed between the newest manifest and what sinks do after it: what they have shown is hidden again.
fn hide_again(folder: &Path, checkpoints: &Path) {
    let Ok(entries) = fs::read_dir(checkpoints) else { return };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.starts_with('v') && !name.contains('-'));
    let Some(newest) = names.iter().max() else { return };
    let text = fs::read_to_string(checkpoints.join(newest)).unwrap();
    let manifest: Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
    for (_, pieces) in serde_json::from_value::<Vec<(String, Vec<String>)>>(manifest["pieces"].clone()).unwrap() {
        for (table, piece) in ["copied", "bad", "per_key", "per_window"].iter().flat_map(|t| pieces.iter().map(move |p| (t, p))) {
            let shown = folder.join(table).join(piece);
            if shown.is_file() {
                fs::rename(&shown, folder.join(table).join(format!(".{piece}.inprogress"))).unwrap();
            }
        }
    }
    let shown = checkpoints.join(newest.replace(".json", "-shown.json"));
    assert!(!shown.exists() || fs::remove_file(shown).is_ok());
}

fn killed_again_and_again(cores: usize, count: u64, seed: u64) {
    println!("seed {seed}, {cores} cores");
    let folder = tempfile::tempdir().unwrap();
    let rows = rows(count, seed);
    write(&rows, &folder.path().join("in"));
    let sql = sql(folder.path());
    let mut random = Rng::new(seed);
    let (kills, resumed) = run_to_the_end(&sql, folder.path(), cores, &mut random);
    println!("{kills} kills, {resumed} runs went on from a checkpoint");
    check(&rows, folder.path());
    assert!(kills >= 2 && resumed >= 1, "it was too fast to be killed");
    // It has finished: started again it does nothing.
    let found = look(&checkpoints(folder.path(), &sql), cores, 256).unwrap().unwrap();
    assert!(found.finished, "{found:?}");
    start(&sql, cores, Some(checkpoints(folder.path(), &sql))).wait().unwrap();
    check(&rows, folder.path());
}

#[test]
fn rows_groups_and_windows_on_one_core() {
    killed_again_and_again(1, 40_000, 1);
}

#[test]
fn rows_groups_and_windows_on_three_cores() {
    killed_again_and_again(3, 60_000, 2);
}

/// Random queries, killed at random moments, against DataFusion. `TIDERACE_SEED=n` replays one, `TIDERACE_QUERIES=n` runs more.
#[test]
fn random_queries_that_are_killed_end_with_the_rows_of_the_batch() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let only = number("TIDERACE_SEED");
    let count = number("TIDERACE_QUERIES").unwrap_or(25);
    let (mut compared, mut kills, mut resumed) = (0, 0, 0);
    for seed in only.map_or(1..count + 1, |seed| seed..seed + 1) {
        let mut rng = Rng::new(seed * 104_729);
        let tables = [table(seed, seed.is_multiple_of(3))];
        let sql = query(&mut rng);
        let Ok(expected) = batch_rows(&tables, &sql) else { continue };
        let cores = 1 + rng.below(3) as usize;
        let folder = tempfile::tempdir().unwrap();
        let of = checkpoints(folder.path(), &sql);
        // Each epoch ends with a checkpoint.
        let options = JobOptions { cores, checkpoints: Some(of.clone()), ..JobOptions::default() };
        let input = cut(&tables[0], &mut rng);
        let run = run_by(&tables, vec![input], &sql, 2_000_000 + seed, options, |start| {
            for attempt in 0.. {
                resumed += usize::from(look(&of, cores, 256).unwrap().is_some());
                let job = start();
                let until = Instant::now() + Duration::from_micros(rng.below(10_000) * (1 + attempt / 5));
                while Instant::now() < until && !job.is_finished() {
                    std::thread::yield_now();
                }
                if job.is_finished() {
                    return job.wait().map_err(|e| e.to_string());
                }
                job.abort();
                job.wait().map_err(|e| e.to_string())?;
                kills += 1;
            }
            unreachable!("the loop has no end but by a return")
        });
        let (got, _) = run.unwrap_or_else(|e| panic!("TIDERACE_SEED={seed} {sql}\n{e}"));
        assert_eq!(got, expected, "TIDERACE_SEED={seed} at {cores} cores: {sql}");
        compared += 1;
    }
    println!("{compared} queries, {kills} kills, {resumed} runs went on from a checkpoint");
    assert!(only.is_some() || compared * 10 > count * 8 && resumed as u64 > compared, "{compared}, {resumed}");
}

fn refused(sql: &str, cores: usize, options: CheckpointOptions) -> (Code, String) {
    let error = start(sql, cores, Some(options)).wait().unwrap_err();
    (error.code, error.message)
}

#[test]
fn a_checkpoint_is_only_taken_up_by_the_job_that_made_it() {
    let folder = tempfile::tempdir().unwrap();
    write(&rows(3_000, 5), &folder.path().join("in"));
    let sql = sql(folder.path());
    let of = checkpoints(folder.path(), &sql);
    let job = start(&sql, 1, Some(of.clone()));
    // A second one on the same directory.
    assert_eq!(refused(&sql, 1, of.clone()).0, Code::CheckpointFailed);
    job.wait().unwrap();
    let other = CheckpointOptions { definition: "SELECT 1".to_owned(), ..of.clone() };
    let (code, message) = refused(&sql, 1, other);
    assert!(code == Code::CheckpointMismatch && message.contains("statements"), "{message}");
    let (code, message) = refused(&sql, 2, of.clone());
    assert!(code == Code::CheckpointMismatch && message.contains("1 core, not 2"), "{message}");
    // A folder that is not the job's.
    let foreign = CheckpointOptions { directory: folder.path().join("in"), ..of };
    let (code, message) = refused(&sql, 1, foreign);
    assert!(code == Code::CheckpointFailed && message.contains("no job put there"), "{message}");
}

#[test]
fn a_damaged_checkpoint_is_refused_and_nothing_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    write(&rows(20_000, 6), &folder.path().join("in"));
    let sql = sql(folder.path());
    let of = checkpoints(folder.path(), &sql);
    let job = start(&sql, 1, Some(of.clone()));
    let deadline = Instant::now() + Duration::from_secs(60);
    while look(&of, 1, 256).unwrap().is_none_or(|found| found.version < 2) && !job.is_finished() {
        assert!(Instant::now() < deadline, "no checkpoint");
        std::thread::yield_now();
    }
    job.abort();
    job.wait().unwrap();
    let found = look(&of, 1, 256).unwrap().unwrap();
    assert!(!found.finished, "it was too fast");
    let names = fs::read_dir(&of.directory).unwrap().map(|entry| entry.unwrap().path());
    let newest = format!("v{:020}", found.version);
    let mut files: Vec<_> = names.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&newest)).collect();
    let data = fs::read_dir(of.directory.join("core-0")).unwrap().map(|entry| entry.unwrap().path());
    // Of that one alone its being there counts.
    files.retain(|path| !path.to_str().unwrap().ends_with("-shown.json"));
    files.extend(data.filter(|path| path.file_name().unwrap().to_str().unwrap().contains(&format!("{:020}", found.version))));
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        let whole = fs::read(&file).unwrap();
        let mut damaged = whole.clone();
        let at = damaged.len() / 2;
        damaged[at] ^= 0x10;
        fs::write(&file, &damaged).unwrap();
        let (code, message) = refused(&sql, 1, of.clone());
        assert!(code == Code::CheckpointDamaged, "{}: {code:?} {message}", file.display());
        fs::write(&file, &whole).unwrap();
    }
    start(&sql, 1, Some(of)).wait().unwrap();
    check(&rows(20_000, 6), folder.path());
}

#[test]
fn a_job_that_was_stopped_goes_on_when_it_is_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let rows = rows(30_000, 7);
    write(&rows, &folder.path().join("in"));
    let sql = sql(folder.path());
    let of = checkpoints(folder.path(), &sql);
    let (mut stops, mut read) = (0, 0);
    let taken = folder.path().join("taken");
    fs::create_dir_all(&taken).unwrap();
    while look(&of, 2, 256).unwrap().is_none_or(|found| !found.finished) {
        let job = start(&sql, 2, Some(of.clone()));
        let until = Instant::now() + Duration::from_millis(60 + stops * 20);
        while Instant::now() < until && !job.is_finished() {
            std::thread::yield_now();
        }
        job.stop();
        stops += 1;
        let report = job.wait().unwrap();
        read += report.progress.sources().map(|source| source.rows_in).sum::<u64>();
        // Whoever reads the files takes them away.
        for entry in fs::read_dir(folder.path().join("copied")).unwrap().map(|entry| entry.unwrap()) {
            fs::rename(entry.path(), taken.join(entry.file_name())).unwrap();
        }
    }
    for entry in fs::read_dir(&taken).unwrap().map(|entry| entry.unwrap()) {
        assert!(!entry.file_name().to_str().unwrap().starts_with('.'), "a stopped job leaves nothing unfinished");
        fs::rename(entry.path(), folder.path().join("copied").join(entry.file_name())).unwrap();
    }
    assert!(stops > 1, "it was too fast to be stopped");
    // What a stopped job has read it has shown: nothing is read twice.
    assert_eq!(read, 30_000 + 30);
    check(&rows, folder.path());
}

#[test]
fn what_cannot_go_on_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let sql = sql(folder.path());
    let planned = plan(&sql, &PlanOptions::default()).unwrap();
    let options = JobOptions {
        checkpoints: Some(checkpoints(folder.path(), &sql)),
        state_directory: Some(folder.path().join("state")),
        ..JobOptions::default()
    };
    let error = Job::start(planned.graph, options).wait().unwrap_err();
    assert_eq!(error.code, Code::CheckpointUnsupported, "{error}");
    let partitioned = format!(
        "CREATE TABLE out (a BIGINT, p STRING) PARTITIONED BY (p) WITH ('connector' = 'filesystem', 'path' = '{}/out', 'format' = 'json',
           'sink.partition-commit.policy.kind' = 'success-file');
         INSERT INTO out SELECT 1, 'x'",
        folder.path().display()
    );
    let (code, message) = refused(&partitioned, 1, checkpoints(folder.path(), &partitioned));
    assert!(code == Code::CheckpointUnsupported, "{message}");
}
