//! The generated pages of the book: lists of what there is, from the tables that the code itself uses.

use tiderace_engine::error::Code;

use crate::command::ListFormat;
use crate::{listing, serve};

const SUMMARY: &str = "\
# Summary

[Introduction](guide/introduction.md)

- [Tutorial](guide/tutorial.md)
- [Time and lateness](guide/time.md)
- [State that is larger than memory](guide/state.md)
- [Checkpoints: going on after a crash](guide/checkpoints.md)
- [SQL](guide/sql.md)
  - [Functions](reference/functions.md)
  - [Settings](reference/settings.md)
- [Connectors and formats](guide/connectors.md)
  - [Files](guide/filesystem.md)
  - [Formats](guide/formats.md)
  - [Reference](reference/connectors.md)
- [On Kubernetes](guide/kubernetes.md)
- [Command line](guide/command-line.md)
  - [Looking into files](guide/inspect.md)
- [A worker's pod](guide/serve.md)
  - [kubectl tiderace](guide/kubectl.md)
  - [Metrics](reference/metrics.md)
  - [Admin API](reference/admin-api.md)
- [Design records](design/README.md)
  - [Planning](design/planning.md)
  - [Runtime](design/runtime.md)
  - [Aggregation](design/aggregation.md)
  - [Windows](design/windows.md)
  - [Shards](design/storage.md)
  - [Logs and the concurrent store](design/storage-log.md)
  - [Defects of other stores](design/storage-tests.md)
  - [What the command prints](design/cli-output.md)
  - [Manifests are judged alike](design/manifest-check.md)
  - [Operator](design/operator.md)
  - [The process of a pod](design/serve.md)
  - [Tests on a real Kubernetes](design/kubernetes-tests.md)
- [Files of the storage layer](storage-format.md)
- [Bench: Nexmark, 2026-11-21](bench/2026-11-21.md)
- [Bench: storage, 2026-11-21](bench/2026-11-21-storage.md)
- [Bench: Nexmark beside Flink, 2026-11-22](bench/2026-11-22.md)
- [Bench: storage, 2026-11-22](bench/2026-11-22-storage.md)
- [Errors](reference/errors.md)
";

const NOTE: &str = "<!-- Generated: `make update` writes it anew. -->\n";

const METRICS_INTRODUCTION: &str = "\
What `GET /metrics` on the plain port of a worker says. Everything comes from counts that the engine publishes at its marks, so a value is
as old as one tick at most. Counters begin at 0 at each start of the process. The metrics of the operator, `tiderace_operator_…`, are others.
";

const ADMIN_INTRODUCTION: &str = "\
JSON over HTTPS on port 8443. Both sides have a certificate of the job's CA; who has none is refused in the handshake. Bodies have at most
4 MiB, requests take at most 30 s. Every answer that is no success is `{\"error\": {\"code\", \"message\", \"hint\"}}`. The header
`tiderace-deploy-epoch` says which start of the job the caller means; a worker of another one answers 409 and does nothing. Types and fields
are in [admin-api.json](admin-api.json), which `GET /openapi.json` gives too.
";

/// Each generated page: its path under `docs/`, and its text.
#[must_use]
pub fn pages() -> Vec<(&'static str, String)> {
    let mut summary = SUMMARY.to_owned();
    let mut errors = format!(
        "# Errors\n\n{NOTE}\nEvery message has a code. `tiderace error TR-1001` prints its page.\n\n| code | |\n|---|---|\n"
    );
    for code in Code::ALL {
        summary += &format!("  - [{code}: {}](errors/{code}.md)\n", escaped(code.title()));
        errors += &format!("| [{code}](../errors/{code}.md) | {} |\n", code.title());
    }
    vec![
        ("SUMMARY.md", summary),
        ("reference/errors.md", errors),
        ("reference/functions.md", format!("# Functions\n\n{NOTE}\n{}", listing::functions_text(ListFormat::Markdown))),
        ("reference/settings.md", format!("# Settings\n\n{NOTE}\n{}", listing::settings_markdown())),
        (
            "reference/metrics.md",
            format!("# Metrics of a worker\n\n{NOTE}\n{METRICS_INTRODUCTION}\n{}", serve::metrics_markdown()),
        ),
        (
            "reference/admin-api.md",
            format!("# Admin API of a worker\n\n{NOTE}\n{ADMIN_INTRODUCTION}\n{}", serve::openapi_markdown()),
        ),
        ("reference/admin-api.json", serve::openapi_text()),
        ("reference/connectors.md", format!("# Connectors and formats\n\n{NOTE}\n{}", listing::everything_markdown())),
    ]
}

fn escaped(title: &str) -> String {
    title.replace('[', "\\[").replace(']', "\\]")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::path::{Path, PathBuf};

    use super::*;

    fn docs() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
    }

    #[test]
    fn generated_pages_are_up_to_date() {
        let mut stale = Vec::new();
        for (path, wanted) in pages() {
            let file = docs().join(path);
            if std::env::var_os("UPDATE").is_some() {
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(&file, &wanted).unwrap();
            }
            if std::fs::read_to_string(&file).unwrap_or_default() != wanted {
                stale.push(path);
            }
        }
        assert!(stale.is_empty(), "docs/{} out of date: run make update", stale.join(", docs/"));
    }

    /// All Markdown files under `docs/`.
    fn all_pages() -> Vec<PathBuf> {
        let (mut folders, mut pages) = (vec![docs()], Vec::new());
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "md") {
                    pages.push(path);
                }
            }
        }
        pages
    }

    /// A page that isn't in the summary isn't in the book, and links to it lead nowhere there.
    #[test]
    fn every_page_is_in_the_book() {
        let summary = std::fs::read_to_string(docs().join("SUMMARY.md")).unwrap();
        let missing: Vec<_> = all_pages()
            .iter()
            .map(|page| page.strip_prefix(docs()).unwrap().display().to_string())
            .filter(|page| page != "SUMMARY.md" && !summary.contains(&format!("({page})")))
            .collect();
        assert!(missing.is_empty(), "not in SUMMARY of worker/src/book.rs: {missing:?}");
    }

    /// Every relative link of a page leads to a file.
    #[test]
    fn no_link_is_broken() {
        let root = docs().join("..");
        let mut pages = all_pages();
        pages.extend([root.join("README.md"), root.join("CONTRIBUTING.md")]);
        let mut broken = Vec::new();
        for page in &pages {
            let text = std::fs::read_to_string(page).unwrap();
            for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let file = target.split('#').next().unwrap_or_default();
                if file.is_empty() || file.contains("://") || !file.contains('.') || file.contains(char::is_whitespace) {
                    continue;
                }
                if !page.parent().unwrap().join(file).exists() {
                    broken.push(format!("{}: {target}", page.display()));
                }
            }
        }
        assert!(pages.len() > 60 && broken.is_empty(), "{}", broken.join("\n"));
    }
}
