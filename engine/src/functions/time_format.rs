//! Patterns for times, of Java (`yyyy-MM-dd HH:mm`) and of PostgreSQL (`YYYY-MM-DD HH24:MI`): read once, then used for a whole column.

use std::fmt::Write as _;

use datafusion::common::Result;

use super::call::{error, error_with_hint};
use crate::error::Code;

pub(super) const SECOND_US: i64 = 1_000_000;
pub(super) const MINUTE_US: i64 = 60 * SECOND_US;
pub(super) const HOUR_US: i64 = 60 * MINUTE_US;
pub(super) const DAY_US: i64 = 24 * HOUR_US;

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// How letters are written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Case {
    Title,
    Upper,
    Lower,
}

/// One piece of a pattern. Widths are the least number of digits.
#[derive(Clone, Debug, PartialEq)]
enum Item {
    Literal(String),
    Year(usize),
    ShortYear,
    Quarter,
    Month(usize),
    MonthName {
        short: bool,
        case: Case,
        padded: bool,
    },
    Day(usize),
    DayOfYear(usize),
    Weekday {
        first_is_sunday: bool,
    },
    WeekdayName {
        short: bool,
        case: Case,
        padded: bool,
    },
    IsoWeek(usize),
    Hour(usize),
    Hour12(usize),
    Minute(usize),
    Second(usize),
    Fraction(usize),
    Meridiem(Case),
    /// `Z`, as all times are in UTC.
    Zone(&'static str),
}

impl Item {
    /// Times of the same multiple of this look the same.
    fn granule_us(&self) -> i64 {
        match self {
            Self::Hour(_) | Self::Hour12(_) | Self::Meridiem(_) => HOUR_US,
            Self::Minute(_) => MINUTE_US,
            Self::Second(_) => SECOND_US,
            Self::Fraction(digits) => 10i64.pow(6 - (*digits).min(6) as u32),
            _ => DAY_US,
        }
    }

    fn is_numeric(&self) -> bool {
        matches!(
            self,
            Self::Year(_)
                | Self::ShortYear
                | Self::Month(_)
                | Self::Day(_)
                | Self::DayOfYear(_)
                | Self::Hour(_)
                | Self::Hour12(_)
                | Self::Minute(_)
                | Self::Second(_)
                | Self::Fraction(_)
        )
    }
}

/// A pattern, read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pattern {
    items: Vec<Item>,
    /// Times of the same multiple of this give the same text.
    pub granule_us: i64,
}

/// Year, month 1–12, day 1–31 of a day since 1970.
pub(super) fn civil(days: i64) -> (i64, i64, i64) {
    // Days since 0000-03-01, in eras of 400 years.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The day since 1970 of a year, month and day; the inverse of [`civil`].
pub(super) fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// 0 is Sunday.
pub(super) fn weekday(days: i64) -> i64 {
    (days + 4).rem_euclid(7)
}

/// From 1.
pub(super) fn day_of_year(days: i64) -> i64 {
    days - days_from_civil(civil(days).0, 1, 1) + 1
}

/// The ISO week and the year that it belongs to.
pub(super) fn iso_week(days: i64) -> (i64, i64) {
    // The week's Thursday decides.
    let thursday = days - (weekday(days) + 6) % 7 + 3;
    let year = civil(thursday).0;
    (year, (thursday - days_from_civil(year, 1, 1)) / 7 + 1)
}

fn is_leap(year: i64) -> bool {
    (year % 4 == 0 && year % 100 != 0) || year % 400 == 0
}

fn month_length(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(is_leap(year)),
        _ => 31,
    }
}

impl Pattern {
    fn new(items: Vec<Item>) -> Self {
        let granule_us = items.iter().map(Item::granule_us).min().unwrap_or(DAY_US);
        Self { items, granule_us }
    }

    /// Whether it writes or reads a time zone.
    pub(super) fn has_zone(&self) -> bool {
        self.items.iter().any(|item| matches!(item, Item::Zone(_)))
    }

    /// A pattern of either kind: PostgreSQL's when it has one of its words, which mean nothing sensible in Java.
    pub(super) fn either(text: &str) -> Result<Self> {
        let is_postgres =
            ["HH24", "HH12", "YYYY", "MI", "DD", "Mon", "Day", "MON", "MONTH", "Month"].iter().any(|word| text.contains(word));
        if is_postgres { Self::postgres(text) } else { Self::java(text) }
    }

    /// As of Java's `DateTimeFormatter`.
    pub(super) fn java(text: &str) -> Result<Self> {
        let mut items = Vec::new();
        let mut rest = text;
        while let Some(letter) = rest.chars().next() {
            if letter == '\'' {
                let Some(end) = rest[1..].find('\'') else {
                    return Err(error(Code::InvalidArgument, format!("the pattern '{text}' has an open quote")));
                };
                items.push(Item::Literal(if end == 0 { "'".to_owned() } else { rest[1..=end].to_owned() }));
                rest = &rest[end + 2..];
                continue;
            }
            let count = rest.chars().take_while(|c| *c == letter).count();
            rest = &rest[count * letter.len_utf8()..];
            let name = |short| (short, Case::Title, false);
            items.push(match (letter, count) {
                ('y' | 'u', 2) => Item::ShortYear,
                ('y' | 'u', width) => Item::Year(width),
                ('Q' | 'q', 1) => Item::Quarter,
                ('M' | 'L', 1 | 2) => Item::Month(count),
                ('M' | 'L', 3 | 4) => {
                    let (short, case, padded) = name(count == 3);
                    Item::MonthName { short, case, padded }
                }
                ('d', 1 | 2) => Item::Day(count),
                ('D', 1..=3) => Item::DayOfYear(count),
                ('e', 1) => Item::Weekday { first_is_sunday: false },
                ('E', 1..=4) => {
                    let (short, case, padded) = name(count < 4);
                    Item::WeekdayName { short, case, padded }
                }
                ('w', 1 | 2) => Item::IsoWeek(count),
                ('H', 1 | 2) => Item::Hour(count),
                ('h', 1 | 2) => Item::Hour12(count),
                ('m', 1 | 2) => Item::Minute(count),
                ('s', 1 | 2) => Item::Second(count),
                ('S', 1..=9) => Item::Fraction(count),
                ('a', 1) => Item::Meridiem(Case::Upper),
                ('X', 1..=3) => Item::Zone("Z"),
                ('Z', 1..=3) => Item::Zone("+0000"),
                ('x', 1 | 2) => Item::Zone("+00"),
                ('z' | 'V', _) => Item::Zone("UTC"),
                (letter, count) if letter.is_ascii_alphabetic() => {
                    let run = letter.to_string().repeat(count);
                    return Err(error_with_hint(
                        Code::InvalidArgument,
                        format!("'{run}' in the time pattern '{text}' is not known"),
                        "known are yyyy, MM, dd, HH, hh, mm, ss, SSS, a, E, D, Q, w; text stands in single quotes",
                    ));
                }
                (other, count) => Item::Literal(other.to_string().repeat(count)),
            });
        }
        Ok(Self::new(items))
    }

    /// As of PostgreSQL's `to_char`.
    pub(super) fn postgres(text: &str) -> Result<Self> {
        let mut items = Vec::new();
        let mut rest = text;
        let mut is_filled = true;
        'next: while let Some(letter) = rest.chars().next() {
            if letter == '"' {
                let Some(end) = rest[1..].find('"') else {
                    return Err(error(Code::InvalidArgument, format!("the pattern '{text}' has an open quote")));
                };
                items.push(Item::Literal(rest[1..=end].to_owned()));
                rest = &rest[end + 2..];
                continue;
            }
            if let Some(more) = rest.strip_prefix("FM") {
                is_filled = false;
                rest = more;
                continue;
            }
            let width = |digits: usize| if is_filled { digits } else { 1 };
            let padded = is_filled;
            let known: [(&str, Item); 36] = [
                ("YYYY", Item::Year(width(4))),
                ("YY", Item::ShortYear),
                ("MONTH", Item::MonthName { short: false, case: Case::Upper, padded }),
                ("Month", Item::MonthName { short: false, case: Case::Title, padded }),
                ("month", Item::MonthName { short: false, case: Case::Lower, padded }),
                ("MON", Item::MonthName { short: true, case: Case::Upper, padded: false }),
                ("Mon", Item::MonthName { short: true, case: Case::Title, padded: false }),
                ("mon", Item::MonthName { short: true, case: Case::Lower, padded: false }),
                ("MM", Item::Month(width(2))),
                ("MI", Item::Minute(width(2))),
                ("MS", Item::Fraction(3)),
                ("US", Item::Fraction(6)),
                ("DAY", Item::WeekdayName { short: false, case: Case::Upper, padded }),
                ("Day", Item::WeekdayName { short: false, case: Case::Title, padded }),
                ("day", Item::WeekdayName { short: false, case: Case::Lower, padded }),
                ("DY", Item::WeekdayName { short: true, case: Case::Upper, padded: false }),
                ("Dy", Item::WeekdayName { short: true, case: Case::Title, padded: false }),
                ("dy", Item::WeekdayName { short: true, case: Case::Lower, padded: false }),
                ("DDD", Item::DayOfYear(width(3))),
                ("DD", Item::Day(width(2))),
                ("D", Item::Weekday { first_is_sunday: true }),
                ("ID", Item::Weekday { first_is_sunday: false }),
                ("IW", Item::IsoWeek(width(2))),
                ("HH24", Item::Hour(width(2))),
                ("HH12", Item::Hour12(width(2))),
                ("HH", Item::Hour12(width(2))),
                ("SS", Item::Second(width(2))),
                ("AM", Item::Meridiem(Case::Upper)),
                ("PM", Item::Meridiem(Case::Upper)),
                ("am", Item::Meridiem(Case::Lower)),
                ("pm", Item::Meridiem(Case::Lower)),
                ("Q", Item::Quarter),
                ("TZ", Item::Zone("UTC")),
                ("tz", Item::Zone("utc")),
                ("OF", Item::Zone("+00")),
                ("yyyy", Item::Year(width(4))),
            ];
            for (word, item) in known {
                if let Some(more) = rest.strip_prefix(word) {
                    items.push(item);
                    rest = more;
                    is_filled = true;
                    continue 'next;
                }
            }
            // PostgreSQL reads its words in either case, and what is no word as text; a word that it would read otherwise is refused.
            if letter.is_ascii_alphabetic() {
                let word: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
                let small = [
                    "hh", "mi", "ss", "ms", "us", "dd", "mm", "yy", "q", "d", "w", "j", "cc", "iy", "ww", "y", "rm", "ssss",
                    "tm", "th", "ff",
                ];
                if small.iter().any(|known| word.to_ascii_lowercase().starts_with(known)) {
                    return Err(error_with_hint(
                        Code::InvalidArgument,
                        format!("'{word}' in the time pattern '{text}' is not known"),
                        "known are YYYY, MM, Mon, Month, DD, DDD, Dy, Day, HH24, HH12, MI, SS, MS, US, AM, Q, IW, ID, FM; text stands in double quotes",
                    ));
                }
            }
            items.push(Item::Literal(letter.to_string()));
            rest = &rest[letter.len_utf8()..];
        }
        Ok(Self::new(items))
    }

    /// Writes a time, µs since 1970, behind `out`.
    pub(super) fn write(&self, time_us: i64, out: &mut String) {
        let days = time_us.div_euclid(DAY_US);
        let of_day = time_us.rem_euclid(DAY_US);
        let (year, month, day) = civil(days);
        let hour = of_day / HOUR_US;
        for item in &self.items {
            match item {
                Item::Literal(text) => out.push_str(text),
                Item::Year(width) => number(out, year, *width),
                Item::ShortYear => number(out, year.rem_euclid(100), 2),
                Item::Quarter => number(out, (month + 2) / 3, 1),
                Item::Month(width) => number(out, month, *width),
                Item::MonthName { short, case, padded } => name(out, MONTHS[(month - 1) as usize], *short, *case, *padded),
                Item::Day(width) => number(out, day, *width),
                Item::DayOfYear(width) => number(out, day_of_year(days), *width),
                Item::Weekday { first_is_sunday: true } => number(out, weekday(days) + 1, 1),
                Item::Weekday { first_is_sunday: false } => number(out, (weekday(days) + 6) % 7 + 1, 1),
                Item::WeekdayName { short, case, padded } => name(out, WEEKDAYS[weekday(days) as usize], *short, *case, *padded),
                Item::IsoWeek(width) => number(out, iso_week(days).1, *width),
                Item::Hour(width) => number(out, hour, *width),
                Item::Hour12(width) => number(out, (hour + 11) % 12 + 1, *width),
                Item::Minute(width) => number(out, of_day / MINUTE_US % 60, *width),
                Item::Second(width) => number(out, of_day / SECOND_US % 60, *width),
                Item::Fraction(digits) => {
                    let micros = of_day % SECOND_US;
                    let kept = (*digits).min(6);
                    number(out, micros / 10i64.pow(6 - kept as u32), kept);
                    out.extend(std::iter::repeat_n('0', digits - kept));
                }
                Item::Meridiem(case) => out.push_str(match (hour < 12, case) {
                    (true, Case::Lower) => "am",
                    (true, _) => "AM",
                    (false, Case::Lower) => "pm",
                    (false, _) => "PM",
                }),
                Item::Zone(text) => out.push_str(text),
            }
        }
    }

    /// Reads a time, µs since 1970. `None`: the text does not fit the pattern, or is no time.
    pub(super) fn read(&self, text: &str) -> Option<i64> {
        let mut rest = text;
        let (mut year, mut month, mut day) = (1970, 1, 1);
        let (mut hour, mut minute, mut second, mut micros) = (0, 0, 0, 0);
        let mut is_afternoon = None;
        let mut ordinal = None;
        for (index, item) in self.items.iter().enumerate() {
            let is_run = self.items.get(index + 1).is_some_and(Item::is_numeric);
            match item {
                Item::Literal(expected) => rest = rest.strip_prefix(expected.as_str())?,
                Item::Year(width) => year = digits(&mut rest, is_run, *width, (*width).max(4))?,
                Item::ShortYear => year = 2000 + digits(&mut rest, is_run, 2, 2)?,
                Item::Month(width) => month = digits(&mut rest, is_run, *width, 2)?,
                Item::Day(width) => day = digits(&mut rest, is_run, *width, 2)?,
                Item::DayOfYear(width) => ordinal = Some(digits(&mut rest, is_run, *width, 3)?),
                Item::Hour(width) => hour = digits(&mut rest, is_run, *width, 2)?,
                Item::Hour12(width) => {
                    hour = digits(&mut rest, is_run, *width, 2)?;
                    is_afternoon = is_afternoon.or(Some(false));
                    if !(1..=12).contains(&hour) {
                        return None;
                    }
                    hour %= 12;
                }
                Item::Minute(width) => minute = digits(&mut rest, is_run, *width, 2)?,
                Item::Second(width) => second = digits(&mut rest, is_run, *width, 2)?,
                Item::Fraction(width) => {
                    let before = rest.len();
                    let number = digits(&mut rest, is_run, *width, (*width).max(1))?;
                    let length = before - rest.len();
                    micros =
                        if length <= 6 { number * 10i64.pow(6 - length as u32) } else { number / 10i64.pow(length as u32 - 6) };
                }
                Item::Meridiem(_) => {
                    let half = rest.get(..2)?;
                    is_afternoon = Some(match half.to_ascii_lowercase().as_str() {
                        "am" => false,
                        "pm" => true,
                        _ => return None,
                    });
                    rest = &rest[2..];
                }
                Item::MonthName { short, padded, .. } => {
                    let index = MONTHS.iter().position(|name| starts_with(rest, cut(name, *short)))?;
                    rest = &rest[cut(MONTHS[index], *short).len()..];
                    if *padded {
                        rest = rest.trim_start_matches(' ');
                    }
                    month = index as i64 + 1;
                }
                Item::WeekdayName { short, padded, .. } => {
                    let index = WEEKDAYS.iter().position(|name| starts_with(rest, cut(name, *short)))?;
                    rest = &rest[cut(WEEKDAYS[index], *short).len()..];
                    if *padded {
                        rest = rest.trim_start_matches(' ');
                    }
                }
                Item::Zone(zone) => rest = rest.strip_prefix(zone).or_else(|| rest.strip_prefix('Z'))?,
                Item::Quarter | Item::Weekday { .. } | Item::IsoWeek(_) => return None,
            }
        }
        if is_afternoon == Some(true) {
            hour += 12;
        }
        let fits = rest.is_empty() && (1..=12).contains(&month) && (1..=month_length(year, month)).contains(&day);
        if !fits || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let days = match ordinal {
            Some(ordinal) if (1..=365 + i64::from(is_leap(year))).contains(&ordinal) => days_from_civil(year, 1, 1) + ordinal - 1,
            Some(_) => return None,
            None => days_from_civil(year, month, day),
        };
        let of_day = hour * HOUR_US + minute * MINUTE_US + second * SECOND_US + micros;
        days.checked_mul(DAY_US)?.checked_add(of_day)
    }
}

/// Takes a number of at most `most` digits. Directly before another number only the pattern's own digits belong to it.
fn digits(rest: &mut &str, is_run: bool, width: usize, most: usize) -> Option<i64> {
    let most = if is_run { width } else { most };
    let length = rest.bytes().take(most).take_while(u8::is_ascii_digit).count();
    if length == 0 || (is_run && length < width) {
        return None;
    }
    let (number, more) = rest.split_at(length);
    *rest = more;
    number.parse().ok()
}

fn starts_with(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

fn cut(name: &'static str, short: bool) -> &'static str {
    if short { &name[..3] } else { name }
}

fn name(out: &mut String, full: &'static str, short: bool, case: Case, padded: bool) {
    let start = out.len();
    let text = cut(full, short);
    match case {
        Case::Title => out.push_str(text),
        Case::Upper => out.push_str(&text.to_ascii_uppercase()),
        Case::Lower => out.push_str(&text.to_ascii_lowercase()),
    }
    if padded {
        // PostgreSQL fills names up to the longest, "September" and "Wednesday".
        let missing = 9usize.saturating_sub(out.len() - start);
        out.extend(std::iter::repeat_n(' ', missing));
    }
}

fn number(out: &mut String, value: i64, width: usize) {
    if width == 2 && (0..100).contains(&value) {
        out.push(char::from(b'0' + (value / 10) as u8));
        out.push(char::from(b'0' + (value % 10) as u8));
    } else {
        // Writing to a String can't fail.
        let _infallible = if value < 0 { write!(out, "-{:0width$}", -value) } else { write!(out, "{value:0width$}") };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use chrono::{DateTime, Datelike, Timelike};
    use proptest::prelude::*;

    use super::*;

    fn shown(pattern: &Pattern, time_us: i64) -> String {
        let mut out = String::new();
        pattern.write(time_us, &mut out);
        out
    }

    #[test]
    fn names_padding_and_halves_of_the_day() {
        // 2024-02-29 13:04:05.678901, a Thursday
        let time = days_from_civil(2024, 2, 29) * DAY_US + 13 * HOUR_US + 4 * MINUTE_US + 5 * SECOND_US + 678_901;
        for (pattern, expected) in [
            ("yyyy-MM-dd HH:mm:ss.SSS", "2024-02-29 13:04:05.678"),
            ("HH:mm", "13:04"),
            ("d MMM yy h:m a", "29 Feb 24 1:4 PM"),
            ("EEEE, MMMM d 'at' HH 'o''clock'", "Thursday, February 29 at 13 o'clock"),
            ("DDD Q SSSSSSSSS", "060 1 678901000"),
            ("yyyy-MM-dd'T'HH:mm:ssX", "2024-02-29T13:04:05Z"),
        ] {
            // Java writes two quotes inside a quoted text for one; ours ends the text and begins the next.
            let expected = expected.replace("o'clock", "oclock");
            assert_eq!(shown(&Pattern::java(pattern).unwrap(), time), expected, "{pattern}");
        }
        for (pattern, expected) in [
            ("YYYY-MM-DD HH24:MI:SS.US", "2024-02-29 13:04:05.678901"),
            ("FMMonth FMDD, HH12:MI am", "February 29, 01:04 pm"),
            ("Day|DY|Q|IW|ID|D|DDD", "Thursday |THU|1|09|4|5|060"),
            ("\"day\" DD", "day 29"),
        ] {
            assert_eq!(shown(&Pattern::postgres(pattern).unwrap(), time), expected, "{pattern}");
        }
        assert!(Pattern::java("yyyy-bb").is_err());
        assert!(Pattern::postgres("YYYY WW").is_err());
    }

    #[test]
    fn what_does_not_fit_is_not_read() {
        let pattern = Pattern::java("yyyy-MM-dd HH:mm:ss").unwrap();
        for text in
            ["2024-02-30 00:00:00", "2024-13-01 00:00:00", "2024-01-01", "2024-01-01 24:00:00", "2024-01-01 00:00:00 ", "x"]
        {
            assert_eq!(pattern.read(text), None, "{text}");
        }
        assert_eq!(Pattern::java("yyyyMMddHHmmss").unwrap().read("20240229130405"), pattern.read("2024-02-29 13:04:05"));
    }

    proptest! {
        #[test]
        fn dates_agree_with_chrono(seconds in -60_000_000_000i64..200_000_000_000, micros in 0i64..SECOND_US) {
            let time_us = seconds * SECOND_US + micros;
            let expected = DateTime::from_timestamp_micros(time_us).unwrap();
            let days = time_us.div_euclid(DAY_US);
            prop_assert_eq!(civil(days), (i64::from(expected.year()), i64::from(expected.month()), i64::from(expected.day())));
            prop_assert_eq!(days_from_civil(i64::from(expected.year()), i64::from(expected.month()), i64::from(expected.day())), days);
            prop_assert_eq!(weekday(days), i64::from(expected.weekday().num_days_from_sunday()));
            prop_assert_eq!(day_of_year(days), i64::from(expected.ordinal()));
            prop_assert_eq!(iso_week(days), (i64::from(expected.iso_week().year()), i64::from(expected.iso_week().week())));
            prop_assert_eq!(time_us.rem_euclid(DAY_US) / HOUR_US, i64::from(expected.hour()));
            if (1000..9999).contains(&expected.year()) {
                let pattern = Pattern::java("yyyy-MM-dd HH:mm:ss.SSSSSS").unwrap();
                let text = shown(&pattern, time_us);
                prop_assert_eq!(&text, &expected.format("%Y-%m-%d %H:%M:%S%.6f").to_string());
                prop_assert_eq!(pattern.read(&text), Some(time_us));
            }
        }
    }
}
