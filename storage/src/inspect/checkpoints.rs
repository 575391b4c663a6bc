//! Checkpoints: manifests and the data that they name.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{InspectError, Problem};
use crate::checkpoint::{Described, describe};
use crate::device::{Device, DeviceOp, Done};

/// What one table has in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableReport {
    /// Its number.
    pub table: u64,
    /// `point` or `ordered`.
    pub kind: &'static str,
    /// Its records.
    pub records: u64,
    /// Bytes of their keys.
    pub key_bytes: u64,
    /// Bytes of their values.
    pub value_bytes: u64,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckpointReport {
    /// Its version.
    pub version: u64,
    /// The manifest's file.
    pub file: String,
    /// Vnodes that its records are spread over.
    pub vnodes: u32,
    /// Records.
    pub records: u64,
    /// Length of the data file that the manifest tells.
    pub data_bytes: u64,
    /// Blocks of the data.
    pub blocks: u64,
    /// Blocks of ordered tables among them.
    pub ordered_blocks: u64,
    /// Bytes of the owner's note.
    pub note_bytes: u64,
    /// Bytes of blocks by vnode: the vnodes with most of them, largest first.
    pub largest_vnodes: Vec<(u32, u64)>,
    /// Tables, where the data was read.
    pub tables: Vec<TableReport>,
    /// Whether all data was read and compared with its checksums.
    pub is_verified: bool,
    /// What is damaged.
    pub problems: Vec<Problem>,
}

/// Vnodes that are named.
const LARGEST_VNODES: usize = 10;

/// All checkpoints of a directory, ascending; `reads_data`: read all data and verify it.
pub fn inspect_checkpoints(device: &mut (impl Device + ?Sized), reads_data: bool) -> Result<Vec<CheckpointReport>, InspectError> {
    let mut reports = Vec::new();
    for version in versions(device)? {
        reports.push(report(device, version, reads_data)?);
    }
    if reports.is_empty() {
        return Err(InspectError::Nothing { what: "checkpoint (manifest-…)".to_owned() });
    }
    Ok(reports)
}

/// One checkpoint of a directory: that of `version`, or the newest.
pub fn inspect_checkpoint(
    device: &mut (impl Device + ?Sized),
    version: Option<u64>,
    reads_data: bool,
) -> Result<CheckpointReport, InspectError> {
    let versions = versions(device)?;
    let found = match version {
        Some(version) => versions.contains(&version).then_some(version),
        None => versions.last().copied(),
    };
    let what = || version.map_or_else(|| "checkpoint (manifest-…)".to_owned(), |v| format!("checkpoint of version {v}"));
    let version = found.ok_or_else(|| InspectError::Nothing { what: what() })?;
    report(device, version, reads_data)
}

fn versions(device: &mut (impl Device + ?Sized)) -> Result<Vec<u64>, InspectError> {
    let Done::Files(files) = device.execute(DeviceOp::List)? else { return Ok(Vec::new()) };
    let mut versions: Vec<u64> = files.iter().filter_map(|(name, _)| describe::manifest_version(name)).collect();
    versions.sort_unstable();
    Ok(versions)
}

fn report(device: &mut (impl Device + ?Sized), version: u64, reads_data: bool) -> Result<CheckpointReport, InspectError> {
    let file = describe::manifest_file(version);
    let mut report = CheckpointReport {
        version,
        file: file.as_str().to_owned(),
        vnodes: 0,
        records: 0,
        data_bytes: 0,
        blocks: 0,
        ordered_blocks: 0,
        note_bytes: 0,
        largest_vnodes: Vec::new(),
        tables: Vec::new(),
        is_verified: reads_data,
        problems: Vec::new(),
    };
    let described = match describe::manifest(device, version)? {
        Ok(described) => described,
        Err(what) => {
            report.problems.push(Problem { file: report.file.clone(), offset: None, what: what.to_string() });
            return Ok(report);
        }
    };
    let Described { vnodes, records, data_bytes, note_bytes, blocks, .. } = &described;
    report.vnodes = *vnodes;
    (report.records, report.data_bytes, report.note_bytes) = (*records, *data_bytes, *note_bytes);
    report.blocks = blocks.len() as u64;
    let mut by_vnode = BTreeMap::new();
    for block in blocks {
        match block.vnode {
            Some(vnode) => *by_vnode.entry(vnode).or_insert(0_u64) += block.bytes,
            None => report.ordered_blocks += 1,
        }
    }
    report.largest_vnodes = by_vnode.into_iter().collect();
    report.largest_vnodes.sort_by_key(|(vnode, bytes)| (std::cmp::Reverse(*bytes), *vnode));
    report.largest_vnodes.truncate(LARGEST_VNODES);
    if reads_data {
        let mut tables: BTreeMap<(u64, &'static str), TableReport> = BTreeMap::new();
        let mut read = 0;
        let problems = describe::data(device, version, &mut |table, is_point, key, value| {
            let kind = if is_point { "point" } else { "ordered" };
            let empty = TableReport { table, kind, records: 0, key_bytes: 0, value_bytes: 0 };
            let of = tables.entry((table, kind)).or_insert(empty);
            of.records += 1;
            of.key_bytes += key.len() as u64;
            of.value_bytes += value.len() as u64;
            read += 1;
        })?;
        let data_file = describe::data_file(version);
        let problem =
            |(file, offset, what): describe::DataProblem| Problem { file: file.as_str().to_owned(), offset: Some(offset), what };
        report.problems.extend(problems.into_iter().map(problem));
        if report.problems.is_empty() && read != report.records {
            let what = format!("it holds {read} records, the manifest tells {}", report.records);
            report.problems.push(Problem { file: data_file.as_str().to_owned(), offset: None, what });
        }
        report.tables = tables.into_values().collect();
    }
    Ok(report)
}
