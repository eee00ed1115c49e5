//! What came out of it.

use std::collections::BTreeMap;
use std::time::Duration;

use tapio_agents::ledger::{DropReason, LedgerSnapshot};
use tapio_runtime::bus::{Bus, OrderedConfig, StartAt};
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::kind::EventKind;
use tapio_schemas::names::{STREAM_EVENTS, events_filter};
use tapio_schemas::payload::Payload;
use tapio_schemas::wire::{EventBatchView, Unpacker};

use crate::usage::Usage;

/// Events that each connection of the generator makes: established, accepted, two ends, reset sent and received.
const EVENTS_PER_CONNECTION: u64 = 6;
const MIB: f64 = 1024.0 * 1024.0;

/// What the generator did.
pub struct Flood {
    pub port: u16,
    pub connections: u64,
    pub elapsed: Duration,
    pub cpu: Duration,
}

/// What the stream holds.
#[derive(Default)]
pub struct Kinds {
    /// All events.
    pub events: u64,
    /// Bytes of all messages.
    pub bytes: u64,
    /// Of the generator's connections, by kind.
    pub flood: BTreeMap<&'static str, u64>,
}

pub struct Report {
    pub elapsed: Duration,
    pub usage: Usage,
    /// Events handed over while it was measured, those the kernel lost included.
    pub produced: u64,
    pub ledger: LedgerSnapshot,
    pub flood: Option<Flood>,
    pub kinds: Kinds,
    pub degraded: Vec<(String, String)>,
}

impl Report {
    fn lost(&self, reason: DropReason) -> u64 {
        self.ledger.dropped.iter().find(|(r, _)| *r == reason).map_or(0, |(_, n)| *n)
    }

    /// Events delivered from the ring into the agent while it was measured.
    fn delivered(&self) -> u64 {
        self.produced.saturating_sub(self.lost(DropReason::KernelRingFull))
    }

    /// Events of the flood that are neither in the stream nor counted as lost.
    fn uncounted(&self) -> u64 {
        let made = self.flood.as_ref().map_or(0, |flood| flood.connections * EVENTS_PER_CONNECTION);
        let there: u64 = self.kinds.flood.values().sum();
        made.saturating_sub(there + self.ledger.dropped_total())
    }

    /// The ledger balances, the stream holds what was published, nothing is missing without a count.
    pub fn is_exact(&self) -> bool {
        self.ledger.balances() && self.kinds.events == self.ledger.published && self.uncounted() == 0
    }

    pub fn text(&self) -> String {
        let seconds = self.elapsed.as_secs_f64();
        let mut lines = Vec::new();
        if let Some(flood) = &self.flood {
            let took = flood.elapsed.as_secs_f64();
            lines.push(format!(
                "flood       {} connections in {took:.1} s = {:.0}/s; generator (kernel programs included) {:.2} cores",
                flood.connections,
                flood.connections as f64 / took,
                flood.cpu.as_secs_f64() / took,
            ));
            lines.push(format!("in stream   {:?}", self.kinds.flood));
        }
        lines.push(format!(
            "agent       {:.0} events/s, {:.2} % of a core, {:.2} µs CPU per event, {:.1} MiB resident, {:.1} at most",
            self.delivered() as f64 / seconds,
            self.usage.cpu.as_secs_f64() / seconds * 100.0,
            self.cpu_micros(),
            self.usage.resident_bytes as f64 / MIB,
            self.usage.peak_bytes as f64 / MIB,
        ));
        for (name, cpu) in self.usage.by_thread() {
            if cpu.as_secs_f64() / seconds > 0.0005 {
                lines.push(format!("  {name:<16} {:6.2} % of a core", cpu.as_secs_f64() / seconds * 100.0));
            }
        }
        lines.push(format!(
            "balance     {:?}; stream {} events of {:.1} bytes; uncounted {}",
            self.ledger,
            self.kinds.events,
            self.kinds.bytes as f64 / self.kinds.events.max(1) as f64,
            self.uncounted(),
        ));
        lines.extend(self.degraded.iter().map(|(name, why)| format!("degraded    {name}: {why}")));
        lines.push(format!("exact       {}", self.is_exact()));
        lines.join("\n")
    }

    fn cpu_micros(&self) -> f64 {
        self.usage.cpu.as_secs_f64() * 1e6 / self.delivered().max(1) as f64
    }

    pub fn json(&self) -> String {
        let seconds = self.elapsed.as_secs_f64();
        let dropped: BTreeMap<&str, u64> =
            self.ledger.dropped.iter().map(|(reason, n)| (reason.as_str(), *n)).collect();
        let (connections, rate) = self.flood.as_ref().map_or((0, 0.0), |flood| {
            (flood.connections, flood.connections as f64 / flood.elapsed.as_secs_f64())
        });
        serde_json::json!({
            "connections": connections,
            "connections_per_s": rate,
            "events_per_s": self.delivered() as f64 / seconds,
            "cpu_share": self.usage.cpu.as_secs_f64() / seconds,
            "cpu_us_per_event": self.cpu_micros(),
            "resident_bytes": self.usage.resident_bytes,
            "peak_rss_bytes": self.usage.peak_bytes,
            "produced": self.ledger.produced,
            "published": self.ledger.published,
            "dropped": dropped,
            "uncounted": self.uncounted(),
            "exact": self.is_exact(),
        })
        .to_string()
    }
}

/// Reads the whole stream and counts the events of connections to `port`.
pub async fn read_back(bus: &Bus, port: u16) -> Kinds {
    let config = OrderedConfig {
        filters: vec![events_filter("default")],
        start: StartAt::Beginning,
        ..OrderedConfig::new(STREAM_EVENTS)
    };
    let mut consumer = bus.ordered_consumer(config).await.expect("the stream is readable");
    let mut kinds = Kinds::default();
    let mut unpacker = Unpacker::default();
    loop {
        let messages =
            consumer.next_batch(256, Duration::from_secs(1)).await.expect("the stream is readable");
        if messages.is_empty() {
            return kinds;
        }
        for message in messages {
            kinds.bytes += message.payload.len() as u64;
            let plain = unpacker.unpack(&message.payload).expect("a valid message");
            let view = EventBatchView::check(plain).expect("a valid batch");
            for event in view.to_events() {
                kinds.events += 1;
                if is_of(&event, port) {
                    *kinds.flood.entry(event.kind.as_str()).or_default() += 1;
                }
            }
        }
    }
}

fn is_of(event: &UnifiedEvent, port: u16) -> bool {
    // A segment sent again is nothing that the generator makes.
    let Payload::Network(network) = &event.payload else { return false };
    event.kind != EventKind::NetRetransmit && (network.local_port == port || network.remote_port == port)
}
