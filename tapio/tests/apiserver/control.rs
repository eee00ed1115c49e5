//! What a real control plane says of itself: its metrics, its checks, and what it audits.

use serde_json::json;

use crate::common::data_dir;
use crate::kubelet::Kubelets;
use crate::plane::Plane;
use crate::running::{answers, counts, hears, instance, metric, metrics};
use crate::told::{causes, deployment};

/// What a role that may read metrics sees, as the account of the cluster agent.
fn monitor(plane: &Plane) -> String {
    let rbac = "rbac.authorization.k8s.io";
    plane.api.make_all(&[
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "monitor", "namespace": "shop"}}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "monitor"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "system:monitoring"},
            "subjects": [{"kind": "ServiceAccount", "name": "monitor", "namespace": "shop"}]}),
    ]);
    let file = plane.dir.path().join("monitor-token");
    std::fs::write(&file, plane.token_of("shop", "monitor")).unwrap();
    file.display().to_string()
}

#[test]
fn the_parts_of_the_control_plane_are_scraped_and_a_dead_one_is_told() {
    let mut plane = Plane::start();
    let _machines = Kubelets::start(&plane.api, &["n1"]);
    plane.api.namespace("shop");
    let token = monitor(&plane);
    let [etcd, scheduler, controllers] = plane.metrics();
    let secure =
        |role: &str, url: &str| json!({"role": role, "url": url, "token_file": token, "insecure": true});
    let targets = json!([{"role": "api_server"}, {"role": "etcd", "url": etcd},
        secure("scheduler", &scheduler), secure("controller_manager", &controllers)]);
    let config = json!({"agent": {"scrape": {"interval": "2s", "targets": targets}}});
    let dir = data_dir();
    let instance = instance(dir.path(), &plane, &[], Some(&config));
    hears(&instance);
    counts(&instance, "tapio_scrape_scrapes_total{outcome=\"read\"}", 12.0);
    let said = metrics(&instance);
    let others: Vec<&str> =
        said.lines().filter(|line| line.starts_with("tapio_scrape_scrapes_total")).collect();
    assert_eq!(others.len(), 1, "{others:?}");
    assert_eq!(metric(&instance, "tapio_scrape_broken_lines_total"), 0.0);

    plane.stop_scheduler();
    plane.api.make(&deployment("shop", "web", "runs:1", 1));
    let answer = answers(&instance, "the dead scheduler", |answer| !causes(answer).is_empty());
    let found = causes(&answer);
    assert_eq!(found.len(), 1, "{answer}");
    assert!(found[0].0.starts_with("controlplane.") && found[0].1 == "Component/kube-scheduler", "{answer}");
}

#[test]
fn what_the_api_server_audits_says_who_did_it() {
    let plane = Plane::start();
    let _machines = Kubelets::start(&plane.api, &["n1"]);
    plane.api.namespace("shop");
    let config = json!({"agent": {"audit": plane.audit()}});
    let dir = data_dir();
    let instance = instance(dir.path(), &plane, &[], Some(&config));
    hears(&instance);
    plane.api.make(&deployment("shop", "web", "runs:1", 1));
    counts(&instance, "tapio_audit_requests_total{outcome=\"taken\"}", 1.0);
    crate::scenes::bad_image(&plane.api, "shop");
    let answer = answers(&instance, "the finding with who did it", |answer| {
        answer["findings"][0]["chain"].to_string().contains("by admin")
    });
    assert_eq!(causes(&answer), [("image.not_found".to_owned(), "Deployment/web".to_owned())], "{answer}");
    let said = metrics(&instance);
    let refused: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("tapio_audit_requests_total") && !line.contains("taken"))
        .collect();
    assert!(refused.is_empty(), "{refused:?}");
}
