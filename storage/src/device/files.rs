//! A directory by plain system calls: each operation is done within `submit`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use rustix::fs::{AtFlags, FlockOperation, flock, unlinkat};

use super::direct;
use super::{Completion, Device, DeviceError, DeviceOp, Done, FileName, Token};
use crate::raw::Buffer;

const LOCK_FILE: &str = ".lock";
/// Zeros are written in pieces of this size.
const ZEROS_BYTES: usize = 1 << 20;
/// Most files kept open.
const OPEN_FILES_MAX: usize = 256;

/// A directory by `pread`, `pwrite` and `fdatasync`. Holds the directory's lock file while it lives.
#[derive(Debug)]
pub struct FileDevice {
    directory: PathBuf,
    directory_file: Arc<File>,
    _lock: File,
    files: HashMap<FileName, Arc<File>>,
    /// The same files, opened to go around the system's cache.
    direct_files: HashMap<FileName, Arc<File>>,
    /// What offsets and lengths must be multiples of to go around it; nothing does without.
    direct_alignment_bytes: Option<usize>,
    next_token: u64,
    done: Vec<Completion>,
}

/// A file for one operation.
#[derive(Clone, Debug)]
pub(super) struct OpenFile {
    /// Through the system's cache.
    pub(super) file: Arc<File>,
    /// Around it, if the operation should go there first.
    pub(super) direct: Option<Arc<File>>,
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
        let directory_file = Arc::new(File::open(directory).map_err(|e| failed(&e))?);
        Ok(Self {
            directory: directory.to_owned(),
            directory_file,
            _lock: lock,
            files: HashMap::new(),
            direct_files: HashMap::new(),
            direct_alignment_bytes: None,
            next_token: 0,
            done: Vec::new(),
        })
    }

    /// Lets large aligned reads and writes go around the system's cache: what they must be multiples of, or why none can.
    pub(super) fn allow_direct(&mut self) -> Result<usize, String> {
        let found = direct::probe(&self.directory);
        self.direct_alignment_bytes = found.as_ref().ok().copied();
        found
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
        let open = Arc::new(OpenOptions::new().read(true).write(true).open(self.path(file))?);
        keep_open(&mut self.files, file, Arc::clone(&open));
        Ok(open)
    }

    fn direct_file(&mut self, file: &FileName) -> io::Result<Arc<File>> {
        if let Some(open) = self.direct_files.get(file) {
            return Ok(Arc::clone(open));
        }
        let open = Arc::new(direct::open(&self.path(file))?);
        keep_open(&mut self.direct_files, file, Arc::clone(&open));
        Ok(open)
    }

    /// The file of a read, write or sync, opened in the way that suits it; the directory of its sync and of a removal. What is to be removed
    /// isn't known any more.
    pub(super) fn open_for(&mut self, op: &DeviceOp) -> io::Result<OpenFile> {
        let (name, offset, len) = match op {
            DeviceOp::SyncDir => return Ok(OpenFile { file: Arc::clone(&self.directory_file), direct: None }),
            DeviceOp::Remove { file } => {
                self.files.remove(file);
                self.direct_files.remove(file);
                return Ok(OpenFile { file: Arc::clone(&self.directory_file), direct: None });
            }
            DeviceOp::Write { file, offset, data } | DeviceOp::WriteSync { file, offset, data } => (file, *offset, data.len()),
            DeviceOp::Read { file, offset, len } => (file, *offset, *len),
            DeviceOp::Sync { file } => (file, 0, 0),
            _ => unreachable!("asked for operations on open files alone"),
        };
        let file = self.file(name)?;
        let mut direct = None;
        if self.direct_alignment_bytes.is_some_and(|alignment| direct::suits(alignment, offset, len)) {
            // At its end a file isn't aligned.
            let is_inside = !matches!(op, DeviceOp::Read { .. }) || file.metadata()?.len() >= offset.saturating_add(len as u64);
            // Without an error: a file for which it isn't possible is reached through the cache.
            direct = if is_inside { self.direct_file(name).ok() } else { None };
        }
        Ok(OpenFile { file, direct })
    }

    pub(super) fn perform(&mut self, op: &DeviceOp) -> Result<Done, DeviceError> {
        self.attempt(op).map_err(|e| error(op, &e))
    }

    fn attempt(&mut self, op: &DeviceOp) -> io::Result<Done> {
        match op {
            DeviceOp::Create { file } => {
                let open = OpenOptions::new().read(true).write(true).create_new(true).open(self.path(file))?;
                keep_open(&mut self.files, file, Arc::new(open));
            }
            DeviceOp::Write { .. }
            | DeviceOp::WriteSync { .. }
            | DeviceOp::Read { .. }
            | DeviceOp::Sync { .. }
            | DeviceOp::SyncDir
            | DeviceOp::Remove { .. } => return perform_on(&self.open_for(op)?, op),
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
                for files in [&mut self.files, &mut self.direct_files] {
                    files.remove(to);
                    if let Some(open) = files.remove(from) {
                        files.insert(to.clone(), open);
                    }
                }
            }
            DeviceOp::List => {
                let mut files = Vec::new();
                for entry in fs::read_dir(&self.directory)? {
                    let entry = entry?;
                    // Whatever has a name we never give is not ours.
                    if let Some(name) = entry.file_name().to_str().and_then(FileName::new)
                        && let Some(len) = listed_bytes(&entry)?
                    {
                        files.push((name, len));
                    }
                }
                files.sort();
                return Ok(Done::Files(files));
            }
        }
        Ok(Done::Nothing)
    }
}

/// How long what a directory names is; `None` when it has gone since. A link is as long as what it leads to. What is no file, or leads to
/// nothing, is told as empty: whoever needs what should be there gets an error when it reads it, and never takes it for absent.
pub(super) fn listed_bytes(entry: &fs::DirEntry) -> io::Result<Option<u64>> {
    match fs::metadata(entry.path()) {
        Ok(metadata) => Ok(Some(if metadata.is_file() { metadata.len() } else { 0 })),
        Err(_) => match entry.metadata() {
            Ok(_) => Ok(Some(0)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        },
    }
}

fn keep_open(files: &mut HashMap<FileName, Arc<File>>, name: &FileName, file: Arc<File>) {
    if files.len() >= OPEN_FILES_MAX {
        files.clear();
    }
    files.insert(name.clone(), file);
}

/// Does an operation for which [`FileDevice::open_for`] has opened a file. What can't go around the cache after all goes through it.
pub(super) fn perform_on(open: &OpenFile, op: &DeviceOp) -> io::Result<Done> {
    match op {
        DeviceOp::Write { offset, data, .. } => write_all(open, data, *offset)?,
        DeviceOp::WriteSync { offset, data, .. } => {
            write_all(open, data, *offset)?;
            open.file.sync_data()?;
        }
        DeviceOp::Read { offset, len, .. } => return read_up_to(open, *offset, *len).map(Done::Data),
        DeviceOp::Sync { .. } => open.file.sync_data()?,
        DeviceOp::SyncDir => open.file.sync_all()?,
        DeviceOp::Remove { file } => unlinkat(&*open.file, file.as_str(), AtFlags::empty())?,
        _ => unreachable!("asked for operations on open files alone"),
    }
    Ok(Done::Nothing)
}

fn write_all(open: &OpenFile, data: &[u8], offset: u64) -> io::Result<()> {
    if let Some(direct) = &open.direct {
        let mut buffer = Buffer::for_direct_io(data.len());
        buffer.bytes_mut()[..data.len()].copy_from_slice(data);
        match direct.write_all_at(&buffer.bytes()[..data.len()], offset) {
            // What is left of a short write isn't aligned any more.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
            result => return result,
        }
    }
    open.file.write_all_at(data, offset)
}

fn read_up_to(open: &OpenFile, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    if let Some(direct) = &open.direct {
        let mut buffer = Buffer::for_direct_io(len);
        match read_exactly(direct, &mut buffer.bytes_mut()[..len], offset) {
            // The file has become shorter meanwhile.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
            Err(e) => return Err(e),
            Ok(filled) => return Ok(buffer.bytes()[..filled].to_vec()),
        }
    }
    // A damaged length elsewhere must not make us allocate what isn't there.
    let rest = usize::try_from(open.file.metadata()?.len().saturating_sub(offset)).unwrap_or(usize::MAX);
    let mut data = vec![0; rest.min(len)];
    let filled = read_exactly(&open.file, &mut data, offset)?;
    data.truncate(filled);
    Ok(data)
}

/// Reads until the memory is full or the file ends; how much.
fn read_exactly(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match file.read_at(&mut into[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
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

    fn write_sync(&mut self, file: FileName, offset: u64, data: Vec<u8>) -> (Result<(), DeviceError>, Vec<u8>) {
        let op = DeviceOp::WriteSync { file, offset, data };
        let result = self.perform(&op).map(|_| ());
        let DeviceOp::WriteSync { data, .. } = op else { unreachable!("it was made so a moment ago") };
        (result, data)
    }
}
