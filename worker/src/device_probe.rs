//! `tiderace inspect device`: how files of a directory are reached, found out by writing one as the state's files are written.

use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tiderace_engine::error::{Code, Diagnostic};
use tiderace_storage::{Backend, Device, DeviceError, DeviceOp, DeviceOptions, Done, FileName, open_device_with};

/// Bytes that are written and read.
const PROBE_BYTES: usize = 64 << 10;

/// What was found.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeviceReport {
    /// The directory.
    pub directory: String,
    /// `io_uring` or `threads`.
    pub backend: &'static str,
    /// What the kernel's io_uring wouldn't do.
    pub without: Vec<String>,
    /// Why not by io_uring, where it isn't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// How long a write took until it was on the disk, microseconds.
    pub write_sync_us: u64,
}

impl DeviceReport {
    /// For people.
    pub fn text(&self) -> String {
        let how = match (&self.because, self.without.as_slice()) {
            (Some(because), _) => format!("threads read and write, as io_uring isn't available: {because}"),
            (None, []) => "io_uring".to_owned(),
            (None, without) => format!("io_uring, without {}", without.join(", ")),
        };
        format!("{}: {how}\n{PROBE_BYTES} bytes were on the disk after {} µs\n", self.directory, self.write_sync_us)
    }
}

/// Opens a folder of its own inside `directory` as state is opened, writes a file, reads it and removes it all.
pub(crate) fn probe(directory: &Path) -> Result<DeviceReport, Diagnostic> {
    let failed = |because: String| {
        Diagnostic::new(Code::FileUnreadable, format!("{}: {because}", directory.display()))
            .hint("the directory must be there, and this process must be able to write in it")
    };
    let unique = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let folder = directory.join(format!(".tiderace-probe-{}-{unique}", std::process::id()));
    // Only this folder: a directory that isn't there is a mistake, and is not made.
    std::fs::create_dir(&folder).map_err(|error| failed(error.to_string()))?;
    let report = in_folder(&folder);
    let removed = std::fs::remove_dir_all(&folder);
    let (backend, write_sync_us) = report.map_err(|error| failed(error.to_string()))?;
    removed.map_err(|error| failed(format!("{} can't be removed: {error}", folder.display())))?;
    let (backend, without, because) = match backend {
        Backend::IoUring { without } => ("io_uring", without, None),
        Backend::Threads { because, .. } => ("threads", Vec::new(), Some(because)),
    };
    Ok(DeviceReport { directory: directory.display().to_string(), backend, without, because, write_sync_us })
}

fn in_folder(folder: &Path) -> Result<(Backend, u64), DeviceError> {
    let wrong = |message: &str| DeviceError::Io { what: "probe".to_owned(), message: message.to_owned() };
    let file = FileName::new("probe").ok_or_else(|| wrong("no file's name"))?;
    let mut opened = open_device_with(folder, &DeviceOptions::default())?;
    let data: Vec<u8> = (0..PROBE_BYTES).map(|n| (n % 251) as u8).collect();
    opened.device.execute(DeviceOp::Create { file: file.clone() })?;
    let start = Instant::now();
    opened.device.execute(DeviceOp::WriteSync { file: file.clone(), offset: 0, data: data.clone() })?;
    let write_sync_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    match opened.device.execute(DeviceOp::Read { file: file.clone(), offset: 0, len: PROBE_BYTES })? {
        Done::Data(read) if read == data => {}
        _ => return Err(wrong("what was read isn't what was written")),
    }
    opened.device.execute(DeviceOp::Remove { file })?;
    Ok((opened.backend, write_sync_us))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn it_says_what_a_device_there_is_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let report = probe(folder.path()).unwrap();
        // What this machine allows, asked for in another way.
        let (_, expected) = tiderace_storage::open_device(&folder.path().join("a"), true).unwrap();
        assert_eq!(report.backend == "io_uring", matches!(expected, Backend::IoUring { .. }), "{report:?}");
        assert_eq!(report.because.is_none(), report.backend == "io_uring");
        assert!(report.text().contains("io_uring"));
        std::fs::remove_dir_all(folder.path().join("a")).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_is_not_there_is_refused_and_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nowhere");
        let error = probe(&path).unwrap_err();
        assert!(error.message.contains("nowhere"), "{error}");
        assert!(!path.exists());
    }
}
