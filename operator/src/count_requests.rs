//! Counts what the operator asks of the API server: `tiderace_operator_api_requests_total`.

use std::task::{Context, Poll};

use axum::http::{Method, Request, Response};
use futures::future::BoxFuture;
use kube::client::ClientBuilder;
use kube::{Client, Config};
use tower::{Layer, Service};

use crate::metrics::Metrics;

/// A client whose requests are counted.
pub fn client(config: Config, metrics: Metrics) -> Result<Client, kube::Error> {
    Ok(ClientBuilder::try_from(config)?.with_layer(&Counting(metrics)).build())
}

/// Puts [`Counted`] around a service.
#[derive(Clone)]
pub struct Counting(pub Metrics);

impl<S> Layer<S> for Counting {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, metrics: self.0.clone() }
    }
}

/// A service whose requests are counted.
#[derive(Clone)]
pub struct Counted<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, A, B> Service<Request<A>> for Counted<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Send,
    B: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let asked = asked(request.method(), request.uri().path(), request.uri().query().unwrap_or_default());
        let metrics = self.metrics.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            if let Some(asked) = asked {
                metrics.count_request(asked.verb, &asked.resource, answer.as_ref().map_or(0, |a| a.status().as_u16()));
            }
            answer
        })
    }
}

/// What a request asks, as RBAC names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// API group; empty for the core.
    pub group: String,
    /// Plural, and `/subresource`.
    pub resource: String,
    /// Verb.
    pub verb: &'static str,
}

/// Reads it from a request; `None` for what isn't about a resource (`/version`).
#[must_use]
pub fn asked(method: &Method, path: &str, query: &str) -> Option<Asked> {
    let mut parts = path.trim_matches('/').split('/');
    let group = match parts.next()? {
        "api" => String::new(),
        "apis" => parts.next()?.to_owned(),
        _ => return None,
    };
    parts.next()?; // version
    let mut rest: Vec<&str> = parts.collect();
    if rest.first() == Some(&"namespaces") && rest.len() > 2 {
        rest.drain(..2);
    }
    let (plural, name, sub) = (rest.first()?, rest.get(1), rest.get(2));
    let verb = match (method.as_str(), name) {
        ("GET", None) if query.contains("watch=true") => "watch",
        ("GET", None) => "list",
        ("GET", Some(_)) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", None) => "deletecollection",
        ("DELETE", Some(_)) => "delete",
        _ => return None,
    };
    let resource = sub.map_or_else(|| (*plural).to_owned(), |sub| format!("{plural}/{sub}"));
    Some(Asked { group, resource, verb })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn paths_are_read_as_rbac_reads_them() {
        for (method, path, query, group, resource, verb) in [
            (Method::GET, "/api/v1/namespaces/a/pods", "labelSelector=x", "", "pods", "list"),
            (Method::GET, "/api/v1/pods", "watch=true&x=1", "", "pods", "watch"),
            (Method::GET, "/apis/apps/v1/namespaces/a/statefulsets/b", "", "apps", "statefulsets", "get"),
            (
                Method::PATCH,
                "/apis/tiderace.dev/v1alpha1/namespaces/a/streamingjobs/b/status",
                "",
                "tiderace.dev",
                "streamingjobs/status",
                "patch",
            ),
            (Method::POST, "/apis/batch/v1/namespaces/a/jobs", "", "batch", "jobs", "create"),
            (Method::DELETE, "/api/v1/namespaces/a/pods/b", "", "", "pods", "delete"),
        ] {
            let found = asked(&method, path, query).unwrap();
            assert_eq!((found.group.as_str(), found.resource.as_str(), found.verb), (group, resource, verb), "{path}");
        }
        assert_eq!(asked(&Method::GET, "/version", ""), None);
    }
}
