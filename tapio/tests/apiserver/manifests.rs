//! The manifests of `deploy/kustomize`, applied for real, and the rights that they give.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::binaries::program;
use crate::common::{PATIENCE, data_dir, wait_for};
use crate::kubelet::Kubelets;
use crate::plane::Plane;
use crate::running::{answer, counts, hears, instance, metric};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kustomize").canonicalize().unwrap()
}

/// A kustomization in `dir`: a base or overlay of ours with these of our components, and with the one for old servers where
/// the server is one.
fn overlay(plane: &Plane, dir: &Path, base: &str, components: &[&str]) -> PathBuf {
    let up = "../".repeat(dir.canonicalize().unwrap().components().count() - 1);
    let here = format!("{up}{}", deploy().strip_prefix("/").unwrap().display());
    let older = (plane.minor_version() < 22).then_some("before-1.22");
    let components = components.iter().copied().chain(older);
    let components: Vec<String> = components.map(|name| format!("{here}/components/{name}")).collect();
    let text = json!({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [format!("{here}/{base}")], "components": components});
    std::fs::write(dir.join("kustomization.yaml"), text.to_string()).unwrap();
    dir.to_owned()
}

fn kubectl(plane: &Plane, args: &[&str]) -> String {
    let output = Command::new(program("kubectl"))
        .args(["--kubeconfig", &plane.admin()])
        .args(args)
        .env("HOME", plane.dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "kubectl {args:?}: {}{}", text(&output.stderr), text(&output.stdout));
    text(&output.stdout)
}

/// Applies a base or overlay with components, as a user does.
fn applied(plane: &Plane, base: &str, components: &[&str]) -> String {
    let dir = data_dir();
    let dir = overlay(plane, dir.path(), base, components);
    kubectl(plane, &["apply", "--validate=true", "-k", dir.to_str().unwrap()])
}

fn may(plane: &Plane, account: &str, attributes: &Value) -> bool {
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
        "user": format!("system:serviceaccount:tapio:{account}"),
        "groups": ["system:serviceaccounts", "system:serviceaccounts:tapio", "system:authenticated"],
        "resourceAttributes": attributes}});
    plane.api.make(&review)["status"]["allowed"] == true
}

#[test]
fn every_manifest_is_taken_and_its_pods_are_made() {
    let plane = Plane::start();
    let _machines = Kubelets::start(&plane.api, &["n1", "n2"]);
    let said = applied(&plane, "overlays/kind", &[]);
    assert!(said.lines().filter(|line| line.ends_with("created")).count() > 20, "{said}");
    // How large their volumes are cannot be changed.
    kubectl(&plane, &["delete", "statefulsets", "--all", "--namespace", "tapio"]);
    applied(&plane, "base", &["audit", "secrets", "systemd"]);
    for name in ["v1", "v2"] {
        plane.api.make(&json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
            "spec": {"capacity": {"storage": "20Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/tmp"}}}));
    }
    plane.api.make(&json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "tapio-audit", "namespace": "tapio"}, "stringData": {"token": "t", "tls.crt": "", "tls.key": ""}}));
    let path = |plural: &str| format!("/apis/apps/v1/namespaces/tapio/{plural}");
    let asked = Instant::now();
    let ready = |object: &Value| object["status"]["readyReplicas"] == object["spec"]["replicas"];
    loop {
        let sets = plane.api.list(&path("daemonsets"));
        let all: Vec<Value> =
            ["deployments", "statefulsets"].iter().flat_map(|plural| plane.api.list(&path(plural))).collect();
        let nodes = sets.len() == 1 && sets[0]["status"]["numberReady"] == 2;
        if nodes && all.len() == 4 && all.iter().all(ready) {
            return;
        }
        assert!(
            asked.elapsed() < PATIENCE,
            "{}",
            kubectl(&plane, &["get", "all,pv,pvc,events", "--namespace", "tapio"])
        );
        std::thread::park_timeout(Duration::from_millis(500));
    }
}

#[test]
fn the_rights_of_the_agents_are_enough_and_no_more() {
    let plane = Plane::start();
    let _machines = Kubelets::start(&plane.api, &["n1"]);
    applied(&plane, "base", &[]);
    let cluster = plane.token_of("tapio", "tapio-cluster-agent");
    let cluster = plane.with_token("cluster", &cluster);
    let lease = ["agent.kubernetes.lease=tapio-cluster-agent", "agent.kubernetes.lease_namespace=tapio"];
    let (dir, node_dir) = (data_dir(), data_dir());
    let whole = format!("agent.kubernetes.kubeconfig={cluster}");
    let watching = instance(dir.path(), &plane, &[&whole, lease[0], lease[1]], None);
    hears(&watching);
    wait_for("the lease", || {
        let path = "/apis/coordination.k8s.io/v1/namespaces/tapio/leases/tapio-cluster-agent";
        plane.api.get(path)
    });
    assert_eq!(answer(&watching)["freshness"]["gaps"], json!([]), "{}", watching.log());

    let node = plane.with_token("node", &plane.token_of("tapio", "tapio-agent"));
    let own = format!("agent.kubernetes.kubeconfig={node}");
    let on_node =
        instance(node_dir.path(), &plane, &[&own, "agent.kubernetes.scope=node", "agent.node=n1"], None);
    // That its only watch has read its list says more than that the collector runs.
    counts(&on_node, "tapio_kubernetes_changes_total{change=\"list_ends\",outcome=\"converted\"}", 1.0);
    let up = metric(&on_node, "tapio_agent_collector_up{collector=\"kubernetes\"}");
    assert!(up >= 1.0, "{}", on_node.log());
    assert!(!on_node.log().contains("forbidden"), "{}", on_node.log());

    let all =
        |verb: &str, group: &str, resource: &str| json!({"verb": verb, "group": group, "resource": resource});
    for account in ["tapio-agent", "tapio-cluster-agent"] {
        for (verb, group, resource) in [
            ("list", "", "secrets"),
            ("get", "", "secrets"),
            ("create", "", "pods"),
            ("delete", "", "pods"),
            ("create", "", "pods/exec"),
            ("patch", "apps", "deployments"),
            ("update", "coordination.k8s.io", "leases"),
            ("escalate", "rbac.authorization.k8s.io", "clusterroles"),
        ] {
            assert!(
                !may(&plane, account, &all(verb, group, resource)),
                "{account}: {verb} {resource}.{group}"
            );
        }
    }
    assert!(!may(&plane, "tapio-agent", &all("list", "apps", "deployments")));
    assert!(may(&plane, "tapio-cluster-agent", &all("watch", "apps", "deployments")));
}
