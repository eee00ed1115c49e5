//! Failures on a real machine: containers that a kubelet, containerd and runc start, kill, probe and pull.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{data_dir, wait_for};
use crate::image::{IMAGE, empty_registry};
use crate::machine::{Machine, NAMESPACE, NODE};
use crate::plane::Plane;
use crate::process::free_port;
use crate::running::{answer, answers, hears, instance};
use crate::told::{causes, check, deployment, with};

/// Within this time all have to be found; a kubelet waits longer before each further start.
const FOUND_WITHIN: Duration = Duration::from_secs(150);

/// A Deployment of one container that runs this in the network of its machine.
fn running(name: &str, image: &str, command: &[&str]) -> Value {
    let pod = json!({"hostNetwork": true, "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "app", "image": image, "command": command}]});
    with(deployment(NAMESPACE, name, image, 1), "/spec/template/spec", pod)
}

fn with_container(object: Value, field: &str, value: Value) -> Value {
    with(object, &format!("/spec/template/spec/containers/0/{field}"), value)
}

/// What is made, and what is wrong with it. At `closed` nobody listens.
fn failures(closed: u16) -> Vec<(Value, (&'static str, &'static str))> {
    let memory = json!({"limits": {"memory": "32Mi"}});
    let greedy =
        running("greedy", IMAGE, &["/bin/sh", "-c", "sleep 3; exec dd if=/dev/zero of=/dev/null bs=200M"]);
    let port = free_port();
    let served =
        running("served", IMAGE, &["/bin/httpd", "-f", "-p", &format!("127.0.0.1:{port}"), "-h", "/tmp"]);
    let probe = json!({"httpGet": {"host": "127.0.0.1", "path": "/alive", "port": port},
        "periodSeconds": 1, "failureThreshold": 2});
    vec![
        (
            running("crash", IMAGE, &["/bin/sh", "-c", "echo 'cannot open the ledger'; exit 3"]),
            ("code.crash_exit", "Deployment/crash"),
        ),
        (with_container(greedy, "resources", memory), ("memory.limit_exceeded", "Deployment/greedy")),
        (
            running("absent", &format!("{}/absent:1", empty_registry()), &["/bin/sh"]),
            ("image.not_found", "Deployment/absent"),
        ),
        (
            running("unreached", &format!("127.0.0.1:{closed}/box:1"), &["/bin/sh"]),
            ("image.registry_unreachable", "Deployment/unreached"),
        ),
        (with_container(served, "livenessProbe", probe), ("probe.kills_healthy", "Deployment/served")),
    ]
}

#[test]
fn what_a_real_kubelet_does_is_told() {
    let plane = Plane::start();
    let machine = Machine::start(&plane);
    plane.api.namespace(NAMESPACE);
    let namespace = format!("/api/v1/namespaces/{NAMESPACE}");
    wait_for("the namespace's account", || plane.api.get(&format!("{namespace}/serviceaccounts/default")));
    plane.api.make(&running("web", IMAGE, &["/bin/sleep", "1000000"]));
    let web = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/web");
    let ready = || plane.api.get(&web).filter(|web| web["status"]["readyReplicas"] == 1);
    let started = Instant::now();
    while ready().is_none() {
        let pods = || Value::from(plane.api.list(&format!("{namespace}/pods")));
        assert!(started.elapsed() < FOUND_WITHIN, "no pod runs: {}\n{}", pods(), machine.said());
        std::thread::park_timeout(Duration::from_millis(250));
    }
    // A kubelet tells at its start what the kernel has killed before, whoever that was: it is not wrong now.
    let events = plane.api.list("/api/v1/namespaces/default/events");
    let told = events.iter().filter(|event| event["reason"] == "SystemOOM").count();
    println!("old kills that the kubelet tells at its start: {told}");
    let dir = data_dir();
    let node = format!("agent.node={NODE}");
    let settings = ["agent.ebpf.enabled=true", "agent.cgroup.enabled=true", &node];
    let instance = instance(dir.path(), &plane, &settings, None);
    hears(&instance);
    let (code, healthy) = check(&plane.admin(), &["-A"]);
    assert_eq!((code, &healthy["verdict"]), (Some(0), &json!("healthy")), "{healthy}");

    let closed = free_port();
    let (objects, mut expected): (Vec<Value>, Vec<_>) = failures(closed).into_iter().unzip();
    expected.sort_unstable();
    plane.api.make_all(&objects);
    let made = Instant::now();
    // The kernel sees in its own way that nobody listens where containerd asks for an image.
    let refused = ("dependency.refused".to_owned(), format!("External/127.0.0.1:{closed}"));
    let is_right = |answer: &Value| {
        let mut found = causes(answer);
        found.retain(|one| *one != refused);
        found.sort_unstable();
        found.iter().map(|(cause, entity)| (cause.as_str(), entity.as_str())).eq(expected.iter().copied())
    };
    let (mut listed, mut watched) = (None, None);
    while listed.is_none() || watched.is_none() {
        let answers = [check(&plane.admin(), &["-A"]).1, answer(&instance)];
        for (told, answer) in [&mut listed, &mut watched].into_iter().zip(&answers) {
            if told.is_none() && is_right(answer) {
                *told = Some((made.elapsed(), answer.clone()));
            }
        }
        let [by_lists, by_watches] = answers.each_ref().map(causes);
        assert!(
            made.elapsed() < FOUND_WITHIN,
            "by lists {by_lists:#?}\nby an instance {by_watches:#?}\n{}\n{}",
            answers[0],
            answers[1]
        );
        std::thread::park_timeout(Duration::from_secs(1));
    }
    let ((by_lists, listed), (by_watches, _)) = (listed.unwrap(), watched.unwrap());
    println!("all told by lists after {by_lists:?}, by an instance after {by_watches:?}");
    let words = "cannot open the ledger";
    assert!(listed.to_string().contains(words), "the last words of the container: {listed}");
    // From the file that the kubelet keeps; the agent may read it after the finding was told.
    answers(&instance, "the last words", |answer| answer.to_string().contains(words));
}
