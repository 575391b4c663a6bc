//! The log of a pod: JSON lines on stderr, without a secret's value whatever a library writes.

use std::io::{self, Write};
use std::sync::{Arc, OnceLock};

use tiderace_engine::connect::Secrets;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Where the log learns what it must not show.
pub(crate) type Hidden = Arc<OnceLock<Secrets>>;

/// Sends what is logged to stderr from now on. `Err` is the reason why `filter` is none. Without effect in a process that logs already.
pub(crate) fn start(filter: &str, hidden: Hidden) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("'{filter}' is no log filter: {error}"))?;
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_env_filter(filter)
        .with_writer(Redacting { hidden })
        .finish();
    let _already_logging = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

struct Redacting {
    hidden: Hidden,
}

/// One event, written as a whole.
struct Line<'a> {
    hidden: &'a Hidden,
}

impl<'a> MakeWriter<'a> for Redacting {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { hidden: &self.hidden }
    }
}

impl Write for Line<'_> {
    /// The subscriber calls this once an event, with all of its text.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut out = io::stderr().lock();
        match (self.hidden.get(), std::str::from_utf8(bytes)) {
            (Some(secrets), Ok(text)) => out.write_all(secrets.redact(text).as_bytes())?,
            _ => out.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}
