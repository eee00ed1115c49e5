//! Where a running instance listens: written by `tapio up`, read by clients.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// gRPC address clients try when nothing else is said.
pub const DEFAULT_API_GRPC: &str = "127.0.0.1:50051";
const FILE: &str = "endpoints.json";

/// Bound addresses, `host:port` each; `nats` is a URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// NATS URL.
    pub nats: String,
    /// OTLP over gRPC.
    pub otlp_grpc: String,
    /// OTLP over HTTP.
    pub otlp_http: String,
    /// Tapio's gRPC API.
    pub api_grpc: String,
    /// Prometheus metrics, liveness and readiness.
    pub metrics: String,
}

impl Endpoints {
    /// Writes the file so that a reader sees all of it or none.
    pub fn write(&self, data_dir: &Path) -> anyhow::Result<PathBuf> {
        let path = data_dir.join(FILE);
        let temporary = data_dir.join(format!(".{FILE}.tmp"));
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Reads the file of a data directory; `None` when there is none.
    pub fn read(data_dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = data_dir.join(FILE);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let parsed = serde_json::from_slice(&bytes);
                parsed.map(Some).with_context(|| format!("{} is not an endpoints file", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// True when the instance listens on the port of this address.
    pub fn holds(&self, address: &str) -> bool {
        let port = |address: &str| address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        let own = [&self.nats, &self.otlp_grpc, &self.otlp_http, &self.api_grpc, &self.metrics];
        port(address).is_some_and(|wanted| own.iter().any(|own| port(own) == Some(wanted)))
    }

    /// Removes the file at the end of a run.
    pub fn remove(data_dir: &Path) {
        if let Err(error) = std::fs::remove_file(data_dir.join(FILE)) {
            tracing::debug!(%error, "endpoints file was already gone");
        }
    }
}

/// Data directory when none is named: `/var/lib/tapio` for root, else below the user's data home.
pub fn default_data_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/tapio");
    }
    let home = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/share")));
    home.unwrap_or_else(std::env::temp_dir).join("tapio")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Endpoints::read(dir.path()).unwrap(), None);
        let endpoints = Endpoints {
            nats: "nats://127.0.0.1:4222".into(),
            otlp_grpc: "127.0.0.1:4317".into(),
            otlp_http: "127.0.0.1:4318".into(),
            api_grpc: DEFAULT_API_GRPC.into(),
            metrics: "127.0.0.1:9464".into(),
        };
        endpoints.write(dir.path()).unwrap();
        assert_eq!(Endpoints::read(dir.path()).unwrap(), Some(endpoints));
        Endpoints::remove(dir.path());
        assert_eq!(Endpoints::read(dir.path()).unwrap(), None);
    }
}
