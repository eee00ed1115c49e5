//! Exactly one typed payload per event.

use rkyv::with::Map;
use rkyv::{Archive, Deserialize, Serialize};
use smol_str::SmolStr;

use crate::attribute::Attribute;
use crate::ids::{SpanId, TraceId, UnixNanos};
use crate::vocabulary::vocabulary;
use crate::wire::Interned;

macro_rules! payload_struct {
    ($(#[$doc:meta])* pub struct $name:ident { $($body:tt)* }) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Default, PartialEq, Archive, Serialize, Deserialize,
            serde::Serialize, serde::Deserialize,
        )]
        #[serde(default)]
        pub struct $name { $($body)* }
    };
}

/// Layer-specific data. Boxed, so that an event on the wire pays only for what it carries.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// Processes, signals, memory.
    Kernel(Box<KernelData>),
    /// Connections and packets.
    Network(Box<NetworkData>),
    /// Errors an application reports.
    Application(Box<ApplicationData>),
    /// Objects and events of the Kubernetes API.
    Kubernetes(Box<KubernetesData>),
    /// One measured value.
    Metric(Box<MetricData>),
    /// One OpenTelemetry span.
    Span(Box<SpanData>),
    /// One log record.
    Log(Box<LogData>),
    /// A systemd unit.
    Systemd(Box<SystemdData>),
    /// The container runtime (CRI).
    Runtime(Box<RuntimeData>),
    /// Pod networking set-up.
    Cni(Box<CniData>),
    /// Somebody changed something.
    Change(Box<ChangeData>),
    /// Anything else, as attributes.
    Custom(Box<CustomData>),
}

impl Payload {
    /// True for what comes in masses and may be shed when it is not severe: measurements, traces, kernel events. What
    /// tells of objects, changes and Tapio itself is rare, and what is said of others rests on it.
    pub fn is_routine(&self) -> bool {
        match self {
            Self::Kernel(_) | Self::Network(_) | Self::Application(_) => true,
            Self::Metric(_) | Self::Span(_) | Self::Log(_) => true,
            Self::Kubernetes(_) | Self::Systemd(_) | Self::Runtime(_) | Self::Cni(_) => false,
            Self::Change(_) | Self::Custom(_) => false,
        }
    }
}

impl ArchivedPayload {
    /// As [`Payload::is_routine`], in place.
    pub fn is_routine(&self) -> bool {
        match self {
            Self::Kernel(_) | Self::Network(_) | Self::Application(_) => true,
            Self::Metric(_) | Self::Span(_) | Self::Log(_) => true,
            Self::Kubernetes(_) | Self::Systemd(_) | Self::Runtime(_) | Self::Cni(_) => false,
            Self::Change(_) | Self::Custom(_) => false,
        }
    }
}

payload_struct! {
    /// Process life and death. Fields that a kind does not use are zero.
    pub struct KernelData {
        /// Parent process, or the sender of a signal.
        pub other_pid: u32,
        /// Exit code 0..=255; for exits.
        pub exit_code: i32,
        /// Signal that killed or was sent; zero for none.
        pub signal: u32,
        /// User id.
        pub uid: u32,
        /// True when the process is the first of its pid namespace (a container's main process).
        pub is_init: bool,
        /// `process.command`, 15 bytes at most.
        #[rkyv(with = Interned)]
        pub comm: SmolStr,
        /// `process.executable.path`, when known.
        #[rkyv(with = Interned)]
        pub executable: SmolStr,
        /// Memory of an out-of-memory victim.
        pub victim: Option<Box<VictimData>>,
    }
}

payload_struct! {
    /// What the kernel says of an out-of-memory victim.
    pub struct VictimData {
        /// Resident anonymous memory, bytes.
        pub anon_rss_bytes: u64,
        /// Resident file memory, bytes.
        pub file_rss_bytes: u64,
        /// Total virtual memory, bytes.
        pub total_vm_bytes: u64,
        /// `oom_score_adj`.
        pub oom_score_adj: i16,
    }
}

payload_struct! {
    /// A connection or a packet. Addresses are IPv6 or IPv4-mapped, big endian.
    pub struct NetworkData {
        /// Local address.
        pub local_addr: [u8; 16],
        /// Remote address.
        pub remote_addr: [u8; 16],
        /// Local port.
        pub local_port: u16,
        /// Remote port.
        pub remote_port: u16,
        /// errno the application sees, positive; zero for none.
        pub errno: u16,
        /// Time to the outcome (connect) or life of the connection (close), ns.
        pub duration_ns: u64,
        /// `process.command`.
        #[rkyv(with = Interned)]
        pub comm: SmolStr,
        /// Entity behind the remote address, when known.
        #[rkyv(with = Interned)]
        pub peer: SmolStr,
        /// What only some kinds know.
        pub detail: Option<Box<NetworkDetail>>,
    }
}

payload_struct! {
    /// What only some kinds of network events know.
    pub struct NetworkDetail {
        /// Bytes sent, for closes.
        pub sent_bytes: u64,
        /// Bytes received, for closes.
        pub received_bytes: u64,
        /// Kernel drop reason, by name.
        #[rkyv(with = Interned)]
        pub drop_reason: SmolStr,
        /// Layer 7 protocol (`http`, `dns`), when parsed.
        #[rkyv(with = Interned)]
        pub protocol: SmolStr,
        /// Status of the layer 7 answer: an HTTP status or a DNS response code.
        pub status: u16,
    }
}

payload_struct! {
    /// An error an application reports.
    pub struct ApplicationData {
        /// `exception.type`
        #[rkyv(with = Interned)]
        pub error_type: SmolStr,
        /// `exception.message`
        #[rkyv(with = Interned)]
        pub message: SmolStr,
        /// `exception.stacktrace`, cut.
        #[rkyv(with = Interned)]
        pub stack: SmolStr,
        /// Where it happened.
        #[rkyv(with = Interned)]
        pub operation: SmolStr,
    }
}

payload_struct! {
    /// A relation between two objects.
    pub struct Relation {
        /// `owns`, `runs_on`, `mounts`, `selects`, …: see [`crate::signal::EdgeKind`].
        #[rkyv(with = Interned)]
        pub edge: SmolStr,
        /// Kind of the other object.
        #[rkyv(with = Interned)]
        pub kind: SmolStr,
        /// Name of the other object; its namespace is the event's.
        #[rkyv(with = Interned)]
        pub name: SmolStr,
    }
}

payload_struct! {
    /// What the Kubernetes API said.
    pub struct KubernetesData {
        /// `v1`, `apps/v1`, …
        #[rkyv(with = Interned)]
        pub api_version: SmolStr,
        /// Kind of the object.
        #[rkyv(with = Interned)]
        pub object_kind: SmolStr,
        /// Name of the object.
        #[rkyv(with = Interned)]
        pub object_name: SmolStr,
        /// uid of the object.
        #[rkyv(with = Interned)]
        pub uid: SmolStr,
        /// Event reason, or reason of a status or condition: `OOMKilled`, `BackOff`.
        #[rkyv(with = Interned)]
        pub reason: SmolStr,
        /// Message.
        #[rkyv(with = Interned)]
        pub message: SmolStr,
        /// Event type: `Normal` or `Warning`.
        #[rkyv(with = Interned)]
        pub event_type: SmolStr,
        /// Reporting component.
        #[rkyv(with = Interned)]
        pub reporter: SmolStr,
        /// Who changed it (field manager), when known.
        #[rkyv(with = Interned)]
        pub changed_by: SmolStr,
        /// Old value of what changed (image, replicas, key hash).
        #[rkyv(with = Interned)]
        pub old_value: SmolStr,
        /// New value of what changed.
        #[rkyv(with = Interned)]
        pub new_value: SmolStr,
        /// Exit code of a terminated container.
        pub exit_code: i32,
        /// Signal of a terminated container.
        pub signal: i32,
        /// Restart count of the container.
        pub restart_count: u32,
        /// Generation of the object, or revision of a rollout.
        pub generation: u64,
        /// How often the event occurred.
        pub count: u32,
        /// Edges to other objects.
        pub relations: Vec<Relation>,
    }
}

vocabulary! {
    /// How the values of a metric relate.
    #[derive(Default)]
    pub enum MetricKind: u8 {
        #[default]
        Gauge = 1 => "gauge",
        CumulativeSum = 2 => "cumulative_sum",
        DeltaSum = 3 => "delta_sum",
        Histogram = 4 => "histogram",
        Summary = 5 => "summary",
    }
}

payload_struct! {
    /// One measured value.
    pub struct MetricData {
        /// Name after the semantic conventions: `container.memory.usage`.
        #[rkyv(with = Interned)]
        pub name: SmolStr,
        /// UCUM unit: `By`, `s`, `1`.
        #[rkyv(with = Interned)]
        pub unit: SmolStr,
        /// How values relate.
        pub kind: MetricKind,
        /// True for a sum that only grows.
        pub monotonic: bool,
        /// The value; mean of a histogram.
        pub value: f64,
        /// Limit of the value, in the same unit; zero for none.
        pub limit: f64,
        /// Observations behind a histogram or summary.
        pub count: u64,
        /// Start of a sum, zero when unknown.
        pub start: UnixNanos,
        /// Upper bounds of a histogram's buckets (the last is infinity and is left out).
        pub bounds: Vec<f64>,
        /// Counts of a histogram's buckets.
        pub buckets: Vec<u64>,
        /// Attributes of the point.
        pub attributes: Vec<Attribute>,
    }
}

vocabulary! {
    /// Span kind of OpenTelemetry.
    #[derive(Default)]
    pub enum SpanKind: u8 {
        #[default]
        Unspecified = 1 => "unspecified",
        Internal = 2 => "internal",
        Server = 3 => "server",
        Client = 4 => "client",
        Producer = 5 => "producer",
        Consumer = 6 => "consumer",
    }
}

vocabulary! {
    /// Span status of OpenTelemetry.
    #[derive(Default)]
    pub enum SpanStatus: u8 {
        #[default]
        Unset = 1 => "unset",
        Ok = 2 => "ok",
        Error = 3 => "error",
    }
}

payload_struct! {
    /// A link to another span.
    pub struct SpanLink {
        /// Trace of the other span.
        pub trace_id: TraceId,
        /// The other span.
        pub span_id: SpanId,
    }
}

payload_struct! {
    /// One OpenTelemetry span. The event's timestamp is the span's end; ids are in the trace context.
    pub struct SpanData {
        /// Name.
        #[rkyv(with = Interned)]
        pub name: SmolStr,
        /// Kind.
        pub kind: SpanKind,
        /// Status.
        pub status: SpanStatus,
        /// Message of the status.
        #[rkyv(with = Interned)]
        pub status_message: SmolStr,
        /// Start; the duration is the event's timestamp minus this.
        pub start: UnixNanos,
        /// Duration, ns.
        pub duration_ns: u64,
        /// `http.response.status_code`, zero for none.
        pub http_status: u16,
        /// Whom a client span called: `peer.service`, `server.address`, `db.system.name`/`db.namespace`; empty when unknown.
        #[rkyv(with = Interned)]
        pub peer: SmolStr,
        /// `error.type` or `exception.type` of the first exception event.
        #[rkyv(with = Interned)]
        pub error_type: SmolStr,
        /// Message of the first exception event.
        #[rkyv(with = Interned)]
        pub error_message: SmolStr,
        /// Attributes.
        pub attributes: Vec<Attribute>,
        /// Links.
        pub links: Vec<SpanLink>,
    }
}

payload_struct! {
    /// One log record.
    pub struct LogData {
        /// OpenTelemetry severity number 1..=24; zero when unknown.
        pub severity_number: u8,
        /// Body as text.
        #[rkyv(with = Interned)]
        pub body: SmolStr,
        /// Logger or scope.
        #[rkyv(with = Interned)]
        pub logger: SmolStr,
        /// `exception.type`, when there is one.
        #[rkyv(with = Interned)]
        pub error_type: SmolStr,
        /// Attributes.
        pub attributes: Vec<Attribute>,
    }
}

payload_struct! {
    /// A systemd unit's state.
    pub struct SystemdData {
        /// Unit name.
        #[rkyv(with = Interned)]
        pub unit: SmolStr,
        /// `ActiveState`.
        #[rkyv(with = Interned)]
        pub active_state: SmolStr,
        /// `SubState`.
        #[rkyv(with = Interned)]
        pub sub_state: SmolStr,
        /// `Result`: `exit-code`, `oom-kill`, `signal`, …
        #[rkyv(with = Interned)]
        pub result: SmolStr,
        /// `ExecMainStatus`.
        pub exit_code: i32,
        /// `NRestarts`.
        pub restarts: u32,
        /// Last line of its journal, masked.
        #[rkyv(with = Interned)]
        pub message: SmolStr,
    }
}

payload_struct! {
    /// Container runtime life cycle.
    pub struct RuntimeData {
        /// Runtime: `containerd`, `cri-o`.
        #[rkyv(with = Interned)]
        pub runtime: SmolStr,
        /// Image reference.
        #[rkyv(with = Interned)]
        pub image: SmolStr,
        /// Reason the runtime gives.
        #[rkyv(with = Interned)]
        pub reason: SmolStr,
        /// Exit code.
        pub exit_code: i32,
        /// Duration of the operation, ns.
        pub duration_ns: u64,
    }
}

payload_struct! {
    /// Pod networking.
    pub struct CniData {
        /// Plugin.
        #[rkyv(with = Interned)]
        pub plugin: SmolStr,
        /// Network name.
        #[rkyv(with = Interned)]
        pub network: SmolStr,
        /// Address given.
        #[rkyv(with = Interned)]
        pub address: SmolStr,
        /// CNI error code, zero for none.
        pub error_code: u32,
        /// Error message.
        #[rkyv(with = Interned)]
        pub error: SmolStr,
        /// Duration of the operation, ns.
        pub duration_ns: u64,
    }
}

payload_struct! {
    /// Somebody changed something.
    pub struct ChangeData {
        /// What: `image`, `config`, `replicas`, `deploy`, …
        #[rkyv(with = Interned)]
        pub what: SmolStr,
        /// Who.
        #[rkyv(with = Interned)]
        pub who: SmolStr,
        /// Before.
        #[rkyv(with = Interned)]
        pub old_value: SmolStr,
        /// After.
        #[rkyv(with = Interned)]
        pub new_value: SmolStr,
    }
}

payload_struct! {
    /// Attributes of an event that no other payload fits.
    pub struct CustomData {
        /// Name of the event.
        #[rkyv(with = Interned)]
        pub name: SmolStr,
        /// Attributes.
        pub attributes: Vec<Attribute>,
        /// Tags.
        #[rkyv(with = Map<Interned>)]
        pub tags: Vec<SmolStr>,
    }
}
