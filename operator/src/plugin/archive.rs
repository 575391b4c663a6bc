//! A tarball, in memory: what a bug report needs of the format (ustar, files alone).

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

/// The longest name that the format holds without extensions.
const NAME_BYTES_MAX: usize = 100;
const BLOCK: usize = 512;

/// Files of a tarball.
pub(crate) struct Archive {
    out: GzEncoder<Vec<u8>>,
    modified_s: u64,
}

impl Archive {
    /// An empty one, whose files are of this time.
    pub fn new(modified_s: u64) -> Self {
        Self { out: GzEncoder::new(Vec::new(), Compression::default()), modified_s }
    }

    /// Adds a file.
    pub fn add(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        if name.len() > NAME_BYTES_MAX || name.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a file's name may have {NAME_BYTES_MAX} bytes: {name}"),
            ));
        }
        let mut header = [0u8; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, b"0000644\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, format!("{:011o}\0", self.modified_s).as_bytes());
        put(148, b"        ");
        put(156, b"0");
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.out.write_all(&header)?;
        self.out.write_all(content)?;
        let padding = (BLOCK - content.len() % BLOCK) % BLOCK;
        self.out.write_all(&[0; BLOCK][..padding])
    }

    /// The tarball, compressed.
    pub fn finish(mut self) -> io::Result<Vec<u8>> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::process::Command;

    use super::*;

    #[test]
    fn tar_reads_it() {
        let mut archive = Archive::new(1_700_000_000);
        archive.add("a/b.txt", b"hello\n").unwrap();
        archive.add("empty", b"").unwrap();
        archive.add("block", &[7; BLOCK]).unwrap();
        assert!(archive.add(&"x".repeat(101), b"").is_err());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar.gz");
        std::fs::write(&path, archive.finish().unwrap()).unwrap();
        let done = Command::new("tar").arg("-xzf").arg(&path).current_dir(folder.path()).status().unwrap();
        assert!(done.success());
        assert_eq!(std::fs::read(folder.path().join("a/b.txt")).unwrap(), b"hello\n");
        assert_eq!(std::fs::read(folder.path().join("block")).unwrap(), [7; BLOCK]);
        assert_eq!(std::fs::read(folder.path().join("empty")).unwrap(), b"");
    }
}
