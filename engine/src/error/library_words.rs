//! What the libraries below say of types and values, in SQL's words. All their sentences that reach a user come through here: those about a
//! plan from `plan::planner_words`, those about a row from [`classify`](crate::operators::chain::classify).

use super::Code;

/// The sentence without the names of layers that it came through.
pub(crate) fn without_layers(text: &str) -> &str {
    const LAYERS: &[&str] = &[
        "Error during planning: ",
        "This feature is not implemented: ",
        "Internal error: ",
        "Execution error: ",
        "Schema error: ",
        "Arrow error: ",
        "Parser error: ",
        "Cast error: ",
        "Compute error: ",
        "Arithmetic overflow: ",
        "Invalid argument error: ",
        "External error: ",
        "Optimizer rule ",
        "Analyzer rule ",
        "type_coercion\ncaused by\n",
        "caused by\n",
    ];
    let mut rest = text.trim_start();
    loop {
        let before = rest.len();
        for layer in LAYERS {
            rest = rest.strip_prefix(layer).unwrap_or(rest).trim_start();
        }
        // `'simplify_expressions' failed\ncaused by\n…`
        if let Some((rule, inner)) = rest.split_once("\ncaused by\n")
            && rule.lines().count() == 1
            && (rule.ends_with(" failed") || !rule.contains(' '))
        {
            rest = inner;
        }
        if rest.len() == before {
            return rest;
        }
    }
}

/// What is wrong with a value, if `text` is one of the sentences about values: its code and the sentence for the user.
pub(crate) fn about_a_value(text: &str) -> Option<(Code, String)> {
    let text = without_layers(text);
    let line = text.lines().next().unwrap_or_default().trim();
    let unread = |value: &str, kind: &str| Some((Code::InvalidCast, format!("{value} can't be read as {}", in_sql_types(kind))));
    let range = |what: String| Some((Code::Overflow, what));
    if let Some(rest) = line.strip_prefix("Cannot cast string ").or_else(|| line.strip_prefix("Cannot cast value ")) {
        let (value, kind) = rest.rsplit_once(" to value of ")?;
        return unread(value, kind.strip_suffix(" type").unwrap_or(kind));
    }
    if let Some((value, kind)) = line.strip_prefix("Can't cast value ").and_then(|rest| rest.rsplit_once(" to type ")) {
        return Some((Code::InvalidCast, format!("{value} is out of the range of {}", in_sql_types(kind))));
    }
    if let Some(rest) = line.strip_prefix("Error parsing timestamp from ") {
        let value = rest.rsplit_once("': ").map_or_else(|| rest.to_owned(), |(value, _)| format!("{value}'"));
        return unread(&value, "TIMESTAMP");
    }
    if let Some(value) = line.strip_prefix("Failed to parse ").and_then(|rest| rest.strip_suffix(" as time")) {
        return unread(value, "TIME");
    }
    if let Some(value) = line.strip_prefix("Failed to parse ").and_then(|rest| rest.strip_suffix(" as interval amount")) {
        return unread(&format!("'{value}'"), "the number of an INTERVAL");
    }
    if let Some(value) = line.strip_prefix("Invalid input syntax for type interval: ") {
        return unread(&in_single_quotes(value), "INTERVAL");
    }
    if let Some(value) = line.strip_prefix("can't parse the string value ").and_then(|rest| rest.strip_suffix(" to decimal")) {
        return unread(&format!("'{value}'"), "DECIMAL");
    }
    for start in ["Invalid decimal format: ", "Cannot parse decimal format: "] {
        if let Some(value) = line.strip_prefix(start) {
            return unread(&in_single_quotes(value), "DECIMAL");
        }
    }
    if let Some(value) = line.strip_prefix("parse decimal overflow (").and_then(|rest| rest.strip_suffix(')')) {
        return range(format!("{value} has more digits than a DECIMAL can have"));
    }
    if let Some((_, rest)) = line.split_once(" to store in a Decimal") {
        let digits = rest.split_once("of precision ").map_or("", |(_, rest)| rest.split('.').next().unwrap_or_default());
        return range(format!("a number has more digits than the {digits} of its DECIMAL"));
    }
    if let Some(rest) = line.strip_prefix("Cannot cast to ").or_else(|| line.strip_prefix("Cannot convert ")) {
        if let Some((kind, value)) = rest.split_once(". Overflowing on ") {
            return Some((Code::InvalidCast, format!("{value} is out of the range of {}", in_sql_types(kind))));
        }
        let is_range = rest.contains("overflow") || rest.contains("Overflow");
        return is_range.then(|| (Code::Overflow, "a number is out of the range of the type it is cast to".to_owned()));
    }
    if let Some(what) = line.strip_prefix("Overflow happened on: ") {
        let what = match what.strip_prefix("- ") {
            Some(number) => format!("-({number})"),
            None => what.to_owned(),
        };
        return range(format!("a number is out of range: {what}"));
    }
    if let Some(what) = line.strip_prefix("Date arithmetic overflow: ") {
        return range(format!("a time is out of range: {what}"));
    }
    if line.starts_with("Timestamp out of range") || line.starts_with("Overflow converting ") {
        return range("a time is out of range".to_owned());
    }
    if let Some((function, _)) = line.split_once(": failed to convert size to usize") {
        return Some((Code::RowExpression, format!("{function}: the size is negative")));
    }
    if let Some(part) = line.strip_prefix("Date part ").and_then(|rest| rest.strip_suffix(" not supported")) {
        return Some((Code::InvalidArgument, format!("a time has no part {part}")));
    }
    for (from, to) in [("Casting from ", " to "), ("Unsupported CAST from ", " to "), ("Unsupported cast from ", " to ")] {
        let Some((source, target)) = line.strip_prefix(from).and_then(|rest| rest.split_once(to)) else { continue };
        let target = target.trim_end_matches(" not supported").trim_end_matches(" is not supported");
        let source = source.strip_prefix("type ").unwrap_or(source);
        return Some((Code::InvalidCast, format!("{} can't be cast to {}", in_sql_types(source), in_sql_types(target))));
    }
    None
}

fn in_single_quotes(value: &str) -> String {
    let value = value.trim_matches('"');
    if value.starts_with('\'') { value.to_owned() } else { format!("'{value}'") }
}

/// With types and constants as SQL writes them: `List(Int64)` is `ARRAY<BIGINT>`, `Int64(1)` is `1`.
pub(crate) fn in_sql_types(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(ch) = rest.chars().next() {
        if !is_word(ch) {
            out.push(ch);
            rest = &rest[ch.len_utf8()..];
            continue;
        }
        let end = rest.find(|ch| !is_word(ch)).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        rest = behind;
        let known = behind.strip_prefix('(').and_then(|inner| {
            let at = closing(inner)?;
            Some((with_arguments(word, &inner[..at])?, &inner[at + 1..]))
        });
        match known {
            Some((known, after)) => {
                out.push_str(&known);
                rest = after;
            }
            None => out.push_str(plain(word).unwrap_or(word)),
        }
    }
    out
}

fn is_word(ch: char) -> bool {
    ch.is_alphanumeric() || ch == '_'
}

/// A type without arguments.
fn plain(word: &str) -> Option<&'static str> {
    Some(match word {
        "Int8" => "TINYINT",
        "Int16" | "UInt8" => "SMALLINT",
        "Int32" | "UInt16" => "INT",
        "Int64" | "UInt32" | "UInt64" => "BIGINT",
        "Float16" | "Float32" => "REAL",
        "Float64" => "DOUBLE",
        "Utf8" | "Utf8View" | "LargeUtf8" => "STRING",
        "Boolean" => "BOOLEAN",
        "Binary" | "LargeBinary" | "BinaryView" | "FixedSizeBinary" => "BYTES",
        "Null" => "NULL",
        "Date32" | "Date64" => "DATE",
        "Decimal32" | "Decimal64" | "Decimal128" | "Decimal256" => "DECIMAL",
        "Struct" => "ROW",
        "List" | "LargeList" | "ListView" | "LargeListView" | "FixedSizeList" => "ARRAY",
        "Map" => "MAP",
        "Timestamp" => "TIMESTAMP",
        "Time32" | "Time64" => "TIME",
        "IntervalMonthDayNano" | "IntervalDayTime" | "IntervalYearMonth" => "INTERVAL",
        _ => return None,
    })
}

/// `word(inner)`, if that is a type or a constant.
fn with_arguments(word: &str, inner: &str) -> Option<String> {
    Some(match word {
        "List" | "LargeList" | "ListView" | "LargeListView" => format!("ARRAY<{}>", element(inner)),
        "FixedSizeList" => format!("ARRAY<{}>", element(inner.split_once(" x ").map_or(inner, |(_, element)| element))),
        "Struct" => {
            let fields = fields(inner).map(|(name, kind)| format!("{name} {kind}"));
            format!("ROW<{}>", fields.collect::<Vec<_>>().join(", "))
        }
        "Map" => {
            let start = inner.find("Struct(")? + "Struct(".len();
            let entries = &inner[start..start + closing(&inner[start..])?];
            format!("MAP<{}>", fields(entries).map(|(_, kind)| kind).collect::<Vec<_>>().join(", "))
        }
        "Timestamp" if inner.split_once(", ").is_some_and(|(_, zone)| zone != "None") => "TIMESTAMP_LTZ".to_owned(),
        "Timestamp" => "TIMESTAMP".to_owned(),
        "Time32" | "Time64" => "TIME".to_owned(),
        "Duration" | "Interval" => "INTERVAL".to_owned(),
        "Dictionary" => in_sql_types(inner.split_once(", ")?.1),
        "FixedSizeBinary" => "BYTES".to_owned(),
        "Decimal32" | "Decimal64" | "Decimal128" | "Decimal256" => match inner.strip_prefix("Some(") {
            Some(value) => decimal(value)?,
            None => format!("DECIMAL({inner})"),
        },
        "Utf8" | "LargeUtf8" | "Utf8View" => match inner.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
            Some(text) => format!("'{}'", text.replace('\'', "''")),
            None => inner.to_owned(),
        },
        "Boolean" => inner.to_ascii_uppercase(),
        "Int8" | "Int16" | "Int32" | "Int64" | "UInt8" | "UInt16" | "UInt32" | "UInt64" | "Float16" | "Float32" | "Float64" => {
            inner.to_owned()
        }
        "Date32" | "Date64" => format!("DATE {}", in_single_quotes(inner)),
        _ => return None,
    })
}

/// `Some(12345),10,2` behind its `Some(`, as `123.45`.
fn decimal(inner: &str) -> Option<String> {
    let (digits, rest) = inner.split_once("),")?;
    let scale: usize = rest.rsplit_once(',')?.1.trim().parse().ok()?;
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("-", digits));
    if scale == 0 || scale > 38 {
        return Some(format!("{sign}{digits}"));
    }
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, part) = digits.split_at_checked(digits.len() - scale)?;
    Some(format!("{sign}{whole}.{part}"))
}

/// An element of a list: `non-null Int64, field: 'item'`.
fn element(text: &str) -> String {
    let text = parts(text).next().unwrap_or(text);
    in_sql_types(text.strip_prefix("non-null ").unwrap_or(text))
}

/// The fields of `"a": Int32, "b": non-null Utf8`.
fn fields(text: &str) -> impl Iterator<Item = (String, String)> {
    parts(text).filter_map(|part| {
        let (name, kind) = part.strip_prefix('"')?.split_once("\": ")?;
        Some((name.to_owned(), element(kind)))
    })
}

/// What commas outside of parentheses and quotes separate.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let (mut depth, mut quoted) = (0usize, false);
    let cut = move |ch: char| {
        match ch {
            '"' => quoted = !quoted,
            '(' | '{' if !quoted => depth += 1,
            ')' | '}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        ch == ',' && depth == 0 && !quoted
    };
    text.split(cut).map(str::trim)
}

/// Where the parenthesis that stands open before `text` is closed.
pub(crate) fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0usize, None);
    for (at, ch) in text.char_indices() {
        match (quote, ch) {
            (Some(open), _) if open == ch => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(ch),
            (None, '(') => depth += 1,
            (None, ')') if depth == 0 => return Some(at),
            (None, ')') => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_constants_are_written_as_in_sql() {
        for (theirs, ours) in [
            ("Timestamp(µs, \"UTC\") = List(Int64), Utf8", "TIMESTAMP_LTZ = ARRAY<BIGINT>, STRING"),
            ("Timestamp(Microsecond, None) - Timestamp(ns)", "TIMESTAMP - TIMESTAMP"),
            ("Struct(\"a\": Int32, \"b\": non-null Utf8View)", "ROW<a INT, b STRING>"),
            ("List(non-null Struct(\"x,y\": Decimal128(10, 2)))", "ARRAY<ROW<x,y DECIMAL(10, 2)>>"),
            (
                "Map(\"entries\": non-null Struct(\"key\": non-null Utf8, \"value\": List(Int64)), unsorted)",
                "MAP<STRING, ARRAY<BIGINT>>",
            ),
            ("Int64(1) + Utf8(\"it's\") AND Boolean(true)", "1 + 'it''s' AND TRUE"),
            ("Decimal128(Some(-5),3,2) * Float64(1.5)", "-0.05 * 1.5"),
            ("substr(Int64)", "substr(BIGINT)"),
            ("FixedSizeList(3 x Float32), Interval(MonthDayNano), Date32", "ARRAY<REAL>, INTERVAL, DATE"),
            ("an open List(Int64", "an open ARRAY(BIGINT"),
        ] {
            assert_eq!(in_sql_types(theirs), ours);
        }
    }

    #[test]
    fn sentences_about_values_are_told_in_the_users_words() {
        for (theirs, code, ours) in [
            ("Cast error: Cannot cast string '' to value of Int32 type", Code::InvalidCast, "'' can't be read as INT"),
            ("Cannot cast string 'Int32 type' to value of Date32 type", Code::InvalidCast, "'Int32 type' can't be read as DATE"),
            ("Can't cast value 70000 to type Int16", Code::InvalidCast, "70000 is out of the range of SMALLINT"),
            (
                "Parser error: Error parsing timestamp from 'a: b': timestamp must contain at least 10 characters",
                Code::InvalidCast,
                "'a: b' can't be read as TIMESTAMP",
            ),
            (
                "123456 is too large to store in a Decimal128 of precision 5. Max is 99999",
                Code::Overflow,
                "a number has more digits than the 5 of its DECIMAL",
            ),
            (
                "Cannot cast to Decimal128(10, 2). Overflowing on NaN",
                Code::InvalidCast,
                "NaN is out of the range of DECIMAL(10, 2)",
            ),
            ("Arithmetic overflow: Overflow happened on: 3 + 4", Code::Overflow, "a number is out of range: 3 + 4"),
            ("Overflow happened on: - -9", Code::Overflow, "a number is out of range: -(-9)"),
            ("Unsupported CAST from List(Int32) to Int32", Code::InvalidCast, "ARRAY<INT> can't be cast to INT"),
        ] {
            assert_eq!(about_a_value(theirs), Some((code, ours.to_owned())));
        }
        assert_eq!(about_a_value("something that nobody has seen before"), None);
    }
}
