//! `tapio fix` on a real API server: its dry run, its review of access, its patches, its controllers.

use std::process::Output;

use serde_json::{Value, json};

use crate::common::{run, stderr, stdout, wait_for};
use crate::kubelet::Kubelets;
use crate::plane::Plane;
use crate::scenes::bad_image;
use crate::told::{causes, check, deployment, with};

const WEB: &str = "/apis/apps/v1/namespaces/shop/deployments/web";

/// A cluster in which a good Deployment has been told to run an image that does not exist.
struct World {
    plane: Plane,
    _machines: Kubelets,
}

impl World {
    /// One that has this Deployment beside the ConfigMap `modes`.
    fn start(web: &Value) -> Self {
        let plane = Plane::start();
        let machines = Kubelets::start(&plane.api, &["n1", "n2"]);
        plane.api.namespace("shop");
        plane.api.make(&json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"mode": "fast"},
            "metadata": {"name": "modes", "namespace": "shop"}}));
        plane.api.make(web);
        bad_image(&plane.api, "shop");
        wait_for("the finding", || {
            let (_, answer) = check(&plane.admin(), &["-n", "shop"]);
            (causes(&answer) == [("image.not_found".to_owned(), "Deployment/web".to_owned())]).then_some(())
        });
        Self { plane, _machines: machines }
    }

    fn fix(&self, kubeconfig: &str, args: &[&str]) -> (Option<i32>, String) {
        let dir = self.plane.dir.path().to_str().unwrap();
        let mut all = vec!["fix", "shop/deploy/web", "--kubeconfig", kubeconfig, "--data-dir", dir];
        all.extend(["--settle", "3s", "--watch-for", "50s"]);
        all.extend(args);
        let output: Output = run(&all);
        (output.status.code(), stdout(&output) + &stderr(&output))
    }

    fn image(&self) -> Value {
        self.plane.api.get(WEB).unwrap()["spec"]["template"]["spec"]["containers"][0]["image"].clone()
    }

    fn generation(&self) -> Value {
        self.plane.api.get(WEB).unwrap()["metadata"]["generation"].clone()
    }

    /// Steps of the audit file.
    fn steps(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.plane.dir.path().join("actions.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].clone()).collect()
    }
}

#[test]
fn a_rollout_is_rolled_back_and_the_symptom_goes() {
    let world = World::start(&deployment("shop", "web", "runs:1", 2));
    let before = world.generation();
    let (code, text) = world.fix(&world.plane.admin(), &["--dry-run"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("\"absent:2\" → \"runs:1\""), "{text}");
    assert_eq!((world.generation(), world.image()), (before, json!("absent:2")));
    assert!(world.steps().is_empty());

    let (code, text) = world.fix(&world.plane.admin(), &["--yes"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(
        (world.image(), world.steps()),
        (json!("runs:1"), vec!["asked".into(), "applied".into(), "gone".into()])
    );
    let managers = world.plane.api.get(WEB).unwrap()["metadata"]["managedFields"].to_string();
    assert!(managers.contains("\"manager\":\"tapio"), "{managers}");
}

#[test]
fn what_is_worse_after_it_is_undone() {
    let web = with(deployment("shop", "web", "runs:1", 1), "/spec/strategy", json!({"type": "Recreate"}));
    let variable =
        json!([{"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "modes", "key": "mode"}}}]);
    let world = World::start(&with(web, "/spec/template/spec/containers/0/env", variable));
    // The revision that is gone back to needs it.
    world.plane.api.delete("/api/v1/namespaces/shop/configmaps/modes");
    let (code, text) = world.fix(&world.plane.admin(), &["--yes", "--rollback"]);
    assert_eq!(code, Some(2), "{text}");
    assert_eq!(world.image(), "absent:2", "{text}");
    assert_eq!(world.steps(), ["asked", "applied", "worse", "undone"], "{text}");
}

#[test]
fn who_may_only_read_is_told_which_permission_the_change_takes() {
    let world = World::start(&deployment("shop", "web", "runs:1", 2));
    let api = &world.plane.api;
    let rbac = "rbac.authorization.k8s.io";
    api.make_all(&[
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "viewer", "namespace": "shop"}}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "viewer"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "ServiceAccount", "name": "viewer", "namespace": "shop"}]}),
    ]);
    let viewer = world.plane.with_token("viewer", &world.plane.token_of("shop", "viewer"));
    let (code, text) = world.fix(&viewer, &["--yes", "-n", "shop"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("not allowed: grant patch of deployments.apps in namespace shop"), "{text}");
    assert_eq!(world.image(), "absent:2");
}
