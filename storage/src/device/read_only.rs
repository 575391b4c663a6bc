//! A directory for reading alone: takes no lock, makes nothing, changes nothing.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Completion, Device, DeviceError, DeviceOp, Done, FileName, Token};

/// A directory by `pread` alone, beside whoever writes it. Every other operation fails.
#[derive(Debug)]
pub struct ReadOnlyDevice {
    directory: PathBuf,
    /// The file read last.
    open: Option<(FileName, File)>,
    next_token: u64,
    done: Vec<Completion>,
}

impl ReadOnlyDevice {
    /// Opens a directory that exists.
    pub fn open(directory: &Path) -> Result<Self, DeviceError> {
        let failed = |message: String| DeviceError::Io { what: format!("open {}", directory.display()), message };
        let metadata = fs::metadata(directory).map_err(|e| failed(e.to_string()))?;
        if !metadata.is_dir() {
            return Err(failed("it is no directory".to_owned()));
        }
        Ok(Self { directory: directory.to_owned(), open: None, next_token: 0, done: Vec::new() })
    }

    fn read(&mut self, file: &FileName, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let open = match self.open.take() {
            Some((name, open)) if name == *file => open,
            _ => File::open(self.directory.join(file.as_str()))?,
        };
        // Never more memory than the file has bytes, whatever length was asked for.
        let rest = open.metadata()?.len().saturating_sub(offset);
        let mut data = vec![0; usize::try_from(rest).unwrap_or(usize::MAX).min(len)];
        let mut filled = 0;
        while filled < data.len() {
            match open.read_at(&mut data[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        data.truncate(filled);
        self.open = Some((file.clone(), open));
        Ok(data)
    }

    fn list(&self) -> io::Result<Vec<(FileName, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().and_then(FileName::new) else { continue };
            if let Some(len) = super::files::listed_bytes(&entry)? {
                files.push((name, len));
            }
        }
        files.sort();
        Ok(files)
    }
}

impl Device for ReadOnlyDevice {
    fn submit(&mut self, op: DeviceOp) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        let result = match &op {
            DeviceOp::Read { file, offset, len } => {
                self.read(file, *offset, *len).map(Done::Data).map_err(|e| super::files::error(&op, &e))
            }
            DeviceOp::List => {
                // A name may have come to mean another file.
                self.open = None;
                self.list().map(Done::Files).map_err(|e| super::files::error(&op, &e))
            }
            _ => Err(DeviceError::Io { what: op.describe(), message: "the directory is open for reading only".to_owned() }),
        };
        self.done.push(Completion { token, result });
        token
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }

    fn wait(&mut self, _timeout: Duration) {}
}
