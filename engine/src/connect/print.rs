//! `'connector' = 'print'`: changes as lines of text on stdout or stderr, in the form of Flink's `print`: `+I[1, a]`.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::{
    ChangelogMode, Changes, ConnectorSpec, CoreInit, OptionSpec, OptionType, Ring, RowKind, Sink, SinkRef, SinkWriter, TableSpec,
};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::Epoch;

/// See [`super::registry`].
pub const SPEC: ConnectorSpec = ConnectorSpec {
    name: "print",
    doc: "Writes each change as a line to stdout or stderr",
    options: &[
        OptionSpec {
            key: "print-identifier",
            kind: OptionType::Text,
            default: None,
            required: false,
            doc: "What stands before each line, with `> ` behind it.",
        },
        OptionSpec {
            key: "standard-error",
            kind: OptionType::Bool,
            default: Some("false"),
            required: false,
            doc: "Whether lines go to stderr.",
        },
    ],
    takes_format: false,
    takes_partitions: false,
    source: None,
    sink: Some(plan),
    metadata: &[],
};

fn plan(table: &TableSpec<'_>) -> Result<SinkRef> {
    let prefix = table.options.text("print-identifier").map(|id| format!("{id}> ")).unwrap_or_default();
    let stderr = table.options.bool("standard-error")?.unwrap_or(false);
    let open: OpenOutput = if stderr { || Box::new(io::stderr()) } else { || Box::new(io::stdout()) };
    Ok(Arc::new(PrintSink { name: table.name.to_owned(), prefix, open, is_stdout: !stderr, closed: Arc::default() }))
}

type OpenOutput = fn() -> Box<dyn Write + Send>;

/// The planned sink.
#[derive(Debug)]
struct PrintSink {
    name: String,
    prefix: String,
    open: OpenOutput,
    is_stdout: bool,
    /// Whether the reader of the output has gone (`… | head`): nobody misses the rest then.
    closed: Arc<AtomicBool>,
}

impl Sink for PrintSink {
    fn writes_stdout(&self) -> bool {
        self.is_stdout
    }

    fn is_abandoned(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn accepts(&self, _mode: ChangelogMode) -> bool {
        true
    }

    fn ring(&self) -> Ring {
        Ring::Io
    }

    fn open(&self, _init: CoreInit, _schema: SchemaRef, _mode: ChangelogMode) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(PrintWriter {
            table: self.name.clone(),
            prefix: self.prefix.clone(),
            output: (self.open)(),
            closed: self.closed.clone(),
            text: Vec::new(),
        }))
    }
}

/// Writes whole lines, at most [`PrintWriter::TEXT_BYTES_MAX`] or one line at a time, so that those of several cores don't mix.
struct PrintWriter {
    table: String,
    prefix: String,
    output: Box<dyn Write + Send>,
    closed: Arc<AtomicBool>,
    /// Lines that are not written yet.
    text: Vec<u8>,
}

impl PrintWriter {
    /// Lines are gathered up to here before they are written.
    const TEXT_BYTES_MAX: usize = 64 * 1024;

    /// Writes what is gathered; a closed pipe is no error, other failures are.
    fn flush(&mut self) -> Result<()> {
        if self.closed.load(Ordering::Relaxed) {
            self.text.clear();
            return Ok(());
        }
        // One call for whole lines: stdout and stderr hold their lock from its beginning to its end.
        match self.output.write_all(&self.text).and_then(|()| self.output.flush()) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                self.closed.store(true, Ordering::Relaxed);
                tracing::info!(table = self.table, "the reader of the output has gone: the rest is not printed");
            }
            Err(e) => return Err(Diagnostic::new(Code::SinkUnavailable, format!("table `{}`: can't print: {e}", self.table))),
        }
        self.text.clear();
        Ok(())
    }
}

impl SinkWriter for PrintWriter {
    fn write(&mut self, _epoch: Epoch, changes: &Changes) -> Result<()> {
        if self.closed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let columns = formatters(&changes.rows)?;
        for row in 0..changes.rows.num_rows() {
            let kind = changes.kinds.as_ref().map_or(RowKind::Insert, |kinds| kinds[row]);
            let start = self.text.len();
            self.text.extend_from_slice(self.prefix.as_bytes());
            self.text.extend_from_slice(kind.short().as_bytes());
            self.text.push(b'[');
            for (i, column) in columns.iter().enumerate() {
                if i > 0 {
                    self.text.extend_from_slice(b", ");
                }
                write!(self.text, "{}", column.value(row)).map_err(|e| Diagnostic::new(Code::Internal, e.to_string()))?;
            }
            // A line is a line, also when a string has a line break inside.
            for i in (start..self.text.len()).rev() {
                let escape: &[u8] = match self.text[i] {
                    b'\n' => b"\\n",
                    b'\r' => b"\\r",
                    _ => continue,
                };
                self.text.splice(i..=i, escape.iter().copied());
            }
            self.text.extend_from_slice(b"]\n");
            if self.text.len() >= Self::TEXT_BYTES_MAX {
                self.flush()?;
            }
        }
        self.flush()
    }

    fn end_epoch(&mut self, _epoch: Epoch) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.flush()
    }
}

fn formatters(rows: &RecordBatch) -> Result<Vec<ArrayFormatter<'_>>> {
    const FORMAT: FormatOptions<'_> = FormatOptions::new()
        .with_null("null")
        .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
        .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.f%:z"));
    rows.columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &FORMAT).map_err(|e| Diagnostic::new(Code::Internal, e.to_string())))
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::sync::Mutex;

    use arrow::array::{ArrayRef, Int64Array, ListArray, StringArray, StructArray, TimestampMicrosecondArray};
    use arrow::datatypes::{DataType, Field, Int32Type};

    use super::super::Options;
    use super::*;
    use crate::ids::CoreId;

    /// What was written, a piece for each call.
    static WRITTEN: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

    struct Recorder;

    impl Write for Recorder {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            WRITTEN.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn writer(prefix: &str, open: OpenOutput) -> (PrintSink, Box<dyn SinkWriter>) {
        let sink = PrintSink { name: "out".into(), prefix: prefix.into(), open, is_stdout: false, closed: Arc::default() };
        let schema = Arc::new(arrow::datatypes::Schema::empty());
        let writer = sink.open(CoreInit { core: CoreId(0), cores: 1 }, schema, ChangelogMode::Retract).unwrap();
        (sink, writer)
    }

    fn changes() -> Changes {
        let nested = StructArray::from(vec![(
            Arc::new(Field::new("x", DataType::Int64, true)),
            Arc::new(Int64Array::from(vec![Some(7), None, Some(9)])) as ArrayRef,
        )]);
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), None, Some(vec![])]);
        let times = TimestampMicrosecondArray::from(vec![1_700_000_000_123_000, 0, 1_000_000]);
        let rows = RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef, true),
            ("name", Arc::new(StringArray::from(vec![Some("a, b"), None, Some("two\nlines\r")])), true),
            ("at", Arc::new(times), true),
            ("nested", Arc::new(nested), true),
            ("list", Arc::new(lists), true),
        ])
        .unwrap();
        Changes { rows, kinds: Some(vec![RowKind::Insert, RowKind::UpdateAfter, RowKind::Delete]) }
    }

    #[test]
    fn changes_are_printed_as_whole_lines() {
        let (_, mut writer) = writer("out> ", || Box::new(Recorder));
        writer.write(Epoch(1), &changes()).unwrap();
        writer.end_epoch(Epoch(1)).unwrap();
        writer.finish().unwrap();
        let written = WRITTEN.lock().unwrap();
        let expected = "out> +I[1, a, b, 2023-11-14 22:13:20.123, {x: 7}, [1, null]]\n\
                        out> +U[2, null, 1970-01-01 00:00:00, {x: null}, null]\n\
                        out> -D[3, two\\nlines\\r, 1970-01-01 00:00:01, {x: 9}, []]\n";
        assert_eq!(written.iter().map(|piece| std::str::from_utf8(piece).unwrap()).collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn a_reader_that_leaves_ends_the_printing_and_not_the_job() {
        let (sink, mut writer) = writer("", || Box::new(Failing(io::ErrorKind::BrokenPipe)));
        writer.write(Epoch(1), &changes()).unwrap();
        assert!(sink.is_abandoned());
        writer.write(Epoch(2), &changes()).unwrap();
        writer.finish().unwrap();
    }

    #[test]
    fn other_failures_to_print_are_errors() {
        let (_, mut writer) = writer("", || Box::new(Failing(io::ErrorKind::StorageFull)));
        let error = writer.write(Epoch(1), &changes()).unwrap_err();
        assert_eq!(error.code, Code::SinkUnavailable);
        assert!(error.message.starts_with("table `out`: can't print:"), "{}", error.message);
    }

    #[test]
    fn options_choose_prefix_and_stream() {
        let plan_with = |pairs: &[(&str, &str)]| {
            let options = Options::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned(), None)));
            let schema = Arc::new(arrow::datatypes::Schema::empty());
            let table = TableSpec {
                name: "out",
                physical: schema.clone(),
                schema,
                metadata: vec![],
                primary_key: vec![],
                partitioned_by: vec![],
                options: &options,
            };
            let planned = plan(&table).map(|sink| format!("{sink:?}"));
            (planned, options.finish(SPEC.options))
        };
        let (planned, rest) = plan_with(&[("print-identifier", "job1"), ("standard-error", "TRUE")]);
        assert!(planned.unwrap().contains("prefix: \"job1> \""));
        assert!(rest.is_ok());
        assert_eq!(plan_with(&[("standard-error", "perhaps")]).0.unwrap_err().code, Code::InvalidOption);
        assert_eq!(plan_with(&[("style", "table")]).1.unwrap_err()[0].code, Code::UnknownOption);
    }
}
