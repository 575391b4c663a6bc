//! Boundaries in time, numbered: fixed steps, or days and months of a time zone.

use chrono::{DateTime, Datelike, LocalResult, NaiveDate, NaiveDateTime, Offset, TimeZone, Utc};
use chrono_tz::Tz;

const DAY_US: i64 = 86_400_000_000;

/// The unit of a civil grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum CivilUnit {
    Day,
    Month,
}

/// An ascending sequence of instants `boundary(i)` for all integers `i`. Two neighbours may be equal: a zone may leave out a whole day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Grid {
    /// `offset + i * step`, in µs; `0 <= offset`.
    Fixed { step_us: i64, offset_us: i64 },
    /// The instants at which the zone's clock first shows the start of each `step`-th unit since 1970-01-01, moved by `shift` units and
    /// `offset_us` on the clock.
    Civil { unit: CivilUnit, step: i64, shift: i64, offset_us: i64, zone: Tz },
}

impl Grid {
    /// The greatest `i` with `boundary(i) <= ts_us`; `None` out of the calendar's range.
    pub(super) fn index(&self, ts_us: i64) -> Option<i64> {
        match self {
            Self::Fixed { step_us, offset_us } => Some(ts_us.checked_sub(*offset_us)?.div_euclid(*step_us)),
            Self::Civil { unit, step, shift, offset_us, zone } => {
                let clock_us = clock(*zone, ts_us)?.checked_sub(*offset_us)?;
                let units = match unit {
                    CivilUnit::Day => clock_us.div_euclid(DAY_US),
                    CivilUnit::Month => {
                        let date = DateTime::from_timestamp_micros(clock_us)?;
                        (i64::from(date.year()) - 1970) * 12 + i64::from(date.month0())
                    }
                };
                // Near a change of the clock the same reading may stand for two instants: the boundaries decide.
                let mut index = (units - shift).div_euclid(*step);
                while self.boundary(index)? > ts_us {
                    index -= 1;
                }
                while self.boundary(index + 1)? <= ts_us {
                    index += 1;
                }
                Some(index)
            }
        }
    }

    /// The instant of boundary `index`; `None` when it can't be expressed.
    pub(super) fn boundary(&self, index: i64) -> Option<i64> {
        match self {
            Self::Fixed { step_us, offset_us } => index.checked_mul(*step_us)?.checked_add(*offset_us),
            Self::Civil { unit, step, shift, offset_us, zone } => {
                let units = index.checked_mul(*step)?.checked_add(*shift)?;
                let clock_us = match unit {
                    CivilUnit::Day => units.checked_mul(DAY_US)?,
                    CivilUnit::Month => {
                        let year = i32::try_from(units.div_euclid(12).checked_add(1970)?).ok()?;
                        let month = units.rem_euclid(12) as u32 + 1;
                        NaiveDate::from_ymd_opt(year, month, 1)?.and_hms_opt(0, 0, 0)?.and_utc().timestamp_micros()
                    }
                };
                first_instant(*zone, clock_us.checked_add(*offset_us)?)
            }
        }
    }
}

fn civil(clock_us: i64) -> Option<NaiveDateTime> {
    Some(DateTime::from_timestamp_micros(clock_us)?.naive_utc())
}

fn utc_offset_us(zone: Tz, instant_us: i64) -> Option<i64> {
    let instant: DateTime<Utc> = DateTime::from_timestamp_micros(instant_us)?;
    Some(i64::from(zone.offset_from_utc_datetime(&instant.naive_utc()).fix().local_minus_utc()) * 1_000_000)
}

/// What the zone's clock shows, as µs since 1970-01-01 00:00 on that clock.
fn clock(zone: Tz, instant_us: i64) -> Option<i64> {
    instant_us.checked_add(utc_offset_us(zone, instant_us)?)
}

/// The first instant at which the zone's clock shows `clock_us`, or, where clocks were put forward over it, the instant of that change.
fn first_instant(zone: Tz, clock_us: i64) -> Option<i64> {
    const QUARTER_US: i64 = 900_000_000;
    let us = |offset: chrono_tz::TzOffset| i64::from(offset.fix().local_minus_utc()) * 1_000_000;
    match zone.offset_from_local_datetime(&civil(clock_us)?) {
        LocalResult::Single(offset) => clock_us.checked_sub(us(offset)),
        LocalResult::Ambiguous(a, b) => clock_us.checked_sub(us(a).max(us(b))),
        LocalResult::None => {
            // Walk back to a reading that exists; the largest gap on record is a day.
            let mut shown = clock_us;
            let before = loop {
                shown = shown.checked_sub(QUARTER_US)?;
                match zone.offset_from_local_datetime(&civil(shown)?) {
                    LocalResult::Single(offset) => break us(offset),
                    LocalResult::Ambiguous(a, b) => break us(a).min(us(b)),
                    LocalResult::None => {}
                }
            };
            // The change lies in (shown − before, clock − before]: the first instant with another offset.
            let (mut low, mut high) = (shown.checked_sub(before)?, clock_us.checked_sub(before)?);
            while high - low > 1 {
                let middle = low + (high - low) / 2;
                if utc_offset_us(zone, middle)? == before { low = middle } else { high = middle }
            }
            Some(high)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn days(zone: Tz) -> Grid {
        Grid::Civil { unit: CivilUnit::Day, step: 1, shift: 0, offset_us: 0, zone }
    }

    fn at(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()
    }

    fn length_h(grid: &Grid, text: &str) -> i64 {
        let i = grid.index(at(text)).unwrap();
        (grid.boundary(i + 1).unwrap() - grid.boundary(i).unwrap()) / 3_600_000_000
    }

    #[test]
    fn a_day_has_23_or_25_hours_when_the_clock_changes() {
        let berlin = days(chrono_tz::Europe::Berlin);
        assert_eq!(length_h(&berlin, "2024-03-31T12:00:00+02:00"), 23);
        assert_eq!(length_h(&berlin, "2024-10-27T12:00:00+01:00"), 25);
        assert_eq!(length_h(&berlin, "2024-07-01T12:00:00+02:00"), 24);
        let i = berlin.index(at("2024-03-31T00:00:00+01:00")).unwrap();
        assert_eq!(berlin.boundary(i), Some(at("2024-03-31T00:00:00+01:00")));
        assert_eq!(berlin.boundary(i + 1), Some(at("2024-04-01T00:00:00+02:00")));
    }

    #[test]
    fn a_midnight_that_was_left_out_begins_the_day_at_the_change() {
        // Beirut puts its clock forward at midnight: 2022-03-27 begins at 01:00.
        let beirut = days(chrono_tz::Asia::Beirut);
        let i = beirut.index(at("2022-03-27T12:00:00+03:00")).unwrap();
        assert_eq!(beirut.boundary(i), Some(at("2022-03-27T01:00:00+03:00")));
        // Samoa left out 2011-12-30 as a whole: that day is empty.
        let apia = days(chrono_tz::Pacific::Apia);
        let thirty_first = apia.index(at("2011-12-31T00:00:00+14:00")).unwrap();
        assert_eq!(apia.boundary(thirty_first), apia.boundary(thirty_first - 1));
        assert_eq!(apia.index(at("2011-12-31T00:00:00+14:00") - 1), Some(thirty_first - 2));
    }

    #[test]
    fn index_and_boundary_agree_around_every_change_of_the_clock() {
        use chrono_tz::*;
        for zone in [
            UTC,
            Europe::Berlin,
            America::Sao_Paulo,
            Asia::Beirut,
            Pacific::Apia,
            Asia::Kolkata,
            America::St_Johns,
            Africa::Cairo,
        ] {
            for unit in [CivilUnit::Day, CivilUnit::Month] {
                let grid = Grid::Civil { unit, step: 1, shift: 0, offset_us: 0, zone };
                // every 5 h 07 min over 60 years, from before 1970
                let mut ts = at("1960-01-01T00:00:00Z");
                while ts < at("2020-01-01T00:00:00Z") {
                    let i = grid.index(ts).unwrap();
                    assert!(grid.boundary(i).unwrap() <= ts && ts < grid.boundary(i + 1).unwrap(), "{zone} {ts}");
                    ts += 307 * 60_000_000 * if unit == CivilUnit::Month { 13 } else { 3 };
                }
            }
        }
    }

    #[test]
    fn times_out_of_range_have_no_index() {
        for ts in [i64::MIN, i64::MAX] {
            assert_eq!(days(chrono_tz::UTC).index(ts), None);
        }
        assert_eq!(Grid::Fixed { step_us: 10, offset_us: 3 }.index(i64::MIN), None);
        assert_eq!(Grid::Fixed { step_us: 10, offset_us: 0 }.boundary(i64::MAX / 10 + 1), None);
    }
}
