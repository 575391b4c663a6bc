//! Writes part files into a folder, or into a folder a partition.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arrow::array::{RecordBatch, UInt32Array};
use arrow::datatypes::{Schema, SchemaRef};

use super::commit::{CommitRule, Commits, Trigger};
use super::compression::{self, Compression};
use super::listing::strip_scheme;
use super::part::{self, PartFile, poisoned};
use super::partition;
use crate::connect::{ChangelogMode, Changes, CoreInit, Ring, RowKind, Sink, SinkRef, SinkWriter, TableSpec};
use crate::error::{Code, Diagnostic, Result};
use crate::format::cells::{self, Cells};
use crate::format::scalar::TimestampStandard;
use crate::format::{Format, FormatKind};
use crate::ids::Epoch;
use crate::operators::Watermark;

/// The planned sink; see [`super::SPEC`].
#[derive(Debug)]
pub struct FileSink {
    shared: Arc<Shared>,
}

/// What all writers know.
#[derive(Debug)]
struct Shared {
    table: String,
    folder: PathBuf,
    /// The columns that stand in the files: all but the partition columns.
    data: SchemaRef,
    data_columns: Vec<usize>,
    partition_columns: Vec<usize>,
    partition_names: Vec<String>,
    default_name: String,
    partitions_open_max: usize,
    format: Format,
    compression: Compression,
    file_bytes: u64,
    rollover_interval: Duration,
    check_interval: Duration,
    commit: Option<(CommitRule, Commits)>,
    /// Different in each run.
    run: String,
    /// The same where the job keeps checkpoints: what begins the names of the job's parts, and of this run's.
    checkpoints: OnceLock<(String, String)>,
    /// How many files were begun in this run.
    files: AtomicU64,
    started: Instant,
}

impl FileSink {
    /// Plans a sink.
    pub fn plan(spec: &TableSpec<'_>) -> Result<SinkRef> {
        let options = spec.options;
        // One table may be read and written: options of the other side are known, not used.
        super::pass_over(options, &["source."]);
        let path = strip_scheme(options.required("path")?).map_err(|reason| options.invalid("path", reason))?;
        if path.is_empty() || path.contains(['*', '?']) {
            return Err(options.invalid("path", "must be a folder where a table is written"));
        }
        if let Some((_, key)) = spec.metadata.first() {
            return Err(Diagnostic::new(
                Code::UnsupportedSchema,
                format!("table '{}': metadata '{key}' can't be written", spec.name),
            )
            .hint("leave the column out of the sink's table"));
        }
        let format = Format::read(options)?;
        let compression = match options.choice("compression", compression::WORDS)?.and_then(Compression::from_word) {
            Some(compression) if compression != Compression::None && matches!(format.kind, FormatKind::Parquet(_)) => {
                return Err(options
                    .invalid("compression", "does not go with Parquet, which compresses inside")
                    .hint("set 'parquet.compression'"));
            }
            compression => compression.unwrap_or(Compression::None),
        };
        let columns = spec.schema.fields();
        let is_partition = |i: &usize| spec.partitioned_by.contains(i);
        let data_columns: Vec<usize> = (0..columns.len()).filter(|i| !is_partition(i)).collect();
        let data: SchemaRef = Arc::new(Schema::new(data_columns.iter().map(|i| Arc::clone(&columns[*i])).collect::<Vec<_>>()));
        for index in &spec.partitioned_by {
            cells::check_type(&columns[*index], false)?;
        }
        if data_columns.is_empty() {
            return Err(Diagnostic::new(
                Code::UnsupportedSchema,
                format!("table '{}' has no column besides those it is partitioned by", spec.name),
            ));
        }
        format.check_sink(&data, options)?;
        let partition_names: Vec<String> = spec.partitioned_by.iter().map(|i| columns[*i].name().clone()).collect();
        let commit = CommitRule::read(options, &partition_names)?.map(|rule| (rule, Commits::default()));
        let positive = |key: &str, value: Option<Duration>, default: Duration| match value {
            Some(Duration::ZERO) => Err(options.invalid(key, "must be longer than 0")),
            value => Ok(value.unwrap_or(default)),
        };
        let (rollover, check) = ("sink.rolling-policy.rollover-interval", "sink.rolling-policy.check-interval");
        let partitions_open_max = options.integer("sink.open-partitions-max")?.unwrap_or(64);
        if !(1..=4096).contains(&partitions_open_max) {
            return Err(options.invalid("sink.open-partitions-max", "must lie between 1 and 4096"));
        }
        let file_bytes = options.bytes("sink.rolling-policy.file-size")?.unwrap_or(128 << 20);
        if file_bytes == 0 {
            return Err(options.invalid("sink.rolling-policy.file-size", "must be larger than 0"));
        }
        let shared = Shared {
            table: spec.name.to_owned(),
            folder: PathBuf::from(path),
            data,
            data_columns,
            partition_columns: spec.partitioned_by.clone(),
            partition_names,
            default_name: options.text("partition.default-name").unwrap_or(partition::DEFAULT_NAME).to_owned(),
            partitions_open_max: partitions_open_max as usize,
            format,
            compression,
            file_bytes,
            rollover_interval: positive(rollover, options.duration(rollover)?, Duration::from_secs(30 * 60))?,
            check_interval: positive(check, options.duration(check)?, Duration::from_secs(60))?,
            commit,
            run: run_name(),
            checkpoints: OnceLock::new(),
            files: AtomicU64::new(0),
            started: Instant::now(),
        };
        Ok(Arc::new(Self { shared: Arc::new(shared) }))
    }
}

/// A name that no other run has: the start's time and the process.
fn run_name() -> String {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    // Two sinks of one job may be planned in the same microsecond.
    static SINKS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = SINKS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("{:x}{:x}{number:x}", since_1970.as_micros(), std::process::id())
}

impl Sink for FileSink {
    fn accepts(&self, mode: ChangelogMode) -> bool {
        match mode {
            ChangelogMode::Append => true,
            ChangelogMode::Retract => !self.shared.format.is_append_only(),
            // Without old images a reader of the files could not take rows back.
            ChangelogMode::Upsert => false,
        }
    }

    fn ring(&self) -> Ring {
        Ring::Io
    }

    fn begin_checkpoints(&self, job: &str, run: u64) -> Result<bool> {
        let shared = &self.shared;
        if shared.commit.is_some() {
            let message = format!(
                "table '{}': success files of partitions can't be written by a job that keeps checkpoints yet",
                shared.table
            );
            return Err(Diagnostic::new(Code::CheckpointUnsupported, message)
                .hint("leave out the options 'sink.partition-commit.…', or the checkpoints"));
        }
        // Two sinks of one job may write to one table.
        shared.checkpoints.get_or_init(|| (format!("part-{job}-"), format!("{job}-{run}-{}", shared.run)));
        Ok(true)
    }

    fn commit(&self, pieces: &[String]) -> Result<()> {
        pieces.iter().try_for_each(|piece| part::show(&self.shared.folder.join(piece), &self.shared.folder))
    }

    fn remove_uncommitted(&self) -> Result<()> {
        let Some((job, _)) = self.shared.checkpoints.get() else { return Ok(()) };
        part::remove_hidden(&self.shared.folder, job, self.shared.partition_columns.len())
    }

    fn open(&self, init: CoreInit, schema: SchemaRef, mode: ChangelogMode) -> Result<Box<dyn SinkWriter>> {
        let columns = self.shared.data_columns.len() + self.shared.partition_columns.len();
        if schema.fields().len() != columns || !self.accepts(mode) {
            return Err(Diagnostic::new(
                Code::Internal,
                format!("table '{}': the plan does not fit its sink", self.shared.table),
            ));
        }
        if let Some((_, commits)) = &self.shared.commit {
            commits.join(usize::from(init.core.0), init.cores);
        }
        Ok(Box::new(Writer {
            shared: Arc::clone(&self.shared),
            core: usize::from(init.core.0),
            open: BTreeMap::new(),
            closed: Vec::new(),
            writes: 0,
            watermark: Watermark::MIN,
            checked: Instant::now(),
            has_failed: false,
        }))
    }
}

/// A partition with a part file.
struct OpenPart {
    part: PartFile,
    /// When the partition is complete, by the clock of its rule.
    due_us: i64,
    /// The number of the write that used it last.
    used: u64,
}

struct Writer {
    shared: Arc<Shared>,
    core: usize,
    /// By folder.
    open: BTreeMap<PathBuf, OpenPart>,
    /// Parts that are whole and wait for a checkpoint, by their paths below the table's folder.
    closed: Vec<String>,
    writes: u64,
    watermark: Watermark,
    checked: Instant,
    has_failed: bool,
}

impl Writer {
    /// Runs a step; once one failed, all do, and unfinished files are removed.
    fn guarded<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.has_failed {
            return Err(Diagnostic::new(Code::SinkPoisoned, format!("table '{}' failed before", self.shared.table)));
        }
        let answer = step(self);
        if answer.is_err() {
            self.has_failed = true;
            self.open.clear();
        }
        answer
    }

    fn write_part(&mut self, values: &[Option<String>], rows: &RecordBatch, kinds: Option<&[RowKind]>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut folder = shared.folder.clone();
        for (name, value) in shared.partition_names.iter().zip(values) {
            let value = value.as_deref().filter(|v| !v.is_empty()).map_or_else(|| shared.default_name.clone(), partition::escape);
            folder.push(format!("{}={value}", partition::escape(name)));
        }
        self.writes += 1;
        if !self.open.contains_key(&folder) {
            if self.open.len() >= shared.partitions_open_max {
                let oldest = self.open.iter().min_by_key(|(_, open)| open.used).map(|(folder, _)| folder.clone());
                oldest.map_or(Ok(()), |folder| self.close(&folder))?;
            }
            let due_us = match &shared.commit {
                Some((rule, commits)) => commits.expect(&folder, rule.due_us(&shared.partition_names, values, self.wall_us())?),
                None => i64::MAX,
            };
            // Counted over all writers of the table: several statements may write it on one core.
            let number = shared.files.fetch_add(1, Ordering::Relaxed);
            let run = shared.checkpoints.get().map_or(&shared.run, |(_, run)| run);
            let name = format!("part-{run}-{}-{number}{}", self.core, shared.extension());
            let part = PartFile::create(&folder, &name, &shared.format, &shared.data, shared.compression)?;
            self.open.insert(folder.clone(), OpenPart { part, due_us, used: 0 });
        }
        let Some(open) = self.open.get_mut(&folder) else {
            return Err(Diagnostic::new(Code::Internal, format!("partition '{}' is not open", folder.display())));
        };
        open.used = self.writes;
        open.part.write(rows, kinds)?;
        if open.part.size_bytes() >= shared.file_bytes { self.close(&folder) } else { Ok(()) }
    }

    fn close(&mut self, folder: &PathBuf) -> Result<()> {
        let Some(open) = self.open.remove(folder) else { return Ok(()) };
        if self.shared.checkpoints.get().is_none() {
            return open.part.finish(&self.shared.folder);
        }
        let path = open.part.close(&self.shared.folder)?;
        let below = path.strip_prefix(&self.shared.folder).ok().and_then(Path::to_str).map(str::to_owned);
        let name = below.ok_or_else(|| poisoned(&path, &"its name can't be noted in a checkpoint"))?;
        self.closed.push(name);
        Ok(())
    }

    fn close_where(&mut self, is_due: impl Fn(&OpenPart) -> bool) -> Result<()> {
        let due: Vec<PathBuf> = self.open.iter().filter(|(_, open)| is_due(open)).map(|(folder, _)| folder.clone()).collect();
        due.iter().try_for_each(|folder| self.close(folder))
    }

    /// The wall clock of process-time commits: µs since the sink was made.
    fn wall_us(&self) -> i64 {
        i64::try_from(self.shared.started.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    fn commit(&mut self, clock_us: i64) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let Some((rule, commits)) = &shared.commit else { return Ok(()) };
        self.close_where(|open| open.due_us <= clock_us)?;
        commits.pass(self.core, clock_us, rule, &shared.folder)
    }

    /// Splits rows by partition and writes each share.
    fn write_partitioned(&mut self, changes: &Changes) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let schema = changes.rows.schema();
        let columns = shared.partition_columns.iter().map(|i| Cells::new(schema.field(*i), changes.rows.column(*i)));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let mut shares: BTreeMap<Vec<Option<String>>, Vec<u32>> = BTreeMap::new();
        for row in 0..changes.rows.num_rows() {
            let value = |cells: &Cells| {
                let mut text = String::new();
                cells.write_text(row, TimestampStandard::Sql, &mut text);
                text
            };
            let values: Vec<_> = columns.iter().map(|cells| (!cells.is_null(row)).then(|| value(cells))).collect();
            shares.entry(values).or_default().push(row as u32);
        }
        let data = project(&changes.rows, &shared.data_columns)?;
        for (values, rows) in shares {
            let kinds: Option<Vec<RowKind>> =
                changes.kinds.as_ref().map(|kinds| rows.iter().map(|row| kinds[*row as usize]).collect());
            let share = arrow::compute::take_record_batch(&data, &UInt32Array::from(rows))
                .map_err(|e| Diagnostic::new(Code::Internal, format!("table '{}': {e}", shared.table)))?;
            self.write_part(&values, &share, kinds.as_deref())?;
        }
        Ok(())
    }
}

/// Some columns of a batch.
fn project(rows: &RecordBatch, columns: &[usize]) -> Result<RecordBatch> {
    rows.project(columns).map_err(|e| Diagnostic::new(Code::Internal, format!("columns of a sink: {e}")))
}

impl Shared {
    fn extension(&self) -> String {
        let format = match self.format.kind {
            FormatKind::Json(_) | FormatKind::DebeziumJson(_) | FormatKind::ChangelogJson(_) => ".json",
            FormatKind::Csv(_) => ".csv",
            FormatKind::Parquet(_) => ".parquet",
            FormatKind::Raw => "",
        };
        let compression = match self.compression {
            Compression::None => "",
            Compression::Gzip => ".gz",
            Compression::Zstd => ".zst",
        };
        format!("{format}{compression}")
    }
}

impl SinkWriter for Writer {
    fn write(&mut self, _epoch: Epoch, changes: &Changes) -> Result<()> {
        self.guarded(|writer| {
            if changes.rows.num_rows() == 0 {
                return Ok(());
            }
            if writer.shared.partition_columns.is_empty() {
                writer.write_part(&[], &changes.rows, changes.kinds.as_deref())
            } else {
                writer.write_partitioned(changes)
            }
        })
    }

    fn watermark(&mut self, watermark: Watermark) -> Result<()> {
        self.watermark = self.watermark.max(watermark);
        Ok(())
    }

    fn end_epoch(&mut self, _epoch: Epoch) -> Result<()> {
        self.guarded(|writer| {
            if writer.checked.elapsed() >= writer.shared.check_interval.min(writer.shared.rollover_interval) {
                writer.checked = Instant::now();
                let interval = writer.shared.rollover_interval;
                writer.close_where(|open| open.part.opened().elapsed() >= interval)?;
            }
            let clock_us = match writer.shared.commit.as_ref().map(|(rule, _)| &rule.trigger) {
                Some(Trigger::PartitionTime { .. }) => writer.watermark.0,
                Some(Trigger::ProcessTime) => writer.wall_us(),
                None => return Ok(()),
            };
            // The end of the input is not the end of a partition before `finish` says so.
            writer.commit(clock_us.min(i64::MAX - 1))
        })
    }

    fn prepare(&mut self) -> Result<Vec<String>> {
        self.guarded(|writer| {
            writer.close_where(|_| true)?;
            Ok(std::mem::take(&mut writer.closed))
        })
    }

    fn finish(&mut self) -> Result<()> {
        self.guarded(|writer| {
            writer.close_where(|_| true)?;
            writer.commit(i64::MAX)
        })
    }
}
