//! Calls to a worker's admin API, mTLS with the job's own authority, and to a planner.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, Request, StatusCode, Uri};
use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::body::Body as _;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tiderace_crds::admin::{ADMIN_PORT, HEALTH_PORT, PlanCheckReply, PlanCheckRequest, StatusReply, StopRequest, TOKEN_HEADER};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::certificates::ClientIdentity;

/// How long a call may take, connecting included.
const CALL_TIME_MAX: Duration = Duration::from_secs(3);
/// How long planning may take.
const PLAN_TIME_MAX: Duration = Duration::from_secs(20);
/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// One worker: where it is, who it must be, and who asks.
#[derive(Clone, Debug)]
pub struct Target {
    /// The pod's address.
    pub address: IpAddr,
    /// The name in its certificate.
    pub server_name: String,
    /// The operator's certificate for this job.
    pub identity: Arc<ClientIdentity>,
    /// The operator's fencing token: a worker that has heard a higher one refuses orders.
    pub token: u64,
}

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody there, or not who it should be.
    #[error("{0}")]
    Unreachable(String),
    /// It answered with something else than success.
    #[error("{status}: {body}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What it said.
        body: String,
    },
}

/// A call under way.
pub type Call<'a, T> = BoxFuture<'a, Result<T, CallError>>;

/// What the operator asks workers. A trait, so that tests answer for them.
pub trait Workers: Send + Sync {
    /// `GET /v1/status`.
    fn status<'a>(&'a self, target: &'a Target) -> Call<'a, StatusReply>;
    /// Whether `/readyz` of a pod says that rows flow; cheap, as it is plain HTTP.
    fn is_running(&self, address: IpAddr) -> Call<'_, bool>;
    /// `POST /v1/stop`.
    fn stop<'a>(&'a self, target: &'a Target, order: &'a StopRequest) -> Call<'a, ()>;
    /// `POST /v1/plan:check` of a worker.
    fn check_plan<'a>(&'a self, target: &'a Target, request: &'a PlanCheckRequest) -> Call<'a, PlanCheckReply>;
    /// `POST /v1/plan:check` of a planner, in plain HTTP.
    fn check_plan_by<'a>(&'a self, planner: &'a Uri, request: &'a PlanCheckRequest) -> Call<'a, PlanCheckReply>;
}

/// Workers over the network.
#[derive(Clone, Copy, Debug, Default)]
pub struct Network;

impl Workers for Network {
    fn status<'a>(&'a self, target: &'a Target) -> Call<'a, StatusReply> {
        Box::pin(async move { answer(CALL_TIME_MAX, over_tls(target, Method::GET, "/v1/status", None::<&()>)).await })
    }

    fn is_running(&self, address: IpAddr) -> Call<'_, bool> {
        Box::pin(async move {
            let address = SocketAddr::new(address, HEALTH_PORT);
            let call = async {
                let stream = TcpStream::connect(address).await.map_err(|e| CallError::Unreachable(format!("{address}: {e}")))?;
                exchange(TokioIo::new(stream), &address.to_string(), None, Method::GET, "/readyz", None::<&()>).await
            };
            // The body is the worker's state. Anything else than this is looked at by a whole pass.
            Ok(within(CALL_TIME_MAX, call).await?.starts_with(b"Running"))
        })
    }

    fn stop<'a>(&'a self, target: &'a Target, order: &'a StopRequest) -> Call<'a, ()> {
        Box::pin(async move { within(CALL_TIME_MAX, over_tls(target, Method::POST, "/v1/stop", Some(order))).await.map(drop) })
    }

    fn check_plan<'a>(&'a self, target: &'a Target, request: &'a PlanCheckRequest) -> Call<'a, PlanCheckReply> {
        Box::pin(async move { answer(PLAN_TIME_MAX, over_tls(target, Method::POST, "/v1/plan:check", Some(request))).await })
    }

    fn check_plan_by<'a>(&'a self, planner: &'a Uri, request: &'a PlanCheckRequest) -> Call<'a, PlanCheckReply> {
        Box::pin(async move {
            let call = async {
                let authority = planner.authority().ok_or_else(|| CallError::Unreachable(format!("{planner} has no host")))?;
                let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
                let stream = TcpStream::connect(&address).await.map_err(|e| CallError::Unreachable(format!("{address}: {e}")))?;
                exchange(TokioIo::new(stream), authority.as_str(), None, Method::POST, "/v1/plan:check", Some(request)).await
            };
            answer(PLAN_TIME_MAX, call).await
        })
    }
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    tokio::time::timeout(limit, call)
        .await
        .unwrap_or_else(|_| Err(CallError::Unreachable(format!("no answer within {} s", limit.as_secs()))))
}

async fn answer<T: DeserializeOwned>(
    limit: Duration,
    call: impl Future<Output = Result<Bytes, CallError>>,
) -> Result<T, CallError> {
    let bytes = within(limit, call).await?;
    serde_json::from_slice(&bytes).map_err(|error| CallError::Unreachable(format!("its answer can't be read: {error}")))
}

async fn over_tls<T: Serialize>(target: &Target, method: Method, path: &str, body: Option<&T>) -> Result<Bytes, CallError> {
    let config = tls(&target.identity)?;
    let address = SocketAddr::new(target.address, ADMIN_PORT);
    let stream = TcpStream::connect(address).await.map_err(|e| CallError::Unreachable(format!("{address}: {e}")))?;
    let name = ServerName::try_from(target.server_name.clone())
        .map_err(|e| CallError::Unreachable(format!("{}: {e}", target.server_name)))?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|e| CallError::Unreachable(format!("{address}: TLS: {e}")))?;
    exchange(TokioIo::new(stream), &target.server_name, Some(target.token), method, path, body).await
}

fn tls(identity: &ClientIdentity) -> Result<ClientConfig, CallError> {
    let bad = |what: &str, error: String| CallError::Unreachable(format!("the job's certificates: {what}: {error}"));
    let mut roots = RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(identity.authorities.as_bytes()) {
        let der = der.map_err(|e| bad("ca.crt", e.to_string()))?;
        roots.add(der).map_err(|e| bad("ca.crt", e.to_string()))?;
    }
    let chain: Vec<_> = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| bad("tls.crt", e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(|e| bad("tls.key", e.to_string()))?;
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("TLS", e.to_string()))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|e| bad("tls.key", e.to_string()))
}

async fn exchange<S, T>(
    stream: S,
    host: &str,
    token: Option<u64>,
    method: Method,
    path: &str,
    body: Option<&T>,
) -> Result<Bytes, CallError>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    T: Serialize,
{
    let lost = |error: hyper::Error| CallError::Unreachable(error.to_string());
    let body = match body {
        Some(body) => serde_json::to_vec(body).map_err(|e| CallError::Unreachable(e.to_string()))?,
        None => Vec::new(),
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(lost)?;
    let mut request = Request::builder().method(method).uri(path).header("host", host).header(CONTENT_TYPE, "application/json");
    if let Some(token) = token {
        request = request.header(TOKEN_HEADER, token);
    }
    let request = request.body(axum::body::Body::from(body)).map_err(|e| CallError::Unreachable(e.to_string()))?;
    // The connection is driven beside the call and dropped with it.
    let call = async {
        let response = sender.send_request(request).await.map_err(lost)?;
        let status = response.status();
        let body = response.into_body();
        if body.size_hint().lower() > ANSWER_BYTES_MAX as u64 {
            return Err(CallError::Unreachable("its answer is too large".to_owned()));
        }
        let bytes = axum::body::to_bytes(axum::body::Body::new(body), ANSWER_BYTES_MAX)
            .await
            .map_err(|e| CallError::Unreachable(e.to_string()))?;
        if status.is_success() {
            return Ok(bytes);
        }
        Err(CallError::Refused { status: status.as_u16(), body: excerpt(status, &bytes) })
    };
    tokio::pin!(call);
    tokio::select! {
        done = &mut call => done,
        ended = connection => match ended {
            // The server closed after its answer, which may still be on the way to us.
            Ok(()) => call.await,
            Err(error) => Err(lost(error)),
        },
    }
}

fn excerpt(status: StatusCode, bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text: String = text.chars().take(500).collect();
    if text.is_empty() { status.canonical_reason().unwrap_or_default().to_owned() } else { text }
}
