//! `WITH (key = 'value', …)`: options as the user wrote them, and how a connector reads them so that none is ignored.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::secrets::{self, Secrets};
use super::table_options::unknown_option;
use crate::error::{Code, Diagnostic, Result, Span};

/// The type of an option's value, for its check and for the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionType {
    /// Any text.
    Text,
    /// `true` or `false`.
    Bool,
    /// A whole number, 0 or more.
    Integer,
    /// A number with or without a fraction.
    Number,
    /// `10 s`, `500ms`, `1 min`: number and unit (`us`, `ms`, `s`, `min`, `h`, `d`).
    Duration,
    /// `64 KiB`, `128mb`, `1g`: number and unit; powers of 1024.
    Bytes,
    /// One of the given words.
    Choice(&'static [&'static str]),
}

/// One option of a connector or format: what `tiderace connectors` prints and the parser checks.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// The key. `*` at its end stands for any rest (`fields.*.min`: in the middle for one name).
    pub key: &'static str,
    /// The value's type.
    pub kind: OptionType,
    /// The value when it is left out; `None`: no value.
    pub default: Option<&'static str>,
    /// Whether it must be given.
    pub required: bool,
    /// One sentence.
    pub doc: &'static str,
}

impl OptionSpec {
    /// Whether `key` is this option: the same text, with any name in the place of `*`.
    #[must_use]
    pub fn covers(&self, key: &str) -> bool {
        self.middle(key).is_some()
    }

    /// This option's key with the name that `key` has in the place of `*`, as far as it has one: `fields.a.mni` makes `fields.a.min`.
    #[must_use]
    pub(super) fn with_name_of(&self, key: &str) -> String {
        let Some((before, after)) = self.key.split_once('*') else { return self.key.to_owned() };
        let name = key.strip_prefix(before).and_then(|rest| rest.rsplit_once('.'));
        format!("{before}{}{after}", name.map_or("*", |(name, _)| name))
    }

    /// What stands in the place of `*`; the empty text for an option without.
    fn middle<'k>(&self, key: &'k str) -> Option<&'k str> {
        match self.key.split_once('*') {
            None => (self.key == key).then_some(""),
            Some((before, after)) => key.strip_prefix(before)?.strip_suffix(after).filter(|middle| !middle.is_empty()),
        }
    }
}

/// The options of one table. Each getter marks its key as read; [`Options::finish`] refuses the keys that nobody asked for.
#[derive(Debug, Default, Clone)]
pub struct Options {
    values: BTreeMap<String, OptionValue>,
    read: RefCell<BTreeSet<String>>,
    /// Keys that are for the other side of a table that may be read and written.
    passed: RefCell<BTreeSet<String>>,
}

/// One value and where it stands.
#[derive(Clone)]
struct OptionValue {
    /// The value itself; of a secret, empty before [`Options::resolve`].
    text: String,
    /// The name, when it was given as `SECRET 'name'`.
    secret: Option<String>,
    span: Option<Span>,
}

impl OptionValue {
    /// What people may see.
    fn shown(&self) -> Cow<'_, str> {
        match &self.secret {
            Some(name) => secrets::shown(name).into(),
            None => self.text.as_str().into(),
        }
    }
}

impl fmt::Debug for OptionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Options {
    /// Options from keys and values, with the place where each stands.
    pub fn new(values: impl IntoIterator<Item = (String, String, Option<Span>)>) -> Self {
        let value = |text, span| OptionValue { text, secret: None, span };
        Self { values: values.into_iter().map(|(k, v, s)| (k, value(v, s))).collect(), ..Self::default() }
    }

    /// The same with `key = SECRET 'name'`.
    #[must_use]
    pub(crate) fn with_secret(mut self, key: String, name: String, span: Option<Span>) -> Self {
        self.values.insert(key, OptionValue { text: String::new(), secret: Some(name), span });
        self
    }

    /// Puts in the values of secrets; gives an error for each that is not there.
    pub(crate) fn resolve(&mut self, secrets: &Secrets) -> Vec<Diagnostic> {
        let mut errors = Vec::new();
        for (key, value) in &mut self.values {
            let Some(name) = &value.secret else { continue };
            match secrets.value(name) {
                Some(_) if ["connector", "format"].contains(&key.as_str()) => errors.push(
                    Diagnostic::new(Code::InvalidOption, format!("option '{key}' can't be a SECRET: it decides what is planned"))
                        .at(value.span),
                ),
                Some(text) => text.clone_into(&mut value.text),
                None => {
                    let message = format!("option '{key}': there is no SECRET '{name}'");
                    let names: Vec<_> = secrets.names().collect();
                    let hint = if names.is_empty() {
                        "name it in spec.sql.secretRefs, or give a folder with a file of that name: --secrets FOLDER".to_owned()
                    } else {
                        format!("there are: {}", names.join(", "))
                    };
                    errors.push(Diagnostic::new(Code::UnknownSecret, message).at(value.span).hint(hint));
                }
            }
        }
        errors
    }

    /// The text of `key`.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.read.borrow_mut().insert(key.to_owned());
        self.values.get(key).map(|value| value.text.as_str())
    }

    /// `key` is for the other side, source or sink, of a table that may be both: it may be there, and is not looked at here.
    pub fn pass_over(&self, key: &str) {
        self.passed.borrow_mut().insert(key.to_owned());
    }

    /// The keys that were asked for so far, whether they are there or not; not those that were passed over.
    #[must_use]
    pub fn keys_read(&self) -> BTreeSet<String> {
        self.read.borrow().clone()
    }

    /// Where `key` stands.
    #[must_use]
    pub fn span(&self, key: &str) -> Option<Span> {
        self.values.get(key).and_then(|value| value.span)
    }

    /// The name of the secret that `key` was given as.
    #[must_use]
    pub fn secret_name(&self, key: &str) -> Option<&str> {
        self.values.get(key).and_then(|value| value.secret.as_deref())
    }

    /// All keys and values, in the order of the keys, without marking them as known. A secret is shown as `SECRET 'name'`.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value.shown()))
    }

    /// The text of a key that must be there.
    pub fn required(&self, key: &str) -> Result<&str> {
        self.text(key).ok_or_else(|| Diagnostic::new(Code::MissingOption, format!("option '{key}' is missing")))
    }

    /// `true` or `false`.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.parsed(key, "true or false", |v| match v.to_ascii_lowercase().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        })
    }

    /// A whole number from 0.
    pub fn integer(&self, key: &str) -> Result<Option<u64>> {
        self.parsed(key, "a whole number", |v| v.replace('_', "").parse().ok())
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.parsed(key, "a number", |v| v.parse().ok().filter(|n: &f64| n.is_finite()))
    }

    /// A duration with a unit.
    pub fn duration(&self, key: &str) -> Result<Option<Duration>> {
        self.parsed(key, "a duration such as '10 s'", parse_duration)
    }

    /// A size with a unit.
    pub fn bytes(&self, key: &str) -> Result<Option<u64>> {
        self.parsed(key, "a size such as '64 MiB'", parse_bytes)
    }

    /// One of `choices`; compared without case.
    pub fn choice<'c>(&self, key: &str, choices: &[&'c str]) -> Result<Option<&'c str>> {
        self.parsed(key, &format!("one of {}", choices.join(", ")), |v| {
            choices.iter().find(|c| c.eq_ignore_ascii_case(v)).copied()
        })
    }

    /// A value by the reader's own rule; `expected` completes "must be …".
    pub fn parsed<T>(&self, key: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>> {
        let Some(text) = self.text(key) else { return Ok(None) };
        if self.values.get(key).is_some_and(|value| value.secret.is_some()) {
            return Err(self.invalid(key, format!("must be {expected}, and can't be a SECRET")));
        }
        match parse(text.trim()) {
            Some(value) => Ok(Some(value)),
            None => Err(self.invalid(key, format!("must be {expected}, not '{text}'"))),
        }
    }

    /// An error about the value of `key`.
    #[must_use]
    pub fn invalid(&self, key: &str, reason: impl std::fmt::Display) -> Diagnostic {
        let reason = match self.values.get(key) {
            Some(value) if value.secret.is_some() && !value.text.is_empty() => {
                reason.to_string().replace(&value.text, &value.shown())
            }
            _ => reason.to_string(),
        };
        Diagnostic::new(Code::InvalidOption, format!("option '{key}' {reason}")).at(self.span(key))
    }

    /// An error for each key that nobody asked for. Call when connector and format have read theirs. `known`: the options that the table
    /// may have; one of them that nobody asked for has no effect here, which is said so.
    pub fn finish(&self, known: &[OptionSpec]) -> std::result::Result<(), Vec<Diagnostic>> {
        let (read, passed) = (self.read.borrow(), self.passed.borrow());
        let unread = self.values.iter().filter(|(key, _)| !read.contains(*key) && !passed.contains(*key));
        let errors: Vec<_> = unread
            .map(|(key, value)| {
                if !known.iter().any(|spec| spec.covers(key)) {
                    return unknown_option(self, key, known);
                }
                let error = Diagnostic::new(Code::InvalidOption, format!("option '{key}' has no effect here")).at(value.span);
                if key.starts_with("scan.watermark.") {
                    error.hint("it is about the watermark, and the table has none: add WATERMARK FOR, or leave the option out")
                } else if key.starts_with("fields.") {
                    error.hint("no column of that type, made in that way, looks at it: leave it out")
                } else {
                    error.hint("leave it out")
                }
            })
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

fn split_unit(text: &str) -> Option<(f64, String)> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    let number: f64 = text[..end].replace('_', "").parse().ok()?;
    Some((number, text[end..].trim().to_ascii_lowercase()))
}

/// `10 s`, `500ms`, `1 min`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let seconds = match unit.as_str() {
        "us" | "micros" | "microsecond" | "microseconds" => 1e-6,
        "ms" | "milli" | "millis" | "millisecond" | "milliseconds" => 1e-3,
        "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 86400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * seconds).ok()
}

/// `64 KiB`, `128mb`, `1g`, `512`: powers of 1024.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let shift = match unit.as_str() {
        "" | "b" | "bytes" => 0,
        "k" | "kb" | "ki" | "kib" => 10,
        "m" | "mb" | "mi" | "mib" => 20,
        "g" | "gb" | "gi" | "gib" => 30,
        "t" | "tb" | "ti" | "tib" => 40,
        _ => return None,
    };
    let bytes = number * (1u64 << shift) as f64;
    (0.0..9e18).contains(&bytes).then_some(bytes as u64)
}
