//! The EMIT clause, checked against the query that it ends.

use crate::error::Span;
use crate::sql::ast::{Emit, EmitMode};

/// What a statement says about its output, in plain values; passed down to the first stateful node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Emission {
    /// When rows come out.
    pub mode: EmissionMode,
    /// `ALLOW LATENESS`, µs.
    pub lateness_us: i64,
    /// Whether late rows are wanted (`LATE DATA TO`).
    pub wants_late: bool,
}

/// When rows come out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum EmissionMode {
    /// Windows when they close, others at each change.
    #[default]
    Default,
    /// `EMIT ON WINDOW CLOSE`.
    OnWindowClose,
    /// `EMIT AFTER WATERMARK`.
    AfterWatermark,
    /// `EMIT ON UPDATE`: after images.
    OnUpdate,
    /// `EMIT CHANGES`: before and after images.
    Changes,
    /// `EMIT EVERY`: µs.
    Every(i64),
}

impl EmissionMode {
    /// Whether open windows show what they have so far.
    pub(super) fn shows_open_windows(self) -> bool {
        matches!(self, Self::OnUpdate | Self::Changes | Self::Every(_))
    }

    /// As written in SQL.
    pub(super) fn sql(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::OnWindowClose => "EMIT ON WINDOW CLOSE",
            Self::AfterWatermark => "EMIT AFTER WATERMARK",
            Self::OnUpdate => "EMIT ON UPDATE",
            Self::Changes => "EMIT CHANGES",
            Self::Every(_) => "EMIT EVERY",
        }
    }
}

impl Emission {
    /// From the syntax tree; intervals must be fixed spans of time.
    pub(super) fn from_clause(emit: &Emit) -> crate::error::Result<Self> {
        let mode = match &emit.mode {
            None => EmissionMode::Default,
            Some(mode) => match mode.value {
                EmitMode::OnWindowClose => EmissionMode::OnWindowClose,
                EmitMode::AfterWatermark => EmissionMode::AfterWatermark,
                EmitMode::OnUpdate => EmissionMode::OnUpdate,
                EmitMode::Changes => EmissionMode::Changes,
                EmitMode::Every(interval) => EmissionMode::Every(fixed(interval, mode.span, "EMIT EVERY")?),
            },
        };
        let lateness_us = match &emit.lateness {
            None => 0,
            Some(lateness) => fixed(lateness.value, lateness.span, "ALLOW LATENESS")?,
        };
        Ok(Self { mode, lateness_us, wants_late: emit.late_data_to.is_some() })
    }
}

fn fixed(interval: crate::sql::interval::Interval, span: Span, clause: &str) -> crate::error::Result<i64> {
    if interval.months == 0 && interval.micros > 0 {
        return Ok(interval.micros);
    }
    Err(crate::error::Diagnostic::new(
        crate::error::Code::InvalidArgument,
        format!("{clause} takes a span above 0, without months, not {interval}"),
    )
    .at(span)
    .hint("write for example INTERVAL '30' SECOND"))
}
