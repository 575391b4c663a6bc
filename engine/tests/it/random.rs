//! Random queries from a small grammar over random rows, against DataFusion as the oracle; at random numbers of cores, batch cuts and epochs.
//!
//! `TIDERACE_SEED=n` replays one seed, `TIDERACE_QUERIES=n` runs more.

use crate::data::{Rng, Table, cut, run};
use crate::slt::batch_rows;

pub fn table(seed: u64, noise: bool) -> Table {
    let noise = if noise { " noise=40" } else { "" };
    let columns = [
        "k BIGINT 0..5 null=5",
        "s STRING words=5 null=5",
        "v BIGINT -50..50 null=10",
        "d DOUBLE -40..40 null=5",
        "b BOOLEAN null=10",
        "m DECIMAL(12,2) -5000..5000 null=5",
        "ts TIMESTAMP step=700ms",
        "watermark ts 20s",
    ]
    .map(str::to_owned);
    Table::parse(&format!("t rows=120 seed={seed}{noise}"), &columns)
}

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from[rng.below(from.len() as u64) as usize]
}

/// A number that is never so large that arithmetic on it overflows.
fn number(rng: &mut Rng, depth: u64) -> String {
    if depth == 0 || rng.below(3) == 0 {
        return pick(rng, &["k", "v", "v", "7", "-3"]).to_owned();
    }
    match rng.below(4) {
        0 => format!("({} + {})", number(rng, depth - 1), number(rng, depth - 1)),
        1 => format!("({} - {})", number(rng, depth - 1), number(rng, depth - 1)),
        2 => format!("abs({})", number(rng, depth - 1)),
        _ => {
            format!("CASE WHEN {} THEN {} ELSE {} END", condition(rng, depth - 1), number(rng, depth - 1), number(rng, depth - 1))
        }
    }
}

fn condition(rng: &mut Rng, depth: u64) -> String {
    match rng.below(7) {
        0 if depth > 0 => format!("({} AND {})", condition(rng, depth - 1), condition(rng, depth - 1)),
        1 if depth > 0 => format!("({} OR {})", condition(rng, depth - 1), condition(rng, depth - 1)),
        2 if depth > 0 => format!("NOT {}", condition(rng, depth - 1)),
        3 => format!("{} IS NULL", pick(rng, &["k", "s", "v", "d", "b", "m"])),
        4 => "b".to_owned(),
        5 => format!("s {} 'word-2-xx'", pick(rng, &["=", "<>", "<", ">="])),
        _ => format!("{} {} {}", number(rng, depth), pick(rng, &["=", "<>", "<", ">", "<=", ">="]), number(rng, depth)),
    }
}

fn aggregate(rng: &mut Rng) -> String {
    let call = match rng.below(9) {
        0 => "count(*)".to_owned(),
        1 => format!("count({})", pick(rng, &["k", "s", "v", "d", "b"])),
        2 => format!("sum({})", pick(rng, &["v", "d", "m", "k"])),
        3 => format!("min({})", pick(rng, &["v", "d", "m", "s"])),
        4 => format!("max({})", pick(rng, &["v", "d", "m", "s"])),
        5 => format!("avg({})", pick(rng, &["v", "d"])),
        6 => format!("count(DISTINCT {})", pick(rng, &["k", "s", "v"])),
        7 => format!("{}(b)", pick(rng, &["bool_and", "bool_or"])),
        _ => format!("sum({})", number(rng, 1)),
    };
    if rng.below(4) == 0 { format!("{call} FILTER (WHERE {})", condition(rng, 1)) } else { call }
}

pub fn query(rng: &mut Rng) -> String {
    let filter = if rng.below(2) == 0 { format!(" WHERE {}", condition(rng, 2)) } else { String::new() };
    match rng.below(5) {
        0 => format!("SELECT {} AS a, s, {} AS c FROM t{filter}", number(rng, 2), number(rng, 2)),
        1 => format!("SELECT k AS x FROM t{filter} UNION ALL SELECT {} AS x FROM t WHERE {}", number(rng, 1), condition(rng, 1)),
        2 => format!("SELECT DISTINCT {}, {} AS n FROM t{filter}", pick(rng, &["k", "s", "b"]), number(rng, 1)),
        3 => {
            let keys = pick(rng, &["k", "s", "k, s", "b", "k, b", "s, b"]);
            let having = if rng.below(3) == 0 { format!(" HAVING count(*) > {}", rng.below(6)) } else { String::new() };
            format!("SELECT {keys}, {} AS a1, {} AS a2 FROM t{filter} GROUP BY {keys}{having}", aggregate(rng), aggregate(rng))
        }
        _ => {
            let outer = pick(rng, &["sum(x)", "min(x)", "max(x)", "count(x)", "avg(x)"]);
            let inner = pick(rng, &["max(v)", "sum(v)", "count(*)", "min(k)"]);
            format!("SELECT s, {outer} AS y FROM (SELECT s, k, {inner} AS x FROM t{filter} GROUP BY s, k) GROUP BY s")
        }
    }
}

#[test]
fn random_queries_end_with_the_rows_of_the_batch() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let only = number("TIDERACE_SEED");
    let count = number("TIDERACE_QUERIES").unwrap_or(60);
    let seeds = only.map_or(1..count + 1, |seed| seed..seed + 1);
    let mut compared = 0;
    for seed in seeds {
        let mut rng = Rng::new(seed * 7919);
        let table = table(seed, seed.is_multiple_of(3));
        let sql = query(&mut rng);
        let tables = [table];
        // What the oracle itself refuses says nothing about us.
        let Ok(expected) = batch_rows(&tables, &sql) else { continue };
        let cores = 1 + rng.below(4) as usize;
        let input = cut(&tables[0], &mut rng);
        let got = run(&tables, vec![input], &sql, cores, 1_000_000 + seed)
            .unwrap_or_else(|e| panic!("TIDERACE_SEED={seed} {sql}\n{e}"));
        assert_eq!(got, expected, "TIDERACE_SEED={seed} at {cores} cores: {sql}");
        compared += 1;
    }
    assert!(only.is_some() || compared * 10 > count * 8, "only {compared} of {count} queries could be compared");
}
