//! The last word about a job: what went in, what came out, what didn't and why.

use std::time::Duration;

use serde::Serialize;
use tiderace_engine::error::Code;

use crate::command::LogFormat;
use crate::progress::{bytes, duration, grouped, short_count};

/// The totals of a job that has ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// The job's name.
    pub job: String,
    /// From start to end.
    pub elapsed: Duration,
    /// Pinned cores.
    pub cores: usize,
    /// Rows read, by source.
    pub rows_in: Vec<(String, u64)>,
    /// Changes written, by sink.
    pub rows_out: Vec<(String, u64)>,
    /// Late rows, by operator.
    pub late: Vec<(String, u64)>,
    /// Rows refused, by node and code.
    pub rejected: Vec<(String, Code, u64)>,
    /// The most memory that the process held.
    pub memory_peak_bytes: Option<u64>,
    /// How it ended.
    pub ending: Ending,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// Its input ended.
    #[default]
    Finished,
    /// A signal, or that nobody reads what it prints, stopped it, and it drained.
    Stopped,
    /// A second signal ended it before it had drained.
    Aborted,
    /// It failed.
    Failed,
}

#[derive(Serialize)]
struct SummaryRecord<'a> {
    level: &'static str,
    event: &'static str,
    job: &'a str,
    elapsed_ms: u64,
    cores: usize,
    rows_in: u64,
    rows_in_per_second: u64,
    rows_out: u64,
    late: u64,
    rejected: u64,
    sources: Vec<NodeRecord<'a>>,
    sinks: Vec<NodeRecord<'a>>,
    late_by_operator: Vec<NodeRecord<'a>>,
    rejected_by_code: Vec<RejectedRecord<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_peak_bytes: Option<u64>,
}

#[derive(Serialize)]
struct NodeRecord<'a> {
    name: &'a str,
    rows: u64,
}

#[derive(Serialize)]
struct RejectedRecord<'a> {
    name: &'a str,
    code: String,
    title: &'static str,
    rows: u64,
}

fn sum(counts: &[(String, u64)]) -> u64 {
    counts.iter().map(|(_, n)| n).sum()
}

impl Summary {
    /// As text or as one JSON line.
    #[must_use]
    pub fn render(&self, format: LogFormat) -> String {
        match format {
            LogFormat::Text => self.text(),
            LogFormat::Json => self.json() + "\n",
        }
    }

    fn rows_in_per_second(&self) -> f64 {
        sum(&self.rows_in) as f64 / self.elapsed.as_secs_f64().max(1e-3)
    }

    fn text(&self) -> String {
        let mut lines = Vec::new();
        let by_name = |counts: &[(String, u64)]| {
            let each: Vec<_> = counts.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} {}", grouped(*n))).collect();
            if each.len() > 1 || (each.len() == 1 && counts.len() > 1) {
                format!("  ({})", each.join(", "))
            } else {
                String::new()
            }
        };
        let rate = format!("{} rows/s", short_count(self.rows_in_per_second()));
        lines.push(("rows in", format!("{}  {rate}{}", grouped(sum(&self.rows_in)), by_name(&self.rows_in))));
        // What a sink was given before it failed is not all on its disk.
        let unsure = matches!(self.ending, Ending::Failed | Ending::Aborted) && sum(&self.rows_out) > 0;
        let given = if unsure { "  given to sinks, which may not have kept them all" } else { "" };
        lines.push(("rows out", format!("{}{}{given}", grouped(sum(&self.rows_out)), by_name(&self.rows_out))));
        let late: Vec<_> = self.late.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} {}", grouped(*n))).collect();
        let late = if late.is_empty() {
            "0".to_owned()
        } else {
            format!("{}  ({}): {}", grouped(sum(&self.late)), late.join(", "), Code::LateRow)
        };
        lines.push(("late", late));
        let rejected: u64 = self.rejected.iter().map(|(_, _, n)| n).sum();
        lines.push(("rejected", grouped(rejected)));
        for (name, code, count) in self.rejected.iter().filter(|(_, _, n)| *n > 0) {
            lines.push(("", format!("{} at {name}: {code} {}", grouped(*count), code.title())));
        }
        let cores = if self.cores == 1 { "1 core".to_owned() } else { format!("{} cores", self.cores) };
        lines.push(("time", format!("{} on {cores}", duration(self.elapsed))));
        if let Some(peak) = self.memory_peak_bytes {
            lines.push(("peak memory", bytes(peak)));
        }
        let verb = match self.ending {
            Ending::Finished => "finished",
            Ending::Stopped => "stopped and drained",
            Ending::Aborted => "aborted before it had drained; up to then",
            Ending::Failed => "failed; up to then",
        };
        let body: String = lines.iter().map(|(label, text)| format!("  {label:<13}{text}\n")).collect();
        format!("{} {verb}\n{body}", self.job)
    }

    fn json(&self) -> String {
        let rejected = self.rejected.iter().map(|(name, code, rows)| RejectedRecord {
            name,
            code: code.to_string(),
            title: code.title(),
            rows: *rows,
        });
        let record = SummaryRecord {
            level: "info",
            event: match self.ending {
                Ending::Finished => "finished",
                Ending::Stopped => "stopped",
                Ending::Aborted => "aborted",
                Ending::Failed => "failed",
            },
            job: &self.job,
            elapsed_ms: self.elapsed.as_millis() as u64,
            cores: self.cores,
            rows_in: sum(&self.rows_in),
            rows_in_per_second: self.rows_in_per_second() as u64,
            rows_out: sum(&self.rows_out),
            late: sum(&self.late),
            rejected: self.rejected.iter().map(|(_, _, n)| n).sum(),
            sources: records(&self.rows_in),
            sinks: records(&self.rows_out),
            late_by_operator: records(&self.late),
            rejected_by_code: rejected.collect(),
            memory_peak_bytes: self.memory_peak_bytes,
        };
        // A struct of texts and numbers: it always serializes.
        serde_json::to_string(&record).unwrap_or_default()
    }
}

fn records(counts: &[(String, u64)]) -> Vec<NodeRecord<'_>> {
    counts.iter().map(|(name, rows)| NodeRecord { name, rows: *rows }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn summary() -> Summary {
        Summary {
            job: "orders".to_owned(),
            elapsed: Duration::from_millis(2000),
            cores: 2,
            rows_in: vec![("bids".to_owned(), 18_400), ("people".to_owned(), 400)],
            rows_out: vec![("out".to_owned(), 120)],
            late: vec![("TumbleAggregate#3".to_owned(), 7), ("Other#4".to_owned(), 0)],
            rejected: vec![("bids".to_owned(), Code::FieldType, 3)],
            memory_peak_bytes: Some(64 << 20),
            ending: Ending::Finished,
        }
    }

    #[test]
    fn people_read_every_count() {
        insta::assert_snapshot!(summary().render(LogFormat::Text), @r"
        orders finished
          rows in      18 800  9.4 k rows/s  (bids 18 400, people 400)
          rows out     120
          late         7  (TumbleAggregate#3 7): TR-2007
          rejected     3
                       3 at bids: TR-3105 A field has another type than its column
          time         2.00 s on 2 cores
          peak memory  64.0 MiB
        ");
    }

    #[test]
    fn machines_read_the_same() {
        let value: serde_json::Value = serde_json::from_str(&summary().render(LogFormat::Json)).unwrap();
        assert_eq!((&value["rows_in"], &value["rows_out"], &value["late"]), (&18_800.into(), &120.into(), &7.into()));
        assert_eq!(value["rejected_by_code"][0]["code"], "TR-3105");
        assert_eq!(value["rows_in_per_second"], 9400);
    }
}
