//! Of two agents one watches; the other takes over when it is gone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tapio_agents::collectors::kubernetes::KubernetesConfig;
use tapio_agents::collectors::{CollectorState, CollectorStates};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::kind::EventKind;

use crate::agent::until;
use crate::fixtures::{killed_pod, pod};
use crate::server::Server;
use crate::watching::{Running, kubeconfig};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/tapio/leases/tapio-cluster-agent";
/// The limit that is promised.
const TAKEOVER_MAX: Duration = Duration::from_secs(15);

async fn agent(name: &str, server: SocketAddr) -> (Running, CollectorStates) {
    let dir = tempfile::tempdir().unwrap();
    let config = KubernetesConfig {
        kubeconfig: Some(kubeconfig(dir.path(), server)),
        lease: "tapio-cluster-agent".to_owned(),
        lease_namespace: "tapio".to_owned(),
        history: tapio_runtime::config::HumanDuration::from_secs(u32::MAX.into()),
        ..KubernetesConfig::default()
    };
    let states = CollectorStates::new(&Metrics::new());
    (Running::named(name, config, Some(states.clone())).await, states)
}

fn holder(server: &Server) -> String {
    server.written(LEASE)["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

/// Waits until the agent says that it stands by for `leader`.
async fn stands_by(states: &CollectorStates, leader: &str) {
    let says = CollectorState::Disabled(format!("stands by, {leader} watches the cluster"));
    until(&format!("{says:?}"), || (states.all().get("kubernetes") == Some(&says)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_watches_and_the_other_takes_over_when_it_dies() {
    let (server, address) = Server::start_open().await;
    server.change("ADDED", pod);
    let (mut first, _) = agent("first", address).await;
    first.wait_for(EventKind::K8sObjectAdded, 1).await;
    let (mut second, states) = agent("second", address).await;
    stands_by(&states, "first").await;
    assert_eq!(server.requests().watches, 1, "only one watches");
    let asked = server.asked("pods").len();
    first.kill().await;
    let died = Instant::now();
    second.wait_for(EventKind::K8sObjectAdded, 1).await;
    let took = died.elapsed();
    assert!(took <= TAKEOVER_MAX, "{took:?}");
    assert_eq!(holder(&server), "second");
    assert!(server.asked("pods").len() > asked);
    server.change("MODIFIED", killed_pod);
    second.wait_for(EventKind::K8sContainerTerminated, 1).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_gives_the_lease_back() {
    let (server, address) = Server::start_open().await;
    server.change("ADDED", pod);
    let (mut first, _) = agent("first", address).await;
    first.wait_for(EventKind::K8sObjectAdded, 1).await;
    let (mut second, states) = agent("second", address).await;
    stands_by(&states, "first").await;
    first.stop().await;
    assert_eq!(holder(&server), "", "given back");
    let stopped = Instant::now();
    second.wait_for(EventKind::K8sObjectAdded, 1).await;
    assert!(stopped.elapsed() < Duration::from_secs(8), "it need not wait for the end of the lease");
    assert_eq!(server.written(LEASE)["spec"]["leaseTransitions"], json!(1));
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_the_lease_stops_watching() {
    let (server, address) = Server::start_open().await;
    server.change("ADDED", pod);
    let (mut first, states) = agent("first", address).await;
    first.wait_for(EventKind::K8sObjectAdded, 1).await;
    let mut taken = server.written(LEASE);
    taken["spec"]["holderIdentity"] = json!("intruder");
    taken["metadata"]["resourceVersion"] = json!("taken");
    server.document(LEASE, taken);
    stands_by(&states, "intruder").await;
    server.change("MODIFIED", killed_pod);
    // Nobody renews the intruder's lease: it is ours again, and the change is seen as news.
    first.wait_for(EventKind::K8sContainerTerminated, 1).await;
    assert_eq!(first.count(EventKind::K8sContainerTerminated), 1);
    assert_eq!(holder(&server), "first");
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_may_not_be_written_is_named() {
    let (server, address) = Server::start_open().await;
    server.forbid("leases");
    let (only, states) = agent("only", address).await;
    let says = "cannot get the lease: not allowed: grant get, create and update of leases.coordination.k8s.io in namespace tapio: ";
    until("the missing permission", || match states.all().get("kubernetes") {
        Some(CollectorState::Degraded(reason)) if reason.starts_with(says) => Some(()),
        _ => None,
    })
    .await;
    only.stop().await;
}
