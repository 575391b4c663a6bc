//! The worker's folder on its volume: one user at a time, and the mark that a job has ended.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tiderace_crds::admin::{StatusReply, WorkerState};
use tiderace_engine::error::{Code, Diagnostic};

const LOCK: &str = "lock";
const ENDED: &str = "ended.json";
const ENDED_BYTES_MAX: u64 = 64 << 10;
/// How long to wait for a process that is just ending.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// The folder, locked as long as this lives.
#[derive(Debug)]
pub(crate) struct WorkDirectory {
    path: PathBuf,
    /// The lock ends with the file's handle.
    _lock: File,
}

/// That the job came to an end in a deploy epoch: `ended.json`. A start in the same epoch doesn't run it again.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
struct Ended {
    /// Version of this file's form.
    version: u32,
    /// The last status, with job, epoch and state.
    status: StatusReply,
}

const ENDED_VERSION: u32 = 1;

impl WorkDirectory {
    /// Makes the folder if it isn't there, and locks it.
    pub fn open(path: &Path) -> Result<Self, Diagnostic> {
        Self::open_within(path, LOCK_PATIENCE)
    }

    fn open_within(path: &Path, patience: Duration) -> Result<Self, Diagnostic> {
        let unusable = |error: io::Error| {
            Diagnostic::new(Code::WorkDirectory, format!("the working directory {} can't be used: {error}", path.display()))
                .hint("the process must own it, or the pod's fsGroup must be able to write it")
        };
        fs::create_dir_all(path).map_err(unusable)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK)).map_err(unusable)?;
        let deadline = Instant::now() + patience;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { path: path.to_owned(), _lock: lock }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
                Err(TryLockError::WouldBlock) => {
                    return Err(unusable(io::Error::other("another process works in it"))
                        .hint("it has one user at a time; the lock goes away with the process that holds it"));
                }
                Err(TryLockError::Error(error)) => return Err(unusable(error)),
            }
        }
    }

    /// The last status of `job`, if it came to its end in `epoch`.
    pub fn ended(&self, job: &str, epoch: u64) -> Option<StatusReply> {
        let mut text = Vec::new();
        File::open(self.path.join(ENDED)).ok()?.take(ENDED_BYTES_MAX).read_to_end(&mut text).ok()?;
        let ended: Ended = serde_json::from_slice(&text)
            .map_err(|error| tracing::warn!(%error, "{ENDED} can't be read, the job is run"))
            .ok()?;
        let is_end = matches!(ended.status.state, WorkerState::Finished | WorkerState::Stopped);
        let is_this = ended.version == ENDED_VERSION && ended.status.job == job && ended.status.epoch == epoch;
        (is_end && is_this).then_some(ended.status)
    }

    /// Writes down that the job ended so; durable when it returns.
    pub fn set_ended(&self, status: &StatusReply) -> io::Result<()> {
        let text = serde_json::to_vec(&Ended { version: ENDED_VERSION, status: status.clone() }).map_err(io::Error::other)?;
        replace_file(&self.path, ENDED, &text)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Writes a file of a folder as a whole: a crash leaves the old one or the new one. Durable when it returns.
pub(crate) fn replace_file(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, folder.join(name))?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn status(epoch: u64, state: WorkerState) -> StatusReply {
        StatusReply {
            job: "orders".into(),
            epoch,
            state,
            plan_hash: None,
            cores: 1,
            rows_in: 7,
            rows_out: 7,
            rows_dropped: 0,
            state_bytes: 0,
            state_budget_bytes: 1,
            lag_ms: None,
            watermark_us: None,
            started_ms: 0,
            error: None,
            operation_id: None,
        }
    }

    #[test]
    fn the_end_holds_for_its_job_and_epoch_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let work = WorkDirectory::open(&path).unwrap();
        assert_eq!(work.ended("orders", 3), None);
        work.set_ended(&status(3, WorkerState::Finished)).unwrap();
        drop(work);
        let work = WorkDirectory::open(&path).unwrap();
        assert_eq!(work.ended("orders", 3).unwrap().rows_in, 7);
        assert_eq!(work.ended("orders", 4), None);
        assert_eq!(work.ended("others", 3), None);
        work.set_ended(&status(4, WorkerState::Running)).unwrap();
        assert_eq!(work.ended("orders", 4), None, "what runs has not ended");
        fs::write(path.join(ENDED), "{").unwrap();
        assert_eq!(work.ended("orders", 3), None, "a damaged mark runs the job again");
    }

    #[test]
    fn it_has_one_user() {
        let folder = tempfile::tempdir().unwrap();
        let first = WorkDirectory::open(folder.path()).unwrap();
        let second = WorkDirectory::open_within(folder.path(), Duration::ZERO).unwrap_err();
        assert!(second.code == Code::WorkDirectory && second.message.contains("another process"), "{second}");
        drop(first);
        WorkDirectory::open(folder.path()).unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(WorkDirectory::open(&file).unwrap_err().code, Code::WorkDirectory);
    }
}
