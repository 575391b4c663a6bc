//! What a failed scenario leaves behind for whoever looks into it: objects, events, logs.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams, LogParams};

use crate::cluster::{Cluster, cache};
use crate::install::OPERATOR_NAMESPACE;
use crate::space::Space;

/// How many lines of a log go into a dump.
const LOG_LINES_MAX: i64 = 2000;

/// Writes all that is in the scenario's namespace, and the operator's log, to a folder outside the checkout; gives the folder.
pub async fn write(space: &Space) -> Result<PathBuf> {
    let folder = cache()?.join("failures").join(space.name());
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    for kinds in [
        "streamingjobs.tiderace.dev",
        "pods",
        "statefulsets,services,configmaps,serviceaccounts,persistentvolumeclaims,poddisruptionbudgets,networkpolicies,controllerrevisions,jobs",
    ] {
        let name = kinds.split([',', '.']).next().unwrap_or(kinds);
        let text =
            said(space.cluster().kubectl(&["-n", space.name(), "get", kinds, "-o", "yaml", "--show-managed-fields=false"]).await);
        std::fs::write(folder.join(format!("{name}.yaml")), text)?;
    }
    let events = said(space.cluster().kubectl(&["-n", space.name(), "events"]).await);
    std::fs::write(folder.join("events.txt"), events)?;
    let nodes = said(space.cluster().kubectl(&["get", "nodes,pv", "-o", "wide"]).await);
    std::fs::write(folder.join("nodes.txt"), nodes)?;
    for namespace in [space.name(), OPERATOR_NAMESPACE] {
        for (name, log) in logs(space.cluster(), namespace).await {
            std::fs::write(folder.join(format!("{namespace}.{name}.log")), log)?;
        }
    }
    Ok(folder)
}

/// The jobs of the namespace in short, for the terminal.
pub async fn summary(space: &Space) -> String {
    let mut text = String::new();
    for what in [&["get", "streamingjobs,pods", "-o", "wide"][..], &["events"]] {
        let out = said(space.cluster().kubectl(&[&["-n", space.name()], what].concat()).await);
        let lines: Vec<_> = out.lines().collect();
        for line in &lines[lines.len().saturating_sub(25)..] {
            let _ = writeln!(text, "    {line}"); // a String takes all
        }
    }
    text
}

/// The last logs of all containers of a namespace, those before a restart too.
async fn logs(cluster: &Cluster, namespace: &str) -> Vec<(String, String)> {
    let api = Api::<Pod>::namespaced(cluster.client(), namespace);
    let Ok(pods) = api.list(&ListParams::default()).await else { return Vec::new() };
    let mut found = Vec::new();
    for pod in &pods {
        for previous in [false, true] {
            let parameters = LogParams { previous, tail_lines: Some(LOG_LINES_MAX), timestamps: true, ..LogParams::default() };
            if let Ok(log) = api.logs(&pod.name_any(), &parameters).await {
                found.push((format!("{}{}", pod.name_any(), if previous { ".previous" } else { "" }), log));
            }
        }
    }
    found
}

/// What a command said, well or ill.
fn said(outcome: Result<String>) -> String {
    outcome.unwrap_or_else(|error| format!("{error:#}\n"))
}
