//! Failures that are made for real, each in a namespace of its own: what is done to the cluster, and what is wrong then.

use serde_json::{Value, json};

use crate::api::Api;
use crate::common::wait_for;
use crate::told::{deployment, with};

const POD: &str = "/spec/template/spec";

/// One failure.
pub struct Scene {
    /// Namespace.
    pub namespace: &'static str,
    /// What is made, in this order.
    pub objects: Vec<Value>,
    /// What is done when the pods are there.
    pub then: fn(&Api),
    /// Cause that is to be found.
    pub cause: &'static str,
    /// Entity it is found at.
    pub entity: &'static str,
}

fn scene(
    namespace: &'static str,
    objects: Vec<Value>,
    (cause, entity): (&'static str, &'static str),
) -> Scene {
    Scene { namespace, objects, then: |_| (), cause, entity }
}

/// A Deployment whose pod has this beside its container.
fn pod_with(namespace: &str, field: &str, value: Value) -> Value {
    with(deployment(namespace, "web", "runs:1", 1), &format!("{POD}/{field}"), value)
}

/// The same with this in its container.
fn container_with(namespace: &str, field: &str, value: Value) -> Value {
    with(deployment(namespace, "web", "runs:1", 1), &format!("{POD}/containers/0/{field}"), value)
}

fn named(api_version: &str, kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// The Deployment `web`, once it runs, is told to run an image that does not exist.
pub fn bad_image(api: &Api, namespace: &str) {
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/web");
    wait_for("the pods of the good image", || {
        let web = api.get(&path)?;
        (web["status"]["readyReplicas"] == web["spec"]["replicas"]).then_some(())
    });
    let containers = json!([{"name": "app", "image": "absent:2"}]);
    api.change(&path, &json!({"spec": {"template": {"spec": {"containers": containers}}}}));
}

/// Pods that the API refuses to make.
pub fn refused() -> Vec<Scene> {
    let hook = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "guard"},
        "webhooks": [{"name": "guard.example.org", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 2, "failurePolicy": "Fail",
            "namespaceSelector": {"matchLabels": {"guarded": "yes"}},
            "clientConfig": {"service": {"name": "guard", "namespace": "hook"}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]}]});
    let range = json!({"limits": [{"type": "Container", "max": {"memory": "64Mi"}}]});
    let large = json!({"requests": {"memory": "128Mi"}, "limits": {"memory": "128Mi"}});
    vec![
        Scene {
            then: |api| {
                // Before its controller has looked at it, a quota refuses nothing.
                wait_for("the quota", || {
                    let quota = api.get("/api/v1/namespaces/quota/resourcequotas/team")?;
                    quota["status"]["hard"]["pods"].is_string().then_some(())
                });
                api.make(&deployment("quota", "web", "runs:1", 3));
            },
            ..scene(
                "quota",
                vec![named("v1", "ResourceQuota", "quota", "team", json!({"hard": {"pods": "1"}}))],
                ("quota.exceeded", "ResourceQuota/team"),
            )
        },
        scene(
            "range",
            vec![
                named("v1", "LimitRange", "range", "sizes", range),
                container_with("range", "resources", large),
            ],
            ("quota.limit_range", "Deployment/web"),
        ),
        Scene {
            then: |api| {
                api.change("/api/v1/namespaces/hook", &json!({"metadata": {"labels": {"guarded": "yes"}}}));
                api.make(&deployment("hook", "web", "runs:1", 1));
            },
            ..scene("hook", vec![hook], ("admission.webhook_unavailable", "Service/guard"))
        },
        scene(
            "account",
            vec![pod_with("account", "serviceAccountName", json!("robot"))],
            ("config.service_account_absent", "ServiceAccount/robot"),
        ),
    ]
}

/// Pods that find no machine, by the real scheduler.
pub fn unscheduled() -> Vec<Scene> {
    let claim = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
        "resources": {"requests": {"storage": "1Gi"}}});
    let mounts = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    vec![
        scene(
            "picky",
            vec![pod_with("picky", "nodeSelector", json!({"disk": "nvme"}))],
            ("scheduling.constraints", "Deployment/web"),
        ),
        scene(
            "large",
            vec![container_with("large", "resources", json!({"requests": {"cpu": "64"}}))],
            ("scheduling.insufficient_resources", "Deployment/web"),
        ),
        scene(
            "storage",
            vec![
                named("v1", "PersistentVolumeClaim", "storage", "data", claim),
                pod_with("storage", "volumes", mounts.clone()),
            ],
            ("storage.claim_pending", "PersistentVolumeClaim/data"),
        ),
        scene(
            "claim",
            vec![pod_with("claim", "volumes", mounts)],
            ("storage.claim_absent", "Deployment/web"),
        ),
    ]
}

/// Pods that do not come up on their machine.
pub fn failing() -> Vec<Scene> {
    let variable =
        json!([{"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "modes", "key": "mode"}}}]);
    let volume = json!([{"name": "keys", "secret": {"secretName": "keys"}}]);
    let strict =
        with(deployment("rollout", "web", "never-ready:1", 1), "/spec/progressDeadlineSeconds", json!(5));
    let job = json!({"backoffLimit": 0, "template": {"spec": {"restartPolicy": "Never",
        "containers": [{"name": "app", "image": "exits-3:1"}]}}});
    vec![
        scene(
            "reference",
            vec![container_with("reference", "env", variable)],
            ("config.missing_reference", "Deployment/web"),
        ),
        scene(
            "mount",
            vec![pod_with("mount", "volumes", volume)],
            ("config.missing_mount", "Deployment/web"),
        ),
        scene(
            "crash",
            vec![deployment("crash", "web", "exits-1:1", 1)],
            ("code.crash_exit", "Deployment/web"),
        ),
        scene("job", vec![named("batch/v1", "Job", "job", "load", job)], ("code.crash_exit", "Job/load")),
        scene("rollout", vec![strict], ("rollout.stuck", "Deployment/web")),
        Scene {
            then: |api| bad_image(api, "image"),
            ..scene(
                "image",
                vec![deployment("image", "web", "runs:1", 2)],
                ("image.not_found", "Deployment/web"),
            )
        },
    ]
}

/// What is wrong beside the pods.
pub fn around() -> Vec<Scene> {
    let scaler = json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        "minReplicas": 1, "maxReplicas": 5, "targetCPUUtilizationPercentage": 50});
    let asks = container_with("scaler", "resources", json!({"requests": {"cpu": "100m"}}));
    let kept = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "kept", "namespace": "ending", "finalizers": ["example.org/keeps"]}});
    vec![
        scene(
            "scaler",
            vec![asks, named("autoscaling/v1", "HorizontalPodAutoscaler", "scaler", "web", scaler)],
            ("scheduling.autoscaler_blind", "HorizontalPodAutoscaler/web"),
        ),
        Scene {
            then: |api| api.delete("/api/v1/namespaces/ending"),
            ..scene("ending", vec![kept], ("controlplane.finalizer_stuck", "Namespace/ending"))
        },
    ]
}
