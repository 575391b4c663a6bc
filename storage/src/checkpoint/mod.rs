//! Checkpoints of one shard in one directory: a data file each, then a manifest, which alone makes it a checkpoint.
//!
//! ```text
//! data file: create, write, sync ─▶ directory sync ─▶ manifest under a temporary name: write, sync ─▶ rename ─▶ directory sync = committed
//!   ─▶ manifests of old versions: remove, directory sync ─▶ data files that no manifest names any more: remove
//! ```
//! A data file holds a part of the state whole, or what has changed in it since the checkpoint before; then the manifest names that one's blocks
//! too, in the order in which they are to be read.

pub(crate) mod describe;
mod format;
mod image;
mod sections;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use hashbrown::HashMap;

use crate::bugs::{self, Bug};
use crate::device::{Completion, Device, DeviceError, DeviceOp, Done, FileName, Token};
use crate::directory_kind::{DirectoryKind, foreign_file};
use crate::sealed::SealedError;
use crate::shard::CaptureKind;
use crate::shard::{Shard, TableId};
pub(crate) use describe::Described;
use format::{BlockPlace, ManifestBody, Role, data_name, manifest_name, open_block, read_payload, role};
pub(crate) use format::{SectionKind, SectionWriter};
pub use image::{Image, Part, vnode_of};
pub use writer::CheckpointWriter;

/// Most reads on their way at once.
const READS_MAX: usize = 8;
/// Longest note.
const NOTE_BYTES_MAX: usize = 16 << 20;
/// Longest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;

/// What goes wrong with checkpoints.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file of a checkpoint is broken or missing.
    #[error("{file} is damaged: {because}")]
    Damaged {
        /// The file.
        file: FileName,
        /// What is wrong.
        because: String,
    },
    /// The directory is of another kind.
    #[error("{file}: the directory holds {holds}: open it as that, or name another")]
    Foreign {
        /// What tells.
        file: FileName,
        /// What is in it.
        holds: &'static str,
    },
    /// A newer version of this software has written the file.
    #[error("{file}: {because}; open it with the version that wrote it, or a newer one")]
    Unsupported {
        /// The file.
        file: FileName,
        /// What isn't known.
        because: String,
    },
    /// A new checkpoint must have a higher version than all before.
    #[error("version {version} is not above {newest}, the newest checkpoint's")]
    NotNewer {
        /// Asked for.
        version: u64,
        /// There is.
        newest: u64,
    },
    /// There is no checkpoint of this version.
    #[error("there is no checkpoint of version {version}")]
    NoSuchVersion {
        /// Asked for.
        version: u64,
    },
    /// The note is too long.
    #[error("a note of {size_bytes} B is longer than {limit_bytes} B")]
    NoteTooLong {
        /// Its length.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// A checkpoint has failed to be written before: what is durable is not known. Open the directory anew.
    #[error("checkpoints of this directory are stopped: {because}")]
    Poisoned {
        /// What failed.
        because: String,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A shard's pages on the device are useless.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// One checkpoint at a time.
    #[error("checkpoint {version} is still being written")]
    InProgress {
        /// Which.
        version: u64,
    },
    /// A shard is cut between two operations.
    #[error("{count} operations are pending: complete them, then cut")]
    OperationsPending {
        /// How many.
        count: usize,
    },
    /// The shard was made without a device for checkpoints.
    #[error("the shard keeps no checkpoints: make it with Shard::open")]
    NotDurable,
    /// The shard's pages are its checkpoints: cut it.
    #[error("the shard has a device, its own pages are its checkpoints: use Shard::cut")]
    HasDevice,
}

impl CheckpointError {
    /// What is wrong with a manifest, of its file.
    pub(crate) fn of_file(file: &FileName, error: SealedError) -> Self {
        let file = file.clone();
        match error {
            SealedError::Damaged(because) => Self::Damaged { file, because },
            SealedError::Unsupported(because) => Self::Unsupported { file, because },
        }
    }
}

/// A committed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    body: ManifestBody,
}

impl Checkpoint {
    /// Its version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.body.version
    }

    /// Over how many vnodes its records are spread.
    #[must_use]
    pub fn vnode_count(&self) -> u32 {
        self.body.vnode_count
    }

    /// How many records it holds.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.body.records
    }

    /// What its owner noted with it (source positions, watermarks).
    #[must_use]
    pub fn note(&self) -> &[u8] {
        &self.body.note
    }
}

/// The checkpoints in a device's directory.
#[derive(Debug)]
pub struct Checkpoints<D> {
    device: D,
    /// Ascending.
    versions: Vec<u64>,
    /// Of each version the data files that its manifest names; `None` when that can't be read.
    named: BTreeMap<u64, Option<Vec<u64>>>,
    /// Data files that are there.
    data_files: BTreeSet<u64>,
    /// The newest manifest, once it was read or written.
    newest: Option<ManifestBody>,
    keep: usize,
    poisoned: Option<String>,
}

impl<D: Device> Checkpoints<D> {
    /// Looks what checkpoints there are and removes what unfinished ones left. `keep`: how many are kept, at least 2.
    pub fn open(device: D, keep: usize) -> Result<Self, CheckpointError> {
        let mut opened = Self {
            device,
            versions: Vec::new(),
            named: BTreeMap::new(),
            data_files: BTreeSet::new(),
            newest: None,
            keep: keep.max(2),
            poisoned: None,
        };
        let Done::Files(files) = opened.device.execute(DeviceOp::List)? else { return Ok(opened) };
        if let Some((file, holds)) = foreign_file(&files, Some(DirectoryKind::Checkpoints)) {
            return Err(CheckpointError::Foreign { file, holds });
        }
        for (name, _) in &files {
            match role(name) {
                Some(Role::Manifest(version)) => opened.versions.push(version),
                Some(Role::Data(version)) => drop(opened.data_files.insert(version)),
                Some(Role::Temporary(_)) => drop(opened.device.execute(DeviceOp::Remove { file: name.clone() })?),
                None => {}
            }
        }
        opened.versions.sort_unstable();
        for version in opened.versions.clone() {
            let named = match opened.load(version) {
                Ok(checkpoint) => Some(checkpoint.body.files.iter().map(|f| f.version).collect()),
                Err(CheckpointError::Damaged { .. } | CheckpointError::Unsupported { .. }) => None,
                Err(e) => return Err(e),
            };
            opened.named.insert(version, named);
        }
        opened.remove_unnamed()?;
        Ok(opened)
    }

    /// Removes data files that no manifest names. While a manifest can't be read nobody knows what it names: then only those are removed that
    /// are newer than all manifests.
    fn remove_unnamed(&mut self) -> Result<(), DeviceError> {
        let all_known = self.named.values().all(Option::is_some);
        let named: BTreeSet<u64> = self.named.values().flatten().flatten().copied().collect();
        let newest = self.versions.last().copied();
        let gone: Vec<u64> =
            self.data_files.iter().copied().filter(|file| !named.contains(file) && (all_known || Some(*file) > newest)).collect();
        for file in gone {
            self.device.execute(DeviceOp::Remove { file: data_name(file) })?;
            self.data_files.remove(&file);
        }
        Ok(())
    }

    /// The versions that have a manifest, ascending.
    #[must_use]
    pub fn versions(&self) -> &[u64] {
        &self.versions
    }

    /// Removes the checkpoints that are newer than `version`, knowingly: what an owner of several directories wrote to this one, and came not to
    /// commit over all of them. They don't come back.
    pub fn forget_newer(&mut self, version: u64) -> Result<(), CheckpointError> {
        if let Some(because) = &self.poisoned {
            return Err(CheckpointError::Poisoned { because: because.clone() });
        }
        let first = self.versions.partition_point(|v| *v <= version);
        if first == self.versions.len() {
            return Ok(());
        }
        // The newest first: whatever is left after a crash was whole before.
        for version in self.versions[first..].iter().rev() {
            self.device.execute(DeviceOp::Remove { file: manifest_name(*version) })?;
            self.device.execute(DeviceOp::SyncDir)?;
        }
        for version in self.versions.drain(first..) {
            self.named.remove(&version);
        }
        self.newest = None;
        self.remove_unnamed()?;
        Ok(())
    }

    /// The newest checkpoint; `None` when there has never been one. An unreadable one is an error: go back to an older one only by
    /// [`load`](Self::load), knowingly.
    pub fn newest(&mut self) -> Result<Option<Checkpoint>, CheckpointError> {
        self.versions.last().copied().map(|version| self.load(version)).transpose()
    }

    /// The checkpoint of a version.
    pub fn load(&mut self, version: u64) -> Result<Checkpoint, CheckpointError> {
        if !self.versions.contains(&version) {
            return Err(CheckpointError::NoSuchVersion { version });
        }
        let file = manifest_name(version);
        let damaged = |because: String| CheckpointError::Damaged { file: file.clone(), because };
        let read = DeviceOp::Read { file: file.clone(), offset: 0, len: MANIFEST_BYTES_MAX as usize };
        let Done::Data(bytes) = self.device.execute(read)? else { return Err(damaged("it can't be read".to_owned())) };
        let body = ManifestBody::decode(&bytes).map_err(|e| CheckpointError::of_file(&file, e))?;
        if body.version != version {
            return Err(damaged(format!("it is of version {}", body.version)));
        }
        Ok(Checkpoint { body })
    }

    /// Writes an image and commits it as checkpoint `version`, with a note of the owner's. When this returns, the checkpoint survives any
    /// crash; when it fails, the version may or may not be there after the next start, and nothing more is accepted here.
    pub fn commit(&mut self, version: u64, image: &Image, note: &[u8]) -> Result<Checkpoint, CheckpointError> {
        if note.len() > NOTE_BYTES_MAX {
            return Err(CheckpointError::NoteTooLong { size_bytes: note.len(), limit_bytes: NOTE_BYTES_MAX });
        }
        let mut writer = self.begin(version, image.vnode_count)?;
        writer.begin_all(CaptureKind::Whole);
        for block in &image.blocks {
            writer.push_payload(block.part, &block.payload)?;
        }
        writer.commit(image.records, note)
    }

    /// A manifest is durable: older ones go, and what they alone name.
    fn committed(&mut self, body: ManifestBody) -> Result<(), DeviceError> {
        let files: Vec<u64> = body.files.iter().map(|f| f.version).collect();
        self.data_files.extend(files.iter().copied().filter(|file| *file == body.version));
        self.versions.push(body.version);
        self.named.insert(body.version, Some(files));
        self.newest = Some(body);
        let gone = self.versions.len().saturating_sub(self.keep);
        if gone == 0 {
            return Ok(());
        }
        for version in &self.versions[..gone] {
            self.device.execute(DeviceOp::Remove { file: manifest_name(*version) })?;
        }
        self.device.execute(DeviceOp::SyncDir)?;
        for version in self.versions.drain(..gone) {
            self.named.remove(&version);
        }
        self.remove_unnamed()
    }

    /// Puts the point records of `vnodes` and the entries of ordered tables that `keep_ordered` accepts into a shard, which has none of
    /// them. Reads no other vnode's blocks. After an error the shard must be dropped. How many records it has put there.
    pub fn restore(
        &mut self,
        checkpoint: &Checkpoint,
        shard: &mut Shard,
        vnodes: Range<u32>,
        mut keep_ordered: impl FnMut(TableId, &[u8]) -> bool,
    ) -> Result<u64, CheckpointError> {
        let body = &checkpoint.body;
        let mut parts: BTreeMap<Part, Vec<BlockPlace>> = BTreeMap::new();
        for place in &body.blocks {
            if !matches!(place.part, Part::Vnode(v) if !vnodes.contains(&v)) {
                parts.entry(place.part).or_default().push(*place);
            }
        }
        let mut restore = Restore {
            vnode_count: body.vnode_count,
            shapes: HashMap::new(),
            ordered_read: 0,
            ordered_kept: 0,
            keep_ordered: &mut keep_ordered,
        };
        let points = |shard: &Shard| shard.point_tables().iter().map(|(_, t)| t.len() as u64).sum::<u64>();
        let before = points(shard);
        for places in parts.values() {
            self.restore_part(places, shard, &mut restore)?;
        }
        let point = points(shard) - before;
        let is_all = vnodes.start == 0 && vnodes.end >= body.vnode_count;
        if is_all && point + restore.ordered_read != body.records {
            let found = point + restore.ordered_read;
            return Err(CheckpointError::Damaged {
                file: manifest_name(body.version),
                because: format!("its data hold {found} records instead of {}", body.records),
            });
        }
        Ok(point + restore.ordered_kept)
    }

    /// Reads the blocks of one part, which may stand in several layers.
    fn restore_part<F: FnMut(TableId, &[u8]) -> bool>(
        &mut self,
        places: &[BlockPlace],
        shard: &mut Shard,
        restore: &mut Restore<'_, F>,
    ) -> Result<(), CheckpointError> {
        let is_layered = places.windows(2).any(|pair| pair[0].file != pair[1].file);
        if !is_layered {
            return self.read_blocks(places, |place, payload| restore.apply(shard, place, payload, &mut 0, &HashMap::new()));
        }
        let skipped = if bugs::is_on(Bug::ForgetsBase) { places.partition_point(|p| p.file == places[0].file) } else { 0 };
        // A table that was cleared in a later layer has nothing of those before: where that is must be known first.
        let mut payloads = Vec::with_capacity(places.len());
        let (mut at, mut cleared) = (0_u64, HashMap::new());
        self.read_blocks(&places[skipped..], |place, payload| {
            let read = read_payload(payload, |record| {
                if record.kind == SectionKind::Cleared {
                    cleared.insert(record.table, at);
                }
                at += 1;
            });
            payloads.push((*place, payload.to_vec()));
            read.ok_or_else(|| damaged(place, "holds no records as they should be"))
        })?;
        at = 0;
        payloads.iter().try_for_each(|(place, payload)| restore.apply(shard, place, payload, &mut at, &cleared))
    }

    /// Calls `f` with each block's payload, in order; some are read ahead.
    fn read_blocks(
        &mut self,
        places: &[BlockPlace],
        mut f: impl FnMut(&BlockPlace, &[u8]) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let mut asked: HashMap<Token, usize> = HashMap::new();
        let mut arrived: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        let (mut next_asked, mut next) = (0, 0);
        let mut result = Ok(());
        while next < places.len() || !asked.is_empty() {
            while result.is_ok() && next_asked < places.len() && next_asked < next + READS_MAX {
                let place = &places[next_asked];
                let op = DeviceOp::Read { file: data_name(place.file), offset: place.offset, len: place.bytes as usize };
                asked.insert(self.device.submit(op), next_asked);
                next_asked += 1;
            }
            let mut done: Vec<Completion> = Vec::new();
            self.device.poll(&mut done);
            if done.is_empty() && !arrived.contains_key(&next) {
                self.device.wait(Duration::from_millis(100));
            }
            for Completion { token, result: read } in done {
                let Some(at) = asked.remove(&token) else { continue };
                match read {
                    Ok(Done::Data(bytes)) => drop(arrived.insert(at, bytes)),
                    Ok(_) => result = result.and(Err(damaged(&places[at], "can't be read"))),
                    Err(e) => result = result.and(Err(e.into())),
                }
            }
            while result.is_ok()
                && let Some(bytes) = arrived.remove(&next)
            {
                let place = &places[next];
                result = match open_block(&bytes, place) {
                    Some(payload) => f(place, payload),
                    None => Err(damaged(place, "doesn't fit its checksum")),
                };
                next += 1;
            }
            if result.is_err() && asked.is_empty() {
                break;
            }
        }
        result
    }

    /// The device.
    pub fn into_device(self) -> D {
        self.device
    }

    /// The device.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }
}

fn damaged(place: &BlockPlace, what: &str) -> CheckpointError {
    CheckpointError::Damaged { file: data_name(place.file), because: format!("the block at offset {} {what}", place.offset) }
}

/// Where records of blocks go.
struct Restore<'r, F> {
    vnode_count: u32,
    /// Of each table whether it is ordered, and its values' width.
    shapes: HashMap<TableId, (bool, usize)>,
    ordered_read: u64,
    ordered_kept: u64,
    keep_ordered: &'r mut F,
}

impl<F: FnMut(TableId, &[u8]) -> bool> Restore<'_, F> {
    /// Puts the records of a block into a shard. `at` counts records, `cleared` says before which of them a table has nothing.
    fn apply(
        &mut self,
        shard: &mut Shard,
        place: &BlockPlace,
        payload: &[u8],
        at: &mut u64,
        cleared: &HashMap<TableId, u64>,
    ) -> Result<(), CheckpointError> {
        let mut consistent = true;
        let mut restorer = image::Restorer::new();
        let read = read_payload(payload, |record| {
            *at += 1;
            if record.kind == SectionKind::Cleared || cleared.get(&record.table).is_some_and(|since| *at <= *since) {
                consistent &= place.part != Part::Ordered;
                return;
            }
            let is_ordered = record.kind == SectionKind::Ordered;
            let shape = (is_ordered, record.value_width);
            let known = *self.shapes.entry(record.table).or_insert(shape) == shape;
            let here = place.part == Part::Ordered && is_ordered
                || !is_ordered && place.part == Part::Vnode(vnode_of(record.hash, self.vnode_count));
            consistent &= known && here;
            self.ordered_read += u64::from(is_ordered);
            if is_ordered {
                if !(self.keep_ordered)(record.table, record.key) {
                    return;
                }
                self.ordered_kept += 1;
            }
            restorer.push(shard, &record);
        });
        restorer.finish(shard);
        if read.is_none() || !consistent {
            return Err(damaged(place, "holds no records as they should be"));
        }
        Ok(())
    }
}
