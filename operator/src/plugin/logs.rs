//! `kubectl tiderace logs`: what a job's workers say, as text.

use std::io::Write;

use futures::{AsyncBufReadExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use kube::{Api, ResourceExt};
use serde_json::{Map, Value};

use super::cli::LogsArgs;
use super::status::pods;
use super::{Outcome, Session, explain_error};
use crate::names::WORKER_CONTAINER;

/// Runs the command.
pub(crate) async fn run(session: &Session, arguments: &LogsArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let pods = pods(session, &arguments.job).await?;
    anyhow::ensure!(
        !pods.is_empty(),
        "{} has no worker just now: kubectl tiderace status {} says why",
        arguments.job,
        arguments.job
    );
    let api: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
    let parameters = LogParams {
        container: Some(WORKER_CONTAINER.to_owned()),
        follow: arguments.follow,
        previous: arguments.previous,
        tail_lines: Some(arguments.tail),
        ..LogParams::default()
    };
    let mut streams = Vec::new();
    for pod in &pods {
        let name = pod.name_any();
        let stream = api
            .log_stream(&name, &parameters)
            .await
            .map_err(|error| explain_error(error, &format!("the log of the pod {name}")))?;
        let prefix = if pods.len() > 1 { format!("{name}  ") } else { String::new() };
        streams.push(Box::pin(stream.lines()).map(move |line| (prefix.clone(), line)));
    }
    let mut lines = futures::stream::select_all(streams);
    while let Some((prefix, line)) = lines.next().await {
        let line = line?;
        let text = if arguments.raw { line } else { readable(&line) };
        writeln!(out, "{prefix}{text}")?;
        if arguments.follow {
            out.flush()?;
        }
    }
    Ok(Outcome::Done)
}

/// A line of the worker's JSON as text; any other line as it is.
pub(crate) fn readable(line: &str) -> String {
    let Ok(mut event) = serde_json::from_str::<Map<String, Value>>(line) else { return line.to_owned() };
    let mut take = |key: &str| event.remove(key).and_then(|value| value.as_str().map(str::to_owned));
    let (Some(time), Some(level)) = (take("timestamp"), take("level")) else { return line.to_owned() };
    let message = take("message").unwrap_or_default();
    let _source: Option<String> = take("target");
    let clock = time.split_once('T').map_or(time.as_str(), |(_, clock)| clock);
    let clock = clock.split_once('.').map_or(clock, |(seconds, _)| seconds);
    let rest: Vec<String> = event
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| match value {
            Value::String(text) => format!("{key}={text}"),
            other => format!("{key}={other}"),
        })
        .collect();
    format!("{clock} {level:<5} {message}{}{}", if rest.is_empty() { "" } else { "  " }, rest.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_becomes_text_and_anything_else_stays() {
        let line = r#"{"timestamp":"2026-11-21T19:08:32.360834Z","level":"INFO","message":"state","job":"orders","epoch":3,"target":"x"}"#;
        assert_eq!(readable(line), "19:08:32 INFO  state  epoch=3 job=orders");
        assert_eq!(readable("+I[1, a]"), "+I[1, a]");
        assert_eq!(readable(r#"{"a":1}"#), r#"{"a":1}"#);
    }
}
