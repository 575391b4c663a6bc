//! When changes go on: at multiples of an interval (`EMIT EVERY`), or once a row's event time has passed (`EMIT AFTER WATERMARK`).

use std::ops::Bound;

use arrow::array::Array;
use arrow::compute::{filter_record_batch, is_not_null};
use arrow::datatypes::SchemaRef;
use tiderace_storage::{Shard, TableId};

use super::row_weights::{RowCodec, RowWeights};
use super::window::refuse_null_time;
use super::{EpochMark, OpCx, Operator, Output, PORT_MAIN, Port, Progress, SLICE_ROWS, Watermark};
use crate::batch::{DeltaBatch, Weights};
use crate::error::{Code, Diagnostic, Result};
use crate::key::Keys;

/// `EMIT EVERY interval`: holds the net changes back and lets them go at the first mark of each new interval, and at the last mark. Intervals
/// are counted from 1970-01-01 00:00 in epoch time, so that all cores, and the same job run again, let go together. Rows that cancel inside
/// an interval never go out. State: one record for each different row that waits.
#[derive(Debug)]
pub struct EmitEvery {
    interval_us: i64,
    held: RowWeights,
    /// The interval of the last mark.
    interval: Option<i64>,
    releasing: Option<u64>,
}

impl EmitEvery {
    /// Over rows of `schema`, with state in table `state`. Refuses an interval that is not positive, and columns that can't be state keys.
    pub fn new(schema: &SchemaRef, interval_us: i64, state: TableId) -> Result<Self> {
        if interval_us <= 0 {
            return Err(Diagnostic::new(Code::InvalidArgument, "EMIT EVERY needs a positive interval")
                .hint("as EMIT EVERY INTERVAL '1' SECOND"));
        }
        Ok(Self { interval_us, held: RowWeights::new(schema, state)?, interval: None, releasing: None })
    }
}

impl Operator for EmitEvery {
    fn on_delta(&mut self, _port: Port, batch: DeltaBatch, cx: &mut OpCx<'_>, _out: &mut Output) -> Result<()> {
        self.interval.get_or_insert(cx.time_us.div_euclid(self.interval_us));
        self.held.add(cx.shard, &batch)
    }

    fn on_mark(&mut self, mark: &EpochMark, cx: &mut OpCx<'_>, out: &mut Output) -> Result<Progress> {
        let cursor = match self.releasing {
            Some(cursor) => cursor,
            None => {
                let now = mark.time_us.div_euclid(self.interval_us);
                let before = self.interval.replace(now).unwrap_or_else(|| cx.time_us.div_euclid(self.interval_us));
                if now == before && !mark.last {
                    return Ok(Progress::Done);
                }
                0
            }
        };
        let (batch, next) = self.held.scan(cx.shard, cursor, SLICE_ROWS)?;
        out.emit(PORT_MAIN, batch);
        self.releasing = next;
        if next.is_some() {
            return Ok(Progress::More);
        }
        self.held.clear(cx.shard);
        Ok(Progress::Done)
    }
}

/// `EMIT AFTER WATERMARK` without a window: holds each row until the watermark is above its time column, so that no earlier row can follow,
/// and lets the net of it go then. A row that comes behind the watermark goes out at the next mark: nothing is dropped. A row whose time is
/// NULL is rejected ([`Code::NullEventTime`]). State: one ordered record for each different row that waits.
#[derive(Debug)]
pub struct EmitAfterWatermark {
    time_column: usize,
    codec: RowCodec,
    state: TableId,
    keys: Keys,
    record: Vec<u8>,
}

const TIME_BYTES: usize = 8;

impl EmitAfterWatermark {
    /// Over rows of `schema` whose `time_column` is a timestamp in µs, with state in table `state`.
    pub fn new(schema: &SchemaRef, time_column: usize, state: TableId) -> Result<Self> {
        super::window::timestamp_type(schema, time_column)?;
        Ok(Self { time_column, codec: RowCodec::new(schema)?, state, keys: Keys::default(), record: Vec::new() })
    }

    /// Order of the bytes = order of the times.
    fn time_bytes(time_us: i64) -> [u8; TIME_BYTES] {
        (time_us as u64 ^ (1 << 63)).to_be_bytes()
    }

    fn release(&mut self, shard: &mut Shard, below: Bound<&[u8]>) -> Result<(DeltaBatch, bool)> {
        let table = shard.ordered(self.state);
        let held: Vec<_> = table.range(Bound::Unbounded, below).take(SLICE_ROWS + 1).collect();
        let now = &held[..held.len().min(SLICE_ROWS)];
        let rows = self.codec.decode(now.iter().map(|(key, _)| &key[TIME_BYTES..]))?;
        let weights = now.iter().map(|(_, value)| weight(value)).collect();
        let next = held.get(SLICE_ROWS).map(|(key, _)| key.to_vec());
        match (&next, below) {
            (Some(next), _) => table.remove_below(next),
            (None, Bound::Excluded(end)) => table.remove_below(end),
            (None, _) => {
                shard.drop_table(self.state);
                0
            }
        };
        Ok((DeltaBatch::new(rows, Weights::from_vec(weights)), next.is_some()))
    }
}

impl Operator for EmitAfterWatermark {
    fn on_delta(&mut self, _port: Port, batch: DeltaBatch, cx: &mut OpCx<'_>, _out: &mut Output) -> Result<()> {
        let column = super::window::timestamps(&batch.rows, self.time_column)?;
        if column.null_count() > 0 {
            for row in (0..column.len()).filter(|row| column.is_null(*row)) {
                refuse_null_time(&batch.rows, row, cx.rows)?;
            }
            let known = is_not_null(column).map_err(internal)?;
            let indices: Vec<u32> = known.values().set_indices().map(|i| i as u32).collect();
            let rows = filter_record_batch(&batch.rows, &known).map_err(internal)?;
            let rest = DeltaBatch::new(rows, batch.weights.take(&indices));
            return if rest.num_rows() == 0 { Ok(()) } else { self.on_delta(0, rest, cx, _out) };
        }
        self.codec.encode(&batch.rows, &mut self.keys)?;
        let table = cx.shard.ordered(self.state);
        for (i, time_us) in column.values().iter().enumerate() {
            self.record.clear();
            self.record.extend_from_slice(&Self::time_bytes(*time_us));
            self.record.extend_from_slice(self.keys.as_batch().key(i));
            let before = table.get(&self.record).map_or(0, weight);
            let sum = before
                .checked_add(batch.weights.get(i))
                .ok_or_else(|| Diagnostic::new(Code::Overflow, "the multiplicity of a row is out of the range of BIGINT"))?;
            if sum == 0 {
                table.remove(&self.record);
            } else {
                table.put(&self.record, &sum.to_le_bytes());
            }
        }
        Ok(())
    }

    fn on_mark(&mut self, mark: &EpochMark, cx: &mut OpCx<'_>, out: &mut Output) -> Result<Progress> {
        let end = Self::time_bytes(mark.watermark.0);
        let below =
            if mark.last || mark.watermark == Watermark::MAX { Bound::Unbounded } else { Bound::Excluded(end.as_slice()) };
        let (batch, more) = self.release(cx.shard, below)?;
        out.emit(PORT_MAIN, batch);
        Ok(if more { Progress::More } else { Progress::Done })
    }
}

fn weight(value: &[u8]) -> i64 {
    i64::from_le_bytes(value.try_into().expect("weights are eight bytes"))
}

fn internal(error: impl std::fmt::Display) -> Diagnostic {
    Diagnostic::new(Code::Internal, error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use arrow::array::{AsArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMicrosecondType};
    use proptest::prelude::*;
    use tiderace_storage::ShardOptions;

    use super::*;
    use crate::ids::{CoreId, Epoch};
    use crate::operators::{RowAccounts, RowPolicy};

    type ZSet = BTreeMap<(Option<i64>, i64), i64>;

    fn schema() -> SchemaRef {
        let ts = DataType::Timestamp(TimeUnit::Microsecond, None);
        Arc::new(Schema::new(vec![Field::new("ts", ts, true), Field::new("k", DataType::Int64, false)]))
    }

    fn batch(rows: &[(Option<i64>, i64, i64)]) -> DeltaBatch {
        let ts = TimestampMicrosecondArray::from_iter(rows.iter().map(|r| r.0));
        let k = Int64Array::from_iter_values(rows.iter().map(|r| r.1));
        let weights = Weights::from_vec(rows.iter().map(|r| r.2).collect());
        DeltaBatch::new(RecordBatch::try_new(schema(), vec![Arc::new(ts), Arc::new(k)]).unwrap(), weights)
    }

    struct Bench<O> {
        operator: O,
        shard: Shard,
        accounts: RowAccounts,
        mark: EpochMark,
        /// The most rows of one call.
        slice_rows: usize,
    }

    impl<O: Operator> Bench<O> {
        fn new(operator: O) -> Self {
            let mark = EpochMark { epoch: Epoch(0), time_us: 0, watermark: Watermark::MIN, last: false };
            let accounts = RowAccounts { policy: RowPolicy::Skip, ..RowAccounts::default() };
            Self { operator, shard: Shard::new(ShardOptions { budget_bytes: 1 << 30 }), accounts, mark, slice_rows: 0 }
        }

        fn epoch(&mut self, rows: &[(Option<i64>, i64, i64)], time_us: i64, watermark: i64, last: bool) -> ZSet {
            let mut net = ZSet::new();
            let (before, rows_account) = (self.mark, &mut self.accounts);
            let mut cx = OpCx {
                shard: &mut self.shard,
                core: CoreId(0),
                epoch: before.epoch.next(),
                watermark: before.watermark,
                time_us: before.time_us,
                may_wait: true,
                rows: rows_account,
            };
            self.mark = EpochMark { epoch: before.epoch.next(), time_us, watermark: Watermark(watermark), last };
            let mut out = Output::default();
            if !rows.is_empty() {
                self.operator.on_delta(0, batch(rows), &mut cx, &mut out).unwrap();
            }
            loop {
                let progress = self.operator.on_mark(&self.mark, &mut cx, &mut out).unwrap();
                self.slice_rows = self.slice_rows.max(out.batches.iter().map(|(_, b)| b.num_rows()).sum());
                for (_, b) in out.batches.drain(..) {
                    let ts = b.rows.column(0).as_primitive::<TimestampMicrosecondType>();
                    let k = b.rows.column(1).as_primitive::<Int64Type>();
                    for i in 0..b.num_rows() {
                        assert_ne!(b.weights.get(i), 0);
                        *net.entry((Some(ts.value(i)), k.value(i))).or_default() += b.weights.get(i);
                    }
                }
                if progress == Progress::Done {
                    return net;
                }
            }
        }
    }

    #[test]
    fn every_lets_go_at_multiples_of_the_interval_and_at_the_end() {
        let mut bench = Bench::new(EmitEvery::new(&schema(), 1000, TableId(1)).unwrap());
        assert!(bench.epoch(&[(Some(1), 1, 1), (Some(1), 2, 1)], 400, 0, false).is_empty());
        assert!(bench.epoch(&[(Some(1), 1, -1)], 999, 0, false).is_empty());
        assert_eq!(bench.epoch(&[(Some(1), 3, 2)], 1000, 0, false), ZSet::from([((Some(1), 2), 1), ((Some(1), 3), 2)]));
        assert!(bench.epoch(&[(Some(1), 4, -1)], 1999, 0, false).is_empty());
        assert_eq!(bench.epoch(&[], 1999, 0, true), ZSet::from([((Some(1), 4), -1)]));
        assert_eq!(bench.shard.used_bytes(), Shard::new(ShardOptions { budget_bytes: 1 }).used_bytes());
    }

    #[test]
    fn an_interval_must_be_positive() {
        assert_eq!(EmitEvery::new(&schema(), 0, TableId(1)).unwrap_err().code, Code::InvalidArgument);
    }

    #[test]
    fn much_is_let_go_in_slices() {
        let rows: Vec<_> = (0..SLICE_ROWS as i64 * 3).map(|k| (Some(k), k, 1)).collect();
        let mut every = Bench::new(EmitEvery::new(&schema(), 1000, TableId(1)).unwrap());
        assert_eq!(every.epoch(&rows, 1000, 0, false).len(), rows.len());
        let mut after = Bench::new(EmitAfterWatermark::new(&schema(), 0, TableId(1)).unwrap());
        assert_eq!(after.epoch(&rows, 1000, i64::MAX, false).len(), rows.len());
        assert!(every.slice_rows <= SLICE_ROWS && after.slice_rows <= SLICE_ROWS, "{} {}", every.slice_rows, after.slice_rows);
    }

    #[test]
    fn a_row_without_time_is_rejected_and_the_others_wait() {
        let mut bench = Bench::new(EmitAfterWatermark::new(&schema(), 0, TableId(1)).unwrap());
        assert!(bench.epoch(&[(None, 1, 1), (Some(10), 2, 1)], 0, 10, false).is_empty());
        assert_eq!(bench.accounts.rejected, [(Code::NullEventTime, 1)]);
        assert_eq!(bench.epoch(&[], 0, 11, false), ZSet::from([((Some(10), 2), 1)]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn rows_go_out_as_in_the_model(
            epochs in proptest::collection::vec((proptest::collection::vec((-20_i64..60, 0_i64..4, prop_oneof![Just(1_i64), Just(-1), Just(2)]), 0..8), 0_i64..9, 0_i64..700), 1..20),
        ) {
            let mut every = Bench::new(EmitEvery::new(&schema(), 1000, TableId(1)).unwrap());
            let mut after = Bench::new(EmitAfterWatermark::new(&schema(), 0, TableId(1)).unwrap());
            let (mut held_every, mut held_after) = (ZSet::new(), ZSet::new());
            let (mut watermark, mut time_us) = (-20, 0);
            for (i, (rows, step, time_step)) in epochs.iter().enumerate() {
                let last = i + 1 == epochs.len();
                let old_time_us = time_us;
                time_us += time_step;
                watermark = if last { i64::MAX } else { watermark + step };
                let rows: Vec<_> = rows.iter().map(|(ts, k, w)| (Some(*ts), *k, *w)).collect();
                for (ts, k, w) in &rows {
                    *held_every.entry((*ts, *k)).or_default() += w;
                    *held_after.entry((*ts, *k)).or_default() += w;
                }
                let mut expected = ZSet::new();
                if last || time_us / 1000 > old_time_us / 1000 {
                    expected = std::mem::take(&mut held_every);
                }
                expected.retain(|_, w| *w != 0);
                prop_assert_eq!(every.epoch(&rows, time_us, watermark, last), expected);
                let mut expected = held_after.clone();
                expected.retain(|(ts, _), w| ts.unwrap() < watermark && *w != 0);
                held_after.retain(|(ts, _), _| ts.unwrap() >= watermark);
                prop_assert_eq!(after.epoch(&rows, time_us, watermark, last), expected);
            }
        }
    }
}
