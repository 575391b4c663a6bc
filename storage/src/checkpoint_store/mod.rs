//! Where checkpoints go that must outlive their machine: files that are created once, whole and durably, and never changed.
//!
//! A checkpoint's data goes first and its manifest last ([`publish`]): who creates the manifest of a version has committed it, and of two
//! who try exactly one does, whatever both believe of each other.

mod directory;
mod object;

use std::fmt;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::device::FileName;

pub use directory::DirectoryStore;
pub use object::ObjectCheckpointStore;

/// Longest file: what S3 takes in one request.
pub const STORED_FILE_BYTES_MAX: u64 = 5 << 30;
/// Most files that a listing gives.
const LISTED_MAX: usize = 1_000_000;

/// What came of creating a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was made by this call.
    Now,
    /// It was there with the same content: the answer to an earlier attempt was lost, or another one made the same.
    Before,
}

/// Why a store didn't do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointStoreError {
    /// Another one has made this file, with other content.
    #[error("{file}: another one has made it, with other content")]
    Exists {
        /// The file.
        file: FileName,
    },
    /// No such file.
    #[error("{file}: there is no such file")]
    NotFound {
        /// The file.
        file: FileName,
    },
    /// More than a store takes, or than was asked for.
    #[error("{file} has {size_bytes} B, the limit is {limit_bytes} B")]
    TooLarge {
        /// The file.
        file: FileName,
        /// Its length.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// A setting of the store that it can't have.
    #[error("{what}: {because}")]
    Invalid {
        /// The setting.
        what: String,
        /// Why not.
        because: String,
    },
    /// The network, the service or the disk.
    #[error("{what}: {because}")]
    Failed {
        /// What was tried.
        what: String,
        /// What went wrong.
        because: String,
        /// Whether the same may succeed later.
        is_transient: bool,
    },
}

/// Files that are created once and never changed. Every name is below one place that the store was made for.
pub trait CheckpointStore: fmt::Debug + Send + Sync {
    /// Makes a file: durable, whole and seen by all when it returns well. A file that is there is never changed. After
    /// [`CheckpointStoreError::Failed`] the file may be there or not; calling again tells.
    fn create<'a>(&'a self, file: &'a FileName, data: Bytes) -> BoxFuture<'a, Result<Created, CheckpointStoreError>>;

    /// The whole content, if it is not longer than `limit_bytes`.
    fn read<'a>(&'a self, file: &'a FileName, limit_bytes: u64) -> BoxFuture<'a, Result<Bytes, CheckpointStoreError>>;

    /// A part of the content: `len` bytes from `offset` on, fewer at the file's end.
    fn read_part<'a>(&'a self, file: &'a FileName, offset: u64, len: usize)
    -> BoxFuture<'a, Result<Bytes, CheckpointStoreError>>;

    /// All files whose names begin so, with their lengths, by name.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<(FileName, u64)>, CheckpointStoreError>>;

    /// Removes a file; nothing happens when it isn't there.
    fn remove<'a>(&'a self, file: &'a FileName) -> BoxFuture<'a, Result<(), CheckpointStoreError>>;
}

/// Creates files and, when all are there, `manifest`: the checkpoint counts from that moment on. [`CheckpointStoreError::Exists`] of the
/// manifest says that another one has committed this version.
pub async fn publish(
    store: &dyn CheckpointStore,
    files: &[(FileName, Bytes)],
    manifest: (&FileName, Bytes),
) -> Result<Created, CheckpointStoreError> {
    for (file, data) in files {
        store.create(file, data.clone()).await?;
    }
    store.create(manifest.0, manifest.1).await
}

/// A file that is there already: whether it is what was to be made.
async fn compare(store: &dyn CheckpointStore, file: &FileName, data: &Bytes) -> Result<Created, CheckpointStoreError> {
    match store.read(file, data.len() as u64).await {
        Ok(found) if found == *data => Ok(Created::Before),
        Ok(_) | Err(CheckpointStoreError::TooLarge { .. }) => Err(CheckpointStoreError::Exists { file: file.clone() }),
        Err(e) => Err(e),
    }
}

fn check_size(file: &FileName, size_bytes: u64, limit_bytes: u64) -> Result<(), CheckpointStoreError> {
    if size_bytes > limit_bytes {
        return Err(CheckpointStoreError::TooLarge { file: file.clone(), size_bytes, limit_bytes });
    }
    Ok(())
}
