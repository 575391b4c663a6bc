//! Where a reader of files is: what it has delivered of each split, as part of a checkpoint.
//!
//! A place is a number of rows and of bad records, not of bytes: formats differ in where a record may be taken up again, and compressed ones can't
//! be entered in the middle. So the file that was being read is decoded again from its start, and what was delivered of it is left out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
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

/// A split in a position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    path: String,
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
        let path = split.file.path.display().to_string();
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
            let paths: Vec<_> = seen.iter().map(|path| path.display().to_string()).collect();
            changed.push((SEEN, serde_json::json!({ "paths": paths, "next_id": next_id })));
        }
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
            let Some(split) = by_name.get(&(Path::new(&place.path), place.group)).copied() else {
                let message = format!("file '{}' is not there any more, and the checkpoint has yet to read it", place.path);
                return Err(Diagnostic::new(Code::PathNotFound, message).hint("files must stay until they are read"));
            };
            if split.file.size < place.size {
                let message =
                    format!("file '{}' has {} bytes, and had {} at the checkpoint", place.path, split.file.size, place.size);
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
        let paths = seen["paths"].as_array().ok_or_else(strange)?;
        let paths = paths.iter().map(|path| path.as_str().map(PathBuf::from).ok_or_else(strange)).collect::<Result<_>>()?;
        let next_id = seen["next_id"].as_u64().and_then(|id| usize::try_from(id).ok()).ok_or_else(strange)?;
        Ok(Some((paths, next_id)))
    }
}

fn strange() -> Diagnostic {
    Diagnostic::new(Code::CheckpointMismatch, "the checkpoint has no position of a reader of files")
}
