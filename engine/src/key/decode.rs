//! Bytes back to columns.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BinaryViewArray, BooleanBufferBuilder, FixedSizeBinaryArray, FixedSizeListArray,
    LargeBinaryArray, LargeListArray, LargeStringArray, ListArray, MapArray, NullArray, StringArray, StringViewArray,
    StructArray, UInt32Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::{SortOptions, cast, take};
use arrow::datatypes::{DataType, FieldRef};

use super::encode::{ASCENDING, END, ESCAPE, VALUE, fixed_width, offsets_of};
use super::ordinal::{from_ordinals64, from_ordinals128};
use crate::error::{Code, Diagnostic, Result};

fn damaged() -> Diagnostic {
    Diagnostic::new(Code::StateCorrupt, "a key in state can't be decoded")
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of map_err")]
fn arrow(error: arrow::error::ArrowError) -> Diagnostic {
    Diagnostic::new(Code::StateCorrupt, format!("a key in state can't be decoded: {error}"))
}

/// Takes `count` bytes off the front.
fn cut<'k>(rest: &mut &'k [u8], count: usize) -> Result<&'k [u8]> {
    let (front, back) = rest.split_at_checked(count).ok_or_else(damaged)?;
    *rest = back;
    Ok(front)
}

/// Takes the mark of a column off; whether a value follows.
fn cut_mark(rest: &mut &[u8]) -> Result<bool> {
    Ok(cut(rest, 1)?[0] == VALUE)
}

/// Decodes one column off the front of each row.
pub(super) fn column(data_type: &DataType, options: SortOptions, rows: &mut [&[u8]]) -> Result<ArrayRef> {
    if let DataType::Dictionary(_, values) = data_type {
        let values = column(values, options, rows)?;
        return cast(&values, data_type).map_err(arrow);
    }
    let turn = if options.descending { u8::MAX } else { 0 };
    let mut valid = BooleanBufferBuilder::new(rows.len());
    let nulls = |mut valid: BooleanBufferBuilder| Some(NullBuffer::new(valid.finish())).filter(|n| n.null_count() > 0);
    match fixed_width(data_type) {
        Some((0, _)) => {
            for rest in rows.iter_mut() {
                cut_mark(rest)?;
            }
            return Ok(Arc::new(NullArray::new(rows.len())));
        }
        Some((16, _)) => {
            let mut ordinals = Vec::with_capacity(rows.len());
            for rest in rows.iter_mut() {
                valid.append(cut_mark(rest)?);
                let bytes: [u8; 16] = cut(rest, 16)?.try_into().map_err(|_| damaged())?;
                let value = u128::from_be_bytes(bytes) ^ if turn == 0 { 0 } else { u128::MAX };
                ordinals.push((value ^ (1 << 127)) as i128);
            }
            return from_ordinals128(&ordinals, nulls(valid), data_type);
        }
        Some((width, signed)) => {
            let mut ordinals = Vec::with_capacity(rows.len());
            for rest in rows.iter_mut() {
                valid.append(cut_mark(rest)?);
                let mut bytes = [0; 8];
                bytes[..width].copy_from_slice(cut(rest, width)?);
                let turned = u64::from_be_bytes(bytes) ^ if turn == 0 { 0 } else { u64::MAX };
                let shift = 64 - 8 * width as u32;
                ordinals.push(if signed { (turned ^ (1 << 63)) as i64 >> shift } else { (turned >> shift) as i64 });
            }
            return from_ordinals64(&ordinals, nulls(valid), data_type);
        }
        None => {}
    }
    match data_type {
        DataType::Struct(_) | DataType::List(_) | DataType::LargeList(_) | DataType::Map(..) | DataType::FixedSizeList(..) => {
            nested(data_type, turn, rows)
        }
        _ => strings(data_type, turn, rows),
    }
}

/// Where a string's end mark is.
fn string_end(rest: &[u8], turn: u8) -> Result<usize> {
    memchr::memchr(END ^ turn, rest).ok_or_else(damaged)
}

fn strings(data_type: &DataType, turn: u8, rows: &mut [&[u8]]) -> Result<ArrayRef> {
    let mut values: Vec<Option<Cow<'_, [u8]>>> = Vec::with_capacity(rows.len());
    for rest in rows.iter_mut() {
        if !cut_mark(rest)? {
            values.push(None);
            continue;
        }
        let end = string_end(rest, turn)?;
        let raw = cut(rest, end)?;
        cut(rest, 1)?;
        let mut value = Cow::Borrowed(raw);
        if turn != 0 {
            value.to_mut().iter_mut().for_each(|b| *b ^= turn);
        }
        if memchr::memchr(ESCAPE, &value).is_some() {
            let mut plain = Vec::with_capacity(value.len());
            let mut bytes = value.iter();
            while let Some(byte) = bytes.next() {
                plain.push(if *byte == ESCAPE { bytes.next().ok_or_else(damaged)?.wrapping_sub(1) } else { *byte });
            }
            value = Cow::Owned(plain);
        }
        values.push(Some(value));
    }
    let text = || values.iter().map(|v| v.as_deref().map(std::str::from_utf8).transpose()).collect::<Result<Vec<_>, _>>();
    let bytes = || values.iter().map(Option::as_deref);
    Ok(match data_type {
        DataType::Utf8 => Arc::new(StringArray::from(text().map_err(|_| damaged())?)),
        DataType::LargeUtf8 => Arc::new(LargeStringArray::from(text().map_err(|_| damaged())?)),
        DataType::Utf8View => Arc::new(StringViewArray::from(text().map_err(|_| damaged())?)),
        DataType::Binary => Arc::new(BinaryArray::from_iter(bytes())),
        DataType::LargeBinary => Arc::new(LargeBinaryArray::from_iter(bytes())),
        DataType::BinaryView => Arc::new(BinaryViewArray::from_iter(bytes())),
        DataType::FixedSizeBinary(size) => {
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(bytes(), *size).map_err(arrow)?)
        }
        _ => return Err(damaged()),
    })
}

/// How many bytes the next column takes, all ascending.
fn length(data_type: &DataType, row: &[u8]) -> Result<usize> {
    if let DataType::Dictionary(_, values) = data_type {
        return length(values, row);
    }
    if let Some((width, _)) = fixed_width(data_type) {
        return Ok(1 + width);
    }
    if *row.first().ok_or_else(damaged)? != VALUE {
        return Ok(1);
    }
    let mut at = 1;
    match data_type {
        DataType::Struct(fields) => {
            for field in fields {
                at += length(field.data_type(), row.get(at..).ok_or_else(damaged)?)?;
            }
        }
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) | DataType::Map(item, _) => {
            while *row.get(at).ok_or_else(damaged)? == VALUE {
                at += 1 + length(item.data_type(), row.get(at + 1..).ok_or_else(damaged)?)?;
            }
            at += 1;
        }
        _ => at += string_end(&row[1..], 0)? + 1,
    }
    Ok(at)
}

fn nested(data_type: &DataType, turn: u8, rows: &mut [&[u8]]) -> Result<ArrayRef> {
    if turn != 0 {
        // Descending arrays are rare: turn all that is left, and decode as ascending.
        let turned: Vec<Vec<u8>> =
            rows.iter().map(|row| row.iter().enumerate().map(|(i, b)| if i == 0 { *b } else { b ^ turn }).collect()).collect();
        let mut rest: Vec<&[u8]> = turned.iter().map(Vec::as_slice).collect();
        let array = nested(data_type, 0, &mut rest)?;
        for ((row, before), after) in rows.iter_mut().zip(&turned).zip(&rest) {
            cut(row, before.len() - after.len())?;
        }
        return Ok(array);
    }
    // The insides of the rows that are not NULL.
    let mut inner: Vec<&[u8]> = Vec::with_capacity(rows.len());
    let mut valid = Vec::with_capacity(rows.len());
    for rest in rows.iter_mut() {
        let value = cut(rest, length(data_type, rest)?)?;
        valid.push(value[0] == VALUE);
        if value[0] == VALUE {
            inner.push(&value[1..]);
        }
    }
    let nulls = Some(NullBuffer::from(valid.clone())).filter(|n| n.null_count() > 0);
    if let DataType::Struct(fields) = data_type {
        let mut next = 0_u32;
        let expand: UInt32Array = valid
            .iter()
            .map(|v| {
                next += u32::from(*v);
                v.then(|| next - 1)
            })
            .collect();
        let mut columns = Vec::with_capacity(fields.len());
        for field in fields {
            let dense = column(field.data_type(), ASCENDING, &mut inner)?;
            columns.push(take(&dense, &expand, None).map_err(arrow)?);
        }
        if fields.is_empty() {
            return Ok(Arc::new(StructArray::new_empty_fields(rows.len(), nulls)));
        }
        return Ok(Arc::new(StructArray::try_new(fields.clone(), columns, nulls).map_err(arrow)?));
    }
    let item: &FieldRef = match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) | DataType::Map(item, _) => item,
        _ => return Err(damaged()),
    };
    let mut elements: Vec<&[u8]> = Vec::new();
    let mut lengths = Vec::with_capacity(rows.len());
    let mut lists = inner.into_iter();
    for is_valid in valid {
        let before = elements.len();
        if is_valid {
            let mut list = lists.next().ok_or_else(damaged)?;
            while cut(&mut list, 1)?[0] == VALUE {
                let size = length(item.data_type(), list)?;
                elements.push(cut(&mut list, size)?);
            }
        } else if let DataType::FixedSizeList(_, size) = data_type {
            // A NULL of fixed size still has its elements.
            elements.extend(std::iter::repeat_n(&[0_u8; 0][..], *size as usize));
        }
        lengths.push(elements.len() - before);
    }
    if let DataType::FixedSizeList(_, size) = data_type {
        let mut next = 0_u32;
        let expand: UInt32Array = elements
            .iter()
            .map(|e| {
                next += u32::from(!e.is_empty());
                (!e.is_empty()).then(|| next - 1)
            })
            .collect();
        elements.retain(|e| !e.is_empty());
        let dense = column(item.data_type(), ASCENDING, &mut elements)?;
        let values = take(&dense, &expand, None).map_err(arrow)?;
        return Ok(Arc::new(FixedSizeListArray::try_new(item.clone(), *size, values, nulls).map_err(arrow)?));
    }
    let values = column(item.data_type(), ASCENDING, &mut elements)?;
    Ok(match data_type {
        DataType::List(_) => Arc::new(ListArray::try_new(item.clone(), offsets_of(&lengths), values, nulls).map_err(arrow)?),
        DataType::LargeList(_) => {
            let offsets = OffsetBuffer::<i64>::from_lengths(lengths.iter().copied());
            Arc::new(LargeListArray::try_new(item.clone(), offsets, values, nulls).map_err(arrow)?)
        }
        DataType::Map(_, sorted) => {
            let entries = values.as_any().downcast_ref::<StructArray>().ok_or_else(damaged)?.clone();
            Arc::new(MapArray::try_new(item.clone(), offsets_of(&lengths), entries, nulls, *sorted).map_err(arrow)?)
        }
        _ => return Err(damaged()),
    })
}
