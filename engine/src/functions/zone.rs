//! `time AT TIME ZONE zone`, as PostgreSQL has it: an instant becomes what that zone's clock shows, and a reading of that clock the instant.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::Volatility;

use super::call::{Call, Function, error, error_with_hint, is_text};
use crate::error::Code;
use crate::sql::types::{timestamp, timestamp_ltz};
use crate::time::{Zone, ZoneClock};

/// The name that `AT TIME ZONE` is planned by.
pub const AT_TIME_ZONE: &str = "at_time_zone";

pub(super) const FUNCTIONS: &[Function] = &[Function {
    name: AT_TIME_ZONE,
    aliases: &[],
    family: "time",
    signature: "time AT TIME ZONE zone",
    doc: "A TIMESTAMP_LTZ as the TIMESTAMP that the zone's clock shows then; a TIMESTAMP, read on that clock, as the TIMESTAMP_LTZ. Zones are names ('Europe/Berlin') or differences ('+02:00').",
    volatility: Volatility::Immutable,
    types: |types| match types {
        [DataType::Timestamp(_, Some(_)), zone] if is_text(zone) => {
            Some((vec![timestamp_ltz(), DataType::Utf8View], timestamp()))
        }
        [DataType::Timestamp(_, None), zone] if is_text(zone) => Some((vec![timestamp(), DataType::Utf8View], timestamp_ltz())),
        _ => None,
    },
    eval: at_time_zone,
}];

/// The zone of that name, or an error that says what zones look like.
pub(super) fn zone_named(text: &str) -> Result<Zone> {
    Zone::parse(text).ok_or_else(|| {
        let shown: String = text.chars().take(80).collect();
        error_with_hint(
            Code::InvalidArgument,
            format!("there is no time zone '{shown}'"),
            "zones are names, as 'Europe/Berlin', or differences from UTC, as '+02:00'",
        )
    })
}

/// The zone in use, which seldom changes between rows.
#[derive(Default)]
pub(super) struct Zones<'z> {
    current: Option<(&'z str, ZoneClock)>,
}

impl<'z> Zones<'z> {
    pub(super) fn get(&mut self, text: &'z str) -> Result<&mut ZoneClock> {
        if self.current.as_ref().is_none_or(|(known, _)| *known != text) {
            self.current = Some((text, ZoneClock::new(zone_named(text)?)));
        }
        match &mut self.current {
            Some((_, clock)) => Ok(clock),
            None => Err(error(Code::Internal, "a time zone was lost")),
        }
    }
}

/// A time that the change of zone moves out of what a TIMESTAMP can say.
pub(super) fn out_of_range() -> datafusion::common::DataFusionError {
    error(Code::Overflow, "a time is out of the range of a TIMESTAMP in that time zone")
}

fn at_time_zone(call: &Call<'_>) -> Result<ArrayRef> {
    let times = call.column(0)?;
    let times: &TimestampMicrosecondArray = times.as_primitive();
    let is_instant = matches!(call.return_type, DataType::Timestamp(_, None));
    let names = call.text(1)?;
    let mut zones = Zones::default();
    let mut out = TimestampMicrosecondArray::builder(call.rows);
    for row in 0..call.rows {
        let Some(name) = names.get(row).filter(|_| times.is_valid(row)) else {
            out.append_null();
            continue;
        };
        let clock = zones.get(name)?;
        let time_us = times.value(row);
        let moved = if is_instant { clock.clock_us(time_us) } else { clock.instant_us(time_us) };
        out.append_value(moved.ok_or_else(out_of_range)?);
    }
    Ok(Arc::new(out.finish().with_data_type(call.return_type.clone())))
}
