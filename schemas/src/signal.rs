//! What stage one tells stage two: deviations, topology, partial aggregates, holes.

use std::sync::Arc;

use rkyv::{Archive, Deserialize, Serialize};
use smol_str::SmolStr;

use crate::attribute::{Attribute, AttributeValue};
use crate::entity::{Entity, EntityRef};
use crate::ids::{EventId, GroupId, ProducerId, Score, SignalId, TraceId, UnixNanos};
use crate::vocabulary::vocabulary;
use crate::wire::{Interned, InternedEntity};

vocabulary! {
    /// Kind of a deviation. Patterns name these.
    pub enum SignalKind: u16 {
        MemoryGrowth = 1 => "memory.growth",
        MemoryNearLimit = 2 => "memory.near_limit",
        MemoryPressure = 3 => "memory.pressure",
        OomKill = 4 => "memory.oom_kill",

        CrashSignal = 20 => "process.crash_signal",
        ExitNonzero = 21 => "process.exit_nonzero",
        Killed = 22 => "process.killed",

        NetRefused = 40 => "net.refused",
        NetTimeout = 41 => "net.timeout",
        NetReset = 42 => "net.reset",
        NetRetransmits = 43 => "net.retransmits",
        NetUnreachable = 44 => "net.unreachable",
        NetDrops = 45 => "net.drops",
        DnsFailures = 46 => "net.dns_failures",

        CpuThrottled = 60 => "cpu.throttled",
        CpuPressure = 61 => "cpu.pressure",
        CpuSaturated = 62 => "cpu.saturated",
        CpuRaised = 66 => "cpu.raised",
        IoPressure = 63 => "io.pressure",
        PidsNearLimit = 64 => "pids.near_limit",
        DiskNearFull = 65 => "disk.near_full",
        /// Used space of a file system grows towards its size; carries a [`Forecast`].
        DiskGrowth = 67 => "disk.growth",
        /// A file system has no room left.
        DiskFull = 68 => "disk.full",

        SpanErrors = 80 => "span.errors",
        SpanTimeouts = 81 => "span.timeouts",
        SpanSlow = 82 => "span.slow",
        CallsStopped = 83 => "span.stopped",
        HttpServerErrors = 84 => "http.server_errors",
        NetworkGap = 85 => "span.network_gap",
        TraceShape = 86 => "span.shape_changed",
        OwnTime = 87 => "span.own_time",
        /// Calls are made again because they failed: there are far more of them for each request.
        CallsRepeated = 88 => "span.repeated",

        // 101 and 103 were never sent and stay free.
        LogErrors = 100 => "log.errors",
        MetricShift = 102 => "metric.shift",
        /// A log line, of a program or of the kernel, whose words say by themselves what is wrong.
        LogFault = 104 => "log.fault",
        /// A metric of known meaning is beyond what is sound.
        MetricBeyond = 105 => "metric.beyond",
        /// What a container that failed said last. It is told beside a finding, and no reason by itself.
        LastWords = 106 => "log.last_words",

        UnitFailed = 120 => "systemd.unit_failed",

        ImageChanged = 140 => "change.image",
        ConfigChanged = 141 => "change.config",
        Scaled = 142 => "change.scale",
        RolloutStarted = 143 => "change.rollout",
        ChangeApplied = 144 => "change.applied",
        ObjectChanged = 145 => "change.object",

        ContainerOomKilled = 160 => "k8s.container_oom_killed",
        ContainerCrashed = 161 => "k8s.container_crashed",
        CrashLoop = 162 => "k8s.crash_loop",
        ImagePullFailed = 163 => "k8s.image_pull_failed",
        ConfigMissing = 164 => "k8s.config_missing",
        Unschedulable = 165 => "k8s.unschedulable",
        ProbeFailed = 166 => "k8s.probe_failed",
        PodNotReady = 167 => "k8s.not_ready",
        MountFailed = 168 => "k8s.mount_failed",
        CreateFailed = 169 => "k8s.create_failed",
        NodeNotReady = 170 => "k8s.node_not_ready",
        Evicted = 171 => "k8s.evicted",
        K8sWarning = 172 => "k8s.warning",
        SandboxFailed = 173 => "k8s.sandbox_failed",
        NodePressure = 174 => "k8s.node_pressure",
        NoEndpoints = 175 => "k8s.no_endpoints",
        Stuck = 176 => "k8s.stuck",
        ConditionBad = 177 => "k8s.condition",
        /// A machine was started anew.
        NodeRestarted = 178 => "k8s.node_restarted",

        TapioLoss = 180 => "tapio.loss",
        TapioSpooling = 181 => "tapio.spooling",
        TapioCircuitOpen = 182 => "tapio.circuit_open",
        TapioLag = 183 => "tapio.lag",
        TapioDiskRefuses = 184 => "tapio.disk_refuses",
        /// Work on events that is put aside, because a batch takes too long.
        TapioDeferring = 185 => "tapio.deferring",
        /// Memory that runs out, so that events are shed.
        TapioMemory = 186 => "tapio.memory",

        /// A certificate ends soon; carries a [`Forecast`].
        CertificateExpiring = 200 => "certificate.expiring",
        /// A certificate has ended and is still in use.
        CertificateExpired = 201 => "certificate.expired",

        /// Requests to the API server take long.
        ApiSlow = 220 => "controlplane.api_slow",
        /// The API server refuses requests for want of room.
        ApiRefuses = 221 => "controlplane.api_refuses",
        /// Requests end with an error of the API server.
        ApiFails = 222 => "controlplane.api_fails",
        /// Writes of etcd, or requests to it, take long.
        EtcdSlow = 223 => "controlplane.etcd_slow",
        /// The database of etcd is almost as large as it may be.
        EtcdNearFull = 224 => "controlplane.etcd_near_full",
        /// The leader of etcd changes again and again.
        EtcdUnstable = 225 => "controlplane.etcd_unstable",
        /// Pods wait for the scheduler, or items for a controller.
        Backlog = 226 => "controlplane.backlog",
        /// A part of the control plane does not answer, or one of its checks fails.
        ComponentFails = 227 => "controlplane.component_fails",
        /// The name service cannot answer.
        DnsFails = 228 => "dns.fails",
        /// The name service takes long.
        DnsSlow = 229 => "dns.slow",
        /// Most of the names that the name service is asked for do not exist: each is tried with all search suffixes.
        DnsAmplified = 233 => "dns.amplified",
        /// Almost as many connections are tracked as can be.
        ConntrackNearFull = 230 => "net.conntrack_near_full",
        /// A clock is off.
        ClockOff = 231 => "node.clock_off",
        /// A kubelet takes long to look at its containers.
        PlegSlow = 232 => "node.pleg_slow",
    }
}

vocabulary! {
    /// Typed edges of the entity graph, from → to.
    pub enum EdgeKind: u8 {
        Owns = 1 => "owns",
        RunsOn = 2 => "runs_on",
        Mounts = 3 => "mounts",
        Selects = 4 => "selects",
        Calls = 5 => "calls",
        ConnectsTo = 6 => "connects_to",
        Limits = 7 => "limits",
        Admits = 8 => "admits",
        /// Two names of one thing: a telemetry service and the workload that runs it.
        SameAs = 9 => "same_as",
    }
}

/// One deviation of one entity.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Signal {
    /// Function of entity, kind, peer, onset and topic: the same deviation has the same id from any replica.
    pub id: SignalId,
    /// Grows with each update of the same deviation.
    pub revision: u32,
    /// Kind.
    pub kind: SignalKind,
    /// What deviates.
    #[rkyv(with = InternedEntity)]
    pub entity: Arc<EntityRef>,
    /// The process, when it is about one.
    pub pid: u32,
    /// For signals about an edge (calls, connections): the other end.
    pub peer: Option<Entity>,
    /// When the deviation began.
    pub onset: UnixNanos,
    /// Last evidence.
    pub last_seen: UnixNanos,
    /// True once the deviation is over.
    pub ended: bool,
    /// 0 barely … 1 certain deviation.
    pub strength: Score,
    /// What would be normal, in `unit`; NaN when there is none.
    pub baseline: f64,
    /// What is, in `unit`; NaN when there is none.
    pub observed: f64,
    /// Unit of baseline and observed.
    #[rkyv(with = Interned)]
    pub unit: SmolStr,
    /// How often.
    pub count: u64,
    /// Expectation, for signals that predict.
    pub forecast: Option<Forecast>,
    /// A trace in which it shows.
    pub trace_id: TraceId,
    /// Semantic group the evidence is in.
    pub group: GroupId,
    /// Facts for CEL predicates and templates: `exit_code`, `signal`, `comm`, `limit`, `usage`, `image_new`, …
    pub attributes: Vec<Attribute>,
    /// Events behind it, earliest first, bounded.
    pub evidence: Vec<EventId>,
}

/// Most evidence ids a signal carries.
pub const SIGNAL_EVIDENCE_MAX: usize = 16;

impl Signal {
    /// A signal with the given identity and neutral values; `peer` may be `None`.
    pub fn new(kind: SignalKind, entity: Arc<EntityRef>, peer: Option<Entity>, onset: UnixNanos) -> Self {
        let id = signal_id(kind, &entity, peer.as_ref(), onset);
        Self {
            id,
            revision: 0,
            kind,
            entity,
            pid: 0,
            peer,
            onset,
            last_seen: onset,
            ended: false,
            strength: Score::ONE,
            baseline: f64::NAN,
            observed: f64::NAN,
            unit: SmolStr::default(),
            count: 1,
            forecast: None,
            trace_id: TraceId::default(),
            group: GroupId::default(),
            attributes: Vec::new(),
            evidence: Vec::new(),
        }
    }

    /// This deviation of several that begin at the same time on one entity: two volumes of a machine, two processes. Zero
    /// leaves the id as it is.
    #[must_use]
    pub fn of_topic(mut self, topic: u64) -> Self {
        if topic != 0 {
            let mut hash = xxhash_rust::xxh3::Xxh3::with_seed(topic);
            hash.update(&self.id.0.to_le_bytes());
            self.id = SignalId(hash.digest128());
        }
        self
    }

    /// Value of an attribute.
    pub fn attribute(&self, key: &str) -> Option<&AttributeValue> {
        crate::attribute::find(&self.attributes, key)
    }
}

fn signal_id(kind: SignalKind, entity: &EntityRef, peer: Option<&Entity>, onset: UnixNanos) -> SignalId {
    let subject = entity.subject();
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    let mut text = |part: &str| {
        hash.update(&(part.len() as u32).to_le_bytes());
        hash.update(part.as_bytes());
    };
    text(&entity.cluster);
    text(kind.as_str());
    for end in std::iter::once(&subject).chain(peer) {
        for part in [&end.kind, &end.namespace, &end.name, &end.node] {
            text(part);
        }
    }
    hash.update(&onset.0.to_le_bytes());
    SignalId(hash.digest128())
}

/// A time with an interval.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Forecast {
    /// What is expected: `oom_kill`, `disk_full`.
    #[rkyv(with = Interned)]
    pub scenario: SmolStr,
    /// How probable.
    pub probability: Score,
    /// Best estimate.
    pub at: UnixNanos,
    /// 5 % earlier than this.
    pub earliest: UnixNanos,
    /// 5 % later than this.
    pub latest: UnixNanos,
}

/// An edge of the entity graph, as seen at a time.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
pub struct Fact {
    /// When it was seen.
    pub at: UnixNanos,
    /// Kind.
    pub edge: EdgeKind,
    /// From.
    pub from: Entity,
    /// To.
    pub to: Entity,
    /// True when the edge or its `from` is gone (kept as a tombstone for ten minutes).
    pub gone: bool,
}

/// Mergeable partial aggregate of calls in one window.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// Start of the window.
    pub window_start: UnixNanos,
    /// Length of the window, ns.
    pub window_ns: u64,
    /// Caller; the callee itself for server-side tallies.
    pub from: Entity,
    /// Callee.
    pub to: Entity,
    /// Calls.
    pub calls: u64,
    /// Failed calls.
    pub errors: u64,
    /// Sum of durations, ns.
    pub duration_ns_sum: u64,
    /// Log-scaled latency histogram: (bucket, count), bucket = floor(8·log2(ns)).
    pub latency: Vec<(u16, u32)>,
}

/// A hole in a producer's sequence: events that were made and never arrived, or were dropped with a reason.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Gap {
    /// Who.
    pub producer: ProducerId,
    /// Which collector or stage.
    #[rkyv(with = Interned)]
    pub source: SmolStr,
    /// Where.
    #[rkyv(with = Interned)]
    pub node: SmolStr,
    /// How many events.
    pub lost: u64,
    /// From.
    pub from: UnixNanos,
    /// To.
    pub to: UnixNanos,
    /// Reason.
    #[rkyv(with = Interned)]
    pub reason: SmolStr,
}
