//! What the files of a checkpoint say, for inspection: without opening the directory's checkpoints and without a shard.

use std::collections::{BTreeMap, BTreeSet};

use super::MANIFEST_BYTES_MAX;
use super::format::{ManifestBody, Role, SectionKind, data_name, manifest_name, open_block, read_payload, role};
use super::image::Part;
use crate::device::{Device, DeviceError, DeviceOp, Done, FileName};
use crate::sealed::SealedError;

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) vnodes: u32,
    pub(crate) records: u64,
    pub(crate) data_bytes: u64,
    pub(crate) note_bytes: u64,
    pub(crate) note: Vec<u8>,
    pub(crate) blocks: Vec<DescribedBlock>,
}

/// Where a block is, and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DescribedBlock {
    pub(crate) bytes: u64,
    /// `None`: of ordered tables.
    pub(crate) vnode: Option<u32>,
}

pub(crate) fn manifest_file(version: u64) -> FileName {
    manifest_name(version)
}

pub(crate) fn data_file(version: u64) -> FileName {
    data_name(version)
}

/// The version of a manifest's file name.
pub(crate) fn manifest_version(name: &FileName) -> Option<u64> {
    match role(name) {
        Some(Role::Manifest(version)) => Some(version),
        _ => None,
    }
}

fn read(device: &mut (impl Device + ?Sized), file: FileName, offset: u64, len: usize) -> Result<Vec<u8>, DeviceError> {
    match device.execute(DeviceOp::Read { file, offset, len })? {
        Done::Data(bytes) => Ok(bytes),
        _ => Ok(Vec::new()),
    }
}

fn body(device: &mut (impl Device + ?Sized), version: u64) -> Result<Result<ManifestBody, SealedError>, DeviceError> {
    let bytes = read(device, manifest_name(version), 0, MANIFEST_BYTES_MAX as usize)?;
    Ok(ManifestBody::decode(&bytes).and_then(|body| match body.version == version {
        true => Ok(body),
        false => Err(SealedError::Damaged(format!("it is of version {}", body.version))),
    }))
}

/// What a manifest says, or what is wrong with it.
pub(crate) fn manifest(device: &mut (impl Device + ?Sized), version: u64) -> Result<Result<Described, SealedError>, DeviceError> {
    Ok(body(device, version)?.map(|body| Described {
        vnodes: body.vnode_count,
        records: body.records,
        data_bytes: body.data_bytes(),
        note_bytes: body.note.len() as u64,
        note: body.note,
        blocks: body
            .blocks
            .iter()
            .map(|b| DescribedBlock {
                bytes: u64::from(b.bytes),
                vnode: match b.part {
                    Part::Vnode(vnode) => Some(vnode),
                    Part::Ordered => None,
                },
            })
            .collect(),
    }))
}

/// Something wrong: file, offset, and what.
pub(crate) type DataProblem = (FileName, u64, String);

/// Calls `f` with table, whether it is a point table, key and value of each record that the checkpoint holds and that can be read; what is wrong.
/// Takes memory for the largest part of the state.
pub(crate) fn data(
    device: &mut (impl Device + ?Sized),
    version: u64,
    f: &mut dyn FnMut(u64, bool, &[u8], &[u8]),
) -> Result<Vec<DataProblem>, DeviceError> {
    let Ok(body) = body(device, version)? else { return Ok(Vec::new()) };
    let mut problems = Vec::new();
    let mut parts: BTreeMap<Part, Vec<_>> = BTreeMap::new();
    body.blocks.iter().for_each(|place| parts.entry(place.part).or_default().push(place));
    let mut missing = BTreeSet::new();
    for places in parts.values() {
        // Later blocks replace what earlier ones say.
        let mut held: BTreeMap<(u64, bool), BTreeMap<Vec<u8>, Vec<u8>>> = BTreeMap::new();
        for place in places {
            let file = data_name(place.file);
            if missing.contains(&place.file) {
                continue;
            }
            let bytes = match read(device, file.clone(), place.offset, place.bytes as usize) {
                Err(e @ DeviceError::NotFound { .. }) => {
                    problems.push((file, 0, e.to_string()));
                    missing.insert(place.file);
                    continue;
                }
                other => other?,
            };
            let Some(payload) = open_block(&bytes, place) else {
                problems.push((file, place.offset, "a block doesn't fit its checksum".to_owned()));
                continue;
            };
            let read = read_payload(payload, |r| {
                let records = held.entry((r.table.0, r.kind != SectionKind::Ordered)).or_default();
                match r.kind {
                    SectionKind::Point | SectionKind::Ordered => drop(records.insert(r.key.to_vec(), r.value.to_vec())),
                    SectionKind::Removed => drop(records.remove(r.key)),
                    SectionKind::Cleared => records.clear(),
                }
            });
            if read.is_none() {
                problems.push((file, place.offset, "a block holds no records as they should be".to_owned()));
            }
        }
        for ((table, is_point), records) in held {
            records.iter().for_each(|(key, value)| f(table, is_point, key, value));
        }
    }
    Ok(problems)
}
