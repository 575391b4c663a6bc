//! A directory of a file system as a checkpoint store: of one machine, or shared by several (`ReadWriteMany`).
//!
//! `object_store`'s local file system isn't used: it doesn't sync, so what it has made may be gone after a crash.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::{CheckpointStore, CheckpointStoreError, Created, LISTED_MAX, STORED_FILE_BYTES_MAX, check_size, compare};
use crate::device::FileName;

/// A directory. Files that are being written have names that begin with a dot, and are removed when a store is opened a day later.
#[derive(Debug)]
pub struct DirectoryStore {
    directory: PathBuf,
    temporary: AtomicU64,
}

/// Age at which what an interrupted `create` left is removed.
const LEFTOVER_SECONDS: u64 = 86_400;

impl DirectoryStore {
    /// Opens a directory, makes it where there is none.
    pub fn open(directory: &Path) -> Result<Self, CheckpointStoreError> {
        let store = Self { directory: directory.to_owned(), temporary: AtomicU64::new(0) };
        let failed = |e: io::Error| failed("open", directory, &e);
        fs::create_dir_all(directory).map_err(failed)?;
        for entry in fs::read_dir(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let is_ours = entry.file_name().to_str().is_some_and(|n| n.starts_with(".creating-"));
            let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
            if is_ours && age.is_some_and(|age| age.as_secs() > LEFTOVER_SECONDS) {
                fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(store)
    }

    fn path(&self, file: &FileName) -> PathBuf {
        self.directory.join(file.as_str())
    }

    /// Whether the file was made now; it was there else.
    fn create_file(&self, file: &FileName, data: &[u8]) -> io::Result<bool> {
        let path = self.path(file);
        if path.try_exists()? {
            return Ok(false);
        }
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self.directory.join(format!(".creating-{}-{number}-{file}", std::process::id()));
        let result = self.link(&temporary, &path, data);
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound && result.is_ok() => Err(e),
            _ => result,
        }
    }

    fn link(&self, temporary: &Path, path: &Path, data: &[u8]) -> io::Result<bool> {
        // What a process of the same number left once is overwritten: nobody else has this name.
        let mut open = OpenOptions::new().write(true).create(true).truncate(true).open(temporary)?;
        open.write_all(data)?;
        open.sync_all()?;
        // Of several who link a name one succeeds, and the file is whole by then.
        let made = match fs::hard_link(temporary, path) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(e),
        };
        File::open(&self.directory)?.sync_all()?;
        Ok(made)
    }

    fn read_file(&self, file: &FileName, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut open = File::open(self.path(file))?;
        if offset >= open.metadata()?.len() {
            return Ok(Vec::new());
        }
        open.seek(SeekFrom::Start(offset))?;
        let mut data = Vec::new();
        open.take(len).read_to_end(&mut data)?;
        Ok(data)
    }

    fn list_files(&self, prefix: &str) -> io::Result<Vec<(FileName, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().and_then(FileName::new) else { continue };
            if !name.as_str().starts_with(prefix) {
                continue;
            }
            // A link is what it leads to: a file that was moved elsewhere is still there.
            match fs::metadata(entry.path()) {
                Ok(metadata) if metadata.is_file() => files.push((name, metadata.len())),
                Ok(_) => {}
                // Removed since it was named; a link that leads nowhere is an error.
                Err(e) if e.kind() == io::ErrorKind::NotFound && !entry.file_type()?.is_symlink() => {}
                Err(e) => return Err(e),
            }
            if files.len() > LISTED_MAX {
                return Err(io::Error::other(format!("more than {LISTED_MAX} files")));
            }
        }
        files.sort();
        Ok(files)
    }

    fn failed(&self, what: &str, file: &FileName, error: &io::Error) -> CheckpointStoreError {
        match error.kind() {
            io::ErrorKind::NotFound => CheckpointStoreError::NotFound { file: file.clone() },
            _ => failed(what, &self.path(file), error),
        }
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> CheckpointStoreError {
    let is_transient = matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::TimedOut | io::ErrorKind::StaleNetworkFileHandle | io::ErrorKind::StorageFull
    );
    CheckpointStoreError::Failed { what: format!("{what} {}", path.display()), because: error.to_string(), is_transient }
}

/// Runs what blocks where it may: on tokio's threads for that, if there are any.
fn block<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    match tokio::runtime::Handle::try_current().map(|h| h.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(f),
        _ => f(),
    }
}

impl CheckpointStore for DirectoryStore {
    fn create<'a>(&'a self, file: &'a FileName, data: Bytes) -> BoxFuture<'a, Result<Created, CheckpointStoreError>> {
        async move {
            check_size(file, data.len() as u64, STORED_FILE_BYTES_MAX)?;
            match block(|| self.create_file(file, &data)).map_err(|e| self.failed("create", file, &e))? {
                true => Ok(Created::Now),
                false => compare(self, file, &data).await,
            }
        }
        .boxed()
    }

    fn read<'a>(&'a self, file: &'a FileName, limit_bytes: u64) -> BoxFuture<'a, Result<Bytes, CheckpointStoreError>> {
        async move {
            let len = fs::metadata(self.path(file)).map_err(|e| self.failed("read", file, &e))?.len();
            check_size(file, len, limit_bytes)?;
            block(|| self.read_file(file, 0, len)).map(Bytes::from).map_err(|e| self.failed("read", file, &e))
        }
        .boxed()
    }

    fn read_part<'a>(
        &'a self,
        file: &'a FileName,
        offset: u64,
        len: usize,
    ) -> BoxFuture<'a, Result<Bytes, CheckpointStoreError>> {
        async move {
            let data = block(|| self.read_file(file, offset, len as u64));
            data.map(Bytes::from).map_err(|e| self.failed("read", file, &e))
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<(FileName, u64)>, CheckpointStoreError>> {
        async move { block(|| self.list_files(prefix)).map_err(|e| failed("list", &self.directory, &e)) }.boxed()
    }

    fn remove<'a>(&'a self, file: &'a FileName) -> BoxFuture<'a, Result<(), CheckpointStoreError>> {
        async move {
            match block(|| fs::remove_file(self.path(file))) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.failed("remove", file, &e)),
                _ => Ok(()),
            }
        }
        .boxed()
    }
}
