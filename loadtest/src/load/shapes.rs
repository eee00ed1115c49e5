//! Background events in the shapes in which the collectors make them, all of a cluster in which nothing is wrong.
//!
//! Kernel events as the eBPF collector converts its records, samples as the control group sampler makes them, spans and
//! logs as the OTLP receiver makes them, objects and events as the Kubernetes collector makes them.

use std::sync::Arc;

use tapio_schemas::event::{SemanticContext, TraceContext};
use tapio_schemas::kind::Category;
use tapio_schemas::payload::{
    KernelData, LogData, MetricData, MetricKind, NetworkData, NetworkDetail, SpanData, SpanKind,
};
use tapio_schemas::{
    Attribute, EntityRef, EventKind, EventSeverity, Payload, SmolStr, Source, TraceId, UnifiedEvent,
};

use super::kubernetes;
use super::random::{Random, mix};
use super::traces::Hop;
use super::world::{HOPS, PATHS, ROUTES, SPREAD, Workload, World};

/// What part an event takes in a trace; its ids are filled in when it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// None.
    None,
    /// The callee's span of a hop; comes first, because it ends first.
    Server(Hop),
    /// The caller's span of a hop.
    Client(Hop),
    /// A log record written inside a trace that is at this hop.
    Log(Hop),
}

/// A background event of one shard, without times and ids.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The event.
    pub event: UnifiedEvent,
    /// Its part in a trace.
    pub role: Role,
}

/// The share of each class of events, per thousand.
pub const MIX: [(Class, u32); 4] =
    [(Class::Kernel, 700), (Class::Span, 150), (Class::Telemetry, 100), (Class::Kubernetes, 50)];

/// Where events come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// eBPF.
    Kernel,
    /// OTLP traces.
    Span,
    /// OTLP logs and metrics, samples of control groups.
    Telemetry,
    /// Kubernetes API.
    Kubernetes,
}

/// Makes shapes of one shard, in the wanted mix over all that it has made.
pub struct Shaper<'a> {
    world: &'a World,
    shard: usize,
    random: Random,
    made: [u64; MIX.len()],
    /// Pods of the shard's workloads on the machines that speak now: (workload, instance).
    pods: Vec<(usize, usize)>,
}

impl<'a> Shaper<'a> {
    /// A shaper of one shard.
    pub fn new(world: &'a World, shard: usize, seed: &Random) -> Self {
        let random = seed.fork(1000 + shard as u64);
        Self { world, shard, random, made: [0; MIX.len()], pods: Vec::new() }
    }

    /// From now on one of `groups` groups of the shard's pods speaks: a node agent knows its own machine's pods alone, so a
    /// batch is about few of them.
    pub fn group(&mut self, group: usize, groups: usize) {
        let of_shard = self.world.by_shard[self.shard].iter();
        let all = of_shard.flat_map(|w| (0..self.world.workloads[*w].containers.len()).map(|i| (*w, i)));
        self.pods = all.enumerate().filter(|(at, _)| at % groups == group).map(|(_, pod)| pod).collect();
    }

    /// Appends one event, or the spans of a path.
    pub fn next(&mut self, out: &mut Vec<Shape>) {
        let total: u64 = self.made.iter().sum::<u64>() + 1;
        // Spans come all of a path at once: as many too early as too late.
        let ahead = |at: usize| if MIX[at].0 == Class::Span { 1000 * HOPS as i64 } else { 0 };
        let lack = |at: usize| i64::from(MIX[at].1) * total as i64 - 1000 * self.made[at] as i64 - ahead(at);
        let at = (0..MIX.len()).max_by_key(|at| lack(*at)).unwrap_or(0);
        let before = out.len();
        match MIX[at].0 {
            Class::Kernel => out.push(plain(self.kernel())),
            Class::Span => self.spans(out),
            Class::Telemetry => {
                let shape = self.telemetry();
                out.push(shape);
            }
            Class::Kubernetes => out.push(plain(self.kubernetes())),
        }
        self.made[at] += (out.len() - before) as u64;
    }

    /// The number of a workload of the shard, and an instance of it that speaks now.
    fn pod(&mut self) -> (usize, usize) {
        self.pods[self.random.below(self.pods.len())]
    }

    fn container(&mut self) -> &'a Arc<EntityRef> {
        let (workload, instance) = self.pod();
        &self.world.workloads[workload].containers[instance]
    }

    /// A path on the machines that speak now, and the instance of its workloads that is there.
    fn path(&mut self) -> (usize, usize) {
        let (near, instance) = self.pod();
        (near % SPREAD + SPREAD * self.random.below(PATHS / SPREAD), instance)
    }

    fn kernel(&mut self) -> UnifiedEvent {
        let units = &self.world.units_by_shard[self.shard];
        let (workload, instance) = self.pod();
        let entity = match self.random.of(units) {
            Some(unit) if self.random.below(10) == 0 => &self.world.units[*unit],
            _ => &self.world.workloads[workload].containers[instance],
        };
        let (kind, payload) = match self.random.below(100) {
            0..=8 => (EventKind::ProcessExec, self.process(true)),
            9..=18 => (EventKind::ProcessExit, self.process(false)),
            19..=46 => (EventKind::NetConnect, self.connection(workload, false)),
            47..=71 => (EventKind::NetAccept, self.connection(workload, false)),
            _ => (EventKind::NetClose, self.connection(workload, true)),
        };
        let pid = 1000 + self.random.below(60_000) as u32;
        UnifiedEvent { pid, ..event(kind, Source::Ebpf, EventSeverity::Debug, entity, payload) }
    }

    fn process(&mut self, exec: bool) -> Payload {
        let (comm, executable) = PROGRAMS[self.random.below(PROGRAMS.len())];
        Payload::Kernel(Box::new(KernelData {
            other_pid: 1 + self.random.below(60_000) as u32,
            uid: 1000,
            comm: comm.into(),
            executable: if exec { executable.into() } else { SmolStr::default() },
            ..KernelData::default()
        }))
    }

    fn connection(&mut self, of: usize, closed: bool) -> Payload {
        let peer = self.world.peer(of, &mut self.random);
        let mut local_addr = peer.address;
        (local_addr[13], local_addr[14], local_addr[15]) =
            (244, self.random.below(50) as u8, self.random.below(250) as u8);
        let detail = NetworkDetail {
            sent_bytes: 200 + self.random.below(4_000) as u64,
            received_bytes: 200 + self.random.below(40_000) as u64,
            ..NetworkDetail::default()
        };
        Payload::Network(Box::new(NetworkData {
            local_addr,
            remote_addr: peer.address,
            local_port: 32_768 + self.random.below(28_000) as u16,
            remote_port: 8080,
            duration_ns: 80_000 + self.random.below(2_000_000) as u64,
            comm: "server".into(),
            detail: closed.then(|| Box::new(detail)),
            ..NetworkData::default()
        }))
    }

    /// The spans of all calls of a path, the callee's before the caller's. Each call is of another trace, where
    /// several are open: of the one that has come so far.
    fn spans(&mut self, out: &mut Vec<Shape>) {
        let (number, instance) = self.path();
        let path = &self.world.paths[number];
        for hop in (0..HOPS).rev() {
            let end = |at: usize| &self.world.workloads[path.workloads[at]];
            let (caller, callee, route) = (end(hop), end(hop + 1), path.routes[hop]);
            let duration_ns = 400_000 + self.random.below(3_000_000) as u64;
            let mut server = span(callee, instance, SpanKind::Server, route, duration_ns, "");
            let mut client =
                span(caller, instance, SpanKind::Client, route, duration_ns + 300_000, callee.name.as_str());
            for event in [&mut server, &mut client] {
                event.pid = 1 + self.random.below(60_000) as u32;
            }
            let hop = Hop { path: number, number: hop };
            out.push(Shape { event: server, role: Role::Server(hop) });
            out.push(Shape { event: client, role: Role::Client(hop) });
        }
    }

    fn telemetry(&mut self) -> Shape {
        match self.random.below(10) {
            0..=4 => plain(self.sample()),
            5 => plain(self.histogram()),
            _ => self.log(),
        }
    }

    fn sample(&mut self) -> UnifiedEvent {
        let entity = self.container();
        // One level per container, well below its limit, whoever asks.
        let level = 0.30 + (mix(entity.lineage as u64 ^ hash(&entity.pod)) % 100) as f64 / 1000.0;
        let limit = 512.0 * 1024.0 * 1024.0;
        let (name, unit, kind, value, limit) = match self.random.below(4) {
            0 => ("container.memory.usage", "By", MetricKind::Gauge, (limit * level).floor(), limit),
            1 => {
                ("container.memory.raw_usage", "By", MetricKind::Gauge, (limit * level).floor() + 4e6, limit)
            }
            2 => ("container.cpu.time", "s", MetricKind::CumulativeSum, 1234.5, 0.0),
            _ => ("container.pids.count", "1", MetricKind::Gauge, 17.0, 0.0),
        };
        let monotonic = kind == MetricKind::CumulativeSum;
        let (name, unit) = (name.into(), unit.into());
        let data = MetricData { name, unit, kind, monotonic, value, limit, ..MetricData::default() };
        let payload = Payload::Metric(Box::new(data));
        event(EventKind::CgroupSample, Source::Cgroup, EventSeverity::Info, entity, payload)
    }

    fn histogram(&mut self) -> UnifiedEvent {
        let (workload, instance) = self.pod();
        let entity = &self.world.workloads[workload].services[instance];
        let route = ROUTES[self.random.below(ROUTES.len())];
        let payload = Payload::Metric(Box::new(MetricData {
            name: "http.server.request.duration".into(),
            unit: "s".into(),
            kind: MetricKind::Histogram,
            monotonic: true,
            value: 0.021,
            count: 1200,
            bounds: vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0],
            buckets: vec![40, 160, 500, 300, 120, 60, 15, 5, 0],
            attributes: vec![
                Attribute::new("http.route", route),
                Attribute::new("http.request.method", "GET"),
            ],
            ..MetricData::default()
        }));
        event(EventKind::Metric, Source::Otlp, EventSeverity::Info, entity, payload)
    }

    /// A line of an access log: every second one within a request that names its trace.
    fn log(&mut self) -> Shape {
        if self.random.below(2) == 0 {
            let (workload, instance) = self.pod();
            let route = ROUTES[self.random.below(ROUTES.len())];
            return plain(self.access(workload, instance, route));
        }
        let (number, instance) = self.path();
        let (path, hop) = (&self.world.paths[number], self.random.below(HOPS));
        let line = self.access(path.workloads[hop + 1], instance, path.routes[hop]);
        // Ids are filled in later; the place for them has to be there.
        let trace =
            Some(Box::new(TraceContext { trace_id: TraceId(1), flags: 1, ..TraceContext::default() }));
        Shape { event: UnifiedEvent { trace, ..line }, role: Role::Log(Hop { path: number, number: hop }) }
    }

    fn access(&mut self, workload: usize, instance: usize, route: &'static str) -> UnifiedEvent {
        let body = format!("GET {route}/{} 200 in {} ms", self.random.below(1000), self.random.below(90));
        let payload = Payload::Log(Box::new(LogData {
            severity_number: 9,
            body: body.into(),
            logger: "access".into(),
            attributes: vec![
                Attribute::new("http.route", route),
                Attribute::new("http.response.status_code", 200_i64),
            ],
            ..LogData::default()
        }));
        let entity = &self.world.workloads[workload].services[instance];
        event(EventKind::Log, Source::Otlp, EventSeverity::Info, entity, payload)
    }

    fn kubernetes(&mut self) -> UnifiedEvent {
        // The first workload of a shard is a calm one: what its pods say ends no injected fault.
        let calm = &self.world.workloads[self.world.by_shard[self.shard][0]];
        let container = &calm.containers[self.random.below(calm.containers.len())];
        kubernetes::routine(container, &mut self.random)
    }
}

const PROGRAMS: [(&str, &str); 4] = [
    ("sh", "/bin/sh"),
    ("curl", "/usr/bin/curl"),
    ("server", "/app/server"),
    ("pg_isready", "/usr/bin/pg_isready"),
];

fn hash(text: &str) -> u64 {
    text.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)))
}

fn plain(event: UnifiedEvent) -> Shape {
    Shape { event, role: Role::None }
}

/// An event of an entity, without times and id.
pub fn event(
    kind: EventKind,
    source: Source,
    severity: EventSeverity,
    entity: &Arc<EntityRef>,
    payload: Payload,
) -> UnifiedEvent {
    UnifiedEvent { kind, source, severity, entity: Arc::clone(entity), payload, ..UnifiedEvent::default() }
}

fn span(
    workload: &Workload,
    instance: usize,
    kind: SpanKind,
    route: &'static str,
    duration_ns: u64,
    peer: &str,
) -> UnifiedEvent {
    let entity = &workload.services[instance % workload.services.len()];
    let mut attributes = vec![
        Attribute::new("http.request.method", "GET"),
        Attribute::new("http.response.status_code", 200_i64),
        Attribute::new("url.scheme", "http"),
        Attribute::new("network.protocol.version", "1.1"),
    ];
    attributes.push(match peer {
        "" => Attribute::new("http.route", route),
        peer => Attribute::new("server.address", peer),
    });
    let data = SpanData {
        name: format!("GET {route}").into(),
        kind,
        duration_ns,
        http_status: 200,
        peer: peer.into(),
        attributes,
        ..SpanData::default()
    };
    let semantic = SemanticContext {
        intent: SmolStr::new_static("http-request"),
        category: Category::Performance,
        tags: Vec::new(),
    };
    UnifiedEvent {
        trace: Some(Box::new(TraceContext { trace_id: TraceId(1), flags: 1, ..TraceContext::default() })),
        semantic: Some(Box::new(semantic)),
        ..event(EventKind::Span, Source::Otlp, EventSeverity::Info, entity, Payload::Span(Box::new(data)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_asked_asks_on() {
        let world = World::new("load", 1);
        let mut shaper = Shaper::new(&world, 3, &Random::new(1));
        shaper.group(0, 6);
        let mut shapes = Vec::new();
        while shapes.len() < 2000 {
            shaper.next(&mut shapes);
        }
        let of = |role: Role| shapes.iter().find(|s| s.role == role).map(|s| s.event.entity.workload.clone());
        let paths = (0..PATHS).filter(|path| of(Role::Server(Hop { path: *path, number: 0 })).is_some());
        let mut seen = 0;
        for path in paths {
            for number in 1..HOPS {
                let asked = of(Role::Server(Hop { path, number: number - 1 }));
                assert_eq!(of(Role::Client(Hop { path, number })), asked);
                seen += 1;
            }
        }
        assert!(seen > 10, "{seen}");
    }
}
