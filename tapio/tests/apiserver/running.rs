//! A running instance that watches a real API server: the same verdicts, in time, whatever happens to the server.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{Instance, PATIENCE, data_dir, wait_for};
use crate::kubelet::{Kubelets, shop};
use crate::plane::Plane;
use crate::scenes::bad_image;
use crate::told::{causes, check, deployment, service, with};

/// From an Event in the API to a finding, see [`allowed`].
const FOUND_WITHIN: Duration = Duration::from_secs(5);
/// From the end of who watches to a standby that does, see [`allowed`].
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(15);
/// As many times as long they may take on a machine with more to do than it has processors, where programs wait for one.
const LOADED_FACTOR: u32 = 5;

/// Until an instance answers as it should; that a drain is held up is told after a minute.
const TOLD_WITHIN: Duration = Duration::from_secs(90);

/// An instance that looks at nothing but this cluster, with further settings and a configuration file.
pub fn instance(dir: &Path, plane: &Plane, further: &[&str], config: Option<&Value>) -> Instance {
    let mut args = Vec::new();
    if let Some(config) = config {
        let file = dir.join("tapio.yaml");
        std::fs::write(&file, config.to_string()).unwrap();
        args.extend(["--config".to_owned(), file.display().to_string()]);
    }
    let kubeconfig = format!("agent.kubernetes.kubeconfig={}", plane.admin());
    let others = ["ebpf", "cgroup", "network", "systemd", "filesystem"];
    let others = others.map(|part| format!("agent.{part}.enabled=false"));
    let all =
        std::iter::once(kubeconfig).chain(others).chain(further.iter().map(|setting| (*setting).to_owned()));
    args.extend(all.flat_map(|setting| ["--set".to_owned(), setting]));
    Instance::start_with(dir, &args.iter().map(String::as_str).collect::<Vec<_>>())
}

pub fn answer(instance: &Instance) -> Value {
    serde_json::from_slice(&instance.ask(&["check", "-o", "json"]).stdout).unwrap_or_default()
}

/// The first answer that is as it should be; fails with the last one.
pub fn answers(instance: &Instance, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let asked = Instant::now();
    loop {
        let answer = answer(instance);
        if is_it(&answer) {
            return answer;
        }
        assert!(asked.elapsed() < TOLD_WITHIN, "{what} did not come: {answer}\n{}", instance.log());
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// Once the instance has heard of the cluster.
pub fn hears(instance: &Instance) {
    answers(instance, "a healthy cluster", |answer| {
        matches!(answer["verdict"].as_str(), Some("healthy" | "recovered" | "active"))
    });
}

/// The instance's own metrics.
pub fn metrics(instance: &Instance) -> String {
    let mut stream = TcpStream::connect(instance.address("metrics")).unwrap();
    write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Value of a metric of the instance; zero when it is not there.
pub fn metric(instance: &Instance, series: &str) -> f64 {
    let text = metrics(instance);
    let line = text.lines().find_map(|line| line.strip_prefix(series).map(str::trim).map(str::to_owned));
    line.and_then(|value| value.parse().ok()).unwrap_or_default()
}

/// Waits until a metric of the instance is this high; fails with all of the same family.
pub fn counts(instance: &Instance, series: &str, at_least: f64) {
    let asked = Instant::now();
    while metric(instance, series) < at_least {
        let text = metrics(instance);
        let family = series.split('{').next().unwrap_or_default();
        let same: Vec<&str> = text.lines().filter(|line| line.starts_with(family)).collect();
        assert!(asked.elapsed() < PATIENCE, "{series} < {at_least}: {same:?}\n{}", instance.log());
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// What `limit`, which is promised for a machine that has room, is on this one now: [`LOADED_FACTOR`] times as much while more
/// wants to run than there are processors (load average of the last minute).
fn allowed(limit: Duration) -> Duration {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    let load: f64 = load.split(' ').next().unwrap().parse().unwrap();
    let processors = std::thread::available_parallelism().unwrap().get();
    let is_loaded = load > processors as f64;
    println!("load {load} of {processors} processors");
    if is_loaded { LOADED_FACTOR * limit } else { limit }
}

/// When the pods of this image were first seen to fail in the API.
fn failed_at(plane: &Plane) -> Instant {
    wait_for("the failure in the API", || {
        let events = plane.api.list("/api/v1/namespaces/shop/events");
        events.iter().any(|event| event["reason"] == "Failed").then(Instant::now)
    })
}

#[test]
fn an_instance_says_what_the_lists_say_within_seconds() {
    let (plane, _machines) = shop(2);
    let dir = data_dir();
    let instance = instance(dir.path(), &plane, &[], None);
    hears(&instance);
    bad_image(&plane.api, "shop");
    let failed = failed_at(&plane);
    let expected = [("image.not_found".to_owned(), "Deployment/web".to_owned())];
    let told = answers(&instance, "the finding", |answer| causes(answer) == expected);
    let took = failed.elapsed();
    println!("from the Event to the finding: {took:?}");
    assert!(took < allowed(FOUND_WITHIN), "{took:?}");
    let (_, listed) = check(&plane.admin(), &["-n", "shop"]);
    assert_eq!(causes(&listed), expected, "{listed}");
    assert_eq!(causes(&told), causes(&listed));
}

#[test]
fn a_server_that_restarts_and_forgets_costs_nothing_but_time() {
    let (mut plane, _machines) = shop(2);
    let dir = data_dir();
    let instance = instance(dir.path(), &plane, &[], None);
    hears(&instance);
    plane.stop_server();
    plane.compact();
    plane.start_server();
    plane.compact();
    // What has happened in the meantime is seen.
    bad_image(&plane.api, "shop");
    let expected = [("image.not_found".to_owned(), "Deployment/web".to_owned())];
    answers(&instance, "the finding", |answer| causes(answer) == expected);
    plane.stop_server();
    plane.start_server();
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "app", "image": "runs:3"}]}}}});
    plane.api.change("/apis/apps/v1/namespaces/shop/deployments/web", &image);
    let over = answers(&instance, "the end of it", |answer| {
        causes(answer).is_empty() && answer["verdict"] == "recovered"
    });
    // However often the lists told of it, it is one finding.
    assert_eq!(causes(&json!({"findings": over["recovered"]})), expected, "{over}");
}

#[test]
fn a_standby_takes_over_from_who_is_killed() {
    let plane = Plane::start();
    let _machines = Kubelets::start(&plane.api, &["n1"]);
    plane.api.namespace("tapio");
    let lease = ["agent.kubernetes.lease=watcher", "agent.kubernetes.lease_namespace=tapio"];
    let (first_dir, second_dir) = (data_dir(), data_dir());
    let path = "/apis/coordination.k8s.io/v1/namespaces/tapio/leases/watcher";
    let holder =
        || plane.api.get(path).and_then(|lease| lease["spec"]["holderIdentity"].as_str().map(str::to_owned));
    let first = instance(first_dir.path(), &plane, &[lease[0], lease[1], "agent.node=first"], None);
    wait_for("the first holder", || holder().filter(|holder| holder == "first"));
    let second = instance(second_dir.path(), &plane, &[lease[0], lease[1], "agent.node=second"], None);
    wait_for("the standby", || second.log().contains("stands by, first watches").then_some(()));
    first.signal("-KILL");
    let killed = Instant::now();
    wait_for("the second holder", || holder().filter(|holder| holder == "second"));
    let took = killed.elapsed();
    println!("taken over after {took:?}");
    assert!(took < allowed(TAKEN_OVER_WITHIN), "{took:?}");
    hears(&second);
}

/// What lists of one moment cannot show: that it was otherwise before.
#[test]
fn what_only_a_change_shows_is_told_by_who_watches() {
    let plane = Plane::start();
    let _machines = Kubelets::start(&plane.api, &["n1", "n2"]);
    for namespace in ["shop", "data"] {
        plane.api.namespace(namespace);
    }
    let on_n1 =
        |object| with(object, "/spec/template/spec/nodeSelector", json!({"kubernetes.io/hostname": "n1"}));
    // Evictions are of v1 since 1.22, and v1beta1 ends with 1.24.
    let policy = if plane.minor_version() < 22 { "policy/v1beta1" } else { "policy/v1" };
    let budget = json!({"apiVersion": policy, "kind": "PodDisruptionBudget",
        "metadata": {"name": "kept", "namespace": "data"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "kept"}}}});
    plane.api.make_all(&[
        deployment("shop", "web", "runs:1", 1),
        service("shop", "web"),
        on_n1(deployment("data", "kept", "runs:1", 1)),
        on_n1(deployment("data", "free", "runs:1", 1)),
        budget,
    ]);
    let pods = |app: &str| plane.api.list(&format!("/api/v1/namespaces/data/pods?labelSelector=app%3D{app}"));
    wait_for("the pods", || {
        let ready = |name: &str, namespace: &str| {
            let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{name}");
            plane.api.get(&path).is_some_and(|web| web["status"]["readyReplicas"] == 1)
        };
        (ready("web", "shop") && ready("kept", "data") && ready("free", "data")).then_some(())
    });
    let dir = data_dir();
    let instance = instance(dir.path(), &plane, &[], None);
    hears(&instance);

    let selector = json!({"spec": {"selector": {"app": "wbe"}}});
    plane.api.change("/api/v1/namespaces/shop/services/web", &selector);
    let expected = ("network.service_selector".to_owned(), "Service/web".to_owned());
    answers(&instance, "the selector", |answer| causes(answer).contains(&expected));

    plane.api.change("/api/v1/nodes/n1", &json!({"spec": {"unschedulable": true}}));
    let evict = |pod: &Value| {
        let (name, namespace) = (pod["metadata"]["name"].as_str().unwrap(), "data");
        let eviction = json!({"apiVersion": policy, "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace}});
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction");
        plane
            .api
            .ask("POST", &path, "application/json", Some(&eviction))
            .err()
            .map_or(201, |refused| refused.code)
    };
    assert_eq!((evict(&pods("free")[0]), evict(&pods("kept")[0])), (201, 429));
    let expected = ("scheduling.drain_blocked".to_owned(), "PodDisruptionBudget/kept".to_owned());
    answers(&instance, "the drain", |answer| causes(answer).contains(&expected));
}
