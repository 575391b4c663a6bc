//! A collector of spans for a test: takes OTLP over HTTP in JSON (`POST /v1/traces`), as an OpenTelemetry collector does, and keeps what comes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::wait::secs;

/// The largest head and body of a request.
const HEAD_BYTES_MAX: usize = 16 << 10;
const BODY_BYTES_MAX: usize = 16 << 20;
/// Spans that are kept; a test that gets more fails.
const SPANS_MAX: usize = 100_000;

/// One span as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// What the process says of itself: `service.name`, …
    pub resource: BTreeMap<String, String>,
    /// Its name.
    pub name: String,
    /// Its attributes, as text.
    pub attributes: BTreeMap<String, String>,
    /// The trace that it is in.
    pub trace: String,
    /// Its own id.
    pub id: String,
    /// Its parent's.
    pub parent: Option<String>,
}

impl Span {
    /// Whether it is of that service and name, and has all these attributes.
    #[must_use]
    pub fn is(&self, service: &str, name: &str, attributes: &[(&str, &str)]) -> bool {
        self.resource.get("service.name").is_some_and(|of| of == service)
            && self.name == name
            && attributes.iter().all(|(key, value)| self.attributes.get(*key).is_some_and(|has| has == value))
    }
}

/// What came so far.
#[derive(Default)]
struct Received {
    spans: Vec<Span>,
    /// Requests that no collector would take.
    wrong: Vec<String>,
}

/// It listens as long as this lives.
pub struct Collector {
    address: std::net::SocketAddr,
    received: Rc<RefCell<Received>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Collector {
    /// Listens on an address of this machine, on a port of its own.
    pub async fn start(address: &str) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).await.with_context(|| format!("{address} can't be listened on"))?;
        let address = listener.local_addr()?;
        let received = Rc::<RefCell<Received>>::default();
        let to = Rc::clone(&received);
        let serving = tokio::task::spawn_local(async move {
            // Connections end with this task: they are futures of its own.
            let mut open = futures::stream::FuturesUnordered::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => if let Ok((stream, _)) = accepted { open.push(serve(stream, Rc::clone(&to))) },
                    Some(()) = futures::StreamExt::next(&mut open), if !open.is_empty() => {}
                }
            }
        });
        Ok(Self { address, received, serving })
    }

    /// What is given to those who send: `http://HOST:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The first span like that; an error says what there is of that service.
    pub fn find(&self, service: &str, name: &str, attributes: &[(&str, &str)]) -> Result<Span> {
        let received = self.received.borrow();
        ensure!(received.wrong.is_empty(), "requests that aren't OTLP: {:?}", received.wrong);
        ensure!(received.spans.len() < SPANS_MAX, "{SPANS_MAX} spans came: too many");
        received.spans.iter().find(|span| span.is(service, name, attributes)).cloned().with_context(|| {
            let of_service = received.spans.iter().filter(|s| s.resource.get("service.name").is_some_and(|of| of == service));
            let seen: std::collections::BTreeSet<_> = of_service.map(|s| format!("{} {:?}", s.name, s.attributes)).collect();
            format!(
                "no span {name} with {attributes:?} among {} of {service}: {:?}",
                seen.len(),
                seen.iter().take(40).collect::<Vec<_>>()
            )
        })
    }

    /// The span that another one is inside of.
    pub fn parent(&self, of: &Span) -> Result<Span> {
        let id = of.parent.as_deref().with_context(|| format!("{of:?} has no parent"))?;
        let received = self.received.borrow();
        let found = received.spans.iter().find(|span| span.id == id).cloned();
        let found = found.with_context(|| format!("the parent of {of:?} has not come"))?;
        ensure!(found.trace == of.trace, "{found:?} is in another trace than {of:?}");
        Ok(found)
    }

    /// How many came.
    #[must_use]
    pub fn count(&self) -> usize {
        self.received.borrow().spans.len()
    }
}

async fn serve(mut stream: TcpStream, to: Rc<RefCell<Received>>) {
    let answer = match tokio::time::timeout(secs(10), request(&mut stream)).await {
        Ok(Ok(body)) => spans(&body),
        Ok(Err(error)) => Err(error),
        Err(_) => return, // a pod that was killed in the middle
    };
    let status = {
        let mut received = to.borrow_mut();
        match answer {
            Ok(spans) if received.spans.len() < SPANS_MAX => {
                received.spans.extend(spans);
                "200 OK"
            }
            Ok(_) => "503 Service Unavailable",
            Err(error) => {
                received.wrong.push(format!("{error:#}"));
                "400 Bad Request"
            }
        }
    };
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}");
    // Who has gone needs no answer.
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// The body of a request, whose head must be that of OTLP.
async fn request(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        ensure!(bytes.len() < HEAD_BYTES_MAX, "the head has no end");
        if stream.read_buf(&mut bytes).await? == 0 {
            bail!("the request ends in its head");
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec())?;
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    ensure!(first.starts_with("POST /v1/traces HTTP/1."), "it begins with {first:?}");
    let headers: BTreeMap<String, &str> =
        lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name.to_ascii_lowercase(), value.trim())).collect();
    ensure!(headers.get("content-type") == Some(&"application/json"), "its headers are {headers:?}");
    let length: usize = headers.get("content-length").context("no Content-Length")?.parse()?;
    ensure!(length <= BODY_BYTES_MAX, "{length} bytes");
    let mut body = bytes.split_off(end + 4);
    while body.len() < length {
        if stream.read_buf(&mut body).await? == 0 {
            bail!("the body has {} of {length} bytes", body.len());
        }
    }
    Ok(body)
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value[key].as_array().with_context(|| format!("no list {key} in {value}"))
}

/// All spans of a body, each looked at by the rules of OTLP's JSON.
fn spans(body: &[u8]) -> Result<Vec<Span>> {
    let body: Value = serde_json::from_slice(body)?;
    let mut found = Vec::new();
    for of_resource in list(&body, "resourceSpans")? {
        let resource = attributes(&of_resource["resource"])?;
        for of_scope in list(of_resource, "scopeSpans")? {
            for span in list(of_scope, "spans")? {
                found.push(one(span, &resource)?);
            }
        }
    }
    Ok(found)
}

fn one(span: &Value, resource: &BTreeMap<String, String>) -> Result<Span> {
    let id = |key: &str, digits: usize| -> Result<String> {
        let text = span[key].as_str().with_context(|| format!("no {key} in {span}"))?;
        let is_hexadecimal =
            text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit()) && text.bytes().any(|b| b != b'0');
        ensure!(is_hexadecimal, "{key} is {text:?}");
        Ok(text.to_owned())
    };
    let time =
        |key: &str| -> Result<u64> { Ok(span[key].as_str().with_context(|| format!("no {key} as text in {span}"))?.parse()?) };
    ensure!(time("startTimeUnixNano")? <= time("endTimeUnixNano")?, "it ends before it begins: {span}");
    Ok(Span {
        resource: resource.clone(),
        name: span["name"].as_str().context("no name")?.to_owned(),
        attributes: attributes(span)?,
        trace: id("traceId", 32)?,
        id: id("spanId", 16)?,
        parent: span.get("parentSpanId").map(|_| id("parentSpanId", 16)).transpose()?,
    })
}

fn attributes(of: &Value) -> Result<BTreeMap<String, String>> {
    let all = list(of, "attributes")?.iter().map(|attribute| {
        let value = attribute["value"].as_object().filter(|value| value.len() == 1).and_then(|value| value.iter().next());
        let (kind, value) = value.with_context(|| format!("no value in {attribute}"))?;
        let text = match (kind.as_str(), value) {
            ("stringValue" | "intValue", Value::String(text)) => text.clone(),
            ("boolValue", Value::Bool(is)) => is.to_string(),
            ("doubleValue", Value::Number(number)) => number.to_string(),
            _ => bail!("{kind} is {value}"),
        };
        Ok((attribute["key"].as_str().context("no key")?.to_owned(), text))
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use serde_json::json;

    use super::*;

    fn body(span: Value) -> Vec<u8> {
        let resource = json!({"attributes": [{"key": "service.name", "value": {"stringValue": "a"}}]});
        json!({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}).to_string().into_bytes()
    }

    fn span() -> Value {
        json!({
            "traceId": "0123456789abcdef0123456789abcdef", "spanId": "0123456789abcdef", "name": "pass",
            "startTimeUnixNano": "5", "endTimeUnixNano": "7", "attributes": [{"key": "n", "value": {"intValue": "3"}}],
        })
    }

    #[test]
    fn spans_are_read_and_what_is_not_otlp_is_refused() {
        let found = spans(&body(span())).unwrap().pop().unwrap();
        assert!(found.is("a", "pass", &[("n", "3")]) && !found.is("a", "pass", &[("n", "4")]) && !found.is("b", "pass", &[]));
        for (key, wrong) in [
            ("traceId", json!("123")),
            ("spanId", json!("0000000000000000")),
            ("startTimeUnixNano", json!(5)),
            ("endTimeUnixNano", json!("4")),
            ("attributes", json!([{"key": "n", "value": {"intValue": 3}}])),
            ("parentSpanId", json!("")),
        ] {
            let mut bad = span();
            bad[key] = wrong;
            assert!(spans(&body(bad)).is_err(), "{key}");
        }
    }

    #[tokio::test]
    async fn a_request_is_taken_and_one_to_another_path_is_told() {
        tokio::task::LocalSet::new()
            .run_until(async {
                let collector = Collector::start("127.0.0.1").await.unwrap();
                let send = async |path: &str| {
                    let mut stream = TcpStream::connect(collector.address).await.unwrap();
                    let body = body(span());
                    let head = format!(
                        "POST {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                        body.len()
                    );
                    stream.write_all(&[head.as_bytes(), body.as_slice()].concat()).await.unwrap();
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).await.unwrap();
                    answer
                };
                assert!(send("/v1/traces").await.starts_with("HTTP/1.1 200"));
                assert_eq!(collector.find("a", "pass", &[]).unwrap().attributes["n"], "3");
                assert!(collector.find("a", "other", &[]).is_err());
                assert!(send("/traces").await.starts_with("HTTP/1.1 400"));
                assert!(collector.find("a", "pass", &[]).is_err(), "what was wrong is told");
            })
            .await;
    }
}
