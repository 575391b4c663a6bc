//! `suspend`, `resume`, `restart`: what could be done with `kubectl patch`, with a look at what became of it.

use std::io::Write;
use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tiderace_crds::{DesiredState, RESTART_ANNOTATION, StreamingJob};

use super::cli::ChangeArgs;
use super::{Outcome, Session, explain_error};

/// How often the job is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Field managers of programs that put a job back to what Git says.
const GIT_MANAGERS: [&str; 4] = ["argocd", "kustomize-controller", "helm-controller", "flux"];

/// Stops a job.
pub(crate) async fn suspend(session: &Session, arguments: &ChangeArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let patch = json!({"spec": {"state": "Suspended"}});
    change(session, arguments, patch, "suspended", |job| job.spec.state == DesiredState::Suspended, out).await
}

/// Starts a suspended job.
pub(crate) async fn resume(session: &Session, arguments: &ChangeArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let patch = json!({"spec": {"state": "Running"}});
    change(session, arguments, patch, "running", |job| job.spec.state == DesiredState::Running, out).await
}

/// Starts a job anew.
pub(crate) async fn restart(session: &Session, arguments: &ChangeArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let api: Api<StreamingJob> = Api::namespaced(session.client.clone(), &session.namespace);
    let job =
        api.get(&arguments.job).await.map_err(|error| explain_error(error, &format!("the StreamingJob {}", arguments.job)))?;
    anyhow::ensure!(
        job.spec.state == DesiredState::Running,
        "{} is suspended: there is nothing to restart (kubectl tiderace resume {})",
        arguments.job,
        arguments.job
    );
    let nonce = (session.now)().to_string();
    let patch = json!({"metadata": {"annotations": {RESTART_ANNOTATION: nonce}}});
    let acted = move |job: &StreamingJob| job.status.as_ref().and_then(|s| s.restart_nonce.as_deref()) == Some(nonce.as_str());
    change(session, arguments, patch, "restarted", acted, out).await
}

async fn change(
    session: &Session,
    arguments: &ChangeArgs,
    patch: Value,
    word: &str,
    is_acted_on: impl Fn(&StreamingJob) -> bool,
    out: &mut dyn Write,
) -> anyhow::Result<Outcome> {
    let (name, namespace) = (arguments.job.as_str(), session.namespace.as_str());
    let api: Api<StreamingJob> = Api::namespaced(session.client.clone(), namespace);
    let what = format!("the StreamingJob {namespace}/{name}");
    let parameters = PatchParams { field_manager: Some("kubectl-tiderace".to_owned()), ..PatchParams::default() };
    let job = api.patch(name, &parameters, &Patch::Merge(patch)).await.map_err(|error| explain_error(error, &what))?;
    if let Some(manager) = git_manager(&job) {
        writeln!(out, "note: {manager} applies this job, and may set it back: change it in Git too")?;
    }
    if arguments.no_wait {
        writeln!(out, "{namespace}/{name}: asked; kubectl tiderace status {name} shows what becomes of it")?;
        return Ok(Outcome::Done);
    }
    let generation = job.metadata.generation;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(arguments.timeout);
    let mut told = String::new();
    loop {
        let job = api.get(name).await.map_err(|error| explain_error(error, &what))?;
        let status = job.status.clone().unwrap_or_default();
        let find = |kind: &str| status.conditions.iter().find(|condition| condition.type_ == kind && condition.status == "True");
        let is_seen = status.observed_generation >= generation && is_acted_on(&job) && status.operation.is_none();
        if is_seen
            && find("Reconciling").is_none()
            && let Some(ready) = find("Ready")
        {
            // A job that has finished is as it should be, and neither runs nor is suspended.
            match ready.reason.as_str() {
                "Finished" => writeln!(out, "{namespace}/{name}: has finished: {}", ready.message)?,
                _ => writeln!(out, "{namespace}/{name}: {word}")?,
            }
            return Ok(Outcome::Done);
        }
        if let Some(stalled) = find("Stalled").filter(|_| is_seen) {
            writeln!(out, "{namespace}/{name}: {}: {}", stalled.reason, stalled.message)?;
            return Ok(Outcome::NotWell);
        }
        let now =
            find("Reconciling").map_or_else(|| "waiting for the operator".to_owned(), |c| format!("{}: {}", c.reason, c.message));
        if now != told {
            writeln!(out, "{namespace}/{name}: {now}")?;
            told = now;
        }
        if tokio::time::Instant::now() >= deadline {
            writeln!(
                out,
                "{namespace}/{name}: not {word} after {} s; kubectl tiderace status {name} says more",
                arguments.timeout
            )?;
            return Ok(Outcome::NotWell);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Who applies the job from Git, if somebody does.
fn git_manager(job: &StreamingJob) -> Option<String> {
    let managers = job.metadata.managed_fields.iter().flatten().filter_map(|entry| entry.manager.clone());
    managers.into_iter().find(|manager| GIT_MANAGERS.iter().any(|git| manager.starts_with(git)))
}
