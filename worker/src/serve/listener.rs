//! Sockets with limits: how many connections, how long a handshake, a head, a request and a connection may take.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tiderace_engine::error::{Code, Diagnostic};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::tls::Certificates;

/// What a peer may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections at the same time; more wait in the socket's queue.
    pub connections_max: usize,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the head of a request, and between two requests.
    pub head: Duration,
    /// A connection is closed after its current request when it is so old.
    pub connection: Duration,
    /// What the current request of such a connection, or of a process that ends, may still take.
    pub last_request: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 128,
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(10),
            connection: Duration::from_secs(600),
            last_request: Duration::from_secs(5),
        }
    }
}

/// How long no connection is taken after the system refused one (no file handles).
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Listens on `port` of `address`, or of all addresses.
pub(crate) async fn bind(address: Option<IpAddr>, port: u16) -> Result<TcpListener, Diagnostic> {
    let bound = match address {
        Some(address) => TcpListener::bind(SocketAddr::new(address, port)).await,
        // A socket for IPv6 takes IPv4 too; a machine may have none.
        None => match TcpListener::bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)).await {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                TcpListener::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)).await
            }
            bound => bound,
        },
    };
    bound.map_err(|error| {
        Diagnostic::new(Code::PortUnavailable, format!("port {port} can't be listened on: {error}"))
            .hint("another process may hold it; --admin-port and --health-port choose others")
    })
}

/// Serves `router` until `shutdown` says true; then requests in hand are answered, within their limit.
pub(crate) async fn serve(
    listener: TcpListener,
    certificates: Option<Arc<Certificates>>,
    router: Router,
    limits: Limits,
    mut shutdown: watch::Receiver<bool>,
) {
    let room = Arc::new(Semaphore::new(limits.connections_max));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.wait_for(|over| *over) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection could not be taken");
                tokio::time::sleep(REFUSED_PAUSE).await;
                continue;
            }
        };
        let (router, certificates, shutdown) = (router.clone(), certificates.clone(), shutdown.clone());
        tokio::spawn(async move {
            connection(stream, certificates, router, limits, shutdown).await;
            drop(permit);
        });
    }
    // Every connection gives its permit back.
    let all = u32::try_from(limits.connections_max).unwrap_or(u32::MAX);
    let _late = tokio::time::timeout(limits.last_request, room.acquire_many(all)).await;
}

async fn connection(
    stream: TcpStream,
    certificates: Option<Arc<Certificates>>,
    router: Router,
    limits: Limits,
    shutdown: watch::Receiver<bool>,
) {
    // Small answers are not held back for more.
    let _unimportant: io::Result<()> = stream.set_nodelay(true);
    let Some(certificates) = certificates else { return requests(stream, router, limits, shutdown).await };
    let acceptor = TlsAcceptor::from(certificates.current());
    match tokio::time::timeout(limits.handshake, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => requests(stream, router, limits, shutdown).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    limits: Limits,
    mut shutdown: watch::Receiver<bool>,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let done = tokio::select! {
        done = connection.as_mut() => Some(done),
        _ = shutdown.wait_for(|over| *over) => None,
        () = tokio::time::sleep(limits.connection) => None,
    };
    let done = match done {
        Some(done) => done,
        None => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(limits.last_request, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = done {
        tracing::debug!(%error, "a connection ended early");
    }
}
