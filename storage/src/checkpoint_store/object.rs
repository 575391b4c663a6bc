//! An S3-compatible service, or memory, as a checkpoint store.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use super::{CheckpointStore, CheckpointStoreError, Created, LISTED_MAX, STORED_FILE_BYTES_MAX, check_size, compare};
use crate::device::FileName;

/// Objects below one prefix of a bucket. Needs conditional writes (`If-None-Match: *`) of the service.
#[derive(Clone, Debug)]
pub struct ObjectCheckpointStore {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl ObjectCheckpointStore {
    /// Objects of any store below a prefix.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        Self { store, prefix: Path::from(prefix) }
    }

    /// Memory: for tests.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::new(Arc::new(InMemory::new()), "")
    }

    /// A bucket of S3 or of a service like it. `url`: `s3://bucket/prefix`. `settings` by the names that the AWS tools give them
    /// (`aws_access_key_id`, `aws_endpoint`, `aws_allow_http`, …); what isn't set comes from the environment.
    pub fn s3<'a>(url: &str, settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, CheckpointStoreError> {
        let invalid = |what: &str, because: String| CheckpointStoreError::Invalid { what: what.to_owned(), because };
        let place = url.strip_prefix("s3://").ok_or_else(|| invalid(url, "it doesn't begin with s3://".to_owned()))?;
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        if bucket.is_empty() {
            return Err(invalid(url, "it names no bucket".to_owned()));
        }
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_conditional_put(S3ConditionalPut::ETagMatch);
        for (name, value) in settings {
            let key: AmazonS3ConfigKey = name.parse().map_err(|e: object_store::Error| invalid(name, e.to_string()))?;
            builder = builder.with_config(key, value);
        }
        let store = builder.build().map_err(|e| invalid(url, e.to_string()))?;
        Ok(Self::new(Arc::new(store), prefix))
    }

    fn path(&self, file: &FileName) -> Path {
        self.prefix.clone().join(file.as_str())
    }

    fn failed(what: &str, file: &FileName, error: &object_store::Error) -> CheckpointStoreError {
        match error {
            object_store::Error::NotFound { .. } => CheckpointStoreError::NotFound { file: file.clone() },
            error => CheckpointStoreError::Failed {
                what: format!("{what} {file}"),
                because: error.to_string(),
                // The client has tried again what it may; what is left is the service's own word, or no answer.
                is_transient: matches!(error, object_store::Error::Generic { .. }),
            },
        }
    }
}

impl CheckpointStore for ObjectCheckpointStore {
    fn create<'a>(&'a self, file: &'a FileName, data: Bytes) -> BoxFuture<'a, Result<Created, CheckpointStoreError>> {
        async move {
            check_size(file, data.len() as u64, STORED_FILE_BYTES_MAX)?;
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.store.put_opts(&self.path(file), PutPayload::from_bytes(data.clone()), options).await {
                Ok(_) => Ok(Created::Now),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    compare(self, file, &data).await
                }
                Err(e) => Err(Self::failed("create", file, &e)),
            }
        }
        .boxed()
    }

    fn read<'a>(&'a self, file: &'a FileName, limit_bytes: u64) -> BoxFuture<'a, Result<Bytes, CheckpointStoreError>> {
        async move {
            let found = self.store.get_opts(&self.path(file), GetOptions::default()).await;
            let found = found.map_err(|e| Self::failed("read", file, &e))?;
            check_size(file, found.meta.size, limit_bytes)?;
            found.bytes().await.map_err(|e| Self::failed("read", file, &e))
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
            let path = self.path(file);
            let size = self.store.head(&path).await.map_err(|e| Self::failed("read", file, &e))?.size;
            let end = offset.saturating_add(len as u64).min(size);
            if offset >= end {
                return Ok(Bytes::new());
            }
            let options = GetOptions { range: Some(GetRange::Bounded(offset..end)), ..GetOptions::default() };
            let found = self.store.get_opts(&path, options).await.map_err(|e| Self::failed("read", file, &e))?;
            found.bytes().await.map_err(|e| Self::failed("read", file, &e))
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<(FileName, u64)>, CheckpointStoreError>> {
        async move {
            let failed = |because: String| CheckpointStoreError::Failed {
                what: format!("list {}", self.prefix),
                because,
                is_transient: true,
            };
            let mut files = Vec::new();
            let mut found = self.store.list((!self.prefix.as_ref().is_empty()).then_some(&self.prefix));
            while let Some(object) = found.try_next().await.map_err(|e| failed(e.to_string()))? {
                let mut parts = object.location.prefix_match(&self.prefix).into_iter().flatten();
                // Only what is directly below the prefix is ours.
                if let (Some(name), None) = (parts.next(), parts.next())
                    && let Some(name) = FileName::new(name.as_ref()).filter(|n| n.as_str().starts_with(prefix))
                {
                    files.push((name, object.size));
                }
                if files.len() > LISTED_MAX {
                    return Err(failed(format!("more than {LISTED_MAX} files")));
                }
            }
            files.sort();
            Ok(files)
        }
        .boxed()
    }

    fn remove<'a>(&'a self, file: &'a FileName) -> BoxFuture<'a, Result<(), CheckpointStoreError>> {
        async move {
            match self.store.delete(&self.path(file)).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(e) => Err(Self::failed("remove", file, &e)),
            }
        }
        .boxed()
    }
}
