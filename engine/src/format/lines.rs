//! Cuts bytes into lines and hands each to a decoder of its format; what it can't decode becomes a [`Rejected`].

use crate::batch::Weights;
use crate::connect::Rejected;
use crate::error::{Code, Result};
use crate::format::columns::{Decode, FieldSet, Flaw, flaw};
use crate::format::{Decoded, Decoder};

/// A format whose record is a line.
pub trait LineDecoder: Send {
    /// Decodes one line, without its end, as any number of rows: appends them to the fields and a weight for each to `weights`.
    /// After an error the caller drops what it appended.
    fn line(&mut self, text: &str, weights: &mut Vec<i64>) -> Decode<()>;
    /// The same for a line that is not UTF-8.
    fn bytes_line(&mut self, _line: &[u8], _weights: &mut Vec<i64>) -> Decode<()> {
        flaw(Code::BadUtf8, "the record is not UTF-8")
    }
    /// The columns that are filled.
    fn fields(&mut self) -> &mut FieldSet;
    /// Whether a line of nothing but white space is a record too.
    fn takes_blank_lines(&self) -> bool {
        false
    }
}

/// The decoder of a format of lines. Lines end with `\n` or `\r\n`, the last one may lack it. A byte order mark at the start is passed over.
pub struct LineFramer<D> {
    decoder: D,
    /// The longest record, in bytes without the line's end.
    record_bytes_max: usize,
    origin: String,
    /// The start of a line whose end is in a later block; at most `record_bytes_max + 2` bytes.
    carry: Vec<u8>,
    /// Inside a line that is too long: pass over everything up to its end.
    is_skipping: bool,
    is_at_start: bool,
    /// The number of the line that is read next, from 1.
    line: u64,
    weights: Vec<i64>,
    lines: Vec<i64>,
    rejected: Vec<Rejected>,
}

impl<D: LineDecoder> LineFramer<D> {
    /// For lines of at most `record_bytes_max` bytes.
    pub fn new(decoder: D, record_bytes_max: usize) -> Self {
        Self {
            decoder,
            record_bytes_max,
            origin: String::new(),
            carry: Vec::new(),
            is_skipping: false,
            is_at_start: true,
            line: 1,
            weights: Vec::new(),
            lines: Vec::new(),
            rejected: Vec::new(),
        }
    }

    fn reject(&mut self, flaw: Flaw, line: &[u8]) {
        self.rejected.push(rejected(flaw, &self.origin, self.line, line));
    }

    /// One line without `\n`; `text` is the same when it is known to be UTF-8.
    fn line(&mut self, line: &[u8], text: Option<&str>) {
        let (mut line, mut text) = (line, text);
        if let Some(stripped) = line.strip_suffix(b"\r") {
            line = stripped;
            text = text.and_then(|t| t.strip_suffix('\r'));
        }
        if line.len() > self.record_bytes_max {
            let message = format!("the record has {} bytes; at most {} are allowed", line.len(), self.record_bytes_max);
            self.reject(Flaw { code: Code::RecordTooLong, message }, line);
        } else if !line.iter().all(|b| matches!(b, b' ' | b'\t' | b'\r')) || self.decoder.takes_blank_lines() {
            let rows = self.decoder.fields().rows();
            let answer = match text.or_else(|| std::str::from_utf8(line).ok()) {
                Some(text) => self.decoder.line(text, &mut self.weights),
                None => self.decoder.bytes_line(line, &mut self.weights),
            };
            if let Err(flaw) = answer {
                self.decoder.fields().kill_from(rows);
                self.weights.truncate(rows);
                self.weights.resize(self.decoder.fields().rows(), 0);
                self.reject(*flaw, line);
            }
            self.lines.resize(self.weights.len(), self.line as i64);
        }
        self.line += 1;
    }

    /// The end of a line that started in an earlier block.
    fn end_carried(&mut self, rest: &[u8]) {
        if self.is_skipping {
            self.is_skipping = false;
            let message = format!("the record is longer than {} bytes", self.record_bytes_max);
            let carry = std::mem::take(&mut self.carry);
            self.reject(Flaw { code: Code::RecordTooLong, message }, &carry);
            self.line += 1;
            return;
        }
        let mut carry = std::mem::take(&mut self.carry);
        carry.extend_from_slice(rest);
        self.line(&carry, None);
        carry.clear();
        self.carry = carry;
    }

    fn whole_lines(&mut self, block: &[u8]) {
        let text = std::str::from_utf8(block).ok();
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', block) {
            self.line(&block[start..end], text.map(|t| &t[start..end]));
            start = end + 1;
        }
    }
}

impl<D: LineDecoder> Decoder for LineFramer<D> {
    fn begin(&mut self, origin: &str) {
        debug_assert!(self.carry.is_empty(), "the file before was ended");
        origin.clone_into(&mut self.origin);
        (self.line, self.is_at_start) = (1, true);
    }

    fn push(&mut self, mut block: &[u8]) {
        if self.is_at_start {
            // The mark may be cut over blocks: gather its three bytes first.
            self.carry.extend_from_slice(block);
            if self.carry.len() < 3 && b"\xEF\xBB\xBF".starts_with(&self.carry) {
                return;
            }
            self.is_at_start = false;
            let gathered = std::mem::take(&mut self.carry);
            return self.push(gathered.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&gathered));
        }
        if !self.carry.is_empty() || self.is_skipping {
            match memchr::memchr(b'\n', block) {
                Some(end) => {
                    self.end_carried(&block[..end]);
                    block = &block[end + 1..];
                }
                None => return self.carry_on(block),
            }
        }
        let end = memchr::memrchr(b'\n', block).map_or(0, |i| i + 1);
        self.whole_lines(&block[..end]);
        self.carry_on(&block[end..]);
    }

    fn end(&mut self) {
        self.is_at_start = false;
        if !self.carry.is_empty() || self.is_skipping {
            self.end_carried(&[]);
        }
    }

    fn break_off(&mut self, code: Code, message: String) {
        (self.is_at_start, self.is_skipping) = (false, false);
        let begun = std::mem::take(&mut self.carry);
        self.reject(Flaw { code, message }, &begun);
    }

    fn rows(&self) -> usize {
        self.weights.len()
    }

    fn rejections(&self) -> usize {
        self.rejected.len()
    }

    fn finish(&mut self) -> Result<Decoded> {
        let fields = self.decoder.fields();
        let alive = fields.alive();
        let rows = fields.finish()?;
        let (mut weights, mut lines) = (std::mem::take(&mut self.weights), std::mem::take(&mut self.lines));
        if let Some(alive) = alive {
            let mut keep = alive.values().iter();
            weights.retain(|_| keep.next().unwrap_or(false));
            let mut keep = alive.values().iter();
            lines.retain(|_| keep.next().unwrap_or(false));
        }
        assert_eq!(rows.num_rows(), weights.len(), "a weight for each decoded row");
        Ok(Decoded { rows, weights: Weights::from_vec(weights), lines, rejected: std::mem::take(&mut self.rejected) })
    }
}

impl<D: LineDecoder> LineFramer<D> {
    /// Keeps the start of a line for the next block.
    fn carry_on(&mut self, block: &[u8]) {
        if self.is_skipping {
            return;
        }
        // Two more for "\r" and so that the comparison in `line` can tell.
        let room = (self.record_bytes_max + 2).saturating_sub(self.carry.len());
        if block.len() > room {
            self.is_skipping = true;
            self.carry.truncate(Rejected::RAW_BYTES_MAX);
            let room = Rejected::RAW_BYTES_MAX - self.carry.len();
            self.carry.extend_from_slice(&block[..room.min(block.len())]);
        } else {
            self.carry.extend_from_slice(block);
        }
    }
}

/// A bad record, with as much of it as is kept.
#[must_use]
pub fn rejected(flaw: Flaw, origin: &str, line: u64, record: &[u8]) -> Rejected {
    let kept = &record[..record.len().min(Rejected::RAW_BYTES_MAX)];
    let mut raw = String::from_utf8_lossy(kept).into_owned();
    if raw.len() > Rejected::RAW_BYTES_MAX {
        let cut = (0..=Rejected::RAW_BYTES_MAX).rev().find(|i| raw.is_char_boundary(*i)).unwrap_or(0);
        raw.truncate(cut);
    }
    Rejected { code: flaw.code, message: flaw.message, origin: origin.to_owned(), position: Some(line), raw }
}
