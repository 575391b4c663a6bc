//! Each error code is reached: by SQL that is refused, by a job that fails, by a wrong command. A page of `docs/errors/` whose code no
//! case here reaches fails the test, and so does a case that gives another code.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use tiderace_engine::error::Code;
use tiderace_engine::plan::{PlanOptions, plan};

use Reach::{Cli, Elsewhere, FullOutput, Plan, Run};

/// What leads to an error.
enum Reach {
    /// SQL that is refused; the tables of [`TABLES`] are there.
    Plan(&'static str),
    /// A job that fails while it runs; `${dir}` is a folder with the files of [`FILES`].
    Run(&'static str),
    /// A job whose stdout is a full disk.
    FullOutput(&'static str),
    /// A command, its stdin, and a part of what it says.
    Cli(&'static [&'static str], &'static str),
    /// What no user can do: a file of the repository, and the test in it that makes the fault.
    Elsewhere(&'static str, &'static str),
}

const TABLES: &str = "
CREATE TABLE t (id BIGINT, k STRING, v DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH ('connector' = 'datagen');
CREATE TABLE plain (id BIGINT, ts TIMESTAMP(3)) WITH ('connector' = 'datagen');
CREATE TABLE changes (id BIGINT, k STRING) WITH ('connector' = 'filesystem', 'path' = 'x', 'format' = 'debezium-json');
CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'print');
CREATE TABLE files (n BIGINT) WITH ('connector' = 'filesystem', 'path' = 'out', 'format' = 'csv');
";

const FILES: &[(&str, &[u8])] = &[
    ("good.json", b"{\"id\": 1, \"k\": \"a\", \"ts\": \"2026-01-01 00:00:00\"}\n"),
    ("cut.json", b"{\"id\": 1, \"k\": \n"),
    ("bytes.json", b"{\"id\": 1, \"k\": \"\xff\xfe\"}\n"),
    ("missing.json", b"{\"id\": 1}\n"),
    ("extra.json", b"{\"id\": 1, \"k\": \"a\", \"ts\": null, \"more\": 2}\n"),
    ("type.json", b"{\"id\": \"one\", \"k\": \"a\"}\n"),
    ("range.json", b"{\"id\": 99999999999999999999, \"k\": \"a\"}\n"),
    ("null.json", b"{\"id\": 1, \"k\": \"a\", \"ts\": null}\n"),
    ("future.json", b"{\"id\": 1, \"k\": \"a\", \"ts\": \"2900-01-01 00:00:00\"}\n"),
    ("delete.json", b"{\"op\": \"d\", \"before\": {\"id\": 1, \"k\": \"a\"}, \"after\": null}\n"),
    ("broken.parquet", b"PAR1 this is no parquet file at all, whatever it says PAR1"),
];

macro_rules! file {
    ($name:literal $(, $option:literal)*) => {
        concat!("CREATE TABLE f (id BIGINT, k STRING, ts TIMESTAMP(3), WATERMARK FOR ts AS ts) WITH ('connector' = 'filesystem', 'path' = '${dir}/",
            $name, "'", $(", ", $option,)* ", 'format' = 'json');\n")
    };
}

const CASES: &[(Code, Reach)] = &[
    (Code::Syntax, Plan("SELECT FROM t")),
    (Code::UnknownTable, Plan("SELECT * FROM nowhere")),
    (Code::UnknownColumn, Plan("SELECT idd FROM t")),
    (Code::UnknownFunction, Plan("SELECT frobnicate(id) FROM t")),
    (Code::DuplicateName, Plan("CREATE TABLE t (a INT) WITH ('connector' = 'print')")),
    (
        Code::AmbiguousName,
        Plan(
            "CREATE TABLE \"Tt\" (a INT) WITH ('connector' = 'datagen'); CREATE TABLE \"tT\" (a INT) WITH ('connector' = 'datagen'); SELECT a FROM tt",
        ),
    ),
    (Code::TypeMismatch, Plan("INSERT INTO numbers SELECT k FROM t")),
    (Code::UnknownType, Plan("CREATE TABLE n (a STRNG) WITH ('connector' = 'print')")),
    (Code::ColumnCount, Plan("INSERT INTO numbers SELECT id, id + 1 FROM t")),
    (Code::InvalidArgument, Plan("SELECT string_agg(k, k) FROM t")),
    (Code::UnboundVariable, Plan("SELECT '${nothing}' AS a FROM t")),
    (Code::NothingToRun, Plan("SET 'on_error' = 'skip'")),
    (Code::NotGrouped, Plan("SELECT k, id, count(*) FROM t GROUP BY k")),
    (Code::StillInUse, Plan("CREATE VIEW w AS SELECT id FROM t; DROP TABLE t")),
    (Code::Unsupported, Plan("UPDATE t SET id = 1")),
    (Code::UnsupportedJoin, Plan("SELECT t.id FROM t JOIN plain ON t.id = plain.id")),
    (
        Code::UnsupportedSession,
        Plan(
            "SELECT k, count(*) FROM TABLE(SESSION(TABLE t PARTITION BY k, DESCRIPTOR(ts), INTERVAL '1' MINUTE)) GROUP BY k, window_start, window_end",
        ),
    ),
    (Code::UnsupportedOver, Plan("SELECT id, row_number() OVER (PARTITION BY k ORDER BY ts) AS n FROM t")),
    (Code::UnsupportedOrder, Plan("SELECT id FROM t ORDER BY id LIMIT 3")),
    (
        Code::NoTimeAttribute,
        Plan("SELECT count(*) FROM TUMBLE(plain, ts, INTERVAL '1' MINUTE) GROUP BY window_start, window_end"),
    ),
    (
        Code::InvalidWindow,
        Plan("SELECT count(*) FROM HOP(t, ts, INTERVAL '2' MINUTE, INTERVAL '1' MINUTE) GROUP BY window_start, window_end"),
    ),
    (Code::EmitMisplaced, Plan("CREATE VIEW w AS SELECT id FROM t EMIT CHANGES")),
    (Code::EmitNotPossible, Plan("SELECT k, count(*) FROM t GROUP BY k EMIT ON WINDOW CLOSE")),
    (Code::SinkKind, Plan("INSERT INTO files SELECT count(*) FROM t")),
    (Code::UnboundedState, Plan("SET 'state.require_bound' = 'true'; SELECT k, count(*) FROM t GROUP BY k")),
    (Code::NonDeterministic, Plan("SELECT random() + n FROM (SELECT k, count(*) AS n FROM t GROUP BY k) AS c")),
    (Code::UnsupportedSetting, Plan("SET 'table.exec.mini-batch.enabled' = 'true'; SELECT id FROM t")),
    (Code::UnsupportedJavaClass, Plan("CREATE FUNCTION f AS 'com.example.F'")),
    (Code::UnknownHint, Plan("SELECT /*+ BROADCASD(t) */ id FROM t")),
    (Code::NoRetraction, Plan("SELECT approx_distinct(id) FROM changes")),
    (
        Code::RowExpression,
        Run(
            "CREATE TABLE o (a INT NOT NULL) WITH ('connector' = 'print'); INSERT INTO o SELECT a FROM (VALUES (1), (CAST(NULL AS INT))) AS v (a)",
        ),
    ),
    (Code::Overflow, Run("SELECT a + 9223372036854775807 AS b FROM (VALUES (CAST(1 AS BIGINT))) AS v (a)")),
    (Code::DivisionByZero, Run("SELECT 1 / a AS b FROM (VALUES (0)) AS v (a)")),
    (Code::InvalidCast, Run("SELECT CAST(a AS INT) AS b FROM (VALUES ('x')) AS v (a)")),
    (
        Code::NullEventTime,
        Run(concat!(
            file!("null.json"),
            "SELECT count(*) AS n FROM TUMBLE(f, ts, INTERVAL '1' MINUTE) GROUP BY window_start, window_end"
        )),
    ),
    (Code::FutureEventTime, Run(concat!("SET 'time.max_future' = '1 day';", file!("future.json"), "SELECT id, ts FROM f"))),
    (
        Code::NegativeWeight,
        Run(
            "CREATE TABLE f (id BIGINT, k STRING) WITH ('connector' = 'filesystem', 'path' = '${dir}/delete.json', 'format' = 'debezium-json'); SELECT k, count(*) AS n FROM f GROUP BY k",
        ),
    ),
    (Code::LateRow, Elsewhere("worker/src/summary.rs", "people_read_every_count")),
    (
        Code::DuplicateKey,
        Run(
            "CREATE TABLE o (k INT, n BIGINT, PRIMARY KEY (k) NOT ENFORCED) WITH ('connector' = 'print'); INSERT INTO o SELECT a, count(*) FROM (VALUES (1, 1), (1, 2)) AS v (a, b) GROUP BY a, b",
        ),
    ),
    (
        Code::MemoryExceeded,
        Run(
            "SET 'engine.memory' = '1 MiB'; CREATE TABLE r (k BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '300000', 'rows-per-second' = '0'); SELECT k, count(*) AS n FROM r GROUP BY k",
        ),
    ),
    (
        Code::ValueTooLong,
        Run("CREATE TABLE o (a VARCHAR(2)) WITH ('connector' = 'print'); INSERT INTO o SELECT a FROM (VALUES ('long')) AS v (a)"),
    ),
    (Code::UnknownConnector, Plan("CREATE TABLE n (a INT) WITH ('connector' = 'kafkaa')")),
    (
        Code::UnknownFormat,
        Plan("CREATE TABLE n (a INT) WITH ('connector' = 'filesystem', 'path' = 'x', 'format' = 'jsonn'); SELECT a FROM n"),
    ),
    (Code::UnknownOption, Plan("CREATE TABLE n (a INT) WITH ('connector' = 'datagen', 'rows-per-secnd' = '1'); SELECT a FROM n")),
    (
        Code::InvalidOption,
        Plan("CREATE TABLE n (a INT) WITH ('connector' = 'datagen', 'rows-per-second' = 'many'); SELECT a FROM n"),
    ),
    (Code::MissingOption, Plan("CREATE TABLE n (a INT) WITH ('connector' = 'filesystem', 'format' = 'json'); SELECT a FROM n")),
    (
        Code::UnsupportedSchema,
        Plan(
            "CREATE TABLE n (a INT, b INT) WITH ('connector' = 'filesystem', 'path' = 'x', 'format' = 'raw'); SELECT a, b FROM n",
        ),
    ),
    (
        Code::SourceUnavailable,
        Run(
            "CREATE TABLE n (a STRING) WITH ('connector' = 'filesystem', 'path' = '/proc/self/mem', 'format' = 'raw'); SELECT a FROM n",
        ),
    ),
    (
        Code::SinkUnavailable,
        FullOutput("CREATE TABLE o (a INT) WITH ('connector' = 'print'); INSERT INTO o SELECT a FROM (VALUES (1)) AS v (a)"),
    ),
    (
        Code::PathNotFound,
        Run(
            "CREATE TABLE n (a STRING) WITH ('connector' = 'filesystem', 'path' = '${dir}/nothing', 'format' = 'raw'); SELECT a FROM n",
        ),
    ),
    (Code::SinkPoisoned, Elsewhere("engine/src/connect/filesystem/tests.rs", "Code::SinkPoisoned")),
    (Code::BadRecord, Run(concat!(file!("cut.json"), "SELECT id FROM f"))),
    (Code::BadUtf8, Run(concat!(file!("bytes.json"), "SELECT k FROM f"))),
    (Code::RecordTooLong, Run(concat!(file!("good.json", "'max-record-size' = '16 b'"), "SELECT id FROM f"))),
    (Code::MissingField, Run(concat!(file!("missing.json", "'json.fail-on-missing-field' = 'true'"), "SELECT k FROM f"))),
    (Code::ExtraField, Run(concat!(file!("extra.json", "'json.fail-on-unknown-field' = 'true'"), "SELECT id FROM f"))),
    (Code::FieldType, Run(concat!(file!("type.json"), "SELECT id FROM f"))),
    (Code::FieldRange, Run(concat!(file!("range.json"), "SELECT id FROM f"))),
    (
        Code::CorruptFile,
        Run(
            "CREATE TABLE n (a INT) WITH ('connector' = 'filesystem', 'path' = '${dir}/broken.parquet', 'format' = 'parquet'); SELECT a FROM n",
        ),
    ),
    (Code::StateCorrupt, Elsewhere("engine/src/key/tests.rs", "Code::StateCorrupt")),
    (Code::StateUnavailable, Run("SET 'state.directory' = '/proc/state'; SELECT a FROM (VALUES (1)) AS v (a)")),
    (Code::CheckpointMismatch, Elsewhere("engine/tests/it/recovery.rs", "Code::CheckpointMismatch")),
    (Code::CheckpointDamaged, Elsewhere("engine/tests/it/recovery.rs", "Code::CheckpointDamaged")),
    (Code::CheckpointFailed, Run("SET 'checkpoint.directory' = '/proc/checkpoints'; SELECT a FROM (VALUES (1)) AS v (a)")),
    (
        Code::CheckpointUnsupported,
        Run(
            "SET 'state.directory' = '${dir}/state'; SET 'checkpoint.directory' = '${dir}/c'; SELECT a FROM (VALUES (1)) AS v (a)",
        ),
    ),
    (
        Code::InvalidManifest,
        Cli(&["check", "-"], "apiVersion: tiderace.dev/v1alpha1\nkind: StreamingJob\nmetadata: {name: a}\nspec: {sqll: {}}\n"),
    ),
    (Code::FileUnreadable, Cli(&["check", "no-such-job.sql"], "")),
    (Code::InvalidConfig, Cli(&["check", "-", "--set", "engine.tick=an hour"], "SELECT 1 AS a;")),
    (Code::UnknownConfig, Cli(&["check", "-", "--set", "engine.tack=1 s"], "SELECT 1 AS a;")),
    (Code::UnknownView, Cli(&["run", "-", "--query", "SELECT * FROM v"], "CREATE MATERIALIZED VIEW w AS SELECT 1 AS a;")),
    (Code::NotEnoughCores, Cli(&["check", "-", "--cores", "4096"], "SELECT 1 AS a;")),
    (
        Code::UnknownSecret,
        Plan(
            "CREATE TABLE n (a INT) WITH ('connector' = 'filesystem', 'path' = SECRET 'nobody', 'format' = 'json'); SELECT a FROM n",
        ),
    ),
    (Code::StaleOperator, Elsewhere("worker/src/serve/tests.rs", "TR-7016")),
    (Code::WorkDirectory, Elsewhere("worker/src/serve/work_directory.rs", "it_has_one_user")),
    (Code::Certificates, Elsewhere("worker/src/serve/tls.rs", "Code::Certificates")),
    (Code::PortUnavailable, Elsewhere("worker/src/serve/listener.rs", "Code::PortUnavailable")),
    (Code::WrongEpoch, Elsewhere("worker/src/serve/answer.rs", "Code::WrongEpoch")),
    (Code::BadRequest, Elsewhere("worker/src/serve/answer.rs", "Code::BadRequest")),
    (Code::Internal, Elsewhere("engine/tests/it/runtime/ending.rs", "Code::Internal")),
    (Code::Datafusion, Elsewhere("engine/src/plan/diagnose.rs", "what_has_no_code_of_its_own_is_a_gap_of_ours")),
];

/// The codes on stderr, and all of it.
fn codes_of(arguments: &[&str], stdin: &str, stdout: Stdio) -> (Vec<String>, String) {
    use std::io::Write;
    let mut child = Command::new(env!("CARGO_BIN_EXE_tiderace"))
        .args(arguments)
        .args(["--log", "json"])
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let codes = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|line| line["code"].as_str().map(str::to_owned))
        .collect();
    (codes, text)
}

fn reached(reach: &Reach, folder: &Path) -> (Vec<String>, String) {
    match reach {
        Plan(sql) => match plan(&format!("{TABLES}{sql};"), &PlanOptions { variables: BTreeMap::new(), ..Default::default() }) {
            Ok(_) => (Vec::new(), "it is planned".into()),
            Err(errors) => {
                let told = errors.to_string();
                let placed = |e: &tiderace_engine::error::Diagnostic| e.span.is_some() || e.code == Code::NothingToRun;
                assert!(errors.0.iter().all(placed), "an error has no place: {told}");
                (errors.0.iter().map(|e| e.code.to_string()).collect(), told)
            }
        },
        Run(sql) | FullOutput(sql) => {
            let job = folder.join("job.sql");
            std::fs::write(&job, format!("{sql};")).unwrap();
            let stdout = match reach {
                FullOutput(_) => std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into(),
                _ => Stdio::null(),
            };
            codes_of(&["run", job.to_str().unwrap(), "-D", &format!("dir={}", folder.display())], "", stdout)
        }
        Cli(arguments, stdin) => codes_of(arguments, stdin, Stdio::null()),
        Elsewhere(..) => unreachable!("looked at by itself"),
    }
}

#[test]
fn each_code_is_reached() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in FILES {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let mut wrong = Vec::new();
    for (code, reach) in CASES {
        if let Elsewhere(file, test) = reach {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
            if !std::fs::read_to_string(path).unwrap().contains(test) {
                wrong.push(format!("{code}: there is no {test} in {file}"));
            }
            continue;
        }
        let (codes, told) = reached(reach, folder.path());
        if codes.is_empty() || codes.iter().any(|found| *found != code.to_string()) {
            wrong.push(format!("{code} alone was expected, not {codes:?}: {told}"));
        }
    }
    let is_covered = |code: &&Code| CASES.iter().any(|(covered, _)| covered == *code);
    wrong.extend(
        Code::ALL.iter().filter(|c| !is_covered(c)).map(|code| format!("{code} ({}) is reached by no case", code.title())),
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_a_sink_gathers_of_an_epoch_counts_against_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let row =
        |n: usize| format!("{{\"op\": \"c\", \"before\": null, \"after\": {{\"id\": {n}, \"k\": \"{}\"}}}}\n", "x".repeat(80));
    std::fs::write(folder.path().join("rows.json"), (0..30_000).map(row).collect::<String>()).unwrap();
    // One epoch for all rows; nothing else of the job keeps any.
    let sql = format!(
        "SET 'engine.tick' = '10 s'; SET 'engine.memory' = '1 MiB';
         CREATE TABLE f (id BIGINT, k STRING) WITH ('connector' = 'filesystem', 'path' = '{}/rows.json', 'format' = 'debezium-json');
         CREATE TABLE o (id BIGINT, k STRING) WITH ('connector' = 'blackhole');
         INSERT INTO o SELECT id, k FROM f;",
        folder.path().display()
    );
    let job = folder.path().join("job.sql");
    std::fs::write(&job, sql).unwrap();
    let (codes, told) = codes_of(&["run", "--cores", "1", job.to_str().unwrap()], "", Stdio::null());
    assert_eq!(codes, ["TR-2009"], "{told}");
    assert!(told.contains("`o`"), "{told}");
}
