//! `tapio check` without an instance: the same scene as lists, as a dump, as a recording and from an API server.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{run, stderr, stdout};
use serde_json::{Value, json};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_schemas::UnixNanos;
use tempfile::TempDir;

const SECOND: u64 = 1_000_000_000;

/// A Deployment whose new image needs more memory than it may have, at seconds of the scene.
struct Scene {
    begin: UnixNanos,
    /// Whether the second release fails.
    fails: bool,
}

/// End of the scene.
const END_S: u64 = 300;

impl Scene {
    /// One that ends now.
    fn new(fails: bool) -> Self {
        let now = SystemClock::new().now_unix_nanos() / SECOND * SECOND;
        Self { begin: UnixNanos(now).minus(END_S * SECOND), fails }
    }

    fn at(&self, second: u64) -> UnixNanos {
        self.begin.plus(second * SECOND)
    }

    fn time(&self, second: u64) -> String {
        let text = self.at(second).to_string();
        format!("{}Z", text.split('.').next().unwrap_or_default().trim_end_matches('Z'))
    }

    fn object(&self, kind: &str, version: &str, name: &str, rest: Value) -> Value {
        let namespace = if kind == "Node" { Value::Null } else { json!("shop") };
        let mut object = json!({"kind": kind, "apiVersion": version, "metadata": {"name": name, "namespace": namespace,
            "uid": format!("{kind}-{name}"), "creationTimestamp": "2020-01-01T00:00:00Z", "labels": {"app": "api"}}});
        merge(&mut object, rest);
        object
    }

    fn node(&self) -> Value {
        let ready =
            json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}]);
        self.object("Node", "v1", "n1", json!({"status": {"conditions": ready}}))
    }

    fn deployment(&self, image: &str, generation: u64) -> Value {
        let spec = json!({"replicas": 1, "template": template(image)});
        self.object(
            "Deployment",
            "apps/v1",
            "api",
            json!({"metadata": {"generation": generation}, "spec": spec}),
        )
    }

    fn set(&self, image: &str, name: &str, revision: u64, created: &str) -> Value {
        let metadata = json!({"creationTimestamp": created, "annotations":
            {"deployment.kubernetes.io/revision": revision.to_string()},
            "ownerReferences": [{"kind": "Deployment", "name": "api", "controller": true}]});
        self.object(
            "ReplicaSet",
            "apps/v1",
            name,
            json!({"metadata": metadata, "spec": {"template": template(image)}}),
        )
    }

    /// The pod of the second release, after so many kills.
    fn pod(&self, kills: u64) -> Value {
        let metadata = json!({"creationTimestamp": self.time(60),
            "ownerReferences": [{"kind": "ReplicaSet", "name": "api-5f6585d649", "controller": true}]});
        let killed_at = self.time(70 + kills * 30);
        let (state, ready) = match kills {
            0 => (json!({"running": {"startedAt": self.time(62)}}), "True"),
            _ => (
                json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}}),
                "False",
            ),
        };
        let since = if kills == 0 { self.time(62) } else { killed_at.clone() };
        let mut status = json!({"name": "app", "containerID": format!("containerd://c{kills}"), "restartCount": kills,
            "state": state});
        if kills > 0 {
            status["lastState"] = json!({"terminated": {"containerID": format!("containerd://c{kills}"), "exitCode": 137,
                "reason": "OOMKilled", "finishedAt": killed_at}});
        }
        let conditions = json!([{"type": "PodScheduled", "status": "True", "lastTransitionTime": self.time(60)},
            {"type": "Ready", "status": ready, "reason": "ContainersNotReady", "lastTransitionTime": since}]);
        let rest = json!({"metadata": metadata, "spec": {"nodeName": "n1", "containers": [{"name": "app"}]},
            "status": {"phase": "Running", "conditions": conditions, "containerStatuses": [status]}});
        self.object("Pod", "v1", "api-5f6585d649-x2x2x", rest)
    }

    fn event(&self, count: u64, last: u64) -> Value {
        json!({"kind": "Event", "apiVersion": "v1", "metadata": {"name": "e1", "namespace": "shop", "uid": "e1"},
            "involvedObject": {"kind": "Pod", "namespace": "shop", "name": "api-5f6585d649-x2x2x",
                "uid": "Pod-api-5f6585d649-x2x2x", "fieldPath": "spec.containers{app}"},
            "reason": "BackOff", "message": "Back-off restarting failed container app in pod api", "type": "Warning",
            "count": count, "firstTimestamp": self.time(103), "lastTimestamp": self.time(last)})
    }

    /// All that stands at the end.
    fn standing(&self) -> Vec<Value> {
        let mut all = vec![
            self.node(),
            self.deployment("shop/api:2", 2),
            self.set("shop/api:1", "api-6b8f9c7d54", 1, "2020-01-01T00:00:00Z"),
            self.set("shop/api:2", "api-5f6585d649", 2, &self.time(60)),
            self.pod(if self.fails { 7 } else { 0 }),
        ];
        if self.fails {
            all.push(self.event(9, END_S - 5));
        } else {
            // Something has to say what time it is.
            let lease = json!({"spec": {"renewTime": self.time(END_S)}});
            all.push(self.object("Lease", "coordination.k8s.io/v1", "n1", lease));
        }
        all
    }

    /// The same as watches told it.
    fn recording(&self) -> String {
        let mut lines = vec![
            (0, "ADDED", self.node()),
            (0, "ADDED", self.deployment("shop/api:1", 1)),
            (0, "ADDED", self.set("shop/api:1", "api-6b8f9c7d54", 1, "2020-01-01T00:00:00Z")),
            (60, "MODIFIED", self.deployment("shop/api:2", 2)),
            (60, "ADDED", self.set("shop/api:2", "api-5f6585d649", 2, &self.time(60))),
            (62, "ADDED", self.pod(0)),
        ];
        if self.fails {
            for kills in 1..=7 {
                lines.push((70 + kills * 30, "MODIFIED", self.pod(kills)));
                lines.push((73 + kills * 30, "event", self.event(kills, 73 + kills * 30)));
            }
            lines.push((END_S - 5, "event", self.event(9, END_S - 5)));
        }
        lines.push((END_S, "MODIFIED", self.node()));
        let line = |(at, word, object): (u64, &str, Value)| {
            let (signal, request) = match word {
                "event" => ("k8s_event", object),
                word => ("k8s_object", json!({"type": word, "object": object})),
            };
            json!({"at_unix_nano": self.at(at).0.to_string(), "signal": signal, "request": request})
                .to_string()
                + "\n"
        };
        lines.into_iter().map(line).collect()
    }
}

fn template(image: &str) -> Value {
    json!({"spec": {"containers": [{"name": "app", "image": image}]}})
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, from) => *into = from,
    }
}

fn written(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path
}

fn list(items: &[Value]) -> String {
    json!({"apiVersion": "v1", "items": items, "kind": "List"}).to_string()
}

/// As `kubectl cluster-info dump` writes it: a list of one kind a file, whose items do not say their kind.
fn dump(dir: &TempDir, scene: &Scene) -> PathBuf {
    for (kind, file) in [
        ("Node", "nodes"),
        ("Deployment", "shop/deployments"),
        ("ReplicaSet", "shop/replicasets"),
        ("Pod", "shop/pods"),
        ("Event", "shop/events"),
    ] {
        let of_kind = scene.standing().into_iter().filter(|object| object["kind"] == kind);
        let items: Vec<Value> = of_kind
            .map(|mut object| {
                object.as_object_mut().unwrap().remove("kind");
                object.as_object_mut().unwrap().remove("apiVersion");
                object
            })
            .collect();
        let list = json!({"kind": format!("{kind}List"), "apiVersion": "v1", "metadata": {}, "items": items});
        written(dir, &format!("dump/{file}.json"), &list.to_string());
    }
    written(dir, "dump/shop/api-5f6585d649-x2x2x/logs.txt", "==== START logs ====\n");
    dir.path().join("dump")
}

fn check(args: &[&str]) -> (Option<i32>, Value, Output) {
    let output = run(&[&["check", "-o", "json"], args].concat());
    let answer = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), answer, output)
}

fn from(path: &Path) -> (Option<i32>, Value, Output) {
    check(&["--from", path.to_str().unwrap()])
}

/// Verdict, and cause and place of each finding.
fn gist(answer: &Value) -> (Value, Vec<(Value, Value, Value)>) {
    let findings = answer["findings"].as_array().cloned().unwrap_or_default();
    let root = |f: &Value| {
        (f["status"].clone(), f["root_cause"]["cause"].clone(), f["root_cause"]["entity"].clone())
    };
    (answer["verdict"].clone(), findings.iter().map(root).collect())
}

/// An API server that lists what stands, and forbids some kinds.
fn serve(objects: Vec<Value>, forbidden: &'static [&'static str]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let request = head.next().unwrap_or_default();
            let _ = head.find(String::is_empty);
            let path = request.split([' ', '?']).nth(1).unwrap_or_default();
            assert!(request.starts_with("GET "), "only reads: {request}");
            let plural = path.rsplit('/').next().unwrap_or_default();
            let (status, body) = if forbidden.contains(&plural) {
                (
                    "403 Forbidden",
                    json!({"kind": "Status", "code": 403, "message": format!("{plural} is forbidden")}),
                )
            } else {
                let kind = |object: &&Value| {
                    format!("{}s", object["kind"].as_str().unwrap().to_lowercase()) == plural
                };
                let items: Vec<&Value> = objects.iter().filter(kind).collect();
                ("200 OK", json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}))
            };
            let body = body.to_string();
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    address
}

fn kubeconfig(dir: &TempDir, server: SocketAddr) -> PathBuf {
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "t",
        "clusters": [{"name": "t", "cluster": {"server": format!("http://{server}")}}],
        "users": [{"name": "t", "user": {}}],
        "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t", "namespace": "shop"}}]});
    written(dir, "kubeconfig", &config.to_string())
}

#[test]
fn the_same_facts_give_the_same_verdict_in_every_form() {
    let (dir, scene) = (TempDir::new().unwrap(), Scene::new(true));
    let (code, recorded, output) = from(&written(&dir, "scene.jsonl", &scene.recording()));
    assert_eq!(code, Some(2), "{}", stderr(&output));
    let expected = gist(&recorded);
    let [(status, cause, place)] = &expected.1[..] else { panic!("{expected:?}") };
    assert_eq!((status, cause), (&json!("active"), &json!("memory.limit_exceeded")));
    assert_eq!((&place["kind"], &place["name"]), (&json!("Deployment"), &json!("api")));

    let mut standing = scene.standing();
    let (code, listed, _) = from(&written(&dir, "all.json", &list(&standing)));
    assert_eq!((code, gist(&listed)), (Some(2), expected.clone()));
    standing.reverse();
    let (_, reversed, _) = from(&written(&dir, "reversed.json", &list(&standing)));
    assert_eq!(reversed, listed, "the order of a list says nothing");
    let (code, dumped, _) = from(&dump(&dir, &scene));
    assert_eq!((code, gist(&dumped)), (Some(2), expected.clone()));

    let config = kubeconfig(&dir, serve(standing, &["configmaps"]));
    let (code, asked, output) = check(&["--kubeconfig", config.to_str().unwrap()]);
    assert_eq!((code, gist(&asked)), (Some(2), expected), "{}", stderr(&output));
    assert!(stderr(&output).starts_with("asking the cluster at http://127.0.0.1:"), "{}", stderr(&output));
    let gaps = asked["freshness"]["gaps"].to_string();
    assert!(gaps.contains("grant list of configmaps in all namespaces: configmaps is forbidden"), "{gaps}");
}

#[test]
fn the_story_says_what_changed_since_when_and_what_to_do_on_one_screen() {
    let (dir, scene) = (TempDir::new().unwrap(), Scene::new(true));
    let file = written(&dir, "all.json", &list(&scene.standing()));
    let output = run(&["check", "--from", file.to_str().unwrap()]);
    let text = stdout(&output);
    let changed = "the image was changed from shop/api:1 to shop/api:2";
    let since = scene.time(60);
    for part in [changed, &since[11..19], "Root cause  memory.limit_exceeded", "\nDo ", "$ kubectl -n shop"] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    assert!(text.lines().count() <= 40, "{text}");
}

#[test]
fn only_what_was_asked_for_is_told() {
    let (dir, scene) = (TempDir::new().unwrap(), Scene::new(true));
    let file = written(&dir, "all.json", &list(&scene.standing()));
    let code = |args: &[&str]| check(&[&["--from", file.to_str().unwrap()], args].concat()).0;
    for found in [&["-n", "shop"][..], &["-l", "app=api"], &["deploy/api"], &["shop/deployment/api", "-A"]] {
        assert_eq!(code(found), Some(2), "{found:?}");
    }
    for other in [&["-n", "other"][..], &["-l", "app!=api"], &["deploy/other"]] {
        assert_eq!(code(other), Some(0), "{other:?}");
    }
    assert_eq!(code(&["-l", "app in"]), Some(1));
}

#[test]
fn health_is_said_only_of_what_is_there() {
    let (dir, scene) = (TempDir::new().unwrap(), Scene::new(false));
    let (code, answer, _) = from(&written(&dir, "well.json", &list(&scene.standing())));
    assert_eq!((code, &answer["verdict"]), (Some(0), &json!("healthy")));
    let watermark: UnixNanos = answer["freshness"]["watermark"].as_str().unwrap().parse().unwrap();
    assert_eq!(watermark, scene.at(END_S), "now is the newest time in the dump");
    let (code, answer, _) = from(&written(&dir, "well.jsonl", &scene.recording()));
    assert_eq!((code, &answer["verdict"]), (Some(0), &json!("healthy")));

    let without_pods: Vec<Value> = scene.standing().into_iter().filter(|o| o["kind"] != "Pod").collect();
    let (code, answer, _) = from(&written(&dir, "no-pods.json", &list(&without_pods)));
    assert_eq!((code, &answer["reason"]), (Some(3), &json!("the dump has no pods")));
    assert_eq!(from(&written(&dir, "empty.json", &list(&[]))).0, Some(3));
    let (code, _, output) = from(&written(&dir, "cut.json", "{\"kind\":\"List\",\"items\":[{"));
    assert_eq!(code, Some(1));
    assert!(stderr(&output).contains("cut.json") && stderr(&output).contains("EOF"), "{}", stderr(&output));
}

#[test]
fn a_cluster_whose_pods_cannot_be_listed_is_not_called_healthy() {
    let (dir, scene) = (TempDir::new().unwrap(), Scene::new(false));
    let config = kubeconfig(&dir, serve(scene.standing(), &["pods"]));
    let (code, answer, _) = check(&["--kubeconfig", config.to_str().unwrap()]);
    assert_eq!((code, &answer["verdict"]), (Some(3), &json!("not_provable")));
    let gaps = answer["freshness"]["gaps"].to_string();
    assert!(gaps.contains("only namespace shop was looked at"), "{gaps}");
    assert!(gaps.contains("grant list of pods in namespace shop"), "{gaps}");
}

#[test]
fn as_a_plugin_it_asks_the_cluster_of_the_context() {
    let (dir, scene) = (TempDir::new().unwrap(), Scene::new(true));
    let config = kubeconfig(&dir, serve(scene.standing(), &[]));
    let plugin = dir.path().join("kubectl-tapio");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tapio"), &plugin).unwrap();
    let mut command = common::clean(&plugin);
    let output = command.env("KUBECONFIG", &config).args(["-n", "shop", "-o", "json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(gist(&answer).1[0].1, json!("memory.limit_exceeded"));
}
