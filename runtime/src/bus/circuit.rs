//! Whether publishing works, as one state to look at.
//!
//! Nothing is refused because of it: publishers are bounded by their windows, and repeat with backoff for as long as
//! their callers want. It tells people, and readiness, what those repetitions mean together.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::metrics::BusMetrics;

/// So many attempts in a row without an acknowledgement open the circuit.
const OPEN_AFTER: u32 = 5;
/// An open circuit over which no one tries is in doubt after this time.
const DOUBT_AFTER: Duration = Duration::from_secs(10);

/// State of the way to the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitState {
    /// Messages are acknowledged.
    Closed,
    /// NATS is there (again), and the first acknowledgement has not come yet.
    HalfOpen,
    /// NATS is away, or does not acknowledge.
    Open,
}

impl CircuitState {
    /// In lower-case words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        }
    }
}

#[derive(Debug)]
pub(super) struct Circuit {
    state: Mutex<State>,
    metrics: BusMetrics,
}

#[derive(Debug)]
struct State {
    now: CircuitState,
    since: Instant,
    failures: u32,
    connected: bool,
}

impl Circuit {
    pub(super) fn new(metrics: BusMetrics) -> Self {
        let state =
            State { now: CircuitState::HalfOpen, since: Instant::now(), failures: 0, connected: false };
        Self { state: Mutex::new(state), metrics }
    }

    pub(super) fn state(&self) -> CircuitState {
        let mut state = self.lock();
        if state.now == CircuitState::Open && state.connected && state.since.elapsed() >= DOUBT_AFTER {
            self.change(&mut state, CircuitState::HalfOpen);
        }
        state.now
    }

    pub(super) fn connected(&self, yes: bool) {
        let mut state = self.lock();
        state.connected = yes;
        self.change(&mut state, if yes { CircuitState::HalfOpen } else { CircuitState::Open });
    }

    pub(super) fn acknowledged(&self) {
        let mut state = self.lock();
        state.failures = 0;
        self.change(&mut state, CircuitState::Closed);
    }

    /// An attempt was not acknowledged.
    pub(super) fn failed(&self) {
        let mut state = self.lock();
        state.failures += 1;
        if state.failures >= OPEN_AFTER {
            self.change(&mut state, CircuitState::Open);
        }
    }

    fn change(&self, state: &mut State, to: CircuitState) {
        if state.now == to {
            return;
        }
        if to == CircuitState::HalfOpen {
            // One more failure opens it again.
            state.failures = OPEN_AFTER - 1;
        }
        tracing::debug!(from = state.now.as_str(), to = to.as_str(), "circuit to nats");
        (state.now, state.since) = (to, Instant::now());
        self.metrics.circuit(to);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("circuit lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_with_an_acknowledgement() {
        let metrics = Metrics::new();
        let circuit = Circuit::new(BusMetrics::register(&metrics));
        circuit.connected(true);
        circuit.acknowledged();
        for _ in 1..OPEN_AFTER {
            circuit.failed();
        }
        assert_eq!(circuit.state(), CircuitState::Closed);
        circuit.acknowledged();
        for _ in 0..OPEN_AFTER {
            circuit.failed();
        }
        assert_eq!(circuit.state(), CircuitState::Open);
        circuit.acknowledged();
        assert_eq!(circuit.state(), CircuitState::Closed);
        circuit.connected(false);
        assert_eq!(circuit.state(), CircuitState::Open);
        circuit.connected(true);
        assert_eq!(circuit.state(), CircuitState::HalfOpen);
        circuit.failed();
        assert_eq!(circuit.state(), CircuitState::Open, "one failure is enough while in doubt");
        let text = metrics.encode();
        assert!(text.contains("tapio_bus_circuit_state 2"), "{text}");
        assert!(text.contains("tapio_bus_circuit_opened_total 3"), "{text}");
    }
}
