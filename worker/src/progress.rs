//! What a running job shows of itself: live lines on a terminal, JSON lines for machines, a line now and then in a log.
//!
//! Made from plain [`Observation`]s, so that what is shown is a function of values.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// The job at one moment. Counts are totals since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Time since the start.
    pub elapsed: Duration,
    /// Its sources.
    pub sources: Vec<SourceObservation>,
    /// Its sinks.
    pub sinks: Vec<SinkObservation>,
    /// Bytes of state over all cores.
    pub state_bytes: u64,
}

/// A source at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceObservation {
    /// The table.
    pub name: String,
    /// Rows read.
    pub rows: u64,
    /// Rows in all, when the source knows.
    pub rows_total: Option<u64>,
    /// Bytes read from outside.
    pub bytes: u64,
    /// Bytes in all, when the source knows that and not its rows.
    pub bytes_total: Option<u64>,
    /// The watermark in µs since 1970; `None` before there is one, and when the source has none.
    pub watermark_us: Option<i64>,
    /// Rows that are known to wait at the source.
    pub lag_rows: Option<u64>,
}

/// A sink at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SinkObservation {
    /// The table.
    pub name: String,
    /// Changes written.
    pub rows: u64,
}

impl Observation {
    /// Rows read by all sources.
    #[must_use]
    pub fn rows_in(&self) -> u64 {
        self.sources.iter().map(|s| s.rows).sum()
    }

    /// Changes written by all sinks.
    #[must_use]
    pub fn rows_out(&self) -> u64 {
        self.sinks.iter().map(|s| s.rows).sum()
    }
}

/// Rates between the last two observations.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    last: Observation,
}

/// What has changed since the last observation, a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    /// Rows read a second, per source in order.
    pub sources: Vec<f64>,
    /// Changes written a second over all sinks.
    pub out: f64,
}

impl Meter {
    /// The rates since the last call (since the start at the first).
    pub fn rates(&mut self, now: &Observation) -> Rates {
        let seconds = now.elapsed.saturating_sub(self.last.elapsed).as_secs_f64().max(1e-3);
        let before = |name: &str| self.last.sources.iter().find(|s| s.name == name).map_or(0, |s| s.rows);
        let sources = now.sources.iter().map(|s| s.rows.saturating_sub(before(&s.name)) as f64 / seconds).collect();
        let out = now.rows_out().saturating_sub(self.last.rows_out()) as f64 / seconds;
        self.last = now.clone();
        Rates { sources, out }
    }
}

/// The line of one source.
#[must_use]
pub fn source_line(source: &SourceObservation, rate: f64, now_us: i64) -> String {
    let mut line = format!("{} rows", grouped(source.rows));
    if let Some(total) = source.rows_total.filter(|total| *total > 0) {
        line += &format!(" of {} ({:.0} %)", grouped(total), 100.0 * source.rows as f64 / total as f64);
    }
    if let Some(total) = source.bytes_total.filter(|total| *total > 0) {
        line += &format!("  {} of {} ({:.0} %)", bytes(source.bytes), bytes(total), 100.0 * source.bytes as f64 / total as f64);
    }
    line += &format!("  {}/s", short_count(rate));
    if let Some(watermark) = source.watermark_us {
        line += &format!("  watermark {}", timestamp(watermark));
        // Behind the clock by years is a file of old events, not a lag.
        let behind = now_us.saturating_sub(watermark);
        if (0..86_400_000_000).contains(&behind) {
            line += &format!("  lag {}", duration(Duration::from_micros(behind.unsigned_abs())));
        }
    }
    if let Some(rows) = source.lag_rows {
        line += &format!("  {} rows waiting", grouped(rows));
    }
    line
}

/// The line of all sinks.
#[must_use]
pub fn sinks_line(now: &Observation, rate: f64) -> String {
    format!("{} rows  {}/s  state {}", grouped(now.rows_out()), short_count(rate), bytes(now.state_bytes))
}

#[derive(Serialize)]
struct ProgressRecord<'a> {
    level: &'static str,
    event: &'static str,
    elapsed_ms: u64,
    rows_in: u64,
    rows_out: u64,
    rows_out_per_second: u64,
    state_bytes: u64,
    sources: Vec<SourceRecord<'a>>,
}

#[derive(Serialize)]
struct SourceRecord<'a> {
    name: &'a str,
    rows: u64,
    rows_per_second: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows_total: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_total: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    watermark_us: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_rows: Option<u64>,
}

/// The line of `--log json`.
#[must_use]
pub fn json_line(now: &Observation, rates: &Rates) -> String {
    let sources = now.sources.iter().zip(&rates.sources).map(|(source, rate)| SourceRecord {
        name: &source.name,
        rows: source.rows,
        rows_per_second: *rate as u64,
        rows_total: source.rows_total,
        bytes: (source.bytes > 0).then_some(source.bytes),
        bytes_total: source.bytes_total,
        watermark_us: source.watermark_us,
        lag_rows: source.lag_rows,
    });
    let record = ProgressRecord {
        level: "info",
        event: "progress",
        elapsed_ms: now.elapsed.as_millis() as u64,
        rows_in: now.rows_in(),
        rows_out: now.rows_out(),
        rows_out_per_second: rates.out as u64,
        state_bytes: now.state_bytes,
        sources: sources.collect(),
    };
    // A struct of texts and numbers: it always serializes.
    serde_json::to_string(&record).unwrap_or_default()
}

/// `20 000`: groups of three, apart by a thin gap that every terminal has.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut out = digits[..first].to_owned();
    for at in (first..digits.len()).step_by(3) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(&digits[at..at + 3]);
    }
    out
}

/// `950`, `12.3 k`, `4.56 M`.
#[must_use]
pub fn short_count(number: f64) -> String {
    match number {
        n if n < 1e3 => format!("{n:.0}"),
        n if n < 1e6 => format!("{:.1} k", n / 1e3),
        n if n < 1e9 => format!("{:.2} M", n / 1e6),
        n => format!("{:.2} G", n / 1e9),
    }
}

/// `512 B`, `61.2 MiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut amount = count as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{amount:.1} {}", UNITS[unit]) }
}

/// `830 ms`, `1.92 s`, `3 min 20 s`, `2 h 5 min`.
#[must_use]
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..60 => format!("{:.2} s", time.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// µs since 1970 as `2026-11-21 15:40:00`, or as its number where no calendar reaches.
#[must_use]
pub fn timestamp(us: i64) -> String {
    match us {
        i64::MIN => "none yet".to_owned(),
        i64::MAX => "end".to_owned(),
        _ => arrow::temporal_conversions::timestamp_us_to_datetime(us)
            .map_or_else(|| us.to_string(), |time| time.format("%Y-%m-%d %H:%M:%S").to_string()),
    }
}

/// Live lines on stderr, redrawn in place. They vanish when it is dropped.
pub struct Live {
    board: MultiProgress,
    sources: Vec<ProgressBar>,
    sinks: ProgressBar,
}

impl Live {
    /// Lines for so many sources.
    #[must_use]
    pub fn new(sources: &[SourceObservation]) -> Self {
        let board = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        let width = sources.iter().map(|s| s.name.chars().count()).max().unwrap_or(0).max(3);
        let line = |name: &str, template: &str, total: Option<u64>| {
            let bar = board.add(ProgressBar::new(total.unwrap_or(0)));
            // The templates are constants of this file; a test builds each.
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
            bar.set_style(style.progress_chars("━━╌"));
            bar.set_prefix(format!("{name:<width$}"));
            bar
        };
        let bars = sources
            .iter()
            .map(|s| {
                let total = s.rows_total.or(s.bytes_total);
                line(&s.name, if total.is_some() { TEMPLATE_KNOWN } else { TEMPLATE_OPEN }, total)
            })
            .collect();
        let sinks = line("out", TEMPLATE_OPEN, None);
        Self { board, sources: bars, sinks }
    }

    /// Shows an observation.
    pub fn show(&self, now: &Observation, rates: &Rates, now_us: i64) {
        for ((bar, source), rate) in self.sources.iter().zip(&now.sources).zip(&rates.sources) {
            if source.rows_total.is_some() {
                bar.set_position(source.rows);
            } else if source.bytes_total.is_some() {
                bar.set_position(source.bytes);
            }
            bar.set_message(source_line(source, *rate, now_us));
            bar.tick();
        }
        self.sinks.set_message(sinks_line(now, rates.out));
        self.sinks.tick();
    }

    /// Writes lines above the live ones.
    pub fn print(&self, text: &str) {
        // Fails when the terminal has gone: then nobody reads it.
        drop(self.board.println(text.trim_end()));
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        for bar in self.sources.iter().chain([&self.sinks]) {
            bar.finish_and_clear();
        }
        drop(self.board.clear());
    }
}

const TEMPLATE_KNOWN: &str = "{prefix:.cyan} {bar:20.green} {msg}";
const TEMPLATE_OPEN: &str = "{prefix:.cyan} {spinner:.green} {msg}";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn at(seconds: u64, rows: u64, out: u64) -> Observation {
        let source = SourceObservation { name: "bids".to_owned(), rows, rows_total: Some(4000), ..Default::default() };
        let sinks = vec![SinkObservation { name: "out".to_owned(), rows: out }];
        Observation { elapsed: Duration::from_secs(seconds), sources: vec![source], sinks, state_bytes: 3 << 20 }
    }

    #[test]
    fn rates_are_between_the_last_two_observations() {
        let mut meter = Meter::default();
        assert_eq!(meter.rates(&at(1, 1000, 10)), Rates { sources: vec![1000.0], out: 10.0 });
        assert_eq!(meter.rates(&at(3, 2000, 10)), Rates { sources: vec![500.0], out: 0.0 });
    }

    #[test]
    fn lines_say_rows_rate_watermark_and_lag() {
        let mut source = at(1, 1000, 0).sources.remove(0);
        assert_eq!(source_line(&source, 1234.0, 0), "1 000 rows of 4 000 (25 %)  1.2 k/s");
        let file = SourceObservation { rows_total: None, bytes: 1 << 20, bytes_total: Some(4 << 20), ..source.clone() };
        assert_eq!(source_line(&file, 1234.0, 0), "1 000 rows  1.0 MiB of 4.0 MiB (25 %)  1.2 k/s");
        source.watermark_us = Some(1_700_000_000_000_000);
        let line = source_line(&source, 0.0, 1_700_000_002_500_000);
        assert!(line.ends_with("watermark 2023-11-14 22:13:20  lag 2.50 s"), "{line}");
        let old = source_line(&source, 0.0, 1_800_000_000_000_000);
        assert!(old.ends_with("watermark 2023-11-14 22:13:20"), "{old}");
        assert_eq!(sinks_line(&at(1, 0, 12_345), 12_345.0), "12 345 rows  12.3 k/s  state 3.0 MiB");
    }

    #[test]
    fn machines_get_the_same_as_one_json_object() {
        let now = at(2, 1000, 7);
        let rates = Meter::default().rates(&now);
        let value: serde_json::Value = serde_json::from_str(&json_line(&now, &rates)).unwrap();
        assert_eq!(value["event"], "progress");
        assert_eq!((&value["rows_in"], &value["rows_out"]), (&1000.into(), &7.into()));
        assert_eq!(value["sources"][0]["rows_per_second"], 500);
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1 000", "1 234 567"]);
        assert_eq!([512, 2048, 64 << 20].map(bytes), ["512 B", "2.0 KiB", "64.0 MiB"]);
        assert_eq!(
            [0, 1_500, 200_000, 7_500_000].map(|ms| duration(Duration::from_millis(ms))),
            ["0 ms", "1.50 s", "3 min 20 s", "2 h 5 min"]
        );
        assert_eq!([950.0, 12_300.0, 4_560_000.0].map(short_count), ["950", "12.3 k", "4.56 M"]);
        assert_eq!(timestamp(i64::MIN), "none yet");
    }

    #[test]
    fn the_templates_are_valid() {
        for template in [TEMPLATE_KNOWN, TEMPLATE_OPEN] {
            ProgressStyle::with_template(template).unwrap();
        }
        let live = Live::new(&at(1, 1, 1).sources);
        live.show(&at(1, 1, 1), &Rates { sources: vec![1.0], out: 1.0 }, 0);
    }
}
