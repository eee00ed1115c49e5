//! What things mean: checks on events, and intent, category and group type of deviations.

use tapio_schemas::kind::{ArchivedEventSeverity, Category};
use tapio_schemas::wire::EventView;
use tapio_schemas::{SignalKind, UnixNanos};

use super::counters::Dropped;

/// What a kind of deviation means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    /// Type of the semantic group its evidence belongs to.
    pub group_type: &'static str,
    /// What is going on.
    pub intent: &'static str,
    /// Which concern it touches.
    pub category: Category,
}

/// Group type, intent and category of a kind of deviation.
pub fn meaning(kind: SignalKind) -> Meaning {
    use SignalKind as K;
    let (group_type, intent, category) = match kind {
        K::MemoryGrowth | K::MemoryNearLimit | K::MemoryPressure => {
            ("memory_pressure_cascade", "memory-exhaustion", Category::Resource)
        }
        K::OomKill | K::ContainerOomKilled => ("memory_pressure_cascade", "oom-kill", Category::Reliability),
        K::CrashSignal | K::ExitNonzero | K::Killed | K::ContainerCrashed | K::CrashLoop | K::UnitFailed => {
            ("service_failure", "process-crash", Category::Reliability)
        }
        K::NetRefused | K::NetTimeout | K::NetUnreachable | K::NetReset => {
            ("network_connectivity", "connection-failure", Category::Network)
        }
        K::NetRetransmits | K::NetDrops | K::NetworkGap => {
            ("network_connectivity", "packet-loss", Category::Network)
        }
        K::ApiSlow
        | K::ApiRefuses
        | K::ApiFails
        | K::EtcdSlow
        | K::EtcdNearFull
        | K::EtcdUnstable
        | K::Backlog
        | K::ComponentFails => ("control_plane", "control-plane", Category::System),
        K::ClockOff | K::PlegSlow => ("node_failure", "node-condition", Category::System),
        K::ConntrackNearFull => ("resource_exhaustion", "resource-exhaustion", Category::Resource),
        K::DnsFails | K::DnsSlow | K::DnsAmplified | K::DnsFailures => {
            ("network_connectivity", "name-resolution", Category::Network)
        }
        K::CpuThrottled | K::CpuPressure | K::CpuSaturated | K::CpuRaised => {
            ("cpu_contention", "cpu-starvation", Category::Performance)
        }
        K::IoPressure
        | K::DiskNearFull
        | K::DiskGrowth
        | K::DiskFull
        | K::PidsNearLimit
        | K::MetricBeyond => ("resource_exhaustion", "resource-exhaustion", Category::Resource),
        K::SpanErrors | K::HttpServerErrors | K::LogErrors | K::LogFault | K::LastWords => {
            ("service_failure", "request-failure", Category::Reliability)
        }
        K::CertificateExpiring | K::CertificateExpired => {
            ("certificate_end", "certificate-expiry", Category::Reliability)
        }
        K::SpanTimeouts => ("service_failure", "dependency-timeout", Category::Reliability),
        K::SpanSlow | K::OwnTime | K::CallsStopped | K::CallsRepeated | K::TraceShape | K::MetricShift => {
            ("service_degradation", "latency-degradation", Category::Performance)
        }
        K::ImageChanged
        | K::ConfigChanged
        | K::Scaled
        | K::RolloutStarted
        | K::ChangeApplied
        | K::ObjectChanged => ("rollout", "change", Category::Change),
        K::ImagePullFailed
        | K::ConfigMissing
        | K::Unschedulable
        | K::MountFailed
        | K::CreateFailed
        | K::Stuck
        | K::SandboxFailed => ("pod_startup", "pod-startup", Category::Reliability),
        K::ProbeFailed | K::PodNotReady | K::K8sWarning | K::NoEndpoints | K::ConditionBad => {
            ("service_failure", "workload-unready", Category::Reliability)
        }
        K::TapioLoss
        | K::TapioSpooling
        | K::TapioCircuitOpen
        | K::TapioLag
        | K::TapioDiskRefuses
        | K::TapioDeferring
        | K::TapioMemory => ("tapio_itself", "observability-loss", Category::System),
        K::NodeNotReady | K::NodePressure | K::NodeRestarted | K::Evicted => {
            ("node_failure", "node-condition", Category::System)
        }
    };
    Meaning { group_type, intent, category }
}

/// True for a kind that tells of a change: it is prior evidence, not a deviation that ends.
pub fn is_change(kind: SignalKind) -> bool {
    meaning(kind).category == Category::Change
}

/// How long evidence of one kind may pause before the deviation counts as over, as a multiple of the configured idle time.
pub fn idle_factor(kind: SignalKind) -> u64 {
    use SignalKind as K;
    match kind {
        // Kubernetes repeats an event after minutes; until then the state it tells of goes on.
        K::CrashLoop | K::ImagePullFailed | K::ConfigMissing | K::Unschedulable | K::MountFailed => 20,
        K::CreateFailed | K::SandboxFailed | K::ProbeFailed | K::PodNotReady => 20,
        K::NodeNotReady | K::NodePressure | K::UnitFailed => 20,
        // Scraped once a minute at worst; the kernel says it again as long as it lasts.
        K::MetricBeyond | K::LogFault | K::NodeRestarted => 6,
        // Told once, and over when that is told.
        K::NoEndpoints | K::Stuck | K::ConditionBad => 60,
        K::ContainerOomKilled | K::ContainerCrashed | K::Evicted => 4,
        _ => 1,
    }
}

/// Bounds that one event is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Older than this: refused.
    pub oldest: UnixNanos,
    /// Newer than this: refused.
    pub newest: UnixNanos,
}

/// Checks one event in place: identity and age. False means refused, and counted.
pub fn is_acceptable(view: &EventView<'_>, bounds: Bounds, dropped: &mut Dropped) -> bool {
    let at = view.timestamp();
    if at.0 == 0 || view.event.id.0.to_native() == 0 || view.entity().is_none() {
        dropped.integrity += 1;
        return false;
    }
    if at < bounds.oldest {
        dropped.too_old += 1;
        return false;
    }
    if at > bounds.newest {
        dropped.in_future += 1;
        return false;
    }
    true
}

/// Counts one producer's events per second of event time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rate {
    second: u64,
    count: u32,
}

impl Rate {
    /// True when an event of this severity may still pass.
    pub fn admits(&mut self, at: UnixNanos, severity: &ArchivedEventSeverity, per_second_max: u32) -> bool {
        let second = at.0 / 1_000_000_000;
        if second != self.second {
            // Events of two neighbouring seconds alternate at the border; only a newer one begins a new count.
            if second < self.second {
                return true;
            }
            *self = Self { second, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count <= per_second_max || *severity >= ArchivedEventSeverity::Warning
    }
}
