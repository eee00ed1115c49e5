//! What stage one has said, held back until its time has come, and the signals known at this tick.

use std::collections::BTreeMap;

use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{Fact, Gap, Signal, SignalId, SignalKind, Tally, UnixNanos};

use crate::services::ServiceState;

/// Grid on which decisions are taken, event time.
pub const TICK_NS: u64 = 250_000_000;

/// First tick at or after `at`.
pub fn tick_from(at: UnixNanos) -> UnixNanos {
    UnixNanos(at.0.div_ceil(TICK_NS).saturating_mul(TICK_NS))
}

/// Watermarks of all shards.
#[derive(Debug)]
pub struct Watermarks([UnixNanos; SHARD_COUNT as usize]);

impl Default for Watermarks {
    fn default() -> Self {
        Self([UnixNanos(0); SHARD_COUNT as usize])
    }
}

impl Watermarks {
    /// Raises a shard's watermark; it never falls.
    pub fn raise(&mut self, shard: u16, to: UnixNanos) {
        if let Some(mark) = self.0.get_mut(usize::from(shard)) {
            *mark = (*mark).max(to);
        }
    }

    /// Raises all of them.
    pub fn raise_all(&mut self, to: UnixNanos) {
        self.0.iter_mut().for_each(|mark| *mark = (*mark).max(to));
    }

    /// Everything up to here has been said.
    pub fn complete(&self) -> UnixNanos {
        self.0.iter().copied().min().unwrap_or_default()
    }
}

/// One thing said.
#[derive(Debug)]
pub enum Said {
    /// A deviation, or a new revision of one.
    Signal(Box<Signal>),
    /// An edge.
    Fact(Box<Fact>),
    /// Calls of a window.
    Tally(Box<Tally>),
    /// A hole.
    Gap(Box<Gap>),
    /// State of a service.
    State(Box<ServiceState>),
}

/// What waits for its time. The key orders equal times alike, whatever the order of arrival.
#[derive(Debug, Default)]
pub struct Pending {
    items: BTreeMap<(UnixNanos, u8, u128, u64), Said>,
    /// Times of the signals among them, and how many are of each.
    signals: BTreeMap<UnixNanos, usize>,
}

impl Pending {
    /// Takes a section.
    pub fn extend(&mut self, section: SignalSection) {
        for signal in section.signals {
            let key = (signal.last_seen, 4, signal.id.0, u64::from(signal.revision));
            if self.items.insert(key, Said::Signal(Box::new(signal))).is_none() {
                *self.signals.entry(key.0).or_default() += 1;
            }
        }
        for fact in section.facts {
            let id = order(&[&fact.from, &fact.to], fact.edge as u64);
            self.items.insert((fact.at, 0, id, u64::from(fact.gone)), Said::Fact(Box::new(fact)));
        }
        for tally in section.tallies {
            let at = tally.window_start.plus(tally.window_ns);
            let content = tally.calls ^ (tally.errors << 32) ^ tally.duration_ns_sum.rotate_left(17);
            let id = order(&[&tally.from, &tally.to], content);
            let mut copy = 0;
            // Two shards may count alike; both count.
            while self.items.contains_key(&(at, 1, id, copy)) {
                copy += 1;
            }
            self.items.insert((at, 1, id, copy), Said::Tally(Box::new(tally)));
        }
        for gap in section.gaps {
            // One producer may tell several of the same time.
            let why = xxhash_rust::xxh3::xxh3_64(gap.reason.as_bytes());
            let id = u128::from(gap.producer.0) << 64 | u128::from(gap.from.0 ^ why);
            self.items.insert((gap.to, 2, id, gap.lost), Said::Gap(Box::new(gap)));
        }
    }

    /// Takes what has changed about services.
    pub fn extend_states(&mut self, states: Vec<ServiceState>) {
        for state in states {
            let id = order(&[&state.service], 0);
            self.items.insert((state.at, 3, id, 0), Said::State(Box::new(state)));
        }
    }

    /// Next one whose time is not after `tick`.
    pub fn take_until(&mut self, tick: UnixNanos) -> Option<Said> {
        self.oldest().filter(|oldest| *oldest <= tick)?;
        self.take_oldest()
    }

    /// Takes the oldest, whatever its time.
    pub fn take_oldest(&mut self) -> Option<Said> {
        let (key, said) = self.items.pop_first()?;
        if matches!(said, Said::Signal(_))
            && let Some(count) = self.signals.get_mut(&key.0)
        {
            *count -= 1;
            if *count == 0 {
                self.signals.remove(&key.0);
            }
        }
        Some(said)
    }

    /// Time of the oldest signal.
    pub fn oldest_signal(&self) -> Option<UnixNanos> {
        self.signals.first_key_value().map(|(at, _)| *at)
    }

    /// Time of the oldest.
    pub fn oldest(&self) -> Option<UnixNanos> {
        self.items.first_key_value().map(|(key, _)| key.0)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.items.len()
    }
}

fn order(entities: &[&tapio_schemas::Entity], salt: u64) -> u128 {
    let mut hash = xxhash_rust::xxh3::Xxh3::with_seed(salt);
    for entity in entities {
        for part in [&entity.kind, &entity.namespace, &entity.name, &entity.node] {
            hash.update(&(part.len() as u32).to_le_bytes());
            hash.update(part.as_bytes());
        }
    }
    hash.digest128()
}

/// Signals known at this tick, latest revision each.
#[derive(Debug, Default)]
pub struct Known {
    signals: BTreeMap<SignalId, Signal>,
}

impl Known {
    /// Takes a revision; false when a later one is known.
    pub fn update(&mut self, signal: Signal) -> bool {
        match self.signals.get(&signal.id) {
            Some(known) if known.revision >= signal.revision => false,
            _ => {
                self.signals.insert(signal.id, signal);
                true
            }
        }
    }

    /// One of them.
    pub fn get(&self, id: SignalId) -> Option<&Signal> {
        self.signals.get(&id)
    }

    /// All, by onset and id.
    pub fn in_time_order(&self) -> Vec<&Signal> {
        let mut all: Vec<&Signal> = self.signals.values().collect();
        all.sort_by_key(|s| (s.onset, s.id));
        all
    }

    /// The newest changes, at most so many, by onset and id.
    pub fn changes(&self, count_max: usize) -> Vec<Signal> {
        let mut changes: Vec<&Signal> = self.signals.values().filter(|s| is_change(s.kind)).collect();
        changes.sort_by_key(|s| (s.onset, s.id));
        let surplus = changes.len().saturating_sub(count_max);
        changes.into_iter().skip(surplus).cloned().collect()
    }

    /// Forgets those for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(&Signal) -> bool) {
        self.signals.retain(|_, signal| keep(signal));
    }

    /// Forgets those above the limit; returns how many. What is over goes first, then what is longest silent. Changes are the
    /// oldest of all in a flood, and explain it: they go last, as long as they are no more than half.
    pub fn shrink(&mut self, count_max: usize) -> u64 {
        let surplus = self.signals.len().saturating_sub(count_max);
        if surplus == 0 {
            return 0;
        }
        let mut changes: Vec<_> =
            self.signals.values().filter(|s| is_change(s.kind)).map(|s| (s.last_seen, s.id)).collect();
        changes.sort_unstable();
        let first_kept = changes.len().checked_sub(count_max / 2).and_then(|at| changes.get(at)).copied();
        let mut all: Vec<_> = self
            .signals
            .values()
            .map(|s| {
                let kept = is_change(s.kind) && first_kept.is_none_or(|first| (s.last_seen, s.id) >= first);
                (kept, !s.ended && !is_change(s.kind), s.last_seen, s.id)
            })
            .collect();
        all.sort_unstable();
        for (.., id) in all.iter().take(surplus) {
            self.signals.remove(id);
        }
        surplus as u64
    }

    /// What they are about.
    pub fn entities(&self) -> impl Iterator<Item = tapio_schemas::Entity> {
        self.signals.values().flat_map(|signal| [signal.entity.subject(), signal.entity.owner()])
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.signals.len()
    }
}

/// True for changes somebody made: they explain, they are not explained.
pub fn is_change(kind: SignalKind) -> bool {
    use SignalKind as K;
    matches!(
        kind,
        K::ImageChanged
            | K::ConfigChanged
            | K::Scaled
            | K::RolloutStarted
            | K::ChangeApplied
            | K::ObjectChanged
    )
}

/// True for what is about an object of the API itself, not about what stands behind its name.
pub fn is_of_object(kind: SignalKind) -> bool {
    matches!(kind, SignalKind::NoEndpoints | SignalKind::ObjectChanged)
}

/// How much later than its onset is stamped something may have begun, ns: Kubernetes stamps whole seconds. What others stamp,
/// kernels, sensors and who counts in windows, is taken by its word.
pub fn open_ns(signal: &Signal) -> u64 {
    const SECOND_NS: u64 = 1_000_000_000;
    // Kubelets tell kills of the machine as well.
    let is_of_kubernetes = is_change(signal.kind)
        || signal.kind == SignalKind::OomKill
        || signal.kind.as_str().starts_with("k8s.");
    if is_of_kubernetes && signal.onset.0.is_multiple_of(SECOND_NS) { SECOND_NS - 1 } else { 0 }
}

/// True for what says how a service is, as opposed to what has happened to it.
pub fn is_state(kind: SignalKind) -> bool {
    use SignalKind as K;
    matches!(
        kind,
        K::OwnTime
            | K::NetworkGap
            | K::TraceShape
            | K::CallsStopped
            | K::CallsRepeated
            | K::CpuSaturated
            | K::CpuRaised
            | K::MetricShift
    )
}

/// True when something has failed, as opposed to being on its way there.
pub fn is_failure(kind: SignalKind) -> bool {
    use SignalKind as K;
    matches!(
        kind,
        K::OomKill
            | K::CrashSignal
            | K::ExitNonzero
            | K::Killed
            | K::NetRefused
            | K::NetTimeout
            | K::NetUnreachable
            | K::DnsFailures
            | K::SpanErrors
            | K::SpanTimeouts
            | K::HttpServerErrors
            | K::UnitFailed
            | K::ContainerOomKilled
            | K::ContainerCrashed
            | K::CrashLoop
            | K::ImagePullFailed
            | K::ConfigMissing
            | K::Unschedulable
            | K::MountFailed
            | K::CreateFailed
            | K::NodeNotReady
            | K::Evicted
            | K::SandboxFailed
            | K::PodNotReady
            | K::Stuck
            | K::NodeRestarted
            | K::LogFault
            | K::DiskFull
            | K::CertificateExpired
            | K::ApiFails
            | K::ComponentFails
            | K::DnsFails
    )
}

/// Probability that the deviation shows without any cause the model knows.
pub fn leak_probability(kind: SignalKind) -> f64 {
    use SignalKind as K;
    match kind {
        K::CpuThrottled | K::SpanSlow | K::K8sWarning | K::LogErrors => 0.15,
        // Whatever fails is tried again.
        K::CallsRepeated => 0.1,
        K::NetReset | K::CpuPressure | K::IoPressure | K::MemoryPressure | K::NetDrops => 0.1,
        K::NetRetransmits => 0.05,
        K::ExitNonzero | K::SpanErrors | K::Killed | K::NetRefused => 0.02,
        _ => 0.005,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tapio_schemas::EntityRef;

    use super::*;

    fn known(signals: &[(SignalKind, u64, bool)]) -> Known {
        let mut known = Known::default();
        for (kind, at, ended) in signals {
            let mut signal = Signal::new(*kind, Arc::new(EntityRef::default()), None, UnixNanos(*at));
            (signal.revision, signal.ended) = (1, *ended);
            assert!(known.update(signal));
        }
        known
    }

    fn left(known: &Known) -> Vec<(SignalKind, u64)> {
        known.in_time_order().iter().map(|s| (s.kind, s.onset.0)).collect()
    }

    #[test]
    fn in_a_flood_the_change_that_explains_it_stays() {
        let flood = (2..100).map(|at| (SignalKind::NetRefused, at, at % 2 == 0));
        let change = [(SignalKind::ConfigChanged, 1, true)];
        let mut known = known(&change.into_iter().chain(flood).collect::<Vec<_>>());
        assert_eq!(known.shrink(4), 95);
        use SignalKind::{ConfigChanged, NetRefused};
        assert_eq!(left(&known), [(ConfigChanged, 1), (NetRefused, 95), (NetRefused, 97), (NetRefused, 99)]);
        assert_eq!(known.shrink(4), 0);
    }

    #[test]
    fn a_flood_of_changes_leaves_half_to_what_failed() {
        let flood = (2..100).map(|at| (SignalKind::ChangeApplied, at, false));
        let failed = [(SignalKind::NetRefused, 0, false), (SignalKind::OomKill, 1, true)];
        let mut known = known(&failed.into_iter().chain(flood).collect::<Vec<_>>());
        assert_eq!(known.shrink(4), 96);
        use SignalKind::{ChangeApplied, NetRefused};
        let newest = [(ChangeApplied, 97), (ChangeApplied, 98), (ChangeApplied, 99)];
        assert_eq!(left(&known), [&[(NetRefused, 0)][..], &newest].concat());
    }
}
