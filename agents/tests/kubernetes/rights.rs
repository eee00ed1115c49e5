//! The manifests grant what is watched, and nothing else.

use std::collections::BTreeSet;

use serde_json::Value;
use tapio_agents::collectors::kubernetes::watched::{self, Watched};
use tapio_agents::collectors::kubernetes::{KubernetesConfig, WatchScope};

type Right = (String, String);

fn manifest(path: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kustomize").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a cluster role grants, each to read.
fn granted(role: &str) -> BTreeSet<Right> {
    let documents = manifest("base/rbac.yaml");
    let documents = serde_norway::Deserializer::from_str(&documents);
    let documents = documents.map(|document| <Value as serde::Deserialize>::deserialize(document).unwrap());
    let is_role =
        |document: &Value| document["kind"] == "ClusterRole" && document["metadata"]["name"] == role;
    let role = documents.into_iter().find(is_role).unwrap_or_else(|| panic!("no ClusterRole {role}"));
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        assert_eq!(texts(&rule["verbs"]), ["get", "list", "watch"], "{rule}");
        for group in texts(&rule["apiGroups"]) {
            rights.extend(texts(&rule["resources"]).into_iter().map(|resource| (group.clone(), resource)));
        }
    }
    rights
}

/// Also the groups that are used where the wanted one is not there.
fn needed(config: &KubernetesConfig) -> BTreeSet<Right> {
    let (kinds, refused) = watched::of(config);
    assert!(refused.is_empty(), "{refused:?}");
    let rights = |kind: &Watched| -> Vec<Right> {
        let group = |version: &str| version.split_once('/').map_or("", |(group, _)| group).to_owned();
        kind.versions.iter().map(|version| (group(version), kind.plural.to_string())).collect()
    };
    kinds.iter().flat_map(rights).collect()
}

#[test]
fn the_cluster_agent_may_read_what_it_watches_and_no_more() {
    assert_eq!(granted("tapio-cluster-agent"), needed(&KubernetesConfig::default()));
}

#[test]
fn an_agent_of_a_node_may_read_pods_alone() {
    let config = KubernetesConfig { scope: WatchScope::Node, ..KubernetesConfig::default() };
    assert_eq!(granted("tapio-agent"), needed(&config));
}

#[test]
fn secrets_are_a_component_of_their_own() {
    let with = needed(&KubernetesConfig { secrets: true, ..KubernetesConfig::default() });
    let more: Vec<Right> = with.difference(&needed(&KubernetesConfig::default())).cloned().collect();
    assert_eq!(more, [(String::new(), "secrets".to_owned())]);
    let component = manifest("components/secrets/kustomization.yaml");
    assert!(component.contains(r#"{apiGroups: [""], resources: [secrets], verbs: [get, list, watch]}"#));
    assert!(
        component.contains("name: tapio-cluster-agent")
            && component.contains("TAPIO_AGENT__KUBERNETES__SECRETS")
    );
}
