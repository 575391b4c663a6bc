//! SQL in, rows out: every case of `tests/slt/*.slt` at 1, 2 and 7 cores, over rows that are cut and shuffled at random inside the watermark
//! bound, against the same query run by DataFusion as a batch (or against written rows where batch SQL can't say it).
//!
//! A file is made of blocks, separated by empty lines; a line that begins with `#` is a comment:
//!
//! ```text
//! table t rows=300 seed=4 disorder=5s          data: generated, see `data.rs`
//! k BIGINT 0..10 null=5
//! ts TIMESTAMP step=700ms
//! watermark ts 5s
//!
//! query name                                   the statement that is run; `on update`-like notes are free text in the name
//! SELECT k, count(*) FROM t GROUP BY k
//! [batch                                       what DataFusion runs instead, when the statement isn't batch SQL
//! SELECT …]
//! [rows                                        or the expected rows, `|` between columns
//! 1|2]
//!
//! error TR-1510                                the statement is refused with this code
//! SELECT …
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use datafusion::prelude::SessionContext;
use tiderace_engine::error::Code;
use tiderace_engine::plan::{PlanOptions, plan};

use crate::data::{Rng, Table, cut, empty, net_rows, run};

/// One case of a file.
#[derive(Debug)]
enum Case {
    Query { name: String, sql: String, batch: Option<String>, rows: Option<Vec<String>>, line: usize },
    Error { code: String, sql: String, line: usize },
}

struct File {
    name: String,
    tables: Vec<Table>,
    cases: Vec<Case>,
}

fn parse(path: &Path) -> File {
    let text = std::fs::read_to_string(path).unwrap();
    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
    let mut file = File { name, tables: Vec::new(), cases: Vec::new() };
    let mut lines = text.lines().enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let mut block = Vec::new();
        while let Some((_, next)) = lines.peek() {
            if next.trim().is_empty() {
                break;
            }
            if !next.starts_with('#') {
                block.push((*next).to_owned());
            }
            lines.next();
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "table" => file.tables.push(Table::parse(rest, &block)),
            "query" => {
                let mut sql = String::new();
                let mut batch: Option<String> = None;
                let mut rows: Option<Vec<String>> = None;
                for line in block {
                    if line == "batch" {
                        batch = Some(String::new());
                    } else if line == "rows" {
                        rows = Some(Vec::new());
                    } else if let Some(rows) = &mut rows {
                        rows.push(line);
                    } else {
                        let into = batch.as_mut().unwrap_or(&mut sql);
                        into.push_str(&line);
                        into.push('\n');
                    }
                }
                file.cases.push(Case::Query { name: rest.to_owned(), sql, batch, rows, line: number + 1 });
            }
            "error" => file.cases.push(Case::Error { code: rest.to_owned(), sql: block.join("\n"), line: number + 1 }),
            other => panic!("{}:{}: unknown block '{other}'", path.display(), number + 1),
        }
    }
    file
}

/// The final rows by DataFusion as a batch.
pub fn batch_rows(tables: &[Table], sql: &str) -> Result<BTreeMap<String, i64>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut config = datafusion::prelude::SessionConfig::new().with_target_partitions(1);
        config.options_mut().sql_parser.parse_float_as_decimal = true;
        config.options_mut().sql_parser.map_string_types_to_utf8view = true;
        let context = SessionContext::new_with_config(config);
        for table in tables {
            context.register_batch(&table.name, table.rows.clone()).unwrap();
        }
        let frame = context.sql(sql).await.map_err(|e| format!("the batch query fails: {e}"))?;
        let batches = frame.collect().await.map_err(|e| format!("the batch query fails: {e}"))?;
        Ok(net_rows(batches.iter().map(|b| (b.clone(), None))))
    })
}

fn check_query(
    file: &File,
    name: &str,
    sql: &str,
    batch: Option<&str>,
    rows: Option<&[String]>,
    line: usize,
) -> Result<(), String> {
    let expected: BTreeMap<String, i64> = match rows {
        Some(rows) => {
            let mut net = BTreeMap::new();
            for row in rows {
                *net.entry(row.clone()).or_insert(0) += 1;
            }
            net
        }
        None => batch_rows(&file.tables, batch.unwrap_or(sql)).map_err(|e| format!("{}.slt:{line} '{name}': {e}", file.name))?,
    };
    let base_seed: u64 = std::env::var("TIDERACE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    for cores in [1usize, 2, 7] {
        let seed = base_seed * 1000 + line as u64 * 10 + cores as u64;
        let mut rng = Rng::new(seed);
        let inputs: Vec<_> = file.tables.iter().map(|t| cut(t, &mut rng)).collect();
        let got = run(&file.tables, inputs, sql, cores, seed)
            .map_err(|e| format!("{}.slt:{line} '{name}' at {cores} cores, TIDERACE_SEED={base_seed}: {e}", file.name))?;
        if got != expected {
            let missing: Vec<_> = expected.iter().filter(|(r, n)| got.get(*r) != Some(n)).take(5).collect();
            let extra: Vec<_> = got.iter().filter(|(r, n)| expected.get(*r) != Some(n)).take(5).collect();
            return Err(format!(
                "{}.slt:{line} '{name}' at {cores} cores, TIDERACE_SEED={base_seed}: {} rows, {} expected\n  expected: {missing:?}\n  got:      {extra:?}",
                file.name,
                got.len(),
                expected.len()
            ));
        }
    }
    Ok(())
}

#[test]
fn streams_end_with_the_rows_of_the_batch() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slt");
    let only = std::env::var("SLT").ok();
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "slt"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    let mut failures = Vec::new();
    let mut ran = 0;
    for path in paths {
        let file = parse(&path);
        if only.as_ref().is_some_and(|o| !file.name.contains(o.as_str())) {
            continue;
        }
        for case in &file.cases {
            ran += 1;
            match case {
                Case::Query { name, sql, batch, rows, line } => {
                    if let Err(why) = check_query(&file, name, sql, batch.as_deref(), rows.as_deref(), *line) {
                        failures.push(why);
                    }
                }
                Case::Error { code, sql, line } => {
                    let named: Vec<_> = file.tables.iter().map(|t| empty(t, &format!("refused-{}-{line}", file.name))).collect();
                    let ddl: Vec<&str> = named.iter().map(|(ddl, _)| ddl.as_str()).collect();
                    let text = format!("{}\n{sql}", ddl.join("\n"));
                    match plan(&text, &PlanOptions::default()) {
                        Ok(_) => failures.push(format!("{}.slt:{line}: planned, but {code} was expected:\n{sql}", file.name)),
                        Err(errors) => {
                            let codes: Vec<String> = errors.0.iter().map(|e| e.code.to_string()).collect();
                            if !codes.contains(code) {
                                failures.push(format!("{}.slt:{line}: {code} was expected, not {errors}\n{sql}", file.name));
                            }
                            if errors.0.iter().any(|e| e.span.is_none() && e.code != Code::NothingToRun) {
                                failures.push(format!("{}.slt:{line}: an error has no place: {errors}", file.name));
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} of {ran} cases fail:\n{}", failures.len(), failures.join("\n"));
    println!("{ran} cases");
}
