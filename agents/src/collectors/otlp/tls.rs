//! TLS of a receiver: who sends shows a token only to who has shown a certificate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Where certificate and key are. They are read for each connection, of which there are few: both are renewed while it runs.
#[derive(Debug, Clone)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
}

impl Tls {
    /// What these two files say.
    ///
    /// # Errors
    /// When they are no certificate with its key.
    pub async fn of(certificate: &Path, key: &Path) -> io::Result<Self> {
        let tls = Self { certificate: certificate.to_owned(), key: key.to_owned() };
        tls.acceptor().await?;
        Ok(tls)
    }

    /// Takes connections with what the files hold now.
    ///
    /// # Errors
    /// With the file that cannot be used.
    pub async fn acceptor(&self) -> io::Result<TlsAcceptor> {
        let chain = CertificateDer::pem_slice_iter(&read(&self.certificate).await?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| unusable(&self.certificate, error))?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key).await?)
            .map_err(|error| unusable(&self.key, error))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| unusable(&self.certificate, error))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

async fn read(file: &Path) -> io::Result<Vec<u8>> {
    tokio::fs::read(file).await.map_err(|error| unusable(file, error))
}

fn unusable(file: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{} cannot be used for TLS: {error}", file.display()))
}
