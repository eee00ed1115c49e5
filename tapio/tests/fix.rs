//! `tapio fix` against an API server in this process: what it asks, shows, changes, and takes back.

mod api;
mod common;
mod scene;
mod told;

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};

use api::{Api, Store, path};
use common::{stdout, tapio};
use scene::{END_S, Scene, merge};
use serde_json::{Value, json};
use tempfile::TempDir;

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/shop/deployments/api";
const POD: &str = "/api/v1/namespaces/shop/pods/api-5f6585d649-x2x2x";

/// The scene with a memory limit, in an API server.
struct World {
    api: Api,
    dir: TempDir,
    kubeconfig: String,
}

fn limited(mut deployment: Value, limit: &str) -> Value {
    let container = json!({"name": "app", "image": "shop/api:2", "resources": {"limits": {"memory": limit}}});
    merge(
        &mut deployment,
        json!({"spec": {"selector": {"matchLabels": {"app": "api"}},
            "template": {"spec": {"containers": [container]}}}}),
    );
    deployment
}

impl World {
    fn start(controller: api::Controller) -> Self {
        let scene = Scene::new(true);
        let limit = |object: Value| {
            if object["kind"] == "Deployment" { limited(object, "256Mi") } else { object }
        };
        let (api, address) = Api::start(scene.standing().into_iter().map(limit).collect(), controller);
        let dir = TempDir::new().unwrap();
        let kubeconfig = kubeconfig(&dir, address);
        Self { api, dir, kubeconfig }
    }

    fn fix_with(&self, args: &[&str], said: &str) -> Output {
        let data = self.dir.path().to_str().unwrap();
        let mut command = tapio(&["fix", "shop/deploy/api", "--kubeconfig", &self.kubeconfig]);
        command.args(["--data-dir", data, "--settle", "2s"]).args(args);
        Self::said_to(command, said)
    }

    /// What an instance has found, changed in the cluster of the kubeconfig.
    fn fix_of(&self, instance: &told::World, args: &[&str]) -> (Option<i32>, String) {
        let mut command = tapio(&["fix", "shop/deploy/api", "--server", instance.address()]);
        command.env("KUBECONFIG", &self.kubeconfig).arg("--audit-dir").arg(self.dir.path());
        command.args(["--settle", "1s", "--watch-for", "2s"]).args(args);
        let output = Self::said_to(command, "");
        (output.status.code(), stdout(&output) + &common::stderr(&output))
    }

    fn said_to(mut command: Command, said: &str) -> Output {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It may have ended without a question.
        let _ = child.stdin.take().unwrap().write_all(said.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn fix(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.fix_with(args, "");
        (output.status.code(), stdout(&output) + &common::stderr(&output))
    }

    fn memory(&self) -> Value {
        let pointer = "/spec/template/spec/containers/0/resources/limits/memory";
        self.api.with(|store| store.objects[DEPLOYMENT].pointer(pointer).cloned().unwrap())
    }

    fn made(&self) -> usize {
        self.api.with(|store| store.made.len())
    }

    /// The steps in the file, in order.
    fn steps(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.path().join("actions.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn words(&self) -> Vec<String> {
        self.steps().iter().map(|step| step["step"].as_str().unwrap().to_owned()).collect()
    }
}

fn kubeconfig(dir: &TempDir, server: SocketAddr) -> String {
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "t",
        "clusters": [{"name": "t", "cluster": {"server": format!("http://{server}")}}],
        "users": [{"name": "t", "user": {}}],
        "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t", "namespace": "shop"}}]});
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, config.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Nothing follows from a change.
fn idle(_: &mut Store, _: &str) {}

/// A template that may have more memory makes a pod that runs.
fn heals(store: &mut Store, changed: &str) {
    if changed == DEPLOYMENT {
        let scene = Scene::new(true);
        store.objects.remove(POD);
        let mut pod = scene.pod(0);
        let status = json!({"phase": "Running", "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": scene.time(END_S)},
            {"type": "Ready", "status": "True", "lastTransitionTime": scene.time(END_S)}]});
        merge(
            &mut pod,
            json!({"metadata": {"name": "api-7c9d8f6b5-k2k2k", "uid": "new",
            "creationTimestamp": scene.time(END_S)}, "status": status}),
        );
        store.put(&path(&pod), pod);
        rolled_out(store, 1);
    }
}

/// What a Deployment says of its pods.
fn rolled_out(store: &mut Store, available: u64) {
    let mut deployment = store.objects[DEPLOYMENT].clone();
    deployment["status"] = json!({"observedGeneration": deployment["metadata"]["generation"], "replicas": 1,
        "updatedReplicas": 1, "availableReplicas": available});
    store.put(DEPLOYMENT, deployment);
}

/// The new pod's image cannot be fetched.
fn breaks(store: &mut Store, changed: &str) {
    heals(store, changed);
    if changed == DEPLOYMENT {
        let scene = Scene::new(true);
        let path = "/api/v1/namespaces/shop/pods/api-7c9d8f6b5-k2k2k";
        let mut pod = store.objects[path].clone();
        let waiting = json!({"waiting": {"reason": "ImagePullBackOff",
            "message": "Back-off pulling image \"shop/api:2\": ErrImagePull: manifest unknown: not found"}});
        pod["status"]["containerStatuses"] = json!([{"name": "app", "restartCount": 0, "state": waiting}]);
        pod["status"]["conditions"][1] = json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady",
            "lastTransitionTime": scene.time(END_S)});
        store.put(path, pod);
        rolled_out(store, 0);
    }
}

#[test]
fn a_dry_run_shows_the_difference_and_changes_nothing() {
    let world = World::start(idle);
    let (code, text) = world.fix(&["--dry-run"]);
    assert_eq!(code, Some(0), "{text}");
    let difference = r#"spec.template.spec.containers[app].resources.limits.memory: "256Mi" → "512Mi""#;
    assert!(text.contains(difference) && text.contains("(risk low)"), "{text}");
    assert_eq!((world.made(), world.api.with(|store| store.tried)), (0, 1));
    assert!(world.steps().is_empty());
}

#[test]
fn without_a_yes_nothing_is_changed() {
    let world = World::start(idle);
    for said in ["", "n\n", "perhaps\n"] {
        let output = world.fix_with(&[], said);
        assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
        assert!(stdout(&output).contains("Do it? [y/N] nothing is changed"), "{}", stdout(&output));
    }
    assert_eq!(world.made(), 0);
}

#[test]
fn the_change_is_made_and_watched_until_the_symptom_is_gone() {
    let world = World::start(heals);
    let output = world.fix_with(&["--limit", "0.5Gi", "--watch-for", "60s"], "y\n");
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("gone: nothing of it was seen for 2s"), "{text}");
    assert_eq!(world.memory(), "512Mi");
    assert_eq!(world.words(), ["asked", "applied", "gone"]);
    let steps = world.steps();
    assert_eq!(steps[1]["object"], "shop/Deployment/api");
    assert_eq!(steps[1]["cause"], "memory.limit_exceeded");
    let version = |step: &Value, key: &str| step[key].as_str().unwrap().parse::<u64>().unwrap();
    assert!(version(&steps[1], "version_after") > version(&steps[1], "version_before"), "{}", steps[1]);
}

#[test]
fn what_does_not_help_is_said_and_left_to_people() {
    let world = World::start(idle);
    let (code, text) = world.fix(&["--yes", "--watch-for", "4s"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("still there after 4s") && text.contains("to undo it: kubectl -n shop"), "{text}");
    assert_eq!(
        (world.memory(), world.words()),
        (json!("512Mi"), vec!["asked".into(), "applied".into(), "still_there".into()])
    );
}

#[test]
fn what_is_worse_after_it_is_undone() {
    let world = World::start(breaks);
    let (code, text) = world.fix(&["--yes", "--rollback", "--watch-for", "60s"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("worse: ") && text.contains("undone: shop/Deployment/api is as it was"), "{text}");
    assert_eq!(world.memory(), "256Mi");
    assert_eq!(world.words(), ["asked", "applied", "worse", "undone"]);
}

#[test]
fn a_change_that_is_not_allowed_is_not_tried_and_the_permission_is_named() {
    let world = World::start(idle);
    world.api.with(|store| store.denied.insert("patch"));
    let (code, text) = world.fix(&["--yes"]);
    assert_eq!(code, Some(1), "{text}");
    let expected = "not allowed: grant patch of deployments.apps in namespace shop (RBAC: no role binds it)";
    assert!(text.contains(expected), "{text}");
    assert_eq!((world.made(), world.api.with(|store| store.tried)), (0, 0));
}

#[test]
fn an_object_that_somebody_changes_meanwhile_is_left_alone() {
    let world = World::start(idle);
    world.api.with(|store| store.meddles = Some(|object| object["spec"]["replicas"] = json!(7)));
    let (code, text) = world.fix(&["--yes"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("409") && text.contains("changed meanwhile"), "{text}");
    assert_eq!((world.made(), world.memory()), (0, json!("256Mi")));
    assert_eq!(world.words(), ["asked", "failed"]);
}

#[test]
fn what_the_server_would_refuse_is_not_sent() {
    let world = World::start(idle);
    let (code, text) = world.fix(&["--yes", "--limit", "plenty"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("the server would refuse it") && text.contains("`plenty` is no quantity"),
        "{text}"
    );
    assert_eq!(world.made(), 0);
}

/// An instance that has found the scene's cause in its cluster `prod`, with this to be done.
fn instance(command: &str) -> told::World {
    let mut instance = told::World::start();
    let mut finding = told::finding(1, "active", 0.9);
    finding.actions = vec![
        serde_json::from_value(json!({"title": "do it", "risk": "low", "command": command,
        "undo": "kubectl -n shop rollout undo deployment/api"}))
        .unwrap(),
    ];
    instance.publish(&finding);
    instance
}

#[test]
fn what_an_instance_found_is_changed_where_somebody_says_that_it_is() {
    let world = World::start(idle);
    let instance = instance("kubectl -n shop set resources deployment/api --limits=memory=NEW_LIMIT");
    let (code, text) = world.fix_of(&instance, &["--dry-run"]);
    assert_eq!(code, Some(0), "{text}");
    let both = format!(
        "found in cluster prod by the instance at {}, changed in the cluster at ",
        instance.address()
    );
    assert!(text.contains(&both) && text.contains("(context t)"), "{text}");

    let (code, text) = world.fix_of(&instance, &["--yes"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("add --cluster prod when it is") && text.contains("nothing is changed"), "{text}");
    let (code, text) = world.fix_of(&instance, &["--yes", "--cluster", "stage"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("nothing is known to be wrong with shop/deploy/api in cluster stage"), "{text}");
    assert_eq!((world.made(), world.memory()), (0, json!("256Mi")));

    let (code, text) = world.fix_of(&instance, &["--yes", "--cluster", "prod"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("still there after 2s"), "{text}");
    assert_eq!((world.made(), world.memory()), (1, json!("512Mi")));
    assert_eq!(world.words(), ["asked", "applied", "still_there"]);
}

#[test]
fn the_dry_run_of_a_deletion_deletes_nothing() {
    let world = World::start(idle);
    let instance = instance("kubectl -n shop delete pod api-5f6585d649-x2x2x");
    let (code, text) = world.fix_of(&instance, &["--dry-run"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("shop/Pod/api-5f6585d649-x2x2x goes"), "{text}");
    let (is_there, tried) = world.api.with(|store| (store.objects.contains_key(POD), store.tried));
    assert_eq!((is_there, tried, world.made()), (true, 1, 0));
    let (_, text) = world.fix_of(&instance, &["--yes", "--cluster", "prod"]);
    assert!(!world.api.with(|store| store.objects.contains_key(POD)), "{text}");
    assert_eq!(world.made(), 1);
}

#[test]
fn what_cannot_be_written_down_after_the_change_stops_neither_the_watch_nor_the_way_back() {
    const FILE_BYTES_MAX: usize = 16 << 10;
    let world = World::start(idle);
    // There is room for one line, not for two.
    let filler = vec![b'\n'; FILE_BYTES_MAX - 700];
    std::fs::write(world.dir.path().join("actions.jsonl"), filler).unwrap();
    // A write beyond the limit is an error, and no signal.
    let mut command = common::clean("bash".as_ref());
    command.args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$@\"", "bash", env!("CARGO_BIN_EXE_tapio")]);
    command.args(["fix", "shop/deployment/api", "--kubeconfig", &world.kubeconfig, "--audit-dir"]);
    command.arg(world.dir.path()).args(["--yes", "--settle", "1s", "--watch-for", "2s"]);
    let output = World::said_to(command, "");
    let text = stdout(&output) + &common::stderr(&output);
    assert_eq!((output.status.code(), world.made()), (Some(2), 1), "{text}");
    assert!(text.contains("still there after 2s") && text.contains("to undo it: kubectl -n shop"), "{text}");
    assert!(text.contains("not every step of this is written down: cannot write"), "{text}");
}

#[test]
fn without_a_place_for_the_steps_nothing_is_changed() {
    let world = World::start(idle);
    let (code, text) = world.fix(&["--yes", "--audit-dir", &world.kubeconfig]);
    assert_eq!((code, world.made()), (Some(1), 0), "{text}");
    assert!(text.contains("nothing is changed; name another --audit-dir"), "{text}");
}
