//! Certificates of the admin API: read from files, read anew when they change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tiderace_engine::error::{Code, Diagnostic};

/// How often the files are looked at. The kubelet takes about a minute to bring a change.
const LOOK: Duration = Duration::from_secs(2);
/// The largest file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The certificates that new connections get.
#[derive(Debug)]
pub(crate) struct Certificates {
    folder: PathBuf,
    current: RwLock<(Files, Arc<ServerConfig>)>,
    counts: RwLock<CertificateCounts>,
}

/// For the metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CertificateCounts {
    /// When those in use were read, Unix milliseconds.
    pub loaded_ms: i64,
    /// How often changed files could not be used.
    pub failures: u64,
}

/// The contents of the three files.
#[derive(Clone, PartialEq, Eq)]
struct Files {
    ca: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Files")
    }
}

impl Certificates {
    /// Reads `ca.crt`, `tls.crt` and `tls.key` of `folder`.
    pub fn load(folder: &Path) -> Result<Arc<Self>, Diagnostic> {
        let files = Files::read(folder)?;
        let config = files.server_config().map_err(|reason| unusable(folder, &reason))?;
        Ok(Arc::new(Self {
            folder: folder.to_owned(),
            current: RwLock::new((files, config)),
            counts: RwLock::new(CertificateCounts { loaded_ms: super::host::now_ms(), failures: 0 }),
        }))
    }

    /// What a new connection gets.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// For the metrics.
    pub fn counts(&self) -> CertificateCounts {
        *self.counts.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether the files changed, and takes them. Those that can't be used are refused, and the old ones stay.
    pub fn look(&self) -> Result<bool, Diagnostic> {
        let files = Files::read(&self.folder)?;
        if self.current.read().unwrap_or_else(PoisonError::into_inner).0 == files {
            return Ok(false);
        }
        let config = files.server_config().map_err(|reason| unusable(&self.folder, &reason))?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = (files, config);
        self.counts.write().unwrap_or_else(PoisonError::into_inner).loaded_ms = super::host::now_ms();
        Ok(true)
    }

    /// Looks again and again, for ever.
    pub async fn follow(self: Arc<Self>) {
        let mut told: Option<String> = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let this = self.clone();
            // Files of a volume may block.
            let looked = tokio::task::spawn_blocking(move || this.look()).await;
            match looked {
                Ok(Ok(true)) => {
                    told = None;
                    tracing::info!(folder = %self.folder.display(), "new certificates are in use");
                }
                Ok(Ok(false)) => told = None,
                Ok(Err(error)) => {
                    self.counts.write().unwrap_or_else(PoisonError::into_inner).failures += 1;
                    let text = error.to_string();
                    if told.as_ref() != Some(&text) {
                        tracing::warn!("{text}; the old ones stay in use");
                        told = Some(text);
                    }
                }
                Err(_) => return,
            }
        }
    }
}

fn unusable(folder: &Path, reason: &str) -> Diagnostic {
    Diagnostic::new(Code::Certificates, format!("the certificates in {} can't be used: {reason}", folder.display()))
        .hint("the folder must have ca.crt, tls.crt and tls.key, all PEM, the key without a password")
}

impl Files {
    fn read(folder: &Path) -> Result<Self, Diagnostic> {
        let read = |name: &str| {
            let path = folder.join(name);
            match std::fs::metadata(&path) {
                Ok(metadata) if metadata.len() > FILE_BYTES_MAX => Err(unusable(folder, &format!("{name} is too large"))),
                Ok(_) => std::fs::read(&path).map_err(|error| unusable(folder, &format!("{name}: {error}"))),
                Err(error) => Err(unusable(folder, &format!("{name}: {error}"))),
            }
        };
        Ok(Self { ca: read("ca.crt")?, certificate: read("tls.crt")?, key: read("tls.key")? })
    }

    /// Who has no certificate of this CA is refused in the handshake.
    fn server_config(&self) -> Result<Arc<ServerConfig>, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&self.ca) {
            roots.add(certificate.map_err(|error| format!("ca.crt: {error}"))?).map_err(|error| format!("ca.crt: {error}"))?;
        }
        if roots.is_empty() {
            return Err("ca.crt has no certificate".to_owned());
        }
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(&self.certificate).collect::<Result<_, _>>().map_err(|e| format!("tls.crt: {e}"))?;
        if chain.is_empty() {
            return Err("tls.crt has no certificate".to_owned());
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| "tls.key has no key that can be read".to_owned())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| format!("ca.crt: {error}"))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| format!("tls.crt and tls.key: {error}"))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
