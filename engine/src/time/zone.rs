//! Time zones: what a clock on the wall shows at an instant, and back.
//!
//! Instants and clock readings are µs since 1970-01-01 00:00, in UTC and on that clock. Where clocks were put forward, a reading that never
//! was means as much later as they were moved; where they were put back, a reading that was twice means the first time. So do Java and Flink.

use std::fmt;

use chrono::{DateTime, LocalResult, NaiveDateTime, Offset, TimeZone};
use chrono_tz::Tz;

const SECOND_US: i64 = 1_000_000;
/// The largest difference from UTC that is taken: as ISO 8601 and Java have it.
const OFFSET_SECONDS_MAX: i32 = 18 * 3600;

/// A time zone: one with a name and a history, or a fixed difference from UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Zone {
    /// By its name in the IANA database.
    Named(Tz),
    /// Seconds east of UTC.
    Fixed(i32),
}

impl Default for Zone {
    fn default() -> Self {
        Self::UTC
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(zone) => f.write_str(zone.name()),
            Self::Fixed(seconds) => {
                let (sign, away) = (if *seconds < 0 { '-' } else { '+' }, seconds.unsigned_abs());
                write!(f, "{sign}{:02}:{:02}", away / 3600, away / 60 % 60)?;
                if away % 60 == 0 { Ok(()) } else { write!(f, ":{:02}", away % 60) }
            }
        }
    }
}

impl Zone {
    /// The zone of instants without another.
    pub const UTC: Self = Self::Fixed(0);

    /// From a name (`Europe/Berlin`, in any case) or a difference (`+02:00`, `-5`, `GMT+8`, `UTC+05:30`, `Z`).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if ["UTC", "GMT", "Z", "UT"].iter().any(|name| text.eq_ignore_ascii_case(name)) {
            return Some(Self::UTC);
        }
        let difference = ["UTC", "GMT", "UT"]
            .iter()
            .find(|name| text.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)))
            .map_or(text, |name| &text[name.len()..]);
        if let Some(seconds) = difference_seconds(difference) {
            return Some(Self::Fixed(seconds));
        }
        let found = match text.parse::<Tz>() {
            Ok(zone) => zone,
            Err(_) => *chrono_tz::TZ_VARIANTS.iter().find(|zone| zone.name().eq_ignore_ascii_case(text))?,
        };
        Some(if matches!(found, Tz::UTC | Tz::Etc__UTC) { Self::UTC } else { Self::Named(found) })
    }

    /// Whether its clock shows UTC, always.
    #[must_use]
    pub fn is_utc(self) -> bool {
        self == Self::UTC
    }

    /// How far its clock is ahead of UTC at an instant, µs. Beyond what a calendar can say (year ±262 000) it is as at its ends.
    #[must_use]
    pub fn ahead_us(self, instant_us: i64) -> i64 {
        match self {
            Self::Fixed(seconds) => i64::from(seconds) * SECOND_US,
            Self::Named(zone) => {
                let instant = clamped(instant_us);
                i64::from(zone.offset_from_utc_datetime(&instant).fix().local_minus_utc()) * SECOND_US
            }
        }
    }

    /// What its clock shows at an instant; `None` out of the range of µs.
    #[must_use]
    pub fn clock_us(self, instant_us: i64) -> Option<i64> {
        instant_us.checked_add(self.ahead_us(instant_us))
    }

    /// How far its clock is ahead of UTC, µs, modulo `period_us`, when that has been the same ever since the year 2000 (as known now, up to
    /// 2040); `None` when it changes, by summer time for example.
    #[must_use]
    pub fn steady_ahead_us(self, period_us: i64) -> Option<i64> {
        let Self::Named(_) = self else { return Some(self.ahead_us(0).rem_euclid(period_us)) };
        const FROM_US: i64 = 946_684_800 * SECOND_US;
        const UNTIL_US: i64 = 2_208_988_800 * SECOND_US;
        // No change of a clock was ever taken back within a week.
        const WEEK_US: i64 = 7 * 86_400 * SECOND_US;
        let steady = self.ahead_us(FROM_US).rem_euclid(period_us);
        let mut instant_us = FROM_US;
        while instant_us < UNTIL_US {
            if self.ahead_us(instant_us).rem_euclid(period_us) != steady {
                return None;
            }
            instant_us += WEEK_US;
        }
        Some(steady)
    }

    /// The instant at which its clock shows that; `None` out of the range of µs.
    #[must_use]
    pub fn instant_us(self, clock_us: i64) -> Option<i64> {
        let Self::Named(zone) = self else { return clock_us.checked_sub(self.ahead_us(0)) };
        let ahead = |offset: chrono_tz::TzOffset| i64::from(offset.fix().local_minus_utc()) * SECOND_US;
        // The last reading before `clock_us` that ever was: the largest gap on record is a day.
        const QUARTER_US: i64 = 900 * SECOND_US;
        let mut shown_us = clock_us;
        for _ in 0..=100 {
            match zone.offset_from_local_datetime(&clamped(shown_us)) {
                LocalResult::Single(offset) => return clock_us.checked_sub(ahead(offset)),
                // The first of two instants is the one further ahead of UTC; behind a gap it is the clock that was in force before it.
                LocalResult::Ambiguous(a, b) => return clock_us.checked_sub(ahead(a).max(ahead(b))),
                LocalResult::None => shown_us = shown_us.checked_sub(QUARTER_US)?,
            }
        }
        None
    }
}

fn clamped(us: i64) -> NaiveDateTime {
    let (least, most) = (DateTime::<chrono::Utc>::MIN_UTC, DateTime::<chrono::Utc>::MAX_UTC);
    // A day inside the ends, so that no zone leads over them.
    let day_us = 86_400 * SECOND_US;
    let us = us.clamp(least.timestamp_micros() + day_us, most.timestamp_micros() - day_us);
    DateTime::from_timestamp_micros(us).unwrap_or_default().naive_utc()
}

/// `+02:00`, `-5`, `+0530`, `+08:00:30` in seconds.
fn difference_seconds(text: &str) -> Option<i32> {
    let (sign, rest) = match text.as_bytes().first()? {
        b'+' => (1, &text[1..]),
        b'-' => (-1, &text[1..]),
        _ => return None,
    };
    let number = |digits: &str| -> Option<i32> {
        (matches!(digits.len(), 1 | 2) && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
    };
    let mut parts = rest.split(':');
    let first = parts.next()?;
    let (hours, mut minutes) = match first.len() {
        4 if first.is_ascii() => (number(&first[..2])?, number(&first[2..])?),
        _ => (number(first)?, 0),
    };
    if let Some(more) = parts.next() {
        if first.len() == 4 || more.len() != 2 {
            return None;
        }
        minutes = number(more)?;
    }
    let seconds = parts.next().map_or(Some(0), number)?;
    let total = hours * 3600 + minutes * 60 + seconds;
    (parts.next().is_none() && minutes < 60 && seconds < 60 && total <= OFFSET_SECONDS_MAX).then_some(sign * total)
}

/// A zone with the difference of the last second that was asked for: times of a stream are near each other.
#[derive(Clone, Copy, Debug)]
pub struct ZoneClock {
    zone: Zone,
    /// The second, and how far the clock is ahead in it, µs.
    last: Option<(i64, i64)>,
}

impl ZoneClock {
    /// A clock of that zone.
    #[must_use]
    pub fn new(zone: Zone) -> Self {
        Self { zone, last: None }
    }

    /// As [`Zone::clock_us`].
    #[must_use]
    pub fn clock_us(&mut self, instant_us: i64) -> Option<i64> {
        let second = instant_us.div_euclid(SECOND_US);
        let ahead_us = match self.last {
            Some((known, ahead_us)) if known == second => ahead_us,
            _ => {
                let ahead_us = self.zone.ahead_us(instant_us);
                self.last = Some((second, ahead_us));
                ahead_us
            }
        };
        instant_us.checked_add(ahead_us)
    }

    /// As [`Zone::instant_us`].
    #[must_use]
    pub fn instant_us(&self, clock_us: i64) -> Option<i64> {
        self.zone.instant_us(clock_us)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn us(text: &str) -> i64 {
        text.parse::<DateTime<chrono::Utc>>().unwrap().timestamp_micros()
    }

    #[test]
    fn names_and_differences_are_read_and_nothing_else() {
        for (text, shown) in [
            ("Europe/Berlin", "Europe/Berlin"),
            ("asia/shanghai", "Asia/Shanghai"),
            ("utc", "+00:00"),
            ("Z", "+00:00"),
            ("Etc/UTC", "+00:00"),
            ("+02:00", "+02:00"),
            ("-5", "-05:00"),
            ("+0530", "+05:30"),
            ("GMT+8", "+08:00"),
            ("UTC-03:30", "-03:30"),
            ("+18:00", "+18:00"),
        ] {
            assert_eq!(Zone::parse(text).map(|zone| zone.to_string()).as_deref(), Some(shown), "{text}");
        }
        for text in ["", "Berlin", "Europe/Nowhere", "+19", "+1:2:3:4", "+02:60", "02:00", "+é", "GMT+", "+12345"] {
            assert_eq!(Zone::parse(text), None, "{text}");
        }
    }

    #[test]
    fn readings_that_were_twice_or_never_are_read_as_java_does() {
        let berlin = Zone::parse("Europe/Berlin").unwrap();
        assert_eq!(berlin.clock_us(us("2024-07-01T10:00:00Z")), Some(us("2024-07-01T12:00:00Z")));
        assert_eq!(berlin.instant_us(us("2024-07-01T12:00:00Z")), Some(us("2024-07-01T10:00:00Z")));
        // 02:30 never was on 2024-03-31: 03:30 summer time, 01:30 UTC.
        assert_eq!(berlin.instant_us(us("2024-03-31T02:30:00Z")), Some(us("2024-03-31T01:30:00Z")));
        // 02:30 was twice on 2024-10-27: first in summer time.
        assert_eq!(berlin.instant_us(us("2024-10-27T02:30:00Z")), Some(us("2024-10-27T00:30:00Z")));
        // Samoa left a day out.
        let apia = Zone::parse("Pacific/Apia").unwrap();
        assert_eq!(apia.instant_us(us("2011-12-30T12:00:00Z")), Some(us("2011-12-30T22:00:00Z")));
        assert_eq!(Zone::Fixed(5400).instant_us(0), Some(-5_400_000_000));
    }

    #[test]
    fn a_clock_is_steady_where_its_changes_make_no_difference() {
        let steady = |name: &str, hours: i64| Zone::parse(name).unwrap().steady_ahead_us(hours * 3_600_000_000);
        assert_eq!(steady("Asia/Shanghai", 24), Some(8 * 3_600_000_000));
        assert_eq!(steady("America/New_York", 1), Some(0));
        assert_eq!(steady("America/New_York", 24), None);
        assert_eq!(steady("Asia/Kolkata", 1), Some(1_800_000_000));
        assert_eq!(steady("-05:00", 24), Some(19 * 3_600_000_000));
    }

    #[test]
    fn every_instant_comes_back_but_in_the_hour_that_was_twice() {
        for name in ["America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Africa/Monrovia", "Europe/Berlin"] {
            let zone = Zone::parse(name).unwrap();
            let mut clock = ZoneClock::new(zone);
            let mut instant = us("1950-01-01T00:00:00Z");
            while instant < us("2040-01-01T00:00:00Z") {
                let shown = clock.clock_us(instant).unwrap();
                assert_eq!(Some(shown), zone.clock_us(instant));
                let back = clock.instant_us(shown).unwrap();
                assert!(back == instant || (back < instant && zone.clock_us(back) == Some(shown)), "{name} {instant}");
                instant += 6_523_000_000;
            }
        }
        for extreme in [i64::MIN, i64::MAX, i64::MIN + 1, 0] {
            let zone = Zone::parse("Asia/Tokyo").unwrap();
            let _may_be_out_of_range = (zone.clock_us(extreme), zone.instant_us(extreme));
        }
    }
}
