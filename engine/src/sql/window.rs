//! Window table functions in the FROM clause, in each spelling, as one typed value.

use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, ObjectNamePart, TableAlias, TableFactor,
};

use super::interval::{self, Interval};
use super::query;
use super::tokens::span_of_node;
use crate::error::{Code, Diagnostic, Result, Span};

/// Which windows a row falls into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WindowKind {
    /// One after the other.
    Tumble {
        /// How long each is.
        size: Interval,
    },
    /// Overlapping. When `size` is no multiple of `slide`, a row lies in either ⌊size/slide⌋ or one more of them, as its time says.
    Hop {
        /// How far the start of one is from the next; at most `size`.
        slide: Interval,
        /// How long each is.
        size: Interval,
    },
    /// Growing by `step` up to `size`, then anew.
    Cumulate {
        /// By how much each is longer than the one before; `size` is a multiple of it.
        step: Interval,
        /// How long the longest is.
        size: Interval,
    },
    /// As long as rows of a key come.
    Session {
        /// How long without a row ends it.
        gap: Interval,
    },
}

/// A call of TUMBLE, HOP, CUMULATE or SESSION in a FROM clause. Lengths are positive and have no months.
#[derive(Clone, Debug)]
pub struct WindowCall {
    /// Which windows.
    pub kind: WindowKind,
    /// What is added to every window's start and end; may be negative. Zero when left out.
    pub offset: Interval,
    /// What it reads: a name, or a subquery.
    pub input: TableFactor,
    /// The time column; `None`: the input's only time attribute (Arroyo's short form).
    pub time_column: Option<Ident>,
    /// SESSION's `PARTITION BY`.
    pub partition_keys: Vec<Expr>,
    /// The alias behind the call.
    pub alias: Option<TableAlias>,
    /// The call.
    pub span: Option<Span>,
}

/// The columns that a window table function adds behind its input's, in this order.
pub const WINDOW_COLUMNS: [&str; 3] = ["window_start", "window_end", "window_time"];

/// The name of a window function, in capitals, if it is one.
fn window_name(name: &ObjectName) -> Option<&'static str> {
    let [ObjectNamePart::Identifier(ident)] = name.0.as_slice() else { return None };
    ["TUMBLE", "HOP", "CUMULATE", "SESSION"]
        .into_iter()
        .find(|window| ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case(window))
}

/// `relation` as a window call, if it is one, with all that is wrong with its arguments.
pub fn as_window_call(relation: &TableFactor) -> Option<Result<WindowCall>> {
    let (name, args, alias) = match relation {
        TableFactor::Table { name, args: Some(args), alias, .. } => (name, args.args.as_slice(), alias),
        TableFactor::Function { name, args, alias, .. } => (name, args.as_slice(), alias),
        TableFactor::TableFunction {
            expr: Expr::Function(Function { name, args: FunctionArguments::List(list), .. }),
            alias,
        } => (name, list.args.as_slice(), alias),
        _ => return None,
    };
    let window = window_name(name)?;
    let span = span_of_node(name).map(|span| args.iter().filter_map(span_of_node).fold(span, Span::to));
    Some(Arguments::of(window, args, span).and_then(|args| args.call(alias.clone())))
}

/// A call's arguments, by name.
struct Arguments<'a> {
    window: &'static str,
    data: Option<&'a Expr>,
    time: Option<&'a Expr>,
    keys: Option<&'a Expr>,
    /// SIZE or GAP.
    size: Option<&'a Expr>,
    /// SLIDE or STEP.
    step: Option<&'a Expr>,
    offset: Option<&'a Expr>,
    span: Option<Span>,
}

fn signature(window: &str) -> &'static str {
    match window {
        "TUMBLE" => "TUMBLE(TABLE t, DESCRIPTOR(time), size [, offset])",
        "HOP" => "HOP(TABLE t, DESCRIPTOR(time), slide, size [, offset])",
        "CUMULATE" => "CUMULATE(TABLE t, DESCRIPTOR(time), step, size [, offset])",
        _ => "SESSION(TABLE t [PARTITION BY key], DESCRIPTOR(time), gap)",
    }
}

impl<'a> Arguments<'a> {
    fn of(window: &'static str, args: &'a [FunctionArg], span: Option<Span>) -> Result<Self> {
        let wrong = |why: String| {
            Diagnostic::new(Code::InvalidWindow, format!("{window}: {why}")).at(span).hint(format!("write {}", signature(window)))
        };
        let mut found = Self { window, data: None, time: None, keys: None, size: None, step: None, offset: None, span };
        let order: &[&str] = match window {
            "TUMBLE" => &["DATA", "TIMECOL", "SIZE", "OFFSET"],
            "SESSION" => &["DATA", "TIMECOL", "GAP"],
            "HOP" => &["DATA", "TIMECOL", "SLIDE", "SIZE", "OFFSET"],
            _ => &["DATA", "TIMECOL", "STEP", "SIZE", "OFFSET"],
        };
        let mut position = 0;
        for arg in args {
            let (name, value) = match arg {
                FunctionArg::Named { name, arg, .. } => (name.value.to_ascii_uppercase(), arg),
                FunctionArg::ExprNamed { name, arg, .. } => (name.to_string().to_ascii_uppercase(), arg),
                FunctionArg::Unnamed(arg) => {
                    let name = order.get(position).ok_or_else(|| wrong("has too many arguments".to_owned()))?;
                    position += 1;
                    ((*name).to_owned(), arg)
                }
            };
            let FunctionArgExpr::Expr(value) = value else { return Err(wrong("can't take *".to_owned())) };
            let slot = match name.as_str() {
                "DATA" => &mut found.data,
                "TIMECOL" => &mut found.time,
                "PARTITION_KEYS" if window == "SESSION" => &mut found.keys,
                "SIZE" if window != "SESSION" => &mut found.size,
                "GAP" if window == "SESSION" => &mut found.size,
                "SLIDE" if window == "HOP" => &mut found.step,
                "STEP" if window == "CUMULATE" => &mut found.step,
                "OFFSET" if window != "SESSION" => &mut found.offset,
                "PARTITION_KEYS" => {
                    return Err(wrong(
                        "takes no PARTITION BY: every row falls into the same windows; GROUP BY the keys".to_owned(),
                    ));
                }
                _ => return Err(wrong(format!("has no argument {name}"))),
            };
            if slot.replace(value).is_some() {
                return Err(wrong(format!("has {name} twice")));
            }
        }
        Ok(found)
    }

    fn call(&self, alias: Option<TableAlias>) -> Result<WindowCall> {
        let missing = |what: &str| {
            Diagnostic::new(Code::InvalidWindow, format!("{} has no {what}", self.window))
                .at(self.span)
                .hint(format!("write {}", signature(self.window)))
        };
        let input = input(self.data.ok_or_else(|| missing("table to read"))?)?;
        let time_column = self.time.map(time_column).transpose()?.flatten();
        let size = self.length(self.size.ok_or_else(|| missing(if self.window == "SESSION" { "gap" } else { "size" }))?)?;
        let kind = match self.window {
            "TUMBLE" => WindowKind::Tumble { size },
            "SESSION" => WindowKind::Session { gap: size },
            "HOP" => {
                let slide = self.length(self.step.ok_or_else(|| missing("slide"))?)?;
                if slide.micros > size.micros {
                    return Err(Diagnostic::new(Code::InvalidWindow, format!("HOP slides by {slide}, further than its size of {size}: rows between would be in no window"))
                        .at(self.span)
                        .hint("the slide comes before the size: HOP(TABLE t, DESCRIPTOR(time), slide, size); or name them: SLIDE => …, SIZE => …"));
                }
                WindowKind::Hop { slide, size }
            }
            _ => {
                let step = self.length(self.step.ok_or_else(|| missing("step"))?)?;
                if step.micros > size.micros || size.micros % step.micros != 0 {
                    return Err(Diagnostic::new(
                        Code::InvalidWindow,
                        format!("CUMULATE's size of {size} is no multiple of its step of {step}"),
                    )
                    .at(self.span)
                    .hint("the step comes before the size: CUMULATE(TABLE t, DESCRIPTOR(time), step, size)"));
                }
                WindowKind::Cumulate { step, size }
            }
        };
        let offset = match self.offset {
            None => Interval::default(),
            Some(expr) => self.constant(expr)?,
        };
        let partition_keys = match self.keys {
            None => Vec::new(),
            Some(Expr::Tuple(keys)) => keys.clone(),
            Some(Expr::Nested(key)) => vec![key.as_ref().clone()],
            Some(key) => vec![key.clone()],
        };
        Ok(WindowCall { kind, offset, input, time_column, partition_keys, alias, span: self.span })
    }

    fn constant(&self, expr: &Expr) -> Result<Interval> {
        let span = span_of_node(expr).or(self.span);
        let length = interval::constant(expr).map_err(|error| {
            Diagnostic { code: Code::InvalidWindow, message: format!("{}: {}", self.window, error.message), ..error }.at(span)
        })?;
        if length.months != 0 {
            return Err(Diagnostic::new(
                Code::InvalidWindow,
                format!("{}: a window can't be counted in months, which differ in length", self.window),
            )
            .at(span)
            .hint("count in days or less"));
        }
        Ok(length)
    }

    fn length(&self, expr: &Expr) -> Result<Interval> {
        let length = self.constant(expr)?;
        if !length.is_positive() {
            return Err(Diagnostic::new(Code::InvalidWindow, format!("{}: {length} is not longer than nothing", self.window))
                .at(span_of_node(expr).or(self.span)));
        }
        Ok(length)
    }
}

/// The table argument: a name or a subquery.
fn input(expr: &Expr) -> Result<TableFactor> {
    match expr {
        Expr::Identifier(ident) => Ok(query::table(ObjectName::from(vec![ident.clone()]))),
        Expr::CompoundIdentifier(idents) => Ok(query::table(ObjectName::from(idents.clone()))),
        Expr::Subquery(query) => Ok(TableFactor::Derived { lateral: false, subquery: query.clone(), alias: None, sample: None }),
        Expr::Nested(inner) => input(inner),
        _ => Err(Diagnostic::new(Code::InvalidWindow, format!("`{expr}` is no table"))
            .at(span_of_node(expr))
            .hint("a window function reads TABLE name, or a query in parentheses")),
    }
}

/// The time column: `DESCRIPTOR(ts)` or `ts`. `DESCRIPTOR()` leaves it open.
fn time_column(expr: &Expr) -> Result<Option<Ident>> {
    let wrong = || {
        Diagnostic::new(Code::InvalidWindow, format!("`{expr}` is no time column"))
            .at(span_of_node(expr))
            .hint("write DESCRIPTOR(column)")
    };
    match expr {
        Expr::Identifier(ident) => Ok(Some(ident.clone())),
        Expr::CompoundIdentifier(idents) => idents.last().cloned().map(Some).ok_or_else(wrong),
        Expr::Function(Function { name, args: FunctionArguments::List(list), .. })
            if name.to_string().eq_ignore_ascii_case("DESCRIPTOR") =>
        {
            match list.args.as_slice() {
                [] => Ok(None),
                [FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Identifier(ident)))] => Ok(Some(ident.clone())),
                [FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::CompoundIdentifier(idents)))] => {
                    idents.last().cloned().map(Some).ok_or_else(wrong)
                }
                _ => Err(wrong()),
            }
        }
        _ => Err(wrong()),
    }
}
