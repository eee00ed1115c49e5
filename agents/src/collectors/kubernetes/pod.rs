//! What is kept of a pod.

use serde_json::Value;
use smol_str::SmolStr;
use tapio_schemas::ids::UnixNanos;

use super::hosts;
use super::json::{Pairs, int, list, pairs, str_at, text, time};

/// Containers kept of a pod.
const CONTAINERS_MAX: usize = 64;

/// A pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PodState {
    /// Node it is bound to; empty before.
    pub node: SmolStr,
    /// `Pending`, `Running`, `Succeeded`, `Failed`, `Unknown`
    pub phase: SmolStr,
    /// Reason of the phase: `Evicted`, `NodeLost`.
    pub reason: SmolStr,
    /// Message of the phase.
    pub message: SmolStr,
    /// For a static pod: the uid its control groups carry.
    pub config_hash: SmolStr,
    /// Labels, by key.
    pub labels: Pairs,
    /// Waits for somebody to remove its scheduling gates.
    pub is_gated: bool,
    /// Containers, init containers first.
    pub containers: Vec<ContainerState>,
    /// Hosts inside the cluster that the init containers that run ask for, as far as their commands say: container and host.
    pub asked: Vec<(SmolStr, SmolStr)>,
}

/// A container of a pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ContainerState {
    /// Name.
    pub name: SmolStr,
    /// It runs before the others, to its end. One that runs beside them (`restartPolicy: Always`) is none.
    pub is_init: bool,
    /// Id without the runtime's prefix; empty before it is created.
    pub id: SmolStr,
    /// Restarts.
    pub restarts: u32,
    /// Reason and message while it waits.
    pub waiting: Option<(SmolStr, SmolStr)>,
    /// Start of the running one.
    pub running_since: Option<UnixNanos>,
    /// Ends: of the instance before, then of this one.
    pub ended: Vec<Ended>,
}

/// An end of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Id of the instance that ended.
    pub id: SmolStr,
    /// `OOMKilled`, `Error`, `Completed`, …
    pub reason: SmolStr,
    /// Message.
    pub message: SmolStr,
    /// Exit code.
    pub exit_code: i32,
    /// Signal; zero for none.
    pub signal: i32,
    /// When, to the second.
    pub at: Option<UnixNanos>,
}

impl PodState {
    /// The state of a pod as the API sends it.
    pub fn of(pod: &Value) -> Self {
        let lists = [("/status/initContainerStatuses", true), ("/status/containerStatuses", false)];
        let statuses = lists.into_iter().flat_map(|(pointer, is_before)| {
            list(pod, pointer).iter().map(move |status| {
                let state = container(status);
                ContainerState { is_init: is_before && !stays(pod, &state.name), ..state }
            })
        });
        let containers: Vec<ContainerState> = statuses.take(CONTAINERS_MAX).collect();
        let is_waiting =
            |name: &str| containers.iter().any(|c| c.is_init && c.name == name && c.running_since.is_some());
        Self {
            node: text(pod, "/spec/nodeName"),
            phase: text(pod, "/status/phase"),
            reason: text(pod, "/status/reason"),
            message: text(pod, "/status/message"),
            config_hash: text(pod, "/metadata/annotations/kubernetes.io~1config.hash"),
            labels: pairs(pod, "/metadata/labels"),
            is_gated: !list(pod, "/spec/schedulingGates").is_empty(),
            asked: hosts::asked(pod, is_waiting),
            containers,
        }
    }

    /// The container of that name.
    pub fn container(&self, name: &str) -> Option<&ContainerState> {
        self.containers.iter().find(|container| container.name == name)
    }
}

/// True for an init container that goes on beside the others.
fn stays(pod: &Value, name: &str) -> bool {
    let mut specs = list(pod, "/spec/initContainers").iter();
    specs.any(|spec| str_at(spec, "/name") == name && str_at(spec, "/restartPolicy") == "Always")
}

fn container(status: &Value) -> ContainerState {
    let waiting = status.pointer("/state/waiting");
    ContainerState {
        name: text(status, "/name"),
        is_init: false,
        id: without_runtime(text(status, "/containerID")),
        restarts: u32::try_from(int(status, "/restartCount")).unwrap_or(0),
        waiting: waiting.map(|waiting| (text(waiting, "/reason"), text(waiting, "/message"))),
        running_since: time(status, "/state/running/startedAt"),
        ended: ["/lastState/terminated", "/state/terminated"]
            .into_iter()
            .filter_map(|pointer| status.pointer(pointer))
            .map(ended)
            .collect(),
    }
}

fn ended(terminated: &Value) -> Ended {
    let number = |pointer| i32::try_from(int(terminated, pointer)).unwrap_or(0);
    let exit_code = number("/exitCode");
    Ended {
        id: without_runtime(text(terminated, "/containerID")),
        reason: text(terminated, "/reason"),
        message: text(terminated, "/message"),
        exit_code,
        // Runtimes report a death by signal as 128 + signal and rarely fill the field.
        signal: match number("/signal") {
            0 if (129..=192).contains(&exit_code) => exit_code - 128,
            signal => signal,
        },
        at: time(terminated, "/finishedAt"),
    }
}

/// `containerd://abc` → `abc`
pub fn without_runtime(id: SmolStr) -> SmolStr {
    match id.split_once("://") {
        Some((_, bare)) => SmolStr::new(bare),
        None => id,
    }
}
