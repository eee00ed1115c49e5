//! The events that the collectors make of each kind of fault.

use std::sync::Arc;
use std::time::Duration;

use tapio_schemas::payload::{
    KernelData, KubernetesData, MetricData, MetricKind, NetworkData, Payload, SystemdData, VictimData,
};
use tapio_schemas::{EntityRef, EventKind, EventSeverity, SmolStr, Source, UnifiedEvent};

use super::faults::Step;
use super::kubernetes::pod;
use super::shapes::event;

const MIB: f64 = 1024.0 * 1024.0;
/// Length of a leak: samples once a second.
pub const LEAK_SECONDS: u64 = 40;
const ECONNREFUSED: u16 = 111;

fn step(milliseconds: u64, is_news: bool, event: UnifiedEvent) -> Step {
    Step { after: Duration::from_millis(milliseconds), is_news, event }
}

fn of_pod(
    kind: EventKind,
    severity: EventSeverity,
    entity: &Arc<EntityRef>,
    data: KubernetesData,
) -> UnifiedEvent {
    event(kind, Source::Kubernetes, severity, entity, Payload::Kubernetes(Box::new(data)))
}

fn terminated(entity: &Arc<EntityRef>, reason: &str, exit_code: i32, restart_count: u32) -> UnifiedEvent {
    let data = KubernetesData { reason: reason.into(), exit_code, restart_count, ..pod(entity) };
    of_pod(EventKind::K8sContainerTerminated, EventSeverity::Error, entity, data)
}

fn waiting(entity: &Arc<EntityRef>, reason: &str, message: &str) -> UnifiedEvent {
    let data = KubernetesData { reason: reason.into(), message: message.into(), ..pod(entity) };
    of_pod(EventKind::K8sContainerWaiting, EventSeverity::Error, entity, data)
}

fn exit(entity: &Arc<EntityRef>, pid: u32, exit_code: i32, signal: u32, is_init: bool) -> UnifiedEvent {
    let data = KernelData {
        other_pid: 1,
        exit_code,
        signal,
        is_init,
        comm: "server".into(),
        ..KernelData::default()
    };
    let payload = Payload::Kernel(Box::new(data));
    UnifiedEvent { pid, ..event(EventKind::ProcessExit, Source::Ebpf, EventSeverity::Error, entity, payload) }
}

fn oom_kill(entity: &Arc<EntityRef>, pid: u32) -> UnifiedEvent {
    let victim = VictimData {
        anon_rss_bytes: 508 * MIB as u64,
        file_rss_bytes: 2 * MIB as u64,
        total_vm_bytes: 1200 * MIB as u64,
        oom_score_adj: 985,
    };
    let data = KernelData {
        is_init: true,
        comm: "server".into(),
        victim: Some(Box::new(victim)),
        ..KernelData::default()
    };
    let payload = Payload::Kernel(Box::new(data));
    UnifiedEvent { pid, ..event(EventKind::OomKill, Source::Ebpf, EventSeverity::Critical, entity, payload) }
}

pub fn out_of_memory(entity: &Arc<EntityRef>, pid: u32) -> Vec<Step> {
    vec![
        step(0, true, oom_kill(entity, pid)),
        step(2, false, exit(entity, pid, 0, 9, true)),
        step(420, true, terminated(entity, "OOMKilled", 137, 1)),
    ]
}

pub fn crash_signal(entity: &Arc<EntityRef>, pid: u32) -> Vec<Step> {
    vec![step(0, true, exit(entity, pid, 0, 11, true)), step(380, true, terminated(entity, "Error", 139, 1))]
}

/// Time between the first and the second end of a crash loop.
pub const SECOND_END: Duration = Duration::from_secs(2);

pub fn crash_loop(entity: &Arc<EntityRef>, pid: u32) -> Vec<Step> {
    vec![
        step(0, true, exit(entity, pid, 1, 0, true)),
        step(350, true, terminated(entity, "Error", 1, 1)),
        step(SECOND_END.as_millis() as u64, false, exit(entity, pid + 1_000_000, 1, 0, true)),
        step(2_350, false, terminated(entity, "Error", 1, 2)),
        step(2_900, true, waiting(entity, "CrashLoopBackOff", "back-off 10s restarting failed container")),
        step(6_000, false, exit(entity, pid + 2_000_000, 1, 0, true)),
        step(6_350, false, terminated(entity, "Error", 1, 3)),
    ]
}

pub fn image_pull(entity: &Arc<EntityRef>) -> Vec<Step> {
    let message = "failed to pull and unpack image: not found";
    vec![
        step(0, true, waiting(entity, "ErrImagePull", message)),
        step(2_000, false, waiting(entity, "ImagePullBackOff", message)),
    ]
}

pub fn missing_secret(entity: &Arc<EntityRef>) -> Vec<Step> {
    let message = format!("secret \"{}-credentials\" not found", entity.workload);
    vec![step(0, true, waiting(entity, "CreateContainerConfigError", &message))]
}

pub fn unschedulable(entity: &Arc<EntityRef>) -> Vec<Step> {
    // A pod that waits for a machine is on none and has no container.
    let waiting = EntityRef {
        node: SmolStr::default(),
        container: SmolStr::default(),
        container_id: SmolStr::default(),
        ..EntityRef::clone(entity)
    };
    let waiting = Arc::new(waiting.sealed());
    let data = KubernetesData {
        reason: "Unschedulable".into(),
        message: "0/50 nodes are available: 50 Insufficient memory.".into(),
        ..pod(entity)
    };
    let event = of_pod(EventKind::K8sPodUnschedulable, EventSeverity::Warning, &waiting, data);
    vec![step(0, true, event)]
}

pub fn unit_failed(entity: &Arc<EntityRef>, pid: u32) -> Vec<Step> {
    let data = SystemdData {
        unit: entity.unit.clone(),
        active_state: "failed".into(),
        sub_state: "failed".into(),
        result: "exit-code".into(),
        exit_code: 1,
        message: "cannot open configuration: no such file".into(),
        ..SystemdData::default()
    };
    let payload = Payload::Systemd(Box::new(data));
    let failed = event(EventKind::SystemdUnitFailed, Source::Journald, EventSeverity::Error, entity, payload);
    vec![step(0, false, exit(entity, pid, 1, 0, false)), step(4, true, failed)]
}

pub fn refused(entity: &Arc<EntityRef>, pid: u32, address: [u8; 4]) -> Vec<Step> {
    let data = NetworkData {
        remote_addr: std::net::Ipv4Addr::from(address).to_ipv6_mapped().octets(),
        remote_port: 5432,
        errno: ECONNREFUSED,
        duration_ns: 140_000,
        comm: "server".into(),
        ..NetworkData::default()
    };
    (0..12u64)
        .map(|number| {
            let data = NetworkData { local_port: 40_000 + number as u16, ..data.clone() };
            let payload = Payload::Network(Box::new(data));
            let kind = EventKind::NetConnectRefused;
            let event =
                UnifiedEvent { pid, ..event(kind, Source::Ebpf, EventSeverity::Warning, entity, payload) };
            step(number * 950, number == 0, event)
        })
        .collect()
}

/// From a fifth of the limit to the limit in [`LEAK_SECONDS`], in a container of its own within the pod, so that the pod's
/// ordinary samples are not of the same series.
pub fn leak(entity: &Arc<EntityRef>, pid: u32) -> Vec<Step> {
    let sidecar = EntityRef {
        container: "exporter".into(),
        container_id: format!("{:064x}", entity.lineage).into(),
        ..EntityRef::clone(entity)
    };
    let sidecar = Arc::new(sidecar.sealed());
    let limit = 256.0 * MIB;
    let mut steps: Vec<Step> = (0..LEAK_SECONDS)
        .map(|second| {
            let data = MetricData {
                name: "container.memory.usage".into(),
                unit: "By".into(),
                kind: MetricKind::Gauge,
                value: (limit * (0.2 + 0.8 * second as f64 / LEAK_SECONDS as f64)).floor(),
                limit,
                ..MetricData::default()
            };
            let payload = Payload::Metric(Box::new(data));
            let sample =
                event(EventKind::CgroupSample, Source::Cgroup, EventSeverity::Info, &sidecar, payload);
            step(second * 1000, false, sample)
        })
        .collect();
    let end = LEAK_SECONDS * 1000;
    steps.push(step(end, true, oom_kill(&sidecar, pid)));
    steps.push(step(end + 2, false, exit(&sidecar, pid, 0, 9, true)));
    steps
}

/// A change that is news and no fault.
pub fn scaled(entity: &Arc<EntityRef>, number: u64) -> UnifiedEvent {
    let deployment = EntityRef {
        cluster: entity.cluster.clone(),
        namespace: entity.namespace.clone(),
        workload_kind: entity.workload_kind.clone(),
        workload: entity.workload.clone(),
        ..EntityRef::default()
    };
    let deployment = Arc::new(deployment.sealed());
    let data = KubernetesData {
        api_version: "apps/v1".into(),
        object_kind: deployment.workload_kind.clone(),
        object_name: deployment.workload.clone(),
        old_value: format!("{}", 10 + number).into(),
        new_value: format!("{}", 11 + number).into(),
        changed_by: "horizontal-pod-autoscaler".into(),
        generation: number,
        ..KubernetesData::default()
    };
    of_pod(EventKind::K8sScaled, EventSeverity::Info, &deployment, data)
}
