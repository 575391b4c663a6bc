//! The parts a group's state is made of, as columns while a batch is summed up, and as bytes of the group's slot.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BinaryArray, Decimal128Array, Float64Array, Int64Array, UInt64Array};
use arrow::datatypes::{DataType, Decimal128Type, Field, Float64Type, Int64Type, UInt64Type};

use super::numeric::{FloatSum, I192, Moments, array};
use crate::key::Keys;
use crate::key::ordinal::{Numbers, View};

/// What a state is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum StateKind {
    /// The sum of the weights.
    Count,
    /// The weighted sum of integers.
    SumInteger(usize),
    /// The weighted sum of decimals.
    SumDecimal(usize),
    /// The weighted sum of doubles.
    SumFloat(usize),
    /// Count, sum and sum of squares.
    Moments(usize),
    /// The greatest ordinal, or the least (`least`), of rows that are never taken back. Kept so that zero bytes are below all.
    Extremum64 { column: usize, least: bool },
    /// The same with 128 bits.
    Extremum128 { column: usize, least: bool },
    /// The first (or last) canonical row of an order, of rows that are never taken back: a handle into the values.
    Best { order: usize, last: bool },
    /// How many entries a group has in a set of different values.
    Entries(usize),
    /// How many of them are below zero.
    NegativeValues(usize),
    /// How many entries of a multiset are below zero.
    NegativeRows(usize),
    /// A result made from a multiset when the group settles: a handle into the values.
    SetValue { set: usize, part: Part },
    /// An estimate made from a sketch when the group settles.
    Estimate(usize),
}

/// What is kept of a multiset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    First,
    Last,
    All,
}

/// A handle into the values; see [`super::value`].
pub(crate) const HANDLE_BYTES: usize = 16;

impl StateKind {
    pub(crate) fn width(&self) -> usize {
        match self {
            Self::Count | Self::Extremum64 { .. } | Self::Estimate(_) => 8,
            Self::Entries(_) | Self::NegativeValues(_) | Self::NegativeRows(_) => 8,
            Self::SumInteger(_) | Self::Extremum128 { .. } => 16,
            Self::SumDecimal(_) => I192::BYTES,
            Self::SumFloat(_) => FloatSum::BYTES,
            Self::Moments(_) => Moments::BYTES,
            Self::Best { .. } | Self::SetValue { .. } => HANDLE_BYTES,
        }
    }

    /// Whether two parts of a group can be put together by their bytes alone.
    pub(crate) fn merges(&self) -> bool {
        self.travels()
    }

    /// Whether a first phase can make it for a second one.
    pub(crate) fn travels(&self) -> bool {
        !matches!(
            self,
            Self::Entries(_) | Self::NegativeValues(_) | Self::NegativeRows(_) | Self::SetValue { .. } | Self::Estimate(_)
        )
    }

    /// The column it reads, and how.
    pub(crate) fn view(&self) -> Option<(usize, View)> {
        match self {
            Self::SumInteger(column) | Self::Extremum64 { column, .. } => Some((*column, View::Ordinal64)),
            Self::SumDecimal(column) | Self::Extremum128 { column, .. } => Some((*column, View::Ordinal128)),
            Self::SumFloat(column) | Self::Moments(column) => Some((*column, View::Float)),
            _ => None,
        }
    }

    /// The columns that carry it between the phases of a two-phase aggregation.
    pub(crate) fn partial_types(&self) -> Vec<DataType> {
        match self {
            Self::Count => vec![DataType::Int64],
            Self::SumInteger(_) | Self::Extremum128 { .. } => vec![DataType::Decimal128(38, 0)],
            Self::SumDecimal(_) => vec![DataType::Decimal128(38, 0), DataType::Int64],
            Self::SumFloat(_) => {
                let mut types = vec![DataType::Float64; 2];
                types.extend(vec![DataType::Int64; 4]);
                types
            }
            Self::Moments(_) => {
                let mut types = vec![DataType::Float64; 4];
                types.extend(vec![DataType::Int64; 2]);
                types
            }
            Self::Extremum64 { .. } => vec![DataType::UInt64],
            Self::Best { .. } => vec![DataType::Binary],
            Self::Entries(_) | Self::NegativeValues(_) | Self::NegativeRows(_) | Self::SetValue { .. } | Self::Estimate(_) => {
                Vec::new()
            }
        }
    }

    pub(crate) fn partial_fields(&self, index: usize) -> Vec<Field> {
        let types = self.partial_types();
        types.into_iter().enumerate().map(|(i, t)| Field::new(format!("state_{index}_{i}"), t, true)).collect()
    }

    /// Adds the state of one slot to that of another.
    pub(crate) fn merge_slot(&self, from: &[u8], into: &mut [u8], at: usize) {
        match self {
            Self::Count => {
                let sum = i64::from_le_bytes(array(into, at)).wrapping_add(i64::from_le_bytes(array(from, at)));
                into[at..at + 8].copy_from_slice(&sum.to_le_bytes());
            }
            Self::SumInteger(_) => {
                let sum = i128::from_le_bytes(array(into, at)).wrapping_add(i128::from_le_bytes(array(from, at)));
                into[at..at + 16].copy_from_slice(&sum.to_le_bytes());
            }
            Self::SumDecimal(_) => I192::read(&into[at..]).add(I192::read(&from[at..])).write(&mut into[at..at + I192::BYTES]),
            Self::SumFloat(_) => {
                let mut sum = FloatSum::read(&into[at..]);
                sum.merge(&FloatSum::read(&from[at..]));
                sum.write(&mut into[at..at + FloatSum::BYTES]);
            }
            Self::Moments(_) => {
                let mut sum = Moments::read(&into[at..]);
                sum.merge(&Moments::read(&from[at..]));
                sum.write(&mut into[at..at + Moments::BYTES]);
            }
            Self::Extremum64 { .. } => {
                let best = u64::from_le_bytes(array(into, at)).max(u64::from_le_bytes(array(from, at)));
                into[at..at + 8].copy_from_slice(&best.to_le_bytes());
            }
            Self::Extremum128 { .. } => {
                let best = u128::from_le_bytes(array(into, at)).max(u128::from_le_bytes(array(from, at)));
                into[at..at + 16].copy_from_slice(&best.to_le_bytes());
            }
            // Best rows are compared by their bytes, which lie elsewhere; sets don't merge.
            _ => {}
        }
    }

    pub(crate) fn locals(&self) -> Locals {
        match self {
            Self::Count | Self::Entries(_) | Self::NegativeValues(_) | Self::NegativeRows(_) => Locals::Count(Vec::new()),
            Self::SumInteger(_) => Locals::Integer(Vec::new()),
            Self::SumDecimal(_) => Locals::Decimal(Vec::new()),
            Self::SumFloat(_) => Locals::Float(Vec::new()),
            Self::Moments(_) => Locals::Moments(Vec::new()),
            Self::Extremum64 { .. } => Locals::Greatest64(Vec::new()),
            Self::Extremum128 { .. } => Locals::Greatest128(Vec::new()),
            Self::Best { .. } => Locals::Row(Vec::new()),
            Self::SetValue { .. } | Self::Estimate(_) => Locals::Nothing,
        }
    }
}

/// Weights of the rows of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WeightSlice<'a> {
    Ones,
    Signed(&'a [i64]),
}

/// One state for the groups of one batch; the default value of each is its identity.
#[derive(Clone, Debug)]
pub(crate) enum Locals {
    Count(Vec<i64>),
    Integer(Vec<i128>),
    Decimal(Vec<I192>),
    Float(Vec<FloatSum>),
    Moments(Vec<Moments>),
    Greatest64(Vec<u64>),
    Greatest128(Vec<u128>),
    /// The best row so far, plus one.
    Row(Vec<u32>),
    Nothing,
}

/// An ordinal so that 0 is least and larger is better.
#[inline]
fn rank64(ordinal: i64, least: bool) -> u64 {
    let up = ordinal as u64 ^ (1 << 63);
    if least { !up } else { up }
}

#[inline]
fn rank128(ordinal: i128, least: bool) -> u128 {
    let up = ordinal as u128 ^ (1 << 127);
    if least { !up } else { up }
}

pub(crate) fn unrank64(rank: u64, least: bool) -> i64 {
    ((if least { !rank } else { rank }) ^ (1 << 63)) as i64
}

pub(crate) fn unrank128(rank: u128, least: bool) -> i128 {
    ((if least { !rank } else { rank }) ^ (1 << 127)) as i128
}

/// Calls `each(row, group, weight)` for all rows; twice compiled, for weights that are all 1 and others.
#[inline]
pub(crate) fn each_row(groups: &[u32], weights: WeightSlice<'_>, mut each: impl FnMut(usize, usize, i64)) {
    match weights {
        WeightSlice::Ones => {
            for (row, group) in groups.iter().enumerate() {
                each(row, *group as usize, 1);
            }
        }
        WeightSlice::Signed(weights) => {
            for (row, (group, weight)) in groups.iter().zip(weights).enumerate() {
                each(row, *group as usize, *weight);
            }
        }
    }
}

impl Locals {
    /// Forgets all and makes room for `count` groups.
    pub(crate) fn reset(&mut self, count: usize) {
        fn fill<T: Clone + Default>(values: &mut Vec<T>, count: usize) {
            values.clear();
            values.resize(count, T::default());
        }
        match self {
            Self::Count(v) => fill(v, count),
            Self::Integer(v) => fill(v, count),
            Self::Decimal(v) => fill(v, count),
            Self::Float(v) => fill(v, count),
            Self::Moments(v) => fill(v, count),
            Self::Greatest64(v) => fill(v, count),
            Self::Greatest128(v) => fill(v, count),
            Self::Row(v) => fill(v, count),
            Self::Nothing => {}
        }
    }

    /// Adds the rows of a batch. `numbers` is what the kind's `view` asks for. Sets and best rows have steps of their own.
    pub(crate) fn add(&mut self, kind: &StateKind, groups: &[u32], weights: WeightSlice<'_>, numbers: Option<&Numbers>) {
        let rows = groups.len();
        let integers = || numbers.map_or(&[][..], Numbers::as_i64);
        let wide = || numbers.map_or(&[][..], Numbers::as_i128);
        let floats = || numbers.map_or(&[][..], Numbers::as_f64);
        match (self, kind) {
            (Self::Count(sums), StateKind::Count) => each_row(groups, weights, |_, g, w| sums[g] = sums[g].wrapping_add(w)),
            (Self::Integer(sums), _) => {
                let values = &integers()[..rows];
                each_row(groups, weights, |r, g, w| sums[g] = sums[g].wrapping_add(i128::from(values[r]) * i128::from(w)));
            }
            (Self::Decimal(sums), _) => {
                let values = &wide()[..rows];
                each_row(groups, weights, |r, g, w| sums[g] = sums[g].add(I192::product(values[r], w)));
            }
            (Self::Float(sums), _) => {
                let values = &floats()[..rows];
                each_row(groups, weights, |r, g, w| {
                    if w != 0 {
                        sums[g].add_value(values[r], w);
                    }
                });
            }
            (Self::Moments(sums), _) => {
                let values = &floats()[..rows];
                each_row(groups, weights, |r, g, w| {
                    if w != 0 {
                        sums[g].add_value(values[r], w);
                    }
                });
            }
            (Self::Greatest64(best), StateKind::Extremum64 { least, .. }) => {
                let (values, least) = (&integers()[..rows], *least);
                each_row(groups, weights, |r, g, w| {
                    let rank = if w > 0 { rank64(values[r], least) } else { 0 };
                    best[g] = best[g].max(rank);
                });
            }
            (Self::Greatest128(best), StateKind::Extremum128 { least, .. }) => {
                let (values, least) = (&wide()[..rows], *least);
                each_row(groups, weights, |r, g, w| {
                    let rank = if w > 0 { rank128(values[r], least) } else { 0 };
                    best[g] = best[g].max(rank);
                });
            }
            _ => {}
        }
    }

    /// Lets rows compete by their keys; an empty key takes no part.
    pub(crate) fn add_best(&mut self, groups: &[u32], weights: WeightSlice<'_>, keys: &Keys, last: bool) {
        let Self::Row(best) = self else { return };
        each_row(groups, weights, |row, group, weight| {
            let key = keys.key(row);
            if weight <= 0 || key.is_empty() {
                return;
            }
            let wins = best[group].checked_sub(1).is_none_or(|old| {
                let old = keys.key(old as usize);
                if last { key > old } else { key < old }
            });
            if wins {
                best[group] = row as u32 + 1;
            }
        });
    }

    /// Whether nothing came to group `local`.
    pub(crate) fn is_identity(&self, local: usize) -> bool {
        match self {
            Self::Count(v) => v[local] == 0,
            Self::Integer(v) => v[local] == 0,
            Self::Decimal(v) => v[local] == I192::default(),
            Self::Float(v) => v[local] == FloatSum::default(),
            Self::Moments(v) => v[local] == Moments::default(),
            Self::Greatest64(v) => v[local] == 0,
            Self::Greatest128(v) => v[local] == 0,
            Self::Row(v) => v[local] == 0,
            Self::Nothing => true,
        }
    }

    /// Puts group `local` of the batch into a slot. Best rows have a step of their own.
    #[inline]
    pub(crate) fn merge_into(&self, local: usize, slot: &mut [u8], at: usize) {
        match self {
            Self::Count(v) => {
                let sum = i64::from_le_bytes(array(slot, at)).wrapping_add(v[local]);
                slot[at..at + 8].copy_from_slice(&sum.to_le_bytes());
            }
            Self::Integer(v) => {
                let sum = i128::from_le_bytes(array(slot, at)).wrapping_add(v[local]);
                slot[at..at + 16].copy_from_slice(&sum.to_le_bytes());
            }
            Self::Decimal(v) => I192::read(&slot[at..]).add(v[local]).write(&mut slot[at..at + I192::BYTES]),
            Self::Float(v) => {
                let mut sum = FloatSum::read(&slot[at..]);
                sum.merge(&v[local]);
                sum.write(&mut slot[at..at + FloatSum::BYTES]);
            }
            Self::Moments(v) => {
                let mut sum = Moments::read(&slot[at..]);
                sum.merge(&v[local]);
                sum.write(&mut slot[at..at + Moments::BYTES]);
            }
            Self::Greatest64(v) => {
                let best = u64::from_le_bytes(array(slot, at)).max(v[local]);
                slot[at..at + 8].copy_from_slice(&best.to_le_bytes());
            }
            Self::Greatest128(v) => {
                let best = u128::from_le_bytes(array(slot, at)).max(v[local]);
                slot[at..at + 16].copy_from_slice(&best.to_le_bytes());
            }
            Self::Row(_) | Self::Nothing => {}
        }
    }

    /// The groups of the batch as columns of [`StateKind::partial_types`]. `best`: the canonical bytes of a row.
    pub(crate) fn to_partial<'k>(&self, kind: &StateKind, count: usize, best: impl Fn(u32) -> &'k [u8], out: &mut Vec<ArrayRef>) {
        fn longs(values: impl Iterator<Item = i64>) -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(values))
        }
        fn doubles(values: impl Iterator<Item = f64>) -> ArrayRef {
            Arc::new(Float64Array::from_iter_values(values))
        }
        fn wides(values: impl Iterator<Item = i128>) -> ArrayRef {
            // 38 digits is the type's name only: all 128 bits are carried.
            Arc::new(Decimal128Array::from_iter_values(values).with_data_type(DataType::Decimal128(38, 0)))
        }
        if !kind.travels() {
            return;
        }
        match self {
            Self::Count(v) => out.push(longs(v[..count].iter().copied())),
            Self::Integer(v) => out.push(wides(v[..count].iter().copied())),
            Self::Decimal(v) => {
                out.push(wides(v[..count].iter().map(|s| s.low as i128)));
                out.push(longs(v[..count].iter().map(|s| s.high)));
            }
            Self::Float(v) => {
                out.push(doubles(v[..count].iter().map(|s| s.sum.high)));
                out.push(doubles(v[..count].iter().map(|s| s.sum.low)));
                out.push(longs(v[..count].iter().map(|s| s.finite)));
                out.push(longs(v[..count].iter().map(|s| s.nan)));
                out.push(longs(v[..count].iter().map(|s| s.positive)));
                out.push(longs(v[..count].iter().map(|s| s.negative)));
            }
            Self::Moments(v) => {
                out.push(doubles(v[..count].iter().map(|s| s.sum.high)));
                out.push(doubles(v[..count].iter().map(|s| s.sum.low)));
                out.push(doubles(v[..count].iter().map(|s| s.squares.high)));
                out.push(doubles(v[..count].iter().map(|s| s.squares.low)));
                out.push(longs(v[..count].iter().map(|s| s.finite)));
                out.push(longs(v[..count].iter().map(|s| s.infinite)));
            }
            Self::Greatest64(v) => out.push(Arc::new(UInt64Array::from_iter_values(v[..count].iter().copied()))),
            Self::Greatest128(v) => out.push(wides(v[..count].iter().map(|r| *r as i128))),
            Self::Row(v) => {
                let rows = v[..count].iter().map(|r| r.checked_sub(1).map(&best));
                out.push(Arc::new(BinaryArray::from_iter(rows)));
            }
            Self::Nothing => {}
        }
    }

    /// Adds rows of partial columns, the first of which are its own; gives back the rest. Best rows have a step of their own.
    pub(crate) fn add_partial<'c>(&mut self, kind: &StateKind, groups: &[u32], columns: &'c [ArrayRef]) -> &'c [ArrayRef] {
        let long = |i: usize| columns[i].as_primitive::<Int64Type>().values();
        let double = |i: usize| columns[i].as_primitive::<Float64Type>().values();
        let wide = |i: usize| columns[i].as_primitive::<Decimal128Type>().values();
        if !kind.travels() {
            return columns;
        }
        let used = match self {
            Self::Count(sums) => {
                let values = long(0);
                each_row(groups, WeightSlice::Ones, |r, g, _| sums[g] = sums[g].wrapping_add(values[r]));
                1
            }
            Self::Integer(sums) => {
                let values = wide(0);
                each_row(groups, WeightSlice::Ones, |r, g, _| sums[g] = sums[g].wrapping_add(values[r]));
                1
            }
            Self::Decimal(sums) => {
                let (low, high) = (wide(0), long(1));
                each_row(groups, WeightSlice::Ones, |r, g, _| {
                    sums[g] = sums[g].add(I192 { low: low[r] as u128, high: high[r] });
                });
                2
            }
            Self::Float(sums) => {
                let (h, l, f, n, p, m) = (double(0), double(1), long(2), long(3), long(4), long(5));
                each_row(groups, WeightSlice::Ones, |r, g, _| {
                    let sum = super::numeric::Twofold { high: h[r], low: l[r] };
                    sums[g].merge(&FloatSum { sum, finite: f[r], nan: n[r], positive: p[r], negative: m[r] });
                });
                6
            }
            Self::Moments(sums) => {
                let (h, l, qh, ql, f, i) = (double(0), double(1), double(2), double(3), long(4), long(5));
                each_row(groups, WeightSlice::Ones, |r, g, _| {
                    let sum = super::numeric::Twofold { high: h[r], low: l[r] };
                    let squares = super::numeric::Twofold { high: qh[r], low: ql[r] };
                    sums[g].merge(&Moments { sum, squares, finite: f[r], infinite: i[r] });
                });
                6
            }
            Self::Greatest64(best) => {
                let values = columns[0].as_primitive::<UInt64Type>().values();
                each_row(groups, WeightSlice::Ones, |r, g, _| best[g] = best[g].max(values[r]));
                1
            }
            Self::Greatest128(best) => {
                let values = wide(0);
                each_row(groups, WeightSlice::Ones, |r, g, _| best[g] = best[g].max(values[r] as u128));
                1
            }
            Self::Row(_) => 1,
            Self::Nothing => 0,
        };
        &columns[used..]
    }
}
