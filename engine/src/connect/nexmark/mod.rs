//! `'connector' = 'nexmark'`: the auction site of the Nexmark benchmark, with the schema, option names and distributions of its Flink
//! edition (github.com/nexmark/nexmark), so that published Nexmark SQL runs as it is.
//!
//! ```text
//! options ─▶ Shape ─▶ Generator (text, prices; one for all cores)
//! core c of n: blocks c, c + n, c + 2n, … of event numbers ─ timeline: kind, time ─▶ generate: columns ─▶ one batch for each kind
//! ```
//! Every event is a pure function of seed and event number, so the stream is the same at any number of cores. What it owes to speed:
//! a batch holds events of one kind, so that the structs of the other kinds are slices of one shared block of NULLs; strings are views
//! into text that was made once; columns and struct fields that nobody asks for are not made; kinds that nobody asks for are only counted.
//!
//! Kept from the original although it looks like an oversight: bidders' ids begin at 2000 (it adds 1000 twice), and `extra` has
//! characters below `a`. Other than there, the first event has the number 0, and the clock begins at a fixed time.

mod generate;
mod reader;
mod text;
mod timeline;
mod views;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int32Array, RecordBatch, RecordBatchOptions, StructArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Fields, SchemaRef, TimeUnit};
use datafusion::common::ScalarValue;

use self::generate::{Field, Generator, Shape, Value};
use self::reader::NexmarkReader;
use self::text::Text;
use self::timeline::{Kind, Run, Timeline};
use super::{ConnectorSpec, CoreInit, OptionSpec, OptionType, Options, Ring, Source, SourceReader, SourceRef, TableSpec};
use crate::error::{Code, Diagnostic, Result};

/// See [`super::registry`].
pub const SPEC: ConnectorSpec = ConnectorSpec {
    name: "nexmark",
    doc: "The Nexmark benchmark's stream of persons, auctions and bids, generated",
    options: OPTIONS,
    takes_format: false,
    takes_partitions: false,
    source: Some(plan),
    sink: None,
    metadata: &[],
};

macro_rules! option {
    ($key:literal, $kind:ident, $default:expr, $doc:literal) => {
        OptionSpec { key: $key, kind: OptionType::$kind, default: $default, required: false, doc: $doc }
    };
}

const OPTIONS: &[OptionSpec] = &[
    option!("events.num", Integer, Some("0"), "How many events there are in all; 0: without end."),
    option!("stop-at", Integer, Some("-1"), "Stop after so many events, if that is fewer than `events.num`; -1: don't."),
    option!(
        "keep-alive",
        Bool,
        Some("false"),
        "Whether the source stays open, silent, after its last event; the job then runs until it is stopped."
    ),
    option!("first-event.rate", Integer, Some("10000"), "Events a second of event time, 1 to 1000000000."),
    option!("next-event.rate", Integer, None, "Must equal first-event.rate: the rate does not change."),
    option!("rate.limited", Bool, Some("false"), "Whether events come no faster than their rate by the wall clock."),
    option!("max-emit-speed", Bool, Some("true"), "The opposite of rate.limited, as newer editions call it."),
    OptionSpec {
        key: "rate.shape",
        kind: OptionType::Choice(RATE_SHAPES),
        default: Some("SQUARE"),
        required: false,
        doc: "How the rate goes from `first-event.rate` to `next-event.rate`. As both are equal, every shape is the same stream.",
    },
    option!(
        "rate.period",
        Duration,
        Some("600 s"),
        "How long a round of `rate.shape` takes; without meaning while the rates are equal."
    ),
    option!("person.proportion", Integer, Some("1"), "Persons in each round of events."),
    option!("auction.proportion", Integer, Some("3"), "Auctions in each round of events."),
    option!("bid.proportion", Integer, Some("46"), "Bids in each round of events."),
    option!("person.avg-size", Bytes, Some("200"), "Average size of a person; `extra` fills it up."),
    option!("auction.avg-size", Bytes, Some("500"), "Average size of an auction; `extra` fills it up."),
    option!("bid.avg-size", Bytes, Some("100"), "Average size of a bid, not counting channel and url; `extra` fills it up."),
    option!("bid.hot-ratio.auctions", Integer, Some("2"), "One in so many bids is not for a hot auction."),
    option!("bid.hot-ratio.bidders", Integer, Some("4"), "One in so many bids is not by a hot bidder."),
    option!("auction.hot-ratio.sellers", Integer, Some("4"), "One in so many auctions is not by a hot seller."),
    option!(
        "start-time",
        Text,
        Some("2024-01-01 00:00:00"),
        "Event time of the first event: a UTC timestamp, ms since 1970, or now."
    ),
    option!("seed", Integer, Some("0"), "What everything random follows from: the same seed gives the same events."),
];

/// What `rate.shape` may be.
const RATE_SHAPES: &[&str] = &["SQUARE", "SINE"];
/// Events of a block; a core makes whole blocks, rounded down to whole rounds.
const BLOCK_EVENTS: u64 = 8000;
/// The most rows of a batch.
const BATCH_ROWS_MAX: usize = 8192;
/// The largest proportion of a kind.
const PROPORTION_MAX: u64 = 1_000_000;
/// The highest rate.
const RATE_MAX: u64 = 1_000_000_000;
/// The highest hot ratio.
const RATIO_MAX: u64 = 1_000_000;
/// The largest average size.
const AVERAGE_BYTES_MAX: u64 = 100 * 1024;
const _: () = assert!(AVERAGE_BYTES_MAX as usize * 12 / 10 < Text::EXTRA_BYTES_MAX);

fn plan(table: &TableSpec<'_>) -> Result<SourceRef> {
    let columns = table
        .schema
        .fields()
        .iter()
        .map(|field| {
            Column::new(field).map_err(|mut e| {
                e.message = format!("table `{}`: {}", table.name, e.message);
                e
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let options = table.options;
    let timeline = timeline(options)?;
    let events_max = timeline.events_max();
    let events_num = options.integer("events.num")?.unwrap_or(0);
    if events_num > events_max {
        return Err(options.invalid("events.num", format!("must be at most {events_max}: event time ends there")));
    }
    // -1 is Flink's "never".
    let stop_at = options.parsed("stop-at", "a number of events, or -1", |v| v.parse::<i64>().ok().filter(|n| *n >= -1))?;
    let stop_at = stop_at.and_then(|n| u64::try_from(n).ok());
    if stop_at.is_some_and(|n| n > events_max) {
        return Err(options.invalid("stop-at", format!("must be at most {events_max}: event time ends there")));
    }
    let events_num = match ((events_num > 0).then_some(events_num), stop_at) {
        (Some(all), Some(some)) => Some(all.min(some)),
        (all, some) => all.or(some),
    };
    let size = |key, default| {
        Ok::<_, Diagnostic>(match options.bytes(key)? {
            Some(bytes) if bytes > AVERAGE_BYTES_MAX => {
                return Err(options.invalid(key, format!("must be at most {AVERAGE_BYTES_MAX} bytes")));
            }
            bytes => bytes.unwrap_or(default) as usize,
        })
    };
    let limited = options.bool("rate.limited")?;
    let unlimited = options.bool("max-emit-speed")?;
    if limited.is_some() && limited == unlimited {
        return Err(options.invalid("max-emit-speed", "says the opposite of 'rate.limited'"));
    }
    let rate = timeline.rate;
    let shape = Shape {
        timeline,
        average_bytes: [size("person.avg-size", 200)?, size("auction.avg-size", 500)?, size("bid.avg-size", 100)?],
        hot_auction_ratio: within(options, "bid.hot-ratio.auctions", 2, 1, RATIO_MAX)?,
        hot_bidder_ratio: within(options, "bid.hot-ratio.bidders", 4, 1, RATIO_MAX)?,
        hot_seller_ratio: within(options, "auction.hot-ratio.sellers", 4, 1, RATIO_MAX)?,
        seed: options.integer("seed")?.unwrap_or(0),
    };
    Ok(Arc::new(NexmarkSource {
        schema: table.schema.clone(),
        columns: columns.into(),
        generator: Arc::new(Generator::new(shape)),
        kinds: [true; 3],
        events_num,
        keep_alive: options.bool("keep-alive")?.unwrap_or(false),
        events_max,
        paced_rate: limited.or(unlimited.map(|u| !u)).unwrap_or(false).then_some(rate),
    }))
}

fn timeline(options: &Options) -> Result<Timeline> {
    let proportions = [
        within(options, "person.proportion", 1, 0, PROPORTION_MAX)?,
        within(options, "auction.proportion", 3, 0, PROPORTION_MAX)?,
        within(options, "bid.proportion", 46, 0, PROPORTION_MAX)?,
    ];
    if proportions == [0; 3] {
        return Err(options.invalid("bid.proportion", "is 0, and so are the other proportions: there would be no event"));
    }
    let rate = within(options, "first-event.rate", 10_000, 1, RATE_MAX)?;
    if options.integer("next-event.rate")?.is_some_and(|next| next != rate) {
        return Err(options
            .invalid("next-event.rate", format!("must equal 'first-event.rate', which is {rate}"))
            .hint("rates that change over time are not supported: give both options the same value"));
    }
    let expected = "a timestamp such as '2024-01-01 00:00:00', ms since 1970, or now, between the years 1 and 9999";
    // Between equal rates there is nothing to shape; the values are checked all the same.
    options.choice("rate.shape", RATE_SHAPES)?;
    options.duration("rate.period")?;
    let start_ms = options.parsed("start-time", expected, parse_start_ms)?.unwrap_or(1_704_067_200_000);
    Ok(Timeline { start_ms, rate, proportions })
}

fn within(options: &Options, key: &str, default: u64, min: u64, max: u64) -> Result<u64> {
    match options.integer(key)? {
        Some(value) if !(min..=max).contains(&value) => {
            Err(options.invalid(key, format!("must be between {min} and {max}, not {value}")))
        }
        value => Ok(value.unwrap_or(default)),
    }
}

/// A UTC timestamp, a date, ms since 1970 or `now`, between the years 1 and 9999.
pub(super) fn parse_start_ms(text: &str) -> Option<i64> {
    use chrono::{DateTime, NaiveDate, NaiveDateTime};
    let civil = |time: NaiveDateTime| time.and_utc().timestamp_millis();
    let ms = if text.eq_ignore_ascii_case("now") {
        chrono::Utc::now().timestamp_millis()
    } else if let Ok(ms) = text.parse() {
        ms
    } else if let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        civil(date.and_hms_opt(0, 0, 0)?)
    } else if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        time.timestamp_millis()
    } else {
        civil(["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f"].iter().find_map(|f| NaiveDateTime::parse_from_str(text, f).ok())?)
    };
    (-62_135_596_800_000..253_402_300_800_000).contains(&ms).then_some(ms)
}

/// The planned source.
#[derive(Debug, Clone)]
struct NexmarkSource {
    schema: SchemaRef,
    columns: Arc<[Column]>,
    generator: Arc<Generator>,
    /// Which kinds are wanted.
    kinds: [bool; 3],
    /// How many events there are; `None`: no end is wanted.
    events_num: Option<u64>,
    /// Whether the source goes on, without rows, after the last event.
    keep_alive: bool,
    /// How many there can be.
    events_max: u64,
    /// Events a second by the wall clock; `None`: as fast as they can be made.
    paced_rate: Option<u64>,
}

impl NexmarkSource {
    /// Events of a block: whole rounds, so that every block begins with a person.
    fn block_events(&self) -> u64 {
        let round = self.generator.timeline().round_events();
        (BLOCK_EVENTS / round).max(1) * round
    }

    /// The rows of the events in `runs`, all of `kind`, `rows` in all.
    fn batch(&self, kind: Kind, runs: &[Run], rows: usize) -> Result<RecordBatch> {
        let columns = self.columns.iter().map(|column| column.build(&self.generator, kind, runs, rows)).collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
            .map_err(|e| Diagnostic::new(Code::Internal, e.to_string()))
    }
}

impl Source for NexmarkSource {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn is_bounded(&self) -> bool {
        self.events_num.is_some() && !self.keep_alive
    }

    fn is_append_only(&self) -> bool {
        true
    }

    fn ring(&self) -> Ring {
        Ring::Core
    }

    fn time_digits(&self) -> Option<u8> {
        Some(3)
    }

    fn rows_hint(&self) -> Option<u64> {
        let events = self.events_num?;
        let mut runs = Vec::new();
        let wanted = Kind::ALL.into_iter().filter(|kind| self.kinds[*kind as usize]);
        if self.kinds == [true; 3] {
            return Some(events);
        }
        let timeline = self.generator.timeline();
        let rounds = events / timeline.round_events();
        Some(
            wanted
                .map(|kind| {
                    let rest = timeline.runs(kind, &(rounds * timeline.round_events()..events), &mut runs);
                    rounds * timeline.proportions[kind as usize] + rest as u64
                })
                .sum(),
        )
    }

    fn restrict(&self, column: usize, values: &[ScalarValue]) -> Option<SourceRef> {
        if !matches!(self.columns.get(column)?, Column::EventType { .. }) {
            return None;
        }
        let wanted: Vec<i64> = values
            .iter()
            .map(|value| match value.cast_to(&DataType::Int64) {
                Ok(ScalarValue::Int64(Some(value))) => Some(value),
                _ => None,
            })
            .collect::<Option<_>>()?;
        let kinds = Kind::ALL.map(|kind| self.kinds[kind as usize] && wanted.contains(&(kind as i64)));
        Some(Arc::new(Self { kinds, ..self.clone() }))
    }

    fn is_resumable(&self) -> bool {
        true
    }

    fn open(&self, init: CoreInit) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(NexmarkReader::new(self.clone(), init)))
    }
}

/// A column of the table.
#[derive(Debug, Clone)]
enum Column {
    /// `event_type`: a constant column for each kind, of the most rows that a batch can have.
    EventType { constants: [ArrayRef; 3] },
    /// `person`, `auction` or `bid`.
    Struct {
        kind: Kind,
        fields: Fields,
        /// What each of `fields` is, and the type in which it is wanted.
        sources: Vec<(Field, DataType)>,
        /// NULL structs, as many as a batch can have rows.
        nulls: StructArray,
    },
}

impl Column {
    fn new(field: &arrow::datatypes::Field) -> Result<Self> {
        let name = field.name();
        if name.eq_ignore_ascii_case("event_type") {
            if !matches!(field.data_type(), DataType::Int32 | DataType::Int64) {
                return Err(refused(format!("column `{name}` must be INT")));
            }
            let constant = |kind: Kind| cast(&Int32Array::from_value(kind as i32, BATCH_ROWS_MAX), field.data_type());
            let [person, auction, bid] = Kind::ALL.map(constant);
            let internal = |e: arrow::error::ArrowError| Diagnostic::new(Code::Internal, e.to_string());
            return Ok(Self::EventType {
                constants: [person.map_err(internal)?, auction.map_err(internal)?, bid.map_err(internal)?],
            });
        }
        let kind = match name.to_ascii_lowercase().as_str() {
            "person" => Kind::Person,
            "auction" => Kind::Auction,
            "bid" => Kind::Bid,
            _ => {
                return Err(refused(format!("there is no column `{name}`"))
                    .hint("the physical columns are event_type INT and person, auction, bid, each a ROW"));
            }
        };
        let DataType::Struct(fields) = field.data_type() else {
            return Err(refused(format!("column `{name}` must be a ROW")));
        };
        if !field.is_nullable() {
            return Err(refused(format!("column `{name}` can't be NOT NULL: it is NULL for events of other types")));
        }
        let sources = fields
            .iter()
            .map(|inner| {
                let (source, value) = Field::named(kind, inner.name()).ok_or_else(|| {
                    refused(format!("column `{name}` has no field `{}`", inner.name()))
                        .hint(format!("its fields are: {}", Field::names(kind).join(", ")))
                })?;
                let (sql_type, fits) = match value {
                    Value::Long => ("BIGINT", matches!(inner.data_type(), DataType::Int64)),
                    Value::Text => {
                        ("VARCHAR", matches!(inner.data_type(), DataType::Utf8View | DataType::Utf8 | DataType::LargeUtf8))
                    }
                    Value::Time => {
                        let wide = [TimeUnit::Microsecond, TimeUnit::Millisecond];
                        ("TIMESTAMP(3)", matches!(inner.data_type(), DataType::Timestamp(unit, None) if wide.contains(unit)))
                    }
                };
                if fits {
                    Ok((source, inner.data_type().clone()))
                } else {
                    Err(refused(format!("field `{}` of column `{name}` must be {sql_type}", inner.name())))
                }
            })
            .collect::<Result<_>>()?;
        Ok(Self::Struct { kind, fields: fields.clone(), sources, nulls: StructArray::new_null(fields.clone(), BATCH_ROWS_MAX) })
    }

    fn build(&self, generator: &Generator, of: Kind, runs: &[Run], rows: usize) -> Result<ArrayRef> {
        let internal = |e: arrow::error::ArrowError| Diagnostic::new(Code::Internal, e.to_string());
        Ok(match self {
            Self::EventType { constants } => constants[of as usize].slice(0, rows),
            Self::Struct { kind, nulls, .. } if *kind != of => Arc::new(nulls.slice(0, rows)),
            Self::Struct { fields, sources, .. } => {
                let columns = generator.columns(sources.iter().map(|(field, _)| *field), runs, rows);
                let children =
                    columns
                        .into_iter()
                        .zip(sources)
                        .map(|(column, (_, data_type))| {
                            if column.data_type() == data_type { Ok(column) } else { cast(&column, data_type).map_err(internal) }
                        })
                        .collect::<Result<_>>()?;
                Arc::new(StructArray::try_new_with_length(fields.clone(), children, None, rows).map_err(internal)?)
            }
        })
    }
}

fn refused(message: String) -> Diagnostic {
    Diagnostic::new(Code::UnsupportedSchema, message)
}

#[cfg(test)]
mod tests;
