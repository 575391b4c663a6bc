//! Amounts of cores and memory, as Kubernetes writes them.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A whole number of cores: `4` or `"4"`. A part of a core is refused, because each core of the engine is a pinned thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cores(u16);

impl Cores {
    /// The most cores of one worker.
    pub const MAX: u16 = 1024;

    /// That many; `None` unless `1 <= count <= MAX`.
    #[must_use]
    pub fn new(count: u64) -> Option<Self> {
        u16::try_from(count).ok().filter(|n| (1..=Self::MAX).contains(n)).map(Self)
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> usize {
        usize::from(self.0)
    }
}

/// An amount of memory: `8Gi`, `512Mi`, `1.5G`, or bytes. Suffixes as in Kubernetes: `Ki Mi Gi Ti` are powers of 1024, `k M G T` of 1000.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemorySize {
    text: String,
    bytes: u64,
}

impl MemorySize {
    const PATTERN: &'static str = "^[0-9]{1,15}([.][0-9]{1,3})?(k|Ki|M|Mi|G|Gi|T|Ti)?$";

    /// Parses such a text; `None` when it is none, or more than 2⁶³ bytes, or less than one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let factor: u64 = match &text[digits..] {
            "" => 1,
            "k" => 1000,
            "Ki" => 1 << 10,
            "M" => 1_000_000,
            "Mi" => 1 << 20,
            "G" => 1_000_000_000,
            "Gi" => 1 << 30,
            "T" => 1_000_000_000_000,
            "Ti" => 1 << 40,
            _ => return None,
        };
        let (whole, fraction) = text[..digits].split_once('.').unwrap_or((&text[..digits], "000"));
        if !(1..=15).contains(&whole.len()) || !(1..=3).contains(&fraction.len()) {
            return None;
        }
        let thousandths: u128 = whole.parse::<u128>().ok()? * 1000 + format!("{fraction:0<3}").parse::<u128>().ok()?;
        let bytes = u64::try_from(thousandths * u128::from(factor) / 1000).ok()?;
        (1..=1 << 63).contains(&bytes).then(|| Self { text: text.to_owned(), bytes })
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Cores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for MemorySize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Takes a text or a whole number and hands its text on.
struct TextOrNumber<T> {
    expected: &'static str,
    parse: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for TextOrNumber<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::custom(format_args!("must be {}, not {text:?}", self.expected)))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

impl<'de> Deserialize<'de> for Cores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parse = |text: &str| text.parse().ok().and_then(Self::new);
        deserializer.deserialize_any(TextOrNumber { expected: "a whole number of cores from 1 to 1024", parse })
    }
}

impl<'de> Deserialize<'de> for MemorySize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrNumber { expected: "an amount of memory such as 8Gi", parse: Self::parse })
    }
}

impl JsonSchema for Cores {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cores".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": 1, "maximum": Self::MAX, "maxLength": 4, "pattern": "^[1-9][0-9]{0,3}$",
        })
    }
}

impl JsonSchema for MemorySize {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "MemorySize".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": 1, "maxLength": 24, "pattern": Self::PATTERN,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn memory_is_read_as_kubernetes_reads_it() {
        for (text, bytes) in
            [("8Gi", 8 << 30), ("512Mi", 512 << 20), ("1.5G", 1_500_000_000), ("1k", 1000), ("123", 123), ("0.5Ki", 512)]
        {
            assert_eq!(MemorySize::parse(text).map(|m| m.bytes()), Some(bytes), "{text}");
        }
        for text in ["", "8gi", "Gi", "-1", "1.2.3", "0", "0.0001Ki", "999999999999999Ti", "1e3", "٣", "1.", ".5"] {
            assert_eq!(MemorySize::parse(text), None, "{text}");
        }
    }

    #[test]
    fn cores_are_whole() {
        assert_eq!(serde_json::from_str::<Cores>("\"4\"").unwrap().count(), 4);
        assert_eq!(serde_json::from_str::<Cores>("4").unwrap().count(), 4);
        for bad in ["0", "1025", "-1", "\"500m\"", "\"1.5\"", "1.5", "true"] {
            assert!(serde_json::from_str::<Cores>(bad).is_err(), "{bad}");
        }
    }
}
