//! `tapio check --watch` on a cluster: a line when the answer changes, and none when it does not.

mod api;
mod common;
mod scene;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use api::{Api, path};
use common::{tapio, wait_for};
use scene::Scene;
use serde_json::{Value, json};

fn kubeconfig(dir: &tempfile::TempDir, server: std::net::SocketAddr) -> String {
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "t",
        "clusters": [{"name": "t", "cluster": {"server": format!("http://{server}")}}],
        "users": [{"name": "t", "user": {}}],
        "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t", "namespace": "shop"}}]});
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, config.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn an_answer_is_told_when_it_changes_and_the_last_one_is_the_exit_code() {
    let (api, address) = Api::start(Scene::new(true).standing(), |_, _| {});
    let dir = tempfile::TempDir::new().unwrap();
    let config = kubeconfig(&dir, address);
    let mut command =
        tapio(&["check", "--watch", "--every", "200ms", "-o", "jsonl", "--kubeconfig", &config]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let first = next();
    assert_eq!(first["findings"][0]["root_cause"]["cause"], "memory.limit_exceeded", "{first}");
    // It looks again and again, and says nothing of what stays as it is.
    let looks = || api.with(|store| store.lists);
    let before = looks();
    wait_for("three more looks", || (looks() >= before + 3).then_some(()));
    api.with(|store| {
        store.objects.clear();
        for object in Scene::new(false).standing() {
            store.put(&path(&object), object.clone());
        }
    });
    let second = next();
    assert_eq!((&second["verdict"], &second["findings"]), (&json!("healthy"), &json!([])), "{second}");
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(lines.next().is_none(), "two answers, two lines");
}
