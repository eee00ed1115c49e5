//! `tapio check --watch` on a cluster: a line when the answer changes, and none when it does not.

mod api;
mod common;
mod scene;
mod told;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

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
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(lines.next().is_none(), "two answers, two lines");
}

fn interrupt(child: &Child) {
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
}

#[test]
fn an_interrupt_while_it_looks_ends_it_too() {
    let (api, address) = Api::start(Scene::new(true).standing(), |_, _| {});
    let dir = tempfile::TempDir::new().unwrap();
    let config = kubeconfig(&dir, address);
    let mut command =
        tapio(&["check", "--watch", "--every", "100ms", "-o", "jsonl", "--kubeconfig", &config]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    let before = api.with(|store| store.lists);
    wait_for("the second look", || (api.with(|store| store.lists) > before).then_some(()));
    // Nobody is answered meanwhile: after some rounds' time it waits for the lists.
    let ended = api.with(|_| {
        wait_for("a look that is not answered", || (api.waiting() > 0).then_some(()));
        interrupt(&child);
        wait_for("the end of it", || child.try_wait().unwrap())
    });
    assert_eq!(ended.code(), Some(2), "as the last answer said");
}

#[test]
fn who_does_not_answer_once_is_asked_again() {
    let mut world = told::World::start();
    world.tell_event();
    world.publish(&told::finding(1, "active", 0.9));
    let server = world.address().to_owned();
    let mut command = tapio(&["check", "--watch", "--every", "100ms", "-o", "jsonl", "--server", &server]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().expect("it goes on").unwrap()).unwrap() };
    assert_eq!(next()["findings"].as_array().unwrap().len(), 1);
    world.stop();
    let error = errors.next().expect("it says so").unwrap();
    assert!(error.starts_with("cannot look, trying again every 100ms: "), "{error}");
    world.serve();
    world.publish(&told::finding(2, "active", 0.9));
    while next()["findings"].as_array().unwrap().len() != 2 {}
    world.stop();
    // The same error is told once; another one may come first, while it goes down.
    while errors.next().expect("it says so again").unwrap().starts_with("it answers again") {}
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(3), "nobody has answered since");
}
