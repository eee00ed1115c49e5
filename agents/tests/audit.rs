//! The audit webhook: batches as an API server sends them, over real HTTP, into a real stream.

mod support;

use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tapio_agents::config::AgentConfig;
use tapio_agents::node::NodeAgent;
use tapio_runtime::config::ByteSize;
use tapio_runtime::harness::NatsServer;
use tapio_schemas::Entity;
use tapio_schemas::kind::Source;
use tapio_schemas::payload::Payload;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

fn config(cluster: &str) -> AgentConfig {
    let mut config = support::bare(cluster);
    config.audit.listen = "127.0.0.1:0".to_owned();
    config
}

/// The same for who knows the token, which is in a file.
fn guarded(cluster: &str) -> (tempfile::TempDir, std::path::PathBuf, AgentConfig) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "right\n").unwrap();
    let mut config = config(cluster);
    config.audit.token_file = Some(file.clone());
    (dir, file, config)
}

/// Sends a batch; gives the status and the body of the answer.
async fn send(address: std::net::SocketAddr, token: &str, body: &str) -> (u16, String) {
    send_on(TcpStream::connect(address).await.unwrap(), token, body).await
}

async fn send_on<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, token: &str, body: &str) -> (u16, String) {
    let head = format!(
        "POST /audit?timeout=30s HTTP/1.1\r\nhost: tapio\r\ncontent-type: application/json\r\nauthorization: Bearer {token}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // Who says more than is read is answered before its end.
    let _ = stream.write_all(body.as_bytes()).await;
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned())
}

fn event(id: u32, verb: &str, user: &str) -> Value {
    json!({"kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": format!("id-{id}"),
        "stage": "ResponseComplete", "verb": verb, "requestURI": "/apis/apps/v1/namespaces/shop/deployments/api",
        "user": {"username": user, "groups": ["system:authenticated"]}, "userAgent": "kubectl/v1.33.0",
        "objectRef": {"resource": "deployments", "apiGroup": "apps", "namespace": "shop", "name": "api"},
        "responseStatus": {"metadata": {}, "code": 200}})
}

fn list(events: &[Value]) -> String {
    json!({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": events}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_tells_who_changed_what_and_the_same_batch_again_the_same() {
    let nats = NatsServer::start().expect("nats-server");
    let agent = support::start(&nats, config("audit")).await;
    let address = agent.audit().expect("it listens");
    let mut events: Vec<Value> = (0..50).map(|id| event(id, "get", "jane")).collect();
    events.push(event(50, "delete", "jane"));
    events.push(event(51, "patch", "system:node:n1"));
    events.push(json!({"verb": []}));
    for _ in 0..2 {
        assert_eq!(send(address, "", &list(&events)).await, (200, String::new()));
    }
    let bus = nats.bus().await.unwrap();
    let mut stream = support::Stream::open(&bus, "audit").await;
    let told = stream.events_until("both tellings", |events| events.len() >= 2).await;
    assert_eq!(
        (told[0].source, told[0].entity.subject()),
        (Source::Audit, Entity::namespaced("Deployment", "shop", "api"))
    );
    let Payload::Change(data) = &told[0].payload else { panic!("{:?}", told[0]) };
    assert_eq!((data.what.as_str(), data.who.as_str()), ("deleted", "jane with kubectl"));
    assert_eq!(told.len(), 2, "reads and the system's own work are left out");
    support::drain(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_token_says_too_much_or_no_list_is_refused() {
    let (_dir, file, mut config) = guarded("refused");
    let nats = NatsServer::start().expect("nats-server");
    config.audit.message_max = ByteSize(10_000);
    let parts = support::parts(&nats).await;
    let metrics = parts.metrics.clone();
    let agent = NodeAgent::start(config, parts).await.unwrap();
    let address = agent.audit().expect("it listens");
    let batch = list(&[event(1, "delete", "jane")]);
    for (token, body, status) in [
        ("wrong", batch.clone(), 401),
        ("", batch.clone(), 401),
        ("right", "{".to_owned(), 400),
        ("right", json!({"kind": "PodList", "items": []}).to_string(), 400),
        ("right", "x".repeat(20_000), 413),
        ("right", batch.clone(), 200),
    ] {
        let answer = send(address, token, &body).await;
        assert_eq!(answer.0, status, "{answer:?}");
    }
    let counted = metrics.encode();
    for outcome in ["unauthorized", "too_large", "malformed", "taken"] {
        assert!(counted.contains(&format!("outcome=\"{outcome}\"")), "{outcome}: {counted}");
    }
    // A token that was changed counts from then on.
    std::fs::write(&file, "new").unwrap();
    assert_eq!(send(address, "right", &batch).await.0, 401);
    support::drain(agent).await;
}

/// A certificate of `tapio-audit` and its key, made for this test alone.
const TLS: [&str; 2] = [include_str!("audit_tls/tls.crt"), include_str!("audit_tls/tls.key")];

/// Sends a batch over TLS, when the certificate is the right one.
async fn send_encrypted(address: std::net::SocketAddr, body: &str) -> std::io::Result<(u16, String)> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(TLS[0].as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (name, stream) = ("tapio-audit".try_into().unwrap(), TcpStream::connect(address).await?);
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    Ok(send_on(stream, "right", body).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_certificate_only_tls_is_spoken() {
    let dir = tempfile::tempdir().unwrap();
    let [token, certificate, key] = ["token", "tls.crt", "tls.key"].map(|name| dir.path().join(name));
    for (file, text) in [(&token, "right"), (&certificate, TLS[0]), (&key, TLS[1])] {
        std::fs::write(file, text).unwrap();
    }
    let nats = NatsServer::start().expect("nats-server");
    let mut config = config("encrypted");
    (config.audit.token_file, config.audit.tls_certificate) = (Some(token), Some(certificate));
    let error = NodeAgent::start(config.clone(), support::parts(&nats).await).await.err().expect("a refusal");
    let said = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(
        said.contains("audit.tls_key: it is not set, and audit.tls_certificate is: set both or neither"),
        "{error}: {said}"
    );
    config.audit.tls_key = Some(key.clone());
    let agent = support::start(&nats, config).await;
    let address = agent.audit().expect("it listens");
    let batch = list(&[event(1, "delete", "jane")]);
    assert_eq!(send_encrypted(address, &batch).await.unwrap().0, 200);
    assert_eq!(send(address, "right", &batch).await.0, 0, "plain HTTP is no request");
    // Files that are changed count from the next connection on.
    std::fs::write(&key, "no key").unwrap();
    assert!(send_encrypted(address, &batch).await.is_err());
    std::fs::write(&key, TLS[1]).unwrap();
    assert_eq!(send_encrypted(address, &batch).await.unwrap().0, 200);
    support::drain(agent).await;
}

/// Says that a batch of so many bytes follows, and sends none; gives what is answered.
async fn announce(stream: &mut TcpStream, token: &str, bytes: usize) -> String {
    let head = format!(
        "POST /audit HTTP/1.1\r\nhost: tapio\r\nauthorization: Bearer {token}\r\ncontent-length: {bytes}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    let _ = stream.read_exact(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_held_for_who_may_not_send_says_too_much_or_says_nothing() {
    let (_dir, _, mut config) = guarded("bounded");
    let nats = NatsServer::start().expect("nats-server");
    config.audit.connections_max = 2;
    let agent = support::start(&nats, config).await;
    let address = agent.audit().expect("it listens");
    // Answered although not a byte of the batch has come.
    let mut stranger = TcpStream::connect(address).await.unwrap();
    assert_eq!(announce(&mut stranger, "wrong", 1_000_000).await, "HTTP/1.1 401");
    drop(stranger);
    let mut silent = TcpStream::connect(address).await.unwrap();
    assert_eq!(announce(&mut silent, "right", 1_000_000).await, "HTTP/1.1 408");

    let places = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    drop(silent);
    let batch = list(&[event(1, "delete", "jane")]);
    let waiting = tokio::spawn(async move { send(address, "right", &batch).await });
    // check: allow sleep, that nothing is answered can only be seen after a while
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(!waiting.is_finished(), "there are two places, and both are taken");
    drop(places);
    assert_eq!(waiting.await.unwrap().0, 200);
    support::drain(agent).await;
}
