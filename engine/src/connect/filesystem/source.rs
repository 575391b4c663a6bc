//! Reads files. A file (in Parquet a row group) is a split and is read by one core, from its start to its end; the splits are spread over the cores by size.
//!
//! A file is not cut into several splits: its rows keep their order, so that which rows are late does not depend on the number of cores.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use serde_json::Value;

use super::compression::{self, Compression};
use super::listing::{FILES_MAX, FileInfo, Pattern};
use super::parquet;
use super::partition;
use super::place::{Delivered, Places};
use crate::batch::Weights;
use crate::connect::{
    CoreInit, Position, Rejected, Ring, Source, SourceBatch, SourceEvent, SourcePoll, SourceReader, SourceRef, TableSpec,
};
use crate::error::{Code, Diagnostic, Result};
use crate::format::{Decoder, Format, FormatKind};
use crate::ids::SplitId;

/// What is read from a file at once.
const BLOCK_BYTES: usize = 256 * 1024;
/// A poll gives back what it has after so long.
const POLL_TIME: Duration = Duration::from_millis(50);
/// How many splits a core has open at once when some are held because they are ahead of others in event time. Beyond that, one is read on
/// although it is held: splits that were not begun yet would else keep all others waiting.
const OPEN_SPLITS_MAX: usize = 64;
/// A poll gives back what it has after so many bad records, so that they don't pile up.
const REJECTIONS_MAX: usize = 1024;

/// Where a column of the source comes from.
#[derive(Clone, Debug, PartialEq)]
enum ColumnOrigin {
    /// This column of the decoded batch.
    Data(usize),
    /// The part `name=value` of the file's path.
    Partition(String),
    /// `file.path`
    Path,
    /// `file.name`
    Name,
    /// `file.size`
    Size,
    /// `file.modification-time`
    ModificationTime,
    /// `file.line`
    Line,
}

/// The planned source; see [`super::SPEC`].
#[derive(Debug)]
pub struct FileSource {
    shared: Arc<Shared>,
}

/// What all readers know.
#[derive(Debug)]
struct Shared {
    table: String,
    pattern: Pattern,
    schema: SchemaRef,
    origins: Vec<ColumnOrigin>,
    /// The columns that come from the files' content.
    data: SchemaRef,
    declared: SchemaRef,
    format: Format,
    compression: Option<Compression>,
    monitor_interval: Option<Duration>,
    /// The value in a path that stands for NULL.
    default_name: String,
    /// Made once, by whoever is first, so that all cores share out the same files.
    splits: OnceLock<Result<Vec<Split>>>,
}

/// A part of the input that is read in order.
#[derive(Clone, Debug)]
pub struct Split {
    pub(super) file: Arc<FileInfo>,
    /// The row group, in Parquet.
    pub(super) group: Option<usize>,
    /// Its share of the file's bytes, for spreading and progress.
    bytes: u64,
    /// Why the file can't be read: what was wrong with it already when it was found.
    damage: Option<Damage>,
}

impl FileSource {
    /// Plans a source.
    pub fn plan(spec: &TableSpec<'_>) -> Result<SourceRef> {
        let options = spec.options;
        // One table may be read and written: options of the other side are known, not used.
        super::pass_over(options, &["sink.", "partition."]);
        let path = options.required("path")?;
        let is_recursive = options.bool("source.recursive")?.unwrap_or(true);
        let pattern = Pattern::parse(path, is_recursive).map_err(|reason| options.invalid("path", reason))?;
        let format = Format::read(options)?;
        let compression = options.choice("compression", compression::WORDS)?.and_then(Compression::from_word);
        let monitor_interval = options.duration("source.monitor-interval")?;
        if monitor_interval.is_some_and(|interval| interval < Duration::from_millis(1)) {
            return Err(options.invalid("source.monitor-interval", "must be at least 1 ms"));
        }
        let partitions: Vec<&str> = spec.partitioned_by.iter().map(|i| spec.physical.field(*i).name().as_str()).collect();
        let mut origins = Vec::with_capacity(spec.schema.fields().len());
        let mut data = Vec::new();
        for (index, field) in spec.schema.fields().iter().enumerate() {
            let metadata = spec.metadata.iter().find(|(i, _)| *i == index).map(|(_, key)| key.as_str());
            origins.push(match metadata {
                Some(key) => metadata_origin(key, field.data_type())
                    .map_err(|reason| Diagnostic::new(Code::UnsupportedSchema, format!("column '{}': {reason}", field.name())))?,
                None if partitions.contains(&field.name().as_str()) => ColumnOrigin::Partition(field.name().clone()),
                None => {
                    data.push(Arc::clone(field));
                    ColumnOrigin::Data(data.len() - 1)
                }
            });
        }
        let in_files = spec.physical.fields().iter().filter(|f| !partitions.contains(&f.name().as_str())).cloned();
        let shared = Shared {
            table: spec.name.to_owned(),
            pattern,
            schema: Arc::clone(&spec.schema),
            origins,
            data: Arc::new(Schema::new(data)),
            declared: Arc::new(Schema::new(in_files.collect::<Vec<_>>())),
            format,
            compression,
            monitor_interval,
            default_name: options.text("partition.default-name").unwrap_or(partition::DEFAULT_NAME).to_owned(),
            splits: OnceLock::new(),
        };
        // Refuses columns that the format can't hold now, not when the first file is opened.
        if !matches!(shared.format.kind, FormatKind::Parquet(_)) {
            shared.format.decoder(&shared.data, &shared.declared)?;
        } else if compression.is_some_and(|c| c != Compression::None) {
            return Err(options.invalid("compression", "does not go with Parquet, which compresses inside"));
        }
        Ok(Arc::new(Self { shared: Arc::new(shared) }))
    }
}

fn metadata_origin(key: &str, data_type: &DataType) -> std::result::Result<ColumnOrigin, String> {
    let is_text = matches!(data_type, DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8);
    let (origin, fits, wanted) = match key {
        "file.path" => (ColumnOrigin::Path, is_text, "STRING"),
        "file.name" => (ColumnOrigin::Name, is_text, "STRING"),
        "file.size" => (ColumnOrigin::Size, *data_type == DataType::Int64, "BIGINT"),
        "file.line" => (ColumnOrigin::Line, *data_type == DataType::Int64, "BIGINT"),
        "file.modification-time" => {
            (ColumnOrigin::ModificationTime, matches!(data_type, DataType::Timestamp(_, Some(_))), "TIMESTAMP_LTZ(3)")
        }
        _ => {
            let keys: Vec<_> = super::SPEC.metadata.iter().map(|(key, _)| *key).collect();
            return Err(format!("files have no metadata '{key}'; there are: {}", keys.join(", ")));
        }
    };
    if fits { Ok(origin) } else { Err(format!("metadata '{key}' needs a column of type {wanted}")) }
}

impl Shared {
    /// All splits that there are at the start, in the order of their paths; a split's number is its place here.
    fn splits(&self) -> Result<&[Split]> {
        let list = || -> Result<Vec<Split>> {
            let files = self.pattern.list()?;
            if files.is_empty() && self.pattern.is_glob() && self.monitor_interval.is_none() {
                return Err(self.pattern.not_found());
            }
            let splits = files.into_iter().map(|file| self.splits_of(file));
            Ok(splits.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
        };
        match self.splits.get_or_init(list) {
            Ok(splits) => Ok(splits),
            Err(error) => Err(error.clone()),
        }
    }
}

impl Shared {
    fn splits_of(&self, file: FileInfo) -> Result<Vec<Split>> {
        let file = Arc::new(file);
        if !matches!(self.format.kind, FormatKind::Parquet(_)) {
            return Ok(vec![Split { bytes: file.size, file, group: None, damage: None }]);
        }
        match parquet::row_groups(&file.path) {
            Ok(groups) => {
                let split = |(group, bytes)| Split { bytes, file: Arc::clone(&file), group: Some(group), damage: None };
                Ok(groups.into_iter().enumerate().map(split).collect())
            }
            Err(Failure::Damaged(damage)) => Ok(vec![Split { bytes: file.size, file, group: None, damage: Some(damage) }]),
            Err(Failure::Other(error)) => Err(error),
        }
    }
}

/// Which core reads each split: the largest first, each to the core that has the least so far. The answer depends on nothing but its arguments.
fn spread(bytes: &[u64], cores: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..bytes.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(bytes[*i]), *i));
    let mut load = vec![0u64; cores];
    let mut owner = vec![0; bytes.len()];
    for index in order {
        let core = (0..cores).min_by_key(|c| (load[*c], *c)).unwrap_or(0);
        // An empty file costs something too: opening it.
        load[core] += bytes[index].max(4096);
        owner[index] = core;
    }
    owner
}

/// Which core reads a file that is found later.
fn owner_of_late(path: &Path, cores: usize) -> usize {
    use std::os::unix::ffi::OsStrExt as _;
    (twox_hash::XxHash3_64::oneshot(path.as_os_str().as_bytes()) % cores as u64) as usize
}

impl Source for FileSource {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.shared.schema)
    }

    fn is_bounded(&self) -> bool {
        self.shared.monitor_interval.is_none()
    }

    fn is_append_only(&self) -> bool {
        self.shared.format.is_append_only()
    }

    fn ring(&self) -> Ring {
        Ring::Io
    }

    fn bytes_hint(&self) -> Option<u64> {
        self.shared.splits().ok().map(|splits| splits.iter().map(|s| s.bytes).sum())
    }

    fn is_resumable(&self) -> bool {
        true
    }

    fn open(&self, init: CoreInit) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(self.reader(init, self.shared.splits()?)))
    }

    fn reopen(&self, init: CoreInit, position: &Position) -> Result<Box<dyn SourceReader>> {
        let splits = match self.shared.splits() {
            Err(_) if Places::are_done(position) => &[],
            splits => splits?,
        };
        let mut reader = self.reader(init, splits);
        reader.go_on(position, splits)?;
        Ok(Box::new(reader))
    }
}

impl FileSource {
    fn reader(&self, init: CoreInit, splits: &[Split]) -> Reader {
        let shared = Arc::clone(&self.shared);
        let bytes: Vec<u64> = splits.iter().map(|s| s.bytes).collect();
        let core = usize::from(init.core.0);
        let owners = spread(&bytes, init.cores);
        let mine = splits.iter().enumerate().filter(|(i, _)| owners[*i] == core).map(|(i, s)| (SplitId(i as u32), s.clone()));
        let queue: VecDeque<_> = mine.collect();
        let seen = match shared.monitor_interval {
            Some(_) => splits.iter().map(|s| s.file.path.clone()).collect(),
            None => HashSet::new(),
        };
        Reader {
            spare: Vec::new(),
            aside: Vec::new(),
            held: Vec::new(),
            has_failed: false,
            announce: queue.iter().map(|(id, _)| *id).collect(),
            places: Places::new(&queue, shared.monitor_interval.is_some()),
            queue,
            current: None,
            block: vec![0; BLOCK_BYTES],
            read_bytes: Arc::default(),
            watch: Watch { seen, next_id: splits.len() + core, looked_at: None },
            init,
            shared,
        }
    }
}

/// What a core knows of files that came later.
struct Watch {
    seen: HashSet<PathBuf>,
    /// The number of the next split that this core finds; it grows by the number of cores, so that no two cores give the same.
    next_id: usize,
    looked_at: Option<Instant>,
}

/// A file that is being read.
struct OpenFile {
    id: SplitId,
    file: Arc<FileInfo>,
    /// Rows and bad records that another run has delivered, and which are passed over.
    passed_over: Delivered,
    content: Box<dyn Read + Send>,
    content_bytes: u64,
    compression: Compression,
    decoder: Box<dyn Decoder>,
}

/// A split that is being read.
enum Current {
    Text(OpenFile),
    Group { id: SplitId, split: Split, reader: Box<parquet::GroupReader> },
}

impl Current {
    fn id(&self) -> SplitId {
        match self {
            Self::Text(file) => file.id,
            Self::Group { id, .. } => *id,
        }
    }
}

struct Reader {
    shared: Arc<Shared>,
    init: CoreInit,
    announce: Vec<SplitId>,
    places: Places,
    queue: VecDeque<(SplitId, Split)>,
    current: Option<Current>,
    /// Splits that were begun and are held; at most [`OPEN_SPLITS_MAX`] with the current one.
    aside: Vec<Current>,
    /// The splits that shall not be read on now, in ascending order.
    held: Vec<SplitId>,
    /// Decoders of files that are read to their end.
    spare: Vec<Box<dyn Decoder>>,
    has_failed: bool,
    block: Vec<u8>,
    read_bytes: Arc<AtomicU64>,
    watch: Watch,
}

impl SourceReader for Reader {
    fn poll(&mut self, rows_max: usize, out: &mut Vec<SourceEvent>) -> Result<SourcePoll> {
        if self.has_failed {
            return Err(Diagnostic::new(
                Code::Internal,
                format!("table '{}': a file reader is used after its error", self.shared.table),
            ));
        }
        let first = out.len();
        let answer = self.try_poll(rows_max, out);
        self.has_failed = answer.is_err();
        self.places.note(&out[first..]);
        answer
    }

    fn hold(&mut self, splits: &[SplitId]) {
        self.held = splits.to_vec();
    }

    fn position(&mut self, changed: &mut Vec<(u64, Value)>) {
        self.places.tell(&self.watch.seen, self.watch.next_id, changed);
    }

    fn bytes_read(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }
}

/// How many rows and bad records wait in events.
fn rows_in(events: &[SourceEvent]) -> usize {
    let rows = events.iter().map(|event| match event {
        SourceEvent::Rows(batch) => batch.rows.num_rows() + batch.rejected.len(),
        SourceEvent::SplitOpened(_) | SourceEvent::SplitFinished(_) => 0,
    });
    rows.sum()
}

impl Reader {
    /// Goes to where another run's reader was. `splits`: those that there are now.
    fn go_on(&mut self, position: &Position, splits: &[Split]) -> Result<()> {
        let (places, queue) = Places::resume(position, splits, self.shared.monitor_interval.is_some())?;
        if let Some((seen, next_id)) = Places::seen(position)? {
            (self.watch.seen, self.watch.next_id) = (seen, next_id);
        }
        self.announce = queue.iter().map(|(id, _)| *id).collect();
        (self.places, self.queue) = (places, queue);
        Ok(())
    }

    fn try_poll(&mut self, rows_max: usize, out: &mut Vec<SourceEvent>) -> Result<SourcePoll> {
        let started = Instant::now();
        out.extend(self.announce.drain(..).map(SourceEvent::SplitOpened));
        self.put_aside();
        loop {
            let Some(current) = self.current.take().or_else(|| self.free_aside().map(|at| self.aside.swap_remove(at))) else {
                let Some((id, split)) = self.queue.pop_front() else {
                    return match (self.shared.monitor_interval, self.aside.is_empty()) {
                        (Some(_), _) => self.look_for_files(out),
                        (None, true) => Ok(SourcePoll::Finished),
                        (None, false) => Ok(SourcePoll::Idle),
                    };
                };
                self.open_split(id, split, out)?;
                if self.current.is_none() && (rows_in(out) >= rows_max || started.elapsed() > POLL_TIME) {
                    return Ok(SourcePoll::More);
                }
                continue;
            };
            match current {
                Current::Text(file) => {
                    self.read_block(file, out)?;
                    let Some(Current::Text(file)) = &mut self.current else {
                        // Many small files: what they give together is bounded, too.
                        if rows_in(out) >= rows_max || started.elapsed() > POLL_TIME {
                            return Ok(SourcePoll::More);
                        }
                        continue;
                    };
                    let is_enough = file.decoder.rows() >= rows_max || file.decoder.rejections() >= REJECTIONS_MAX;
                    if is_enough || started.elapsed() > POLL_TIME {
                        self.shared.deliver(file, out)?;
                        return Ok(SourcePoll::More);
                    }
                }
                Current::Group { id, split, mut reader } => {
                    let decoded = match reader.next() {
                        Ok(Some(decoded)) => decoded,
                        Ok(None) => {
                            self.read_bytes.fetch_add(split.bytes, Ordering::Relaxed);
                            out.push(SourceEvent::SplitFinished(id));
                            continue;
                        }
                        Err(Failure::Damaged(damage)) => {
                            self.give_up(id, &split, damage, Some(reader.row()), out);
                            return Ok(SourcePoll::More);
                        }
                        Err(Failure::Other(error)) => return Err(error),
                    };
                    let decoded = self.places.begun(id).leave_out(decoded);
                    let rows = self.shared.assemble(&decoded.rows, &decoded.lines, &split.file)?;
                    let batch = SourceBatch { split: id, rows, weights: decoded.weights, rejected: decoded.rejected };
                    out.push(SourceEvent::Rows(batch));
                    self.current = Some(Current::Group { id, split, reader });
                    return Ok(SourcePoll::More);
                }
            }
        }
    }

    /// A split aside that may be read on.
    fn free_aside(&self) -> Option<usize> {
        self.aside.iter().position(|split| self.held.binary_search_by_key(&split.id().0, |held| held.0).is_err())
    }

    /// Changes from a split that is held to another, if there is one. All it has decoded was handed out by the poll before.
    fn put_aside(&mut self) {
        let Some(current) = self.current.take() else { return };
        if self.held.binary_search_by_key(&current.id().0, |held| held.0).is_err() {
            self.current = Some(current);
        } else if let Some(free) = self.free_aside() {
            self.current = Some(std::mem::replace(&mut self.aside[free], current));
        } else if self.aside.len() + 1 < OPEN_SPLITS_MAX || self.queue.is_empty() {
            self.aside.push(current);
        } else {
            self.current = Some(current);
        }
    }

    fn open_split(&mut self, id: SplitId, split: Split, out: &mut Vec<SourceEvent>) -> Result<()> {
        if let Some(damage) = split.damage.clone() {
            self.give_up(id, &split, damage, None, out);
            return Ok(());
        }
        let path = &split.file.path;
        if let Some(group) = split.group {
            match parquet::GroupReader::open(path, group, &self.shared.data) {
                Ok(reader) => self.current = Some(Current::Group { id, split, reader: Box::new(reader) }),
                Err(Failure::Damaged(damage)) => self.give_up(id, &split, damage, None, out),
                Err(Failure::Other(error)) => return Err(error),
            }
            return Ok(());
        }
        let compression = self.shared.compression.unwrap_or_else(|| Compression::of_name(path));
        let content = File::open(path).and_then(|file| compression.reader(file, Arc::clone(&self.read_bytes)));
        let content = match content.map_err(|e| read_error(path, compression, &e)) {
            Ok(content) => content,
            Err(Failure::Damaged(damage)) => {
                self.give_up(id, &split, damage, None, out);
                return Ok(());
            }
            Err(Failure::Other(error)) => return Err(error),
        };
        let mut decoder = match self.spare.pop() {
            Some(decoder) => decoder,
            None => self.shared.format.decoder(&self.shared.data, &self.shared.declared)?,
        };
        decoder.begin(&path.display().to_string());
        let passed_over = std::mem::take(self.places.begun(id));
        let file = OpenFile { id, file: split.file, passed_over, content, content_bytes: 0, compression, decoder };
        self.current = Some(Current::Text(file));
        Ok(())
    }

    /// The rest of a split can't be read: that is one bad record, under the table's policy, and the split's end.
    fn give_up(&self, id: SplitId, split: &Split, damage: Damage, row: Option<u64>, out: &mut Vec<SourceEvent>) {
        self.read_bytes.fetch_add(split.bytes, Ordering::Relaxed);
        let rejected = Rejected {
            code: Code::CorruptFile,
            message: damage.message,
            origin: split.file.path.display().to_string(),
            position: row,
            raw: String::new(),
        };
        out.push(SourceEvent::Rows(SourceBatch {
            split: id,
            rows: RecordBatch::new_empty(Arc::clone(&self.shared.schema)),
            weights: Weights::Ones(0),
            rejected: vec![rejected],
        }));
        out.push(SourceEvent::SplitFinished(id));
    }

    /// Reads on in a file and puts it back, or at its end delivers what is left.
    fn read_block(&mut self, mut file: OpenFile, out: &mut Vec<SourceEvent>) -> Result<()> {
        let n = loop {
            match file.content.read(&mut self.block) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => match read_error(&file.file.path, file.compression, &e) {
                    Failure::Other(error) => return Err(error),
                    Failure::Damaged(damage) => {
                        // What was whole before stays; the record that is cut off is not taken for one.
                        file.decoder.break_off(Code::CorruptFile, damage.message);
                        return self.end_file(file, out);
                    }
                },
                Ok(n) => break n,
            }
        };
        if n > 0 {
            file.content_bytes += n as u64;
            file.decoder.push(&self.block[..n]);
            self.current = Some(Current::Text(file));
            return Ok(());
        }
        if file.compression == Compression::None && file.content_bytes < file.file.size {
            let (path, read, size) = (file.file.path.display(), file.content_bytes, file.file.size);
            let message = format!("file '{path}' became shorter while it was read: {read} of {size} bytes are left");
            return Err(Diagnostic::new(Code::CorruptFile, message)
                .hint("write files under another name and rename them when they are complete"));
        }
        file.decoder.end();
        self.end_file(file, out)
    }

    fn end_file(&mut self, mut file: OpenFile, out: &mut Vec<SourceEvent>) -> Result<()> {
        self.shared.deliver(&mut file, out)?;
        out.push(SourceEvent::SplitFinished(file.id));
        self.spare.push(file.decoder);
        Ok(())
    }

    fn look_for_files(&mut self, out: &mut Vec<SourceEvent>) -> Result<SourcePoll> {
        let interval = self.shared.monitor_interval.unwrap_or(Duration::MAX);
        if self.watch.looked_at.is_some_and(|at| at.elapsed() < interval) {
            return Ok(SourcePoll::Idle);
        }
        self.watch.looked_at = Some(Instant::now());
        for file in self.shared.pattern.list()? {
            if !self.watch.seen.insert(file.path.clone())
                || owner_of_late(&file.path, self.init.cores) != usize::from(self.init.core.0)
            {
                continue;
            }
            if self.watch.seen.len() > FILES_MAX {
                let message = format!("'{}' has had more than {FILES_MAX} files", self.shared.pattern.text());
                return Err(Diagnostic::new(Code::SourceUnavailable, message)
                    .hint("start the job anew on a folder without the old files"));
            }
            for split in self.shared.splits_of(file)? {
                let id = SplitId(u32::try_from(self.watch.next_id).map_err(|_| {
                    Diagnostic::new(
                        Code::SourceUnavailable,
                        format!("table '{}' has had more than 2^32 splits", self.shared.table),
                    )
                })?);
                self.watch.next_id += self.init.cores;
                out.push(SourceEvent::SplitOpened(id));
                self.places.found(id, &split);
                self.queue.push_back((id, split));
            }
        }
        Ok(if self.queue.is_empty() { SourcePoll::Idle } else { SourcePoll::More })
    }
}

impl Shared {
    /// Hands out all rows that are decoded.
    fn deliver(&self, file: &mut OpenFile, out: &mut Vec<SourceEvent>) -> Result<()> {
        if file.decoder.rows() == 0 && file.decoder.rejections() == 0 {
            return Ok(());
        }
        let decoded = file.passed_over.leave_out(file.decoder.finish()?);
        if decoded.rows.num_rows() == 0 && decoded.rejected.is_empty() {
            return Ok(());
        }
        let rows = self.assemble(&decoded.rows, &decoded.lines, &file.file)?;
        out.push(SourceEvent::Rows(SourceBatch { split: file.id, rows, weights: decoded.weights, rejected: decoded.rejected }));
        Ok(())
    }

    /// Puts decoded columns and those that are the same for a whole file in the order of the schema.
    fn assemble(&self, data: &RecordBatch, lines: &[i64], file: &FileInfo) -> Result<RecordBatch> {
        let rows = data.num_rows();
        let columns = self.schema.fields().iter().zip(&self.origins).map(|(field, origin)| -> Result<ArrayRef> {
            let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(std::iter::repeat_n(value, rows))) };
            let built: ArrayRef = match origin {
                ColumnOrigin::Data(index) => return Ok(Arc::clone(data.column(*index))),
                ColumnOrigin::Path => text(&file.path.display().to_string()),
                ColumnOrigin::Name => text(&file.path.file_name().unwrap_or_default().to_string_lossy()),
                ColumnOrigin::Size => Arc::new(Int64Array::from(vec![file.size as i64; rows])),
                ColumnOrigin::Line => Arc::new(Int64Array::from(lines.to_vec())),
                ColumnOrigin::ModificationTime => {
                    Arc::new(TimestampMicrosecondArray::from(vec![file.modified_us; rows]).with_timezone("UTC"))
                }
                ColumnOrigin::Partition(name) => return self.partition_column(field, name, file, rows),
            };
            arrow::compute::cast(&built, field.data_type())
                .map_err(|e| Diagnostic::new(Code::Internal, format!("metadata column '{}': {e}", field.name())))
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        RecordBatch::try_new_with_options(
            Arc::clone(&self.schema),
            columns,
            &RecordBatchOptions::new().with_row_count(Some(rows)),
        )
        .map_err(|e| Diagnostic::new(Code::Internal, format!("table '{}': {e}", self.table)))
    }

    /// The constant column of a partition's value, which stands in the file's path.
    fn partition_column(&self, field: &arrow::datatypes::FieldRef, name: &str, file: &FileInfo, rows: usize) -> Result<ArrayRef> {
        let path = file.path.display();
        let part = file.path.parent().into_iter().flat_map(Path::iter).find_map(|part| {
            let (key, value) = part.to_str()?.split_once('=')?;
            key.eq_ignore_ascii_case(name).then_some(value)
        });
        let Some(value) = part else {
            return Err(Diagnostic::new(Code::MissingField, format!("file '{path}' lies in no folder '{name}=…'"))
                .hint("the table is PARTITIONED BY that column, so its value must stand in the path"));
        };
        let mut column = crate::format::columns::Column::new(field)?;
        let value = partition::unescape(value);
        for _ in 0..rows {
            if value == self.default_name && field.is_nullable() {
                column.append_null();
            } else {
                let rules = crate::format::columns::TextRules { timestamps: None, raw_bytes: true };
                column
                    .append_text(&value, rules)
                    .map_err(|flaw| Diagnostic::new(flaw.code, format!("path '{path}': {}", flaw.message)))?;
            }
        }
        column.finish().map_err(|e| Diagnostic::new(Code::Internal, format!("partition column '{name}': {e}")))
    }
}

/// What is wrong with the content of a file.
#[derive(Clone, Debug)]
pub struct Damage {
    /// One sentence, without the file's name.
    pub message: String,
}

/// Why a file can't be read (on).
#[derive(Debug)]
pub enum Failure {
    /// Its content is damaged: a bad record, which the table's policy judges.
    Damaged(Damage),
    /// Anything else: the job can't go on.
    Other(Diagnostic),
}

fn read_error(path: &Path, compression: Compression, error: &io::Error) -> Failure {
    let damaged = |message: String| Failure::Damaged(Damage { message });
    let path = path.display();
    match (error.kind(), compression) {
        (io::ErrorKind::NotFound, _) => Failure::Other(
            Diagnostic::new(Code::PathNotFound, format!("file '{path}' is no longer there"))
                .hint("files must stay until they are read"),
        ),
        (io::ErrorKind::UnexpectedEof, Compression::Gzip | Compression::Zstd) => {
            damaged("the file ends in the middle of its compressed data; the record that is cut off is lost".to_owned())
        }
        (_, Compression::Gzip | Compression::Zstd) if error.raw_os_error().is_none() => damaged(format!(
            "the file can't be decompressed: {error} ('compression' = 'none' reads one that only has such a name)"
        )),
        _ => Failure::Other(Diagnostic::new(Code::SourceUnavailable, format!("file '{path}' can't be read: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_spread_by_size_the_same_way_every_time() {
        let bytes = [10_000, 90_000, 10_000, 40_000, 40_000, 0];
        assert_eq!(spread(&bytes, 1), vec![0; 6]);
        let owners = spread(&bytes, 2);
        let load = |core| -> u64 { owners.iter().zip(&bytes).filter(|(o, _)| **o == core).map(|(_, b)| b).sum() };
        assert!(load(0).abs_diff(load(1)) <= 20_000, "{owners:?}");
        assert!(spread(&bytes, 7).iter().all(|o| *o < 7));
    }
}
