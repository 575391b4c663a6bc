//! `kubectl tiderace` on a real cluster: every command, as its user sees it.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::cluster::cache;
use crate::job::{Job, endless, manifest};
use crate::space::Space;
use crate::wait::{secs, until};

/// Runs the plugin of this build in the scenario's namespace; its end, whatever it is.
async fn plugin(space: &Space, arguments: &[&str], input: Option<String>) -> Result<Output> {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let program = std::env::current_exe()?.parent().context("this program is in no folder")?.join("kubectl-tiderace");
    let kubeconfig = space.cluster().run(&["kubeconfig"]).await?;
    let mut command = Command::new(program);
    command.args(["--kubeconfig", kubeconfig.trim(), "-n", space.name()]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().context("kubectl-tiderace can't be started")?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        if let Some(text) = input {
            stdin.write_all(text.as_bytes())?;
        }
        drop(stdin);
        Ok(child.wait_with_output()?)
    })
    .await?
}

/// What it printed, when it ended with this code.
async fn printed(space: &Space, arguments: &[&str], input: Option<String>, code: i32) -> Result<String> {
    let output = plugin(space, arguments, input).await?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() == Some(code), "kubectl tiderace {arguments:?} ended with {}: {text}", output.status);
    Ok(text)
}

fn has(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in:\n{text}");
    }
    Ok(())
}

/// Each command does what its help says.
pub async fn plugin_commands(space: Space) -> Result<()> {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cred"}, "stringData": {"password": "hunter2-that-nobody-sees"},
    });
    space.apply(&secret).await?;
    let mut steady = manifest("steady", &endless(1));
    steady["spec"]["sql"]["secretRefs"] = json!({"pw": {"name": "cred", "key": "password"}});
    let job = Job::apply(&space, &steady).await?;
    let refused = Job::apply(&space, &manifest("refused", "SELECT no_such_function(1);")).await?;
    job.ready("Running").await?;
    refused.stalled(&["PlanInvalid"], "TR-").await?;
    job.row(3).await?;

    has(&printed(&space, &["status"], None, 0).await?, &["steady", "refused", "PlanInvalid"])?;
    has(&printed(&space, &["status", "refused"], None, 1).await?, &["refused", "TR-"])?;
    has(&printed(&space, &["status", "steady"], None, 0).await?, &["Ready", "Running", "steady-0"])?;
    has(&printed(&space, &["top", "steady"], None, 0).await?, &["steady"])?;
    has(&printed(&space, &["explain", "steady"], None, 0).await?, &["numbers", "out"])?;
    has(&printed(&space, &["logs", "steady", "--tail", "100000"], None, 0).await?, &["row> +I[1]"])?;

    let good = manifest("new", &endless(1)).to_string();
    has(&printed(&space, &["check", "-f", "-"], Some(good), 0).await?, &["new"])?;
    let bad = manifest("new", "CREATE TABLE t (n BIGINT) WITH (connector = 'datagen');\nSELECT m FROM t;").to_string();
    has(&printed(&space, &["check", "-f", "-"], Some(bad), 1).await?, &["TR-", "line 2"])?;
    let left = space.list("v1", "Pod", "app.kubernetes.io/name=streamingjob-check").await?;
    ensure!(left.is_empty(), "checks left {} pods", left.len());

    printed(&space, &["suspend", "steady"], None, 0).await?;
    job.ready("Suspended").await?;
    printed(&space, &["resume", "steady"], None, 0).await?;
    job.ready("Running").await?;
    let before = job.incarnation().await?;
    printed(&space, &["restart", "steady"], None, 0).await?;
    until("the restart has another pod", secs(90), async || {
        ensure!(job.incarnation().await?.0 != before.0, "it is the same");
        Ok(())
    })
    .await?;
    job.ready("Running").await?;

    let folder = cache()?.join("report");
    std::fs::create_dir_all(&folder)?;
    let archive = folder.join("steady.tar.gz");
    printed(&space, &["report", "steady", "-o", &archive.display().to_string()], None, 0).await?;
    let extract = crate::cluster::output(std::process::Command::new("tar").args(["-xzOf"]).arg(&archive))?;
    has(&extract, &["steady", "StreamingJob", "row> +I["])?;
    ensure!(!extract.contains("hunter2-that-nobody-sees"), "the report has a secret's value");
    ensure!(!extract.contains("PRIVATE KEY"), "the report has a private key");
    Ok(())
}
