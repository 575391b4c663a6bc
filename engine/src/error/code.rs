//! The table of codes. A code never changes its meaning; a code that is no longer used is not given out again.

use std::fmt;

/// Who has to act on a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The user: the SQL, the manifest or the data are wrong.
    User,
    /// Nobody yet: the same may succeed later.
    Retryable,
    /// The job can't go on.
    Fatal,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $class:ident, $title:literal;)*) => {
        /// A kind of problem, `TR-nnnn`. Ranges: 1000 SQL text and names, 1500 refused features and streaming properties,
        /// 2000 rows at run time, 3000 connectors and formats, 4000 storage, 7000 configuration and command line, 9000 our bugs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Code {
            $(#[doc = $title] $(#[$doc])* $name = $number,)*
        }

        impl Code {
            /// Every code, in ascending order.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Who has to act.
            #[must_use]
            pub fn class(self) -> Class {
                match self { $(Self::$name => Class::$class,)* }
            }

            /// The title of its page.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

// Keep sorted by number. Each has a page docs/errors/TR-nnnn.md and a test that reaches it.
codes! {
    // --- SQL: syntax, names, types
    Syntax = 1000, User, "The SQL can't be parsed";
    UnknownTable = 1001, User, "No such table or view";
    UnknownColumn = 1002, User, "No such column";
    UnknownFunction = 1003, User, "No such function, or not with these arguments";
    DuplicateName = 1004, User, "A name is defined twice";
    AmbiguousName = 1005, User, "A name may mean several things";
    TypeMismatch = 1006, User, "Types do not fit";
    UnknownType = 1007, User, "No such type";
    ColumnCount = 1008, User, "The query's columns do not fit the target's";
    InvalidArgument = 1009, User, "An argument of a function or clause is not valid";
    UnboundVariable = 1010, User, "A ${variable} has no value";
    NothingToRun = 1011, User, "The job has no statement that produces rows";
    NotGrouped = 1012, User, "A column is neither grouped nor aggregated";
    StillInUse = 1013, User, "What is dropped or replaced is still in use";
    // --- SQL: refused features, streaming properties
    Unsupported = 1500, User, "This SQL can't be run yet";
    UnsupportedJoin = 1501, User, "Joins can't be run yet";
    UnsupportedSession = 1502, User, "Session windows can't be run yet";
    UnsupportedOver = 1503, User, "OVER windows and ROW_NUMBER can't be run yet";
    UnsupportedOrder = 1504, User, "ORDER BY and LIMIT over a stream can't be run yet";
    NoTimeAttribute = 1510, User, "A window needs a time column with a watermark";
    InvalidWindow = 1511, User, "The sizes of a window do not fit";
    EmitMisplaced = 1512, User, "EMIT stands where it has no meaning";
    EmitNotPossible = 1513, User, "This query can't emit in that way";
    SinkKind = 1514, User, "The sink can't take the changes of this query";
    UnboundedState = 1515, User, "The state of an operator would grow without bound";
    NonDeterministic = 1516, User, "A function that is not deterministic over changing input";
    UnsupportedSetting = 1517, User, "SET names an option that does not exist";
    UnsupportedJavaClass = 1518, User, "A Java class can't run here";
    UnknownHint = 1519, User, "A hint that does not exist or names no table of the query";
    NoRetraction = 1520, User, "A function can't take rows back";
    // --- rows at run time
    RowExpression = 2000, User, "An expression failed on a row";
    Overflow = 2001, User, "A number is out of the range of its type";
    DivisionByZero = 2002, User, "Division by zero";
    InvalidCast = 2003, User, "A value can't be converted";
    NullEventTime = 2004, User, "A row has no event time";
    FutureEventTime = 2005, User, "A row's event time is too far in the future";
    NegativeWeight = 2006, Fatal, "A row was taken back that was never there";
    LateRow = 2007, User, "A row came too late for its window";
    DuplicateKey = 2008, User, "Two rows have the same declared key";
    MemoryExceeded = 2009, Fatal, "State is larger than the memory it may use";
    ValueTooLong = 2010, User, "A value is longer than its column allows";
    // --- connectors and formats
    UnknownConnector = 3000, User, "No such connector";
    UnknownFormat = 3001, User, "No such format";
    UnknownOption = 3002, User, "No such option";
    InvalidOption = 3003, User, "An option has a value it can't have";
    MissingOption = 3004, User, "An option is missing";
    UnsupportedSchema = 3005, User, "The connector or format can't take this schema";
    SourceUnavailable = 3006, Retryable, "A source can't be read";
    SinkUnavailable = 3007, Retryable, "A sink can't be written";
    PathNotFound = 3008, User, "No such file or folder";
    SinkPoisoned = 3009, Fatal, "A sink failed to make its data durable";
    BadRecord = 3100, User, "A record can't be decoded";
    BadUtf8 = 3101, User, "A record is not UTF-8";
    RecordTooLong = 3102, User, "A record is longer than allowed";
    MissingField = 3103, User, "A record lacks a field";
    ExtraField = 3104, User, "A record has a field that the table has not";
    FieldType = 3105, User, "A field has another type than its column";
    FieldRange = 3106, User, "A field is out of the range of its column";
    CorruptFile = 3107, User, "A file is damaged";
    // --- storage
    StateCorrupt = 4000, Fatal, "State is damaged";
    StateUnavailable = 4001, Retryable, "State can't be read or written";
    CheckpointMismatch = 4002, User, "The checkpoint is of another job";
    CheckpointDamaged = 4003, Fatal, "A checkpoint is damaged";
    CheckpointFailed = 4004, Retryable, "Checkpoints can't be written or read";
    CheckpointUnsupported = 4005, User, "A part of the job can't be checkpointed";
    // --- configuration, command line
    InvalidManifest = 7000, User, "The manifest is not valid";
    FileUnreadable = 7001, User, "A file can't be read";
    InvalidConfig = 7002, User, "A configuration value is not valid";
    UnknownConfig = 7003, User, "No such configuration key";
    UnknownView = 7004, User, "No such materialized view";
    NotEnoughCores = 7005, User, "More cores were asked for than there are";
    UnknownSecret = 7010, User, "A SECRET that the job is not given";
    WorkDirectory = 7011, Retryable, "The working directory can't be used";
    Certificates = 7012, User, "Certificates can't be used";
    PortUnavailable = 7013, Retryable, "A port can't be listened on";
    WrongEpoch = 7014, User, "A call that is meant for another start of the job";
    BadRequest = 7015, User, "A request that can't be answered";
    StaleOperator = 7016, User, "An order of an operator that leads no more";
    // --- our bugs
    Internal = 9000, Fatal, "A bug of Tiderace";
    Datafusion = 9001, Fatal, "An error of the planner that has no code of its own";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TR-{:04}", *self as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_ascend_and_none_stands_twice() {
        assert!(Code::ALL.windows(2).all(|pair| (pair[0] as u16) < pair[1] as u16));
    }
}
