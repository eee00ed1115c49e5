//! Signals in words. Every number said is one the signal carries.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use tapio_schemas::entity::kinds;
use tapio_schemas::{Entity, Signal, SignalKind};

use crate::model::{bytes, duration, on_one_line, percent, plain};

/// An entity as people speak of it: `StatefulSet shop/db`, `cgroup /tapio-demo on host-1`.
pub fn name(entity: &Entity) -> String {
    let place = if entity.node.is_empty() { String::new() } else { format!(" on {}", entity.node) };
    let full = if entity.namespace.is_empty() {
        entity.name.to_string()
    } else {
        format!("{}/{}", entity.namespace, entity.name)
    };
    match entity.kind.as_str() {
        kinds::CGROUP => format!("cgroup {full}{place}"),
        kinds::SYSTEMD_UNIT => format!("systemd unit {full}{place}"),
        kinds::EXTERNAL => format!("address {full}{place}"),
        kinds::NODE => format!("node {full}"),
        kinds::SERVICE => format!("service {full}"),
        "" => full,
        kind => format!("{kind} {full}{place}"),
    }
}

fn text<'a>(signal: &'a Signal, key: &str) -> Option<&'a str> {
    signal.attribute(key).and_then(|v| v.as_text()).filter(|t| !t.is_empty())
}

fn number(signal: &Signal, key: &str) -> Option<f64> {
    signal.attribute(key).and_then(|v| v.as_f64()).filter(|n| n.is_finite())
}

fn times(signal: &Signal) -> String {
    if signal.count > 1 { format!(" ({} times)", signal.count) } else { String::new() }
}

fn process(signal: &Signal) -> String {
    match (text(signal, "comm"), signal.pid) {
        (Some(comm), 0) => format!("process {comm}"),
        (Some(comm), pid) => format!("process {comm} (pid {pid})"),
        (None, 0) => "a process".to_owned(),
        (None, pid) => format!("process {pid}"),
    }
}

fn to_peer(signal: &Signal) -> String {
    signal.peer.as_ref().map_or_else(String::new, |peer| format!(" to {}", name(peer)))
}

fn because(signal: &Signal) -> String {
    let reason = text(signal, "reason");
    let message = text(signal, "message").or_else(|| text(signal, "error_type"));
    match (reason, message) {
        (Some(reason), Some(message)) => format!(": {reason}, {message}"),
        (Some(one), None) | (None, Some(one)) => format!(": {one}"),
        (None, None) => String::new(),
    }
}

/// One sentence for a link of the chain, on one line: what a machine said may have several.
pub fn sentence(signal: &Signal) -> String {
    let says = memory(signal)
        .or_else(|| foretold(signal))
        .or_else(|| process_end(signal))
        .or_else(|| network(signal))
        .or_else(|| requests(signal))
        .or_else(|| plane(signal))
        .unwrap_or_else(|| other(signal));
    on_one_line(&says)
}

/// A few words for the list of what was seen.
pub fn brief(signal: &Signal) -> String {
    let what = match signal.kind {
        SignalKind::MemoryGrowth => "growing memory".to_owned(),
        SignalKind::MemoryNearLimit => "memory near its limit".to_owned(),
        SignalKind::MemoryPressure => "tasks waiting for memory".to_owned(),
        SignalKind::OomKill => format!("out-of-memory kill of {}", process(signal)),
        SignalKind::ContainerOomKilled => "container killed for lack of memory".to_owned(),
        _ => return sentence(signal),
    };
    format!("{what}{}", times(signal))
}

/// Words without how often.
pub fn uncounted(words: &str) -> &str {
    match words.rfind(" (") {
        Some(at) if words.ends_with(" times)") => &words[..at],
        _ => words,
    }
}

/// Words that fit a line: a message of a machine can be as long as it likes.
pub fn shortened(words: &str) -> String {
    const CHARS_MAX: usize = 120;
    let said = uncounted(words);
    if said.chars().count() <= CHARS_MAX {
        return words.to_owned();
    }
    let cut = said.char_indices().nth(CHARS_MAX).map_or(said.len(), |(at, _)| at);
    let end = said[..cut].rfind(' ').filter(|at| *at > cut / 2).unwrap_or(cut);
    format!("{} …{}", &said[..end], &words[said.len()..])
}

/// Several things in a word: `pods`.
pub fn places(subjects: &BTreeSet<Entity>) -> &'static str {
    let all = |kind: &str| subjects.iter().all(|subject| subject.kind == kind);
    match () {
        () if all(kinds::POD) => "pods",
        () if all(kinds::CONTAINER) => "containers",
        () if all(kinds::NODE) => "nodes",
        () if all(kinds::SERVICE) => "services",
        () => "places",
    }
}

fn memory(signal: &Signal) -> Option<String> {
    Some(match signal.kind {
        SignalKind::MemoryGrowth => growth(signal),
        SignalKind::MemoryNearLimit => match (number(signal, "usage_bytes"), number(signal, "limit_bytes")) {
            (Some(usage), Some(limit)) => format!("memory at {} of {}", bytes(usage), bytes(limit)),
            _ => "memory close to its limit".to_owned(),
        },
        SignalKind::MemoryPressure => "tasks wait for memory".to_owned(),
        SignalKind::OomKill => {
            let held = number(signal, "anon_rss_bytes").filter(|n| *n > 0.0);
            let held = held.map_or_else(String::new, |n| format!(", which held {}", bytes(n)));
            format!("the kernel killed {} for lack of memory{held}{}", process(signal), times(signal))
        }
        SignalKind::ContainerOomKilled => {
            format!("the container was killed for lack of memory{}", times(signal))
        }
        _ => return None,
    })
}

/// Disks and certificates.
fn foretold(signal: &Signal) -> Option<String> {
    let place = text(signal, "place").map_or_else(String::new, |place| format!(" {place}"));
    let used = number(signal, "usage_share").map(|share| format!(" ({:.1} % used)", share * 100.0));
    let used = used.unwrap_or_default();
    Some(match signal.kind {
        SignalKind::DiskNearFull => format!("the file system{place} is almost full{used}"),
        SignalKind::DiskFull => format!("the file system{place} is full{used}"),
        SignalKind::DiskGrowth => {
            let slope = number(signal, "slope_bytes_per_s");
            let slope = slope.map_or_else(String::new, |slope| format!(" by {}/s", bytes(slope)));
            let left = number(signal, "left_bytes");
            let left = left.map_or_else(String::new, |left| format!(", {} are left", bytes(left)));
            format!("the file system{place} fills{slope}{left}{used}")
        }
        SignalKind::CertificateExpiring => match number(signal, "left_s") {
            Some(left) => format!("the certificate{place} ends in {}", duration(left)),
            None => format!("the certificate{place} ends soon"),
        },
        SignalKind::CertificateExpired => format!("the certificate{place} has ended"),
        _ => return None,
    })
}

fn growth(signal: &Signal) -> String {
    let mut says = "memory grows".to_owned();
    if let Some(slope) = number(signal, "slope_bytes_per_s") {
        says.push_str(&format!(" by {}/s", bytes(slope)));
    }
    if let (Some(start), Some(usage)) = (number(signal, "start_bytes"), number(signal, "usage_bytes")) {
        says.push_str(&format!(", from {} to {}", bytes(start), bytes(usage)));
    }
    if let Some(limit) = number(signal, "limit_bytes") {
        says.push_str(&format!(", limit {}", bytes(limit)));
    }
    if let (Some(samples), Some(span)) = (number(signal, "samples"), number(signal, "span_s")) {
        says.push_str(&format!(" ({samples:.0} samples in {})", duration(span)));
    }
    says
}

fn process_end(signal: &Signal) -> Option<String> {
    Some(match signal.kind {
        SignalKind::CrashSignal => {
            let by = text(signal, "signal_name").map(str::to_owned);
            let by = by.or_else(|| number(signal, "signal").map(|n| format!("signal {n:.0}")));
            format!("{} crashed with {}{}", process(signal), by.unwrap_or("a signal".into()), times(signal))
        }
        SignalKind::ExitNonzero => {
            let code = number(signal, "exit_code").map_or_else(String::new, |c| format!(" with code {c:.0}"));
            format!("{} exited{code}{}", process(signal), times(signal))
        }
        SignalKind::Killed => format!("{} was killed{}", process(signal), times(signal)),
        SignalKind::UnitFailed => {
            let result = text(signal, "result").map_or_else(String::new, |r| format!(" ({r})"));
            let message = text(signal, "message").map_or_else(String::new, |m| format!(": {m}"));
            match number(signal, "restarted") {
                Some(n) => format!("the unit ended{result} and was restarted, {n:.0} times so far"),
                None => format!("the unit failed{result}{message}"),
            }
        }
        SignalKind::ContainerCrashed => {
            let code = number(signal, "exit_code").map_or_else(String::new, |c| format!(" with code {c:.0}"));
            format!("the container ended{code}{}", times(signal))
        }
        SignalKind::CrashLoop => format!("the container keeps crashing{}", times(signal)),
        _ => return None,
    })
}

fn network(signal: &Signal) -> Option<String> {
    let what = match signal.kind {
        SignalKind::NetRefused => "connections{} were refused",
        SignalKind::NetTimeout => "connections{} timed out",
        SignalKind::NetReset => "connections{} were reset",
        SignalKind::NetUnreachable => "connections{} found no way",
        SignalKind::NetRetransmits => "packets{} had to be sent again",
        SignalKind::NetDrops => "packets{} were dropped",
        SignalKind::DnsFailures => "names could not be resolved",
        _ => return None,
    };
    Some(format!("{}{}", what.replace("{}", &to_peer(signal)), times(signal)))
}

fn requests(signal: &Signal) -> Option<String> {
    let what = match signal.kind {
        SignalKind::HttpServerErrors => match number(signal, "http_status").or(number(signal, "status")) {
            Some(status) => format!("requests failed with HTTP {status:.0}"),
            None => "requests failed with a server error".to_owned(),
        },
        SignalKind::SpanErrors => format!("calls{} failed", to_peer(signal)),
        SignalKind::SpanTimeouts => format!("calls{} timed out", to_peer(signal)),
        SignalKind::SpanSlow => format!("calls{} became slow", to_peer(signal)),
        // How many looks found none is no number of calls.
        SignalKind::CallsStopped => return Some(format!("calls{} stopped", to_peer(signal))),
        SignalKind::CallsRepeated => match (number(signal, "now"), number(signal, "usual")) {
            (Some(now), Some(usual)) => {
                format!("calls{} are repeated: {now} per request, usual are {usual}", to_peer(signal))
            }
            _ => format!("calls{} are repeated", to_peer(signal)),
        },
        SignalKind::LogErrors => format!("errors were logged{}", because(signal)),
        SignalKind::OwnTime | SignalKind::NetworkGap | SignalKind::TraceShape => {
            return Some(service(signal));
        }
        _ => return None,
    };
    let detail = text(signal, "error_type").map_or_else(String::new, |t| format!(" ({t})"));
    Some(format!("{what}{detail}{}", times(signal)))
}

/// What the service model tells.
fn service(signal: &Signal) -> String {
    let from_to = match (number(signal, "usual_ms"), number(signal, "now_ms")) {
        (Some(usual), Some(now)) => format!(": {now} ms, usual are {usual} ms"),
        _ => String::new(),
    };
    let share = match (number(signal, "bad"), number(signal, "of")) {
        (Some(bad), Some(1.0)) => format!(" in {bad:.0} of 1 request"),
        (Some(bad), Some(of)) if of > 0.0 => format!(" in {bad:.0} of {of:.0} requests"),
        _ => String::new(),
    };
    match (signal.kind, text(signal, "missing"), text(signal, "new")) {
        (SignalKind::OwnTime, ..) => format!("requests spend longer in it{from_to}"),
        (SignalKind::NetworkGap, ..) => format!("calls{} take longer on the way{from_to}", to_peer(signal)),
        (_, Some(missing), _) => match text(signal, "given") {
            Some(given) => format!("{missing} is missing after {given}{share}"),
            None => format!("{missing} is missing{share}"),
        },
        (_, None, Some(new)) => format!("{new} is new{share}"),
        _ => format!("requests go other ways than ever{share}"),
    }
}

/// The parts of a cluster, and what machines have for all.
fn plane(signal: &Signal) -> Option<String> {
    let seconds = format!("{:.2} s", signal.observed);
    let share = format!("{:.0} %", signal.observed * 100.0);
    let which = text(signal, "which").map_or_else(String::new, |which| format!(" ({which})"));
    Some(match signal.kind {
        SignalKind::ApiSlow => format!("one of a hundred requests takes {seconds} or longer"),
        SignalKind::ApiRefuses => format!("{share} of the requests are refused for want of room"),
        SignalKind::ApiFails => format!("{share} of the requests fail"),
        SignalKind::EtcdSlow => format!("one of a hundred writes takes {seconds} or longer"),
        SignalKind::EtcdNearFull => format!("the database has {share} of the room it may have"),
        SignalKind::EtcdUnstable => format!("the leader changed {:.0} times in 15 min", signal.observed),
        SignalKind::Backlog => format!("{:.0} wait in a queue{which}", signal.observed),
        SignalKind::ComponentFails => match text(signal, "which") {
            Some("answers") => "it does not answer".to_owned(),
            _ => format!("a check of it fails{which}"),
        },
        SignalKind::DnsFails if signal.unit == "1" => format!("{share} of the names cannot be answered"),
        SignalKind::DnsFails => format!("the name service cannot answer{which}"),
        SignalKind::DnsSlow => format!("one of a hundred answers takes {seconds} or longer"),
        SignalKind::DnsAmplified => {
            format!("{:.1} names are asked for in vain for each that exists", signal.observed)
        }
        SignalKind::ConntrackNearFull => format!("{share} of the connections that can be tracked are"),
        SignalKind::ClockOff => format!("the clock is off by {seconds}"),
        SignalKind::PlegSlow => format!("a look at the containers takes {seconds} or longer"),
        _ => return None,
    })
}

fn other(signal: &Signal) -> String {
    let change = |old: &str, new: &str| match (text(signal, old), text(signal, new)) {
        (Some(old), Some(new)) => format!(" from {old} to {new}"),
        (None, Some(new)) => format!(" to {new}"),
        _ => String::new(),
    };
    // Whoever manages the changed fields, as the API tells it.
    let by = text(signal, "changed_by").map_or_else(String::new, |who| format!(" by {who}"));
    match signal.kind {
        SignalKind::ImageChanged => format!("the image was changed{}{by}", change("image_old", "image_new")),
        SignalKind::ConfigChanged => match text(signal, "reason") {
            // Of a ConfigMap or Secret the values are not told, only that they differ.
            Some(key) => format!("the configuration was changed{by} (key {key})"),
            None => format!("the configuration was changed{}{by}", change("old", "new")),
        },
        SignalKind::Scaled => format!("it was scaled{}{by}", change("old", "new")),
        SignalKind::RolloutStarted => format!("a rollout began{by}"),
        SignalKind::ObjectChanged => format!("{}{by}", object_changed(signal)),
        SignalKind::ChangeApplied => match text(signal, "what") {
            Some(what) => format!("{what} was changed{}{by}", change("old", "new")),
            None => format!("something was changed{by}"),
        },
        SignalKind::LastWords => "a container said why it ended".to_owned(),
        SignalKind::CpuThrottled => match number(signal, "throttled_share") {
            Some(share) => format!("the processor quota ran out in {:.0} % of the periods", share * 100.0),
            None => "the processor quota ran out".to_owned(),
        },
        SignalKind::CpuPressure => "tasks wait for the processor".to_owned(),
        SignalKind::CpuSaturated | SignalKind::CpuRaised => processor(signal),
        SignalKind::MetricShift => shifted(signal),
        SignalKind::IoPressure => "tasks wait for input and output".to_owned(),
        SignalKind::PidsNearLimit => "the number of processes is close to its limit".to_owned(),
        kind if kubernetes(kind).is_some() => {
            format!("{}{}{}", kubernetes(kind).unwrap_or_default(), because(signal), times(signal))
        }
        kind => format!("{kind}{}{}", because(signal), times(signal)),
    }
}

/// What a service or a pod uses of the processor. A share of what it may use is more than all when it is measured over a
/// moment in which it made up for one before.
fn processor(signal: &Signal) -> String {
    let amount = |value: f64| if signal.unit == "{cpu}" { plain(value) } else { percent(value) };
    let what = match (signal.kind, signal.unit.as_str()) {
        (SignalKind::CpuSaturated, _) => "the processor is busy",
        _ => "more of the processor is used than usual",
    };
    if !signal.observed.is_finite() {
        return what.to_owned();
    }
    let of = if signal.unit == "{cpu}" { " processors" } else { " of what it may use" };
    let usual = signal.baseline.is_finite().then(|| format!(", usual are {}", amount(signal.baseline)));
    format!("{what}: {}{of}{}", amount(signal.observed), usual.unwrap_or_default())
}

/// A measure that is not what it was.
fn shifted(signal: &Signal) -> String {
    let what = match text(signal, "measure") {
        Some("latency_s") if text(signal, "label") == Some("client") => "the latency of calls that it makes",
        Some("latency_s") => "the latency",
        Some("memory_bytes") => "the memory",
        Some("memory_share") => "the share of its memory that is used",
        Some("success_share") => "the share of requests that succeed",
        Some("system_calls") => "the number of system calls",
        _ => return "a measure has shifted".to_owned(),
    };
    let amount = |value: f64| match signal.unit.as_str() {
        "s" => format!("{} ms", digits(value * 1000.0)),
        "By" => bytes(value),
        "1/s" => format!("{}/s", digits(value)),
        _ => percent(value),
    };
    format!("{what} went from {} to {}", amount(signal.baseline), amount(signal.observed))
}

/// Two digits that mean something.
fn digits(value: f64) -> String {
    let scale = 10f64.powf((1.0 - value.abs().log10().floor()).clamp(-9.0, 9.0));
    plain((value * scale).round() / scale)
}

/// What somebody did to an object that says how others are to be treated.
fn object_changed(signal: &Signal) -> String {
    match (text(signal, "reason"), text(signal, "old"), text(signal, "new")) {
        (Some("created"), _, Some(labels)) => format!("it was made; it selects {labels}"),
        (Some("created"), ..) => "it was made".to_owned(),
        (Some("deleted"), Some(labels), _) => format!("it was removed; it selected {labels}"),
        (Some("deleted"), ..) => "it was removed".to_owned(),
        (Some("selector"), Some(old), Some(new)) => format!("its selector was changed from {old} to {new}"),
        (Some("selector"), None, Some(new)) => format!("it was given the selector {new}"),
        (Some("selector"), ..) => "its selector was taken away".to_owned(),
        // Of the rest only a hash is kept.
        _ => "it was changed".to_owned(),
    }
}

/// What Kubernetes, a log or Tapio itself tells, in words.
fn kubernetes(kind: SignalKind) -> Option<&'static str> {
    Some(match kind {
        SignalKind::ImagePullFailed => "the image could not be pulled",
        SignalKind::ConfigMissing => "configuration that it names is missing",
        SignalKind::Unschedulable => "no machine takes the pod",
        SignalKind::ProbeFailed => "a probe failed",
        SignalKind::PodNotReady => "the pod lost its readiness",
        SignalKind::MountFailed => "a volume could not be mounted",
        SignalKind::CreateFailed => "it could not be created",
        SignalKind::NodeNotReady => "the machine is not ready",
        SignalKind::NodePressure => "the machine is short of a resource",
        SignalKind::Evicted => "the pod was evicted",
        SignalKind::SandboxFailed => "the pod's sandbox could not be made",
        SignalKind::NoEndpoints => "no ready pod is behind it",
        SignalKind::Stuck => "nobody does what it waits for",
        SignalKind::ConditionBad => "Kubernetes says that it does not do what it should",
        SignalKind::NodeRestarted => "the machine was started anew",
        SignalKind::LogFault => "the log says what is wrong",
        SignalKind::MetricBeyond => "a measure is beyond what is sound",
        SignalKind::K8sWarning => "Kubernetes warned",
        SignalKind::TapioLoss => "events were lost",
        SignalKind::TapioSpooling => "events wait on disk to be sent",
        SignalKind::TapioCircuitOpen => "NATS takes nothing that is sent",
        SignalKind::TapioLag => "it is behind with its work",
        SignalKind::TapioDiskRefuses => "the disk takes nothing more",
        SignalKind::TapioDeferring => "work on events is put aside",
        SignalKind::TapioMemory => "memory runs out, and events are shed",
        _ => return None,
    })
}
