//! What the files of a checkpoint say, for inspection: without opening the directory's checkpoints and without a shard.

use super::MANIFEST_BYTES_MAX;
use super::format::{KIND_POINT, ManifestBody, Role, data_name, manifest_name, open_block, read_payload, role};
use super::image::Part;
use crate::device::{Device, DeviceError, DeviceOp, Done, FileName};

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) vnodes: u32,
    pub(crate) records: u64,
    pub(crate) data_bytes: u64,
    pub(crate) note_bytes: u64,
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

fn body(device: &mut (impl Device + ?Sized), version: u64) -> Result<Result<ManifestBody, String>, DeviceError> {
    let bytes = read(device, manifest_name(version), 0, MANIFEST_BYTES_MAX as usize)?;
    Ok(ManifestBody::decode(&bytes).and_then(|body| match body.version == version {
        true => Ok(body),
        false => Err(format!("it is of version {}", body.version)),
    }))
}

/// What a manifest says, or what is wrong with it.
pub(crate) fn manifest(device: &mut (impl Device + ?Sized), version: u64) -> Result<Result<Described, String>, DeviceError> {
    Ok(body(device, version)?.map(|body| Described {
        vnodes: body.vnode_count,
        records: body.records,
        data_bytes: body.data_bytes,
        note_bytes: body.note.len() as u64,
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

/// Calls `f` with table, whether it is a point table, key and value of each record that can be read; offsets at which something is wrong.
pub(crate) fn data(
    device: &mut (impl Device + ?Sized),
    version: u64,
    f: &mut dyn FnMut(u64, bool, &[u8], &[u8]),
) -> Result<Vec<(u64, String)>, DeviceError> {
    let Ok(body) = body(device, version)? else { return Ok(Vec::new()) };
    let mut problems = Vec::new();
    for place in &body.blocks {
        let bytes = match read(device, data_name(version), place.offset, place.bytes as usize) {
            Err(e @ DeviceError::NotFound { .. }) => {
                problems.push((0, e.to_string()));
                break;
            }
            other => other?,
        };
        let Some(payload) = open_block(&bytes, version, place) else {
            problems.push((place.offset, "a block doesn't fit its checksum".to_owned()));
            continue;
        };
        let read = read_payload(payload, |r| f(r.table.0, r.kind == KIND_POINT, r.key, r.value));
        if read.is_none() {
            problems.push((place.offset, "a block holds no records as they should be".to_owned()));
        }
    }
    Ok(problems)
}
