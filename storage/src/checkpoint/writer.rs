//! A checkpoint that is being written: blocks as a capture gives them, then the manifest.

use std::time::Duration;

use hashbrown::{HashMap, HashSet};

use super::format::{BlockPlace, DataFile, ManifestBody, data_name, manifest_name, push_block, temporary_name};
use super::image::Part;
use super::sections::OpenSections;
use super::{Checkpoint, CheckpointError, Checkpoints, NOTE_BYTES_MAX};
use crate::bugs::{self, Bug};
use crate::device::{Completion, Device, DeviceError, DeviceOp};
use crate::shard::{CaptureKind, CapturedBlock};

/// Data is written in pieces of about this size.
const WRITE_BYTES: usize = 1 << 20;
/// Most writes on their way at once.
const WRITES_MAX: usize = 8;

/// A checkpoint that is being written. Nothing of it counts before [`commit`](Self::commit); one that is dropped leaves a file that the next
/// start removes.
#[derive(Debug)]
pub struct CheckpointWriter<'c, D: Device> {
    of: &'c mut Checkpoints<D>,
    version: u64,
    vnode_count: u32,
    /// What it goes on from, read when it began.
    base: Option<ManifestBody>,
    kinds: HashMap<Part, CaptureKind>,
    open: OpenSections,
    out: DataOut,
}

/// The data file of a checkpoint that is being written.
#[derive(Debug)]
struct DataOut {
    version: u64,
    blocks: Vec<BlockPlace>,
    is_created: bool,
    written_bytes: u64,
    piece: Vec<u8>,
    on_their_way: usize,
}

impl<D: Device> Checkpoints<D> {
    /// Begins to write checkpoint `version`, over so many vnodes as those before.
    pub fn begin(&mut self, version: u64, vnode_count: u32) -> Result<CheckpointWriter<'_, D>, CheckpointError> {
        if let Some(because) = &self.poisoned {
            return Err(CheckpointError::Poisoned { because: because.clone() });
        }
        if let Some(newest) = self.versions.last().copied().filter(|newest| *newest >= version) {
            return Err(CheckpointError::NotNewer { version, newest });
        }
        // Only what can be read can be gone on from.
        let base = self.newest_body().filter(|body| body.vnode_count == vnode_count);
        Ok(CheckpointWriter {
            of: self,
            version,
            vnode_count,
            base,
            kinds: HashMap::new(),
            open: OpenSections::default(),
            out: DataOut { version, blocks: Vec::new(), is_created: false, written_bytes: 0, piece: Vec::new(), on_their_way: 0 },
        })
    }

    /// The version that changes may be relative to: that of the newest checkpoint, if it can be read and has so many vnodes.
    pub fn base(&mut self, vnode_count: u32) -> Option<u64> {
        self.newest_body().filter(|body| body.vnode_count == vnode_count).map(|body| body.version)
    }

    /// Parts that the next checkpoint had better hold whole: those whose changes take more than half of what they change, and, when old data
    /// files are kept for little of what is in them, the parts for which the oldest is kept.
    pub fn parts_to_rewrite(&mut self) -> HashSet<Part> {
        let Some(body) = self.newest_body() else { return HashSet::new() };
        // By part: the file of its first block, bytes in that file, bytes in later ones.
        let mut layers: HashMap<Part, (u64, u64, u64)> = HashMap::new();
        for block in &body.blocks {
            let (first, whole, changes) = layers.entry(block.part).or_insert((block.file, 0, 0));
            *(if block.file == *first { whole } else { changes }) += u64::from(block.bytes);
        }
        let used: u64 = body.blocks.iter().map(|b| u64::from(b.bytes)).sum();
        let is_sparse = body.data_bytes() > 2 * used + WRITE_BYTES as u64;
        let oldest = body.files.first().map_or(0, |f| f.version);
        let rewrites = |(first, whole, changes): &(u64, u64, u64)| *changes > whole / 2 || is_sparse && *first == oldest;
        layers.iter().filter(|(_, layer)| rewrites(layer)).map(|(part, _)| *part).collect()
    }

    fn newest_body(&mut self) -> Option<ManifestBody> {
        if self.newest.is_none() {
            self.newest = self.newest().ok().flatten().map(|c| c.body);
        }
        self.newest.clone()
    }
}

impl<D: Device> CheckpointWriter<'_, D> {
    /// Says what the blocks of a part will be: all of it, or changes to what the checkpoint before has. Each part of the state must be told,
    /// those without blocks too.
    pub fn begin_part(&mut self, part: Part, kind: CaptureKind) {
        assert!(kind == CaptureKind::Whole || self.base.is_some(), "changes need a checkpoint that they are changes to");
        self.kinds.insert(part, kind);
    }

    /// The same for all parts of a shard's capture, whose ordered tables are whole whatever it is.
    pub fn begin_all(&mut self, kind: CaptureKind) {
        (0..self.vnode_count).for_each(|vnode| self.begin_part(Part::Vnode(vnode), kind));
        self.begin_part(Part::Ordered, CaptureKind::Whole);
    }

    /// Adds a block; those of a shard in the order in which they were captured. Sorts records by vnode, in 64 to 128 KiB of memory a vnode. May
    /// wait for the device.
    pub fn push(&mut self, block: &CapturedBlock) -> Result<(), CheckpointError> {
        let (out, device, kinds) = (&mut self.out, &mut self.of.device, &self.kinds);
        let result = self.open.add(block, self.vnode_count, |part, payload| out.push(device, kinds, part, payload));
        self.poison(result)
    }

    /// Says that no more of a vnode comes: memory that is held for it goes.
    pub fn end_vnode(&mut self, vnode: u32) -> Result<(), CheckpointError> {
        let (out, device, kinds) = (&mut self.out, &mut self.of.device, &self.kinds);
        let result = self.open.close_vnode(vnode, |part, payload| out.push(device, kinds, part, payload));
        self.poison(result)
    }

    pub(super) fn push_payload(&mut self, part: Part, payload: &[u8]) -> Result<(), CheckpointError> {
        let result = self.out.push(&mut self.of.device, &self.kinds, part, payload);
        self.poison(result)
    }

    /// Writes the manifest. When this returns, the checkpoint survives any crash; when it fails, the version may or may not be there after the
    /// next start, and nothing more is accepted here. `records`: how many the checkpoint holds, with those before it that count.
    pub fn commit(mut self, records: u64, note: &[u8]) -> Result<Checkpoint, CheckpointError> {
        if note.len() > NOTE_BYTES_MAX {
            return Err(CheckpointError::NoteTooLong { size_bytes: note.len(), limit_bytes: NOTE_BYTES_MAX });
        }
        let told = (0..self.vnode_count).map(Part::Vnode).chain([Part::Ordered]).all(|part| self.kinds.contains_key(&part));
        assert!(told, "each part is told, or what older checkpoints have of it would count or not by chance");
        let result = self.write_rest(records, note);
        let body = self.poison(result)?;
        Ok(Checkpoint { body })
    }

    fn poison<T>(&mut self, result: Result<T, DeviceError>) -> Result<T, CheckpointError> {
        if let Err(e) = &result {
            self.of.poisoned = Some(e.to_string());
        }
        Ok(result?)
    }

    fn write_rest(&mut self, records: u64, note: &[u8]) -> Result<ManifestBody, DeviceError> {
        let (out, device, kinds) = (&mut self.out, &mut self.of.device, &self.kinds);
        self.open.close(|part, payload| out.push(device, kinds, part, payload))?;
        out.flush(device)?;
        while out.on_their_way > 0 {
            out.reap(device)?;
        }
        let version = self.version;
        if out.is_created && !bugs::is_on(Bug::ManifestFirst) {
            device.execute(DeviceOp::Sync { file: data_name(version) })?;
            device.execute(DeviceOp::SyncDir)?;
        }
        let (mut blocks, mut files) = (Vec::new(), Vec::new());
        if let Some(base) = self.base.take() {
            blocks = base.blocks;
            blocks.retain(|block| kinds.get(&block.part) == Some(&CaptureKind::Changes));
            files = base.files;
            let named: HashSet<u64> = blocks.iter().map(|b| b.file).collect();
            files.retain(|file| named.contains(&file.version));
        }
        blocks.append(&mut out.blocks);
        if out.is_created {
            files.push(DataFile { version, bytes: out.written_bytes });
        }
        let body = ManifestBody { version, vnode_count: self.vnode_count, records, note: note.to_vec(), files, blocks };
        let (manifest, temporary) = (manifest_name(version), temporary_name(version));
        device.execute(DeviceOp::Create { file: temporary.clone() })?;
        device.execute(DeviceOp::WriteSync { file: temporary.clone(), offset: 0, data: body.encode() })?;
        device.execute(DeviceOp::Rename { from: temporary, to: manifest })?;
        device.execute(DeviceOp::SyncDir)?;
        self.of.committed(body.clone())?;
        Ok(body)
    }
}

impl DataOut {
    /// Adds a block, and begins to write when there is enough.
    fn push(
        &mut self,
        device: &mut impl Device,
        kinds: &HashMap<Part, CaptureKind>,
        part: Part,
        payload: &[u8],
    ) -> Result<(), DeviceError> {
        assert!(kinds.contains_key(&part), "begin_part is called first");
        self.blocks.push(push_block(&mut self.piece, self.written_bytes, self.version, part, payload));
        if self.piece.len() >= WRITE_BYTES { self.flush(device) } else { Ok(()) }
    }

    /// Begins to write what is gathered.
    fn flush(&mut self, device: &mut impl Device) -> Result<(), DeviceError> {
        let data = std::mem::take(&mut self.piece);
        if data.is_empty() {
            return Ok(());
        }
        let file = data_name(self.version);
        if !self.is_created {
            device.execute(DeviceOp::Create { file: file.clone() })?;
            self.is_created = true;
        }
        let len = data.len() as u64;
        device.submit(DeviceOp::Write { file, offset: self.written_bytes, data });
        self.written_bytes += len;
        self.on_their_way += 1;
        while self.on_their_way >= WRITES_MAX {
            self.reap(device)?;
        }
        Ok(())
    }

    /// Waits for writes.
    fn reap(&mut self, device: &mut impl Device) -> Result<(), DeviceError> {
        let mut done: Vec<Completion> = Vec::new();
        while done.is_empty() {
            device.wait(Duration::from_millis(100));
            device.poll(&mut done);
        }
        self.on_their_way -= done.len();
        done.into_iter().try_for_each(|c| c.result.map(|_| ()))
    }
}
