//! `check` and `explain`: a pod of the job's own image plans it, so that the planner that judges is the one that will run.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, LogParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tiderace_crds::admin::{JOB_DIRECTORY, PlanCheckReply};
use tiderace_crds::{MANIFEST_BYTES_MAX, Manifest, StreamingJob};

use super::cli::{CheckArgs, ExplainArgs, PlanningArgs};
use super::status::jobs;
use super::{Outcome, Session, explain_error};

/// How often the pod is looked at.
const LOOK: Duration = Duration::from_millis(300);
/// Reasons for which a container waits that don't go away by waiting.
const HOPELESS: [&str; 5] =
    ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError"];
const CONTAINER: &str = "plan";

/// Says all that is wrong with a manifest.
pub(crate) async fn check(session: &Session, arguments: &CheckArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let Some(job) = read_manifest(&arguments.filename, out)? else { return Ok(Outcome::NotWell) };
    let log = plan(session, &job, &arguments.planning, &["check", "--format", "json", JOB_DIRECTORY]).await?;
    let reply = log.lines().rev().find_map(|line| serde_json::from_str::<PlanCheckReply>(line).ok());
    let reply = reply.with_context(|| format!("the image didn't answer as it should: {}", last_lines(&log)))?;
    write_reply(&job.name_any(), &reply, out)?;
    Ok(if reply.valid { Outcome::Done } else { Outcome::NotWell })
}

fn write_reply(job: &str, reply: &PlanCheckReply, out: &mut dyn Write) -> anyhow::Result<()> {
    for (word, problems) in [("error", &reply.errors), ("warning", &reply.warnings)] {
        for problem in problems {
            let place = match (problem.line, problem.column) {
                (Some(line), Some(column)) => format!(" at line {line}, column {column} of the SQL"),
                _ => String::new(),
            };
            writeln!(out, "{word} {}{place}: {}", problem.code, problem.message)?;
            if let Some(hint) = &problem.hint {
                writeln!(out, "  hint: {hint}")?;
            }
        }
    }
    match &reply.plan_hash {
        Some(hash) if reply.valid => writeln!(out, "{job}: can be run; engine {}, plan {hash}", reply.engine_version)?,
        _ => writeln!(out, "{job}: can't be run; {} errors, engine {}", reply.errors.len(), reply.engine_version)?,
    }
    Ok(())
}

/// Shows what a job runs.
pub(crate) async fn explain(session: &Session, arguments: &ExplainArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let job = match (&arguments.filename, &arguments.job) {
        (Some(path), _) => match read_manifest(path, out)? {
            Some(job) => job,
            None => return Ok(Outcome::NotWell),
        },
        (None, Some(name)) => Api::<StreamingJob>::namespaced(session.client.clone(), &session.namespace)
            .get(name)
            .await
            .map_err(|error| explain_error(error, &format!("the StreamingJob {name}")))?,
        (None, None) => anyhow::bail!("name a job, or a manifest with -f"),
    };
    let log = plan(session, &job, &arguments.planning, &["explain", "--format", arguments.format.word(), JOB_DIRECTORY]).await?;
    out.write_all(log.as_bytes())?;
    Ok(Outcome::Done)
}

/// The job of a file; `None` when it is wrong, which is then told.
fn read_manifest(path: &Path, out: &mut dyn Write) -> anyhow::Result<Option<StreamingJob>> {
    let mut text = String::new();
    let limit = MANIFEST_BYTES_MAX as u64 + 1;
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    read.with_context(|| format!("{} can't be read", path.display()))?;
    match Manifest::parse(&text) {
        Ok(manifest) => Ok(Some(manifest.job)),
        Err(wrong) => {
            for problem in &wrong.problems {
                let place = problem.place.map(|p| format!(" at line {}, column {}", p.line, p.column)).unwrap_or_default();
                writeln!(out, "error{place}: {}", problem.message)?;
                if let Some(hint) = &problem.hint {
                    writeln!(out, "  hint: {hint}")?;
                }
            }
            writeln!(out, "{}: no manifest that can be applied; {} errors", path.display(), wrong.problems.len())?;
            Ok(None)
        }
    }
}

/// Runs a pod that plans `job`, and gives what it printed.
async fn plan(session: &Session, job: &StreamingJob, planning: &PlanningArgs, command: &[&str]) -> anyhow::Result<String> {
    let image = image(session, job, planning).await?;
    let pods: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
    let pod: Pod = serde_json::from_value(pod(job, &image, command, planning.timeout))?;
    let pod = pods.create(&PostParams::default(), &pod).await.map_err(|error| explain_error(error, "a pod that plans"))?;
    let printed = printed(session, job, &pod, planning).await;
    // The ConfigMap belongs to the pod and goes with it.
    let deleted = pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
    let printed = printed?;
    deleted.map_err(|error| explain_error(error, &format!("the pod {}", pod.name_any())))?;
    Ok(printed)
}

async fn printed(session: &Session, job: &StreamingJob, pod: &Pod, planning: &PlanningArgs) -> anyhow::Result<String> {
    let name = pod.name_any();
    let pods: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
    let maps: Api<ConfigMap> = Api::namespaced(session.client.clone(), &session.namespace);
    let map: ConfigMap = serde_json::from_value(json!({
        "metadata": {
            "name": name,
            "labels": labels(),
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod.uid().unwrap_or_default()}],
        },
        "data": {"job.yaml": manifest(job, &session.namespace).to_string()},
    }))?;
    maps.create(&PostParams::default(), &map).await.map_err(|error| explain_error(error, "a ConfigMap with the manifest"))?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(planning.timeout);
    loop {
        let now = pods.get(&name).await.map_err(|error| explain_error(error, &format!("the pod {name}")))?;
        let status = now.status.unwrap_or_default();
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            break;
        }
        let waiting = status.container_statuses.iter().flatten().find_map(|c| c.state.as_ref()?.waiting.clone());
        let reason = waiting.as_ref().and_then(|w| w.reason.clone()).unwrap_or_default();
        let message = waiting.as_ref().and_then(|w| w.message.clone()).unwrap_or_default();
        anyhow::ensure!(!HOPELESS.contains(&reason.as_str()), "the pod that plans can't start: {reason}: {message}");
        if tokio::time::Instant::now() >= deadline {
            let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
            let why = unscheduled.and_then(|c| c.message.clone()).unwrap_or_else(|| format!("{reason} {message}"));
            anyhow::bail!("no plan after {} s: {why}", planning.timeout);
        }
        tokio::time::sleep(LOOK).await;
    }
    let parameters = LogParams { container: Some(CONTAINER.to_owned()), ..LogParams::default() };
    pods.logs(&name, &parameters).await.map_err(|error| explain_error(error, &format!("the log of the pod {name}")))
}

/// The manifest as the pod reads it: the job, without what the cluster wrote into it.
fn manifest(job: &StreamingJob, namespace: &str) -> Value {
    json!({
        "apiVersion": "tiderace.dev/v1alpha1",
        "kind": "StreamingJob",
        "metadata": {"name": job.name_any(), "namespace": namespace},
        "spec": job.spec,
    })
}

fn labels() -> Value {
    // Not the job's labels: the operator would take the pod for one of its workers.
    json!({"app.kubernetes.io/name": "streamingjob-plan", "app.kubernetes.io/managed-by": "kubectl-tiderace"})
}

/// It meets the "restricted" Pod Security Standard.
fn pod(job: &StreamingJob, image: &str, command: &[&str], timeout_seconds: u64) -> Value {
    let mut sources = vec![json!({"configMap": {"name": "", "items": [{"key": "job.yaml", "path": "job.yaml"}]}})];
    if let Some(statements) = &job.spec.sql.config_map_key_ref {
        sources.push(json!({"configMap": {"name": statements.name, "items": [{"key": statements.key, "path": "job.sql"}]}}));
    }
    let name = format!("{}-plan-{}", job.name_any(), suffix());
    sources[0]["configMap"]["name"] = json!(name);
    let mut pod = json!({
        "metadata": {"name": name, "labels": labels()},
        "spec": {
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "restartPolicy": "Never",
            // Should nobody be left to delete it.
            "activeDeadlineSeconds": timeout_seconds + 60,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": CONTAINER,
                "image": image,
                "args": command,
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "job", "mountPath": JOB_DIRECTORY, "readOnly": true}],
            }],
            "volumes": [{"name": "job", "projected": {"sources": sources}}],
        },
    });
    if !job.spec.image_pull_secrets.is_empty() {
        pod["spec"]["imagePullSecrets"] = json!(job.spec.image_pull_secrets);
    }
    pod
}

/// A few characters that no other call at this time has.
fn suffix() -> String {
    let nanoseconds = jiff::Timestamp::now().subsec_nanosecond().unsigned_abs();
    format!("{:x}{:x}", std::process::id(), nanoseconds)
}

/// `--image`, the manifest's, the one that the job runs with, or one that another job of the namespace runs with.
async fn image(session: &Session, job: &StreamingJob, planning: &PlanningArgs) -> anyhow::Result<String> {
    if let Some(image) = planning.image.as_ref().or(job.spec.image.as_ref()) {
        return Ok(image.clone());
    }
    let deployed = |job: &StreamingJob| job.status.as_ref()?.deployed.as_ref().map(|deployed| deployed.image.clone());
    let jobs = jobs(session, false).await?;
    let same = jobs.iter().find(|other| other.name_any() == job.name_any()).and_then(deployed);
    same.or_else(|| jobs.iter().find_map(deployed)).context(
        "no job of this namespace says which image to plan with: give --image, the one that the operator is installed with",
    )
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
