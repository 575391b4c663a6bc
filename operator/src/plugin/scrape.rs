//! A worker's metrics, read through the API server's proxy to its plain port.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::Request;
use kube::Client;
use tiderace_crds::admin::HEALTH_PORT;

/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest page.
const PAGE_BYTES_MAX: usize = 8 << 20;

/// One page of metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Page {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// The text of a pod's page.
pub(crate) async fn text(client: &Client, namespace: &str, pod: &str) -> anyhow::Result<String> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{HEALTH_PORT}/proxy/metrics");
    let request = Request::get(path).body(Vec::new())?;
    let text = tokio::time::timeout(PATIENCE, client.request_text(request)).await??;
    anyhow::ensure!(text.len() <= PAGE_BYTES_MAX, "the page has more than {PAGE_BYTES_MAX} bytes");
    Ok(text)
}

/// The page of a pod; `None` when it can't be had.
pub(crate) async fn page(client: &Client, namespace: &str, pod: &str) -> Option<Page> {
    text(client, namespace, pod).await.ok().map(|text| Page::parse(&text))
}

impl Page {
    /// Reads the text format. Lines that are none of it are passed over.
    pub fn parse(text: &str) -> Self {
        Self { samples: text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect() }
    }

    /// The sum over all samples of a name.
    pub fn sum(&self, name: &str) -> Option<f64> {
        let mut values = self.samples.iter().filter(|sample| sample.name == name).map(|sample| sample.value).peekable();
        values.peek()?;
        Some(values.sum())
    }

    /// The greatest over all samples of a name with this label.
    pub fn max_with(&self, name: &str, label: &str, value: &str) -> Option<f64> {
        self.with(name, label, value).reduce(f64::max)
    }

    fn with<'a>(&'a self, name: &'a str, label: &'a str, value: &'a str) -> impl Iterator<Item = f64> + 'a {
        self.samples
            .iter()
            .filter(move |sample| sample.name == name && sample.labels.get(label).is_some_and(|found| found == value))
            .map(|sample| sample.value)
    }

    /// The values of a name by one of its labels.
    pub fn by(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut out = BTreeMap::new();
        for sample in self.samples.iter().filter(|sample| sample.name == name) {
            *out.entry(sample.labels.get(label).cloned().unwrap_or_default()).or_default() += sample.value;
        }
        out
    }
}

fn sample(line: &str) -> Option<Sample> {
    let line = line.trim();
    let (name, labels, rest) = match line.find('{') {
        Some(open) => {
            let (labels, rest) = labels(&line[open + 1..])?;
            (&line[..open], labels, rest)
        }
        None => {
            let (name, rest) = line.split_once(' ')?;
            (name, BTreeMap::new(), rest)
        }
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// The labels up to the closing brace, and what is behind it.
fn labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut out = BTreeMap::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((out, behind));
        }
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        out.insert(name.to_owned(), value);
        rest = &after[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str =
        "# HELP a b\n# TYPE a counter\na{x=\"1\",y=\"q\\\"\\\\\\n}\"} 2\na{x=\"2\"} 3.5\nplain 7\nnonsense\nbad{x=\"1} 2\n";

    #[test]
    fn values_are_found_by_name_and_label() {
        let page = Page::parse(TEXT);
        assert_eq!(page.sum("a"), Some(5.5));
        assert_eq!(page.sum("plain"), Some(7.0));
        assert_eq!(page.sum("none"), None);
        assert_eq!(page.max_with("a", "y", "q\"\\\n}"), Some(2.0));
        assert_eq!(page.by("a", "x"), BTreeMap::from([("1".to_owned(), 2.0), ("2".to_owned(), 3.5)]));
        assert_eq!(page.sum("bad"), None);
    }

    proptest! {
        #[test]
        fn no_page_makes_it_panic(text in "(?s).{0,200}") {
            let _page = Page::parse(&text);
        }
    }
}
