//! Reads the counters of one network namespace and gives them as events.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tapio_schemas::attribute::Attribute;
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::{EventId, UnixNanos};
use tapio_schemas::kind::{EventKind, EventSeverity, Source};
use tapio_schemas::payload::{MetricData, MetricKind, Payload};

use super::config::NetworkConfig;
use super::parse::{
    Direction, Interface, Table, first_processor, interfaces, per_processor, softnet_dropped,
};

/// Packets that the stack itself dropped: why, and which counters say so. The second is contained in the first.
const STACK_DROPS: [(&str, &str, &str, Option<&str>); 9] = [
    ("listen_overflow", "TcpExt", "ListenOverflows", None),
    ("listen_other", "TcpExt", "ListenDrops", Some("ListenOverflows")),
    ("request_queue_full", "TcpExt", "TCPReqQFullDrop", None),
    ("tcp_backlog_full", "TcpExt", "TCPBacklogDrop", None),
    ("tcp_receive_queue_full", "TcpExt", "TCPRcvQDrop", None),
    ("udp_receive_buffer_full", "Udp", "RcvbufErrors", None),
    ("ip_receive", "Ip", "InDiscards", None),
    ("ip_transmit", "Ip", "OutDiscards", None),
    ("packet_too_big", "Ip", "FragFails", None),
];
/// The same, of the tables of `stat/`, by table and column. The room for neighbours is one for all network namespaces.
const TABLE_DROPS: [(&str, &str, &str); 2] = [
    ("neighbour_table_full", "arp_cache", "table_fulls"),
    ("neighbour6_table_full", "ndisc_cache", "table_fulls"),
];
/// Packets for which the table of connections took no entry.
const CONNTRACK: &str = "stat/nf_conntrack";
/// Room in that table, below the mount of proc in which the counters stand.
const CONNTRACK_MAX: &str = "sys/net/netfilter/nf_conntrack_max";
/// Share of the room from which a drop is put down to the want of it: below it entries are refused for other reasons.
const CONNTRACK_NEAR_FULL: f64 = 0.9;
/// Further counters: metric, unit, and where they stand.
const TCP: [(&str, &str, &str); 4] = [
    ("system.network.tcp.segments.sent", "{segment}", "OutSegs"),
    ("system.network.tcp.segments.retransmitted", "{segment}", "RetransSegs"),
    ("system.network.tcp.connections.reset", "{connection}", "EstabResets"),
    ("system.network.tcp.connections.failed", "{connection}", "AttemptFails"),
];
/// The machine's counters, and the agent's own.
const MACHINE: &str = "/proc/1/net";
const SELF: &str = "/proc/self/net";
/// Ends of containers' interfaces, of which there are many.
const CONTAINER_PREFIXES: [&str; 4] = ["veth", "cali", "lxc", "tap"];

/// The counters of one namespace.
pub struct Sampler {
    dir: PathBuf,
    interfaces_max: usize,
    node: Arc<EntityRef>,
    left_out: usize,
    leaves_out_own: bool,
    blind: Option<String>,
    connections: Connections,
}

/// Drops of the table of connections since the first sample, by why.
#[derive(Default)]
struct Connections {
    /// The kernel's counter, and whether the table was almost full.
    before: Option<(u64, bool)>,
    /// While it was.
    full: u64,
    /// While it was not, or nobody could tell.
    other: u64,
}

impl Connections {
    /// The counter has come to `dropped`.
    fn take(&mut self, dropped: u64, is_full: bool) {
        if let Some((before, was_full)) = self.before {
            let grown = dropped.saturating_sub(before);
            // It may have been full at either end of the time between two samples.
            *(if is_full || was_full { &mut self.full } else { &mut self.other }) += grown;
        }
        self.before = Some((dropped, is_full));
    }
}

impl Sampler {
    /// Reads the configured directory, or that of the agent's own namespace where it cannot be read.
    pub fn new(config: &NetworkConfig, node: Arc<EntityRef>) -> Self {
        let (interfaces_max, left_out) = (config.interfaces_max, 0);
        let file = config.dir.join("dev");
        let (dir, blind) = match fs::read_to_string(&file) {
            Ok(_) => (config.dir.clone(), None),
            Err(error) => (PathBuf::from(SELF), blind(&config.dir, &file, &error)),
        };
        let (leaves_out_own, connections) = (false, Connections::default());
        Self { dir, interfaces_max, node, left_out, leaves_out_own, blind, connections }
    }

    /// Why these are not the counters of the machine; `None` when they are, or may be.
    pub fn blind(&self) -> Option<&str> {
        self.blind.as_deref()
    }

    /// Where it reads.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Interfaces left out by `interfaces_max` in the last sample.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// True when interfaces that are not those of containers were among them.
    pub fn leaves_out_own(&self) -> bool {
        self.leaves_out_own
    }

    /// One sample.
    pub fn sample(&mut self, at: UnixNanos) -> Vec<UnifiedEvent> {
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        let (snmp, netstat, softnet, dev) =
            (read("snmp"), read("netstat"), read("softnet_stat"), read("dev"));
        let (snmp, netstat) = (Table::read(&snmp), Table::read(&netstat));
        let counter =
            |protocol: &str, name: &str| snmp.get(protocol, name).or_else(|| netstat.get(protocol, name));
        let mut writer = Writer { node: &self.node, at, out: Vec::new() };
        for (reason, protocol, name, without) in STACK_DROPS {
            let Some(count) = counter(protocol, name) else { continue };
            let others = without.and_then(|other| counter(protocol, other)).unwrap_or(0);
            writer.stack_drop(reason, count.saturating_sub(others));
        }
        for (reason, table, column) in TABLE_DROPS {
            if let Some(count) = per_processor(&read(&format!("stat/{table}")), column) {
                writer.stack_drop(reason, count);
            }
        }
        let table = read(CONNTRACK);
        if let Some(count) = per_processor(&table, "drop") {
            self.connections.take(count, is_almost_full(&self.dir, &table));
            writer.stack_drop("conntrack_full", self.connections.full);
            writer.stack_drop("conntrack_drop", self.connections.other);
        }
        if let Some(count) = softnet_dropped(&softnet) {
            writer.stack_drop("softnet_backlog_full", count);
        }
        for (metric, unit, name) in TCP {
            if let Some(count) = snmp.get("Tcp", name) {
                writer.sum(metric, unit, count, vec![]);
            }
        }
        let mut all = interfaces(&dev);
        // A stable sort: the machine's own first, in the order of the kernel.
        all.sort_by_key(|interface| is_of_container(&interface.name));
        let over = all.len().saturating_sub(self.interfaces_max);
        let own = all.iter().filter(|interface| !is_of_container(&interface.name)).count();
        all.truncate(self.interfaces_max);
        all.iter().for_each(|interface| writer.interface(interface));
        let out = writer.out;
        self.left_out = over;
        self.leaves_out_own = own > self.interfaces_max;
        out
    }
}

/// Whether the table of connections of the namespace has hardly any room left; false where nobody can tell.
fn is_almost_full(dir: &Path, table: &str) -> bool {
    // `<proc>/<process>/net`. The room is the same for all namespaces, the entries are those of the one that is read.
    let max = dir.ancestors().nth(2).and_then(|proc| fs::read_to_string(proc.join(CONNTRACK_MAX)).ok());
    let max: Option<u64> = max.and_then(|max| max.trim().parse().ok());
    match (first_processor(table, "entries"), max) {
        (Some(entries), Some(max)) if max > 0 => entries as f64 >= CONNTRACK_NEAR_FULL * max as f64,
        _ => false,
    }
}

/// The agent's own counters are those of the machine when it is in the machine's network namespace, as far as may be asked.
fn blind(dir: &Path, file: &Path, error: &std::io::Error) -> Option<String> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    if dir == Path::new(MACHINE)
        && namespace("1").is_some_and(|of_machine| namespace("self") == Some(of_machine))
    {
        return None;
    }
    Some(format!("{}: {error}; the counters are those of the agent's own namespace", file.display()))
}

fn is_of_container(name: &str) -> bool {
    CONTAINER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

struct Writer<'a> {
    node: &'a Arc<EntityRef>,
    at: UnixNanos,
    out: Vec<UnifiedEvent>,
}

impl Writer<'_> {
    fn stack_drop(&mut self, reason: &str, count: u64) {
        self.sum("system.network.stack.dropped", "{packet}", count, vec![Attribute::new("reason", reason)]);
    }

    fn interface(&mut self, interface: &Interface) {
        self.direction(&interface.name, "receive", &interface.receive);
        self.direction(&interface.name, "transmit", &interface.transmit);
    }

    fn direction(&mut self, interface: &str, direction: &str, counters: &Direction) {
        let values = [
            ("system.network.io", "By", counters.bytes),
            ("system.network.packets", "{packet}", counters.packets),
            ("system.network.errors", "{error}", counters.errors),
            ("system.network.dropped", "{packet}", counters.dropped),
        ];
        for (metric, unit, count) in values {
            let attributes = vec![
                Attribute::new("network.interface.name", interface),
                Attribute::new("network.io.direction", direction),
            ];
            self.sum(metric, unit, count, attributes);
        }
    }

    fn sum(&mut self, name: &str, unit: &str, value: u64, attributes: Vec<Attribute>) {
        let texts: Vec<String> = attributes.iter().map(|a| a.value.to_string()).collect();
        let seed = format!("{:032x}{name}{}", self.node.lineage, texts.join("/"));
        let metric = MetricData {
            name: name.into(),
            unit: unit.into(),
            kind: MetricKind::CumulativeSum,
            monotonic: true,
            value: value as f64,
            attributes,
            ..MetricData::default()
        };
        self.out.push(UnifiedEvent {
            id: EventId::derive(self.at, seed.as_bytes()),
            timestamp: self.at,
            observed_at: self.at,
            kind: EventKind::Metric,
            source: Source::Network,
            severity: EventSeverity::Info,
            entity: Arc::clone(self.node),
            payload: Payload::Metric(Box::new(metric)),
            ..UnifiedEvent::default()
        });
    }
}
