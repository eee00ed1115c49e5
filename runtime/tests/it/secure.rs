//! A server that wants TLS, a client certificate and a password.
//!
//! The certificates in `tls/` are for these tests only; their authority's key was thrown away.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use tapio_runtime::bus::{Bus, BusConfig, BusError, Headers};
use tapio_runtime::config::HumanDuration;
use tapio_runtime::nats_server;
use tapio_runtime::telemetry::Metrics;

use crate::in_time;

struct SecureServer {
    process: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for SecureServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/tls").join(name)
}

impl SecureServer {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let config = format!(
            "host: 127.0.0.1\nport: {port}\njetstream {{ store_dir: {dir:?} }}\n\
             authorization {{ user: tapio, password: secret }}\n\
             tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {ca:?}, verify: true }}\n",
            dir = dir.path(),
            cert = fixture("server.pem"),
            key = fixture("server.key"),
            ca = fixture("ca.pem"),
        );
        let path = dir.path().join("secure.conf");
        std::fs::write(&path, config).unwrap();
        let binary = nats_server::find().unwrap_or_else(|error| panic!("{error}"));
        let process =
            Command::new(binary.path).arg("--config").arg(path).stderr(Stdio::null()).spawn().unwrap();
        Self { process, port, _dir: dir }
    }

    fn config(&self, user: &str) -> BusConfig {
        BusConfig {
            tls_required: true,
            tls_ca_file: Some(fixture("ca.pem")),
            tls_cert_file: Some(fixture("client.pem")),
            tls_key_file: Some(fixture("client.key")),
            ..BusConfig::with_url(format!("tls://{user}@localhost:{}", self.port))
        }
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn tls_certificates_and_passwords_are_used() {
    let server = SecureServer::start();
    let bus = Bus::connect(&server.config("tapio:secret"), &Metrics::new()).await.unwrap();
    bus.ensure_streams().await.unwrap();
    let publish = bus.publish("tapio.v1.signals.c", None, Headers::new(), Bytes::from_static(b"x"));
    assert_eq!(in_time(publish).await.unwrap().sequence, 1);

    let fails = async |config: BusConfig| {
        let config = BusConfig { connect_timeout: HumanDuration::from_millis(1_000), ..config };
        let error = Bus::connect(&config, &Metrics::new()).await.unwrap_err();
        assert!(!error.to_string().contains("secret"), "no password in errors: {error}");
        error
    };
    let error = fails(server.config("tapio:wrong-secret")).await;
    assert!(matches!(error, BusError::Refused { .. }), "{error}");
    let right = server.config("tapio:secret");
    let error = fails(BusConfig { tls_ca_file: None, ..right.clone() }).await;
    assert!(error.to_string().to_lowercase().contains("certificate"), "{error}");
    let error = fails(BusConfig { tls_key_file: None, ..right.clone() }).await;
    assert!(matches!(error, BusError::HalfCertificate), "{error}");
    let error = fails(BusConfig { tls_cert_file: None, tls_key_file: None, ..right }).await;
    assert!(matches!(error, BusError::Connect { .. }), "{error}");
}
