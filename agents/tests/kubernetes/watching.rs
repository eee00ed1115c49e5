//! Nothing is lost and nothing told twice, whatever the API server does to its watches.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tapio_agents::attribution::PodLookup;
use tapio_agents::collectors::kubernetes::{
    KubernetesCollector, KubernetesConfig, PodIndex, Unavailable, WatchScope,
};
use tapio_agents::collectors::{CollectorState, CollectorStates};
use tapio_agents::ledger::Ledger;
use tapio_agents::sink::{self, EventSink, Intake, Wake};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::config::HumanDuration;
use tapio_runtime::health::Health;
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::entity::Entity;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::kind::EventKind;
use tapio_schemas::payload::Payload;
use tapio_schemas::status::WatchState;
use tokio::task::JoinHandle;

use crate::agent::until;
use crate::fixtures::{killed_pod, pod};
use crate::server::{Requests, Server};

pub struct Running {
    intake: Intake,
    pub pods: PodIndex,
    pub events: Vec<UnifiedEvent>,
    shutdown: Shutdown,
    task: JoinHandle<WorkerResult>,
}

pub fn kubeconfig(dir: &Path, server: SocketAddr) -> std::path::PathBuf {
    let path = dir.join("kubeconfig");
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "t",
        "clusters": [{"name": "t", "cluster": {"server": format!("http://{server}")}}],
        "users": [{"name": "t", "user": {}}], "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}]});
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

fn sink(metrics: &Metrics) -> (EventSink, Intake) {
    let ledger = Ledger::new(metrics);
    sink::channel("kubernetes", &Arc::new(Wake::default()), &ledger, SystemClock::shared(), metrics)
}

async fn connect(config: KubernetesConfig) -> (Result<KubernetesCollector, Unavailable>, Intake, PodIndex) {
    connect_as("n1", config).await
}

async fn connect_as(
    node: &str,
    config: KubernetesConfig,
) -> (Result<KubernetesCollector, Unavailable>, Intake, PodIndex) {
    let metrics = Metrics::new();
    let (sink, intake) = sink(&metrics);
    let pods = PodIndex::new(SystemClock::shared());
    (KubernetesCollector::connect(config, "c", node, pods.clone(), sink, &metrics).await, intake, pods)
}

impl Running {
    pub async fn start(server: SocketAddr, scope: WatchScope) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The file is read at the start and not again.
        Self::start_with(server, scope, &dir, None).await
    }

    pub async fn start_with(
        server: SocketAddr,
        scope: WatchScope,
        dir: &tempfile::TempDir,
        states: Option<CollectorStates>,
    ) -> Self {
        let config = KubernetesConfig {
            kubeconfig: Some(kubeconfig(dir.path(), server)),
            scope,
            // The objects of these tests are of another time.
            history: HumanDuration::from_secs(u32::MAX.into()),
            // Only changes are told.
            retell: HumanDuration::from_secs(0),
            backoff_min: HumanDuration::from_millis(1),
            backoff_max: HumanDuration::from_millis(5),
            ..KubernetesConfig::default()
        };
        Self::of(config, states).await
    }

    pub async fn of(config: KubernetesConfig, states: Option<CollectorStates>) -> Self {
        Self::named("n1", config, states).await
    }

    /// As an agent of this name.
    pub async fn named(node: &str, config: KubernetesConfig, states: Option<CollectorStates>) -> Self {
        let (collector, intake, pods) = connect_as(node, config).await;
        let collector = collector.unwrap();
        let collector = match states {
            Some(states) => collector.reporting_to(states),
            None => collector,
        };
        let (shutdown, clock) = (Shutdown::new(), SystemClock::shared());
        let context = WorkerContext {
            name: "kubernetes".into(),
            generation: 1,
            progress: Health::new(clock.clone()).register("kubernetes", None),
            shutdown: shutdown.clone(),
            clock,
        };
        let task = tokio::spawn(async move { collector.run(context).await });
        Self { intake, pods, events: Vec::new(), shutdown, task }
    }

    /// Waits until that many events of the kind have come.
    pub async fn wait_for(&mut self, kind: EventKind, count: usize) {
        until(&format!("{count} {kind}"), || {
            assert!(!self.task.is_finished(), "the collector ended");
            while let Some(events) = self.intake.take() {
                self.events.extend(events);
            }
            (self.count(kind) >= count).then_some(())
        })
        .await;
    }

    pub fn count(&self, kind: EventKind) -> usize {
        self.events.iter().filter(|event| event.kind == kind).count()
    }

    /// Ends it without a chance to do anything more.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub async fn stop(mut self) -> Vec<UnifiedEvent> {
        self.shutdown.trigger();
        self.task.await.unwrap().unwrap();
        while let Some(events) = self.intake.take() {
            self.events.extend(events);
        }
        self.events
    }
}

/// A pod of its own.
pub fn numbered(n: usize, version: u64) -> Value {
    let mut pod = pod(version);
    pod["metadata"]["name"] = json!(format!("api-5f6585d649-{n:05}"));
    pod["metadata"]["uid"] = json!(format!("uid-{n}"));
    pod
}

fn times(events: &[UnifiedEvent], kind: EventKind, pod: &str) -> usize {
    events.iter().filter(|event| event.kind == kind && event.entity.pod == pod).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_watch_goes_on_where_it_was() {
    let (server, address) = Server::start().await;
    server.change("ADDED", |version| numbered(1, version));
    let mut running = Running::start(address, WatchScope::Cluster).await;
    running.wait_for(EventKind::K8sObjectAdded, 1).await;
    for n in 2..=6 {
        server.drop_watches();
        server.change("ADDED", |version| numbered(n, version));
        running.wait_for(EventKind::K8sObjectAdded, n).await;
    }
    assert_eq!(server.requests().lists, 1, "a dropped watch is resumed, not begun anew");
    let events = running.stop().await;
    for n in 1..=6 {
        assert_eq!(times(&events, EventKind::K8sObjectAdded, &format!("api-5f6585d649-{n:05}")), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_object_is_told_again_and_again_without_a_change_of_it() {
    let (server, address) = Server::start().await;
    for n in 1..=3 {
        server.change("ADDED", |version| numbered(n, version));
    }
    let dir = tempfile::tempdir().unwrap();
    let retell = HumanDuration::from_secs(1);
    let config = KubernetesConfig {
        kubeconfig: Some(kubeconfig(dir.path(), address)),
        retell,
        ..KubernetesConfig::default()
    };
    let mut running = Running::of(config, None).await;
    running.wait_for(EventKind::K8sObjectAdded, 9).await;
    let lists = server.requests().lists;
    let events = running.stop().await;
    assert_eq!(lists, 1, "told from what is known");
    for n in 1..=3 {
        let told = times(&events, EventKind::K8sObjectAdded, &format!("api-5f6585d649-{n:05}"));
        assert!((2..=5).contains(&told), "{told} times");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_gone_means_a_new_list_without_loss_or_repetition() {
    let (server, address) = Server::start().await;
    server.change("ADDED", pod);
    server.change("ADDED", |version| numbered(1, version));
    let mut running = Running::start(address, WatchScope::Cluster).await;
    running.wait_for(EventKind::K8sObjectAdded, 2).await;
    until("a watch", || (server.requests().watches == 1).then_some(())).await;
    // While the watch is away: one pod is killed, one deleted, one made; then the history is lost.
    server.change_unseen(|server| {
        server.change("MODIFIED", killed_pod);
        server.change("DELETED", |version| numbered(1, version));
        server.change("ADDED", |version| numbered(2, version));
        server.compact();
    });
    running.wait_for(EventKind::K8sObjectDeleted, 1).await;
    let Requests { lists, gone, .. } = server.requests();
    assert_eq!((lists, gone), (2, 1));
    server.change("MODIFIED", |version| numbered(2, version));
    server.change("ADDED", |version| numbered(3, version));
    running.wait_for(EventKind::K8sObjectAdded, 4).await;
    let pods = running.pods.clone();
    let events = running.stop().await;
    let killed = "api-5f6585d649-x2x2x";
    assert_eq!(times(&events, EventKind::K8sContainerTerminated, killed), 1);
    assert_eq!(times(&events, EventKind::K8sObjectAdded, killed), 1);
    assert_eq!(times(&events, EventKind::K8sObjectDeleted, "api-5f6585d649-00001"), 1);
    assert_eq!(times(&events, EventKind::K8sObjectAdded, "api-5f6585d649-00002"), 1);
    assert_eq!(times(&events, EventKind::K8sObjectAdded, "api-5f6585d649-00003"), 1);
    assert_eq!(pods.find("", "uid-1").unwrap().workload, "api", "the deleted pod is still known");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_is_asked_again_and_kinds_that_are_forbidden_do_not_matter() {
    let (server, address) = Server::start().await;
    server.fail(4);
    server.change("ADDED", pod);
    // All kinds; this server forbids everything but pods.
    let mut running = Running::start(address, WatchScope::Cluster).await;
    running.wait_for(EventKind::K8sObjectAdded, 1).await;
    assert_eq!(server.requests().failed, 4);
    until("a watch", || (server.requests().watches >= 1).then_some(())).await;
    server.change("MODIFIED", killed_pod);
    running.wait_for(EventKind::K8sContainerTerminated, 1).await;
    let events = running.stop().await;
    assert_eq!(times(&events, EventKind::K8sContainerTerminated, "api-5f6585d649-x2x2x"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_agent_learns_its_pods_and_leaves_the_telling_to_the_cluster_agent() {
    let (server, address) = Server::start().await;
    server.change("ADDED", pod);
    let running = Running::start(address, WatchScope::Node).await;
    until("a watch", || (server.requests().watches == 1).then_some(())).await;
    server.change("MODIFIED", killed_pod);
    server.change("ADDED", |version| numbered(1, version));
    until("the pods", || running.pods.find("", "uid-1")).await;
    assert_eq!(running.pods.find("c1", "").unwrap().workload, "api");
    assert_eq!(server.fields(), "spec.nodeName=n1");
    assert!(running.stop().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_watched_is_said_until_it_works() {
    let (server, address) = Server::start().await;
    server.fail(usize::MAX);
    let dir = tempfile::tempdir().unwrap();
    let states = CollectorStates::new(&Metrics::new());
    let running = Running::start_with(address, WatchScope::Node, &dir, Some(states.clone())).await;
    let degraded = until("the failure", || match states.all().get("kubernetes") {
        Some(CollectorState::Degraded(reason)) => Some(reason.clone()),
        _ => None,
    });
    assert!(degraded.await.starts_with("cannot watch pods: 500"));
    server.fail(0);
    until("a watch that works", || {
        (states.all().get("kubernetes") == Some(&CollectorState::Running)).then_some(())
    })
    .await;
    running.stop().await;
}

fn settings(version: u64, level: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"level": level, "same": "hunter2"},
        "metadata": {"name": "settings", "namespace": "shop", "uid": "uid-settings",
            "resourceVersion": version.to_string(),
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "hunter2"},
            "managedFields": [{"manager": "kubectl", "time": "2030-01-01T10:00:00Z"}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_of_a_config_map_is_told_without_its_value() {
    let (server, address) = Server::start().await;
    server.allow("configmaps");
    server.change("ADDED", |version| settings(version, "info"));
    server.change("ADDED", pod);
    let mut running = Running::start(address, WatchScope::Cluster).await;
    running.wait_for(EventKind::K8sObjectAdded, 2).await;
    server.change("MODIFIED", |version| settings(version, "trace"));
    running.wait_for(EventKind::K8sConfigChanged, 1).await;
    let events = running.stop().await;
    let change = events.iter().find(|event| event.kind == EventKind::K8sConfigChanged).unwrap();
    let Payload::Kubernetes(data) = &change.payload else { panic!("{change:?}") };
    assert_eq!((data.reason.as_str(), data.changed_by.as_str()), ("level", "kubectl"), "the key, and who");
    assert!(!data.old_value.is_empty() && data.old_value != data.new_value);
    assert_eq!(change.entity.subject(), Entity::namespaced("ConfigMap", "shop", "settings"));
    assert_eq!(times(&events, EventKind::K8sConfigChanged, ""), 1, "the other key is the same");
    let all = format!("{events:?}");
    for value in ["info", "trace", "hunter2"] {
        assert!(!all.contains(&format!("\"{value}\"")), "{value} is told: {all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_is_named_and_the_rest_works() {
    let (server, address) = Server::start().await;
    server.change("ADDED", pod);
    let dir = tempfile::tempdir().unwrap();
    let states = CollectorStates::new(&Metrics::new());
    let mut running = Running::start_with(address, WatchScope::Cluster, &dir, Some(states.clone())).await;
    running.wait_for(EventKind::K8sObjectAdded, 1).await;
    // Everything but pods.
    let named = |reason: &str| {
        reason.starts_with("not allowed to see rollouts and changed images, ")
            && reason.contains(": grant get, list and watch of deployments.apps, replicasets.apps, ")
            && reason.ends_with(" and 20 more")
    };
    until("all that is forbidden", || match states.all().get("kubernetes") {
        Some(CollectorState::Degraded(reason)) if named(reason) => Some(()),
        _ => None,
    })
    .await;
    let of = |name: &str| states.watches().into_iter().find(|word| word.name == name).unwrap();
    until("the watch of pods", || (of("pods").state == WatchState::Live).then_some(())).await;
    assert_eq!(of("configmaps").state, WatchState::Forbidden);
    assert_eq!(of("configmaps").reason, "test: Forbidden");
    running.stop().await;
}

#[tokio::test]
async fn without_a_cluster_the_collector_says_why() {
    let off = KubernetesConfig { enabled: false, ..KubernetesConfig::default() };
    let error = connect(off).await.0.err().unwrap();
    assert!(error.is_expected() && error.to_string().contains("kubernetes.enabled"), "{error}");
    let missing =
        KubernetesConfig { kubeconfig: Some("/nowhere/kubeconfig".into()), ..KubernetesConfig::default() };
    let error = connect(missing).await.0.err().unwrap();
    assert!(!error.is_expected() && error.to_string().contains("/nowhere/kubeconfig"), "{error}");
}

/// Where a cluster is looked for is a matter of the environment, so the test runs itself again in another one.
#[tokio::test]
async fn an_ordinary_machine_has_no_cluster_and_a_broken_kubeconfig_is_told() {
    const CHILD: &str = "TAPIO_TEST_IS_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let error = connect(KubernetesConfig::default()).await.0.err().unwrap();
        println!("expected: {}, says: {error}", error.is_expected());
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let child = |kubeconfig: Option<&Path>| {
        let name = "watching::an_ordinary_machine_has_no_cluster_and_a_broken_kubeconfig_is_told";
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", name, "--nocapture"])
            .env_remove("KUBECONFIG")
            .env_remove("KUBERNETES_SERVICE_HOST")
            .env("HOME", home.path())
            .env(CHILD, "1");
        if let Some(path) = kubeconfig {
            command.env("KUBECONFIG", path);
        }
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let said = child(None);
    assert!(said.contains("expected: true, says: no cluster: no kubeconfig, and not in a pod"), "{said}");
    let broken = home.path().join("broken");
    std::fs::write(&broken, "clusters: 7").unwrap();
    let said = child(Some(&broken));
    assert!(said.contains("expected: false, says: cannot use the kubeconfig: "), "{said}");
}
