//! `kubectl tiderace status`: what was asked of a job, what is, and why they differ.

use std::io::Write;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use tiderace_crds::{DesiredState, StreamingJob, StreamingJobStatus};

use super::cli::StatusArgs;
use super::format::{age, bytes, count, seconds, short, table};
use super::scrape::{self, Page};
use super::{Outcome, Session, explain_error};
use crate::names;

/// How often `--watch` shows.
const WATCH: Duration = Duration::from_secs(2);
/// Over what time rates are measured.
const RATE: Duration = Duration::from_secs(1);
/// Events that are shown, the newest.
const EVENTS_SHOWN_MAX: usize = 8;
/// Jobs and events that are asked for.
const LIST_MAX: u32 = 500;

/// Runs the command.
pub(crate) async fn run(session: &Session, arguments: &StatusArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    loop {
        let (text, is_well) = match &arguments.job {
            Some(job) => {
                let facts = gather(session, job).await?;
                (tree(&facts), facts.is_ready())
            }
            None => (list(&jobs(session, arguments.all_namespaces).await?, (session.now)(), arguments.all_namespaces), true),
        };
        if arguments.watch {
            // Clears the screen and goes to its beginning.
            out.write_all(b"\x1b[2J\x1b[H")?;
        }
        out.write_all(text.as_bytes())?;
        out.flush()?;
        if !arguments.watch {
            return Ok(if is_well { Outcome::Done } else { Outcome::NotWell });
        }
        tokio::time::sleep(WATCH).await;
    }
}

/// The jobs of the namespace, or of all.
pub(crate) async fn jobs(session: &Session, all: bool) -> anyhow::Result<Vec<StreamingJob>> {
    let api: Api<StreamingJob> =
        if all { Api::all(session.client.clone()) } else { Api::namespaced(session.client.clone(), &session.namespace) };
    let mut jobs = api
        .list(&ListParams::default().limit(LIST_MAX))
        .await
        .map_err(|error| explain_error(error, "StreamingJobs (is Tiderace installed in this cluster?)"))?
        .items;
    jobs.sort_by_key(|job| (job.namespace(), job.name_any()));
    Ok(jobs)
}

/// All that is known about a job.
pub(crate) struct Facts {
    pub job: StreamingJob,
    pub sets: Vec<StatefulSet>,
    pub pods: Vec<PodFacts>,
    pub claims: Vec<PersistentVolumeClaim>,
    pub events: Vec<Event>,
    pub now: Timestamp,
}

/// A pod, and its metrics at two moments.
pub(crate) struct PodFacts {
    pub pod: Pod,
    pub pages: Option<(Page, Page, Duration)>,
}

impl Facts {
    /// Whether the job is as it was asked to be.
    fn is_ready(&self) -> bool {
        condition(&self.job, "Ready").is_some_and(|ready| ready.status == "True")
    }
}

fn condition<'a>(job: &'a StreamingJob, kind: &str) -> Option<&'a k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    job.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == kind)
}

/// The pods of a job.
pub(crate) async fn pods(session: &Session, job: &str) -> anyhow::Result<Vec<Pod>> {
    let api: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
    let selector = ListParams::default().labels(&names::selector_text(job));
    let mut pods = api.list(&selector).await.map_err(|error| explain_error(error, "the job's pods"))?.items;
    pods.sort_by_key(ResourceExt::name_any);
    Ok(pods)
}

/// Two pages of a pod's metrics, `apart` from each other.
pub(crate) async fn pages(session: &Session, namespace: &str, pod: &str, apart: Duration) -> Option<(Page, Page, Duration)> {
    let first = scrape::page(&session.client, namespace, pod).await?;
    let began = tokio::time::Instant::now();
    tokio::time::sleep(apart).await;
    let second = scrape::page(&session.client, namespace, pod).await?;
    Some((first, second, began.elapsed()))
}

async fn gather(session: &Session, name: &str) -> anyhow::Result<Facts> {
    let (client, namespace) = (&session.client, session.namespace.as_str());
    let job = Api::<StreamingJob>::namespaced(client.clone(), namespace)
        .get(name)
        .await
        .map_err(|error| explain_error(error, &format!("the StreamingJob {namespace}/{name}")))?;
    let selector = ListParams::default().labels(&format!("{}={name}", names::JOB_LABEL));
    // What may not be seen is left out: a person with few rights still sees the job.
    let sets =
        Api::<StatefulSet>::namespaced(client.clone(), namespace).list(&selector).await.map(|l| l.items).unwrap_or_default();
    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace)
        .list(&selector)
        .await
        .map(|l| l.items)
        .unwrap_or_default();
    let fields = format!("involvedObject.name={name},involvedObject.kind=StreamingJob");
    let events = Api::<Event>::namespaced(client.clone(), namespace)
        .list(&ListParams::default().fields(&fields).limit(LIST_MAX))
        .await
        .map(|list| list.items)
        .unwrap_or_default();
    let mut facts = Vec::new();
    for pod in pods(session, name).await? {
        let pages = pages(session, namespace, &pod.name_any(), RATE).await;
        facts.push(PodFacts { pod, pages });
    }
    Ok(Facts { job, sets, pods: facts, claims, events, now: (session.now)() })
}

/// A line for each job.
fn list(jobs: &[StreamingJob], now: Timestamp, all: bool) -> String {
    if jobs.is_empty() {
        return "no StreamingJobs here: kubectl tiderace status --all-namespaces shows those of other namespaces\n".to_owned();
    }
    let mut rows = vec![["JOB", "PHASE", "READY", "WHY", "RESTARTS", "ROWS IN", "LAG", "AGE"].map(str::to_owned).to_vec()];
    for job in jobs {
        let nothing = StreamingJobStatus::default();
        let status = job.status.as_ref().unwrap_or(&nothing);
        let name = if all { format!("{}/{}", job.namespace().unwrap_or_default(), job.name_any()) } else { job.name_any() };
        let ready = condition(job, "Ready");
        rows.push(vec![
            name,
            status.phase.map_or_else(|| "-".to_owned(), |phase| format!("{phase:?}")),
            ready.map_or_else(|| "Unknown".to_owned(), |ready| ready.status.clone()),
            condition(job, "Stalled").or(ready).map_or_else(|| "-".to_owned(), |condition| condition.reason.clone()),
            status.restarts.as_ref().map_or(0, |restarts| restarts.count).to_string(),
            status.rows.map_or_else(|| "-".to_owned(), |rows| count(rows.read)),
            status.lag.map_or_else(|| "-".to_owned(), |lag| seconds(lag.seconds)),
            age(job.creation_timestamp().as_ref(), now),
        ]);
    }
    table(&rows)
}

/// Lines that hang under each other: how deep, and what.
struct Tree(Vec<(usize, String)>);

impl Tree {
    fn line(&mut self, depth: usize, text: &str) {
        self.0.push((depth, text.trim_end().to_owned()));
    }

    fn text(&self) -> String {
        // Whether another line hangs at this depth under the same parent, from the line `at` on.
        let goes_on = |at: usize, depth: usize| {
            let below = self.0[at + 1..].iter().map(|(other, _)| *other);
            below.take_while(|other| *other >= depth).any(|other| other == depth)
        };
        let mut out = String::new();
        for (at, (depth, text)) in self.0.iter().enumerate() {
            for above in 1..*depth {
                out.push_str(if goes_on(at, above) { "│  " } else { "   " });
            }
            if *depth > 0 {
                out.push_str(if goes_on(at, *depth) { "├─ " } else { "└─ " });
            }
            out.push_str(text);
            out.push('\n');
        }
        out
    }
}

fn tree(facts: &Facts) -> String {
    let job = &facts.job;
    let nothing = StreamingJobStatus::default();
    let status = job.status.as_ref().unwrap_or(&nothing);
    let mut tree = Tree(Vec::new());
    let phase = status.phase.map_or_else(|| "not seen by an operator yet".to_owned(), |phase| format!("{phase:?}"));
    let asked = match job.spec.state {
        DesiredState::Running => "",
        DesiredState::Suspended => ", suspended as asked",
    };
    let age = age(job.creation_timestamp().as_ref(), facts.now);
    tree.line(
        0,
        &format!("StreamingJob {}/{}  {phase}{asked}  (age {age})", job.namespace().unwrap_or_default(), job.name_any()),
    );
    if job.metadata.deletion_timestamp.is_some() {
        tree.line(1, "is being deleted");
    }
    if status.observed_generation != job.metadata.generation {
        tree.line(1, "the last change has not been acted on yet (is the operator running?)");
    }
    conditions(&mut tree, facts, status);
    deployment(&mut tree, facts, status);
    for set in &facts.sets {
        let of = set.spec.replicas.unwrap_or(1);
        let ready = set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
        tree.line(1, &format!("StatefulSet {}  {ready} of {of} ready", set.name_any()));
    }
    for pod in &facts.pods {
        pod_lines(&mut tree, pod, facts.now);
    }
    for claim in &facts.claims {
        let phase = claim.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        let capacity =
            claim.status.as_ref().and_then(|status| status.capacity.as_ref()).and_then(|capacity| capacity.get("storage"));
        tree.line(1, &format!("Volume {}  {phase}  {}", claim.name_any(), capacity.map_or("", |size| size.0.as_str())));
    }
    events(&mut tree, facts);
    tree.text()
}

fn conditions(tree: &mut Tree, facts: &Facts, status: &StreamingJobStatus) {
    tree.line(1, "Conditions");
    let rows: Vec<Vec<String>> = status
        .conditions
        .iter()
        .map(|c| {
            let since = age(Some(&c.last_transition_time), facts.now);
            vec![c.type_.clone(), c.status.clone(), c.reason.clone(), since, one_line(&c.message)]
        })
        .collect();
    for line in table(&rows).lines() {
        tree.line(2, line);
    }
    if rows.is_empty() {
        tree.line(2, "none");
    }
}

fn deployment(tree: &mut Tree, facts: &Facts, status: &StreamingJobStatus) {
    if let Some(deployed) = &status.deployed {
        tree.line(
            1,
            &format!(
                "Deployed  epoch {}, generation {}, image {}, engine {}, {} ago",
                deployed.epoch,
                deployed.generation,
                deployed.image,
                deployed.engine_version.as_deref().unwrap_or("?"),
                age(Some(&deployed.at), facts.now)
            ),
        );
    }
    if let Some(operation) = &status.operation {
        let why = operation.reason.as_deref().map(|reason| format!(": {}", one_line(reason))).unwrap_or_default();
        tree.line(
            1,
            &format!(
                "Operation  {:?}, {:?} for {}, {} failed attempts{why}",
                operation.kind,
                operation.step,
                age(Some(&operation.step_at), facts.now),
                operation.attempts
            ),
        );
        if let Some(error) = &operation.last_error {
            tree.line(2, &one_line(error));
        }
    }
    if let Some(plan) = status.plan.as_ref().filter(|plan| !plan.valid) {
        tree.line(1, &format!("Plan  refused by {}", plan.image));
        for line in plan.message.as_deref().unwrap_or_default().lines() {
            tree.line(2, line);
        }
    }
    if let Some(outcome) = &status.outcome {
        tree.line(
            1,
            &format!("Ended  {:?} {} ago: {}", outcome.kind, age(Some(&outcome.at), facts.now), one_line(&outcome.message)),
        );
    }
    if let Some(restarts) = status.restarts.as_ref().filter(|restarts| restarts.count > 0) {
        let last = restarts.last_reason.as_deref().map(one_line).unwrap_or_default();
        let when = age(restarts.last_time.as_ref(), facts.now);
        tree.line(
            1,
            &format!(
                "Restarts  {}, {} in the policy's window, the last {when} ago: {last}",
                restarts.count, restarts.window_count
            ),
        );
        if let Some(until) = &restarts.backoff_until
            && until.0 > facts.now
        {
            tree.line(2, &format!("the next start waits for {}", seconds(until.0.as_second() - facts.now.as_second())));
        }
    }
    if let Some(rows) = status.rows {
        let lag = status.lag.map(|lag| format!(", lag {}", seconds(lag.seconds))).unwrap_or_default();
        tree.line(
            1,
            &format!("Rows  {} in, {} out, {} dropped{lag}", count(rows.read), count(rows.written), count(rows.dropped)),
        );
    }
}

fn pod_lines(tree: &mut Tree, facts: &PodFacts, now: Timestamp) {
    let pod = &facts.pod;
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
    let phase = if pod.metadata.deletion_timestamp.is_some() { "Terminating" } else { phase };
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no node");
    let containers = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let worker = containers.iter().find(|container| container.name == names::WORKER_CONTAINER);
    let ready = if worker.is_some_and(|worker| worker.ready) { "ready" } else { "not ready" };
    let restarts = worker.map_or(0, |worker| worker.restart_count);
    let age = age(pod.creation_timestamp().as_ref(), now);
    tree.line(1, &format!("Pod {}  {phase}, {ready}, {restarts} container restarts, on {node}  (age {age})", pod.name_any()));
    if let Some(waiting) = worker.and_then(|w| w.state.as_ref()).and_then(|state| state.waiting.as_ref()) {
        let message = waiting.message.as_deref().map(one_line).unwrap_or_default();
        tree.line(2, &format!("waits: {} {message}", waiting.reason.as_deref().unwrap_or("?")));
    }
    if let Some(unscheduled) = status
        .and_then(|status| status.conditions.as_ref())
        .and_then(|conditions| conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False"))
    {
        tree.line(2, &format!("has no node: {}", unscheduled.message.as_deref().map(one_line).unwrap_or_default()));
    }
    if let Some(last) = worker.and_then(|w| w.last_state.as_ref()).and_then(|state| state.terminated.as_ref()) {
        let message = last.message.as_deref().map(one_line).unwrap_or_default();
        tree.line(2, &format!("ended before with {} ({}): {message}", last.exit_code, last.reason.as_deref().unwrap_or("?")));
    }
    if let Some((first, second, apart)) = &facts.pages {
        metrics_lines(tree, first, second, *apart);
    }
}

fn metrics_lines(tree: &mut Tree, first: &Page, second: &Page, apart: Duration) {
    let rate = |name: &str| rate(first, second, name, apart);
    let cores = second.sum("tiderace_cores").unwrap_or(0.0);
    tree.line(
        2,
        &format!(
            "{} rows/s in, {} rows/s out; {:.2} of {cores:.0} cores busy; state {} of {}; memory at most {}",
            short(rate("tiderace_rows_in_total")),
            short(rate("tiderace_rows_out_total")),
            rate("tiderace_core_busy_seconds_total"),
            bytes(second.sum("tiderace_state_bytes").unwrap_or(0.0)),
            bytes(second.sum("tiderace_state_budget_bytes").unwrap_or(0.0)),
            bytes(second.sum("tiderace_memory_peak_bytes").unwrap_or(0.0)),
        ),
    );
    let (before, after) = (first.by("tiderace_rows_in_total", "source"), second.by("tiderace_rows_in_total", "source"));
    for (source, rows) in &after {
        let since = rows - before.get(source).copied().unwrap_or(0.0);
        let lag =
            second.max_with("tiderace_lag_seconds", "node", source).map(|lag| format!(", lag {lag:.1}s")).unwrap_or_default();
        tree.line(2, &format!("source {source}  {} rows, {}/s{lag}", count(*rows as u64), short(since / apart.as_secs_f64())));
    }
    let (before, after) = (first.by("tiderace_rows_out_total", "sink"), second.by("tiderace_rows_out_total", "sink"));
    for (sink, rows) in &after {
        let since = rows - before.get(sink).copied().unwrap_or(0.0);
        tree.line(2, &format!("sink {sink}  {} rows, {}/s", count(*rows as u64), short(since / apart.as_secs_f64())));
    }
    for (cause, rows) in second.by("tiderace_rows_dropped_total", "cause") {
        tree.line(2, &format!("dropped  {} rows: {cause}", count(rows as u64)));
    }
}

/// What a counter grew by in a second.
pub(crate) fn rate(first: &Page, second: &Page, name: &str, apart: Duration) -> f64 {
    let grown = second.sum(name).unwrap_or(0.0) - first.sum(name).unwrap_or(0.0);
    grown.max(0.0) / apart.as_secs_f64().max(1e-3)
}

fn events(tree: &mut Tree, facts: &Facts) {
    let when = |event: &Event| {
        let times = [
            event.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|time| time.0),
            event.last_timestamp.as_ref().map(|time| time.0),
            event.event_time.as_ref().map(|time| time.0),
            event.first_timestamp.as_ref().map(|time| time.0),
        ];
        times.into_iter().flatten().max()
    };
    let mut events: Vec<&Event> = facts.events.iter().collect();
    events.sort_by_key(|event| when(event));
    if events.is_empty() {
        return;
    }
    tree.line(1, "Events");
    let skipped = events.len().saturating_sub(EVENTS_SHOWN_MAX);
    let rows: Vec<Vec<String>> = events[skipped..]
        .iter()
        .map(|event| {
            let since = when(event).map_or_else(|| "?".to_owned(), |time| seconds(facts.now.as_second() - time.as_second()));
            let (kind, reason) = (event.type_.clone().unwrap_or_default(), event.reason.clone().unwrap_or_default());
            vec![since, kind, reason, one_line(event.message.as_deref().unwrap_or_default())]
        })
        .collect();
    for line in table(&rows).lines() {
        tree.line(2, line);
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
