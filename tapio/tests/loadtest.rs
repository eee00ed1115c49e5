//! Short load tests: real processes, faults with known truth, exact balance. The long ones are `make loadtest`, `make soak`
//! and `make chaos`.

mod common;

use common::{run, stderr, stdout};
use serde_json::Value;

/// Runs a load test, which has to be good, and gives its figures and its text.
fn good(args: &[&str]) -> (Value, String) {
    let mut all = vec!["loadtest"];
    all.extend(args);
    all.extend(["--output", "json", "--fault-every-ms", "1000"]);
    let output = run(&all);
    let (out, text) = (stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(0), "{out}\n{text}");
    let last = out.lines().last().unwrap_or_default();
    (serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: `{last}`\n{text}")), text)
}

/// The keys that a report has, no more and no fewer.
fn assert_keys(figures: &Value) {
    let keys: Vec<&str> = figures.as_object().expect("an object").keys().map(String::as_str).collect();
    let mut wanted = vec![
        "published_per_s",
        "processed_per_s",
        "bytes_per_event",
        "dropped",
        "ceiling_bytes_per_s",
        "ratio",
        "latency_event_to_signal_ms",
        "latency_event_to_binding_signal_ms",
        "latency_event_to_insight_ms",
        "latency_deciding_event_to_insight_ms",
        "cpu_seconds_per_million",
        "peak_rss_bytes",
    ];
    let mut keys = keys;
    keys.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(keys, wanted);
    for latency in ["latency_event_to_signal_ms", "latency_event_to_insight_ms"] {
        for percentile in ["p50", "p99", "p999"] {
            assert!(figures[latency][percentile].as_f64().is_some_and(|ms| ms > 0.0), "{figures}");
        }
    }
}

#[test]
fn a_steady_load_is_balanced_and_every_fault_is_found() {
    let (figures, text) =
        good(&["throughput", "--seconds", "6", "--rate", "2000", "--ceiling-seconds", "0.5"]);
    assert_keys(&figures);
    let rate = figures["published_per_s"].as_f64().expect("a rate");
    assert!((1500.0..2500.0).contains(&rate), "{figures}");
    assert!(figures["ceiling_bytes_per_s"].as_f64().is_some_and(|bytes| bytes > 1e6), "{figures}");
    assert_eq!(figures["dropped"], serde_json::json!({}), "{text}");
    for process in ["nats-server", "correlator", "storage", "loadtest"] {
        assert!(
            figures["peak_rss_bytes"][process].as_u64().is_some_and(|bytes| bytes > 1 << 20),
            "{figures}"
        );
        assert!(figures["cpu_seconds_per_million"][process].is_f64(), "{figures}");
    }
}

#[test]
fn without_a_rate_the_load_is_what_the_correlator_takes() {
    let (figures, text) =
        good(&["throughput", "--seconds", "7", "--backlog", "64", "--ceiling-seconds", "0"]);
    assert_keys(&figures);
    assert!(figures["processed_per_s"].as_f64().is_some_and(|rate| rate > 1000.0), "{text}");
}

#[test]
fn latency_is_measured_at_a_steady_rate() {
    let (figures, _) = good(&["latency", "--rate", "1500", "--seconds", "6", "--ceiling-seconds", "0"]);
    assert_keys(&figures);
}

#[test]
fn processes_that_are_killed_lose_nothing_and_double_nothing() {
    let args = ["chaos", "--minutes", "0.4", "--rate", "1500", "--actions", "8", "--replicas", "2"];
    // With this seed it is the node agent that is killed, in the middle of the load.
    let (figures, text) = good(&[&args[..], &["--ceiling-seconds", "0", "--seed", "19"]].concat());
    assert_keys(&figures);
    assert!(
        text.contains("Every injected fault was found exactly once, and the balance is exact."),
        "{text}"
    );
    assert_eq!(text.matches("  done ").count(), 8, "{text}");
    assert!(text.contains("kill -9  agent"), "{text}");
    for run in ["run 1 of 2, kill -9", "run 2 of 2, SIGTERM"] {
        assert!(text.lines().any(|line| line.contains("node agent") && line.contains(run)), "{run}: {text}");
    }
    let sees =
        if rustix::process::geteuid().is_root() { "it read this machine's kernel" } else { "DEGRADED" };
    assert!(text.contains(sees), "{text}");
}

/// The middle one of some milliseconds.
fn median(figures: &Value, way: &str, what: &str) -> f64 {
    let of_rounds = figures[way][what].as_array().unwrap_or_else(|| panic!("{way} {what}: {figures}"));
    let mut ms: Vec<f64> = of_rounds.iter().filter_map(Value::as_f64).collect();
    ms.sort_by(f64::total_cmp);
    assert_eq!(ms.len(), 3, "{figures}");
    ms[1]
}

#[test]
fn what_a_replica_had_is_judged_by_another_soon_after_its_end() {
    let (figures, text) = good(&["takeover", "--rounds", "3", "--rate", "500"]);
    // Five times what is promised: the machine may be busy.
    assert!(median(&figures, "kill", "shards_ms") < 15_000.0, "{text}");
    assert!(median(&figures, "kill", "incidents_ms") < 15_000.0, "{text}");
    // On the same machine, what is handed over does not wait until a lease lapses.
    for what in ["shards_ms", "incidents_ms"] {
        assert!(median(&figures, "stop", what) < median(&figures, "kill", what), "{text}");
    }
}

#[test]
fn a_finding_that_does_not_come_is_exit_code_1() {
    // A correlator that may follow no deviation tells of none.
    let args = ["latency", "--seconds", "6", "--rate", "500", "--ceiling-seconds", "0"];
    let silenced = ["--set", "correlator.signals.open_max=0", "--fault-every-ms", "1000"];
    let output = run(&[&["loadtest"], &args[..], &silenced[..]].concat());
    assert_eq!(output.status.code(), Some(1), "{}\n{}", stdout(&output), stderr(&output));
    assert!(stdout(&output).contains("missing: no finding of"), "{}", stdout(&output));
}
