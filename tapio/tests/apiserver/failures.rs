//! Failures of a real control plane: the right cause at the right entity.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::wait_for;
use crate::kubelet::{Kubelets, shop};
use crate::plane::Plane;
use crate::scenes::{self, Scene};
use crate::told::{causes, check};

/// Within this time a failure has to be found by `tapio check`; some controllers wait for a minute.
const FOUND_WITHIN: Duration = Duration::from_secs(100);

#[test]
fn what_the_api_refuses_is_told() {
    told_apart(scenes::refused());
}

#[test]
fn why_pods_find_no_machine_is_told() {
    told_apart(scenes::unscheduled());
}

#[test]
fn why_pods_do_not_come_up_is_told() {
    told_apart(scenes::failing());
}

#[test]
fn what_is_wrong_beside_the_pods_is_told() {
    told_apart(scenes::around());
}

#[test]
fn a_machine_that_falls_silent_is_told() {
    let (plane, machines) = shop(4);
    wait_for("pods on both machines", || {
        let web = plane.api.get("/apis/apps/v1/namespaces/shop/deployments/web")?;
        (web["status"]["readyReplicas"] == 4).then_some(())
    });
    machines.kill("n2");
    let (killed, expected) = (Instant::now(), [("node.not_ready".to_owned(), "Node/n2".to_owned())]);
    loop {
        let (_, answer) = check(&plane.admin(), &["-A"]);
        if causes(&answer) == expected {
            return;
        }
        assert!(killed.elapsed() < FOUND_WITHIN, "{answer}");
        std::thread::park_timeout(Duration::from_secs(1));
    }
}

/// Makes all of them in one cluster, and asks for each namespace alone until all are told.
fn told_apart(scenes: Vec<Scene>) {
    let plane = Plane::start();
    let _machines = Kubelets::start(&plane.api, &["n1", "n2", "n3"]);
    for scene in &scenes {
        plane.api.namespace(scene.namespace);
        let account = format!("/api/v1/namespaces/{}/serviceaccounts/default", scene.namespace);
        wait_for("the namespace's account", || plane.api.get(&account));
        plane.api.make_all(&scene.objects);
    }
    scenes.iter().for_each(|scene| {
        settled(&plane, scene.namespace);
        (scene.then)(&plane.api);
    });
    let made = Instant::now();
    let mut open: Vec<&Scene> = scenes.iter().collect();
    let mut answers: Vec<Value> = Vec::new();
    while !open.is_empty() && made.elapsed() < FOUND_WITHIN {
        answers.clear();
        open.retain(|scene| {
            let (code, answer) = check(&plane.admin(), &["-n", scene.namespace]);
            let found = causes(&answer);
            // What is wrong with the cluster is told in each of its namespaces.
            let expected = (scene.cause.to_owned(), scene.entity.to_owned());
            let own =
                found.iter().filter(|(_, entity)| *entity == expected.1 || !entity.starts_with("Namespace/"));
            let is_told = code == Some(2) && own.eq([&expected]);
            if is_told {
                println!("{}: {} after {:?}", scene.namespace, scene.cause, made.elapsed());
            } else {
                answers.push(answer);
            }
            !is_told
        });
        std::thread::park_timeout(Duration::from_secs(1));
    }
    for (scene, answer) in open.iter().zip(&answers) {
        println!("{}: {} {}, but {:?}\n{answer}", scene.namespace, scene.cause, scene.entity, causes(answer));
    }
    let missed: Vec<&str> = open.iter().map(|scene| scene.namespace).collect();
    assert!(missed.is_empty(), "not told within {FOUND_WITHIN:?}: {missed:?}");
}

/// Waits until the pods that a namespace's Deployments could make are there, ready or not.
fn settled(plane: &Plane, namespace: &str) {
    let deployments = plane.api.list(&format!("/apis/apps/v1/namespaces/{namespace}/deployments"));
    for deployment in deployments {
        let name = deployment["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{name}");
        wait_for("a look of the controller", || {
            let now = plane.api.get(&path)?;
            (now["status"]["observedGeneration"] == now["metadata"]["generation"]).then_some(())
        });
    }
}
