//! Which metrics are watched.

use super::{bounds, certificate, plane};

/// A watched measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Meter {
    /// Memory that cannot be reclaimed, bytes.
    MemoryUsage = 1,
    /// Memory limit, bytes.
    MemoryLimit = 2,
    /// Memory as a share of its limit.
    MemoryShare = 3,
    /// Out-of-memory kills in a cgroup, cumulative.
    OomKills = 4,
    /// Periods of the processor quota, cumulative.
    CpuPeriods = 5,
    /// Throttled periods, cumulative.
    CpuThrottledPeriods = 6,
    /// Processor time as a share of its limit.
    CpuShare = 7,
    /// Pressure, percent of the last ten seconds.
    MemoryPressure = 8,
    /// Pressure, percent of the last ten seconds.
    CpuPressure = 9,
    /// Pressure, percent of the last ten seconds.
    IoPressure = 10,
    /// Processes.
    Pids = 11,
    /// File system usage as a share of its size.
    DiskShare = 12,
    /// Packets dropped or broken, cumulative.
    NetDrops = 13,
    /// Used bytes of a file system.
    DiskUsed = 14,
    /// Bytes that are free for programs, where used ones are told.
    DiskFree = 15,
    /// Size of a file system, bytes.
    DiskCapacity = 16,
    /// Bytes that programs can still write, where the size is told.
    DiskAvailable = 17,
    /// When a certificate ends, unix seconds.
    CertificateEnd = 18,
    /// Seconds until a certificate ends.
    CertificateLeft = 19,
    /// Duration of requests to the API server, seconds.
    ApiLatency = 20,
    /// Share of requests that the API server refuses for want of room.
    ApiRefused = 21,
    /// Share of requests that end with an error of the API server.
    ApiFailed = 22,
    /// Duration of etcd's writes to its log, of its commits, or of requests to it, seconds.
    EtcdLatency = 23,
    /// Size of etcd's database as a share of what it may have.
    EtcdShare = 24,
    /// Changes of etcd's leader in a quarter of an hour.
    EtcdLeaders = 25,
    /// Pods that wait for the scheduler.
    SchedulerPending = 26,
    /// Items that wait for a controller.
    QueueDepth = 27,
    /// 1 when a part of the control plane or one of its checks fails.
    ComponentFailing = 28,
    /// Share of names that the name service cannot answer.
    DnsFailed = 29,
    /// Duration of answers of the name service, seconds.
    DnsLatency = 30,
    /// Panics of the name service, and times when it had no upstream.
    DnsBroken = 31,
    /// Tracked connections as a share of what can be tracked.
    ConntrackShare = 32,
    /// By how much a clock is off, seconds.
    ClockOffset = 33,
    /// Duration of the kubelet's looks at its containers, seconds.
    PlegLatency = 34,
    /// A measure that is sound only within bounds; which one, the sample says.
    Bounded = 35,
    /// Names that do not exist for each that does, of those that the name service was asked for.
    DnsUnknown = 36,
}

/// Row of a bounded measure, by its name.
pub fn row_of(name: &str) -> u8 {
    bounds::find(name).unwrap_or(u8::MAX)
}

impl Meter {
    /// True for the measures of file systems.
    pub fn is_of_a_disk(self) -> bool {
        matches!(
            self,
            Self::DiskShare | Self::DiskUsed | Self::DiskFree | Self::DiskCapacity | Self::DiskAvailable
        )
    }

    /// The measure behind a metric's name, when it is watched. `attribute` looks up a text attribute of the point.
    pub fn of<'a>(name: &str, attribute: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        Some(match name {
            "container.memory.usage"
            | "container.memory.working_set"
            | "k8s.pod.memory.usage"
            | "k8s.pod.memory.working_set"
            | "container_memory_working_set_bytes" => Self::MemoryUsage,
            "container.memory.limit"
            | "k8s.container.memory_limit"
            | "k8s.container.memory.limit"
            | "container_spec_memory_limit_bytes" => Self::MemoryLimit,
            "k8s.pod.memory_limit_utilization" | "k8s.container.memory_limit_utilization" => {
                Self::MemoryShare
            }
            "container.memory.events" if attribute("event") == Some("oom_kill") => Self::OomKills,
            "container_oom_events_total" => Self::OomKills,
            "container.cpu.periods" | "container_cpu_cfs_periods_total" => Self::CpuPeriods,
            "container.cpu.throttled.periods" | "container_cpu_cfs_throttled_periods_total" => {
                Self::CpuThrottledPeriods
            }
            "k8s.pod.cpu_limit_utilization" | "k8s.container.cpu_limit_utilization" => Self::CpuShare,
            "container.memory.pressure" => Self::MemoryPressure,
            "container.cpu.pressure" => Self::CpuPressure,
            "container.io.pressure" => Self::IoPressure,
            "container.pids.count" => Self::Pids,
            "k8s.volume.utilization" | "system.filesystem.utilization" => Self::DiskShare,
            "system.filesystem.usage" => {
                match attribute("system.filesystem.state").or_else(|| attribute("state")) {
                    Some("used") => Self::DiskUsed,
                    Some("free") => Self::DiskFree,
                    _ => return None,
                }
            }
            "k8s.volume.capacity"
            | "k8s.node.filesystem.capacity"
            | "system.filesystem.limit"
            | "node_filesystem_size_bytes"
            | "kubelet_volume_stats_capacity_bytes" => Self::DiskCapacity,
            "k8s.volume.available"
            | "k8s.node.filesystem.available"
            | "node_filesystem_avail_bytes"
            | "kubelet_volume_stats_available_bytes" => Self::DiskAvailable,
            "system.network.dropped"
            | "system.network.packet.dropped"
            | "system.network.errors"
            | "system.network.packet.errors"
            | "system.network.stack.dropped" => Self::NetDrops,
            name => {
                let is_bounded = || bounds::find(name).is_some_and(|row| bounds::counts(row, &attribute));
                let known = certificate::meter(name).or_else(|| plane::meter(name));
                return known.or_else(|| is_bounded().then_some(Self::Bounded));
            }
        })
    }
}
