//! Settings of the correlator. Every window, queue and map has its limit here.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tapio_runtime::config::{ByteSize, HumanDuration};

use crate::baseline::Method;
use crate::incidents::IncidentConfig;
use crate::slo::SloConfig;

/// Letters of the host's name in the name of a replica.
const REPLICA_HOST_CHARS_MAX: usize = 64;

/// Both stages of the correlator.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CorrelatorConfig {
    /// Cluster whose events are read. Default `local`.
    pub cluster: String,
    /// Name of this replica among those of the cluster: letters, digits, `-` and `_`. Default empty: the host's name with a
    /// number of its own for each start. Two that run at once must not share it.
    pub replica: String,
    /// How long after its event time an event may arrive and still be put in order. Default 500 ms. More delays
    /// every verdict by as much; less makes verdicts depend on the order of arrival.
    pub lateness: HumanDuration,
    /// Shard worker threads; 0 = one per core, at most 8. Default 0.
    pub workers: usize,
    /// Keeps each shard worker on one core of those that the process may use. Default false: it pays where the cores are this
    /// process's alone (a CPU manager with static policy), and costs where others run on them.
    pub pin_workers: bool,
    /// Batches waiting per shard worker. Default 64. Full means that the consumer waits (the stream keeps the rest).
    pub ring_batches: usize,
    /// Resident memory of this process from which 80 % on routine events of severity `info` are shed, and from 90 % those of
    /// severity `warning`. Default 2 GiB; 0 = no bound but that of the control group. The group's counts when it is less.
    pub memory_max: ByteSize,
    /// Time that a shard worker may spend on one batch before it puts the rest aside and goes on with other shards. Default
    /// 5 s; 0 = at each look at the clock. The verdicts are the same; those of the shard come later.
    pub batch_time_max: HumanDuration,
    /// Batches put aside per shard worker. Default 1024. Full means that the oldest go to the dead letters.
    pub deferred_batches_max: usize,
    /// Bytes of them. Default 32 MiB.
    pub deferred_bytes_max: ByteSize,
    /// Events waiting to be put in order, per shard. Default 65536. Full means that the oldest are released early.
    pub reorder_events_max: usize,
    /// Events further behind the watermark than this are refused as too old. Default 1 h.
    pub age_max: HumanDuration,
    /// Live input only: events further ahead of the clock than this are refused. Default 5 s.
    pub future_max: HumanDuration,
    /// Events per second of event time that one producer may send to one shard; above it events below severity
    /// `warning` are shed. Default 200000.
    pub producer_events_per_s_max: u32,
    /// Producers remembered per shard for the detection of gaps. Default 4096; the longest silent are forgotten.
    pub producers_max: usize,
    /// How far back in event time a restart reads the stream again at most. Default 15 min.
    pub replay_max: HumanDuration,
    /// A cluster of which no correlator has said for so long how far it is, is no part of any answer any more. Default
    /// 15 min, as for other words of processes. Until then `tapio check` tells that it has stopped; after it, only as
    /// long as agents of the cluster speak. Whole seconds, at least 2.
    pub forget_after: HumanDuration,
    /// Directory with patterns of the user's own (`*.yaml`), such as a mounted ConfigMap; looked at every 5 s. One for the same
    /// cause takes the place of the program's. A file that is wrong is told with its line and left out. None (default): none.
    pub patterns_dir: Option<PathBuf>,
    /// How the cause of an incident is found: `causal`, or `earliest`, `loudest`, `ranksum`, which are there to be compared
    /// with. Default `causal`.
    pub method: Method,
    /// Signals.
    pub signals: SignalConfig,
    /// Detectors on series.
    pub series: SeriesConfig,
    /// Semantic groups.
    pub groups: GroupConfig,
    /// Stage two.
    pub incidents: IncidentConfig,
    /// Objectives of services, whose error budgets are followed.
    pub slo: SloConfig,
}

impl Default for CorrelatorConfig {
    fn default() -> Self {
        Self {
            cluster: "local".to_owned(),
            replica: String::new(),
            lateness: HumanDuration::from_millis(500),
            workers: 0,
            pin_workers: false,
            ring_batches: 64,
            memory_max: ByteSize::gib(2),
            batch_time_max: HumanDuration::from_secs(5),
            deferred_batches_max: 1024,
            deferred_bytes_max: ByteSize::mib(32),
            reorder_events_max: 65_536,
            age_max: HumanDuration::from_secs(3600),
            future_max: HumanDuration::from_secs(5),
            producer_events_per_s_max: 200_000,
            producers_max: 4096,
            replay_max: HumanDuration::from_secs(900),
            forget_after: HumanDuration::from_secs(900),
            patterns_dir: None,
            method: Method::default(),
            signals: SignalConfig::default(),
            series: SeriesConfig::default(),
            groups: GroupConfig::default(),
            incidents: IncidentConfig::default(),
            slo: SloConfig::default(),
        }
    }
}

impl CorrelatorConfig {
    /// Most shard workers.
    pub const WORKERS_MAX: usize = 8;

    /// The name of this replica: as set, or made of the host's name and the moment of the start.
    pub fn replica_name(&self, started_unix_nanos: u64) -> String {
        if !self.replica.is_empty() {
            return self.replica.clone();
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let key = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' };
        let host: String = host.trim().chars().take(REPLICA_HOST_CHARS_MAX).map(key).collect();
        format!("{}-{:x}", if host.is_empty() { "replica" } else { &host }, started_unix_nanos)
    }

    /// Number of shard workers on this machine.
    pub fn worker_count(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        match self.workers {
            0 => cores.min(Self::WORKERS_MAX),
            n => n.min(usize::from(tapio_schemas::names::SHARD_COUNT)),
        }
    }
}

/// How deviations become signals.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SignalConfig {
    /// A deviation without new evidence for this long is over. Default 30 s.
    pub idle: HumanDuration,
    /// Least time between two revisions of one signal. Default 1 s.
    pub refresh: HumanDuration,
    /// Open deviations per shard. Default 4096; the longest silent are closed and counted.
    pub open_max: usize,
    /// Answered calls per shard whose client span is still waited for. Default 16384; the older half is forgotten.
    pub open_calls_max: usize,
    /// Entities per shard whose place in the graph is remembered. Default 16384; the oldest are told again.
    pub entities_max: usize,
    /// An entity's place in the graph is told again after this long. Default 5 min.
    pub topology_refresh: HumanDuration,
    /// Length of the windows in which calls are tallied. Default 5 s.
    pub tally_window: HumanDuration,
    /// Call edges tallied per shard and window. Default 4096; further edges are counted and left out.
    pub edges_max: usize,
}

impl Default for SignalConfig {
    fn default() -> Self {
        Self {
            idle: HumanDuration::from_secs(30),
            refresh: HumanDuration::from_secs(1),
            open_max: 4096,
            open_calls_max: 16_384,
            entities_max: 16_384,
            topology_refresh: HumanDuration::from_secs(300),
            tally_window: HumanDuration::from_secs(5),
            edges_max: 4096,
        }
    }
}

/// Detectors on series.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SeriesConfig {
    /// Series kept per shard. Default 8192; the longest silent are forgotten and counted.
    pub count_max: usize,
    /// Samples kept as they came. Default 120.
    pub fine_points: usize,
    /// Length of a cell of the coarse window, which keeps the last sample of each cell. Default 30 s.
    pub coarse_cell: HumanDuration,
    /// Cells of the coarse window. Default 120, an hour.
    pub coarse_points: usize,
    /// Length of a cell of the coarse window of a file system. Default 5 min.
    pub disk_cell: HumanDuration,
    /// Cells of it. Default 288, a day.
    pub disk_points: usize,
    /// A certificate that ends within this time is news. Default 14 days: what is renewed by itself is renewed before.
    pub certificate_lead: HumanDuration,
    /// Least samples for a trend. Default 10.
    pub growth_points_min: usize,
    /// Usage below this share of the limit is no news. Default 0.25.
    pub growth_usage_min: f64,
    /// Growth below this share of the limit is no news. Default 0.1.
    pub growth_rise_min: f64,
    /// A trend is not carried further than this many times its own length. Default 6.
    pub growth_reach: f64,
    /// Share of a limit (memory, processes) that is near it. Default 0.9.
    pub near_limit: f64,
    /// Share of throttled periods that is a deviation. Default 0.25.
    pub throttled: f64,
    /// Share of time (percent, `some avg10`) that tasks wait for memory. Default 20.
    pub memory_pressure: f64,
    /// … for the processor. Default 60.
    pub cpu_pressure: f64,
    /// … for input and output. Default 40.
    pub io_pressure: f64,
    /// Packets dropped per second, in two samples in a row, that are news. Default 2.
    pub drops_per_s: f64,
    /// Where packets are always dropped: so many times the usual rate are news. Default 4.
    pub drops_factor: f64,
}

impl Default for SeriesConfig {
    fn default() -> Self {
        Self {
            count_max: 8192,
            fine_points: 120,
            coarse_cell: HumanDuration::from_secs(30),
            coarse_points: 120,
            disk_cell: HumanDuration::from_secs(300),
            disk_points: 288,
            certificate_lead: HumanDuration::from_secs(14 * 86_400),
            growth_points_min: 10,
            growth_usage_min: 0.25,
            growth_rise_min: 0.1,
            growth_reach: 6.0,
            near_limit: 0.9,
            throttled: 0.25,
            memory_pressure: 20.0,
            cpu_pressure: 60.0,
            io_pressure: 40.0,
            drops_per_s: 2.0,
            drops_factor: 4.0,
        }
    }
}

/// Semantic groups.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupConfig {
    /// Open groups per shard. Default 4096; the oldest are closed and counted.
    pub count_max: usize,
    /// Members counted one by one in a group. Default 256; further ones only refresh it and are counted.
    pub members_max: usize,
    /// A group without a new member for this long is closed. Default 5 min.
    pub idle: HumanDuration,
    /// A group is closed this long after it began. Default 1 h.
    pub age_max: HumanDuration,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            count_max: 4096,
            members_max: 256,
            idle: HumanDuration::from_secs(300),
            age_max: HumanDuration::from_secs(3600),
        }
    }
}

/// Nanoseconds of a configured duration.
pub(crate) fn nanos(duration: HumanDuration) -> u64 {
    u64::try_from(duration.get().as_nanos()).unwrap_or(u64::MAX)
}
