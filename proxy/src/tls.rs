//! TLS on the client listener: rustls, HTTP/1.1 and HTTP/2 by ALPN.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

/// The protocols that a client may choose, by preference (RFC 7301).
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A certificate with its key, ready to serve with.
#[derive(Clone)]
pub struct Acceptor {
    acceptor: tokio_rustls::TlsAcceptor,
    limit: Duration,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// Why a connection was not taken.
#[derive(Debug, thiserror::Error)]
pub enum NoHandshake {
    /// It was not over in time.
    #[error("the handshake was not over within {} ms (timeouts.handshake)", limit.as_millis())]
    Slow {
        /// The limit.
        limit: Duration,
    },
    /// It failed.
    #[error(transparent)]
    Failed(#[from] std::io::Error),
}

/// A certificate or a key that cannot be used.
#[derive(Debug)]
pub struct BadIdentity {
    /// The key of the configuration that names it.
    pub key: &'static str,
    /// What is wrong; nothing of a private key is shown.
    pub reason: String,
}

/// A certificate chain and its key.
#[derive(Debug)]
pub struct Identity(Arc<ServerConfig>);

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl Identity {
    /// Of a chain and a key, both PEM.
    ///
    /// # Errors
    /// What is wrong with which of them; nothing of the key is shown.
    pub fn new(chain: &[u8], key: &[u8]) -> Result<Self, BadIdentity> {
        let bad = |key, reason: String| BadIdentity { key, reason };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
        let chain = chain.map_err(|e| bad("tls.cert_file", e.to_string()))?;
        if chain.is_empty() {
            return Err(bad("tls.cert_file", "holds no certificate in PEM".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| bad("tls.key_file", e.to_string()))?;
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad("tls", e.to_string()))?
            .with_no_client_auth()
            .with_single_cert(chain, key);
        // Also when the key is of another certificate.
        let mut config = config.map_err(|e| bad("tls.cert_file and tls.key_file", e.to_string()))?;
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        Ok(Self(Arc::new(config)))
    }
}

impl Acceptor {
    /// Serves with `identity`; a handshake may take `limit`.
    pub fn new(identity: &Identity, limit: Duration) -> Self {
        Self { acceptor: tokio_rustls::TlsAcceptor::from(Arc::clone(&identity.0)), limit }
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// See [`NoHandshake`].
    pub async fn accept<S>(&self, stream: S) -> Result<TlsStream<S>, NoHandshake>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let limit = self.limit;
        match tokio::time::timeout(limit, self.acceptor.accept(stream)).await {
            Ok(shaken) => Ok(shaken?),
            Err(_) => Err(NoHandshake::Slow { limit }),
        }
    }
}
