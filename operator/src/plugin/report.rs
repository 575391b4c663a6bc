//! `kubectl tiderace report`: what a bug report needs, in one file, without credentials.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{ListParams, LogParams};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tiderace_crds::StreamingJob;

use super::archive::Archive;
use super::cli::ReportArgs;
use super::{Outcome, Session, explain_error, redact, scrape};
use crate::names;

/// Lines of each log.
const LOG_LINES_MAX: i64 = 5000;
/// Bytes of each log.
const LOG_BYTES_MAX: i64 = 4 << 20;
/// Objects of each kind.
const LIST_MAX: u32 = 500;

/// Files of the report, and what could not be had.
struct Report {
    files: BTreeMap<String, String>,
    missing: Vec<String>,
}

/// Runs the command.
pub(crate) async fn run(session: &Session, arguments: &ReportArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let (name, namespace) = (arguments.job.as_str(), session.namespace.as_str());
    let job = Api::<StreamingJob>::namespaced(session.client.clone(), namespace)
        .get(name)
        .await
        .map_err(|error| explain_error(error, &format!("the StreamingJob {namespace}/{name}")))?;
    let mut report = Report { files: BTreeMap::new(), missing: Vec::new() };
    report.object("job.json", &job);
    report.gather(session, name, &arguments.operator_namespace).await;
    let now = (session.now)();
    let mut about = format!("kubectl-tiderace {}\ntaken {now}\njob {namespace}/{name}\n", env!("CARGO_PKG_VERSION"));
    if let Ok(version) = session.client.apiserver_version().await {
        about.push_str(&format!("cluster {}\n", version.git_version));
    }
    for missing in &report.missing {
        about.push_str(&format!("missing: {missing}\n"));
    }
    report.files.insert("about.txt".to_owned(), about);

    let folder = format!("tiderace-report-{namespace}-{name}");
    let path = arguments.output.clone().unwrap_or_else(|| PathBuf::from(format!("{folder}.tar.gz")));
    let mut archive = Archive::new(u64::try_from(now.as_second()).unwrap_or(0));
    for (file, text) in &report.files {
        archive.add(&format!("report/{file}"), text.as_bytes())?;
    }
    std::fs::write(&path, archive.finish()?)?;
    writeln!(out, "{}: {} files", path.display(), report.files.len())?;
    for missing in &report.missing {
        writeln!(out, "not in it: {missing}")?;
    }
    writeln!(out, "Look through it before you send it: SQL, and rows that logs quote, are yours.")?;
    Ok(Outcome::Done)
}

impl Report {
    async fn gather(&mut self, session: &Session, name: &str, operator_namespace: &str) {
        let namespace = session.namespace.as_str();
        let of_job = ListParams::default().labels(&format!("{}={name}", names::JOB_LABEL)).limit(LIST_MAX);
        self.list::<StatefulSet>(session, namespace, &of_job, "statefulsets").await;
        self.list::<Service>(session, namespace, &of_job, "services").await;
        self.list::<ConfigMap>(session, namespace, &of_job, "configmaps").await;
        self.list::<PersistentVolumeClaim>(session, namespace, &of_job, "volumeclaims").await;
        self.list::<PodDisruptionBudget>(session, namespace, &of_job, "disruptionbudgets").await;
        self.list::<Event>(session, namespace, &ListParams::default().limit(LIST_MAX), "events").await;
        let pods = self.list::<Pod>(session, namespace, &of_job, "pods").await;
        for pod in &pods {
            self.logs(session, namespace, pod).await;
            let pod_name = pod.name_any();
            match scrape::text(&session.client, namespace, &pod_name).await {
                Ok(text) => self.text(&format!("metrics-{pod_name}.txt"), &text),
                Err(error) => self.missing.push(format!("metrics of {pod_name}: {error:#}")),
            }
            if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) {
                match Api::<Node>::all(session.client.clone()).get(node).await {
                    Ok(found) => self.object(&format!("node-{node}.json"), &found),
                    Err(error) => self.missing.push(format!("node {node}: {}", explain_error(error, node))),
                }
            }
        }
        let operator = ListParams::default().labels("app.kubernetes.io/name=tiderace-operator").limit(LIST_MAX);
        let operators = self.list::<Pod>(session, operator_namespace, &operator, "operator-pods").await;
        for pod in &operators {
            self.logs(session, operator_namespace, pod).await;
        }
        if operators.is_empty() {
            self.missing
                .push(format!("the operator's log: no pod of it in {operator_namespace} (--operator-namespace names another)"));
        }
    }

    async fn list<K>(&mut self, session: &Session, namespace: &str, parameters: &ListParams, what: &str) -> Vec<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope> + DeserializeOwned + Serialize + Clone + std::fmt::Debug,
        <K as Resource>::DynamicType: Default,
    {
        match Api::<K>::namespaced(session.client.clone(), namespace).list(parameters).await {
            Ok(list) => {
                self.object(&format!("{what}.json"), &list.items);
                list.items
            }
            Err(error) => {
                self.missing.push(format!("{what}: {}", explain_error(error, what)));
                Vec::new()
            }
        }
    }

    async fn logs(&mut self, session: &Session, namespace: &str, pod: &Pod) {
        let (name, api) = (pod.name_any(), Api::<Pod>::namespaced(session.client.clone(), namespace));
        for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
            let restarted = pod
                .status
                .iter()
                .flat_map(|status| status.container_statuses.iter().flatten())
                .any(|status| status.name == container.name && status.restart_count > 0);
            for previous in [false, true] {
                if previous && !restarted {
                    continue;
                }
                let parameters = LogParams {
                    container: Some(container.name.clone()),
                    previous,
                    tail_lines: Some(LOG_LINES_MAX),
                    limit_bytes: Some(LOG_BYTES_MAX),
                    ..LogParams::default()
                };
                let file = format!("log-{name}-{}{}.txt", container.name, if previous { "-previous" } else { "" });
                match api.logs(&name, &parameters).await {
                    Ok(text) => self.text(&file, &text),
                    Err(error) => self.missing.push(format!("{file}: {}", explain_error(error, "the log"))),
                }
            }
        }
    }

    fn object(&mut self, file: &str, object: &impl Serialize) {
        let text = serde_json::to_value(object).and_then(|mut value: Value| {
            redact::object(&mut value);
            serde_json::to_string_pretty(&value)
        });
        match text {
            Ok(text) => drop(self.files.insert(file.to_owned(), text + "\n")),
            Err(error) => self.missing.push(format!("{file}: {error}")),
        }
    }

    fn text(&mut self, file: &str, text: &str) {
        self.files.insert(file.to_owned(), redact::text(text));
    }
}
