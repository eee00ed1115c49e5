//! What the bus counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::CircuitState;
use crate::telemetry::Metrics;

type Label = [(&'static str, String); 1];

/// Shared by every bus of a registry.
#[derive(Debug, Clone)]
pub(super) struct BusMetrics {
    connected: Gauge,
    connections: Counter,
    circuit: Gauge,
    circuit_opened: Counter,
    published: Counter,
    published_bytes: Counter,
    duplicates: Counter,
    retries: Family<Label, Counter>,
    failures: Family<Label, Counter>,
    outstanding: Gauge,
    received: Family<Label, Counter>,
    reopened: Family<Label, Counter>,
    skipped: Family<Label, Counter>,
    slow_consumers: Counter,
    dead_letters: Family<Label, Counter>,
}

impl BusMetrics {
    pub(super) fn register(metrics: &Metrics) -> Self {
        Self {
            connected: metrics.shared("bus_connected", "1 while NATS is there"),
            connections: metrics.shared("bus_connections", "Connections made"),
            circuit: metrics.shared(
                "bus_circuit_state",
                "Way to the streams: 0 closed, messages are acknowledged; 1 half-open, in doubt; 2 open",
            ),
            circuit_opened: metrics.shared("bus_circuit_opened", "Times the circuit opened"),
            published: metrics.shared("bus_published", "Messages acknowledged by a stream"),
            published_bytes: metrics.shared("bus_published_bytes", "Payload bytes acknowledged"),
            duplicates: metrics.shared("bus_duplicates", "Acknowledged messages that the stream already had"),
            retries: metrics.shared("bus_publish_retries", "Repeated publishes by reason"),
            failures: metrics.shared("bus_publish_failures", "Messages not stored, by reason"),
            outstanding: metrics.shared("bus_outstanding", "Messages submitted and not yet acknowledged"),
            received: metrics.shared("bus_received", "Messages received from a stream"),
            reopened: metrics.shared("bus_consumer_reopened", "Consumers opened again, by stream"),
            skipped: metrics.shared(
                "bus_consumer_skipped",
                "Messages a stream dropped before an unfiltered ordered consumer read them",
            ),
            slow_consumers: metrics.shared("bus_slow_consumers", "Times a subscription dropped messages"),
            dead_letters: metrics.shared("bus_dead_letters", "Messages dead-lettered, by stage"),
        }
    }

    pub(super) fn connected(&self, yes: bool) {
        self.connected.set(i64::from(yes));
        if yes {
            self.connections.inc();
        }
    }

    pub(super) fn circuit(&self, state: CircuitState) {
        self.circuit.set(match state {
            CircuitState::Closed => 0,
            CircuitState::HalfOpen => 1,
            CircuitState::Open => 2,
        });
        if state == CircuitState::Open {
            self.circuit_opened.inc();
        }
    }

    pub(super) fn acked(&self, bytes: usize, duplicate: bool) {
        self.published.inc();
        self.published_bytes.inc_by(bytes as u64);
        if duplicate {
            self.duplicates.inc();
        }
    }

    pub(super) fn retry(&self, reason: &'static str) {
        self.retries.get_or_create(&label("reason", reason)).inc();
    }

    pub(super) fn failure(&self, reason: &'static str) {
        self.failures.get_or_create(&label("reason", reason)).inc();
    }

    pub(super) fn outstanding(&self, change: i64) {
        self.outstanding.inc_by(change);
    }

    pub(super) fn received(&self, stream: &str) {
        self.received.get_or_create(&label("stream", stream)).inc();
    }

    pub(super) fn reopened(&self, stream: &str) {
        self.reopened.get_or_create(&label("stream", stream)).inc();
    }

    pub(super) fn skipped(&self, stream: &str, count: u64) {
        self.skipped.get_or_create(&label("stream", stream)).inc_by(count);
    }

    pub(super) fn slow_consumer(&self) {
        self.slow_consumers.inc();
    }

    pub(super) fn dead_letter(&self, stage: &str) {
        self.dead_letters.get_or_create(&label("stage", stage)).inc();
    }
}

fn label(name: &'static str, value: &str) -> Label {
    [(name, value.to_owned())]
}
