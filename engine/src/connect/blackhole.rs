//! `'connector' = 'blackhole'`: takes everything and keeps nothing but, when asked, a count and a digest of what came.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arrow::datatypes::SchemaRef;

use super::row_digest::RowDigests;
use super::{
    ChangelogMode, Changes, ConnectorSpec, CoreInit, OptionSpec, OptionType, Ring, RowKind, Sink, SinkRef, SinkWriter, TableSpec,
};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::Epoch;

/// See [`super::registry`].
pub const SPEC: ConnectorSpec = ConnectorSpec {
    name: "blackhole",
    doc: "Takes all changes and drops them; counts them and can sum them up to a digest",
    options: &[OptionSpec {
        key: "digest",
        kind: OptionType::Bool,
        default: Some("false"),
        required: false,
        doc: "Whether to add up a 128-bit sum over the final rows, which is the same in whatever order changes come.",
    }],
    takes_format: false,
    takes_partitions: false,
    source: None,
    sink: Some(plan),
    metadata: &[],
};

fn plan(table: &TableSpec<'_>) -> Result<SinkRef> {
    let digest = table.options.bool("digest")?.unwrap_or(false);
    let total = Arc::<Mutex<Total>>::default();
    lock(&SINKS).insert(table.name.to_owned(), Arc::downgrade(&total));
    Ok(Arc::new(BlackholeSink { digest, total }))
}

/// The sums of each table's newest sink, as long as something holds the sink.
static SINKS: Mutex<BTreeMap<String, Weak<Mutex<Total>>>> = Mutex::new(BTreeMap::new());

/// A sum of plain numbers stays right when another thread panics.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the sink of `table` that was planned last has taken so far; `None` when there is none, or its job is gone. Complete once the
/// job has ended; before, writers may be behind by an epoch.
#[must_use]
pub fn total(table: &str) -> Option<Total> {
    let mut sinks = lock(&SINKS);
    sinks.retain(|_, total| total.strong_count() > 0);
    sinks.get(table).and_then(Weak::upgrade).map(|total| *lock(&total))
}

/// What a blackhole has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Changes of any kind.
    pub changes: u64,
    /// Rows inserted less rows deleted: how many rows a table of them has in the end. Upserts without old images count each update.
    pub rows: i64,
    /// The sum of the digests of the rows inserted less those deleted, mod 2¹²⁸; 0 without the option `digest`.
    ///
    /// A row's digest is as `connect/row_digest.rs` says. It depends on the columns' values and order, not on their names.
    pub digest: u128,
}

impl Total {
    fn add(&mut self, other: Self) {
        self.changes += other.changes;
        self.rows += other.rows;
        self.digest = self.digest.wrapping_add(other.digest);
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows, digest {:032x}", self.rows, self.digest)
    }
}

/// The planned sink.
#[derive(Debug)]
struct BlackholeSink {
    digest: bool,
    /// Over all cores, as of the last epoch that each has ended.
    total: Arc<Mutex<Total>>,
}

impl Sink for BlackholeSink {
    fn accepts(&self, _mode: ChangelogMode) -> bool {
        true
    }

    fn ring(&self) -> Ring {
        Ring::Core
    }

    fn open(&self, _init: CoreInit, schema: SchemaRef, _mode: ChangelogMode) -> Result<Box<dyn SinkWriter>> {
        let digests = if self.digest && !schema.fields().is_empty() {
            let refused = |e: arrow::error::ArrowError| {
                Diagnostic::new(Code::UnsupportedSchema, format!("a blackhole has no digest for these columns: {e}"))
            };
            Some(RowDigests::new(schema.fields().iter().map(|f| f.data_type())).map_err(refused)?)
        } else {
            None
        };
        Ok(Box::new(BlackholeWriter { digests, own: Total::default(), total: self.total.clone() }))
    }
}

struct BlackholeWriter {
    digests: Option<RowDigests>,
    /// Since the last end of an epoch.
    own: Total,
    total: Arc<Mutex<Total>>,
}

/// −1 for rows that go, +1 for rows that come.
fn sign(kind: RowKind) -> i64 {
    match kind {
        RowKind::Insert | RowKind::UpdateAfter => 1,
        RowKind::UpdateBefore | RowKind::Delete => -1,
    }
}

impl SinkWriter for BlackholeWriter {
    fn write(&mut self, _epoch: Epoch, changes: &Changes) -> Result<()> {
        let count = changes.rows.num_rows();
        self.own.changes += count as u64;
        self.own.rows += match &changes.kinds {
            None => count as i64,
            Some(kinds) => kinds.iter().map(|kind| sign(*kind)).sum(),
        };
        let Some(digests) = &mut self.digests else { return Ok(()) };
        let rows = digests.of(changes.rows.columns(), count).map_err(|e| Diagnostic::new(Code::Internal, e.to_string()))?;
        let wide = |lanes: &[u64; 2]| u128::from(lanes[0]) | u128::from(lanes[1]) << 64;
        let sum = match &changes.kinds {
            None => rows.iter().fold(0u128, |sum, lanes| sum.wrapping_add(wide(lanes))),
            Some(kinds) => rows.iter().zip(kinds.iter()).fold(0u128, |sum, (lanes, kind)| {
                if sign(*kind) > 0 { sum.wrapping_add(wide(lanes)) } else { sum.wrapping_sub(wide(lanes)) }
            }),
        };
        self.own.digest = self.own.digest.wrapping_add(sum);
        Ok(())
    }

    /// The one lock, once an epoch and never held for longer than an addition.
    fn end_epoch(&mut self, _epoch: Epoch) -> Result<()> {
        lock(&self.total).add(std::mem::take(&mut self.own));
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        lock(&self.total).add(std::mem::take(&mut self.own));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, StringViewArray};

    use super::super::Options;
    use super::*;
    use crate::ids::CoreId;

    fn rows(ids: &[i64]) -> RecordBatch {
        let texts: StringViewArray = ids.iter().map(|id| (*id != 0).then(|| format!("a text of row {id}"))).collect();
        RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(Int64Array::from(ids.to_vec())) as ArrayRef, true),
            ("text", Arc::new(texts), true),
        ])
        .unwrap()
    }

    fn sink(table: &str, digest: &str) -> SinkRef {
        let options = Options::new([("digest".to_owned(), digest.to_owned(), None)]);
        plan(&TableSpec {
            name: table,
            schema: rows(&[]).schema(),
            physical: rows(&[]).schema(),
            metadata: vec![],
            primary_key: vec![],
            partitioned_by: vec![],
            options: &options,
        })
        .unwrap()
    }

    /// Writes each part on a core of its own.
    fn write(sink: &SinkRef, parts: &[Changes]) {
        for (core, part) in parts.iter().enumerate() {
            let init = CoreInit { core: CoreId(core as u16), cores: parts.len() };
            let mut writer = sink.open(init, part.rows.schema(), ChangelogMode::Retract).unwrap();
            writer.write(Epoch(1), part).unwrap();
            writer.end_epoch(Epoch(1)).unwrap();
            writer.finish().unwrap();
        }
    }

    fn inserted(ids: &[i64]) -> Changes {
        Changes { rows: rows(ids), kinds: None }
    }

    #[test]
    fn the_digest_is_that_of_the_final_rows_whatever_their_way() {
        let direct = sink("direct", "true");
        write(&direct, &[inserted(&[1, 2, 2, 0])]);
        let expected = total("direct").unwrap();
        assert_eq!((expected.changes, expected.rows), (4, 4));
        assert_ne!(expected.digest, 0);

        let (insert, delete) = (RowKind::Insert, RowKind::Delete);
        let detour = sink("detour", "true");
        let kinds = Some(vec![insert, delete, RowKind::UpdateBefore, RowKind::UpdateAfter, insert]);
        write(&detour, &[inserted(&[5, 0, 7]), Changes { rows: rows(&[2, 5, 7, 2, 1]), kinds }]);
        let found = total("detour").unwrap();
        assert_eq!((found.rows, found.digest, found.changes), (expected.rows, expected.digest, 8));
        assert_eq!(format!("{found}"), format!("{expected}"));
    }

    #[test]
    fn other_rows_have_another_digest() {
        let mut digests = Vec::new();
        for ids in [&[1, 2][..], &[1, 3], &[1, 1], &[2, 2], &[1], &[0], &[3, 2]] {
            let sink = sink("others", "true");
            write(&sink, &[inserted(ids)]);
            digests.push(total("others").unwrap().digest);
        }
        let count = digests.len();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), count);
    }

    #[test]
    fn strings_have_one_digest_in_all_their_layouts() {
        let of = |table: &str, texts: ArrayRef| {
            let rows = RecordBatch::try_from_iter([("text", texts)]).unwrap();
            let sink = sink(table, "true");
            write(&sink, &[Changes { rows, kinds: None }]);
            total(table).unwrap().digest
        };
        let texts = ["short", "longer than a view holds inside"];
        assert_eq!(
            of("views", Arc::new(StringViewArray::from_iter_values(texts))),
            of("plain", Arc::new(StringArray::from_iter_values(texts)))
        );
    }

    #[test]
    fn without_the_option_rows_are_only_counted_and_a_dropped_sink_is_forgotten() {
        let counted = sink("counted", "false");
        write(&counted, &[inserted(&[1]), inserted(&[2, 3])]);
        assert_eq!(total("counted"), Some(Total { changes: 3, rows: 3, digest: 0 }));
        drop(counted);
        assert_eq!(total("counted"), None);
    }
}
