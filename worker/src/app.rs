//! From the process's arguments to its exit: parses, dispatches, writes.

use std::io::{self, IsTerminal, Write};

use clap::{CommandFactory, Parser};
use tiderace_engine::error::{Class, Code, Diagnostic, Diagnostics};
use tiderace_engine::plan::{ExplainFormat, JobPlan};
use tiderace_engine::runtime::graph::Role;

use crate::command::{CheckArgs, CheckFormat, Cli, Command, ExplainArgs, JobArgs, LogFormat, PlanFormat};
use crate::exit::Exit;
use crate::job_file::{JobFile, SourceText};
use crate::planning::{self, Demand, Given};
use crate::report::{self, Located, Style};
use crate::{error_pages, inspect, listing, machine, plan_check, run, serve, termination};

/// Runs the command that the process's arguments name.
#[must_use]
pub fn main_with_arguments() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Success };
            // Nothing can be told when neither stream can be written.
            return if error.print().is_ok() { exit } else { Exit::Failed };
        }
    };
    Console::new(cli.log).run(cli.command)
}

/// Where a command writes.
#[derive(Debug)]
pub(crate) struct Console {
    pub style: Style,
    pub is_stdout_terminal: bool,
}

impl Console {
    fn new(format: LogFormat) -> Self {
        let is_terminal = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let width =
            rustix::termios::tcgetwinsize(io::stderr()).ok().map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
        let style = Style { format, is_terminal, width: width.unwrap_or(100) };
        Self { style, is_stdout_terminal: io::stdout().is_terminal() }
    }

    fn run(&self, command: Command) -> Exit {
        match command {
            Command::Run(arguments) => run::run(self, &arguments),
            Command::Check(arguments) => self.check(&arguments),
            Command::Explain(arguments) => self.explain(&arguments),
            Command::Serve(arguments) => serve::run(self, arguments),
            Command::Functions(arguments) => self.rows(&listing::functions_text(arguments.format)),
            Command::Connectors(arguments) => match listing::connectors_text(arguments.name.as_deref(), arguments.list.format) {
                Ok(text) => self.rows(&text),
                Err(hint) => {
                    let name = arguments.name.unwrap_or_default();
                    self.refuse_alone(
                        Diagnostic::new(Code::UnknownConnector, format!("there is no connector '{name}'")).hint(hint),
                    )
                }
            },
            Command::Error(arguments) => match error_pages::page(&arguments.code) {
                Some(text) => self.rows(text),
                None => self.refuse_alone(
                    Diagnostic::new(Code::InvalidConfig, format!("there is no error code '{}'", arguments.code))
                        .hint("codes look like TR-1001"),
                ),
            },
            Command::Inspect(arguments) => inspect::inspect(self, &arguments),
            Command::Completions(arguments) => {
                let mut script = Vec::new();
                clap_complete::generate(arguments.shell, &mut Cli::command(), "tiderace", &mut script);
                self.rows(&String::from_utf8_lossy(&script))
            }
        }
    }

    fn check(&self, arguments: &CheckArgs) -> Exit {
        if arguments.format == CheckFormat::Json {
            return self.check_for_machines(arguments);
        }
        match self.plan(&arguments.job) {
            Ok((file, plan)) => {
                let count = |is: fn(&Role) -> bool| plan.graph.nodes.iter().filter(|node| is(&node.role)).count();
                let (sources, sinks) = (count(|r| matches!(r, Role::Source(_))), count(|r| matches!(r, Role::Sink(_))));
                self.info(&format!(
                    "{}: no errors; {sources} sources, {sinks} sinks, {} nodes",
                    file.source.name,
                    plan.graph.nodes.len()
                ));
                Exit::Success
            }
            Err(exit) => exit,
        }
    }

    /// One line of JSON, whatever is wrong: the caller is a program that can't look at stderr.
    fn check_for_machines(&self, arguments: &CheckArgs) -> Exit {
        let reply = plan_check::check(arguments);
        if let Some(path) = &arguments.termination_log {
            termination::write_plan_check(path, &reply);
        }
        let valid = reply.valid;
        match self.rows(&format!("{}\n", plan_check::to_json(&reply))) {
            Exit::Success if !valid => Exit::UserError,
            exit => exit,
        }
    }

    fn explain(&self, arguments: &ExplainArgs) -> Exit {
        let format = match arguments.format {
            PlanFormat::Text => ExplainFormat::Text,
            PlanFormat::Json => ExplainFormat::Json,
            PlanFormat::Dot => ExplainFormat::Dot,
        };
        match self.plan(&arguments.job) {
            Ok((_, plan)) => self.rows(&format!("{}\n", plan.explain(format).trim_end())),
            Err(exit) => exit,
        }
    }

    fn plan(&self, arguments: &JobArgs) -> Result<(JobFile, JobPlan), Exit> {
        let file = self.read(arguments)?;
        let demand =
            Demand::decide(&file, arguments.cores, machine::cores_available()).map_err(|error| self.refuse_alone(error))?;
        let given = Given::to_plan(arguments, &file).map_err(|error| self.refuse_alone(error))?;
        match planning::plan(&file, &given, demand.cores, false) {
            Ok(plan) => Ok((file, plan)),
            Err(errors) => Err(self.refuse(&Located::in_sql(&errors, &file), &errors)),
        }
    }

    /// Reads the job's file, or tells why it can't be used.
    pub fn read(&self, arguments: &JobArgs) -> Result<JobFile, Exit> {
        JobFile::read(&arguments.job)
            .map_err(|unusable| self.refuse(&Located::in_file(&unusable.diagnostics, &unusable.source), &unusable.diagnostics))
    }

    /// Tells something that is no error.
    pub fn info(&self, text: &str) {
        self.note(&match self.style.format {
            LogFormat::Text => format!("{text}\n"),
            LogFormat::Json => format!("{}\n", serde_json::json!({"level": "info", "event": "note", "message": text})),
        });
    }

    /// Writes to stdout. That its reader went away (`| head`) is no failure.
    pub fn rows(&self, text: &str) -> Exit {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Exit::Success,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Success,
            Err(error) => self.refuse_alone(Diagnostic::new(Code::SinkUnavailable, format!("stdout can't be written: {error}"))),
        }
    }

    /// Writes to stderr; if that fails there is nobody left to tell.
    pub fn note(&self, text: &str) {
        let _nobody_left: io::Result<()> = io::stderr().lock().write_all(text.as_bytes());
    }

    /// Tells errors that have been given their places.
    pub fn refuse(&self, located: &[Located], diagnostics: &Diagnostics) -> Exit {
        self.note(&report::render(located, self.style));
        exit_of(diagnostics)
    }

    /// Tells an error that has no place in a file.
    pub fn refuse_alone(&self, diagnostic: Diagnostic) -> Exit {
        let diagnostics = Diagnostics::from(diagnostic);
        let nowhere = SourceText { name: String::new(), text: String::new() };
        self.refuse(&Located::in_file(&diagnostics, &nowhere), &diagnostics)
    }
}

/// How a command ends whose job could not be started.
fn exit_of(diagnostics: &Diagnostics) -> Exit {
    let is_users = diagnostics.0.iter().any(|one| one.class() == Class::User);
    if is_users { Exit::UserError } else { Exit::Failed }
}
