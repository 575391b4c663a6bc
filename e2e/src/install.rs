//! The product in the cluster: images from the binaries beside this one, charts from the checkout.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use crate::cluster::{Cluster, cache, output};
use crate::wait::{secs, until};

/// Where the operator runs.
pub const OPERATOR_NAMESPACE: &str = "tiderace-system";
/// The Helm release of chart `tiderace`.
pub const RELEASE: &str = "tiderace";
/// Name of the operator's Deployment and Lease.
pub const OPERATOR: &str = "tiderace-operator";
/// Label that a namespace must have for the webhook to be asked about its jobs: most scenarios want to see what the operator says by itself.
pub const WEBHOOK_LABEL: &str = "tiderace.dev/validate";
/// The worker's image.
pub const WORKER_IMAGE: &str = "localhost/tiderace:e2e";
/// Tag of the images that scenarios start with, and of those that "the next version" has: the same under another name.
pub const TAG: &str = "e2e";
/// See [`TAG`].
pub const NEXT_TAG: &str = "e2e-next";

/// Builds the images of worker and operator from the binaries of this build, and gives them to all nodes.
pub async fn load_images(cluster: &Cluster) -> Result<()> {
    let programs = std::env::current_exe()?.parent().context("this program is in no folder")?.to_path_buf();
    let archives = tokio::task::spawn_blocking(move || build_images(&programs)).await??;
    let mut arguments = vec!["image".to_owned(), "load".to_owned()];
    arguments.extend(archives.iter().map(|a| a.display().to_string()));
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    cluster.run(&arguments).await?;
    Ok(())
}

fn build_images(programs: &Path) -> Result<Vec<PathBuf>> {
    let mut archives = Vec::new();
    for program in ["tiderace", "tiderace-operator"] {
        let binary = programs.join(program);
        let found = std::fs::metadata(&binary)
            .with_context(|| format!("{} is missing: cargo build --workspace --bins", binary.display()))?;
        // The cache is shared by all folders that programs are built in.
        let made_of = format!("{} {} {:?}", binary.display(), found.len(), found.modified()?);
        let folder = cache()?.join("images");
        let (archive, note) = (folder.join(format!("{program}.tar")), folder.join(format!("{program}.made-of")));
        if !archive.is_file() || std::fs::read_to_string(&note).unwrap_or_default() != made_of {
            let mut build = Command::new(crate::cluster::checkout().join("images/build"));
            build.arg(program).arg("--from").arg(programs).arg("--out").arg(&folder);
            output(build.args(["--tag", &format!("localhost/{program}:{TAG}")]))?;
            std::fs::write(&note, made_of)?;
        }
        archives.push(archive);
    }
    Ok(archives)
}

/// Gives the images their other name, [`NEXT_TAG`], on every node.
pub async fn tag_next_images(cluster: &Cluster) -> Result<()> {
    let nodes = Api::<k8s_openapi::api::core::v1::Node>::all(cluster.client()).list(&ListParams::default()).await?;
    for node in nodes {
        for image in ["localhost/tiderace", "localhost/tiderace-operator"] {
            let (now, next) = (format!("{image}:{TAG}"), format!("{image}:{NEXT_TAG}"));
            cluster.on_node(&node.name_any(), &["ctr", "-n", "k8s.io", "images", "tag", "--force", &now, &next]).await?;
        }
    }
    Ok(())
}

/// Installs both charts, or upgrades them; `values` are further `--set` pairs. Waits until the operator is ready.
pub async fn charts(cluster: &Cluster, tag: &str, values: &[&str]) -> Result<()> {
    crds(cluster).await?;
    operator(cluster, tag, values).await
}

/// Installs or upgrades the definitions.
pub async fn crds(cluster: &Cluster) -> Result<()> {
    let chart = cluster.root().join("charts/tiderace-crds").display().to_string();
    cluster
        .helm(&[
            "upgrade",
            "--install",
            "tiderace-crds",
            &chart,
            "-n",
            OPERATOR_NAMESPACE,
            "--create-namespace",
            "--wait",
            "--timeout=60s",
        ])
        .await?;
    Ok(())
}

/// Installs or upgrades the operator.
pub async fn operator(cluster: &Cluster, tag: &str, values: &[&str]) -> Result<()> {
    let chart = cluster.root().join("charts/tiderace").display().to_string();
    let images = [
        "image.repository=localhost/tiderace-operator".to_owned(),
        format!("image.tag={tag}"),
        "workerImage.repository=localhost/tiderace".to_owned(),
        format!("workerImage.tag={tag}"),
    ];
    let mut arguments =
        vec!["upgrade", "--install", RELEASE, &chart, "-n", OPERATOR_NAMESPACE, "--create-namespace", "--wait", "--timeout=180s"];
    for value in images.iter().map(String::as_str).chain(values.iter().copied()) {
        arguments.extend(["--set", value]);
    }
    cluster.helm(&arguments).await?;
    Ok(())
}

/// The values that most scenarios run with: a webhook that is asked about some namespaces only.
#[must_use]
pub fn usual_values() -> Vec<&'static str> {
    vec![
        "webhook.enabled=true",
        "webhook.namespaceSelector.matchLabels.tiderace\\.dev/validate=yes",
        "logLevel=info\\,tiderace_operator=debug",
    ]
}

/// The operator's pods that aren't being deleted.
pub async fn operator_pods(cluster: &Cluster) -> Result<Vec<Pod>> {
    let pods = Api::<Pod>::namespaced(cluster.client(), OPERATOR_NAMESPACE);
    let list = pods.list(&ListParams::default().labels("app.kubernetes.io/component=operator")).await?;
    Ok(list.items.into_iter().filter(|p| p.metadata.deletion_timestamp.is_none()).collect())
}

/// The pod that leads, by the Lease.
pub async fn leader(cluster: &Cluster) -> Result<Pod> {
    let leases = Api::<k8s_openapi::api::coordination::v1::Lease>::namespaced(cluster.client(), OPERATOR_NAMESPACE);
    let lease = leases.get(OPERATOR).await?;
    let holder = lease.spec.and_then(|s| s.holder_identity).unwrap_or_default();
    let pods = operator_pods(cluster).await?;
    pods.into_iter()
        .find(|p| holder.starts_with(&p.name_any()))
        .with_context(|| format!("the Lease's holder is {holder:?}, which is no pod"))
}

/// Sets how many operators run, and waits until so many are ready and no other is left.
pub async fn scale_operator(cluster: &Cluster, replicas: i32) -> Result<()> {
    let api = Api::<Deployment>::namespaced(cluster.client(), OPERATOR_NAMESPACE);
    let patch = serde_json::json!({"spec": {"replicas": replicas}});
    api.patch(OPERATOR, &kube::api::PatchParams::default(), &kube::api::Patch::Merge(&patch)).await?;
    until(format!("{replicas} operators are ready"), secs(90), async || {
        let status = api.get(OPERATOR).await?.status.unwrap_or_default();
        let pods = Api::<Pod>::namespaced(cluster.client(), OPERATOR_NAMESPACE);
        let left = pods.list(&ListParams::default().labels("app.kubernetes.io/component=operator")).await?.items.len();
        let ready = status.ready_replicas.unwrap_or_default();
        ensure!(ready == replicas && i32::try_from(left)? == replicas, "{ready} are ready, {left} pods are there");
        Ok(())
    })
    .await
}
