//! Reads JSON text from left to right, straight into values: no tape, no tree.
//!
//! The whole record is checked against RFC 8259, also the parts that nobody needs: strings (escapes, surrogates, control characters),
//! numbers, nesting up to [`DEPTH_MAX`].

use crate::error::Code;
use crate::format::columns::{Decode, flaw};

/// The deepest nesting of arrays and objects.
pub const DEPTH_MAX: usize = 127;

/// A position in the text of one record.
pub struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// A high bit in each byte of `word` that is a quote, a backslash or a control character. Only the lowest set bit is reliable.
fn special_bits(word: u64) -> u64 {
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let zero = |x: u64| x.wrapping_sub(ONES) & !x;
    (zero(quote) | zero(backslash) | (word.wrapping_sub(ONES * 0x20) & !word)) & HIGHS
}

/// The index of the first quote, backslash or control character from `at` on; `bytes.len()` when there is none.
fn find_special(bytes: &[u8], mut at: usize) -> usize {
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let bits = special_bits(u64::from_le_bytes(*chunk));
        if bits != 0 {
            return at + (bits.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while let Some(byte) = bytes.get(at) {
        if *byte == b'"' || *byte == b'\\' || *byte < 0x20 {
            return at;
        }
        at += 1;
    }
    at
}

impl<'a> Scanner<'a> {
    /// At the start of `text`.
    pub fn new(text: &'a str) -> Self {
        Self { text, bytes: text.as_bytes(), at: 0 }
    }

    /// The text from `from` to here.
    pub fn since(&self, from: usize) -> &'a str {
        &self.text[from..self.at]
    }

    /// "not JSON", here.
    pub fn bad<T>(&self, what: &str) -> Decode<T> {
        flaw(Code::BadRecord, format!("not JSON: {what} at byte {}", self.at + 1))
    }

    /// The next byte that is no white space, without taking it.
    pub fn peek(&mut self) -> Option<u8> {
        while let Some(&byte) = self.bytes.get(self.at) {
            if byte > b' ' || !matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    /// Takes `byte` if it is next.
    pub fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    /// Nothing but white space may follow.
    pub fn end(&mut self) -> Decode<()> {
        match self.peek() {
            None => Ok(()),
            Some(_) => self.bad("text behind the end of the value"),
        }
    }

    /// `:` between name and value.
    pub fn colon(&mut self) -> Decode<()> {
        if self.take(b':') { Ok(()) } else { self.bad("':' expected") }
    }

    /// `true`, `false` or `null`, which must stand here.
    pub fn word(&mut self, word: &'static str) -> Decode<()> {
        if self.bytes[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(())
        } else {
            self.bad("no value starts like this")
        }
    }

    /// The string whose opening quote is next; from the text itself, or from `scratch` when it has escapes.
    pub fn string<'s>(&mut self, scratch: &'s mut String) -> Decode<&'s str>
    where
        'a: 's,
    {
        let start = self.at + 1;
        let end = find_special(self.bytes, start);
        if self.bytes.get(end) == Some(&b'"') {
            self.at = end + 1;
            return Ok(&self.text[start..end]);
        }
        self.escaped_string(start, end, scratch)?;
        Ok(scratch)
    }

    #[cold]
    fn escaped_string(&mut self, mut start: usize, mut end: usize, scratch: &mut String) -> Decode<()> {
        scratch.clear();
        loop {
            scratch.push_str(&self.text[start..end]);
            self.at = end;
            match self.bytes.get(end) {
                Some(b'"') => {
                    self.at = end + 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.at = end + 1;
                    scratch.push(self.escape()?);
                    start = self.at;
                    end = find_special(self.bytes, start);
                }
                Some(_) => return self.bad("a control character inside a string"),
                None => return self.bad("a string without its closing quote"),
            }
        }
    }

    fn escape(&mut self) -> Decode<char> {
        let Some(byte) = self.bytes.get(self.at) else { return self.bad("a string without its closing quote") };
        self.at += 1;
        Ok(match byte {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let high = self.hex4()?;
                let code = if (0xD800..0xDC00).contains(&high) {
                    if !self.bytes[self.at..].starts_with(b"\\u") {
                        return self.bad("half of a surrogate pair");
                    }
                    self.at += 2;
                    let low = self.hex4()?;
                    if !(0xDC00..0xE000).contains(&low) {
                        return self.bad("half of a surrogate pair");
                    }
                    0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00)
                } else {
                    high
                };
                match char::from_u32(code) {
                    Some(c) => c,
                    None => return self.bad("half of a surrogate pair"),
                }
            }
            _ => return self.bad("no such escape"),
        })
    }

    fn hex4(&mut self) -> Decode<u32> {
        let Some(digits) = self.bytes.get(self.at..self.at + 4) else { return self.bad("four hex digits expected") };
        let mut code = 0;
        for digit in digits {
            let Some(value) = char::from(*digit).to_digit(16) else { return self.bad("four hex digits expected") };
            code = code << 4 | value;
        }
        self.at += 4;
        Ok(code)
    }

    /// A whole number of at most 18 digits, the common case; `None`, and nothing taken, when something else is next.
    pub fn short_integer(&mut self) -> Option<i64> {
        let negative = self.bytes.get(self.at) == Some(&b'-');
        let start = self.at + usize::from(negative);
        let (mut at, mut value) = (start, 0i64);
        while let Some(digit @ b'0'..=b'9') = self.bytes.get(at) {
            if at - start == 18 {
                return None;
            }
            value = value * 10 + i64::from(digit - b'0');
            at += 1;
        }
        let leading_zero = at - start > 1 && self.bytes[start] == b'0';
        if at == start || leading_zero || matches!(self.bytes.get(at), Some(b'.' | b'e' | b'E')) {
            return None;
        }
        self.at = at;
        Some(if negative { -value } else { value })
    }

    /// The text of a number by JSON's grammar.
    pub fn number(&mut self) -> Decode<&'a str> {
        let start = self.at;
        self.at += usize::from(self.bytes.get(self.at) == Some(&b'-'));
        let whole = self.digits();
        if whole == 0 || (whole > 1 && self.bytes[self.at - whole] == b'0') {
            return self.bad("no value starts like this");
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return self.bad("a digit expected");
            }
        }
        if let Some(b'e' | b'E') = self.bytes.get(self.at) {
            self.at += 1;
            self.at += usize::from(matches!(self.bytes.get(self.at), Some(b'+' | b'-')));
            if self.digits() == 0 {
                return self.bad("a digit expected");
            }
        }
        Ok(self.since(start))
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.bytes.get(self.at) {
            self.at += 1;
        }
        self.at - start
    }

    /// Passes over any value and gives its text. `depth`: how deep it stands.
    pub fn skip(&mut self, depth: usize, scratch: &mut String) -> Decode<&'a str> {
        let next = self.peek();
        let start = self.at;
        match next {
            Some(b'"') => {
                self.string(scratch)?;
            }
            Some(b'-' | b'0'..=b'9') => {
                self.number()?;
            }
            Some(b'{') => {
                let mut members = self.open(b'{', depth)?;
                while self.next_item(b'}', &mut members)? {
                    self.name(scratch)?;
                    self.skip(depth + 1, scratch)?;
                }
            }
            Some(b'[') => {
                let mut items = self.open(b'[', depth)?;
                while self.next_item(b']', &mut items)? {
                    self.skip(depth + 1, scratch)?;
                }
            }
            Some(b't') => self.word("true")?,
            Some(b'f') => self.word("false")?,
            Some(b'n') => self.word("null")?,
            Some(_) => return self.bad("no value starts like this"),
            None => return self.bad("the record ends too early"),
        }
        Ok(self.since(start))
    }

    /// Takes the bracket that opens an array or object; the answer is for [`Self::next_item`].
    pub fn open(&mut self, bracket: u8, depth: usize) -> Decode<bool> {
        if depth >= DEPTH_MAX {
            return flaw(Code::BadRecord, format!("arrays and objects are nested deeper than {DEPTH_MAX}"));
        }
        debug_assert_eq!(self.bytes.get(self.at), Some(&bracket), "the caller looked");
        self.at += 1;
        Ok(true)
    }

    /// Goes to the next item of an array or object; false at its end. `is_first` is what [`Self::open`] gave.
    pub fn next_item(&mut self, close: u8, is_first: &mut bool) -> Decode<bool> {
        if std::mem::take(is_first) {
            return Ok(!self.take(close));
        }
        if self.take(b',') {
            return Ok(true);
        }
        if self.take(close) {
            return Ok(false);
        }
        match self.peek() {
            None => self.bad("the record ends too early"),
            Some(_) => self.bad("',' expected"),
        }
    }

    /// The name of an object's member and the colon behind it.
    pub fn name<'s>(&mut self, scratch: &'s mut String) -> Decode<&'s str>
    where
        'a: 's,
    {
        if self.peek() != Some(b'"') {
            return self.bad("a field name expected");
        }
        let start = self.at + 1;
        let end = find_special(self.bytes, start);
        if self.bytes.get(end) == Some(&b'"') {
            self.at = end + 1;
            self.colon()?;
            return Ok(&self.text[start..end]);
        }
        self.escaped_string(start, end, scratch)?;
        self.colon()?;
        Ok(scratch)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    fn is_json(text: &str) -> bool {
        let mut scanner = Scanner::new(text);
        scanner.skip(0, &mut String::new()).is_ok() && scanner.end().is_ok()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn json_is_what_serde_says_it_is(text in r#"[\[\]{}",:0-9eE.truefalsn\\ \t-]{0,16}"#) {
            prop_assert_eq!(is_json(&text), serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
        }

        #[test]
        fn strings_are_what_serde_says_they_are(inner in r#"[a-c"\\ubnD8dC0é\x00-\x20]{0,24}"#) {
            let text = format!("\"{inner}\"");
            let mut scratch = String::new();
            let mut scanner = Scanner::new(&text);
            let ours = scanner.string(&mut scratch).ok().map(str::to_owned).filter(|_| scanner.end().is_ok());
            prop_assert_eq!(ours, serde_json::from_str::<String>(&text).ok());
        }

        #[test]
        fn special_bytes_are_found_at_any_place(bytes in prop::collection::vec(any::<u8>(), 0..40), start in 0usize..8) {
            let naive = (start..bytes.len()).find(|i| matches!(bytes[*i], b'"' | b'\\' | 0..0x20)).unwrap_or(bytes.len().max(start));
            prop_assert_eq!(find_special(&bytes, start), naive);
        }
    }

    #[test]
    fn deep_nesting_is_refused_before_the_stack_ends() {
        let deep = "[".repeat(1_000_000);
        assert!(!is_json(&deep));
        let fine = format!("{}{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX));
        assert!(is_json(&fine));
        assert!(serde_json::from_str::<serde_json::Value>(&fine).is_ok());
    }
}
