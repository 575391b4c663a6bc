//! Which windows an instant falls into: pure arithmetic, right before 1970 and at the ends of `i64`.

use std::fmt;

use arrow::array::{Array, TimestampMicrosecondArray};
use chrono_tz::Tz;

use super::grid::{CivilUnit, Grid};
use crate::error::{Code, Diagnostic, Result};

/// A length of time as SQL writes it. Months are calendar months and days are calendar days of the window's zone; `micros` always pass alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Interval {
    /// Calendar months.
    pub months: i32,
    /// Calendar days.
    pub days: i32,
    /// Microseconds.
    pub micros: i64,
}

impl Interval {
    /// Nothing: the default offset.
    pub const ZERO: Self = Self { months: 0, days: 0, micros: 0 };

    /// So many microseconds.
    #[must_use]
    pub const fn micros(micros: i64) -> Self {
        Self { months: 0, days: 0, micros }
    }

    /// So many calendar days.
    #[must_use]
    pub const fn days(days: i32) -> Self {
        Self { months: 0, days, micros: 0 }
    }

    /// So many calendar months.
    #[must_use]
    pub const fn months(months: i32) -> Self {
        Self { months, days: 0, micros: 0 }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for (count, unit) in [(i64::from(self.months), "month"), (i64::from(self.days), "day")] {
            if count != 0 {
                parts.push(format!("{count} {unit}{}", if count == 1 { "" } else { "s" }));
            }
        }
        let units = [(3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s"), (1000, "ms"), (1, "µs")];
        if self.micros != 0
            && let Some((us, unit)) = units.iter().find(|(us, _)| self.micros % us == 0)
        {
            parts.push(format!("{} {unit}", self.micros / us));
        }
        if parts.is_empty() { f.write_str("0") } else { f.write_str(&parts.join(" ")) }
    }
}

/// The shape of a window function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WindowKind {
    /// Each instant in one window.
    Tumble {
        /// Of each window.
        size: Interval,
    },
    /// A window every `slide`, each `size` long.
    Hop {
        /// From one start to the next; at most `size`.
        slide: Interval,
        /// Of each window; need not be a multiple of `slide`.
        size: Interval,
    },
    /// Windows that grow by `step` from a common start until `size`, then begin anew.
    Cumulate {
        /// From one end to the next; a divisor of `size`.
        step: Interval,
        /// Of the longest window.
        size: Interval,
    },
}

/// A half-open span of time `[start_us, end_us)`, µs since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Window {
    /// The first instant.
    pub start_us: i64,
    /// The first instant behind it.
    pub end_us: i64,
}

/// Why a row has no window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Its time is NULL.
    NullTime,
    /// A window of its time would begin or end outside of what a timestamp can say.
    OutOfRange,
}

/// Rows and their windows; see [`WindowSpec::assign_column`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// The row of each pair; ascending, a row once for each of its windows.
    pub rows: Vec<u32>,
    /// The window of each pair; ascending by start, then end, inside a row.
    pub windows: Vec<Window>,
    /// Rows without a window.
    pub refused: Vec<(u32, Refusal)>,
}

/// A checked window function: kind, offset and time zone.
///
/// Windows are aligned to 1970-01-01 00:00 plus `offset`: in UTC when the sizes are in time units, on the zone's clock when they are in days
/// or months (so a week begins on Thursday unless moved, and a day may have 23 or 25 hours). Sizes of one window all are in time units, or
/// all in days, or all in months; in UTC a day is 24 hours and mixes with time units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowSpec {
    kind: WindowKind,
    offset: Interval,
    zone: Tz,
    /// Slices: the finest spans that no window boundary cuts.
    grid: Grid,
    /// In slices; 1 for CUMULATE, whose windows begin every `size`.
    slide: i64,
    /// In slices.
    size: i64,
}

impl WindowSpec {
    /// The most windows that one instant may fall into.
    pub const WINDOWS_PER_ROW_MAX: i64 = 10_000;
    /// The least size, slide and step: `window_time` is 1 ms before the end and must be inside the window.
    pub const SIZE_US_MIN: i64 = 1000;

    /// Checks sizes and offset; refuses what can't be a window with [`Code::InvalidWindow`].
    pub fn new(kind: WindowKind, offset: Interval, zone: Tz) -> Result<Self> {
        let (name, finer, size) = match kind {
            WindowKind::Tumble { size } => ("TUMBLE", ("size", size), size),
            WindowKind::Hop { slide, size } => ("HOP", ("slide", slide), size),
            WindowKind::Cumulate { step, size } => ("CUMULATE", ("step", step), size),
        };
        let refuse = |what: String, hint: &str| Err(Diagnostic::new(Code::InvalidWindow, format!("{name}: {what}")).hint(hint));
        let fine = Measure::of(finer.1, zone);
        let (Some(fine), Some(whole)) = (fine, Measure::of(size, zone)) else {
            return refuse(
                format!("{} {} and size {size} mix units of the calendar with others", finer.0, finer.1),
                "give each in time units alone, in days alone, or in months alone",
            );
        };
        if fine.count() < fine.least() || whole.count() < whole.least() {
            return refuse(
                format!("{} {} and size {size} must each be at least 1 ms", finer.0, finer.1),
                "use a positive interval, as INTERVAL '1' MINUTE",
            );
        }
        let (fine, whole, unit) = match (fine, whole) {
            (Measure::Micros(a), Measure::Micros(b)) => (a, b, None),
            (Measure::Days(a), Measure::Days(b)) => (a, b, Some(CivilUnit::Day)),
            (Measure::Months(a), Measure::Months(b)) => (a, b, Some(CivilUnit::Month)),
            _ => {
                return refuse(
                    format!(
                        "{} {} and size {size} are in different units, which have no common measure in {zone}",
                        finer.0, finer.1
                    ),
                    "give both in time units, both in days, or both in months",
                );
            }
        };
        if fine > whole {
            let hint = match kind {
                WindowKind::Hop { .. } => {
                    "HOP takes the slide first, then the size; name them if in doubt: SLIDE => …, SIZE => …"
                }
                _ => "CUMULATE takes the step first, then the size; name them if in doubt: STEP => …, SIZE => …",
            };
            return refuse(format!("{} {} is longer than size {size}", finer.0, finer.1), hint);
        }
        if matches!(kind, WindowKind::Cumulate { .. }) && whole % fine != 0 {
            return refuse(format!("size {size} is no multiple of step {}", finer.1), "choose a step that divides the size");
        }
        if whole / fine >= Self::WINDOWS_PER_ROW_MAX {
            return refuse(
                format!("each row would be in {} windows, more than {}", whole / fine, Self::WINDOWS_PER_ROW_MAX),
                "use a longer slide or step, or a shorter size",
            );
        }
        let slice = match kind {
            WindowKind::Hop { .. } => greatest_common_divisor(fine, whole),
            _ => fine,
        };
        // What moving by makes no difference.
        let period = if matches!(kind, WindowKind::Cumulate { .. }) { whole } else { fine };
        let day_us = 86_400_000_000_i64;
        let in_us = i64::from(offset.days).checked_mul(day_us).and_then(|days| days.checked_add(offset.micros));
        let grid = match (unit, in_us) {
            (_, None) => return refuse(format!("offset {offset} is too long"), "use an offset shorter than the window"),
            (None, Some(offset_us)) if offset.months == 0 => {
                Grid::Fixed { step_us: slice, offset_us: offset_us.rem_euclid(period) }
            }
            (Some(CivilUnit::Day), Some(_)) if offset.months == 0 => Grid::Civil {
                unit: CivilUnit::Day,
                step: slice,
                shift: i64::from(offset.days).rem_euclid(period),
                offset_us: offset.micros,
                zone,
            },
            (Some(CivilUnit::Month), Some(offset_us)) => Grid::Civil {
                unit: CivilUnit::Month,
                step: slice,
                shift: i64::from(offset.months).rem_euclid(period),
                offset_us,
                zone,
            },
            _ => {
                return refuse(
                    format!("offset {offset} has months, but size {size} has not"),
                    "give the offset in days or time units",
                );
            }
        };
        // Offsets of a civil grid are on the clock; a large one says nothing that a small one can't.
        if let Grid::Civil { offset_us, .. } = grid
            && offset_us.unsigned_abs() > 31 * day_us.unsigned_abs()
        {
            return refuse(format!("offset {offset} is too long"), "use an offset shorter than the window");
        }
        let (slide, size) = (if matches!(kind, WindowKind::Cumulate { .. }) { 1 } else { fine / slice }, whole / slice);
        Ok(Self { kind, offset, zone, grid, slide, size })
    }

    /// A tumbling window of `size_us` microseconds without offset.
    pub fn tumble_us(size_us: i64) -> Result<Self> {
        Self::new(WindowKind::Tumble { size: Interval::micros(size_us) }, Interval::ZERO, Tz::UTC)
    }

    /// A hopping window in microseconds without offset.
    pub fn hop_us(slide_us: i64, size_us: i64) -> Result<Self> {
        let (slide, size) = (Interval::micros(slide_us), Interval::micros(size_us));
        Self::new(WindowKind::Hop { slide, size }, Interval::ZERO, Tz::UTC)
    }

    /// A cumulating window in microseconds without offset.
    pub fn cumulate_us(step_us: i64, size_us: i64) -> Result<Self> {
        let (step, size) = (Interval::micros(step_us), Interval::micros(size_us));
        Self::new(WindowKind::Cumulate { step, size }, Interval::ZERO, Tz::UTC)
    }

    /// The shape as it was given.
    #[must_use]
    pub fn kind(&self) -> WindowKind {
        self.kind
    }

    /// Whether every window begins at a whole millisecond.
    #[must_use]
    pub fn is_whole_milliseconds(&self) -> bool {
        match self.grid {
            Grid::Fixed { step_us, offset_us } => step_us % 1000 == 0 && offset_us % 1000 == 0,
            Grid::Civil { offset_us, .. } => offset_us % 1000 == 0,
        }
    }

    /// The most windows that an instant falls into.
    #[must_use]
    pub fn windows_per_row(&self) -> usize {
        match self.kind {
            WindowKind::Cumulate { .. } => self.size as usize,
            _ => ((self.size + self.slide - 1) / self.slide) as usize,
        }
    }

    /// How many slices the longest window has. A slice is a span that no window boundary cuts; TUMBLE has one.
    #[must_use]
    pub fn slices_per_window(&self) -> usize {
        self.size as usize
    }

    /// The windows that `ts_us` falls into, ascending by start, then end. `Err` when one of them can't be expressed.
    pub fn assign(&self, ts_us: i64) -> Result<Vec<Window>, Refusal> {
        let mut cursor = WindowCursor::new(*self);
        cursor.seek(ts_us).map(<[Window]>::to_vec)
    }

    /// The windows of each row of a column; `out` is emptied first.
    pub fn assign_column(&self, times: &TimestampMicrosecondArray, out: &mut Assignment) {
        out.rows.clear();
        out.windows.clear();
        out.refused.clear();
        let mut cursor = WindowCursor::new(*self);
        for (row, ts) in times.values().iter().enumerate() {
            if times.is_null(row) {
                out.refused.push((row as u32, Refusal::NullTime));
                continue;
            }
            match cursor.seek(*ts) {
                Ok(windows) => {
                    out.windows.extend_from_slice(windows);
                    out.rows.resize(out.windows.len(), row as u32);
                }
                Err(refusal) => out.refused.push((row as u32, refusal)),
            }
        }
    }

    /// The windows that hold slice `index`, as `[first, end)` in slices; ascending by start, then end.
    fn windows_of_slice(&self, index: i64, mut each: impl FnMut(i64, i64)) -> Option<()> {
        if matches!(self.kind, WindowKind::Cumulate { .. }) {
            let first = index.checked_sub(index.rem_euclid(self.size))?;
            for end in index.checked_add(1)?..=first.checked_add(self.size)? {
                each(first, end);
            }
        } else {
            let newest = index.checked_sub(index.rem_euclid(self.slide))?;
            let earlier = (self.size - 1 - (index - newest)).div_euclid(self.slide);
            let mut first = newest.checked_sub(earlier.checked_mul(self.slide)?)?;
            while first <= newest {
                each(first, first.checked_add(self.size)?);
                first += self.slide;
            }
        }
        Some(())
    }
}

/// Assigns instants one after the other; those in the slice of the one before cost two comparisons.
#[derive(Clone, Debug)]
pub struct WindowCursor {
    spec: WindowSpec,
    from_us: i64,
    to_us: i64,
    windows: Vec<Window>,
}

impl WindowCursor {
    /// A cursor that stands nowhere.
    #[must_use]
    pub fn new(spec: WindowSpec) -> Self {
        Self { spec, from_us: 0, to_us: 0, windows: Vec::new() }
    }

    /// The windows of `ts_us`, as [`WindowSpec::assign`] gives them.
    pub fn seek(&mut self, ts_us: i64) -> Result<&[Window], Refusal> {
        if self.holds(ts_us) {
            return Ok(&self.windows);
        }
        self.step(ts_us).ok_or(Refusal::OutOfRange)?;
        Ok(&self.windows)
    }

    /// Whether `ts_us` has the windows of the last `seek` that went well.
    #[inline]
    pub(super) fn holds(&self, ts_us: i64) -> bool {
        self.from_us <= ts_us && ts_us < self.to_us
    }

    /// The slice of the last `seek` that went well.
    pub(super) fn slice(&self) -> Window {
        Window { start_us: self.from_us, end_us: self.to_us }
    }

    /// The windows of the last `seek` that went well.
    pub(super) fn windows(&self) -> &[Window] {
        &self.windows
    }

    fn step(&mut self, ts_us: i64) -> Option<()> {
        (self.from_us, self.to_us) = (0, 0);
        self.windows.clear();
        let (grid, windows) = (&self.spec.grid, &mut self.windows);
        let slice = grid.index(ts_us)?;
        let (from_us, to_us) = (grid.boundary(slice)?, grid.boundary(slice.checked_add(1)?)?);
        let mut all = Some(());
        self.spec.windows_of_slice(slice, |first, end| match (grid.boundary(first), grid.boundary(end)) {
            (Some(start_us), Some(end_us)) => windows.push(Window { start_us, end_us }),
            _ => all = None,
        })?;
        all?;
        (self.from_us, self.to_us) = (from_us, to_us);
        Some(())
    }
}

impl fmt::Display for WindowSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let literal = |i: Interval| crate::sql::interval::literal(i.months, i.days, i.micros);
        match self.kind {
            WindowKind::Tumble { size } => write!(f, "TUMBLE(size => {}", literal(size))?,
            WindowKind::Hop { slide, size } => write!(f, "HOP(slide => {}, size => {}", literal(slide), literal(size))?,
            WindowKind::Cumulate { step, size } => write!(f, "CUMULATE(step => {}, size => {}", literal(step), literal(size))?,
        }
        if self.offset != Interval::ZERO {
            write!(f, ", offset => {}", literal(self.offset))?;
        }
        if matches!(self.grid, Grid::Civil { .. }) {
            write!(f, ", zone => {}", self.zone)?;
        }
        f.write_str(")")
    }
}

/// An interval that has one unit.
#[derive(Clone, Copy)]
enum Measure {
    Micros(i64),
    Days(i64),
    Months(i64),
}

impl Measure {
    fn of(interval: Interval, zone: Tz) -> Option<Self> {
        match interval {
            Interval { months: 0, days: 0, micros } => Some(Self::Micros(micros)),
            Interval { months: 0, days, micros } if zone == Tz::UTC => {
                i64::from(days).checked_mul(86_400_000_000)?.checked_add(micros).map(Self::Micros)
            }
            Interval { months: 0, days, micros: 0 } => Some(Self::Days(days.into())),
            Interval { months, days: 0, micros: 0 } => Some(Self::Months(months.into())),
            _ => None,
        }
    }

    fn count(self) -> i64 {
        match self {
            Self::Micros(n) | Self::Days(n) | Self::Months(n) => n,
        }
    }

    fn least(self) -> i64 {
        if matches!(self, Self::Micros(_)) { WindowSpec::SIZE_US_MIN } else { 1 }
    }
}

fn greatest_common_divisor(mut a: i64, mut b: i64) -> i64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    /// By the definition: window k of a grid of starts, over all k that could matter, in 128 bits.
    fn naive(kind: (char, i64, i64), offset: i64, ts: i64) -> Vec<(i128, i128)> {
        let (shape, fine, size) = (kind.0, i128::from(kind.1), i128::from(kind.2));
        let (ts, offset) = (i128::from(ts), i128::from(offset));
        let mut found = Vec::new();
        let every = if shape == 'c' { size } else { fine };
        let mut k = (ts - offset - size).div_euclid(every) - 1;
        while offset + k * every <= ts {
            let start = offset + k * every;
            if shape == 'c' {
                let mut end = start + fine;
                while end <= start + size {
                    if start <= ts && ts < end {
                        found.push((start, end));
                    }
                    end += fine;
                }
            } else if start <= ts && ts < start + size {
                found.push((start, start + size));
            }
            k += 1;
        }
        found
    }

    fn spec(kind: (char, i64, i64), offset: i64) -> WindowSpec {
        let (fine, size) = (Interval::micros(kind.1), Interval::micros(kind.2));
        let kind = match kind.0 {
            't' => WindowKind::Tumble { size },
            'h' => WindowKind::Hop { slide: fine, size },
            _ => WindowKind::Cumulate { step: fine, size },
        };
        WindowSpec::new(kind, Interval::micros(offset), Tz::UTC).unwrap()
    }

    fn kinds() -> impl Strategy<Value = (char, i64, i64)> {
        prop_oneof![
            (1000_i64..5000).prop_map(|size| ('t', size, size)),
            (1000_i64..4000, 0_i64..9000).prop_map(|(slide, more)| ('h', slide, slide + more)),
            (1000_i64..4000, 1_i64..6).prop_map(|(step, times)| ('c', step, step * times)),
        ]
    }

    fn times() -> impl Strategy<Value = i64> {
        prop_oneof![
            -30_000_i64..30_000,
            Just(i64::MIN),
            Just(i64::MAX),
            any::<i64>(),
            i64::MAX - 20_000..=i64::MAX,
            i64::MIN..i64::MIN + 20_000
        ]
    }

    proptest! {
        #[test]
        fn windows_are_those_of_the_definition(kind in kinds(), offset in -9000_i64..9000, ts in times()) {
            let expected = naive(kind, offset, ts);
            match spec(kind, offset).assign(ts) {
                Ok(windows) => {
                    let found: Vec<_> = windows.iter().map(|w| (i128::from(w.start_us), i128::from(w.end_us))).collect();
                    prop_assert_eq!(found, expected);
                }
                // Refused only within one window and offset of the ends of time.
                Err(_) => prop_assert!(!(i64::MIN + 50_000..=i64::MAX - 50_000).contains(&ts)),
            }
        }

        #[test]
        fn a_column_is_assigned_as_its_rows(kind in kinds(), offset in -9000_i64..9000, ts in proptest::collection::vec(proptest::option::of(times()), 0..60)) {
            let spec = spec(kind, offset);
            let mut out = Assignment::default();
            spec.assign_column(&TimestampMicrosecondArray::from(ts.clone()), &mut out);
            let mut expected = Assignment::default();
            for (row, ts) in ts.iter().enumerate() {
                match ts.map(|ts| spec.assign(ts)) {
                    None => expected.refused.push((row as u32, Refusal::NullTime)),
                    Some(Err(refusal)) => expected.refused.push((row as u32, refusal)),
                    Some(Ok(windows)) => {
                        expected.rows.extend(windows.iter().map(|_| row as u32));
                        expected.windows.extend(windows);
                    }
                }
            }
            prop_assert_eq!(out, expected);
        }
    }

    #[test]
    fn months_and_quarters_follow_the_calendar() {
        let at = |text: &str| chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros();
        let month = WindowSpec::new(WindowKind::Tumble { size: Interval::months(1) }, Interval::ZERO, Tz::UTC).unwrap();
        let feb = Window { start_us: at("2024-02-01T00:00:00Z"), end_us: at("2024-03-01T00:00:00Z") };
        assert_eq!(month.assign(at("2024-02-29T23:59:59.999999Z")), Ok(vec![feb]));
        let before = Window { start_us: at("1969-12-01T00:00:00Z"), end_us: 0 };
        assert_eq!(month.assign(-1), Ok(vec![before]));
        // quarters that begin in February, on the third, at six
        let offset = Interval { months: 1, days: 2, micros: 6 * 3_600_000_000 };
        let quarter =
            WindowSpec::new(WindowKind::Tumble { size: Interval::months(3) }, offset, chrono_tz::Europe::Berlin).unwrap();
        let window = Window { start_us: at("2024-02-03T06:00:00+01:00"), end_us: at("2024-05-03T06:00:00+02:00") };
        assert_eq!(quarter.assign(at("2024-05-03T05:59:59+02:00")), Ok(vec![window]));
        assert_eq!(
            quarter.to_string(),
            "TUMBLE(size => INTERVAL '3' MONTH, offset => INTERVAL '1 month 2 days 6 hours', zone => Europe/Berlin)"
        );
        // a hop of 2 months by 1
        let (slide, size) = (Interval::months(1), Interval::months(2));
        let hop = WindowSpec::new(WindowKind::Hop { slide, size }, Interval::ZERO, Tz::UTC).unwrap();
        let starts: Vec<_> = hop.assign(at("2024-03-15T00:00:00Z")).unwrap().iter().map(|w| w.start_us).collect();
        assert_eq!(starts, [at("2024-02-01T00:00:00Z"), at("2024-03-01T00:00:00Z")]);
    }

    #[test]
    fn a_day_of_a_zone_is_not_24_hours() {
        let at = |text: &str| chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros();
        let day =
            WindowSpec::new(WindowKind::Tumble { size: Interval::days(1) }, Interval::ZERO, chrono_tz::Europe::Berlin).unwrap();
        let window = day.assign(at("2024-10-27T12:00:00+01:00")).unwrap()[0];
        assert_eq!(window.end_us - window.start_us, 25 * 3_600_000_000);
        let utc = WindowSpec::new(WindowKind::Tumble { size: Interval::days(1) }, Interval::ZERO, Tz::UTC).unwrap();
        assert_eq!(utc.assign(-1), Ok(vec![Window { start_us: -86_400_000_000, end_us: 0 }]));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused_with_a_hint() {
        let micros = Interval::micros;
        let cases = [
            (WindowKind::Hop { slide: micros(10_000), size: micros(5000) }, Interval::ZERO, "slide first"),
            (WindowKind::Cumulate { step: micros(2000), size: micros(5000) }, Interval::ZERO, "divides"),
            (WindowKind::Cumulate { step: micros(9000), size: micros(5000) }, Interval::ZERO, "step first"),
            (WindowKind::Tumble { size: micros(0) }, Interval::ZERO, "positive"),
            (WindowKind::Tumble { size: micros(-5) }, Interval::ZERO, "positive"),
            (WindowKind::Tumble { size: micros(999) }, Interval::ZERO, "positive"),
            (WindowKind::Tumble { size: Interval { months: 1, days: 1, micros: 0 } }, Interval::ZERO, "months alone"),
            (WindowKind::Hop { slide: Interval::days(1), size: Interval::months(1) }, Interval::ZERO, "both"),
            (WindowKind::Hop { slide: micros(1000), size: micros(100_000_000) }, Interval::ZERO, "longer slide"),
            (WindowKind::Tumble { size: micros(5000) }, Interval::months(1), "offset in days"),
        ];
        for (kind, offset, hint) in cases {
            let refused = WindowSpec::new(kind, offset, Tz::UTC).unwrap_err();
            assert_eq!(refused.code, Code::InvalidWindow, "{kind:?}");
            assert!(refused.hint.as_deref().unwrap_or_default().contains(hint), "{refused}");
        }
    }
}
