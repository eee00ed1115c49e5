//! Category of a cause by fixed rules: from the kind of a signal, or from what is measured.

use tapio_schemas::SignalKind;
use tapio_schemas::service::Measure;

/// What a signal of this kind is taken to come from.
pub fn of_signal(kind: SignalKind) -> &'static str {
    let name = kind.as_str();
    let (family, rest) = name.split_once('.').unwrap_or((name, ""));
    match family {
        "cpu" => "cpu",
        "memory" => "memory",
        "io" | "disk" => "storage",
        "net" => {
            if rest == "dns_failures" {
                "dns"
            } else {
                "network"
            }
        }
        "process" | "log" | "http" | "systemd" => "code",
        "span" => {
            if matches!(rest, "network_gap" | "timeouts") {
                "network"
            } else {
                "code"
            }
        }
        "change" => "config",
        "k8s" => of_kubernetes(rest),
        _ => "runtime",
    }
}

fn of_kubernetes(what: &str) -> &'static str {
    match what {
        "container_oom_killed" => "memory",
        "container_crashed" | "crash_loop" => "code",
        "image_pull_failed" => "image",
        "config_missing" => "config",
        "unschedulable" | "evicted" => "scheduling",
        "probe_failed" | "not_ready" => "probe",
        "mount_failed" => "storage",
        "create_failed" => "quota",
        "node_not_ready" | "node_pressure" => "node",
        _ => "runtime",
    }
}

/// What a change of this measure is taken to come from.
pub fn of_measure(measure: Measure) -> &'static str {
    match measure {
        Measure::CpuShare | Measure::CpuCores => "cpu",
        Measure::MemoryShare | Measure::MemoryBytes => "memory",
        Measure::LatencySeconds => "network",
        _ => "code",
    }
}
