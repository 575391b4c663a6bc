//! What every checkpoint store promises, on a directory and in memory; and on an S3-compatible service that `TIDERACE_TEST_S3_URL`
//! (`s3://bucket/prefix`) and the usual `AWS_…` variables name.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use bytes::Bytes;
use tiderace_storage::{
    CheckpointStore, CheckpointStoreError, Created, DirectoryStore, FileName, ObjectCheckpointStore, publish,
};

fn name(text: &str) -> FileName {
    FileName::new(text).unwrap()
}

async fn conforms(store: Arc<dyn CheckpointStore>) {
    let (one, two) = (name("shard-1.data"), name("manifest-1"));
    assert_eq!(store.list("").await.unwrap(), []);
    assert_eq!(store.create(&one, Bytes::from_static(b"0123456789")).await.unwrap(), Created::Now);
    assert_eq!(store.create(&one, Bytes::from_static(b"0123456789")).await.unwrap(), Created::Before);
    for other in [&b"012345678"[..], b"0123456789x", b"x123456789"] {
        let refused = store.create(&one, Bytes::from_static(other)).await;
        assert!(matches!(&refused, Err(CheckpointStoreError::Exists { file }) if *file == one), "{refused:?}");
    }
    assert_eq!(store.read(&one, 10).await.unwrap(), "0123456789");
    let too_large = store.read(&one, 9).await;
    assert!(matches!(too_large, Err(CheckpointStoreError::TooLarge { size_bytes: 10, limit_bytes: 9, .. })), "{too_large:?}");
    assert_eq!(store.read_part(&one, 3, 4).await.unwrap(), "3456");
    assert_eq!(store.read_part(&one, 8, 100).await.unwrap(), "89");
    assert_eq!(store.read_part(&one, 10, 5).await.unwrap(), "");
    assert_eq!(store.read_part(&one, u64::MAX / 4, 5).await.unwrap(), "");
    assert!(matches!(store.read(&two, 10).await, Err(CheckpointStoreError::NotFound { .. })));
    assert!(matches!(store.read_part(&two, 0, 10).await, Err(CheckpointStoreError::NotFound { .. })));
    assert_eq!(store.create(&two, Bytes::new()).await.unwrap(), Created::Now);
    assert_eq!(store.list("").await.unwrap(), [(two.clone(), 0), (one.clone(), 10)]);
    assert_eq!(store.list("shard-").await.unwrap(), [(one.clone(), 10)]);
    store.remove(&two).await.unwrap();
    store.remove(&two).await.unwrap();
    assert_eq!(store.list("").await.unwrap(), [(one.clone(), 10)]);
    assert_eq!(store.create(&two, Bytes::from_static(b"again")).await.unwrap(), Created::Now);
    store.remove(&one).await.unwrap();
    store.remove(&two).await.unwrap();
}

/// Of many who commit a version one does, and all others are told so.
async fn fences(store: Arc<dyn CheckpointStore>) {
    for version in 0..10 {
        let tasks: Vec<_> = (0..8)
            .map(|writer: u32| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    let data = name(&format!("data-{version}-{writer}"));
                    let manifest = name(&format!("manifest-{version}"));
                    let text = Bytes::from(format!("{manifest} names {data}"));
                    let files = [(data.clone(), Bytes::from(vec![writer as u8; 5000]))];
                    (data, text.clone(), publish(&*store, &files, (&manifest, text)).await)
                })
            })
            .collect();
        let mut committed = Vec::new();
        for task in tasks {
            let (data, text, result) = task.await.unwrap();
            match result {
                Ok(Created::Now) => committed.push((data, text)),
                Err(CheckpointStoreError::Exists { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(committed.len(), 1);
        assert_eq!(store.read(&name(&format!("manifest-{version}")), 1000).await.unwrap(), committed[0].1);
        assert_eq!(store.read(&committed[0].0, 10_000).await.unwrap().len(), 5000);
    }
    for (file, _) in store.list("").await.unwrap() {
        store.remove(&file).await.unwrap();
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap().block_on(test);
}

#[test]
fn a_directory_keeps_the_promises_of_a_store() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(DirectoryStore::open(&directory.path().join("made/by/it")).unwrap());
    run(conforms(store.clone()));
    run(fences(store));
    // Nothing is left of what was written on the way; and what others put there isn't ours.
    let files = std::fs::read_dir(directory.path().join("made/by/it")).unwrap().count();
    assert_eq!(files, 0);
}

#[test]
fn a_file_that_was_moved_and_linked_is_listed_and_a_link_that_leads_nowhere_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(&directory.path().join("store")).unwrap();
    run(async {
        store.create(&name("v1.json"), Bytes::from_static(b"one")).await.unwrap();
        let (here, there) = (directory.path().join("store/v1.json"), directory.path().join("elsewhere"));
        std::fs::rename(&here, &there).unwrap();
        std::os::unix::fs::symlink(&there, &here).unwrap();
        assert_eq!(store.list("v").await.unwrap(), [(name("v1.json"), 3)]);
        std::fs::remove_file(&there).unwrap();
        assert!(store.list("v").await.is_err(), "an older file would pass for the newest");
    });
}

#[test]
fn memory_keeps_the_promises_of_a_store() {
    run(conforms(Arc::new(ObjectCheckpointStore::in_memory())));
    run(fences(Arc::new(ObjectCheckpointStore::in_memory())));
    let bucket = Arc::new(object_store::memory::InMemory::new());
    run(async {
        let one = ObjectCheckpointStore::new(bucket.clone(), "jobs/one");
        let two = ObjectCheckpointStore::new(bucket, "jobs/one/two");
        two.create(&name("deeper"), Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(one.list("").await.unwrap(), [], "what is below another prefix is not ours");
        conforms(Arc::new(one)).await;
        assert_eq!(two.list("").await.unwrap().len(), 1);
    });
}

#[test]
fn an_s3_compatible_service_keeps_the_promises_of_a_store() {
    let Ok(url) = std::env::var("TIDERACE_TEST_S3_URL") else {
        println!("not run: TIDERACE_TEST_S3_URL names no service");
        return;
    };
    let store = Arc::new(ObjectCheckpointStore::s3(&url, []).unwrap());
    run(conforms(store.clone()));
    run(fences(store));
}

#[test]
fn settings_that_cannot_be_are_refused_by_name() {
    for (url, settings) in [("http://bucket", vec![]), ("s3://", vec![]), ("s3://bucket/x", vec![("no_such_setting", "1")])] {
        let refused = ObjectCheckpointStore::s3(url, settings).map(drop);
        assert!(matches!(refused, Err(CheckpointStoreError::Invalid { .. })), "{url}: {refused:?}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(DirectoryStore::open(file.path()).is_err());
}
