//! `kubectl tiderace top`: what jobs use and do right now.

use std::io::Write;
use std::time::Duration;

use futures::StreamExt;
use kube::{Api, ResourceExt};
use tiderace_crds::StreamingJob;

use super::cli::TopArgs;
use super::format::{bytes, short, table};
use super::status::{jobs, pages, pods, rate};
use super::{Outcome, Session, explain_error};

/// Workers that are asked at the same time.
const ASKED_MAX: usize = 16;

/// Runs the command.
pub(crate) async fn run(session: &Session, arguments: &TopArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    loop {
        let text = measure(session, arguments).await?;
        if arguments.watch {
            out.write_all(b"\x1b[2J\x1b[H")?;
        }
        out.write_all(text.as_bytes())?;
        out.flush()?;
        if !arguments.watch {
            return Ok(Outcome::Done);
        }
    }
}

async fn measure(session: &Session, arguments: &TopArgs) -> anyhow::Result<String> {
    let found = match &arguments.job {
        Some(name) => {
            let api: Api<StreamingJob> = Api::namespaced(session.client.clone(), &session.namespace);
            vec![api.get(name).await.map_err(|error| explain_error(error, &format!("the StreamingJob {name}")))?]
        }
        None => jobs(session, arguments.all_namespaces).await?,
    };
    let apart = Duration::from_secs(arguments.interval);
    let rows: Vec<Vec<Vec<String>>> = futures::stream::iter(found)
        .map(|job| async move { rows_of(session, &job, apart).await })
        .buffered(ASKED_MAX)
        .collect()
        .await;
    let mut all = vec![["WORKER", "ROWS IN/S", "ROWS OUT/S", "CORES", "STATE", "BUDGET", "LAG"].map(str::to_owned).to_vec()];
    all.extend(rows.into_iter().flatten());
    if all.len() == 1 {
        return Ok("no job has a worker\n".to_owned());
    }
    Ok(table(&all))
}

async fn rows_of(session: &Session, job: &StreamingJob, apart: Duration) -> Vec<Vec<String>> {
    let namespace = job.namespace().unwrap_or_default();
    let there = Session { client: session.client.clone(), namespace: namespace.clone(), now: session.now };
    let mut rows = Vec::new();
    for pod in pods(&there, &job.name_any()).await.unwrap_or_default() {
        let name = pod.name_any();
        let Some((first, second, apart)) = pages(&there, &namespace, &name, apart).await else {
            rows.push(vec![name, "no answer".to_owned()]);
            continue;
        };
        let rate = |metric| rate(&first, &second, metric, apart);
        let amount = |metric| second.sum(metric).unwrap_or(0.0);
        let lag = second.max_with("tiderace_lag_seconds", "kind", "source");
        rows.push(vec![
            name,
            short(rate("tiderace_rows_in_total")),
            short(rate("tiderace_rows_out_total")),
            format!("{:.2} of {:.0}", rate("tiderace_core_busy_seconds_total"), amount("tiderace_cores")),
            bytes(amount("tiderace_state_bytes")),
            bytes(amount("tiderace_state_budget_bytes")),
            lag.map_or_else(|| "-".to_owned(), |lag| format!("{lag:.1}s")),
        ]);
    }
    rows
}
