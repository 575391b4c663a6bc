//! Rows to bytes, a column at a time.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StructArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::{SortOptions, cast};
use arrow::datatypes::{DataType, IntervalUnit};

use super::ordinal::{Numbers, View, numbers, ordinal_of};
use crate::error::{Code, Diagnostic, Result};

pub(super) const ASCENDING: SortOptions = SortOptions { descending: false, nulls_first: true };
pub(super) const VALUE: u8 = 1;
pub(super) const END: u8 = 0;
pub(super) const ESCAPE: u8 = 1;

pub(super) fn null_mark(options: SortOptions) -> u8 {
    if options.nulls_first { 0 } else { 2 }
}

/// Whether all values of a column are known to be equal, at a glance: it looks no further than the first other value, and may say no for types
/// that are rare as keys. NULLs: no.
pub(super) fn all_equal(array: &ArrayRef) -> bool {
    if array.logical_null_count() > 0 {
        return false;
    }
    if let Some(texts) = array.as_string_view_opt() {
        // Equal views of one array are equal texts, wherever the bytes are; a short text is in its view.
        let views = texts.views();
        return views.iter().all(|view| *view == views[0]);
    }
    match array.data_type() {
        DataType::Int64 | DataType::Timestamp(..) | DataType::Int32 | DataType::Date32 => {
            numbers(array, View::Ordinal64).is_ok_and(|values| values.as_i64().iter().all(|value| *value == values.as_i64()[0]))
        }
        _ => false,
    }
}

/// How a type of one number is written: bytes, and whether the sign bit is turned.
pub(super) fn fixed_width(data_type: &DataType) -> Option<(usize, bool)> {
    Some(match data_type {
        DataType::Null => (0, false),
        DataType::Boolean | DataType::UInt8 => (1, false),
        DataType::UInt16 => (2, false),
        DataType::UInt32 => (4, false),
        DataType::Int8 => (1, true),
        DataType::Int16 => (2, true),
        DataType::Int32 | DataType::Date32 | DataType::Time32(_) | DataType::Interval(IntervalUnit::YearMonth) => (4, true),
        other => match ordinal_of(other)? {
            View::Ordinal128 => (16, true),
            _ => (8, true),
        },
    })
}

pub(super) fn has_codec(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => true,
        DataType::Dictionary(_, values) => has_codec(values),
        DataType::Struct(fields) => fields.iter().all(|f| has_codec(f.data_type())),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) | DataType::Map(item, _) => {
            has_codec(item.data_type())
        }
        other => fixed_width(other).is_some(),
    }
}

/// A column on its way to bytes.
enum Part {
    Narrow {
        values: Numbers,
        width: usize,
        signed: bool,
    },
    Wide(Numbers),
    Nothing,
    Strings {
        array: ArrayRef,
        escapes: bool,
    },
    /// Already written, without the mark.
    Nested {
        bytes: Vec<u8>,
        offsets: Vec<u32>,
    },
}

struct Column {
    part: Part,
    nulls: Option<NullBuffer>,
    options: SortOptions,
}

fn internal(what: impl std::fmt::Display) -> Diagnostic {
    Diagnostic::new(Code::Internal, format!("a key can't be encoded: {what}"))
}

/// Calls `each(row, bytes)` for all rows of a string or binary column; NULL has no meaning here.
fn for_each_string(array: &ArrayRef, mut each: impl FnMut(usize, &[u8])) -> Result<()> {
    macro_rules! go {
        ($array:expr, $bytes:expr) => {{
            let array = $array;
            for row in 0..array.len() {
                each(row, $bytes(array.value(row)));
            }
        }};
    }
    match array.data_type() {
        DataType::Utf8 => go!(array.as_string::<i32>(), str::as_bytes),
        DataType::LargeUtf8 => go!(array.as_string::<i64>(), str::as_bytes),
        DataType::Utf8View => go!(array.as_string_view(), str::as_bytes),
        DataType::Binary => go!(array.as_binary::<i32>(), std::convert::identity),
        DataType::LargeBinary => go!(array.as_binary::<i64>(), std::convert::identity),
        DataType::BinaryView => go!(array.as_binary_view(), std::convert::identity),
        DataType::FixedSizeBinary(_) => go!(array.as_fixed_size_binary(), std::convert::identity),
        other => return Err(internal(format!("{other} is no string"))),
    }
    Ok(())
}

/// Whether any value of a string or binary column has a byte that must be escaped. NULL's slots may say yes for nothing.
fn any_special(array: &ArrayRef) -> Result<bool> {
    if let Some(views) = array.as_string_view_opt() {
        const ONES: u128 = u128::MAX / 0xff;
        // Bytes of a short text stand in its view, behind the length; what is not text there is made harmless.
        let short = |view: u128| {
            let len = (view & 0xffff_ffff) as u32;
            let text = view >> 32 | u128::MAX.checked_shl(8 * len).unwrap_or(0);
            text.wrapping_sub(ONES * 2) & !text & (ONES * 0x80) != 0
        };
        let is_special = |(row, view): (usize, &u128)| {
            if *view & 0xffff_ffff <= 12 { short(*view) } else { memchr::memchr2(0, 1, views.value(row).as_bytes()).is_some() }
        };
        return Ok(views.views().iter().enumerate().any(is_special));
    }
    let mut found = false;
    for_each_string(array, |_, bytes| found |= memchr::memchr2(0, 1, bytes).is_some())?;
    Ok(found)
}

fn special(bytes: &[u8]) -> usize {
    memchr::memchr2_iter(0, 1, bytes).count()
}

fn prepare(data_type: &DataType, options: SortOptions, array: &ArrayRef) -> Result<Column> {
    if array.data_type() != data_type {
        return Err(internal(format!("a column is {}, not {data_type}", array.data_type())));
    }
    let nulls = array.logical_nulls().filter(|n| n.null_count() > 0);
    let part = match data_type {
        DataType::Dictionary(_, values) => {
            let array = cast(array, values).map_err(internal)?;
            return prepare(values, options, &array);
        }
        DataType::Null => Part::Nothing,
        DataType::Struct(_) => {
            let fields = array.as_struct();
            let kinds: Vec<_> = fields.columns().iter().map(|c| (c.data_type().clone(), ASCENDING)).collect();
            let (mut bytes, mut offsets) = (Vec::new(), Vec::new());
            rows(&kinds, fields.columns(), array.len(), None, &mut bytes, &mut offsets)?;
            Part::Nested { bytes, offsets }
        }
        DataType::List(_) => {
            list_part(array.as_list::<i32>().values(), array.as_list::<i32>().offsets().iter().map(|o| *o as usize))?
        }
        DataType::LargeList(_) => {
            list_part(array.as_list::<i64>().values(), array.as_list::<i64>().offsets().iter().map(|o| *o as usize))?
        }
        DataType::Map(..) => {
            let entries: ArrayRef = Arc::new(StructArray::clone(array.as_map().entries()));
            list_part(&entries, array.as_map().offsets().iter().map(|o| *o as usize))?
        }
        DataType::FixedSizeList(_, size) => {
            let size = *size as usize;
            let list = array.as_fixed_size_list();
            list_part(list.values(), (0..=array.len()).map(|i| i * size))?
        }
        _ => match fixed_width(data_type) {
            Some((16, _)) => Part::Wide(numbers(array, View::Ordinal128)?),
            Some((width, signed)) => Part::Narrow { values: numbers(array, View::Ordinal64)?, width, signed },
            None => Part::Strings { array: array.clone(), escapes: any_special(array)? },
        },
    };
    Ok(Column { part, nulls, options })
}

fn list_part(values: &ArrayRef, ends: impl Iterator<Item = usize>) -> Result<Part> {
    let (mut items, mut item_offsets) = (Vec::new(), Vec::new());
    rows(
        &[(values.data_type().clone(), ASCENDING)],
        std::slice::from_ref(values),
        values.len(),
        None,
        &mut items,
        &mut item_offsets,
    )?;
    let (mut bytes, mut offsets) = (Vec::with_capacity(items.len() * 2), vec![0_u32]);
    let mut start = None;
    for end in ends {
        if let Some(start) = start {
            for item in start..end {
                bytes.push(VALUE);
                bytes.extend_from_slice(&items[item_offsets[item] as usize..item_offsets[item + 1] as usize]);
            }
            bytes.push(END);
            offsets.push(u32::try_from(bytes.len()).map_err(|_| too_long())?);
        }
        start = Some(end);
    }
    Ok(Part::Nested { bytes, offsets })
}

fn too_long() -> Diagnostic {
    Diagnostic::new(Code::MemoryExceeded, "the keys of one batch take more than 4 GiB")
        .hint("use smaller batches or shorter keys")
}

impl Column {
    fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|n| n.is_null(row))
    }

    /// Bytes of each row, when they are the same for all.
    fn width(&self) -> Option<usize> {
        match &self.part {
            Part::Narrow { width, .. } => Some(1 + width),
            Part::Wide(_) => Some(17),
            Part::Nothing => Some(1),
            Part::Strings { .. } | Part::Nested { .. } => None,
        }
    }

    /// Adds the bytes of each row to `lengths`.
    fn add_lengths(&self, lengths: &mut [u64]) -> Result<()> {
        match &self.part {
            Part::Strings { array, escapes } => {
                let escapes = *escapes;
                for_each_string(array, |row, bytes| {
                    lengths[row] += 1;
                    if !self.is_null(row) {
                        lengths[row] += 1 + bytes.len() as u64 + if escapes { special(bytes) as u64 } else { 0 };
                    }
                })?;
            }
            Part::Nested { offsets, .. } => {
                for (row, length) in lengths.iter_mut().enumerate() {
                    *length += 1 + if self.is_null(row) { 0 } else { u64::from(offsets[row + 1] - offsets[row]) };
                }
            }
            _ => {
                let width = self.width().unwrap_or(0) as u64;
                lengths.iter_mut().for_each(|l| *l += width);
            }
        }
        Ok(())
    }

    /// Writes a column of numbers into rows of `stride` bytes, at `at`.
    fn write_fixed(&self, out: &mut [u8], stride: usize, at: usize) {
        let turn = if self.options.descending { u8::MAX } else { 0 };
        match &self.part {
            Part::Narrow { values, width: 8, signed: true } => {
                let sign = (1_u64 << 63) ^ if turn == 0 { 0 } else { u64::MAX };
                for (row, value) in out.chunks_exact_mut(stride).zip(values.as_i64()) {
                    row[at] = VALUE;
                    row[at + 1..at + 9].copy_from_slice(&(*value as u64 ^ sign).to_be_bytes());
                }
            }
            Part::Narrow { values, width, signed } => {
                for (row, value) in out.chunks_exact_mut(stride).zip(values.as_i64()) {
                    row[at] = VALUE;
                    put_narrow(&mut row[at + 1..at + 1 + width], *value, *signed, turn);
                }
            }
            Part::Wide(values) => {
                let sign = (1_u128 << 127) ^ if turn == 0 { 0 } else { u128::MAX };
                for (row, value) in out.chunks_exact_mut(stride).zip(values.as_i128()) {
                    row[at] = VALUE;
                    row[at + 1..at + 17].copy_from_slice(&(*value as u128 ^ sign).to_be_bytes());
                }
            }
            Part::Nothing => out.chunks_exact_mut(stride).for_each(|row| row[at] = null_mark(self.options)),
            Part::Strings { .. } | Part::Nested { .. } => {}
        }
        if let (Some(nulls), Some(width)) = (&self.nulls, self.width()) {
            for (row, valid) in out.chunks_exact_mut(stride).zip(nulls) {
                if !valid {
                    row[at] = null_mark(self.options);
                    row[at + 1..at + width].fill(0);
                }
            }
        }
    }

    /// Writes the column at each row's place, and moves the places behind it.
    fn write(&self, out: &mut [u8], places: &mut [u32]) -> Result<()> {
        let turn = if self.options.descending { u8::MAX } else { 0 };
        match &self.part {
            Part::Strings { array, escapes } => {
                let escapes = *escapes;
                for_each_string(array, |row, bytes| {
                    let at = places[row] as usize;
                    if self.is_null(row) {
                        out[at] = null_mark(self.options);
                        places[row] += 1;
                        return;
                    }
                    out[at] = VALUE;
                    let mut end = at + 1;
                    if escapes {
                        for byte in bytes {
                            if *byte <= ESCAPE {
                                out[end] = ESCAPE;
                                out[end + 1] = byte + 1;
                                end += 2;
                            } else {
                                out[end] = *byte;
                                end += 1;
                            }
                        }
                    } else {
                        out[end..end + bytes.len()].copy_from_slice(bytes);
                        end += bytes.len();
                    }
                    out[end] = END;
                    end += 1;
                    if turn != 0 {
                        out[at + 1..end].iter_mut().for_each(|b| *b ^= turn);
                    }
                    places[row] = end as u32;
                })?;
            }
            Part::Nested { bytes, offsets } => {
                for (row, place) in places.iter_mut().enumerate() {
                    let at = *place as usize;
                    if self.is_null(row) {
                        out[at] = null_mark(self.options);
                        *place += 1;
                        continue;
                    }
                    out[at] = VALUE;
                    let value = &bytes[offsets[row] as usize..offsets[row + 1] as usize];
                    let target = &mut out[at + 1..at + 1 + value.len()];
                    target.copy_from_slice(value);
                    if turn != 0 {
                        target.iter_mut().for_each(|b| *b ^= turn);
                    }
                    *place += 1 + value.len() as u32;
                }
            }
            Part::Narrow { values, width, signed } => {
                for (row, (place, value)) in places.iter_mut().zip(values.as_i64()).enumerate() {
                    let at = *place as usize;
                    let target = &mut out[at..=at + width];
                    if self.is_null(row) {
                        target.fill(0);
                        target[0] = null_mark(self.options);
                    } else {
                        target[0] = VALUE;
                        put_narrow(&mut target[1..], *value, *signed, turn);
                    }
                    *place += 1 + *width as u32;
                }
            }
            Part::Wide(values) => {
                let sign = (1_u128 << 127) ^ if turn == 0 { 0 } else { u128::MAX };
                for (row, (place, value)) in places.iter_mut().zip(values.as_i128()).enumerate() {
                    let target = &mut out[*place as usize..*place as usize + 17];
                    if self.is_null(row) {
                        target.fill(0);
                        target[0] = null_mark(self.options);
                    } else {
                        target[0] = VALUE;
                        target[1..].copy_from_slice(&(*value as u128 ^ sign).to_be_bytes());
                    }
                    *place += 17;
                }
            }
            Part::Nothing => {
                for place in places.iter_mut() {
                    out[*place as usize] = null_mark(self.options);
                    *place += 1;
                }
            }
        }
        Ok(())
    }
}

#[inline]
fn put_narrow(out: &mut [u8], value: i64, signed: bool, turn: u8) {
    let width = out.len();
    let bytes = value.to_be_bytes();
    if width == 8 {
        out.copy_from_slice(&bytes);
    } else {
        out.copy_from_slice(&bytes[8 - width..]);
    }
    if signed {
        out[0] ^= 0x80;
    }
    if turn != 0 {
        out.iter_mut().for_each(|b| *b ^= turn);
    }
}

/// Appends rows to `bytes`; `offsets` gets where each begins and where the last ends.
pub(super) fn rows(
    fields: &[(DataType, SortOptions)],
    arrays: &[ArrayRef],
    count: usize,
    prefix: Option<&[u64]>,
    bytes: &mut Vec<u8>,
    offsets: &mut Vec<u32>,
) -> Result<()> {
    let columns: Vec<Column> = fields.iter().zip(arrays).map(|((t, o), a)| prepare(t, *o, a)).collect::<Result<_>>()?;
    let prefix_width = if prefix.is_some() { 8 } else { 0 };
    let fixed = columns.iter().map(Column::width).sum::<Option<usize>>();
    offsets.reserve(count + 1);
    if let Some(fixed) = fixed {
        let stride = prefix_width + fixed;
        let total = u32::try_from(stride as u64 * count as u64).map_err(|_| too_long())?;
        offsets.extend((0..=count).map(|i| (i * stride) as u32));
        bytes.resize(total as usize, 0);
        if stride == 0 {
            return Ok(());
        }
        for (row, id) in bytes.chunks_exact_mut(stride).zip(prefix.unwrap_or(&[])) {
            row[..8].copy_from_slice(&id.to_be_bytes());
        }
        let mut at = prefix_width;
        for column in &columns {
            column.write_fixed(bytes, stride, at);
            at += column.width().unwrap_or(0);
        }
        return Ok(());
    }
    let mut lengths = vec![prefix_width as u64; count];
    for column in &columns {
        column.add_lengths(&mut lengths)?;
    }
    let mut end = 0_u64;
    offsets.push(0);
    for length in &lengths {
        end += length;
        // Checked below, before the offsets are used.
        offsets.push(end as u32);
    }
    let total = u32::try_from(end).map_err(|_| too_long())?;
    bytes.resize(total as usize, 0);
    let mut places = offsets[..count].to_vec();
    if let Some(prefix) = prefix {
        for (place, id) in places.iter_mut().zip(prefix) {
            bytes[*place as usize..*place as usize + 8].copy_from_slice(&id.to_be_bytes());
            *place += 8;
        }
    }
    for column in &columns {
        column.write(bytes, &mut places)?;
    }
    Ok(())
}

/// The offsets of lists of these lengths.
pub(super) fn offsets_of(lengths: &[usize]) -> OffsetBuffer<i32> {
    OffsetBuffer::from_lengths(lengths.iter().copied())
}
