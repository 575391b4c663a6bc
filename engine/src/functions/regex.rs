//! Regular expressions. Compiled once and kept, a few per thread.

use std::cell::RefCell;
use std::rc::Rc;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::Volatility;
use memchr::memmem;
use regex_automata::dfa::onepass;
use regex_automata::meta::{self, Regex};
use regex_automata::util::captures::Captures;
use regex_automata::util::prefilter::Prefilter;
use regex_automata::util::primitives::NonMaxUsize;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};
use regex_syntax::hir::Hir;
use regex_syntax::hir::literal::{ExtractKind, Extractor};

use super::call::{Call, Function, Integer, error_with_hint, is_integer, is_text};
use super::substrings::Substrings;
use crate::error::Code;

/// How many compiled expressions a thread keeps.
const CACHED_MAX: usize = 32;
/// The largest compiled expression.
const COMPILED_BYTES_MAX: usize = 4 * 1024 * 1024;

pub(super) const FUNCTIONS: &[Function] = &[Function {
    name: "regexp_extract",
    aliases: &["regexp_substr"],
    family: "text",
    signature: "regexp_extract(text, expression [, group])",
    doc: "What a group of a regular expression matches in a text; group 0, the default, is the whole match; NULL without a match.",
    volatility: Volatility::Immutable,
    types: |types| match types {
        [a, b] if is_text(a) && is_text(b) => Some((vec![DataType::Utf8View; 2], DataType::Utf8View)),
        [a, b, c] if is_text(a) && is_text(b) && is_integer(c) => {
            Some((vec![DataType::Utf8View, DataType::Utf8View, DataType::Int64], DataType::Utf8View))
        }
        _ => None,
    },
    eval: regexp_extract,
}];

/// After so many places where a match could begin and none did, the general search takes over, which is linear whatever the text.
const FAILED_STARTS_MAX: usize = 16;

/// A compiled expression.
#[derive(Debug)]
struct Pattern {
    general: Regex,
    direct: Option<Direct>,
}

/// The quick way for expressions that begin with one of a few words: a vectorised search for the words, then one pass over the match.
/// The general search makes up to three passes, and a fourth for groups.
#[derive(Debug)]
struct Direct {
    words: Words,
    dfa: onepass::DFA,
}

/// The words with one of which each match begins.
#[derive(Debug)]
enum Words {
    /// A word, and the same word behind one byte, as `(&|^)name=` has: looking for the one word is quicker than looking for both.
    Tail { word: memmem::Finder<'static>, before: u8 },
    /// Any few.
    Any(Prefilter),
}

impl Words {
    fn new(hir: &Hir) -> Option<Self> {
        let begins = Extractor::new().kind(ExtractKind::Prefix).extract(hir);
        if let Some([a, b]) = begins.literals() {
            let (short, long) = if a.len() < b.len() { (a.as_bytes(), b.as_bytes()) } else { (b.as_bytes(), a.as_bytes()) };
            if let Some((before, tail)) = long.split_first()
                && tail == short
                && !short.is_empty()
            {
                return Some(Self::Tail { word: memmem::Finder::new(short).into_owned(), before: *before });
            }
        }
        Prefilter::from_hir_prefix(MatchKind::LeftmostFirst, hir).map(Self::Any)
    }

    /// The first place from `from` on where one of the words begins.
    fn find(&self, text: &[u8], from: usize) -> Option<usize> {
        match self {
            Self::Tail { word, before } => {
                let at = from + word.find(text.get(from..)?)?;
                Some(if at > from && text[at - 1] == *before { at - 1 } else { at })
            }
            Self::Any(words) => words.find(text, regex_automata::Span { start: from, end: text.len() }).map(|found| found.start),
        }
    }
}

impl Direct {
    fn new(pattern: &str) -> Option<Self> {
        let hir = syntax::parse(pattern).ok()?;
        // Never leaves out a place where a match begins: that is what makes the first match found the leftmost.
        let words = Words::new(&hir)?;
        let config = onepass::Config::new().size_limit(Some(COMPILED_BYTES_MAX));
        let dfa = onepass::Builder::new().configure(config).build(pattern).ok()?;
        Some(Self { words, dfa })
    }

    /// Whether there is a match; its groups are in `slots`. `None`: too many places to try.
    fn search(&self, cache: &mut onepass::Cache, text: &str, slots: &mut [Option<NonMaxUsize>]) -> Option<bool> {
        let mut from = 0;
        for _ in 0..FAILED_STARTS_MAX {
            let Some(start) = self.words.find(text.as_bytes(), from) else { return Some(false) };
            let input = Input::new(text).span(start..text.len()).anchored(Anchored::Yes);
            match self.dfa.try_search_slots(cache, &input, slots) {
                Ok(Some(_)) => return Some(true),
                Ok(None) => from = start + 1,
                Err(_) => return None,
            }
        }
        None
    }
}

thread_local! {
    /// The expressions used last, newest at the end.
    static CACHE: RefCell<Vec<(String, Rc<Pattern>)>> = const { RefCell::new(Vec::new()) };
}

/// The compiled form of `pattern`.
fn compiled(pattern: &str) -> Result<Rc<Pattern>> {
    CACHE.with_borrow_mut(|cache| {
        if let Some(index) = cache.iter().position(|(text, _)| text == pattern) {
            let last = cache.len() - 1;
            cache.swap(index, last);
            return Ok(cache[last].1.clone());
        }
        let config = meta::Config::new().nfa_size_limit(Some(COMPILED_BYTES_MAX));
        let general = meta::Builder::new().configure(config).build(pattern).map_err(|error| {
            let reason = error.syntax_error().map_or_else(|| error.to_string(), ToString::to_string);
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            error_with_hint(
                Code::InvalidArgument,
                format!("'{pattern}' is no regular expression: {reason}"),
                "the syntax is that of Rust's regex crate: no look-around, no back references",
            )
        })?;
        if cache.len() == CACHED_MAX {
            cache.remove(0);
        }
        let compiled = Rc::new(Pattern { direct: Direct::new(pattern), general });
        cache.push((pattern.to_owned(), compiled.clone()));
        Ok(compiled)
    })
}

/// A pattern with what its searches need, for the rows of a batch.
struct Matcher {
    pattern: Rc<Pattern>,
    cache: Option<onepass::Cache>,
    slots: Vec<Option<NonMaxUsize>>,
    captures: Captures,
}

impl Matcher {
    fn new(pattern: Rc<Pattern>) -> Self {
        let captures = pattern.general.create_captures();
        let cache = pattern.direct.as_ref().map(|direct| direct.dfa.create_cache());
        Self { cache, slots: vec![None; 2 * pattern.general.captures_len()], captures, pattern }
    }

    /// Groups, with the whole match as the first.
    fn groups(&self) -> usize {
        self.pattern.general.captures_len()
    }

    /// Where `group` matches in the leftmost match.
    fn find(&mut self, text: &str, group: usize) -> Option<std::ops::Range<usize>> {
        if let (Some(direct), Some(cache)) = (&self.pattern.direct, &mut self.cache)
            && let Some(matched) = direct.search(cache, text, &mut self.slots)
        {
            let (start, end) = (self.slots[2 * group]?, self.slots[2 * group + 1]?);
            return matched.then(|| start.get()..end.get());
        }
        if group == 0 {
            return self.pattern.general.find(text).map(|found| found.range());
        }
        self.pattern.general.captures(text, &mut self.captures);
        self.captures.get_group(group).map(|span| span.range())
    }
}

fn regexp_extract(call: &Call<'_>) -> Result<ArrayRef> {
    let (text, pattern) = (call.text(0)?, call.text(1)?);
    let group = if call.arity() == 3 { call.integer(2)? } else { Integer::Constant(Some(0)) };
    let mut out = Substrings::new(text, call.rows);
    let mut current: Option<(&str, Matcher)> = None;
    for row in 0..call.rows {
        let (Some(text), Some(pattern), Some(group)) = (text.get(row), pattern.get(row), group.get(row)) else {
            out.push_null();
            continue;
        };
        let is_current = current.as_ref().is_some_and(|(known, ..)| std::ptr::eq(*known, pattern) || *known == pattern);
        if !is_current {
            current = Some((pattern, Matcher::new(compiled(pattern)?)));
        }
        let Some((_, matcher)) = &mut current else { continue };
        let found = match usize::try_from(group) {
            Ok(group) if group < matcher.groups() => matcher.find(text, group),
            _ => {
                let message = format!("'{pattern}' has {} groups, not {group}", matcher.groups() - 1);
                return Err(error_with_hint(
                    Code::InvalidArgument,
                    message,
                    "groups are counted by their opening parentheses, from 1",
                ));
            }
        };
        match found {
            Some(range) => out.push(row, range),
            None => out.push_null(),
        }
    }
    Ok(out.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the regex crate, over texts of the characters that the expressions are about.
    #[test]
    fn the_quick_way_finds_what_the_general_search_finds() {
        let random = crate::connect::random::RandomStream::new(11, 0);
        let mut direct = 0;
        for pattern in [
            "(&|^)channel_id=([^&]*)",
            "(a|^)a(b*)",
            "(&|)aba(c?)",
            "ab(c*)",
            "(a|ab)(c|bcd)?",
            "^a(b)?",
            "a(b|$)",
            "(?i)ab(c)",
            "a[^b]*c",
            "\\bab(c?)",
            "é(a)?",
            "(a)|(b)",
            "a(?:b(c)?)?$",
            "(ab|a)(bc)?",
        ] {
            let compiled = compiled(pattern).expect("a pattern");
            direct += usize::from(compiled.direct.is_some());
            let (mut matcher, reference) = (Matcher::new(compiled), regex::Regex::new(pattern).expect("a pattern"));
            for n in 0..4000 {
                let mut word = random.word(n);
                let mut text = String::new();
                for _ in 0..word % 23 {
                    word = word.rotate_left(5).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    text.push_str(["a", "b", "c", "d", "&", "é", "A", "channel_id=", " "][(word >> 40) as usize % 9]);
                }
                let captures = reference.captures(&text);
                for group in 0..matcher.groups() {
                    let expected = captures.as_ref().and_then(|found| found.get(group)).map(|found| found.range());
                    assert_eq!(matcher.find(&text, group), expected, "{pattern} group {group} in {text:?}");
                }
            }
        }
        assert!(direct >= 4, "the quick way is taken by {direct} of the patterns");
    }
}
