//! From calls to states: which parts a call needs, what calls share.

use arrow::compute::SortOptions;
use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;

use super::aggregates::{Aggregates, Source, State, TableIds};
use super::call::{AggregateCall, AggregateFunction, plain};
use super::evaluate::Evaluation;
use super::sets::{DistinctSet, LANES_MAX, Multiset, SketchSet};
use super::state::{Part, StateKind};
use crate::error::{Code, Diagnostic, Result};
use crate::key::RowCodec;
use crate::key::ordinal::{View, ordinal_of};

const ASCENDING: SortOptions = SortOptions { descending: false, nulls_first: true };

impl Aggregates {
    fn source(&mut self, source: Source) -> usize {
        let source = Source { present: source.present.filter(|c| self.input.field(*c).is_nullable()), ..source };
        self.sources.iter().position(|s| *s == source).unwrap_or_else(|| {
            self.sources.push(source);
            self.sources.len() - 1
        })
    }

    /// The slot offset of a state, which calls share when it is the same.
    fn state(&mut self, kind: StateKind, source: Source) -> usize {
        let source = self.source(source);
        if let Some(state) = self.states.iter().find(|s| s.kind == kind && s.source == source) {
            return state.at;
        }
        let at = self.width;
        self.width += kind.width();
        let locals = kind.locals();
        self.states.push(State { kind, source, at, locals });
        at
    }

    fn codec(&self, columns: &[(usize, SortOptions)]) -> Result<RowCodec> {
        RowCodec::new(columns.iter().map(|(c, o)| (plain(self.input.field(*c).data_type()).clone(), *o)).collect())
    }

    /// The lane of a table of different values; a group keeps how many entries it has, and how many are below zero.
    fn distinct(&mut self, column: usize, filter: Option<usize>, tables: &mut TableIds) -> Result<(usize, usize)> {
        let found =
            self.distincts.iter().position(|s| s.column == column && (s.lanes.len() < LANES_MAX || s.lanes.contains(&filter)));
        let set = match found {
            Some(set) => set,
            None => {
                let codec = self.codec(&[(column, ASCENDING)])?;
                self.distincts.push(DistinctSet::new(column, self.append_only, tables.next(), codec));
                let set = self.distincts.len() - 1;
                self.state(StateKind::Entries(set), Source::default());
                if !self.append_only {
                    self.state(StateKind::NegativeValues(set), Source::default());
                }
                set
            }
        };
        let lanes = &mut self.distincts[set].lanes;
        let lane = lanes.iter().position(|f| *f == filter).unwrap_or_else(|| {
            lanes.push(filter);
            lanes.len() - 1
        });
        Ok((set, lane))
    }

    fn multiset(&mut self, columns: Vec<(usize, SortOptions)>, source: Source, tables: &mut TableIds) -> Result<usize> {
        let at = self.source(source);
        if let Some(set) = self.multisets.iter().position(|m| m.columns == columns && m.source == at) {
            return Ok(set);
        }
        let codec = self.codec(&columns)?;
        self.multisets.push(Multiset::new(columns, at, tables.next(), codec));
        let set = self.multisets.len() - 1;
        self.state(StateKind::NegativeRows(set), Source::default());
        Ok(set)
    }

    /// The handle of the first or last row in an order.
    fn end_row(
        &mut self,
        columns: Vec<(usize, SortOptions)>,
        source: Source,
        last: bool,
        result: DataType,
        tables: &mut TableIds,
    ) -> Result<Evaluation> {
        let codec = self.codec(&columns)?;
        let handle = if self.append_only {
            let order = self.order(columns, codec.clone());
            self.state(StateKind::Best { order, last }, source)
        } else {
            let set = self.multiset(columns, source, tables)?;
            self.state(StateKind::SetValue { set, part: if last { Part::Last } else { Part::First } }, Source::default())
        };
        Ok(Evaluation::Row { handle, codec, result })
    }

    pub(super) fn compile(&mut self, call: &AggregateCall, tables: &mut TableIds) -> Result<Evaluation> {
        use AggregateFunction as F;
        let columns = self.input.fields().len();
        let used = call.args.iter().chain(&call.filter).chain(call.order_by.iter().map(|(c, _)| c));
        if let Some(column) = used.copied().find(|c| *c >= columns) {
            return Err(Diagnostic::new(Code::Internal, format!("an aggregate reads column {column} of {columns}")));
        }
        if let Some(filter) = call.filter.filter(|f| *self.input.field(*f).data_type() != DataType::Boolean) {
            let what =
                format!("the FILTER of `{}` is {}, not BOOLEAN", call.function.name(), self.input.field(filter).data_type());
            return Err(Diagnostic::new(Code::TypeMismatch, what));
        }
        let name = call.function.name();
        let types: Vec<DataType> = call.args.iter().map(|c| plain(self.input.field(*c).data_type()).clone()).collect();
        let result = call.function.return_type(&types)?;
        let declared = plain(call.output.data_type());
        let fits = match (declared, &result) {
            (DataType::List(have), DataType::List(want)) if call.function == F::ArrayAgg => have.data_type() == want.data_type(),
            _ => *declared == result,
        };
        if !fits {
            return Err(Diagnostic::new(Code::Internal, format!("`{name}` gives {result}, not {declared}")));
        }
        if !self.append_only && !call.function.retracts() {
            let what = format!("`{name}` can't take rows back, and its input changes");
            return Err(Diagnostic::new(Code::NoRetraction, what)
                .hint("use an exact function, as count(DISTINCT …), or an input that only grows"));
        }
        let rows = Source { filter: call.filter, ..Source::default() };
        let Some(column) = call.args.first().copied() else {
            if call.distinct {
                return Err(Diagnostic::new(Code::InvalidArgument, "`count(DISTINCT *)` does not exist").hint("name a column"));
            }
            return Ok(Evaluation::Count { count: self.state(StateKind::Count, rows) });
        };
        let first = types[0].clone();
        let mut present = Source { present: Some(column), ..rows };
        let cares_for_multiplicity =
            matches!(call.function, F::Count | F::Sum | F::Avg | F::VarPop | F::VarSamp | F::StddevPop | F::StddevSamp);
        if call.distinct && cares_for_multiplicity {
            let distinct = Some(self.distinct(column, call.filter, tables)?);
            present = Source { filter: None, distinct, ..present };
        }
        Ok(match call.function {
            F::Count => Evaluation::Count { count: self.state(StateKind::Count, present) },
            F::Sum | F::Avg if matches!(first, DataType::Decimal128(..) | DataType::UInt64) => {
                let count = self.state(StateKind::Count, present);
                let sum = self.state(StateKind::SumDecimal(column), present);
                if call.function == F::Sum {
                    Evaluation::SumDecimal { sum, count, result }
                } else {
                    Evaluation::AverageDecimal { sum, count, digits: digits_to_add(&first, &result), result }
                }
            }
            F::Sum | F::Avg if first.is_integer() => {
                let count = self.state(StateKind::Count, present);
                let sum = self.state(StateKind::SumInteger(column), present);
                if call.function == F::Sum {
                    Evaluation::SumInteger { sum, count }
                } else {
                    Evaluation::AverageInteger { sum, count, digits: digits_to_add(&first, &result), result }
                }
            }
            F::Sum | F::Avg => {
                let count = self.state(StateKind::Count, present);
                let sum = self.state(StateKind::SumFloat(column), present);
                Evaluation::SumFloat { sum, count, average: call.function == F::Avg }
            }
            F::VarPop | F::VarSamp | F::StddevPop | F::StddevSamp => Evaluation::Variance {
                moments: self.state(StateKind::Moments(column), present),
                sample: matches!(call.function, F::VarSamp | F::StddevSamp),
                root: matches!(call.function, F::StddevPop | F::StddevSamp),
            },
            F::BoolAnd | F::BoolOr => {
                let count = self.state(StateKind::Count, present);
                let truths = self.state(StateKind::Count, Source { truth: Some(column), ..present });
                Evaluation::Boolean { count, truths, all: call.function == F::BoolAnd }
            }
            F::Min | F::Max => {
                let least = call.function == F::Min;
                match ordinal_of(&first).filter(|_| self.append_only) {
                    Some(View::Ordinal64) => {
                        let count = self.state(StateKind::Count, present);
                        let best = self.state(StateKind::Extremum64 { column, least }, present);
                        Evaluation::Extremum64 { best, count, least, result }
                    }
                    Some(_) => {
                        let count = self.state(StateKind::Count, present);
                        let best = self.state(StateKind::Extremum128 { column, least }, present);
                        Evaluation::Extremum128 { best, count, least, result }
                    }
                    None => self.end_row(vec![(column, ASCENDING)], present, !least, result, tables)?,
                }
            }
            F::FirstValue | F::LastValue => {
                let order = call.order_by.iter().copied().chain([(column, ASCENDING)]).collect();
                let source = if call.ignore_nulls { present } else { rows };
                self.end_row(order, source, call.function == F::LastValue, result, tables)?
            }
            F::ArgMin | F::ArgMax => {
                let by = call.args[1];
                let order = vec![(by, ASCENDING), (column, ASCENDING)];
                let source = Source { present: Some(by), ..rows };
                self.end_row(order, source, call.function == F::ArgMax, result, tables)?
            }
            F::ArrayAgg | F::StringAgg => {
                if call.distinct && call.order_by.iter().any(|(c, _)| *c != column) {
                    let what = format!("`{name}(DISTINCT …)` can be ordered by its own argument only");
                    return Err(Diagnostic::new(Code::InvalidArgument, what));
                }
                let order: Vec<_> = call.order_by.iter().copied().chain([(column, ASCENDING)]).collect();
                let codec = self.codec(&order)?;
                let source = if call.ignore_nulls || call.function == F::StringAgg { present } else { rows };
                let set = self.multiset(order, source, tables)?;
                let handle = self.state(StateKind::SetValue { set, part: Part::All }, Source::default());
                let once = call.distinct;
                match (call.function, call.output.data_type()) {
                    (F::ArrayAgg, DataType::List(item)) => Evaluation::List { handle, codec, item: item.clone(), once },
                    (F::ArrayAgg, other) => {
                        return Err(Diagnostic::new(Code::Internal, format!("`{name}` gives an array, not {other}")));
                    }
                    _ => Evaluation::Joined { handle, codec, separator: separator(call)?, result, once },
                }
            }
            F::ApproxDistinct => {
                let codec = self.codec(&[(column, ASCENDING)])?;
                let source = self.source(present);
                self.sketches.push(SketchSet::new(column, source, tables.next(), codec));
                let set = self.sketches.len() - 1;
                Evaluation::Count { count: self.state(StateKind::Estimate(set), Source::default()) }
            }
        })
    }
}

fn separator(call: &AggregateCall) -> Result<String> {
    match call.constants.first() {
        None => Ok(String::new()),
        Some(ScalarValue::Utf8(s) | ScalarValue::LargeUtf8(s) | ScalarValue::Utf8View(s)) => Ok(s.clone().unwrap_or_default()),
        Some(other) => {
            let what = format!("the separator of `{}` must be a constant string, not {other}", call.function.name());
            Err(Diagnostic::new(Code::InvalidArgument, what))
        }
    }
}

/// How many digits an average gets more than its argument.
fn digits_to_add(argument: &DataType, result: &DataType) -> u32 {
    let scale = |t: &DataType| if let DataType::Decimal128(_, scale) = t { i32::from(*scale) } else { 0 };
    (scale(result) - scale(argument)).max(0) as u32
}
