//! The third tier: a running instance that watches an API server. On the same facts it says what the others say.

mod common;
mod scene;
#[path = "../../agents/tests/kubernetes/server.rs"]
mod server;

use std::path::{Path, PathBuf};
use std::time::Instant;

use common::{Instance, data_dir, run, stderr, wait_for};
use scene::Scene;
use serde_json::{Value, json};
use server::Server;
use tapio_schemas::UnixNanos;
use tokio::runtime::Runtime;

// The API server of the agents' tests streams with it.
use futures as _;

/// One line of a recording: when, how, what.
type Line = (UnixNanos, String, Value);

/// The lines of a scene, with who changed the Deployment and when, as the API has it.
fn lines(scene: &Scene) -> Vec<Line> {
    let read = |line: &str| -> Line {
        let line: Value = serde_json::from_str(line).unwrap();
        let at = UnixNanos(line["at_unix_nano"].as_str().unwrap().parse().unwrap());
        if line["signal"] == "k8s_event" {
            return (at, "MODIFIED".to_owned(), line["request"].clone());
        }
        let mut object = line["request"]["object"].clone();
        if object["kind"] == "Deployment" {
            let time = format!("{}Z", at.to_string().split('.').next().unwrap());
            object["metadata"]["managedFields"] =
                json!([{"manager": "helm", "operation": "Update", "time": time}]);
        }
        (at, line["request"]["type"].as_str().unwrap().to_owned(), object)
    };
    scene.recording().lines().map(read).collect()
}

fn recorded(lines: &[Line]) -> String {
    let line = |(at, word, object): &Line| {
        let (signal, request) = match object["kind"].as_str() {
            Some("Event") => ("k8s_event", object.clone()),
            _ => ("k8s_object", json!({"type": word, "object": object})),
        };
        json!({"at_unix_nano": at.0.to_string(), "signal": signal, "request": request}).to_string() + "\n"
    };
    lines.iter().map(line).collect()
}

/// An API server in this process and an instance that watches it.
struct Live {
    /// Serves as long as it lives.
    _runtime: Runtime,
    server: Server,
    instance: Instance,
}

impl Live {
    fn start(dir: &Path, first: &[Line], settings: &[&str]) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (server, address) = runtime.block_on(Server::start_open());
        let kubeconfig = written(
            dir,
            "kubeconfig",
            &json!({"apiVersion": "v1", "kind": "Config", "current-context": "t",
                "clusters": [{"name": "t", "cluster": {"server": format!("http://{address}")}}],
                "users": [{"name": "t", "user": {}}],
                "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}]})
            .to_string(),
        );
        first.iter().for_each(|line| play(&server, line));
        let kubeconfig = format!("agent.kubernetes.kubeconfig={}", kubeconfig.display());
        let mut settings: Vec<&str> = settings.to_vec();
        // Only what the API server says is of interest here.
        settings.extend([
            kubeconfig.as_str(),
            "agent.ebpf.enabled=false",
            "agent.cgroup.enabled=false",
            "agent.network.enabled=false",
            "agent.systemd.enabled=false",
            "agent.filesystem.enabled=false",
        ]);
        let args: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        let instance = Instance::start_with(dir, &args);
        wait_for("all watches", || {
            let open =
                |plural: &str| server.asked(plural).iter().any(|path| path.contains("resourceVersion="));
            ["deployments", "replicasets", "nodes", "pods", "events"]
                .iter()
                .all(|plural| open(plural))
                .then_some(())
        });
        Self { _runtime: runtime, server, instance }
    }

    fn answer(&self) -> Value {
        serde_json::from_slice(&self.instance.ask(&["check", "-o", "json"]).stdout).unwrap_or_default()
    }
}

fn play(server: &Server, (_, word, object): &Line) {
    let word = if word == "ADDED" { "ADDED" } else { "MODIFIED" };
    server.change(word, |_| object.clone());
}

fn written(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// What the kubelet keeps of the scene's container: a file for each of its lives.
fn logs_of_the_machine(dir: &Path) -> PathBuf {
    let logs = dir.join("pods");
    let container = logs.join("shop_api-5f6585d649-x2x2x_Pod-api-5f6585d649-x2x2x/app");
    std::fs::create_dir_all(&container).unwrap();
    for life in 0..=7 {
        let lines = format!(
            "2030-01-01T00:00:00.1Z stdout F loading the index, password=hunter2\n\
             2030-01-01T00:00:00.2Z stderr P no room for \n2030-01-01T00:00:00.3Z stderr F life {life}: killed\n"
        );
        std::fs::write(container.join(format!("{life}.log")), lines).unwrap();
    }
    logs
}

/// Cause and entity of each finding.
fn causes(answer: &Value) -> Vec<(Value, Value)> {
    let findings = answer["findings"].as_array().cloned().unwrap_or_default();
    findings.iter().map(|f| (f["root_cause"]["cause"].clone(), f["root_cause"]["entity"].clone())).collect()
}

#[test]
fn a_running_instance_says_what_a_replay_says_and_who_changed_it() {
    let dir = data_dir();
    let all = lines(&Scene::new(true));
    let recording = written(dir.path(), "scene.jsonl", &recorded(&all));
    let replayed = run(&["check", "-o", "json", "--from", recording.to_str().unwrap()]);
    let replayed: Value =
        serde_json::from_slice(&replayed.stdout).unwrap_or_else(|_| panic!("{}", stderr(&replayed)));
    assert_eq!(causes(&replayed).len(), 1, "{replayed}");

    let logs = logs_of_the_machine(dir.path());
    let logs = format!("agent.pod_logs.dir={}", logs.display());
    let (first, rest) = all.split_at(3);
    let live = Live::start(dir.path(), first, &["agent.node=n1", &logs]);
    rest.iter().for_each(|line| play(&live.server, line));
    let told = Instant::now();
    let answer = wait_for("the finding", || {
        let answer = live.answer();
        (causes(&answer) == causes(&replayed)).then_some(answer)
    });
    println!("the finding came after {:?}", told.elapsed());
    let finding = &answer["findings"][0];
    assert!(finding["chain"].to_string().contains("by helm"), "{finding}");
    assert_eq!(replayed["findings"][0]["root_cause"]["cause"], finding["root_cause"]["cause"]);
    let answer = wait_for("the last words", || {
        let answer = live.answer();
        answer["logs"].to_string().contains("life 7").then_some(answer)
    });
    assert_eq!(
        answer["logs"][0]["lines"],
        json!(["loading the index, password=***", "no room for life 7: killed"]),
        "{answer}"
    );
    let screen = live.instance.ask(&["check"]);
    let screen = String::from_utf8_lossy(&screen.stdout).into_owned();
    assert!(screen.contains("Last words of shop/api-5f6585d649-x2x2x container app:"), "{screen}");
    assert!(screen.contains("no room for life 7") && !screen.contains("hunter2"), "{screen}");
    let story = live.instance.ask(&["why", "deployment/api"]);
    let story = String::from_utf8_lossy(&story.stdout).into_owned();
    assert!(story.contains("no room for life 7: killed"), "{story}");
    wait_for("the name that is misspelt", || {
        let misspelt = live.instance.ask(&["check", "deployment/apy"]);
        let said = String::from_utf8_lossy(&misspelt.stdout).into_owned();
        // How far everything is judged is told once a second; until then that is what is missing.
        let is_told = said.contains("nothing is known of Deployment apy");
        assert!(!is_told || misspelt.status.code() == Some(3), "{said}");
        is_told.then_some(())
    });
    let elsewhere = live.instance.ask(&["check", "-n", "shpo", "deployment/api"]);
    let said = String::from_utf8_lossy(&elsewhere.stdout).into_owned();
    assert_eq!(elsewhere.status.code(), Some(3), "{said}");
    assert!(said.contains("nothing is known of Deployment api in namespace shpo"), "{said}");
    // Of what nothing happens to, and what runs nothing, an instance need not know.
    assert_eq!(live.instance.ask(&["check", "hpa/api"]).status.code(), Some(0));
    let misspelt = live.instance.ask(&["why", "deployment/apy"]);
    let said = String::from_utf8_lossy(&misspelt.stdout).into_owned();
    assert_eq!(misspelt.status.code(), Some(3), "{said}");
    assert_eq!(said, "nothing is known of deployment/apy: is it spelt so, and does anything of it run?\n");
    assert_eq!(live.instance.interrupt(), Some(0));
}

#[test]
fn patterns_of_the_users_own_count_without_a_restart_and_what_is_not_seen_is_said() {
    let dir = data_dir();
    let own = dir.path().join("patterns");
    std::fs::create_dir(&own).unwrap();
    let all = lines(&Scene::new(true));
    let recording = written(dir.path(), "scene.jsonl", &recorded(&all));
    let replayed = run(&["check", "-o", "json", "--from", recording.to_str().unwrap()]);
    let replayed: Value = serde_json::from_slice(&replayed.stdout).unwrap_or_default();
    let cause = replayed["findings"][0]["root_cause"]["cause"].as_str().expect("a cause").to_owned();
    let file = format!("{}/../correlator/patterns/{cause}.yaml", env!("CARGO_MANIFEST_DIR"));
    let pattern = std::fs::read_to_string(file).unwrap();

    let (first, rest) = all.split_at(3);
    let setting = format!("correlator.patterns_dir={}", own.display());
    let live = Live::start(dir.path(), first, &[&setting]);
    live.server.forbid("configmaps");
    live.server.drop_watches();
    // A ConfigMap is mounted while it runs: one file is good, the other is not.
    std::fs::write(own.join("broken.yaml"), format!("{pattern}\nsurprise: true\n")).unwrap();
    let (head, rest_of_it) = pattern.split_once("\ntitle:\n").unwrap();
    let titled = format!("{head}\ntitle:\n  - \"our own words\"\n{rest_of_it}");
    std::fs::write(own.join("own.yaml"), titled).unwrap();
    let gap = |answer: &Value, says: &str| answer["freshness"]["gaps"].to_string().contains(says);
    let answer = wait_for("the rejected pattern", || {
        let answer = live.answer();
        gap(&answer, "a pattern is rejected").then_some(answer)
    });
    assert!(gap(&answer, "broken.yaml:") && gap(&answer, "surprise"), "{}", answer["freshness"]["gaps"]);
    rest.iter().for_each(|line| play(&live.server, line));
    let answer = wait_for("the finding", || {
        let answer = live.answer();
        (!causes(&answer).is_empty() && gap(&answer, "configmaps")).then_some(answer)
    });
    assert!(gap(&answer, "grant get, list and watch of configmaps"), "{}", answer["freshness"]["gaps"]);
    assert_eq!(answer["findings"][0]["title"], "our own words");
    assert_eq!(live.instance.interrupt(), Some(0));
}
