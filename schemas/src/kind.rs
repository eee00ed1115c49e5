//! What happened: the closed vocabulary of event kinds, and who saw it.

use crate::vocabulary::vocabulary;

vocabulary! {
    /// Kind of an event. OpenTelemetry's and Kubernetes' own words where they have one.
    pub enum EventKind: u16 {
        ProcessExec = 1 => "kernel.process_exec",
        ProcessExit = 2 => "kernel.process_exit",
        OomKill = 3 => "kernel.oom_kill",
        SignalSent = 4 => "kernel.signal",

        NetConnect = 20 => "net.connect",
        NetAccept = 21 => "net.accept",
        NetClose = 22 => "net.close",
        NetConnectRefused = 23 => "net.connect_refused",
        NetConnectTimeout = 24 => "net.connect_timeout",
        NetConnectReset = 25 => "net.connect_reset",
        NetConnectUnreachable = 26 => "net.connect_unreachable",
        NetConnectAborted = 27 => "net.connect_aborted",
        NetReset = 28 => "net.reset",
        NetResetSent = 29 => "net.reset_sent",
        NetResetReceived = 30 => "net.reset_received",
        NetRetransmit = 31 => "net.retransmit",
        NetDrop = 32 => "net.drop",
        NetDns = 33 => "net.dns",
        NetHttp = 34 => "net.http",

        Metric = 50 => "otel.metric",
        Span = 51 => "otel.span",
        Log = 52 => "otel.log",
        CgroupSample = 53 => "cgroup.sample",

        K8sEvent = 70 => "k8s.event",
        K8sObjectAdded = 71 => "k8s.object.added",
        K8sObjectChanged = 72 => "k8s.object.changed",
        K8sObjectDeleted = 73 => "k8s.object.deleted",
        K8sContainerTerminated = 74 => "k8s.pod.container_terminated",
        K8sContainerWaiting = 75 => "k8s.pod.container_waiting",
        K8sPodNotReady = 76 => "k8s.pod.not_ready",
        K8sPodUnschedulable = 77 => "k8s.pod.unschedulable",
        K8sPodEvicted = 78 => "k8s.pod.evicted",
        K8sImageChanged = 79 => "k8s.deployment.image_changed",
        K8sRollout = 80 => "k8s.deployment.rollout",
        K8sScaled = 81 => "k8s.deployment.scaled",
        K8sConfigChanged = 82 => "k8s.configmap.key_changed",
        K8sNodeCondition = 83 => "k8s.node.condition",
        K8sContainerStarted = 84 => "k8s.pod.container_started",
        K8sPodReady = 85 => "k8s.pod.ready",
        /// A Service has lost the last ready pod behind it.
        K8sNoEndpoints = 86 => "k8s.service.no_endpoints",
        /// A Service has ready pods behind it again.
        K8sEndpoints = 87 => "k8s.service.endpoints",
        /// What an object wants was made, changed or removed.
        K8sSpecChanged = 88 => "k8s.object.spec_changed",
        /// Nobody does what an object waits for.
        K8sStuck = 89 => "k8s.object.stuck",
        /// What an object waited for is there, or it waits no longer.
        K8sUnstuck = 90 => "k8s.object.unstuck",

        SystemdUnitFailed = 100 => "systemd.unit_failed",
        SystemdUnitStarted = 101 => "systemd.unit_started",
        SystemdUnitStopped = 102 => "systemd.unit_stopped",

        ContainerCreated = 120 => "runtime.container_created",
        ContainerStarted = 121 => "runtime.container_started",
        ContainerStopped = 122 => "runtime.container_stopped",
        ContainerOom = 123 => "runtime.container_oom",
        ImagePulled = 124 => "runtime.image_pulled",
        /// What a container that failed said last: lines, oldest first.
        ContainerSaid = 125 => "runtime.container_said",

        CniAdd = 140 => "cni.add",
        CniDelete = 141 => "cni.delete",
        CniFailed = 142 => "cni.failed",

        Change = 160 => "change.applied",
        AppError = 170 => "app.error",
        Custom = 200 => "custom",
    }
}

vocabulary! {
    /// Which collector saw it.
    pub enum Source: u8 {
        Ebpf = 1 => "ebpf",
        Cgroup = 2 => "cgroup",
        Otlp = 3 => "otlp",
        Kubernetes = 4 => "kubernetes",
        Journald = 5 => "journald",
        Cri = 6 => "cri",
        Cni = 7 => "cni",
        Network = 8 => "network",
        Prometheus = 9 => "prometheus",
        Audit = 10 => "audit",
        Replay = 11 => "replay",
        Tapio = 12 => "tapio",
        Filesystem = 13 => "filesystem",
    }
}

vocabulary! {
    /// What an event means for the order in which it is shed: `debug` first, `critical` last.
    pub enum EventSeverity: u8 {
        Debug = 1 => "debug",
        Info = 2 => "info",
        Warning = 3 => "warning",
        Error = 4 => "error",
        Critical = 5 => "critical",
    }
}

vocabulary! {
    /// Category of a semantic context.
    pub enum Category: u8 {
        Reliability = 1 => "reliability",
        Performance = 2 => "performance",
        Network = 3 => "network",
        Resource = 4 => "resource",
        Change = 5 => "change",
        Security = 6 => "security",
        Business = 7 => "business-critical",
        System = 8 => "system",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_numbers_are_unique() {
        let mut words: Vec<_> = EventKind::ALL.iter().map(|k| k.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), EventKind::ALL.len());
        for kind in EventKind::ALL {
            assert_eq!(kind.as_str().parse::<EventKind>().unwrap(), *kind);
        }
    }
}
