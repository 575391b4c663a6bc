//! The `csv` format: RFC 4180 with a choice of delimiter and quote.
//!
//! A quoted cell may hold line ends. So that a stray quote can't swallow what follows, a record that went wrong over several lines gives up
//! its first line only, and reading goes on with the next.

use std::collections::HashSet;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::cells::{self, Cells};
use super::columns::{Column, Decode, FieldSet, Flaw, Kind, TextRules, flaw};
use super::lines::rejected;
use super::names::{NameTable, Place, Target};
use super::scalar::TimestampStandard;
use super::{Decoded, Decoder, Encoder};
use crate::batch::Weights;
use crate::connect::{OptionSpec, OptionType, Options, Rejected, RowKind};
use crate::error::{Code, Result};

/// How CSV is read and written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsvOptions {
    /// Between cells.
    pub delimiter: u8,
    /// Around cells that hold other marks; doubled inside.
    pub quote: u8,
    /// Whether the first line of a file names the columns.
    pub header: bool,
    /// What an unquoted cell of NULL looks like.
    pub null_literal: Option<String>,
}

/// The options of `csv`.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        key: "csv.field-delimiter",
        kind: OptionType::Text,
        default: Some(","),
        required: false,
        doc: "The ASCII character between cells; '\\t' is a tab.",
    },
    OptionSpec {
        key: "csv.quote-character",
        kind: OptionType::Text,
        default: Some("\""),
        required: false,
        doc: "The ASCII character around cells that hold a delimiter, a quote or a line end; doubled inside.",
    },
    OptionSpec {
        key: "csv.header",
        kind: OptionType::Bool,
        default: Some("false"),
        required: false,
        doc: "Whether the first line of each file names the columns. A source finds columns by these names, then, instead of by their order.",
    },
    OptionSpec {
        key: "csv.null-literal",
        kind: OptionType::Text,
        default: None,
        required: false,
        doc: "An unquoted cell with this text is NULL. Left out: an empty unquoted cell is NULL, but the empty string where the column is STRING.",
    },
];

impl CsvOptions {
    /// Reads the options of `csv`.
    pub fn read(options: &Options) -> Result<Self> {
        if options.text("csv.ignore-parse-errors").is_some() {
            return Err(options
                .invalid("csv.ignore-parse-errors", "is not used here, since it loses records without a count")
                .hint("set 'on_error' = 'skip' or 'dead_letter(<sink>)' on the table"));
        }
        let character = |key: &str, default: u8| -> Result<u8> {
            // Not through `parsed`, which would trim a tab away.
            match options.text(key) {
                None => Ok(default),
                Some("\\t") => Ok(b'\t'),
                Some(text) => match text.as_bytes() {
                    [byte] if byte.is_ascii() && !matches!(byte, b'\n' | b'\r' | 0) => Ok(*byte),
                    _ => Err(options.invalid(key, format!("must be one ASCII character, not '{text}'"))),
                },
            }
        };
        let (delimiter, quote) = (character("csv.field-delimiter", b',')?, character("csv.quote-character", b'"')?);
        if delimiter == quote {
            return Err(options.invalid("csv.field-delimiter", "must differ from 'csv.quote-character'"));
        }
        let header = options.bool("csv.header")?.unwrap_or(false);
        Ok(Self { delimiter, quote, header, null_literal: options.text("csv.null-literal").map(str::to_owned) })
    }
}

/// A cell of the record that is being read: offsets into the buffer, quotes left out.
#[derive(Clone, Copy, Debug)]
struct Cell {
    start: usize,
    end: usize,
    is_quoted: bool,
    /// Doubled quotes stand in it.
    has_doubled: bool,
}

/// Where a record ends.
enum Cut {
    /// It ends, and the next one starts at this offset.
    Record { next: usize },
    /// More bytes are needed to say.
    Open,
    /// Something other than a delimiter or line end stands behind a closing quote.
    Malformed,
}

/// The decoder of `csv`.
pub struct CsvDecoder {
    options: CsvOptions,
    record_bytes_max: usize,
    fields: FieldSet,
    names: NameTable,
    /// For each cell of a record: the column it fills.
    by_position: Vec<Option<usize>>,
    /// The same for the current file, when it has a header.
    by_header: Option<Vec<Option<usize>>>,
    /// What is wrong with the current file's header, so that its records can't be read.
    bad_header: Option<Flaw>,
    buffer: Vec<u8>,
    cells: Vec<Cell>,
    scratch: String,
    origin: String,
    line: u64,
    is_at_start: bool,
    /// Inside a line that is too long; its start is in `long_line`.
    is_skipping: bool,
    long_line: Vec<u8>,
    weights: Vec<i64>,
    lines: Vec<i64>,
    rejected: Vec<Rejected>,
}

impl CsvDecoder {
    /// For the columns `schema` of a table with the physical columns `declared`, in the order of the cells.
    pub fn new(schema: &SchemaRef, declared: &SchemaRef, options: CsvOptions, record_bytes_max: usize) -> Result<Self> {
        for field in schema.fields() {
            cells::check_type(field, false)?;
        }
        let names = |s: &SchemaRef| s.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>();
        let (built, all) = (names(schema), names(declared));
        Ok(Self {
            by_position: all.iter().map(|name| built.iter().position(|b| b == name)).collect(),
            names: NameTable::new(built.iter().map(String::as_str), all.iter().map(String::as_str)),
            options,
            record_bytes_max,
            fields: FieldSet::new(schema)?,
            by_header: None,
            bad_header: None,
            buffer: Vec::new(),
            cells: Vec::new(),
            scratch: String::new(),
            origin: String::new(),
            line: 1,
            is_at_start: true,
            is_skipping: false,
            long_line: Vec::new(),
            weights: Vec::new(),
            lines: Vec::new(),
            rejected: Vec::new(),
        })
    }

    /// Takes whole records from the buffer; with `is_last` all of it.
    fn records(&mut self, is_last: bool) {
        let buffer = std::mem::take(&mut self.buffer);
        let mut at = 0;
        if self.is_at_start {
            if !is_last && buffer.len() < 3 && b"\xEF\xBB\xBF".starts_with(&buffer) {
                self.buffer = buffer;
                return;
            }
            self.is_at_start = false;
            at = if buffer.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
        }
        while at < buffer.len() || (is_last && self.is_skipping) {
            if self.is_skipping {
                let newline = memchr::memchr(b'\n', &buffer[at..]);
                if newline.is_none() && !is_last {
                    at = buffer.len();
                    break;
                }
                self.is_skipping = false;
                let long_line = std::mem::take(&mut self.long_line);
                self.reject(
                    Code::RecordTooLong,
                    format!("the record is longer than {} bytes", self.record_bytes_max),
                    &long_line,
                );
                self.line += 1;
                at = newline.map_or(buffer.len(), |i| at + i + 1);
                continue;
            }
            let first_line = memchr::memchr(b'\n', &buffer[at..]).map(|i| at + i);
            match self.cut(&buffer, at, is_last) {
                Cut::Record { next } => {
                    let record = trim_end(&buffer[at..next]);
                    let newlines = memchr::memchr_iter(b'\n', record).count() as u64;
                    if record.len() > self.record_bytes_max {
                        at = self.give_up_line(&buffer, at, first_line.unwrap_or(buffer.len()));
                        continue;
                    } else if !record.is_empty() {
                        let is_fine = self.record(&buffer, record, newlines > 0);
                        if !is_fine {
                            at = first_line.map_or(buffer.len(), |i| i + 1);
                            self.line += 1;
                            continue;
                        }
                    }
                    self.line += newlines + 1;
                    at = next;
                }
                Cut::Open if !is_last && buffer.len() - at <= self.record_bytes_max + 2 => break,
                Cut::Open | Cut::Malformed => {
                    let Some(end) = first_line.or(is_last.then_some(buffer.len())) else {
                        if buffer.len() - at <= self.record_bytes_max + 2 {
                            break;
                        }
                        self.is_skipping = true;
                        self.long_line = buffer[at..at + Rejected::RAW_BYTES_MAX.min(buffer.len() - at)].to_vec();
                        continue;
                    };
                    at = self.give_up_line(&buffer, at, end);
                }
            }
        }
        let mut rest = buffer;
        rest.drain(..at.min(rest.len()));
        self.buffer = rest;
    }

    /// Finds the end of the record at `at` and its cells.
    fn cut(&mut self, buffer: &[u8], mut at: usize, is_last: bool) -> Cut {
        let (delimiter, quote) = (self.options.delimiter, self.options.quote);
        self.cells.clear();
        loop {
            let mut cell = Cell { start: at, end: at, is_quoted: false, has_doubled: false };
            if buffer.get(at) == Some(&quote) {
                (cell.is_quoted, cell.start) = (true, at + 1);
                at += 1;
                loop {
                    match memchr::memchr(quote, &buffer[at..]) {
                        None => return Cut::Open,
                        Some(i) => at += i,
                    }
                    if buffer.get(at + 1) != Some(&quote) {
                        break;
                    }
                    cell.has_doubled = true;
                    at += 2;
                }
                cell.end = at;
                at += 1;
                // Whether a doubled quote or a `\r\n` follows is only known with the next byte.
                match (buffer.get(at), buffer.get(at + 1)) {
                    (None, _) | (Some(b'\r'), None) if !is_last => return Cut::Open,
                    (Some(b'\r'), Some(b'\n') | None) => at += 1,
                    (None | Some(b'\n'), _) => {}
                    (Some(byte), _) if *byte == delimiter => {}
                    _ => return Cut::Malformed,
                }
            } else {
                at = match memchr::memchr2(delimiter, b'\n', &buffer[at..]) {
                    Some(i) => at + i,
                    None if is_last => buffer.len(),
                    None => return Cut::Open,
                };
                cell.end = at;
                if buffer.get(at).is_none_or(|b| *b == b'\n') && at > cell.start && buffer[at - 1] == b'\r' {
                    cell.end -= 1;
                }
            }
            self.cells.push(cell);
            match buffer.get(at) {
                Some(byte) if *byte == delimiter && delimiter != b'\n' => at += 1,
                Some(_) => return Cut::Record { next: at + 1 },
                None => return Cut::Record { next: at },
            }
        }
    }

    /// Refuses the line from `at` to `end`; the answer is where the next one starts.
    fn give_up_line(&mut self, buffer: &[u8], at: usize, end: usize) -> usize {
        let line = trim_end(&buffer[at..end]);
        if line.len() > self.record_bytes_max {
            self.reject(Code::RecordTooLong, format!("the record is longer than {} bytes", self.record_bytes_max), line);
        } else {
            self.reject(Code::BadRecord, "a quote is not closed, or text stands behind a closing quote".into(), line);
        }
        self.line += 1;
        (end + 1).min(buffer.len())
    }

    fn reject(&mut self, code: Code, message: String, record: &[u8]) {
        self.rejected.push(rejected(Flaw { code, message }, &self.origin, self.line, record));
    }

    /// Takes the record whose cells are found; false when it went wrong and only its first line is given up.
    fn record(&mut self, buffer: &[u8], record: &[u8], has_newlines: bool) -> bool {
        let is_header = self.options.header && self.by_header.is_none();
        if is_header {
            self.read_header(buffer);
        }
        if let Some(Flaw { code, message }) = &self.bad_header {
            let (code, message) = (*code, message.clone());
            self.reject(code, message, record);
            return true;
        }
        if is_header {
            return true;
        }
        let rows = self.fields.rows();
        let answer = match std::str::from_utf8(record) {
            Ok(_) => self.row(buffer),
            Err(_) => flaw(Code::BadUtf8, "the record is not UTF-8"),
        };
        let Err(bad) = answer else {
            self.weights.push(1);
            self.lines.push(self.line as i64);
            return true;
        };
        self.fields.kill_from(rows);
        self.weights.resize(self.fields.rows(), 0);
        self.lines.resize(self.fields.rows(), 0);
        let is_misread = has_newlines && matches!(bad.code, Code::MissingField | Code::ExtraField);
        let shown = match memchr::memchr(b'\n', record) {
            Some(end) if is_misread => trim_end(&record[..end]),
            _ => record,
        };
        self.reject(bad.code, bad.message, shown);
        !is_misread
    }

    fn read_header(&mut self, buffer: &[u8]) {
        let mut place = Place::default();
        let mut columns = Vec::with_capacity(self.cells.len());
        let mut is_foreign = true;
        let mut named: HashSet<String> = HashSet::new();
        self.bad_header = None;
        for cell in &self.cells {
            let name = String::from_utf8_lossy(&buffer[cell.start..cell.end]);
            let name = name.trim();
            let target = self.names.find(&mut place, name);
            is_foreign &= matches!(target, Target::Extra);
            let column = match target {
                Target::Column(index) => Some(index),
                Target::Unneeded | Target::Extra => None,
            };
            // `ID` beside `id` is twice the same, too, unless the table has both. What the table has not may stand as often as it likes.
            let is_twice = match column {
                Some(index) => columns.contains(&Some(index)),
                None => target == Target::Unneeded && !named.insert(self.names.declared(name).to_owned()),
            };
            if is_twice {
                let name: String = name.chars().take(80).collect();
                let message = format!("the file's header names column '{name}' twice");
                self.bad_header.get_or_insert(Flaw { code: Code::BadRecord, message });
            }
            columns.push(column);
        }
        self.by_header = Some(columns);
        if is_foreign && !self.names.all().is_empty() {
            let names = self.names.all().join(", ");
            let message = format!("the file's header names none of the table's columns, which are: {names}");
            self.bad_header = Some(Flaw { code: Code::MissingField, message });
        }
    }

    fn row(&mut self, buffer: &[u8]) -> Decode<()> {
        let columns = self.by_header.as_deref().unwrap_or(&self.by_position);
        if self.cells.len() > columns.len() {
            return flaw(Code::ExtraField, format!("the record has {} cells for {} columns", self.cells.len(), columns.len()));
        }
        if self.cells.len() < columns.len() {
            return flaw(Code::MissingField, format!("the record has {} cells for {} columns", self.cells.len(), columns.len()));
        }
        for (cell, column) in self.cells.iter().zip(columns) {
            let Some(column) = column.map(|index| &mut self.fields.columns[index]) else { continue };
            let Ok(text) = std::str::from_utf8(&buffer[cell.start..cell.end]) else {
                return flaw(Code::BadUtf8, "a cell is not UTF-8");
            };
            if cell.has_doubled {
                self.scratch.clear();
                let quote = char::from(self.options.quote);
                let mut was_quote = false;
                for c in text.chars() {
                    was_quote = c == quote && !was_quote;
                    if !was_quote {
                        self.scratch.push(c);
                    }
                }
                append(column, &self.scratch, cell.is_quoted, &self.options)?;
            } else {
                append(column, text, cell.is_quoted, &self.options)?;
            }
        }
        let rows = self.fields.rows();
        for column in self.fields.columns.iter_mut().filter(|c| c.len() == rows) {
            if !column.field.is_nullable() {
                return flaw(Code::MissingField, format!("the header has no column '{}'", column.field.name()));
            }
            column.append_null();
        }
        self.fields.end_row();
        Ok(())
    }
}

/// A record without its line end.
fn trim_end(record: &[u8]) -> &[u8] {
    let record = record.strip_suffix(b"\n").unwrap_or(record);
    record.strip_suffix(b"\r").unwrap_or(record)
}

fn append(column: &mut Column, text: &str, is_quoted: bool, options: &CsvOptions) -> Decode<()> {
    let is_string = matches!(column.kind, Kind::Text(_));
    let is_null = !is_quoted
        && match &options.null_literal {
            Some(literal) => text == literal || (text.trim().is_empty() && !is_string),
            None => text.trim().is_empty() && !is_string,
        };
    if is_null {
        if !column.field.is_nullable() {
            return flaw(Code::MissingField, format!("column '{}' is NOT NULL, and its cell is empty", column.field.name()));
        }
        column.append_null();
        return Ok(());
    }
    column.append_text(if is_string { text } else { text.trim() }, TextRules::default())
}

impl Decoder for CsvDecoder {
    fn begin(&mut self, origin: &str) {
        debug_assert!(self.buffer.is_empty(), "the file before was ended");
        origin.clone_into(&mut self.origin);
        (self.line, self.is_at_start, self.by_header, self.bad_header) = (1, true, None, None);
    }

    fn push(&mut self, block: &[u8]) {
        self.buffer.extend_from_slice(block);
        self.records(false);
    }

    fn end(&mut self) {
        self.records(true);
        self.buffer.clear();
    }

    fn break_off(&mut self, code: Code, message: String) {
        let begun = std::mem::take(&mut self.buffer);
        let long_line = std::mem::take(&mut self.long_line);
        let shown = if std::mem::take(&mut self.is_skipping) { &long_line } else { &begun };
        self.reject(code, message, &shown[..shown.len().min(Rejected::RAW_BYTES_MAX)]);
    }

    fn rows(&self) -> usize {
        self.weights.len()
    }

    fn rejections(&self) -> usize {
        self.rejected.len()
    }

    fn finish(&mut self) -> Result<Decoded> {
        let mut lines = std::mem::take(&mut self.lines);
        if let Some(alive) = self.fields.alive() {
            let mut keep = alive.values().iter();
            lines.retain(|_| keep.next().unwrap_or(false));
        }
        let rows = self.fields.finish()?;
        self.weights.clear();
        assert_eq!(rows.num_rows(), lines.len(), "a line for each decoded row");
        Ok(Decoded { weights: Weights::Ones(rows.num_rows()), rows, lines, rejected: std::mem::take(&mut self.rejected) })
    }
}

/// The encoder of `csv`.
pub struct CsvEncoder {
    options: CsvOptions,
    header: String,
}

impl CsvEncoder {
    /// For rows of `schema`.
    pub fn new(schema: &SchemaRef, options: CsvOptions) -> Result<Self> {
        let mut header = String::new();
        for (i, field) in schema.fields().iter().enumerate() {
            cells::check_type(field, false)?;
            if i > 0 {
                header.push(char::from(options.delimiter));
            }
            write_cell(field.name(), false, &options, &mut header);
        }
        header.push('\n');
        Ok(Self { options, header })
    }
}

fn write_cell(text: &str, must_quote: bool, options: &CsvOptions, out: &mut String) {
    let is_special = |b: u8| b == options.delimiter || b == options.quote || b == b'\n' || b == b'\r';
    let quote = char::from(options.quote);
    if !must_quote && !text.bytes().any(is_special) {
        return out.push_str(text);
    }
    out.push(quote);
    for c in text.chars() {
        if c == quote {
            out.push(quote);
        }
        out.push(c);
    }
    out.push(quote);
}

impl Encoder for CsvEncoder {
    fn start(&mut self, out: &mut Vec<u8>) {
        if self.options.header {
            out.extend_from_slice(self.header.as_bytes());
        }
    }

    fn encode(&mut self, rows: &RecordBatch, _kinds: Option<&[RowKind]>, out: &mut Vec<u8>) -> Result<()> {
        let schema = rows.schema();
        let columns = schema.fields().iter().zip(rows.columns());
        let columns = columns.map(|(field, array)| Cells::new(field, array)).collect::<Result<Vec<_>>>()?;
        let null = self.options.null_literal.as_deref().unwrap_or("");
        let (mut line, mut cell) = (String::new(), String::new());
        for row in 0..rows.num_rows() {
            line.clear();
            for (i, column) in columns.iter().enumerate() {
                if i > 0 {
                    line.push(char::from(self.options.delimiter));
                }
                if column.is_null(row) {
                    line.push_str(null);
                    continue;
                }
                cell.clear();
                column.write_text(row, TimestampStandard::Sql, &mut cell);
                // A string that looks like NULL is quoted; a lone empty cell too, or its line would be blank.
                let must_quote = cell == null || (columns.len() == 1 && cell.is_empty());
                write_cell(&cell, must_quote && column.is_text(), &self.options, &mut line);
            }
            line.push('\n');
            out.extend_from_slice(line.as_bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::Arc;

    use arrow::array::{AsArray, Int32Array, StringViewArray};
    use arrow::datatypes::{DataType, Field, Int32Type, Schema};
    use proptest::prelude::*;

    use super::*;

    fn options() -> CsvOptions {
        CsvOptions { delimiter: b',', quote: b'"', header: false, null_literal: None }
    }

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("i", DataType::Int32, true), Field::new("s", DataType::Utf8View, true)]))
    }

    fn decode(schema: &SchemaRef, options: CsvOptions, input: &[u8], cuts: &[usize]) -> Decoded {
        let mut decoder = CsvDecoder::new(schema, schema, options, 200).unwrap();
        decoder.begin("t.csv");
        let mut start = 0;
        for cut in cuts {
            let cut = (*cut).clamp(start, input.len());
            decoder.push(&input[start..cut]);
            start = cut;
        }
        decoder.push(&input[start..]);
        decoder.end();
        decoder.finish().unwrap()
    }

    fn rows(decoded: &Decoded) -> Vec<(Option<i32>, Option<String>)> {
        let (i, s) = (decoded.rows.column(0).as_primitive::<Int32Type>(), decoded.rows.column(1).as_string_view());
        i.iter().zip(s.iter()).map(|(i, s)| (i, s.map(str::to_owned))).collect()
    }

    #[test]
    fn a_stray_quote_costs_its_line_only() {
        let input = b"1,a\n2,\"b\n3,c\n4,\"d\"x\n5,\"e,\n\"\"\"\n6\n7,g,h\nx,i\n99999999999,j\n,\n8,\xFF\n9,k";
        for cuts in [vec![], (0..input.len()).collect::<Vec<_>>(), vec![9, 20]] {
            let decoded = decode(&schema(), options(), input, &cuts);
            let text = |s: &str| Some(s.to_owned());
            let wanted =
                [(Some(1), text("a")), (Some(3), text("c")), (Some(5), text("e,\n\"")), (None, text("")), (Some(9), text("k"))];
            assert_eq!(rows(&decoded), wanted);
            assert_eq!(decoded.lines, [1, 3, 5, 11, 13]);
            let bad: Vec<_> = decoded.rejected.iter().map(|r| (r.code, r.position.unwrap())).collect();
            use Code::{BadRecord, BadUtf8, ExtraField, FieldRange, FieldType, MissingField};
            assert_eq!(
                bad,
                [
                    (BadRecord, 2),
                    (BadRecord, 4),
                    (MissingField, 7),
                    (ExtraField, 8),
                    (FieldType, 9),
                    (FieldRange, 10),
                    (BadUtf8, 12)
                ]
            );
        }
    }

    #[test]
    fn headers_name_columns_in_each_file() {
        let options = CsvOptions { header: true, ..options() };
        let decoded = decode(&schema(), options, "\u{feff}S,other,I\r\na,x,1\r\nb,y,2".as_bytes(), &[1, 2, 3]);
        assert_eq!(rows(&decoded), [(Some(1), Some("a".into())), (Some(2), Some("b".into()))]);
        assert!(decoded.rejected.is_empty());
    }

    #[test]
    fn a_header_without_any_column_of_the_table_makes_every_record_bad() {
        let options = CsvOptions { header: true, ..options() };
        let decoded = decode(&schema(), options.clone(), b"1,x\n2,y\n", &[]);
        assert_eq!(rows(&decoded), []);
        let told: Vec<_> = decoded.rejected.iter().map(|r| (r.code, r.position.unwrap(), r.raw.as_str())).collect();
        assert_eq!(told, [(Code::MissingField, 1, "1,x"), (Code::MissingField, 2, "2,y")]);
        let partly = decode(&schema(), options, b"i,z\n1,x\n", &[]);
        assert_eq!(rows(&partly), [(Some(1), None)], "a column that the file has not is NULL");
    }

    #[test]
    fn a_header_that_names_a_column_twice_makes_every_record_bad() {
        let options = CsvOptions { header: true, ..options() };
        for header in ["i,i,s", "I,s,i", "s,i,S"] {
            let decoded = decode(&schema(), options.clone(), format!("{header}\n1,2,a\n3,4,b\n").as_bytes(), &[]);
            assert_eq!(rows(&decoded), [], "{header}");
            let told: Vec<_> = decoded.rejected.iter().map(|r| (r.code, r.position.unwrap())).collect();
            assert_eq!(told, [(Code::BadRecord, 1), (Code::BadRecord, 2), (Code::BadRecord, 3)], "{header}");
            assert!(decoded.rejected[0].message.contains("twice"), "{:?}", decoded.rejected);
        }
        let others = decode(&schema(), options.clone(), b"i,x,x\n1,2,a\n", &[]);
        assert_eq!(rows(&others), [(Some(1), None)], "what the table has not is nobody's");
        // The plan reads one column only, and the other one stands twice.
        let narrow = Arc::new(schema().project(&[0]).unwrap());
        let mut decoder = CsvDecoder::new(&narrow, &schema(), options, 200).unwrap();
        decoder.begin("t.csv");
        decoder.push(b"i,s,s\n1,a,b\n");
        decoder.end();
        let decoded = decoder.finish().unwrap();
        assert_eq!((decoded.rows.num_rows(), decoded.rejected.len()), (0, 2));
        decoder.begin("fine.csv");
        decoder.push(b"i,s\n1,a\n");
        decoder.end();
        assert_eq!(decoder.finish().unwrap().rows.num_rows(), 1, "the next file has a header of its own");
    }

    #[test]
    fn a_record_that_is_cut_off_is_no_row() {
        let mut decoder = CsvDecoder::new(&schema(), &schema(), options(), 100).unwrap();
        decoder.begin("f");
        decoder.push(b"1,a\n2,bcd");
        decoder.break_off(Code::CorruptFile, "it ends".into());
        let decoded = decoder.finish().unwrap();
        assert_eq!(rows(&decoded), [(Some(1), Some("a".into()))]);
        assert_eq!((decoded.rejected[0].position, decoded.rejected[0].raw.as_str()), (Some(2), "2,bcd"));
        decoder.begin("g");
        decoder.push(b"3,c\n");
        decoder.end();
        assert_eq!(rows(&decoder.finish().unwrap()), [(Some(3), Some("c".into()))]);
    }

    #[test]
    fn long_records_are_refused_and_the_next_is_read() {
        let long = "x".repeat(500);
        let input = format!("1,{long}\n2,b\n3,\"{long}\n4,d\n5,{long}");
        for cuts in [vec![], (0..input.len()).collect::<Vec<_>>(), vec![100, 300, 700]] {
            let decoded = decode(&schema(), options(), input.as_bytes(), &cuts);
            assert_eq!(rows(&decoded), [(Some(2), Some("b".into())), (Some(4), Some("d".into()))]);
            assert_eq!(decoded.rejected.iter().map(|r| r.position.unwrap()).collect::<Vec<_>>(), [1, 3, 5]);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            values in prop::collection::vec((any::<Option<i32>>(), "[a,\"\\r\\n é]{0,8}"), 1..20),
            header: bool,
            semicolon: bool,
            cuts in prop::collection::vec(0usize..300, 0..5),
        ) {
            let options = CsvOptions { header, delimiter: if semicolon { b';' } else { b',' }, null_literal: Some("NULL".into()), ..options() };
            let batch = RecordBatch::try_new(schema(), vec![
                Arc::new(values.iter().map(|v| v.0).collect::<Int32Array>()),
                Arc::new(values.iter().map(|v| Some(v.1.as_str())).collect::<StringViewArray>()),
            ]).unwrap();
            let mut encoder = CsvEncoder::new(&schema(), options.clone()).unwrap();
            let mut bytes = Vec::new();
            encoder.start(&mut bytes);
            encoder.encode(&batch, None, &mut bytes).unwrap();
            let mut cuts = cuts;
            cuts.sort_unstable();
            let decoded = decode(&schema(), options, &bytes, &cuts);
            prop_assert!(decoded.rejected.is_empty(), "{:?}", decoded.rejected);
            prop_assert_eq!(decoded.rows, batch);
        }

        #[test]
        fn any_bytes_are_read_the_same_however_they_are_cut(
            input in prop::collection::vec(prop_oneof![Just(b'"'), Just(b','), Just(b'\n'), Just(b'\r'), Just(b'1'), any::<u8>()], 0..600),
            cuts in prop::collection::vec(0usize..600, 0..8),
        ) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let whole = decode(&schema(), options(), &input, &[]);
            let cut = decode(&schema(), options(), &input, &cuts);
            prop_assert_eq!(&whole.rows, &cut.rows);
            prop_assert_eq!(&whole.lines, &cut.lines);
            let places = |d: &Decoded| d.rejected.iter().map(|r| (r.code, r.position, r.message.clone())).collect::<Vec<_>>();
            prop_assert_eq!(places(&whole), places(&cut));
        }
    }
}
