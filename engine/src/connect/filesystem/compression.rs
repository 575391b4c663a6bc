//! Compressed files: gzip of any number of members, zstd of any number of frames.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip
    Gzip,
    /// Zstandard
    Zstd,
}

/// The words of option `compression`.
pub const WORDS: &[&str] = &["auto", "none", "gzip", "zstd"];

impl Compression {
    /// What a word of [`WORDS`] means; `None` for `auto`.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "none" => Some(Self::None),
            "gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// By the end of a file's name.
    pub fn of_name(path: &Path) -> Self {
        match path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).as_deref() {
            Some("gz" | "gzip") => Self::Gzip,
            Some("zst" | "zstd") => Self::Zstd,
            _ => Self::None,
        }
    }

    /// The file's content; `count` grows by the bytes that are read from the file itself.
    pub fn reader(self, file: File, count: Arc<AtomicU64>) -> io::Result<Box<dyn Read + Send>> {
        let counted = Counted { file, count };
        Ok(match self {
            Self::None => Box::new(counted),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(io::BufReader::with_capacity(256 * 1024, counted))),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::new(counted)?),
        })
    }
}

/// A file that counts what is read from it.
struct Counted {
    file: File,
    count: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}
