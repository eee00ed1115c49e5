//! `tapio check` without an instance: the same scene as lists, as a dump, as a recording and from an API server.

mod common;
mod scene;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{run, stderr, stdout};
use scene::{END_S, Scene};
use serde_json::{Value, json};
use tapio_schemas::UnixNanos;
use tempfile::TempDir;

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

/// What the container says before it ends.
const LOG: &str = "listening on 8080\nloaded 1 of 900 orders\nloaded 2 of 900 orders\n\
    cannot keep 512 MiB of orders, db=postgres://api:hunter2@db:5432\n";

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
            let (status, body) = if plural == "log" && !forbidden.contains(&"log") {
                ("200 OK", Value::Null)
            } else if forbidden.contains(&plural) {
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
            let body = if body.is_null() { LOG.to_owned() } else { body.to_string() };
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
fn one_clock_that_is_ahead_does_not_move_the_time_of_the_others() {
    let dir = TempDir::new().unwrap();
    let scene = Scene::new(true);
    let hours_ahead = scene.time(END_S + 2 * 3600);
    let mut ahead = scene.node();
    ahead["metadata"]["name"] = json!("n2");
    ahead["status"]["conditions"][0]["lastTransitionTime"] = json!(hours_ahead);
    let mut said = scene.event(1, 0);
    said["metadata"]["uid"] = json!("e2");
    for key in ["firstTimestamp", "lastTimestamp"] {
        said[key] = json!(hours_ahead);
    }
    let mut standing = scene.standing();
    standing.extend([ahead, said]);
    let config = kubeconfig(&dir, serve(standing, &[]));
    let (code, asked, output) = check(&["--kubeconfig", config.to_str().unwrap()]);
    assert_eq!(code, Some(2), "{}", stderr(&output));
    let finding = &asked["findings"][0];
    let at = |value: &Value| value.as_str().unwrap().parse::<UnixNanos>().unwrap();
    let limit = scene.at(END_S + 6 * 60 + 30);
    assert!(at(&asked["freshness"]["watermark"]) <= limit && at(&finding["updated_at"]) <= limit, "{asked}");
    assert!(asked["freshness"]["gaps"].to_string().contains("a clock is wrong"), "{asked}");
}

/// A machine that nobody has heard of since, and of which nobody says anything again: as watches told it, and as it stands.
fn silent_machine(scene: &Scene, minutes: u64) -> (String, Vec<Value>) {
    let machine = |name: &str, status: &str, since: &str| {
        let mut node = scene.node();
        node["metadata"]["name"] = json!(name);
        node["metadata"]["uid"] = json!(name);
        node["status"]["conditions"] = json!([{"type": "Ready", "status": status, "reason": "NodeStatusUnknown",
            "message": "Kubelet stopped posting node status.", "lastTransitionTime": since}]);
        node
    };
    let pod = |ready: &str, since: u64| {
        let mut pod = scene.pod(0);
        pod["status"]["conditions"][1] = json!({"type": "Ready", "status": ready, "reason": "NodeNotReady", "lastTransitionTime": scene.time(since)});
        pod
    };
    let lease = |second: u64| {
        let renewed = json!({"spec": {"renewTime": scene.time(second)}});
        scene.object("Lease", "coordination.k8s.io/v1", "n2", renewed)
    };
    let long_ago = "2020-01-01T00:00:00Z";
    let (down, other, end) =
        (machine("n1", "Unknown", &scene.time(70)), machine("n2", "True", long_ago), 70 + minutes * 60);
    let mut lines = vec![
        (0, "ADDED", machine("n1", "True", long_ago)),
        (0, "ADDED", other.clone()),
        (0, "ADDED", scene.deployment("shop/api:1", 1)),
        (62, "ADDED", pod("True", 62)),
        (70, "MODIFIED", down.clone()),
        (75, "MODIFIED", pod("False", 75)),
    ];
    lines.extend((80..=end).step_by(10).map(|second| (second, "MODIFIED", lease(second))));
    let line = |(second, word, object): (u64, &str, Value)| {
        let request = json!({"type": word, "object": object});
        json!({"at_unix_nano": scene.at(second).0.to_string(), "signal": "k8s_object", "request": request})
            .to_string()
            + "\n"
    };
    let standing = vec![down, other, scene.deployment("shop/api:1", 1), pod("False", 75), lease(end)];
    (lines.into_iter().map(line).collect(), standing)
}

#[test]
fn a_state_that_lasts_is_active_in_every_form_although_nobody_mentions_it_again() {
    let dir = TempDir::new().unwrap();
    let mut scene = Scene::new(true);
    scene.begin = scene.begin.minus(3_600_000_000_000);
    let (recording, standing) = silent_machine(&scene, 40);
    let (code, recorded, output) = from(&written(&dir, "silent.jsonl", &recording));
    assert_eq!(code, Some(2), "{} {}", stdout(&output), stderr(&output));
    let (code, listed, _) = from(&written(&dir, "silent.json", &list(&standing)));
    assert_eq!(code, Some(2));
    assert_eq!(gist(&recorded), gist(&listed));
    let [(status, _, place)] = &gist(&recorded).1[..] else { panic!("{recorded}") };
    assert_eq!((status, &place["kind"], &place["name"]), (&json!("active"), &json!("Node"), &json!("n1")));
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
fn a_container_that_fails_is_quoted_without_its_secrets() {
    let (dir, scene) = (TempDir::new().unwrap(), Scene::new(true));
    let config = kubeconfig(&dir, serve(scene.standing(), &[]));
    let output = run(&["check", "--kubeconfig", config.to_str().unwrap()]);
    let text = stdout(&output);
    let quoted = "Last words of shop/api-5f6585d649-x2x2x container app:\n            listening on 8080\n            \
                  loaded 2 of 900 orders (2 like it)\n            cannot keep 512 MiB of orders, db=postgres://api:***@db:5432\n";
    assert!(text.contains(quoted) && !text.contains("hunter2"), "{text}");

    let config = kubeconfig(&dir, serve(scene.standing(), &["log"]));
    let (code, answer, _) = check(&["--kubeconfig", config.to_str().unwrap()]);
    assert_eq!((code, &answer["logs"]), (Some(2), &Value::Null), "the verdict does not need them");
    let gaps = answer["freshness"]["gaps"].to_string();
    assert!(gaps.contains("not allowed: grant get of pods/log in namespace shop"), "{gaps}");
}

#[test]
fn only_what_was_asked_for_is_told() {
    let (dir, scene) = (TempDir::new().unwrap(), Scene::new(true));
    let file = written(&dir, "all.json", &list(&scene.standing()));
    let code = |args: &[&str]| check(&[&["--from", file.to_str().unwrap()], args].concat()).0;
    for found in [&["-n", "shop"][..], &["-l", "app=api"], &["deploy/api"], &["shop/deployment/api", "-A"]] {
        assert_eq!(code(found), Some(2), "{found:?}");
    }
    for other in [&["-n", "other"][..], &["-l", "app!=api"], &["node/n1"]] {
        assert_eq!(code(other), Some(0), "{other:?}");
    }
    assert_eq!(code(&["-l", "app in"]), Some(1));
    // A name that was misspelt is not healthy.
    let (code, answer, _) = check(&["--from", file.to_str().unwrap(), "-n", "shop", "deploy/apy"]);
    let reason = json!("Deployment apy in namespace shop is not among the objects that were listed");
    assert_eq!((code, &answer["verdict"], &answer["reason"]), (Some(3), &json!("not_provable"), &reason));
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
