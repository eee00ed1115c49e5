//! Events that are news by themselves.

use std::net::{IpAddr, Ipv6Addr};

use tapio_schemas::entity::{Entity, kinds};
use tapio_schemas::payload::{KubernetesData, NetworkData, Payload, SystemdData};
use tapio_schemas::{EventKind, SignalKind, Source, UnifiedEvent, trouble};

use super::bursts::needed;
use super::confirm::Confirm;
use super::counters::Counters;
use super::episode::Observation;
use super::exits::{Exits, crash};
use super::faults;
use super::last_words;
use super::record::{EventRecord, cut, hash_parts, says_timeout};

/// What an event tells, beside what is known of exits.
pub fn judge(record: &EventRecord, exits: &mut Exits, counters: &mut Counters) -> Option<Observation> {
    let event = &record.event;
    match (&event.payload, event.kind) {
        (Payload::Kernel(data), EventKind::ProcessExit) => {
            exits.judge(event, data, counters).map(|seen| keyed(event, seen))
        }
        (Payload::Kernel(_), EventKind::OomKill) => {
            exits.victim(event, counters);
            by_itself(record)
        }
        _ => by_itself(record),
    }
}

/// What an event tells whatever came before it and may come after it: it is certain, and one is enough.
pub fn at_once(record: &EventRecord) -> Option<Observation> {
    let event = &record.event;
    let seen = match (&event.payload, event.kind) {
        // Of these, one is rarely enough.
        (Payload::Log(_), _) if record.fault.is_none() => None,
        (Payload::Application(_), _) => None,
        (_, EventKind::NetRetransmit | EventKind::NetDrop) => None,
        (Payload::Kernel(data), EventKind::ProcessExit) => crash(event, data).map(|seen| keyed(event, seen)),
        _ => by_itself(record),
    }?;
    (seen.confirm.is_none() && needed(seen.kind) == 1).then_some(seen)
}

/// What an event tells by itself.
fn by_itself(record: &EventRecord) -> Option<Observation> {
    let event = &record.event;
    let seen = match &event.payload {
        Payload::Kernel(data) if event.kind == EventKind::OomKill => Some(oom_kill(event, data)),
        Payload::Network(data) => network(event, data),
        Payload::Kubernetes(data) => kubernetes(event, data),
        Payload::Systemd(data) => unit(event, data),
        Payload::Runtime(data) if event.kind == EventKind::ContainerOom => Some(
            at(event, SignalKind::ContainerOomKilled)
                .with("reason", "OOMKilled")
                .with("image", data.image.as_str())
                .with("exit_code", i64::from(data.exit_code)),
        ),
        Payload::Cni(data) if event.kind == EventKind::CniFailed => Some(
            at(event, SignalKind::SandboxFailed)
                .with("reason", "CniFailed")
                .with("plugin", data.plugin.as_str())
                .with("message", cut(&data.error).as_str()),
        ),
        Payload::Change(data) => {
            let kind = match data.what.as_str() {
                "image" => SignalKind::ImageChanged,
                "config" => SignalKind::ConfigChanged,
                "replicas" => SignalKind::Scaled,
                _ => SignalKind::ChangeApplied,
            };
            let seen = change(event, kind, &data.old_value, &data.new_value);
            Some(seen.with("what", data.what.as_str()).with("changed_by", data.who.as_str()))
        }
        Payload::Custom(data) if event.source == Source::Tapio => {
            let (kind, says) = trouble::told(data)?;
            Some(at(event, kind).with("message", cut(says).as_str()))
        }
        Payload::Application(data) => Some(
            weak(at(event, SignalKind::LogErrors), 0.4)
                .with("error_type", data.error_type.as_str())
                .with("message", cut(&data.message).as_str())
                .with("operation", data.operation.as_str()),
        ),
        Payload::Log(data) if event.kind == EventKind::ContainerSaid => Some(last_words::told(event, data)),
        Payload::Log(data) => Some(match record.fault {
            Some(fault) => log_fault(event, &data.body, fault),
            None => weak(at(event, SignalKind::LogErrors), 0.3)
                .with("error_type", data.error_type.as_str())
                .with("message", cut(&data.body).as_str())
                .with("logger", data.logger.as_str()),
        }),
        _ => None,
    }?;
    Some(keyed(event, seen))
}

fn at(event: &UnifiedEvent, kind: SignalKind) -> Observation {
    let mut seen = Observation::new(kind, &event.entity, event.timestamp, event.id);
    seen.pid = event.pid;
    seen.confirm = Confirm::needed(kind, &event.entity);
    seen
}

fn weak(mut seen: Observation, strength: f64) -> Observation {
    seen.strength = strength;
    seen
}

/// Strength of what a line of a log says.
pub const LINE_STRENGTH: f64 = 0.8;

/// A line whose words say what is wrong; of a program it takes several, see [`Confirm`].
fn log_fault(event: &UnifiedEvent, body: &str, fault: &str) -> Observation {
    let mut seen = weak(at(event, SignalKind::LogFault), LINE_STRENGTH);
    seen.topic = hash_parts(&[fault]) as u64;
    seen.peer = if fault == "rbac" { faults::account_named(body) } else { None };
    seen.with("fault", fault).with("message", cut(body).as_str())
}

fn keyed(event: &UnifiedEvent, mut seen: Observation) -> Observation {
    seen.key = event.key();
    seen
}

/// Deviations of a unit that systemd restarts each time it ends; those of one that it gave up have topic zero.
pub const RESTARTED: u64 = 1;
/// Such a unit is over it when it has run for this long.
const RESTARTED_IDLE_NS: u64 = 300_000_000_000;

/// systemd gave up on a unit, or starts it again after it ended with an error.
fn unit(event: &UnifiedEvent, data: &SystemdData) -> Option<Observation> {
    let is_restarted =
        event.kind == EventKind::SystemdUnitStopped && data.sub_state.starts_with("auto-restart");
    if event.kind != EventKind::SystemdUnitFailed && !is_restarted {
        return None;
    }
    let mut seen = at(event, SignalKind::UnitFailed)
        .with("unit", data.unit.as_str())
        .with("result", data.result.as_str())
        .with("exit_code", i64::from(data.exit_code))
        .with("restarts", i64::from(data.restarts))
        .with("message", cut(&data.message).as_str());
    if is_restarted {
        (seen.topic, seen.idle_ns) = (RESTARTED, RESTARTED_IDLE_NS);
        seen.confirm = Some(Confirm::restarted_unit());
        // The number is that before the restart which follows.
        seen = seen.with("restarted", i64::from(data.restarts) + 1);
    }
    Some(seen)
}

fn oom_kill(event: &UnifiedEvent, data: &tapio_schemas::payload::KernelData) -> Observation {
    let mut seen = at(event, SignalKind::OomKill)
        .with("seen_by", "kernel")
        .with("comm", data.comm.as_str())
        .with("executable", data.executable.as_str())
        .with("pid", i64::from(event.pid))
        .with("main_process", tapio_schemas::AttributeValue::Bool(data.is_init));
    if let Some(victim) = &data.victim {
        seen = seen
            .with("anon_rss_bytes", victim.anon_rss_bytes as i64)
            .with("total_vm_bytes", victim.total_vm_bytes as i64)
            .with("oom_score_adj", i64::from(victim.oom_score_adj));
        seen.observed = victim.anon_rss_bytes as f64;
        seen.unit = "By";
    }
    // Two kills half a minute apart are two kills; the processes that one kill takes with it come within a second or two.
    seen.idle_ns = 10_000_000_000;
    seen
}

/// errno of a connection on which nothing came back (Linux).
const ETIMEDOUT: u16 = 110;

fn network(event: &UnifiedEvent, data: &NetworkData) -> Option<Observation> {
    let status = data.detail.as_ref().map_or(0, |d| d.status);
    let (kind, strength) = match event.kind {
        EventKind::NetConnectRefused => (SignalKind::NetRefused, 0.9),
        EventKind::NetConnectTimeout => (SignalKind::NetTimeout, 0.9),
        EventKind::NetClose if data.errno == ETIMEDOUT => (SignalKind::NetTimeout, 0.9),
        EventKind::NetConnectUnreachable => (SignalKind::NetUnreachable, 0.9),
        EventKind::NetReset | EventKind::NetConnectReset => (SignalKind::NetReset, 0.6),
        EventKind::NetRetransmit => (SignalKind::NetRetransmits, 0.3),
        EventKind::NetDrop => (SignalKind::NetDrops, 0.4),
        EventKind::NetDns if status != 0 => (SignalKind::DnsFailures, 0.7),
        EventKind::NetHttp if status >= 500 => (SignalKind::HttpServerErrors, 0.6),
        // A reset packet alone: what it did to its connection is told by that connection's own event.
        _ => return None,
    };
    let mut seen = weak(at(event, kind), strength);
    seen.peer = peer(event, data);
    let remote = endpoint(data.remote_addr, data.remote_port);
    if let Some(detail) = &data.detail {
        seen =
            seen.with("drop_reason", detail.drop_reason.as_str()).with("protocol", detail.protocol.as_str());
    }
    if status != 0 {
        seen = seen.with("status", i64::from(status));
    }
    Some(
        seen.with("remote", remote.as_str())
            .with("remote_port", i64::from(data.remote_port))
            .with("errno", i64::from(data.errno))
            .with("comm", data.comm.as_str())
            .with("pid", i64::from(event.pid))
            .with("duration_ms", data.duration_ns as f64 / 1e6),
    )
}

/// The other end of a connection: what is known to stand behind the address, else the address.
pub fn peer(event: &UnifiedEvent, data: &NetworkData) -> Option<Entity> {
    peer_of(&event.entity.namespace, &data.peer, data.remote_addr, data.remote_port)
}

/// [`peer`] of its parts.
pub fn peer_of(namespace: &str, peer: &str, addr: [u8; 16], port: u16) -> Option<Entity> {
    if !peer.is_empty() {
        return Some(Entity::namespaced(kinds::SERVICE, namespace, peer));
    }
    (port != 0).then(|| Entity::new(kinds::EXTERNAL, "", &endpoint(addr, port), ""))
}

/// `address:port` of the remote end.
fn endpoint(addr: [u8; 16], port: u16) -> String {
    let address = Ipv6Addr::from(addr);
    match address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4) {
        IpAddr::V4(v4) => format!("{v4}:{port}"),
        IpAddr::V6(v6) => format!("[{v6}]:{port}"),
    }
}

fn kubernetes(event: &UnifiedEvent, data: &KubernetesData) -> Option<Observation> {
    let reason = data.reason.as_str();
    let kind = match event.kind {
        EventKind::K8sContainerTerminated if reason == "OOMKilled" => SignalKind::ContainerOomKilled,
        EventKind::K8sContainerTerminated if data.exit_code != 0 || data.signal != 0 => {
            SignalKind::ContainerCrashed
        }
        EventKind::K8sContainerWaiting => waiting(reason)?,
        EventKind::K8sPodNotReady => SignalKind::PodNotReady,
        EventKind::K8sPodUnschedulable => SignalKind::Unschedulable,
        // Somebody asked for it, as for any deletion, and nothing was in the way.
        EventKind::K8sPodEvicted if reason == "EvictionByEvictionAPI" => return None,
        EventKind::K8sPodEvicted => SignalKind::Evicted,
        EventKind::K8sImageChanged => {
            return Some(k8s_facts(
                change(event, SignalKind::ImageChanged, &data.old_value, &data.new_value),
                data,
            ));
        }
        EventKind::K8sConfigChanged => {
            return Some(k8s_facts(
                change(event, SignalKind::ConfigChanged, &data.old_value, &data.new_value),
                data,
            ));
        }
        EventKind::K8sScaled => {
            return Some(k8s_facts(
                change(event, SignalKind::Scaled, &data.old_value, &data.new_value),
                data,
            ));
        }
        EventKind::K8sRollout => {
            let generation = data.generation.to_string();
            return Some(k8s_facts(change(event, SignalKind::RolloutStarted, "", &generation), data));
        }
        EventKind::K8sNodeCondition => node_condition(data)?,
        EventKind::K8sNoEndpoints => SignalKind::NoEndpoints,
        EventKind::K8sStuck => SignalKind::Stuck,
        EventKind::K8sSpecChanged => {
            let seen = change(event, SignalKind::ObjectChanged, &data.old_value, &data.new_value);
            return Some(k8s_facts(seen, data));
        }
        EventKind::K8sObjectChanged => condition(data)?,
        // Of a pod it says that its machine is not, and so it is not; the machine has its own event.
        EventKind::K8sEvent if reason == "NodeNotReady" && data.object_kind != kinds::NODE => {
            if event.entity.pod.is_empty() {
                return None;
            }
            SignalKind::PodNotReady
        }
        EventKind::K8sEvent => by_reason(data)?,
        _ => return None,
    };
    let mut seen = at(event, kind);
    if reason == "SystemOOM" {
        seen.confirm = Some(Confirm::told_by_kubelet());
    }
    Some(k8s_facts(seen, data))
}

fn waiting(reason: &str) -> Option<SignalKind> {
    Some(match reason {
        "CrashLoopBackOff" => SignalKind::CrashLoop,
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
            SignalKind::ImagePullFailed
        }
        "CreateContainerConfigError" => SignalKind::ConfigMissing,
        "CreateContainerError" | "RunContainerError" => SignalKind::CreateFailed,
        _ => return None,
    })
}

/// Conditions of objects that say that something does not go on; the others repeat what other events tell.
pub fn condition(data: &KubernetesData) -> Option<SignalKind> {
    // More pods are wanted than there may be; that fewer are wanted than there must be is no limit that anybody feels.
    let stops = match (data.object_kind.as_str(), data.new_value.as_str()) {
        ("HorizontalPodAutoscaler", "ScalingLimited=True") => data.reason == "TooManyReplicas",
        ("HorizontalPodAutoscaler", "ScalingActive=False" | "AbleToScale=False")
        | ("Deployment", "Progressing=False")
        | ("Job", "Failed=True")
        | ("APIService", "Available=False")
        | ("Gateway" | "HTTPRoute", "Accepted=False" | "Programmed=False" | "ResolvedRefs=False") => true,
        _ => false,
    };
    stops.then_some(SignalKind::ConditionBad)
}

fn node_condition(data: &KubernetesData) -> Option<SignalKind> {
    match (data.reason.as_str(), data.new_value.as_str()) {
        ("Ready", "True") => None,
        ("Rebooted", _) => Some(SignalKind::NodeRestarted),
        ("Ready", _) => Some(SignalKind::NodeNotReady),
        (reason, "True") if reason.ends_with("Pressure") => Some(SignalKind::NodePressure),
        (reason, _) if reason.contains("NotReady") => Some(SignalKind::NodeNotReady),
        _ => None,
    }
}

fn by_reason(data: &KubernetesData) -> Option<SignalKind> {
    Some(match data.reason.as_str() {
        "BackOff" if data.message.contains("pull") => SignalKind::ImagePullFailed,
        "BackOff" => SignalKind::CrashLoop,
        "Unhealthy" | "ProbeError" => SignalKind::ProbeFailed,
        // The kubelet ends a container for nothing else that it tells in these words.
        "Killing" if probe_of_kill(&data.message).is_some() => SignalKind::ProbeFailed,
        "FailedMount" | "FailedAttachVolume" | "FailedMapVolume" => SignalKind::MountFailed,
        "FailedScheduling" => SignalKind::Unschedulable,
        "FailedCreatePodSandBox" => SignalKind::SandboxFailed,
        "FailedCreate" => SignalKind::CreateFailed,
        "Failed" if data.message.contains("pull") => SignalKind::ImagePullFailed,
        "Failed" => SignalKind::CreateFailed,
        "Evicted" | "Preempted" => SignalKind::Evicted,
        "NodeNotReady" => SignalKind::NodeNotReady,
        "Rebooted" => SignalKind::NodeRestarted,
        "OOMKilling" | "SystemOOM" => SignalKind::OomKill,
        _ if data.event_type == "Warning" => SignalKind::K8sWarning,
        _ => return None,
    })
}

fn k8s_facts(mut seen: Observation, data: &KubernetesData) -> Observation {
    if seen.kind == SignalKind::ProbeFailed {
        seen = probe_facts(seen, data);
    }
    if seen.kind == SignalKind::CreateFailed {
        seen = refused_by(seen, &data.message);
    }
    seen = other_end(seen, data);
    if let Some(fault) = faults::fault(seen.kind, &data.reason, &data.message) {
        seen = seen.with("fault", fault);
    }
    if seen.kind == SignalKind::K8sWarning {
        // Warnings of different reasons are different deviations, and none of them says much alone.
        seen.topic = hash_parts(&[&data.reason]) as u64;
        // But for one whose words say what is wrong.
        let says = seen.attributes.iter().any(|a| a.key == "fault");
        seen.strength = if says { 0.9 } else { 0.3 };
    }
    seen.with("reason", data.reason.as_str())
        .with("message", cut(&data.message).as_str())
        .with("exit_code", i64::from(data.exit_code))
        .with("signal", i64::from(data.signal))
        .with("restart_count", i64::from(data.restart_count))
        .with("generation", i64::try_from(data.generation).unwrap_or(i64::MAX))
        .with("changed_by", data.changed_by.as_str())
        .with("reporter", data.reporter.as_str())
}

/// The other end of what Kubernetes tells, where the event names it.
fn other_end(mut seen: Observation, data: &KubernetesData) -> Observation {
    let namespace = seen.entity.namespace.clone();
    let named = match seen.kind {
        SignalKind::NoEndpoints => {
            data.relations.first().map(|r| Entity::namespaced(&r.kind, &namespace, &r.name))
        }
        SignalKind::Stuck if data.reason == "NotScheduled" => {
            Some(Entity::new("Component", "", "kube-scheduler", ""))
        }
        SignalKind::Evicted | SignalKind::Stuck => faults::entity_of(&data.changed_by),
        SignalKind::K8sWarning | SignalKind::ContainerCrashed => faults::account_named(&data.message),
        SignalKind::ProbeFailed => match faults::fault(seen.kind, &data.reason, &data.message) {
            // The name under which every cluster knows its name service, whatever runs it.
            Some("dns") => Some(Entity::namespaced(kinds::SERVICE, "kube-system", "kube-dns")),
            _ => faults::service_named(&data.message)
                .or_else(|| faults::service_looked_up(&namespace, &data.message)),
        },
        _ => None,
    };
    if seen.kind == SignalKind::ConditionBad {
        let name = data.new_value.split('=').next().unwrap_or_default();
        seen.topic = hash_parts(&[name]) as u64;
        seen = seen.with("condition", name);
    }
    seen.peer = named.or(seen.peer);
    seen
}

/// `Container app failed liveness probe, will be restarted` → `liveness`.
fn probe_of_kill(message: &str) -> Option<&'static str> {
    ["liveness", "startup"].into_iter().find(|probe| message.contains(&format!("failed {probe} probe")))
}

/// Which probe, and what it was answered. The facts stay with the deviation, whatever probe fails next.
fn probe_facts(mut seen: Observation, data: &KubernetesData) -> Observation {
    const PROBES: [(&str, &str); 3] =
        [("Liveness", "liveness"), ("Readiness", "readiness"), ("Startup", "startup")];
    let yes = || tapio_schemas::AttributeValue::Bool(true);
    if let Some(probe) = probe_of_kill(&data.message) {
        // The probe has failed as often as it may.
        seen.confirm = None;
        return seen.with(probe, yes()).with("restarts", yes()).with("killed", yes());
    }
    for (first_word, probe) in PROBES {
        if data.message.starts_with(first_word) {
            seen = seen.with(probe, yes());
            let restarts = probe != "readiness";
            if restarts {
                seen = probe_answer(seen.with("restarts", yes()), &data.message);
            }
        }
    }
    seen
}

/// Who refused to let a pod be made, in the words of the API server: a quota of the namespace (`exceeded quota: team,
/// requested: …`), or a webhook behind a service that could not be asked (`failed calling webhook "w": … Post
/// "https://service.namespace.svc:443/…"`).
fn refused_by(mut seen: Observation, message: &str) -> Observation {
    let quota = message.split_once("exceeded quota: ").or_else(|| message.split_once("failed quota: "));
    if let Some((_, rest)) = quota {
        let name = rest.split([',', ' ', ':']).next().unwrap_or_default();
        if !name.is_empty() {
            seen.peer = Some(Entity::namespaced("ResourceQuota", &seen.entity.namespace, name));
        }
    } else if let Some((_, rest)) = message.split_once("failed calling webhook \"") {
        let webhook = rest.split('"').next().unwrap_or_default();
        let host =
            rest.split_once("https://").map(|(_, url)| url.split([':', '/', '?']).next().unwrap_or(""));
        let mut labels = host.unwrap_or_default().split('.');
        if let (Some(service), Some(namespace), Some("svc")) = (labels.next(), labels.next(), labels.next()) {
            seen.peer = Some(Entity::namespaced(kinds::SERVICE, namespace, service));
        }
        seen = seen.with("webhook", webhook);
    } else if let Some(level) = faults::quoted_after(message, "violates PodSecurity") {
        seen.peer = Some(Entity::new(kinds::NAMESPACE, "", &seen.entity.namespace, ""));
        seen = seen.with("level", level.as_str());
    } else if let Some(absent) = faults::absent_object(&seen.entity.namespace, message) {
        seen.peer = Some(absent);
    }
    seen
}

/// What the probe was answered tells who is wrong: a refusal of the path comes from a program that works.
fn probe_answer(seen: Observation, message: &str) -> Observation {
    let yes = tapio_schemas::AttributeValue::Bool(true);
    if let Some(status) = message.rsplit_once("statuscode: ").and_then(|(_, code)| code.parse::<i64>().ok()) {
        seen.with("probe_status", status)
    } else if says_timeout(message) {
        seen.with("probe_timeout", yes)
    } else if message.contains("connection refused") {
        seen.with("probe_refused", yes)
    } else {
        seen
    }
}

/// Two changes are two signals, also within a second.
fn change(event: &UnifiedEvent, kind: SignalKind, old: &str, new: &str) -> Observation {
    let mut seen = at(event, kind);
    seen.topic = hash_parts(&[old, new]) as u64;
    let (old_key, new_key) = match kind {
        SignalKind::ImageChanged => ("image_old", "image_new"),
        _ => ("old", "new"),
    };
    seen.with(old_key, old).with(new_key, new)
}
