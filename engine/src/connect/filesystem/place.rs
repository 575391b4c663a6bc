//! Where a reader of files is: what it has delivered of each split, as part of a checkpoint.
//!
//! A place is a number of rows and of bad records, not of bytes: formats differ in where a record may be taken up again, and compressed ones can't
//! be entered in the middle. So the file that was being read is decoded again from its start, and what was delivered of it is left out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::source::Split;
use crate::batch::Weights;
use crate::connect::{Position, SourceEvent};
use crate::error::{Code, Diagnostic, Result};
use crate::format::Decoded;
use crate::ids::SplitId;

/// The entry of a position with the files that a reader which waits for more has seen.
const SEEN: u64 = u64::MAX;

/// How much of a split was delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// Rows.
    pub rows: u64,
    /// Bad records.
    pub rejected: u64,
}

impl Delivered {
    /// Takes what was delivered before out of what was decoded, and counts down by it.
    pub fn leave_out(&mut self, mut decoded: Decoded) -> Decoded {
        if *self == Self::default() {
            return decoded;
        }
        let rows = decoded.rows.num_rows();
        let known = usize::try_from(self.rows).unwrap_or(usize::MAX).min(rows);
        if known > 0 {
            self.rows -= known as u64;
            decoded.rows = decoded.rows.slice(known, rows - known);
            decoded.lines.drain(..known.min(decoded.lines.len()));
            decoded.weights = match decoded.weights {
                Weights::Ones(n) => Weights::Ones(n - known),
                Weights::Signed(weights) => Weights::Signed(weights.slice(known, rows - known)),
            };
        }
        let known = usize::try_from(self.rejected).unwrap_or(usize::MAX).min(decoded.rejected.len());
        self.rejected -= known as u64;
        decoded.rejected.drain(..known);
        decoded
    }
}

/// A path as it can be written: one that is not UTF-8 as its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum StoredPath {
    Text(String),
    Bytes(Vec<u8>),
}

impl StoredPath {
    fn of(path: &Path) -> Self {
        match path.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Text(text) => PathBuf::from(text),
            Self::Bytes(bytes) => PathBuf::from(OsStr::from_bytes(bytes)),
        }
    }
}

/// A split in a position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    path: StoredPath,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<usize>,
    /// The file's length when it was found.
    size: u64,
    #[serde(flatten)]
    delivered: Delivered,
}

/// The places of all splits that a reader has yet to deliver.
#[derive(Debug, Default)]
pub struct Places {
    of: BTreeMap<SplitId, Place>,
    /// What is still to be left out of a split.
    again: HashMap<SplitId, Delivered>,
    /// As many as there are splits at most, also where nobody asks.
    changed: BTreeSet<SplitId>,
    /// Whether files may come, so that those that are done have to be known.
    comes_more: bool,
    /// How many files were seen when it was last told.
    told_seen: usize,
}

impl Places {
    /// Of splits of which nothing was delivered.
    pub fn new(queue: &VecDeque<(SplitId, Split)>, comes_more: bool) -> Self {
        let mut places = Self { comes_more, told_seen: usize::MAX, ..Self::default() };
        queue.iter().for_each(|(id, split)| places.found(*id, split));
        places
    }

    /// A split that was found.
    pub fn found(&mut self, id: SplitId, split: &Split) {
        let path = StoredPath::of(&split.file.path);
        self.of.insert(id, Place { path, group: split.group, size: split.file.size, delivered: Delivered::default() });
        self.changed.insert(id);
    }

    /// What another run has delivered of a split, and is to be left out.
    pub fn begun(&mut self, id: SplitId) -> &mut Delivered {
        self.again.entry(id).or_default()
    }

    /// Takes note of what a poll delivers.
    pub fn note(&mut self, events: &[SourceEvent]) {
        for event in events {
            match event {
                SourceEvent::Rows(batch) => {
                    if let Some(place) = self.of.get_mut(&batch.split) {
                        place.delivered.rows += batch.rows.num_rows() as u64;
                        place.delivered.rejected += batch.rejected.len() as u64;
                        self.changed.insert(batch.split);
                    }
                }
                SourceEvent::SplitFinished(split) => {
                    self.of.remove(split);
                    self.again.remove(split);
                    self.changed.insert(*split);
                }
                SourceEvent::SplitOpened(_) => {}
            }
        }
    }

    /// What has changed since it was told last. `seen`: the files that were seen; `next_id`: the number that the next split gets.
    pub fn tell(&mut self, seen: &HashSet<PathBuf>, next_id: usize, changed: &mut Vec<(u64, Value)>) {
        for id in std::mem::take(&mut self.changed) {
            let place = self.of.get(&id).map_or(Value::Null, |place| serde_json::to_value(place).unwrap_or(Value::Null));
            changed.push((u64::from(id.0), place));
        }
        if self.comes_more && self.told_seen != seen.len() {
            self.told_seen = seen.len();
            let paths: Vec<_> = seen.iter().map(|path| StoredPath::of(path)).collect();
            changed.push((SEEN, serde_json::json!({ "paths": paths, "next_id": next_id })));
        }
    }

    /// Whether a position has nothing left to read.
    pub fn are_done(position: &Position) -> bool {
        position.keys().all(|number| *number == SEEN)
    }

    /// From another run's position: its places, and the splits that are to be read. `splits`: those that there are now.
    pub fn resume(position: &Position, splits: &[Split], comes_more: bool) -> Result<(Self, VecDeque<(SplitId, Split)>)> {
        let by_name: HashMap<(&Path, Option<usize>), &Split> =
            splits.iter().map(|split| ((split.file.path.as_path(), split.group), split)).collect();
        let mut places = Self { comes_more, told_seen: usize::MAX, ..Self::default() };
        let mut queue = VecDeque::new();
        for (number, value) in position.iter().filter(|(number, _)| **number != SEEN) {
            let id = u32::try_from(*number).map(SplitId).map_err(|_| strange())?;
            let place: Place = serde_json::from_value(value.clone()).map_err(|_| strange())?;
            let path = place.path.path();
            let Some(split) = by_name.get(&(path.as_path(), place.group)).copied() else {
                let message = format!("file '{}' is not there any more, and the checkpoint has yet to read it", path.display());
                return Err(Diagnostic::new(Code::PathNotFound, message).hint("files must stay until they are read"));
            };
            if split.file.size < place.size {
                let message =
                    format!("file '{}' has {} bytes, and had {} at the checkpoint", path.display(), split.file.size, place.size);
                return Err(Diagnostic::new(Code::CorruptFile, message).hint("files must stay as they are until they are read"));
            }
            places.again.insert(id, place.delivered);
            places.of.insert(id, place);
            queue.push_back((id, split.clone()));
        }
        // What was begun goes first, as it did.
        queue.make_contiguous().sort_by_key(|(id, _)| places.again.get(id).is_none_or(|place| *place == Delivered::default()));
        Ok((places, queue))
    }

    /// The files that another run has seen, and the number that its next split would have got.
    pub fn seen(position: &Position) -> Result<Option<(HashSet<PathBuf>, usize)>> {
        let Some(seen) = position.get(&SEEN) else { return Ok(None) };
        let paths: Vec<StoredPath> = serde_json::from_value(seen["paths"].clone()).map_err(|_| strange())?;
        let next_id = seen["next_id"].as_u64().and_then(|id| usize::try_from(id).ok()).ok_or_else(strange)?;
        Ok(Some((paths.iter().map(StoredPath::path).collect(), next_id)))
    }
}

fn strange() -> Diagnostic {
    Diagnostic::new(Code::CheckpointMismatch, "the checkpoint has no position of a reader of files")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_path_comes_back_whatever_its_bytes() {
        for bytes in [b"/a/b.json".as_slice(), b"/a/\xff\xfe.json", b"/a/\xc3\xa4"] {
            let path = PathBuf::from(OsStr::from_bytes(bytes));
            let json = serde_json::to_value(StoredPath::of(&path)).unwrap();
            assert_eq!(serde_json::from_value::<StoredPath>(json).unwrap().path(), path);
        }
    }

    #[test]
    fn what_was_delivered_is_left_out_over_batches() {
        let decoded = |rows: i64, rejected: usize| {
            let column: arrow::array::ArrayRef = std::sync::Arc::new((0..rows).collect::<arrow::array::Int64Array>());
            let bad = crate::connect::Rejected {
                code: Code::BadRecord,
                message: String::new(),
                origin: String::new(),
                position: None,
                raw: String::new(),
            };
            Decoded {
                rows: arrow::array::RecordBatch::try_from_iter([("n", column)]).unwrap(),
                weights: Weights::Ones(rows as usize),
                lines: (0..rows).collect(),
                rejected: vec![bad; rejected],
            }
        };
        let mut known = Delivered { rows: 7, rejected: 1 };
        let first = known.leave_out(decoded(5, 2));
        assert_eq!((first.rows.num_rows(), first.weights.len(), first.lines.len(), first.rejected.len()), (0, 0, 0, 1));
        let second = known.leave_out(decoded(5, 0));
        assert_eq!((second.rows.num_rows(), second.lines), (3, vec![2, 3, 4]));
        assert_eq!(known, Delivered::default());
        assert_eq!(known.leave_out(decoded(4, 1)).rows.num_rows(), 4);
    }
}
