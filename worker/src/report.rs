//! Shows errors: to people with the SQL underlined, to machines as JSON lines.

use std::fmt;
use std::ops::Range;

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, ReportHandler, Severity, SourceCode};
use serde::Serialize;
use tiderace_engine::error::{Diagnostic, Diagnostics};

use crate::command::LogFormat;
use crate::job_file::{JobFile, SourceText};

/// The most errors that are shown; the rest is counted.
pub const ERRORS_SHOWN_MAX: usize = 50;

/// One error with its place in a text that can be quoted.
#[derive(Debug)]
pub struct Located {
    diagnostic: Diagnostic,
    place: Option<Range<usize>>,
    source: NamedSource<String>,
}

impl Located {
    /// Errors whose spans are places in `source`.
    #[must_use]
    pub fn in_file(diagnostics: &Diagnostics, source: &SourceText) -> Vec<Self> {
        Self::each(diagnostics, source, |one| one.span.map(|span| span.start..span.end))
    }

    /// Errors whose spans are places in the job's SQL.
    #[must_use]
    pub fn in_sql(diagnostics: &Diagnostics, job: &JobFile) -> Vec<Self> {
        Self::each(diagnostics, &job.quoted(), |one| one.span.map(|span| job.locate(span)))
    }

    fn each(diagnostics: &Diagnostics, source: &SourceText, place: impl Fn(&Diagnostic) -> Option<Range<usize>>) -> Vec<Self> {
        let locate = |one: &Diagnostic| {
            let length = source.text.len();
            let place = place(one).map(|p| p.start.min(length)..p.end.min(length).max(p.start.min(length)));
            Self { diagnostic: one.clone(), place, source: NamedSource::new(&source.name, source.text.clone()) }
        };
        diagnostics.0.iter().map(locate).collect()
    }

    /// Line and column of the place, both from 1; columns count characters.
    fn line_and_column(&self, offset: usize) -> (usize, usize) {
        let before = &self.source.inner()[..offset];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.diagnostic.message)
    }
}

impl std::error::Error for Located {}

impl miette::Diagnostic for Located {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.diagnostic.code))
    }

    fn severity(&self) -> Option<Severity> {
        Some(Severity::Error)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let page = format!("more about it: tiderace error {}", self.diagnostic.code);
        Some(Box::new(match &self.diagnostic.hint {
            Some(hint) => format!("{hint}\n{page}"),
            None => page,
        }))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.place.is_some().then_some(&self.source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let place = self.place.clone()?;
        Some(Box::new(std::iter::once(LabeledSpan::underline(place))))
    }
}

/// One line of `--log json` for an error.
#[derive(Serialize)]
struct ErrorLine<'a> {
    level: &'static str,
    code: String,
    title: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(flatten)]
    place: Option<PlaceFields<'a>>,
    page: String,
}

#[derive(Serialize)]
struct PlaceFields<'a> {
    file: &'a str,
    line: usize,
    column: usize,
    end_line: usize,
    end_column: usize,
}

/// How messages look.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// For people or machines.
    pub format: LogFormat,
    /// Whether colours and box characters may be used.
    pub is_terminal: bool,
    /// The terminal's width in characters.
    pub width: usize,
}

/// All of `errors` as text, each ending with a line break.
#[must_use]
pub fn render(errors: &[Located], style: Style) -> String {
    let mut out = String::new();
    for error in errors.iter().take(ERRORS_SHOWN_MAX) {
        match style.format {
            LogFormat::Text => render_text(error, style, &mut out),
            LogFormat::Json => render_json(error, &mut out),
        }
    }
    if let Some(more) = errors.len().checked_sub(ERRORS_SHOWN_MAX).filter(|n| *n > 0) {
        out.push_str(&match style.format {
            LogFormat::Text => format!("… and {more} errors more\n"),
            LogFormat::Json => format!("{}\n", serde_json::json!({"level": "error", "errors_not_shown": more})),
        });
    }
    out
}

fn render_text(error: &Located, style: Style, out: &mut String) {
    struct Shown<'a>(&'a Located, GraphicalReportHandler);
    impl fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}", Debugged(self.0, &self.1))
        }
    }
    struct Debugged<'a>(&'a Located, &'a GraphicalReportHandler);
    impl fmt::Display for Debugged<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.1.debug(self.0, f)
        }
    }
    let theme = if style.is_terminal { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_width(style.width.clamp(40, 160))
        .with_links(false)
        .with_context_lines(1)
        .with_wrap_lines(true);
    let text = Shown(error, handler).to_string();
    out.push_str(text.trim_matches('\n'));
    out.push_str("\n\n");
}

fn render_json(error: &Located, out: &mut String) {
    let diagnostic = &error.diagnostic;
    let place = error.place.clone().map(|place| {
        let (line, column) = error.line_and_column(place.start);
        let (end_line, end_column) = error.line_and_column(place.end);
        PlaceFields { file: error.source.name(), line, column, end_line, end_column }
    });
    let line = ErrorLine {
        level: "error",
        code: diagnostic.code.to_string(),
        title: diagnostic.code.title(),
        message: &diagnostic.message,
        hint: diagnostic.hint.as_deref(),
        place,
        page: format!("docs/errors/{}.md", diagnostic.code),
    };
    // A struct of texts and numbers always serializes; should it ever not, the message must still get out.
    out.push_str(
        &serde_json::to_string(&line).unwrap_or_else(|_| format!("{{\"level\":\"error\",\"code\":\"{}\"}}", diagnostic.code)),
    );
    out.push('\n');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tiderace_engine::error::{Code, Span};

    use super::*;

    const TEXT: Style = Style { format: LogFormat::Text, is_terminal: false, width: 100 };
    const JSON: Style = Style { format: LogFormat::Json, ..TEXT };

    fn job() -> JobFile {
        let yaml = "apiVersion: tiderace.dev/v1alpha1\nkind: StreamingJob\nmetadata: {name: orders}\nspec:\n  sql:\n    inline: |\n      \
                    SELECT ä\n      FROM missing;\n";
        JobFile::from_manifest(SourceText { name: "job.yaml".to_owned(), text: yaml.to_owned() }).unwrap()
    }

    fn missing(job: &JobFile) -> Diagnostics {
        let start = job.sql.find("missing").unwrap();
        Diagnostic::new(Code::UnknownTable, "there is no table 'missing'")
            .at(Span { start, end: start + 7 })
            .hint("the tables are: orders")
            .into()
    }

    #[test]
    fn people_see_the_line_of_the_manifest_underlined() {
        let job = job();
        let text = render(&Located::in_sql(&missing(&job), &job), TEXT);
        insta::assert_snapshot!(text, @r"
        TR-1001

          × there is no table 'missing'
           ╭─[job.yaml:8:12]
         7 │       SELECT ä
         8 │       FROM missing;
           ·            ───────
           ╰────
          help: the tables are: orders
                more about it: tiderace error TR-1001
        ");
    }

    #[test]
    fn machines_get_a_line_with_the_place() {
        let job = job();
        let line = render(&Located::in_sql(&missing(&job), &job), JSON);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "level": "error", "code": "TR-1001", "title": "No such table or view", "message": "there is no table 'missing'",
                "hint": "the tables are: orders", "file": "job.yaml", "line": 8, "column": 12, "end_line": 8, "end_column": 19,
                "page": "docs/errors/TR-1001.md",
            })
        );
    }

    #[test]
    fn an_error_without_place_quotes_nothing_and_many_are_cut() {
        let job = job();
        let one = Diagnostic::new(Code::NothingToRun, "the job has no statement that produces rows");
        let text = render(&Located::in_sql(&one.clone().into(), &job), TEXT);
        assert!(text.contains("TR-1011") && !text.contains("job.yaml"), "{text}");
        let many = Diagnostics(vec![one; ERRORS_SHOWN_MAX + 3]);
        assert!(render(&Located::in_sql(&many, &job), TEXT).ends_with("… and 3 errors more\n"));
        assert_eq!(render(&Located::in_sql(&many, &job), JSON).lines().count(), ERRORS_SHOWN_MAX + 1);
    }

    #[test]
    fn a_span_outside_the_text_is_cut_not_followed() {
        let job = job();
        let wild = Diagnostic::new(Code::Internal, "oops").at(Span { start: 1 << 30, end: 1 << 31 });
        assert!(render(&Located::in_sql(&wild.clone().into(), &job), TEXT).contains("oops"));
        assert!(render(&Located::in_sql(&wild.into(), &job), JSON).contains("oops"));
    }
}
