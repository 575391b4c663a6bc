//! SQL types and the Arrow types that stand for them in memory.
//!
//! | SQL | Arrow |
//! |---|---|
//! | `TIMESTAMP(p)` | `Timestamp(µs)`, without zone |
//! | `TIMESTAMP_LTZ(p)`, `TIMESTAMPTZ` | `Timestamp(µs, "UTC")` |
//! | `VARCHAR`, `STRING`, `TEXT`, `CHAR`, `JSON` | `Utf8View`; JSON is marked in the field's metadata |
//! | `BYTES`, `BYTEA`, `VARBINARY` | `Binary` |
//!
//! Everything is kept in µs. The precision `p` of a time stands in the field's metadata ([`time_digits`]): values of such a column are cut to
//! that many digits where they come in, and `CAST(… AS STRING)` writes that many. `p` above 6 is refused, because it would lose digits.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, IntervalUnit, TimeUnit};
use datafusion::common::DataFusionError;
use datafusion::logical_expr::planner::TypePlanner;
use sqlparser::ast::{
    ArrayElemTypeDef, BinaryLength, CharacterLength, DataType as SqlType, ExactNumberInfo, Expr, SqlOption, StructField,
    TimezoneInfo, Value,
};

use super::keyword::closest;
use crate::error::{Code, Diagnostic, Result};

/// The key of a field's metadata that names a type which Arrow has no own type for.
pub const TYPE_METADATA: &str = "tiderace.type";
/// The value of [`TYPE_METADATA`] for JSON.
pub const JSON: &str = "json";
/// The key of a field's metadata that tells how many digits of a second its times have.
pub const PRECISION_METADATA: &str = "tiderace.precision";
/// The digits of a second that a time can have: everything is kept in µs.
pub const TIME_DIGITS_MAX: u8 = 6;
/// The zone of every `TIMESTAMP_LTZ`.
pub const UTC: &str = "UTC";
/// How deep types may be nested.
const DEPTH_MAX: usize = 32;

/// `TIMESTAMP`.
#[must_use]
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, None)
}

/// `TIMESTAMP_LTZ`.
#[must_use]
pub fn timestamp_ltz() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into()))
}

/// A column of that name and type.
pub fn field(name: &str, sql_type: &SqlType, not_null: bool) -> Result<Field> {
    nested_field(name, sql_type, not_null, 0)
}

/// The Arrow type of a SQL type.
pub fn arrow_type(sql_type: &SqlType) -> Result<DataType> {
    Ok(nested_field("", sql_type, false, 0)?.data_type().clone())
}

fn nested_field(name: &str, sql_type: &SqlType, not_null: bool, depth: usize) -> Result<Field> {
    if depth > DEPTH_MAX {
        return Err(Diagnostic::new(Code::UnknownType, format!("a type is nested more than {DEPTH_MAX} deep")));
    }
    let data_type = match sql_type {
        SqlType::Array(
            ArrayElemTypeDef::AngleBracket(inner)
            | ArrayElemTypeDef::Parenthesis(inner)
            | ArrayElemTypeDef::SquareBracket(inner, None),
        ) => DataType::List(Arc::new(nested_field(Field::LIST_FIELD_DEFAULT_NAME, inner, false, depth + 1)?)),
        SqlType::Map(key, value) => {
            let entries =
                Fields::from(vec![nested_field("key", key, true, depth + 1)?, nested_field("value", value, false, depth + 1)?]);
            DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false)
        }
        SqlType::Struct(fields, _) => {
            let fields: Vec<Field> =
                fields.iter().enumerate().map(|(index, field)| struct_field(index, field, depth)).collect::<Result<_>>()?;
            if fields.is_empty() {
                return Err(Diagnostic::new(Code::UnknownType, "a ROW type needs fields").hint("write ROW<name type, …>"));
            }
            for (index, field) in fields.iter().enumerate() {
                if fields[..index].iter().any(|other| other.name() == field.name()) {
                    return Err(Diagnostic::new(Code::DuplicateName, format!("a ROW type has the field {} twice", field.name())));
                }
            }
            DataType::Struct(fields.into())
        }
        other => simple(other)?,
    };
    let field = Field::new(name, data_type, !not_null);
    Ok(match sql_type {
        SqlType::JSON | SqlType::JSONB => field.with_metadata([(TYPE_METADATA.to_owned(), JSON.to_owned())].into()),
        _ => match declared_time_digits(sql_type) {
            Some(digits) => with_time_digits(field, digits),
            None => field,
        },
    })
}

/// The digits of a second that a type declares. `TIMESTAMP` alone is `TIMESTAMP(6)`, as in the standard; `TIME` alone says nothing.
fn declared_time_digits(sql_type: &SqlType) -> Option<u8> {
    let declared = match sql_type {
        SqlType::Time(precision, _) => *precision,
        SqlType::Timestamp(precision, _) => Some(precision.unwrap_or(u64::from(TIME_DIGITS_MAX))),
        SqlType::Custom(name, modifiers) if name.to_string().eq_ignore_ascii_case("TIMESTAMP_LTZ") => {
            Some(modifiers.first().and_then(|p| p.parse().ok()).unwrap_or(u64::from(TIME_DIGITS_MAX)))
        }
        _ => None,
    };
    declared.and_then(|digits| u8::try_from(digits).ok()).filter(|digits| *digits <= TIME_DIGITS_MAX)
}

/// The same field, of times with so many digits of a second.
#[must_use]
pub fn with_time_digits(field: Field, digits: u8) -> Field {
    let mut metadata = field.metadata().clone();
    metadata.insert(PRECISION_METADATA.to_owned(), digits.to_string());
    field.with_metadata(metadata)
}

/// How many digits of a second the times of a column have; `None` when nothing is declared (or the column holds no times).
#[must_use]
pub fn time_digits(field: &Field) -> Option<u8> {
    if !matches!(field.data_type(), DataType::Timestamp(..) | DataType::Time64(_)) {
        return None;
    }
    field.metadata().get(PRECISION_METADATA)?.parse().ok().filter(|digits| *digits <= TIME_DIGITS_MAX)
}

fn struct_field(index: usize, field: &StructField, depth: usize) -> Result<Field> {
    let name = field.field_name.as_ref().map_or_else(|| format!("f{index}"), |name| name.value.clone());
    // The parser writes NOT NULL of a field as an option.
    let not_null = field.options.iter().flatten().any(|option| match option {
        SqlOption::KeyValue { key, value: Expr::Value(value) } => key.value == "not_null" && value.value == Value::Boolean(true),
        _ => false,
    });
    nested_field(&name, &field.field_type, not_null, depth + 1)
}

fn simple(sql_type: &SqlType) -> Result<DataType> {
    Ok(match sql_type {
        SqlType::Boolean | SqlType::Bool => DataType::Boolean,
        SqlType::TinyInt(_) => DataType::Int8,
        SqlType::SmallInt(_) | SqlType::Int2(_) => DataType::Int16,
        SqlType::Int(_) | SqlType::Integer(_) | SqlType::Int4(_) => DataType::Int32,
        SqlType::BigInt(_) | SqlType::Int8(_) => DataType::Int64,
        SqlType::TinyIntUnsigned(_) => DataType::UInt8,
        SqlType::SmallIntUnsigned(_) | SqlType::Int2Unsigned(_) => DataType::UInt16,
        SqlType::IntUnsigned(_) | SqlType::IntegerUnsigned(_) | SqlType::Int4Unsigned(_) => DataType::UInt32,
        SqlType::BigIntUnsigned(_) | SqlType::Int8Unsigned(_) => DataType::UInt64,
        // FLOAT alone is Flink's four bytes; FLOAT(25) and more is PostgreSQL's way to say eight.
        SqlType::Float(ExactNumberInfo::Precision(bits)) if *bits > 24 => DataType::Float64,
        SqlType::Float(_) | SqlType::Real | SqlType::Float4 => DataType::Float32,
        SqlType::Double(_) | SqlType::DoublePrecision | SqlType::Float8 => DataType::Float64,
        SqlType::Decimal(info) | SqlType::Numeric(info) | SqlType::Dec(info) => decimal(*info)?,
        SqlType::Varchar(length)
        | SqlType::Char(length)
        | SqlType::Character(length)
        | SqlType::CharacterVarying(length)
        | SqlType::CharVarying(length) => {
            if matches!(length, Some(CharacterLength::IntegerLength { length: 0, .. })) {
                return Err(Diagnostic::new(Code::UnknownType, format!("{sql_type} has no room for a character")));
            }
            DataType::Utf8View
        }
        SqlType::Text | SqlType::String(_) | SqlType::JSON | SqlType::JSONB => DataType::Utf8View,
        SqlType::Bytea | SqlType::Bytes(_) | SqlType::Binary(_) | SqlType::Varbinary(_) | SqlType::Blob(_) => DataType::Binary,
        SqlType::Date => DataType::Date32,
        SqlType::Time(precision, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => {
            times(sql_type, *precision)?;
            DataType::Time64(TimeUnit::Microsecond)
        }
        SqlType::Timestamp(precision, zone) => {
            times(sql_type, *precision)?;
            match zone {
                TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => timestamp(),
                TimezoneInfo::Tz | TimezoneInfo::WithTimeZone => timestamp_ltz(),
            }
        }
        SqlType::Interval { .. } => DataType::Interval(IntervalUnit::MonthDayNano),
        SqlType::Custom(name, modifiers) if name.to_string().eq_ignore_ascii_case("TIMESTAMP_LTZ") => {
            times(sql_type, modifiers.first().map(|p| p.parse().unwrap_or(u64::MAX)))?;
            timestamp_ltz()
        }
        other => return Err(unknown(other)),
    })
}

fn times(sql_type: &SqlType, precision: Option<u64>) -> Result<()> {
    if precision.unwrap_or(6) <= 6 {
        return Ok(());
    }
    Err(Diagnostic::new(Code::UnknownType, format!("{sql_type} is finer than microseconds"))
        .hint("the precision is 6 at most: TIMESTAMP(6)"))
}

fn decimal(info: ExactNumberInfo) -> Result<DataType> {
    let (precision, scale) = match info {
        // Digits enough for sums, and a fraction: PostgreSQL's bare NUMERIC keeps both.
        ExactNumberInfo::None => (38, 10),
        ExactNumberInfo::Precision(precision) => (precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (precision, scale),
    };
    match (u8::try_from(precision), i8::try_from(scale)) {
        (Ok(p @ 1..=38), Ok(s @ 0..)) if s.unsigned_abs() <= p => Ok(DataType::Decimal128(p, s)),
        _ => Err(Diagnostic::new(Code::UnknownType, format!("there is no DECIMAL({precision}, {scale})"))
            .hint("the precision is 1 to 38, the scale 0 to the precision")),
    }
}

/// The length that a type declares: `VARCHAR(20)`, `CHAR(2)`, `VARBINARY(16)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeclaredLength {
    /// The most characters of a text, bytes of a BYTES.
    pub max: u32,
    /// Whether shorter ones are filled up: CHAR, BINARY.
    pub is_fixed: bool,
    /// Whether it counts bytes.
    pub is_bytes: bool,
}

impl std::fmt::Display for DeclaredLength {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = match (self.is_bytes, self.is_fixed) {
            (false, false) => "VARCHAR",
            (false, true) => "CHAR",
            (true, false) => "VARBINARY",
            (true, true) => "BINARY",
        };
        write!(f, "{word}({})", self.max)
    }
}

/// The length that a type declares; `None` when it has none, or one that no value reaches. `CHAR` alone is `CHAR(1)`, as everywhere.
#[must_use]
pub fn declared_length(sql_type: &SqlType) -> Option<DeclaredLength> {
    let (length, is_fixed, is_bytes) = match sql_type {
        SqlType::Varchar(length) | SqlType::CharacterVarying(length) | SqlType::CharVarying(length) => {
            (characters(length.as_ref())?, false, false)
        }
        SqlType::Char(length) | SqlType::Character(length) => {
            (length.as_ref().map_or(Some(1), |length| characters(Some(length)))?, true, false)
        }
        SqlType::Varbinary(Some(BinaryLength::IntegerLength { length })) => (*length, false, true),
        SqlType::Binary(Some(length)) => (*length, true, true),
        _ => return None,
    };
    let max = u32::try_from(length).ok().filter(|max| *max < i32::MAX as u32)?;
    Some(DeclaredLength { max, is_fixed, is_bytes })
}

fn characters(length: Option<&CharacterLength>) -> Option<u64> {
    match length? {
        CharacterLength::IntegerLength { length, .. } => Some(*length),
        CharacterLength::Max => None,
    }
}

/// Whether a type inside of this one declares a length.
#[must_use]
pub fn has_length_inside(sql_type: &SqlType) -> bool {
    let found = |inner: &SqlType| {
        // A bare CHAR says no length; only what is written out is meant.
        (declared_length(inner).is_some() && inner.to_string().contains('(')) || has_length_inside(inner)
    };
    match sql_type {
        SqlType::Array(
            ArrayElemTypeDef::AngleBracket(inner)
            | ArrayElemTypeDef::Parenthesis(inner)
            | ArrayElemTypeDef::SquareBracket(inner, _),
        ) => found(inner),
        SqlType::Map(key, value) => found(key) || found(value),
        SqlType::Struct(fields, _) => fields.iter().any(|field| found(&field.field_type)),
        _ => false,
    }
}

/// Names of types, for hints.
const NAMES: &[&str] = &[
    "BOOLEAN",
    "TINYINT",
    "SMALLINT",
    "INT",
    "INTEGER",
    "BIGINT",
    "REAL",
    "FLOAT",
    "DOUBLE",
    "DECIMAL",
    "NUMERIC",
    "VARCHAR",
    "CHAR",
    "STRING",
    "TEXT",
    "BYTES",
    "BYTEA",
    "VARBINARY",
    "DATE",
    "TIME",
    "TIMESTAMP",
    "TIMESTAMP_LTZ",
    "TIMESTAMPTZ",
    "INTERVAL",
    "ARRAY",
    "ROW",
    "MAP",
    "JSON",
    "JSONB",
];

fn unknown(sql_type: &SqlType) -> Diagnostic {
    let name = sql_type.to_string();
    let word = name.split(['(', '<', ' ']).next().unwrap_or_default();
    let error = Diagnostic::new(Code::UnknownType, format!("there is no type {name}"));
    match closest(word, NAMES.iter().copied()) {
        Some(near) if !near.eq_ignore_ascii_case(word) => error.hint(format!("did you mean {near}?")),
        _ => error.hint(format!("the types are {}", NAMES.join(", "))),
    }
}

/// A type as SQL writes it, for DESCRIBE and messages. Arrow types that SQL has no word for are shown as Arrow's.
#[must_use]
pub fn sql_name(field: &Field) -> String {
    if field.metadata().get(TYPE_METADATA).is_some_and(|name| name == JSON) {
        return "JSON".to_owned();
    }
    let name = data_type_name(field.data_type());
    match (time_digits(field), field.data_type()) {
        // What the name alone means.
        (None, _) | (Some(TIME_DIGITS_MAX), DataType::Timestamp(..)) => name,
        (Some(digits), _) => format!("{name}({digits})"),
    }
}

/// As [`sql_name`], without a field's metadata.
#[must_use]
pub fn data_type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Int8 => "TINYINT".to_owned(),
        DataType::Int16 => "SMALLINT".to_owned(),
        DataType::Int32 => "INT".to_owned(),
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::UInt8 => "TINYINT UNSIGNED".to_owned(),
        DataType::UInt16 => "SMALLINT UNSIGNED".to_owned(),
        DataType::UInt32 => "INT UNSIGNED".to_owned(),
        DataType::UInt64 => "BIGINT UNSIGNED".to_owned(),
        DataType::Float32 => "REAL".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "STRING".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BYTES".to_owned(),
        DataType::Date32 | DataType::Date64 => "DATE".to_owned(),
        DataType::Time32(_) | DataType::Time64(_) => "TIME".to_owned(),
        DataType::Timestamp(_, None) => "TIMESTAMP".to_owned(),
        DataType::Timestamp(_, Some(_)) => "TIMESTAMP_LTZ".to_owned(),
        DataType::Interval(_) | DataType::Duration(_) => "INTERVAL".to_owned(),
        DataType::List(inner) | DataType::LargeList(inner) => format!("ARRAY<{}>", sql_name(inner)),
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|field| {
                    format!("{} {}{}", field.name(), sql_name(field), if field.is_nullable() { "" } else { " NOT NULL" })
                })
                .collect();
            format!("ROW<{}>", fields.join(", "))
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => format!("MAP<{}, {}>", sql_name(&fields[0]), sql_name(&fields[1])),
            other => other.to_string(),
        },
        other => other.to_string(),
    }
}

/// Gives DataFusion's planner our types, so that `CAST(x AS TIMESTAMP(3))` is what a column `TIMESTAMP(3)` is. Errors are a [`Diagnostic`]
/// in [`DataFusionError::External`].
#[derive(Debug, Default, Clone, Copy)]
pub struct TideraceTypes;

impl TypePlanner for TideraceTypes {
    fn plan_type_field(&self, sql_type: &SqlType) -> datafusion::common::Result<Option<FieldRef>> {
        match nested_field("", sql_type, false, 0) {
            Ok(field) => Ok(Some(Arc::new(field))),
            Err(error) => Err(DataFusionError::External(Box::new(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn column_type(sql: &str) -> Result<Field> {
        let script =
            super::super::parse(&format!("CREATE TABLE t (c {sql}) WITH ('connector' = 'x')"), &Default::default()).unwrap();
        let super::super::StatementKind::CreateTable(table) = &script.statements[0].kind else { unreachable!() };
        let super::super::ast::ColumnKind::Physical { data_type, not_null } = &table.columns[0].kind else { unreachable!() };
        field("c", data_type, *not_null)
    }

    #[test]
    fn each_spelling_has_its_type_and_comes_back_as_sql() {
        for (sql, shown) in [
            ("STRING", "STRING"),
            ("VARCHAR(2147483647)", "STRING"),
            ("CHAR(3)", "STRING"),
            ("TEXT", "STRING"),
            ("BYTES", "BYTES"),
            ("BYTEA", "BYTES"),
            ("VARBINARY(20)", "BYTES"),
            ("INT", "INT"),
            ("INTEGER", "INT"),
            ("INT8", "BIGINT"),
            ("TINYINT", "TINYINT"),
            ("SMALLINT", "SMALLINT"),
            ("BIGINT UNSIGNED", "BIGINT UNSIGNED"),
            ("FLOAT", "REAL"),
            ("DOUBLE", "DOUBLE"),
            ("DOUBLE PRECISION", "DOUBLE"),
            ("FLOAT8", "DOUBLE"),
            ("DECIMAL(23, 3)", "DECIMAL(23, 3)"),
            ("NUMERIC", "DECIMAL(38, 10)"),
            ("DECIMAL(5)", "DECIMAL(5, 0)"),
            ("DATE", "DATE"),
            ("TIME(3)", "TIME(3)"),
            ("TIMESTAMP", "TIMESTAMP"),
            ("TIMESTAMP(3)", "TIMESTAMP(3)"),
            ("TIMESTAMP(3) WITHOUT TIME ZONE", "TIMESTAMP(3)"),
            ("TIMESTAMP_LTZ(3)", "TIMESTAMP_LTZ(3)"),
            ("TIMESTAMP(0)", "TIMESTAMP(0)"),
            ("ROW<at TIMESTAMP(3)>", "ROW<at TIMESTAMP(3)>"),
            ("TIMESTAMP WITH LOCAL TIME ZONE", "TIMESTAMP_LTZ"),
            ("TIMESTAMP(6) WITH TIME ZONE", "TIMESTAMP_LTZ"),
            ("TIMESTAMPTZ", "TIMESTAMP_LTZ"),
            ("INTERVAL", "INTERVAL"),
            ("JSON", "JSON"),
            ("JSONB", "JSON"),
            ("INT ARRAY", "?"),
            ("ARRAY<INT>", "ARRAY<INT>"),
            ("INT[]", "ARRAY<INT>"),
            (
                "ROW<a INT NOT NULL, `b c` MAP<STRING, ARRAY<ROW<x DOUBLE>>>>",
                "ROW<a INT NOT NULL, b c MAP<STRING, ARRAY<ROW<x DOUBLE>>>>",
            ),
        ] {
            if shown != "?" {
                assert_eq!(sql_name(&column_type(sql).unwrap()), shown, "{sql}");
            }
        }
        assert_eq!(*column_type("TIMESTAMP(3)").unwrap().data_type(), DataType::Timestamp(TimeUnit::Microsecond, None));
        assert_eq!(
            *column_type("TIMESTAMP_LTZ(3)").unwrap().data_type(),
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
        );
        assert!(!column_type("INT NOT NULL").unwrap().is_nullable());
    }

    #[test]
    fn what_is_no_type_is_refused() {
        for sql in [
            "STRNG",
            "DECIMAL(39, 2)",
            "DECIMAL(3, 4)",
            "TIMESTAMP(9)",
            "UUID",
            "VARCHAR(0)",
            "ROW<a INT, a INT>",
            "TIMESTAMP_LTZ(7)",
        ] {
            let error = column_type(sql).unwrap_err();
            assert!(matches!(error.code, Code::UnknownType | Code::DuplicateName), "{sql}: {error}");
        }
        assert_eq!(column_type("STRNG").unwrap_err().hint.as_deref(), Some("did you mean STRING?"));
    }
}
