//! Folders `column=value`, as Hive and Flink name them.

use std::fmt::Write as _;

/// The folder's value for NULL and the empty string.
pub const DEFAULT_NAME: &str = "__DEFAULT_PARTITION__";

/// Characters that may not stand in a folder's name as they are: those of Hive.
fn is_escaped(c: char) -> bool {
    c.is_control()
        || matches!(c, '"' | '#' | '%' | '\'' | '*' | '/' | ':' | '=' | '?' | '\\' | '{' | '}' | '[' | ']' | '^' | '\u{7f}')
}

/// A value as a part of a folder's name: `%XX` for what can't stand there.
pub fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        if is_escaped(c) {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                let _infallible = write!(out, "%{byte:02X}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// The value behind a part of a folder's name. What is no valid escape stands for itself.
pub fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok()).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        match hex.and_then(|d| u8::from_str_radix(d, 16).ok()).filter(|_| *byte == b'%') {
            Some(value) => {
                out.push(value);
                rest = &tail[2..];
            }
            None => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_value_comes_back_and_is_one_folder(value in "\\PC{0,12}|[\\x00-\\x7f]{0,12}") {
            let escaped = escape(&value);
            prop_assert!(!escaped.contains('/') && !escaped.contains('='));
            prop_assert_eq!(unescape(&escaped), value);
        }
    }
}
