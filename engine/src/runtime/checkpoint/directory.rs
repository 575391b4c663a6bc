//! The directory of a job's checkpoints: who may use it, which checkpoint counts, what of it goes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::executor::block_on;
use rustix::fs::{FlockOperation, flock};
use tiderace_storage::{CheckpointStore as _, CheckpointStoreError, DirectoryStore, FileName};

use super::manifest::{CoreNote, FORMAT, Found, Manifest, decode, encode, fingerprint};
use super::{CheckpointOptions, KEPT};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::CoreId;

/// The longest manifest or note that is read.
const FILE_BYTES_MAX: u64 = 256 << 20;
pub(super) const JOB_FILE: &str = "job.json";
const LOCK_FILE: &str = ".lock";

/// See the module. Locked as long as it lives.
#[derive(Debug)]
pub(in crate::runtime) struct Directory {
    path: PathBuf,
    store: DirectoryStore,
    /// The job's name among all jobs.
    pub(in crate::runtime) job: String,
    /// The checkpoint that the job goes on from.
    pub(super) found: Option<Manifest>,
    definition: String,
    _lock: File,
}

/// Which checkpoint a job would go on from; `None`: there is none yet. Neither locks nor changes anything.
pub fn look(options: &CheckpointOptions) -> Result<Option<Found>> {
    if !options.directory.is_dir() {
        return Ok(None);
    }
    let store = DirectoryStore::open(&options.directory).map_err(|e| failed(&options.directory, &e))?;
    let manifest = newest(&options.directory, &store)?;
    Ok(manifest.map(|m| Found { version: m.version, cores: m.cores.len(), time_us: m.time_us, finished: m.finished }))
}

impl Directory {
    /// Opens the directory of a job with so many cores and vnodes, or makes it.
    pub(in crate::runtime) fn open(options: &CheckpointOptions, cores: usize, max_parallelism: u32) -> Result<Self> {
        let path = options.directory.clone();
        let store = DirectoryStore::open(&path).map_err(|e| failed(&path, &e))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join(LOCK_FILE))
            .map_err(|e| unusable(&path, &e))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
            rustix::io::Errno::WOULDBLOCK => {
                unusable(&path, &"another process uses it").hint("a job runs once at a time: end the other one first")
            }
            e => unusable(&path, &e),
        })?;
        let job = job_name(&path, &store)?;
        let found = newest(&path, &store)?;
        let definition = fingerprint(&options.definition);
        if let Some(found) = &found {
            let differs = |what: &str| {
                let message = format!("the checkpoint in {} is of another job: {what}", path.display());
                Diagnostic::new(Code::CheckpointMismatch, message)
                    .hint("go on with the job as it was, or name another directory and begin from the start of its input")
            };
            if found.definition != definition {
                return Err(differs("its statements are not the same"));
            }
            if found.cores.len() != cores {
                return Err(differs(&format!("it had {} cores, not {cores}", found.cores.len())));
            }
            if found.max_parallelism != max_parallelism {
                return Err(differs(&format!("its maxParallelism was {}, not {max_parallelism}", found.max_parallelism)));
            }
        }
        Ok(Self { path, store, job, found, definition, _lock: lock })
    }

    /// The number of this run of the job, from 1.
    pub(in crate::runtime) fn run(&self) -> u64 {
        self.found.as_ref().map_or(1, |found| found.run + 1)
    }

    /// The checkpoint that the job goes on from: the version of a core, and what it noted.
    pub(super) fn note(&self, core: CoreId) -> Result<Option<(u64, CoreNote)>> {
        let Some(version) = self.found.as_ref().and_then(|found| found.cores.get(usize::from(core.0))).copied() else {
            return Ok(None);
        };
        let file = note_name(version, core);
        let bytes = block_on(self.store.read(&file, FILE_BYTES_MAX)).map_err(|e| failed(&self.path, &e))?;
        let note = decode(&bytes).map_err(|because| damaged(&self.path, file.as_str(), &because))?;
        Ok(Some((version, note)))
    }

    /// A core's folder.
    pub(super) fn folder(&self, core: CoreId) -> PathBuf {
        self.path.join(format!("core-{core}"))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes what a core noted. It counts when a manifest names it.
    pub(super) fn write_note(&self, version: u64, core: CoreId, note: &CoreNote) -> Result<()> {
        let file = note_name(version, core);
        let bytes = encode(note).map_err(|because| unusable(&self.path, &because))?;
        // One that a run left which came to no manifest.
        block_on(self.store.remove(&file)).map_err(|e| failed(&self.path, &e))?;
        block_on(self.store.create(&file, Bytes::from(bytes))).map(drop).map_err(|e| failed(&self.path, &e))
    }

    /// Commits a checkpoint: it counts when this returns.
    pub(super) fn commit(&self, mut manifest: Manifest) -> Result<()> {
        manifest.definition.clone_from(&self.definition);
        let bytes = encode(&manifest).map_err(|because| unusable(&self.path, &because))?;
        block_on(self.store.create(&manifest_name(manifest.version), Bytes::from(bytes))).map_err(|e| failed(&self.path, &e))?;
        Ok(())
    }

    /// Removes manifests and notes that are older than those that are kept. What fails is tried again the next time.
    pub(super) fn clean(&self, newest: u64, cores: &[u64]) {
        let Ok(files) = block_on(self.store.list("v")) else { return };
        for (file, _) in files {
            let oldest = match parse_name(file.as_str()) {
                Some((_, None)) => newest,
                Some((_, Some(core))) => cores.get(usize::from(core)).copied().unwrap_or(newest),
                None => continue,
            };
            if parse_name(file.as_str()).is_some_and(|(version, _)| version + (KEPT as u64) <= oldest)
                && let Err(error) = block_on(self.store.remove(&file))
            {
                tracing::warn!(%file, %error, "an old checkpoint's file can't be removed");
            }
        }
    }
}

fn job_name(path: &Path, store: &DirectoryStore) -> Result<String> {
    let file = name(JOB_FILE);
    match block_on(store.read(&file, FILE_BYTES_MAX)) {
        Ok(bytes) => decode(&bytes).map_err(|because| damaged(path, JOB_FILE, &because)),
        Err(CheckpointStoreError::NotFound { .. }) => {
            let is_foreign =
                fs::read_dir(path).map_err(|e| unusable(path, &e))?.flatten().any(|entry| entry.file_name() != LOCK_FILE);
            if is_foreign {
                return Err(unusable(path, &"it has files that no job put there").hint("name a directory of the job's own"));
            }
            let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let job = format!("{:x}{:x}", since_1970.as_micros(), std::process::id());
            let bytes = encode(&job).map_err(|because| unusable(path, &because))?;
            block_on(store.create(&file, Bytes::from(bytes))).map_err(|e| failed(path, &e))?;
            Ok(job)
        }
        Err(e) => Err(failed(path, &e)),
    }
}

/// The newest checkpoint that counts. One that can't be read is an error: an older one would bring back what sinks have shown already.
fn newest(path: &Path, store: &DirectoryStore) -> Result<Option<Manifest>> {
    let files = block_on(store.list("v")).map_err(|e| failed(path, &e))?;
    let manifests =
        files.iter().filter_map(|(file, _)| parse_name(file.as_str()).filter(|(_, core)| core.is_none()).map(|(v, _)| (v, file)));
    let Some((version, file)) = manifests.max() else { return Ok(None) };
    let bytes = block_on(store.read(file, FILE_BYTES_MAX)).map_err(|e| failed(path, &e))?;
    let manifest: Manifest = decode(&bytes).map_err(|because| damaged(path, file.as_str(), &because))?;
    if manifest.format != FORMAT || manifest.version != version {
        return Err(damaged(
            path,
            file.as_str(),
            &format!("it is of format {} and version {}", manifest.format, manifest.version),
        ));
    }
    Ok(Some(manifest))
}

fn name(text: &str) -> FileName {
    FileName::new(text).expect("a plain name")
}

fn manifest_name(version: u64) -> FileName {
    name(&format!("v{version:020}.json"))
}

fn note_name(version: u64, core: CoreId) -> FileName {
    name(&format!("v{version:020}-core-{core}.json"))
}

/// The version, and the core of a note.
fn parse_name(file: &str) -> Option<(u64, Option<u16>)> {
    let stem = file.strip_prefix('v')?.strip_suffix(".json")?;
    match stem.split_once("-core-") {
        Some((version, core)) => Some((version.parse().ok()?, Some(core.parse().ok()?))),
        None => Some((stem.parse().ok()?, None)),
    }
}

pub(super) fn damaged(path: &Path, file: &str, because: &str) -> Diagnostic {
    Diagnostic::new(Code::CheckpointDamaged, format!("the checkpoint {} can't be read: {because}", path.join(file).display()))
        .hint("nothing was changed; bring the directory back from a copy, or begin anew with another directory")
}

pub(super) fn unusable(path: &Path, because: &dyn std::fmt::Display) -> Diagnostic {
    Diagnostic::new(Code::CheckpointFailed, format!("checkpoints in {}: {because}", path.display()))
        .hint("look at the disk of the directory (space, rights, who else uses it), then start the job again: it goes on from the last checkpoint")
}

fn failed(path: &Path, error: &CheckpointStoreError) -> Diagnostic {
    unusable(path, error)
}
