//! Checkpoints of a key-value store: those of shards, and the sessions in them.

use serde::Serialize;

use super::checkpoints::{CheckpointReport, inspect_checkpoint};
use super::{InspectError, Problem};
use crate::checkpoint::describe;
use crate::device::Device;
use crate::kv::SessionTable;

/// A session in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SessionReport {
    /// Its number.
    pub session: u64,
    /// The serial of its last change that the checkpoint holds.
    pub serial: u64,
}

/// A checkpoint of a key-value store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KvReport {
    /// Bytes of the values that are changed in place.
    pub value_bytes: u32,
    /// The number that the next session gets.
    pub next_session: u64,
    /// Sessions, ascending.
    pub sessions: Vec<SessionReport>,
    /// The checkpoint; its vnodes are the store's shards.
    pub checkpoint: CheckpointReport,
}

/// A checkpoint of the key-value store in a directory: that of `version`, or the newest.
pub fn inspect_kv(device: &mut (impl Device + ?Sized), version: Option<u64>, reads_data: bool) -> Result<KvReport, InspectError> {
    let checkpoint = inspect_checkpoint(device, version, reads_data)?;
    let mut report = KvReport { value_bytes: 0, next_session: 0, sessions: Vec::new(), checkpoint };
    // A manifest that can't be read is among the problems already.
    if let Ok(described) = describe::manifest(device, report.checkpoint.version)? {
        match SessionTable::decode(&described.note) {
            Ok(table) => {
                (report.value_bytes, report.next_session) = (table.value_bytes, table.next_session);
                report.sessions =
                    table.serials.iter().map(|(session, serial)| SessionReport { session: *session, serial: *serial }).collect();
            }
            Err(because) => {
                let what = format!("its note is no table of sessions: {because}");
                report.checkpoint.problems.push(Problem { file: report.checkpoint.file.clone(), offset: None, what });
            }
        }
    }
    Ok(report)
}
