//! Whatever the API server does to a watch, each change is told once, and what cannot be seen is said.

use serde_json::{Value, json};
use tapio_agents::collectors::kubernetes::{KubernetesConfig, WatchScope};
use tapio_agents::collectors::{CollectorState, CollectorStates};
use tapio_runtime::config::HumanDuration;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::kind::EventKind;
use tapio_schemas::payload::Payload;
use tapio_schemas::status::WatchState;

use crate::agent::until;
use crate::fixtures::{event, killed_pod, pod};
use crate::server::{Fault, Server};
use crate::watching::{Running, kubeconfig, numbered};

fn added(events: &[UnifiedEvent]) -> Vec<String> {
    let of_kind = events.iter().filter(|event| event.kind == EventKind::K8sObjectAdded);
    let mut names: Vec<String> =
        of_kind.map(|event| event.entity.pod.to_string()).filter(|name| !name.is_empty()).collect();
    names.sort();
    names
}

fn add(server: &Server, pods: std::ops::RangeInclusive<usize>) {
    for n in pods {
        server.change("ADDED", |version| numbered(n, version));
    }
}

fn expected(pods: std::ops::RangeInclusive<usize>) -> Vec<String> {
    pods.map(|n| format!("api-5f6585d649-{n:05}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_streams_goes_on_as_a_watch() {
    let (server, address) = Server::start_open().await;
    server.allow_streams();
    add(&server, 1..=3);
    let mut running = Running::start(address, WatchScope::Cluster).await;
    running.wait_for(EventKind::K8sObjectAdded, 3).await;
    server.change("ADDED", |version| numbered(4, version));
    running.wait_for(EventKind::K8sObjectAdded, 4).await;
    assert_eq!(server.requests().lists, 0, "no list but the stream");
    let asked = server.asked("pods");
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(
        asked[0].contains("sendInitialEvents=true") && asked[0].contains("allowWatchBookmarks=true"),
        "{asked:?}"
    );
    assert_eq!(added(&running.stop().await), expected(1..=4));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_while_its_list_streams_is_told_to_be_gone() {
    let (server, address) = Server::start_open().await;
    server.allow_streams();
    add(&server, 1..=2);
    let line = |what: &str, version| json!({"type": what, "object": numbered(9, version)}).to_string();
    server.meet("pods", [Fault::Line(format!("{}\n{}", line("ADDED", 8), line("DELETED", 9)))]);
    let mut running = Running::start(address, WatchScope::Cluster).await;
    running.wait_for(EventKind::K8sObjectAdded, 3).await;
    running.wait_for(EventKind::K8sObjectDeleted, 1).await;
    assert_eq!((server.requests().lists, server.asked("pods").len()), (0, 1), "one stream");
    let events = running.stop().await;
    let gone = events.iter().filter(|event| event.kind == EventKind::K8sObjectDeleted);
    let gone: Vec<String> = gone.map(|event| event.entity.pod.to_string()).collect();
    assert_eq!((added(&events), gone), ([expected(1..=2), expected(9..=9)].concat(), expected(9..=9)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_whose_streams_never_come_to_an_end_comes_in_pages() {
    let (server, address) = Server::start_open().await;
    server.allow_streams();
    add(&server, 1..=3);
    server.meet("pods", [Fault::Half, Fault::Half]);
    let mut running = Running::start(address, WatchScope::Cluster).await;
    running.wait_for(EventKind::K8sObjectAdded, 3).await;
    let asked = server.asked("pods");
    let streams = asked.iter().filter(|path| path.contains("sendInitialEvents=true")).count();
    assert_eq!((streams, server.requests().lists), (2, 1), "{asked:?}");
    assert_eq!(added(&running.stop().await), expected(1..=3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_comes_in_pages() {
    let (server, address) = Server::start().await;
    add(&server, 1..=1201);
    let mut running = Running::start(address, WatchScope::Cluster).await;
    running.wait_for(EventKind::K8sObjectAdded, 1201).await;
    let pages: Vec<String> =
        server.asked("pods").into_iter().filter(|path| path.contains("limit=500")).collect();
    assert_eq!(pages.len(), 3, "{pages:?}");
    assert!(added(&running.stop().await) == expected(1..=1201), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn bookmarks_keep_a_quiet_watch_from_being_forgotten() {
    let (server, address) = Server::start_open().await;
    server.change("ADDED", |version| numbered(1, version));
    let mut running = Running::start(address, WatchScope::Cluster).await;
    running.wait_for(EventKind::K8sObjectAdded, 1).await;
    until("a watch", || (server.requests().watches == 1).then_some(())).await;
    // Changes of another kind, of which the watch of pods hears by bookmarks alone.
    let node =
        |version: u64| json!({"kind": "Node", "metadata": {"name": "n", "uid": format!("n{version}")}});
    for _ in 0..5 {
        server.change("ADDED", node);
    }
    server.bookmark();
    running.wait_for(EventKind::K8sObjectAdded, 6).await;
    server.compact();
    server.drop_watches();
    until("the watch again", || (server.requests().watches == 2).then_some(())).await;
    server.change("ADDED", |version| numbered(2, version));
    running.wait_for(EventKind::K8sObjectAdded, 7).await;
    assert_eq!((server.requests().lists, server.requests().gone), (1, 0), "resumed from the bookmark");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_the_protocol_costs_no_change() {
    let (server, address) = Server::start_open().await;
    server.change("ADDED", |version| numbered(1, version));
    // The list: asked not to stream first.
    server.meet("pods", [Fault::Status(429, Some(0)), Fault::Status(503, None), Fault::Slow]);
    let mut running = Running::start(address, WatchScope::Cluster).await;
    running.wait_for(EventKind::K8sObjectAdded, 1).await;
    let status = r#"{"type":"ERROR","object":{"kind":"Status","code":500,"message":"etcd is away"}}"#;
    let faults = [
        Fault::Status(410, None),
        Fault::Status(429, Some(0)),
        Fault::Line("no json".to_owned()),
        Fault::Line(r#"{"type":"MODIFIED","object":7}"#.to_owned()),
        Fault::Line(r#"{"type":"MOVED","object":{}}"#.to_owned()),
        Fault::Line(status.to_owned()),
        Fault::Half,
    ];
    for (at, fault) in faults.into_iter().enumerate() {
        server.meet("pods", [fault]);
        // A watch that is just being opened is not there to be dropped.
        until("the fault", || {
            server.drop_watches();
            server.has_met_all("pods").then_some(())
        })
        .await;
        server.change("ADDED", |version| numbered(at + 2, version));
        running.wait_for(EventKind::K8sObjectAdded, at + 2).await;
    }
    assert_eq!(added(&running.stop().await), expected(1..=8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_in_the_way_for_ever_is_passed_by_a_list() {
    let (server, address) = Server::start_open().await;
    server.change("ADDED", |version| numbered(1, version));
    let mut running = Running::start(address, WatchScope::Cluster).await;
    running.wait_for(EventKind::K8sObjectAdded, 1).await;
    until("a watch", || (server.requests().watches == 1).then_some(())).await;
    server.meet("pods", vec![Fault::Line("garbage".to_owned()); 5]);
    server.change_unseen(|server| {
        server.change("ADDED", |version| numbered(2, version));
    });
    running.wait_for(EventKind::K8sObjectAdded, 2).await;
    until("all faults", || server.has_met_all("pods").then_some(())).await;
    until("a new list", || (server.requests().lists == 2).then_some(())).await;
    assert_eq!(added(&running.stop().await), expected(1..=2));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_from_the_version_that_the_server_has() {
    for (refused, path) in [(None, "/apis/events.k8s.io/v1/events"), (Some(()), "/api/v1/events")] {
        let (server, address) = Server::start_open().await;
        if refused.is_some() {
            server.lacks("/apis/events.k8s.io/v1/events");
        }
        server.change("ADDED", pod);
        server.change("ADDED", |version| event(version, 1));
        let mut running = Running::start(address, WatchScope::Cluster).await;
        running.wait_for(EventKind::K8sEvent, 1).await;
        let asked: Vec<String> =
            server.paths().into_iter().filter(|asked| asked.ends_with("/events")).collect();
        assert!(asked.iter().any(|asked| asked == path), "{asked:?}");
        assert_eq!(asked.len(), 1 + usize::from(refused.is_some()), "{asked:?}");
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_resource_of_the_configuration_is_found_and_its_condition_told() {
    let (server, address) = Server::start_open().await;
    server.document("/apis/example.org", json!({"preferredVersion": {"groupVersion": "example.org/v2"}}));
    let resources =
        json!([{"name": "widgets/status", "kind": "Widget"}, {"name": "widgets", "kind": "Widget"}]);
    server.document("/apis/example.org/v2", json!({"resources": resources}));
    let widget = |status: &str| {
        json!({"kind": "Widget", "apiVersion": "example.org/v2", "metadata": {"name": "w", "namespace": "shop", "uid": "w"},
            "status": {"conditions": [{"type": "Ready", "status": status, "reason": "Torn"}]}})
    };
    server.change("ADDED", |_| widget("True"));
    let dir = tempfile::tempdir().unwrap();
    let config = KubernetesConfig {
        kubeconfig: Some(kubeconfig(dir.path(), address)),
        custom_resources: vec!["widgets.example.org".to_owned(), "gadgets.example.org".to_owned()],
        backoff_min: HumanDuration::from_millis(1),
        ..KubernetesConfig::default()
    };
    let states = CollectorStates::new(&Metrics::new());
    let mut running = Running::of(config, Some(states.clone())).await;
    running.wait_for(EventKind::K8sObjectAdded, 1).await;
    server.change("MODIFIED", |_| widget("False"));
    running.wait_for(EventKind::K8sObjectChanged, 1).await;
    let missed = "the API server does not have gadgets.example.org";
    until("what is missed", || {
        (states.all().get("kubernetes") == Some(&CollectorState::Degraded(missed.to_owned()))).then_some(())
    })
    .await;
    let events = running.stop().await;
    let changed = events.iter().find(|event| event.kind == EventKind::K8sObjectChanged).unwrap();
    let Payload::Kubernetes(data) = &changed.payload else { panic!("{changed:?}") };
    assert_eq!((data.object_kind.as_str(), data.reason.as_str()), ("Widget", "Torn"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_seen_is_told_as_a_gap_with_the_permission() {
    let (server, address) = Server::start_open().await;
    server.forbid("configmaps");
    server.change("ADDED", pod);
    let states = CollectorStates::new(&Metrics::new());
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::start_with(address, WatchScope::Cluster, &dir, Some(states.clone())).await;
    running.wait_for(EventKind::Custom, 1).await;
    server.allow("configmaps");
    until("the permission", || {
        (states.all().get("kubernetes") == Some(&CollectorState::Running)).then_some(())
    })
    .await;
    let is_live = |state: WatchState| state == WatchState::Live || state == WatchState::Absent;
    until("all to be live", || states.watches().iter().all(|word| is_live(word.state)).then_some(())).await;
    server.change("MODIFIED", killed_pod);
    running.wait_for(EventKind::K8sContainerTerminated, 1).await;
    let events = running.stop().await;
    let gap = events.iter().find(|event| event.kind == EventKind::Custom).unwrap();
    let Payload::Custom(data) = &gap.payload else { panic!("{gap:?}") };
    let text = |key: &str| {
        data.attributes.iter().find(|a| a.key == key).and_then(|a| a.value.as_text()).map(Value::from)
    };
    let says =
        "not allowed to see changed configuration: grant get, list and watch of configmaps in all namespaces";
    assert!(text("gap.reason").unwrap().as_str().unwrap().starts_with(says), "{data:?}");
}
