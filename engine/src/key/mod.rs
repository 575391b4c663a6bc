//! The canonical key of a row: one function for hash, equality and order, everywhere and for ever.
//!
//! Keys place rows on cores and name records of state, so their bytes and hashes must not depend on a library's version: the hash is
//! xxh3-64 with seed 0 over the bytes written here. One NaN, −0 = +0; NULL equals NULL; bytes ascend as the values do, NULL first.
//!
//! A key is its columns, one behind the other; each tells where it ends, so no key of the same columns is the beginning of another one:
//!
//! | column | bytes |
//! |---|---|
//! | any | `00` for NULL, `01` and the value else; where NULL sorts last, `02` for NULL |
//! | integers, dates, times, BOOLEAN | 1, 2, 4 or 8 bytes, big endian, sign bit turned; zeros for NULL |
//! | REAL, DOUBLE | 8 bytes: the bits of the double, all turned if negative, else the sign bit; zeros for NULL |
//! | DECIMAL | 16 bytes as an integer; zeros for NULL |
//! | INTERVAL (months, days, ns) | the three one behind the other, as integers; so `1 month` is more than `31 days`, as in Arrow |
//! | strings, binaries | the bytes, `00` as `01 01`, `01` as `01 02`, then `00` |
//! | ROW | its fields |
//! | ARRAY, MAP | `01` and the element for each, then `00` |
//!
//! A dictionary is written as its values, and the three string layouts of Arrow alike. A descending column has all bits of its value turned.

mod decode;
mod encode;
pub(crate) mod ordinal;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, SchemaRef};
use tiderace_storage::KeyBatch;

use crate::error::{Code, Diagnostic, Result};
use crate::ids::{CoreId, VnodeId};

/// The vnode of a hash, out of `count`: equal ranges of the hash space, by its top bits.
#[must_use]
pub fn vnode(hash: u64, count: u32) -> VnodeId {
    VnodeId(((u128::from(hash) * u128::from(count)) >> 64) as u16)
}

/// The core that owns a vnode while `cores` cores share `count` vnodes evenly.
#[must_use]
pub fn owner(vnode: VnodeId, count: u32, cores: usize) -> CoreId {
    CoreId((u64::from(vnode.0) * cores as u64 / u64::from(count)) as u16)
}

/// The hash of a key's bytes: xxh3-64, seed 0.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(bytes)
}

/// Keys of one batch; see [`KeyBatch`].
#[derive(Debug, Default)]
pub struct Keys {
    /// All keys, one behind the other.
    pub bytes: Vec<u8>,
    /// Where each begins, and where the last ends.
    pub offsets: Vec<u32>,
    /// xxh3-64 of each.
    pub hashes: Vec<u64>,
}

impl Keys {
    /// As the state tables take them.
    #[must_use]
    pub fn as_batch(&self) -> KeyBatch<'_> {
        KeyBatch { bytes: &self.bytes, offsets: &self.offsets, hashes: &self.hashes }
    }

    /// Key `i`. Panics when there are not so many.
    #[must_use]
    pub fn key(&self, i: usize) -> &[u8] {
        &self.bytes[self.offsets[i] as usize..self.offsets[i + 1] as usize]
    }

    /// Adds a key with its hash.
    pub fn push(&mut self, key: &[u8], hash: u64) {
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        self.bytes.extend_from_slice(key);
        self.offsets.push(self.bytes.len() as u32);
        self.hashes.push(hash);
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.offsets.clear();
        self.hashes.clear();
    }

    fn hash_all(&mut self) {
        self.hashes.clear();
        self.hashes.extend(self.offsets.windows(2).map(|o| hash(&self.bytes[o[0] as usize..o[1] as usize])));
    }
}

/// Encodes chosen columns of batches of one schema, and decodes them again.
#[derive(Clone, Debug)]
pub struct KeyCodec {
    columns: Vec<usize>,
    codec: RowCodec,
}

impl KeyCodec {
    /// A codec for `columns` of `schema`; refuses types that can't be keys.
    pub fn new(schema: &SchemaRef, columns: &[usize]) -> Result<Self> {
        let ascending = SortOptions { descending: false, nulls_first: true };
        let fields = columns.iter().map(|c| (schema.field(*c).data_type().clone(), ascending)).collect();
        Ok(Self { columns: columns.to_vec(), codec: RowCodec::new(fields)? })
    }

    /// Encodes each row's key; `keys` is emptied first.
    pub fn encode(&mut self, batch: &RecordBatch, keys: &mut Keys) -> Result<()> {
        let columns: Vec<ArrayRef> = self.columns.iter().map(|c| batch.column(*c).clone()).collect();
        self.codec.encode(&columns, batch.num_rows(), None, keys)
    }

    /// As [`encode`](Self::encode), but when all rows have one key, as by a day of a stream, only that of the first; whether it was so.
    pub fn encode_once_if_equal(&mut self, batch: &RecordBatch, keys: &mut Keys) -> Result<bool> {
        let equal = batch.num_rows() > 1 && self.columns.iter().all(|c| encode::all_equal(batch.column(*c)));
        if equal {
            self.encode(&batch.slice(0, 1), keys)?;
        } else {
            self.encode(batch, keys)?;
        }
        Ok(equal)
    }

    /// The columns that were encoded, from keys. A dictionary comes back as one.
    pub fn decode<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) -> Result<Vec<ArrayRef>> {
        self.codec.decode(keys)
    }
}

/// Rows as bytes that are ordered as the rows are; see the module's table.
#[derive(Clone, Debug)]
pub struct RowCodec {
    fields: Vec<(DataType, SortOptions)>,
}

impl RowCodec {
    /// A codec for columns of these types, each ascending or descending, NULL first or last; refuses types without an order.
    pub fn new(fields: Vec<(DataType, SortOptions)>) -> Result<Self> {
        for (data_type, _) in &fields {
            if !encode::has_codec(data_type) {
                let what = format!("values of type {data_type} can't be grouped, compared or sorted");
                return Err(Diagnostic::new(Code::TypeMismatch, what).hint("cast the column to another type"));
            }
        }
        Ok(Self { fields })
    }

    /// Encodes `rows` rows of `columns`, with their hashes; `keys` is emptied first. With `prefix`, each key begins with that number, big endian.
    pub fn encode(&self, columns: &[ArrayRef], rows: usize, prefix: Option<&[u64]>, keys: &mut Keys) -> Result<()> {
        self.encode_unhashed(columns, rows, prefix, keys)?;
        keys.hash_all();
        Ok(())
    }

    /// The same without hashes.
    pub fn encode_unhashed(&self, columns: &[ArrayRef], rows: usize, prefix: Option<&[u64]>, keys: &mut Keys) -> Result<()> {
        keys.clear();
        encode::rows(&self.fields, columns, rows, prefix, &mut keys.bytes, &mut keys.offsets)
    }

    /// The columns of rows that were encoded without a prefix.
    pub fn decode<'k>(&self, rows: impl Iterator<Item = &'k [u8]>) -> Result<Vec<ArrayRef>> {
        let mut rest: Vec<&[u8]> = rows.collect();
        self.fields.iter().map(|(data_type, options)| decode::column(data_type, *options, &mut rest)).collect()
    }
}

#[cfg(test)]
mod tests;
