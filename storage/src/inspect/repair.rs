//! Directories of checkpoints whose newest can't be used: set aside, on request, so that the one before opens.

use serde::Serialize;

use super::{InspectError, inspect_checkpoint, inspect_pages};
use crate::checkpoint::describe;
use crate::device::{Device, DeviceError, DeviceOp, Done, FileName};
use crate::sealed::SealedError;
use crate::shard::manifest as pages;

/// Most copies of one file that repairs leave.
const COPIES_MAX: usize = 1000;

/// What a repair of checkpoints did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SetAsideReport {
    /// The newest checkpoint that is whole: it opens now.
    pub kept: u64,
    /// Newer ones that are damaged, newest first, and what is wrong with them.
    pub set_aside: Vec<(u64, String)>,
    /// Under which names their manifests are kept.
    pub copies: Vec<String>,
}

/// Sets aside the damaged ones among the newest checkpoints of a directory, up to the first that is whole; each is read in full before. Where
/// none is whole nothing is changed, and that is an error. Manifests get other names, nothing is removed; but who opens the directory and
/// commits removes data that no manifest names. Whoever may need it copies the directory first.
pub fn set_damaged_checkpoints_aside(device: &mut (impl Device + ?Sized)) -> Result<SetAsideReport, InspectError> {
    let versions = versions(device, describe::manifest_version)?;
    let mut damaged = Vec::new();
    let mut whole = None;
    for version in versions.iter().rev() {
        if let Err(SealedError::Unsupported(because)) = describe::manifest(device, *version)? {
            return Err(unsupported(&describe::manifest_file(*version), because));
        }
        let report = inspect_checkpoint(device, Some(*version), true)?;
        match report.problems.first() {
            None => {
                whole = Some(*version);
                break;
            }
            Some(problem) => damaged.push((*version, format!("{}: {}", problem.file, problem.what))),
        }
    }
    set_aside(device, whole, damaged, describe::manifest_file, "checkpoint")
}

/// The same for checkpoints that a shard's own pages make up.
pub fn set_damaged_pages_aside(device: &mut (impl Device + ?Sized)) -> Result<SetAsideReport, InspectError> {
    let versions = versions(device, pages::manifest_version)?;
    let report = inspect_pages(device, true)?;
    let mut damaged = Vec::new();
    let mut whole = None;
    for version in versions.iter().rev() {
        let file = pages::manifest_name(*version);
        let read = DeviceOp::Read { file: file.clone(), offset: 0, len: pages::MANIFEST_BYTES_MAX };
        if let Done::Data(bytes) = device.execute(read)?
            && let Err(SealedError::Unsupported(because)) = pages::PagesManifest::decode(&bytes)
        {
            return Err(unsupported(&file, because));
        }
        let used = report.manifests.iter().find(|m| m.version == *version).map(|m| m.file.clone());
        let problem = match used {
            None => report.problems.iter().find(|p| p.file == file.as_str()).map(|p| p.what.clone()),
            Some(_) => damage_of(device, *version, &report)?,
        };
        match problem {
            None => {
                whole = Some(*version);
                break;
            }
            Some(what) => damaged.push((*version, what)),
        }
    }
    set_aside(device, whole, damaged, pages::manifest_name, "manifest of pages")
}

/// What isn't understood isn't damaged.
fn unsupported(file: &FileName, because: String) -> InspectError {
    InspectError::Unsupported { file: file.as_str().to_owned(), because }
}

/// Whether a manifest names anything that is damaged.
fn damage_of(
    device: &mut (impl Device + ?Sized),
    version: u64,
    report: &super::PagesReport,
) -> Result<Option<String>, InspectError> {
    let read = DeviceOp::Read { file: pages::manifest_name(version), offset: 0, len: pages::MANIFEST_BYTES_MAX };
    let Done::Data(bytes) = device.execute(read)? else { return Ok(None) };
    let Ok(manifest) = pages::PagesManifest::decode(&bytes) else { return Ok(Some("it can't be read".to_owned())) };
    let named = |problem: &super::Problem| {
        manifest.tables.iter().flat_map(|t| &t.pages).any(|page| {
            let file = crate::store::segment_name(page.place.segment);
            problem.file == file.as_str() && problem.offset.is_none_or(|offset| offset == page.place.offset())
        })
    };
    Ok(report.problems.iter().find(|p| named(p)).map(|p| format!("{}: {}", p.file, p.what)))
}

fn versions(
    device: &mut (impl Device + ?Sized),
    version_of: impl Fn(&FileName) -> Option<u64>,
) -> Result<Vec<u64>, InspectError> {
    let Done::Files(files) = device.execute(DeviceOp::List)? else { return Ok(Vec::new()) };
    let mut versions: Vec<u64> = files.iter().filter_map(|(name, _)| version_of(name)).collect();
    versions.sort_unstable();
    Ok(versions)
}

fn set_aside(
    device: &mut (impl Device + ?Sized),
    whole: Option<u64>,
    damaged: Vec<(u64, String)>,
    manifest_file: impl Fn(u64) -> FileName,
    what: &str,
) -> Result<SetAsideReport, InspectError> {
    let Some(kept) = whole else { return Err(InspectError::Nothing { what: format!("{what} that is whole") }) };
    let mut copies = Vec::new();
    // The newest first: whatever interrupts this, the directory's newest is one that it had.
    for (version, _) in &damaged {
        let from = manifest_file(*version);
        let to = free_name(device, &from)?;
        device.execute(DeviceOp::Rename { from, to: to.clone() })?;
        device.execute(DeviceOp::SyncDir)?;
        copies.push(to.as_str().to_owned());
    }
    Ok(SetAsideReport { kept, set_aside: damaged, copies })
}

/// A name for what a file was before, which nothing has.
fn free_name(device: &mut (impl Device + ?Sized), file: &FileName) -> Result<FileName, InspectError> {
    let Done::Files(files) = device.execute(DeviceOp::List)? else { return Err(taken(file)) };
    (1..=COPIES_MAX)
        .filter_map(|n| FileName::new(&format!("before-repair-{n}-{file}")))
        .find(|name| !files.iter().any(|(other, _)| other == name))
        .ok_or_else(|| taken(file))
}

fn taken(file: &FileName) -> InspectError {
    let message = format!("there are {COPIES_MAX} copies of it, or no more names");
    DeviceError::Io { what: format!("copy {file}"), message }.into()
}
