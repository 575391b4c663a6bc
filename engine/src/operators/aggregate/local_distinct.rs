//! Before different values cross between cores: only rows that may bring a new one go on.

use std::collections::HashMap;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;

use super::aggregates::{Aggregates, TableIds};
use super::group::GroupPlan;
use super::phases::BatchGroups;
use crate::batch::{DeltaBatch, Weights};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::{CoreId, NodeId};
use crate::key::{KeyCodec, Keys};
use crate::operators::{EpochMark, OpCx, Operator, Output, PORT_MAIN, Port, Progress};

/// So many groups are known by number; then all numbers are forgotten, which costs nothing but rows that go on although they need not.
const GROUPS_MAX: usize = 1 << 14;

/// Passes on the rows of growing input whose value was not seen in their group lately, for one column of different values: those that
/// [`DistinctCount`](super::phases::DistinctCount) behind the exchange may count. Keeps no state that an answer depends on.
pub struct LocalDistinct {
    key_columns: Vec<usize>,
    set: usize,
    codec: KeyCodec,
    aggregates: Aggregates,
    keys: Keys,
    groups: BatchGroups,
    numbers: HashMap<Box<[u8]>, u64>,
    next_number: u64,
    row_numbers: Vec<u64>,
}

impl LocalDistinct {
    /// The operator of one core, for the column `plan.distinct_columns()[set]`; `plan.append_only` must hold.
    pub fn new(plan: &GroupPlan, set: usize, node: NodeId, core: CoreId) -> Result<Self> {
        if !plan.append_only {
            return Err(Diagnostic::new(Code::Internal, "rows that take back must all be counted"));
        }
        Ok(Self {
            key_columns: plan.keys.clone(),
            set,
            codec: KeyCodec::new(&plan.input, &plan.keys)?,
            aggregates: Aggregates::new(&plan.calls, &plan.input, true, &mut TableIds::of(node, core))?,
            keys: Keys::default(),
            groups: BatchGroups::default(),
            numbers: HashMap::new(),
            next_number: 1,
            row_numbers: Vec::new(),
        })
    }

    /// Gives each row the number of its group on this core; a number is never used for two groups.
    fn number(&mut self, rows: &RecordBatch) -> Result<()> {
        self.row_numbers.clear();
        if self.key_columns.is_empty() {
            self.row_numbers.resize(rows.num_rows(), 1);
            return Ok(());
        }
        self.groups.find_of(&mut self.codec, rows, &mut self.keys)?;
        if self.numbers.len() + self.groups.firsts.len() > GROUPS_MAX {
            self.numbers.clear();
        }
        let mut of_group = Vec::with_capacity(self.groups.firsts.len());
        for first in &self.groups.firsts {
            let key = self.keys.key(*first as usize);
            let number = match self.numbers.get(key) {
                Some(number) => *number,
                None => {
                    let number = self.next_number;
                    self.next_number += 1;
                    self.numbers.insert(key.into(), number);
                    number
                }
            };
            of_group.push(number);
        }
        self.row_numbers.extend(self.groups.places.iter().map(|place| of_group[*place as usize]));
        Ok(())
    }
}

impl Operator for LocalDistinct {
    fn on_delta(&mut self, _port: Port, batch: DeltaBatch, _cx: &mut OpCx<'_>, out: &mut Output) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.number(&batch.rows)?;
        let chosen = self.aggregates.select_unknown(self.set, &batch, &self.row_numbers)?;
        if chosen.is_empty() {
            return Ok(());
        }
        if chosen.len() == batch.num_rows() {
            out.emit(PORT_MAIN, batch);
            return Ok(());
        }
        let weights = match &batch.weights {
            Weights::Ones(_) => Weights::Ones(chosen.len()),
            Weights::Signed(all) => Weights::Signed(chosen.iter().map(|row| all[*row as usize]).collect()),
        };
        let chosen = UInt32Array::from(chosen.to_vec());
        let rows = take_record_batch(&batch.rows, &chosen)
            .map_err(|e| Diagnostic::new(Code::Internal, format!("rows can't be chosen: {e}")))?;
        out.emit(PORT_MAIN, DeltaBatch::new(rows, weights));
        Ok(())
    }

    fn on_mark(&mut self, _mark: &EpochMark, _cx: &mut OpCx<'_>, _out: &mut Output) -> Result<Progress> {
        Ok(Progress::Done)
    }
}
