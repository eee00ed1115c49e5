//! The command line: exit codes, clear lines, nothing bound before the configuration is good.

mod common;

use std::net::TcpListener;

use common::{data_dir, run, stderr, stdout, tapio};

#[test]
fn an_unknown_configuration_key_exits_64_and_names_the_key() {
    let dir = data_dir();
    let file = dir.path().join("tapio.yaml");
    std::fs::write(&file, "cluster: prod\nagnet:\n  cgroup: {}\n").unwrap();
    let output = run(&["up", "--config", file.to_str().unwrap(), "--data-dir", dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    assert!(stderr(&output).contains("agnet"), "{}", stderr(&output));
    assert!(!dir.path().join("endpoints.json").exists());
    assert!(!dir.path().join("nats").exists(), "nothing may be started before the configuration is good");
}

#[test]
fn an_unknown_variable_exits_64_and_names_the_key() {
    let output = tapio(&["up"]).env("TAPIO_CORRELATOR__LATENESSS", "1s").output().unwrap();
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    assert!(stderr(&output).to_lowercase().contains("latenesss"), "{}", stderr(&output));
}

#[test]
fn a_port_in_use_is_a_clear_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = data_dir();
    let output = run(&[
        "up",
        "--free-ports",
        "--data-dir",
        dir.path().to_str().unwrap(),
        "--set",
        &format!("agent.otlp.grpc_listen={address}"),
    ]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains(&address), "{}", stderr(&output));
}

/// Every address that a process of this configuration would listen on is taken, so whatever is bound first fails. With a
/// wrong key or value that must not come to light.
#[test]
fn a_wrong_configuration_is_said_before_a_port_is_bound() {
    let taken: Vec<TcpListener> = (0..5).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<_> = taken.iter().map(|listener| listener.local_addr().unwrap()).collect();
    let keys = ["agent.otlp.grpc_listen", "agent.otlp.http_listen", "storage.listen", "telemetry.listen"];
    let mut listening: Vec<String> =
        keys.iter().zip(&addresses).map(|(key, address)| format!("{key}={address}")).collect();
    listening.push(format!("nats.port={}", addresses[4].port()));
    let dir = data_dir();
    let data = dir.path().join("data");
    let run = |role: &str, more: &[&str]| {
        let set = listening.iter().map(String::as_str).chain(more.iter().copied());
        let set = set.flat_map(|pair| ["--set", pair]);
        tapio(&[role, "--data-dir", data.to_str().unwrap()]).args(set).output().unwrap()
    };
    for role in ["up", "agent", "correlator", "storage"] {
        for (wrong, says) in [
            ("agent.otpl.grpc_listen=127.0.0.1:1", "agent.otpl"),
            ("correlator.lateness=soon", "correlator.lateness"),
            ("telemetry.listen=9464", "telemetry.listen"),
            ("storage.listen=127.0.0.1:many", "storage.listen"),
            ("storage.ack_wait=10ms", "storage.ack_wait"),
            ("telemetry.log=a=b=c", "telemetry.log"),
        ] {
            let output = run(role, &[wrong]);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(64), "{role} {wrong}: {said}");
            assert!(said.contains(says), "{role} {wrong}: {said}");
            assert!(addresses.iter().all(|address| !said.contains(&address.to_string())), "{said}");
            assert!(!data.exists(), "{role} {wrong}: something was begun");
        }
    }
    // Nothing but the key was in its way: with a good configuration it does stumble over the ports.
    let output = run("up", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let port = addresses[4].port().to_string();
    assert!(stderr(&output).contains(&port), "{}", stderr(&output));
}

#[test]
fn a_missing_nats_server_is_a_clear_line() {
    let dir = data_dir();
    let output = tapio(&["up", "--free-ports", "--data-dir", dir.path().to_str().unwrap()])
        .env("TAPIO_NATS_SERVER", "/nonexistent/nats-server")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nonexistent/nats-server"), "{}", stderr(&output));
}

#[test]
fn no_instance_exits_69_and_says_what_to_do() {
    let dir = data_dir();
    let output = run(&["check", "--data-dir", dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
    assert!(stderr(&output).contains("tapio up"), "{}", stderr(&output));
    let output = run(&["why", "api", "--server", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
}

#[test]
fn help_has_examples_and_completion_scripts_are_printed() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains("tapio why shop/deployment/api"));
    let output = run(&["check", "--help"]);
    for code in ["0 healthy", "2 findings", "3 cannot tell"] {
        assert!(stdout(&output).contains(code), "{}", stdout(&output));
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("memory-leak"), "{shell}");
        assert!(!stdout(&output).contains("leak-child"), "{shell} offers what is not for people");
    }
}

#[test]
fn the_doctor_reports_every_part_as_json() {
    let dir = data_dir();
    let output =
        run(&["doctor", "--free-ports", "--data-dir", dir.path().to_str().unwrap(), "--output", "json"]);
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> = checks.as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
    for wanted in ["kernel", "BTF", "capabilities", "cgroups", "nats-server", "data directory", "kubernetes"]
    {
        assert!(names.contains(&wanted), "{wanted} in {names:?}");
    }
    for check in checks.as_array().unwrap().iter().filter(|c| c["ok"] == false) {
        let program = check["name"].as_str().unwrap_or("").starts_with("program");
        assert!(program || check["todo"].as_str().is_some_and(|todo| !todo.is_empty()), "{check}");
    }
}

#[test]
fn a_broken_recording_names_file_and_line() {
    let dir = data_dir();
    let file = dir.path().join("broken.jsonl");
    std::fs::write(&file, "{\"at_unix_nano\":\"1\",\"signal\":\"logs\",\"request\":{}}\nnot json\n").unwrap();
    let output = run(&["replay", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("line 2"), "{}", stderr(&output));
}

#[test]
fn the_shipped_cluster_configuration_loads() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize/base/tapio.yaml");
    let dir = data_dir();
    let output = run(&[
        "doctor",
        "--config",
        file,
        "--free-ports",
        "--data-dir",
        dir.path().to_str().unwrap(),
        "-o",
        "json",
    ]);
    assert_ne!(output.status.code(), Some(64), "{}", stderr(&output));
    assert!(serde_json::from_slice::<serde_json::Value>(&output.stdout).is_ok(), "{}", stderr(&output));
}

#[test]
fn the_doctor_does_not_call_an_unreachable_server_good() {
    let dir = data_dir();
    let data = dir.path().to_str().unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("nats://{nobody}");
    let output = run(&["doctor", "--free-ports", "--data-dir", data, "-o", "json", "--nats-url", &url]);
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let nats = checks.as_array().unwrap().iter().find(|c| c["name"] == "nats-server").unwrap();
    assert_eq!(nats["ok"], false, "{nats}");
}

#[test]
fn an_empty_variable_is_like_none() {
    let variables = [("TAPIO_DATA_DIR", ""), ("TAPIO_SERVER", ""), ("TAPIO_CONFIG", "")];
    let output = tapio(&["why", "api", "--server", "127.0.0.1:1"]).envs(variables).output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
    assert!(stderr(&output).contains("127.0.0.1:1"), "{}", stderr(&output));
    let dir = data_dir();
    let file = dir.path().join("no-such-recording");
    let output = tapio(&["replay", file.to_str().unwrap()]).envs(variables).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "the configuration is good: {}", stderr(&output));
}

#[test]
fn the_doctor_looks_at_every_port_and_knows_its_own_instance() {
    let dir = data_dir();
    let data = dir.path().to_str().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let nats_port = format!("nats.port={port}");
    let look = || {
        let args = ["doctor", "--free-ports", "--data-dir", data, "-o", "json", "--set", &nats_port];
        let output = run(&args);
        let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = checks.as_array().unwrap().iter().find(|c| c["name"] == "port of nats.port").cloned();
        (output.status.code(), found.expect("the port is looked at"))
    };
    let (code, check) = look();
    assert_eq!((code, &check["ok"]), (Some(1), &false.into()), "{check}");
    assert!(check["todo"].as_str().unwrap().contains("--set nats.port=0"), "{check}");

    let endpoints = serde_json::json!({
        "nats": format!("nats://127.0.0.1:{port}"), "otlp_grpc": "", "otlp_http": "", "api_grpc": "", "metrics": "",
    });
    std::fs::write(dir.path().join("endpoints.json"), endpoints.to_string()).unwrap();
    let (code, check) = look();
    assert_eq!((code, &check["ok"]), (Some(0), &true.into()), "{check}");
    assert!(check["says"].as_str().unwrap().contains("instance that runs"), "{check}");
}

#[test]
fn ctrl_c_before_nats_answers_ends_at_once() {
    // It takes the connection and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", silent.local_addr().unwrap());
    let dir = data_dir();
    let data = dir.path().to_str().unwrap();
    let connecting = ["--nats-url", &url, "--set", "bus.connect_timeout=10m"];
    let mut child = tapio(&["up", "--free-ports", "--data-dir", data])
        .args(connecting)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let _connection = silent.accept().unwrap();
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let status = common::wait_for("the end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_replay_prints_one_document_a_line_also_as_json() {
    let recording = concat!(env!("CARGO_MANIFEST_DIR"), "/recordings/memory-leak.jsonl.zst");
    let [json, jsonl] = ["json", "jsonl"].map(|form| run(&["replay", recording, "--output", form]));
    assert_eq!(json.status.code(), Some(0), "{}", stderr(&json));
    assert_eq!(json.stdout, jsonl.stdout);
    assert!(stdout(&json).lines().count() > 1);
    for line in stdout(&json).lines() {
        serde_json::from_str::<serde_json::Value>(line).expect("a document");
    }
}
