//! Who may see only a part of the cluster is told what is missing, and gets an answer about the rest.

use serde_json::{Value, json};

use crate::api::Api;
use crate::common::wait_for;
use crate::kubelet::Kubelets;
use crate::plane::Plane;
use crate::told::{causes, check, deployment};

/// A service account in `shop` that may do this there.
fn account(api: &Api, name: &str, rules: &Value) {
    let metadata = json!({"name": name, "namespace": "shop"});
    let rbac = "rbac.authorization.k8s.io";
    api.make_all(&[
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": metadata, "rules": rules}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "shop"}]}),
    ]);
}

fn gaps(answer: &Value) -> Vec<&str> {
    let gaps = answer["freshness"]["gaps"].as_array().into_iter().flatten();
    gaps.filter_map(Value::as_str).collect()
}

#[test]
fn who_sees_a_part_is_told_what_is_missing() {
    let plane = Plane::start();
    let api = &plane.api;
    let _machines = Kubelets::start(api, &["n1"]);
    api.namespace("shop");
    api.make(&deployment("shop", "web", "exits-1:1", 1));
    let reads = json!(["get", "list", "watch"]);
    account(
        api,
        "reader",
        &json!([{"apiGroups": [""], "resources": ["pods", "events"], "verbs": reads},
            {"apiGroups": ["apps"], "resources": ["deployments", "replicasets"], "verbs": reads}]),
    );
    account(api, "blind", &json!([{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": reads}]));
    let of = |name: &str| plane.with_token(name, &plane.token_of("shop", name));
    let (reader, blind) = (of("reader"), of("blind"));

    let answer = wait_for("the crash", || {
        let (code, answer) = check(&reader, &["-n", "shop"]);
        (code == Some(2) && !causes(&answer).is_empty()).then_some(answer)
    });
    assert_eq!(causes(&answer), [("code.crash_exit".to_owned(), "Deployment/web".to_owned())], "{answer}");
    for missing in ["grant list of services in namespace shop", "grant list of nodes of the cluster"] {
        assert!(gaps(&answer).iter().any(|gap| gap.contains(missing)), "{missing}: {:?}", gaps(&answer));
    }
    for there in ["list of pods in", "list of events in", "list of deployments.apps in"] {
        assert!(!gaps(&answer).iter().any(|gap| gap.contains(there)), "{there}: {:?}", gaps(&answer));
    }

    let (code, answer) = check(&blind, &["-n", "shop"]);
    assert_eq!((code, &answer["verdict"]), (Some(3), &json!("not_provable")), "{answer}");
    let reason = answer["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("grant list of pods in namespace shop"), "{answer}");
}

#[test]
fn credentials_that_are_not_accepted_are_said_to_be() {
    let plane = Plane::start();
    let (code, answer) = check(&plane.with_token("nobody", "not.a.token"), &["-A"]);
    assert_eq!((code, &answer["verdict"]), (Some(3), &json!("not_provable")), "{answer}");
    assert!(answer["reason"].as_str().unwrap_or_default().contains("renew them"), "{answer}");
}
