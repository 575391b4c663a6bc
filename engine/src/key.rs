//! The canonical key of a row: one function for hash, equality and order, everywhere and for ever.
//!
//! Keys place rows on cores and name records of state, so their bytes and hashes must not depend on a library's version: the hash is
//! xxh3-64 with seed 0 over the bytes written here. One NaN, −0 = +0; NULL equals NULL; bytes ascend as the values do, NULL first.

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
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
}

/// Encodes chosen columns of batches of one schema, and decodes them again.
#[derive(Debug)]
pub struct KeyCodec {
    columns: Vec<usize>,
    converter: RowConverter,
}

impl KeyCodec {
    /// A codec for `columns` of `schema`; refuses types that can't be keys.
    pub fn new(schema: &SchemaRef, columns: &[usize]) -> Result<Self> {
        let fields = columns.iter().map(|c| SortField::new(schema.field(*c).data_type().clone())).collect();
        let converter = RowConverter::new(fields).map_err(|e| Diagnostic::new(Code::Internal, e.to_string()))?;
        Ok(Self { columns: columns.to_vec(), converter })
    }

    /// Encodes each row's key; `keys` is emptied first.
    pub fn encode(&mut self, batch: &RecordBatch, keys: &mut Keys) -> Result<()> {
        let columns: Vec<ArrayRef> = self.columns.iter().map(|c| batch.column(*c).clone()).collect();
        let rows = self.converter.convert_columns(&columns).map_err(|e| Diagnostic::new(Code::Internal, e.to_string()))?;
        keys.bytes.clear();
        keys.offsets.clear();
        keys.hashes.clear();
        keys.offsets.push(0);
        for row in &rows {
            keys.bytes.extend_from_slice(row.as_ref());
            keys.offsets.push(keys.bytes.len() as u32);
            keys.hashes.push(twox_hash::XxHash3_64::oneshot(row.as_ref()));
        }
        Ok(())
    }

    /// The columns that were encoded, from keys.
    pub fn decode<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) -> Result<Vec<ArrayRef>> {
        let parser = self.converter.parser();
        self.converter.convert_rows(keys.map(|k| parser.parse(k))).map_err(|e| Diagnostic::new(Code::Internal, e.to_string()))
    }
}
