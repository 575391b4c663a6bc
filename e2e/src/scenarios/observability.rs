//! Dashboards and alert rules of the chart against a real Prometheus that scrapes a real operator and real workers.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use regex::Regex;
use serde_json::{Value, json};

use crate::cluster::{cache, output};
use crate::install;
use crate::job::{Job, endless, http_get, manifest};
use crate::space::Space;
use crate::wait::{secs, until};

const PORT: u16 = 29091;

/// Metrics of errors that a healthy cluster may not have had yet: a counter with labels shows when it first counts.
const SHOWN_AFTER_AN_ERROR: [&str; 1] = ["tiderace_operator_reconcile_errors_total"];

/// A Prometheus server of this scenario, ended with it.
struct Prometheus {
    server: Child,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It was started here; that it has ended already is all right.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A pod to scrape: address and port, and what a PodMonitor would label it with.
struct Target {
    address: String,
    namespace: String,
    pod: String,
}

impl Prometheus {
    fn start(folder: &Path, targets: &[Target], rules: &Path) -> Result<Self> {
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
        std::fs::create_dir_all(folder)?;
        let mut config = format!(
            "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files:\n  - {}\nscrape_configs:\n  - job_name: pods\n    static_configs:\n",
            rules.display()
        );
        for target in targets {
            writeln!(
                config,
                "      - targets: ['{}']\n        labels: {{namespace: '{}', pod: '{}'}}",
                target.address, target.namespace, target.pod
            )?;
        }
        let file = folder.join("prometheus.yml");
        std::fs::write(&file, config)?;
        output(Command::new("promtool").args(["check", "config"]).arg(&file)).context("promtool refuses the configuration")?;
        let log = std::fs::File::create(folder.join("log"))?;
        let server = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{PORT}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("prometheus can't be started")?;
        Ok(Self { server })
    }
}

async fn ask(path: &str) -> Result<Value> {
    let answer: Value = serde_json::from_str(&http_get("127.0.0.1", PORT, path).await?)?;
    ensure!(answer["status"] == "success", "{path}: {answer}");
    Ok(answer["data"].clone())
}

/// The text as part of a URL's query.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut url, byte| {
        if byte.is_ascii_alphanumeric() {
            url.push(char::from(byte));
        } else {
            let _ = write!(url, "%{byte:02X}"); // a String takes all
        }
        url
    })
}

/// Every expression of a dashboard, Grafana's variables put in.
fn dashboard_expressions(dashboard: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().into_iter().flatten() {
        let title = panel["title"].as_str().unwrap_or_default();
        for target in panel["targets"].as_array().into_iter().flatten() {
            if let Some(expression) = target["expr"].as_str() {
                let expression = expression.replace("$__rate_interval", "1m").replace("$namespace", ".*").replace("$name", ".*");
                found.push((
                    title.to_owned(),
                    expression.replace("namespace=\".*\"", "namespace=~\".*\"").replace("name=\".*\"", "name=~\".*\""),
                ));
            }
        }
    }
    found
}

/// The metrics that an expression names, as they are exported: a histogram by its base.
fn metrics_in(expression: &str) -> Result<BTreeSet<String>> {
    let name = Regex::new("tiderace_[a-z0-9_]+")?;
    Ok(name.find_iter(expression).map(|m| m.as_str().trim_end_matches("_bucket").to_owned()).collect())
}

fn chart_file(root: &Path, name: &str) -> PathBuf {
    root.join("charts/tiderace/files").join(name)
}

/// Statements of which one row fails, and what becomes of it.
fn failing_rows(on_error: &str) -> String {
    format!(
        "CREATE TABLE bad (origin STRING, position STRING, code STRING, message STRING, raw STRING) WITH (connector = 'blackhole');\n\
         SET 'on_error' = '{on_error}';\n{}",
        endless(1).replace("SELECT n", "SELECT 10 / (3 - n)")
    )
}

/// Every rule parses, every expression is answered, every metric that one names exists, and an alert fires that has cause to.
pub async fn dashboards_and_alerts_tell_the_truth(space: Space) -> Result<()> {
    let root = space.cluster().root().to_path_buf();
    let rules = chart_file(&root, "alerts.yaml");
    output(Command::new("promtool").args(["check", "rules"]).arg(&rules)).context("promtool refuses the rules")?;

    let job = Job::apply(&space, &manifest("watched", &endless(1))).await?;
    // This one has a sink, a window and late rows' counters as well.
    let example = space.cluster().root().join("examples/kubernetes/bids-by-channel.yaml").display().to_string();
    space.cluster().kubectl(&["-n", space.name(), "apply", "-f", &example]).await?;
    let bids = Job::named(&space, "bids-by-channel");
    // Rows that fail are kept aside by one job and dropped by the other.
    let aside = Job::apply(&space, &manifest("aside", &failing_rows("dead_letter(bad)"))).await?;
    let skips = Job::apply(&space, &manifest("skips", &failing_rows("skip"))).await?;
    let broken = Job::apply(&space, &manifest("broken", "SELECT nope;")).await?;
    job.ready("Running").await?;
    bids.ready("Running").await?;
    for job in [&aside, &skips] {
        job.ready("Running").await?;
        job.row(0).await?;
    }
    broken.stalled(&["PlanInvalid"], "TR-").await?;

    let mut targets = Vec::new();
    let mut pods = install::operator_pods(space.cluster()).await?;
    for job in [&job, &bids, &aside, &skips] {
        pods.push(job.worker().await?);
    }
    for pod in pods {
        let ip = pod.status.as_ref().and_then(|s| s.pod_ip.clone()).context("a pod has no address")?;
        targets.push(Target {
            address: format!("{ip}:{}", tiderace_crds::admin::HEALTH_PORT),
            namespace: pod.namespace().unwrap_or_default(),
            pod: pod.name_any(),
        });
    }
    let _server = Prometheus::start(&cache()?.join("prometheus"), &targets, &rules)?;
    until("Prometheus has scraped every pod", secs(60), async || {
        let up = ask(&format!("/api/v1/query?query={}", encoded("count(up == 1)"))).await?;
        let count = up.pointer("/result/0/value/1").and_then(Value::as_str).unwrap_or("0").to_owned();
        ensure!(count == targets.len().to_string(), "{count} of {}", targets.len());
        Ok(())
    })
    .await?;

    let names = ask("/api/v1/metadata").await?;
    let mut expressions = Vec::new();
    for file in ["dashboards/fleet.json", "dashboards/job.json"] {
        let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(chart_file(&root, file))?)?;
        let found = dashboard_expressions(&dashboard);
        ensure!(found.len() >= 10, "{file} has only {} expressions", found.len());
        expressions.extend(found);
    }
    let alerts: Value = serde_saphyr::from_str(&std::fs::read_to_string(&rules)?)?;
    for rule in alerts["groups"].as_array().into_iter().flatten().flat_map(|g| g["rules"].as_array().into_iter().flatten()) {
        expressions.push((rule["alert"].to_string(), rule["expr"].as_str().unwrap_or_default().to_owned()));
    }
    let mut missing = Vec::new();
    for (what, expression) in &expressions {
        ask(&format!("/api/v1/query?query={}", encoded(expression))).await.with_context(|| format!("{what}: {expression}"))?;
        for metric in metrics_in(expression)? {
            if names.get(&metric).is_none() && !SHOWN_AFTER_AN_ERROR.contains(&metric.as_str()) {
                missing.push(format!("{metric} ({what})"));
            }
        }
    }
    ensure!(missing.is_empty(), "nobody exports {missing:?}");

    until("the alert TideraceJobStalled fires for the broken job, and for no other", secs(150), async || {
        let alerts = ask("/api/v1/alerts").await?;
        let firing: Vec<_> = alerts["alerts"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|a| a["state"] == "firing" && a["labels"]["job_namespace"] == json!(space.name()))
            .map(|a| (a["labels"]["alertname"].clone(), a["labels"]["job_name"].clone()))
            .collect();
        ensure!(firing == [(json!("TideraceJobStalled"), json!("broken"))], "firing are {firing:?}");
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn metrics_are_found_in_expressions() {
        let names =
            metrics_in("histogram_quantile(0.9, sum by (le) (rate(tiderace_a_seconds_bucket[1m]))) / tiderace_b").unwrap();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["tiderace_a_seconds", "tiderace_b"]);
    }

    #[test]
    fn texts_are_encoded_for_urls() {
        assert_eq!(encoded("a{b=\"c\"}"), "a%7Bb%3D%22c%22%7D");
    }

    #[test]
    fn dashboards_and_rules_of_the_chart_have_expressions() {
        let root = crate::cluster::checkout();
        for file in ["dashboards/fleet.json", "dashboards/job.json"] {
            let text = std::fs::read_to_string(chart_file(&root, file)).unwrap();
            let expressions = dashboard_expressions(&serde_json::from_str(&text).unwrap());
            assert!(expressions.len() >= 10, "{file}");
            for (_, expression) in expressions {
                assert!(!expression.contains('$') && !metrics_in(&expression).unwrap().is_empty(), "{file}: {expression}");
            }
        }
    }
}
