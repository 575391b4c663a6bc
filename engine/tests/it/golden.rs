//! The published Nexmark queries over recorded events, against what Apache Flink 2.3 finally answers (`tests/data/golden`).

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use arrow::util::display::{ArrayFormatter, FormatOptions};
use flate2::read::MultiGzDecoder;
use tiderace_engine::connect::blackhole::{self, Total};
use tiderace_engine::connect::memory::MemoryOutput;
use tiderace_engine::plan::{PlanOptions, plan};
use tiderace_engine::runtime::{Job, JobOptions};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden")
}

fn unpacked(name: &str) -> String {
    let mut text = String::new();
    let file = std::fs::File::open(folder().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
    text
}

/// The events as the queries' views see them; all 20 000 are in one file, in arrival order.
fn tables() -> String {
    format!(
        "CREATE TABLE events (
           t INT, id BIGINT, name STRING, emailAddress STRING, creditCard STRING, city STRING, state STRING,
           itemName STRING, description STRING, initialBid BIGINT, reserve BIGINT, expires BIGINT, seller BIGINT, category BIGINT,
           auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING, `dateTime` BIGINT, extra STRING,
           ts AS TO_TIMESTAMP_LTZ(`dateTime`, 3), WATERMARK FOR ts AS ts - INTERVAL '4' SECOND
         ) WITH ('connector' = 'filesystem', 'path' = '{}', 'format' = 'json');
         CREATE VIEW bid AS SELECT auction, bidder, price, channel, url, CAST(ts AS TIMESTAMP(3)) AS `dateTime`, extra FROM events WHERE t = 2;\n",
        folder().join("events.jsonl.gz").display()
    )
}

/// One form for timestamps and decimals, as the recorded rows have them.
fn canonical(text: &str) -> String {
    let is_time = text.len() >= 19 && text.as_bytes()[4] == b'-' && text.as_bytes()[7] == b'-' && text.as_bytes()[13] == b':';
    if is_time {
        let text = text.trim_end_matches('Z').replace(' ', "T");
        return if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_decimal = digits
        .split_once('.')
        .is_some_and(|(a, b)| !a.is_empty() && !b.is_empty() && a.bytes().chain(b.bytes()).all(|c| c.is_ascii_digit()));
    if is_decimal { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text.to_owned() }
}

fn expected(query: &str) -> BTreeMap<String, i64> {
    let mut net = BTreeMap::new();
    for line in unpacked(&format!("{query}.tsv.gz")).lines() {
        let row: Vec<String> = line.split('\t').map(canonical).collect();
        *net.entry(row.join("\t")).or_insert(0) += 1;
    }
    net
}

fn answered(query: &str, cores: usize) -> BTreeMap<String, i64> {
    let name = format!("golden-{query}-{cores}");
    let output = MemoryOutput::default();
    let registration = output.register(&name).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/nexmark").join(format!("{query}.sql"));
    let sql = std::fs::read_to_string(script).unwrap();
    assert!(sql.contains("'connector' = 'blackhole'"), "{query}");
    let sql = sql.replace("'connector' = 'blackhole'", &format!("'connector' = 'memory', 'name' = '{name}'"));
    let text = tables() + &sql;
    let job = plan(&text, &PlanOptions { cores, ..PlanOptions::default() }).unwrap_or_else(|e| panic!("{query}: {e}"));
    Job::start(job.graph, JobOptions { cores, pin: false, interval_ms: 5, ..JobOptions::default() })
        .wait()
        .unwrap_or_else(|e| panic!("{query}: {e}"));
    drop(registration);
    let net = output.net().unwrap();
    let options = FormatOptions::default().with_null("null").with_timestamp_format(Some("%Y-%m-%dT%H:%M:%S%.f"));
    let formats: Vec<ArrayFormatter<'_>> =
        net.rows.columns().iter().map(|c| ArrayFormatter::try_new(c, &options).unwrap()).collect();
    (0..net.num_rows())
        .map(|row| {
            let text: Vec<String> = formats.iter().map(|f| canonical(&f.value(row).to_string())).collect();
            (text.join("\t"), net.weights.get(row))
        })
        .collect()
}

#[test]
fn queries_answer_as_flink_does() {
    for query in ["q0", "q1", "q2", "q14", "q15", "q16", "q17", "q21", "q22"] {
        let expected = expected(query);
        for cores in [1, 2] {
            let got = answered(query, cores);
            let missing: Vec<_> = expected.iter().filter(|(r, n)| got.get(*r) != Some(n)).take(3).collect();
            let extra: Vec<_> = got.iter().filter(|(r, n)| expected.get(*r) != Some(n)).take(3).collect();
            assert!(
                missing.is_empty() && extra.is_empty(),
                "{query} at {cores} cores: {} rows, {} expected\n  missing: {missing:#?}\n  too many: {extra:#?}",
                got.len(),
                expected.len()
            );
        }
    }
}

/// The published script of a query, whole, over generated events; what its sink has taken in the end.
fn generated(query: &str, cores: usize, project: bool) -> Total {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/nexmark");
    let parts = ["ddl_gen.sql".to_owned(), "ddl_views.sql".to_owned(), format!("{query}.sql")];
    let text: String = parts.iter().map(|part| std::fs::read_to_string(folder.join(part)).unwrap() + "\n").collect();
    // Totals are kept by table name, and tests run side by side.
    let table = format!("nexmark_{query}_{cores}_{project}");
    let text = text
        .replace(&format!("nexmark_{query}"), &table)
        .replace("'connector' = 'blackhole'", "'connector' = 'blackhole', 'digest' = 'true'");
    let mut options = PlanOptions { cores, ..PlanOptions::default() };
    for (name, value) in [
        ("TPS", "100000"),
        ("EVENTS_NUM", "20000"),
        ("PERSON_PROPORTION", "1"),
        ("AUCTION_PROPORTION", "3"),
        ("BID_PROPORTION", "46"),
        ("NEXMARK_TABLE", "datagen"),
    ] {
        options.variables.insert(name.into(), value.into());
    }
    options.config.insert("source.project".into(), project.to_string());
    let job = plan(&text, &options).unwrap_or_else(|e| panic!("{query}: {e}"));
    Job::start(job.graph.clone(), JobOptions { cores, pin: false, interval_ms: 5, ..JobOptions::default() })
        .wait()
        .unwrap_or_else(|e| panic!("{query}: {e}"));
    blackhole::total(&table).unwrap()
}

#[test]
fn generated_events_give_the_same_rows_at_any_core_count_and_projection() {
    for query in ["q0", "q1", "q2", "q14", "q15", "q16", "q17", "q21", "q22"] {
        let one = generated(query, 1, true);
        assert!(one.rows > 0, "{query}");
        for (cores, project) in [(1, false), (3, true)] {
            let other = generated(query, cores, project);
            assert_eq!((one.rows, one.digest), (other.rows, other.digest), "{query} at {cores} cores, project {project}");
        }
    }
}
