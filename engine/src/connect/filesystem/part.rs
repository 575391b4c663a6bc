//! A part file of a sink: hidden while it grows, then made durable and given its name in one step.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use ::parquet::arrow::ArrowWriter;
use ::parquet::file::properties::WriterProperties;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::compression::Compression;
use crate::connect::RowKind;
use crate::error::{Code, Diagnostic, Result};
use crate::format::{Encoder, Format, FormatKind};

/// Encoded bytes are handed to the system in pieces of about this size.
const WRITE_BYTES: usize = 256 * 1024;
/// What ends the name of a part that is hidden.
const HIDDEN_END: &str = ".inprogress";
/// A Parquet row group is closed when it has so many bytes.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// A part file that is being written. Dropped before [`PartFile::finish`], it leaves nothing behind.
pub struct PartFile {
    hidden: PathBuf,
    name: PathBuf,
    /// `None` once finished or failed.
    output: Option<Output>,
    opened: Instant,
    is_done: bool,
}

enum Output {
    Text { encoder: Box<dyn Encoder>, buffer: Vec<u8>, stream: Stream },
    Parquet(Box<ArrowWriter<Counted>>),
}

enum Stream {
    Plain(Counted),
    Gzip(Box<flate2::write::GzEncoder<Counted>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Counted>>),
}

/// A file that counts what is written to it.
pub struct Counted {
    file: File,
    written_bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.written_bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Stream {
    fn new(compression: Compression, file: Counted) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(file),
            Compression::Gzip => Self::Gzip(Box::new(flate2::write::GzEncoder::new(file, flate2::Compression::default()))),
            Compression::Zstd => Self::Zstd(Box::new(zstd::stream::write::Encoder::new(file, 3)?)),
        })
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Plain(file) => file,
            Self::Gzip(encoder) => encoder,
            Self::Zstd(encoder) => encoder,
        }
    }

    fn written_bytes(&self) -> u64 {
        match self {
            Self::Plain(file) => file.written_bytes,
            Self::Gzip(encoder) => encoder.get_ref().written_bytes,
            Self::Zstd(encoder) => encoder.get_ref().written_bytes,
        }
    }

    fn finish(self) -> io::Result<Counted> {
        match self {
            Self::Plain(file) => Ok(file),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

/// The error that ends a sink: which file, and why.
pub fn poisoned(path: &Path, error: &dyn std::fmt::Display) -> Diagnostic {
    Diagnostic::new(Code::SinkPoisoned, format!("file '{}' can't be written: {error}", path.display()))
        .hint("files that were complete stay; the file that was being written is removed")
}

impl PartFile {
    /// Creates the hidden file for `folder/name`; neither may exist. Makes the folder where it is missing.
    pub fn create(folder: &Path, name: &str, format: &Format, schema: &SchemaRef, compression: Compression) -> Result<Self> {
        let (hidden, name) = (hidden_name(folder, name), folder.join(name));
        let open = || -> io::Result<File> {
            fs::create_dir_all(folder)?;
            File::options().write(true).create_new(true).open(&hidden)
        };
        let file = Counted { file: open().map_err(|e| poisoned(&name, &e))?, written_bytes: 0 };
        // From here on the hidden file is removed by `drop`.
        let mut part = Self { hidden, name, output: None, opened: Instant::now(), is_done: false };
        part.output = Some(match &format.kind {
            FormatKind::Parquet(options) => {
                let properties = WriterProperties::builder().set_compression(options.codec).build();
                let writer =
                    ArrowWriter::try_new(file, schema.clone(), Some(properties)).map_err(|e| poisoned(&part.name, &e))?;
                Output::Parquet(Box::new(writer))
            }
            _ => {
                let mut encoder = format.encoder(schema)?;
                let mut buffer = Vec::new();
                encoder.start(&mut buffer);
                let stream = Stream::new(compression, file).map_err(|e| poisoned(&part.name, &e))?;
                Output::Text { encoder, buffer, stream }
            }
        });
        Ok(part)
    }

    /// When it was created.
    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// About how large the file is by now.
    pub fn size_bytes(&self) -> u64 {
        match &self.output {
            Some(Output::Text { buffer, stream, .. }) => stream.written_bytes() + buffer.len() as u64,
            Some(Output::Parquet(writer)) => writer.bytes_written() as u64 + writer.in_progress_size() as u64,
            None => 0,
        }
    }

    /// Appends rows. After an error nothing but `drop` may follow.
    pub fn write(&mut self, rows: &RecordBatch, kinds: Option<&[RowKind]>) -> Result<()> {
        match &mut self.output {
            Some(Output::Text { encoder, buffer, stream }) => {
                encoder.encode(rows, kinds, buffer)?;
                if buffer.len() >= WRITE_BYTES {
                    stream.writer().write_all(buffer).map_err(|e| poisoned(&self.name, &e))?;
                    buffer.clear();
                }
                Ok(())
            }
            Some(Output::Parquet(writer)) => {
                writer.write(rows).map_err(|e| poisoned(&self.name, &e))?;
                if writer.in_progress_size() >= ROW_GROUP_BYTES {
                    writer.flush().map_err(|e| poisoned(&self.name, &e))?;
                }
                Ok(())
            }
            None => Err(Diagnostic::new(Code::Internal, format!("file '{}' is written after its end", self.name.display()))),
        }
    }

    /// Makes the content durable, then gives the file its name, then makes the name durable, up to the folder `root`.
    pub fn finish(mut self, root: &Path) -> Result<()> {
        let name = self.name.clone();
        self.try_finish(root).map_err(|e| poisoned(&name, &e))
    }

    /// Makes the content durable under the hidden name: [`show`] gives it its own, given here, in this process or another one.
    pub fn close(mut self, root: &Path) -> Result<PathBuf> {
        let name = self.name.clone();
        let closed = self.end().and_then(|()| {
            self.is_done = true;
            sync_folders(&self.hidden, root)
        });
        closed.map_err(|e| poisoned(&name, &e))?;
        Ok(name)
    }

    fn try_finish(&mut self, root: &Path) -> io::Result<()> {
        self.end()?;
        rename_new(&self.hidden, &self.name)?;
        self.is_done = true;
        sync_folders(&self.name, root)
    }

    /// Writes what is left, durably.
    fn end(&mut self) -> io::Result<()> {
        let file = match self.output.take() {
            Some(Output::Text { buffer, mut stream, .. }) => {
                stream.writer().write_all(&buffer)?;
                stream.finish()?
            }
            Some(Output::Parquet(writer)) => writer.into_inner().map_err(io::Error::other)?,
            None => return Err(io::Error::other("it failed before")),
        };
        file.file.sync_all()
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.is_done
            && let Err(error) = fs::remove_file(&self.hidden)
        {
            // Nobody sees a hidden file; it only takes space.
            tracing::warn!(file = %self.hidden.display(), %error, "an unfinished file could not be removed");
        }
    }
}

fn hidden_name(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!(".{name}{HIDDEN_END}"))
}

/// Gives a part that was [closed](PartFile::close) its name, and makes that durable. It may have it already.
pub fn show(name: &Path, root: &Path) -> Result<()> {
    let (Some(folder), Some(file)) = (name.parent(), name.file_name().and_then(|f| f.to_str())) else {
        return Err(poisoned(name, &"it is no file's name"));
    };
    let shown = match rename_new(&hidden_name(folder, file), name) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) && name.exists() => Ok(()),
        shown => shown,
    };
    shown.and_then(|()| sync_folders(name, root)).map_err(|e| poisoned(name, &e))
}

/// Removes hidden parts whose names begin so, down to folders of so many levels: what runs left that did not come to a checkpoint.
pub fn remove_hidden(folder: &Path, begin: &str, levels: usize) -> Result<()> {
    let remove = || -> io::Result<Vec<PathBuf>> {
        let mut below = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                below.push(entry.path());
            } else if entry
                .file_name()
                .to_str()
                .and_then(|n| n.strip_prefix('.'))
                .is_some_and(|n| n.starts_with(begin) && n.ends_with(HIDDEN_END))
            {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(below)
    };
    let below = match remove() {
        Ok(below) => below,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(poisoned(folder, &e)),
    };
    if levels == 0 { Ok(()) } else { below.iter().try_for_each(|folder| remove_hidden(folder, begin, levels - 1)) }
}

/// Renames without ever replacing a file.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // File systems without that flag; the name is unique to this run, so a check is as good.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if !to.exists() => fs::rename(from, to),
        Err(error) => Err(error.into()),
    }
}

/// Makes the names of a file and of the folders it lies in durable, from its folder up to `root` and root's own name.
pub fn sync_folders(file: &Path, root: &Path) -> io::Result<()> {
    for folder in file.ancestors().skip(1) {
        File::open(folder)?.sync_all()?;
        if folder == root {
            break;
        }
    }
    match root.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::Arc;

    use arrow::array::StringViewArray;
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;
    use crate::connect::Options;

    fn batch(bytes: usize) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Utf8View, true)]));
        RecordBatch::try_new(schema, vec![Arc::new(StringViewArray::from_iter_values(["x".repeat(bytes)]))]).unwrap()
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn create(folder: &Path) -> PartFile {
        let format = Format::read(&Options::new([("format".to_owned(), "json".to_owned(), None)])).unwrap();
        PartFile::create(folder, "part", &format, &batch(1).schema(), Compression::None).unwrap()
    }

    #[test]
    fn a_part_is_hidden_until_it_is_whole_and_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut part = create(dir.path());
        part.write(&batch(3), None).unwrap();
        assert_eq!(files(dir.path()), [".part.inprogress"]);
        part.finish(dir.path()).unwrap();
        assert_eq!(files(dir.path()), ["part"]);
        assert_eq!(fs::read_to_string(dir.path().join("part")).unwrap(), "{\"a\":\"xxx\"}\n");
        let second = create(dir.path());
        assert_eq!(second.finish(dir.path()).unwrap_err().code, Code::SinkPoisoned);
        assert_eq!(files(dir.path()), ["part"]);
    }

    #[test]
    fn a_full_disk_names_the_file_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in [WRITE_BYTES, 10] {
            let mut part = create(dir.path());
            let Some(Output::Text { stream, .. }) = &mut part.output else { panic!("json is text") };
            // A device on which each write fails for lack of space.
            let full = File::options().write(true).open("/dev/full").unwrap();
            *stream = Stream::Plain(Counted { file: full, written_bytes: 0 });
            let answer = part.write(&batch(bytes), None).and_then(|()| part.finish(dir.path()));
            let error = answer.unwrap_err();
            assert_eq!(error.code, Code::SinkPoisoned);
            assert!(error.message.contains("/part'") && error.message.contains("No space left"), "{error}");
            assert!(files(dir.path()).is_empty());
        }
    }
}
