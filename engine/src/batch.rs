//! Rows with multiplicities: a slice of a Z-set (Budiu et al., "DBSP", VLDB 2023).

use arrow::array::{Array, RecordBatch};
use arrow::buffer::ScalarBuffer;

/// The multiplicity of each row of a batch: +1 inserts a row, −1 takes one back. Order inside an epoch has no meaning.
#[derive(Clone, Debug, PartialEq)]
pub enum Weights {
    /// That many rows, each +1: the fast path of append-only streams.
    Ones(usize),
    /// One weight a row, none of them 0.
    Signed(ScalarBuffer<i64>),
}

impl Weights {
    /// How many rows.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Ones(n) => *n,
            Self::Signed(w) => w.len(),
        }
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The weight of row `i`. Panics when `i >= len()`.
    #[must_use]
    pub fn get(&self, i: usize) -> i64 {
        match self {
            Self::Ones(n) => {
                assert!(i < *n, "row {i} of {n}");
                1
            }
            Self::Signed(w) => w[i],
        }
    }

    /// Weights of `values`; `Ones` when all are 1.
    #[must_use]
    pub fn from_vec(values: Vec<i64>) -> Self {
        if values.iter().all(|w| *w == 1) { Self::Ones(values.len()) } else { Self::Signed(values.into()) }
    }

    /// The weights of the rows at `indices`, in that order.
    #[must_use]
    pub fn take(&self, indices: &[u32]) -> Self {
        match self {
            Self::Ones(_) => Self::Ones(indices.len()),
            Self::Signed(w) => Self::Signed(indices.iter().map(|i| w[*i as usize]).collect()),
        }
    }

    /// Each weight with its sign turned.
    #[must_use]
    pub fn negated(&self) -> Self {
        match self {
            Self::Ones(n) => Self::Signed(vec![-1; *n].into()),
            Self::Signed(w) => Self::from_vec(w.iter().map(|w| -w).collect()),
        }
    }

    /// The weights of `len` rows from `offset`, without a copy.
    #[must_use]
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        match self {
            Self::Ones(n) => {
                assert!(offset + len <= *n, "rows {offset}+{len} of {n}");
                Self::Ones(len)
            }
            Self::Signed(w) => Self::Signed(w.slice(offset, len)),
        }
    }
}

/// A batch of a Z-set. `weights.len() == rows.num_rows()`; no operator lets a zero weight out.
#[derive(Clone, Debug)]
pub struct DeltaBatch {
    /// The rows, columnar.
    pub rows: RecordBatch,
    /// How often each row is added (or, negative, taken away).
    pub weights: Weights,
}

impl DeltaBatch {
    /// Rows that are all inserted once.
    #[must_use]
    pub fn append(rows: RecordBatch) -> Self {
        let weights = Weights::Ones(rows.num_rows());
        Self { rows, weights }
    }

    /// Rows with weights; panics when their counts differ.
    #[must_use]
    pub fn new(rows: RecordBatch, weights: Weights) -> Self {
        assert_eq!(rows.num_rows(), weights.len(), "a weight for each row");
        Self { rows, weights }
    }

    /// How many rows.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.rows.num_rows()
    }

    /// What the batch is charged for in queues: the bytes of the buffers it holds on to, not less than [`Self::BYTES_MIN`].
    #[must_use]
    pub fn charged_bytes(&self) -> usize {
        rows_bytes(&self.rows).max(Self::BYTES_MIN)
    }

    /// The least that a frame is charged in a queue, so that many small ones are bounded too.
    pub const BYTES_MIN: usize = 1024;
}

/// The bytes of the buffers that `rows` reads; a buffer that several slices share is counted for each slice by its part of it.
#[must_use]
pub fn rows_bytes(rows: &RecordBatch) -> usize {
    rows.columns()
        .iter()
        .map(|column| column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size()))
        .sum()
}
