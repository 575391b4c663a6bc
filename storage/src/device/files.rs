//! A directory by plain system calls: each operation is done within `submit`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use rustix::fs::{FlockOperation, flock};

use super::{Completion, Device, DeviceError, DeviceOp, Done, FileName, Token};

const LOCK_FILE: &str = ".lock";
/// Zeros are written in pieces of this size.
const ZEROS_BYTES: usize = 1 << 20;
/// Most files kept open.
const OPEN_FILES_MAX: usize = 256;

/// A directory by `pread`, `pwrite` and `fdatasync`. Holds the directory's lock file while it lives.
#[derive(Debug)]
pub struct FileDevice {
    directory: PathBuf,
    directory_file: File,
    _lock: File,
    files: HashMap<FileName, Arc<File>>,
    next_token: u64,
    done: Vec<Completion>,
}

impl FileDevice {
    /// Opens a directory, makes it where there is none, and locks it.
    pub fn open(directory: &Path) -> Result<Self, DeviceError> {
        let failed = |e: &io::Error| DeviceError::Io { what: format!("open {}", directory.display()), message: e.to_string() };
        fs::create_dir_all(directory).map_err(|e| failed(&e))?;
        let path = directory.join(LOCK_FILE);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|e| failed(&e))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(DeviceError::Locked { directory: directory.display().to_string() }),
            Err(errno) => return Err(failed(&errno.into())),
        }
        let directory_file = File::open(directory).map_err(|e| failed(&e))?;
        Ok(Self {
            directory: directory.to_owned(),
            directory_file,
            _lock: lock,
            files: HashMap::new(),
            next_token: 0,
            done: Vec::new(),
        })
    }

    pub(super) fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    /// Whether no completion waits to be polled.
    pub(super) fn is_idle(&self) -> bool {
        self.done.is_empty()
    }

    pub(super) fn complete(&mut self, token: Token, result: Result<Done, DeviceError>) {
        self.done.push(Completion { token, result });
    }

    fn path(&self, file: &FileName) -> PathBuf {
        self.directory.join(file.as_str())
    }

    /// The file, opened.
    pub(super) fn file(&mut self, file: &FileName) -> io::Result<Arc<File>> {
        if let Some(open) = self.files.get(file) {
            return Ok(Arc::clone(open));
        }
        if self.files.len() >= OPEN_FILES_MAX {
            self.files.clear();
        }
        let open = Arc::new(OpenOptions::new().read(true).write(true).open(self.path(file))?);
        self.files.insert(file.clone(), Arc::clone(&open));
        Ok(open)
    }

    pub(super) fn perform(&mut self, op: &DeviceOp) -> Result<Done, DeviceError> {
        self.attempt(op).map_err(|e| error(op, &e))
    }

    fn attempt(&mut self, op: &DeviceOp) -> io::Result<Done> {
        match op {
            DeviceOp::Create { file } => {
                let open = OpenOptions::new().read(true).write(true).create_new(true).open(self.path(file))?;
                self.files.insert(file.clone(), Arc::new(open));
            }
            DeviceOp::Write { file, offset, data } => self.file(file)?.write_all_at(data, *offset)?,
            DeviceOp::WriteSync { file, offset, data } => {
                let file = self.file(file)?;
                file.write_all_at(data, *offset)?;
                file.sync_data()?;
            }
            DeviceOp::Read { file, offset, len } => {
                let file = self.file(file)?;
                // A damaged length elsewhere must not make us allocate what isn't there.
                let rest = file.metadata()?.len().saturating_sub(*offset);
                let mut data = vec![0; usize::try_from(rest).unwrap_or(usize::MAX).min(*len)];
                let mut filled = 0;
                while filled < data.len() {
                    match file.read_at(&mut data[filled..], offset + filled as u64) {
                        Ok(0) => break,
                        Ok(n) => filled += n,
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) => return Err(e),
                    }
                }
                data.truncate(filled);
                return Ok(Done::Data(data));
            }
            DeviceOp::Sync { file } => self.file(file)?.sync_data()?,
            DeviceOp::SyncDir => self.directory_file.sync_all()?,
            DeviceOp::Allocate { file, len } => {
                let file = self.file(file)?;
                let mut at = file.metadata()?.len();
                let zeros = vec![0; ZEROS_BYTES.min(usize::try_from(len.saturating_sub(at)).unwrap_or(ZEROS_BYTES))];
                while at < *len {
                    let piece = zeros.len().min(usize::try_from(len - at).unwrap_or(usize::MAX));
                    file.write_all_at(&zeros[..piece], at)?;
                    at += piece as u64;
                }
            }
            DeviceOp::Truncate { file, len } => self.file(file)?.set_len(*len)?,
            DeviceOp::Rename { from, to } => {
                fs::rename(self.path(from), self.path(to))?;
                self.files.remove(to);
                if let Some(open) = self.files.remove(from) {
                    self.files.insert(to.clone(), open);
                }
            }
            DeviceOp::Remove { file } => {
                self.files.remove(file);
                fs::remove_file(self.path(file))?;
            }
            DeviceOp::List => {
                let mut files = Vec::new();
                for entry in fs::read_dir(&self.directory)? {
                    let entry = entry?;
                    // Whatever has a name we never give is not ours.
                    if let Some(name) = entry.file_name().to_str().and_then(FileName::new)
                        && entry.file_type()?.is_file()
                    {
                        files.push((name, entry.metadata()?.len()));
                    }
                }
                files.sort();
                return Ok(Done::Files(files));
            }
        }
        Ok(Done::Nothing)
    }
}

/// The error of an operation, from the system's.
pub(super) fn error(op: &DeviceOp, error: &io::Error) -> DeviceError {
    let file = op.file().cloned();
    match (error.kind(), file) {
        (io::ErrorKind::NotFound, Some(file)) => DeviceError::NotFound { file },
        (io::ErrorKind::AlreadyExists, Some(file)) => DeviceError::Exists { file },
        (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, Some(file)) => DeviceError::NoSpace { file },
        _ => DeviceError::Io { what: op.describe(), message: error.to_string() },
    }
}

impl Device for FileDevice {
    fn submit(&mut self, op: DeviceOp) -> Token {
        let token = self.token();
        let result = self.perform(&op);
        self.complete(token, result);
        token
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }

    fn wait(&mut self, _timeout: Duration) {}
}
