//! Configuration of the collector.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tapio_runtime::config::ByteSize;

/// The receiver of audit events.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditConfig {
    /// Where the API server's audit webhook sends batches, such as `0.0.0.0:9443`. Empty (default): it is disabled.
    pub listen: String,
    /// File with the bearer token that the sender must show. None (default): anybody may send, so listen where only the API server
    /// can reach. An API server shows a token over TLS only.
    pub token_file: Option<PathBuf>,
    /// PEM file with the certificate that is shown to the sender, and those that signed it. None (default): plain HTTP.
    pub tls_certificate: Option<PathBuf>,
    /// PEM file with the key of `tls_certificate`.
    pub tls_key: Option<PathBuf>,
    /// Bytes of a batch; a larger one is refused and counted. Default 4 MiB; the API server sends at most 400 events at once, and
    /// fewer with `--audit-webhook-batch-max-size`.
    pub message_max: ByteSize,
    /// Batches that are read at the same time; the sender of a further one waits, and is told to come back after 10 s. Default 1.
    pub requests_max: usize,
    /// Connections at the same time; further ones wait. Default 16.
    pub connections_max: usize,
}

impl AuditConfig {
    /// What a type cannot say.
    ///
    /// # Errors
    /// The key, below `audit`, that is missing, and why it is.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        self.tls_files().map(|_| ())
    }

    /// Certificate and key; none for plain HTTP.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn tls_files(&self) -> Result<Option<(&Path, &Path)>, (&'static str, &'static str)> {
        match (self.tls_certificate.as_deref(), self.tls_key.as_deref()) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
            (Some(_), None) => {
                Err(("tls_key", "it is not set, and audit.tls_certificate is: set both or neither"))
            }
            (None, Some(_)) => {
                Err(("tls_certificate", "it is not set, and audit.tls_key is: set both or neither"))
            }
        }
    }
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            listen: String::new(),
            token_file: None,
            tls_certificate: None,
            tls_key: None,
            message_max: ByteSize::mib(4),
            requests_max: 1,
            connections_max: 16,
        }
    }
}
