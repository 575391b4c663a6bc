//! I/O around the system's cache (`O_DIRECT`): where it is possible, and for what.
//!
//! It helps where a process has its own idea of what stays in memory: pages of tables larger than their budget. Logs and manifests are
//! written once, in lengths of any kind, and read at a start alone: they go through the cache.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::raw::Buffer;

const PROBE_FILE: &str = ".direct-probe";
/// What devices want offsets, lengths and memory to be multiples of.
const ALIGNMENTS: [usize; 2] = [512, 4096];
/// Less than this goes through the cache: a copy costs less than a trip to the disk.
const DIRECT_BYTES_MIN: usize = 16 << 10;

/// Opens a file to go around the cache.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)
}

/// Whether an operation may go around the cache, and should.
pub(super) fn suits(alignment_bytes: usize, offset: u64, len: usize) -> bool {
    len >= DIRECT_BYTES_MIN && len.is_multiple_of(alignment_bytes) && offset.is_multiple_of(alignment_bytes as u64)
}

/// What offsets and lengths must be multiples of in a directory, or why nothing goes around the cache there. Found by trying: what a file
/// system says of itself isn't told by older kernels.
pub(super) fn probe(directory: &Path) -> Result<usize, String> {
    let path = directory.join(PROBE_FILE);
    let result = try_alignments(&path);
    // Left behind it would do no harm: its name is none of a device's.
    let _ = fs::remove_file(&path);
    result
}

fn try_alignments(path: &Path) -> Result<usize, String> {
    let created = OpenOptions::new().create(true).truncate(true).write(true).open(path);
    created.map_err(|e| e.to_string())?;
    // tmpfs and others: EINVAL here.
    let file = open(path).map_err(|e| format!("the file system refuses O_DIRECT: {e}"))?;
    let mut last = String::new();
    for alignment in ALIGNMENTS {
        let mut buffer = Buffer::for_direct_io(2 * alignment);
        buffer.bytes_mut()[..alignment].fill(0xA5);
        let tried = file.write_at(&buffer.bytes()[..alignment], alignment as u64).and_then(|written| {
            let read = file.read_at(&mut buffer.bytes_mut()[..alignment], alignment as u64)?;
            Ok((written, read))
        });
        match tried {
            Ok((written, read)) if written == alignment && read == alignment => {
                if buffer.bytes()[..alignment].iter().all(|b| *b == 0xA5) {
                    return Ok(alignment);
                }
                return Err("what was written with O_DIRECT doesn't come back".to_owned());
            }
            Ok(_) => last = format!("{alignment} B: short"),
            Err(e) => last = format!("{alignment} B: {e}"),
        }
    }
    Err(format!("the file system refuses reads and writes with O_DIRECT: {last}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_what_is_aligned_and_not_small_goes_around_the_cache() {
        for (alignment, offset, len, expected) in [
            (512, 0, 16 << 10, true),
            (512, 512, 66_048, true),
            (4096, 512, 66_048, false),
            (4096, 4096, 66_048, false),
            (4096, 4096, 65_536, true),
            (512, 100, 65_536, false),
            (512, 0, 65_537, false),
            (512, 0, 8192, false),
        ] {
            assert_eq!(suits(alignment, offset, len), expected, "{alignment} {offset} {len}");
        }
    }

    #[test]
    fn a_probe_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let found = probe(directory.path());
        println!("direct I/O here: {found:?}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(probe(&directory.path().join("missing")).is_err());
    }
}
