//! What is made from the charts and checked in: `deploy/tiderace.yaml`, which installs everything without Helm; and what the charts are made from.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::cluster::output;
use crate::install::OPERATOR_NAMESPACE;

/// `deploy/tiderace.yaml` in the checkout.
pub const RENDERED: &str = "deploy/tiderace.yaml";

const HEAD: &str = "# Tiderace without Helm: kubectl apply --server-side -f deploy/tiderace.yaml\n\
    # Generated from charts/ with their default values; `make update` writes it anew.\n";

/// The text of [`RENDERED`] as it has to be.
pub fn rendered(root: &Path) -> Result<String> {
    let template = |chart: &str, values: &[&str]| {
        let mut command = Command::new(root.join("e2e/cluster/tidecluster"));
        command.args(["helm", "template", "tiderace"]).arg(root.join("charts").join(chart));
        command.args(["-n", OPERATOR_NAMESPACE, "--skip-tests"]).args(values);
        output(&mut command)
    };
    let mut text = format!(
        "{HEAD}apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {OPERATOR_NAMESPACE}\n  labels:\n    pod-security.kubernetes.io/enforce: restricted\n"
    );
    // Nothing here is Helm's: a label that says so would have it refuse, or take over, what it didn't make.
    let body = template("tiderace-crds", &["--set", "keep=false"])? + &template("tiderace", &[])?;
    for line in body.lines() {
        if !line.starts_with("# Source: ") && line.trim() != "app.kubernetes.io/managed-by: Helm" {
            text += line.trim_end();
            text.push('\n');
        }
    }
    Ok(text)
}

/// Compares [`RENDERED`] with the charts, or writes it anew.
pub fn check_rendered(root: &Path, update: bool) -> Result<()> {
    let wanted = rendered(root)?;
    let path = root.join(RENDERED);
    if update {
        std::fs::write(&path, &wanted)?;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    ensure!(found == wanted, "{RENDERED} is not what the charts say: make update");
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use serde_json::Value;

    use super::*;
    use crate::cluster::checkout;

    /// The chart's files are the generated definitions, byte by byte.
    #[test]
    fn definitions_of_the_chart_are_up_to_date() {
        let (from, to) = (checkout().join("crds/yaml"), checkout().join("charts/tiderace-crds/files"));
        let names = |folder: &Path| {
            let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        if std::env::var_os("UPDATE").is_some() {
            for name in names(&to) {
                std::fs::remove_file(to.join(name)).unwrap();
            }
            for name in names(&from) {
                std::fs::copy(from.join(&name), to.join(&name)).unwrap();
            }
        }
        assert_eq!(names(&from), names(&to));
        for name in names(&from) {
            let same = std::fs::read(from.join(&name)).unwrap() == std::fs::read(to.join(&name)).unwrap();
            assert!(same, "charts/tiderace-crds/files/{} is out of date: make update", name.display());
        }
    }

    /// The chart's roles are made from the operator's own table of rights.
    #[test]
    fn rights_of_the_chart_are_up_to_date() {
        let path = checkout().join("charts/tiderace/files/rbac.yaml");
        let rights = tiderace_operator::rbac::all();
        let wanted = format!("# Written from `tiderace-operator rbac`.\n{}", serde_saphyr::to_string(&rights).unwrap());
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &wanted).unwrap();
        }
        assert!(std::fs::read_to_string(&path).unwrap() == wanted, "charts/tiderace/files/rbac.yaml is out of date: make update");
    }

    /// The guide shows the health checks of GitOps tools as they are tested.
    #[test]
    fn guide_shows_the_health_checks() {
        let read = |path: &str| std::fs::read_to_string(checkout().join(path)).unwrap();
        let guide = read("docs/guide/kubernetes.md");
        for path in ["deploy/argocd/streamingjob-health.lua", "deploy/flux/streamingjob-health.yaml"] {
            assert!(guide.contains(&read(path)), "docs/guide/kubernetes.md doesn't show {path} as it is");
        }
    }

    /// The rendered file has the definitions that the crate generates, and everything else once.
    #[test]
    fn rendered_file_has_the_definitions() {
        let text = std::fs::read_to_string(checkout().join(RENDERED)).unwrap();
        let objects: Vec<Value> = text
            .split("\n---\n")
            .filter(|d| d.lines().any(|l| l.starts_with("kind:")))
            .map(|d| serde_saphyr::from_str(d).unwrap())
            .collect();
        let mut keys: Vec<_> = objects.iter().map(|o| format!("{} {}", o["kind"], o["metadata"]["name"])).collect();
        keys.sort();
        let count = keys.len();
        keys.dedup();
        assert!(count >= 8 && keys.len() == count, "{keys:?}");
        for entry in std::fs::read_dir(checkout().join("crds/yaml")).unwrap() {
            let definition: Value = serde_saphyr::from_str(&std::fs::read_to_string(entry.unwrap().path()).unwrap()).unwrap();
            let found = objects
                .iter()
                .find(|o| o["kind"] == "CustomResourceDefinition" && o["metadata"]["name"] == definition["metadata"]["name"]);
            // YAML writes 1.0 and Helm 1.
            let plain = |v: &Value| v.to_string().replace(".0,", ",").replace(".0}", "}");
            assert_eq!(
                found.map(|f| plain(&f["spec"])),
                Some(plain(&definition["spec"])),
                "{}: make update",
                definition["metadata"]["name"]
            );
        }
    }
}
