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
    /// Sinks have shown all that is in it.
    pub(super) has_shown: bool,
    definition: String,
    _lock: File,
}

/// Which checkpoint a job with so many cores and vnodes would go on from; `None`: there is none yet. Refuses that of another job. Neither locks
/// nor changes anything.
pub fn look(options: &CheckpointOptions, cores: usize, max_parallelism: u32) -> Result<Option<Found>> {
    if !options.directory.is_dir() {
        return Ok(None);
    }
    let store = DirectoryStore::open(&options.directory).map_err(|e| failed(&options.directory, &e))?;
    let manifest = newest(&options.directory, &store)?;
    if let Some(manifest) = &manifest {
        manifest.check(options, cores, max_parallelism)?;
    }
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
            found.check(options, cores, max_parallelism)?;
        }
        let has_shown = match &found {
            Some(found) => block_on(store.list(shown_name(found.version).as_str())).map_err(|e| failed(&path, &e))?.len() == 1,
            None => false,
        };
        Ok(Self { path, store, job, found, has_shown, definition, _lock: lock })
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
        let bytes = block_on(self.store.read(&file, FILE_BYTES_MAX)).map_err(|e| match e {
            CheckpointStoreError::NotFound { .. } => damaged(&self.path, file.as_str(), "it is not there"),
            e => failed(&self.path, &e),
        })?;
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

    /// Notes that sinks have shown all that is in a checkpoint: from now on it may be taken away.
    pub(super) fn note_shown(&self, version: u64) -> Result<()> {
        let bytes = encode(&version).map_err(|because| unusable(&self.path, &because))?;
        block_on(self.store.create(&shown_name(version), Bytes::from(bytes))).map(drop).map_err(|e| failed(&self.path, &e))
    }

    /// Removes manifests and notes that are older than those that are kept. What fails is tried again the next time.
    pub(super) fn clean(&self, newest: u64, cores: &[u64]) {
        let Ok(files) = block_on(self.store.list("v")) else { return };
        for (file, _) in files {
            let Some((version, kind)) = parse_name(file.as_str()) else { continue };
            let oldest = match kind {
                Kind::Manifest | Kind::Shown => newest,
                Kind::Note(core) => cores.get(usize::from(core)).copied().unwrap_or(newest),
            };
            if version + (KEPT as u64) <= oldest
                && let Err(error) = block_on(self.store.remove(&file))
            {
                tracing::warn!(%file, %error, "an old checkpoint's file can't be removed");
            }
        }
    }
}

impl Manifest {
    /// Refuses the checkpoint of another job.
    fn check(&self, options: &CheckpointOptions, cores: usize, max_parallelism: u32) -> Result<()> {
        let differs = |what: &str| {
            let message = format!("the checkpoint in {} is of another job: {what}", options.directory.display());
            Err(Diagnostic::new(Code::CheckpointMismatch, message)
                .hint("go on with the job as it was, or name another directory and begin from the start of its input"))
        };
        if self.definition != fingerprint(&options.definition) {
            return differs("its statements, variables or settings are not the same");
        }
        let had = self.cores.len();
        if had != cores {
            return differs(&format!("it had {had} core{}, not {cores} (`--cores {had}`)", if had == 1 { "" } else { "s" }));
        }
        if self.max_parallelism != max_parallelism {
            return differs(&format!("its maxParallelism was {}, not {max_parallelism}", self.max_parallelism));
        }
        Ok(())
    }
}

fn job_name(path: &Path, store: &DirectoryStore) -> Result<String> {
    let file = name(JOB_FILE);
    match block_on(store.read(&file, FILE_BYTES_MAX)) {
        Ok(bytes) => decode(&bytes).map_err(|because| damaged(path, JOB_FILE, &because)),
        Err(CheckpointStoreError::NotFound { .. }) => {
            let is_foreign =
                fs::read_dir(path).map_err(|e| unusable(path, &e))?.flatten().any(|entry| entry.file_name() != LOCK_FILE);
            if !block_on(store.list("v")).map_err(|e| failed(path, &e))?.is_empty() {
                return Err(damaged(path, JOB_FILE, "it is not there"));
            }
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
    let (mut manifest, mut shown) = (None, 0);
    for (file, _) in &files {
        match parse_name(file.as_str()) {
            Some((version, Kind::Manifest)) => manifest = manifest.max(Some((version, file))),
            Some((version, Kind::Shown)) => shown = shown.max(version),
            Some((_, Kind::Note(_))) | None => {}
        }
    }
    if manifest.map_or(0, |(version, _)| version) < shown {
        return Err(damaged(path, manifest_name(shown).as_str(), "it is not there, and sinks have shown what was in it"));
    }
    let Some((version, file)) = manifest else { return Ok(None) };
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

fn shown_name(version: u64) -> FileName {
    name(&format!("v{version:020}-shown.json"))
}

/// What a file of a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Manifest,
    /// Of a core.
    Note(u16),
    /// That sinks have shown what the checkpoint has.
    Shown,
}

/// The version, and what it is.
fn parse_name(file: &str) -> Option<(u64, Kind)> {
    let stem = file.strip_prefix('v')?.strip_suffix(".json")?;
    let (version, kind) = match stem.split_once('-') {
        None => (stem, Kind::Manifest),
        Some((version, "shown")) => (version, Kind::Shown),
        Some((version, of)) => (version, Kind::Note(of.strip_prefix("core-")?.parse().ok()?)),
    };
    Some((version.parse().ok()?, kind))
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
