//! Checkpoints of one shard in one directory: a data file each, then a manifest, which alone makes it a checkpoint.
//!
//! ```text
//! data file: create, write, sync ─▶ directory sync ─▶ manifest under a temporary name: write, sync ─▶ rename ─▶ directory sync = committed
//!   ─▶ manifests of old versions: remove, directory sync ─▶ their data files: remove
//! ```

pub(crate) mod describe;
mod format;
mod image;

use std::ops::Range;
use std::time::Duration;

use hashbrown::HashMap;

use crate::device::{Completion, Device, DeviceError, DeviceOp, Done, FileName};
use crate::shard::{Shard, TableId};
pub(crate) use describe::Described;
use format::{ManifestBody, Role, data_name, manifest_name, open_block, push_block, read_payload, role, temporary_name};
pub use image::{Image, Part, vnode_of};

/// Data is written in pieces of about this size.
const WRITE_BYTES: usize = 1 << 20;
/// Most writes on their way at once.
const WRITES_MAX: usize = 8;
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
    keep: usize,
    poisoned: Option<String>,
}

impl<D: Device> Checkpoints<D> {
    /// Looks what checkpoints there are and removes what unfinished ones left. `keep`: how many are kept, at least 2.
    pub fn open(mut device: D, keep: usize) -> Result<Self, CheckpointError> {
        let Done::Files(files) = device.execute(DeviceOp::List)? else { return Ok(Self::new(device, Vec::new(), keep)) };
        let roles: Vec<_> = files.iter().filter_map(|(name, _)| role(name).map(|role| (name, role))).collect();
        let mut versions: Vec<u64> =
            roles.iter().filter_map(|(_, r)| if let Role::Manifest(v) = r { Some(*v) } else { None }).collect();
        versions.sort_unstable();
        for (name, role) in roles {
            let unfinished = match role {
                Role::Temporary(_) => true,
                Role::Data(version) => !versions.contains(&version),
                Role::Manifest(_) => false,
            };
            if unfinished {
                device.execute(DeviceOp::Remove { file: name.clone() })?;
            }
        }
        Ok(Self::new(device, versions, keep))
    }

    fn new(device: D, versions: Vec<u64>, keep: usize) -> Self {
        Self { device, versions, keep: keep.max(2), poisoned: None }
    }

    /// The versions that have a manifest, ascending.
    #[must_use]
    pub fn versions(&self) -> &[u64] {
        &self.versions
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
        let body = ManifestBody::decode(&bytes).map_err(damaged)?;
        if body.version != version {
            return Err(damaged(format!("it is of version {}", body.version)));
        }
        Ok(Checkpoint { body })
    }

    /// Writes an image and commits it as checkpoint `version`, with a note of the owner's. When this returns, the checkpoint survives any
    /// crash; when it fails, the version may or may not be there after the next start, and nothing more is accepted here.
    pub fn commit(&mut self, version: u64, image: &Image, note: &[u8]) -> Result<Checkpoint, CheckpointError> {
        if let Some(because) = &self.poisoned {
            return Err(CheckpointError::Poisoned { because: because.clone() });
        }
        if let Some(newest) = self.versions.last().copied().filter(|newest| *newest >= version) {
            return Err(CheckpointError::NotNewer { version, newest });
        }
        if note.len() > NOTE_BYTES_MAX {
            return Err(CheckpointError::NoteTooLong { size_bytes: note.len(), limit_bytes: NOTE_BYTES_MAX });
        }
        match self.write(version, image, note) {
            Ok(checkpoint) => Ok(checkpoint),
            Err(e) => {
                self.poisoned = Some(e.to_string());
                Err(e.into())
            }
        }
    }

    fn write(&mut self, version: u64, image: &Image, note: &[u8]) -> Result<Checkpoint, DeviceError> {
        let (data, manifest, temporary) = (data_name(version), manifest_name(version), temporary_name(version));
        self.device.execute(DeviceOp::Create { file: data.clone() })?;
        let (blocks, data_bytes) = self.write_data(version, &data, image)?;
        self.device.execute(DeviceOp::Sync { file: data })?;
        self.device.execute(DeviceOp::SyncDir)?;
        let body = ManifestBody {
            version,
            vnode_count: image.vnode_count,
            records: image.records,
            data_bytes,
            note: note.to_vec(),
            blocks,
        };
        self.device.execute(DeviceOp::Create { file: temporary.clone() })?;
        self.device.execute(DeviceOp::WriteSync { file: temporary.clone(), offset: 0, data: body.encode() })?;
        self.device.execute(DeviceOp::Rename { from: temporary, to: manifest })?;
        self.device.execute(DeviceOp::SyncDir)?;
        self.versions.push(version);
        self.remove_old()?;
        Ok(Checkpoint { body })
    }

    fn write_data(
        &mut self,
        version: u64,
        file: &FileName,
        image: &Image,
    ) -> Result<(Vec<format::BlockPlace>, u64), DeviceError> {
        let mut places = Vec::with_capacity(image.blocks.len());
        let (mut base, mut piece, mut on_their_way) = (0, Vec::new(), 0);
        let mut blocks = image.blocks.iter().peekable();
        while let Some(block) = blocks.next() {
            places.push(push_block(&mut piece, base, version, block.part, &block.payload));
            if piece.len() >= WRITE_BYTES || blocks.peek().is_none() {
                let data = std::mem::take(&mut piece);
                let len = data.len() as u64;
                self.device.submit(DeviceOp::Write { file: file.clone(), offset: base, data });
                base += len;
                on_their_way += 1;
                if on_their_way >= WRITES_MAX {
                    on_their_way -= self.reap()?;
                }
            }
        }
        while on_their_way > 0 {
            on_their_way -= self.reap()?;
        }
        Ok((places, base))
    }

    /// Waits for writes; how many have ended.
    fn reap(&mut self) -> Result<usize, DeviceError> {
        let mut done: Vec<Completion> = Vec::new();
        while done.is_empty() {
            self.device.wait(Duration::from_millis(100));
            self.device.poll(&mut done);
        }
        let count = done.len();
        done.into_iter().try_for_each(|c| c.result.map(|_| ()))?;
        Ok(count)
    }

    /// Removes checkpoints beyond those kept: first their manifests, durably, then their data.
    fn remove_old(&mut self) -> Result<(), DeviceError> {
        let gone = self.versions.len().saturating_sub(self.keep);
        if gone == 0 {
            return Ok(());
        }
        for version in &self.versions[..gone] {
            self.device.execute(DeviceOp::Remove { file: manifest_name(*version) })?;
        }
        self.device.execute(DeviceOp::SyncDir)?;
        for version in self.versions.drain(..gone) {
            self.device.execute(DeviceOp::Remove { file: data_name(version) })?;
        }
        Ok(())
    }

    /// Puts the point records of `vnodes` and the entries of ordered tables that `keep_ordered` accepts into a shard, which has none of
    /// them. Reads no other vnode's blocks. After an error the shard must be dropped.
    pub fn restore(
        &mut self,
        checkpoint: &Checkpoint,
        shard: &mut Shard,
        vnodes: Range<u32>,
        mut keep_ordered: impl FnMut(TableId, &[u8]) -> bool,
    ) -> Result<u64, CheckpointError> {
        let body = &checkpoint.body;
        let file = data_name(body.version);
        let (mut restored, mut read) = (0, 0);
        let mut seen: HashMap<TableId, (u8, usize)> = HashMap::new();
        for place in &body.blocks {
            let damaged = |what: &str| CheckpointError::Damaged {
                file: file.clone(),
                because: format!("the block at offset {} {what}", place.offset),
            };
            if matches!(place.part, Part::Vnode(v) if !vnodes.contains(&v)) {
                continue;
            }
            let op = DeviceOp::Read { file: file.clone(), offset: place.offset, len: place.bytes as usize };
            let Done::Data(bytes) = self.device.execute(op)? else { return Err(damaged("can't be read")) };
            let payload = open_block(&bytes, body.version, place).ok_or_else(|| damaged("doesn't fit its checksum"))?;
            let mut consistent = true;
            let done = read_payload(payload, |record| {
                read += 1;
                let shape = (record.kind, record.value_width);
                let known = *seen.entry(record.table).or_insert(shape) == shape;
                let here = place.part == Part::Ordered
                    || place.part == Part::Vnode(vnode_of(record.hash, body.vnode_count)) && record.kind == format::KIND_POINT;
                consistent &= known && here;
                if record.kind == format::KIND_POINT || keep_ordered(record.table, record.key) {
                    image::restore(shard, record.table, record.kind, record.value_width, record.hash, record.key, record.value);
                    restored += 1;
                }
            });
            if done.is_none() || !consistent {
                return Err(damaged("holds no records as they should be"));
            }
        }
        if vnodes.start == 0 && vnodes.end >= body.vnode_count && read != body.records {
            return Err(CheckpointError::Damaged {
                file,
                because: format!("it holds {read} records instead of {}", body.records),
            });
        }
        Ok(restored)
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
