//! A cluster in which nothing is wrong is called healthy, and nothing is passed over.

use serde_json::json;

use crate::common::wait_for;
use crate::kubelet::Kubelets;
use crate::plane::Plane;
use crate::told;

#[test]
fn a_cluster_without_trouble_is_healthy() {
    let plane = Plane::start();
    let _machines = Kubelets::start(&plane.api, &["n1", "n2"]);
    plane.api.namespace("shop");
    plane.api.make_all(&[told::deployment("shop", "web", "runs:1", 3), told::service("shop", "web")]);
    let ready = || {
        let web = plane.api.get("/apis/apps/v1/namespaces/shop/deployments/web")?;
        (web["status"]["readyReplicas"] == 3).then_some(())
    };
    wait_for("three pods", ready);
    let (code, answer) = told::check(&plane.admin(), &["-A"]);
    assert_eq!((code, &answer["verdict"]), (Some(0), &json!("healthy")), "{answer}");
    // Kinds that an older server has in an older version are seen there; nothing else may be missing.
    assert_eq!(answer["freshness"]["gaps"].as_array().map_or(0, Vec::len), 0, "{answer}");
}
