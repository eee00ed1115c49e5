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
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("memory-leak"), "{shell}");
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
