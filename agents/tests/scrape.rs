//! Metrics of others, asked over real HTTP: parts of a control plane whose text is written here, and Tapio's own.

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use tapio_agents::collectors::scrape::{Role, TargetConfig};
use tapio_agents::config::AgentConfig;
use tapio_runtime::config::{ByteSize, HumanDuration};
use tapio_runtime::harness::NatsServer;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::Entity;
use tapio_schemas::attribute::find;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::payload::{MetricData, Payload};

const TOKEN: &str = "a-token-that-nobody-else-may-see";

/// Each scrape finds a hundred requests more, all of which took between one and two seconds.
fn api_server(scrapes: usize) -> String {
    let count = 1000 + 100 * scrapes;
    format!(
        "# HELP apiserver_request_duration_seconds Response latency\n\
         # TYPE apiserver_request_duration_seconds histogram\n\
         apiserver_request_duration_seconds_bucket{{verb=\"GET\",resource=\"pods\",le=\"1\"}} 1000\n\
         apiserver_request_duration_seconds_bucket{{verb=\"GET\",resource=\"pods\",le=\"2\"}} {count}\n\
         apiserver_request_duration_seconds_bucket{{verb=\"GET\",resource=\"pods\",le=\"+Inf\"}} {count}\n\
         apiserver_request_total{{verb=\"GET\",code=\"200\"}} {count}\n\
         a broken line {{\n\
         # EOF\n"
    )
}

async fn metrics(State(scrapes): State<Arc<AtomicUsize>>, headers: HeaderMap) -> (StatusCode, String) {
    let is_known = headers.get("authorization").is_some_and(|value| value == &format!("Bearer {TOKEN}"));
    if !is_known {
        return (StatusCode::UNAUTHORIZED, "Unauthorized".to_owned());
    }
    (StatusCode::OK, api_server(scrapes.fetch_add(1, Ordering::Relaxed)))
}

/// One check fails for the first few times.
async fn checks(State(scrapes): State<Arc<AtomicUsize>>) -> (StatusCode, &'static str) {
    if scrapes.load(Ordering::Relaxed) < 4 {
        return (
            StatusCode::INTERNAL_SERVER_ERROR,
            "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n",
        );
    }
    (StatusCode::OK, "[+]ping ok\n[+]etcd ok\nreadyz check passed\n")
}

async fn serve(routes: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    address
}

fn target(role: Role, address: SocketAddr) -> TargetConfig {
    TargetConfig { role, url: format!("http://{address}/metrics"), ..TargetConfig::default() }
}

fn config(cluster: &str, targets: Vec<TargetConfig>) -> AgentConfig {
    let mut config = support::bare(cluster);
    config.scrape.interval = HumanDuration::from_millis(100);
    config.scrape.targets = targets;
    config
}

fn token_file(dir: &tempfile::TempDir, token: &str) -> Option<PathBuf> {
    let path = dir.path().join("token");
    std::fs::write(&path, token).unwrap();
    Some(path)
}

fn gauge<'a>(event: &'a UnifiedEvent, name: &str) -> Option<&'a MetricData> {
    match &event.payload {
        Payload::Metric(data) if data.name == name => Some(data),
        _ => None,
    }
}

fn which(data: &MetricData) -> &str {
    find(&data.attributes, "which").and_then(|value| value.as_text()).unwrap_or_default()
}

/// Checks, and whether they fail, of everything told.
fn failing(events: &[UnifiedEvent]) -> BTreeSet<(String, bool)> {
    let told = events.iter().filter_map(|event| gauge(event, "k8s.component.failing"));
    told.map(|data| (which(data).to_owned(), data.value > 0.5)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_is_asked_with_its_token_and_its_numbers_are_of_the_time_between() {
    let scrapes = Arc::new(AtomicUsize::new(0));
    let routes =
        Router::new().route("/metrics", get(metrics)).route("/readyz", get(checks)).with_state(scrapes);
    let address = serve(routes).await;
    let dir = tempfile::tempdir().unwrap();
    let nats = NatsServer::start().expect("nats-server");
    let of = TargetConfig { token_file: token_file(&dir, TOKEN), ..target(Role::ApiServer, address) };
    let agent = support::start(&nats, config("plane", vec![of])).await;
    let bus = nats.bus().await.unwrap();
    let mut stream = support::Stream::open(&bus, "plane").await;
    let is_over = |events: &[UnifiedEvent]| failing(events).contains(&("etcd".to_owned(), false));
    let events = stream.events_until("the end of the failed check", is_over).await;

    let slow =
        events.iter().find_map(|event| gauge(event, "k8s.api_server.request.p99").map(|data| (event, data)));
    let (event, data) = slow.expect("the latency is told");
    assert!((1.9..=2.0).contains(&data.value), "{}", data.value);
    assert_eq!(event.entity.subject(), Entity::new("Component", "", "kube-apiserver", ""));
    let expected = [("answers", false), ("etcd", false), ("etcd", true)];
    assert_eq!(failing(&events), expected.map(|(check, fails)| (check.to_owned(), fails)).into());
    let text = format!("{events:?}");
    assert!(!text.contains(TOKEN));
    assert_eq!(agent.degraded(), vec![]);
    support::drain(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_fails_and_who_may_not_be_asked_is_not_blamed() {
    let routes = Router::new().route("/metrics", get(metrics)).with_state(Arc::default());
    let (address, gone) = (serve(routes).await, SocketAddr::from(([127, 0, 0, 1], 1)));
    // It answers three times.
    let scrapes = Arc::new(AtomicUsize::new(0));
    let failing = serve(Router::new().route(
        "/metrics",
        get(move || async move {
            let is_well = scrapes.fetch_add(1, Ordering::Relaxed) < 3;
            if is_well { (StatusCode::OK, "x 1\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "") }
        }),
    ));
    let failing = failing.await;
    let dir = tempfile::tempdir().unwrap();
    let nats = NatsServer::start().expect("nats-server");
    let refused =
        TargetConfig { token_file: token_file(&dir, "another"), ..target(Role::Scheduler, address) };
    let targets = vec![refused, target(Role::ControllerManager, gone), target(Role::Etcd, failing)];
    let agent = support::start(&nats, config("away", targets)).await;
    let bus = nats.bus().await.unwrap();
    let mut stream = support::Stream::open(&bus, "away").await;
    let is_told = |events: &[UnifiedEvent]| events.len() >= 8;
    let events = stream.events_until("the etcd that is gone", is_told).await;
    for (place, event) in events.iter().enumerate() {
        let data = gauge(event, "k8s.component.failing").expect("nothing else is known");
        assert_eq!((which(data), data.value), ("answers", f64::from(u8::from(place >= 3))));
        // Of the one that never was there nothing is known either.
        assert_eq!(event.entity.subject(), Entity::new("Component", "", "etcd", ""));
    }
    let degraded = format!("{:?}", agent.degraded());
    assert!(degraded.contains("401") && degraded.contains("token or certificate"), "{degraded}");
    assert!(degraded.contains("127.0.0.1:1/metrics does not answer"), "{degraded}");
    assert!(!degraded.contains("another"), "{degraded}");
    support::drain(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_passed_on_within_the_limit_and_too_much_is_not_read() {
    let own = Metrics::new();
    let counter: prometheus_client::metrics::counter::Counter = own.shared("kept_things", "Things");
    counter.inc_by(7);
    let text = own.encode();
    assert!(text.contains("kept_things_total 7") && text.ends_with("# EOF\n"), "{text}");
    let many: String = (0..500).map(|i| format!("many{{i=\"{i}\"}} 1\n")).collect();
    let ours = serve(Router::new().route("/metrics", get(move || async { text }))).await;
    let theirs = serve(Router::new().route("/metrics", get(move || async { many }))).await;
    let endless = "x 1\n".repeat(100_000);
    let large = serve(Router::new().route("/metrics", get(move || async { endless }))).await;

    let nats = NatsServer::start().expect("nats-server");
    let keep = |address, pattern: &str, entity: &str| TargetConfig {
        keep: vec![pattern.to_owned()],
        entity: entity.to_owned(),
        ..target(Role::Other, address)
    };
    let targets =
        vec![keep(ours, "*", "shop/Deployment/api"), keep(theirs, "man*", ""), keep(large, "x", "")];
    let mut config = config("kept", targets);
    config.scrape.interval = HumanDuration::from_secs(3600);
    config.scrape.series_max = 100;
    config.scrape.body_max = ByteSize(200_000);
    let agent = support::start(&nats, config).await;
    let bus = nats.bus().await.unwrap();
    let mut stream = support::Stream::open(&bus, "kept").await;
    let count =
        |events: &[UnifiedEvent], name: &str| events.iter().filter(|e| gauge(e, name).is_some()).count();
    let events = stream.events_until("what is kept", |events| count(events, "many") >= 100).await;
    assert_eq!((count(&events, "many"), count(&events, "x")), (100, 0));
    let name =
        own.encode().lines().find(|line| line.ends_with(" 7")).unwrap().split(' ').next().unwrap().to_owned();
    let kept = events.iter().find(|event| gauge(event, &name).is_some()).expect("our own counter");
    assert_eq!(kept.entity.subject(), Entity::namespaced("Deployment", "shop", "api"));
    let replica = gauge(kept, &name).and_then(|data| find(&data.attributes, "server.address"));
    assert_eq!(
        replica.and_then(|value| value.as_text()),
        Some(format!("http://{ours}/metrics").as_str()),
        "replicas of one thing are series of their own"
    );
    assert_eq!(gauge(kept, &name).map(|data| (data.value, data.monotonic)), Some((7.0, true)));
    let degraded = format!("{:?}", agent.degraded());
    assert!(degraded.contains("more than scrape.body_max"), "{degraded}");
    support::drain(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_without_a_url_is_that_of_the_kubernetes_collector() {
    let routes = Router::new().route("/metrics", get(metrics)).route("/readyz", get(checks));
    let address = serve(routes.with_state(Arc::default())).await;
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = serde_json::json!({"apiVersion": "v1", "kind": "Config", "current-context": "other",
        "clusters": [{"name": "this", "cluster": {"server": format!("http://{address}")}},
            {"name": "other", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "me", "user": {"token": TOKEN}}],
        "contexts": [{"name": "this", "context": {"cluster": "this", "user": "me"}},
            {"name": "other", "context": {"cluster": "other", "user": "me"}}]});
    let file = dir.path().join("kubeconfig");
    std::fs::write(&file, kubeconfig.to_string()).unwrap();
    let nats = NatsServer::start().expect("nats-server");
    let of = TargetConfig { role: Role::ApiServer, ..TargetConfig::default() };
    let mut config = config("home", vec![of]);
    config.kubernetes.kubeconfig = Some(file);
    config.kubernetes.context = Some("this".to_owned());
    let agent = support::start(&nats, config).await;
    let bus = nats.bus().await.unwrap();
    let mut stream = support::Stream::open(&bus, "home").await;
    let is_told = |events: &[UnifiedEvent]| failing(events).contains(&("answers".to_owned(), false));
    stream.events_until("an answer of the API server", is_told).await;
    support::drain(agent).await;
}
